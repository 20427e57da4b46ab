/* What travels between the ranks of a stage, and between stages.
 *
 * A gather buffer holds one part a rank, [n_tok][its width]:
 *
 *   ① ③  q8    int8 [n_tok][w], then f32 scales [n_tok][w/32]      quantised consumers, boundaries on blocks of 32
 *         bf16  [n_tok][w]                                          BF16 consumers
 *         f32   [n_tok][w]                                          F16 and F32 consumers; blocks cut by a boundary
 *         (formed after)
 *   ② ④  bf16  [n_tok][w]                                          quantised matrices
 *         f32   [n_tok][w]                                          float matrices
 *
 * The format moves bytes and never changes a bit of the result. Member 0 talks to the transport; in a narrow run it
 * also packs and unpacks alone. With one rank nothing is copied at all. */
#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "shard/parts.h"

static size_t wire_bytes(enum wire wire, size_t n)
{
    switch (wire) {
    case WIRE_BF16: return n * sizeof(uint16_t);
    case WIRE_Q8: return n + n / MU_Q_BLOCK * sizeof(float);
    case WIRE_F32: break;
    }
    return n * sizeof(float);
}

struct mu_range mu_input_columns(const struct mu_shard *s, enum input input, int local)
{
    const struct mu_plan_rank *rank = &s->plan.rank[s->stage.first_rank + local];
    int d = s->cfg.d_head;
    if (input == INPUT_DOWN) return rank->ff;
    return (struct mu_range){rank->heads.begin * d, rank->heads.end * d};
}

struct mu_range mu_model_rows(const struct mu_shard *s, int local)
{
    return s->plan.rank[s->stage.first_rank + local].model;
}

static size_t part_after(struct parts *p, int i, size_t at, size_t len)
{
    p->off[i] = at;
    p->len[i] = len;
    return (at + len + 63) & ~(size_t)63;
}

struct parts mu_input_parts(const struct mu_shard *s, enum input input, enum wire wire, int n_tok)
{
    struct parts p;
    size_t at = 0;
    for (int i = 0; i < s->stage.n_rank; i++)
        at = part_after(&p, i, at,
                        wire_bytes(wire, (size_t)mu_range_len(mu_input_columns(s, input, i)) * (size_t)n_tok));
    return p;
}

struct parts mu_model_parts(const struct mu_shard *s, enum wire wire, int n_tok)
{
    struct parts p;
    size_t at = 0;
    for (int i = 0; i < s->stage.n_rank; i++)
        at = part_after(&p, i, at, wire_bytes(wire, (size_t)mu_range_len(mu_model_rows(s, i)) * (size_t)n_tok));
    return p;
}

/* ---- member 0 and the transport ---- */

int64_t mu_talk_begin(struct mu_shard *s, enum mu_rank_op op, int waiting_on)
{
    if (s->record) mu_record_op(s->record, op, waiting_on);
    return mu_now_ns();
}

void mu_talk_end(struct mu_shard *s, enum mu_rank_op op, int64_t start, int64_t *spent_ns)
{
    int64_t end = mu_now_ns();
    *spent_ns += end - start;
    if (s->trace && s->trace->n < s->trace->max) s->trace->span[s->trace->n++] = (struct mu_shard_span){start, end, op};
    if (!s->record) return;
    mu_record_op(s->record, MU_OP_COMPUTE, MU_RECORD_NOBODY);
    mu_record_tick(s->record);
}

void mu_gather_now(struct mu_shard *s, void *buf, const struct parts *parts)
{
    int64_t start = mu_talk_begin(s, MU_OP_EXCHANGE, MU_RECORD_NOBODY);
    s->failed = s->comm.gather(s->comm.ctx, buf, parts->off, parts->len, &s->err);
    mu_talk_end(s, MU_OP_EXCHANGE, start, &s->exchange_ns);
}

bool mu_run_gather(struct run *r, void *buf, const struct parts *parts)
{
    if (r->member == 0) mu_gather_now(r->s, buf, parts);
    mu_run_meet(r);
    return r->s->failed == MU_OK;
}

