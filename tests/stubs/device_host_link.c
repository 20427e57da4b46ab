/* Links among threads, or processes, of one machine: what the host's devices have in the place of NCCL.
 *
 *   memory that all ranks map    | who came and left | counts | rank 0's area | rank 1's area | …
 *
 * An id names such memory: the descriptor of the process that made it. A rank writes nothing but its own counts and its
 * area, so there is no lock, and one that dies leaves none locked. A gather: everyone puts its part into its area and
 * counts, then fetches the others' parts and counts that. A message lies in its sender's area until its receiver has
 * counted it as taken. An area is written again when nobody wants anything of it any more.
 *
 * As with NCCL a send is not done before its receive: mu_host_link_send leaves the message, and what comes after it in the
 * queue waits in mu_host_link_taken. Whoever waits does so until the deadline that the link was opened with, or until
 * the rank that has not come has left. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "tests/stubs/device_host_parts.h"

enum { MAX_RANKS = 64, AREA_BYTES = 16 << 20 };

struct hub {
    uint64_t cookie; /* of its id: descriptors' numbers come again */
    atomic_int n_rank, n_open;
    struct {
        atomic_int came, left;
        atomic_uint_fast64_t given, had; /* gathers: whose part is in the area; that it has all parts of */
    } rank[MAX_RANKS];
    struct {
        atomic_uint_fast64_t sent, taken;
        uint64_t bytes;
    } way[MAX_RANKS][MAX_RANKS]; /* [from][to] */
    _Alignas(4096) unsigned char area[][AREA_BYTES];
};

struct id { /* what an id holds */
    uint64_t cookie;
    int pid, fd;
};

struct mu_device_link {
    struct mu_device *d;
    struct hub *hub;
    size_t bytes; /* of the mapping */
    struct id id;
    int n_rank, rank, timeout_ms;
};

bool mu_host_has_link(void)
{
    const char *text = getenv("MUSTER_DEVICE_HOST_LINK");
    return text && strcmp(text, "1") == 0;
}

struct mu_device *mu_host_link_device(const struct mu_device_link *l)
{
    return l->d;
}

int mu_host_link_ranks(const struct mu_device_link *l)
{
    return l->n_rank;
}

enum mu_status mu_host_link_id(unsigned char id_out[MU_DEVICE_LINK_ID], struct mu_err *err)
{
    static atomic_uint_fast64_t number = 1;
    struct id id = {.cookie = (uint64_t)mu_now_ns() + atomic_fetch_add(&number, 1), .pid = (int)getpid()};
    if (!mu_host_has_link()) return mu_fail(err, MU_EUNSUPPORTED, "MUSTER_DEVICE_HOST_LINK is not 1: no links");
    id.fd = memfd_create("muster link", MFD_CLOEXEC);
    if (id.fd < 0 || ftruncate(id.fd, (off_t)(sizeof(struct hub) + (size_t)MAX_RANKS * AREA_BYTES)) != 0 ||
        pwrite(id.fd, &id.cookie, sizeof id.cookie, 0) != sizeof id.cookie) {
        mu_fail(err, MU_EIO, "memory for a link: %s", strerror(errno));
        if (id.fd >= 0) close(id.fd);
        return MU_EIO;
    }
    memset(id_out, 0, MU_DEVICE_LINK_ID);
    memcpy(id_out, &id, sizeof id);
    return MU_OK;
}

/* ---- waiting ---- */

struct patience {
    int64_t deadline_ns;
    int turn;
};

static struct patience patience_of(const struct mu_device_link *l)
{
    return (struct patience){.deadline_ns = mu_now_ns() + (int64_t)l->timeout_ms * MU_MS};
}

/* A moment; false where the deadline has passed. */
static bool bide(struct patience *p)
{
    struct timespec pause = {0, 50000};
    if (mu_now_ns() >= p->deadline_ns) return false;
    if (p->turn++ < 100)
        sched_yield();
    else
        nanosleep(&pause, NULL);
    return true;
}

enum end { THERE, LEFT, LATE };

