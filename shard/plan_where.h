/* Where a gang of one machine runs: what --split and --device say, against what the machine has. */
#ifndef MU_SHARD_PLAN_WHERE_H
#define MU_SHARD_PLAN_WHERE_H

#include "base/place.h"
#include "shard/plan.h"

/* "auto", "cpu", "gpu"; -1: another word. */
int mu_device_wish_by_name(const char *name);

/* Whether GPUs matter at all to this text ("auto", or a split) and wish; nobody should look for them else. A text that
 * is no split gives false. */
bool mu_plan_where_looks(const char *text, enum mu_device_wish wish);

/* What can be said against text and wish before anybody looks at the machine. */
enum mu_status mu_plan_where_text(const char *text, enum mu_device_wish wish, struct mu_err *err);

/* The split that text and wish mean on this node. "auto" is the planner's (with why, as mu_plan_auto has it); where GPU
 * ranks cannot do what the model needs, it takes processors and says so. A split's text is taken as it is, or refused
 * where the machine does not have its GPUs or wish contradicts it. adapters as for mu_plan_auto. */
enum mu_status mu_plan_where(const struct mu_model *model, const struct mu_adapters *adapters,
                             const struct mu_plan_node *node, const char *text, enum mu_device_wish wish,
                             const struct mu_serving *serving, struct mu_split *split_out, char why[MU_PLAN_WHY],
                             struct mu_err *err);
/* Whether the node has the GPUs of the split, and GPU ranks what the model needs. */
enum mu_status mu_plan_where_check(const struct mu_model *model, const struct mu_plan_node *node,
                                   const struct mu_split *split, struct mu_err *err);

/* "processors", "GPU 0 (NVIDIA H100 80GB HBM3)", "GPU 0 (…), 12 layers streamed" */
void mu_plan_where_rank(const struct mu_gpus *gpus, const struct mu_split *split, int rank, char text[MU_GPU_TEXT]);

/* Threads and their CPUs on this machine, by base/place.h. A rank on a GPU loads, queues work and samples, for which a few
 * threads do; they are never pinned to a CPU each: a driver starts threads that would inherit it.
 *
 * n_thread is of a rank on processors, at most: mu_plan_threads gives as many as pay. near: the NUMA node of the GPU that
 * this rank is on, -1: not known. */
/* Of this machine: its name, cores, NUMA nodes and free memory. The rest is zero. A quota so small that a node would get
 * no thread makes one node of all. */
void mu_plan_node_of(const struct mu_topo *topo, struct mu_plan_node *node_out);
int mu_plan_threads(const struct mu_topo *topo, const struct mu_split *split);
void mu_plan_place(const struct mu_topo *topo, const struct mu_split *split, int near, int n_thread, int rank,
                   struct mu_place *place_out);

#endif
