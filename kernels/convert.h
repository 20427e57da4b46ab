/* Number formats that values pass through: bf16, f16, and C1's int8 with a scale. The definitions, for every table and
 * for devices. Pure functions. */
#ifndef MU_KERNELS_CONVERT_H
#define MU_KERNELS_CONVERT_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

#include "kernels/inline.h"

MU_DEVICE_INLINE uint32_t mu_f32_bits(float f)
{
    union {
        float f;
        uint32_t u;
    } v;
    v.f = f;
    return v.u;
}
MU_DEVICE_INLINE float mu_f32_from_bits(uint32_t u)
{
    union {
        uint32_t u;
        float f;
    } v;
    v.u = u;
    return v.f;
}

MU_DEVICE_INLINE bool mu_f16_finite(uint16_t h)
{
    return (h & 0x7c00u) != 0x7c00u;
}
MU_DEVICE_INLINE bool mu_bf16_finite(uint16_t h)
{
    return (h & 0x7f80u) != 0x7f80u;
}
MU_DEVICE_INLINE bool mu_f32_finite(float f)
{
    return (mu_f32_bits(f) & 0x7f800000u) != 0x7f800000u;
}

MU_DEVICE_INLINE float mu_bf16_to_f32(uint16_t h)
{
    return mu_f32_from_bits((uint32_t)h << 16);
}
/* Round to nearest even; a NaN stays a NaN. */
MU_DEVICE_INLINE uint16_t mu_f32_to_bf16(float f)
{
    uint32_t u = mu_f32_bits(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40u);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

MU_DEVICE_INLINE float mu_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exp = (h >> 10) & 31u, man = h & 0x3ffu;
    if (exp == 0) return mu_f32_from_bits(mu_f32_bits((float)man * 0x1p-24f) | sign); /* zero or subnormal, exact */
    if (exp == 31) /* a NaN becomes a quiet one, as F16C does */
        return mu_f32_from_bits(sign | 0x7f800000u | man << 13 | (man ? 0x400000u : 0));
    return mu_f32_from_bits(sign | (exp + 112u) << 23 | man << 13);
}
/* Round to nearest even, overflow to infinity. */
MU_DEVICE_INLINE uint16_t mu_f32_to_f16(float f)
{
    uint32_t u = mu_f32_bits(f), sign = u >> 16 & 0x8000u, abs = u & 0x7fffffffu;
    if (abs > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (abs >> 13 & 0x3ffu)); /* NaN, quiet */
    if (abs >= 0x47800000u) return (uint16_t)(sign | 0x7c00u);                       /* ≥ 65536 */
    uint32_t man, shift, exp;
    if (abs >= 0x38800000u) { /* normal in f16 */
        exp = (abs >> 23) - 112u;
        man = abs & 0x7fffffu;
        shift = 13;
    } else { /* subnormal: align the significand to 2^-24 */
        uint32_t e = abs >> 23;
        if (e < 102) return (uint16_t)sign; /* below 2^-25: rounds to zero */
        exp = 0;
        man = (abs & 0x7fffffu) | 0x800000u;
        shift = 126u - e;
    }
    uint32_t kept = man >> shift, rest = man & ((1u << shift) - 1u), half = 1u << (shift - 1);
    uint32_t out = exp << 10 | kept;
    if (rest > half || (rest == half && (kept & 1u))) out++; /* a carry into the exponent is what rounding up means */
    return (uint16_t)(sign | out);
}

/* C1 of one block, from its largest magnitude: the scale, what values are multiplied with, and a value's code. Below
 * 2^-100 the scale's products would leave f32's normal range: such a block is all zero. */
MU_DEVICE_INLINE float mu_q8_scale(float amax)
{
    return amax < 0x1p-100f ? 0.0f : amax / 127.0f;
}
MU_DEVICE_INLINE float mu_q8_inverse(float amax)
{
    return amax < 0x1p-100f ? 0.0f : 127.0f / amax;
}
MU_DEVICE_INLINE int8_t mu_q8_code(float x, float inverse)
{
    int v = (int)nearbyintf(x * inverse);
    return (int8_t)(v > 127 ? 127 : v < -127 ? -127 : v);
}

#endif
