/* States of tokens, pooled. See embed.h.
 *
 * In a step: the members norm rows each for itself, meet, and then each adds up a share of the dimensions over all
 * tokens in order, so that no sum is ever cut. A narrow run (one or two tokens) is done by member 0 alone; every member
 * has the residual there, and there is nothing to wait for. */
#include "shard/embed.h"

#include <math.h>
#include <string.h>

#include "shard/parts.h"

static float *row_state(const struct run *r, int row)
{
    return r->x + (size_t)r->s->row[row].at * (size_t)r->s->cfg.d_model; /* nobody needs the residual any more */
}

static void row_norm(const struct run *r, int row)
{
    const struct mu_shard *s = r->s;
    float *x = row_state(r, row);
    mu_residual_add(r, x, s->row[row].at);
    mu_norm_vector(s, x, s->out_norm, s->out_norm_b, x);
}

/* Row i, which is the next of its sequence: rows are sorted by sequence and position. */
static void row_add(struct mu_shard *s, int i, const float *x, int from, int n)
{
    const struct mu_step_seq *q = &s->step->seq[s->row[i].seq];
    float *sum = s->state + (size_t)q->slot * (size_t)s->cfg.d_model + from;
    bool first = i == s->n_row || s->row[i - 1].seq != s->row[i].seq; /* of its sequence in this step */
    if (q->out == MU_OUT_STATE || (first && q->pos0 == 0)) memset(sum, 0, (size_t)n * sizeof *sum);
    s->k->add(sum, x + from, n, 0);
}

void mu_states_add(struct mu_shard *s, const float *x, int from, int n)
{
    for (int i = s->n_row; i < s->n_live; i++)
        row_add(s, i, x + (size_t)(i - s->n_row) * (size_t)s->cfg.d_model, from, n);
}

void mu_run_states(struct run *r)
{
    struct mu_shard *s = r->s;
    int n = s->n_live - s->n_row;
    if (!s->leader || n == 0 || (r->narrow && r->member > 0)) return;
    struct mu_range rows = r->narrow ? (struct mu_range){0, n} : mu_run_share(r, n);
    for (int i = rows.begin; i < rows.end; i++) row_norm(r, s->n_row + i);
    if (!r->narrow) mu_run_meet(r);
    struct mu_range dims = r->narrow ? (struct mu_range){0, s->cfg.d_model} : mu_run_share(r, s->cfg.d_model);
    for (int i = s->n_row; i < s->n_live; i++) row_add(s, i, row_state(r, i), dims.begin, mu_range_len(dims));
}

static bool all_finite(const float *x, int n)
{
    for (int i = 0; i < n; i++)
        if (!isfinite(x[i])) return false;
    return true;
}

void mu_states_check(struct mu_shard *s)
{
    if (!s->leader) return;
    for (uint32_t i = 0; i < s->step->n_seq; i++) {
        const struct mu_step_seq *q = &s->step->seq[i];
        if (q->out < MU_OUT_STATE) continue;
        if (!all_finite(s->state + (size_t)q->slot * (size_t)s->cfg.d_model, s->cfg.d_model)) s->id[i] = -2;
    }
}

/* Σ x², in the lanes of C6. */
static float sum_of_squares(const float *x, int n)
{
    enum { LANES = 16 };
    float lane[LANES] = {0};
    for (int i = 0; i < n; i++) lane[i % LANES] = fmaf(x[i], x[i], lane[i % LANES]);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) lane[i] += lane[i + width];
    return lane[0];
}

bool mu_embed_finish(const struct mu_embed *e, const float *state, uint32_t n_tok, int d_model, float *out)
{
    int n = mu_embed_len(e, d_model);
    for (int i = 0; i < n; i++) out[i] = e->pooling == MU_POOL_MEAN ? state[i] / (float)n_tok : state[i];
    if (!e->raw) {
        float ss = sum_of_squares(out, n), scale = 1.0f / sqrtf(ss);
        if (!isfinite(ss)) return false;
        for (int i = 0; ss > 0.0f && i < n; i++) out[i] = out[i] * scale;
    }
    return all_finite(out, n);
}
