/* The tiles of C2 with AVX-512 VNNI: G row groups × T tokens over the blocks of one pass.
 *
 * One vpdpbusd takes 4 columns of a group's 16 rows against one token's 4 activations, broadcast from memory; weights are
 * decoded once for the T tokens, and with several groups (int8_streams.c) a broadcast serves them all. An offset of the
 * codes is paid by starting the integer accumulator at -offset·S. Per block that leaves, on the two pipes that multiply, 8
 * dot products, one d·s and one fmaf a group and token: at most 80% of the dot product's peak for Q4_0 and Q8_0, 73% for
 * Q4_K (two fmaf), 66% for Q6_K.
 *
 * There are four forms of tile, each an inline function of the type, the numbers of groups and of tokens, which are
 * constants where it is called:
 *   scaled   one scale per 32: Q4_0, Q5_0, IQ4_NL, IQ4_XS, MXFP4
 *   bytes    the same on whole bytes: Q8_0
 *   lowered  a scale and a minimum per 32: Q4_1, Q5_1, Q4_K, Q5_K
 *   halves   a scale per 16: Q6_K, Q3_K, and with a minimum Q2_K
 * Private to the files of tiles. */
#ifndef MU_KERNELS_X86_TILE_FORMS_H
#define MU_KERNELS_X86_TILE_FORMS_H

#include <string.h>

#include "kernels/x86/codes_avx512.h"
#include "kernels/x86/tiles_avx512.h"

