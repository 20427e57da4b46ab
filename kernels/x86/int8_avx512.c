/* C2 with AVX-512 VNNI: Q4_0, Q8_0, Q4_K, Q6_K.
 *
 * A tile is 16 rows × T tokens. One vpdpbusd takes 4 columns of all 16 rows against one token's 4 activations,
 * broadcast from memory; weights are decoded once for the T tokens. An offset of the codes is paid by starting the
 * integer accumulator at -offset·S. Per block that leaves, on the two pipes that multiply, 8 dot products, one d·s and
 * one fmaf a token: at most 80% of the dot product's peak for Q4_0 and Q8_0, 73% for Q4_K (two fmaf), 66% for Q6_K.
 *
 * Loops, outermost first: up to TILES_A_PASS tiles of tokens; columns, so many that one group's weights and one tile's
 * activations share the L1; row groups; tiles. Between column passes the accumulators rest in `out`, which changes no
 * bit. Activations of a pass are first copied together: in the caller's array the same column of all tokens may fall
 * into one set of the cache. A few tokens (decode) take all columns in one pass and no copy, so that the weights stream
 * in the order they lie in. */
#include <immintrin.h>
#include <string.h>

#include "kernels/parts.h"
#include "kernels/x86/layout.h"

enum {
    THIN_TOKENS = 4,                         /* up to here: decode */
    THIN_BLOCKS = 256,                       /* 32-column blocks in a pass of decode */
    WIDE_BLOCKS = 64,                        /* and otherwise */
    WIDE_LD = WIDE_BLOCKS * MU_Q_BLOCK + 64, /* bytes from one copied token to the next; +64: another set of the L1 */
    MAX_TILE = 12,
    MAX_CUT = 4, /* up to so many tokens, two accumulators each hide the latency of the dot product */
    TILES_A_PASS = 4,
    FAR_BYTES = 16384, /* how far ahead of itself a lone tile prefetches into the L2 … */
    NEAR_BYTES = 2048  /* … and any tile that prefetches, into the L1 */
};

/* Per (token, block) words that a tile broadcasts; row t starts at t * (thin ? THIN_BLOCKS : WIDE_BLOCKS). */
struct terms {
    const float *s;
    const int32_t *a; /* Q4_0, Q8_0: -offset·S; Q6_K: -32·S0; Q4_K: fl((float)S·s), a float */
    const int32_t *b; /* Q6_K: -32·S1 */
};

struct tile {
    const uint8_t *w; /* a group's blocks of this pass */
    int n_block;
    const int8_t *q;
    size_t q_ld; /* used where thin; else WIDE_LD */
    struct terms terms;
    float *out; /* of the first row and token */
    size_t out_stride;
    __mmask16 rows;       /* that exist */
    bool first;           /* accumulators start at +0, else from out */
    const uint8_t *ahead; /* weights to prefetch meanwhile, as many bytes as w's, into the L2; NULL = none */
};

typedef void tile_fn(const struct tile *a);

MU_INLINE __m512i bcast_q(const struct tile *a, bool thin, int t, size_t i)
{
    int32_t v;
    memcpy(&v, a->q + (size_t)t * (thin ? a->q_ld : WIDE_LD) + i, sizeof v);
    return _mm512_set1_epi32(v);
}
MU_INLINE size_t term_at(bool thin, int t, int b)
{
    return (size_t)t * (thin ? THIN_BLOCKS : WIDE_BLOCKS) + (size_t)b;
}
MU_INLINE __m512 bcast_s(const struct tile *a, bool thin, int t, int b)
{
    return _mm512_set1_ps(a->terms.s[term_at(thin, t, b)]);
}
MU_INLINE __m512i bcast_a(const struct tile *a, bool thin, int t, int b)
{
    return _mm512_set1_epi32(a->terms.a[term_at(thin, t, b)]);
}
MU_INLINE __m512i bcast_b(const struct tile *a, bool thin, int t, int b)
{
    return _mm512_set1_epi32(a->terms.b[term_at(thin, t, b)]);
}

MU_INLINE void acc_load(const struct tile *a, __m512 *acc, int T)
{
    MU_UNROLL
    for (int t = 0; t < T; t++)
        acc[t] = a->first ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(a->rows, a->out + (size_t)t * a->out_stride);
}
MU_INLINE void acc_store(const struct tile *a, const __m512 *acc, int T)
{
    MU_UNROLL
    for (int t = 0; t < T; t++) _mm512_mask_storeu_ps(a->out + (size_t)t * a->out_stride, a->rows, acc[t]);
}

