/* A small model that guesses what a larger one will say next. It lives whole in the process where ids are sampled, on the
 * threads of that rank; no other rank knows of it. A guess changes no answer (sched_draft.c), so neither does anything
 * that this model computes: only how soon answers come.
 *
 * Asked for guesses, it is given all ids of a sequence, and nothing else of what went before matters: its cache is
 * compared with them from the first id on and goes back to where they part. So wrong guesses, a sequence that was
 * preempted and comes again, a replay after a gang's death, the next turn of a conversation and somebody else's request
 * are one case.
 *
 *   seat       a sequence's place in the cache, with the ids that are held there; MU_DRAFT_SEATS of them
 *   reading    a sequence that lies behind by more than a few ids is read in chunks, at most so many ids a call: streams
 *              wait meanwhile
 *   drafting   all others together: one step of the model for each further guess
 *
 * Guesses are drawn with the request's own sampling parameters and seed at the position that they are for. The noise of
 * a draw depends on (seed, position, id) alone, so where both models find the same ids likely they draw the same one,
 * also at a high temperature.
 *
 * Memory: all of it at creation. Threads: one, member 0 of the pool. */
#ifndef MU_WORKER_DRAFTER_H
#define MU_WORKER_DRAFTER_H

#include "shard/shard.h"
#include "worker/draft.h"

struct mu_drafter;

struct mu_drafter_options { /* borrowed while it lives */
    const struct mu_model *model;
    struct mu_serving serving; /* mu_draft_serving (shard/plan_draft.h) */
    int n_vocab;               /* of the larger model: no guess is beyond it */
    struct mu_pool *pool;
    struct mu_rank_record *record; /* ticks after each step; may be NULL */
    int kept_fd;                   /* as in struct mu_shard_options */
};

enum mu_status mu_drafter_create(const struct mu_drafter_options *opt, struct mu_drafter **drafter_out,
                                 struct mu_err *err);
void mu_drafter_destroy(struct mu_drafter *d); /* NULL is fine */

/* Forgets all sequences: the next ones are read from their first id on. */
void mu_drafter_forget(struct mu_drafter *d);

/* Answers ask[n], n at most MU_DRAFT_SEATS, reading at most about read_most ids in bulk. took_out is filled. An error is
 * the model's: of no use any more. */
enum mu_status mu_drafter_ask(struct mu_drafter *d, struct mu_draft_ask *ask, int n, uint32_t read_most,
                              struct mu_draft_took *took_out, struct mu_err *err);

#endif
