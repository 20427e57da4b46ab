/* The process-wide part of the gRPC wrapper, its vocabulary of codes, and messages in and out. */
#include <ctype.h>
#include <dlfcn.h>
#include <errno.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/support/log.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/fault.h"
#include "base/log.h"
#include "proto/limits.h"
#include "transport/rpc_internal.h"

_Thread_local int mu_rpc_quiet;

const char *mu_rpc_code_name(enum mu_rpc_code code)
{
    static const char *const names[] = {
        "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
        "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
        "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
        "DATA_LOSS", "UNAUTHENTICATED"};
    return (unsigned)code < sizeof names / sizeof *names ? names[code] : "unknown code";
}

enum mu_rpc_code mu_rpc_code_of(enum mu_status st)
{
    switch (st) {
    case MU_OK: return MU_RPC_OK;
    case MU_ETIMEOUT: return MU_RPC_DEADLINE_EXCEEDED;
    case MU_ECANCELLED: return MU_RPC_CANCELLED;
    case MU_ENOENT: return MU_RPC_NOT_FOUND;
    case MU_EBUSY: return MU_RPC_FAILED_PRECONDITION;
    case MU_ENOMEM:
    case MU_ELIMIT: return MU_RPC_RESOURCE_EXHAUSTED;
    case MU_EINVAL:
    case MU_EFORMAT: return MU_RPC_INVALID_ARGUMENT;
    case MU_EUNSUPPORTED: return MU_RPC_UNIMPLEMENTED;
    case MU_EAGAIN:
    case MU_EPEER: return MU_RPC_UNAVAILABLE;
    case MU_ESTALE: return MU_RPC_ABORTED;
    case MU_EIO:
    case MU_ENONFINITE:
    case MU_EPROTO:
    case MU_EINTERNAL: return MU_RPC_INTERNAL;
    }
    return MU_RPC_UNKNOWN;
}

enum mu_status mu_status_of_rpc(enum mu_rpc_code code)
{
    switch (code) {
    case MU_RPC_OK: return MU_OK;
    case MU_RPC_CANCELLED: return MU_ECANCELLED;
    case MU_RPC_INVALID_ARGUMENT:
    case MU_RPC_OUT_OF_RANGE:
    case MU_RPC_PERMISSION_DENIED:
    case MU_RPC_UNAUTHENTICATED: return MU_EINVAL;
    case MU_RPC_DEADLINE_EXCEEDED: return MU_ETIMEOUT;
    case MU_RPC_NOT_FOUND: return MU_ENOENT;
    case MU_RPC_ALREADY_EXISTS:
    case MU_RPC_FAILED_PRECONDITION: return MU_EBUSY;
    case MU_RPC_RESOURCE_EXHAUSTED: return MU_ELIMIT;
    case MU_RPC_ABORTED: return MU_ESTALE;
    case MU_RPC_UNIMPLEMENTED: return MU_EUNSUPPORTED;
    case MU_RPC_UNAVAILABLE: return MU_EPEER;
    case MU_RPC_DATA_LOSS: return MU_EIO;
    case MU_RPC_UNKNOWN:
    case MU_RPC_INTERNAL: return MU_EPROTO;
    }
    return MU_EPROTO;
}

/* ---- the process ---- */

/* A peer can make gRPC complain at will: a few lines a second must do. */
static bool may_warn(void)
{
    enum { LINES_A_SECOND = 5 };
    static _Atomic int64_t second;
    static atomic_int lines;
    int64_t now = mu_now_ns() / MU_SEC;
    if (atomic_exchange(&second, now) != now) atomic_store(&lines, 0);
    return atomic_fetch_add(&lines, 1) < LINES_A_SECOND;
}

/* gRPC 1.51 never listens again after accept() has failed, and says so in its log alone. */
static char deaf_why[96];
static atomic_bool deaf;

const char *mu_rpc_deaf(void)
{
    return atomic_load(&deaf) ? deaf_why : NULL;
}

static void look_for_deafness(const char *message)
{
    static const char sign[] = "Failed accept4: ";
    static atomic_flag said = ATOMIC_FLAG_INIT;
    const char *why = strstr(message, sign);
    if (!why || atomic_flag_test_and_set(&said)) return;
    snprintf(deaf_why, sizeof deaf_why, "%s", why + sizeof sign - 1);
    atomic_store(&deaf, true);
    mu_error("grpc", "no connection is accepted any more until this process is started again: %s", deaf_why);
}

static void log_line(gpr_log_func_args *args)
{
    if (mu_rpc_quiet > 0) return;
    look_for_deafness(args->message);
    if (args->severity == GPR_LOG_SEVERITY_ERROR && may_warn())
        mu_warn("grpc", "%s", args->message);
    else
        mu_debug("grpc", "%s", args->message);
}

