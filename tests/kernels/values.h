/* Values that tests of kernels are made of: a generator, and matrices in the file's form. */
#ifndef MU_TESTS_KERNELS_VALUES_H
#define MU_TESTS_KERNELS_VALUES_H

#include <math.h>
#include <string.h>

#include "kernels/types.h"

enum values { ORDINARY, EXTREME, TINY, N_VALUES };

static uint64_t rng = 7;
static inline uint32_t rnd(void)
{
    rng = rng * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(rng >> 33);
}
static inline float uniform(float lo, float hi)
{
    return lo + (hi - lo) * (float)(rnd() >> 7) * 0x1p-24f;
}

/* f16 scales: ordinary ones; or subnormal, zero, negative, the largest. */
static inline uint16_t scale16(enum values v)
{
    static const uint16_t hard[] = {0x0000, 0x8000, 0x0001, 0x03ff, 0x8201, 0x7bff, 0xfbff, 0x0400, 0x2e66};
    static const uint16_t tiny[] = {0x0000, 0x0001, 0x8003, 0x0100};
    if (v == EXTREME) return hard[rnd() % 9];
    if (v == TINY) return tiny[rnd() % 4];
    return mu_f32_to_f16(uniform(-0.02f, 0.02f));
}

static inline void put16(uint8_t *p, uint16_t h)
{
    memcpy(p, &h, 2);
}

/* IQ1_M's scale is the upper nibbles of four words. */
static inline void put_iq1_m(uint8_t *block, uint16_t h)
{
    for (int n = 0; n < 4; n++) block[49 + 2 * n] = (uint8_t)((block[49 + 2 * n] & 15) | (h >> 4 * n & 15) << 4);
}

/* Where a block's f16 scales lie: two, or one twice. MXFP4 has none. */
static inline void scales_at(uint32_t type, int at[2])
{
    at[0] = at[1] = 0;
    switch (type) {
    case MU_Q4_1:
    case MU_Q5_1:
    case MU_Q4_K:
    case MU_Q5_K: at[1] = 2; break;
    case MU_Q2_K: at[0] = 80, at[1] = 82; break;
    case MU_Q3_K: at[0] = at[1] = 108; break;
    case MU_Q6_K: at[0] = at[1] = 208; break;
    case MU_TQ1_0: at[0] = at[1] = 52; break;
    case MU_TQ2_0: at[0] = at[1] = 64; break;
    default: break;
    }
}

/* A tensor in the file's form. Codes are random bytes, or all ones and all zeros where extreme. */
static inline void raw_fill(uint32_t type, uint8_t *raw, size_t bytes, enum values v)
{
    const struct mu_type_info *t = mu_type_info(type);
    for (size_t i = 0; i < bytes; i++)
        raw[i] = (uint8_t)(v == EXTREME && rnd() % 4 ? (rnd() & 1 ? 0xff : rnd() & 1 ? 0x80 : 0) : rnd());
    for (size_t i = 0; i < bytes; i += (size_t)t->block_bytes) {
        uint8_t *b = raw + i;
        float f = uniform(-1, 1) * (v == TINY ? 0x1p-120f : v == EXTREME ? ldexpf(1, (int)(rnd() % 120) - 60) : 1.0f);
        switch (type) {
        case MU_F32: memcpy(b, &f, 4); break;
        case MU_F16: put16(b, v == TINY ? (uint16_t)(rnd() & 0x83ff) : mu_f32_to_f16(uniform(-2, 2))); break;
        case MU_BF16:
            if (v == TINY) f = uniform(-1, 1) * ldexpf(1, -80 + (int)(rnd() % 30));
            put16(b, rnd() % 16 == 0 ? (uint16_t)(rnd() & 0x807f) : mu_f32_to_bf16(f));
            break;
        case MU_MXFP4: b[0] = (uint8_t)(v == EXTREME ? rnd() % 255 : v == TINY ? rnd() % 4 : 100 + rnd() % 40); break;
        case MU_IQ1_M: put_iq1_m(b, scale16(v)); break;
        default: {
            int at[2];
            scales_at(type, at);
            put16(b + at[0], scale16(v));
            if (at[1] != at[0]) put16(b + at[1], scale16(v));
        }
        }
    }
}

#endif
