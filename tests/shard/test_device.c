/* Ranks on devices: the same bytes as one processor's, whatever is where.
 *
 * The plugin is what $MUSTER_DEVICE_PLUGIN names: the host as a device, or a GPU's. */
#include "ways_util.h"

/* Devices alone, stages of both kinds, ranks of both kinds in one stage, two ranks on one device. */
static const char *const splits[] = {"1@gpu0",          "1@gpu0:1@gpu1",           "2@gpu0:1", "1@gpu0/1", "1/1@gpu0",
                                     "1:2@gpu1/1@gpu0", "1@gpu0:1@gpu0:1@gpu0:1:1"};
enum { N_SPLIT = sizeof splits / sizeof *splits };
static int only = -1; /* one model of a list: on the emulated device each takes minutes */

static void check_split(const struct mu_model *m, const char *name, const char *split, size_t chunk, const float *want,
                        const int32_t *ids, size_t n, enum mu_kv_type kv)
{
    char what[200];
    int n_vocab = m->cfg.n_vocab;
    struct how how = {.split = split_here(split), .n_thread = 2, .kv = kv};
    snprintf(what, sizeof what, "%s, %s", name, split);
    float *got = logits_all(m, how, ids, n);
    same(got, want, n, n_vocab, what);
    free(got);
    size_t part = chunk > 1 || n < 24 ? n : 24;
    how.n_thread = 1;
    got = logits_chunked(m, how, ids, part, chunk);
    snprintf(what, sizeof what, "%s, %s, chunks of %zu", name, split, chunk);
    same(got, want, part, n_vocab, what);
    free(got);
    got = logits_in_company(m, how, ids, n);
    snprintf(what, sizeof what, "%s, %s, in a batch of 8", name, split);
    same(got, want, n, n_vocab, what);
    free(got);
}

/* i: of the models. Each has every other split, the one before and the one after it those between, unless $MUSTER_TEST_WHOLE is set.
 * Chunks are query by query, or in blocks. */
static void check_ways(const struct mu_model *m, const char *name, size_t i, size_t n, enum mu_kv_type kv)
{
    int32_t ids[256];
    ids_fill(ids, n, m->cfg.n_vocab, 7);
    float *want = logits_all(m, (struct how){.kv = kv}, ids, n);
    for (size_t k = 0; k < N_SPLIT; k++)
        if ((i + k) % 2 == 0 || getenv("MUSTER_TEST_WHOLE"))
            check_split(m, name, splits[k], (i / 2 + k / 2) % 2 ? 1 : 12, want, ids, n, kv);
    free(want);
}

static void test_families(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_ODD_FAMILY; i++) {
        if (only >= 0 && i != (size_t)only) continue;
        char name[60];
        struct mu_model *m = odd_family_open(i, name);
        check_ways(m, name, i, 40, i % 3 == 2 ? MU_KV_Q8_0 : MU_KV_F16);
        mu_model_close(m);
    }
}

static void test_shapes(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_ODD_LLAMA; i++) {
        if (only >= 0 && i != (size_t)only) continue;
        char name[60];
        struct mu_synth spec = odd_llama(i);
        struct mu_model *m = synth_open(&spec);
        snprintf(name, sizeof name, "odd shape %zu", i);
        check_ways(m, name, i, spec.n_vocab > 10000 ? 20 : 40, i % 2 ? MU_KV_Q8_0 : MU_KV_F16);
        mu_model_close(m);
    }
}

/* Window pages: every family with a window. */
static void test_windows(void **state)
{
    (void)state;
    static const char *const ways[] = {"1@gpu0", "1:2@gpu1/1@gpu0"};
    enum { N = 240 };
    for (size_t i = 0; i < N_ODD_FAMILY; i++) {
        struct mu_synth spec = odd_family(i);
        if ((only >= 0 && i != (size_t)only) || !spec.window) continue;
        struct mu_model *m = synth_open(&spec);
        enum mu_kv_type kv = i % 2 ? MU_KV_Q8_0 : MU_KV_F16;
        int32_t ids[N];
        ids_fill(ids, N, m->cfg.n_vocab, 7);
        float *want = logits_all(m, (struct how){.kv = kv}, ids, N);
        for (int k = 0; k < 2; k++) check_windows(m, spec.arch, split_here(ways[k]), kv, ids, want, N);
        free(want);
        mu_model_close(m);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_families), cmocka_unit_test(test_shapes),
                                       cmocka_unit_test(test_windows)};
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    if (argc > 2) only = atoi(argv[2]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
