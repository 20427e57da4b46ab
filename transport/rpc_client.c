/* The client half of the gRPC wrapper. A unary call is a stream whose six operations share one batch.
 *
 *   open ─► connected? ──yes──────────────────────────────► start ─► messages ─► on_done
 *              └─no─► the channel's list of waiting streams ──┘ (connected, or the time for it is
 *                                       over: then the start fails at once and brings gRPC's reason along)
 *
 * A stream is done when its status is here, the reader has seen the end, and no batch is in flight: on_done is then
 * the last thing that happens. Cancelling only hurries that.
 *
 * Threads: the channel's poll thread makes all callbacks. A channel moves only while somebody polls its queue, so
 * that thread polls as long as the channel lives. Locks: channel, stream; never both, never across a callback.
 *
 * Connecting is watched in slices of 100 ms (watch_connectivity_state cannot be called off), by one watch per channel
 * that has waiting streams.
 *
 * Shutdown order: no new streams → all cancelled → the last one done, no watch left → queue shut down → thread joined
 * → channel. */
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/log.h"
#include "transport/rpc_internal.h"

enum {
    WATCH_SLICE_MS = 100,
    MAX_RECEIVE_BYTES = 256 << 20 /* gRPC's own limit; each stream has a tighter one of ours */
};

struct mu_rpc_channel {
    grpc_channel *core;
    grpc_completion_queue *cq;
    pthread_t thread;
    bool running;
    char *address;
    struct mu_rpc_tag watch_tag;

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    struct mu_rpc_stream *open; /* all that are not done, linked by prev, next */
    bool watching, closing;
};

enum stream_state { STREAM_NEW, STREAM_STARTED, STREAM_DONE };

struct mu_rpc_stream {
    atomic_int refs; /* the caller's, and one until on_done has returned */
    struct mu_rpc_channel *channel;
    struct mu_rpc_stream *prev, *next; /* these three under the channel's lock */
    bool waiting;                      /* for the connection */
    atomic_bool cancelled;

    const ProtobufCMessageDescriptor *response;
    size_t max_response_bytes;
    int64_t connect_deadline_ns;
    struct mu_rpc_stream_callbacks cb;
    bool unary;

    /* Filled by gRPC. */
    grpc_byte_buffer *received;
    grpc_metadata_array headers, trailers;
    grpc_status_code status;
    grpc_slice status_text;
    struct mu_rpc_tag headers_tag, receive_tag, status_tag, send_tag, unary_tag;
    bool read_end, status_here; /* poll thread */

    pthread_mutex_t lock; /* guards what follows */
    enum stream_state state;
    grpc_call *wire;
    int n_batch;
    bool sending, sending_message, half_closing, half_closed;
    enum mu_rpc_code own_code; /* why we ended it, where gRPC's CANCELLED says less */
    char own_text[512];
    struct mu_rpc_outbox outbox;
    pthread_cond_t finished; /* unary: state is STREAM_DONE, and reply, code and text are set */
    ProtobufCMessage *reply;
    enum mu_rpc_code code;
    char text[MU_RPC_STATUS_TEXT];
};

static void on_headers(void *owner, bool ok);
static void on_receive(void *owner, bool ok);
static void on_status(void *owner, bool ok);
static void on_sent(void *owner, bool ok);
static void on_unary(void *owner, bool ok);

/* ---- the life of a stream ---- */

static void stream_retain(struct mu_rpc_stream *s)
{
    atomic_fetch_add_explicit(&s->refs, 1, memory_order_relaxed);
}

void mu_rpc_stream_release(struct mu_rpc_stream *s)
{
    if (!s || atomic_fetch_sub_explicit(&s->refs, 1, memory_order_acq_rel) != 1) return;
    mu_rpc_message_free(s->reply);
    pthread_cond_destroy(&s->finished);
    pthread_mutex_destroy(&s->lock);
    mu_free(s);
}

/* Gives back what is gRPC's, which must not outlive the channel as the stream itself may. */
static void drop_wire(struct mu_rpc_stream *s, grpc_call *wire)
{
    mu_rpc_outbox_clear(&s->outbox);
    grpc_metadata_array_destroy(&s->headers);
    grpc_metadata_array_destroy(&s->trailers);
    grpc_slice_unref(s->status_text);
    grpc_call_unref(wire);
}

