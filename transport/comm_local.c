/* Ranks that are threads of one process.
 *
 * One lane per ordered pair of ranks carries pointers to the sender's operations, in order; the receiver copies
 * straight from the sender's buffer, once:
 *
 *     sender  ── POSTED ──▶ lane ──▶ receiver: POSTED → COPYING → (memcpy) → DONE or MISMATCH ──▶ sender's test sees it
 *        └── gives up: POSTED → DROPPED; the operation stays allocated until the hub goes, since the lane names it
 *
 * A rank that closes marks itself closed: who waits for it fails at once instead of at the deadline. A sender that
 * gives up while the receiver copies waits for the copy, so a buffer is never read after its owner has it back.
 * Receives match in the order they were posted. Rejected: copying through a shared ring (two copies), and a lock a
 * lane (four exchanges a layer would take thousands).
 *
 * Owner: struct hub, counted by its comms; each comm belongs to one thread. */
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include <sched.h>

#include "base/alloc.h"
#include "transport/comm.h"

enum { LANE_CAP = 256, DEFAULT_TIMEOUT_MS = 30000 };

enum op_state { POSTED, COPYING, DONE, MISMATCH, DROPPED };

struct mu_comm_op {
    atomic_int state;
    bool is_send;
    int peer;
    const void *src; /* of a send */
    void *dst;       /* of a receive */
    size_t len;
    struct mu_comm_op *next; /* free list, receive queue, or the hub's list of dropped sends */
};

struct lane {                      /* one writer: `from`; one reader: `to` */
    _Alignas(64) atomic_uint head; /* sends taken */
    _Alignas(64) atomic_uint tail; /* sends posted */
    struct mu_comm_op *slot[LANE_CAP];
};

struct hub {
    int n_rank;
    atomic_int n_open;
    _Atomic(struct mu_comm_op *) dropped;
    atomic_bool *closed; /* [n_rank] */
    struct lane *lane;   /* [from * n_rank + to] */
};

struct local {
    struct mu_comm head;
    struct hub *hub;
    struct mu_comm_op *free_ops;
    struct {
        struct mu_comm_op *first, *last;
    } * receives; /* [n_rank]: posted and not complete, oldest first */
};

static struct local *local_of(struct mu_comm *c)
{
    return (struct local *)c;
}

static struct mu_comm_op *op_take(struct local *l)
{
    struct mu_comm_op *op = l->free_ops;
    if (op)
        l->free_ops = op->next;
    else
        op = mu_malloc(sizeof *op);
    if (op) memset(op, 0, sizeof *op);
    return op;
}

static void op_give(struct local *l, struct mu_comm_op *op)
{
    op->next = l->free_ops;
    l->free_ops = op;
}

static enum mu_status local_isend(struct mu_comm *c, int to, const void *buf, size_t len, struct mu_comm_op **op_out,
                                  struct mu_err *err)
{
    struct local *l = local_of(c);
    struct lane *lane = &l->hub->lane[c->rank * l->hub->n_rank + to];
    unsigned tail = atomic_load_explicit(&lane->tail, memory_order_relaxed);
    if (tail - atomic_load_explicit(&lane->head, memory_order_acquire) == LANE_CAP)
        return mu_fail(err, MU_ELIMIT, "rank %d has %d messages for rank %d in flight, the most that are allowed",
                       c->rank, LANE_CAP, to);
    struct mu_comm_op *op = op_take(l);
    if (!op) return mu_fail(err, MU_ENOMEM, "no memory for a message to rank %d", to);
    op->is_send = true;
    op->peer = to;
    op->src = buf;
    op->len = len;
    atomic_store_explicit(&op->state, POSTED, memory_order_relaxed);
    lane->slot[tail % LANE_CAP] = op;
    atomic_store_explicit(&lane->tail, tail + 1, memory_order_release);
    *op_out = op;
    return MU_OK;
}

