/* Many vectors times matrices of C2's types: what a launch is told (tiles_kernel.h multiplies, tiles_launch.h chooses the
 * tiles). */
#include "kernels/cuda/tiles_kernel.h"

void mu_cuda_tiles(struct mu_device *d, const struct mu_device_job *job, int n_job, const struct mu_act *x,
                   const struct mu_device_experts *experts)
{
    struct mu_tile_args a = {};
    a.n_job = n_job;
    a.n_vec = x->n_tok;
    a.n_col = x->n_col;
    a.q = x->q;
    a.s = x->s;
    a.sum = x->sum;
    if (experts) {
        a.experts = *experts;
        if (!experts->by_place) a.n_vec = x->n_tok * experts->n_used;
    }
    for (int j = 0; j < n_job; j++) {
        const struct mu_mat *up = mu_epilogue_second(&job[j]);
        a.job[j].m = (const uint8_t *)job[j].m->data;
        a.job[j].up = up ? (const uint8_t *)up->data : NULL;
        a.job[j].n_row = job[j].m->n_row;
        a.job[j].then = mu_epilogue_of(&job[j]);
        a.job[j].quick = mu_tile_quick_of(&a.job[j].then);
    }
    /* Of a matrix: with experts, on average. */
    int n_each = experts ? (a.n_vec + experts->n_expert - 1) / experts->n_expert : a.n_vec;
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
