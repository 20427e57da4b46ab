/* Requests of record: what is committed, and what a client sees of it. */
#include "coord_fixture.h"

#include "base/alloc.h"
#include "base/queue.h"
#include "coordinator/msg.h"
#include "coordinator/request.h"

enum { QUEUED_BYTES = 4000 };

struct world {
    struct vocabulary v;
    struct mu_rpc_server *server;
    struct mu_rpc_channel *channel;
    struct mu_queue *calls; /* retained */
};

static void on_call(struct mu_rpc_call *call, const ProtobufCMessage *msg, void *ctx)
{
    (void)msg;
    if (mu_queue_push(ctx, mu_rpc_call_retain(call))) mu_rpc_call_release(call);
}

static int setup(void **state)
{
    static struct world w;
    struct mu_err err = MU_ERR_INIT;
    char address[64];
    const char *addresses[] = {"127.0.0.1:0", NULL};
    mu_rpc_init();
    vocabulary_open(&w.v);
    assert_int_equal(mu_queue_create(16, &w.calls, &err), MU_OK);
    struct mu_rpc_method m = {.path = "/muster.v1.Muster/Generate",
                              .request = &muster__v1__generate_request__descriptor,
                              .on_message = on_call,
                              .ctx = w.calls,
                              .max_queued_bytes = QUEUED_BYTES};
    struct mu_rpc_server_options o = {.addresses = addresses, .methods = &m, .n_method = 1};
    if (mu_rpc_server_start(&o, &w.server, &err)) fail_msg("%s", err.text);
    snprintf(address, sizeof address, "127.0.0.1:%d", mu_rpc_server_port(w.server, 0));
    assert_int_equal(mu_rpc_channel_open(address, &w.channel, &err), MU_OK);
    *state = &w;
    return 0;
}

static int teardown(void **state)
{
    struct world *w = *state;
    mu_rpc_channel_close(w->channel);
    mu_rpc_server_stop(w->server, 0);
    mu_queue_destroy(w->calls, NULL);
    vocabulary_close(&w->v);
    mu_rpc_shutdown();
    return 0;
}

struct talk {
    struct client *client;
    struct mu_request *r;
};

static struct talk talk_start(struct world *w, Muster__V1__GenerateRequest *q, size_t max_tokens, bool reads)
{
    struct talk t;
    q->prompt_case = MUSTER__V1__GENERATE_REQUEST__PROMPT_TEXT;
    q->text = (char *)"p";
    t.client = client_start(w->channel, q, MU_FOREVER, reads);
    struct mu_rpc_call *call = mu_queue_pop(w->calls, mu_now_ns() + 5 * MU_SEC);
    assert_non_null(call);
    int32_t *prompt = mu_calloc(3, sizeof *prompt);
    struct mu_choices *c =
        mu_choices_create(7, call, (Muster__V1__GenerateRequest *)mu_msg_copy(&q->base), prompt, 3, 99);
    assert_non_null(c);
    t.r = mu_request_create(7, c, 0, max_tokens, w->v.tok);
    assert_non_null(t.r);
    mu_choices_release(c);
    return t;
}

static enum mu_commit commit(struct world *w, struct mu_request *r, size_t first, const int32_t *ids, size_t n)
{
    Muster__Internal__V1__RequestTokens t = MUSTER__INTERNAL__V1__REQUEST_TOKENS__INIT;
    t.first_position = (uint32_t)first;
    t.id = (int32_t *)ids;
    t.n_id = n;
    return mu_request_commit(r, &t, w->v.tok);
}

static void talk_end(struct talk *t)
{
    client_wait(t->client, 5000);
    mu_request_free(t->r);
    client_free(t->client);
}

/* Tries until the client's queue has taken everything that may go out. */
static bool flush(struct talk *t)
{
    int64_t until = mu_now_ns() + 10 * MU_SEC;
    bool done = mu_request_flush(t->r);
    for (; t->r->blocked && !done && mu_now_ns() < until; done = mu_request_flush(t->r)) mu_sleep_ms(1);
    return done;
}