/* One token alone leaves the stream to the processor's own prefetcher, which is best at it (0.9 to 1.0 of a plain
 * read's speed against 0.8); with more to multiply per byte it falls behind, and this doubles the speed. */
MU_INLINE void prefetch(const struct tile *a, int T, const uint8_t *p, int bytes)
{
    if (T == 1 || !a->ahead) return;
    MU_UNROLL
    for (int i = 0; i < bytes; i += 64) {
        _mm_prefetch((const char *)(a->ahead + (p - a->w) + i), _MM_HINT_T1);
        _mm_prefetch((const char *)(p + NEAR_BYTES + i), _MM_HINT_T0);
    }
}

MU_INLINE __m512 load_f16(const uint8_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
MU_INLINE __m512i load_u8(const uint8_t *p)
{
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
}
MU_INLINE __m512i load_s8(const uint8_t *p)
{
    return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p));
}

/* sum[t] += 32 nibble columns · q; few tokens' chains of sums are cut in two. */
MU_INLINE void dot_nibbles(const struct tile *a, bool thin, const uint8_t *p, int b, __m512i *sum, int T)
{
    const __m512i low4 = _mm512_set1_epi8(15);
    __m512i odd[MAX_CUT];
    MU_UNROLL
    for (int t = 0; t < T && T <= MAX_CUT; t++) odd[t] = _mm512_setzero_si512();
    MU_UNROLL
    for (int k = 0; k < 4; k++) {
        __m512i w = _mm512_loadu_si512(p + 64 * k);
        __m512i lo = _mm512_and_si512(w, low4), hi = _mm512_and_si512(_mm512_srli_epi16(w, 4), low4);
        MU_UNROLL
        for (int t = 0; t < T; t++)
            sum[t] = _mm512_dpbusd_epi32(sum[t], lo, bcast_q(a, thin, t, (size_t)b * 32 + 4 * (size_t)k));
        MU_UNROLL
        for (int t = 0; t < T; t++) {
            __m512i q = bcast_q(a, thin, t, (size_t)b * 32 + 16 + 4 * (size_t)k);
            if (T <= MAX_CUT)
                odd[t] = _mm512_dpbusd_epi32(odd[t], hi, q);
            else
                sum[t] = _mm512_dpbusd_epi32(sum[t], hi, q);
        }
    }
    if (T > MAX_CUT) return;
    MU_UNROLL
    for (int t = 0; t < T; t++) sum[t] = _mm512_add_epi32(sum[t], odd[t]);
}

MU_INLINE void tile_q4_0(const struct tile *a, bool thin, int T)
{
    __m512 acc[MAX_TILE];
    acc_load(a, acc, T);
    const uint8_t *p = a->w;
    for (int b = 0; b < a->n_block; b++, p += MU_Q4_0_BLOCK) {
        __m512i sum[MAX_TILE];
        prefetch(a, T, p, MU_Q4_0_BLOCK);
        __m512 d = load_f16(p);
        MU_UNROLL
        for (int t = 0; t < T; t++) sum[t] = bcast_a(a, thin, t, b);
        dot_nibbles(a, thin, p + 32, b, sum, T);
        MU_UNROLL
        for (int t = 0; t < T; t++)
            acc[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[t]), _mm512_mul_ps(d, bcast_s(a, thin, t, b)), acc[t]);
    }
    acc_store(a, acc, T);
}

MU_INLINE void tile_q8_0(const struct tile *a, bool thin, int T)
{
    __m512 acc[MAX_TILE];
    acc_load(a, acc, T);
    const uint8_t *p = a->w;
    for (int b = 0; b < a->n_block; b++, p += MU_Q8_0_BLOCK) {
        __m512i sum[MAX_TILE], odd[MAX_CUT];
        prefetch(a, T, p, MU_Q8_0_BLOCK);
        __m512 d = load_f16(p);
        MU_UNROLL
        for (int t = 0; t < T; t++) {
            sum[t] = bcast_a(a, thin, t, b);
            if (T <= MAX_CUT) odd[t] = _mm512_setzero_si512();
        }
        MU_UNROLL
        for (int k = 0; k < 8; k++) {
            __m512i w = _mm512_loadu_si512(p + 32 + 64 * k);
            MU_UNROLL
            for (int t = 0; t < T; t++) {
                __m512i q = bcast_q(a, thin, t, (size_t)b * 32 + 4 * (size_t)k);
                if (T <= MAX_CUT && k % 2)
                    odd[t] = _mm512_dpbusd_epi32(odd[t], w, q);
                else
                    sum[t] = _mm512_dpbusd_epi32(sum[t], w, q);
            }
        }
        MU_UNROLL
        for (int t = 0; t < T && T <= MAX_CUT; t++) sum[t] = _mm512_add_epi32(sum[t], odd[t]);
        MU_UNROLL
        for (int t = 0; t < T; t++)
            acc[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[t]), _mm512_mul_ps(d, bcast_s(a, thin, t, b)), acc[t]);
    }
    acc_store(a, acc, T);
}

