/* C2 with AMX: the integer part of a block for 16 rows × up to 16 tokens is one tile product.
 *
 * A tile product of depth 32 (tdpbssd: signed bytes, exact int32 sums) is exactly one block of C2: rows of tile A are
 * tokens, 32 activations each, rows of tile B four columns of 16 rows of the matrix, as the packed layout has them. What
 * is left to the vector unit is what the contract asks for a block: convert, d·s, one fmaf (two with a minimum), 16
 * rows at a time.
 *
 *   codes (nibbles, fifth bits …) ──panel_fill──▶ panel: signed bytes, scales as floats ──tile──▶ acc, 16 zmm ──▶ out
 *
 * Loops, outermost first: up to PASS_TOKENS tokens; PANEL_BLOCKS blocks, so that a panel and the activations of one tile
 * share the L1; groups of 16 rows, each decoded once into the panel; tiles of tokens. Between passes the accumulators
 * rest in `out`, which changes no bit.
 *
 * Speed. On Granite Rapids the tile product and the tile's store both hold port 5, 16 cycles each, and the vector unit
 * needs ports 0 and 5 for 3 instructions a token: 40 cycles for 16 tokens if all were dealt out evenly, 58 measured in
 * registers and L1. VNNI needs 88 at best there. Left to VNNI (mu_panels_matmul): few tokens, since a tile costs nearly the same
 * however few rows it has, and the types with a scale per 16 columns, which would need two products and two stores a
 * block (tried: no gain). On Emerald Rapids every instruction on 512 bits takes its turn at one port while tiles are in
 * flight. bf16 tiles, whose sums are floats already (exact ones: codes and activations are 8 bits), save a third of those;
 * with zeros that is 1.3 times as fast, with real numbers nothing, for then the unit slows down (docs/arithmetic.md).
 *
 * Weights come from memory while those before them are multiplied: struct next.
 *
 * The tile registers are configured at every call and released at its end: a thread that sleeps holds no tile state. */
#include <immintrin.h>

#include "kernels/parts.h"
#include "kernels/x86/layout.h"
#include "kernels/x86/panel_avx512.h"

enum {
    PASS_TOKENS = 256,
    TILE_TOKENS = 16,
    LEAD = 3, /* blocks multiplied before the one that is added up: a load from a tile's store waits until that is in
                 the cache */
    RING = 4
};
enum { TILE_SUM, TILE_ACT, TILE_CODES }; /* tile registers; intrinsics want them as literals: 0, 1, 2 */

/* ---- decoding ---- */

#define PANEL(name, type, offset)                                       \
    static void panel_##name(struct panel *to, const uint8_t *w, int n) \
    {                                                                   \
        panel_fill(to, type, offset, w, n);                             \
    }
PANEL(q4_0, MU_Q4_0, 8)
PANEL(q4_1, MU_Q4_1, 0)
PANEL(q5_0, MU_Q5_0, 16)
PANEL(q5_1, MU_Q5_1, 0)
PANEL(q8_0, MU_Q8_0, 128)
PANEL(q4_k, MU_Q4_K, 0)
PANEL(q5_k, MU_Q5_K, 0)
PANEL(iq4_nl, MU_IQ4_NL, IQ4_OFFSET)
PANEL(iq4_xs, MU_IQ4_XS, IQ4_OFFSET)
PANEL(mxfp4, MU_MXFP4, MXFP4_OFFSET)
static panel_fn *const panels[MU_TYPE_LIMIT] = {
    [MU_Q4_0] = panel_q4_0,     [MU_Q4_1] = panel_q4_1,   [MU_Q5_0] = panel_q5_0, [MU_Q5_1] = panel_q5_1,
    [MU_Q8_0] = panel_q8_0,     [MU_Q4_K] = panel_q4_k,   [MU_Q5_K] = panel_q5_k, [MU_IQ4_NL] = panel_iq4_nl,
    [MU_IQ4_XS] = panel_iq4_xs, [MU_MXFP4] = panel_mxfp4,
};

/* ---- multiplying ---- */

/* What the tokens of a tile bring to a pass. Words that are broadcast are copied to rows of a constant length, so that
 * every address is the block's plus a constant: an index in an address costs these instructions a second
 * micro-operation each. */
struct inputs {
    const int8_t *q; /* of the first token, at the pass's first column */
    size_t q_ld;
    _Alignas(64) float s[TILE_TOKENS][PANEL_BLOCKS];
    float total[TILE_TOKENS][PANEL_BLOCKS]; /* fl((float)S·s), where there is a minimum */
};

struct job {
    const struct panel *panel;
    const struct inputs *in;
    int n_block;
    float *out;
    size_t out_stride;
    __mmask16 rows;
    bool first;
    struct share ahead;
};

