/* The gRPC wrapper against itself, over real sockets in one process: calls, their ends, hostile messages, flow. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "muster/v1/internal.pb-c.h"
#include "muster/v1/muster.pb-c.h"
#include "rpc_test_client.h"

/* ---- calls ---- */

static void test_codes(void **state)
{
    (void)state;
    assert_string_equal(mu_rpc_code_name(MU_RPC_OK), "OK");
    assert_string_equal(mu_rpc_code_name(MU_RPC_UNAUTHENTICATED), "UNAUTHENTICATED");
    assert_string_equal(mu_rpc_code_name((enum mu_rpc_code)99), "unknown code");
    assert_int_equal(mu_rpc_code_of(MU_EINVAL), MU_RPC_INVALID_ARGUMENT);
    assert_int_equal(mu_status_of_rpc(MU_RPC_UNAVAILABLE), MU_EPEER);
    /* What is lost must survive the way over the wire and back. */
    static const enum mu_status same[] = {MU_OK,     MU_ETIMEOUT, MU_ECANCELLED,   MU_ENOENT, MU_EBUSY,
                                          MU_ELIMIT, MU_EINVAL,   MU_EUNSUPPORTED, MU_EPEER,  MU_ESTALE};
    for (size_t i = 0; i < sizeof same / sizeof *same; i++)
        assert_int_equal(mu_status_of_rpc(mu_rpc_code_of(same[i])), same[i]);
}

static void test_unary(void **state)
{
    (void)state;
    struct fixture *f = fixture_start(0);
    struct mu_err err = MU_ERR_INIT;
    size_t n;
    if (tokenize(f->channel, "hello", 5000, &n, &err) != MU_OK) fail_msg("%s", err.text);
    assert_int_equal(n, 5);

    enum { ROUNDS = 500 };
    int64_t begin = mu_now_ns();
    for (int i = 0; i < ROUNDS; i++) assert_int_equal(tokenize(f->channel, "hello", 5000, &n, &err), MU_OK);
    printf("unary round trip: %.0f us\n", (double)(mu_now_ns() - begin) / ROUNDS / 1e3);

    assert_int_equal(tokenize(f->channel, "twice", 5000, &n, &err), MU_ENOENT);
    assert_non_null(strstr(err.text, f->address));
    assert_non_null(strstr(err.text, "Tokenize: NOT_FOUND: first of two ends"));
    /* The largest text that fits, and an empty one. */
    assert_int_equal(tokenize(f->channel, "", 5000, &n, &err), MU_OK);
    char *large = malloc(1 << 20);
    memset(large, 'a', (1 << 20) - 1);
    large[(1 << 20) - 1] = '\0';
    assert_int_equal(tokenize(f->channel, large, 5000, &n, &err), MU_OK);
    free(large);
    fixture_stop(f);
}

static void test_unknown_method(void **state)
{
    (void)state;
    struct fixture *f = fixture_start(0);
    struct mu_err err = MU_ERR_INIT;
    Muster__V1__TokenizeRequest q = MUSTER__V1__TOKENIZE_REQUEST__INIT;
    ProtobufCMessage *reply;
    assert_int_equal(mu_rpc_unary(f->channel, "/muster.v1.Muster/Nothing", &q.base,
                                  &muster__v1__tokenize_reply__descriptor, in_ms(5000), &reply, &err),
                     MU_EUNSUPPORTED);
    assert_non_null(strstr(err.text, "no method /muster.v1.Muster/Nothing here"));
    assert_int_equal(mu_rpc_unary(f->channel, "no slash", &q.base, &muster__v1__tokenize_reply__descriptor, in_ms(5000),
                                  &reply, &err),
                     MU_EINVAL);
    fixture_stop(f);
}

