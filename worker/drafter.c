/* See drafter.h. A seat is a slot of the one rank, and its pages are the same for good: they are written again from
 * wherever its sequence goes back to. */
#include "worker/drafter.h"

#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "shard/plan_draft.h"

/* A sequence this close to its end is not read in bulk but with the first step that drafts, of all seats together. */
enum { TAIL = 16, WARM_GUESSES = 3 };

struct seat {
    uint64_t sequence;
    bool taken;
    bool far;                 /* turns by the long rotation factors */
    int32_t *held;            /* [n_ctx] the ids whose keys and values are there … */
    uint32_t n_held;          /* … so many */
    uint32_t n_page;          /* that the rank has been told of */
    uint64_t used;            /* the call in which it was last */
    struct mu_draft_ask *ask; /* of this call; NULL: none */
};

struct mu_drafter {
    struct mu_drafter_options opt;
    struct mu_plan plan;
    struct mu_shard *shard;
    struct mu_step *step;
    struct mu_step_result result;
    int32_t *ids; /* backing of all held */
    uint32_t max_page;
    uint64_t n_call, n_step;
    int n_seat;
    struct seat seat[MU_DRAFT_SEATS];
};

/* What is touched for the first time takes long, and how long guesses take is measured from the first one on. */
static enum mu_status warm_up(struct mu_drafter *d, struct mu_err *err)
{
    const int32_t id = 0;
    struct mu_draft_took took;
    struct mu_draft_ask ask = {.ids = &id, .n_ids = 1, .most = WARM_GUESSES};
    enum mu_status st = mu_drafter_ask(d, &ask, 1, 0, &took, err);
    mu_drafter_forget(d);
    return st;
}

void mu_drafter_forget(struct mu_drafter *d)
{
    for (int i = 0; i < d->n_seat; i++) {
        d->seat[i].taken = false;
        d->seat[i].n_held = 0;
    }
}

enum mu_status mu_drafter_create(const struct mu_drafter_options *opt, struct mu_drafter **drafter_out,
                                 struct mu_err *err)
{
    enum mu_status st;
    const struct mu_serving *v = &opt->serving;
    struct mu_drafter *d = mu_calloc(1, sizeof *d);
    if (!d) return mu_fail(err, MU_ENOMEM, "no memory for a draft model");
    d->opt = *opt;
    d->n_seat = v->n_slot;
    d->max_page = mu_fit_pages_of(v->n_ctx);
    if (v->n_slot < 1 || v->n_slot > MU_DRAFT_SEATS || v->step_tokens < MU_DRAFT_SEATS * TAIL ||
        v->n_page < (uint32_t)v->n_slot * d->max_page) {
        st = mu_fail(err, MU_EINVAL, "a draft model with %d seats, %u pages, %d tokens a step", v->n_slot, v->n_page,
                     v->step_tokens);
        goto fail;
    }
    MU_TRY(st, mu_draft_plan(opt->model, &d->plan, err), fail);
    d->ids = mu_calloc((size_t)v->n_slot * (size_t)v->n_ctx, sizeof *d->ids);
    if (!d->ids) {
        st = mu_fail(err, MU_ENOMEM, "no memory for %d sequences of a draft model", v->n_slot);
        goto fail;
    }
    for (int i = 0; i < d->n_seat; i++) d->seat[i].held = d->ids + (size_t)i * (size_t)v->n_ctx;
    MU_TRY(st, mu_step_create(v, opt->model->cfg.n_vocab, &d->step, err), fail);
    struct mu_shard_options so = {.model = opt->model,
                                  .plan = &d->plan,
                                  .serving = *v,
                                  .pool = opt->pool,
                                  .kept_fd = opt->kept_fd,
                                  .whose = "the draft model's "};
    MU_TRY(st, mu_shard_create(&so, &d->shard, err), fail);
    MU_TRY(st, warm_up(d, err), fail);
    *drafter_out = d;
    return MU_OK;
fail:
    mu_drafter_destroy(d);
    return st;
}

void mu_drafter_destroy(struct mu_drafter *d)
{
    if (!d) return;
    mu_shard_destroy(d->shard);
    mu_free(d->step);
    mu_free(d->ids);
    mu_free(d);
}

