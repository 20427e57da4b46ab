/* matmul: every table × type against ref, bit for bit, through the table's own packing, at awkward sizes and row
 * ranges, with extreme codes and scales, `out` strided between guard bands; and ref against a dot product in double.
 *
 * MUSTER_TEST_REDUCED: fewer sizes (for emulated processors). MUSTER_TEST_NEEDS=avx2: fail, do not pass, where that
 * table is absent. */
#include <assert.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "kernels/blocks.h"
#include "kernels/kernels.h"
#ifdef __x86_64__
#include "kernels/x86/layout.h"
#endif
#include "tests/kernels/values.h"

static const uint32_t types[] = {MU_F32,    MU_F16,   MU_BF16,  MU_Q8_0,  MU_Q4_0,    MU_Q4_K,    MU_Q6_K,
                                 MU_Q4_1,   MU_Q5_0,  MU_Q5_1,  MU_Q2_K,  MU_Q3_K,    MU_Q5_K,    MU_IQ4_NL,
                                 MU_IQ4_XS, MU_MXFP4, MU_TQ1_0, MU_TQ2_0, MU_IQ2_XXS, MU_IQ3_XXS, MU_IQ3_S,
                                 MU_IQ2_XS, MU_IQ2_S, MU_IQ1_S, MU_IQ1_M};
enum { N_TYPES = sizeof types / sizeof *types };

static bool reduced;

/* An emulated x86 is tested beside the real one, which takes the long cases; and its emulator may judge tininess before
 * rounding, where BF16's rule (and hardware) judge after. An arm64 does that itself: the kernels do not rely on it. */
static bool emulated_x86(void)
{
#ifdef __x86_64__
    return reduced;
#else
    return false;
#endif
}

/* What runs here, and BF16 as on a processor that has no dot product of its own for it, where this one does. */
enum { MAX_TABLES = 7 }; /* ref, avx2, avx512, streams, panels, amx and that one */
static const struct mu_kernels *all[MAX_TABLES + 1];
static struct mu_kernels avx512_without_bf16;

static void tables_find(void)
{
    int n = 0;
    for (; mu_kernels_available()[n]; n++) all[n] = mu_kernels_available()[n];
#ifdef __x86_64__
    const struct mu_kernels *avx512 = NULL;
    for (int i = 0; i < n; i++)
        if (strcmp(all[i]->name, "avx512") == 0) avx512 = all[i];
    if (avx512 && mu_avx512_bf16_proven()) {
        avx512_without_bf16 = *avx512;
        avx512_without_bf16.name = "avx512 without bf16";
        avx512_without_bf16.matmul = mu_avx512_matmul_float;
        assert(n < MAX_TABLES);
        all[n++] = &avx512_without_bf16;
    }
#endif
    for (int i = 0; i < n; i++) print_message("table: %s\n", all[i]->name);
}

static bool covers(const struct mu_kernels *k, uint32_t type)
{
    return k != &avx512_without_bf16 || type == MU_BF16;
}

static void *take(size_t n)
{
    void *p = mu_aligned_alloc(64, n ? n : 64);
    assert_non_null(p);
    return p;
}

struct input {
    struct mu_act act;
    float *f32;
    uint16_t *bf16;
    int8_t *q;
    float *s;
    int16_t *sum;
};

