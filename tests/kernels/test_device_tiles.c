/* Products of many vectors with matrices of C2's types, against their definition: every type at sizes around those of
 * the tiles, what follows a product, several jobs at once, experts. */
#include "tests/kernels/device_test.h"

#include <stdio.h>
#include <stdlib.h>

#include "kernels/kernels.h"

enum { N_TYPES = 13, N_TOKENS = 8, WITH_BIAS = 1, WITH_LORA = 2, WITH_PLUS = 4, WITH_FORM = 8, WITH_SCALE = 16 };
static const uint32_t types[N_TYPES] = {MU_Q4_0, MU_Q4_1, MU_Q5_0, MU_Q5_1,   MU_Q8_0,  MU_Q2_K,  MU_Q3_K,
                                        MU_Q4_K, MU_Q5_K, MU_Q6_K, MU_IQ4_NL, MU_MXFP4, MU_IQ4_XS};
static const int tokens[N_TOKENS] = {9, 16, 17, 32, 33, 64, 65, 129};

static int one_of(const int *list, int n)
{
    return list[rnd() % (unsigned)n];
}
static bool coin(void)
{
    return rnd() & 1;
}

static int columns_of(uint32_t type, int i)
{
    static const int blocks[] = {1, 2, 3, 4, 5, 8, 9, 24};
    return mu_type_info(type)->block_values == 256 ? 256 * (1 + i % 3) : 32 * blocks[i % 8];
}

/* Inputs of which some blocks may not be finite. */
static struct dt_acts inputs(int n_tok, int n_col, enum values v, int broken)
{
    size_t n = (size_t)n_tok * (size_t)n_col;
    float *x = malloc(n * sizeof *x);
    assert_non_null(x);
    dt_fill(x, n, v);
    dt_break(x, n, broken);
    struct dt_acts a = dt_inputs_from(x, n_tok, n_col);
    free(x);
    return a;
}

/* A job and where its results are. */
struct job {
    struct dt_mats m, up;
    struct dt_pair out, bf16, form_bf16, q, s, sum, bias, up_bias, plus, lora, lora_up, lora_scale, lora_up_scale;
    size_t stride;
    bool has_up;
    struct mu_device_job of; /* what both sides have in common */
};

static struct dt_pair strengths(size_t n_vec)
{
    float *scale = calloc(n_vec, sizeof *scale);
    assert_non_null(scale);
    for (size_t t = 0; t < n_vec; t++) scale[t] = coin() ? uniform(-1, 1) : 0.0f;
    struct dt_pair pair = dt_from(scale, n_vec * sizeof *scale);
    free(scale);
    return pair;
}

static struct job job_make(int n_matrices, uint32_t type, uint32_t up_type, int n_row, int n_col, int n_vec,
                           enum mu_device_act act, unsigned with, enum values v)
{
    struct job j = {.stride = (size_t)n_row + (coin() ? 0 : 5), .has_up = up_type != MU_TYPE_LIMIT};
    size_t rows = (size_t)n_row, vecs = (size_t)n_vec, all = (size_t)n_vec * rows;
    j.m = dt_matrices(n_matrices, type, n_row, n_col, v);
    if (j.has_up) j.up = dt_matrices(n_matrices, up_type, n_row, n_col, v);
    j.out = dt_blank(vecs * j.stride * 4);
    j.of.act = act;
    if (with & WITH_BIAS) {
        j.bias = dt_floats((size_t)n_matrices * rows, ORDINARY);
        if (j.has_up) j.up_bias = dt_floats((size_t)n_matrices * rows, ORDINARY);
    }
    if (with & WITH_PLUS) j.plus = dt_floats(vecs * j.stride, ORDINARY);
    if (with & WITH_LORA) {
        j.lora_scale = strengths(vecs);
        j.lora_up_scale = strengths(vecs);
        j.lora = dt_floats(all, ORDINARY);
        if (j.has_up && coin()) j.lora_up = dt_floats(all, ORDINARY);
    }
    if (with & WITH_SCALE) {
        j.of.scale = 0.37f;
        j.of.cap = 30.0f;
    }
    if (with & WITH_FORM) {
        if (coin()) j.bf16 = dt_blank(vecs * j.stride * 2);
        if (coin()) j.form_bf16 = dt_blank(all * 2);
        if (n_row % 32 == 0) {
            j.q = dt_blank(all);
            j.s = dt_blank(all / 32 * 4);
            if (coin()) j.sum = dt_blank(all / 16 * 2);
        }
    }
    return j;
}

