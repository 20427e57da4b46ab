/* The next ids, from logits that are spread over the ranks of the last stage.
 *
 *   1  bias, penalties, what cannot come   the sequence's adjustments and mask (adjust.h)
 *   2  greedy                              the largest logit, ties to the lowest id: the end of it
 *   3  temperature                         x / temperature
 *   4  top_k                               the first k candidates in order of (logit descending, id ascending)
 *   5  typical_p                           of those the ones whose surprise -ln p is nearest to its mean (the entropy),
 *                                          nearest first, until they have so much of the probability (Meister et al.,
 *                                          Locally Typical Sampling, arXiv:2202.00666)
 *   6  top_p                               of those in the order of 4 the shortest beginning with so much of their
 *                                          probability (Holtzman et al., arXiv:1904.09751)
 *   7  min_p                               of those the ones at least min_p times as likely as the first (Nguyen et
 *                                          al., arXiv:2407.01082)
 *   8  the draw                            arg-max over the rest of x / temperature - log(-log u(seed, position, id)),
 *                                          position being the new id's: a sample from their softmax (Gumbel-max), keyed
 *                                          by what it is for, so that no sampler has a state
 *
 * Others: vLLM has 1 to 3 in this order, then min_p, top_k, top_p. llama.cpp has top_k, typical_p, top_p, min_p in this
 * order, but the temperature after them, so its shares are those of the untempered softmax. Here a step that keeps
 * nothing for want of probability keeps the likeliest.
 *
 * Without 4 to 7 no row is needed whole: each rank sends its best candidate. Blocks and ranks do not show in the result,
 * because an arg-max over (value descending, id ascending) is the same however it is joined. For 4 to 7 and for log
 * probabilities every rank gets the whole row, as the model gives it, and does the same with it. Every rank of the stage
 * ends up with every id. docs/arithmetic.md has each operation. */
#include <math.h>
#include <string.h>

#include "shard/adjust.h"
#include "shard/parts.h"

enum { BLOCK = 1024 };

bool mu_sample_whole(const struct mu_step_seq *q)
{
    return q->sampling.logprobs || mu_sampling_truncates(&q->sampling);
}

static float unit(const struct mu_step_seq *q, uint32_t id)
{
    return mu_random_unit(q->sampling.seed, (uint64_t)q->pos0 + q->n_tok, id);
}

static float noise_of(float u)
{
    return -mu_logf(-mu_logf(u));
}

/* At least noise_of(u), without a logarithm: -log u > 1 - u ≥ 2^e, so the noise is less than -e log 2; 0.01 is far more than
 * what rounding adds. Of a vocabulary only a few ids come so near to the best one that their noise must be known. */
static float noise_bound(float u)
{
    float rest = 1.0f - u;
    uint32_t bits;
    memcpy(&bits, &rest, sizeof bits);
    return (float)(127 - (int)(bits >> 23)) * 0.6931472f + 0.01f;
}

static struct pick pick_join(struct pick a, struct pick b)
{
    if (a.id == PICK_NONFINITE || b.id == PICK_NONE) return a;
    if (b.id == PICK_NONFINITE || a.id == PICK_NONE) return b;
    if (a.value != b.value) return a.value > b.value ? a : b;
    return a.id < b.id ? a : b;
}

bool mu_sample_adjusted(const struct mu_step_seq *q)
{
    return q->n_adjust > 0 || q->mask > 0;
}

static void adjust(const struct mu_shard *s, const struct mu_step_seq *q, float *x, int n, int first)
{
    const struct mu_step *step = s->step;
    mu_adjust_apply(&q->sampling, step->adjust + q->adjust_off, q->n_adjust,
                    q->mask ? step->mask + (size_t)(q->mask - 1) * step->mask_bytes : NULL, x, n, first);
}

/* The best of x[n], whose first id is `first`; x is adjusted. */
static struct pick pick_of(const struct mu_shard *s, const struct mu_step_seq *q, const float *x, int n, int first)
{
    float max;
    int at = s->k->argmax(x, n, &max);
    if (at < 0) return (struct pick){0, PICK_NONFINITE};
    if (max == MU_LOGIT_FORBIDDEN) return (struct pick){0, PICK_NONE};
    if (q->sampling.temperature == 0.0f) return (struct pick){max, first + at};
    struct mu_draw draw = {.seed = q->sampling.seed,
                           .position = (uint64_t)q->pos0 + q->n_tok,
                           .first = (uint32_t)first,
                           .temperature = q->sampling.temperature};
    at = s->k->draw(x, n, &draw, &max);
    return (struct pick){max, first + at};
}

