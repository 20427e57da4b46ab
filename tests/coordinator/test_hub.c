/* The hub with a worker and leaders that are a few lines of this test: who runs when, and that no stream is ever wrong,
 * whatever dies. */
#include "fake_gang.h"

#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/alloc.h"

struct world {
    struct vocabulary v;
    struct mu_model model;
    struct mu_serve_options opt;
    struct mu_hub hub;
    struct fake_gang gang;
    struct mu_rpc_server *front, *internal;
    struct mu_rpc_channel *channel;
    pthread_t hub_thread, text_thread;
};

static void tell_worker(struct world *w, enum mu_event_kind kind)
{
    struct mu_event ev = {.kind = kind, .text = "the worker was killed by the test"};
    assert_int_equal(mu_hub_post(&w->hub, &ev), MU_OK);
}

static struct world *world_start(int max_waiting, int max_sequences)
{
    struct world *w = calloc(1, sizeof *w);
    struct mu_hub *h = &w->hub;
    struct mu_err err = MU_ERR_INIT;
    struct mu_rpc_method methods[16], engine[4];
    char address[128];
    mu_rpc_init();
    vocabulary_open(&w->v);
    snprintf(w->model.name, sizeof w->model.name, "fake");
    w->model.cfg.n_vocab = N_VOCAB;
    w->model.cfg.d_model = FAKE_D_MODEL;
    w->model.cfg.pooling = MU_POOL_MEAN;
    w->opt = (struct mu_serve_options){.model_path = "/nowhere/fake.gguf", .max_waiting = max_waiting};
    h->opt = &w->opt;
    h->model = &w->model;
    h->tok = w->v.tok;
    h->serving.n_ctx = 2000;
    h->started_ns = mu_now_ns();
    h->gang.epoch = 1000;
    memset(h->gang.secret, 7, sizeof h->gang.secret);
    snprintf(h->engine_address, sizeof h->engine_address, "unix:/tmp/mu-fake-engine-%d", (int)getpid());
    h->outcome_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    assert_int_equal(mu_queue_create(MU_HUB_EVENTS, &h->events, &err), MU_OK);
    assert_int_equal(mu_queue_create(MU_HUB_TEXTS, &h->texts, &err), MU_OK);
    const char *front[] = {"127.0.0.1:0", NULL}, *internal[] = {h->engine_address, NULL};
    struct mu_rpc_server_options fo = {
        .addresses = front, .methods = methods, .n_method = mu_front_methods(h, methods, 16)};
    struct mu_rpc_server_options io = {
        .addresses = internal, .methods = engine, .n_method = mu_engine_methods(h, engine, 4)};
    if (mu_rpc_server_start(&fo, &w->front, &err) || mu_rpc_server_start(&io, &w->internal, &err))
        fail_msg("%s", err.text);
    h->front = w->front;
    fake_gang_start(&w->gang);
    atomic_store(&w->gang.max_sequences, max_sequences);
    assert_int_equal(mu_rpc_channel_open(w->gang.address, &h->worker, &err), MU_OK);
    snprintf(address, sizeof address, "127.0.0.1:%d", mu_rpc_server_port(w->front, 0));
    assert_int_equal(mu_rpc_channel_open(address, &w->channel, &err), MU_OK);
    assert_int_equal(pthread_create(&w->text_thread, NULL, mu_text_main, h), 0);
    assert_int_equal(pthread_create(&w->hub_thread, NULL, mu_hub_main, h), 0);
    tell_worker(w, MU_EV_WORKER_UP);
    return w;
}

