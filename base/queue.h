/* A bounded queue of pointers between threads: how a thread that owns its data hears from the others.
 * Pushing transfers ownership of the message. A full queue is back-pressure (MU_EAGAIN), never a wait.
 * Any number of producers and consumers. wake_fd is an eventfd that is readable while the queue is not empty, so that a
 * loop in poll() can wait for it beside sockets; closing makes it readable too, until a pop has returned NULL. */
#ifndef MU_BASE_QUEUE_H
#define MU_BASE_QUEUE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct mu_queue;

enum mu_status mu_queue_create(size_t capacity, struct mu_queue **queue_out, struct mu_err *err);
/* Messages still inside go to free_item (may be NULL). */
void mu_queue_destroy(struct mu_queue *q, void (*free_item)(void *item));

/* MU_OK, MU_EAGAIN (full) or MU_ECANCELLED (closed); on failure the caller still owns item. item must not be NULL. */
enum mu_status mu_queue_push(struct mu_queue *q, void *item);
/* The oldest item, or NULL: when the deadline passed (0 = do not wait) or the queue is closed and empty. */
void *mu_queue_pop(struct mu_queue *q, int64_t deadline_ns);
/* No more pushes; waiting consumers wake. Idempotent. */
void mu_queue_close(struct mu_queue *q);
int mu_queue_closed(struct mu_queue *q);
size_t mu_queue_len(struct mu_queue *q);
int mu_queue_wake_fd(const struct mu_queue *q);

#endif
