/* LoRA (C9): what a sequence's adapter adds to the products of its tokens.
 *
 *   u = A·x̂      whole on every rank of the stage, before the matrix's own product is begun: a phase of its own
 *   y = fmaf(strength, B·u, W·x)      with each piece of the product, for the piece's rows and tokens
 *
 * The tokens of a step lie sequence after sequence; neighbours with the same adapter and strength are a group and share
 * each pass over A and B. Where no sequence of a step has an adapter, nothing here runs; where one has, a product whose
 * matrix no adapter of the step touches costs nothing.
 *
 * Every rank computes all of A·x̂: rank × n_col operations are little beside the share of W, and the alternative, shares
 * of u and an exchange, would add a round trip to each matrix. x̂ is what the matrix itself sees of x, widened to f32. */
#include <string.h>

#include "base/alloc.h"
#include "shard/device.h"

enum { ALIGN = 64 };

/* ---- loading ---- */

struct packing {
    struct mu_shard *s;
    char *at;              /* the next free byte */
    char *raw;             /* MU_ROW_GROUP rows as mat_pack wants them */
    char *row;             /* one of the file: its own may lie anywhere */
    struct dev_loader *ld; /* onto a device; NULL: here */
    struct mu_err *err;
};

static size_t mat_bytes(const struct mu_shard *s, uint32_t type, int n_row, int n_col)
{
    return s->dev ? s->dev->ops->mat_bytes(type, n_row, n_col) : s->k->mat_bytes(type, n_row, n_col);
}

/* The file's row, in the type that is kept. */
static bool row_fill(const struct packing *p, const uint8_t *from, size_t from_bytes, uint32_t type, int n_col,
                     void *to)
{
    if (type != mu_lora_kept_as(type)) return p->s->k->dequant_row(type, memcpy(p->row, from, from_bytes), n_col, to);
    memcpy(to, from, from_bytes);
    return true;
}

/* Packs n_row rows of one of the two; row(l, row0 + i) is its i-th. */
static bool mat_fill(struct packing *p, struct mu_mat *m, const struct mu_lora *l, uint32_t type,
                     const uint8_t *row(const struct mu_lora *, int), int row0, int n_row, int n_col)
{
    uint32_t kept = mu_lora_kept_as(type);
    size_t row_bytes = (size_t)n_col * (kept == MU_F16 ? sizeof(uint16_t) : sizeof(float));
    size_t from_bytes = row == mu_lora_a_row ? l->a_row_bytes : l->b_row_bytes;
    *m = (struct mu_mat){.type = kept, .n_row = n_row, .n_col = n_col, .data = p->at};
    p->at += (mat_bytes(p->s, kept, n_row, n_col) + ALIGN - 1) & ~(size_t)(ALIGN - 1);
    for (int r = 0, n; r < n_row; r += n) {
        char *to = p->raw;
        n = n_row - r < MU_ROW_GROUP ? n_row - r : MU_ROW_GROUP;
        if (p->ld) {
            n = mu_dev_loader_take(p->ld, m, r, row_bytes, 0, &to);
            if (n == 0 && mu_dev_loader_flush(p->ld, p->err) != MU_OK) return false;
        }
        for (int i = 0; i < n; i++)
            if (!row_fill(p, row(l, row0 + r + i), from_bytes, type, n_col, to + (size_t)i * row_bytes)) return false;
        if (!p->ld && !p->s->k->mat_pack(m, r, r + n, p->raw)) return false;
    }
    return true;
}