/* Of a half: begun, and ended when it is wanted. What is noted as an exchange is the wait for its end. */
static void half_gather_begin(struct mu_shard *s, const struct parts *parts)
{
    struct mu_shard *owner = s->owner;
    if (owner->failed != MU_OK) return; /* the other half's: told at the next end */
    int64_t start = mu_now_ns();
    owner->failed = s->comm.gather_begin(s->comm.ctx, s->half_of, s->gather, parts->off, parts->len, &owner->err);
    owner->exchange_ns += mu_now_ns() - start;
}

static bool half_gather_end(struct run *r)
{
    struct mu_shard *owner = r->s->owner;
    if (r->member == 0 && owner->failed == MU_OK) {
        int64_t start = mu_talk_begin(owner, MU_OP_EXCHANGE, MU_RECORD_NOBODY);
        owner->failed = owner->comm.gather_end(owner->comm.ctx, r->s->half_of, &owner->err);
        mu_talk_end(owner, MU_OP_EXCHANGE, start, &owner->exchange_ns);
    }
    mu_run_meet(r);
    return owner->failed == MU_OK; /* written before a meeting, read after it */
}

/* ---- ① and ③ ---- */

enum wire mu_input_wire(const struct mu_shard *s, enum input input, unsigned forms)
{
    if (forms == FORM_BF16) return WIRE_BF16;
    if (forms != FORM_Q8) return WIRE_F32;
    for (int i = 0; i < s->stage.n_rank; i++)
        if (mu_input_columns(s, input, i).begin % MU_Q_BLOCK || mu_input_columns(s, input, i).end % MU_Q_BLOCK)
            return WIRE_F32;
    return WIRE_Q8;
}

static void encode(struct run *r, enum wire wire, const float *src, int width, char *part, struct mu_range tokens)
{
    const struct mu_shard *s = r->s;
    size_t w = (size_t)width, n_block = w / MU_Q_BLOCK;
    struct act to = {.f32 = (float *)(void *)part, .bf16 = (uint16_t *)(void *)part, .q = (int8_t *)part};
    to.s = (float *)(void *)(part + w * (size_t)r->n_tok);
    for (int t = tokens.begin; t < tokens.end; t++) {
        const float *v = src + (size_t)t * w;
        if (wire == WIRE_Q8) { /* sums are made on the other side */
            struct act one = {.q = to.q + (size_t)t * w, .s = to.s + (size_t)t * n_block, .sum = r->mine->act.sum};
            mu_form_vector(s, FORM_Q8, v, width, &one, 0);
        } else {
            mu_form_vector(s, wire == WIRE_BF16 ? FORM_BF16 : FORM_F32, v, width, &to, t);
        }
    }
}

static void decode(struct run *r, enum input input, enum wire wire, const struct parts *parts, int n_col,
                   unsigned forms, struct mu_range tokens)
{
    const struct mu_shard *s = r->s;
    const struct act *act = &s->act;
    size_t n = (size_t)n_col, blocks = n / MU_Q_BLOCK;
    for (int t = tokens.begin; t < tokens.end; t++) {
        float *row = forms == FORM_F32 ? act->f32 + (size_t)t * n : r->mine->row;
        for (int i = 0; i < s->stage.n_rank; i++) {
            struct mu_range c = mu_input_columns(s, input, i);
            size_t w = (size_t)mu_range_len(c), at = (size_t)t * w, to = (size_t)c.begin;
            const char *part = s->gather + parts->off[i];
            if (w == 0) continue;
            if (wire == WIRE_F32) {
                memcpy(row + to, part + at * sizeof(float), w * sizeof(float));
            } else if (wire == WIRE_BF16) {
                memcpy(act->bf16 + (size_t)t * n + to, part + at * sizeof(uint16_t), w * sizeof(uint16_t));
            } else {
                const char *scales = part + w * (size_t)r->n_tok;
                memcpy(act->q + (size_t)t * n + to, part + at, w);
                memcpy(act->s + (size_t)t * blocks + to / MU_Q_BLOCK, scales + at / MU_Q_BLOCK * sizeof(float),
                       w / MU_Q_BLOCK * sizeof(float));
            }
        }
        if (wire == WIRE_Q8) s->k->block_sums(act->q + (size_t)t * n, n_col, act->sum + 2 * (size_t)t * blocks);
        if (wire == WIRE_F32 && forms != FORM_F32) mu_form_vector(s, forms, row, n_col, act, t);
    }
}

