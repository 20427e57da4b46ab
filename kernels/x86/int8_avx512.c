/* C2 with AVX-512 VNNI: how a multiplication is cut into tiles (tiles_avx512.c).
 *
 * Loops, outermost first: up to TILES_A_PASS tiles of tokens; columns, so many that one group's weights and one tile's
 * activations share the L1; row groups; tiles. Between column passes the accumulators rest in `out`, which changes no
 * bit. Activations of a pass are first copied together: in the caller's array the same column of all tokens may fall
 * into one set of the cache. A few tokens (decode) take all columns in one pass and no copy, so that the weights stream
 * in the order they lie in. */
#include <string.h>

#include "kernels/x86/tiles_avx512.h"

enum {
    TILES_A_PASS = 4,
    FAR_BYTES = 16384 /* how far ahead of itself a lone tile prefetches into the L2 */
};

void mu_avx512_terms(const struct family *f, const float *s, const int16_t *sum, int n, float *s_out, int32_t *a_out,
                     int32_t *b_out)
{
    const __m512i ones = _mm512_set1_epi16(1), both = _mm512_set1_epi16((int16_t)-f->offset);
    for (int i = 0; i < n; i += 16) {
        __mmask16 mask = n - i >= 16 ? 0xffff : (__mmask16)((1u << (n - i)) - 1u);
        __m512 scale = _mm512_maskz_loadu_ps(mask, s + i);
        __m512i halves = _mm512_maskz_loadu_epi32(mask, sum + 2 * i), a, b; /* S1 << 16 | S0 */
        _mm512_mask_storeu_ps(s_out + i, mask, scale);
        switch (f->terms) {
        case TERMS_OFFSET: a = b = _mm512_madd_epi16(halves, both); break;
        case TERMS_TOTAL:
            a = b = _mm512_castps_si512(_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_madd_epi16(halves, ones)), scale));
            break;
        case TERMS_OFFSET_HALVES:
            a = _mm512_madd_epi16(halves, _mm512_srli_epi32(both, 16));
            b = _mm512_madd_epi16(halves, _mm512_slli_epi32(both, 16));
            break;
        default:
            a = _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_madd_epi16(halves, _mm512_srli_epi32(ones, 16))));
            b = _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_srai_epi32(halves, 16)));
        }
        _mm512_mask_storeu_epi32(a_out + i, mask, a);
        if (f->terms == TERMS_OFFSET_HALVES || f->terms == TERMS_TOTAL_HALVES)
            _mm512_mask_storeu_epi32(b_out + i, mask, b);
    }
}

/* Where a matmul's weights are, and which rows of them. */
struct job {
    const struct mu_mat *m;
    size_t group_bytes;
    const struct mu_act *x;
    int row0, row1;
    float *out;
    size_t stride;
};

/* The row groups of one pass: tokens [t0, t0 + n_tok) in n_tile tiles, blocks [b0, b0 + a->n_block). */
static void pass_run(const struct job *j, struct tile *a, tile_fn *const *fn, bool thin, int t0, int n_tok, int n_tile,
                     int b0)
{
    struct terms terms = a->terms;
    const int8_t *q = a->q;
    const bool intel = mu_x86_intel();
    size_t q_ld = thin ? a->q_ld : WIDE_LD, offset = mu_packed_group_offset(j->m->type, (size_t)b0 * MU_Q_BLOCK);
    for (int r = j->row0; r < j->row1; r += MU_ROW_GROUP) {
        int rows = j->row1 - r;
        a->w = (const uint8_t *)j->m->data + (size_t)(r / MU_ROW_GROUP) * j->group_bytes + offset;
        a->rows = rows >= MU_ROW_GROUP ? 0xffff : (__mmask16)((1u << rows) - 1u);
        for (int i = 0; i < n_tile; i++) {
            int from = i * n_tok / n_tile, to = (i + 1) * n_tok / n_tile;
            size_t at = term_at(thin, from, 0);
            /* A lone tile streams its weights once; else the next group's come in while the first tile works. One token alone
             * leaves that to the processor's own prefetcher where that is AMD's (Zen 4: 0.9 to 1.0 of a plain read's speed
             * against 0.8). With more to multiply per byte that one falls behind, and this doubles the speed. Intel's always
             * does (Emerald Rapids: 0.62 of a plain read alone, 0.76 with help near by, 0.92 with both). */
            a->ahead = n_tile > 1           ? i == 0 && rows > MU_ROW_GROUP ? a->w + j->group_bytes : NULL
                       : n_tok > 1 || intel ? a->w + FAR_BYTES
                                            : NULL;
            a->q = q + (size_t)from * q_ld;
            a->terms.s = terms.s + at;
            a->terms.a = terms.a + at;
            a->terms.b = terms.b + at;
            a->out = j->out + (size_t)(t0 + from) * j->stride + r;
            fn[to - from](a);
        }
    }
    a->terms = terms;
    a->q = q;
}

