/* The layout inside a page of the cache, and how it is read and written. Private to rotate.cu and attention.
 *
 * A page holds 32 positions of one KV head: its keys, then its values, each mu_kv_bytes(type, d_head, 32) bytes. A score
 * is a chain over dimensions and a warp computes 32 of them, so of keys lanes are positions and a lane takes several
 * dimensions with one load. A weighted value is a chain over positions, so of values lanes are dimensions and a lane
 * takes several positions with one load. Either way the 32 lanes read 512 bytes that lie together:
 *
 *           keys                                            values
 *   F16     f16 [d_head / 8][32 positions][8 dimensions]    f16 [4][d_head][8 positions]
 *   Q8_0    i8 [d_head / 16][32][16],                       i8 [2][d_head][16],
 *           f32 scale [blocks][32 positions]                f32 scale [blocks][32 positions]
 *
 * where the last group of keys may be short: [32][d_head % 8] or [32][d_head % 16], read value by value.
 *
 * Both formats are read in units of 16 values: of a key 16 dimensions, zeros standing for those beyond d_head; of a
 * value 16 positions of one dimension. Loading a unit and widening it are apart, so that loads can be far ahead. */
#ifndef MU_KERNELS_CUDA_KV_H
#define MU_KERNELS_CUDA_KV_H

#include "kernels/convert.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/ptx.h"

enum { MU_KV_PAGE = 32, MU_KV_UNIT = 16 };

/* The keys of KV head `head` on page i of that slot; the values are page_bytes / 2 further. */
static __device__ inline unsigned char *mu_kv_page(const struct mu_device_kv *kv, int head, int slot, int i)
{
    size_t page = kv->table[(size_t)slot * kv->max_page + (size_t)i];
    return (unsigned char *)kv->data + ((size_t)head * kv->n_page + page) * kv->page_bytes;
}

