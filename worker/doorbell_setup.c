/* Setting up the doorbells of a gang: the leader listens, every other rank connects and says hello.
 *
 * Whoever can reach the port may connect, so nothing a connection says is believed before the secret has come. Visitors
 * sit in a fixed number of seats, are read without waiting, and lose their seat when they talk nonsense; when all
 * seats are taken the one that has sat longest goes. A visitor can therefore delay nobody, and costs 49 bytes. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/bytes.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "shard/split.h"
#include "worker/doorbell.h"
#include "worker/doorbell_frame.h"

enum { SEATS = MU_MAX_RANKS + 16, BACKLOG = 128 };

struct visitor {
    int fd; /* -1: the seat is free */
    size_t len;
    uint64_t since; /* order of arrival */
    uint8_t buf[BELL_HELLO];
};

static enum mu_status fail_errno(const char *what, struct mu_err *err)
{
    return mu_fail(err, MU_EIO, "doorbell: %s: %s", what, strerror(errno));
}

enum mu_status mu_bell_listen(int *fd_out, uint16_t *port_out, struct mu_err *err)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return fail_errno("socket", err);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    if (bind(fd, (struct sockaddr *)&a, sizeof a) != 0 || listen(fd, BACKLOG) != 0 ||
        getsockname(fd, (struct sockaddr *)&a, &len) != 0) {
        enum mu_status st = fail_errno("listening on 127.0.0.1", err);
        close(fd);
        return st;
    }
    *fd_out = fd;
    *port_out = ntohs(a.sin_port);
    return MU_OK;
}

