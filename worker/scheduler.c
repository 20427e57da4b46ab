/* Requests come and go, and what became of a step; see scheduler.h for the rules, sched_step.c for the next step.
 *
 * Invariants (the simulation in tests/worker/sched_sim.c checks them after every call):
 *   every page is held by as many active sequences as have it in their tables, and by none where it is free or cached;
 *   every slot is free or has exactly one active sequence;
 *   a sequence in flight is never preempted or released: the ranks still use its pages;
 *   waiting is sorted by arrival, so that a preempted sequence gets back in before all younger ones of its key.
 *
 * Why this makes progress: the oldest of the most urgent sequences can take pages from every other one that is not in
 * flight, every step in flight completes, and a request that needs more pages than exist was refused. Cached pages never
 * stand in the way: whoever needs a page gets one of them as if it were free. Why all of them do: a priority and a key
 * that get nothing fall behind until it is their turn (base/fair.h), nobody is let in before them then (but what is more
 * urgent, and of that only so much as their beginning weighs), and what has been let in and had to go is spared
 * afterwards. */
#include "worker/scheduler.h"

#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "shard/adjust.h"
#include "shard/shard.h"
#include "worker/sched_parts.h"

/* ---- life ---- */

static void seq_free(struct seq *q)
{
    if (!q) return;
    mu_adjusts_destroy(q->adjusts);
    mu_free(q->ids);
    mu_free(q->page);
    mu_free(q->window);
    mu_free(q);
}

enum mu_status mu_sched_create(const struct mu_sched_options *opt, struct mu_sched **sched_out, struct mu_err *err)
{
    const struct mu_serving *v = &opt->serving;
    if (v->n_ctx < 2 || v->n_slot < 1 || v->n_page < 1 || v->step_tokens < 2 || opt->n_stage < 1 ||
        opt->n_stage > MU_MAX_STAGES || opt->n_vocab < 1 || opt->max_waiting < 1)
        return mu_fail(err, MU_EINVAL, "scheduler: context %d, %d sequences, %u pages, %d tokens a step, %d stages",
                       v->n_ctx, v->n_slot, v->n_page, v->step_tokens, opt->n_stage);
    struct mu_sched *s = mu_calloc(1, sizeof *s);
    if (!s) return mu_fail(err, MU_ENOMEM, "out of memory for the scheduler");
    size_t n_slot = (size_t)v->n_slot;
    s->opt = *opt;
    s->max_in_flight = opt->n_stage > 1 ? opt->n_stage + 1 : 1;
    s->next_number = 1;
    s->hope = MU_DRAFT_HOPE;
    s->active = mu_calloc(n_slot, sizeof(struct seq *));
    s->order = mu_calloc(n_slot, sizeof(struct seq *));
    s->given = mu_calloc(v->n_page, sizeof *s->given);
    s->slot_dirty = mu_calloc(n_slot, sizeof *s->slot_dirty);
    s->flight = mu_calloc((size_t)s->max_in_flight, sizeof *s->flight);
    bool whole = s->active && s->order && s->given && s->slot_dirty && s->flight;
    for (int i = 0; whole && i < s->max_in_flight; i++)
        whole = (s->flight[i].seq = mu_calloc(n_slot, sizeof(struct seq *))) != NULL &&
                (s->flight[i].samples = mu_calloc(n_slot, sizeof(bool))) != NULL &&
                (s->flight[i].n_draft = mu_calloc(n_slot, sizeof(uint8_t))) != NULL;
    if (!whole) {
        mu_sched_destroy(s);
        return mu_fail(err, MU_ENOMEM, "out of memory for a scheduler of %d sequences and %u pages", v->n_slot,
                       v->n_page);
    }
    enum mu_status st = mu_kv_pool_create(v->n_page, &s->pool, err);
    s->n_window = mu_plan_window_pages(v);
    if (st == MU_OK && s->n_window) st = mu_kv_pool_create(s->n_window, &s->window, err);
    if (st != MU_OK) {
        mu_sched_destroy(s);
        return st;
    }
    *sched_out = s;
    return MU_OK;
}

