/* The next step. See scheduler.h for the rules.
 *
 * In flight are as many steps as there are stages, and one more that waits at the first stage, since the leader plans
 * only between its own shares of steps. Decodes are dealt out over the stages; a step whose prefill is much longer than
 * the next one's would leave stages idle, which is why every step's chunk is cut by the same rule and chunks of one prompt
 * follow each other without waiting (tests/worker/test_pipeline.c has the figures). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "worker/sched_parts.h"

enum {
    MIXED_SHARE =
        4, /* a step that also decodes prefills at most 1/MIXED_SHARE of the budget, while costs are not known */
    LEAST_CHUNK = 8, /* tokens, however slow they are: prompts must move */
    PATIENCE = 32,   /* steps without a chunk after which a prompt that is being read goes first, whosever turn it is */
    GRACE = 32,      /* scheduler.h */
};
/* Streams see a gap of so many usual ones between two tokens when prompts come: below 3, with room for noise; and more
 * where a crowd waits for its first tokens: CROWD_MIXED where FEW more wait than stream, at most MOST_MIXED, or what takes
 * CROWD_GAP_US where that is more: ten tokens a second are as fast as people read. */
static const double LEAST_MIXED = 2.5, CROWD_MIXED = 5, MOST_MIXED = 6, CROWD_GAP_US = 100e3, FEW = 4;

bool mu_sched_is_decode(const struct seq *q)
{
    return q->n_ids - q->n_fed == 1 && !q->n_flight;
}

static struct mu_kv_kind kind_of(const struct mu_sched *s, const struct seq *q)
{
    return (struct mu_kv_kind){.adapter = q->adapter,
                               .far = mu_sched_is_far(s, q->n_ids),
                               .adapter_scale = q->adapter ? q->adapter_scale : 0.0f};
}

/* How early it gives its pages back: the larger the earlier; of the same the younger. */
static enum mu_priority giving(const struct seq *q)
{
    return q->n_ids < q->spared ? MU_PRIORITY_INTERACTIVE : q->priority;
}

static bool gives_before(const struct seq *a, const struct seq *b)
{
    return giving(a) != giving(b) ? giving(a) > giving(b) : a->arrival > b->arrival;
}

static void preempt(struct mu_sched *s, struct seq *q)
{
    q->spared = q->n_ids + GRACE;
    mu_sched_slot_release(s, q);
    mu_sched_wait(s, q);
    s->n_preempted++;
}

/* Preempts the idle sequence that gives first, where it gives before q does; false: there is none. */
static bool take_from_others(struct mu_sched *s, const struct seq *q)
{
    struct seq *first = NULL;
    for (int i = 0; i < s->opt.serving.n_slot; i++) {
        struct seq *v = s->active[i];
        if (v && !v->n_flight && gives_before(v, q) && (!first || gives_before(v, first))) first = v;
    }
    if (first) preempt(s, first);
    return first != NULL;
}

/* Whether v gives way to q, which waits, now or when it is back: of a lower priority that is not behind with its share. */
static bool gives_way(const struct mu_sched *s, const struct seq *v, const struct seq *q)
{
    return v && giving(v) > q->priority && mu_fair_compare_priorities(&s->fair, q->priority, v->priority) < 0;
}

struct place {            /* for a newcomer */
    int slot;             /* -1: there is none */
    uint32_t n_prefix;    /* pages found in the cache */
    uint32_t lack;        /* pages that are wanting */
    uint32_t lack_window; /* window pages */
};

static bool place_is_room(const struct place *p)
{
    return p->slot >= 0 && !p->lack && !p->lack_window;
}

/* How many pages are nobody's once all have gone that give way to q. Those that it has found itself are none that it lacks. */
static uint32_t pages_given(struct mu_sched *s, const struct seq *q, const struct place *p)
{
    uint32_t n = 0;
    for (int i = 0; i < s->opt.serving.n_slot; i++) {
        const struct seq *v = s->active[i];
        if (!gives_way(s, v, q)) continue;
        for (uint32_t k = 0; k < v->n_page; k++) {
            uint32_t page = v->page[k];
            if (++s->given[page] < mu_kv_pool_holders(s->pool, page)) continue;
            n += k >= p->n_prefix || page != q->page[k];
        }
    }
    memset(s->given, 0, s->opt.serving.n_page * sizeof *s->given);
    return n;
}