static enum mu_status stream_create(struct mu_rpc_channel *c, const char *path, int64_t deadline_ns,
                                    struct mu_rpc_stream **stream_out, struct mu_err *err)
{
    if (!path || path[0] != '/') return mu_fail(err, MU_EINVAL, "gRPC method \"%s\": expected /service/method", path);
    struct mu_rpc_stream *s = mu_calloc(1, sizeof *s);
    if (!s) return mu_fail(err, MU_ENOMEM, "gRPC call to %s", c->address);
    atomic_init(&s->refs, 2);
    s->channel = c;
    s->status_text = grpc_empty_slice();
    grpc_metadata_array_init(&s->headers);
    grpc_metadata_array_init(&s->trailers);
    s->headers_tag = (struct mu_rpc_tag){.fn = on_headers, .owner = s};
    s->receive_tag = (struct mu_rpc_tag){.fn = on_receive, .owner = s};
    s->status_tag = (struct mu_rpc_tag){.fn = on_status, .owner = s};
    s->send_tag = (struct mu_rpc_tag){.fn = on_sent, .owner = s};
    s->unary_tag = (struct mu_rpc_tag){.fn = on_unary, .owner = s};
    s->outbox.max_bytes = MU_RPC_DEFAULT_QUEUED_BYTES;
    s->max_response_bytes = MU_RPC_DEFAULT_MESSAGE_BYTES;
    pthread_mutex_init(&s->lock, NULL);
    mu_rpc_cond_init(&s->finished);
    grpc_slice method = grpc_slice_from_copied_string(path);
    s->wire = grpc_channel_create_call(c->core, NULL, GRPC_PROPAGATE_DEFAULTS, c->cq, method, NULL,
                                       mu_rpc_timespec(deadline_ns), NULL);
    grpc_slice_unref(method);
    *stream_out = s;
    return MU_OK;
}

static void channel_remove(struct mu_rpc_channel *c, struct mu_rpc_stream *s)
{
    pthread_mutex_lock(&c->lock);
    if (s->prev)
        s->prev->next = s->next;
    else
        c->open = s->next;
    if (s->next) s->next->prev = s->prev;
    s->prev = s->next = NULL;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
}

/* Poll thread: the call is over unless something is still to come. */
static void maybe_done(struct mu_rpc_stream *s)
{
    pthread_mutex_lock(&s->lock);
    if (s->state != STREAM_STARTED || !s->status_here || !s->read_end || s->n_batch != 0) {
        pthread_mutex_unlock(&s->lock);
        return;
    }
    grpc_call *wire = s->wire;
    s->wire = NULL;
    s->code = (enum mu_rpc_code)s->status;
    snprintf(s->text, sizeof s->text, "%.*s", (int)GRPC_SLICE_LENGTH(s->status_text),
             (const char *)GRPC_SLICE_START_PTR(s->status_text));
    if (s->own_text[0] && (s->code == MU_RPC_CANCELLED || s->code == MU_RPC_OK)) {
        s->code = s->own_code;
        snprintf(s->text, sizeof s->text, "%s", s->own_text);
    }
    s->state = STREAM_DONE;
    pthread_cond_broadcast(&s->finished);
    pthread_mutex_unlock(&s->lock);
    drop_wire(s, wire);
    if (s->cb.on_done) s->cb.on_done(s, s->code, s->text, s->cb.ctx);
    channel_remove(s->channel, s);
    mu_rpc_stream_release(s);
}

/* Ends the stream for a reason of ours; NULL: the caller wished it. */
static void stream_abort(struct mu_rpc_stream *s, enum mu_rpc_code code, const char *text)
{
    pthread_mutex_lock(&s->lock);
    if (s->state != STREAM_DONE && !atomic_exchange(&s->cancelled, true)) {
        if (text) {
            s->own_code = code;
            snprintf(s->own_text, sizeof s->own_text, "%s", text);
        }
        grpc_call_cancel(s->wire, NULL); /* one that has not started fails as soon as it does */
    }
    pthread_mutex_unlock(&s->lock);
}

