/* Attention (C5) written once for every instruction set (simd.h). kernels/ref/attn.c is the definition.
 *
 * Queries of one KV head (tokens × n_rep heads, "rows") go through a segment of 256 positions together, up to ROWS at a
 * time, so that a vector of K or V is loaded and widened from f16 once for all of them:
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
 * Memory. Up to BATCH_ROWS rows take each segment in turn, so that few passes over a long cache are made; while scores
 * are computed the segment's values are fetched towards L2, and while values are weighed the next segment's keys:
 * decoding from DRAM is twice as fast for it. Each line is asked for at least twice, since a processor drops what its
 * queue of misses has no room for. Scratch is on the stack, 60 KiB. */
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
    BATCH_ROWS = 24, /* rows that go through the segments together, in blocks of up to ROWS */
    BATCH_BLOCKS = BATCH_ROWS / ROWS,
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

/* Up to ROWS rows, of one batch. */
struct block {
    int n_row;
    struct row row[ROWS];
    float q[ROWS][Q_STRIDE]; /* scaled */
};

/* One block in one segment. Positions are relative to the segment's begin. */
struct pass {
    const struct mu_attn *a;
    struct block *block;
    int lo, hi;               /* union of the rows' visible positions */
    int common_lo, common_hi; /* positions that all rows see; empty is [hi, hi) */
    /* Keys and values of each group of 16 positions that any row of the batch sees, and the keys of the segment
     * after (of this one where there is none) to fetch early. */
    const char *k[GROUPS], *v[GROUPS], *ahead[GROUPS];
    _Alignas(64) float p[ROWS][P_STRIDE]; /* scores, then weights */
};

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* Vectors of a tile: n_row × that many accumulators are in registers, beside as many vectors of K or V. Of 32 registers 6 × 4,
 * or 8 × 2, where what is widened serves more rows. Of 16 6 × 2, or, against the FMA's latency, 3 and 4 rows × 3 and fewer
 * × 4; q8_0, whose scales want registers too, has nothing of tiles of 3. */
ALWAYS_INLINE int tile_vecs(enum mu_kv_type kv, int n_row)
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
ALWAYS_INLINE int kv_share(enum mu_kv_type kv, int n)
{
    return kv == MU_KV_F16 ? 2 * n : n + n * (int)sizeof(float) / MU_Q_BLOCK;
}

