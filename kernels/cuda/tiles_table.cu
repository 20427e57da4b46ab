/* Tiles of the types with codes that are indices of values. */
#include "kernels/cuda/tiles_launch.h"

void mu_tiles_table(struct mu_device *d, struct mu_tile_args *x, uint32_t type, int n_each)
{
    switch (type) {
    case MU_IQ4_NL: tiles_of<MU_IQ4_NL>::run(d, x, n_each); break;
    case MU_IQ4_XS: tiles_of<MU_IQ4_XS>::run(d, x, n_each); break;
    case MU_MXFP4: tiles_of<MU_MXFP4>::run(d, x, n_each); break;
    }
}
