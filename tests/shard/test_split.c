/* The text of a split, there and back, and what is wrong with a bad one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "shard/split.h"

static void test_good(void **state)
{
    (void)state;
    static const struct {
        const char *text, *canonical;
        int n_stage, n_rank;
    } cases[] = {
        {"1", "1", 1, 1},
        {"1:1", "1:1", 1, 2},
        {"1/1", "1/1", 2, 2},
        {"3:1/1", "3:1/1", 2, 3},
        {"02.50", "2.5", 1, 1},
        {"1/1/1:2", "1/1/1:2", 3, 4},
        {"0.000001", "0.000001", 1, 1},
        {"1000000", "1000000", 1, 1},
        {"1000000.000", "1000000", 1, 1},
        {"0.1:0.7", "0.1:0.7", 1, 2},
        {"1@cpu", "1", 1, 1},
        {"1@gpu0", "1@gpu0", 1, 1},
        {"1@gpu", "1@gpu0", 1, 1},
        {"1@gpu007/1@cpu", "1@gpu7/1", 2, 2},
        {"3@gpu0:1@gpu1/1", "3@gpu0:1@gpu1/1", 2, 3},
        {"1@gpu/2@gpu:3@gpu", "1@gpu0/2@gpu1:3@gpu2", 2, 3},
        {"1@gpu3/1/1@gpu", "1@gpu3/1/1@gpu4", 3, 3},
        {"1@gpu2:1@gpu0:1@gpu", "1@gpu2:1@gpu0:1@gpu1", 1, 3},
        {"1.5@gpu15", "1.5@gpu15", 1, 1},
        {"1@gpu0:1@gpu0", "1@gpu0:1@gpu0", 1, 2}, /* both on one */
        {"1@gpu0~12", "1@gpu0~12", 1, 1},
        {"1@gpu~003/2@gpu:1@gpu1~9999", "1@gpu0~3/2@gpu1:1@gpu1~9999", 2, 3},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct mu_split split, again;
        struct mu_err err = MU_ERR_INIT;
        char text[MU_SPLIT_TEXT];
        if (mu_split_parse(cases[i].text, &split, &err) != MU_OK) fail_msg("%s", err.text);
        assert_int_equal(split.n_stage, cases[i].n_stage);
        assert_int_equal(split.n_rank, cases[i].n_rank);
        mu_split_format(&split, text, sizeof text);
        assert_string_equal(text, cases[i].canonical);
        assert_int_equal(mu_split_parse(text, &again, &err), MU_OK);
        for (int r = 0; r < split.n_rank; r++) {
            assert_true(again.weight[r] == split.weight[r]);
            assert_int_equal(again.stage_of[r], split.stage_of[r]);
            assert_int_equal(again.device[r], split.device[r]);
            assert_int_equal(again.streamed[r], split.streamed[r]);
        }
    }
    struct mu_split split;
    assert_int_equal(mu_split_parse("3:1/2", &split, NULL), MU_OK);
    assert_true(split.weight[0] == 3 && split.weight[1] == 1 && split.weight[2] == 2);
    assert_int_equal(split.stage_of[2], 1);
    assert_false(mu_split_has_gpu(&split));
    for (int i = 0; i < MU_MAX_RANKS; i++) assert_int_equal(split.device[i], MU_ON_CPU);
    assert_int_equal(mu_split_parse("1/2@gpu5:1@cpu/1@gpu", &split, NULL), MU_OK);
    static const int device[] = {MU_ON_CPU, 5, MU_ON_CPU, 6};
    for (int i = 0; i < 4; i++) assert_int_equal(split.device[i], device[i]);
    assert_true(mu_split_has_gpu(&split));
    assert_int_equal(mu_split_cpu_ranks(&split), 2);
    assert_int_equal(mu_split_parse("1/2@gpu5~7:1", &split, NULL), MU_OK);
    assert_true(split.streamed[0] == 0 && split.streamed[1] == 7 && split.streamed[2] == 0);
}

static void test_bad(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"", "position 1: expected a weight"},
        {"3:/1", "position 3: expected a weight"},
        {"0", "position 1"},
        {"-1", "position 1"},
        {"1:", "position 3"},
        {"/1", "position 1"},
        {"1 ", "position 2: expected '@', ':', '/'"},
        {"1,2", "position 2"},
        {"1e3", "position 2"},
        {"nan", "position 1"},
        {"inf", "position 1"},
        {"0x1", "position 1"},
        {"1000001", "position 1"},
        {"1000000.1", "position 1"},
        {"99999999999999999999", "position 1"},
        {"0.0000001", "position 1"},
        {"1.", "position 1"},
        {".5", "position 1"},
        {"0.000", "position 1"},
        {"1@", "position 2: expected '@cpu', '@gpu'"},
        {"1/2@gpx", "position 4: expected '@cpu'"},
        {"1@gpu16", "position 2"},
        {"1@gpu99999999999999999999", "position 2"},
        {"1@gpu15/1@gpu", "position 10"}, /* there is none after it */
        {"1@gpu-1", "position 6: expected ':', '/'"},
        {"1@gpu0@gpu1", "position 7: expected ':', '/'"},
        {"1@cpu0", "position 6: expected ':', '/'"},
        {"1@gpu0~", "position 2: expected '@cpu'"},
        {"1@gpu0~0", "position 2"},
        {"1@gpu0~10000", "position 2"},
        {"1@gpu0~3~3", "position 9: expected ':', '/'"},
        {"1@cpu~3", "position 6: expected ':', '/'"}, /* they read their memory where it is */
        {"1~3", "position 2: expected '@', ':'"},
        {"@gpu0", "position 1: expected a weight"},
        {"1 @gpu0", "position 2"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct mu_split split = {.n_rank = 77};
        struct mu_err err = MU_ERR_INIT;
        assert_int_equal(mu_split_parse(cases[i].text, &split, &err), MU_EINVAL);
        if (!strstr(err.text, cases[i].says)) fail_msg("'%s': %s", cases[i].text, err.text);
        assert_int_equal(split.n_rank, 77); /* untouched */
    }
}

static void test_many(void **state)
{
    (void)state;
    char text[2 * MU_MAX_RANKS + 8] = "1", *at = text + 1, out[MU_SPLIT_TEXT];
    struct mu_split split;
    struct mu_err err = MU_ERR_INIT;
    for (int i = 1; i < MU_MAX_RANKS; i++) at += sprintf(at, "/1");
    assert_int_equal(mu_split_parse(text, &split, &err), MU_OK);
    assert_int_equal(split.n_stage, MU_MAX_STAGES);
    strcpy(at, "/1");
    assert_int_equal(mu_split_parse(text, &split, &err), MU_EINVAL);
    assert_non_null(strstr(err.text, "64 ranks"));
    /* the longest canonical text fits */
    for (int i = 0; i < MU_MAX_RANKS; i++) {
        split.weight[i] = 999999.999999;
        split.device[i] = MU_MAX_GPUS - 1;
        split.streamed[i] = MU_MAX_STREAMED;
        split.stage_of[i] = i;
    }
    split.n_rank = split.n_stage = MU_MAX_RANKS;
    mu_split_format(&split, out, sizeof out);
    assert_int_equal(strlen(out), 64 * (13 + 11) + 63);
    char small[6];
    memset(small, 'x', sizeof small);
    mu_split_format(&split, small, 5);
    assert_true(memchr(small, 0, 5) != NULL && small[5] == 'x');
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_good), cmocka_unit_test(test_bad),
                                       cmocka_unit_test(test_many)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
