/* A bounded queue of pointers: a ring under one lock, a condition for those who wait in pop, an eventfd for those who
 * wait in poll().
 *
 * The lock guards everything in struct mu_queue. The eventfd's counter is 1 exactly when `signalled`; it is written and
 * read under the lock, because between the lock and the write another thread could empty the queue and leave a wake-up
 * that means nothing, or worse, none; neither call can wait, as the descriptor does not block. */
#include "base/queue.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"

struct mu_queue {
    pthread_mutex_t lock;
    pthread_cond_t not_empty; /* on CLOCK_MONOTONIC */
    void **ring;
    size_t capacity, head, len;
    int closed;
    int signalled; /* wake_fd is readable */
    int wake_fd;
};

enum mu_status mu_queue_create(size_t capacity, struct mu_queue **queue_out, struct mu_err *err)
{
    if (capacity == 0) return mu_fail(err, MU_EINVAL, "a queue needs room for at least one message");
    struct mu_queue *q = mu_calloc(1, sizeof *q);
    if (!q) return mu_fail(err, MU_ENOMEM, "out of memory for a queue");
    enum mu_status st;
    q->capacity = capacity;
    q->wake_fd = -1;
    q->ring = mu_calloc(capacity, sizeof *q->ring);
    if (!q->ring) {
        st = mu_fail(err, MU_ENOMEM, "out of memory for a queue of %zu messages", capacity);
        goto fail;
    }
    q->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (q->wake_fd < 0) {
        st = mu_fail(err, MU_EIO, "no eventfd for a queue: %s; raise the limit of open files", strerror(errno));
        goto fail;
    }
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&q->not_empty, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&q->lock, NULL);
    *queue_out = q;
    return MU_OK;
fail:
    mu_free(q->ring);
    mu_free(q);
    return st;
}

void mu_queue_destroy(struct mu_queue *q, void (*free_item)(void *item))
{
    if (!q) return;
    for (; q->len; q->len--, q->head = (q->head + 1) % q->capacity)
        if (free_item) free_item(q->ring[q->head]);
    close(q->wake_fd);
    pthread_cond_destroy(&q->not_empty);
    pthread_mutex_destroy(&q->lock);
    mu_free(q->ring);
    mu_free(q);
}

/* Under the lock. */
static void signal_set(struct mu_queue *q, int on)
{
    uint64_t count = 1;
    if (q->signalled == on) return;
    q->signalled = on;
    ssize_t n = on ? write(q->wake_fd, &count, sizeof count) : read(q->wake_fd, &count, sizeof count);
    (void)n; /* neither fails: the counter alternates between 0 and 1 */
}

enum mu_status mu_queue_push(struct mu_queue *q, void *item)
{
    enum mu_status st = MU_OK;
    pthread_mutex_lock(&q->lock);
    if (q->closed) {
        st = MU_ECANCELLED;
    } else if (q->len == q->capacity) {
        st = MU_EAGAIN;
    } else {
        q->ring[(q->head + q->len++) % q->capacity] = item;
        signal_set(q, 1);
        pthread_cond_signal(&q->not_empty);
    }
    pthread_mutex_unlock(&q->lock);
    return st;
}

/* Waits under the lock until something is there, the queue is closed or the deadline has passed. */
static void wait_not_empty(struct mu_queue *q, int64_t deadline_ns)
{
    struct timespec until = {.tv_sec = deadline_ns / MU_SEC, .tv_nsec = deadline_ns % MU_SEC};
    while (q->len == 0 && !q->closed) {
        if (deadline_ns == MU_FOREVER)
            pthread_cond_wait(&q->not_empty, &q->lock);
        else if (pthread_cond_timedwait(&q->not_empty, &q->lock, &until) == ETIMEDOUT)
            return;
    }
}

void *mu_queue_pop(struct mu_queue *q, int64_t deadline_ns)
{
    void *item = NULL;
    pthread_mutex_lock(&q->lock);
    if (deadline_ns > 0) wait_not_empty(q, deadline_ns);
    if (q->len) {
        item = q->ring[q->head];
        q->head = (q->head + 1) % q->capacity;
        q->len--;
    }
    /* A closed queue stays readable until a pop has said NULL, so that a loop in poll() learns of the end. */
    if (q->len == 0 && (!q->closed || !item)) signal_set(q, 0);
    pthread_mutex_unlock(&q->lock);
    return item;
}

void mu_queue_close(struct mu_queue *q)
{
    pthread_mutex_lock(&q->lock);
    if (!q->closed) {
        q->closed = 1;
        signal_set(q, 1);
        pthread_cond_broadcast(&q->not_empty);
    }
    pthread_mutex_unlock(&q->lock);
}

int mu_queue_closed(struct mu_queue *q)
{
    pthread_mutex_lock(&q->lock);
    int closed = q->closed;
    pthread_mutex_unlock(&q->lock);
    return closed;
}

size_t mu_queue_len(struct mu_queue *q)
{
    pthread_mutex_lock(&q->lock);
    size_t len = q->len;
    pthread_mutex_unlock(&q->lock);
    return len;
}

int mu_queue_wake_fd(const struct mu_queue *q)
{
    return q->wake_fd;
}
