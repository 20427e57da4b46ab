/* Files and descriptors. Owns nothing beyond a call, except what a mu_file_writer holds: its descriptor, the partial
 * file's name and a buffer.
 *
 * Sockets are written without waiting (MSG_DONTWAIT), whatever mode the descriptor has; all waiting happens in
 * poll(), which knows the deadline. A blocking write() of a large buffer would sleep past it. */
#include "base/io.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"

enum { WRITER_BUF_BYTES = 64 << 10 };

/* ---- descriptors ---- */

static int errno_is_peer(int e)
{
    return e == EPIPE || e == ECONNRESET || e == ECONNABORTED || e == ETIMEDOUT || e == EHOSTUNREACH ||
           e == ENETUNREACH || e == ENETDOWN || e == ENOTCONN || e == ECONNREFUSED;
}

static enum mu_status wait_writable(int fd, int64_t deadline_ns, size_t done, size_t len, const char *peer,
                                    struct mu_err *err)
{
    for (;;) {
        struct pollfd p = {.fd = fd, .events = POLLOUT};
        int n = poll(&p, 1, mu_ms_until(deadline_ns));
        if (n > 0) return MU_OK; /* hang-ups and errors as well: the next call tells which */
        if (n == 0 && mu_ms_until(deadline_ns) == 0)
            return mu_fail(err, MU_ETIMEOUT, "write to %s: %zu of %zu bytes when the deadline passed", peer, done, len);
        if (n < 0 && errno != EINTR) return mu_fail(err, MU_EIO, "write to %s: poll: %s", peer, strerror(errno));
    }
}

enum mu_status mu_fd_write(int fd, const void *buf, size_t len, int64_t deadline_ns, const char *peer,
                           struct mu_err *err)
{
    int is_socket = 1;
    for (size_t done = 0; done < len;) {
        size_t piece = len - done;
        if (!is_socket) { /* a pipe that is ready takes PIPE_BUF bytes without waiting, and no more for sure */
            enum mu_status st = wait_writable(fd, deadline_ns, done, len, peer, err);
            if (st != MU_OK) return st;
            if (piece > PIPE_BUF) piece = PIPE_BUF;
        }
        const char *from = (const char *)buf + done;
        ssize_t n = is_socket ? send(fd, from, piece, MSG_DONTWAIT | MSG_NOSIGNAL) : write(fd, from, piece);
        if (n >= 0) {
            done += (size_t)n;
        } else if (errno == ENOTSOCK && is_socket) {
            is_socket = 0;
        } else if (errno == EAGAIN) {
            enum mu_status st = wait_writable(fd, deadline_ns, done, len, peer, err);
            if (st != MU_OK) return st;
        } else if (errno != EINTR) {
            return mu_fail(err, errno_is_peer(errno) ? MU_EPEER : MU_EIO, "write to %s: %s after %zu of %zu bytes",
                           peer, strerror(errno), done, len);
        }
    }
    return MU_OK;
}

/* ---- whole files ---- */

static enum mu_status fail_errno(const char *verb, const char *path, struct mu_err *err)
{
    int e = errno;
    enum mu_status st = e == ENOENT || e == ENOTDIR ? MU_ENOENT : e == ENOMEM ? MU_ENOMEM : MU_EIO;
    return mu_fail(err, st, "cannot %s %s: %s", verb, path, strerror(e));
}

/* Reads until the end of file. Sizes from stat are a hint only: files in /proc say 0, others grow meanwhile. */
static enum mu_status read_all(int fd, const char *path, size_t cap, size_t max_bytes, char **data_out, size_t *len_out,
                               struct mu_err *err)
{
    enum mu_status st;
    size_t len = 0;
    char *data = mu_malloc(cap);
    if (!data) return mu_fail(err, MU_ENOMEM, "out of memory for the %zu bytes of %s", cap, path);
    for (;;) {
        ssize_t n = read(fd, data + len, cap - 1 - len);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            st = fail_errno("read", path, err);
            goto fail;
        }
        if (n == 0) break;
        len += (size_t)n;
        if (len > max_bytes) {
            st = mu_fail(err, MU_ELIMIT, "%s is longer than the %zu bytes that are allowed here", path, max_bytes);
            goto fail;
        }
        if (len == cap - 1) {
            char *more = mu_reallocarray(data, cap, 2);
            if (!more) {
                st = mu_fail(err, MU_ENOMEM, "out of memory for %s", path);
                goto fail;
            }
            data = more;
            cap *= 2;
        }
    }
    data[len] = '\0';
    *data_out = data;
    *len_out = len;
    return MU_OK;
