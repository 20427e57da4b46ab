/* Shares, ranges, the split that the planner chooses for processors, and the times that it predicts. */
#include "plan_util.h"

#include "shard/plan_predict.h"

#define assert_range(r, b, e)           \
    do {                                \
        assert_int_equal((r).begin, b); \
        assert_int_equal((r).end, e);   \
    } while (0)

static void test_share(void **state)
{
    (void)state;
    int begin[8];
    mu_share(10, (double[]){1, 1, 1}, 3, begin); /* ties to the lower */
    assert_true(begin[0] == 0 && begin[1] == 4 && begin[2] == 7 && begin[3] == 10);
    mu_share(10, (double[]){3, 1}, 2, begin); /* 7.5 and 2.5 */
    assert_true(begin[1] == 8 && begin[2] == 10);
    mu_share(3, (double[]){1000, 1, 1}, 3, begin); /* zero width */
    assert_true(begin[1] == 3 && begin[2] == 3 && begin[3] == 3);
    mu_share(0, (double[]){1, 2}, 2, begin);
    assert_true(begin[1] == 0 && begin[2] == 0);
    mu_share(7, (double[]){0.1, 0.2, 0.3, 0.4}, 4, begin); /* 0.7 1.4 2.1 2.8 */
    assert_true(begin[1] == 1 && begin[2] == 2 && begin[3] == 4 && begin[4] == 7);
}

static void test_ranges(void **state)
{
    (void)state;
    struct paper p;
    paper_model(&p, 16, 32, 8, 64, 2048, 8192, 32768);
    struct mu_plan plan = plan_of(&p, "3:1/1");
    assert_int_equal(plan.n_stage, 2);
    assert_int_equal(plan.leader, 2);
    assert_range(plan.stage[0].layers, 0, 13); /* 4 of 5 parts of 16: 12.8 */
    assert_range(plan.stage[1].layers, 13, 16);
    assert_range(plan.rank[0].heads, 0, 24);
    assert_range(plan.rank[0].kv_heads, 0, 6);
    assert_range(plan.rank[1].heads, 24, 32);
    assert_range(plan.rank[1].kv_heads, 6, 8);
    assert_range(plan.rank[1].model, 1536, 2048);
    assert_range(plan.rank[0].ff, 0, 6144);
    assert_range(plan.rank[0].vocab, 0, 0); /* not the last stage */
    assert_range(plan.rank[2].vocab, 0, 32768);
    assert_int_equal(plan.rank[1].local, 1);
    assert_int_equal(mu_plan_kv_page_bytes(&p.model, &plan, 1, MU_KV_F16), 2 * 13 * 2 * 32 * 64 * 2);
    /* what all ranks load of the layers is every row once; norms are whole everywhere */
    struct mu_plan one = plan_of(&p, "1"), many = plan_of(&p, "2:1:1");
    uint64_t sum = 0, norms = (uint64_t)p.norm.bytes * 33, embed = p.embed.bytes;
    for (int i = 0; i < 3; i++) sum += many.rank[i].weight_bytes;
    assert_int_equal(sum - 2 * norms - 2 * embed, one.rank[0].weight_bytes);
}

/* More ranks than KV heads: query heads are single, KV heads replicated. */
static void test_replicated(void **state)
{
    (void)state;
    struct paper p;
    paper_model(&p, 2, 8, 2, 32, 256, 512, 1024);
    struct mu_plan plan = plan_of(&p, "1:1:1:1:1");
    const int heads[] = {0, 2, 4, 6, 7, 8}, kv0[] = {0, 0, 1, 1, 1}, kv1[] = {1, 1, 2, 2, 2};
    for (int i = 0; i < 5; i++) {
        assert_range(plan.rank[i].heads, heads[i], heads[i + 1]);
        assert_range(plan.rank[i].kv_heads, kv0[i], kv1[i]);
    }
    plan = plan_of(&p, "1:1:1:1:1:1:1:1:1:1"); /* two ranks without heads */
    assert_range(plan.rank[7].kv_heads, 1, 2);
    assert_int_equal(mu_range_len(plan.rank[9].heads), 0);
    assert_int_equal(mu_range_len(plan.rank[9].kv_heads), 0);
    assert_int_equal(plan.rank[9].model.end, 256);
}

