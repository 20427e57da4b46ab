/* C3 for BF16 with vdpbf16ps: two columns an instruction, the high half of each pair first (hence the swapped pairs),
 * results and inputs below 2^-126 flushed to zero, rounding to nearest even whatever MXCSR says. That is what the chips
 * we met do; a chip must show it (mu_avx512_bf16_probe) before it is used.
 *
 * Tiles as in float_avx512.c; the dot product's latency asks for 6 accumulators or more. */
#include <cpuid.h>
#include <immintrin.h>
#include <string.h>

#include "kernels/parts.h"
#include "kernels/x86/layout.h"

enum {
    MAX_TILE = 12,
    PASS_PAIRS = 512,          /* pairs of columns of a pass */
    COPY_LD = PASS_PAIRS + 16, /* pairs from one copied token to the next */
    MAX_R = 4,
    FAR_BYTES = 8192, /* as in float_avx512.c */
    NEAR_BYTES = 1024
};

struct tile {
    const uint8_t *w;
    size_t group_bytes;
    int n_pair;
    const uint32_t *x;    /* pairs: even column in the high half */
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

MU_INLINE void tile_run(const struct tile *a, int R, int T)
{
    __m512 acc[MAX_R][MAX_TILE];
    MU_UNROLL
    for (int r = 0; r < R; r++) {
        MU_UNROLL
        for (int t = 0; t < T; t++)
            acc[r][t] = a->first ? _mm512_setzero_ps()
                                 : _mm512_maskz_loadu_ps(rows_of(a, r, R), a->out + (size_t)t * a->out_stride + 16 * r);
    }
    for (int c = 0; c < a->n_pair; c++) {
        if (R == 1 && T > 1 && a->ahead) {
            _mm_prefetch((const char *)(a->ahead + 64 * (size_t)c), _MM_HINT_T1);
            _mm_prefetch((const char *)(a->w + NEAR_BYTES + 64 * (size_t)c), _MM_HINT_T0);
        }
        MU_UNROLL
        for (int r = 0; r < R; r++) {
            __m512i w = _mm512_loadu_si512(a->w + (size_t)r * a->group_bytes + 64 * (size_t)c);
            MU_UNROLL
            for (int t = 0; t < T; t++) {
                __m512i x = _mm512_set1_epi32((int)a->x[(size_t)t * COPY_LD + (size_t)c]);
                acc[r][t] = _mm512_dpbf16_ps(acc[r][t], (__m512bh)w, (__m512bh)x);
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

#define TILE(R, T)                                   \
    static void tile_##R##_##T(const struct tile *a) \
    {                                                \
        tile_run(a, R, T);                           \
    }
/* clang-format off */
TILE(4, 1) TILE(4, 2) TILE(2, 3) TILE(2, 4)
TILE(1, 1) TILE(1, 2) TILE(1, 3) TILE(1, 4) TILE(1, 5) TILE(1, 6)
TILE(1, 7) TILE(1, 8) TILE(1, 9) TILE(1, 10) TILE(1, 11) TILE(1, 12)
static tile_fn *const one[MAX_TILE + 1] = {NULL,     tile_1_1, tile_1_2, tile_1_3,  tile_1_4,  tile_1_5, tile_1_6,
                                           tile_1_7, tile_1_8, tile_1_9, tile_1_10, tile_1_11, tile_1_12};
/* clang-format on */
static tile_fn *const many[5] = {NULL, tile_4_1, tile_4_2, tile_2_3, tile_2_4};
static const int many_groups[5] = {1, 4, 4, 2, 2};

/* Pairs [p0, p0 + n) of a token's n_col activations, halves exchanged; a missing odd column is zero. */
static void pairs_copy(const uint16_t *x, int n_col, int p0, int n, uint32_t *to)
{
    int whole = 2 * (p0 + n) <= n_col ? n : n - 1, i = 0;
    const uint16_t *from = x + 2 * (size_t)p0;
    for (; i + 16 <= whole; i += 16)
        _mm512_storeu_si512(to + i, _mm512_rol_epi32(_mm512_loadu_si512(from + 2 * i), 16));
    for (; i < n; i++) to[i] = (uint32_t)from[2 * i] << 16 | (i < whole ? from[2 * i + 1] : 0u);
}

void mu_avx512_matmul_bf16(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out,
                           size_t stride)
{
    uint32_t copy[MAX_TILE * COPY_LD] __attribute__((aligned(64)));
    struct tile a = {.group_bytes = mu_packed_group_bytes(m->type, m->n_col), .x = copy, .out_stride = stride};
    int n_tile = (x->n_tok + MAX_TILE - 1) / MAX_TILE, n_pair = (m->n_col + 1) / 2;
    for (int i = 0; i < n_tile; i++) {
        int t0 = (int)((int64_t)i * x->n_tok / n_tile), T = (int)((int64_t)(i + 1) * x->n_tok / n_tile) - t0;
        for (int p0 = 0; p0 == 0 || p0 < n_pair; p0 += PASS_PAIRS) {
            int R;
            a.n_pair = n_pair - p0 < PASS_PAIRS ? n_pair - p0 : PASS_PAIRS;
            a.first = p0 == 0;
            for (int t = 0; t < T; t++)
                pairs_copy(x->bf16 + (size_t)(t0 + t) * (size_t)x->n_col, m->n_col, p0, a.n_pair, copy + t * COPY_LD);
            for (int r = row0; r < row1; r += R * MU_ROW_GROUP) {
                R = T <= 4 && row1 - r > (many_groups[T] - 1) * MU_ROW_GROUP ? many_groups[T] : 1;
                int rows = row1 - r - (R - 1) * MU_ROW_GROUP;
                a.w = (const uint8_t *)m->data + (size_t)(r / MU_ROW_GROUP) * a.group_bytes + 64 * (size_t)p0;
                a.ahead = n_tile == 1 ? a.w + FAR_BYTES : i == 0 ? a.w + a.group_bytes : NULL;
                a.rows = rows >= MU_ROW_GROUP ? 0xffff : (__mmask16)((1u << rows) - 1u);
                a.out = out + (size_t)t0 * stride + r;
                (R > 1 ? many : one)[T](&a);
            }
        }
    }
}

/* The proof. */

enum { PROBE_ROWS = 16, PROBE_COLS = 5, PROBE_TOKENS = 12, PROBE_ROUNDS = 24 };
static bool proven;

bool mu_avx512_bf16_proven(void)
{
    return proven;
}

/* Random bf16 of exponent lo … lo + span - 1. */
static uint16_t probe_value(uint32_t *state, int lo, int span)
{
    *state = *state * 1664525u + 1013904223u;
    uint32_t r = *state >> 8;
    return (uint16_t)((r & 0x807fu) | (uint32_t)(lo + (int)(r >> 16) % span) << 7);
}

/* Rounds alternate between ordinary values (rounding ties, cancellation), products around 2^-126 (tininess before or
 * after rounding), and subnormal inputs. */
static bool probe_round(int round, uint32_t *state)
{
    static const int lo[3] = {122, 61, 0}, span[3] = {8, 6, 3};
    uint16_t w[PROBE_ROWS * PROBE_COLS], x[PROBE_TOKENS * PROBE_COLS];
    uint8_t packed[PROBE_ROWS * 4 * ((PROBE_COLS + 1) / 2)] __attribute__((aligned(64)));
    float want[PROBE_TOKENS * PROBE_ROWS], got[PROBE_TOKENS * PROBE_ROWS];
    int kind = round % 3;
    for (int i = 0; i < PROBE_ROWS * PROBE_COLS; i++) w[i] = probe_value(state, lo[kind], span[kind]);
    for (int i = 0; i < PROBE_TOKENS * PROBE_COLS; i++)
        x[i] = probe_value(state, kind == 2 ? 124 : lo[kind], span[kind]);
    struct mu_mat raw = {MU_BF16, PROBE_ROWS, PROBE_COLS, w}, m = {MU_BF16, PROBE_ROWS, PROBE_COLS, packed};
    struct mu_act act = {.n_tok = PROBE_TOKENS, .n_col = PROBE_COLS, .bf16 = x};
    mu_packed_mat_pack(&m, 0, PROBE_ROWS, w);
    mu_ref_matmul(&raw, &act, 0, PROBE_ROWS, want, PROBE_ROWS);
    mu_avx512_matmul_bf16(&m, &act, 0, PROBE_ROWS, got, PROBE_ROWS);
    return memcmp(want, got, sizeof want) == 0;
}

void mu_avx512_bf16_probe(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & bit_AVX512BF16)) return;
    unsigned csr = _mm_getcsr();
    _mm_setcsr(0x1f80u); /* the reference is defined in C0's environment, whatever the caller's is */
    uint32_t state = 1;
    bool ok = true;
    for (int round = 0; round < PROBE_ROUNDS; round++) ok &= probe_round(round, &state);
    _mm_setcsr(csr);
    proven = ok;
}
