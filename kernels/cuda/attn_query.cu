/* Attention query by query: decoding. What it costs is reading the cache once.
 *
 * A block of threads has a query and up to HEADS of the query heads that share a KV head, and goes through segments of 256
 * positions. Scores: a warp has 64 positions, a lane two of them, and each key that it widens serves all heads; these are
 * 2·HEADS chains of fused multiply-adds, as many in flight. Values: a lane has a dimension, and each value that it widens
 * serves all heads. In between are the probabilities, in shared memory. Of the cache, units are loaded AHEAD before the first of
 * them is used, and several blocks share a multiprocessor, so that enough of it is under way.
 *
 * Where there are few queries, each segment is a block of its own, which leaves (m, l, O) in `part`, and a second kernel
 * merges: its exponentials are computed for 128 segments at a time, so that the chain over segments is one fused
 * multiply-add each. Where there are many, a block goes through all segments of its query.
 *
 * Few queries with short contexts are a matter of waiting: there are fewer blocks than multiprocessors, so heads that
 * would share a block get blocks of their own, and pages are on their way to the L2 cache as soon as they are known.
 *
 * Results in the forms that the next matrix wants are written with them where blocks of 32 (C1) are lanes of a warp, that
 * is, where they do not go over from one head to the next.
 *
 * Positions that a query does not see are never multiplied: their scores are dropped, and the sum over values leaves
 * them out. A page of which it sees nothing is not even looked up. */
#include "kernels/cuda/attn.h"
#include "kernels/cuda/form.h"

enum {
    WARPS = 4,
    THREADS = 32 * WARPS,
    ROW = MU_ATTN_SEGMENT + 16, /* probabilities of a head, so that two heads begin in different banks */
    MAX_HEADS = 16,
    RAGGED_HEADS = 4,
    MERGE_THREADS = 128,
    MERGE_AHEAD = 16,
    BUSY = 4, /* so many blocks a multiprocessor keep it busy */
};

struct args {
    struct mu_device_attn a;
    int query0;                      /* the first of this launch */
    int n_pass;                      /* times HEADS heads for each KV head */
    int n_seg;                       /* segments of a query, at most */
    bool few;                        /* fewer blocks than multiprocessors */
    float *part_o, *part_m, *part_l; /* [query][n_head][n_seg][d_head]; [query][n_head][n_seg]. NULL: no parts */
};

/* A query of the launch: its token, and its segments. */
struct query {
    int tok, pos, first; /* sees [first, pos] */
    int begin, end;      /* segments */
};
static __device__ struct query query_of(const struct mu_device_attn &a, int tok, int pos)
{
    struct query q;
    q.tok = tok;
    q.pos = pos;
    q.first = mu_attn_first(q.pos, a.window);
    q.begin = q.first / MU_ATTN_SEGMENT;
    q.end = q.pos / MU_ATTN_SEGMENT + 1;
    return q;
}

static __device__ inline int token_of(const struct mu_device_attn &a, int i)
{
    return a.query ? a.query[i] : i;
}

/* A result, which is value d of head h. */
static __device__ inline void result(const struct mu_device_attn &a, size_t at, float x)
{
    const float v[1] = {x};
    a.out[at] = x;
    mu_store_forms<1>(a.form, at, true, v); /* forms are wanted: whole warps */
}

/* Shared memory of a block of threads. */
template <int HEADS> struct alignas(16) block {
    float p[HEADS * ROW];
    float warp_max[HEADS][WARPS];
    float sum_m[HEADS], sum_l[HEADS], keep[HEADS], take[HEADS];
    struct mu_attn_end end[HEADS];                  /* after the last segment */
    const unsigned char *page[2][MU_SEGMENT_PAGES]; /* of a segment and the next one; NULL: not seen */
    /* then q [HEADS][d_head in whole units], multiplied by the scale; where there are no parts also O [HEADS][d_head] */
};

