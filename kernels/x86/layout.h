/* What passes between the files of x86. */
#ifndef MU_KERNELS_X86_LAYOUT_H
#define MU_KERNELS_X86_LAYOUT_H

#include "kernels/packed.h"

/* The processor's bf16 dot product, compared with C3 once before the avx512 table is offered; matmul uses it only where
 * every hard case agreed. */
void mu_avx512_bf16_probe(void);
bool mu_avx512_bf16_proven(void);

/* matmul by family of types, for the row groups of [row0, row1) (contract of mu_kernels.matmul). */
void mu_avx2_matmul_int8(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out, size_t stride);
void mu_avx2_matmul_float(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out,
                          size_t stride);
void mu_avx2_matmul_widened(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out,
                            size_t stride);
void mu_avx512_matmul_int8(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out,
                           size_t stride);
void mu_avx512_matmul_float(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out,
                            size_t stride);
void mu_avx512_matmul_widened(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out,
                              size_t stride);
void mu_avx512_matmul_bf16(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out,
                           size_t stride);

#endif
