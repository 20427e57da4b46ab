/* The server half of the gRPC wrapper.
 *
 *   new call ──► RECV_CLOSE_ON_SERVER (first and always: completes when the call is over, for whatever reason)
 *           └──► RECV_MESSAGE ─► on_message ─► (client-streaming: RECV_MESSAGE …)
 *   any thread: send, finish ─► outbox ─► one batch at a time: [INITIAL_METADATA] [MESSAGE] [STATUS]
 *   RECV_CLOSE completes ─► on_done ─► when no batch is left: gRPC's call is let go; ours lives while it is referenced
 *
 * Threads: one polls the completion queue, and every callback comes from it: callbacks never overlap. A call's lock
 * guards its sending side and is never held across a callback; gRPC's start_batch under it does not call back.
 *
 * Rejected: several poll threads (callbacks of a call would overlap, and with a queue for each there was nothing to
 * win); gRPC's registered methods (one pending request per method instead of one pool, for nothing that we measured).
 *
 * Shutdown order: watchers of health told → shutdown_and_notify → grace → cancel_all_calls → its tag → all calls let
 * go → queue shut down → thread joined → queue, server, gRPC. */
#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/fault.h"
#include "base/log.h"
#include "transport/rpc_internal.h"

enum {
    PENDING_CALLS = 16, /* calls that may arrive before we have asked for them */
    MAX_ADDRESSES = 16,
    INLINE_SLICE_MS = 20, /* at a queue without a thread, between looks whether it has ended */
    DEFAULT_UNREAD_BYTES = 256 << 20,
    ALWAYS_BYTES = 64 * 1024, /* of an answer that needs no room: the server's status, say */
    STUCK_MS = 10000,         /* between complaints about a handler that does not return … */
    STUCK_TURNS = 3           /* … and so many, before the server is left alone */
};

struct mu_rpc_server {
    grpc_server *core;
    struct mu_rpc_services *services; /* NULL: none */
    struct mu_rpc_method *method;     /* [n_method], the user's and the services' */
    size_t n_method;
    grpc_completion_queue *cq;
    pthread_t thread;
    bool running;
    int n_pending;        /* the poll thread only, after the start; likewise the next two */
    int n_call;           /* that gRPC has given us and that were not let go */
    bool core_shut;       /* gRPC's server has no connections any more; events of their calls may still come */
    atomic_size_t unread; /* of all outboxes */
    size_t max_unread;
    int *port; /* [n_port] */
    size_t n_port;
    struct mu_rpc_tag shutdown_tag;
    pthread_mutex_t lock; /* guards is_shut */
    pthread_cond_t changed;
    bool is_shut;
};

struct mu_rpc_call {
    atomic_int refs; /* the gRPC call's one, and the handlers' */
    pthread_mutex_t lock;
    struct mu_rpc_server *server;       /* only until on_done has returned */
    const struct mu_rpc_method *method; /* likewise; NULL: unknown method */

    grpc_call *wire; /* NULL after the end */
    grpc_call_details details;
    grpc_metadata_array headers;
    void *user;

    grpc_byte_buffer *received;
    ProtobufCMessage *message; /* in on_message: what it was called with; NULL: taken */
    int closed_by_cancel;      /* gRPC writes it before the close tag */
    bool seen;                 /* a callback was made: on_done is owed */
    struct mu_rpc_tag new_tag, close_tag, receive_tag, send_tag;

    /* Under lock: */
    int n_batch;            /* in flight */
    bool closed, cancelled; /* the call is over */
    bool sending;           /* one batch of the sending side is in flight … */
    bool sending_message;   /* … with the outbox's head in it */
    bool headers_sent, finishing, status_sent;
    enum mu_rpc_code code;
    char *text; /* of the status; may be NULL */
    struct mu_rpc_outbox outbox;
};

/* ---- the life of a call object ---- */