/* ---- seats ---- */

static uint32_t common(const struct seat *s, const struct mu_draft_ask *a)
{
    uint32_t n = 0, most = s->n_held < a->n_ids ? s->n_held : a->n_ids;
    while (n < most && s->held[n] == a->ids[n]) n++;
    return n;
}

/* Its own seat, else of those that nobody in this call has the one that holds the most of it, or was left alone longest. */
static struct seat *seat_find(struct mu_drafter *d, const struct mu_draft_ask *a)
{
    struct seat *best = NULL;
    uint32_t best_n = 0;
    for (int i = 0; i < d->n_seat; i++) {
        struct seat *s = &d->seat[i];
        if (s->taken && s->sequence == a->sequence) return s;
        if (s->used == d->n_call) continue;
        uint32_t n = common(s, a);
        if (!best || n > best_n || (n == best_n && s->used < best->used)) {
            best = s;
            best_n = n;
        }
    }
    return best;
}

static bool is_known(const struct mu_drafter *d, int32_t id)
{
    return id >= 0 && id < d->opt.model->cfg.n_vocab;
}

/* How many ids may be guessed: in its context, by the same rotation factors, after ids that the model knows. */
static uint32_t most_of(const struct mu_drafter *d, const struct mu_draft_ask *a)
{
    const struct mu_config *cfg = &d->opt.model->cfg;
    uint32_t n_ctx = (uint32_t)d->opt.serving.n_ctx, n_short = (uint32_t)cfg->n_ctx_short, most = a->most;
    if (a->n_ids < 1 || a->n_ids >= n_ctx) return 0;
    if (a->n_ids <= n_short && n_short < n_ctx) n_ctx = n_short;
    if (most > MU_MAX_DRAFT) most = MU_MAX_DRAFT;
    if (most > n_ctx - a->n_ids) most = n_ctx - a->n_ids;
    for (uint32_t i = 0; most && i < a->n_ids; i++)
        if (!is_known(d, a->ids[i])) most = 0;
    return most;
}

/* The ask's sequence in a seat, which goes back to where they part, at most to its last id: that one is what a guess is
 * sampled from. */
static void sit_down(struct mu_drafter *d, struct mu_draft_ask *a)
{
    const uint32_t n_short = (uint32_t)d->opt.model->cfg.n_ctx_short;
    a->n_draft = a->n_behind = 0;
    a->most = most_of(d, a);
    struct seat *s = a->most ? seat_find(d, a) : NULL;
    if (!s) return;
    bool far = a->n_ids > n_short;
    uint32_t n = s->far == far ? common(s, a) : 0;
    s->taken = true;
    s->sequence = a->sequence;
    s->used = d->n_call;
    s->far = far;
    s->n_held = n < a->n_ids ? n : a->n_ids - 1;
    s->ask = a;
}

/* ---- steps ---- */

static void step_begin(struct mu_drafter *d)
{
    mu_step_clear(d->step);
    d->step->number = ++d->n_step;
}

static void step_add(struct mu_drafter *d, struct seat *s, const int32_t *ids, uint32_t n, enum mu_out_kind out)
{
    struct mu_step *step = d->step;
    uint32_t slot = (uint32_t)(s - d->seat);
    for (; s->n_page * MU_PAGE_TOKENS < s->n_held + n; s->n_page++)
        step->page[step->n_page++] = (struct mu_step_page){slot, slot * d->max_page + s->n_page};
    struct mu_sampling sampling = s->ask->sampling;
    sampling.logprobs = false;
    step->seq[step->n_seq++] = (struct mu_step_seq){.slot = slot,
                                                    .pos0 = s->n_held,
                                                    .n_tok = n,
                                                    .tok_off = step->n_tok,
                                                    .out = (uint8_t)out,
                                                    .far = s->far,
                                                    .sampling = sampling};
    memcpy(step->ids + step->n_tok, ids, n * sizeof *ids);
    memcpy(s->held + s->n_held, ids, n * sizeof *ids);
    step->n_tok += n;
    s->n_held += n;
}

