/* The vector operations: every table against ref, bit for bit, at awkward sizes, between guard bands; and ref against
 * the formulas of the contract (C4, C6, C7) in double. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "kernels/random.h"

enum { MAX_N = 5000, GUARD = 24 };
static const int sizes[] = {1,  2,  7,  8,  9,   15,   16,   17,   31,   32,   33,
                            48, 63, 65, 80, 257, 1023, 1024, 1025, 1040, 2049, 5000};
enum { N_SIZES = sizeof sizes / sizeof *sizes };

/* A buffer whose both ends are watched. Offset by 4 bytes, so that nothing leans on alignment. */
struct guarded {
    float before[GUARD + 1], data[MAX_N], after[GUARD];
};

static uint64_t rng = 1;
static float uniform(float lo, float hi)
{
    rng = rng * 6364136223846793005ull + 1442695040888963407ull;
    return lo + (hi - lo) * (float)(rng >> 40) * 0x1p-24f;
}

static void fill(float *x, int n, float span)
{
    for (int i = 0; i < n; i++) x[i] = uniform(-span, span);
}

static void guard_set(struct guarded *g)
{
    memset(g, 0xa5, sizeof *g);
}

static void guard_check(const struct guarded *g, int n, const char *table, const char *what)
{
    const unsigned char *p = (const unsigned char *)g, *data = (const unsigned char *)g->data;
    const unsigned char *end = data + (size_t)n * sizeof(float);
    for (; p < (const unsigned char *)(g + 1); p++)
        if ((p < data || p >= end) && *p != 0xa5)
            fail_msg("%s %s of %d wrote outside, at byte %td", table, what, n, p - data);
}

static void expect_same(const void *want, const void *got, size_t n_bytes, const char *table, const char *what, int n)
{
    if (memcmp(want, got, n_bytes) != 0) fail_msg("%s: %s of %d differs from ref", table, what, n);
}

static const struct mu_kernels *ref;
static float x[MAX_N], y[MAX_N], want[MAX_N];
static struct guarded out;

#define FOR_TABLES(k) \
    for (const struct mu_kernels *const *all_ = mu_kernels_available(), *k; (k = *all_) != NULL; all_++)
#define FOR_SIZES(n) for (int si_ = 0, n; si_ < N_SIZES && (n = sizes[si_], true); si_++)

static void rms_norm(void **state)
{
    (void)state;
    FOR_SIZES(n)
    {
        fill(x, n, 3.0f);
        fill(y, n, 2.0f);
        FOR_TABLES(k)
        {
            guard_set(&out);
            assert_true(ref->rms_norm(x, y, n, 1e-5f, want));
            assert_true(k->rms_norm(x, y, n, 1e-5f, out.data));
            expect_same(want, out.data, (size_t)n * 4, k->name, "rms_norm", n);
            guard_check(&out, n, k->name, "rms_norm");
            memcpy(out.data, x, (size_t)n * 4);
            assert_true(k->rms_norm(out.data, y, n, 1e-5f, out.data));
            expect_same(want, out.data, (size_t)n * 4, k->name, "rms_norm in place", n);
        }
        double ss = 0;
        for (int i = 0; i < n; i++) ss += (double)x[i] * x[i];
        for (int i = 0; i < n; i++) {
            double exact = x[i] / sqrt(ss / n + 1e-5) * y[i];
            if (!(fabs(want[i] - exact) <= 1e-5 * fabs(exact) + 1e-12)) fail_msg("rms_norm of %d at %d", n, i);
        }
    }
}

static void rms_norm_refuses_nonfinite(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY, 3e38f};
    FOR_TABLES(k)
    {
        for (int at = 0; at < 37; at++)
            for (int b = 0; b < 4; b++) {
                fill(x, 37, 1.0f);
                x[at] = bad[b];
                assert_false(k->rms_norm(x, y, 37, 1e-5f, out.data));
            }
    }
}

