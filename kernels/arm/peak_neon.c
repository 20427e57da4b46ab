/* peak.h's loops with NEON; int8 products are in int8_simd.h. 16 chains hide the latency of an FMA on up to four pipes. */
#include <arm_neon.h>

#include "kernels/packed.h"
#include "kernels/parts.h"

enum { CHAINS = 16 };

uint32_t mu_neon_peak_f32(int n, double *ops_out)
{
    float32x4_t acc[CHAINS], w = vdupq_n_f32(0.5f);
    for (int j = 0; j < CHAINS; j++) acc[j] = vdupq_n_f32(0.0f);
    for (int i = 0; i < n; i++) {
        MU_UNROLL
        for (int j = 0; j < CHAINS; j++) acc[j] = vfmaq_f32(acc[j], w, w);
    }
    for (int j = 1; j < CHAINS; j++) acc[0] = vaddq_f32(acc[0], acc[j]);
    *ops_out = 2.0 * 4 * CHAINS * n;
    return vaddvq_u32(vreinterpretq_u32_f32(acc[0]));
}

uint32_t mu_neon_peak_read(const void *buf, size_t bytes)
{
    const uint8_t *p = buf;
    uint8x16_t acc[4];
    for (int j = 0; j < 4; j++) acc[j] = vdupq_n_u8(0);
    for (size_t i = 0; i < bytes; i += 64) {
        MU_UNROLL
        for (int j = 0; j < 4; j++) acc[j] = vaddq_u8(acc[j], vld1q_u8(p + i + 16 * j));
    }
    return vaddlvq_u8(vaddq_u8(vaddq_u8(acc[0], acc[1]), vaddq_u8(acc[2], acc[3])));
}