/* One rank: src is whole already. */
static void form_input(struct run *r, const float *src, int n_col, unsigned forms, struct act *act_out)
{
    *act_out = *r->act;
    if (forms & FORM_F32) act_out->f32 = (float *)src;
    if (forms == FORM_F32) return;
    struct mu_range mine = mu_run_tokens(r);
    for (int t = mine.begin; t < mine.end; t++)
        mu_form_vector(r->s, forms & ~(unsigned)FORM_F32, src + (size_t)t * (size_t)n_col, n_col, r->act, t);
    if (!r->narrow) mu_run_meet(r);
}

bool mu_run_gather_input(struct run *r, enum input input, const float *src, unsigned forms, struct act *act_out)
{
    struct mu_shard *s = r->s;
    int n_col = input == INPUT_O ? s->cfg.n_head * s->cfg.d_head : s->cfg.d_ff;
    if (s->stage.n_rank == 1) {
        form_input(r, src, n_col, forms, act_out);
        return true;
    }
    enum wire wire = mu_input_wire(s, input, forms);
    struct parts parts = mu_input_parts(s, input, wire, r->n_tok);
    struct mu_range all = {0, r->n_tok}, mine = mu_run_share(r, r->n_tok);
    int width = mu_range_len(mu_input_columns(s, input, s->me.local));
    char *part = s->gather + parts.off[s->me.local];
    *act_out = s->act;
    if (r->narrow) {
        if (r->member == 0) {
            encode(r, wire, src, width, part, all);
            mu_gather_now(s, s->gather, &parts);
            if (s->failed == MU_OK) decode(r, input, wire, &parts, n_col, forms, all);
        }
        mu_run_meet(r);
        return s->failed == MU_OK;
    }
    encode(r, wire, src, width, part, mine);
    mu_run_meet(r);
    if (!mu_run_gather(r, s->gather, &parts)) return false;
    decode(r, input, wire, &parts, n_col, forms, mine);
    mu_run_meet(r);
    return true;
}

void mu_run_input_begin(struct run *r, enum input input, const float *src, unsigned forms)
{
    struct mu_shard *s = r->s;
    enum wire wire = mu_input_wire(s, input, forms);
    struct parts parts = mu_input_parts(s, input, wire, r->n_tok);
    int width = mu_range_len(mu_input_columns(s, input, s->me.local));
    encode(r, wire, src, width, s->gather + parts.off[s->me.local], mu_run_share(r, r->n_tok));
    mu_run_meet(r);
    if (r->member == 0) half_gather_begin(s, &parts);
}

bool mu_run_input_end(struct run *r, enum input input, unsigned forms, struct act *act_out)
{
    struct mu_shard *s = r->s;
    int n_col = input == INPUT_O ? s->cfg.n_head * s->cfg.d_head : s->cfg.d_ff;
    enum wire wire = mu_input_wire(s, input, forms);
    struct parts parts = mu_input_parts(s, input, wire, r->n_tok);
    if (!half_gather_end(r)) return false;
    decode(r, input, wire, &parts, n_col, forms, mu_run_share(r, r->n_tok));
    mu_run_meet(r);
    *act_out = s->act;
    return true;
}

/* ---- ② and ④ ---- */

void mu_run_parts_begin(struct run *r)
{
    if (r->member == 0) half_gather_begin(r->s, &r->pending_parts);
}

bool mu_run_parts_end(struct run *r)
{
    return half_gather_end(r);
}

void mu_run_project_begin(struct run *r, struct job *job, bool round, const float *post)
{
    struct mu_shard *s = r->s;
    bool alone = s->stage.n_rank == 1;
    r->pending = alone ? PENDING_LOCAL : PENDING_PARTS;
    r->pending_round = round;
    r->pending_norm = post;
    if (alone) return;
    r->pending_parts = mu_model_parts(s, round ? WIRE_BF16 : WIRE_F32, r->n_tok);
    char *part = s->gather + r->pending_parts.off[s->me.local];
    if (round)
        job->bf16 = (uint16_t *)(void *)part;
    else
        job->out = (float *)(void *)part;
}