/* The same of a rank's rows, as the model gives them. */
static struct pick pick_of_rows(const struct mu_shard *s, const struct mu_step_seq *q, float *x, int n, int first)
{
    float max;
    if (mu_sample_adjusted(q)) {
        if (s->k->argmax(x, n, &max) < 0) return (struct pick){0, PICK_NONFINITE};
        adjust(s, q, x, n, first);
    }
    return pick_of(s, q, x, n, first);
}

/* ---- whole rows: candidates ---- */

/* A set of ids as a heap, the first one in its order on top. What is taken goes to the end, so that set[n - 1] is the
 * first once taken, set[n - 2] the second: few are wanted of many. */
struct candidates {
    const float *key, *row; /* by key, then by logit, each descending; then by id ascending */
    uint32_t *set, n;       /* n left */
};

static bool before(const struct candidates *c, uint32_t a, uint32_t b)
{
    if (c->key[a] != c->key[b]) return c->key[a] > c->key[b];
    return c->row[a] != c->row[b] ? c->row[a] > c->row[b] : a < b;
}

static void sift_down(const struct candidates *c, uint32_t at)
{
    for (;;) {
        uint32_t child = 2 * at + 1, id = c->set[at];
        if (child >= c->n) return;
        if (child + 1 < c->n && before(c, c->set[child + 1], c->set[child])) child++;
        if (before(c, id, c->set[child])) return;
        c->set[at] = c->set[child];
        c->set[child] = id;
        at = child;
    }
}

static struct candidates candidates_of(const float *key, const float *row, uint32_t *set, uint32_t n)
{
    struct candidates c = {.key = key, .row = row, .set = set, .n = n};
    for (uint32_t i = n / 2; i-- > 0;) sift_down(&c, i);
    return c;
}

static uint32_t take_next(struct candidates *c)
{
    uint32_t first = c->set[0];
    c->n--;
    c->set[0] = c->set[c->n];
    c->set[c->n] = first;
    sift_down(c, 0);
    return first;
}

/* ---- whole rows: what is left out ---- */

/* Few ids of a row are wanted in order, and to order a whole vocabulary for them takes longer than many a model's step. So a
 * row is looked at in runs: if `want` runs have a logit of `least` or more, so have `want` ids at least, and they come before all
 * others. Runs without such an id are not looked at again. */
enum { RUN = 256, FIRST = 64 /* ids that are wanted where nobody says how many */ };

struct cut { /* a row on its way */
    const struct mu_shard *s;
    const struct sampler *w;
    const struct mu_sampling *p;
    const float *row;
    float *run_max;   /* of each run; lives in w->nearness, until typical_p needs that */
    uint32_t *set, n; /* the ids that are left, */
    float least;      /* but for those below */
    float max;        /* fl(largest logit / temperature) */
    float total;      /* of the terms of what is left */
};

static uint32_t runs_of(const struct cut *t)
{
    return ((uint32_t)t->s->cfg.n_vocab + RUN - 1) / RUN;
}

/* The largest logit of each run, and of all in max; false: one is not finite. */
static bool runs_look(struct cut *t)
{
    uint32_t n_vocab = (uint32_t)t->s->cfg.n_vocab;
    t->run_max = t->w->nearness;
    t->max = MU_LOGIT_FORBIDDEN;
    for (uint32_t i = 0, at = 0; at < n_vocab; i++, at += RUN) {
        uint32_t n = n_vocab - at < RUN ? n_vocab - at : RUN;
        if (t->s->k->argmax(t->row + at, (int)n, &t->run_max[i]) < 0) return false;
        if (t->run_max[i] > t->max) t->max = t->run_max[i];
    }
    return true;
}

/* A logit that `want` runs reach; MU_LOGIT_FORBIDDEN where there are not so many. */
static float runs_least(const struct cut *t, uint32_t want)
{
    uint32_t n = runs_of(t), run = 0;
    if (want > n) return MU_LOGIT_FORBIDDEN;
    for (uint32_t i = 0; i < n; i++) t->set[i] = i;
    struct candidates c = candidates_of(t->run_max, t->run_max, t->set, n);
    for (uint32_t i = 0; i < want; i++) run = take_next(&c);
    return t->run_max[run];
}

