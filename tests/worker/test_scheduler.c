/* The scheduler against a simulated gang: ranks that believe nothing (positions must follow on, pages must be there, and
 * written by one sequence alone), and a "model" whose next id is a hash of all ids that it reads in the sequence's
 * pages, so that any mistake in sharing, preemption, resumption or ordering changes what comes out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "worker/sched_parts.h"

enum { VOCAB = 97, MAX_REQUESTS = 1200, MAX_CTX = 400, MAX_SLOTS = 12, MAX_PAGES = 64, MAX_FLIGHT = 8, N_ADAPTER = 3 };

static uint64_t rng_state;
static uint32_t rng(uint32_t n) /* [0, n) */
{
    rng_state += 0x9E3779B97F4A7C15u;
    uint64_t z = rng_state;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (uint32_t)((z ^ (z >> 31)) % n);
}

static int32_t model_next(const int32_t *ids, size_t n)
{
    uint64_t h = 1469598103934665603u;
    if (ids[0] % 3 == 0 && n > 12 && n % 11) return ids[n - 5]; /* some repeat themselves, for a while */
    for (size_t i = 0; i < n; i++) h = (h ^ (uint64_t)(ids[i] + 1)) * 1099511628211u;
    return (int32_t)((h >> 20) % VOCAB);
}

struct request {
    int32_t ids[MAX_CTX];                  /* prompt, then what must come */
    uint32_t n_prompt, n_emitted, n_total; /* n_total: where it ends; n_emitted: told at submission */
    uint32_t max_tokens;
    int32_t end_id; /* -1: none */
    uint32_t n_got; /* emitted ids known */
    uint32_t n_cached;
    enum mu_priority priority;
    uint64_t key;
    uint64_t n_computed; /* tokens */
    bool submitted, done, cancelled, cancel_asked;
};

enum { NO_PAGE = UINT32_MAX };

struct slot { /* what a rank holds */
    uint32_t n, page[MAX_PAGES], n_page;
    uint32_t n_sure;            /* without drafts */
    uint32_t window[MAX_PAGES]; /* by place; NO_PAGE: none */
    int request;                /* whose ids they are; meaningful while n > 0 */
};

struct cell { /* of a page */
    int32_t id;
    uint32_t pos;
    uint8_t far; /* how it was computed */
    uint16_t adapter;
    float scale;
    uint64_t step;
    uint32_t slot; /* that wrote it */
};

struct sim {
    struct mu_sched_options opt;
    struct mu_sched *s;
    struct mu_step *step[MAX_FLIGHT];
    int32_t sampled[MAX_FLIGHT][MAX_SLOTS];
    int head, n;
    struct slot slot[MAX_SLOTS];
    struct cell cell[MAX_PAGES][MU_PAGE_TOKENS];
    struct cell window_cell[MAX_PAGES][MU_PAGE_TOKENS]; /* of layers with a window, where they have their own pages */
    struct request *req;
    int n_req, n_done;
    uint64_t expect_number, n_tok, n_overlap, n_draft, n_outgrown, n_shared,
        n_gone; /* n_shared: times that a sequence began after page 0; n_gone: window pages out of sight */
    struct mu_sched_event events[MAX_SLOTS];
};

static void request_make(struct sim *m, struct request *r)
{
    uint32_t ctx = (uint32_t)m->opt.serving.n_ctx, pages = m->opt.serving.n_page;
    uint32_t cap = ctx < pages * MU_PAGE_TOKENS ? ctx : pages * MU_PAGE_TOKENS;
    memset(r, 0, sizeof *r);
    r->n_prompt = 1 + rng(rng(2) ? cap / 4 + 1 : cap - 1);
    if (r->n_prompt >= cap) r->n_prompt = cap - 1;
    r->max_tokens = 1 + rng(rng(2) ? 20 : cap);
    if (r->n_prompt + r->max_tokens > cap && r->max_tokens > 1 && cap < ctx) r->max_tokens = cap - r->n_prompt;
    if (r->max_tokens < 1) r->max_tokens = 1;
    r->end_id = rng(4) == 0 ? (int32_t)rng(VOCAB) : -1;
    /* Most begin like others, some all the way: chats, system prompts, several choices of one prompt. */
    uint32_t family = rng(6), same = family == 0 ? 0 : rng(3) ? r->n_prompt : rng(r->n_prompt);
    for (uint32_t i = 0; i < r->n_prompt; i++)
        r->ids[i] = i < same ? family == 1 ? 5 : (int32_t)((i * i + 7 * family + i / 5) % VOCAB) : (int32_t)rng(VOCAB);
    r->n_total = r->n_prompt;
    while (r->n_total < ctx && r->n_total - r->n_prompt < r->max_tokens) {
        r->ids[r->n_total] = model_next(r->ids, r->n_total);
        if (r->ids[r->n_total++] == r->end_id) break;
    }
    if (rng(3) == 0) r->n_emitted = rng(r->n_total - r->n_prompt); /* resumed: never all of it */
    r->n_got = r->n_emitted;
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

/* Bits from what the hook is asked with; none for some requests. */
static bool allow(void *ctx, uint64_t request, const int32_t *emitted, size_t n, uint8_t *mask_out)
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
    bool masked = m->opt.allow && allow(NULL, (uint64_t)i + 1000, ids + r->n_prompt, n - r->n_prompt, mask);
    assert_int_equal(q->mask != 0, masked);
    if (masked) assert_memory_equal(st->mask + (q->mask - 1) * st->mask_bytes, mask, sizeof mask);
}