/* Until the count is that high; or its rank has left, or does not come. */
static enum end await(struct mu_device_link *l, const atomic_uint_fast64_t *count, uint64_t least, int rank)
{
    struct patience p = patience_of(l);
    for (;;) {
        bool left = atomic_load(&l->hub->rank[rank].left);
        if (atomic_load(count) >= least) return THERE;
        if (left) return LEFT;
        if (!bide(&p)) return LATE;
    }
}

/* ---- opening, closing ---- */

static enum mu_status map(struct mu_device_link *l, struct mu_err *err)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", l->id.pid, l->id.fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    l->bytes = sizeof(struct hub) + (size_t)l->n_rank * AREA_BYTES;
    void *p = fd < 0 ? MAP_FAILED : mmap(NULL, l->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    int e = errno;
    if (fd >= 0) close(fd);
    if (p == MAP_FAILED) return mu_fail(err, MU_EPEER, "a link of %d ranks: %s", l->n_rank, strerror(e));
    l->hub = p;
    if (l->hub->cookie == l->id.cookie) return MU_OK;
    munmap(p, l->bytes);
    l->hub = NULL;
    return mu_fail(err, MU_EPEER, "a link of %d ranks: it was given up", l->n_rank);
}

static enum mu_status join(struct mu_device_link *l, struct mu_err *err)
{
    struct patience p = patience_of(l);
    struct hub *h = l->hub;
    int n = 0, none = 0;
    if ((!atomic_compare_exchange_strong(&h->n_rank, &n, l->n_rank) && n != l->n_rank) ||
        !atomic_compare_exchange_strong(&h->rank[l->rank].came, &none, 1)) {
        munmap(h, l->bytes);
        l->hub = NULL;
        return mu_fail(err, MU_EINVAL, "rank %d of %d joins a link of %d, or for the second time", l->rank, l->n_rank,
                       n ? n : l->n_rank);
    }
    atomic_fetch_add(&h->n_open, 1);
    for (int i = 0; i < l->n_rank; i++)
        while (!atomic_load(&h->rank[i].came))
            if (!bide(&p))
                return mu_fail(err, MU_ETIMEOUT, "rank %d has not opened the link for %d ms", i, l->timeout_ms);
    return MU_OK;
}

void mu_host_link_close(struct mu_device_link *l)
{
    if (!l) return;
    if (l->hub) {
        atomic_store(&l->hub->rank[l->rank].left, 1);
        if (atomic_fetch_sub(&l->hub->n_open, 1) == 1 && l->id.pid == (int)getpid()) close(l->id.fd);
        munmap(l->hub, l->bytes);
    }
    mu_free(l);
}

enum mu_status mu_host_link_open(struct mu_device *d, const unsigned char id[MU_DEVICE_LINK_ID], int n_rank, int rank,
                                 int timeout_ms, struct mu_device_link **link_out, struct mu_err *err)
{
    struct mu_device_link *l;
    enum mu_status st;
    if (!mu_host_has_link()) return mu_fail(err, MU_EUNSUPPORTED, "MUSTER_DEVICE_HOST_LINK is not 1: no links");
    if (n_rank < 1 || n_rank > MAX_RANKS || rank < 0 || rank >= n_rank)
        return mu_fail(err, MU_EINVAL, "rank %d of a link of %d", rank, n_rank);
    l = mu_calloc(1, sizeof *l);
    if (!l) return mu_fail(err, MU_ENOMEM, "a link of %d ranks", n_rank);
    l->d = d;
    memcpy(&l->id, id, sizeof l->id);
    l->n_rank = n_rank;
    l->rank = rank;
    l->timeout_ms = timeout_ms;
    MU_TRY(st, map(l, err), fail);
    MU_TRY(st, join(l, err), fail);
    *link_out = l;
    return MU_OK;
fail:
    mu_host_link_close(l);
    return st;
}

/* ---- transfers ---- */

