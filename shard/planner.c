/* The planner: stages for processors and GPUs.
 *
 * A site is what can carry a stage: a node's processors (a rank a NUMA node), or one of its GPUs (a rank). Given some
 * sites, layers are shared out by speed, then moved one at a time from the site that is most over its memory to the one
 * that they slow least; a site that has given up a layer takes none back, so this ends. Whole numbers of layers become
 * the split's weights.
 *
 * The GPUs with most room, as few as hold all, are taken where there are such. Where there are not, three things are
 * possible, and the fastest is taken, for a request of usual size:
 *
 *   streamed   all GPUs, each leaving as many of its layers as it must in the host's memory (plan.h)
 *   mixed      all GPUs with processors behind nobody: those begin with no layer and get what the GPUs give up. They
 *              stand before the GPUs of their node, so that the output matrix, as large as several layers, and the
 *              leader are on a GPU
 *   alone      processors */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shard/plan.h"
#include "shard/plan_fit.h"
#include "shard/plan_predict.h"

enum { MAX_SITES = MU_MAX_STAGES };

/* What the choice is made for: tokens of the prompt, and new ones. */
enum { REQUEST_PROMPT = 512, REQUEST_NEW = 128 };

struct site {
    int node, device, n_rank;
    double speed;
    uint64_t room_bytes;
    bool last_resort; /* begins with no layer */
    int n_layer, n_streamed;
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
                         .room_bytes = usable(node[i].memory_bytes)};
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
            split->streamed[split->n_rank] = site->n_streamed;
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
static enum mu_status sites_measure(const struct mu_model *model, const struct mu_adapters *adapters,
                                    const struct mu_serving *serving, struct sites *s, struct mu_split *split,
                                    int *node_of, struct mu_err *err)
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
            if (k > 0) m.weights -= m.mapped; /* several are on processors */
            s->at[i].need_bytes += m.weights + mu_plan_adapter_bytes(model, &plan, rank, adapters) + m.kv + m.scratch;
            if (host) host->need_bytes += m.host;
        }
    }
    return MU_OK;
}

/* The site that is most over its memory; NULL: all fit. */
static struct site *worst_of(struct sites *s)
{
    struct site *worst = NULL;
    double most = 0;
    for (int i = 0; i < s->n; i++) {
        double over = (double)s->at[i].need_bytes - (double)s->at[i].room_bytes;
        if (s->at[i].n_layer == 0 || over <= most) continue;
        most = over;
        worst = &s->at[i];
    }
    return worst;
}

/* Moves one of its layers to the site that it slows least among those with room for it; false: there is none. */
static bool layer_move(struct sites *s, struct site *from)
{
    struct site *to = NULL;
    double least = 0;
    from->full = true;
    double layer_bytes = (double)from->need_bytes / from->n_layer; /* a little too much: scratch is in it */
    for (int i = 0; i < s->n; i++) {
        struct site *site = &s->at[i];
        double load = (site->n_layer + 1) / site->speed + (site->last_resort ? 1e9 : 0);
        bool room = (double)site->need_bytes + layer_bytes <= (double)site->room_bytes;
        if (site->full || !room || (to && load >= least)) continue;
        least = load;
        to = site;
    }
    if (!to) return false;
    from->n_layer--;
    to->n_layer++;
    return true;
}

/* One more of its layers is streamed; false: all of them are. */
static bool layer_stream(struct site *site)
{
    site->n_streamed = site->n_streamed > 0 ? site->n_streamed + 1 : MU_STREAM_ROOMS + 1;
    return site->n_streamed <= site->n_layer;
}

