/* The packed matrix that all tables but `ref` share, and what their tiles have in common.
 *
 * A matrix is cut into groups of 16 rows, one after another; SIMD lanes are rows. Inside a group the inner dimension
 * ascends:
 *
 *   F32    per column        16 f32
 *   F16    per column        16 f16
 *   BF16   per 2 columns     16 lanes of 32 bits: even column in the high half, odd column in the low half (the order
 *                            in which vdpbf16ps adds them). After an odd last column stands -0: with +0 activations its
 *                            product is -0, which leaves every accumulator as it is.
 * and the quantised types: per 256 columns a head (K-quants and IQ4_XS), per 32 columns a block:
 *
 *              head                   block
 *   Q4_0                              16 f16 d | 256 nibble bytes
 *   Q4_1                              16 f16 d | 16 f16 m | 256 nibble bytes
 *   Q5_0                              16 f16 d | 256 nibble bytes | 64 bytes of fifth bits
 *   Q5_1                              16 f16 d | 16 f16 m | 256 nibble bytes | 64 bytes of fifth bits
 *   Q8_0                              16 f16 d | 512 code bytes
 *   IQ4_NL                            16 f16 d | 256 nibble bytes
 *   MXFP4                             16 u8 e | 256 nibble bytes
 *   Q4_K       16 f16 d | 16 f16 dmin 16 u8 sc | 16 u8 m | 256 nibble bytes
 *   Q5_K       16 f16 d | 16 f16 dmin 16 u8 sc | 16 u8 m | 256 nibble bytes | 64 bytes of fifth bits
 *   IQ4_XS     16 f16 d               16 s8 ls - 32 | 256 nibble bytes
 *   Q6_K       16 f16 d               16 s8 sc0 | 16 s8 sc1 | 256 nibble bytes | 128 bytes of two bits
 *   Q3_K       16 f16 d               16 s8 sc0 | 16 s8 sc1 | 128 bytes of two bits | 64 bytes of third bits
 *   Q2_K       16 f16 d | 16 f16 dmin 16 u8 m0, sc0 | 16 u8 m1, sc1 (nibbles) | 128 bytes of two bits
 *
 * Codes are unsigned, their offset (8, 16, 128, 32, 4 or 0) not taken off: the first operand of vpdpbusd. Nibbles of
 * IQ4_NL, IQ4_XS and MXFP4 are indices. Four consecutive columns of a row are a 32-bit lane. Nibble bytes are 4 vectors
 * of 64: vector k holds columns 4k … 4k+3 in low and 16+4k … 16+4k+3 in high nibbles; code bytes 8 such vectors. Two
 * bits are 2 vectors: bits 2f, 2f+1 of a byte of vector h belong to columns 16h+4f … 16h+4f+3. Single bits are one
 * vector: bit k of a byte belongs to columns 4k … 4k+3.
 *
 * The types that C2 has no rule for (IQ1 to IQ3, TQ1_0, TQ2_0) keep the file's rows, 16 to a group; a multiplication widens them
 * (widen_simd.h).
 *
 * Groups are multiples of 16 bytes, so vectors of 64 may straddle cache lines. Rows past n_row are zeros. */
#ifndef MU_KERNELS_PACKED_H
#define MU_KERNELS_PACKED_H

#include "kernels/kernels.h"

/* Bytes of one group of 16 rows; 0 where the type has no layout or on overflow. */
size_t mu_packed_group_bytes(uint32_t type, int n_col);
size_t mu_packed_mat_bytes(uint32_t type, int n_row, int n_col);
bool mu_packed_mat_pack(const struct mu_mat *m, int row0, int row1, const void *raw);

/* The parts of a quantised type's unit, in bytes: the head of 256 columns, the scales before a block's codes, the
 * codes. Constants where the type is one. */
static inline int mu_packed_head_bytes(uint32_t type)
{
    switch (type) {
    case MU_Q2_K:
    case MU_Q4_K:
    case MU_Q5_K: return 64;
    case MU_Q3_K:
    case MU_Q6_K:
    case MU_IQ4_XS: return 32;
    default: return 0;
    }
}
static inline int mu_packed_scale_bytes(uint32_t type)
{
    switch (type) {
    case MU_Q4_1:
    case MU_Q5_1: return 64;
    case MU_MXFP4:
    case MU_IQ4_XS: return 16;
    default: return 32;
    }
}
static inline int mu_packed_block_bytes(uint32_t type)
{
    int scales = mu_packed_scale_bytes(type);
    switch (type) {
    case MU_Q8_0: return scales + 512;
    case MU_Q6_K: return scales + 256 + 128;
    case MU_Q5_0:
    case MU_Q5_1:
    case MU_Q5_K: return scales + 256 + 64;
    case MU_Q3_K: return scales + 128 + 64;
    case MU_Q2_K: return scales + 128;
    default: return scales + 256;
    }
}

/* A group keeps the file's rows. */
static inline bool mu_packed_widened(uint32_t type)
{
    const struct mu_type_info *t = mu_type_info(type);
    return t->act == MU_ACT_F32 && t->block_values > 1;
}

/* Bytes of a group before column c (a multiple of the type's block). */
static inline size_t mu_packed_group_offset(uint32_t type, size_t c)
{
    const struct mu_type_info *t;
    switch (type) {
    case MU_F32: return c * 64;
    case MU_F16: return c * 32;
    case MU_BF16: return c / 2 * 64;
    default: break;
    }
    t = mu_type_info(type);
    if (mu_packed_widened(type)) return c / (size_t)t->block_values * (size_t)t->block_bytes * MU_ROW_GROUP;
    return c / 256 * (size_t)mu_packed_head_bytes(type) + c / 32 * (size_t)mu_packed_block_bytes(type);
}

/* Tiles are inline functions of a constant number of tokens whose inner loops must vanish. */
#define MU_INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define MU_UNROLL _Pragma("clang loop unroll(full)")
#else
#define MU_UNROLL _Pragma("GCC unroll 64")
#endif

#endif
