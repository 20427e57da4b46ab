/* A device's products of C2's types with a few vectors against their definition: every type, number of vectors and
 * awkward shape, what follows a product step by step, experts, values that are not finite. */
#include "tests/kernels/device_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"

enum { MOST = 8 /* vectors that a matvec takes */ };

static const uint32_t types[] = {MU_Q4_0, MU_Q4_1, MU_Q5_0, MU_Q5_1,   MU_Q8_0,   MU_Q2_K, MU_Q3_K,
                                 MU_Q4_K, MU_Q5_K, MU_Q6_K, MU_IQ4_NL, MU_IQ4_XS, MU_MXFP4};
enum { TYPES = sizeof types / sizeof *types };

static const char *name_of(uint32_t type)
{
    return mu_type_info(type)->name;
}

static enum values any_values(void)
{
    return (enum values)(rnd() % N_VALUES);
}

static bool coin(void)
{
    return rnd() & 1;
}

/* ---- plain products ---- */

static void product(uint32_t type, int n_row, int n_col, int n_tok, enum values weights, enum values inputs)
{
    int stride = n_row + (int)(rnd() % 3);
    struct dt_mats m = dt_matrices(1, type, n_row, n_col, weights);
    struct dt_acts x = dt_inputs(n_tok, n_col, inputs);
    struct dt_pair out = dt_blank((size_t)n_tok * (size_t)stride * 4);
    for (int i = 0; i < DT_SIDES; i++) {
        struct mu_device_job job = {.m = &m.of[i], .out = out.at[i], .stride = (size_t)stride};
        dt.ops[i]->matmul(dt.dev[i], &job, 1, &x.of[i], NULL);
    }
    dt_same(out, DT_F32, "%s %d × %d, %d vectors", name_of(type), n_row, n_col, n_tok);
    dt_free_all();
}

static void test_types(void **state)
{
    (void)state;
    for (int k = 0; k < TYPES; k++)
        for (int n_tok = 0; n_tok <= MOST; n_tok++) {
            product(types[k], 40, 768, n_tok, ORDINARY, ORDINARY);
            product(types[k], 17, 2304, n_tok, any_values(), any_values());
        }
}

/* What they keep in shared memory is within 128 bytes of all that 99 KiB or 227 KiB leave (seen on real GPUs only). */
static void test_nearly_full(void **state)
{
    (void)state;
    product(MU_Q4_0, 40, 4096, 7, any_values(), any_values());
    product(MU_Q4_0, 40, 3584, 8, any_values(), any_values());
    product(MU_Q2_K, 16, 22016, 5, any_values(), any_values());
}

static void test_shapes(void **state)
{
    static const int rows[] = {1, 15, 16, 17, 40, 1000}, cols[] = {32, 64, 96, 256, 288, 512, 768, 2304, 4096 + 32};
    (void)state;
    for (int k = 0; k < TYPES; k++)
        for (int r = 0; r < 6; r++)
            for (int c = 0; c < 9; c++) {
                if (cols[c] % mu_type_info(types[k])->block_values != 0) continue;
                if (rows[r] == 1000 && (cols[c] > 512 || k % 3 != c % 3)) continue;
                product(types[k], rows[r], cols[c], 1 + (int)(rnd() % MOST), any_values(), any_values());
            }
}

/* Vectors that do not fit shared memory together, or not even one of them. */
static void test_long(void **state)
{
    (void)state;
    product(MU_Q4_K, 20, 14336, 8, ORDINARY, ORDINARY);
    product(MU_Q8_0, 20, 14336, 7, ORDINARY, ORDINARY);
    product(MU_Q6_K, 16, 28672, 5, ORDINARY, ORDINARY);
    product(MU_Q4_0, 16, 32768 + 32, 3, ORDINARY, ORDINARY);
    product(MU_Q8_0, 16, 1 << 18, 1, ORDINARY, ORDINARY);
}