/* The ids with least <= logit < below, ascending, but for those that cannot come. */
static void runs_take(struct cut *t, float least, float below)
{
    uint32_t n_vocab = (uint32_t)t->s->cfg.n_vocab;
    t->n = 0;
    for (uint32_t i = 0, at = 0; at < n_vocab; i++, at += RUN) {
        if (t->run_max[i] < least) continue;
        uint32_t end = n_vocab - at < RUN ? n_vocab : at + RUN;
        for (uint32_t id = at; id < end; id++)
            if (t->row[id] >= least && t->row[id] < below && t->row[id] != MU_LOGIT_FORBIDDEN) t->set[t->n++] = id;
    }
    t->least = least;
}

/* Terms exp(x / temperature - max) of the ids that are left, and their sum: over the vocabulary by rule C6, with top_k
 * over the k of them in their order. */
static void cut_top_k(struct cut *t)
{
    float *terms = t->w->terms;
    uint32_t n_vocab = (uint32_t)t->s->cfg.n_vocab, k = t->p->top_k;
    if (k == 0 || k >= n_vocab) {
        for (uint32_t i = 0; i < n_vocab; i++) /* far enough below for a term of 0 */
            terms[i] = t->row[i] == MU_LOGIT_FORBIDDEN ? t->max - 1000.0f : t->row[i] / t->p->temperature;
        t->total = t->s->k->softmax_terms(terms, (int)n_vocab, t->max, terms);
        return;
    }
    struct candidates c = candidates_of(t->row, t->row, t->set, t->n);
    uint32_t all = t->n;
    if (k > all) k = all;
    t->least = MU_LOGIT_FORBIDDEN; /* nothing below is left */
    t->total = 0.0f;
    for (uint32_t i = 0; i < k; i++) {
        uint32_t id = take_next(&c);
        terms[id] = mu_expf(t->row[id] / t->p->temperature - t->max);
        t->total += terms[id];
    }
    t->set += all - k;
    t->n = k;
    for (uint32_t i = 0; i < k / 2; i++) { /* in their order */
        uint32_t id = t->set[i];
        t->set[i] = t->set[k - 1 - i];
        t->set[k - 1 - i] = id;
    }
}

/* ln p of an id that is left */
static float log_share(const struct cut *t, float log_total, uint32_t id)
{
    return t->row[id] / t->p->temperature - t->max - log_total;
}

static void cut_typical(struct cut *t)
{
    if (!mu_sampling_cuts(t->p->typical_p)) return;
    const struct sampler *w = t->w;
    float log_total = mu_logf(t->total), goal = t->p->typical_p * t->total, reached = 0.0f;
    double entropy = 0.0; /* in the order of the set: ids ascending, or that of top_k */
    for (uint32_t i = 0; i < t->n; i++) {
        uint32_t id = t->set[i];
        entropy -= (double)(w->terms[id] / t->total) * (double)log_share(t, log_total, id);
    }
    for (uint32_t i = 0; i < t->n; i++) {
        uint32_t id = t->set[i];
        w->nearness[id] = -fabsf(-log_share(t, log_total, id) - (float)entropy);
    }
    struct candidates c = candidates_of(w->nearness, t->row, t->set, t->n);
    uint32_t all = t->n, kept = 0;
    while (kept < all && reached < goal) {
        reached += w->terms[take_next(&c)];
        kept++;
    }
    t->set += all - kept;
    t->n = kept;
    t->total = reached;
}

/* x with its noise, where that may be better than the best so far. */
static void draw(const struct cut *t, const struct mu_step_seq *q, uint32_t id, struct pick *best)
{
    float x = t->row[id] / t->p->temperature, u = unit(q, id);
    if (best->id != PICK_NONE && x + noise_bound(u) < best->value) return; /* sums round in order */
    *best = pick_join(*best, (struct pick){x + noise_of(u), (int32_t)id});
}

/* The draw from what min_p leaves: in no order, since the best is that in any. */
static struct pick cut_draw_any(struct cut *t, const struct mu_step_seq *q)
{
    struct pick best = {0, PICK_NONE};
    if (t->least > MU_LOGIT_FORBIDDEN) runs_take(t, MU_LOGIT_FORBIDDEN, INFINITY);
    uint32_t first = t->set[0];
    for (uint32_t i = 1; i < t->n; i++)
        if (t->row[t->set[i]] > t->row[first]) first = t->set[i];
    float least = t->p->min_p * t->w->terms[first];
    for (uint32_t i = 0; i < t->n; i++)
        if (!(t->w->terms[t->set[i]] < least)) draw(t, q, t->set[i], &best);
    return best;
}