static struct mu_device_job job_at(const struct job *j, int side)
{
    struct mu_device_job d = j->of;
    d.m = &j->m.of[side];
    d.up = j->has_up ? &j->up.of[side] : NULL;
    d.out = j->out.at[side];
    d.stride = j->stride;
    d.bf16 = j->bf16.at[side];
    d.form = (struct mu_act_to){NULL, j->form_bf16.at[side], j->q.at[side], j->s.at[side], j->sum.at[side]};
    d.bias = j->bias.at[side];
    d.up_bias = j->up_bias.at[side];
    d.plus = j->plus.at[side];
    d.lora = j->lora.at[side];
    d.lora_up = j->lora_up.at[side];
    d.lora_scale = j->lora_scale.at[side];
    d.lora_up_scale = j->lora_up_scale.at[side];
    return d;
}

static void job_same(const struct job *j, const char *what)
{
    dt_same(j->out, DT_F32, "%s", what);
    if (j->bf16.bytes) dt_same(j->bf16, DT_BF16, "%s, bf16", what);
    if (j->form_bf16.bytes) dt_same(j->form_bf16, DT_BF16, "%s, bf16 form", what);
    if (j->q.bytes) dt_same(j->q, DT_BYTES, "%s, codes", what);
    if (j->s.bytes) dt_same(j->s, DT_F32, "%s, scales", what);
    if (j->sum.bytes) dt_same(j->sum, DT_I16, "%s, sums", what);
}

/* ---- one matrix ---- */

static void product(uint32_t type, int n_row, int n_col, int n_tok, enum values v, int broken)
{
    char what[160];
    struct dt_acts x = inputs(n_tok, n_col, v, broken);
    struct job j = job_make(1, type, MU_TYPE_LIMIT, n_row, n_col, n_tok, MU_DEVICE_ACT_NONE, 0, v);
    for (int i = 0; i < DT_SIDES; i++) {
        struct mu_device_job job = job_at(&j, i);
        dt.ops[i]->matmul(dt.dev[i], &job, 1, &x.of[i], NULL);
    }
    snprintf(what, sizeof what, "%s, %d × %d, %d vectors, values %d, %d not finite", mu_type_info(type)->name, n_row,
             n_col, n_tok, (int)v, broken);
    job_same(&j, what);
    dt_free_all();
}

static void test_types(void **state)
{
    static const int rows[] = {1, 16, 31, 48, 64, 65, 100, 130, 144};
    (void)state;
    for (int i = 0; i < N_TYPES; i++)
        for (int t = 0; t < N_TOKENS; t++)
            product(types[i], rows[(i + 2 * t) % 9], columns_of(types[i], i + t), tokens[t],
                    (enum values)((i + t) % N_VALUES), t % 3);
}

/* Enough of both for the large tiles, which are for no fewer than three to two multiprocessors. */
static void test_large(void **state)
{
    (void)state;
    for (int i = 0; i < N_TYPES; i++)
        product(types[i], 397 - i, columns_of(types[i], 3 + i), 129 + 9 * i, (enum values)(i % N_VALUES), i % 2);
}

