/* A worker's folders. A folder of ours is known by its name and by the file `worker.lock` in it; whether its worker
 * lives is told by the lock on that file, not by the pid in the name, which may mean another process in another
 * container. */
#include "worker/places.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/io.h"

static const char shm_root[] = "/dev/shm";
static const char prefix[] = "muster-";

/* The lock on a folder, or -1. */
static int folder_lock(const char *folder, int flags)
{
    char path[PATH_MAX];
    if ((size_t)snprintf(path, sizeof path, "%s/worker.lock", folder) >= sizeof path) return -1;
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | flags, 0600);
    if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) != 0) {
        close(fd);
        fd = -1;
    }
    return fd;
}

/* Removes folders in `parent` whose workers are dead. */
static void sweep(const char *parent)
{
    DIR *d = parent && parent[0] == '/' ? opendir(parent) : NULL;
    for (struct dirent *e; d && (e = readdir(d));) {
        char path[PATH_MAX];
        struct stat sb;
        if (strncmp(e->d_name, prefix, sizeof prefix - 1) != 0) continue;
        if ((size_t)snprintf(path, sizeof path, "%s/%s", parent, e->d_name) >= sizeof path) continue;
        if (lstat(path, &sb) != 0 || !S_ISDIR(sb.st_mode) || sb.st_uid != geteuid()) continue;
        int fd = folder_lock(path, 0);
        if (fd < 0) continue; /* not a worker's, or alive */
        mu_run_dir_remove(path);
        close(fd);
    }
    if (d) closedir(d);
}

enum mu_status mu_places_open(struct mu_places *p, struct mu_err *err)
{
    p->run_lock = p->shm_lock = -1;
    sweep(getenv("XDG_RUNTIME_DIR"));
    sweep(getenv("TMPDIR"));
    sweep("/tmp");
    sweep(shm_root);
    enum mu_status st = mu_run_dir_create(&p->run_dir, err);
    if (st != MU_OK) return st;
    p->run_lock = folder_lock(p->run_dir, O_CREAT);
    p->shm_dir = mu_asprintf("%s/%s%d-XXXXXX", shm_root, prefix, (int)getpid());
    if (p->shm_dir && !mkdtemp(p->shm_dir)) {
        mu_free(p->shm_dir);
        p->shm_dir = NULL;
    }
    if (p->shm_dir) p->shm_lock = folder_lock(p->shm_dir, O_CREAT);
    return MU_OK;
}

void mu_places_close(struct mu_places *p)
{
    mu_run_dir_remove(p->run_dir);
    mu_run_dir_remove(p->shm_dir);
    if (p->run_dir && p->run_lock >= 0) close(p->run_lock);
    if (p->shm_dir && p->shm_lock >= 0) close(p->shm_lock);
    mu_free(p->run_dir);
    mu_free(p->shm_dir);
    *p = (struct mu_places){0};
}
