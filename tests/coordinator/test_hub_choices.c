/* Several completions of one prompt, with log probabilities: whole through deaths, cancelled and refused together, each
 * with a turn and a place of its own. */
#include "hub_fixture.h"

#include "base/alloc.h"

enum { CHOICE_SEED = 500 };

/* n completions of one prompt, with log probabilities. */
static struct client *ask_choices_as(struct world *w, Muster__V1__Priority priority, const char *key, uint32_t n,
                                     uint32_t n_token, uint32_t n_top, int64_t deadline_ns)
{
    Muster__V1__GenerateRequest q = MUSTER__V1__GENERATE_REQUEST__INIT;
    Muster__V1__Ids ids = MUSTER__V1__IDS__INIT;
    Muster__V1__Sampling s = MUSTER__V1__SAMPLING__INIT;
    Muster__V1__LogitBias bias = MUSTER__V1__LOGIT_BIAS__INIT, *biases = &bias;
    int32_t prompt[] = {B('p'), B('q')};
    ids.n_id = 2;
    ids.id = prompt;
    s._seed_case = MUSTER__V1__SAMPLING___SEED_SEED;
    s.seed = CHOICE_SEED;
    s.repeat_penalty = 1.5f;
    s.logprobs = true;
    s.top_logprobs = n_top;
    s.n_logit_bias = 1;
    s.logit_bias = &biases;
    bias.id = 5;
    bias.bias = 1;
    q.prompt_case = MUSTER__V1__GENERATE_REQUEST__PROMPT_IDS;
    q.ids = &ids;
    q.sampling = &s;
    q.max_tokens = n_token;
    q.n = n;
    q.return_ids = q.ignore_end = true;
    q.priority = priority;
    q.key = (char *)key;
    return client_start(w->channel, &q, deadline_ns, true);
}

static struct client *ask_choices(struct world *w, uint32_t n, uint32_t n_token, uint32_t n_top)
{
    return ask_choices_as(w, MUSTER__V1__PRIORITY__PRIORITY_NORMAL, "", n, n_token, n_top, MU_FOREVER);
}

static void expect_choices(const struct client *c, size_t n_token, size_t n_top)
{
    for (uint32_t i = 0; i < c->n_choice; i++) {
        const struct client_choice *k = &c->choice[i];
        uint64_t seed = mu_sampling_choice_seed(CHOICE_SEED, i);
        assert_int_equal(k->n_ids, n_token);
        assert_int_equal(k->n_logprob, n_token); /* each once, whatever died */
        assert_int_equal(k->n_top, n_token * n_top);
        assert_int_equal(k->n_wrong, 0);
        if (n_top) assert_int_equal(k->last_top, ID_BYTE + 'A' + (int32_t)n_top - 1);
        assert_int_equal(k->finish, MUSTER__V1__FINISH__FINISH_LENGTH);
        for (size_t t = 0; t < n_token; t++) {
            assert_int_equal(k->ids[t], fake_id(seed, t));
            assert_int_equal(k->text[t], fake_id(seed, t) - ID_BYTE);
            assert_true(k->logprob[t] == fake_logprob(seed, t));
        }
    }
}

