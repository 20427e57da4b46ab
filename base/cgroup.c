/* Limits of our control group. Owns nothing.
 *
 * /proc/self/cgroup names our group in each hierarchy, /proc/self/mountinfo says where a hierarchy is mounted and
 * which group is the root of that mount (in a container often not "/"). A limit holds for all groups below it, so every
 * folder from ours up to the mount is read and the least wins. */
#include "base/cgroup.h"

#include <inttypes.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/io.h"

enum { TEXT_MAX = 1 << 20 };

/* The text of root/path/name, or NULL; freed with mu_free. */
static char *text_read(const char *root, const char *path, const char *name)
{
    char full[PATH_MAX], *text;
    size_t len;
    int n = snprintf(full, sizeof full, "%s%s%s%s", root, path, *name ? "/" : "", name);
    if (n < 0 || (size_t)n >= sizeof full) return NULL;
    return mu_file_read(full, TEXT_MAX, &text, &len, NULL) == MU_OK ? text : NULL;
}

/* A file of one number; "max", negative or unreadable = nothing. */
static bool number_read(const char *root, const char *path, const char *name, uint64_t *out)
{
    char *text = text_read(root, path, name);
    bool found = text && sscanf(text, "%" SCNu64, out) == 1 && text[0] != '-';
    mu_free(text);
    return found;
}

/* The number after `key ` at the start of a line; 0 if there is none. */
static uint64_t stat_value(const char *text, const char *key)
{
    size_t len = strlen(key);
    for (const char *line = text; line; line = strchr(line, '\n')) {
        if (*line == '\n') line++;
        uint64_t v;
        if (strncmp(line, key, len) == 0 && line[len] == ' ' && sscanf(line + len, "%" SCNu64, &v) == 1) return v;
    }
    return 0;
}

static bool list_has(const char *list, const char *word)
{
    size_t len = strlen(word);
    for (const char *p = list; *p; p += strcspn(p, ","), p += *p == ',')
        if (strcspn(p, ",") == len && memcmp(p, word, len) == 0) return true;
    return false;
}