MU_INLINE void tile_q4_k(const struct tile *a, bool thin, int T)
{
    __m512 acc[MAX_TILE];
    acc_load(a, acc, T);
    const uint8_t *p = a->w;
    __m512 d256 = _mm512_setzero_ps(), dmin256 = d256;
    for (int b = 0; b < a->n_block; b++, p += MU_Q4_K_BLOCK) {
        __m512i sum[MAX_TILE];
        if (b % 8 == 0) {
            d256 = load_f16(p);
            dmin256 = load_f16(p + 32);
            p += MU_Q4_K_HEAD;
        }
        prefetch(a, T, p, MU_Q4_K_BLOCK);
        __m512 d = _mm512_mul_ps(d256, _mm512_cvtepi32_ps(load_u8(p)));
        __m512 m = _mm512_mul_ps(dmin256, _mm512_cvtepi32_ps(load_u8(p + 16)));
        MU_UNROLL
        for (int t = 0; t < T; t++) sum[t] = _mm512_setzero_si512();
        dot_nibbles(a, thin, p + 32, b, sum, T);
        MU_UNROLL
        for (int t = 0; t < T; t++) {
            acc[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[t]), _mm512_mul_ps(d, bcast_s(a, thin, t, b)), acc[t]);
            acc[t] = _mm512_fnmadd_ps(m, _mm512_castsi512_ps(bcast_a(a, thin, t, b)), acc[t]);
        }
    }
    acc_store(a, acc, T);
}

/* J = sc0·I0 + sc1·I1 in f32: every partial result is an integer under 2^24, so exact. */
MU_INLINE void tile_q6_k(const struct tile *a, bool thin, int T)
{
    const __m512i low4 = _mm512_set1_epi8(15), bits45 = _mm512_set1_epi8(0x30);
    __m512 acc[MAX_TILE], d = _mm512_setzero_ps();
    acc_load(a, acc, T);
    const uint8_t *p = a->w;
    for (int b = 0; b < a->n_block; b++, p += MU_Q6_K_BLOCK) {
        __m512 joint[MAX_TILE];
        if (b % 8 == 0) {
            d = load_f16(p);
            p += MU_Q6_K_HEAD;
        }
        prefetch(a, T, p, MU_Q6_K_BLOCK);
        MU_UNROLL
        for (int h = 0; h < 2; h++) {
            __m512i sum[MAX_TILE], high = _mm512_loadu_si512(p + 288 + 64 * h);
            __m512 sc = _mm512_cvtepi32_ps(load_s8(p + 16 * h));
            MU_UNROLL
            for (int t = 0; t < T; t++) sum[t] = h ? bcast_b(a, thin, t, b) : bcast_a(a, thin, t, b);
            MU_UNROLL
            for (int k = 0; k < 4; k++) {
                __m512i w = _mm512_loadu_si512(p + 32 + 64 * k);
                w = _mm512_and_si512(h ? _mm512_srli_epi16(w, 4) : w, low4);
                __m512i top = k == 0   ? _mm512_slli_epi16(high, 4)
                              : k == 1 ? _mm512_slli_epi16(high, 2)
                              : k == 2 ? high
                                       : _mm512_srli_epi16(high, 2);
                w = _mm512_ternarylogic_epi32(top, bits45, w, 0xEA); /* (top & bits45) | w */
                MU_UNROLL
                for (int t = 0; t < T; t++)
                    sum[t] = _mm512_dpbusd_epi32(sum[t], w,
                                                 bcast_q(a, thin, t, (size_t)b * 32 + 16 * (size_t)h + 4 * (size_t)k));
            }
            MU_UNROLL
            for (int t = 0; t < T; t++) {
                __m512 f = _mm512_cvtepi32_ps(sum[t]);
                joint[t] = h ? _mm512_fmadd_ps(f, sc, joint[t]) : _mm512_mul_ps(f, sc);
            }
        }
        MU_UNROLL
        for (int t = 0; t < T; t++)
            acc[t] = _mm512_fmadd_ps(joint[t], _mm512_mul_ps(d, bcast_s(a, thin, t, b)), acc[t]);
    }
    acc_store(a, acc, T);
}

#define TILE(type, T)                            \
    static void type##_##T(const struct tile *a) \
    {                                            \
        tile_##type(a, (T) <= THIN_TOKENS, T);   \
    }