/* Whether a newcomer that lacks a slot or pages would have them once all have gone that give way to it. */
static bool others_are_enough(struct mu_sched *s, const struct seq *q, const struct place *p)
{
    uint32_t n = 0, n_window = 0;
    for (int i = 0; i < s->opt.serving.n_slot; i++) {
        const struct seq *v = s->active[i];
        if (!gives_way(s, v, q)) continue;
        n++; /* the page of growth that is kept for it */
        n_window += mu_sched_window_share(s, v);
    }
    return n && n_window >= p->lack_window && (n >= p->lack || n + pages_given(s, q, p) >= p->lack);
}

/* Preempts the idle one of them that gives first; false: there is none. */
static bool take_for_newcomer(struct mu_sched *s, const struct seq *q)
{
    struct seq *first = NULL;
    for (int i = 0; i < s->opt.serving.n_slot; i++) {
        struct seq *v = s->active[i];
        if (gives_way(s, v, q) && !v->n_flight && (!first || gives_before(v, first))) first = v;
    }
    if (first) preempt(s, first);
    return first != NULL;
}

/* The ids of a sequence that others may share, if it has got so many: all, but where prompts are rough not what was
 * generated, since of another's prompt it would be rough. */
static uint32_t shared_end(const struct mu_sched *s, const struct seq *q, uint32_t n)
{
    return s->opt.serving.rough && n > q->n_prompt ? q->n_prompt : n;
}

/* How many cached pages stand for the sequence's first tokens, into q->page; *idle_out: those of them that nobody holds.
 * Its last token is computed whatever is cached, since it samples; a mean is a sum over all tokens, so of those none is
 * left out. */
static uint32_t prefix_find(const struct mu_sched *s, struct seq *q, uint32_t *idle_out)
{
    const struct mu_kv_kind kind = kind_of(s, q);
    uint32_t n = 0, most = s->opt.no_prefix_cache || q->embed.pooling == MU_POOL_MEAN
                               ? 0
                               : shared_end(s, q, q->n_ids - 1) / MU_PAGE_TOKENS;
    uint64_t parent = 0;
    *idle_out = 0;
    for (; n < most; n++) {
        uint32_t page = mu_kv_pool_find(s->pool, &kind, parent, q->ids + (size_t)n * MU_PAGE_TOKENS);
        if (page == MU_KV_NOTHING) break;
        parent = mu_kv_pool_identity(s->pool, page);
        q->page[n] = page;
    }
    n = mu_sched_window_find(s, q, &kind, n);
    for (uint32_t i = 0; i < n; i++) *idle_out += mu_kv_pool_holders(s->pool, q->page[i]) == 0;
    return n;
}

static void page_tell(struct seq *q, uint32_t page, struct mu_step *step)
{
    q->page[q->n_page++] = page;
    step->page[step->n_page++] = (struct mu_step_page){.slot = (uint32_t)q->slot, .page = page};
}

/* The first n of q->page are prefix_find's: it begins after them. */
static void prefix_use(struct mu_sched *s, struct seq *q, uint32_t n, struct mu_step *step)
{
    for (uint32_t i = 0; i < n; i++) {
        mu_kv_pool_retain(s->pool, q->page[i]);
        page_tell(q, q->page[i], step);
    }
    mu_sched_window_use(s, q, n, step);
    q->n_known = n;
    q->identity = n ? mu_kv_pool_identity(s->pool, q->page[n - 1]) : 0;
    q->n_fed = n * MU_PAGE_TOKENS;
    s->n_cached_tokens += q->n_fed;
    if (!q->counted) q->n_cached = q->n_fed < q->n_prompt ? q->n_fed : q->n_prompt;
    q->counted = true;
}

