/* The fixtures' golden outputs, within the tolerances of their README: f16 cache with float weights, 8-bit activations
 * with quantised ones. */
#include "forward_util.h"

#include <jansson.h>

struct tolerance {
    double d, logprob, kl, gap;
    bool exact_greedy; /* every step whose gap is above `gap` agrees; else 98 % of them */
};
static const struct tolerance FLOATS = {.d = 2e-3, .logprob = 2e-2, .kl = 1e-3, .gap = 0.02, .exact_greedy = true};
static const struct tolerance QUANTISED = {.d = 2e-2, .logprob = 0.2, .kl = 1e-3, .gap = 0.02, .exact_greedy = false};

struct golden {
    json_t *json;
    float *bin;
    size_t n_bin;
    int n_vocab;
    struct tolerance tol;
    int n_steps, n_differ; /* greedy steps that must agree, and those that do not */
    double worst_d, worst_kl, worst_logprob;
};

static void golden_open(struct golden *g, const char *name, struct tolerance tol)
{
    char path[700];
    json_error_t jerr;
    memset(g, 0, sizeof *g);
    g->tol = tol;
    snprintf(path, sizeof path, "%s/goldens/%s.json", fixtures_dir(), name);
    g->json = json_load_file(path, 0, &jerr);
    if (!g->json) fail_msg("%s: %s", path, jerr.text);
    g->n_vocab = (int)json_integer_value(json_object_get(g->json, "n_vocab"));
    snprintf(path, sizeof path, "%s/goldens/%s.bin", fixtures_dir(), name);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    g->n_bin = (size_t)ftell(f) / sizeof(float);
    rewind(f);
    g->bin = malloc(g->n_bin * sizeof(float));
    assert_int_equal(fread(g->bin, sizeof(float), g->n_bin, f), g->n_bin);
    fclose(f);
}

static void golden_close(struct golden *g)
{
    json_decref(g->json);
    free(g->bin);
}

static const float *golden_floats(const struct golden *g, const json_t *where, size_t *n_out)
{
    size_t offset = (size_t)json_integer_value(json_object_get(where, "offset")),
           n = (size_t)json_integer_value(json_object_get(where, "count"));
    assert_true(n > 0 && offset + n <= g->n_bin);
    *n_out = n;
    return g->bin + offset;
}

static int32_t *golden_ids(const json_t *array, size_t *n_out)
{
    size_t n = json_array_size(array);
    int32_t *ids = malloc((n + 1) * sizeof *ids);
    for (size_t i = 0; i < n; i++) ids[i] = (int32_t)json_integer_value(json_array_get(array, i));
    *n_out = n;
    return ids;
}

static double log_sum(const float *x, int n)
{
    double max = x[0], sum = 0;
    for (int i = 1; i < n; i++) max = x[i] > max ? x[i] : max;
    for (int i = 0; i < n; i++) sum += exp(x[i] - max);
    return max + log(sum);
}

static void check_d(struct golden *g, const float *row, const float *want, size_t n, double spread, const char *what)
{
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        double diff = fabs((double)row[i] - want[i]) / spread;
        if (!(diff <= g->tol.d))
            fail_msg("%s: value %zu is %g, golden %g: d %g, at most %g", what, i, (double)row[i], (double)want[i], diff,
                     g->tol.d);
        if (diff > worst) worst = diff;
    }
    if (worst > g->worst_d) g->worst_d = worst;
}

static void check_kl(struct golden *g, const float *row, const float *want, const char *what)
{
    double za = log_sum(want, g->n_vocab), zb = log_sum(row, g->n_vocab), kl = 0;
    for (int i = 0; i < g->n_vocab; i++) kl += exp(want[i] - za) * ((want[i] - za) - (row[i] - zb));
    if (!(kl <= g->tol.kl)) fail_msg("%s: KL %g, at most %g", what, kl, g->tol.kl);
    if (kl > g->worst_kl) g->worst_kl = kl;
}

/* The golden continuation is fed in, so that one differing step does not make the rest meaningless. */
static void check_greedy(struct golden *g, const struct mu_model *m, const json_t *prompt, const int32_t *ids, size_t n)
{
    json_t *greedy = json_object_get(prompt, "greedy");
    size_t n_next;
    int32_t *next = golden_ids(json_object_get(greedy, "ids"), &n_next);
    json_t *gaps = json_object_get(greedy, "gap");
    struct mu_solo *solo = solo_of(m, (struct how){.n_thread = 2, .n_ctx = 300});
    int32_t id = -1;
    int slot = 0;
    const struct mu_sampling sampling = {.temperature = 0};
    MUST(mu_solo_feed(solo, 0, ids, n, MU_OUT_SAMPLE, &sampling, NULL, NULL, &id, err));
    for (size_t i = 0; i < n_next; i++) {
        if (json_number_value(json_array_get(gaps, i)) > g->tol.gap) {
            g->n_steps++;
            g->n_differ += id != next[i];
        }
        if (i + 1 < n_next) MUST(mu_solo_decode(solo, &slot, &next[i], 1, &sampling, &id, err));
    }
    mu_solo_close(solo);
    free(next);
}

