/* Blocks back to f32, for embedding look-ups and tests: the values that ggml's dequantisers give, bit for bit. */
#include "kernels/blocks.h"
#include "kernels/eight.h"
#include "kernels/parts.h"

static int nibble(const uint8_t *qs, int i)
{
    return i < 16 ? qs[i] & 15 : qs[i - 16] >> 4;
}
static int fifth_bit(const uint8_t *qh, int i)
{
    return (qh[i / 8] >> (i % 8) & 1) << 4;
}

static void dequant_q4_0(const struct mu_block_q4_0 *b, float *out)
{
    float d = mu_f16_to_f32(b->d);
    for (int i = 0; i < 32; i++) out[i] = (float)(nibble(b->qs, i) - 8) * d;
}

static void dequant_q4_1(const struct mu_block_q4_1 *b, float *out)
{
    float d = mu_f16_to_f32(b->d), m = mu_f16_to_f32(b->m);
    for (int i = 0; i < 32; i++) out[i] = (float)nibble(b->qs, i) * d + m;
}

static void dequant_q5_0(const struct mu_block_q5_0 *b, float *out)
{
    float d = mu_f16_to_f32(b->d);
    for (int i = 0; i < 32; i++) out[i] = (float)((nibble(b->qs, i) | fifth_bit(b->qh, i)) - 16) * d;
}

static void dequant_q5_1(const struct mu_block_q5_1 *b, float *out)
{
    float d = mu_f16_to_f32(b->d), m = mu_f16_to_f32(b->m);
    for (int i = 0; i < 32; i++) out[i] = (float)(nibble(b->qs, i) | fifth_bit(b->qh, i)) * d + m;
}

static void dequant_q8_0(const struct mu_block_q8_0 *b, float *out)
{
    float d = mu_f16_to_f32(b->d);
    for (int i = 0; i < 32; i++) out[i] = (float)b->qs[i] * d;
}

/* Q4_K, and Q5_K where qh (one bit per value, bit j of byte i for value 32j + i) is given. */
static void dequant_k45(uint16_t d16, uint16_t dmin16, const uint8_t *scales, const uint8_t *qs, const uint8_t *qh,
                        float *out)
{
    float d = mu_f16_to_f32(d16), dmin = mu_f16_to_f32(dmin16);
    for (int j = 0; j < 8; j++) {
        uint8_t sc, mn;
        mu_k4_scale(scales, j, &sc, &mn);
        float scale = d * (float)sc, min = dmin * (float)mn;
        for (int i = 0; i < 32; i++) {
            int code = qs[32 * (j / 2) + i] >> (j & 1 ? 4 : 0) & 15;
            if (qh) code |= (qh[i] >> j & 1) << 4;
            out[32 * j + i] = scale * (float)code - min;
        }
    }
}

static void dequant_look_up(const uint8_t *qs, const int8_t *values, float d, float *out)
{
    for (int i = 0; i < 32; i++) out[i] = d * (float)values[nibble(qs, i)];
}

static void dequant_iq4_xs(const struct mu_block_iq4_xs *b, float *out)
{
    float d = mu_f16_to_f32(b->d);
    for (int j = 0; j < 8; j++)
        dequant_look_up(b->qs + 16 * j, mu_iq4_values, d * (float)mu_iq4_xs_scale(b, j), out + 32 * j);
}

/* Value i of 256 from four codes at a time. */
static int code_of(uint32_t four, int i)
{
    return (int)(four >> 8 * (i % 4) & 0xffu);
}

static void dequant_q2_k(const struct mu_block_q2_k *b, float *out)
{
    float d = mu_f16_to_f32(b->d), dmin = mu_f16_to_f32(b->dmin);
    for (int i = 0; i < 256; i++) {
        int code = code_of(mu_low2_codes(b->qs, i / 32, i % 32 / 4), i);
        float scale = d * (float)(b->scales[i / 16] & 15), min = dmin * (float)(b->scales[i / 16] >> 4);
        out[i] = scale * (float)code - min;
    }
}

static void dequant_q3_k(const struct mu_block_q3_k *b, float *out)
{
    float d = mu_f16_to_f32(b->d);
    for (int i = 0; i < 256; i++) {
        int code = code_of(mu_q3_k_codes(b, i / 32, i % 32 / 4), i) - 4;
        out[i] = d * (float)mu_q3_k_scale(b->scales, i / 16) * (float)code;
    }
}

