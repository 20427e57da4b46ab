/* What a case has to do, counted by hand for the demonstration model; waiting told from moving; the rule of the limit. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cli/bench.h"
#include "kernels/kernels.h"

static struct mu_model *model;
static struct mu_err err;

static void near(double got, double want, double part)
{
    if (!(fabs(got - want) <= part * fabs(want))) fail_msg("%.9g, expected %.9g", got, want);
}

static struct mu_plan plan_of(const char *text)
{
    struct mu_split split;
    struct mu_plan plan;
    if (mu_split_parse(text, &split, &err) || mu_plan_build(model, &split, &plan, &err)) fail_msg("%s", err.text);
    return plan;
}

/* 4 layers of 256, 8 query and 2 key heads of 32, feed-forward 768, vocabulary 1024; all Q8_0. */
enum { L = 4, D = 256, KV = 64, FF = 768, V = 1024 };
static const double QKV = D * (D + 2.0 * KV), AFTER = D * D + 3.0 * D * FF;

static void work_of_decodes(void **state)
{
    (void)state;
    struct mu_plan one = plan_of("1"), two = plan_of("1:1"), stages = plan_of("1/1");
    const struct mu_bench_case c = {MU_BENCH_DECODE, 10, 3, 100};
    struct mu_bench_work w, v;
    mu_bench_work(model, &one, &c, 1, MU_KV_F16, &w);
    near(w.int8_ops, 2 * 30 * (L * (QKV + AFTER) + (double)D * V), 1e-12);
    double seen = 0; /* of 3 streams: position 100 sees 101 tokens */
    for (int i = 0; i < 10; i++) seen += 3.0 * (100 + i + 1);
    near(w.f32_ops, seen * L * 4 * D, 1e-12);
    near(w.kv_bytes, seen * L * 2 * KV * 2, 1e-12);
    near(w.weight_bytes, 10 * (L * (QKV + AFTER) + (double)D * V) * 34 / 32, 0.1); /* Q8_0, and what packing adds */
    mu_bench_work(model, &two, &c, 1, MU_KV_F16, &v);                              /* as many rows, on two ranks */
    near(v.int8_ops, w.int8_ops, 1e-12);
    near(v.f32_ops, w.f32_ops, 1e-12);
    near(v.kv_bytes, w.kv_bytes, 1e-12);
    const struct mu_bench_case three = {MU_BENCH_DECODE, 1, 3, 0}, single = {MU_BENCH_DECODE, 1, 1, 0},
                               prompt = {MU_BENCH_PROMPT, 1300, 1, 0};
    assert_int_equal(mu_bench_groups(&stages, &three, true), 2);
    assert_int_equal(mu_bench_groups(&stages, &single, true), 1);
    assert_int_equal(mu_bench_groups(&stages, &three, false), 1);
    assert_int_equal(mu_bench_groups(&stages, &prompt, false), 3);
    assert_true(mu_bench_groups(&stages, &prompt, true) > 6); /* or stages would wait for each other */
    mu_bench_work(model, &stages, &c, 2, MU_KV_F16, &v);      /* each group of streams reads all weights */
    near(v.weight_bytes, 2 * w.weight_bytes, 0.01);
    near(v.kv_bytes, w.kv_bytes, 1e-12);
}

static void work_of_prompts(void **state)
{
    (void)state;
    struct mu_plan one = plan_of("1");
    const struct mu_bench_case c = {MU_BENCH_PROMPT, 500, 1, 0};
    struct mu_bench_work w;
    mu_bench_work(model, &one, &c, 1, MU_KV_F16, &w);
    near(w.int8_ops, 2 * (500.0 * (L * QKV + (L - 1) * AFTER) + AFTER + (double)D * V), 1e-12);
    near(w.f32_ops, 500.0 * 501 / 2 * L * 4 * D, 1e-12);
    near(w.kv_bytes, 0, 0);
    model->cfg.window = 64; /* then a query sees so many keys and no more */
    mu_bench_work(model, &one, &c, 1, MU_KV_F16, &w);
    model->cfg.window = 0;
    near(w.f32_ops, (64.0 * 65 / 2 + 436 * 64) * L * 4 * D, 1e-12);
}

static void bounds(void **state)
{
    (void)state;
    const struct mu_bench_work w = {.weight_bytes = 8e9, .kv_bytes = 2e9, .int8_ops = 3e12, .f32_ops = 1e11};
    struct mu_bench_limits l = {.read_gbps = 20, .int8_gops = 6000, .f32_gflops = 1000};
    struct mu_bench_bound b = mu_bench_bound(&w, &l);
    near(b.read_s, 0.5, 1e-12);
    near(b.int8_s, 0.5, 1e-12);
    near(b.f32_s, 0.1, 1e-12);
    near(b.s, 0.6, 1e-12); /* int8 and f32 work share the cores */
    l.read_gbps = 10;
    near(mu_bench_bound(&w, &l).s, 1, 1e-12);
    l = (struct mu_bench_limits){0};
    near(mu_bench_bound(&w, &l).s, 0, 0);
}

