/* A step from top to bottom: the one forward pass.
 *
 * mu_shard_step prepares on the calling thread, then all members of the pool run step_main together; phases are
 * separated by meetings (mu_run_meet). Every member makes the same decisions from the same inputs, so they meet
 * equally often. Meetings a layer for one rank:
 * five in a narrow step (a decode of one or two sequences), ten otherwise. */
#include <string.h>

#include "base/clock.h"
#include "base/fault.h"
#include "shard/device.h"
#include "shard/parts.h"

/* Everyone's token embeddings and rotation angles, or the residual from the stage before. */
static bool step_begin(struct run *r)
{
    struct mu_shard *s = r->s;
    const struct mu_step *step = s->step;
    const struct mu_gguf_tensor *embed = s->model->embed;
    struct mu_range turns = mu_run_share(r, r->n_tok), mine = mu_run_tokens(r);
    for (int t = turns.begin; t < turns.end; t++) {
        const struct mu_step_seq *q = &step->seq[s->seq_of[t]];
        int pos = (int)(q->pos0 + ((uint32_t)t - q->tok_off));
        for (int i = 0; i < s->n_rope; i++) {
            int set = i == 0 && q->far ? s->n_rope : i;
            s->k->rope_table(s->rope_freq + set * (s->cfg.n_rot / 2), s->cfg.n_rot / 2, pos, s->cfg.rope_attn_factor,
                             mu_rope_at(s, i, t));
        }
    }
    if (!s->first_stage) return mu_run_recv(r);
    for (int t = mine.begin; t < mine.end; t++) {
        float *x = r->x + (size_t)t * (size_t)s->cfg.d_model;
        s->k->dequant_row(embed->type, mu_gguf_row(embed, (uint64_t)step->ids[t]), s->cfg.d_model, x);
        if (s->cfg.embed_scale != 1.0f)
            for (int i = 0; i < s->cfg.d_model; i++) x[i] = x[i] * s->cfg.embed_scale;
    }
    if (!r->narrow) mu_run_meet(r);
    return true;
}

static struct job job_of(const struct mu_mat *m, float *out)
{
    return (struct job){.m = m, .out = out, .stride = (size_t)m->n_row};
}

struct job mu_job_biased(const struct layer *layer, enum mu_tensor_id id, enum mu_tensor_id bias, int row0, float *out)
{
    struct job job = job_of(&layer->mat[id], out);
    if (layer->vec[bias]) job.bias = layer->vec[bias] + row0;
    job.lora = layer->lora + (int)id;
    return job;
}

struct job mu_job_added(const struct mu_shard *s, const struct layer *layer, enum mu_tensor_id id,
                        enum mu_tensor_id bias, float *out)
{
    struct job job = mu_job_biased(layer, id, bias, s->me.model.begin, out);
    if (s->cfg.residual_scale != 1.0f) job.scale = s->cfg.residual_scale;
    return job;
}

void mu_run_attention(struct run *r, const struct layer *layer, int index, bool last)
{
    struct mu_shard *s = r->s;
    int q0 = s->me.heads.begin * s->cfg.d_head, kv0 = s->me.kv_heads.begin * s->cfg.d_head;
    mu_run_norm(r, layer->vec[MU_T_ATTN_NORM], layer->vec[MU_T_ATTN_NORM_B], layer->attn_in);
    const struct job jobs[] = {mu_job_biased(layer, MU_T_Q, MU_T_Q_B, q0, s->q),
                               mu_job_biased(layer, MU_T_K, MU_T_K_B, kv0, s->key),
                               mu_job_biased(layer, MU_T_V, MU_T_V_B, kv0, s->value)};
    mu_run_matmul(r, jobs, 3, r->act, r->n_tok);
    mu_run_meet(r);
    int64_t start = r->member == 0 ? mu_now_ns() : 0;
    mu_run_attend(r, index, last);
    if (r->member == 0) s->attention_ns += mu_now_ns() - start;
}

