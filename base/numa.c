/* See numa.h. */
#include "base/numa.h"

#include <errno.h>
#include <hwloc.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/log.h"

enum { SAMPLE = 512 };

struct mu_numa {
    int node;
    hwloc_topology_t topology;
    hwloc_bitmap_t set; /* of that one node */
};

void mu_numa_close(struct mu_numa *numa)
{
    if (!numa) return;
    if (numa->topology) hwloc_topology_destroy(numa->topology);
    hwloc_bitmap_free(numa->set);
    mu_free(numa);
}

enum mu_status mu_numa_open(int node, struct mu_numa **numa_out, struct mu_err *err)
{
    enum mu_status st;
    *numa_out = NULL;
    if (node < 0) return MU_OK;
    struct mu_numa *n = mu_calloc(1, sizeof *n);
    if (!n) return mu_fail(err, MU_ENOMEM, "out of memory for placing memory");
    n->node = node;
    n->set = hwloc_bitmap_alloc();
    if (!n->set || hwloc_bitmap_only(n->set, (unsigned)node) != 0 || hwloc_topology_init(&n->topology) != 0) {
        st = mu_fail(err, MU_ENOMEM, "out of memory for placing memory");
        goto fail;
    }
    if (hwloc_topology_load(n->topology) != 0) {
        st = mu_fail(err, MU_EIO, "hwloc cannot read this machine's topology: %s", strerror(errno));
        goto fail;
    }
    st = MU_OK;
    if (hwloc_get_nbobjs_by_type(n->topology, HWLOC_OBJ_NUMANODE) < 2) goto fail; /* nothing to choose */
    *numa_out = n;
    return MU_OK;
fail:
    mu_numa_close(n);
    return st;
}

int mu_numa_node(const struct mu_numa *numa)
{
    return numa ? numa->node : -1;
}

void mu_numa_bind(const struct mu_numa *numa, void *p, size_t bytes)
{
    if (!numa || !p || !bytes) return;
    /* Not STRICT: a node that is full must not end the process. */
    if (hwloc_set_area_membind(numa->topology, p, bytes, numa->set, HWLOC_MEMBIND_BIND,
                               HWLOC_MEMBIND_BYNODESET | HWLOC_MEMBIND_MIGRATE) != 0)
        mu_info("numa", "memory (%zu MB) is not bound to NUMA node %d, its first touch decides: %s", bytes >> 20,
                numa->node, strerror(errno));
}

double mu_numa_share(const struct mu_numa *numa, const void *p, size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), n = bytes / page, step = n > SAMPLE ? n / SAMPLE : 1;
    int here = 0, there = 0;
    hwloc_bitmap_t where = numa && p ? hwloc_bitmap_alloc() : NULL;
    if (!where) return -1;
    for (size_t i = 0; i < n && here + there < SAMPLE; i += step) {
        if (hwloc_get_area_memlocation(numa->topology, (const char *)p + i * page, 1, where, HWLOC_MEMBIND_BYNODESET) !=
                0 ||
            hwloc_bitmap_iszero(where))
            continue;
        if (hwloc_bitmap_isset(where, (unsigned)numa->node))
            here++;
        else
            there++;
    }
    hwloc_bitmap_free(where);
    return here + there ? (double)here / (here + there) : -1;
}
