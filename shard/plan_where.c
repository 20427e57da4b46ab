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

enum mu_status mu_plan_where(const struct mu_model *model, const struct mu_plan_node *node, const char *text,
                             enum mu_device_wish wish, const struct mu_serving *serving, struct mu_split *split_out,
                             char why[MU_PLAN_WHY], struct mu_err *err)
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
        return mu_plan_auto(model, node, 1, serving, wish, split_out, why, err);
    if (wish == MU_DEVICE_GPU) return mu_fail(err, cannot.code, "--device gpu: %s", cannot.text);
    plain = *node;
    plain.gpus.n = 0;
    st = mu_plan_auto(model, &plain, 1, serving, MU_DEVICE_CPU, split_out, why, err);
    if (st == MU_OK) snprintf(why, MU_PLAN_WHY, "processors alone: %.*s", MU_PLAN_WHY - 32, cannot.text);
done:
    return st;
}

/* ---- threads ---- */

int mu_plan_threads(const struct mu_split *split, int rank, int n_thread)
{
    return split->device[rank] != MU_ON_CPU && n_thread > GPU_THREADS ? GPU_THREADS : n_thread;
}

int mu_plan_threads_sum(const struct mu_split *split, int n_thread)
{
    int n = 0;
    for (int i = 0; i < split->n_rank; i++) n += mu_plan_threads(split, i, n_thread);
    return n;
}

int mu_plan_threads_share(const struct mu_split *split, int n_usable)
{
    int n = n_usable;
    while (n > 1 && mu_plan_threads_sum(split, n) > n_usable) n--;
    return n > 1 ? n : 1;
}

int mu_plan_first_core(const struct mu_split *split, int rank, int n_thread)
{
    int n = 0;
    if (split->device[rank] != MU_ON_CPU) return -1;
    for (int i = 0; i < rank; i++) n += split->device[i] == MU_ON_CPU;
    return n * n_thread;
}
