/* The planner: stages for processors and GPUs.
 *
 * A site is what can carry a stage: a node's processors (a rank a NUMA node), or one of its GPUs (a rank). Given some
 * sites, layers are shared out by speed, then moved one at a time from the site that is most over its memory to the one
 * that they slow least; a site that has given up a layer takes none back, so this ends. Whole numbers of layers become
 * the split's weights.
 *
 * Which sites is tried in this order: the GPUs with most room, as few as hold all; all GPUs with processors behind
 * nobody: those begin with no layer and get what the GPUs give up; processors alone. A stage of processors stands
 * before the GPUs of its node, so that the output matrix, as large as several layers, and the leader are on a GPU. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shard/plan.h"
#include "shard/plan_fit.h"
#include "shard/plan_predict.h"

enum { MAX_SITES = MU_MAX_STAGES };

struct site {
    int node, device, n_rank;
    double speed;
    uint64_t room_bytes;
    bool last_resort; /* begins with no layer */
    int n_layer;
    bool full; /* gave up a layer */
    uint64_t need_bytes;
};

struct sites {
    int n;
    struct site at[MAX_SITES];
};

/* Without what is left to everybody else, as in plan_fit.c. */
static uint64_t usable(uint64_t free_bytes)
{
    return free_bytes - free_bytes / 16;
}

static double node_speed(const struct mu_plan_node *node, int n_node, int i)
{
    for (int k = 0; k < n_node; k++)
        if (!(node[k].read_gbps > 0)) return node[i].n_core > 0 ? node[i].n_core : 1; /* figures for all or for none */
    return node[i].read_gbps;
}

static struct site site_of_node(const struct mu_plan_node *node, int n_node, int i)
{
    return (struct site){.node = i,
                         .device = MU_ON_CPU,
                         .n_rank = node[i].n_numa > 1 ? node[i].n_numa : 1,
                         .speed = node_speed(node, n_node, i),
                         .room_bytes = node[i].memory_bytes};
}

/* Where a figure is missing every GPU counts as the same, and as faster than processors. */
static struct site site_of_gpu(const struct mu_plan_node *node, int n_node, int i, int device)
{
    bool known = true;
    for (int k = 0; k < n_node; k++)
        for (int d = 0; d < node[k].gpus.n; d++) known = known && node[k].gpus.gpu[d].read_gbps > 0;
    const struct mu_gpu *g = &node[i].gpus.gpu[device];
    return (struct site){.node = i,
                         .device = device,
                         .n_rank = 1,
                         .speed = known ? g->read_gbps : 1000,
                         .room_bytes = usable(g->free_bytes)};
}

/* The split of these shares, and the node of each rank; sites without layers have no stage. */
static void split_of(const struct sites *s, struct mu_split *split, int *node_of)
{
    memset(split, 0, sizeof *split);
    for (int i = 0; i < MU_MAX_RANKS; i++) split->device[i] = MU_ON_CPU;
    for (int i = 0; i < s->n; i++) {
        const struct site *site = &s->at[i];
        if (site->n_layer == 0) continue;
        for (int k = 0; k < site->n_rank; k++) {
            node_of[split->n_rank] = site->node;
            split->stage_of[split->n_rank] = split->n_stage;
            split->device[split->n_rank] = site->device;
            split->weight[split->n_rank++] = (double)site->n_layer / site->n_rank;
        }
        split->n_stage++;
    }
}

/* The processors of a site's node, whose memory its rank takes some of; NULL: they are not among the sites. */
static struct site *host_of(struct sites *s, const struct site *site)
{
    for (int i = 0; i < s->n; i++)
        if (s->at[i].node == site->node && s->at[i].device == MU_ON_CPU) return &s->at[i];
    return NULL;
}

