/* The vector operations for AVX2: vector_simd.h has the code. */
#define MU_MATH_AVX2
#define ISA(name) mu_avx2_##name
#include "kernels/vector_simd.h"
