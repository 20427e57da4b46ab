/* Moving bytes between the ranks of a gang: one vtable, two implementations.
 *
 *   local  ranks are threads of one process, memory is shared      (muster logits --split, tests)
 *   mpi    ranks are processes of one Open MPI job                 (the real thing)
 *
 * tests/transport/comm_fake.h is a third: local with faults.
 *
 * All sends and receives are non-blocking underneath and completed in one wait loop with a deadline; an error names the
 * rank that was waited for. Messages between a pair of ranks arrive in the order they were sent. Lengths must match
 * on both sides; a mismatch is MU_EPROTO.
 *
 * Threads: one thread per rank uses its comm (MPI stays on the thread that opened it). */
#ifndef MU_TRANSPORT_COMM_H
#define MU_TRANSPORT_COMM_H

#include <stddef.h>
#include <stdint.h>

#include "base/record.h"
#include "base/status.h"

struct mu_comm;
struct mu_comm_op; /* a send or receive in flight; owned by the comm */

struct mu_comm_ops {
    const char *name;
    /* Start; buf belongs to the operation until it is complete. */
    enum mu_status (*isend)(struct mu_comm *c, int to, const void *buf, size_t len, struct mu_comm_op **op_out,
                            struct mu_err *err);
    enum mu_status (*irecv)(struct mu_comm *c, int from, void *buf, size_t len, struct mu_comm_op **op_out,
                            struct mu_err *err);
    /* 1 done (op is freed), 0 not yet, -1 failed (op is freed, err filled). Makes progress. */
    int (*test)(struct mu_comm *c, struct mu_comm_op *op, struct mu_err *err);
    /* Gives up an operation that did not complete: op is freed and its buffer is the caller's again. Afterwards the
     * comm is good for nothing but close. */
    void (*drop)(struct mu_comm *c, struct mu_comm_op *op);
    void (*progress)(struct mu_comm *c); /* cheap */
    void (*close)(struct mu_comm *c);
};

struct mu_comm { /* the head of every implementation */
    const struct mu_comm_ops *ops;
    int rank, n_rank;
    const int *node_of;            /* [n_rank]: the machine of each, any numbers below n_rank; NULL: all on one */
    int timeout_ms;                /* of every wait; default 30,000; INT_MAX: as good as none */
    struct mu_rank_record *record; /* where waits are told; may be NULL */
};

/* ---- what callers use; built on the ops ---- */

enum mu_status mu_comm_isend(struct mu_comm *c, int to, const void *buf, size_t len, struct mu_comm_op **op_out,
                             struct mu_err *err);
enum mu_status mu_comm_irecv(struct mu_comm *c, int from, void *buf, size_t len, struct mu_comm_op **op_out,
                             struct mu_err *err);
/* Until the operation is complete or the comm's timeout has passed since the call. `peer` is named in the error and the
 * record. Spins ~100 pauses, then yields.
 * After a failure the operation is gone and its buffer the caller's again; the comm must then be closed, nothing
 * else. */
enum mu_status mu_comm_wait(struct mu_comm *c, struct mu_comm_op *op, int peer, struct mu_err *err);
enum mu_status mu_comm_send(struct mu_comm *c, int to, const void *buf, size_t len, struct mu_err *err);
enum mu_status mu_comm_recv(struct mu_comm *c, int from, void *buf, size_t len, struct mu_err *err);
/* Gives an operation up without waiting for it; the comm must then be closed. */
void mu_comm_drop(struct mu_comm *c, struct mu_comm_op *op);
static inline void mu_comm_progress(struct mu_comm *c)
{
    c->ops->progress(c);
}
enum { MU_COMM_MAX_RANKS = 256 };
/* Everyone to everyone, among ranks [first, first + n) of which we are one: rank first+i contributes buf[off[i], +len[i]).
 * In one round, but that what comes from another machine comes to a machine once: to one of its ranks, which hands it on to
 * the others (node_of; the same on all ranks). */
enum mu_status mu_comm_gather(struct mu_comm *c, int first, int n, void *buf, const size_t *off, const size_t *len,
                              struct mu_err *err);
/* The same in two: begun now, ended later; several may be under way, ended in the order in which all ranks began them. buf
 * is the gather's until its end. mu_comm_progress meanwhile; what is handed on moves at the end. A begin that fails leaves
 * nothing to end. */
struct mu_comm_batch { /* operations started together */
    int n;
    struct mu_comm_op *op[3 * MU_COMM_MAX_RANKS]; /* NULL: complete */
    int peer[3 * MU_COMM_MAX_RANKS];
    int first, n_rank; /* of the gather, and what comes through one of a machine's ranks */
    int n_via;
    struct mu_comm_via {
        char *part;
        size_t len;
        int rank; /* who fetches it for this machine; may be this rank */
        int op;   /* then: its receive in op */
    } via[MU_COMM_MAX_RANKS];
};
enum mu_status mu_comm_gather_begin(struct mu_comm *c, int first, int n, void *buf, const size_t *off,
                                    const size_t *len, struct mu_comm_batch *batch_out, struct mu_err *err);
enum mu_status mu_comm_gather_end(struct mu_comm *c, struct mu_comm_batch *batch, struct mu_err *err);
/* Gives it up; the comm must then be closed. */
void mu_comm_batch_drop(struct mu_comm *c, struct mu_comm_batch *batch);
/* From root to all others (start-up only). */
enum mu_status mu_comm_broadcast(struct mu_comm *c, int root, void *buf, size_t len, struct mu_err *err);
enum mu_status mu_comm_barrier(struct mu_comm *c, struct mu_err *err);
/* The link to peer, which calls it with us at the same time: one way, what an empty message takes, and then bytes a ns.
 * Some 80 messages: 0.1 s at 1 Gbit/s and 0.2 ms. */
enum mu_status mu_comm_measure(struct mu_comm *c, int peer, double *us_out, double *gbps_out, struct mu_err *err);
void mu_comm_close(struct mu_comm *c); /* NULL is fine */

/* n_rank comms that talk to each other inside this process. comms_out has n_rank entries; close each (any order, from
 * any thread; the last frees the rest). */
enum mu_status mu_comm_local_open(int n_rank, struct mu_comm **comms_out, struct mu_err *err);

/* MPI_Init_thread(FUNNELED) on this thread; our own communicator; errors returned, not fatal. Machines are told apart by
 * their names. Close finalises. */
enum mu_status mu_comm_mpi_open(struct mu_comm **comm_out, struct mu_err *err);

#endif
