/* What passes between the files of arm/: matmul by family of types, for the row groups of [row0, row1) (contract of
 * mu_kernels.matmul). The tables neon, dotprod and i8mm differ in int8 products only. */
#ifndef MU_KERNELS_ARM_ARM_H
#define MU_KERNELS_ARM_ARM_H

#include "kernels/packed.h"

void mu_neon_matmul_float(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out,
                          size_t stride);
void mu_neon_matmul_widened(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out,
                            size_t stride);
void mu_neon_matmul_int8(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out, size_t stride);
void mu_dotprod_matmul_int8(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out,
                            size_t stride);
void mu_i8mm_matmul_int8(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out, size_t stride);

#endif