static __device__ inline uint32_t mu_kv_word(uint4 v, int i)
{
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

/* n values of `bytes` each that lie together anywhere, at most 16 bytes of them, as the start of a vector of zeros. */
static __device__ inline uint4 mu_kv_short(const unsigned char *at, int n, int bytes)
{
    uint32_t w[4] = {0, 0, 0, 0};
    for (int i = 0; i < n * bytes; i++) w[i / 4] |= (uint32_t)at[i] << (8 * (i % 4));
    return make_uint4(w[0], w[1], w[2], w[3]);
}

/* RAGGED: d_head is no multiple of 16. Kernels for such heads are apart, since few models have them, and reading value by
 * value takes registers. */
template <bool RAGGED> struct mu_kv_f16 {
    struct unit {
        uint4 low, high;
    };

    static __device__ inline uint4 key_group(const unsigned char *keys, int d_head, int group, int pos)
    {
        int rest = d_head - 8 * group;
        if (!RAGGED || rest >= 8) return *(const uint4 *)(keys + 512 * group + 16 * pos);
        if (rest <= 0) return make_uint4(0, 0, 0, 0);
        return mu_kv_short(keys + 512 * group + 2 * rest * pos, rest, 2);
    }
    /* Dimensions [16u, 16u + 16) at pos. */
    static __device__ inline unit key(const unsigned char *keys, int d_head, int u, int pos)
    {
        return {key_group(keys, d_head, 2 * u, pos), key_group(keys, d_head, 2 * u + 1, pos)};
    }
    /* Positions [16u, 16u + 16) of dimension d; the whole warp, lanes in ascending dimensions from a multiple of 32.
     * From d_head on: zeros. */
    static __device__ inline unit value(const unsigned char *values, int d_head, int u, int d)
    {
        if (d >= d_head) return none();
        const uint4 *at = (const uint4 *)values + 2 * u * d_head + d;
        return {at[0], at[d_head]};
    }
    static __device__ inline unit none(void) { return {make_uint4(0, 0, 0, 0), make_uint4(0, 0, 0, 0)}; }
    /* Four of the values: [4i, 4i + 4). key_widen: of a key. value_widen: of a value, the whole warp. */
    static __device__ inline void key_widen(const unit &v, int i, float out[4])
    {
        const uint4 &half = i < 2 ? v.low : v.high;
#pragma unroll
        for (int k = 0; k < 4; k++)
            out[k] = mu_half_to_f32((uint16_t)(mu_kv_word(half, 2 * i % 4 + k / 2) >> (16 * (k % 2))));
    }
    static __device__ inline void value_widen(const unit &v, int i, float out[4])
    {
        key_widen(v, i, out);
    }

    /* A warp stores x[d_head], which is in shared memory, at pos of the page. */
    static __device__ inline void key_store(unsigned char *keys, int d_head, int pos, const float *x, int lane)
    {
        for (int d = lane; d < d_head; d += 32) {
            int rest = d_head - d / 8 * 8, width = rest < 8 ? rest : 8;
            *(uint16_t *)(keys + 512 * (d / 8) + 2 * (width * pos + d % 8)) = mu_f32_to_half(x[d]);
        }
    }
    static __device__ inline void value_store(unsigned char *values, int d_head, int pos, const float *x, int lane)
    {
        uint16_t *to = (uint16_t *)values + 8 * (size_t)(pos / 8) * (size_t)d_head + pos % 8;
        for (int d = lane; d < d_head; d += 32) to[8 * d] = mu_f32_to_half(x[d]);
    }
};

template <bool RAGGED> struct mu_kv_q8 {
    struct unit {
        uint4 code;
        float scale; /* of a key: that of its block; of a value: lane i has that of position i mod 16 */
    };

    static __device__ inline float *scales(const unsigned char *half, int d_head)
    {
        return (float *)(half + MU_KV_PAGE * d_head);
    }
    static __device__ inline unit key(const unsigned char *keys, int d_head, int u, int pos)
    {
        int rest = d_head - MU_KV_UNIT * u;
        const unsigned char *group = keys + 512 * u;
        uint4 code = !RAGGED || rest >= MU_KV_UNIT ? *(const uint4 *)(group + 16 * pos)
                                                   : mu_kv_short(group + rest * pos, rest, 1);
        return {code, scales(keys, d_head)[MU_KV_PAGE * (u / 2) + pos]};
    }
    static __device__ inline unit value(const unsigned char *values, int d_head, int u, int d)
    {
        unit v = none();
        if (d / MU_Q_BLOCK * MU_Q_BLOCK < d_head)
            v.scale = scales(values, d_head)[MU_KV_PAGE * (d / MU_Q_BLOCK) + MU_KV_UNIT * u + d % MU_KV_UNIT];
        if (d < d_head) v.code = ((const uint4 *)values)[u * d_head + d];
        return v;
    }
    static __device__ inline unit none(void) { return {make_uint4(0, 0, 0, 0), 0.0f}; }
    /* Four codes as floats: a code plus 128 in the low bits of 2^23. */
    static __device__ inline void widen(uint4 code, int i, float out[4])
    {
        uint32_t biased = mu_kv_word(code, i) ^ 0x80808080u;
#pragma unroll
        for (int k = 0; k < 4; k++)
            out[k] = __uint_as_float(__byte_perm(biased, 0x4b000000u, 0x7540u + (unsigned)k)) - 8388736.0f;
    }
    static __device__ inline void key_widen(const unit &v, int i, float out[4])
    {
        widen(v.code, i, out);
#pragma unroll
        for (int k = 0; k < 4; k++) out[k] = out[k] * v.scale;
    }
    static __device__ inline void value_widen(const unit &v, int i, float out[4])
    {
        widen(v.code, i, out);
#pragma unroll
        for (int k = 0; k < 4; k++) out[k] = out[k] * __shfl_sync(0xffffffffu, v.scale, 4 * i + k);
    }

    /* C1 of the 32 values from x[d0] on, a lane each: what lies beyond d_head counts as zeros. */
    static __device__ inline int8_t quantize(const float *x, int d_head, int d0, int lane, float *scale)
    {
        float v = d0 + lane < d_head ? x[d0 + lane] : 0.0f, most = fabsf(v);
        bool finite = __all_sync(0xffffffffu, mu_f32_finite(v));
        for (int i = 16; i > 0; i /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, i));
        *scale = finite ? mu_q8_scale(most) : mu_f32_from_bits(0x7fc00000u);
        return finite ? mu_q8_code(v, mu_q8_inverse(most)) : (int8_t)0;
    }
    static __device__ inline void key_store(unsigned char *keys, int d_head, int pos, const float *x, int lane)
    {
        for (int d0 = 0; d0 < d_head; d0 += MU_Q_BLOCK) {
            float scale;
            int8_t code = quantize(x, d_head, d0, lane, &scale);
            int d = d0 + lane, group = d / MU_KV_UNIT, rest = d_head - MU_KV_UNIT * group;
            int width = rest < MU_KV_UNIT ? rest : MU_KV_UNIT;
            if (d < d_head) ((int8_t *)keys)[512 * group + width * pos + d % MU_KV_UNIT] = code;
            if (lane == 0) scales(keys, d_head)[d0 + pos] = scale;
        }
    }
    static __device__ inline void value_store(unsigned char *values, int d_head, int pos, const float *x, int lane)
    {
        int8_t *to = (int8_t *)values + MU_KV_UNIT * (pos / MU_KV_UNIT) * d_head + pos % MU_KV_UNIT;
        for (int d0 = 0; d0 < d_head; d0 += MU_Q_BLOCK) {
            float scale;
            int8_t code = quantize(x, d_head, d0, lane, &scale);
            if (d0 + lane < d_head) to[MU_KV_UNIT * (d0 + lane)] = code;
            if (lane == 0) scales(values, d_head)[d0 + pos] = scale;
        }
    }
};

#endif
