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

/* The sink, where there is one, is merged last, as a segment of one score whose value is zero. */
static void query(const struct mu_attn *a, const float *q_in, int pos, const float *sink, float *out)
{
    float q[MU_MAX_D_HEAD], o[MU_MAX_D_HEAD], sum_m = 0.0f, sum_l = 0.0f;
    for (int d = 0; d < a->d_head; d++) q[d] = q_in[d] * a->scale;
    int lo = a->window > 0 && pos >= a->window ? pos - a->window + 1 : 0;
    bool first = true;
    for (int begin = lo, end; begin <= pos; begin = end) {
        end = (begin / MU_ATTN_SEGMENT + 1) * MU_ATTN_SEGMENT;
        if (end > pos + 1) end = pos + 1;
        float m, l;
        segment(a, q, begin, end, &m, &l, o);
        if (first) {
            sum_m = m;
            sum_l = l;
            for (int d = 0; d < a->d_head; d++) out[d] = o[d];
            first = false;
            continue;
        }
        float n = sum_m > m ? sum_m : m;
        float keep = mu_expf(sum_m - n), take = mu_expf(m - n), lt = l * take;
        sum_m = n;
        sum_l = fmaf(sum_l, keep, lt);
        for (int d = 0; d < a->d_head; d++) {
            float ot = o[d] * take;
            out[d] = fmaf(out[d], keep, ot);
        }
    }
    if (sink) {
        float n = sum_m > *sink ? sum_m : *sink, keep = mu_expf(sum_m - n);
        sum_l = fmaf(sum_l, keep, mu_expf(*sink - n));
        for (int d = 0; d < a->d_head; d++) out[d] = out[d] * keep;
    }
    float inv = 1.0f / sum_l;
    for (int d = 0; d < a->d_head; d++) out[d] = (out[d] + 0.0f) * inv;
}

void mu_ref_attn(const struct mu_attn *a)
{
    for (int t = 0; t < a->n_tok; t++)
        for (int r = 0; r < a->n_rep; r++) {
            size_t head = (size_t)r * (size_t)a->d_head;
            query(a, a->q + (size_t)t * a->q_stride + head, a->pos0 + t, a->sink ? a->sink + r : NULL,
                  a->out + (size_t)t * a->out_stride + head);
        }
}