/* Pages for all its ids, or none; false: there are none, and nobody younger to take them from. */
static bool pages_grow(struct mu_sched *s, struct seq *q, struct mu_step *step)
{
    uint32_t need = mu_sched_pages_of(q->n_ids), n_prefix = q->n_page, idle = 0;
    if (q->n_page >= need) return true;                                        /* drafts may have taken one more */
    if (step->n_page + need - q->n_page > s->opt.serving.n_page) return false; /* a step has so many entries */
    for (;;) {
        if (q->n_page == 0) n_prefix = prefix_find(s, q, &idle); /* it begins again, in its slot */
        if (need + idle <= n_prefix + mu_kv_pool_available(s->pool)) break;
        if (!take_from_others(s, q)) return false;
    }
    if (q->n_page == 0) prefix_use(s, q, n_prefix, step);
    while (q->n_page < need) page_tell(q, mu_kv_pool_take(s->pool), step);
    return true;
}

static struct mu_step_seq *entry_add(const struct mu_sched *s, const struct seq *q, uint32_t pos, const int32_t *ids,
                                     uint32_t n_tok, enum mu_out_kind out, struct mu_step *step)
{
    struct mu_step_seq *to = &step->seq[step->n_seq++];
    *to = (struct mu_step_seq){
        .slot = (uint32_t)q->slot,
        .pos0 = pos,
        .n_tok = n_tok,
        .tok_off = step->n_tok,
        .out = (uint8_t)out,
        .far = mu_sched_is_far(s, q->n_ids),
        .rough = s->opt.serving.rough && pos < q->n_prompt,
        .sampling = q->sampling,
        .adapter = q->adapter,
        .adapter_scale = q->adapter_scale,
    };
    memcpy(step->ids + step->n_tok, ids, n_tok * sizeof *ids);
    step->n_tok += n_tok;
    return to;
}

/* What it needs beside its parameters to be sampled. */
static void entry_constrain(const struct mu_sched *s, struct seq *q, struct mu_step *step, struct mu_step_seq *to)
{
    mu_adjusts_put(q->adjusts, step, to);
    if (!s->opt.allow) return;
    uint8_t *mask = mu_step_mask(step, to);
    q->masked = s->opt.allow(s->opt.allow_ctx, q->request, q->ids + q->n_prompt, q->n_ids - q->n_prompt, mask);
    if (q->masked) return;
    to->mask = 0;
    step->n_mask--;
}

static void step_add(struct mu_sched *s, struct seq *q, uint32_t n_tok, struct mu_step *step)
{
    struct flight *f = &s->flight[(s->flight_head + s->n_flight) % s->max_in_flight];
    bool last = q->n_fed + n_tok == q->n_ids;
    enum mu_out_kind out = last ? MU_OUT_SAMPLE : MU_OUT_NONE;
    if (q->embed.pooling) out = mu_embed_out(q->embed.pooling, last);
    struct mu_step_seq *to = entry_add(s, q, q->n_fed, q->ids + q->n_fed, n_tok, out, step);
    if (out == MU_OUT_SAMPLE) entry_constrain(s, q, step, to);
    mu_sched_window_slide(s, q);
    q->n_fed += n_tok;
    mu_sched_window_take(s, q, q->n_fed, step);
    q->n_flight++;
    q->samples = last;
    q->last_step = s->next_number;
    mu_fair_charge(&s->fair, q->flow, n_tok);
    f->samples[f->n_seq] = last;
    f->n_draft[f->n_seq] = 0;
    f->seq[f->n_seq++] = q;
}

/* Guesses behind a decode, at most `most`, into pages that nobody misses; returns how many. That it has a mask may be known
 * only since that decode is in the step, when a draft model has guessed already. */
static uint32_t add_drafts(struct mu_sched *s, struct flight *f, struct seq *q, uint32_t n_stream, uint32_t most,
                           struct mu_step *step)
{
    uint32_t spare = mu_kv_pool_available(s->pool), n_active = (uint32_t)s->n_active;
    uint32_t room = q->n_page * MU_PAGE_TOKENS - q->n_ids; /* MAX_DRAFT ids need one page more at most */
    if (!mu_sched_guessable(s, q)) return 0;
    if (spare <= n_active && most > room) most = room;
    uint32_t n = mu_sched_model_drafts(s, q, most);
    if (!n) n = mu_sched_draft(s, q, n_stream, most);
    if (mu_sched_pages_of(q->n_ids + n) > q->n_page) page_tell(q, mu_kv_pool_take(s->pool), step);
    mu_sched_window_take(s, q, q->n_ids + n, step);
    for (uint32_t i = 0; i < n; i++) entry_add(s, q, q->n_ids + i, &q->draft[i], 1, MU_OUT_SAMPLE, step);
    f->n_draft[f->n_seq - 1] = (uint8_t)n;
    f->n_drafted += n;
    return n;
}

