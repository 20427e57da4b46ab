/* How the matrices of C2's types (MU_ACT_Q8) lie in device memory, and how a lane gets its share of one.
 *
 * Rows go in groups of 16, columns in blocks of 32: a block of a group is exactly operand A of the tensor cores'
 * product mma.m16n8k32, and of C2's integer sums. Lane L = 4g + t of a warp holds four words of it, four columns a
 * word, lowest first:
 *
 *        columns 4t … 4t+3     columns 16+4t … 16+4t+3
 *   row g          a[0]                  a[2]
 *   row g + 8      a[1]                  a[3]
 *
 * (of mma.m16n8k16, a[0] and a[1] are the first half of the columns, a[2] and a[3] the second.) The result's rows are
 * g and g + 8 too, so a lane's scales are those of these two rows, which below are called h = 0 and 1.
 *
 * Two neighbouring blocks make a pair, the least that is kept together. A unit is a pair, or the 256 columns of a K
 * type's block: four pairs. Units of a group lie one after another, ascending, groups likewise:
 *
 *   matrix   groups ⌈n_row/16⌉ × units ⌈n_col/64⌉ or n_col/256 × UNIT_BYTES
 *   unit     low bits of the pairs, high bits of the pairs, scales
 *
 * Codes keep the type's offset (OFFSET), Q8_0's are signed. Bits of a pair, lane by lane:
 *
 *   low 8    of each block: 16 bytes a lane, a[0] … a[3] as they are
 *   low 4    16 bytes a lane: of each block two words, a[0] | a[1] << 4 and a[2] | a[3] << 4. Where a nibble is an index
 *            (TABLE): a[0]'s four nibbles in the low, a[1]'s in the high 16 bits
 *   low 2    8 bytes a lane: of each block a word, a[i] << 2i
 *   high 2   8 bytes a lane, likewise
 *   high 1   4 bytes a lane: of block k and word i, << 4k + i
 *
 * Scales are in the order in which a lane reads them, by (g, h). Sixteen 6-bit numbers of a row take the 12 bytes that
 * they take in the file; nothing but rows beyond the last and an odd last block (zeros: codes 0, scales 0) is added to
 * the file's size.
 *
 *   D    (Q4_0, Q5_0, Q8_0, IQ4_NL)   f16 d [g][k][h]
 *   DM   (Q4_1, Q5_1)                 f16 [g][k]{d[h], m[h]}
 *   E    (MXFP4)                      e [g][k][h]
 *   K    (Q4_K, Q5_K)                 f16 [g]{d[h], dmin[h]}, words [3][g][h]: six-bit (sc of the 8 blocks, m)
 *   XS   (IQ4_XS)                     f16 d [g][h], words [g][h]: low nibbles (ls of the 8 blocks), words [g]: high bits
 *   H6   (Q3_K)                       f16 d [g][h], words [3][g][h]: six-bit (sc of first halves, of second halves)
 *   H8   (Q6_K)                       f16 d [g][h], words [4][g][h]: bytes, sc of first halves 0-3, 4-7, second likewise
 *   H4   (Q2_K)                       f16 [g]{d[h], dmin[h]}, words [4][g][h]: nibbles, sc and m of first halves, then …
 *
 * Nibbles of 8 blocks: byte b of the word is number b | number b+4 << 4. Six-bit numbers x, y of 8 blocks: words of the
 * nibbles of x, of y, and a third whose byte b is x[b] >> 4 | x[b+4] >> 4 << 2 | y[b] >> 4 << 4 | y[b+4] >> 4 << 6. */
#ifndef MU_KERNELS_CUDA_LAYOUT_H
#define MU_KERNELS_CUDA_LAYOUT_H

#include <cuda_runtime.h>

#include "kernels/blocks.h"
#include "kernels/cuda/ptx.h"
#include "kernels/types.h"

enum mu_scale_kind {
    MU_SCALE_D,
    MU_SCALE_DM,
    MU_SCALE_E,
    MU_SCALE_K,
    MU_SCALE_XS,
    MU_SCALE_H6,
    MU_SCALE_H8,
    MU_SCALE_H4,
};

__host__ __device__ constexpr int mu_scale_bytes(enum mu_scale_kind kind)
{
    return kind == MU_SCALE_D    ? 64
           : kind == MU_SCALE_DM ? 128
           : kind == MU_SCALE_E  ? 32
           : kind == MU_SCALE_K  ? 64 + 3 * 64
           : kind == MU_SCALE_XS ? 32 + 64 + 32
           : kind == MU_SCALE_H6 ? 32 + 3 * 64
           : kind == MU_SCALE_H8 ? 32 + 4 * 64
                                 : 64 + 4 * 64;
}

