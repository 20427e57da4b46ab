/* Memory of a plan: what each rank takes, what fits beside it, and the windows of layers. */
#include <stdlib.h>

#include "plan_util.h"

#include "shard/plan_draft.h"
#include "shard/plan_fit.h"

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
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_windows),   cmocka_unit_test(test_samplers), cmocka_unit_test(test_fit_embedding),
        cmocka_unit_test(test_draft_fit), cmocka_unit_test(test_fit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
