/* The elementary functions (C7): accuracy against libm in double, and the vector forms of every table against the
 * scalar ones, bit for bit, over all f32 inputs at a stride (MUSTER_TEST_FULL=1: every one of the 2^32;
 * MUSTER_TEST_STRIDE=n: every n-th; MUSTER_TEST_REDUCED: few).
 *
 * The vector forms are reached through the tables: exp is softmax_terms with max 0, silu is silu_mul with ones, sin and
 * cos are rope_table at position 1, tanh is attention's soft cap, seen through weights that one ulp of it changes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "kernels/kernels.h"

enum { BATCH = 4096 };

static uint32_t bits_of(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static float float_of(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static uint64_t stride(void)
{
    const char *full = getenv("MUSTER_TEST_FULL"), *n = getenv("MUSTER_TEST_STRIDE");
    if (full && *full == '1') return 1;
    uint64_t v = n ? strtoull(n, NULL, 10) : 0;
    return v ? v : getenv("MUSTER_TEST_REDUCED") ? 99991 : 997;
}

/* Fills x with the next inputs of the scan; the last batch repeats its final value. false when there are none left. */
static bool next_batch(uint64_t *at, float x[BATCH])
{
    if (*at >> 32) return false;
    uint64_t step = stride();
    for (int i = 0; i < BATCH; i++, *at += step) x[i] = *at >> 32 ? x[i - 1] : float_of((uint32_t)*at);
    return true;
}

static void expect_same(const char *table, const char *what, const float *x, const float *want, const float *got,
                        int per)
{
    for (int i = 0; i < BATCH * per; i++)
        if (bits_of(want[i]) != bits_of(got[i]) && !(isnan(want[i]) && isnan(got[i])))
            fail_msg("%s: %s(%a = 0x%08x): %a, scalar form %a", table, what, (double)x[i / per], bits_of(x[i / per]),
                     (double)got[i], (double)want[i]);
}

/* Soft-capped attention of one query head per input over two keys, 0 and `key`; the value that is shown belongs to the
 * key with the smaller weight, e^-|80·tanh|. */
static void tanh_weights(const struct mu_kernels *k, const float x[BATCH], float key, float *out)
{
    static _Alignas(64) uint16_t k_page[16], v_page[16];
    k_page[0] = 0;
    k_page[1] = mu_f32_to_f16(key);
    v_page[0] = mu_f32_to_f16(1.0f);
    v_page[1] = 0;
    const void *k_pages[] = {k_page}, *v_pages[] = {v_page};
    k->attn(&(struct mu_attn){.n_tok = 1,
                              .n_rep = BATCH,
                              .d_head = 1,
                              .pos0 = 1,
                              .page_tokens = 16,
                              .scale = 1.0f,
                              .softcap = 80.0f,
                              .q = x,
                              .q_stride = BATCH,
                              .out = out,
                              .out_stride = BATCH,
                              .k_page = k_pages,
                              .v_page = v_pages});
}

static void vectors_equal_scalar(void **state)
{
    (void)state;
    static float x[BATCH], ones[BATCH], e[BATCH], silu[BATCH], gelu[BATCH], erf_[BATCH], cs[2 * BATCH], up[BATCH],
        down[BATCH], got[2 * BATCH];
    for (int i = 0; i < BATCH; i++) ones[i] = 1.0f;
    const struct mu_kernels *const *tables = mu_kernels_available();
    for (uint64_t at = 0; next_batch(&at, x);) {
        for (int i = 0; i < BATCH; i++) {
            e[i] = mu_expf(x[i]);
            silu[i] = mu_siluf(x[i]);
            gelu[i] = mu_gelu_tanhf(x[i]);
            erf_[i] = mu_gelu_erff(x[i]);
            mu_sincosf(x[i], &cs[2 * i + 1], &cs[2 * i]);
        }
        tanh_weights(tables[0], x, 1.0f, up);
        tanh_weights(tables[0], x, -1.0f, down);
        for (int t = 0; tables[t]; t++) {
            const struct mu_kernels *k = tables[t];
            k->softmax_terms(x, BATCH, 0.0f, got);
            expect_same(k->name, "exp", x, e, got, 1);
            k->silu_mul(x, ones, BATCH, got);
            expect_same(k->name, "silu", x, silu, got, 1);
            k->gelu_tanh(x, NULL, BATCH, got);
            expect_same(k->name, "gelu (tanh)", x, gelu, got, 1);
            k->gelu_erf(x, NULL, BATCH, got);
            expect_same(k->name, "gelu (erf)", x, erf_, got, 1);
            k->rope_table(x, BATCH, 1, 1.0f, got);
            expect_same(k->name, "sin, cos", x, cs, got, 2);
            tanh_weights(k, x, 1.0f, got);
            expect_same(k->name, "tanh", x, up, got, 1);
            tanh_weights(k, x, -1.0f, got);
            expect_same(k->name, "tanh", x, down, got, 1);
        }
    }
}