typedef int32_t products[TILE_TOKENS][LANES]; /* of one block */

MU_INLINE void block_multiply(const struct job *a, int b, products *to)
{
    _tile_zero(0);
    _tile_loadd(1, a->in->q + (size_t)b * MU_Q_BLOCK, a->in->q_ld);
    _tile_loadd(2, a->panel->block[b].codes[0], 64);
    _tile_dpbssd(0, 1, 2);
    _tile_stored(0, (*to)[0], 64);
}

/* Adds block b up: the operations of the VNNI tiles in their order, for T tokens. */
MU_INLINE void block_add(const struct job *a, enum form form, int b, products *from, __m512 *acc, int T)
{
    const float *s = &a->in->s[0][b], *total = &a->in->total[0][b];
    const int32_t *product = (*from)[0];
    PLAIN(s);
    PLAIN(product);
    if (form != FORM_SCALED) PLAIN(total);
    const __m512 d = _mm512_load_ps(a->panel->block[b].d),
                 m = form == FORM_SCALED ? d : _mm512_load_ps(a->panel->block[b].m);
    MU_UNROLL
    for (int t = 0; t < T; t++) {
        __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(product + t * LANES));
        acc[t] = _mm512_fmadd_ps(sum, _mm512_mul_ps(d, _mm512_set1_ps(s[t * PANEL_BLOCKS])), acc[t]);
        if (form == FORM_RAISED) acc[t] = _mm512_fmadd_ps(m, _mm512_set1_ps(total[t * PANEL_BLOCKS]), acc[t]);
        if (form == FORM_LOWERED) acc[t] = _mm512_fnmadd_ps(m, _mm512_set1_ps(total[t * PANEL_BLOCKS]), acc[t]);
    }
}

MU_INLINE void tile_multiply(const struct job *a, enum form form, int T)
{
    _Alignas(64) products product[RING];
    __m512 acc[TILE_TOKENS];
    MU_UNROLL
    for (int t = 0; t < T; t++)
        acc[t] = a->first ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(a->rows, a->out + (size_t)t * a->out_stride);
    for (int b = 0; b < LEAD && b < a->n_block; b++) block_multiply(a, b, &product[b]);
    for (int b = 0; b < a->n_block; b++) {
        if (b + LEAD < a->n_block) block_multiply(a, b + LEAD, &product[(b + LEAD) % RING]);
        share_fetch(&a->ahead, b);
        block_add(a, form, b, &product[b % RING], acc, T);
    }
    MU_UNROLL
    for (int t = 0; t < T; t++) _mm512_mask_storeu_ps(a->out + (size_t)t * a->out_stride, a->rows, acc[t]);
}

typedef void tile_amx_fn(const struct job *a);
#define TILE(name, form, T)                     \
    static void name##_##T(const struct job *a) \
    {                                           \
        tile_multiply(a, form, T);              \
    }
/* clang-format off */
#define TILES(name, form)                                                                                       \
    TILE(name, form, 1)                                                                                         \
    TILE(name, form, 2)                                                                                         \
    TILE(name, form, 3)                                                                                         \
    TILE(name, form, 4) TILE(name, form, 5) TILE(name, form, 6) TILE(name, form, 7) TILE(name, form, 8)         \
        TILE(name, form, 9) TILE(name, form, 10) TILE(name, form, 11) TILE(name, form, 12) TILE(name, form, 13) \
            TILE(name, form, 14) TILE(name, form, 15) TILE(name, form, 16)
/* clang-format on */
#define TILE_LIST(name)                                                                                            \
    {                                                                                                              \
        NULL, name##_1, name##_2, name##_3, name##_4, name##_5, name##_6, name##_7, name##_8, name##_9, name##_10, \
            name##_11, name##_12, name##_13, name##_14, name##_15, name##_16                                       \
    }
TILES(scaled, FORM_SCALED)
TILES(raised, FORM_RAISED)
TILES(lowered, FORM_LOWERED)
static tile_amx_fn *const tiles[N_FORM][TILE_TOKENS + 1] = {
    [FORM_SCALED] = TILE_LIST(scaled),
    [FORM_RAISED] = TILE_LIST(raised),
    [FORM_LOWERED] = TILE_LIST(lowered), /* of halves there are no panels here */
};

/* ---- driving ---- */

bool mu_amx_covers(uint32_t type, int n_tok)
{
    /* measured: fewer tokens are as fast with VNNI, or faster */
    return n_tok >= (form_of(type) == FORM_SCALED ? 16 : 32) && panels[type];
}

