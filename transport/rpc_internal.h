/* What the halves of the gRPC wrapper share: poll loops, packed messages on their way out, received ones on their way
 * in.
 *
 * A tag handed to gRPC core is a mu_rpc_tag inside the object it belongs to; whoever polls the queue calls it. Tags
 * never run under a lock of ours. */
#ifndef MU_TRANSPORT_RPC_INTERNAL_H
#define MU_TRANSPORT_RPC_INTERNAL_H

#include <grpc/byte_buffer.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/slice.h>
#include <grpc/support/alloc.h>
#include <grpc/support/time.h>
#include <pthread.h>
#include <stdatomic.h>

#include "transport/rpc.h"

enum {
    MU_RPC_DEFAULT_MESSAGE_BYTES = 4 << 20,
    MU_RPC_DEFAULT_QUEUED_BYTES = 4 << 20,
    MU_RPC_STATUS_TEXT =
        1024 /* longest status message: with what else there is it must fit the peer's 8 KiB of headers */
};

struct mu_rpc_tag {
    void (*fn)(void *owner, bool ok);
    void *owner;
    atomic_bool armed;
};
/* Before each hand-over to gRPC. gRPC orders memory between that and the completion itself, but not where a race
 * detector could see it in an uninstrumented library. */
static inline void *mu_rpc_arm(struct mu_rpc_tag *tag)
{
    atomic_store_explicit(&tag->armed, true, memory_order_release);
    return tag;
}

/* Runs tags until the queue is shut down and empty. */
void mu_rpc_poll(grpc_completion_queue *cq);
/* The same until a deadline, for a queue that has no thread. False: the deadline passed. */
bool mu_rpc_poll_until(grpc_completion_queue *cq, int64_t deadline_ns);
/* A thread that no signal of the process is delivered to. */
enum mu_status mu_rpc_thread_start(pthread_t *thread_out, void *(*fn)(void *), void *arg, struct mu_err *err);
/* For waits until a monotonic time. */
void mu_rpc_cond_init(pthread_cond_t *cond);
grpc_arg mu_rpc_int_arg(const char *key, int value);
/* While > 0, what gRPC logs on this thread is dropped: the caller says it better. */
extern _Thread_local int mu_rpc_quiet;

gpr_timespec mu_rpc_timespec(int64_t deadline_ns);

/* address for gRPC, to which "unix:/path" is a URI: bytes that mean something else in one are escaped. Freed with
 * mu_free; NULL: out of memory. */
char *mu_rpc_target(const char *address);
/* The port of "HOST:PORT" or "[IPv6]:PORT", 0 to 65535; -1: it is neither. host_out has room for all of address, or is NULL. */
int mu_rpc_address_port(const char *address, char *host_out);

/* ---- messages ---- */

/* Packs and checks the strings. MU_EINVAL: a string is not UTF-8; MU_ELIMIT: over 2 GiB; MU_ENOMEM. */
enum mu_status mu_rpc_pack(const ProtobufCMessage *msg, grpc_byte_buffer **buffer_out, size_t *bytes_out);
/* MU_ELIMIT beyond max_bytes or the memory budget; see mu_proto_unpack. Does not take the buffer. */
enum mu_status mu_rpc_unpack_buffer(const ProtobufCMessageDescriptor *type, grpc_byte_buffer *buffer, size_t max_bytes,
                                    ProtobufCMessage **msg_out, struct mu_err *err);

/* Messages waiting to be sent, in order. The first may be in flight: it is popped when its send has completed, so
 * `bytes` counts it. The owner's lock guards it. */
struct mu_rpc_outbox {
    struct mu_rpc_item *head, *tail;
    size_t bytes, max_bytes;
    atomic_size_t *total; /* the bytes of all outboxes of a server; NULL: a client's */
};
struct mu_rpc_item {
    struct mu_rpc_item *next;
    grpc_byte_buffer *buffer;
    size_t bytes;
};
/* Takes buffer on MU_OK. MU_EAGAIN when it does not fit beside what is queued; an empty outbox takes any one message.
 */
enum mu_status mu_rpc_outbox_push(struct mu_rpc_outbox *o, grpc_byte_buffer *buffer, size_t bytes);
void mu_rpc_outbox_pop(struct mu_rpc_outbox *o);
void mu_rpc_outbox_clear(struct mu_rpc_outbox *o);

/* ---- listening ---- */

/* Validates "host:port", "[v6]:port" or "unix:/path"; a unix socket that somebody answers on is MU_EBUSY, one that
 * nobody does is removed. */
enum mu_status mu_rpc_listen_prepare(const char *address, struct mu_err *err);
/* Why gRPC could not listen there: tries it and names the reason. */
enum mu_status mu_rpc_listen_diagnose(const char *address, struct mu_err *err);

/* ---- standard services ---- */

enum { MU_RPC_SERVICE_METHODS = 4 };
struct mu_rpc_services;

/* user: the server's own methods, borrowed; reflection lists the services that they belong to. */
enum mu_status mu_rpc_services_create(const void *descriptor_set, size_t bytes, const struct mu_rpc_method *user,
                                      size_t n_user, struct mu_rpc_services **services_out, struct mu_err *err);
void mu_rpc_services_methods(struct mu_rpc_services *s, struct mu_rpc_method methods_out[MU_RPC_SERVICE_METHODS]);
void mu_rpc_services_set_health(struct mu_rpc_services *s, const char *service, bool serving);
/* Tells every watcher that nothing is served any more and ends its stream. */
void mu_rpc_services_stop(struct mu_rpc_services *s);
void mu_rpc_services_destroy(struct mu_rpc_services *s); /* NULL is fine; after the server's last callback */

#endif