static void test_streams(void **state)
{
    (void)state;
    enum { STREAMS = 64, MESSAGES = 100 };
    struct fixture *f = fixture_start(0);
    struct hearing *h = calloc(STREAMS, sizeof *h);
    struct mu_rpc_stream *s[STREAMS];
    int64_t begin = mu_now_ns();
    for (int i = 0; i < STREAMS; i++) s[i] = generate(f->channel, "count", MESSAGES, MU_FOREVER, &h[i]);
    for (int i = 0; i < STREAMS; i++) {
        WAIT_FOR(atomic_load(&h[i].n_done), 20000);
        assert_int_equal(atomic_load(&h[i].n_message), MESSAGES);
        assert_int_equal(atomic_load(&h[i].wrong), 0);
        assert_int_equal(atomic_load(&h[i].code), MU_RPC_OK);
        mu_rpc_stream_release(s[i]);
    }
    printf("%d streams of %d messages: %.1f ms\n", STREAMS, MESSAGES, (double)(mu_now_ns() - begin) / 1e6);
    WAIT_FOR(atomic_load(&f->service.n_done) == STREAMS, 2000);
    assert_int_equal(atomic_load(&f->service.n_cancelled), 0);
    free(h);
    fixture_stop(f);
}

static void test_stream_status(void **state)
{
    (void)state;
    struct fixture *f = fixture_start(0);
    struct hearing h = {0};
    struct mu_rpc_stream *s = generate(f->channel, "abort", 0, MU_FOREVER, &h);
    WAIT_FOR(atomic_load(&h.n_done), 5000);
    assert_int_equal(atomic_load(&h.code), MU_RPC_ABORTED);
    assert_int_equal(atomic_load(&h.n_message), 1);
    assert_string_equal(h.text, "as asked, after 1");
    Muster__V1__GenerateRequest q = MUSTER__V1__GENERATE_REQUEST__INIT;
    assert_int_equal(mu_rpc_stream_send(s, &q.base), MU_ECANCELLED);
    mu_rpc_stream_cancel(s); /* harmless now */
    mu_rpc_stream_release(s);
    fixture_stop(f);
}

static void test_bidi(void **state)
{
    (void)state;
    enum { ROUNDS = 200 };
    struct fixture *f = fixture_start(0);
    struct hearing h = {0};
    struct mu_rpc_stream *s =
        open_stream(f->channel, ATTACH, &muster__internal__v1__engine_down__descriptor, 0, MU_FOREVER, &h);
    Muster__Internal__V1__EngineUp up = MUSTER__INTERNAL__V1__ENGINE_UP__INIT;
    for (int i = 0; i < ROUNDS; i++) {
        up.epoch = (uint64_t)i;
        assert_int_equal(mu_rpc_stream_send(s, &up.base), MU_OK);
        if (i < 5) WAIT_FOR(atomic_load(&h.n_message) == i + 1, 5000); /* answered while it is open */
    }
    WAIT_FOR(atomic_load(&h.n_message) == ROUNDS, 5000);
    assert_int_equal(atomic_load(&h.n_done), 0);
    mu_rpc_stream_half_close(s);
    WAIT_FOR(atomic_load(&h.n_done), 5000);
    assert_int_equal(atomic_load(&h.code), MU_RPC_OK);
    assert_int_equal(atomic_load(&h.wrong), 0);
    mu_rpc_stream_release(s);
    /* A stream that ends before its first message. */
    struct hearing empty = {0};
    s = open_stream(f->channel, ATTACH, &muster__internal__v1__engine_down__descriptor, 0, MU_FOREVER, &empty);
    mu_rpc_stream_half_close(s);
    WAIT_FOR(atomic_load(&empty.n_done), 5000);
    assert_int_equal(atomic_load(&empty.code), MU_RPC_INVALID_ARGUMENT);
    mu_rpc_stream_release(s);
    fixture_stop(f);
}

/* ---- ends ---- */

static void test_cancel(void **state)
{
    (void)state;
    struct fixture *f = fixture_start(0);
    struct hearing h = {0};
    struct mu_rpc_stream *s = generate(f->channel, "hang", 0, MU_FOREVER, &h);
    WAIT_FOR(atomic_load(&h.n_message) == 1, 5000);
    int64_t begin = mu_now_ns();
    mu_rpc_stream_cancel(s);
    WAIT_FOR(atomic_load(&h.n_done), 1000);
    assert_int_equal(atomic_load(&h.code), MU_RPC_CANCELLED);
    WAIT_FOR(atomic_load(&f->service.n_cancelled) == 1, 1000);
    printf("cancel seen by the server after %.2f ms\n",
           (double)(atomic_load(&f->service.cancelled_at_ns) - begin) / 1e6);
    mu_rpc_stream_release(s);
    fixture_stop(f);
}

