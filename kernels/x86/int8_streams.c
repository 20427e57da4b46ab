/* C2 with AVX-512 VNNI where a processor reads memory fastest as several streams, and where two loads start a cycle, as two
 * dot products do: AMD's since Zen 5. There an activation that is broadcast for each product would take all loads.
 *
 *   a piece's row groups   ├── stream 0 ──┼── stream 1 ──┼── stream 2 ──┼── stream 3 ──┤
 *   the first tile           ▲              ▲              ▲              ▲                the next: each one group on
 *
 * A tile has several row groups, each from a part of the piece of its own, so every part is read in the order in which it
 * lies: what a prefetcher follows best, four times. One or two tokens take four streams, for memory is what they wait for
 * (one token of Q4_0: 0.80 of a plain read's speed with one stream, 0.99 with four); more tokens take two, up to six of
 * them a tile: one broadcast of activations serves two dot products, and the registers are full.
 *
 * Nothing is copied and nothing decoded ahead: a tile's six tokens fit the L1 beside its weights even where the same column
 * of all of them falls into one set of it (12 ways), and decoding takes pipes that do not multiply. Panels of decoded
 * weights (int8_panels.c) were up to 8% slower, but for Q6_K (4% faster).
 *
 * Loops, outermost first: passes of tokens; of columns (most matrices take one); a group of each stream; tiles. Only the
 * first tile prefetches: to those after it weights come from a cache. */
#include "kernels/x86/tile_forms.h"

enum {
    PASS_TOKENS = 24, /* of which the terms are kept at once; a multiple of 6 and 4 */
    MOST_TOKENS = 6,
    MOST_HALVES = 4, /* they need three registers a token and group */
    FEW_TOKENS = 2   /* up to here four streams */
};

#define TILE(name, form, type, G, T)                   \
    static void name##_##G##_##T(const struct tile *a) \
    {                                                  \
        tile_##form(a, type, true, G, T);              \
    }
/* More than 2 tokens, cut in equal tiles of at most 6, make none of less than 3; of at most 4, none of less than 2. */
#define FOUR_STREAMS(name, form, type) TILE(name, form, type, 4, 1) TILE(name, form, type, 4, 2)
#define TILES_3_6(name, form, type) \
    FOUR_STREAMS(name, form, type)  \
    TILE(name, form, type, 2, 3) TILE(name, form, type, 2, 4) TILE(name, form, type, 2, 5) TILE(name, form, type, 2, 6)
#define TILES_2_4(name, form, type) \
    FOUR_STREAMS(name, form, type)  \
    TILE(name, form, type, 2, 2) TILE(name, form, type, 2, 3) TILE(name, form, type, 2, 4)
TILES_3_6(q4_0, scaled, MU_Q4_0)
TILES_3_6(q5_0, scaled, MU_Q5_0)
TILES_3_6(iq4_nl, scaled, MU_IQ4_NL)
TILES_3_6(iq4_xs, scaled, MU_IQ4_XS)
TILES_3_6(mxfp4, scaled, MU_MXFP4)
TILES_3_6(q8_0, bytes, MU_Q8_0)
TILES_3_6(q4_1, lowered, MU_Q4_1)
TILES_3_6(q5_1, lowered, MU_Q5_1)
TILES_3_6(q4_k, lowered, MU_Q4_K)
TILES_3_6(q5_k, lowered, MU_Q5_K)
TILES_2_4(q6_k, halves, MU_Q6_K)
TILES_2_4(q3_k, halves, MU_Q3_K)
TILES_2_4(q2_k, halves, MU_Q2_K)