/* Of the adapter (from 1), what key stands for; n_row rows of B are ours. */
static enum mu_status pair_fill(struct packing *p, int adapter, int key, const struct mu_lora *l, int row0, int n_row,
                                struct mu_err *err)
{
    const struct mu_adapter_spec *spec = &p->s->adapters->at[adapter - 1]->spec;
    struct lora_pair *pair = mu_lora_pair(p->s, adapter, key);
    if (l->rank == 0) return MU_OK;
    bool good = mat_fill(p, &pair->a, l, l->a_type, mu_lora_a_row, 0, l->rank, l->n_col);
    if (good && n_row > 0) good = mat_fill(p, &pair->b, l, l->b_type, mu_lora_b_row, row0, n_row, l->rank);
    pair->scale = l->scale * spec->scale;
    if (!good && p->ld && p->s->failed != MU_OK) return p->s->failed; /* the device's, which it has told */
    return good ? MU_OK
                : mu_fail(err, MU_EFORMAT, "adapter '%s' (%.200s): a weight is not finite", spec->name, spec->path);
}

/* On a device what is not finite shows at the end. */
static enum mu_status adapter_end(struct packing *p, int adapter, struct mu_err *err)
{
    const struct mu_adapter_spec *spec = &p->s->adapters->at[adapter - 1]->spec;
    int bad = -1;
    if (!p->ld) return MU_OK;
    enum mu_status st = mu_dev_loader_flush(p->ld, err);
    if (st == MU_OK) st = mu_dev_loader_end(p->ld, &bad, err);
    if (st != MU_OK || bad < 0) return st;
    return mu_fail(err, MU_EFORMAT, "adapter '%s' (%.200s): a weight is not finite", spec->name, spec->path);
}

static enum mu_status adapter_fill(struct packing *p, int adapter, struct mu_err *err)
{
    struct mu_shard *s = p->s;
    const struct mu_adapter *ad = s->adapters->at[adapter - 1];
    enum mu_status st = MU_OK;
    int key = 1;
    for (int l = s->stage.layers.begin; l < s->stage.layers.end; l++) {
        for (int id = 0; id < MU_T_MATRIX_COUNT; id++, key++) {
            int row0, n_row = mu_plan_rows(s->model, &s->me, (enum mu_tensor_id)id, &row0);
            MU_TRY(st, pair_fill(p, adapter, key, &ad->layer[l][id], row0, n_row, err), done);
        }
        if (s->record) mu_record_tick(s->record);
    }
    if (s->last_stage)
        MU_TRY(st, pair_fill(p, adapter, key, &ad->out, s->me.vocab.begin, mu_range_len(s->me.vocab), err), done);
    st = adapter_end(p, adapter, err);
done:
    return st;
}

enum mu_status mu_lora_load(struct mu_shard *s, const struct mu_shard_options *opt, struct mu_err *err)
{
    if (s->serving.n_adapter == 0) return MU_OK;
    enum mu_status st = MU_OK;
    size_t n_slot = (size_t)s->serving.n_slot, n_adapter = (size_t)s->serving.n_adapter;
    size_t widest = (size_t)mu_scratch_max_col(&s->cfg);
    struct packing p = {.s = s, .err = err};
    if (widest < MU_MAX_LORA_RANK) widest = MU_MAX_LORA_RANK;
    s->n_lora = mu_range_len(s->stage.layers) * MU_T_MATRIX_COUNT + 1;
    s->lora = mu_calloc(n_adapter, (size_t)s->n_lora * sizeof *s->lora);
    s->lora_group = mu_calloc(3 * n_slot, sizeof *s->lora_group);
    p.raw = mu_aligned_alloc(ALIGN, (MU_ROW_GROUP + 1) * widest * sizeof(float)); /* no type is wider than F32 */
    uint64_t bytes = mu_plan_adapter_bytes_by(s->dev ? s->dev->ops->mat_bytes : s->k->mat_bytes, s->model, &s->plan,
                                              opt->rank, s->adapters);
    bool here = bytes > 0 && !s->dev;
    if (here) s->lora_data.bytes = (size_t)bytes;
    if (here) s->lora_data.p = mu_pages_alloc(s->lora_data.bytes);
    mu_numa_bind(s->numa, s->lora_data.p, s->lora_data.bytes);
    if (!s->lora || !s->lora_group || !p.raw || (here && !s->lora_data.p)) {
        st = mu_fail(err, MU_ENOMEM, "no memory for %d adapters of rank %d (%llu MB): load fewer of them",
                     s->serving.n_adapter, opt->rank, (unsigned long long)(bytes >> 20));
        goto done;
    }
    s->lora_tok.at = s->lora_group;
    s->lora_live.at = s->lora_group + n_slot;
    s->lora_row.at = s->lora_group + 2 * n_slot;
    p.at = s->lora_data.p;
    if (s->dev) {
        MU_TRY(st, mu_dev_alloc(s, (size_t)bytes, "adapters", &s->dev->lora, err), done);
        MU_TRY(st, mu_dev_loader_open(s, bytes, MU_ROW_GROUP * widest * sizeof(float), 1, &p.ld, err), done);
        p.at = s->dev->lora;
    }
    p.row = p.raw + MU_ROW_GROUP * widest * sizeof(float);
    for (int i = 1; i <= s->serving.n_adapter && st == MU_OK; i++) st = adapter_fill(&p, i, err);
done:
    mu_dev_loader_close(p.ld);
    mu_free(p.raw);
    return st;
}

