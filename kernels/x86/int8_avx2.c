/* C2 with AVX2.
 *
 * A tile is 16 rows (two vectors of 8) × T tokens, all columns; its forms are those of tiles_avx512.c. maddubs
 * multiplies unsigned codes with signed activations into sums of two, in 16 bits, and saturates; nothing here ever
 * reaches that:
 *   nibbles   |sum of 2| ≤ 2·15·127 = 3,810: all 8 steps of a block add up to at most 30,480 before they are widened
 *   5 bits    ≤ 2·31·127 = 7,874: four steps, 31,496 (so MXFP4, whose values are 0 … 24 with its offset)
 *   6 bits    ≤ 2·63·127 = 16,002: two steps, 32,004
 *   8 bits    |w| unsigned against x with w's sign: ≤ 2·128·127 = 32,512: widened every step (so IQ4) */
#include <immintrin.h>
#include <string.h>

#include "kernels/blocks.h"
#include "kernels/parts.h"
#include "kernels/x86/layout.h"

enum {
    MAX_TILE = 4,
    FAR_BYTES = 16384, /* how far ahead a lone tile on Intel's processors prefetches into the L2 */
    NEAR_BYTES = 2048  /* and into the L1 */
};

struct tile {
    const uint8_t *w;
    int n_block;
    const int8_t *q; /* of the tile's first token, as are s and sum */
    const float *s;
    const int16_t *sum;
    float *out;
    size_t out_stride;
    int rows;   /* of the 16, that exist */
    bool ahead; /* prefetch weights */
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

/* Intel's own prefetcher alone brings one token's weights at 0.54 to 0.66 of a plain read's speed (Emerald Rapids), so at
 * 0.89 to 0.95; AMD's needs no help there. */
MU_INLINE void prefetch(const struct tile *a, const uint8_t *p, int bytes)
{
    if (!a->ahead) return;
    MU_UNROLL
    for (int i = 0; i < bytes; i += 64) {
        _mm_prefetch((const char *)(p + FAR_BYTES + i), _MM_HINT_T1);
        _mm_prefetch((const char *)(p + NEAR_BYTES + i), _MM_HINT_T0);
    }
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

MU_INLINE bool has_fifth_bit(uint32_t type)
{
    return type == MU_Q5_0 || type == MU_Q5_1 || type == MU_Q5_K;
}
MU_INLINE bool is_iq4(uint32_t type)
{
    return type == MU_IQ4_NL || type == MU_IQ4_XS;
}

/* `which` is 0 … 7: bit `which` of every byte to bit 4 (or 2). */
MU_INLINE __m256i bit_to(__m256i bits, int which, int to)
{
    return which < to ? _mm256_slli_epi16(bits, to - which) : _mm256_srli_epi16(bits, which - to);
}
MU_INLINE __m256i look_up(const int8_t *values, __m256i nibbles)
{
    __m128i table = _mm_loadu_si128((const __m128i *)(const void *)values);
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), nibbles);
}

/* Codes of columns 4k … 4k+3 of 8 rows, i of 2; IQ4's and MXFP4's are signed values, MXFP4's plus 12. */
MU_INLINE __m256i codes_of(uint32_t type, const uint8_t *p, int k, int i)
{
    __m256i v = load(p + 64 * (k & 3) + 32 * i);
    v = _mm256_and_si256(k < 4 ? v : _mm256_srli_epi16(v, 4), _mm256_set1_epi8(15));
    if (has_fifth_bit(type))
        v = _mm256_or_si256(v, _mm256_and_si256(bit_to(load(p + 256 + 32 * i), k, 4), _mm256_set1_epi8(16)));
    if (is_iq4(type)) v = look_up(mu_iq4_values, v);
    if (type == MU_MXFP4) v = _mm256_add_epi8(look_up(mu_mxfp4_values, v), _mm256_set1_epi8(12));
    return v;
}

