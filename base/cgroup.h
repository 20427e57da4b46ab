/* What our control group leaves us: CPU time and memory, from cgroup v2 or v1, the least along the path to the root.
 * Source: Linux Documentation/admin-guide/cgroup-v2.rst (cpu.max, cpu.stat, memory.max, memory.high, memory.current,
 * memory.stat), cgroup-v1/memory.rst, scheduler/sched-bwc.rst; proc(5) for cgroup and mountinfo. */
#ifndef MU_BASE_CGROUP_H
#define MU_BASE_CGROUP_H

#include <stdint.h>

struct mu_cgroup {
    double cpus;              /* the CFS quota in CPUs; 0 = no quota */
    uint64_t throttled_us;    /* for how long that quota has kept us from running, since the group exists */
    uint64_t mem_limit_bytes; /* UINT64_MAX = no limit */
    uint64_t mem_left_bytes;  /* limit - usage + page cache that can be dropped; UINT64_MAX = no limit */
};

/* Reads the files below root ("" for the real system; tests record others). What cannot be read limits nothing. */
void mu_cgroup_read(const char *root, struct mu_cgroup *cgroup_out);

#endif
