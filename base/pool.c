/* Threads that run one function together.
 *
 * Three words carry everything: `run` (a run starts), `meet` (a barrier opens), `finish` (members that have returned).
 * Whoever waits for a word to change spins for about 20 µs, then yields for some hundred µs, then sleeps on a futex:
 *
 *     spin    a phase of a forward step lasts 5..500 µs and members differ by little: nearly every wait ends here
 *     yield   another thread wants our CPU: let it run, stay ready. A pool that is wider than the machine starts here,
 *             since the member we wait for may need this very CPU
 *     sleep   nobody comes: cost nothing
 *
 * Sleeping and waking. A sleeper counts itself in `sleepers`, then lets the kernel compare the word and sleep; a waker
 * changes the word, then looks at `sleepers`. Both do it in this order with sequentially consistent operations, so
 * either the kernel sees the new word or the waker sees the sleeper. A run between awake threads makes no system call.
 *
 * `fn`, `arg` and `stop` are plain: they change only while every member waits for `run`, whose change publishes them.
 * Rejected: a condition variable (two system calls and a lock a phase), and spinning alone (burns a core; and with more
 * members than CPUs a barrier costs a time slice). */
#include "base/pool.h"

#include <errno.h>
#include <hwloc.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cgroup.h"
#include "base/clock.h"
#include "base/fault.h"
#include "base/pause.h"
#include "base/topo.h"

enum {
    MAX_THREADS = MU_TOPO_MAX_CPUS,
    SPIN_NS = 20000,
    SPIN_PAUSES_MIN = 100,
    SPIN_PAUSES_MAX = 2000,
    YIELD_NS = 300000,
};

static _Thread_local struct mu_pool *pinned_by; /* the pool that has pinned this thread as its member 0 */

struct gate { /* a word to wait for, on a cache line of its own */
    _Alignas(64) atomic_uint word;
    atomic_uint sleepers;
};

struct member {
    struct mu_pool *pool;
    int index;
    pthread_t thread;
    int bind_errno; /* why it could not be pinned; written before its first `finish` */
};

struct mu_pool {
    struct gate run, meet, finish;
    _Alignas(64) atomic_uint arrived; /* members that wait at the barrier */
    /* On another line again: members only read it while others arrive. */
    _Alignas(64) void (*fn)(void *arg, int member, int n_members);
    void *arg;
    bool stop;
    int n;         /* members, the caller included */
    int n_started; /* threads that exist: members 1..n_started */
    int spin_pauses;
    struct mu_pool_options opt; /* opt.cpus is not used after creation */
    int *cpus;                  /* CPU of each member, or [opt.n_shared] for all; NULL = not pinned */
    hwloc_topology_t topology;  /* for binding; NULL without pinning */
    hwloc_bitmap_t old_binding; /* the caller's, restored at the end */
    struct member *members;     /* [n]; 0 has no thread */
};

/* ---- waiting ---- */

