/* Running models in this process, and where the fixtures are. */
#ifndef MU_TESTS_FORWARD_UTIL_H
#define MU_TESTS_FORWARD_UTIL_H

#include "model_util.h"

#include <math.h>
#include <string.h>

#include "tests/fixtures.h"
#include "worker/solo.h"

static inline struct mu_model *fixture_model(const char *name)
{
    char path[600];
    struct mu_model *m = NULL;
    snprintf(path, sizeof path, "%s/models/%s.gguf", fixtures_dir(), name);
    MUST(mu_model_open(path, &m, err));
    return m;
}

struct how { /* one way to run; zeros are one thread, one rank, all at once */
    const char *split;
    int n_thread, step_tokens, n_slot, n_ctx;
    bool windows; /* layers with a window have pages of their own */
    enum mu_kv_type kv;
    const struct mu_adapters *adapters;
    bool slow_links;
    bool rough; /* prompts, on devices */
};

/* $MUSTER_TEST_PLACES: where the ranks of every split are, in turn, whatever a test says: "gpu0,cpu,gpu1". */
static inline void places_apply(struct mu_split *split)
{
    const char *places = getenv("MUSTER_TEST_PLACES"), *at = places;
    for (int i = 0; places && i < split->n_rank; i++) {
        assert_true(strncmp(at, "gpu", 3) == 0 || strncmp(at, "cpu", 3) == 0);
        split->device[i] = *at == 'g' ? atoi(at + 3) : MU_ON_CPU;
        at = strchr(at, ',') ? strchr(at, ',') + 1 : places;
    }
}

static inline struct mu_solo *solo_of(const struct mu_model *m, struct how how)
{
    struct mu_solo *solo = NULL;
    struct mu_solo_options opt = {.model = m,
                                  .adapters = how.adapters,
                                  .slow_links = how.slow_links,
                                  .n_thread = how.n_thread ? how.n_thread : 1,
                                  .serving = {.n_ctx = how.n_ctx ? how.n_ctx : 256,
                                              .n_slot = how.n_slot ? how.n_slot : 2,
                                              .step_tokens = how.step_tokens ? how.step_tokens : 256,
                                              .window = how.windows ? mu_plan_window(m) : 0,
                                              .kv = how.kv,
                                              .rough = how.rough}};
    MUST(mu_split_parse(how.split ? how.split : "1", &opt.split, err));
    places_apply(&opt.split);
    MUST(mu_solo_open(&opt, &solo, err));
    return solo;
}

struct rows { /* collects logits */
    float *at;
    int n_vocab;
    uint32_t n, position; /* of the last */
};

static inline void rows_take(const float *row, uint32_t position, void *ctx)
{
    struct rows *r = ctx;
    memcpy(r->at + (size_t)r->n * (size_t)r->n_vocab, row, (size_t)r->n_vocab * sizeof *row);
    assert_int_equal(position, r->n); /* all positions, in order */
    r->position = position;
    r->n++;
}

/* Logits of every position, [n][n_vocab]; freed by the caller. */
static inline float *logits_all(const struct mu_model *m, struct how how, const int32_t *ids, size_t n)
{
    struct mu_solo *solo = solo_of(m, how);
    size_t count = n * (size_t)m->cfg.n_vocab;
    struct rows rows = {.at = malloc(count * sizeof(float)), .n_vocab = m->cfg.n_vocab};
    MUST(mu_solo_feed(solo, 0, ids, n, MU_OUT_ALL, NULL, rows_take, &rows, NULL, err));
    assert_int_equal(rows.n, n);
    assert_int_equal(mu_solo_position(solo, 0), n);
    mu_solo_close(solo);
    return rows.at;
}

#endif
