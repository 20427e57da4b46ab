/* The planner's first version: stages for nodes, and what to expect of them.
 *
 * Layers are shared out by speed, then moved one at a time from the node that is most over its memory to the one that
 * they slow least;
 * a node that has given up a layer takes none back, so this ends. Whole numbers of layers become the split's
 * weights. */
#include <stdio.h>
#include <string.h>

#include "shard/plan.h"

struct share { /* one node's part of the model */
    int n_layer, n_rank;
    bool full; /* gave up a layer */
    uint64_t need_bytes;
};

static int node_ranks(const struct mu_plan_node *n)
{
    return n->n_numa > 1 ? n->n_numa : 1;
}

static double node_speed(const struct mu_plan_node *node, int n_node, int i)
{
    for (int k = 0; k < n_node; k++)
        if (!(node[k].read_gbps > 0)) return node[i].n_core > 0 ? node[i].n_core : 1; /* figures for all or for none */
    return node[i].read_gbps;
}

/* The split of these shares; nodes without layers have no stage. */
static void split_of(const struct share *share, int n_node, struct mu_split *split)
{
    memset(split, 0, sizeof *split);
    for (int i = 0; i < n_node; i++) {
        if (share[i].n_layer == 0) continue;
        for (int k = 0; k < share[i].n_rank; k++) {
            split->stage_of[split->n_rank] = split->n_stage;
            split->device[split->n_rank] = MU_ON_CPU;
            split->weight[split->n_rank++] = (double)share[i].n_layer / share[i].n_rank;
        }
        split->n_stage++;
    }
}

/* What each node would need. */
static enum mu_status shares_measure(const struct mu_model *model, const struct mu_serving *serving,
                                     struct share *share, int n_node, struct mu_split *split, struct mu_err *err)
{
    struct mu_plan plan;
    split_of(share, n_node, split);
    enum mu_status st = mu_plan_build(model, split, &plan, err);
    if (st != MU_OK) return st;
    int rank = 0;
    for (int i = 0; i < n_node; i++) {
        share[i].need_bytes = 0;
        for (int k = 0; share[i].n_layer > 0 && k < share[i].n_rank; k++, rank++) {
            struct mu_rank_memory m;
            mu_plan_memory(model, &plan, rank, serving, &m);
            share[i].need_bytes += m.weights + m.kv + m.scratch;
        }
    }
    return MU_OK;
}

/* Moves one layer from the node that is most over its memory to the one that it slows least among those with room for
 * it. 0: all fit;
 * 1: moved; -1: there is nowhere to move it. */
static int layer_move(const struct mu_plan_node *node, const double *speed, struct share *share, int n_node)
{
    int from = -1, to = -1;
    double worst = 0, least = 0;
    for (int i = 0; i < n_node; i++) {
        double over = (double)share[i].need_bytes - (double)node[i].memory_bytes;
        if (share[i].n_layer > 0 && over > worst) {
            worst = over;
            from = i;
        }
    }
    if (from < 0) return 0;
    share[from].full = true;
    double layer_bytes = (double)share[from].need_bytes / share[from].n_layer; /* a little too much: scratch is in it */
    for (int i = 0; i < n_node; i++) {
        double load = (share[i].n_layer + 1) / speed[i];
        bool room = (double)share[i].need_bytes + layer_bytes <= (double)node[i].memory_bytes;
        if (share[i].full || !room || (to >= 0 && load >= least)) continue;
        least = load;
        to = i;
    }
    if (to < 0) return -1;
    share[from].n_layer--;
    share[to].n_layer++;
    return 1;
}

static enum mu_status nothing_fits(const struct mu_model *model, const struct mu_plan_node *node, int n_node,
                                   const struct mu_serving *serving, struct mu_err *err)
{
    uint64_t have = 0;
    for (int i = 0; i < n_node; i++) have += node[i].memory_bytes;
    struct mu_split one = {.n_stage = 1, .n_rank = 1, .weight = {1}, .device = {MU_ON_CPU}};
    struct mu_plan plan;
    struct mu_rank_memory m = {0};
    if (mu_plan_build(model, &one, &plan, NULL) == MU_OK) mu_plan_memory(model, &plan, 0, serving, &m);
    return mu_fail(err, MU_ENOMEM,
                   "the model does not fit: it needs %.1f GB (%.1f of weights, %.1f of cache, %.1f of scratch), but %d "
                   "node%s %.1f GB free: add memory or nodes, or use a smaller --parallel or --ctx",
                   (double)(m.weights + m.kv + m.scratch) / 1e9, (double)m.weights / 1e9, (double)m.kv / 1e9,
                   (double)m.scratch / 1e9, n_node, n_node == 1 ? " has" : "s have", (double)have / 1e9);
}

