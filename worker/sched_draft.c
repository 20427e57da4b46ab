/* Speculation: guesses at a sequence's next ids, fed together with its next one, cost little where a step is bound by
 * reading the weights, and each guess that the model would have made itself is a step less.
 *
 *   ids     … the cat sat on | the cat          what followed the last "the cat"? "sat on": two drafts
 *   step    slot 3: cat → ?   slot 3: sat → ?   slot 3: on → ?          a sequence of one token each, in a row
 *   sampled         sat               on                 the            each is what sampling gives at that position
 *   taken           sat (the draft: go on) on (the draft: go on) the    three ids of one step
 *
 * A draft is taken only where it equals what is sampled at its place, and sampling depends on nothing but what stands before
 * (seed, position), so answers have the same bits with drafts and without, at any temperature. What was computed of a
 * draft that was wrong is written again; no page is published with it (sched_step.c counts only ids that are taken).
 *
 * A sequence with adjustments or a mask (shard/adjust.h) has none: they are counted from the ids up to one place, and a
 * draft would need those of the next one. Log probabilities are those of the place where an id was sampled, whatever fed
 * it.
 *
 * Where it pays. In the time T between two tokens of a stream all m streams get one, and each draft adds t to it
 * (mu_sched_took measures both). n drafts of which a part h is right give (m + h·n) ids in T + n·t, which is more than m in
 * T where h·T > m·t. h is each sequence's own, of late.
 * Where it does not pay, or before the costs are known, there are no drafts; after PAUSE ids it is tried again. Drafts take
 * only what is left over: places of a step that no sequence needs, pages that nobody has to give, and no time while
 * prompts are read.
 *
 * These drafts are free. Where they are few, a small model may draft instead (sched_model.c).
 *
 * Source: Leviathan, Kalman, Matias, arXiv:2211.17192 (speculative decoding; here the exact variant for a keyed sampler);
 * Saxena, "Prompt Lookup Decoding", 2023. */
#include <string.h>

#include "worker/sched_parts.h"

enum { GRAM = 3, PAUSE = 64 };
static const double FIRST_HITS = 0.5; /* what is hoped for */

/* What followed the last place where its last GRAM ids, or GRAM - 1 of them, stood before, repeated as often as it takes. */
static uint32_t lookup(const int32_t *ids, uint32_t n, uint32_t most, int32_t *draft_out)
{
    uint32_t found = 0; /* where the copy begins; 0: nowhere */
    for (uint32_t end = n - 1; end >= GRAM - 1; end--) {
        if (ids[end - 1] != ids[n - 1] || ids[end - 2] != ids[n - 2]) continue;
        if (!found) found = end;
        if (end < GRAM || ids[end - 3] != ids[n - 3]) continue;
        found = end;
        break;
    }
    for (uint32_t i = 0; found && i < most; i++)
        draft_out[i] = found + i < n ? ids[found + i] : draft_out[found + i - n];
    return found ? most : 0;
}

static bool pays(const struct mu_sched *s, const struct seq *q, uint32_t n_stream)
{
    return q->hits * s->cost.gap_us > n_stream * mu_draft_us(&s->cost);
}

bool mu_sched_guessable(const struct mu_sched *s, const struct seq *q)
{
    return !s->opt.no_speculation && !q->embed.pooling && !q->adjusts && !q->masked;
}

/* What the last one samples has its place. */
uint32_t mu_sched_draft_room(const struct mu_sched *s, const struct seq *q, uint32_t most)
{
    if (most > q->n_limit - 1 - q->n_ids) most = q->n_limit - 1 - q->n_ids;
    while (most && mu_sched_is_far(s, q->n_ids + most) != mu_sched_is_far(s, q->n_ids)) most--;
    return most;
}

uint32_t mu_sched_draft(const struct mu_sched *s, struct seq *q, uint32_t n_stream, uint32_t most)
{
    if (q->n_ids <= GRAM || q->n_ids < q->quiet || mu_draft_costs_look(&s->cost)) return 0;
    if (!(s->cost.gap_us > 0 && s->cost.token_us > 0)) return 0; /* not known yet */
    if (q->n_try == 0) {                                         /* the first time, and after a pause */
        q->n_try = 1;
        q->hits = FIRST_HITS;
    }
    if (!pays(s, q, n_stream)) {
        q->quiet = q->n_ids + PAUSE;
        q->n_try = 0;
        return 0;
    }
    most = mu_sched_draft_room(s, q, most < q->n_try ? most : q->n_try);
    return most ? lookup(q->ids, q->n_ids, most, q->draft) : 0;
}

void mu_sched_draft_learn(struct mu_sched *s, struct seq *q, uint32_t n_draft, uint32_t n_taken)
{
    if (!n_draft) return;
    s->n_drafted += n_draft;
    s->n_taken += n_taken;
    if (q->model.flies) {
        mu_sched_model_learn(s, q, n_draft, n_taken);
        return;
    }
    q->hits += ((double)n_taken / n_draft - q->hits) / 4;
    if (n_taken == n_draft)
        q->n_try = 2 * q->n_try < MAX_DRAFT ? 2 * q->n_try : MAX_DRAFT;
    else
        q->n_try = n_taken + 1;
}
