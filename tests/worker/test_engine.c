/* What goes up the Engine stream: vectors beside tokens, in messages of bounded size, whole and in order however slowly the
 * coordinator reads. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "muster/v1/internal.pb-c.h"
#include "transport/rpc.h"
#include "worker/engine.h"

enum { D_MODEL = 50000, N_REQUEST = 120, MESSAGE_BYTES = (1 << 20) + D_MODEL * 4 + 65536 };

/* Request i of the test: every third one generates and has ids, the others are texts of i + 1 tokens. */
struct coordinator {
    struct mu_rpc_server *server;
    struct mu_engine *engine;
    char address[64];
    uint8_t secret[32];
    _Atomic int n_message, n_vector, n_id, n_wrong, n_logprob, n_error, pause_ms;
    _Atomic size_t largest;
    uint64_t last_vector;
    bool forms; /* submit_forms, when the leader attaches */
};

static float value_of(uint64_t request, size_t i)
{
    return (float)request * 3.0f + (float)(i % 1000);
}

/* Requests of each form: what the leader gets of them is test_constraints'. */
static void submit_forms(struct mu_rpc_call *call, uint64_t epoch)
{
    for (uint64_t i = 0; i < 5; i++) {
        Muster__Internal__V1__EngineSubmit s = MUSTER__INTERNAL__V1__ENGINE_SUBMIT__INIT;
        Muster__Internal__V1__EngineDown down = MUSTER__INTERNAL__V1__ENGINE_DOWN__INIT;
        int32_t prompt[] = {1, 2, 3}, end[] = {7};
        s.request = i;
        s.prompt = prompt;
        s.n_prompt = i % 4; /* texts lie behind ids of any number */
        s.end_ids = end;
        s.n_end_ids = i % 2;
        if (i == 1) s.constraint_case = MUSTER__INTERNAL__V1__ENGINE_SUBMIT__CONSTRAINT_JSON, s.json = true;
        if (i == 2)
            s.constraint_case = MUSTER__INTERNAL__V1__ENGINE_SUBMIT__CONSTRAINT_JSON_SCHEMA, s.json_schema = "{}";
        if (i == 3) s.constraint_case = MUSTER__INTERNAL__V1__ENGINE_SUBMIT__CONSTRAINT_REGEX, s.regex = "a|b";
        if (i == 4) s.constraint_case = MUSTER__INTERNAL__V1__ENGINE_SUBMIT__CONSTRAINT_GRAMMAR, s.grammar = "root ::=";
        down.epoch = epoch;
        down.message_case = MUSTER__INTERNAL__V1__ENGINE_DOWN__MESSAGE_SUBMIT;
        down.submit = &s;
        mu_rpc_call_send(call, &down.base);
    }
}

static void on_message(struct mu_rpc_call *call, const ProtobufCMessage *msg, void *ctx)
{
    struct coordinator *c = ctx;
    const Muster__Internal__V1__EngineUp *up = (const Muster__Internal__V1__EngineUp *)msg;
    if (up->message_case == MUSTER__INTERNAL__V1__ENGINE_UP__MESSAGE_ATTACH && c->forms) submit_forms(call, up->epoch);
    if (up->message_case != MUSTER__INTERNAL__V1__ENGINE_UP__MESSAGE_TOKENS) return;
    size_t bytes = protobuf_c_message_get_packed_size(msg);
    if (bytes > atomic_load(&c->largest)) atomic_store(&c->largest, bytes);
    for (size_t i = 0; i < up->tokens->n_request; i++) {
        const Muster__Internal__V1__RequestTokens *t = up->tokens->request[i];
        atomic_fetch_add(&c->n_error, t->error_code != 0);
        if (t->n_logprob) {
            size_t n_top = t->n_top_id / t->n_id;
            c->n_wrong += t->n_logprob != t->n_id || t->n_top_logprob != t->n_top_id ||
                          t->first_position != (uint32_t)atomic_load(&c->n_logprob);
            for (size_t k = 0; k < t->n_logprob; k++) c->n_wrong += t->logprob[k] != -(float)t->id[k];
            for (size_t k = 0; k < t->n_top_id; k++)
                c->n_wrong += t->top_id[k] != t->id[k / n_top] + (int32_t)(k % n_top) ||
                              t->top_logprob[k] != -0.5f * (float)t->top_id[k];
            atomic_fetch_add(&c->n_logprob, (int)t->n_logprob);
            continue;
        }
        if (!t->n_vector) {
            atomic_fetch_add(&c->n_id, (int)t->n_id);
            for (size_t k = 0; k < t->n_id; k++)
                c->n_wrong += t->id[k] != (int32_t)(t->request + t->first_position + k);
            continue;
        }
        bool right = t->finished && t->n_vector == D_MODEL && t->request > c->last_vector;
        for (size_t k = 0; right && k < t->n_vector; k++)
            right = t->vector[k] == value_of(t->request, k) / (float)(t->request + 1);
        c->n_wrong += !right;
        c->last_vector = t->request;
        atomic_fetch_add(&c->n_vector, 1);
    }
    atomic_fetch_add(&c->n_message, 1);
    mu_sleep_ms(atomic_load(&c->pause_ms));
}