void mu_sched_destroy(struct mu_sched *s)
{
    if (!s) return;
    while (s->waiting) {
        struct seq *q = s->waiting;
        s->waiting = q->next;
        seq_free(q);
    }
    for (int i = 0; s->active && i < s->opt.serving.n_slot; i++) seq_free(s->active[i]);
    for (int i = 0; s->flight && i < s->max_in_flight; i++) {
        mu_free(s->flight[i].seq);
        mu_free(s->flight[i].samples);
        mu_free(s->flight[i].n_draft);
    }
    mu_free(s->active);
    mu_free(s->order);
    mu_free(s->given);
    mu_free(s->slot_dirty);
    mu_kv_pool_destroy(s->pool);
    mu_kv_pool_destroy(s->window);
    mu_fair_free(&s->fair);
    mu_free(s->flight);
    mu_free(s);
}

/* ---- requests come and go ---- */

static bool is_end_id(const struct seq *q, int32_t id)
{
    for (size_t i = 0; i < q->n_end; i++)
        if (q->end_ids[i] == id) return true;
    return false;
}

void mu_sched_wait(struct mu_sched *s, struct seq *q)
{
    struct seq **at = &s->waiting;
    while (*at && (*at)->arrival < q->arrival) at = &(*at)->next;
    q->next = *at;
    *at = q;
    s->n_waiting++;
    mu_fair_wait(&s->fair, q->flow);
}

void mu_sched_unwait(struct mu_sched *s, struct seq *q)
{
    struct seq **at = &s->waiting;
    while (*at != q) at = &(*at)->next;
    *at = q->next;
    q->next = NULL;
    s->n_waiting--;
    mu_fair_unwait(&s->fair, q->flow);
}

static struct seq *find(const struct mu_sched *s, uint64_t request)
{
    for (struct seq *q = s->waiting; q; q = q->next)
        if (q->request == request) return q;
    for (int i = 0; i < s->opt.serving.n_slot; i++)
        if (s->active[i] && s->active[i]->request == request) return s->active[i];
    return NULL;
}

static enum mu_status request_check(const struct mu_sched *s, const struct mu_sched_request *r, struct mu_err *err)
{
    const struct mu_serving *v = &s->opt.serving;
    unsigned long long id = r->id;
    if (r->n_prompt < 1) return mu_fail(err, MU_EINVAL, "request %llu has an empty prompt", id);
    bool embeds = r->embed.pooling != MU_POOL_NONE;
    if (embeds && (r->n_prompt > (size_t)v->n_ctx || r->n_emitted > 0))
        return mu_fail(err, r->n_emitted ? MU_EINVAL : MU_ELIMIT,
                       "request %llu: a text of %zu tokens to be embedded, with %zu emitted ones; expected at most %d "
                       "and none",
                       id, r->n_prompt, r->n_emitted, v->n_ctx);
    if (!embeds && r->n_prompt >= (size_t)v->n_ctx)
        return mu_fail(
            err, MU_ELIMIT,
            "request %llu: the prompt has %zu tokens; the context of %d tokens leaves room for a prompt of %d", id,
            r->n_prompt, v->n_ctx, v->n_ctx - 1);
    if (r->n_emitted > (size_t)v->n_ctx - r->n_prompt)
        return mu_fail(err, MU_ELIMIT, "request %llu: %zu prompt tokens and %zu emitted ones exceed the context of %d",
                       id, r->n_prompt, r->n_emitted, v->n_ctx);
    if (r->n_end > MU_SCHED_MAX_END_IDS)
        return mu_fail(err, MU_ELIMIT, "request %llu: %zu end ids, at most %d are allowed", id, r->n_end,
                       (int)MU_SCHED_MAX_END_IDS);
    for (size_t i = 0; i < r->n_prompt + r->n_emitted; i++) {
        int32_t t = i < r->n_prompt ? r->prompt[i] : r->emitted[i - r->n_prompt];
        if (t < 0 || t >= s->opt.n_vocab)
            return mu_fail(err, MU_EINVAL, "request %llu: token %zu is %d; the vocabulary has ids 0 … %d", id, i, t,
                           s->opt.n_vocab - 1);
    }
    struct mu_err why = MU_ERR_INIT;
    if (mu_sampling_check(&r->sampling, &why) != MU_OK ||
        mu_biases_check(r->bias, r->n_bias, s->opt.n_vocab, &why) != MU_OK)
        return mu_fail(err, MU_EINVAL, "request %llu: %s", id, why.text);
    if (r->adapter > (uint32_t)v->n_adapter || !isfinite(r->adapter_scale))
        return mu_fail(err, MU_EINVAL, "request %llu: adapter %u at scale %g; the gang has %d", id, r->adapter,
                       (double)r->adapter_scale, v->n_adapter);
    if ((unsigned)r->priority >= MU_PRIORITY_COUNT)
        return mu_fail(err, MU_EINVAL, "request %llu: priority %d is not known", id, (int)r->priority);
    if (find(s, r->id)) return mu_fail(err, MU_EINVAL, "request %llu is running already", id);
    if (s->n_waiting >= s->opt.max_waiting)
        return mu_fail(err, MU_ELIMIT, "request %llu: %d requests wait already; try again later", id, s->n_waiting);
    return MU_OK;
}

