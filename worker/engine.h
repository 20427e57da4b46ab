/* The leader's end of the Engine stream: requests come down, tokens go up.
 *
 * Callbacks on gRPC's thread only copy a message into a bounded queue; the compute thread drains it between steps and
 * never waits for the stream. What cannot be sent yet stays in the outbox, merged by request: at most max_tokens ids
 * each.
 *
 * A stream that breaks is the end of the gang: the coordinator takes one attach an epoch, since nobody knows what a
 * broken stream still carried. The next gang gets what is alive with the ids that were committed.
 *
 * Threads: all functions from one thread, the leader's. */
#ifndef MU_WORKER_ENGINE_H
#define MU_WORKER_ENGINE_H

#include "worker/constraint.h"
#include "worker/scheduler.h"

struct mu_engine;

struct mu_engine_options { /* borrowed while the engine lives */
    const char *address, *gang;
    uint64_t epoch;
    const uint8_t *secret; /* [32] */
    uint32_t max_sequences;
};

enum mu_engine_kind { MU_ENGINE_SUBMIT, MU_ENGINE_CANCEL };
struct mu_engine_command {
    enum mu_engine_kind kind;
    struct mu_sched_request request;      /* SUBMIT; CANCEL: its id only */
    struct mu_constraint_text constraint; /* SUBMIT; its text is behind ids */
    int32_t ids[];
};

/* Starts connecting (deadline 10 s); failures come from mu_engine_next. */
enum mu_status mu_engine_open(const struct mu_engine_options *opt, struct mu_engine **engine_out, struct mu_err *err);
void mu_engine_close(struct mu_engine *e); /* NULL is fine */

/* MU_OK with the next command (mu_free it) or NULL: nothing now. MU_EPEER: the stream is over. */
enum mu_status mu_engine_next(struct mu_engine *e, struct mu_engine_command **command_out, struct mu_err *err);
bool mu_engine_waiting(struct mu_engine *e); /* a command is there; cheap */
int mu_engine_fd(const struct mu_engine *e); /* readable then */

/* Into the outbox; logprobs (of the event's id, where it wants them) and error_text may be NULL. Out of memory is an
 * error: the ids would be lost. */
enum mu_status mu_engine_put(struct mu_engine *e, const struct mu_sched_event *event,
                             const struct mu_logprobs *logprobs, const char *error_text, struct mu_err *err);
/* The same for an embedding that is finished: what it wants of the slot's state [d_model]. A vector that is not finite
 * is sent as that error. */
enum mu_status mu_engine_put_vector(struct mu_engine *e, const struct mu_sched_event *event, const float *state,
                                    int d_model, struct mu_err *err);
void mu_engine_put_stats(struct mu_engine *e, const struct mu_sched_counts *counts);
/* Sends what is in the outbox. MU_OK: it is empty now; MU_EAGAIN: the rest waits for the next time. Else it can't be sent. */
enum mu_status mu_engine_flush(struct mu_engine *e, struct mu_err *err);

#endif
