/* Doorbells: frames in pieces and in heaps, stale and broken ones, visitors without the secret. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "worker/doorbell.h"

enum { MAX_FRAME = 300, EPOCH = 7 };

static uint8_t secret[MU_BELL_SECRET] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 200};

static int64_t soon(void)
{
    return mu_now_ns() + 20 * MU_SEC;
}

/* A bell and the raw other end. */
static struct mu_bell *bell_pair(int *raw_out)
{
    int fds[2];
    struct mu_bell *b;
    struct mu_err err = MU_ERR_INIT;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    assert_int_equal(mu_bell_create(fds[0], EPOCH, MAX_FRAME, "rank 1", &b, &err), MU_OK);
    *raw_out = fds[1];
    return b;
}

static size_t frame_make(uint8_t *buf, uint8_t kind, uint64_t epoch, const void *payload, uint32_t len)
{
    uint32_t all = len + 9;
    for (int i = 0; i < 4; i++) buf[i] = (uint8_t)(all >> (8 * i));
    buf[4] = kind;
    for (int i = 0; i < 8; i++) buf[5 + i] = (uint8_t)(epoch >> (8 * i));
    if (len) memcpy(buf + 13, payload, len);
    return 13 + (size_t)len;
}

static void test_frames_arrive_whole_and_in_order(void **state)
{
    (void)state;
    int raw;
    struct mu_bell *b = bell_pair(&raw);
    struct mu_err err = MU_ERR_INIT;
    struct mu_bell_frame f;
    uint8_t buf[4096], payload[MAX_FRAME];
    for (int i = 0; i < MAX_FRAME; i++) payload[i] = (uint8_t)(i * 7);
    size_t n = frame_make(buf, MU_BELL_PLAN, EPOCH, payload, MAX_FRAME);
    for (size_t i = 0; i < n; i++) { /* a byte at a time: the frame is there with the last one, not before */
        assert_int_equal(mu_bell_poll(b, &f, &err), 0);
        assert_int_equal(write(raw, buf + i, 1), 1);
    }
    assert_int_equal(mu_bell_poll(b, &f, &err), 1);
    assert_int_equal(f.kind, MU_BELL_PLAN);
    assert_int_equal(f.len, MAX_FRAME);
    assert_memory_equal(f.payload, payload, MAX_FRAME);
    n = 0;
    for (uint8_t i = 0; i < 100; i++) n += frame_make(buf + n, MU_BELL_PLAN, EPOCH, &i, 1); /* many in one go */
    n += frame_make(buf + n, MU_BELL_STOP, EPOCH, NULL, 0);
    assert_int_equal(write(raw, buf, n), n);
    for (uint8_t i = 0; i < 100; i++) {
        assert_int_equal(mu_bell_poll(b, &f, &err), 1);
        assert_int_equal(f.len, 1);
        assert_int_equal(f.payload[0], i);
    }
    assert_int_equal(mu_bell_poll(b, &f, &err), 1);
    assert_int_equal(f.kind, MU_BELL_STOP);
    assert_int_equal(mu_bell_poll(b, &f, &err), 0);
    close(raw);
    assert_int_equal(mu_bell_poll(b, &f, &err), -1);
    assert_int_equal(err.code, MU_EPEER);
    assert_non_null(strstr(err.text, "rank 1"));
    mu_bell_destroy(b);
}

static void test_what_is_sent_is_what_arrives(void **state)
{
    (void)state;
    int raw;
    struct mu_bell *a = bell_pair(&raw), *b;
    struct mu_err err = MU_ERR_INIT;
    struct mu_bell_frame f;
    uint8_t payload[MAX_FRAME + 1] = {9, 8, 7};
    assert_int_equal(mu_bell_create(raw, EPOCH, MAX_FRAME, "rank 0", &b, &err), MU_OK);
    assert_int_equal(mu_bell_send(a, MU_BELL_PLAN, payload, MAX_FRAME + 1, soon(), &err), MU_EINVAL);
    for (size_t len = 0; len <= MAX_FRAME; len += 50) {
        assert_int_equal(mu_bell_send(a, MU_BELL_PLAN, payload, len, soon(), &err), MU_OK);
        assert_int_equal(mu_bell_poll(b, &f, &err), 1);
        assert_int_equal(f.len, len);
        assert_memory_equal(f.payload, payload, len);
    }
    enum mu_status st = MU_OK; /* nobody reads: sending ends with the deadline */
    for (int i = 0; i < 100000 && st == MU_OK; i++)
        st = mu_bell_send(a, MU_BELL_PLAN, payload, MAX_FRAME, mu_now_ns() + 5 * MU_MS, &err);
    assert_int_equal(st, MU_ETIMEOUT);
    mu_bell_destroy(a);
    mu_bell_destroy(b);
}