static void world_stop(struct world *w)
{
    struct mu_event ev = {.kind = MU_EV_STOP};
    struct mu_hub *h = &w->hub;
    assert_int_equal(mu_hub_post(h, &ev), MU_OK);
    pthread_join(w->hub_thread, NULL);
    assert_null(h->requests);
    assert_int_equal(h->n_waiting + h->n_running, 0);
    for (int i = 0; i < MU_PRIORITY_COUNT; i++) assert_int_equal(h->fair.n_user[i], 0);
    mu_queue_close(h->texts);
    pthread_join(w->text_thread, NULL);
    assert_int_equal(atomic_load(&h->texts_bytes), 0);
    fake_gang_stop(&w->gang);
    mu_rpc_channel_close(w->channel);
    mu_rpc_server_stop(w->front, 100);
    mu_rpc_server_stop(w->internal, 0);
    mu_rpc_channel_close(h->worker);
    mu_queue_destroy(h->events, mu_event_free);
    mu_queue_destroy(h->texts, mu_text_job_free);
    close(h->outcome_fd);
    vocabulary_close(&w->v);
    mu_rpc_shutdown();
    free(w);
}

static struct client *ask_as(struct world *w, Muster__V1__Priority priority, const char *key, size_t n_prompt,
                             int32_t prompt_id, uint32_t n, uint64_t seed, int64_t deadline_ns)
{
    Muster__V1__GenerateRequest q = MUSTER__V1__GENERATE_REQUEST__INIT;
    Muster__V1__Ids ids = MUSTER__V1__IDS__INIT;
    Muster__V1__Sampling s = MUSTER__V1__SAMPLING__INIT;
    int32_t prompt[100];
    for (size_t i = 0; i < n_prompt; i++) prompt[i] = prompt_id;
    ids.n_id = n_prompt;
    ids.id = prompt;
    s._seed_case = MUSTER__V1__SAMPLING___SEED_SEED;
    s.seed = seed;
    q.prompt_case = MUSTER__V1__GENERATE_REQUEST__PROMPT_IDS;
    q.ids = &ids;
    q.sampling = &s;
    q.max_tokens = n;
    q.return_ids = q.ignore_end = true;
    q.priority = priority;
    q.key = (char *)key;
    return client_start(w->channel, &q, deadline_ns, true);
}

static struct client *ask(struct world *w, size_t n_prompt, int32_t prompt_id, uint32_t n, uint64_t seed,
                          int64_t deadline_ns)
{
    return ask_as(w, MUSTER__V1__PRIORITY__PRIORITY_NORMAL, "", n_prompt, prompt_id, n, seed, deadline_ns);
}

static void expect_whole(struct client *c, uint64_t seed, size_t n)
{
    client_wait(c, 30000);
    if (c->code != MU_RPC_OK) fail_msg("seed %d: %s", (int)seed, c->status);
    assert_int_equal(c->n_ids, n);
    assert_int_equal(c->n_text, n);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(c->ids[i], fake_id(seed, i));
        assert_int_equal(c->text[i], fake_id(seed, i) - ID_BYTE);
    }
    assert_int_equal(c->completion_tokens, n);
}

static int launches(struct world *w)
{
    return atomic_load(&w->gang.n_launch);
}
static int submits(struct world *w)
{
    pthread_mutex_lock(&w->gang.lock);
    int n = w->gang.n_submit;
    pthread_mutex_unlock(&w->gang.lock);
    return n;
}

/* ---- deaths ---- */

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

/* ---- the form of a completion ---- */

static struct client *ask_form(struct world *w, int form, const char *text)
{
    Muster__V1__GenerateRequest q = MUSTER__V1__GENERATE_REQUEST__INIT;
    Muster__V1__Ids ids = MUSTER__V1__IDS__INIT;
    int32_t prompt[1] = {B('p')};
    ids.n_id = 1;
    ids.id = prompt;
    q.prompt_case = MUSTER__V1__GENERATE_REQUEST__PROMPT_IDS;
    q.ids = &ids;
    q.max_tokens = 5;
    q.constraint_case = (Muster__V1__GenerateRequest__ConstraintCase)form;
    switch (form) {
    case MUSTER__V1__GENERATE_REQUEST__CONSTRAINT_JSON_SCHEMA: q.json_schema = (char *)text; break;
    case MUSTER__V1__GENERATE_REQUEST__CONSTRAINT_REGEX: q.regex = (char *)text; break;
    case MUSTER__V1__GENERATE_REQUEST__CONSTRAINT_GRAMMAR: q.grammar = (char *)text; break;
    case MUSTER__V1__GENERATE_REQUEST__CONSTRAINT_JSON: q.json = *text; break;
    }
    q.ignore_end = *text == '!';
    return client_start(w->channel, &q, MU_FOREVER, true);
}

