/* Random weights straight as blocks: codes are random bits and scales come from small tables, so a gigabyte takes
 * less time to make than to write. Quantising random floats would give the same bits a hundred times slower. */
#include <math.h>
#include <string.h>

#include "kernels/blocks.h"
#include "kernels/types.h"
#include "model/synth_part.h"

/* Root mean squares of random codes: 0 … 15, 0 … 31 and 0 … 3 about their middle (by the middle, a minimum), 0 … 63,
 * −127 … 127, −4 … 3, −16 … 15, and of the values that IQ4's and MXFP4's nibbles stand for. */
#define CODES_2     1.118f
#define CODES_3     2.345f
#define CODES_4     4.61f
#define CODES_5     9.23f
#define CODES_6     18.47f
#define CODES_8     73.6f
#define CODES_IQ4   67.4f
#define CODES_MXFP4 5.852f
#define CODES_TQ2   0.7071f /* −1 and 1 half as often as 0 */
/* And of block scales: Q4_K's and Q5_K's 32 … 63, Q6_K's 24 … 55, Q3_K's and IQ4_XS's 16 … 31, Q2_K's 8 … 15. */
#define SCALES_4K 48.4f
#define SCALES_6K 40.6f
#define SCALES_3K 23.95f
#define SCALES_2K 11.73f