static bool attention_run(struct run *r, const struct layer *layer, int index, bool last)
{
    struct mu_shard *s = r->s;
    bool parallel = s->model->arch->parallel;
    struct act in;
    mu_run_attention(r, layer, index, last);
    if (last && s->prune) {
        r->n_tok = s->n_live;
        if (r->lora) r->lora = &s->lora_live;
    }
    if (!mu_run_gather_input(r, INPUT_O, s->attn, layer->o_in, &in)) return false;
    const struct job job = mu_job_added(s, layer, MU_T_O, MU_T_O_B, parallel ? s->y_attn : s->y);
    if (!parallel) return mu_run_project(r, &job, &in, layer->o_round, layer->vec[MU_T_POST_ATTN_NORM]);
    mu_run_matmul(r, &job, 1, &in, r->n_tok); /* my rows wait for those of down, which are the same */
    mu_run_meet(r);
    return true;
}

static enum job_act ffn_act(const struct mu_shard *s)
{
    switch (s->model->arch->ffn) {
    case MU_FFN_SILU_GATED:
    case MU_FFN_SILU_CLAMPED: break; /* the latter: experts only */
    case MU_FFN_GELU_GATED:
    case MU_FFN_GELU: return ACT_GELU;
    case MU_FFN_GELU_ERF: return ACT_GELU_ERF;
    }
    return ACT_SILU;
}

struct job mu_job_hidden(const struct mu_shard *s, const struct layer *layer, float *out)
{
    bool gated = layer->mat[MU_T_GATE].n_col > 0;
    struct job hidden =
        gated ? job_of(&layer->mat[MU_T_GATE], out) : mu_job_biased(layer, MU_T_UP, MU_T_UP_B, s->me.ff.begin, out);
    if (gated) {
        hidden.up = &layer->mat[MU_T_UP];
        hidden.lora = layer->lora + MU_T_GATE;
        hidden.lora_up = layer->lora + MU_T_UP;
    }
    hidden.act = ffn_act(s);
    return hidden;
}

void mu_run_hidden(struct run *r, const struct layer *layer)
{
    const struct job hidden = mu_job_hidden(r->s, layer, r->s->gate);
    mu_run_matmul(r, &hidden, 1, r->act, r->n_tok);
    mu_run_meet(r);
}

static bool ffn_run(struct run *r, const struct layer *layer, int index)
{
    struct mu_shard *s = r->s;
    struct act in;
    mu_run_norm(r, layer->vec[MU_T_FFN_NORM], layer->vec[MU_T_FFN_NORM_B], layer->ffn_in);
    if (s->cfg.n_expert > 0) return mu_run_experts(r, index);
    mu_run_hidden(r, layer);
    struct job down = mu_job_added(s, layer, MU_T_DOWN, MU_T_DOWN_B, s->y);
    if (s->model->arch->parallel) down.plus = s->y_attn;
    return mu_run_gather_input(r, INPUT_DOWN, s->gate, layer->down_in, &in) &&
           mu_run_project(r, &down, &in, layer->down_round, layer->vec[MU_T_POST_FFN_NORM]);
}

struct job mu_job_logits(const struct mu_shard *s, float *out)
{
    struct job job = job_of(&s->out, out);
    if (s->out_b) job.bias = s->out_b + s->me.vocab.begin;
    if (s->cfg.logit_scale != 1.0f) job.scale = s->cfg.logit_scale;
    job.cap = s->cfg.final_softcap;
    job.lora = s->n_lora;
    return job;
}

/* Final norm and output matrix, for the rows that are wanted. */
static void logits_run(struct run *r)
{
    struct mu_shard *s = r->s;
    size_t d = (size_t)s->cfg.d_model;
    bool narrow = s->n_row <= NARROW_TOKENS;
    struct act *act = narrow ? &r->mine->act : &s->act;
    struct mu_range mine = narrow ? (struct mu_range){0, s->n_row} : mu_run_share(r, s->n_row);
    for (int i = mine.begin; i < mine.end; i++) {
        memcpy(r->mine->row, r->x + (size_t)s->row[i].at * d, d * sizeof *r->x); /* x may be shared */
        mu_residual_add(r, r->mine->row, s->row[i].at);
        mu_norm_vector(s, r->mine->row, s->out_norm, s->out_norm_b, r->mine->row);
        mu_form_vector(s, s->out_in, r->mine->row, s->cfg.d_model, act, i);
    }
    if (!narrow) mu_run_meet(r);
    const struct job job = mu_job_logits(s, s->logits);
    if (r->lora) r->lora = &s->lora_row;
    mu_run_matmul(r, &job, 1, act, s->n_row);
    mu_run_meet(r);
}

