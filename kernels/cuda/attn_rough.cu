/* Attention of prompts that may be rough (device.h): on the tensor cores, f16 times f16 into f32, after T. Dao,
 * FlashAttention-2 (arXiv:2307.08691). attn_block.cu is the exact one, and has what is not for here.
 *
 * A block of threads has up to 64 queries of each of HEADS heads of one KV head, and goes through tiles of 64 positions
 * in ascending order, which a ring brings (attn_rough.h). A warp has 16·M of the queries and keeps everything about them
 * in registers, as fragments of m16n8k16 (ptx.h):
 *
 *   S [16·M][64]     = q·kᵀ, q from shared memory (f16, times scale and log2 e, so that e^x is one 2^x), k by ldmatrix
 *   p                = 2^(S - base), in f16. S's fragments of two times 8 positions are p's of 16, lane by lane
 *   O [16·M][WIDTH]  = O·2^(old base - base) + p·v, v by ldmatrix
 *
 * M is 2 where it can be: with 1, a product reads 256 bytes of keys or values for 4,096 operations, and shared memory (128
 * bytes a clock) is the bound. It is 1 for heads of more than 128 dimensions, whose O would not fit; for KV heads with one
 * query head; and where there are too few blocks for two on a multiprocessor, since the exponentials of a warp hide behind
 * the products of another. Two heads a block: they share what the L2 cache has to give for a page.
 *
 * base is the largest S so far less 15: p is then up to 2^15, and small ones are not subnormal in f16 until 2^-29 of the
 * largest. Only when it grows somewhere in the warp are O and the sums of p scaled; where it did not, that is by 2^0.
 *
 * A query's result is the same wherever in a block it is. Tiles lie at multiples of 64, a row's sums are its own, and a
 * tile, or position, that it does not see leaves them as they are to the bit: its S becomes -inf, its p zero, and zeros
 * are added. That wants values that are finite, which neither those that nobody wrote need be, nor those that only other
 * queries see. So on tiles that not all queries see whole, values that nobody sees become zeros; and where others are not
 * finite, NaN goes into the sums of those who see them, and zeros into the product. A result that is not finite is a
 * NaN always, since it would depend on the way whether it is an infinity. */
#include "kernels/cuda/attn_rough.h"

enum {
    QUERIES = MU_DEVICE_QUERY_BLOCK,
    TILE = MU_ROUGH_TILE,
    GROUPS = TILE / 8, /* of 8 positions: products side by side */
    SHIFT = 15,
};
static constexpr float LOG2_E = 1.4426950408889634f, MOST_HALF = 65504.0f;

/* M: a warp has 16·M queries. BLOCKS: on a multiprocessor, as registers and shared memory have room. */
template <int WIDTH, int HEADS, int M> struct shape {
    static constexpr int WARPS_EACH = QUERIES / (16 * M), THREADS = 32 * WARPS_EACH * HEADS;
    static constexpr int BLOCKS = M == 2 ? (WIDTH <= 64 ? 3 : 2) : HEADS == 2 ? 1 : WIDTH <= 128 ? 3 : 2;
};

template <typename KV, int WIDTH, int HEADS> struct shared {
    uint4 q[HEADS][WIDTH / 8][QUERIES]; /* as keys lie on a page */
    KV ring;
};

/* The block of queries. */
struct span {
    struct mu_device_block b;
    int kv_head, head, n_head; /* the first of my heads, and how many */
    unsigned reach;            /* the window, or beyond every position */
    int first, last;           /* positions that any query sees */
    int tile, n_item;          /* the first tile; keys and values of all of them */
};

/* The position of a row's query. Rows beyond the block's queries, whose results nobody stores, are as its last. */
static __device__ inline int place_of(const struct span &s, int row)
{
    return s.b.pos0 + (row < s.b.n_tok ? row : s.b.n_tok - 1);
}
/* A query at `place` sees a position. */
static __device__ inline bool sees(const struct span &s, int place, int position)
{
    return (unsigned)(place - position) < s.reach; /* later positions wrap */
}

/* ---- the ring ---- */

struct feed {
    int item; /* the next to be fetched */
    const unsigned char *page;
    uint32_t ahead; /* the number of the next tile's, which is read early, since all else waits for it */
};