static long futex(atomic_uint *word, int op, unsigned value)
{
    return syscall(SYS_futex, word, op | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

/* Returns when the word is no longer `old`; what its changer wrote before is visible. */
static void gate_wait(struct gate *g, unsigned old, int spin_pauses)
{
    for (int i = 0; i < spin_pauses; i++) {
        if (atomic_load_explicit(&g->word, memory_order_acquire) != old) return;
        mu_cpu_pause();
    }
    int64_t give_up = mu_now_ns() + YIELD_NS;
    do {
        if (atomic_load_explicit(&g->word, memory_order_acquire) != old) return;
        sched_yield();
    } while (mu_now_ns() < give_up);
    while (atomic_load_explicit(&g->word, memory_order_acquire) == old) {
        atomic_fetch_add(&g->sleepers, 1);
        futex(&g->word, FUTEX_WAIT, old); /* returns at once if the word has changed meanwhile */
        atomic_fetch_sub(&g->sleepers, 1);
    }
}

static void gate_wake(struct gate *g)
{
    if (atomic_load(&g->sleepers)) futex(&g->word, FUTEX_WAKE, INT_MAX);
}

/* How many pauses take SPIN_NS: from 10 to 140 cycles each, depending on the CPU's generation. */
static int spin_calibrate(void)
{
    int64_t best = INT64_MAX;
    for (int round = 0; round < 3; round++) {
        int64_t start = mu_now_ns();
        for (int i = 0; i < 100; i++) mu_cpu_pause();
        int64_t spent = mu_now_ns() - start;
        if (spent < best) best = spent;
    }
    int64_t pauses = best > 0 ? SPIN_NS * 100 / best : SPIN_PAUSES_MAX;
    return pauses < SPIN_PAUSES_MIN ? SPIN_PAUSES_MIN : pauses > SPIN_PAUSES_MAX ? SPIN_PAUSES_MAX : (int)pauses;
}

/* ---- members ---- */

static void member_bind(struct mu_pool *p, struct member *m)
{
    if (!p->cpus) return;
    hwloc_bitmap_t set = hwloc_bitmap_alloc();
    bool ok = set != NULL;
    for (int i = 0; ok && i < p->opt.n_shared; i++) ok = hwloc_bitmap_set(set, (unsigned)p->cpus[i]) == 0;
    if (ok && !p->opt.n_shared) ok = hwloc_bitmap_only(set, (unsigned)p->cpus[m->index]) == 0;
    if (!ok)
        m->bind_errno = ENOMEM;
    else if (hwloc_set_cpubind(p->topology, set, HWLOC_CPUBIND_THREAD) != 0)
        m->bind_errno = errno ? errno : EINVAL;
    hwloc_bitmap_free(set);
}

static void member_begin(struct mu_pool *p, struct member *m)
{
    if (p->opt.thread_init) p->opt.thread_init(p->opt.ctx);
    member_bind(p, m);
}

static void member_finished(struct mu_pool *p)
{
    atomic_fetch_add(&p->finish.word, 1);
    gate_wake(&p->finish);
}

static void *member_main(void *arg)
{
    struct member *m = arg;
    struct mu_pool *p = m->pool;
    member_begin(p, m);
    unsigned run = 0;
    member_finished(p);
    for (;;) {
        gate_wait(&p->run, run, p->spin_pauses);
        run++;
        if (p->stop) return NULL;
        p->fn(p->arg, m->index, p->n);
        member_finished(p);
    }
}

static void run_start(struct mu_pool *p)
{
    atomic_fetch_add(&p->run.word, 1);
    gate_wake(&p->run);
}

/* Until every thread has finished what it was asked for. */
static void run_wait(struct mu_pool *p)
{
    unsigned seen;
    while ((seen = atomic_load_explicit(&p->finish.word, memory_order_acquire)) != (unsigned)p->n_started)
        gate_wait(&p->finish, seen, p->spin_pauses);
    atomic_store_explicit(&p->finish.word, 0, memory_order_relaxed);
}

void mu_pool_run(struct mu_pool *pool, void (*fn)(void *arg, int member, int n_members), void *arg)
{
    if (pool->n == 1) {
        fn(arg, 0, 1);
        return;
    }
    pool->fn = fn;
    pool->arg = arg;
    run_start(pool);
    fn(arg, 0, pool->n);
    run_wait(pool);
}

void mu_pool_barrier(struct mu_pool *pool)
{
    if (pool->n == 1) return;
    /* Read before arriving: without us the barrier cannot open, so this is the word that will change. */
    unsigned old = atomic_load_explicit(&pool->meet.word, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel) + 1 == (unsigned)pool->n) {
        atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
        atomic_store(&pool->meet.word, old + 1);
        gate_wake(&pool->meet);
    } else {
        gate_wait(&pool->meet, old, pool->spin_pauses);
    }
}

int mu_pool_size(const struct mu_pool *pool)
{
    return pool->n;
}

void mu_pool_unpin(void)
{
    struct mu_pool *p = pinned_by;
    if (p) hwloc_set_cpubind(p->topology, p->old_binding, HWLOC_CPUBIND_THREAD);
}

void mu_pool_repin(void)
{
    if (pinned_by) member_bind(pinned_by, &pinned_by->members[0]);
}

/* ---- life ---- */

/* How many threads can really run at once here. */
static int cpus_usable(void)
{
    cpu_set_t set;
    struct mu_cgroup cgroup;
    int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : (int)sysconf(_SC_NPROCESSORS_ONLN);
    mu_cgroup_read("", &cgroup);
    if (cgroup.cpus > 0 && cgroup.cpus < n) n = (int)cgroup.cpus;
    return n > 0 ? n : 1;
}

/* Decides the CPU of each member. Chosen by us: one core each, neighbours first; nothing is pinned where there are more
 * members than cores, since the system balances them better than any fixed choice. */
static enum mu_status cpus_choose(struct mu_pool *p, struct mu_err *err)
{
    const int *cpus = p->opt.cpus;
    enum mu_status st = MU_OK;
    struct mu_topo *topo = NULL;
    if (!cpus) {
        topo = mu_malloc(sizeof *topo);
        if (!topo) return mu_fail(err, MU_ENOMEM, "out of memory for the machine's topology");
        st = mu_topo_read(topo, err);
        if (st != MU_OK || p->n > topo->n_core) goto done;
        cpus = topo->cpus;
    }
    int n = p->opt.n_shared ? p->opt.n_shared : p->n;
    for (int i = 0; i < n; i++)
        if (cpus[i] < 0) {
            st = mu_fail(err, MU_EINVAL, "thread %d: %d is no CPU number", i, cpus[i]);
            goto done;
        }
    p->cpus = mu_calloc((size_t)n, sizeof *p->cpus);
    p->old_binding = hwloc_bitmap_alloc();
    if (!p->cpus || !p->old_binding || hwloc_topology_init(&p->topology) != 0) {
        st = mu_fail(err, MU_ENOMEM, "out of memory for pinning threads");
        goto done;
    }
    if (hwloc_topology_load(p->topology) != 0) {
        st = mu_fail(err, MU_EIO, "hwloc cannot read this machine's topology: %s", strerror(errno));
        goto done;
    }
    memcpy(p->cpus, cpus, (size_t)n * sizeof *p->cpus);
    if (hwloc_get_cpubind(p->topology, p->old_binding, HWLOC_CPUBIND_THREAD) != 0)
        hwloc_bitmap_copy(p->old_binding, hwloc_topology_get_allowed_cpuset(p->topology));
done:
    mu_free(topo);
    return st;
}

static enum mu_status threads_start(struct mu_pool *p, struct mu_err *err)
{
    /* Signals are for the main thread: one that interrupted a member in a kernel would hold up all of them. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int e = 0;
    for (int i = 1; i < p->n && e == 0; i++) {
        e = mu_fault_hit("pool.thread") ? EAGAIN
                                        : pthread_create(&p->members[i].thread, NULL, member_main, &p->members[i]);
        if (e == 0) p->n_started = i;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (e)
        return mu_fail(err, MU_EAGAIN,
                       "cannot start thread %d of %d: %s; raise the limit of processes or use fewer threads",
                       p->n_started + 1, p->n, strerror(e));
    return MU_OK;
}

/* A CPU that was asked for must be had; a choice of ours is an optimisation that may be refused (some containers). */
static enum mu_status bindings_check(const struct mu_pool *p, struct mu_err *err)
{
    for (int i = 0; i < p->n && p->opt.cpus; i++)
        if (p->members[i].bind_errno && p->opt.n_shared)
            return mu_fail(err, MU_EINVAL,
                           "cannot bind thread %d to %d CPUs from %d on: %s; name CPUs that this process may use", i,
                           p->opt.n_shared, p->opt.cpus[0], strerror(p->members[i].bind_errno));
        else if (p->members[i].bind_errno)
            return mu_fail(err, MU_EINVAL, "cannot pin thread %d to CPU %d: %s; name CPUs that this process may use", i,
                           p->opt.cpus[i], strerror(p->members[i].bind_errno));
    return MU_OK;
}

enum mu_status mu_pool_create(const struct mu_pool_options *opt, struct mu_pool **pool_out, struct mu_err *err)
{
    if (opt->n_threads < 1 || opt->n_threads > MAX_THREADS)
        return mu_fail(err, MU_EINVAL, "%d threads: from 1 to %d are possible", opt->n_threads, (int)MAX_THREADS);
    struct mu_pool *p = mu_aligned_alloc(_Alignof(struct mu_pool), sizeof *p);
    if (!p) return mu_fail(err, MU_ENOMEM, "out of memory for a pool of threads");
    enum mu_status st;
    memset(p, 0, sizeof *p);
    p->opt = *opt;
    p->n = opt->n_threads;
    p->members = mu_calloc((size_t)p->n, sizeof *p->members);
    if (!p->members) {
        st = mu_fail(err, MU_ENOMEM, "out of memory for %d threads", p->n);
        goto fail;
    }
    for (int i = 0; i < p->n; i++) p->members[i] = (struct member){.pool = p, .index = i};
    if (p->n > 1 && p->n <= cpus_usable()) p->spin_pauses = spin_calibrate();
    if (opt->pin) MU_TRY(st, cpus_choose(p, err), fail);
    MU_TRY(st, threads_start(p, err), fail);
    run_wait(p); /* they come up beside us; then we pin ourselves, which they must not inherit */
    member_begin(p, &p->members[0]);
    MU_TRY(st, bindings_check(p, err), fail);
    if (p->cpus) pinned_by = p;
    p->opt.cpus = NULL; /* the caller's array may go */
    *pool_out = p;
    return MU_OK;
fail:
    mu_pool_destroy(p);
    return st;
}

void mu_pool_destroy(struct mu_pool *pool)
{
    if (!pool) return;
    if (pool->n_started) {
        pool->stop = true;
        run_start(pool);
        for (int i = 1; i <= pool->n_started; i++) pthread_join(pool->members[i].thread, NULL);
    }
    if (pinned_by == pool) pinned_by = NULL;
    if (pool->topology) {
        if (pool->cpus) hwloc_set_cpubind(pool->topology, pool->old_binding, HWLOC_CPUBIND_THREAD);
        hwloc_topology_destroy(pool->topology);
    }
    hwloc_bitmap_free(pool->old_binding);
    mu_free(pool->cpus);
    mu_free(pool->members);
    mu_free(pool);
}