/* The same with top_p, whose beginning is counted in order. */
static struct pick cut_draw(struct cut *t, const struct mu_step_seq *q)
{
    struct candidates c = candidates_of(t->row, t->row, t->set, t->n);
    struct pick best = {0, PICK_NONE};
    float goal = t->p->top_p * t->total, least = 0.0f, reached = 0.0f;
    for (bool first = true;; first = false) {
        if (c.n == 0 && t->least > MU_LOGIT_FORBIDDEN) { /* all the others */
            runs_take(t, MU_LOGIT_FORBIDDEN, t->least);
            c = candidates_of(t->row, t->row, t->set, t->n);
        }
        if (c.n == 0) break;
        uint32_t id = take_next(&c);
        float term = t->w->terms[id];
        if (first) least = t->p->min_p * term;
        if (term < least) break;
        draw(t, q, id, &best);
        reached += term;
        if (reached >= goal) break;
    }
    return best;
}

/* Of a whole row, adjusted. */
static struct pick pick_truncated(const struct mu_shard *s, const struct sampler *w, const struct mu_step_seq *q,
                                  const float *row)
{
    struct cut t = {.s = s, .w = w, .p = &q->sampling, .row = row, .set = w->order};
    uint32_t k = q->sampling.top_k;
    if (!runs_look(&t)) return (struct pick){0, PICK_NONFINITE};
    if (t.max == MU_LOGIT_FORBIDDEN) return (struct pick){0, PICK_NONE};
    t.max = t.max / q->sampling.temperature;
    bool all = mu_sampling_cuts(q->sampling.typical_p) && k == 0;
    runs_take(&t, all ? MU_LOGIT_FORBIDDEN : runs_least(&t, k ? k : FIRST), INFINITY);
    cut_top_k(&t);
    cut_typical(&t);
    return mu_sampling_cuts(q->sampling.top_p) ? cut_draw(&t, q) : cut_draw_any(&t, q);
}

/* ---- whole rows: log probabilities ---- */

/* ln softmax of the id that was chosen and of the likeliest, from the row as the model gives it. */
static void logprobs_take(const struct mu_shard *s, const struct sampler *w, const struct mu_sampling *p,
                          const float *row, int32_t id, struct mu_logprobs *out)
{
    float max;
    int n = s->cfg.n_vocab;
    if (s->k->argmax(row, n, &max) < 0) return;
    float log_total = mu_logf(s->k->softmax_terms(row, n, max, w->terms));
    uint32_t want = p->top_logprobs < (uint32_t)n ? p->top_logprobs : (uint32_t)n;
    out->chosen = row[id] - max - log_total;
    out->n_top = 0;
    for (int i = 0; want && i < n; i++) {
        if (out->n_top == want && !(row[i] > row[out->top[want - 1].id])) continue;
        uint32_t at = out->n_top < want ? out->n_top++ : want - 1;
        for (; at > 0 && row[i] > row[out->top[at - 1].id]; at--) out->top[at] = out->top[at - 1];
        out->top[at].id = i;
    }
    for (uint32_t i = 0; i < out->n_top; i++) out->top[i].logprob = row[out->top[i].id] - max - log_total;
}

static int32_t pick_whole(const struct mu_shard *s, const struct sampler *w, const struct mu_step_seq *q, float *row,
                          struct mu_logprobs *logprobs_out)
{
    size_t n = (size_t)s->cfg.n_vocab;
    const float *given = row;
    float max;
    if (mu_sample_adjusted(q)) {
        if (s->k->argmax(row, (int)n, &max) < 0) return PICK_NONFINITE;
        if (q->sampling.logprobs && s->leader) given = memcpy(w->given, row, n * sizeof *row);
        adjust(s, q, row, (int)n, 0);
    }
    int32_t id =
        mu_sampling_truncates(&q->sampling) ? pick_truncated(s, w, q, row).id : pick_of(s, q, row, (int)n, 0).id;
    if (q->sampling.logprobs && s->leader && id >= 0) logprobs_take(s, w, &q->sampling, given, id, logprobs_out);
    return id == PICK_NONE ? MU_SAMPLE_NONE_ALLOWED : id;
}

/* ---- all of it ---- */

