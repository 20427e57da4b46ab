/* Shared pages and drafts change no bit: real ranks, run by the scheduler with them and without, give the same logits at
 * every position, whole and split, also where so few pages are left that sequences are preempted and pages forgotten. The
 * same ids, too, where some of the requests are penalised, constrained, or want log probabilities. */
#include "tests/shard/model_util.h"

#include <string.h>

#include "base/alloc.h"
#include "worker/scheduler.h"
#include "worker/solo.h"

enum { N_VOCAB = 300, N_REQUEST = 10, N_NEW = 40, PREFIX = 70, N_SLOT = 14 };

static struct mu_model *model;

static int group_begin(void **state)
{
    (void)state;
    const struct mu_synth spec = {.arch = "llama",
                                  .n_layer = 3,
                                  .n_head = 4,
                                  .n_kv_head = 2,
                                  .d_head = 32,
                                  .d_model = 128,
                                  .d_ff = 256,
                                  .n_vocab = N_VOCAB,
                                  .n_ctx = 256,
                                  .rope_freq_base = 10000,
                                  .type = MU_Q4_0,
                                  .output_type = MU_Q8_0,
                                  .seed = 5};
    model = synth_open(&spec);
    return 0;
}

static int group_end(void **state)
{
    (void)state;
    mu_model_close(model);
    return 0;
}

struct run {
    struct mu_solo *solo;
    struct mu_sched *sched;
    struct mu_step *step;
    float (*logits)[N_NEW][N_VOCAB]; /* [N_REQUEST] */
    uint32_t n_got[N_REQUEST];
    uint32_t n_tok;
    int32_t n_choice; /* the first so many ids alone are sampled: few repeat themselves soon */
    struct mu_sched_counts counts;
};

static void submit(struct run *r, int i)
{
    int32_t prompt[PREFIX + N_REQUEST];
    bool finished;
    struct mu_sched_request q = {
        .id = (uint64_t)i, .prompt = prompt, .max_tokens = N_NEW, .sampling = {.seed = (uint64_t)i}};
    for (int t = 0; t < PREFIX + i; t++) prompt[t] = t < PREFIX ? (t * 7) % N_VOCAB : (t * 11 + i) % N_VOCAB;
    q.n_prompt = (size_t)PREFIX + (size_t)(i % 4 ? i : 0); /* some have no more than what all have */
    MUST(mu_sched_submit(r->sched, &q, &finished, err));
}

/* One step, with whole logits where it would sample. */
static bool step_once(struct run *r)
{
    struct mu_step_result result;
    struct mu_sched_event events[N_SLOT];
    int32_t id[N_SLOT];
    if (!mu_sched_next(r->sched, r->step)) return false;
    uint8_t out[N_SLOT];
    for (uint32_t i = 0; i < r->step->n_seq; i++) {
        out[i] = r->step->seq[i].out;
        if (out[i] == MU_OUT_SAMPLE) r->step->seq[i].out = MU_OUT_LOGITS;
    }
    MUST(mu_solo_step(r->solo, r->step, &result, err));
    const float *row = result.logits,
                *row_of[N_REQUEST] = {0}; /* the first one of a request, whose number is its seed */
    for (uint32_t i = 0; i < r->step->n_seq; i++) {
        id[i] = out[i] == MU_OUT_SAMPLE ? likeliest(row, r->n_choice) : -1;
        if (id[i] < 0) continue;
        if (!row_of[r->step->seq[i].sampling.seed]) row_of[r->step->seq[i].sampling.seed] = row;
        row += N_VOCAB;
    }
    mu_sched_took(r->sched, 1000 + r->step->n_tok); /* drafts are cheap */
    int n = mu_sched_complete(r->sched, r->step->number, id, events);
    for (int i = 0; i < n; i++) {
        const struct mu_sched_event *e = &events[i];
        assert_int_equal(e->error, MU_OK);
        assert_int_equal(e->id, likeliest(row_of[e->request], r->n_choice));
        assert_int_equal(e->position, r->n_got[e->request]);
        memcpy(r->logits[e->request][r->n_got[e->request]++], row_of[e->request], N_VOCAB * sizeof(float));
        row_of[e->request] += N_VOCAB; /* behind a draft */
    }
    r->n_tok += r->step->n_tok;
    return true;
}

