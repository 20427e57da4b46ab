/* Quantised rows: errors no larger than those of the fixtures' quantiser, or than the format should cost; edges. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/kernels.h"
#include "kernels/quantize_rows.h"
#include "tests/fixtures.h"

enum { N = 2048, GUARD = 0xA5 };

static const struct mu_kernels *k;

static int setup(void **state)
{
    struct mu_err err = MU_ERR_INIT;
    (void)state;
    if (mu_kernels_init("ref", &err) != MU_OK) return -1;
    k = mu_kernels();
    return 0;
}

static void *read_fixture(const char *name, size_t bytes)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/quant_blocks/%s", fixtures_dir(), name);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    void *data = malloc(bytes);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, bytes, f), bytes);
    fclose(f);
    return data;
}

static double squared_error(const float *x, const float *y, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++) sum += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
    return sum;
}

/* Quantises n values with guards around, and gives what a reader sees. */
static bool round_trip(uint32_t type, const float *x, int n, float *y)
{
    size_t bytes;
    assert_true(mu_type_row_bytes(type, (uint64_t)n, &bytes));
    uint8_t *raw = malloc(bytes + 2); /* odd: blocks may lie at any address */
    assert_non_null(raw);
    memset(raw, GUARD, bytes + 2);
    bool ok = mu_quantize_row(type, x, n, raw + 1);
    assert_int_equal(raw[0], GUARD);
    assert_int_equal(raw[bytes + 1], GUARD);
    if (ok) assert_true(k->dequant_row(type, raw + 1, n, y));
    free(raw);
    return ok;
}

static void test_against_fixtures(void **state)
{
    static const uint32_t types[] = {MU_Q4_0, MU_Q4_1, MU_Q5_0, MU_Q5_1, MU_Q8_0, MU_MXFP4};
    (void)state;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        const char *name = mu_type_info(types[i])->name;
        char file[64];
        size_t bytes;
        static float theirs[N], ours[N];
        assert_true(mu_type_row_bytes(types[i], N, &bytes));
        snprintf(file, sizeof file, "%s.quantize_in.f32.bin", name);
        float *x = read_fixture(file, N * sizeof *x);
        snprintf(file, sizeof file, "%s.quantize_out.bin", name);
        uint8_t *out = read_fixture(file, bytes);
        assert_true(k->dequant_row(types[i], out, N, theirs));
        assert_true(round_trip(types[i], x, N, ours));
        double e = squared_error(x, ours, N), limit = squared_error(x, theirs, N);
        print_message("  %s: squared error %.6g, the fixtures' quantiser's %.6g\n", name, e, limit);
        if (!(e <= limit * 1.0001)) fail_msg("%s: squared error %g, expected at most %g", name, e, limit);
        free(x);
        free(out);
    }
}

/* About normal: sums of 12 uniform numbers. */
static void fill(float *x, int n, float scale, float offset)
{
    uint32_t s = 12345;
    for (int i = 0; i < n; i++) {
        float sum = -6;
        for (int j = 0; j < 12; j++) {
            s = s * 1664525u + 1013904223u;
            sum += (float)(s >> 8) * 0x1p-24f;
        }
        x[i] = scale * sum + offset;
    }
}

/* What each format may cost: error over the values' own size, as root mean squares. */
static const struct {
    uint32_t type;
    double worst;
} costs[] = {
    {MU_F16, 3e-4},   {MU_Q8_0, 6e-3},  {MU_Q6_K, 0.02},  {MU_Q5_K, 0.037}, {MU_Q5_1, 0.035},
    {MU_Q5_0, 0.045}, {MU_Q4_K, 0.075}, {MU_Q4_1, 0.073}, {MU_Q4_0, 0.09},  {MU_IQ4_NL, 0.08},
    {MU_MXFP4, 0.12}, {MU_Q3_K, 0.16},  {MU_Q2_K, 0.3},
};

static void test_cost(void **state)
{
    static const float scales[] = {1.0f, 0.01f, 300.0f};
    static float x[N], y[N];
    (void)state;
    for (size_t i = 0; i < sizeof costs / sizeof *costs; i++)
        for (size_t s = 0; s < sizeof scales / sizeof *scales; s++) {
            double size = 0;
            fill(x, N, scales[s], 0);
            for (int v = 0; v < N; v++) size += (double)x[v] * (double)x[v];
            assert_true(round_trip(costs[i].type, x, N, y));
            double cost = sqrt(squared_error(x, y, N) / size);
            if (s == 0) print_message("  %s: %.4f\n", mu_type_info(costs[i].type)->name, cost);
            if (!(cost < costs[i].worst)) fail_msg("%s: %g", mu_type_info(costs[i].type)->name, cost);
        }
}

/* Zeros stay zeros, equal values nearly so, tiny ones do no harm; what is not finite, or no scale can hold, is told. */
static void test_edges(void **state)
{
    float x[256], y[256];
    (void)state;
    for (size_t i = 0; i < sizeof costs / sizeof *costs; i++) {
        uint32_t type = costs[i].type;
        memset(x, 0, sizeof x);
        assert_true(round_trip(type, x, 256, y));
        for (int v = 0; v < 256; v++) assert_true(y[v] == 0.0f);
        for (int sign = -1; sign <= 1; sign += 2) {
            for (int v = 0; v < 256; v++) x[v] = (float)sign * 0.75f;
            assert_true(round_trip(type, x, 256, y));
            for (int v = 0; v < 256; v++)
                if (!(fabsf(y[v] - x[v]) < 0.05f))
                    fail_msg("%s: %g of %g", mu_type_info(type)->name, (double)y[v], (double)x[v]);
            for (int v = 0; v < 256; v++) x[v] = (float)sign * 1e-40f * (float)v;
            assert_true(round_trip(type, x, 256, y));
            for (int v = 0; v < 256; v++) assert_true(fabsf(y[v]) < 1e-7f);
        }
        static const float bad[] = {INFINITY, -INFINITY, NAN, 1e38f};
        for (size_t b = 0; b < 4; b++) {
            fill(x, 256, 1, 0);
            x[200] = bad[b];
            assert_false(round_trip(type, x, 256, y));
        }
    }
    assert_false(mu_quantize_knows(MU_IQ2_XXS));
    assert_false(mu_quantize_knows(MU_F32));
    assert_false(mu_quantize_knows(1000));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_fixtures),
        cmocka_unit_test(test_cost),
        cmocka_unit_test(test_edges),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
