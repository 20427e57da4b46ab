/* Links: ranks are threads, each with an emulated device of its own, joined by NCCL's stand-in. Gathers of uneven and
 * equal parts, sends and receives, recordings; ranks that never come, an exchange that fails; that nothing waits for
 * longer than its deadline. */
#include "tests/kernels/child.h"

#include <pthread.h>
#include <stdlib.h>

#include "base/clock.h"
#include "kernels/device.h"

enum { MOST_RANKS = 5, BYTES = 1000, LONG_MS = 20000 };

static const struct mu_device_ops *ops;
static unsigned char link_id[MU_DEVICE_LINK_ID];
static pthread_barrier_t together;

struct rank {
    int rank, n_rank;
    struct mu_device *d;
    struct mu_device_link *link;
    unsigned char *buf, *host; /* BYTES each */
    pthread_t thread;
};

/* Runs body as n_run of n_rank ranks; each has its device open. */
static void ranks_run(int n_rank, int n_run, void *(*body)(void *))
{
    struct rank ranks[MOST_RANKS] = {0};
    struct mu_err err = MU_ERR_INIT;
    char n[8];
    snprintf(n, sizeof n, "%d", n_rank);
    CHECK(setenv("MUSTER_DEVICE_PLUGIN", EMULATED, 1) == 0);
    CHECK(setenv("MUSTER_CUDA_EMULATED_DEVICES", n, 1) == 0);
    CHECK(setenv("MUSTER_CUDA_EMULATED_MEMORY", "1048576", 1) == 0);
    ops = mu_device_load(&err);
    CHECK(ops && ops->link_id && ops->link_open);
    struct mu_device_info info;
    CHECK(ops->info(0, &info, &err) == MU_OK && info.has_link);
    CHECK(ops->link_id(link_id, &err) == MU_OK);
    CHECK(pthread_barrier_init(&together, NULL, (unsigned)n_run) == 0);
    for (int i = 0; i < n_run; i++) {
        ranks[i].rank = i;
        ranks[i].n_rank = n_rank;
        CHECK(pthread_create(&ranks[i].thread, NULL, body, &ranks[i]) == 0);
    }
    for (int i = 0; i < n_run; i++) CHECK(pthread_join(ranks[i].thread, NULL) == 0);
}

static void rank_open(struct rank *r)
{
    struct mu_err err = MU_ERR_INIT;
    CHECK(ops->open(r->rank, &r->d, &err) == MU_OK);
    CHECK(ops->alloc(r->d, BYTES, (void **)&r->buf, &err) == MU_OK);
    CHECK(ops->alloc_host(r->d, BYTES, (void **)&r->host, &err) == MU_OK);
}

static void rank_link(struct rank *r)
{
    struct mu_err err = MU_ERR_INIT;
    rank_open(r);
    if (ops->link_open(r->d, link_id, r->n_rank, r->rank, LONG_MS, &r->link, &err) != MU_OK) {
        fprintf(stderr, "rank %d: %s\n", r->rank, err.text);
        _exit(1);
    }
}

static void rank_close(struct rank *r)
{
    ops->link_close(r->link);
    ops->close(r->d);
}

static void done(struct rank *r)
{
    struct mu_err err = MU_ERR_INIT;
    if (ops->wait(r->d, MU_DEVICE_MARKS, LONG_MS, "an exchange", &err) == MU_OK) return;
    fprintf(stderr, "rank %d: %s\n", r->rank, err.text);
    _exit(1);
}

/* What rank i has at byte k in round n. */
static unsigned char value(int i, size_t k, int n)
{
    return (unsigned char)(i * 37 + (int)k * 11 + n * 101);
}

/* Puts rank i's part of a round into host, nothing useful elsewhere, and sends it up. */
static void fill(struct rank *r, const size_t *off, const size_t *len, int round)
{
    memset(r->host, 0xee, BYTES);
    for (size_t k = 0; k < len[r->rank]; k++) r->host[off[r->rank] + k] = value(r->rank, k, round);
    ops->upload(r->d, r->buf, r->host, BYTES);
    done(r);
}

static void has_all(struct rank *r, const size_t *off, const size_t *len, int round)
{
    bool covered[BYTES] = {0};
    ops->download(r->d, r->host, r->buf, BYTES);
    done(r);
    for (int i = 0; i < r->n_rank; i++)
        for (size_t k = 0; k < len[i]; k++) {
            covered[off[i] + k] = true;
            CHECK(r->host[off[i] + k] == value(i, k, round));
        }
    for (size_t k = 0; k < BYTES; k++) CHECK(covered[k] || r->host[k] == 0xee);
}

/* ---- exchanges ---- */

