/* C3 with NEON: F32, F16, BF16.
 *
 * A tile is V vectors of 4 rows × T tokens; columns ascend. FMLA by element takes a token's activation from a lane, so
 * the activations of a pass are copied with the tokens of a column together. An FMA takes 4 cycles on up to four pipes:
 * 16 accumulators keep them busy, so a single token takes 4 groups of 16 rows at once, two take 2 groups, three or four
 * one, and more of them half a group: 16 FMAs a column then cost 2 loads of weights, 2 of activations, and for F16 and
 * BF16 2 instructions that widen. Between passes of columns the accumulators rest in `out`.
 *
 * BF16. C3 flushes what is tiny after rounding; this processor's flush-to-zero judges before rounding, which differs
 * where rounding makes 2^-126 of something less. But it tells: FPSR.UFC is set when any result is flushed. So a tile
 * runs with FPCR.FZ and, in the rare case that it has flushed something, once more by the letter of the rule
 * (redo_bf16), from the accumulators that it began with. Where nothing is flushed the two agree. */
#include <arm_neon.h>
#include <math.h>
#include <string.h>

#include "kernels/arm/arm.h"
#include "kernels/arm/rows.h"
#include "kernels/parts.h"

enum {
    MAX_TILE = 8, /* tokens */
    MAX_V = 16,
    MAX_ACC = 16,       /* V·T, at most */
    COPY_FLOATS = 8192, /* activations of a pass */
    FEW = 4,            /* tokens, that lie 4 to a column; else 8 */
    WIDE_COLS = 512,    /* columns of a pass of more tokens: half a group's weights are then 16 KiB, as is the copy */
};
_Static_assert(WIDE_COLS *MAX_TILE <= COPY_FLOATS && COPY_FLOATS / FEW % 2 == 0, "passes begin at an even column");

struct tile {
    const uint8_t *w; /* first group's columns of this pass */
    size_t group_bytes;
    int n_col;
    const float *x; /* [n_col][T <= FEW ? 4 : 8] */
    float *out;
    size_t out_stride;
    int rows; /* that exist, of the 4·V */
    bool first;
};

typedef void tile_fn(const struct tile *a);

/* Four rows' weights of column c; p is at the quad's of column 0. odd: c's last bit, a constant where it matters. */
MU_INLINE float32x4_t weights(const uint8_t *p, uint32_t type, int c, int odd)
{
    if (type == MU_F32) return vld1q_f32((const float *)(const void *)(p + 64 * (size_t)c));
    if (type == MU_F16) return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p + 32 * (size_t)c)));
    uint32x4_t pair = vld1q_u32((const uint32_t *)(const void *)(p + 32 * (size_t)(c - odd)));
    return vreinterpretq_f32_u32(odd ? vshlq_n_u32(pair, 16) : vandq_u32(pair, vdupq_n_u32(0xffff0000u)));
}

/* Where quad v of the tile begins. */
MU_INLINE const uint8_t *quad_at(const struct tile *a, uint32_t type, int v)
{
    return a->w + (size_t)(v / 4) * a->group_bytes + (type == MU_F16 ? 8 : 16) * (v % 4);
}

MU_INLINE void tile_run(const struct tile *a, uint32_t type, int V, int T)
{
    float32x4_t acc[MAX_V][MAX_TILE];
    const uint8_t *p[MAX_V];
    MU_UNROLL
    for (int v = 0; v < V; v++) {
        p[v] = quad_at(a, type, v);
        MU_UNROLL
        for (int t = 0; t < T; t++)
            acc[v][t] = a->first ? vdupq_n_f32(0.0f)
                                 : rows_load(a->out + (size_t)t * a->out_stride + QUAD * v, a->rows - QUAD * v);
    }
    const float *x = a->x;
    for (int c = 0; c < a->n_col; c += 2) {
        MU_UNROLL
        for (int i = 0; i < 2; i++) {
            if (c + i >= a->n_col) break;
            float32x4_t x0 = vld1q_f32(x), x1 = T > FEW ? vld1q_f32(x + 4) : x0;
            MU_UNROLL
            for (int v = 0; v < V; v++) {
                float32x4_t w = weights(p[v], type, c + i, i);
#define TOKEN(t) \
    if ((t) < T) acc[v][t] = vfmaq_laneq_f32(acc[v][t], w, (t) < 4 ? x0 : x1, (t) % 4);
                TOKEN(0) TOKEN(1) TOKEN(2) TOKEN(3) TOKEN(4) TOKEN(5) TOKEN(6) TOKEN(7)
#undef TOKEN
            }
            x += T > FEW ? 8 : 4;
        }
    }
    MU_UNROLL
    for (int v = 0; v < V; v++) {
        MU_UNROLL
        for (int t = 0; t < T; t++)
            rows_store(a->out + (size_t)t * a->out_stride + QUAD * v, a->rows - QUAD * v, acc[v][t]);
    }
}