static int by_arrival(const struct seq *x, const struct seq *y)
{
    return x->arrival < y->arrival ? -1 : x->arrival > y->arrival;
}

static int by_last_step(const void *a, const void *b, void *sched)
{
    const struct seq *x = *(struct seq *const *)a, *y = *(struct seq *const *)b;
    (void)sched;
    if (x->last_step != y->last_step) return x->last_step < y->last_step ? -1 : 1;
    return by_arrival(x, y);
}

static int by_turn(const void *a, const void *b, void *sched)
{
    const struct seq *x = *(struct seq *const *)a, *y = *(struct seq *const *)b;
    int turn = mu_fair_compare(&((const struct mu_sched *)sched)->fair, x->flow, y->flow);
    return turn ? turn : by_arrival(x, y);
}

/* More of the prompt, beside chunks that are in flight as well. */
static bool is_prefill(const struct mu_sched *s, const struct seq *q)
{
    return q->n_fed < q->n_ids && !mu_sched_is_decode(q) && q->n_flight < s->opt.n_stage && !q->cancelled;
}

/* Sequences that want a decode (or a prefill) into s->order; returns how many. */
static int idle_collect(struct mu_sched *s, bool decode, int (*compare)(const void *, const void *, void *))
{
    int n = 0;
    for (int i = 0; i < s->opt.serving.n_slot; i++) {
        struct seq *q = s->active[i];
        if (q && (decode ? mu_sched_is_decode(q) : is_prefill(s, q))) s->order[n++] = q;
    }
    if (n > 1) qsort_r(s->order, (size_t)n, sizeof(struct seq *), compare, s);
    return n;
}

static uint32_t mixed_share(const struct mu_sched *s)
{
    return ((uint32_t)s->opt.serving.step_tokens + MIXED_SHARE - 1) / MIXED_SHARE;
}

/* It decodes, now or when it is back. */
static bool decodes(const struct seq *q)
{
    return q->n_flight ? q->samples : mu_sched_is_decode(q);
}

struct load mu_sched_load(const struct mu_sched *s)
{
    struct load now = {.n_prefill = s->n_waiting};
    for (int i = 0; i < s->opt.serving.n_slot; i++) {
        const struct seq *q = s->active[i];
        if (!q) continue;
        if (decodes(q))
            now.n_decoding++;
        else
            now.n_prefill++;
    }
    return now;
}

/* A fair part of the decodes for each stage; returns how many sequences are decoding, those in flight as well. */
static int add_decodes(struct mu_sched *s, struct flight *f, struct mu_step *step)
{
    const struct load now = mu_sched_load(s);
    int n_decoding = now.n_decoding, n_prefill = now.n_prefill;
    int n = idle_collect(s, true, by_last_step), n_free_stage = s->opt.n_stage;
    for (int i = 0; i < s->n_flight; i++)
        n_free_stage -= s->flight[(s->flight_head + i) % s->max_in_flight].n_decode > 0;
    /* Every stage has a step with decodes: one more would only stand behind them. Who is ready waits for the next that
     * come back and goes on with them, so that streams which began apart share a step. */
    if (n_free_stage <= 0) return n_decoding;
    /* One at least is left for each other stage that has no decodes yet. */
    int quota = (n_decoding + s->opt.n_stage - 1) / s->opt.n_stage, budget = s->opt.serving.step_tokens;
    if (quota > n - (n_free_stage - 1)) quota = n - (n_free_stage - 1) > 1 ? n - (n_free_stage - 1) : 1;
    if (n_prefill && budget > 1) budget -= (int)mixed_share(s); /* prefills move too */
    if (quota > budget) quota = budget;
    /* Drafts get what no sequence needs. */
    uint32_t n_slot = (uint32_t)s->opt.serving.n_slot, spare = n_slot - (uint32_t)s->n_active;
    if (spare > (uint32_t)(budget - quota)) spare = (uint32_t)(budget - quota);
    if (n_prefill) spare = 0;
    for (int i = 0; i < n && f->n_decode < quota; i++) {
        struct seq *q = s->order[i];
        if (q->slot < 0) continue; /* preempted for one before it */
        if (!pages_grow(s, q, step)) continue;
        step_add(s, q, 1, step);
        f->n_decode++;
        if (spare) spare -= add_drafts(s, f, q, (uint32_t)n_decoding, spare < MAX_DRAFT ? spare : MAX_DRAFT, step);
    }
    return n_decoding;
}