/* What each site would need. */
static enum mu_status sites_measure(const struct mu_model *model, const struct mu_serving *serving, struct sites *s,
                                    struct mu_split *split, int *node_of, struct mu_err *err)
{
    struct mu_plan plan;
    struct mu_serving v = *serving;
    split_of(s, split, node_of);
    if (!v.step_tokens) v.step_tokens = mu_plan_step_tokens(split);
    enum mu_status st = mu_plan_build(model, split, &plan, err);
    if (st != MU_OK) return st;
    int rank = 0;
    for (int i = 0; i < s->n; i++) s->at[i].need_bytes = 0;
    for (int i = 0; i < s->n; i++) {
        struct site *host = host_of(s, &s->at[i]);
        for (int k = 0; s->at[i].n_layer > 0 && k < s->at[i].n_rank; k++, rank++) {
            struct mu_rank_memory m;
            mu_plan_memory(model, &plan, rank, &v, &m);
            s->at[i].need_bytes += m.weights + m.kv + m.scratch;
            if (host) host->need_bytes += m.host;
        }
    }
    return MU_OK;
}

/* Moves one layer from the site that is most over its memory to the one that it slows least among those with room for
 * it. 0: all fit; 1: moved; -1: there is nowhere to move it. */
static int layer_move(struct sites *s)
{
    int from = -1, to = -1;
    double worst = 0, least = 0;
    for (int i = 0; i < s->n; i++) {
        double over = (double)s->at[i].need_bytes - (double)s->at[i].room_bytes;
        if (s->at[i].n_layer > 0 && over > worst) {
            worst = over;
            from = i;
        }
    }
    if (from < 0) return 0;
    s->at[from].full = true;
    double layer_bytes = (double)s->at[from].need_bytes / s->at[from].n_layer; /* a little too much: scratch is in it */
    for (int i = 0; i < s->n; i++) {
        const struct site *site = &s->at[i];
        double load = (site->n_layer + 1) / site->speed + (site->last_resort ? 1e9 : 0);
        bool room = (double)site->need_bytes + layer_bytes <= (double)site->room_bytes;
        if (site->full || !room || (to >= 0 && load >= least)) continue;
        least = load;
        to = i;
    }
    if (to < 0) return -1;
    s->at[from].n_layer--;
    s->at[to].n_layer++;
    return 1;
}

static void layers_share(const struct mu_model *model, struct sites *s)
{
    double speed[MAX_SITES];
    int begin[MAX_SITES + 1], at[MAX_SITES], n = 0;
    for (int i = 0; i < s->n; i++) {
        s->at[i].n_layer = 0;
        s->at[i].full = false;
        if (s->at[i].last_resort) continue;
        at[n] = i;
        speed[n++] = s->at[i].speed;
    }
    mu_share(model->cfg.n_layer, speed, n, begin);
    for (int i = 0; i < n; i++) s->at[at[i]].n_layer = begin[i + 1] - begin[i];
}

/* Weights count layers; where there is one stage, all of it is shared: equally, which reads better as ones, or by cores. */
static void weights_of_one_stage(const struct mu_plan_node *node, struct mu_split *split)
{
    bool by_cores = split->n_rank == node->n_numa, divides = true;
    for (int i = 0; by_cores && i < split->n_rank; i++) by_cores = node->numa_core[i] > 0;
    for (int i = 0; i < split->n_rank; i++) split->weight[i] = by_cores ? node->numa_core[i] : 1;
    int unit = (int)split->weight[0];
    for (; unit > 1; unit--, divides = true) {
        for (int i = 0; divides && i < split->n_rank; i++) divides = (int)split->weight[i] % unit == 0;
        if (divides) break;
    }
    for (int i = 0; i < split->n_rank; i++) split->weight[i] /= unit;
}

/* MU_ENOMEM without words: these sites cannot hold it. */
static enum mu_status sites_plan(const struct mu_model *model, const struct mu_plan_node *node,
                                 const struct mu_serving *serving, struct sites *s, struct mu_split *split_out,
                                 int *node_of, struct mu_err *err)
{
    struct mu_split split;
    layers_share(model, s);
    for (;;) {
        enum mu_status st = sites_measure(model, serving, s, &split, node_of, err);
        if (st != MU_OK) return st;
        int moved = layer_move(s);
        if (moved < 0) return MU_ENOMEM;
        if (moved == 0) break;
    }
    if (split.n_stage == 1) weights_of_one_stage(&node[node_of[0]], &split);
    *split_out = split;
    return MU_OK;
}

