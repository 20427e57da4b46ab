/* C2 with AVX2: Q4_0, Q8_0, Q4_K, Q6_K.
 *
 * A tile is 16 rows (two vectors of 8) × T tokens, all columns. maddubs multiplies unsigned codes with signed
 * activations into sums of two, in 16 bits, and saturates; nothing here ever reaches that:
 *   nibbles   |sum of 2| ≤ 2·15·127 = 3,810: all 8 steps of a block add up to at most 30,480 before they are widened
 *   6 bits    ≤ 2·63·127 = 16,002: two steps, 32,004
 *   8 bits    |w| unsigned against x with w's sign: ≤ 2·128·127 = 32,512: widened every step */
#include <immintrin.h>
#include <string.h>

#include "kernels/parts.h"
#include "kernels/x86/layout.h"

enum { MAX_TILE = 4 };

struct tile {
    const uint8_t *w;
    int n_block;
    const int8_t *q; /* of the tile's first token, as are s and sum */
    const float *s;
    const int16_t *sum;
    float *out;
    size_t out_stride;
    int rows; /* of the 16, that exist */
};

typedef void tile_fn(const struct tile *a);

MU_INLINE __m256i load(const uint8_t *p)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)p);
}
MU_INLINE __m256i bcast_q(const struct tile *a, int t, int b, int c)
{
    int32_t v;
    memcpy(&v, a->q + ((size_t)t * (size_t)a->n_block + (size_t)b) * MU_Q_BLOCK + c, sizeof v);
    return _mm256_set1_epi32(v);
}
MU_INLINE __m256 bcast_s(const struct tile *a, int t, int b)
{
    return _mm256_broadcast_ss(a->s + (size_t)t * (size_t)a->n_block + (size_t)b);
}
/* f0·S0 + f1·S1 in every lane */
MU_INLINE __m256i bcast_sums(const struct tile *a, int t, int b, int16_t f0, int16_t f1)
{
    int32_t halves;
    memcpy(&halves, a->sum + 2 * ((size_t)t * (size_t)a->n_block + (size_t)b), sizeof halves);
    return _mm256_madd_epi16(_mm256_set1_epi32(halves),
                             _mm256_set1_epi32((int32_t)((uint32_t)f1 << 16 | (uint16_t)f0)));
}

MU_INLINE void load_f16(const uint8_t *p, __m256 *d)
{
    for (int i = 0; i < 2; i++) d[i] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p + 16 * i)));
}
MU_INLINE __m256 load_u8(const uint8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}
MU_INLINE __m256i load_s8(const uint8_t *p)
{
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p));
}
MU_INLINE __m256i widen(__m256i sums16)
{
    return _mm256_madd_epi16(sums16, _mm256_set1_epi16(1));
}

MU_INLINE void acc_zero(__m256 acc[][2], int T)
{
    MU_UNROLL
    for (int t = 0; t < T; t++) acc[t][0] = acc[t][1] = _mm256_setzero_ps();
}
MU_INLINE void acc_store(const struct tile *a, __m256 acc[][2], int T)
{
    MU_UNROLL
    for (int t = 0; t < T; t++) {
        float *out = a->out + (size_t)t * a->out_stride;
        if (a->rows == MU_ROW_GROUP) {
            _mm256_storeu_ps(out, acc[t][0]);
            _mm256_storeu_ps(out + 8, acc[t][1]);
        } else {
            float row[MU_ROW_GROUP];
            _mm256_storeu_ps(row, acc[t][0]);
            _mm256_storeu_ps(row + 8, acc[t][1]);
            memcpy(out, row, (size_t)a->rows * sizeof *row);
        }
    }
}

/* sum[t][half] = 32 nibble columns · q, widened. */
MU_INLINE void dot_nibbles(const struct tile *a, const uint8_t *p, int b, __m256i sum[][2], int T)
{
    const __m256i low4 = _mm256_set1_epi8(15);
    MU_UNROLL
    for (int k = 0; k < 8; k++) {
        __m256i w[2];
        MU_UNROLL
        for (int i = 0; i < 2; i++) {
            __m256i v = load(p + 64 * (k & 3) + 32 * i);
            w[i] = _mm256_and_si256(k < 4 ? v : _mm256_srli_epi16(v, 4), low4);
        }
        MU_UNROLL
        for (int t = 0; t < T; t++) {
            __m256i q = bcast_q(a, t, b, 4 * k);
            MU_UNROLL
            for (int i = 0; i < 2; i++) {
                __m256i s = _mm256_maddubs_epi16(w[i], q);
                sum[t][i] = k == 0 ? s : _mm256_add_epi16(sum[t][i], s);
            }
        }
    }
    MU_UNROLL
    for (int t = 0; t < T; t++) {
        sum[t][0] = widen(sum[t][0]);
        sum[t][1] = widen(sum[t][1]);
    }
}

