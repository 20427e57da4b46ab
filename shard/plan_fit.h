/* Whether a gang fits the memory of the machine that all its ranks are on: one computation and one wording for serve, the
 * worker, run and plan, before anything is loaded.
 *
 * A rank's memory is taken where it computes (the host, or a GPU), and of a rank on a GPU some of the host's as well. A
 * page of the cache is on every rank, so the fullest place decides how many there can be.
 *
 * What was asked for by name is had or refused. What was not is chosen so that it fits: a shorter context where not
 * one sequence of the usual one would fit, and of the KV pages for all slots at full length as many as there is room
 * for (sequences share them, so most never notice; the youngest wait where all grow long). */
#ifndef MU_SHARD_PLAN_FIT_H
#define MU_SHARD_PLAN_FIT_H

#include "shard/plan.h"

struct mu_fit_place {
    int device;                /* MU_ON_CPU: the host's memory */
    uint64_t weights, scratch; /* of all ranks there; adapters count as weights */
    uint64_t page, window;     /* one KV page of all their layers; of those with a window */
    uint64_t draft;            /* of a draft model beside the leader, all of it */
    uint64_t free, usable;     /* what there is; less what is left to everybody else */
};
struct mu_fit {
    struct mu_serving serving; /* that it was measured for */
    int n_place;
    struct mu_fit_place place[1 + MU_MAX_GPUS]; /* the host, then GPUs that the plan names */
};
/* serving's pages do not matter. adapters may be NULL. node: memory_bytes and the GPUs' free_bytes; a GPU that it does
 * not have counts as one without memory. */
void mu_fit_measure(const struct mu_model *model, const struct mu_plan *plan, const struct mu_adapters *adapters,
                    const struct mu_serving *serving, const struct mu_plan_node *node, struct mu_fit *fit_out);

/* A draft model on the host: memory is that of its only rank. */
void mu_fit_add_draft(struct mu_fit *fit, const struct mu_rank_memory *memory);

static inline uint32_t mu_fit_pages_of(int n_ctx)
{
    return ((uint32_t)n_ctx + MU_PAGE_TOKENS - 1) / MU_PAGE_TOKENS;
}
/* The place that is full first. */
const struct mu_fit_place *mu_fit_fullest(const struct mu_fit *fit);
/* What the place takes for serving's KV pages: n_page of them, and those of layers with a window where they have their
 * own (plan.h). */
uint64_t mu_fit_kv_bytes(const struct mu_fit_place *place, const struct mu_serving *serving);
/* KV pages that there is room for. */
uint64_t mu_fit_room(const struct mu_fit *fit);

enum { MU_FIT_CTX = 1, MU_FIT_SLOTS = 2 }; /* what was asked for by name */
/* Sets n_page where it is 0 (else so many are needed), and n_ctx where it was not asked for and must be smaller. MU_ENOMEM with the numbers, and with what would
 * fit, where what was asked for does not. */
enum mu_status mu_fit_settle(const struct mu_fit *fit, const struct mu_model *model, const struct mu_plan *plan,
                             unsigned asked, struct mu_serving *serving, struct mu_err *err);

enum { MU_FIT_TEXT = 2048 };
/* "weights 4.10 GB, KV 2.15 GB for 4 × 8,192 tokens (f16), scratch 0.20 GB, of 15.9 GB free", with "draft model 0.60 GB"
 * behind the scratch where there is one; with GPUs place by place:
 * "GPU 0: weights …; host: …". */
void mu_fit_describe(const struct mu_fit *fit, const struct mu_serving *serving, char text[MU_FIT_TEXT]);

#endif