/* One that waits for its connection is found by the watch, within a slice. */
void mu_rpc_stream_cancel(struct mu_rpc_stream *s)
{
    stream_abort(s, MU_RPC_CANCELLED, NULL);
}

/* ---- sending ---- */

/* Lock held. */
static void pump(struct mu_rpc_stream *s)
{
    if (s->state != STREAM_STARTED || s->sending || s->half_closed) return;
    struct mu_rpc_item *item = s->outbox.head;
    if (!item && !s->half_closing) return;
    grpc_op op[2] = {0};
    size_t n = 0;
    if (item) {
        op[n].op = GRPC_OP_SEND_MESSAGE;
        op[n++].data.send_message.send_message = item->buffer;
    }
    bool with_close = s->half_closing && (!item || !item->next);
    if (with_close) op[n++].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    grpc_call_error rc = grpc_call_start_batch(s->wire, op, n, mu_rpc_arm(&s->send_tag), NULL);
    if (rc != GRPC_CALL_OK) { /* our bug, if ever: end the stream rather than let it hang */
        mu_error("grpc", "a batch to %s was refused: %s", s->channel->address, grpc_call_error_to_string(rc));
        s->half_closed = true;
        grpc_call_cancel(s->wire, NULL);
        return;
    }
    s->n_batch++;
    s->sending = true;
    s->sending_message = item != NULL;
    s->half_closed = with_close;
}

static void on_sent(void *owner, bool ok)
{
    struct mu_rpc_stream *s = owner;
    pthread_mutex_lock(&s->lock);
    s->n_batch--;
    s->sending = false;
    if (s->sending_message) mu_rpc_outbox_pop(&s->outbox);
    if (ok)
        pump(s);
    else
        s->half_closed = true; /* the stream is broken; its status is on the way */
    pthread_mutex_unlock(&s->lock);
    maybe_done(s);
}

enum mu_status mu_rpc_stream_send(struct mu_rpc_stream *s, const ProtobufCMessage *msg)
{
    grpc_byte_buffer *buffer;
    size_t bytes;
    enum mu_status st = mu_rpc_pack(msg, &buffer, &bytes);
    if (st != MU_OK) return st;
    pthread_mutex_lock(&s->lock);
    bool over = s->state == STREAM_DONE || atomic_load(&s->cancelled) || s->half_closing || s->half_closed;
    st = over ? MU_ECANCELLED : mu_rpc_outbox_push(&s->outbox, buffer, bytes);
    if (st == MU_OK) pump(s);
    pthread_mutex_unlock(&s->lock);
    if (st != MU_OK) grpc_byte_buffer_destroy(buffer);
    return st;
}

void mu_rpc_stream_half_close(struct mu_rpc_stream *s)
{
    pthread_mutex_lock(&s->lock);
    s->half_closing = true;
    pump(s);
    pthread_mutex_unlock(&s->lock);
}

/* ---- receiving ---- */

/* Lock held. */
static void start_batch(struct mu_rpc_stream *s, const grpc_op *op, size_t n, struct mu_rpc_tag *tag)
{
    grpc_call_error rc = grpc_call_start_batch(s->wire, op, n, mu_rpc_arm(tag), NULL);
    if (rc == GRPC_CALL_OK)
        s->n_batch++;
    else
        mu_error("grpc", "a batch to %s was refused: %s", s->channel->address, grpc_call_error_to_string(rc));
}

static void batch_done(struct mu_rpc_stream *s)
{
    pthread_mutex_lock(&s->lock);
    s->n_batch--;
    pthread_mutex_unlock(&s->lock);
}

static void receive_next(struct mu_rpc_stream *s)
{
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &s->received};
    pthread_mutex_lock(&s->lock);
    int before = s->n_batch;
    start_batch(s, &op, 1, &s->receive_tag);
    if (s->n_batch == before) s->read_end = true;
    pthread_mutex_unlock(&s->lock);
}

/* The message of buffer, or NULL after ending the stream for it. */
static ProtobufCMessage *take_message(struct mu_rpc_stream *s, grpc_byte_buffer *buffer)
{
    ProtobufCMessage *msg;
    struct mu_err err = MU_ERR_INIT;
    enum mu_status st = mu_rpc_unpack_buffer(s->response, buffer, s->max_response_bytes, &msg, &err);
    if (st == MU_OK) return msg;
    stream_abort(s, st == MU_ELIMIT || st == MU_ENOMEM ? MU_RPC_RESOURCE_EXHAUSTED : MU_RPC_INTERNAL, err.text);
    return NULL;
}