static void test_stale_frames_are_dropped(void **state)
{
    (void)state;
    int raw;
    struct mu_bell *b = bell_pair(&raw);
    struct mu_err err = MU_ERR_INIT;
    struct mu_bell_frame f;
    uint8_t buf[512];
    size_t n = 0;
    for (uint64_t e = EPOCH - 2; e <= EPOCH + 1; e++) n += frame_make(buf + n, MU_BELL_PLAN, e, &e, 1);
    assert_int_equal(write(raw, buf, n), n);
    assert_int_equal(mu_bell_poll(b, &f, &err), 1);
    assert_int_equal(f.payload[0], EPOCH);
    assert_int_equal(mu_bell_poll(b, &f, &err), 0);
    close(raw);
    mu_bell_destroy(b);
}

static void test_broken_frames(void **state)
{
    (void)state;
    static const uint32_t lengths[] = {0, 8, MAX_FRAME + 10, 0xFFFFFFFF};
    for (int i = 0; i < 5; i++) {
        int raw;
        struct mu_bell *b = bell_pair(&raw);
        struct mu_err err = MU_ERR_INIT;
        struct mu_bell_frame f;
        uint8_t buf[64] = {0};
        size_t n = frame_make(buf, i == 4 ? 99 : MU_BELL_PLAN, EPOCH, NULL, 0);
        for (int k = 0; k < 4 && i < 4; k++) buf[k] = (uint8_t)(lengths[i] >> (8 * k));
        assert_int_equal(write(raw, buf, n), n);
        assert_int_equal(mu_bell_poll(b, &f, &err), -1);
        assert_int_equal(err.code, MU_EPROTO);
        close(raw);
        mu_bell_destroy(b);
    }
}

/* ---- setting up ---- */

struct caller {
    uint16_t port;
    int rank;
    struct mu_bell *bell;
    enum mu_status st;
};

static void *caller_main(void *arg)
{
    struct caller *c = arg;
    c->st = mu_bell_connect(c->port, EPOCH, secret, c->rank, MAX_FRAME, soon(), &c->bell, NULL);
    return NULL;
}

static int raw_connect(uint16_t port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    return fd;
}

/* A hello on the wire, with whatever is wrong with it. */
static int raw_hello(uint16_t port, const uint8_t *said, uint64_t epoch, uint32_t rank, size_t cut)
{
    uint8_t payload[MU_BELL_SECRET + 4], buf[64];
    memcpy(payload, said, MU_BELL_SECRET);
    for (int i = 0; i < 4; i++) payload[MU_BELL_SECRET + i] = (uint8_t)(rank >> (8 * i));
    size_t n = frame_make(buf, MU_BELL_HELLO, epoch, payload, sizeof payload) - cut;
    int fd = raw_connect(port);
    assert_int_equal(write(fd, buf, n), n);
    return fd;
}