static void input_fill(struct input *in, int n_tok, int n_col, enum values v)
{
    const struct mu_kernels *ref = all[0];
    size_t n = (size_t)n_tok * (size_t)n_col, n_block = n / 32 + 1;
    in->f32 = take(n * 4);
    in->bf16 = take(n * 2);
    in->q = take(n);
    in->s = take(n_block * 4);
    in->sum = take(n_block * 4);
    for (size_t i = 0; i < n; i++) {
        float f = uniform(-3, 3);
        if (v == EXTREME && rnd() % 8 == 0) f *= 1000;
        if (v == TINY) f *= rnd() % 4 ? 0x1p-70f : 0x1p-128f;
        in->f32[i] = f;
    }
    ref->to_bf16(in->f32, (int)n, in->bf16);
    if (n_col % 32 == 0) {
        assert_true(ref->quantize(in->f32, (int)n, in->q, in->s, in->sum));
        if (v == EXTREME) { /* codes that no quantiser gives together, and scales at both ends */
            for (size_t i = 0; i < n; i++)
                if (rnd() % 4) in->q[i] = i / 64 % 2 ? 127 : -127;
            for (size_t i = 0; i < n / 32; i++)
                if (rnd() % 4 == 0) in->s[i] = rnd() & 1 ? 0x1p-107f : 1e4f;
            ref->block_sums(in->q, (int)n, in->sum);
        }
    }
    in->act = (struct mu_act){n_tok, n_col, in->f32, in->bf16, in->q, in->s, in->sum};
}

static void input_free(struct input *in)
{
    void *parts[] = {in->f32, in->bf16, in->q, in->s, in->sum};
    for (size_t i = 0; i < 5; i++) mu_free(parts[i]);
}

static struct mu_mat pack(const struct mu_kernels *k, uint32_t type, int n_row, int n_col, const uint8_t *raw)
{
    struct mu_mat m = {type, n_row, n_col, NULL};
    size_t bytes = k->mat_bytes(type, n_row, n_col), row_bytes;
    assert_true(bytes > 0);
    assert_true(mu_type_row_bytes(type, (uint64_t)n_col, &row_bytes));
    m.data = take(bytes);
    memset(m.data, 0xee, bytes);
    int split = n_row / 2 / 16 * 16; /* in two pieces, the second first */
    assert_true(k->mat_pack(&m, split, n_row, raw + (size_t)split * row_bytes));
    if (split) assert_true(k->mat_pack(&m, 0, split, raw));
    return m;
}

/* out[n_tok][stride] with rows of slack: what matmul may not touch holds a pattern. */
static const float pattern = -12345.678f;

static void check_range(const struct mu_kernels *k, const struct mu_mat *m, const struct mu_act *x, const float *want,
                        int row0, int row1)
{
    int stride = m->n_row + 5, n_tok = x->n_tok;
    size_t n = (size_t)(n_tok + 2) * (size_t)stride;
    float *buf = take(n * 4), *out = buf + stride;
    for (size_t i = 0; i < n; i++) buf[i] = pattern;
    k->matmul(m, x, row0, row1, out, (size_t)stride);
    for (int t = -1; t <= n_tok; t++)
        for (int r = 0; r < stride; r++) {
            const float *got = &out[(ptrdiff_t)t * stride + r];
            bool inside = t >= 0 && t < n_tok && r >= row0 && r < row1;
            const float *w = inside ? &want[(size_t)t * (size_t)m->n_row + (size_t)r] : &pattern;
            bool both_nan = inside && isnan(*got) && isnan(*w);
            if (!both_nan && memcmp(got, w, 4) != 0)
                fail_msg("%s %s %d×%d, %d tokens, rows %d-%d: token %d row %d is %a, %s %a", k->name,
                         mu_type_info(m->type)->name, m->n_row, m->n_col, n_tok, row0, row1, t, r, (double)*got,
                         inside ? "ref has" : "outside, where there was", (double)*w);
        }
    mu_free(buf);
}

static void check_size(uint32_t type, int n_row, int n_col, const int *tokens, int n_tokens, enum values v)
{
    size_t row_bytes;
    assert_true(mu_type_row_bytes(type, (uint64_t)n_col, &row_bytes));
    uint8_t *raw = take(row_bytes * (size_t)n_row);
    raw_fill(type, raw, row_bytes * (size_t)n_row, v);
    struct mu_mat mr = pack(all[0], type, n_row, n_col, raw);
    for (int i = 0; i < n_tokens; i++) {
        struct input in;
        input_fill(&in, tokens[i], n_col, v);
        float *want = take((size_t)tokens[i] * (size_t)n_row * 4);
        all[0]->matmul(&mr, &in.act, 0, n_row, want, (size_t)n_row);
        check_range(all[0], &mr, &in.act, want, n_row / 32 * 16, n_row);
        for (int k = 1; all[k]; k++) {
            if (!covers(all[k], type)) continue;
            struct mu_mat m = pack(all[k], type, n_row, n_col, raw);
            check_range(all[k], &m, &in.act, want, 0, n_row);
            if (n_row > 16) {
                check_range(all[k], &m, &in.act, want, 16, n_row);
                check_range(all[k], &m, &in.act, want, 0, 16);
            }
            if (n_row >= 64) check_range(all[k], &m, &in.act, want, 16, 64);
            mu_free(m.data);
        }
        mu_free(want);
        input_free(&in);
    }
    mu_free(mr.data);
    mu_free(raw);
}

