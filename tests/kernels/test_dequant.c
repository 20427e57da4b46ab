/* dequant_row against the fixtures' blocks, bit for bit. Without fixtures, against formulas on blocks made here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "kernels/kernels.h"
#include "tests/fixtures.h"

static const uint32_t supported[] = {MU_F32,    MU_F16,   MU_BF16,  MU_Q4_0,  MU_Q4_1,    MU_Q5_0,    MU_Q5_1,
                                     MU_Q8_0,   MU_Q2_K,  MU_Q3_K,  MU_Q4_K,  MU_Q5_K,    MU_Q6_K,    MU_IQ4_NL,
                                     MU_IQ4_XS, MU_MXFP4, MU_TQ1_0, MU_TQ2_0, MU_IQ2_XXS, MU_IQ3_XXS, MU_IQ3_S,
                                     MU_IQ2_XS, MU_IQ2_S, MU_IQ1_S, MU_IQ1_M};
enum { N_SUPPORTED = sizeof supported / sizeof *supported };

static uint8_t *fixture(const char *type, const char *what, size_t *size_out)
{
    char *path = mu_asprintf("%s/quant_blocks/%s.%s.bin", fixtures_dir(), type, what);
    FILE *f = path ? fopen(path, "rb") : NULL;
    mu_free(path);
    if (!f) return NULL;
    uint8_t *buf = mu_malloc(1 << 20);
    assert_non_null(buf);
    *size_out = fread(buf, 1, 1 << 20, f);
    fclose(f);
    return buf;
}

static void test_fixtures(void **state)
{
    const struct mu_kernels *const *all = mu_kernels_available();
    int seen = 0;
    (void)state;
    for (int i = 0; i < N_SUPPORTED; i++) {
        const struct mu_type_info *t = mu_type_info(supported[i]);
        size_t n_raw = 0, n_want = 0;
        uint8_t *raw = fixture(t->name, "blocks", &n_raw), *want = fixture(t->name, "f32", &n_want);
        if (raw && want) {
            int n = (int)(n_want / 4);
            assert_int_equal(n_raw, n / t->block_values * t->block_bytes);
            float *got = mu_malloc(n_want + 4);
            assert_non_null(got);
            for (int k = 0; all[k]; k++) {
                got[n] = 77.0f;
                assert_true(all[k]->dequant_row(supported[i], raw, n, got));
                if (memcmp(got, want, n_want) != 0) fail_msg("%s %s differs from its fixture", all[k]->name, t->name);
                assert_true(got[n] == 77.0f);
            }
            mu_free(got);
            seen++;
        }
        mu_free(raw);
        mu_free(want);
    }
    assert_true(seen >= N_SUPPORTED - 1); /* all but F32, which has none */
}

static void test_small_blocks(void **state)
{
    const struct mu_kernels *const *all = mu_kernels_available();
    (void)state;
    for (int k = 0; all[k]; k++) {
        uint8_t q4[18] = {0x00, 0x3c}, q8[34] = {0x00, 0xc0}; /* d = 1; d = -2 */
        float out[33] = {[32] = 5.0f};
        for (int i = 0; i < 16; i++) q4[2 + i] = (uint8_t)(i | (15 - i) << 4);
        for (int i = 0; i < 32; i++) q8[2 + i] = (uint8_t)(i - 16);
        assert_true(all[k]->dequant_row(MU_Q4_0, q4, 32, out));
        for (int i = 0; i < 16; i++) assert_true(out[i] == (float)(i - 8) && out[16 + i] == (float)(7 - i));
        assert_true(all[k]->dequant_row(MU_Q8_0, q8, 32, out));
        for (int i = 0; i < 32; i++) assert_true(out[i] == -2.0f * (float)(i - 16));
        float f[2] = {1.5f, -3.0f};
        assert_true(all[k]->dequant_row(MU_F32, f, 2, out));
        assert_memory_equal(out, f, sizeof f);
        assert_true(out[32] == 5.0f);
        assert_false(all[k]->dequant_row(MU_Q4_0, q4, 31, out));
        assert_false(all[k]->dequant_row(MU_Q8_K, q4, 256, out));
        assert_false(all[k]->dequant_row(5, q4, 32, out));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_fixtures), cmocka_unit_test(test_small_blocks)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
