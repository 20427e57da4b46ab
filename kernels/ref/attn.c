/* Attention as the arithmetic contract defines it (C5), one query at a time, in plain C: the definition.
 *
 * Only visible positions are ever touched: unwritten cache may hold anything. */
#include <math.h>

#include "kernels/parts.h"

enum { LANES = 16 };

/* The group of 16 positions that holds pos. */
static const void *group_of(const struct mu_attn *a, const void *const *page, int pos)
{
    size_t begin = (size_t)(pos % a->page_tokens / LANES);
    return (const char *)page[pos / a->page_tokens] + begin * mu_kv_bytes(a->kv, a->d_head, LANES);
}

/* Dimension d of the key and the value at pos, as they were kept. */
static float key(const struct mu_attn *a, int pos, int d)
{
    const void *group = group_of(a, a->k_page, pos);
    if (a->kv == MU_KV_F16) return mu_f16_to_f32(((const uint16_t *)group)[(size_t)d * LANES + (size_t)(pos % LANES)]);
    const float *scale = (const void *)((const char *)group + mu_kv_q8_key_block(d / MU_Q_BLOCK));
    const int8_t *q = (const int8_t *)(scale + LANES) + (size_t)(d % MU_Q_BLOCK) * LANES;
    return (float)q[pos % LANES] * scale[pos % LANES];
}

static float value(const struct mu_attn *a, int pos, int d)
{
    const void *group = group_of(a, a->v_page, pos);
    size_t row = (size_t)(pos % LANES), n = (size_t)a->d_head;
    if (a->kv == MU_KV_F16) return mu_f16_to_f32(((const uint16_t *)group)[row * n + (size_t)d]);
    const int8_t *q = group;
    const float *scale = (const void *)(q + LANES * n);
    return (float)q[row * n + (size_t)d] * scale[row * (size_t)mu_kv_blocks(a->d_head) + (size_t)(d / MU_Q_BLOCK)];
}

static float key_score(const struct mu_attn *a, const float *q, int pos)
{
    float s = 0.0f;
    for (int d = 0; d < a->d_head; d++) s = fmaf(q[d], key(a, pos, d), s);
    return a->softcap != 0.0f ? a->softcap * mu_tanhf(s / a->softcap) : s;
}

/* One segment's visible positions [begin, end): maximum, sum and weighted values. */
static void segment(const struct mu_attn *a, const float *q, int begin, int end, float *m_out, float *l_out, float *o)
{
    float p[MU_ATTN_SEGMENT], lane[LANES] = {0}, m = -INFINITY;
    for (int pos = begin; pos < end; pos++) {
        float s = key_score(a, q, pos);
        p[pos - begin] = s;
        m = m > s ? m : s;
    }
    for (int d = 0; d < a->d_head; d++) o[d] = 0.0f;
    for (int pos = begin; pos < end; pos++) {
        float w = mu_expf(p[pos - begin] - m);
        lane[pos % LANES] += w;
        for (int d = 0; d < a->d_head; d++) o[d] = fmaf(w, value(a, pos, d), o[d]);
    }
    for (int half = LANES / 2; half >= 1; half /= 2)
        for (int i = 0; i < half; i++) lane[i] = lane[i] + lane[i + half];
    *m_out = m;
    *l_out = lane[0];
}

/* What the merged segments are so far. */
struct sum {
    bool first;
    float m, l, *out;
};

static void merge(struct sum *s, float m, float l, const float *o, int d_head)
{
    if (s->first) {
        s->first = false;
        s->m = m;
        s->l = l;
        for (int d = 0; d < d_head; d++) s->out[d] = o[d];
        return;
    }
    float n = s->m > m ? s->m : m;
    float keep = mu_expf(s->m - n), take = mu_expf(m - n), lt = l * take;
    s->m = n;
    s->l = fmaf(s->l, keep, lt);
    for (int d = 0; d < d_head; d++) {
        float ot = o[d] * take;
        s->out[d] = fmaf(s->out[d], keep, ot);
    }
}

/* The sink, where there is one, is merged last, as a segment of one score whose value is zero. */
static void finish(struct sum *s, const float *sink, int d_head)
{
    if (sink) {
        float n = s->m > *sink ? s->m : *sink, keep = mu_expf(s->m - n);
        s->l = fmaf(s->l, keep, mu_expf(*sink - n));
        for (int d = 0; d < d_head; d++) s->out[d] = s->out[d] * keep;
    }
    float inv = 1.0f / s->l;
    for (int d = 0; d < d_head; d++) s->out[d] = (s->out[d] + 0.0f) * inv;
}

/* What position pos sees of segment seg; empty where begin ≥ end. */
static void visible(const struct mu_attn *a, int pos, int seg, int *begin_out, int *end_out)
{
    int lo = a->window > 0 && pos >= a->window ? pos - a->window + 1 : 0;
    int begin = seg * MU_ATTN_SEGMENT, end = begin + MU_ATTN_SEGMENT;
    *begin_out = begin > lo ? begin : lo;
    *end_out = end < pos + 1 ? end : pos + 1;
}

/* Row t·n_rep + r: computes segments, or takes those that are there; merges them, unless they are kept apart. */
static void row_run(const struct mu_attn *a, int t, int r, bool compute, bool join)
{
    size_t head = (size_t)r * (size_t)a->d_head;
    float q[MU_MAX_D_HEAD], o[MU_MAX_D_HEAD], m = 0, l = 0;
    int pos = a->pos0 + t, seg = join ? 0 : a->seg_begin, seg_end = join ? pos / MU_ATTN_SEGMENT + 1 : a->seg_end;
    struct sum sum = {.first = true, .out = a->out + (size_t)t * a->out_stride + head};
    for (int d = 0; compute && d < a->d_head; d++) q[d] = a->q[(size_t)t * a->q_stride + head + (size_t)d] * a->scale;
    for (; seg < seg_end; seg++) {
        float *part = a->part ? mu_attn_part(a, seg, t * a->n_rep + r) : o;
        int begin, end;
        visible(a, pos, seg, &begin, &end);
        if (begin >= end) continue;
        if (compute) segment(a, q, begin, end, &m, &l, part);
        if (join) {
            if (!compute) m = part[a->d_head], l = part[a->d_head + 1];
            merge(&sum, m, l, part, a->d_head);
        } else {
            part[a->d_head] = m;
            part[a->d_head + 1] = l;
        }
    }
    if (join) finish(&sum, a->sink ? a->sink + r : NULL, a->d_head);
}

static void rows_run(const struct mu_attn *a, bool compute, bool join)
{
    for (int t = 0; t < a->n_tok; t++)
        for (int r = 0; r < a->n_rep; r++) row_run(a, t, r, compute, join);
}

void mu_ref_attn(const struct mu_attn *a)
{
    rows_run(a, true, !a->part);
}

void mu_ref_attn_merge(const struct mu_attn *a)
{
    rows_run(a, false, true);
}
