/* Attention for NEON: attn_simd.h has the code. */
#define MU_MATH_NEON
#define ISA(name) mu_neon_##name
#include "kernels/attn_simd.h"
