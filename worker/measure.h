/* How fast this machine's processors are, all together. */
#ifndef MU_WORKER_MEASURE_H
#define MU_WORKER_MEASURE_H

#include <stddef.h>

#include "base/topo.h"

/* Reading memory, 10^9 bytes a second, and int8 products, 10^9 operations, by all threads at once, one on each of
 * topo's usable cores, of each NUMA node its share. About 0.3 s. The calling thread is pinned meanwhile. node_gbps_out
 * (may be NULL) is for [topo->n_numa]: what the node's own cores read of it, while all others do the same. */
enum mu_status mu_processors_measure(const struct mu_topo *topo, double *read_gbps_out, double *int8_gops_out,
                                     double *node_gbps_out, struct mu_err *err);

/* How many bytes each of n_thread reads: together an eighth of what is available at most, but whole pages in any case. */
size_t mu_measure_slice(uint64_t available_bytes, int n_thread);

#endif
