/* Pages of layers with a window, by the scheduler: real ranks give the same logits and states as without, whole and split,
 * with shared prefixes and guesses, where pages run out, and while everything that a sequence let go of is spoiled. */
#include "tests/shard/model_util.h"

#include <string.h>

#include "base/alloc.h"
#include "shard/parts.h"
#include "worker/sched_parts.h"
#include "worker/solo.h"

enum { N_VOCAB = 300, D_MODEL = 128, WINDOW = 20, N_CTX = 384, N_SLOT = 6, N_REQUEST = 9, N_NEW = 50, PREFIX = 100 };
enum { MEAN = 3, LAST = 6 }; /* requests that are texts to be embedded */

static struct mu_model *model_open(const char *arch)
{
    const struct mu_synth spec = {.arch = arch,
                                  .n_layer = 7,
                                  .n_head = 4,
                                  .n_kv_head = 2,
                                  .d_head = 32,
                                  .d_model = D_MODEL,
                                  .d_ff = 192,
                                  .n_vocab = N_VOCAB,
                                  .n_ctx = N_CTX,
                                  .window = WINDOW,
                                  .rope_freq_base = 10000,
                                  .type = MU_Q4_0,
                                  .output_type = MU_Q8_0,
                                  .seed = 5};
    return synth_open(&spec);
}

struct way {
    const char *split;
    uint32_t n_page;  /* full ones */
    int32_t n_choice; /* the first so many ids alone are sampled: few repeat themselves soon */
    bool windows, share, guess;
};

struct trial {
    const struct way *way;
    struct mu_solo *solo;
    struct mu_sched *sched;
    struct mu_step *step;
    float logits[N_REQUEST][N_NEW][N_VOCAB], state[N_REQUEST][D_MODEL];
    uint32_t n_got[N_REQUEST], n_spoiled, n_begun_late;
    struct mu_sched_counts counts;
};

static void submit(struct trial *r, int i)
{
    int32_t prompt[2 * PREFIX];
    bool finished;
    struct mu_sched_request q = {.id = (uint64_t)i,
                                 .prompt = prompt,
                                 .n_prompt = (size_t)PREFIX + (size_t)(i % 4 ? 17 * (i % 5) : 0),
                                 .max_tokens = N_NEW,
                                 .sampling = {.seed = (uint64_t)i},
                                 .priority = (enum mu_priority)(2 - i % 3)}; /* later ones take pages */
    if (i == MEAN || i == LAST) q.embed.pooling = i == MEAN ? MU_POOL_MEAN : MU_POOL_LAST;
    for (int t = 0; t < 2 * PREFIX; t++) prompt[t] = t < PREFIX ? (t * 7) % N_VOCAB : (t * 11 + i) % N_VOCAB;
    MUST(mu_sched_submit(r->sched, &q, &finished, err));
}

/* Whoever looks at a window page that nobody has and nobody can find sees numbers that are none. */
static void spoil(struct trial *r)
{
    for (uint32_t page = 0; page < r->sched->n_window; page++) {
        if (mu_kv_pool_holders(r->sched->window, page) || mu_kv_pool_identity(r->sched->window, page)) continue;
        for (int i = 0; i < mu_solo_plan(r->solo)->n_rank; i++) {
            const struct kv *kv = &mu_solo_shard(r->solo, i)->kv;
            for (int l = 0; l < mu_range_len(mu_solo_shard(r->solo, i)->stage.layers); l++)
                for (int h = 0; kv->layer[l].group == KV_WINDOW && h < kv->n_head; h++)
                    memset(kv->data + kv->layer[l].offset + ((size_t)h * kv->n_page[KV_WINDOW] + page) * kv->page_bytes,
                           0x7e, kv->page_bytes); /* f16: not a number */
        }
        r->n_spoiled++;
    }
}