static void test_all_sizes(void **state)
{
    static const int rows[] = {1, 15, 16, 17, 31, 33, 100};
    static const int cols_block[] = {32, 64, 96, 256, 288, 512, 768}, cols_any[] = {1, 3, 31, 33, 172, 768, 1200};
    static const int cols_k[] = {256, 512, 768, 2304};
    static const int tokens[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 25, 31, 50, 97};
    static const int few[] = {1, 3, 5, 12, 17};
    (void)state;
    for (int t = 0; t < N_TYPES; t++) {
        int block = mu_type_info(types[t])->block_values, n_cols = block == 256 ? 4 : 7;
        const int *cols = block == 1 ? cols_any : block == 32 ? cols_block : cols_k;
        for (int c = 0; c < n_cols; c++)
            for (int r = 0; r < 7; r++) {
                if (reduced && (r + c) % 3 != 0) continue;
                if (emulated_x86() && (r + c) % 2 != t % 2) continue;
                /* all token counts at two row counts, a selection elsewhere */
                if (emulated_x86())
                    check_size(types[t], rows[r], cols[c], few + (r + c / 2) % 2 * 2, 2, ORDINARY);
                else if ((rows[r] == 33 || rows[r] == 17) && !reduced)
                    check_size(types[t], rows[r], cols[c], tokens, sizeof tokens / sizeof *tokens, ORDINARY);
                else
                    check_size(types[t], rows[r], cols[c], few, reduced ? 4 : 5, ORDINARY);
            }
    }
}

static void test_extreme_values(void **state)
{
    static const int tokens[] = {1, 2, 4, 5, 12, 13, 50};
    (void)state;
    for (int t = 0; t < N_TYPES; t++)
        for (int v = EXTREME; v <= TINY; v++)
            for (int round = 0; round < (reduced ? 1 : 4); round++) {
                if (emulated_x86() && types[t] == MU_BF16 && v == TINY) continue;
                check_size(types[t], 50, 512, tokens + emulated_x86(), emulated_x86() ? 1 : reduced ? 6 : 7, v);
            }
}

/* More columns than any pass takes at once, more tokens than any tile. */
static void test_long_rows(void **state)
{
    static const int tokens[] = {1, 3, 12, 60, 130}, few[] = {3, 50};
    (void)state;
    if (emulated_x86()) skip();
    for (int t = 0; t < N_TYPES && reduced; t++)
        if (mu_type_info(types[t])->act != MU_ACT_F32 || mu_type_info(types[t])->block_values == 1)
            check_size(types[t], 17, 8192 + 512, few, 2, ORDINARY);
    check_size(MU_BF16, 17, 1200, few, 2, TINY); /* flushed in the second pass, too */
    if (reduced) return;
    for (int t = 0; t < N_TYPES; t++) check_size(types[t], 17, 1280, (const int[]){300}, 1, ORDINARY);
    for (int t = 0; t < N_TYPES; t++) check_size(types[t], 40, 8192 + 512, tokens, t < 3 ? 3 : 5, ORDINARY);
    for (int t = 0; t < N_TYPES; t++) check_size(types[t], 20, 256 * 40, tokens + 2, 1, EXTREME);
}

