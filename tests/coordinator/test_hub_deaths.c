/* No stream is ever wrong, whatever dies: gangs, workers, by whosever fault, and memory that runs out. */
#include "hub_fixture.h"

#include "base/alloc.h"

static void test_streams_survive_deaths(void **state)
{
    (void)state;
    enum { N = 6, TOKENS = 300 };
    struct world *w = world_start(0, 8);
    struct client *c[N];
    for (int i = 0; i < N; i++) c[i] = ask(w, 5, B('p'), TOKENS, (uint64_t)i, MU_FOREVER);
    for (int death = 1; death <= 5; death++) {
        WAIT_FOR(client_ids(c[0]) >= (size_t)(death * 40), 10000);
        fake_gang_kill(&w->gang, death % 2 ? 0 : -1, "rank 0 died for the test");
        WAIT_FOR(launches(w) == 1 + death, 5000);
    }
    for (int i = 0; i < N; i++) {
        expect_whole(c[i], (uint64_t)i, TOKENS);
        assert_true(c[i]->resumed >= 1);
        client_free(c[i]);
    }
    world_stop(w);
}

static void test_shortest_replay_first(void **state)
{
    (void)state;
    static const size_t prompts[] = {30, 10, 20};
    struct world *w = world_start(0, 8);
    struct client *c[3];
    atomic_store(&w->gang.holds, true);
    for (int i = 0; i < 3; i++) {
        c[i] = ask(w, prompts[i], B('p'), 5, (uint64_t)i, MU_FOREVER);
        WAIT_FOR(submits(w) == i + 1, 5000); /* in order of arrival */
        assert_int_equal(w->gang.submit[i].n_prompt, prompts[i]);
    }
    fake_gang_kill(&w->gang, 0, "rank 0 died for the test");
    WAIT_FOR(submits(w) == 6, 5000);
    for (int i = 0; i < 3; i++) assert_int_equal(w->gang.submit[3 + i].n_prompt, 10 + 10 * i);
    atomic_store(&w->gang.holds, false);
    for (int i = 0; i < 3; i++) {
        expect_whole(c[i], (uint64_t)i, 5);
        client_free(c[i]);
    }
    world_stop(w);
}

/* The poison ends by name; the innocent are whole, were alone only for a few ids each, and then went on together. */
static void test_poison(void **state)
{
    (void)state;
    enum { N = 5, TOKENS = 150 };
    struct world *w = world_start(0, 8);
    struct client *c[N], *poison;
    atomic_store(&w->gang.poison, B('!'));
    atomic_store(&w->gang.holds, true);
    for (int i = 0; i < N; i++) c[i] = ask(w, 5, B('p'), TOKENS, (uint64_t)i, MU_FOREVER);
    WAIT_FOR(submits(w) == N, 5000);
    poison = ask(w, 50, B('!'), 10, 77, MU_FOREVER); /* the longest: the others have their turn first */
    WAIT_FOR(launches(w) >= 2, 5000);
    atomic_store(&w->gang.holds, false);
    client_wait(poison, 30000);
    assert_int_equal(poison->code, MU_RPC_ABORTED);
    assert_non_null(strstr(poison->status, poison->request_id));
    assert_non_null(strstr(poison->status, "alone"));
    assert_non_null(strstr(poison->status, "poisonous"));
    for (int i = 0; i < N; i++) {
        expect_whole(c[i], (uint64_t)i, TOKENS);
        client_free(c[i]);
    }
    assert_int_equal(launches(w), 4); /* twice together, once alone, and the last */
    int together = 0;
    for (int i = 0, n = submits(w); i < n; i++) {
        const struct submitted *s = &w->gang.submit[i];
        if (s->n_prompt == 50 && s->epoch == 1003) assert_int_equal(s->n_active, 0);
        if (s->epoch == 1004 && s->n_active > together) together = s->n_active;
    }
    assert_true(together >= N - 2);
    client_free(poison);
    world_stop(w);
}

/* Deaths that are nobody's fault accuse nobody, however many. */
static void test_worker_deaths_accuse_nobody(void **state)
{
    (void)state;
    struct world *w = world_start(0, 8);
    atomic_store(&w->gang.holds, true);
    struct client *c = ask(w, 5, B('p'), 50, 3, MU_FOREVER);
    for (int i = 1; i <= 5; i++) {
        WAIT_FOR(submits(w) == i, 5000);
        tell_worker(w, MU_EV_WORKER_DOWN);
        tell_worker(w, MU_EV_WORKER_UP);
    }
    atomic_store(&w->gang.holds, false);
    expect_whole(c, 3, 50);
    assert_int_equal(c->resumed, 5);
    client_free(c);
    world_stop(w);
}

