/* Links of a network on one machine: runs a command in the first of some namespaces that are joined as if by cables.
 *
 *   links [-n NODES] [-r MBIT] [-d MICROSECONDS] COMMAND [ARGUMENT…]
 *   links enter nodeI COMMAND…                             (what mpirun calls instead of ssh)
 *
 *        node0 10.77.0.1              node1 10.77.0.2           each with a network and a host name of its own
 *        ┌──────────┐                 ┌──────────┐
 *        │   TUN    │                 │   TUN    │
 *        └────┬─────┘                 └────▲─────┘
 *             │ up[0]: 1 Gbit/s            │ down[1]: 1 Gbit/s
 *             └──────► hub: + delay ───────┘
 *
 * A packet leaves when its sender's port is free, is on its way for the delay, and arrives when the receiver's port has
 * taken its bytes: one port's time where both are free, as through a switch that forwards at once. Ports carry what
 * Ethernet would: 38 bytes around each packet of 1,500. Nothing is lost until MAX_QUEUED bytes are on their way.
 *
 * netem would do the same, but is not in every kernel; TUN is. Packets are taken from the kernel as large as it has
 * them (TSO) and handed on like that, which costs a hundredth of the calls; TCP still counts segments of 1,448 bytes.
 * The hub runs before everybody else and spins for the last moments before a packet is due: a timer alone is late by
 * as much as a short link's delay.
 *
 * Namespaces have no names and end with this process; nothing is left behind. Needs root and /dev/net/tun; without
 * them it says so and ends with 77. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_NODES = 16, SKIP = 77, MTU = 1500, FRAME_BYTES = 38, HEADER_BYTES = 40, MAX_PACKET = 65536 + 64 };
static const int64_t MAX_QUEUED = 64 << 20, SPIN_NS = 10000;
static const char PIDS[] = "MUSTER_LINKS_PIDS"; /* of the processes that hold the namespaces, for `enter` */

__attribute__((noreturn, format(printf, 2, 3))) static void end(int code, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    fputs("links: ", stderr);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fputc('\n', stderr);
    exit(code);
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* ---- namespaces ---- */

static void enter(pid_t pid, const char *kind)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/ns/%s", (int)pid, kind);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || setns(fd, 0) != 0) end(1, "cannot enter %s: %s", path, strerror(errno));
    close(fd);
}

/* A process that does nothing but have a network and a host name. */
static pid_t node_start(int i)
{
    int ready[2];
    char name[16], c;
    if (pipe2(ready, O_CLOEXEC) != 0) end(1, "pipe: %s", strerror(errno));
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        snprintf(name, sizeof name, "node%d", i);
        if (unshare(CLONE_NEWNET | CLONE_NEWUTS) != 0) end(SKIP, "skipped: no namespaces here (%s)", strerror(errno));
        if (sethostname(name, strlen(name)) != 0) end(1, "sethostname: %s", strerror(errno));
        if (write(ready[1], "", 1) != 1) exit(1);
        close(ready[1]);
        for (;;) pause();
    }
    close(ready[1]);
    if (pid < 0) end(1, "fork: %s", strerror(errno));
    if (read(ready[0], &c, 1) != 1) exit(SKIP); /* it has said why */
    close(ready[0]);
    return pid;
}

static void interface_up(const char *name, const char *address)
{
    struct ifreq r = {0};
    struct sockaddr_in a = {.sin_family = AF_INET};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    memcpy(r.ifr_name, name, strlen(name));
    bool ok = fd >= 0;
    if (address) {
        inet_pton(AF_INET, address, &a.sin_addr);
        memcpy(&r.ifr_addr, &a, sizeof a);
        ok = ok && ioctl(fd, SIOCSIFADDR, &r) == 0;
        inet_pton(AF_INET, "255.255.255.0", &a.sin_addr);
        memcpy(&r.ifr_netmask, &a, sizeof a);
        ok = ok && ioctl(fd, SIOCSIFNETMASK, &r) == 0;
        r.ifr_mtu = MTU;
        ok = ok && ioctl(fd, SIOCSIFMTU, &r) == 0;
    }
    ok = ok && ioctl(fd, SIOCGIFFLAGS, &r) == 0;
    r.ifr_flags |= IFF_UP;
    if (!ok || ioctl(fd, SIOCSIFFLAGS, &r) != 0) end(1, "cannot bring %s up: %s", name, strerror(errno));
    close(fd);
}

/* The hub's end of node i's cable; in that node's network. */
static int cable_open(int i)
{
    char address[32];
    struct ifreq r = {.ifr_name = "cable0"};
    r.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR;
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) end(SKIP, "skipped: no /dev/net/tun to be had (%s)", strerror(errno));
    if (ioctl(fd, TUNSETIFF, &r) != 0 || ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4) != 0)
        end(SKIP, "skipped: no TUN device to be had (%s)", strerror(errno));
    snprintf(address, sizeof address, "10.77.0.%d", i + 1);
    interface_up("cable0", address);
    interface_up("lo", NULL);
    return fd;
}

