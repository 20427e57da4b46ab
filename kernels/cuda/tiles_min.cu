/* Tiles of the types with a scale and a minimum a block. */
#include "kernels/cuda/tiles_launch.h"

void mu_tiles_min(struct mu_device *d, struct mu_tile_args *x, uint32_t type, int n_each)
{
    switch (type) {
    case MU_Q4_1: tiles_of<MU_Q4_1>::run(d, x, n_each); break;
    case MU_Q5_1: tiles_of<MU_Q5_1>::run(d, x, n_each); break;
    case MU_Q4_K: tiles_of<MU_Q4_K>::run(d, x, n_each); break;
    case MU_Q5_K: tiles_of<MU_Q5_K>::run(d, x, n_each); break;
    }
}
