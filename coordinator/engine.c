/* The Engine service: the leader's stream. Callbacks post; the hub decides. */
#include "coordinator/hub.h"

static void on_message(struct mu_rpc_call *call, const ProtobufCMessage *msg, void *ctx)
{
    struct mu_hub *h = ctx;
    const Muster__Internal__V1__EngineUp *up = (const Muster__Internal__V1__EngineUp *)msg;
    bool attach = up->message_case == MUSTER__INTERNAL__V1__ENGINE_UP__MESSAGE_ATTACH;
    struct mu_event ev = {.kind = attach ? MU_EV_ATTACH : MU_EV_ENGINE_UP,
                          .msg = mu_rpc_call_take_message(call),
                          .call = mu_rpc_call_retain(call)};
    enum mu_status st = mu_hub_post(h, &ev);
    if (!st) return;
    mu_rpc_message_free(ev.msg);
    mu_rpc_call_release(ev.call);
    if (st == MU_ECANCELLED) return; /* the hub has ended, and the worker ends the gang */
    /* Tokens must not be lost silently: the stream ends, and with it the epoch. */
    mu_rpc_call_finish(call, MU_RPC_RESOURCE_EXHAUSTED, "the coordinator cannot keep up");
}

static void on_done(struct mu_rpc_call *call, bool cancelled, void *ctx)
{
    (void)cancelled;
    struct mu_event ev = {.kind = MU_EV_ENGINE_DONE, .call = mu_rpc_call_retain(call)};
    if (mu_hub_post(ctx, &ev)) mu_rpc_call_release(ev.call);
}

static void on_half_close(struct mu_rpc_call *call, void *ctx)
{
    (void)ctx;
    mu_rpc_call_finish(call, MU_RPC_OK, "%s", "");
}

enum { MAX_ENGINE_MESSAGE = 16 << 20 };

size_t mu_engine_methods(struct mu_hub *h, struct mu_rpc_method *methods_out, size_t max)
{
    if (max < 1) return 0;
    methods_out[0] = (struct mu_rpc_method){.path = "/muster.internal.v1.Engine/Attach",
                                            .request = &muster__internal__v1__engine_up__descriptor,
                                            .max_request_bytes = MAX_ENGINE_MESSAGE,
                                            .client_streams = true,
                                            .on_message = on_message,
                                            .on_half_close = on_half_close,
                                            .on_done = on_done,
                                            .ctx = h};
    return 1;
}
