/* Rows of floats into GGUF's quantised blocks, for --quantize: done once at load, so plain C for every machine, and
 * the same bits on every machine (fixed orders, no fused multiply-add).
 *
 * Codes are chosen for the least squared error of the values: scales are searched around the one that the largest
 * value asks for, and fitted by least squares to the codes they give. */
#ifndef MU_KERNELS_QUANTIZE_ROWS_H
#define MU_KERNELS_QUANTIZE_ROWS_H

#include <stdbool.h>

#include "kernels/types.h"

/* Whether mu_quantize_row makes rows of this type. */
bool mu_quantize_knows(uint32_t type);
/* n values (a multiple of the type's block) into blocks at out (any alignment). false, out undefined: a value is not
 * finite or beyond ±1e15, or a scale of the type cannot hold it. Threads: any. */
bool mu_quantize_row(uint32_t type, const float *x, int n, void *out);

#endif