/* The tokens of all prompts that run or wait and are not read to their end. */
static uint64_t prefill_tokens(const struct mu_sched *s)
{
    uint64_t n = 0;
    for (int i = 0; i < s->opt.serving.n_slot; i++)
        if (s->active[i] && s->active[i]->n_fed < s->active[i]->n_ids) n += s->active[i]->n_ids;
    for (const struct seq *q = s->waiting; q; q = q->next) n += q->n_ids;
    return n;
}

/* How many times as long as with decodes alone a stream's gap may be: LEAST_MIXED, and where many wait for their first token
 * the longer the more there are for each who decodes. Were it LEAST_MIXED whoever waits, few streams would run fast beside a
 * queue that grows, in steps too small for what the machine could do: where prompts have r times the tokens of answers,
 * steps have to hold r prompt tokens a decode, which takes gaps of about r + 1. Who waits is who is being read, and who
 * could be, since there are slots. Only the most urgent streams are asked, and who is less urgent than they does not
 * count. */
static double mixed(const struct mu_sched *s, double gap_us)
{
    const double most = fmax(MOST_MIXED, CROWD_GAP_US / gap_us);
    uint32_t n_decoding[MU_PRIORITY_COUNT] = {0}, n_reading[MU_PRIORITY_COUNT] = {0}, n_wait = 0;
    uint32_t n_free = (uint32_t)(s->opt.serving.n_slot - s->n_active);
    for (int i = 0; i < s->opt.serving.n_slot; i++) {
        const struct seq *q = s->active[i];
        if (q) (decodes(q) ? n_decoding : n_reading)[q->priority]++;
    }
    int first = 0;
    while (first < MU_PRIORITY_COUNT - 1 && !n_decoding[first]) first++;
    for (int p = 0; p <= first; p++) n_wait += s->fair.n_waiting[p];
    if (n_wait > n_free) n_wait = n_free;
    for (int p = 0; p <= first; p++) n_wait += n_reading[p];
    return fmin(fmax(CROWD_MIXED * n_wait / (n_decoding[first] + FEW), LEAST_MIXED), most);
}

/* How many tokens the step may prefill. Streams wait for it: so many that their gaps are mixed() times as long as with
 * decodes alone, as far as that is known. And where every stage has a step already, one more without decodes would only stand between
 * a stream and its next token. Without streams, so many that every stage has its piece soon. */
static uint32_t prefill_budget(const struct mu_sched *s, const struct flight *f, const struct mu_step *step,
                               int n_decoding)
{
    uint32_t budget = (uint32_t)s->opt.serving.step_tokens - step->n_tok, share = mixed_share(s);
    double gap_us = mu_draft_costs_gap_of(&s->cost, n_decoding ? n_decoding : 1),
           token_us = s->cost.token_us * s->opt.n_stage;
    double fixed_tokens = token_us > 0 ? gap_us / token_us : 0;
    if (!n_decoding) return mu_plan_chunk(prefill_tokens(s), s->opt.n_stage, budget, fixed_tokens);
    if (!f->n_decode && s->n_flight >= s->opt.n_stage) return 0;
    if (s->cost.gap_us > 0 && s->cost.token_us > 0) { /* as many steps as stages lie between two tokens */
        double n = (mixed(s, gap_us) - 1) * fixed_tokens;
        share = n < LEAST_CHUNK ? LEAST_CHUNK : n < budget ? (uint32_t)n : budget;
    }
    return share < budget ? share : budget;
}