static enum mu_status local_irecv(struct mu_comm *c, int from, void *buf, size_t len, struct mu_comm_op **op_out,
                                  struct mu_err *err)
{
    struct local *l = local_of(c);
    struct mu_comm_op *op = op_take(l);
    if (!op) return mu_fail(err, MU_ENOMEM, "no memory for a message from rank %d", from);
    op->peer = from;
    op->dst = buf;
    op->len = len;
    op->next = NULL;
    if (l->receives[from].last)
        l->receives[from].last->next = op;
    else
        l->receives[from].first = op;
    l->receives[from].last = op;
    *op_out = op;
    return MU_OK;
}

static void receives_pop(struct local *l, int from)
{
    struct mu_comm_op *op = l->receives[from].first;
    l->receives[from].first = op->next;
    if (!op->next) l->receives[from].last = NULL;
}

/* Completes the oldest receive from that rank, if its message is there. */
static bool receive_one(struct local *l, int from)
{
    struct mu_comm_op *op = l->receives[from].first;
    struct lane *lane = &l->hub->lane[from * l->hub->n_rank + l->head.rank];
    unsigned head = atomic_load_explicit(&lane->head, memory_order_relaxed);
    if (!op || atomic_load_explicit(&lane->tail, memory_order_acquire) == head) return false;
    struct mu_comm_op *sent = lane->slot[head % LANE_CAP];
    int expected = POSTED, result = DONE;
    receives_pop(l, from);
    if (!atomic_compare_exchange_strong(&sent->state, &expected, COPYING)) {
        result = DROPPED;
    } else {
        if (sent->len == op->len)
            memcpy(op->dst, sent->src, op->len);
        else
            result = MISMATCH;
        atomic_store_explicit(&sent->state, result, memory_order_release); /* sent is no longer ours */
    }
    atomic_store_explicit(&lane->head, head + 1, memory_order_release);
    atomic_store_explicit(&op->state, result, memory_order_relaxed);
    return true;
}

static int op_failed(struct local *l, struct mu_comm_op *op, enum mu_status code, const char *what, struct mu_err *err)
{
    mu_fail(err, code, "rank %d %s rank %d: %s", l->head.rank, op->is_send ? "sends to" : "receives from", op->peer,
            what);
    if (err) err->rank = op->peer;
    return -1;
}

static int send_test(struct local *l, struct mu_comm_op *op, struct mu_err *err)
{
    bool closed = atomic_load(&l->hub->closed[op->peer]); /* before looking: what it took before closing counts */
    int state = atomic_load_explicit(&op->state, memory_order_acquire), result = 1;
    if (state == POSTED && closed) {
        l->head.ops->drop(&l->head, op);
        struct mu_comm_op said = {.is_send = true, .peer = op->peer};
        return op_failed(l, &said, MU_EPEER, "it has closed", err);
    }
    if (state == POSTED || state == COPYING) return 0;
    if (state == MISMATCH)
        result = op_failed(l, op, MU_EPROTO, "the two sides disagree about the message's length", err);
    op_give(l, op);
    return result;
}

static int recv_test(struct local *l, struct mu_comm_op *op, struct mu_err *err)
{
    bool closed = atomic_load(&l->hub->closed[op->peer]); /* before looking: what it sent before closing counts */
    while (op->state == POSTED && receive_one(l, op->peer)) {}
    int state = op->state, result = 1;
    if (state == POSTED && !closed) return 0;
    if (state == MISMATCH)
        result = op_failed(l, op, MU_EPROTO, "the two sides disagree about the message's length", err);
    else if (state != DONE)
        result = op_failed(l, op, MU_EPEER, "it has closed", err);
    if (state == POSTED)
        l->head.ops->drop(&l->head, op);
    else
        op_give(l, op);
    return result;
}

static int local_test(struct mu_comm *c, struct mu_comm_op *op, struct mu_err *err)
{
    return op->is_send ? send_test(local_of(c), op, err) : recv_test(local_of(c), op, err);
}

