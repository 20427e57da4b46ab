/* Tiles of the types with a factor for each half of a block. */
#include "kernels/cuda/tiles_launch.h"

void mu_tiles_halves(struct mu_device *d, struct mu_tile_args *x, uint32_t type, int n_each)
{
    switch (type) {
    case MU_Q2_K: tiles_of<MU_Q2_K>::run(d, x, n_each); break;
    case MU_Q3_K: tiles_of<MU_Q3_K>::run(d, x, n_each); break;
    case MU_Q6_K: tiles_of<MU_Q6_K>::run(d, x, n_each); break;
    }
}
