/* Embeddings: against the goldens' hidden states, and by their definition: the running sum of the tokens' own states, with
 * the same bits however a text is cut, split, threaded, batched, preempted. */
#include "forward_util.h"

#include <jansson.h>

#include "base/alloc.h"
#include "kernels/kernels.h"
#include "shard/embed.h"
#include "worker/embedder.h"
#include "worker/scheduler.h"

static const struct mu_embed MEAN = {.pooling = MU_POOL_MEAN, .raw = true},
                             LAST = {.pooling = MU_POOL_LAST, .raw = true};

struct got { /* vectors, one after another */
    float *at;
    size_t n, width;
};

static enum mu_status take(void *ctx, size_t at, const float *value, int n, struct mu_err *err)
{
    struct got *g = ctx;
    (void)err;
    assert_int_equal(at, g->n); /* in order */
    assert_int_equal(n, g->width);
    memcpy(g->at + g->n++ * g->width, value, g->width * sizeof *value);
    return MU_OK;
}

/* [n][d_model], freed by the caller. */
static float *embed(const struct mu_model *m, struct how how, const struct mu_embed *want,
                    const struct mu_embed_text *texts, size_t n)
{
    struct mu_solo *solo = solo_of(m, how);
    struct mu_embedder *e = NULL;
    struct got got = {.width = (size_t)m->cfg.d_model};
    got.at = malloc(n * got.width * sizeof *got.at);
    MUST(mu_embedder_create(solo, m, &e, err));
    MUST(mu_embedder_run(e, want, texts, n, take, &got, err));
    assert_int_equal(got.n, n);
    mu_embedder_destroy(e);
    mu_solo_close(solo);
    return got.at;
}

static void same(const float *a, const float *b, size_t n, const char *what)
{
    for (size_t i = 0; i < n; i++)
        if (memcmp(&a[i], &b[i], sizeof *a))
            fail_msg("%s: value %zu is %a, expected %a", what, i, (double)a[i], (double)b[i]);
}

static void ids_fill(int32_t *ids, size_t n, int n_vocab, uint32_t seed)
{
    for (size_t i = 0; i < n; i++) ids[i] = (int32_t)((i * 7919u + seed * 104729u + i * i * 31u) % (uint32_t)n_vocab);
}

/* ---- goldens ---- */

static float *golden_states(const char *name, int32_t *ids, size_t *n_out, size_t *d_out)
{
    char path[700];
    json_error_t jerr;
    snprintf(path, sizeof path, "%s/goldens/%s.json", fixtures_dir(), name);
    json_t *doc = json_load_file(path, 0, &jerr), *prompt = NULL;
    if (!doc) fail_msg("%s: %s", path, jerr.text);
    json_t *prompts = json_object_get(doc, "prompts"), *value;
    size_t i;
    json_array_foreach(prompts, i, value) if (json_object_get(value, "hidden_states")) prompt = value;
    assert_non_null(prompt);
    json_t *where = json_object_get(prompt, "hidden_states"), *shape = json_object_get(where, "shape");
    size_t n_state = (size_t)json_integer_value(json_array_get(shape, 0)),
           n = (size_t)json_integer_value(json_array_get(shape, 1)),
           d = (size_t)json_integer_value(json_array_get(shape, 2));
    long offset = (long)json_integer_value(json_object_get(where, "offset"));
    assert_true(n > 1 && n <= 64);
    for (i = 0; i < n; i++) ids[i] = (int32_t)json_integer_value(json_array_get(json_object_get(prompt, "ids"), i));
    snprintf(path, sizeof path, "%s/goldens/%s.bin", fixtures_dir(), name);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    float *x = malloc(n * d * sizeof *x);
    assert_int_equal(fseek(f, (offset + (long)((n_state - 1) * n * d)) * (long)sizeof *x, SEEK_SET), 0);
    assert_int_equal(fread(x, sizeof *x, n * d, f), n * d);
    fclose(f);
    json_decref(doc);
    *n_out = n;
    *d_out = d;
    return x;
}

/* The tolerance of the fixtures' README for float weights and an f16 cache, of the values' spread. */
static void near(const float *got, const double *want, size_t n, const char *name, const char *what)
{
    double low = want[0], high = want[0];
    for (size_t i = 0; i < n; i++) {
        low = want[i] < low ? want[i] : low;
        high = want[i] > high ? want[i] : high;
    }
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)got[i] - want[i]) / (high - low);
        if (!(d < 2e-3)) fail_msg("%s: %s: value %zu is %g, golden %g", name, what, i, (double)got[i], want[i]);
    }
}