static void local_drop(struct mu_comm *c, struct mu_comm_op *op)
{
    struct local *l = local_of(c);
    if (!op->is_send) {
        struct mu_comm_op **at = &l->receives[op->peer].first, *last = NULL;
        for (; *at && *at != op; at = &(*at)->next) last = *at;
        if (*at) {
            *at = op->next;
            if (!op->next) l->receives[op->peer].last = last;
        }
        op_give(l, op);
        return;
    }
    int expected = POSTED;
    if (atomic_compare_exchange_strong(&op->state, &expected, DROPPED)) {
        op->next = atomic_load(&l->hub->dropped);
        while (!atomic_compare_exchange_weak(&l->hub->dropped, &op->next, op)) {}
        return;
    }
    while (atomic_load_explicit(&op->state, memory_order_acquire) == COPYING) sched_yield();
    op_give(l, op);
}

/* Receives that wait are served by the sender's own memory, so there is nothing to push along. */
static void local_progress(struct mu_comm *c)
{
    (void)c;
}

static void ops_free(struct mu_comm_op *op)
{
    while (op) {
        struct mu_comm_op *next = op->next;
        mu_free(op);
        op = next;
    }
}

static void hub_release(struct hub *hub)
{
    if (!hub || atomic_fetch_sub(&hub->n_open, 1) > 1) return;
    ops_free(atomic_load(&hub->dropped));
    mu_free(hub->lane);
    mu_free(hub->closed);
    mu_free(hub);
}

static void local_close(struct mu_comm *c)
{
    struct local *l = local_of(c);
    if (l->hub) atomic_store(&l->hub->closed[c->rank], true);
    if (l->receives)
        for (int from = 0; from < c->n_rank; from++) ops_free(l->receives[from].first);
    ops_free(l->free_ops);
    mu_free(l->receives);
    hub_release(l->hub);
    mu_free(l);
}

static const struct mu_comm_ops local_ops = {
    .name = "local",
    .isend = local_isend,
    .irecv = local_irecv,
    .test = local_test,
    .drop = local_drop,
    .progress = local_progress,
    .close = local_close,
};

static struct hub *hub_create(int n_rank)
{
    struct hub *hub = mu_calloc(1, sizeof *hub);
    size_t bytes, n_lane = (size_t)n_rank * (size_t)n_rank;
    if (!hub) return NULL;
    hub->n_rank = n_rank;
    atomic_init(&hub->n_open, 1);
    hub->closed = mu_calloc((size_t)n_rank, sizeof *hub->closed);
    if (mu_mul_size(n_lane, sizeof *hub->lane, &bytes)) hub->lane = mu_aligned_alloc(64, bytes);
    if (!hub->closed || !hub->lane) {
        hub_release(hub);
        return NULL;
    }
    memset(hub->lane, 0, bytes);
    return hub;
}

enum mu_status mu_comm_local_open(int n_rank, struct mu_comm **comms_out, struct mu_err *err)
{
    if (n_rank < 1 || n_rank > MU_COMM_MAX_RANKS)
        return mu_fail(err, MU_EINVAL, "%d ranks in one process, expected 1 … %d", n_rank, MU_COMM_MAX_RANKS);
    struct local *made[MU_COMM_MAX_RANKS] = {NULL};
    struct hub *hub = hub_create(n_rank);
    bool ok = hub != NULL;
    for (int i = 0; i < n_rank && ok; i++) {
        struct local *l = made[i] = mu_calloc(1, sizeof *l);
        ok = l != NULL;
        if (!ok) break;
        l->head = (struct mu_comm){.ops = &local_ops, .rank = i, .n_rank = n_rank, .timeout_ms = DEFAULT_TIMEOUT_MS};
        l->hub = hub;
        atomic_fetch_add(&hub->n_open, 1);
        l->receives = mu_calloc((size_t)n_rank, sizeof *l->receives);
        ok = l->receives != NULL;
    }
    if (!ok)
        for (int i = 0; i < n_rank; i++) mu_comm_close(made[i] ? &made[i]->head : NULL);
    hub_release(hub); /* the comms hold it now */
    if (!ok) return mu_fail(err, MU_ENOMEM, "no memory for %d ranks in one process", n_rank);
    for (int i = 0; i < n_rank; i++) comms_out[i] = &made[i]->head;
    return MU_OK;
}