static void expect_refused(struct world *w, int form, const char *text, const char *why)
{
    struct client *c = ask_form(w, form, text);
    client_wait(c, 10000);
    if (c->code != MU_RPC_INVALID_ARGUMENT || !strstr(c->status, why))
        fail_msg("'%s': %d '%s', not '%s'", text, (int)c->code, c->status, why);
    client_free(c);
}

/* What cannot be honoured is answered before it waits; the rest goes to the gang, and after a death again. */
static void test_constraints(void **state)
{
    (void)state;
    enum {
        SCHEMA = MUSTER__V1__GENERATE_REQUEST__CONSTRAINT_JSON_SCHEMA,
        REGEX = MUSTER__V1__GENERATE_REQUEST__CONSTRAINT_REGEX,
        GRAMMAR = MUSTER__V1__GENERATE_REQUEST__CONSTRAINT_GRAMMAR,
        JSON = MUSTER__V1__GENERATE_REQUEST__CONSTRAINT_JSON
    };
    static const struct {
        int form;
        const char *text;
    } good[] = {
        {SCHEMA, "{\"type\":\"integer\"}"}, {REGEX, "a+"}, {GRAMMAR, "root ::= \"x\""}, {JSON, "1"}, {JSON, ""}};
    struct world *w = world_start(0, 8);
    struct client *c[5];
    atomic_store(&w->gang.holds, true);
    for (int round = 0; round < 2; round++) { /* the second time they are known */
        expect_refused(w, SCHEMA, "{\"not\":{}}", "schema at '#': the keyword 'not' is not supported");
        expect_refused(w, SCHEMA, "{", "the schema is not JSON");
        expect_refused(w, REGEX, "(a", "')' is missing");
        expect_refused(w, GRAMMAR, "root ::= root | [a]", "begins with itself");
        expect_refused(w, REGEX, "!", "ignore_end");
    }
    char *longest = malloc((1 << 20) + 2);
    memset(longest, 'a', (1 << 20) + 1);
    longest[(1 << 20) + 1] = '\0';
    expect_refused(w, REGEX, longest, "longer than 1 MiB");
    free(longest);
    assert_int_equal(submits(w), 0);
    for (int i = 0; i < 5; i++) {
        c[i] = ask_form(w, good[i].form, good[i].text);
        WAIT_FOR(submits(w) == i + 1, 5000);
    }
    fake_gang_kill(&w->gang, 0, "rank 0 died for the test");
    WAIT_FOR(submits(w) == 10, 5000);
    for (int i = 0; i < 10; i++) {
        const struct submitted *s = &w->gang.submit[i];
        int k = (int)(s->request - w->gang.submit[0].request);
        assert_in_range(k, 0, 4);
        assert_int_equal(s->constraint, k == 4 ? 0 : good[k].form); /* both have the same numbers */
        assert_string_equal(s->constraint_text, good[k].form == JSON ? "" : good[k].text);
    }
    atomic_store(&w->gang.holds, false);
    for (int i = 0; i < 5; i++) {
        client_wait(c[i], 10000);
        assert_int_equal(c[i]->code, MU_RPC_OK);
        client_free(c[i]);
    }
    world_stop(w);
}

/* ---- the queue ---- */