static void test_units(void **state)
{
    (void)state;
    struct paper p;
    paper_model(&p, 3, 3, 3, 48, 144, 172, 20000);
    struct mu_plan plan = plan_of(&p, "1:2/100:1:1");
    assert_range(plan.stage[0].layers, 0, 1); /* at least one layer each */
    assert_range(plan.stage[1].layers, 1, 3);
    assert_int_equal(plan.rank[0].ff.end % 32, 0);
    assert_int_equal(plan.rank[1].ff.end, 172); /* the last unit is short */
    assert_int_equal(plan.rank[0].model.end % 16, 0);
    assert_range(plan.rank[2].vocab, 0, 20000); /* 20 blocks, the last one short */
    assert_int_equal(plan.rank[4].vocab.end, 20000);
    struct mu_split split;
    struct mu_err err = MU_ERR_INIT;
    assert_int_equal(mu_split_parse("1/1/1/1", &split, &err), MU_OK);
    assert_int_equal(mu_plan_build(&p.model, &split, &plan, &err), MU_EINVAL);
    assert_non_null(strstr(err.text, "4 stages"));
}

/* ---- the planner ---- */

static void test_auto(void **state)
{
    (void)state;
    struct paper p;
    paper_model(&p, 16, 32, 8, 64, 2048, 8192, 32768); /* 1.1 GB as Q8_0: 66 MB a layer */
    const uint64_t GB = 1000000000;
    struct mu_plan_node n[3] = {
        {.name = "a", .n_core = 8, .n_numa = 1, .read_gbps = 30, .int8_gops = 1000, .memory_bytes = 16 * GB},
        {.name = "b", .n_core = 8, .n_numa = 1, .read_gbps = 10, .int8_gops = 1000, .memory_bytes = 16 * GB},
        {.name = "c", .n_core = 8, .n_numa = 1, .read_gbps = 10, .int8_gops = 1000, .memory_bytes = 16 * GB}};
    char why[MU_PLAN_WHY];
    auto_is(&p, n, 1, "1");    /* one stage: weights say nothing */
    auto_is(&p, n, 2, "12/4"); /* by bandwidth */
    n[0].n_numa = 2;
    auto_is(&p, n, 2, "6:6/4");
    n[0].numa_core[0] = 6; /* a cpuset has left one node fewer cores */
    n[0].numa_core[1] = 2;
    auto_is(&p, n, 1, "3:1");
    n[0].numa_core[1] = 6;
    auto_is(&p, n, 1, "1:1");
    n[0].n_numa = 1;
    n[0].memory_bytes = GB / 2; /* fewer layers where memory is short */
    struct mu_split split;
    struct mu_err err = MU_ERR_INIT;
    assert_int_equal(mu_plan_auto(&p.model, NULL, n, 2, &SERVING, MU_DEVICE_AUTO, &split, why, &err), MU_OK);
    struct mu_plan plan;
    assert_int_equal(mu_plan_build(&p.model, &split, &plan, &err), MU_OK);
    struct mu_rank_memory m;
    mu_plan_memory(&p.model, &plan, 0, &SERVING, &m);
    assert_true(m.weights + m.kv + m.scratch <= n[0].memory_bytes);
    int kept = mu_range_len(plan.stage[0].layers);
    assert_true(kept >= 1 && kept < 12);
    n[1].memory_bytes = 1000; /* not even one layer: no stage */
    n[0].memory_bytes = 16 * GB;
    auto_is(&p, n, 3, "12/4");
    n[0].read_gbps = 0; /* no figures for all: by cores */
    n[1].memory_bytes = 16 * GB;
    auto_is(&p, n, 2, "8/8");
    n[0].memory_bytes = n[1].memory_bytes = GB / 10;
    assert_int_equal(mu_plan_auto(&p.model, NULL, n, 2, &SERVING, MU_DEVICE_AUTO, &split, why, &err), MU_ENOMEM);
    assert_non_null(strstr(err.text, "0.2 GB usable"));
    assert_int_equal(mu_plan_auto(&p.model, NULL, n, 0, &SERVING, MU_DEVICE_AUTO, &split, why, &err), MU_EINVAL);
}