/* sum[t][half] = 32 columns in nibbles · q, widened. */
MU_INLINE void dot_nibbles(const struct tile *a, uint32_t type, const uint8_t *p, int b, __m256i sum[][2], int T)
{
    const int run = is_iq4(type) ? 1 : has_fifth_bit(type) || type == MU_MXFP4 ? 4 : 8; /* steps before a widening */
    __m256i part[MAX_TILE][2];
    MU_UNROLL
    for (int k = 0; k < 8; k++) {
        __m256i w[2], abs[2];
        MU_UNROLL
        for (int i = 0; i < 2; i++) {
            w[i] = codes_of(type, p, k, i);
            abs[i] = is_iq4(type) ? _mm256_abs_epi8(w[i]) : w[i];
        }
        MU_UNROLL
        for (int t = 0; t < T; t++) {
            __m256i q = bcast_q(a, t, b, 4 * k);
            MU_UNROLL
            for (int i = 0; i < 2; i++) {
                __m256i s = _mm256_maddubs_epi16(abs[i], is_iq4(type) ? _mm256_sign_epi8(q, w[i]) : q);
                part[t][i] = k % run == 0 ? s : _mm256_add_epi16(part[t][i], s);
                if (k % run != run - 1) continue;
                s = widen(part[t][i]);
                sum[t][i] = k < run ? s : _mm256_add_epi32(sum[t][i], s);
            }
        }
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

/* 2^(e-128), see tiles_avx512.c. */
MU_INLINE __m256 load_e8m0(const uint8_t *p)
{
    __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p));
    __m256i bits = _mm256_max_epi32(_mm256_slli_epi32(e, 23), _mm256_set1_epi32(0x00400000));
    return _mm256_mul_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(0.5f));
}