fail:
    mu_free(data);
    return st;
}

enum mu_status mu_file_read(const char *path, size_t max_bytes, char **data_out, size_t *len_out, struct mu_err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return fail_errno("open", path, err);
    struct stat sb;
    enum mu_status st;
    size_t cap = 4096;
    if (fstat(fd, &sb) != 0) {
        st = fail_errno("stat", path, err);
    } else if (S_ISREG(sb.st_mode) && (uintmax_t)sb.st_size > max_bytes) {
        st = mu_fail(err, MU_ELIMIT, "%s has %jd bytes; at most %zu are allowed here", path, (intmax_t)sb.st_size,
                     max_bytes);
    } else {
        /* +2: the NUL, and room to see the end of file without growing */
        if (S_ISREG(sb.st_mode) && (uintmax_t)sb.st_size + 2 > cap) cap = (size_t)sb.st_size + 2;
        st = read_all(fd, path, cap, max_bytes, data_out, len_out, err);
    }
    close(fd);
    return st;
}

/* ---- files that appear complete or not at all ---- */

struct mu_file_writer {
    int fd;
    int failed; /* a write failed: there is nothing left to commit */
    uint64_t offset;
    size_t buf_len;
    char *path, *partial;
    bool listed; /* partial is in `unfinished` */
    char buf[WRITER_BUF_BYTES];
};

/* The partial file's name of an open writer. Who takes it out owns it: the writer's close, or a handler of a signal, which
 * may run beside that on another thread. */
static _Atomic(char *) unfinished;

void mu_file_writer_abandon(void)
{
    const char *partial = atomic_exchange(&unfinished, NULL);
    if (partial) unlink(partial);
}

static void partial_forget(struct mu_file_writer *w)
{
    if (!w->listed || atomic_compare_exchange_strong(&unfinished, &(char *){w->partial}, NULL)) mu_free(w->partial);
}

/* Opens and locks the partial file. The lock keeps a second writer of this process (same name) out; a file left by a
 * dead process of our number carries none. Where the name stopped being this file before we had the lock, try again:
 * truncating then would empty the finished file. */
