/* C2 with SMMLA (FEAT_I8MM), and SDOT for one token: int8_simd.h has the code. */
#define MU_ARM_DOTPROD
#define MU_ARM_I8MM
#define ISA(name) mu_i8mm_##name
#include "kernels/arm/int8_simd.h"
