/* Rough products of the types with a scale and a minimum a block. */
#include "kernels/cuda/rough.h"
#include "kernels/cuda/rough_codes.h"
#include "kernels/cuda/rough_kernel.h"

void mu_rough_min(struct mu_device *d, struct mu_tile_args *x, uint32_t type, int n_each)
{
    switch (type) {
    case MU_Q4_1: mu_rough_of<MU_Q4_1, mu_rough_codes>::run(d, x, n_each); break;
    case MU_Q5_1: mu_rough_of<MU_Q5_1, mu_rough_codes>::run(d, x, n_each); break;
    case MU_Q4_K: mu_rough_of<MU_Q4_K, mu_rough_codes>::run(d, x, n_each); break;
    case MU_Q5_K: mu_rough_of<MU_Q5_K, mu_rough_codes>::run(d, x, n_each); break;
    }
}