static void test_goldens(void **state)
{
    (void)state;
    static const char *const names[] = {"llama2",    "llama3", "mistral", "mixtral",       "falcon7b",
                                        "falcon40b", "phi2",   "phi3",    "phi3-longrope", "gemma",
                                        "gemma2",    "gemma3", "qwen2",   "qwen3",         "qwen3moe"};
    for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
        char file[64];
        int32_t ids[64];
        size_t n, d;
        float *x = golden_states(names[k], ids, &n, &d);
        double *mean = calloc(d, sizeof *mean), *last = calloc(d, sizeof *last);
        for (size_t i = 0; i < d; i++) {
            for (size_t t = 0; t < n; t++) mean[i] += (double)x[t * d + i] / (double)n;
            last[i] = (double)x[(n - 1) * d + i];
        }
        snprintf(file, sizeof file, "%s.f16", names[k]);
        struct mu_model *m = fixture_model(file);
        assert_int_equal(m->cfg.d_model, d);
        const struct mu_embed_text text = {ids, n};
        float *got = embed(m, (struct how){.n_thread = 2, .n_ctx = (int)n}, &MEAN, &text, 1);
        near(got, mean, d, names[k], "mean");
        free(got);
        got = embed(m, (struct how){.n_thread = 2, .n_ctx = (int)n}, &LAST, &text, 1);
        near(got, last, d, names[k], "last");
        free(got);
        free(x);
        free(mean);
        free(last);
        mu_model_close(m);
    }
}

/* ---- the same bits ---- */

static struct mu_model *model; /* one that needs no fixtures */

static int group_begin(void **state)
{
    (void)state;
    const struct mu_synth spec = {.arch = "llama",
                                  .n_layer = 3,
                                  .n_head = 4,
                                  .n_kv_head = 2,
                                  .d_head = 32,
                                  .d_model = 160,
                                  .d_ff = 256,
                                  .n_vocab = 400,
                                  .n_ctx = 512,
                                  .rope_freq_base = 10000,
                                  .type = MU_Q4_0,
                                  .output_type = MU_Q8_0,
                                  .seed = 3};
    model = synth_open(&spec);
    return 0;
}

static int group_end(void **state)
{
    (void)state;
    mu_model_close(model);
    return 0;
}

enum { N_TEXT = 9, LONGEST = 150 };
static const size_t lengths[N_TEXT] = {1, 2, 3, 31, 32, 33, 150, 7, 64};

struct texts {
    int32_t ids[N_TEXT][LONGEST];
    struct mu_embed_text text[N_TEXT];
};

static void texts_make(struct texts *t)
{
    for (uint32_t i = 0; i < N_TEXT; i++) {
        ids_fill(t->ids[i], lengths[i], model->cfg.n_vocab, i + 1);
        t->text[i] = (struct mu_embed_text){t->ids[i], lengths[i]};
    }
}

/* The mean is the running sum of what each prefix's last token has, divided once. */
static void test_definition(void **state)
{
    (void)state;
    enum { N = 40 };
    size_t d = (size_t)model->cfg.d_model;
    int32_t ids[N];
    struct mu_embed_text prefix[N];
    float sum[512] = {0};
    ids_fill(ids, N, model->cfg.n_vocab, 5);
    for (size_t i = 0; i < N; i++) prefix[i] = (struct mu_embed_text){ids, i + 1};
    float *last = embed(model, (struct how){.n_slot = 4}, &LAST, prefix, N),
          *mean = embed(model, (struct how){.n_slot = 4, .step_tokens = 50}, &MEAN, prefix, N);
    for (size_t t = 0; t < N; t++) {
        float want[512];
        for (size_t i = 0; i < d; i++) {
            sum[i] = sum[i] + last[t * d + i];
            want[i] = sum[i] / (float)(t + 1);
        }
        same(mean + t * d, want, d, "mean of a prefix");
    }
    free(last);
    free(mean);
}