static void test_busy(void **state)
{
    (void)state;
    struct world *w = world_start(2, 1); /* two at the leader (one runs, one is ready to), two wait here */
    struct client *c[5];
    atomic_store(&w->gang.holds, true);
    WAIT_FOR(launches(w) == 1, 5000);
    for (int i = 0; i < 5; i++) {
        c[i] = ask(w, 5, B('p'), 5, (uint64_t)i, MU_FOREVER);
        if (i < 2) WAIT_FOR(submits(w) == i + 1, 5000);
        if (i >= 2 && i < 4) WAIT_FOR(c[i]->n_reply == 1, 5000);
    }
    client_wait(c[4], 5000);
    assert_int_equal(c[4]->code, MU_RPC_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(c[4]->status, "2 requests are waiting and 2 running; try again later, in about "));
    /* A place is free again when one that waits gives up. */
    mu_rpc_stream_cancel(c[3]->stream);
    client_wait(c[3], 5000);
    struct client *late = NULL;
    for (int tries = 0; tries < 100; tries++) {
        late = ask(w, 5, B('p'), 5, 50, MU_FOREVER);
        WAIT_FOR(late->n_reply || atomic_load(&late->done), 5000);
        if (!atomic_load(&late->done)) break;
        client_free(late);
        mu_sleep_ms(10);
    }
    atomic_store(&w->gang.holds, false);
    expect_whole(late, 50, 5);
    client_free(late);
    for (int i = 0; i < 5; i++) {
        if (i < 3) expect_whole(c[i], (uint64_t)i, 5);
        client_free(c[i]);
    }
    world_stop(w);
}

/* When a request with so many prompt tokens came to the gang; -1: not yet. */
static int submit_place(struct world *w, size_t n_prompt)
{
    int place = -1;
    pthread_mutex_lock(&w->gang.lock);
    for (int i = 0; i < w->gang.n_submit && place < 0; i++)
        if (w->gang.submit[i].n_prompt == n_prompt) place = i;
    pthread_mutex_unlock(&w->gang.lock);
    return place;
}

/* What is urgent goes to a gang that is full of batch; a key with two requests does not wait for one with six. */
static void test_turns(void **state)
{
    (void)state;
    const Muster__V1__Priority batch = MUSTER__V1__PRIORITY__PRIORITY_BATCH;
    struct world *w = world_start(40, 2); /* three at the leader */
    struct client *c[9];
    int n = 0;
    atomic_store(&w->gang.holds, true);
    WAIT_FOR(launches(w) == 1, 5000);
    for (size_t i = 0; i < 6; i++, n++) {
        c[n] = ask_as(w, batch, "a", 10 + i, B('p'), 5, (uint64_t)n, MU_FOREVER);
        WAIT_FOR(c[n]->n_reply == 1, 5000);
    }
    for (size_t i = 0; i < 2; i++, n++) {
        c[n] = ask_as(w, batch, "b", 20 + i, B('p'), 5, (uint64_t)n, MU_FOREVER);
        WAIT_FOR(c[n]->n_reply == 1, 5000);
    }
    WAIT_FOR(submits(w) == 3, 5000);
    c[n] = ask_as(w, MUSTER__V1__PRIORITY__PRIORITY_INTERACTIVE, "b", 30, B('p'), 5, (uint64_t)n, MU_FOREVER);
    WAIT_FOR(submit_place(w, 30) == 3, 5000);
    n++;
    atomic_store(&w->gang.holds, false);
    for (int i = 0; i < n; i++) {
        expect_whole(c[i], (uint64_t)i, 5);
        client_free(c[i]);
    }
    assert_true(submit_place(w, 20) < submit_place(w, 15));
    for (size_t i = 0; i < 5; i++) assert_true(submit_place(w, 10 + i) < submit_place(w, 11 + i));
    world_stop(w);
}