/* All codes and scales at their largest, of either sign, times inputs likewise. */
static void test_extreme_codes(void **state)
{
    enum { ROWS = 32, COLS = 512, TOKENS = 5 };
    (void)state;
    for (int k = 0; k < TYPES; k++)
        for (int fill = 0; fill < 4; fill++) {
            static const uint8_t bytes[] = {0x00, 0xff, 0x80, 0x7f};
            const struct mu_type_info *info = mu_type_info(types[k]);
            size_t n = (size_t)ROWS * COLS / (size_t)info->block_values * (size_t)info->block_bytes;
            uint8_t *raw = malloc(n);
            float x[TOKENS * COLS];
            assert_non_null(raw);
            memset(raw, bytes[fill], n);
            for (size_t b = 0; b < n; b += (size_t)info->block_bytes) { /* scales that are finite */
                int at[2];
                scales_at(types[k], at);
                if (types[k] == MU_MXFP4)
                    raw[b] = 140;
                else
                    for (int i = 0; i < 2; i++) put16(raw + b + at[i], scale16(i || coin() ? ORDINARY : EXTREME));
            }
            for (int i = 0; i < TOKENS * COLS; i++)
                x[i] = i / COLS == 0 ? 127.0f : i / COLS == 1 ? -127.0f : (rnd() & 1 ? 5.0f : -5.0f);
            struct dt_acts act = dt_inputs_from(x, TOKENS, COLS);
            struct dt_pair rows = dt_from(raw, n), out = dt_blank(TOKENS * ROWS * 4), bad = dt_blank(4);
            struct dt_mats m = dt_matrices(1, types[k], ROWS, COLS, ORDINARY);
            for (int i = 0; i < DT_SIDES; i++) {
                struct mu_device_job job = {.m = &m.of[i], .out = out.at[i], .stride = ROWS};
                dt.ops[i]->mat_pack(dt.dev[i], &m.of[i], 0, ROWS, rows.at[i], bad.at[i]);
                dt.ops[i]->matmul(dt.dev[i], &job, 1, &act.of[i], NULL);
            }
            dt_same(out, DT_F32, "%s of bytes %#x", name_of(types[k]), bytes[fill]);
            dt_same(bad, DT_I32, "whether %s of bytes %#x is finite", name_of(types[k]), bytes[fill]);
            dt_free_all();
            free(raw);
        }
}

/* A scale that is not finite is found, wherever it is; others are not blamed. */
static void test_bad_scales(void **state)
{
    enum { ROWS = 37, COLS = 512 };
    (void)state;
    for (int k = 0; k < TYPES; k++)
        for (int trial = 0; trial < 12; trial++) {
            const struct mu_type_info *info = mu_type_info(types[k]);
            size_t n = (size_t)ROWS * COLS / (size_t)info->block_values * (size_t)info->block_bytes;
            uint8_t *raw = malloc(n);
            int32_t none = 0;
            assert_non_null(raw);
            raw_fill(types[k], raw, n, ORDINARY);
            for (int i = 0; i < trial; i++) { /* anywhere; some of it lands in scales */
                size_t at = rnd() % (n - 1);
                raw[at] = 0xff;
                raw[at + 1] = coin() ? 0x7c : 0xfc;
            }
            struct dt_mats m = dt_matrices(1, types[k], ROWS, COLS, ORDINARY);
            struct dt_pair rows = dt_from(raw, n), bad = dt_from(&none, sizeof none);
            for (int i = 0; i < DT_SIDES; i++) dt.ops[i]->mat_pack(dt.dev[i], &m.of[i], 0, ROWS, rows.at[i], bad.at[i]);
            dt_same(bad, DT_I32, "whether %s is finite", name_of(types[k]));
            dt_free_all();
            free(raw);
        }
}

