#include "sched_sim.h"

#include "base/alloc.h"

static uint64_t rng_state;

void rng_begin(uint64_t seed)
{
    rng_state = seed;
}

uint32_t rng(uint32_t n)
{
    rng_state += 0x9E3779B97F4A7C15u;
    uint64_t z = rng_state;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (uint32_t)((z ^ (z >> 31)) % n);
}

int32_t model_next(const int32_t *ids, size_t n)
{
    uint64_t h = 1469598103934665603u;
    if (ids[0] % 3 == 0 && n > 12 && n % 11) return ids[n - 5]; /* some repeat themselves, for a while */
    for (size_t i = 0; i < n; i++) h = (h ^ (uint64_t)(ids[i] + 1)) * 1099511628211u;
    return (int32_t)((h >> 20) % VOCAB);
}

/* What request i asks for, so that it can be looked up wherever its number is known. */
static struct mu_sampling sampling_of(int i)
{
    return (struct mu_sampling){.temperature = (float)(i % 4),
                                .repeat_penalty = i % 9 == 1 ? 1.5f : 0.0f,
                                .repeat_last_n = (uint32_t)(i % 2 ? i % 50 : 0),
                                .frequency_penalty = i % 9 == 2 ? 0.5f : 0.0f,
                                .min_tokens = (uint32_t)(i % 6),
                                .logprobs = i % 2,
                                .seed = (uint64_t)i};
}
static const struct mu_bias biases[] = {{90, 1.5f}, {5, -3}};
static size_t n_bias_of(int i)
{
    return i % 7 == 0 ? 2 : 0;
}

bool sim_allow(void *ctx, uint64_t request, const int32_t *emitted, size_t n, uint8_t *mask_out)
{
    (void)ctx;
    if (request % 5 == 0) return false;
    for (int i = 0; i < (VOCAB + 7) / 8; i++)
        mask_out[i] = (uint8_t)(request * 7 + n + (n ? (size_t)emitted[n - 1] : 0));
    return true;
}

/* The adjustments and the mask of a sequence that is sampled after ids[n], against a count over all of these. */
static void check_constraints(const struct sim *m, const struct mu_step *st, const struct mu_step_seq *q,
                              const int32_t *ids, uint32_t n)
{
    int i = (int)q->sampling.seed; /* the request's number */
    const struct request *r = &m->req[i];
    struct mu_sampling p = sampling_of(i);
    uint32_t at = q->adjust_off, window = p.repeat_last_n ? p.repeat_last_n : MAX_CTX;
    uint8_t mask[(VOCAB + 7) / 8];
    for (int32_t id = 0; id < VOCAB; id++) {
        uint32_t seen = 0, generated = 0;
        float bias = 0;
        for (uint32_t k = 0; k < n; k++) {
            seen += ids[k] == id && k + window >= n && p.repeat_penalty > 0;
            generated += ids[k] == id && k >= r->n_prompt && p.frequency_penalty > 0;
        }
        for (size_t k = 0; k < n_bias_of(i); k++)
            if (biases[k].id == id) bias = biases[k].bias;
        bool forbid = id == r->end_id && n - r->n_prompt < p.min_tokens;
        if (!seen && !generated && bias == 0 && !forbid) continue;
        assert_true(at < q->adjust_off + q->n_adjust);
        const struct mu_step_adjust *a = &st->adjust[at++];
        assert_true(a->id == id && a->bias == bias && a->n_generated == generated);
        assert_int_equal(a->flags, (seen ? MU_ADJUST_SEEN : 0) | (forbid ? MU_ADJUST_FORBID : 0));
    }
    assert_int_equal(at, q->adjust_off + q->n_adjust);
    bool masked = m->opt.allow && sim_allow(NULL, (uint64_t)i + 1000, ids + r->n_prompt, n - r->n_prompt, mask);
    assert_int_equal(q->mask != 0, masked);
    if (masked) assert_memory_equal(st->mask + (q->mask - 1) * st->mask_bytes, mask, sizeof mask);
}