/* Ids that it lacks, at most `most`; a rough prompt's and others not together. */
static uint32_t chunk_of(const struct mu_sched *s, const struct seq *q, uint32_t most)
{
    uint32_t end = s->opt.serving.rough && q->n_fed < q->n_prompt ? q->n_prompt : q->n_ids;
    return end - q->n_fed < most ? end - q->n_fed : most;
}

static int free_slot_find(const struct mu_sched *s)
{
    for (int i = 0; i < s->opt.serving.n_slot; i++)
        if (!s->active[i]) return i;
    return -1;
}

static bool page_is_same(const struct seq *a, const struct seq *b, uint32_t page)
{
    size_t at = (size_t)page * MU_PAGE_TOKENS;
    return !memcmp(a->ids + at, b->ids + at, MU_PAGE_TOKENS * sizeof *a->ids);
}

/* q waits for what a is about to compute: up to where they differ, or one of them ends. */
static void wait_behind(const struct mu_sched *s, struct seq *q, const struct seq *a)
{
    uint32_t n = a->n_known + 1, mine = shared_end(s, q, q->n_ids - 1), theirs = shared_end(s, a, a->n_ids);
    while ((n + 1) * MU_PAGE_TOKENS <= (mine < theirs ? mine : theirs) && page_is_same(q, a, n)) n++;
    q->behind = (struct behind){.slot = a->slot, .arrival = a->arrival, .n_page = n};
}

/* It does still. Requests that begin alike may be a thousand: until the one that they wait for is there or gone, nothing is
 * looked up for them. */
static bool is_behind(const struct mu_sched *s, const struct seq *q)
{
    const struct seq *a = s->active[q->behind.slot];
    return a && a->arrival == q->behind.arrival && a->n_known < q->behind.n_page && !a->cancelled &&
           mu_sched_is_far(s, a->n_ids) == mu_sched_is_far(s, q->n_ids);
}

/* Whether a sequence that runs is about to compute the page that follows q's prefix: better to wait for it than to do
 * the same work beside it. Then it is behind that one. */
static bool is_coming(const struct mu_sched *s, struct seq *q, uint32_t n_prefix)
{
    const struct mu_kv_kind kind = kind_of(s, q);
    uint64_t parent = n_prefix ? mu_kv_pool_identity(s->pool, q->page[n_prefix - 1]) : 0;
    uint32_t end = (n_prefix + 1) * MU_PAGE_TOKENS;
    if (s->opt.no_prefix_cache || q->embed.pooling == MU_POOL_MEAN || shared_end(s, q, q->n_ids - 1) < end)
        return false;
    for (int i = 0; i < s->opt.serving.n_slot; i++) {
        const struct seq *a = s->active[i];
        if (!a || a->cancelled || a->priority > q->priority || a->n_known != n_prefix || a->identity != parent ||
            shared_end(s, a, a->n_ids) < end)
            continue;
        const struct mu_kv_kind theirs = kind_of(s, a);
        if (!mu_kv_kind_is(&theirs, &kind) || !page_is_same(a, q, n_prefix)) continue;
        wait_behind(s, q, a);
        return true;
    }
    return false;
}

static struct place place_find(const struct mu_sched *s, struct seq *q)
{
    uint32_t idle, n_prefix = prefix_find(s, q, &idle);
    /* A page of growth for each that runs already: else the newcomer is preempted as soon as it has been computed. */
    uint32_t want = mu_sched_pages_of(q->n_ids) - n_prefix + idle + (uint32_t)s->n_active;
    uint32_t have = mu_kv_pool_available(s->pool);
    return (struct place){.slot = free_slot_find(s),
                          .n_prefix = n_prefix,
                          .lack = want > have ? want - have : 0,
                          .lack_window = mu_sched_window_lack(s, q)};
}

/* Whose turn it was and for whom there was no room, of each priority one: n_tok, what its beginning weighs. What is more urgent
 * may go ahead of it until that has had as much: so much later it would be, had it been let in and computed. From then on
 * everybody waits until there is room for it. */