/* ---- words ---- */

static struct mu_rank_memory memory_of(const struct mu_model *model, int device, const struct mu_serving *serving)
{
    struct mu_split one = {.n_stage = 1, .n_rank = 1, .weight = {1}, .device = {device}};
    struct mu_plan plan;
    struct mu_rank_memory m = {0};
    struct mu_serving v = *serving;
    if (!v.step_tokens) v.step_tokens = mu_plan_step_tokens(&one);
    if (mu_plan_build(model, &one, &plan, NULL) == MU_OK) mu_plan_memory(model, &plan, 0, &v, &m);
    return m;
}

static enum mu_status nothing_fits(const struct mu_model *model, const struct mu_plan_node *node, int n_node,
                                   const struct mu_serving *serving, struct mu_err *err)
{
    uint64_t have = 0;
    for (int i = 0; i < n_node; i++) have += node[i].memory_bytes;
    struct mu_rank_memory m = memory_of(model, MU_ON_CPU, serving);
    return mu_fail(err, MU_ENOMEM,
                   "the model does not fit: it needs %.1f GB (%.1f of weights, %.1f of cache, %.1f of scratch), but %d "
                   "node%s %.1f GB free: add memory or nodes, or use a smaller --parallel or --ctx",
                   (double)(m.weights + m.kv + m.scratch) / 1e9, (double)m.weights / 1e9, (double)m.kv / 1e9,
                   (double)m.scratch / 1e9, n_node, n_node == 1 ? " has" : "s have", (double)have / 1e9);
}

static enum mu_status gpus_too_small(const struct mu_model *model, const struct sites *gpus,
                                     const struct mu_serving *serving, struct mu_err *err)
{
    uint64_t have = 0;
    for (int i = 0; i < gpus->n; i++) have += gpus->at[i].room_bytes;
    struct mu_rank_memory m = memory_of(model, 0, serving);
    return mu_fail(
        err, MU_ENOMEM,
        "--device gpu: the model does not fit: it needs %.1f GB (%.1f of weights, %.1f of cache for %d "
        "tokens, %.1f of scratch), but %d GPU%s %.1f GB usable: use a smaller --ctx, or --device auto, which "
        "may leave layers to the processors",
        (double)(m.weights + m.kv + m.scratch) / 1e9, (double)m.weights / 1e9, (double)m.kv / 1e9,
        (int)serving->n_page * MU_PAGE_TOKENS, (double)m.scratch / 1e9, gpus->n, gpus->n == 1 ? " has" : "s have",
        (double)have / 1e9);
}

static enum mu_status no_gpu(const struct mu_plan_node *node, int n_node, struct mu_err *err)
{
    return mu_fail(err, MU_EUNSUPPORTED, "--device gpu: no GPU: %s",
                   n_node > 0 && node[0].gpus.why[0] ? node[0].gpus.why : "this machine has none");
}

/* ---- the choice ---- */

/* More room first; then faster; then in order. */
static int gpu_order(const void *pa, const void *pb)
{
    const struct site *a = pa, *b = pb;
    if (a->room_bytes != b->room_bytes) return a->room_bytes > b->room_bytes ? -1 : 1;
    if (a->speed != b->speed) return a->speed > b->speed ? -1 : 1;
    return a->node != b->node ? a->node - b->node : a->device - b->device;
}

static int place_order(const void *pa, const void *pb)
{
    const struct site *a = pa, *b = pb;
    return a->node != b->node ? a->node - b->node : a->device - b->device; /* processors are -1 */
}

struct choice {
    struct sites sites;
    struct mu_split split;
    int node_of[MU_MAX_RANKS];
    double decode_ms; /* predicted; 0: unknown */
};

