/* Packed codes (layout.h) as operand A of the tensor cores' bf16 product: a step of 16 columns is half a block.
 *
 * Order. The four bytes of a lane's word are columns 4t … 4t+3 of its row, and a fragment wants pairs of columns. Which
 * ones is free, as long as the vectors are taken alike: bytes 0 and 2 make one pair, 1 and 3 the other, for then a mask
 * or a shift by 8 takes both to where they go. So of 16 columns the even ones come first, then the odd ones
 * (rough_vectors.h).
 *
 * Values. bf16 has 8 bits, so to round a weight and a value of a vector, once each, is all that A/128 has room for.
 *
 *   no minimum    Codes become integers in bf16, exactly, by the bits: 0x4300 | c is 128 + c for c below 128, and the
 *                 offset is taken off with the 128. A signed byte is 0x4300 | its low seven bits, less 0x4300 | its top
 *                 bit, which is 128 or 256. The scale D is the sum of two bf16, D1 + D2, and t·D1 + t·D2 two fmas, each of
 *                 two weights at once: only what the second gives is rounded noticeably.
 *   minimum       What would be rounded in bf16 is large beside D·c + m where that is small. So in f32: the code's bits
 *                 in a mantissa make 2^k + c, an addition takes 2^k off, exactly, and one fmaf makes the weight.
 *
 * The factors of a row are prepared once a block of threads, a stage ahead: D1 and D2, each twice in a word, or D and
 * m. */
#ifndef MU_KERNELS_CUDA_ROUGH_CODES_H
#define MU_KERNELS_CUDA_ROUGH_CODES_H

#include "kernels/cuda/tiles_kernel.h"

