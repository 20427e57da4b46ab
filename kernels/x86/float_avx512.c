/* C3 with AVX-512 FMA: F32, F16, and BF16 where the processor has no dot product of its own that is proven
 * (bf16_avx512.c).
 *
 * A tile is R groups of 16 rows × T tokens, one accumulator each, columns ascending, activations broadcast from memory.
 * An FMA takes 4 cycles and one starts each cycle: a single token needs several groups at once to keep the pipe full, 4
 * tokens or more need one. Where two start each cycle (Intel, Zen 5) there are no more loads than that, and two groups share
 * each. BF16 runs under flush-to-zero, which is C3's rule for it, and on activations widened to f32. */
#include <immintrin.h>
#include <string.h>

#include "kernels/parts.h"
#include "kernels/x86/layout.h"

enum {
    MAX_TILE = 12,
    PASS_COLS = 512,          /* columns of a pass; even. 12 tokens' copies are then 25 KB */
    COPY_LD = PASS_COLS + 16, /* floats from one copied token to the next; +16: another set of the L1 */
    MAX_R = 4,
    FEW = 4,          /* tokens: their activations are read where they are, all columns in one pass */
    FAR_BYTES = 8192, /* how far ahead of itself a lone tile prefetches into the L2 … */
    FAR_EACH = 4096,  /* … and each of several groups at once */
    NEAR_BYTES = 1024 /* … and any tile that prefetches, into the L1 */
};

struct tile {
    const uint8_t *w; /* first group's columns of this pass */
    size_t group_bytes;
    int n_col; /* of this pass; even where BF16 */
    const float *x;
    size_t x_ld;          /* floats from one token to the next where they are few; else COPY_LD */
    const uint8_t *ahead; /* weights to prefetch meanwhile, as many bytes as w's; NULL = none */
    float *out;
    size_t out_stride;
    __mmask16 rows; /* of the last of the R groups */
    bool first;
};

typedef void tile_fn(const struct tile *a);

MU_INLINE __mmask16 rows_of(const struct tile *a, int r, int R)
{
    return r == R - 1 ? a->rows : (__mmask16)0xffff;
}

/* Weights of columns c (and c+1 for BF16, whose pairs lie in one vector) of group r. */
MU_INLINE __m512 weights(const struct tile *a, uint32_t type, int r, int c)
{
    const uint8_t *g = a->w + (size_t)r * a->group_bytes;
    if (type == MU_F32) return _mm512_loadu_ps((const float *)(const void *)(g + 64 * (size_t)c));
    if (type == MU_F16) return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(g + 32 * (size_t)c)));
    __m512i pair = _mm512_loadu_si512(g + 32 * (size_t)(c & ~1));
    return _mm512_castsi512_ps(c & 1 ? _mm512_slli_epi32(pair, 16)
                                     : _mm512_and_si512(pair, _mm512_set1_epi32((int)0xffff0000u)));
}

/* As many streams as there are groups; one token of one group, a matrix's last, needs none. */
MU_INLINE void prefetch(const struct tile *a, uint32_t type, int R, int T, int c)
{
    const int line = 64, bytes = type == MU_F32 ? 128 : 64; /* of two columns */
    if (R * T == 1 || !a->ahead) return;
    MU_UNROLL
    for (int r = 0; r < R; r++) {
        size_t at = (size_t)r * a->group_bytes + (size_t)c * (size_t)(bytes / 2);
        MU_UNROLL
        for (int i = 0; i < bytes; i += line) {
            _mm_prefetch((const char *)(a->ahead + at + i), _MM_HINT_T1);
            _mm_prefetch((const char *)(a->w + at + NEAR_BYTES + i), _MM_HINT_T0);
        }
    }
}

