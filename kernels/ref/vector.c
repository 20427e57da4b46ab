/* The vector operations of the arithmetic contract (C4, C6, C7) in plain C: the definition that every other table
 * equals. */
#include <float.h>
#include <math.h>

#include "kernels/math.h"
#include "kernels/parts.h"
#include "kernels/random.h"

enum { LANES = 16, SUM_BLOCK = 1024 };

/* C6: lanes are index mod 16; tree 8, 4, 2, 1. */
static float tree_sum(float *lane)
{
    for (int half = LANES / 2; half >= 1; half /= 2)
        for (int i = 0; i < half; i++) lane[i] = lane[i] + lane[i + half];
    return lane[0];
}

bool mu_ref_rms_norm(const float *x, const float *w, int n, float eps, float *out)
{
    float lane[LANES] = {0};
    for (int i = 0; i < n; i++) lane[i % LANES] = fmaf(x[i], x[i], lane[i % LANES]);
    float ss = tree_sum(lane);
    if (!mu_f32_finite(ss)) return false;
    float r = 1.0f / sqrtf(ss / (float)n + eps);
    for (int i = 0; i < n; i++) out[i] = (x[i] * r) * w[i];
    return true;
}

bool mu_ref_layer_norm(const float *x, const float *w, const float *b, int n, float eps, float *out)
{
    float lane[LANES] = {0};
    for (int i = 0; i < n; i++) lane[i % LANES] += x[i];
    float sum = tree_sum(lane);
    if (!mu_f32_finite(sum)) return false;
    float mean = sum / (float)n;
    for (int i = 0; i < LANES; i++) lane[i] = 0.0f;
    for (int i = 0; i < n; i++) {
        out[i] = x[i] - mean;
        lane[i % LANES] = fmaf(out[i], out[i], lane[i % LANES]);
    }
    float ss = tree_sum(lane);
    if (!mu_f32_finite(ss)) return false;
    float r = 1.0f / sqrtf(ss / (float)n + eps);
    for (int i = 0; i < n; i++) out[i] = fmaf(out[i] * r, w[i], b[i]);
    return true;
}

void mu_ref_rope(float *x, int n_head, int d_head, int n_rot, int neox, const float *cos_sin)
{
    int half = n_rot / 2;
    for (int h = 0; h < n_head; h++) {
        float *v = x + (size_t)h * (size_t)d_head;
        for (int i = 0; i < half; i++) {
            float *a = neox ? v + i : v + 2 * i;
            float *b = neox ? v + i + half : v + 2 * i + 1;
            float a0 = *a, b0 = *b, c = cos_sin[2 * i], s = cos_sin[2 * i + 1];
            float bs = b0 * s, bc = b0 * c;
            *a = fmaf(a0, c, -bs);
            *b = fmaf(a0, s, bc);
        }
    }
}

void mu_ref_rope_table(const float *freq, int n_pair, int pos, float mscale, float *cos_sin)
{
    for (int i = 0; i < n_pair; i++) {
        float s, c;
        mu_sincosf((float)pos * freq[i], &s, &c);
        cos_sin[2 * i] = c * mscale;
        cos_sin[2 * i + 1] = s * mscale;
    }
}

void mu_ref_silu_mul(const float *gate, const float *up, int n, float *out)
{
    for (int i = 0; i < n; i++) out[i] = mu_siluf(gate[i]) * up[i];
}

void mu_ref_silu_clamped_mul(const float *gate, const float *up, int n, float *out)
{
    for (int i = 0; i < n; i++) out[i] = vf_silu_clamped_mul(gate[i], up[i]);
}

void mu_ref_gelu_tanh(const float *x, const float *up, int n, float *out)
{
    for (int i = 0; i < n; i++) out[i] = up ? mu_gelu_tanhf(x[i]) * up[i] : mu_gelu_tanhf(x[i]);
}

void mu_ref_gelu_erf(const float *x, const float *up, int n, float *out)
{
    for (int i = 0; i < n; i++) out[i] = up ? mu_gelu_erff(x[i]) * up[i] : mu_gelu_erff(x[i]);
}

void mu_ref_soft_cap(float *x, int n, float cap)
{
    for (int i = 0; i < n; i++) x[i] = cap * mu_tanhf(x[i] / cap);
}

void mu_ref_add(float *x, const float *y, int n, int round)
{
    for (int i = 0; i < n; i++) x[i] += round ? mu_bf16_to_f32(mu_f32_to_bf16(y[i])) : y[i];
}

void mu_ref_add_scaled(float *x, const float *y, float w, int n)
{
    for (int i = 0; i < n; i++) x[i] = fmaf(w, y[i], x[i]);
}

void mu_ref_add_bf16(float *x, const uint16_t *y, int n)
{
    for (int i = 0; i < n; i++) x[i] += mu_bf16_to_f32(y[i]);
}

void mu_ref_kv_store(enum mu_kv_type kv, const float *k, const float *v, int d_head, int pos_in_page, void *k_page,
                     void *v_page)
{
    if (kv == MU_KV_Q8_0) {
        mu_kv_q8_store(k, v, d_head, pos_in_page, k_page, v_page, mu_ref_quantize);
        return;
    }
    uint16_t *key = (uint16_t *)k_page + (size_t)(pos_in_page / MU_KV_GROUP) * (size_t)d_head * MU_KV_GROUP;
    uint16_t *value = (uint16_t *)v_page + (size_t)pos_in_page * (size_t)d_head;
    for (int d = 0; d < d_head; d++) {
        key[d * MU_KV_GROUP + pos_in_page % MU_KV_GROUP] = mu_f32_to_f16(k[d]);
        value[d] = mu_f32_to_f16(v[d]);
    }
}

int mu_ref_argmax(const float *x, int n, float *max_out)
{
    int best = -1;
    for (int i = 0; i < n; i++) {
        if (!mu_f32_finite(x[i])) return -1;
        if (best < 0 || x[i] > x[best]) best = i;
    }
    if (best >= 0) *max_out = x[best];
    return best;
}

float mu_ref_softmax_terms(const float *x, int n, float max, float *out)
{
    float sum = 0.0f;
    for (int i0 = 0; i0 < n; i0 += SUM_BLOCK) {
        float lane[LANES] = {0};
        int end = n - i0 < SUM_BLOCK ? n : i0 + SUM_BLOCK;
        for (int i = i0; i < end; i++) {
            out[i] = mu_expf(x[i] - max);
            lane[i % LANES] += out[i];
        }
        sum += tree_sum(lane);
    }
    return sum;
}

int mu_ref_draw(const float *x, int n, const struct mu_draw *d, float *sum_out)
{
    int best = -1;
    for (int i = 0; i < n; i++) {
        if (x[i] == -FLT_MAX) continue;
        float u = mu_random_unit(d->seed, d->position, d->first + (uint32_t)i);
        float sum = x[i] / d->temperature + -mu_logf(-mu_logf(u));
        if (best >= 0 && !(sum > *sum_out)) continue;
        best = i;
        *sum_out = sum;
    }
    return best;
}
