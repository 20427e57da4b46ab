/* The feed-forward of a layer with experts (C8): the router's choice, the chosen experts' hidden vectors, their sum.
 *
 * Every rank of the stage computes the whole router, so all choose alike. Of each expert a rank holds the same rows that
 * it would hold of a single feed-forward. A token's hidden vectors travel in one exchange, as if they were as many
 * tokens. */
#include <string.h>

#include "model/arch.h"
#include "shard/parts.h"

enum { CHUNK = 128 }; /* rows of an item: a multiple of MU_ROW_GROUP */

/* Token t's experts, ascending, and their weights: softmax over the chosen ones. Ties go to the lower index. */
static void choose(const struct mu_shard *s, int t)
{
    int n = s->cfg.n_expert, n_used = s->cfg.n_expert_used, best = 0;
    const float *score = s->route + (size_t)t * (size_t)n;
    int32_t *chosen = s->chosen + (size_t)t * (size_t)n_used;
    float *weight = s->chosen_weight + (size_t)t * (size_t)n_used, sum = 0.0f, max = score[0];
    bool taken[MU_MAX_EXPERT] = {false};
    for (int k = 0; k < n_used; k++) { /* of scores that are not finite any: their weights poison the token */
        best = -1;
        for (int e = 0; e < n; e++)
            if (!taken[e] && (best < 0 || score[e] > score[best])) best = e;
        taken[best] = true;
        if (k == 0) max = score[best];
    }
    for (int e = 0, k = 0; e < n; e++) {
        if (!taken[e]) continue;
        chosen[k] = e;
        weight[k] = mu_expf(score[e] - max);
        sum += weight[k++];
    }
    for (int k = 0; k < n_used; k++) weight[k] = weight[k] / sum;
}

static struct mu_act token_of(const struct act *act, int n_col, int t)
{
    size_t at = (size_t)t * (size_t)n_col, block = (size_t)t * (size_t)(n_col / MU_Q_BLOCK);
    return (struct mu_act){.n_tok = 1,
                           .n_col = n_col,
                           .f32 = act->f32 ? act->f32 + at : NULL,
                           .bf16 = act->bf16 ? act->bf16 + at : NULL,
                           .q = act->q + at,
                           .s = act->s + block,
                           .sum = act->sum + 2 * block};
}

static struct mu_range chunk_rows(int n_row, int chunk)
{
    int end = (chunk + 1) * CHUNK;
    return (struct mu_range){chunk * CHUNK, end < n_row ? end : n_row};
}

/* n values of a bias of all experts, from value `at` on. */
static void add_bias(const struct mu_shard *s, int layer, enum mu_tensor_id id, int at, int n, float *x)
{
    const float *bias = s->layer[layer].vec[id];
    if (bias) s->k->add(x, bias + at, n, 0);
}

/* Rows of hidden vector i (the i mod n_used-th expert of its token). */
static void hidden_item(const struct run *r, int layer, int i, struct mu_range rows)
{
    const struct mu_shard *s = r->s;
    int e = s->chosen[i];
    const struct mu_mat *gate = &mu_expert_mats(s, layer, MU_T_GATE)[e], *up = &mu_expert_mats(s, layer, MU_T_UP)[e];
    size_t at = (size_t)i * (size_t)gate->n_row;
    struct mu_act x = token_of(r->act, gate->n_col, i / s->cfg.n_expert_used);
    s->k->matmul(gate, &x, rows.begin, rows.end, s->gate + at, (size_t)gate->n_row);
    s->k->matmul(up, &x, rows.begin, rows.end, r->mine->up - rows.begin, CHUNK);
    int n = mu_range_len(rows), first = s->me.ff.begin + rows.begin;
    float *out = s->gate + at + rows.begin;
    add_bias(s, layer, MU_T_GATE_EXPS_B, e * s->cfg.d_ff + first, n, out);
    add_bias(s, layer, MU_T_UP_EXPS_B, e * s->cfg.d_ff + first, n, r->mine->up);
    if (s->model->arch->ffn == MU_FFN_SILU_CLAMPED)
        s->k->silu_clamped_mul(out, r->mine->up, n, out);
    else
        s->k->silu_mul(out, r->mine->up, n, out);
}

/* Rows of what token t's experts add together. */
static void sum_item(const struct run *r, int layer, const struct job *job, const struct act *in, int t,
                     struct mu_range rows)
{
    const struct mu_shard *s = r->s;
    const struct mu_mat *down = mu_expert_mats(s, layer, MU_T_DOWN);
    int n_used = s->cfg.n_expert_used, n = mu_range_len(rows);
    size_t at = (size_t)t * job->stride + (size_t)rows.begin;
    float *part = r->mine->row;
    memset(job->out + at, 0, (size_t)n * sizeof *job->out);
    for (int k = 0, i = t * n_used; k < n_used; k++, i++) {
        struct mu_act x = token_of(in, s->cfg.d_ff, i);
        s->k->matmul(&down[s->chosen[i]], &x, rows.begin, rows.end, part, job->stride);
        add_bias(s, layer, MU_T_DOWN_EXPS_B, s->chosen[i] * s->cfg.d_model + s->me.model.begin + rows.begin, n,
                 part + rows.begin);
        s->k->add_scaled(job->out + at, part + rows.begin, s->chosen_weight[i], n);
    }
    for (int i = 0; s->cfg.residual_scale != 1.0f && i < n; i++)
        job->out[at + (size_t)i] = job->out[at + (size_t)i] * s->cfg.residual_scale;
    if (job->bf16) s->k->to_bf16(job->out + at, n, job->bf16 + at);
}

bool mu_run_experts(struct run *r, int layer)
{
    struct mu_shard *s = r->s;
    const struct layer *l = &s->layer[layer];
    int n_used = s->cfg.n_expert_used, n_tok = r->n_tok, begin, end;
    const struct job router = {
        .m = &l->mat[MU_T_ROUTER], .out = s->route, .stride = (size_t)s->cfg.n_expert, .bias = l->vec[MU_T_ROUTER_B]};
    mu_run_matmul(r, &router, 1, r->act, n_tok);
    mu_run_meet(r);
    struct mu_range mine = mu_run_share(r, n_tok);
    for (int t = mine.begin; t < mine.end; t++) choose(s, t);
    mu_run_meet(r);

    int n_row = mu_range_len(s->me.ff), n_chunk = (n_row + CHUNK - 1) / CHUNK;
    while (mu_run_claim(r, n_tok * n_used * n_chunk, 1, 4, &begin, &end)) {
        for (int i = begin; i < end; i++) hidden_item(r, layer, i / n_chunk, chunk_rows(n_row, i % n_chunk));
        mu_run_breathe(r);
    }
    mu_run_meet(r);

    struct act in;
    r->n_tok = n_tok * n_used;
    bool ok = mu_run_gather_input(r, INPUT_DOWN, s->gate, l->down_in, &in);
    r->n_tok = n_tok;
    if (!ok) return false;

    n_row = mu_range_len(s->me.model);
    n_chunk = (n_row + CHUNK - 1) / CHUNK;
    struct job sum = {.out = s->y, .stride = (size_t)n_row};
    mu_run_project_begin(r, &sum, l->down_round, l->vec[MU_T_POST_FFN_NORM]);
    while (mu_run_claim(r, n_tok * n_chunk, 1, 4, &begin, &end)) {
        for (int i = begin; i < end; i++) sum_item(r, layer, &sum, &in, i / n_chunk, chunk_rows(n_row, i % n_chunk));
        mu_run_breathe(r);
    }
    mu_run_meet(r);
    return mu_run_project_end(r);
}
