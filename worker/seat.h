/* Where a rank sits on its machine: its threads on the cores that are its own, its memory on their NUMA node
 * (base/place.h has the rules). For ranks that are processes and for those that are threads of one. */
#ifndef MU_WORKER_SEAT_H
#define MU_WORKER_SEAT_H

#include "base/numa.h"
#include "base/place.h"
#include "base/pool.h"
#include "shard/split.h"

struct mu_seat {
    struct mu_place place;
    struct mu_pool *pool; /* the caller is member 0 */
    struct mu_numa *numa; /* NULL: there is nothing to choose */
};

/* n_thread: of a rank on processors at most. bind: false leaves threads and memory to the system. topo must have been
 * read before any thread of this process was bound. A system that refuses to bind is left its way. Creates the pool on
 * the calling thread, which closes the seat too. */
enum mu_status mu_seat_open(const struct mu_topo *topo, const struct mu_split *split, int rank, int n_thread, bool bind,
                            struct mu_seat *seat_out, struct mu_err *err);
void mu_seat_close(struct mu_seat *seat); /* a zeroed one is fine */

#endif