uint16_t adapter_of(int i)
{
    return i % 3 ? 0 : (uint16_t)((uint32_t)i % (N_ADAPTER + 1));
}

static float scale_of(int i)
{
    return i % 2 ? 1.0f : 0.5f;
}

void request_submit(struct sim *m, int i)
{
    struct request *r = &m->req[i];
    struct mu_sched_request q = {
        .id = (uint64_t)i + 1000,
        .prompt = r->ids,
        .n_prompt = r->n_prompt,
        .emitted = r->ids + r->n_prompt,
        .n_emitted = r->n_emitted,
        .max_tokens = r->max_tokens,
        .sampling = sampling_of(i),
        .bias = biases,
        .n_bias = n_bias_of(i),
        .end_ids = &r->end_id,
        .n_end = r->end_id >= 0,
        .adapter = adapter_of(i),
        .adapter_scale = scale_of(i),
        .priority = r->priority,
        .key = r->key,
    };
    bool finished;
    struct mu_err err = MU_ERR_INIT;
    if (mu_sched_submit(m->s, &q, &finished, &err) != MU_OK) fail_msg("submit: %s", err.text);
    assert_false(finished);
    r->submitted = true;
}

static bool in_a_slot(const struct sim *m, int request)
{
    for (int i = 0; i < m->opt.serving.n_slot; i++)
        if (m->s->active[i] && m->s->active[i]->request == (uint64_t)request + 1000) return true;
    return false;
}

/* Whether somebody who runs begins like it, so that it may wait for what that one computes. */
static bool may_wait(const struct sim *m, int request)
{
    for (int i = 0; i < m->opt.serving.n_slot; i++) {
        const struct seq *a = m->s->active[i];
        if (a && a->n_ids >= MU_PAGE_TOKENS && !memcmp(a->ids, m->req[request].ids, MU_PAGE_TOKENS * sizeof *a->ids))
            return true;
    }
    return false;
}

/* Requests of a key are let in strictly by age, those that were preempted as well. */
static void check_admission_order(const struct sim *m, int request)
{
    for (int i = 0; i < request; i++)
        if (m->req[i].priority == m->req[request].priority && m->req[i].key == m->req[request].key &&
            m->req[i].submitted && !m->req[i].done && !m->req[i].cancel_asked && !in_a_slot(m, i) && !may_wait(m, i))
            fail_msg("request %d was let in before %d", request, i);
}

/* What the pages of a slot hold, up to its length, as a later step may read it. */
static void slot_read(const struct sim *m, const struct mu_step *st, const struct mu_step_seq *q, int32_t *ids)
{
    const struct slot *s = &m->slot[q->slot];
    for (uint32_t pos = 0; pos < q->pos0 + q->n_tok; pos++) {
        const struct cell *c = &m->cell[s->page[pos / MU_PAGE_TOKENS]][pos % MU_PAGE_TOKENS];
        assert_int_equal(c->pos, pos);
        assert_int_equal(c->far, q->far);
        assert_int_equal(c->rough, m->opt.serving.rough && pos < m->req[s->request].n_prompt);
        assert_int_equal(c->adapter, q->adapter);
        if (q->adapter) assert_true(c->scale == q->adapter_scale);
        assert_true(c->step < st->number || c->slot == q->slot); /* of this step only its own */
        ids[pos] = c->id;
    }
    if (!m->s->window) return;
    for (uint32_t pos = 0; pos < q->pos0 + q->n_tok; pos++) { /* what its first token sees, and what is written */
        const struct cell *c = &m->cell[s->page[pos / MU_PAGE_TOKENS]][pos % MU_PAGE_TOKENS];
        if (pos + (uint32_t)m->opt.serving.window <= q->pos0) continue;
        assert_true(s->window[pos / MU_PAGE_TOKENS] != NO_PAGE);
        const struct cell *w = &m->window_cell[s->window[pos / MU_PAGE_TOKENS]][pos % MU_PAGE_TOKENS];
        assert_true(w->id == c->id && w->pos == pos && w->far == q->far && w->adapter == q->adapter);
        if (q->adapter) assert_true(w->scale == q->adapter_scale);
        assert_true(w->step < st->number || w->slot == q->slot);
    }
}

