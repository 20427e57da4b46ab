/* LoRA on a device (C9): lora.c's two products for each group of a step, then the addition as a part of what follows the matrix's
 * own product (struct mu_device_job).
 *
 *   x̂ = widen(x)        of all vectors, once for the matrices of a phase that read one form
 *   u = A·x̂            a group
 *   lora = B·u          a group's rows of [vectors][rows]; lora_scale is 0 where there is none
 *
 * A step with adapters is as many operations more as it has groups; it is not replayed. */
#include <string.h>

#include "shard/device.h"

/* Groups of the vectors that a key's matrix works on. */
static const struct lora_groups *groups_of(const struct mu_shard *s, int key)
{
    int layer = (key - 1) / MU_T_MATRIX_COUNT, id = (key - 1) % MU_T_MATRIX_COUNT;
    if (key == s->n_lora) return &s->lora_row;
    bool last = s->last_stage && layer == mu_range_len(s->stage.layers) - 1;
    return last && s->prune && id >= MU_T_O ? &s->lora_live : &s->lora_tok;
}

void mu_dev_lora_scales(const struct queue *r)
{
    const struct mu_shard *s = r->s;
    float *scale = r->v->pinned.in.lora_scale;
    size_t n_tok = (size_t)s->n_tok, bytes = (size_t)s->n_lora * n_tok * sizeof *scale;
    memset(scale, 0, bytes);
    for (int key = 1; key <= s->n_lora; key++, scale += n_tok) {
        const struct lora_groups *groups = groups_of(s, key);
        for (int i = 0; i < groups->n; i++) {
            const struct lora_group *g = &groups->at[i];
            const struct lora_pair *pair = mu_lora_pair(s, g->adapter, key);
            for (int t = g->begin; pair->a.n_row && t < g->end; t++) scale[t] = pair->scale * g->scale;
        }
    }
    r->ops->upload(r->v->d, r->v->in.lora_scale, r->v->pinned.in.lora_scale, bytes);
}

static bool touched(const struct queue *r, int key)
{
    for (int g = 0; key && g < r->lora->n; g++)
        if (mu_lora_pair(r->s, r->lora->at[g].adapter, key)->a.n_row) return true;
    return false;
}

static void product(const struct queue *r, const struct mu_mat *m, const float *x, int n_tok, float *out)
{
    const struct mu_device_job job = {.m = m, .out = out, .stride = (size_t)m->n_row};
    const struct mu_act in = {.n_tok = n_tok, .n_col = m->n_col, .f32 = x};
    r->ops->matmul(r->v->d, &job, 1, &in, NULL);
}

/* B·(A·x̂) of every group whose adapter has the matrix. */
static void outer(const struct queue *r, int key, const struct mu_mat *m, const float *x, int n_tok, float *out)
{
    for (int i = 0; i < r->lora->n; i++) {
        const struct lora_group *g = &r->lora->at[i];
        const struct lora_pair *pair = mu_lora_pair(r->s, g->adapter, key);
        int begin = g->begin > r->first ? g->begin - r->first : 0;
        int end = g->end - r->first < n_tok ? g->end - r->first : n_tok;
        if (pair->a.n_row == 0 || begin >= end) continue;
        product(r, &pair->a, x + (size_t)begin * (size_t)m->n_col, end - begin, r->v->lora_u);
        product(r, &pair->b, r->v->lora_u, end - begin, out + (size_t)begin * (size_t)m->n_row);
    }
}

/* x as a matrix of this type sees it. */
static const float *widened(const struct queue *r, uint32_t type, const struct mu_act *x)
{
    struct mu_act one = {.n_tok = x->n_tok, .n_col = x->n_col};
    switch (mu_form_of(type)) {
    case FORM_Q8:
        one.q = x->q;
        one.s = x->s;
        break;
    case FORM_BF16: one.bf16 = x->bf16; break;
    default: return x->f32;
    }
    r->ops->widen(r->v->d, &one, r->v->lora_x);
    return r->v->lora_x;
}

void mu_dev_lora(const struct queue *r, const struct job *job, struct mu_device_job *to, int n_job,
                 const struct mu_act *x)
{
    const struct dev *v = r->v;
    size_t n_tok = (size_t)r->s->n_tok;
    float *y = v->lora_y;
    for (int j = 0; j < n_job; j++) {
        const struct mu_mat *const mat[2] = {job[j].m, job[j].up};
        const int key[2] = {job[j].lora, job[j].lora_up};
        for (int i = 0; i < 2; i++) {
            if (!mat[i] || !touched(r, key[i])) continue;
            outer(r, key[i], mat[i], widened(r, mat[i]->type, x), x->n_tok, y);
            *(i ? &to[j].lora_up : &to[j].lora) = y;
            *(i ? &to[j].lora_up_scale : &to[j].lora_scale) =
                v->in.lora_scale + (size_t)(key[i] - 1) * n_tok + (size_t)r->first;
            y += (size_t)x->n_tok * (size_t)mat[i]->n_row;
        }
    }
}
