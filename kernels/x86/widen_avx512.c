/* Types without a rule of their own, for AVX-512: widen_simd.h has the code. */
#define MU_MATH_AVX512
#define ISA(name) mu_avx512_##name
#include "kernels/x86/layout.h"

#include "kernels/widen_simd.h"
