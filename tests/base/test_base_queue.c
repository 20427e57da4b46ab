/* Queues: order, back-pressure, closing, deadlines, the descriptor, and many threads at once. */
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/queue.h"

static struct mu_queue *make(size_t capacity)
{
    struct mu_queue *q;
    struct mu_err err = MU_ERR_INIT;
    if (mu_queue_create(capacity, &q, &err) != MU_OK) fail_msg("%s", err.text);
    return q;
}

static int readable(struct mu_queue *q)
{
    struct pollfd p = {.fd = mu_queue_wake_fd(q), .events = POLLIN};
    return poll(&p, 1, 0);
}

static void order_and_back_pressure(void **state)
{
    (void)state;
    struct mu_queue *q = make(3);
    int items[5];
    for (int round = 0; round < 4; round++) { /* the ring wraps at different places */
        for (int i = 0; i < 3; i++) assert_int_equal(mu_queue_push(q, &items[i]), MU_OK);
        assert_int_equal(mu_queue_push(q, &items[3]), MU_EAGAIN);
        assert_int_equal(mu_queue_len(q), 3);
        assert_ptr_equal(mu_queue_pop(q, 0), &items[0]);
        assert_int_equal(mu_queue_push(q, &items[4]), MU_OK);
        assert_ptr_equal(mu_queue_pop(q, 0), &items[1]);
        assert_ptr_equal(mu_queue_pop(q, 0), &items[2]);
        assert_ptr_equal(mu_queue_pop(q, 0), &items[4]);
        assert_null(mu_queue_pop(q, 0));
    }
    mu_queue_destroy(q, NULL);
    struct mu_err err = MU_ERR_INIT;
    assert_int_equal(mu_queue_create(0, &q, &err), MU_EINVAL);
    assert_int_equal(mu_queue_create(SIZE_MAX / 4, &q, &err), MU_ENOMEM);
}

static void the_descriptor_tells(void **state)
{
    (void)state;
    struct mu_queue *q = make(2);
    int x;
    assert_int_equal(readable(q), 0);
    mu_queue_push(q, &x);
    mu_queue_push(q, &x);
    assert_int_equal(readable(q), 1);
    mu_queue_pop(q, 0);
    assert_int_equal(readable(q), 1);
    mu_queue_pop(q, 0);
    assert_int_equal(readable(q), 0);
    mu_queue_push(q, &x);
    mu_queue_close(q);
    assert_ptr_equal(mu_queue_pop(q, 0), &x);
    assert_int_equal(readable(q), 1); /* the end is still to be seen */
    assert_null(mu_queue_pop(q, 0));
    assert_int_equal(readable(q), 0);
    mu_queue_close(q); /* idempotent */
    assert_int_equal(readable(q), 0);
    mu_queue_destroy(q, NULL);
}

static void closing(void **state)
{
    (void)state;
    struct mu_queue *q = make(2);
    int x;
    assert_int_equal(mu_queue_closed(q), 0);
    assert_int_equal(mu_queue_push(q, &x), MU_OK);
    mu_queue_close(q);
    assert_int_equal(mu_queue_closed(q), 1);
    assert_int_equal(mu_queue_push(q, &x), MU_ECANCELLED);
    assert_ptr_equal(mu_queue_pop(q, MU_FOREVER), &x); /* what is inside is still delivered */
    assert_null(mu_queue_pop(q, MU_FOREVER));
    mu_queue_destroy(q, NULL);
}

static void deadlines(void **state)
{
    (void)state;
    struct mu_queue *q = make(2);
    int64_t start = mu_now_ns();
    assert_null(mu_queue_pop(q, start + 30 * MU_MS));
    int64_t waited = mu_now_ns() - start;
    assert_true(waited >= 30 * MU_MS && waited < 10 * MU_SEC);
    assert_null(mu_queue_pop(q, 1)); /* long past */
    mu_queue_destroy(q, NULL);
}

static int n_freed;
static void count_free(void *item)
{
    n_freed++;
    mu_free(item);
}

static void destroy_frees_what_is_left(void **state)
{
    (void)state;
    struct mu_queue *q = make(4);
    for (int i = 0; i < 3; i++) mu_queue_push(q, mu_malloc(1));
    mu_free(mu_queue_pop(q, 0));
    mu_queue_destroy(q, count_free);
    assert_int_equal(n_freed, 2);
    mu_queue_destroy(NULL, count_free);
}

