/* Shares, ranges and the planner, on models that exist only as sizes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "shard/plan_draft.h"
#include "shard/plan_fit.h"
#include "shard/plan_predict.h"
#include "shard/plan_where.h"

enum { MAX_LAYER = 64 };

struct paper { /* a model on paper: tensors without data */
    struct mu_model model;
    struct mu_gguf_tensor mat[MU_T_LAYER_COUNT], embed, norm;
    const struct mu_gguf_tensor *layer[MAX_LAYER][MU_T_LAYER_COUNT];
};

static struct mu_gguf_tensor tensor(uint64_t n_row, uint64_t n_col)
{
    struct mu_gguf_tensor t = {.type = MU_Q8_0, .n_dim = 2, .ne = {n_col, n_row, 1, 1}, .n_row = n_row};
    t.row_bytes = n_col / 32 * 34;
    t.bytes = t.row_bytes * n_row;
    return t;
}

static void paper_model(struct paper *p, int n_layer, int n_head, int n_kv_head, int d_head, int d_model, int d_ff,
                        int n_vocab)
{
    static const struct mu_arch arch = {.name = "paper"};
    memset(p, 0, sizeof *p);
    p->model.arch = &arch;
    p->model.cfg = (struct mu_config){.n_layer = n_layer,
                                      .n_head = n_head,
                                      .n_kv_head = n_kv_head,
                                      .d_head = d_head,
                                      .d_model = d_model,
                                      .d_ff = d_ff,
                                      .n_vocab = n_vocab,
                                      .n_rot = d_head};
    uint64_t d = (uint64_t)d_model, q = (uint64_t)n_head * (uint64_t)d_head,
             kv = (uint64_t)n_kv_head * (uint64_t)d_head;
    p->embed = tensor((uint64_t)n_vocab, d);
    p->norm = (struct mu_gguf_tensor){
        .type = MU_F32, .n_dim = 1, .ne = {d, 1, 1, 1}, .n_row = 1, .row_bytes = 4 * d, .bytes = 4 * d};
    p->mat[MU_T_ATTN_NORM] = p->mat[MU_T_FFN_NORM] = p->norm;
    p->mat[MU_T_Q] = tensor(q, d);
    p->mat[MU_T_K] = p->mat[MU_T_V] = tensor(kv, d);
    p->mat[MU_T_O] = tensor(d, q);
    p->mat[MU_T_GATE] = p->mat[MU_T_UP] = tensor((uint64_t)d_ff, d);
    p->mat[MU_T_DOWN] = tensor(d, (uint64_t)d_ff);
    for (int l = 0; l < n_layer; l++)
        for (int id = 0; id < MU_T_LAYER_COUNT; id++)
            if (p->mat[id].n_row) p->layer[l][id] = &p->mat[id];
    p->model.layer = p->layer;
    p->model.embed = p->model.output = &p->embed;
    p->model.out_norm = &p->norm;
}

static struct mu_plan plan_of(const struct paper *p, const char *text)
{
    struct mu_split split;
    struct mu_plan plan;
    struct mu_err err = MU_ERR_INIT;
    if (mu_split_parse(text, &split, &err) != MU_OK || mu_plan_build(&p->model, &split, &plan, &err) != MU_OK)
        fail_msg("%s", err.text);
    return plan;
}

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

static const struct mu_serving SERVING = {.n_ctx = 2048, .n_slot = 4, .n_page = 256, .step_tokens = 256};

static void auto_is(const struct paper *p, const struct mu_plan_node *node, int n_node, const char *want)
{
    struct mu_split split;
    struct mu_err err = MU_ERR_INIT;
    char text[MU_SPLIT_TEXT], why[MU_PLAN_WHY];
    if (mu_plan_auto(&p->model, NULL, node, n_node, &SERVING, MU_DEVICE_AUTO, &split, why, &err) != MU_OK)
        fail_msg("%s", err.text);
    mu_split_format(&split, text, sizeof text);
    assert_string_equal(text, want);
}

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

/* ---- GPUs ---- */

static struct mu_plan_node gpu_node(int n_gpu, uint64_t gpu_bytes)
{
    struct mu_plan_node n = {.name = "a",
                             .n_core = 16,
                             .n_numa = 1,
                             .read_gbps = 50,
                             .int8_gops = 4000,
                             .memory_bytes = 64000000000,
                             .gpus = {.n = n_gpu}};
    for (int i = 0; i < n_gpu; i++)
        n.gpus.gpu[i] = (struct mu_gpu){.name = "Paper GPU",
                                        .memory_bytes = gpu_bytes,
                                        .free_bytes = gpu_bytes,
                                        .read_gbps = 3000,
                                        .up_gbps = 50,
                                        .down_gbps = 50,
                                        .int8_gops = 1000000,
                                        .f32_gops = 50000};
    return n;
}

static void gpu_auto_is(const struct paper *p, const struct mu_plan_node *node, enum mu_device_wish wish,
                        const char *want, const char *says)
{
    struct mu_split split;
    struct mu_err err = MU_ERR_INIT;
    char text[MU_SPLIT_TEXT], why[MU_PLAN_WHY];
    if (mu_plan_auto(&p->model, NULL, node, 1, &SERVING, wish, &split, why, &err) != MU_OK) fail_msg("%s", err.text);
    mu_split_format(&split, text, sizeof text);
    assert_string_equal(text, want);
    if (!strstr(why, says)) fail_msg("'%s' is not in '%s'", says, why);
}

/* What a choice takes on each GPU is there. */
static void gpu_fits(const struct paper *p, const struct mu_plan_node *node, struct mu_split *split_out)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_plan plan;
    struct mu_fit fit;
    char why[MU_PLAN_WHY];
    if (mu_plan_auto(&p->model, NULL, node, 1, &SERVING, MU_DEVICE_AUTO, split_out, why, &err) != MU_OK)
        fail_msg("%s", err.text);
    assert_int_equal(mu_plan_build(&p->model, split_out, &plan, &err), MU_OK);
    mu_fit_measure(&p->model, &plan, NULL, &SERVING, node, &fit);
    assert_true(mu_fit_room(&fit) >= SERVING.n_page);
}

