/* C3 with AVX2 and FMA: F32, F16, BF16.
 *
 * A tile is R groups of 16 rows (two vectors of 8) × T tokens, all columns, ascending. Two FMAs start a cycle and take
 * 4: eight accumulators or more keep them busy, so few tokens take several groups at once. BF16 runs under
 * flush-to-zero, which judges tininess after rounding, as C3's rule does. */
#include <immintrin.h>
#include <string.h>

#include "kernels/parts.h"
#include "kernels/x86/layout.h"

enum { MAX_TILE = 6, MAX_R = 4 };

struct tile {
    const uint8_t *w;
    size_t group_bytes;
    int n_col;
    const void *x; /* f32, or bf16 where the matrix is BF16 */
    float *out;
    size_t out_stride;
    int rows; /* of the last of the R groups */
};

typedef void tile_fn(const struct tile *a);

/* Weights of column c, rows 8i … 8i+7 of a group at g; odd: c's last bit, a constant where it is called. */
MU_INLINE __m256 weights(const uint8_t *g, uint32_t type, int c, int odd, int i)
{
    if (type == MU_F32) return _mm256_loadu_ps((const float *)(const void *)(g + 64 * (size_t)c + 32 * i));
    if (type == MU_F16)
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(g + 32 * (size_t)c + 16 * i)));
    __m256i pair = _mm256_loadu_si256((const __m256i *)(const void *)(g + 32 * (size_t)(c - odd) + 32 * i));
    return _mm256_castsi256_ps(odd ? _mm256_slli_epi32(pair, 16)
                                   : _mm256_and_si256(pair, _mm256_set1_epi32((int)0xffff0000u)));
}

/* Token t's value of column c, broadcast. BF16 comes as a pair, even column in the low half; a last column has no
 * partner. */
MU_INLINE __m256 activation(const struct tile *a, uint32_t type, int t, int c, int odd, bool partner)
{
    size_t at = (size_t)t * (size_t)a->n_col + (size_t)c;
    if (type != MU_BF16) return _mm256_broadcast_ss((const float *)a->x + at);
    const uint16_t *x = (const uint16_t *)a->x + at;
    if (!partner) return _mm256_castsi256_ps(_mm256_set1_epi32((int)((uint32_t)*x << 16)));
    int32_t both;
    memcpy(&both, x - odd, sizeof both);
    __m256i pair = _mm256_set1_epi32(both);
    return _mm256_castsi256_ps(odd ? _mm256_and_si256(pair, _mm256_set1_epi32((int)0xffff0000u))
                                   : _mm256_slli_epi32(pair, 16));
}

MU_INLINE void column(const struct tile *a, uint32_t type, int R, int T, int c, int odd, bool partner,
                      __m256 acc[MAX_R][MAX_TILE][2])
{
    MU_UNROLL
    for (int r = 0; r < R; r++) {
        const uint8_t *g = a->w + (size_t)r * a->group_bytes;
        __m256 w0 = weights(g, type, c, odd, 0), w1 = weights(g, type, c, odd, 1);
        MU_UNROLL
        for (int t = 0; t < T; t++) {
            __m256 x = activation(a, type, t, c, odd, partner);
            acc[r][t][0] = _mm256_fmadd_ps(w0, x, acc[r][t][0]);
            acc[r][t][1] = _mm256_fmadd_ps(w1, x, acc[r][t][1]);
        }
    }
}