/* This machine's nodes as the planner gets them: threads that pay, by cores; one node where a quota is too small for a
 * thread on each. */
static void test_numa_nodes(void **state)
{
    (void)state;
    static struct mu_topo topo = {.n_cpu = 8, .n_core = 8, .n_usable = 8, .n_numa = 2, .host = "here"};
    static struct mu_plan_node node;
    topo.numa[0] = (struct mu_topo_numa){.node = 0, .n_core = 6, .n_cpu = 6};
    topo.numa[1] = (struct mu_topo_numa){.node = 1, .n_core = 2, .n_cpu = 2};
    mu_plan_node_of(&topo, &node);
    assert_string_equal(node.name, "here");
    assert_int_equal(node.n_core, 8);
    assert_int_equal(node.n_numa, 2);
    assert_true(node.numa_core[0] == 6 && node.numa_core[1] == 2);
    topo.n_usable = 4;
    mu_plan_node_of(&topo, &node);
    assert_true(node.n_numa == 2 && node.numa_core[0] == 3 && node.numa_core[1] == 1);
    topo.n_usable = 1;
    mu_plan_node_of(&topo, &node);
    assert_int_equal(node.n_numa, 1);
}

static void test_predict(void **state)
{
    (void)state;
    struct paper p;
    paper_model(&p, 16, 32, 8, 64, 2048, 8192, 32768);
    struct mu_plan_node n[2] = {{.n_core = 2, .read_gbps = 40, .int8_gops = 1000},
                                {.n_core = 2, .read_gbps = 20, .int8_gops = 1000}};
    struct mu_prediction one, two, apart;
    struct mu_plan plan = plan_of(&p, "1");
    mu_plan_predict(&p.model, &plan, n, (int[]){0}, NULL, &one);
    double bytes = (double)(plan.rank[0].weight_bytes - p.embed.bytes);
    assert_true(one.decode_read_ms > 0.999 * bytes / 40e6 && one.decode_read_ms < 1.001 * bytes / 40e6);
    assert_true(one.decode_wire_ms == 0 && one.decode_ms >= one.decode_read_ms);
    assert_true(one.prefill_ms_per_token > 0 && one.prefill_ms_per_token < one.decode_ms);
    plan = plan_of(&p, "1:1"); /* sharing one node's memory: no gain but the wire's cost */
    mu_plan_predict(&p.model, &plan, n, (int[]){0, 0}, NULL, &two);
    assert_true(two.decode_wire_ms > 0 && two.decode_ms > one.decode_ms && two.decode_ms < 1.2 * one.decode_ms);
    plan = plan_of(&p, "1/1"); /* two stages that share its cores and memory: no faster, also with a chunk in each */
    mu_plan_predict(&p.model, &plan, n, (int[]){0, 0}, NULL, &two);
    assert_true(two.prefill_ms_per_token > 0.99 * one.prefill_ms_per_token);
    assert_true(two.decode_read_ms > 0.99 * one.decode_read_ms && two.decode_read_ms < 1.01 * one.decode_read_ms);
    mu_plan_predict(&p.model, &plan, n, (int[]){0, 1}, NULL, &apart);
    assert_true(apart.prefill_ms_per_token < 0.6 * one.prefill_ms_per_token);
    plan = plan_of(&p, "2:1"); /* two nodes by their speeds: faster reading, slower wire */
    mu_plan_predict(&p.model, &plan, n, (int[]){0, 1}, NULL, &apart);
    assert_true(apart.decode_read_ms < 0.75 * one.decode_read_ms && apart.decode_wire_ms > two.decode_wire_ms);
    n[1].read_gbps = 0;
    mu_plan_predict(&p.model, &plan, n, (int[]){0, 1}, NULL, &apart);
    assert_true(apart.decode_ms == 0); /* unknown */
}

