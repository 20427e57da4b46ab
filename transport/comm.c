/* What callers use of a transport, built on its few operations: waits with deadlines, and the exchanges.
 *
 * Nothing here is collective in the sense of MPI: every exchange is a set of sends and receives started together and
 * completed in one loop, so that a silent peer ends in an error that names it, not in a hang.
 *
 * A gather over machines A (ranks 0, 1) and B (ranks 2, 3), what rank 2 and rank 3 contribute:
 *
 *       B: 2 ───► 0 ──► 1           the link carries each part once, not once for each rank of A; what is handed on goes
 *       B: 3 ───► 1 ──► 0           through A's memory
 *
 * Who fetches is spread evenly over a machine's ranks. A pair of ranks has its own parts first and then, at the end of
 * the gather, what is handed on, so messages meet their receives in order also where two gathers are under way. */
#include "transport/comm.h"

#include <sched.h>
#include <stdbool.h>

#include "base/clock.h"
#include "base/fault.h"
#include "base/pause.h"

enum { SPIN_PAUSES = 100 };
/* So much longer than for a rank far away is waited for what is handed on from it: who fetches says first who is missing. */
enum { HANDED_ON_MS = 1000 };

static enum mu_status peer_check(const struct mu_comm *c, int peer, struct mu_err *err)
{
    if (peer >= 0 && peer < c->n_rank && peer != c->rank) return MU_OK;
    return mu_fail(err, MU_EINVAL, "rank %d cannot exchange with rank %d: there are ranks 0 … %d", c->rank, peer,
                   c->n_rank - 1);
}

enum mu_status mu_comm_isend(struct mu_comm *c, int to, const void *buf, size_t len, struct mu_comm_op **op_out,
                             struct mu_err *err)
{
    enum mu_status st = peer_check(c, to, err);
    if (st != MU_OK) return st;
    if (mu_fault_hit("comm.send")) return mu_fail(err, MU_EPEER, "rank %d: the fault point comm.send was hit", c->rank);
    return c->ops->isend(c, to, buf, len, op_out, err);
}

enum mu_status mu_comm_irecv(struct mu_comm *c, int from, void *buf, size_t len, struct mu_comm_op **op_out,
                             struct mu_err *err)
{
    enum mu_status st = peer_check(c, from, err);
    if (st != MU_OK) return st;
    if (mu_fault_hit("comm.recv")) return mu_fail(err, MU_EPEER, "rank %d: the fault point comm.recv was hit", c->rank);
    return c->ops->irecv(c, from, buf, len, op_out, err);
}

void mu_comm_drop(struct mu_comm *c, struct mu_comm_op *op)
{
    if (op) c->ops->drop(c, op);
}

static void record_waiting(struct mu_comm *c, int peer)
{
    if (c->record) atomic_store_explicit(&c->record->waiting_on, (int32_t)peer, memory_order_relaxed);
}

/* As mu_comm_wait, with the caller's deadline; frees op in every case. */
static enum mu_status wait_until(struct mu_comm *c, struct mu_comm_op *op, int peer, int64_t deadline,
                                 struct mu_err *err)
{
    for (int i = 0; i < SPIN_PAUSES; i++) {
        int done = c->ops->test(c, op, err);
        if (done > 0) return MU_OK;
        if (done < 0) return err ? err->code : MU_EPEER;
        mu_cpu_pause();
    }
    enum mu_status st = MU_OK;
    record_waiting(c, peer);
    for (;;) {
        int done = c->ops->test(c, op, err);
        if (done > 0) break;
        if (done < 0) {
            st = err ? err->code : MU_EPEER;
            break;
        }
        if (mu_now_ns() >= deadline) {
            c->ops->drop(c, op);
            st = mu_fail(err, MU_ETIMEOUT, "rank %d waited %d ms for rank %d, which did not answer", c->rank,
                         c->timeout_ms, peer);
            if (err) err->rank = peer;
            break;
        }
        sched_yield();
    }
    record_waiting(c, MU_RECORD_NOBODY);
    return st;
}

static int64_t deadline_of(const struct mu_comm *c)
{
    return mu_now_ns() + c->timeout_ms * MU_MS;
}

enum mu_status mu_comm_wait(struct mu_comm *c, struct mu_comm_op *op, int peer, struct mu_err *err)
{
    return wait_until(c, op, peer, deadline_of(c), err);
}

enum mu_status mu_comm_send(struct mu_comm *c, int to, const void *buf, size_t len, struct mu_err *err)
{
    struct mu_comm_op *op;
    enum mu_status st = mu_comm_isend(c, to, buf, len, &op, err);
    return st != MU_OK ? st : mu_comm_wait(c, op, to, err);
}

