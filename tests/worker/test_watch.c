/* Who hangs: verdicts from made-up records, with made-up time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "worker/watch.h"

enum { N = 3, LOOK_MS = 100 };

static struct mu_rank_record records[N];
static struct mu_watch watch;
static char reason[256];

static void begin(void)
{
    memset(records, 0, sizeof records);
    for (int i = 0; i < N; i++) {
        records[i].pid = 100 + i;
        mu_record_op(&records[i], MU_OP_IDLE, MU_RECORD_NOBODY);
    }
    mu_watch_init(&watch, N, 3000, 5000);
}

/* Milliseconds until a verdict while every rank but `stopped` breathes; -1: none within a minute. */
static int run(int stopped, bool busy, int *culprit_out)
{
    for (int ms = LOOK_MS; ms <= 60000; ms += LOOK_MS) {
        for (int i = 0; i < N; i++) records[i].breath += i != stopped;
        *culprit_out = mu_watch_look(&watch, records, LOOK_MS, busy, reason, sizeof reason);
        if (*culprit_out >= 0) return ms;
    }
    return -1;
}

static void test_idle_gangs_live(void **state)
{
    (void)state;
    int culprit;
    begin();
    assert_int_equal(run(-1, true, &culprit), -1);
}

static void test_no_breath(void **state)
{
    (void)state;
    int culprit, ms;
    begin();
    mu_record_op(&records[1], MU_OP_RECV, 0);
    ms = run(1, true, &culprit);
    assert_true(ms >= 3000 && ms <= 3200);
    assert_int_equal(culprit, 1);
    assert_non_null(strstr(reason, "rank 1 (pid 101)"));
    assert_non_null(strstr(reason, "waiting for rank 0"));
    begin();
    records[1].pid = 0; /* not started yet: nothing to say against it */
    assert_int_equal(run(1, true, &culprit), -1);
}

static void test_no_progress_is_blamed_on_who_does_not_wait(void **state)
{
    (void)state;
    int culprit, ms;
    begin();
    mu_record_op(&records[0], MU_OP_EXCHANGE, 2);
    mu_record_op(&records[1], MU_OP_RECV, 0);
    mu_record_op(&records[2], MU_OP_COMPUTE, MU_RECORD_NOBODY);
    records[2].step = 12;
    records[2].layer = 3;
    ms = run(-1, true, &culprit);
    assert_true(ms >= 5000 && ms <= 5200);
    assert_int_equal(culprit, 2);
    assert_non_null(strstr(reason, "step 12, layer 3"));
    begin();
    mu_record_op(&records[2], MU_OP_COMPUTE, MU_RECORD_NOBODY);
    assert_int_equal(run(-1, false, &culprit), -1); /* still loading: the load timeout is for that */
}

static void test_progress_counts(void **state)
{
    (void)state;
    begin();
    mu_record_op(&records[2], MU_OP_COMPUTE, MU_RECORD_NOBODY);
    for (int i = 0; i < 600; i++) {
        for (int k = 0; k < N; k++) records[k].breath++;
        if (i % 40 == 0) mu_record_tick(&records[2]); /* every 4 s: slow, but it moves */
        assert_int_equal(mu_watch_look(&watch, records, LOOK_MS, true, reason, sizeof reason), -1);
    }
}

/* mpirun did not run a rank, or does not let it through MPI_Init; the others wait in there. */
static void test_a_rank_that_does_not_start(void **state)
{
    (void)state;
    for (int pid = 0; pid <= 101; pid += 101) {
        int culprit, ms;
        begin();
        records[1].pid = pid;
        mu_record_op(&records[1], MU_OP_STARTING, MU_RECORD_NOBODY);
        ms = run(pid ? -1 : 1, false, &culprit);
        assert_int_equal(ms, MU_WATCH_START_MS);
        assert_int_equal(culprit, 1);
        assert_string_equal(reason, "rank 1 has not started for 60 s: mpirun, which starts it, is stopped or hung");
    }
}

/* Where nobody looked for an hour the ranks are not to blame. */
static void test_gaps_in_looking_are_forgiven(void **state)
{
    (void)state;
    begin();
    for (int i = 0; i < 10; i++)
        assert_int_equal(mu_watch_look(&watch, records, 3600000, true, reason, sizeof reason), -1);
    int culprit = -1;
    for (int i = 0; i < 10 && culprit < 0; i++)
        culprit = mu_watch_look(&watch, records, 3600000, true, reason, sizeof reason);
    assert_true(culprit >= 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_idle_gangs_live),
        cmocka_unit_test(test_no_breath),
        cmocka_unit_test(test_no_progress_is_blamed_on_who_does_not_wait),
        cmocka_unit_test(test_progress_counts),
        cmocka_unit_test(test_a_rank_that_does_not_start),
        cmocka_unit_test(test_gaps_in_looking_are_forgiven),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
