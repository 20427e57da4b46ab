/* What the ranks of a stage agree on before their GPUs exchange by themselves (NCCL): one id, made by the stage's first
 * rank, told over the gang's transport. */
#ifndef MU_WORKER_DEVICE_LINK_H
#define MU_WORKER_DEVICE_LINK_H

#include <stdbool.h>

#include "kernels/device.h"
#include "shard/plan.h"
#include "transport/comm.h"

/* All ranks of the gang call this, in step. *have_out: the ranks of mine's stage are several, each on a GPU of its own
 * which can link, and id is theirs; else their exchanges go through comm. MUSTER_GPU_LINK=0 asks for that. ops NULL:
 * those of mu_device_load. */
enum mu_status mu_device_link_agree(struct mu_comm *comm, const struct mu_plan *plan, int rank,
                                    const struct mu_device_ops *ops, unsigned char id_out[MU_DEVICE_LINK_ID],
                                    bool *have_out, struct mu_err *err);

#endif
