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

bool mu_ref_mat_pack(const struct mu_mat *m, int row0, int row1, const void *raw)
{
    size_t row;
    if (!mu_type_row_bytes(m->type, (uint64_t)m->n_col, &row)) return false;
    size_t n_rows = (size_t)(row1 - row0);
    memcpy((uint8_t *)m->data + row * (size_t)row0, raw, row * n_rows);
    return mu_values_finite(m->type, raw, n_rows * (size_t)m->n_col);
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

/* Not inlined: within another loop gcc takes it apart before it thinks of vectors. */
__attribute__((noinline)) static int dot_16(const int8_t *w, const int8_t *q)
{
    int sum = 0;
    for (int i = 0; i < 16; i++) sum += w[i] * q[i];
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

/* One f32 row, as any type that C2 has no rule for is widened to. */
static void row_widened(uint32_t type, const uint8_t *w, const struct mu_act *x, float *out, size_t stride)
{
    const struct mu_type_info *info = mu_type_info(type);
    for (int c = 0; c < x->n_col; c += info->block_values, w += info->block_bytes) {
        float v[256];
        mu_ref_dequant_row(type, w, info->block_values, v);
        for (int t = 0; t < x->n_tok; t++)
            for (int i = 0; i < info->block_values; i++) {
                float *acc = &out[(size_t)t * stride];
                *acc = fmaf(v[i], x->f32[(size_t)t * (size_t)x->n_col + (size_t)(c + i)], *acc);
            }
    }
}

/* What C2 needs of block b, 32 values of a row. w: codes after their offset. One scale d: acc = fmaf((float)I, fl(d·s),
 * acc). Two halves, where has_halves: J = sc[0]·I0 + sc[1]·I1 in the place of I. Then, where has_min: acc = fmaf(min,
 * fl((float)S·s), acc), or with halves, Z = mn[0]·S0 + mn[1]·S1: acc = fmaf(-(float)Z, fl(min·s), acc). */
struct block {
    int8_t w[32];
    float d, min;
    bool has_halves, has_min;
    int sc[2], mn[2];
};

static void block_multiply(const struct block *k, const struct mu_act *x, int b, float *out, size_t stride)
{
    size_t n_block = (size_t)x->n_col / MU_Q_BLOCK;
    for (int t = 0; t < x->n_tok; t++) {
        size_t i = (size_t)t * n_block + (size_t)b;
        const int8_t *q = x->q + i * MU_Q_BLOCK;
        float s = x->s[i], scale = k->d * s, *acc = &out[(size_t)t * stride];
        int s0 = x->sum[2 * i], s1 = x->sum[2 * i + 1], low = dot_16(k->w, q), high = dot_16(k->w + 16, q + 16);
        if (k->has_halves) {
            *acc = fmaf((float)(k->sc[0] * low + k->sc[1] * high), scale, *acc);
            float lowered = k->min * s;
            if (k->has_min) *acc = fmaf(-(float)(k->mn[0] * s0 + k->mn[1] * s1), lowered, *acc);
        } else {
            *acc = fmaf((float)(low + high), scale, *acc);
            float total = (float)(s0 + s1) * s;
            if (k->has_min) *acc = fmaf(k->min, total, *acc);
        }
    }
}

/* The codes of 32 values, four at a time (blocks.h; i is which four), as signed bytes: less an offset, or each the index of
 * a value. */
#define CODES(four) \
    for (int i = 0; i < 8; i++) memcpy(k->w + 4 * i, &(uint32_t){four}, 4)

static void take_off(int8_t *w, int offset)
{
    for (int i = 0; i < 32; i++) w[i] = (int8_t)(w[i] - offset);
}

static void look_up(int8_t *w, const int8_t *values)
{
    for (int i = 0; i < 32; i++) w[i] = values[w[i]];
}

/* The types of 32 values a block. */
static void block_32(uint32_t type, const uint8_t *row, int b, struct block *k)
{
    const void *p = row + (size_t)b * (size_t)mu_type_info(type)->block_bytes;
    const struct mu_block_q4_0 *q40 = p;
    const struct mu_block_q4_1 *q41 = p;
    const struct mu_block_q5_0 *q50 = p;
    const struct mu_block_q5_1 *q51 = p;
    const struct mu_block_q8_0 *q80 = p;
    const struct mu_block_iq4_nl *nl = p;
    const struct mu_block_mxfp4 *mx = p;
    k->has_min = type == MU_Q4_1 || type == MU_Q5_1;
    if (k->has_min) k->min = mu_f16_to_f32(type == MU_Q4_1 ? q41->m : q51->m);
    k->d = type == MU_MXFP4 ? mu_e8m0_half(mx->e) : mu_f16_to_f32(q40->d); /* where d is f16 it comes first */
    switch (type) {
    case MU_Q4_0:
        CODES(mu_q4_0_codes(q40->qs, i));
        take_off(k->w, 8);
        break;
    case MU_Q4_1: CODES(mu_q4_0_codes(q41->qs, i)); break;
    case MU_Q5_0:
        CODES(mu_q5_0_codes(q50->qs, q50->qh, i));
        take_off(k->w, 16);
        break;
    case MU_Q5_1: CODES(mu_q5_0_codes(q51->qs, q51->qh, i)); break;
    case MU_IQ4_NL:
        CODES(mu_q4_0_codes(nl->qs, i));
        look_up(k->w, mu_iq4_values);
        break;
    case MU_MXFP4:
        CODES(mu_q4_0_codes(mx->qs, i));
        look_up(k->w, mu_mxfp4_values);
        break;
    default: memcpy(k->w, q80->qs, 32);
    }
}

/* The types of 256 values: block b is 32 of them. */
static void block_256(uint32_t type, const uint8_t *row, int b, struct block *k)
{
    const void *p = row + (size_t)(b / 8) * (size_t)mu_type_info(type)->block_bytes;
    const struct mu_block_q2_k *q2 = p;
    const struct mu_block_q3_k *q3 = p;
    const struct mu_block_q4_k *q4 = p;
    const struct mu_block_q5_k *q5 = p;
    const struct mu_block_q6_k *q6 = p;
    const struct mu_block_iq4_xs *xs = p;
    int j = b % 8;
    uint8_t sc, mn;
    k->has_halves = type == MU_Q2_K || type == MU_Q3_K || type == MU_Q6_K;
    k->has_min = type == MU_Q2_K || type == MU_Q4_K || type == MU_Q5_K;
    switch (type) {
    case MU_Q4_K: /* Q5_K begins as Q4_K does */
    case MU_Q5_K:
        mu_k4_scale(q4->scales, j, &sc, &mn);
        k->d = mu_f16_to_f32(q4->d) * (float)sc;
        k->min = -(mu_f16_to_f32(q4->dmin) * (float)mn);
        break;
    case MU_IQ4_XS: k->d = mu_f16_to_f32(xs->d) * (float)mu_iq4_xs_scale(xs, j); break;
    case MU_Q2_K: k->min = mu_f16_to_f32(q2->dmin); /* fall through */
    default: k->d = mu_f16_to_f32(type == MU_Q2_K ? q2->d : type == MU_Q3_K ? q3->d : q6->d);
    }
    for (int h = 0; h < 2 && k->has_halves; h++) {
        int i = 2 * j + h;
        k->mn[h] = type == MU_Q2_K ? q2->scales[i] >> 4 : 0;
        k->sc[h] = type == MU_Q2_K   ? q2->scales[i] & 15
                   : type == MU_Q3_K ? mu_q3_k_scale(q3->scales, i)
                                     : q6->scales[i];
    }
    switch (type) {
    case MU_Q2_K: CODES(mu_low2_codes(q2->qs, j, i)); break;
    case MU_Q3_K:
        CODES(mu_q3_k_codes(q3, j, i));
        take_off(k->w, 4);
        break;
    case MU_Q4_K: CODES(mu_q4_k_codes(q4->qs, j, i)); break;
    case MU_Q5_K: CODES(mu_q5_k_codes(q5, j, i)); break;
    case MU_IQ4_XS:
        CODES(mu_q4_0_codes(xs->qs + 16 * j, i));
        look_up(k->w, mu_iq4_values);
        break;
    default: CODES(mu_q6_k_codes(q6, j, i)); take_off(k->w, 32);
    }
}

static void row_quantised(uint32_t type, const uint8_t *w, const struct mu_act *x, float *out, size_t stride)
{
    bool wide = mu_type_info(type)->block_values == 256;
    for (int b = 0; b < x->n_col / MU_Q_BLOCK; b++) {
        struct block k = {.has_min = false};
        (wide ? block_256 : block_32)(type, w, b, &k);
        block_multiply(&k, x, b, out, stride);
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
        default: (mu_type_info(m->type)->act == MU_ACT_Q8 ? row_quantised : row_widened)(m->type, w, x, o, out_stride);
        }
    }
}
