/* Rough products of the types with scales for half a block. */
#include "kernels/cuda/rough.h"
#include "kernels/cuda/rough_codes.h"
#include "kernels/cuda/rough_kernel.h"

void mu_rough_halves(struct mu_device *d, struct mu_tile_args *x, uint32_t type, int n_each)
{
    switch (type) {
    case MU_Q2_K: mu_rough_of<MU_Q2_K, mu_rough_codes>::run(d, x, n_each); break;
    case MU_Q3_K: mu_rough_of<MU_Q3_K, mu_rough_codes>::run(d, x, n_each); break;
    case MU_Q6_K: mu_rough_of<MU_Q6_K, mu_rough_codes>::run(d, x, n_each); break;
    }
}