static uint16_t adapter_of(int i)
{
    return i % 3 ? 0 : (uint16_t)((uint32_t)i % (N_ADAPTER + 1));
}

static float scale_of(int i)
{
    return i % 2 ? 1.0f : 0.5f;
}

static void request_submit(struct sim *m, int i)
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
    const struct cell c = {id, s->n, q->far, q->adapter, q->adapter_scale, st->number, q->slot};
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

static bool sim_next(struct sim *m)
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

static void event_take(struct sim *m, const struct mu_sched_event *e)
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

static void sim_complete(struct sim *m)
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

static void sim_cancel(struct sim *m, int i)
{
    struct request *r = &m->req[i];
    struct mu_sched_event e;
    if (r->cancel_asked) return;
    r->cancel_asked = true;
    enum mu_status st = mu_sched_cancel(m->s, (uint64_t)i + 1000, &e);
    if (r->done)
        assert_int_equal(st, MU_ENOENT);
    else if (st == MU_OK)
        event_take(m, &e);
    else
        assert_int_equal(st, MU_EAGAIN);
}

static int sim_window; /* of the next sim_open */

static void sim_open(struct sim *m, int n_stage, int n_slot, uint32_t n_page, int n_ctx, int step_tokens)
{
    struct mu_err err = MU_ERR_INIT;
    memset(m, 0, sizeof *m);
    m->opt = (struct mu_sched_options){.serving = {.n_ctx = n_ctx,
                                                   .n_slot = n_slot,
                                                   .n_page = n_page,
                                                   .step_tokens = step_tokens,
                                                   .n_adapter = N_ADAPTER,
                                                   .window = sim_window},
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

static void sim_close(struct sim *m)
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

static uint64_t n_outgrown, n_shared, n_overlap, n_drafted, n_taken, n_model_drafted, n_model_taken, n_cached_tokens,
    n_gone;

static uint64_t simulate(uint64_t seed, int n_req)
{
    struct sim m;
    struct mu_sched_counts c;
    rng_state = seed;
    int n_ctx = 40 + (int)rng(300);
    sim_open(&m, 1 + (int)rng(4), 1 + (int)rng(MAX_SLOTS), 2 + rng(rng(2) ? 8 : 60), n_ctx, 2 + (int)rng(90));
    /* A model with two sets of rotation factors; constrained requests; without sharing; a draft model. */
    if (seed % 2 || seed % 5 == 0 || seed % 3 == 1) {
        mu_sched_destroy(m.s);
        if (seed % 2) m.opt.n_ctx_short = 1 + (int)rng((uint32_t)n_ctx);
        if (seed % 4 == 1) m.opt.allow = allow;
        m.opt.no_prefix_cache = seed % 5 == 0;
        m.opt.n_draft_seat = seed % 3 ? (int)(seed % 7) : 0;
        m.opt.n_draft_ctx = 1 + (int)rng((uint32_t)n_ctx);
        struct mu_err err = MU_ERR_INIT;
        assert_int_equal(mu_sched_create(&m.opt, &m.s, &err), MU_OK);
    }
    int submitted = 0;
    m.n_req = n_req;
    for (long turn = 0; m.n_done < n_req; turn++) {
        if (turn > 2000000) fail_msg("seed %llu: %d of %d requests ended", (unsigned long long)seed, m.n_done, n_req);
        if (submitted < n_req && rng(3) == 0) {
            request_make(&m, &m.req[submitted]);
            if (seed % 4) m.req[submitted].priority = (enum mu_priority)rng(MU_PRIORITY_COUNT);
            if (seed % 4) m.req[submitted].key = rng(4);
            request_submit(&m, submitted++);
        }
        if (submitted && rng(40) == 0) sim_cancel(&m, (int)rng((uint32_t)submitted));
        if (rng(2)) sim_next(&m);
        if (m.n && rng(2)) {
            if (seed % 3) mu_sched_took(m.s, 1 + rng(seed % 3 == 1 ? 1000000 : 20)); /* whatever a clock may say */
            sim_complete(&m);
        }
        if (submitted == n_req && !m.n && !sim_next(&m) && m.n_done < n_req)
            fail_msg("seed %llu: stuck with %d of %d requests ended", (unsigned long long)seed, m.n_done, n_req);
    }
    while (m.n) sim_complete(&m);
    mu_sched_count(m.s, &c);
    for (int i = 0; i < n_req; i++)
        if (!m.req[i].cancelled) assert_int_equal(m.req[i].n_prompt + m.req[i].n_got, m.req[i].n_total);
    n_outgrown += m.n_outgrown;
    n_shared += m.n_shared;
    n_gone += m.n_gone;
    n_overlap += m.n_overlap;
    n_drafted += m.n_draft;
    n_taken += c.drafts_taken;
    n_model_drafted += c.model_drafted;
    n_model_taken += c.model_taken;
    assert_true(c.model_drafted <= c.drafted && c.model_taken <= c.drafts_taken);
    assert_true(m.opt.n_draft_seat || !c.model_drafted);
    assert_int_equal(c.drafted <= m.n_draft && (!m.opt.no_speculation || !m.n_draft), true);
    n_cached_tokens += c.cached_tokens;
    if (m.opt.no_prefix_cache) assert_int_equal(m.n_shared + c.cached_tokens + c.cached_pages, 0);
    sim_close(&m);
    return c.preemptions;
}

static void test_a_thousand_random_requests(void **state)
{
    (void)state;
    uint64_t preemptions = 0;
    for (uint64_t seed = 1; seed <= 200; seed++) preemptions += simulate(seed, 100);
    preemptions += simulate(77, 1000);
    print_message("%llu preemptions\n", (unsigned long long)preemptions);
    assert_true(preemptions > 100); /* else the pools were not tiny */
    print_message("%llu sequences outgrew the short context\n", (unsigned long long)n_outgrown);
    assert_true(n_outgrown > 100);
    print_message("%llu sequences began with %llu tokens of others\n", (unsigned long long)n_shared,
                  (unsigned long long)n_cached_tokens);
    print_message("%llu chunks followed one that was in flight\n", (unsigned long long)n_overlap);
    assert_true(n_overlap > 500);
    print_message("%llu drafts, %llu of them right\n", (unsigned long long)n_drafted, (unsigned long long)n_taken);
    assert_true(n_taken > 300 && n_drafted > n_taken + 100);
    print_message("%llu drafts of a model, %llu of them right\n", (unsigned long long)n_model_drafted,
                  (unsigned long long)n_model_taken);
    assert_true(n_model_taken > 100 && n_model_drafted > n_model_taken + 50);
    assert_true(n_shared > 500 && n_cached_tokens > n_shared * MU_PAGE_TOKENS);
}

/* The same with layers that have a window, from one token on. */
static void test_windows(void **state)
{
    (void)state;
    uint64_t preemptions = 0;
    n_outgrown = n_shared = n_overlap = n_drafted = n_taken = n_cached_tokens = 0;
    for (uint64_t seed = 1; seed <= 160; seed++) {
        sim_window = seed % 3 ? 1 + (int)(seed * 7 % 90) : 1 + (int)(seed % 4);
        preemptions += simulate(seed + 1000, 50);
    }
    for (sim_window = 1; sim_window < 100; sim_window += 33) preemptions += simulate((uint64_t)sim_window, 300);
    sim_window = 0;
    print_message("%llu preemptions, %llu drafts, %llu of them right, %llu outgrew the short context\n",
                  (unsigned long long)preemptions, (unsigned long long)n_drafted, (unsigned long long)n_taken,
                  (unsigned long long)n_outgrown);
    print_message("%llu sequences began with %llu tokens of others\n", (unsigned long long)n_shared,
                  (unsigned long long)n_cached_tokens);
    assert_true(preemptions > 100 && n_taken > 50 && n_outgrown > 100 && n_overlap > 500 && n_gone > 10000);
    assert_true(n_shared > 200 && n_cached_tokens > n_shared * MU_PAGE_TOKENS);
}

/* A request that is known in every detail: n_prompt ids that begin as salt says, then max_tokens. */
static void request_of(struct sim *m, int i, enum mu_priority priority, uint64_t key, uint32_t salt, uint32_t n_prompt,
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

static void request_salted(struct sim *m, int i, uint32_t salt, uint32_t n_prompt, uint32_t max_tokens)
{
    request_of(m, i, MU_PRIORITY_INTERACTIVE, 0, salt, n_prompt, max_tokens);
}

static void request_plain(struct sim *m, int i, uint32_t n_prompt, uint32_t max_tokens)
{
    request_salted(m, i, (uint32_t)i, n_prompt, max_tokens);
}

static void run_dry(struct sim *m)
{
    while (sim_next(m) || m->n)
        if (m->n) sim_complete(m);
}

static void forget(struct sim *m)
{
    mu_sched_forget_all(m->s);
    while (m->n) {
        assert_int_equal(mu_sched_complete(m->s, m->step[m->head]->number, m->sampled[m->head], m->events), 0);
        m->head = (m->head + 1) % MAX_FLIGHT;
        m->n--;
    }
}

/* New short requests never stop coming; one that needs every page must still get through. */
static void test_nobody_starves(void **state)
{
    (void)state;
    struct sim m;
    sim_open(&m, 2, 4, 6, 192, 32);
    int last = 0, big = 8;
    long steps = 0;
    for (; last < MAX_REQUESTS && !m.req[big].done; steps++) {
        struct mu_sched_counts c;
        mu_sched_count(m.s, &c);
        while (last < MAX_REQUESTS && c.waiting < 8) {
            request_plain(&m, last, last == big ? 150 : 40, last == big ? 42 : 10);
            last++;
            mu_sched_count(m.s, &c);
        }
        while (sim_next(&m)) {}
        sim_complete(&m);
    }
    assert_true(m.req[big].done);
    assert_true(last < 60); /* it did not have to wait for hundreds that came later */
    forget(&m);
    sim_close(&m);
}

enum { N_FLOW = 6 };

/* Everybody always has more to do: what each priority and key gets computed is its share, though their requests differ in
 * length and in number. */
static void shares(int n_stage, int n_slot, uint32_t n_page)
{
    static const struct {
        enum mu_priority priority;
        uint64_t key;
        uint32_t n_prompt, max_tokens;
        int n_waiting; /* at any time */
    } flow[N_FLOW] = {{MU_PRIORITY_INTERACTIVE, 1, 20, 10, 10}, {MU_PRIORITY_INTERACTIVE, 2, 90, 30, 12},
                      {MU_PRIORITY_NORMAL, 1, 60, 20, 10},      {MU_PRIORITY_NORMAL, 2, 10, 40, 10},
                      {MU_PRIORITY_BATCH, 1, 40, 30, 20},       {MU_PRIORITY_BATCH, 3, 40, 30, 8}};
    struct sim m;
    uint64_t got[N_FLOW] = {0}, all = 0;
    sim_open(&m, n_stage, n_slot, n_page, 200, 32);
    int last = 0, n_there[N_FLOW] = {0}, of[MAX_REQUESTS];
    while (last < MAX_REQUESTS - 80) {
        for (int i = 0; i < N_FLOW; i++)
            for (; n_there[i] < flow[i].n_waiting; n_there[i]++) {
                of[last] = i;
                request_of(&m, last, flow[i].priority, flow[i].key, (uint32_t)last * 7, flow[i].n_prompt,
                           flow[i].max_tokens);
                last++;
            }
        while (sim_next(&m)) {}
        sim_complete(&m);
        memset(n_there, 0, sizeof n_there);
        for (int i = 0; i < last; i++) n_there[of[i]] += !m.req[i].done;
    }
    for (int i = 0; i < last; i++) got[of[i]] += m.req[i].n_computed;
    for (int i = 0; i < N_FLOW; i++) all += got[i];
    for (int i = 0; i < N_FLOW; i++) {
        double want = (double[]){16, 4, 1}[flow[i].priority] / 42, share = (double)got[i] / (double)all;
        print_message("%d stages, %d slots, %u pages: priority %d key %d has %.3f of the tokens, due %.3f\n", n_stage,
                      n_slot, n_page, (int)flow[i].priority, (int)flow[i].key, share, want);
        if (!(share > 0.75 * want && share < 1.25 * want + 0.01)) fail_msg("out of bounds");
    }
    forget(&m);
    sim_close(&m);
}

static void test_shares(void **state)
{
    (void)state;
    shares(1, 8, 60);
    shares(2, 6, 60);
    shares(1, 6, 12);
}

/* Slots and pages are full of batch: what is urgent is in the very next step all the same; those that made room go on. */
static void test_an_urgent_one_does_not_wait(void **state)
{
    (void)state;
    struct sim m;
    sim_open(&m, 1, 4, 12, 200, 64);
    for (int i = 0; i < 6; i++) request_of(&m, i, MU_PRIORITY_BATCH, 0, (uint32_t)i, 40, 50);
    for (int i = 0; i < 6; i++) {
        assert_true(sim_next(&m));
        sim_complete(&m);
    }
    request_of(&m, 6, MU_PRIORITY_NORMAL, 0, 6, 40, 3);
    request_of(&m, 7, MU_PRIORITY_INTERACTIVE, 0, 7, 12, 3);
    assert_true(sim_next(&m));
    const struct mu_step *st = m.step[m.head];
    bool seen = false;
    for (uint32_t i = 0; i < st->n_seq; i++) seen |= st->seq[i].sampling.seed == 7;
    assert_true(seen);
    assert_true(m.s->n_preempted > 0);
    run_dry(&m);
    assert_int_equal(m.n_done, 8);
    sim_close(&m);
}

/* Urgent requests never stop coming and need all there is; one batch request gets through in bounded time. */
static void test_batch_does_not_starve(void **state)
{
    (void)state;
    struct sim m;
    for (uint32_t n_page = 6; n_page <= 24; n_page += 18) {
        sim_open(&m, 2, 4, n_page, 192, 32);
        int last = 1;
        request_of(&m, 0, MU_PRIORITY_BATCH, 0, 0, 100, 60);
        while (last < MAX_REQUESTS && !m.req[0].done) {
            struct mu_sched_counts c;
            for (mu_sched_count(m.s, &c); last < MAX_REQUESTS && c.waiting < 8; mu_sched_count(m.s, &c), last++)
                request_of(&m, last, MU_PRIORITY_INTERACTIVE, (uint64_t)last % 3, (uint32_t)last, 40, 10);
            while (sim_next(&m)) {}
            sim_complete(&m);
        }
        print_message("%u pages: done after %d urgent ones of 50 tokens, its due is %d\n", n_page, last, 160 * 16 / 50);
        assert_true(m.req[0].done);
        assert_true(last < 3 * 160 * 16 / 50);
        forget(&m);
        sim_close(&m);
    }
}

static enum mu_status try_submit(struct mu_sched *s, struct mu_sched_request q, bool *finished, struct mu_err *err)
{
    *finished = false;
    return mu_sched_submit(s, &q, finished, err);
}

static void test_what_never_fits_is_refused_by_name(void **state)
{
    (void)state;
    struct mu_sched_options opt = {.serving = {.n_ctx = 64, .n_slot = 2, .n_page = 1, .step_tokens = 16},
                                   .n_stage = 1,
                                   .n_vocab = VOCAB,
                                   .max_waiting = 3};
    struct mu_sched *s;
    struct mu_err err = MU_ERR_INIT;
    static int32_t ids[128];
    bool finished;
    assert_int_equal(mu_sched_create(&opt, &s, &err), MU_OK);
    struct mu_sched_request q = {.id = 1, .prompt = ids, .n_prompt = 64, .max_tokens = 1};
    assert_int_equal(try_submit(s, q, &finished, &err), MU_ELIMIT);
    assert_non_null(strstr(err.text, "the prompt has 64 tokens"));
    q.n_prompt = 20;
    q.max_tokens = 14; /* 33 fed tokens: two pages, there is one */
    assert_int_equal(try_submit(s, q, &finished, &err), MU_ELIMIT);
    assert_non_null(strstr(err.text, "KV pages"));
    q.max_tokens = 13;
    assert_int_equal(try_submit(s, q, &finished, &err), MU_OK);
    assert_int_equal(try_submit(s, q, &finished, &err), MU_EINVAL);
    assert_non_null(strstr(err.text, "running already"));
    q.id = 2;
    ids[3] = VOCAB;
    assert_int_equal(try_submit(s, q, &finished, &err), MU_EINVAL);
    ids[3] = 0;
    q.n_prompt = 0;
    assert_int_equal(try_submit(s, q, &finished, &err), MU_EINVAL);
    q.n_prompt = 3;
    q.sampling.top_p = 1.5f;
    assert_int_equal(try_submit(s, q, &finished, &err), MU_EINVAL);
    q.sampling.top_p = 0;
    q.sampling.temperature = -1;
    assert_int_equal(try_submit(s, q, &finished, &err), MU_EINVAL);
    assert_non_null(strstr(err.text, "temperature"));
    q.sampling.temperature = 0;
    const struct mu_bias twice[] = {{5, 1}, {VOCAB, 1}};
    q.bias = twice;
    q.n_bias = 2;
    assert_int_equal(try_submit(s, q, &finished, &err), MU_EINVAL);
    assert_non_null(strstr(err.text, "logit_bias: token 97"));
    q.n_bias = 0;
    q.adapter = 1;
    assert_int_equal(try_submit(s, q, &finished, &err), MU_EINVAL);
    assert_non_null(strstr(err.text, "adapter 1"));
    q.adapter = 0;
    q.max_tokens = 0;
    assert_int_equal(try_submit(s, q, &finished, &err), MU_OK);
    assert_true(finished);
    int32_t end = 5, emitted[] = {4, 5};
    q.max_tokens = 9;
    q.emitted = emitted;
    q.n_emitted = 2;
    q.end_ids = &end;
    q.n_end = 1;
    assert_int_equal(try_submit(s, q, &finished, &err), MU_OK); /* its last id had ended it */
    assert_true(finished);
    q.n_end = q.n_emitted = 0;
    for (q.id = 10; q.id < 12; q.id++) assert_int_equal(try_submit(s, q, &finished, &err), MU_OK);
    assert_int_equal(try_submit(s, q, &finished, &err), MU_ELIMIT);
    assert_non_null(strstr(err.text, "wait already"));
    mu_sched_destroy(s);
}

/* More decodes than a step has tokens: a newcomer's prompt gets its share all the same. */
static void test_decodes_do_not_starve_a_prefill(void **state)
{
    (void)state;
    struct sim m;
    sim_open(&m, 1, 8, 60, 200, 4);
    for (int i = 0; i < 6; i++) request_plain(&m, i, 1, 150);
    for (int i = 0; i < 30; i++) {
        assert_true(sim_next(&m));
        sim_complete(&m);
    }
    request_plain(&m, 6, 10, 5);
    for (int i = 0; i < 40 && !m.req[6].done; i++) {
        assert_true(sim_next(&m));
        sim_complete(&m);
    }
    assert_true(m.req[6].done);
    while (m.n || sim_next(&m)) sim_complete(&m);
    assert_int_equal(m.n_done, 7);
    sim_close(&m);
}

/* Two stages: decodes are dealt out so that both have a step; prefill goes on beside decodes at a share of the
 * budget. */
static void test_steps_overlap(void **state)
{
    (void)state;
    struct sim m;
    sim_open(&m, 2, 8, 40, 128, 64);
    for (int i = 0; i < 8; i++) request_plain(&m, i, 8, 20);
    assert_true(sim_next(&m)); /* all eight prompts fill the budget */
    assert_int_equal(m.step[m.head]->n_seq, 8);
    assert_false(sim_next(&m));
    sim_complete(&m);
    assert_true(sim_next(&m));
    assert_true(sim_next(&m));
    assert_false(sim_next(&m)); /* every sequence is in flight */
    for (int k = 0; k < 2; k++) assert_int_equal(m.step[(m.head + k) % MAX_FLIGHT]->n_seq, 4);
    for (int i = 0; i < 18; i++) { /* the first four run out: their slots are for the newcomer */
        sim_complete(&m);
        sim_next(&m);
    }
    request_plain(&m, 8, 100, 1);
    while (m.n_done < 4) {
        sim_complete(&m);
        while (sim_next(&m))
            if (m.step[(m.head + m.n - 1) % MAX_FLIGHT]->n_seq > 1)
                assert_true(m.step[(m.head + m.n - 1) % MAX_FLIGHT]->n_tok <= 4 + 16);
    }
    while (m.n || sim_next(&m)) sim_complete(&m);
    assert_int_equal(m.n_done, 9);
    sim_close(&m);
}

/* Eight choices of one prompt that come at once, with the same adapter and without: it is computed once for each kind,
 * but for the last page. A prompt of whole cached pages computes its last one, which samples. */
static void test_choices_share_their_prompt(void **state)
{
    (void)state;
    struct sim m;
    for (int n_stage = 1; n_stage <= 2; n_stage++) {
        sim_open(&m, n_stage, 8, 40, 200, 64);
        for (int i = 0; i < 8; i++) request_salted(&m, i, 0, 100, 2);
        run_dry(&m);
        assert_int_equal(m.n_done, 8);
        int n_kind = 0;
        for (int i = 0; i < 8; i++) n_kind += i == 0 || adapter_of(i);
        assert_int_equal(m.n_tok, n_kind * 100 + (8 - n_kind) * (100 - 96) + 8);
        m.n_tok = 0;
        request_salted(&m, 10, 0, 96, 1); /* its adapter is request 1's: none */
        run_dry(&m);
        assert_int_equal(m.n_tok, 32);
        assert_int_equal(m.req[10].n_cached, 64);
        sim_close(&m);
    }
}

/* A conversation goes on: its turns find what was computed of the ones before, answers too. */
static void test_turns_find_the_ones_before(void **state)
{
    (void)state;
    struct sim m;
    sim_open(&m, 1, 2, 12, 360, 64);
    request_salted(&m, 1, 3, 70, 100);
    run_dry(&m);
    struct request *r = &m.req[2];
    *r = m.req[1];
    r->n_prompt = 180; /* what was said, and ten ids more */
    for (uint32_t k = 170; k < 180; k++) r->ids[k] = 7;
    r->n_got = 0;
    r->done = false;
    r->max_tokens = 3;
    for (r->n_total = 180; r->n_total < 183; r->n_total++) r->ids[r->n_total] = model_next(r->ids, r->n_total);
    m.n_tok = 0;
    request_submit(&m, 2);
    run_dry(&m);
    assert_int_equal(r->n_cached, 160); /* of 169 that were fed, whole pages */
    assert_int_equal(m.n_tok, 180 - 160 + 2);
    request_plain(&m, 4, 340, 10); /* needs eleven of the twelve pages: what was cached is forgotten */
    run_dry(&m);
    m.n_tok = 0;
    r->n_got = 0;
    r->done = false;
    request_submit(&m, 2);
    run_dry(&m);
    assert_int_equal(r->n_cached, 32); /* but for its first page, which is forgotten last */
    assert_int_equal(m.n_done, 4);
    sim_close(&m);
}

static void test_a_bad_sample_ends_its_request_only(void **state)
{
    (void)state;
    struct sim m;
    sim_open(&m, 1, 4, 8, 64, 32);
    for (int i = 0; i < 2; i++) request_plain(&m, i, 4, 5);
    assert_true(sim_next(&m));
    int32_t ids[2] = {m.sampled[m.head][0], -2};
    assert_int_equal(mu_sched_complete(m.s, m.step[m.head]->number + 1, ids, m.events), -1);
    assert_int_equal(mu_sched_complete(m.s, m.step[m.head]->number, ids, m.events), 2);
    m.n = 0;
    m.head = (m.head + 1) % MAX_FLIGHT;
    event_take(&m, &m.events[0]);
    assert_true(m.events[1].finished && m.events[1].id == -1);
    assert_int_equal(m.events[1].error, MU_ENONFINITE);
    while (m.n || sim_next(&m)) sim_complete(&m);
    assert_true(m.req[0].done && !m.req[1].done);
    sim_close(&m);
}

/* Texts to be embedded: the whole context is theirs; chunks ask for states; the last one ends them with their slot. */
static void test_texts(void **state)
{
    (void)state;
    struct mu_sched_options opt = {.serving = {.n_ctx = 70, .n_slot = 2, .n_page = 3, .step_tokens = 16},
                                   .n_stage = 1,
                                   .n_vocab = VOCAB,
                                   .max_waiting = 3};
    struct mu_sched *s;
    struct mu_step *step;
    struct mu_err err = MU_ERR_INIT;
    struct mu_sched_event events[2];
    static int32_t ids[128];
    const struct mu_embed mean = {.pooling = MU_POOL_MEAN, .dimensions = 5},
                          last = {.pooling = MU_POOL_LAST, .raw = true};
    bool finished;
    assert_int_equal(mu_sched_create(&opt, &s, &err), MU_OK);
    assert_int_equal(mu_step_create(&opt.serving, VOCAB, &step, &err), MU_OK);
    struct mu_sched_request q = {.id = 1, .prompt = ids, .n_prompt = 71, .embed = mean};
    assert_int_equal(try_submit(s, q, &finished, &err), MU_ELIMIT);
    assert_non_null(strstr(err.text, "71 tokens"));
    q.n_prompt = 3;
    q.emitted = ids;
    q.n_emitted = 1;
    assert_int_equal(try_submit(s, q, &finished, &err), MU_EINVAL);
    q.n_emitted = 0;
    q.n_prompt = 70;
    assert_int_equal(try_submit(s, q, &finished, &err), MU_OK);
    assert_false(finished);
    q.id = 2;
    q.n_prompt = 3;
    q.embed = last;
    assert_int_equal(try_submit(s, q, &finished, &err), MU_OK);
    int32_t none[2] = {-1, -1};
    int n;
    for (uint32_t at = 0; at < 70; at += 16) {
        assert_true(mu_sched_next(s, step));
        assert_int_equal(step->n_seq, 1); /* the pages are all the first one's */
        assert_int_equal(step->seq[0].pos0, at);
        assert_int_equal(step->seq[0].out, MU_OUT_STATE_SUM);
        n = mu_sched_complete(s, step->number, none, events);
        assert_int_equal(n, at + 16 >= 70);
    }
    assert_true(events[0].finished && events[0].request == 1 && events[0].id == -1 && events[0].n_tok == 70);
    assert_int_equal(events[0].error, MU_OK);
    assert_int_equal(events[0].slot, step->seq[0].slot);
    assert_true(events[0].embed.pooling == MU_POOL_MEAN && events[0].embed.dimensions == 5);
    assert_true(mu_sched_next(s, step));
    assert_int_equal(step->seq[0].out, MU_OUT_STATE);
    none[0] = -2;
    assert_int_equal(mu_sched_complete(s, step->number, none, events), 1);
    assert_true(events[0].finished && events[0].error == MU_ENONFINITE && events[0].embed.raw);
    /* What is cached of a text spares the last token's state some work; a mean is a sum over all tokens. */
    for (int i = 0; i < 2; i++) {
        q.id = 3 + (uint64_t)i;
        q.n_prompt = 70;
        q.embed = i ? mean : last;
        assert_int_equal(try_submit(s, q, &finished, &err), MU_OK);
        for (uint32_t at = i ? 0 : 64; at < 70; at += 16) {
            assert_true(mu_sched_next(s, step));
            assert_int_equal(step->seq[0].pos0, at);
            n = mu_sched_complete(s, step->number, (int32_t[]){-1}, events);
        }
        assert_int_equal(n, 1);
        assert_int_equal(events[0].n_cached, i ? 0 : 64);
    }
    mu_sched_destroy(s);
    opt.serving.n_page = 2;
    assert_int_equal(mu_sched_create(&opt, &s, &err), MU_OK);
    q.n_prompt = 65; /* all of it is fed: three pages, there are two */
    assert_int_equal(try_submit(s, q, &finished, &err), MU_ELIMIT);
    assert_non_null(strstr(err.text, "KV pages"));
    mu_sched_destroy(s);
    mu_free(step);
}

/* Where biases and masks leave nothing, the request ends with that error. */
static void test_no_id_allowed(void **state)
{
    (void)state;
    struct sim m;
    sim_open(&m, 1, 2, 8, 100, 64);
    request_plain(&m, 0, 5, 3);
    assert_true(sim_next(&m));
    m.sampled[m.head][0] = -3;
    assert_int_equal(mu_sched_complete(m.s, m.step[m.head]->number, m.sampled[m.head], m.events), 1);
    m.n = 0;
    assert_true(m.events[0].finished && m.events[0].id == -1);
    assert_int_equal(m.events[0].error, MU_EINVAL);
    assert_false(sim_next(&m));
    sim_close(&m);
}

static void test_every_allocation_can_fail(void **state)
{
    (void)state;
    struct mu_sched_options opt = {.serving = {.n_ctx = 256, .n_slot = 2, .n_page = 16, .step_tokens = 16, .window = 5},
                                   .n_stage = 2,
                                   .n_vocab = VOCAB,
                                   .max_waiting = 3};
    assert_true(mu_plan_window_pages(&opt.serving) > 0);
    int32_t ids[4] = {1, 2, 3, 4};
    struct mu_sched_request q = {
        .id = 1, .prompt = ids, .n_prompt = 4, .max_tokens = 3, .sampling = {.repeat_penalty = 2}};
    for (long n = 1;; n++) {
        struct mu_sched *s = NULL;
        struct mu_err err = MU_ERR_INIT;
        bool finished;
        mu_alloc_fail_at(n);
        enum mu_status st = mu_sched_create(&opt, &s, &err);
        if (st == MU_OK) st = mu_sched_submit(s, &q, &finished, &err);
        mu_alloc_fail_at(0);
        mu_sched_destroy(s);
        if (st == MU_OK) {
            assert_true(n > 5);
            break;
        }
        assert_int_equal(st, MU_ENOMEM);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_thousand_random_requests),
        cmocka_unit_test(test_windows),
        cmocka_unit_test(test_nobody_starves),
        cmocka_unit_test(test_shares),
        cmocka_unit_test(test_an_urgent_one_does_not_wait),
        cmocka_unit_test(test_batch_does_not_starve),
        cmocka_unit_test(test_what_never_fits_is_refused_by_name),
        cmocka_unit_test(test_decodes_do_not_starve_a_prefill),
        cmocka_unit_test(test_steps_overlap),
        cmocka_unit_test(test_no_id_allowed),
        cmocka_unit_test(test_choices_share_their_prompt),
        cmocka_unit_test(test_turns_find_the_ones_before),
        cmocka_unit_test(test_a_bad_sample_ends_its_request_only),
        cmocka_unit_test(test_texts),
        cmocka_unit_test(test_every_allocation_can_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
