/* Reading folders that other programs own.
 *
 * Links to folders are never entered (so no loop can be), links to files only where they end below the store's root.
 * Whoever keeps models on another disk links the root itself, which is followed. Depth is bounded by the readers, which
 * know their layouts; names in a folder by MAX_NAMES. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/log.h"
#include "model/store_part.h"

enum { MAX_NAMES = 65536 };

static int compare(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

void mu_dir_free(struct mu_dir *dir)
{
    for (size_t i = 0; i < dir->n; i++) mu_free(dir->name[i]);
    mu_free(dir->name);
    *dir = (struct mu_dir){0};
}

bool mu_dir_read(const char *path, bool root, struct mu_dir *dir_out, bool *no_memory)
{
    struct mu_dir d = {0};
    size_t cap = 0;
    *dir_out = d;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | (root ? 0 : O_NOFOLLOW));
    DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
    int why = errno;
    if (!dir) {
        if (!root || why != ENOENT) mu_debug("store", "%s is left out: %s", path, strerror(why));
        if (fd >= 0) close(fd);
        errno = why;
        return false;
    }
    while (d.n < MAX_NAMES) {
        errno = 0;
        struct dirent *e = readdir(dir);
        if (!e && errno) goto unreadable;
        if (!e) break;
        if (e->d_name[0] == '.') continue;
        if (!mu_text_ok(e->d_name)) {
            mu_debug("store", "a name in %s is no text: left out", path);
            continue;
        }
        if (d.n == cap) {
            size_t want = cap ? 2 * cap : 32;
            char **more = mu_reallocarray(d.name, want, sizeof *more);
            if (!more) goto no_memory;
            d.name = more;
            cap = want;
        }
        d.name[d.n] = mu_strdup(e->d_name);
        if (!d.name[d.n]) goto no_memory;
        d.n++;
    }
    closedir(dir);
    if (d.n) qsort(d.name, d.n, sizeof *d.name, compare);
    *dir_out = d;
    return true;
unreadable:
    why = errno;
    mu_debug("store", "%s is left out: %s", path, strerror(why));
    closedir(dir);
    mu_dir_free(&d);
    errno = why;
    return false;
no_memory:
    closedir(dir);
    mu_dir_free(&d);
    *no_memory = true;
    return false;
}

bool mu_dir_file(const char *root, const char *path, struct stat *sb_out)
{
    char real_root[PATH_MAX], real[PATH_MAX];
    if (lstat(path, sb_out) != 0) return false;
    if (S_ISREG(sb_out->st_mode)) return true;
    if (!S_ISLNK(sb_out->st_mode)) return false;
    if (!realpath(root, real_root) || !realpath(path, real) || stat(real, sb_out) != 0) return false;
    size_t n = strlen(real_root);
    if (strncmp(real, real_root, n) != 0 || (n > 1 && real[n] != '/')) {
        mu_debug("store", "%s is left out: its link leaves the store", path);
        return false;
    }
    return S_ISREG(sb_out->st_mode);
}

bool mu_dir_exists(const char *path)
{
    struct stat sb;
    return stat(path, &sb) == 0;
}

bool mu_text_ok(const char *s)
{
    size_t left = strlen(s);
    while (left) {
        uint32_t cp;
        int n = mu_utf8_next(s, left, &cp);
        if (n == 0 || cp < 0x20 || (cp >= 0x7f && cp < 0xa0)) return false;
        s += n;
        left -= (size_t)n;
    }
    return true;
}