/* splitmix64 (Steele, Lea, Flood, OOPSLA 2014). */
uint64_t mu_synth_next(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

/* 256 scales of 0.75 … 1.25 times d, every second one negative, which takes the codes' lopsidedness (−8 … 7) out of
 * the mean. middle: of the codes, what a minimum takes off. */
static void init_scales(struct mu_synth_source *s, float d, bool signs, float middle)
{
    for (int i = 0; i < 256; i++) {
        float v = d * (0.75f + (float)(i >> 1) * (0.5f / 127.0f));
        s->scale[i] = mu_f32_to_f16(signs && (i & 1) ? -v : v);
        s->min_scale[i] = mu_f32_to_f16(middle * mu_f16_to_f32(s->scale[i]));
    }
}

/* MXFP4: so many of the scales are the lower of two neighbouring powers of two that the root mean square of all is
 * d. */
static void init_exponents(struct mu_synth_source *s, float d)
{
    int exponent;
    float f = 2 * frexpf(d, &exponent), share = (4 - f * f) / 3; /* d = f·2^(exponent-1), 1 ≤ f < 2 */
    for (int i = 0; i < 256; i++) s->scale[i] = (uint16_t)(exponent - 1 + 128 + ((float)i >= share * 256));
}

static void init_table(struct mu_synth_source *s, float sigma)
{
    for (int i = 0; i < MU_SYNTH_TABLE; i++) {
        float v = sigma * 1.7320508f * ((float)(2 * i + 1) / MU_SYNTH_TABLE - 1.0f);
        uint16_t half = s->type == MU_F16 ? mu_f32_to_f16(v) : mu_f32_to_bf16(v);
        if (s->type == MU_F32)
            memcpy(s->table + 4 * i, &v, 4);
        else
            memcpy(s->table + 2 * i, &half, 2);
    }
}

bool mu_synth_source_init(struct mu_synth_source *s, uint32_t type, float sigma, uint64_t seed)
{
    memset(s, 0, sizeof *s);
    s->type = type;
    s->state = seed;
    switch (type) {
    case MU_F32:
    case MU_F16:
    case MU_BF16: init_table(s, sigma); return true;
    case MU_Q4_0: init_scales(s, sigma / CODES_4, true, 0); return true;
    case MU_Q4_1: init_scales(s, sigma / CODES_4, true, -7.5f); return true;
    case MU_Q5_0: init_scales(s, sigma / CODES_5, true, 0); return true;
    case MU_Q5_1: init_scales(s, sigma / CODES_5, true, -15.5f); return true;
    case MU_Q8_0: init_scales(s, sigma / CODES_8, true, 0); return true;
    case MU_Q2_K: init_scales(s, sigma / (CODES_2 * SCALES_2K), true, 1.5f); return true;
    case MU_Q3_K: init_scales(s, sigma / (CODES_3 * SCALES_3K), true, 0); return true;
    case MU_Q4_K: init_scales(s, sigma / (CODES_4 * SCALES_4K), false, 7.5f); return true;
    case MU_Q5_K: init_scales(s, sigma / (CODES_5 * SCALES_4K), false, 15.5f); return true;
    case MU_Q6_K: init_scales(s, sigma / (CODES_6 * SCALES_6K), true, 0); return true;
    case MU_IQ4_NL: init_scales(s, sigma / CODES_IQ4, true, 0); return true;
    case MU_IQ4_XS: init_scales(s, sigma / (CODES_IQ4 * SCALES_3K), true, 0); return true;
    case MU_TQ2_0: init_scales(s, sigma / CODES_TQ2, true, 0); return true;
    case MU_MXFP4: init_exponents(s, sigma / CODES_MXFP4); return true;
    default: return false;
    }
}

static inline void fill_random(uint64_t *state, void *out, size_t n)
{
    unsigned char *p = out;
    uint64_t r;
    for (; n >= 8; p += 8, n -= 8) {
        r = mu_synth_next(state);
        memcpy(p, &r, 8);
    }
    r = n ? mu_synth_next(state) : 0;
    memcpy(p, &r, n);
}

static void fill_table(struct mu_synth_source *s, unsigned char *p, size_t n)
{
    uint64_t r = 0;
    for (size_t i = 0; i < n; i++, r >>= 16) {
        if (i % 4 == 0) r = mu_synth_next(&s->state);
        size_t at = r % MU_SYNTH_TABLE;
        if (s->type == MU_F32)
            memcpy(p + 4 * i, s->table + 4 * at, 4);
        else
            memcpy(p + 2 * i, s->table + 2 * at, 2);
    }
}

/* d, dmin and scales of Q4_K and Q5_K. */
static void fill_k45_head(struct mu_synth_source *s, uint16_t *d, uint16_t *dmin, uint8_t *scales)
{
    uint64_t r = mu_synth_next(&s->state), jitter = mu_synth_next(&s->state);
    uint8_t sc[8], m[8];
    *d = s->scale[r & 255];
    *dmin = s->min_scale[r & 255];
    for (int j = 0; j < 8; j++) {
        sc[j] = (uint8_t)(32 + (r >> (8 + 5 * j) & 31));
        int near = sc[j] + (int)(jitter >> 2 * j & 3) - 1; /* minimums are not just the scales again */
        m[j] = (uint8_t)(near > 63 ? 63 : near);
    }
    for (int j = 0; j < 4; j++) { /* the inverse of mu_k4_scale */
        scales[j] = (uint8_t)(sc[j] | sc[j + 4] >> 4 << 6);
        scales[j + 4] = (uint8_t)(m[j] | m[j + 4] >> 4 << 6);
        scales[j + 8] = (uint8_t)((sc[j + 4] & 15) | (m[j + 4] & 15) << 4);
    }
}

/* A 6-bit scale, 32 not taken off: 16 … 31 or its negative, by five bits. */
static unsigned scale_6(uint64_t bits)
{
    unsigned magnitude = 16 + (unsigned)(bits & 15);
    return bits & 16 ? 32 - magnitude : 32 + magnitude;
}

static void fill_q2_k(struct mu_synth_source *s, struct mu_block_q2_k *b)
{
    uint64_t r = mu_synth_next(&s->state), jitter = mu_synth_next(&s->state);
    unsigned at = (unsigned)(jitter >> 32 & 255);
    b->d = s->scale[at];
    b->dmin = s->min_scale[at];
    for (int i = 0; i < 16; i++) {
        int sc = 8 + (int)(r >> 3 * i & 7), near = sc + (int)(jitter >> 2 * i & 1) - (int)(jitter >> (2 * i + 1) & 1);
        b->scales[i] = (uint8_t)(sc | (near > 15 ? 15 : near) << 4);
    }
    fill_random(&s->state, b->qs, sizeof b->qs);
}

static void fill_q3_k(struct mu_synth_source *s, struct mu_block_q3_k *b)
{
    uint64_t r = mu_synth_next(&s->state), more = mu_synth_next(&s->state);
    b->d = s->scale[more >> 40 & 255];
    memset(b->scales, 0, sizeof b->scales);
    for (int i = 0; i < 16; i++) { /* the inverse of mu_q3_k_scale */
        unsigned sc = scale_6(i < 8 ? r >> 5 * i : more >> 5 * (i - 8));
        b->scales[i & 7] |= (uint8_t)((sc & 15) << (i < 8 ? 0 : 4));
        b->scales[8 + (i & 3)] |= (uint8_t)(sc >> 4 << 2 * (i >> 2));
    }
    fill_random(&s->state, b->hmask, sizeof b->hmask);
    fill_random(&s->state, b->qs, sizeof b->qs);
}

static void fill_iq4_xs(struct mu_synth_source *s, struct mu_block_iq4_xs *b)
{
    uint64_t r = mu_synth_next(&s->state);
    unsigned high = 0, low[8];
    b->d = s->scale[r & 255];
    for (int j = 0; j < 8; j++) { /* the inverse of mu_iq4_xs_scale */
        unsigned sc = scale_6(r >> (8 + 5 * j));
        low[j] = sc & 15;
        high |= sc >> 4 << 2 * j;
    }
    for (int j = 0; j < 4; j++) b->scales_l[j] = (uint8_t)(low[2 * j] | low[2 * j + 1] << 4);
    b->scales_h = (uint16_t)high;
    fill_random(&s->state, b->qs, sizeof b->qs);
}

/* Random bytes, then the scale (and minimum) where the type has them: the types of one scale per 32. */
static void fill_plain(struct mu_synth_source *s, uint8_t *p, size_t n_block)
{
    size_t bytes = (size_t)mu_type_info(s->type)->block_bytes;
    bool min = s->type == MU_Q4_1 || s->type == MU_Q5_1;
    for (; n_block; n_block--, p += bytes) {
        size_t at = mu_synth_next(&s->state) & 255;
        if (s->type == MU_MXFP4) {
            p[0] = (uint8_t)s->scale[at];
            fill_random(&s->state, p + 1, bytes - 1);
            continue;
        }
        memcpy(p, &s->scale[at], 2);
        if (min) memcpy(p + 2, &s->min_scale[at], 2);
        fill_random(&s->state, p + (min ? 4 : 2), bytes - (min ? 4 : 2));
    }
}

void mu_synth_source_blocks(struct mu_synth_source *s, void *out, size_t n_block)
{
    uint16_t d, dmin;
    switch (s->type) {
    case MU_Q4_0:
    case MU_Q4_1:
    case MU_Q5_0:
    case MU_Q5_1:
    case MU_IQ4_NL:
    case MU_MXFP4: fill_plain(s, out, n_block); break;
    case MU_Q8_0:
        for (struct mu_block_q8_0 *b = out, *end = b + n_block; b < end; b++) {
            b->d = s->scale[mu_synth_next(&s->state) & 255];
            fill_random(&s->state, b->qs, sizeof b->qs);
            for (int i = 0; i < 32; i++) b->qs[i] = b->qs[i] == -128 ? 0 : b->qs[i]; /* no quantiser writes −128 */
        }
        break;
    case MU_Q4_K:
        for (struct mu_block_q4_k *b = out, *end = b + n_block; b < end; b++) {
            fill_k45_head(s, &d, &dmin, b->scales);
            b->d = d;
            b->dmin = dmin;
            fill_random(&s->state, b->qs, sizeof b->qs);
        }
        break;
    case MU_Q5_K:
        for (struct mu_block_q5_k *b = out, *end = b + n_block; b < end; b++) {
            fill_k45_head(s, &d, &dmin, b->scales);
            b->d = d;
            b->dmin = dmin;
            fill_random(&s->state, b->qh, sizeof b->qh);
            fill_random(&s->state, b->qs, sizeof b->qs);
        }
        break;
    case MU_Q2_K:
        for (struct mu_block_q2_k *b = out, *end = b + n_block; b < end; b++) fill_q2_k(s, b);
        break;
    case MU_Q3_K:
        for (struct mu_block_q3_k *b = out, *end = b + n_block; b < end; b++) fill_q3_k(s, b);
        break;
    case MU_TQ2_0:
        for (struct mu_block_tq2_0 *b = out, *end = b + n_block; b < end; b++) {
            b->d = s->scale[mu_synth_next(&s->state) & 255];
            fill_random(&s->state, b->qs, sizeof b->qs);
            for (int i = 0; i < 64; i++) b->qs[i] &= (uint8_t) ~(b->qs[i] & b->qs[i] << 1 & 0xaa); /* 3 becomes 1 */
        }
        break;
    case MU_IQ4_XS:
        for (struct mu_block_iq4_xs *b = out, *end = b + n_block; b < end; b++) fill_iq4_xs(s, b);
        break;
    case MU_Q6_K:
        for (struct mu_block_q6_k *b = out, *end = b + n_block; b < end; b++) {
            uint64_t r = mu_synth_next(&s->state), signs = mu_synth_next(&s->state);
            b->d = s->scale[r & 255];
            fill_random(&s->state, b->ql, sizeof b->ql);
            fill_random(&s->state, b->qh, sizeof b->qh);
            fill_random(&s->state, b->scales, sizeof b->scales);
            for (int i = 0; i < 16; i++) {
                int magnitude = 24 + (b->scales[i] & 31);
                b->scales[i] = (int8_t)(signs >> i & 1 ? -magnitude : magnitude);
            }
        }
        break;
    default: fill_table(s, out, n_block); break;
    }
}