static void test_deadlines(void **state)
{
    (void)state;
    struct fixture *f = fixture_start(0);
    struct mu_err err = MU_ERR_INIT;
    assert_int_equal(tokenize(f->channel, "warm", 5000, NULL, &err), MU_OK);
    int64_t begin = mu_now_ns();
    assert_int_equal(tokenize(f->channel, "hang", 300, NULL, &err), MU_ETIMEOUT);
    int64_t took = mu_now_ns() - begin;
    assert_true(took >= 290 * MU_MS && took < 1500 * MU_MS);
    assert_non_null(strstr(err.text, f->address));
    assert_non_null(strstr(err.text, "no answer before the deadline"));
    WAIT_FOR(atomic_load(&f->service.n_cancelled) == 1, 1000); /* the server's side of it */

    struct hearing h = {0};
    struct mu_rpc_stream *s = generate(f->channel, "hang", 0, in_ms(300), &h);
    WAIT_FOR(atomic_load(&h.n_done), 1500);
    assert_int_equal(atomic_load(&h.code), MU_RPC_DEADLINE_EXCEEDED);
    WAIT_FOR(atomic_load(&f->service.n_cancelled) == 2, 1000);
    mu_rpc_stream_release(s);
    fixture_stop(f);
}

/* ---- hostile messages ---- */

static void test_limits(void **state)
{
    (void)state;
    struct fixture *f = fixture_start(1000);
    struct mu_err err = MU_ERR_INIT;
    char *text = malloc(6 << 20);
    memset(text, 'a', 6 << 20);
    text[1001] = '\0'; /* over the method's own limit */
    assert_int_equal(tokenize(f->channel, text, 5000, NULL, &err), MU_ELIMIT);
    assert_non_null(strstr(err.text, "the limit is 1000"));
    text[900] = '\0';
    assert_int_equal(tokenize(f->channel, text, 5000, NULL, &err), MU_OK);
    text[900] = 'a';
    text[(5 << 20)] = '\0'; /* over gRPC's: the handler never hears of it */
    text[1001] = 'a';
    int before = atomic_load(&f->service.n_started);
    assert_int_equal(tokenize(f->channel, text, 5000, NULL, &err), MU_ELIMIT);
    assert_non_null(strstr(err.text, "RESOURCE_EXHAUSTED"));
    assert_int_equal(atomic_load(&f->service.n_started), before);
    /* Request 4 MiB, but the answer has two bytes for each of its "é": refused by the server, whatever the client takes. */
    struct fixture *two = fixture_start(0);
    for (size_t i = 0; i < 3 << 20; i += 2) memcpy(text + i, "\xc3\xa9", 2);
    text[3 << 20] = '\0';
    assert_int_equal(tokenize(two->channel, text, 5000, NULL, &err), MU_ELIMIT);
    if (!strstr(err.text, "ask for less at a time")) fail_msg("%s", err.text);
    text[3 << 19] = '\0';
    assert_int_equal(tokenize(two->channel, text, 5000, NULL, &err), MU_OK);
    fixture_stop(two);
    free(text);
    /* A client has its limit too: "tok" and a seed are 5 to 7 bytes. */
    struct hearing h = {0};
    struct mu_rpc_stream *s =
        open_stream(f->channel, GENERATE, &muster__v1__generate_reply__descriptor, 5, MU_FOREVER, &h);
    Muster__V1__GenerateRequest q = MUSTER__V1__GENERATE_REQUEST__INIT;
    q.prompt_case = MUSTER__V1__GENERATE_REQUEST__PROMPT_TEXT;
    q.text = (char *)"count";
    q.max_tokens = 100;
    assert_int_equal(mu_rpc_stream_send(s, &q.base), MU_OK);
    WAIT_FOR(atomic_load(&h.n_done), 5000);
    assert_int_equal(atomic_load(&h.n_message), 1); /* seed 0 is absent on the wire */
    assert_int_equal(atomic_load(&h.code), MU_RPC_RESOURCE_EXHAUSTED);
    mu_rpc_stream_release(s);
    fixture_stop(f);
}