static void test_gpus(void **state)
{
    (void)state;
    struct paper p;
    paper_model(&p, 16, 32, 8, 64, 2048, 8192, 32768); /* 1.1 GB as Q8_0: 66 MB a layer, 17 MB a layer of cache */
    const uint64_t MB = 1000000;
    struct mu_plan_node n = gpu_node(4, 80000 * MB);
    gpu_auto_is(&p, &n, MU_DEVICE_AUTO, "1@gpu0", "GPU 0 (Paper GPU) holds the whole model");
    gpu_auto_is(&p, &n, MU_DEVICE_GPU, "1@gpu0", "");
    gpu_auto_is(&p, &n, MU_DEVICE_CPU, "1", "");
    n.gpus.gpu[0].free_bytes = 900 * MB; /* the first that holds it, alone, whatever its number */
    gpu_auto_is(&p, &n, MU_DEVICE_AUTO, "1@gpu1", "GPU 1");

    n = gpu_node(4, 900 * MB); /* two, not three or four: stages in the order of their numbers */
    gpu_auto_is(&p, &n, MU_DEVICE_AUTO, "8@gpu0/8@gpu1", "2 GPUs hold the model together");
    gpu_auto_is(&p, &n, MU_DEVICE_GPU, "8@gpu0/8@gpu1", "");
    n.gpus.gpu[0].read_gbps = 1000; /* by bandwidth, as far as memory goes */
    struct mu_split split;
    gpu_fits(&p, &n, &split);
    assert_int_equal(split.n_stage, 2);

    n = gpu_node(1, 700 * MB); /* processors take what is left, before the GPU */
    gpu_fits(&p, &n, &split);
    assert_int_equal(split.n_stage, 2);
    assert_int_equal(split.device[0], MU_ON_CPU);
    assert_int_equal(split.device[1], 0);
    assert_true(split.weight[1] >= 4 && split.weight[1] <= 8);
    char text[MU_SPLIT_TEXT];
    mu_split_format(&split, text, sizeof text);
    gpu_auto_is(&p, &n, MU_DEVICE_AUTO, text, "on processors alone");
    n.gpus.gpu[0].read_gbps = 5; /* a GPU slower than they are */
    gpu_auto_is(&p, &n, MU_DEVICE_AUTO, "1", "processors alone, ");
    n.memory_bytes = 1300 * MB; /* whose memory does not hold it */
    gpu_fits(&p, &n, &split);
    assert_int_equal(split.n_stage, 2);
    mu_split_format(&split, text, sizeof text);
    gpu_auto_is(&p, &n, MU_DEVICE_AUTO, text, "memory alone is too small");
    n = gpu_node(1, 700 * MB);
    n.read_gbps = n.gpus.gpu[0].read_gbps = 0; /* nothing is measured */
    gpu_fits(&p, &n, &split);
    assert_int_equal(split.n_stage, 2);
    n = gpu_node(1, 30 * MB);
    gpu_auto_is(&p, &n, MU_DEVICE_AUTO, "1", "does not hold a layer");
}

/* Whatever is chosen fits when it is counted by place, the host's part of GPU ranks too. */
static void test_gpus_fit_what_is_chosen(void **state)
{
    (void)state;
    struct paper p;
    paper_model(&p, 16, 32, 8, 64, 2048, 8192, 131072); /* an embedding of 285 MB */
    const uint64_t MB = 1000000;
    int n_mixed = 0;
    for (uint64_t host = 600; host < 2200; host += 10) {
        struct mu_plan_node n = gpu_node(1, 1000 * MB);
        struct mu_split split;
        struct mu_plan plan;
        struct mu_fit fit;
        char why[MU_PLAN_WHY];
        n.memory_bytes = host * MB;
        if (mu_plan_auto(&p.model, NULL, &n, 1, &SERVING, MU_DEVICE_AUTO, &split, why, NULL) != MU_OK) continue;
        assert_int_equal(mu_plan_build(&p.model, &split, &plan, NULL), MU_OK);
        mu_fit_measure(&p.model, &plan, NULL, &SERVING, &n, &fit);
        if (mu_fit_room(&fit) < SERVING.n_page)
            fail_msg("with %d MB: room for %d pages", (int)host, (int)mu_fit_room(&fit));
        n_mixed += mu_split_has_gpu(&split);
    }
    assert_true(n_mixed > 10);
}

/* Two stages on one GPU take turns. */
static void test_predict_one_gpu(void **state)
{
    (void)state;
    struct paper p;
    paper_model(&p, 16, 32, 8, 64, 2048, 8192, 32768);
    struct mu_plan_node n = gpu_node(1, 80000000000u);
    struct mu_prediction one, two;
    struct mu_plan plan = plan_of(&p, "1@gpu0");
    mu_plan_predict(&p.model, &plan, &n, (int[]){0}, NULL, &one);
    plan = plan_of(&p, "1@gpu0/1@gpu0");
    mu_plan_predict(&p.model, &plan, &n, (int[]){0, 0}, NULL, &two);
    assert_true(two.prefill_ms_per_token > 0.99 * one.prefill_ms_per_token);
}