static void coordinator_start(struct coordinator *c, bool forms)
{
    struct mu_err err = MU_ERR_INIT;
    *c = (struct coordinator){.forms = forms};
    snprintf(c->address, sizeof c->address, "unix:/tmp/mu-engine-%d", (int)getpid());
    const char *addresses[] = {c->address, NULL};
    struct mu_rpc_method m = {.path = "/muster.internal.v1.Engine/Attach",
                              .request = &muster__internal__v1__engine_up__descriptor,
                              .client_streams = true,
                              .on_message = on_message,
                              .ctx = c};
    struct mu_rpc_server_options o = {.addresses = addresses, .methods = &m, .n_method = 1};
    mu_rpc_init();
    if (mu_rpc_server_start(&o, &c->server, &err)) fail_msg("%s", err.text);
    const struct mu_engine_options eo = {
        .address = c->address, .gang = "test", .epoch = 5, .secret = c->secret, .max_sequences = 4};
    static struct mu_engine_options kept;
    kept = eo;
    if (mu_engine_open(&kept, &c->engine, &err)) fail_msg("%s", err.text);
}

static void coordinator_stop(struct coordinator *c)
{
    mu_engine_close(c->engine);
    mu_rpc_server_stop(c->server, 0);
    unlink(c->address + 5);
    mu_rpc_shutdown();
}

static void put(struct coordinator *c, uint64_t i, const float *state)
{
    struct mu_err err = MU_ERR_INIT;
    enum mu_status st;
    struct mu_sched_event e = {.request = i, .id = (int32_t)i, .finished = i % 3 != 0};
    if (i % 3) {
        e.id = -1;
        e.embed = (struct mu_embed){.pooling = MU_POOL_MEAN, .raw = true};
        e.n_tok = (uint32_t)i + 1;
        st = mu_engine_put_vector(c->engine, &e, state, D_MODEL, &err);
    } else {
        st = mu_engine_put(c->engine, &e, NULL, NULL, &err);
    }
    if (st != MU_OK) fail_msg("%s", err.text);
}

static void flush_all(struct coordinator *c)
{
    struct mu_engine_command *command;
    struct mu_err err = MU_ERR_INIT;
    int64_t until = mu_now_ns() + 30 * MU_SEC;
    while (mu_engine_flush(c->engine, &err) == MU_EAGAIN && mu_now_ns() < until) mu_sleep_ms(1);
    assert_int_equal(mu_engine_flush(c->engine, &err), MU_OK);
    assert_int_equal(mu_engine_next(c->engine, &command, &err), MU_OK);
}