static enum mu_status partial_open(struct mu_file_writer *w, struct mu_err *err)
{
    for (int tries = 0; tries < 100; tries++) {
        w->fd = open(w->partial, O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
        if (w->fd < 0)
            return mu_fail(err, errno == ENOENT || errno == ENOTDIR ? MU_ENOENT : MU_EIO,
                           "cannot write %s: %s; name a file in a folder that you may write to", w->path,
                           strerror(errno));
        if (flock(w->fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
            return mu_fail(err, MU_EBUSY, "%s is being written already", w->path);
        struct stat ours, named;
        if (fstat(w->fd, &ours) == 0 && lstat(w->partial, &named) == 0 && ours.st_ino == named.st_ino &&
            ours.st_dev == named.st_dev)
            return ftruncate(w->fd, 0) == 0 ? MU_OK : fail_errno("truncate", w->partial, err);
        close(w->fd);
        w->fd = -1;
    }
    return mu_fail(err, MU_EBUSY, "%s is replaced again and again while it is opened", w->partial);
}

/* The file that will be replaced: links are followed, and nothing but a regular file is ever renamed over (a rename would
 * turn a device or a pipe into a file). */
static enum mu_status target_find(const char *path, char **target_out, struct mu_err *err)
{
    struct stat there;
    bool exists = stat(path, &there) == 0;
    if (exists && !S_ISREG(there.st_mode))
        return mu_fail(err, MU_EINVAL, "%s is a %s; name a file to write", path,
                       S_ISDIR(there.st_mode) ? "folder" : "device, pipe or socket");
    char *real = exists ? realpath(path, NULL) : NULL;
    *target_out = mu_strdup(real ? real : path);
    free(real);
    return *target_out ? MU_OK : mu_fail(err, MU_ENOMEM, "out of memory for writing %s", path);
}

enum mu_status mu_file_writer_open(const char *path, struct mu_file_writer **w_out, struct mu_err *err)
{
    struct mu_file_writer *w = mu_malloc(sizeof *w);
    if (!w) return mu_fail(err, MU_ENOMEM, "out of memory for writing %s", path);
    enum mu_status st;
    w->fd = -1;
    w->failed = 0;
    w->offset = w->buf_len = 0;
    w->path = w->partial = NULL;
    w->listed = false;
    MU_TRY(st, target_find(path, &w->path, err), fail);
    w->partial = mu_asprintf("%s.partial-%d", w->path, (int)getpid());
    if (!w->partial) {
        st = mu_fail(err, MU_ENOMEM, "out of memory for writing %s", path);
        goto fail;
    }
    w->listed = atomic_compare_exchange_strong(&unfinished, &(char *){NULL}, w->partial); /* before it is there */
    MU_TRY(st, partial_open(w, err), fail);
    *w_out = w;
    return MU_OK;
fail:
    if (w->fd >= 0) close(w->fd);
    partial_forget(w);
    mu_free(w->path);
    mu_free(w);
    return st;
}

static enum mu_status write_all(struct mu_file_writer *w, const char *data, size_t len, struct mu_err *err)
{
    while (len) {
        ssize_t n = write(w->fd, data, len);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            w->failed = 1;
            return mu_fail(err, MU_EIO, "cannot write %s: %s; nothing of it was kept%s", w->path, strerror(errno),
                           errno == ENOSPC || errno == EDQUOT ? ": free some space and try again" : "");
        }
        data += n;
        len -= (size_t)n;
    }
    return MU_OK;
}

static enum mu_status flush(struct mu_file_writer *w, struct mu_err *err)
{
    size_t len = w->buf_len;
    w->buf_len = 0;
    return write_all(w, w->buf, len, err);
}

enum mu_status mu_file_writer_write(struct mu_file_writer *w, const void *data, size_t len, struct mu_err *err)
{
    if (w->failed) return mu_fail(err, MU_EIO, "an earlier write to %s failed", w->partial);
    enum mu_status st = MU_OK;
    if (len > sizeof w->buf - w->buf_len) st = flush(w, err);
    if (st != MU_OK) return st;
    if (len >= sizeof w->buf) {
        st = write_all(w, data, len, err);
        if (st != MU_OK) return st;
    } else if (len) {
        memcpy(w->buf + w->buf_len, data, len);
        w->buf_len += len;
    }
    w->offset += len;
    return MU_OK;
}

uint64_t mu_file_writer_offset(const struct mu_file_writer *w)
{
    return w->offset;
}

/* Makes the rename durable. Errors change nothing for anybody who reads the file, so they are ignored. */
static void folder_sync(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *folder = slash ? mu_strndup(path, slash == path ? 1 : (size_t)(slash - path)) : mu_strdup(".");
    int fd = folder ? open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
    mu_free(folder);
}

enum mu_status mu_file_writer_close(struct mu_file_writer *w, int commit, struct mu_err *err)
{
    if (!w) return MU_OK;
    enum mu_status st = MU_OK;
    int renamed = 0;
    if (commit) {
        if (w->failed) st = mu_fail(err, MU_EIO, "an earlier write to %s failed; %s is as before", w->partial, w->path);
        if (st == MU_OK) st = flush(w, err);
        if (st == MU_OK && fsync(w->fd) != 0) st = fail_errno("sync", w->partial, err);
        if (st == MU_OK && rename(w->partial, w->path) != 0) st = fail_errno("rename to", w->path, err);
        renamed = st == MU_OK;
    }
    if (renamed)
        folder_sync(w->path);
    else
        unlink(w->partial);
    close(w->fd); /* after the rename: until then the lock keeps others off the partial file */
    mu_free(w->path);
    partial_forget(w);
    mu_free(w);
    return st;
}
