/* Attention (C5) written once for every instruction set (simd.h). kernels/ref/attn.c is the definition.
 *
 * Queries of one KV head (tokens × n_rep heads, "rows") go through a segment of 256 positions together, in blocks of up to
 * ROWS, so that a vector of K or V is loaded and widened from f16 once for all of a block:
 *
 *   scores   s[row][position] = Σ_d q[row][d]·K[d][position]: lanes are positions, one broadcast of q per row and d
 *   softmax  per row: m, p = exp(s - m) in place, l; then the factors keep and take that merge the segment
 *   values   o[row][d] = Σ_position p[row][position]·V[position][d]: lanes are dimensions; merged into `out` at once
 *
 * Both products keep a tile of rows × vectors of accumulators in registers, and each accumulator is the contract's own
 * ascending chain: no bit depends on how many rows share a tile.
 *
 * What a row must not see. A lane of scores is one position, so unwritten ones spoil only their own lane, which becomes
 * -inf before softmax and p = +0 after. Positions that every row of the block sees take the fast loop of values; at the
 * ragged edges (the causal diagonal, a window's lower end) a row's accumulator is kept by a mask where it does not see
 * the position: V is never multiplied by a masked +0, which would turn an infinity or NaN in it into this row's NaN.
 *
 * Up to BATCH_BLOCKS blocks take a segment together, so that few passes over a long cache are made. From WIDE_FROM on, what
 * they are next multiplied with is widened once for all of them, into `wide`: widening takes the ports that multiply.
 *
 * Memory. While scores are computed the segment's values are fetched towards L2, and while values are weighed the next
 * segment's keys: decoding from DRAM is twice as fast for it. Each line is asked for at least twice, since a processor
 * drops what its queue of misses has no room for. Scratch is on the stack, up to 380 KiB. */
#include <stddef.h>

#include "kernels/parts.h"
#include "kernels/simd.h"

#if defined(MU_MATH_AVX512)
enum { ROWS = 8 };
#else
enum { ROWS = 6 };
#endif

enum {
    GROUP = 16, /* positions interleaved in a K page */
    GROUPS = MU_ATTN_SEGMENT / GROUP,
    GROUP_VECS = GROUP / VF_LANES,
    Q_STRIDE = MU_MAX_D_HEAD + 16, /* no power of two: rows would share a cache set */
    P_STRIDE = MU_ATTN_SEGMENT + 16,
    BATCH_BLOCKS = 12, /* blocks that go through the segments together */
    BATCH_ROWS = BATCH_BLOCKS * ROWS,
    WIDE_FROM = 3,           /* blocks that are worth it */
    WIDE = MU_KV_TYPE_COUNT, /* the format of what is in `wide`: f32 */
#if defined(MU_MATH_NEON)
    WIDE_VECS = 4, /* vectors of a tile that takes it from there */
#else
    WIDE_VECS = 2,
#endif
    WIDE_GROUPS = WIDE_VECS / GROUP_VECS,
    WIDE_DIMS = WIDE_VECS * VF_LANES,
    WIDE_FLOATS = MU_MAX_D_HEAD * GROUP * WIDE_GROUPS, /* for keys; values take no more */
};

struct row {
    int lo, hi;          /* visible positions [lo, hi) */
    int seg_lo, seg_hi;  /* the same within the segment, relative to its begin; empty where lo >= hi */
    float m, l;          /* M and L of C5; unset before the first segment */
    float keep, take;    /* factors of what is there, and of this segment */
    bool started, merge; /* a segment is in `out`; this one joins it rather than starts it */
    const float *sink;   /* or NULL */
    float *out;
};

/* Up to ROWS rows, of one batch, in one segment. Positions are relative to the segment's begin. */
struct block {
    int n_row;
    int lo, hi;               /* union of the rows' visible positions; lo >= hi: they see nothing of it */
    int common_lo, common_hi; /* positions that all rows see; empty is [hi, hi) */
    struct row row[ROWS];
    float q[ROWS][Q_STRIDE];              /* scaled */
    _Alignas(64) float p[ROWS][P_STRIDE]; /* scores, then weights */
};