static void test_same_bits(void **state)
{
    (void)state;
    static const struct how ways[] = {{.split = "1", .n_thread = 3, .step_tokens = 2, .n_slot = 1},
                                      {.split = "1", .step_tokens = 7, .n_slot = 3},
                                      {.split = "1:1", .n_thread = 2, .step_tokens = 33, .n_slot = 9},
                                      {.split = "2:1/1", .n_slot = 4},
                                      {.split = "1/2:1", .n_thread = 2, .step_tokens = 40, .n_slot = 5},
                                      {.split = "1:2/1:1/1", .step_tokens = 64, .n_slot = 9}};
    static struct texts t;
    size_t n = N_TEXT * (size_t)model->cfg.d_model;
    const char *best = mu_kernels() ? mu_kernels()->name : NULL;
    texts_make(&t);
    for (int pool = 0; pool < 2; pool++) {
        const struct mu_embed *want = pool ? &MEAN : &LAST;
        float *alone = malloc(n * sizeof *alone);
        for (size_t i = 0; i < N_TEXT; i++) {
            float *one = embed(model, (struct how){.n_slot = 1}, want, &t.text[i], 1);
            memcpy(alone + i * (size_t)model->cfg.d_model, one, n / N_TEXT * sizeof *one);
            free(one);
        }
        for (size_t w = 0; w < sizeof ways / sizeof *ways; w += getenv("MUSTER_TEST_REDUCED") ? 4 : 1) {
            float *got = embed(model, ways[w], want, t.text, N_TEXT);
            same(got, alone, n, ways[w].split);
            free(got);
        }
        for (const struct mu_kernels *const *k = mu_kernels_available(); *k; k++) {
            MUST(mu_kernels_init((*k)->name, err));
            float *got = embed(model, (struct how){.n_thread = 2, .n_slot = 4}, want, t.text, N_TEXT);
            same(got, alone, n, (*k)->name);
            free(got);
        }
        MUST(mu_kernels_init(best, err));
        free(alone);
    }
}

/* Every fixture's architecture under five ranks. */
static void test_families(void **state)
{
    (void)state;
    static const char *const names[] = {"llama3.Q4_K_M", "mixtral.f16", "falcon40b.f16",
                                        "phi2.f16",      "gemma2.Q8_0", "qwen3.f16"};
    for (size_t k = 0; k < sizeof names / sizeof *names; k += getenv("MUSTER_TEST_REDUCED") ? 4 : 1) {
        struct mu_model *m = fixture_model(names[k]);
        int32_t ids[100];
        ids_fill(ids, 100, m->cfg.n_vocab, 9);
        const struct mu_embed_text text[] = {{ids, 100}, {ids + 50, 50}, {ids + 1, 1}};
        float *one = embed(m, (struct how){.n_slot = 3}, &MEAN, text, 3);
        float *five = embed(m, (struct how){.split = "2:1/1:1:1", .step_tokens = 60, .n_slot = 2}, &MEAN, text, 3);
        same(five, one, 3 * (size_t)m->cfg.d_model, names[k]);
        free(one);
        free(five);
        mu_model_close(m);
    }
}

