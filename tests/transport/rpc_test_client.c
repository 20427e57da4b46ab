#include "rpc_test_client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "muster/v1/internal.pb-c.h"
#include "muster/v1/muster.pb-c.h"

int64_t in_ms(int ms)
{
    return mu_now_ns() + ms * MU_MS;
}

struct fixture *fixture_start(size_t limit_bytes)
{
    struct fixture *f = calloc(1, sizeof *f);
    struct mu_err err = MU_ERR_INIT;
    if (test_service_start(&f->service, "127.0.0.1:0", limit_bytes, &f->server, &err) != MU_OK)
        fail_msg("%s", err.text);
    snprintf(f->address, sizeof f->address, "127.0.0.1:%d", mu_rpc_server_port(f->server, 0));
    assert_int_equal(mu_rpc_channel_open(f->address, &f->channel, &err), MU_OK);
    return f;
}

void fixture_stop(struct fixture *f)
{
    mu_rpc_channel_close(f->channel);
    mu_rpc_server_stop(f->server, 1000);
    assert_int_equal(atomic_load(&f->service.n_started), atomic_load(&f->service.n_done));
    free(f);
}

enum mu_status tokenize(struct mu_rpc_channel *c, const char *text, int ms, size_t *n_out, struct mu_err *err)
{
    Muster__V1__TokenizeRequest q = MUSTER__V1__TOKENIZE_REQUEST__INIT;
    q.text = (char *)text;
    ProtobufCMessage *reply = NULL;
    enum mu_status st =
        mu_rpc_unary(c, TOKENIZE, &q.base, &muster__v1__tokenize_reply__descriptor, in_ms(ms), &reply, err);
    if (st != MU_OK) return st;
    const Muster__V1__TokenizeReply *r = (const Muster__V1__TokenizeReply *)reply;
    assert_int_equal(r->n_ids, strlen(text));
    for (size_t i = 0; i < r->n_ids; i++) assert_int_equal(r->ids[i], (unsigned char)text[i]);
    if (n_out) *n_out = r->n_ids;
    mu_rpc_message_free(reply);
    return MU_OK;
}

void hear_message(struct mu_rpc_stream *s, const ProtobufCMessage *msg, void *ctx)
{
    (void)s;
    struct hearing *h = ctx;
    int n = atomic_fetch_add(&h->n_message, 1);
    if (h->gate) sem_wait(h->gate);
    if (msg->descriptor == &muster__v1__generate_reply__descriptor)
        if (((const Muster__V1__GenerateReply *)msg)->seed != (uint64_t)n) atomic_store(&h->wrong, 1);
    if (msg->descriptor == &muster__internal__v1__engine_down__descriptor)
        if (((const Muster__Internal__V1__EngineDown *)msg)->epoch != (uint64_t)n) atomic_store(&h->wrong, 1);
    if (atomic_load(&h->n_done)) atomic_store(&h->wrong, 1);
    if (h->call_back) atomic_store(&h->call_back_status, (int)tokenize(h->call_back, "x", 1000, NULL, NULL));
}

void hear_done(struct mu_rpc_stream *s, enum mu_rpc_code code, const char *text, void *ctx)
{
    (void)s;
    struct hearing *h = ctx;
    snprintf(h->text, sizeof h->text, "%s", text);
    atomic_store(&h->code, (int)code);
    atomic_fetch_add(&h->n_done, 1);
}

struct mu_rpc_stream *open_stream(struct mu_rpc_channel *c, const char *path, const ProtobufCMessageDescriptor *type,
                                  size_t max_bytes, int64_t deadline_ns, struct hearing *h)
{
    struct mu_rpc_stream_callbacks cb = {hear_message, hear_done, h};
    struct mu_rpc_stream *s;
    struct mu_err err = MU_ERR_INIT;
    if (mu_rpc_stream_open(c, path, type, max_bytes, deadline_ns, in_ms(5000), &cb, &s, &err) != MU_OK)
        fail_msg("%s", err.text);
    return s;
}

struct mu_rpc_stream *generate(struct mu_rpc_channel *c, const char *kind, uint32_t n, int64_t deadline_ns,
                               struct hearing *h)
{
    struct mu_rpc_stream *s = open_stream(c, GENERATE, &muster__v1__generate_reply__descriptor, 0, deadline_ns, h);
    Muster__V1__GenerateRequest q = MUSTER__V1__GENERATE_REQUEST__INIT;
    q.prompt_case = MUSTER__V1__GENERATE_REQUEST__PROMPT_TEXT;
    q.text = (char *)kind;
    q.max_tokens = n;
    assert_int_equal(mu_rpc_stream_send(s, &q.base), MU_OK);
    mu_rpc_stream_half_close(s);
    return s;
}
