/* See seat.h. */
#include "worker/seat.h"

#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "kernels/device.h"
#include "kernels/kernels.h"
#include "shard/plan_where.h"

/* The node that the rank's GPU hangs on; -1: it has none, or it is not known, or there is one node anyway. */
static int near_of(const struct mu_topo *topo, const struct mu_split *split, int rank)
{
    struct mu_device_info info;
    int device = split->device[rank];
    if (device == MU_ON_CPU || topo->n_numa < 2) return -1;
    const struct mu_device_ops *ops = mu_device_load(NULL);
    if (!ops || ops->info(device, &info, NULL) != MU_OK || !info.pci[0]) return -1;
    return mu_topo_numa_of_pci(info.pci);
}

enum mu_status mu_seat_open(const struct mu_topo *topo, const struct mu_split *split, int rank, int n_thread, bool bind,
                            struct mu_seat *seat, struct mu_err *err)
{
    memset(seat, 0, sizeof *seat);
    mu_plan_place(topo, split, near_of(topo, split, rank), n_thread, rank, &seat->place);
    struct mu_place *p = &seat->place;
    if (!bind) {
        p->numa = -1;
        p->n_cpu = 0;
    }
    struct mu_pool_options opt = {.n_threads = p->n_thread, .thread_init = mu_fp_env_init};
    if (p->n_cpu) {
        opt.pin = 1;
        opt.cpus = p->cpu;
        opt.n_shared = p->pinned ? 0 : p->n_cpu;
    }
    enum mu_status st = mu_pool_create(&opt, &seat->pool, err);
    if (st != MU_OK && opt.pin) { /* a container may refuse */
        mu_info("rank", "the threads of rank %d are not bound: %s", rank, err ? err->text : "refused");
        opt = (struct mu_pool_options){.n_threads = p->n_thread, .thread_init = mu_fp_env_init};
        st = mu_pool_create(&opt, &seat->pool, err);
    }
    return st == MU_OK ? mu_numa_open(p->numa, &seat->numa, err) : st;
}

void mu_seat_close(struct mu_seat *seat)
{
    mu_pool_destroy(seat->pool);
    mu_numa_close(seat->numa);
    memset(seat, 0, sizeof *seat);
}
