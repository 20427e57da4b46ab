/* What GPUs there are, through the plugin's table. The answer of a child is the struct itself on a pipe: it is the same
 * program. */
#include "shard/plan_gpus.h"

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

#include "base/clock.h"
#include "base/log.h"
#include "base/topo.h"
#include "kernels/device.h"
#include "model/model.h"

extern char **environ;

enum { END_MS = 2000 }; /* that a child may take to end */

void mu_gpu_describe(const struct mu_gpus *gpus, int device, char text[MU_GPU_TEXT])
{
    if (device >= 0 && device < gpus->n)
        snprintf(text, MU_GPU_TEXT, "GPU %d (%s)", device, gpus->gpu[device].name);
    else
        snprintf(text, MU_GPU_TEXT, "GPU %d", device);
}

/* ---- in this process ---- */

static enum mu_status measure(const struct mu_device_ops *ops, int i, struct mu_gpu *g, struct mu_err *err)
{
    struct mu_device *d = NULL;
    struct mu_device_speed s;
    enum mu_status st = ops->open(i, &d, err);
    if (st != MU_OK) return st;
    st = ops->measure(d, &s, err);
    ops->close(d);
    if (st != MU_OK) return st;
    g->read_gbps = s.read_gbps;
    g->up_gbps = s.up_gbps;
    g->down_gbps = s.down_gbps;
    g->int8_gops = s.int8_gops;
    g->bf16_gops = s.bf16_gops;
    g->f32_gops = s.f32_gops;
    return MU_OK;
}

static enum mu_status gpu_read(const struct mu_device_ops *ops, int i, bool want_measure, struct mu_gpu *g,
                               struct mu_err *err)
{
    struct mu_device_info info;
    enum mu_status st = ops->info(i, &info, err);
    if (st != MU_OK) return st;
    *g = (struct mu_gpu){.memory_bytes = info.memory_bytes,
                         .free_bytes = info.free_bytes,
                         .capability = info.capability,
                         .has_link = info.has_link,
                         .numa = info.pci[0] ? mu_topo_numa_of_pci(info.pci) : -1};
    snprintf(g->name, sizeof g->name, "%s", info.name);
    snprintf(g->pci, sizeof g->pci, "%s", info.pci);
    struct mu_err why = MU_ERR_INIT;
    if (want_measure && measure(ops, i, g, &why) != MU_OK) mu_warn("gpu", "GPU %d is not measured: %s", i, why.text);
    return MU_OK;
}

void mu_gpus_read(bool want_measure, struct mu_gpus *gpus_out)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_gpus gpus = {0};
    const struct mu_device_ops *ops = mu_device_load(&err);
    int n = ops ? ops->count(&err) : -1;
    for (int i = 0; i < n && i < MU_MAX_GPUS && err.code == MU_OK; i++)
        if (gpu_read(ops, i, want_measure, &gpus.gpu[i], &err) == MU_OK) gpus.n++;
    if (gpus.n == 0) {
        const char *named = getenv("MUSTER_DEVICE_PLUGIN");
        gpus.broken = n != 0 && (ops || err.code != MU_ENOENT || (named && *named && strcmp(named, "none") != 0));
        snprintf(gpus.why, sizeof gpus.why, "%.*s", MU_GPUS_WHY - 1,
                 err.code ? err.text : "the driver finds none on this machine");
    } else if (gpus.n < n && n <= MU_MAX_GPUS) { /* numbers must stay the driver's: what follows is not used */
        mu_warn("gpu", "GPU %d and those after it are not used: %s", gpus.n, err.text);
    }
    *gpus_out = gpus;
}

enum mu_status mu_gpus_can(const struct mu_model *model, struct mu_err *err)
{
    const struct mu_device_ops *ops = mu_device_load(NULL);
    const struct mu_config *c = &model->cfg;
    for (int l = -1; ops && l < c->n_layer; l++) {
        for (int id = 0; id < (l < 0 ? 1 : MU_T_MATRIX_COUNT); id++) {
            const struct mu_gguf_tensor *t = l < 0 ? model->output : model->layer[l][id];
            if (!t || ops->mat_bytes(t->type, 16, (int)t->ne[0]) > 0) continue;
            const struct mu_type_info *type = mu_type_info(t->type);
            char name[80];
            return mu_fail(
                err, MU_EUNSUPPORTED,
                "GPU ranks have no product for %s matrices of %d columns ('%s'): use --device cpu, or another "
                "type (--quantize)",
                type && type->name ? type->name : "such", (int)t->ne[0], mu_str_show(t->name, name, sizeof name));
        }
    }
    return MU_OK;
}