enum {
    MAX_CUT = 4,       /* up to so many sums, two accumulators each hide the latency of the dot product */
    NEAR_BYTES = 2048, /* how far ahead of itself a tile that prefetches does so into the L1; with several groups: */
    NEAR_SHARED = 6144 /* of all of them together */
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

typedef __m512 tile_floats[MAX_GROUPS][MAX_TILE];
typedef __m512i tile_sums[MAX_GROUPS][MAX_TILE];

/* Only the last group may lack rows. */
MU_INLINE __mmask16 rows_of(const struct tile *a, int g, int G)
{
    return g == G - 1 ? a->rows : 0xffff;
}
MU_INLINE float *out_at(const struct tile *a, int g, int t)
{
    return a->out + (size_t)t * a->out_stride + (size_t)g * a->out_group;
}
MU_INLINE void acc_load(const struct tile *a, tile_floats acc, int G, int T)
{
    MU_UNROLL
    for (int g = 0; g < G; g++) {
        MU_UNROLL
        for (int t = 0; t < T; t++)
            acc[g][t] = a->first ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(rows_of(a, g, G), out_at(a, g, t));
    }
}
MU_INLINE void acc_store(const struct tile *a, tile_floats acc, int G, int T)
{
    MU_UNROLL
    for (int g = 0; g < G; g++) {
        MU_UNROLL
        for (int t = 0; t < T; t++) _mm512_mask_storeu_ps(out_at(a, g, t), rows_of(a, g, G), acc[g][t]);
    }
}

/* One group: from afar into the L2 and from near by into the L1; where that pays, pass_run knows (int8_avx512.c). Several:
 * from near by only. */
MU_INLINE void prefetch(const struct tile *a, const uint8_t *p, int bytes, int G)
{
    if (!a->ahead) return;
    MU_UNROLL
    for (int g = 0; g < G; g++) {
        MU_UNROLL
        for (int i = 0; i < bytes; i += 64) {
            if (G == 1) _mm_prefetch((const char *)(a->ahead + (p - a->w) + i), _MM_HINT_T1);
            _mm_prefetch((const char *)(p + (size_t)g * a->w_group + (G == 1 ? NEAR_BYTES : NEAR_SHARED / G) + i),
                         _MM_HINT_T0);
        }
    }
}

MU_INLINE void floats_zero(__m512 *x, int G)
{
    MU_UNROLL
    for (int g = 0; g < G; g++) x[g] = _mm512_setzero_ps();
}

/* sum[g][t] += w[g] · the token's activations from column i of the pass on. */
MU_INLINE void dot_four(const struct tile *a, bool thin, const __m512i *w, size_t i, tile_sums sum, int G, int T)
{
    MU_UNROLL
    for (int t = 0; t < T; t++) {
        __m512i q = bcast_q(a, thin, t, i);
        MU_UNROLL
        for (int g = 0; g < G; g++) sum[g][t] = _mm512_dpbusd_epi32(sum[g][t], w[g], q);
    }
}

MU_INLINE void sums_zero(tile_sums sum, int G, int T)
{
    MU_UNROLL
    for (int g = 0; g < G; g++) {
        MU_UNROLL
        for (int t = 0; t < T; t++) sum[g][t] = _mm512_setzero_si512();
    }
}
MU_INLINE void sums_join(tile_sums sum, tile_sums odd, int G, int T)
{
    MU_UNROLL
    for (int g = 0; g < G; g++) {
        MU_UNROLL
        for (int t = 0; t < T; t++) sum[g][t] = _mm512_add_epi32(sum[g][t], odd[g][t]);
    }
}

/* sum[g][t] += 32 columns in nibbles at p · q; the chains of few sums are cut in two. */
MU_INLINE void dot_nibbles(const struct tile *a, uint32_t type, bool thin, const uint8_t *p, int b, tile_sums sum,
                           int G, int T)
{
    const bool cut = G * T <= MAX_CUT;
    tile_sums odd;
    struct nibble_key key[MAX_GROUPS];
    MU_UNROLL
    for (int g = 0; g < G; g++) key[g] = nibble_key(type, p + (size_t)g * a->w_group);
    if (cut) sums_zero(odd, G, T);
    MU_UNROLL
    for (int k = 0; k < 4; k++) {
        __m512i lo[MAX_GROUPS], hi[MAX_GROUPS];
        MU_UNROLL
        for (int g = 0; g < G; g++) nibble_codes(type, &key[g], p + (size_t)g * a->w_group, k, &lo[g], &hi[g]);
        dot_four(a, thin, lo, (size_t)b * 32 + 4 * (size_t)k, sum, G, T);
        dot_four(a, thin, hi, (size_t)b * 32 + 16 + 4 * (size_t)k, cut ? odd : sum, G, T);
    }
    if (cut) sums_join(sum, odd, G, T);
}

/* acc[g][t] += (float)sum · fl(d·s). */
MU_INLINE void add_scaled_sums(const struct tile *a, bool thin, int b, const __m512 *d, tile_sums sum, tile_floats acc,
                               int G, int T)
{
    MU_UNROLL
    for (int t = 0; t < T; t++) {
        __m512 s = bcast_s(a, thin, t, b);
        MU_UNROLL
        for (int g = 0; g < G; g++)
            acc[g][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[g][t]), _mm512_mul_ps(d[g], s), acc[g][t]);
    }
}
MU_INLINE void sums_from_a(const struct tile *a, bool thin, int b, tile_sums sum, int G, int T)
{
    MU_UNROLL
    for (int t = 0; t < T; t++) {
        __m512i from = bcast_a(a, thin, t, b);
        MU_UNROLL
        for (int g = 0; g < G; g++) sum[g][t] = from;
    }
}

MU_INLINE void tile_scaled(const struct tile *a, uint32_t type, bool thin, int G, int T)
{
    tile_floats acc;
    __m512 d256[MAX_GROUPS];
    floats_zero(d256, G);
    acc_load(a, acc, G, T);
    const uint8_t *p = a->w;
    for (int b = 0; b < a->n_block; b++, p += mu_packed_block_bytes(type)) {
        tile_sums sum;
        __m512 d[MAX_GROUPS];
        if (type == MU_IQ4_XS && b % 8 == 0) {
            MU_UNROLL
            for (int g = 0; g < G; g++) d256[g] = load_f16(p + (size_t)g * a->w_group);
            p += mu_packed_head_bytes(type);
        }
        prefetch(a, p, mu_packed_block_bytes(type), G);
        MU_UNROLL
        for (int g = 0; g < G; g++) {
            const uint8_t *pg = p + (size_t)g * a->w_group;
            d[g] = type == MU_IQ4_XS  ? _mm512_mul_ps(d256[g], _mm512_cvtepi32_ps(load_s8(pg)))
                   : type == MU_MXFP4 ? load_e8m0(pg)
                                      : load_f16(pg);
        }
        sums_from_a(a, thin, b, sum, G, T);
        dot_nibbles(a, type, thin, p + mu_packed_scale_bytes(type), b, sum, G, T);
        add_scaled_sums(a, thin, b, d, sum, acc, G, T);
    }
    acc_store(a, acc, G, T);
}

