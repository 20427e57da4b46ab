/* Memory of the worker in which the ranks of a gang keep their packed weights (shard/kept.c): while the worker lives, a
 * gang that died is back without reading and packing its model again.
 *
 * One memfd a rank, and behind them one for the draft model, if there is one. mpirun gets them as descriptors from MU_KEPT_FD on, and each rank opens its own among mpirun's in
 * /proc: mpirun closes what it does not know before it starts ranks, and /proc of the worker itself is out of reach
 * from the private network's user namespace. The worker never maps them; it decides only how long they live:
 *
 *   made      with the gang, or afresh where model, draft model, split or type differ from last time
 *   reused    by the next launch, where the rank sealed them; what is not sealed was packed in part and is dropped
 *   dropped   when the coordinator lets go of the gang while it runs, when it cannot be started, or was not started again
 *             for a minute; with the worker, however it ends: nothing in a file system refers to them
 *
 * Thread: the supervising one. */
#ifndef MU_WORKER_KEPT_H
#define MU_WORKER_KEPT_H

#include <stdint.h>

#include "model/model.h"
#include "shard/split.h"

enum { MU_KEPT_FD = 3, MU_KEPT_IDLE_MS = 60000 };

struct mu_kept {
    int n_fd; /* the ranks', then the draft model's; 0: nothing is kept */
    int fd[MU_MAX_RANKS + 1];
    uint64_t identity;
    int64_t idle_ns; /* since when no gang uses it; 0: one does */
};

/* What is kept for exactly these ranks, and this draft model beside them (NULL: there is none), stays; anything else goes. On a system without such memory nothing is kept, which
 * is said once a launch. MUSTER_KEEP_WEIGHTS=0 asks for that. */
void mu_kept_prepare(struct mu_kept *k, const struct mu_model *model, const struct mu_model *draft, const char *split,
                     const char *quantize, int n_rank);
/* Taken by what earlier launches left. */
uint64_t mu_kept_bytes(const struct mu_kept *k);
void mu_kept_drop(struct mu_kept *k);

#endif
