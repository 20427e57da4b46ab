/* Which CPUs and which NUMA node each rank of a gang gets. Pure: the machine and the ranks' wishes in, places out, so
 * every process of a gang computes the same for itself, and tests ask about machines that are not there.
 *
 *   one rank a node       as many ranks on processors as nodes, and nothing else: each has its node, and of the threads
 *                         its share of the cores that pay (n_usable, by the nodes' cores)
 *   fewer, more, GPUs     each rank on a node where its threads have cores of their own: first nodes that have none yet,
 *                         then those least full; neighbouring ranks beside each other
 *   too wide for that     ranks get cores in hwloc's order, one after another: one that needs more than a node spans some
 *   more threads than     ranks are shared out among nodes all the same, where there is one for each node; their threads
 *   cores                 are not pinned
 *
 * A rank on a GPU may use all CPUs of the node that the GPU hangs on.
 *
 * Under a CFS quota threads are not pinned to single CPUs but to the rank's node: the quota says how much, not where, and
 * several containers that all pinned to a machine's first cores would fight for them. */
#ifndef MU_BASE_PLACE_H
#define MU_BASE_PLACE_H

#include <stdbool.h>

#include "base/topo.h"

struct mu_place_wish {
    bool on_gpu;
    int near; /* of a GPU: its NUMA node (mu_topo_numa_of_pci), -1: not known */
};

struct mu_place {
    int numa;     /* the system's number of the NUMA node for threads and memory; -1: no single one */
    int n_thread; /* at most what was asked for */
    bool pinned;  /* thread i on cpu[i] alone; else each may use all of cpu[n_cpu] */
    int n_cpu;    /* 0: anywhere */
    int cpu[MU_TOPO_MAX_CPUS];
};

/* Of `rank` among n_rank; n_thread: of a rank at most, mu_place_threads for as many as pay. A rank on a GPU is given
 * n_thread_gpu. */
void mu_place_rank(const struct mu_topo *topo, const struct mu_place_wish *wish, int n_rank, int n_thread,
                   int n_thread_gpu, int rank, struct mu_place *place_out);

/* The n_thread at which those ranks on processors have a thread on each core that pays; at least 1. A rank on a GPU is left a
 * core for the thread that waits for the GPU: its others sleep but for a prompt's embedding, and for sampling. */
int mu_place_threads(const struct mu_topo *topo, const struct mu_place_wish *wish, int n_rank);

/* Cores that pay of each node, topo->n_usable altogether: share_out[n_numa]. */
void mu_place_shares(const struct mu_topo *topo, int share_out[MU_TOPO_MAX_NUMA]);

/* "0-3,8"; a list that is too long ends in "…". */
void mu_place_cpus_text(const int *cpu, int n_cpu, char *buf, int buf_bytes);

#endif
