/* Where a gang of one machine runs: what --split and --device say, against what the machine has. */
#ifndef MU_SHARD_PLAN_WHERE_H
#define MU_SHARD_PLAN_WHERE_H

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
 * where the machine does not have its GPUs or wish contradicts it. */
enum mu_status mu_plan_where(const struct mu_model *model, const struct mu_plan_node *node, const char *text,
                             enum mu_device_wish wish, const struct mu_serving *serving, struct mu_split *split_out,
                             char why[MU_PLAN_WHY], struct mu_err *err);
/* Whether the node has the GPUs of the split, and GPU ranks what the model needs. */
enum mu_status mu_plan_where_check(const struct mu_model *model, const struct mu_plan_node *node,
                                   const struct mu_split *split, struct mu_err *err);

/* Threads: ranks on processors have n_thread each, on cores of their own where there are enough; one on a GPU loads,
 * queues work and samples, for which a few do, and is never pinned: a driver starts threads that would inherit it. */
int mu_plan_threads_share(const struct mu_split *split, int n_usable); /* n_thread, of so many cores; at least 1 */
int mu_plan_threads(const struct mu_split *split, int rank, int n_thread);
int mu_plan_threads_sum(const struct mu_split *split, int n_thread); /* of all ranks */
/* The first of a rank's cores, among those of all ranks on processors; -1: it is on a GPU. */
int mu_plan_first_core(const struct mu_split *split, int rank, int n_thread);

#endif