/* acc = fmaf((float)(sum + offset), fl(d·s), acc), of one token */
MU_INLINE void accumulate(const struct tile *a, int t, int b, const __m256i *sum, __m256i offset, const __m256 *d,
                          __m256 *acc)
{
    __m256 s = bcast_s(a, t, b);
    MU_UNROLL
    for (int i = 0; i < 2; i++)
        acc[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_add_epi32(sum[i], offset)), _mm256_mul_ps(d[i], s), acc[i]);
}

MU_INLINE void tile_q4_0(const struct tile *a, int T)
{
    __m256 acc[MAX_TILE][2], d[2];
    acc_zero(acc, T);
    const uint8_t *p = a->w;
    for (int b = 0; b < a->n_block; b++, p += MU_Q4_0_BLOCK) {
        __m256i sum[MAX_TILE][2];
        dot_nibbles(a, p + 32, b, sum, T);
        load_f16(p, d);
        MU_UNROLL
        for (int t = 0; t < T; t++) accumulate(a, t, b, sum[t], bcast_sums(a, t, b, -8, -8), d, acc[t]);
    }
    acc_store(a, acc, T);
}

MU_INLINE void tile_q8_0(const struct tile *a, int T)
{
    const __m256i flip = _mm256_set1_epi8((char)0x80);
    __m256 acc[MAX_TILE][2], d[2];
    acc_zero(acc, T);
    const uint8_t *p = a->w;
    for (int b = 0; b < a->n_block; b++, p += MU_Q8_0_BLOCK) {
        __m256i sum[MAX_TILE][2];
        MU_UNROLL
        for (int k = 0; k < 8; k++) {
            __m256i w[2], abs[2];
            MU_UNROLL
            for (int i = 0; i < 2; i++) {
                w[i] = _mm256_xor_si256(load(p + 32 + 64 * k + 32 * i), flip);
                abs[i] = _mm256_abs_epi8(w[i]);
            }
            MU_UNROLL
            for (int t = 0; t < T; t++) {
                __m256i q = bcast_q(a, t, b, 4 * k);
                MU_UNROLL
                for (int i = 0; i < 2; i++) {
                    __m256i s = widen(_mm256_maddubs_epi16(abs[i], _mm256_sign_epi8(q, w[i])));
                    sum[t][i] = k == 0 ? s : _mm256_add_epi32(sum[t][i], s);
                }
            }
        }
        load_f16(p, d);
        MU_UNROLL
        for (int t = 0; t < T; t++) accumulate(a, t, b, sum[t], _mm256_setzero_si256(), d, acc[t]);
    }
    acc_store(a, acc, T);
}

MU_INLINE void tile_q4_k(const struct tile *a, int T)
{
    __m256 acc[MAX_TILE][2], d256[2], dmin256[2];
    acc_zero(acc, T);
    d256[0] = d256[1] = dmin256[0] = dmin256[1] = _mm256_setzero_ps();
    const uint8_t *p = a->w;
    for (int b = 0; b < a->n_block; b++, p += MU_Q4_K_BLOCK) {
        __m256i sum[MAX_TILE][2];
        __m256 d[2], m[2];
        if (b % 8 == 0) {
            load_f16(p, d256);
            load_f16(p + 32, dmin256);
            p += MU_Q4_K_HEAD;
        }
        dot_nibbles(a, p + 32, b, sum, T);
        MU_UNROLL
        for (int i = 0; i < 2; i++) {
            d[i] = _mm256_mul_ps(d256[i], load_u8(p + 8 * i));
            m[i] = _mm256_mul_ps(dmin256[i], load_u8(p + 16 + 8 * i));
        }
        MU_UNROLL
        for (int t = 0; t < T; t++) {
            accumulate(a, t, b, sum[t], _mm256_setzero_si256(), d, acc[t]);
            __m256 total = _mm256_mul_ps(_mm256_cvtepi32_ps(bcast_sums(a, t, b, 1, 1)), bcast_s(a, t, b));
            MU_UNROLL
            for (int i = 0; i < 2; i++) acc[t][i] = _mm256_fnmadd_ps(m[i], total, acc[t][i]);
        }
    }
    acc_store(a, acc, T);
}

