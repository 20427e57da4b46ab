/* What a fuzz target gives: the entry that libFuzzer calls, and seeds made at run time, so that no file need be kept.
 * The driver (driver.c) or libFuzzer has main(). One thread. */
#ifndef MU_TESTS_FUZZ_FUZZ_H
#define MU_TESTS_FUZZ_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Returns 0. A failure aborts: an invariant broken, or what the sanitizers say. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

/* Seed number n (0, 1, …), freed with free(); false: there are no more. */
bool mu_fuzz_seed(int n, uint8_t **data_out, size_t *len_out);

#endif
