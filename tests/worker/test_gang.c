/* Real gangs: a worker process, mpirun, ranks, the demonstration model; this program is the coordinator. */
#include <glob.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "gang_fixture.h"

static struct fixture fx;
static uint64_t epoch;

/* A new worker; with a fault in one of its ranks where fault is not NULL. */
static void reopen(const char *fault)
{
    struct fx_request keep[FX_REQUESTS];
    fx_close(&fx);
    memcpy(keep, fx.req, sizeof keep);
    if (fault) setenv("MUSTER_FAULT", fault, 1);
    fx_open(&fx, NULL);
    unsetenv("MUSTER_FAULT");
    memcpy(fx.req, keep, sizeof keep);
    fx_requests_reset(&fx);
}

static void start_ready(const char *split)
{
    fx_gang_start(&fx, ++epoch, split, NULL);
    fx_wait_ready(&fx);
}

static void submit_all(void)
{
    for (int i = 0; i < FX_REQUESTS; i++)
        if (!fx.req[i].finished) fx_submit(&fx, i);
}

static void finish_all(void)
{
    for (int i = 0; i < FX_REQUESTS; i++) fx_wait_finished(&fx, i);
    for (int i = 0; i < FX_REQUESTS; i++) fx_check(&fx, i);
}

static void test_streams_equal_one_process(void **state)
{
    (void)state;
    static const char *const splits[] = {"2:1/1", "1", "1/1/1", "3:1/1:2"};
    for (int i = 0; i < 4; i++) {
        fx_requests_reset(&fx);
        start_ready(splits[i]);
        assert_true(fx.launched && fx.mpirun_pid > 0 && fx.loaded_bytes > 0);
        submit_all();
        finish_all();
        fx_gang_forget(&fx);
        fx_nothing_left(&fx);
    }
}

/* Pages for two of the eight: sequences are preempted and computed again, and nothing shows. */
static void test_pages_run_out(void **state)
{
    (void)state;
    static const char *const splits[] = {"2:1/1", "1"};
    fx.kv_pages = 6;
    fx.step_tokens = 16;
    for (int i = 0; i < 2; i++) {
        fx_requests_reset(&fx);
        start_ready(splits[i]);
        submit_all();
        finish_all();
        fx_gang_forget(&fx);
        fx_nothing_left(&fx);
    }
    fx.kv_pages = fx.step_tokens = 0;
}

static void test_cancel(void **state)
{
    (void)state;
    fx_requests_reset(&fx);
    start_ready("1:1");
    submit_all();
    fx_wait_tokens(&fx, 16);
    fx_cancel(&fx, 3);
    for (int i = 0; i < FX_REQUESTS; i++) fx_wait_finished(&fx, i);
    for (int i = 0; i < FX_REQUESTS; i++)
        if (i != 3 || fx.req[i].error_code == 0) fx_check(&fx, i);
    if (fx.req[3].error_code) assert_int_equal(fx.req[3].error_code, MU_ECANCELLED);
    fx_gang_forget(&fx); /* the coordinator goes away: so does the gang */
    fx_nothing_left(&fx);
}

/* Whatever dies in the middle of the streams, a new epoch goes on with exactly the tokens there would have been. */
static void die_and_go_on(int victim, int sig, const char *want_reason)
{
    fx_requests_reset(&fx);
    start_ready("2:1/1");
    submit_all();
    fx_wait_tokens(&fx, 24);
    int pid = victim < 0 ? fx.mpirun_pid : fx.rank_pid[victim];
    int64_t then = mu_now_ns();
    assert_int_equal(kill(pid, sig), 0);
    fx_wait_died(&fx);
    double seconds = (double)(mu_now_ns() - then) / 1e9;
    print_message("victim %d signal %d: %s, after %.2f s\n", victim, sig, fx.reason, seconds);
    assert_true(fx.died);
    assert_int_equal(fx.culprit, victim);
    assert_false(fx.permanent);
    if (!strstr(fx.reason, want_reason)) fail_msg("the reason is: %s", fx.reason);
    assert_true(seconds < 20);
    fx_nothing_left(&fx);
    start_ready("2:1/1");
    submit_all();
    finish_all();
    fx_gang_forget(&fx);
    fx_nothing_left(&fx);
}