/* Vectors of which a block is not finite (its scale is NaN) poison their own results only. */
static void test_not_finite(void **state)
{
    enum { ROWS = 48, COLS = 768, TOKENS = 6 };
    (void)state;
    for (int k = 0; k < TYPES; k++) {
        float x[TOKENS * COLS];
        dt_fill(x, TOKENS * COLS, ORDINARY);
        x[1 * COLS + 5] = NAN;
        x[4 * COLS + COLS - 1] = INFINITY;
        struct dt_mats m = dt_matrices(1, types[k], ROWS, COLS, ORDINARY);
        struct dt_acts act = dt_inputs_from(x, TOKENS, COLS);
        struct dt_pair out = dt_blank(TOKENS * ROWS * 4);
        for (int i = 0; i < DT_SIDES; i++) {
            struct mu_device_job job = {.m = &m.of[i], .out = out.at[i], .stride = ROWS};
            dt.ops[i]->matmul(dt.dev[i], &job, 1, &act.of[i], NULL);
        }
        dt_same(out, DT_F32, "%s with vectors that are not finite", name_of(types[k]));
        dt_free_all();
    }
}

/* ---- what follows ---- */

enum step { BIAS = 1, LORA = 2, SCALE = 4, PLUS = 8, UP = 16, ACT = 32, CAP = 64, BF16 = 128, FORM = 256, STEPS = 512 };

/* A job with the steps in `steps`, on both sides; n_vec results, matrices of n_expert experts. */
struct followed {
    unsigned steps;
    uint32_t type, up_type;
    int n_row, n_col, n_vec;
    size_t stride;
    struct dt_mats m, up;
    struct dt_pair out, bf16, q, s, sum, form16, bias, up_bias, plus, lora, lora_up, lora_scale, lora_up_scale;
    enum mu_device_act act;
    float scale, cap;
};

/* Strengths of adapters, of which some vectors have none. */
static struct dt_pair strengths(int n_vec)
{
    float *strength = calloc((size_t)n_vec + 1, sizeof *strength);
    assert_non_null(strength);
    for (int t = 0; t < n_vec; t++) strength[t] = t % 3 == 1 ? 0.0f : uniform(-2, 2);
    struct dt_pair pair = dt_from(strength, (size_t)n_vec * 4);
    free(strength);
    return pair;
}

static struct followed followed_make(unsigned steps, uint32_t type, uint32_t up_type, int n_row, int n_col, int n_vec,
                                     int n_expert)
{
    struct followed f = {
        .steps = steps, .type = type, .up_type = up_type, .n_row = n_row, .n_col = n_col, .n_vec = n_vec};
    size_t rows = (size_t)n_row, results;
    int n_mat = n_expert ? n_expert : 1;
    f.stride = rows + rnd() % 3;
    results = (size_t)n_vec * f.stride;
    f.m = dt_matrices(n_mat, type, n_row, n_col, ORDINARY);
    f.out = dt_blank(results * 4);
    if (steps & UP) f.up = dt_matrices(n_mat, up_type, n_row, n_col, ORDINARY);
    if (steps & BIAS) f.bias = dt_floats((size_t)n_mat * rows, ORDINARY);
    if ((steps & BIAS) && (steps & UP)) f.up_bias = dt_floats((size_t)n_mat * rows, ORDINARY);
    if (steps & LORA) {
        f.lora_scale = strengths(n_vec);
        f.lora_up_scale = strengths(n_vec);
        f.lora = dt_floats((size_t)n_vec * rows, ORDINARY);
        if ((steps & UP) && coin()) f.lora_up = dt_floats((size_t)n_vec * rows, ORDINARY);
    }
    if (steps & SCALE) f.scale = 0.37f;
    if (steps & PLUS) f.plus = dt_floats(results, ORDINARY);
    if (steps & (ACT | UP)) {
        f.act = (enum mu_device_act)(MU_DEVICE_ACT_GELU + (int)(rnd() % 2));
        if (steps & UP) f.act = (enum mu_device_act)(MU_DEVICE_ACT_SILU + (int)(rnd() % 4));
    }
    if (steps & CAP) f.cap = 30.0f;
    if (steps & BF16) f.bf16 = dt_blank(results * 2);
    if (steps & FORM) {
        f.q = dt_blank((size_t)n_vec * rows);
        f.s = dt_blank((size_t)n_vec * rows / 32 * 4);
        if (coin()) f.sum = dt_blank((size_t)n_vec * rows / 16 * 2);
        if (coin()) f.form16 = dt_blank((size_t)n_vec * rows * 2);
    }
    return f;
}

