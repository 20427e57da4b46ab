/* The scheduler. Owns the sequences, the slots and the page pool; see scheduler.h for the rules.
 *
 * Invariants (the simulation in tests/worker/test_scheduler.c checks them after every call):
 *   every page is in the free list or in exactly one active sequence;
 *   every slot is free or has exactly one active sequence;
 *   a sequence in flight is never preempted or released: the ranks still use its pages;
 *   waiting is sorted by arrival, so that a preempted sequence gets back in before all younger ones.
 *
 * Why this makes progress: the oldest sequence can take pages from every younger one that is not in flight, every step
 * in flight completes, and a request that needs more pages than exist was refused. */
#include "worker/scheduler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "shard/adjust.h"
#include "shard/shard.h"

enum {
    /* A step that also decodes prefills at most 1/MIXED_SHARE of the budget: a long prompt then slows the streams that
     * run by little, and chunks of this size still use the matrix kernels well. */
    MIXED_SHARE = 4,
};

struct seq {
    struct seq *next; /* waiting list */
    uint64_t request;
    uint64_t arrival;   /* age: lower is older */
    uint64_t last_step; /* it took part in; decodes are dealt out by it */
    int32_t *ids;       /* [n_limit]: prompt and emitted */
    uint32_t n_prompt, n_ids, n_limit;
    uint32_t n_fed; /* ids that the ranks have got, the step in flight included */
    uint32_t *page; /* [pages_of(n_limit)] */
    uint32_t n_page;
    int slot;                /* -1: waiting */
    bool in_flight, samples; /* samples: the step in flight yields its next id */
    bool cancelled, silent;
    struct mu_sampling sampling;
    struct mu_adjusts *adjusts; /* of ids[n_ids]; NULL: it needs none */
    int32_t end_ids[MU_SCHED_MAX_END_IDS];
    size_t n_end;
    /* Its cache holds what this adapter made of its tokens: pages are never shared with a sequence of another one. */
    uint16_t adapter;
    float adapter_scale;
    struct mu_embed embed;
};

struct flight { /* a step in flight */
    uint64_t number;
    int n_seq;
    struct seq **seq; /* [n_slot] */
};

struct mu_sched {
    struct mu_sched_options opt;
    struct seq *waiting; /* sorted by arrival */
    struct seq **active; /* [n_slot]; NULL: the slot is free */
    struct seq **order;  /* [n_slot] scratch */
    uint32_t *free_page; /* stack */
    uint32_t n_free_page;
    uint32_t *slot_to_free; /* [n_slot]: the ranks still hold these; told with the next step */
    uint32_t n_slot_to_free;
    struct flight *flight; /* [max_in_flight], a ring */
    int max_in_flight, flight_head, n_flight;
    int n_active, n_waiting;
    uint64_t next_number, next_arrival, n_preempted;
};

static uint32_t pages_of(uint32_t n_ids)
{
    return (n_ids + MU_PAGE_TOKENS - 1) / MU_PAGE_TOKENS;
}

/* ---- life ---- */

