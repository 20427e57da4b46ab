/* The planner and described GPUs: what it puts where, what they have room for, what it refuses, and the times. */
#include <stdio.h>

#include "plan_util.h"

#include "shard/plan_fit.h"
#include "shard/plan_predict.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gpus),
        cmocka_unit_test(test_gpus_refused),
        cmocka_unit_test(test_gpus_stream),
        cmocka_unit_test(test_gpus_fit_what_is_chosen),
        cmocka_unit_test(test_gpus_hold_a_sequence),
        cmocka_unit_test(test_gpus_hold_adapters),
        cmocka_unit_test(test_gpus_processors_hold_a_sequence),
        cmocka_unit_test(test_predict_one_gpu),
        cmocka_unit_test(test_gpus_predict),
        cmocka_unit_test(test_gpus_fit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
