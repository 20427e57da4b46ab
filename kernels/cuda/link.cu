/* Links: NCCL joins the devices of several ranks.
 *
 * NCCL is found when the plugin is loaded (libnccl.so.2, or the file that MUSTER_NCCL names), so that the plugin runs
 * without it too, and only its header is needed to build. Communicators do not block: a call that is not done at once
 * is asked about again until the deadline that link_open was given, and one that will never be done is aborted.
 *
 * Ranks meet at the first exchange of a kind: NCCL joins two of them only when both use the way between them. That may
 * take a while, wants memory, and would hold up a rank whose partner is still elsewhere; so link_open exchanges
 * once in all the ways that there are, while everybody is there. Afterwards what is queued here takes microseconds, and
 * can be recorded.
 *
 * A send is done when its receive has been queued on the other side and both have run: two ranks that each first send
 * much to the other, then receive, wait for ever. The order is the callers' to agree on. */
#include "cuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

extern "C" {
#include "base/clock.h"
}

#ifdef MUSTER_HAVE_NCCL

#include <dlfcn.h>
#include <nccl.h>
#include <pthread.h>

#ifndef NCCL_LIBRARY
#define NCCL_LIBRARY "libnccl.so.2"
#endif

enum { CLOSE_MS = 2000, OLDEST_NCCL = 21800 };

#define NCCL_FUNCTIONS(X)     \
    X(ncclGetVersion)         \
    X(ncclGetUniqueId)        \
    X(ncclCommInitRankConfig) \
    X(ncclCommGetAsyncError)  \
    X(ncclCommFinalize)       \
    X(ncclCommDestroy)        \
    X(ncclCommAbort)          \
    X(ncclGroupStart)         \
    X(ncclGroupEnd)           \
    X(ncclBroadcast)          \
    X(ncclAllGather)          \
    X(ncclSend)               \
    X(ncclRecv)               \
    X(ncclGetErrorString)     \
    X(ncclGetLastError)

/* The library's functions under their names; have: all were found, in a version that is new enough. */
static struct {
    bool have;
#define NCCL_MEMBER(f) decltype(&::f) f;
    NCCL_FUNCTIONS(NCCL_MEMBER)
#undef NCCL_MEMBER
} nccl;

static pthread_once_t nccl_once = PTHREAD_ONCE_INIT;