#define TILES_8(type) \
    TILE(type, 1) TILE(type, 2) TILE(type, 3) TILE(type, 4) TILE(type, 5) TILE(type, 6) TILE(type, 7) TILE(type, 8)
#define TILES_12(type) TILES_8(type) TILE(type, 9) TILE(type, 10) TILE(type, 11) TILE(type, 12)
#define THIN_LIST(type)                              \
    {                                                \
        NULL, type##_1, type##_2, type##_3, type##_4 \
    }
/* a wide batch has 5 tokens or more; cut in equal tiles of at most 12 none has less than 5, of at most 8, less than
 * 4 */
#define WIDE_LIST_8(type, four) NULL, NULL, NULL, NULL, four, type##_5, type##_6, type##_7, type##_8

TILES_12(q4_0)
TILES_12(q8_0)
TILES_12(q4_k)
TILES_8(q6_k)
static void q6_k_wide_4(const struct tile *a)
{
    tile_q6_k(a, false, 4);
}

static const struct family {
    int max_tile;
    tile_fn *thin[THIN_TOKENS + 1], *wide[MAX_TILE + 1];
} family_q4_0 = {12, THIN_LIST(q4_0), {WIDE_LIST_8(q4_0, NULL), q4_0_9, q4_0_10, q4_0_11, q4_0_12}},
  family_q8_0 = {12, THIN_LIST(q8_0), {WIDE_LIST_8(q8_0, NULL), q8_0_9, q8_0_10, q8_0_11, q8_0_12}},
  family_q4_k = {12, THIN_LIST(q4_k), {WIDE_LIST_8(q4_k, NULL), q4_k_9, q4_k_10, q4_k_11, q4_k_12}},
  family_q6_k = {8, THIN_LIST(q6_k), {WIDE_LIST_8(q6_k, q6_k_wide_4)}};

/* Terms of n blocks of one token, 16 blocks at a time. */
static void terms_fill(uint32_t type, const float *s, const int16_t *sum, int n, float *s_out, int32_t *a_out,
                       int32_t *b_out)
{
    for (int i = 0; i < n; i += 16) {
        __mmask16 mask = n - i >= 16 ? 0xffff : (__mmask16)((1u << (n - i)) - 1u);
        __m512 scale = _mm512_maskz_loadu_ps(mask, s + i);
        __m512i halves = _mm512_maskz_loadu_epi32(mask, sum + 2 * i); /* S1 << 16 | S0 */
        _mm512_mask_storeu_ps(s_out + i, mask, scale);
        if (type == MU_Q6_K) {
            __m512i s0 = _mm512_srai_epi32(_mm512_slli_epi32(halves, 16), 16), s1 = _mm512_srai_epi32(halves, 16);
            __m512i zero = _mm512_setzero_si512();
            _mm512_mask_storeu_epi32(a_out + i, mask, _mm512_sub_epi32(zero, _mm512_slli_epi32(s0, 5)));
            _mm512_mask_storeu_epi32(b_out + i, mask, _mm512_sub_epi32(zero, _mm512_slli_epi32(s1, 5)));
        } else {
            short factor = type == MU_Q4_0 ? -8 : type == MU_Q8_0 ? -128 : 1;
            __m512i a = _mm512_madd_epi16(halves, _mm512_set1_epi16(factor));
            if (type == MU_Q4_K) a = _mm512_castps_si512(_mm512_mul_ps(_mm512_cvtepi32_ps(a), scale));
            _mm512_mask_storeu_epi32(a_out + i, mask, a);
        }
    }
}

/* Where a matmul's weights are, and which rows of them. */
struct job {
    const struct mu_mat *m;
    size_t group_bytes;
    const struct mu_act *x;
    int row0, row1;
    float *out;
    size_t stride;
};

/* The row groups of one pass: tokens [t0, t0 + n_tok) in n_tile tiles, blocks [b0, b0 + a->n_block). */
static void pass_run(const struct job *j, struct tile *a, tile_fn *const *fn, bool thin, int t0, int n_tok, int n_tile,
                     int b0)
{
    struct terms terms = a->terms;
    const int8_t *q = a->q;
    size_t q_ld = thin ? a->q_ld : WIDE_LD, offset = mu_x86_group_offset(j->m->type, (size_t)b0 * MU_Q_BLOCK);
    for (int r = j->row0; r < j->row1; r += MU_ROW_GROUP) {
        int rows = j->row1 - r;
        a->w = (const uint8_t *)j->m->data + (size_t)(r / MU_ROW_GROUP) * j->group_bytes + offset;
        a->rows = rows >= MU_ROW_GROUP ? 0xffff : (__mmask16)((1u << rows) - 1u);
        for (int i = 0; i < n_tile; i++) {
            int from = i * n_tok / n_tile, to = (i + 1) * n_tok / n_tile;
            size_t at = term_at(thin, from, 0);
            /* a lone tile streams its weights once; else the next group's come in while the first tile works */
            a->ahead = n_tile == 1 ? a->w + FAR_BYTES : i == 0 && rows > MU_ROW_GROUP ? a->w + j->group_bytes : NULL;
            a->q = q + (size_t)from * q_ld;
            a->terms.s = terms.s + at;
            a->terms.a = terms.a + at;
            a->terms.b = terms.b + at;
            a->out = j->out + (size_t)(t0 + from) * j->stride + r;
            fn[to - from](a);
        }
    }
    a->terms = terms;
    a->q = q;
}

