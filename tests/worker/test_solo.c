/* The gang inside one process: slots, pages, limits, failures of a rank. */
#include "tests/shard/model_util.h"

#include <stdatomic.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/fault.h"
#include "worker/solo.h"

static struct mu_model *model;

/* The clock of all that is linked here: each of the next n_jump looks finds it half a minute and more ahead. */
int64_t __real_mu_now_ns(void);
int64_t __wrap_mu_now_ns(void);
static atomic_int n_jump;
static atomic_llong jumped_ns;

int64_t __wrap_mu_now_ns(void)
{
    if (atomic_load(&n_jump) > 0 && atomic_fetch_sub(&n_jump, 1) > 0) atomic_fetch_add(&jumped_ns, 31 * MU_SEC);
    return __real_mu_now_ns() + atomic_load(&jumped_ns);
}

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
                                  .n_vocab = 400,
                                  .n_ctx = 256,
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

static struct mu_solo *solo_open(const char *split, struct mu_serving serving)
{
    struct mu_solo_options opt = {.model = model, .n_thread = 2, .serving = serving, .pin = 1};
    struct mu_solo *solo = NULL;
    MUST(mu_split_parse(split, &opt.split, err));
    MUST(mu_solo_open(&opt, &solo, err));
    return solo;
}

/* Greedy continuation of `prompt` alone in a slot. */
static void continuation(struct mu_solo *solo, int slot, const int32_t *prompt, size_t n, int32_t *out, int n_out)
{
    mu_solo_reset(solo, slot);
    MUST(mu_solo_feed(solo, slot, prompt, n, MU_OUT_SAMPLE, NULL, NULL, NULL, &out[0], err));
    for (int i = 1; i < n_out; i++) MUST(mu_solo_decode(solo, &slot, &out[i - 1], 1, NULL, &out[i], err));
}

/* Every talk of a decode is noted on every rank: in order, within the step, and as many exchanges on all ranks of a
 * stage. */
static void check_traces(struct mu_solo *solo)
{
    enum { MAX = 512 };
    static struct mu_shard_span span[MU_MAX_RANKS][MAX];
    struct mu_shard_trace trace[MU_MAX_RANKS];
    const struct mu_plan *plan = mu_solo_plan(solo);
    const int slot = 0;
    int32_t id = 1, next;
    size_t exchanges[MU_MAX_RANKS] = {0};
    for (int r = 0; r < plan->n_rank; r++) {
        trace[r] = (struct mu_shard_trace){.span = span[r], .max = MAX};
        mu_shard_set_trace(mu_solo_shard(solo, r), &trace[r]);
    }
    int64_t begin = mu_now_ns();
    MUST(mu_solo_decode(solo, &slot, &id, 1, NULL, &next, err));
    int64_t end = mu_now_ns();
    for (int r = 0; r < plan->n_rank; r++) {
        int64_t last = begin;
        mu_shard_set_trace(mu_solo_shard(solo, r), NULL);
        for (size_t i = 0; i < trace[r].n; i++) {
            assert_true(span[r][i].begin_ns >= last && span[r][i].end_ns >= span[r][i].begin_ns);
            last = span[r][i].end_ns;
            exchanges[r] += span[r][i].op == MU_OP_EXCHANGE;
        }
        assert_true(last <= end);
        const struct mu_plan_stage *stage = &plan->stage[plan->rank[r].stage];
        assert_int_equal(exchanges[r], exchanges[stage->first_rank]);
        assert_int_equal(exchanges[r] > 0, stage->n_rank > 1);
        assert_int_equal(trace[r].n - exchanges[r],
                         (plan->rank[r].stage > 0) + (plan->rank[r].stage < plan->n_stage - 1));
        trace[r].n = 0;
    }
    MUST(mu_solo_decode(solo, &slot, &next, 1, NULL, &id, err));
    for (int r = 0; r < plan->n_rank; r++) assert_int_equal(trace[r].n, 0); /* nobody notes any more */
}

/* Guesses in one step with the decode: what is taken is what comes without, however many are right, in a gang whose ranks
 * are several as well. */
