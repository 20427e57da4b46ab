#include "coordinator/local_worker.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"

extern char **environ;

enum mu_status mu_local_worker_start(const char *address, pid_t *pid_out, struct mu_err *err)
{
    char pid_text[16];
    snprintf(pid_text, sizeof pid_text, "%d", (int)getpid());
    char *argv[] = {"muster", "worker", "--listen", (char *)address, "--parent", pid_text, NULL};
    posix_spawnattr_t attr;
    posix_spawn_file_actions_t fa;
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_init(&attr);
    posix_spawn_file_actions_init(&fa);
    /* Our signals are blocked for sigwait; the child starts with none blocked, in a group of its own, so that Ctrl-C
     * reaches us alone and we end it in order. */
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setsigdefault(&attr, &all);
    posix_spawnattr_setpgroup(&attr, 0);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
    posix_spawn_file_actions_addopen(&fa, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&fa, STDERR_FILENO, STDOUT_FILENO); /* stdout is ours alone */
    int rc = posix_spawn(pid_out, "/proc/self/exe", &fa, &attr, argv, environ);
    posix_spawn_file_actions_destroy(&fa);
    posix_spawnattr_destroy(&attr);
    return rc ? mu_fail(err, MU_EIO, "cannot start the worker: %s", strerror(rc)) : MU_OK;
}

int mu_local_worker_ended(pid_t pid, char *text, size_t text_bytes)
{
    int status;
    if (pid <= 0 || waitpid(pid, &status, WNOHANG) != pid) return 0;
    if (WIFSIGNALED(status))
        snprintf(text, text_bytes, "the worker (pid %d) was killed by signal %d", (int)pid, WTERMSIG(status));
    else
        snprintf(text, text_bytes, "the worker (pid %d) ended with status %d", (int)pid, WEXITSTATUS(status));
    return 1;
}

void mu_local_worker_kill(pid_t pid)
{
    if (pid > 0) kill(pid, SIGKILL);
}

void mu_local_worker_stop(pid_t pid, int grace_ms)
{
    if (pid <= 0) return;
    kill(pid, SIGTERM);
    kill(pid, SIGCONT); /* a stopped process would not hear it */
    int64_t deadline = mu_now_ns() + grace_ms * MU_MS;
    int status;
    while (waitpid(pid, &status, WNOHANG) == 0) {
        if (mu_now_ns() > deadline) {
            kill(pid, SIGKILL);
            waitpid(pid, &status, 0);
            return;
        }
        mu_sleep_ms(10);
    }
}
