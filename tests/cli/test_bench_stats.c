/* Lists and lengths as people write them, percentiles, arrivals, targets, and the scale of a chart. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "cli/bench_stats.h"
#include "cli/bench_svg.h"

static struct mu_err err;

static void near(double got, double want, double tol)
{
    if (!(fabs(got - want) <= tol)) fail_msg("%.9g, expected %.9g", got, want);
}

static void lengths(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int value; /* -1: refused */
    } cases[] = {{"0", 0},
                 {"17", 17},
                 {"1k", 1024},
                 {"128K", 131072},
                 {"2m", 2097152},
                 {"", -1},
                 {"k", -1},
                 {"-1", -1},
                 {"1.5k", -1},
                 {"1kb", -1},
                 {" 1", -1},
                 {"3m", -1},
                 {"9999999999999999999", -1},
                 {"4k ", -1},
                 {"2097152", 2097152}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int v = -7;
        enum mu_status st = mu_bench_length(cases[i].text, 0, 2 << 20, "--x", &v, &err);
        if (cases[i].value < 0) {
            if (st != MU_EINVAL) fail_msg("'%s' was taken as %d", cases[i].text, v);
            assert_non_null(strstr(err.text, "--x"));
        } else if (st || v != cases[i].value) {
            fail_msg("'%s' is %d, not %d: %s", cases[i].text, v, cases[i].value, st ? err.text : "");
        }
    }
    char text[16];
    mu_bench_length_format(4096, text, sizeof text);
    assert_string_equal(text, "4k");
    mu_bench_length_format(1000, text, sizeof text);
    assert_string_equal(text, "1000");
    mu_bench_length_format(1 << 20, text, sizeof text);
    assert_string_equal(text, "1m");
}

static void expect_list(const char *text, int n, const int *want)
{
    struct mu_bench_list l;
    if (mu_bench_list(text, 0, 1 << 20, "--x", &l, &err)) fail_msg("'%s': %s", text, err.text);
    if (l.n != n) fail_msg("'%s' has %d values, not %d", text, l.n, n);
    for (int i = 0; i < n; i++)
        if (l.at[i] != want[i]) fail_msg("'%s': value %d is %d, not %d", text, i, l.at[i], want[i]);
}

static void lists(void **state)
{
    (void)state;
    expect_list("5", 1, (int[]){5});
    expect_list("1,2,4", 3, (int[]){1, 2, 4});
    expect_list("1k,4k,32k", 3, (int[]){1024, 4096, 32768});
    expect_list("1,2,4,...,64", 7, (int[]){1, 2, 4, 8, 16, 32, 64});
    expect_list("1,2,4,…,64", 7, (int[]){1, 2, 4, 8, 16, 32, 64});
    expect_list("1,2,..,5", 4, (int[]){1, 2, 4, 5});
    expect_list("1k,4k,...,64k", 4, (int[]){1024, 4096, 16384, 65536});
    static const char *const bad[] = {
        "",          ",",       "1,",       "1,,2",          "1,x", "...,4",        "1,...,4",    "2,1,...,4",
        "0,1,...,4", "1,2,...", "1,2,...,", "1,2,...,...,8", "1;2", "1,2,4,....,8", "1000000000", "3,4,...,1000000"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct mu_bench_list l;
        if (mu_bench_list(bad[i], 0, 1 << 20, "--x", &l, &err) != MU_EINVAL) fail_msg("'%s' was taken", bad[i]);
    }
    char many[256] = "1";
    for (int i = 1; i < MU_BENCH_MAX_LIST; i++) strcat(many, ",1");
    struct mu_bench_list l;
    assert_int_equal(mu_bench_list(many, 0, 9, "--x", &l, &err), MU_OK);
    assert_int_equal(l.n, MU_BENCH_MAX_LIST);
    strcat(many, ",1");
    assert_int_equal(mu_bench_list(many, 0, 9, "--x", &l, &err), MU_EINVAL);
    struct mu_bench_rates r;
    assert_int_equal(mu_bench_rates("0.5,2,10", "--rate", &r, &err), MU_OK);
    assert_int_equal(r.n, 3);
    near(r.at[0], 0.5, 0);
    assert_int_equal(mu_bench_rates("0", "--rate", &r, &err), MU_EINVAL);
    assert_int_equal(mu_bench_rates("nan", "--rate", &r, &err), MU_EINVAL);
    assert_int_equal(mu_bench_rates("1,", "--rate", &r, &err), MU_EINVAL);
}

/* As `mpirun --oversubscribe --host …` did it, over tests/links. */
static void hosts(void **state)
{
    (void)state;
    static const struct {
        const char *text, *machine; /* of each rank */
        int n;
    } cases[] = {{"a", "000", 1},      {"a,b", "01", 2},    {"a,b", "0011", 2},    {"a:2,b:2", "0011", 2},
                 {"a:2,b", "0001", 2}, {"a,b,a", "001", 2}, {"a,b,c", "00112", 3}, {"a:3,b:3", "00", 1},
                 {"a,b", "00011", 2},  {"ab,a", "01", 2},   {"a:*,b", "000", 1},   {"a,b,c", "01", 2}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int machine[8], n_rank = (int)strlen(cases[i].machine);
        assert_int_equal(mu_bench_hosts(cases[i].text, n_rank, machine), cases[i].n);
        for (int k = 0; k < n_rank; k++)
            if (machine[k] != cases[i].machine[k] - '0') fail_msg("'%s': rank %d on %d", cases[i].text, k, machine[k]);
    }
}

