/* Embeddings through the hub: every vector at its place, whatever dies; calls that are refused, poisonous, given up. */
#include "hub_fixture.h"

#include <stdlib.h>

#include "base/alloc.h"

struct embedder { /* a call of Embed in a thread of its own */
    struct world *w;
    Muster__V1__EmbedRequest q;
    Muster__V1__EmbedInput input[40], *inputs[40];
    Muster__V1__Ids ids[40];
    int32_t id[40][100];
    int64_t deadline_ns;
    pthread_t thread;
    atomic_bool done;
    enum mu_status st;
    struct mu_err err;
    Muster__V1__EmbedReply *reply;
};

static void *embed_main(void *arg)
{
    struct embedder *e = arg;
    e->st = mu_rpc_unary(e->w->channel, "/muster.v1.Muster/Embed", &e->q.base, &muster__v1__embed_reply__descriptor,
                         e->deadline_ns, (ProtobufCMessage **)&e->reply, &e->err);
    atomic_store(&e->done, true);
    return NULL;
}

/* n inputs; number i has i + 1 ids, all of them B('a') + i. */
static struct embedder *embed_new(struct world *w, size_t n)
{
    struct embedder *e = calloc(1, sizeof *e);
    e->w = w;
    e->deadline_ns = mu_now_ns() + 30 * MU_SEC;
    muster__v1__embed_request__init(&e->q);
    e->q.n_input = n;
    e->q.input = e->inputs;
    for (size_t i = 0; i < n; i++) {
        muster__v1__embed_input__init(&e->input[i]);
        muster__v1__ids__init(&e->ids[i]);
        for (size_t k = 0; k < 100; k++) e->id[i][k] = B('a') + (int32_t)i;
        e->ids[i].id = e->id[i];
        e->ids[i].n_id = i + 1;
        e->input[i].input_case = MUSTER__V1__EMBED_INPUT__INPUT_IDS;
        e->input[i].ids = &e->ids[i];
        e->inputs[i] = &e->input[i];
    }
    return e;
}

static void embed_start(struct embedder *e)
{
    assert_int_equal(pthread_create(&e->thread, NULL, embed_main, e), 0);
}

static void embed_text(struct embedder *e, size_t at, const char *text)
{
    e->input[at].input_case = MUSTER__V1__EMBED_INPUT__INPUT_TEXT;
    e->input[at].text = (char *)text;
}

static void embed_end(struct embedder *e)
{
    pthread_join(e->thread, NULL);
    mu_rpc_message_free((ProtobufCMessage *)e->reply);
    free(e);
}

static void expect_vectors(struct embedder *e)
{
    pthread_join(e->thread, NULL);
    e->thread = 0;
    if (e->st != MU_OK) fail_msg("%s", e->err.text);
    size_t width = e->q.dimensions ? e->q.dimensions : FAKE_D_MODEL;
    assert_int_equal(e->reply->n_embedding, e->q.n_input);
    for (size_t i = 0; i < e->q.n_input; i++) {
        const Muster__V1__Embedding *v = e->reply->embedding[i];
        assert_int_equal(v->n_value, width);
        assert_int_equal(v->tokens, i + 1);
        assert_false(v->truncated);
        for (size_t k = 0; k < width; k++) assert_true(v->value[k] == fake_value(B('a') + (int32_t)i, i + 1, k));
    }
    assert_int_equal(e->reply->usage->prompt_tokens, e->q.n_input * (e->q.n_input + 1) / 2);
}

static void embed_free(struct embedder *e)
{
    mu_rpc_message_free((ProtobufCMessage *)e->reply);
    free(e);
}

/* More inputs than the gang takes at once, beside streams, with gangs that die: each vector at its place. */
static void test_embed_survives_deaths(void **state)
{
    (void)state;
    struct world *w = world_start(0, 4);
    struct client *c = ask(w, 5, B('p'), 200, 7, MU_FOREVER);
    WAIT_FOR(client_ids(c) > 0, 5000);
    for (int round = 0; round < 3; round++) {
        struct embedder *e = embed_new(w, 40);
        int before = submits(w), launched = launches(w);
        e->q.dimensions = round == 1 ? 5 : 0;
        e->q.pooling = round == 2 ? MUSTER__V1__POOLING__POOLING_LAST : MUSTER__V1__POOLING__POOLING_MODEL;
        atomic_store(&w->gang.holds, true);
        embed_start(e);
        WAIT_FOR(submits(w) >= before + 3, 5000);
        fake_gang_kill(&w->gang, round == 0 ? 0 : -1, "rank 0 died for the test");
        WAIT_FOR(launches(w) == launched + 1, 5000);
        atomic_store(&w->gang.holds, false);
        expect_vectors(e);
        assert_int_equal(e->reply->usage->resumed, 1);
        pthread_mutex_lock(&w->gang.lock);
        const struct submitted *last = &w->gang.submit[w->gang.n_submit - 1];
        assert_int_equal(last->embed, round == 2 ? 2 : 1); /* the model's is the mean */
        pthread_mutex_unlock(&w->gang.lock);
        embed_free(e);
    }
    expect_whole(c, 7, 200);
    client_free(c);
    world_stop(w);
}

