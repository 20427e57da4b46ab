/* Products of many vectors with matrices of C2's types, against their definition: every type at sizes around those of
 * the tiles, what follows a product, several jobs at once, experts. */
#include "tests/kernels/device_job.h"

#include <stdio.h>
#include <stdlib.h>

#include "kernels/kernels.h"

enum { N_TYPES = 13, N_TOKENS = 8 };
static const uint32_t types[N_TYPES] = {MU_Q4_0, MU_Q4_1, MU_Q5_0, MU_Q5_1,   MU_Q8_0,  MU_Q2_K,  MU_Q3_K,
                                        MU_Q4_K, MU_Q5_K, MU_Q6_K, MU_IQ4_NL, MU_MXFP4, MU_IQ4_XS};
static const int tokens[N_TOKENS] = {9, 16, 17, 32, 33, 64, 65, 129};

static int one_of(const int *list, int n)
{
    return list[rnd() % (unsigned)n];
}
static int columns_of(uint32_t type, int i)
{
    static const int blocks[] = {1, 2, 3, 4, 5, 8, 9, 24};
    return mu_type_info(type)->block_values == 256 ? 256 * (1 + i % 3) : 32 * blocks[i % 8];
}

/* ---- one matrix ---- */

static void product(uint32_t type, int n_row, int n_col, int n_tok, enum values v, int broken)
{
    char what[160];
    struct dt_acts x = dt_inputs_broken(n_tok, n_col, v, broken);
    struct dt_job j = dt_job_make(1, type, MU_TYPE_LIMIT, n_row, n_col, n_tok, MU_DEVICE_ACT_NONE, 0, v);
    for (int i = 0; i < DT_SIDES; i++) {
        struct mu_device_job job = dt_job_at(&j, i);
        dt.ops[i]->matmul(dt.dev[i], &job, 1, &x.of[i], NULL);
    }
    snprintf(what, sizeof what, "%s, %d × %d, %d vectors, values %d, %d not finite", mu_type_info(type)->name, n_row,
             n_col, n_tok, (int)v, broken);
    dt_job_same(&j, what);
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
        struct dt_job j = dt_job_make(1, types[i], MU_TYPE_LIMIT, 70, n_col, N_TOK, MU_DEVICE_ACT_NONE, 0, EXTREME);
        for (int side = 0; side < DT_SIDES; side++) {
            struct mu_device_job job = dt_job_at(&j, side);
            dt.ops[side]->matmul(dt.dev[side], &job, 1, &a.of[side], NULL);
        }
        dt_job_same(&j, mu_type_info(types[i])->name);
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
        unsigned with = dt_coin() ? rnd() % 32 : dt_coin() ? DT_WITH_FORM : 0;
        if (act == MU_DEVICE_ACT_SILU || act == MU_DEVICE_ACT_SILU_CLAMPED || (act != MU_DEVICE_ACT_NONE && dt_coin()))
            up = trial % 3 == 0 ? types[rnd() % N_TYPES] : type;
        struct dt_acts x = dt_inputs_broken(n_tok, n_col, ORDINARY, (int)(rnd() % 2));
        struct dt_job j = dt_job_make(1, type, up, n_row, n_col, n_tok, act, with, ORDINARY);
        for (int i = 0; i < DT_SIDES; i++) {
            struct mu_device_job job = dt_job_at(&j, i);
            dt.ops[i]->matmul(dt.dev[i], &job, 1, &x.of[i], NULL);
        }
        snprintf(what, sizeof what, "trial %d: %s with %s, %d × %d, %d vectors, act %d, with %u", trial,
                 mu_type_info(type)->name, up == MU_TYPE_LIMIT ? "nothing" : mu_type_info(up)->name, n_row, n_col,
                 n_tok, (int)act, with);
        dt_job_same(&j, what);
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
        struct dt_acts x = dt_inputs_broken(n_tok, n_col, ORDINARY, 0);
        struct dt_job j[MU_DEVICE_MAX_JOBS];
        for (int k = 0; k < n_job; k++) {
            uint32_t type = k == 2 ? MU_Q6_K : types[(unsigned)trial % N_TYPES];
            j[k] = dt_job_make(1, type, MU_TYPE_LIMIT, rows[k], n_col, n_tok, MU_DEVICE_ACT_NONE,
                               k == 1 ? DT_WITH_BIAS : 0, ORDINARY);
        }
        for (int i = 0; i < DT_SIDES; i++) {
            struct mu_device_job job[MU_DEVICE_MAX_JOBS];
            for (int k = 0; k < n_job; k++) job[k] = dt_job_at(&j[k], i);
            dt.ops[i]->matmul(dt.dev[i], job, n_job, &x.of[i], NULL);
        }
        for (int k = 0; k < n_job; k++) {
            char what[80];
            snprintf(what, sizeof what, "trial %d, job %d of %d", trial, k, n_job);
            dt_job_same(&j[k], what);
        }
        dt_free_all();
    }
}

/* ---- experts ---- */

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
        dt_groups_fill(n_tok, n_expert, n_used, begin, place);
        struct dt_pair begins = dt_from(begin, (size_t)(n_expert + 1) * 4), places = dt_from(place, (size_t)n_vec * 4);
        struct dt_acts x = dt_inputs_broken(by_place ? n_vec : n_tok, n_col, ORDINARY, 0);
        unsigned with = (rnd() % 2 ? DT_WITH_BIAS : 0) | (rnd() % 2 ? DT_WITH_FORM : 0);
        struct dt_job j = dt_job_make(n_expert, type, up, n_row, n_col, n_vec,
                                      up == MU_TYPE_LIMIT ? MU_DEVICE_ACT_NONE : MU_DEVICE_ACT_SILU, with, ORDINARY);
        for (int i = 0; i < DT_SIDES; i++) {
            struct mu_device_job job = dt_job_at(&j, i);
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
        dt_job_same(&j, what);
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
