/* Epochs for people. An epoch is term × 1,000,000 + generation: the term is the second since 1970 in which this
 * coordinator started, the generation counts its launches. So epochs grow over launches, and over restarts as well,
 * because no coordinator launches a million gangs in the second of its start. Printed raw, the last six digits are the
 * generation. */
#ifndef MU_COORDINATOR_EPOCH_H
#define MU_COORDINATOR_EPOCH_H

#include <stdint.h>
#include <stdio.h>

#define MU_EPOCH_GENERATIONS 1000000ull
enum { MU_EPOCH_TEXT = 32 };

static inline uint64_t mu_epoch_first(int64_t unix_seconds)
{
    return (uint64_t)unix_seconds * MU_EPOCH_GENERATIONS;
}

/* "1795492742.3"; returns text_out. */
static inline const char *mu_epoch_format(uint64_t epoch, char text_out[MU_EPOCH_TEXT])
{
    snprintf(text_out, MU_EPOCH_TEXT, "%llu.%llu", (unsigned long long)(epoch / MU_EPOCH_GENERATIONS),
             (unsigned long long)(epoch % MU_EPOCH_GENERATIONS));
    return text_out;
}

#endif