/* Field 2 of TokenizeRequest is its text; EngineAttach has bytes under that number, RequestTokens a number. */
static enum mu_status send_raw(struct fixture *f, const char *data, size_t len, struct mu_err *err)
{
    Muster__Internal__V1__EngineAttach q = MUSTER__INTERNAL__V1__ENGINE_ATTACH__INIT;
    q.secret.data = (uint8_t *)data;
    q.secret.len = len;
    ProtobufCMessage *reply = NULL;
    enum mu_status st =
        mu_rpc_unary(f->channel, TOKENIZE, &q.base, &muster__v1__tokenize_reply__descriptor, in_ms(5000), &reply, err);
    mu_rpc_message_free(reply);
    return st;
}

static void test_bad_text(void **state)
{
    (void)state;
    struct fixture *f = fixture_start(0);
    struct mu_err err = MU_ERR_INIT;
    assert_int_equal(send_raw(f, "gr\xc3\xbc\xc3\x9f", 6, &err), MU_OK);
    assert_int_equal(send_raw(f, "a\0b", 3, &err), MU_EINVAL);
    assert_non_null(strstr(err.text, "INVALID_ARGUMENT"));
    assert_non_null(strstr(err.text, "muster.v1.TokenizeRequest: text is not valid UTF-8"));
    assert_int_equal(send_raw(f, "a\xff", 2, &err), MU_EINVAL);
    assert_int_equal(send_raw(f, "\xc3", 1, &err), MU_EINVAL);
    Muster__Internal__V1__RequestTokens wrong = MUSTER__INTERNAL__V1__REQUEST_TOKENS__INIT;
    wrong.first_position = 7;
    ProtobufCMessage *reply;
    assert_int_equal(mu_rpc_unary(f->channel, TOKENIZE, &wrong.base, &muster__v1__tokenize_reply__descriptor,
                                  in_ms(5000), &reply, &err),
                     MU_EINVAL);
    assert_non_null(strstr(err.text, "malformed"));
    assert_int_equal(atomic_load(&f->service.n_started), 1);
    /* Nothing bad leaves us either. */
    assert_int_equal(tokenize(f->channel, "\xff", 5000, NULL, &err), MU_EINVAL);
    assert_int_equal(atomic_load(&f->service.n_started), 1);
    Muster__V1__DetokenizeRequest q = MUSTER__V1__DETOKENIZE_REQUEST__INIT;
    int32_t ids[] = {0x61, 0xFF};
    q.ids = ids;
    q.n_ids = 2;
    assert_int_equal(mu_rpc_unary(f->channel, "/muster.v1.Muster/Detokenize", &q.base,
                                  &muster__v1__detokenize_reply__descriptor, in_ms(5000), &reply, &err),
                     MU_EPROTO);
    assert_non_null(strstr(err.text, "not valid UTF-8"));
    fixture_stop(f);
}

static void test_unpack_budget(void **state)
{
    (void)state;
    enum { EMPTY = 200000 };
    struct fixture *f = fixture_start(0);
    Muster__Internal__V1__RequestTokens one = MUSTER__INTERNAL__V1__REQUEST_TOKENS__INIT;
    Muster__Internal__V1__EngineTokens many = MUSTER__INTERNAL__V1__ENGINE_TOKENS__INIT;
    Muster__Internal__V1__EngineUp up = MUSTER__INTERNAL__V1__ENGINE_UP__INIT;
    many.request = calloc(EMPTY, sizeof *many.request);
    for (int i = 0; i < EMPTY; i++) many.request[i] = &one;
    up.message_case = MUSTER__INTERNAL__V1__ENGINE_UP__MESSAGE_TOKENS;
    up.tokens = &many;
    static const struct {
        size_t n;
        enum mu_rpc_code code;
    } cases[] = {{64, MU_RPC_OK}, {EMPTY, MU_RPC_RESOURCE_EXHAUSTED}};
    for (int i = 0; i < 2; i++) {
        struct hearing h = {0};
        struct mu_rpc_stream *s =
            open_stream(f->channel, ATTACH, &muster__internal__v1__engine_down__descriptor, 0, MU_FOREVER, &h);
        many.n_request = cases[i].n;
        assert_int_equal(mu_rpc_stream_send(s, &up.base), MU_OK);
        mu_rpc_stream_half_close(s);
        WAIT_FOR(atomic_load(&h.n_done), 5000);
        assert_int_equal(atomic_load(&h.code), cases[i].code);
        mu_rpc_stream_release(s);
    }
    free(many.request);
    fixture_stop(f);
}

