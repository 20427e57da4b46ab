/* Prompts that devices compute roughly: what comes out is not the exact bytes, but near, and the same bytes however the
 * prompt is cut, whatever runs beside it and however ranks on devices split the model.
 *
 * The plugin is what $MUSTER_DEVICE_PLUGIN names: the host as a device, which then rounds what it may, or a GPU's. */
#include "ways_util.h"

enum { N = 40 };
static int only = -1; /* one model of a list */

/* The largest difference, in spreads of the exact logits. */
static double distance(const float *got, const float *exact, size_t n)
{
    double low = (double)exact[0], high = low, most = 0;
    for (size_t i = 0; i < n; i++) {
        double x = (double)exact[i], d = fabs((double)got[i] - x);
        if (x < low) low = x;
        if (x > high) high = x;
        if (!(d <= most)) most = d;
    }
    return most / (high - low);
}

static void check_split(const struct mu_model *m, const char *name, struct how how, const int32_t *ids,
                        const float *want)
{
    char what[200];
    for (size_t chunk = strcmp(how.split, "1@gpu0") ? 15 : 1; chunk <= 15; chunk += 7) {
        how.n_thread = 1;
        float *got = logits_chunked(m, how, ids, N, chunk);
        snprintf(what, sizeof what, "%s, %s, chunks of %zu", name, how.split, chunk);
        same(got, want, N, m->cfg.n_vocab, what);
        free(got);
    }
    float *got = logits_in_company(m, how, ids, N);
    snprintf(what, sizeof what, "%s, %s, in a batch of 8", name, how.split);
    same(got, want, N, m->cfg.n_vocab, what);
    free(got);
}

static void check_model(const struct mu_model *m, const char *name, enum mu_kv_type kv)
{
    static const char *const splits[] = {"1@gpu0", "1@gpu0:1@gpu1", "1:2@gpu1/1@gpu0"};
    int32_t ids[N];
    size_t n = (size_t)N * (size_t)m->cfg.n_vocab;
    float *first = NULL;
    ids_fill(ids, N, m->cfg.n_vocab, 7);
    float *exact = logits_all(m, (struct how){.kv = kv}, ids, N);
    for (int i = 0; i < 3; i++) {
        struct how how = {.split = split_here(splits[i]), .n_thread = 2, .kv = kv, .rough = true};
        float *want = logits_all(m, how, ids, N);
        if (i == 1) same(want, first, N, m->cfg.n_vocab, how.split);
        if (memcmp(want, exact, n * sizeof *want) == 0) fail_msg("%s, %s: nothing is rough", name, how.split);
        /* another expert, where two were nearly as good, is another result */
        if (distance(want, exact, n) > (m->cfg.n_expert ? 0.5 : 0.05))
            fail_msg("%s, %s: %.3f spreads from exact", name, how.split, distance(want, exact, n));
        check_split(m, name, how, ids, want);
        if (i == 0)
            first = want;
        else
            free(want);
    }
    free(first);
    free(exact);
}

static void test_families(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_ODD_FAMILY; i++) {
        if (only >= 0 && i != (size_t)only) continue;
        char name[60];
        struct mu_model *m = odd_family_open(i, name);
        check_model(m, name, i % 3 == 2 ? MU_KV_Q8_0 : MU_KV_F16);
        mu_model_close(m);
    }
}

/* What is generated is exact, after a prompt that was not; so a sequence that is computed again needs to know where its
 * prompt ended, and then it gives the same. */
static void test_generated(void **state)
{
    enum { N_PROMPT = 20, N_MORE = 6 };
    (void)state;
    struct mu_synth spec = odd_family(0);
    struct mu_model *m = synth_open(&spec);
    struct mu_solo *solo = solo_of(m, (struct how){.split = "1@gpu0", .rough = true});
    struct mu_step *step = NULL;
    const struct mu_sampling greedy = {0};
    int32_t ids[N_PROMPT + N_MORE + 1];
    ids_fill(ids, N_PROMPT, m->cfg.n_vocab, 3);
    MUST(mu_solo_feed(solo, 0, ids, N_PROMPT, MU_OUT_SAMPLE, &greedy, NULL, NULL, &ids[N_PROMPT], err));
    for (int i = 0; i < N_MORE; i++) {
        int slot = 0;
        MUST(mu_solo_decode(solo, &slot, &ids[N_PROMPT + i], 1, &greedy, &ids[N_PROMPT + i + 1], err));
    }
    mu_solo_close(solo);

    solo = solo_of(m, (struct how){.split = "1@gpu0", .rough = true});
    MUST(mu_step_create(mu_solo_serving(solo), m->cfg.n_vocab, &step, err));
    struct mu_step_result result;
    step->number = 1;
    step->n_page = 1;
    step->page[0] = (struct mu_step_page){0, 0};
    step->n_seq = 2;
    step->n_tok = N_PROMPT + N_MORE;
    step->seq[0] = (struct mu_step_seq){.n_tok = N_PROMPT, .rough = 1};
    step->seq[1] = (struct mu_step_seq){.pos0 = N_PROMPT, .n_tok = N_MORE, .tok_off = N_PROMPT, .out = MU_OUT_SAMPLE};
    memcpy(step->ids, ids, step->n_tok * sizeof *ids);
    MUST(mu_solo_step(solo, step, &result, err));
    assert_int_equal(result.id[1], ids[N_PROMPT + N_MORE]);
    mu_free(step);
    mu_solo_close(solo);
    mu_model_close(m);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_families), cmocka_unit_test(test_generated)};
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    if (argc > 2) only = atoi(argv[2]);
    if (setenv("MUSTER_DEVICE_HOST_ROUGH", "1", 1) != 0) return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