enum mu_status mu_plan_auto(const struct mu_model *model, const struct mu_plan_node *node, int n_node,
                            const struct mu_serving *serving, struct mu_split *split_out, struct mu_err *err)
{
    struct share share[MU_MAX_STAGES];
    double speed[MU_MAX_STAGES];
    int begin[MU_MAX_STAGES + 1], n_rank = 0;
    struct mu_split split;
    memset(share, 0, sizeof share);
    if (n_node < 1 || n_node > MU_MAX_STAGES)
        return mu_fail(err, MU_EINVAL, "a plan for %d nodes, expected 1 … %d", n_node, MU_MAX_STAGES);
    for (int i = 0; i < n_node; i++) {
        share[i].n_rank = node_ranks(&node[i]);
        n_rank += share[i].n_rank;
        speed[i] = node_speed(node, n_node, i);
    }
    if (n_rank > MU_MAX_RANKS)
        return mu_fail(err, MU_EINVAL, "%d NUMA nodes need as many ranks, expected at most %d", n_rank, MU_MAX_RANKS);
    mu_share(model->cfg.n_layer, speed, n_node, begin);
    for (int i = 0; i < n_node; i++) share[i].n_layer = begin[i + 1] - begin[i];
    for (;;) {
        enum mu_status st = shares_measure(model, serving, share, n_node, &split, err);
        if (st != MU_OK) return st;
        int moved = layer_move(node, speed, share, n_node);
        if (moved < 0) return nothing_fits(model, node, n_node, serving, err);
        if (moved == 0) break;
    }
    /* Weights count layers; where there is one stage, all of it is shared equally, which reads better as ones. */
    for (int i = 0; n_node == 1 && i < split.n_rank; i++) split.weight[i] = 1;
    *split_out = split;
    return MU_OK;
}

/* ---- prediction ---- */

static const double LOCAL_US = 5, LOCAL_GBPS = 10, REMOTE_US = 100, REMOTE_GBPS = 0.125;

/* Multiplications of one token in the rank's matrices, twice. */
static double rank_ops(const struct mu_model *model, const struct mu_plan *plan, const struct mu_plan_rank *r)
{
    double values = (double)mu_range_len(r->vocab) * model->cfg.d_model;
    for (int l = plan->stage[r->stage].layers.begin; l < plan->stage[r->stage].layers.end; l++) {
        for (int id = 0; id < MU_T_MATRIX_COUNT; id++) {
            if (!model->layer[l][id]) continue;
            int row0, n_row = mu_plan_rows(model, r, (enum mu_tensor_id)id, &row0);
            int n = mu_config_copies(&model->cfg, (enum mu_tensor_id)id) > 1 ? model->cfg.n_expert_used : 1;
            values += n * (double)n_row * (double)model->layer[l][id]->ne[0];
        }
    }
    return 2 * values;
}

static double hop_ms(bool same_node, double bytes)
{
    double us = same_node ? LOCAL_US : REMOTE_US, gbps = same_node ? LOCAL_GBPS : REMOTE_GBPS;
    return us / 1e3 + bytes / gbps / 1e6;
}

void mu_plan_predict(const struct mu_model *model, const struct mu_plan *plan, const struct mu_plan_node *node,
                     const int *node_of, struct mu_prediction *prediction_out)
{
    struct mu_prediction p = {0};
    bool known = true;
    double d = model->cfg.d_model;
    for (int s = 0; s < plan->n_stage; s++) {
        const struct mu_plan_stage *st = &plan->stage[s];
        double read = 0, compute = 0, slowest = 0;
        bool same = true;
        for (int i = st->first_rank; i < st->first_rank + st->n_rank; i++) {
            const struct mu_plan_node *n = &node[node_of[i]];
            int sharers = 0;
            for (int k = st->first_rank; k < st->first_rank + st->n_rank; k++) sharers += node_of[k] == node_of[i];
            if (!(n->read_gbps > 0 && n->int8_gops > 0)) {
                known = false;
                continue;
            }
            double bytes = (double)plan->rank[i].weight_bytes - (s == 0 ? (double)model->embed->bytes : 0);
            double read_ms = bytes * sharers / n->read_gbps / 1e6;
            double compute_ms = rank_ops(model, plan, &plan->rank[i]) * sharers / n->int8_gops / 1e6;
            if (read_ms > read) read = read_ms;
            if (compute_ms > compute) compute = compute_ms;
            double step_ms = read_ms > compute_ms ? read_ms : compute_ms;
            if (step_ms > slowest) slowest = step_ms;
            same = same && node_of[i] == node_of[st->first_rank];
        }
        int n_layer = mu_range_len(st->layers);
        double wire = st->n_rank > 1 ? n_layer * (3 * hop_ms(same, 0) + hop_ms(same, 9 * d)) : 0;
        if (s > 0) wire += hop_ms(node_of[st->first_rank] == node_of[plan->stage[s - 1].first_rank], 4 * d);
        p.decode_read_ms += read;
        p.decode_compute_ms += compute;
        p.decode_wire_ms += wire;
        p.decode_ms += slowest + wire;
        if (compute > p.prefill_ms_per_token) p.prefill_ms_per_token = compute;
    }
    if (!known) p = (struct mu_prediction){0};
    *prediction_out = p;
}
