/* Attention for AVX-512: attn_simd.h has the code. */
#define MU_MATH_AVX512
#define ISA(name) mu_avx512_##name
#include "kernels/attn_simd.h"
