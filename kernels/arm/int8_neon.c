/* C2 for every arm64 processor: int8_simd.h has the code. */
#define ISA(name) mu_neon_##name
#include "kernels/arm/int8_simd.h"
