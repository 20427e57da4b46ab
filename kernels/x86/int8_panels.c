/* C2 with AVX-512 VNNI for many tokens: the weights of a pass are decoded once and multiplied from there.
 *
 *   codes (nibbles, halves …) ──panel_fill──▶ 2 panels: unsigned bytes, scales as floats ──tile_run──▶ 12 acc ──▶ out
 *
 * Where the two ports that multiply also decode (Intel's), a tile of int8_avx512.c, which decodes again for every dozen
 * tokens, spends a tenth of its time on that, with a scale per 16 columns a third; and it needs nearly all that the two load
 * ports can give. So here a tile is two row groups × up to 6 tokens: one broadcast of 4 activations serves both groups. With
 * a scale per 16 columns it is two groups × 4 tokens, whose two sums grow by turns: 16 chains hide the latency of the dot
 * product, 8 do not (8% slower).
 *
 * Loops, outermost first: up to PASS_TOKENS tokens; PANEL_BLOCKS blocks, so that two panels and a tile's activations share
 * the L1; pairs of row groups; tiles. Between passes the accumulators rest in `out`, which changes no bit. Activations of a
 * pass are first copied together: in the caller's array the same column of all tokens may fall into one set of the cache.
 *
 * Weights come from memory while those before them are multiplied: struct next.
 *
 * Which processors: those of Intel, where it was measured (docs/arithmetic.md); on others it is there to be tried, as
 * MUSTER_KERNELS=panels. Which batches: mu_panels_cover. */
#include <string.h>

#include "kernels/x86/panel_avx512.h"
#include "kernels/x86/tiles_avx512.h"

enum {
    PASS_TOKENS = 96,
    Q_LD = PANEL_BLOCKS * MU_Q_BLOCK + 64, /* +64: another set of the L1 */
    MAX_TOKENS = 6,
    MAX_HALVES_TOKENS = 4, /* they need three registers a token and group */
};

#define PANEL(name, type)                                               \
    static void panel_##name(struct panel *to, const uint8_t *w, int n) \
    {                                                                   \
        panel_fill(to, type, 0, w, n);                                  \
    }
PANEL(q4_0, MU_Q4_0)
PANEL(q4_1, MU_Q4_1)
PANEL(q5_0, MU_Q5_0)
PANEL(q5_1, MU_Q5_1)
PANEL(q8_0, MU_Q8_0)
PANEL(q2_k, MU_Q2_K)
PANEL(q3_k, MU_Q3_K)
PANEL(q4_k, MU_Q4_K)
PANEL(q5_k, MU_Q5_K)
PANEL(q6_k, MU_Q6_K)
PANEL(iq4_nl, MU_IQ4_NL)
PANEL(iq4_xs, MU_IQ4_XS)
PANEL(mxfp4, MU_MXFP4)
static panel_fn *const panels[MU_TYPE_LIMIT] = {
    [MU_Q4_0] = panel_q4_0,   [MU_Q4_1] = panel_q4_1, [MU_Q5_0] = panel_q5_0,     [MU_Q5_1] = panel_q5_1,
    [MU_Q8_0] = panel_q8_0,   [MU_Q2_K] = panel_q2_k, [MU_Q3_K] = panel_q3_k,     [MU_Q4_K] = panel_q4_k,
    [MU_Q5_K] = panel_q5_k,   [MU_Q6_K] = panel_q6_k, [MU_IQ4_NL] = panel_iq4_nl, [MU_IQ4_XS] = panel_iq4_xs,
    [MU_MXFP4] = panel_mxfp4,
};

/* The activations of a pass. a and b: the family's words (tiles_avx512.h). */
struct inputs {
    _Alignas(64) int8_t q[PASS_TOKENS][Q_LD];
    float s[PASS_TOKENS][PANEL_BLOCKS];
    int32_t a[PASS_TOKENS][PANEL_BLOCKS], b[PASS_TOKENS][PANEL_BLOCKS];
};

struct work {
    const struct panel *panel; /* [2] */
    const struct inputs *in;
    int token; /* the tile's first, of the pass */
    int n_block;
    float *out;
    size_t out_stride;
    __mmask16 rows; /* that exist, of the last group */
    bool first;
    struct share ahead;
};

/* The tile of G groups and T tokens, of a form that is a constant where it is called: the operations of int8_avx512.c's
 * tiles, in their order. */