static void on_new_call(void *owner, bool ok);
static void on_close(void *owner, bool ok);
static void on_receive(void *owner, bool ok);
static void on_sent(void *owner, bool ok);

static struct mu_rpc_call *call_create(struct mu_rpc_server *s)
{
    struct mu_rpc_call *c = mu_calloc(1, sizeof *c);
    if (!c) return NULL;
    atomic_init(&c->refs, 1);
    pthread_mutex_init(&c->lock, NULL);
    c->server = s;
    grpc_call_details_init(&c->details);
    grpc_metadata_array_init(&c->headers);
    c->new_tag = (struct mu_rpc_tag){.fn = on_new_call, .owner = c};
    c->close_tag = (struct mu_rpc_tag){.fn = on_close, .owner = c};
    c->receive_tag = (struct mu_rpc_tag){.fn = on_receive, .owner = c};
    c->send_tag = (struct mu_rpc_tag){.fn = on_sent, .owner = c};
    c->outbox.max_bytes = MU_RPC_DEFAULT_QUEUED_BYTES;
    c->outbox.total = &s->unread;
    return c;
}

struct mu_rpc_call *mu_rpc_call_retain(struct mu_rpc_call *c)
{
    atomic_fetch_add_explicit(&c->refs, 1, memory_order_relaxed);
    return c;
}

void mu_rpc_call_release(struct mu_rpc_call *c)
{
    if (atomic_fetch_sub_explicit(&c->refs, 1, memory_order_acq_rel) != 1) return;
    pthread_mutex_destroy(&c->lock);
    mu_free(c->text);
    mu_free(c);
}

/* gRPC's server is shut with its last connection, while ends of that one's calls may wait in the queue; who hears of
 * them may begin a batch (on_half_close that finishes), and gRPC aborts where a batch begins on a queue that was ended. */
static void shut_if_over(struct mu_rpc_server *s)
{
    if (!s->core_shut || s->n_call) return;
    pthread_mutex_lock(&s->lock);
    s->is_shut = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

/* The gRPC side ends here, so that a handler that keeps a call does not keep the server from stopping. */
static void call_let_go(struct mu_rpc_call *c)
{
    struct mu_rpc_server *s = c->server;
    bool was_call = c->wire != NULL;
    mu_rpc_outbox_clear(&c->outbox);
    grpc_metadata_array_destroy(&c->headers);
    grpc_call_details_destroy(&c->details);
    if (c->received) grpc_byte_buffer_destroy(c->received);
    c->received = NULL;
    if (was_call) grpc_call_unref(c->wire);
    c->wire = NULL;
    mu_rpc_call_release(c);
    if (!was_call) return;
    s->n_call--;
    shut_if_over(s);
}

static bool slice_is(grpc_slice s, const char *text)
{
    size_t len = strlen(text);
    return GRPC_SLICE_LENGTH(s) == len && memcmp(GRPC_SLICE_START_PTR(s), text, len) == 0;
}

static const struct mu_rpc_method *find_method(const struct mu_rpc_server *s, grpc_slice path)
{
    for (size_t i = 0; i < s->n_method; i++)
        if (slice_is(path, s->method[i].path)) return &s->method[i];
    return NULL;
}

ProtobufCMessage *mu_rpc_call_take_message(struct mu_rpc_call *c)
{
    ProtobufCMessage *msg = c->message;
    c->message = NULL;
    return msg;
}

void mu_rpc_call_set_user(struct mu_rpc_call *c, void *user)
{
    c->user = user;
}
void *mu_rpc_call_user(const struct mu_rpc_call *c)
{
    return c->user;
}

bool mu_rpc_call_cancelled(struct mu_rpc_call *c)
{
    pthread_mutex_lock(&c->lock);
    bool cancelled = c->cancelled;
    pthread_mutex_unlock(&c->lock);
    return cancelled;
}

/* ---- receiving ---- */

static void request_calls(struct mu_rpc_server *s)
{
    while (s->n_pending < PENDING_CALLS) {
        struct mu_rpc_call *c = call_create(s);
        if (!c) {
            mu_error("grpc", "out of memory for incoming calls: %d of %d slots wait", s->n_pending, PENDING_CALLS);
            return;
        }
        if (grpc_server_request_call(s->core, &c->wire, &c->details, &c->headers, s->cq, s->cq,
                                     mu_rpc_arm(&c->new_tag)) != GRPC_CALL_OK) {
            call_let_go(c);
            return;
        }
        s->n_pending++;
    }
}

/* Starts a batch of the receiving side. The call is alive here: its own thread, before the close tag. */
static bool start_receiving(struct mu_rpc_call *c, const grpc_op *op, struct mu_rpc_tag *tag)
{
    pthread_mutex_lock(&c->lock);
    bool ok = !c->closed && grpc_call_start_batch(c->wire, op, 1, mu_rpc_arm(tag), NULL) == GRPC_CALL_OK;
    if (ok) c->n_batch++;
    pthread_mutex_unlock(&c->lock);
    return ok;
}

static void receive_next(struct mu_rpc_call *c)
{
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &c->received};
    start_receiving(c, &op, &c->receive_tag);
}

