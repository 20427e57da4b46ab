#include "rpc_test_service.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "muster/v1/internal.pb-c.h"
#include "muster/v1/muster.pb-c.h"
#include "proto/descriptors.h"

static void on_done(struct mu_rpc_call *call, bool cancelled, void *ctx)
{
    (void)call;
    struct test_service *t = ctx;
    if (cancelled) {
        atomic_store(&t->cancelled_at_ns, mu_now_ns());
        atomic_fetch_add(&t->n_cancelled, 1);
    }
    atomic_fetch_add(&t->n_done, 1);
}

static void on_tokenize(struct mu_rpc_call *call, const ProtobufCMessage *msg, void *ctx)
{
    const Muster__V1__TokenizeRequest *q = (const Muster__V1__TokenizeRequest *)msg;
    atomic_fetch_add(&((struct test_service *)ctx)->n_started, 1);
    if (strcmp(q->text, "hang") == 0) return;
    if (strcmp(q->text, "twice") == 0) mu_rpc_call_finish(call, MU_RPC_NOT_FOUND, "first of two ends");
    Muster__V1__TokenizeReply r = MUSTER__V1__TOKENIZE_REPLY__INIT;
    size_t n = strlen(q->text);
    int32_t *ids = mu_calloc(n, sizeof *ids);
    if (!ids) {
        mu_rpc_call_finish(call, MU_RPC_RESOURCE_EXHAUSTED, "out of memory");
        return;
    }
    for (size_t i = 0; i < n; i++) ids[i] = (unsigned char)q->text[i];
    r.ids = ids;
    r.n_ids = n;
    mu_rpc_call_reply(call, &r.base);
    mu_free(ids);
}

static void on_detokenize(struct mu_rpc_call *call, const ProtobufCMessage *msg, void *ctx)
{
    const Muster__V1__DetokenizeRequest *q = (const Muster__V1__DetokenizeRequest *)msg;
    atomic_fetch_add(&((struct test_service *)ctx)->n_started, 1);
    char text[256];
    size_t n = 0;
    for (size_t i = 0; i < q->n_ids && n + 1 < sizeof text; i++) text[n++] = (char)q->ids[i];
    text[n] = '\0';
    Muster__V1__DetokenizeReply r = MUSTER__V1__DETOKENIZE_REPLY__INIT;
    r.text = text;
    mu_rpc_call_reply(call, &r.base);
}

static void flood(struct test_service *t, struct mu_rpc_call *call)
{
    enum { BYTES = 64 * 1024 };
    char *text = mu_malloc(BYTES + 1);
    memset(text, 'x', BYTES);
    text[BYTES] = '\0';
    Muster__V1__GenerateReply r = MUSTER__V1__GENERATE_REPLY__INIT;
    r.text = text;
    int n = 0;
    for (; n < 100000; n++) {
        r.seed = (uint64_t)n;
        enum mu_status st = mu_rpc_call_send(call, &r.base);
        long queued = (long)mu_rpc_call_queued(call);
        if (queued > atomic_load(&t->max_queued)) atomic_store(&t->max_queued, queued);
        if (st != MU_OK) break;
    }
    mu_free(text);
    atomic_store(&t->n_flooded, n);
    mu_rpc_call_finish(call, MU_RPC_OK, "%s", "");
}

static void on_generate(struct mu_rpc_call *call, const ProtobufCMessage *msg, void *ctx)
{
    struct test_service *t = ctx;
    const Muster__V1__GenerateRequest *q = (const Muster__V1__GenerateRequest *)msg;
    const char *kind = q->prompt_case == MUSTER__V1__GENERATE_REQUEST__PROMPT_TEXT ? q->text : "";
    atomic_fetch_add(&t->n_started, 1);
    if (strcmp(kind, "flood") == 0) {
        flood(t, call);
        return;
    }
    Muster__V1__GenerateReply r = MUSTER__V1__GENERATE_REPLY__INIT;
    r.text = (char *)"tok";
    uint32_t n = strcmp(kind, "count") == 0 ? q->max_tokens : 1;
    for (uint32_t i = 0; i < n; i++) {
        r.seed = i;
        if (mu_rpc_call_send(call, &r.base) != MU_OK) break;
    }
    if (strcmp(kind, "keep") == 0) atomic_store(&t->kept, mu_rpc_call_retain(call));
    if (strcmp(kind, "count") == 0) mu_rpc_call_finish(call, MU_RPC_OK, "%s", "");
    if (strcmp(kind, "abort") == 0) mu_rpc_call_finish(call, MU_RPC_ABORTED, "as asked, after %u", n);
}

static void on_attach(struct mu_rpc_call *call, const ProtobufCMessage *msg, void *ctx)
{
    struct test_service *t = ctx;
    const Muster__Internal__V1__EngineUp *up = (const Muster__Internal__V1__EngineUp *)msg;
    if (!mu_rpc_call_user(call)) atomic_fetch_add(&t->n_started, 1);
    mu_rpc_call_set_user(call, t);
    Muster__Internal__V1__EngineDown down = MUSTER__INTERNAL__V1__ENGINE_DOWN__INIT;
    down.epoch = up->epoch;
    mu_rpc_call_send(call, &down.base);
}

static void on_attach_end(struct mu_rpc_call *call, void *ctx)
{
    (void)ctx;
    mu_rpc_call_finish(call, MU_RPC_OK, "%s", "");
}

enum mu_status test_service_start(struct test_service *t, const char *address, size_t limit_bytes,
                                  struct mu_rpc_server **server_out, struct mu_err *err)
{
    char copy[400], *addresses[3] = {copy, NULL, NULL};
    snprintf(copy, sizeof copy, "%s", address);
    char *space = strchr(copy, ' ');
    if (space) {
        *space = '\0';
        addresses[1] = space + 1;
    }
    const struct mu_rpc_method methods[] = {
        {.path = "/muster.v1.Muster/Tokenize",
         .request = &muster__v1__tokenize_request__descriptor,
         .max_request_bytes = limit_bytes,
         .on_message = on_tokenize,
         .on_done = on_done,
         .ctx = t},
        {.path = "/muster.v1.Muster/Detokenize",
         .request = &muster__v1__detokenize_request__descriptor,
         .on_message = on_detokenize,
         .on_done = on_done,
         .ctx = t},
        {.path = "/muster.v1.Muster/Generate",
         .request = &muster__v1__generate_request__descriptor,
         .on_message = on_generate,
         .on_done = on_done,
         .ctx = t},
        {.path = "/muster.internal.v1.Engine/Attach",
         .request = &muster__internal__v1__engine_up__descriptor,
         .client_streams = true,
         .on_message = on_attach,
         .on_half_close = on_attach_end,
         .on_done = on_done,
         .ctx = t},
    };
    const struct mu_rpc_server_options opt = {.addresses = (const char *const *)addresses,
                                              .methods = methods,
                                              .n_method = sizeof methods / sizeof *methods,
                                              .descriptor_set = mu_descriptor_set,
                                              .descriptor_set_bytes = mu_descriptor_set_bytes,
                                              .max_unread_bytes = TEST_UNREAD_BYTES};
    return mu_rpc_server_start(&opt, server_out, err);
}