static void test_kill_a_rank(void **state)
{
    (void)state;
    die_and_go_on(1, SIGKILL, "rank 1");
}

static void test_kill_the_leader(void **state)
{
    (void)state;
    die_and_go_on(2, SIGKILL, "rank 2");
}

static void test_kill_mpirun(void **state)
{
    (void)state;
    die_and_go_on(-1, SIGKILL, "mpirun");
}

/* Before the worker knows any rank: they are its own then, and it leaves no zombies. */
static void test_kill_mpirun_early(void **state)
{
    (void)state;
    fx_requests_reset(&fx);
    for (int i = 0; i < 3; i++) {
        fx_gang_start(&fx, ++epoch, "1:1:1:1", NULL);
        fx_wait_launched(&fx);
        int64_t until = mu_now_ns() + 60 * MU_SEC;
        while (fx_children(fx.mpirun_pid) < 2 && fx_alive(fx.mpirun_pid)) /* ranks: _launch has one at a time */
            if (mu_now_ns() > until) fail_msg("mpirun started no two ranks within a minute");
        kill(fx.mpirun_pid, SIGKILL);
        fx_wait_died(&fx);
        if (!fx.died || !strstr(fx.reason, "mpirun")) fail_msg("%s", fx.reason);
        fx_nothing_left(&fx);
    }
}

static void test_stop_a_rank(void **state)
{
    (void)state;
    die_and_go_on(0, SIGSTOP, "shown no life");
}

static void test_stop_the_leader(void **state)
{
    (void)state;
    die_and_go_on(2, SIGSTOP, "shown no life");
}