static const struct {
    size_t off[MOST_RANKS], len[MOST_RANKS];
} shapes[] = {
    {{10, 20, 30, 40, 50}, {10, 10, 10, 10, 10}}, /* equal, one after another */
    {{0, 7, 200, 207, 300}, {7, 93, 7, 1, 555}},  /* uneven, with gaps */
    {{50, 40, 30, 20, 10}, {10, 10, 10, 10, 10}}, /* equal, backwards */
    {{0, 0, 100, 100, 130}, {0, 100, 0, 30, 0}},  /* some have nothing */
    {{5, 5, 5, 5, 5}, {0, 0, 0, 0, 0}},
};

static void *gathers(void *arg)
{
    struct rank *r = arg;
    rank_link(r);
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        fill(r, shapes[s].off, shapes[s].len, (int)s);
        ops->link_gather(r->link, r->buf, shapes[s].off, shapes[s].len);
        has_all(r, shapes[s].off, shapes[s].len, (int)s);
    }
    rank_close(r);
    return NULL;
}

/* A gather is recorded and replayed with new values each time. */
static void *recorded(void *arg)
{
    struct rank *r = arg;
    const size_t *off = shapes[1].off, *len = shapes[1].len;
    rank_link(r);
    ops->record_begin(r->d);
    ops->link_gather(r->link, r->buf, off, len);
    struct mu_device_graph *g = ops->record_end(r->d);
    CHECK(g != NULL);
    for (int round = 0; round < 4; round++) {
        fill(r, off, len, round);
        ops->replay(r->d, g);
        has_all(r, off, len, round);
    }
    ops->graph_free(r->d, g);
    rank_close(r);
    return NULL;
}

/* A ring, even ranks first; then pieces of several sizes from 0 to 1, in order. */
static void *sends(void *arg)
{
    struct rank *r = arg;
    int n = r->n_rank, to = (r->rank + 1) % n, from = (r->rank + n - 1) % n;
    rank_link(r);
    for (size_t k = 0; k < 100; k++) r->host[k] = value(r->rank, k, 0);
    ops->upload(r->d, r->buf, r->host, 100);
    if (r->rank % 2 == 0) ops->link_send(r->link, to, r->buf, 100);
    ops->link_recv(r->link, from, r->buf + 100, 100);
    if (r->rank % 2) ops->link_send(r->link, to, r->buf, 100);
    ops->download(r->d, r->host, r->buf, 200);
    done(r);
    for (size_t k = 0; k < 100; k++) CHECK(r->host[k] == value(r->rank, k, 0) && r->host[100 + k] == value(from, k, 0));
    for (size_t i = 0, at = 0; i < 30 && r->rank < 2; at += i, i++) {
        if (r->rank == 0)
            ops->link_send(r->link, 1, r->buf + i, i);
        else
            ops->link_recv(r->link, 0, r->buf + 200 + at, i);
    }
    ops->download(r->d, r->host, r->buf, BYTES);
    done(r);
    for (size_t i = 0, at = 200; i < 30 && r->rank == 1; at += i, i++)
        for (size_t k = 0; k < i; k++) CHECK(r->host[at + k] == value(0, i + k, 0));
    rank_close(r);
    return NULL;
}

static int n_rank_now;
static void run_gathers(void)
{
    ranks_run(n_rank_now, n_rank_now, gathers);
}
static void run_recorded(void)
{
    ranks_run(n_rank_now, n_rank_now, recorded);
}
static void run_sends(void)
{
    ranks_run(n_rank_now, n_rank_now, sends);
}
static void run_late(void)
{
    CHECK(setenv("MUSTER_CUDA_EMULATED_LATE", "1", 1) == 0);
    ranks_run(n_rank_now, n_rank_now, gathers);
}

static void test_exchanges(void **state)
{
    (void)state;
    for (n_rank_now = 1; n_rank_now <= MOST_RANKS; n_rank_now++) {
        in_child(run_gathers);
        in_child(run_recorded);
        if (n_rank_now > 1) in_child(run_sends);
        in_child(run_late);
    }
}

/* ---- faults ---- */

static bool within(int64_t start, int ms)
{
    return mu_now_ns() - start < ms * MU_MS;
}

static void *comes_alone(void *arg)
{
    struct rank *r = arg;
    struct mu_err err = MU_ERR_INIT;
    int64_t start = mu_now_ns();
    rank_open(r);
    CHECK(ops->link_open(r->d, link_id, r->n_rank, r->rank, 200, &r->link, &err) == MU_ETIMEOUT);
    CHECK_SAYS(&err, r->rank ? "rank 1 of a link of 3: not all of ranks 0, 2 have come after 0.2 s"
                             : "rank 0 of a link of 3: not all of ranks 1, 2 have come after 0.2 s");
    CHECK(r->link == NULL && within(start, 5000));
    ops->zero(r->d, r->buf, BYTES); /* the device itself is well */
    done(r);
    ops->close(r->d);
    return NULL;
}
static void run_comes_alone(void)
{
    ranks_run(3, 2, comes_alone);
}