static void slot_write(struct sim *m, const struct mu_step *st, const struct mu_step_seq *q, int32_t id)
{
    struct slot *s = &m->slot[q->slot];
    uint32_t page = s->page[s->n / MU_PAGE_TOKENS], n_holder = 0;
    for (int i = 0; i < m->opt.serving.n_slot; i++)
        for (uint32_t p = 0; p < m->slot[i].n_page; p++) n_holder += m->slot[i].page[p] == page;
    assert_int_equal(n_holder, 1); /* nobody else reads there */
    const struct cell c = {id, s->n, q->far, q->rough, q->adapter, q->adapter_scale, st->number, q->slot};
    m->cell[page][s->n % MU_PAGE_TOKENS] = c;
    if (m->s->window) {
        assert_true(s->window[s->n / MU_PAGE_TOKENS] != NO_PAGE);
        m->window_cell[s->window[s->n / MU_PAGE_TOKENS]][s->n % MU_PAGE_TOKENS] = c;
    }
    s->n++;
}

/* A rank's part: applies the step as strictly as a rank would, and computes the ids. */
static void rank_apply(struct sim *m, const struct mu_step *st, int32_t *sampled)
{
    assert_true(st->number == m->expect_number++);
    assert_true(st->n_seq > 0 && st->n_tok <= (uint32_t)m->opt.serving.step_tokens);
    assert_true(st->n_page <= m->opt.serving.n_page);
    for (uint32_t i = 0; i < st->n_free; i++) {
        struct slot *s = &m->slot[st->free_slot[i]];
        assert_true(s->n_page > 0);
        m->n_outgrown += m->opt.n_ctx_short && s->n == (uint32_t)m->opt.n_ctx_short;
        s->n = s->n_sure = s->n_page = 0;
        memset(s->window, 0xff, sizeof s->window);
    }
    for (uint32_t i = 0; i < st->n_page; i++) {
        assert_true(st->page[i].page < m->opt.serving.n_page);
        struct slot *s = &m->slot[st->page[i].slot];
        s->page[s->n_page++] = st->page[i].page;
    }
    assert_true(st->n_window <= mu_step_max_window(&m->opt.serving));
    for (uint32_t i = 0; i < st->n_window; i++) {
        const struct mu_step_window *w = &st->window[i];
        assert_true(w->page < m->s->n_window && w->at <= ((uint32_t)m->opt.serving.n_ctx - 1) / MU_PAGE_TOKENS);
        m->slot[w->slot].window[w->at] = w->page;
    }
    uint32_t off = 0, seen = 0;
    for (uint32_t i = 0; i < st->n_seq; i++) {
        const struct mu_step_seq *q = &st->seq[i];
        struct slot *s = &m->slot[q->slot];
        bool draft = i > 0 && st->seq[i - 1].slot == q->slot;
        assert_true(q->slot < (uint32_t)m->opt.serving.n_slot && (draft || !(seen & 1u << q->slot)));
        seen |= 1u << q->slot;
        if (draft) assert_true(q->n_tok == 1 && q->out == MU_OUT_SAMPLE && st->seq[i - 1].n_tok == 1);
        if (!draft && q->pos0 < s->n) { /* drafts were wrong */
            assert_true(q->pos0 >= s->n_sure);
            s->n = q->pos0;
        }
        m->n_draft += draft;
        if (s->n == 0) { /* the seed is the request's number */
            s->request = (int)q->sampling.seed;
            if (!q->far) check_admission_order(m, s->request); /* else it may have had its slot all the time */
            m->n_shared += q->pos0 > 0;
            assert_true(q->pos0 % MU_PAGE_TOKENS == 0);
            s->n = q->pos0;
        }
        assert_int_equal(s->request, q->sampling.seed);
        assert_int_equal(q->pos0, s->n);
        assert_int_equal(q->tok_off, off);
        assert_true(q->n_tok > 0 && q->pos0 + q->n_tok <= (uint32_t)m->opt.serving.n_ctx);
        assert_true(q->pos0 + q->n_tok <= s->n_page * MU_PAGE_TOKENS);
        assert_true(q->adapter == adapter_of((int)q->sampling.seed) &&
                    q->adapter_scale == scale_of((int)q->sampling.seed));
        for (uint32_t t = 0; t < q->n_tok; t++) slot_write(m, st, q, st->ids[off + t]);
        off += q->n_tok;
        if (!draft) s->n_sure = s->n;
        m->req[s->request].n_computed += q->n_tok;
        if (q->out == MU_OUT_SAMPLE) /* also where a draft may make it longer */
            assert_int_equal(q->far, m->opt.n_ctx_short && s->n > (uint32_t)m->opt.n_ctx_short);
    }
    for (uint32_t i = 0; i < st->n_seq; i++) {
        int32_t ids[MAX_CTX];
        const struct mu_step_seq *q = &st->seq[i];
        uint32_t n = q->pos0 + q->n_tok;
        slot_read(m, st, q, ids);
        sampled[i] = q->out == MU_OUT_SAMPLE ? model_next(ids, n) : -1;
        assert_true(q->sampling.temperature == sampling_of((int)q->sampling.seed).temperature);
        if (q->out == MU_OUT_SAMPLE) check_constraints(m, st, q, ids, n);
    }
    assert_int_equal(off, st->n_tok);
    m->n_tok += off;
}

