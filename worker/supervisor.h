/* The thread that owns all gangs of a worker. gRPC's threads hand it what they are asked for through a bounded
 * queue. */
#ifndef MU_WORKER_SUPERVISOR_H
#define MU_WORKER_SUPERVISOR_H

#include "worker/gang.h"

struct mu_supervisor;

/* place is borrowed while the supervisor lives. */
enum mu_status mu_supervisor_start(const struct mu_worker_gang_place *place, struct mu_supervisor **s_out,
                                   struct mu_err *err);
/* Any thread; never waits. call and the message are borrowed; the call is answered later, or now where the queue is
 * full. */
void mu_supervisor_start_gang(struct mu_supervisor *s, struct mu_rpc_call *call,
                              const Muster__Internal__V1__StartGangRequest *req);
/* Ends all gangs (`died` to each) and the thread, and waits for both; calls that still come are refused. */
void mu_supervisor_stop(struct mu_supervisor *s);    /* NULL is fine */
void mu_supervisor_destroy(struct mu_supervisor *s); /* when no call can come any more; NULL is fine */

#endif