static void ranges_and_times(void **state)
{
    (void)state;
    struct mu_bench_range r;
    assert_int_equal(mu_bench_range("128..2k", 1, 1 << 20, "--input", &r, &err), MU_OK);
    assert_int_equal(r.min, 128);
    assert_int_equal(r.max, 2048);
    assert_int_equal(mu_bench_range("7", 1, 1 << 20, "--input", &r, &err), MU_OK);
    assert_int_equal(r.max, 7);
    static const char *const bad[] = {"", "0..4", "9..3", "1-4", "1..", "..4", "1..4x", "a..b"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (mu_bench_range(bad[i], 1, 1 << 20, "--input", &r, &err) != MU_EINVAL) fail_msg("'%s' was taken", bad[i]);
    struct mu_bench_slo slo;
    assert_int_equal(mu_bench_slo("ttft=500ms,itl=50ms", &slo, &err), MU_OK);
    assert_int_equal(slo.ttft_ns, 500000000);
    assert_int_equal(slo.itl_ns, 50000000);
    assert_int_equal(slo.tpot_ns, 0);
    assert_int_equal(mu_bench_slo("tpot=250us,e2e=1.5s", &slo, &err), MU_OK);
    assert_int_equal(slo.tpot_ns, 250000);
    assert_int_equal(slo.e2e_ns, 1500000000);
    static const char *const bad_slo[] = {"",         "ttft",    "ttft=5",   "ttft=5ms,", "p99=5ms", "ttft=5ms itl=1ms",
                                          "ttft=",    "ttft=ms", "ttft=-1s", "ttft=0s",   "ttft=1m", "ttft=nans",
                                          "ttft=1e9s"};
    for (size_t i = 0; i < sizeof bad_slo / sizeof *bad_slo; i++)
        if (mu_bench_slo(bad_slo[i], &slo, &err) != MU_EINVAL) fail_msg("'%s' was taken", bad_slo[i]);
}

static void targets(void **state)
{
    (void)state;
    double gap[100];
    for (int i = 0; i < 100; i++) gap[i] = i < 99 ? 10 : 1000; /* one in a hundred is long */
    struct mu_bench_slo slo = {.ttft_ns = 100000000, .itl_ns = 30000000};
    assert_true(mu_bench_slo_met(&slo, 100, 1, 1e6, gap, 100));
    assert_false(mu_bench_slo_met(&slo, 100.1, 1, 1, gap, 100));
    gap[98] = 1000; /* two */
    assert_false(mu_bench_slo_met(&slo, 10, 1, 1, gap, 100));
    assert_true(mu_bench_slo_met(&slo, 10, 1, 1, gap, 0));
    slo = (struct mu_bench_slo){.tpot_ns = 5000000, .e2e_ns = 1000000000};
    assert_true(mu_bench_slo_met(&slo, 1e9, 5, 1000, gap, 100));
    assert_false(mu_bench_slo_met(&slo, 1, 5.1, 10, gap, 100));
    assert_false(mu_bench_slo_met(&slo, 1, 1, 1001, gap, 100));
    assert_false(mu_bench_slo_met(&slo, 1, NAN, 10, gap, 100));
}

/* Values of numpy.percentile([…], p). */
static void percentiles(void **state)
{
    (void)state;
    double v[] = {15, 20, 35, 40, 50}, one[] = {3};
    near(mu_bench_percentile(v, 5, 0), 15, 0);
    near(mu_bench_percentile(v, 5, 50), 35, 0);
    near(mu_bench_percentile(v, 5, 40), 29, 1e-12);
    near(mu_bench_percentile(v, 5, 99), 49.6, 1e-12);
    near(mu_bench_percentile(v, 5, 100), 50, 0);
    near(mu_bench_percentile(one, 1, 99), 3, 0);
    double mixed[] = {40, 15, 50, 20};
    struct mu_bench_spread s = mu_bench_spread_of(mixed, 4);
    near(s.mean, 31.25, 1e-12);
    near(s.median, 30, 1e-12);
    near(s.min, 15, 0);
    near(s.max, 50, 0);
    near(mu_bench_noise(&s), 35.0 / 30, 1e-12);
    s = mu_bench_spread_of(mixed, 0);
    near(s.mean + s.median + s.p99, 0, 0);
    s = mu_bench_spread_of(one, 1);
    near(mu_bench_noise(&s), 0, 0);
}

/* The first outputs of SplitMix64 for seed 1234567 (the generator's published check). */
static void chance(void **state)
{
    (void)state;
    struct mu_bench_random r = {1234567};
    assert_true(mu_bench_random_next(&r) == 6457827717110365317u);
    assert_true(mu_bench_random_next(&r) == 3203168211198807973u);
    const struct mu_bench_range range = {3, 5};
    int seen[6] = {0};
    for (int i = 0; i < 3000; i++) {
        int v = mu_bench_random_in(&r, &range);
        assert_true(v >= 3 && v <= 5);
        seen[v]++;
        double u = mu_bench_random_unit(&r);
        assert_true(u > 0 && u <= 1);
    }
    for (int v = 3; v <= 5; v++) assert_true(seen[v] > 900);
}

static void arrivals(void **state)
{
    (void)state;
    enum { N = 20000 };
    struct mu_bench_arrivals a = mu_bench_arrivals_begin(50, N, 7), b = mu_bench_arrivals_begin(50, N, 7),
                             other = mu_bench_arrivals_begin(50, N, 8), open = mu_bench_arrivals_begin(50, 0, 7);
    int64_t before = 0;
    int same = 0, in_second[N / 50 + 2] = {0};
    for (int i = 0; i < N; i++) {
        int64_t t = mu_bench_arrivals_next_ns(&a);
        assert_true(t == mu_bench_arrivals_next_ns(&b)); /* by seed */
        same += t == mu_bench_arrivals_next_ns(&other);
        mu_bench_arrivals_next_ns(&open);
        assert_true(t >= before);
        before = t;
        in_second[t / 1000000000]++;
    }
    assert_true(same < 10);
    near((double)before / 1e9, N / 50.0, 1e-3);               /* stretched: the last one comes on time */
    near((double)open.now_ns / 1e9, N / 50.0, N / 50 * 0.03); /* else within what chance allows */
    double mean = 0, var = 0; /* counts a second of a Poisson process vary as much as their mean */
    for (int i = 0; i < N / 50; i++) mean += in_second[i] / (N / 50.0);
    for (int i = 0; i < N / 50; i++) var += (in_second[i] - mean) * (in_second[i] - mean) / (N / 50.0);
    near(mean, 50, 0.5);
    near(var, 50, 12);
}

static void scale(void **state)
{
    (void)state;
    static const struct {
        double most, end, step;
    } cases[] = {{0, 1, 0.2},         {1, 1, 0.2},       {1.01, 1.5, 0.5}, {7, 8, 2},
                 {10, 10, 2},         {99, 100, 20},     {101, 150, 50},   {1234, 1500, 500},
                 {0.042, 0.05, 0.01}, {3.9e6, 4e6, 1e6}, {-5, 1, 0.2},     {NAN, 1, 0.2}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double end, step;
        mu_chart_scale(cases[i].most, &end, &step);
        if (!(fabs(end - cases[i].end) <= 1e-9 * cases[i].end && fabs(step - cases[i].step) <= 1e-9 * cases[i].step))
            fail_msg("up to %g: %g by %g, not %g by %g", cases[i].most, end, step, cases[i].end, cases[i].step);
    }
    char text[32];
    static const struct {
        double v;
        const char *text;
    } numbers[] = {{0, "0"},        {0.4217, "0.42"}, {9.994, "9.99"}, {9.996, "10.0"},
                   {99.94, "99.9"}, {99.96, "100"},   {1234.5, "1234"}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        mu_chart_number(numbers[i].v, text, sizeof text);
        assert_string_equal(text, numbers[i].text);
    }
}

/* Names of a model may hold anything; values may be missing; a picture that is too large says so. */
static void picture(void **state)
{
    (void)state;
    static struct mu_picture p = {.title = "a <b> & \"c\" \x01", .n_chart = 2};
    for (int i = 0; i < 2; i++) {
        struct mu_chart *c = &p.chart[i];
        c->kind = i ? MU_CHART_LINES : MU_CHART_BARS;
        c->n_x = 2;
        c->n_series = 1;
        strcpy(c->x[0], "1");
        strcpy(c->x[1], "<2>");
        strcpy(c->series[0].name, "s&t");
        c->series[0].y[0] = 5;
        c->series[0].y[1] = -1;
        c->series[0].limit[0] = 10;
    }
    struct mu_writer w;
    mu_writer_init(&w, 1 << 20);
    mu_svg_write(&p, &w);
    mu_write_bytes(&w, "", 1);
    assert_true(w.ok);
    const char *svg = (const char *)w.data;
    assert_non_null(strstr(svg, "a &lt;b&gt; &amp; \"c\" ?"));
    assert_non_null(strstr(svg, ">&lt;2&gt;<"));
    assert_non_null(strstr(svg, "5.00 (50%)"));
    assert_null(strstr(svg, "nan"));
    assert_null(strstr(svg, "-1.00"));
    assert_non_null(strstr(svg, "prefers-color-scheme: dark"));
    mu_writer_free(&w);
    mu_writer_init(&w, 1000);
    mu_svg_write(&p, &w);
    assert_false(w.ok);
    mu_writer_free(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(lengths), cmocka_unit_test(lists),
                                       cmocka_unit_test(hosts),   cmocka_unit_test(ranges_and_times),
                                       cmocka_unit_test(targets), cmocka_unit_test(percentiles),
                                       cmocka_unit_test(chance),  cmocka_unit_test(arrivals),
                                       cmocka_unit_test(scale),   cmocka_unit_test(picture)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
