/* Loads, stores, the 16-lane sum and what else kernels/math.h does not need, for code that is written once for every
 * instruction set (vector_simd.h, attn_simd.h, widen_simd.h). A file of an instruction set defines MU_MATH_AVX2,
 * MU_MATH_AVX512 or MU_MATH_NEON, and ISA(name), which makes a function's name its own, and includes the code.
 *
 *   vf_load, vf_store      VF_LANES floats at any address
 *   vf_load_n, vf_store_n  the first n lanes only, 0 ≤ n ≤ VF_LANES; the others load as +0
 *   vf_fma_at, vf_mul_at   vf_fma and vf_mul by the one float that lies at an address
 *   vf_load_f16, _n        f16 values, widened; f16_store_n rounds to f16 (nearest even, overflow to infinity)
 *   vi_load_u16, vi_shr16  16-bit values into 32-bit lanes; the upper half of each lane
 *   vf_max                 a > b ? a : b
 *   vf_eq, vi_eq, vm_any, vm_lowest, vm_all_if   truth values per lane
 *   vw_set, vw_load, vw_store, vw_mul, vw_high, vw_xor   VW_LANES whole numbers of 64 bits: vw_mul is the product of
 *                          the lower halves, vw_high the upper half
 *   tree_sum               the tree 8, 4, 2, 1 over 16 lanes (C6)
 *   vf_reduce_max          the largest lane; any of them, or a NaN, where some are NaN
 *   vf_rope_pairs          (a, b) pairs turned by (cos, sin) pairs, one fmaf each over a rounded product
 *   simd_fetch             what lies at an address towards the L2 */
#ifndef MU_KERNELS_SIMD_H
#define MU_KERNELS_SIMD_H

#include <stdbool.h>
#include <string.h>

#include "kernels/math.h"

enum {
    SUM_LANES = 16,                  /* C6 */
    SUM_VECS = SUM_LANES / VF_LANES, /* vectors that hold them */
    VW_LANES = VF_LANES / 2
};

#if defined(MU_MATH_NEON)
#include "kernels/arm/simd.h"
#else
#include "kernels/x86/simd.h"
#endif

#if !defined(MU_MATH_AVX512)
static inline vf vf_fma_at(const float *a, vf b, vf c)
{
    return vf_fma(vf_set(*a), b, c);
}
static inline vf vf_mul_at(const float *a, vf b)
{
    return vf_mul(vf_set(*a), b);
}
#endif

#endif
