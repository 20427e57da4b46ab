/* Attention block by block: prompts. What it costs is arithmetic: 4·d_head operations for each query head, query and position,
 * in f32 and each sum in its own order, so it is a product of matrices without the tensor cores.
 *
 * A block of threads has up to 64 queries of one head and goes through segments of 256 positions. A warp has 8 queries in
 * all that follows, so that maxima, sums and probabilities are its own affair:
 *
 *   scores    [64][256] = q·kᵀ    a lane: 8 queries × positions 4·lane … + 3 and 128 + 4·lane … + 3, in registers, over
 *                                 16 dimensions at a time, keys and queries being staged as f32 [16][…] in shared memory
 *   p         [64][256]           in shared memory, where the stages were
 *   O         [64][d] += p·v      a lane: 8 queries × WIDE dimensions, over pages, staged as f32 [32][32·WIDE]; 32·WIDE
 *                                 dimensions at a time
 *
 * A stage is loaded into registers while the one before it is multiplied, and there are two of each, so one barrier a stage
 * is enough. The sums so far lie in `out`, which only their own thread touches.
 *
 * Queries see different positions at the edges. Scores are computed there all the same and dropped. The sum over values is
 * another matter: a position that a query does not see may hold anything, even as a product with zero, so on pages at an
 * edge each multiplication is made only where it is seen. */
#include "kernels/cuda/attn.h"

enum {
    QUERIES = MU_DEVICE_QUERY_BLOCK,
    MINE = 8, /* queries of a warp */
    WARPS = QUERIES / MINE,
    THREADS = 32 * WARPS,
    HALF = MU_ATTN_SEGMENT / 2,
    Q_ROW = QUERIES + 4, /* rows of queries, so that lanes that store a column spread over the banks */
};
static_assert((int)THREADS == (int)MU_ATTN_SEGMENT, "a thread stages the keys of one position");

template <int WIDE> struct shared {
    union {
        float p[QUERIES][MU_ATTN_SEGMENT];
        struct {
            float k[2][MU_KV_UNIT][MU_ATTN_SEGMENT];
            float q[2][MU_KV_UNIT][Q_ROW];
        };
    };
    float v[2][MU_KV_PAGE][32 * WIDE];
    float sum_m[QUERIES], sum_l[QUERIES], keep[QUERIES], take[QUERIES];
    struct mu_attn_end end[QUERIES]; /* after the last segment */
};

/* What a thread holds of the next stage: a unit of keys and four values of queries, or a unit of values. */
template <typename KV> struct ahead {
    typename KV::unit unit;
    float q[QUERIES * MU_KV_UNIT / THREADS];
};

/* The block of queries, and where one of its segments lies. */
struct span {
    struct mu_device_block b;
    int head, kv_head;
    unsigned reach; /* the window, or beyond every position */
    int base;       /* position of the segment's first */
    int begin, end; /* of the segment, what any of the queries sees */
};

/* Queries' dimension 16u + tid mod 16, rows tid / 16, + 16 …; the key at my position, NULL where no query sees its page. */
template <typename KV>
static __device__ void keys_load(const struct mu_device_attn &a, const struct span &s, const unsigned char *keys, int u,
                                 int tid, struct ahead<KV> *next)
{
    int n = a.kv.d_head, d = u * MU_KV_UNIT + tid % MU_KV_UNIT, row = tid / MU_KV_UNIT;
    size_t step = (size_t)a.n_head * (size_t)n;
    const float *q = a.q + (size_t)(s.b.tok + row) * step + (size_t)(s.head * n + d);
    next->unit = keys ? KV::key(keys, n, u, tid % MU_KV_PAGE) : KV::none();
#pragma unroll
    for (int i = 0; i < QUERIES * MU_KV_UNIT / THREADS; i++) {
        next->q[i] = 0.0f;
        if (d < n && row + THREADS / MU_KV_UNIT * i < s.b.n_tok)
            next->q[i] = q[(size_t)(THREADS / MU_KV_UNIT * i) * step];
    }
}
template <typename KV, int WIDE>
static __device__ void keys_put(struct shared<WIDE> *sh, int stage, float scale, int tid, const struct ahead<KV> &next)
{
#pragma unroll
    for (int four = 0; four < MU_KV_UNIT / 4; four++) {
        float k[4];
        KV::key_widen(next.unit, four, k);
#pragma unroll
        for (int i = 0; i < 4; i++) sh->k[stage][4 * four + i][tid] = k[i];
    }
#pragma unroll
    for (int i = 0; i < QUERIES * MU_KV_UNIT / THREADS; i++)
        sh->q[stage][tid % MU_KV_UNIT][tid / MU_KV_UNIT + THREADS / MU_KV_UNIT * i] = next.q[i] * scale;
}

