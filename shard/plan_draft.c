/* The draft model's place in the plan. */
#include "shard/plan_draft.h"

#include "base/alloc.h"

enum { STEP_TOKENS = 128 };

struct mu_serving mu_draft_serving(const struct mu_model *draft, const struct mu_serving *serving)
{
    struct mu_serving v = {.n_ctx = serving->n_ctx,
                           .n_slot = serving->n_slot < MU_DRAFT_SEATS ? serving->n_slot : MU_DRAFT_SEATS,
                           .step_tokens = STEP_TOKENS,
                           .n_thread = serving->n_thread,
                           .kv = serving->kv};
    if (draft->cfg.n_ctx_train > 0 && v.n_ctx > draft->cfg.n_ctx_train) v.n_ctx = draft->cfg.n_ctx_train;
    v.n_page = (uint32_t)v.n_slot * mu_fit_pages_of(v.n_ctx);
    return v;
}

enum mu_status mu_draft_plan(const struct mu_model *draft, struct mu_plan *plan_out, struct mu_err *err)
{
    struct mu_split whole;
    enum mu_status st = mu_split_parse("1", &whole, err);
    return st == MU_OK ? mu_plan_build(draft, &whole, plan_out, err) : st;
}

enum mu_status mu_draft_check(const struct mu_plan *plan, struct mu_err *err)
{
    int device = plan->split.device[plan->leader];
    if (device == MU_ON_CPU) return MU_OK;
    return mu_fail(
        err, MU_EUNSUPPORTED,
        "a draft model runs on processors, beside the rank that samples, and that one (rank %d) is on GPU %d: "
        "leave out --draft, or use a split whose last stage is on processors",
        plan->leader, device);
}

enum mu_status mu_draft_fit(const struct mu_model *draft, const struct mu_serving *serving, struct mu_fit *fit,
                            struct mu_err *err)
{
    struct mu_serving v = mu_draft_serving(draft, serving);
    struct mu_rank_memory m;
    struct mu_plan *plan = mu_malloc(sizeof *plan);
    if (!plan) return mu_fail(err, MU_ENOMEM, "no memory for a plan");
    enum mu_status st = mu_draft_plan(draft, plan, err);
    if (st == MU_OK) {
        mu_plan_memory(draft, plan, 0, &v, &m);
        mu_fit_add_draft(fit, &m);
    }
    mu_free(plan);
    return st;
}