static void layer_norm(void **state)
{
    static float b[MAX_N];
    (void)state;
    FOR_SIZES(n)
    {
        fill(x, n, 3.0f);
        fill(y, n, 2.0f);
        fill(b, n, 1.0f);
        for (int i = 0; i < n; i++) x[i] += 5.0f; /* a mean that matters */
        FOR_TABLES(k)
        {
            guard_set(&out);
            assert_true(ref->layer_norm(x, y, b, n, 1e-5f, want));
            assert_true(k->layer_norm(x, y, b, n, 1e-5f, out.data));
            expect_same(want, out.data, (size_t)n * 4, k->name, "layer_norm", n);
            guard_check(&out, n, k->name, "layer_norm");
            memcpy(out.data, x, (size_t)n * 4);
            assert_true(k->layer_norm(out.data, y, b, n, 1e-5f, out.data));
            expect_same(want, out.data, (size_t)n * 4, k->name, "layer_norm in place", n);
        }
        double mean = 0, ss = 0;
        for (int i = 0; i < n; i++) mean += (double)x[i] / n;
        for (int i = 0; i < n; i++) ss += (x[i] - mean) * (x[i] - mean);
        for (int i = 0; i < n; i++) {
            double exact = (x[i] - mean) / sqrt(ss / n + 1e-5) * y[i] + b[i];
            /* of one value the mean is the value: what is left is noise over sqrt(eps) */
            if (!(fabs(want[i] - exact) <= (n == 1 ? 1e-3 : 1e-5))) fail_msg("layer_norm of %d at %d", n, i);
        }
    }
}

static void layer_norm_refuses_nonfinite(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY, 3e38f};
    FOR_TABLES(k)
    {
        for (int at = 0; at < 37; at++)
            for (int i = 0; i < 4; i++) {
                fill(x, 37, 1.0f);
                x[at] = bad[i];
                assert_false(k->layer_norm(x, y, y, 37, 1e-5f, out.data));
            }
    }
}

static void rope(void **state)
{
    (void)state;
    static const struct {
        int d_head, n_rot, n_head;
    } shapes[] = {
        {2, 2, 1},   {8, 8, 3},   {8, 4, 3},   {48, 48, 2},   {64, 64, 3},
        {80, 20, 2}, {80, 80, 2}, {96, 96, 2}, {128, 128, 3}, {256, 64, 2},
    };
    for (size_t c = 0; c < sizeof shapes / sizeof *shapes; c++)
        for (int neox = 0; neox < 2; neox++) {
            int n = shapes[c].d_head * shapes[c].n_head, n_rot = shapes[c].n_rot;
            float freq[128], cs[256];
            mu_rope_freqs(10000.0, n_rot, NULL, freq);
            fill(x, n, 2.0f);
            FOR_TABLES(k)
            {
                ref->rope_table(freq, n_rot / 2, 777, 1.0f, cs);
                memcpy(want, x, (size_t)n * 4);
                ref->rope(want, shapes[c].n_head, shapes[c].d_head, n_rot, neox, cs);
                guard_set(&out);
                memcpy(out.data, x, (size_t)n * 4);
                k->rope(out.data, shapes[c].n_head, shapes[c].d_head, n_rot, neox, cs);
                expect_same(want, out.data, (size_t)n * 4, k->name, neox ? "rope neox" : "rope", n);
                guard_check(&out, n, k->name, "rope");
            }
            for (int h = 0; h < shapes[c].n_head; h++)
                for (int i = 0; i < n_rot / 2; i++) {
                    int base = h * shapes[c].d_head, ia = base + (neox ? i : 2 * i);
                    int ib = base + (neox ? i + n_rot / 2 : 2 * i + 1);
                    double angle = (double)(777.0f * freq[i]);
                    double a = x[ia] * cos(angle) - x[ib] * sin(angle), b = x[ia] * sin(angle) + x[ib] * cos(angle);
                    if (!(fabs(want[ia] - a) < 2e-6 && fabs(want[ib] - b) < 2e-6))
                        fail_msg("rope %zu head %d pair %d", c, h, i);
                }
            for (int i = n_rot; i < shapes[c].d_head; i++) assert_true(want[i] == x[i]);
        }
}

static void rope_table(void **state)
{
    (void)state;
    static const int positions[] = {0, 1, 255, 4096, 131071, 1000000};
    static const int pairs[] = {1, 4, 7, 8, 16, 24, 31, 32, 64, 128};
    for (int p = 0; p < 6; p++)
        for (int c = 0; c < 10; c++) {
            float freq[128];
            mu_rope_freqs(500000.0, 2 * pairs[c], NULL, freq);
            FOR_TABLES(k)
            {
                ref->rope_table(freq, pairs[c], positions[p], 1.1875f, want);
                guard_set(&out);
                k->rope_table(freq, pairs[c], positions[p], 1.1875f, out.data);
                expect_same(want, out.data, (size_t)pairs[c] * 8, k->name, "rope_table", pairs[c]);
                guard_check(&out, 2 * pairs[c], k->name, "rope_table");
            }
            for (int i = 0; i < pairs[c]; i++) {
                double angle = (double)((float)positions[p] * freq[i]);
                if (!(fabs(want[2 * i] - 1.1875 * cos(angle)) < 3e-7 &&
                      fabs(want[2 * i + 1] - 1.1875 * sin(angle)) < 3e-7))
                    fail_msg("rope_table position %d pair %d", positions[p], i);
            }
        }
}

