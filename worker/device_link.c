#include "worker/device_link.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"

struct word { /* on the wire, between processes of one program */
    unsigned char have, id[MU_DEVICE_LINK_ID];
};

static bool stage_could(const struct mu_plan *plan, const struct mu_plan_stage *st)
{
    const int *device = plan->split.device + st->first_rank;
    for (int i = 0; i < st->n_rank; i++) {
        if (device[i] == MU_ON_CPU) return false;
        for (int k = 0; k < i; k++)
            if (device[k] == device[i]) return false;
    }
    return st->n_rank > 1;
}

/* By the first rank of the stage, which looks at all its GPUs: they are on its machine. */
static bool id_make(const struct mu_plan *plan, const struct mu_plan_stage *st, const struct mu_device_ops *ops,
                    unsigned char *id)
{
    struct mu_err err = MU_ERR_INIT;
    const char *wanted = getenv("MUSTER_GPU_LINK");
    if (!ops || (wanted && strcmp(wanted, "0") == 0)) return false;
    for (int i = 0; i < st->n_rank; i++) {
        struct mu_device_info info;
        if (ops->info(plan->split.device[st->first_rank + i], &info, &err) != MU_OK || !info.has_link) return false;
    }
    if (ops->link_id(id, &err) == MU_OK) return true;
    mu_warn("gpu", "GPUs of a stage exchange through the host: %s", err.text);
    return false;
}

enum mu_status mu_device_link_agree(struct mu_comm *comm, const struct mu_plan *plan, int rank,
                                    const struct mu_device_ops *ops, unsigned char id_out[MU_DEVICE_LINK_ID],
                                    bool *have_out, struct mu_err *err)
{
    *have_out = false;
    for (int s = 0; s < plan->n_stage; s++) {
        const struct mu_plan_stage *st = &plan->stage[s];
        struct word word = {0};
        if (!stage_could(plan, st)) continue;
        if (rank == st->first_rank) word.have = id_make(plan, st, ops ? ops : mu_device_load(NULL), word.id);
        enum mu_status status = mu_comm_broadcast(comm, st->first_rank, &word, sizeof word, err);
        if (status != MU_OK) return status;
        if (plan->rank[rank].stage != s || !word.have) continue;
        memcpy(id_out, word.id, sizeof word.id);
        *have_out = true;
    }
    return MU_OK;
}