/* The largest sums that there are: all codes at an end, all activations at 127. */
static void test_largest(void **state)
{
    (void)state;
    for (int i = 0; i < N_TYPES; i++) {
        enum { N_TOK = 20 };
        int n_col = columns_of(types[i], 2);
        float *x = malloc(N_TOK * (size_t)n_col * sizeof *x);
        assert_non_null(x);
        for (int k = 0; k < N_TOK * n_col; k++) x[k] = k / n_col % 2 ? 3.0f : -3.0f;
        struct dt_acts a = dt_inputs_from(x, N_TOK, n_col);
        struct job j = job_make(1, types[i], MU_TYPE_LIMIT, 70, n_col, N_TOK, MU_DEVICE_ACT_NONE, 0, EXTREME);
        for (int side = 0; side < DT_SIDES; side++) {
            struct mu_device_job job = job_at(&j, side);
            dt.ops[side]->matmul(dt.dev[side], &job, 1, &a.of[side], NULL);
        }
        job_same(&j, mu_type_info(types[i])->name);
        free(x);
        dt_free_all();
    }
}

/* ---- what follows ---- */

static void test_follows(void **state)
{
    static const int rows[] = {32, 64, 96, 100, 160};
    (void)state;
    for (int trial = 0; trial < 40; trial++) {
        char what[160];
        uint32_t type = types[rnd() % N_TYPES], up = MU_TYPE_LIMIT;
        enum mu_device_act act = (enum mu_device_act)(trial % 5);
        int n_row = one_of(rows, 5), n_tok = one_of(tokens, N_TOKENS);
        int n_col = 256 * (1 + (int)(rnd() % 2));
        unsigned with = coin() ? rnd() % 32 : coin() ? WITH_FORM : 0;
        if (act == MU_DEVICE_ACT_SILU || act == MU_DEVICE_ACT_SILU_CLAMPED || (act != MU_DEVICE_ACT_NONE && coin()))
            up = trial % 3 == 0 ? types[rnd() % N_TYPES] : type;
        struct dt_acts x = inputs(n_tok, n_col, ORDINARY, (int)(rnd() % 2));
        struct job j = job_make(1, type, up, n_row, n_col, n_tok, act, with, ORDINARY);
        for (int i = 0; i < DT_SIDES; i++) {
            struct mu_device_job job = job_at(&j, i);
            dt.ops[i]->matmul(dt.dev[i], &job, 1, &x.of[i], NULL);
        }
        snprintf(what, sizeof what, "trial %d: %s with %s, %d × %d, %d vectors, act %d, with %u", trial,
                 mu_type_info(type)->name, up == MU_TYPE_LIMIT ? "nothing" : mu_type_info(up)->name, n_row, n_col,
                 n_tok, (int)act, with);
        job_same(&j, what);
        dt_free_all();
    }
}

/* Query, key and value matrices: of different types and heights. */
static void test_jobs(void **state)
{
    static const int rows[] = {160, 32, 48, 31};
    (void)state;
    for (int trial = 0; trial < 8; trial++) {
        int n_tok = tokens[trial], n_job = 2 + trial % 3, n_col = 256;
        struct dt_acts x = inputs(n_tok, n_col, ORDINARY, 0);
        struct job j[MU_DEVICE_MAX_JOBS];
        for (int k = 0; k < n_job; k++) {
            uint32_t type = k == 2 ? MU_Q6_K : types[(unsigned)trial % N_TYPES];
            j[k] = job_make(1, type, MU_TYPE_LIMIT, rows[k], n_col, n_tok, MU_DEVICE_ACT_NONE, k == 1 ? WITH_BIAS : 0,
                            ORDINARY);
        }
        for (int i = 0; i < DT_SIDES; i++) {
            struct mu_device_job job[MU_DEVICE_MAX_JOBS];
            for (int k = 0; k < n_job; k++) job[k] = job_at(&j[k], i);
            dt.ops[i]->matmul(dt.dev[i], job, n_job, &x.of[i], NULL);
        }
        for (int k = 0; k < n_job; k++) {
            char what[80];
            snprintf(what, sizeof what, "trial %d, job %d of %d", trial, k, n_job);
            job_same(&j[k], what);
        }
        dt_free_all();
    }
}

