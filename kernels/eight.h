/* Eight values at a time of the types that C2 has no rule for (IQ1 … IQ3, TQ1_0, TQ2_0): values 8i … 8i+7 of a block of
 * 256, i < 32, as ggml's dequantisers give them, bit for bit. For the reference and for devices, which get
 * the codebooks, too, in each file that includes this. Private to kernels/. */
#ifndef MU_KERNELS_EIGHT_H
#define MU_KERNELS_EIGHT_H

#include "kernels/blocks.h"
#include "kernels/convert.h"
#ifdef __cplusplus
#include "kernels/grids.c"
#else
#include "kernels/grids.h"
#endif

#ifdef __CUDACC__
#define MU_EIGHT static __device__ inline /* tables are in the device's memory */
#else
#define MU_EIGHT static inline
#endif

/* Digit n of a byte of TQ1_0, -1 … 1: the byte is a fraction of 256; times 3^n, its integer part falls off, and three
 * times what is left has the digit before the point. */
MU_EIGHT int mu_trit(uint8_t byte, int n)
{
    unsigned power = n == 0 ? 1 : n == 1 ? 3 : n == 2 ? 9 : n == 3 ? 27 : 81;
    return (int)((byte * power & 0xffu) * 3 >> 8) - 1;
}

/* Bytes of qs in two lots of 32 and 16, then qh; of each lot one digit of all its bytes after another. */
MU_EIGHT void mu_eight_tq1_0(const struct mu_block_tq1_0 *b, int i, float *out)
{
    float d = mu_f16_to_f32(b->d);
    for (int k = 0; k < 8; k++) {
        int v = 8 * i + k;
        int t = v < 160   ? mu_trit(b->qs[v % 32], v / 32)
                : v < 240 ? mu_trit(b->qs[32 + (v - 160) % 16], (v - 160) / 16)
                          : mu_trit(b->qh[(v - 240) % 4], (v - 240) / 4);
        out[k] = (float)t * d;
    }
}

MU_EIGHT void mu_eight_tq2_0(const struct mu_block_tq2_0 *b, int i, float *out)
{
    float d = mu_f16_to_f32(b->d);
    int j = i / 4; /* of 32 values */
    for (int k = 0; k < 8; k++) out[k] = (float)((b->qs[32 * (j / 4) + i % 4 * 8 + k] >> 2 * (j % 4) & 3) - 1) * d;
}

MU_EIGHT int mu_with_sign(int magnitude, unsigned signs, int i)
{
    int minus = -(int)(signs >> i & 1);
    return (magnitude ^ minus) - minus;
}

/* An entry of IQ2's codebooks. */
MU_EIGHT void mu_eight_iq2(unsigned grid, unsigned signs, float scale, float *out)
{
    for (int k = 0; k < 8; k++) out[k] = scale * (float)mu_with_sign(mu_iq2_magnitudes[grid >> 2 * k & 3], signs, k);
}

MU_EIGHT void mu_eight_iq2_xxs(const struct mu_block_iq2_xxs *b, int i, float *out)
{
    int j = i / 4, l = i % 4;
    uint32_t word = mu_load_u32(b->qs + 8 * j + 4);
    float scale = mu_f16_to_f32(b->d) * (0.5f + (float)(word >> 28)) * 0.25f;
    mu_eight_iq2(mu_iq2_xxs_grid[b->qs[8 * j + l]], mu_iq_signs(word >> 7 * l & 127), scale, out);
}

/* Group i of 8 values has nibble i/2 of scales. */
MU_EIGHT float mu_iq2_scale(const uint8_t *scales, int i, float d)
{
    return d * (0.5f + (float)(scales[i / 4] >> (i / 2 % 2 ? 4 : 0) & 15)) * 0.25f;
}

MU_EIGHT void mu_eight_iq2_xs(const struct mu_block_iq2_xs *b, int i, float *out)
{
    unsigned q = b->qs[i];
    mu_eight_iq2(mu_iq2_xs_grid[q & 511], mu_iq_signs(q >> 9), mu_iq2_scale(b->scales, i, mu_f16_to_f32(b->d)), out);
}

MU_EIGHT void mu_eight_iq2_s(const struct mu_block_iq2_s *b, int i, float *out)
{
    unsigned index = b->qs[i] | (unsigned)(b->qh[i / 4] >> 2 * (i % 4) & 3) << 8;
    mu_eight_iq2(mu_iq2_s_grid[index], b->signs[i], mu_iq2_scale(b->scales, i, mu_f16_to_f32(b->d)), out);
}

/* An entry of IQ1's codebook. */
MU_EIGHT void mu_eight_iq1(unsigned grid, bool down, float scale, float *out)
{
    float shift = down ? -mu_iq1_delta : mu_iq1_delta;
    for (int k = 0; k < 8; k++) out[k] = scale * ((float)((int)(grid >> 2 * k & 3) - 1) + shift);
}

MU_EIGHT void mu_eight_iq1_s(const struct mu_block_iq1_s *b, int i, float *out)
{
    unsigned qh = b->qh[i / 4], index = b->qs[i] | (qh >> 3 * (i % 4) & 7) << 8;
    mu_eight_iq1(mu_iq1_grid[index], qh >> 15, mu_f16_to_f32(b->d) * (float)(2 * (qh >> 12 & 7) + 1), out);
}

MU_EIGHT void mu_eight_iq1_m(const struct mu_block_iq1_m *b, int i, float *out)
{
    unsigned qh = b->qh[i / 2] >> (i % 2 ? 4 : 0) & 15u, scale = (unsigned)b->scales[i / 8] >> 3 * (i / 2 % 4) & 7;
    mu_eight_iq1(mu_iq1_grid[b->qs[i] | (qh & 7) << 8], qh >> 3, mu_f16_to_f32(mu_iq1_m_d(b)) * (float)(2 * scale + 1),
                 out);
}

/* Two entries of 4 values. */
MU_EIGHT void mu_eight_iq3_xxs(const struct mu_block_iq3_xxs *b, int i, float *out)
{
    int j = i / 4, l = i % 4;
    uint32_t word = mu_load_u32(b->words + 4 * j);
    float scale = mu_f16_to_f32(b->d) * (0.5f + (float)(word >> 28)) * 0.5f;
    unsigned signs = mu_iq_signs(word >> 7 * l & 127);
    for (int k = 0; k < 8; k++) {
        unsigned grid = mu_iq3_xxs_grid[b->qs[8 * j + 2 * l + k / 4]];
        out[k] = scale * (float)mu_with_sign(mu_iq3_xxs_magnitudes[grid >> 3 * (k % 4) & 7], signs, k);
    }
}

MU_EIGHT void mu_eight_iq3_s(const struct mu_block_iq3_s *b, int i, float *out)
{
    int j = i / 4, l = i % 4;
    float scale = mu_f16_to_f32(b->d) * (float)(1 + 2 * (b->scales[j / 2] >> 4 * (j % 2) & 15));
    for (int k = 0; k < 8; k++) {
        int at = 2 * l + k / 4;
        unsigned grid = mu_iq3_s_grid[b->qs[8 * j + at] | (unsigned)(b->qh[j] >> at & 1) << 8];
        out[k] = scale * (float)mu_with_sign(mu_iq3_s_magnitude(grid >> 3 * (k % 4) & 7), b->signs[4 * j + l], k);
    }
}

#endif
