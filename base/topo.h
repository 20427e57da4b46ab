/* What this machine has, as far as this process may use it: hwloc's view restricted to our affinity mask and cpuset,
 * the CFS quota of our cgroup, and the memory that is really available. */
#ifndef MU_BASE_TOPO_H
#define MU_BASE_TOPO_H

#include <stdint.h>

#include "base/status.h"

enum { MU_TOPO_MAX_CPUS = 1024, MU_TOPO_MAX_NUMA = 64 };

struct mu_topo_numa {
    int node;              /* the system's number */
    int n_core, n_cpu;     /* that we may use: physical cores, logical CPUs */
    uint64_t memory_bytes; /* all of its memory; 0: not known */
};

struct mu_topo {
    int n_cpu;                     /* logical CPUs we may use */
    int n_core;                    /* physical cores among them */
    int n_numa;                    /* NUMA nodes with such CPUs, at least 1 */
    int n_usable;                  /* min(n_core, ceil of the CFS quota), at least 1: how many threads pay */
    int cpus[MU_TOPO_MAX_CPUS];    /* first one logical CPU of each core, in hwloc's order, then the SMT siblings */
    int numa_of[MU_TOPO_MAX_CPUS]; /* NUMA node of cpus[i], the system's number */
    struct mu_topo_numa numa[MU_TOPO_MAX_NUMA]; /* [n_numa], in the order of their first CPU */
    uint64_t mem_total_bytes;                   /* the smaller of MemTotal and the cgroup's limit */
    uint64_t mem_available_bytes;               /* the smaller of MemAvailable and what the cgroup has left */
    char cpu_model[96];
    char host[65]; /* names have at most 64 bytes */
};

/* A CPU's node is one that has memory which we may use: of a CPU whose own node has none, the node that the firmware
 * calls nearest to it; of one whose own node our cpuset forbids, the first that it allows. Nodes of memory alone
 * (expanders, fast memory beside a processor's) are nobody's. */
enum mu_status mu_topo_read(struct mu_topo *topo_out, struct mu_err *err);

/* The NUMA node (the system's number) that a PCI device hangs on ("0000:1b:00.0"); -1: not known. */
int mu_topo_numa_of_pci(const char *pci);

#endif
