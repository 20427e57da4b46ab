/* Four rows of a token in a vector, of which `rows` exist. */
#ifndef MU_KERNELS_ARM_ROWS_H
#define MU_KERNELS_ARM_ROWS_H

#include <arm_neon.h>
#include <string.h>

#include "kernels/parts.h"

enum { QUAD = 4 };

MU_INLINE float32x4_t rows_load(const float *p, int rows)
{
    float part[QUAD] = {0};
    if (rows >= QUAD) return vld1q_f32(p);
    if (rows > 0) memcpy(part, p, (size_t)rows * sizeof *p);
    return vld1q_f32(part);
}
MU_INLINE void rows_store(float *p, int rows, float32x4_t x)
{
    float part[QUAD];
    if (rows >= QUAD) {
        vst1q_f32(p, x);
    } else if (rows > 0) {
        vst1q_f32(part, x);
        memcpy(p, part, (size_t)rows * sizeof *p);
    }
}

#endif
