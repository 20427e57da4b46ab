/* The draft model: what it guesses is a function of the ids that it is asked with, whatever its cache went through before:
 * the very ids that the model says in a gang of its own. */
#include "tests/shard/model_util.h"

#include <string.h>

#include "base/alloc.h"
#include "kernels/kernels.h"
#include "shard/plan_draft.h"
#include "worker/drafter.h"
#include "worker/solo.h"

enum { N_VOCAB = 400, N_CTX = 160, N_TEXT = 6 };

static struct mu_model *plain, *longrope, *model;
static struct mu_pool *pool;

static uint32_t rng(uint32_t n)
{
    static uint64_t state = 7;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33) % n;
}

static struct mu_model *model_make(const char *arch, int n_ctx_short)
{
    const struct mu_synth spec = {.arch = arch,
                                  .n_layer = 2,
                                  .n_head = 4,
                                  .n_kv_head = 2,
                                  .d_head = 32,
                                  .d_model = 128,
                                  .d_ff = 256,
                                  .n_vocab = N_VOCAB,
                                  .n_ctx = N_CTX,
                                  .n_ctx_short = n_ctx_short,
                                  .rope_freq_base = 10000,
                                  .type = MU_Q4_0,
                                  .output_type = MU_Q8_0,
                                  .seed = 5};
    return synth_open(&spec);
}

static int group_begin(void **state)
{
    (void)state;
    plain = model_make("llama", 0);
    longrope = model_make("phi3", 50); /* sequences beyond it turn otherwise */
    assert_int_equal(longrope->cfg.n_ctx_short, 50);
    MUST(mu_kernels_init(NULL, err));
    MUST(mu_pool_create(&(struct mu_pool_options){.n_threads = 2, .thread_init = mu_fp_env_init}, &pool, err));
    return 0;
}

static int group_end(void **state)
{
    (void)state;
    mu_pool_destroy(pool);
    mu_model_close(plain);
    mu_model_close(longrope);
    return 0;
}

static struct mu_drafter *drafter_open(int n_vocab)
{
    struct mu_serving gang = {.n_ctx = 4096, .n_slot = 32, .n_page = 9, .step_tokens = 64, .n_thread = 2};
    struct mu_drafter_options opt = {
        .model = model, .serving = mu_draft_serving(model, &gang), .n_vocab = n_vocab, .pool = pool};
    struct mu_drafter *d = NULL;
    assert_int_equal(opt.serving.n_ctx, N_CTX); /* not longer than the model was made for */
    assert_int_equal(opt.serving.n_slot, MU_DRAFT_SEATS);
    MUST(mu_drafter_create(&opt, &d, err));
    return d;
}

/* What the model says after ids[n], from an empty cache. */
static void say(struct mu_solo *solo, const int32_t *ids, uint32_t n, const struct mu_sampling *sampling, uint32_t most,
                int32_t *out)
{
    const int slot = 0;
    mu_solo_reset(solo, 0);
    MUST(mu_solo_feed(solo, 0, ids, n, MU_OUT_SAMPLE, sampling, NULL, NULL, &out[0], err));
    for (uint32_t i = 1; i < most; i++) MUST(mu_solo_decode(solo, &slot, &out[i - 1], 1, sampling, &out[i], err));
}

static struct mu_solo *solo_open(void)
{
    struct mu_solo_options opt = {
        .model = model, .n_thread = 1, .serving = {.n_ctx = N_CTX, .n_slot = 1, .step_tokens = 64}};
    struct mu_solo *solo = NULL;
    MUST(mu_split_parse("1", &opt.split, err));
    MUST(mu_solo_open(&opt, &solo, err));
    return solo;
}

/* Sequences that grow, are told that guesses were wrong, shrink, begin again as others, more of them than there are
 * seats; asked in any company, read in pieces of any size. */