/* Nobody wants what is in my area. (Messages are taken before the next transfer begins.) */
static bool area_free(struct mu_device_link *l, size_t bytes)
{
    struct hub *h = l->hub;
    uint64_t given = atomic_load(&h->rank[l->rank].given);
    if (bytes > AREA_BYTES) mu_host_fail(l->d, MU_EINVAL, "link: %zu bytes of one rank at once", bytes);
    for (int i = 0; i < l->n_rank && !mu_host_failed(l->d); i++) {
        enum end end = i == l->rank ? THERE : await(l, &h->rank[i].had, given, i);
        if (end == LEFT) mu_host_fail(l->d, MU_EPEER, "link: rank %d has left a gather", i);
        if (end == LATE)
            mu_host_fail(l->d, MU_ETIMEOUT, "link: rank %d has not ended a gather for %d ms", i, l->timeout_ms);
    }
    return !mu_host_failed(l->d);
}

void mu_host_link_gather(struct mu_device_link *l, void *buf, const size_t *off, const size_t *len)
{
    struct hub *h = l->hub;
    unsigned char *to = buf;
    for (int i = 0; i < l->n_rank; i++)
        if (len[i] && !mu_host_holds(l->d, "link_gather", "buf", to, off[i] + len[i])) return;
    if (!area_free(l, len[l->rank])) return;
    memcpy(h->area[l->rank], to + off[l->rank], len[l->rank]);
    uint64_t number = atomic_fetch_add(&h->rank[l->rank].given, 1) + 1;
    for (int i = 0; i < l->n_rank; i++) {
        if (i == l->rank) continue;
        enum end end = await(l, &h->rank[i].given, number, i);
        if (end == LEFT) mu_host_fail(l->d, MU_EPEER, "link: rank %d has left a gather", i);
        if (end == LATE)
            mu_host_fail(l->d, MU_ETIMEOUT, "link: rank %d has not come to a gather of %d ranks for %d ms", i,
                         l->n_rank, l->timeout_ms);
        if (end != THERE) return;
        memcpy(to + off[i], h->area[i], len[i]);
    }
    atomic_fetch_add(&h->rank[l->rank].had, 1);
}

void mu_host_link_send(struct mu_device_link *l, int to, const void *buf, size_t bytes)
{
    struct hub *h = l->hub;
    if (bytes == 0 || !mu_host_holds(l->d, "link_send", "buf", buf, bytes) || !area_free(l, bytes)) return;
    memcpy(h->area[l->rank], buf, bytes);
    h->way[l->rank][to].bytes = bytes;
    atomic_fetch_add(&h->way[l->rank][to].sent, 1);
}

bool mu_host_link_has_taken(const struct mu_device_link *l, int to)
{
    return atomic_load(&l->hub->way[l->rank][to].taken) == atomic_load(&l->hub->way[l->rank][to].sent);
}

void mu_host_link_taken(struct mu_device_link *l, int to)
{
    struct hub *h = l->hub;
    enum end end = await(l, &h->way[l->rank][to].taken, atomic_load(&h->way[l->rank][to].sent), to);
    if (end == LEFT) mu_host_fail(l->d, MU_EPEER, "link: rank %d has left and did not take what was sent", to);
    if (end == LATE) mu_host_fail(l->d, MU_ETIMEOUT, "link: rank %d took nothing for %d ms", to, l->timeout_ms);
}

void mu_host_link_recv(struct mu_device_link *l, int from, void *buf, size_t bytes)
{
    struct hub *h = l->hub;
    if (bytes == 0 || !mu_host_holds(l->d, "link_recv", "buf", buf, bytes)) return;
    enum end end = await(l, &h->way[from][l->rank].sent, atomic_load(&h->way[from][l->rank].taken) + 1, from);
    if (end == LEFT) mu_host_fail(l->d, MU_EPEER, "link: rank %d has left and sent nothing", from);
    if (end == LATE) mu_host_fail(l->d, MU_ETIMEOUT, "link: rank %d sent nothing for %d ms", from, l->timeout_ms);
    if (end != THERE) return;
    if (h->way[from][l->rank].bytes != bytes)
        mu_host_fail(l->d, MU_EPROTO, "link: rank %d sent %llu bytes where %zu are received", from,
                     (unsigned long long)h->way[from][l->rank].bytes, bytes);
    else
        memcpy(buf, h->area[from], bytes);
    atomic_fetch_add(&h->way[from][l->rank].taken, 1);
}