static void on_new_call(void *owner, bool ok)
{
    struct mu_rpc_call *c = owner;
    struct mu_rpc_server *s = c->server;
    s->n_pending--;
    if (!ok) { /* the server is stopping */
        call_let_go(c);
        return;
    }
    s->n_call++;
    request_calls(s);
    c->method = find_method(s, c->details.method);
    if (c->method && c->method->max_queued_bytes) c->outbox.max_bytes = c->method->max_queued_bytes;
    grpc_op op = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER, .data.recv_close_on_server.cancelled = &c->closed_by_cancel};
    if (!start_receiving(c, &op, &c->close_tag)) {
        call_let_go(c);
        return;
    }
    if (c->method)
        receive_next(c);
    else
        mu_rpc_call_finish(c, MU_RPC_UNIMPLEMENTED, "no method %.*s here", (int)GRPC_SLICE_LENGTH(c->details.method),
                           (const char *)GRPC_SLICE_START_PTR(c->details.method));
}

/* One batch less. True: it was the last one of a call that is over, and the caller lets go of it. */
static bool batch_done(struct mu_rpc_call *c, bool *closed_out)
{
    pthread_mutex_lock(&c->lock);
    c->n_batch--;
    *closed_out = c->closed;
    bool last = c->closed && c->n_batch == 0;
    pthread_mutex_unlock(&c->lock);
    return last;
}

static void deliver(struct mu_rpc_call *c, grpc_byte_buffer *buffer)
{
    const struct mu_rpc_method *m = c->method;
    struct mu_err err = MU_ERR_INIT;
    ProtobufCMessage *msg;
    size_t max_bytes = m->max_request_bytes ? m->max_request_bytes : MU_RPC_DEFAULT_MESSAGE_BYTES;
    enum mu_status st = mu_rpc_unpack_buffer(m->request, buffer, max_bytes, &msg, &err);
    if (st != MU_OK) {
        mu_rpc_call_finish(c, mu_rpc_code_of(st), "%s", err.text);
        return;
    }
    c->seen = true;
    c->message = msg;
    m->on_message(c, msg, m->ctx);
    mu_rpc_message_free(c->message);
    c->message = NULL;
    if (m->client_streams) receive_next(c);
}

