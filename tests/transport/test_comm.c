/* Ranks as threads: the local transport and the fake with its faults. */
#include "comm_checks.h"
#include "comm_fake.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/clock.h"

enum { MAX = 8 };

struct rank_run {
    struct mu_comm *comm;
    int (*fn)(struct mu_comm *c);
    int result;
};

static void *rank_main(void *arg)
{
    struct rank_run *r = arg;
    r->result = r->fn(r->comm);
    mu_comm_close(r->comm);
    return NULL;
}

static void run_ranks(int n, struct mu_comm **comms, int (*fn)(struct mu_comm *c))
{
    struct rank_run run[MAX];
    pthread_t thread[MAX];
    for (int i = 0; i < n; i++) {
        run[i] = (struct rank_run){comms[i], fn, -1};
        assert_int_equal(pthread_create(&thread[i], NULL, rank_main, &run[i]), 0);
    }
    for (int i = 0; i < n; i++) pthread_join(thread[i], NULL);
    for (int i = 0; i < n; i++) assert_int_equal(run[i].result, 0);
}

static void open_local(int n, struct mu_comm **comms)
{
    struct mu_err err = MU_ERR_INIT;
    if (mu_comm_local_open(n, comms, &err) != MU_OK) fail_msg("%s", err.text);
}

static void test_local(void **state)
{
    (void)state;
    for (int n = 2; n <= 5; n++) {
        struct mu_comm *comms[MAX];
        open_local(n, comms);
        run_ranks(n, comms, check_all);
    }
}

static int many_gathers(struct mu_comm *c)
{
    struct mu_err err = MU_ERR_INIT;
    unsigned counts[MAX];
    size_t off[MAX], len[MAX];
    for (int i = 0; i < c->n_rank; i++) {
        off[i] = (size_t)i * sizeof counts[0];
        len[i] = sizeof counts[0];
    }
    for (unsigned k = 0; k < 20000; k++) {
        counts[c->rank] = k;
        CHECK(mu_comm_gather(c, 0, c->n_rank, counts, off, len, &err) == MU_OK, "%s", err.text);
        for (int i = 0; i < c->n_rank; i++) CHECK(counts[i] == k, "round %u, rank %d: %u", k, i, counts[i]);
    }
    return 0;
}

static void test_local_many(void **state)
{
    (void)state;
    struct mu_comm *comms[MAX];
    open_local(2, comms);
    run_ranks(2, comms, many_gathers);
}

static int bad_length(struct mu_comm *c)
{
    struct mu_err err = MU_ERR_INIT;
    char buf[8] = {0};
    enum mu_status st = c->rank == 0 ? mu_comm_send(c, 1, buf, 4, &err) : mu_comm_recv(c, 0, buf, 5, &err);
    CHECK(st == MU_EPROTO, "%d %s", st, err.text);
    CHECK(err.rank == 1 - c->rank, "names rank %d", err.rank);
    return 0;
}

static int silent_peer(struct mu_comm *c)
{
    struct mu_err err = MU_ERR_INIT;
    char buf[8] = {0};
    c->timeout_ms = 60;
    if (c->rank == 0) { /* alive, but says nothing: it waits longer for another */
        mu_sleep_ms(150);
        return 0;
    }
    int64_t start = mu_now_ns();
    enum mu_status st = mu_comm_recv(c, 0, buf, 5, &err);
    int64_t spent = mu_now_ns() - start;
    CHECK(st == MU_ETIMEOUT && err.rank == 0 && strstr(err.text, "rank 0"), "%d %s", st, err.text);
    CHECK(spent >= 59 * MU_MS, "gave up after %lld ns", (long long)spent);
    return 0;
}

static int closed_peer(struct mu_comm *c)
{
    struct mu_err err = MU_ERR_INIT;
    char buf[8] = {0};
    if (c->rank == 0) return 0; /* its thread closes at once */
    CHECK(mu_comm_recv(c, 0, buf, 5, &err) == MU_EPEER && err.rank == 0, "%s", err.text);
    CHECK(mu_comm_send(c, 0, buf, 5, &err) == MU_EPEER && err.rank == 0, "%s", err.text);
    return 0;
}

/* What a rank has taken was sent, also where it closes the moment after. */
static int last_message(struct mu_comm *c)
{
    struct mu_err err = MU_ERR_INIT;
    char buf = 0;
    enum mu_status st = c->rank == 0 ? mu_comm_recv(c, 1, &buf, 1, &err) : mu_comm_send(c, 0, &buf, 1, &err);
    CHECK(st == MU_OK, "%s", err.text);
    return 0;
}