/* Scores of two positions a lane: number `lane` of these two pages. */
template <typename KV, int HEADS>
static __device__ void scores(const unsigned char *page0, const unsigned char *page1, int d_head, const float *q,
                              int lane, float s[2][HEADS])
{
    constexpr int AHEAD = HEADS > 8 ? 2 : 4;
    int n_unit = (d_head + MU_KV_UNIT - 1) / MU_KV_UNIT, row = n_unit * MU_KV_UNIT;
#pragma unroll
    for (int h = 0; h < HEADS; h++) s[0][h] = s[1][h] = 0.0f;
    if (!page0 && !page1) return;
    for (int u0 = 0; u0 < n_unit; u0 += AHEAD) {
        typename KV::unit raw[AHEAD][2];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            raw[i][0] = page0 && u0 + i < n_unit ? KV::key(page0, d_head, u0 + i, lane) : KV::none();
            raw[i][1] = page1 && u0 + i < n_unit ? KV::key(page1, d_head, u0 + i, lane) : KV::none();
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (u0 + i >= n_unit) break;
#pragma unroll
            for (int four = 0; four < MU_KV_UNIT / 4; four++) {
                float k[2][4];
                KV::key_widen(raw[i][0], four, k[0]);
                KV::key_widen(raw[i][1], four, k[1]);
#pragma unroll
                for (int h = 0; h < HEADS; h++) {
                    float4 x = *(const float4 *)(q + h * row + MU_KV_UNIT * (u0 + i) + 4 * four);
#pragma unroll
                    for (int p = 0; p < 2; p++) {
                        s[p][h] = fmaf(x.x, k[p][0], s[p][h]);
                        s[p][h] = fmaf(x.y, k[p][1], s[p][h]);
                        s[p][h] = fmaf(x.z, k[p][2], s[p][h]);
                        s[p][h] = fmaf(x.w, k[p][3], s[p][h]);
                    }
                }
            }
        }
    }
}

/* Sums of dimension d over positions [begin, end) of the segment, weighted by p [HEADS][ROW]. The whole warp, d being its
 * lane and a multiple of 32. */
template <typename KV, int HEADS>
static __device__ void values(const unsigned char *const *page, size_t half, int d_head, int d, const float *p,
                              int begin, int end, float o[HEADS])
{
    constexpr int AHEAD = 4;
#pragma unroll
    for (int h = 0; h < HEADS; h++) o[h] = 0.0f;
    for (int u0 = begin / MU_KV_UNIT; u0 * MU_KV_UNIT < end; u0 += AHEAD) {
        typename KV::unit raw[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            int u = u0 + i;
            raw[i] = u * MU_KV_UNIT < end ? KV::value(page[u / 2] + half, d_head, u % 2, d) : KV::none();
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            int at = (u0 + i) * MU_KV_UNIT;
            if (at >= end) break;
            bool whole = at >= begin && at + MU_KV_UNIT <= end;
#pragma unroll
            for (int four = 0; four < MU_KV_UNIT / 4; four++, at += 4) {
                float v[4];
                KV::value_widen(raw[i], four, v);
                if (whole) {
#pragma unroll
                    for (int h = 0; h < HEADS; h++) {
                        float4 w = *(const float4 *)(p + h * ROW + at);
                        o[h] = fmaf(w.x, v[0], o[h]);
                        o[h] = fmaf(w.y, v[1], o[h]);
                        o[h] = fmaf(w.z, v[2], o[h]);
                        o[h] = fmaf(w.w, v[3], o[h]);
                    }
                } else {
#pragma unroll
                    for (int k = 0; k < 4; k++) {
                        if (at + k < begin || at + k >= end) continue;
#pragma unroll
                        for (int h = 0; h < HEADS; h++) o[h] = fmaf(p[h * ROW + at + k], v[k], o[h]);
                    }
                }
            }
        }
    }
}

/* Where the results of a block go. */
struct place {
    int head, n_head;      /* my first query head, how many */
    bool apart;            /* to part, for a later merge */
    bool first, last;      /* of the query's segments; both where they are apart */
    size_t part, part_row; /* index of the segment of the first head, and from one head to the next */
    size_t out;            /* row of the result */
};

