/* Layers whose matrices come from the host's memory in every step (shard/plan.h): the device has too little of its own.
 *
 *   queue      fetched 0 │ layer 1 │ 2 │ fetched 1 │ layer 3 │ 4 │ fetched 0 │ layer 5 …     layers 1, 3, 5, 7 of 8
 *   beside it                      │ layer 5 ──► room 0     │ layer 7 ──► room 1             behind the last use of a room
 *
 * They are packed once, by the device, in the rooms, and kept in pinned memory as the device has them, so that a step
 * copies and nothing else. What a step's last layers make room for is the first layers of the next step: these are on their
 * way while the host does whatever it does in between. Recorded steps (device_graph.c) would save nothing here: the copies are
 * what takes long. */
#include "base/alloc.h"
#include "shard/device.h"

static size_t bytes_of(const struct dev_stream *t, int i)
{
    return t->at[i + 1] - t->at[i];
}

enum mu_status mu_dev_stream_plan(struct load *l, size_t *room_out, struct mu_err *err)
{
    struct mu_shard *s = l->s;
    struct dev *v = s->dev;
    struct dev_stream *t = &v->stream;
    size_t room = 0, total;
    *room_out = 0;
    t->n = s->plan.split.streamed[s->rank];
    if (t->n == 0) return MU_OK;
    t->at = mu_calloc((size_t)t->n + 1, sizeof *t->at);
    if (!t->at) return mu_fail(err, MU_ENOMEM, "no memory to load rank %d", s->rank);
    for (int i = 0; i < l->n_item; i++) {
        int k = mu_dev_streamed(s, l->item[i].layer);
        if (k >= 0) t->at[k + 1] += mu_dev_mat_bytes(s, l->item[i].mat);
    }
    for (int k = 0; k < t->n; k++) {
        if (t->at[k + 1] > room) room = t->at[k + 1];
        if (!mu_add_size(t->at[k], t->at[k + 1], &t->at[k + 1]))
            return mu_fail(err, MU_ENOMEM, "the weights of rank %d are too large", s->rank);
    }
    total = t->at[t->n];
    if (v->ops->alloc_host(v->d, total, &t->host, NULL) != MU_OK)
        return mu_fail(err, MU_ENOMEM,
                       "no pinned memory for the %d layers that rank %d is to stream (%zu MB): stream fewer, or free "
                       "memory of this machine",
                       t->n, s->rank, total >> 20);
    t->room_bytes = room;
    *room_out = room * (size_t)mu_plan_stream_rooms(t->n);
    return MU_OK;
}

void mu_dev_stream_place(struct load *l, char *base)
{
    struct mu_shard *s = l->s;
    struct dev_stream *t = &s->dev->stream;
    size_t at = 0;
    for (int i = 0; i < l->n_item; i++) {
        int k = mu_dev_streamed(s, l->item[i].layer);
        if (k < 0) continue;
        if (i == 0 || l->item[i - 1].layer != l->item[i].layer) at = (size_t)(k % MU_STREAM_ROOMS) * t->room_bytes;
        l->item[i].mat->data = base + at;
        at += mu_dev_mat_bytes(s, l->item[i].mat);
    }
    t->rooms = base;
}

static void *room_of(const struct dev_stream *t, int i)
{
    return t->rooms + (size_t)(i % MU_STREAM_ROOMS) * t->room_bytes;
}

bool mu_dev_stream_keeps(const struct load *l, int i)
{
    int layer = l->item[i].layer;
    return mu_dev_streamed(l->s, layer) >= 0 && (i + 1 == l->n_item || l->item[i + 1].layer != layer);
}

void mu_dev_stream_keep(struct mu_shard *s, int layer)
{
    struct dev *v = s->dev;
    const struct dev_stream *t = &v->stream;
    int i = mu_dev_streamed(s, layer);
    v->ops->download(v->d, (char *)t->host + t->at[i], room_of(t, i), bytes_of(t, i));
}

static void fetch(struct dev *v, int i)
{
    const struct dev_stream *t = &v->stream;
    v->ops->fetch(v->d, i % MU_STREAM_ROOMS, room_of(t, i), (char *)t->host + t->at[i], bytes_of(t, i));
}

void mu_dev_stream_start(struct mu_shard *s)
{
    for (int i = 0; i < s->dev->stream.n && i < MU_STREAM_ROOMS; i++) fetch(s->dev, i);
}

void mu_dev_stream_begin(const struct queue *r, int layer)
{
    int i = mu_dev_streamed(r->s, layer);
    if (i >= 0) r->ops->fetched(r->v->d, i % MU_STREAM_ROOMS);
}

void mu_dev_stream_end(const struct queue *r, int layer)
{
    int i = mu_dev_streamed(r->s, layer);
    int next = i + MU_STREAM_ROOMS < r->v->stream.n ? i + MU_STREAM_ROOMS : i % MU_STREAM_ROOMS;
    if (i >= 0 && next != i) fetch(r->v, next); /* one that is alone in its room stays there */
}