MU_INLINE void tile_run(const struct tile *a, uint32_t type, int R, int T)
{
    __m512 acc[MAX_R][MAX_TILE];
    MU_UNROLL
    for (int r = 0; r < R; r++) {
        MU_UNROLL
        for (int t = 0; t < T; t++)
            acc[r][t] = a->first ? _mm512_setzero_ps()
                                 : _mm512_maskz_loadu_ps(rows_of(a, r, R), a->out + (size_t)t * a->out_stride + 16 * r);
    }
    const size_t ld = T <= FEW ? a->x_ld : COPY_LD;
    for (int c = 0; c < a->n_col; c += 2) {
        prefetch(a, type, R, T, c);
        MU_UNROLL
        for (int i = 0; i < 2; i++) {
            if (type != MU_BF16 && c + i >= a->n_col) break;
            __m512 w[MAX_R];
            MU_UNROLL
            for (int r = 0; r < R; r++) w[r] = weights(a, type, r, c + i);
            MU_UNROLL
            for (int t = 0; t < T; t++) {
                __m512 x = _mm512_set1_ps(a->x[(size_t)t * ld + (size_t)(c + i)]);
                MU_UNROLL
                for (int r = 0; r < R; r++) acc[r][t] = _mm512_fmadd_ps(w[r], x, acc[r][t]);
            }
        }
    }
    MU_UNROLL
    for (int r = 0; r < R; r++) {
        MU_UNROLL
        for (int t = 0; t < T; t++)
            _mm512_mask_storeu_ps(a->out + (size_t)t * a->out_stride + 16 * r, rows_of(a, r, R), acc[r][t]);
    }
}

#define TILE(name, type, R, T)                         \
    static void name##_##R##_##T(const struct tile *a) \
    {                                                  \
        tile_run(a, type, R, T);                       \
    }
/* clang-format off */
#define TILES(name, type)                                                                                             \
    TILE(name, type, 1, 1)  TILE(name, type, 1, 2)  TILE(name, type, 1, 3)  TILE(name, type, 1, 4)                    \
    TILE(name, type, 1, 5)  TILE(name, type, 1, 6)  TILE(name, type, 1, 7)  TILE(name, type, 1, 8)                    \
    TILE(name, type, 1, 9)  TILE(name, type, 1, 10) TILE(name, type, 1, 11) TILE(name, type, 1, 12)                   \
    TILE(name, type, 4, 1)  TILE(name, type, 4, 2)  TILE(name, type, 2, 3)  TILE(name, type, 2, 4)                    \
    TILE(name, type, 2, 5)  TILE(name, type, 2, 6)  TILE(name, type, 2, 7)  TILE(name, type, 2, 8)                    \
    TILE(name, type, 2, 9)  TILE(name, type, 2, 10) TILE(name, type, 2, 11) TILE(name, type, 2, 12)
