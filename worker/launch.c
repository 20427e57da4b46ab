/* muster _launch PARENT_PID FOLDER -- MPIRUN ARGUMENT…
 *
 * Becomes an mpirun that runs this very program as `muster _rank FOLDER`, after three things that only a fresh process can
 * do to itself:
 *
 *   1. its own network namespace with nothing but `lo`: Open MPI's control channel executes what it is told and listens
 *      on every interface whatever it is asked, so a gang of one machine gets a network that nobody else is on. Who is
 *      not privileged needs a user namespace of its own for that; root does without one, in which it might not read what
 *      belongs to others (a model in somebody's home). Where the system allows neither, it says so and goes on without;
 *      MUSTER_PRIVATE_NET=0 asks for that. Where the machine's name is long, a namespace for a short one, too.
 *   2. the parent-death signal: when the worker dies, mpirun is killed, and its ranks with it. Set after the
 *      namespaces, because a change of credentials clears it; the parent is then looked at once more, since it may have
 *      died before.
 *   3. MUSTER_MPIRUN_PID in the environment, so that ranks can make the same check; and Open MPI is told to leave
 *      process_vm_readv alone where it is refused (containers' system call filters), which it would find out too late.
 *
 * Where another file is at this program's path by now (an upgrade), ranks are started from a descriptor of the old one that
 * mpirun has: a worker goes on as what it is until it is started again.
 *
 * Thread: the process's only one. Nothing is allocated that outlives exec. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/environ.h"
#include "base/log.h"
#include "worker/procs.h"
#include "worker/worker.h"

enum { MAX_ARGS = 64 };

static int file_put(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t n = write(fd, text, strlen(text));
    int e = errno;
    close(fd);
    errno = e;
    return n == (ssize_t)strlen(text) ? 0 : -1;
}

static int loopback_up(void)
{
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    struct ifreq r = {.ifr_name = "lo"};
    int st = ioctl(fd, SIOCGIFFLAGS, &r);
    r.ifr_flags |= IFF_UP;
    if (st == 0) st = ioctl(fd, SIOCSIFFLAGS, &r);
    int e = errno;
    close(fd);
    errno = e;
    return st;
}

/* A new user namespace knows who we are, and nobody else. The ids are those from before it. */
static bool ids_map(unsigned uid, unsigned gid, const char **what_out)
{
    char map[64];
    *what_out = "/proc/self/setgroups";
    if (file_put("/proc/self/setgroups", "deny") != 0 && errno != ENOENT) return false;
    *what_out = "/proc/self/uid_map";
    snprintf(map, sizeof map, "%u %u 1", uid, uid);
    if (file_put("/proc/self/uid_map", map) != 0) return false;
    *what_out = "/proc/self/gid_map";
    snprintf(map, sizeof map, "%u %u 1", gid, gid);
    return file_put("/proc/self/gid_map", map) == 0;
}

/* Whether this process is alone with its `lo` now; *what_out says what the system refused. After a success of unshare
 * there is no way back, so a failure of the steps behind it leaves a network without `lo` and is fatal. */
enum outcome { PRIVATE, SHARED, BROKEN };
static enum outcome network_enter(int namespaces, const char **what_out)
{
    unsigned uid = (unsigned)getuid(), gid = (unsigned)getgid();
    *what_out = "unshare";
    if (unshare(namespaces) != 0) return SHARED;
    if (namespaces & CLONE_NEWUSER && !ids_map(uid, gid, what_out)) return BROKEN;
    *what_out = "bringing lo up";
    return loopback_up() == 0 ? PRIVATE : BROKEN;
}

