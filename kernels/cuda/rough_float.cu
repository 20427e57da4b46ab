/* Rough products of the types with values that are floats. */
#include "kernels/cuda/rough.h"
#include "kernels/cuda/rough_cells.h"
#include "kernels/cuda/rough_kernel.h"

void mu_rough_float(struct mu_device *d, struct mu_tile_args *x, uint32_t type, int n_each)
{
    switch (type) {
    case MU_F32: mu_rough_of<MU_F32, mu_rough_cells>::run(d, x, n_each); break;
    case MU_F16: mu_rough_of<MU_F16, mu_rough_cells>::run(d, x, n_each); break;
    case MU_BF16: mu_rough_of<MU_BF16, mu_rough_cells>::run(d, x, n_each); break;
    }
}