static void step_main(void *arg, int member, int n_member)
{
    struct mu_shard *s = arg;
    struct run r = {.s = s,
                    .mine = &s->member[member],
                    .member = member,
                    .n_member = n_member,
                    .n_tok = s->n_tok,
                    .narrow = s->narrow,
                    .lora = s->lora_tok.n ? &s->lora_tok : NULL};
    r.x = r.narrow ? r.mine->x : s->x;
    r.act = r.narrow ? &r.mine->act : &s->act;
    if (!mu_fp_env_ok()) mu_fp_env_set(); /* a library that was loaded meanwhile may have changed it (C0) */
    if (!step_begin(&r)) return;
    int n_layer = mu_range_len(s->stage.layers), first = s->halved ? n_layer - 1 : 0;
    if (s->halved && !mu_run_halves(&r, first)) return;
    for (int l = first; l < n_layer; l++) {
        bool last = s->last_stage && l == n_layer - 1;
        if (member == 0 && s->record) {
            atomic_store_explicit(&s->record->layer, s->stage.layers.begin + l, memory_order_relaxed);
            mu_record_tick(s->record);
        }
        if (!attention_run(&r, &s->layer[l], l, last)) return;
        if (last && s->n_live == 0) return;
        if (!ffn_run(&r, &s->layer[l], l)) return;
        mu_run_breathe(&r);
    }
    if (!s->last_stage) {
        mu_run_send(&r);
        return;
    }
    mu_run_states(&r);
    if (s->n_row == 0) return;
    logits_run(&r);
    int64_t start = member == 0 ? mu_now_ns() : 0, away = member == 0 ? s->exchange_ns : 0;
    mu_run_sample(&r);
    if (member == 0) s->sampling_ns += mu_now_ns() - start - (s->exchange_ns - away);
}

/* ---- before and after ---- */

/* In the order of struct mu_shard's row[]; 4: a state. */
static int row_class(const struct mu_step_seq *q)
{
    if (q->out >= MU_OUT_STATE) return 4;
    if (q->out != MU_OUT_SAMPLE) return 0;
    return mu_sample_whole(q) ? 1 : mu_sample_adjusted(q) ? 2 : 3;
}

/* Rows of logits, sorted by what they are for; the tokens behind them, ascending. */
static void rows_plan(struct mu_shard *s)
{
    const struct mu_step *step = s->step;
    s->n_row = s->n_host = s->n_whole = s->n_result = s->n_live = 0;
    if (!s->last_stage) return;
    int n_live = 0;
    for (uint32_t i = 0; i < step->n_seq; i++) {
        const struct mu_step_seq *q = &step->seq[i];
        if (q->out == MU_OUT_NONE) continue;
        bool all = q->out == MU_OUT_ALL || q->out == MU_OUT_STATE_SUM;
        for (uint32_t t = all ? 0 : q->n_tok - 1; t < q->n_tok; t++) s->live[n_live++] = (int32_t)(q->tok_off + t);
    }
    s->n_live = n_live;
    s->prune = !s->narrow && !s->decode && n_live < s->n_tok; /* a decode's attention leaves tokens where they are */
    for (int pass = 0, n = 0; pass < 5; pass++) {
        for (int i = 0; i < n_live; i++) {
            const struct mu_step_seq *q = &step->seq[s->seq_of[s->live[i]]];
            if (row_class(q) == pass)
                s->row[n++] = (struct row){.at = s->prune ? i : s->live[i], .seq = s->seq_of[s->live[i]]};
        }
        if (pass == 0) s->n_result = n;
        if (pass <= 1) s->n_whole = n;
        if (pass <= 2) s->n_host = n;
        if (pass <= 3) s->n_row = n;
    }
    if (!s->dev) s->n_host = s->n_row;
}

