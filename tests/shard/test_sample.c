/* Sampling against a plain reading of its definition, and what a value that is not finite does. */
#include "forward_util.h"

#include <fcntl.h>

#include "base/alloc.h"
#include "kernels/kernels.h"
#include "model/synth.h"

enum { N_VOCAB = 500, D_MODEL = 64 };

static char path[300];

static void model_write(uint32_t output_type)
{
    struct mu_synth spec = {.arch = "llama",
                            .n_layer = 2,
                            .n_head = 4,
                            .n_kv_head = 2,
                            .d_head = 16,
                            .d_model = D_MODEL,
                            .d_ff = 96,
                            .n_vocab = N_VOCAB,
                            .n_ctx = 256,
                            .rope_freq_base = 10000,
                            .type = MU_Q4_0,
                            .output_type = output_type,
                            .seed = 5};
    const char *tmp = getenv("TMPDIR");
    snprintf(path, sizeof path, "%s/muster-sample-%d.gguf", tmp ? tmp : "/tmp", (int)getpid());
    MUST(mu_synth_write(&spec, path, NULL, NULL, err));
}

static struct mu_model *model_open(void)
{
    struct mu_model *m = NULL;
    MUST(mu_model_open(path, &m, err));
    return m;
}

/* Overwrites row `row` of a tensor in the file. */
static void row_patch(const char *name, uint64_t row, const void *bytes, size_t len)
{
    struct mu_gguf *g = NULL;
    MUST(mu_gguf_open(path, &g, err));
    const struct mu_gguf_tensor *t = mu_gguf_tensor(g, name);
    assert_non_null(t);
    assert_int_equal(len, t->row_bytes);
    int fd = open(path, O_WRONLY);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, len, (off_t)(t->offset + row * t->row_bytes)), (ssize_t)len);
    close(fd);
    mu_gguf_close(g);
}

static int32_t sample(struct mu_solo *solo, int32_t id, const struct mu_sampling *how)
{
    int32_t next = -7;
    mu_solo_reset(solo, 0);
    MUST(mu_solo_feed(solo, 0, &id, 1, MU_OUT_SAMPLE, how, NULL, NULL, &next, err));
    return next;
}

/* ---- the definition, by sorting ---- */

static const float *sorted_row;
static int by_logit(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    if (sorted_row[x] != sorted_row[y]) return sorted_row[x] > sorted_row[y] ? -1 : 1;
    return x < y ? -1 : 1;
}

static int32_t expected(const float *row, const struct mu_sampling *how, uint64_t position)
{
    int32_t order[N_VOCAB], best = -1;
    float best_value = 0, terms[N_VOCAB], max;
    for (int i = 0; i < N_VOCAB; i++) order[i] = i;
    sorted_row = row;
    qsort(order, N_VOCAB, sizeof *order, by_logit);
    if (how->temperature == 0) return order[0];
    int n = how->top_k > 0 && how->top_k < N_VOCAB ? (int)how->top_k : N_VOCAB;
    max = row[order[0]] / how->temperature;
    float total = 0, reached = 0;
    for (int i = 0; i < N_VOCAB; i++) terms[i] = mu_expf(row[i] / how->temperature - max);
    if (n == N_VOCAB) { /* rule C6 for fewer than 1,024: 16 lanes, then a tree */
        float lane[16] = {0};
        for (int i = 0; i < N_VOCAB; i++) lane[i % 16] += terms[i];
        for (int half = 8; half; half /= 2)
            for (int i = 0; i < half; i++) lane[i] += lane[i + half];
        total = lane[0];
    } else {
        for (int i = 0; i < n; i++) total += terms[order[i]];
    }
    for (int i = 0; i < n; i++) {
        int32_t id = order[i];
        float v = row[id] / how->temperature - mu_logf(-mu_logf(mu_random_unit(how->seed, position, (uint64_t)id)));
        if (best < 0 || v > best_value || (v == best_value && id < best)) {
            best = id;
            best_value = v;
        }
        reached += terms[id];
        if (how->top_p > 0 && how->top_p < 1 && reached >= how->top_p * total) break;
    }
    return best;
}

