/* Pools: barriers with fewer and more threads than the machine has CPUs, sleeping and waking, pinning, failures. */
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/fault.h"
#include "base/pool.h"
#include "base/topo.h"

enum { MAX_THREADS = 5 };

static struct mu_pool *make(int n, int pin)
{
    struct mu_pool *p;
    struct mu_err err = MU_ERR_INIT;
    struct mu_pool_options opt = {.n_threads = n, .pin = pin};
    if (mu_pool_create(&opt, &p, &err) != MU_OK) fail_msg("%s", err.text);
    assert_int_equal(mu_pool_size(p), n);
    return p;
}

struct phases {
    struct mu_pool *pool;
    int n_phase;
    int late_member, late_ms; /* -1, or who sleeps before each barrier */
    int slots[MAX_THREADS];   /* plain on purpose: the barrier must order them */
    int wrong[MAX_THREADS], runs[MAX_THREADS];
};

/* Every member writes its slot; after a barrier it must see the slots of all; a second barrier before the next
 * write. */
static void phases_run(void *arg, int member, int n)
{
    struct phases *s = arg;
    s->runs[member]++;
    for (int phase = 1; phase <= s->n_phase; phase++) {
        if (member == s->late_member) mu_sleep_ms(s->late_ms);
        s->slots[member] = phase;
        mu_pool_barrier(s->pool);
        for (int i = 0; i < n; i++) s->wrong[member] += s->slots[i] != phase;
        mu_pool_barrier(s->pool);
    }
}

static void check_phases(const struct phases *s, int n, int runs)
{
    for (int i = 0; i < n; i++) {
        assert_int_equal(s->wrong[i], 0);
        assert_int_equal(s->runs[i], runs);
        assert_int_equal(s->slots[i], s->n_phase);
    }
}

static void barriers_hold(void **state)
{
    (void)state;
    for (int n = 1; n <= MAX_THREADS; n++) {
        struct phases s = {.pool = make(n, 0), .n_phase = 100, .late_member = -1};
        for (int run = 0; run < 5; run++) mu_pool_run(s.pool, phases_run, &s);
        check_phases(&s, n, 5);
        mu_pool_destroy(s.pool);
    }
}

/* One member is late by more than spinning and yielding last: the others sleep on the futex and must wake. */
static void barriers_hold_when_members_sleep(void **state)
{
    (void)state;
    for (int n = 2; n <= MAX_THREADS; n++)
        for (int late = 0; late < n; late++) {
            struct phases s = {.pool = make(n, 0), .n_phase = 3, .late_member = late, .late_ms = 3};
            for (int run = 0; run < 2; run++) mu_pool_run(s.pool, phases_run, &s);
            check_phases(&s, n, 2);
            mu_pool_destroy(s.pool);
        }
}

/* Runs follow each other with pauses around the moment when members fall asleep. */
static void runs_wake_sleepers(void **state)
{
    (void)state;
    struct phases s = {.pool = make(3, 0), .n_phase = 1, .late_member = -1};
    for (int run = 0; run < 200; run++) {
        struct timespec pause = {.tv_nsec = run * 5000};
        nanosleep(&pause, NULL);
        mu_pool_run(s.pool, phases_run, &s);
    }
    check_phases(&s, 3, 200);
    mu_pool_destroy(s.pool);
}

static void an_idle_pool_costs_nothing(void **state)
{
    (void)state;
    struct phases s = {.pool = make(4, 0), .n_phase = 1, .late_member = -1};
    mu_pool_run(s.pool, phases_run, &s);
    mu_sleep_ms(20); /* let them fall asleep */
    struct timespec before, after;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
    mu_sleep_ms(300);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
    int64_t used = (after.tv_sec - before.tv_sec) * MU_SEC + after.tv_nsec - before.tv_nsec;
    assert_true(used < 30 * MU_MS);
    mu_pool_destroy(s.pool);
}

static atomic_int n_init;
static void count_init(void *ctx)
{
    atomic_fetch_add((atomic_int *)ctx, 1);
}

static void every_member_is_initialised(void **state)
{
    (void)state;
    struct mu_err err = MU_ERR_INIT;
    for (int n = 1; n <= MAX_THREADS; n++) {
        struct mu_pool *p;
        struct mu_pool_options opt = {.n_threads = n, .thread_init = count_init, .ctx = &n_init};
        n_init = 0;
        assert_int_equal(mu_pool_create(&opt, &p, &err), MU_OK);
        assert_int_equal(n_init, n);
        mu_pool_destroy(p); /* without a run */
    }
    mu_pool_destroy(NULL);
}

static void look_at_mask(void *arg, int member, int n)
{
    (void)n;
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    ((int *)arg)[member] = sigismember(&mask, SIGTERM) && sigismember(&mask, SIGINT);
}

static void members_take_no_signals(void **state)
{
    (void)state;
    int blocked[3] = {-1, -1, -1};
    struct mu_pool *p = make(3, 0);
    mu_pool_run(p, look_at_mask, blocked);
    mu_pool_destroy(p);
    assert_int_equal(blocked[0], 0); /* the caller's mask is untouched */
    assert_int_equal(blocked[1], 1);
    assert_int_equal(blocked[2], 1);
}