static enum mu_status step_check(const struct mu_shard *s, const struct mu_step *step, struct mu_err *err)
{
    uint32_t tok = 0;
    if (step->n_tok > (uint32_t)s->serving.step_tokens || step->n_seq > (uint32_t)s->serving.n_slot)
        return mu_fail(err, MU_EPROTO, "step %llu has %u tokens of %u sequences, expected at most %d of %d",
                       (unsigned long long)step->number, step->n_tok, step->n_seq, s->serving.step_tokens,
                       s->serving.n_slot);
    for (uint32_t i = 0; i < step->n_seq; i++) {
        const struct mu_step_seq *q = &step->seq[i];
        if (q->tok_off != tok || q->n_tok == 0 || q->n_tok > step->n_tok - tok)
            return mu_fail(err, MU_EPROTO, "step %llu: sequence %u has tokens %u … of %u",
                           (unsigned long long)step->number, i, q->tok_off, step->n_tok);
        if (q->adapter > s->serving.n_adapter)
            return mu_fail(err, MU_EPROTO, "step %llu: sequence %u has adapter %u of %d",
                           (unsigned long long)step->number, i, q->adapter, s->serving.n_adapter);
        if (q->adjust_off > step->n_adjust || q->n_adjust > step->n_adjust - q->adjust_off || q->mask > step->n_mask)
            return mu_fail(err, MU_EPROTO, "step %llu: sequence %u has adjustments or a mask that are not there",
                           (unsigned long long)step->number, i);
        tok += q->n_tok;
    }
    for (uint32_t i = 0; i < step->n_tok; i++)
        if (step->ids[i] < 0 || step->ids[i] >= s->cfg.n_vocab)
            return mu_fail(err, MU_EPROTO, "step %llu: token id %d, expected 0 … %d", (unsigned long long)step->number,
                           step->ids[i], s->cfg.n_vocab - 1);
    return tok == step->n_tok ? MU_OK
                              : mu_fail(err, MU_EPROTO, "step %llu announces %u tokens, but its sequences have %u",
                                        (unsigned long long)step->number, step->n_tok, tok);
}

static void step_prepare(struct mu_shard *s, const struct mu_step *step)
{
    s->step = step;
    s->n_tok = (int)step->n_tok;
    s->narrow = s->n_tok <= NARROW_TOKENS;
    s->decode = step->n_seq == step->n_tok;
    for (uint32_t i = 1; i < step->n_seq; i++) /* then keys are read that another item writes */
        if (step->seq[i].slot == step->seq[i - 1].slot) s->decode = false;
    s->failed = MU_OK;
    for (uint32_t i = 0; i < step->n_seq; i++) {
        for (uint32_t t = 0; t < step->seq[i].n_tok; t++) s->seq_of[step->seq[i].tok_off + t] = (int32_t)i;
        s->id[i] = -1;
    }
    s->prune = false;
    rows_plan(s);
    mu_lora_plan(s);
    mu_attend_plan(s);
    mu_halves_plan(s);
    for (int i = 0; i < N_COUNTER; i++) atomic_store_explicit(&s->counter[i].next, 0, memory_order_relaxed);
}

int mu_shard_idle(struct mu_shard *s, struct mu_err *err)
{
    for (int t = 0; t < MU_SHARD_TICKETS && s->n_sent > 0; t++) {
        if (!s->sent[t]) continue;
        int done = s->comm.send_test(s->comm.ctx, t, err);
        if (done < 0) return -1;
        if (done == 0) continue;
        s->sent[t] = false;
        s->n_sent--;
    }
    return s->n_sent > 0 ? 0 : s->dev ? mu_dev_hop_test(s, err) : 1;
}

/* A free buffer for this step's residual. */
static enum mu_status ticket_take(struct mu_shard *s, struct mu_err *err)
{
    if (mu_shard_idle(s, err) < 0) return err ? err->code : MU_EPEER;
    s->ticket = (s->ticket + 1) % MU_SHARD_TICKETS;
    if (!s->sent[s->ticket]) return MU_OK;
    int64_t start = mu_now_ns();
    enum mu_status st = s->comm.send_wait(s->comm.ctx, s->ticket, err);
    s->send_ns += mu_now_ns() - start;
    if (st != MU_OK) return st;
    s->sent[s->ticket] = false;
    s->n_sent--;
    return MU_OK;
}