static void run_thin(const struct job *j, const struct family *f)
{
    float s[THIN_TOKENS * THIN_BLOCKS];
    int32_t ta[THIN_TOKENS * THIN_BLOCKS], tb[THIN_TOKENS * THIN_BLOCKS];
    const struct mu_act *x = j->x;
    size_t n_col = (size_t)x->n_col, n_block = n_col / MU_Q_BLOCK;
    for (size_t b0 = 0; b0 == 0 || b0 < n_block; b0 += THIN_BLOCKS) {
        int n = n_block - b0 < THIN_BLOCKS ? (int)(n_block - b0) : THIN_BLOCKS;
        for (int t = 0; t < x->n_tok; t++) {
            size_t from = (size_t)t * n_block + b0, to = term_at(true, t, 0);
            mu_avx512_terms(f, x->s + from, x->sum + 2 * from, n, s + to, ta + to, tb + to);
        }
        struct tile a = {.n_block = n,
                         .q = x->q + b0 * MU_Q_BLOCK,
                         .q_ld = n_col,
                         .terms = {s, ta, tb},
                         .out_stride = j->stride,
                         .first = b0 == 0};
        pass_run(j, &a, f->thin, true, 0, x->n_tok, 1, (int)b0);
    }
}

static void run_wide(const struct job *j, const struct family *f)
{
    int8_t q[TILES_A_PASS * MAX_TILE * WIDE_LD] __attribute__((aligned(64)));
    float s[TILES_A_PASS * MAX_TILE * WIDE_BLOCKS];
    int32_t ta[TILES_A_PASS * MAX_TILE * WIDE_BLOCKS], tb[TILES_A_PASS * MAX_TILE * WIDE_BLOCKS];
    const struct mu_act *x = j->x;
    size_t n_col = (size_t)x->n_col, n_block = n_col / MU_Q_BLOCK;
    int n_tile = (x->n_tok + f->max_tile - 1) / f->max_tile; /* as equal as can be */
    for (int i = 0; i < n_tile; i += TILES_A_PASS) {
        int tiles = n_tile - i < TILES_A_PASS ? n_tile - i : TILES_A_PASS;
        int t0 = (int)((int64_t)i * x->n_tok / n_tile), t1 = (int)((int64_t)(i + tiles) * x->n_tok / n_tile);
        for (size_t b0 = 0; b0 == 0 || b0 < n_block; b0 += WIDE_BLOCKS) {
            int n = n_block - b0 < WIDE_BLOCKS ? (int)(n_block - b0) : WIDE_BLOCKS;
            for (int t = t0; t < t1; t++) {
                size_t from = (size_t)t * n_block + b0, to = term_at(false, t - t0, 0);
                memcpy(q + (t - t0) * WIDE_LD, x->q + from * MU_Q_BLOCK, (size_t)n * MU_Q_BLOCK);
                mu_avx512_terms(f, x->s + from, x->sum + 2 * from, n, s + to, ta + to, tb + to);
            }
            struct tile a = {.n_block = n, .q = q, .terms = {s, ta, tb}, .out_stride = j->stride, .first = b0 == 0};
            pass_run(j, &a, f->wide, false, t0, t1 - t0, tiles, (int)b0);
        }
    }
}

void mu_avx512_matmul_int8(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out,
                           size_t stride)
{
    const struct family *f = mu_avx512_family(m->type);
    struct job j = {m, mu_packed_group_bytes(m->type, m->n_col), x, row0, row1, out, stride};
    if (x->n_tok <= THIN_TOKENS)
        run_thin(&j, f);
    else
        run_wide(&j, f);
}
