/* GGUF's quantised blocks as they lie in files, declared once, and the integer codes in them. The reference, the
 * dequantiser and the packers read blocks through this header only. Little-endian; blocks may lie at any address. */
#ifndef MU_KERNELS_BLOCKS_H
#define MU_KERNELS_BLOCKS_H

#include <assert.h>
#include <stdint.h>
#include <string.h>

#include "kernels/inline.h"

#define MU_BLOCK(name, size, ...) \
    struct name {                 \
        __VA_ARGS__               \
    } __attribute__((packed));    \
    static_assert(sizeof(struct name) == (size), "size of a " #name " in a file")

/* 32 values. d, m: f16 scale and minimum. qs: byte i holds value i in its low and value 16+i in its high nibble; qh:
 * bit i is the fifth bit of value i. */
MU_BLOCK(mu_block_q4_0, 18, uint16_t d; uint8_t qs[16];);
MU_BLOCK(mu_block_q4_1, 20, uint16_t d, m; uint8_t qs[16];);
MU_BLOCK(mu_block_q5_0, 22, uint16_t d; uint8_t qh[4], qs[16];);
MU_BLOCK(mu_block_q5_1, 24, uint16_t d, m; uint8_t qh[4], qs[16];);
MU_BLOCK(mu_block_q8_0, 34, uint16_t d; int8_t qs[32];);
/* Nibbles as above, each the index of a value (mu_iq4_values, mu_mxfp4_values). e: the scale is 2^(e-128). */
MU_BLOCK(mu_block_iq4_nl, 18, uint16_t d; uint8_t qs[16];);
MU_BLOCK(mu_block_mxfp4, 17, uint8_t e, qs[16];);

/* 256 values. scales: eight 6-bit scales and minimums (mu_k4_scale). qs: per 64 values 32 bytes, low nibbles are the
 * first 32. */
MU_BLOCK(mu_block_q4_k, 144, uint16_t d, dmin; uint8_t scales[12], qs[128];);
/* qh: bit j of byte i is the fifth bit of value 32j + i. */
MU_BLOCK(mu_block_q5_k, 176, uint16_t d, dmin; uint8_t scales[12], qh[32], qs[128];);
/* ql, qh: four low and two high bits (mu_q6_k_codes); scales: one per 16 values. */
MU_BLOCK(mu_block_q6_k, 210, uint8_t ql[128], qh[64]; int8_t scales[16]; uint16_t d;);
/* qs: two bits, per 128 values 32 bytes, bits 2j, 2j+1 are values 32j … (mu_low2_codes). Q2_K: scale in the low and
 * minimum in the high nibble of `scales`, one per 16 values. Q3_K: bit j of hmask[i] is the third bit of value 32j + i,
 * 6-bit scales (mu_q3_k_scale). */
MU_BLOCK(mu_block_q2_k, 84, uint8_t scales[16], qs[64]; uint16_t d, dmin;);
MU_BLOCK(mu_block_q3_k, 110, uint8_t hmask[32], qs[64], scales[12]; uint16_t d;);
/* Per 32 values 16 bytes of nibbles as IQ4_NL's; a 6-bit scale, low nibble and high two bits apart. */
MU_BLOCK(mu_block_iq4_xs, 136, uint16_t d, scales_h; uint8_t scales_l[4], qs[128];);

/* Three values, -1 … 1, plus one in two bits (qs as in Q2_K), or five to a byte: the byte is their base-3 number times
 * 256/243, rounded up, and digit after digit is the integer part of three times it (eight.h has the order). */
MU_BLOCK(mu_block_tq1_0, 54, uint8_t qs[48], qh[4]; uint16_t d;);
MU_BLOCK(mu_block_tq2_0, 66, uint8_t qs[64]; uint16_t d;);

/* Codebook types (grids.h). IQ2_XXS: per 32 values 4 indices of 8 values, then a word of four times 7 signs and a 4-bit
 * scale. IQ3_XXS: 64 indices of 4 values, then such a word per 32 values. IQ3_S: 9-bit indices (bit i of qh[j]: of index
 * i of 32 values j), a sign per value, a 4-bit scale per 32 values. IQ2_XS: per 8 values a 9-bit index and 7 signs;
 * IQ2_S: 10-bit indices (bits 2i, 2i+1 of qh[j]: of index i of 32 values j), a sign per value; both a 4-bit scale per 16
 * values, low nibble first. */
MU_BLOCK(mu_block_iq2_xxs, 66, uint16_t d; uint8_t qs[64];);
MU_BLOCK(mu_block_iq3_xxs, 98, uint16_t d; uint8_t qs[64], words[32];);
MU_BLOCK(mu_block_iq2_xs, 74, uint16_t d, qs[32]; uint8_t scales[8];);
MU_BLOCK(mu_block_iq2_s, 82, uint16_t d; uint8_t qs[32], signs[32], qh[8], scales[8];);
MU_BLOCK(mu_block_iq3_s, 110, uint16_t d; uint8_t qs[64], qh[8], signs[32], scales[4];);

/* Codebook of -1, 0, 1 (grids.h), 8 values an index of 11 bits, plus or minus an eighth. IQ1_S: of qh[j], bits 3i … 3i+2
 * are of index i of 32 values j, 12 … 14 their scale, 15 the shift's sign. IQ1_M: nibble i of qh is of index i, bit 3 of
 * it the shift's sign; a word of `scales` has four 3-bit scales, one per 16 values, and 4 bits of the block's f16
 * scale, the lowest first. */
MU_BLOCK(mu_block_iq1_s, 50, uint16_t d; uint8_t qs[32]; uint16_t qh[8];);
MU_BLOCK(mu_block_iq1_m, 56, uint8_t qs[32], qh[16]; uint16_t scales[4];);
MU_DEVICE_INLINE uint16_t mu_iq1_m_d(const struct mu_block_iq1_m *b)
{
    return (uint16_t)(b->scales[0] >> 12 | b->scales[1] >> 12 << 4 | b->scales[2] >> 12 << 8 |
                      b->scales[3] >> 12 << 12);
}

/* What a nibble stands for; MXFP4 (OCP Microscaling Formats 1.0, E2M1) doubled, so that it is a whole number. */
#define MU_IQ4_VALUES   -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113
#define MU_MXFP4_VALUES 0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12
MU_DEVICE_TABLE int8_t mu_iq4_values[16] = {MU_IQ4_VALUES}, mu_mxfp4_values[16] = {MU_MXFP4_VALUES};

/* Scale and minimum of 32 values j of 8 (Q4_K, Q5_K). */
MU_DEVICE_INLINE void mu_k4_scale(const uint8_t *s, int j, uint8_t *scale_out, uint8_t *min_out)
{
    if (j < 4) {
        *scale_out = s[j] & 63;
        *min_out = s[j + 4] & 63;
    } else {
        *scale_out = (uint8_t)((s[j + 4] & 15) | (s[j - 4] >> 6 << 4));
        *min_out = (uint8_t)(s[j + 4] >> 4 | (s[j] >> 6 << 4));
    }
}

/* Scale of 16 values i of 16, -32 … 31 (Q3_K); of 32 values j of 8, likewise (IQ4_XS). */
MU_DEVICE_INLINE int mu_q3_k_scale(const uint8_t *s, int i)
{
    return ((s[i & 7] >> (i < 8 ? 0 : 4) & 15) | (s[8 + (i & 3)] >> 2 * (i >> 2) & 3) << 4) - 32;
}
MU_DEVICE_INLINE int mu_iq4_xs_scale(const struct mu_block_iq4_xs *b, int j)
{
    return ((b->scales_l[j >> 1] >> (j & 1 ? 4 : 0) & 15) | (b->scales_h >> 2 * j & 3) << 4) - 32;
}

/* 2^(e-128), e < 255 (255 is NaN in the format). */
MU_DEVICE_INLINE float mu_e8m0_half(uint8_t e)
{
    uint32_t u = e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

MU_DEVICE_INLINE uint32_t mu_load_u32(const void *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* The next ones give four consecutive codes at a time, one a byte: values 4k … 4k+3 (k of 0 … 7) of 32 values. */
MU_DEVICE_INLINE uint32_t mu_q4_0_codes(const uint8_t *qs, int k) /* 0 … 15, offset 8 not taken off */
{
    return mu_load_u32(qs + 4 * (k & 3)) >> (k < 4 ? 0 : 4) & 0x0f0f0f0fu;
}
MU_DEVICE_INLINE uint32_t mu_q5_0_codes(const uint8_t *qs, const uint8_t *qh, int k) /* 0 … 31, Q5_0's offset is 16 */
{
    uint32_t four = mu_load_u32(qh) >> 4 * k & 15; /* bit i to byte i */
    return mu_q4_0_codes(qs, k) | (four * 0x00204081u & 0x01010101u) << 4;
}
/* j: which 32 of the 256 values. */
MU_DEVICE_INLINE uint32_t mu_q4_k_codes(const uint8_t *qs, int j, int k)
{
    return mu_load_u32(qs + 32 * (j >> 1) + 4 * k) >> (j & 1 ? 4 : 0) & 0x0f0f0f0fu;
}
MU_DEVICE_INLINE uint32_t mu_q5_k_codes(const struct mu_block_q5_k *b, int j, int k)
{
    return mu_q4_k_codes(b->qs, j, k) | (mu_load_u32(b->qh + 4 * k) >> j & 0x01010101u) << 4;
}
MU_DEVICE_INLINE uint32_t mu_low2_codes(const uint8_t *qs, int j, int k) /* Q2_K; Q3_K's low two bits */
{
    return mu_load_u32(qs + 32 * (j >> 2) + 4 * k) >> 2 * (j & 3) & 0x03030303u;
}
MU_DEVICE_INLINE uint32_t mu_q3_k_codes(const struct mu_block_q3_k *b, int j, int k) /* 0 … 7, offset 4 not taken off */
{
    return mu_low2_codes(b->qs, j, k) | (mu_load_u32(b->hmask + 4 * k) >> j & 0x01010101u) << 2;
}
MU_DEVICE_INLINE uint32_t mu_q6_k_codes(const struct mu_block_q6_k *b, int j,
                                        int k) /* 0 … 63, offset 32 not taken off */
{
    int half = j >> 2, m = j & 3;
    uint32_t low = mu_load_u32(b->ql + 64 * half + 32 * (m & 1) + 4 * k) >> (m < 2 ? 0 : 4) & 0x0f0f0f0fu;
    uint32_t high = mu_load_u32(b->qh + 32 * half + 4 * k) >> 2 * m & 0x03030303u;
    return low | high << 4;
}

#endif