/* 16 dimensions further. HALVES 1: nobody sees the second half of the segment. */
template <int HALVES, int WIDE>
static __device__ void scores_add(const struct shared<WIDE> *sh, int stage, int lane, int warp, float s[MINE][8])
{
#pragma unroll 8
    for (int d = 0; d < MU_KV_UNIT; d++) {
        const float *q = &sh->q[stage][d][MINE * warp], *k = &sh->k[stage][d][4 * lane];
        float4 q0 = *(const float4 *)q, q1 = *(const float4 *)(q + 4), k0 = *(const float4 *)k, k1 = k0;
        if (HALVES == 2) k1 = *(const float4 *)(k + HALF);
        float x[MINE] = {q0.x, q0.y, q0.z, q0.w, q1.x, q1.y, q1.z, q1.w};
        float y[8] = {k0.x, k0.y, k0.z, k0.w, k1.x, k1.y, k1.z, k1.w};
#pragma unroll
        for (int r = 0; r < MINE; r++)
#pragma unroll
            for (int c = 0; c < 4 * HALVES; c++) s[r][c] = fmaf(x[r], y[c], s[r][c]);
    }
}

/* Where the query of a row is, from the segment's first position on. Rows beyond the block's queries, whose results
 * nobody stores, are as its last. */
static __device__ inline int place_of(const struct span &s, int row)
{
    return s.b.pos0 - s.base + (row < s.b.n_tok ? row : s.b.n_tok - 1);
}
/* A query at `place` sees a position of the segment. */
static __device__ inline bool sees(const struct span &s, int place, int position)
{
    return (unsigned)(place - position) < s.reach; /* later positions wrap */
}

/* Position in the segment of a lane's score c. */
static __device__ inline int column(int lane, int c)
{
    return c / 4 * HALF + 4 * lane + c % 4;
}

/* Soft cap, by way of memory: unrolled, these divisions would take all registers. */
template <int WIDE>
static __device__ void scores_cap(float cap, struct shared<WIDE> *sh, int lane, int warp, float s[MINE][8])
{
#pragma unroll
    for (int r = 0; r < MINE; r++)
#pragma unroll
        for (int c = 0; c < 8; c++) sh->p[MINE * warp + r][column(lane, c)] = s[r][c];
#pragma unroll 1
    for (int i = 0; i < MINE * 8; i++) {
        float *p = &sh->p[MINE * warp + i / 8][column(lane, i % 8)];
        *p = mu_attn_cap(*p, cap);
    }
#pragma unroll
    for (int r = 0; r < MINE; r++)
#pragma unroll
        for (int c = 0; c < 8; c++) s[r][c] = sh->p[MINE * warp + r][column(lane, c)];
}

