/* Work inside a step that all members share.
 *
 * Matrix products are claimed in pieces from a counter, large pieces first and small ones at the end, so that a core
 * that is disturbed delays a phase by one small piece. The little work around them (norms, quantising) has fixed
 * shares, or in a narrow run is done by every member for itself. None of this shows in a result: rows, tokens and
 * heads are computed whole wherever they are computed. */
#include <math.h>
#include <string.h>

#include "shard/parts.h"

void mu_run_meet(struct run *r)
{
    mu_pool_barrier(r->s->pool);
    r->phase++;
    /* last used N_COUNTER - 1 phases ago, and nobody counts on it before the next meeting */
    if (r->member == 0) atomic_store_explicit(&r->s->counter[(r->phase + 1) % N_COUNTER].next, 0, memory_order_relaxed);
}

bool mu_run_claim(struct run *r, int n_item, int min, int max, int *begin_out, int *end_out)
{
    atomic_int *next = &r->s->counter[r->phase % N_COUNTER].next;
    int at = atomic_load_explicit(next, memory_order_relaxed), take;
    do {
        if (at >= n_item) return false;
        int left = n_item - at;
        take = r->n_member == 1 ? left : left / (r->n_member + 1);
        if (take < min) take = min;
        if (take > max) take = max;
        if (take > left) take = left;
    } while (!atomic_compare_exchange_weak_explicit(next, &at, at + take, memory_order_relaxed, memory_order_relaxed));
    *begin_out = at;
    *end_out = at + take;
    return true;
}

struct mu_range mu_run_share(const struct run *r, int n)
{
    return (struct mu_range){(int)((long long)n * r->member / r->n_member),
                             (int)((long long)n * (r->member + 1) / r->n_member)};
}

struct mu_range mu_run_tokens(const struct run *r)
{
    return r->narrow ? (struct mu_range){0, r->n_tok} : mu_run_share(r, r->n_tok);
}

/* ---- matrix products ---- */

/* Inputs of TOKEN_BLOCK tokens stay in the L2 cache while rows go by; a multiple of the kernels' tiles of 12 and 8. */
enum {
    TOKEN_BLOCK = 96,
    PIECE_NS = 40000,    /* a piece takes about so long at most: sends are moved along between pieces */
    PIECE_MIN_NS = 2000, /* and at least: memory streams best in long runs */
    OPS_PER_NS = 250,    /* rough speeds of one thread, for sizing pieces only */
    VALUES_PER_NS = 20,
    WIDE_GROUPS = 8, /* row groups of a piece when nothing is being sent */
    PIECES_EACH = 4, /* pieces a member gets at least */
    UNIT_GROUPS = 4, /* a piece has whole fours where there are enough: kernels read so many row groups at once */
};

static int up_to(int n, int unit)
{
    return (n + unit - 1) / unit;
}

static int job_groups(const struct job *job)
{
    return (job->m->n_row + MU_ROW_GROUP - 1) / MU_ROW_GROUP;
}

/* One token's piece of a product: what the projection is, whole. */
static void piece_finish(const struct mu_kernels *k, const struct job *job, float *out, const float *up, size_t at,
                         int row0, int n)
{
    if (job->bias) k->add(out, job->bias + row0, n, 0);
    for (int i = 0; job->scale != 0.0f && i < n; i++) out[i] = out[i] * job->scale;
    if (job->plus) k->add(out, job->plus + at, n, 0);
    switch (job->act) {
    case ACT_NONE: break;
    case ACT_SILU: k->silu_mul(out, up, n, out); break;
    case ACT_GELU: k->gelu_tanh(out, up, n, out); break;
    case ACT_GELU_ERF: k->gelu_erf(out, up, n, out); break;
    }
    if (job->cap != 0.0f) k->soft_cap(out, n, job->cap);
    if (job->bf16) k->to_bf16(out, n, job->bf16 + at);
}

static void job_run(const struct run *r, const struct job *job, int slot, const struct mu_act *x, int row0, int row1,
                    int t0)
{
    const struct mu_kernels *k = r->s->k;
    size_t first = (size_t)t0 * job->stride, width = (size_t)(row1 - row0);
    k->matmul(job->m, x, row0, row1, job->out + first, job->stride);
    mu_lora_add(r, job->lora, slot, row0, row1, t0, x->n_tok, job->out + first, job->stride);
    if (job->up) { /* rows count from the matrix's first */
        k->matmul(job->up, x, row0, row1, r->mine->up - row0, width);
        mu_lora_add(r, job->lora_up, slot + 1, row0, row1, t0, x->n_tok, r->mine->up - row0, width);
    }
    for (int t = 0; t < x->n_tok; t++) {
        size_t at = first + (size_t)t * job->stride + (size_t)row0;
        piece_finish(k, job, job->out + at, job->up ? r->mine->up + (size_t)t * width : NULL, at, row0, row1 - row0);
    }
}

/* Row groups [g0, g1) of all jobs laid end to end, tokens [t0, t1). */
static void groups_run(const struct run *r, const struct job *job, int n_job, const struct act *act, int g0, int g1,
                       int t0, int t1)
{
    for (int j = 0, first = 0; j < n_job && first < g1; j++) {
        int n = job_groups(&job[j]);
        int begin = (g0 > first ? g0 - first : 0), end = (g1 - first < n ? g1 - first : n);
        first += n;
        if (begin >= end) continue;
        size_t n_col = (size_t)job[j].m->n_col, at = (size_t)t0 * n_col, block = (size_t)t0 * (n_col / MU_Q_BLOCK);
        struct mu_act x = {.n_tok = t1 - t0,
                           .n_col = job[j].m->n_col,
                           .f32 = act->f32 ? act->f32 + at : NULL,
                           .bf16 = act->bf16 ? act->bf16 + at : NULL,
                           .q = act->q + at,
                           .s = act->s + block,
                           .sum = act->sum + 2 * block};
        int row1 = end * MU_ROW_GROUP < job[j].m->n_row ? end * MU_ROW_GROUP : job[j].m->n_row;
        job_run(r, &job[j], j, &x, begin * MU_ROW_GROUP, row1, t0);
    }
}