struct blocked {
    bool is[MU_PRIORITY_COUNT];
    uint32_t n_tok[MU_PRIORITY_COUNT];
    const struct seq *awaits; /* one that has room when those in flight that give way to it are back; NULL: nobody */
};

static void block(struct blocked *b, const struct seq *q, const struct place *p)
{
    b->is[q->priority] = true;
    b->n_tok[q->priority] = q->n_ids - p->n_prefix * MU_PAGE_TOKENS;
}

static bool may_go_ahead(const struct mu_sched *s, const struct seq *q, const struct blocked *b)
{
    for (int p = 0; p < MU_PRIORITY_COUNT; p++)
        if (b->is[p] && !mu_fair_goes_ahead(&s->fair, q->priority, (enum mu_priority)p, b->n_tok[p])) return false;
    return true;
}

/* Whose turn it is, of those that wait for nobody and may go ahead of who is blocked; NULL: nobody's. */
static struct seq *turn_find(const struct mu_sched *s, const struct blocked *b)
{
    struct seq *first = NULL;
    for (struct seq *q = s->waiting; q; q = q->next) { /* in order of arrival */
        if (is_behind(s, q) || !may_go_ahead(s, q, b)) continue;
        if (!first || mu_fair_compare(&s->fair, q->flow, first->flow) < 0) first = q;
    }
    return first;
}

/* Whose turn it is gets a slot and pages from those that give way to it, before they are in this step. Who is blocked now
 * stays so in this step, and for whom others made way, the returned one (NULL: nobody), is let in first, whosever turn it is
 * after the decodes: what was taken for one is for that one. */
static struct seq *make_way(struct mu_sched *s, struct blocked *b)
{
    bool made = false;
    for (struct seq *q; (q = turn_find(s, b));) {
        struct place p = place_find(s, q);
        if (is_coming(s, q, p.n_prefix)) continue;
        if (place_is_room(&p)) return made ? q : NULL;
        bool enough = others_are_enough(s, q, &p);
        if (enough && take_for_newcomer(s, q)) {
            made = true;
            continue;
        }
        if (enough && !b->awaits) b->awaits = q;
        block(b, q, &p);
    }
    return NULL;
}

static bool is_room(const struct mu_sched *s, const struct seq *q, const struct place *p, const struct mu_step *step)
{
    return place_is_room(p) && step->n_page + mu_sched_pages_of(q->n_ids) <= s->opt.serving.n_page; /* its entries */
}

static void admit(struct mu_sched *s, struct seq *q, const struct place *p, struct mu_step *step, uint32_t *budget)
{
    uint32_t need = mu_sched_pages_of(q->n_ids);
    mu_sched_unwait(s, q);
    q->slot = p->slot;
    s->active[p->slot] = q;
    s->n_active++;
    s->n_window_taken += mu_sched_window_share(s, q);
    prefix_use(s, q, p->n_prefix, step);
    while (q->n_page < need) page_tell(q, mu_kv_pool_take(s->pool), step);
    uint32_t n_tok = chunk_of(s, q, *budget);
    step_add(s, q, n_tok, step);
    *budget -= n_tok;
}

/* More of a prompt that runs; pages were taken at admission, but where it has grown and is computed again. */
static void prefill(struct mu_sched *s, struct seq *q, struct mu_step *step, uint32_t *budget)
{
    if (!pages_grow(s, q, step)) return;
    uint32_t n_tok = chunk_of(s, q, *budget);
    step_add(s, q, n_tok, step);
    *budget -= n_tok;
}

/* Lets it in, or has it wait behind one that runs, or blocks it. */
static void newcomer(struct mu_sched *s, struct seq *q, struct blocked *b, struct mu_step *step, uint32_t *budget)
{
    struct place p = place_find(s, q);
    if (is_coming(s, q, p.n_prefix)) return;
    if (is_room(s, q, &p, step))
        admit(s, q, &p, step, budget);
    else
        block(b, q, &p);
}

/* Not one that was preempted for another, or is in this step, or has to come back for one that waits for its pages. */
static bool may_go_on(const struct mu_sched *s, const struct seq *q, const struct blocked *b)
{
    return q->slot >= 0 && q->last_step != s->next_number && !(b->awaits && gives_way(s, q, b->awaits));
}

