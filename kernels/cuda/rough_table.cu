/* Rough products of the types with codes that are indices of a table. */
#include "kernels/cuda/rough.h"
#include "kernels/cuda/rough_codes.h"
#include "kernels/cuda/rough_kernel.h"

void mu_rough_table(struct mu_device *d, struct mu_tile_args *x, uint32_t type, int n_each)
{
    switch (type) {
    case MU_IQ4_NL: mu_rough_of<MU_IQ4_NL, mu_rough_codes>::run(d, x, n_each); break;
    case MU_MXFP4: mu_rough_of<MU_MXFP4, mu_rough_codes>::run(d, x, n_each); break;
    case MU_IQ4_XS: mu_rough_of<MU_IQ4_XS, mu_rough_codes>::run(d, x, n_each); break;
    }
}