static void on_receive(void *owner, bool ok)
{
    struct mu_rpc_call *c = owner;
    grpc_byte_buffer *buffer = c->received;
    bool closed;
    c->received = NULL;
    if (batch_done(c, &closed)) {
        if (buffer) grpc_byte_buffer_destroy(buffer);
        call_let_go(c);
        return;
    }
    if (closed || !ok) {
        /* Not ok: larger than gRPC's limit, or the connection is lost. gRPC ends the call with the right status. */
    } else if (buffer) {
        deliver(c, buffer);
    } else if (c->method->client_streams) {
        if (c->seen && c->method->on_half_close) c->method->on_half_close(c, c->method->ctx);
        if (!c->seen) mu_rpc_call_finish(c, MU_RPC_INVALID_ARGUMENT, "the stream ended before its first message");
    } else {
        mu_rpc_call_finish(c, MU_RPC_INVALID_ARGUMENT, "the call came without a request message");
    }
    if (buffer) grpc_byte_buffer_destroy(buffer);
}

static void on_close(void *owner, bool ok)
{
    (void)ok;
    struct mu_rpc_call *c = owner;
    pthread_mutex_lock(&c->lock);
    c->closed = true;
    c->cancelled = c->closed_by_cancel != 0;
    bool cancelled = c->cancelled;
    pthread_mutex_unlock(&c->lock);
    if (c->seen && c->method->on_done) c->method->on_done(c, cancelled, c->method->ctx);
    if (batch_done(c, &cancelled)) call_let_go(c);
}

/* ---- sending ---- */

/* Starts the next batch of the sending side, if one is due. Lock held. */
static void pump(struct mu_rpc_call *c)
{
    if (c->sending || c->status_sent || c->closed) return;
    struct mu_rpc_item *item = c->outbox.head;
    if (!item && !c->finishing) return;
    grpc_op op[3] = {0};
    size_t n = 0;
    if (!c->headers_sent) op[n++].op = GRPC_OP_SEND_INITIAL_METADATA;
    if (item) {
        op[n].op = GRPC_OP_SEND_MESSAGE;
        op[n++].data.send_message.send_message = item->buffer;
    }
    grpc_slice text = grpc_empty_slice();
    bool with_status = c->finishing && (!item || !item->next);
    if (with_status) {
        if (c->text) text = grpc_slice_from_copied_string(c->text);
        op[n].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
        op[n].data.send_status_from_server.status = (grpc_status_code)c->code;
        op[n++].data.send_status_from_server.status_details = &text;
    }
    grpc_call_error rc = grpc_call_start_batch(c->wire, op, n, mu_rpc_arm(&c->send_tag), NULL);
    grpc_slice_unref(text);
    if (rc != GRPC_CALL_OK) { /* our bug, if ever: end the call rather than let it hang */
        mu_error("grpc", "a batch of %s was refused: %s", c->method ? c->method->path : "a call",
                 grpc_call_error_to_string(rc));
        c->status_sent = true;
        grpc_call_cancel_with_status(c->wire, GRPC_STATUS_INTERNAL, "internal error", NULL);
        return;
    }
    c->n_batch++;
    c->sending = c->headers_sent = true;
    c->sending_message = item != NULL;
    c->status_sent = with_status;
}

static void on_sent(void *owner, bool ok)
{
    struct mu_rpc_call *c = owner;
    pthread_mutex_lock(&c->lock);
    c->n_batch--;
    c->sending = false;
    if (c->sending_message) mu_rpc_outbox_pop(&c->outbox);
    if (ok) pump(c); /* else the call is broken, and its close tag is on the way */
    bool last = c->closed && c->n_batch == 0;
    pthread_mutex_unlock(&c->lock);
    if (last) call_let_go(c);
}

enum mu_status mu_rpc_call_send(struct mu_rpc_call *c, const ProtobufCMessage *msg)
{
    grpc_byte_buffer *buffer;
    size_t bytes;
    enum mu_status st = mu_rpc_pack(msg, &buffer, &bytes);
    if (st != MU_OK) return st;
    pthread_mutex_lock(&c->lock);
    st = c->closed || c->finishing ? MU_ECANCELLED : mu_rpc_outbox_push(&c->outbox, buffer, bytes);
    if (st == MU_OK) pump(c);
    pthread_mutex_unlock(&c->lock);
    if (st != MU_OK) grpc_byte_buffer_destroy(buffer);
    return st;
}

