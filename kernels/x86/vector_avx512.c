/* The vector operations for AVX-512: vector_simd.h has the code. */
#define MU_MATH_AVX512
#define ISA(name) mu_avx512_##name
#include "kernels/vector_simd.h"