static enum mu_status step_run(struct mu_drafter *d, struct mu_err *err)
{
    enum mu_status st = mu_shard_step(d->shard, d->step, &d->result, err);
    if (d->opt.record) mu_record_tick(d->opt.record);
    return st == MU_OK ? MU_OK : mu_err_wrap(err, "the draft model");
}

/* Chunk after chunk of what lies far behind. */
static enum mu_status read_on(struct mu_drafter *d, uint32_t most, struct mu_draft_took *took, struct mu_err *err)
{
    uint32_t chunk = (uint32_t)d->opt.serving.step_tokens;
    for (int i = 0; i < d->n_seat; i++) {
        struct seat *s = &d->seat[i];
        while (s->ask && s->ask->n_ids - s->n_held > TAIL && took->n_read < most) {
            uint32_t n = s->ask->n_ids - s->n_held - 1;
            if (n > chunk) n = chunk;
            if (n > most - took->n_read) n = most - took->n_read;
            step_begin(d);
            step_add(d, s, s->ask->ids + s->n_held, n, MU_OUT_NONE);
            enum mu_status st = step_run(d, err);
            if (st != MU_OK) return st;
            took->n_read += n;
        }
        if (s->ask && s->ask->n_ids - s->n_held > TAIL) {
            s->ask->n_behind = s->ask->n_ids - s->n_held;
            s->ask = NULL;
        }
    }
    return MU_OK;
}

/* One more guess for each that wants one; *any_out: there was one. A sequence whose guess is no id of both models, or is
 * none at all, has no further ones. */
static enum mu_status draft_on(struct mu_drafter *d, bool *any_out, struct mu_err *err)
{
    struct seat *who[MU_DRAFT_SEATS];
    int n = 0;
    step_begin(d);
    for (int i = 0; i < d->n_seat; i++) {
        struct seat *s = &d->seat[i];
        struct mu_draft_ask *a = s->ask;
        if (!a || a->n_draft == a->most) continue;
        if (a->n_draft)
            step_add(d, s, &a->draft[a->n_draft - 1], 1, MU_OUT_SAMPLE);
        else
            step_add(d, s, a->ids + s->n_held, a->n_ids - s->n_held, MU_OUT_SAMPLE);
        who[n++] = s;
    }
    *any_out = n > 0;
    if (!n) return MU_OK;
    enum mu_status st = step_run(d, err);
    if (st != MU_OK) return st;
    for (int i = 0; i < n; i++) {
        int32_t id = d->result.id[i];
        struct mu_draft_ask *a = who[i]->ask;
        if (is_known(d, id) && id < d->opt.n_vocab)
            a->draft[a->n_draft++] = id;
        else
            who[i]->ask = NULL;
    }
    return MU_OK;
}

static uint32_t us_since(int64_t ns)
{
    int64_t us = (mu_now_ns() - ns) / 1000;
    return us < UINT32_MAX ? (uint32_t)us : UINT32_MAX;
}

enum mu_status mu_drafter_ask(struct mu_drafter *d, struct mu_draft_ask *ask, int n, uint32_t read_most,
                              struct mu_draft_took *took_out, struct mu_err *err)
{
    *took_out = (struct mu_draft_took){0};
    d->n_call++;
    for (int i = 0; i < d->n_seat; i++) {
        d->seat[i].ask = NULL;
        for (int k = 0; k < n; k++) /* nobody else's in this call */
            if (d->seat[i].taken && d->seat[i].sequence == ask[k].sequence) d->seat[i].used = d->n_call;
    }
    for (int i = 0; i < n; i++) sit_down(d, &ask[i]);
    int64_t start = mu_now_ns();
    enum mu_status st = read_on(d, read_most, took_out, err);
    if (st != MU_OK) return st;
    took_out->read_us = took_out->n_read ? us_since(start) : 0;
    start = mu_now_ns();
    for (bool any = true; any;) {
        if ((st = draft_on(d, &any, err)) != MU_OK) return st;
        took_out->n_step += any;
    }
    took_out->step_us = took_out->n_step ? us_since(start) : 0;
    return MU_OK;
}
