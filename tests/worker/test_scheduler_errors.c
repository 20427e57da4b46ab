/* What the scheduler refuses, and by which words; requests that end with an error, alone; memory that runs out. */
#include "sched_sim.h"

#include "base/alloc.h"

static void test_what_never_fits_is_refused_by_name(void **state)
{
    (void)state;
    struct mu_sched_options opt = {.serving = {.n_ctx = 64, .n_slot = 2, .n_page = 1, .step_tokens = 16},
                                   .n_stage = 1,
                                   .n_vocab = VOCAB,
                                   .max_waiting = 3};
    struct mu_sched *s;
    struct mu_err err = MU_ERR_INIT;
    static int32_t ids[128];
    bool finished;
    assert_int_equal(mu_sched_create(&opt, &s, &err), MU_OK);
    struct mu_sched_request q = {.id = 1, .prompt = ids, .n_prompt = 64, .max_tokens = 1};
    assert_int_equal(try_submit(s, q, &finished, &err), MU_ELIMIT);
    assert_non_null(strstr(err.text, "the prompt has 64 tokens"));
    q.n_prompt = 20;
    q.max_tokens = 14; /* 33 fed tokens: two pages, there is one */
    assert_int_equal(try_submit(s, q, &finished, &err), MU_ELIMIT);
    assert_non_null(strstr(err.text, "KV pages"));
    q.max_tokens = 13;
    assert_int_equal(try_submit(s, q, &finished, &err), MU_OK);
    assert_int_equal(try_submit(s, q, &finished, &err), MU_EINVAL);
    assert_non_null(strstr(err.text, "running already"));
    q.id = 2;
    ids[3] = VOCAB;
    assert_int_equal(try_submit(s, q, &finished, &err), MU_EINVAL);
    ids[3] = 0;
    q.n_prompt = 0;
    assert_int_equal(try_submit(s, q, &finished, &err), MU_EINVAL);
    q.n_prompt = 3;
    q.sampling.top_p = 1.5f;
    assert_int_equal(try_submit(s, q, &finished, &err), MU_EINVAL);
    q.sampling.top_p = 0;
    q.sampling.temperature = -1;
    assert_int_equal(try_submit(s, q, &finished, &err), MU_EINVAL);
    assert_non_null(strstr(err.text, "temperature"));
    q.sampling.temperature = 0;
    const struct mu_bias twice[] = {{5, 1}, {VOCAB, 1}};
    q.bias = twice;
    q.n_bias = 2;
    assert_int_equal(try_submit(s, q, &finished, &err), MU_EINVAL);
    assert_non_null(strstr(err.text, "logit_bias: token 97"));
    q.n_bias = 0;
    q.adapter = 1;
    assert_int_equal(try_submit(s, q, &finished, &err), MU_EINVAL);
    assert_non_null(strstr(err.text, "adapter 1"));
    q.adapter = 0;
    q.max_tokens = 0;
    assert_int_equal(try_submit(s, q, &finished, &err), MU_OK);
    assert_true(finished);
    int32_t end = 5, emitted[] = {4, 5};
    q.max_tokens = 9;
    q.emitted = emitted;
    q.n_emitted = 2;
    q.end_ids = &end;
    q.n_end = 1;
    assert_int_equal(try_submit(s, q, &finished, &err), MU_OK); /* its last id had ended it */
    assert_true(finished);
    q.n_end = q.n_emitted = 0;
    for (q.id = 10; q.id < 12; q.id++) assert_int_equal(try_submit(s, q, &finished, &err), MU_OK);
    assert_int_equal(try_submit(s, q, &finished, &err), MU_ELIMIT);
    assert_non_null(strstr(err.text, "wait already"));
    mu_sched_destroy(s);
}

/* Where biases and masks leave nothing, the request ends with that error. */
static void test_no_id_allowed(void **state)
{
    (void)state;
    struct sim m;
    sim_open(&m, 1, 2, 8, 100, 64);
    request_plain(&m, 0, 5, 3);
    assert_true(sim_next(&m));
    m.sampled[m.head][0] = -3;
    assert_int_equal(mu_sched_complete(m.s, m.step[m.head]->number, m.sampled[m.head], m.events), 1);
    m.n = 0;
    assert_true(m.events[0].finished && m.events[0].id == -1);
    assert_int_equal(m.events[0].error, MU_EINVAL);
    assert_false(sim_next(&m));
    sim_close(&m);
}

static void test_a_bad_sample_ends_its_request_only(void **state)
{
    (void)state;
    struct sim m;
    sim_open(&m, 1, 4, 8, 64, 32);
    for (int i = 0; i < 2; i++) request_plain(&m, i, 4, 5);
    assert_true(sim_next(&m));
    int32_t ids[2] = {m.sampled[m.head][0], -2};
    assert_int_equal(mu_sched_complete(m.s, m.step[m.head]->number + 1, ids, m.events), -1);
    assert_int_equal(mu_sched_complete(m.s, m.step[m.head]->number, ids, m.events), 2);
    m.n = 0;
    m.head = (m.head + 1) % MAX_FLIGHT;
    event_take(&m, &m.events[0]);
    assert_true(m.events[1].finished && m.events[1].id == -1);
    assert_int_equal(m.events[1].error, MU_ENONFINITE);
    while (m.n || sim_next(&m)) sim_complete(&m);
    assert_true(m.req[0].done && !m.req[1].done);
    sim_close(&m);
}

static void test_every_allocation_can_fail(void **state)
{
    (void)state;
    struct mu_sched_options opt = {.serving = {.n_ctx = 256, .n_slot = 2, .n_page = 16, .step_tokens = 16, .window = 5},
                                   .n_stage = 2,
                                   .n_vocab = VOCAB,
                                   .max_waiting = 3};
    assert_true(mu_plan_window_pages(&opt.serving) > 0);
    int32_t ids[4] = {1, 2, 3, 4};
    struct mu_sched_request q = {
        .id = 1, .prompt = ids, .n_prompt = 4, .max_tokens = 3, .sampling = {.repeat_penalty = 2}};
    for (long n = 1;; n++) {
        struct mu_sched *s = NULL;
        struct mu_err err = MU_ERR_INIT;
        bool finished;
        mu_alloc_fail_at(n);
        enum mu_status st = mu_sched_create(&opt, &s, &err);
        if (st == MU_OK) st = mu_sched_submit(s, &q, &finished, &err);
        mu_alloc_fail_at(0);
        mu_sched_destroy(s);
        if (st == MU_OK) {
            assert_true(n > 5);
            break;
        }
        assert_int_equal(st, MU_ENOMEM);
    }
}
int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_never_fits_is_refused_by_name),
        cmocka_unit_test(test_no_id_allowed),
        cmocka_unit_test(test_a_bad_sample_ends_its_request_only),
        cmocka_unit_test(test_every_allocation_can_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