/* Commits what is new one id at a time, flushing after each; true when it is finished. */
static bool feed(struct world *w, struct talk *t, const int32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(commit(w, t->r, t->r->n_emitted, ids + i, 1), MU_COMMIT_OK);
        if (flush(t)) return true;
    }
    return false;
}

static bool feed_text(struct world *w, struct talk *t, const char *text)
{
    int32_t ids[512];
    size_t n = strlen(text);
    for (size_t i = 0; i < n; i++) ids[i] = B(text[i]);
    return feed(w, t, ids, n);
}

/* ---- the commit rule ---- */

static void test_commit_rule(void **state)
{
    struct world *w = *state;
    Muster__V1__GenerateRequest q = MUSTER__V1__GENERATE_REQUEST__INIT;
    q.return_ids = true;
    struct talk t = talk_start(w, &q, 10, true);
    const int32_t abc[] = {B('a'), B('b'), B('c')}, bcd[] = {B('b'), B('c'), B('d')};
    assert_int_equal(commit(w, t.r, 1, abc, 1), MU_COMMIT_GAP);
    assert_int_equal(t.r->n_emitted, 0);
    assert_int_equal(commit(w, t.r, 0, abc, 3), MU_COMMIT_OK);
    assert_int_equal(commit(w, t.r, 0, abc, 3), MU_COMMIT_OLD);
    assert_int_equal(commit(w, t.r, 2, abc + 2, 1), MU_COMMIT_OLD);
    assert_int_equal(commit(w, t.r, 3, NULL, 0), MU_COMMIT_OLD);
    assert_int_equal(commit(w, t.r, 1, bcd, 3), MU_COMMIT_OK); /* one of the three is new */
    assert_int_equal(t.r->n_emitted, 4);
    assert_int_equal(commit(w, t.r, 5, abc, 1), MU_COMMIT_GAP);
    assert_false(mu_request_flush(t.r));
    assert_true(feed_text(w, &t, "efghij")); /* ten */
    const int32_t more[] = {B('z')};
    assert_int_equal(commit(w, t.r, 10, more, 1), MU_COMMIT_OK); /* after the end: ignored */
    assert_int_equal(t.r->n_emitted, 10);
    client_wait(t.client, 5000);
    assert_string_equal(t.client->text, "abcdefghij");
    assert_int_equal(t.client->n_ids, 10);
    for (int i = 0; i < 10; i++) assert_int_equal(t.client->ids[i], B('a' + i));
    assert_int_equal(t.client->finish, MUSTER__V1__FINISH__FINISH_LENGTH);
    assert_string_equal(t.client->request_id, "r7");
    assert_int_equal(t.client->seed, 99);
    assert_int_equal(t.client->completion_tokens, 10);
    assert_int_equal(t.client->prompt_tokens, 3);
    talk_end(&t);
}

/* One message with more ids than are allowed: what is beyond max_tokens does not exist. */
static void test_max_tokens_inside_a_message(void **state)
{
    struct world *w = *state;
    Muster__V1__GenerateRequest q = MUSTER__V1__GENERATE_REQUEST__INIT;
    struct talk t = talk_start(w, &q, 2, true);
    const int32_t abc[] = {B('a'), B('b'), B('c')};
    assert_int_equal(commit(w, t.r, 0, abc, 3), MU_COMMIT_OK);
    assert_true(mu_request_flush(t.r));
    client_wait(t.client, 5000);
    assert_string_equal(t.client->text, "ab");
    assert_int_equal(t.client->n_ids, 0); /* not asked for */
    talk_end(&t);
}