static void test_local_last_message(void **state)
{
    (void)state;
    for (int i = 0; i < 2000; i++) {
        struct mu_comm *comms[MAX];
        open_local(2, comms);
        run_ranks(2, comms, last_message);
    }
}

static void test_local_errors(void **state)
{
    (void)state;
    int (*const cases[])(struct mu_comm * c) = {bad_length, silent_peer, closed_peer};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct mu_comm *comms[MAX];
        open_local(2, comms);
        run_ranks(2, comms, cases[i]);
    }
}

static void test_local_no_memory(void **state)
{
    (void)state;
    struct mu_comm *comms[MAX];
    struct mu_err err = MU_ERR_INIT;
    for (long n = 1;; n++) {
        mu_alloc_fail_at(n);
        enum mu_status st = mu_comm_local_open(3, comms, &err);
        mu_alloc_fail_at(0);
        if (st == MU_OK) break;
        assert_int_equal(st, MU_ENOMEM);
        assert_true(n < 100);
    }
    for (int i = 0; i < 3; i++) mu_comm_close(comms[i]);
}

/* ---- ranks on several machines: what goes between two is counted ---- */

static const struct mu_comm_ops *under;
static atomic_size_t n_crossed;

static enum mu_status counting_isend(struct mu_comm *c, int to, const void *buf, size_t len, struct mu_comm_op **op_out,
                                     struct mu_err *err)
{
    if (c->node_of[c->rank] != c->node_of[to]) atomic_fetch_add(&n_crossed, len);
    return under->isend(c, to, buf, len, op_out, err);
}

/* of[i]: the machine of rank i. */
static void onto_machines(int n, struct mu_comm **comms, const int *of)
{
    static struct mu_comm_ops counting;
    under = comms[0]->ops;
    counting = *under;
    counting.isend = counting_isend;
    atomic_store(&n_crossed, 0);
    for (int i = 0; i < n; i++) {
        comms[i]->ops = &counting;
        comms[i]->node_of = of;
    }
}

static const struct {
    int n, of[MAX];
} machines[] = {
    {3, {0, 0, 2}},
    {3, {0, 1, 0}},
    {4, {0, 0, 2, 2}},
    {4, {1, 0, 0, 1}},
    {5, {0, 0, 0, 3, 4}},
    {7, {0, 0, 0, 3, 3, 0, 6}},
    {8, {0, 0, 0, 0, 4, 4, 4, 4}},
};
enum { N_MACHINES = sizeof machines / sizeof *machines };

static void test_machines(void **state)
{
    (void)state;
    for (int m = 0; m < N_MACHINES; m++) {
        struct mu_comm *comms[MAX];
        open_local(machines[m].n, comms);
        onto_machines(machines[m].n, comms, machines[m].of);
        run_ranks(machines[m].n, comms, check_all);
        struct mu_comm_fake slow = {.seed = (uint64_t)m, .max_delay_polls = 40, .fault_rank = -1};
        struct mu_err err = MU_ERR_INIT;
        assert_int_equal(mu_comm_fake_open(machines[m].n, &slow, comms, &err), MU_OK);
        onto_machines(machines[m].n, comms, machines[m].of);
        run_ranks(machines[m].n, comms, check_all);
    }
}

static int one_gather(struct mu_comm *c)
{
    return check_gather(c, 0, c->n_rank, 1, 1000);
}

static atomic_bool late; /* who fetches waited as if it was only handed on */

static void fetch_took(int64_t ns)
{
    if (ns >= 900 * MU_MS) atomic_store(&late, true);
}

/* Ranks 2 and 3, on another machine, are silent: who fetches their parts names them at once; who only waits for what is
 * handed on gives up later. */
static int far_silent(struct mu_comm *c)
{
    struct mu_err err = MU_ERR_INIT;
    char buf[4] = {0};
    const size_t off[4] = {0, 1, 2, 3}, len[4] = {1, 1, 1, 1};
    c->timeout_ms = 100;
    if (c->rank >= 2) {
        mu_sleep_ms(2000);
        return 0;
    }
    int64_t start = mu_now_ns();
    enum mu_status st = mu_comm_gather(c, 0, 4, buf, off, len, &err);
    fetch_took(mu_now_ns() - start);
    CHECK(st == MU_ETIMEOUT && err.rank == c->rank + 2, "%d %s", st, err.text);
    return 0;
}

