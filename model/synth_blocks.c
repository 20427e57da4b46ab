/* Random weights straight as blocks: codes are random bits and scales come from small tables, so a gigabyte takes
 * less time to make than to write. Quantising random floats would give the same bits a hundred times slower. */
#include <math.h>
#include <string.h>

#include "kernels/blocks.h"
#include "kernels/types.h"
#include "model/synth_part.h"

/* Standard deviations of uniform codes: 0 … 15, 0 … 63, −127 … 127. */
#define CODES_4 4.61f
#define CODES_6 18.47f
#define CODES_8 73.6f
/* Root mean square of Q4_K's block scales 32 … 63 and of Q6_K's 24 … 55. */
#define SCALES_4K 48.4f
#define SCALES_6K 40.6f

/* splitmix64 (Steele, Lea, Flood, OOPSLA 2014). */
uint64_t mu_synth_next(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

/* 256 scales of 0.75 … 1.25 times d, every second one negative, which takes the codes' lopsidedness (−8 … 7) out of
 * the mean. */
static void init_scales(struct mu_synth_source *s, float d, bool signs)
{
    for (int i = 0; i < 256; i++) {
        float v = d * (0.75f + (float)(i >> 1) * (0.5f / 127.0f));
        s->scale[i] = mu_f32_to_f16(signs && (i & 1) ? -v : v);
        s->min_scale[i] = mu_f32_to_f16(7.5f * mu_f16_to_f32(s->scale[i]));
    }
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
    case MU_Q4_0: init_scales(s, sigma / CODES_4, true); return true;
    case MU_Q8_0: init_scales(s, sigma / CODES_8, true); return true;
    case MU_Q4_K: init_scales(s, sigma / (CODES_4 * SCALES_4K), false); return true;
    case MU_Q6_K: init_scales(s, sigma / (CODES_6 * SCALES_6K), true); return true;
    default: return false;
    }
}

/* n a multiple of 2. */
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

static void fill_q4_k(struct mu_synth_source *s, struct mu_block_q4_k *b)
{
    uint64_t r = mu_synth_next(&s->state), jitter = mu_synth_next(&s->state);
    uint8_t sc[8], m[8];
    b->d = s->scale[r & 255];
    b->dmin = s->min_scale[r & 255];
    for (int j = 0; j < 8; j++) {
        sc[j] = (uint8_t)(32 + (r >> (8 + 5 * j) & 31));
        int near = sc[j] + (int)(jitter >> 2 * j & 3) - 1; /* minimums are not just the scales again */
        m[j] = (uint8_t)(near > 63 ? 63 : near);
    }
    for (int j = 0; j < 4; j++) { /* the inverse of mu_k4_scale */
        b->scales[j] = (uint8_t)(sc[j] | sc[j + 4] >> 4 << 6);
        b->scales[j + 4] = (uint8_t)(m[j] | m[j + 4] >> 4 << 6);
        b->scales[j + 8] = (uint8_t)((sc[j + 4] & 15) | (m[j + 4] & 15) << 4);
    }
    fill_random(&s->state, b->qs, sizeof b->qs);
}

void mu_synth_source_blocks(struct mu_synth_source *s, void *out, size_t n_block)
{
    switch (s->type) {
    case MU_Q4_0:
        for (struct mu_block_q4_0 *b = out, *end = b + n_block; b < end; b++) {
            b->d = s->scale[mu_synth_next(&s->state) & 255];
            fill_random(&s->state, b->qs, sizeof b->qs);
        }
        break;
    case MU_Q8_0:
        for (struct mu_block_q8_0 *b = out, *end = b + n_block; b < end; b++) {
            b->d = s->scale[mu_synth_next(&s->state) & 255];
            fill_random(&s->state, b->qs, sizeof b->qs);
            for (int i = 0; i < 32; i++) b->qs[i] = b->qs[i] == -128 ? 0 : b->qs[i]; /* no quantiser writes −128 */
        }
        break;
    case MU_Q4_K:
        for (struct mu_block_q4_k *b = out, *end = b + n_block; b < end; b++) fill_q4_k(s, b);
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