template <uint32_t type, typename Shape> struct mu_rough_codes {
    typedef mu_layout<type> L;
    typedef mu_tile<type, Shape> T;
    typedef mu_tile_memory<type, Shape> M;
    static constexpr int BITS = (int)L::LOW + (int)L::HIGH;
    static constexpr uint32_t ONE = 0x3f803f80u, MINUS_ONE = 0xbf80bf80u, MINUS_ZERO = 0x80008000u;
    static constexpr uint32_t MAGIC = 0x43004300u; /* 128, 128 */
    enum {
        GROUP = M::GROUP, /* bytes of 16 rows in a stage, which is a pair of blocks */
        SETS = L::HAS_HALVES ? 2 : 1,
        WORDS = 2, /* of a row and a set */
        PREPARED = Shape::BLOCKS * SETS * WORDS * (int)Shape::GROUPS * 64,
    };
    static_assert(Shape::P == 1 && (L::SIGNED || BITS <= 6), "one pair in a stage; codes below 128");

    __device__ static size_t group_at(int group, int n_col)
    {
        return (size_t)group * mu_layout_group_bytes<type>(n_col);
    }

    __device__ static void copy(uint8_t *stage, const uint8_t *group, int n_col, unsigned b)
    {
        T::copy_codes(stage, group, (unsigned)n_col / 32, b);
    }

    /* ---- what is prepared ---- */

    /* Word i of rows g and g + 8 of a group, for set `set` of the stage. */
    __device__ static unsigned factor_at(int set, unsigned group, int i, unsigned g)
    {
        return ((((unsigned)set * Shape::GROUPS + group) * WORDS + (unsigned)i) * 8 + g) * 8;
    }

    __device__ static void row_store(uint8_t *to, float d, float m)
    {
        uint32_t first = __float_as_uint(d), second = __float_as_uint(m);
        if constexpr (!L::HAS_MIN) {
            first = mu_bf16_pair(d, d);
            float rest = d - __uint_as_float(first << 16);
            second = mu_bf16_pair(rest, rest);
        }
        *reinterpret_cast<uint32_t *>(to) = first;
        *reinterpret_cast<uint32_t *>(to + 64) = second;
    }

    /* Row h of the group, of block k of the stage, which is block j of the unit or of the half of one. */
    template <int j>
    __device__ static void block_store(uint8_t *prepared, const struct mu_scales &scales, int k, unsigned group,
                                       unsigned g, unsigned h)
    {
        struct mu_row_scale r = h ? mu_scale_of<type>(scales, j, 1) : mu_scale_of<type>(scales, j, 0);
#pragma unroll
        for (int i = 0; i < SETS; i++) {
            float d = L::HAS_HALVES ? r.d * (float)r.sc[i] : r.d;
            float m = L::HAS_HALVES ? -(r.m * (float)r.mn[i]) : r.m;
            row_store(prepared + factor_at(SETS * k + i, group, 0, g) + 4 * h, d, m);
        }
    }

    /* The factors of the stage whose first block is b. */
    __device__ static void prepare(const uint8_t *stage, uint8_t *prepared, unsigned b)
    {
        constexpr unsigned rows = Shape::GROUPS * 8, n = 2 * rows;
#pragma unroll
        for (unsigned first = 0; first < n; first += Shape::THREADS) {
            unsigned i = first + threadIdx.x, group = i % rows / 8, g = i % 8, h = i / rows;
            if (first + Shape::THREADS > n && i >= n) break;
            struct mu_scales scales = mu_scales_load<type>(stage + group * M::GROUP + M::SCALES_AT, (int)g);
            unsigned pair = M::WHOLE ? 0 : b % L::BLOCKS / 2; /* of the unit */
            if (pair >= 2) mu_scales_half<type>(&scales, true);
            if (pair % 2 == 0) {
                block_store<0>(prepared, scales, 0, group, g, h);
                block_store<1>(prepared, scales, 1, group, g, h);
            } else {
                block_store<M::WHOLE ? 0 : 2>(prepared, scales, 0, group, g, h);
                block_store<M::WHOLE ? 1 : 3>(prepared, scales, 1, group, g, h);
            }
        }
    }

    /* ---- fragments ---- */

    typedef struct mu_tile_codes<type> bits; /* of a group, as much as the steps to come need */

    /* What step `step` needs and the ones before did not. group: of the stage; lane: the thread's. */
    template <int step> __device__ static void load(const uint8_t *group, unsigned lane, bits *c)
    {
        if constexpr (L::LOW < 8) {
            if (step == 0) *c = mu_tile_codes_load<type>(group, group + M::HIGH, (int)lane);
        } else if constexpr (step % 2 == 0) {
            constexpr int k = step / 2;
            uint4 v = reinterpret_cast<const uint4 *>(group)[32 * k + (int)lane];
            c->low[4 * k] = v.x, c->low[4 * k + 1] = v.y, c->low[4 * k + 2] = v.z, c->low[4 * k + 3] = v.w;
        }
    }

    /* The codes of row g (h 0) or g + 8 as bytes. */
    template <int step> __device__ static uint32_t bytes_of(const bits &c, int h)
    {
        constexpr int k = step / 2, first = 2 * (step % 2), high_words = mu_tile_codes<type>::HIGH_WORDS;
        constexpr uint32_t each = 0x01010101u, low_mask = ((1u << L::LOW) - 1) * each;
        constexpr uint32_t high_mask = ((1u << L::HIGH) - 1) * each << L::LOW % 8;
        const int i = first + h;
        uint32_t a = L::LOW == 4 ? c.low[step % mu_tile_codes<type>::LOW_WORDS] >> 4 * h
                                 : c.low[k % mu_tile_codes<type>::LOW_WORDS] >> 2 * i;
        a &= low_mask;
        if constexpr (L::HIGH > 0) {
            int by = L::HIGH == 2 ? 2 * i : 4 * k + i;
            a |= mu_bits_move(c.high[L::HIGH == 2 ? k % high_words : 0], (int)L::LOW - by) & high_mask;
        }
        return a;
    }

    /* Integers of the step, as they are multiplied by D. */
    template <int step> __device__ static void integers(const bits &c, uint32_t a[4])
    {
        if constexpr (L::SIGNED) {
            uint32_t v[2];
            if constexpr (L::TABLE)
                mu_table_look_up<type>(c.low[step], &v[0], &v[1]);
            else
                v[0] = c.low[2 * step], v[1] = c.low[2 * step + 1];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                uint32_t w = v[i % 2] >> 8 * (i / 2);
                a[i] = mu_bf16_pair_fma((w & 0x00800080u) | MAGIC, MINUS_ONE, (w & 0x007f007fu) | MAGIC);
            }
        } else {
            constexpr uint32_t offset = 0xc300u + (uint32_t)L::OFFSET; /* -(128 + offset) */
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if constexpr (L::LOW == 4 && L::HIGH == 0)
                    a[i] = c.low[step] >> 4 * i & 0x000f000fu;
                else
                    a[i] = bytes_of<step>(c, i % 2) >> 8 * (i / 2) & 0x007f007fu;
                a[i] = mu_bf16_pair_fma(a[i] | MAGIC, ONE, offset << 16 | offset);
            }
        }
    }

    /* The codes of the step and row g (h 0) or g + 8, as f32. */
    template <int step> __device__ static void codes(const bits &c, int h, float v[4])
    {
        if constexpr (L::LOW == 4 && L::HIGH == 0) {
            uint32_t word = c.low[step];
#pragma unroll
            for (int i = 0; i < 4; i++) { /* a nibble that begins at bit 16 or below stays where it is */
                int at = 8 * i + 4 * h, down = at > 16 ? 12 : 0;
                uint32_t magic = (uint32_t)(150 - (at - down)) << 23;
                v[i] = __uint_as_float((word >> down & 15u << (at - down)) | magic) - __uint_as_float(magic);
            }
        } else {
            uint32_t bytes = bytes_of<step>(c, h);
#pragma unroll
            for (int i = 0; i < 4; i++)
                v[i] = __uint_as_float(__byte_perm(bytes, 0x43000000u, 0x7044u + 0x100u * (uint32_t)i)) - 128.0f;
        }
    }

    /* Operand A of the step, as weights, of the group that is r behind the one whose factors, of the lane's row, begin
     * there. */
    template <int step> __device__ static void fragment(const bits &c, const uint8_t *factors, int r, uint32_t a[4])
    {
        int set = L::HAS_HALVES ? step : step / 2;
        uint2 first = *reinterpret_cast<const uint2 *>(factors + factor_at(set, (unsigned)r, 0, 0));
        uint2 second = *reinterpret_cast<const uint2 *>(factors + factor_at(set, (unsigned)r, 1, 0));
        if constexpr (L::HAS_MIN) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float d = __uint_as_float(h ? first.y : first.x), m = __uint_as_float(h ? second.y : second.x), w[4];
                codes<step>(c, h, w);
#pragma unroll
                for (int i = 0; i < 4; i++) w[i] = fmaf(w[i], d, m);
                a[h] = mu_bf16_pair(w[0], w[2]);
                a[2 + h] = mu_bf16_pair(w[1], w[3]);
            }
        } else {
            uint32_t t[4];
            integers<step>(c, t);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                uint32_t rest = MINUS_ZERO; /* powers of two have none */
                if constexpr (L::KIND != MU_SCALE_E) rest = mu_bf16_pair_fma(t[i], i % 2 ? second.y : second.x, rest);
                a[i] = mu_bf16_pair_fma(t[i], i % 2 ? first.y : first.x, rest);
            }
        }
    }
};

#endif
