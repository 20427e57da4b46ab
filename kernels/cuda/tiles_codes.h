/* Packed codes (layout.h) as operand A of the tensor cores' int8 product, in as few instructions as it takes.
 *
 * A type whose codes carry an offset of half their range wants them signed. Taking the offset off costs an addition and
 * an exclusive or for every word; instead a code of n bits is moved to the top of its byte on its way out of the plane,
 * where flipping the top bit makes it (code - offset)·2^(8-n) in two's complement. The integer sums are then 2^LIFT
 * times C2's, LIFT = 8 - n, and below 2^19; what converts them to f32 takes the power of two off again, exactly
 * (tiles_kernel.h). Codes without an offset, Q8_0's bytes and what comes out of a table stay as they are. */
#ifndef MU_KERNELS_CUDA_TILES_CODES_H
#define MU_KERNELS_CUDA_TILES_CODES_H

#include "kernels/cuda/layout.h"

template <uint32_t type> struct mu_tile_codes {
    typedef mu_layout<type> L;
    static constexpr int LIFT = L::OFFSET != 0 ? 8 - L::LOW - L::HIGH : 0;
    static_assert(L::OFFSET == 0 || L::OFFSET == 1 << (L::LOW + L::HIGH - 1), "the offset is half the range");
    enum {
        LOW_WORDS = L::LOW, /* a lane's, of a pair of blocks */
        HIGH_WORDS = L::HIGH > 0 ? L::HIGH : 1,
    };
    uint32_t low[LOW_WORDS], high[HIGH_WORDS];
};

/* The lane's bits of a pair of blocks, whose planes begin at low and high (shared memory). */
template <uint32_t type>
__device__ static inline struct mu_tile_codes<type> mu_tile_codes_load(const uint8_t *low, const uint8_t *high,
                                                                       int lane) {
    typedef mu_layout<type> L;
    struct mu_tile_codes<type> c;
    if constexpr (L::LOW == 2) {
        uint2 v = reinterpret_cast<const uint2 *>(low)[lane];
        c.low[0] = v.x, c.low[1] = v.y;
    } else {
#pragma unroll
        for (int i = 0; i < L::LOW / 4; i++) {
            uint4 v = reinterpret_cast<const uint4 *>(low)[32 * i + lane];
            c.low[4 * i] = v.x, c.low[4 * i + 1] = v.y, c.low[4 * i + 2] = v.z, c.low[4 * i + 3] = v.w;
        }
    }
    if constexpr (L::HIGH == 2) {
        uint2 v = reinterpret_cast<const uint2 *>(high)[lane];
        c.high[0] = v.x, c.high[1] = v.y;
    } else if constexpr (L::HIGH == 1) {
        c.high[0] = reinterpret_cast<const uint32_t *>(high)[lane];
    } else {
        c.high[0] = 0;
    }
    return c;
}

/* a[0 … 3] of block k of the pair: signed bytes, codes less their offset times 2^LIFT, or values of the table. */
template <uint32_t type, int k>
__device__ static inline void mu_tile_codes_block(const struct mu_tile_codes<type> &c, uint32_t a[4])
{
    typedef mu_layout<type> L;
    constexpr int lift = mu_tile_codes<type>::LIFT;
    if constexpr (L::LOW == 8) {
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = c.low[4 * k + i];
    } else if constexpr (L::TABLE) {
        mu_table_look_up<type>(c.low[2 * k], &a[0], &a[1]);
        mu_table_look_up<type>(c.low[2 * k + 1], &a[2], &a[3]);
    } else {
        constexpr uint32_t each = 0x01010101u, flip = L::OFFSET != 0 ? 0x80808080u : 0;
        constexpr uint32_t low_bits = ((1u << L::LOW) - 1) * each << lift;
        constexpr uint32_t high_bits = ((1u << L::HIGH) - 1) * each << (lift + L::LOW) % 8;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t w = L::LOW == 4 ? c.low[2 * k + i / 2] : c.low[k % mu_tile_codes<type>::LOW_WORDS];
            a[i] = mu_bits_move(w, lift - (L::LOW == 4 ? 4 * (i % 2) : 2 * i)) & low_bits;
            if constexpr (L::HIGH > 0) {
                uint32_t h = L::HIGH == 2 ? c.high[k % mu_tile_codes<type>::HIGH_WORDS] : c.high[0];
                a[i] |= mu_bits_move(h, lift + L::LOW - (L::HIGH == 2 ? 2 * i : 4 * k + i)) & high_bits;
            }
            a[i] ^= flip;
        }
    }
}

#endif
