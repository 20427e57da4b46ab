/* Types without a rule of their own, for NEON: widen_simd.h has the code. */
#define MU_MATH_NEON
#define ISA(name) mu_neon_##name
#include "kernels/arm/arm.h"

#include "kernels/widen_simd.h"