#define LIST(name)                                                                                                    \
    {NULL, name##_1_1, name##_1_2, name##_1_3, name##_1_4, name##_1_5, name##_1_6, name##_1_7, name##_1_8,            \
     name##_1_9, name##_1_10, name##_1_11, name##_1_12},                                                              \
    {NULL, name##_4_1, name##_4_2, name##_2_3, name##_2_4, name##_2_5, name##_2_6, name##_2_7, name##_2_8,            \
     name##_2_9, name##_2_10, name##_2_11, name##_2_12}
/* clang-format on */

TILES(f32, MU_F32)
TILES(f16, MU_F16)
TILES(bf16, MU_BF16)

/* one: a group at a time, by tokens; many: several groups at a time, as many as many_groups says */
static const struct family {
    tile_fn *one[MAX_TILE + 1], *many[MAX_TILE + 1];
} family_f32 = {LIST(f32)}, family_f16 = {LIST(f16)}, family_bf16 = {LIST(bf16)};
static const int many_groups[MAX_TILE + 1] = {1, 4, 4, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2};

/* Columns [c0, c0 + n) of tokens [t0, t0 + n_tok), n rounded up to even with a zero. */
static void activations_copy(const struct mu_mat *m, const struct mu_act *x, int t0, int n_tok, int c0, int n,
                             float *copy)
{
    for (int t = 0; t < n_tok; t++) {
        size_t from = (size_t)(t0 + t) * (size_t)x->n_col + (size_t)c0;
        float *to = copy + (size_t)t * COPY_LD;
        if (m->type == MU_BF16)
            for (int c = 0; c < n; c++) to[c] = mu_bf16_to_f32(x->bf16[from + (size_t)c]);
        else
            memcpy(to, x->f32 + from, (size_t)n * sizeof *to);
        to[n] = 0.0f;
    }
}

static __attribute__((noinline)) void matmul(const struct mu_mat *m, const struct mu_act *x, int row0, int row1,
                                             float *out, size_t stride)
{
    float copy[MAX_TILE * COPY_LD] __attribute__((aligned(64)));
    const struct family *f = m->type == MU_F32 ? &family_f32 : m->type == MU_F16 ? &family_f16 : &family_bf16;
    struct tile a = {.group_bytes = mu_packed_group_bytes(m->type, m->n_col), .x = copy, .out_stride = stride};
    const bool intel = mu_x86_intel(), zen5 = mu_x86_zen5();
    const int most_many = intel || zen5 ? MAX_TILE : 3; /* tokens with several groups at once */
    int n_tile = (x->n_tok + MAX_TILE - 1) / MAX_TILE;
    for (int i = 0; i < n_tile; i++) {
        int t0 = (int)((int64_t)i * x->n_tok / n_tile), T = (int)((int64_t)(i + 1) * x->n_tok / n_tile) - t0;
        bool in_place = T <= FEW && m->type != MU_BF16;
        int pass = in_place && m->n_col > 0 ? m->n_col : PASS_COLS;
        if (in_place) a.x = x->f32 + (size_t)t0 * (size_t)x->n_col;
        a.x_ld = in_place ? (size_t)x->n_col : (size_t)COPY_LD;
        for (int c0 = 0; c0 == 0 || c0 < m->n_col; c0 += pass) {
            int n = m->n_col - c0 < pass ? m->n_col - c0 : pass, R;
            if (!in_place) activations_copy(m, x, t0, T, c0, n, copy);
            a.n_col = m->type == MU_BF16 ? (n + 1) & ~1 : n;
            a.first = c0 == 0;
            for (int r = row0; r < row1; r += R * MU_ROW_GROUP) {
                R = T <= most_many && row1 - r > (many_groups[T] - 1) * MU_ROW_GROUP ? many_groups[T] : 1;
                int rows = row1 - r - (R - 1) * MU_ROW_GROUP;
                a.w = (const uint8_t *)m->data + (size_t)(r / MU_ROW_GROUP) * a.group_bytes +
                      mu_packed_group_offset(m->type, (size_t)c0);
                /* A lone tile streams its weights once; else the next groups' come in while the first tile works. Several
                 * streams are left to the processor's prefetcher where that is not Intel's (Emerald Rapids: F16 0.67 of a
                 * plain read's speed alone, 1.00 with help; BF16 0.74, 0.96); Zen 5's wants help from three tokens on (F16,
                 * four: 0.51, 0.75). */
                a.ahead = n_tile > 1                 ? i == 0 ? a.w + (size_t)R * a.group_bytes : NULL
                          : R == 1                   ? a.w + FAR_BYTES
                          : intel || (zen5 && T > 2) ? a.w + FAR_EACH
                                                     : NULL;
                a.rows = rows >= MU_ROW_GROUP ? 0xffff : (__mmask16)((1u << rows) - 1u);
                a.out = out + (size_t)t0 * stride + r;
                (R > 1 ? f->many : f->one)[T](&a);
            }
        }
    }
}

void mu_avx512_matmul_float(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out,
                            size_t stride)
{
    unsigned csr = _mm_getcsr();
    if (m->type == MU_BF16) _mm_setcsr(csr | _MM_FLUSH_ZERO_ON | 0x40u); /* 0x40: denormals are zeros */
    matmul(m, x, row0, row1, out, stride);
    _mm_setcsr(csr);
}