static void test_choices(void **state)
{
    (void)state;
    enum { TOKENS = 300 };
    struct world *w = world_start(0, 8);
    struct client *c = ask_choices(w, 3, TOKENS, 2), *one = ask_choices(w, 0, TOKENS, 0);
    for (int death = 1; death <= 3; death++) {
        WAIT_FOR(client_ids(c) >= (size_t)(death * 120), 10000);
        fake_gang_kill(&w->gang, -1, "the test ended it");
        WAIT_FOR(launches(w) == 1 + death, 5000);
    }
    client_wait(c, 30000);
    client_wait(one, 30000);
    assert_int_equal(c->code, MU_RPC_OK);
    assert_int_equal(c->seed, CHOICE_SEED);
    expect_choices(c, TOKENS, 2);
    expect_choices(one, TOKENS, 0); /* which is choice 0 of the other */
    assert_int_equal(c->prompt_tokens, 2);
    assert_int_equal(c->completion_tokens, 3 * TOKENS);
    assert_int_equal(c->cached_tokens, fake_cached(CHOICE_SEED)); /* choice 0's; another has one more */
    assert_int_equal(fake_cached(mu_sampling_choice_seed(CHOICE_SEED, 1)), fake_cached(CHOICE_SEED) + 1);
    assert_int_equal(c->resumed, 3);
    pthread_mutex_lock(&w->gang.lock);
    for (int i = 0; i < w->gang.n_submit; i++) /* the parameters are the same after each death */
        assert_true(w->gang.submit[i].repeat_penalty == 1.5f && w->gang.submit[i].n_bias == 1);
    pthread_mutex_unlock(&w->gang.lock);
    client_free(c);
    client_free(one);
    world_stop(w);
}

/* A client that goes away takes all of its choices along, those that wait as well. */
static void test_choices_cancelled(void **state)
{
    (void)state;
    struct world *w = world_start(0, 1); /* two at the leader, the third one waits */
    struct client *c = ask_choices(w, 3, 2000, 0);
    WAIT_FOR(client_ids(c) > 30, 10000);
    mu_rpc_stream_cancel(c->stream);
    client_wait(c, 5000);
    struct client *next = ask(w, 5, B('p'), 20, 3, MU_FOREVER);
    expect_whole(next, 3, 20); /* there is a place for it at once */
    pthread_mutex_lock(&w->gang.lock);
    assert_in_range(w->gang.n_submit, 3, 4); /* a token may tell the hub of it before the call's end does */
    pthread_mutex_unlock(&w->gang.lock);
    client_free(c);
    client_free(next);
    world_stop(w);
}

/* A choice that fails ends the call, which names it; the others are taken back. */
static void test_choice_fails(void **state)
{
    (void)state;
    struct world *w = world_start(0, 8);
    atomic_store(&w->gang.bad_id, fake_id(mu_sampling_choice_seed(CHOICE_SEED, 1), 9));
    struct client *c = ask_choices(w, 3, 2000, 0);
    client_wait(c, 10000);
    assert_int_not_equal(c->code, MU_RPC_OK);
    assert_non_null(strstr(c->status, ", choice "));
    atomic_store(&w->gang.bad_id, 0);
    struct client *next = ask(w, 5, B('p'), 20, 3, MU_FOREVER);
    expect_whole(next, 3, 20);
    client_free(c);
    client_free(next);
    world_stop(w);
}

static void test_choices_refused(void **state)
{
    (void)state;
    struct world *w = world_start(2, 1);
    atomic_store(&w->gang.holds, true);
    struct client *c = ask_choices(w, 65, 5, 0);
    client_wait(c, 5000);
    assert_int_equal(c->code, MU_RPC_INVALID_ARGUMENT);
    assert_non_null(strstr(c->status, "n must be from 1 to 64"));
    client_free(c);
    c = ask_choices(w, 1, 5, 21);
    client_wait(c, 5000);
    assert_int_equal(c->code, MU_RPC_INVALID_ARGUMENT);
    assert_non_null(strstr(c->status, "top_logprobs"));
    client_free(c);
    struct client *first[3]; /* two at the leader, one waits: two places are too few for three choices */
    for (int i = 0; i < 3; i++) {
        first[i] = ask(w, 5, B('p'), 5, (uint64_t)i, MU_FOREVER);
        WAIT_FOR(first[i]->n_reply == 1, 5000);
        if (i < 2) WAIT_FOR(submits(w) == i + 1, 5000);
    }
    c = ask_choices(w, 3, 5, 0);
    client_wait(c, 5000);
    assert_int_equal(c->code, MU_RPC_RESOURCE_EXHAUSTED);
    atomic_store(&w->gang.holds, false);
    client_free(c);
    for (int i = 0; i < 3; i++) {
        expect_whole(first[i], (uint64_t)i, 5);
        client_free(first[i]);
    }
    world_stop(w);
}

