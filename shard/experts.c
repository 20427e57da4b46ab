/* The feed-forward of a layer with experts (C8): the router's choice, the chosen experts' hidden vectors, their sum.
 *
 * Every rank of the stage computes the whole router, so all choose alike. Of each expert a rank holds the same rows that
 * it would hold of a single feed-forward.
 *
 * A step's tokens meet an expert together, so that its weights are read once and not once a token:
 *
 *   chosen[token][k]   an expert of each token, ascending      a decode of one token is as many groups of one
 *      │ counting sort by expert, then token
 *   place              0 … n_tok · n_used - 1; the order of hidden vectors, in memory and on the wire
 *      │ cut where the expert changes, and into equal parts that a member's buffer holds
 *   group              [begin, end) of places: one product of a matrix
 *
 * Hidden vectors: a piece is some rows of one group; its inputs are copied together once for the pieces of the group
 * that a member takes in a row. Sum: a piece is some rows for all tokens, and goes through the groups in their order, so
 * each token meets its experts in ascending order and nobody waits for anybody. Pieces are claimed one after another;
 * an expert with many tokens is more pieces, not longer ones, so members end together. */
#include <string.h>

#include "model/arch.h"
#include "shard/parts.h"

enum {
    MOST_ROWS = 512, /* of a piece: a multiple of MU_ROW_GROUP */
    PIECES_EACH = 4, /* pieces that a member gets at least, while they can be cut */
    CLAIM = 4,       /* pieces claimed at once at most: of one group, mostly */
};
_Static_assert((int)MU_ROW_GROUP *EXPERT_TOKENS <= MU_UP_TILE, "a member's tile holds a piece");

