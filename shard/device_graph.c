/* Decode steps that are replayed: launching a few hundred operations one by one takes longer than a small model's step.
 *
 * Two steps with the same key queue the same operations with the same arguments (device_step.c), so one that was recorded
 * stands for all. A key is recorded when it comes for the second time; the one that was not used for longest makes
 * room. Steps that are not decodes, stream layers, have adapters, talk through the host, or want more rows than fit are queued as they
 * are. No result shows any of it. */
#include "shard/device.h"

enum { LEAST_POS = 256 };

static bool recordable(const struct queue *r)
{
    const struct mu_shard *s = r->s;
    const struct dev *v = r->v;
    return !v->no_graphs && v->stream.n == 0 && s->step->n_seq == s->step->n_tok && !r->lora && !s->prune &&
           r->n_rough == 0 && s->n_row <= DEV_LOGIT_ROWS && (s->stage.n_rank == 1 || v->link);
}

/* The place of a step like this one; a free one, or the oldest's, for a key that is new. */
static struct dev_graph *place_of(const struct queue *r, const struct dev_graph *key)
{
    struct dev *v = r->v;
    struct dev_graph *oldest = &v->graph[0];
    for (int i = 0; i < DEV_GRAPHS; i++) {
        struct dev_graph *g = &v->graph[i];
        if (g->used && g->n_tok == key->n_tok && g->max_pos == key->max_pos && g->n_row == key->n_row &&
            g->n_host == key->n_host && g->n_live == key->n_live)
            return g;
        if (g->used < oldest->used) oldest = g;
    }
    return oldest;
}

void mu_dev_pass(struct queue *r, bool pass(struct queue *))
{
    struct mu_shard *s = r->s;
    struct dev *v = r->v;
    struct dev_graph key = {.n_tok = s->n_tok,
                            .max_pos = LEAST_POS,
                            .n_row = s->n_row,
                            .n_host = s->n_host,
                            .n_live = s->n_live,
                            .used = v->n_step};
    if (!recordable(r)) {
        pass(r);
        return;
    }
    while (key.max_pos < r->max_pos && key.max_pos < s->serving.n_ctx) key.max_pos *= 2;
    r->max_pos = key.max_pos < s->serving.n_ctx ? key.max_pos : s->serving.n_ctx; /* which scratch is made for */
    struct dev_graph *g = place_of(r, &key);
    bool again = g->used && g->n_tok == key.n_tok && g->max_pos == key.max_pos && g->n_row == key.n_row &&
                 g->n_host == key.n_host && g->n_live == key.n_live;
    if (!again) {
        if (g->graph) r->ops->graph_free(v->d, g->graph);
        *g = key;
        pass(r);
        return;
    }
    g->used = v->n_step;
    if (!g->graph) {
        struct queue before = *r;
        r->ops->record_begin(v->d);
        pass(r);
        g->graph = r->ops->record_end(v->d);
        if (!g->graph) { /* this device records nothing */
            v->no_graphs = true;
            *r = before;
            pass(r);
            return;
        }
    }
    r->ops->replay(v->d, g->graph);
    v->n_replay++;
}

void mu_shard_device_graphs(struct mu_shard *s, bool on)
{
    s->dev->no_graphs = !on;
}

uint64_t mu_shard_device_replays(const struct mu_shard *s)
{
    return s->dev->n_replay;
}
