/* The type table, and the half-precision conversions over all their values. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "kernels/types.h"

static void test_table(void **state)
{
    static const struct {
        int type;
        const char *name;
        int values, bytes;
    } known[] = {
        {0, "F32", 1, 4},         {1, "F16", 1, 2},         {2, "Q4_0", 32, 18},      {3, "Q4_1", 32, 20},
        {6, "Q5_0", 32, 22},      {7, "Q5_1", 32, 24},      {8, "Q8_0", 32, 34},      {9, "Q8_1", 32, 36},
        {10, "Q2_K", 256, 84},    {11, "Q3_K", 256, 110},   {12, "Q4_K", 256, 144},   {13, "Q5_K", 256, 176},
        {14, "Q6_K", 256, 210},   {15, "Q8_K", 256, 292},   {16, "IQ2_XXS", 256, 66}, {17, "IQ2_XS", 256, 74},
        {18, "IQ3_XXS", 256, 98}, {19, "IQ1_S", 256, 50},   {20, "IQ4_NL", 32, 18},   {21, "IQ3_S", 256, 110},
        {22, "IQ2_S", 256, 82},   {23, "IQ4_XS", 256, 136}, {24, "I8", 1, 1},         {25, "I16", 1, 2},
        {26, "I32", 1, 4},        {27, "I64", 1, 8},        {28, "F64", 1, 8},        {29, "IQ1_M", 256, 56},
        {30, "BF16", 1, 2},       {34, "TQ1_0", 256, 54},   {35, "TQ2_0", 256, 66},   {39, "MXFP4", 32, 17},
    };
    int n = 0;
    (void)state;
    for (uint32_t t = 0; t < 100; t++) n += mu_type_info(t) != NULL;
    assert_int_equal(n, sizeof known / sizeof *known);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        const struct mu_type_info *t = mu_type_info((uint32_t)known[i].type);
        assert_non_null(t);
        assert_string_equal(t->name, known[i].name);
        assert_int_equal(t->block_values, known[i].values);
        assert_int_equal(t->block_bytes, known[i].bytes);
        assert_int_equal(mu_type_by_name(known[i].name), known[i].type);
    }
    assert_int_equal(mu_type_by_name("q4_k"), MU_Q4_K);
    assert_int_equal(mu_type_by_name("q4_"), -1);
    assert_int_equal(mu_type_by_name(""), -1);
    assert_null(mu_type_info(4));
    assert_null(mu_type_info(UINT32_MAX));
    static const uint32_t never[] = {MU_Q8_1, MU_Q8_K, MU_I8, MU_I16, MU_I32, MU_I64, MU_F64};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        enum mu_act_kind act = mu_type_info((uint32_t)known[i].type)->act;
        bool computed = true;
        for (size_t k = 0; k < sizeof never / sizeof *never; k++) computed &= never[k] != (uint32_t)known[i].type;
        if (computed != (act != MU_ACT_NONE)) fail_msg("%s", known[i].name);
    }
}

static void test_row_bytes(void **state)
{
    size_t b = 99;
    (void)state;
    assert_true(mu_type_row_bytes(MU_Q4_K, 512, &b));
    assert_int_equal(b, 288);
    assert_true(mu_type_row_bytes(MU_Q4_0, 0, &b));
    assert_int_equal(b, 0);
    b = 99;
    assert_false(mu_type_row_bytes(MU_Q4_K, 300, &b));
    assert_false(mu_type_row_bytes(5, 32, &b));
    assert_false(mu_type_row_bytes(MU_F32, UINT64_MAX / 2, &b));
    assert_int_equal(b, 99);
}

/* The value of a half by its definition. */
static double half_value(int h)
{
    int exp = h >> 10 & 31, man = h & 1023;
    double v = exp == 0 ? ldexp(man, -24) : ldexp(1024 + man, exp - 25);
    return h & 0x8000 ? -v : v;
}

static void test_f16(void **state)
{
    (void)state;
    for (int h = 0; h < 65536; h++) {
        float f = mu_f16_to_f32((uint16_t)h);
        if ((h & 0x7c00) == 0x7c00) {
            assert_true((h & 0x3ff) ? isnan(f) : isinf(f));
            if (h & 0x3ff)
                assert_int_equal(mu_f32_to_f16(f) & 0x7e00, 0x7e00);
            else
                assert_int_equal(mu_f32_to_f16(f), h);
            continue;
        }
        assert_true((double)f == half_value(h) && !signbit(f) == !(h & 0x8000));
        assert_int_equal(mu_f32_to_f16(f), h);
        int next = h + 1; /* the next larger magnitude of the same sign */
        if ((next & 0x7c00) == 0x7c00) continue;
        float mid = (float)((half_value(h) + half_value(next)) / 2); /* exact */
        assert_int_equal(mu_f32_to_f16(mid), h & 1 ? next : h);
        assert_int_equal(mu_f32_to_f16(nextafterf(mid, 0)), h);
        assert_int_equal(mu_f32_to_f16(nextafterf(mid, signbit(mid) ? -INFINITY : INFINITY)), next);
    }
    assert_int_equal(mu_f32_to_f16(65519.996f), 0x7bff);
    assert_int_equal(mu_f32_to_f16(65520.0f), 0x7c00);
    assert_int_equal(mu_f32_to_f16(-1e30f), 0xfc00);
    assert_int_equal(mu_f32_to_f16(1e-40f), 0);
}

static void test_bf16(void **state)
{
    (void)state;
    for (int h = 0; h < 65536; h++) {
        float f = mu_bf16_to_f32((uint16_t)h);
        if (isnan(f)) {
            assert_true(isnan(mu_bf16_to_f32(mu_f32_to_bf16(f))));
            continue;
        }
        assert_int_equal(mu_f32_to_bf16(f), h);
        uint32_t u = (uint32_t)h << 16 | 0x8000u; /* a tie, and its neighbours */
        float tie, over;
        memcpy(&tie, &u, 4);
        u++;
        memcpy(&over, &u, 4);
        if (isnan(tie)) continue;
        assert_int_equal(mu_f32_to_bf16(tie), (h + (h & 1)) & 0xffff);
        assert_int_equal(mu_f32_to_bf16(over), (h + 1) & 0xffff);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_row_bytes),
        cmocka_unit_test(test_f16),
        cmocka_unit_test(test_bf16),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