static void silu_mul(void **state)
{
    (void)state;
    FOR_SIZES(n)
    {
        fill(x, n, 20.0f);
        fill(y, n, 2.0f);
        FOR_TABLES(k)
        {
            ref->silu_mul(x, y, n, want);
            guard_set(&out);
            memcpy(out.data, x, (size_t)n * 4);
            k->silu_mul(out.data, y, n, out.data);
            expect_same(want, out.data, (size_t)n * 4, k->name, "silu_mul", n);
            guard_check(&out, n, k->name, "silu_mul");
        }
        for (int i = 0; i < n; i++) {
            double exact = x[i] / (1 + exp(-(double)x[i])) * y[i];
            if (!(fabs(want[i] - exact) <= 4e-7 * fabs(exact) + 1e-30)) fail_msg("silu_mul at %d", i);
        }
    }
}

/* Inputs beyond both limits, and a NaN, which no limit turns into a number. */
static void silu_clamped_mul(void **state)
{
    (void)state;
    FOR_SIZES(n)
    {
        fill(x, n, 20.0f);
        fill(y, n, 20.0f);
        x[0] = n % 2 ? NAN : 7.0f;
        y[n - 1] = n % 3 ? -7.0f : NAN;
        FOR_TABLES(k)
        {
            ref->silu_clamped_mul(x, y, n, want);
            guard_set(&out);
            memcpy(out.data, x, (size_t)n * 4);
            k->silu_clamped_mul(out.data, y, n, out.data);
            expect_same(want, out.data, (size_t)n * 4, k->name, "silu_clamped_mul", n);
            guard_check(&out, n, k->name, "silu_clamped_mul");
        }
        for (int i = 0; i < n; i++) {
            double g = x[i] > 7 ? 7 : x[i], u = y[i] > 7 ? 7 : y[i] < -7 ? -7 : y[i];
            double exact = g / (1 + exp(-1.702 * g)) * (u + 1);
            if (isnan(exact) ? !isnan(want[i]) : !(fabs(want[i] - exact) <= 5e-6 * fabs(exact) + 1e-30)) /* e^-34 */
                fail_msg("silu_clamped_mul at %d: %g, expected %g", i, (double)want[i], exact);
        }
    }
}

