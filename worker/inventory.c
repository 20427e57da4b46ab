/* The inventory's thread. What was measured is kept and told to those who do not ask for a new measurement.
 * A child looks for GPUs (shard/plan_gpus.h): this process lives long, and would hold some of their memory. */
#include "worker/inventory.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/place.h"
#include "base/queue.h"
#include "base/topo.h"
#include "muster/v1/internal.pb-c.h"
#include "shard/plan_gpus.h"
#include "worker/measure.h"

enum {
    QUEUE_ITEMS = 64,
    GPUS_MS = 20000, /* a driver that was not used for a while takes seconds */
};
struct question {
    struct mu_rpc_call *call; /* a reference */
    bool measure, gpus;
};

struct mu_inventory {
    struct mu_queue *queue;
    pthread_t thread;
    bool started;
    /* the thread's own: */
    double read_gbps, int8_gops, node_gbps[MU_TOPO_MAX_NUMA];
    Muster__V1__Numa numa[MU_TOPO_MAX_NUMA], *numa_at[MU_TOPO_MAX_NUMA];
    char numa_cpus[MU_TOPO_MAX_NUMA][64];
    struct mu_gpus gpus; /* as last looked at, with the figures of the last measurement */
    Muster__V1__Gpu gpu[MU_MAX_GPUS], *gpu_at[MU_MAX_GPUS];
};

/* ---- GPUs ---- */

/* Free memory is of now; speeds are kept where nobody asks for new ones and the GPUs are the same. */
static void gpus_look(struct mu_inventory *inv, bool want_measure)
{
    struct mu_gpus now;
    mu_gpus_ask(want_measure, GPUS_MS, &now);
    for (int i = 0; !want_measure && i < now.n && i < inv->gpus.n; i++) {
        const struct mu_gpu *old = &inv->gpus.gpu[i];
        struct mu_gpu *g = &now.gpu[i];
        if (strcmp(g->name, old->name) != 0 || strcmp(g->pci, old->pci) != 0) break;
        g->read_gbps = old->read_gbps;
        g->up_gbps = old->up_gbps;
        g->down_gbps = old->down_gbps;
        g->int8_gops = old->int8_gops;
        g->bf16_gops = old->bf16_gops;
        g->f32_gops = old->f32_gops;
    }
    inv->gpus = now;
}

static void gpus_tell(struct mu_inventory *inv, Muster__V1__Node *node)
{
    for (int i = 0; i < inv->gpus.n; i++) {
        struct mu_gpu *g = &inv->gpus.gpu[i];
        Muster__V1__Gpu *m = inv->gpu_at[i] = &inv->gpu[i];
        muster__v1__gpu__init(m);
        m->name = g->name;
        m->pci = g->pci;
        m->numa = g->numa;
        m->capability = (uint32_t)g->capability;
        m->has_link = g->has_link;
        m->memory_bytes = g->memory_bytes;
        m->free_bytes = g->free_bytes;
        m->read_gbps = g->read_gbps;
        m->up_gbps = g->up_gbps;
        m->down_gbps = g->down_gbps;
        m->int8_gops = g->int8_gops;
        m->bf16_gops = g->bf16_gops;
        m->f32_gops = g->f32_gops;
    }
    node->n_gpu = (size_t)inv->gpus.n;
    node->gpu = inv->gpu_at;
    node->no_gpu = inv->gpus.why;
    node->gpus_broken = inv->gpus.broken;
}

/* ---- NUMA nodes ---- */

static void numa_tell(struct mu_inventory *inv, const struct mu_topo *topo, Muster__V1__Node *node)
{
    for (int k = 0; k < topo->n_numa; k++) {
        Muster__V1__Numa *m = inv->numa_at[k] = &inv->numa[k];
        int cpu[MU_TOPO_MAX_CPUS], n = 0;
        for (int i = 0; i < topo->n_cpu; i++)
            if (topo->numa_of[i] == topo->numa[k].node) cpu[n++] = topo->cpus[i];
        mu_place_cpus_text(cpu, n, inv->numa_cpus[k], sizeof inv->numa_cpus[k]);
        muster__v1__numa__init(m);
        m->node = (uint32_t)topo->numa[k].node;
        m->cpus = inv->numa_cpus[k];
        m->memory_bytes = topo->numa[k].memory_bytes;
        m->read_gbps = inv->node_gbps[k];
    }
    node->n_numa = topo->n_numa > 1 ? (size_t)topo->n_numa : 0;
    node->numa = inv->numa_at;
}

