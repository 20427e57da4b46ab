/* Fault points. Owns the table of what MUSTER_FAULT asked for: written by mu_fault_init before there are threads, only
 * the counters change afterwards. */
#include "base/fault.h"

#ifdef MUSTER_FAULTS

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Every point there is, sorted. A new mu_fault_hit or mu_fault_value adds its name here. */
static const struct {
    const char *name;
    bool by_value; /* n names a value, not a pass */
} points[] = {
    {"bench.request", false}, {"comm.allgather", false}, {"comm.recv", false}, {"comm.send", false},
    {"engine.send", false},   {"link.recv", false},      {"link.send", false}, {"pool.thread", false},
    {"rank.load", false},     {"rank.step", false},      {"rank.token", true}, {"rpc.stop", false},
    {"rpc.thread", false},    {"worker.spawn", false},
};
enum { N_POINTS = sizeof points / sizeof points[0], MAX_FAULTS = 32 };

enum action { ACT_FAIL, ACT_ABORT, ACT_STOP, ACT_SLEEP };

struct fault {
    int point;
    enum action action;
    int64_t n;           /* the pass or the value */
    atomic_llong n_seen; /* passes so far */
};

static struct fault faults[MAX_FAULTS];
static atomic_int n_faults;

static int point_find(const char *name, size_t len)
{
    for (int i = 0; i < N_POINTS; i++)
        if (strlen(points[i].name) == len && memcmp(points[i].name, name, len) == 0) return i;
    return -1;
}

static bool action_parse(const char *s, size_t len, enum action *action_out)
{
    static const char *const names[] = {"fail", "abort", "stop", "sleep"};
    for (int i = 0; i < 4; i++)
        if (strlen(names[i]) == len && memcmp(names[i], s, len) == 0) {
            *action_out = (enum action)i;
            return true;
        }
    return false;
}

/* A whole number in [least, 2^63), all of s up to end. */
static bool number_parse(const char *s, const char *end, long long least, long long *out)
{
    if (s == end || !((*s >= '0' && *s <= '9') || (*s == '-' && end - s > 1))) return false;
    char *stop;
    errno = 0;
    long long v = strtoll(s, &stop, 10);
    if (errno || stop != end || v < least) return false;
    *out = v;
    return true;
}

static enum mu_status point_unknown(const char *name, int len, struct mu_err *err)
{
    char list[256] = "";
    size_t used = 0;
    for (int i = 0; i < N_POINTS && used < sizeof list; i++)
        used += (size_t)snprintf(list + used, sizeof list - used, "%s%s", i ? ", " : "", points[i].name);
    return mu_fail(err, MU_EINVAL, "MUSTER_FAULT: no fault point is named '%.*s'; there are %s", len, name, list);
}

/* One name[@rank]:n[=action] between s and end; *mine_out says whether it is for this rank. */
static enum mu_status fault_parse(const char *s, const char *end, int rank, struct fault *f, bool *mine_out,
                                  struct mu_err *err)
{
    int len = (int)(end - s < 200 ? end - s : 200);
    const char *colon = memchr(s, ':', (size_t)(end - s));
    if (!colon) return mu_fail(err, MU_EINVAL, "MUSTER_FAULT: '%.*s' is not name[@rank]:n[=action]", len, s);
    const char *at = memchr(s, '@', (size_t)(colon - s)), *name_end = at ? at : colon;
    f->point = point_find(s, (size_t)(name_end - s));
    if (f->point < 0) return point_unknown(s, (int)(name_end - s < 64 ? name_end - s : 64), err);

    long long only_rank = rank, n = 0;
    if (at && !number_parse(at + 1, colon, 0, &only_rank))
        return mu_fail(err, MU_EINVAL, "MUSTER_FAULT: '%.*s': after @ comes a rank, 0 or more", len, s);
    *mine_out = only_rank == rank;

    const char *equals = memchr(colon, '=', (size_t)(end - colon));
    bool by_value = points[f->point].by_value;
    if (!number_parse(colon + 1, equals ? equals : end, by_value ? INT64_MIN : 1, &n))
        return mu_fail(err, MU_EINVAL, "MUSTER_FAULT: '%.*s': after : comes %s", len, s,
                       by_value ? "a whole number" : "the number of the pass, 1 or more");
    f->n = n;
    f->action = ACT_FAIL;
    if (equals && !action_parse(equals + 1, (size_t)(end - equals - 1), &f->action))
        return mu_fail(err, MU_EINVAL, "MUSTER_FAULT: '%.*s': the actions are fail, abort, stop and sleep", len, s);
    return MU_OK;
}

enum mu_status mu_fault_init(int rank, struct mu_err *err)
{
    atomic_store(&n_faults, 0);
    const char *s = getenv("MUSTER_FAULT");
    int n = 0;
    while (s && *s) {
        const char *end = strchrnul(s, ',');
        if (n == MAX_FAULTS) return mu_fail(err, MU_ELIMIT, "MUSTER_FAULT: more than %d faults", (int)MAX_FAULTS);
        bool mine = false;
        enum mu_status st = fault_parse(s, end, rank, &faults[n], &mine, err);
        if (st != MU_OK) return st;
        if (mine) atomic_store(&faults[n++].n_seen, 0);
        if (*end == ',' && end[1] == '\0')
            return mu_fail(err, MU_EINVAL, "MUSTER_FAULT: nothing stands after the last comma");
        s = *end ? end + 1 : end;
    }
    atomic_store(&n_faults, n);
    return MU_OK;
}

static bool act(enum action action)
{
    switch (action) {
    case ACT_FAIL: return true;
    case ACT_ABORT:
        kill(getpid(), SIGKILL);
        for (;;) pause();
    case ACT_STOP:
        kill(getpid(), SIGSTOP); /* the whole process; goes on here after SIGCONT */
        return false;
    case ACT_SLEEP:
        for (;;) pause(); /* this thread only: the others keep answering */
    }
    return false;
}

bool mu_fault_hit(const char *name)
{
    int n = atomic_load_explicit(&n_faults, memory_order_acquire);
    if (__builtin_expect(n == 0, 1)) return false;
    int point = point_find(name, strlen(name));
    assert(point >= 0 && !points[point].by_value); /* a point that fault.c does not list could never be asked for */
    bool fail = false;
    for (int i = 0; i < n; i++)
        if (faults[i].point == point && atomic_fetch_add(&faults[i].n_seen, 1) + 1 == faults[i].n)
            fail |= act(faults[i].action);
    return fail;
}

bool mu_fault_value(const char *name, int64_t value)
{
    int n = atomic_load_explicit(&n_faults, memory_order_acquire);
    if (__builtin_expect(n == 0, 1)) return false;
    int point = point_find(name, strlen(name));
    assert(point >= 0 && points[point].by_value);
    bool fail = false;
    for (int i = 0; i < n; i++)
        if (faults[i].point == point && faults[i].n == value) fail |= act(faults[i].action);
    return fail;
}

#endif
