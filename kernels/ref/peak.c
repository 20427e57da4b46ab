/* peak.h's loops in plain C. */
#include "kernels/parts.h"

enum { LANES = 32 };

uint32_t mu_ref_peak_int8(int n, double *ops_out)
{
    int8_t w[LANES], q[LANES];
    int32_t sum = 0;
    for (int j = 0; j < LANES; j++) w[j] = q[j] = (int8_t)j;
    for (int i = 0; i < n; i++) {
        __asm__ volatile("" : : "r"(w), "r"(q) : "memory"); /* or the loop would be one multiplication */
        for (int j = 0; j < LANES; j++) sum = (int32_t)((uint32_t)sum + (uint32_t)(w[j] * q[j]));
    }
    *ops_out = 2.0 * LANES * n;
    return (uint32_t)sum;
}

uint32_t mu_ref_peak_f32(int n, double *ops_out)
{
    float w[LANES], sum[LANES] = {0};
    for (int j = 0; j < LANES; j++) w[j] = 1.0f / (float)(j + 2);
    for (int i = 0; i < n; i++) {
        __asm__ volatile("" : : "r"(w) : "memory");
        for (int j = 0; j < LANES; j++) sum[j] = sum[j] * w[j] + w[j];
    }
    *ops_out = 2.0 * LANES * n;
    uint32_t out = 0;
    for (int j = 0; j < LANES; j++) out += sum[j] > 0.5f;
    return out;
}

uint32_t mu_ref_peak_read(const void *buf, size_t bytes)
{
    const uint64_t *p = buf;
    uint64_t sum[4] = {0};
    for (size_t i = 0; i < bytes / 64; i++, p += 8)
        for (int j = 0; j < 8; j++) sum[j & 3] += p[j];
    return (uint32_t)(sum[0] + sum[1] + sum[2] + sum[3]);
}
