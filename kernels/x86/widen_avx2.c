/* Types without a rule of their own, for AVX2: widen_simd.h has the code. */
#define MU_MATH_AVX2
#define ISA(name) mu_avx2_##name
#include "kernels/x86/layout.h"

#include "kernels/widen_simd.h"