static void test_end_ids(void **state)
{
    struct world *w = *state;
    for (int ignore = 0; ignore < 2; ignore++) {
        Muster__V1__GenerateRequest q = MUSTER__V1__GENERATE_REQUEST__INIT;
        q.return_ids = true;
        q.ignore_end = ignore;
        struct talk t = talk_start(w, &q, 4, true);
        const int32_t ids[] = {B('a'), ID_END, B('b'), B('c')};
        assert_int_equal(commit(w, t.r, 0, ids, 4), MU_COMMIT_OK);
        assert_true(mu_request_flush(t.r));
        client_wait(t.client, 5000);
        assert_string_equal(t.client->text, ignore ? "abc" : "a");
        assert_int_equal(t.client->n_ids, ignore ? 4 : 2); /* the end id is one of the completion */
        assert_int_equal(t.client->ids[1], ID_END);
        assert_int_equal(t.client->finish, ignore ? MUSTER__V1__FINISH__FINISH_LENGTH : MUSTER__V1__FINISH__FINISH_END);
        talk_end(&t);
    }
}

/* ---- stop strings ---- */

static void stops(struct world *w, const char *text, const char *want, bool stopped, size_t n_stop, ...)
{
    char *stop[16];
    va_list ap;
    va_start(ap, n_stop);
    for (size_t i = 0; i < n_stop; i++) stop[i] = va_arg(ap, char *);
    va_end(ap);
    for (int whole = 0; whole < 2; whole++) { /* a flush after every id, or one flush for all */
        Muster__V1__GenerateRequest q = MUSTER__V1__GENERATE_REQUEST__INIT;
        q.stop = stop;
        q.n_stop = n_stop;
        size_t n = strlen(text);
        struct talk t = talk_start(w, &q, n, true);
        if (whole) {
            int32_t ids[512];
            for (size_t i = 0; i < n; i++) ids[i] = B(text[i]);
            assert_int_equal(commit(w, t.r, 0, ids, n), MU_COMMIT_OK);
            assert_true(mu_request_flush(t.r));
        } else {
            assert_true(feed_text(w, &t, text));
        }
        client_wait(t.client, 5000);
        if (strcmp(t.client->text, want)) fail_msg("'%s' gives '%s', not '%s'", text, t.client->text, want);
        assert_int_equal(t.client->finish,
                         stopped ? MUSTER__V1__FINISH__FINISH_STOP : MUSTER__V1__FINISH__FINISH_LENGTH);
        talk_end(&t);
    }
}

static void test_stop_strings(void **state)
{
    struct world *w = *state;
    stops(w, "hello world", "hello", true, 1, " wor");
    stops(w, "STOP here", "", true, 1, "STOP");                      /* at the start */
    stops(w, "aaaaab", "aa", true, 1, "aaab");                       /* overlaps itself */
    stops(w, "ababac!", "ab", true, 1, "abac");                      /* a false start inside the right one */
    stops(w, "say STO", "say STO", false, 1, "STOP");                /* held back, and then it was none */
    stops(w, "say STOoP", "say STOoP", false, 1, "STOP");            /* the same in the middle */
    stops(w, "short", "short", false, 1, "a stop longer than text"); /* longer than all there is */
    stops(w, "one two three", "one ", true, 2, "three", "two");      /* the first in the text, not in the list */
    stops(w, "xxend", "xx", true, 2, "nd", "end");                   /* both end here: the one that begins first */
    stops(w, "a|b", "a", true, 16, "~", "!", "@", "#", "$", "%", "^", "&", "*", "(", ")", "-", "+", "=", "?", "|");
    stops(w, "caf\xc3\xa9!", "caf", true, 1, "\xc3\xa9"); /* a character of two bytes, a byte a token */
}

/* Two stops in one token: the text ends before the first; the ids are all that were computed. */
static void test_stop_inside_a_token(void **state)
{
    struct world *w = *state;
    char *stop[] = {"z", "y"};
    Muster__V1__GenerateRequest q = MUSTER__V1__GENERATE_REQUEST__INIT;
    q.stop = stop;
    q.n_stop = 2;
    q.return_ids = true;
    struct talk t = talk_start(w, &q, 9, true);
    const int32_t ids[] = {B('a'), ID_XYZ, B('b')};
    assert_true(feed(w, &t, ids, 3));
    client_wait(t.client, 5000);
    assert_string_equal(t.client->text, "ax");
    assert_int_equal(t.client->n_ids, 2);
    talk_end(&t);
}

