/* A server of our own: `muster _served`, which is `muster serve` that dies with its parent, on a port that the system
 * chooses. Its line on standard output tells the address; its log goes where ours goes, warnings only. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "cli/bench_serve.h"

extern char **environ;

enum { MAX_ARGS = 24, POLL_MS = 100, STOP_MS = 8000 };

struct mu_bench_server {
    pid_t pid;
    int fd; /* its standard output; open until the end, so that it may write */
    char address[128];
};

int mu_cmd_served(int argc, char **argv)
{
    pid_t parent = getppid();
    if (prctl(PR_SET_PDEATHSIG, SIGTERM) || getppid() != parent) return MU_EXIT_FAILED;
    return mu_cmd_serve(argc, argv);
}

static enum mu_status spawn(char **argv, int out, pid_t *pid_out, struct mu_err *err)
{
    posix_spawn_file_actions_t fa;
    posix_spawnattr_t attr;
    posix_spawn_file_actions_init(&fa);
    posix_spawn_file_actions_addopen(&fa, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&fa, out, STDOUT_FILENO);
    posix_spawnattr_init(&attr);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETPGROUP); /* Ctrl-C is for us: it would end the server first */
    posix_spawnattr_setpgroup(&attr, 0);
    setenv("MUSTER_LOG", "warn", 0);
    int rc = posix_spawn(pid_out, "/proc/self/exe", &fa, &attr, argv, environ);
    posix_spawnattr_destroy(&attr);
    posix_spawn_file_actions_destroy(&fa);
    return rc ? mu_fail(err, MU_EIO, "cannot start a server: %s", strerror(rc)) : MU_OK;
}

static enum mu_status ended(struct mu_bench_server *s, struct mu_err *err)
{
    int status = 0;
    if (waitpid(s->pid, &status, 0) == s->pid) s->pid = 0;
    return mu_fail(err, MU_EPEER, "the server ended before it could serve (its message is above)");
}

/* "muster: serving NAME on ADDRESS, split …". */
static enum mu_status line_wait(struct mu_bench_server *s, struct mu_err *err)
{
    char line[1024];
    size_t len = 0;
    for (;;) {
        struct pollfd p = {.fd = s->fd, .events = POLLIN};
        if (mu_interrupted) return mu_fail(err, MU_ECANCELLED, "interrupted while the server started");
        if (poll(&p, 1, POLL_MS) <= 0) continue;
        ssize_t n = read(s->fd, line + len, sizeof line - 1 - len);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return ended(s, err);
        len += (size_t)n;
        line[len] = 0;
        char *end = strchr(line, '\n'), *on = NULL, *comma;
        if (!end && len < sizeof line - 1) continue;
        for (char *at = line; (at = strstr(at, " on ")); at++) on = at + 4; /* a name may hold it too */
        comma = on ? strchr(on, ',') : NULL;
        if (!end || !comma || comma - on >= (int)sizeof s->address)
            return mu_fail(err, MU_EPROTO, "the server said '%.100s' instead of its address", line);
        memcpy(s->address, on, (size_t)(comma - on));
        return MU_OK;
    }
}

enum mu_status mu_bench_server_start(const struct mu_bench_serve_options *opt, struct mu_bench_server **server_out,
                                     struct mu_err *err)
{
    enum mu_status st;
    char threads[16], ctx[16], parallel[16];
    char *argv[MAX_ARGS];
    int n = 0, pipes[2] = {-1, -1};
    struct mu_bench_server *s = mu_calloc(1, sizeof *s);
    if (!s) return mu_fail(err, MU_ENOMEM, "no memory for a server");
    s->fd = -1;
    if (pipe2(pipes, O_CLOEXEC)) {
        st = mu_fail(err, MU_EIO, "cannot start a server: %s", strerror(errno));
        goto fail;
    }
    s->fd = pipes[0];
    argv[n++] = "muster";
    argv[n++] = "_served";
    argv[n++] = (char *)opt->model;
    argv[n++] = "--listen";
    argv[n++] = "127.0.0.1:0";
    if (opt->split) argv[n++] = "--split", argv[n++] = (char *)opt->split;
    if (opt->device) argv[n++] = "--device", argv[n++] = opt->device == MU_DEVICE_CPU ? "cpu" : "gpu";
    if (opt->draft) argv[n++] = "--draft", argv[n++] = (char *)opt->draft;
    if (opt->quantize) argv[n++] = "--quantize", argv[n++] = (char *)opt->quantize;
    if (opt->rough) argv[n++] = "--gpu-prompts", argv[n++] = "rough";
    if (opt->kv) argv[n++] = "--kv", argv[n++] = (char *)mu_kv_type_name(opt->kv);
    snprintf(threads, sizeof threads, "%d", opt->n_thread);
    snprintf(ctx, sizeof ctx, "%d", opt->n_ctx);
    snprintf(parallel, sizeof parallel, "%d", opt->n_parallel);
    if (opt->n_thread) argv[n++] = "--threads", argv[n++] = threads;
    if (opt->n_ctx) argv[n++] = "--ctx", argv[n++] = ctx;
    if (opt->n_parallel) argv[n++] = "--parallel", argv[n++] = parallel;
    argv[n] = NULL;
    MU_TRY(st, spawn(argv, pipes[1], &s->pid, err), fail);
    close(pipes[1]);
    pipes[1] = -1;
    MU_TRY(st, line_wait(s, err), fail);
    *server_out = s;
    return MU_OK;
fail:
    if (pipes[1] >= 0) close(pipes[1]);
    mu_bench_server_stop(s);
    return st;
}

const char *mu_bench_server_address(const struct mu_bench_server *s)
{
    return s->address;
}

void mu_bench_server_stop(struct mu_bench_server *s)
{
    if (!s) return;
    if (s->pid > 0) {
        int status;
        int64_t deadline = mu_now_ns() + STOP_MS * MU_MS;
        kill(s->pid, SIGTERM);
        while (waitpid(s->pid, &status, WNOHANG) == 0) {
            if (mu_now_ns() > deadline) kill(s->pid, SIGKILL);
            mu_sleep_ms(10);
        }
    }
    if (s->fd >= 0) close(s->fd);
    mu_free(s);
}
