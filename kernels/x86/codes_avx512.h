/* What a packed block's bytes mean, with AVX-512: scales as floats and codes as unsigned bytes, for the tiles of VNNI
 * (tiles_avx512.c) and of AMX (int8_amx.c). layout.h has the layout. Private to kernels/x86/. */
#ifndef MU_KERNELS_X86_CODES_AVX512_H
#define MU_KERNELS_X86_CODES_AVX512_H

#include <immintrin.h>

#include "kernels/blocks.h"
#include "kernels/x86/layout.h"

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

/* 2^(e-128): the exponent's field is 2^(e-127), and from e = 0, which has none, the bits of 2^-127; halving is exact. */
MU_INLINE __m512 load_e8m0(const uint8_t *p)
{
    __m512i bits = _mm512_max_epi32(_mm512_slli_epi32(load_u8(p), 23), _mm512_set1_epi32(0x00400000));
    return _mm512_mul_ps(_mm512_castsi512_ps(bits), _mm512_set1_ps(0.5f));
}

MU_INLINE bool has_fifth_bit(uint32_t type)
{
    return type == MU_Q5_0 || type == MU_Q5_1 || type == MU_Q5_K;
}

/* Nibbles stand for values; here those plus the family's offset, as unsigned bytes. */
#define LIFT(offset, ...) LIFT_(offset, __VA_ARGS__)
#define LIFT_(o, a, b, c, d, e, f, g, h, i, j, k, l, m, n, p, q)                                                      \
    {                                                                                                                 \
        (uint8_t)((a) + (o)), (uint8_t)((b) + (o)), (uint8_t)((c) + (o)), (uint8_t)((d) + (o)), (uint8_t)((e) + (o)), \
            (uint8_t)((f) + (o)), (uint8_t)((g) + (o)), (uint8_t)((h) + (o)), (uint8_t)((i) + (o)),                   \
            (uint8_t)((j) + (o)), (uint8_t)((k) + (o)), (uint8_t)((l) + (o)), (uint8_t)((m) + (o)),                   \
            (uint8_t)((n) + (o)), (uint8_t)((p) + (o)), (uint8_t)((q) + (o))                                          \
    }
enum { IQ4_OFFSET = 128, MXFP4_OFFSET = 12 };
static const uint8_t iq4_codes[16] = LIFT(IQ4_OFFSET, MU_IQ4_VALUES);
static const uint8_t mxfp4_codes[16] = LIFT(MXFP4_OFFSET, MU_MXFP4_VALUES);

MU_INLINE bool looks_up(uint32_t type)
{
    return type == MU_IQ4_NL || type == MU_IQ4_XS || type == MU_MXFP4;
}
MU_INLINE __m512i look_up_table(uint32_t type)
{
    const uint8_t *codes = type == MU_MXFP4 ? mxfp4_codes : iq4_codes;
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)codes));
}

/* Bit k of every byte to bit 4. */
MU_INLINE __m512i bit_to_4(__m512i bits, int k)
{
    return k < 4 ? _mm512_slli_epi16(bits, (unsigned)(4 - k)) : _mm512_srli_epi16(bits, (unsigned)(k - 4));
}

/* What decoding the nibbles of one block needs to know. */
struct nibble_key {
    __m512i fifth, table;
};
MU_INLINE struct nibble_key nibble_key(uint32_t type, const uint8_t *p)
{
    struct nibble_key key = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    if (has_fifth_bit(type)) key.fifth = _mm512_loadu_si512(p + 256);
    if (looks_up(type)) key.table = look_up_table(type);
    return key;
}
/* Codes of columns 4k … 4k+3 (lo) and 16+4k … 16+4k+3 (hi) of a block whose codes lie at p. */
MU_INLINE void nibble_codes(uint32_t type, const struct nibble_key *key, const uint8_t *p, int k, __m512i *lo_out,
                            __m512i *hi_out)
{
    const __m512i low4 = _mm512_set1_epi8(15), bit4 = _mm512_set1_epi8(16);
    __m512i w = _mm512_loadu_si512(p + 64 * k);
    __m512i lo = _mm512_and_si512(w, low4), hi = _mm512_and_si512(_mm512_srli_epi16(w, 4), low4);
    if (looks_up(type)) {
        lo = _mm512_shuffle_epi8(key->table, lo);
        hi = _mm512_shuffle_epi8(key->table, hi);
    }
    if (has_fifth_bit(type)) { /* (bit & bit4) | nibble */
        lo = _mm512_ternarylogic_epi32(bit_to_4(key->fifth, k), bit4, lo, 0xEA);
        hi = _mm512_ternarylogic_epi32(bit_to_4(key->fifth, k + 4), bit4, hi, 0xEA);
    }
    *lo_out = lo;
    *hi_out = hi;
}

/* Codes of columns 16h + 4k … 16h + 4k + 3 of a block whose codes lie at p. */
MU_INLINE __m512i codes_of_half(uint32_t type, const uint8_t *p, int h, int k)
{
    const __m512i two = _mm512_loadu_si512(p + (type == MU_Q6_K ? 256 : 0) + 64 * h);
    if (type == MU_Q6_K) {
        __m512i w = _mm512_loadu_si512(p + 64 * k), top;
        w = _mm512_and_si512(h ? _mm512_srli_epi16(w, 4) : w, _mm512_set1_epi8(15));
        top = k == 0   ? _mm512_slli_epi16(two, 4)
              : k == 1 ? _mm512_slli_epi16(two, 2)
              : k == 2 ? two
                       : _mm512_srli_epi16(two, 2);
        return _mm512_ternarylogic_epi32(top, _mm512_set1_epi8(0x30), w, 0xEA); /* (top & bits45) | w */
    }
    __m512i low = _mm512_and_si512(_mm512_srli_epi16(two, (unsigned)(2 * k)), _mm512_set1_epi8(3));
    if (type == MU_Q2_K) return low;
    __m512i third = _mm512_loadu_si512(p + 128);
    int bit = 4 * h + k;
    third = bit < 2 ? _mm512_slli_epi16(third, (unsigned)(2 - bit)) : _mm512_srli_epi16(third, (unsigned)(bit - 2));
    return _mm512_ternarylogic_epi32(third, _mm512_set1_epi8(4), low, 0xEA);
}

#endif