/* One segment. */
struct pass {
    const struct mu_attn *a;
    int lo, hi; /* union of the batch's visible positions */
    /* Keys and values of each group of 16 positions that any row of the batch sees, and the keys of the segment
     * after (of this one where there is none) to fetch early. */
    const char *k[GROUPS], *v[GROUPS], *ahead[GROUPS];
    /* Keys of a tile's groups [group][d][position], or values of a tile's dimensions [position][d], as f32. */
    _Alignas(64) float wide[WIDE_FLOATS];
};
_Static_assert((int)WIDE_FLOATS >= MU_ATTN_SEGMENT * (int)WIDE_DIMS, "values have room");

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* Vectors of a tile: n_row × that many accumulators are in registers, beside as many vectors of K or V. Of 32 registers 6 × 4,
 * or 8 × 2, where what is widened serves more rows. Of 16 6 × 2, or, against the FMA's latency, 3 and 4 rows × 3 and fewer
 * × 4; q8_0, whose scales want registers too, has nothing of tiles of 3. */
ALWAYS_INLINE int tile_vecs(int kv, int n_row)
{
#if defined(MU_MATH_AVX512)
    (void)kv;
    return n_row <= 6 ? 4 : 2;
#elif defined(MU_MATH_AVX2)
    if (kv == MU_KV_F16 && (n_row == 3 || n_row == 4)) return 3;
    return n_row <= 3 ? 4 : 2;
#else
    (void)kv;
    (void)n_row;
    return 4;
#endif
}

/* Bytes that n values take, with their share of the scales; those of keys and of values alike. */
ALWAYS_INLINE int kv_share(int kv, int n)
{
    return kv == MU_KV_F16 ? 2 * n : n + n * (int)sizeof(float) / MU_Q_BLOCK;
}

ALWAYS_INLINE size_t value_bytes(int kv)
{
    return kv == WIDE ? sizeof(float) : kv == MU_KV_F16 ? sizeof(uint16_t) : 1;
}