/* ---- before a step ---- */

/* Token (or row) `at` belongs to sequence q; they come in order. */
static void group_add(struct lora_groups *g, const struct mu_step_seq *q, int at, int n)
{
    struct lora_group *last = g->n ? &g->at[g->n - 1] : NULL;
    if (q->adapter == 0) return;
    if (last && last->end == at && last->adapter == q->adapter && last->scale == q->adapter_scale)
        last->end = at + n;
    else
        g->at[g->n++] =
            (struct lora_group){.adapter = q->adapter, .begin = at, .end = at + n, .scale = q->adapter_scale};
}

void mu_lora_plan(struct mu_shard *s)
{
    const struct mu_step *step = s->step;
    s->lora_tok.n = s->lora_live.n = s->lora_row.n = 0;
    if (s->serving.n_adapter == 0) return;
    for (uint32_t i = 0; i < step->n_seq; i++)
        group_add(&s->lora_tok, &step->seq[i], (int)step->seq[i].tok_off, (int)step->seq[i].n_tok);
    if (s->lora_tok.n == 0) return;
    for (int i = 0; s->prune && i < s->n_live; i++) group_add(&s->lora_live, &step->seq[s->seq_of[s->live[i]]], i, 1);
    for (int i = 0; i < s->n_row; i++) group_add(&s->lora_row, &step->seq[s->row[i].seq], i, 1);
}

/* ---- in a step ---- */

/* Where a group's u of one matrix lies: [its tokens][rank]. */
static float *u_at(const struct mu_shard *s, int slot, const struct lora_group *g)
{
    return s->lora_u +
           ((size_t)slot * (size_t)s->serving.step_tokens + (size_t)g->begin) * (size_t)s->serving.lora_rank;
}

static int key_of(const struct job *job, int i)
{
    return i == 0 ? job->lora : job->lora_up;
}

static bool touched(const struct run *r, const struct job *job, int n_job)
{
    for (int g = 0; g < r->lora->n; g++)
        for (int j = 0; j < n_job; j++)
            for (int i = 0; i < 2; i++)
                if (key_of(&job[j], i) && mu_lora_pair(r->s, r->lora->at[g].adapter, key_of(&job[j], i))->a.n_row)
                    return true;
    return false;
}

/* n tokens from t on of a matrix's input, widened to f32: as they are, or in this member's scratch. */
static const float *input_widen(const struct run *r, const struct mu_mat *m, const struct act *act, int t, int n)
{
    size_t count = (size_t)n * (size_t)m->n_col, at = (size_t)t * (size_t)m->n_col;
    float *to = r->mine->lora_x;
    switch (mu_form_of(m->type)) {
    case FORM_Q8:
        for (size_t i = 0; i < count; i++) to[i] = (float)act->q[at + i] * act->s[(at + i) / MU_Q_BLOCK];
        return to;
    case FORM_BF16:
        for (size_t i = 0; i < count; i++) to[i] = mu_bf16_to_f32(act->bf16[at + i]);
        return to;
    default: return act->f32 + at;
    }
}