/* That accept() does not fail for want of descriptors. Not without bound: programs we start close all descriptors up to
 * the limit one by one. */
static void raise_descriptor_limit(void)
{
    struct rlimit r;
    enum { PLENTY = 65536 };
    if (getrlimit(RLIMIT_NOFILE, &r) != 0 || r.rlim_cur >= PLENTY) return;
    r.rlim_cur = r.rlim_max < PLENTY ? r.rlim_max : PLENTY;
    if (setrlimit(RLIMIT_NOFILE, &r) != 0) mu_debug("grpc", "descriptor limit stays: %s", strerror(errno));
}

static void init_once(void)
{
    /* Debian's abseil looks for lock-order cycles in release builds too, and aborts on harmless ones. 0 = ignore. */
    void (*deadlock_mode)(int);
    void *symbol = dlsym(RTLD_DEFAULT, "_ZN4absl7debian329SetMutexDeadlockDetectionModeENS0_15OnDeadlockCycleE");
    memcpy(&deadlock_mode, &symbol, sizeof symbol);
    if (symbol) deadlock_mode(0);
    /* Names as the rest of the system resolves them; gRPC's other resolver, c-ares, leaks a name per look-up. */
    setenv("GRPC_DNS_RESOLVER", "native", 0);
    gpr_set_log_function(log_line);
    raise_descriptor_limit();
}

void mu_rpc_init(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, init_once);
    sigset_t all, old; /* gRPC's threads inherit the mask: signals belong to the program's own threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    grpc_init();
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

void mu_rpc_shutdown(void)
{
    grpc_shutdown_blocking();
}

enum mu_status mu_rpc_thread_start(pthread_t *thread_out, void *(*fn)(void *), void *arg, struct mu_err *err)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int rc = mu_fault_hit("rpc.thread") ? EAGAIN : pthread_create(thread_out, NULL, fn, arg);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return rc ? mu_fail(err, MU_ENOMEM,
                        "cannot start a thread for gRPC: %s; memory or processes are limited (ulimit -v, -u)",
                        strerror(rc))
              : MU_OK;
}

void mu_rpc_cond_init(pthread_cond_t *cond)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attr);
    pthread_condattr_destroy(&attr);
}

grpc_arg mu_rpc_int_arg(const char *key, int value)
{
    return (grpc_arg){.type = GRPC_ARG_INTEGER, .key = (char *)key, .value.integer = value};
}

bool mu_rpc_poll_until(grpc_completion_queue *cq, int64_t deadline_ns)
{
    for (;;) {
        grpc_event ev = grpc_completion_queue_next(cq, mu_rpc_timespec(deadline_ns), NULL);
        if (ev.type == GRPC_QUEUE_SHUTDOWN) return true;
        if (ev.type != GRPC_OP_COMPLETE) {
            if (deadline_ns != MU_FOREVER && mu_now_ns() >= deadline_ns) return false;
            continue;
        }
        struct mu_rpc_tag *tag = ev.tag;
        if (atomic_load_explicit(&tag->armed, memory_order_acquire)) tag->fn(tag->owner, ev.success != 0);
    }
}

void mu_rpc_poll(grpc_completion_queue *cq)
{
    mu_rpc_poll_until(cq, MU_FOREVER);
}

gpr_timespec mu_rpc_timespec(int64_t deadline_ns)
{
    if (deadline_ns == MU_FOREVER) return gpr_inf_future(GPR_CLOCK_MONOTONIC);
    int64_t left = deadline_ns - mu_now_ns();
    return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_nanos(left > 0 ? left : 0, GPR_TIMESPAN));
}

char *mu_rpc_target(const char *address)
{
    static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/";
    if (strncmp(address, "unix:", 5) != 0) return mu_strdup(address);
    char *target = mu_malloc(3 * strlen(address) + 1), *out = target;
    if (!target) return NULL;
    memcpy(out, address, 5);
    out += 5;
    for (const char *p = address + 5; *p; p++) {
        if (strchr(plain, *p))
            *out++ = *p;
        else
            out += sprintf(out, "%%%02X", (unsigned char)*p);
    }
    *out = '\0';
    return target;
}

int mu_rpc_address_port(const char *address, char *host_out)
{
    const char *colon = strrchr(address, ':');
    if (!colon || colon == address) return -1;
    const char *begin = address, *end = colon;
    if (*begin == '[') {
        if (end[-1] != ']') return -1;
        begin++, end--;
    } else if (memchr(begin, ':', (size_t)(end - begin)) || memchr(begin, '/', (size_t)(end - begin))) {
        return -1;
    }
    char *rest;
    unsigned long port = strtoul(colon + 1, &rest, 10);
    if (end <= begin || !isdigit((unsigned char)colon[1]) || *rest || port > 65535) return -1;
    if (host_out) sprintf(host_out, "%.*s", (int)(end - begin), begin);
    return (int)port;
}

/* ---- messages ---- */

