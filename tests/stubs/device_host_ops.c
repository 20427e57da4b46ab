/* The operations of a device, as they are defined: kernels/ref, and the formulas of shard/phase.c, exchange.c,
 * attend.c, experts.c and sample.c, one value after another. See device_host.h. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "kernels/parts.h"
#include "tests/stubs/device_host_parts.h"

/* n elements of an array must be on the device, or the operation is not done; where they may be missing, MAY. */
#define NEED(p, n)                                                                   \
    do {                                                                             \
        if (!mu_host_holds(d, __func__, #p, (p), (size_t)(n) * sizeof *(p))) return; \
    } while (0)
#define MAY(p, n)            \
    do {                     \
        if (p) NEED((p), n); \
    } while (0)
/* The caller's mistake, in one sentence. */
#define REFUSE(condition, text)                                   \
    do {                                                          \
        if (condition) {                                          \
            mu_host_fail(d, MU_EINVAL, "%s: %s", __func__, text); \
            return;                                               \
        }                                                         \
    } while (0)

static void form_check(struct mu_device *d, const char *op, const struct mu_act_to *to, size_t n_tok, int n)
{
    size_t all = n_tok * (size_t)n;
    if (to->f32) mu_host_holds(d, op, "form.f32", to->f32, all * sizeof *to->f32);
    if (to->bf16) mu_host_holds(d, op, "form.bf16", to->bf16, all * sizeof *to->bf16);
    if (to->q) mu_host_holds(d, op, "form.q", to->q, all);
    if (to->s) mu_host_holds(d, op, "form.s", to->s, all / MU_Q_BLOCK * sizeof *to->s);
    if (to->sum) mu_host_holds(d, op, "form.sum", to->sum, all / MU_Q_BLOCK * 2 * sizeof *to->sum);
    if (!to->q != !to->s || (to->sum && !to->q) || (to->q && n % MU_Q_BLOCK))
        mu_host_fail(d, MU_EINVAL, "%s: q without s, sum without q, or vectors that are not whole blocks", op);
}

/* v[n] as vector t of `to`; v may be to->f32. */
static void form_vector(const struct mu_act_to *to, size_t t, int n, const float *v)
{
    size_t at = t * (size_t)n;
    if (to->bf16) mu_ref_to_bf16(v, n, to->bf16 + at);
    for (int i = 0; to->q && i < n; i += MU_Q_BLOCK) {
        int8_t *q = to->q + at + i;
        float *s = to->s + (at + (size_t)i) / MU_Q_BLOCK;
        int16_t sum[2] = {0, 0};
        if (!mu_ref_quantize(v + i, MU_Q_BLOCK, q, s, sum)) {
            memset(q, 0, MU_Q_BLOCK);
            memset(sum, 0, sizeof sum);
            *s = NAN;
        }
        if (to->sum) memcpy(to->sum + (at + (size_t)i) / MU_Q_BLOCK * 2, sum, sizeof sum);
    }
    if (to->f32) memmove(to->f32 + at, v, (size_t)n * sizeof *v);
}

/* ---- matrix products ---- */

void mu_host_mat_pack(struct mu_device *d, const struct mu_mat *m, int row0, int row1, const void *raw, int32_t *bad)
{
    const uint8_t *bytes = raw;
    uint8_t *data = m->data;
    size_t row = 0;
    REFUSE(!mu_type_row_bytes(m->type, (uint64_t)m->n_col, &row), "no such matrix");
    REFUSE(row0 % MU_ROW_GROUP || (row1 % MU_ROW_GROUP && row1 != m->n_row), "rows that are not whole groups");
    if (row1 <= row0) return;
    NEED(bytes, row * (size_t)(row1 - row0));
    NEED(data, mu_ref_mat_bytes(m->type, m->n_row, m->n_col));
    NEED(bad, 1);
    if (!mu_ref_mat_pack(m, row0, row1, raw)) *bad = 1;
}

/* y = y + what LoRA adds + bias. */
static void adapt(float *y, int n, const float *lora, float lora_scale, const float *bias)
{
    if (lora && lora_scale != 0.0f) mu_ref_add_scaled(y, lora, lora_scale, n);
    if (bias) mu_ref_add(y, bias, n, 0);
}

/* What follows the products y, and u where there is an up, of row t of the outputs. */
static void finish(const struct mu_device_job *job, float *y, float *u, size_t t, size_t expert)
{
    int n = job->m->n_row;
    size_t dense = t * (size_t)n, at = t * job->stride, biases = expert * (size_t)n;
    adapt(y, n, job->lora ? job->lora + dense : NULL, job->lora ? job->lora_scale[t] : 0.0f,
          job->bias ? job->bias + biases : NULL);
    if (u)
        adapt(u, n, job->lora_up ? job->lora_up + dense : NULL, job->lora_up ? job->lora_up_scale[t] : 0.0f,
              job->up_bias ? job->up_bias + biases : NULL);
    for (int i = 0; job->scale != 0.0f && i < n; i++) y[i] = y[i] * job->scale;
    if (job->plus) mu_ref_add(y, job->plus + at, n, 0);
    switch (job->act) {
    case MU_DEVICE_ACT_NONE: break;
    case MU_DEVICE_ACT_SILU: mu_ref_silu_mul(y, u, n, y); break;
    case MU_DEVICE_ACT_SILU_CLAMPED: mu_ref_silu_clamped_mul(y, u, n, y); break;
    case MU_DEVICE_ACT_GELU: mu_ref_gelu_tanh(y, u, n, y); break;
    case MU_DEVICE_ACT_GELU_ERF: mu_ref_gelu_erf(y, u, n, y); break;
    }
    if (job->cap != 0.0f) mu_ref_soft_cap(y, n, job->cap);
    memcpy(job->out + at, y, (size_t)n * sizeof *y);
    if (job->bf16) mu_ref_to_bf16(y, n, job->bf16 + at);
    form_vector(&job->form, t, n, y);
}

static struct mu_act vector_of(const struct mu_act *x, size_t t)
{
    size_t at = t * (size_t)x->n_col, block = t * (size_t)(x->n_col / MU_Q_BLOCK);
    return (struct mu_act){.n_tok = 1,
                           .n_col = x->n_col,
                           .f32 = x->f32 ? x->f32 + at : NULL,
                           .bf16 = x->bf16 ? x->bf16 + at : NULL,
                           .q = x->q ? x->q + at : NULL,
                           .s = x->s ? x->s + block : NULL,
                           .sum = x->sum ? x->sum + 2 * block : NULL};
}

static void mat_check(struct mu_device *d, const struct mu_mat *m, const struct mu_act *x, int n_expert, size_t each)
{
    const uint8_t *data = m->data;
    size_t n = (size_t)x->n_tok * (size_t)x->n_col, bytes = mu_ref_mat_bytes(m->type, m->n_row, m->n_col);
    REFUSE(m->n_col != x->n_col, "a matrix has not as many columns as the vectors have values");
    REFUSE(n_expert && each < bytes, "experts' matrices overlap");
    NEED(data, n_expert ? (size_t)(n_expert - 1) * each + bytes : bytes);
    switch (mu_type_info(m->type)->act) {
    case MU_ACT_NONE: REFUSE(true, "a matrix of a type that is not multiplied with");
    case MU_ACT_F32: NEED(x->f32, n); break;
    case MU_ACT_BF16: NEED(x->bf16, n); break;
    case MU_ACT_Q8:
        NEED(x->q, n);
        NEED(x->s, n / MU_Q_BLOCK);
        NEED(x->sum, n / MU_Q_BLOCK * 2);
        break;
    }
}

static void job_check(struct mu_device *d, const struct mu_device_job *job, const struct mu_act *x,
                      const struct mu_device_experts *experts, size_t n_out)
{
    int n_expert = experts ? experts->n_expert : 0;
    size_t n_row = (size_t)job->m->n_row, last = (n_out - 1) * job->stride + n_row, n_bias = n_row;
    if (experts) n_bias *= (size_t)n_expert;
    mat_check(d, job->m, x, n_expert, experts ? experts->m_bytes : 0);
    if (job->up) mat_check(d, job->up, x, n_expert, experts ? experts->up_bytes : 0);
    bool gated = job->act == MU_DEVICE_ACT_SILU || job->act == MU_DEVICE_ACT_SILU_CLAMPED;
    REFUSE(job->up && (job->up->n_row != job->m->n_row || job->act == MU_DEVICE_ACT_NONE),
           "an up of another shape, or without an act");
    REFUSE(!job->up && (gated || job->lora_up || job->up_bias), "an act or bias of an up that is not there");
    REFUSE(experts && (job->lora || job->lora_up || job->plus), "experts have neither LoRA nor plus");
    REFUSE((job->lora && !job->lora_scale) || (job->lora_up && !job->lora_up_scale), "LoRA without scales");
    REFUSE(job->stride < n_row || job->form.f32, "a stride below the rows, or form.f32");
    NEED(job->out, last);
    MAY(job->bf16, last);
    MAY(job->plus, last);
    MAY(job->bias, n_bias);
    MAY(job->up_bias, n_bias);
    MAY(job->lora, n_out * n_row);
    MAY(job->lora_up, n_out * n_row);
    MAY(job->lora_scale, n_out);
    MAY(job->lora_up_scale, n_out);
    form_check(d, __func__, &job->form, n_out, job->m->n_row);
}

static struct mu_mat mat_of(const struct mu_mat *m, size_t expert, size_t bytes)
{
    struct mu_mat one = *m;
    one.data = (uint8_t *)m->data + expert * bytes;
    return one;
}

static void roughen(float *x, int n)
{
    const char *rough = getenv("MUSTER_DEVICE_HOST_ROUGH");
    for (int i = 0; rough && *rough == '1' && i < n; i++) x[i] = mu_bf16_to_f32(mu_f32_to_bf16(x[i]));
}

/* Vector `in` of x times the matrices of `expert`, into row `out` of the outputs. */
static void product(const struct mu_device_job *job, const struct mu_act *x, size_t in, size_t out, size_t expert,
                    size_t m_bytes, size_t up_bytes, float *y)
{
    struct mu_mat m = mat_of(job->m, expert, m_bytes), up;
    struct mu_act one = vector_of(x, in);
    float *u = job->up ? y + m.n_row : NULL;
    mu_ref_matmul(&m, &one, 0, m.n_row, y, (size_t)m.n_row);
    if (job->rough) roughen(y, m.n_row);
    if (u) {
        up = mat_of(job->up, expert, up_bytes);
        mu_ref_matmul(&up, &one, 0, up.n_row, u, (size_t)up.n_row);
        if (job->rough) roughen(u, up.n_row);
    }
    finish(job, y, u, out, expert);
}

static void experts_run(struct mu_device *d, const struct mu_device_job *job, const struct mu_act *x,
                        const struct mu_device_experts *e, int n_place, float *y)
{
    NEED(e->begin, e->n_expert + 1);
    NEED(e->place, n_place);
    REFUSE(e->begin[0] != 0 || e->begin[e->n_expert] != n_place, "places that do not begin at 0 or end elsewhere");
    for (int i = 0; i < e->n_expert; i++) {
        for (int p = e->begin[i]; p < e->begin[i + 1]; p++) {
            REFUSE(p < 0 || p >= n_place || e->place[p] < 0 || e->place[p] >= n_place, "a place that there is not");
            product(job, x, (size_t)(e->by_place ? p : e->place[p] / e->n_used), (size_t)p, (size_t)i, e->m_bytes,
                    e->up_bytes, y);
        }
    }
}

void mu_host_matmul(struct mu_device *d, const struct mu_device_job *job, int n_job, const struct mu_act *x,
                    const struct mu_device_experts *experts)
{
    REFUSE(experts && n_job != 1, "experts are one job");
    int n_out = experts && !experts->by_place ? x->n_tok * experts->n_used : x->n_tok;
    for (int j = 0; j < n_job && n_out > 0; j++) {
        int n_row = job[j].m->n_row;
        if (n_row == 0) continue;
        job_check(d, &job[j], x, experts, (size_t)n_out);
        if (mu_host_failed(d)) return;
        float *y = mu_host_scratch(d, 2 * (size_t)n_row, sizeof *y);
        if (!y) return;
        if (experts)
            experts_run(d, &job[j], x, experts, n_out, y);
        else
            for (int t = 0; t < n_out; t++) product(&job[j], x, (size_t)t, (size_t)t, 0, 0, 0, y);
        mu_free(y);
    }
}

/* ---- norms, forms ---- */

static void poison(float *v, int n)
{
    for (int i = 0; i < n; i++) v[i] = NAN;
}

/* x += what is pending of it; post is n values of scratch. */
static void add_pending(const struct mu_device_norm *a, float *x, size_t at, float *post)
{
    if (!a->y) return;
    if (!a->post) {
        mu_ref_add(x, a->y + at, a->n, a->y_round);
        return;
    }
    memset(post, 0, (size_t)a->n * sizeof *post);
    mu_ref_add(post, a->y + at, a->n, a->y_round);
    if (!mu_ref_rms_norm(post, a->post, a->n, a->eps, post)) poison(post, a->n);
    mu_ref_add(x, post, a->n, 0);
}

static void norm_vector(const struct mu_device_norm *a, const float *x, float *out)
{
    bool finite = true;
    switch (a->kind) {
    case MU_DEVICE_NORM_NONE: memcpy(out, x, (size_t)a->n * sizeof *x); break;
    case MU_DEVICE_NORM_RMS: finite = mu_ref_rms_norm(x, a->w, a->n, a->eps, out); break;
    case MU_DEVICE_NORM_LAYER: finite = mu_ref_layer_norm(x, a->w, a->b, a->n, a->eps, out); break;
    }
    if (!finite) poison(out, a->n);
}

void mu_host_norm(struct mu_device *d, const struct mu_device_norm *a)
{
    size_t n = (size_t)a->n, n_row = (size_t)a->n_tok;
    if (a->n_tok == 0 || a->n == 0) return;
    MAY(a->row, a->n_tok);
    for (int t = 0; a->row && t < a->n_tok; t++) {
        REFUSE(a->row[t] < 0, "a row below 0");
        if ((size_t)a->row[t] >= n_row) n_row = (size_t)a->row[t] + 1;
    }
    NEED(a->x, n_row * n);
    MAY(a->y, n_row * n);
    MAY(a->post, n);
    REFUSE((a->kind != MU_DEVICE_NORM_NONE) != (a->w != NULL), "a norm without weights, or weights without a norm");
    REFUSE((a->kind == MU_DEVICE_NORM_LAYER) != (a->b != NULL), "a layer norm without a bias, or another with one");
    MAY(a->w, n);
    MAY(a->b, n);
    form_check(d, __func__, &a->form, (size_t)a->n_tok, a->n);
    float *sum = mu_host_scratch(d, 2 * n, sizeof *sum);
    if (!sum || mu_host_failed(d)) {
        mu_free(sum);
        return;
    }
    for (int t = 0; t < a->n_tok; t++) {
        size_t at = (a->row ? (size_t)a->row[t] : (size_t)t) * n;
        float *out = sum + n;
        memcpy(sum, a->x + at, n * sizeof *sum);
        add_pending(a, sum, at, out);
        if (a->keep) memcpy(a->x + at, sum, n * sizeof *sum);
        norm_vector(a, sum, out);
        form_vector(&a->form, (size_t)t, a->n, out);
    }
    mu_free(sum);
}

void mu_host_form(struct mu_device *d, const float *src, size_t stride, int n_tok, int n, const struct mu_act_to *to)
{
    if (n_tok == 0 || n == 0) return;
    NEED(src, (size_t)(n_tok - 1) * stride + (size_t)n);
    form_check(d, __func__, to, (size_t)n_tok, n);
    for (int t = 0; !mu_host_failed(d) && t < n_tok; t++) form_vector(to, (size_t)t, n, src + (size_t)t * stride);
}

void mu_host_widen(struct mu_device *d, const struct mu_act *x, float *out)
{
    size_t n = (size_t)x->n_tok * (size_t)x->n_col;
    if (n == 0) return;
    NEED(out, n);
    if (x->q) {
        NEED(x->q, n);
        NEED(x->s, n / MU_Q_BLOCK);
        for (size_t i = 0; i < n; i++) out[i] = (float)x->q[i] * x->s[i / MU_Q_BLOCK];
    } else if (x->bf16) {
        NEED(x->bf16, n);
        for (size_t i = 0; i < n; i++) out[i] = mu_bf16_to_f32(x->bf16[i]);
    } else {
        NEED(x->f32, n);
        memcpy(out, x->f32, n * sizeof *out);
    }
}

void mu_host_block_sums(struct mu_device *d, const int8_t *q, size_t n, int16_t *sum)
{
    if (n == 0) return;
    NEED(q, n);
    NEED(sum, n / 16);
    for (size_t i = 0; i < n; i += MU_Q_BLOCK) mu_ref_block_sums(q + i, MU_Q_BLOCK, sum + i / 16);
}

void mu_host_spread(struct mu_device *d, const struct mu_device_part *p, int n_tok)
{
    static const size_t from_size[] = {4, 2, 1, 2}, to_size[] = {4, 2, 1, 4};
    if (p->n == 0 || n_tok == 0) return;
    size_t in = from_size[p->kind], out = to_size[p->kind], row = (size_t)p->n;
    uint8_t *dst = p->to;
    const uint8_t *src = p->from;
    NEED(dst, ((size_t)(n_tok - 1) * p->to_stride + row) * out);
    NEED(src, (size_t)n_tok * row * in);
    for (size_t t = 0; t < (size_t)n_tok; t++, dst += p->to_stride * out, src += row * in) {
        if (p->kind != MU_SPREAD_BF16_TO_F32) memcpy(dst, src, row * in);
        for (size_t i = 0; p->kind == MU_SPREAD_BF16_TO_F32 && i < row; i++) {
            uint16_t h;
            memcpy(&h, src + 2 * i, sizeof h);
            float f = mu_bf16_to_f32(h);
            memcpy(dst + 4 * i, &f, sizeof f);
        }
    }
}

void mu_host_set(struct mu_device *d, uint32_t *table, const struct mu_device_set *set, int n)
{
    if (n == 0) return;
    NEED(set, n);
    for (int i = 0; i < n; i++) {
        NEED(table, (size_t)set[i].at + 1);
        table[set[i].at] = set[i].value;
    }
}

/* ---- rotation, the cache, attention ---- */

void mu_host_rope_table(struct mu_device *d, const float *freq, const float *freq_far, const uint8_t *far,
                        const int32_t *pos, int n_tok, int n_pair, float mscale, float *out)
{
    if (n_tok == 0 || n_pair == 0) return;
    NEED(freq, n_pair);
    MAY(far, n_tok);
    if (far) NEED(freq_far, n_pair);
    NEED(pos, n_tok);
    NEED(out, (size_t)n_tok * (size_t)n_pair * 2);
    for (int t = 0; t < n_tok; t++)
        mu_ref_rope_table(far && far[t] ? freq_far : freq, n_pair, pos[t], mscale,
                          out + (size_t)t * 2 * (size_t)n_pair);
}

/* The page of one head that holds a position; NULL, and the device fails, where the table names none. */
static char *page_of(struct mu_device *d, const struct mu_device_kv *kv, int head, int slot, int pos)
{
    size_t at = (size_t)slot * kv->max_page + (size_t)(pos / kv->page_tokens);
    if (slot < 0 || pos < 0 || (uint32_t)(pos / kv->page_tokens) >= kv->max_page) {
        mu_host_fail(d, MU_EINVAL, "cache: position %d of slot %d is beyond its table", pos, slot);
        return NULL;
    }
    if (!mu_host_holds(d, "cache", "table", kv->table, (at + 1) * sizeof *kv->table)) return NULL;
    if (kv->table[at] >= kv->n_page) {
        mu_host_fail(d, MU_EINVAL, "cache: position %d of slot %d is in page %u of %u", pos, slot, kv->table[at],
                     kv->n_page);
        return NULL;
    }
    return (char *)kv->data + ((size_t)head * kv->n_page + kv->table[at]) * kv->page_bytes;
}

static bool kv_check(struct mu_device *d, const struct mu_device_kv *kv)
{
    if (kv->page_bytes != 2 * mu_kv_bytes(kv->type, kv->d_head, kv->page_tokens))
        mu_host_fail(d, MU_EINVAL, "cache: pages of %zu bytes", kv->page_bytes);
    else
        mu_host_holds(d, "cache", "data", kv->data, (size_t)kv->n_head * kv->n_page * kv->page_bytes);
    return !mu_host_failed(d);
}

static void head_turn(const struct mu_device_rotate *a, float *v, const float *weight, int t)
{
    int n = a->kv.d_head;
    if (weight && !mu_ref_rms_norm(v, weight, n, a->eps, v)) poison(v, n);
    if (a->cos_sin) mu_ref_rope(v, 1, n, a->n_rot, a->neox, a->cos_sin + (size_t)t * (size_t)a->n_rot);
}

void mu_host_rotate(struct mu_device *d, const struct mu_device_rotate *a)
{
    const struct mu_device_kv *kv = &a->kv;
    size_t n = (size_t)kv->d_head, n_tok = (size_t)a->n_tok;
    if (a->n_tok == 0) return;
    NEED(a->q, n_tok * (size_t)a->n_head * n);
    NEED(a->k, n_tok * (size_t)kv->n_head * n);
    NEED(a->v, n_tok * (size_t)kv->n_head * n);
    NEED(a->pos, n_tok);
    NEED(a->slot, n_tok);
    MAY(a->cos_sin, n_tok * (size_t)a->n_rot);
    MAY(a->q_norm, n);
    MAY(a->k_norm, n);
    MAY(a->q_scale, n_tok);
    if (!kv_check(d, kv)) return;
    for (int t = 0; t < a->n_tok; t++) {
        float *q = a->q + (size_t)t * (size_t)a->n_head * n;
        for (int h = 0; h < a->n_head; h++) head_turn(a, q + (size_t)h * n, a->q_norm, t);
        for (size_t i = 0; a->q_scale && i < (size_t)a->n_head * n; i++) q[i] = q[i] * a->q_scale[t];
        for (int j = 0; j < kv->n_head; j++) {
            size_t at = ((size_t)t * (size_t)kv->n_head + (size_t)j) * n;
            char *page = page_of(d, kv, j, a->slot[t], a->pos[t]);
            if (!page) return;
            head_turn(a, a->k + at, a->k_norm, t);
            mu_ref_kv_store(kv->type, a->k + at, a->v + at, kv->d_head, a->pos[t] % kv->page_tokens, page,
                            page + kv->page_bytes / 2);
        }
    }
}

/* One query of one head: token t, at pos of slot, into row `to`. pages: room for two pointers a page. */
static bool attend_one(struct mu_device *d, const struct mu_device_attn *a, int h, int t, int pos, int slot, int to,
                       const void **pages)
{
    const struct mu_device_kv *kv = &a->kv;
    int head = (a->head0 + h) / a->group - a->kv_head0, n_page = pos / kv->page_tokens + 1;
    int first = a->window > 0 && pos >= a->window ? pos - a->window + 1 : 0; /* earlier pages may be gone */
    size_t n = (size_t)kv->d_head, stride = (size_t)a->n_head * n, at = (size_t)h * n;
    if (pos >= a->max_pos || head < 0 || head >= kv->n_head) {
        mu_host_fail(d, MU_EINVAL, "attn: a query at position %d of %d reads head %d of %d", pos, a->max_pos, head,
                     kv->n_head);
        return false;
    }
    for (int p = first / kv->page_tokens; p < n_page; p++) {
        const char *page = page_of(d, kv, head, slot, p * kv->page_tokens);
        if (!page) return false;
        pages[p] = page;
        pages[kv->max_page + (uint32_t)p] = page + kv->page_bytes / 2;
    }
    struct mu_attn one = {.kv = kv->type,
                          .n_tok = 1,
                          .n_rep = 1,
                          .d_head = kv->d_head,
                          .pos0 = pos,
                          .page_tokens = kv->page_tokens,
                          .window = a->window,
                          .scale = a->scale,
                          .softcap = a->softcap,
                          .sink = a->sink ? a->sink + h : NULL,
                          .q = a->q + (size_t)t * stride + at,
                          .q_stride = stride,
                          .out = a->out + (size_t)to * stride + at,
                          .out_stride = stride,
                          .k_page = pages,
                          .v_page = pages + kv->max_page};
    mu_ref_attn(&one);
    if (a->rough) roughen(one.out, kv->d_head);
    return true;
}

static void attend_all(struct mu_device *d, const struct mu_device_attn *a, const void **pages)
{
    size_t row = (size_t)a->n_head * (size_t)a->kv.d_head;
    for (int b = 0; b < a->n_block; b++) {
        const struct mu_device_block *k = &a->block[b];
        REFUSE(k->n_tok < 1 || k->n_tok > MU_DEVICE_QUERY_BLOCK || k->tok < 0,
               "a block without tokens or with too many");
        NEED(a->q, (size_t)(k->tok + k->n_tok) * row);
        NEED(a->out, (size_t)(k->tok + k->n_tok) * row);
        for (int i = 0; i < k->n_tok; i++)
            for (int h = 0; h < a->n_head; h++)
                if (!attend_one(d, a, h, k->tok + i, k->pos0 + i, k->slot, k->tok + i, pages)) return;
    }
    if (a->n_block > 0) return;
    NEED(a->out, (size_t)a->n_query * row);
    form_check(d, "attn", &a->form, (size_t)a->n_query, (int)row);
    for (int i = 0; i < a->n_query; i++) {
        int t = a->query ? a->query[i] : i;
        REFUSE(t < 0, "a query of token -1");
        NEED(a->q, (size_t)(t + 1) * row);
        NEED(a->pos, t + 1);
        NEED(a->slot, t + 1);
        for (int h = 0; h < a->n_head; h++)
            if (!attend_one(d, a, h, t, a->pos[t], a->slot[t], i, pages)) return;
        form_vector(&a->form, (size_t)i, (int)row, a->out + (size_t)i * row);
    }
}

void mu_host_attn(struct mu_device *d, const struct mu_device_attn *a)
{
    if (a->n_head == 0 || (a->n_block == 0 && a->n_query == 0)) return;
    size_t segments = ((size_t)a->max_pos + MU_ATTN_SEGMENT - 1) / MU_ATTN_SEGMENT;
    REFUSE(a->form.f32 || (a->n_block > 0 && (a->form.q || a->form.bf16)), "form.f32, or forms of blocks");
    REFUSE(a->part_bytes / sizeof *a->part < segments * (size_t)a->n_head * ((size_t)a->kv.d_head + 2),
           "too little scratch");
    NEED(a->part, a->part_bytes / sizeof *a->part);
    MAY(a->sink, a->n_head);
    if (a->n_block > 0) NEED(a->block, a->n_block);
    if (a->n_block == 0) MAY(a->query, a->n_query);
    if (!kv_check(d, &a->kv)) return;
    const void **pages = mu_host_scratch(d, 2 * (size_t)a->kv.max_page, sizeof *pages);
    if (pages) attend_all(d, a, pages);
    mu_free(pages);
}

/* ---- experts ---- */

/* Token t's experts, ascending, and their weights: softmax over the chosen ones. Ties go to the lower index. */
static void choose(const struct mu_device_route *a, int t, bool *taken)
{
    int n = a->n_expert, n_used = a->n_used;
    const float *score = a->score + (size_t)t * (size_t)n;
    int32_t *chosen = a->chosen + (size_t)t * (size_t)n_used;
    float *weight = a->weight + (size_t)t * (size_t)n_used, sum = 0.0f, max = score[0];
    memset(taken, 0, (size_t)n * sizeof *taken);
    for (int k = 0; k < n_used; k++) {
        int best = -1;
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

void mu_host_route(struct mu_device *d, const struct mu_device_route *a)
{
    size_t n = (size_t)a->n_tok * (size_t)a->n_used;
    if (n == 0) return;
    REFUSE(a->n_used > a->n_expert, "more experts used than there are");
    NEED(a->begin, a->n_expert + 1);
    NEED(a->score, (size_t)a->n_tok * (size_t)a->n_expert);
    NEED(a->chosen, n);
    NEED(a->place, n);
    NEED(a->at, n);
    NEED(a->weight, n);
    bool *taken = mu_host_scratch(d, (size_t)a->n_expert, sizeof *taken);
    if (!taken) return;
    for (int t = 0; t < a->n_tok; t++) choose(a, t, taken);
    mu_free(taken);
    int next = 0;
    for (int e = 0; e < a->n_expert; e++) {
        a->begin[e] = next;
        for (size_t i = 0; i < n; i++) {
            if (a->chosen[i] != e) continue;
            a->place[next] = (int32_t)i;
            a->at[i] = next++;
        }
    }
    a->begin[a->n_expert] = next;
}

void mu_host_combine(struct mu_device *d, const struct mu_device_combine *a)
{
    size_t n = (size_t)a->n, places = (size_t)a->n_tok * (size_t)a->n_used;
    if (a->n_tok == 0 || n == 0) return;
    NEED(a->part, places * n);
    NEED(a->weight, places);
    NEED(a->chosen, places);
    NEED(a->at, places);
    NEED(a->out, (size_t)a->n_tok * n);
    for (int t = 0; t < a->n_tok; t++) {
        float *out = a->out + (size_t)t * n;
        memset(out, 0, n * sizeof *out);
        for (int k = 0; k < a->n_used; k++) {
            size_t i = (size_t)t * (size_t)a->n_used + (size_t)k;
            const float *part = a->part + (size_t)a->at[i] * n;
            if (a->bias) NEED(a->bias, ((size_t)a->chosen[i] + 1) * n);
            const float *bias = a->bias ? a->bias + (size_t)a->chosen[i] * n : NULL;
            for (size_t c = 0; c < n; c++) out[c] = fmaf(a->weight[i], bias ? part[c] + bias[c] : part[c], out[c]);
        }
        for (size_t c = 0; a->scale != 0.0f && c < n; c++) out[c] = out[c] * a->scale;
    }
}

/* ---- the next id ---- */

static struct mu_device_pick pick_of(const float *x, int n, int first_id, const struct mu_device_draw *draw)
{
    float max;
    if (n == 0) return (struct mu_device_pick){0.0f, -1};
    int at = mu_ref_argmax(x, n, &max);
    if (at < 0) return (struct mu_device_pick){0.0f, -2};
    if (draw->temperature == 0.0f) return (struct mu_device_pick){max, first_id + at};
    struct mu_device_pick best = {0.0f, -1};
    for (int i = 0; i < n; i++) {
        float u = mu_random_unit(draw->seed, draw->position, (uint64_t)(first_id + i));
        float v = x[i] / draw->temperature + -mu_logf(-mu_logf(u));
        if (best.id < 0 || v > best.value) best = (struct mu_device_pick){v, first_id + i};
    }
    return best;
}

void mu_host_pick(struct mu_device *d, const float *logits, size_t stride, int n_row, int n, int first_id,
                  const struct mu_device_draw *draw, struct mu_device_pick *out)
{
    if (n_row == 0) return;
    if (n > 0) NEED(logits, (size_t)(n_row - 1) * stride + (size_t)n);
    NEED(draw, n_row);
    NEED(out, n_row);
    for (int i = 0; i < n_row; i++) out[i] = pick_of(logits + (size_t)i * stride, n, first_id, &draw[i]);
}