/* The same of window pages; a sequence has no more of them than its share. What nobody has and nobody can find holds
 * something else from now on. */
static void check_window_pages(struct sim *m)
{
    uint32_t n_holder[MAX_PAGES] = {0}, n_share = 0;
    for (int i = 0; i < m->opt.serving.n_slot; i++) {
        const struct seq *q = m->s->active[i];
        if (!q) continue;
        n_share += mu_sched_window_share(m->s, q);
        assert_true(q->window_end - q->window_begin <= mu_sched_window_share(m->s, q));
        for (uint32_t p = q->window_begin; p < q->window_end; p++) n_holder[q->window[p]]++;
        m->n_gone += q->window_begin;
    }
    assert_int_equal(n_share, m->s->n_window_taken);
    assert_true(n_share <= m->s->n_window);
    for (uint32_t p = 0; p < m->s->n_window; p++) {
        assert_int_equal(mu_kv_pool_holders(m->s->window, p), n_holder[p]);
        if (!n_holder[p] && !mu_kv_pool_identity(m->s->window, p))
            memset(m->window_cell[p], 0xff, sizeof m->window_cell[p]);
    }
    assert_true(mu_kv_pool_sound(m->s->window));
}

/* Every page has as many holders as there are tables that name it. */
static void check_pages(struct sim *m)
{
    if (m->s->window) check_window_pages(m);
    uint32_t n_holder[MAX_PAGES] = {0};
    for (int i = 0; i < m->opt.serving.n_slot; i++)
        for (uint32_t p = 0; m->s->active[i] && p < m->s->active[i]->n_page; p++) n_holder[m->s->active[i]->page[p]]++;
    for (uint32_t p = 0; p < m->opt.serving.n_page; p++)
        assert_int_equal(mu_kv_pool_holders(m->s->pool, p), n_holder[p]);
    assert_true(mu_kv_pool_sound(m->s->pool));
}