MU_INLINE void tile_bytes(const struct tile *a, uint32_t type, bool thin, int G, int T)
{
    const bool cut = G * T <= MAX_CUT;
    tile_floats acc;
    acc_load(a, acc, G, T);
    const uint8_t *p = a->w;
    for (int b = 0; b < a->n_block; b++, p += mu_packed_block_bytes(type)) {
        tile_sums sum, odd;
        __m512 d[MAX_GROUPS];
        prefetch(a, p, mu_packed_block_bytes(type), G);
        MU_UNROLL
        for (int g = 0; g < G; g++) d[g] = load_f16(p + (size_t)g * a->w_group);
        sums_from_a(a, thin, b, sum, G, T);
        if (cut) sums_zero(odd, G, T);
        MU_UNROLL
        for (int k = 0; k < 8; k++) {
            __m512i w[MAX_GROUPS];
            MU_UNROLL
            for (int g = 0; g < G; g++) w[g] = _mm512_loadu_si512(p + (size_t)g * a->w_group + 32 + 64 * k);
            dot_four(a, thin, w, (size_t)b * 32 + 4 * (size_t)k, cut && k % 2 ? odd : sum, G, T);
        }
        if (cut) sums_join(sum, odd, G, T);
        add_scaled_sums(a, thin, b, d, sum, acc, G, T);
    }
    acc_store(a, acc, G, T);
}

MU_INLINE void tile_lowered(const struct tile *a, uint32_t type, bool thin, int G, int T)
{
    const bool k_quant = mu_packed_head_bytes(type) != 0;
    tile_floats acc;
    acc_load(a, acc, G, T);
    const uint8_t *p = a->w;
    __m512 d256[MAX_GROUPS], dmin256[MAX_GROUPS];
    floats_zero(d256, G);
    floats_zero(dmin256, G);
    for (int b = 0; b < a->n_block; b++, p += mu_packed_block_bytes(type)) {
        tile_sums sum;
        __m512 d[MAX_GROUPS], m[MAX_GROUPS];
        if (k_quant && b % 8 == 0) {
            MU_UNROLL
            for (int g = 0; g < G; g++) {
                d256[g] = load_f16(p + (size_t)g * a->w_group);
                dmin256[g] = load_f16(p + (size_t)g * a->w_group + 32);
            }
            p += mu_packed_head_bytes(type);
        }
        prefetch(a, p, mu_packed_block_bytes(type), G);
        sums_zero(sum, G, T);
        dot_nibbles(a, type, thin, p + mu_packed_scale_bytes(type), b, sum, G, T);
        MU_UNROLL
        for (int g = 0; g < G; g++) {
            const uint8_t *pg = p + (size_t)g * a->w_group;
            d[g] = k_quant ? _mm512_mul_ps(d256[g], _mm512_cvtepi32_ps(load_u8(pg))) : load_f16(pg);
            m[g] = k_quant ? _mm512_mul_ps(dmin256[g], _mm512_cvtepi32_ps(load_u8(pg + 16))) : load_f16(pg + 32);
        }
        MU_UNROLL
        for (int t = 0; t < T; t++) {
            __m512 s = bcast_s(a, thin, t, b), total = _mm512_castsi512_ps(bcast_a(a, thin, t, b));
            MU_UNROLL
            for (int g = 0; g < G; g++) {
                acc[g][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[g][t]), _mm512_mul_ps(d[g], s), acc[g][t]);
                acc[g][t] =
                    k_quant ? _mm512_fnmadd_ps(m[g], total, acc[g][t]) : _mm512_fmadd_ps(m[g], total, acc[g][t]);
            }
        }
    }
    acc_store(a, acc, G, T);
}