/* Processors that would be faster, but have no room for a sequence, do not win over a GPU that helps them to it. */
static void test_gpus_processors_hold_a_sequence(void **state)
{
    (void)state;
    struct paper p;
    struct mu_err err = MU_ERR_INIT;
    struct mu_split split;
    char why[MU_PLAN_WHY];
    const uint64_t MB = 1000000;
    paper_model(&p, 16, 32, 8, 64, 2048, 8192, 32768);   /* 1.1 GB as Q8_0 */
    struct mu_serving v = {.n_ctx = 32768, .n_slot = 4}; /* 1.1 GB of cache for one */
    struct mu_plan_node n = gpu_node(1, 1500 * MB);
    n.gpus.gpu[0].read_gbps = 5; /* a GPU slower than they are */
    n.memory_bytes = 4000 * MB;
    if (mu_plan_auto(&p.model, NULL, &n, 1, &v, MU_DEVICE_AUTO, &split, why, &err) != MU_OK) fail_msg("%s", err.text);
    assert_false(mu_split_has_gpu(&split));
    n.memory_bytes = 2000 * MB;
    if (mu_plan_auto(&p.model, NULL, &n, 1, &v, MU_DEVICE_AUTO, &split, why, &err) != MU_OK) fail_msg("%s", err.text);
    assert_true(mu_split_has_gpu(&split));
    n.gpus.gpu[0].free_bytes =
        100 * MB; /* nothing holds it: the caller settles for less on the processors, or says so */
    if (mu_plan_auto(&p.model, NULL, &n, 1, &v, MU_DEVICE_AUTO, &split, why, &err) != MU_OK) fail_msg("%s", err.text);
    assert_false(mu_split_has_gpu(&split));
    if (!strstr(why, "32768 tokens")) fail_msg("%s", why);
}

/* What sampling takes: the leader's four numbers an id for each row at once, on the last stage. */
static void test_samplers(void **state)
{
    (void)state;
    struct paper p;
    struct mu_rank_memory one, many;
    paper_model(&p, 16, 32, 8, 64, 2048, 8192, 32768);
    struct mu_plan plan = plan_of(&p, "1/1");
    static const int threads[] = {2, 8, 40}, slots[] = {4, 4, 64}, want[] = {2, 4, 16};
    for (int i = 0; i < 3; i++) {
        struct mu_serving v = SERVING;
        v.n_slot = slots[i];
        for (int rank = 0; rank < 2; rank++) {
            v.n_thread = 1;
            mu_plan_memory(&p.model, &plan, rank, &v, &one);
            v.n_thread = threads[i];
            mu_plan_memory(&p.model, &plan, rank, &v, &many);
            assert_int_equal(many.scratch - one.scratch, rank * (want[i] - 1) * 4 * 4 * 32768);
        }
    }
}

/* Where nobody says how many pages, a GPU must have room for one sequence of the wanted context. */
static void test_gpus_hold_a_sequence(void **state)
{
    (void)state;
    struct paper p;
    struct mu_err err = MU_ERR_INIT;
    struct mu_rank_memory m;
    struct mu_split split;
    char why[MU_PLAN_WHY];
    paper_model(&p, 16, 32, 8, 64, 2048, 8192, 32768);
    struct mu_plan plan = plan_of(&p, "1@gpu0");
    struct mu_serving v = {.n_ctx = 16384, .n_slot = 4, .n_page = 512, .step_tokens = 256};
    mu_plan_memory(&p.model, &plan, 0, &v, &m);
    v.n_page = 0;
    for (int part = 1; part <= 2; part++) { /* half of its cache, all of it */
        struct mu_plan_node n = gpu_node(1, (m.weights + m.scratch + m.kv * (uint64_t)part / 2) / 15 * 16 + 16);
        if (mu_plan_auto(&p.model, NULL, &n, 1, &v, MU_DEVICE_AUTO, &split, why, &err) != MU_OK)
            fail_msg("%s", err.text);
        assert_int_equal(split.n_rank, part == 1 ? 2 : 1);
        assert_int_equal(split.device[split.n_rank - 1], 0);
    }
}