static void on_headers(void *owner, bool ok)
{
    (void)ok;
    batch_done(owner);
    maybe_done(owner);
}

static void on_receive(void *owner, bool ok)
{
    struct mu_rpc_stream *s = owner;
    grpc_byte_buffer *buffer = s->received;
    s->received = NULL;
    batch_done(s);
    if (!ok || !buffer) {
        s->read_end = true;
    } else {
        ProtobufCMessage *msg = atomic_load(&s->cancelled) ? NULL : take_message(s, buffer);
        if (msg && s->cb.on_message) s->cb.on_message(s, msg, s->cb.ctx);
        mu_rpc_message_free(msg);
        receive_next(s);
    }
    if (buffer) grpc_byte_buffer_destroy(buffer);
    maybe_done(s);
}

static void on_status(void *owner, bool ok)
{
    (void)ok;
    struct mu_rpc_stream *s = owner;
    s->status_here = true;
    batch_done(s);
    maybe_done(s);
}

static void on_unary(void *owner, bool ok)
{
    (void)ok;
    struct mu_rpc_stream *s = owner;
    if (s->received && s->status == GRPC_STATUS_OK) s->reply = take_message(s, s->received);
    if (s->received) grpc_byte_buffer_destroy(s->received);
    s->received = NULL;
    s->read_end = s->status_here = true;
    batch_done(s);
    maybe_done(s);
}

/* ---- starting ---- */

static void start_unary(struct mu_rpc_stream *s)
{
    grpc_op op[] = {
        {.op = GRPC_OP_SEND_INITIAL_METADATA},
        {.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = s->outbox.head->buffer},
        {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT},
        {.op = GRPC_OP_RECV_INITIAL_METADATA, .data.recv_initial_metadata.recv_initial_metadata = &s->headers},
        {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &s->received},
        {.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
         .data.recv_status_on_client = {&s->trailers, &s->status, &s->status_text, NULL}},
    };
    start_batch(s, op, 6, &s->unary_tag);
    s->half_closed = true;
}

static void start_streaming(struct mu_rpc_stream *s)
{
    grpc_op status = {.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
                      .data.recv_status_on_client = {&s->trailers, &s->status, &s->status_text, NULL}};
    grpc_op headers[] = {
        {.op = GRPC_OP_SEND_INITIAL_METADATA},
        {.op = GRPC_OP_RECV_INITIAL_METADATA, .data.recv_initial_metadata.recv_initial_metadata = &s->headers},
    };
    grpc_op message = {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &s->received};
    start_batch(s, &status, 1, &s->status_tag);
    start_batch(s, headers, 2, &s->headers_tag);
    start_batch(s, &message, 1, &s->receive_tag);
    pump(s);
}

static void start(struct mu_rpc_stream *s)
{
    pthread_mutex_lock(&s->lock);
    s->state = STREAM_STARTED;
    if (s->unary)
        start_unary(s);
    else
        start_streaming(s);
    pthread_mutex_unlock(&s->lock);
}

/* ---- connecting ---- */

/* The next stream whose wait is over, with a reference, or NULL. Then *next_deadline_out says when the first of those
 * that wait has to be looked at again; where none does, the watch is over (`watching` falls under the lock that
 * streams join under). */
static struct mu_rpc_stream *next_to_start(struct mu_rpc_channel *c, bool connected, int64_t *next_deadline_out)
{
    struct mu_rpc_stream *found = NULL;
    int64_t now = mu_now_ns();
    bool waiting = false;
    *next_deadline_out = now + WATCH_SLICE_MS * MU_MS;
    pthread_mutex_lock(&c->lock);
    for (struct mu_rpc_stream *s = c->open; s && !found; s = s->next) {
        if (!s->waiting) continue;
        if (connected || c->closing || now >= s->connect_deadline_ns || atomic_load(&s->cancelled)) {
            found = s;
            s->waiting = false;
            stream_retain(s);
        } else {
            waiting = true;
            if (s->connect_deadline_ns < *next_deadline_out) *next_deadline_out = s->connect_deadline_ns;
        }
    }
    if (!found && !waiting) c->watching = false;
    if (!found && !waiting) *next_deadline_out = MU_FOREVER;
    pthread_mutex_unlock(&c->lock);
    return found;
}