/* ---- answering ---- */

static void answer(struct mu_inventory *inv, struct question *q)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_topo *topo = mu_malloc(sizeof *topo);
    enum mu_status st = topo ? mu_topo_read(topo, &err) : mu_fail(&err, MU_ENOMEM, "out of memory for the topology");
    if (st != MU_OK) {
        mu_rpc_call_finish(q->call, mu_rpc_code_of(st), "%s", err.text);
    } else {
        Muster__Internal__V1__InventoryReply reply = MUSTER__INTERNAL__V1__INVENTORY_REPLY__INIT;
        Muster__V1__Node node = MUSTER__V1__NODE__INIT;
        if (q->measure && mu_processors_measure(topo, &inv->read_gbps, &inv->int8_gops, inv->node_gbps, &err) != MU_OK)
            mu_log_err(MU_LOG_WARN, "worker", &err, "cannot measure this machine");
        if (q->gpus) gpus_look(inv, q->measure);
        if (q->gpus) gpus_tell(inv, &node);
        numa_tell(inv, topo, &node);
        node.name = topo->host;
        node.cores = (uint32_t)topo->n_core;
        node.memory_bytes = topo->mem_total_bytes;
        node.memory_available_bytes = topo->mem_available_bytes;
        node.read_gbps = inv->read_gbps;
        node.int8_gops = inv->int8_gops;
        node.worker_pid = getpid();
        reply.node = &node;
        mu_rpc_call_reply(q->call, &reply.base);
    }
    mu_free(topo);
}

static void question_free(void *p)
{
    struct question *q = p;
    mu_rpc_call_release(q->call);
    mu_free(q);
}

static void *inventory_main(void *arg)
{
    struct mu_inventory *inv = arg;
    struct question *q;
    while ((q = mu_queue_pop(inv->queue, MU_FOREVER)) != NULL) {
        if (mu_queue_closed(inv->queue))
            mu_rpc_call_finish(q->call, MU_RPC_UNAVAILABLE, "the worker is shutting down");
        else
            answer(inv, q);
        question_free(q);
    }
    return NULL;
}

void mu_inventory_ask(struct mu_inventory *inv, struct mu_rpc_call *call,
                      const Muster__Internal__V1__InventoryRequest *req)
{
    struct question *q = mu_calloc(1, sizeof *q);
    if (q) *q = (struct question){mu_rpc_call_retain(call), req->measure, req->gpus};
    if (q && mu_queue_push(inv->queue, q) == MU_OK) return;
    if (q) question_free(q);
    mu_rpc_call_finish(call, MU_RPC_RESOURCE_EXHAUSTED, "the worker is busy or out of memory; try again");
}

enum mu_status mu_inventory_start(struct mu_inventory **inv_out, struct mu_err *err)
{
    struct mu_inventory *inv = mu_calloc(1, sizeof *inv);
    if (!inv) return mu_fail(err, MU_ENOMEM, "out of memory for the inventory");
    enum mu_status st;
    sigset_t all, before;
    MU_TRY(st, mu_queue_create(QUEUE_ITEMS, &inv->queue, err), fail);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int e = pthread_create(&inv->thread, NULL, inventory_main, inv);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (e) {
        st = mu_fail(err, MU_EAGAIN, "cannot start a thread: %s", strerror(e));
        goto fail;
    }
    inv->started = true;
    *inv_out = inv;
    return MU_OK;
fail:
    mu_inventory_destroy(inv);
    return st;
}

void mu_inventory_stop(struct mu_inventory *inv)
{
    if (!inv || !inv->started) return;
    mu_queue_close(inv->queue);
    pthread_join(inv->thread, NULL);
    inv->started = false;
}

void mu_inventory_destroy(struct mu_inventory *inv)
{
    if (!inv) return;
    mu_inventory_stop(inv);
    mu_queue_destroy(inv->queue, question_free);
    mu_free(inv);
}