static void dequant_q6_k(const struct mu_block_q6_k *b, float *out)
{
    float d = mu_f16_to_f32(b->d);
    for (int i = 0; i < 256; i++) {
        int code = code_of(mu_q6_k_codes(b, i / 32, i % 32 / 4), i) - 32;
        out[i] = d * (float)b->scales[i / 16] * (float)code;
    }
}

/* The types that C2 has no rule for. */
#define BY_EIGHTS(type, block)                                             \
    static void dequant_##type(const struct block *b, float *out)          \
    {                                                                      \
        for (int i = 0; i < 32; i++, out += 8) mu_eight_##type(b, i, out); \
    }
BY_EIGHTS(iq2_xxs, mu_block_iq2_xxs)
BY_EIGHTS(iq2_xs, mu_block_iq2_xs)
BY_EIGHTS(iq2_s, mu_block_iq2_s)
BY_EIGHTS(iq1_s, mu_block_iq1_s)
BY_EIGHTS(iq1_m, mu_block_iq1_m)
BY_EIGHTS(iq3_xxs, mu_block_iq3_xxs)
BY_EIGHTS(iq3_s, mu_block_iq3_s)
BY_EIGHTS(tq1_0, mu_block_tq1_0)
BY_EIGHTS(tq2_0, mu_block_tq2_0)
#undef BY_EIGHTS

bool mu_ref_dequant_row(uint32_t type, const void *raw, int n, float *out)
{
    const struct mu_type_info *t = mu_type_info(type);
    if (!t || n < 0 || n % t->block_values != 0) return false;
    const uint8_t *p = raw;
    for (int i = 0; i < n; i += t->block_values, p += t->block_bytes, out += t->block_values) {
        switch (type) {
        case MU_F32: memcpy(out, p, sizeof *out); break;
        case MU_F16: *out = mu_f16_to_f32((uint16_t)(p[0] | p[1] << 8)); break;
        case MU_BF16: *out = mu_bf16_to_f32((uint16_t)(p[0] | p[1] << 8)); break;
        case MU_Q4_0: dequant_q4_0((const void *)p, out); break;
        case MU_Q4_1: dequant_q4_1((const void *)p, out); break;
        case MU_Q5_0: dequant_q5_0((const void *)p, out); break;
        case MU_Q5_1: dequant_q5_1((const void *)p, out); break;
        case MU_Q8_0: dequant_q8_0((const void *)p, out); break;
        case MU_Q4_K: {
            const struct mu_block_q4_k *b = (const void *)p;
            dequant_k45(b->d, b->dmin, b->scales, b->qs, NULL, out);
            break;
        }
        case MU_Q5_K: {
            const struct mu_block_q5_k *b = (const void *)p;
            dequant_k45(b->d, b->dmin, b->scales, b->qs, b->qh, out);
            break;
        }
        case MU_Q2_K: dequant_q2_k((const void *)p, out); break;
        case MU_Q3_K: dequant_q3_k((const void *)p, out); break;
        case MU_Q6_K: dequant_q6_k((const void *)p, out); break;
        case MU_IQ4_NL: {
            const struct mu_block_iq4_nl *b = (const void *)p;
            dequant_look_up(b->qs, mu_iq4_values, mu_f16_to_f32(b->d), out);
            break;
        }
        case MU_IQ4_XS: dequant_iq4_xs((const void *)p, out); break;
        case MU_MXFP4: dequant_look_up(p + 1, mu_mxfp4_values, mu_e8m0_half(p[0]), out); break;
        case MU_IQ2_XXS: dequant_iq2_xxs((const void *)p, out); break;
        case MU_IQ2_XS: dequant_iq2_xs((const void *)p, out); break;
        case MU_IQ2_S: dequant_iq2_s((const void *)p, out); break;
        case MU_IQ1_S: dequant_iq1_s((const void *)p, out); break;
        case MU_IQ1_M: dequant_iq1_m((const void *)p, out); break;
        case MU_IQ3_XXS: dequant_iq3_xxs((const void *)p, out); break;
        case MU_IQ3_S: dequant_iq3_s((const void *)p, out); break;
        case MU_TQ1_0: dequant_tq1_0((const void *)p, out); break;
        case MU_TQ2_0: dequant_tq2_0((const void *)p, out); break;
        default: return false;
        }
    }
    return true;
}
