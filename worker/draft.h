/* What a scheduler asks of a draft model, and what it costs: plain data between scheduler.h, which decides who drafts,
 * and drafter.h, which does it. */
#ifndef MU_WORKER_DRAFT_H
#define MU_WORKER_DRAFT_H

#include <stdint.h>

#include "model/sampling.h"

enum { MU_MAX_DRAFT = 7 }; /* ids that are guessed at once */

struct mu_draft_ask {
    uint64_t sequence;  /* a number that stays the sequence's */
    const int32_t *ids; /* [n_ids] all that are known of it, at least one; borrowed */
    uint32_t n_ids;
    uint32_t most; /* ids that are wanted, at most MU_MAX_DRAFT */
    struct mu_sampling sampling;
    /* The answer: */
    int32_t draft[MU_MAX_DRAFT];
    uint32_t n_draft;
    uint32_t n_behind; /* ids that the draft model has not read yet; above 0 there are no drafts */
};

struct mu_draft_took {        /* microseconds, and for what */
    uint32_t read_us, n_read; /* ids that were read in bulk */
    uint32_t step_us, n_step; /* steps that drafted */
};

#endif