MU_INLINE void tile_scaled(const struct tile *a, uint32_t type, int T)
{
    const int16_t offset = type == MU_Q4_0 ? -8 : type == MU_Q5_0 ? -16 : type == MU_MXFP4 ? -12 : 0;
    __m256 acc[MAX_TILE][2], d[2], d256[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    acc_zero(acc, T);
    const uint8_t *p = a->w;
    for (int b = 0; b < a->n_block; b++, p += mu_packed_block_bytes(type)) {
        __m256i sum[MAX_TILE][2];
        if (type == MU_IQ4_XS && b % 8 == 0) {
            load_f16(p, d256);
            p += mu_packed_head_bytes(type);
        }
        prefetch(a, p, mu_packed_block_bytes(type));
        dot_nibbles(a, type, p + mu_packed_scale_bytes(type), b, sum, T);
        if (type != MU_IQ4_XS && type != MU_MXFP4) load_f16(p, d);
        MU_UNROLL
        for (int i = 0; i < 2; i++) {
            if (type == MU_IQ4_XS) d[i] = _mm256_mul_ps(d256[i], _mm256_cvtepi32_ps(load_s8(p + 8 * i)));
            if (type == MU_MXFP4) d[i] = load_e8m0(p + 8 * i);
        }
        MU_UNROLL
        for (int t = 0; t < T; t++) accumulate(a, t, b, sum[t], bcast_sums(a, t, b, offset, offset), d, acc[t]);
    }
    acc_store(a, acc, T);
}

MU_INLINE void tile_bytes(const struct tile *a, uint32_t type, int T)
{
    const __m256i flip = _mm256_set1_epi8((char)0x80);
    __m256 acc[MAX_TILE][2], d[2];
    acc_zero(acc, T);
    const uint8_t *p = a->w;
    for (int b = 0; b < a->n_block; b++, p += mu_packed_block_bytes(type)) {
        __m256i sum[MAX_TILE][2];
        prefetch(a, p, mu_packed_block_bytes(type));
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

MU_INLINE void tile_lowered(const struct tile *a, uint32_t type, int T)
{
    const bool k_quant = mu_packed_head_bytes(type) != 0;
    __m256 acc[MAX_TILE][2], d256[2], dmin256[2];
    acc_zero(acc, T);
    d256[0] = d256[1] = dmin256[0] = dmin256[1] = _mm256_setzero_ps();
    const uint8_t *p = a->w;
    for (int b = 0; b < a->n_block; b++, p += mu_packed_block_bytes(type)) {
        __m256i sum[MAX_TILE][2];
        __m256 d[2], m[2];
        if (k_quant && b % 8 == 0) {
            load_f16(p, d256);
            load_f16(p + 32, dmin256);
            p += mu_packed_head_bytes(type);
        }
        prefetch(a, p, mu_packed_block_bytes(type));
        dot_nibbles(a, type, p + mu_packed_scale_bytes(type), b, sum, T);
        if (!k_quant) {
            load_f16(p, d);
            load_f16(p + 32, m);
        }
        MU_UNROLL
        for (int i = 0; i < 2 && k_quant; i++) {
            d[i] = _mm256_mul_ps(d256[i], load_u8(p + 8 * i));
            m[i] = _mm256_mul_ps(dmin256[i], load_u8(p + 16 + 8 * i));
        }
        MU_UNROLL
        for (int t = 0; t < T; t++) {
            accumulate(a, t, b, sum[t], _mm256_setzero_si256(), d, acc[t]);
            __m256 total = _mm256_mul_ps(_mm256_cvtepi32_ps(bcast_sums(a, t, b, 1, 1)), bcast_s(a, t, b));
            MU_UNROLL
            for (int i = 0; i < 2; i++)
                acc[t][i] =
                    k_quant ? _mm256_fnmadd_ps(m[i], total, acc[t][i]) : _mm256_fmadd_ps(m[i], total, acc[t][i]);
        }
    }
    acc_store(a, acc, T);
}

/* Codes of columns 16h + 4k … 16h + 4k + 3 of 8 rows, i of 2, of a block whose codes lie at p. */
MU_INLINE __m256i codes_of_half(uint32_t type, const uint8_t *p, int h, int k, int i)
{
    __m256i two = load(p + (type == MU_Q6_K ? 256 : 0) + 64 * h + 32 * i);
    if (type == MU_Q6_K) {
        __m256i v = load(p + 64 * k + 32 * i);
        __m256i low = _mm256_and_si256(h ? _mm256_srli_epi16(v, 4) : v, _mm256_set1_epi8(15));
        __m256i top = k == 0   ? _mm256_slli_epi16(two, 4)
                      : k == 1 ? _mm256_slli_epi16(two, 2)
                      : k == 2 ? two
                               : _mm256_srli_epi16(two, 2);
        return _mm256_or_si256(low, _mm256_and_si256(top, _mm256_set1_epi8(0x30)));
    }
    __m256i low = _mm256_and_si256(_mm256_srli_epi16(two, 2 * k), _mm256_set1_epi8(3));
    if (type == MU_Q2_K) return low;
    __m256i third = bit_to(load(p + 128 + 32 * i), 4 * h + k, 2);
    return _mm256_or_si256(low, _mm256_and_si256(third, _mm256_set1_epi8(4)));
}

MU_INLINE void tile_halves(const struct tile *a, uint32_t type, int T)
{
    const int16_t offset = type == MU_Q6_K ? -32 : type == MU_Q3_K ? -4 : 0;
    const __m256i low4 = _mm256_set1_epi32(15);
    __m256 acc[MAX_TILE][2], d[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()}, dmin[2] = {d[0], d[0]};
    acc_zero(acc, T);
    const uint8_t *p = a->w;
    for (int b = 0; b < a->n_block; b++, p += mu_packed_block_bytes(type)) {
        __m256i joint[MAX_TILE][2], low_sum[MAX_TILE][2];
        if (b % 8 == 0) {
            load_f16(p, d);
            if (type == MU_Q2_K) load_f16(p + 32, dmin);
            p += mu_packed_head_bytes(type);
        }
        prefetch(a, p, mu_packed_block_bytes(type));
        MU_UNROLL
        for (int h = 0; h < 2; h++) {
            __m256i sum[MAX_TILE][2], part[MAX_TILE][2];
            MU_UNROLL
            for (int k = 0; k < 4; k++) {
                __m256i w[2];
                MU_UNROLL
                for (int i = 0; i < 2; i++) w[i] = codes_of_half(type, p + mu_packed_scale_bytes(type), h, k, i);
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
                __m256i shift = bcast_sums(a, t, b, h ? 0 : offset, h ? offset : 0);
                MU_UNROLL
                for (int i = 0; i < 2; i++) {
                    __m256i scale = load_s8(p + 16 * h + 8 * i);
                    if (type == MU_Q2_K) { /* Z, while the byte is at hand */
                        __m256i m = _mm256_and_si256(_mm256_srli_epi32(scale, 4), low4);
                        __m256i z = _mm256_mullo_epi32(bcast_sums(a, t, b, h ? 0 : 1, h ? 1 : 0), m);
                        low_sum[t][i] = h ? _mm256_add_epi32(low_sum[t][i], z) : z;
                        scale = _mm256_and_si256(scale, low4);
                    }
                    __m256i j = _mm256_mullo_epi32(_mm256_add_epi32(sum[t][i], shift), scale);
                    joint[t][i] = h ? _mm256_add_epi32(joint[t][i], j) : j;
                }
            }
        }
        MU_UNROLL
        for (int t = 0; t < T; t++) {
            accumulate(a, t, b, joint[t], _mm256_setzero_si256(), d, acc[t]);
            MU_UNROLL
            for (int i = 0; i < 2 && type == MU_Q2_K; i++)
                acc[t][i] = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(low_sum[t][i]),
                                             _mm256_mul_ps(dmin[i], bcast_s(a, t, b)), acc[t][i]);
        }
    }
    acc_store(a, acc, T);
}

#define TILE(name, form, type, T)                \
    static void name##_##T(const struct tile *a) \
    {                                            \
        tile_##form(a, type, T);                 \
    }
#define TILES(name, form, type) \
    TILE(name, form, type, 1) TILE(name, form, type, 2) TILE(name, form, type, 3) TILE(name, form, type, 4)
TILES(q4_0, scaled, MU_Q4_0)
TILES(q5_0, scaled, MU_Q5_0)
TILES(iq4_nl, scaled, MU_IQ4_NL)
TILES(iq4_xs, scaled, MU_IQ4_XS)
TILES(mxfp4, scaled, MU_MXFP4)
TILES(q8_0, bytes, MU_Q8_0)
TILES(q4_1, lowered, MU_Q4_1)
TILES(q5_1, lowered, MU_Q5_1)
TILES(q4_k, lowered, MU_Q4_K)
TILES(q5_k, lowered, MU_Q5_K)
TILES(q6_k, halves, MU_Q6_K)
TILES(q3_k, halves, MU_Q3_K)
TILES(q2_k, halves, MU_Q2_K)

#define LIST(name)                                   \
    {                                                \
        NULL, name##_1, name##_2, name##_3, name##_4 \
    }
static tile_fn *const tiles[MU_TYPE_LIMIT][MAX_TILE + 1] = {
    [MU_Q4_0] = LIST(q4_0),   [MU_Q4_1] = LIST(q4_1), [MU_Q5_0] = LIST(q5_0),     [MU_Q5_1] = LIST(q5_1),
    [MU_Q8_0] = LIST(q8_0),   [MU_Q2_K] = LIST(q2_k), [MU_Q3_K] = LIST(q3_k),     [MU_Q4_K] = LIST(q4_k),
    [MU_Q5_K] = LIST(q5_k),   [MU_Q6_K] = LIST(q6_k), [MU_IQ4_NL] = LIST(iq4_nl), [MU_IQ4_XS] = LIST(iq4_xs),
    [MU_MXFP4] = LIST(mxfp4),
};

void mu_avx2_matmul_int8(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out, size_t stride)
{
    tile_fn *const *fn = tiles[m->type];
    size_t group_bytes = mu_packed_group_bytes(m->type, m->n_col), n_block = (size_t)m->n_col / MU_Q_BLOCK;
    int n_tile = (x->n_tok + MAX_TILE - 1) / MAX_TILE; /* as equal as can be */
    for (int r = row0; r < row1; r += MU_ROW_GROUP) {
        struct tile a = {.w = (const uint8_t *)m->data + (size_t)(r / MU_ROW_GROUP) * group_bytes,
                         .n_block = (int)n_block,
                         .out_stride = stride,
                         .rows = row1 - r < MU_ROW_GROUP ? row1 - r : MU_ROW_GROUP,
                         .ahead = n_tile == 1 && mu_x86_intel()};
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