/* What might begin a stop string never reaches the client early, and everything else does at once. */
static void test_nothing_is_told_too_early_or_late(void **state)
{
    struct world *w = *state;
    char *stop[] = {"END"};
    Muster__V1__GenerateRequest q = MUSTER__V1__GENERATE_REQUEST__INIT;
    q.stop = stop;
    q.n_stop = 1;
    struct talk t = talk_start(w, &q, 100, true);
    assert_false(feed_text(w, &t, "abEN"));
    assert_int_equal(t.r->text_sent, 2);
    assert_false(feed_text(w, &t, "E"));
    assert_int_equal(t.r->text_sent, 4);
    assert_false(feed_text(w, &t, "x"));
    assert_int_equal(t.r->text_sent, 6);
    assert_true(feed_text(w, &t, "END"));
    client_wait(t.client, 5000);
    assert_string_equal(t.client->text, "abENEx");
    talk_end(&t);
}

/* ---- characters ---- */

static void test_half_characters(void **state)
{
    struct world *w = *state;
    char *stop[] = {"!"};
    static const struct {
        const char *text, *want;
        bool stop;
    } cases[] = {
        {"a\xe2\x82\xac", "a\xe2\x82\xac", false},       /* whole */
        {"a\xe2\x82", "a\xef\xbf\xbd", false},           /* half of one at the end */
        {"a\xe2\x82!", "a\xef\xbf\xbd", true},           /* broken off by the stop string: a sign of it, then the end */
        {"\xff\xfe", "\xef\xbf\xbd\xef\xbf\xbd", false}, /* never a character */
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        Muster__V1__GenerateRequest q = MUSTER__V1__GENERATE_REQUEST__INIT;
        q.stop = stop;
        q.n_stop = 1;
        struct talk t = talk_start(w, &q, strlen(cases[c].text), true);
        assert_true(feed_text(w, &t, cases[c].text));
        client_wait(t.client, 5000);
        if (strcmp(t.client->text, cases[c].want)) fail_msg("case %zu gives '%s'", c, t.client->text);
        assert_int_equal(t.client->finish,
                         cases[c].stop ? MUSTER__V1__FINISH__FINISH_STOP : MUSTER__V1__FINISH__FINISH_LENGTH);
        talk_end(&t);
    }
}

/* A model may emit the byte 0; nothing after it may get lost. */
static void test_nul_bytes(void **state)
{
    struct world *w = *state;
    char *stop[] = {"stop"};
    Muster__V1__GenerateRequest q = MUSTER__V1__GENERATE_REQUEST__INIT;
    q.stop = stop;
    q.n_stop = 1;
    struct talk t = talk_start(w, &q, 150, true);
    char want[512] = "";
    int32_t ids[150];
    for (int i = 0; i < 150; i++) {
        ids[i] = i % 3 ? B('a') : B(0);
        strcat(want, i % 3 ? "a" : "\xef\xbf\xbd");
    }
    assert_int_equal(commit(w, t.r, 0, ids, 50), MU_COMMIT_OK);
    assert_false(mu_request_flush(t.r));
    assert_true(feed(w, &t, ids + 50, 100));
    client_wait(t.client, 5000);
    assert_string_equal(t.client->text, want);
    talk_end(&t);
}

/* ---- clients ---- */