static void test_guesses(void **state)
{
    (void)state;
    enum { LEN = 40 };
    static const char *const splits[] = {"1", "2:1/1"};
    const struct mu_sampling sampling = {.temperature = 1.1f, .seed = 4};
    int32_t want[LEN], got[LEN + 8], prompt[5] = {3, 1, 4, 1, 5};
    const int slot = 0;
    for (int s = 0; s < 2; s++) {
        struct mu_solo *solo =
            solo_open(splits[s], (struct mu_serving){.n_ctx = 96, .n_slot = 8, .n_page = 3, .step_tokens = 16});
        MUST(mu_solo_feed(solo, 0, prompt, 5, MU_OUT_SAMPLE, &sampling, NULL, NULL, &want[0], err));
        for (int i = 1; i < LEN; i++) MUST(mu_solo_decode(solo, &slot, &want[i - 1], 1, &sampling, &want[i], err));
        mu_solo_reset(solo, 0);
        MUST(mu_solo_feed(solo, 0, prompt, 5, MU_OUT_SAMPLE, &sampling, NULL, NULL, &got[0], err));
        for (int n = 1, turn = 0; n < LEN; turn++) {
            int n_guess = turn % 8, right = turn % 3 ? n_guess : n_guess / 2, n_out;
            int32_t ids[8] = {got[n - 1]}, next[8];
            if (n_guess > LEN - n) n_guess = LEN - n;
            if (right > n_guess) right = n_guess;
            for (int i = 0; i < n_guess; i++) ids[1 + i] = i < right ? want[n + i] : (want[n + i] + 1) % 400;
            MUST(mu_solo_guess(solo, 0, ids, 1 + n_guess, &sampling, next, &n_out, err));
            assert_int_equal(n_out, right + 1);
            assert_int_equal(mu_solo_position(solo, 0), 5 + n - 1 + n_out);
            for (int i = 0; i < n_out; i++) got[n++] = next[i];
        }
        assert_memory_equal(got, want, sizeof want);
        mu_solo_close(solo);
    }
}

/* Many slots decoded together give what each gives alone; slots are used again and pages return. */
static void test_slots(void **state)
{
    (void)state;
    enum { N = 5, LEN = 12 };
    static const char *const splits[] = {"1", "1:1", "2:1/1"};
    int32_t want[N][LEN], got[N][LEN], prompt[N][20];
    for (int s = 0; s < 3; s++) {
        struct mu_solo *solo = solo_open(splits[s], (struct mu_serving){.n_ctx = 96, .n_slot = N, .step_tokens = 16});
        int slots[N];
        for (int round = 0; round < 2; round++) {
            for (int i = 0; i < N; i++) {
                for (int t = 0; t < 20; t++) prompt[i][t] = (i * 31 + t * 7 + round) % 400;
                continuation(solo, (i + round) % N, prompt[i], (size_t)(4 * i + 1), want[i], LEN);
                assert_int_equal(mu_solo_position(solo, (i + round) % N), 4 * i + LEN);
            }
            int32_t next[N];
            for (int i = 0; i < N; i++) {
                slots[i] = N - 1 - i;
                mu_solo_reset(solo, slots[i]);
            }
            for (int i = 0; i < N; i++)
                MUST(mu_solo_feed(solo, slots[i], prompt[i], (size_t)(4 * i + 1), MU_OUT_SAMPLE, NULL, NULL, NULL,
                                  &next[i], err));
            for (int t = 0; t < LEN; t++) {
                int32_t ids[N];
                for (int i = 0; i < N; i++) ids[i] = got[i][t] = next[i];
                if (t + 1 < LEN) MUST(mu_solo_decode(solo, slots, ids, N, NULL, next, err));
            }
            for (int i = 0; i < N; i++) assert_memory_equal(got[i], want[i], sizeof got[i]);
        }
        struct mu_shard_times times;
        mu_shard_take_times(mu_solo_shard(solo, mu_solo_plan(solo)->leader), &times);
        assert_true(times.compute_s > 0);
        assert_true(s == 0 ? times.exchange_s == 0 : times.exchange_s + times.recv_s > 0);
        assert_true(times.attention_s > 0 && times.sampling_s > 0);
        assert_true(times.attention_s + times.sampling_s < times.compute_s);
        check_traces(solo);
        mu_solo_close(solo);
    }
}

