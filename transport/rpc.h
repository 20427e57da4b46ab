/* gRPC over gRPC core's C API and protobuf-c: one thin wrapper for every service and client of Muster.
 *
 * A server is a table of methods. Handlers run on the server's own poll thread and must not block; a call may be
 * answered later and from any thread: the call object is reference counted. Messages are protobuf-c messages; requests
 * are unpacked with a memory budget, checked for valid UTF-8 without NUL in every string field, and freed by the
 * wrapper when the handler returns, unless it takes them. What we send is checked too. Messages are never compressed.
 *
 * Flow: sending never blocks. mu_rpc_call_send queues at most max_queued_bytes per call (default 4 MiB, each message
 * counted with 128 bytes of bookkeeping) and returns MU_EAGAIN beyond it; one SEND_MESSAGE is in flight at a time,
 * queued messages go out in order. Exactly one finish ends a call, later ones do nothing; what was queued before goes
 * out first.
 *
 * Life signs: a server pings its clients after 5 s of silence and cancels their calls 3 s later; a client with an open
 * call pings after 2 s and gives up after 2 more. A closed connection is noticed at once.
 *
 * Clients: one mu_rpc_channel per peer with its own poll thread. Unary calls block with a deadline; streams deliver
 * messages to callbacks on the poll thread. Channels connect when they are first used and again, by themselves, after a
 * connection was lost (at once, then after 0.1 s, growing to 1 s).
 *
 * gRPC must not be used before fork(): start child processes with posix_spawn. */
#ifndef MU_TRANSPORT_RPC_H
#define MU_TRANSPORT_RPC_H

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* gRPC's status codes. */
enum mu_rpc_code {
    MU_RPC_OK = 0,
    MU_RPC_CANCELLED = 1,
    MU_RPC_UNKNOWN = 2,
    MU_RPC_INVALID_ARGUMENT = 3,
    MU_RPC_DEADLINE_EXCEEDED = 4,
    MU_RPC_NOT_FOUND = 5,
    MU_RPC_ALREADY_EXISTS = 6,
    MU_RPC_PERMISSION_DENIED = 7,
    MU_RPC_RESOURCE_EXHAUSTED = 8,
    MU_RPC_FAILED_PRECONDITION = 9,
    MU_RPC_ABORTED = 10,
    MU_RPC_OUT_OF_RANGE = 11,
    MU_RPC_UNIMPLEMENTED = 12,
    MU_RPC_INTERNAL = 13,
    MU_RPC_UNAVAILABLE = 14,
    MU_RPC_DATA_LOSS = 15,
    MU_RPC_UNAUTHENTICATED = 16
};
const char *mu_rpc_code_name(enum mu_rpc_code code);
/* The closest pair of the two vocabularies. */
enum mu_rpc_code mu_rpc_code_of(enum mu_status st);
enum mu_status mu_status_of_rpc(enum mu_rpc_code code);

/* grpc_init once per process, with the log redirected to ours, the lock-order checker of Debian's abseil off and the
 * limit of open files raised. Reference counted; servers and channels hold a reference of their own. */
void mu_rpc_init(void);
void mu_rpc_shutdown(void);
/* Why a server of this process accepts no connection any more (gRPC never listens again after accept() has failed, as it
 * does without descriptors), or NULL. Only another process can help. */
const char *mu_rpc_deaf(void);

/* ---- server ---- */

struct mu_rpc_call;
struct mu_rpc_server;