/* Scores into probabilities, and what the segment does to the sums of my queries. */
template <int WIDE>
static __device__ void probabilities(const struct mu_device_attn &a, const struct span &span, struct shared<WIDE> *sh,
                                     bool last, int lane, int warp, float s[MINE][8])
{
    float most[MINE];
    if (a.softcap != 0.0f) scores_cap<WIDE>(a.softcap, sh, lane, warp, s);
#pragma unroll
    for (int r = 0; r < MINE; r++) {
        int row = MINE * warp + r, place = place_of(span, row);
        float m = -INFINITY;
#pragma unroll
        for (int c = 0; c < 8; c++) {
            if (sees(span, place, column(lane, c))) m = fmaxf(m, s[r][c]);
        }
        m = mu_warp_max(m);
        most[r] = m;
#pragma unroll
        for (int c = 0; c < 8; c++) { s[r][c] = sees(span, place, column(lane, c)) ? vf_exp(s[r][c] - m) : 0.0f; }
        *(float4 *)&sh->p[row][4 * lane] = make_float4(s[r][0], s[r][1], s[r][2], s[r][3]);
        *(float4 *)&sh->p[row][HALF + 4 * lane] = make_float4(s[r][4], s[r][5], s[r][6], s[r][7]);
    }
    __syncwarp();
    /* l: half a warp a query; what is not seen adds +0 to sums that are not negative */
#pragma unroll
    for (int r = 0; r < MINE; r += 2) {
        int row = MINE * warp + r + lane / 16, place = place_of(span, row);
        float l = 0.0f;
        for (int k = 0; k < MU_ATTN_SEGMENT; k += 16) l = l + sh->p[row][k + lane % 16];
        l = mu_half_warp_sum(l);
        if (lane % 16 != 0) continue;
        struct mu_attn_merge merge = {sh->sum_m[row], 1.0f, 0.0f}; /* nothing seen: as it was */
        if (place >= 0 && (place < MU_ATTN_SEGMENT || sees(span, place, MU_ATTN_SEGMENT - 1))) {
            merge = mu_attn_merge_of(merge.m, lane / 16 ? most[r + 1] : most[r]);
            sh->sum_l[row] = mu_attn_add(sh->sum_l[row], l, merge.keep, merge.take);
            sh->sum_m[row] = merge.m;
        }
        sh->keep[row] = merge.keep;
        sh->take[row] = merge.take;
        if (last) sh->end[row] = mu_attn_end_of(sh->sum_m[row], sh->sum_l[row], a.sink ? a.sink + span.head : NULL);
    }
    __syncwarp();
}

/* A thread's unit of values: dimension d0 + tid mod (32·WIDE) of half a page. Whole warps come here or do not. */
template <typename KV, int WIDE>
static __device__ void values_load(const struct mu_device_attn &a, const struct span &s, int page, int d0, int tid,
                                   struct ahead<KV> *next)
{
    constexpr int N = 32 * WIDE;
    if (tid >= 2 * N) return;
    const unsigned char *values = mu_kv_page(&a.kv, s.kv_head, s.b.slot, s.base / MU_KV_PAGE + page);
    next->unit = KV::value(values + a.kv.page_bytes / 2, a.kv.d_head, tid / N, d0 + tid % N);
}
template <typename KV, int WIDE>
static __device__ void values_put(struct shared<WIDE> *sh, int stage, int tid, const struct ahead<KV> &next)
{
    constexpr int N = 32 * WIDE;
    if (tid >= 2 * N) return;
#pragma unroll
    for (int four = 0; four < MU_KV_UNIT / 4; four++) {
        float v[4];
        KV::value_widen(next.unit, four, v);
#pragma unroll
        for (int i = 0; i < 4; i++) sh->v[stage][MU_KV_UNIT * (tid / N) + 4 * four + i][tid % N] = v[i];
    }
}

/* Four values of my dimensions: positions `at` … of a stage. */
template <int WIDE>
static __device__ void values_get(const struct shared<WIDE> *sh, int stage, int at, int lane, float v[4][WIDE])
{
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const float *from = &sh->v[stage][at + k][WIDE * lane];
        if (WIDE == 4) {
            float4 x = *(const float4 *)from;
            v[k][0] = x.x, v[k][1 % WIDE] = x.y, v[k][2 % WIDE] = x.z, v[k][3 % WIDE] = x.w;
        } else if (WIDE == 2) {
            float2 x = *(const float2 *)from;
            v[k][0] = x.x, v[k][1 % WIDE] = x.y;
        } else {
            v[k][0] = *from;
        }
    }
}