/* Values of HEADS heads from h0 on, and their way into the sums. */
template <typename KV, int HEADS, int ALL>
static __device__ void finish(const struct args &args, const struct place &at, struct block<ALL> *b, float *sum,
                              int parity, int d, int h0, int begin, int end)
{
    const struct mu_device_attn &a = args.a;
    float o[HEADS];
    int n = a.kv.d_head;
    values<KV, HEADS>(b->page[parity], a.kv.page_bytes / 2, n, d, b->p + h0 * ROW, begin, end, o);
    if (d >= n) return;
#pragma unroll
    for (int i = 0; i < HEADS; i++) {
        int h = h0 + i;
        if (h >= at.n_head) break;
        if (at.apart) {
            args.part_o[(at.part + (size_t)h * at.part_row) * (size_t)n + (size_t)d] = o[i];
            continue;
        }
        float x = mu_attn_add(at.first ? 0.0f : sum[h * n + d], o[i], b->keep[h], b->take[h]);
        if (!at.last) {
            sum[h * n + d] = x;
            continue;
        }
        result(a, at.out + (size_t)(at.head + h) * (size_t)n + (size_t)d, mu_attn_last(b->end[h], x));
    }
}

template <typename KV, int HEADS> static __global__ void __launch_bounds__(THREADS) attend(struct args args)
{
    MU_SHARED(struct block<HEADS>, b);
    const struct mu_device_attn &a = args.a;
    int tid = (int)threadIdx.x, lane = tid % 32, warp = tid / 32, n = a.kv.d_head;
    int unit = (int)blockIdx.x % (a.kv.n_head * args.n_pass), i = (int)blockIdx.x / (a.kv.n_head * args.n_pass);
    int j = unit / args.n_pass, head = mu_attn_heads_begin(a, j) + unit % args.n_pass * HEADS;
    int n_head = mu_attn_heads_begin(a, j + 1) - head;
    int row = (n + MU_KV_UNIT - 1) / MU_KV_UNIT * MU_KV_UNIT;
    float *q = reinterpret_cast<float *>(b + 1), *sum = q + HEADS * row;
    mu_grid_begin();
    int tok = token_of(a, args.query0 + i), pos = a.pos[tok], slot = a.slot[tok];
    const float *from = a.q + ((size_t)tok * (size_t)a.n_head + (size_t)head) * (size_t)n;
    for (int h = 0; h < HEADS; h++)
        for (int d = tid; d < row; d += THREADS)
            q[h * row + d] = h < n_head && d < n ? from[h * n + d] * a.scale : 0.0f;
    struct query query = query_of(a, tok, pos);
    bool apart = args.part_o != NULL;
    int seg = query.begin + (apart ? (int)blockIdx.y : 0), end = apart && seg < query.end ? seg + 1 : query.end;
    if (n_head <= 0) end = seg;
    if (n_head > HEADS) n_head = HEADS;

    struct place at;
    at.head = head;
    at.n_head = n_head;
    at.apart = apart;
    at.part_row = (size_t)args.n_seg;
    at.part = ((size_t)i * (size_t)a.n_head + (size_t)head) * (size_t)args.n_seg + blockIdx.y;
    at.out = (size_t)(args.query0 + i) * (size_t)a.n_head * (size_t)n;

    if (tid < HEADS) {
        b->sum_m[tid] = -INFINITY;
        b->sum_l[tid] = 0.0f;
    }
    for (int parity = 0; seg < end; seg++, parity ^= 1) { /* the same for the whole block */
        int base = seg * MU_ATTN_SEGMENT, from = query.first - base, to = query.pos + 1 - base;
        from = from > 0 ? from : 0;
        to = to < MU_ATTN_SEGMENT ? to : MU_ATTN_SEGMENT;
        if (tid < MU_SEGMENT_PAGES) {
            bool seen = tid * MU_KV_PAGE < to && (tid + 1) * MU_KV_PAGE > from;
            const unsigned char *page = seen ? mu_kv_page(&a.kv, j, slot, base / MU_KV_PAGE + tid) : NULL;
            b->page[parity][tid] = page;
            if (seen && args.few) mu_prefetch_l2(page, a.kv.page_bytes);
        }
        __syncthreads(); /* pages; and the last segment's probabilities have been used */

        float s[2][HEADS];
        scores<KV, HEADS>(b->page[parity][2 * warp], b->page[parity][2 * warp + 1], n, q, lane, s);
        int here = 2 * MU_KV_PAGE * warp + lane; /* and 32 further */
        bool seen0 = here >= from && here < to, seen1 = here + MU_KV_PAGE >= from && here + MU_KV_PAGE < to;
        if (a.softcap != 0.0f) { /* by way of memory: unrolled, these divisions would take all registers */
#pragma unroll
            for (int h = 0; h < HEADS; h++) {
                b->p[h * ROW + here] = s[0][h];
                b->p[h * ROW + here + MU_KV_PAGE] = s[1][h];
            }
#pragma unroll 1
            for (int i = 0; i < 2 * HEADS; i++) {
                float *p = &b->p[i / 2 * ROW + here + i % 2 * MU_KV_PAGE];
                *p = mu_attn_cap(*p, a.softcap);
            }
#pragma unroll
            for (int h = 0; h < HEADS; h++) {
                s[0][h] = b->p[h * ROW + here];
                s[1][h] = b->p[h * ROW + here + MU_KV_PAGE];
            }
        }
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            float m = mu_warp_max(fmaxf(seen0 ? s[0][h] : -INFINITY, seen1 ? s[1][h] : -INFINITY));
            if (lane == 0) b->warp_max[h][warp] = m;
        }
        __syncthreads();
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            const float *w = b->warp_max[h];
            float m = fmaxf(fmaxf(w[0], w[1]), fmaxf(w[2], w[3]));
            b->p[h * ROW + here] = seen0 ? vf_exp(s[0][h] - m) : 0.0f;
            b->p[h * ROW + here + MU_KV_PAGE] = seen1 ? vf_exp(s[1][h] - m) : 0.0f;
        }
        __syncthreads();
        /* l: 16 lanes a head; what is not seen adds +0 to sums that are not negative */