/* Texts and generations share steps and too few pages, so that some are preempted: all as alone. */
static void test_with_generations(void **state)
{
    (void)state;
    enum { N = 6, N_NEW = 100, N_PROMPT = 20, N_TEXT_IDS = 120 };
    const size_t d = (size_t)model->cfg.d_model;
    const struct mu_serving serving = {.n_ctx = 128, .n_slot = 6, .n_page = 6, .step_tokens = 4};
    struct mu_solo_options opt = {.model = model, .n_thread = 2, .serving = serving};
    const struct mu_sched_options so = {.serving = serving,
                                        .n_stage = 1,
                                        .n_vocab = model->cfg.n_vocab,
                                        .max_waiting = N,
                                        .n_ctx_short = model->cfg.n_ctx_short};
    struct mu_sched_event events[6];
    struct mu_solo *solo = NULL;
    struct mu_sched *sched = NULL;
    struct mu_step *step = NULL;
    int32_t ids[N][N_TEXT_IDS], out[N][N_NEW], alone[N_NEW];
    int n_out[N] = {0}, n_left = N, n_begun = 0, n_mean = 0;
    float *vector = calloc(N * d, sizeof *vector);
    MUST(mu_split_parse("1:1", &opt.split, err));
    MUST(mu_solo_open(&opt, &solo, err));
    MUST(mu_sched_create(&so, &sched, err));
    MUST(mu_step_create(&serving, model->cfg.n_vocab, &step, err));
    for (uint32_t i = 0; i < N; i++) {
        bool finished;
        n_mean += i % 4 == 1;
        ids_fill(ids[i], N_TEXT_IDS, model->cfg.n_vocab, 20 + i);
        const struct mu_sched_request r = {.id = i,
                                           .prompt = ids[i],
                                           .n_prompt = i % 2 ? N_TEXT_IDS : N_PROMPT,
                                           .max_tokens = N_NEW,
                                           .embed = i % 2 ? (i % 4 == 1 ? MEAN : LAST) : (struct mu_embed){0}};
        MUST(mu_sched_submit(sched, &r, &finished, err));
    }
    while (n_left > 0) {
        struct mu_step_result result;
        assert_true(mu_sched_next(sched, step));
        MUST(mu_solo_step(solo, step, &result, err));
        for (uint32_t k = 0; k < step->n_seq; k++)
            n_begun += step->seq[k].out == MU_OUT_STATE_SUM && step->seq[k].pos0 == 0;
        int n = mu_sched_complete(sched, step->number, result.id, events);
        for (int k = 0; k < n; k++) {
            const struct mu_sched_event *ev = &events[k];
            size_t i = (size_t)ev->request;
            assert_int_equal(ev->error, MU_OK);
            assert_int_equal(ev->embed.pooling != MU_POOL_NONE, i % 2);
            if (ev->embed.pooling)
                assert_true(
                    mu_embed_finish(&ev->embed, result.state + ev->slot * d, ev->n_tok, (int)d, vector + i * d));
            else
                out[i][n_out[i]++] = ev->id;
            n_left -= ev->finished;
        }
    }
    struct mu_sched_counts counts;
    mu_sched_count(sched, &counts);
    assert_true(counts.preemptions > 0 && n_begun > n_mean); /* a sum was begun again */
    assert_int_equal(counts.free_pages, serving.n_page);
    mu_sched_destroy(sched);
    mu_solo_close(solo);
    mu_free(step);
    for (size_t i = 0; i < N; i++) {
        if (i % 2) {
            const struct mu_embed_text text = {ids[i], N_TEXT_IDS};
            float *one = embed(model, (struct how){.n_slot = 1}, i % 4 == 1 ? &MEAN : &LAST, &text, 1);
            same(vector + i * d, one, d, "beside generations");
            free(one);
            continue;
        }
        struct mu_solo *s = solo_of(model, (struct how){.n_slot = 1});
        int slot = 0;
        MUST(mu_solo_feed(s, 0, ids[i], N_PROMPT, MU_OUT_SAMPLE, NULL, NULL, NULL, &alone[0], err));
        for (int k = 1; k < N_NEW; k++) MUST(mu_solo_decode(s, &slot, &alone[k - 1], 1, NULL, &alone[k], err));
        assert_int_equal(n_out[i], N_NEW);
        assert_memory_equal(out[i], alone, sizeof alone);
        mu_solo_close(s);
    }
    free(vector);
}

/* ---- what is done to a vector ---- */

static void test_finish(void **state)
{
    (void)state;
    enum { D = 100 };
    float x[D], out[D + 1], lane[16] = {0};
    for (int i = 0; i < D; i++) x[i] = (float)((i * 37) % 19 - 9) / 7.0f;
    out[D] = 42;
    assert_true(mu_embed_finish(&MEAN, x, 3, D, out));
    for (int i = 0; i < D; i++) assert_true(out[i] == x[i] / 3.0f);
    assert_true(mu_embed_finish(&LAST, x, 3, D, out));
    assert_memory_equal(out, x, sizeof x);

    const struct mu_embed cut = {.pooling = MU_POOL_LAST, .dimensions = 33};
    out[33] = 42;
    assert_int_equal(mu_embed_len(&cut, D), 33);
    assert_true(mu_embed_finish(&cut, x, 3, D, out));
    for (int i = 0; i < 33; i++) lane[i % 16] = fmaf(x[i], x[i], lane[i % 16]);
    for (int w = 8; w; w /= 2)
        for (int i = 0; i < w; i++) lane[i] = lane[i] + lane[i + w];
    float scale = 1.0f / sqrtf(lane[0]);
    for (int i = 0; i < 33; i++) assert_true(out[i] == x[i] * scale);
    assert_true(out[33] == 42 && out[D] == 42);

    const struct mu_embed whole = {.pooling = MU_POOL_LAST};
    memset(x, 0, sizeof x);
    assert_true(mu_embed_finish(&whole, x, 1, D, out)); /* nothing to divide by */
    assert_memory_equal(out, x, sizeof x);
    x[7] = 3e30f; /* its square is not finite */
    assert_false(mu_embed_finish(&whole, x, 1, D, out));
    assert_true(mu_embed_finish(&LAST, x, 1, D, out));
    x[7] = NAN;
    assert_false(mu_embed_finish(&LAST, x, 1, D, out));
}

