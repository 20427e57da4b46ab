/* See guess.h; when it asks for how many is worker/draft_pace.c's. */
#include "cli/guess.h"

#include "base/alloc.h"
#include "base/clock.h"
#include "shard/plan_draft.h"
#include "worker/draft_pace.h"
#include "worker/drafter.h"

enum { READ_AT_ONCE = 512 }; /* ids between two looks at Ctrl-C */

struct mu_guess {
    struct mu_opened draft;
    struct mu_drafter *drafter;
    struct mu_serving serving;
    struct mu_draft_costs costs;
    struct mu_draft_pace pace;
    double hope;
};

enum mu_status mu_guess_open(const char *name, const struct mu_opened *o, struct mu_guess **guess_out,
                             struct mu_err *err)
{
    struct mu_guess *g = mu_calloc(1, sizeof *g);
    if (!g) return mu_fail(err, MU_ENOMEM, "no memory for a draft model");
    enum mu_status st = mu_cli_open(name, true, &g->draft, err);
    if (st == MU_OK) st = mu_tokenizer_match(o->tok, g->draft.tok, err);
    if (st == MU_EINVAL && g->draft.tok)
        mu_err_wrap(err, "--draft '%s' has another vocabulary than '%s', so what it guesses would mean something else",
                    name, o->model->name);
    if (st != MU_OK) {
        mu_guess_close(g);
        return st;
    }
    g->hope = MU_DRAFT_HOPE;
    *guess_out = g;
    return MU_OK;
}

void mu_guess_close(struct mu_guess *g)
{
    if (!g) return;
    mu_guess_detach(g);
    mu_cli_close(&g->draft);
    mu_free(g);
}

const struct mu_model *mu_guess_model(const struct mu_guess *g)
{
    return g->draft.model;
}

enum mu_status mu_guess_attach(struct mu_guess *g, struct mu_solo *solo, const struct mu_model *model,
                               const struct mu_serving *serving, struct mu_err *err)
{
    struct mu_serving one = *serving;
    one.n_slot = 1;
    g->serving = mu_draft_serving(g->draft.model, &one);
    struct mu_drafter_options opt = {
        .model = g->draft.model, .serving = g->serving, .n_vocab = model->cfg.n_vocab, .pool = mu_solo_pool(solo)};
    return mu_drafter_create(&opt, &g->drafter, err);
}

void mu_guess_detach(struct mu_guess *g)
{
    if (!g) return;
    mu_drafter_destroy(g->drafter);
    g->drafter = NULL;
}

/* Guesses at what follows, into ask; none where they do not pay. */
static enum mu_status ask_for(struct mu_guess *g, const struct mu_guess_place *at, struct mu_draft_ask *ask,
                              struct mu_err *err)
{
    struct mu_draft_costs *c = &g->costs;
    const struct mu_draft_place place = {.n_ids = (uint32_t)at->n_ids,
                                         .n_new = (uint32_t)at->n_new,
                                         .n_left = (uint32_t)at->n_left,
                                         .n_stream = 1,
                                         .n_together = 1,
                                         .least_gain = 1.04};
    struct mu_draft_took took;
    uint32_t most = at->n_left > MU_MAX_DRAFT ? MU_MAX_DRAFT : (uint32_t)at->n_left - 1;
    double rate;
    *ask = (struct mu_draft_ask){.ids = at->ids, .n_ids = place.n_ids, .sampling = *at->sampling};
    if (!(c->gap_us > 0) || mu_draft_costs_look(c) || place.n_ids >= (uint32_t)g->serving.n_ctx) return MU_OK;
    if (at->n_new == 1) g->pace = (struct mu_draft_pace){.n_read = g->pace.n_read}; /* another answer */
    if (g->pace.n_read > place.n_ids) g->pace.n_read = 0;                           /* another text */
    bool open = g->pace.quiet <= place.n_ids;
    ask->most = mu_draft_pace_wanted(&g->pace, c, &place, g->hope, most, &rate);
    if (open && !ask->most && !(g->pace.right > 0)) g->hope += (MU_DRAFT_HOPE - g->hope) / 64;
    if (open && g->pace.quiet > place.n_ids) mu_draft_costs_refused(c);
    if (!ask->most) return MU_OK;
    do {
        enum mu_status st = mu_drafter_ask(g->drafter, ask, 1, READ_AT_ONCE, &took, err);
        if (st != MU_OK) return st;
        mu_draft_costs_took(c, &took);
    } while (ask->n_behind && !mu_interrupted);
    g->pace.n_read = place.n_ids - ask->n_behind;
    if (!ask->n_draft && !ask->n_behind) mu_draft_pace_rest(&g->pace, place.n_ids);
    return MU_OK;
}

enum mu_status mu_guess_next(struct mu_guess *g, struct mu_solo *solo, const struct mu_guess_place *at,
                             struct mu_guess_result *result_out, struct mu_err *err)
{
    struct mu_draft_ask ask;
    int32_t ids[1 + MU_MAX_DRAFT] = {at->ids[at->n_ids - 1]};
    enum mu_status st = ask_for(g, at, &ask, err);
    if (st != MU_OK) return st;
    for (uint32_t i = 0; i < ask.n_draft; i++) ids[1 + i] = ask.draft[i];
    int64_t start = mu_now_ns();
    st = mu_solo_guess(solo, 0, ids, 1 + (int)ask.n_draft, at->sampling, result_out->id, &result_out->n, err);
    if (st != MU_OK) return st;
    result_out->n_guessed = (int)ask.n_draft;
    result_out->n_right = result_out->n - 1;
    double us = (double)(mu_now_ns() - start) / 1e3;
    if (ask.n_draft)
        mu_draft_costs_added(&g->costs, (us - g->costs.gap_us) / ask.n_draft);
    else
        mu_draft_costs_gap(&g->costs, us, 1);
    if (ask.n_draft) mu_draft_pace_learn(&g->pace, &g->hope, ask.n_draft, (uint32_t)result_out->n_right);
    return MU_OK;
}