/* Room for the adapters is looked for with that for the model: what is chosen holds both. */
static void test_gpus_hold_adapters(void **state)
{
    (void)state;
    struct paper p;
    paper_model(&p, 16, 32, 8, 64, 2048, 8192, 32768); /* 1.1 GB as Q8_0 */
    const uint64_t MB = 1000000;
    enum { RANK = 64 };
    static struct mu_lora layer[16][MU_T_MATRIX_COUNT]; /* 180 MB as F32 */
    struct mu_adapter one = {.layer = layer, .max_rank = RANK};
    struct mu_adapters four = {.n = 4, .max_rank = RANK, .at = {&one, &one, &one, &one}};
    for (int l = 0; l < 16; l++)
        for (int id = 0; id <= MU_T_DOWN; id++)
            layer[l][id] = (struct mu_lora){
                .rank = RANK, .n_col = (int)p.mat[id].ne[0], .n_row = (int)p.mat[id].n_row, .b_type = MU_F32};
    static const struct {
        int n_gpu, free_mb, host_mb;
        const char *bare; /* the split without adapters */
        bool gpu_alone;   /* with them */
    } cases[] = {{2, 1800, 64000, "1@gpu0", true}, {1, 1800, 64000, "1@gpu0", false}, {0, 0, 64000, "1", false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct mu_plan_node n = gpu_node(cases[i].n_gpu, (uint64_t)cases[i].free_mb * MB);
        struct mu_split split;
        struct mu_plan plan;
        struct mu_fit fit;
        struct mu_err err = MU_ERR_INIT;
        char why[MU_PLAN_WHY];
        n.memory_bytes = (uint64_t)cases[i].host_mb * MB;
        gpu_auto_is(&p, &n, MU_DEVICE_AUTO, cases[i].bare, "");
        if (mu_plan_auto(&p.model, &four, &n, 1, &SERVING, MU_DEVICE_AUTO, &split, why, &err) != MU_OK)
            fail_msg("%s", err.text);
        assert_int_equal(mu_plan_build(&p.model, &split, &plan, &err), MU_OK);
        struct mu_serving v = SERVING;
        v.n_adapter = four.n;
        v.lora_rank = four.max_rank;
        mu_fit_measure(&p.model, &plan, &four, &v, &n, &fit);
        if (mu_fit_room(&fit) < v.n_page) fail_msg("case %zu: room for %d pages", i, (int)mu_fit_room(&fit));
        assert_int_equal(mu_split_cpu_ranks(&split) == 0 && split.streamed[0] == 0, cases[i].gpu_alone);
    }
    struct mu_plan_node n = gpu_node(0, 0); /* processors that hold the model alone */
    struct mu_split split;
    struct mu_err err = MU_ERR_INIT;
    char why[MU_PLAN_WHY];
    n.memory_bytes = 1800 * MB;
    gpu_auto_is(&p, &n, MU_DEVICE_AUTO, "1", "");
    assert_int_equal(mu_plan_auto(&p.model, &four, &n, 1, &SERVING, MU_DEVICE_AUTO, &split, why, &err), MU_ENOMEM);
    assert_non_null(strstr(err.text, "1.9 of weights"));
}

static void test_gpus_refused(void **state)
{
    (void)state;
    struct paper p;
    struct mu_split split = {.n_rank = 77};
    struct mu_err err = MU_ERR_INIT;
    char why[MU_PLAN_WHY];
    paper_model(&p, 16, 32, 8, 64, 2048, 8192, 32768);
    struct mu_plan_node n = gpu_node(1, 700000000);
    n.memory_bytes = 500000000; /* no room for layers to be streamed */
    assert_int_equal(mu_plan_auto(&p.model, NULL, &n, 1, &SERVING, MU_DEVICE_GPU, &split, why, &err), MU_ENOMEM);
    assert_non_null(strstr(err.text, "1 GPU has 0.7 GB usable"));
    assert_non_null(strstr(err.text, "of cache for 8192 tokens"));
    n = gpu_node(0, 0);
    snprintf(n.gpus.why, sizeof n.gpus.why, "the driver is too old");
    assert_int_equal(mu_plan_auto(&p.model, NULL, &n, 1, &SERVING, MU_DEVICE_GPU, &split, why, &err), MU_EUNSUPPORTED);
    assert_non_null(strstr(err.text, "no GPU: the driver is too old"));
    assert_int_equal(split.n_rank, 77);
    n = gpu_node(1, 700000000); /* neither has room */
    n.memory_bytes = 100000000;
    assert_int_equal(mu_plan_auto(&p.model, NULL, &n, 1, &SERVING, MU_DEVICE_AUTO, &split, why, &err), MU_ENOMEM);
}

/* Layers in the host's memory: where that is faster than processors, with what the plan counts and says of it. */
static void test_gpus_stream(void **state)
{
    (void)state;
    struct paper p;
    struct mu_err err = MU_ERR_INIT;
    struct mu_split split;
    struct mu_rank_memory all, some;
    struct mu_fit fit;
    char why[MU_PLAN_WHY], text[MU_FIT_TEXT];
    const uint64_t MB = 1000000;
    paper_model(&p, 16, 32, 8, 64, 2048, 8192, 32768);

    struct mu_plan plan = plan_of(&p, "1@gpu0");
    mu_plan_memory(&p.model, &plan, 0, &SERVING, &all);
    assert_int_equal(all.streamed, 0);
    plan = plan_of(&p, "1@gpu0~7"); /* 7 are on the host, and take turns in the room of two */
    int n = 0;
    for (int l = 0; l < 16; l++) {
        int k = mu_plan_streamed(&plan, 0, l);
        assert_true(k == -1 || k == n);
        n += k >= 0;
    }
    assert_int_equal(n, 7);
    mu_plan_memory(&p.model, &plan, 0, &SERVING, &some);
    assert_int_equal(some.streamed % 7, 0);
    assert_int_equal(all.weights - some.weights, some.streamed / 7 * 5);
    assert_int_equal(all.host, some.host);
    assert_int_equal(all.kv, some.kv);

    struct mu_plan_node node = gpu_node(1, 700 * MB);
    struct mu_prediction slow, fast;
    mu_plan_predict(&p.model, &plan, &node, (int[]){0}, NULL, &slow);
    assert_true(slow.decode_read_ms > 0.9 * (double)some.streamed / 50e6 &&
                slow.decode_read_ms < 1.2 * (double)some.streamed / 50e6);
    node.gpus.gpu[0].up_gbps = 1e6; /* beside what the layers compute */
    mu_plan_predict(&p.model, &plan, &node, (int[]){0}, NULL, &fast);
    plan = plan_of(&p, "1@gpu0");
    mu_plan_predict(&p.model, &plan, &node, (int[]){0}, NULL, &slow);
    assert_true(fast.decode_ms == slow.decode_ms);

    node = gpu_node(1, 700 * MB);
    node.read_gbps = 30; /* slower than the way to the GPU */
    gpu_fits(&p, &node, &split);
    assert_int_equal(split.n_rank, 1);
    assert_true(split.device[0] == 0 && split.streamed[0] > MU_STREAM_ROOMS && split.streamed[0] < 16);
    mu_split_format(&split, text, sizeof text);
    gpu_auto_is(&p, &node, MU_DEVICE_AUTO, text, "layers are streamed from the host's memory: a request of 512 tokens");
    gpu_auto_is(&p, &node, MU_DEVICE_AUTO, text, " with layers on the processors, ");
    gpu_auto_is(&p, &node, MU_DEVICE_GPU, text, "layers are streamed from the host's memory");
    gpu_auto_is(&p, &node, MU_DEVICE_CPU, "1", "");
    struct mu_split less = split;
    less.streamed[0]--;
    assert_int_equal(mu_plan_build(&p.model, &less, &plan, &err), MU_OK); /* no more than must be */
    mu_fit_measure(&p.model, &plan, NULL, &SERVING, &node, &fit);
    assert_true(mu_fit_room(&fit) < SERVING.n_page);
    assert_int_equal(mu_plan_build(&p.model, &split, &plan, &err), MU_OK);
    mu_plan_memory(&p.model, &plan, 0, &SERVING, &some);
    mu_fit_measure(&p.model, &plan, NULL, &SERVING, &node, &fit);
    assert_int_equal(fit.place[0].weights, some.streamed);
    mu_fit_describe(&fit, &SERVING, text);
    assert_non_null(strstr(text, "; host: weights "));
    assert_non_null(strstr(text, " to be streamed, scratch "));

    node = gpu_node(2, 450 * MB); /* both stream */
    node.read_gbps = 10;
    gpu_fits(&p, &node, &split);
    assert_int_equal(split.n_stage, 2);
    assert_true(split.streamed[0] > 0 && split.streamed[1] > 0);
    node.memory_bytes = 700 * MB; /* of which a part is wanted for others */
    assert_int_equal(mu_plan_auto(&p.model, NULL, &node, 1, &SERVING, MU_DEVICE_GPU, &split, why, &err), MU_ENOMEM);
    assert_non_null(strstr(err.text, "with layers streamed"));
    node = gpu_node(1, 100 * MB); /* not even the rooms and the cache */
    assert_int_equal(mu_plan_auto(&p.model, NULL, &node, 1, &SERVING, MU_DEVICE_GPU, &split, why, &err), MU_ENOMEM);
}

static void test_gpus_predict(void **state)
{
    (void)state;
    struct paper p;
    paper_model(&p, 16, 32, 8, 64, 2048, 8192, 32768);
    struct mu_plan_node n = gpu_node(2, 80000000000);
    struct mu_prediction cpu, gpu, two, mixed;
    struct mu_plan plan = plan_of(&p, "1");
    mu_plan_predict(&p.model, &plan, &n, (int[]){0}, NULL, &cpu);
    plan = plan_of(&p, "1@gpu0");
    mu_plan_predict(&p.model, &plan, &n, (int[]){0}, NULL, &gpu);
    double bytes = (double)(plan.rank[0].weight_bytes - p.embed.bytes);
    assert_true(gpu.decode_read_ms >= bytes / 3000e6 && gpu.decode_read_ms < 2 * bytes / 3000e6);
    assert_true(gpu.decode_ms > gpu.decode_read_ms && gpu.decode_ms < cpu.decode_ms / 10);
    assert_true(gpu.prefill_ms_per_token < cpu.prefill_ms_per_token / 10);
    plan = plan_of(&p, "1@gpu0/1@gpu1"); /* one after the other: no faster, and a hop */
    mu_plan_predict(&p.model, &plan, &n, (int[]){0, 0}, NULL, &two);
    assert_true(two.decode_wire_ms > 0 && two.decode_ms > gpu.decode_ms);
    assert_true(two.prefill_ms_per_token < gpu.prefill_ms_per_token);
    struct mu_plan_node link = n; /* with links: both hops and exchanges in a fraction of that */
    struct mu_prediction by_link;
    for (int i = 0; i < 2; i++) link.gpus.gpu[i].has_link = true;
    mu_plan_predict(&p.model, &plan, &link, (int[]){0, 0}, NULL, &by_link);
    assert_true(by_link.decode_wire_ms > 0 && by_link.decode_wire_ms < two.decode_wire_ms / 2);
    plan = plan_of(&p, "1@gpu0:1@gpu1");
    mu_plan_predict(&p.model, &plan, &n, (int[]){0, 0}, NULL, &two);
    mu_plan_predict(&p.model, &plan, &link, (int[]){0, 0}, NULL, &by_link);
    assert_true(by_link.decode_wire_ms > 0 && by_link.decode_wire_ms < two.decode_wire_ms / 3);
    plan = plan_of(&p, "1@gpu0:1@gpu0"); /* two ranks of one GPU have none */
    mu_plan_predict(&p.model, &plan, &n, (int[]){0, 0}, NULL, &two);
    mu_plan_predict(&p.model, &plan, &link, (int[]){0, 0}, NULL, &by_link);
    assert_true(by_link.decode_wire_ms == two.decode_wire_ms);
    plan = plan_of(&p, "1@gpu0/1");
    mu_plan_predict(&p.model, &plan, &n, (int[]){0, 0}, NULL, &mixed);
    assert_true(mixed.decode_ms > cpu.decode_ms / 2 && mixed.decode_ms < cpu.decode_ms);
    plan = plan_of(&p, "1@gpu2"); /* there is none */
    mu_plan_predict(&p.model, &plan, &n, (int[]){0}, NULL, &gpu);
    assert_true(gpu.decode_ms == 0);
    n.gpus.gpu[0].read_gbps = 0;
    plan = plan_of(&p, "1@gpu0");
    mu_plan_predict(&p.model, &plan, &n, (int[]){0}, NULL, &gpu);
    assert_true(gpu.decode_ms == 0);
}

/* A page is on every place, and the fullest decides. */
static void test_gpus_fit(void **state)
{
    (void)state;
    struct paper p;
    paper_model(&p, 16, 32, 8, 64, 2048, 8192, 32768);
    struct mu_plan_node n = gpu_node(2, 1000000000);
    struct mu_plan plan = plan_of(&p, "1@gpu1/1");
    struct mu_serving v = {.n_ctx = 2048, .n_slot = 4, .step_tokens = 256};
    struct mu_rank_memory m[2];
    struct mu_fit f;
    struct mu_err err = MU_ERR_INIT;
    char text[MU_FIT_TEXT];
    v.n_page = 1; /* tables for pages are not counted page by page */
    for (int i = 0; i < 2; i++) mu_plan_memory(&p.model, &plan, i, &v, &m[i]);
    v.n_page = 0;
    mu_fit_measure(&p.model, &plan, NULL, &v, &n, &f);
    assert_int_equal(f.n_place, 2);
    assert_int_equal(f.place[0].device, MU_ON_CPU);
    assert_int_equal(f.place[1].device, 1);
    assert_int_equal(f.place[0].weights, m[1].weights);
    assert_int_equal(f.place[0].scratch, m[1].scratch + m[0].host);
    assert_int_equal(f.place[1].weights, m[0].weights);
    assert_int_equal(f.place[1].page, m[0].kv);
    assert_true(m[0].host >= p.embed.bytes); /* the embedding stays in the file */
    uint64_t room = (f.place[1].usable - f.place[1].weights - f.place[1].scratch) / f.place[1].page;
    assert_int_equal(mu_fit_room(&f), room);
    assert_int_equal(mu_fit_settle(&f, &p.model, &plan, 0, &v, &err), MU_OK);
    assert_int_equal(v.n_page, 256);
    mu_fit_describe(&f, &v, text);
    assert_int_equal(strncmp(text, "GPU 1: weights ", 15), 0);
    assert_non_null(strstr(text, "for 4 × 2,048 tokens (f16)"));
    assert_non_null(strstr(text, "of 1.00 GB free; host: weights "));
    assert_non_null(strstr(text, "of 64.0 GB free"));
    n.gpus.gpu[1].free_bytes = 700000000;
    v = (struct mu_serving){.n_ctx = 16384, .n_slot = 1, .step_tokens = 256};
    mu_fit_measure(&p.model, &plan, NULL, &v, &n, &f);
    assert_int_equal(mu_fit_settle(&f, &p.model, &plan, MU_FIT_CTX, &v, &err), MU_ENOMEM);
    assert_non_null(strstr(err.text, "does not fit GPU 1: weights "));
    assert_non_null(strstr(err.text, "1 × 16,384 tokens"));
    assert_non_null(strstr(err.text, "of 0.70 GB free; what would fit: --ctx "));
    plan = plan_of(&p, "1@gpu5"); /* not there: it has no memory */
    mu_fit_measure(&p.model, &plan, NULL, &v, &n, &f);
    assert_int_equal(mu_fit_room(&f), 0);
    /* two ranks of one GPU share it */
    plan = plan_of(&p, "1@gpu0:1@gpu0");
    mu_fit_measure(&p.model, &plan, NULL, &v, &n, &f);
    assert_int_equal(f.n_place, 2);
    for (int i = 0; i < 2; i++) mu_plan_memory(&p.model, &plan, i, &v, &m[i]);
    assert_int_equal(f.place[1].weights, m[0].weights + m[1].weights);
    /* a GPU alone: of the host there is little to tell */
    plan = plan_of(&p, "1@gpu0");
    v.n_ctx = 2048;
    mu_fit_measure(&p.model, &plan, NULL, &v, &n, &f);
    mu_fit_describe(&f, &v, text);
    assert_null(strstr(strstr(text, "host: "), "KV"));
}

/* The embedding is in memory once, however many ranks of the machine read it. */
static void test_fit_embedding(void **state)
{
    (void)state;
    struct paper p;
    paper_model(&p, 16, 32, 8, 64, 2048, 8192, 131072); /* 285 MB of it */
    static const char *const splits[] = {"1:1:1/1", "1@gpu0:1@gpu1/1"};
    struct mu_plan_node n = gpu_node(2, 4000000000u);
    struct mu_serving v = SERVING;
    v.n_page = 1;
    for (int i = 0; i < 2; i++) {
        struct mu_plan plan = plan_of(&p, splits[i]);
        struct mu_rank_memory m;
        struct mu_fit fit;
        uint64_t all = 0, taken = 0;
        for (int rank = 0; rank < plan.n_rank; rank++) {
            mu_plan_memory(&p.model, &plan, rank, &v, &m);
            assert_int_equal(m.mapped, rank < plan.n_rank - 1 ? p.embed.bytes : 0);
            all += m.weights + m.scratch + m.host;
        }
        mu_fit_measure(&p.model, &plan, NULL, &v, &n, &fit);
        for (int k = 0; k < fit.n_place; k++) taken += fit.place[k].weights + fit.place[k].scratch;
        assert_int_equal(all - taken, (uint64_t)(plan.n_rank - 2) * p.embed.bytes);
    }
    n = gpu_node(0, 0);
    n.n_numa = 4; /* a rank each: 1.4 GB of matrices, the embedding, the cache; no room for it four times */
    n.memory_bytes = 2600000000u;
    auto_is(&p, &n, 1, "1:1:1:1");
}

/* A draft model beside the leader: on the host, whole, with a cache for a few sequences, or refused. */
static void test_draft_fit(void **state)
{
    (void)state;
    static struct paper p, small;
    paper_model(&p, 16, 32, 8, 64, 2048, 8192, 32768);
    paper_model(&small, 2, 8, 2, 64, 512, 1024, 32768);
    struct mu_plan_node n = gpu_node(2, 1000000000);
    struct mu_plan plan = plan_of(&p, "1@gpu1/1");
    struct mu_serving v = {.n_ctx = 4096, .n_slot = 32, .step_tokens = 256, .kv = MU_KV_Q8_0};
    struct mu_rank_memory m;
    struct mu_fit f;
    struct mu_err err = MU_ERR_INIT;
    char text[MU_FIT_TEXT];
    small.model.cfg.n_ctx_train = 1000;
    struct mu_serving d = mu_draft_serving(&small.model, &v);
    assert_true(d.n_ctx == 1000 && d.n_slot == MU_DRAFT_SEATS && d.n_page == MU_DRAFT_SEATS * 32 && d.kv == MU_KV_Q8_0);
    v.n_slot = 2;
    small.model.cfg.n_ctx_train = 100000;
    d = mu_draft_serving(&small.model, &v);
    assert_true(d.n_ctx == 4096 && d.n_slot == 2 && d.n_page == 2 * 128);
    mu_fit_measure(&p.model, &plan, NULL, &v, &n, &f);
    uint64_t room = mu_fit_room(&f), weights = f.place[0].weights;
    assert_int_equal(mu_draft_fit(&small.model, &v, &f, &err), MU_OK);
    struct mu_plan whole = plan_of(&small, "1");
    mu_plan_memory(&small.model, &whole, 0, &d, &m);
    assert_int_equal(f.place[0].draft, m.weights + m.kv + m.scratch);
    assert_int_equal(f.place[1].draft, 0);
    assert_int_equal(f.place[0].weights, weights);
    assert_int_equal(mu_fit_room(&f), room); /* the GPU is fuller */
    v.n_page = 1;
    mu_fit_describe(&f, &v, text);
    assert_non_null(strstr(text, ", draft model "));
    v.n_page = 0;
    f.place[0].usable = f.place[0].weights + f.place[0].scratch + f.place[0].draft + f.place[0].page * 128 - 1;
    assert_int_equal(mu_fit_settle(&f, &p.model, &plan, MU_FIT_CTX, &v, &err), MU_ENOMEM);
    assert_non_null(strstr(err.text, "this machine's own memory: weights "));
    assert_non_null(strstr(err.text, ", draft model "));
    assert_non_null(strstr(err.text, "or no --draft"));
    assert_int_equal(mu_draft_check(&plan, &err), MU_OK);
    plan = plan_of(&p, "1/1@gpu1");
    assert_int_equal(mu_draft_check(&plan, &err), MU_EUNSUPPORTED);
    assert_non_null(strstr(err.text, "(rank 1) is on GPU 1"));
}

/* What was asked for is had or refused with what would fit; what was not is chosen. */
static void test_fit(void **state)
{
    (void)state;
    static struct paper p;
    struct mu_plan plan;
    struct mu_split one;
    paper_model(&p, 4, 8, 2, 64, 512, 1024, 1000);
    assert_int_equal(mu_split_parse("1", &one, NULL), MU_OK);
    assert_int_equal(mu_plan_build(&p.model, &one, &plan, NULL), MU_OK);
    struct mu_fit f = {
        .n_place = 1,
        .place = {
            {.device = MU_ON_CPU, .weights = 1000, .scratch = 24, .page = 10, .free = 1 << 20, .usable = 2024 + 9}}};
    struct mu_err err = MU_ERR_INIT;
    assert_int_equal(mu_fit_room(&f), 100);
    struct mu_serving v = {.n_ctx = 33, .n_slot = 50};
    assert_int_equal(mu_fit_settle(&f, &p.model, &plan, MU_FIT_CTX | MU_FIT_SLOTS, &v, &err), MU_OK);
    assert_int_equal(v.n_page, 100);
    v = (struct mu_serving){.n_ctx = 33, .n_slot = 51};
    assert_int_equal(mu_fit_settle(&f, &p.model, &plan, MU_FIT_CTX | MU_FIT_SLOTS, &v, &err), MU_ENOMEM);
    assert_non_null(strstr(err.text, "51 × 33 tokens (f16)"));
    assert_non_null(strstr(err.text, "would fit: --parallel 50, or --ctx 32"));
    assert_int_equal(mu_fit_settle(&f, &p.model, &plan, MU_FIT_CTX, &v, &err), MU_OK); /* they share pages */
    assert_int_equal(v.n_page, 100);
    v = (struct mu_serving){.n_ctx = 3201, .n_slot = 2};
    assert_int_equal(mu_fit_settle(&f, &p.model, &plan, MU_FIT_CTX, &v, &err), MU_ENOMEM);
    assert_non_null(strstr(err.text, "1 × 3,201 tokens"));
    assert_non_null(strstr(err.text, "--ctx 3072"));
    assert_int_equal(mu_fit_settle(&f, &p.model, &plan, MU_FIT_SLOTS, &v, &err), MU_OK); /* a shorter one */
    assert_int_equal(v.n_ctx, 3072);
    assert_int_equal(v.n_page, 100);
    v = (struct mu_serving){.n_ctx = 64, .n_slot = 8, .n_page = 101}; /* so many and no fewer */
    assert_int_equal(mu_fit_settle(&f, &p.model, &plan, 0, &v, &err), MU_ENOMEM);
    v.n_page = 7;
    assert_int_equal(mu_fit_settle(&f, &p.model, &plan, 0, &v, &err), MU_OK);
    assert_int_equal(v.n_page, 7);
    f.place[0].usable = 1023; /* not even the weights */
    v = (struct mu_serving){.n_ctx = 4096, .n_slot = 1};
    assert_int_equal(mu_fit_settle(&f, &p.model, &plan, 0, &v, &err), MU_ENOMEM);
    assert_non_null(strstr(err.text, "a smaller model"));

    v = (struct mu_serving){.n_ctx = 8192, .n_slot = 4, .step_tokens = 512};
    struct mu_rank_memory m;
    const struct mu_plan_node here = {.memory_bytes = 16000000000};
    v.n_page = 4 * mu_fit_pages_of(8192);
    mu_fit_measure(&p.model, &plan, NULL, &v, &here, &f);
    mu_plan_memory(&p.model, &plan, 0, &v, &m);
    assert_true(f.place[0].page * v.n_page == m.kv && f.place[0].weights == m.weights &&
                f.place[0].scratch == m.scratch);
    assert_true(f.place[0].usable == 15000000000);
    char text[MU_FIT_TEXT];
    mu_fit_describe(&f, &v, text);
    assert_non_null(strstr(text, "for 4 × 8,192 tokens (f16)"));
    assert_non_null(strstr(text, "of 16.0 GB free"));
    v.kv = MU_KV_Q8_0;
    uint64_t f16 = f.place[0].page;
    mu_fit_measure(&p.model, &plan, NULL, &v, &here, &f);
    assert_int_equal(f.place[0].page * 64, f16 * 36);
}

/* Layers with a window keep what a step sees, and as many pages for what is cached. */
static void test_windows(void **state)
{
    (void)state;
    static struct paper p;
    static struct mu_plan plan;
    struct mu_split split;
    paper_model(&p, 12, 8, 2, 64, 512, 1024, 1000);
    p.model.cfg.window = 1024;
    p.model.cfg.whole[0] = 1u << 5; /* every sixth layer sees everything */
    p.model.cfg.whole[1] = 1u << 3;
    assert_int_equal(mu_plan_window(&p.model), 1024);
    struct mu_serving v = {.n_ctx = 32768, .n_slot = 4, .n_page = 4096, .step_tokens = 512};
    assert_int_equal(mu_plan_window_pages(&v), 0); /* all have all */
    v.window = 1024;
    assert_int_equal(mu_plan_window_span(&v), 49); /* 1,023 + 512 positions, from the end of a page on */
    assert_int_equal(mu_plan_window_pages(&v), 4 * (49 + 33));
    assert_int_equal(mu_plan_window_first(1024, 1023), 0);
    assert_int_equal(mu_plan_window_first(1024, 1023 + 31), 0);
    assert_int_equal(mu_plan_window_first(1024, 1023 + 32), 1);
    v.n_page = 1;
    assert_int_equal(mu_plan_window_pages(&v), 49); /* one can run */
    v.n_page = 0;
    assert_int_equal(mu_plan_window_pages(&v), 0);
    v.n_page = 4096;
    /* Bytes of both groups, on each rank of a split. */
    assert_int_equal(mu_split_parse("1:1/1", &split, NULL), MU_OK);
    assert_int_equal(mu_plan_build(&p.model, &split, &plan, NULL), MU_OK);
    uint64_t head = 2 * (uint64_t)mu_kv_bytes(MU_KV_F16, 64, MU_PAGE_TOKENS);
    struct mu_rank_memory m[3];
    for (int i = 0; i < 3; i++) {
        mu_plan_memory(&p.model, &plan, i, &v, &m[i]);
        uint64_t heads = (uint64_t)mu_range_len(plan.rank[i].kv_heads), n_full = 0, n_window = 0;
        struct mu_range layers = plan.stage[plan.rank[i].stage].layers;
        for (int l = layers.begin; l < layers.end; l++) *(l % 6 == 5 ? &n_full : &n_window) += 1;
        assert_int_equal(m[i].kv, heads * head * (n_full * 4096 + n_window * 328));
        assert_int_equal(mu_plan_kv_window_bytes(&p.model, &plan, i, MU_KV_F16), heads * head * n_window);
    }
    /* Room: the most pages that fit with their window pages, and no more; a context that leaves windows no advantage. */
    assert_int_equal(mu_split_parse("1", &split, NULL), MU_OK);
    assert_int_equal(mu_plan_build(&p.model, &split, &plan, NULL), MU_OK);
    struct mu_fit f;
    struct mu_err err = MU_ERR_INIT;
    const struct mu_plan_node here = {.memory_bytes = 300000000};
    v.n_page = 0;
    mu_fit_measure(&p.model, &plan, NULL, &v, &here, &f);
    const struct mu_fit_place *h = &f.place[0];
    uint64_t left = h->usable - h->weights - h->scratch;
    assert_int_equal(h->page, 12 * 2 * head);
    assert_int_equal(h->window, 10 * 2 * head);
    v.n_page = (uint32_t)mu_fit_room(&f);
    assert_true(mu_fit_kv_bytes(h, &v) <= left && v.n_page > 2 * left / h->page);
    mu_plan_memory(&p.model, &plan, 0, &v, &m[0]);
    assert_int_equal(mu_fit_kv_bytes(h, &v), m[0].kv);
    v.n_page++;
    assert_true(mu_fit_kv_bytes(h, &v) > left);
    for (int ctx = 131072; ctx >= 256; ctx /= 2)
        for (unsigned asked = 0; asked <= MU_FIT_SLOTS; asked += MU_FIT_SLOTS) {
            struct mu_serving got = v;
            got.n_ctx = ctx;
            got.n_page = 0;
            mu_fit_measure(&p.model, &plan, NULL, &got, &here, &f);
            assert_int_equal(mu_fit_settle(&f, &p.model, &plan, asked, &got, &err), MU_OK);
            assert_true(got.n_page >= mu_fit_pages_of(got.n_ctx) && mu_fit_kv_bytes(&f.place[0], &got) <= left);
            assert_int_equal(mu_plan_window_pages(&got) > 0, got.n_ctx > 82 * MU_PAGE_TOKENS);
        }
    /* Refused with what the longest would be: it fits, 256 tokens more do not. */
    v.n_ctx = 1 << 20;
    v.n_page = 0;
    mu_fit_measure(&p.model, &plan, NULL, &v, &here, &f);
    assert_int_equal(mu_fit_settle(&f, &p.model, &plan, MU_FIT_CTX, &v, &err), MU_ENOMEM);
    const char *instead = strstr(err.text, "--ctx ");
    assert_non_null(instead);
    assert_non_null(strstr(err.text, "1 × 1,048,576 tokens (f16, windows of 1,024)"));
    v.n_ctx = atoi(instead + 6);
    for (int more = 0; more < 2; more++, v.n_ctx += 256) {
        v.n_page = mu_fit_pages_of(v.n_ctx);
        assert_int_equal(
            mu_fit_kv_bytes(&f.place[0], &v) <= f.place[0].usable - f.place[0].weights - f.place[0].scratch, !more);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_share),
                                       cmocka_unit_test(test_ranges),
                                       cmocka_unit_test(test_replicated),
                                       cmocka_unit_test(test_units),
                                       cmocka_unit_test(test_windows),
                                       cmocka_unit_test(test_auto),
                                       cmocka_unit_test(test_numa_nodes),
                                       cmocka_unit_test(test_predict),
                                       cmocka_unit_test(test_predict_links),
                                       cmocka_unit_test(test_residual_from),
                                       cmocka_unit_test(test_gpus),
                                       cmocka_unit_test(test_gpus_refused),
                                       cmocka_unit_test(test_gpus_stream),
                                       cmocka_unit_test(test_gpus_fit_what_is_chosen),
                                       cmocka_unit_test(test_samplers),
                                       cmocka_unit_test(test_gpus_hold_a_sequence),
                                       cmocka_unit_test(test_gpus_hold_adapters),
                                       cmocka_unit_test(test_gpus_processors_hold_a_sequence),
                                       cmocka_unit_test(test_predict_one_gpu),
                                       cmocka_unit_test(test_gpus_predict),
                                       cmocka_unit_test(test_gpus_fit),
                                       cmocka_unit_test(test_fit_embedding),
                                       cmocka_unit_test(test_draft_fit),
                                       cmocka_unit_test(test_fit)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