/* Layers that are streamed come in every step, beside what is read there. */
static void bounds_of_streams(void **state)
{
    (void)state;
    struct mu_bench_limits gpu[MU_MAX_GPUS] = {{.read_gbps = 2000, .int8_gops = 6e5, .f32_gflops = 1e5, .up_gbps = 20}};
    const struct mu_bench_limits cpu = {0};
    const struct mu_bench_case c = {MU_BENCH_DECODE, 10, 4, 100};
    struct mu_bench_work stay, come;
    struct mu_plan plan = plan_of("1@gpu0");
    mu_bench_work(model, &plan, &c, 1, MU_KV_F16, &stay);
    near(stay.streamed_bytes, 0, 0);
    double before = mu_bench_bound(&stay, &gpu[0]).s;
    plan = plan_of("1@gpu0~3"); /* of which two move */
    mu_bench_work(model, &plan, &c, 1, MU_KV_F16, &come);
    near(come.weight_bytes, stay.weight_bytes, 1e-12);
    assert_true(come.streamed_bytes > stay.weight_bytes / L && come.streamed_bytes < stay.weight_bytes);
    struct mu_bench_bound b = mu_bench_bound_places(model, &plan, &c, 1, false, MU_KV_F16, &cpu, gpu);
    near(b.read_s, come.streamed_bytes / 20e9, 1e-12);
    near(b.s, b.read_s, 1e-12);
    gpu[0].up_gbps = 1e6;
    near(mu_bench_bound_places(model, &plan, &c, 1, false, MU_KV_F16, &cpu, gpu).s, before, 1e-12);
}

/* A GPU that reads a hundred times as fast, and computes so. */
static void bounds_of_places(void **state)
{
    (void)state;
    const struct mu_bench_limits cpu = {.read_gbps = 20, .int8_gops = 6000, .f32_gflops = 1000};
    struct mu_bench_limits gpu[MU_MAX_GPUS] = {{.read_gbps = 2000, .int8_gops = 6e5, .f32_gflops = 1e5},
                                               {.read_gbps = 2000, .int8_gops = 6e5, .f32_gflops = 1e5}};
    const struct mu_bench_case c = {MU_BENCH_DECODE, 10, 4, 100}, prompt = {MU_BENCH_PROMPT, 400, 1, 0};
    struct mu_plan plan = plan_of("1/1");
    struct mu_bench_work w;
    mu_bench_work(model, &plan, &c, 2, MU_KV_F16, &w); /* on one place: all of its work at once */
    near(mu_bench_bound_places(model, &plan, &c, 2, true, MU_KV_F16, &cpu, gpu).s, mu_bench_bound(&w, &cpu).s, 1e-12);
    plan = plan_of("1@gpu0");
    mu_bench_work(model, &plan, &c, 1, MU_KV_F16, &w);
    near(mu_bench_bound_places(model, &plan, &c, 1, true, MU_KV_F16, &cpu, gpu).s, mu_bench_bound(&w, &gpu[0]).s,
         1e-12);
    double one = mu_bench_bound(&w, &gpu[0]).s;
    plan = plan_of("1@gpu0:1@gpu1"); /* side by side: half, but for what both hold */
    near(mu_bench_bound_places(model, &plan, &c, 1, true, MU_KV_F16, &cpu, gpu).s, one / 2, 0.05);
    plan =
        plan_of("1@gpu0/1@gpu1"); /* one after the other, in two groups that read all weights each: beside each other */
    double both = mu_bench_bound_places(model, &plan, &c, 1, true, MU_KV_F16, &cpu, gpu).s;
    near(both, one, 0.05);
    assert_true(mu_bench_bound_places(model, &plan, &c, 2, true, MU_KV_F16, &cpu, gpu).s < 1.3 * both);
    plan = plan_of("1@gpu0/1"); /* the processors are what counts */
    struct mu_bench_bound b = mu_bench_bound_places(model, &plan, &c, 1, true, MU_KV_F16, &cpu, gpu);
    assert_true(b.s > 30 * one && b.s < 90 * one);
    assert_true(b.read_s > 0.9 * b.s);
    /* a prompt of one chunk goes through stage by stage */
    plan = plan_of("1@gpu0/1@gpu1");
    gpu[1] = cpu;
    struct mu_plan slow = plan_of("1@gpu1");
    double all = mu_bench_bound_places(model, &slow, &prompt, 1, true, MU_KV_F16, &cpu, gpu).s;
    double half = mu_bench_bound_places(model, &plan, &prompt, 1, true, MU_KV_F16, &cpu, gpu).s;
    assert_true(half > 0.3 * all && half < 0.7 * all);
}