static void run_thin(const struct job *j, const struct family *f)
{
    float s[THIN_TOKENS * THIN_BLOCKS];
    int32_t ta[THIN_TOKENS * THIN_BLOCKS], tb[THIN_TOKENS * THIN_BLOCKS];
    const struct mu_act *x = j->x;
    size_t n_col = (size_t)x->n_col, n_block = n_col / MU_Q_BLOCK;
    for (size_t b0 = 0; b0 == 0 || b0 < n_block; b0 += THIN_BLOCKS) {
        int n = n_block - b0 < THIN_BLOCKS ? (int)(n_block - b0) : THIN_BLOCKS;
        for (int t = 0; t < x->n_tok; t++) {
            size_t from = (size_t)t * n_block + b0, to = term_at(true, t, 0);
            terms_fill(j->m->type, x->s + from, x->sum + 2 * from, n, s + to, ta + to, tb + to);
        }
        struct tile a = {.n_block = n,
                         .q = x->q + b0 * MU_Q_BLOCK,
                         .q_ld = n_col,
                         .terms = {s, ta, tb},
                         .out_stride = j->stride,
                         .first = b0 == 0};
        pass_run(j, &a, f->thin, true, 0, x->n_tok, 1, (int)b0);
    }
}

static void run_wide(const struct job *j, const struct family *f)
{
    int8_t q[TILES_A_PASS * MAX_TILE * WIDE_LD] __attribute__((aligned(64)));
    float s[TILES_A_PASS * MAX_TILE * WIDE_BLOCKS];
    int32_t ta[TILES_A_PASS * MAX_TILE * WIDE_BLOCKS], tb[TILES_A_PASS * MAX_TILE * WIDE_BLOCKS];
    const struct mu_act *x = j->x;
    size_t n_col = (size_t)x->n_col, n_block = n_col / MU_Q_BLOCK;
    int n_tile = (x->n_tok + f->max_tile - 1) / f->max_tile; /* as equal as can be */
    for (int i = 0; i < n_tile; i += TILES_A_PASS) {
        int tiles = n_tile - i < TILES_A_PASS ? n_tile - i : TILES_A_PASS;
        int t0 = (int)((int64_t)i * x->n_tok / n_tile), t1 = (int)((int64_t)(i + tiles) * x->n_tok / n_tile);
        for (size_t b0 = 0; b0 == 0 || b0 < n_block; b0 += WIDE_BLOCKS) {
            int n = n_block - b0 < WIDE_BLOCKS ? (int)(n_block - b0) : WIDE_BLOCKS;
            for (int t = t0; t < t1; t++) {
                size_t from = (size_t)t * n_block + b0, to = term_at(false, t - t0, 0);
                memcpy(q + (t - t0) * WIDE_LD, x->q + from * MU_Q_BLOCK, (size_t)n * MU_Q_BLOCK);
                terms_fill(j->m->type, x->s + from, x->sum + 2 * from, n, s + to, ta + to, tb + to);
            }
            struct tile a = {.n_block = n, .q = q, .terms = {s, ta, tb}, .out_stride = j->stride, .first = b0 == 0};
            pass_run(j, &a, f->wide, false, t0, t1 - t0, tiles, (int)b0);
        }
    }
}

void mu_avx512_matmul_int8(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out,
                           size_t stride)
{
    const struct family *f = m->type == MU_Q4_0   ? &family_q4_0
                             : m->type == MU_Q8_0 ? &family_q8_0
                             : m->type == MU_Q4_K ? &family_q4_k
                                                  : &family_q6_k;
    struct job j = {m, mu_x86_group_bytes(m->type, m->n_col), x, row0, row1, out, stride};
    if (x->n_tok <= THIN_TOKENS)
        run_thin(&j, f);
    else
        run_wide(&j, f);
}
