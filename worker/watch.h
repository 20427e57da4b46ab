/* Which rank of a gang hangs: decided from their records alone.
 *
 *   breath still    the process is stopped (SIGSTOP), gone, or its machine is: the culprit, whatever it was doing
 *   progress still  it breathes, is busy, waits for nobody, and gets nothing done: the culprit. Ranks that wait are
 *                   its victims.
 *   starting        mpirun never ran it, or does not let it through MPI_Init: mpirun is stopped, or hangs after an
 *                   error (out of descriptors, say). No rank is there then that could be still.
 *
 * Time counts only while somebody looks: where the worker itself was held up (a suspended laptop, a debugger), the
 * gap is not held against the ranks.
 *
 * Pure: elapsed times and records in, a verdict out. */
#ifndef MU_WORKER_WATCH_H
#define MU_WORKER_WATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/record.h"
#include "shard/split.h"

enum {
    MU_WATCH_MOST_MS = 250,    /* one look accounts for at most so much */
    MU_WATCH_START_MS = 60000, /* until a rank loads; 0.3 s where nothing else runs */
};

struct mu_watch {
    int n_rank;
    int64_t breath_ms; /* limits */
    int64_t progress_ms;
    struct {
        uint64_t breath, progress;
        int64_t breath_still_ms, progress_still_ms, starting_ms;
    } rank[MU_MAX_RANKS];
};

void mu_watch_init(struct mu_watch *w, int n_rank, int64_t breath_ms, int64_t progress_ms);
/* One look, elapsed_ms after the one before. The culprit, with the reason in words; -1: all is well. busy: steps run
 * (the gang is ready), so that progress counts. */
int mu_watch_look(struct mu_watch *w, const struct mu_rank_record *records, int64_t elapsed_ms, bool busy, char *reason,
                  size_t reason_bytes);
/* "computing layer 3 of step 12", "waiting for rank 2 in step 12", "loading". */
void mu_watch_describe(const struct mu_rank_record *record, char *buf, size_t buf_bytes);

#endif
