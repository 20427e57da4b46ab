/* Guesses of a draft model: whom it is asked for.
 *
 *   ids known ──► mu_sched_ask_drafts ──► the draft model ──► mu_sched_answer_drafts ──► the next step has them as drafts
 *
 * For how many, and when a sequence is left alone, is draft_pace.c's. Guesses that are found in the text go first where
 * they promise as much, being free.
 *
 * A newcomer begins with what sequences have come to lately (hope), so that a model which is never right is soon hardly
 * asked, and need not read their prompts. Each that was not asked lifts it a little: now and then one is, for the model
 * may be right about the next text.
 *
 * With more streams than the model has seats nobody is asked for: there steps are bound by arithmetic, and a guess costs
 * what an id does. */
#include <math.h>

#include "worker/sched_parts.h"

enum { READ_FIRST = 32 };
/* What is measured is not exact. Where other steps are under way meanwhile, steps of different lengths leave stages idle as
 * well, which nothing here counts. */
static const double LEAST_GAIN = 1.04, LEAST_GAIN_STAGES = 1.08;
/* While the model reads, streams see gaps so much longer than usual, as beside prompts. */
static const double READ_SHARE = 1.5;

/* Its next ids may be asked for now. */
static bool is_open(const struct mu_sched *s, const struct seq *q)
{
    return q && mu_sched_is_decode(q) && !q->cancelled && mu_sched_guessable(s, q) && q->model.at != q->n_ids &&
           q->n_ids >= q->model.pace.quiet && q->n_ids < (uint32_t)s->opt.n_draft_ctx;
}

/* How many guesses at its next ids are worth asking for; 0: none. */
static uint32_t wanted(struct mu_sched *s, struct seq *q, uint32_t n_stream, uint32_t n_together, uint32_t most)
{
    struct by_model *m = &q->model;
    const struct mu_draft_costs *c = &s->cost;
    const struct mu_draft_place at = {.n_ids = q->n_ids,
                                      .n_new = q->n_ids - q->n_prompt,
                                      .n_left = q->n_limit - q->n_ids,
                                      .n_stream = n_stream,
                                      .least_gain = s->opt.n_stage > 1 && n_stream > 1 ? LEAST_GAIN_STAGES : LEAST_GAIN,
                                      .n_together = n_together};
    most = mu_sched_draft_room(s, q, most);
    if (!most) return 0;
    double rate;
    uint32_t n = mu_draft_pace_wanted(&m->pace, c, &at, s->hope, most, &rate);
    if (!n) {
        if (!(m->pace.right > 0)) s->hope += (MU_DRAFT_HOPE - s->hope) / 64;
        if (q->n_ids < m->pace.quiet) mu_draft_costs_refused(&s->cost);
        return 0;
    }
    uint32_t found = mu_sched_draft(s, q, n_stream, most);
    double drafts = (double)n_together * found,
           free_rate = (n_stream + drafts * q->hits) / (c->gap_us + drafts * mu_draft_us(c));
    return found && free_rate >= rate ? 0 : n;
}

int mu_sched_ask_drafts(struct mu_sched *s, struct mu_draft_ask *ask_out, uint32_t *read_out)
{
    const struct mu_draft_costs *c = &s->cost;
    struct load now = mu_sched_load(s);
    uint32_t n_stream = (uint32_t)now.n_decoding, place = (uint32_t)(s->opt.serving.n_slot - s->n_active);
    uint32_t n_together = 0;
    int n = 0;
    *read_out = READ_FIRST;
    if (c->read_us > 0) *read_out = (uint32_t)fmin(fmax(READ_SHARE * c->gap_us / c->read_us, 1), 1e6);
    if (now.n_prefill || now.n_decoding < 1 || now.n_decoding > s->opt.n_draft_seat) return 0;
    if (s->n_flight == s->max_in_flight || !(c->gap_us > 0 && c->token_us > 0) || mu_draft_costs_look(c)) return 0;
    place = (place + n_stream - 1) / n_stream;
    for (int i = 0; i < s->opt.serving.n_slot; i++) n_together += is_open(s, s->active[i]);
    for (int i = 0; n_together && i < s->opt.serving.n_slot && n < s->opt.n_draft_seat; i++) {
        struct seq *q = s->active[i];
        if (!is_open(s, q)) continue;
        uint32_t most = wanted(s, q, n_stream, n_together, place < MAX_DRAFT ? place : MAX_DRAFT);
        if (most)
            ask_out[n++] = (struct mu_draft_ask){
                .sequence = q->request, .ids = q->ids, .n_ids = q->n_ids, .most = most, .sampling = q->sampling};
    }
    return n;
}

static struct seq *active_find(const struct mu_sched *s, uint64_t request)
{
    for (int i = 0; i < s->opt.serving.n_slot; i++)
        if (s->active[i] && s->active[i]->request == request) return s->active[i];
    return NULL;
}

void mu_sched_answer_drafts(struct mu_sched *s, const struct mu_draft_ask *ask, int n, const struct mu_draft_took *took)
{
    mu_draft_costs_took(&s->cost, took);
    for (int i = 0; i < n; i++) {
        struct seq *q = active_find(s, ask[i].sequence);
        if (!q) continue;
        struct by_model *m = &q->model;
        m->pace.n_read = q->n_ids - ask[i].n_behind;
        m->at = q->n_ids;
        m->n = ask[i].n_draft < MAX_DRAFT ? ask[i].n_draft : MAX_DRAFT;
        for (uint32_t k = 0; k < m->n; k++) m->id[k] = ask[i].draft[k];
        if (!m->n && !ask[i].n_behind) mu_draft_pace_rest(&m->pace, q->n_ids); /* ids that it does not know */
    }
}

uint32_t mu_sched_model_drafts(const struct mu_sched *s, struct seq *q, uint32_t most)
{
    struct by_model *m = &q->model;
    uint32_t n = m->at == q->n_ids ? m->n : 0, k = 0;
    while (k < n && k < most && m->id[k] >= 0 && m->id[k] < s->opt.n_vocab) {
        q->draft[k] = m->id[k];
        k++;
    }
    m->flies = k > 0;
    return k;
}

void mu_sched_model_learn(struct mu_sched *s, struct seq *q, uint32_t n_draft, uint32_t n_taken)
{
    s->n_model_drafted += n_draft;
    s->n_model_taken += n_taken;
    mu_draft_pace_learn(&q->model.pace, &s->hope, n_draft, n_taken);
    q->model.pace.n_read = q->n_ids - 1;
}
