/* The vector operations for NEON: vector_simd.h has the code. */
#define MU_MATH_NEON
#define ISA(name) mu_neon_##name
#include "kernels/vector_simd.h"
