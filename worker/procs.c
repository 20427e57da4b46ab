/* Ending a tree of two levels: mpirun and its ranks. mpirun is stopped first, so that it starts nothing more while its
 * children are listed from /proc; then everything gets SIGKILL, which stopped processes take as well. Where mpirun has
 * gone before, its children have become ours (the worker is their subreaper), and are known by the session they share:
 * its number is given to nobody else while one of them, a zombie too, is left. */
#include "worker/procs.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"

enum { MAX_CHILDREN = 256 };

/* The parent and the session of pid from /proc; false: it is not there. */
static bool stat_read(pid_t pid, pid_t *parent_out, pid_t *session_out)
{
    char path[64], buf[512];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *f = fopen(path, "re");
    if (!f) return false;
    size_t n = fread(buf, 1, sizeof buf - 1, f);
    fclose(f);
    buf[n] = '\0';
    const char *after = strrchr(buf, ')'); /* the name before may hold anything */
    return after && sscanf(after + 1, " %*c %d %*d %d", parent_out, session_out) == 2;
}

bool mu_proc_open(pid_t pid, pid_t parent, struct mu_proc *proc_out)
{
    int fd = pidfd_open(pid, 0);
    pid_t now, session;
    if (fd < 0) return false;
    /* The descriptor came first: what /proc says now is about the process that it stands for, or about nobody. */
    if (parent && (!stat_read(pid, &now, &session) || now != parent)) {
        close(fd);
        return false;
    }
    *proc_out = (struct mu_proc){pid, fd};
    return true;
}

void mu_proc_close(struct mu_proc *p)
{
    if (p->fd >= 0) close(p->fd);
    p->fd = -1;
}

bool mu_proc_gone(const struct mu_proc *p)
{
    struct pollfd pf = {.fd = p->fd, .events = POLLIN};
    return p->fd < 0 || poll(&pf, 1, 0) > 0;
}

bool mu_proc_own_path(char *path, size_t path_bytes)
{
    struct stat ours, there;
    ssize_t n = readlink("/proc/self/exe", path, path_bytes - 1);
    if (n <= 0) return false;
    path[n] = '\0';
    return stat("/proc/self/exe", &ours) == 0 && stat(path, &there) == 0 && ours.st_dev == there.st_dev &&
           ours.st_ino == there.st_ino;
}

static void proc_signal(const struct mu_proc *p, int sig)
{
    if (p->fd >= 0) pidfd_send_signal(p->fd, sig, NULL, 0);
}

/* Of root while it is there, and its orphans. */
static int children_open(const struct mu_proc *root, struct mu_proc *child, int max)
{
    DIR *d = opendir("/proc");
    int n = 0;
    for (struct dirent *e; d && n < max && (e = readdir(d));)
        if (isdigit((unsigned char)e->d_name[0])) {
            pid_t pid = (pid_t)strtol(e->d_name, NULL, 10), parent, session;
            if (!stat_read(pid, &parent, &session)) continue;
            bool orphan = parent == getpid() && session == root->pid && pid != root->pid;
            if ((orphan || (root->fd >= 0 && parent == root->pid)) && mu_proc_open(pid, parent, &child[n])) n++;
        }
    if (d) closedir(d);
    return n;
}

static bool wait_gone(const struct mu_proc *p, int64_t deadline_ns)
{
    struct pollfd pf = {.fd = p->fd, .events = POLLIN};
    if (p->fd < 0) return true;
    for (;;) {
        int n = poll(&pf, 1, mu_ms_until(deadline_ns));
        if (n > 0) break;
        if (n == 0 || errno != EINTR) return false;
    }
    waitpid(p->pid, NULL, WNOHANG); /* an orphan that has become ours; else an error that means nothing */
    return true;
}

bool mu_proc_kill_tree(struct mu_proc *root, struct mu_proc *known, int n_known, int64_t deadline_ns, int *status_out)
{
    struct mu_proc child[MAX_CHILDREN];
    bool gone = true;
    *status_out = -1;
    proc_signal(root, SIGSTOP);
    int n = children_open(root, child, MAX_CHILDREN);
    for (int i = 0; i < n; i++) proc_signal(&child[i], SIGKILL);
    for (int i = 0; i < n_known; i++) proc_signal(&known[i], SIGKILL);
    proc_signal(root, SIGKILL);
    if (root->fd >= 0) {
        struct pollfd pf = {.fd = root->fd, .events = POLLIN};
        while (poll(&pf, 1, mu_ms_until(deadline_ns)) < 0 && errno == EINTR) {}
        if (waitpid(root->pid, status_out, WNOHANG) != root->pid) {
            *status_out = -1;
            gone = mu_proc_gone(root);
        }
        mu_proc_close(root);
    }
    for (int i = 0; i < n; i++) {
        gone &= wait_gone(&child[i], deadline_ns);
        mu_proc_close(&child[i]);
    }
    for (int i = 0; i < n_known; i++) {
        gone &= wait_gone(&known[i], deadline_ns);
        mu_proc_close(&known[i]);
    }
    return gone;
}
