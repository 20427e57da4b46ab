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
/* Who made the processor, set when the tables are listed. Intel: its prefetcher wants help where AMD's is better left alone.
 * AMD since Zen 5 (family 1Ah): two 512-bit loads and two FMAs or dot products a cycle, as Intel; broadcasting takes a load. */
bool mu_x86_intel(void);
bool mu_x86_zen5(void);

/* Whether panels (int8_panels.c) pay with this type and so many tokens, where Intel's ports are; they must not where it says
 * no. */
bool mu_panels_cover(uint32_t type, int n_tok);
void mu_panels_matmul_int8(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out,
                           size_t stride);
/* The table `panels`' matmul. */
void mu_panels_matmul(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out,
                      size_t out_stride);

/* Several row groups at once, each read as a stream of its own (int8_streams.c). */
void mu_streams_matmul_int8(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out,
                            size_t stride);

/* Whether AMX multiplies this type by so many tokens faster than AVX-512 does (int8_amx.c); it must not where it says
 * no. */
bool mu_amx_covers(uint32_t type, int n_tok);
void mu_amx_matmul_int8(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out, size_t stride);
/* The table `amx`'s matmul. */
void mu_amx_matmul(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out, size_t out_stride);
void mu_avx512_matmul_bf16(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out,
                           size_t stride);

#endif