/* Weights that overflow: that text is named. */
static void test_not_finite(void **state)
{
    (void)state;
    struct mu_model loud = *model;
    loud.cfg.embed_scale =
        1e38f; /* 1e38 times anything above 3.4 is infinite, and less than that overflows in the norm */
    struct mu_solo *solo = solo_of(&loud, (struct how){.split = "1:1"});
    struct mu_embedder *e = NULL;
    int32_t ids[40];
    struct got got = {0};
    struct mu_err why = MU_ERR_INIT;
    ids_fill(ids, 40, loud.cfg.n_vocab, 1);
    for (size_t n = 1; n <= 40; n += 39) {
        const struct mu_embed_text text = {ids, n};
        MUST(mu_embedder_create(solo, &loud, &e, err));
        assert_int_equal(mu_embedder_run(e, &MEAN, &text, 1, take, &got, &why), MU_ENONFINITE);
        assert_non_null(strstr(why.text, "text 1"));
        mu_embedder_destroy(e);
        mu_solo_close(solo);
        solo = solo_of(&loud, (struct how){.split = "1/1"});
    }
    mu_solo_close(solo);
}

static enum mu_status refuse(void *ctx, size_t at, const float *value, int n, struct mu_err *err)
{
    (void)ctx;
    (void)value;
    (void)n;
    return at == 1 ? mu_fail(err, MU_EIO, "nobody reads") : MU_OK;
}

static void test_refused(void **state)
{
    (void)state;
    int32_t ids[70] = {1, 2, 3}, bad[2] = {1, model->cfg.n_vocab};
    const struct {
        struct mu_embed_text text[3];
        enum mu_status code;
        const char *says;
    } cases[] = {{{{ids, 3}, {ids, 0}}, MU_EINVAL, "text 2"},
                 {{{ids, 64}, {ids, 65}}, MU_ELIMIT, "text 2"},
                 {{{ids, 3}, {bad, 2}}, MU_EINVAL, "text 2"},
                 {{{ids, 3}, {ids, 64}}, MU_EIO, "nobody reads"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct mu_solo *solo = solo_of(model, (struct how){.n_ctx = 64});
        struct mu_embedder *e = NULL;
        struct mu_err why = MU_ERR_INIT;
        MUST(mu_embedder_create(solo, model, &e, err));
        enum mu_status st = mu_embedder_run(e, &MEAN, cases[i].text, 2, refuse, NULL, &why);
        if (st != cases[i].code || !strstr(why.text, cases[i].says)) fail_msg("case %zu: %d: %s", i, st, why.text);
        mu_embedder_destroy(e);
        mu_solo_close(solo);
    }
}

/* Runs after one another share the gang; every allocation of one fails once. */
static void test_no_memory(void **state)
{
    (void)state;
    static struct texts t;
    size_t d = (size_t)model->cfg.d_model;
    texts_make(&t);
    float *want = embed(model, (struct how){.n_slot = 4}, &MEAN, t.text, N_TEXT);
    struct got got = {.at = malloc(N_TEXT * d * sizeof(float)), .width = d};
    bool done = false;
    for (long n = 1; !done; n++) {
        struct mu_solo *solo = solo_of(model, (struct how){.n_slot = 4});
        struct mu_embedder *e = NULL;
        struct mu_err why = MU_ERR_INIT;
        got.n = 0;
        mu_alloc_fail_at(n);
        enum mu_status st = mu_embedder_create(solo, model, &e, &why);
        if (st == MU_OK) st = mu_embedder_run(e, &MEAN, t.text, N_TEXT, take, &got, &why);
        done = mu_alloc_fail_at(0) < n;
        if (st != (done ? MU_OK : MU_ENOMEM)) fail_msg("allocation %ld: %s", n, why.text);
        if (done) {
            got.n = 0;
            MUST(mu_embedder_run(e, &MEAN, t.text, N_TEXT, take, &got, err));
            same(got.at, want, N_TEXT * d, "the second run");
        }
        mu_embedder_destroy(e);
        mu_solo_close(solo);
        assert_true(n < 1000);
    }
    free(got.at);
    free(want);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_finish),     cmocka_unit_test(test_definition),       cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_not_finite), cmocka_unit_test(test_with_generations), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_no_memory),  cmocka_unit_test(test_goldens),          cmocka_unit_test(test_families),
    };
    return cmocka_run_group_tests(tests, group_begin, group_end);
}
