/* The last part of a step on a device: the final norm of the rows that are wanted, logits, and what comes of them.
 *
 *   rows [0, n_host)       whole, adjusted, or the caller's: downloaded, and chosen from here by sample.c
 *   rows [n_host, n_row)   picked on the device; a value and an id come down
 *   rows [n_row, n_live)   states: downloaded normed, and added up here by embed.c
 *
 * Logits take DEV_LOGIT_ROWS rows of memory at most: more rows come one part after another, each of which is copied out of
 * the pinned buffer before the next. */
#include <string.h>

#include "base/clock.h"
#include "shard/device.h"

static int width_of(const struct mu_shard *s)
{
    return mu_range_len(s->me.vocab);
}

/* Logits of rows [begin, end), at most DEV_LOGIT_ROWS, and the picks of those that are picked there. */
static void part_queue(struct queue *r, int begin, int end)
{
    const struct mu_shard *s = r->s;
    const struct dev *v = r->v;
    int n_col = s->cfg.d_model, pick = begin > s->n_host ? begin : s->n_host;
    size_t width = (size_t)width_of(s), at = (size_t)begin * (size_t)n_col;
    size_t block = (size_t)begin * (size_t)(n_col / MU_Q_BLOCK);
    const struct mu_act x = {.n_tok = end - begin,
                             .n_col = n_col,
                             .f32 = v->act.f32 + at,
                             .bf16 = v->act.bf16 + at,
                             .q = v->act.q + at,
                             .s = v->act.s + block,
                             .sum = v->act.sum + 2 * block};
    const struct job job = mu_job_logits(s, v->logits);
    if (width == 0) return;
    r->first = begin;
    mu_dev_matmul(r, &job, 1, &x, NULL);
    if (pick < end)
        r->ops->pick(v->d, v->logits + (size_t)(pick - begin) * width, width, end - pick, (int)width, s->me.vocab.begin,
                     v->in.draw + (pick - s->n_host), v->pick + (pick - s->n_host));
}

void mu_dev_rows(struct queue *r)
{
    struct mu_shard *s = r->s;
    int n = s->leader ? s->n_live : s->n_row; /* states are the leader's */
    unsigned forms = s->out_in | (n > s->n_row ? FORM_F32 : 0);
    const struct mu_device_norm norm = {.n_tok = n,
                                        .n = s->cfg.d_model,
                                        .x = r->x,
                                        .row = r->v->in.row,
                                        .y = r->pending,
                                        .post = mu_dev_vector(s, r->post),
                                        .y_round = r->pending_round,
                                        .kind = mu_dev_norm_kind(s),
                                        .eps = s->cfg.norm_eps,
                                        .w = mu_dev_vector(s, s->out_norm),
                                        .b = mu_dev_vector(s, s->out_norm_b),
                                        .form = mu_dev_forms(&r->v->act, forms)};
    if (n > 0) r->ops->norm(r->v->d, &norm);
    if (r->lora) r->lora = &s->lora_row;
    if (s->n_row > 0 && s->n_row <= DEV_LOGIT_ROWS) part_queue(r, 0, s->n_row);
}

/* What is in the queue is done. */
static bool finish(struct queue *r)
{
    r->ops->mark(r->v->d, DEV_MARK);
    return mu_dev_wait(r->s, DEV_MARK, "the forward pass");
}

/* Rows [begin, end) of logits into s->logits, as far as they are wanted here. Several parts wait for each other. */
static bool part_fetch(struct queue *r, int begin, int end, bool last)
{
    struct mu_shard *s = r->s;
    size_t width = (size_t)width_of(s);
    if (end > s->n_host) end = s->n_host;
    if (begin >= end || width == 0) return !last || finish(r);
    size_t bytes = (size_t)(end - begin) * width * sizeof *s->logits;
    r->ops->download(r->v->d, r->v->pinned.down, r->v->logits, bytes);
    if (!finish(r)) return false;
    memcpy(s->logits + (size_t)begin * width, r->v->pinned.down, bytes);
    return true;
}

/* Everything that the host wants of the step. */
static bool fetch(struct queue *r)
{
    struct mu_shard *s = r->s;
    size_t d = (size_t)s->cfg.d_model;
    int n_pick = s->n_row - s->n_host, n_state = s->leader ? s->n_live - s->n_row : 0;
    if (n_state > 0) /* the residual's part of what was uploaded is free again */
        r->ops->download(r->v->d, r->v->pinned.in.x, r->v->act.f32 + (size_t)s->n_row * d,
                         (size_t)n_state * d * sizeof(float));
    if (s->n_row <= DEV_LOGIT_ROWS) {
        if (n_pick > 0 && width_of(s) > 0)
            r->ops->download(r->v->d, r->v->pinned.pick, r->v->pick, (size_t)n_pick * sizeof *r->v->pick);
        return part_fetch(r, 0, s->n_row, true);
    }
    for (int begin = 0; begin < s->n_row; begin += DEV_LOGIT_ROWS) {
        int end = begin + DEV_LOGIT_ROWS < s->n_row ? begin + DEV_LOGIT_ROWS : s->n_row;
        part_queue(r, begin, end);
        if (!part_fetch(r, begin, end, false)) return false;
    }
    if (n_pick > 0 && width_of(s) > 0)
        r->ops->download(r->v->d, r->v->pinned.pick, r->v->pick, (size_t)n_pick * sizeof *r->v->pick);
    return finish(r);
}

static void sample_main(void *arg, int member, int n_member)
{
    struct run r = {.s = arg, .member = member, .n_member = n_member};
    if (!mu_fp_env_ok()) mu_fp_env_set();
    mu_run_sample(&r);
}

void mu_dev_results(struct queue *r)
{
    struct mu_shard *s = r->s;
    if (!fetch(r)) return;
    if (s->leader) mu_states_add(s, r->v->pinned.in.x, 0, s->cfg.d_model);
    if (s->n_row == 0) return;
    int64_t start = mu_now_ns(), away = s->exchange_ns;
    s->device_pick = (const struct pick *)(const void *)r->v->pinned.pick;
    if (s->n_host > 0)
        mu_pool_run(s->pool, sample_main, s);
    else
        mu_sample_finish(s);
    s->sampling_ns += mu_now_ns() - start - (s->exchange_ns - away);
}
