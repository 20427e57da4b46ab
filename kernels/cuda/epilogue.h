/* What follows a product (struct mu_device_job), for a kernel that has whole elements in registers: matvec.cu, tiles.cu
 * and float.cu. The order of the steps is the contract's; each is exact or rounds once, as on the processor.
 *
 * form's int8 wants blocks of 32 neighbouring rows, and is left to the kernel. */
#ifndef MU_KERNELS_CUDA_EPILOGUE_H
#define MU_KERNELS_CUDA_EPILOGUE_H

#include "kernels/convert.h"
#include "kernels/cuda/cuda.h"
#include "kernels/math.h"
#include "kernels/parts.h"

/* A job without its matrices, as a kernel gets it. */
struct mu_epilogue {
    float *out;
    size_t stride;
    uint16_t *bf16;
    struct mu_act_to form;
    const float *bias, *up_bias, *plus, *lora, *lora_up, *lora_scale, *lora_up_scale;
    float scale, cap;
    enum mu_device_act act;
    int n_row;
    bool has_up;
    bool up_done; /* u is in out, with its lora and bias */
};

/* The second matrix that the job's kernel multiplies with. One of another type than m was multiplied before (matmul.cu), and
 * u is in out. */
static inline const struct mu_mat *mu_epilogue_second(const struct mu_device_job *job)
{
    return job->up && job->up->type == job->m->type ? job->up : NULL;
}

static inline struct mu_epilogue mu_epilogue_of(const struct mu_device_job *job)
{
    struct mu_epilogue e = {};
    e.out = job->out;
    e.stride = job->stride;
    e.bf16 = job->bf16;
    e.form = job->form;
    e.bias = job->bias;
    e.up_bias = job->up_bias;
    e.plus = job->plus;
    e.lora = job->lora;
    e.lora_up = job->lora_up;
    e.lora_scale = job->lora_scale;
    e.lora_up_scale = job->lora_up_scale;
    e.scale = job->scale;
    e.cap = job->cap;
    e.act = job->act;
    e.n_row = job->m->n_row;
    e.has_up = job->up != NULL;
    e.up_done = job->up != mu_epilogue_second(job);
    return e;
}

__device__ static inline float mu_epilogue_lora(const float *lora, const float *strength, size_t v,
                                                const struct mu_epilogue &e, int row, float y)
{
    if (!lora) return y;
    float by = strength[v];
    return by != 0.0f ? fmaf(by, lora[v * (size_t)e.n_row + (size_t)row], y) : y;
}

__device__ static inline float mu_epilogue_act(enum mu_device_act act, bool has_up, float y, float u)
{
    switch (act) {
    case MU_DEVICE_ACT_SILU: return vf_silu(y) * u;
    case MU_DEVICE_ACT_SILU_CLAMPED:
        y = y > MU_SILU_LIMIT ? MU_SILU_LIMIT : y; /* a NaN passes every comparison */
        u = u > MU_SILU_LIMIT ? MU_SILU_LIMIT : u < -MU_SILU_LIMIT ? -MU_SILU_LIMIT : u;
        return y / (1.0f + vf_exp(-(MU_SILU_ALPHA * y))) * (u + 1.0f);
    case MU_DEVICE_ACT_GELU: y = vf_gelu_tanh(y); break;
    case MU_DEVICE_ACT_GELU_ERF: y = vf_gelu_erf(y); break;
    default: return y;
    }
    return has_up ? y * u : y;
}

/* The finished element of row `row` and vector v (with experts: a place, of that expert; else expert is 0) out of the
 * products y and, where has_up, u. Before out is written. */
__device__ static inline float mu_epilogue_value(const struct mu_epilogue &e, int row, size_t v, int expert, float y,
                                                 float u)
{
    size_t at = (size_t)expert * (size_t)e.n_row + (size_t)row;
    y = mu_epilogue_lora(e.lora, e.lora_scale, v, e, row, y);
    if (e.bias) y = y + e.bias[at];
    if (e.up_done) {
        u = e.out[v * e.stride + (size_t)row];
    } else if (e.has_up) {
        u = mu_epilogue_lora(e.lora_up, e.lora_up_scale, v, e, row, u);
        if (e.up_bias) u = u + e.up_bias[at];
    }
    if (e.scale != 0.0f) y = y * e.scale;
    if (e.plus) y = y + e.plus[v * e.stride + (size_t)row];
    y = mu_epilogue_act(e.act, e.has_up, y, u);
    if (e.cap != 0.0f) y = e.cap * vf_tanh(y / e.cap);
    return y;
}

/* Stores it, but for form's int8. */
__device__ static inline void mu_epilogue_store(const struct mu_epilogue &e, int row, size_t v, float y)
{
    size_t at = v * e.stride + (size_t)row;
    e.out[at] = y;
    if (e.bf16) e.bf16[at] = mu_f32_to_bf16(y);
    if (e.form.bf16) e.form.bf16[v * (size_t)e.n_row + (size_t)row] = mu_f32_to_bf16(y);
}

#endif
