/* Rough products by type, as rough.cu sees them: a file each, for the compiler's time. n_each: vectors for each matrix,
 * with experts on average. */
#ifndef MU_KERNELS_CUDA_ROUGH_H
#define MU_KERNELS_CUDA_ROUGH_H

#include "kernels/cuda/tiles_place.h"

void mu_rough_plain(struct mu_device *d, struct mu_tile_args *x, uint32_t type, int n_each);
void mu_rough_min(struct mu_device *d, struct mu_tile_args *x, uint32_t type, int n_each);
void mu_rough_halves(struct mu_device *d, struct mu_tile_args *x, uint32_t type, int n_each);
void mu_rough_table(struct mu_device *d, struct mu_tile_args *x, uint32_t type, int n_each);
void mu_rough_float(struct mu_device *d, struct mu_tile_args *x, uint32_t type, int n_each);

#endif