static void near(double got, double want)
{
    if (!(got > 0.9999 * want && got < 1.0001 * want)) fail_msg("%g, expected %g", got, want);
}

static void test_residual_from(void **state)
{
    (void)state;
    static const struct {
        const char *split;
        int node_of[6], from[6];
    } cases[] = {
        {"1/1:1:1", {0, 0, 0, 0}, {-1, 0, 0, 0}},
        {"1:1/1:1:1", {0, 0, 0, 0, 0}, {-1, -1, 0, 1, 0}},
        {"1:1/1:1:1", {0, 0, 1, 1, 1}, {-1, -1, 0, 2, 2}},         /* handed on */
        {"1:1/1:1:1:1", {0, 0, 1, 2, 1, 2}, {-1, -1, 0, 1, 2, 3}}, /* each of two machines from another rank */
        {"1:1/1:1:1:1", {4, 2, 2, 4, 3, 3}, {-1, -1, 1, 0, 0, 4}}, /* whoever is near */
        {"1/1/1", {0, 1, 0}, {-1, 0, 1}},
    };
    struct paper p;
    paper_model(&p, 16, 32, 8, 64, 2048, 8192, 32768);
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        struct mu_plan plan = plan_of(&p, cases[k].split);
        for (int i = 0; i < plan.n_rank; i++) {
            assert_int_equal(mu_plan_residual_from(&plan, cases[k].node_of, i), cases[k].from[i]);
            assert_true((mu_plan_residual_from(&plan, NULL, i) < 0) == (plan.rank[i].stage == 0));
        }
    }
}