static void on_watch(void *owner, bool ok)
{
    (void)ok; /* the state has changed or the slice is over: look either way */
    struct mu_rpc_channel *c = owner;
    grpc_connectivity_state state = grpc_channel_check_connectivity_state(c->core, 1);
    int64_t next_deadline_ns;
    struct mu_rpc_stream *s;
    while ((s = next_to_start(c, state == GRPC_CHANNEL_READY, &next_deadline_ns))) {
        if (state != GRPC_CHANNEL_READY && state != GRPC_CHANNEL_TRANSIENT_FAILURE) {
            /* Nothing has failed yet, so gRPC would go on trying. */
            char text[256];
            snprintf(text, sizeof text, "no answer from %s: not connected before the deadline", c->address);
            stream_abort(s, MU_RPC_UNAVAILABLE, text);
        }
        start(s);
        mu_rpc_stream_release(s);
    }
    if (next_deadline_ns == MU_FOREVER) {
        pthread_mutex_lock(&c->lock);
        pthread_cond_broadcast(&c->changed);
        pthread_mutex_unlock(&c->lock);
        return;
    }
    grpc_channel_watch_connectivity_state(c->core, state, mu_rpc_timespec(next_deadline_ns), c->cq,
                                          mu_rpc_arm(&c->watch_tag));
}

/* Into the channel's list, and off: at once where there is a connection. False: the channel is closing. */
static bool launch(struct mu_rpc_channel *c, struct mu_rpc_stream *s)
{
    grpc_connectivity_state state = grpc_channel_check_connectivity_state(c->core, 1);
    pthread_mutex_lock(&c->lock);
    bool ok = !c->closing, watch = false;
    if (ok) {
        s->next = c->open;
        if (c->open) c->open->prev = s;
        c->open = s;
        s->waiting = state != GRPC_CHANNEL_READY;
        watch = s->waiting && !c->watching;
        if (watch) c->watching = true;
    }
    pthread_mutex_unlock(&c->lock);
    if (ok && state == GRPC_CHANNEL_READY) start(s);
    if (watch)
        grpc_channel_watch_connectivity_state(c->core, state, mu_rpc_timespec(mu_now_ns() + WATCH_SLICE_MS * MU_MS),
                                              c->cq, mu_rpc_arm(&c->watch_tag));
    return ok;
}

static enum mu_status launch_or_drop(struct mu_rpc_channel *c, struct mu_rpc_stream *s, struct mu_err *err)
{
    if (launch(c, s)) return MU_OK;
    drop_wire(s, s->wire);
    mu_rpc_stream_release(s);
    mu_rpc_stream_release(s);
    return mu_fail(err, MU_ECANCELLED, "the channel to %s is being closed", c->address);
}

enum mu_status mu_rpc_stream_open(struct mu_rpc_channel *c, const char *path,
                                  const ProtobufCMessageDescriptor *resp_type, size_t max_response_bytes,
                                  int64_t deadline_ns, int64_t connect_deadline_ns,
                                  const struct mu_rpc_stream_callbacks *cb, struct mu_rpc_stream **stream_out,
                                  struct mu_err *err)
{
    struct mu_rpc_stream *s;
    enum mu_status st = stream_create(c, path, deadline_ns, &s, err);
    if (st != MU_OK) return st;
    s->response = resp_type;
    if (max_response_bytes) s->max_response_bytes = max_response_bytes;
    s->connect_deadline_ns = connect_deadline_ns;
    s->cb = *cb;
    *stream_out = s; /* before it starts: callbacks may come before we return */
    st = launch_or_drop(c, s, err);
    if (st != MU_OK) *stream_out = NULL;
    return st;
}

/* ---- unary ---- */

/* Waits for the end of a unary call; gRPC keeps the deadline, the rest is for a poll thread that a callback holds up.
 */