static struct mu_device_job followed_job(const struct followed *f, int i)
{
    return (struct mu_device_job){
        .m = &f->m.of[i],
        .up = f->steps & UP ? &f->up.of[i] : NULL,
        .out = f->out.at[i],
        .stride = f->stride,
        .bf16 = f->bf16.at[i],
        .form = {.bf16 = f->form16.at[i], .q = f->q.at[i], .s = f->s.at[i], .sum = f->sum.at[i]},
        .bias = f->bias.at[i],
        .up_bias = f->up_bias.at[i],
        .plus = f->plus.at[i],
        .lora = f->lora.at[i],
        .lora_up = f->lora_up.at[i],
        .lora_scale = f->lora_scale.at[i],
        .lora_up_scale = f->lora_up_scale.at[i],
        .scale = f->scale,
        .cap = f->cap,
        .act = f->act};
}

static void followed_same(const struct followed *f, const char *what)
{
    char text[200];
    snprintf(text, sizeof text, "%s: %s %d × %d, %d vectors, steps %#x, act %d", what, name_of(f->type), f->n_row,
             f->n_col, f->n_vec, f->steps, (int)f->act);
    dt_same(f->out, DT_F32, "%s", text);
    if (f->bf16.bytes) dt_same(f->bf16, DT_BF16, "%s, bf16", text);
    if (f->q.bytes) dt_same(f->q, DT_BYTES, "%s, codes", text);
    if (f->s.bytes) dt_same(f->s, DT_F32, "%s, scales", text);
    if (f->sum.bytes) dt_same(f->sum, DT_I16, "%s, sums", text);
    if (f->form16.bytes) dt_same(f->form16, DT_BF16, "%s, form's bf16", text);
}

static void follow(unsigned steps, uint32_t type, uint32_t up_type, int n_row, int n_col, int n_tok, bool broken)
{
    struct followed f = followed_make(steps, type, up_type, n_row, n_col, n_tok, 0);
    float *x = malloc((size_t)(n_tok * n_col) * sizeof *x);
    assert_non_null(x);
    dt_fill(x, (size_t)(n_tok * n_col), ORDINARY);
    if (broken) dt_break(x, (size_t)(n_tok * n_col), 1);
    struct dt_acts act = dt_inputs_from(x, n_tok, n_col);
    free(x);
    for (int i = 0; i < DT_SIDES; i++) {
        struct mu_device_job job = followed_job(&f, i);
        dt.ops[i]->matmul(dt.dev[i], &job, 1, &act.of[i], NULL);
    }
    followed_same(&f, "a job");
    dt_free_all();
}

static void test_steps(void **state)
{
    (void)state;
    for (unsigned bit = 1; bit < STEPS; bit *= 2)
        for (int n_tok = 1; n_tok <= MOST; n_tok += 1 + (int)(rnd() % 3)) {
            follow(bit, MU_Q4_K, MU_Q4_K, 96, 512, n_tok, false);
            follow(bit | UP, MU_Q8_0, MU_Q8_0, 64, 288, n_tok, false);
        }
    for (int trial = 0; trial < 150; trial++) {
        uint32_t type = types[rnd() % TYPES], up = trial % 4 == 0 ? types[rnd() % TYPES] : type;
        follow(rnd() % STEPS, type, up, 32 + 32 * (int)(rnd() % 4), 256 << rnd() % 3, 1 + (int)(rnd() % MOST),
               trial % 5 == 0);
    }
}

/* Several matrices of one input, of different types and heights. */
static void test_jobs(void **state)
{
    (void)state;
    for (int trial = 0; trial < 40; trial++) {
        int n_job = 1 + (int)(rnd() % MU_DEVICE_MAX_JOBS), n_col = 256 << rnd() % 3, n_tok = 1 + (int)(rnd() % MOST);
        uint32_t type = types[rnd() % TYPES];
        struct followed f[MU_DEVICE_MAX_JOBS];
        struct dt_acts act = dt_inputs(n_tok, n_col, ORDINARY);
        for (int j = 0; j < n_job; j++) {
            uint32_t mine = rnd() % 3 == 0 ? types[rnd() % TYPES] : type;
            f[j] = followed_make(rnd() % STEPS, mine, rnd() % 8 == 0 ? type : mine, 32 * (int)(1 + rnd() % 5), n_col,
                                 n_tok, 0);
        }
        for (int i = 0; i < DT_SIDES; i++) {
            struct mu_device_job job[MU_DEVICE_MAX_JOBS];
            for (int j = 0; j < n_job; j++) job[j] = followed_job(&f[j], i);
            dt.ops[i]->matmul(dt.dev[i], job, n_job, &act.of[i], NULL);
        }
        for (int j = 0; j < n_job; j++) followed_same(&f[j], "one of some jobs");
        dt_free_all();
    }
}