/* Half of the threads have the first page of every tile, half the second. */
static __device__ inline bool page_seen(const struct span &s, int i)
{
    return i >= s.first / MU_KV_PAGE && i <= s.last / MU_KV_PAGE;
}
template <int THREADS>
static __device__ inline void feed_look(const struct mu_device_attn &a, const struct span &s, struct feed *f, int tid)
{
    int i = MU_ROUGH_PAGES * (s.tile + f->item / 2) + tid / (THREADS / 2);
    if (page_seen(s, i)) f->ahead = a.kv.table[(size_t)s.b.slot * a.kv.max_page + (size_t)i];
}

template <int THREADS, typename KV>
static __device__ inline void feed_fetch(const struct mu_device_attn &a, const struct span &s, struct feed *f, KV *ring,
                                         int tid)
{
    int part = tid / (THREADS / 2), item = f->item++;
    if (item < s.n_item) {
        size_t half = a.kv.page_bytes / 2;
        if (item % 2 == 0) {
            const unsigned char *data = (const unsigned char *)a.kv.data;
            size_t at = (size_t)s.kv_head * a.kv.n_page + f->ahead;
            bool seen = page_seen(s, MU_ROUGH_PAGES * (s.tile + item / 2) + part);
            f->page = seen ? data + at * a.kv.page_bytes : NULL;
        } else {
            feed_look<THREADS>(a, s, f, tid);
        }
        if (f->page)
            ring->template fetch<THREADS>(item, part, f->page + (item % 2 ? half : 0), a.kv.d_head,
                                          tid % (THREADS / 2));
    }
    mu_cp_async_commit();
}

/* The item's turn: where it lies. */
template <int THREADS, typename KV>
static __device__ inline uint4 *feed_next(const struct mu_device_attn &a, const struct span &s, struct feed *f,
                                          KV *ring, int item, int tid)
{
    mu_cp_async_wait<KV::PENDING>();
    __syncthreads();
    feed_fetch<THREADS>(a, s, f, ring, tid);
    if (KV::WIDENS && item + 1 < s.n_item) ring->template widen<THREADS>(item + 1, a.kv.d_head, tid);
    return &ring->slot[item % KV::SLOTS][0][0];
}

/* ---- queries ---- */

/* A query's value as the products have it: beyond f16's range the last that is in it, but what is not finite a NaN. */
static __device__ inline float query_scaled(float q, float scale)
{
    return fminf(fmaxf(q * scale, -MOST_HALF), MOST_HALF) + (q - q);
}

/* All of the block's, zeros where there are none. A warp takes 8 rows of 8 dimensions at a time. */
template <int WIDTH, int HEADS, int THREADS>
static __device__ inline void queries_put(const struct mu_device_attn &a, const struct span &s,
                                          uint4 q[HEADS][WIDTH / 8][QUERIES], int tid)
{
    int n = a.kv.d_head, lane = tid % 32;
    float scale = a.scale * LOG2_E;
#pragma unroll 4
    for (int i = tid / 32; i < HEADS * (WIDTH / 8) * (QUERIES / 8); i += THREADS / 32) {
        int row = i % (QUERIES / 8) * 8 + lane / 4, group = i / (QUERIES / 8) % (WIDTH / 8);
        int head = i / (QUERIES / 8) / (WIDTH / 8), d = 8 * group + 2 * (lane % 4);
        float x[2] = {0.0f, 0.0f};
        if (row < s.b.n_tok && head < s.n_head && d < n) {
            const float *from =
                a.q + ((size_t)(s.b.tok + row) * (size_t)a.n_head + (size_t)(s.head + head)) * (size_t)n;
            x[0] = query_scaled(from[d], scale);
            x[1] = query_scaled(from[d + 1], scale);
        }
        ((uint32_t *)&q[head][group][row])[lane % 4] = mu_f32_to_half2(x[0], x[1]);
    }
}

/* ---- scores ---- */

/* q: from my first query on. s[m][j][c]: query 16m + g (c < 2) or 16m + g + 8, position 8j + 2t + c mod 2, where g = lane
 * / 4, t = lane mod 4. */