static bool unary_wait(struct mu_rpc_stream *s, int64_t deadline_ns)
{
    enum { SLACK_MS = 2000 };
    int64_t until = deadline_ns > MU_FOREVER - SLACK_MS * MU_MS ? MU_FOREVER : deadline_ns + SLACK_MS * MU_MS;
    struct timespec ts = {.tv_sec = until / MU_SEC, .tv_nsec = until % MU_SEC};
    pthread_mutex_lock(&s->lock);
    while (s->state != STREAM_DONE && pthread_cond_timedwait(&s->finished, &s->lock, &ts) != ETIMEDOUT) {}
    bool done = s->state == STREAM_DONE;
    pthread_mutex_unlock(&s->lock);
    return done;
}

enum mu_status mu_rpc_unary(struct mu_rpc_channel *c, const char *path, const ProtobufCMessage *req,
                            const ProtobufCMessageDescriptor *resp_type, int64_t deadline_ns,
                            ProtobufCMessage **resp_out, struct mu_err *err)
{
    if (pthread_equal(pthread_self(), c->thread))
        return mu_fail(err, MU_EINVAL, "%s called from a callback of the channel to %s: it would wait for itself", path,
                       c->address);
    struct mu_rpc_stream *s;
    enum mu_status st = stream_create(c, path, deadline_ns, &s, err);
    if (st != MU_OK) return st;
    s->unary = true;
    s->response = resp_type;
    /* A little before the deadline, so that there is time to learn why there is no connection. */
    int64_t left = deadline_ns == MU_FOREVER ? 0 : deadline_ns - mu_now_ns();
    s->connect_deadline_ns = deadline_ns - (left > 1000 * MU_MS ? 100 * MU_MS : left / 10);
    grpc_byte_buffer *buffer;
    size_t bytes;
    st = mu_rpc_pack(req, &buffer, &bytes);
    if (st == MU_OK && (st = mu_rpc_outbox_push(&s->outbox, buffer, bytes)) != MU_OK) grpc_byte_buffer_destroy(buffer);
    if (st != MU_OK) {
        drop_wire(s, s->wire);
        mu_rpc_stream_release(s);
        mu_rpc_stream_release(s);
        return mu_fail(err, st, "request of %s: %s", path,
                       st == MU_EINVAL ? "a text is not valid UTF-8" : mu_status_text(st));
    }
    if ((st = launch_or_drop(c, s, err)) != MU_OK) return st;
    if (!unary_wait(s, deadline_ns)) {
        mu_rpc_stream_cancel(s);
        mu_fail(err, st = MU_ETIMEOUT, "%s: %s: a callback of the channel does not return", c->address, path + 1);
    } else if (s->code != MU_RPC_OK) {
        mu_fail(err, st = mu_status_of_rpc(s->code), "%s: %s: %s%s%s", c->address, path + 1,
                s->code == MU_RPC_DEADLINE_EXCEEDED ? "no answer before the deadline" : mu_rpc_code_name(s->code),
                s->text[0] ? ": " : "", s->text);
    } else if (!s->reply) {
        mu_fail(err, st = MU_EPROTO, "%s: %s: an answer without a message", c->address, path + 1);
    } else {
        *resp_out = s->reply;
        s->reply = NULL;
    }
    mu_rpc_stream_release(s);
    return st;
}

/* ---- the channel ---- */

static void *poll_thread(void *arg)
{
    struct mu_rpc_channel *c = arg;
    mu_rpc_poll(c->cq);
    return NULL;
}

/* Servers that vanish without a word are noticed after 2 + 2 s while a call is open. No proxies and no configuration
 * from DNS: peers are peers. Compression is off on our side too (see rpc_server.c). */
static grpc_channel *create_core(const char *target)
{
    grpc_arg arg[] = {
        mu_rpc_int_arg(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, MAX_RECEIVE_BYTES),
        mu_rpc_int_arg(GRPC_ARG_KEEPALIVE_TIME_MS, 2000),
        mu_rpc_int_arg(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 2000),
        mu_rpc_int_arg(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0),
        mu_rpc_int_arg(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 3000), /* which is also the time to connect */
        mu_rpc_int_arg(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100),
        mu_rpc_int_arg(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000),
        mu_rpc_int_arg(GRPC_ARG_ENABLE_HTTP_PROXY, 0),
        mu_rpc_int_arg(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1),
        mu_rpc_int_arg(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1),
        mu_rpc_int_arg(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1),
    };
    grpc_channel_args args = {sizeof arg / sizeof *arg, arg};
    grpc_channel_credentials *creds = grpc_insecure_credentials_create();
    grpc_channel *core = grpc_channel_create(target, creds, &args);
    grpc_channel_credentials_release(creds);
    return core;
}

