/* A draft model beside a gang's leader (worker/drafter.h): what it is given, whether it goes with the model, and the
 * memory that it takes. */
#ifndef MU_SHARD_PLAN_DRAFT_H
#define MU_SHARD_PLAN_DRAFT_H

#include "shard/plan_fit.h"

/* Sequences whose guesses are made at once. Drafting pays where steps wait for weights and not for arithmetic, with few
 * streams; each of these costs a cache of a whole context. */
enum { MU_DRAFT_SEATS = 4 };

/* The draft model's limits beside a gang with those of `serving`: contexts as long as the shorter of both, no longer. */
struct mu_serving mu_draft_serving(const struct mu_model *draft, const struct mu_serving *serving);
/* The whole model as one rank on processors. */
enum mu_status mu_draft_plan(const struct mu_model *draft, struct mu_plan *plan_out, struct mu_err *err);
/* MU_EUNSUPPORTED: the leader of the plan computes on a GPU. */
enum mu_status mu_draft_check(const struct mu_plan *plan, struct mu_err *err);
/* Adds it to what the host's memory has to hold. */
enum mu_status mu_draft_fit(const struct mu_model *draft, const struct mu_serving *serving, struct mu_fit *fit,
                            struct mu_err *err);

#endif