/* Several groups of 16 rows at once, more than once, with some left over and a last one that lacks rows. */
static void test_many_groups(void **state)
{
    static const int tokens[] = {1, 2, 3, 8, 25, 4, 5, 6, 49};
    (void)state;
    if (emulated_x86()) skip();
    for (int t = 0; t < N_TYPES; t++) check_size(types[t], 157, 256, tokens, reduced ? 5 : 9, ORDINARY);
}

/* BF16 at the edge of what is flushed: products around 2^-126 onto small accumulators. */
static void test_bf16_tininess(void **state)
{
    enum { ROWS = 16, COLS = 6, TOKENS = 12 };
    (void)state;
    if (emulated_x86()) skip();
    int flushed = 0, least = 0, negative = 0;
    for (int round = 0; round < 400; round++) {
        uint16_t w[ROWS * COLS], x[TOKENS * COLS];
        int n_col = 1 + round / 2 % COLS;                /* odd: what stands for the missing column must keep a -0 */
        uint32_t mantissa = round % 2 ? 0x807f : 0x8060; /* few bits: sums meet 2^-126 itself */
        for (int i = 0; i < ROWS * COLS; i++) w[i] = (uint16_t)((rnd() & mantissa) | (60 + rnd() % 8) << 7);
        for (int i = 0; i < TOKENS * COLS; i++) x[i] = (uint16_t)((rnd() & mantissa) | (58 + rnd() % 8) << 7);
        struct mu_act act = {.n_tok = TOKENS, .n_col = n_col, .bf16 = x};
        struct mu_mat mr = pack(all[0], MU_BF16, ROWS, n_col, (uint8_t *)w);
        float want[TOKENS * ROWS];
        all[0]->matmul(&mr, &act, 0, ROWS, want, ROWS);
        for (int i = 0; i < TOKENS * ROWS; i++) {
            assert_true(want[i] == 0 || fabsf(want[i]) >= 0x1p-126f);
            flushed += want[i] == 0;
            negative += want[i] == 0 && signbit(want[i]);
            least += fabsf(want[i]) == 0x1p-126f;
        }
        for (int k = 1; all[k]; k++) {
            struct mu_mat m = pack(all[k], MU_BF16, ROWS, n_col, (uint8_t *)w);
            check_range(all[k], &m, &act, want, 0, ROWS);
            mu_free(m.data);
        }
        mu_free(mr.data);
    }
    assert_true(flushed > 100 && least > 0 && negative > 100); /* the cases were as hard as meant */
}

/* The rule at its boundary, spelled out: 2^-126 - p, where rounding with an unbounded exponent gives less than
 * 2^-126. */
static void test_bf16_boundary(void **state)
{
    static const struct {
        float a, b, want;
    } cases[] = {
        {0x1p-75f, -0x1p-75f, 0.0f},      /* 2^-126 - 2^-150: a value of that grid */
        {0x1.8p-75f, -0x1p-76f, 0.0f},    /* - 1.5·2^-151: rounds down on it */
        {0x1p-75f, -0x1p-76f, 0x1p-126f}, /* - 2^-151: a tie, to even, up */
        {0x1p-75f, -0x1p-77f, 0x1p-126f}, /* - 2^-152 */
    };
    (void)state;
    if (emulated_x86()) skip();
    for (int k = 0; all[k]; k++)
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            uint16_t w[2] = {mu_f32_to_bf16(0x1p-63f), mu_f32_to_bf16(cases[i].a)};
            uint16_t x[2] = {mu_f32_to_bf16(0x1p-63f), mu_f32_to_bf16(cases[i].b)};
            struct mu_act act = {.n_tok = 1, .n_col = 2, .bf16 = x};
            struct mu_mat m = pack(all[k], MU_BF16, 1, 2, (uint8_t *)w);
            float out;
            all[k]->matmul(&m, &act, 0, 1, &out, 1);
            if (out != cases[i].want) fail_msg("%s: case %zu gives %a", all[k]->name, i, (double)out);
            mu_free(m.data);
        }
}