struct tiles {
    int most; /* tokens of one */
    tile_fn *four[FEW_TOKENS + 1], *two[MOST_TOKENS + 1];
};
#define LIST_3_6(name)                                                       \
    {                                                                        \
        MOST_TOKENS, {NULL, name##_4_1, name##_4_2},                         \
        {                                                                    \
            NULL, NULL, NULL, name##_2_3, name##_2_4, name##_2_5, name##_2_6 \
        }                                                                    \
    }
#define LIST_2_4(name)                                     \
    {                                                      \
        MOST_HALVES, {NULL, name##_4_1, name##_4_2},       \
        {                                                  \
            NULL, NULL, name##_2_2, name##_2_3, name##_2_4 \
        }                                                  \
    }
static const struct tiles tiles_of[MU_TYPE_LIMIT] = {
    [MU_Q4_0] = LIST_3_6(q4_0),   [MU_Q4_1] = LIST_3_6(q4_1),     [MU_Q5_0] = LIST_3_6(q5_0),
    [MU_Q5_1] = LIST_3_6(q5_1),   [MU_Q8_0] = LIST_3_6(q8_0),     [MU_Q2_K] = LIST_2_4(q2_k),
    [MU_Q3_K] = LIST_2_4(q3_k),   [MU_Q4_K] = LIST_3_6(q4_k),     [MU_Q5_K] = LIST_3_6(q5_k),
    [MU_Q6_K] = LIST_2_4(q6_k),   [MU_IQ4_NL] = LIST_3_6(iq4_nl), [MU_IQ4_XS] = LIST_3_6(iq4_xs),
    [MU_MXFP4] = LIST_3_6(mxfp4),
};

/* What all of a multiplication's tiles share, and where one pass is. */
struct pass {
    const struct mu_mat *m;
    const struct mu_act *x;
    tile_fn *const *tile;       /* by number of tokens */
    int n_stream, row0, groups; /* of each stream */
    int t0, t1, n_tile;         /* tokens */
    size_t b0;                  /* first block */
    float *out;
    size_t stride;
};

/* Tokens [t0, t1) of blocks [b0, b0 + a->n_block): their terms, then their tiles. */
static void pass_run(const struct pass *p, struct tile *a)
{
    float s[PASS_TOKENS * THIN_BLOCKS];
    int32_t ta[PASS_TOKENS * THIN_BLOCKS], tb[PASS_TOKENS * THIN_BLOCKS];
    const struct mu_act *x = p->x;
    const struct family *f = mu_avx512_family(p->m->type);
    const size_t n_col = (size_t)x->n_col, n_block = n_col / MU_Q_BLOCK;
    const size_t group = mu_packed_group_bytes(p->m->type, p->m->n_col);
    const int n_tok = p->t1 - p->t0;
    const uint8_t *w = (const uint8_t *)p->m->data + (size_t)(p->row0 / MU_ROW_GROUP) * group +
                       mu_packed_group_offset(p->m->type, p->b0 * MU_Q_BLOCK);
    for (int g = 0; g < p->n_stream; g++)
        for (int i = 0; i < NEAR_SHARED / p->n_stream; i += 64)
            _mm_prefetch((const char *)(w + (size_t)g * a->w_group + i), _MM_HINT_T0);
    for (int t = 0; t < n_tok; t++) {
        size_t from = (size_t)(p->t0 + t) * n_block + p->b0, to = term_at(true, t, 0);
        mu_avx512_terms(f, x->s + from, x->sum + 2 * from, a->n_block, s + to, ta + to, tb + to);
    }
    const __mmask16 rows = a->rows;
    for (int i = 0; i < p->groups; i++, w += group) {
        a->w = w;
        a->rows = i == p->groups - 1 ? rows : 0xffff;
        for (int j = 0; j < p->n_tile; j++) {
            int from = j * n_tok / p->n_tile, to = (j + 1) * n_tok / p->n_tile;
            size_t at = term_at(true, from, 0);
            a->ahead = j == 0 ? w : NULL;
            a->q = x->q + (size_t)(p->t0 + from) * n_col + p->b0 * MU_Q_BLOCK;
            a->terms = (struct terms){s + at, ta + at, tb + at};
            a->out = p->out + (size_t)(p->t0 + from) * p->stride + p->row0 + i * MU_ROW_GROUP;
            p->tile[to - from](a);
        }
    }
}

void mu_streams_matmul_int8(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out,
                            size_t stride)
{
    const struct tiles *tiles = &tiles_of[m->type];
    const bool few = x->n_tok <= FEW_TOKENS;
    const int n_group = (row1 - row0 + MU_ROW_GROUP - 1) / MU_ROW_GROUP, n_stream = few ? 4 : 2;
    const int groups = n_group / n_stream, end = row0 + groups * n_stream * MU_ROW_GROUP; /* the streams' */
    const int n_tile = few ? 1 : (x->n_tok + tiles->most - 1) / tiles->most;              /* as equal as can be */
    const int pass_tiles = PASS_TOKENS / tiles->most;
    const size_t n_block = (size_t)x->n_col / MU_Q_BLOCK, group = mu_packed_group_bytes(m->type, m->n_col);
    struct tile a = {.w_group = (size_t)groups * group,
                     .out_group = (size_t)groups * MU_ROW_GROUP,
                     .q_ld = (size_t)x->n_col,
                     .out_stride = stride,
                     .rows = (__mmask16)(0xffff >> (end > row1 ? end - row1 : 0))};
    struct pass p = {.m = m,
                     .x = x,
                     .tile = few ? tiles->four : tiles->two,
                     .n_stream = n_stream,
                     .row0 = row0,
                     .groups = groups,
                     .out = out,
                     .stride = stride};
    for (int i = 0; groups > 0 && i < n_tile; i += pass_tiles) {
        p.n_tile = n_tile - i < pass_tiles ? n_tile - i : pass_tiles;
        p.t0 = (int)((int64_t)i * x->n_tok / n_tile);
        p.t1 = (int)((int64_t)(i + p.n_tile) * x->n_tok / n_tile);
        for (p.b0 = 0; p.b0 == 0 || p.b0 < n_block; p.b0 += THIN_BLOCKS) {
            a.n_block = n_block - p.b0 < THIN_BLOCKS ? (int)(n_block - p.b0) : THIN_BLOCKS;
            a.first = p.b0 == 0;
            pass_run(&p, &a);
        }
    }
    if (end < row1) mu_avx512_matmul_int8(m, x, end, row1, out, stride); /* fewer groups than streams */
}
