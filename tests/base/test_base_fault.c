/* Fault points: the n-th pass, ranks, values, actions, and what is refused. */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/fault.h"

#ifdef MUSTER_FAULTS

static enum mu_status set(const char *text, int rank, struct mu_err *err)
{
    if (text)
        setenv("MUSTER_FAULT", text, 1);
    else
        unsetenv("MUSTER_FAULT");
    return mu_fault_init(rank, err);
}

static void nothing_set(void **state)
{
    (void)state;
    struct mu_err err = MU_ERR_INIT;
    assert_int_equal(set(NULL, 0, &err), MU_OK);
    assert_false(mu_fault_hit("link.send"));
    assert_int_equal(set("", 0, &err), MU_OK);
    assert_false(mu_fault_value("rank.token", 0));
}

static void the_nth_pass(void **state)
{
    (void)state;
    struct mu_err err = MU_ERR_INIT;
    assert_int_equal(set("link.send:3,link.recv:1=fail,link.send:5", 0, &err), MU_OK);
    for (int i = 1; i <= 8; i++) assert_int_equal(mu_fault_hit("link.send"), i == 3 || i == 5);
    assert_true(mu_fault_hit("link.recv"));
    assert_false(mu_fault_hit("link.recv"));
    assert_false(mu_fault_hit("comm.send"));
    assert_int_equal(set("link.send:1", 0, &err), MU_OK); /* counts from the start again */
    assert_true(mu_fault_hit("link.send"));
}

static void ranks_and_values(void **state)
{
    (void)state;
    struct mu_err err = MU_ERR_INIT;
    assert_int_equal(set("rank.step@1:1,rank.load@0:1,rank.token:77,rank.token:-5", 1, &err), MU_OK);
    assert_true(mu_fault_hit("rank.step"));
    assert_false(mu_fault_hit("rank.load"));
    for (int i = 0; i < 2; i++) assert_true(mu_fault_value("rank.token", 77));
    assert_false(mu_fault_value("rank.token", 78));
    assert_true(mu_fault_value("rank.token", -5));
    assert_int_equal(set("rank.step@1:1", -1, &err), MU_OK); /* a process that is no rank */
    assert_false(mu_fault_hit("rank.step"));
}

static void what_is_refused(void **state)
{
    (void)state;
    struct mu_err err = MU_ERR_INIT;
    static const char *const bad[] = {
        "nosuch.point:1",
        "link.send",
        "link.send:",
        "link.send:0",
        "link.send:-1",
        "link.send:x",
        "link.send:1x",
        "link.send:1=",
        "link.send:1=die",
        "link.send:1=abortt",
        "link.send@:1",
        "link.send@-1:1",
        "link.send@x:1",
        ":1",
        "@1:1",
        "link.send:1,",
        ",link.send:1",
        "link.send:1,,",
        "link.sen:1",
        "link.sendx:1",
        "link.send: 1",
        "link.send:+1",
        "rank.token:",
        "rank.token:-",
        "link.send@1 :1",
        "link.send:99999999999999999999",
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(set(bad[i], 0, &err), MU_EINVAL);
        assert_non_null(strstr(err.text, "MUSTER_FAULT"));
        assert_false(mu_fault_hit("link.send")); /* nothing of it is in force */
    }
    set("nosuch.point:1", 0, &err);
    assert_non_null(strstr(err.text, "'nosuch.point'"));
    assert_non_null(strstr(err.text, "worker.spawn")); /* the list of what there is */
    char many[1000] = "link.send:1";
    for (int i = 0; i < 40; i++) strcat(many, ",link.send:1");
    assert_int_equal(set(many, 0, &err), MU_ELIMIT);
    set(NULL, 0, &err);
}

static void abort_kills(void **state)
{
    (void)state;
    struct mu_err err = MU_ERR_INIT;
    pid_t child = fork();
    if (child == 0) {
        if (set("rank.step:2=abort", 0, &err) != MU_OK) _exit(1);
        if (mu_fault_hit("rank.step")) _exit(2);
        mu_fault_hit("rank.step");
        _exit(3);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static void stop_stops_and_goes_on(void **state)
{
    (void)state;
    struct mu_err err = MU_ERR_INIT;
    pid_t child = fork();
    if (child == 0) {
        if (set("rank.token:9=stop", 0, &err) != MU_OK) _exit(1);
        _exit(mu_fault_value("rank.token", 9) ? 2 : 42);
    }
    int status;
    assert_int_equal(waitpid(child, &status, WUNTRACED), child);
    assert_true(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    kill(child, SIGCONT);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 42);
}

static void *hang_here(void *arg)
{
    mu_fault_hit("link.recv");
    *(int *)arg = 1; /* never */
    return NULL;
}

/* The thread hangs, the process lives. */
static void sleep_hangs_one_thread(void **state)
{
    (void)state;
    struct mu_err err = MU_ERR_INIT;
    pid_t child = fork();
    if (child == 0) {
        static int came_back;
        pthread_t thread;
        if (set("link.recv:1=sleep", 0, &err) != MU_OK || pthread_create(&thread, NULL, hang_here, &came_back))
            _exit(1);
        mu_sleep_ms(50);
        _exit(pthread_tryjoin_np(thread, NULL) != 0 ? 42 : 2);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 42);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_set),
        cmocka_unit_test(the_nth_pass),
        cmocka_unit_test(ranks_and_values),
        cmocka_unit_test(what_is_refused),
        cmocka_unit_test(abort_kills),
        cmocka_unit_test(stop_stops_and_goes_on),
        cmocka_unit_test(sleep_hangs_one_thread),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#else
int main(void)
{
    return 77;
} /* built without fault points */
#endif