static void nccl_load(void)
{
    const char *chosen = getenv("MUSTER_NCCL");
    void *lib = dlopen(chosen && *chosen ? chosen : NCCL_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    int version = 0;
    if (!lib) return;
#define NCCL_FIND(f)                    \
    *(void **)&nccl.f = dlsym(lib, #f); \
    if (!nccl.f) return;
    NCCL_FUNCTIONS(NCCL_FIND)
#undef NCCL_FIND
    nccl.have = nccl.ncclGetVersion(&version) == ncclSuccess && version >= OLDEST_NCCL;
}

bool mu_cuda_link_have(void)
{
    pthread_once(&nccl_once, nccl_load);
    return nccl.have;
}

struct mu_device_link {
    struct mu_device_link *next; /* of the device's */
    struct mu_device *d;
    ncclComm_t comm;
    int n_rank, rank, timeout_ms;
};

/* "ranks 0, 2" (all but mine), in size bytes. */
static void others(int n_rank, int rank, char *text, size_t size)
{
    size_t at = 0;
    const char *between = n_rank > 2 ? "ranks " : "rank ";
    text[0] = '\0';
    for (int i = 0; i < n_rank && at + 16 < size; i++) {
        if (i == rank) continue;
        at += (size_t)snprintf(text + at, size - at, "%s%d", between, i);
        between = ", ";
    }
}

/* ---- failures ---- */

static const char *reason(ncclResult_t e)
{
    return e == ncclInProgress ? "it has not come about in time" : nccl.ncclGetErrorString(e);
}

static void lose(struct mu_device_link *l, const char *what, ncclResult_t e)
{
    char who[128];
    if (l->d->lost[0]) return;
    others(l->n_rank, l->rank, who, sizeof who);
    snprintf(l->d->lost, sizeof l->d->lost, "%s, rank %d of a link with %s: %s (NCCL)", what, l->rank, who, reason(e));
}

/* Until the communicator is no longer in progress, or the deadline. */
static ncclResult_t settle(ncclComm_t comm, int timeout_ms)
{
    int64_t start = mu_now_ns();
    for (;;) {
        ncclResult_t state = ncclInProgress, e = nccl.ncclCommGetAsyncError(comm, &state);
        struct timespec pause = {0, 50000};
        if (e != ncclSuccess) return e;
        if (state != ncclInProgress) return state;
        if (mu_now_ns() - start >= timeout_ms * MU_MS) return ncclInProgress;
        if (mu_now_ns() - start >= MU_MS) nanosleep(&pause, NULL);
    }
}

void mu_cuda_links_look(struct mu_device *d)
{
    for (struct mu_device_link *l = d->links; l; l = l->next) {
        ncclResult_t state = ncclSuccess, e = nccl.ncclCommGetAsyncError(l->comm, &state);
        if (e == ncclSuccess) e = state;
        if (e != ncclSuccess && e != ncclInProgress) lose(l, "an exchange failed", e);
    }
}

void mu_cuda_links_describe(const struct mu_device *d, char *text, size_t size)
{
    char who[128];
    text[0] = '\0';
    if (!d->links) return;
    if (d->links->next) { /* who waits knows which */
        snprintf(text, size, "; it may be waiting for another rank of its links");
        return;
    }
    others(d->links->n_rank, d->links->rank, who, sizeof who);
    snprintf(text, size, "; it may be waiting for %s of the link in which it is rank %d", who, d->links->rank);
}

/* ---- exchanges ---- */

/* A group is closed, also after one of its calls failed; what it gave is then settled. */
static ncclResult_t group_end(struct mu_device_link *l, ncclResult_t e)
{
    ncclResult_t end = nccl.ncclGroupEnd();
    if (e != ncclSuccess && e != ncclInProgress) return e;
    if (end != ncclSuccess && end != ncclInProgress) return end;
    return settle(l->comm, l->timeout_ms);
}

/* Parts that are equal and follow each other are what NCCL has its quickest ways for. */
static bool even(const struct mu_device_link *l, const size_t *off, const size_t *len)
{
    for (int i = 0; i < l->n_rank; i++)
        if (len[i] != len[0] || off[i] != off[0] + (size_t)i * len[0]) return false;
    return true;
}

static ncclResult_t gather(struct mu_device_link *l, unsigned char *buf, const size_t *off, const size_t *len)
{
    ncclResult_t e = ncclSuccess;
    size_t total = 0;
    for (int i = 0; i < l->n_rank; i++) total += len[i];
    if (total == 0) return ncclSuccess;
    nccl.ncclGroupStart();
    if (even(l, off, len))
        e = nccl.ncclAllGather(buf + off[l->rank], buf + off[0], len[0], ncclInt8, l->comm, l->d->stream);
    else
        for (int i = 0; i < l->n_rank && (e == ncclSuccess || e == ncclInProgress); i++)
            if (len[i]) e = nccl.ncclBroadcast(buf + off[i], buf + off[i], len[i], ncclInt8, i, l->comm, l->d->stream);
    return group_end(l, e);
}

static bool usable(const struct mu_device_link *l)
{
    return l->d->failed == cudaSuccess && !l->d->lost[0];
}

void mu_cuda_link_gather(struct mu_device_link *l, void *buf, const size_t *off, const size_t *len)
{
    ncclResult_t e = usable(l) ? gather(l, (unsigned char *)buf, off, len) : ncclSuccess;
    if (e != ncclSuccess) lose(l, "gathering", e);
}

void mu_cuda_link_send(struct mu_device_link *l, int to, const void *buf, size_t bytes)
{
    ncclResult_t e;
    if (bytes == 0 || !usable(l)) return;
    nccl.ncclGroupStart();
    e = group_end(l, nccl.ncclSend(buf, bytes, ncclInt8, to, l->comm, l->d->stream));
    if (e != ncclSuccess) lose(l, "sending", e);
}

void mu_cuda_link_recv(struct mu_device_link *l, int from, void *buf, size_t bytes)
{
    ncclResult_t e;
    if (bytes == 0 || !usable(l)) return;
    nccl.ncclGroupStart();
    e = group_end(l, nccl.ncclRecv(buf, bytes, ncclInt8, from, l->comm, l->d->stream));
    if (e != ncclSuccess) lose(l, "receiving", e);
}

/* ---- opening, closing ---- */

enum mu_status mu_cuda_link_id(unsigned char id_out[MU_DEVICE_LINK_ID], struct mu_err *err)
{
    ncclUniqueId id;
    ncclResult_t e = nccl.ncclGetUniqueId(&id);
    static_assert(sizeof id == MU_DEVICE_LINK_ID, "what ranks agree on");
    if (e != ncclSuccess)
        return mu_fail(err, MU_EINTERNAL, "NCCL makes no id for a link: %s (%s)", nccl.ncclGetErrorString(e),
                       nccl.ncclGetLastError(NULL));
    memcpy(id_out, &id, sizeof id);
    return MU_OK;
}

/* Every way once: the gathers of equal and of uneven parts, and every pair of ranks. */
static enum mu_status warm_up(struct mu_device_link *l, struct mu_err *err)
{
    size_t n = (size_t)l->n_rank, *off = (size_t *)calloc(2 * n, sizeof *off), *len = off + n;
    void *p = NULL;
    unsigned char *buf;
    ncclResult_t e;
    enum mu_status st =
        off ? mu_cuda_alloc(l->d, 3 * n + 1, &p, err) : mu_fail(err, MU_ENOMEM, "a link: out of memory");
    if (st != MU_OK) goto end;
    buf = (unsigned char *)p;
    mu_cuda_zero(l->d, p, 3 * n + 1);
    for (size_t i = 0; i < n; i++) off[i] = i, len[i] = 1;
    e = gather(l, buf, off, len);
    for (size_t i = 1; i < n; i++) off[i] = i + 1;
    len[0] = 2;
    if (e == ncclSuccess) e = gather(l, buf, off, len);
    if (e == ncclSuccess) {
        nccl.ncclGroupStart();
        for (int i = 0; i < l->n_rank && (e == ncclSuccess || e == ncclInProgress); i++) {
            if (i == l->rank) continue;
            e = nccl.ncclSend(buf + n + 1, 1, ncclInt8, i, l->comm, l->d->stream);
            if (e == ncclSuccess || e == ncclInProgress)
                e = nccl.ncclRecv(buf + n + 2 + i, 1, ncclInt8, i, l->comm, l->d->stream);
        }
        e = group_end(l, e);
    }
    if (e != ncclSuccess) lose(l, "a first exchange", e);
    st = mu_cuda_wait(l->d, MU_DEVICE_MARKS, l->timeout_ms, "a link's first exchange", err);
end:
    if (st == MU_OK) mu_cuda_free(l->d, p); /* else what hangs may still write it; close frees it */
    free(off);
    return st;
}

enum mu_status mu_cuda_link_open(struct mu_device *d, const unsigned char id[MU_DEVICE_LINK_ID], int n_rank, int rank,
                                 int timeout_ms, struct mu_device_link **link_out, struct mu_err *err)
{
    struct mu_device_link *l = (struct mu_device_link *)calloc(1, sizeof *l);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclUniqueId all;
    ncclResult_t e;
    char who[128];
    enum mu_status st = MU_OK;
    if (!l) return mu_fail(err, MU_ENOMEM, "a link: out of memory");
    l->d = d;
    l->n_rank = n_rank;
    l->rank = rank;
    l->timeout_ms = timeout_ms;
    others(n_rank, rank, who, sizeof who);
    memcpy(&all, id, sizeof all);
    config.blocking = 0;
    mu_note(d, cudaSetDevice(d->index), "choosing the device");
    e = nccl.ncclCommInitRankConfig(&l->comm, n_rank, all, rank, &config);
    if (e == ncclSuccess || e == ncclInProgress) e = settle(l->comm, timeout_ms);
    l->next = d->links;
    d->links = l;
    if (e == ncclInProgress)
        st = mu_fail(err, MU_ETIMEOUT, "GPU %d (%s), rank %d of a link of %d: not all of %s have come after %.1f s",
                     d->index, d->name, rank, n_rank, who, timeout_ms / 1000.0);
    else if (e != ncclSuccess)
        st = mu_fail(err, MU_EPEER, "GPU %d (%s), rank %d of a link with %s: %s (%s)", d->index, d->name, rank, who,
                     nccl.ncclGetErrorString(e), nccl.ncclGetLastError(NULL));
    else if (n_rank > 1)
        st = warm_up(l, err);
    if (st != MU_OK) {
        mu_cuda_link_close(l);
        return st;
    }
    *link_out = l;
    return MU_OK;
}

/* Aborting takes back what hangs, but may also take from a partner what is on its way to it: only where the queue does
 * not end, or a link is lost. */
void mu_cuda_link_close(struct mu_device_link *l)
{
    bool whole;
    if (!l) return;
    for (struct mu_device_link **at = &l->d->links; *at; at = &(*at)->next)
        if (*at == l) {
            *at = l->next;
            break;
        }
    mu_note(l->d, cudaSetDevice(l->d->index), "choosing the device");
    if (l->comm) {
        whole = usable(l) && mu_cuda_test(l->d, MU_DEVICE_MARKS) == 1;
        if (whole) {
            ncclResult_t e = nccl.ncclCommFinalize(l->comm);
            whole = (e == ncclSuccess || e == ncclInProgress) && settle(l->comm, CLOSE_MS) == ncclSuccess;
        }
        (void)(whole ? nccl.ncclCommDestroy(l->comm) : nccl.ncclCommAbort(l->comm));
    }
    free(l);
}

#else /* built without NCCL's header */

bool mu_cuda_link_have(void)
{
    return false;
}

void mu_cuda_link_close(struct mu_device_link *l)
{
    (void)l;
}

void mu_cuda_links_look(struct mu_device *d)
{
    (void)d;
}

void mu_cuda_links_describe(const struct mu_device *d, char *text, size_t size)
{
    (void)d;
    if (size) text[0] = '\0';
}

enum mu_status mu_cuda_link_id(unsigned char[MU_DEVICE_LINK_ID], struct mu_err *err)
{
    return mu_fail(err, MU_EUNSUPPORTED, "built without NCCL");
}

enum mu_status mu_cuda_link_open(struct mu_device *, const unsigned char[MU_DEVICE_LINK_ID], int, int, int,
                                 struct mu_device_link **, struct mu_err *err)
{
    return mu_fail(err, MU_EUNSUPPORTED, "built without NCCL");
}

void mu_cuda_link_gather(struct mu_device_link *, void *, const size_t *, const size_t *) {}
void mu_cuda_link_send(struct mu_device_link *, int, const void *, size_t) {}
void mu_cuda_link_recv(struct mu_device_link *, int, void *, size_t) {}

#endif