/* Token t's experts, ascending, and their weights: softmax over the chosen ones. Ties go to the lower index. */
static void choose(const struct mu_shard *s, int t)
{
    int n = s->cfg.n_expert, n_used = s->cfg.n_expert_used, best = 0;
    const float *score = s->route + (size_t)t * (size_t)n;
    int32_t *chosen = s->chosen + (size_t)t * (size_t)n_used;
    float *weight = s->chosen_weight + (size_t)t * (size_t)n_used, sum = 0.0f, max = score[0];
    bool taken[MU_MAX_EXPERT] = {false};
    /* A NaN is chosen where no expert before it is left, and then, as +∞ does, makes every weight a NaN. Elsewhere it is
     * passed over, and so is -∞ while others are left. */
    for (int k = 0; k < n_used; k++) {
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

/* ---- groups ---- */

/* Cuts places [begin, end) of expert e. */
static void groups_cut(struct mu_shard *s, int e, int begin, int end)
{
    int n = end - begin, n_part = (n + s->size.group_tokens - 1) / s->size.group_tokens;
    for (int i = 0; i < n_part; i++) {
        struct group *g = &s->group[s->n_group++];
        *g =
            (struct group){e, begin + (int)((long long)n * i / n_part), begin + (int)((long long)n * (i + 1) / n_part)};
        if (g->end - g->begin > s->largest_group) s->largest_group = g->end - g->begin;
    }
}

/* Places and groups of n_tok tokens; their experts are chosen. */
static void groups_make(struct mu_shard *s, int n_tok)
{
    int next[MU_MAX_EXPERT] = {0}, n = n_tok * s->cfg.n_expert_used, begin = 0;
    s->n_group = s->largest_group = 0;
    for (int i = 0; i < n; i++) next[s->chosen[i]]++;
    for (int e = 0; e < s->cfg.n_expert; e++) {
        int count = next[e];
        next[e] = begin;
        groups_cut(s, e, begin, begin + count);
        begin += count;
    }
    for (int i = 0; i < n; i++) s->place[next[s->chosen[i]]++] = i;
}

/* Vectors [begin, end) of act. */
static struct mu_act slice(const struct act *act, int n_col, int begin, int end)
{
    size_t at = (size_t)begin * (size_t)n_col, block = (size_t)begin * (size_t)(n_col / MU_Q_BLOCK);
    return (struct mu_act){.n_tok = end - begin,
                           .n_col = n_col,
                           .f32 = act->f32 ? act->f32 + at : NULL,
                           .bf16 = act->bf16 ? act->bf16 + at : NULL,
                           .q = act->q + at,
                           .s = act->s + block,
                           .sum = act->sum + 2 * block};
}

/* The inputs of a group's tokens: one token's where they are, several copied together in the forms that experts read. */
static struct mu_act gather(const struct run *r, const struct group *g)
{
    const struct mu_shard *s = r->s;
    const struct act *to = &r->mine->group;
    int n_used = s->cfg.n_expert_used, n_col = s->cfg.d_model, n = g->end - g->begin, t = s->place[g->begin] / n_used;
    size_t d = (size_t)n_col, blocks = d / MU_Q_BLOCK;
    if (n == 1) return slice(r->act, n_col, t, t + 1);
    for (int i = 0; i < n; i++) {
        struct mu_act from = slice(r->act, n_col, s->place[g->begin + i] / n_used, 0);
        size_t at = (size_t)i * d, block = (size_t)i * blocks;
        if (s->size.group_forms & FORM_F32) memcpy(to->f32 + at, from.f32, d * sizeof *to->f32);
        if (s->size.group_forms & FORM_BF16) memcpy(to->bf16 + at, from.bf16, d * sizeof *to->bf16);
        if (!(s->size.group_forms & FORM_Q8)) continue;
        memcpy(to->q + at, from.q, d);
        memcpy(to->s + block, from.s, blocks * sizeof *to->s);
        memcpy(to->sum + 2 * block, from.sum, 2 * blocks * sizeof *to->sum);
    }
    return slice(to, n_col, 0, n);
}

/* ---- pieces ---- */

static int whole_groups(int n_row)
{
    return n_row < MU_ROW_GROUP ? MU_ROW_GROUP : n_row / MU_ROW_GROUP * MU_ROW_GROUP;
}

/* Rows of a piece, of n_mat matrices: as many as a member's tile has room for; few while sends must be moved along. */
static int most_rows(const struct run *r, int n_col, int n_mat)
{
    int n_tok = r->s->largest_group, n = MU_UP_TILE / n_tok < MOST_ROWS ? MU_UP_TILE / n_tok : MOST_ROWS;
    if (r->s->n_sent > 0) {
        int most = mu_run_piece_groups(n_col, n_mat * n_tok) * MU_ROW_GROUP;
        if (n > most) n = most;
    }
    return whole_groups(n);
}

/* n values of a bias of expert e, from those of my row `at` on. */
static void add_bias(const struct mu_shard *s, int layer, enum mu_tensor_id id, int e, int at, int n, float *x)
{
    const float *bias = s->layer[layer].vec[id];
    struct mu_range values;
    if (bias && mu_plan_bias_values(&s->me, id, &values))
        s->k->add(x, bias + (size_t)e * (size_t)mu_range_len(values) + at, n, 0);
}

/* Rows of the hidden vectors of a group, whose inputs are x. */
static void hidden_piece(const struct run *r, int layer, const struct group *g, const struct mu_act *x,
                         struct mu_range rows)
{
    const struct mu_shard *s = r->s;
    const struct mu_mat *gate = &mu_expert_mats(s, layer, MU_T_GATE)[g->expert];
    const struct mu_mat *up = &mu_expert_mats(s, layer, MU_T_UP)[g->expert];
    size_t stride = (size_t)gate->n_row;
    float *hidden = s->gate + (size_t)g->begin * stride;
    int n = mu_range_len(rows);
    s->k->matmul(gate, x, rows.begin, rows.end, hidden, stride);
    s->k->matmul(up, x, rows.begin, rows.end, r->mine->up - rows.begin, (size_t)n);
    for (int i = 0; i < x->n_tok; i++) {
        float *out = hidden + (size_t)i * stride + rows.begin, *factor = r->mine->up + (size_t)i * (size_t)n;
        add_bias(s, layer, MU_T_GATE_EXPS_B, g->expert, rows.begin, n, out);
        add_bias(s, layer, MU_T_UP_EXPS_B, g->expert, rows.begin, n, factor);
        if (s->model->arch->ffn == MU_FFN_SILU_CLAMPED)
            s->k->silu_clamped_mul(out, factor, n, out);
        else
            s->k->silu_mul(out, factor, n, out);
    }
}

static void hidden_run(struct run *r, int layer)
{
    const struct mu_shard *s = r->s;
    int n_row = mu_range_len(s->me.ff), rows = most_rows(r, s->cfg.d_model, 2);
    while (rows > MU_ROW_GROUP && s->n_group * (n_row / rows) < PIECES_EACH * r->n_member)
        rows = whole_groups(rows / 2);
    int n_chunk = (n_row + rows - 1) / rows, begin, end, gathered = -1;
    struct mu_act x = {0};
    while (mu_run_claim(r, s->n_group * n_chunk, 1, CLAIM, &begin, &end)) {
        for (int i = begin; i < end; i++) {
            const struct group *g = &s->group[i / n_chunk];
            int row = i % n_chunk * rows;
            if (gathered != i / n_chunk) x = gather(r, g);
            gathered = i / n_chunk;
            hidden_piece(r, layer, g, &x, (struct mu_range){row, row + rows < n_row ? row + rows : n_row});
            mu_run_breathe(r);
        }
    }
}

/* Rows of what each token's experts add together. */
static void sum_piece(const struct run *r, int layer, const struct job *job, const struct act *in, int n_tok,
                      struct mu_range rows)
{
    const struct mu_shard *s = r->s;
    const struct mu_mat *down = mu_expert_mats(s, layer, MU_T_DOWN);
    int n_used = s->cfg.n_expert_used, n = mu_range_len(rows);
    float *part = r->mine->up, *out = job->out + rows.begin;
    for (int t = 0; t < n_tok; t++) memset(out + (size_t)t * job->stride, 0, (size_t)n * sizeof *out);
    for (int i = 0; i < s->n_group; i++) {
        const struct group *g = &s->group[i];
        struct mu_act x = slice(in, s->cfg.d_ff, g->begin, g->end);
        s->k->matmul(&down[g->expert], &x, rows.begin, rows.end, part - rows.begin, (size_t)n);
        for (int k = 0; k < x.n_tok; k++) {
            int at = s->place[g->begin + k];
            float *one = part + (size_t)k * (size_t)n;
            add_bias(s, layer, MU_T_DOWN_EXPS_B, g->expert, rows.begin, n, one);
            s->k->add_scaled(out + (size_t)(at / n_used) * job->stride, one, s->chosen_weight[at], n);
        }
        mu_run_breathe(r);
    }
    for (int t = 0; t < n_tok; t++) {
        size_t at = (size_t)t * job->stride;
        for (int i = 0; s->cfg.residual_scale != 1.0f && i < n; i++) out[at + (size_t)i] *= s->cfg.residual_scale;
        if (job->bf16) s->k->to_bf16(out + at, n, job->bf16 + at + rows.begin);
    }
}

static void sum_run(struct run *r, int layer, const struct job *job, const struct act *in, int n_tok)
{
    const struct mu_shard *s = r->s;
    int n_row = mu_range_len(s->me.model), begin, end;
    int most = most_rows(r, s->cfg.d_ff, 1) / MU_ROW_GROUP;
    while (mu_run_claim(r, (n_row + MU_ROW_GROUP - 1) / MU_ROW_GROUP, 1, most, &begin, &end)) {
        int last = end * MU_ROW_GROUP;
        sum_piece(r, layer, job, in, n_tok, (struct mu_range){begin * MU_ROW_GROUP, last < n_row ? last : n_row});
    }
}

/* The tokens' experts. A few tokens' choice costs less than a meeting. */
static void choose_all(struct run *r, int n_tok)
{
    struct mu_shard *s = r->s;
    struct mu_range mine = r->narrow ? (struct mu_range){0, r->member == 0 ? n_tok : 0} : mu_run_share(r, n_tok);
    for (int t = mine.begin; t < mine.end; t++) choose(s, t);
    if (!r->narrow) mu_run_meet(r);
    if (r->member == 0) groups_make(s, n_tok);
    mu_run_meet(r);
}

bool mu_run_experts(struct run *r, int layer)
{
    struct mu_shard *s = r->s;
    const struct layer *l = &s->layer[layer];
    int n_tok = r->n_tok;
    const struct job router = {
        .m = &l->mat[MU_T_ROUTER], .out = s->route, .stride = (size_t)s->cfg.n_expert, .bias = l->vec[MU_T_ROUTER_B]};
    mu_run_matmul(r, &router, 1, r->act, n_tok);
    mu_run_meet(r);
    choose_all(r, n_tok);
    hidden_run(r, layer);
    mu_run_meet(r);

    struct act in;
    r->n_tok = n_tok * s->cfg.n_expert_used;
    bool ok = mu_run_gather_input(r, INPUT_DOWN, s->gate, l->down_in, &in);
    r->n_tok = n_tok;
    if (!ok) return false;

    struct job sum = {.out = s->y, .stride = (size_t)mu_range_len(s->me.model)};
    mu_run_project_begin(r, &sum, l->down_round, l->vec[MU_T_POST_FFN_NORM]);
    sum_run(r, layer, &sum, &in, n_tok);
    mu_run_meet(r);
    return mu_run_project_end(r);
}