struct mu_rpc_method {
    const char *path;                          /* "/muster.v1.Muster/Generate" */
    const ProtobufCMessageDescriptor *request; /* type of every incoming message */
    size_t max_request_bytes;                  /* 0: 4 MiB; longer ones end the call with RESOURCE_EXHAUSTED */
    bool client_streams;                       /* more than one incoming message (bidi) */
    /* One incoming message, borrowed. For a call that is not client-streaming: exactly once. `ctx` is ctx below. */
    void (*on_message)(struct mu_rpc_call *call, const ProtobufCMessage *msg, void *ctx);
    /* Client-streaming only; may be NULL. Not called before the first message: such a call ends by itself. */
    void (*on_half_close)(struct mu_rpc_call *call, void *ctx);
    /* The call is over: cancelled, deadline, disconnect (cancelled = true) or everything was sent (false). Always
     * exactly once per call that saw on_message, the last callback. May be NULL. */
    void (*on_done)(struct mu_rpc_call *call, bool cancelled, void *ctx);
    void *ctx;
    size_t max_queued_bytes; /* that a call of this method may queue for sending; 0: 4 MiB */
};

struct mu_rpc_server_options {
    const char *const *addresses;        /* NULL-terminated: "127.0.0.1:7400", "unix:/path", port 0 = choose */
    const struct mu_rpc_method *methods; /* copied, except for what its pointers point to */
    size_t n_method;
    /* Standard services: health (Check, Watch) and reflection (v1 and v1alpha) over this serialized FileDescriptorSet,
     * borrowed; NULL: none. Reflection lists those of its services that methods serve. */
    const void *descriptor_set;
    size_t descriptor_set_bytes;
    /* What all calls together may have queued before unary answers of over 64 KiB are refused with RESOURCE_EXHAUSTED:
     * there is no limit on calls whose clients read nothing. 0: 256 MiB. */
    size_t max_unread_bytes;
    /* A client that is silent for so long, not even answering gRPC's pings, is gone and its calls are over: its machine
     * is lost, or it was stopped. 0: 8 s. */
    int silent_ms;
};

/* MU_EBUSY: an address is in use (ports are never shared; a unix socket is replaced only if nobody answers on it). */
enum mu_status mu_rpc_server_start(const struct mu_rpc_server_options *opt, struct mu_rpc_server **server_out,
                                   struct mu_err *err);
/* The port that address i got. */
int mu_rpc_server_port(const struct mu_rpc_server *s, size_t i);
/* Health of a service name ("" = the whole server, which does not serve until this says so); watchers are told. */
void mu_rpc_server_set_health(struct mu_rpc_server *s, const char *service, bool serving);
/* New calls are refused at once; calls still open after grace_ms are cancelled; returns when all callbacks have
 * returned. Frees s; calls that somebody still holds stay valid, and over. Not from a callback. NULL is fine. */
void mu_rpc_server_stop(struct mu_rpc_server *s, int grace_ms);

struct mu_rpc_call *mu_rpc_call_retain(struct mu_rpc_call *call);
void mu_rpc_call_release(struct mu_rpc_call *call);
/* In on_message, once: its message is the caller's from here on, and freed with mu_rpc_message_free. */
ProtobufCMessage *mu_rpc_call_take_message(struct mu_rpc_call *call);
void mu_rpc_call_set_user(struct mu_rpc_call *call, void *user); /* the handler's own pointer */
void *mu_rpc_call_user(const struct mu_rpc_call *call);
bool mu_rpc_call_cancelled(struct mu_rpc_call *call);
/* Any thread. MU_OK, MU_EAGAIN (queue full), MU_ECANCELLED (the call is over or finished); MU_EINVAL (a text is not
 * UTF-8), MU_ELIMIT (2 GiB), MU_ENOMEM. msg is packed before it returns. */