static enum mu_status choose(const struct mu_model *model, const struct mu_plan_node *node,
                             const struct mu_serving *serving, struct choice *c, struct mu_err *err)
{
    struct mu_plan plan;
    struct mu_prediction p;
    qsort(c->sites.at, (size_t)c->sites.n, sizeof *c->sites.at, place_order);
    enum mu_status st = sites_plan(model, node, serving, &c->sites, &c->split, c->node_of, err);
    if (st == MU_OK) st = mu_plan_build(model, &c->split, &plan, err);
    if (st != MU_OK) return st;
    mu_plan_predict(model, &plan, node, c->node_of, NULL, &p);
    c->decode_ms = p.decode_ms;
    return MU_OK;
}

static void say_gpus(const struct choice *c, const struct mu_plan_node *node, char why[MU_PLAN_WHY])
{
    const struct site *s = &c->sites.at[0];
    const struct mu_gpus *gpus = &node[s->node].gpus;
    char name[MU_GPU_TEXT];
    mu_gpu_describe(gpus, s->device, name);
    if (c->split.n_rank == 1)
        snprintf(why, MU_PLAN_WHY, "%s holds the whole model", name);
    else
        snprintf(why, MU_PLAN_WHY, "%d GPUs hold the model together, fewer do not", c->split.n_rank);
}

static void say_mixed(const struct mu_model *model, const struct choice *mixed, const struct choice *cpu,
                      bool took_mixed, char why[MU_PLAN_WHY])
{
    int on_gpu = 0, n_gpu = 0;
    bool known = mixed->decode_ms > 0 && cpu->decode_ms > 0;
    char room[96];
    for (int i = 0; i < mixed->sites.n; i++)
        if (mixed->sites.at[i].device != MU_ON_CPU && mixed->sites.at[i].n_layer > 0) {
            on_gpu += mixed->sites.at[i].n_layer;
            n_gpu++;
        }
    snprintf(room, sizeof room, "%d GPU%s room for %d of %d layers", n_gpu, n_gpu == 1 ? " has" : "s have", on_gpu,
             model->cfg.n_layer);
    if (mixed->split.n_rank == 0)
        snprintf(why, MU_PLAN_WHY, "processors alone: the GPUs' memory does not hold a layer");
    else if (!took_mixed)
        snprintf(why, MU_PLAN_WHY, "processors alone, %.2f ms a token predicted: %s, and with them it would be %.2f ms",
                 cpu->decode_ms, room, mixed->decode_ms);
    else if (cpu->split.n_rank == 0)
        snprintf(why, MU_PLAN_WHY, "%s, the processors have the rest: their memory alone is too small", room);
    else if (known)
        snprintf(why, MU_PLAN_WHY,
                 "%s, the processors have the rest: %.2f ms a token predicted, %.2f ms on processors alone", room,
                 mixed->decode_ms, cpu->decode_ms);
    else
        snprintf(why, MU_PLAN_WHY, "%s, the processors have the rest", room);
}

/* All GPUs of all nodes, and the processors. */
static enum mu_status sites_list(const struct mu_plan_node *node, int n_node, bool want_gpus, struct sites *gpus,
                                 struct sites *cpus, struct mu_err *err)
{
    int n_rank = 0;
    gpus->n = cpus->n = 0;
    if (n_node < 1 || n_node > MU_MAX_STAGES)
        return mu_fail(err, MU_EINVAL, "a plan for %d nodes, expected 1 … %d", n_node, MU_MAX_STAGES);
    for (int i = 0; i < n_node; i++) {
        cpus->at[cpus->n++] = site_of_node(node, n_node, i);
        n_rank += cpus->at[i].n_rank;
        for (int d = 0; want_gpus && d < node[i].gpus.n && gpus->n < MAX_SITES; d++)
            if (gpus->n + n_node < MAX_SITES) gpus->at[gpus->n++] = site_of_gpu(node, n_node, i, d);
    }
    if (n_rank > MU_MAX_RANKS - gpus->n)
        return mu_fail(err, MU_EINVAL, "%d NUMA nodes and %d GPUs need as many ranks, expected at most %d", n_rank,
                       gpus->n, MU_MAX_RANKS);
    return MU_OK;
}

