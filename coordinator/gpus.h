/* The GPUs of a node's message. */
#ifndef MU_COORDINATOR_GPUS_H
#define MU_COORDINATOR_GPUS_H

#include "muster/v1/muster.pb-c.h"
#include "shard/plan_gpus.h"

/* As the worker told them; at most MU_MAX_GPUS. Nothing is borrowed. */
void mu_gpus_of_node(const Muster__V1__Node *node, struct mu_gpus *gpus_out);

#endif
