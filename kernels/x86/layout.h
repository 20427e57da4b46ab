/* The packed matrix that avx2 and avx512 share, and what passes between their files.
 *
 * A matrix is cut into groups of 16 rows, one after another; SIMD lanes are rows. Inside a group the inner dimension
 * ascends:
 *
 *   F32    per column        16 f32
 *   F16    per column        16 f16
 *   BF16   per 2 columns     16 lanes of 32 bits: even column in the high half, odd column in the low half (the order
 *                            in which vdpbf16ps adds them). After an odd last column stands -0: with +0 activations its
 *                            product is -0, which leaves every accumulator as it is.
 *   Q4_0   per 32 columns    16 f16 d | 256 nibble bytes
 *   Q8_0   per 32 columns    16 f16 d | 512 code bytes
 *   Q4_K   per 256 columns   16 f16 d | 16 f16 dmin | 8 × (16 u8 sc | 16 u8 m | 256 nibble bytes)
 *   Q6_K   per 256 columns   16 f16 d | 8 × (16 s8 sc0 | 16 s8 sc1 | 256 nibble bytes | 128 bytes of high bits)
 *
 * Codes are unsigned, their offset (8, 128, 0, 32) not taken off: the first operand of vpdpbusd. Four consecutive
 * columns of a row are a 32-bit lane. Nibble bytes are 4 vectors of 64: vector k holds columns 4k … 4k+3 in low and
 * 16+4k … 16+4k+3 in high nibbles; code bytes 8 such vectors. Q6_K's high bits are 2 vectors: bits 2f, 2f+1 of a byte
 * of vector h belong to columns 16h+4f … 16h+4f+3.
 *
 * Groups are multiples of 32 bytes, so vectors of 64 may straddle cache lines. Rows past n_row are zeros. */
#ifndef MU_KERNELS_X86_LAYOUT_H
#define MU_KERNELS_X86_LAYOUT_H

#include "kernels/kernels.h"

enum {
    MU_Q4_0_BLOCK = 32 + 256, /* bytes per 32 columns of a group */
    MU_Q8_0_BLOCK = 32 + 512,
    MU_Q4_K_HEAD = 64, /* bytes per 256 columns, before its eight blocks */
    MU_Q4_K_BLOCK = 32 + 256,
    MU_Q6_K_HEAD = 32,
    MU_Q6_K_BLOCK = 32 + 256 + 128,
};

/* Bytes of one group of 16 rows; 0 where the type has no layout or on overflow. */
size_t mu_x86_group_bytes(uint32_t type, int n_col);
size_t mu_x86_mat_bytes(uint32_t type, int n_row, int n_col);
bool mu_x86_mat_pack(const struct mu_mat *m, int row0, int row1, const void *raw);

/* Bytes of a group before column c (a multiple of the type's block). */
static inline size_t mu_x86_group_offset(uint32_t type, size_t c)
{
    switch (type) {
    case MU_F32: return c * 64;
    case MU_F16: return c * 32;
    case MU_BF16: return c / 2 * 64;
    case MU_Q4_0: return c / 32 * MU_Q4_0_BLOCK;
    case MU_Q8_0: return c / 32 * MU_Q8_0_BLOCK;
    case MU_Q4_K: return c / 256 * (MU_Q4_K_HEAD + 8 * MU_Q4_K_BLOCK);
    case MU_Q6_K: return c / 256 * (MU_Q6_K_HEAD + 8 * MU_Q6_K_BLOCK);
    default: return 0;
    }
}

/* The processor's bf16 dot product, compared with C3 once before the avx512 table is offered; matmul uses it only where
 * every hard case agreed. */
void mu_avx512_bf16_probe(void);
bool mu_avx512_bf16_proven(void);

/* matmul by family of types, for the row groups of [row0, row1) (contract of mu_kernels.matmul). */
void mu_avx2_matmul_int8(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out, size_t stride);
void mu_avx2_matmul_float(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out,
                          size_t stride);
void mu_avx512_matmul_int8(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out,
                           size_t stride);
void mu_avx512_matmul_float(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out,
                            size_t stride);
void mu_avx512_matmul_bf16(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out,
                           size_t stride);

/* Tiles are inline functions of a constant number of tokens whose inner loops must vanish. */
#define MU_INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define MU_UNROLL _Pragma("clang loop unroll(full)")
#else
#define MU_UNROLL _Pragma("GCC unroll 64")
#endif

#endif
