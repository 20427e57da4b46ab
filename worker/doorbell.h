/* The doorbell: one TCP connection from every rank to the leader, on which step plans travel.
 *
 *   frame   u32 length of what follows │ u8 kind │ u64 epoch │ payload          (little-endian)
 *   hello   rank → leader, first:      payload = u8[32] secret │ u32 rank
 *   plan    leader → rank:             payload = a step (shard/step.h)
 *   stop    leader → rank:             no payload; the gang ends
 *
 * Why not MPI: a blocked MPI receive burns a core, a socket sleeps in poll() (0.3% of a core idle, 0.2 ms to wake), and
 * a closed connection tells at once that the other side is gone.
 *
 * Security: the leader listens on 127.0.0.1 (of the gang's private network where there is one) and takes a
 * connection only after the gang's secret, compared in constant time; what does not say hello in time is dropped and
 * never waited for beyond the deadline. Lengths are bounded before memory is taken. Frames of another epoch are
 * dropped.
 *
 * Threads: a doorbell belongs to one thread. */
#ifndef MU_WORKER_DOORBELL_H
#define MU_WORKER_DOORBELL_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum { MU_BELL_SECRET = 32 };
enum mu_bell_kind { MU_BELL_HELLO = 1, MU_BELL_PLAN = 2, MU_BELL_STOP = 3 };

struct mu_bell_frame {
    enum mu_bell_kind kind;
    const uint8_t *payload; /* borrowed until the next call */
    size_t len;
};

/* ---- one connection ---- */

struct mu_bell;

/* Takes fd (closed with the bell, also where this fails). Frames longer than max_frame are MU_EPROTO. peer is for
 * errors. */
enum mu_status mu_bell_create(int fd, uint64_t epoch, size_t max_frame, const char *peer, struct mu_bell **bell_out,
                              struct mu_err *err);
void mu_bell_destroy(struct mu_bell *b); /* NULL is fine */
int mu_bell_fd(const struct mu_bell *b); /* to poll() for input when mu_bell_poll says 0 */
/* The next frame of our epoch, without waiting: 1 got one, 0 none yet, -1 failed (MU_EPEER: closed, MU_EPROTO). */
int mu_bell_poll(struct mu_bell *b, struct mu_bell_frame *frame_out, struct mu_err *err);
/* One frame, whole, before the deadline. */
enum mu_status mu_bell_send(struct mu_bell *b, enum mu_bell_kind kind, const void *payload, size_t len,
                            int64_t deadline_ns, struct mu_err *err);

/* ---- setting up ---- */

/* A listening socket on 127.0.0.1; *port_out is the system's choice. */
enum mu_status mu_bell_listen(int *fd_out, uint16_t *port_out, struct mu_err *err);
/* Leader: until every rank of 0 … n_rank-1 except `leader` has said hello. bells_out[n_rank]; [leader] stays NULL.
 * On failure all are NULL again and the error names the ranks that are missing. */
enum mu_status mu_bell_accept_all(int listen_fd, uint64_t epoch, const uint8_t *secret, int n_rank, int leader,
                                  size_t max_frame, int64_t deadline_ns, struct mu_bell **bells_out,
                                  struct mu_err *err);
/* Rank: connects and says hello. */
enum mu_status mu_bell_connect(uint16_t port, uint64_t epoch, const uint8_t *secret, int rank, size_t max_frame,
                               int64_t deadline_ns, struct mu_bell **bell_out, struct mu_err *err);

#endif