template <int WIDTH, int M>
static __device__ inline void scores_add(const uint4 *q, const uint4 *k, int lane, float s[M][GROUPS][4])
{
    const uint4 *of_q = q + lane / 16 * QUERIES + lane % 16;
    const uint4 *of_k = k + lane / 8 % 2 * MU_KV_PAGE + lane / 16 * 8 + lane % 8;
#pragma unroll
    for (int d = 0; d < WIDTH / 8; d += 2) {
        uint32_t x[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) mu_ldmatrix_x4(x[m], of_q + d * QUERIES + 16 * m);
#pragma unroll
        for (int j = 0; j < GROUPS; j += 2) {
            uint32_t y[4];
            mu_ldmatrix_x4(y, of_k + 8 * j / MU_KV_PAGE * 4 * WIDTH + d * MU_KV_PAGE + 8 * j % MU_KV_PAGE);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mu_mma_f16_k16(s[m][j], x[m], y, s[m][j]);
                mu_mma_f16_k16(s[m][j + 1], x[m], y + 2, s[m][j + 1]);
            }
        }
    }
}

/* cap·tanh(s / cap) of scores times log2 e. tanh x is 1 - 2 / (e^2x + 1), and near 0 the first terms of its series, since
 * nothing of a large cap times a rounding error should be left there. */
template <int M> static __device__ inline void scores_cap(float cap, float s[M][GROUPS][4])
{
    float whole = cap * LOG2_E, inverse = 1.0f / whole;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int j = 0; j < GROUPS; j++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                float x = s[m][j][c] * inverse, square = x * x;
                float series = x * fmaf(square, fmaf(square, 2.0f / 15.0f, -1.0f / 3.0f), 1.0f);
                float tanh = 1.0f - __fdividef(2.0f, mu_exp2_rough(x * (2.0f * LOG2_E)) + 1.0f);
                s[m][j][c] = whole * (fabsf(x) < 0.25f ? series : tanh);
            }
}

/* What a query does not see becomes -inf. A -inf of its own (an infinite key) becomes a NaN where the query sees only a part of
 * the tile: that part may be all that it sees of a segment, and C5 then has a NaN. */
template <int M>
static __device__ inline void scores_hide(const struct span &span, int base, int row0, int lane, float s[M][GROUPS][4])
{
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int place = place_of(span, row0 + 16 * m + 8 * h + lane / 4);
            bool whole = sees(span, place, base) && sees(span, place, base + TILE - 1);
#pragma unroll
            for (int j = 0; j < GROUPS; j++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float *x = &s[m][j][2 * h + i];
                    if (!sees(span, place, base + 8 * j + 2 * (lane % 4) + i))
                        *x = -INFINITY;
                    else if (!whole && *x == -INFINITY)
                        *x = NAN;
                }
        }
}

/* ---- probabilities ---- */

/* Of rows 16m + 8h + g. A lane's sum is of its own positions. */
template <int WIDTH, int M> struct sums {
    float base[M][2], sum[M][2], o[M][WIDTH / 8][4];
};

/* Scores into p, as fragments of 16 positions each, and what they do to the sums. */
template <int WIDTH, int M>
static __device__ inline void probabilities(float s[M][GROUPS][4], struct sums<WIDTH, M> *sums,
                                            uint32_t p[M][GROUPS / 2][4])
{
    float keep[M][2], base[M][2];
    bool grows = false;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float most = -INFINITY, old = sums->base[m][h];
#pragma unroll
            for (int j = 0; j < GROUPS; j++) most = fmaxf(most, fmaxf(s[m][j][2 * h], s[m][j][2 * h + 1]));
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
            float next = fmaxf(old, most - (float)SHIFT);
            base[m][h] = next == -INFINITY ? 0.0f : next; /* nothing seen so far: p is 0 then, and not -inf + inf */
            keep[m][h] = mu_exp2_rough(old - base[m][h]);
            grows |= next != old;
            sums->base[m][h] = next;
        }
    if (__any_sync(0xffffffffu, grows)) {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                sums->sum[m][h] *= keep[m][h];
#pragma unroll
                for (int j = 0; j < WIDTH / 8; j++) {
                    sums->o[m][j][2 * h] *= keep[m][h];
                    sums->o[m][j][2 * h + 1] *= keep[m][h];
                }
            }
    }
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int j = 0; j < GROUPS; j++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float x = mu_exp2_rough(s[m][j][2 * h] - base[m][h]);
                float y = mu_exp2_rough(s[m][j][2 * h + 1] - base[m][h]);
                sums->sum[m][h] += x + y;
                p[m][j / 2][2 * (j % 2) + h] = mu_f32_to_half2(x, y);
            }
}