/* ---- experts ---- */

/* Every token chooses n_used of n_expert at random, of which the first `shy` are never chosen. */
static void choose(int n_tok, int n_expert, int n_used, int shy, int32_t *begin, int32_t *place)
{
    int n = 0, *has = calloc((size_t)n_tok * (size_t)n_expert, sizeof *has);
    assert_non_null(has);
    for (int t = 0; t < n_tok; t++)
        for (int k = 0; k < n_used;) {
            int e = shy + (int)(rnd() % (unsigned)(n_expert - shy));
            if (has[t * n_expert + e]) continue;
            has[t * n_expert + e] = 1;
            k++;
        }
    for (int e = 0; e < n_expert; e++) {
        begin[e] = n;
        for (int t = 0; t < n_tok; t++) {
            int k = 0;
            for (int before = 0; before < e; before++) k += has[t * n_expert + before];
            if (has[t * n_expert + e]) place[n++] = t * n_used + k;
        }
    }
    begin[n_expert] = n;
    free(has);
}

static void test_experts(void **state)
{
    (void)state;
    for (int trial = 0; trial < 80; trial++) {
        uint32_t type = types[trial % TYPES];
        int n_expert = 1 + (int)(rnd() % 40), n_used = 1 + (int)(rnd() % (unsigned)(n_expert < 5 ? n_expert : 5));
        int n_tok = 1 + (int)(rnd() % MOST), n_col = 256 << rnd() % 2, n_place = n_tok * n_used;
        int shy = (int)(rnd() % (unsigned)(n_expert - n_used + 1));
        int32_t *begin = malloc((size_t)(n_expert + 1) * 4), *place = malloc((size_t)n_place * 4);
        bool by_place = coin();
        assert_true(begin && place);
        choose(n_tok, n_expert, n_used, shy, begin, place);
        struct followed f =
            followed_make(rnd() % STEPS & ~(unsigned)(LORA | PLUS), type, trial % 7 == 0 ? types[rnd() % TYPES] : type,
                          32 * (int)(1 + rnd() % 3), n_col, n_place, n_expert);
        struct dt_acts act = dt_inputs(by_place ? n_place : n_tok, n_col, ORDINARY);
        struct dt_pair at_begin = dt_from(begin, (size_t)(n_expert + 1) * 4),
                       at_place = dt_from(place, (size_t)n_place * 4);
        for (int i = 0; i < DT_SIDES; i++) {
            struct mu_device_job job = followed_job(&f, i);
            struct mu_device_experts experts = {.n_expert = n_expert,
                                                .n_used = n_used,
                                                .m_bytes = f.m.bytes[i],
                                                .up_bytes = f.up.bytes[i],
                                                .begin = at_begin.at[i],
                                                .place = at_place.at[i],
                                                .by_place = by_place};
            dt.ops[i]->matmul(dt.dev[i], &job, 1, &act.of[i], &experts);
        }
        followed_same(&f, by_place ? "experts of places" : "experts of tokens");
        dt_free_all();
        free(begin);
        free(place);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_types),         cmocka_unit_test(test_shapes),     cmocka_unit_test(test_long),
        cmocka_unit_test(test_extreme_codes), cmocka_unit_test(test_bad_scales), cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_steps),         cmocka_unit_test(test_jobs),       cmocka_unit_test(test_experts),
        cmocka_unit_test(test_nearly_full),
    };
    return cmocka_run_group_tests(tests, dt_open, dt_close);
}