MU_INLINE void tile_run(const struct work *w, enum form form, int G, int T)
{
    const bool halves = form >= FORM_HALVES, from_zero = form != FORM_SCALED && form != FORM_HALVES;
    const int n_sum = halves ? 2 : 1;
    __m512 acc[2][MAX_TOKENS]; /* [group] */
    const int8_t *q = w->in->q[w->token];
    const float *s = w->in->s[w->token];
    const int32_t *a = w->in->a[w->token], *b = w->in->b[w->token];
    const struct panel_block *p = w->panel[0].block;
    MU_UNROLL
    for (int g = 0; g < G; g++) {
        MU_UNROLL
        for (int t = 0; t < T; t++)
            acc[g][t] = w->first ? _mm512_setzero_ps()
                                 : _mm512_maskz_loadu_ps(g == G - 1 ? w->rows : 0xffff,
                                                         w->out + (size_t)t * w->out_stride + g * LANES);
    }
    for (int i = 0; i < w->n_block; i++, q += MU_Q_BLOCK, s++, a++, b++, p++) {
        __m512i sum[2][2][MAX_TOKENS]; /* [half][group] */
        PLAIN(q);
        PLAIN(s);
        PLAIN(a);
        if (halves) PLAIN(b);
        PLAIN(p);
        share_fetch(&w->ahead, i);
        MU_UNROLL
        for (int h = 0; h < n_sum; h++) {
            MU_UNROLL
            for (int t = 0; t < T; t++)
                sum[h][0][t] = sum[h][1][t] =
                    from_zero ? _mm512_setzero_si512() : _mm512_set1_epi32((h ? b : a)[t * PANEL_BLOCKS]);
        }
        MU_UNROLL
        for (int j = 0; j < 8; j++) {
            const int h = j % n_sum, k = halves ? 4 * h + j / 2 : j; /* halves by turns */
            __m512i c[2];
            MU_UNROLL
            for (int g = 0; g < G; g++) c[g] = _mm512_load_si512(p[g * PANEL_BLOCKS].codes[k]);
            MU_UNROLL
            for (int t = 0; t < T; t++) {
                int32_t four;
                memcpy(&four, q + t * Q_LD + 4 * k, sizeof four);
                __m512i v = _mm512_set1_epi32(four);
                MU_UNROLL
                for (int g = 0; g < G; g++) sum[h][g][t] = _mm512_dpbusd_epi32(sum[h][g][t], c[g], v);
            }
        }
        MU_UNROLL
        for (int t = 0; t < T; t++) {
            __m512 st = _mm512_set1_ps(s[t * PANEL_BLOCKS]);
            __m512 at = _mm512_castsi512_ps(_mm512_set1_epi32(a[t * PANEL_BLOCKS]));
            __m512 bt = _mm512_castsi512_ps(_mm512_set1_epi32(b[t * PANEL_BLOCKS]));
            MU_UNROLL
            for (int g = 0; g < G; g++) {
                const struct panel_block *pg = p + g * PANEL_BLOCKS;
                __m512 x = _mm512_cvtepi32_ps(sum[0][g][t]);
                if (halves) {
                    x = _mm512_mul_ps(x, _mm512_load_ps(pg->sc[0]));
                    x = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[1][g][t]), _mm512_load_ps(pg->sc[1]), x);
                }
                acc[g][t] = _mm512_fmadd_ps(x, _mm512_mul_ps(_mm512_load_ps(pg->d), st), acc[g][t]);
                if (form == FORM_RAISED) acc[g][t] = _mm512_fmadd_ps(_mm512_load_ps(pg->m), at, acc[g][t]);
                if (form == FORM_LOWERED) acc[g][t] = _mm512_fnmadd_ps(_mm512_load_ps(pg->m), at, acc[g][t]);
                if (form == FORM_HALVES_LOWERED) {
                    __m512 z = _mm512_mul_ps(_mm512_load_ps(pg->mc[0]), at);
                    z = _mm512_fmadd_ps(_mm512_load_ps(pg->mc[1]), bt, z);
                    acc[g][t] = _mm512_fnmadd_ps(z, _mm512_mul_ps(_mm512_load_ps(pg->m), st), acc[g][t]);
                }
            }
        }
    }
    MU_UNROLL
    for (int g = 0; g < G; g++) {
        MU_UNROLL
        for (int t = 0; t < T; t++)
            _mm512_mask_storeu_ps(w->out + (size_t)t * w->out_stride + g * LANES, g == G - 1 ? w->rows : 0xffff,
                                  acc[g][t]);
    }
}

typedef void tile_run_fn(const struct work *w);
#define TILE(name, form, G, T)                         \
    static void name##_##G##_##T(const struct work *w) \
    {                                                  \
        tile_run(w, form, G, T);                       \
    }
#define TILES(name, form, T0, T1) \
    TILE(name, form, 1, T0) TILE(name, form, 1, T1) TILE(name, form, 2, T0) TILE(name, form, 2, T1)