/* The first n_whole rows of all ranks in s->whole. */
static bool gather_rows(struct run *r)
{
    struct mu_shard *s = r->s;
    if (s->stage.n_rank == 1 || s->n_whole == 0) return true; /* s->whole is s->logits with one rank */
    struct parts parts;
    size_t rows = (size_t)s->n_whole, vocab = (size_t)s->cfg.n_vocab;
    for (int i = 0; i < s->stage.n_rank; i++) {
        struct mu_range v = s->plan.rank[s->stage.first_rank + i].vocab;
        parts.off[i] = rows * (size_t)v.begin * sizeof *s->parts;
        parts.len[i] = rows * (size_t)mu_range_len(v) * sizeof *s->parts;
    }
    if (r->member == 0) memcpy((char *)s->parts + parts.off[s->me.local], s->logits, parts.len[s->me.local]);
    if (!mu_run_gather(r, s->parts, &parts)) return false;
    struct mu_range mine = mu_run_share(r, s->n_whole);
    for (int i = 0; i < s->stage.n_rank; i++) {
        struct mu_range v = s->plan.rank[s->stage.first_rank + i].vocab;
        size_t w = (size_t)mu_range_len(v);
        const float *part = s->parts + rows * (size_t)v.begin;
        for (int row = mine.begin; row < mine.end; row++)
            memcpy(s->whole + (size_t)row * vocab + v.begin, part + (size_t)row * w, w * sizeof *part);
    }
    mu_run_meet(r);
    return true;
}

/* Every rank's picks, joined. */
static void join_ranks(struct mu_shard *s, const struct pick *mine)
{
    size_t n = s->step->n_seq, n_rank = (size_t)s->stage.n_rank;
    struct parts parts;
    for (size_t i = 0; i < n_rank; i++) {
        parts.off[i] = i * n * sizeof *mine;
        parts.len[i] = n * sizeof *mine;
    }
    if (n_rank > 1) mu_gather_now(s, s->pick_all, &parts);
    if (s->failed != MU_OK) return;
    for (int i = s->n_whole; i < s->n_row; i++) {
        size_t seq = (size_t)s->row[i].seq;
        struct pick best = {0, PICK_NONE};
        for (size_t rank = 0; rank < n_rank; rank++) best = pick_join(best, s->pick_all[rank * n + seq]);
        s->id[seq] = best.id == PICK_NONE ? MU_SAMPLE_NONE_ALLOWED : best.id;
    }
}

static int pick_blocks(const struct mu_shard *s)
{
    return (mu_range_len(s->me.vocab) + BLOCK - 1) / BLOCK;
}

void mu_sample_finish(struct mu_shard *s)
{
    int n_block = pick_blocks(s);
    struct pick *mine = s->pick_all + (size_t)s->me.local * s->step->n_seq;
    for (uint32_t i = 0; i < s->step->n_seq; i++) mine[i] = (struct pick){0, PICK_NONE};
    for (int i = s->n_whole; i < s->n_host; i++)
        for (int b = 0; b < n_block; b++) {
            struct pick *to = &mine[s->row[i].seq];
            *to = pick_join(*to, s->pick[(i - s->n_whole) * n_block + b]);
        }
    for (int i = s->n_host; n_block && i < s->n_row; i++) mine[s->row[i].seq] = s->device_pick[i - s->n_host];
    if (s->n_row > s->n_whole) join_ranks(s, mine);
}

/* Rows that are wanted whole, each by one member. */
static void pick_whole_rows(struct run *r)
{
    struct mu_shard *s = r->s;
    int begin, end;
    if (s->n_whole == s->n_result) return;
    while (r->member < s->n_sampler && mu_run_claim(r, s->n_whole - s->n_result, 1, 1, &begin, &end)) {
        int row = s->n_result + begin, seq = s->row[row].seq;
        s->id[seq] = pick_whole(s, &s->sampler[r->member], &s->step->seq[seq],
                                s->whole + (size_t)row * (size_t)s->cfg.n_vocab, &s->logprobs[seq]);
    }
    mu_run_meet(r);
}

void mu_run_sample(struct run *r)
{
    struct mu_shard *s = r->s;
    int width = mu_range_len(s->me.vocab), n_block = pick_blocks(s), n_pick = s->n_host - s->n_whole, begin, end;
    if (!gather_rows(r)) return;
    pick_whole_rows(r);
    while (mu_run_claim(r, n_pick * n_block, 1, n_block, &begin, &end)) {
        for (int item = begin; item < end; item++) {
            int row = s->n_whole + item / n_block, at = item % n_block * BLOCK;
            s->pick[item] =
                pick_of_rows(s, &s->step->seq[s->row[row].seq], s->logits + (size_t)row * (size_t)width + at,
                             width - at < BLOCK ? width - at : BLOCK, s->me.vocab.begin + at);
        }
    }
    mu_run_meet(r);
    if (r->member == 0) mu_sample_finish(s);
}
