/* What the forms of attention share. Private to attn.cu, attn_query.cu, attn_block.cu and attn_rough.cu. */
#ifndef MU_KERNELS_CUDA_ATTN_H
#define MU_KERNELS_CUDA_ATTN_H

#include "kernels/cuda/kv.h"
#include "kernels/math.h"

enum { MU_SEGMENT_PAGES = MU_ATTN_SEGMENT / MU_KV_PAGE };

/* The smallest position that pos sees. */
static __device__ inline int mu_attn_first(int pos, int window)
{
    return window > 0 && pos >= window ? pos - window + 1 : 0;
}

/* The first of my query heads that read KV head j or a later one: those of j are from here to that of j + 1. */
static __host__ __device__ inline int mu_attn_heads_begin(const struct mu_device_attn &a, int j)
{
    int h = (j + a.kv_head0) * a.group - a.head0;
    return h < 0 ? 0 : h < a.n_head ? h : a.n_head;
}

static __device__ inline float mu_attn_cap(float score, float cap)
{
    return cap * vf_tanh(score / cap);
}

static __device__ inline float mu_warp_max(float x)
{
#pragma unroll
    for (int i = 16; i > 0; i /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, i));
    return x;
}

/* C6's tree over 16 lanes, in each half of a warp: all of them have the sum. */
static __device__ inline float mu_half_warp_sum(float x)
{
#pragma unroll
    for (int i = 8; i > 0; i /= 2) x = x + __shfl_xor_sync(0xffffffffu, x, i);
    return x;
}

/* C5's merge of a segment's (m, l, o) into a row's sums, which begin as M = -inf, L = 0, O = 0: L = fmaf(L, keep, l·take), and
 * O likewise. The first segment is then multiplied by e^0 = 1 and added to zeros, which is a copy but for the sign of a
 * zero, and that is lost in the last step of C5 anyway. */
struct mu_attn_merge {
    float m, keep, take;
};
static __device__ inline struct mu_attn_merge mu_attn_merge_of(float sum_m, float m)
{
    float n = fmaxf(sum_m, m);
    return {n, vf_exp(sum_m - n), vf_exp(m - n)};
}
static __device__ inline float mu_attn_add(float sum, float x, float keep, float take)
{
    float taken = x * take;
    return fmaf(sum, keep, taken);
}

/* What is left when all segments are merged: the sink, and the division. */
struct mu_attn_end {
    float keep, inverse;
    bool sink;
};
static __device__ inline struct mu_attn_end mu_attn_end_of(float sum_m, float sum_l, const float *sink)
{
    struct mu_attn_end e = {1.0f, 0.0f, sink != NULL};
    if (sink) {
        float n = fmaxf(sum_m, *sink);
        e.keep = vf_exp(sum_m - n);
        sum_l = fmaf(sum_l, e.keep, vf_exp(*sink - n));
    }
    e.inverse = 1.0f / sum_l;
    return e;
}
static __device__ inline float mu_attn_last(struct mu_attn_end e, float sum)
{
    if (e.sink) sum = sum * e.keep;
    return (sum + 0.0f) * e.inverse;
}

/* attn_query.cu, attn_block.cu: the two forms. */
void mu_cuda_attn_queries(struct mu_device *d, const struct mu_device_attn *a);
void mu_cuda_attn_blocks(struct mu_device *d, const struct mu_device_attn *a);
/* attn_rough.cu: the same, roughly. false, with nothing done, where it is not for these heads or this device. */
bool mu_cuda_attn_rough(struct mu_device *d, const struct mu_device_attn *a);

#endif
