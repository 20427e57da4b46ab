/* Rough products (rough_kernel.h): which types have them. A type either always does or never, so that a result does not
 * depend on how many vectors are in the call. */
#include "kernels/cuda/rough.h"

bool mu_cuda_rough_try(struct mu_device *d, const struct mu_device_job *job, int n_job, const struct mu_act *x,
                       const struct mu_device_experts *experts)
{
    int n_each;
    struct mu_tile_args a = mu_tile_args_of(job, n_job, x, experts, &n_each);
    uint32_t type = job->m->type;
    switch (type) {
    case MU_Q4_0:
    case MU_Q5_0:
    case MU_Q8_0: mu_rough_plain(d, &a, type, n_each); return true;
    case MU_Q4_1:
    case MU_Q5_1:
    case MU_Q4_K:
    case MU_Q5_K: mu_rough_min(d, &a, type, n_each); return true;
    case MU_Q2_K:
    case MU_Q3_K:
    case MU_Q6_K: mu_rough_halves(d, &a, type, n_each); return true;
    case MU_IQ4_NL:
    case MU_MXFP4:
    case MU_IQ4_XS: mu_rough_table(d, &a, type, n_each); return true;
    case MU_F32:
    case MU_F16:
    case MU_BF16: mu_rough_float(d, &a, type, n_each); return true;
    default: return false; /* types that are widened as they are multiplied with (float.h) */
    }
}