static void limits(void **state)
{
    (void)state;
    const struct {
        struct mu_bench_bound bound;
        double wire_s, wait_s, delayed;
        enum mu_bench_limit limit;
    } cases[] = {
        {{.read_s = 0.9, .int8_s = 0.1}, 0, 0, 0, MU_BENCH_BANDWIDTH},
        {{.read_s = 0.3, .int8_s = 0.3, .f32_s = 0.3}, 0.2, 0, 0, MU_BENCH_ARITHMETIC},
        {{.read_s = 0.3, .int8_s = 0.1}, 0.4, 0.2, 0, MU_BENCH_NETWORK},
        {{.read_s = 0.4, .int8_s = 0.1}, 0.1, 0.5, 0, MU_BENCH_WAITING},
        {{.read_s = 0.34, .int8_s = 0.34}, 0.1, 0.1, 0, MU_BENCH_OVERHEAD},
        {{.read_s = 0}, 0, 0, 0, MU_BENCH_OVERHEAD},
        {{.read_s = 0.4, .int8_s = 0.1}, 0.5, 0.2, 0.6, MU_BENCH_OTHERS},
    };
    static const struct mu_bench_work w = {.weight_bytes = 1e9};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char say[320];
        struct mu_bench_result r = {
            .s = {.n = 1, .median = 1, .mean = 1}, .bound = cases[i].bound, .n_rank = 2, .delayed = cases[i].delayed};
        for (int k = 0; k < 2; k++)
            r.rank[k] = (struct mu_bench_times){.wire_s = cases[i].wire_s, .wait_s = cases[i].wait_s};
        if (mu_bench_limit_of(&r) != cases[i].limit)
            fail_msg("case %zu: %s", i, mu_bench_limit_name(mu_bench_limit_of(&r)));
        mu_bench_limit_say(&r, &w, say, sizeof say);
        assert_true(!strncmp(say, mu_bench_limit_name(cases[i].limit), strlen(mu_bench_limit_name(cases[i].limit))));
        assert_true(strlen(say) < sizeof say - 1);
    }
}

/* Two stages, of two ranks and of one. */
static void waits(void **state)
{
    (void)state;
    struct mu_plan plan = plan_of("1:1/1");
    struct mu_shard_span a[] = {{100, 200, MU_OP_EXCHANGE}, {300, 340, MU_OP_EXCHANGE}, {400, 410, MU_OP_SEND}},
                         b[] = {{150, 210, MU_OP_EXCHANGE}, {300, 350, MU_OP_EXCHANGE}, {390, 391, MU_OP_SEND}},
                         c[] = {{50, 430, MU_OP_RECV}, {500, 600, MU_OP_RECV}};
    struct mu_shard_trace trace[] = {{a, 3, 3}, {b, 3, 3}, {c, 2, 2}};
    int64_t wait[3];
    mu_bench_waits(&plan, NULL, trace, wait);
    assert_int_equal(wait[0], 50); /* until 150, when the other one came */
    assert_int_equal(wait[1], 0);
    assert_int_equal(wait[2], 350); /* until rank 0 of the stage before sent; the second receive has no partner */
    c[0].end_ns = 300;              /* ended before that: all of it was waiting */
    mu_bench_waits(&plan, NULL, trace, wait);
    assert_int_equal(wait[2], 250);
    trace[1].n = 0; /* a rank without spans: nothing is known */
    mu_bench_waits(&plan, NULL, trace, wait);
    assert_int_equal(wait[0], 0);
}

/* Two stages of two ranks on two machines: who hears whom goes by machines, and what is handed on by who sent it first. */
static void waits_of_machines(void **state)
{
    (void)state;
    struct mu_plan plan = plan_of("1:1/1:1");
    struct mu_shard_span a[] = {{100, 110, MU_OP_SEND}}, b[] = {{200, 210, MU_OP_SEND}}, c[] = {{0, 300, MU_OP_RECV}},
                         d[] = {{0, 300, MU_OP_RECV}};
    struct mu_shard_trace trace[] = {{a, 1, 1}, {b, 1, 1}, {c, 1, 1}, {d, 1, 1}};
    int64_t wait[4];
    mu_bench_waits(&plan, (const int[]){0, 1, 1, 0}, trace, wait); /* crosswise */
    assert_int_equal(wait[2], 200);
    assert_int_equal(wait[3], 100);
    mu_bench_waits(&plan, (const int[]){0, 0, 1, 1}, trace, wait); /* rank 2 hands on to rank 3 */
    assert_int_equal(wait[2], 100);
    assert_int_equal(wait[3], 100);
}

static int begin(void **state)
{
    char path[4096];
    (void)state;
    snprintf(path, sizeof path, "%s/tests/golden/bard.q8_0.gguf", getenv("MUSTER_SOURCE_DIR"));
    return mu_kernels_init(NULL, &err) || mu_model_open(path, &model, &err);
}

static int end(void **state)
{
    (void)state;
    mu_model_close(model);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(work_of_decodes),
                                       cmocka_unit_test(work_of_prompts),
                                       cmocka_unit_test(bounds),
                                       cmocka_unit_test(bounds_of_places),
                                       cmocka_unit_test(bounds_of_streams),
                                       cmocka_unit_test(limits),
                                       cmocka_unit_test(waits),
                                       cmocka_unit_test(waits_of_machines)};
    return cmocka_run_group_tests(tests, begin, end);
}
