/* Run folders. A folder of ours is known by its name, muster-PID-XXXXXX; whether its process lives is told by the lock
 * on the file `lock` in it, not by the pid in the name, which may mean another process in another container.
 *
 * Two races with somebody's sweep, which removes a folder only while it has the lock, or where it is empty:
 *   - between our mkdtemp and our flock the sweep may take the folder or the lock: then ours is given up, and another
 *     one made;
 *   - a lock that we got on a file that has no name any more is no lock.
 * The lock's file goes last, so that a removal that is cut short is finished by the next sweep.
 *
 * Owns the list of this process's locks. The descriptors are closed in children that exec; they stay open after a
 * removal has failed half-way only until the end of mu_run_dir_remove.
 * Threads: any; list_lock guards the list alone. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/io.h"

/* A unix socket's path has at most 107 bytes; this leaves 31 for a slash and a name in the folder. */
enum { RUN_DIR_MAX = 76, MAX_TRIES = 100, RANDOM_CHARS = 6 };
static const char prefix[] = "muster-", lock_name[] = "lock", shm_root[] = "/dev/shm";

struct held {
    struct held *next;
    int fd;
    char path[]; /* of the folder */
};
static struct held *held_list;
static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- locks ---- */

enum locked { LOCKED, LOCK_MISSED, LOCK_FAILED };

/* MISSED: somebody else has it, or has removed it. A file system without locks: LOCKED, and no sweep gets it either,
 * because it asks for the lock too (`must`). */
static enum locked lock_take(const char *folder, bool create, bool must, int *fd_out)
{
    char path[PATH_MAX];
    if ((size_t)snprintf(path, sizeof path, "%s/%s", folder, lock_name) >= sizeof path) {
        errno = ENAMETOOLONG;
        return LOCK_FAILED;
    }
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | (create ? O_CREAT : 0), 0600);
    if (fd < 0) return errno == ENOENT ? LOCK_MISSED : LOCK_FAILED;
    struct stat sb;
    bool missed =
        flock(fd, LOCK_EX | LOCK_NB) != 0 ? must || errno == EWOULDBLOCK : fstat(fd, &sb) == 0 && sb.st_nlink == 0;
    if (missed) {
        close(fd);
        return LOCK_MISSED;
    }
    *fd_out = fd;
    return LOCKED;
}

static void held_add(struct held *h)
{
    pthread_mutex_lock(&list_lock);
    h->next = held_list;
    held_list = h;
    pthread_mutex_unlock(&list_lock);
}

static struct held *held_take(const char *path)
{
    pthread_mutex_lock(&list_lock);
    struct held **at = &held_list;
    while (*at && strcmp((*at)->path, path) != 0) at = &(*at)->next;
    struct held *h = *at;
    if (h) *at = h->next;
    pthread_mutex_unlock(&list_lock);
    return h;
}

/* ---- making ---- */

/* MU_EIO with errno's number in *errno_out: perhaps another parent will do. */
static enum mu_status create_in(const char *parent, size_t max_bytes, char **path_out, int *errno_out,
                                struct mu_err *err)
{
    enum locked got = LOCK_MISSED;
    for (int tries = 0; got == LOCK_MISSED && tries < MAX_TRIES; tries++) {
        char *path = mu_asprintf("%s/%s%d-XXXXXX", parent, prefix, (int)getpid());
        size_t len = path ? strlen(path) : 0;
        struct held *h = path ? mu_malloc(sizeof *h + len + 1) : NULL;
        if (!h) {
            mu_free(path);
            return mu_fail(err, MU_ENOMEM, "out of memory for a run folder's name");
        }
        *errno_out = ENAMETOOLONG;
        bool made = len <= max_bytes && mkdtemp(path);
        if (len <= max_bytes) *errno_out = errno;
        got = made ? lock_take(path, true, false, &h->fd) : LOCK_FAILED;
        if (got == LOCKED) {
            memcpy(h->path, path, len + 1);
            held_add(h);
            *path_out = path;
            return MU_OK;
        }
        if (made) {
            *errno_out = errno;
            rmdir(path); /* where a sweep has the lock, it finishes this */
        }
        mu_free(h);
        mu_free(path);
    }
    return mu_fail(err, MU_EIO, "cannot create a run folder in %s: %s", parent, strerror(*errno_out));
}