/* The constants of a type: bits of a code (LOW and HIGH planes), and so on. block is the file's (blocks.h). */
template <typename block, int low, int high, enum mu_scale_kind kind, int offset, bool table = false>
struct mu_layout_of {
    typedef block file_block;
    static constexpr enum mu_scale_kind KIND = kind;
    static constexpr bool TABLE = table;                    /* codes are values after the look-up */
    static constexpr bool HAS_HALVES = kind >= MU_SCALE_H6; /* J = sc0·I0 + sc1·I1 */
    static constexpr bool HAS_MIN = kind == MU_SCALE_DM || kind == MU_SCALE_K || /* a second fmaf */
                                    kind == MU_SCALE_H4;
    static constexpr bool SIGNED = low == 8 || table; /* a[] is of signed bytes, else of unsigned ones */
    enum {
        LOW = low,
        HIGH = high,
        OFFSET = offset,
        BLOCKS = kind <= MU_SCALE_E ? 2 : 8, /* of 32 columns in a unit */
        PAIRS = BLOCKS / 2,
        LOW_PAIR = 128 * low, /* bytes */
        HIGH_PAIR = 128 * high,
        HIGH_AT = PAIRS * LOW_PAIR,
        SCALES_AT = HIGH_AT + PAIRS * HIGH_PAIR,
        UNIT_BYTES = SCALES_AT + mu_scale_bytes(kind)
    };
    /* 16 rows of a unit take what they take in the file. */
    static_assert(UNIT_BYTES == 16 * sizeof(block) * (kind <= MU_SCALE_E ? 2 : 1), "bytes of a unit");
    static_assert(UNIT_BYTES % 16 == 0, "units are loaded 16 bytes at a time");
};

template <uint32_t type> struct mu_layout;
template <> struct mu_layout<MU_Q4_0> : mu_layout_of<mu_block_q4_0, 4, 0, MU_SCALE_D, 8> {
};
template <> struct mu_layout<MU_Q4_1> : mu_layout_of<mu_block_q4_1, 4, 0, MU_SCALE_DM, 0> {
};
template <> struct mu_layout<MU_Q5_0> : mu_layout_of<mu_block_q5_0, 4, 1, MU_SCALE_D, 16> {
};
template <> struct mu_layout<MU_Q5_1> : mu_layout_of<mu_block_q5_1, 4, 1, MU_SCALE_DM, 0> {
};
template <> struct mu_layout<MU_Q8_0> : mu_layout_of<mu_block_q8_0, 8, 0, MU_SCALE_D, 0> {
};
template <> struct mu_layout<MU_IQ4_NL> : mu_layout_of<mu_block_iq4_nl, 4, 0, MU_SCALE_D, 0, true> {
};
template <> struct mu_layout<MU_MXFP4> : mu_layout_of<mu_block_mxfp4, 4, 0, MU_SCALE_E, 0, true> {
};
template <> struct mu_layout<MU_Q2_K> : mu_layout_of<mu_block_q2_k, 2, 0, MU_SCALE_H4, 0> {
};
template <> struct mu_layout<MU_Q3_K> : mu_layout_of<mu_block_q3_k, 2, 1, MU_SCALE_H6, 4> {
};
template <> struct mu_layout<MU_Q4_K> : mu_layout_of<mu_block_q4_k, 4, 0, MU_SCALE_K, 0> {
};
template <> struct mu_layout<MU_Q5_K> : mu_layout_of<mu_block_q5_k, 4, 1, MU_SCALE_K, 0> {
};
template <> struct mu_layout<MU_Q6_K> : mu_layout_of<mu_block_q6_k, 4, 2, MU_SCALE_H8, 32> {
};
template <> struct mu_layout<MU_IQ4_XS> : mu_layout_of<mu_block_iq4_xs, 4, 0, MU_SCALE_XS, 0, true> {
};

