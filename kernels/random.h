/* Counter-based random numbers of the sampler: Gumbel-max sampling without state. Philox-4x32-10, counter (position, id),
 * key seed. J. Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC11). Pure functions. */
#ifndef MU_KERNELS_RANDOM_H
#define MU_KERNELS_RANDOM_H

#include <stdint.h>

#include "kernels/inline.h"

/* Of a random word 23 bits and a half: 24 significant bits, exact in f32, never 0 or 1. */
MU_DEVICE_INLINE float mu_random_unit_of(uint32_t word)
{
    return ((float)(int32_t)(word >> 9) + 0.5f) * 0x1p-23f;
}

/* Uniform in (0,1), keyed by (seed, position, id). */
MU_DEVICE_INLINE float mu_random_unit(uint64_t seed, uint64_t position, uint64_t id)
{
    uint32_t c0 = (uint32_t)position, c1 = (uint32_t)(position >> 32), c2 = (uint32_t)id, c3 = (uint32_t)(id >> 32);
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)c0 * 0xd2511f53u, b = (uint64_t)c2 * 0xcd9e8d57u;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)b;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)a;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    return mu_random_unit_of(c0);
}

#endif