static void test_definition(void **state)
{
    (void)state;
    static const struct mu_sampling ways[] = {
        {.temperature = 0},
        {.temperature = 0, .top_k = 5, .top_p = 0.5f},
        {.temperature = 1},
        {.temperature = 0.3f},
        {.temperature = 30},
        {.temperature = 1, .top_k = 1},
        {.temperature = 2, .top_k = 7},
        {.temperature = 5, .top_k = N_VOCAB + 9},
        {.temperature = 1, .top_p = 0.9f},
        {.temperature = 1, .top_p = 1e-6f},
        {.temperature = 3, .top_k = 40, .top_p = 0.5f},
    };
    static const char *const splits[] = {"1", "1:1", "3:1/1:1:1"};
    model_write(MU_Q8_0);
    struct mu_model *m = model_open();
    unlink(path);
    for (int s = 0; s < 3; s++) {
        struct mu_solo *solo = solo_of(m, (struct how){.split = splits[s], .n_thread = s == 0 ? 3 : 1});
        for (int32_t id = 0; id < 6; id++) {
            float *row = logits_all(m, (struct how){0}, &id, 1);
            for (size_t w = 0; w < sizeof ways / sizeof *ways; w++) {
                for (uint64_t seed = 0; seed < 8; seed++) {
                    struct mu_sampling how = ways[w];
                    how.seed = seed * 0x123456789abcdefu;
                    int32_t got = sample(solo, id, &how), want = expected(row, &how, 1);
                    if (got != want)
                        fail_msg("split %s, way %zu, seed %d: id %d, expected %d", splits[s], w, (int)seed, got, want);
                }
            }
            free(row);
        }
        mu_solo_close(solo);
    }
    mu_model_close(m);
}

/* The samples follow the softmax: each id's count within five standard deviations. */
static void test_distribution(void **state)
{
    (void)state;
    enum { N = 3000 };
    int count[N_VOCAB] = {0};
    model_write(MU_Q8_0);
    struct mu_model *m = model_open();
    unlink(path);
    struct mu_solo *solo = solo_of(m, (struct how){0});
    int32_t id = 17;
    float *row = logits_all(m, (struct how){0}, &id, 1);
    double max = row[0], total = 0, temperature = 0.5;
    for (int i = 0; i < N_VOCAB; i++) max = row[i] > max ? row[i] : max;
    for (int i = 0; i < N_VOCAB; i++) total += exp((row[i] - max) / temperature);
    for (int k = 0; k < N; k++)
        count[sample(solo, id, &(struct mu_sampling){.temperature = (float)temperature, .seed = (uint64_t)k})]++;
    for (int i = 0; i < N_VOCAB; i++) {
        double p = exp((row[i] - max) / temperature) / total, sd = sqrt(N * p * (1 - p));
        if (!(fabs(count[i] - N * p) <= 5 * sd + 3))
            fail_msg("id %d came %d times, expected %.1f ± %.1f", i, count[i], N * p, sd);
    }
    free(row);
    mu_solo_close(solo);
    mu_model_close(m);
}

/* All rows of the output matrix equal: every id ties, on every rank. */
static void test_ties(void **state)
{
    (void)state;
    float same[D_MODEL];
    for (int i = 0; i < D_MODEL; i++) same[i] = (float)(i % 7) - 3;
    model_write(MU_F32);
    for (uint64_t r = 0; r < N_VOCAB; r++) row_patch("output.weight", r, same, sizeof same);
    struct mu_model *m = model_open();
    unlink(path);
    static const char *const splits[] = {"1", "1:1", "1/1:2:3"};
    for (int s = 0; s < 3; s++) {
        struct mu_solo *solo = solo_of(m, (struct how){.split = splits[s], .n_thread = 2});
        assert_int_equal(sample(solo, 9, &(struct mu_sampling){.temperature = 0}), 0);
        assert_int_equal(sample(solo, 9, &(struct mu_sampling){.temperature = 1, .top_k = 1}), 0);
        int32_t id = sample(solo, 9, &(struct mu_sampling){.temperature = 1, .top_k = 3, .seed = 1});
        assert_in_range(id, 0, 2);
        mu_solo_close(solo);
    }
    mu_model_close(m);
}

