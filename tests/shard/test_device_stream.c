/* Layers that are streamed from the host's memory: the same bytes as one processor's, whichever they are, however the host
 * and the steps come and go.
 *
 * The plugin is what $MUSTER_DEVICE_PLUGIN names. The host as a device copies as late as it may and spoils a room as soon as
 * it is free; the emulated GPU copies at once, or, with MUSTER_CUDA_EMULATED_LATE=1, not before it is waited for. */
#include "ways_util.h"

#include <math.h>

#include "worker/rank.h"

enum { N_LAYER = 5, N_ID = 20 };

/* All layers, some, as few as there are rooms; beside another device that streams others, beside processors, in the last
 * stage and not. */
static const char *const splits[] = {"1@gpu0~3", "1@gpu0~4:2@gpu1~3", "1@gpu0~5",           "1@gpu0~2",
                                     "1@gpu0~1", "1/3@gpu0~3",        "3@gpu0~3:1/2@gpu1~2"};
enum { N_SPLIT = sizeof splits / sizeof *splits, N_SHORT = 2 };
static bool is_short;

static struct mu_synth five_layers(size_t i)
{
    struct mu_synth spec = odd_family(i);
    spec.n_layer = N_LAYER;
    return spec;
}

static void test_bytes(void **state)
{
    (void)state;
    for (size_t i = 1; i < N_ODD_FAMILY; i += is_short ? N_ODD_FAMILY : 7) {
        struct mu_synth spec = five_layers(i);
        struct mu_model *m = synth_open(&spec);
        int32_t ids[N_ID];
        char what[200];
        ids_fill(ids, N_ID, m->cfg.n_vocab, 7);
        float *want = logits_all(m, (struct how){0}, ids, N_ID);
        for (int k = 0; k < (is_short ? N_SHORT : N_SPLIT); k++) {
            struct how how = {.split = split_here(splits[k])};
            snprintf(what, sizeof what, "odd %s (%zu), %s", spec.arch, i, splits[k]);
            float *got = logits_chunked(m, how, ids, N_ID, k % 2 ? 1 : 7);
            same(got, want, N_ID, m->cfg.n_vocab, what);
            free(got);
            if (is_short) continue;
            got = logits_in_company(m, how, ids, N_ID);
            same(got, want, N_ID, m->cfg.n_vocab, what);
            free(got);
        }
        free(want);
        mu_model_close(m);
    }
}

/* Chunks of a prompt that want no logits leave the last layer early: the next step's layers are on their way all the same. */
static void test_chunks_without_logits(void **state)
{
    (void)state;
    struct mu_synth spec = five_layers(0);
    struct mu_model *m = synth_open(&spec);
    int32_t ids[N_ID];
    ids_fill(ids, N_ID, m->cfg.n_vocab, 7);
    float *want = logits_all(m, (struct how){0}, ids, N_ID);
    struct mu_solo *solo = solo_of(m, (struct how){.split = "1@gpu0~3", .step_tokens = 4});
    size_t n_vocab = (size_t)m->cfg.n_vocab, last = N_ID - 1;
    struct rows rows = {.at = malloc(N_ID * n_vocab * sizeof(float)), .n_vocab = m->cfg.n_vocab, .n = N_ID - 1};
    MUST(mu_solo_feed(solo, 1, ids, N_ID, MU_OUT_LOGITS, NULL, rows_take, &rows, NULL, err));
    same(rows.at + last * n_vocab, want + last * n_vocab, 1, m->cfg.n_vocab, "the last id");
    mu_solo_close(solo);
    free(rows.at);
    free(want);
    mu_model_close(m);
}

/* A rank that waits for what comes slowly is not taken for hung. */
static void test_patience(void **state)
{
    (void)state;
    struct mu_synth spec = five_layers(0);
    struct mu_model *m = synth_open(&spec);
    const struct mu_serving serving = {.n_ctx = 64, .n_slot = 1, .step_tokens = 1};
    struct mu_split none, four;
    double bytes = 0;
    MUST(mu_split_parse("1@gpu0", &none, err));
    MUST(mu_split_parse("1@gpu0~4", &four, err));
    for (int id = 0; id < MU_T_MATRIX_COUNT; id++)
        if (m->layer[0][id]) bytes += (double)m->layer[0][id]->bytes;
    assert_true(mu_rank_stream_ms(m, &none) == 0);
    assert_true(fabs(4 * mu_rank_stream_ms(m, &four) - 4 * bytes / 2e6) < 1e-9);
    m->cfg.n_layer = 1; /* a layer of a size that shows in whole milliseconds */
    struct mu_gguf_tensor large = *m->layer[0][MU_T_O];
    large.bytes = 500000000;
    m->layer[0][MU_T_O] = &large;
    int64_t more = mu_rank_layer_ms(m, &four, &serving, 1) - mu_rank_layer_ms(m, &none, &serving, 1);
    assert_true(more >= 250 && more < 252);
    m->cfg.n_layer = N_LAYER;
    mu_model_close(m);
}

static void test_not_so_many(void **state)
{
    (void)state;
    struct mu_synth spec = five_layers(0);
    struct mu_model *m = synth_open(&spec);
    struct mu_split split;
    struct mu_plan plan;
    struct mu_err err = MU_ERR_INIT;
    assert_int_equal(mu_split_parse("3@gpu0~4/2", &split, &err), MU_OK);
    assert_int_equal(mu_plan_build(m, &split, &plan, &err), MU_EINVAL);
    assert_string_equal(err.text, "the split has rank 0 stream 4 layers, but its stage has 3");
    mu_model_close(m);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bytes), cmocka_unit_test(test_chunks_without_logits),
                                       cmocka_unit_test(test_patience), cmocka_unit_test(test_not_so_many)};
    is_short = getenv("MUSTER_TEST_REDUCED") || (argc > 1 && strcmp(argv[1], "short") == 0);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
