#include "shard/plan_where.h"

#include <stdio.h>
#include <string.h>

enum { GPU_THREADS = 4 };

int mu_device_wish_by_name(const char *name)
{
    static const char *const names[] = {[MU_DEVICE_AUTO] = "auto", [MU_DEVICE_CPU] = "cpu", [MU_DEVICE_GPU] = "gpu"};
    for (int i = 0; i < (int)(sizeof names / sizeof *names); i++)
        if (strcmp(name, names[i]) == 0) return i;
    return -1;
}

static bool is_auto(const char *text)
{
    return strcmp(text, "auto") == 0;
}

bool mu_plan_where_looks(const char *text, enum mu_device_wish wish)
{
    struct mu_split split;
    if (is_auto(text)) return wish != MU_DEVICE_CPU;
    return mu_split_parse(text, &split, NULL) == MU_OK && mu_split_has_gpu(&split);
}

enum mu_status mu_plan_where_check(const struct mu_model *model, const struct mu_plan_node *node,
                                   const struct mu_split *split, struct mu_err *err)
{
    const struct mu_gpus *gpus = &node->gpus;
    for (int i = 0; i < split->n_rank; i++) {
        int device = split->device[i];
        if (device < gpus->n) continue;
        if (gpus->n == 0)
            return mu_fail(err, MU_EUNSUPPORTED, "the split puts rank %d on GPU %d: no GPU: %s", i, device,
                           gpus->why[0] ? gpus->why : "this machine has none");
        return mu_fail(err, MU_EUNSUPPORTED, "the split puts rank %d on GPU %d, but this machine has %d (from 0 on)", i,
                       device, gpus->n);
    }
    return mu_split_has_gpu(split) ? mu_gpus_can(model, err) : MU_OK;
}

static enum mu_status wish_check(const struct mu_split *split, enum mu_device_wish wish, struct mu_err *err)
{
    if (wish == MU_DEVICE_CPU && mu_split_has_gpu(split))
        return mu_fail(err, MU_EINVAL, "--device cpu, but the split names a GPU: leave one of the two out");
    if (wish == MU_DEVICE_GPU && mu_split_cpu_ranks(split) > 0)
        return mu_fail(
            err, MU_EINVAL,
            "--device gpu, but the split has ranks on processors: give each an '@gpu', or leave --device out");
    return MU_OK;
}

enum mu_status mu_plan_where_text(const char *text, enum mu_device_wish wish, struct mu_err *err)
{
    struct mu_split split;
    if (is_auto(text)) return MU_OK;
    enum mu_status st = mu_split_parse(text, &split, err);
    return st == MU_OK ? wish_check(&split, wish, err) : st;
}

enum mu_status mu_plan_where(const struct mu_model *model, const struct mu_adapters *adapters,
                             const struct mu_plan_node *node, const char *text, enum mu_device_wish wish,
                             const struct mu_serving *serving, struct mu_split *split_out, char why[MU_PLAN_WHY],
                             struct mu_err *err)
{
    enum mu_status st;
    struct mu_split split;
    struct mu_plan_node plain;
    struct mu_err cannot = MU_ERR_INIT;
    why[0] = '\0';
    if (!is_auto(text)) {
        MU_TRY(st, mu_split_parse(text, &split, err), done);
        MU_TRY(st, wish_check(&split, wish, err), done);
        MU_TRY(st, mu_plan_where_check(model, node, &split, err), done);
        *split_out = split;
        return MU_OK;
    }
    if (wish == MU_DEVICE_CPU || node->gpus.n == 0 || mu_gpus_can(model, &cannot) == MU_OK)
        return mu_plan_auto(model, adapters, node, 1, serving, wish, split_out, why, err);
    if (wish == MU_DEVICE_GPU) return mu_fail(err, cannot.code, "--device gpu: %s", cannot.text);
    plain = *node;
    plain.gpus.n = 0;
    st = mu_plan_auto(model, adapters, &plain, 1, serving, MU_DEVICE_CPU, split_out, why, err);
    if (st == MU_OK) snprintf(why, MU_PLAN_WHY, "processors alone: %.*s", MU_PLAN_WHY - 32, cannot.text);
done:
    return st;
}

void mu_plan_where_rank(const struct mu_gpus *gpus, const struct mu_split *split, int rank, char text[MU_GPU_TEXT])
{
    int n = split->streamed[rank];
    if (split->device[rank] == MU_ON_CPU) {
        snprintf(text, MU_GPU_TEXT, "processors");
        return;
    }
    mu_gpu_describe(gpus, split->device[rank], text);
    size_t len = strlen(text);
    if (n > 0) snprintf(text + len, MU_GPU_TEXT - len, ", %d layer%s streamed", n, n == 1 ? "" : "s");
}

/* ---- threads ---- */

void mu_plan_node_of(const struct mu_topo *topo, struct mu_plan_node *node_out)
{
    int share[MU_TOPO_MAX_NUMA];
    *node_out = (struct mu_plan_node){.n_core = topo->n_usable, .memory_bytes = topo->mem_available_bytes};
    snprintf(node_out->name, sizeof node_out->name, "%s", topo->host);
    mu_place_shares(topo, share);
    node_out->n_numa = topo->n_numa <= MU_PLAN_MAX_NUMA ? topo->n_numa : 1;
    for (int i = 0; i < node_out->n_numa; i++) {
        node_out->numa_core[i] = share[i];
        if (share[i] < 1) node_out->n_numa = 1;
    }
}

/* Only of this rank's GPU the node is known; those of other ranks change nothing for it. */
static void wishes_of(const struct mu_split *split, int rank, int near, struct mu_place_wish wish[MU_MAX_RANKS])
{
    for (int i = 0; i < split->n_rank; i++)
        wish[i] = (struct mu_place_wish){.on_gpu = split->device[i] != MU_ON_CPU, .near = i == rank ? near : -1};
}

int mu_plan_threads(const struct mu_topo *topo, const struct mu_split *split)
{
    struct mu_place_wish wish[MU_MAX_RANKS];
    wishes_of(split, -1, -1, wish);
    return mu_place_threads(topo, wish, split->n_rank);
}

void mu_plan_place(const struct mu_topo *topo, const struct mu_split *split, int near, int n_thread, int rank,
                   struct mu_place *place_out)
{
    struct mu_place_wish wish[MU_MAX_RANKS];
    wishes_of(split, rank, near, wish);
    mu_place_rank(topo, wish, split->n_rank, n_thread, n_thread < GPU_THREADS ? n_thread : GPU_THREADS, rank,
                  place_out);
}
