/* The next ids, from logits that are spread over the ranks of the last stage.
 *
 *   greedy               arg-max, ties to the lowest id
 *   temperature          arg-max over id of fl(logit / temperature) - log(-log u(seed, position, id)), position being
 *   the new id's: a sample
 *                        from softmax(logits / temperature) (Gumbel-max), keyed by what it is for, so that no sampler
 *                        has a state
 *   with top-k or top-p  the same, among fewer: candidates in order of (logit descending, id ascending); the first k of
 *   them; of those the
 *                        shortest prefix whose terms reach p of the sum of all of them (terms exp(x - max), x =
 *                        fl(logit / temperature);
 *                        the sum by rule C6 over the vocabulary, or with top-k over the k candidates in their order)
 *
 * The first two need no row whole: every rank sends its best candidate. Blocks and ranks do not show in the result,
 * because an arg-max over (value descending, id ascending) is the same however it is joined. Every rank of the stage
 * ends up with every id. */
#include <math.h>
#include <string.h>

#include "shard/parts.h"

enum { BLOCK = 1024 };

/* No noise term is larger: u ≤ 1 - 2^-24, so -log(-log u) < 17. */
static const float NOISE_LIMIT = 20.0f;

bool mu_sample_whole(const struct mu_step_seq *q)
{
    return q->temperature > 0.0f && (q->top_k > 0 || q->top_p < 1.0f);
}

static float noise(const struct mu_step_seq *q, uint32_t id)
{
    uint64_t position = (uint64_t)q->pos0 + q->n_tok;
    return -mu_logf(-mu_logf(mu_random_unit(q->seed, position, id)));
}

static struct pick pick_join(struct pick a, struct pick b)
{
    if (a.id == PICK_NONFINITE || b.id == PICK_NONE) return a;
    if (b.id == PICK_NONFINITE || a.id == PICK_NONE) return b;
    if (a.value != b.value) return a.value > b.value ? a : b;
    return a.id < b.id ? a : b;
}

/* The best of x[n], whose first id is `first`. */
static struct pick pick_of(const struct mu_shard *s, const struct mu_step_seq *q, const float *x, int n, int first)
{
    float max;
    int at = s->k->argmax(x, n, &max);
    if (at < 0) return (struct pick){0, PICK_NONFINITE};
    if (q->temperature == 0.0f) return (struct pick){max, first + at};
    struct pick best = {0, PICK_NONE};
    for (int i = 0; i < n; i++) {
        float v = x[i] / q->temperature;
        if (best.id != PICK_NONE && v + NOISE_LIMIT < best.value) continue;
        v += noise(q, (uint32_t)(first + i));
        if (best.id == PICK_NONE || v > best.value) best = (struct pick){v, first + i};
    }
    return best;
}

/* ---- whole rows ---- */

/* Candidates a, b: a comes before b. */
static bool before(const float *row, uint32_t a, uint32_t b)
{
    return row[a] != row[b] ? row[a] > row[b] : a < b;
}

static void sift_down(const float *row, uint32_t *heap, uint32_t n, uint32_t at)
{
    for (;;) {
        uint32_t child = 2 * at + 1, id = heap[at];
        if (child >= n) return;
        if (child + 1 < n && before(row, heap[child + 1], heap[child])) child++;
        if (before(row, id, heap[child])) return;
        heap[at] = heap[child];
        heap[child] = id;
        at = child;
    }
}

/* The first candidates in order, at the end of the returned array backwards: order[n_vocab - 1] is the first. Taken
 * from a heap one by one, since few are wanted. */
static uint32_t take_next(const float *row, uint32_t *order, uint32_t left)
{
    uint32_t first = order[0];
    order[0] = order[left - 1];
    order[left - 1] = first;
    sift_down(row, order, left - 1, 0);
    return first;
}

static struct pick pick_truncated(struct mu_shard *s, const struct mu_step_seq *q, const float *row)
{
    uint32_t n = (uint32_t)s->cfg.n_vocab, k = q->top_k > 0 && q->top_k < n ? q->top_k : n, n_taken = 0;
    float max, total = 0.0f, reached = 0.0f;
    if (s->k->argmax(row, (int)n, &max) < 0) return (struct pick){0, PICK_NONFINITE};
    max = max / q->temperature;
    for (uint32_t i = 0; i < n; i++) s->order[i] = i;
    for (uint32_t i = n / 2; i-- > 0;) sift_down(row, s->order, n, i);
    if (k == n) {
        for (uint32_t i = 0; i < n; i++) s->terms[i] = row[i] / q->temperature;
        total = s->k->softmax_terms(s->terms, (int)n, max, s->terms);
    } else {
        for (; n_taken < k; n_taken++) {
            uint32_t id = take_next(row, s->order, n - n_taken);
            s->terms[id] = mu_expf(row[id] / q->temperature - max);
            total += s->terms[id];
        }
    }
    struct pick best = {0, PICK_NONE};
    float goal = q->top_p * total;
    for (uint32_t i = 0; i < k; i++) {
        if (i == n_taken) {
            take_next(row, s->order, n - n_taken);
            n_taken++;
        }
        uint32_t id = s->order[n - 1 - i];
        float v = row[id] / q->temperature + noise(q, id);
        best = pick_join(best, (struct pick){v, (int32_t)id});
        reached += s->terms[id];
        if (q->top_p < 1.0f && reached >= goal) break;
    }
    return best;
}

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

/* ---- all of it ---- */

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
        s->id[seq] = best.id;
    }
}

void mu_run_sample(struct run *r)
{
    struct mu_shard *s = r->s;
    int width = mu_range_len(s->me.vocab), n_block = (width + BLOCK - 1) / BLOCK, n_pick = s->n_row - s->n_whole, begin,
        end;
    if (!gather_rows(r)) return;
    while (mu_run_claim(r, n_pick * n_block, 1, n_block, &begin, &end)) {
        for (int item = begin; item < end; item++) {
            int row = s->n_whole + item / n_block, at = item % n_block * BLOCK;
            s->pick[item] = pick_of(s, &s->step->seq[s->row[row].seq], s->logits + (size_t)row * (size_t)width + at,
                                    width - at < BLOCK ? width - at : BLOCK, s->me.vocab.begin + at);
        }
    }
    mu_run_meet(r);
    if (r->member > 0) return;
    for (int i = s->n_result; i < s->n_whole; i++)
        s->id[s->row[i].seq] =
            pick_truncated(s, &s->step->seq[s->row[i].seq], s->whole + (size_t)i * (size_t)s->cfg.n_vocab).id;
    struct pick *mine = s->pick_all + (size_t)s->me.local * s->step->n_seq;
    for (uint32_t i = 0; i < s->step->n_seq; i++) mine[i] = (struct pick){0, PICK_NONE};
    for (int i = 0; i < n_pick; i++)
        for (int b = 0; b < n_block; b++) {
            struct pick *to = &mine[s->row[s->n_whole + i].seq];
            *to = pick_join(*to, s->pick[i * n_block + b]);
        }
    if (n_pick > 0) join_ranks(s, mine);
}