/* The page's 32 positions further, all of which all of my queries see. */
template <int WIDE>
static __device__ void values_add(const struct shared<WIDE> *sh, int stage, int page, int lane, int warp,
                                  float o[MINE][WIDE])
{
#pragma unroll 2
    for (int at = 0; at < MU_KV_PAGE; at += 4) {
        float4 p[MINE];
        float v[4][WIDE];
#pragma unroll
        for (int r = 0; r < MINE; r++) p[r] = *(const float4 *)&sh->p[MINE * warp + r][page * MU_KV_PAGE + at];
        values_get<WIDE>(sh, stage, at, lane, v);
#pragma unroll
        for (int r = 0; r < MINE; r++)
#pragma unroll
            for (int i = 0; i < WIDE; i++) {
                o[r][i] = fmaf(p[r].x, v[0][i], o[r][i]);
                o[r][i] = fmaf(p[r].y, v[1][i], o[r][i]);
                o[r][i] = fmaf(p[r].z, v[2][i], o[r][i]);
                o[r][i] = fmaf(p[r].w, v[3][i], o[r][i]);
            }
    }
}

/* The same where some do not see some. */
template <int WIDE>
static __device__ void values_add_seen(const struct span &s, const struct shared<WIDE> *sh, int stage, int page,
                                       int lane, int warp, float o[MINE][WIDE])
{
#pragma unroll 1
    for (int at = 0; at < MU_KV_PAGE; at += 4) {
        float v[4][WIDE];
        values_get<WIDE>(sh, stage, at, lane, v);
#pragma unroll
        for (int r = 0; r < MINE; r++)
#pragma unroll
            for (int k = 0; k < 4; k++) {
                int pos = page * MU_KV_PAGE + at + k;
                float p = sh->p[MINE * warp + r][pos];
                if (!sees(s, place_of(s, MINE * warp + r), pos)) continue;
#pragma unroll
                for (int i = 0; i < WIDE; i++) o[r][i] = fmaf(p, v[k][i], o[r][i]);
            }
    }
}

/* My queries' O of dimensions d0 + WIDE·lane … into their sums. */
template <int WIDE>
static __device__ void sums_add(const struct mu_device_attn &a, const struct span &s, const struct shared<WIDE> *sh,
                                bool first, bool last, int d0, int lane, int warp, float o[MINE][WIDE])
{
#pragma unroll
    for (int r = 0; r < MINE; r++) {
        int row = MINE * warp + r, n = a.kv.d_head;
        if (row >= s.b.n_tok) break;
        float *out = a.out + ((size_t)(s.b.tok + row) * (size_t)a.n_head + (size_t)s.head) * (size_t)n;
#pragma unroll
        for (int i = 0; i < WIDE; i++) {
            int d = d0 + WIDE * lane + i;
            if (d >= n) break;
            float x = mu_attn_add(first ? 0.0f : out[d], o[r][i], sh->keep[row], sh->take[row]);
            out[d] = last ? mu_attn_last(sh->end[row], x) : x;
        }
    }
}

