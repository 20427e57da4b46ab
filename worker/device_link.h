/* What ranks agree on before their GPUs talk by themselves (NCCL): an id for each link, made by its first rank, told over the
 * gang's transport. A stage has a link, and so have two neighbouring stages. */
#ifndef MU_WORKER_DEVICE_LINK_H
#define MU_WORKER_DEVICE_LINK_H

#include <stdbool.h>

#include "kernels/device.h"
#include "shard/shard.h"
#include "transport/comm.h"

struct mu_device_link_ids {
    unsigned char id[MU_SHARD_LINKS][MU_DEVICE_LINK_ID];
    bool have[MU_SHARD_LINKS];
};

/* All ranks of the gang call this, in step. A link is had where all its ranks are on GPUs that can link, of one machine: of
 * a stage, where no two are on one GPU; of two stages, where nobody else of the gang is on those GPUs either. Else they
 * talk through comm; MUSTER_GPU_LINK=0 asks for that. ops NULL: those of mu_device_load. */
enum mu_status mu_device_link_agree(struct mu_comm *comm, const struct mu_plan *plan, int rank,
                                    const struct mu_device_ops *ops, struct mu_device_link_ids *ids_out,
                                    struct mu_err *err);
/* Into the options; ids are borrowed. */
void mu_device_link_use(const struct mu_device_link_ids *ids, struct mu_shard_options *opt);

#endif