/* ---- flow ---- */

static void test_back_pressure(void **state)
{
    (void)state;
    struct fixture *f = fixture_start(0);
    sem_t gate;
    sem_init(&gate, 0, 0);
    struct hearing h = {.gate = &gate};
    struct mu_rpc_stream *s = generate(f->channel, "flood", 0, MU_FOREVER, &h);
    WAIT_FOR(atomic_load(&f->service.n_flooded) > 0, 10000);
    int accepted = atomic_load(&f->service.n_flooded);
    assert_true(accepted >= 60 && accepted < 5000); /* 4 MiB of 64 KiB, and what the sockets hold */
    assert_true(atomic_load(&f->service.max_queued) <= 4 << 20);
    assert_true(atomic_load(&h.n_done) == 0);
    for (int i = 0; i < accepted; i++) sem_post(&gate);
    WAIT_FOR(atomic_load(&h.n_done), 10000);
    assert_int_equal(atomic_load(&h.n_message), accepted); /* what was accepted arrives, in order */
    assert_int_equal(atomic_load(&h.wrong), 0);
    assert_int_equal(atomic_load(&h.code), MU_RPC_OK);
    mu_rpc_stream_release(s);
    sem_destroy(&gate);
    fixture_stop(f);
}

/* Clients that read nothing keep what is queued for them: large answers wait for room, small ones always go. */
static void test_unread_answers(void **state)
{
    (void)state;
    enum { FLOODS = 16, LARGE = 1 << 20 }; /* 4 MiB each, and what sockets and windows then take from them */
    struct fixture *f = fixture_start(0);
    struct mu_rpc_channel *other;
    struct mu_err err = MU_ERR_INIT;
    sem_t gate;
    sem_init(&gate, 0, 0);
    struct hearing h[FLOODS] = {0};
    struct mu_rpc_stream *s[FLOODS];
    char *large = malloc(LARGE + 1);
    memset(large, 'a', LARGE);
    large[LARGE] = '\0';
    assert_int_equal(mu_rpc_channel_open(f->address, &other, &err), MU_OK);
    assert_int_equal(tokenize(other, large, 5000, NULL, &err), MU_OK);
    assert_int_equal(tokenize(f->channel, "warm", 5000, NULL, &err),
                     MU_OK); /* streams start at once, and are held up */
    for (int i = 0; i < FLOODS; i++) {
        h[i].gate = &gate;
        s[i] = generate(f->channel, "flood", 0, MU_FOREVER, &h[i]);
    }
    enum mu_status st = MU_OK; /* once: a moment later the sockets may have taken more */
    for (int64_t until = in_ms(10000); st != MU_ELIMIT && mu_now_ns() < until; mu_sleep_ms(1))
        st = tokenize(other, large, 5000, NULL, &err);
    assert_int_equal(st, MU_ELIMIT);
    if (!strstr(err.text, "yet to read")) fail_msg("%s", err.text);
    assert_int_equal(tokenize(other, "small", 5000, NULL, &err), MU_OK);
    for (int i = 0; i < 10000; i++) sem_post(&gate);
    for (int i = 0; i < FLOODS; i++) {
        WAIT_FOR(atomic_load(&h[i].n_done), 10000);
        assert_int_equal(atomic_load(&h[i].code), MU_RPC_OK);
        mu_rpc_stream_release(s[i]);
    }
    WAIT_FOR(tokenize(other, large, 5000, NULL, &err) == MU_OK, 5000);
    mu_rpc_channel_close(other);
    free(large);
    sem_destroy(&gate);
    fixture_stop(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_codes),          cmocka_unit_test(test_unary),
        cmocka_unit_test(test_unknown_method), cmocka_unit_test(test_streams),
        cmocka_unit_test(test_stream_status),  cmocka_unit_test(test_bidi),
        cmocka_unit_test(test_cancel),         cmocka_unit_test(test_deadlines),
        cmocka_unit_test(test_limits),         cmocka_unit_test(test_bad_text),
        cmocka_unit_test(test_unpack_budget),  cmocka_unit_test(test_back_pressure),
        cmocka_unit_test(test_unread_answers),
    };
    mu_log_init("test_rpc");
    return cmocka_run_group_tests(tests, NULL, NULL); /* gRPC starts and ends with each test */
}
