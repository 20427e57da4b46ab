/* How long one rank may take at most, by its size: for the deadlines that tell slow from hung. */
#ifndef MU_WORKER_RANK_H
#define MU_WORKER_RANK_H

#include "model/model.h"
#include "shard/plan.h"

/* The same of layers that come to a GPU from the host's memory, whose rank gives no sign before its step is done: four times this
 * is all of them at 2 GB/s. */
static inline double mu_rank_stream_ms(const struct mu_model *model, const struct mu_split *split)
{
    double most = 0;
    int n = 0;
    for (int i = 0; i < split->n_rank; i++)
        if (split->streamed[i] > n) n = split->streamed[i];
    for (int l = 0; l < model->cfg.n_layer; l++) {
        double bytes = 0;
        for (int id = 0; id < MU_T_MATRIX_COUNT; id++)
            if (model->layer[l][id]) bytes += (double)model->layer[l][id]->bytes;
        if (bytes > most) most = bytes;
    }
    return n * most / 2e6 / 4;
}

/* Pessimistic milliseconds that the largest rank computes between two signs of progress (a layer, or the output
 * head) with a full step; a rank that is slower than 10 billion operations a second and thread, or on a GPU than a
 * thousand billion, would be taken for hung. n_thread: of a rank on processors. */
static inline int64_t mu_rank_layer_ms(const struct mu_model *model, const struct mu_split *split,
                                       const struct mu_serving *serving, int n_thread)
{
    const struct mu_config *c = &model->cfg;
    double d = c->d_model, layer = 3.0 * d * c->d_ff + 2.0 * d * c->d_head * (c->n_head + c->n_kv_head);
    double cache = 2.0 * serving->n_ctx * c->d_head * c->n_head;
    double head_ops = 2.0 * d * c->n_vocab * serving->n_slot, layer_ops = 2.0 * (layer + cache) * serving->step_tokens;
    double ops = head_ops > layer_ops ? head_ops : layer_ops, rate = 1e10 * (n_thread < 1 ? 1 : n_thread);
    if (mu_split_cpu_ranks(split) == 0) rate = 1e12;
    return (int64_t)(ops / rate * 1e3 + mu_rank_stream_ms(model, split));
}

/* After how many milliseconds a rank or a GPU that does not answer is given up: half a minute, and what a step of all
 * layers takes at most, as if one rank had them. */
static inline int mu_rank_wait_ms(const struct mu_model *model, const struct mu_split *split,
                                  const struct mu_serving *serving, int n_thread)
{
    int64_t ms = mu_rank_layer_ms(model, split, serving, n_thread) * model->cfg.n_layer;
    return 30000 + (int)(ms < 3600000 ? ms : 3600000);
}

#endif