static void no_delay(int fd)
{
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

/* No early way out: the time tells nothing about where the first difference is. */
static int secrets_equal(const uint8_t *a, const uint8_t *b)
{
    uint8_t different = 0;
    for (int i = 0; i < MU_BELL_SECRET; i++) different |= a[i] ^ b[i];
    return different == 0;
}

/* The rank that said a complete hello, or -1. */
static int hello_check(const uint8_t *hello, uint64_t epoch, const uint8_t *secret)
{
    struct mu_reader r = mu_reader_of(hello, BELL_HELLO);
    uint32_t len = mu_read_u32(&r);
    uint8_t kind = mu_read_u8(&r);
    uint64_t said_epoch = mu_read_u64(&r);
    const uint8_t *said = mu_read_bytes(&r, MU_BELL_SECRET);
    uint32_t rank = mu_read_u32(&r);
    int good = secrets_equal(said, secret);
    if (!good || len != BELL_HELLO - BELL_LENGTH || kind != MU_BELL_HELLO || said_epoch != epoch) return -1;
    return rank < MU_MAX_RANKS ? (int)rank : -1;
}

static void visitor_leave(struct visitor *v)
{
    if (v->fd >= 0) close(v->fd);
    v->fd = -1;
}

static void visitor_seat(struct visitor *seats, int fd, uint64_t now)
{
    struct visitor *v = &seats[0];
    for (int i = 0; i < SEATS; i++) {
        if (seats[i].fd < 0) {
            v = &seats[i];
            break;
        }
        if (seats[i].since < v->since) v = &seats[i];
    }
    visitor_leave(v);
    *v = (struct visitor){.fd = fd, .since = now};
}

/* Reads what has come. 1: the hello is complete, 0: not yet, -1: it left. */
static int visitor_read(struct visitor *v)
{
    ssize_t n = recv(v->fd, v->buf + v->len, sizeof v->buf - v->len, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return 0;
    if (n <= 0) return -1;
    v->len += (size_t)n;
    return v->len == sizeof v->buf;
}

/* Makes the visitor the bell of the rank that it proved to be. */
static enum mu_status visitor_admit(struct visitor *v, uint64_t epoch, const uint8_t *secret, int n_rank, int leader,
                                    size_t max_frame, struct mu_bell **bells, int *n_missing, struct mu_err *err)
{
    int rank = hello_check(v->buf, epoch, secret);
    if (rank < 0 || rank >= n_rank || rank == leader || bells[rank]) {
        mu_warn("doorbell", "a connection without a valid hello was closed");
        visitor_leave(v);
        return MU_OK;
    }
    char peer[32];
    snprintf(peer, sizeof peer, "rank %d", rank);
    no_delay(v->fd);
    int fd = v->fd;
    v->fd = -1;
    enum mu_status st = mu_bell_create(fd, epoch, max_frame, peer, &bells[rank], err);
    if (st == MU_OK) --*n_missing;
    return st;
}

static enum mu_status missing_name(int n_rank, int leader, struct mu_bell **bells, struct mu_err *err)
{
    char list[128] = "";
    size_t used = 0;
    for (int i = 0; i < n_rank && used < sizeof list - 16; i++)
        if (i != leader && !bells[i])
            used += (size_t)snprintf(list + used, sizeof list - used, "%s%d", used ? ", " : "", i);
    return mu_fail(err, MU_ETIMEOUT, "doorbell: the deadline passed before rank %s connected", list);
}

enum mu_status mu_bell_accept_all(int listen_fd, uint64_t epoch, const uint8_t *secret, int n_rank, int leader,
                                  size_t max_frame, int64_t deadline_ns, struct mu_bell **bells_out, struct mu_err *err)
{
    struct visitor *seats = mu_calloc(SEATS, sizeof *seats);
    if (!seats) return mu_fail(err, MU_ENOMEM, "out of memory for the doorbell");
    enum mu_status st = MU_OK;
    int n_missing = n_rank - 1;
    uint64_t n_seated = 0;
    for (int i = 0; i < SEATS; i++) seats[i].fd = -1;
    for (int i = 0; i < n_rank; i++) bells_out[i] = NULL;
    while (n_missing && st == MU_OK) {
        struct pollfd p[SEATS + 1];
        for (int i = 0; i < SEATS; i++) p[i] = (struct pollfd){.fd = seats[i].fd, .events = POLLIN};
        p[SEATS] = (struct pollfd){.fd = listen_fd, .events = POLLIN};
        int ms = mu_ms_until(deadline_ns), n = ms ? poll(p, SEATS + 1, ms) : 0;
        if (n == 0 && mu_ms_until(deadline_ns) == 0) st = missing_name(n_rank, leader, bells_out, err);
        if (n < 0 && errno != EINTR) st = fail_errno("poll", err);
        if (n <= 0) continue;
        for (int i = 0; i < SEATS && st == MU_OK; i++) {
            if (!p[i].revents) continue;
            int got = visitor_read(&seats[i]);
            if (got < 0) visitor_leave(&seats[i]);
            if (got > 0)
                st = visitor_admit(&seats[i], epoch, secret, n_rank, leader, max_frame, bells_out, &n_missing, err);
        }
        if (p[SEATS].revents && st == MU_OK) {
            int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
            if (fd >= 0) visitor_seat(seats, fd, ++n_seated);
        }
    }
    for (int i = 0; i < SEATS; i++) visitor_leave(&seats[i]);
    mu_free(seats);
    for (int i = 0; i < n_rank && st != MU_OK; i++) {
        mu_bell_destroy(bells_out[i]);
        bells_out[i] = NULL;
    }
    return st;
}

static enum mu_status connect_until(int fd, uint16_t port, int64_t deadline_ns, struct mu_err *err)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (connect(fd, (struct sockaddr *)&a, sizeof a) == 0) return MU_OK;
    if (errno != EINPROGRESS && errno != EINTR)
        return mu_fail(err, MU_EPEER, "cannot connect to the leader's doorbell 127.0.0.1:%u: %s", port,
                       strerror(errno));
    for (;;) {
        struct pollfd p = {.fd = fd, .events = POLLOUT};
        int ms = mu_ms_until(deadline_ns);
        if (ms == 0) return mu_fail(err, MU_ETIMEOUT, "connecting to the leader's doorbell: the deadline passed");
        if (poll(&p, 1, ms) > 0) break;
    }
    int e = 0;
    socklen_t len = sizeof e;
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &e, &len);
    return e ? mu_fail(err, MU_EPEER, "cannot connect to the leader's doorbell 127.0.0.1:%u: %s", port, strerror(e))
             : MU_OK;
}

enum mu_status mu_bell_connect(uint16_t port, uint64_t epoch, const uint8_t *secret, int rank, size_t max_frame,
                               int64_t deadline_ns, struct mu_bell **bell_out, struct mu_err *err)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return fail_errno("socket", err);
    enum mu_status st;
    uint8_t hello[MU_BELL_SECRET + 4];
    memcpy(hello, secret, MU_BELL_SECRET);
    bell_put_le(hello + MU_BELL_SECRET, (uint64_t)rank, 4);
    struct mu_bell *b = NULL;
    MU_TRY(st, connect_until(fd, port, deadline_ns, err), fail);
    no_delay(fd);
    st = mu_bell_create(fd, epoch, max_frame, "the leader", &b, err);
    fd = -1; /* the bell's, or closed */
    if (st != MU_OK) goto fail;
    MU_TRY(st, mu_bell_send(b, MU_BELL_HELLO, hello, sizeof hello, deadline_ns, err), fail);
    explicit_bzero(hello, sizeof hello);
    *bell_out = b;
    return MU_OK;
fail:
    explicit_bzero(hello, sizeof hello);
    mu_bell_destroy(b);
    if (fd >= 0) close(fd);
    return st;
}