/* Calls F<type>::run(args…) for a type of this layout; what a template is chosen with. false: another type. */
template <template <uint32_t> class F, typename... Args> static inline bool mu_layout_call(uint32_t type, Args... args)
{
    switch (type) {
    case MU_Q4_0: F<MU_Q4_0>::run(args...); return true;
    case MU_Q4_1: F<MU_Q4_1>::run(args...); return true;
    case MU_Q5_0: F<MU_Q5_0>::run(args...); return true;
    case MU_Q5_1: F<MU_Q5_1>::run(args...); return true;
    case MU_Q8_0: F<MU_Q8_0>::run(args...); return true;
    case MU_IQ4_NL: F<MU_IQ4_NL>::run(args...); return true;
    case MU_MXFP4: F<MU_MXFP4>::run(args...); return true;
    case MU_Q2_K: F<MU_Q2_K>::run(args...); return true;
    case MU_Q3_K: F<MU_Q3_K>::run(args...); return true;
    case MU_Q4_K: F<MU_Q4_K>::run(args...); return true;
    case MU_Q5_K: F<MU_Q5_K>::run(args...); return true;
    case MU_Q6_K: F<MU_Q6_K>::run(args...); return true;
    case MU_IQ4_XS: F<MU_IQ4_XS>::run(args...); return true;
    default: return false;
    }
}

/* Bytes of a group of 16 rows; host and device. */
template <uint32_t type> __host__ __device__ static inline size_t mu_layout_group_bytes(int n_col)
{
    typedef mu_layout<type> L;
    return (size_t)((n_col + 32 * L::BLOCKS - 1) / (32 * L::BLOCKS)) * L::UNIT_BYTES;
}

/* ---- codes ---- */

/* Bits of x moved up by n (down where n is negative). */
__device__ static inline uint32_t mu_bits_move(uint32_t x, int n)
{
    return n >= 0 ? x << n : x >> -n;
}

/* Four values of a table of 16 for the nibbles in the low half of w, as bytes, lowest first. at: those nibbles' fourth
 * bits, as a selector between the two halves of the table. */
__device__ static inline uint32_t mu_table_bytes(const uint32_t table[4], uint32_t nibbles7, uint32_t at)
{
    uint32_t low = __byte_perm(table[0], table[1], nibbles7), high = __byte_perm(table[2], table[3], nibbles7);
    return __byte_perm(low, high, at);
}

__host__ __device__ constexpr uint32_t mu_table_word(int a, int b, int c, int d)
{
    return (uint32_t)(a & 255) | (uint32_t)(b & 255) << 8 | (uint32_t)(c & 255) << 16 | (uint32_t)(d & 255) << 24;
}

template <uint32_t type> struct mu_table {
    static constexpr int8_t value[16] = {MU_IQ4_VALUES};
};
template <> struct mu_table<MU_MXFP4> {
    static constexpr int8_t value[16] = {MU_MXFP4_VALUES};
};

/* A word of eight indices (as TABLE types keep them) to the values of a[i] and a[i + 1]. */
template <uint32_t type> __device__ static inline void mu_table_look_up(uint32_t w, uint32_t *a0, uint32_t *a1)
{
    typedef mu_table<type> T;
    constexpr uint32_t w0 = mu_table_word(T::value[0], T::value[1], T::value[2], T::value[3]);
    constexpr uint32_t w1 = mu_table_word(T::value[4], T::value[5], T::value[6], T::value[7]);
    constexpr uint32_t w2 = mu_table_word(T::value[8], T::value[9], T::value[10], T::value[11]);
    constexpr uint32_t w3 = mu_table_word(T::value[12], T::value[13], T::value[14], T::value[15]);
    const uint32_t table[4] = {w0, w1, w2, w3};
    uint32_t nibbles7 = w & 0x77777777u, at = (w >> 1 & 0x44444444u) | 0x32103210u;
    *a0 = mu_table_bytes(table, nibbles7, at);
    *a1 = mu_table_bytes(table, nibbles7 >> 16, at >> 16);
}

/* The lane's words of both blocks of a pair, from its low and high bits (16-byte aligned, shared or global memory):
 * codes with their offset, or values where TABLE. A last odd block's second is zeros (of TABLE: the value of index
 * 0). */
