/* See embedder.h. A window of texts is known to the scheduler at a time; vectors that are ready before an earlier one
 * wait in it. */
#include "worker/embedder.h"

#include "base/alloc.h"
#include "worker/scheduler.h"

enum { WINDOW_SLOTS = 4 }; /* texts in the window, a slot: enough to fill steps while a long one holds up the order */

struct place {    /* a text of the window: number at % n_place */
    float *value; /* [d_model] */
    bool ready;
};

struct mu_embedder {
    struct mu_solo *solo;
    const struct mu_model *model;
    struct mu_sched *sched;
    struct mu_step *step;
    struct mu_sched_event *events; /* [n_slot] */
    struct place *place;           /* [n_place] */
    float *values;
    size_t n_place;
    uint32_t adapter;
    float adapter_scale;
    uint64_t n_before; /* texts of earlier runs: requests are numbered over all of them */
};

enum mu_status mu_embedder_create(struct mu_solo *solo, const struct mu_model *model, struct mu_embedder **embedder_out,
                                  struct mu_err *err)
{
    enum mu_status st;
    const struct mu_serving *v = mu_solo_serving(solo);
    size_t n_place = (size_t)v->n_slot * WINDOW_SLOTS, d = (size_t)model->cfg.d_model;
    struct mu_embedder *e = mu_calloc(1, sizeof *e);
    if (!e) return mu_fail(err, MU_ENOMEM, "no memory for embeddings");
    e->solo = solo;
    e->model = model;
    e->n_place = n_place;
    const struct mu_sched_options so = {.serving = *v,
                                        .n_stage = 1,
                                        .n_vocab = model->cfg.n_vocab,
                                        .max_waiting = (int)n_place,
                                        .n_ctx_short = model->cfg.n_ctx_short};
    MU_TRY(st, mu_sched_create(&so, &e->sched, err), fail);
    MU_TRY(st, mu_step_create(v, model->cfg.n_vocab, &e->step, err), fail);
    e->events = mu_calloc((size_t)v->n_slot, sizeof *e->events);
    e->place = mu_calloc(n_place, sizeof *e->place);
    e->values = mu_calloc(n_place, d * sizeof *e->values);
    if (!e->events || !e->place || !e->values) {
        st = mu_fail(err, MU_ENOMEM, "no memory for %zu vectors of %zu", n_place, d);
        goto fail;
    }
    for (size_t i = 0; i < n_place; i++) e->place[i].value = e->values + i * d;
    *embedder_out = e;
    return MU_OK;
fail:
    mu_embedder_destroy(e);
    return st;
}

void mu_embedder_destroy(struct mu_embedder *e)
{
    if (!e) return;
    mu_sched_destroy(e->sched);
    mu_free(e->step);
    mu_free(e->events);
    mu_free(e->place);
    mu_free(e->values);
    mu_free(e);
}

void mu_embedder_adapt(struct mu_embedder *e, int adapter, float scale)
{
    e->adapter = (uint32_t)adapter;
    e->adapter_scale = scale;
}

static struct place *place_of(struct mu_embedder *e, size_t at)
{
    return &e->place[at % e->n_place];
}

static enum mu_status submit(struct mu_embedder *e, const struct mu_embed *want, const struct mu_embed_text *text,
                             size_t at, struct mu_err *err)
{
    bool finished;
    const struct mu_sched_request r = {.id = e->n_before + at,
                                       .prompt = text->ids,
                                       .n_prompt = text->n,
                                       .embed = *want,
                                       .adapter = e->adapter,
                                       .adapter_scale = e->adapter_scale};
    enum mu_status st = mu_sched_submit(e->sched, &r, &finished, err);
    return st == MU_OK ? MU_OK : mu_err_wrap(err, "text %zu", at + 1);
}

/* One step, and what it finished. */
static enum mu_status step_run(struct mu_embedder *e, struct mu_err *err)
{
    struct mu_step_result result;
    int d_model = e->model->cfg.d_model;
    if (!mu_sched_next(e->sched, e->step)) return mu_fail(err, MU_EINTERNAL, "no text can go on");
    enum mu_status st = mu_solo_step(e->solo, e->step, &result, err);
    if (st != MU_OK) return st;
    int n = mu_sched_complete(e->sched, e->step->number, result.id, e->events);
    for (int i = 0; i < n; i++) {
        const struct mu_sched_event *ev = &e->events[i];
        size_t at = (size_t)(ev->request - e->n_before);
        struct place *p = place_of(e, at);
        if (ev->error != MU_OK || !mu_embed_finish(&ev->embed, result.state + (size_t)ev->slot * (size_t)d_model,
                                                   ev->n_tok, d_model, p->value))
            return mu_fail(err, MU_ENONFINITE, "text %zu: the model's output is not finite", at + 1);
        p->ready = true;
    }
    return MU_OK;
}

enum mu_status mu_embedder_run(struct mu_embedder *e, const struct mu_embed *want, const struct mu_embed_text *texts,
                               size_t n_text,
                               enum mu_status (*put)(void *ctx, size_t at, const float *value, int n,
                                                     struct mu_err *err),
                               void *ctx, struct mu_err *err)
{
    enum mu_status st = MU_OK;
    size_t n_in = 0;
    for (size_t n_out = 0; n_out < n_text;) {
        for (; n_in < n_text && n_in - n_out < e->n_place; n_in++)
            if ((st = submit(e, want, &texts[n_in], n_in, err)) != MU_OK) return st;
        if ((st = step_run(e, err)) != MU_OK) return st;
        for (struct place *p; n_out < n_text && (p = place_of(e, n_out))->ready; n_out++) {
            p->ready = false;
            if ((st = put(ctx, n_out, p->value, mu_embed_len(want, e->model->cfg.d_model), err)) != MU_OK) return st;
        }
    }
    e->n_before += n_text;
    return MU_OK;
}