/* A rank of a stage of two has half of every part: 9,856 bytes of a token and layer go each way, in four exchanges. */
static void test_predict_links(void **state)
{
    (void)state;
    struct paper p;
    paper_model(&p, 16, 32, 8, 64, 2048, 8192, 32768);
    struct mu_plan_node n[2] = {{.n_core = 2, .read_gbps = 40, .int8_gops = 1000},
                                {.n_core = 2, .read_gbps = 40, .int8_gops = 1000}};
    const struct mu_plan_link at[4] = {{5, 10}, {1000, 0.1}, {1000, 0.1}, {5, 10}};
    const struct mu_plan_links links = {.n_node = 2, .at = at};
    const int apart[] = {0, 1}, same[] = {0, 0};
    const struct mu_plan_step one = {1, 1, 0, false}, chunk = {512, 0, 256, false}, last = {512, 1, 256, false};
    struct mu_step_times t, far, alone;
    struct mu_plan plan = plan_of(&p, "1:1");
    mu_plan_predict_step(&p.model, &plan, n, apart, &links, &one, &t);
    assert_true(t.known);
    near(t.exchange[0], 16 * (4 * 1 + 9856 / 0.1e6) + 1); /* and one for the best ids */
    near(t.stage[0], t.read[0] + t.exchange[0]);
    near(mu_plan_predict_run(&plan, &t, 10, 1), 10 * t.stage[0]);
    mu_plan_predict_step(&p.model, &plan, n, apart, &links, &chunk, &t);
    near(t.exchange[0], 15 * (4 * 1 + 512 * 9856 / 0.1e6)); /* nothing behind the last layer's attention is wanted */
    mu_plan_predict_step(&p.model, &plan, n, apart, &links, &last, &far);
    near(far.exchange[0], t.exchange[0] + 4 * 1 + 9856 / 0.1e6 + 1);
    struct mu_plan_step halves = chunk;
    halves.is_chunk = true;
    const struct mu_plan_link slow[4] = {{5, 10}, {1000, 0.01}, {1000, 0.01}, {5, 10}};
    const struct mu_plan_links narrow = {.n_node = 2, .at = slow},
                               fast = {.n_node = 2,
                                       .at = (const struct mu_plan_link[]){{5, 10}, {20, 1e9}, {20, 1e9}, {5, 10}}};
    mu_plan_predict_step(&p.model, &plan, n, apart, &narrow, &halves, &t); /* the link needs more than they compute */
    near(t.stage[0], t.compute[0] / 16 + 15 * 512 * 9856 / 0.01e6 + 15 * 512 * 2 * 9856 / 0.6e6 / 2);
    mu_plan_predict_step(&p.model, &plan, n, apart, &fast, &halves,
                         &t); /* all of it beside computing, but for the cores */
    near(t.stage[0], t.compute[0] + 15 * 512 * 2 * 9856 / 0.6e6 / 2);
    mu_plan_predict_step(&p.model, &plan, n, same, &links, &halves, &t); /* over memory: whole */
    near(t.exchange[0], 15 * (4 * 5e-3 + 512 * 9856 / 10e6));
    mu_plan_predict_step(&p.model, &plan, n, same, &links, &one, &t);
    near(t.exchange[0], 16 * (4 * 5e-3 + 9856 / 10e6) + 5e-3);
    mu_plan_predict_step(&p.model, &plan, n, apart, NULL, &one, &t); /* not measured: 100 us at 1 Gbit/s */
    near(t.exchange[0], 16 * (4 * 0.1 + 9856 / 0.125e6) + 0.1);
    plan = plan_of(
        &p, "1:1:1:1"); /* two ranks a node: both parts of the other go through its port once, and are handed on */
    mu_plan_predict_step(&p.model, &plan, n, (const int[]){0, 0, 1, 1}, &links, &one, &far);
    near(far.exchange[0], 16 * (4 * 1.005 + 9856 / 0.1e6 + 9856 / 10e6) + 1.005);
    plan = plan_of(&p, "1:1/1:1");
    mu_plan_predict_step(&p.model, &plan, n, (const int[]){0, 0, 1, 1}, &links, &one, &t);
    near(t.busy[1], 4 * 2048 / 0.1e6);
    near(t.hop[1], 1 + 4 * 2048 / 0.1e6 + 5e-3 + 4 * 2048 / 10e6);
    mu_plan_predict_step(&p.model, &plan, n, (const int[]){0, 1, 0, 1}, &links, &one, &t);
    near(t.hop[1], 5e-3 + 4 * 2048 / 10e6);
    const struct mu_plan_links parts = {.n_node = 2, .at = at, .machine = (const int[]){0, 0}}; /* of one machine */
    mu_plan_predict_step(&p.model, &plan, n, (const int[]){0, 0, 1, 1}, &parts, &one, &t);
    near(t.hop[1], 1 + 2 * 4 * 2048 / 0.1e6 / 2);
    plan = plan_of(&p, "1/1");
    mu_plan_predict_step(&p.model, &plan, n, apart, &links, &one, &t);
    near(t.hop[1], 1 + 4 * 2048 / 0.1e6);
    near(t.busy[1], 4 * 2048 / 0.1e6);
    assert_true(t.exchange[0] == 0 && t.hop[0] == 0 && t.back == 1);
    double through = t.stage[0] + t.stage[1] + t.hop[1];
    near(mu_plan_predict_run(&plan, &t, 1, 1), through);
    near(mu_plan_predict_run(&plan, &t, 11, 1), through + 10 * (through + 1));
    near(mu_plan_predict_run(&plan, &t, 11, 2), through + 10 * (through + 1) / 2);
    near(mu_plan_predict_run(&plan, &t, 11, 50), through + 10 * t.stage[1]); /* the output matrix is there */
    near(mu_plan_predict_run(&plan, &t, 11, 0), through + 10 * t.stage[1]);
    mu_plan_predict_step(&p.model, &plan, n, apart, &links, &chunk, &t);
    plan = plan_of(&p, "1");
    mu_plan_predict_step(&p.model, &plan, n, same, &links, &chunk, &alone);
    near(t.compute[0] + t.compute[1], alone.compute[0]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_share),   cmocka_unit_test(test_ranges),        cmocka_unit_test(test_replicated),
        cmocka_unit_test(test_units),   cmocka_unit_test(test_auto),          cmocka_unit_test(test_numa_nodes),
        cmocka_unit_test(test_predict), cmocka_unit_test(test_predict_links), cmocka_unit_test(test_residual_from),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