template <uint32_t type>
__device__ static inline void mu_codes_of(const uint8_t *low, const uint8_t *high, int lane, uint32_t a[2][4])
{
    typedef mu_layout<type> L;
    if (L::LOW == 8) {
        for (int k = 0; k < 2; k++) {
            uint4 v = reinterpret_cast<const uint4 *>(low)[32 * k + lane];
            a[k][0] = v.x, a[k][1] = v.y, a[k][2] = v.z, a[k][3] = v.w;
        }
    } else if (L::LOW == 4) {
        uint4 v = reinterpret_cast<const uint4 *>(low)[lane];
        uint32_t w[4] = {v.x, v.y, v.z, v.w};
        for (int i = 0; i < 4; i++) {
            uint32_t *to = &a[i >> 1][2 * (i & 1)];
            if (L::TABLE) {
                mu_table_look_up<type>(w[i], to, to + 1);
            } else {
                to[0] = w[i] & 0x0f0f0f0fu;
                to[1] = w[i] >> 4 & 0x0f0f0f0fu;
            }
        }
    } else {
        uint2 v = reinterpret_cast<const uint2 *>(low)[lane];
        for (int i = 0; i < 4; i++) {
            a[0][i] = v.x >> 2 * i & 0x03030303u;
            a[1][i] = v.y >> 2 * i & 0x03030303u;
        }
    }
    if (L::HIGH == 2) {
        uint2 v = reinterpret_cast<const uint2 *>(high)[lane];
        for (int i = 0; i < 4; i++) {
            a[0][i] |= mu_bits_move(v.x, L::LOW - 2 * i) & 0x03030303u << L::LOW % 8;
            a[1][i] |= mu_bits_move(v.y, L::LOW - 2 * i) & 0x03030303u << L::LOW % 8;
        }
    } else if (L::HIGH == 1) {
        uint32_t v = reinterpret_cast<const uint32_t *>(high)[lane];
        for (int i = 0; i < 8; i++) a[i >> 2][i & 3] |= mu_bits_move(v, L::LOW - i) & 0x01010101u << L::LOW % 8;
    }
}

/* The same of pair p of a unit. */
template <uint32_t type>
__device__ static inline void mu_codes_pair(const uint8_t *unit, int p, int lane, uint32_t a[2][4])
{
    typedef mu_layout<type> L;
    mu_codes_of<type>(unit + p * L::LOW_PAIR, unit + L::HIGH_AT + p * L::HIGH_PAIR, lane, a);
}

/* Unsigned codes as signed bytes, the offset taken off. */
template <uint32_t type> __device__ static inline uint32_t mu_codes_signed(uint32_t a)
{
    typedef mu_layout<type> L;
    if (L::OFFSET == 0) return a;
    return (a + (128 - L::OFFSET) * 0x01010101u) ^ 0x80808080u; /* no carry: codes are below twice the offset */
}

/* ---- scales ---- */

/* What a lane reads of a unit's scales: as it lies, by h. */
struct mu_scales {
    uint32_t w[10];
};

/* One row's of one block. d and m: factors of s and of fl(S·s) (m with its sign, so that acc = fmaf(m, fl(S·s), acc)).
 * HAS_HALVES: d is the row's f16 scale, sc the halves' factors; with HAS_MIN, mn and m = dmin, for acc = fmaf(-(float)Z,
 * fl(m·s), acc). */
struct mu_row_scale {
    float d, m;
    int sc[2], mn[2];
};

/* Byte b of w as a float, exactly: put into the mantissa of 2^23. */
__device__ static inline float mu_byte_float(uint32_t w, int b)
{
    return __uint_as_float(__byte_perm(w, 0x4b000000u, 0x7540u + (uint32_t)b)) - 8388608.0f;
}
__device__ static inline float mu_half_float(uint32_t two, int h)
{
    return mu_half_to_f32((uint16_t)(two >> 16 * h));
}

/* Of the scales at p: unit + SCALES_AT. */
template <uint32_t type> __device__ static inline struct mu_scales mu_scales_load(const uint8_t *p, int g)
{
    typedef mu_layout<type> L;
    struct mu_scales s = {};
    if (L::KIND == MU_SCALE_E) {
        s.w[0] = reinterpret_cast<const uint32_t *>(p)[g];
    } else if (L::KIND == MU_SCALE_DM) {
        uint4 v = reinterpret_cast<const uint4 *>(p)[g];
        s.w[0] = v.x, s.w[1] = v.y, s.w[2] = v.z, s.w[3] = v.w;
    } else if (L::KIND == MU_SCALE_D || L::KIND == MU_SCALE_K || L::KIND == MU_SCALE_H4) {
        uint2 v = reinterpret_cast<const uint2 *>(p)[g];
        s.w[0] = v.x, s.w[1] = v.y;
        p += 64;
    } else {
        s.w[0] = reinterpret_cast<const uint32_t *>(p)[g];
        p += 32;
    }
    constexpr int n_word = L::KIND == MU_SCALE_K || L::KIND == MU_SCALE_H6    ? 3
                           : L::KIND == MU_SCALE_H8 || L::KIND == MU_SCALE_H4 ? 4
                           : L::KIND == MU_SCALE_XS                           ? 1
                                                                              : 0;
    for (int i = 0; i < n_word; i++) {
        uint2 v = reinterpret_cast<const uint2 *>(p)[8 * i + g];
        s.w[2 + 2 * i] = v.x, s.w[3 + 2 * i] = v.y;
    }
    if (L::KIND == MU_SCALE_XS) s.w[4] = reinterpret_cast<const uint32_t *>(p + 64)[g];
    return s;
}