size_t mu_rpc_call_queued(struct mu_rpc_call *c)
{
    pthread_mutex_lock(&c->lock);
    size_t bytes = c->closed ? 0 : c->outbox.bytes;
    pthread_mutex_unlock(&c->lock);
    return bytes;
}

static void finish(struct mu_rpc_call *c, enum mu_rpc_code code, const char *text)
{
    char *copy = text && *text ? mu_strdup(text) : NULL;
    pthread_mutex_lock(&c->lock);
    if (!c->finishing && !c->closed) {
        c->finishing = true;
        c->code = code;
        c->text = copy;
        copy = NULL;
        pump(c);
    }
    pthread_mutex_unlock(&c->lock);
    mu_free(copy);
}

void mu_rpc_call_finish(struct mu_rpc_call *c, enum mu_rpc_code code, const char *fmt, ...)
{
    char text[MU_RPC_STATUS_TEXT] = "";
    va_list ap;
    va_start(ap, fmt);
    if (fmt) vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    finish(c, code, text);
}

void mu_rpc_call_reply(struct mu_rpc_call *c, const ProtobufCMessage *msg)
{
    grpc_byte_buffer *buffer;
    size_t bytes;
    if (protobuf_c_message_get_packed_size(msg) > MU_RPC_REPLY_BYTES) {
        mu_rpc_call_finish(c, MU_RPC_RESOURCE_EXHAUSTED,
                           "the answer is longer than the %d bytes that gRPC clients take unless told otherwise: ask "
                           "for less at a time",
                           MU_RPC_REPLY_BYTES);
        return;
    }
    enum mu_status st = mu_rpc_pack(msg, &buffer, &bytes);
    if (st != MU_OK) {
        mu_rpc_call_finish(c, st == MU_ENOMEM ? MU_RPC_RESOURCE_EXHAUSTED : MU_RPC_INTERNAL,
                           "the answer cannot be sent: %s",
                           st == MU_EINVAL ? "a text in it is not valid UTF-8" : mu_status_text(st));
        return;
    }
    pthread_mutex_lock(&c->lock); /* both at once, so that they share a batch */
    if (c->closed || c->finishing)
        st = MU_ECANCELLED; /* the server may be gone */
    else if (bytes > ALWAYS_BYTES && atomic_load(&c->server->unread) > c->server->max_unread)
        st = MU_ELIMIT;
    else
        st = mu_rpc_outbox_push(&c->outbox, buffer, bytes);
    if (st == MU_OK) {
        c->finishing = true;
        c->code = MU_RPC_OK;
        pump(c);
    }
    pthread_mutex_unlock(&c->lock);
    if (st == MU_OK) return;
    grpc_byte_buffer_destroy(buffer);
    mu_rpc_call_finish(c, mu_rpc_code_of(st), "the answer cannot be queued: %s",
                       st == MU_ELIMIT ? "clients have yet to read too many others; try again later"
                                       : mu_status_text(st));
}

/* ---- the server ---- */

static void *poll_thread(void *arg)
{
    struct mu_rpc_server *s = arg;
    mu_rpc_poll(s->cq);
    return NULL;
}

static void on_shut(void *owner, bool ok)
{
    (void)ok;
    struct mu_rpc_server *s = owner;
    s->core_shut = true;
    shut_if_over(s);
}

static bool wait_shut_slice(struct mu_rpc_server *s, int64_t until_ns)
{
    struct timespec ts = {.tv_sec = until_ns / MU_SEC, .tv_nsec = until_ns % MU_SEC};
    pthread_mutex_lock(&s->lock);
    while (!s->is_shut && pthread_cond_timedwait(&s->changed, &s->lock, &ts) != ETIMEDOUT) {}
    bool shut = s->is_shut;
    pthread_mutex_unlock(&s->lock);
    return shut;
}