static void *close_soon(void *q)
{
    mu_sleep_ms(20);
    mu_queue_close(q);
    return NULL;
}

static void closing_wakes_who_waits(void **state)
{
    (void)state;
    struct mu_queue *q = make(2);
    pthread_t closer;
    assert_int_equal(pthread_create(&closer, NULL, close_soon, q), 0);
    int64_t start = mu_now_ns();
    assert_null(mu_queue_pop(q, start + 60 * MU_SEC));
    assert_true(mu_now_ns() - start < 30 * MU_SEC);
    pthread_join(closer, NULL);
    mu_queue_destroy(q, NULL);

    q = make(2);
    assert_int_equal(pthread_create(&closer, NULL, close_soon, q), 0);
    struct pollfd p = {.fd = mu_queue_wake_fd(q), .events = POLLIN};
    assert_int_equal(poll(&p, 1, 60000), 1);
    assert_null(mu_queue_pop(q, 0));
    pthread_join(closer, NULL);
    mu_queue_destroy(q, NULL);
}

enum { N_PRODUCER = 4, N_CONSUMER = 2, N_EACH = 5000 };

struct item {
    int producer, seq, taken;
};

static struct item items[N_PRODUCER][N_EACH];

struct consumer {
    struct mu_queue *q;
    int by_poll, n, disorder;
};

static struct mu_queue *shared;

static void *produce(void *arg)
{
    struct item *mine = arg;
    for (int i = 0; i < N_EACH; i++)
        while (mu_queue_push(shared, &mine[i]) == MU_EAGAIN) sched_yield();
    return NULL;
}

static void *consume(void *arg)
{
    struct consumer *c = arg;
    int last[N_PRODUCER];
    memset(last, -1, sizeof last);
    for (;;) {
        struct item *it;
        if (c->by_poll) {
            struct pollfd p = {.fd = mu_queue_wake_fd(c->q), .events = POLLIN};
            if (poll(&p, 1, 20) < 0) return NULL;
            it = mu_queue_pop(c->q, 0);
            if (!it && mu_queue_closed(c->q)) return NULL;
            if (!it) continue; /* the other consumer was faster */
        } else {
            it = mu_queue_pop(c->q, MU_FOREVER);
            if (!it) return NULL;
        }
        it->taken++; /* only whoever popped it touches it */
        c->disorder += it->seq <= last[it->producer];
        last[it->producer] = it->seq;
        c->n++;
    }
}

static void four_producers_two_consumers(void **state)
{
    (void)state;
    shared = make(64);
    pthread_t producers[N_PRODUCER], consumers[N_CONSUMER];
    struct consumer c[N_CONSUMER] = {{shared, 0, 0, 0}, {shared, 1, 0, 0}};
    for (int i = 0; i < N_PRODUCER; i++)
        for (int j = 0; j < N_EACH; j++) items[i][j] = (struct item){i, j, 0};
    for (int i = 0; i < N_CONSUMER; i++) assert_int_equal(pthread_create(&consumers[i], NULL, consume, &c[i]), 0);
    for (int i = 0; i < N_PRODUCER; i++) assert_int_equal(pthread_create(&producers[i], NULL, produce, items[i]), 0);
    for (int i = 0; i < N_PRODUCER; i++) pthread_join(producers[i], NULL);
    mu_queue_close(shared);
    for (int i = 0; i < N_CONSUMER; i++) pthread_join(consumers[i], NULL);
    assert_int_equal(c[0].n + c[1].n, N_PRODUCER * N_EACH);
    assert_int_equal(c[0].disorder + c[1].disorder, 0);
    for (int i = 0; i < N_PRODUCER; i++)
        for (int j = 0; j < N_EACH; j++) assert_int_equal(items[i][j].taken, 1);
    assert_int_equal(mu_queue_len(shared), 0);
    mu_queue_destroy(shared, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(order_and_back_pressure),
        cmocka_unit_test(the_descriptor_tells),
        cmocka_unit_test(closing),
        cmocka_unit_test(deadlines),
        cmocka_unit_test(destroy_frees_what_is_left),
        cmocka_unit_test(closing_wakes_who_waits),
        cmocka_unit_test(four_producers_two_consumers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
