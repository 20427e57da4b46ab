/* A chunk of a prompt in two halves by turns: one computes while what the other has to exchange travels.
 *
 *   first half    ▓▓▓ qkv, attention ··①·· ▓ o ··②·· ▓▓▓▓ gate, up ···③···· ▓▓ down ··④·· …
 *   second half                      ▓▓▓ ··①·· ▓ ··②··           ▓▓▓▓ ···③···· ▓▓ ··④··        ▓ computes   · travels
 *
 * Tokens do not know of each other but in attention, where those of the second half need keys and values of the first one
 * and never the other way: by turns they are stored in time. So nothing of a result changes.
 *
 * Each half has a view of the shard, a copy whose buffers are its part of the whole one's, with its own sequences and
 * counters; what is not about tokens is shared. The last layer of the stage and all behind it go whole again, since
 * there tokens are left out and rows are sorted over the whole step.
 *
 * Over memory an exchange takes as long as the meetings that this would cost, so only slow links ask for it. Steps of
 * tokens of their own (decodes), with adapters, of models with experts or parallel blocks, and stages with a rank on a
 * device go whole: all ranks of a stage must decide the same, from the step, the plan and the model alone. */
#include <string.h>

#include "base/alloc.h"
#include "shard/parts.h"
#include "shard/plan_predict.h"

enum { UNIT = 16 }; /* tokens: halves begin at whole cache lines */

struct half {
    struct mu_shard view;
    struct mu_step step;
    uint32_t *block0; /* [n_slot + 1] */
};

enum mu_status mu_halves_create(struct mu_shard *s, const struct mu_shard_options *opt, struct mu_err *err)
{
    size_t n_slot = (size_t)s->serving.n_slot;
    bool wanted = opt->slow_links && s->stage.n_rank > 1 && s->cfg.n_expert == 0 && !s->model->arch->parallel;
    for (int i = s->stage.first_rank; i < s->stage.first_rank + s->stage.n_rank; i++)
        wanted = wanted && s->plan.split.device[i] == MU_ON_CPU;
    if (!wanted) return MU_OK;
    s->half = mu_aligned_alloc(64, MU_SHARD_GATHERS * sizeof *s->half);
    if (!s->half) goto no_memory;
    memset(s->half, 0, MU_SHARD_GATHERS * sizeof *s->half);
    for (int i = 0; i < MU_SHARD_GATHERS; i++) {
        struct half *h = &s->half[i];
        h->block0 = mu_calloc(n_slot + 1, sizeof *h->block0);
        h->step.seq = mu_calloc(n_slot, sizeof *h->step.seq);
        if (!h->block0 || !h->step.seq) goto no_memory;
    }
    return MU_OK;
no_memory:
    return mu_fail(err, MU_ENOMEM, "no memory for steps in halves of %d slots", s->serving.n_slot);
}

void mu_halves_destroy(struct mu_shard *s)
{
    for (int i = 0; s->half && i < MU_SHARD_GATHERS; i++) {
        mu_free(s->half[i].block0);
        mu_free(s->half[i].step.seq);
    }
    mu_free(s->half);
}

/* Tokens [begin, end) of the step; a sequence that has none of them stays, with none. */
static void half_step(const struct mu_step *whole, uint32_t begin, uint32_t end, struct mu_step *step)
{
    step->number = whole->number;
    step->n_seq = whole->n_seq;
    step->n_tok = end - begin;
    for (uint32_t i = 0; i < whole->n_seq; i++) {
        const struct mu_step_seq *from = &whole->seq[i];
        struct mu_step_seq *to = &step->seq[i];
        uint32_t a = from->tok_off, b = from->tok_off + from->n_tok;
        if (a < begin) a = begin;
        if (b > end) b = end;
        *to = *from;
        to->n_tok = b > a ? b - a : 0;
        if (to->n_tok == 0) continue;
        to->tok_off = a - begin;
        to->pos0 = from->pos0 + (a - from->tok_off);
    }
}

/* Its part of buffers of a row a token. */
static void half_view(struct mu_shard *s, struct half *h, int i, int begin, int end)
{
    struct mu_shard *v = &h->view;
    size_t t = (size_t)begin, d_head = (size_t)s->cfg.d_head, col = (size_t)mu_scratch_max_col(&s->cfg);
    size_t blocks = col / MU_Q_BLOCK + 1;
    *v = *s;
    v->half = NULL;
    v->owner = s;
    v->half_of = i;
    v->step = &h->step;
    v->n_tok = end - begin;
    v->block0 = h->block0;
    v->seq_of += t;
    v->x += t * (size_t)s->cfg.d_model;
    v->q += t * (size_t)mu_range_len(s->me.heads) * d_head;
    v->attn += t * (size_t)mu_range_len(s->me.heads) * d_head;
    v->key += t * (size_t)s->kv.n_head * d_head;
    v->value += t * (size_t)s->kv.n_head * d_head;
    v->gate += t * (size_t)mu_range_len(s->me.ff);
    v->y += t * (size_t)mu_range_len(s->me.model);
    v->rope += t * (size_t)s->cfg.n_rot;
    v->act.f32 += t * col;
    v->act.bf16 += t * col;
    v->act.q += t * col;
    v->act.s += t * blocks;
    v->act.sum += 2 * t * blocks;
    if (i > 0) v->gather += t * (col + col / 32) * sizeof(float) + 64 * MU_MAX_RANKS; /* mu_scratch_sizes */
    v->attention_ns = 0;
    for (int k = 0; k < N_COUNTER; k++) atomic_store_explicit(&v->counter[k].next, 0, memory_order_relaxed);
    mu_attend_plan(v); /* segment0, which both write, is for decodes */
}