enum mu_status mu_rpc_channel_open(const char *address, struct mu_rpc_channel **channel_out, struct mu_err *err)
{
    bool is_path = strncmp(address, "unix:", 5) == 0;
    if (is_path && strchr(address, ',')) /* to gRPC they are two, however it is written */
        return mu_fail(err, MU_EINVAL, "gRPC channel to %s: a socket's path with a comma cannot be reached", address);
    if (!is_path && mu_rpc_address_port(address, NULL) <= 0) /* gRPC takes others for other ports: 65537 for 1 */
        return mu_fail(err, MU_EINVAL, "\"%s\" is no server's address: expected HOST:PORT, [IPv6]:PORT or unix:/path",
                       address);
    struct mu_rpc_channel *c = mu_calloc(1, sizeof *c);
    if (!c) return mu_fail(err, MU_ENOMEM, "gRPC channel to %s", address);
    mu_rpc_init();
    enum mu_status st;
    char *target = mu_rpc_target(address);
    pthread_mutex_init(&c->lock, NULL);
    mu_rpc_cond_init(&c->changed);
    c->watch_tag = (struct mu_rpc_tag){.fn = on_watch, .owner = c};
    c->address = mu_strdup(address);
    st = c->address && target ? MU_OK : mu_fail(err, MU_ENOMEM, "gRPC channel to %s", address);
    if (st != MU_OK) goto fail;
    c->cq = grpc_completion_queue_create_for_next(NULL);
    c->core = create_core(target);
    MU_TRY(st, mu_rpc_thread_start(&c->thread, poll_thread, c, err), fail);
    c->running = true;
    *channel_out = c;
    mu_free(target);
    return MU_OK;
fail:
    mu_free(target);
    mu_rpc_channel_close(c);
    return st;
}

const char *mu_rpc_channel_address(const struct mu_rpc_channel *c)
{
    return c->address;
}

/* An open stream that is not cancelled yet, with a reference. */
static struct mu_rpc_stream *next_to_cancel(struct mu_rpc_channel *c)
{
    struct mu_rpc_stream *s = c->open;
    while (s && atomic_load(&s->cancelled)) s = s->next;
    if (s) stream_retain(s);
    return s;
}

/* Accepts a half-opened channel. */
void mu_rpc_channel_close(struct mu_rpc_channel *c)
{
    if (!c) return;
    pthread_mutex_lock(&c->lock);
    c->closing = true;
    for (struct mu_rpc_stream *s; (s = next_to_cancel(c));) {
        pthread_mutex_unlock(&c->lock);
        mu_rpc_stream_cancel(s);
        mu_rpc_stream_release(s);
        pthread_mutex_lock(&c->lock);
    }
    while (c->open || c->watching) {
        int64_t until = mu_now_ns() + 10 * MU_SEC;
        struct timespec ts = {.tv_sec = until / MU_SEC, .tv_nsec = until % MU_SEC};
        if (pthread_cond_timedwait(&c->changed, &c->lock, &ts) == ETIMEDOUT)
            mu_error("grpc", "channel to %s still closing after 10 s: a callback does not return", c->address);
    }
    pthread_mutex_unlock(&c->lock);
    if (c->cq) grpc_completion_queue_shutdown(c->cq);
    if (c->running) pthread_join(c->thread, NULL);
    if (c->core) grpc_channel_destroy(c->core);
    /* Without its thread it never carried a stream; should gRPC keep it open all the same, it stays. */
    bool drained = c->running || !c->cq || mu_rpc_poll_until(c->cq, mu_now_ns() + MU_SEC);
    if (c->cq && drained) grpc_completion_queue_destroy(c->cq);
    pthread_cond_destroy(&c->changed);
    pthread_mutex_destroy(&c->lock);
    mu_free(c->address);
    mu_free(c);
    mu_rpc_shutdown();
}
