/* Attention for AVX2: attn_simd.h has the code. */
#define MU_MATH_AVX2
#define ISA(name) mu_avx2_##name
#include "kernels/attn_simd.h"