/* Tile registers for n_tok tokens (Intel SDM, LDTILECFG): palette 1, bytes a row, rows. */
static void tiles_configure(int n_tok)
{
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } c = {.palette = 1};
    c.rows[TILE_SUM] = c.rows[TILE_ACT] = (uint8_t)n_tok;
    c.rows[TILE_CODES] = MU_Q_BLOCK / 4;
    c.bytes[TILE_SUM] = c.bytes[TILE_CODES] = 64;
    c.bytes[TILE_ACT] = MU_Q_BLOCK;
    _tile_loadconfig(&c);
}

/* Tokens of the tile that begins with token t of n_tok. */
static int tile_len(int n_tok, int t)
{
    return n_tok - t < TILE_TOKENS ? n_tok - t : TILE_TOKENS;
}

/* n blocks from b0 on of T tokens from t0 on. */
static void inputs_fill(struct inputs *to, enum form form, const struct mu_act *x, int t0, int T, size_t b0, int n)
{
    const size_t n_block = (size_t)x->n_col / MU_Q_BLOCK;
    to->q = x->q + ((size_t)t0 * n_block + b0) * MU_Q_BLOCK;
    to->q_ld = (size_t)x->n_col;
    for (int t = 0; t < T; t++) {
        const float *s = x->s + (size_t)(t0 + t) * n_block + b0;
        const int16_t *sum = x->sum + 2 * ((size_t)(t0 + t) * n_block + b0);
        for (int b = 0; b < n; b += 16) {
            __mmask16 mask = n - b >= 16 ? 0xffff : (__mmask16)((1u << (n - b)) - 1u);
            __m512 scale = _mm512_maskz_loadu_ps(mask, s + b);
            _mm512_store_ps(to->s[t] + b, scale);
            if (form == FORM_SCALED) continue;
            __m512i both = _mm512_madd_epi16(_mm512_maskz_loadu_epi32(mask, sum + 2 * b), _mm512_set1_epi16(1));
            _mm512_store_ps(to->total[t] + b, _mm512_mul_ps(_mm512_cvtepi32_ps(both), scale));
        }
    }
}

void mu_amx_matmul_int8(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out, size_t stride)
{
    struct panel panel;
    struct inputs in[PASS_TOKENS / TILE_TOKENS];
    const enum form form = form_of(m->type);
    const size_t n_block = (size_t)x->n_col / MU_Q_BLOCK, group = mu_packed_group_bytes(m->type, m->n_col);
    const uint8_t *first = (const uint8_t *)m->data + (size_t)(row0 / LANES) * group;
    int configured = 0;
    for (int t0 = 0; t0 < x->n_tok; t0 += PASS_TOKENS) {
        int n_tok = x->n_tok - t0 < PASS_TOKENS ? x->n_tok - t0 : PASS_TOKENS;
        for (size_t b0 = 0, b1; b0 < n_block; b0 = b1) {
            b1 = n_block - b0 < PANEL_BLOCKS ? n_block : b0 + PANEL_BLOCKS;
            const int n = (int)(b1 - b0);
            const size_t at0 = mu_packed_group_offset(m->type, b0 * MU_Q_BLOCK),
                         at1 = mu_packed_group_offset(m->type, b1 * MU_Q_BLOCK);
            for (int t = 0; t < n_tok; t += TILE_TOKENS)
                inputs_fill(&in[t / TILE_TOKENS], form, x, t0 + t, tile_len(n_tok, t), b0, n);
            const uint8_t *w = first + at0;
            for (int r = row0; r < row1; r += LANES, w += group) {
                panels[m->type](&panel, w, n);
                __asm__ volatile("" ::: "memory"); /* what tile loads read is unknown to the compiler */
                struct next next = {.w = w + group, .n_group = 1, .bytes = at1 - at0};
                if (row1 - r <= LANES) next.w = b1 < n_block ? first + at1 : NULL; /* the next pass's */
                for (int t = 0; t < n_tok; t += TILE_TOKENS) {
                    int T = tile_len(n_tok, t);
                    if (T != configured) tiles_configure(T);
                    configured = T;
                    struct job a = {
                        .panel = &panel,
                        .in = &in[t / TILE_TOKENS],
                        .n_block = n,
                        .out = out + (size_t)(t0 + t) * stride + r,
                        .out_stride = stride,
                        .rows = row1 - r >= LANES ? 0xffff : (__mmask16)((1u << (row1 - r)) - 1u),
                        .first = b0 == 0,
                        .ahead = next_share(&next, group, t / TILE_TOKENS, (n_tok + TILE_TOKENS - 1) / TILE_TOKENS, n),
                    };
                    tiles[form][T](&a);
                }
            }
        }
    }
    _tile_release();
}
