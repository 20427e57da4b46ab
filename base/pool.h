/* A pool of threads that run one function together (SPMD), pinned with hwloc.
 *
 * The caller's thread is member 0, so a pool of 1 is no thread at all and MPI stays on the thread that created it. A
 * forward step is one mu_pool_run whose phases are separated by mu_pool_barrier: members spin for a short while, then
 * yield, then sleep on a futex, so that a pool wider than the machine still makes progress and an idle one costs
 * nothing.
 *
 * With `pin` the caller too is pinned, until mu_pool_destroy restores its mask: threads that it starts meanwhile
 * inherit one CPU, so start them first, or between mu_pool_unpin and mu_pool_repin. CPUs that the caller named must be
 * had (MU_EINVAL); a choice of ours is skipped where there are more members than cores or the system refuses. Other
 * members run with all signals blocked.
 *
 * Threads: create, run and destroy from one thread only; the barrier from inside fn only, by every member. A thread
 * that cannot be started is MU_EAGAIN, and those already started are joined. */
#ifndef MU_BASE_POOL_H
#define MU_BASE_POOL_H

#include "base/status.h"

struct mu_pool;

struct mu_pool_options {
    int n_threads;                  /* ≥ 1, the caller included */
    const int *cpus;                /* logical CPU of each member, or NULL = choose: one core each, near each other */
    int n_shared;                   /* > 0: each member may use all of cpus[n_shared] instead */
    int pin;                        /* 0 = leave the threads where the system puts them */
    void (*thread_init)(void *ctx); /* run by every member before anything else (MXCSR); may be NULL */
    void *ctx;
};

enum mu_status mu_pool_create(const struct mu_pool_options *opt, struct mu_pool **pool_out, struct mu_err *err);
void mu_pool_destroy(struct mu_pool *pool); /* NULL is fine; joins the members */
int mu_pool_size(const struct mu_pool *pool);
/* The caller's own mask again, and its CPU; nothing to a thread that no pool has pinned. */
void mu_pool_unpin(void);
void mu_pool_repin(void);
/* fn(arg, member, n_members) on every member; returns when all have returned. */
void mu_pool_run(struct mu_pool *pool, void (*fn)(void *arg, int member, int n_members), void *arg);
/* All members of the running fn meet; what was written before is visible to all after. */
void mu_pool_barrier(struct mu_pool *pool);

#endif
