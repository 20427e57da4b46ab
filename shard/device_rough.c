/* Tokens of prompts that are computed roughly (struct mu_device_job), in steps that have others too.
 *
 *   vectors of a step   | decodes |  prompt  | again | prompt |
 *   exact               |........................... |            one call from the first on, up to the last that wants it
 *   rough                         |..........|       |........|   a call a run, after it, over what it wrote
 *
 * Decodes come first in a leader's steps, so nothing is computed twice there. Where it is (a sequence that is computed
 * again between two prompts), that is the price of calls that begin at the first vector: forms of vectors are aligned
 * there, and need not be in between.
 *
 * Whether a token is rough depends on its place in its prompt alone, and rough results on nothing but their own vector:
 * so a request's results are the same whatever shares its steps, as ever. To the same end the last layer of the last
 * stage, where a step may leave out all tokens but those that yield something, is exact from its attention on. */
#include "shard/device.h"

void mu_dev_rough_find(struct queue *r)
{
    const struct mu_step *step = r->s->step;
    struct dev_run *run = r->v->rough;
    for (uint32_t i = 0; i < step->n_seq; i++) {
        const struct mu_step_seq *q = &step->seq[i];
        int begin = (int)q->tok_off, end = (int)(q->tok_off + q->n_tok);
        if (!q->rough)
            r->n_exact = end;
        else if (r->n_rough > 0 && run[r->n_rough - 1].end == begin)
            run[r->n_rough - 1].end = end;
        else
            run[r->n_rough++] = (struct dev_run){begin, end};
    }
}

void mu_dev_rough_end(struct queue *r)
{
    r->n_rough = 0;
    r->n_exact = r->n_tok;
}

bool mu_dev_rough_experts(const struct mu_shard *s)
{
    bool all = true;
    for (int i = 0; i < s->stage.n_rank; i++) all = all && s->plan.split.device[s->stage.first_rank + i] != MU_ON_CPU;
    return all;
}

struct mu_act mu_dev_act_from(const struct mu_act *x, int begin, int end)
{
    size_t at = (size_t)begin * (size_t)x->n_col, block = (size_t)begin * (size_t)(x->n_col / MU_Q_BLOCK);
    struct mu_act to = {.n_tok = end - begin, .n_col = x->n_col};
    if (x->f32) to.f32 = x->f32 + at;
    if (x->bf16) to.bf16 = x->bf16 + at;
    if (x->q) {
        to.q = x->q + at;
        to.s = x->s + block;
    }
    if (x->sum) to.sum = x->sum + 2 * block;
    return to;
}

/* The job's results from vector `begin` on. */
static struct mu_device_job job_from(const struct mu_device_job *job, int begin)
{
    struct mu_device_job to = *job;
    size_t rows = (size_t)job->m->n_row, dense = (size_t)begin * rows, at = (size_t)begin * job->stride;
    to.out += at;
    if (to.bf16) to.bf16 += at;
    if (to.plus) to.plus += at;
    if (to.form.bf16) to.form.bf16 += dense;
    if (to.form.q) {
        to.form.q += dense;
        to.form.s += dense / MU_Q_BLOCK;
    }
    if (to.form.sum) to.form.sum += 2 * (dense / MU_Q_BLOCK);
    if (to.lora) to.lora += dense;
    if (to.lora_up) to.lora_up += dense;
    if (to.lora_scale) to.lora_scale += begin;
    if (to.lora_up_scale) to.lora_up_scale += begin;
    return to;
}

void mu_dev_matmul_parts(const struct queue *r, const struct mu_device_job *job, int n_job, const struct mu_act *x)
{
    if (r->n_exact > 0) {
        const struct mu_act exact = mu_dev_act_from(x, 0, r->n_exact);
        r->ops->matmul(r->v->d, job, n_job, &exact, NULL);
    }
    for (int i = 0; i < r->n_rough; i++) {
        const struct dev_run *run = &r->v->rough[i];
        const struct mu_act rough = mu_dev_act_from(x, run->begin, run->end);
        struct mu_device_job to[MU_DEVICE_MAX_JOBS];
        for (int j = 0; j < n_job; j++) {
            to[j] = job_from(&job[j], run->begin);
            to[j].rough = true;
        }
        r->ops->matmul(r->v->d, to, n_job, &rough, NULL);
    }
}