/* ---- the hub ---- */

struct packet {
    struct packet *next;
    int64_t due_ns;
    size_t len;
    unsigned char bytes[]; /* struct virtio_net_hdr, then IP */
};

struct hub {
    int n, cable[MAX_NODES];
    double ns_a_byte;
    int64_t delay_ns, queued;
    int64_t up_ns[MAX_NODES], down_ns[MAX_NODES];       /* when each port is free */
    struct packet *first[MAX_NODES], **last[MAX_NODES]; /* on their way to each node, in order */
    _Alignas(8) unsigned char buf[MAX_PACKET];
};

/* What an Ethernet port carries of it. */
static double frame_bytes(const unsigned char *packet, size_t len)
{
    struct virtio_net_hdr h;
    memcpy(&h, packet, sizeof h);
    double ip = (double)(len - sizeof h), n = 1;
    if (h.gso_type != VIRTIO_NET_HDR_GSO_NONE && h.gso_size > 0) {
        n = (ip - h.hdr_len) / h.gso_size;
        n = n > 1 ? (double)(int64_t)(n + 0.999) : 1;
    }
    return ip + (n - 1) * HEADER_BYTES + n * FRAME_BYTES;
}

static void packet_take(struct hub *h, int from, size_t len)
{
    const unsigned char *ip = h->buf + sizeof(struct virtio_net_hdr);
    if (len < sizeof(struct virtio_net_hdr) + 20 || ip[0] >> 4 != 4) return; /* IPv6 looks for routers */
    int to = ip[19] - 1;
    if (ip[16] != 10 || ip[17] != 77 || ip[18] != 0 || to < 0 || to >= h->n || h->queued > MAX_QUEUED) return;
    struct packet *p = malloc(sizeof *p + len);
    if (!p) return;
    int64_t now = now_ns(), takes = (int64_t)(frame_bytes(h->buf, len) * h->ns_a_byte);
    int64_t begins = h->up_ns[from] > now ? h->up_ns[from] : now, there = begins + h->delay_ns;
    h->up_ns[from] = begins + takes;
    h->down_ns[to] = (h->down_ns[to] > there ? h->down_ns[to] : there) + takes;
    *p = (struct packet){.due_ns = h->down_ns[to], .len = len};
    memcpy(p->bytes, h->buf, len);
    *h->last[to] = p;
    h->last[to] = &p->next;
    h->queued += (int64_t)len;
}

/* Hands over what is due; the time of what is due next. */
static int64_t packets_give(struct hub *h)
{
    int64_t next = INT64_MAX;
    for (int i = 0; i < h->n; i++) {
        struct packet *p;
        while ((p = h->first[i]) && p->due_ns <= now_ns()) {
            if (write(h->cable[i], p->bytes, p->len) < 0 && errno != EAGAIN && errno != ENOBUFS && errno != EINVAL)
                end(1, "cannot hand a packet to node%d: %s", i, strerror(errno));
            h->queued -= (int64_t)p->len;
            h->first[i] = p->next;
            if (!h->first[i]) h->last[i] = &h->first[i];
            free(p);
        }
        if (p && p->due_ns < next) next = p->due_ns;
    }
    return next;
}

/* Until a signal comes. */
static void hub_run(struct hub *h, int signals)
{
    struct pollfd p[MAX_NODES + 1];
    for (int i = 0; i < h->n; i++) {
        p[i] = (struct pollfd){.fd = h->cable[i], .events = POLLIN};
        h->last[i] = &h->first[i];
    }
    p[h->n] = (struct pollfd){.fd = signals, .events = POLLIN};
    while (!(p[h->n].revents & POLLIN)) {
        int64_t next = packets_give(h), left = next - now_ns() - SPIN_NS;
        struct timespec wait = {.tv_sec = left > 0 ? left / 1000000000 : 0,
                                .tv_nsec = left > 0 ? left % 1000000000 : 0};
        if (ppoll(p, (nfds_t)h->n + 1, next == INT64_MAX ? NULL : &wait, NULL) <= 0) continue;
        for (int i = 0; i < h->n; i++) {
            ssize_t len = p[i].revents & POLLIN ? read(h->cable[i], h->buf, sizeof h->buf) : 0;
            if (len > 0) packet_take(h, i, (size_t)len);
        }
    }
}

/* ---- the command ---- */

