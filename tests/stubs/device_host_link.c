/* Links among the threads of one process: what the host's devices have in the place of NCCL.
 *
 * An id is a number that names a hub; whoever opens it first makes the hub, whoever closes it last ends it. A gather is
 * two meetings, with the copying between them: no part may change before all have it. What is sent waits in a list of
 * messages until it is received. Whoever waits does so until the deadline that the link was opened with, or until a
 * rank that has not come has left.
 *
 * Threads: the lock guards the list of hubs and all hubs. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "tests/stubs/device_host_parts.h"

enum { MAX_RANKS = 64 };

struct message {
    struct message *next;
    int from, to;
    size_t bytes;
    unsigned char data[];
};

struct hub {
    struct hub *next;
    uint64_t id;
    int n_rank, n_open, n_here; /* ranks of it; still open; at the meeting */
    bool came[MAX_RANKS], left[MAX_RANKS];
    uint64_t meeting;
    void *buf[MAX_RANKS];
    struct message *messages, **end;
};

struct mu_device_link {
    struct mu_device *d;
    struct hub *hub;
    int rank, timeout_ms;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t change = PTHREAD_COND_INITIALIZER; /* of any hub */
static struct hub *hubs;
static atomic_uint_fast64_t next_id = 1;

bool mu_host_has_link(void)
{
    const char *text = getenv("MUSTER_DEVICE_HOST_LINK");
    return text && strcmp(text, "1") == 0;
}

enum mu_status mu_host_link_id(unsigned char id_out[MU_DEVICE_LINK_ID], struct mu_err *err)
{
    uint64_t id = atomic_fetch_add(&next_id, 1);
    if (!mu_host_has_link()) return mu_fail(err, MU_EUNSUPPORTED, "MUSTER_DEVICE_HOST_LINK is not 1: no links");
    memset(id_out, 0, MU_DEVICE_LINK_ID);
    memcpy(id_out, &id, sizeof id);
    return MU_OK;
}

struct mu_device *mu_host_link_device(const struct mu_device_link *l)
{
    return l->d;
}

int mu_host_link_ranks(const struct mu_device_link *l)
{
    return l->hub->n_rank;
}

/* Locked. Waits for a change until deadline_ns of mu_now_ns; false where that has passed. */
static bool change_wait(int64_t deadline_ns)
{
    struct timespec at;
    int64_t left = deadline_ns - mu_now_ns();
    if (left <= 0) return false;
    clock_gettime(CLOCK_REALTIME, &at);
    left += at.tv_nsec;
    at.tv_sec += (time_t)(left / 1000000000);
    at.tv_nsec = (long)(left % 1000000000);
    pthread_cond_timedwait(&change, &lock, &at);
    return true;
}

static int64_t deadline_of(int timeout_ms)
{
    return mu_now_ns() + (int64_t)timeout_ms * 1000000;
}

/* ---- opening, closing ---- */

/* Locked. */
static struct hub *hub_of(uint64_t id, int n_rank)
{
    struct hub *h = hubs;
    while (h && h->id != id) h = h->next;
    if (h) return h;
    h = mu_calloc(1, sizeof *h);
    if (!h) return NULL;
    h->id = id;
    h->n_rank = n_rank;
    h->end = &h->messages;
    h->next = hubs;
    hubs = h;
    return h;
}

/* Locked. */
static void hub_end(struct hub *h)
{
    struct hub **at = &hubs;
    while (*at != h) at = &(*at)->next;
    *at = h->next;
    while (h->messages) {
        struct message *m = h->messages;
        h->messages = m->next;
        mu_free(m);
    }
    mu_free(h);
}

void mu_host_link_close(struct mu_device_link *l)
{
    if (!l) return;
    pthread_mutex_lock(&lock);
    l->hub->left[l->rank] = true;
    pthread_cond_broadcast(&change);
    if (--l->hub->n_open == 0) hub_end(l->hub);
    pthread_mutex_unlock(&lock);
    mu_free(l);
}

/* Locked: first rank that is not there yet, or -1. */
static int missing(const struct hub *h)
{
    for (int i = 0; i < h->n_rank; i++)
        if (!h->came[i]) return i;
    return -1;
}

static enum mu_status join(struct mu_device_link *l, uint64_t id, int n_rank, int rank, struct mu_err *err)
{
    int64_t deadline = deadline_of(l->timeout_ms);
    struct hub *h;
    enum mu_status st = MU_OK;
    pthread_mutex_lock(&lock);
    h = hub_of(id, n_rank);
    if (!h) {
        st = mu_fail(err, MU_ENOMEM, "a link of %d ranks", n_rank);
    } else if (h->n_rank != n_rank || h->came[rank]) {
        st = mu_fail(err, MU_EINVAL, "rank %d of %d joins a link of %d, or for the second time", rank, n_rank,
                     h->n_rank);
    } else {
        l->hub = h;
        l->rank = rank;
        h->came[rank] = true;
        h->n_open++;
        pthread_cond_broadcast(&change);
        while (st == MU_OK && missing(h) >= 0)
            if (!change_wait(deadline))
                st = mu_fail(err, MU_ETIMEOUT, "rank %d has not opened the link for %d ms", missing(h), l->timeout_ms);
    }
    pthread_mutex_unlock(&lock);
    return st;
}

enum mu_status mu_host_link_open(struct mu_device *d, const unsigned char id[MU_DEVICE_LINK_ID], int n_rank, int rank,
                                 int timeout_ms, struct mu_device_link **link_out, struct mu_err *err)
{
    uint64_t number;
    struct mu_device_link *l;
    enum mu_status st;
    memcpy(&number, id, sizeof number);
    if (!mu_host_has_link()) return mu_fail(err, MU_EUNSUPPORTED, "MUSTER_DEVICE_HOST_LINK is not 1: no links");
    if (n_rank < 1 || n_rank > MAX_RANKS || rank < 0 || rank >= n_rank)
        return mu_fail(err, MU_EINVAL, "rank %d of a link of %d", rank, n_rank);
    l = mu_calloc(1, sizeof *l);
    if (!l) return mu_fail(err, MU_ENOMEM, "a link of %d ranks", n_rank);
    l->d = d;
    l->timeout_ms = timeout_ms;
    st = join(l, number, n_rank, rank, err);
    if (st == MU_OK) {
        *link_out = l;
        return MU_OK;
    }
    if (l->hub)
        mu_host_link_close(l);
    else
        mu_free(l);
    return st;
}

/* ---- transfers ---- */

/* Locked. A rank has left, and nobody else may be waited for. */
static int gone(const struct hub *h)
{
    for (int i = 0; i < h->n_rank; i++)
        if (h->left[i]) return i;
    return -1;
}

/* Locked: until all ranks are here. */
static bool meet(struct mu_device_link *l)
{
    struct hub *h = l->hub;
    int64_t deadline = deadline_of(l->timeout_ms);
    uint64_t meeting = h->meeting;
    if (++h->n_here == h->n_rank) {
        h->n_here = 0;
        h->meeting++;
        pthread_cond_broadcast(&change);
        return true;
    }
    while (h->meeting == meeting) {
        int rank = gone(h);
        if (rank >= 0)
            mu_host_fail(l->d, MU_EPEER, "link: rank %d has left a gather", rank);
        else if (!change_wait(deadline))
            mu_host_fail(l->d, MU_ETIMEOUT, "link: a gather of %d ranks waited %d ms", h->n_rank, l->timeout_ms);
        if (mu_host_failed(l->d)) return false;
    }
    return true;
}

void mu_host_link_gather(struct mu_device_link *l, void *buf, const size_t *off, const size_t *len)
{
    struct hub *h = l->hub;
    for (int i = 0; i < h->n_rank; i++)
        if (len[i] && !mu_host_holds(l->d, "link_gather", "buf", buf, off[i] + len[i])) return;
    pthread_mutex_lock(&lock);
    h->buf[l->rank] = buf;
    if (meet(l)) {
        for (int i = 0; i < h->n_rank; i++)
            if (i != l->rank && len[i]) memcpy((char *)buf + off[i], (const char *)h->buf[i] + off[i], len[i]);
        meet(l);
    }
    pthread_mutex_unlock(&lock);
}

void mu_host_link_send(struct mu_device_link *l, int to, const void *buf, size_t bytes)
{
    if (bytes && !mu_host_holds(l->d, "link_send", "buf", buf, bytes)) return;
    struct message *m = mu_host_scratch(l->d, 1, sizeof *m + bytes);
    if (!m) return;
    m->from = l->rank;
    m->to = to;
    m->bytes = bytes;
    if (bytes) memcpy(m->data, buf, bytes);
    pthread_mutex_lock(&lock);
    *l->hub->end = m;
    l->hub->end = &m->next;
    pthread_cond_broadcast(&change);
    pthread_mutex_unlock(&lock);
}

/* Locked: the first message for me from that rank. */
static struct message *message_take(struct mu_device_link *l, int from)
{
    struct message **at = &l->hub->messages;
    while (*at && ((*at)->from != from || (*at)->to != l->rank)) at = &(*at)->next;
    struct message *m = *at;
    if (!m) return NULL;
    *at = m->next;
    if (!*at) l->hub->end = at;
    return m;
}

void mu_host_link_recv(struct mu_device_link *l, int from, void *buf, size_t bytes)
{
    int64_t deadline = deadline_of(l->timeout_ms);
    struct message *m = NULL;
    if (bytes && !mu_host_holds(l->d, "link_recv", "buf", buf, bytes)) return;
    pthread_mutex_lock(&lock);
    while (!(m = message_take(l, from)) && !mu_host_failed(l->d)) {
        if (l->hub->left[from])
            mu_host_fail(l->d, MU_EPEER, "link: rank %d has left and sent nothing", from);
        else if (!change_wait(deadline))
            mu_host_fail(l->d, MU_ETIMEOUT, "link: rank %d sent nothing for %d ms", from, l->timeout_ms);
    }
    pthread_mutex_unlock(&lock);
    if (m && m->bytes != bytes)
        mu_host_fail(l->d, MU_EPROTO, "link: rank %d sent %zu bytes where %zu are received", from, m->bytes, bytes);
    else if (m && bytes)
        memcpy(buf, m->data, bytes);
    mu_free(m);
}