/* ---- values ---- */

/* n rows (d_head of them) a group of positions; those from there to WIDTH are not the group's, and what becomes of them
 * nobody stores. */
template <int WIDTH, int M>
static __device__ inline void values_add(const uint4 *v, int n, const uint32_t p[M][GROUPS / 2][4], int lane,
                                         float o[M][WIDTH / 8][4])
{
    const uint4 *mine = v + lane / 8 % 2 * n + lane / 16 * 8 + lane % 8;
#pragma unroll
    for (int k = 0; k < GROUPS / 2; k++) {
        const uint4 *at = mine + k / 2 * 4 * WIDTH + k % 2 * 2 * n;
#pragma unroll
        for (int j = 0; j < WIDTH / 8; j += 2) {
            uint32_t y[4];
            mu_ldmatrix_x4(y, at + 8 * j);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mu_mma_f16_k16(o[m][j], p[m][k], y, o[m][j]);
                mu_mma_f16_k16(o[m][j + 1], p[m][k], y + 2, o[m][j + 1]);
            }
        }
    }
}

/* All ones for each half of a word that is not finite. */
static __device__ inline uint32_t broken_halves(uint32_t w)
{
    return ((((w & 0x7c007c00u) + 0x04000400u) & 0x80008000u) >> 15) * 0xffffu;
}

/* The block's threads: zeros for positions of the tile outside first … last, and with `clean` for what is not finite.
 * Whether anything I left is not. */
template <int WIDTH, int THREADS>
static __device__ inline bool values_hide(uint4 *v, int n, int first, int last, bool clean, int tid)
{
    uint32_t broken = 0;
#pragma unroll 1
    for (int i = tid; i < GROUPS * WIDTH; i += THREADS) {
        int group = i / WIDTH, d = i % WIDTH;
        if (d >= n) continue;
        uint4 *at = v + group / 4 * 4 * WIDTH + group % 4 * n + d, x = *at;
        uint32_t w[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
        for (int k = 0; k < 4; k++) {
            int pos = 8 * group + 2 * k;
            uint32_t seen =
                (pos >= first && pos <= last ? 0xffffu : 0) | (pos >= first - 1 && pos < last ? ~0xffffu : 0);
            w[k] &= seen;
            if (clean) w[k] &= ~broken_halves(w[k]);
            broken |= broken_halves(w[k]);
        }
        *at = make_uint4(w[0], w[1], w[2], w[3]);
    }
    return broken != 0;
}

/* NaN for the sums of my queries who see a value that is not finite. */
template <int WIDTH, int M>
static __device__ inline void values_mark(const struct span &span, const uint4 *v, int n, int base, int row0, int lane,
                                          float o[M][WIDTH / 8][4])
{
#pragma unroll 1
    for (int pos = 0; pos < TILE; pos++) {
        const uint4 *at = v + pos / MU_KV_PAGE * 4 * WIDTH + pos % MU_KV_PAGE / 8 * n + 2 * (lane % 4);
#pragma unroll
        for (int j = 0; j < WIDTH / 8; j++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                bool broken = 8 * j < n && (((const uint16_t *)(at + 8 * j + i))[pos % 8] & 0x7c00) == 0x7c00;
                if (!broken) continue;
#pragma unroll
                for (int m = 0; m < M; m++)
#pragma unroll
                    for (int h = 0; h < 2; h++)
                        if (sees(span, place_of(span, row0 + 16 * m + 8 * h + lane / 4), base + pos))
                            o[m][j][2 * h + i] = NAN;
            }
    }
}

/* ---- the end ---- */

template <int WIDTH, int M>
static __device__ inline void results_store(const struct mu_device_attn &a, const struct span &s, int head, int row0,
                                            int lane, const struct sums<WIDTH, M> &sums)
{
    int n = a.kv.d_head;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int row = row0 + 16 * m + 8 * h + lane / 4;
            float sum = sums.sum[m][h], base = sums.base[m][h];
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            if (a.sink) sum += mu_exp2_rough(a.sink[head] * LOG2_E - base);
            float inverse = base == -INFINITY ? NAN : 1.0f / sum; /* no finite score at all */
            if (row >= s.b.n_tok) continue;
            float *out = a.out + ((size_t)(s.b.tok + row) * (size_t)a.n_head + (size_t)head) * (size_t)n;
#pragma unroll
            for (int j = 0; j < WIDTH / 8; j++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float x = (sums.o[m][j][2 * h + i] + 0.0f) * inverse;
                    if (8 * j < n) out[8 * j + 2 * (lane % 4) + i] = fabsf(x) < INFINITY ? x : NAN;
                }
        }
}