enum mu_status mu_comm_recv(struct mu_comm *c, int from, void *buf, size_t len, struct mu_err *err)
{
    struct mu_comm_op *op;
    enum mu_status st = mu_comm_irecv(c, from, buf, len, &op, err);
    return st != MU_OK ? st : mu_comm_wait(c, op, from, err);
}

/* After the first failure the rest is dropped, so that no buffer is touched after we return. */
static enum mu_status batch_wait(struct mu_comm *c, struct mu_comm_batch *b, int64_t deadline, enum mu_status st,
                                 struct mu_err *err)
{
    for (int i = 0; i < b->n; i++) {
        if (!b->op[i]) continue;
        if (st == MU_OK)
            st = wait_until(c, b->op[i], b->peer[i], deadline, err);
        else
            c->ops->drop(c, b->op[i]);
    }
    b->n = 0;
    return st;
}

static void batch_add(struct mu_comm_batch *b, struct mu_comm_op *op, int peer)
{
    b->op[b->n] = op;
    b->peer[b->n++] = peer;
}

static enum mu_status batch_send(struct mu_comm *c, struct mu_comm_batch *b, int to, const void *buf, size_t len,
                                 struct mu_err *err)
{
    struct mu_comm_op *op;
    enum mu_status st = mu_comm_isend(c, to, buf, len, &op, err);
    if (st == MU_OK) batch_add(b, op, to);
    return st;
}

static enum mu_status batch_recv(struct mu_comm *c, struct mu_comm_batch *b, int from, void *buf, size_t len,
                                 struct mu_err *err)
{
    struct mu_comm_op *op;
    enum mu_status st = mu_comm_irecv(c, from, buf, len, &op, err);
    if (st == MU_OK) batch_add(b, op, from);
    return st;
}

void mu_comm_batch_drop(struct mu_comm *c, struct mu_comm_batch *b)
{
    for (int i = 0; i < b->n; i++)
        if (b->op[i]) c->ops->drop(c, b->op[i]);
    b->n = 0;
}

/* ---- gather ---- */

static int node_of(const struct mu_comm *c, int rank)
{
    return c->node_of ? c->node_of[rank] : 0;
}

/* Of the ranks that are not on a node, the k-th one's part is fetched by the node's member k mod how many it has. Of the
 * parts of rank `of`: who fetches it for each node, rank_out[node]; nodes without ranks here stay as they are. */
static void fetchers_of(const struct mu_comm *c, int first, int n, int of, int *rank_out)
{
    if (!c->node_of) return;
    int n_member[MU_COMM_MAX_RANKS] = {0}, n_before[MU_COMM_MAX_RANKS] = {0}, seen[MU_COMM_MAX_RANKS] = {0};
    for (int i = first; i < first + n; i++) {
        n_member[node_of(c, i)]++;
        n_before[node_of(c, i)] += i < of;
    }
    for (int i = first; i < first + n; i++) {
        int node = node_of(c, i), k = of - first - n_before[node];
        if (seen[node]++ == k % n_member[node]) rank_out[node] = i;
    }
}

/* Who fetches each rank's part for my machine; itself where it is on it. */
static void fetchers_here(const struct mu_comm *c, int first, int n, int *rank_out)
{
    int member[MU_COMM_MAX_RANKS], n_member = 0, k = 0;
    for (int i = first; i < first + n; i++)
        if (node_of(c, i) == node_of(c, c->rank)) member[n_member++] = i;
    for (int i = 0; i < n; i++)
        rank_out[i] = node_of(c, first + i) == node_of(c, c->rank) ? first + i : member[k++ % n_member];
}

static enum mu_status gather_receive(struct mu_comm *c, struct mu_comm_batch *b, char *buf, const size_t *off,
                                     const size_t *len, struct mu_err *err)
{
    int via[MU_COMM_MAX_RANKS];
    fetchers_here(c, b->first, b->n_rank, via);
    for (int i = 0; i < b->n_rank; i++) {
        int from = b->first + i;
        if (from == c->rank || len[i] == 0) continue;
        bool remote = via[i] != from;
        if (remote) b->via[b->n_via++] = (struct mu_comm_via){buf + off[i], len[i], via[i], b->n};
        if (remote && via[i] != c->rank) continue;
        enum mu_status st = batch_recv(c, b, from, buf + off[i], len[i], err);
        if (st != MU_OK) return st;
    }
    return MU_OK;
}

/* Each rank starts with its neighbour, so that not all send to the first at once. */
static enum mu_status gather_send(struct mu_comm *c, struct mu_comm_batch *b, const char *part, size_t len,
                                  struct mu_err *err)
{
    int me = c->rank - b->first, via[MU_COMM_MAX_RANKS];
    fetchers_of(c, b->first, b->n_rank, c->rank, via);
    for (int k = 1; k < b->n_rank; k++) {
        int to = b->first + (me + k) % b->n_rank, node = node_of(c, to);
        if (node != node_of(c, c->rank) && via[node] != to) continue;
        enum mu_status st = batch_send(c, b, to, part, len, err);
        if (st != MU_OK) return st;
    }
    return MU_OK;
}