/* ---- in a child ---- */

int mu_gpus_main(int argc, char **argv)
{
    struct mu_gpus gpus;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int fd = dup(STDOUT_FILENO); /* a driver may print */
    if (fd < 0 || dup2(STDERR_FILENO, STDOUT_FILENO) < 0) return 1;
    mu_gpus_read(argc > 1 && strcmp(argv[1], "--measure") == 0, &gpus);
    return write(fd, &gpus, sizeof gpus) == (ssize_t)sizeof gpus ? 0 : 1;
}

static int child_start(bool want_measure, pid_t *pid_out, int *fd_out)
{
    char *argv[] = {"muster", "_gpus", want_measure ? "--measure" : NULL, NULL};
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attr;
    sigset_t none, all;
    int fd[2];
    if (pipe2(fd, O_CLOEXEC) != 0) return errno;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attr);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, fd[1], STDOUT_FILENO);
    posix_spawn_file_actions_addclosefrom_np(&actions, STDERR_FILENO + 1);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setsigdefault(&attr, &all);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    int e = posix_spawn(pid_out, "/proc/self/exe", &actions, &attr, argv, environ);
    posix_spawnattr_destroy(&attr);
    posix_spawn_file_actions_destroy(&actions);
    close(fd[1]);
    if (e)
        close(fd[0]);
    else
        *fd_out = fd[0];
    return e;
}

/* Bytes of the answer that came before the deadline. */
static size_t answer_read(int fd, int64_t deadline_ns, void *buf, size_t bytes)
{
    size_t len = 0;
    for (;;) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        int64_t left = deadline_ns - mu_now_ns();
        if (len == bytes || left <= 0) return len;
        if (poll(&p, 1, (int)(left / MU_MS) + 1) <= 0) continue;
        ssize_t n = read(fd, (char *)buf + len, bytes - len);
        if (n == 0 || (n < 0 && errno != EINTR)) return len;
        if (n > 0) len += (size_t)n;
    }
}

/* How it ended; force: it shall now. A driver may hang at its exit too: then it is killed. Inside the driver a process may
 * outlive even that: it is left behind, and 0 is returned. */
static int child_end(pid_t pid, bool force)
{
    int status = 0;
    if (force) kill(pid, SIGKILL);
    for (int64_t until = mu_now_ns() + END_MS * MU_MS; mu_now_ns() < until; mu_sleep_ms(1)) {
        pid_t got = waitpid(pid, &status, WNOHANG);
        if (got == pid) return status;
        if (got < 0 && errno != EINTR) return 0;
    }
    return force ? 0 : child_end(pid, true);
}

void mu_gpus_ask(bool want_measure, int deadline_ms, struct mu_gpus *gpus_out)
{
    struct mu_gpus gpus = {0};
    pid_t pid;
    int fd = -1, status = 0;
    int64_t deadline_ns = mu_now_ns() + deadline_ms * MU_MS;
    int e = child_start(want_measure, &pid, &fd);
    if (e) {
        *gpus_out = (struct mu_gpus){.broken = true};
        snprintf(gpus_out->why, MU_GPUS_WHY, "cannot start a process that looks for them: %s", strerror(e));
        return;
    }
    bool whole =
        answer_read(fd, deadline_ns, &gpus, sizeof gpus) == sizeof gpus && gpus.n >= 0 && gpus.n <= MU_MAX_GPUS;
    bool late = !whole && mu_now_ns() >= deadline_ns;
    close(fd);
    status = child_end(pid, late);
    if (!whole) {
        gpus = (struct mu_gpus){.broken = true};
        if (late)
            snprintf(gpus.why, MU_GPUS_WHY, "the GPU driver does not answer (waited %d ms)", deadline_ms);
        else if (WIFSIGNALED(status))
            snprintf(gpus.why, MU_GPUS_WHY, "looking for them ended with signal %d (%s)", WTERMSIG(status),
                     strsignal(WTERMSIG(status)));
        else
            snprintf(gpus.why, MU_GPUS_WHY, "looking for them ended with status %d", WEXITSTATUS(status));
    }
    *gpus_out = gpus;
}