static void layers_share(const struct mu_model *model, struct sites *s)
{
    double speed[MAX_SITES];
    int begin[MAX_SITES + 1], at[MAX_SITES], n = 0;
    for (int i = 0; i < s->n; i++) {
        s->at[i].n_layer = s->at[i].n_streamed = 0;
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

/* stream: where there is nowhere to move a layer, sites may stream some. MU_ENOMEM without words: these sites cannot hold
 * it. */
static enum mu_status sites_plan(const struct mu_model *model, const struct mu_adapters *adapters,
                                 const struct mu_plan_node *node, const struct mu_serving *serving, bool stream,
                                 struct sites *s, struct mu_split *split_out, int *node_of, struct mu_err *err)
{
    struct mu_split split;
    bool moving = true;
    layers_share(model, s);
    for (;;) {
        enum mu_status st = sites_measure(model, adapters, serving, s, &split, node_of, err);
        struct site *worst = worst_of(s);
        if (st != MU_OK) return st;
        if (!worst) break;
        moving = moving && layer_move(s, worst);
        if (!moving && (!stream || !layer_stream(worst))) return MU_ENOMEM;
    }
    if (split.n_stage == 1) weights_of_one_stage(&node[node_of[0]], &split);
    *split_out = split;
    return MU_OK;
}

/* ---- words ---- */

/* On one rank; adapters count as weights. */
static struct mu_rank_memory memory_of(const struct mu_model *model, const struct mu_adapters *adapters, int device,
                                       const struct mu_serving *serving)
{
    struct mu_split one = {.n_stage = 1, .n_rank = 1, .weight = {1}, .device = {device}};
    struct mu_plan plan;
    struct mu_rank_memory m = {0};
    struct mu_serving v = *serving;
    if (!v.step_tokens) v.step_tokens = mu_plan_step_tokens(&one);
    if (mu_plan_build(model, &one, &plan, NULL) != MU_OK) return m;
    mu_plan_memory(model, &plan, 0, &v, &m);
    m.weights += mu_plan_adapter_bytes(model, &plan, 0, adapters);
    return m;
}

static enum mu_status nothing_fits(const struct mu_model *model, const struct mu_adapters *adapters,
                                   const struct mu_plan_node *node, int n_node, const struct mu_serving *serving,
                                   struct mu_err *err)
{
    uint64_t have = 0;
    for (int i = 0; i < n_node; i++) have += usable(node[i].memory_bytes);
    struct mu_rank_memory m = memory_of(model, adapters, MU_ON_CPU, serving);
    return mu_fail(err, MU_ENOMEM,
                   "the model does not fit: it needs %.1f GB (%.1f of weights, %.1f of cache, %.1f of scratch), but %d "
                   "node%s %.1f GB usable: add memory or nodes, or use a smaller --parallel or --ctx",
                   (double)(m.weights + m.kv + m.scratch) / 1e9, (double)m.weights / 1e9, (double)m.kv / 1e9,
                   (double)m.scratch / 1e9, n_node, n_node == 1 ? " has" : "s have", (double)have / 1e9);
}

static enum mu_status gpus_too_small(const struct mu_model *model, const struct mu_adapters *adapters,
                                     const struct sites *gpus, const struct mu_serving *serving, struct mu_err *err)
{
    uint64_t have = 0;
    for (int i = 0; i < gpus->n; i++) have += gpus->at[i].room_bytes;
    struct mu_rank_memory m = memory_of(model, adapters, 0, serving);
    return mu_fail(err, MU_ENOMEM,
                   "--device gpu: the model does not fit: it needs %.1f GB (%.1f of weights, %.1f of cache for %d "
                   "tokens, %.1f of scratch), but %d GPU%s %.1f GB usable, and with layers streamed "
                   "from this machine's own memory it does not either: use a smaller --ctx, or --device auto, which "
                   "may leave layers to the processors",
                   (double)(m.weights + m.kv + m.scratch) / 1e9, (double)m.weights / 1e9, (double)m.kv / 1e9,
                   (int)serving->n_page * MU_PAGE_TOKENS, (double)m.scratch / 1e9, gpus->n,
                   gpus->n == 1 ? " has" : "s have", (double)have / 1e9);
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
    double request_s; /* predicted; 0: unknown */
};

/* Whether the hosts have room for what ranks on GPUs leave there. */
static bool hosts_hold(const struct mu_model *model, const struct mu_plan_node *node, const struct mu_serving *serving,
                       const struct mu_plan *plan, const int *node_of)
{
    uint64_t room[MAX_SITES];
    struct mu_serving v = *serving;
    if (!v.step_tokens) v.step_tokens = mu_plan_step_tokens(&plan->split);
    for (int i = 0; i < plan->n_rank; i++) room[node_of[i]] = usable(node[node_of[i]].memory_bytes);
    for (int i = 0; i < plan->n_rank; i++) {
        struct mu_rank_memory m;
        mu_plan_memory(model, plan, i, &v, &m);
        if (m.streamed > room[node_of[i]] || m.host > room[node_of[i]] - m.streamed) return false;
        room[node_of[i]] -= m.streamed + m.host;
    }
    return true;
}

static enum mu_status choose(const struct mu_model *model, const struct mu_adapters *adapters,
                             const struct mu_plan_node *node, const struct mu_serving *serving, bool stream,
                             struct choice *c, struct mu_err *err)
{
    struct mu_plan plan;
    struct mu_prediction p;
    qsort(c->sites.at, (size_t)c->sites.n, sizeof *c->sites.at, place_order);
    enum mu_status st = sites_plan(model, adapters, node, serving, stream, &c->sites, &c->split, c->node_of, err);
    if (st == MU_OK) st = mu_plan_build(model, &c->split, &plan, err);
    if (st == MU_OK && stream && !hosts_hold(model, node, serving, &plan, c->node_of)) st = MU_ENOMEM;
    if (st != MU_OK) return st;
    mu_plan_predict(model, &plan, node, c->node_of, NULL, &p);
    c->request_s = (REQUEST_PROMPT * p.prefill_ms_per_token + REQUEST_NEW * p.decode_ms) / 1e3;
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

/* "%s: a request of 512 tokens and 128 new ones takes 1.2 s by prediction, 3.4 s with …, 5.6 s …": what was taken, then what
 * else was possible; without figures where they are not known. */
static void say_choice(const struct choice *taken, const struct choice *const other[], const char *const how[], int n,
                       char why[MU_PLAN_WHY])
{
    char rest[MU_PLAN_WHY] = "";
    size_t len = 0;
    for (int i = 0; i < n; i++)
        if (other[i] != taken && other[i]->split.n_rank > 0 && other[i]->request_s > 0 && len < sizeof rest)
            len += (size_t)snprintf(rest + len, sizeof rest - len, ", %.3g s %s", other[i]->request_s, how[i]);
    len = strlen(why);
    if (taken->request_s > 0 && rest[0])
        snprintf(why + len, MU_PLAN_WHY - len, ": a request of %d tokens and %d new ones takes %.3g s by prediction%s",
                 REQUEST_PROMPT, REQUEST_NEW, taken->request_s, rest);
}

/* Which of the three, where the GPUs do not hold the model. */
static void say_small(const struct mu_model *model, const struct choice *streamed, const struct choice *mixed,
                      const struct choice *cpu, const struct choice *taken, char why[MU_PLAN_WHY])
{
    const struct choice *const all[] = {streamed, mixed, cpu};
    static const char *const how[] = {"with layers streamed", "with layers on the processors", "on processors alone"};
    const struct choice *gpus = mixed->split.n_rank > 0 ? mixed : streamed;
    int on_gpu = 0, n_gpu = 0, n_streamed = 0;
    char room[96];
    for (int i = 0; i < gpus->sites.n; i++)
        if (gpus->sites.at[i].device != MU_ON_CPU && gpus->sites.at[i].n_layer > 0) {
            on_gpu += gpus->sites.at[i].n_layer - gpus->sites.at[i].n_streamed;
            n_gpu++;
        }
    for (int i = 0; i < streamed->split.n_rank; i++) n_streamed += streamed->split.streamed[i];
    snprintf(room, sizeof room, "%d GPU%s room for %d of %d layers", n_gpu, n_gpu == 1 ? " has" : "s have", on_gpu,
             model->cfg.n_layer);
    if (gpus->split.n_rank == 0)
        snprintf(why, MU_PLAN_WHY, "processors alone: the GPUs' memory does not hold a layer");
    else if (taken == streamed)
        snprintf(why, MU_PLAN_WHY, "%s, %d layers are streamed from the host's memory", room, n_streamed);
    else if (taken == mixed)
        snprintf(why, MU_PLAN_WHY, "%s, the processors have the rest%s", room,
                 cpu->split.n_rank == 0 ? " (their memory alone is too small)" : "");
    else
        snprintf(why, MU_PLAN_WHY, "processors alone, though %s", room);
    say_choice(taken, all, how, 3, why);
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
static enum mu_status choose_gpus(const struct mu_model *model, const struct mu_adapters *adapters,
                                  const struct mu_plan_node *node, const struct mu_serving *serving, struct sites *gpus,
                                  struct choice *c, struct mu_err *err)
{
    enum mu_status st = MU_ENOMEM;
    qsort(gpus->at, (size_t)gpus->n, sizeof *gpus->at, gpu_order);
    for (int n = 1; n <= gpus->n && n <= model->cfg.n_layer && st == MU_ENOMEM; n++) {
        c->sites.n = n;
        memcpy(c->sites.at, gpus->at, (size_t)n * sizeof *gpus->at);
        st = choose(model, adapters, node, serving, false, c, err);
    }
    return st;
}

static enum mu_status choose_mixed(const struct mu_model *model, const struct mu_adapters *adapters,
                                   const struct mu_plan_node *node, const struct mu_serving *serving,
                                   const struct sites *gpus, const struct sites *cpus, struct choice *c,
                                   struct mu_err *err)
{
    c->sites = *gpus;
    for (int i = 0; i < cpus->n; i++) {
        struct site *site = &c->sites.at[c->sites.n++];
        *site = cpus->at[i];
        site->last_resort = true;
    }
    return choose(model, adapters, node, serving, false, c, err);
}

/* All GPUs, with layers in the host's memory. */
static enum mu_status choose_streamed(const struct mu_model *model, const struct mu_adapters *adapters,
                                      const struct mu_plan_node *node, const struct mu_serving *serving,
                                      const struct sites *gpus, struct choice *c, struct mu_err *err)
{
    c->sites = *gpus;
    if (c->sites.n > model->cfg.n_layer) c->sites.n = model->cfg.n_layer; /* those with most room come first */
    return choose(model, adapters, node, serving, true, c, err);
}

/* Too little memory is no failure yet: then the choice has no ranks. */
static enum mu_status possible(enum mu_status st, struct choice *c)
{
    if (st != MU_OK) c->split.n_rank = 0;
    return st == MU_ENOMEM ? MU_OK : st;
}

static bool is_faster(const struct choice *a, const struct choice *b)
{
    bool known = a->request_s > 0 && b->request_s > 0;
    return a->split.n_rank > 0 && (b->split.n_rank == 0 || (known && a->request_s < b->request_s));
}

enum mu_status mu_plan_auto(const struct mu_model *model, const struct mu_adapters *adapters,
                            const struct mu_plan_node *node, int n_node, const struct mu_serving *serving,
                            enum mu_device_wish wish, struct mu_split *split_out, char why[MU_PLAN_WHY],
                            struct mu_err *err)
{
    struct sites gpus, cpus;
    struct choice gpu = {0}, streamed = {0}, mixed = {0}, cpu = {0}, *taken = &mixed;
    struct mu_serving want = *serving; /* with the adapters' part of scratch */
    struct mu_serving least;           /* that a GPU must have room for */
    enum mu_status st;
    why[0] = '\0';
    want.n_adapter = adapters ? adapters->n : 0;
    want.lora_rank = adapters ? adapters->max_rank : 0;
    least = want;
    if (!least.n_page) least.n_page = mu_fit_pages_of(least.n_ctx);
    MU_TRY(st, sites_list(node, n_node, wish != MU_DEVICE_CPU, &gpus, &cpus, err), done);
    if (wish == MU_DEVICE_GPU && gpus.n == 0) return no_gpu(node, n_node, err);
    if (gpus.n > 0) {
        st = choose_gpus(model, adapters, node, &least, &gpus, &gpu, err);
        if (st == MU_OK) {
            say_gpus(&gpu, node, why);
            *split_out = gpu.split;
        }
        if (st != MU_ENOMEM) return st;
        MU_TRY(st, possible(choose_streamed(model, adapters, node, &least, &gpus, &streamed, err), &streamed), done);
        if (wish != MU_DEVICE_GPU)
            MU_TRY(st, possible(choose_mixed(model, adapters, node, &least, &gpus, &cpus, &mixed, err), &mixed), done);
        if (!mu_split_has_gpu(&mixed.split)) mixed.split.n_rank = 0;
    }
    if (wish != MU_DEVICE_GPU) {
        cpu.sites = cpus;
        MU_TRY(st, possible(choose(model, adapters, node, gpus.n > 0 ? &least : &want, false, &cpu, err), &cpu), done);
    }
    if (is_faster(&streamed, taken)) taken = &streamed;
    if (is_faster(&cpu, taken)) taken = &cpu;
    bool short_of_all = taken->split.n_rank == 0 && gpus.n > 0 && wish != MU_DEVICE_GPU;
    if (short_of_all) { /* the processors' memory is the one that a shorter context is settled for */
        taken = &cpu;
        cpu.sites = cpus;
        MU_TRY(st, possible(choose(model, adapters, node, &want, false, &cpu, err), &cpu), done);
    }
    if (taken->split.n_rank == 0 && wish == MU_DEVICE_GPU) return gpus_too_small(model, adapters, &gpus, &least, err);
    if (taken->split.n_rank == 0) return nothing_fits(model, adapters, node, n_node, &want, err);
    if (short_of_all)
        snprintf(why, MU_PLAN_WHY, "processors alone: no place here holds a sequence of %d tokens", serving->n_ctx);
    else if (gpus.n > 0)
        say_small(model, &streamed, &mixed, &cpu, taken, why);
    *split_out = taken->split;
    st = MU_OK;
done:
    return st;
}