/* A draft model that is right, wrong, short of words, far behind, or out of its mind. */
static void sim_draft(struct sim *m)
{
    struct mu_draft_ask ask[MAX_SLOTS];
    uint32_t read_most;
    int n = mu_sched_ask_drafts(m->s, ask, &read_most);
    assert_true(n <= m->opt.n_draft_seat && read_most > 0);
    for (int i = 0; i < n; i++) {
        struct mu_draft_ask *a = &ask[i];
        const struct request *r = &m->req[a->sequence - 1000];
        assert_true(a->n_ids == r->n_prompt + r->n_got && a->most > 0 && a->most <= MU_MAX_DRAFT);
        assert_true(a->n_ids + a->most < (uint32_t)m->opt.serving.n_ctx && a->n_ids < (uint32_t)m->opt.n_draft_ctx);
        assert_memory_equal(a->ids, r->ids, a->n_ids * sizeof *a->ids);
        assert_int_equal(a->sampling.seed, a->sequence - 1000);
        if (rng(8) == 0) {
            a->n_behind = 1 + rng(a->n_ids);
            continue;
        }
        for (a->n_draft = 0; a->n_draft < a->most && rng(9); a->n_draft++) {
            uint32_t at = a->n_ids + a->n_draft;
            bool right = at < r->n_total && rng(5);
            a->draft[a->n_draft] = right ? r->ids[at] : (int32_t)rng(VOCAB + 2) - 1;
        }
    }
    struct mu_draft_took took = {rng(5000), rng(3) ? 0 : rng(300), rng(5000), rng(3) ? 1 + rng(7) : 0};
    if (n) mu_sched_answer_drafts(m->s, ask, n, &took);
    assert_int_equal(n ? mu_sched_ask_drafts(m->s, ask, &read_most) : 0, 0); /* once for each id */
}

bool sim_next(struct sim *m)
{
    struct mu_step *st = m->step[(m->head + m->n) % MAX_FLIGHT];
    if (m->opt.n_draft_seat) sim_draft(m);
    if (!mu_sched_next(m->s, st)) return false;
    check_pages(m);
    for (int k = 0; k < m->n; k++) { /* a sequence is in several steps in flight only with chunks that sample nothing */
        const struct mu_step *other = m->step[(m->head + k) % MAX_FLIGHT];
        for (uint32_t a = 0; a < other->n_seq; a++)
            for (uint32_t b = 0; b < st->n_seq; b++)
                if (other->seq[a].slot == st->seq[b].slot) {
                    assert_int_equal(other->seq[a].out, MU_OUT_NONE);
                    m->n_overlap++;
                }
    }
    rank_apply(m, st, m->sampled[(m->head + m->n) % MAX_FLIGHT]);
    m->n++;
    assert_true(m->n <= mu_sched_max_in_flight(m->s));
    return true;
}

void event_take(struct sim *m, const struct mu_sched_event *e)
{
    struct request *r = &m->req[e->request - 1000];
    assert_true(r->submitted && !r->done);
    if (e->error == MU_ECANCELLED) {
        assert_true(r->cancel_asked && e->finished && e->id == -1);
        assert_int_equal(e->position, r->n_got);
        r->done = r->cancelled = true;
        m->n_done++;
        return;
    }
    assert_int_equal(e->error, MU_OK);
    assert_int_equal(e->position, r->n_got);
    assert_true(r->n_prompt + r->n_got < r->n_total);
    assert_int_equal(e->id, r->ids[r->n_prompt + r->n_got]);
    r->n_got++;
    r->n_cached = e->n_cached;
    assert_int_equal(e->finished, r->n_prompt + r->n_got == r->n_total);
    assert_int_equal(e->logprobs, (e->request - 1000) % 2);
    r->done = e->finished;
    m->n_done += e->finished;
}

void sim_complete(struct sim *m)
{
    int n = mu_sched_complete(m->s, m->step[m->head]->number, m->sampled[m->head], m->events);
    assert_true(n >= 0);
    check_pages(m);
    for (int i = 0; i < n; i++) { /* an id is that of the step's sequence which it names, the request's own */
        const struct mu_sched_event *e = &m->events[i];
        if (e->id < 0) continue;
        assert_true(e->seq < m->step[m->head]->n_seq);
        assert_int_equal(m->step[m->head]->seq[e->seq].sampling.seed, e->request - 1000);
        assert_int_equal(m->sampled[m->head][e->seq], e->id);
    }
    m->head = (m->head + 1) % MAX_FLIGHT;
    m->n--;
    for (int i = 0; i < n; i++) event_take(m, &m->events[i]);
}