#pragma unroll
        for (int h0 = 0; h0 < HEADS; h0 += THREADS / 16) {
            int h = h0 + tid / 16;
            float l = 0.0f;
            for (int k = 0; h < HEADS && k < MU_ATTN_SEGMENT; k += 16) l = l + b->p[h * ROW + k + tid % 16];
            l = mu_half_warp_sum(l);
            if (h >= n_head || tid % 16 != 0) continue;
            const float *w = b->warp_max[h];
            float m = fmaxf(fmaxf(w[0], w[1]), fmaxf(w[2], w[3]));
            if (apart) {
                args.part_m[at.part + (size_t)h * at.part_row] = m;
                args.part_l[at.part + (size_t)h * at.part_row] = l;
            } else {
                struct mu_attn_merge merge = mu_attn_merge_of(b->sum_m[h], m);
                b->sum_l[h] = mu_attn_add(b->sum_l[h], l, merge.keep, merge.take);
                b->sum_m[h] = merge.m;
                b->keep[h] = merge.keep;
                b->take[h] = merge.take;
                const float *sink = a.sink ? a.sink + head + h : NULL;
                if (seg == query.end - 1) b->end[h] = mu_attn_end_of(b->sum_m[h], b->sum_l[h], sink);
            }
        }
        if (!apart) __syncthreads();

        at.first = seg == query.begin;
        at.last = seg == query.end - 1;
        if (HEADS > 1 && n <= 64) /* two warps cover the dimensions: the other two take half of the heads */
            finish<KV, (HEADS + 1) / 2, HEADS>(args, at, b, sum, parity, warp % 2 * 32 + lane, warp / 2 * (HEADS / 2),
                                               from, to);
        else
            for (int d = warp * 32; d < n; d += THREADS)
                finish<KV, HEADS, HEADS>(args, at, b, sum, parity, d + lane, 0, from, to);
    }
}