static void guesses_are_those_of_a_fresh_model(struct mu_model *of)
{
    model = of;
    struct mu_drafter *d = drafter_open(N_VOCAB);
    struct mu_solo *solo = solo_open();
    int32_t text[N_TEXT][N_CTX];
    uint32_t n_text[N_TEXT];
    uint64_t n_draft = 0, n_wait = 0, n_step = 0;
    for (int i = 0; i < N_TEXT; i++) {
        n_text[i] = 1 + rng(60);
        for (uint32_t k = 0; k < N_CTX; k++) text[i][k] = (int32_t)(k < 40 ? k * 7 % N_VOCAB : rng(N_VOCAB));
    }
    for (int round = 0; round < 250; round++) {
        struct mu_draft_ask ask[MU_DRAFT_SEATS];
        int who[MU_DRAFT_SEATS], n = 0;
        for (int i = (int)rng(N_TEXT), left = N_TEXT; left && n < MU_DRAFT_SEATS; i = (i + 1) % N_TEXT, left--) {
            if (rng(2)) continue;
            who[n] = i;
            ask[n++] = (struct mu_draft_ask){
                .sequence = 100 + (uint64_t)i,
                .ids = text[i],
                .n_ids = n_text[i],
                .most = 1 + rng(MU_MAX_DRAFT),
                .sampling = {.temperature = i % 2 ? 1.3f : 0.0f, .top_k = i % 3 ? 0 : 20, .seed = (uint64_t)i}};
        }
        struct mu_draft_took took;
        MUST(mu_drafter_ask(d, ask, n, 1 + rng(200), &took, err));
        n_step += took.n_step;
        for (int k = 0; k < n; k++) {
            struct mu_draft_ask *a = &ask[k];
            int i = who[k];
            int32_t want[MU_MAX_DRAFT];
            if (a->n_behind) {
                assert_int_equal(a->n_draft, 0);
                n_wait++;
                continue;
            }
            assert_int_equal(a->n_draft, a->most);
            say(solo, a->ids, a->n_ids, &a->sampling, a->n_draft, want);
            assert_memory_equal(a->draft, want, a->n_draft * sizeof *want);
            n_draft += a->n_draft;
            /* some of them are right, then comes something else */
            for (uint32_t right = rng(a->n_draft + 1), r = 0; r < right && n_text[i] < N_CTX; r++)
                text[i][n_text[i]++] = a->draft[r];
            if (n_text[i] < N_CTX) n_text[i]++;
            if (rng(12) == 0 || n_text[i] > N_CTX - MU_MAX_DRAFT) {
                n_text[i] = 1 + rng(n_text[i]); /* another one, that begins alike */
                text[i][n_text[i] - 1] = (int32_t)rng(N_VOCAB);
            }
        }
    }
    print_message("%llu guesses in %llu steps; %llu times something was to be read first\n",
                  (unsigned long long)n_draft, (unsigned long long)n_step, (unsigned long long)n_wait);
    assert_true(n_draft > 1000 && n_wait > 20 && n_step < n_draft);
    mu_solo_close(solo);
    mu_drafter_destroy(d);
}

static void test_guesses(void **state)
{
    (void)state;
    guesses_are_those_of_a_fresh_model(plain);
    guesses_are_those_of_a_fresh_model(longrope);
    model = plain;
}

/* Guesses end with the context; ids that only one of the models has end them or prevent them. */
static void test_limits(void **state)
{
    (void)state;
    struct mu_drafter *d = drafter_open(1); /* of the larger model's ids this one makes only id 0 */
    struct mu_draft_took took;
    static int32_t ids[N_CTX];
    for (int i = 0; i < N_CTX; i++) ids[i] = i;
    struct mu_draft_ask ask = {.sequence = 1, .ids = ids, .n_ids = 5, .most = 3};
    MUST(mu_drafter_ask(d, &ask, 1, 1000, &took, err));
    assert_int_equal(ask.n_draft, 0);
    assert_int_equal(took.n_step, 1);
    mu_drafter_destroy(d);

    d = drafter_open(N_VOCAB);
    for (uint32_t n = N_CTX - 2; n <= N_CTX; n++) {
        ask = (struct mu_draft_ask){.sequence = 1, .ids = ids, .n_ids = n, .most = 7};
        MUST(mu_drafter_ask(d, &ask, 1, 1000, &took, err));
        assert_int_equal(ask.n_draft, N_CTX - n);
    }
    ids[3] = N_VOCAB; /* one that the draft model has not */
    ask = (struct mu_draft_ask){.sequence = 1, .ids = ids, .n_ids = 20, .most = 7};
    MUST(mu_drafter_ask(d, &ask, 1, 1000, &took, err));
    assert_int_equal(ask.n_draft + took.n_step, 0);
    mu_drafter_destroy(d);
}

/* A text that was read is read again, and guessed the same. */
static void test_forget(void **state)
{
    (void)state;
    struct mu_drafter *d = drafter_open(N_VOCAB);
    static int32_t ids[60];
    for (int i = 0; i < 60; i++) ids[i] = i * 5;
    struct mu_draft_ask ask[3];
    struct mu_draft_took took[3];
    for (int i = 0; i < 3; i++) {
        if (i == 2) mu_drafter_forget(d);
        ask[i] = (struct mu_draft_ask){.sequence = 1, .ids = ids, .n_ids = 60, .most = 3};
        MUST(mu_drafter_ask(d, &ask[i], 1, 1000, &took[i], err));
        assert_int_equal(took[i].n_read, i == 1 ? 0 : 59);
        assert_int_equal(ask[i].n_draft, 3);
        assert_memory_equal(ask[i].draft, ask[0].draft, 3 * sizeof *ask[0].draft);
    }
    mu_drafter_destroy(d);
}

static void test_every_allocation_can_fail(void **state)
{
    (void)state;
    struct mu_serving gang = {.n_ctx = 64, .n_slot = 2, .step_tokens = 64, .n_thread = 2};
    struct mu_drafter_options opt = {
        .model = model, .serving = mu_draft_serving(model, &gang), .n_vocab = N_VOCAB, .pool = pool};
    for (long n = 1;; n++) {
        struct mu_drafter *d = NULL;
        struct mu_err err = MU_ERR_INIT;
        mu_alloc_fail_at(n);
        enum mu_status st = mu_drafter_create(&opt, &d, &err);
        mu_alloc_fail_at(0);
        mu_drafter_destroy(d);
        if (st == MU_OK) {
            assert_true(n > 8);
            break;
        }
        assert_int_equal(st, MU_ENOMEM);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_guesses), cmocka_unit_test(test_limits),
                                       cmocka_unit_test(test_forget), cmocka_unit_test(test_every_allocation_can_fail)};
    return cmocka_run_group_tests(tests, group_begin, group_end);
}