static void test_all_ranks_get_in_and_nobody_else(void **state)
{
    (void)state;
    enum { N = 5, LEADER = 2, STRANGERS = 8 };
    struct mu_err err = MU_ERR_INIT;
    struct mu_bell *bells[N];
    struct caller callers[N];
    pthread_t threads[N];
    uint16_t port;
    int listen_fd, strangers[STRANGERS];
    uint8_t wrong[MU_BELL_SECRET];
    memcpy(wrong, secret, sizeof wrong);
    wrong[MU_BELL_SECRET - 1] ^= 1;
    assert_int_equal(mu_bell_listen(&listen_fd, &port, &err), MU_OK);
    strangers[0] = raw_hello(port, wrong, EPOCH, 0, 0);      /* a wrong secret */
    strangers[1] = raw_hello(port, secret, EPOCH - 1, 0, 0); /* of an older epoch */
    strangers[2] = raw_hello(port, secret, EPOCH, N, 0);     /* no such rank */
    strangers[3] = raw_hello(port, secret, EPOCH, LEADER, 0);
    strangers[4] = raw_hello(port, secret, EPOCH, 0xFFFFFFFF, 0);
    strangers[5] = raw_hello(port, secret, EPOCH, 0, 1); /* never complete */
    strangers[6] = raw_connect(port);                    /* says nothing */
    strangers[7] = raw_connect(port);
    close(strangers[7]);
    for (int i = 0; i < N; i++) {
        callers[i] = (struct caller){.port = port, .rank = i};
        if (i != LEADER) assert_int_equal(pthread_create(&threads[i], NULL, caller_main, &callers[i]), 0);
    }
    if (mu_bell_accept_all(listen_fd, EPOCH, secret, N, LEADER, MAX_FRAME, soon(), bells, &err) != MU_OK)
        fail_msg("%s", err.text);
    assert_null(bells[LEADER]);
    for (int i = 0; i < N; i++) {
        struct mu_bell_frame f;
        uint8_t tag = (uint8_t)(40 + i);
        if (i == LEADER) continue;
        pthread_join(threads[i], NULL);
        assert_int_equal(callers[i].st, MU_OK);
        assert_int_equal(mu_bell_send(bells[i], MU_BELL_PLAN, &tag, 1, soon(), &err), MU_OK);
        struct pollfd p = {.fd = mu_bell_fd(callers[i].bell), .events = POLLIN};
        assert_int_equal(poll(&p, 1, 20000), 1);
        assert_int_equal(mu_bell_poll(callers[i].bell, &f, &err), 1); /* each is who it says */
        assert_int_equal(f.payload[0], tag);
        mu_bell_destroy(callers[i].bell);
        mu_bell_destroy(bells[i]);
    }
    for (int i = 0; i < 5; i++) { /* refused means closed */
        char c;
        assert_true(read(strangers[i], &c, 1) <= 0);
    }
    for (int i = 0; i < STRANGERS - 1; i++) close(strangers[i]);
    close(listen_fd);
}

static void test_a_rank_that_does_not_come_is_named(void **state)
{
    (void)state;
    struct mu_err err = MU_ERR_INIT;
    struct mu_bell *bells[3], *bell;
    uint16_t port;
    int listen_fd;
    assert_int_equal(mu_bell_listen(&listen_fd, &port, &err), MU_OK);
    assert_int_equal(mu_bell_connect(port, EPOCH, secret, 0, MAX_FRAME, soon(), &bell, &err), MU_OK);
    assert_int_equal(
        mu_bell_accept_all(listen_fd, EPOCH, secret, 3, 2, MAX_FRAME, mu_now_ns() + 200 * MU_MS, bells, &err),
        MU_ETIMEOUT);
    assert_non_null(strstr(err.text, "rank 1"));
    assert_null(bells[0]);
    mu_bell_destroy(bell);
    close(listen_fd);
    assert_int_equal(mu_bell_connect(port, EPOCH, secret, 0, MAX_FRAME, soon(), &bell, &err), MU_EPEER);
}

/* More silent visitors than seats: the ranks get in all the same. */
static void test_a_crowd_of_visitors_does_not_block(void **state)
{
    (void)state;
    enum { CROWD = 100 };
    struct mu_err err = MU_ERR_INIT;
    struct mu_bell *bells[2];
    struct caller caller;
    pthread_t thread;
    int listen_fd, crowd[CROWD];
    assert_int_equal(mu_bell_listen(&listen_fd, &caller.port, &err), MU_OK);
    for (int i = 0; i < CROWD; i++) crowd[i] = raw_connect(caller.port);
    caller.rank = 0;
    assert_int_equal(pthread_create(&thread, NULL, caller_main, &caller), 0);
    if (mu_bell_accept_all(listen_fd, EPOCH, secret, 2, 1, MAX_FRAME, soon(), bells, &err) != MU_OK)
        fail_msg("%s", err.text);
    pthread_join(thread, NULL);
    assert_int_equal(caller.st, MU_OK);
    mu_bell_destroy(caller.bell);
    mu_bell_destroy(bells[0]);
    for (int i = 0; i < CROWD; i++) close(crowd[i]);
    close(listen_fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_frames_arrive_whole_and_in_order),
        cmocka_unit_test(test_what_is_sent_is_what_arrives),
        cmocka_unit_test(test_stale_frames_are_dropped),
        cmocka_unit_test(test_broken_frames),
        cmocka_unit_test(test_all_ranks_get_in_and_nobody_else),
        cmocka_unit_test(test_a_rank_that_does_not_come_is_named),
        cmocka_unit_test(test_a_crowd_of_visitors_does_not_block),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