TILES(scaled, FORM_SCALED, 5, 6)
TILES(raised, FORM_RAISED, 5, 6)
TILES(lowered, FORM_LOWERED, 5, 6)
TILES(halves, FORM_HALVES, 3, 4)
TILES(halves_lowered, FORM_HALVES_LOWERED, 3, 4)
#define LIST(name, T0, T1)                             \
    {                                                  \
        {[T0] = name##_1_##T0, [T1] = name##_1_##T1},  \
        {                                              \
            [T0] = name##_2_##T0, [T1] = name##_2_##T1 \
        }                                              \
    }
static tile_run_fn *const tiles_of[N_FORM][2][MAX_TOKENS + 1] = {
    [FORM_SCALED] = LIST(scaled, 5, 6),
    [FORM_RAISED] = LIST(raised, 5, 6),
    [FORM_LOWERED] = LIST(lowered, 5, 6),
    [FORM_HALVES] = LIST(halves, 3, 4),
    [FORM_HALVES_LOWERED] = LIST(halves_lowered, 3, 4),
};

bool mu_panels_cover(uint32_t type, int n_tok)
{
    /* measured: fewer do not pay for the decoding; so many make tiles of the sizes above */
    return panels[type] && n_tok >= (form_of(type) >= FORM_HALVES ? 24 : 32);
}

/* n blocks from b0 on of tokens [t0, t1). */
static void inputs_fill(struct inputs *to, const struct family *f, const struct mu_act *x, int t0, int t1, size_t b0,
                        int n)
{
    size_t n_block = (size_t)x->n_col / MU_Q_BLOCK;
    for (int t = t0, i = 0; t < t1; t++, i++) {
        size_t from = (size_t)t * n_block + b0;
        memcpy(to->q[i], x->q + from * MU_Q_BLOCK, (size_t)n * MU_Q_BLOCK);
        mu_avx512_terms(f, x->s + from, x->sum + 2 * from, n, to->s[i], to->a[i], to->b[i]);
    }
}

void mu_panels_matmul_int8(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out,
                           size_t stride)
{
    struct panel panel[2];
    struct inputs in;
    const struct family *f = mu_avx512_family(m->type);
    const enum form form = form_of(m->type);
    const size_t n_block = (size_t)x->n_col / MU_Q_BLOCK, group = mu_packed_group_bytes(m->type, m->n_col);
    const uint8_t *first = (const uint8_t *)m->data + (size_t)(row0 / LANES) * group;
    const int max_tile = form >= FORM_HALVES ? MAX_HALVES_TOKENS : MAX_TOKENS, pass_tiles = PASS_TOKENS / max_tile;
    const int n_tile = (x->n_tok + max_tile - 1) / max_tile; /* as equal as can be */
    for (int i = 0; i < n_tile; i += pass_tiles) {
        int tiles = n_tile - i < pass_tiles ? n_tile - i : pass_tiles;
        int t0 = (int)((int64_t)i * x->n_tok / n_tile), t1 = (int)((int64_t)(i + tiles) * x->n_tok / n_tile);
        for (size_t b0 = 0, b1; b0 < n_block; b0 = b1) {
            b1 = n_block - b0 < PANEL_BLOCKS ? n_block : b0 + PANEL_BLOCKS;
            const size_t at0 = mu_packed_group_offset(m->type, b0 * MU_Q_BLOCK),
                         at1 = mu_packed_group_offset(m->type, b1 * MU_Q_BLOCK);
            const uint8_t *w = first + at0;
            inputs_fill(&in, f, x, t0, t1, b0, (int)(b1 - b0));
            for (int r = row0; r < row1; r += 2 * LANES, w += 2 * group) {
                int n_group = row1 - r > LANES ? 2 : 1;
                int last = row1 - r - (n_group - 1) * LANES; /* rows from the last group on */
                struct work a = {.panel = panel,
                                 .in = &in,
                                 .n_block = (int)(b1 - b0),
                                 .out_stride = stride,
                                 .rows = last >= LANES ? 0xffff : (__mmask16)((1u << last) - 1u),
                                 .first = b0 == 0};
                struct next next = {.w = w + 2 * group, .n_group = last > 2 * LANES ? 2 : 1, .bytes = at1 - at0};
                if (last <= LANES) /* those of the next pass */
                    next = (struct next){.w = b1 < n_block ? first + at1 : NULL,
                                         .n_group = row1 - row0 > LANES ? 2 : 1,
                                         .bytes = at1 - at0};
                for (int g = 0; g < n_group; g++) panels[m->type](&panel[g], w + (size_t)g * group, a.n_block);
                for (int j = 0; j < tiles; j++) {
                    int from = (int)((int64_t)j * (t1 - t0) / tiles), to = (int)((int64_t)(j + 1) * (t1 - t0) / tiles);
                    a.ahead = next_share(&next, group, j, tiles, a.n_block);
                    a.token = from;
                    a.out = out + (size_t)(t0 + from) * stride + r;
                    tiles_of[form][n_group - 1][to - from](&a);
                }
            }
        }
    }
}