/* As few of the GPUs as hold it. */
static enum mu_status choose_gpus(const struct mu_model *model, const struct mu_plan_node *node,
                                  const struct mu_serving *serving, struct sites *gpus, struct choice *c,
                                  struct mu_err *err)
{
    enum mu_status st = MU_ENOMEM;
    qsort(gpus->at, (size_t)gpus->n, sizeof *gpus->at, gpu_order);
    for (int n = 1; n <= gpus->n && n <= model->cfg.n_layer && st == MU_ENOMEM; n++) {
        c->sites.n = n;
        memcpy(c->sites.at, gpus->at, (size_t)n * sizeof *gpus->at);
        st = choose(model, node, serving, c, err);
    }
    return st;
}

static enum mu_status choose_mixed(const struct mu_model *model, const struct mu_plan_node *node,
                                   const struct mu_serving *serving, const struct sites *gpus, const struct sites *cpus,
                                   struct choice *c, struct mu_err *err)
{
    c->sites = *gpus;
    for (int i = 0; i < cpus->n; i++) {
        struct site *site = &c->sites.at[c->sites.n++];
        *site = cpus->at[i];
        site->room_bytes = usable(site->room_bytes);
        site->last_resort = true;
    }
    return choose(model, node, serving, c, err);
}

enum mu_status mu_plan_auto(const struct mu_model *model, const struct mu_plan_node *node, int n_node,
                            const struct mu_serving *serving, enum mu_device_wish wish, struct mu_split *split_out,
                            char why[MU_PLAN_WHY], struct mu_err *err)
{
    struct sites gpus, cpus;
    struct choice gpu = {0}, mixed = {0}, cpu = {0};
    struct mu_serving least = *serving; /* that a GPU must have room for */
    enum mu_status st, mixed_st = MU_ENOMEM;
    why[0] = '\0';
    if (!least.n_page) least.n_page = mu_fit_pages_of(least.n_ctx);
    MU_TRY(st, sites_list(node, n_node, wish != MU_DEVICE_CPU, &gpus, &cpus, err), done);
    if (wish == MU_DEVICE_GPU && gpus.n == 0) return no_gpu(node, n_node, err);
    if (gpus.n > 0) {
        st = choose_gpus(model, node, &least, &gpus, &gpu, err);
        if (st == MU_OK) {
            say_gpus(&gpu, node, why);
            *split_out = gpu.split;
        }
        if (st != MU_ENOMEM) return st;
        if (wish == MU_DEVICE_GPU) return gpus_too_small(model, &gpus, &least, err);
        mixed_st = choose_mixed(model, node, &least, &gpus, &cpus, &mixed, err);
        if (mixed_st != MU_OK && mixed_st != MU_ENOMEM) return mixed_st;
        if (mixed_st != MU_OK || !mu_split_has_gpu(&mixed.split)) mixed.split.n_rank = 0;
    }
    cpu.sites = cpus;
    st = choose(model, node, serving, &cpu, err);
    if (st != MU_OK) cpu.split.n_rank = 0;
    if (st != MU_OK && st != MU_ENOMEM) return st;
    bool known = mixed.decode_ms > 0 && cpu.decode_ms > 0;
    bool take_mixed = mixed.split.n_rank > 0 && (st != MU_OK || !known || mixed.decode_ms < cpu.decode_ms);
    if (st != MU_OK && !take_mixed) return nothing_fits(model, node, n_node, serving, err);
    if (gpus.n > 0) say_mixed(model, &mixed, &cpu, take_mixed, why);
    *split_out = take_mixed ? mixed.split : cpu.split;
    st = MU_OK;
done:
    return st;
}