/* A client that does not read blocks its own call, costs nobody anything, and gets everything in the end. */
static void test_slow_client(void **state)
{
    struct world *w = *state;
    Muster__V1__GenerateRequest q = MUSTER__V1__GENERATE_REQUEST__INIT;
    enum { N = 4000 };
    q.return_ids = true;
    struct talk t = talk_start(w, &q, N, false);
    const int32_t id = ID_LONG;
    bool was_blocked = false, done = false;
    for (size_t i = 0; i < N && !done; i++) {
        assert_int_equal(commit(w, t.r, i, &id, 1), MU_COMMIT_OK);
        done = mu_request_flush(t.r);
        was_blocked |= t.r->blocked;
    }
    size_t sent = t.r->text_sent;
    atomic_store(&t.client->reads, true); /* before any check can fail: its thread waits for this */
    assert_true(was_blocked);
    assert_false(done);
    assert_true(sent < N * LONG_BYTES);
    assert_true(flush(&t));
    client_wait(t.client, 5000);
    assert_int_equal(t.client->n_text, N * LONG_BYTES);
    assert_int_equal(t.client->n_ids, N);
    assert_int_equal(t.client->finish, MUSTER__V1__FINISH__FINISH_LENGTH);
    talk_end(&t);
}

static void test_client_has_gone(void **state)
{
    struct world *w = *state;
    Muster__V1__GenerateRequest q = MUSTER__V1__GENERATE_REQUEST__INIT;
    struct talk t = talk_start(w, &q, 100, true);
    mu_rpc_stream_cancel(t.client->stream);
    WAIT_FOR(mu_rpc_call_cancelled(t.r->call), 5000);
    assert_true(feed_text(w, &t, "a"));
    talk_end(&t);
}

/* ---- log probabilities, choices ---- */

static enum mu_commit commit_scored(struct world *w, struct mu_request *r, uint32_t first, const int32_t *ids, size_t n,
                                    size_t n_logprob, size_t n_top)
{
    Muster__Internal__V1__RequestTokens t = MUSTER__INTERNAL__V1__REQUEST_TOKENS__INIT;
    float logprob[8], top_logprob[300];
    int32_t top_id[300];
    for (size_t i = 0; i < n; i++) logprob[i] = -(float)ids[i];
    for (size_t i = 0; i < n_top; i++) {
        top_id[i] = B('A') + (int32_t)i;
        top_logprob[i] = -1;
    }
    t.first_position = first;
    t.n_id = n;
    t.id = (int32_t *)ids;
    t.n_logprob = n_logprob;
    t.logprob = logprob;
    t.n_top_id = t.n_top_logprob = n_top;
    t.top_id = top_id;
    t.top_logprob = top_logprob;
    return mu_request_commit(r, &t, w->v.tok);
}

/* Only those of ids that are new; a message whose lists do not fit its ids is none. */
static void test_logprobs(void **state)
{
    struct world *w = *state;
    Muster__V1__GenerateRequest q = MUSTER__V1__GENERATE_REQUEST__INIT;
    Muster__V1__Sampling s = MUSTER__V1__SAMPLING__INIT;
    s.logprobs = true;
    s.top_logprobs = 2;
    q.sampling = &s;
    struct talk t = talk_start(w, &q, 6, true);
    const int32_t abc[] = {B('a'), B('b'), B('c')}, bcdef[] = {B('b'), B('c'), B('d'), B('e'), B('f')}, z = B('z');
    assert_int_equal(commit_scored(w, t.r, 0, abc, 3, 2, 6), MU_COMMIT_GAP);
    assert_int_equal(commit_scored(w, t.r, 0, abc, 3, 3, 5), MU_COMMIT_GAP);
    assert_int_equal(commit_scored(w, t.r, 0, abc, 3, 3, 63), MU_COMMIT_GAP);
    assert_int_equal(commit_scored(w, t.r, 0, abc, 3, 3, 6), MU_COMMIT_OK);
    assert_false(flush(&t));
    assert_int_equal(commit_scored(w, t.r, 1, bcdef, 5, 5, 15), MU_COMMIT_GAP); /* three each, it was two */
    assert_int_equal(commit_scored(w, t.r, 1, bcdef, 5, 5, 10), MU_COMMIT_OK);
    assert_int_equal(commit_scored(w, t.r, 1, bcdef, 5, 5, 10), MU_COMMIT_OLD);
    assert_true(t.r->finish == MUSTER__V1__FINISH__FINISH_LENGTH);
    assert_int_equal(commit_scored(w, t.r, 6, &z, 1, 1, 2), MU_COMMIT_OK); /* after the end: ignored */
    assert_true(flush(&t));
    client_wait(t.client, 5000);
    const struct client_choice *c = &t.client->choice[0];
    assert_int_equal(c->n_logprob, 6);
    assert_int_equal(c->n_top, 12);
    assert_int_equal(c->n_ids, 0); /* return_ids was not asked for */
    for (int i = 0; i < 6; i++) assert_true(c->logprob[i] == -(float)B('a' + i));
    assert_string_equal(t.client->text, "abcdef");
    talk_end(&t);
}

