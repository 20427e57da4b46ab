/* The forward pass's needs (struct mu_shard_comm) filled from a transport (struct mu_comm) and a plan. */
#ifndef MU_WORKER_SHARD_COMM_H
#define MU_WORKER_SHARD_COMM_H

#include "shard/shard.h"
#include "transport/comm.h"

struct mu_shard_link; /* owns the adapter's state */

/* comm and plan are borrowed. Who sends whom the residual is mu_plan_residual_from's to say. */
enum mu_status mu_shard_link_create(struct mu_comm *comm, const struct mu_plan *plan, struct mu_shard_link **link_out,
                                    struct mu_shard_comm *ops_out, struct mu_err *err);
void mu_shard_link_destroy(struct mu_shard_link *link);

#endif
