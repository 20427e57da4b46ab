/* The supervising thread.
 *
 * Epochs. Of each gang id the newest epoch seen is remembered for the life of the worker; a start with that epoch or
 * an older one is stale: it comes from a coordinator that does not know what happened since. A newer one ends the
 * gang of the older epoch first.
 *
 * The thread blocks in nothing longer than starting a gang (its model file is opened) and ending one (2 s at most).
 * Time that passes meanwhile is not held against other gangs: see watch.h. */
#include "worker/supervisor.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/queue.h"

enum { QUEUE_ITEMS = 64, MAX_GANGS = 8, MAX_NAMES = 256, TICK_MS = 100, KEPT_LOOK_MS = 1000 };

struct item {
    struct mu_rpc_call *call; /* a reference */
    Muster__Internal__V1__StartGangRequest *start;
};

struct name { /* the newest epoch of a gang id */
    char gang[MU_GANG_NAME_MAX + 1];
    uint64_t epoch;
    struct mu_kept kept;
};

struct mu_supervisor {
    const struct mu_worker_gang_place *place;
    struct mu_queue *queue;
    pthread_t thread;
    bool started;
    /* the thread's own: */
    struct mu_worker_gang *gang[MAX_GANGS];
    struct name name[MAX_NAMES];
    int n_name;
};

/* ---- any thread ---- */

static ProtobufCMessage *message_copy(const ProtobufCMessage *m)
{
    size_t len = protobuf_c_message_get_packed_size(m);
    uint8_t *data = mu_malloc(len ? len : 1);
    if (!data) return NULL;
    protobuf_c_message_pack(m, data);
    ProtobufCMessage *copy = protobuf_c_message_unpack(m->descriptor, NULL, len, data);
    explicit_bzero(data, len); /* the secret was in it */
    mu_free(data);
    return copy;
}

static void item_free(void *p)
{
    struct item *it = p;
    if (it->start) muster__internal__v1__start_gang_request__free_unpacked(it->start, NULL);
    if (it->call) mu_rpc_call_release(it->call);
    mu_free(it);
}

void mu_supervisor_start_gang(struct mu_supervisor *s, struct mu_rpc_call *call,
                              const Muster__Internal__V1__StartGangRequest *req)
{
    struct item *it = mu_calloc(1, sizeof *it);
    if (it) {
        it->call = mu_rpc_call_retain(call);
        it->start = (Muster__Internal__V1__StartGangRequest *)message_copy(&req->base);
    }
    if (it && it->start && mu_queue_push(s->queue, it) == MU_OK) return;
    if (it) item_free(it);
    mu_rpc_call_finish(call, MU_RPC_RESOURCE_EXHAUSTED, "the worker is busy or out of memory; try again");
}

/* ---- the thread ---- */

static struct name *name_of(struct mu_supervisor *s, const char *gang, bool add)
{
    for (int i = 0; i < s->n_name; i++)
        if (strcmp(s->name[i].gang, gang) == 0) return &s->name[i];
    if (!add || s->n_name == MAX_NAMES || strlen(gang) > MU_GANG_NAME_MAX) return NULL;
    struct name *n = &s->name[s->n_name++];
    strcpy(n->gang, gang);
    n->epoch = 0;
    return n;
}

/* Its place in s->gang, or -1. */
static int gang_find(const struct mu_supervisor *s, const char *gang)
{
    for (int i = 0; i < MAX_GANGS; i++)
        if (s->gang[i] && strcmp(s->gang[i]->req->gang, gang) == 0) return i;
    return -1;
}

/* The gang is over; its weights wait for the next launch. */
static void gang_forget(struct mu_supervisor *s, int i)
{
    struct mu_kept *kept = s->gang[i]->kept;
    bool forget = s->gang[i]->forget;
    mu_worker_gang_destroy(s->gang[i]);
    s->gang[i] = NULL;
    kept->idle_ns = mu_now_ns();
    if (forget) mu_kept_drop(kept);
}

static void gang_end(struct mu_supervisor *s, int i, bool forget, const char *reason)
{
    s->gang[i]->forget = forget;
    mu_worker_gang_end(s->gang[i], -1, false, reason);
    gang_forget(s, i);
}

static bool kept_waits(const struct mu_kept *k)
{
    return k->n_fd && k->idle_ns;
}

