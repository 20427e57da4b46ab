/* The definition of C2 and C3: a matrix of the file's own rows times vectors, one accumulator per (row, token), in
 * plain C.
 *
 * Everything faster is held to these bits. The loop runs a row's blocks in order and each block over all tokens, so
 * that a block's codes are decoded once; the accumulators live in `out` meanwhile. */
#include <math.h>
#include <string.h>

#include "kernels/blocks.h"
#include "kernels/parts.h"

size_t mu_ref_mat_bytes(uint32_t type, int n_row, int n_col)
{
    const struct mu_type_info *t = mu_type_info(type);
    size_t row, bytes;
    if (!t || t->act == MU_ACT_NONE || n_row < 0 || n_col < 0) return 0;
    if (!mu_type_row_bytes(type, (uint64_t)n_col, &row)) return 0;
    if (__builtin_mul_overflow(row, (size_t)n_row, &bytes)) return 0;
    return bytes;
}

/* Every scale (or weight, for float types) of n values is finite. */
static bool values_finite(uint32_t type, const uint8_t *p, size_t n)
{
    switch (type) {
    case MU_F32: {
        const float *f = (const float *)(const void *)p;
        for (size_t i = 0; i < n; i++)
            if (!mu_f32_finite(f[i])) return false;
        return true;
    }
    case MU_F16:
        for (size_t i = 0; i < n; i++)
            if (!mu_f16_finite(((const uint16_t *)(const void *)p)[i])) return false;
        return true;
    case MU_BF16:
        for (size_t i = 0; i < n; i++)
            if (!mu_bf16_finite(((const uint16_t *)(const void *)p)[i])) return false;
        return true;
    case MU_Q4_0:
        for (size_t i = 0; i < n / 32; i++)
            if (!mu_f16_finite(((const struct mu_block_q4_0 *)p)[i].d)) return false;
        return true;
    case MU_Q8_0:
        for (size_t i = 0; i < n / 32; i++)
            if (!mu_f16_finite(((const struct mu_block_q8_0 *)p)[i].d)) return false;
        return true;
    case MU_Q4_K:
        for (size_t i = 0; i < n / 256; i++) {
            const struct mu_block_q4_k *b = (const struct mu_block_q4_k *)p + i;
            if (!mu_f16_finite(b->d) || !mu_f16_finite(b->dmin)) return false;
        }
        return true;
    case MU_Q6_K:
        for (size_t i = 0; i < n / 256; i++)
            if (!mu_f16_finite(((const struct mu_block_q6_k *)p)[i].d)) return false;
        return true;
    default: return false;
    }
}

bool mu_ref_mat_pack(const struct mu_mat *m, int row0, int row1, const void *raw)
{
    size_t row;
    if (!mu_type_row_bytes(m->type, (uint64_t)m->n_col, &row)) return false;
    size_t n_rows = (size_t)(row1 - row0);
    memcpy((uint8_t *)m->data + row * (size_t)row0, raw, row * n_rows);
    return values_finite(m->type, (const uint8_t *)m->data + row * (size_t)row0, n_rows * (size_t)m->n_col);
}

/* C3's bf16 rule: |x| below 2^-126 is a signed zero. */
static float flush(float x)
{
    return fabsf(x) < 0x1p-126f ? copysignf(0.0f, x) : x;
}

/* a·b + c rounded once, flushed as hardware with flush-to-zero does it: tininess is judged after rounding to 24 bits
 * with an unbounded exponent. Just below 2^-126 that grid is twice as fine as the subnormals', so what fmaf rounded up
 * to 2^-126 is still tiny where the exact sum is under 2^-126 - 2^-151. The sum in double is exact enough to tell: a·b
 * is exact in it, and what an addition to such a result can lose lies far from that boundary. */
static float fma_flush(float a, float b, float c)
{
    float r = fmaf(a, b, c);
    if (fabsf(r) == 0x1p-126f && fabs((double)a * (double)b + (double)c) < 0x1p-126 - 0x1p-151)
        return copysignf(0.0f, r);
    return flush(r);
}

/* The integer codes of 32 values, after their offset. */
static void codes_expand(uint32_t four, int offset, int *w)
{
    for (int i = 0; i < 4; i++) w[i] = (int)(four >> 8 * i & 0xffu) - offset;
}

static int dot(const int *w, const int8_t *q, int n)
{
    int sum = 0;
    for (int i = 0; i < n; i++) sum += w[i] * q[i];
    return sum;
}

/* One row of each type times all tokens of x. out points at this row's element of token 0. */

static void row_f32(const float *w, const struct mu_act *x, float *out, size_t stride)
{
    for (int t = 0; t < x->n_tok; t++) {
        const float *v = x->f32 + (size_t)t * (size_t)x->n_col;
        float acc = 0.0f;
        for (int c = 0; c < x->n_col; c++) acc = fmaf(w[c], v[c], acc);
        out[(size_t)t * stride] = acc;
    }
}

static void row_f16(const uint16_t *w, const struct mu_act *x, float *out, size_t stride)
{
    for (int t = 0; t < x->n_tok; t++) {
        const float *v = x->f32 + (size_t)t * (size_t)x->n_col;
        float acc = 0.0f;
        for (int c = 0; c < x->n_col; c++) acc = fmaf(mu_f16_to_f32(w[c]), v[c], acc);
        out[(size_t)t * stride] = acc;
    }
}

