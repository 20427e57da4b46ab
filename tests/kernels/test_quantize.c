/* quantize, block_sums, to_bf16: every table against ref, bit for bit; ref against C1 spelled out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "kernels/kernels.h"

enum { MAX_N = 4096, GUARD = 32 };

static uint64_t rng = 3;
static uint32_t rnd(void)
{
    rng = rng * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(rng >> 32);
}

static float any_finite(void)
{
    union {
        uint32_t u;
        float f;
    } v;
    do v.u = rnd();
    while ((v.u & 0x7f800000u) == 0x7f800000u);
    return v.f;
}

/* Blocks of many sizes: ordinary, huge, tiny around 2^-100, all zero, one large value among small ones, ties. */
static void fill(float *x, int n)
{
    for (int b = 0; b < n / 32; b++) {
        int kind = (int)(rnd() % 7);
        for (int i = 0; i < 32; i++) {
            float f = (float)(int)(rnd() % 20001u - 10000u) * 1e-4f;
            if (kind == 1) f *= 0x1p120f;
            if (kind == 2) f *= 0x1p-100f;
            if (kind == 3) f = rnd() & 1 ? 0.0f : -0.0f;
            if (kind == 4) f = any_finite();
            if (kind == 5) f = i == 7 ? 127.0f : (float)(int)(rnd() % 255u) - 127.5f + 0.5f * (float)(rnd() & 1);
            if (kind == 6 && i != 3) f *= 0x1p-140f;
            x[32 * b + i] = f;
        }
    }
}

struct result {
    int8_t q_before[GUARD], q[MAX_N], q_after[GUARD];
    float s_before[1], s[MAX_N / 32], s_after[1];
    int16_t sum_before[1], sum[MAX_N / 16], sum_after[1];
    uint16_t bf_before[1], bf[MAX_N], bf_after[1];
};
static struct result want, got;
static float x[MAX_N + 1];

static void test_tables_agree(void **state)
{
    const struct mu_kernels *const *all = mu_kernels_available();
    (void)state;
    static const int sizes[] = {32, 64, 96, 160, 512, 1024, 4096};
    for (int round = 0; round < 60; round++)
        for (size_t z = 0; z < sizeof sizes / sizeof *sizes; z++) {
            int n = sizes[z];
            fill(x + 1, n); /* + 1: nothing may lean on alignment */
            memset(&want, 0xa5, sizeof want);
            assert_true(all[0]->quantize(x + 1, n, want.q, want.s, want.sum));
            all[0]->to_bf16(x + 1, n - (int)(rnd() % 32), want.bf);
            for (int k = 0; all[k]; k++) {
                memset(&got, 0xa5, sizeof got);
                assert_true(all[k]->quantize(x + 1, n, got.q, got.s, got.sum));
                for (int i = 0; i < MAX_N; i++)
                    if (i == 0 || want.bf[i] != 0xa5a5) got.bf[i] = 0;
                int n_bf = MAX_N;
                while (n_bf > 0 && want.bf[n_bf - 1] == 0xa5a5) n_bf--;
                all[k]->to_bf16(x + 1, n_bf, got.bf);
                if (memcmp(&want, &got, sizeof want) != 0) fail_msg("%s differs from ref at n = %d", all[k]->name, n);
                memset(got.sum, 0, sizeof got.sum);
                all[k]->block_sums(want.q, n, got.sum);
                assert_memory_equal(got.sum, want.sum, (size_t)n / 16 * sizeof *got.sum);
            }
        }
}

static void test_ref_is_c1(void **state)
{
    const struct mu_kernels *ref = mu_kernels_available()[0];
    (void)state;
    for (int round = 0; round < 200; round++) {
        fill(x, 512);
        assert_true(ref->quantize(x, 512, got.q, got.s, got.sum));
        for (int b = 0; b < 16; b++) {
            float amax = 0;
            int total[2] = {0, 0};
            for (int i = 0; i < 32; i++) amax = fmaxf(amax, fabsf(x[32 * b + i]));
            for (int i = 0; i < 32; i++) {
                int q = got.q[32 * b + i];
                total[i / 16] += q;
                assert_in_range(q + 127, 0, 254);
                if (amax < 0x1p-100f)
                    assert_int_equal(q, 0);
                else if (!(fabs((double)x[32 * b + i] * 127.0 / (double)amax - q) <= 0.5001))
                    fail_msg("%a of %a became %d", (double)x[32 * b + i], (double)amax, q);
            }
            assert_true(got.s[b] == (amax < 0x1p-100f ? 0.0f : amax / 127.0f));
            assert_int_equal(got.sum[2 * b], total[0]);
            assert_int_equal(got.sum[2 * b + 1], total[1]);
        }
    }
}

static void test_not_finite(void **state)
{
    const struct mu_kernels *const *all = mu_kernels_available();
    static const float bad[] = {INFINITY, -INFINITY, NAN, -NAN};
    (void)state;
    for (int k = 0; all[k]; k++)
        for (int i = 0; i < 96; i++)
            for (int j = 0; j < 4; j++) {
                memset(x, 0, sizeof x);
                x[i] = bad[j];
                x[(i + 1) % 96] = 3e38f;
                assert_false(all[k]->quantize(x, 96, got.q, got.s, got.sum));
            }
}

static void test_block_sums_extremes(void **state)
{
    const struct mu_kernels *const *all = mu_kernels_available();
    (void)state;
    for (int k = 0; all[k]; k++)
        for (int v = -127; v <= 127; v += 127) {
            int16_t sum[6];
            memset(want.q, v, 96);
            want.q[95] = 1;
            all[k]->block_sums(want.q, 96, sum);
            for (int i = 0; i < 5; i++) assert_int_equal(sum[i], 16 * v);
            assert_int_equal(sum[5], 15 * v + 1);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ref_is_c1),
        cmocka_unit_test(test_tables_agree),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_block_sums_extremes),
    };
    mu_fp_env_set();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
