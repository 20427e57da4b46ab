/* Who waits in the hub, who has a place there, and who is next: limits, priorities, keys, deadlines. */
#include "hub_fixture.h"

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

/* What the cache spared costs nothing: a key whose long prompts are cached is served before one with shorter ones that are
 * not, but for those that the gang took before it had said so. */
static void test_turns_of_cached_prompts(void **state)
{
    (void)state;
    enum { N = 5 };
    const Muster__V1__Priority normal = MUSTER__V1__PRIORITY__PRIORITY_NORMAL;
    struct world *w = world_start(40, 1); /* two at the leader */
    struct client *c[2 * N];
    atomic_store(&w->gang.holds, true);
    atomic_store(&w->gang.cached, B('c'));
    WAIT_FOR(launches(w) == 1, 5000);
    for (int i = 0; i < 2 * N; i++) {
        size_t n_prompt = (size_t)(i % 2 ? 40 : 90) + (size_t)i / 2;
        c[i] = ask_as(w, normal, i % 2 ? "b" : "a", n_prompt, i % 2 ? B('p') : B('c'), 1, (uint64_t)i, MU_FOREVER);
        WAIT_FOR(c[i]->n_reply == 1, 5000);
    }
    atomic_store(&w->gang.holds, false);
    for (int i = 0; i < 2 * N; i++) {
        expect_whole(c[i], (uint64_t)i, 1);
        client_free(c[i]);
    }
    assert_true(submit_place(w, 90 + N - 1) < submit_place(w, 42));
    world_stop(w);
}