/* J = sc0·I0 + sc1·I1 in f32, and Z = m0·S0 + m1·S1: every partial result is an integer under 2^24, so exact. */
MU_INLINE void tile_halves(const struct tile *a, uint32_t type, bool thin, int G, int T)
{
    const __m512i low4 = _mm512_set1_epi32(15);
    tile_floats acc;
    __m512 d[MAX_GROUPS], dmin[MAX_GROUPS], m[2][MAX_GROUPS];
    floats_zero(d, G);
    floats_zero(dmin, G);
    floats_zero(m[0], G);
    floats_zero(m[1], G);
    acc_load(a, acc, G, T);
    const uint8_t *p = a->w;
    for (int b = 0; b < a->n_block; b++, p += mu_packed_block_bytes(type)) {
        tile_floats joint;
        if (b % 8 == 0) {
            MU_UNROLL
            for (int g = 0; g < G; g++) {
                d[g] = load_f16(p + (size_t)g * a->w_group);
                if (type == MU_Q2_K) dmin[g] = load_f16(p + (size_t)g * a->w_group + 32);
            }
            p += mu_packed_head_bytes(type);
        }
        prefetch(a, p, mu_packed_block_bytes(type), G);
        MU_UNROLL
        for (int h = 0; h < 2; h++) {
            tile_sums sum;
            __m512 sc[MAX_GROUPS];
            MU_UNROLL
            for (int t = 0; t < T; t++) {
                __m512i from = type == MU_Q2_K ? _mm512_setzero_si512()
                               : h             ? bcast_b(a, thin, t, b)
                                               : bcast_a(a, thin, t, b);
                MU_UNROLL
                for (int g = 0; g < G; g++) sum[g][t] = from;
            }
            MU_UNROLL
            for (int k = 0; k < 4; k++) {
                __m512i w[MAX_GROUPS];
                MU_UNROLL
                for (int g = 0; g < G; g++)
                    w[g] = codes_of_half(type, p + (size_t)g * a->w_group + mu_packed_scale_bytes(type), h, k);
                dot_four(a, thin, w, (size_t)b * 32 + 16 * (size_t)h + 4 * (size_t)k, sum, G, T);
            }
            MU_UNROLL
            for (int g = 0; g < G; g++) {
                __m512i scales = load_s8(p + (size_t)g * a->w_group + 16 * h);
                if (type == MU_Q2_K) {
                    m[h][g] = _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(scales, 4), low4));
                    scales = _mm512_and_si512(scales, low4);
                }
                sc[g] = _mm512_cvtepi32_ps(scales);
            }
            MU_UNROLL
            for (int t = 0; t < T; t++) {
                MU_UNROLL
                for (int g = 0; g < G; g++) {
                    __m512 f = _mm512_cvtepi32_ps(sum[g][t]);
                    joint[g][t] = h ? _mm512_fmadd_ps(f, sc[g], joint[g][t]) : _mm512_mul_ps(f, sc[g]);
                }
            }
        }
        MU_UNROLL
        for (int t = 0; t < T; t++) {
            __m512 s = bcast_s(a, thin, t, b);
            MU_UNROLL
            for (int g = 0; g < G; g++) {
                acc[g][t] = _mm512_fmadd_ps(joint[g][t], _mm512_mul_ps(d[g], s), acc[g][t]);
                if (type != MU_Q2_K) continue;
                __m512 z = _mm512_mul_ps(m[0][g], _mm512_castsi512_ps(bcast_a(a, thin, t, b)));
                z = _mm512_fmadd_ps(m[1][g], _mm512_castsi512_ps(bcast_b(a, thin, t, b)), z);
                acc[g][t] = _mm512_fnmadd_ps(z, _mm512_mul_ps(dmin[g], s), acc[g][t]);
            }
        }
    }
    acc_store(a, acc, G, T);
}

#endif