static enum mu_status adjusts_make(const struct mu_sched *s, const struct mu_sched_request *r, struct seq *q,
                                   struct mu_err *err)
{
    return mu_adjusts_create(&(struct mu_adjusts_options){.sampling = &q->sampling,
                                                          .bias = r->bias,
                                                          .n_bias = r->n_bias,
                                                          .end_ids = q->end_ids,
                                                          .n_end = q->n_end,
                                                          .ids = q->ids,
                                                          .n_ids = q->n_ids,
                                                          .n_prompt = q->n_prompt,
                                                          .max_ids = q->n_limit,
                                                          .n_vocab = s->opt.n_vocab},
                             &q->adjusts, err);
}

enum mu_status mu_sched_submit(struct mu_sched *s, const struct mu_sched_request *r, bool *finished_out,
                               struct mu_err *err)
{
    enum mu_status st = request_check(s, r, err);
    if (st != MU_OK) return st;
    uint32_t room = (uint32_t)s->opt.serving.n_ctx - (uint32_t)r->n_prompt;
    bool embeds = r->embed.pooling != MU_POOL_NONE;
    uint32_t limit = (uint32_t)r->n_prompt + (embeds ? 0 : r->max_tokens < room ? r->max_tokens : room);
    uint32_t n_ids = (uint32_t)(r->n_prompt + r->n_emitted);
    /* The last id that is sampled is never fed: nothing follows it. */
    if ((embeds || limit > n_ids) && mu_sched_pages_of(embeds ? limit : limit - 1) > s->opt.serving.n_page)
        return mu_fail(
            err, MU_ELIMIT,
            "request %llu: %u tokens need %u KV pages of %d tokens and the gang has %u; ask for fewer tokens",
            (unsigned long long)r->id, limit, mu_sched_pages_of(embeds ? limit : limit - 1), (int)MU_PAGE_TOKENS,
            s->opt.serving.n_page);
    struct seq *q = mu_calloc(1, sizeof *q);
    if (q) {
        uint32_t cap = limit > n_ids ? limit : n_ids;
        q->ids = mu_calloc(cap, sizeof *q->ids);
        q->page = mu_calloc(mu_sched_pages_of(cap), sizeof *q->page);
        if (s->window) q->window = mu_calloc(mu_sched_pages_of(cap), sizeof *q->window);
    }
    if (!q || !q->ids || !q->page || (s->window && !q->window)) {
        seq_free(q);
        return mu_fail(err, MU_ENOMEM, "request %llu: out of memory for %u tokens", (unsigned long long)r->id, limit);
    }
    q->request = r->id;
    q->slot = -1;
    q->n_prompt = (uint32_t)r->n_prompt;
    q->n_ids = n_ids;
    q->n_limit = limit;
    memcpy(q->ids, r->prompt, r->n_prompt * sizeof *q->ids);
    if (r->n_emitted) memcpy(q->ids + r->n_prompt, r->emitted, r->n_emitted * sizeof *q->ids);
    q->sampling = r->sampling;
    q->adapter = (uint16_t)r->adapter;
    q->adapter_scale = r->adapter_scale;
    q->n_end = r->n_end;
    if (r->n_end) memcpy(q->end_ids, r->end_ids, r->n_end * sizeof *q->end_ids);
    q->embed = r->embed;
    *finished_out = (n_ids >= limit && !embeds) || (r->n_emitted && is_end_id(q, q->ids[n_ids - 1]));
    if (*finished_out) {
        seq_free(q);
        return MU_OK;
    }
    q->priority = r->priority;
    if ((st = adjusts_make(s, r, q, err)) != MU_OK) {
        seq_free(q);
        return st;
    }
    q->flow = mu_fair_enter(&s->fair, r->priority, r->key);
    if (q->flow < 0) {
        seq_free(q);
        return mu_fail(err, MU_ENOMEM, "request %llu: out of memory for its key", (unsigned long long)r->id);
    }
    q->arrival = s->next_arrival++;
    mu_sched_wait(s, q);
    return MU_OK;
}