/* Nibbles of four blocks as bytes: of blocks 0 … 3 or 4 … 7 (those of block j). */
__device__ static inline uint32_t mu_scale_nibbles(uint32_t w, int j)
{
    return w >> (j & 4) & 0x0f0f0f0fu;
}
/* The same with two high bits each, at bit `at` of the bytes of high (blocks 4 … 7: two further). */
__device__ static inline uint32_t mu_scale_six(uint32_t w, uint32_t high, int at, int j)
{
    return mu_scale_nibbles(w, j) | (mu_bits_move(high, 4 - at - (j >> 2) * 2) & 0x30303030u);
}

/* Of a K type: those of blocks 4 … 7 in the place of blocks 0 … 3 where second is set (for loops over half a unit, in
 * which j would not be known when they are compiled). */
template <uint32_t type> __device__ static inline void mu_scales_half(struct mu_scales *s, bool second)
{
    typedef mu_layout<type> L;
    int nibble = second ? 4 : 0, two = second ? 2 : 0;
    if (L::KIND == MU_SCALE_H8) {
        for (int h = 0; h < 2; h++) {
            s->w[2 + h] = second ? s->w[4 + h] : s->w[2 + h];
            s->w[6 + h] = second ? s->w[8 + h] : s->w[6 + h];
        }
    } else if (L::KIND == MU_SCALE_K || L::KIND == MU_SCALE_H6) {
        for (int i = 2; i < 8; i++) s->w[i] >>= i < 6 ? nibble : two;
    } else if (L::KIND == MU_SCALE_XS) {
        for (int i = 2; i < 5; i++) s->w[i] >>= i < 4 ? nibble : two;
    } else {
        for (int i = 2; i < 10; i++) s->w[i] >>= nibble;
    }
}

/* Of block j of the unit and row h. With j and h known when it is compiled, what several blocks share is computed
 * once. */
template <uint32_t type>
__device__ static inline struct mu_row_scale mu_scale_of(const struct mu_scales &s, int j, int h)
{
    typedef mu_layout<type> L;
    struct mu_row_scale r = {};
    int b = j & 3;
    switch (L::KIND) {
    case MU_SCALE_D: r.d = mu_half_float(s.w[j & 1], h); break;
    case MU_SCALE_DM:
        r.d = mu_half_float(s.w[2 * (j & 1)], h);
        r.m = mu_half_float(s.w[2 * (j & 1) + 1], h);
        break;
    case MU_SCALE_E: {
        uint32_t e = s.w[0] >> 8 * (2 * (j & 1) + h) & 255; /* as mu_e8m0_half; a block that is not there: 2^-128 */
        r.d = __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
        break;
    }
    case MU_SCALE_K:
        r.d = mu_half_float(s.w[0], h) * mu_byte_float(mu_scale_six(s.w[2 + h], s.w[6 + h], 0, j), b);
        r.m = -(mu_half_float(s.w[1], h) * mu_byte_float(mu_scale_six(s.w[4 + h], s.w[6 + h], 4, j), b));
        break;
    case MU_SCALE_XS:
        r.d = mu_half_float(s.w[0], h) * (mu_byte_float(mu_scale_six(s.w[2 + h], s.w[4], 4 * h, j), b) - 32.0f);
        break;
    case MU_SCALE_H6:
        r.d = mu_half_float(s.w[0], h);
        r.sc[0] = (int)(mu_scale_six(s.w[2 + h], s.w[6 + h], 0, j) >> 8 * b & 255) - 32;
        r.sc[1] = (int)(mu_scale_six(s.w[4 + h], s.w[6 + h], 4, j) >> 8 * b & 255) - 32;
        break;
    case MU_SCALE_H8:
        r.d = mu_half_float(s.w[0], h);
        for (int i = 0; i < 2; i++) r.sc[i] = (int8_t)(s.w[2 + 4 * i + 2 * (j >> 2) + h] >> 8 * b);
        break;
    case MU_SCALE_H4:
        r.d = mu_half_float(s.w[0], h);
        r.m = mu_half_float(s.w[1], h);
        for (int i = 0; i < 2; i++) {
            r.sc[i] = (int)(mu_scale_nibbles(s.w[2 + 4 * i + h], j) >> 8 * b & 255);
            r.mn[i] = (int)(mu_scale_nibbles(s.w[4 + 4 * i + h], j) >> 8 * b & 255);
        }
        break;
    }
    return r;
}

#endif