/* One step, with whole logits where it would sample. */
static bool step_once(struct trial *r)
{
    struct mu_step_result result;
    struct mu_sched_event events[N_SLOT];
    int32_t id[N_SLOT];
    uint8_t out[N_SLOT];
    if (!mu_sched_next(r->sched, r->step)) return false;
    if (r->sched->window) spoil(r);
    for (uint32_t i = 0; i < r->step->n_seq; i++) {
        out[i] = r->step->seq[i].out;
        if (out[i] == MU_OUT_SAMPLE) r->step->seq[i].out = MU_OUT_LOGITS;
    }
    MUST(mu_solo_step(r->solo, r->step, &result, err));
    const float *row = result.logits, *row_of[N_REQUEST] = {0};
    for (uint32_t i = 0; i < r->step->n_seq; i++) {
        id[i] = out[i] == MU_OUT_SAMPLE ? likeliest(row, r->way->n_choice) : -1;
        if (out[i] != MU_OUT_SAMPLE) continue;
        if (!row_of[r->step->seq[i].sampling.seed]) row_of[r->step->seq[i].sampling.seed] = row;
        row += N_VOCAB;
    }
    mu_sched_took(r->sched, 1000 + r->step->n_tok); /* guesses are cheap */
    int n = mu_sched_complete(r->sched, r->step->number, id, events);
    for (int i = 0; i < n; i++) {
        const struct mu_sched_event *e = &events[i];
        assert_int_equal(e->error, MU_OK);
        if (e->embed.pooling) {
            memcpy(r->state[e->request], result.state + (size_t)e->slot * D_MODEL, sizeof r->state[0]);
            r->n_got[e->request] = N_NEW;
            continue;
        }
        assert_int_equal(e->position, r->n_got[e->request]);
        memcpy(r->logits[e->request][r->n_got[e->request]++], row_of[e->request], sizeof r->logits[0][0]);
        row_of[e->request] += N_VOCAB; /* behind a guess */
    }
    assert_true(mu_kv_pool_sound(r->sched->pool) && (!r->sched->window || mu_kv_pool_sound(r->sched->window)));
    return true;
}

/* Requests come one after another, some together, and end. */
static struct trial *run_all(const struct mu_model *m, const struct way *way)
{
    struct mu_solo_options so = {.model = m, .n_thread = way->split[1] ? 1 : 2};
    struct trial *r = calloc(1, sizeof *r);
    r->way = way;
    so.serving = (struct mu_serving){.n_ctx = N_CTX,
                                     .n_slot = N_SLOT,
                                     .n_page = way->n_page,
                                     .step_tokens = 24,
                                     .window = way->windows ? mu_plan_window(m) : 0};
    MUST(mu_split_parse(way->split, &so.split, err));
    MUST(mu_solo_open(&so, &r->solo, err));
    const struct mu_sched_options opt = {.serving = *mu_solo_serving(r->solo),
                                         .n_stage = mu_solo_plan(r->solo)->n_stage,
                                         .n_vocab = N_VOCAB,
                                         .max_waiting = N_REQUEST,
                                         .no_prefix_cache = !way->share,
                                         .no_speculation = !way->guess};
    MUST(mu_sched_create(&opt, &r->sched, err));
    assert_int_equal(r->sched->window != NULL, way->windows);
    MUST(mu_step_create(&opt.serving, N_VOCAB, &r->step, err));
    for (int i = 0; i < N_REQUEST; i++) {
        submit(r, i);
        for (int k = 0; k < 6 && i % 3; k++) step_once(r);
    }
    while (step_once(r)) {}
    for (int i = 0; i < N_REQUEST; i++) assert_int_equal(r->n_got[i], N_NEW);
    mu_sched_count(r->sched, &r->counts);
    assert_int_equal(r->counts.free_pages, opt.serving.n_page);
    if (r->sched->window) assert_int_equal(mu_kv_pool_available(r->sched->window), r->sched->n_window);
    mu_free(r->step);
    mu_sched_destroy(r->sched);
    mu_solo_close(r->solo);
    return r;
}

static void check(const char *arch)
{
    static const struct way plain = {"1", 72, 3, false, false, false};
    static const struct way ways[] = {
        {"1", 72, 3, true, false, false},   {"2:1/1", 72, 3, true, false, true}, {"1", 72, 3, true, true, true},
        {"1/1:1", 72, 3, true, true, true}, {"1", 12, 3, true, true, true},      {"2:1/1", 12, 3, true, false, false},
    };
    struct mu_model *m = model_open(arch);
    struct trial *want = run_all(m, &plain);
    uint64_t taken = 0, preempted = 0, cached = 0, spoiled = 0;
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        struct trial *got = run_all(m, &ways[i]);
        const struct mu_sched_counts *c = &got->counts;
        print_message("%s, split %s, %u pages: %llu tokens cached, %llu guesses right, %llu preemptions\n", arch,
                      ways[i].split, ways[i].n_page, (unsigned long long)c->cached_tokens,
                      (unsigned long long)c->drafts_taken, (unsigned long long)c->preemptions);
        assert_memory_equal(got->logits, want->logits, sizeof want->logits);
        assert_memory_equal(got->state, want->state, sizeof want->state);
        spoiled += got->n_spoiled;
        taken += c->drafts_taken;
        preempted += c->preemptions;
        cached += ways[i].share ? c->cached_tokens : 0;
        free(got);
    }
    assert_true(taken > 30 && preempted > 0 && cached > 500 && spoiled > 1000);
    free(want);
    mu_model_close(m);
}

/* One layer of seven sees everything; none does. */
static void test_some_layers(void **state)
{
    (void)state;
    check("gemma3");
}
static void test_all_layers(void **state)
{
    (void)state;
    check("llama");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_some_layers), cmocka_unit_test(test_all_layers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