/* The last page first: what nobody needs any more is forgotten from its end (kv_pool.h). */
void mu_sched_slot_empty(struct mu_sched *s, struct seq *q)
{
    if (q->n_page) s->slot_dirty[q->slot] = true;
    while (q->n_page) mu_kv_pool_release(s->pool, q->page[--q->n_page]);
    mu_sched_window_drop(s, q);
    q->n_fed = q->n_known = 0;
    q->identity = 0;
}

void mu_sched_slot_release(struct mu_sched *s, struct seq *q)
{
    mu_sched_slot_empty(s, q);
    s->n_window_taken -= mu_sched_window_share(s, q);
    s->active[q->slot] = NULL;
    s->n_active--;
    q->slot = -1;
}

static void seq_end(struct mu_sched *s, struct seq *q)
{
    if (q->slot >= 0) {
        mu_sched_slot_release(s, q);
    } else {
        mu_sched_unwait(s, q);
    }
    mu_fair_leave(&s->fair, q->flow);
    seq_free(q);
}

static struct mu_sched_event event_of(const struct seq *q)
{
    return (struct mu_sched_event){
        .request = q->request, .position = q->n_ids - q->n_prompt, .id = -1, .error = MU_OK, .n_cached = q->n_cached};
}

enum mu_status mu_sched_cancel(struct mu_sched *s, uint64_t request, struct mu_sched_event *event_out)
{
    struct seq *q = find(s, request);
    if (!q) return MU_ENOENT;
    if (q->n_flight) {
        q->cancelled = true;
        return MU_EAGAIN;
    }
    *event_out = event_of(q);
    event_out->finished = true;
    event_out->error = MU_ECANCELLED;
    seq_end(s, q);
    return MU_OK;
}

/* ---- a step is done ---- */

/* Takes the sampled id; true: the sequence is at its end. */
static bool id_take(const struct mu_sched *s, struct seq *q, int32_t id, struct mu_sched_event *e)
{
    if (q->embed.pooling) {
        e->embed = q->embed;
        e->slot = (uint32_t)q->slot;
        e->n_tok = q->n_ids;
        if (id == -2) e->error = MU_ENONFINITE;
        return true;
    }
    if (id < 0 || id >= s->opt.n_vocab) {
        e->error = id == -2 ? MU_ENONFINITE : id == MU_SAMPLE_NONE_ALLOWED ? MU_EINVAL : MU_EINTERNAL;
        return true;
    }
    e->id = id;
    e->logprobs = q->sampling.logprobs;
    q->ids[q->n_ids++] = id;
    mu_adjusts_push(q->adjusts, q->ids, q->n_ids);
    return q->n_ids == q->n_limit || is_end_id(q, id);
}

/* The ids that a step sampled for q, from its sequence number `at` on: its own, and those after drafts as long as these
 * were right. Returns how many events there are; *over_out: the last one ends it. */
static int ids_take(struct mu_sched *s, struct seq *q, const int32_t *id, uint32_t at, uint32_t n_draft,
                    struct mu_sched_event *events_out, bool *over_out)
{
    uint32_t k = 0;
    for (;; k++) {
        struct mu_sched_event *e = &events_out[k];
        *e = event_of(q);
        e->seq = at + k;
        *over_out = e->finished = id_take(s, q, id[at + k], e);
        if (e->finished || k == n_draft || id[at + k] != q->draft[k]) break;
        q->n_fed++; /* the draft */
        mu_fair_charge(&s->fair, q->flow, 1);
    }
    mu_sched_draft_learn(s, q, n_draft, k);
    /* It turns otherwise from now on, and others may share its pages: into new ones. */
    if (mu_sched_is_far(s, q->n_ids) && !mu_sched_is_far(s, q->n_ids - 1)) mu_sched_slot_empty(s, q);
    return (int)k + 1;
}