/* A sequence that was cut back goes on as if what followed had never been: at every length around blocks and pages. */
static void test_truncate(void **state)
{
    (void)state;
    enum { N = 70, LEN = 8 };
    static const char *const splits[] = {"1", "2:1/1"};
    int32_t prompt[N], other[N + 10], want[LEN], got[LEN];
    for (int t = 0; t < N; t++) prompt[t] = (t * 7) % 400;
    for (int t = 0; t < N + 10; t++) other[t] = (t * 11 + 3) % 400;
    for (int s = 0; s < 2; s++) {
        struct mu_solo *solo = solo_open(splits[s], (struct mu_serving){.n_ctx = 96, .n_slot = 2, .step_tokens = 16});
        static const uint32_t keeps[] = {0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 69};
        for (size_t k = 0; k < sizeof keeps / sizeof *keeps; k++) {
            uint32_t keep = keeps[k];
            int slot = 1;
            continuation(solo, 0, prompt, N, want, LEN);
            mu_solo_reset(solo, slot);
            MUST(mu_solo_feed(solo, slot, prompt, keep, MU_OUT_NONE, NULL, NULL, NULL, NULL, err));
            MUST(mu_solo_feed(solo, slot, other, N + 10 - keep, MU_OUT_NONE, NULL, NULL, NULL, NULL, err));
            mu_solo_truncate(solo, slot, keep);
            mu_solo_truncate(solo, slot, N); /* not longer */
            assert_int_equal(mu_solo_position(solo, slot), keep);
            MUST(mu_solo_feed(solo, slot, prompt + keep, N - keep, MU_OUT_SAMPLE, NULL, NULL, NULL, &got[0], err));
            for (int i = 1; i < LEN; i++) MUST(mu_solo_decode(solo, &slot, &got[i - 1], 1, NULL, &got[i], err));
            assert_memory_equal(got, want, sizeof got);
        }
        mu_solo_close(solo);
    }
}

static void test_limits(void **state)
{
    (void)state;
    struct mu_solo *solo =
        solo_open("1", (struct mu_serving){.n_ctx = 64, .n_slot = 2, .n_page = 3, .step_tokens = 64});
    int32_t ids[80] = {0}, id;
    struct mu_err why = MU_ERR_INIT;
    int slot = 0;
    assert_int_equal(mu_solo_feed(solo, 0, ids, 65, MU_OUT_SAMPLE, NULL, NULL, NULL, &id, &why), MU_ELIMIT);
    assert_non_null(strstr(why.text, "context only 64"));
    assert_int_equal(mu_solo_feed(solo, 2, ids, 1, MU_OUT_SAMPLE, NULL, NULL, NULL, &id, &why), MU_EINVAL);
    MUST(mu_solo_feed(solo, 0, ids, 64, MU_OUT_SAMPLE, NULL, NULL, NULL, &id, err));
    assert_int_equal(mu_solo_decode(solo, &slot, &id, 1, NULL, &id, &why), MU_ELIMIT); /* full */
    assert_int_equal(mu_solo_feed(solo, 1, ids, 40, MU_OUT_SAMPLE, NULL, NULL, NULL, &id, &why),
                     MU_ELIMIT); /* one page is left */
    assert_non_null(strstr(why.text, "KV pages"));
    mu_solo_reset(solo, 0);
    mu_solo_reset(solo, 1);
    MUST(mu_solo_feed(solo, 1, ids, 40, MU_OUT_SAMPLE, NULL, NULL, NULL, &id, err));
    mu_solo_close(solo);
    struct mu_solo_options opt = {
        .model = model, .n_thread = 0, .serving = {.n_ctx = 8, .n_slot = 1, .step_tokens = 8}};
    MUST(mu_split_parse("1", &opt.split, err));
    assert_int_equal(mu_solo_open(&opt, &solo, &why), MU_EINVAL);
    opt.n_thread = 1;
    MUST(mu_split_parse("1/1/1/1", &opt.split, err));
    assert_int_equal(mu_solo_open(&opt, &solo, &why), MU_EINVAL); /* three layers */
}