/* Requests come one after another, some together, and end. */
static void run_all(struct run *r, const char *split, uint32_t n_page, int32_t n_choice, bool plain)
{
    struct mu_solo_options so = {.model = model, .n_thread = 2};
    memset(r, 0, sizeof *r);
    r->n_choice = n_choice;
    so.serving = (struct mu_serving){.n_ctx = 160, .n_slot = N_SLOT, .n_page = n_page, .step_tokens = 48};
    MUST(mu_split_parse(split, &so.split, err));
    MUST(mu_solo_open(&so, &r->solo, err));
    const struct mu_sched_options opt = {.serving = *mu_solo_serving(r->solo),
                                         .n_stage = mu_solo_plan(r->solo)->n_stage,
                                         .n_vocab = N_VOCAB,
                                         .max_waiting = N_REQUEST,
                                         .no_prefix_cache = plain,
                                         .no_speculation = plain};
    MUST(mu_sched_create(&opt, &r->sched, err));
    MUST(mu_step_create(&opt.serving, N_VOCAB, &r->step, err));
    r->logits = calloc(N_REQUEST, sizeof *r->logits);
    for (int i = 0; i < N_REQUEST; i++) {
        submit(r, i);
        for (int k = 0; k < 3 && i % 3; k++) step_once(r);
    }
    while (step_once(r)) {}
    for (int i = 0; i < N_REQUEST; i++) assert_int_equal(r->n_got[i], N_NEW);
    mu_sched_count(r->sched, &r->counts);
    assert_int_equal(r->counts.free_pages, opt.serving.n_page);
    mu_free(r->step);
    mu_sched_destroy(r->sched);
    mu_solo_close(r->solo);
}

static void test_the_same_logits(void **state)
{
    (void)state;
    static const char *const splits[] = {"1", "2:1/1"};
    static const uint32_t pages[] = {24, 5}; /* for everybody; for hardly more than one */
    struct run want, got;
    run_all(&want, "1", 24, N_VOCAB, true);
    assert_int_equal(want.counts.cached_tokens, 0);
    for (int s = 0; s < 2; s++)
        for (int p = 0; p < 2; p++) {
            run_all(&got, splits[s], pages[p], N_VOCAB, false);
            assert_memory_equal(got.logits, want.logits, N_REQUEST * sizeof *want.logits);
            print_message("split %s, %u pages: %u tokens computed instead of %u, %llu preemptions\n", splits[s],
                          pages[p], got.n_tok, want.n_tok, (unsigned long long)got.counts.preemptions);
            assert_true(got.n_tok < want.n_tok * 3 / 4);
            assert_true(got.counts.preemptions > 0 || p == 0);
            free(got.logits);
        }
    free(want.logits);
}

static void test_drafts(void **state)
{
    (void)state;
    static const char *const splits[] = {"1", "2:1/1"};
    struct run want, got;
    for (int32_t n_choice = 2; n_choice <= 4; n_choice++) {
        run_all(&want, "1", 70, n_choice, true);
        assert_int_equal(want.counts.drafted, 0);
        for (int s = 0; s < 2; s++) {
            run_all(&got, splits[s], 70, n_choice, false);
            assert_memory_equal(got.logits, want.logits, N_REQUEST * sizeof *want.logits);
            print_message("split %s, %d ids: %llu of %llu drafts were right\n", splits[s], (int)n_choice,
                          (unsigned long long)got.counts.drafts_taken, (unsigned long long)got.counts.drafted);
            assert_true(got.counts.drafts_taken > 40 && got.counts.drafted > got.counts.drafts_taken);
            free(got.logits);
        }
        free(want.logits);
    }
}

/* ---- beside penalties, formats and log probabilities ---- */

enum kind { PLAIN, PENALISED, CONSTRAINED, SCORED, N_KIND }; /* of a request: its number modulo N_KIND */
enum { N_END = 2, N_TOP = 3 };

struct mixed {
    struct mu_solo *solo;
    struct mu_sched *sched;
    struct mu_step *step;
    int32_t ids[N_REQUEST][N_NEW];
    float logprob[N_REQUEST][N_NEW][1 + N_TOP];
    uint32_t n_got[N_REQUEST];
    struct mu_sched_counts counts;
};

/* A few ids, others at each place, so that they come again and would be guessed. */
static bool may_come(int32_t id, size_t n)
{
    return id % 100 == (int)(n % 4);
}

static bool allow(void *ctx, uint64_t request, const int32_t *emitted, size_t n, uint8_t *mask_out)
{
    (void)ctx;
    (void)emitted;
    if (request % N_KIND != CONSTRAINED) return false;
    memset(mask_out, 0, (N_VOCAB + 7) / 8);
    for (int32_t id = 0; id < N_VOCAB; id++)
        if (may_come(id, n)) mask_out[id / 8] |= (uint8_t)(1u << id % 8);
    return true;
}

static void submit_mixed(struct mixed *m, int i)
{
    static const struct mu_bias bias[] = {{40, 9}, {50, 9}, {60, 9}, {20, 4}};
    static const int32_t end[N_END] = {20, 50};
    int32_t prompt[PREFIX + N_REQUEST];
    bool finished;
    struct mu_sched_request q = {.id = (uint64_t)i,
                                 .prompt = prompt,
                                 .n_prompt = (size_t)PREFIX + (size_t)i % 3,
                                 .max_tokens = N_NEW,
                                 .sampling = {.seed = (uint64_t)i},
                                 .priority = (enum mu_priority)(2 - i % 3)}; /* the later ones take pages */
    for (int t = 0; t < PREFIX + N_REQUEST; t++) prompt[t] = t < PREFIX ? t % 9 : (t * 11 + i) % N_VOCAB;
    if (i % N_KIND == PENALISED) { /* without their adjustments its ids would be others */
        q.sampling.repeat_penalty = 1.1f;
        q.sampling.frequency_penalty = 0.3f;
        q.sampling.min_tokens = N_NEW - 2;
        q.bias = bias;
        q.n_bias = sizeof bias / sizeof *bias;
        q.end_ids = end;
        q.n_end = N_END;
    }
    if (i % N_KIND == SCORED) q.sampling.logprobs = true;
    if (i % N_KIND == SCORED) q.sampling.top_logprobs = N_TOP;
    MUST(mu_sched_submit(m->sched, &q, &finished, err));
}