int mu_sched_complete(struct mu_sched *s, uint64_t number, const int32_t *id, struct mu_sched_event *events_out)
{
    struct flight *f = &s->flight[s->flight_head];
    if (!s->n_flight || f->number != number) return -1;
    s->flight_head = (s->flight_head + 1) % s->max_in_flight;
    s->n_flight--;
    int n_event = 0;
    uint32_t at = 0;
    for (int i = 0; i < f->n_seq; at += 1u + f->n_draft[i], i++) {
        struct seq *q = f->seq[i];
        bool over = false;
        int n = 0;
        q->n_flight--;
        if (q->cancelled) {
            over = q->n_flight == 0;
            events_out[n_event] = event_of(q);
            events_out[n_event].finished = true;
            events_out[n_event].error = MU_ECANCELLED;
            n = over;
        } else if (f->samples[i]) {
            n = ids_take(s, q, id, at, f->n_draft[i], events_out + n_event, &over);
        }
        n_event += n;
        if (over) seq_end(s, q);
    }
    return n_event;
}

/* A step with prefill tokens took so long: what it would have taken without them is known of steps with more or fewer decodes. */
static void prefill_took(struct mu_sched *s, const struct flight *f, double us)
{
    struct mu_draft_costs *c = &s->cost;
    double alone_us = c->gap_us / s->opt.n_stage;
    double n_tok = f->n_prefill + (f->n_decode - c->gap_streams / s->opt.n_stage); /* that alone_us is not of */
    if (n_tok >= f->n_prefill / 2.0) mu_draft_average(&c->token_us, fmax((us - alone_us) / n_tok, 1e-3));
}

/* With k steps of decodes on their way a stream's next token comes k completions after its last one, whether that fills
 * the stages or one step goes through all of them alone. With prefill beside them the stages are full: then a completion
 * takes an n_stage-th of the gap, and what the prefill adds. */
void mu_sched_took(struct mu_sched *s, uint32_t us)
{
    const struct flight *f = &s->flight[s->flight_head];
    struct mu_draft_costs *c = &s->cost;
    int n_decode = 0;
    uint32_t n_prefill = 0, n_drafted = 0, n_stream = 0;
    if (!s->n_flight || !us) return;
    for (int i = 0; i < s->n_flight; i++) {
        const struct flight *g = &s->flight[(s->flight_head + i) % s->max_in_flight];
        n_decode += g->n_decode > 0;
        n_stream += (uint32_t)g->n_decode;
        n_prefill += g->n_prefill;
        n_drafted += g->n_drafted;
    }
    double gap_us = (double)us * n_decode;
    if (!n_prefill && !n_drafted)
        mu_draft_costs_gap(c, gap_us, n_stream);
    else if (f->n_prefill)
        prefill_took(s, f, us);
    else if (!n_prefill)
        mu_draft_costs_added(c, (gap_us - mu_draft_costs_gap_of(c, n_stream)) / n_drafted);
}

int mu_sched_max_in_flight(const struct mu_sched *s)
{
    return s->max_in_flight;
}
int mu_sched_in_flight(const struct mu_sched *s)
{
    return s->n_flight;
}

void mu_sched_count(const struct mu_sched *s, struct mu_sched_counts *c)
{
    *c = (struct mu_sched_counts){
        .active = (uint32_t)s->n_active,
        .waiting = (uint32_t)s->n_waiting,
        .free_pages = mu_kv_pool_available(s->pool),
        .cached_pages = mu_kv_pool_cached(s->pool),
        .free_slots = (uint32_t)(s->opt.serving.n_slot - s->n_active),
        .steps = s->next_number - 1,
        .preemptions = s->n_preempted,
        .cached_tokens = s->n_cached_tokens,
        .drafted = s->n_drafted,
        .drafts_taken = s->n_taken,
        .model_drafted = s->n_model_drafted,
        .model_taken = s->n_model_taken,
    };
}