MU_INLINE void tile_run(const struct tile *a, uint32_t type, int R, int T)
{
    __m256 acc[MAX_R][MAX_TILE][2];
    MU_UNROLL
    for (int r = 0; r < R; r++) {
        MU_UNROLL
        for (int t = 0; t < T; t++) acc[r][t][0] = acc[r][t][1] = _mm256_setzero_ps();
    }
    int c = 0;
    for (; c + 2 <= a->n_col; c += 2) {
        column(a, type, R, T, c, 0, true, acc);
        column(a, type, R, T, c + 1, 1, true, acc);
    }
    if (c < a->n_col) column(a, type, R, T, c, 0, false, acc);
    MU_UNROLL
    for (int r = 0; r < R; r++) {
        int rows = r == R - 1 ? a->rows : MU_ROW_GROUP;
        MU_UNROLL
        for (int t = 0; t < T; t++) {
            float row[MU_ROW_GROUP];
            _mm256_storeu_ps(row, acc[r][t][0]);
            _mm256_storeu_ps(row + 8, acc[r][t][1]);
            memcpy(a->out + (size_t)t * a->out_stride + MU_ROW_GROUP * r, row, (size_t)rows * sizeof *row);
        }
    }
}

#define TILE(name, type, R, T)                         \
    static void name##_##R##_##T(const struct tile *a) \
    {                                                  \
        tile_run(a, type, R, T);                       \
    }
/* clang-format off */
#define FAMILY(name, type)                                                                                    \
    TILE(name, type, 4, 1) TILE(name, type, 2, 2) TILE(name, type, 2, 3)                                      \
    TILE(name, type, 1, 1) TILE(name, type, 1, 2) TILE(name, type, 1, 3)                                      \
    TILE(name, type, 1, 4) TILE(name, type, 1, 5) TILE(name, type, 1, 6)                                      \
    static tile_fn *const name##_one[MAX_TILE + 1] = {                                                        \
        NULL, name##_1_1, name##_1_2, name##_1_3, name##_1_4, name##_1_5, name##_1_6};                        \
    static tile_fn *const name##_many[4] = {NULL, name##_4_1, name##_2_2, name##_2_3};
/* clang-format on */

FAMILY(f32, MU_F32)
FAMILY(f16, MU_F16)
FAMILY(bf16, MU_BF16)
static const int many_groups[4] = {1, 4, 2, 2};

static __attribute__((noinline)) void matmul(const struct mu_mat *m, const struct mu_act *x, int row0, int row1,
                                             float *out, size_t stride)
{
    tile_fn *const *one = m->type == MU_F32 ? f32_one : m->type == MU_F16 ? f16_one : bf16_one;
    tile_fn *const *many = m->type == MU_F32 ? f32_many : m->type == MU_F16 ? f16_many : bf16_many;
    size_t group_bytes = mu_packed_group_bytes(m->type, m->n_col);
    struct tile a = {.group_bytes = group_bytes, .n_col = m->n_col, .out_stride = stride};
    int n_tile = (x->n_tok + MAX_TILE - 1) / MAX_TILE, R; /* as equal as can be */
    for (int i = 0; i < n_tile; i++) {
        int t0 = (int)((int64_t)i * x->n_tok / n_tile), T = (int)((int64_t)(i + 1) * x->n_tok / n_tile) - t0;
        size_t from = (size_t)t0 * (size_t)x->n_col;
        a.x = m->type == MU_BF16 ? (const void *)(x->bf16 + from) : (const void *)(x->f32 + from);
        for (int r = row0; r < row1; r += R * MU_ROW_GROUP) {
            R = T < 4 && row1 - r > (many_groups[T] - 1) * MU_ROW_GROUP ? many_groups[T] : 1;
            int rows = row1 - r - (R - 1) * MU_ROW_GROUP;
            a.w = (const uint8_t *)m->data + (size_t)(r / MU_ROW_GROUP) * group_bytes;
            a.rows = rows < MU_ROW_GROUP ? rows : MU_ROW_GROUP;
            a.out = out + (size_t)t0 * stride + r;
            (R > 1 ? many : one)[T](&a);
        }
    }
}

void mu_avx2_matmul_float(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out, size_t stride)
{
    unsigned csr = _mm_getcsr();
    if (m->type == MU_BF16) _mm_setcsr(csr | _MM_FLUSH_ZERO_ON | 0x40u); /* 0x40: denormals are zeros */
    matmul(m, x, row0, row1, out, stride);
    _mm_setcsr(csr);
}
