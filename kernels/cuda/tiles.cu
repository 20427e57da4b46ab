/* Many vectors times matrices of C2's types: what a launch is told (tiles_kernel.h multiplies, tiles_launch.h chooses the
 * tiles). */
#include "kernels/cuda/tiles_kernel.h"

void mu_cuda_tiles(struct mu_device *d, const struct mu_device_job *job, int n_job, const struct mu_act *x,
                   const struct mu_device_experts *experts)
{
    int n_each;
    struct mu_tile_args a = mu_tile_args_of(job, n_job, x, experts, &n_each);
    switch (job->m->type) {
    case MU_Q4_0:
    case MU_Q5_0:
    case MU_Q8_0: mu_tiles_plain(d, &a, job->m->type, n_each); break;
    case MU_Q4_1:
    case MU_Q5_1:
    case MU_Q4_K:
    case MU_Q5_K: mu_tiles_min(d, &a, job->m->type, n_each); break;
    case MU_Q2_K:
    case MU_Q3_K:
    case MU_Q6_K: mu_tiles_halves(d, &a, job->m->type, n_each); break;
    default: mu_tiles_table(d, &a, job->m->type, n_each);
    }
}