#define TILE(name, type, V, T)                         \
    static void name##_##V##_##T(const struct tile *a) \
    {                                                  \
        tile_run(a, type, V, T);                       \
    }
#define FAMILY(name, type)                                                                                        \
    TILE(name, type, 16, 1)                                                                                       \
    TILE(name, type, 4, 1)                                                                                        \
    TILE(name, type, 8, 2)                                                                                        \
    TILE(name, type, 4, 2)                                                                                        \
    TILE(name, type, 4, 3)                                                                                        \
    TILE(name, type, 4, 4)                                                                                        \
    TILE(name, type, 2, 5)                                                                                        \
    TILE(name, type, 2, 6)                                                                                        \
    TILE(name, type, 2, 7)                                                                                        \
    TILE(name, type, 2, 8)                                                                                        \
    static tile_fn *const name##_one[MAX_TILE + 1] = {NULL,       name##_4_1, name##_4_2, name##_4_3, name##_4_4, \
                                                      name##_2_5, name##_2_6, name##_2_7, name##_2_8},            \
                                                *const name##_many[3] = {NULL, name##_16_1, name##_8_2};

FAMILY(f32, MU_F32)
FAMILY(f16, MU_F16)
FAMILY(bf16, MU_BF16)

/* Columns [c0, c0 + n) of T tokens, a column's together. BF16's subnormal inputs are zeros. */
static void activations_copy(uint32_t type, const struct mu_act *x, int t0, int T, int c0, int n, float *copy)
{
    const int ld = T > FEW ? 8 : 4;
    for (int t = 0; t < ld; t++) {
        size_t from = (size_t)(t0 + t) * (size_t)x->n_col + (size_t)c0;
        for (int c = 0; c < n; c++) {
            float v = 0.0f;
            if (t < T && type == MU_BF16) {
                uint16_t h = x->bf16[from + (size_t)c];
                v = mu_bf16_to_f32(h & 0x7f80u ? h : h & 0x8000u);
            } else if (t < T) {
                v = x->f32[from + (size_t)c];
            }
            copy[ld * c + t] = v;
        }
    }
}

/* ---- BF16's rule ---- */

enum { FPCR_FZ = 1 << 24, FPSR_UFC = 1 << 3 };

static inline uint64_t fpcr_get(void)
{
    uint64_t v;
    __asm__ volatile("mrs %0, fpcr" : "=r"(v) : : "memory");
    return v;
}
static inline void fpcr_set(uint64_t v)
{
    __asm__ volatile("msr fpcr, %0" : : "r"(v) : "memory");
}
static inline uint64_t fpsr_get(void)
{
    uint64_t v;
    __asm__ volatile("mrs %0, fpsr" : "=r"(v) : : "memory");
    return v;
}
static inline void fpsr_set(uint64_t v)
{
    __asm__ volatile("msr fpsr, %0" : : "r"(v) : "memory");
}

static float32x4_t flush(float32x4_t x)
{
    uint32x4_t tiny = vcltq_f32(vabsq_f32(x), vdupq_n_f32(0x1p-126f));
    uint32x4_t sign = vandq_u32(vreinterpretq_u32_f32(x), vdupq_n_u32(0x80000000u));
    return vbslq_f32(tiny, vreinterpretq_f32_u32(sign), x);
}

/* kernels/ref/matmul.c's fma_flush on four rows: what fmaf rounded up to 2^-126 is tiny where the exact sum is under
 * 2^-126 - 2^-151. */
static float32x4_t fma_flush(float32x4_t a, float b, float32x4_t c)
{
    float32x4_t r = vfmaq_n_f32(c, a, b);
    uint32x4_t edge = vceqq_f32(vabsq_f32(r), vdupq_n_f32(0x1p-126f));
    if (vmaxvq_u32(edge)) {
        float av[QUAD], cv[QUAD], rv[QUAD];
        vst1q_f32(av, a);
        vst1q_f32(cv, c);
        vst1q_f32(rv, r);
        for (int i = 0; i < QUAD; i++)
            if (fabsf(rv[i]) == 0x1p-126f && fabs((double)av[i] * (double)b + (double)cv[i]) < 0x1p-126 - 0x1p-151)
                rv[i] = copysignf(0.0f, rv[i]);
        r = vld1q_f32(rv);
    }
    return flush(r);
}

