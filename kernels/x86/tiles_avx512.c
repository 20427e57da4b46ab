/* The tiles of C2 with AVX-512 VNNI: 16 rows × T tokens over the blocks of one pass.
 *
 * One vpdpbusd takes 4 columns of all 16 rows against one token's 4 activations, broadcast from memory; weights are
 * decoded once for the T tokens. An offset of the codes is paid by starting the integer accumulator at -offset·S. Per
 * block that leaves, on the two pipes that multiply, 8 dot products, one d·s and one fmaf a token: at most 80% of the
 * dot product's peak for Q4_0 and Q8_0, 73% for Q4_K (two fmaf), 66% for Q6_K.
 *
 * There are four forms of tile, each an inline function of the type, which is a constant where it is called:
 *   scaled   one scale per 32: Q4_0, Q5_0, IQ4_NL, IQ4_XS, MXFP4
 *   bytes    the same on whole bytes: Q8_0
 *   lowered  a scale and a minimum per 32: Q4_1, Q5_1, Q4_K, Q5_K
 *   halves   a scale per 16: Q6_K, Q3_K, and with a minimum Q2_K */
#include <string.h>

#include "kernels/x86/codes_avx512.h"
#include "kernels/x86/tiles_avx512.h"

enum {
    MAX_CUT = 4,      /* up to so many tokens, two accumulators each hide the latency of the dot product */
    NEAR_BYTES = 2048 /* how far ahead of itself any tile that prefetches does so into the L1 */
};

