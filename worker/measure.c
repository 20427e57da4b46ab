/* Keeps the best of short windows, so that a disturbance shows as nothing. All threads at once: adding up what each
 * reaches alone promises more than the memory has. */
#include "worker/measure.h"

#include <stdbool.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/place.h"
#include "base/pool.h"
#include "kernels/kernels.h"
#include "kernels/peak.h"

enum {
    READ_MS = 150,
    SLICE_UNIT = 64 << 10,  /* whole pages everywhere */
    SLICE_WANTED = 8 << 20, /* beyond a core's part of the last-level cache, mostly */
    MAX_THREADS = 1024,
};
static const size_t read_bytes = (size_t)256 << 20; /* of few threads together: beyond their last-level cache, mostly */

struct probe {
    struct mu_pool *pool;
    uint8_t *buf;
    size_t slice; /* bytes of each thread */
    double int8_gops[MAX_THREADS];
    int node_of[MAX_THREADS]; /* index into the topology's nodes */
    int64_t took_ns[MAX_THREADS];
    int n_node;
    double node_gbps[MU_TOPO_MAX_NUMA];
    double read_gbps;
    int64_t until_ns;
    bool more;
};

/* Each node as fast as its slowest thread. */
static void nodes_note(struct probe *p, int n_member)
{
    for (int k = 0; k < p->n_node; k++) {
        int64_t slowest = 1;
        size_t bytes = 0;
        for (int i = 0; i < n_member; i++) {
            if (p->node_of[i] != k) continue;
            if (p->took_ns[i] > slowest) slowest = p->took_ns[i];
            bytes += p->slice;
        }
        double gbps = (double)bytes / (double)slowest;
        if (gbps > p->node_gbps[k]) p->node_gbps[k] = gbps;
    }
}

/* All threads at once; one reading is as fast as its slowest thread. Member 0 keeps the time. */
static void probe_main(void *arg, int member, int n_member)
{
    struct probe *p = arg;
    uint8_t *mine = p->buf + (size_t)member * p->slice;
    memset(mine, member + 1, p->slice); /* the first touch decides the NUMA node */
    p->int8_gops[member] = mu_peak_int8_gops();
    mu_pool_barrier(p->pool);
    do {
        int64_t start = mu_now_ns();
        mu_peak_read_gbps(mine, p->slice);
        p->took_ns[member] = mu_now_ns() - start;
        mu_pool_barrier(p->pool);
        if (member == 0) {
            int64_t now = mu_now_ns();
            nodes_note(p, n_member);
            double gbps = (double)(p->slice * (size_t)n_member) / (double)(now - start > 0 ? now - start : 1);
            if (gbps > p->read_gbps) p->read_gbps = gbps;
            p->more = now < p->until_ns;
        }
        mu_pool_barrier(p->pool);
    } while (p->more);
}

size_t mu_measure_slice(uint64_t available_bytes, int n_thread)
{
    size_t n = (size_t)n_thread, wanted = read_bytes / n > SLICE_WANTED ? read_bytes / n : SLICE_WANTED;
    size_t most = (size_t)(available_bytes / 8) / n, slice = wanted < most ? wanted : most;
    return slice < SLICE_UNIT ? SLICE_UNIT : slice / SLICE_UNIT * SLICE_UNIT;
}

/* Of each node as many of its cores as are its share. */
static int cpus_choose(const struct mu_topo *topo, struct probe *p, int cpu[MAX_THREADS])
{
    int share[MU_TOPO_MAX_NUMA], n = 0;
    mu_place_shares(topo, share);
    p->n_node = topo->n_numa;
    for (int i = 0; i < topo->n_core && n < MAX_THREADS; i++) {
        int k = 0;
        while (topo->numa[k].node != topo->numa_of[i]) k++;
        if (share[k]-- <= 0) continue;
        p->node_of[n] = k;
        cpu[n++] = topo->cpus[i];
    }
    return n;
}

enum mu_status mu_processors_measure(const struct mu_topo *topo, double *read_gbps_out, double *int8_gops_out,
                                     double *node_gbps_out, struct mu_err *err)
{
    enum mu_status st;
    struct mu_pool_options opt = {.pin = 1, .thread_init = mu_fp_env_init};
    int cpu[MAX_THREADS];
    struct probe *p = mu_calloc(1, sizeof *p);
    if (!p) return mu_fail(err, MU_ENOMEM, "out of memory for measuring");
    opt.n_threads = cpus_choose(topo, p, cpu);
    opt.cpus = cpu;
    p->slice = mu_measure_slice(topo->mem_available_bytes, opt.n_threads);
    size_t bytes = p->slice * (size_t)opt.n_threads;
    p->buf = mu_pages_alloc(bytes);
    if (!p->buf) {
        st = mu_fail(err, MU_ENOMEM, "no memory to measure bandwidth (%zu MB)", bytes >> 20);
        goto done;
    }
    MU_TRY(st, mu_kernels_init(NULL, err), done);
    st = mu_pool_create(&opt, &p->pool, err);
    opt.pin = 0; /* a container may refuse */
    opt.cpus = NULL;
    if (st == MU_EINVAL) st = mu_pool_create(&opt, &p->pool, err);
    if (st != MU_OK) goto done;
    p->until_ns = mu_now_ns() + READ_MS * MU_MS;
    mu_pool_run(p->pool, probe_main, p);
    *read_gbps_out = p->read_gbps;
    for (int k = 0; node_gbps_out && k < p->n_node; k++) node_gbps_out[k] = p->node_gbps[k];
    *int8_gops_out = 0;
    for (int i = 0; i < opt.n_threads; i++) *int8_gops_out += p->int8_gops[i];
done:
    mu_pool_destroy(p->pool);
    if (p->buf) mu_pages_free(p->buf, bytes);
    mu_free(p);
    return st;
}