bool mu_run_project_end(struct run *r)
{
    return r->s->stage.n_rank == 1 || mu_run_gather(r, r->s->gather, &r->pending_parts);
}

bool mu_run_project(struct run *r, const struct job *project, const struct act *act, bool round, const float *post)
{
    struct job job = *project;
    mu_run_project_begin(r, &job, round, post);
    mu_run_matmul(r, &job, 1, act, r->n_tok);
    mu_run_meet(r);
    return mu_run_project_end(r);
}

/* x += what is pending of token t. */
static void add_pending(const struct run *r, float *x, int t)
{
    const struct mu_shard *s = r->s;
    if (r->pending == PENDING_LOCAL) {
        size_t n = (size_t)s->cfg.d_model;
        s->k->add(x, s->y + (size_t)t * n, s->cfg.d_model, r->pending_round);
    } else if (r->pending == PENDING_PARTS) {
        for (int i = 0; i < s->stage.n_rank; i++) {
            struct mu_range rows = mu_model_rows(s, i);
            int w = mu_range_len(rows);
            const void *part = s->gather + r->pending_parts.off[i];
            size_t at = (size_t)t * (size_t)w;
            if (w == 0) continue;
            if (r->pending_round)
                s->k->add_bf16(x + rows.begin, (const uint16_t *)part + at, w);
            else
                s->k->add(x + rows.begin, (const float *)part + at, w, 0);
        }
    }
}

void mu_residual_add(const struct run *r, float *x, int t)
{
    const struct mu_shard *s = r->s;
    float *post = r->mine->post;
    if (r->pending == PENDING_NONE) return;
    if (!r->pending_norm) {
        add_pending(r, x, t);
        return;
    }
    memset(post, 0, (size_t)s->cfg.d_model * sizeof *post);
    add_pending(r, post, t);
    mu_norm_vector(s, post, r->pending_norm, NULL, post);
    s->k->add(x, post, s->cfg.d_model, 0);
}

/* ---- between stages ---- */

void mu_recv_now(struct mu_shard *s, float *x, int n_tok)
{
    int64_t start = mu_talk_begin(s, MU_OP_RECV, MU_RECORD_NOBODY);
    s->failed = s->comm.recv(s->comm.ctx, x, (size_t)n_tok * (size_t)s->cfg.d_model * sizeof *x, &s->err);
    mu_talk_end(s, MU_OP_RECV, start, &s->recv_ns);
}

bool mu_run_recv(struct run *r)
{
    struct mu_shard *s = r->s;
    size_t n = (size_t)r->n_tok * (size_t)s->cfg.d_model;
    if (r->member == 0) mu_recv_now(s, s->x, r->n_tok);
    mu_run_meet(r);
    if (s->failed != MU_OK) return false;
    if (r->narrow) memcpy(r->x, s->x, n * sizeof *s->x);
    return true;
}

void mu_send_now(struct mu_shard *s, int n_tok)
{
    int64_t start = mu_talk_begin(s, MU_OP_SEND, MU_RECORD_NOBODY);
    const float *buf = s->send[s->ticket];
    size_t bytes = (size_t)n_tok * (size_t)s->cfg.d_model * sizeof *buf;
    s->failed = s->comm.send(s->comm.ctx, buf, bytes, s->ticket, &s->err);
    if (s->failed == MU_OK) {
        s->sent[s->ticket] = true;
        s->n_sent++;
    }
    mu_talk_end(s, MU_OP_SEND, start, &s->send_ns);
}

void mu_run_send(struct run *r)
{
    struct mu_shard *s = r->s;
    size_t d = (size_t)s->cfg.d_model;
    float *buf = s->send[s->ticket];
    struct mu_range mine = mu_run_tokens(r);
    if (r->narrow && r->member > 0) mine.end = mine.begin;
    for (int t = mine.begin; t < mine.end; t++) {
        float *x = r->x + (size_t)t * d;
        mu_residual_add(r, x, t);
        memcpy(buf + (size_t)t * d, x, d * sizeof *x);
    }
    mu_run_meet(r);
    if (r->member == 0) mu_send_now(s, r->n_tok);
}