enum mu_status mu_run_dir_create_in(const char *parent, char **path_out, struct mu_err *err)
{
    int e;
    return create_in(parent, PATH_MAX, path_out, &e, err);
}

enum mu_status mu_run_dir_create(char **path_out, struct mu_err *err)
{
    const char *const parents[] = {getenv("XDG_RUNTIME_DIR"), getenv("TMPDIR"), "/tmp"};
    int last_errno = 0;
    for (int i = 0; i < 3; i++) {
        /* gRPC takes a socket's path with a comma for two */
        if (!parents[i] || parents[i][0] != '/' || strchr(parents[i], ',')) continue;
        enum mu_status st = create_in(parents[i], RUN_DIR_MAX, path_out, &last_errno, err);
        if (st != MU_EIO) return st;
    }
    return mu_fail(err, MU_EIO,
                   "cannot create a run folder in $XDG_RUNTIME_DIR, $TMPDIR or /tmp: %s; make one writable",
                   strerror(last_errno));
}

/* ---- removing ---- */

static int remove_entry(const char *path, const struct stat *sb, int type, struct FTW *ftw)
{
    (void)sb, (void)type;
    if (ftw->level > 1 || (ftw->level == 1 && strcmp(path + ftw->base, lock_name) != 0)) remove(path);
    return 0;
}

static void remove_all(const char *path)
{
    char lock[PATH_MAX];
    nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
    if ((size_t)snprintf(lock, sizeof lock, "%s/%s", path, lock_name) < sizeof lock) unlink(lock);
    rmdir(path);
}

void mu_run_dir_remove(const char *path)
{
    if (!path) return;
    /* Only what mu_run_dir_create could have made: a wrong argument must not empty somebody's home. */
    const char *slash = strrchr(path, '/');
    if (!slash || strncmp(slash + 1, prefix, sizeof prefix - 1) != 0) return;
    remove_all(path);
    struct held *h = held_take(path);
    if (h) close(h->fd); /* after the removal: until then no sweep comes in between */
    mu_free(h);
}

/* ---- sweeping ---- */

/* muster-PID-XXXXXX and nothing else: others may like our prefix. */
static bool is_ours(const char *name)
{
    if (strncmp(name, prefix, sizeof prefix - 1) != 0) return false;
    const char *pid = name + sizeof prefix - 1;
    size_t n_digit = strspn(pid, "0123456789");
    return n_digit > 0 && pid[n_digit] == '-' && strlen(pid + n_digit + 1) == RANDOM_CHARS;
}

static void sweep(const char *parent)
{
    DIR *d = parent && parent[0] == '/' ? opendir(parent) : NULL;
    for (struct dirent *e; d && (e = readdir(d));) {
        char path[PATH_MAX];
        struct stat sb;
        int fd;
        if (!is_ours(e->d_name)) continue;
        if ((size_t)snprintf(path, sizeof path, "%s/%s", parent, e->d_name) >= sizeof path) continue;
        if (lstat(path, &sb) != 0 || !S_ISDIR(sb.st_mode) || sb.st_uid != geteuid()) continue;
        if (lock_take(path, false, true, &fd) == LOCKED) {
            remove_all(path);
            close(fd);
        } else {
            rmdir(path); /* succeeds where it is empty: its process ended before it had a lock, or just after */
        }
    }
    if (d) closedir(d);
}

void mu_run_dir_sweep(void)
{
    sweep(getenv("XDG_RUNTIME_DIR"));
    sweep(getenv("TMPDIR"));
    sweep("/tmp");
    sweep(shm_root);
}