/* User and system time of a process so far, in seconds. */
static double cpu_seconds(int pid)
{
    char path[64], buf[1024];
    unsigned long user = 0, system = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *f = fopen(path, "r");
    if (!f) fail_msg("%s is gone", path);
    size_t n = fread(buf, 1, sizeof buf - 1, f);
    fclose(f);
    buf[n] = '\0';
    const char *after = strrchr(buf, ')');
    assert_int_equal(sscanf(after + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system), 2);
    return (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}

static void test_an_idle_gang_sleeps_alone(void **state)
{
    (void)state;
    char path[64], theirs[64] = "", ours[64] = "";
    fx_requests_reset(&fx);
    start_ready("2:1/1");
    fx_submit(&fx, 0);
    fx_wait_finished(&fx, 0);
    fx_check(&fx, 0);
    double before = cpu_seconds(fx.mpirun_pid), wall = 1.5;
    for (int i = 0; i < fx.n_rank; i++) before += cpu_seconds(fx.rank_pid[i]);
    mu_sleep_ms((int)(wall * 1000)); /* the thing measured is time itself */
    double after = cpu_seconds(fx.mpirun_pid);
    for (int i = 0; i < fx.n_rank; i++) after += cpu_seconds(fx.rank_pid[i]);
    print_message("an idle gang of three ranks uses %.1f%% of a core\n", 100 * (after - before) / wall);
    assert_true(after - before < 0.1 * wall);
    snprintf(path, sizeof path, "/proc/%d/ns/net", fx.rank_pid[0]);
    assert_true(readlink(path, theirs, sizeof theirs - 1) > 0);
    assert_true(readlink("/proc/self/ns/net", ours, sizeof ours - 1) > 0);
    if (strcmp(theirs, ours) == 0) print_message("this system allows no private network\n");
    fx_submit(&fx, 1); /* and it wakes up again */
    fx_wait_finished(&fx, 1);
    fx_check(&fx, 1);
    fx_gang_forget(&fx);
    fx_nothing_left(&fx);
}

static void test_stale_epochs(void **state)
{
    (void)state;
    fx_requests_reset(&fx);
    start_ready("1");
    fx_gang_forget(&fx);
    fx_nothing_left(&fx);
    fx_gang_start(&fx, epoch, "1", NULL);
    fx_wait_died(&fx);
    assert_false(fx.died);
    assert_int_equal(fx.done_code, MU_RPC_FAILED_PRECONDITION);
    assert_non_null(strstr(fx.done_text, "stale"));
}

static void died_at_start(const char *split, const char *model, const char *want_reason)
{
    fx_gang_start(&fx, ++epoch, split, model);
    fx_wait_died(&fx);
    if (!fx.died) fail_msg("no died: %s", fx.done_text);
    if (!strstr(fx.reason, want_reason)) fail_msg("the reason is: %s", fx.reason);
    assert_true(fx.permanent);
    assert_false(fx.ready);
}

static void test_what_cannot_start_is_permanent(void **state)
{
    (void)state;
    died_at_start("1", "/nowhere/model.gguf", "/nowhere/model.gguf");
    died_at_start("1:", NULL, "split");
    died_at_start("1/1/1/1/1/1/1/1", NULL, "stage"); /* more than it has layers */
}

static void test_the_worker_ends_in_order(void **state)
{
    (void)state;
    fx_requests_reset(&fx);
    start_ready("1/1");
    submit_all();
    fx_wait_tokens(&fx, 8);
    int64_t then = mu_now_ns();
    int status = fx_worker_end(&fx, SIGTERM);
    double seconds = (double)(mu_now_ns() - then) / 1e9;
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_true(seconds < 5);
    fx_wait_died(&fx);
    assert_non_null(strstr(fx.reason, "shutting down"));
    fx_nothing_left(&fx);
}

static void test_the_worker_is_killed(void **state)
{
    (void)state;
    reopen(NULL);
    start_ready("1/1");
    submit_all();
    fx_wait_tokens(&fx, 8);
    char pattern[64];
    glob_t found;
    snprintf(pattern, sizeof pattern, "/dev/shm/muster-%d-*", (int)fx.worker);
    bool shm = access("/dev/shm", W_OK) == 0;
    assert_int_equal(glob(pattern, 0, NULL, &found), shm ? 0 : GLOB_NOMATCH);
    globfree(&found);
    fx_worker_end(&fx, SIGKILL);
    fx_nothing_left(&fx);
    reopen(NULL); /* the next worker sweeps up */
    start_ready("1");
    assert_int_equal(glob(pattern, 0, NULL, &found), GLOB_NOMATCH);
    globfree(&found);
}

static void test_a_process_cannot_be_started(void **state)
{
    (void)state;
    reopen("worker.spawn:1");
    fx_gang_start(&fx, ++epoch, "1", NULL);
    fx_wait_died(&fx);
    assert_true(fx.died && !fx.permanent);
    assert_non_null(strstr(fx.reason, "cannot start a process for mpirun"));
    start_ready("1"); /* that was once */
    fx_gang_forget(&fx);
    fx_nothing_left(&fx);
}

static void test_a_rank_says_what_ended_it(void **state)
{
    (void)state;
    reopen("rank.load@1:1");
    fx_gang_start(&fx, ++epoch, "1:1:1", NULL);
    fx_wait_died(&fx);
    assert_true(fx.died && !fx.ready);
    assert_int_equal(fx.culprit, 1);
    if (!strstr(fx.reason, "rank 1: cannot load") || !strstr(fx.reason, "rank.load")) fail_msg("%s", fx.reason);
    fx_nothing_left(&fx);
}

/* The same error is permanent where a gang cannot start. */
static void test_no_memory_in_a_step_is_not_permanent(void **state)
{
    (void)state;
    reopen("rank.step@1:5");
    start_ready("1/1"); /* rank 1 leads */
    submit_all();
    fx_wait_died(&fx);
    assert_true(fx.died && !fx.permanent);
    assert_int_equal(fx.culprit, 1);
    if (!strstr(fx.reason, "rank 1: step 5: a fault point was hit")) fail_msg("%s", fx.reason);
    fx_nothing_left(&fx);
}

static void test_a_rank_that_hangs_but_breathes(void **state)
{
    (void)state;
    reopen("rank.step@1:5=sleep");
    start_ready("1:1/1");
    submit_all();
    fx_wait_died(&fx);
    assert_true(fx.died);
    if (!strstr(fx.reason, "no progress")) fail_msg("%s", fx.reason);
    assert_int_equal(fx.culprit, 1);
    fx_nothing_left(&fx);
}

/* The leader ends with its stream, and the gang with it, at once and for a reason that says so. */
static void test_the_stream_breaks(void **state)
{
    (void)state;
    reopen("engine.send@1:9");
    start_ready("1/1");
    submit_all();
    fx_wait_died(&fx);
    assert_true(fx.died && !fx.permanent);
    if (!strstr(fx.reason, "rank 1: the stream to the coordinator")) fail_msg("%s", fx.reason);
    fx_nothing_left(&fx);
}

static void test_inventory(void **state)
{
    (void)state;
    struct mu_err err = MU_ERR_INIT;
    Muster__Internal__V1__InventoryRequest q = MUSTER__INTERNAL__V1__INVENTORY_REQUEST__INIT;
    for (int measure = 0; measure < 2; measure++) {
        ProtobufCMessage *reply = NULL;
        q.measure = measure;
        if (mu_rpc_unary(fx.channel, "/muster.internal.v1.Worker/Inventory", &q.base,
                         &muster__internal__v1__inventory_reply__descriptor, mu_now_ns() + 60 * MU_SEC, &reply,
                         &err) != MU_OK)
            fail_msg("%s", err.text);
        const Muster__V1__Node *node = ((Muster__Internal__V1__InventoryReply *)reply)->node;
        assert_true(node->cores > 0 && node->memory_bytes > node->memory_available_bytes / 2 && node->name[0]);
        assert_int_equal(node->worker_pid, fx.worker);
        if (measure) {
            print_message("%.1f GB/s, %.1f int8 GOP/s\n", node->read_gbps, node->int8_gops);
            assert_true(node->read_gbps > 0.1 && node->read_gbps < 1e5);
            assert_true(node->int8_gops > 0.1 && node->int8_gops < 1e7);
        }
        mu_rpc_message_free(reply);
    }
}

/* A worker that belongs to somebody ends with it, however that one dies. */
static void test_the_parent_dies(void **state)
{
    (void)state;
    char command[512], line[64] = "";
    int pid = 0;
    snprintf(command, sizeof command, "sh -c '%s worker unix:%s/other.sock $$ & echo $! $$; wait'", WORKER_MAIN,
             fx.dir);
    FILE *f = popen(command, "r");
    assert_non_null(f);
    assert_non_null(fgets(line, sizeof line, f));
    int shell = 0;
    assert_int_equal(sscanf(line, "%d %d", &pid, &shell), 2);
    char path[160];
    snprintf(path, sizeof path, "%s/other.sock", fx.dir);
    int64_t end = mu_now_ns() + 30 * MU_SEC;
    while (access(path, F_OK) != 0 && mu_now_ns() < end) mu_sleep_ms(5); /* it serves */
    assert_int_equal(access(path, F_OK), 0);
    assert_int_equal(kill(shell, SIGKILL), 0);
    while (fx_alive(pid) && mu_now_ns() < end) mu_sleep_ms(5);
    assert_false(fx_alive(pid));
    pclose(f);
    unlink(path);
}

static void test_without_mpirun(void **state)
{
    (void)state;
    fx_close(&fx);
    fx_open(&fx, "");
    died_at_start("1", NULL, "mpirun was not found in PATH; install Open MPI (Debian: openmpi-bin)");
}

/* A gang of that split dies at its start under an mpirun that is this script. */
static void died_of_script(const char *split, const char *script)
{
    char folder[] = "/tmp/mu-mpirun-XXXXXX", path[64];
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/mpirun", folder);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fputs(script, f) < 0 || fchmod(fileno(f), 0700) != 0 || fclose(f) != 0, 0);
    fx_close(&fx);
    fx_open(&fx, folder);
    fx_gang_start(&fx, ++epoch, split, NULL);
    fx_wait_died(&fx);
    unlink(path);
    rmdir(folder);
}

/* What mpirun says is cut somewhere in its letters, and told all the same. */
static void test_mpirun_says_much(void **state)
{
    (void)state;
    died_of_script("1", "#!/bin/sh\n"
                        "a=\303\251\303\251\303\251\303\251; a=$a$a$a$a$a$a\n"
                        "echo ------------------------------\n"
                        "echo x$a$a$a$a$a$a$a\n"
                        "exit 3\n");
    if (!fx.died || !strstr(fx.reason, "mpirun ended with status 3: x\303\251")) fail_msg("%s", fx.reason);
}

/* Ranks that have no way to talk to each other: Open MPI ends them in MPI_Init, and what was said is told. The script
 * says it, for Open MPI loses its own words now and then. */
static void test_mpi_init_fails(void **state)
{
    (void)state;
    char script[4096];
    int n = snprintf(script, sizeof script,
                     "#!/bin/sh\n"
                     "echo ------------------------------\n"
                     "echo no room to share\n"
                     "echo ------------------------------\n"
                     "PATH='%s'\n"
                     "for a; do [ \"$a\" = vader,self ] && a=self; shift; set -- \"$@\" \"$a\"; done\n"
                     "exec mpirun \"$@\"\n",
                     getenv("PATH"));
    assert_true((size_t)n < sizeof script);
    died_of_script("1:1", script);
    if (!fx.died || !strstr(fx.reason, ": no room to share")) fail_msg("%s", fx.reason);
}

static int setup(void **state)
{
    (void)state;
    fx_open(&fx, NULL);
    fx_expect(&fx);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    fx_close(&fx);
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_streams_equal_one_process),
        cmocka_unit_test(test_pages_run_out),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_kill_a_rank),
        cmocka_unit_test(test_kill_the_leader),
        cmocka_unit_test(test_kill_mpirun),
        cmocka_unit_test(test_kill_mpirun_early),
        cmocka_unit_test(test_stop_a_rank),
        cmocka_unit_test(test_stop_the_leader),
        cmocka_unit_test(test_an_idle_gang_sleeps_alone),
        cmocka_unit_test(test_inventory),
        cmocka_unit_test(test_the_parent_dies),
        cmocka_unit_test(test_stale_epochs),
        cmocka_unit_test(test_what_cannot_start_is_permanent),
        cmocka_unit_test(test_the_worker_ends_in_order),
        cmocka_unit_test(test_the_worker_is_killed),
        cmocka_unit_test(test_a_process_cannot_be_started),
        cmocka_unit_test(test_a_rank_says_what_ended_it),
        cmocka_unit_test(test_no_memory_in_a_step_is_not_permanent),
        cmocka_unit_test(test_a_rank_that_hangs_but_breathes),
        cmocka_unit_test(test_the_stream_breaks),
        cmocka_unit_test(test_without_mpirun),
        cmocka_unit_test(test_mpirun_says_much),
        cmocka_unit_test(test_mpi_init_fails),
    };
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc > 1) cmocka_set_test_filter(argv[1]); /* "test_kill*" */
    return cmocka_run_group_tests(tests, setup, teardown);
}