/* ref against what the contract means: Σ dequantised weight · dequantised activation, in double. */
static void test_ref_means(void **state)
{
    enum { ROWS = 37, COLS = 768, TOKENS = 3 };
    const struct mu_kernels *ref = all[0];
    (void)state;
    for (int ty = 0; ty < N_TYPES; ty++) {
        size_t row_bytes;
        assert_true(mu_type_row_bytes(types[ty], COLS, &row_bytes));
        uint8_t *raw = take(row_bytes * ROWS);
        raw_fill(types[ty], raw, row_bytes * ROWS, ORDINARY);
        struct input in;
        input_fill(&in, TOKENS, COLS, ORDINARY);
        struct mu_mat m = pack(ref, types[ty], ROWS, COLS, raw);
        float out[TOKENS * ROWS], w[COLS];
        ref->matmul(&m, &in.act, 0, ROWS, out, ROWS);
        for (int r = 0; r < ROWS; r++) {
            assert_true(ref->dequant_row(types[ty], raw + (size_t)r * row_bytes, COLS, w));
            for (int t = 0; t < TOKENS; t++) {
                double sum = 0, size = 0;
                for (int c = 0; c < COLS; c++) {
                    size_t i = (size_t)t * COLS + (size_t)c;
                    double x = mu_type_info(types[ty])->act == MU_ACT_Q8    ? (double)in.q[i] * (double)in.s[i / 32]
                               : mu_type_info(types[ty])->act == MU_ACT_F32 ? (double)in.f32[i]
                                                                            : (double)mu_bf16_to_f32(in.bf16[i]);
                    sum += (double)w[c] * x;
                    size += fabs((double)w[c] * x);
                }
                double diff = fabs((double)out[t * ROWS + r] - sum);
                if (!(diff <= size * 1e-5 && size > 0))
                    fail_msg("%s row %d token %d: %g, in double %g", mu_type_info(types[ty])->name, r, t,
                             (double)out[t * ROWS + r], sum);
            }
        }
        mu_free(m.data);
        input_free(&in);
        mu_free(raw);
    }
}

/* MXFP4's scale has an exponent of its own: all 255 of them, the first two without a normal number. */
static void test_mxfp4_scales(void **state)
{
    enum { ROWS = 255, TOKENS = 6 };
    uint8_t *raw = take(ROWS * 17);
    struct input in;
    float want[TOKENS * ROWS];
    (void)state;
    raw_fill(MU_MXFP4, raw, ROWS * 17, ORDINARY);
    for (int r = 0; r < ROWS; r++) raw[17 * r] = (uint8_t)r;
    input_fill(&in, TOKENS, 32, ORDINARY);
    for (int t = 0; t < TOKENS; t++) in.s[t] = t % 2 ? 1.0f : 0.25f; /* so that nothing is rounded but at the ends */
    struct mu_mat mr = pack(all[0], MU_MXFP4, ROWS, 32, raw);
    all[0]->matmul(&mr, &in.act, 0, ROWS, want, ROWS);
    for (int t = 0; t < TOKENS; t++)
        for (int r = 0; r < ROWS; r++) {
            static const int values[16] = {MU_MXFP4_VALUES};
            int sum = 0;
            for (int i = 0; i < 32; i++)
                sum += in.q[32 * t + i] * values[raw[17 * r + 1 + i % 16] >> (i < 16 ? 0 : 4) & 15];
            assert_true(want[t * ROWS + r] == (float)sum * (float)ldexp((double)in.s[t], r - 128));
        }
    for (int k = 1; all[k]; k++) {
        if (!covers(all[k], MU_MXFP4)) continue;
        struct mu_mat m = pack(all[k], MU_MXFP4, ROWS, 32, raw);
        check_range(all[k], &m, &in.act, want, 0, ROWS);
        in.act.n_tok = 1;
        check_range(all[k], &m, &in.act, want, 0, ROWS);
        in.act.n_tok = TOKENS;
        mu_free(m.data);
    }
    mu_free(mr.data);
    input_free(&in);
    mu_free(raw);
}