MU_INLINE __m512i bcast_q(const struct tile *a, bool thin, int t, size_t i)
{
    int32_t v;
    memcpy(&v, a->q + (size_t)t * (thin ? a->q_ld : WIDE_LD) + i, sizeof v);
    return _mm512_set1_epi32(v);
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

/* From afar into the L2 and from near by into the L1; where that pays, pass_run knows (int8_avx512.c). */
MU_INLINE void prefetch(const struct tile *a, const uint8_t *p, int bytes)
{
    if (!a->ahead) return;
    MU_UNROLL
    for (int i = 0; i < bytes; i += 64) {
        _mm_prefetch((const char *)(a->ahead + (p - a->w) + i), _MM_HINT_T1);
        _mm_prefetch((const char *)(p + NEAR_BYTES + i), _MM_HINT_T0);
    }
}

/* sum[t] += 32 columns in nibbles · q; few tokens' chains of sums are cut in two. */
MU_INLINE void dot_nibbles(const struct tile *a, uint32_t type, bool thin, const uint8_t *p, int b, __m512i *sum, int T)
{
    __m512i odd[MAX_CUT];
    const struct nibble_key key = nibble_key(type, p);
    MU_UNROLL
    for (int t = 0; t < T && T <= MAX_CUT; t++) odd[t] = _mm512_setzero_si512();
    MU_UNROLL
    for (int k = 0; k < 4; k++) {
        __m512i lo, hi;
        nibble_codes(type, &key, p, k, &lo, &hi);
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

MU_INLINE void tile_scaled(const struct tile *a, uint32_t type, bool thin, int T)
{
    __m512 acc[MAX_TILE], d256 = _mm512_setzero_ps();
    acc_load(a, acc, T);
    const uint8_t *p = a->w;
    for (int b = 0; b < a->n_block; b++, p += mu_packed_block_bytes(type)) {
        __m512i sum[MAX_TILE];
        if (type == MU_IQ4_XS && b % 8 == 0) {
            d256 = load_f16(p);
            p += mu_packed_head_bytes(type);
        }
        prefetch(a, p, mu_packed_block_bytes(type));
        __m512 d = type == MU_IQ4_XS  ? _mm512_mul_ps(d256, _mm512_cvtepi32_ps(load_s8(p)))
                   : type == MU_MXFP4 ? load_e8m0(p)
                                      : load_f16(p);
        MU_UNROLL
        for (int t = 0; t < T; t++) sum[t] = bcast_a(a, thin, t, b);
        dot_nibbles(a, type, thin, p + mu_packed_scale_bytes(type), b, sum, T);
        MU_UNROLL
        for (int t = 0; t < T; t++)
            acc[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[t]), _mm512_mul_ps(d, bcast_s(a, thin, t, b)), acc[t]);
    }
    acc_store(a, acc, T);
}

MU_INLINE void tile_bytes(const struct tile *a, uint32_t type, bool thin, int T)
{
    __m512 acc[MAX_TILE];
    acc_load(a, acc, T);
    const uint8_t *p = a->w;
    for (int b = 0; b < a->n_block; b++, p += mu_packed_block_bytes(type)) {
        __m512i sum[MAX_TILE], odd[MAX_CUT];
        prefetch(a, p, mu_packed_block_bytes(type));
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

MU_INLINE void tile_lowered(const struct tile *a, uint32_t type, bool thin, int T)
{
    const bool k_quant = mu_packed_head_bytes(type) != 0;
    __m512 acc[MAX_TILE];
    acc_load(a, acc, T);
    const uint8_t *p = a->w;
    __m512 d256 = _mm512_setzero_ps(), dmin256 = d256;
    for (int b = 0; b < a->n_block; b++, p += mu_packed_block_bytes(type)) {
        __m512i sum[MAX_TILE];
        if (k_quant && b % 8 == 0) {
            d256 = load_f16(p);
            dmin256 = load_f16(p + 32);
            p += mu_packed_head_bytes(type);
        }
        prefetch(a, p, mu_packed_block_bytes(type));
        __m512 d = k_quant ? _mm512_mul_ps(d256, _mm512_cvtepi32_ps(load_u8(p))) : load_f16(p);
        __m512 m = k_quant ? _mm512_mul_ps(dmin256, _mm512_cvtepi32_ps(load_u8(p + 16))) : load_f16(p + 32);
        MU_UNROLL
        for (int t = 0; t < T; t++) sum[t] = _mm512_setzero_si512();
        dot_nibbles(a, type, thin, p + mu_packed_scale_bytes(type), b, sum, T);
        MU_UNROLL
        for (int t = 0; t < T; t++) {
            __m512 total = _mm512_castsi512_ps(bcast_a(a, thin, t, b));
            acc[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[t]), _mm512_mul_ps(d, bcast_s(a, thin, t, b)), acc[t]);
            acc[t] = k_quant ? _mm512_fnmadd_ps(m, total, acc[t]) : _mm512_fmadd_ps(m, total, acc[t]);
        }
    }
    acc_store(a, acc, T);
}

/* J = sc0·I0 + sc1·I1 in f32, and Z = m0·S0 + m1·S1: every partial result is an integer under 2^24, so exact. */
MU_INLINE void tile_halves(const struct tile *a, uint32_t type, bool thin, int T)
{
    const __m512i low4 = _mm512_set1_epi32(15);
    __m512 acc[MAX_TILE], d = _mm512_setzero_ps(), dmin = d, m[2] = {d, d};
    acc_load(a, acc, T);
    const uint8_t *p = a->w;
    for (int b = 0; b < a->n_block; b++, p += mu_packed_block_bytes(type)) {
        __m512 joint[MAX_TILE];
        if (b % 8 == 0) {
            d = load_f16(p);
            if (type == MU_Q2_K) dmin = load_f16(p + 32);
            p += mu_packed_head_bytes(type);
        }
        prefetch(a, p, mu_packed_block_bytes(type));
        MU_UNROLL
        for (int h = 0; h < 2; h++) {
            __m512i sum[MAX_TILE], scales = load_s8(p + 16 * h);
            if (type == MU_Q2_K) {
                m[h] = _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(scales, 4), low4));
                scales = _mm512_and_si512(scales, low4);
            }
            __m512 sc = _mm512_cvtepi32_ps(scales);
            MU_UNROLL
            for (int t = 0; t < T; t++)
                sum[t] = type == MU_Q2_K ? _mm512_setzero_si512() : h ? bcast_b(a, thin, t, b) : bcast_a(a, thin, t, b);
            MU_UNROLL
            for (int k = 0; k < 4; k++) {
                __m512i w = codes_of_half(type, p + mu_packed_scale_bytes(type), h, k);
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
        for (int t = 0; t < T; t++) {
            __m512 s = bcast_s(a, thin, t, b);
            acc[t] = _mm512_fmadd_ps(joint[t], _mm512_mul_ps(d, s), acc[t]);
            if (type != MU_Q2_K) continue;
            __m512 z = _mm512_mul_ps(m[0], _mm512_castsi512_ps(bcast_a(a, thin, t, b)));
            z = _mm512_fmadd_ps(m[1], _mm512_castsi512_ps(bcast_b(a, thin, t, b)), z);
            acc[t] = _mm512_fnmadd_ps(z, _mm512_mul_ps(dmin, s), acc[t]);
        }
    }
    acc_store(a, acc, T);
}

#define TILE(name, form, type, T)                    \
    static void name##_##T(const struct tile *a)     \
    {                                                \
        tile_##form(a, type, (T) <= THIN_TOKENS, T); \
    }
/* A wide batch has 5 tokens or more; cut in equal tiles of at most 12 none has less than 5, of at most 8, less than
 * 4. */
#define TILES_4(name, form, type) \
    TILE(name, form, type, 1) TILE(name, form, type, 2) TILE(name, form, type, 3) TILE(name, form, type, 4)
#define TILES_5_8(name, form, type) \
    TILE(name, form, type, 5) TILE(name, form, type, 6) TILE(name, form, type, 7) TILE(name, form, type, 8)
#define TILES_9_12(name, form, type) \
    TILE(name, form, type, 9) TILE(name, form, type, 10) TILE(name, form, type, 11) TILE(name, form, type, 12)
#define THIN_LIST(name)                              \
    {                                                \
        NULL, name##_1, name##_2, name##_3, name##_4 \
    }
#define FAMILY_12(name, form, type, terms, offset)                                                                     \
    TILES_4(name, form, type)                                                                                          \
    TILES_5_8(name, form, type)                                                                                        \
    TILES_9_12(name, form, type)                                                                                       \
    static const struct family family_##name = {terms,                                                                 \
                                                offset,                                                                \
                                                12,                                                                    \
                                                THIN_LIST(name),                                                       \
                                                {NULL, NULL, NULL, NULL, NULL, name##_5, name##_6, name##_7, name##_8, \
                                                 name##_9, name##_10, name##_11, name##_12}};
#define FAMILY_8(name, form, type, terms, offset)   \
    TILES_4(name, form, type)                       \
    TILES_5_8(name, form, type)                     \
    static void name##_wide_4(const struct tile *a) \
    {                                               \
        tile_##form(a, type, false, 4);             \
    }                                               \
    static const struct family family_##name = {    \
        terms,                                      \
        offset,                                     \
        8,                                          \
        THIN_LIST(name),                            \
        {NULL, NULL, NULL, NULL, name##_wide_4, name##_5, name##_6, name##_7, name##_8}};

FAMILY_12(q4_0, scaled, MU_Q4_0, TERMS_OFFSET, 8)
FAMILY_12(q5_0, scaled, MU_Q5_0, TERMS_OFFSET, 16)
FAMILY_12(iq4_nl, scaled, MU_IQ4_NL, TERMS_OFFSET, IQ4_OFFSET)
FAMILY_12(iq4_xs, scaled, MU_IQ4_XS, TERMS_OFFSET, IQ4_OFFSET)
FAMILY_12(mxfp4, scaled, MU_MXFP4, TERMS_OFFSET, MXFP4_OFFSET)
FAMILY_12(q8_0, bytes, MU_Q8_0, TERMS_OFFSET, 128)
FAMILY_12(q4_1, lowered, MU_Q4_1, TERMS_TOTAL, 0)
FAMILY_12(q5_1, lowered, MU_Q5_1, TERMS_TOTAL, 0)
FAMILY_12(q4_k, lowered, MU_Q4_K, TERMS_TOTAL, 0)
FAMILY_12(q5_k, lowered, MU_Q5_K, TERMS_TOTAL, 0)
FAMILY_8(q6_k, halves, MU_Q6_K, TERMS_OFFSET_HALVES, 32)
FAMILY_8(q3_k, halves, MU_Q3_K, TERMS_OFFSET_HALVES, 4)
FAMILY_8(q2_k, halves, MU_Q2_K, TERMS_TOTAL_HALVES, 0)

const struct family *mu_avx512_family(uint32_t type)
{
    static const struct family *const families[MU_TYPE_LIMIT] = {
        [MU_Q4_0] = &family_q4_0,   [MU_Q4_1] = &family_q4_1,     [MU_Q5_0] = &family_q5_0,
        [MU_Q5_1] = &family_q5_1,   [MU_Q8_0] = &family_q8_0,     [MU_Q2_K] = &family_q2_k,
        [MU_Q3_K] = &family_q3_k,   [MU_Q4_K] = &family_q4_k,     [MU_Q5_K] = &family_q5_k,
        [MU_Q6_K] = &family_q6_k,   [MU_IQ4_NL] = &family_iq4_nl, [MU_IQ4_XS] = &family_iq4_xs,
        [MU_MXFP4] = &family_mxfp4,
    };
    return families[type];
}
