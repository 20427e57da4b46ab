/* Ranks as threads: the local transport and the fake with its faults. */
#include "comm_checks.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
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
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_local),       cmocka_unit_test(test_local_many),      cmocka_unit_test(test_local_errors),
        cmocka_unit_test(test_fake_delays), cmocka_unit_test(test_local_no_memory), cmocka_unit_test(test_fake_faults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
