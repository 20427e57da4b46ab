/* C1 and the rounding to bf16 with NEON. A block of 32 is eight vectors; magnitudes are compared as integers, in which
 * order infinities and NaNs come last. */
#include <arm_neon.h>

#include "kernels/parts.h"

#define INF_BITS 0x7f800000u

static bool block_quantize(const float *x, int8_t *q, float *s)
{
    float32x4_t v[8];
    uint32x4_t top = vdupq_n_u32(0);
    for (int i = 0; i < 8; i++) {
        v[i] = vld1q_f32(x + 4 * i);
        top = vmaxq_u32(top, vreinterpretq_u32_f32(vabsq_f32(v[i])));
    }
    uint32_t bits = vmaxvq_u32(top);
    if (bits >= INF_BITS) return false;
    float amax = vgetq_lane_f32(vreinterpretq_f32_u32(vdupq_n_u32(bits)), 0);
    bool zero = amax < 0x1p-100f;
    *s = zero ? 0.0f : amax / 127.0f;
    float32x4_t inv = vdupq_n_f32(zero ? 0.0f : 127.0f / amax);
    for (int i = 0; i < 8; i += 4) {
        int32x4_t r[4];
        for (int j = 0; j < 4; j++) r[j] = vcvtnq_s32_f32(vmulq_f32(v[i + j], inv)); /* ties to even */
        int16x8_t lo = vcombine_s16(vqmovn_s32(r[0]), vqmovn_s32(r[1]));
        int16x8_t hi = vcombine_s16(vqmovn_s32(r[2]), vqmovn_s32(r[3]));
        vst1q_s8(q + 4 * i, vmaxq_s8(vcombine_s8(vqmovn_s16(lo), vqmovn_s16(hi)), vdupq_n_s8(-127)));
    }
    return true;
}

bool mu_neon_quantize(const float *x, int n, int8_t *q, float *s, int16_t *sum)
{
    for (int b = 0; b < n / MU_Q_BLOCK; b++)
        if (!block_quantize(x + (size_t)b * MU_Q_BLOCK, q + (size_t)b * MU_Q_BLOCK, s + b)) return false;
    mu_neon_block_sums(q, n, sum);
    return true;
}

void mu_neon_block_sums(const int8_t *q, int n, int16_t *sum)
{
    for (int h = 0; h < n / 16; h++) sum[h] = vaddlvq_s8(vld1q_s8(q + 16 * (size_t)h));
}

void mu_neon_to_bf16(const float *x, int n, uint16_t *out)
{
    for (int i = 0; i < n; i++) out[i] = mu_f32_to_bf16(x[i]);
}
