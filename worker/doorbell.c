/* One doorbell connection: frames over a socket. A bell owns its descriptor and one input buffer of max_frame bytes;
 * the frame handed out lies in that buffer and is consumed by the next call. Setting up is in doorbell_setup.c. */
#include "worker/doorbell.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/bytes.h"
#include "base/io.h"
#include "worker/doorbell_frame.h"

struct mu_bell {
    int fd;
    uint64_t epoch;
    size_t max_frame;
    uint8_t *buf;    /* [BELL_HEADER + max_frame] */
    size_t len;      /* bytes in buf */
    size_t consumed; /* of the frame handed out last */
    char peer[64];
};

enum mu_status mu_bell_create(int fd, uint64_t epoch, size_t max_frame, const char *peer, struct mu_bell **bell_out,
                              struct mu_err *err)
{
    struct mu_bell *b = mu_calloc(1, sizeof *b);
    if (b) b->buf = mu_malloc(BELL_HEADER + max_frame);
    if (!b || !b->buf) {
        close(fd);
        mu_free(b);
        return mu_fail(err, MU_ENOMEM, "out of memory for the doorbell of %s", peer);
    }
    b->fd = fd;
    b->epoch = epoch;
    b->max_frame = max_frame;
    snprintf(b->peer, sizeof b->peer, "%s", peer);
    *bell_out = b;
    return MU_OK;
}

void mu_bell_destroy(struct mu_bell *b)
{
    if (!b) return;
    close(b->fd);
    mu_free(b->buf);
    mu_free(b);
}

int mu_bell_fd(const struct mu_bell *b)
{
    return b->fd;
}

/* A whole frame at the start of buf? 1 yes (ours), 0 more bytes are needed, -1 broken, 2 dropped a stale one. */
static int frame_take(struct mu_bell *b, struct mu_bell_frame *frame_out, struct mu_err *err)
{
    if (b->len < BELL_HEADER) return 0;
    struct mu_reader r = mu_reader_of(b->buf, b->len);
    uint32_t len = mu_read_u32(&r);
    if (len < BELL_HEADER - BELL_LENGTH || len - (BELL_HEADER - BELL_LENGTH) > b->max_frame) {
        mu_fail(err, MU_EPROTO, "doorbell of %s: a frame of %u bytes, at most %zu are allowed", b->peer, len,
                b->max_frame + BELL_HEADER - BELL_LENGTH);
        return -1;
    }
    uint8_t kind = mu_read_u8(&r);
    uint64_t epoch = mu_read_u64(&r);
    if (b->len < BELL_LENGTH + (size_t)len) return 0;
    b->consumed = BELL_LENGTH + (size_t)len;
    if (epoch != b->epoch) return 2;
    if (kind < MU_BELL_HELLO || kind > MU_BELL_STOP) {
        mu_fail(err, MU_EPROTO, "doorbell of %s: a frame of unknown kind %u", b->peer, kind);
        return -1;
    }
    *frame_out =
        (struct mu_bell_frame){(enum mu_bell_kind)kind, b->buf + BELL_HEADER, len - (BELL_HEADER - BELL_LENGTH)};
    return 1;
}

static void frame_drop(struct mu_bell *b)
{
    if (!b->consumed) return;
    memmove(b->buf, b->buf + b->consumed, b->len - b->consumed);
    b->len -= b->consumed;
    b->consumed = 0;
}

int mu_bell_poll(struct mu_bell *b, struct mu_bell_frame *frame_out, struct mu_err *err)
{
    for (;;) {
        frame_drop(b);
        int got = frame_take(b, frame_out, err);
        if (got == 2) continue;
        if (got != 0) return got;
        ssize_t n = recv(b->fd, b->buf + b->len, BELL_HEADER + b->max_frame - b->len, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return 0;
        if (n < 0) {
            mu_fail(err, MU_EPEER, "doorbell of %s: %s", b->peer, strerror(errno));
            return -1;
        }
        if (n == 0) {
            mu_fail(err, MU_EPEER, "%s closed its doorbell", b->peer);
            return -1;
        }
        b->len += (size_t)n;
    }
}

enum mu_status mu_bell_send(struct mu_bell *b, enum mu_bell_kind kind, const void *payload, size_t len,
                            int64_t deadline_ns, struct mu_err *err)
{
    if (len > b->max_frame)
        return mu_fail(err, MU_EINVAL, "doorbell of %s: a frame of %zu bytes, at most %zu are allowed", b->peer, len,
                       b->max_frame);
    uint8_t header[BELL_HEADER];
    bell_header_write(header, kind, b->epoch, len);
    struct iovec part[2] = {{header, sizeof header}, {(void *)payload, len}};
    struct msghdr msg = {.msg_iov = part, .msg_iovlen = len ? 2 : 1};
    ssize_t n;
    do n = sendmsg(b->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL); /* nearly always all of it in one go */
    while (n < 0 && errno == EINTR);
    if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK)
        return mu_fail(err, MU_EPEER, "doorbell of %s: %s", b->peer, strerror(errno));
    size_t done = n < 0 ? 0 : (size_t)n;
    if (done < sizeof header) {
        enum mu_status st = mu_fd_write(b->fd, header + done, sizeof header - done, deadline_ns, b->peer, err);
        if (st != MU_OK) return st;
        done = sizeof header;
    }
    if (done == sizeof header + len) return MU_OK;
    size_t sent = done - sizeof header;
    return mu_fd_write(b->fd, (const uint8_t *)payload + sent, len - sent, deadline_ns, b->peer, err);
}