/* A key whose requests end before their first id pays for the places that they had. */
static void test_turns_after_given_up_prompts(void **state)
{
    (void)state;
    const Muster__V1__Priority normal = MUSTER__V1__PRIORITY__PRIORITY_NORMAL;
    struct world *w = world_start(40, 1); /* two at the leader */
    struct client *c[4];
    atomic_store(&w->gang.holds, true);
    WAIT_FOR(launches(w) == 1, 5000);
    for (int i = 0; i < 4; i++) {
        c[i] = ask_as(w, normal, i < 3 ? "a" : "b", 90 + (size_t)i, B('p'), 1, (uint64_t)i, MU_FOREVER);
        WAIT_FOR(c[i]->n_reply == 1, 5000);
    }
    mu_rpc_stream_cancel(c[0]->stream);
    client_wait(c[0], 5000);
    WAIT_FOR(submit_place(w, 92) >= 0 || submit_place(w, 93) >= 0, 5000);
    assert_true(submit_place(w, 93) >= 0);
    atomic_store(&w->gang.holds, false);
    for (int i = 1; i < 4; i++) expect_whole(c[i], (uint64_t)i, 1);
    for (int i = 0; i < 4; i++) client_free(c[i]);
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

/* The same of the texts that wait for the text thread, and of their bytes; Tokenize counts as batch. */
static void test_text_places_by_priority(void **state)
{
    (void)state;
    static const struct {
        Muster__V1__Priority priority;
        size_t n, bytes; /* that wait already */
        bool taken;
    } row[] = {{MUSTER__V1__PRIORITY__PRIORITY_BATCH, 3071, 0, true},
               {MUSTER__V1__PRIORITY__PRIORITY_BATCH, 3072, 0, false},
               {MUSTER__V1__PRIORITY__PRIORITY_NORMAL, 4095, 0, true},
               {MUSTER__V1__PRIORITY__PRIORITY_NORMAL, 4096, 0, false},
               {MUSTER__V1__PRIORITY__PRIORITY_INTERACTIVE, 4608, 0, true},
               {MUSTER__V1__PRIORITY__PRIORITY_INTERACTIVE, 4609, 0, false},
               {MUSTER__V1__PRIORITY__PRIORITY_BATCH, 0, 192 << 20, false},
               {MUSTER__V1__PRIORITY__PRIORITY_NORMAL, 0, 192 << 20, true},
               {MUSTER__V1__PRIORITY__PRIORITY_NORMAL, 0, 256 << 20, false},
               {MUSTER__V1__PRIORITY__PRIORITY_INTERACTIVE, 0, 256 << 20, true}};
    enum { N = sizeof row / sizeof *row };
    struct world *w = world_open(&(struct world_options){.max_sequences = 8});
    struct client *c[N];
    size_t n_taken = 0;
    for (int i = 0; i < N; i++) {
        atomic_fetch_add(&w->hub.n_texts, row[i].n - n_taken);
        atomic_fetch_add(&w->hub.texts_bytes, row[i].bytes);
        c[i] = ask_as(w, row[i].priority, "", 5, B('p'), 5, (uint64_t)i, MU_FOREVER);
        WAIT_FOR(atomic_load(&c[i]->done) || mu_queue_len(w->hub.texts) > n_taken, 5000);
        assert_int_equal(atomic_load(&c[i]->done), !row[i].taken);
        atomic_fetch_sub(&w->hub.n_texts, row[i].n - n_taken);
        atomic_fetch_sub(&w->hub.texts_bytes, row[i].bytes);
        n_taken += row[i].taken;
    }
    Muster__V1__TokenizeRequest q = MUSTER__V1__TOKENIZE_REQUEST__INIT;
    struct mu_err err = MU_ERR_INIT;
    q.text = "text";
    atomic_fetch_add(&w->hub.n_texts, 3072);
    assert_int_equal(mu_rpc_unary(w->channel, "/muster.v1.Muster/Tokenize", &q.base,
                                  &muster__v1__tokenize_reply__descriptor, mu_now_ns() + 5 * MU_SEC, NULL, &err),
                     MU_ELIMIT);
    atomic_fetch_sub(&w->hub.n_texts, 3072);
    world_run_texts(w);
    world_run_hub(w);
    for (int i = 0; i < N; i++) {
        if (row[i].taken)
            expect_whole(c[i], (uint64_t)i, 5);
        else
            assert_int_equal(c[i]->code, MU_RPC_RESOURCE_EXHAUSTED);
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

/* n long texts of n_token ids each for a client that does not read yet. */
static struct client *ask_unread(struct world *w, struct mu_rpc_channel *channel, uint32_t n, uint32_t n_token)
{
    Muster__V1__GenerateRequest q = MUSTER__V1__GENERATE_REQUEST__INIT;
    Muster__V1__Ids ids = MUSTER__V1__IDS__INIT;
    int32_t prompt = B('p');
    ids.n_id = 1;
    ids.id = &prompt;
    q.prompt_case = MUSTER__V1__GENERATE_REQUEST__PROMPT_IDS;
    q.ids = &ids;
    q.max_tokens = n_token;
    q.n = n;
    q.ignore_end = true;
    atomic_store(&w->gang.says, ID_LONG);
    return client_start(channel, &q, MU_FOREVER, false);
}

/* A request that blocks just after the hub has looked for such, and is the last to say something, is looked at again. */
static void test_blocked_between_looks(void **state)
{
    (void)state;
    struct world *w = world_open(&(struct world_options){.max_sequences = 8, .client_queue_bytes = 20000});
    world_run_texts(w);
    world_run_hub(w);
    WAIT_FOR(launches(w) == 1, 5000);
    mu_sleep_ms(100); /* the hub is at rest, so it looks with the call's first event, and these are all within 50 ms */
    /* 2.4 MB a message: the second one is more than gRPC takes for a client that does not read (4 MiB). */
    struct client *c = ask_unread(w, w->channel, 1, 2 * SAYS);
    mu_sleep_ms(200);
    atomic_store(&c->reads, true);
    client_wait(c, 5000);
    assert_int_equal(c->code, MU_RPC_OK);
    assert_int_equal(c->n_text, 2 * SAYS * LONG_BYTES);
    client_free(c);
    world_stop(w);
}

static struct mu_rpc_channel *another_channel(struct world *w) /* a client that does not read holds up its own */
{
    struct mu_rpc_channel *c;
    struct mu_err err = MU_ERR_INIT;
    assert_int_equal(mu_rpc_channel_open(mu_rpc_channel_address(w->channel), &c, &err), MU_OK);
    return c;
}

/* How many requests run (running) or wait, as ClusterStatus has it. */
static uint32_t load(struct world *w, bool running)
{
    Muster__V1__ClusterStatusReply *r = world_status(w);
    uint32_t n = running ? r->running : r->waiting;
    mu_rpc_message_free(&r->base);
    return n;
}

/* What has ended and is not read yet takes nobody's place in the queue. */
static void test_unread_do_not_wait(void **state)
{
    (void)state;
    struct world *w =
        world_open(&(struct world_options){.max_waiting = 2, .max_sequences = 8, .client_queue_bytes = 20000});
    world_run_texts(w);
    world_run_hub(w);
    struct mu_rpc_channel *channel = another_channel(w);
    struct client *unread = ask_unread(w, channel, 3, 2 * SAYS);
    WAIT_FOR(submits(w) == 3, 5000);
    WAIT_FOR(load(w, true) == 0, 5000);
    assert_int_equal(load(w, false), 0);
    atomic_store(&w->gang.says, 0);
    struct client *next = ask(w, 5, B('p'), 5, 1, MU_FOREVER);
    expect_whole(next, 1, 5);
    atomic_store(&unread->reads, true);
    client_wait(unread, 10000);
    assert_int_equal(unread->code, MU_RPC_OK);
    assert_int_equal(unread->n_text, 3 * 2 * SAYS * LONG_BYTES);
    client_free(unread);
    client_free(next);
    mu_rpc_channel_close(channel);
    world_stop(w);
}

/* A client that takes nothing loses its call; one that takes longer, but something now and then, gets everything. */
static void test_unread_for_too_long(void **state)
{
    (void)state;
    struct world *w = world_open(
        &(struct world_options){.max_sequences = 8, .unread_timeout_ms = 1000, .client_queue_bytes = 32 << 20});
    world_run_texts(w);
    world_run_hub(w);
    struct mu_rpc_channel *channel = another_channel(w);
    /* 72 MB: the queue has room for 32, and gRPC takes 4 MiB, under ThreadSanitizer 16 */
    struct client *unread = ask_unread(w, channel, 5, 6 * SAYS), *slow = ask_unread(w, w->channel, 3, 6 * SAYS);
    atomic_store(&slow->rests_ms, 12); /* its queue is 128 messages long; gRPC asks for more every 16 at least */
    atomic_store(&slow->reads, true);
    client_wait(slow, 30000);
    assert_int_equal(slow->code, MU_RPC_OK);
    assert_int_equal(slow->n_text, 3 * 6 * SAYS * LONG_BYTES);
    mu_sleep_ms(2000); /* gRPC may have gone on taking of it until now */
    atomic_store(&unread->reads, true);
    client_wait(unread, 10000);
    assert_int_equal(unread->code, MU_RPC_DEADLINE_EXCEEDED);
    assert_non_null(strstr(unread->status, "its client has read nothing for 1 s"));
    client_free(unread);
    client_free(slow);
    mu_rpc_channel_close(channel);
    world_stop(w);
}

/* A cancel that the stream to the leader has no room for is sent again when the leader says more of the request. */
static void test_cancel_without_room(void **state)
{
    (void)state;
    enum { N = 24, SCHEMA = 1000000 }; /* far more than gRPC takes for a leader that does not read */
    static char schema[SCHEMA + 1];
    struct world *w = world_open(&(struct world_options){.max_sequences = 32, .engine_queue_bytes = 4000});
    world_run_texts(w);
    world_run_hub(w);
    struct client *gone = ask(w, 5, B('p'), 1900, 1, MU_FOREVER), *c[N];
    WAIT_FOR(client_ids(gone) > 5, 5000);
    atomic_store(&w->gang.holds, true);
    atomic_store(&w->gang.deaf, true);
    memset(schema, ' ', SCHEMA);
    schema[0] = '{';
    schema[SCHEMA - 1] = '}';
    Muster__V1__GenerateRequest q = MUSTER__V1__GENERATE_REQUEST__INIT;
    q.prompt_case = MUSTER__V1__GENERATE_REQUEST__PROMPT_TEXT;
    q.text = "p";
    q.max_tokens = 5;
    q.constraint_case = MUSTER__V1__GENERATE_REQUEST__CONSTRAINT_JSON_SCHEMA;
    q.json_schema = schema;
    for (int i = 0; i < N; i++) {
        c[i] = client_start(w->channel, &q, MU_FOREVER, true);
        WAIT_FOR(c[i]->n_reply == 1, 5000);
    }
    uint32_t before = load(w, true);
    assert_in_range(before, 2, N); /* there was no room for some of them */
    mu_rpc_stream_cancel(gone->stream);
    WAIT_FOR(load(w, true) == before - 1, 5000);
    assert_int_equal(w->gang.n_cancel, 0);
    atomic_store(&w->gang.deaf, false);
    atomic_store(&w->gang.holds, false);
    WAIT_FOR(w->gang.n_cancel == 1, 5000);
    for (int i = 0; i < N; i++) {
        client_wait(c[i], 10000);
        assert_int_equal(c[i]->code, MU_RPC_OK);
        client_free(c[i]);
    }
    client_wait(gone, 5000);
    client_free(gone);
    world_stop(w);
}

struct tokenize {
    struct world *w;
    _Atomic int n_before; /* texts that were ready before its own; -1: it is not */
};

static void on_tokenized(struct mu_rpc_stream *s, const ProtobufCMessage *msg, void *ctx)
{
    (void)s;
    (void)msg;
    struct tokenize *t = ctx;
    atomic_store(&t->n_before, (int)mu_queue_len(t->w->hub.events));
}

static void on_tokenize_done(struct mu_rpc_stream *s, enum mu_rpc_code code, const char *text, void *ctx)
{
    (void)s;
    (void)code;
    (void)text;
    (void)ctx;
}

/* Texts that wait for the text thread are taken by priority; those of Tokenize are last. */
static void test_texts_by_priority(void **state)
{
    (void)state;
    struct world *w = world_open(&(struct world_options){.max_sequences = 8});
    struct mu_err err = MU_ERR_INIT;
    struct tokenize t = {.w = w, .n_before = -1};
    struct mu_rpc_stream_callbacks cb = {on_tokenized, on_tokenize_done, &t};
    struct mu_rpc_stream *s;
    Muster__V1__TokenizeRequest q = MUSTER__V1__TOKENIZE_REQUEST__INIT;
    q.text = "p";
    if (mu_rpc_stream_open(w->channel, "/muster.v1.Muster/Tokenize", &muster__v1__tokenize_reply__descriptor, 0,
                           MU_FOREVER, mu_now_ns() + 5 * MU_SEC, &cb, &s, &err))
        fail_msg("%s", err.text);
    assert_int_equal(mu_rpc_stream_send(s, &q.base), MU_OK);
    mu_rpc_stream_half_close(s);
    WAIT_FOR(mu_queue_len(w->hub.texts) == 1, 5000);
    /* A text that takes a while and is too long then: an answer that should come after the others is seen not to. */
    static char text[1 << 20];
    memset(text, 'p', sizeof text - 1);
    Muster__V1__GenerateRequest longest = MUSTER__V1__GENERATE_REQUEST__INIT;
    longest.prompt_case = MUSTER__V1__GENERATE_REQUEST__PROMPT_TEXT;
    longest.text = text;
    longest.priority = MUSTER__V1__PRIORITY__PRIORITY_INTERACTIVE;
    struct client *too_long = client_start(w->channel, &longest, MU_FOREVER, true);
    WAIT_FOR(mu_queue_len(w->hub.texts) == 2, 5000);
    static const Muster__V1__Priority priority[] = {
        MUSTER__V1__PRIORITY__PRIORITY_BATCH, MUSTER__V1__PRIORITY__PRIORITY_NORMAL,
        MUSTER__V1__PRIORITY__PRIORITY_NORMAL, MUSTER__V1__PRIORITY__PRIORITY_INTERACTIVE};
    static const size_t place[] = {3, 1, 2, 0};
    struct client *c[4];
    for (size_t i = 0; i < 4; i++) {
        c[i] = ask_as(w, priority[i], "", 10 + place[i], B('p'), 5, i, MU_FOREVER);
        WAIT_FOR(mu_queue_len(w->hub.texts) == 3 + i, 5000);
    }
    world_run_texts(w);
    WAIT_FOR(atomic_load(&t.n_before) >= 0, 5000);
    assert_in_range(t.n_before, 4, 5); /* the one that is too long tells the hub of its end, sooner or later */
    for (size_t i = 0, n = mu_queue_len(w->hub.events), at = 0; i < n; i++) { /* as the hub will get them */
        struct mu_event *ev = mu_queue_pop(w->hub.events, 0);
        if (ev->kind == MU_EV_GENERATE) assert_int_equal(ev->n_ids, 10 + at++);
        assert_int_equal(mu_queue_push(w->hub.events, ev), MU_OK);
    }
    client_wait(too_long, 5000);
    assert_int_equal(too_long->code, MU_RPC_OUT_OF_RANGE);
    client_free(too_long);
    world_run_hub(w);
    for (size_t i = 0; i < 4; i++) {
        expect_whole(c[i], i, 5);
        client_free(c[i]);
    }
    mu_rpc_stream_release(s);
    world_stop(w);
}

/* Calls that end tell the hub so by one event together, or a flood of them would fill the gang's half of the queue. */
static void test_ends_are_told_once(void **state)
{
    (void)state;
    enum { N = 200 };
    struct world *w = world_open(&(struct world_options){.max_sequences = 8});
    struct client *c[N];
    for (int i = 0; i < N; i++) c[i] = ask(w, 5, B('p'), 5, (uint64_t)i, MU_FOREVER);
    WAIT_FOR(mu_queue_len(w->hub.texts) == N, 10000);
    for (int i = 0; i < N; i++) mu_rpc_stream_cancel(c[i]->stream);
    for (int i = 0; i < N; i++) client_wait(c[i], 5000);
    struct client *next = ask(w, 5, B('p'), 5, 1000, MU_FOREVER); /* the server has seen the ends when it has this */
    WAIT_FOR(mu_queue_len(w->hub.texts) == N + 1, 5000);
    assert_true(mu_queue_len(w->hub.events) <= 1);
    world_run_texts(w);
    world_run_hub(w);
    expect_whole(next, 1000, 5);
    for (int i = 0; i < N; i++) client_free(c[i]);
    client_free(next);
    world_stop(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_busy),
        cmocka_unit_test(test_turns),
        cmocka_unit_test(test_turns_of_cached_prompts),
        cmocka_unit_test(test_turns_after_given_up_prompts),
        cmocka_unit_test(test_places_by_priority),
        cmocka_unit_test(test_text_places_by_priority),
        cmocka_unit_test(test_deadline_in_the_queue),
        cmocka_unit_test(test_texts_by_priority),
        cmocka_unit_test(test_ends_are_told_once),
        cmocka_unit_test(test_blocked_between_looks),
        cmocka_unit_test(test_unread_do_not_wait),
        cmocka_unit_test(test_unread_for_too_long),
        cmocka_unit_test(test_cancel_without_room),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