static bool step_mixed(struct mixed *m)
{
    struct mu_step_result result;
    struct mu_sched_event events[N_SLOT];
    if (!mu_sched_next(m->sched, m->step)) return false;
    MUST(mu_solo_step(m->solo, m->step, &result, err));
    mu_sched_took(m->sched, 1000 + m->step->n_tok);
    int n = mu_sched_complete(m->sched, m->step->number, result.id, events);
    for (int i = 0; i < n; i++) {
        const struct mu_sched_event *e = &events[i];
        uint32_t at = m->n_got[e->request]++;
        assert_int_equal(e->error, MU_OK);
        assert_int_equal(e->position, at);
        assert_int_equal(e->logprobs, e->request % N_KIND == SCORED);
        m->ids[e->request][at] = e->id;
        if (e->request % N_KIND == CONSTRAINED) assert_true(may_come(e->id, at));
        if (!e->logprobs) continue;
        const struct mu_logprobs *l = &result.logprobs[e->seq];
        assert_int_equal(l->n_top, N_TOP);
        assert_int_equal(l->top[0].id, e->id); /* greedy */
        m->logprob[e->request][at][0] = l->chosen;
        for (int k = 0; k < N_TOP; k++) m->logprob[e->request][at][1 + k] = l->top[k].logprob;
    }
    return true;
}

/* All together with shared pages and drafts, or one after the other without either. */
static void run_mixed(struct mixed *m, const char *split, enum mu_kv_type kv, uint32_t n_page, bool alone)
{
    struct mu_solo_options so = {.model = model, .n_thread = 2};
    memset(m, 0, sizeof *m);
    so.serving = (struct mu_serving){.n_ctx = 160, .n_slot = N_SLOT, .n_page = n_page, .step_tokens = 48, .kv = kv};
    MUST(mu_split_parse(split, &so.split, err));
    MUST(mu_solo_open(&so, &m->solo, err));
    const struct mu_sched_options opt = {.serving = *mu_solo_serving(m->solo),
                                         .n_stage = mu_solo_plan(m->solo)->n_stage,
                                         .n_vocab = N_VOCAB,
                                         .max_waiting = N_REQUEST,
                                         .no_prefix_cache = alone,
                                         .no_speculation = alone,
                                         .allow = allow};
    MUST(mu_sched_create(&opt, &m->sched, err));
    MUST(mu_step_create(&opt.serving, N_VOCAB, &m->step, err));
    for (int i = 0; i < N_REQUEST; i++) {
        submit_mixed(m, i);
        for (int k = 0; alone ? step_mixed(m) : k < 2 * (i % 3) && step_mixed(m); k++) {}
    }
    while (step_mixed(m)) {}
    mu_sched_count(m->sched, &m->counts);
    assert_int_equal(m->counts.free_pages, opt.serving.n_page);
    mu_free(m->step);
    mu_sched_destroy(m->sched);
    mu_solo_close(m->solo);
}

static void test_beside_penalties_and_formats(void **state)
{
    (void)state;
    static const char *const splits[] = {"1", "2:1/1"};
    static const uint32_t pages[] = {70, 5};
    static struct mixed want, got;
    for (int kv = MU_KV_F16; kv <= MU_KV_Q8_0; kv++) {
        run_mixed(&want, "1", (enum mu_kv_type)kv, 70, true);
        assert_int_equal(want.counts.cached_tokens + want.counts.drafted, 0);
        for (int k = 0; k < 4; k++) {
            run_mixed(&got, splits[k % 2], (enum mu_kv_type)kv, pages[k / 2], false);
            print_message(
                "%s, split %s, %u pages: %llu of %llu drafts were right, %llu tokens cached, %llu preemptions\n",
                kv ? "q8_0" : "f16", splits[k % 2], pages[k / 2], (unsigned long long)got.counts.drafts_taken,
                (unsigned long long)got.counts.drafted, (unsigned long long)got.counts.cached_tokens,
                (unsigned long long)got.counts.preemptions);
            assert_memory_equal(got.n_got, want.n_got, sizeof want.n_got);
            assert_memory_equal(got.ids, want.ids, sizeof want.ids);
            assert_memory_equal(got.logprob, want.logprob, sizeof want.logprob);
            assert_true(got.counts.cached_tokens > 0);
            assert_true(k < 2 ? got.counts.drafts_taken > 20 : got.counts.preemptions > 0);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_the_same_logits), cmocka_unit_test(test_drafts),
                                       cmocka_unit_test(test_beside_penalties_and_formats)};
    return cmocka_run_group_tests(tests, group_begin, group_end);
}
