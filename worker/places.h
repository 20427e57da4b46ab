/* The folders of a worker: one for its gangs' files, one on a memory file system for what their processes share.
 * Both are locked while the worker lives; what processes that were killed left behind is swept away at the next start. */
#ifndef MU_WORKER_PLACES_H
#define MU_WORKER_PLACES_H

#include "base/status.h"

struct mu_places {
    char *run_dir, *shm_dir; /* shm_dir NULL: there is no such file system */
};

enum mu_status mu_places_open(struct mu_places *p, struct mu_err *err);
void mu_places_close(struct mu_places *p); /* of a zeroed one too */

#endif
