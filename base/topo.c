/* This machine, as far as we may use it. Owns nothing: hwloc's topology lives for one call. */
#include "base/topo.h"

#include <errno.h>
#include <hwloc.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cgroup.h"
#include "base/io.h"

enum { PROC_FILE_MAX = 8 << 20 };

/* One CPU's core, or the CPU itself where hwloc knows no cores (some virtual machines). */
static unsigned core_key(hwloc_topology_t topology, hwloc_obj_t pu)
{
    hwloc_obj_t core = hwloc_get_ancestor_obj_by_type(topology, HWLOC_OBJ_CORE, pu);
    return core ? core->logical_index : pu->logical_index;
}

/* Where nobody says how much memory any node has, all have some. */
static bool has_memory(hwloc_topology_t topology, hwloc_obj_t node)
{
    bool known = false;
    for (hwloc_obj_t n = NULL; (n = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_NUMANODE, n));)
        known = known || n->attr->numanode.local_memory > 0;
    return !known || node->attr->numanode.local_memory > 0;
}

/* The node whose memory is this CPU's own; NULL: there is none. What lies near fewest CPUs wins: memory of the whole
 * machine (an expander) is near all of them. Of several that are equally near (fast memory beside a processor's usual
 * one) the first number is the usual one. */
static hwloc_obj_t own_node(hwloc_topology_t topology, unsigned cpu)
{
    hwloc_obj_t best = NULL;
    for (hwloc_obj_t node = NULL; (node = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_NUMANODE, node));) {
        if (!hwloc_bitmap_isset(node->cpuset, cpu) || !has_memory(topology, node)) continue;
        int n = hwloc_bitmap_weight(node->cpuset), n_best = best ? hwloc_bitmap_weight(best->cpuset) : 0;
        if (!best || n < n_best || (n == n_best && node->os_index < best->os_index)) best = node;
    }
    return best;
}

/* By the distances that the firmware gives, where it does, else the first: the node with memory nearest to one without. A
 * node that our cpuset forbids is none of hwloc's, so for its CPUs too it is the first. */
static hwloc_obj_t nearest_node(hwloc_topology_t topology, unsigned cpu)
{
    struct hwloc_distances_s *d = NULL;
    unsigned n = 1;
    hwloc_obj_t from = NULL, best = NULL, node = NULL;
    while ((node = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_NUMANODE, node)))
        if (hwloc_bitmap_isset(node->cpuset, cpu) && !has_memory(topology, node)) from = node;
    if (from &&
        hwloc_distances_get_by_type(topology, HWLOC_OBJ_NUMANODE, &n, &d, HWLOC_DISTANCES_KIND_MEANS_LATENCY, 0) == 0 &&
        d) { /* the first of those that there are */
        hwloc_uint64_t least = UINT64_MAX, there, back;
        for (node = NULL; (node = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_NUMANODE, node));) {
            if (!has_memory(topology, node) || hwloc_bitmap_iszero(node->cpuset) ||
                hwloc_distances_obj_pair_values(d, from, node, &there, &back) != 0 || there >= least)
                continue;
            least = there;
            best = node;
        }
    }
    if (d) hwloc_distances_release(topology, d);
    for (node = NULL; !best && (node = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_NUMANODE, node));)
        if (has_memory(topology, node)) best = node;
    return best;
}

static int numa_node_of(hwloc_topology_t topology, unsigned cpu)
{
    hwloc_obj_t node = own_node(topology, cpu);
    if (!node) node = nearest_node(topology, cpu);
    return node ? (int)node->os_index : 0;
}

/* Appends the CPUs in allowed: with siblings = 0 the first one of each core (taken into seen), with 1 the others. */
static void cpus_append(hwloc_topology_t topology, hwloc_const_bitmap_t allowed, hwloc_bitmap_t seen, int siblings,
                        struct mu_topo *t)
{
    for (hwloc_obj_t pu = NULL; (pu = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_PU, pu));) {
        unsigned cpu = pu->os_index, core = core_key(topology, pu);
        if (!hwloc_bitmap_isset(allowed, cpu) || t->n_cpu == MU_TOPO_MAX_CPUS) continue;
        if (siblings) {
            bool listed = false;
            for (int i = 0; i < t->n_core && !listed; i++) listed = t->cpus[i] == (int)cpu;
            if (listed) continue;
        } else if (hwloc_bitmap_isset(seen, core)) {
            continue;
        }
        hwloc_bitmap_set(seen, core);
        t->numa_of[t->n_cpu] = numa_node_of(topology, cpu);
        t->cpus[t->n_cpu++] = (int)cpu;
    }
}

static uint64_t memory_of(hwloc_topology_t topology, int node)
{
    hwloc_obj_t obj = hwloc_get_numanode_obj_by_os_index(topology, (unsigned)node);
    return obj ? obj->attr->numanode.local_memory : 0;
}

static void nodes_list(hwloc_topology_t topology, struct mu_topo *t)
{
    for (int i = 0; i < t->n_cpu; i++) {
        int k = 0;
        while (k < t->n_numa && t->numa[k].node != t->numa_of[i]) k++;
        if (k == MU_TOPO_MAX_NUMA) { /* more than any machine has: they count as the last one */
            t->numa_of[i] = t->numa[--k].node;
        } else if (k == t->n_numa) {
            t->numa[t->n_numa++] =
                (struct mu_topo_numa){.node = t->numa_of[i], .memory_bytes = memory_of(topology, t->numa_of[i])};
        }
        t->numa[k].n_cpu++;
        t->numa[k].n_core += i < t->n_core;
    }
}

