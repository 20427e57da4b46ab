#include "worker/device_link.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"

struct word { /* on the wire, between processes of one program */
    unsigned char have, id[MU_DEVICE_LINK_ID];
};

struct group { /* ranks [first, first + n) */
    int first, n;
};

static bool inside(struct group g, int rank)
{
    return rank >= g.first && rank < g.first + g.n;
}

static bool one_machine(const struct mu_comm *comm, struct group g)
{
    for (int i = g.first + 1; comm->node_of && i < g.first + g.n; i++)
        if (comm->node_of[i] != comm->node_of[g.first]) return false;
    return true;
}

/* By the first rank of the group, which looks at all its GPUs: they are on its machine. */
static bool id_make(const struct mu_plan *plan, struct group g, const struct mu_device_ops *ops, unsigned char *id)
{
    struct mu_err err = MU_ERR_INIT;
    const char *wanted = getenv("MUSTER_GPU_LINK");
    if (!ops || (wanted && strcmp(wanted, "0") == 0)) return false;
    for (int i = g.first; i < g.first + g.n; i++) {
        struct mu_device_info info;
        if (ops->info(plan->split.device[i], &info, &err) != MU_OK || !info.has_link) return false;
    }
    if (ops->link_id(id, &err) == MU_OK) return true;
    mu_warn("gpu", "GPUs of ranks %d to %d talk through the host: %s", g.first, g.first + g.n - 1, err.text);
    return false;
}

/* The group's word, on every rank of the gang. */
static enum mu_status group_agree(struct mu_comm *comm, const struct mu_plan *plan, int rank,
                                  const struct mu_device_ops *ops, struct group g, struct word *word_out,
                                  struct mu_err *err)
{
    *word_out = (struct word){0};
    if (rank == g.first) word_out->have = id_make(plan, g, ops ? ops : mu_device_load(NULL), word_out->id);
    return mu_comm_broadcast(comm, g.first, word_out, sizeof *word_out, err);
}

static void keep(struct mu_device_link_ids *ids, enum mu_shard_device_link which, const struct word *word)
{
    ids->have[which] = word->have;
    memcpy(ids->id[which], word->id, sizeof word->id);
}

enum mu_status mu_device_link_agree(struct mu_comm *comm, const struct mu_plan *plan, int rank,
                                    const struct mu_device_ops *ops, struct mu_device_link_ids *ids_out,
                                    struct mu_err *err)
{
    int mine = plan->rank[rank].stage;
    memset(ids_out, 0, sizeof *ids_out);
    for (int s = 0; s < plan->n_stage; s++) {
        const struct mu_plan_stage *st = &plan->stage[s];
        const struct group stage = {st->first_rank, st->n_rank};
        struct word word;
        if (st->n_rank > 1 && mu_plan_own_gpus(plan, stage.first, stage.n, stage.first, stage.n)) {
            enum mu_status status = group_agree(comm, plan, rank, ops, stage, &word, err);
            if (status != MU_OK) return status;
            if (inside(stage, rank)) keep(ids_out, MU_LINK_STAGE, &word);
        }
        if (s + 1 == plan->n_stage) break;
        const struct group both = {st->first_rank, st->n_rank + st[1].n_rank};
        if (mu_plan_own_gpus(plan, both.first, both.n, 0, plan->n_rank) && one_machine(comm, both)) {
            enum mu_status status = group_agree(comm, plan, rank, ops, both, &word, err);
            if (status != MU_OK) return status;
            if (inside(both, rank)) keep(ids_out, mine == s ? MU_LINK_AFTER : MU_LINK_BEFORE, &word);
        }
    }
    return MU_OK;
}

void mu_device_link_use(const struct mu_device_link_ids *ids, struct mu_shard_options *opt)
{
    for (int i = 0; i < MU_SHARD_LINKS; i++) opt->device_link[i] = ids->have[i] ? ids->id[i] : NULL;
}