/* One token whose embedding overflows the first norm. Its sequence gets -2 (and NaN logits), its neighbours in the step
 * what they always get. */
static void test_nonfinite(void **state)
{
    (void)state;
    enum { BAD = 3 };
    float huge[D_MODEL];
    for (int i = 0; i < D_MODEL; i++) huge[i] = 1e30f;
    model_write(MU_F32);
    row_patch("token_embd.weight", BAD, huge, sizeof huge);
    struct mu_model *m = model_open();
    unlink(path);
    static const char *const splits[] = {"1", "1:1", "2:1/1:1"};
    for (int s = 0; s < 3; s++) {
        for (int n_fill = 0; n_fill <= 6; n_fill += 6) { /* narrow steps and wide ones */
            struct mu_solo *solo = solo_of(m, (struct how){.split = splits[s], .n_thread = 2, .n_slot = 4});
            int32_t good = sample(solo, 8, &(struct mu_sampling){.temperature = 0});
            struct mu_step *step = NULL;
            struct mu_step_result result;
            MUST(mu_step_create(mu_solo_serving(solo), m->cfg.n_vocab, &step, err));
            step->number = 2;
            step->n_free = 1;
            step->free_slot[0] = 0;
            const int32_t ids[] = {BAD, 8};
            for (uint32_t i = 0; i < 2; i++) {
                uint32_t n = i == 0 ? 1 + (uint32_t)n_fill : 1;
                step->page[step->n_page++] = (struct mu_step_page){i, i};
                step->seq[step->n_seq++] =
                    (struct mu_step_seq){.slot = i, .n_tok = n, .tok_off = step->n_tok, .out = MU_OUT_SAMPLE};
                for (uint32_t t = 0; t < n; t++) step->ids[step->n_tok++] = t == 0 ? ids[i] : 11;
            }
            MUST(mu_solo_step(solo, step, &result, err));
            assert_int_equal(result.id[0], -2);
            assert_int_equal(result.id[1], good);
            step->number = 3;
            step->n_free = step->n_page = 0;
            step->n_seq = step->n_tok = 1; /* the sequence stays poisoned, by its cache alone */
            step->seq[0] = (struct mu_step_seq){.slot = 0,
                                                .pos0 = 1 + (uint32_t)n_fill,
                                                .n_tok = 1,
                                                .out = MU_OUT_SAMPLE,
                                                .sampling = {.temperature = 1, .top_k = 3}};
            step->ids[0] = 8;
            MUST(mu_solo_step(solo, step, &result, err));
            assert_int_equal(result.id[0], -2);
            step->number = 4; /* its pages given to another do no harm */
            step->n_free = step->n_page = 1;
            step->free_slot[0] = 0;
            step->page[0] = (struct mu_step_page){2, 0};
            step->seq[0] = (struct mu_step_seq){.slot = 2, .n_tok = 1, .out = MU_OUT_SAMPLE};
            MUST(mu_solo_step(solo, step, &result, err));
            assert_int_equal(result.id[0], good);
            mu_free(step);
            mu_solo_close(solo);
        }
    }
    mu_model_close(m);
}

/* A weight that is not finite is refused by name. */
static void test_nonfinite_weight(void **state)
{
    (void)state;
    float bad[D_MODEL] = {0};
    bad[5] = INFINITY;
    model_write(MU_F32);
    row_patch("output.weight", 77, bad, sizeof bad);
    struct mu_model *m = model_open();
    unlink(path);
    struct mu_solo_options opt = {.model = m, .n_thread = 2, .serving = {.n_ctx = 32, .n_slot = 1, .step_tokens = 8}};
    struct mu_solo *solo = NULL;
    struct mu_err why = MU_ERR_INIT;
    MUST(mu_split_parse("1:1", &opt.split, err));
    assert_int_equal(mu_solo_open(&opt, &solo, &why), MU_EFORMAT);
    assert_non_null(strstr(why.text, "output.weight"));
    assert_non_null(strstr(why.text, "not finite"));
    mu_model_close(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_definition), cmocka_unit_test(test_distribution),
                                       cmocka_unit_test(test_ties), cmocka_unit_test(test_nonfinite),
                                       cmocka_unit_test(test_nonfinite_weight)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