/* Gated and not, both forms. */
static void gelu(void **state)
{
    (void)state;
    FOR_SIZES(n)
    {
        fill(x, n, 12.0f);
        fill(y, n, 2.0f);
        x[0] = -0.0f;
        for (int form = 0; form < 4; form++) {
            const float *up = form & 1 ? y : NULL;
            FOR_TABLES(k)
            {
                void (*fn)(const float *, const float *, int, float *) = form & 2 ? k->gelu_erf : k->gelu_tanh;
                (form & 2 ? ref->gelu_erf : ref->gelu_tanh)(x, up, n, want);
                guard_set(&out);
                memcpy(out.data, x, (size_t)n * 4);
                fn(out.data, up, n, out.data);
                expect_same(want, out.data, (size_t)n * 4, k->name, form & 2 ? "gelu_erf" : "gelu_tanh", n);
                guard_check(&out, n, k->name, "gelu");
            }
            for (int i = 0; i < n; i++) {
                double v = x[i], exact = form & 2 ? 0.5 * v * erfc(-v / sqrt(2))
                                                  : 0.5 * v * (1 + tanh(sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
                if (up) exact *= up[i];
                if (!(fabs(want[i] - exact) <= 4e-7 * fabs(v) * 2)) fail_msg("gelu form %d of %g", form, v);
            }
        }
    }
}

static void soft_cap(void **state)
{
    (void)state;
    FOR_SIZES(n)
    {
        fill(x, n, 90.0f);
        FOR_TABLES(k)
        {
            memcpy(want, x, (size_t)n * 4);
            ref->soft_cap(want, n, 30.0f);
            guard_set(&out);
            memcpy(out.data, x, (size_t)n * 4);
            k->soft_cap(out.data, n, 30.0f);
            expect_same(want, out.data, (size_t)n * 4, k->name, "soft_cap", n);
            guard_check(&out, n, k->name, "soft_cap");
        }
        for (int i = 0; i < n; i++)
            if (!(fabs(want[i] - 30 * tanh(x[i] / 30.0)) <= 1e-5)) fail_msg("soft_cap of %g", (double)x[i]);
    }
}

static void add(void **state)
{
    (void)state;
    static uint16_t half[MAX_N];
    FOR_SIZES(n)
    {
        fill(x, n, 4.0f);
        fill(y, n, 1.0f);
        y[0] = 0x1.01p0f;            /* a tie: to even, down */
        if (n > 1) y[1] = 0x1.03p0f; /* a tie: to even, up */
        if (n > 2) y[2] = 0x1p-140f;
        for (int i = 0; i < n; i++) half[i] = mu_f32_to_bf16(y[i]);
        FOR_TABLES(k)
        {
            for (int round = 0; round < 2; round++) {
                memcpy(want, x, (size_t)n * 4);
                ref->add(want, y, n, round);
                guard_set(&out);
                memcpy(out.data, x, (size_t)n * 4);
                k->add(out.data, y, n, round);
                expect_same(want, out.data, (size_t)n * 4, k->name, round ? "add rounded" : "add", n);
                guard_check(&out, n, k->name, "add");
            }
            memcpy(want, x, (size_t)n * 4);
            ref->add_scaled(want, y, 0.37f, n);
            guard_set(&out);
            memcpy(out.data, x, (size_t)n * 4);
            k->add_scaled(out.data, y, 0.37f, n);
            expect_same(want, out.data, (size_t)n * 4, k->name, "add_scaled", n);
            guard_check(&out, n, k->name, "add_scaled");
            assert_true(want[n - 1] == fmaf(0.37f, y[n - 1], x[n - 1]));
            memcpy(want, x, (size_t)n * 4);
            ref->add(want, y, n, 1);
            guard_set(&out);
            memcpy(out.data, x, (size_t)n * 4);
            k->add_bf16(out.data, half, n); /* the same as rounding on arrival */
            expect_same(want, out.data, (size_t)n * 4, k->name, "add_bf16", n);
            guard_check(&out, n, k->name, "add_bf16");
            memcpy(out.data, x, (size_t)n * 4);
            float keep = y[n - 1];
            memset(&y[n - 1], 0xff, 4); /* a NaN whose rounding would carry into the sign */
            k->add(out.data, y, n, 1);
            y[n - 1] = keep;
            assert_true(isnan(out.data[n - 1]));
        }
        assert_true(want[0] == x[0] + 1.0f);
        if (n > 1) assert_true(want[1] == x[1] + 0x1.04p0f);
    }
}

static void kv_store(void **state)
{
    (void)state;
    static const int d_heads[] = {1, 8, 48, 64, 80, 96, 100, 128, 256, 512};
    enum { PAGE = 64 };
    static uint16_t kp[2][PAGE * 512 + 32], vp[2][PAGE * 512 + 32];
    for (int c = 0; c < 20; c++) {
        int d_head = d_heads[c % 10];
        enum mu_kv_type kv = c < 10 ? MU_KV_F16 : MU_KV_Q8_0;
        FOR_TABLES(k)
        {
            memset(kp, 0xff, sizeof kp);
            memset(vp, 0xff, sizeof vp);
            for (int pos = 0; pos < PAGE; pos += pos % 16 == 0 ? 7 : 3) {
                fill(x, d_head, 100.0f);
                fill(y, d_head, 0.001f); /* subnormal in f16 */
                x[0] = 1e6f;             /* infinity in f16 */
                if (pos == 13 && d_head > 40) x[40] = NAN, y[d_head - 1] = INFINITY;
                ref->kv_store(kv, x, y, d_head, pos, kp[0], vp[0]);
                k->kv_store(kv, x, y, d_head, pos, kp[1], vp[1]);
            }
            expect_same(kp[0], kp[1], sizeof kp[0], k->name, "kv_store keys", d_head);
            expect_same(vp[0], vp[1], sizeof vp[0], k->name, "kv_store values", d_head);
        }
        if (kv != MU_KV_F16) continue;
        ref->kv_store(kv, x, y, d_head, 37, kp[0], vp[0]);
        assert_int_equal(kp[0][2 * d_head * 16 + (d_head - 1) * 16 + 5], mu_f32_to_f16(x[d_head - 1]));
        assert_int_equal(vp[0][37 * d_head + d_head - 1], mu_f32_to_f16(y[d_head - 1]));
    }
}

static void argmax(void **state)
{
    (void)state;
    FOR_SIZES(n)
    {
        FOR_TABLES(k)
        {
            float max = 0, max_ref = 0;
            for (int trial = 0; trial < 8; trial++) {
                fill(x, n, 5.0f);
                if (trial > 4)
                    for (int i = 0; i < n; i++) x[i] = -1.0f - (float)(i % 5); /* many ties, all negative */
                if (trial == 4) memset(x, 0, (size_t)n * 4);
                if (trial == 6) x[n - 1] = 0.0f, x[n / 2] = -0.0f; /* equal, signs differ */
                int at = ref->argmax(x, n, &max_ref);
                assert_int_equal(k->argmax(x, n, &max), at);
                expect_same(&max_ref, &max, 4, k->name, "argmax", n);
                assert_true(at >= 0 && max == x[at]);
                for (int i = 0; i < n; i++) assert_true(i < at ? x[i] < max : x[i] <= max);
            }
            static const float bad[] = {NAN, INFINITY, -INFINITY};
            for (int b = 0; b < 3; b++)
                for (int at = 0; at < n; at += 1 + n / 40) {
                    float keep = x[at];
                    x[at] = bad[b];
                    assert_int_equal(k->argmax(x, n, &max), -1);
                    x[at] = keep;
                }
        }
    }
}

static void softmax_terms(void **state)
{
    (void)state;
    FOR_SIZES(n)
    {
        fill(x, n, 30.0f);
        float max = 0;
        double exact = 0;
        FOR_TABLES(k)
        {
            assert_true(ref->argmax(x, n, &max) >= 0);
            float sum = ref->softmax_terms(x, n, max, want);
            guard_set(&out);
            memcpy(out.data, x, (size_t)n * 4);
            float got = k->softmax_terms(out.data, n, max, out.data);
            expect_same(want, out.data, (size_t)n * 4, k->name, "softmax_terms", n);
            expect_same(&sum, &got, 4, k->name, "softmax_terms' sum", n);
            guard_check(&out, n, k->name, "softmax_terms");
            exact = 0;
            for (int i = 0; i < n; i++) exact += exp((double)x[i] - max);
            if (!(fabs(sum - exact) <= 1e-5 * exact)) fail_msg("sum of %d: %g, exact %g", n, (double)sum, exact);
        }
    }
}

/* Every table against the definition, without ref's loop. */
static int drawn(int n, const struct mu_draw *d, float *sum_out)
{
    int at = -1;
    for (int i = n - 1; i >= 0; i--) {
        float u = mu_random_unit(d->seed, d->position, (uint64_t)d->first + (uint64_t)i);
        float sum = x[i] / d->temperature - mu_logf(-mu_logf(u));
        if (x[i] == -FLT_MAX || (at >= 0 && sum < *sum_out)) continue;
        at = i;
        *sum_out = sum;
    }
    return at;
}

static void draw(void **state)
{
    (void)state;
    static const uint64_t keys[] = {0, 42, 1ull << 32, UINT64_MAX};
    static const float temperatures[] = {1e-38f, 0.3f, 1.0f, 30.0f}, spans[] = {0.0f, 1.0f, 12.0f, 300.0f};
    FOR_SIZES(n)
    {
        for (int i = 0; i < 64; i++) {
            struct mu_draw d = {keys[i % 4], keys[i / 16], (uint32_t)i * 0x01fffffdu, temperatures[i / 4 % 4]};
            fill(x, n, spans[(i + i / 4) % 4]);
            for (int j = 0; j < n; j++)
                if (i % 3 == 1 && (j / 40 + i) % 4 != 0) x[j] = -FLT_MAX;
            float sum_want = 0;
            int at = drawn(n, &d, &sum_want);
            FOR_TABLES(k)
            {
                float sum = 0;
                assert_int_equal(k->draw(x, n, &d, &sum), at);
                expect_same(&sum_want, &sum, sizeof sum, k->name, "draw", n);
            }
        }
    }
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
    ref = mu_kernels_available()[0];
    mu_fp_env_set();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(needed_table_runs),
        cmocka_unit_test(rms_norm),
        cmocka_unit_test(rms_norm_refuses_nonfinite),
        cmocka_unit_test(layer_norm),
        cmocka_unit_test(layer_norm_refuses_nonfinite),
        cmocka_unit_test(rope),
        cmocka_unit_test(rope_table),
        cmocka_unit_test(silu_mul),
        cmocka_unit_test(silu_clamped_mul),
        cmocka_unit_test(gelu),
        cmocka_unit_test(soft_cap),
        cmocka_unit_test(add),
        cmocka_unit_test(kv_store),
        cmocka_unit_test(argmax),
        cmocka_unit_test(softmax_terms),
        cmocka_unit_test(draw),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