static int far_half_silent(struct mu_comm *c)
{
    struct mu_err err = MU_ERR_INIT;
    char buf[4] = {0};
    const size_t off[4] = {0, 1, 2, 3}, len[4] = {1, 1, 1, 0}; /* of the far ones' parts rank 0 fetches all */
    c->timeout_ms = 100;
    if (c->rank >= 2) {
        mu_sleep_ms(2000);
        return 0;
    }
    int64_t start = mu_now_ns();
    enum mu_status st = mu_comm_gather(c, 0, 4, buf, off, len, &err);
    int64_t spent = mu_now_ns() - start;
    if (c->rank == 0) {
        fetch_took(spent);
        CHECK(st == MU_ETIMEOUT && err.rank == 2, "%d %s", st, err.text);
        mu_sleep_ms(1500); /* alive, for rank 1 to see nothing but a wait */
    } else {
        CHECK(st == MU_ETIMEOUT && spent > 1000 * MU_MS, "%d %s", st, err.text);
    }
    return 0;
}

static void test_machines_silent(void **state)
{
    (void)state;
    int (*const cases[])(struct mu_comm * c) = {far_silent, far_half_silent};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int tries = 5; /* a busy machine is late now and then */
        do {
            struct mu_comm *comms[MAX];
            atomic_store(&late, false);
            open_local(4, comms);
            onto_machines(4, comms, machines[2].of);
            run_ranks(4, comms, cases[i]);
        } while (atomic_load(&late) && --tries > 0);
        assert_false(atomic_load(&late));
    }
}

static void test_once_a_machine(void **state)
{
    (void)state;
    for (int m = 0; m < N_MACHINES; m++) {
        struct mu_comm *comms[MAX];
        int n = machines[m].n;
        const int *of = machines[m].of;
        size_t expected = 0;
        open_local(n, comms);
        onto_machines(n, comms, of);
        run_ranks(n, comms, one_gather);
        for (int i = 0; i < n; i++) {
            size_t len = (size_t)((i + 1) % 3) * 1000 + (size_t)((i + 1) % 3 ? i : 0); /* check_gather's */
            for (int j = 0; j < n; j++) { /* the first rank of each other machine */
                int first = 0;
                while (of[first] != of[j]) first++;
                if (first == j && of[j] != of[i]) expected += len;
            }
        }
        assert_int_equal(atomic_load(&n_crossed), expected);
    }
}

static void test_fake_delays(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 5; seed++) {
        struct mu_comm_fake spec = {.seed = seed, .max_delay_polls = 40, .fault_rank = -1};
        struct mu_comm *comms[MAX];
        struct mu_err err = MU_ERR_INIT;
        assert_int_equal(mu_comm_fake_open(4, &spec, comms, &err), MU_OK);
        run_ranks(4, comms, check_all);
    }
}

/* Gathers until something fails; everybody must end with an error that names somebody. */
static int until_failure(struct mu_comm *c)
{
    struct mu_err err = MU_ERR_INIT;
    char buf[3] = {0};
    const size_t off[3] = {0, 1, 2}, len[3] = {1, 1, 1};
    c->timeout_ms = 100;
    for (int k = 0; k < 1000; k++) {
        enum mu_status st = mu_comm_gather(c, 0, 3, buf, off, len, &err);
        if (st == MU_OK) continue;
        CHECK(st == MU_ETIMEOUT || st == MU_EPEER, "%d %s", st, err.text);
        CHECK(err.rank >= 0 && err.rank < 3 && err.rank != c->rank, "names rank %d: %s", err.rank, err.text);
        return 0;
    }
    CHECK(false, "the fault never came");
    return 1;
}

static void test_fake_faults(void **state)
{
    (void)state;
    const enum mu_comm_fault faults[] = {MU_FAULT_SILENT, MU_FAULT_GONE};
    for (size_t f = 0; f < 2; f++) {
        for (long at = 1; at <= 12; at += 3) {
            struct mu_comm_fake spec = {
                .seed = 7, .max_delay_polls = 3, .fault_rank = 1, .fault_at = at, .fault = faults[f]};
            struct mu_comm *comms[MAX];
            struct mu_err err = MU_ERR_INIT;
            assert_int_equal(mu_comm_fake_open(3, &spec, comms, &err), MU_OK);
            run_ranks(3, comms, until_failure);
            assert_int_equal(mu_comm_fake_open(3, &spec, comms, &err), MU_OK);
            onto_machines(3, comms, machines[at % 2].of);
            run_ranks(3, comms, until_failure);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_local),           cmocka_unit_test(test_local_many),
        cmocka_unit_test(test_local_errors),    cmocka_unit_test(test_fake_delays),
        cmocka_unit_test(test_local_no_memory), cmocka_unit_test(test_fake_faults),
        cmocka_unit_test(test_machines_silent), cmocka_unit_test(test_machines),
        cmocka_unit_test(test_once_a_machine),  cmocka_unit_test(test_local_last_message),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