/* With nothing to send a piece may be large: the kernels prepare their inputs once a piece, and 128 rows share that (69% of the int8 peak
 * with 32 rows, 77% with 128). Every member still gets several. */
static int pieces_wide(const struct run *r, int total, int n_block, int most)
{
    int fair = (int)((long long)total * n_block / (PIECES_EACH * r->n_member));
    if (fair > WIDE_GROUPS) fair = WIDE_GROUPS;
    return fair > most ? fair : most;
}

static long long group_ns(int n_col, int n_tok)
{
    long long values = (long long)MU_ROW_GROUP * n_col, ns = values * 2 * n_tok / OPS_PER_NS;
    return ns < values / VALUES_PER_NS ? values / VALUES_PER_NS : ns;
}

int mu_run_piece_groups(int n_col, int n_tok)
{
    return (int)(PIECE_NS / (group_ns(n_col, n_tok) + 1)) + 1;
}

void mu_run_matmul(struct run *r, const struct job *job, int n_job, const struct act *act, int n_tok)
{
    int total = 0, n_col = 1;
    for (int j = 0; j < n_job; j++) {
        total += job_groups(&job[j]);
        n_col = job[j].m->n_col;
    }
    if (total == 0 || n_tok == 0) return;
    mu_lora_inner(r, job, n_job, act);
    int block = n_tok > TOKEN_BLOCK + TOKEN_BLOCK / 3 ? TOKEN_BLOCK : n_tok;
    int n_block = (n_tok + block - 1) / block;
    int most = mu_run_piece_groups(n_col, block), begin, end;
    int least = (int)(PIECE_MIN_NS / (group_ns(n_col, block) + 1)) + 1;
    int tile = MU_UP_TILE / (MU_ROW_GROUP * block); /* of row groups whose up product a member can hold */
    if (r->s->n_sent == 0) most = n_block == 1 ? total : pieces_wide(r, total, n_block, most);
    if (job->up && most > tile) most = tile;
    if (least > most) least = most;
    if (n_block == 1) {
        int unit = most >= UNIT_GROUPS && total >= UNIT_GROUPS * PIECES_EACH * r->n_member ? UNIT_GROUPS : 1;
        while (mu_run_claim(r, up_to(total, unit), up_to(least, unit), most / unit, &begin, &end)) {
            groups_run(r, job, n_job, act, begin * unit, end * unit < total ? end * unit : total, 0, n_tok);
            mu_run_breathe(r);
        }
        return;
    }
    int n_piece = (total + most - 1) / most;
    while (mu_run_claim(r, n_block * n_piece, 1, 1, &begin, &end)) {
        int g0 = begin % n_piece * most, t0 = begin / n_piece * block;
        groups_run(r, job, n_job, act, g0, g0 + most < total ? g0 + most : total, t0,
                   t0 + block < n_tok ? t0 + block : n_tok);
        mu_run_breathe(r);
    }
}

/* ---- inputs ---- */

void mu_form_vector(const struct mu_shard *s, unsigned forms, const float *v, int n, const struct act *act, int t)
{
    size_t at = (size_t)t * (size_t)n, block = (size_t)t * (size_t)(n / MU_Q_BLOCK), n_block = (size_t)(n / MU_Q_BLOCK);
    if ((forms & FORM_Q8) && !s->k->quantize(v, n, act->q + at, act->s + block, act->sum + 2 * block)) {
        memset(act->q + at, 0, (size_t)n);
        memset(act->sum + 2 * block, 0, 2 * n_block * sizeof *act->sum);
        for (size_t b = 0; b < n_block; b++) act->s[block + b] = NAN; /* every product with it is NaN */
    }
    if (forms & FORM_BF16) s->k->to_bf16(v, n, act->bf16 + at);
    if (forms & FORM_F32) memcpy(act->f32 + at, v, (size_t)n * sizeof *v);
}

void mu_norm_vector(const struct mu_shard *s, const float *v, const float *weight, const float *bias, float *out)
{
    int n = s->cfg.d_model;
    bool finite = false;
    switch (s->model->arch->norm) {
    case MU_NORM_RMS: finite = s->k->rms_norm(v, weight, n, s->cfg.norm_eps, out); break;
    case MU_NORM_LAYER: finite = s->k->layer_norm(v, weight, bias, n, s->cfg.norm_eps, out); break;
    }
    if (finite) return;
    for (int i = 0; i < n; i++) out[i] = NAN;
}

void mu_run_norm(struct run *r, const float *weight, const float *bias, unsigned forms)
{
    struct mu_range mine = mu_run_tokens(r);
    for (int t = mine.begin; t < mine.end; t++) {
        float *x = r->x + (size_t)t * (size_t)r->s->cfg.d_model;
        mu_residual_add(r, x, t);
        mu_norm_vector(r->s, x, weight, bias, r->mine->row);
        mu_form_vector(r->s, forms, r->mine->row, r->s->cfg.d_model, r->act, t);
    }
    r->pending = PENDING_NONE;
    if (!r->narrow) mu_run_meet(r);
}