/* Codes of columns 16h + 4k … 16h + 4k + 3 of 8 rows: the nibbles at p, bits 4 and 5 from `high`. */
MU_INLINE __m256i codes_q6_k(const uint8_t *p, __m256i high, int h, int k)
{
    __m256i v = load(p);
    __m256i low = _mm256_and_si256(h ? _mm256_srli_epi16(v, 4) : v, _mm256_set1_epi8(15));
    __m256i top = k == 0   ? _mm256_slli_epi16(high, 4)
                  : k == 1 ? _mm256_slli_epi16(high, 2)
                  : k == 2 ? high
                           : _mm256_srli_epi16(high, 2);
    return _mm256_or_si256(low, _mm256_and_si256(top, _mm256_set1_epi8(0x30)));
}

MU_INLINE void tile_q6_k(const struct tile *a, int T)
{
    __m256 acc[MAX_TILE][2], d[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    acc_zero(acc, T);
    const uint8_t *p = a->w;
    for (int b = 0; b < a->n_block; b++, p += MU_Q6_K_BLOCK) {
        __m256i joint[MAX_TILE][2];
        if (b % 8 == 0) {
            load_f16(p, d);
            p += MU_Q6_K_HEAD;
        }
        MU_UNROLL
        for (int h = 0; h < 2; h++) {
            __m256i sum[MAX_TILE][2], part[MAX_TILE][2];
            MU_UNROLL
            for (int k = 0; k < 4; k++) {
                __m256i w[2];
                MU_UNROLL
                for (int i = 0; i < 2; i++)
                    w[i] = codes_q6_k(p + 32 + 64 * k + 32 * i, load(p + 288 + 64 * h + 32 * i), h, k);
                MU_UNROLL
                for (int t = 0; t < T; t++) {
                    __m256i q = bcast_q(a, t, b, 16 * h + 4 * k);
                    MU_UNROLL
                    for (int i = 0; i < 2; i++) {
                        __m256i s = _mm256_maddubs_epi16(w[i], q);
                        if (k % 2 == 0) {
                            part[t][i] = s;
                        } else {
                            s = widen(_mm256_add_epi16(part[t][i], s));
                            sum[t][i] = k == 1 ? s : _mm256_add_epi32(sum[t][i], s);
                        }
                    }
                }
            }
            MU_UNROLL
            for (int t = 0; t < T; t++) {
                __m256i offset = bcast_sums(a, t, b, h ? 0 : -32, h ? -32 : 0);
                MU_UNROLL
                for (int i = 0; i < 2; i++) {
                    __m256i j = _mm256_mullo_epi32(_mm256_add_epi32(sum[t][i], offset), load_s8(p + 16 * h + 8 * i));
                    joint[t][i] = h ? _mm256_add_epi32(joint[t][i], j) : j;
                }
            }
        }
        MU_UNROLL
        for (int t = 0; t < T; t++) accumulate(a, t, b, joint[t], _mm256_setzero_si256(), d, acc[t]);
    }
    acc_store(a, acc, T);
}

#define TILE(type, T)                            \
    static void type##_##T(const struct tile *a) \
    {                                            \
        tile_##type(a, T);                       \
    }
#define TILES(type) \
    TILE(type, 1)   \
    TILE(type, 2)   \
    TILE(type, 3)   \
    TILE(type, 4) static tile_fn *const tiles_##type[MAX_TILE + 1] = {NULL, type##_1, type##_2, type##_3, type##_4};
TILES(q4_0)
TILES(q8_0)
TILES(q4_k)
TILES(q6_k)

void mu_avx2_matmul_int8(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out, size_t stride)
{
    tile_fn *const *fn = m->type == MU_Q4_0   ? tiles_q4_0
                         : m->type == MU_Q8_0 ? tiles_q8_0
                         : m->type == MU_Q4_K ? tiles_q4_k
                                              : tiles_q6_k;
    size_t group_bytes = mu_x86_group_bytes(m->type, m->n_col), n_block = (size_t)m->n_col / MU_Q_BLOCK;
    int n_tile = (x->n_tok + MAX_TILE - 1) / MAX_TILE; /* as equal as can be */
    for (int r = row0; r < row1; r += MU_ROW_GROUP) {
        struct tile a = {.w = (const uint8_t *)m->data + (size_t)(r / MU_ROW_GROUP) * group_bytes,
                         .n_block = (int)n_block,
                         .out_stride = stride,
                         .rows = row1 - r < MU_ROW_GROUP ? row1 - r : MU_ROW_GROUP};
        for (int i = 0; i < n_tile; i++) {
            size_t t = (size_t)((int64_t)i * x->n_tok / n_tile), end = (size_t)((int64_t)(i + 1) * x->n_tok / n_tile);
            a.q = x->q + t * n_block * MU_Q_BLOCK;
            a.s = x->s + t * n_block;
            a.sum = x->sum + 2 * t * n_block;
            a.out = out + t * stride + r;
            fn[end - t](&a);
        }
    }
}