/* Its turn comes late where there is always somebody who has used less: keys without number, each with a little. Who was let
 * in holds a slot and pages, and is read to its end. */
static bool has_waited(const struct mu_sched *s, const struct seq *q)
{
    return s->next_number - q->last_step > PATIENCE;
}

static int by_claim(const void *a, const void *b, void *sched)
{
    const bool x = has_waited(sched, *(struct seq *const *)a), y = has_waited(sched, *(struct seq *const *)b);
    return x != y ? y - x : by_turn(a, b, sched);
}

/* Whether one that runs and has lost all of its pages (mu_sched_slot_empty) lacks them still: nobody is let in before it has
 * them, for they would be taken from it. */
static bool lacks_all(struct mu_sched *s, int n, struct mu_step *step)
{
    bool lacks = false;
    for (int i = 0; i < n; i++)
        if (s->order[i]->slot >= 0 && !s->order[i]->n_page && !pages_grow(s, s->order[i], step)) lacks = true;
    return lacks;
}

/* Chunks of prompts, of those that run and of newcomers, by whose turn it is: else a long one that is being read would take
 * all there is until its end, whoever comes meanwhile. First: make_way's. */
static void add_prompts(struct mu_sched *s, struct seq *first, struct blocked *b, struct mu_step *step,
                        uint32_t *budget)
{
    if (!*budget)
        return; /* nor may lacks_all take pages: a step without sequences is not sent, nor what it tells of pages */
    int n = idle_collect(s, false, by_claim), i = 0;
    const bool closed = lacks_all(s, n, step);
    while (*budget) {
        while (i < n && !may_go_on(s, s->order[i], b)) i++;
        struct seq *runs = i < n ? s->order[i] : NULL, *comes = closed ? NULL : first ? first : turn_find(s, b);
        if (comes && (first || !runs || (!has_waited(s, runs) && by_turn(&comes, &runs, s) < 0))) {
            first = NULL;
            newcomer(s, comes, b, step, budget);
        } else if (runs) {
            i++;
            prefill(s, runs, step, budget);
        } else {
            break;
        }
    }
}

/* Pages that this step fills may be found from the next one on. Nothing of it has run yet, and need not have: every rank
 * runs the steps in order and has written its layers of a page before a later step reads them there. Within one step
 * that is not so (a decode stores and attends item by item), which is why they are published when it is whole. */
static void pages_publish(struct mu_sched *s, const struct flight *f)
{
    for (int i = 0; i < f->n_seq && !s->opt.no_prefix_cache; i++) {
        struct seq *q = f->seq[i];
        const struct mu_kv_kind kind = kind_of(s, q);
        for (; (q->n_known + 1) * MU_PAGE_TOKENS <= shared_end(s, q, q->n_fed); q->n_known++) {
            q->identity = mu_kv_pool_publish(s->pool, q->page[q->n_known], &kind, q->identity,
                                             q->ids + (size_t)q->n_known * MU_PAGE_TOKENS);
            mu_sched_window_publish(s, q, &kind, q->n_known, q->identity);
        }
    }
}

bool mu_sched_next(struct mu_sched *s, struct mu_step *step)
{
    if (s->n_flight == s->max_in_flight) return false;
    struct flight *f = &s->flight[(s->flight_head + s->n_flight) % s->max_in_flight];
    f->n_seq = f->n_decode = 0;
    f->n_drafted = 0;
    struct blocked blocked = {0};
    mu_step_clear(step);
    struct seq *first = make_way(s, &blocked);
    int n_decoding = add_decodes(s, f, step);
    uint32_t budget = prefill_budget(s, f, step, n_decoding);
    add_prompts(s, first, &blocked, step, &budget);
    if (!step->n_seq) return false;
    pages_publish(s, f);
    for (int i = 0; i < s->opt.serving.n_slot; i++) {
        if (s->slot_dirty[i]) step->free_slot[step->n_free++] = (uint32_t)i;
        s->slot_dirty[i] = false;
    }
    f->n_prefill = step->n_tok - (uint32_t)f->n_decode - f->n_drafted;
    step->number = f->number = s->next_number++;
    s->n_flight++;
    return true;
}