void mu_halves_plan(struct mu_shard *s)
{
    s->halved = s->half && !s->decode && s->n_tok >= MU_HALVES_TOKENS && s->lora_tok.n == 0 &&
                mu_range_len(s->stage.layers) > 1;
    if (!s->halved) return;
    int cut = (s->n_tok / 2 + UNIT / 2) / UNIT * UNIT;
    for (int i = 0; i < MU_SHARD_GATHERS; i++) {
        int begin = i ? cut : 0, end = i ? s->n_tok : cut;
        half_step(s->step, (uint32_t)begin, (uint32_t)end, &s->half[i].step);
        half_view(s, &s->half[i], i, begin, end);
    }
}

/* ---- a layer, in four turns ---- */

static bool turn_attention(struct run *r, int l)
{
    const struct layer *layer = &r->s->layer[l];
    if (l > 0 && !mu_run_parts_end(r)) return false;
    mu_run_attention(r, layer, l, false);
    mu_run_input_begin(r, INPUT_O, r->s->attn, layer->o_in);
    return true;
}

static void project(struct run *r, struct job *job, const struct act *in, bool round, const float *post)
{
    mu_run_project_begin(r, job, round, post);
    mu_run_matmul(r, job, 1, in, r->n_tok);
    mu_run_meet(r);
    mu_run_parts_begin(r);
}

static bool turn_o(struct run *r, int l)
{
    const struct layer *layer = &r->s->layer[l];
    struct act in;
    if (!mu_run_input_end(r, INPUT_O, layer->o_in, &in)) return false;
    struct job job = mu_job_added(r->s, layer, MU_T_O, MU_T_O_B, r->s->y);
    project(r, &job, &in, layer->o_round, layer->vec[MU_T_POST_ATTN_NORM]);
    return true;
}

static bool turn_hidden(struct run *r, int l)
{
    const struct layer *layer = &r->s->layer[l];
    if (!mu_run_parts_end(r)) return false;
    mu_run_norm(r, layer->vec[MU_T_FFN_NORM], layer->vec[MU_T_FFN_NORM_B], layer->ffn_in);
    mu_run_hidden(r, layer);
    mu_run_input_begin(r, INPUT_DOWN, r->s->gate, layer->down_in);
    return true;
}

static bool turn_down(struct run *r, int l)
{
    const struct layer *layer = &r->s->layer[l];
    struct act in;
    if (!mu_run_input_end(r, INPUT_DOWN, layer->down_in, &in)) return false;
    struct job job = mu_job_added(r->s, layer, MU_T_DOWN, MU_T_DOWN_B, r->s->y);
    project(r, &job, &in, layer->down_round, layer->vec[MU_T_POST_FFN_NORM]);
    return true;
}

/* The residual with what the last turn left. */
static bool turn_last(struct run *r, int l)
{
    (void)l;
    if (!mu_run_parts_end(r)) return false;
    struct mu_range mine = mu_run_share(r, r->n_tok);
    for (int t = mine.begin; t < mine.end; t++) mu_residual_add(r, r->x + (size_t)t * (size_t)r->s->cfg.d_model, t);
    mu_run_meet(r);
    return true;
}

static bool both(struct run *half, bool (*turn)(struct run *, int), int l)
{
    return turn(&half[0], l) && turn(&half[1], l);
}

static bool layer_run(struct run *half, int l)
{
    const struct mu_shard *s = half->s;
    if (half->member == 0 && s->record) {
        atomic_store_explicit(&s->record->layer, s->stage.layers.begin + l, memory_order_relaxed);
        mu_record_tick(s->record);
    }
    return both(half, turn_attention, l) && both(half, turn_o, l) && both(half, turn_hidden, l) &&
           both(half, turn_down, l);
}

bool mu_run_halves(struct run *r, int n_layer)
{
    struct mu_shard *s = r->s;
    struct run half[MU_SHARD_GATHERS];
    bool ok = true;
    for (int i = 0; i < MU_SHARD_GATHERS; i++) {
        struct mu_shard *v = &s->half[i].view;
        half[i] = (struct run){.s = v,
                               .mine = r->mine,
                               .member = r->member,
                               .n_member = r->n_member,
                               .n_tok = v->n_tok,
                               .x = v->x,
                               .act = &v->act};
    }
    for (int l = 0; l < n_layer && ok; l++) ok = layer_run(half, l);
    ok = ok && both(half, turn_last, n_layer);
    if (r->member > 0) return ok;
    for (int i = 0; i < MU_SHARD_GATHERS; i++) s->attention_ns += half[i].s->attention_ns;
    return ok;
}