/* n_row rows × n_vec vectors of scores, from vector `skip` of group g. */
ALWAYS_INLINE void score_tile(const struct pass *s, struct block *b, int kv, int n_row, int n_vec, int g, int skip)
{
    const int d_head = s->a->d_head;
    const size_t value = value_bytes(kv);
    const int first = skip > 0,
              last = (skip + n_vec - 1) / GROUP_VECS; /* groups that begin here, whose values are fetched */
    vf acc[ROWS][4];
    const char *k[4], *ahead[4];
#pragma GCC unroll 4
    for (int v = 0; v < n_vec && kv != WIDE; v += GROUP_VECS)
        ahead[v] = s->v[g + (first + v / GROUP_VECS < last ? first + v / GROUP_VECS : last)];
#pragma GCC unroll 8
    for (int r = 0; r < n_row; r++)
#pragma GCC unroll 4
        for (int v = 0; v < n_vec; v++) acc[r][v] = vf_set(0.0f);
    for (int block = 0, d = 0; d < d_head; block++) {
        const int end = d_head - d < MU_Q_BLOCK || kv == WIDE ? d_head : d + MU_Q_BLOCK;
        vf scale[4];
#pragma GCC unroll 4
        for (int v = 0; v < n_vec; v++) {
            const int group = (skip + v) / GROUP_VECS, lane = (skip + v) % GROUP_VECS * VF_LANES;
            k[v] = kv == WIDE ? (const char *)(s->wide + (size_t)group * GROUP * (size_t)d_head) : s->k[g + group];
            if (kv == MU_KV_Q8_0) {
                k[v] += mu_kv_q8_key_block(block);
                scale[v] = vf_load((const float *)(const void *)k[v] + lane);
                k[v] += GROUP * sizeof(float) - (size_t)d * GROUP;
            }
            k[v] += (size_t)lane * value;
        }
        for (; d < end; d++) {
            vf x[4];
#pragma GCC unroll 4
            for (int v = 0; v < n_vec; v++) {
                const char *at = k[v] + (size_t)d * GROUP * value;
                x[v] = kv == WIDE        ? vf_load((const float *)(const void *)at)
                       : kv == MU_KV_F16 ? vf_load_f16((const uint16_t *)(const void *)at)
                                         : vf_mul(vf_load_i8((const int8_t *)at), scale[v]);
                if (v % GROUP_VECS == 0 && kv != WIDE) simd_fetch(ahead[v] + kv_share(kv, GROUP * d));
            }
#pragma GCC unroll 8
            for (int r = 0; r < n_row; r++) {
                const float *q = &b->q[r][d];
#pragma GCC unroll 4
                for (int v = 0; v < n_vec; v++) acc[r][v] = vf_fma_at(q, x[v], acc[r][v]);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < n_row; r++)
#pragma GCC unroll 4
        for (int v = 0; v < n_vec; v++) vf_store(&b->p[r][g * GROUP + (skip + v) * VF_LANES], acc[r][v]);
}

ALWAYS_INLINE void scores(const struct pass *s, struct block *b, int kv, int n_row)
{
    const int n_vec = tile_vecs(kv, n_row), groups = n_vec / GROUP_VECS;
    int g = b->lo / GROUP, end = (b->hi + GROUP - 1) / GROUP;
    if (n_vec % GROUP_VECS != 0 && GROUP_VECS == 2) /* three groups are two tiles */
        for (; g + n_vec <= end; g += n_vec) {
            score_tile(s, b, kv, n_row, n_vec, g, 0);
            score_tile(s, b, kv, n_row, n_vec, g + n_vec / 2, 1);
        }
    else
        for (; g + groups <= end; g += groups) score_tile(s, b, kv, n_row, n_vec, g, 0);
    for (; g < end; g++) score_tile(s, b, kv, n_row, GROUP_VECS, g, 0);
}

/* The keys of a tile's groups from g on; of the last one again where there are no more. */
ALWAYS_INLINE void widen_keys(struct pass *s, int kv, int g)
{
    const int d_head = s->a->d_head, last = (s->hi - 1) / GROUP;
    float *to = s->wide;
    for (int i = 0; i < WIDE_GROUPS; i++) {
        const int from = g + i < last ? g + i : last;
        const char *k = s->k[from], *ahead = s->v[from];
        for (int block = 0, d = 0; d < d_head; block++) {
            const int end = d_head - d < MU_Q_BLOCK ? d_head : d + MU_Q_BLOCK;
            const float *scale = (const float *)(const void *)(s->k[from] + mu_kv_q8_key_block(block));
            vf by[GROUP_VECS];
            if (kv == MU_KV_Q8_0) {
                k = (const char *)(scale + GROUP);
                for (int v = 0; v < GROUP_VECS; v++) by[v] = vf_load(scale + v * VF_LANES);
            }
#pragma GCC unroll 4
            for (; d < end; d++, k += GROUP * value_bytes(kv), to += GROUP) {
#pragma GCC unroll 4
                for (int v = 0; v < GROUP_VECS; v++)
                    vf_store(to + v * VF_LANES, kv == MU_KV_F16
                                                    ? vf_load_f16((const uint16_t *)(const void *)k + v * VF_LANES)
                                                    : vf_mul(vf_load_i8((const int8_t *)k + v * VF_LANES), by[v]));
            }
            for (int at = 0; at < kv_share(kv, GROUP * MU_Q_BLOCK); at += 64) simd_fetch(ahead + at);
            ahead += kv_share(kv, GROUP * MU_Q_BLOCK);
        }
    }
}

/* Softmax of one row's segment in place: p, and m and l of the segment. */
static inline void softmax(const struct pass *s, struct block *b, int r, float *m_out, float *l_out)
{
    const struct row *row = &b->row[r];
    float *p = b->p[r];
    int begin = row->seg_lo / GROUP * GROUP, end = (row->seg_hi + GROUP - 1) / GROUP * GROUP;
    float cap = s->a->softcap;
    if (cap != 0.0f) {
        vf c = vf_set(cap);
        for (int i = begin; i < end; i += VF_LANES) vf_store(p + i, vf_mul(c, vf_tanh(vf_div(vf_load(p + i), c))));
    }
    for (int i = begin; i < row->seg_lo; i++) p[i] = -INFINITY;
    for (int i = row->seg_hi; i < end; i++) p[i] = -INFINITY;

    vf top[4]; /* four chains, against the latency */
    for (int v = 0; v < 4; v++) top[v] = vf_set(-INFINITY);
    int at = begin;
    for (; at + 4 * VF_LANES <= end; at += 4 * VF_LANES)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) top[v] = vf_max(vf_load(p + at + v * VF_LANES), top[v]);
    for (; at < end; at += VF_LANES) top[0] = vf_max(vf_load(p + at), top[0]);
    float m = vf_reduce_max(vf_max(vf_max(top[0], top[1]), vf_max(top[2], top[3])));

    vf lane[SUM_VECS], shift = vf_set(m);
    for (int v = 0; v < SUM_VECS; v++) lane[v] = vf_set(0.0f);
    for (int i = begin; i < end; i += GROUP)
        for (int v = 0; v < SUM_VECS; v++) {
            vf e = vf_exp(vf_sub(vf_load(p + i + v * VF_LANES), shift));
            vf_store(p + i + v * VF_LANES, e);
            lane[v] = vf_add(lane[v], e);
        }
    *m_out = m;
    *l_out = tree_sum(lane);
}

/* Softmax of all rows, and how the segment joins what they have: the two exponentials of C5's merge for all rows at
 * once. */
static void weigh(const struct pass *s, struct block *b)
{
    float l[SUM_LANES], keep[SUM_LANES] = {0}, take[SUM_LANES] = {0};
    for (int r = 0; r < b->n_row; r++) {
        struct row *row = &b->row[r];
        if (row->seg_lo >= row->seg_hi) continue;
        float m;
        softmax(s, b, r, &m, &l[r]);
        if (!row->started) {
            row->m = m;
            continue;
        }
        float n = row->m > m ? row->m : m;
        keep[r] = row->m - n;
        take[r] = m - n;
        row->m = n;
    }
    for (int i = 0; i < SUM_LANES; i += VF_LANES) {
        vf_store(keep + i, vf_exp(vf_load(keep + i)));
        vf_store(take + i, vf_exp(vf_load(take + i)));
    }
    for (int r = 0; r < b->n_row; r++) {
        struct row *row = &b->row[r];
        if (row->seg_lo >= row->seg_hi) continue;
        row->merge = row->started;
        row->started = true;
        if (row->merge) {
            float taken = l[r] * take[r];
            row->l = fmaf(row->l, keep[r], taken);
            row->keep = keep[r];
            row->take = take[r];
        } else {
            row->l = l[r];
        }
    }
}

/* n values of one block at x, whose scale is at `scale`. */
ALWAYS_INLINE vf value_load(int kv, const char *x, const float *scale, int n)
{
    if (kv == WIDE) return vf_load((const float *)(const void *)x);
    if (kv == MU_KV_F16) {
        const uint16_t *h = (const uint16_t *)(const void *)x;
        return n == VF_LANES ? vf_load_f16(h) : vf_load_f16_n(h, n);
    }
    const int8_t *q = (const int8_t *)x;
    return vf_mul_at(scale, n == VF_LANES ? vf_load_i8(q) : vf_load_i8_n(q, n));
}

/* Lanes of a tile's vector v that exist where n_dim dimensions of the tile do. */
ALWAYS_INLINE int lanes_of(int v, int n_dim)
{
    const int n = n_dim - v * VF_LANES;
    return n < 0 ? 0 : n < VF_LANES ? n : (int)VF_LANES;
}

/* o of n_row rows × n_vec vectors of dimensions from d0, n_dim of which exist, merged into out. */
ALWAYS_INLINE void value_tile(const struct pass *s, struct block *b, int kv, int n_row, int n_vec, int d0, int n_dim)
{
    vf acc[ROWS][4];
#pragma GCC unroll 8
    for (int r = 0; r < n_row; r++)
#pragma GCC unroll 4
        for (int v = 0; v < n_vec; v++) acc[r][v] = vf_set(0.0f);
    const size_t value = value_bytes(kv), d_head = (size_t)s->a->d_head, vec_bytes = VF_LANES * value;
    const int fetched = kv == WIDE ? 0 : kv_share(kv, n_vec * VF_LANES); /* of each position */
    const size_t row_bytes = (kv == WIDE ? (size_t)WIDE_DIMS : d_head) * value,
                 blocks = (size_t)mu_kv_blocks(s->a->d_head);

    for (int j = b->lo; j < b->hi;) {
        const size_t row = (size_t)(j % GROUP), skip = row * row_bytes + (size_t)d0 * value;
        const char *at = kv == WIDE ? (const char *)(s->wide + j * WIDE_DIMS) : s->v[j / GROUP] + skip;
        const float *scale = (const float *)(const void *)(s->v[j / GROUP] + GROUP * d_head) + row * blocks +
                             d0 / MU_Q_BLOCK; /* Q8_0 only */
        if (j >= b->common_lo && j < b->common_hi) {
            int end = (j / GROUP + 1) * GROUP;
            if (end > b->common_hi || kv == WIDE) end = b->common_hi;
            const char *ahead = s->ahead[j / GROUP] + kv_share(kv, (int)row * s->a->d_head + d0);
            for (; j < end; j++, at += row_bytes, scale += blocks, ahead += kv_share(kv, s->a->d_head)) {
                vf x[4];
#pragma GCC unroll 4
                for (int v = 0; v < n_vec; v++)
                    x[v] = value_load(kv, at + (size_t)v * vec_bytes, scale + v * VF_LANES / MU_Q_BLOCK,
                                      lanes_of(v, n_dim));
#pragma GCC unroll 4
                for (int i = 0; i < fetched; i += 32) simd_fetch(ahead + i);
#pragma GCC unroll 8
                for (int r = 0; r < n_row; r++) {
                    const float *p = &b->p[r][j];
#pragma GCC unroll 4
                    for (int v = 0; v < n_vec; v++) acc[r][v] = vf_fma_at(p, x[v], acc[r][v]);
                }
            }
            continue;
        }
        vf x[4];
#pragma GCC unroll 4
        for (int v = 0; v < n_vec; v++)
            x[v] = value_load(kv, at + (size_t)v * vec_bytes, scale + v * VF_LANES / MU_Q_BLOCK, lanes_of(v, n_dim));
#pragma GCC unroll 8
        for (int r = 0; r < n_row; r++) {
            vf p = vf_set(b->p[r][j]);
            vm sees = vm_all_if((j >= b->row[r].seg_lo) & (j < b->row[r].seg_hi));
#pragma GCC unroll 4
            for (int v = 0; v < n_vec; v++) acc[r][v] = vf_select(sees, vf_fma(p, x[v], acc[r][v]), acc[r][v]);
        }
        j++;
    }

#pragma GCC unroll 8
    for (int r = 0; r < n_row; r++) {
        const struct row *row = &b->row[r];
        if (row->seg_lo >= row->seg_hi) continue;
        vf keep = vf_set(row->keep), take = vf_set(row->take);
#pragma GCC unroll 4
        for (int v = 0; v < n_vec; v++) {
            const int n = lanes_of(v, n_dim);
            float *out = row->out + d0 + v * VF_LANES;
            vf o = acc[r][v];
            if (row->merge) o = vf_fma(vf_load_n(out, n), keep, vf_mul(o, take));
            vf_store_n(out, n, o);
        }
    }
}

ALWAYS_INLINE void values(const struct pass *s, struct block *b, int kv, int n_row)
{
    const int n_vec = tile_vecs(kv, n_row);
    int d = 0, d_head = s->a->d_head;
    for (; d + n_vec * VF_LANES <= d_head; d += n_vec * VF_LANES)
        value_tile(s, b, kv, n_row, n_vec, d, n_vec * VF_LANES);
    if (n_vec > 2 && d + 2 * VF_LANES <= d_head) {
        value_tile(s, b, kv, n_row, 2, d, 2 * VF_LANES);
        d += 2 * VF_LANES;
    }
    for (; d < d_head; d += VF_LANES)
        value_tile(s, b, kv, n_row, 1, d, d_head - d < VF_LANES ? d_head - d : (int)VF_LANES);
}

/* The values of a tile's dimensions from d0 on, n_dim of which exist; zeros for others. */
ALWAYS_INLINE void widen_values(struct pass *s, int kv, int d0, int n_dim)
{
    const size_t value = value_bytes(kv), d_head = (size_t)s->a->d_head, blocks = (size_t)mu_kv_blocks(s->a->d_head);
    for (int j = s->lo, end; j < s->hi; j = end) {
        const size_t row = (size_t)(j % GROUP);
        const char *at = s->v[j / GROUP] + (row * d_head + (size_t)d0) * value;
        const float *scale = (const float *)(const void *)(s->v[j / GROUP] + GROUP * d_head) + row * blocks;
        const char *ahead = s->ahead[j / GROUP] + kv_share(kv, (int)row * s->a->d_head + d0);
        float *to = s->wide + (size_t)j * WIDE_DIMS;
        end = (j / GROUP + 1) * GROUP < s->hi ? (j / GROUP + 1) * GROUP : s->hi;
        for (; j < end; j++, at += d_head * value, scale += blocks, to += WIDE_DIMS) {
#pragma GCC unroll 4
            for (int v = 0; v < WIDE_VECS; v++) {
                const int n = lanes_of(v, n_dim);
                const float *by = scale + (d0 + v * VF_LANES) / MU_Q_BLOCK;
                vf_store(to + v * VF_LANES,
                         n > 0 ? value_load(kv, at + (size_t)v * VF_LANES * value, by, n) : vf_set(0.0f));
            }
            simd_fetch(ahead);
            ahead += kv_share(kv, s->a->d_head);
        }
    }
}

/* The products for each number of rows, compiled apart so that the accumulators are registers: of a whole block for each
 * format, and of a tile from what is widened. */
#if defined(MU_MATH_AVX512)
#define ROW_COUNTS(X, kv) X(kv, 1) X(kv, 2) X(kv, 3) X(kv, 4) X(kv, 5) X(kv, 6) X(kv, 7) X(kv, 8)
#else
#define ROW_COUNTS(X, kv) X(kv, 1) X(kv, 2) X(kv, 3) X(kv, 4) X(kv, 5) X(kv, 6)
#endif
#define PRODUCTS(kv, n)                                                  \
    static void scores_##kv##_##n(const struct pass *s, struct block *b) \
    {                                                                    \
        scores(s, b, kv, n);                                             \
    }                                                                    \
    static void values_##kv##_##n(const struct pass *s, struct block *b) \
    {                                                                    \
        values(s, b, kv, n);                                             \
    }
#define TILES(unused, n)                                                      \
    static void score_tile_##n(const struct pass *s, struct block *b, int g)  \
    {                                                                         \
        score_tile(s, b, WIDE, n, WIDE_VECS, g, 0);                           \
    }                                                                         \
    static void value_tile_##n(const struct pass *s, struct block *b, int d0) \
    {                                                                         \
        value_tile(s, b, WIDE, n, WIDE_VECS, d0, s->a->d_head - d0);          \
    }
ROW_COUNTS(PRODUCTS, MU_KV_F16)
ROW_COUNTS(PRODUCTS, MU_KV_Q8_0)
ROW_COUNTS(TILES, )
#define ENTRY(kv, n)          {scores_##kv##_##n, values_##kv##_##n},
#define TILE_ENTRY(unused, n) {score_tile_##n, value_tile_##n},
static const struct {
    void (*scores)(const struct pass *s, struct block *b);
    void (*values)(const struct pass *s, struct block *b);
} products[MU_KV_TYPE_COUNT][ROWS + 1] = {
    [MU_KV_F16] = {{NULL, NULL}, ROW_COUNTS(ENTRY, MU_KV_F16)},
    [MU_KV_Q8_0] = {{NULL, NULL}, ROW_COUNTS(ENTRY, MU_KV_Q8_0)},
};
static const struct {
    void (*scores)(const struct pass *s, struct block *b, int g);
    void (*values)(const struct pass *s, struct block *b, int d0);
} tiles[ROWS + 1] = {{NULL, NULL}, ROW_COUNTS(TILE_ENTRY, )};

static void keys_widen(struct pass *s, int g)
{
    if (s->a->kv == MU_KV_F16)
        widen_keys(s, MU_KV_F16, g);
    else
        widen_keys(s, MU_KV_Q8_0, g);
}

static void values_widen(struct pass *s, int d0)
{
    const bool whole = s->a->d_head - d0 >= WIDE_DIMS; /* compiled apart, so that lanes are not counted */
    if (s->a->kv == MU_KV_F16 && whole)
        widen_values(s, MU_KV_F16, d0, WIDE_DIMS);
    else if (s->a->kv == MU_KV_F16)
        widen_values(s, MU_KV_F16, d0, s->a->d_head - d0);
    else if (whole)
        widen_values(s, MU_KV_Q8_0, d0, WIDE_DIMS);
    else
        widen_values(s, MU_KV_Q8_0, d0, s->a->d_head - d0);
}

/* All blocks' scores of the segment. */
static void segment_scores(struct pass *s, struct block *block, int n_block)
{
    if (n_block < WIDE_FROM) {
        for (int i = 0; i < n_block; i++)
            if (block[i].lo < block[i].hi) products[s->a->kv][block[i].n_row].scores(s, &block[i]);
        return;
    }
    for (int g = s->lo / GROUP; g * GROUP < s->hi; g += WIDE_GROUPS) {
        keys_widen(s, g);
        for (struct block *b = block; b < block + n_block; b++)
            if (g * GROUP < b->hi && (g + WIDE_GROUPS) * GROUP > b->lo) tiles[b->n_row].scores(s, b, g);
    }
}

/* All blocks' values of the segment, into out. */
static void segment_values(struct pass *s, struct block *block, int n_block)
{
    if (n_block < WIDE_FROM) {
        for (int i = 0; i < n_block; i++)
            if (block[i].lo < block[i].hi) products[s->a->kv][block[i].n_row].values(s, &block[i]);
        return;
    }
    for (int d0 = 0; d0 < s->a->d_head; d0 += WIDE_DIMS) {
        values_widen(s, d0);
        for (struct block *b = block; b < block + n_block; b++)
            if (b->lo < b->hi) tiles[b->n_row].values(s, b, d0);
    }
}

/* Page pointers of the segment at `begin`, for the positions [lo, hi) of the sequence that some row of the batch
 * sees. */
static void enter_segment(struct pass *s, int begin, int lo, int hi)
{
    const struct mu_attn *a = s->a;
    const size_t group_bytes = mu_kv_bytes(a->kv, a->d_head, GROUP);
    int page = begin / a->page_tokens, pages = MU_ATTN_SEGMENT / a->page_tokens, in_page = 0;
    s->lo = lo > begin ? lo - begin : 0;
    s->hi = hi < begin + MU_ATTN_SEGMENT ? hi - begin : MU_ATTN_SEGMENT;
    for (int g = 0; g < GROUPS && begin + g * GROUP < hi; g++) {
        if (begin + (g + 1) * GROUP > lo) {
            size_t at = (size_t)in_page / GROUP * group_bytes;
            s->k[g] = (const char *)a->k_page[page] + at;
            s->v[g] = (const char *)a->v_page[page] + at;
            s->ahead[g] =
                begin + MU_ATTN_SEGMENT + g * GROUP < hi ? (const char *)a->k_page[page + pages] + at : s->k[g];
        }
        in_page += GROUP;
        if (in_page == a->page_tokens) {
            in_page = 0;
            page++;
        }
    }
}

/* What the rows of a block see of the segment at `begin`. */
static void enter_block(struct block *b, int begin)
{
    int lo = 0, hi = MU_ATTN_SEGMENT;
    b->lo = MU_ATTN_SEGMENT;
    b->hi = 0;
    for (int r = 0; r < b->n_row; r++) {
        struct row *row = &b->row[r];
        row->seg_lo = row->lo > begin ? row->lo - begin : 0;
        row->seg_hi = row->hi < begin + MU_ATTN_SEGMENT ? row->hi - begin : MU_ATTN_SEGMENT;
        if (row->seg_lo > lo) lo = row->seg_lo;
        if (row->seg_hi < hi) hi = row->seg_hi;
        if (row->seg_lo >= row->seg_hi) continue;
        if (row->seg_lo < b->lo) b->lo = row->seg_lo;
        if (row->seg_hi > b->hi) b->hi = row->seg_hi;
    }
    b->common_lo = lo < hi ? lo : b->hi;
    b->common_hi = lo < hi ? hi : b->hi;
}

/* Scales the queries of rows [first, first + n_row) of the call into b. */
static void block_open(struct block *b, const struct mu_attn *a, int first, int n_row)
{
    b->n_row = n_row;
    for (int r = 0; r < n_row; r++) {
        int t = (first + r) / a->n_rep, pos = a->pos0 + t;
        size_t head = (size_t)((first + r) % a->n_rep) * (size_t)a->d_head;
        b->row[r] = (struct row){.lo = a->window > 0 && pos >= a->window ? pos - a->window + 1 : 0,
                                 .hi = pos + 1,
                                 .sink = a->sink ? a->sink + (first + r) % a->n_rep : NULL,
                                 .out = a->out + (size_t)t * a->out_stride + head};
        const float *q = a->q + (size_t)t * a->q_stride + head;
        for (int d = 0; d < a->d_head; d++) b->q[r][d] = q[d] * a->scale;
    }
}

/* The sink's merge, which multiplies O by what it returns. */
static float merge_sink(struct row *row)
{
    float n = row->m > *row->sink ? row->m : *row->sink, keep = mu_expf(row->m - n);
    row->l = fmaf(row->l, keep, mu_expf(*row->sink - n));
    return keep;
}

/* (O + 0.0f)·(1/L) */
static void row_close(struct row *row, int d_head)
{
    vf keep = vf_set(row->sink ? merge_sink(row) : 1.0f);
    vf inv = vf_set(1.0f / row->l), zero = vf_set(0.0f);
    for (int d = 0; d < d_head; d += VF_LANES) {
        int n = d_head - d < VF_LANES ? d_head - d : (int)VF_LANES;
        vf o = vf_load_n(row->out + d, n);
        if (row->sink) o = vf_mul(o, keep);
        vf_store_n(row->out + d, n, vf_mul(vf_add(o, zero), inv));
    }
}

/* The segment of a block's rows, from row `first` of the call on, alone: into their parts. */
static void part_open(const struct mu_attn *a, struct block *b, int first, int seg)
{
    for (int r = 0; r < b->n_row; r++) {
        b->row[r].started = b->row[r].merge = false;
        b->row[r].out = mu_attn_part(a, seg, first + r);
    }
}

static void part_close(const struct mu_attn *a, struct block *b)
{
    for (int r = 0; r < b->n_row; r++) {
        if (b->row[r].seg_lo >= b->row[r].seg_hi) continue;
        b->row[r].out[a->d_head] = b->row[r].m;
        b->row[r].out[a->d_head + 1] = b->row[r].l;
    }
}

void ISA(attn)(const struct mu_attn *a)
{
    struct block block[BATCH_BLOCKS];
    struct pass s;
    s.a = a;
    int total = a->n_tok * a->n_rep;
    for (int first = 0, n; first < total; first += n) {
        n = total - first < BATCH_ROWS ? total - first : (int)BATCH_ROWS;
        int n_block = (n + ROWS - 1) / ROWS;
        for (int i = 0; i < n_block; i++) {
            int from = n * i / n_block, to = n * (i + 1) / n_block; /* alike in size */
            block_open(&block[i], a, first + from, to - from);
        }
        /* rows ascend in position */
        const struct block *last = &block[n_block - 1];
        int lo = block[0].row[0].lo, hi = last->row[last->n_row - 1].hi;
        if (a->part) {
            lo = lo > a->seg_begin * MU_ATTN_SEGMENT ? lo : a->seg_begin * MU_ATTN_SEGMENT;
            hi = hi < a->seg_end * MU_ATTN_SEGMENT ? hi : a->seg_end * MU_ATTN_SEGMENT;
        }
        for (int begin = lo / MU_ATTN_SEGMENT * MU_ATTN_SEGMENT; begin < hi; begin += MU_ATTN_SEGMENT) {
            enter_segment(&s, begin, lo, hi);
            for (int i = 0; i < n_block; i++) {
                enter_block(&block[i], begin);
                if (a->part) part_open(a, &block[i], first + n * i / n_block, begin / MU_ATTN_SEGMENT);
            }
            segment_scores(&s, block, n_block);
            for (int i = 0; i < n_block; i++) weigh(&s, &block[i]);
            segment_values(&s, block, n_block);
            for (int i = 0; i < n_block && a->part; i++) part_close(a, &block[i]);
        }
        for (int i = 0; i < n_block && !a->part; i++)
            for (int r = 0; r < block[i].n_row; r++) row_close(&block[i].row[r], a->d_head);
    }
}

/* The next segment's (m, l, o) joins the row. */
static void row_merge(struct row *row, const float *part, int d_head)
{
    float m = part[d_head], l = part[d_head + 1];
    if (!row->started) {
        row->started = true;
        row->m = m;
        row->l = l;
        memcpy(row->out, part, (size_t)d_head * sizeof *part);
        return;
    }
    float n = row->m > m ? row->m : m, kept = mu_expf(row->m - n), taken = mu_expf(m - n), lt = l * taken;
    row->m = n;
    row->l = fmaf(row->l, kept, lt);
    vf keep = vf_set(kept), take = vf_set(taken);
    for (int d = 0; d < d_head; d += VF_LANES) {
        int w = d_head - d < VF_LANES ? d_head - d : (int)VF_LANES;
        vf o = vf_mul(vf_load_n(part + d, w), take);
        vf_store_n(row->out + d, w, vf_fma(vf_load_n(row->out + d, w), keep, o));
    }
}

void ISA(attn_merge)(const struct mu_attn *a)
{
    for (int i = 0; i < a->n_tok * a->n_rep; i++) {
        int t = i / a->n_rep, r = i % a->n_rep, pos = a->pos0 + t;
        int lo = a->window > 0 && pos >= a->window ? pos - a->window + 1 : 0;
        struct row row = {.sink = a->sink ? a->sink + r : NULL,
                          .out = a->out + (size_t)t * a->out_stride + (size_t)r * (size_t)a->d_head};
        for (int seg = lo / MU_ATTN_SEGMENT; seg <= pos / MU_ATTN_SEGMENT; seg++)
            row_merge(&row, mu_attn_part(a, seg, i), a->d_head);
        row_close(&row, a->d_head);
    }
}