/* Error in units of the last place of the exact value. */
static double ulps(float got, double want)
{
    int e;
    frexp(want, &e);
    return fabs((double)got - want) / ldexp(1.0, (e < -125 ? -125 : e) - FLT_MANT_DIG);
}

/* In the form that keeps its digits where x is negative. */
static double gelu_tanh_f64(double x)
{
    return x / (1 + exp(-2 * sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
}

static void accuracy_against_libm(void **state)
{
    (void)state;
    double worst_exp = 0, worst_log = 0, worst_tanh = 0, worst_silu = 0, worst_sincos = 0, worst_gelu = 0,
           worst_erf = 0;
    uint64_t step = stride() < 50 ? 101 : 2 * stride() + 1; /* libm is slow */
    for (uint64_t at = 0; at <= UINT32_MAX; at += step) {
        float x = float_of((uint32_t)at);
        if (!isfinite(x)) continue;
        if (x >= -87.0f && x <= 88.72283f) worst_exp = fmax(worst_exp, ulps(mu_expf(x), exp(x)));
        if (x > 0.0f) worst_log = fmax(worst_log, x == 1.0f ? 0.0 : ulps(mu_logf(x), log(x)));
        worst_tanh = fmax(worst_tanh, ulps(mu_tanhf(x), tanh(x)));
        if (x > -87.0f) worst_silu = fmax(worst_silu, ulps(mu_siluf(x), x / (1.0 + exp(-(double)x))));
        if (x > -5.0f) worst_gelu = fmax(worst_gelu, ulps(mu_gelu_tanhf(x), gelu_tanh_f64(x)));
        if (x > -5.0f) worst_erf = fmax(worst_erf, ulps(mu_gelu_erff(x), 0.5 * x * erfc(-x / sqrt(2.0))));
        if (fabsf(x) <= 1e6f) {
            float s, c;
            mu_sincosf(x, &s, &c);
            worst_sincos = fmax(worst_sincos, fmax(fabs(s - sin(x)), fabs(c - cos(x))));
        }
    }
    print_message("worst: exp %.3f log %.3f tanh %.3f silu %.3f ulp, sin and cos %.3g\n", worst_exp, worst_log,
                  worst_tanh, worst_silu, worst_sincos);
    if (!(worst_exp <= 2.0 && worst_log <= 2.0 && worst_tanh <= 2.0 && worst_silu <= 3.0)) fail_msg("over the limit");
    print_message("gelu above -5: tanh form %.3f, erf form %.3f ulp\n", worst_gelu, worst_erf);
    if (!(worst_gelu <= 64.0 && worst_erf <= 64.0)) fail_msg("gelu over the limit");
    if (!(worst_sincos <= 2e-7)) fail_msg("sin, cos over the limit");
}

static void edges(void **state)
{
    (void)state;
    assert_int_equal(bits_of(mu_expf(0.0f)), bits_of(1.0f));
    assert_int_equal(bits_of(mu_expf(nextafterf(-87.0f, -INFINITY))), 0);
    assert_int_equal(bits_of(mu_expf(-INFINITY)), 0);
    assert_true(mu_expf(-87.0f) >= FLT_MIN);
    assert_true(isfinite(mu_expf(0x1.62e42ep+6f)));
    assert_true(mu_expf(0x1.62e430p+6f) == INFINITY && mu_expf(1e30f) == INFINITY && mu_expf(INFINITY) == INFINITY);
    assert_true(isnan(mu_expf(NAN)) && isnan(mu_tanhf(NAN)) && isnan(mu_siluf(NAN)));
    assert_true(isnan(mu_gelu_tanhf(NAN)) && isnan(mu_gelu_erff(NAN)));
    assert_true(mu_gelu_tanhf(100.0f) == 100.0f && mu_gelu_erff(100.0f) == 100.0f);
    assert_true(mu_gelu_tanhf(-100.0f) == 0.0f && mu_gelu_erff(-100.0f) == 0.0f);
    assert_true(isnan(mu_expf(float_of(0x7f800001))) && isnan(mu_expf(float_of(0xffc12345))));
    assert_true(mu_tanhf(INFINITY) == 1.0f && mu_tanhf(-20.0f) == -1.0f);
    assert_int_equal(bits_of(mu_tanhf(-0.0f)), 0x80000000u);
    assert_int_equal(bits_of(mu_logf(1.0f)), 0);
    float s, c;
    mu_sincosf(0.0f, &s, &c);
    assert_true(s == 0.0f && c == 1.0f);
}

static void rope_frequencies(void **state)
{
    (void)state;
    static const double bases[] = {10000.0, 500000.0, 1e6, 1.5, 8e6};
    static const int rots[] = {2, 8, 48, 64, 80, 128, 256};
    for (size_t b = 0; b < sizeof bases / sizeof *bases; b++)
        for (size_t r = 0; r < sizeof rots / sizeof *rots; r++) {
            float freq[129], scaled[129], factors[128];
            int half = rots[r] / 2;
            for (int i = 0; i < half; i++) factors[i] = 1.0f + 0.37f * (float)i;
            freq[half] = scaled[half] = -7.0f;
            mu_rope_freqs(bases[b], rots[r], NULL, freq);
            mu_rope_freqs(bases[b], rots[r], factors, scaled);
            assert_true(freq[0] == 1.0f && freq[half] == -7.0f && scaled[half] == -7.0f);
            for (int i = 0; i < half; i++) {
                double want = pow(bases[b], -2.0 * i / rots[r]);
                if (!(ulps(freq[i], want) <= 0.5000001)) fail_msg("base %g n_rot %d freq[%d]", bases[b], rots[r], i);
                if (!(ulps(scaled[i], want / factors[i]) <= 0.5000001)) fail_msg("scaled base %g [%d]", bases[b], i);
            }
        }
}

static void random_units(void **state)
{
    (void)state;
    enum { N = 1 << 20, BINS = 64 };
    static int bin[BINS];
    double sum = 0;
    for (uint64_t i = 0; i < N; i++) {
        float u = mu_random_unit(42, i >> 10, i & 1023);
        if (!(u > 0.0f && u < 1.0f)) fail_msg("%a is not inside (0, 1)", (double)u);
        bin[(int)(u * BINS)]++;
        sum += (double)u;
    }
    if (!(fabs(sum / N - 0.5) < 0.0015)) fail_msg("mean %g", sum / N);
    double chi2 = 0;
    for (int b = 0; b < BINS; b++) chi2 += (bin[b] - N / BINS) * (double)(bin[b] - N / BINS) / (N / BINS);
    if (!(chi2 < 120.0)) fail_msg("chi² %g of 63 degrees", chi2);
    float a = mu_random_unit(1, 2, 3);
    assert_true(a == mu_random_unit(1, 2, 3));
    assert_true(a != mu_random_unit(2, 2, 3) && a != mu_random_unit(1, 3, 3) && a != mu_random_unit(1, 2, 4));
    /* every half of every argument matters */
    assert_true(a != mu_random_unit(1 | 1ull << 40, 2, 3) && a != mu_random_unit(1, 2 | 1ull << 40, 3));
    assert_true(a != mu_random_unit(1, 2, 3 | 1ull << 40));
    /* known answer of Philox-4x32-10 for a zero counter and key: first word 6627e8d5 */
    assert_true(mu_random_unit(0, 0, 0) == ((float)(0x6627e8d5u >> 9) + 0.5f) * 0x1p-23f);
}

/* What a fast-math library does when it is loaded. */
static void flush_to_zero(void)
{
#if defined(__x86_64__)
    __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | 0x8040);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)1 << 24));