/* A long answer, told now at once and now late: nothing is lost or told twice where what is told was forgotten. */
static void test_many_logprobs(void **state)
{
    enum { N = 900 };
    struct world *w = *state;
    Muster__V1__GenerateRequest q = MUSTER__V1__GENERATE_REQUEST__INIT;
    Muster__V1__Sampling s = MUSTER__V1__SAMPLING__INIT;
    s.logprobs = true;
    q.sampling = &s;
    struct talk t = talk_start(w, &q, N, true);
    bool done = false;
    for (uint32_t i = 0; i < N; i++) {
        const int32_t id = B('a') + (int32_t)(i % 26);
        assert_int_equal(commit_scored(w, t.r, i, &id, 1, 1, 3), MU_COMMIT_OK);
        if (i % 250 < 100 || i == N - 1) done = flush(&t);
    }
    assert_true(done);
    client_wait(t.client, 5000);
    const struct client_choice *c = &t.client->choice[0];
    assert_int_equal(c->n_logprob, N);
    assert_int_equal(c->n_top, 3 * N);
    for (int i = 0; i < N; i++) assert_true(c->logprob[i] == -(float)B('a' + i % 26));
    assert_in_range(t.r->logprob_cap, 128, 512);
    talk_end(&t);
}

/* Two choices end at different times; usage and the end come with the later one, whoever that is. */
static void test_two_choices(void **state)
{
    struct world *w = *state;
    Muster__V1__GenerateRequest q = MUSTER__V1__GENERATE_REQUEST__INIT;
    char *stop[] = {"!"};
    q.n = 2;
    q.stop = stop;
    q.n_stop = 1;
    for (int later = 0; later < 2; later++) {
        struct talk t = talk_start(w, &q, 50, true);
        struct mu_request *r[2] = {t.r, mu_request_create(8, t.r->choices, 1, 50, w->v.tok)};
        assert_non_null(r[1]);
        assert_true(r[0]->seed == 99 && r[1]->seed == mu_sampling_choice_seed(99, 1));
        struct talk of[2] = {{t.client, r[0]}, {t.client, r[1]}};
        assert_false(feed_text(w, &of[0], "zero"));
        assert_false(feed_text(w, &of[1], "one"));
        r[!later]->resumed = 2;
        assert_true(feed_text(w, &of[!later], "x!"));
        assert_false(atomic_load(&t.client->done));
        assert_false(feed_text(w, &of[later], "y"));
        mu_request_free(r[!later]);
        assert_true(feed_text(w, &of[later], "z!"));
        client_wait(t.client, 5000);
        assert_string_equal(t.client->choice[later].text, later ? "oneyz" : "zeroyz");
        assert_string_equal(t.client->choice[!later].text, later ? "zerox" : "onex");
        for (int i = 0; i < 2; i++) assert_int_equal(t.client->choice[i].finish, MUSTER__V1__FINISH__FINISH_STOP);
        assert_int_equal(t.client->prompt_tokens, 3);
        assert_int_equal(t.client->completion_tokens, 4 + 3 + 2 + 3);
        assert_int_equal(t.client->resumed, 2);
        mu_request_free(r[later]);
        client_free(t.client);
    }
}

