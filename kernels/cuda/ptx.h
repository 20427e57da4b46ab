/* Machine instructions that CUDA C has no name for, each as one function. tests/stubs/cuda has the same functions for
 * the processor. */
#ifndef MU_KERNELS_CUDA_PTX_H
#define MU_KERNELS_CUDA_PTX_H

#include <stdint.h>

/* Bytes of the eight of a (0 … 3) and b (4 … 7), as the low four nibbles of `at` say. A nibble's top bit must be 0. */
__device__ static inline uint32_t mu_prmt(uint32_t a, uint32_t b, uint32_t at)
{
    uint32_t r;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(at));
    return r;
}

/* f16 to f32, exactly. */
__device__ static inline float mu_f16_widen(uint16_t h)
{
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}

#endif
