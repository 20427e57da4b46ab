/* The definition of C1 (activations to int8, one scale per 32 values) and of the rounding to bf16. */
#include <math.h>

#include "kernels/parts.h"

bool mu_ref_quantize(const float *x, int n, int8_t *q, float *s, int16_t *sum)
{
    for (int b = 0; b < n / MU_Q_BLOCK; b++, x += MU_Q_BLOCK, q += MU_Q_BLOCK) {
        float amax = 0.0f;
        for (int i = 0; i < MU_Q_BLOCK; i++) {
            if (!mu_f32_finite(x[i])) return false;
            float a = fabsf(x[i]);
            amax = a > amax ? a : amax;
        }
        float inverse = mu_q8_inverse(amax);
        s[b] = mu_q8_scale(amax);
        for (int i = 0; i < MU_Q_BLOCK; i++) q[i] = mu_q8_code(x[i], inverse);
    }
    q -= n / MU_Q_BLOCK * MU_Q_BLOCK;
    mu_ref_block_sums(q, n, sum);
    return true;
}

void mu_ref_block_sums(const int8_t *q, int n, int16_t *sum)
{
    for (int h = 0; h < n / 16; h++) {
        int total = 0;
        for (int i = 0; i < 16; i++) total += q[16 * h + i];
        sum[h] = (int16_t)total;
    }
}

void mu_ref_to_bf16(const float *x, int n, uint16_t *out)
{
    for (int i = 0; i < n; i++) out[i] = mu_f32_to_bf16(x[i]);
}