/* Our group in the hierarchy with that controller ("" = v2), into path. */
static bool group_path(char *cgroups, const char *controller, char path[PATH_MAX])
{
    char *save = NULL;
    for (char *line = strtok_r(cgroups, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char *list = strchr(line, ':'), *group = list ? strchr(list + 1, ':') : NULL;
        if (!group) continue;
        *group++ = '\0';
        list++;
        if (*controller ? !list_has(list, controller) : *list != '\0') continue;
        snprintf(path, PATH_MAX, "%s", group);
        return true;
    }
    return false;
}

/* Where that hierarchy is mounted and the group at the root of the mount.
 * A line: 36 35 98:0 /root /mount-point options optional… - fstype source super-options */
static bool mount_find(char *mounts, const char *controller, char point[PATH_MAX], char mount_root[PATH_MAX])
{
    char *save = NULL;
    for (char *line = strtok_r(mounts, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char type[32], options[1024] = "";
        char *dash = strstr(line, " - ");
        if (!dash || sscanf(dash, " - %31s %*s %1023s", type, options) < 1) continue;
        if (strcmp(type, *controller ? "cgroup" : "cgroup2") != 0) continue;
        if (*controller && !list_has(options, controller)) continue;
        char *save_field = NULL, *field = strtok_r(line, " ", &save_field);
        for (int i = 0; i < 3 && field; i++) field = strtok_r(NULL, " ", &save_field);
        char *where = field ? strtok_r(NULL, " ", &save_field) : NULL;
        if (!where) continue;
        snprintf(mount_root, PATH_MAX, "%s", field);
        snprintf(point, PATH_MAX, "%s", where);
        return true;
    }
    return false;
}

/* The folder of our group in that hierarchy; *top_len_out: the length of the part that is the mount itself. */
static bool folder_find(const char *root, const char *controller, char folder[PATH_MAX], size_t *top_len_out)
{
    static const char *const sources[] = {"/proc/self/cgroup", "/proc/self/mountinfo"};
    char group[PATH_MAX], point[PATH_MAX], mount_root[PATH_MAX];
    char *cgroups = text_read(root, sources[0], ""), *mounts = text_read(root, sources[1], "");
    bool found = cgroups && mounts && group_path(cgroups, controller, group) &&
                 mount_find(mounts, controller, point, mount_root);
    mu_free(cgroups);
    mu_free(mounts);
    if (!found) return false;

    /* A group outside of what is mounted here (a container without its own cgroup namespace): the mount is ours. */
    size_t skip = strcmp(mount_root, "/") == 0 ? 0 : strlen(mount_root);
    const char *below =
        strncmp(group, mount_root, skip) == 0 && (group[skip] == '/' || !group[skip]) ? group + skip : "";
    if (strcmp(below, "/") == 0 || strncmp(below, "/..", 3) == 0) below = "";
    *top_len_out = strlen(point);
    int n = snprintf(folder, PATH_MAX, "%s%s", point, below);
    return n > 0 && n < PATH_MAX;
}

static void throttled_read(const char *root, const char *folder, bool v2, struct mu_cgroup *cg)
{
    char *stat = text_read(root, folder, "cpu.stat");
    uint64_t us = stat ? stat_value(stat, v2 ? "throttled_usec" : "throttled_time") : 0;
    mu_free(stat);
    if (!v2) us /= 1000; /* nanoseconds there */
    if (us > cg->throttled_us) cg->throttled_us = us;
}

static void cpu_limit(const char *root, const char *folder, bool v2, struct mu_cgroup *cg)
{
    long long quota = -1, period = 0;
    if (v2) {
        char *text = text_read(root, folder, "cpu.max"); /* "max 100000" or "150000 100000" */
        if (!text || sscanf(text, "%lld %lld", &quota, &period) != 2) quota = -1;
        mu_free(text);
    } else {
        uint64_t q, p;
        if (number_read(root, folder, "cpu.cfs_quota_us", &q) && number_read(root, folder, "cpu.cfs_period_us", &p)) {
            quota = (long long)q;
            period = (long long)p;
        }
    }
    throttled_read(root, folder, v2, cg);
    if (quota <= 0 || period <= 0) return;
    double cpus = (double)quota / (double)period;
    if (cg->cpus == 0 || cpus < cg->cpus) cg->cpus = cpus;
}

static void memory_limit(const char *root, const char *folder, bool v2, struct mu_cgroup *cg)
{
    uint64_t limit, high, usage;
    if (!number_read(root, folder, v2 ? "memory.max" : "memory.limit_in_bytes", &limit)) limit = UINT64_MAX;
    if (v2 && number_read(root, folder, "memory.high", &high) && high < limit) limit = high; /* beyond, all is slow */
    if (limit > (uint64_t)INT64_MAX / 2) return; /* v1 says "no limit" with a very large number */
    if (limit < cg->mem_limit_bytes) cg->mem_limit_bytes = limit;
    if (!number_read(root, folder, v2 ? "memory.current" : "memory.usage_in_bytes", &usage)) return;
    /* Usage counts the page cache, which gives way: after reading a model file it would seem that nothing is left. */
    char *stat = text_read(root, folder, "memory.stat");
    uint64_t cache = 0;
    if (stat) {
        cache += stat_value(stat, v2 ? "inactive_file" : "total_inactive_file");
        cache += stat_value(stat, v2 ? "active_file" : "total_active_file"); /* read more than once */
    }
    mu_free(stat);
    usage = usage > cache ? usage - cache : 0;
    uint64_t left = limit > usage ? limit - usage : 0;
    if (left < cg->mem_left_bytes) cg->mem_left_bytes = left;
}

static void walk_up(const char *root, const char *controller, struct mu_cgroup *cg,
                    void (*read_one)(const char *, const char *, bool, struct mu_cgroup *))
{
    char folder[PATH_MAX];
    size_t top_len;
    if (!folder_find(root, controller, folder, &top_len)) return;
    for (;;) {
        read_one(root, folder, !*controller, cg);
        char *slash = strrchr(folder, '/');
        if (!slash || (size_t)(slash - folder) < top_len) return;
        *slash = '\0';
    }
}

void mu_cgroup_read(const char *root, struct mu_cgroup *cgroup_out)
{
    *cgroup_out = (struct mu_cgroup){.mem_limit_bytes = UINT64_MAX, .mem_left_bytes = UINT64_MAX};
    /* Both versions: a hybrid system has controllers in either; a file that is not there limits nothing. */
    walk_up(root, "", cgroup_out, cpu_limit);
    walk_up(root, "", cgroup_out, memory_limit);
    walk_up(root, "cpu", cgroup_out, cpu_limit);
    walk_up(root, "memory", cgroup_out, memory_limit);
}
