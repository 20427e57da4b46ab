/* The leader's main loop: requests from the Engine stream → scheduler → step plans on the doorbells → its own share
 * of the steps → tokens up. */
#ifndef MU_WORKER_LEADER_H
#define MU_WORKER_LEADER_H

#include "shard/shard.h"
#include "worker/doorbell.h"
#include "worker/drafter.h"
#include "worker/engine.h"

struct mu_leader_options { /* all borrowed */
    const struct mu_model *model;
    const struct mu_plan *plan;
    struct mu_serving serving;
    bool no_prefix_cache, no_speculation;
    struct mu_shard *shard;
    struct mu_drafter *drafter;      /* NULL: there is no draft model */
    struct mu_serving draft_serving; /* where there is one */
    struct mu_bell *const *bells;    /* [n_rank], NULL at our own place */
    struct mu_engine *engine;
    struct mu_rank_record *record; /* our own */
};

/* Runs until the gang is lost or not wanted any more; returns why. */
enum mu_status mu_leader_run(const struct mu_leader_options *opt, struct mu_err *err);

/* The largest step plan on the wire under these limits; MU_ELIMIT where a doorbell's frame could not hold it. */
enum mu_status mu_leader_plan_bytes(const struct mu_serving *serving, int n_vocab, size_t *bytes_out,
                                    struct mu_err *err);

#endif