static enum mu_status step_faults(const struct mu_step *step, struct mu_err *err)
{
    bool hit = mu_fault_hit("rank.step");
    for (uint32_t i = 0; i < step->n_tok; i++) hit |= mu_fault_value("rank.token", step->ids[i]);
    return hit ? mu_fail(err, MU_ENOMEM, "step %llu: a fault point was hit", (unsigned long long)step->number) : MU_OK;
}

static void record_times(struct mu_shard *s)
{
    const struct {
        _Atomic uint64_t *to;
        int64_t ns;
    } time[] = {{&s->record->compute_ns, (int64_t)(s->times.compute_s * 1e9)},
                {&s->record->attention_ns, s->attention_ns},
                {&s->record->sampling_ns, s->sampling_ns},
                {&s->record->exchange_ns, s->exchange_ns},
                {&s->record->recv_ns, s->recv_ns},
                {&s->record->send_ns, s->send_ns}};
    for (size_t i = 0; i < sizeof time / sizeof *time; i++)
        atomic_store_explicit(time[i].to, (uint64_t)time[i].ns, memory_order_relaxed);
}

enum mu_status mu_shard_step(struct mu_shard *s, const struct mu_step *step, struct mu_step_result *result_out,
                             struct mu_err *err)
{
    struct mu_err own = MU_ERR_INIT;
    if (!err) err = &own;
    int64_t start = mu_now_ns(), elsewhere = s->exchange_ns + s->recv_ns + s->send_ns;
    if (s->record) {
        atomic_store_explicit(&s->record->step, step->number, memory_order_relaxed);
        mu_record_op(s->record, MU_OP_COMPUTE, MU_RECORD_NOBODY);
        mu_record_tick(s->record);
    }
    enum mu_status st = step_faults(step, err);
    if (st == MU_OK) st = step_check(s, step, err);
    if (st == MU_OK) st = mu_kv_apply(s, step, err);
    if (st == MU_OK && !s->last_stage && step->n_tok > 0) st = ticket_take(s, err);
    if (st != MU_OK) return st;
    step_prepare(s, step);
    if (step->n_tok > 0 || s->kv.n_set > 0) {
        if (s->dev)
            mu_dev_step(s);
        else if (step->n_tok > 0)
            mu_pool_run(s->pool, step_main, s);
        if (s->failed != MU_OK) {
            *err = s->err;
            return s->failed;
        }
        mu_states_check(s);
    }
    *result_out = (struct mu_step_result){.id = s->id,
                                          .logprobs = s->leader ? s->logprobs : NULL,
                                          .logits = s->leader ? s->whole : NULL,
                                          .n_logit_row = s->leader ? s->n_result : 0,
                                          .state = s->leader ? s->state : NULL};
    int64_t spent = mu_now_ns() - start, away = s->exchange_ns + s->recv_ns + s->send_ns - elsewhere;
    s->times.compute_s += (double)(spent - away) / 1e9;
    if (s->record) record_times(s);
    if (s->record) mu_record_op(s->record, MU_OP_IDLE, MU_RECORD_NOBODY);
    return MU_OK;
}

void mu_shard_leave(struct mu_shard *s)
{
    if (s->dev) mu_dev_leave(s);
}

void mu_shard_take_times(struct mu_shard *s, struct mu_shard_times *times_out)
{
    *times_out = (struct mu_shard_times){.compute_s = s->times.compute_s,
                                         .exchange_s = (double)s->exchange_ns / 1e9,
                                         .recv_s = (double)s->recv_ns / 1e9,
                                         .send_s = (double)s->send_ns / 1e9,
                                         .attention_s = (double)s->attention_ns / 1e9,
                                         .sampling_s = (double)s->sampling_ns / 1e9};
    s->times.compute_s = 0;
    s->exchange_ns = s->recv_ns = s->send_ns = s->attention_ns = s->sampling_ns = 0;
}

void mu_shard_set_trace(struct mu_shard *s, struct mu_shard_trace *trace)
{
    s->trace = trace;
}