#else
#error "set flush-to-zero on this processor"
#endif
}

static void fp_environment(void **state)
{
    (void)state;
    mu_fp_env_set();
    assert_true(mu_fp_env_ok());
    flush_to_zero();
    bool ok = mu_fp_env_ok();
    mu_fp_env_set();
    assert_false(ok);
    assert_true(mu_fp_env_ok());
    volatile float tiny = FLT_MIN, half = 0.5f;
    assert_true(tiny * half > 0.0f && mu_fp_env_ok());
}

/* MUSTER_TEST_NEEDS=avx2: fail, do not pass, where that table is absent. */
static void needed_table_runs(void **state)
{
    (void)state;
    const char *needs = getenv("MUSTER_TEST_NEEDS");
    bool there = !needs;
    for (const struct mu_kernels *const *k = mu_kernels_available(); *k; k++)
        if (needs && strcmp((*k)->name, needs) == 0) there = true;
    if (!there) fail_msg("the table '%s' does not run on this processor", needs);
}

int main(void)
{
    mu_fp_env_set();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(needed_table_runs),     cmocka_unit_test(edges),
        cmocka_unit_test(accuracy_against_libm), cmocka_unit_test(vectors_equal_scalar),
        cmocka_unit_test(rope_frequencies),      cmocka_unit_test(random_units),
        cmocka_unit_test(fp_environment),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