enum mu_status mu_rpc_call_send(struct mu_rpc_call *call, const ProtobufCMessage *msg);
size_t mu_rpc_call_queued(struct mu_rpc_call *call); /* bytes not yet handed to the transport */
void mu_rpc_call_finish(struct mu_rpc_call *call, enum mu_rpc_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Longest unary answer: gRPC clients take no longer message unless told otherwise. */
enum { MU_RPC_REPLY_BYTES = 4 << 20 };
/* send + finish OK, for unary answers; a message that cannot be sent ends the call with an error instead, a longer one
 * with RESOURCE_EXHAUSTED before memory is taken for it. See max_unread_bytes. */
void mu_rpc_call_reply(struct mu_rpc_call *call, const ProtobufCMessage *msg);

/* ---- client ---- */

struct mu_rpc_channel;
struct mu_rpc_stream;

/* Does not connect yet. address: "HOST:PORT", "[IPv6]:PORT" or "unix:/path". */
enum mu_status mu_rpc_channel_open(const char *address, struct mu_rpc_channel **channel_out, struct mu_err *err);
const char *mu_rpc_channel_address(const struct mu_rpc_channel *c); /* as it was opened; borrowed */
/* Cancels what is open, waits until every on_done has returned, joins the poll thread. Not from a callback of it.
 * NULL is fine. */
void mu_rpc_channel_close(struct mu_rpc_channel *c);

/* Blocks until the reply, an error or the deadline. Connecting is tried until shortly before the deadline (100 ms, or a
 * tenth of a short one); the error, MU_EPEER, then says why there is no connection. Every error names the address.
 * *resp_out is freed with mu_rpc_message_free. */
enum mu_status mu_rpc_unary(struct mu_rpc_channel *c, const char *path, const ProtobufCMessage *req,
                            const ProtobufCMessageDescriptor *resp_type, int64_t deadline_ns,
                            ProtobufCMessage **resp_out, struct mu_err *err);
void mu_rpc_message_free(ProtobufCMessage *msg);
/* "no WHO answers at ADDRESS: start one with 'COMMAND --listen ADDRESS' (…)", the words that err has at the end. */
void mu_rpc_nobody(const char *who, const char *command, const char *address, struct mu_err *err);

struct mu_rpc_stream_callbacks { /* all on the channel's poll thread */
    /* Borrowed. None after mu_rpc_stream_cancel, except one that is under way in another thread. */
    void (*on_message)(struct mu_rpc_stream *s, const ProtobufCMessage *msg, void *ctx);
    /* The last callback, always exactly once; after it the stream must not be used except for mu_rpc_stream_release
     * (and those that say so). */
    void (*on_done)(struct mu_rpc_stream *s, enum mu_rpc_code code, const char *text, void *ctx);
    void *ctx;
};

/* Server-streaming (send one message, then half-close) or bidi. deadline MU_FOREVER: none. The caller holds one
 * reference. Waits for the connection to come up until connect_deadline_ns (then on_done with UNAVAILABLE and the
 * reason); what is sent meanwhile is queued. max_response_bytes 0: 4 MiB. *stream_out is set before the first callback
 * can come, which may be before this returns. */
enum mu_status mu_rpc_stream_open(struct mu_rpc_channel *c, const char *path,
                                  const ProtobufCMessageDescriptor *resp_type, size_t max_response_bytes,
                                  int64_t deadline_ns, int64_t connect_deadline_ns,
                                  const struct mu_rpc_stream_callbacks *cb, struct mu_rpc_stream **stream_out,
                                  struct mu_err *err);
/* Any thread, also after the end. MU_OK, MU_EAGAIN (4 MiB are queued), MU_ECANCELLED; as mu_rpc_call_send. */
enum mu_status mu_rpc_stream_send(struct mu_rpc_stream *s, const ProtobufCMessage *msg);
void mu_rpc_stream_half_close(struct mu_rpc_stream *s);
void mu_rpc_stream_cancel(struct mu_rpc_stream *s); /* on_done follows; harmless after the end */
void mu_rpc_stream_release(struct mu_rpc_stream *s);

/* Unpacks with a memory budget of budget_bytes (0: 16 × len + 64 KiB) and checks every string; NULL on any fault. Free
 * with mu_rpc_message_free. */
ProtobufCMessage *mu_rpc_unpack(const ProtobufCMessageDescriptor *type, const void *data, size_t len,
                                size_t budget_bytes);

#endif