/* A stop string counts only where it begins behind the first min_tokens. */
static void test_min_tokens(void **state)
{
    struct world *w = *state;
    Muster__V1__GenerateRequest q = MUSTER__V1__GENERATE_REQUEST__INIT;
    Muster__V1__Sampling s = MUSTER__V1__SAMPLING__INIT;
    char *stop[] = {"ab"};
    s.min_tokens = 5;
    q.sampling = &s;
    q.stop = stop;
    q.n_stop = 1;
    struct talk t = talk_start(w, &q, 50, true);
    assert_false(feed_text(w, &t, "abab"));
    assert_int_equal(t.r->text_sent, 4); /* nothing is held back for what cannot stop it */
    assert_true(feed_text(w, &t, "bcab"));
    talk_end(&t);
    t = talk_start(w, &q, 50, true);
    assert_false(feed_text(w, &t, "xxxa")); /* the fourth token's, still too early */
    assert_false(feed_text(w, &t, "b"));
    assert_true(feed_text(w, &t, "ab"));
    client_wait(t.client, 5000);
    assert_string_equal(t.client->text, "xxxab");
    talk_end(&t);
}

/* ---- memory ---- */

/* Every allocation fails once: the answer is right, or it says that memory is out; never a wrong text. */
static void test_out_of_memory(void **state)
{
    struct world *w = *state;
    char *stop[] = {"END"};
    int n_failed = 0;
    for (long n = 1; n <= 40; n++) {
        Muster__V1__GenerateRequest q = MUSTER__V1__GENERATE_REQUEST__INIT;
        q.stop = stop;
        q.n_stop = 1;
        struct talk t = talk_start(w, &q, 60, true);
        mu_sleep_ms(5); /* what gRPC does after a call has come is over */
        mu_alloc_fail_at(n);
        enum mu_commit c = MU_COMMIT_OK;
        const char *text = "some text\0with a zero, then END and so on................";
        bool done = false;
        for (int i = 0; i < 60 && !done && c == MU_COMMIT_OK; i++) {
            int32_t id = B(text[i]);
            c = commit(w, t.r, (size_t)i, &id, 1);
            if (c == MU_COMMIT_OK) done = mu_request_flush(t.r);
        }
        mu_alloc_fail_at(0);
        if (c == MU_COMMIT_NOMEM) {
            n_failed++;
            mu_request_fail(t.r, MU_RPC_RESOURCE_EXHAUSTED, "no memory for its text");
        } else {
            assert_int_equal(c, MU_COMMIT_OK);
            for (; !done; mu_sleep_ms(1)) done = mu_request_flush(t.r);
        }
        client_wait(t.client, 5000);
        if (t.client->code == MU_RPC_OK)
            assert_string_equal(t.client->text, "some text\xef\xbf\xbdwith a zero, then ");
        else
            assert_true(t.client->status[0] != 0); /* gRPC's own threads may be the ones that failed */
        talk_end(&t);
    }
    assert_true(n_failed > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_commit_rule),
        cmocka_unit_test(test_max_tokens_inside_a_message),
        cmocka_unit_test(test_end_ids),
        cmocka_unit_test(test_stop_strings),
        cmocka_unit_test(test_stop_inside_a_token),
        cmocka_unit_test(test_nothing_is_told_too_early_or_late),
        cmocka_unit_test(test_half_characters),
        cmocka_unit_test(test_nul_bytes),
        cmocka_unit_test(test_slow_client),
        cmocka_unit_test(test_client_has_gone),
        cmocka_unit_test(test_logprobs),
        cmocka_unit_test(test_many_logprobs),
        cmocka_unit_test(test_two_choices),
        cmocka_unit_test(test_min_tokens),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
