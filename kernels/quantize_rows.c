/* Quantising rows.
 *
 * Everything comes down to two fits of a few values (16 or 32):
 *
 *   fit_scale   x ≈ d·q, q in [low, high]        Q4_0, Q5_0, Q6_K, Q3_K
 *   fit_affine  x ≈ d·q + m, q in [0, high]      Q4_1, Q5_1; Q4_K, Q5_K and Q2_K with m ≤ 0
 *
 * Both try some first scales, round, solve for the best scale of those codes, and keep the least squared error.
 * IQ4_NL and MXFP4 do it with values that are no steps of one size (struct ladder). Blocks
 * of 256 then round their 8 or 16 scales themselves, and choose the codes again for the scale that a reader will see. */
#include "kernels/quantize_rows.h"

#include <math.h>
#include <string.h>

#include "kernels/blocks.h"

enum { N_TRY = 9 }; /* first scales on either side of the largest value's */

enum { N_LANE = 8 };
static const float LARGEST = 1e15f; /* beyond it sums of squares might overflow; no scale of an f16 reaches it */
static const float TINY = 1e-30f;   /* far below what an f16 scale can say, and its inverse is finite */

/* Sums run in eight lanes, whose order is fixed, so that every compiler's vectors give the same bits. */
static float sum_lanes(const float *lane)
{
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

/* The nearest whole number in [low, high], ties to even; |low|, |high| below 2^22. x·inverse is no NaN. */
static inline float level(float x, float inverse, float low, float high)
{
    const float whole = 12582912.0f; /* 1.5·2^23: floats there are whole numbers */
    float v = x * inverse;
    v = v < low ? low : v;
    v = v > high ? high : v;
    return (v + whole) - whole;
}

static int code(float x, float inverse, int low, int high)
{
    return (int)level(x, inverse, (float)low, (float)high);
}

static float inverse_of(float d)
{
    return fabsf(d) >= TINY ? 1.0f / d : 0.0f;
}

static float greatest(const float *x, int n) /* in magnitude */
{
    float most = 0.0f;
    for (int i = 0; i < n; i++)
        if (fabsf(x[i]) > fabsf(most)) most = x[i];
    return most;
}

/* ---- the two fits; n a multiple of the lanes ---- */

/* The scale for codes [low, high], -low ≥ high; 0 for zeros. The value of greatest magnitude gets the code `low`, so
 * the scale's sign is against its own. */
static float fit_scale(const float *x, int n, int low, int high)
{
    float most = greatest(x, n), best = 0.0f, gain = 0.0f;
    if (fabsf(most) < TINY) return 0.0f;
    for (int t = -N_TRY; t <= N_TRY; t++) {
        float inverse = ((float)low + 0.1f * (float)t) / most, xq[N_LANE] = {0}, qq[N_LANE] = {0};
        for (int i = 0; i < n; i += N_LANE)
            for (int k = 0; k < N_LANE; k++) {
                float q = level(x[i + k], inverse, (float)low, (float)high);
                xq[k] += x[i + k] * q;
                qq[k] += q * q;
            }
        /* Σ(x - d·q)² = Σx² - (Σxq)²/Σq² at the best d */
        float a = sum_lanes(xq), b = sum_lanes(qq);
        if (b > 0.0f && a * a > gain * b) {
            gain = a * a / b;
            best = a / b;
        }
    }
    return best;
}

struct affine {
    float d, m;
};

/* Scale ≥ 0 and offset for codes [0, high]; not_above: the offset must be 0 or less. Fits y = x - lowest, so that
 * what all values have in common costs no precision. */
static struct affine fit_affine(const float *x, int n, int high, bool not_above)
{
    float y[32], low = x[0], top = x[0], sum = 0.0f, least = 0.0f;
    for (int i = 0; i < n; i++) {
        low = x[i] < low ? x[i] : low;
        top = x[i] > top ? x[i] : top;
    }
    if (not_above && low > 0.0f) low = 0.0f;
    struct affine best = {0.0f, low};
    if (!(top - low >= TINY)) return best;
    for (int i = 0; i < n; i++) {
        y[i] = x[i] - low;
        sum += y[i];
    }
    for (int t = -N_TRY; t <= N_TRY; t++) {
        float inverse = ((float)high + 0.1f * (float)t) / (top - low);
        float l1[N_LANE] = {0}, l2[N_LANE] = {0}, ly[N_LANE] = {0};
        for (int i = 0; i < n; i += N_LANE)
            for (int k = 0; k < N_LANE; k++) {
                float q = level(y[i + k], inverse, 0.0f, (float)high);
                l1[k] += q;
                l2[k] += q * q;
                ly[k] += y[i + k] * q;
            }
        float q1 = sum_lanes(l1), q2 = sum_lanes(l2), yq = sum_lanes(ly), count = (float)n, det = count * q2 - q1 * q1;
        if (!(q2 > 0.0f)) continue;
        struct affine a = {yq / q2, 0.0f}; /* where all codes are one */
        if (det > 0.0f) a = (struct affine){(count * yq - sum * q1) / det, (q2 * sum - q1 * yq) / det};
        if (not_above && a.m > -low) { /* the offset of x would be above 0 */
            a.m = -low;
            a.d = (yq + low * q1) / q2;
        }
        if (!(a.d > 0.0f)) continue;
        /* Σ(y - d·q - m)² less Σy² */
        float error = a.d * a.d * q2 + count * a.m * a.m + 2.0f * (a.d * a.m * q1 - a.d * yq - a.m * sum);
        if (error < least) {
            least = error;
            best = (struct affine){a.d, a.m + low};
        }
    }
    return best;
}

/* ---- blocks of 32 ---- */

/* An f16 scale as a reader sees it; false where it overflows. */
static bool store_f16(float v, uint16_t *out, float *seen_out)
{
    *out = mu_f32_to_f16(v);
    *seen_out = mu_f16_to_f32(*out);
    return isfinite(*seen_out);
}

/* Nibbles: value i in byte i's low half, 16 + i in its high one. */
static void put_nibbles(const uint8_t *q, uint8_t *qs)
{
    for (int i = 0; i < 16; i++) qs[i] = (uint8_t)((q[i] & 15) | (q[16 + i] & 15) << 4);
}

static void put_fifth_bits(const uint8_t *q, uint8_t *qh)
{
    memset(qh, 0, 4);
    for (int i = 0; i < 32; i++) qh[i >> 3] |= (uint8_t)(q[i] >> 4 << (i & 7));
}

static bool q8_0(const float *x, struct mu_block_q8_0 *b)
{
    float d;
    uint16_t h;
    if (!store_f16(fabsf(greatest(x, 32)) / 127.0f, &h, &d)) return false;
    float inverse = inverse_of(d);
    b->d = h;
    for (int i = 0; i < 32; i++) b->qs[i] = (int8_t)code(x[i], inverse, -127, 127);
    return true;
}

/* Codes of 32 values for a signed scale, plus -low. */
static bool scaled_codes(const float *x, int low, int high, uint16_t *d_out, uint8_t *q)
{
    float d;
    if (!store_f16(fit_scale(x, 32, low, high), d_out, &d)) return false;
    float inverse = inverse_of(d);
    for (int i = 0; i < 32; i++) q[i] = (uint8_t)(code(x[i], inverse, low, high) - low);
    return true;
}

static bool affine_codes(const float *x, int high, uint16_t *d_out, uint16_t *m_out, uint8_t *q)
{
    struct affine a = fit_affine(x, 32, high, false), seen;
    if (!store_f16(a.d, d_out, &seen.d) || !store_f16(a.m, m_out, &seen.m)) return false;
    float inverse = inverse_of(seen.d);
    for (int i = 0; i < 32; i++) q[i] = (uint8_t)code(x[i] - seen.m, inverse, 0, high);
    return true;
}

static bool q4_0(const float *x, struct mu_block_q4_0 *b)
{
    uint8_t q[32];
    uint16_t d;
    if (!scaled_codes(x, -8, 7, &d, q)) return false;
    b->d = d;
    put_nibbles(q, b->qs);
    return true;
}

static bool q5_0(const float *x, struct mu_block_q5_0 *b)
{
    uint8_t q[32];
    uint16_t d;
    if (!scaled_codes(x, -16, 15, &d, q)) return false;
    b->d = d;
    put_nibbles(q, b->qs);
    put_fifth_bits(q, b->qh);
    return true;
}

static bool q4_1(const float *x, struct mu_block_q4_1 *b)
{
    uint8_t q[32];
    uint16_t d, m;
    if (!affine_codes(x, 15, &d, &m, q)) return false;
    b->d = d;
    b->m = m;
    put_nibbles(q, b->qs);
    return true;
}

static bool q5_1(const float *x, struct mu_block_q5_1 *b)
{
    uint8_t q[32];
    uint16_t d, m;
    if (!affine_codes(x, 31, &d, &m, q)) return false;
    b->d = d;
    b->m = m;
    put_nibbles(q, b->qs);
    put_fifth_bits(q, b->qh);
    return true;
}

/* Values that ascend: the middles between neighbours, and the steps from each to the next. */
struct ladder {
    float first, middle[15], step[15];
    int n; /* middles */
};

static struct ladder ladder_of(const int8_t *values, int n)
{
    struct ladder l = {.first = (float)values[0], .n = n - 1};
    for (int i = 0; i + 1 < n; i++) {
        l.middle[i] = ((float)values[i] + (float)values[i + 1]) * 0.5f;
        l.step[i] = (float)values[i + 1] - (float)values[i];
    }
    return l;
}

/* Σxv and Σv² over 32 values x, v being the value nearest to x·inverse. */
static void climb(const struct ladder *l, const float *x, float inverse, float *xv_out, float *vv_out)
{
    float u[32], v[32], xv[N_LANE] = {0}, vv[N_LANE] = {0};
    for (int i = 0; i < 32; i++) {
        u[i] = x[i] * inverse;
        v[i] = l->first;
    }
    for (int m = 0; m < l->n; m++) {
        float middle = l->middle[m], step = l->step[m];
        for (int i = 0; i < 32; i++) {
            float up = u[i] > middle ? step : 0.0f;
            v[i] += up;
        }
    }
    for (int i = 0; i < 32; i += N_LANE)
        for (int k = 0; k < N_LANE; k++) {
            xv[k] += x[i + k] * v[i + k];
            vv[k] += v[i + k] * v[i + k];
        }
    *xv_out = sum_lanes(xv);
    *vv_out = sum_lanes(vv);
}

/* Which of the ladder's values. */
static int rung(const struct ladder *l, float v)
{
    int n = 0;
    for (int m = 0; m < l->n; m++) n += v > l->middle[m];
    return n;
}

static bool iq4_nl(const float *x, struct mu_block_iq4_nl *b)
{
    const struct ladder l = ladder_of(mu_iq4_values, 16);
    float most = greatest(x, 32), best = 0.0f, gain = 0.0f, d;
    uint8_t q[32];
    uint16_t h;
    for (int t = -N_TRY; t <= N_TRY && fabsf(most) >= TINY; t++) {
        float xv, vv;
        climb(&l, x, (-127.0f + 3.0f * (float)t) / most, &xv, &vv);
        if (vv > 0.0f && xv * xv > gain * vv) {
            gain = xv * xv / vv;
            best = xv / vv;
        }
    }
    if (!store_f16(best, &h, &d)) return false;
    float inverse = inverse_of(d);
    b->d = h;
    for (int i = 0; i < 32; i++) q[i] = (uint8_t)rung(&l, x[i] * inverse);
    put_nibbles(q, b->qs);
    return true;
}

/* The exponent that the largest value asks for and its neighbours, whichever errs least. */
static bool mxfp4(const float *x, struct mu_block_mxfp4 *b)
{
    static const int8_t ascending[15] = {-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12};
    static const uint8_t codes[15] = {15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7};
    const struct ladder l = ladder_of(ascending, 15);
    float most = fabsf(greatest(x, 32)), least = INFINITY;
    uint8_t q[32];
    int exponent, e;
    frexpf(most, &exponent);
    e = exponent + 124; /* `most` is 8 to 16 halves of that scale; codes reach 12 */
    if (most < TINY || e < 2) e = 2;
    if (e > 253) e = 253;
    for (int c = e - 1, end = e + 1; c <= end; c++) {
        float d = mu_e8m0_half((uint8_t)c), xv, vv;
        climb(&l, x, 1.0f / d, &xv, &vv);
        float error = d * (d * vv - 2.0f * xv); /* less Σx² */
        if (error < least) {
            least = error;
            e = c;
        }
    }
    float inverse = 1.0f / mu_e8m0_half((uint8_t)e);
    b->e = (uint8_t)e;
    for (int i = 0; i < 32; i++) q[i] = codes[rung(&l, x[i] * inverse)];
    put_nibbles(q, b->qs);
    return true;
}

/* ---- blocks of 256 ---- */

/* Scales and offsets of 8 × 32 values in 6 bits each, and the codes for what a reader makes of them. */
static bool affine_256(const float *x, int high, uint16_t *d_out, uint16_t *dmin_out, uint8_t scales[12],
                       uint8_t q[256])
{
    struct affine a[8];
    float d_most = 0.0f, m_most = 0.0f, d, dmin;
    memset(scales, 0, 12);
    for (int j = 0; j < 8; j++) {
        a[j] = fit_affine(x + 32 * j, 32, high, true);
        if (a[j].d > d_most) d_most = a[j].d;
        if (-a[j].m > m_most) m_most = -a[j].m;
    }
    if (!store_f16(d_most / 63.0f, d_out, &d) || !store_f16(m_most / 63.0f, dmin_out, &dmin)) return false;
    for (int j = 0; j < 8; j++) {
        int s = code(a[j].d, inverse_of(d), 0, 63), m = code(-a[j].m, inverse_of(dmin), 0, 63);
        if (j < 4) {
            scales[j] |= (uint8_t)s;
            scales[j + 4] |= (uint8_t)m;
        } else {
            scales[j + 4] = (uint8_t)((s & 15) | (m & 15) << 4);
            scales[j - 4] |= (uint8_t)(s >> 4 << 6);
            scales[j] |= (uint8_t)(m >> 4 << 6);
        }
        float inverse = inverse_of(d * (float)s), offset = dmin * (float)m;
        for (int i = 0; i < 32; i++) q[32 * j + i] = (uint8_t)code(x[32 * j + i] + offset, inverse, 0, high);
    }
    return true;
}

static void put_k_nibbles(const uint8_t *q, uint8_t *qs)
{
    for (int j = 0; j < 4; j++)
        for (int i = 0; i < 32; i++) qs[32 * j + i] = (uint8_t)((q[64 * j + i] & 15) | (q[64 * j + 32 + i] & 15) << 4);
}

static bool q4_k(const float *x, struct mu_block_q4_k *b)
{
    uint8_t q[256], scales[12];
    uint16_t d, dmin;
    if (!affine_256(x, 15, &d, &dmin, scales, q)) return false;
    b->d = d;
    b->dmin = dmin;
    memcpy(b->scales, scales, sizeof scales);
    put_k_nibbles(q, b->qs);
    return true;
}

static bool q5_k(const float *x, struct mu_block_q5_k *b)
{
    uint8_t q[256], scales[12];
    uint16_t d, dmin;
    if (!affine_256(x, 31, &d, &dmin, scales, q)) return false;
    b->d = d;
    b->dmin = dmin;
    memcpy(b->scales, scales, sizeof scales);
    put_k_nibbles(q, b->qs);
    memset(b->qh, 0, sizeof b->qh);
    for (int i = 0; i < 256; i++) b->qh[i & 31] |= (uint8_t)(q[i] >> 4 << (i >> 5));
    return true;
}

/* 16 scales of 16 values, and the f16 scale of the scales: the greatest gets the code `low`. */
static bool scales_16(const float *x, int low, int high, int scale_low, int scale_high, uint16_t *d_out, int scale[16],
                      float seen[16])
{
    float fit[16], most = 0.0f, d;
    for (int j = 0; j < 16; j++) {
        fit[j] = fit_scale(x + 16 * j, 16, low, high);
        if (fabsf(fit[j]) > fabsf(most)) most = fit[j];
    }
    if (!store_f16(most / (float)scale_low, d_out, &d)) return false;
    for (int j = 0; j < 16; j++) {
        scale[j] = code(fit[j], inverse_of(d), scale_low, scale_high);
        seen[j] = d * (float)scale[j];
    }
    return true;
}

static bool q6_k(const float *x, struct mu_block_q6_k *b)
{
    int scale[16];
    float seen[16];
    uint8_t q[256];
    uint16_t d;
    if (!scales_16(x, -32, 31, -128, 127, &d, scale, seen)) return false;
    b->d = d;
    for (int j = 0; j < 16; j++) {
        b->scales[j] = (int8_t)scale[j];
        float inverse = inverse_of(seen[j]);
        for (int i = 16 * j; i < 16 * j + 16; i++) q[i] = (uint8_t)(code(x[i], inverse, -32, 31) + 32);
    }
    for (int half = 0; half < 2; half++)
        for (int i = 0; i < 32; i++) {
            const uint8_t *at = q + 128 * half + i; /* values 32m + i, m of 0 … 3 */
            b->ql[64 * half + i] = (uint8_t)((at[0] & 15) | (at[64] & 15) << 4);
            b->ql[64 * half + 32 + i] = (uint8_t)((at[32] & 15) | (at[96] & 15) << 4);
            b->qh[32 * half + i] = (uint8_t)(at[0] >> 4 | at[32] >> 4 << 2 | at[64] >> 4 << 4 | at[96] >> 4 << 6);
        }
    return true;
}

static void put_low2(const uint8_t *q, uint8_t *qs)
{
    memset(qs, 0, 64);
    for (int i = 0; i < 256; i++) qs[32 * (i >> 7) + (i & 31)] |= (uint8_t)((q[i] & 3) << 2 * (i >> 5 & 3));
}

static bool q3_k(const float *x, struct mu_block_q3_k *b)
{
    int scale[16];
    float seen[16];
    uint8_t q[256];
    uint16_t d;
    if (!scales_16(x, -4, 3, -32, 31, &d, scale, seen)) return false;
    memset(b, 0, sizeof *b);
    b->d = d;
    for (int j = 0; j < 16; j++) {
        int s = scale[j] + 32;
        b->scales[j & 7] |= (uint8_t)((s & 15) << (j < 8 ? 0 : 4));
        b->scales[8 + (j & 3)] |= (uint8_t)(s >> 4 << 2 * (j >> 2));
        float inverse = inverse_of(seen[j]);
        for (int i = 16 * j; i < 16 * j + 16; i++) q[i] = (uint8_t)(code(x[i], inverse, -4, 3) + 4);
    }
    put_low2(q, b->qs);
    for (int i = 0; i < 256; i++) b->hmask[i & 31] |= (uint8_t)(q[i] >> 2 << (i >> 5));
    return true;
}

static bool q2_k(const float *x, struct mu_block_q2_k *b)
{
    struct affine a[16];
    float d_most = 0.0f, m_most = 0.0f, d, dmin;
    uint8_t q[256];
    uint16_t h, hmin;
    for (int j = 0; j < 16; j++) {
        a[j] = fit_affine(x + 16 * j, 16, 3, true);
        if (a[j].d > d_most) d_most = a[j].d;
        if (-a[j].m > m_most) m_most = -a[j].m;
    }
    if (!store_f16(d_most / 15.0f, &h, &d) || !store_f16(m_most / 15.0f, &hmin, &dmin)) return false;
    b->d = h;
    b->dmin = hmin;
    for (int j = 0; j < 16; j++) {
        int s = code(a[j].d, inverse_of(d), 0, 15), m = code(-a[j].m, inverse_of(dmin), 0, 15);
        b->scales[j] = (uint8_t)(s | m << 4);
        float inverse = inverse_of(d * (float)s), offset = dmin * (float)m;
        for (int i = 16 * j; i < 16 * j + 16; i++) q[i] = (uint8_t)code(x[i] + offset, inverse, 0, 3);
    }
    put_low2(q, b->qs);
    return true;
}

/* ---- rows ---- */

bool mu_quantize_knows(uint32_t type)
{
    switch (type) {
    case MU_F16:
    case MU_Q4_0:
    case MU_Q4_1:
    case MU_Q5_0:
    case MU_Q5_1:
    case MU_Q8_0:
    case MU_Q2_K:
    case MU_Q3_K:
    case MU_Q4_K:
    case MU_Q5_K:
    case MU_Q6_K:
    case MU_IQ4_NL:
    case MU_MXFP4: return true;
    default: return false;
    }
}

static bool f16(const float *x, uint8_t *out)
{
    uint16_t h;
    float seen;
    bool ok = store_f16(*x, &h, &seen);
    memcpy(out, &h, sizeof h);
    return ok;
}

static bool block(uint32_t type, const float *x, void *out)
{
    switch (type) {
    case MU_F16: return f16(x, out);
    case MU_Q4_0: return q4_0(x, out);
    case MU_Q4_1: return q4_1(x, out);
    case MU_Q5_0: return q5_0(x, out);
    case MU_Q5_1: return q5_1(x, out);
    case MU_Q8_0: return q8_0(x, out);
    case MU_Q2_K: return q2_k(x, out);
    case MU_Q3_K: return q3_k(x, out);
    case MU_Q4_K: return q4_k(x, out);
    case MU_Q5_K: return q5_k(x, out);
    case MU_Q6_K: return q6_k(x, out);
    case MU_IQ4_NL: return iq4_nl(x, out);
    case MU_MXFP4: return mxfp4(x, out);
    default: return false;
    }
}

bool mu_quantize_row(uint32_t type, const float *x, int n, void *out)
{
    const struct mu_type_info *info = mu_type_info(type);
    uint8_t *to = out;
    for (int i = 0; i < n; i++)
        if (!(fabsf(x[i]) < LARGEST)) return false;
    for (int i = 0; i < n; i += info->block_values, to += info->block_bytes)
        if (!block(type, x + i, to)) return false;
    return true;
}