/* One input that kills ranks: alone in the end, then the call fails and names it; a stream beside it is whole. */
static void test_embed_poison(void **state)
{
    (void)state;
    struct world *w = world_start(0, 8);
    struct client *c = ask(w, 5, B('p'), 300, 7, MU_FOREVER);
    struct embedder *e = embed_new(w, 3);
    atomic_store(&w->gang.poison, B('!'));
    e->id[1][0] = B('!');
    embed_start(e);
    WAIT_FOR(atomic_load(&e->done), 20000);
    assert_int_not_equal(e->st, MU_OK);
    assert_non_null(strstr(e->err.text, "input 2 of 3"));
    assert_non_null(strstr(e->err.text, "alone"));
    embed_end(e);
    expect_whole(c, 7, 300);
    client_free(c);
    world_stop(w);
}

/* What is wrong is said, and nothing is left behind. */
static void test_embed_refused(void **state)
{
    (void)state;
    static char longest[2100];
    struct world *w = world_start(0, 8);
    memset(longest, 'q', sizeof longest - 1);
    for (int k = 0; k < 13; k++) {
        struct embedder *e = embed_new(w, 3);
        const char *says = "";
        switch (k) {
        case 0: e->q.n_input = 0, says = "there are no inputs"; break;
        case 1: embed_text(e, 1, ""), says = "input 2 is empty"; break;
        case 2: e->ids[2].n_id = 0, says = "input 3 is empty"; break;
        case 3: e->input[0].input_case = MUSTER__V1__EMBED_INPUT__INPUT__NOT_SET, says = "input 1 has neither"; break;
        case 4: e->q.dimensions = 13, says = "dimensions is 13, the model has 12"; break;
        case 5: e->q.pooling = (Muster__V1__Pooling)3, says = "pooling 3 is not known"; break;
        case 6: e->id[1][1] = N_VOCAB, says = "not in the vocabulary"; break;
        case 7: embed_text(e, 2, longest), says = "input 3 has 2100 tokens, the context here is 2000"; break;
        case 8: e->q.model = "another", says = "'another' is not served"; break;
        case 9: atomic_store(&w->gang.bad_vector, 1), says = "of 3: the test makes it fail"; break;
        case 10: atomic_store(&w->gang.bad_vector, 2), says = "without a vector"; break;
        case 11: atomic_store(&w->gang.bad_vector, 3), says = "another length"; break;
        case 12: e->q.pooling = (Muster__V1__Pooling)-1, says = "pooling -1 is not known"; break;
        }
        embed_start(e);
        WAIT_FOR(atomic_load(&e->done), 5000);
        if (e->st == MU_OK || !strstr(e->err.text, says)) fail_msg("case %d: %s, expected '%s'", k, e->err.text, says);
        embed_end(e);
        atomic_store(&w->gang.bad_vector, 0);
    }
    struct embedder *e = embed_new(w, 3);
    e->q.truncate = true;
    embed_text(e, 2, longest);
    embed_start(e);
    WAIT_FOR(atomic_load(&e->done), 5000);
    if (e->st != MU_OK) fail_msg("%s", e->err.text);
    assert_int_equal(e->reply->embedding[2]->tokens, 2000);
    assert_true(e->reply->embedding[2]->truncated && !e->reply->embedding[1]->truncated);
    embed_end(e);
    world_stop(w);
}

/* A deadline: all inputs go, running and waiting ones, and there is room again. */
static void test_embed_cancel(void **state)
{
    (void)state;
    struct world *w = world_start(50, 2);
    atomic_store(&w->gang.holds, true);
    struct embedder *e = embed_new(w, 40);
    e->deadline_ns = mu_now_ns() + 300 * MU_MS;
    embed_start(e);
    WAIT_FOR(submits(w) == 3, 5000); /* two and one to keep the queue warm; 37 wait */
    struct embedder *busy = embed_new(w, 20);
    embed_start(busy);
    WAIT_FOR(atomic_load(&busy->done), 5000);
    assert_non_null(strstr(busy->err.text, "37 requests are waiting and 3 running"));
    embed_end(busy);
    WAIT_FOR(atomic_load(&e->done), 5000);
    assert_int_equal(e->st, MU_ETIMEOUT);
    embed_end(e);
    struct embedder *after = embed_new(w, 5);
    embed_start(after);
    WAIT_FOR(submits(w) == 6, 5000);
    atomic_store(&w->gang.holds, false);
    expect_vectors(after);
    embed_free(after);
    world_stop(w);
}

static void test_embed_out_of_memory(void **state)
{
    (void)state;
    struct world *w = world_start(0, 8);
    int n_right = 0;
    struct client *first = ask(w, 5, B('p'), 3, 1, mu_now_ns() + 20 * MU_SEC); /* the leader is there */
    client_wait(first, 30000);
    client_free(first);
    for (long n = 1; n <= 90; n++) {
        struct embedder *e = embed_new(w, 3);
        mu_alloc_fail_at(n);
        embed_start(e);
        WAIT_FOR(atomic_load(&e->done), 40000);
        mu_alloc_fail_at(0);
        if (e->st == MU_ETIMEOUT) fail_msg("allocation %ld: the call hangs", n);
        if (e->st == MU_OK) {
            expect_vectors(e);
            n_right++;
            embed_free(e);
        } else {
            embed_end(e);
        }
    }
    assert_true(n_right > 0);
    world_stop(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_embed_survives_deaths), cmocka_unit_test(test_embed_poison),
        cmocka_unit_test(test_embed_refused),         cmocka_unit_test(test_embed_cancel),
        cmocka_unit_test(test_embed_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