/* u of tokens [t0, t1) of a group, for one matrix. */
static void inner_item(const struct run *r, const struct mu_mat *m, int key, int slot, const struct lora_group *g,
                       int t0, int t1, const struct act *act)
{
    const struct lora_pair *pair = mu_lora_pair(r->s, g->adapter, key);
    int rank = pair->a.n_row;
    if (rank == 0 || m->n_row == 0) return;
    struct mu_act x = {.n_tok = t1 - t0, .n_col = m->n_col, .f32 = input_widen(r, m, act, t0, t1 - t0)};
    r->s->k->matmul(&pair->a, &x, 0, rank, u_at(r->s, slot, g) + (size_t)(t0 - g->begin) * (size_t)rank, (size_t)rank);
}

static int group_blocks(const struct lora_group *g)
{
    return (g->end - g->begin + LORA_TOKENS - 1) / LORA_TOKENS;
}

void mu_lora_inner(struct run *r, const struct job *job, int n_job, const struct act *act)
{
    int n_slot = n_job == 1 && job->up ? 2 : n_job, n_block = 0, begin, end;
    if (!r->lora || !touched(r, job, n_job)) return;
    for (int g = 0; g < r->lora->n; g++) n_block += group_blocks(&r->lora->at[g]);
    while (mu_run_claim(r, n_block * n_slot, 1, 4, &begin, &end)) {
        for (int i = begin; i < end; i++) {
            int slot = i % n_slot, block = i / n_slot;
            const struct lora_group *g = r->lora->at;
            for (; block >= group_blocks(g); g++) block -= group_blocks(g);
            const struct job *j = n_job == 1 ? job : &job[slot];
            bool up = n_job == 1 && slot == 1;
            int key = up ? j->lora_up : j->lora, t0 = g->begin + block * LORA_TOKENS;
            if (key)
                inner_item(r, up ? j->up : j->m, key, slot, g, t0,
                           t0 + LORA_TOKENS < g->end ? t0 + LORA_TOKENS : g->end, act);
        }
        mu_run_breathe(r);
    }
    mu_run_meet(r);
}

/* One group's part of a piece: tokens [t0, t1), of which the first has its row 0 at out. */
static void outer_group(const struct run *r, const struct lora_pair *pair, int slot, const struct lora_group *g, int t0,
                        int t1, int row0, int row1, float *out, size_t stride)
{
    const struct mu_kernels *k = r->s->k;
    size_t rank = (size_t)pair->a.n_row;
    float strength = pair->scale * g->scale;
    int n_tok = t1 - t0, most = MU_UP_TILE / n_tok / MU_ROW_GROUP * MU_ROW_GROUP;
    struct mu_act u = {
        .n_tok = n_tok, .n_col = pair->a.n_row, .f32 = u_at(r->s, slot, g) + (size_t)(t0 - g->begin) * rank};
    for (int begin = row0; begin < row1; begin += most) {
        int end = begin + most < row1 ? begin + most : row1;
        size_t width = (size_t)(end - begin);
        k->matmul(&pair->b, &u, begin, end, r->mine->lora_y - begin, width);
        for (int t = 0; t < n_tok; t++)
            k->add_scaled(out + (size_t)t * stride + begin, r->mine->lora_y + (size_t)t * width, strength, end - begin);
    }
}

void mu_lora_add(const struct run *r, int key, int slot, int row0, int row1, int t0, int n_tok, float *out,
                 size_t stride)
{
    if (!r->lora || !key) return;
    for (int i = 0; i < r->lora->n; i++) {
        const struct lora_group *g = &r->lora->at[i];
        const struct lora_pair *pair = mu_lora_pair(r->s, g->adapter, key);
        int begin = g->begin > t0 ? g->begin : t0, end = g->end < t0 + n_tok ? g->end : t0 + n_tok;
        if (begin < end && pair->a.n_row)
            outer_group(r, pair, slot, g, begin, end, row0, row1, out + (size_t)(begin - t0) * stride, stride);
    }
}