static void start_do(struct mu_supervisor *s, struct item *it)
{
    Muster__Internal__V1__StartGangRequest *req = it->start;
    unsigned long long epoch = req->epoch;
    struct mu_err err = MU_ERR_INIT;
    struct name *name = req->gang[0] ? name_of(s, req->gang, true) : NULL;
    if (!name) {
        mu_rpc_call_finish(it->call, MU_RPC_INVALID_ARGUMENT,
                           "a gang's name has 1 to %d bytes, and a worker knows at most %d", (int)MU_GANG_NAME_MAX,
                           (int)MAX_NAMES);
        return;
    }
    if (epoch <= name->epoch) {
        mu_rpc_call_finish(it->call, MU_RPC_FAILED_PRECONDITION,
                           "gang '%s': epoch %llu is stale, this worker has seen %llu", req->gang, epoch,
                           (unsigned long long)name->epoch);
        return;
    }
    name->epoch = epoch;
    int i = gang_find(s, req->gang);
    if (i >= 0) gang_end(s, i, false, "a newer epoch of this gang starts");
    for (i = 0; i < MAX_GANGS && s->gang[i]; i++) {}
    if (i == MAX_GANGS) {
        mu_rpc_call_finish(it->call, MU_RPC_RESOURCE_EXHAUSTED, "this worker runs %d gangs already", (int)MAX_GANGS);
        return;
    }
    if (mu_rpc_call_cancelled(it->call)) return; /* nobody is there any more */
    it->start = NULL;                            /* the gang's now */
    if (mu_worker_gang_start(s->place, mu_rpc_call_retain(it->call), req, &name->kept, &s->gang[i], &err) != MU_OK) {
        name->kept.idle_ns = mu_now_ns();
        if (mu_worker_gang_error_permanent(err.code)) mu_kept_drop(&name->kept);
        mu_log_err(MU_LOG_WARN, "worker", &err, "gang epoch %llu cannot start", epoch);
        mu_worker_gang_died(it->call, epoch, -1, mu_worker_gang_error_permanent(err.code), err.text);
    }
}

static void items_do(struct mu_supervisor *s)
{
    struct item *it;
    while ((it = mu_queue_pop(s->queue, 0)) != NULL) {
        start_do(s, it);
        item_free(it);
    }
}

static void wait_some(struct mu_supervisor *s)
{
    struct pollfd p[1 + MAX_GANGS * MU_GANG_POLL_FDS];
    int n = 0, busy = 0, waiting = 0;
    p[n++] = (struct pollfd){.fd = mu_queue_wake_fd(s->queue), .events = POLLIN};
    for (int i = 0; i < MAX_GANGS; i++)
        if (s->gang[i]) {
            n += mu_worker_gang_poll_set(s->gang[i], p + n);
            busy = 1;
        }
    for (int i = 0; i < s->n_name; i++) waiting |= kept_waits(&s->name[i].kept);
    /* without gangs only the queue can wake us, and its end does */
    poll(p, (nfds_t)n, busy ? TICK_MS : waiting ? KEPT_LOOK_MS : -1);
}

static void *supervisor_main(void *arg)
{
    struct mu_supervisor *s = arg;
    while (!mu_queue_closed(s->queue)) {
        wait_some(s);
        items_do(s);
        for (int i = 0; i < MAX_GANGS; i++)
            if (s->gang[i] && mu_worker_gang_tick(s->gang[i])) gang_forget(s, i);
        for (int i = 0; i < s->n_name; i++)
            if (kept_waits(&s->name[i].kept) && mu_now_ns() - s->name[i].kept.idle_ns > MU_KEPT_IDLE_MS * MU_MS)
                mu_kept_drop(&s->name[i].kept);
    }
    for (int i = 0; i < MAX_GANGS; i++)
        if (s->gang[i]) gang_end(s, i, true, "the worker is shutting down");
    for (int i = 0; i < s->n_name; i++) mu_kept_drop(&s->name[i].kept);
    return NULL;
}

enum mu_status mu_supervisor_start(const struct mu_worker_gang_place *place, struct mu_supervisor **s_out,
                                   struct mu_err *err)
{
    struct mu_supervisor *s = mu_calloc(1, sizeof *s);
    if (!s) return mu_fail(err, MU_ENOMEM, "out of memory for the supervisor");
    enum mu_status st;
    sigset_t all, before;
    s->place = place;
    MU_TRY(st, mu_queue_create(QUEUE_ITEMS, &s->queue, err), fail);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int e = pthread_create(&s->thread, NULL, supervisor_main, s);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (e) {
        st = mu_fail(err, MU_EAGAIN, "cannot start a thread: %s", strerror(e));
        goto fail;
    }
    s->started = true;
    *s_out = s;
    return MU_OK;
fail:
    mu_supervisor_destroy(s);
    return st;
}

void mu_supervisor_stop(struct mu_supervisor *s)
{
    if (!s || !s->started) return;
    mu_queue_close(s->queue);
    pthread_join(s->thread, NULL);
    s->started = false;
}

void mu_supervisor_destroy(struct mu_supervisor *s)
{
    if (!s) return;
    mu_supervisor_stop(s);
    mu_queue_destroy(s->queue, item_free);
    mu_free(s);
}