static void check_prompt(struct golden *g, const struct mu_model *m, const json_t *prompt)
{
    size_t n, n_want;
    int32_t *ids = golden_ids(json_object_get(prompt, "ids"), &n);
    double spread = json_number_value(json_object_get(prompt, "logit_spread"));
    float *rows = logits_all(m, (struct how){.n_thread = 2}, ids, n);
    const float *last = rows + (n - 1) * (size_t)g->n_vocab;
    const float *want = golden_floats(g, json_object_get(prompt, "last_logits"), &n_want);
    assert_int_equal(n_want, g->n_vocab);
    check_d(g, last, want, n_want, spread, "last logits");
    check_kl(g, last, want, "last logits");
    json_t *all = json_object_get(prompt, "all_logits");
    if (all) {
        want = golden_floats(g, all, &n_want);
        assert_int_equal(n_want, n * (size_t)g->n_vocab);
        check_d(g, rows, want, n_want, spread, "all logits");
    }
    json_t *logprobs = json_object_get(prompt, "next_logprobs");
    if (logprobs) {
        want = golden_floats(g, logprobs, &n_want);
        for (size_t i = 0; i < n_want; i++) {
            const float *row = rows + i * (size_t)g->n_vocab;
            double diff = fabs(row[ids[i + 1]] - log_sum(row, g->n_vocab) - want[i]);
            if (!(diff <= g->tol.logprob))
                fail_msg("log-probability %zu is off by %g, at most %g", i, diff, g->tol.logprob);
            if (diff > g->worst_logprob) g->worst_logprob = diff;
        }
    }
    int32_t first =
        (int32_t)json_integer_value(json_array_get(json_object_get(json_object_get(prompt, "greedy"), "ids"), 0));
    double gap = json_number_value(json_array_get(json_object_get(json_object_get(prompt, "greedy"), "gap"), 0));
    if (g->tol.exact_greedy && gap > g->tol.gap) assert_int_equal(likeliest(last, g->n_vocab), first);
    check_greedy(g, m, prompt, ids, n);
    free(rows);
    free(ids);
}

static void check_model(const char *model, const char *golden, struct tolerance tol)
{
    struct golden g;
    struct mu_model *m = fixture_model(model);
    golden_open(&g, golden, tol);
    assert_int_equal(m->cfg.n_vocab, g.n_vocab);
    json_t *prompts = json_object_get(g.json, "prompts");
    for (size_t i = 0; i < json_array_size(prompts); i++) check_prompt(&g, m, json_array_get(prompts, i));
    print_message("%-16s d %.1e  KL %.1e  log-probabilities %.1e  greedy %d of %d\n", golden, g.worst_d, g.worst_kl,
                  g.worst_logprob, g.n_steps - g.n_differ, g.n_steps);
    assert_true(g.n_steps > 50);
    if (tol.exact_greedy)
        assert_int_equal(g.n_differ, 0);
    else if (!(g.n_differ <= 0.02 * g.n_steps))
        fail_msg("%d of %d greedy steps differ", g.n_differ, g.n_steps);
    golden_close(&g);
    mu_model_close(m);
}

static void test_floats(void **state)
{
    (void)state;
    check_model("llama2.f16", "llama2", FLOATS);
    check_model("llama3.f16", "llama3", FLOATS);
    check_model("llama3.BF16", "llama3.BF16", FLOATS);
    check_model("stories260K.f32", "stories260K", FLOATS);
}

static void test_window(void **state)
{
    (void)state;
    check_model("mistral.f16", "mistral", FLOATS);
}

static void test_families(void **state)
{
    (void)state;
    static const char *const names[] = {"qwen2",  "qwen3",  "phi2",     "phi3",      "phi3-longrope", "gemma",
                                        "gemma2", "gemma3", "falcon7b", "falcon40b", "mixtral",       "qwen3moe"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char file[64];
        snprintf(file, sizeof file, "%s.f16", names[i]);
        check_model(file, names[i], FLOATS);
    }
}

static void test_quantised(void **state)
{
    (void)state;
    static const char *const names[] = {"llama3.Q8_0",   "llama3.Q4_0",    "llama3.Q4_K_M",     "llama3.Q6_K",
                                        "llama3.Q5_K_M", "llama3.IQ4_NL",  "llama3.IQ4_XS",     "llama3.MXFP4",
                                        "llama3.Q4_1",   "llama3.Q5_0",    "llama3.Q5_1",       "llama3.Q3_K_M",
                                        "llama3.Q2_K",   "mixtral.Q4_K_M", "mixtral.MXFP4_MOE", "gemma2.Q8_0",
                                        "gemma2.Q4_0",   "gemma2.Q4_K_M",  "gemma2.Q6_K"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) check_model(names[i], names[i], QUANTISED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_floats), cmocka_unit_test(test_window),
                                       cmocka_unit_test(test_families), cmocka_unit_test(test_quantised)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