/* ---- experts ---- */

/* n_used different experts for each token, some experts for none; places by expert, then token. */
static void groups_fill(int n_tok, int n_expert, int n_used, int32_t *begin, int32_t *place)
{
    int32_t *chosen = calloc((size_t)n_tok * (size_t)n_used, sizeof *chosen), n = 0;
    assert_non_null(chosen);
    for (int t = 0; t < n_tok; t++) {
        int first = coin() ? 1 : (int)(rnd() % (unsigned)n_expert);
        for (int u = 0; u < n_used; u++) chosen[t * n_used + u] = (first + 3 * u) % n_expert;
    }
    for (int e = 0; e < n_expert; e++) {
        begin[e] = n;
        for (int i = 0; i < n_tok * n_used; i++)
            if (chosen[i] == e) place[n++] = i;
    }
    begin[n_expert] = n;
    assert_int_equal(n, n_tok * n_used);
    free(chosen);
}

static void test_experts(void **state)
{
    static const int counts[] = {4, 7, 35, 70}, rows[] = {32, 48, 96};
    (void)state;
    for (int trial = 0; trial < 24; trial++) {
        char what[160];
        bool by_place = trial % 2;
        int n_expert = counts[trial / 2 % 4], n_used = n_expert == 4 ? 1 : 2, n_row = one_of(rows, 3), n_col = 256;
        int n_tok = trial < 12 ? 9 + (int)(rnd() % 30) : 130, n_vec = n_tok * n_used;
        uint32_t type = types[trial % N_TYPES], up = by_place ? MU_TYPE_LIMIT : trial % 8 == 0 ? MU_Q8_0 : type;
        int32_t *begin = calloc((size_t)n_expert + 1, 4), *place = calloc((size_t)n_vec, 4);
        assert_true(begin && place);
        groups_fill(n_tok, n_expert, n_used, begin, place);
        struct dt_pair begins = dt_from(begin, (size_t)(n_expert + 1) * 4), places = dt_from(place, (size_t)n_vec * 4);
        struct dt_acts x = inputs(by_place ? n_vec : n_tok, n_col, ORDINARY, 0);
        unsigned with = (rnd() % 2 ? WITH_BIAS : 0) | (rnd() % 2 ? WITH_FORM : 0);
        struct job j = job_make(n_expert, type, up, n_row, n_col, n_vec,
                                up == MU_TYPE_LIMIT ? MU_DEVICE_ACT_NONE : MU_DEVICE_ACT_SILU, with, ORDINARY);
        for (int i = 0; i < DT_SIDES; i++) {
            struct mu_device_job job = job_at(&j, i);
            struct mu_device_experts e = {.n_expert = n_expert,
                                          .n_used = n_used,
                                          .m_bytes = j.m.bytes[i],
                                          .up_bytes = j.up.bytes[i],
                                          .begin = begins.at[i],
                                          .place = places.at[i],
                                          .by_place = by_place};
            dt.ops[i]->matmul(dt.dev[i], &job, 1, &x.of[i], &e);
        }
        snprintf(what, sizeof what, "trial %d: %d of %d experts, %s, %d × %d, %d tokens, %s", trial, n_used, n_expert,
                 mu_type_info(type)->name, n_row, n_col, n_tok, by_place ? "by place" : "by token");
        job_same(&j, what);
        free(begin);
        free(place);
        dt_free_all();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_types),   cmocka_unit_test(test_large),
                                       cmocka_unit_test(test_largest), cmocka_unit_test(test_follows),
                                       cmocka_unit_test(test_jobs),    cmocka_unit_test(test_experts)};
    return cmocka_run_group_tests(tests, dt_open, dt_close);
}