/* Tile a again, without FPCR.FZ; before: its accumulators, [token][4·V]. */
static __attribute__((noinline)) void redo_bf16(const struct tile *a, int V, int T, const float *before)
{
    const int ld = T > FEW ? 8 : 4;
    for (int v = 0; v < V; v++) {
        const uint8_t *p = quad_at(a, MU_BF16, v);
        for (int t = 0; t < T; t++) {
            float32x4_t acc = vld1q_f32(before + (size_t)t * (size_t)(QUAD * V) + QUAD * v);
            for (int c = 0; c < a->n_col; c++)
                acc = fma_flush(flush(weights(p, MU_BF16, c, c % 2)), a->x[ld * c + t], acc);
            rows_store(a->out + (size_t)t * a->out_stride + QUAD * v, a->rows - QUAD * v, acc);
        }
    }
}

/* fn(a) by C3's rule for BF16. FPCR.FZ is set and FPSR.UFC clear, before and after. */
static void run_bf16(tile_fn *fn, const struct tile *a, int V, int T)
{
    float before[MAX_ACC * QUAD];
    for (int t = 0; t < T; t++)
        for (int v = 0; v < V; v++) {
            const float *out = a->out + (size_t)t * a->out_stride + QUAD * v;
            float32x4_t acc = a->first ? vdupq_n_f32(0.0f) : rows_load(out, a->rows - QUAD * v);
            vst1q_f32(before + (size_t)t * (size_t)(QUAD * V) + QUAD * v, acc);
        }
    fn(a);
    if (!(fpsr_get() & FPSR_UFC)) return;
    uint64_t fpcr = fpcr_get();
    fpcr_set(fpcr & ~(uint64_t)FPCR_FZ);
    redo_bf16(a, V, T, before);
    fpcr_set(fpcr);
    fpsr_set(0);
}

static __attribute__((noinline)) void matmul(const struct mu_mat *m, const struct mu_act *x, int row0, int row1,
                                             float *out, size_t stride)
{
    float copy[COPY_FLOATS] __attribute__((aligned(64)));
    tile_fn *const *one = m->type == MU_F32 ? f32_one : m->type == MU_F16 ? f16_one : bf16_one;
    tile_fn *const *many = m->type == MU_F32 ? f32_many : m->type == MU_F16 ? f16_many : bf16_many;
    struct tile a = {.group_bytes = mu_packed_group_bytes(m->type, m->n_col), .x = copy, .out_stride = stride};
    int n_tile = (x->n_tok + MAX_TILE - 1) / MAX_TILE; /* as equal as can be */
    for (int i = 0; i < n_tile; i++) {
        int t0 = (int)((int64_t)i * x->n_tok / n_tile), T = (int)((int64_t)(i + 1) * x->n_tok / n_tile) - t0;
        int pass = T > FEW ? WIDE_COLS : COPY_FLOATS / FEW;
        for (int c0 = 0; c0 == 0 || c0 < m->n_col; c0 += pass) {
            a.n_col = m->n_col - c0 < pass ? m->n_col - c0 : pass;
            a.first = c0 == 0;
            activations_copy(m->type, x, t0, T, c0, a.n_col, copy);
            for (int r = row0, V; r < row1; r += QUAD * V) {
                V = T > FEW ? 2 : T < 3 && row1 - r > (MAX_ACC / T - 4) * QUAD ? MAX_ACC / T : 4;
                a.w = (const uint8_t *)m->data + (size_t)(r / MU_ROW_GROUP) * a.group_bytes +
                      mu_packed_group_offset(m->type, (size_t)c0) +
                      (m->type == MU_F16 ? 8 : 16) * (r % MU_ROW_GROUP / QUAD);
                a.rows = row1 - r;
                a.out = out + (size_t)t0 * stride + r;
                tile_fn *fn = (V > 4 ? many : one)[T];
                if (m->type == MU_BF16)
                    run_bf16(fn, &a, V, T);
                else
                    fn(&a);
            }
        }
    }
}

void mu_neon_matmul_float(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out, size_t stride)
{
    uint64_t fpcr = fpcr_get();
    if (m->type == MU_BF16) {
        fpcr_set(fpcr | FPCR_FZ);
        fpsr_set(0);
    }
    matmul(m, x, row0, row1, out, stride);
    if (m->type == MU_BF16) fpcr_set(fpcr);
}