static void row_bf16(const uint16_t *w, const struct mu_act *x, float *out, size_t stride)
{
    for (int t = 0; t < x->n_tok; t++) {
        const uint16_t *v = x->bf16 + (size_t)t * (size_t)x->n_col;
        float acc = 0.0f;
        for (int c = 0; c < x->n_col; c++)
            acc = fma_flush(flush(mu_bf16_to_f32(w[c])), flush(mu_bf16_to_f32(v[c])), acc);
        out[(size_t)t * stride] = acc;
    }
}

/* The types with one scale per 32: Q4_0, Q8_0. */
static void block_d(const int *w, float d, const struct mu_act *x, int b, float *out, size_t stride)
{
    size_t n_block = (size_t)x->n_col / MU_Q_BLOCK;
    for (int t = 0; t < x->n_tok; t++) {
        size_t i = (size_t)t * n_block + (size_t)b;
        int sum = dot(w, x->q + i * MU_Q_BLOCK, MU_Q_BLOCK);
        float scale = d * x->s[i], *acc = &out[(size_t)t * stride];
        *acc = fmaf((float)sum, scale, *acc);
    }
}

static void row_q4_0(const struct mu_block_q4_0 *w, const struct mu_act *x, float *out, size_t stride)
{
    for (int b = 0; b < x->n_col / 32; b++) {
        int code[32];
        for (int k = 0; k < 8; k++) codes_expand(mu_q4_0_codes(w[b].qs, k), 8, code + 4 * k);
        block_d(code, mu_f16_to_f32(w[b].d), x, b, out, stride);
    }
}

static void row_q8_0(const struct mu_block_q8_0 *w, const struct mu_act *x, float *out, size_t stride)
{
    for (int b = 0; b < x->n_col / 32; b++) {
        int code[32];
        for (int i = 0; i < 32; i++) code[i] = w[b].qs[i];
        block_d(code, mu_f16_to_f32(w[b].d), x, b, out, stride);
    }
}

static void row_q4_k(const struct mu_block_q4_k *w, const struct mu_act *x, float *out, size_t stride)
{
    size_t n_block = (size_t)x->n_col / MU_Q_BLOCK;
    for (int b = 0; b < x->n_col / 32; b++) {
        const struct mu_block_q4_k *blk = w + b / 8;
        int j = b % 8, code[32];
        uint8_t sc, mn;
        mu_k4_scale(blk->scales, j, &sc, &mn);
        for (int k = 0; k < 8; k++) codes_expand(mu_q4_k_codes(blk->qs, j, k), 0, code + 4 * k);
        float d = mu_f16_to_f32(blk->d) * (float)sc, m = mu_f16_to_f32(blk->dmin) * (float)mn;
        for (int t = 0; t < x->n_tok; t++) {
            size_t i = (size_t)t * n_block + (size_t)b;
            float *acc = &out[(size_t)t * stride], s = x->s[i];
            float scale = d * s, total = (float)(x->sum[2 * i] + x->sum[2 * i + 1]) * s;
            *acc = fmaf((float)dot(code, x->q + i * MU_Q_BLOCK, MU_Q_BLOCK), scale, *acc);
            *acc = fmaf(-m, total, *acc);
        }
    }
}

static void row_q6_k(const struct mu_block_q6_k *w, const struct mu_act *x, float *out, size_t stride)
{
    size_t n_block = (size_t)x->n_col / MU_Q_BLOCK;
    for (int b = 0; b < x->n_col / 32; b++) {
        const struct mu_block_q6_k *blk = w + b / 8;
        int j = b % 8, code[32], sc0 = blk->scales[2 * j], sc1 = blk->scales[2 * j + 1];
        for (int k = 0; k < 8; k++) codes_expand(mu_q6_k_codes(blk, j, k), 32, code + 4 * k);
        float d = mu_f16_to_f32(blk->d);
        for (int t = 0; t < x->n_tok; t++) {
            size_t i = (size_t)t * n_block + (size_t)b;
            const int8_t *q = x->q + i * MU_Q_BLOCK;
            float *acc = &out[(size_t)t * stride], scale = d * x->s[i];
            *acc = fmaf((float)(sc0 * dot(code, q, 16) + sc1 * dot(code + 16, q + 16, 16)), scale, *acc);
        }
    }
}

void mu_ref_matmul(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out, size_t out_stride)
{
    size_t row_bytes;
    if (!mu_type_row_bytes(m->type, (uint64_t)m->n_col, &row_bytes)) return;
    for (int r = row0; r < row1; r++) {
        const void *w = (const uint8_t *)m->data + row_bytes * (size_t)r;
        float *o = out + r;
        for (int t = 0; t < x->n_tok; t++) o[(size_t)t * out_stride] = 0.0f;
        switch (m->type) {
        case MU_F32: row_f32(w, x, o, out_stride); break;
        case MU_F16: row_f16(w, x, o, out_stride); break;
        case MU_BF16: row_bf16(w, x, o, out_stride); break;
        case MU_Q4_0: row_q4_0(w, x, o, out_stride); break;
        case MU_Q8_0: row_q8_0(w, x, o, out_stride); break;
        case MU_Q4_K: row_q4_k(w, x, o, out_stride); break;
        case MU_Q6_K: row_q6_k(w, x, o, out_stride); break;
        default: break;
        }
    }
}