/* Segments of a query's head one after the other. */
static __global__ void __launch_bounds__(MERGE_THREADS) merge(struct args args)
{
    __shared__ float keep[MERGE_THREADS], take[MERGE_THREADS], l[MERGE_THREADS], warp_max[MERGE_THREADS / 32];
    const struct mu_device_attn &a = args.a;
    int tid = (int)threadIdx.x, lane = tid % 32, n = a.kv.d_head, h = (int)blockIdx.x, i = (int)blockIdx.y;
    mu_grid_begin();
    int tok = token_of(a, args.query0 + i);
    struct query query = query_of(a, tok, a.pos[tok]);
    int n_seg = query.end - query.begin;
    size_t part = ((size_t)i * (size_t)a.n_head + (size_t)h) * (size_t)args.n_seg;
    float sum[MU_MAX_D_HEAD / MERGE_THREADS] = {0}, sum_m = -INFINITY, sum_l = 0.0f;

    for (int seg0 = 0; seg0 < n_seg; seg0 += MERGE_THREADS) {
        int seg = seg0 + tid, here = n_seg - seg0 < MERGE_THREADS ? n_seg - seg0 : MERGE_THREADS;
        float m = seg < n_seg ? args.part_m[part + (size_t)seg] : -INFINITY, upto = m;
        for (int step = 1; step < 32; step *= 2) {
            float before = __shfl_up_sync(0xffffffffu, upto, (unsigned)step);
            if (lane >= step) upto = fmaxf(upto, before);
        }
        float before = __shfl_up_sync(0xffffffffu, upto, 1);
        before = lane > 0 ? fmaxf(before, sum_m) : sum_m; /* the maximum of the segments before this one … */
        if (lane == 31) warp_max[tid / 32] = upto;
        __syncthreads(); /* also: the last ones' factors have been used */
        for (int w = 0; w < tid / 32; w++) before = fmaxf(before, warp_max[w]);
        struct mu_attn_merge merge = mu_attn_merge_of(before, m); /* … is all that the chain hands on to its factors */
        keep[tid] = merge.keep;
        take[tid] = merge.take;
        l[tid] = seg < n_seg ? args.part_l[part + (size_t)seg] : 0.0f;
        for (int w = 0; w < MERGE_THREADS / 32; w++) sum_m = fmaxf(sum_m, warp_max[w]);
        __syncthreads();
        for (int s = 0; s < here; s++) sum_l = mu_attn_add(sum_l, l[s], keep[s], take[s]);
#pragma unroll
        for (int k = 0; k < MU_MAX_D_HEAD / MERGE_THREADS; k++) {
            int d = k * MERGE_THREADS + tid;
            if (d >= n) break;
            const float *o = args.part_o + (part + (size_t)seg0) * (size_t)n + (size_t)d;
            for (int s0 = 0; s0 < here; s0 += MERGE_AHEAD) {
                float x[MERGE_AHEAD];
#pragma unroll
                for (int s = 0; s < MERGE_AHEAD; s++) x[s] = s0 + s < here ? o[(size_t)(s0 + s) * (size_t)n] : 0.0f;
#pragma unroll
                for (int s = 0; s < MERGE_AHEAD; s++)
                    if (s0 + s < here) sum[k] = mu_attn_add(sum[k], x[s], keep[s0 + s], take[s0 + s]);
            }
        }
    }
    struct mu_attn_end e = mu_attn_end_of(sum_m, sum_l, a.sink ? a.sink + h : NULL);
    size_t out = ((size_t)(args.query0 + i) * (size_t)a.n_head + (size_t)h) * (size_t)n;
#pragma unroll
    for (int k = 0; k < MU_MAX_D_HEAD / MERGE_THREADS; k++)
        if (k * MERGE_THREADS + tid < n) result(a, out + (size_t)(k * MERGE_THREADS + tid), mu_attn_last(e, sum[k]));
}

static bool ragged(const struct mu_device_attn &a)
{
    return a.kv.d_head % MU_KV_UNIT != 0;
}

template <typename KV, int HEADS>
static void launch(struct mu_device *d, const struct args &args, int n_query, int n_seg)
{
    size_t row = (size_t)(args.a.kv.d_head + MU_KV_UNIT - 1) / MU_KV_UNIT * MU_KV_UNIT;
    size_t shared = sizeof(struct block<HEADS>) + HEADS * row * sizeof(float);
    if (!args.part_o) shared += HEADS * (size_t)args.a.kv.d_head * sizeof(float);
    mu_allow_shared(d, "attention", attend<KV, HEADS>, shared); /* little or much: to run beside the products */
    unsigned blocks = (unsigned)(n_query * args.a.kv.n_head * args.n_pass);
    mu_launch_early(d, "attention", attend<KV, HEADS>, dim3(blocks, (unsigned)n_seg), dim3(THREADS), shared, args);
}