/* Tries it in a child first: an outcome BROKEN cannot be undone in the process that had it. */
static int network_possible(int namespaces, char *why, size_t why_bytes)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) != 0) return 0;
    pid_t pid = fork();
    if (pid == 0) {
        const char *what;
        if (network_enter(namespaces, &what) == PRIVATE) _exit(0);
        char text[128];
        int n = snprintf(text, sizeof text, "%s: %s", what, strerror(errno));
        _exit(write(fds[1], text, (size_t)n) == n ? 1 : 2);
    }
    close(fds[1]);
    ssize_t n = pid > 0 ? read(fds[0], why, why_bytes - 1) : -1;
    why[n > 0 ? n : 0] = '\0';
    close(fds[0]);
    if (pid > 0) waitpid(pid, NULL, 0);
    return pid > 0 && n == 0;
}

static void network_private(void)
{
    const char *wanted = getenv("MUSTER_PRIVATE_NET"), *what;
    char why[160] = "";
    if (wanted && strcmp(wanted, "0") == 0) {
        mu_warn("launch",
                "MUSTER_PRIVATE_NET=0: Open MPI's ports of this gang are open to everybody who reaches this machine");
        return;
    }
    static const int ways[] = {CLONE_NEWNET, CLONE_NEWUSER | CLONE_NEWNET};
    for (int i = 0; i < 2; i++)
        if (network_possible(ways[i], why, sizeof why) && network_enter(ways[i], &what) == PRIVATE) return;
    mu_warn("launch",
            "NO PRIVATE NETWORK: this system does not allow one (%s). Open MPI's ports of this gang, which execute "
            "what they are told, are "
            "open to everybody who reaches this machine: put a firewall before it, or allow user namespaces",
            why);
}

/* Whether one process of ours may read another's memory. */
static int memory_readable(void)
{
    static volatile int probe = 4711; /* at the same address in the child */
    int fds[2], got = 0;
    if (pipe2(fds, O_CLOEXEC) != 0) return 0;
    pid_t pid = fork();
    if (pid == 0) {
        char c;
        close(fds[1]);
        _exit(read(fds[0], &c, 1) < 0); /* until the parent has closed its end */
    }
    close(fds[0]);
    struct iovec mine = {&got, sizeof got}, theirs = {(void *)&probe, sizeof probe};
    int good = pid > 0 && process_vm_readv(pid, &mine, 1, &theirs, 1, 0) == sizeof got && got == probe;
    close(fds[1]);
    if (pid > 0) waitpid(pid, NULL, 0);
    return good;
}

/* A name by which mpirun's children can start this program; false: there is none. */
static bool program_name(char *buf, size_t buf_bytes)
{
    if (mu_proc_own_path(buf, buf_bytes)) return true;
    int fd = open("/proc/self/exe", O_RDONLY); /* stays open: mpirun's */
    snprintf(buf, buf_bytes, "/proc/%d/fd/%d", (int)getpid(), fd);
    return fd >= 0;
}

int mu_launch_main(int argc, char **argv)
{
    char pid[32], program[PATH_MAX], *args[MAX_ARGS];
    mu_log_init("launch");
    if (argc < 5 || argc > MAX_ARGS || strcmp(argv[3], "--") != 0) {
        mu_error("launch", "_launch is for the worker: expected PARENT_PID FOLDER -- MPIRUN …");
        return 2;
    }
    long parent = strtol(argv[1], NULL, 10);
    network_private();
    mu_host_name_for_mpirun();
    if (!memory_readable()) setenv("OMPI_MCA_btl_vader_single_copy_mechanism", "none", 1);
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || getppid() != (pid_t)parent) return 1;
    snprintf(pid, sizeof pid, "%d", (int)getpid());
    setenv("MUSTER_MPIRUN_PID", pid, 1);
    if (!program_name(program, sizeof program)) {
        mu_error("launch", "cannot find our own program: %s", strerror(errno));
        return 1;
    }
    int n = argc - 4;
    memcpy(args, argv + 4, (size_t)n * sizeof *args);
    args[n++] = program;
    args[n++] = (char *)"_rank";
    args[n++] = argv[2];
    args[n] = NULL;
    execv(args[0], args);
    mu_error("launch", "cannot start %s: %s", args[0], strerror(errno));
    return 127;
}