enum mu_status mu_comm_gather_begin(struct mu_comm *c, int first, int n, void *buf, const size_t *off,
                                    const size_t *len, struct mu_comm_batch *b, struct mu_err *err)
{
    int me = c->rank - first;
    b->n = b->n_via = 0;
    b->first = first;
    b->n_rank = n;
    if (n < 1 || c->n_rank > MU_COMM_MAX_RANKS || me < 0 || me >= n || first < 0 || first + n > c->n_rank)
        return mu_fail(err, MU_EINVAL, "rank %d cannot gather among ranks %d … %d of %d", c->rank, first, first + n - 1,
                       c->n_rank);
    if (mu_fault_hit("comm.allgather"))
        return mu_fail(err, MU_EPEER, "rank %d: the fault point comm.allgather was hit", c->rank);
    enum mu_status st = gather_receive(c, b, buf, off, len, err);
    if (st == MU_OK && len[me] > 0) st = gather_send(c, b, (const char *)buf + off[me], len[me], err);
    if (st != MU_OK) mu_comm_batch_drop(c, b);
    return st;
}

/* What others fetch for this rank, and what it fetches for them. */
static enum mu_status gather_hand_on(struct mu_comm *c, struct mu_comm_batch *b, int64_t deadline, struct mu_err *err)
{
    enum mu_status st;
    for (int i = 0; i < b->n_via; i++) {
        struct mu_comm_via *v = &b->via[i];
        if (v->rank == c->rank) continue;
        st = batch_recv(c, b, v->rank, v->part, v->len, err);
        if (st != MU_OK) return st;
    }
    for (int i = 0; i < b->n_via; i++) {
        struct mu_comm_via *v = &b->via[i];
        if (v->rank != c->rank) continue;
        struct mu_comm_op *op = b->op[v->op];
        b->op[v->op] = NULL; /* freed whatever comes */
        st = wait_until(c, op, b->peer[v->op], deadline, err);
        for (int to = b->first; to < b->first + b->n_rank && st == MU_OK; to++)
            if (to != c->rank && node_of(c, to) == node_of(c, c->rank)) st = batch_send(c, b, to, v->part, v->len, err);
        if (st != MU_OK) return st;
    }
    return MU_OK;
}

enum mu_status mu_comm_gather_end(struct mu_comm *c, struct mu_comm_batch *b, struct mu_err *err)
{
    int64_t deadline = deadline_of(c);
    if (!b->n_via) return batch_wait(c, b, deadline, MU_OK, err);
    enum mu_status st = gather_hand_on(c, b, deadline, err);
    return batch_wait(c, b, deadline + HANDED_ON_MS * MU_MS, st, err);
}

enum mu_status mu_comm_gather(struct mu_comm *c, int first, int n, void *buf, const size_t *off, const size_t *len,
                              struct mu_err *err)
{
    struct mu_comm_batch b;
    enum mu_status st = mu_comm_gather_begin(c, first, n, buf, off, len, &b, err);
    return st != MU_OK ? st : mu_comm_gather_end(c, &b, err);
}

enum mu_status mu_comm_broadcast(struct mu_comm *c, int root, void *buf, size_t len, struct mu_err *err)
{
    if (root < 0 || root >= c->n_rank || c->n_rank > MU_COMM_MAX_RANKS)
        return mu_fail(err, MU_EINVAL, "rank %d cannot broadcast from rank %d of %d", c->rank, root, c->n_rank);
    if (len == 0) return MU_OK;
    if (c->rank != root) return mu_comm_recv(c, root, buf, len, err);
    struct mu_comm_batch b;
    b.n = 0;
    enum mu_status st = MU_OK;
    for (int to = 0; to < c->n_rank && st == MU_OK; to++)
        if (to != root) st = batch_send(c, &b, to, buf, len, err);
    return batch_wait(c, &b, deadline_of(c), st, err);
}

enum mu_status mu_comm_barrier(struct mu_comm *c, struct mu_err *err)
{
    char flags[MU_COMM_MAX_RANKS] = {0};
    size_t off[MU_COMM_MAX_RANKS], len[MU_COMM_MAX_RANKS];
    if (c->n_rank > MU_COMM_MAX_RANKS)
        return mu_fail(err, MU_ELIMIT, "%d ranks, expected at most %d", c->n_rank, MU_COMM_MAX_RANKS);
    for (int i = 0; i < c->n_rank; i++) {
        off[i] = (size_t)i;
        len[i] = 1;
    }
    return mu_comm_gather(c, 0, c->n_rank, flags, off, len, err);
}

void mu_comm_close(struct mu_comm *c)
{
    if (c) c->ops->close(c);
}