/* A worker that breaks off is not asked again before somebody has looked after it; nobody does: it is to be replaced. */
static void test_silent_worker(void **state)
{
    (void)state;
    struct world *w = world_start(0, 8);
    atomic_store(&w->gang.holds, true);
    struct client *c = ask(w, 5, B('p'), 50, 3, MU_FOREVER);
    WAIT_FOR(submits(w) == 1, 5000);
    fake_gang_vanish(&w->gang);
    fake_gang_return(&w->gang);
    mu_sleep_ms(300);
    assert_int_equal(launches(w), 1);
    WAIT_FOR(atomic_load(&w->hub.worker_hung), 3000);
    assert_int_equal(launches(w), 1);
    Muster__V1__ClusterStatusReply *r = world_status(w);
    assert_ptr_equal(strstr(r->gang[0]->last_failure, "the stream to the worker ended: "), r->gang[0]->last_failure);
    mu_rpc_message_free(&r->base);
    atomic_store(&w->gang.holds, false);
    tell_worker(w, MU_EV_WORKER_DOWN);
    tell_worker(w, MU_EV_WORKER_UP);
    expect_whole(c, 3, 50);
    assert_int_equal(launches(w), 2);
    client_free(c);
    world_stop(w);
}

static void test_gap_ends_the_epoch(void **state)
{
    (void)state;
    struct world *w = world_start(0, 8);
    struct client *c = ask(w, 5, B('p'), 200, 9, MU_FOREVER);
    WAIT_FOR(client_ids(c) > 20, 5000);
    atomic_store(&w->gang.skip_one, 1);
    expect_whole(c, 9, 200);
    assert_int_equal(launches(w), 2);
    client_free(c);
    world_stop(w);
}

/* Every allocation of the process fails once while a request is served: it ends right or with a status, never hangs. */
static void test_out_of_memory(void **state)
{
    (void)state;
    struct world *w = world_start(0, 8);
    int n_right = 0;
    WAIT_FOR(launches(w) == 1, 5000);
    /* The fake leader attaches once and would not come again: it must be there before memory fails. */
    struct client *first = ask(w, 5, B('p'), 12, 1000, mu_now_ns() + 20 * MU_SEC);
    client_wait(first, 30000);
    assert_int_equal(first->code, MU_RPC_OK);
    client_free(first);
    for (long n = 1; n <= 60; n++) {
        mu_alloc_fail_at(n);
        struct client *c = ask(w, 5, B('p'), 12, (uint64_t)n, mu_now_ns() + 20 * MU_SEC);
        client_wait(c, 30000);
        mu_alloc_fail_at(0);
        if (c->code == MU_RPC_DEADLINE_EXCEEDED) fail_msg("allocation %ld: the request hangs", n);
        for (size_t i = 0; i < c->n_ids; i++) assert_int_equal(c->ids[i], fake_id((uint64_t)n, i));
        if (c->code == MU_RPC_OK) {
            assert_int_equal(c->n_ids, 12);
            n_right++;
        }
        client_free(c);
    }
    assert_true(n_right > 0);
    world_stop(w);
}

/* A reason that is longer than what is kept of it is cut between two characters: else no status could be sent. */
static void test_long_reason(void **state)
{
    (void)state;
    char reason[MU_ERR_TEXT + 22] = "";
    struct world *w = world_start(0, 8);
    WAIT_FOR(launches(w) == 1, 5000);
    for (size_t n = 0; n + 2 < sizeof reason; n += 2) memcpy(reason + n, "\xC3\xA9", 3);
    fake_gang_kill(&w->gang, 0, reason);
    WAIT_FOR(launches(w) == 2, 5000);
    Muster__V1__ClusterStatusReply *r = world_status(w);
    assert_int_equal(strlen(r->gang[0]->last_failure), MU_ERR_TEXT - 2);
    assert_memory_equal(r->gang[0]->last_failure, reason, MU_ERR_TEXT - 2);
    mu_rpc_message_free(&r->base);
    world_stop(w);
}

static uint64_t steps_of(struct world *w)
{
    Muster__V1__ClusterStatusReply *r = world_status(w);
    uint64_t steps = r->gang[0]->steps;
    mu_rpc_message_free(&r->base);
    return steps;
}

/* What the status says of a gang is its own, and not the last one's. */
static void test_numbers_of_a_new_gang(void **state)
{
    (void)state;
    struct world *w = world_start(0, 8);
    WAIT_FOR(launches(w) == 1, 5000);
    fake_gang_count(&w->gang, 77);
    WAIT_FOR(steps_of(w) == 77, 5000);
    Muster__V1__ClusterStatusReply *r = world_status(w);
    assert_int_equal(r->gang[0]->mpirun_pid, FAKE_MPIRUN);
    mu_rpc_message_free(&r->base);
    atomic_store(&w->gang.mute, true);
    fake_gang_kill(&w->gang, 0, "rank 0 died for the test");
    WAIT_FOR(launches(w) == 2, 5000);
    r = world_status(w);
    assert_string_equal(r->gang[0]->state, "starting");
    assert_int_equal(r->gang[0]->mpirun_pid, 0);
    assert_int_equal(r->gang[0]->steps, 0);
    assert_int_equal(r->gang[0]->drafted + r->gang[0]->drafts_taken, 0);
    assert_int_equal(r->gang[0]->model_drafted + r->gang[0]->model_drafts_taken, 0);
    mu_rpc_message_free(&r->base);
    world_stop(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_streams_survive_deaths),
        cmocka_unit_test(test_shortest_replay_first),
        cmocka_unit_test(test_poison),
        cmocka_unit_test(test_worker_deaths_accuse_nobody),
        cmocka_unit_test(test_silent_worker),
        cmocka_unit_test(test_gap_ends_the_epoch),
        cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_long_reason),
        cmocka_unit_test(test_numbers_of_a_new_gang),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