/* A queue without a thread is polled here: nobody else would, and the server's end waits for it. */
static bool wait_shut(struct mu_rpc_server *s, int ms)
{
    int64_t until = mu_now_ns() + (ms > 0 ? ms : 0) * MU_MS;
    bool shut;
    if (s->running) return wait_shut_slice(s, until);
    do {
        mu_rpc_poll_until(s->cq, mu_now_ns() + INLINE_SLICE_MS * MU_MS);
        shut = wait_shut_slice(s, mu_now_ns());
    } while (!shut && mu_now_ns() < until);
    return shut;
}

static enum mu_status copy_methods(struct mu_rpc_server *s, const struct mu_rpc_server_options *opt, struct mu_err *err)
{
    size_t n_service = 0;
    if (opt->descriptor_set) {
        enum mu_status st = mu_rpc_services_create(opt->descriptor_set, opt->descriptor_set_bytes, opt->methods,
                                                   opt->n_method, &s->services, err);
        if (st != MU_OK) return st;
        n_service = MU_RPC_SERVICE_METHODS;
    }
    s->method = mu_calloc(opt->n_method + n_service, sizeof *s->method);
    if (!s->method) return mu_fail(err, MU_ENOMEM, "%zu methods of a gRPC server", opt->n_method);
    if (opt->n_method) memcpy(s->method, opt->methods, opt->n_method * sizeof *s->method);
    if (n_service) mu_rpc_services_methods(s->services, s->method + opt->n_method);
    s->n_method = opt->n_method + n_service;
    return MU_OK;
}

/* gRPC's own limit on messages is the largest of any method's: the exact one is checked when a message is here.
 * Compression is off, because a small message may unpack to any size. */
static grpc_server *create_core(const struct mu_rpc_server *s, int silent_ms)
{
    if (silent_ms <= 0) silent_ms = 8000;
    const int ping_ms = silent_ms / 4;
    size_t largest = MU_RPC_DEFAULT_MESSAGE_BYTES;
    for (size_t i = 0; i < s->n_method; i++)
        if (s->method[i].max_request_bytes > largest) largest = s->method[i].max_request_bytes;
    grpc_arg arg[] = {
        mu_rpc_int_arg(GRPC_ARG_ALLOW_REUSEPORT, 0),
        mu_rpc_int_arg(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, largest > INT32_MAX ? INT32_MAX : (int)largest),
        mu_rpc_int_arg(GRPC_ARG_MAX_CONCURRENT_STREAMS, 4096),
        mu_rpc_int_arg(GRPC_ARG_KEEPALIVE_TIME_MS, ping_ms),
        mu_rpc_int_arg(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, silent_ms - ping_ms),
        mu_rpc_int_arg(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1),
        mu_rpc_int_arg(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0),
        mu_rpc_int_arg(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 500),
        mu_rpc_int_arg(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1),
    };
    grpc_channel_args args = {sizeof arg / sizeof *arg, arg};
    return grpc_server_create(&args, NULL);
}

static enum mu_status listen_all(struct mu_rpc_server *s, const char *const *address, struct mu_err *err)
{
    size_t n = 0;
    while (address && address[n] && n <= MAX_ADDRESSES) n++;
    if (n == 0 || n > MAX_ADDRESSES)
        return mu_fail(err, MU_EINVAL, "a gRPC server listens on 1 to %d addresses", MAX_ADDRESSES);
    s->port = mu_calloc(n, sizeof *s->port);
    if (!s->port) return mu_fail(err, MU_ENOMEM, "gRPC server");
    grpc_server_credentials *creds = grpc_insecure_server_credentials_create();
    enum mu_status st = MU_OK;
    for (size_t i = 0; i < n && st == MU_OK; i++) {
        st = mu_rpc_listen_prepare(address[i], err);
        if (st != MU_OK) break;
        char *target = mu_rpc_target(address[i]);
        mu_rpc_quiet++;
        if (target) s->port[i] = grpc_server_add_http2_port(s->core, target, creds);
        mu_rpc_quiet--;
        mu_free(target);
        if (!target)
            st = mu_fail(err, MU_ENOMEM, "gRPC server");
        else if (s->port[i] == 0)
            st = mu_rpc_listen_diagnose(address[i], err);
        s->n_port = i + 1;
    }
    grpc_server_credentials_release(creds);
    return st;
}

