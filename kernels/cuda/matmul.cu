/* Which kernel multiplies: by the matrix's type and the number of vectors. Not by anything that only the device knows: what
 * is recorded in a graph must fit every replay. All give the same bits, but those of jobs that may be rough, which go by the
 * type alone. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/epilogue.h"

/* Jobs of one type. */
static void multiply(struct mu_device *d, const struct mu_device_job *job, int n_job, const struct mu_act *x,
                     const struct mu_device_experts *experts)
{
    if (job->rough && mu_cuda_rough_try(d, job, n_job, x, experts)) return;
    if (mu_type_info(job->m->type)->act != MU_ACT_Q8)
        mu_cuda_float(d, job, n_job, x, experts);
    else if (!mu_cuda_matvec_try(d, job, n_job, x, experts))
        mu_cuda_tiles(d, job, n_job, x, experts);
}

/* u = up·x with its lora and bias, to where the gate's kernel will read it. */
static void up_first(struct mu_device *d, const struct mu_device_job *job, const struct mu_act *x,
                     const struct mu_device_experts *experts)
{
    struct mu_device_job up = {};
    struct mu_device_experts of_up;
    up.m = job->up;
    up.out = job->out;
    up.stride = job->stride;
    up.bias = job->up_bias;
    up.lora = job->lora_up;
    up.lora_scale = job->lora_up_scale;
    up.rough = job->rough;
    if (experts) {
        of_up = *experts;
        of_up.m_bytes = experts->up_bytes;
    }
    multiply(d, &up, 1, x, experts ? &of_up : NULL);
}

void mu_cuda_matmul(struct mu_device *d, const struct mu_device_job *job, int n_job, const struct mu_act *x,
                    const struct mu_device_experts *experts)
{
    bool taken[MU_DEVICE_MAX_JOBS] = {};
    for (int j = 0; j < n_job; j++) {
        taken[j] = x->n_tok == 0 || job[j].m->n_row == 0;
        if (!taken[j] && job[j].up && !mu_epilogue_second(&job[j])) up_first(d, &job[j], x, experts);
    }
    for (int j = 0; j < n_job; j++) {
        struct mu_device_job same[MU_DEVICE_MAX_JOBS];
        int n = 0;
        for (int k = j; k < n_job; k++) {
            if (taken[k] || job[k].m->type != job[j].m->type) continue;
            same[n++] = job[k];
            taken[k] = true;
        }
        if (n) multiply(d, same, n, x, experts);
    }
}