/* n_row rows × n_vec vectors of scores, from vector `skip` of group g. */
ALWAYS_INLINE void score_tile(struct pass *s, enum mu_kv_type kv, int n_row, int n_vec, int g, int skip)
{
    const int d_head = s->a->d_head;
    const size_t value = kv == MU_KV_F16 ? sizeof(uint16_t) : 1;
    const int first = skip > 0,
              last = (skip + n_vec - 1) / GROUP_VECS; /* groups that begin here, whose values are fetched */
    vf acc[ROWS][4];
    const char *k[4], *ahead[4];
#pragma GCC unroll 4
    for (int v = 0; v < n_vec; v += GROUP_VECS)
        ahead[v] = s->v[g + (first + v / GROUP_VECS < last ? first + v / GROUP_VECS : last)];
#pragma GCC unroll 8
    for (int r = 0; r < n_row; r++)
#pragma GCC unroll 4
        for (int v = 0; v < n_vec; v++) acc[r][v] = vf_set(0.0f);
    for (int block = 0, d = 0; d < d_head; block++) {
        const int end = d_head - d < MU_Q_BLOCK ? d_head : d + MU_Q_BLOCK;
        vf scale[4];
#pragma GCC unroll 4
        for (int v = 0; v < n_vec; v++) {
            const int lane = (skip + v) % GROUP_VECS * VF_LANES;
            k[v] = s->k[g + (skip + v) / GROUP_VECS];
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
                x[v] = kv == MU_KV_F16 ? vf_load_f16((const uint16_t *)(const void *)at)
                                       : vf_mul(vf_load_i8((const int8_t *)at), scale[v]);
                if (v % GROUP_VECS == 0) simd_fetch(ahead[v] + kv_share(kv, GROUP * d));
            }
#pragma GCC unroll 8
            for (int r = 0; r < n_row; r++) {
                const float *q = &s->block->q[r][d];
#pragma GCC unroll 4
                for (int v = 0; v < n_vec; v++) acc[r][v] = vf_fma_at(q, x[v], acc[r][v]);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < n_row; r++)
#pragma GCC unroll 4
        for (int v = 0; v < n_vec; v++) vf_store(&s->p[r][g * GROUP + (skip + v) * VF_LANES], acc[r][v]);
}

ALWAYS_INLINE void scores(struct pass *s, enum mu_kv_type kv, int n_row)
{
    const int n_vec = tile_vecs(kv, n_row), groups = n_vec / GROUP_VECS;
    int g = s->lo / GROUP, end = (s->hi + GROUP - 1) / GROUP;
    if (n_vec % GROUP_VECS != 0 && GROUP_VECS == 2) /* three groups are two tiles */
        for (; g + n_vec <= end; g += n_vec) {
            score_tile(s, kv, n_row, n_vec, g, 0);
            score_tile(s, kv, n_row, n_vec, g + n_vec / 2, 1);
        }
    else
        for (; g + groups <= end; g += groups) score_tile(s, kv, n_row, n_vec, g, 0);
    for (; g < end; g++) score_tile(s, kv, n_row, GROUP_VECS, g, 0);
}

/* Softmax of one row's segment in place: p, and m and l of the segment. */
static inline void softmax(struct pass *s, int r, float *m_out, float *l_out)
{
    const struct row *row = &s->block->row[r];
    float *p = s->p[r];
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
static void weigh(struct pass *s, int n_row)
{
    float l[SUM_LANES], keep[SUM_LANES] = {0}, take[SUM_LANES] = {0};
    for (int r = 0; r < n_row; r++) {
        struct row *row = &s->block->row[r];
        if (row->seg_lo >= row->seg_hi) continue;
        float m;
        softmax(s, r, &m, &l[r]);
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
    for (int r = 0; r < n_row; r++) {
        struct row *row = &s->block->row[r];
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
ALWAYS_INLINE vf value_load(enum mu_kv_type kv, const char *x, const float *scale, int n)
{
    if (kv == MU_KV_F16) {
        const uint16_t *h = (const uint16_t *)(const void *)x;
        return n == VF_LANES ? vf_load_f16(h) : vf_load_f16_n(h, n);
    }
    const int8_t *q = (const int8_t *)x;
    return vf_mul_at(scale, n == VF_LANES ? vf_load_i8(q) : vf_load_i8_n(q, n));
}

/* o of n_row rows × n_vec vectors of dimensions from d0, merged into out; the last vector has n_lane lanes. */
ALWAYS_INLINE void value_tile(struct pass *s, enum mu_kv_type kv, int n_row, int n_vec, int d0, int n_lane)
{
    vf acc[ROWS][4];
#pragma GCC unroll 8
    for (int r = 0; r < n_row; r++)
#pragma GCC unroll 4
        for (int v = 0; v < n_vec; v++) acc[r][v] = vf_set(0.0f);
    const int vec_bytes = VF_LANES * (kv == MU_KV_F16 ? 2 : 1);
    const size_t value = kv == MU_KV_F16 ? sizeof(uint16_t) : 1, d_head = (size_t)s->a->d_head;
    const size_t row_bytes = d_head * value, blocks = (size_t)mu_kv_blocks(s->a->d_head);

    for (int j = s->lo; j < s->hi;) {
        const size_t row = (size_t)(j % GROUP), skip = row * row_bytes + (size_t)d0 * value;
        const char *at = s->v[j / GROUP] + skip;
        const float *scale = (const float *)(const void *)(s->v[j / GROUP] + GROUP * d_head) + row * blocks +
                             d0 / MU_Q_BLOCK; /* Q8_0 only */
        if (j >= s->common_lo && j < s->common_hi) {
            int end = (j / GROUP + 1) * GROUP;
            if (end > s->common_hi) end = s->common_hi;
            const char *ahead = s->ahead[j / GROUP] + kv_share(kv, (int)row * s->a->d_head + d0);
            for (; j < end; j++, at += row_bytes, scale += blocks, ahead += kv_share(kv, s->a->d_head)) {
                vf x[4];
#pragma GCC unroll 4
                for (int v = 0; v < n_vec; v++)
                    x[v] = value_load(kv, at + v * vec_bytes, scale + v * VF_LANES / MU_Q_BLOCK,
                                      v + 1 < n_vec ? (int)VF_LANES : n_lane);
#pragma GCC unroll 4
                for (int b = 0; b < kv_share(kv, n_vec * VF_LANES); b += 32) simd_fetch(ahead + b);
#pragma GCC unroll 8
                for (int r = 0; r < n_row; r++) {
                    const float *p = &s->p[r][j];
#pragma GCC unroll 4
                    for (int v = 0; v < n_vec; v++) acc[r][v] = vf_fma_at(p, x[v], acc[r][v]);
                }
            }
            continue;
        }
        vf x[4];
#pragma GCC unroll 4
        for (int v = 0; v < n_vec; v++)
            x[v] = value_load(kv, at + v * vec_bytes, scale + v * VF_LANES / MU_Q_BLOCK,
                              v + 1 < n_vec ? (int)VF_LANES : n_lane);
#pragma GCC unroll 8
        for (int r = 0; r < n_row; r++) {
            vf p = vf_set(s->p[r][j]);
            vm sees = vm_all_if((j >= s->block->row[r].seg_lo) & (j < s->block->row[r].seg_hi));
#pragma GCC unroll 4
            for (int v = 0; v < n_vec; v++) acc[r][v] = vf_select(sees, vf_fma(p, x[v], acc[r][v]), acc[r][v]);
        }
        j++;
    }

#pragma GCC unroll 8
    for (int r = 0; r < n_row; r++) {
        const struct row *row = &s->block->row[r];
        if (row->seg_lo >= row->seg_hi) continue;
        vf keep = vf_set(row->keep), take = vf_set(row->take);
#pragma GCC unroll 4
        for (int v = 0; v < n_vec; v++) {
            int n = v + 1 < n_vec ? (int)VF_LANES : n_lane;
            float *out = row->out + d0 + v * VF_LANES;
            vf o = acc[r][v];
            if (row->merge) o = vf_fma(vf_load_n(out, n), keep, vf_mul(o, take));
            vf_store_n(out, n, o);
        }
    }
}

ALWAYS_INLINE void values(struct pass *s, enum mu_kv_type kv, int n_row)
{
    const int n_vec = tile_vecs(kv, n_row);
    int d = 0, d_head = s->a->d_head;
    for (; d + n_vec * VF_LANES <= d_head; d += n_vec * VF_LANES) value_tile(s, kv, n_row, n_vec, d, VF_LANES);
    if (n_vec > 2 && d + 2 * VF_LANES <= d_head) {
        value_tile(s, kv, n_row, 2, d, VF_LANES);
        d += 2 * VF_LANES;
    }
    for (; d < d_head; d += VF_LANES)
        value_tile(s, kv, n_row, 1, d, d_head - d < VF_LANES ? d_head - d : (int)VF_LANES);
}

/* The products for each format and number of rows, compiled apart so that the accumulators are registers. */
#if defined(MU_MATH_AVX512)
#define ROW_COUNTS(X, kv) X(kv, 1) X(kv, 2) X(kv, 3) X(kv, 4) X(kv, 5) X(kv, 6) X(kv, 7) X(kv, 8)
#else
#define ROW_COUNTS(X, kv) X(kv, 1) X(kv, 2) X(kv, 3) X(kv, 4) X(kv, 5) X(kv, 6)
#endif
#define PRODUCTS(kv, n)                           \
    static void scores_##kv##_##n(struct pass *s) \
    {                                             \
        scores(s, kv, n);                         \
    }                                             \
    static void values_##kv##_##n(struct pass *s) \
    {                                             \
        values(s, kv, n);                         \
    }
ROW_COUNTS(PRODUCTS, MU_KV_F16)
ROW_COUNTS(PRODUCTS, MU_KV_Q8_0)
#define ENTRY(kv, n) {scores_##kv##_##n, values_##kv##_##n},
static const struct {
    void (*scores)(struct pass *s);
    void (*values)(struct pass *s);
} products[MU_KV_TYPE_COUNT][ROWS + 1] = {
    [MU_KV_F16] = {{NULL, NULL}, ROW_COUNTS(ENTRY, MU_KV_F16)},
    [MU_KV_Q8_0] = {{NULL, NULL}, ROW_COUNTS(ENTRY, MU_KV_Q8_0)},
};

/* Page pointers of the segment at `begin`, for the positions [lo, hi) of the sequence that some row of the batch
 * sees. */
static void enter_segment(struct pass *s, int begin, int lo, int hi)
{
    const struct mu_attn *a = s->a;
    const size_t group_bytes = mu_kv_bytes(a->kv, a->d_head, GROUP);
    int page = begin / a->page_tokens, pages = MU_ATTN_SEGMENT / a->page_tokens, in_page = 0;
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

/* What the rows of a block see of the segment at `begin`; false where that is nothing. */
static bool enter_block(struct pass *s, struct block *b, int begin)
{
    int lo = 0, hi = MU_ATTN_SEGMENT;
    s->block = b;
    s->lo = MU_ATTN_SEGMENT;
    s->hi = 0;
    for (int r = 0; r < b->n_row; r++) {
        struct row *row = &b->row[r];
        row->seg_lo = row->lo > begin ? row->lo - begin : 0;
        row->seg_hi = row->hi < begin + MU_ATTN_SEGMENT ? row->hi - begin : MU_ATTN_SEGMENT;
        if (row->seg_lo > lo) lo = row->seg_lo;
        if (row->seg_hi < hi) hi = row->seg_hi;
        if (row->seg_lo >= row->seg_hi) continue;
        if (row->seg_lo < s->lo) s->lo = row->seg_lo;
        if (row->seg_hi > s->hi) s->hi = row->seg_hi;
    }
    s->common_lo = lo < hi ? lo : s->hi;
    s->common_hi = lo < hi ? hi : s->hi;
    return s->lo < s->hi;
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

/* Segment seg of the block's rows, alone, into their parts. */
static void block_part(struct pass *s, struct block *b, int first, int seg)
{
    const struct mu_attn *a = s->a;
    for (int r = 0; r < b->n_row; r++) {
        b->row[r].started = b->row[r].merge = false;
        b->row[r].out = mu_attn_part(a, seg, first + r);
    }
    products[a->kv][b->n_row].scores(s);
    weigh(s, b->n_row);
    products[a->kv][b->n_row].values(s);
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
                if (!enter_block(&s, &block[i], begin)) continue;
                if (a->part) {
                    block_part(&s, &block[i], first + n * i / n_block, begin / MU_ATTN_SEGMENT);
                    continue;
                }
                products[a->kv][block[i].n_row].scores(&s);
                weigh(&s, block[i].n_row);
                products[a->kv][block[i].n_row].values(&s);
            }
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