template <typename KV, int WIDE>
static __global__ void __launch_bounds__(THREADS, 2) attend_block(struct mu_device_attn a)
{
    MU_SHARED(struct shared<WIDE>, sh);
    int tid = (int)threadIdx.x, lane = tid % 32, warp = tid / 32, n = a.kv.d_head;
    int n_unit = (n + MU_KV_UNIT - 1) / MU_KV_UNIT;
    struct span s;
    s.b = a.block[gridDim.y - 1 - blockIdx.y]; /* from the end: those of a sequence's end take longest */
    s.head = (int)blockIdx.x;
    s.kv_head = (a.head0 + s.head) / a.group - a.kv_head0;
    s.reach = a.window > 0 ? (unsigned)a.window : 0x7fffffffu;
    int last_pos = s.b.pos0 + s.b.n_tok - 1, first_pos = mu_attn_first(s.b.pos0, a.window);
    int seg_first = first_pos / MU_ATTN_SEGMENT, seg_last = last_pos / MU_ATTN_SEGMENT;
    bool mine = MINE * warp < s.b.n_tok; /* any of my queries exists */
    if (tid < QUERIES) {
        sh->sum_m[tid] = -INFINITY;
        sh->sum_l[tid] = 0.0f;
    }
    for (int seg = seg_first; seg <= seg_last && s.b.n_tok > 0; seg++) {
        struct ahead<KV> next;
        s.base = seg * MU_ATTN_SEGMENT;
        s.begin = first_pos > s.base ? first_pos - s.base : 0;
        s.end = last_pos + 1 - s.base < MU_ATTN_SEGMENT ? last_pos + 1 - s.base : MU_ATTN_SEGMENT;

        float score[MINE][8];
#pragma unroll
        for (int r = 0; r < MINE; r++)
#pragma unroll
            for (int c = 0; c < 8; c++) score[r][c] = 0.0f;
        const unsigned char *keys = NULL;
        int page = tid / MU_KV_PAGE;
        if (page * MU_KV_PAGE < s.end && (page + 1) * MU_KV_PAGE > s.begin)
            keys = mu_kv_page(&a.kv, s.kv_head, s.b.slot, s.base / MU_KV_PAGE + page);
        keys_load<KV>(a, s, keys, 0, tid, &next);
        keys_put<KV, WIDE>(sh, 0, a.scale, tid, next);
        __syncthreads();
        for (int u = 0; u < n_unit; u++) {
            if (u + 1 < n_unit) keys_load<KV>(a, s, keys, u + 1, tid, &next);
            if (mine && s.end > HALF)
                scores_add<2, WIDE>(sh, u % 2, lane, warp, score);
            else if (mine)
                scores_add<1, WIDE>(sh, u % 2, lane, warp, score);
            if (u + 1 < n_unit) keys_put<KV, WIDE>(sh, (u + 1) % 2, a.scale, tid, next);
            __syncthreads();
        }

        int page0 = s.begin / MU_KV_PAGE, page1 = (s.end + MU_KV_PAGE - 1) / MU_KV_PAGE;
        values_load<KV, WIDE>(a, s, page0, 0, tid, &next);
        if (mine) probabilities<WIDE>(a, s, sh, seg == seg_last, lane, warp, score);
        int eldest = place_of(s, MINE * warp), youngest = place_of(s, MINE * warp + MINE - 1);
        for (int d0 = 0; d0 < n; d0 += 32 * WIDE) {
            float o[MINE][WIDE];
#pragma unroll
            for (int r = 0; r < MINE; r++)
#pragma unroll
                for (int i = 0; i < WIDE; i++) o[r][i] = 0.0f;
            if (d0 > 0) values_load<KV, WIDE>(a, s, page0, d0, tid, &next);
            values_put<KV, WIDE>(sh, 0, tid, next);
            __syncthreads();
            for (page = page0; page < page1; page++) {
                int stage = (page - page0) % 2, from = page * MU_KV_PAGE, to = from + MU_KV_PAGE - 1;
                if (page + 1 < page1) values_load<KV, WIDE>(a, s, page + 1, d0, tid, &next);
                if (mine && sees(s, eldest, to) && sees(s, youngest, from))
                    values_add<WIDE>(sh, stage, page, lane, warp, o);
                else if (mine && from <= youngest && eldest - to < (int)s.reach)
                    values_add_seen<WIDE>(s, sh, stage, page, lane, warp, o);
                if (page + 1 < page1) values_put<KV, WIDE>(sh, 1 - stage, tid, next);
                __syncthreads();
            }
            if (mine) sums_add<WIDE>(a, s, sh, seg == seg_first, seg == seg_last, d0, lane, warp, o);
        }
    }
}

template <typename KV, int WIDE> static void launch(struct mu_device *d, const struct mu_device_attn *a)
{
    mu_allow_shared(d, "attention of a prompt", attend_block<KV, WIDE>, sizeof(struct shared<WIDE>));
    mu_launch(d, "attention of a prompt", attend_block<KV, WIDE>, dim3((unsigned)a->n_head, (unsigned)a->n_block),
              dim3(THREADS), sizeof(struct shared<WIDE>), *a);
}

template <template <bool> class KV> static void launch_for(struct mu_device *d, const struct mu_device_attn *a)
{
    if (a->kv.d_head % MU_KV_UNIT != 0)
        launch<KV<true>, 4>(d, a);
    else if (a->kv.d_head <= 32)
        launch<KV<false>, 1>(d, a);
    else if (a->kv.d_head <= 64)
        launch<KV<false>, 2>(d, a);
    else
        launch<KV<false>, 4>(d, a);
}

void mu_cuda_attn_blocks(struct mu_device *d, const struct mu_device_attn *a)
{
    if (a->kv.type == MU_KV_Q8_0)
        launch_for<mu_kv_q8>(d, a);
    else
        launch_for<mu_kv_f16>(d, a);
}