void sim_open_window(struct sim *m, int n_stage, int n_slot, uint32_t n_page, int n_ctx, int step_tokens, int window)
{
    struct mu_err err = MU_ERR_INIT;
    memset(m, 0, sizeof *m);
    m->opt = (struct mu_sched_options){.serving = {.n_ctx = n_ctx,
                                                   .n_slot = n_slot,
                                                   .n_page = n_page,
                                                   .step_tokens = step_tokens,
                                                   .n_adapter = N_ADAPTER,
                                                   .window = window},
                                       .n_stage = n_stage,
                                       .n_vocab = VOCAB,
                                       .max_waiting = MAX_REQUESTS};
    assert_int_equal(mu_sched_create(&m->opt, &m->s, &err), MU_OK);
    for (int i = 0; i < MAX_FLIGHT; i++)
        assert_int_equal(mu_step_create(&m->opt.serving, VOCAB, &m->step[i], &err), MU_OK);
    m->req = calloc(MAX_REQUESTS, sizeof *m->req);
    m->expect_number = 1;
    for (int i = 0; i < MAX_SLOTS; i++) memset(m->slot[i].window, 0xff, sizeof m->slot[i].window);
}

void sim_open(struct sim *m, int n_stage, int n_slot, uint32_t n_page, int n_ctx, int step_tokens)
{
    sim_open_window(m, n_stage, n_slot, n_page, n_ctx, step_tokens, 0);
}

void sim_close(struct sim *m)
{
    struct mu_sched_counts c;
    mu_sched_count(m->s, &c);
    assert_int_equal(c.active, 0);
    assert_int_equal(c.waiting, 0);
    assert_int_equal(c.free_pages, m->opt.serving.n_page);
    assert_int_equal(c.free_slots, m->opt.serving.n_slot);
    if (m->s->window) assert_int_equal(mu_kv_pool_available(m->s->window), m->s->n_window);
    for (int i = 0; i < MAX_FLIGHT; i++) mu_free(m->step[i]);
    mu_sched_destroy(m->s);
    free(m->req);
}

void request_of(struct sim *m, int i, enum mu_priority priority, uint64_t key, uint32_t salt, uint32_t n_prompt,
                uint32_t max_tokens)
{
    struct request *r = &m->req[i];
    memset(r, 0, sizeof *r);
    r->priority = priority;
    r->key = key;
    r->end_id = -1;
    r->n_prompt = r->n_total = n_prompt;
    r->max_tokens = max_tokens;
    for (uint32_t k = 0; k < n_prompt; k++) r->ids[k] = (int32_t)((k * 31 + salt) % VOCAB);
    for (; r->n_total < n_prompt + max_tokens; r->n_total++) r->ids[r->n_total] = model_next(r->ids, r->n_total);
    request_submit(m, i);
}

void request_salted(struct sim *m, int i, uint32_t salt, uint32_t n_prompt, uint32_t max_tokens)
{
    request_of(m, i, MU_PRIORITY_INTERACTIVE, 0, salt, n_prompt, max_tokens);
}

void request_plain(struct sim *m, int i, uint32_t n_prompt, uint32_t max_tokens)
{
    request_salted(m, i, (uint32_t)i, n_prompt, max_tokens);
}

void run_dry(struct sim *m)
{
    while (sim_next(m) || m->n)
        if (m->n) sim_complete(m);
}

void forget(struct sim *m)
{
    for (int i = 0; i < MAX_REQUESTS; i++) {
        struct mu_sched_event e;
        if (!m->req[i].submitted || m->req[i].done) continue;
        m->req[i].cancel_asked = true;
        if (mu_sched_cancel(m->s, (uint64_t)i + 1000, &e) == MU_OK) event_take(m, &e);
    }
    while (m->n) sim_complete(m);
}

enum mu_status try_submit(struct mu_sched *s, struct mu_sched_request q, bool *finished, struct mu_err *err)
{
    *finished = false;
    return mu_sched_submit(s, &q, finished, err);
}
