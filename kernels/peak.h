/* What one thread of this machine can do at most: the roof that `muster bench` and the planner measure against.
 *
 * Each call runs on the calling thread, a fixed number of windows of a few milliseconds, and gives the best one, so
 * that a disturbance shows as nothing. For a whole machine run it on all threads at once and add up. The loops are
 * those of the table in use (mu_kernels()): VNNI for avx512 and for amx (whose tile unit multiplies some eight times faster,
 * but what C2 asks for besides a block's products is the vector unit's work: the ratio may exceed 1), maddubs for avx2, SMLAL,
 * SDOT and SMMLA for neon, dotprod and i8mm, plain C for ref. */
#ifndef MU_KERNELS_PEAK_H
#define MU_KERNELS_PEAK_H

#include <stddef.h>

/* int8 dot products in registers, 10^9 multiplications and additions a second (two operations each pair). */
double mu_peak_int8_gops(void);
/* f32 fused multiply-adds in registers, 10^9 operations a second (two each). */
double mu_peak_f32_gflops(void);
/* One reading of `bytes` at buf (64-byte aligned, a multiple of 64), 10^9 bytes a second. For the memory's speed
 * the buffer must be several times the last-level cache; the caller repeats. */
double mu_peak_read_gbps(const void *buf, size_t bytes);

#endif
