/* Attention for AVX-512 where broadcasting takes nothing but a load: attn_simd.h has the code. */
#define MU_MATH_AVX512
#define MU_MATH_BROADCASTS
#define ISA(name) mu_streams_##name
#include "kernels/attn_simd.h"
