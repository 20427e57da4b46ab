/* Tiles of the types with one scale a block. */
#include "kernels/cuda/tiles_launch.h"

void mu_tiles_plain(struct mu_device *d, struct mu_tile_args *x, uint32_t type, int n_each)
{
    switch (type) {
    case MU_Q4_0: tiles_of<MU_Q4_0>::run(d, x, n_each); break;
    case MU_Q5_0: tiles_of<MU_Q5_0>::run(d, x, n_each); break;
    case MU_Q8_0: tiles_of<MU_Q8_0>::run(d, x, n_each); break;
    }
}