/* Batch fills three quarters of the queue; for what is urgent there are places more. */
static void test_places_by_priority(void **state)
{
    (void)state;
    struct world *w = world_start(4, 1);
    struct client *c[10];
    int n = 0;
    atomic_store(&w->gang.mute, true); /* no gang: all wait */
    fake_gang_vanish(&w->gang);
    static const struct {
        Muster__V1__Priority priority;
        int n_taken;
    } row[] = {{MUSTER__V1__PRIORITY__PRIORITY_BATCH, 3},
               {MUSTER__V1__PRIORITY__PRIORITY_NORMAL, 1},
               {MUSTER__V1__PRIORITY__PRIORITY_INTERACTIVE, 1}};
    for (int k = 0; k < 3; k++) {
        for (int i = 0; i <= row[k].n_taken; i++, n++) {
            c[n] = ask_as(w, row[k].priority, "", 5, B('p'), 5, 1, MU_FOREVER);
            WAIT_FOR(c[n]->n_reply == 1 || atomic_load(&c[n]->done), 5000);
            assert_int_equal(atomic_load(&c[n]->done), i == row[k].n_taken);
        }
        assert_int_equal(c[n - 1]->code, MU_RPC_RESOURCE_EXHAUSTED);
    }
    struct client *odd = ask_as(w, (Muster__V1__Priority)3, "", 5, B('p'), 5, 1, MU_FOREVER);
    client_wait(odd, 5000);
    assert_int_equal(odd->code, MU_RPC_INVALID_ARGUMENT);
    assert_non_null(strstr(odd->status, "priority is not known"));
    client_free(odd);
    for (int i = 0; i < n; i++) mu_rpc_stream_cancel(c[i]->stream);
    for (int i = 0; i < n; i++) {
        WAIT_FOR(atomic_load(&c[i]->done), 5000);
        client_free(c[i]);
    }
    world_stop(w);
}

/* A deadline that passes while the request waits; the next one is served. */
static void test_deadline_in_the_queue(void **state)
{
    (void)state;
    struct world *w = world_start(1, 1);
    atomic_store(&w->gang.mute, true);
    fake_gang_vanish(&w->gang); /* no gang for now */
    struct client *c = ask(w, 5, B('p'), 5, 1, mu_now_ns() + 100 * MU_MS), *later = NULL;
    client_wait(c, 5000);
    assert_int_equal(c->code, MU_RPC_DEADLINE_EXCEEDED);
    for (int tries = 0; tries < 100; tries++) {
        later = ask(w, 5, B('p'), 5, 2, MU_FOREVER);
        WAIT_FOR(later->n_reply || atomic_load(&later->done), 5000);
        if (!atomic_load(&later->done)) break;
        client_free(later);
        mu_sleep_ms(10);
    }
    atomic_store(&w->gang.mute, false);
    tell_worker(w, MU_EV_WORKER_DOWN);
    fake_gang_return(&w->gang);
    tell_worker(w, MU_EV_WORKER_UP);
    expect_whole(later, 2, 5);
    client_free(c);
    client_free(later);
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

/* ---- choices, log probabilities ---- */

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

/* As test_out_of_memory; what had entered the shares has left them (world_stop looks). */
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

/* ---- embeddings ---- */

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
        cmocka_unit_test(test_streams_survive_deaths),
        cmocka_unit_test(test_shortest_replay_first),
        cmocka_unit_test(test_poison),
        cmocka_unit_test(test_worker_deaths_accuse_nobody),
        cmocka_unit_test(test_silent_worker),
        cmocka_unit_test(test_gap_ends_the_epoch),
        cmocka_unit_test(test_constraints),
        cmocka_unit_test(test_busy),
        cmocka_unit_test(test_turns),
        cmocka_unit_test(test_places_by_priority),
        cmocka_unit_test(test_deadline_in_the_queue),
        cmocka_unit_test(test_choices),
        cmocka_unit_test(test_choices_cancelled),
        cmocka_unit_test(test_choice_fails),
        cmocka_unit_test(test_choices_refused),
        cmocka_unit_test(test_choices_in_turn),
        cmocka_unit_test(test_choices_out_of_memory),
        cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_embed_survives_deaths),
        cmocka_unit_test(test_embed_poison),
        cmocka_unit_test(test_embed_refused),
        cmocka_unit_test(test_embed_cancel),
        cmocka_unit_test(test_embed_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
