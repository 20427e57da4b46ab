/* The watchdog: each case is a process of its own that hangs, or does not. */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/watchdog.h"

enum how { SIGNAL_PENDING, SIGNAL_TAKEN, PHASE_HANGS, PHASES_PASS, NOTHING };
enum { GRACE_MS = 400 };

static void child(enum how how, int error_fd)
{
    sigset_t ends;
    int sig;
    dup2(error_fd, STDERR_FILENO);
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigprocmask(SIG_BLOCK, &ends, NULL);
    mu_watchdog_ending(); /* nothing was started: no effect */
    if (mu_watchdog_start("test", &ends, GRACE_MS, NULL) != MU_OK) _exit(2);
    if (how == SIGNAL_TAKEN) {
        if (sigwait(&ends, &sig) != 0) _exit(3);
        mu_watchdog_ending();
    } else if (how == PHASE_HANGS) {
        mu_watchdog_phase("the first phase", 60000);
        mu_watchdog_phase("a phase", 300);
    } else if (how == PHASES_PASS) {
        mu_watchdog_phase("a phase", 300);
        mu_watchdog_phase(NULL, 0);
    }
    if (how == NOTHING || how == PHASES_PASS) {
        mu_sleep_ms(1500);
        _exit(42);
    }
    for (;;) mu_sleep_ms(1000);
}

static int run(enum how how, char *said, size_t bytes, int64_t *took_ns_out)
{
    int p[2], status;
    assert_int_equal(pipe(p), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) child(how, p[1]);
    close(p[1]);
    mu_sleep_ms(100);
    int64_t begin = mu_now_ns();
    if (how == SIGNAL_PENDING || how == SIGNAL_TAKEN) kill(pid, SIGTERM);
    while (waitpid(pid, &status, WNOHANG) == 0) {
        if (mu_now_ns() > begin + 10 * MU_SEC) kill(pid, SIGKILL);
        mu_sleep_ms(10);
    }
    *took_ns_out = mu_now_ns() - begin;
    ssize_t n = read(p[0], said, bytes - 1);
    said[n > 0 ? n : 0] = '\0';
    close(p[0]);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void what_hangs_ends(void **state)
{
    (void)state;
    char said[300];
    int64_t took;
    for (enum how how = SIGNAL_PENDING; how <= SIGNAL_TAKEN; how++) {
        assert_int_equal(run(how, said, sizeof said, &took), 1);
        assert_true(took >= (GRACE_MS - 50) * MU_MS && took < 5 * MU_SEC);
        assert_string_equal(said, "test: the end hangs: ended by force\n");
    }
    assert_int_equal(run(PHASE_HANGS, said, sizeof said, &took), 1);
    assert_true(took < 5 * MU_SEC);
    assert_non_null(strstr(said, "test: a phase hangs"));
}

static void what_does_not_hang_stays(void **state)
{
    (void)state;
    char said[300];
    int64_t took;
    assert_int_equal(run(NOTHING, said, sizeof said, &took), 42);
    assert_int_equal(run(PHASES_PASS, said, sizeof said, &took), 42);
    assert_string_equal(said, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_hangs_ends),
        cmocka_unit_test(what_does_not_hang_stays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