static enum mu_status start_polling(struct mu_rpc_server *s, struct mu_err *err)
{
    request_calls(s);
    enum mu_status st = s->n_pending ? mu_rpc_thread_start(&s->thread, poll_thread, s, err)
                                     : mu_fail(err, MU_ENOMEM, "calls of a gRPC server");
    s->running = st == MU_OK;
    return st;
}

/* The gRPC server ends, polled by its thread, or here where that was not started. False: it did not, because a
 * handler does not return; all of it must then stay as it is. */
static bool shut_core(struct mu_rpc_server *s, int grace_ms)
{
    s->shutdown_tag = (struct mu_rpc_tag){.fn = on_shut, .owner = s};
    grpc_server_shutdown_and_notify(s->core, s->cq, mu_rpc_arm(&s->shutdown_tag));
    bool shut = wait_shut(s, grace_ms);
    if (!shut) grpc_server_cancel_all_calls(s->core);
    for (int i = 1; !shut && i <= STUCK_TURNS; i++)
        if (!(shut = wait_shut(s, STUCK_MS)))
            mu_error("grpc", "server still stopping after %d s: a handler does not return", i * STUCK_MS / 1000);
    if (!shut) return false;
    grpc_completion_queue_shutdown(s->cq);
    if (!s->running) return mu_rpc_poll_until(s->cq, mu_now_ns() + STUCK_MS * MU_MS);
    pthread_join(s->thread, NULL);
    return true;
}

/* Accepts a half-started server. */
void mu_rpc_server_stop(struct mu_rpc_server *s, int grace_ms)
{
    if (!s) return;
    mu_fault_hit("rpc.stop");
    if (s->services) mu_rpc_services_stop(s->services);
    if (s->core) {
        if (!shut_core(s, grace_ms)) return;
        grpc_completion_queue_destroy(s->cq);
        grpc_server_destroy(s->core);
    }
    mu_rpc_services_destroy(s->services);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
    mu_free(s->method);
    mu_free(s->port);
    mu_free(s);
    mu_rpc_shutdown();
}

enum mu_status mu_rpc_server_start(const struct mu_rpc_server_options *opt, struct mu_rpc_server **server_out,
                                   struct mu_err *err)
{
    struct mu_rpc_server *s = mu_calloc(1, sizeof *s);
    if (!s) return mu_fail(err, MU_ENOMEM, "gRPC server");
    s->max_unread = opt->max_unread_bytes ? opt->max_unread_bytes : DEFAULT_UNREAD_BYTES;
    mu_rpc_init();
    enum mu_status st;
    mu_rpc_cond_init(&s->changed);
    pthread_mutex_init(&s->lock, NULL);
    MU_TRY(st, copy_methods(s, opt, err), fail);
    s->core = create_core(s, opt->silent_ms);
    s->cq = grpc_completion_queue_create_for_next(NULL);
    grpc_server_register_completion_queue(s->core, s->cq, NULL);
    MU_TRY(st, listen_all(s, opt->addresses, err), fail);
    grpc_server_start(s->core);
    MU_TRY(st, start_polling(s, err), fail);
    *server_out = s;
    return MU_OK;
fail:
    mu_rpc_server_stop(s, 0);
    return st;
}

int mu_rpc_server_port(const struct mu_rpc_server *s, size_t i)
{
    return i < s->n_port ? s->port[i] : 0;
}

void mu_rpc_server_set_health(struct mu_rpc_server *s, const char *service, bool serving)
{
    if (s->services) mu_rpc_services_set_health(s->services, service, serving);
}