static void look_at_cpus(void *arg, int member, int n)
{
    (void)n;
    sched_getaffinity(0, sizeof(cpu_set_t), &((cpu_set_t *)arg)[member]);
}

static void pinning(void **state)
{
    (void)state;
    static struct mu_topo topo;
    struct mu_err err = MU_ERR_INIT;
    assert_int_equal(mu_topo_read(&topo, &err), MU_OK);
    cpu_set_t before, after, seen[MAX_THREADS];
    sched_getaffinity(0, sizeof before, &before);
    int n = topo.n_core < MAX_THREADS ? topo.n_core : MAX_THREADS;
    struct mu_pool *p = make(n, 1);
    mu_pool_unpin();
    sched_getaffinity(0, sizeof after, &after);
    assert_true(CPU_EQUAL(&before, &after));
    mu_pool_repin();
    mu_pool_run(p, look_at_cpus, seen);
    mu_pool_destroy(p);
    mu_pool_repin(); /* no pool has pinned this thread any more */
    for (int i = 0; i < n; i++) {
        assert_int_equal(CPU_COUNT(&seen[i]), 1);
        assert_true(CPU_ISSET(topo.cpus[i], &seen[i]));
    }
    sched_getaffinity(0, sizeof after, &after);
    assert_true(CPU_EQUAL(&before, &after));

    int chosen[2] = {topo.cpus[topo.n_cpu - 1], topo.cpus[0]};
    struct mu_pool_options opt = {.n_threads = 2, .cpus = chosen, .pin = 1};
    assert_int_equal(mu_pool_create(&opt, &p, &err), MU_OK);
    mu_pool_run(p, look_at_cpus, seen);
    mu_pool_destroy(p);
    for (int i = 0; i < 2; i++) assert_true(CPU_COUNT(&seen[i]) == 1 && CPU_ISSET(chosen[i], &seen[i]));

    opt.n_shared = 2; /* each may use both */
    assert_int_equal(mu_pool_create(&opt, &p, &err), MU_OK);
    mu_pool_run(p, look_at_cpus, seen);
    mu_pool_destroy(p);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(CPU_COUNT(&seen[i]), chosen[0] == chosen[1] ? 1 : 2);
        assert_true(CPU_ISSET(chosen[0], &seen[i]) && CPU_ISSET(chosen[1], &seen[i]));
    }
    opt.n_shared = 0;

    chosen[1] = 1000; /* no such CPU */
    assert_int_equal(mu_pool_create(&opt, &p, &err), MU_EINVAL);
    assert_non_null(strstr(err.text, "CPU 1000"));
    chosen[1] = -1;
    assert_int_equal(mu_pool_create(&opt, &p, &err), MU_EINVAL);
    sched_getaffinity(0, sizeof after, &after);
    assert_true(CPU_EQUAL(&before, &after));

    p = make(MAX_THREADS > topo.n_core ? MAX_THREADS : 1, 1); /* wider than the machine: works, unpinned */
    mu_pool_run(p, look_at_cpus, seen);
    mu_pool_destroy(p);
}

static void bad_sizes(void **state)
{
    (void)state;
    struct mu_pool *p;
    struct mu_err err = MU_ERR_INIT;
    static const int sizes[] = {0, -1, 1 << 20};
    for (int i = 0; i < 3; i++) {
        struct mu_pool_options opt = {.n_threads = sizes[i]};
        assert_int_equal(mu_pool_create(&opt, &p, &err), MU_EINVAL);
    }
}

static void a_thread_that_does_not_start(void **state)
{
    (void)state;
#ifdef MUSTER_FAULTS
    struct mu_pool *p;
    struct mu_err err = MU_ERR_INIT;
    struct mu_pool_options opt = {.n_threads = 4};
    static const char *const faults[] = {"pool.thread:1", "pool.thread:2", "pool.thread:3"};
    for (int i = 0; i < 3; i++) {
        setenv("MUSTER_FAULT", faults[i], 1);
        assert_int_equal(mu_fault_init(-1, &err), MU_OK);
        assert_int_equal(mu_pool_create(&opt, &p, &err), MU_EAGAIN); /* and the others are joined */
        assert_int_equal(err.text[strlen("cannot start thread ")], '1' + i);
    }
    unsetenv("MUSTER_FAULT");
    assert_int_equal(mu_fault_init(-1, &err), MU_OK);
#else
    skip();
#endif
}

int main(void)
{
    alarm(100); /* a barrier that loses a wake-up hangs */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(barriers_hold),
        cmocka_unit_test(barriers_hold_when_members_sleep),
        cmocka_unit_test(runs_wake_sleepers),
        cmocka_unit_test(an_idle_pool_costs_nothing),
        cmocka_unit_test(every_member_is_initialised),
        cmocka_unit_test(members_take_no_signals),
        cmocka_unit_test(pinning),
        cmocka_unit_test(bad_sizes),
        cmocka_unit_test(a_thread_that_does_not_start),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