template <template <bool> class KV>
static void launch_for(struct mu_device *d, const struct args &args, int heads, int n_query, int n_seg)
{
    if (ragged(args.a)) {
        launch<KV<true>, RAGGED_HEADS>(d, args, n_query, n_seg);
        return;
    }
    switch (heads) {
    case 1: launch<KV<false>, 1>(d, args, n_query, n_seg); break;
    case 2: launch<KV<false>, 2>(d, args, n_query, n_seg); break;
    case 4: launch<KV<false>, 4>(d, args, n_query, n_seg); break;
    case 8: launch<KV<false>, 8>(d, args, n_query, n_seg); break;
    default: launch<KV<false>, MAX_HEADS>(d, args, n_query, n_seg); break;
    }
}

/* Segments that a query can see of max_pos positions. */
static int segments_of(const struct mu_device_attn *a)
{
    int all = (a->max_pos + MU_ATTN_SEGMENT - 1) / MU_ATTN_SEGMENT;
    int seen = a->window > 0 ? (a->window + MU_ATTN_SEGMENT - 2) / MU_ATTN_SEGMENT + 1 : all;
    return seen < all ? seen : all;
}

void mu_cuda_attn_queries(struct mu_device *d, const struct mu_device_attn *a)
{
    struct args args = {};
    bool form_here = a->kv.d_head % MU_Q_BLOCK == 0;
    int most = 1, heads = 1; /* heads of a KV head, and of a block of threads */
    for (int j = 0; j < a->kv.n_head; j++) {
        int n = mu_attn_heads_begin(*a, j + 1) - mu_attn_heads_begin(*a, j);
        most = n > most ? n : most;
    }
    while (heads < most && heads < MAX_HEADS) heads *= 2;
    if (ragged(*a)) heads = RAGGED_HEADS;
    args.a = *a;
    args.n_pass = (most + heads - 1) / heads;
    args.n_seg = segments_of(a);

    size_t each = (size_t)a->n_head * (size_t)args.n_seg, room = 0; /* segments' results of a query; queries at once */
    if (args.n_seg > 1) room = a->part_bytes / (each * ((size_t)a->kv.d_head + 2) * sizeof(float));
    int blocks = a->n_query * a->kv.n_head * args.n_pass;
    bool cut = room > 0 && blocks < BUSY * d->n_sm;
    int step = cut && room < (size_t)a->n_query ? (int)room : a->n_query;
    blocks = step * a->kv.n_head * args.n_pass * (cut ? args.n_seg : 1);
    for (; !ragged(*a) && heads > 1 && 2 * blocks <= d->n_sm; heads /= 2) blocks *= 2;
    args.n_pass = (most + heads - 1) / heads;
    args.few = blocks <= d->n_sm;
    if (!form_here) args.a.form = (struct mu_act_to){};
    for (; args.query0 < a->n_query; args.query0 += step) {
        int n = a->n_query - args.query0 < step ? a->n_query - args.query0 : step;
        if (cut) {
            args.part_o = a->part;
            args.part_m = a->part + (size_t)n * each * (size_t)a->kv.d_head;
            args.part_l = args.part_m + (size_t)n * each;
        }
        if (a->kv.type == MU_KV_Q8_0)
            launch_for<mu_kv_q8>(d, args, heads, n, cut ? args.n_seg : 1);
        else
            launch_for<mu_kv_f16>(d, args, heads, n, cut ? args.n_seg : 1);
        if (cut) {
            mu_allow_shared(d, "attention's merge", merge, 0); /* to run beside the products */
            mu_launch_early(d, "attention's merge", merge, dim3((unsigned)a->n_head, (unsigned)n), dim3(MERGE_THREADS),
                            0, args);
        }
    }
    int n = a->n_head * a->kv.d_head;
    if (!form_here && (a->form.q || a->form.bf16)) mu_cuda_form(d, a->out, (size_t)n, a->n_query, n, &a->form);
}