/* Where the request with this seed came among those submitted; -1: it has not. */
static int seed_place(struct world *w, uint64_t seed)
{
    int place = -1;
    pthread_mutex_lock(&w->gang.lock);
    for (int i = w->gang.n_submit - 1; i >= 0; i--)
        if (w->gang.submit[i].seed == seed) place = i;
    pthread_mutex_unlock(&w->gang.lock);
    return place;
}

/* Each choice is a request in the shares of its key and takes a place of its priority. */
static void test_choices_in_turn(void **state)
{
    (void)state;
    const Muster__V1__Priority batch = MUSTER__V1__PRIORITY__PRIORITY_BATCH;
    struct world *w = world_start(5, 2); /* three at the leader; four places for batch */
    atomic_store(&w->gang.holds, true);
    WAIT_FOR(launches(w) == 1, 5000);
    struct client *many = ask_choices_as(w, batch, "a", 4, 5, 0, MU_FOREVER);
    WAIT_FOR(submits(w) == 3, 5000); /* one waits */
    struct client *other = ask_as(w, batch, "b", 20, B('p'), 5, 7, MU_FOREVER);
    WAIT_FOR(other->n_reply == 1, 5000);
    struct client *refused = ask_choices_as(w, batch, "b", 3, 5, 0, MU_FOREVER);
    client_wait(refused, 5000);
    assert_int_equal(refused->code, MU_RPC_RESOURCE_EXHAUSTED);
    client_free(refused);
    struct client *urgent = ask_choices_as(w, MUSTER__V1__PRIORITY__PRIORITY_NORMAL, "b", 3, 5, 0, MU_FOREVER);
    WAIT_FOR(submits(w) == 6, 5000); /* beside the batch */
    atomic_store(&w->gang.holds, false);
    client_wait(many, 30000);
    client_wait(urgent, 30000);
    assert_int_equal(many->code, MU_RPC_OK);
    assert_int_equal(urgent->code, MU_RPC_OK);
    expect_choices(many, 5, 0);
    expect_choices(urgent, 5, 0);
    expect_whole(other, 7, 5);
    assert_true(seed_place(w, 7) < seed_place(w, mu_sampling_choice_seed(CHOICE_SEED, 3)));
    client_free(many);
    client_free(urgent);
    client_free(other);
    world_stop(w);
}

/* As test_out_of_memory of test_hub_deaths; what had entered the shares has left them (world_stop looks). */
static void test_choices_out_of_memory(void **state)
{
    (void)state;
    struct world *w = world_start(0, 8);
    int n_right = 0;
    WAIT_FOR(launches(w) == 1, 5000);
    struct client *first = ask(w, 5, B('p'), 12, 1000, mu_now_ns() + 20 * MU_SEC);
    client_wait(first, 30000);
    assert_int_equal(first->code, MU_RPC_OK);
    client_free(first);
    for (long n = 1; n <= 80; n++) {
        char key[24];
        snprintf(key, sizeof key, "%ld", n); /* a new share each time */
        mu_alloc_fail_at(n);
        struct client *c =
            ask_choices_as(w, MUSTER__V1__PRIORITY__PRIORITY_BATCH, key, 3, 5, 0, mu_now_ns() + 20 * MU_SEC);
        client_wait(c, 30000);
        mu_alloc_fail_at(0);
        if (c->code == MU_RPC_DEADLINE_EXCEEDED) fail_msg("allocation %ld: the request hangs", n);
        if (c->code == MU_RPC_OK) expect_choices(c, 5, 0);
        n_right += c->code == MU_RPC_OK;
        client_free(c);
    }
    assert_true(n_right > 0);
    world_stop(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choices),         cmocka_unit_test(test_choices_cancelled),
        cmocka_unit_test(test_choice_fails),    cmocka_unit_test(test_choices_refused),
        cmocka_unit_test(test_choices_in_turn), cmocka_unit_test(test_choices_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