/* gRPC calls back with a packed message on whatever thread is done with it. An atomic of ours orders the two, for those who cannot
 * see gRPC's (tests/tsan/suppressions.txt). */
static atomic_uint handed_over;

static void packed_free(void *packed)
{
    (void)atomic_load_explicit(&handed_over, memory_order_acquire);
    mu_free(packed);
}

enum mu_status mu_rpc_pack(const ProtobufCMessage *msg, grpc_byte_buffer **buffer_out, size_t *bytes_out)
{
    size_t bytes = protobuf_c_message_get_packed_size(msg);
    if (bytes > INT_MAX) return MU_ELIMIT;
    uint8_t *packed = mu_malloc(bytes ? bytes : 1); /* gRPC's own slices end the process where there is no memory */
    if (!packed) return MU_ENOMEM;
    protobuf_c_message_pack(msg, packed);
    enum mu_status st = mu_proto_check(msg->descriptor, packed, bytes, NULL);
    if (st != MU_OK) {
        mu_free(packed);
        return st;
    }
    atomic_fetch_add_explicit(&handed_over, 1, memory_order_release);
    grpc_slice slice = grpc_slice_new(packed, bytes, packed_free);
    *buffer_out = grpc_raw_byte_buffer_create(&slice, 1);
    *bytes_out = bytes;
    grpc_slice_unref(slice);
    return MU_OK;
}

enum mu_status mu_rpc_unpack_buffer(const ProtobufCMessageDescriptor *type, grpc_byte_buffer *buffer, size_t max_bytes,
                                    ProtobufCMessage **msg_out, struct mu_err *err)
{
    size_t bytes = grpc_byte_buffer_length(buffer);
    if (bytes > max_bytes)
        return mu_fail(err, MU_ELIMIT, "%s: a message of %zu bytes, the limit is %zu", type->name, bytes, max_bytes);
    grpc_byte_buffer_reader reader;
    if (!grpc_byte_buffer_reader_init(&reader, buffer))
        return mu_fail(err, MU_EFORMAT, "%s: unreadable message", type->name);
    grpc_slice whole = grpc_byte_buffer_reader_readall(&reader);
    grpc_byte_buffer_reader_destroy(&reader);
    enum mu_status st = mu_proto_unpack(type, GRPC_SLICE_START_PTR(whole), GRPC_SLICE_LENGTH(whole), 0, msg_out, err);
    grpc_slice_unref(whole);
    return st;
}

ProtobufCMessage *mu_rpc_unpack(const ProtobufCMessageDescriptor *type, const void *data, size_t len,
                                size_t budget_bytes)
{
    ProtobufCMessage *msg;
    return mu_proto_unpack(type, data, len, budget_bytes, &msg, NULL) == MU_OK ? msg : NULL;
}

void mu_rpc_message_free(ProtobufCMessage *msg)
{
    mu_proto_free(msg);
}

void mu_rpc_nobody(const char *who, const char *command, const char *address, struct mu_err *err)
{
    char said[MU_ERR_TEXT];
    snprintf(said, sizeof said, "%.200s", err->text);
    mu_fail(err, err->code, "no %s answers at %s: start one with '%s --listen %s' (%s)", who, address, command, address,
            said);
}

/* What a queued message costs beside its own bytes: without it empty messages could be queued without end. */
enum { ITEM_BYTES = 128 };

enum mu_status mu_rpc_outbox_push(struct mu_rpc_outbox *o, grpc_byte_buffer *buffer, size_t bytes)
{
    bytes += ITEM_BYTES;
    if (o->head && (bytes > o->max_bytes || o->bytes > o->max_bytes - bytes)) return MU_EAGAIN;
    struct mu_rpc_item *item = mu_malloc(sizeof *item);
    if (!item) return MU_ENOMEM;
    *item = (struct mu_rpc_item){.buffer = buffer, .bytes = bytes};
    if (o->head)
        o->tail->next = item;
    else
        o->head = item;
    o->tail = item;
    o->bytes += bytes;
    if (o->total) atomic_fetch_add(o->total, bytes);
    return MU_OK;
}

void mu_rpc_outbox_pop(struct mu_rpc_outbox *o)
{
    struct mu_rpc_item *item = o->head;
    o->head = item->next;
    o->bytes -= item->bytes;
    if (o->total) atomic_fetch_sub(o->total, item->bytes);
    grpc_byte_buffer_destroy(item->buffer);
    mu_free(item);
}

void mu_rpc_outbox_clear(struct mu_rpc_outbox *o)
{
    while (o->head) mu_rpc_outbox_pop(o);
}