static void test_pack_refuses(void **state)
{
    (void)state;
    for (int k = 0; all[k]; k++) {
        assert_int_equal(all[k]->mat_bytes(MU_Q8_K, 16, 256), 0);
        assert_int_equal(all[k]->mat_bytes(MU_Q4_K, 16, 255), 0);
        assert_int_equal(all[k]->mat_bytes(MU_F32, -1, 4), 0);
        assert_int_equal(all[k]->mat_bytes(5, 16, 256), 0);
        for (int t = 0; t < N_TYPES; t++) {
            size_t row_bytes;
            int at[2];
            scales_at(types[t], at);
            if (types[t] == MU_F32) at[0] = at[1] = 2;
            assert_true(mu_type_row_bytes(types[t], 512, &row_bytes));
            uint8_t *raw = take(row_bytes * 18);
            raw_fill(types[t], raw, row_bytes * 18, ORDINARY);
            struct mu_mat m = {types[t], 18, 512, take(all[k]->mat_bytes(types[t], 18, 512))};
            assert_true(all[k]->mat_pack(&m, 0, 18, raw));
            uint8_t *block = raw + row_bytes * 17 + (size_t)mu_type_info(types[t])->block_bytes, *scale = block + at[0];
            if (types[t] == MU_MXFP4) {
                block[0] = 254;
                assert_true(all[k]->mat_pack(&m, 0, 18, raw));
                block[0] = 255;
                assert_false(all[k]->mat_pack(&m, 0, 18, raw));
            }
            for (int sign = 0; sign < 2 && types[t] != MU_MXFP4; sign++) { /* infinity, NaN */
                if (types[t] == MU_IQ1_M)
                    put_iq1_m(block, sign ? 0xfe00 : 0x7c00);
                else
                    put16(scale, types[t] == MU_F32 || types[t] == MU_BF16 ? (sign ? 0xffc0 : 0x7f80)
                                 : sign                                    ? 0xfe00
                                                                           : 0x7c00);
                assert_false(all[k]->mat_pack(&m, 0, 18, raw));
            }
            if (at[1] != at[0]) {
                put16(scale, 0);
                assert_true(all[k]->mat_pack(&m, 0, 18, raw));
                put16(block + at[1], 0x7c00);
                assert_false(all[k]->mat_pack(&m, 16, 18, raw + row_bytes * 16));
            }
            mu_free(m.data);
            mu_free(raw);
        }
    }
}

static void test_tables(void **state)
{
    const char *needs = getenv("MUSTER_TEST_NEEDS");
    struct mu_err err = MU_ERR_INIT;
    (void)state;
    assert_string_equal(mu_kernels_available()[0]->name, "ref");
    assert_int_equal(mu_kernels_init("ref", &err), MU_OK);
    assert_string_equal(mu_kernels()->name, "ref");
    assert_int_equal(mu_kernels_init("sse9", &err), MU_EUNSUPPORTED);
    assert_non_null(strstr(err.text, "sse9"));
    assert_non_null(strstr(err.text, "ref"));
    assert_string_equal(mu_kernels()->name, "ref"); /* a failure leaves the choice */
    if (needs) assert_int_equal(mu_kernels_init(needs, &err), MU_OK);
    if (!getenv("MUSTER_KERNELS")) {
        int n = 0;
        while (mu_kernels_available()[n]) n++;
        assert_int_equal(mu_kernels_init(NULL, &err), MU_OK);
        assert_ptr_equal(mu_kernels(), mu_kernels_available()[n - 1]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tables),         cmocka_unit_test(test_pack_refuses),  cmocka_unit_test(test_ref_means),
        cmocka_unit_test(test_bf16_boundary),  cmocka_unit_test(test_bf16_tininess), cmocka_unit_test(test_all_sizes),
        cmocka_unit_test(test_extreme_values), cmocka_unit_test(test_long_rows),     cmocka_unit_test(test_many_groups),
        cmocka_unit_test(test_mxfp4_scales),
    };
    reduced = getenv("MUSTER_TEST_REDUCED") != NULL;
    mu_fp_env_set();
    tables_find();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