/* One rank fails in the middle: everybody ends soon, the cause is told, closing works. */
static void test_rank_fails(void **state)
{
    (void)state;
#ifdef MUSTER_FAULTS
    static const char *const splits[] = {"1", "1:1", "1:1/1:1", "1/1/1"};
    for (int s = 0; s < 4; s++) {
        struct mu_solo *solo = solo_open(splits[s], (struct mu_serving){.n_ctx = 64, .n_slot = 2, .step_tokens = 8});
        int32_t ids[8] = {1, 2, 3, 4}, id;
        struct mu_err why = MU_ERR_INIT;
        setenv("MUSTER_FAULT", "rank.step:2", 1); /* the second rank that comes to a step, or the second step */
        MUST(mu_fault_init(-1, err));
        int64_t start = mu_now_ns();
        enum mu_status st = MU_OK;
        for (int i = 0; i < 2 && st == MU_OK; i++)
            st = mu_solo_feed(solo, 0, ids, 4, MU_OUT_SAMPLE, NULL, NULL, NULL, &id, &why);
        unsetenv("MUSTER_FAULT");
        MUST(mu_fault_init(-1, err));
        assert_int_equal(st, MU_ENOMEM);
        assert_non_null(strstr(why.text, "fault point"));
        assert_true(mu_now_ns() - start < 5 * MU_SEC);
        if (s > 0)
            assert_int_not_equal(mu_solo_feed(solo, 0, ids, 4, MU_OUT_SAMPLE, NULL, NULL, NULL, &id, &why), MU_OK);
        mu_solo_close(solo);
    }
#endif
}

/* A rank that computes for minutes, or a process that was stopped while its ranks waited, is no failure. */
static void test_slow(void **state)
{
    (void)state;
    static const char *const splits[] = {"1:1", "1/1", "1:1/1:1"};
    int32_t prompt[64], want, got;
    for (int i = 0; i < 64; i++) prompt[i] = i * 7 % 400;
    for (int s = 0; s < 3; s++) {
        struct mu_solo *solo = solo_open(splits[s], (struct mu_serving){.n_ctx = 64, .n_slot = 1, .step_tokens = 64});
        continuation(solo, 0, prompt, 64, &want, 1);
        atomic_store(&n_jump, 10000); /* some of them of a rank that waits */
        continuation(solo, 0, prompt, 64, &got, 1);
        atomic_store(&n_jump, 0);
        assert_int_equal(got, want);
        mu_solo_close(solo);
    }
}

/* Any exchange of a step in halves fails, with another one under way: everybody ends soon. */
static void test_halves_fail(void **state)
{
    (void)state;
#ifdef MUSTER_FAULTS
    static const char *const points[] = {"comm.allgather", "comm.recv"};
    for (int p = 0; p < 2; p++) {
        enum mu_status st = MU_EPEER;
        int n = 0;
        for (; st != MU_OK && n < 200; n += 1 + n / 8) {
            struct mu_solo *solo = NULL;
            struct mu_solo_options opt = {.model = model,
                                          .n_thread = 2,
                                          .slow_links = true,
                                          .serving = {.n_ctx = 64, .n_slot = 2, .step_tokens = 64}};
            int32_t ids[64] = {1, 2, 3, 4}, id;
            struct mu_err why = MU_ERR_INIT;
            char fault[40];
            MUST(mu_split_parse("1:1", &opt.split, err));
            MUST(mu_solo_open(&opt, &solo, err));
            snprintf(fault, sizeof fault, "%s:%d", points[p], n + 1);
            setenv("MUSTER_FAULT", fault, 1);
            MUST(mu_fault_init(-1, err));
            int64_t start = mu_now_ns();
            st = mu_solo_feed(solo, 0, ids, 64, MU_OUT_SAMPLE, NULL, NULL, NULL, &id, &why);
            unsetenv("MUSTER_FAULT");
            MUST(mu_fault_init(-1, err));
            if (st != MU_OK && st != MU_EPEER) fail_msg("%s: %s", fault, why.text);
            assert_true(mu_now_ns() - start < 5 * MU_SEC);
            mu_solo_close(solo);
        }
        assert_true(n > 2 * 2 * 8 &&
                    n < 200); /* two ranks, two layers in halves, of eight exchanges each, were reached */
    }
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_guesses),    cmocka_unit_test(test_slots),
                                       cmocka_unit_test(test_truncate),   cmocka_unit_test(test_limits),
                                       cmocka_unit_test(test_rank_fails), cmocka_unit_test(test_halves_fail),
                                       cmocka_unit_test(test_slow)};
    return cmocka_run_group_tests(tests, group_begin, group_end);
}