template <template <int> class KV, int WIDTH, int HEADS, int M>
static __global__ void __launch_bounds__((shape<WIDTH, HEADS, M>::THREADS), (shape<WIDTH, HEADS, M>::BLOCKS))
    attend_rough(struct mu_device_attn a)
{
    constexpr int THREADS = shape<WIDTH, HEADS, M>::THREADS, WARPS_EACH = shape<WIDTH, HEADS, M>::WARPS_EACH;
    typedef struct shared<KV<WIDTH>, WIDTH, HEADS> block;
    MU_SHARED(block, sh);
    int tid = (int)threadIdx.x, lane = tid % 32, warp = tid / 32, n = a.kv.d_head;
    int n_pass = (int)gridDim.x / a.kv.n_head, pass = (int)blockIdx.x % n_pass;
    struct span s;
    s.b = a.block[gridDim.y - 1 - blockIdx.y]; /* from the end: those of a sequence's end take longest */
    s.kv_head = (int)blockIdx.x / n_pass;
    s.head = mu_attn_heads_begin(a, s.kv_head) + pass * HEADS;
    s.n_head = mu_attn_heads_begin(a, s.kv_head + 1) - s.head;
    if (s.n_head <= 0 || s.b.n_tok <= 0) return;
    s.reach = a.window > 0 ? (unsigned)a.window : 0x7fffffffu;
    s.first = mu_attn_first(s.b.pos0, a.window);
    s.last = s.b.pos0 + s.b.n_tok - 1;
    s.tile = s.first / TILE;
    s.n_item = 2 * (s.last / TILE + 1 - s.tile);

    for (int i = tid; i < KV<WIDTH>::SLOTS * MU_ROUGH_PAGES * 4 * (WIDTH - n); i += THREADS) { /* keys beyond d_head */
        int page = i / (4 * (WIDTH - n)), row = 4 * n + i % (4 * (WIDTH - n));
        sh->ring.slot[page / MU_ROUGH_PAGES][page % MU_ROUGH_PAGES][row] = make_uint4(0, 0, 0, 0);
    }
    struct feed f = {0, NULL, 0};
    feed_look<THREADS>(a, s, &f, tid);
    feed_fetch<THREADS>(a, s, &f, &sh->ring, tid);
    feed_fetch<THREADS>(a, s, &f, &sh->ring, tid);
    queries_put<WIDTH, HEADS, THREADS>(a, s, sh->q, tid);
    if (KV<WIDTH>::WIDENS) {
        mu_cp_async_wait<1>();
        __syncthreads();
        sh->ring.template widen<THREADS>(0, n, tid);
    }

    int head = warp / WARPS_EACH, row0 = warp % WARPS_EACH * (16 * M);
    int eldest = place_of(s, row0), youngest = place_of(s, row0 + 16 * M - 1);
    struct sums<WIDTH, M> sums;
#pragma unroll
    for (int m = 0; m < M; m++) {
        sums.base[m][0] = sums.base[m][1] = -INFINITY;
        sums.sum[m][0] = sums.sum[m][1] = 0.0f;
#pragma unroll
        for (int j = 0; j < WIDTH / 8; j++)
#pragma unroll
            for (int c = 0; c < 4; c++) sums.o[m][j][c] = 0.0f;
    }
#pragma unroll 1
    for (int item = 0; item < s.n_item; item += 2) {
        int base = TILE * (s.tile + item / 2), last = base + TILE - 1;
        bool edge = !sees(s, s.b.pos0, last) || !sees(s, s.last, base);
        bool mine = head < s.n_head && row0 < s.b.n_tok && base <= youngest && eldest - last < (int)s.reach;
        float score[M][GROUPS][4];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int j = 0; j < GROUPS; j++)
#pragma unroll
                for (int c = 0; c < 4; c++) score[m][j][c] = 0.0f;

        const uint4 *k = feed_next<THREADS>(a, s, &f, &sh->ring, item, tid);
        if (mine) {
            scores_add<WIDTH, M>(&sh->q[head][0][row0], k, lane, score);
            if (a.softcap != 0.0f) scores_cap<M>(a.softcap, score);
            if (edge) scores_hide<M>(s, base, row0, lane, score);
        }
        uint4 *v = feed_next<THREADS>(a, s, &f, &sh->ring, item + 1, tid);
        if (edge && __syncthreads_or(values_hide<WIDTH, THREADS>(v, n, s.first - base, s.last - base, false, tid))) {
            if (mine) values_mark<WIDTH, M>(s, v, n, base, row0, lane, sums.o);
            __syncthreads();
            values_hide<WIDTH, THREADS>(v, n, 0, TILE - 1, true, tid);
            __syncthreads();
        }
        if (mine) {
            uint32_t p[M][GROUPS / 2][4];
            probabilities<WIDTH, M>(score, &sums, p);
            values_add<WIDTH, M>(v, n, p, lane, sums.o);
        }
    }
    if (head < s.n_head) results_store<WIDTH, M>(a, s, s.head + head, row0, lane, sums);
}