static void seq_free(struct seq *q)
{
    if (!q) return;
    mu_adjusts_destroy(q->adjusts);
    mu_free(q->ids);
    mu_free(q->page);
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
    s->active = mu_calloc(n_slot, sizeof(struct seq *));
    s->order = mu_calloc(n_slot, sizeof(struct seq *));
    s->free_page = mu_calloc(v->n_page, sizeof *s->free_page);
    s->slot_to_free = mu_calloc(n_slot, sizeof *s->slot_to_free);
    s->flight = mu_calloc((size_t)s->max_in_flight, sizeof *s->flight);
    bool whole = s->active && s->order && s->free_page && s->slot_to_free && s->flight;
    for (int i = 0; whole && i < s->max_in_flight; i++)
        whole = (s->flight[i].seq = mu_calloc(n_slot, sizeof(struct seq *))) != NULL;
    if (!whole) {
        mu_sched_destroy(s);
        return mu_fail(err, MU_ENOMEM, "out of memory for a scheduler of %d sequences and %u pages", v->n_slot,
                       v->n_page);
    }
    for (uint32_t i = 0; i < v->n_page; i++) s->free_page[i] = v->n_page - 1 - i;
    s->n_free_page = v->n_page;
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
    for (int i = 0; s->flight && i < s->max_in_flight; i++) mu_free(s->flight[i].seq);
    mu_free(s->active);
    mu_free(s->order);
    mu_free(s->free_page);
    mu_free(s->slot_to_free);
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

static void waiting_insert(struct mu_sched *s, struct seq *q)
{
    struct seq **at = &s->waiting;
    while (*at && (*at)->arrival < q->arrival) at = &(*at)->next;
    q->next = *at;
    *at = q;
    s->n_waiting++;
}

static struct seq *find(const struct mu_sched *s, uint64_t request)
{
    for (struct seq *q = s->waiting; q; q = q->next)
        if (q->request == request) return q;
    for (int i = 0; i < s->opt.serving.n_slot; i++)
        if (s->active[i] && !s->active[i]->silent && s->active[i]->request == request) return s->active[i];
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
    if ((embeds || limit > n_ids) && pages_of(embeds ? limit : limit - 1) > s->opt.serving.n_page)
        return mu_fail(
            err, MU_ELIMIT,
            "request %llu: %u tokens need %u KV pages of %d tokens and the gang has %u; ask for fewer tokens",
            (unsigned long long)r->id, limit, pages_of(embeds ? limit : limit - 1), (int)MU_PAGE_TOKENS,
            s->opt.serving.n_page);
    struct seq *q = mu_calloc(1, sizeof *q);
    if (q) {
        uint32_t cap = limit > n_ids ? limit : n_ids;
        q->ids = mu_calloc(cap, sizeof *q->ids);
        q->page = mu_calloc(pages_of(cap), sizeof *q->page);
    }
    if (!q || !q->ids || !q->page) {
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
    if ((st = adjusts_make(s, r, q, err)) != MU_OK) {
        seq_free(q);
        return st;
    }
    q->arrival = s->next_arrival++;
    waiting_insert(s, q);
    return MU_OK;
}

/* Takes the slot and pages of an active sequence that is not in flight. */
static void slot_release(struct mu_sched *s, struct seq *q)
{
    for (uint32_t i = q->n_page; i > 0; i--) s->free_page[s->n_free_page++] = q->page[i - 1];
    q->n_page = 0;
    q->n_fed = 0;
    s->slot_to_free[s->n_slot_to_free++] = (uint32_t)q->slot;
    s->active[q->slot] = NULL;
    s->n_active--;
    q->slot = -1;
}

static void seq_end(struct mu_sched *s, struct seq *q)
{
    if (q->slot >= 0) {
        slot_release(s, q);
    } else {
        struct seq **at = &s->waiting;
        while (*at != q) at = &(*at)->next;
        *at = q->next;
        s->n_waiting--;
    }
    seq_free(q);
}

static struct mu_sched_event event_of(const struct seq *q)
{
    return (struct mu_sched_event){.request = q->request, .position = q->n_ids - q->n_prompt, .id = -1, .error = MU_OK};
}

enum mu_status mu_sched_cancel(struct mu_sched *s, uint64_t request, struct mu_sched_event *event_out)
{
    struct seq *q = find(s, request);
    if (!q) return MU_ENOENT;
    if (q->in_flight) {
        q->cancelled = true;
        return MU_EAGAIN;
    }
    *event_out = event_of(q);
    event_out->finished = true;
    event_out->error = MU_ECANCELLED;
    seq_end(s, q);
    return MU_OK;
}

void mu_sched_forget_all(struct mu_sched *s)
{
    while (s->waiting) seq_end(s, s->waiting);
    for (int i = 0; i < s->opt.serving.n_slot; i++) {
        struct seq *q = s->active[i];
        if (q && q->in_flight)
            q->cancelled = q->silent = true;
        else if (q)
            seq_end(s, q);
    }
}

/* ---- the next step ---- */

static bool is_decode(const struct seq *q)
{
    return q->n_ids - q->n_fed == 1;
}

/* Gives the slot of the youngest sequence that is younger than `than` and idle back; false: there is none. */
static bool preempt(struct mu_sched *s, const struct seq *than)
{
    struct seq *youngest = NULL;
    for (int i = 0; i < s->opt.serving.n_slot; i++) {
        struct seq *q = s->active[i];
        if (q && !q->in_flight && q->arrival > than->arrival && (!youngest || q->arrival > youngest->arrival))
            youngest = q;
    }
    if (!youngest) return false;
    slot_release(s, youngest);
    waiting_insert(s, youngest);
    s->n_preempted++;
    return true;
}

/* Sequences longer than the model's short context turn by other factors, at all their positions. */
static bool is_far(const struct mu_sched *s, uint32_t n_ids)
{
    return s->opt.n_ctx_short > 0 && n_ids > (uint32_t)s->opt.n_ctx_short;
}

static void page_append(struct mu_sched *s, struct seq *q, struct mu_step *step)
{
    uint32_t page = s->free_page[--s->n_free_page];
    q->page[q->n_page++] = page;
    step->page[step->n_page++] = (struct mu_step_page){.slot = (uint32_t)q->slot, .page = page};
}

/* Pages for n ids; false: there are none, and nobody younger to take them from. */
static bool pages_grow(struct mu_sched *s, struct seq *q, uint32_t n, struct mu_step *step)
{
    while (pages_of(n) > q->n_page) {
        if (!s->n_free_page && !preempt(s, q)) return false;
        page_append(s, q, step);
    }
    return true;
}

/* What it needs beside its parameters to be sampled. */
static void step_constrain(const struct mu_sched *s, const struct seq *q, struct mu_step *step, struct mu_step_seq *to)
{
    mu_adjusts_put(q->adjusts, step, to);
    if (!s->opt.allow) return;
    uint8_t *mask = mu_step_mask(step, to);
    if (s->opt.allow(s->opt.allow_ctx, q->request, q->ids + q->n_prompt, q->n_ids - q->n_prompt, mask)) return;
    to->mask = 0;
    step->n_mask--;
}

static void step_add(struct mu_sched *s, struct seq *q, uint32_t n_tok, struct mu_step *step)
{
    struct flight *f = &s->flight[(s->flight_head + s->n_flight) % s->max_in_flight];
    bool last = q->n_fed + n_tok == q->n_ids;
    struct mu_step_seq *to = &step->seq[step->n_seq++];
    *to = (struct mu_step_seq){
        .slot = (uint32_t)q->slot,
        .pos0 = q->n_fed,
        .n_tok = n_tok,
        .tok_off = step->n_tok,
        .out = q->embed.pooling ? mu_embed_out(q->embed.pooling, last)
               : last           ? MU_OUT_SAMPLE
                                : MU_OUT_NONE,
        .far = is_far(s, q->n_ids),
        .sampling = q->sampling,
        .adapter = q->adapter,
        .adapter_scale = q->adapter_scale,
    };
    if (to->out == MU_OUT_SAMPLE) step_constrain(s, q, step, to);
    memcpy(step->ids + step->n_tok, q->ids + q->n_fed, n_tok * sizeof *step->ids);
    step->n_tok += n_tok;
    q->n_fed += n_tok;
    q->in_flight = true;
    q->samples = last;
    q->last_step = s->next_number;
    f->seq[f->n_seq++] = q;
}

static int by_last_step(const void *a, const void *b)
{
    const struct seq *x = *(struct seq *const *)a, *y = *(struct seq *const *)b;
    if (x->last_step != y->last_step) return x->last_step < y->last_step ? -1 : 1;
    return x->arrival < y->arrival ? -1 : x->arrival > y->arrival;
}

static int by_arrival(const void *a, const void *b)
{
    const struct seq *x = *(struct seq *const *)a, *y = *(struct seq *const *)b;
    return x->arrival < y->arrival ? -1 : x->arrival > y->arrival;
}

/* Idle sequences that want a decode (or a prefill) into s->order; returns how many. */
static int idle_collect(struct mu_sched *s, bool decode, int (*compare)(const void *, const void *))
{
    int n = 0;
    for (int i = 0; i < s->opt.serving.n_slot; i++) {
        struct seq *q = s->active[i];
        if (q && !q->in_flight && is_decode(q) == decode) s->order[n++] = q;
    }
    if (n > 1) qsort(s->order, (size_t)n, sizeof(struct seq *), compare);
    return n;
}

static void add_decodes(struct mu_sched *s, struct mu_step *step)
{
    int n_decoding = 0, n_prefill = s->n_waiting;
    for (int i = 0; i < s->opt.serving.n_slot; i++) {
        const struct seq *q = s->active[i];
        if (!q) continue;
        if (q->in_flight ? q->samples : is_decode(q))
            n_decoding++;
        else
            n_prefill++;
    }
    int quota = (n_decoding + s->opt.n_stage - 1) / s->opt.n_stage, budget = s->opt.serving.step_tokens;
    if (n_prefill && budget > 1) budget -= (budget + MIXED_SHARE - 1) / MIXED_SHARE; /* prefills move too */
    if (quota > budget) quota = budget;
    int n = idle_collect(s, true, by_last_step);
    for (int i = 0; i < n && quota > 0; i++) {
        struct seq *q = s->order[i];
        if (q->slot < 0) continue; /* preempted for one before it */
        if (!pages_grow(s, q, q->n_fed + 1, step)) continue;
        step_add(s, q, 1, step);
        quota--;
    }
}

static void add_prefills(struct mu_sched *s, struct mu_step *step, uint32_t *budget)
{
    int n = idle_collect(s, false, by_arrival);
    for (int i = 0; i < n && *budget; i++) {
        struct seq *q = s->order[i];
        if (q->slot < 0) continue;
        uint32_t n_tok = q->n_ids - q->n_fed < *budget ? q->n_ids - q->n_fed : *budget;
        /* pages were taken at admission, but for one more where it has grown and is computed again */
        if (!pages_grow(s, q, q->n_fed + n_tok, step)) continue;
        step_add(s, q, n_tok, step);
        *budget -= n_tok;
    }
}

static int free_slot_find(const struct mu_sched *s)
{
    for (int i = 0; i < s->opt.serving.n_slot; i++)
        if (!s->active[i]) return i;
    return -1;
}

static void add_admissions(struct mu_sched *s, struct mu_step *step, uint32_t *budget)
{
    while (s->waiting && *budget) {
        struct seq *q = s->waiting;
        int slot = free_slot_find(s);
        /* A page of growth for each that runs already: else the newcomer is preempted as soon as it has been
         * computed. */
        uint32_t need = pages_of(q->n_ids);
        if (slot < 0 || need + (uint32_t)s->n_active > s->n_free_page) return;
        s->waiting = q->next;
        s->n_waiting--;
        q->next = NULL;
        q->slot = slot;
        s->active[slot] = q;
        s->n_active++;
        for (uint32_t i = 0; i < need; i++) page_append(s, q, step);
        uint32_t n_tok = q->n_ids < *budget ? q->n_ids : *budget;
        step_add(s, q, n_tok, step);
        *budget -= n_tok;
    }
}

bool mu_sched_next(struct mu_sched *s, struct mu_step *step)
{
    if (s->n_flight == s->max_in_flight) return false;
    struct flight *f = &s->flight[(s->flight_head + s->n_flight) % s->max_in_flight];
    f->n_seq = 0;
    mu_step_clear(step);
    add_decodes(s, step);
    uint32_t budget = (uint32_t)s->opt.serving.step_tokens - step->n_tok;
    if (step->n_seq) {
        uint32_t share = ((uint32_t)s->opt.serving.step_tokens + MIXED_SHARE - 1) / MIXED_SHARE;
        if (budget > share) budget = share;
    }
    add_prefills(s, step, &budget);
    add_admissions(s, step, &budget);
    if (!step->n_seq) return false;
    step->n_free = s->n_slot_to_free;
    memcpy(step->free_slot, s->slot_to_free, s->n_slot_to_free * sizeof *step->free_slot);
    s->n_slot_to_free = 0;
    step->number = f->number = s->next_number++;
    s->n_flight++;
    return true;
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

int mu_sched_complete(struct mu_sched *s, uint64_t number, const int32_t *id, struct mu_sched_event *events_out)
{
    struct flight *f = &s->flight[s->flight_head];
    if (!s->n_flight || f->number != number) return -1;
    s->flight_head = (s->flight_head + 1) % s->max_in_flight;
    s->n_flight--;
    int n_event = 0;
    for (int i = 0; i < f->n_seq; i++) {
        struct seq *q = f->seq[i];
        struct mu_sched_event e = event_of(q);
        e.seq = (uint32_t)i;
        q->in_flight = false;
        if (q->cancelled) {
            e.finished = true;
            e.error = MU_ECANCELLED;
        } else if (q->samples) {
            e.finished = id_take(s, q, id[i], &e);
            if (is_far(s, q->n_ids) && !is_far(s, q->n_ids - 1)) q->n_fed = 0; /* into the pages that it has */
        }
        if (!q->silent && (e.finished || e.id >= 0)) events_out[n_event++] = e;
        if (e.finished) seq_end(s, q);
    }
    return n_event;
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
        .free_pages = s->n_free_page,
        .free_slots = (uint32_t)(s->opt.serving.n_slot - s->n_active),
        .steps = s->next_number - 1,
        .preemptions = s->n_preempted,
    };
}