/* Rank 1 stays away from a gather. */
static void *gathers_alone(void *arg)
{
    struct rank *r = arg;
    struct mu_err err = MU_ERR_INIT;
    rank_link(r);
    if (r->rank != 1) {
        int64_t start = mu_now_ns();
        ops->link_gather(r->link, r->buf, shapes[1].off, shapes[1].len);
        ops->mark(r->d, 5);
        CHECK(ops->wait(r->d, 5, 200, "layer 7", &err) == MU_ETIMEOUT);
        CHECK_SAYS(&err, r->rank
                             ? "is not done with layer 7 after 0.2 s; it may be waiting for ranks 0, 1 of the link in "
                               "which it is rank 2"
                             : "is not done with layer 7 after 0.2 s; it may be waiting for ranks 1, 2 of the link in "
                               "which it is rank 0");
        CHECK(ops->test(r->d, 5) == 0);
        start = mu_now_ns();
        rank_close(r);
        CHECK(within(start, 1000)); /* given up, not waited for */
    }
    pthread_barrier_wait(&together);
    if (r->rank == 1) rank_close(r);
    return NULL;
}
static void run_gathers_alone(void)
{
    ranks_run(3, 3, gathers_alone);
}

/* Rank 1's link fails while rank 0 waits for it. The device is closed with its link still open. */
static void *fails(void *arg)
{
    struct rank *r = arg;
    struct mu_err err = MU_ERR_INIT;
    rank_link(r);
    pthread_barrier_wait(&together);
    if (r->rank == 0) CHECK(setenv("MUSTER_NCCL_EMULATED_FAIL", "1", 1) == 0);
    pthread_barrier_wait(&together);
    if (r->rank == 0)
        ops->link_recv(r->link, 1, r->buf, 100);
    else
        ops->link_recv(r->link, 0, r->buf, 100);
    if (r->rank == 0) {
        CHECK(ops->wait(r->d, MU_DEVICE_MARKS, 200, "a token", &err) == MU_ETIMEOUT);
    } else {
        CHECK(ops->wait(r->d, MU_DEVICE_MARKS, LONG_MS, "a token", &err) == MU_EPEER);
        CHECK_SAYS(&err, "rank 1 of a link with rank 0: remote process exited or there was a network error");
        CHECK(ops->test(r->d, 0) == -1);
        ops->link_gather(r->link, r->buf, shapes[0].off, shapes[0].len); /* nothing goes in any more */
        CHECK(ops->wait(r->d, 0, 100, "a token", &err) == MU_EPEER);
    }
    ops->close(r->d);
    return NULL;
}
static void run_fails(void)
{
    ranks_run(2, 2, fails);
}

/* A failure that comes while the queue is waited for. */
static void *fails_late(void *arg)
{
    struct rank *r = arg;
    struct mu_err err = MU_ERR_INIT;
    rank_link(r);
    pthread_barrier_wait(&together);
    if (r->rank == 1) ops->link_recv(r->link, 0, r->buf, 100);
    pthread_barrier_wait(&together);
    if (r->rank == 0) CHECK(setenv("MUSTER_NCCL_EMULATED_FAIL", "1", 1) == 0);
    pthread_barrier_wait(&together);
    if (r->rank == 1) {
        CHECK(ops->wait(r->d, MU_DEVICE_MARKS, LONG_MS, "a token", &err) == MU_EPEER);
        CHECK_SAYS(&err, "an exchange failed, rank 1 of a link with rank 0");
    }
    pthread_barrier_wait(&together);
    rank_close(r);
    return NULL;
}
static void run_fails_late(void)
{
    ranks_run(2, 2, fails_late);
}

static void *same_rank(void *arg)
{
    struct rank *r = arg;
    struct mu_err err = MU_ERR_INIT;
    rank_open(r);
    pthread_barrier_wait(&together);
    enum mu_status st = ops->link_open(r->d, link_id, 2, 0, 200, &r->link, &err);
    CHECK(st == MU_EPEER || st == MU_ETIMEOUT);
    if (st == MU_EPEER) CHECK_SAYS(&err, "rank 0 of a link with rank 1: invalid argument");
    ops->close(r->d);
    return NULL;
}
static void run_same_rank(void)
{
    ranks_run(2, 2, same_rank);
}

static void test_faults(void **state)
{
    (void)state;
    in_child(run_comes_alone);
    in_child(run_gathers_alone);
    in_child(run_fails);
    in_child(run_fails_late);
    in_child(run_same_rank);
}

/* Without NCCL the plugin is there, and has no links. */
static void no_nccl(void)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_device_info info;
    CHECK(setenv("MUSTER_DEVICE_PLUGIN", EMULATED, 1) == 0);
    CHECK(setenv("MUSTER_NCCL", "/nowhere/libnccl.so.2", 1) == 0);
    ops = mu_device_load(&err);
    CHECK(ops && !ops->link_id && !ops->link_open && !ops->link_gather && !ops->link_close);
    CHECK(ops->info(0, &info, &err) == MU_OK && !info.has_link);
}

static void test_without(void **state)
{
    (void)state;
    in_child(no_nccl);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exchanges),
        cmocka_unit_test(test_faults),
        cmocka_unit_test(test_without),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
