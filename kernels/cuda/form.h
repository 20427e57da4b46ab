/* Vectors in the forms that matrices want (struct mu_act_to), for kernels that have the values in registers: the last
 * step of a norm, of form.cu, of a product.
 *
 * V consecutive values are a thread's, and the lanes of a warp lie side by side, so 32 / V lanes hold one block of C1
 * and find its largest magnitude by shuffles. No order shows in a maximum or in a sum of integers. */
#ifndef MU_KERNELS_CUDA_FORM_H
#define MU_KERNELS_CUDA_FORM_H

#include "kernels/convert.h"
#include "kernels/cuda/cuda.h"

/* V values at once; for V = 4 the address is a multiple of 16 bytes. */
template <int V> static __device__ inline void mu_load_values(float (&v)[V], const float *from)
{
    if (V == 4) {
        float4 four = *reinterpret_cast<const float4 *>(from);
        v[0] = four.x, v[1 % V] = four.y, v[2 % V] = four.z, v[3 % V] = four.w;
    } else {
        for (int j = 0; j < V; j++) v[j] = from[j];
    }
}
template <int V> static __device__ inline void mu_store_values(float *to, const float (&v)[V])
{
    if (V == 4)
        *reinterpret_cast<float4 *>(to) = make_float4(v[0], v[1 % V], v[2 % V], v[3 % V]);
    else
        for (int j = 0; j < V; j++) to[j] = v[j];
}

/* Rounded to bf16, 8 bytes at once for V = 4. */
template <int V> static __device__ inline void mu_store_bf16(uint16_t *to, const float (&v)[V])
{
    if (V == 4)
        *reinterpret_cast<ushort4 *>(to) = make_ushort4(mu_f32_to_bf16(v[0]), mu_f32_to_bf16(v[1 % V]),
                                                        mu_f32_to_bf16(v[2 % V]), mu_f32_to_bf16(v[3 % V]));
    else
        for (int j = 0; j < V; j++) to[j] = mu_f32_to_bf16(v[j]);
}

/* C1 of the blocks that a warp holds: values v of this lane are at q[at] …; s and sum are those of q[0], sum may be NULL.
 * `at` is V · lane beyond a multiple of 32, and lanes of a block are in (or not) together. All 32 lanes call it. */
template <int V>
static __device__ inline void mu_store_q8(int8_t *q, float *s, int16_t *sum, size_t at, bool in, const float (&v)[V])
{
    int lane = threadIdx.x % 32, total = 0;
    float amax = 0.0f;
    for (int j = 0; j < V; j++) { /* infinity stands for every value that is not finite */
        float magnitude = mu_f32_finite(v[j]) ? fabsf(v[j]) : INFINITY;
        amax = magnitude > amax ? magnitude : amax;
    }
    for (int step = 1; step < 32 / V; step *= 2) {
        float other = __shfl_xor_sync(0xffffffffu, amax, step);
        amax = other > amax ? other : amax;
    }
    bool finite = amax < INFINITY;
    float inverse = mu_q8_inverse(amax);
    int8_t code[V];
    for (int j = 0; j < V; j++) {
        code[j] = finite ? mu_q8_code(v[j], inverse) : (int8_t)0;
        total += code[j];
    }
    for (int step = 1; step < 16 / V; step *= 2) total += __shfl_xor_sync(0xffffffffu, total, step);
    if (!in) return;
    if (V == 4)
        *reinterpret_cast<char4 *>(q + at) = make_char4(code[0], code[1 % V], code[2 % V], code[3 % V]);
    else
        for (int j = 0; j < V; j++) q[at + j] = code[j];
    if (lane % (32 / V) == 0) s[at / 32] = finite ? mu_q8_scale(amax) : NAN;
    if (sum && lane % (16 / V) == 0) sum[at / 16] = (int16_t)total;
}

/* Values at [at, at + V) of the forms wanted. As mu_store_q8. */
template <int V>
static __device__ inline void mu_store_forms(const struct mu_act_to &to, size_t at, bool in, const float (&v)[V])
{
    if (in && to.f32) mu_store_values<V>(to.f32 + at, v);
    if (in && to.bf16) mu_store_bf16<V>(to.bf16 + at, v);
    if (to.q) mu_store_q8<V>(to.q, to.s, to.sum, at, in, v);
}

/* What V = 4 needs of an address; NULL is fine. */
static inline bool mu_aligned(const void *p, size_t bytes)
{
    return (uintptr_t)p % bytes == 0;
}
static inline bool mu_forms_by_four(const struct mu_act_to *to)
{
    return mu_aligned(to->f32, 16) && mu_aligned(to->bf16, 8) && mu_aligned(to->q, 4);
}

#endif