#define WAIT_FOR(condition)                                            \
    do {                                                               \
        int64_t until_ = mu_now_ns() + 30 * MU_SEC;                    \
        while (!(condition) && mu_now_ns() < until_) mu_sleep_ms(1);   \
        if (!(condition)) fail_msg("not within 30 s: %s", #condition); \
    } while (0)

/* 16 MB of vectors to a reader who takes his time: the queue fills, parts of the outbox wait, everything arrives. */
static void test_slow_reader(void **state)
{
    (void)state;
    struct coordinator c;
    struct mu_err err = MU_ERR_INIT;
    float *x = malloc(D_MODEL * sizeof *x);
    int n_blocked = 0;
    coordinator_start(&c, false);
    atomic_store(&c.pause_ms, 200);
    for (uint64_t i = 1; i <= N_REQUEST; i++) {
        for (size_t k = 0; k < D_MODEL; k++) x[k] = value_of(i, k);
        put(&c, i, x);
    }
    for (int i = 0; i < 20; i++) n_blocked += mu_engine_flush(c.engine, &err) == MU_EAGAIN;
    atomic_store(&c.pause_ms, 1);
    flush_all(&c);
    WAIT_FOR(atomic_load(&c.n_vector) == N_REQUEST * 2 / 3 && atomic_load(&c.n_id) == N_REQUEST / 3);
    assert_int_equal(atomic_load(&c.n_wrong), 0);
    assert_in_range(atomic_load(&c.largest), D_MODEL * 4, MESSAGE_BYTES);
    assert_true(n_blocked > 0);
    coordinator_stop(&c);
    free(x);
}

/* Log probabilities of a request that the coordinator does not take for long: parts of bounded size, in order. */
static void test_logprobs(void **state)
{
    (void)state;
    enum { N = 30000, N_TOP = 20 };
    struct coordinator c;
    struct mu_err err = MU_ERR_INIT;
    coordinator_start(&c, false);
    for (int i = 0; i < N; i++) {
        struct mu_logprobs l = {.chosen = -(float)i, .n_top = N_TOP};
        for (int k = 0; k < N_TOP; k++) l.top[k] = (struct mu_logprob){i + k, -0.5f * (float)(i + k)};
        const struct mu_sched_event e = {
            .request = 7, .position = (uint32_t)i, .id = i, .finished = i == N - 1, .logprobs = true};
        if (mu_engine_put(c.engine, &e, &l, NULL, &err)) fail_msg("%s", err.text);
    }
    flush_all(&c);
    WAIT_FOR(atomic_load(&c.n_logprob) == N);
    assert_int_equal(atomic_load(&c.n_wrong), 0);
    assert_in_range(atomic_load(&c.n_message), 4, 10);
    assert_in_range(atomic_load(&c.largest), 1 << 19, 2 << 20);
    coordinator_stop(&c);
}

/* Not finite: sent as that error. Then every allocation fails once: an error and never half a vector. */
static void test_failures(void **state)
{
    (void)state;
    struct coordinator c;
    struct mu_err err = MU_ERR_INIT;
    float *x = calloc(D_MODEL, sizeof *x);
    coordinator_start(&c, false);
    struct mu_sched_event e = {.request = 1, .id = -1, .finished = true, .n_tok = 2};
    e.embed = (struct mu_embed){.pooling = MU_POOL_MEAN, .raw = true};
    x[D_MODEL - 1] = 1e38f * 1e38f;
    assert_int_equal(mu_engine_put_vector(c.engine, &e, x, D_MODEL, &err), MU_OK);
    flush_all(&c);
    WAIT_FOR(atomic_load(&c.n_message) == 1);
    assert_int_equal(atomic_load(&c.n_vector), 0);
    assert_int_equal(atomic_load(&c.n_error), 1);
    char text[400]; /* cut within a letter, and a byte of none: sent all the same */
    for (size_t k = 0; k < sizeof text - 1; k++) text[k] = "\xC3\xA9"[k % 2];
    text[sizeof text - 1] = '\0';
    text[10] = '\xFF';
    e.error = MU_EINVAL;
    assert_int_equal(mu_engine_put(c.engine, &e, NULL, text, &err), MU_OK);
    flush_all(&c);
    WAIT_FOR(atomic_load(&c.n_error) == 2);
    e.error = MU_OK;
    for (size_t k = 0; k < D_MODEL; k++) x[k] = value_of(2, k);
    e.request = 2;
    e.n_tok = 3;
    for (long n = 1; n < 10; n++) {
        mu_alloc_fail_at(n);
        enum mu_status st = mu_engine_put_vector(c.engine, &e, x, D_MODEL, &err);
        bool all = mu_alloc_fail_at(0) < n;
        assert_int_equal(st, all ? MU_OK : MU_ENOMEM);
        if (all) break;
    }
    for (long n = 1; n < 20; n++) { /* of log probabilities, too */
        const struct mu_logprobs l = {.n_top = 2};
        e.request = 100 + (uint64_t)n;
        e.id = 5;
        mu_alloc_fail_at(n);
        enum mu_status st = mu_engine_put(c.engine, &e, &l, NULL, &err);
        bool all = mu_alloc_fail_at(0) < n;
        assert_int_equal(st, all ? MU_OK : MU_ENOMEM);
        if (all) break;
    }
    coordinator_stop(&c);
    free(x);
}

static void test_constraints(void **state)
{
    (void)state;
    static const int kinds[] = {MU_CONSTRAINT_NONE, MU_CONSTRAINT_JSON, MU_CONSTRAINT_JSON_SCHEMA, MU_CONSTRAINT_REGEX,
                                MU_CONSTRAINT_GBNF};
    static const char *const texts[] = {"", "", "{}", "a|b", "root ::="};
    struct coordinator c;
    struct mu_err err = MU_ERR_INIT;
    coordinator_start(&c, true);
    for (uint64_t i = 0; i < 5; i++) {
        struct mu_engine_command *m = NULL;
        WAIT_FOR(mu_engine_waiting(c.engine));
        assert_int_equal(mu_engine_next(c.engine, &m, &err), MU_OK);
        assert_non_null(m);
        assert_int_equal(m->kind, MU_ENGINE_SUBMIT);
        assert_int_equal(m->request.id, i);
        assert_int_equal(m->request.n_prompt, i % 4);
        assert_int_equal(m->request.n_end, i % 2);
        if (i % 2) assert_int_equal(m->request.end_ids[0], 7);
        assert_int_equal(m->constraint.kind, kinds[i]);
        assert_int_equal(m->constraint.len, strlen(texts[i]));
        assert_string_equal(m->constraint.text, texts[i]);
        mu_free(m);
    }
    coordinator_stop(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_slow_reader), cmocka_unit_test(test_logprobs),
                                       cmocka_unit_test(test_failures), cmocka_unit_test(test_constraints)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