static enum mu_status cpus_read(struct mu_topo *t, struct mu_err *err)
{
    enum mu_status st = MU_OK;
    hwloc_topology_t topology = NULL;
    hwloc_bitmap_t allowed = hwloc_bitmap_alloc(), seen = hwloc_bitmap_alloc();
    if (!allowed || !seen || hwloc_topology_init(&topology) != 0) {
        st = mu_fail(err, MU_ENOMEM, "out of memory for the machine's topology");
        goto done;
    }
    if (hwloc_topology_load(topology) != 0) {
        st = mu_fail(err, MU_EIO, "hwloc cannot read this machine's topology: %s", strerror(errno));
        goto done;
    }
    /* The thread's mask, not the machine's: taskset, mpirun and containers narrow it. */
    if (hwloc_get_cpubind(topology, allowed, HWLOC_CPUBIND_THREAD) != 0 || hwloc_bitmap_iszero(allowed))
        hwloc_bitmap_copy(allowed, hwloc_topology_get_allowed_cpuset(topology));
    hwloc_bitmap_and(allowed, allowed, hwloc_topology_get_allowed_cpuset(topology));
    cpus_append(topology, allowed, seen, 0, t);
    t->n_core = t->n_cpu;
    cpus_append(topology, allowed, seen, 1, t);
    nodes_list(topology, t);
    if (t->n_cpu == 0)
        st = mu_fail(err, MU_EIO, "hwloc finds no CPU that this process may use; check its affinity mask");
done:
    if (topology) hwloc_topology_destroy(topology);
    hwloc_bitmap_free(allowed);
    hwloc_bitmap_free(seen);
    return st;
}

/* The number in kB after a key of /proc/meminfo, in bytes; 0 if it is not there. */
static uint64_t meminfo_value(const char *text, const char *key)
{
    uint64_t kb;
    const char *line = strstr(text, key);
    return line && sscanf(line + strlen(key), " %" SCNu64, &kb) == 1 ? kb * 1024 : 0;
}

static enum mu_status memory_read(const struct mu_cgroup *cgroup, struct mu_topo *t, struct mu_err *err)
{
    char *text;
    size_t len;
    enum mu_status st = mu_file_read("/proc/meminfo", PROC_FILE_MAX, &text, &len, err);
    if (st != MU_OK) return st;
    t->mem_total_bytes = meminfo_value(text, "MemTotal:");
    t->mem_available_bytes = meminfo_value(text, "MemAvailable:");
    mu_free(text);
    if (t->mem_total_bytes == 0) return mu_fail(err, MU_EFORMAT, "/proc/meminfo has no MemTotal");
    if (cgroup->mem_limit_bytes < t->mem_total_bytes) t->mem_total_bytes = cgroup->mem_limit_bytes;
    if (cgroup->mem_left_bytes < t->mem_available_bytes) t->mem_available_bytes = cgroup->mem_left_bytes;
    if (t->mem_available_bytes > t->mem_total_bytes) t->mem_available_bytes = t->mem_total_bytes;
    return MU_OK;
}

/* For people only: "unknown" where the file says nothing (on ARM it often does not). */
static void cpu_model_read(struct mu_topo *t)
{
    char *text = NULL;
    size_t len;
    snprintf(t->cpu_model, sizeof t->cpu_model, "unknown");
    if (mu_file_read("/proc/cpuinfo", PROC_FILE_MAX, &text, &len, NULL) != MU_OK) return;
    const char *line = strstr(text, "model name");
    const char *value = line ? strchr(line, ':') : NULL;
    if (value) {
        value += 1 + strspn(value + 1, " \t");
        int n = (int)strcspn(value, "\n");
        if (n > 0) snprintf(t->cpu_model, sizeof t->cpu_model, "%.*s", n, value);
    }
    mu_free(text);
}

static int quota_ceil(double cpus)
{
    return (int)cpus + ((double)(int)cpus < cpus);
}

enum mu_status mu_topo_read(struct mu_topo *topo_out, struct mu_err *err)
{
    enum mu_status st;
    struct mu_cgroup cgroup;
    struct mu_topo *t = mu_calloc(1, sizeof *t); /* 8 KiB; and outputs are set only on success */
    if (!t) return mu_fail(err, MU_ENOMEM, "out of memory for the machine's topology");
    mu_cgroup_read("", &cgroup);
    MU_TRY(st, cpus_read(t, err), done);
    MU_TRY(st, memory_read(&cgroup, t, err), done);
    t->n_usable = t->n_core;
    if (cgroup.cpus > 0 && cgroup.cpus < t->n_core) t->n_usable = quota_ceil(cgroup.cpus);
    cpu_model_read(t);
    if (gethostname(t->host, sizeof t->host) != 0) snprintf(t->host, sizeof t->host, "localhost");
    *topo_out = *t;
done:
    mu_free(t);
    return st;
}

int mu_topo_numa_of_pci(const char *pci)
{
    hwloc_topology_t topology;
    int numa = -1;
    if (hwloc_topology_init(&topology) != 0) return -1;
    hwloc_topology_set_io_types_filter(topology, HWLOC_TYPE_FILTER_KEEP_IMPORTANT);
    if (hwloc_topology_load(topology) == 0) {
        hwloc_obj_t dev = hwloc_get_pcidev_by_busidstring(topology, pci);
        hwloc_obj_t near = dev ? hwloc_get_non_io_ancestor_obj(topology, dev) : NULL;
        /* one node only: what hangs on the whole machine is near none of several */
        if (near && near->nodeset && hwloc_bitmap_weight(near->nodeset) == 1) numa = hwloc_bitmap_first(near->nodeset);
    }
    hwloc_topology_destroy(topology);
    return numa;
}
