/* Addresses to listen on. gRPC says only that it could not; here is why.
 *
 * gRPC removes whatever socket file is in the way, also one that a running server listens on: so it is asked first
 * whether somebody answers there. */
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/alloc.h"
#include "transport/rpc_internal.h"

static const char *unix_path(const char *address)
{
    if (strncmp(address, "unix:", 5) != 0) return NULL;
    address += 5;
    return strncmp(address, "//", 2) == 0 ? address + 2 : address; /* unix:///path is also legal */
}

static enum mu_status prepare_unix(const char *path, struct mu_err *err)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    if (*path == '\0' || strlen(path) >= sizeof sa.sun_path)
        return mu_fail(err, MU_EINVAL, "cannot listen on unix:%s: the path must have 1 to %zu bytes", path,
                       sizeof sa.sun_path - 1);
    struct stat info;
    if (lstat(path, &info) != 0) return MU_OK; /* free, or gRPC fails and the reason is looked for then */
    if (!S_ISSOCK(info.st_mode))
        return mu_fail(err, MU_EBUSY, "cannot listen on unix:%s: a file that is no socket is there", path);
    strcpy(sa.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return mu_fail(err, MU_EIO, "cannot listen on unix:%s: %s", path, strerror(errno));
    int rc = connect(fd, (struct sockaddr *)&sa, sizeof sa), why = errno;
    close(fd);
    if (rc == 0 || why != ECONNREFUSED)
        return mu_fail(err, MU_EBUSY, "cannot listen on unix:%s: another process does; choose another path or stop it",
                       path);
    unlink(path); /* left behind by a process that is gone */
    return MU_OK;
}

enum mu_status mu_rpc_listen_prepare(const char *address, struct mu_err *err)
{
    const char *path = unix_path(address);
    if (path) return prepare_unix(path, err);
    if (mu_rpc_address_port(address, NULL) < 0)
        return mu_fail(err, MU_EINVAL, "cannot listen on \"%s\": expected HOST:PORT, [IPv6]:PORT or unix:/path",
                       address);
    return MU_OK;
}

static enum mu_status say_errno(const char *address, int why, struct mu_err *err)
{
    if (why == EADDRINUSE)
        return mu_fail(err, MU_EBUSY, "cannot listen on %s: address already in use; choose another with --listen",
                       address);
    return mu_fail(err, MU_EIO, "cannot listen on %s: %s", address, strerror(why));
}

/* 0, or errno of the bind that fails. */
static int try_bind(int family, const struct sockaddr *sa, socklen_t len)
{
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return errno;
    int one = 1, why = 0;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one); /* as gRPC does */
    if (bind(fd, sa, len) != 0 || (family != AF_UNIX && listen(fd, 1) != 0)) why = errno;
    close(fd);
    return why;
}

enum mu_status mu_rpc_listen_diagnose(const char *address, struct mu_err *err)
{
    const char *path = unix_path(address);
    if (path) {
        struct sockaddr_un sa = {.sun_family = AF_UNIX};
        strncpy(sa.sun_path, path, sizeof sa.sun_path - 1);
        int why = try_bind(AF_UNIX, (struct sockaddr *)&sa, sizeof sa);
        if (why) return say_errno(address, why, err);
        unlink(path);
        return mu_fail(err, MU_EIO, "cannot listen on %s", address);
    }
    char *host = mu_malloc(strlen(address) + 1);
    if (!host) return mu_fail(err, MU_ENOMEM, "address to listen on");
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV}, *list = NULL;
    mu_rpc_address_port(address, host);
    int rc = getaddrinfo(host, strrchr(address, ':') + 1, &hints, &list), why = 0;
    mu_free(host);
    if (rc != 0) return mu_fail(err, MU_EINVAL, "cannot listen on %s: %s", address, gai_strerror(rc));
    for (struct addrinfo *a = list; a && !why; a = a->ai_next) why = try_bind(a->ai_family, a->ai_addr, a->ai_addrlen);
    freeaddrinfo(list);
    if (why) return say_errno(address, why, err);
    return mu_fail(err, MU_EIO, "cannot listen on %s: it could not be bound a moment ago, now it could; try again",
                   address);
}
