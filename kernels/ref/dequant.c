/* Blocks back to f32, for embedding look-ups and tests: the values that ggml's dequantisers give, bit for bit. */
#include "kernels/blocks.h"
#include "kernels/grids.h"
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

/* Digit n of a byte of TQ1_0, -1 … 1: the byte is a fraction of 256; times 3^n, its integer part falls off, and three
 * times what is left has the digit before the point. */
static int trit(uint8_t byte, int n)
{
    static const uint8_t power[5] = {1, 3, 9, 27, 81};
    return ((uint8_t)(byte * power[n]) * 3 >> 8) - 1;
}

/* Digits 0 … n_digit - 1 of n bytes, a digit of all of them after another. */
static float *dequant_trits(const uint8_t *bytes, int n, int n_digit, float d, float *out)
{
    for (int digit = 0; digit < n_digit; digit++, out += n)
        for (int i = 0; i < n; i++) out[i] = (float)trit(bytes[i], digit) * d;
    return out;
}

static void dequant_tq1_0(const struct mu_block_tq1_0 *b, float *out)
{
    float d = mu_f16_to_f32(b->d);
    out = dequant_trits(b->qs, 32, 5, d, out);
    out = dequant_trits(b->qs + 32, 16, 5, d, out);
    dequant_trits(b->qh, 4, 4, d, out);
}

static void dequant_tq2_0(const struct mu_block_tq2_0 *b, float *out)
{
    float d = mu_f16_to_f32(b->d);
    for (int j = 0; j < 8; j++)
        for (int i = 0; i < 32; i++) out[32 * j + i] = (float)((b->qs[32 * (j / 4) + i] >> 2 * (j % 4) & 3) - 1) * d;
}

static int with_sign(int magnitude, unsigned signs, int i)
{
    int minus = -(int)(signs >> i & 1);
    return (magnitude ^ minus) - minus;
}

/* Eight values of an entry of IQ2's codebooks. */
static void dequant_iq2_eight(unsigned grid, unsigned signs, float scale, float *out)
{
    for (int i = 0; i < 8; i++) out[i] = scale * (float)with_sign(mu_iq2_magnitudes[grid >> 2 * i & 3], signs, i);
}

static void dequant_iq2_xxs(const struct mu_block_iq2_xxs *b, float *out)
{
    float d = mu_f16_to_f32(b->d);
    for (int j = 0; j < 8; j++) {
        uint32_t word = mu_load_u32(b->qs + 8 * j + 4);
        float scale = d * (0.5f + (float)(word >> 28)) * 0.25f;
        for (int l = 0; l < 4; l++, out += 8)
            dequant_iq2_eight(mu_iq2_xxs_grid[b->qs[8 * j + l]], mu_iq_signs(word >> 7 * l & 127), scale, out);
    }
}

/* Group i of 8 values has nibble i/2 of scales. */
static float iq2_scale(const uint8_t *scales, int i, float d)
{
    return d * (0.5f + (float)(scales[i / 4] >> (i / 2 % 2 ? 4 : 0) & 15)) * 0.25f;
}

static void dequant_iq2_xs(const struct mu_block_iq2_xs *b, float *out)
{
    float d = mu_f16_to_f32(b->d);
    for (int i = 0; i < 32; i++, out += 8)
        dequant_iq2_eight(mu_iq2_xs_grid[b->qs[i] & 511], mu_iq_signs(b->qs[i] >> 9), iq2_scale(b->scales, i, d), out);
}

static void dequant_iq2_s(const struct mu_block_iq2_s *b, float *out)
{
    float d = mu_f16_to_f32(b->d);
    for (int i = 0; i < 32; i++, out += 8) {
        unsigned index = b->qs[i] | (unsigned)(b->qh[i / 4] >> 2 * (i % 4) & 3) << 8;
        dequant_iq2_eight(mu_iq2_s_grid[index], b->signs[i], iq2_scale(b->scales, i, d), out);
    }
}

/* Eight values of an entry of IQ1's codebook. */
static void dequant_iq1_eight(unsigned grid, bool down, float scale, float *out)
{
    float shift = down ? -mu_iq1_delta : mu_iq1_delta;
    for (int i = 0; i < 8; i++) out[i] = scale * ((float)((int)(grid >> 2 * i & 3) - 1) + shift);
}

static void dequant_iq1_s(const struct mu_block_iq1_s *b, float *out)
{
    float d = mu_f16_to_f32(b->d);
    for (int i = 0; i < 32; i++, out += 8) {
        unsigned qh = b->qh[i / 4], index = b->qs[i] | (qh >> 3 * (i % 4) & 7) << 8;
        dequant_iq1_eight(mu_iq1_grid[index], qh >> 15, d * (float)(2 * (qh >> 12 & 7) + 1), out);
    }
}

static void dequant_iq1_m(const struct mu_block_iq1_m *b, float *out)
{
    float d = mu_f16_to_f32(mu_iq1_m_d(b));
    for (int i = 0; i < 32; i++, out += 8) {
        unsigned qh = b->qh[i / 2] >> (i % 2 ? 4 : 0) & 15u, scale = (unsigned)b->scales[i / 8] >> 3 * (i / 2 % 4) & 7;
        dequant_iq1_eight(mu_iq1_grid[b->qs[i] | (qh & 7) << 8], qh >> 3, d * (float)(2 * scale + 1), out);
    }
}

static void dequant_iq3_xxs(const struct mu_block_iq3_xxs *b, float *out)
{
    float d = mu_f16_to_f32(b->d);
    for (int j = 0; j < 8; j++) {
        uint32_t word = mu_load_u32(b->words + 4 * j);
        float scale = d * (0.5f + (float)(word >> 28)) * 0.5f;
        for (int l = 0; l < 8; l++, out += 4) {
            unsigned grid = mu_iq3_xxs_grid[b->qs[8 * j + l]];
            unsigned signs = mu_iq_signs(word >> 7 * (l / 2) & 127) >> 4 * (l % 2);
            for (int i = 0; i < 4; i++)
                out[i] = scale * (float)with_sign(mu_iq3_xxs_magnitudes[grid >> 3 * i & 7], signs, i);
        }
    }
}

static void dequant_iq3_s(const struct mu_block_iq3_s *b, float *out)
{
    float d = mu_f16_to_f32(b->d);
    for (int j = 0; j < 8; j++) {
        float scale = d * (float)(1 + 2 * (b->scales[j / 2] >> 4 * (j % 2) & 15));
        for (int l = 0; l < 8; l++, out += 4) {
            unsigned grid = mu_iq3_s_grid[b->qs[8 * j + l] | (unsigned)(b->qh[j] >> l & 1) << 8];
            unsigned signs = (unsigned)b->signs[4 * j + l / 2] >> 4 * (l % 2);
            for (int i = 0; i < 4; i++)
                out[i] = scale * (float)with_sign(mu_iq3_s_magnitude(grid >> 3 * i & 7), signs, i);
        }
    }
}

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