static void environment_set(const pid_t *pid, int n)
{
    static const char *const with[][2] = {
        {"OMPI_ALLOW_RUN_AS_ROOT", "1"},
        {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"},
        {"OMPI_MCA_plm", "rsh"},
        {"OMPI_MCA_ras", "^slurm"},
        {"OMPI_MCA_plm_rsh_no_tree_spawn", "1"}, /* only node0 can start the others */
        {"OMPI_MCA_orte_leave_session_attached", "1"},
        {"OMPI_MCA_oob_tcp_if_include", "10.77.0.0/24"},
        {"OMPI_MCA_btl_tcp_if_include", "10.77.0.0/24"},
    };
    char self[4096] = "", agent[4200], pids[MAX_NODES * 12] = "";
    if (readlink("/proc/self/exe", self, sizeof self - 1) < 0) end(1, "cannot find this program: %s", strerror(errno));
    snprintf(agent, sizeof agent, "%s enter", self);
    for (int i = 0, at = 0; i < n; i++)
        at += snprintf(pids + at, sizeof pids - (size_t)at, "%s%d", i ? "," : "", (int)pid[i]);
    for (size_t i = 0; i < sizeof with / sizeof *with; i++) setenv(with[i][0], with[i][1], 1);
    setenv("OMPI_MCA_plm_rsh_agent", agent, 1);
    setenv(PIDS, pids, 1);
}

static pid_t command_start(char **argv, const pid_t *pid, int n)
{
    pid_t command = fork();
    if (command < 0) end(1, "fork: %s", strerror(errno));
    if (command > 0) return command;
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    enter(pid[0], "net");
    enter(pid[0], "uts");
    environment_set(pid, n);
    execvp(argv[0], argv);
    end(127, "cannot start %s: %s", argv[0], strerror(errno));
}

/* mpirun says HOST and then words for a shell. */
static int enter_main(int argc, char **argv)
{
    const char *pids = getenv(PIDS);
    char *text = NULL;
    size_t len;
    int node;
    if (argc < 2 || !pids || sscanf(argv[0], "node%d", &node) != 1)
        end(1, "enter: expected nodeI COMMAND, inside links");
    while (node-- > 0)
        if (!(pids = strchr(pids, ',')) || !*++pids) end(1, "there is no %s", argv[0]);
    FILE *f = open_memstream(&text, &len);
    for (int i = 1; f && i < argc; i++) fprintf(f, "%s ", argv[i]);
    if (!f || fclose(f) != 0) end(1, "no memory");
    pid_t pid = (pid_t)atoi(pids);
    enter(pid, "net");
    enter(pid, "uts");
    execl("/bin/sh", "sh", "-c", text, (char *)NULL);
    end(127, "cannot start a shell: %s", strerror(errno));
}

static double number(const char *text, double min, double max, const char *what)
{
    char *stop;
    double v = strtod(text, &stop);
    if (!(v >= min && v <= max) || *stop || stop == text) end(2, "%s: %g … %g, not '%s'", what, min, max, text);
    return v;
}

int main(int argc, char **argv)
{
    static struct hub hub = {.n = 2};
    double mbit = 1000, delay_us = 200;
    pid_t pid[MAX_NODES];
    if (argc > 1 && strcmp(argv[1], "enter") == 0) return enter_main(argc - 2, argv + 2);
    for (int c; (c = getopt(argc, argv, "+n:r:d:")) != -1;) {
        if (c == 'n') hub.n = (int)number(optarg, 1, MAX_NODES, "-n");
        if (c == 'r') mbit = number(optarg, 1, 1e6, "-r");
        if (c == 'd') delay_us = number(optarg, 0, 1e6, "-d");
        if (c == '?') return 2;
    }
    if (optind >= argc) end(2, "COMMAND is missing: links [-n NODES] [-r MBIT] [-d MICROSECONDS] COMMAND [ARGUMENT…]");
    hub.ns_a_byte = 8e3 / mbit;
    hub.delay_ns = (int64_t)(delay_us * 1e3);
    sigset_t wanted;
    sigemptyset(&wanted);
    sigaddset(&wanted, SIGCHLD); /* the command's end, mostly */
    sigaddset(&wanted, SIGTERM);
    sigaddset(&wanted, SIGINT);
    sigprocmask(SIG_BLOCK, &wanted, NULL);
    int signals = signalfd(-1, &wanted, SFD_CLOEXEC), own = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), status;
    for (int i = 0; i < hub.n; i++) {
        pid[i] = node_start(i);
        enter(pid[i], "net");
        hub.cable[i] = cable_open(i);
        if (setns(own, CLONE_NEWNET) != 0) end(1, "cannot go back: %s", strerror(errno));
    }
    pid_t command = command_start(argv + optind, pid, hub.n);
    prctl(PR_SET_TIMERSLACK, 1);
    sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){.sched_priority = 1}); /* where that is allowed */
    hub_run(&hub, signals);
    if (waitpid(command, &status, WNOHANG) != command) { /* we were told to end */
        kill(command, SIGTERM);
        if (waitpid(command, &status, 0) != command) return 1;
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