/* ---- launching ---- */

/* Whether the device has the shared memory for it. */
template <template <int> class KV, int WIDTH, int HEADS, int M>
static bool launch(struct mu_device *d, const struct mu_device_attn *a, int n_pass)
{
    size_t bytes = sizeof(struct shared<KV<WIDTH>, WIDTH, HEADS>);
    if (bytes > d->shared_max) return false;
    mu_allow_shared(d, "rough attention", attend_rough<KV, WIDTH, HEADS, M>, bytes);
    mu_launch(d, "rough attention", attend_rough<KV, WIDTH, HEADS, M>,
              dim3((unsigned)(a->kv.n_head * n_pass), (unsigned)a->n_block), dim3(shape<WIDTH, HEADS, M>::THREADS),
              bytes, *a);
    return true;
}

template <template <int> class KV, int WIDTH> static bool try_width(struct mu_device *d, const struct mu_device_attn *a)
{
    int most = 1; /* heads of a KV head */
    for (int j = 0; j < a->kv.n_head; j++) {
        int n = mu_attn_heads_begin(*a, j + 1) - mu_attn_heads_begin(*a, j);
        most = n > most ? n : most;
    }
    int pairs = (most + 1) / 2;
    bool many = a->n_block * a->kv.n_head * pairs > d->n_sm; /* two blocks somewhere, so warps of 32 queries do */
    if (most > 1 && many && WIDTH <= 128 && launch < KV, WIDTH, 2, WIDTH <= 128 ? 2 : 1 > (d, a, pairs)) return true;
    if (most > 1 && launch<KV, WIDTH, 2, 1>(d, a, pairs)) return true;
    return launch<KV, WIDTH, 1, 1>(d, a, most);
}
template <template <int> class KV> static bool try_type(struct mu_device *d, const struct mu_device_attn *a)
{
    if (a->kv.d_head <= 64) return try_width<KV, 64>(d, a);
    if (a->kv.d_head <= 96) return try_width<KV, 96>(d, a);
    if (a->kv.d_head <= 128) return try_width<KV, 128>(d, a);
    return try_width<KV, 256>(d, a);
}

bool mu_cuda_attn_rough(struct mu_device *d, const struct mu_device_attn *a)
{
    if (a->kv.d_head % MU_KV_UNIT != 0 || a->kv.d_head > 256) return false;
    return a->kv.type == MU_KV_Q8_0 ? try_type<mu_rough_q8>(d, a) : try_type<mu_rough_f16>(d, a);
}
