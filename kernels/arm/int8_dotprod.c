/* C2 with SDOT (FEAT_DotProd): int8_simd.h has the code. */
#define MU_ARM_DOTPROD
#define ISA(name) mu_dotprod_##name
#include "kernels/arm/int8_simd.h"
