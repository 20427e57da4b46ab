/* Weights onto a device: rows go from the mapped file by all threads into pinned memory, from there up, and are packed
 * there, while the next rows are read.
 *
 *   file ── pool: copied, gathered or quantised ──► pinned buffer 0 … 3 ── upload ──► raw ── mat_pack ──► weights
 *
 * A buffer is filled again once its upload is done (a mark each). One buffer of raw rows there is enough: the queue runs in
 * order. What is not finite is marked there, an item each, and looked at once, at the end; what the host quantises it
 * checks itself. Nothing of this is kept for a later launch: reading the page cache takes as long as copying would. */
#include <string.h>

#include "base/alloc.h"
#include "base/fault.h"
#include "shard/device.h"

enum {
    MAX_PIECES = 4096, /* of a buffer */
    FILL_GROUPS = 4,   /* row groups that a member fills between two looks at the counter */
};

struct piece { /* rows of one matrix in a buffer */
    const struct mu_mat *m;
    int row0, row1, item;
    int group0; /* row groups of the pieces before */
    size_t at, row_bytes;
};

struct dev_loader {
    struct mu_shard *s;
    void *pinned;
    char *buf[DEV_LOAD_BUFFERS];
    size_t buf_bytes, used;
    int cur, n_piece, n_group, n_item;
    bool hung; /* the queue may never end, and freeing what it uses would wait for it: left to the device's close */
    struct piece *piece;
    void *raw;    /* there, as large as a buffer */
    int32_t *bad; /* there, [n_item]; one more buffer's worth is pinned for it */
};

/* ---- the ring ---- */

static size_t aligned(size_t bytes)
{
    return (bytes + MU_LOAD_ALIGN - 1) & ~(size_t)(MU_LOAD_ALIGN - 1);
}

enum mu_status mu_dev_loader_open(struct mu_shard *s, uint64_t bytes, size_t group_bytes, int n_item,
                                  struct dev_loader **ld_out, struct mu_err *err)
{
    struct dev *v = s->dev;
    enum mu_status st;
    struct dev_loader *ld = mu_calloc(1, sizeof *ld);
    if (!ld || !(ld->piece = mu_calloc(MAX_PIECES, sizeof *ld->piece))) {
        st = mu_fail(err, MU_ENOMEM, "no memory to load rank %d", s->rank);
        goto fail;
    }
    size_t flags = aligned((size_t)n_item * sizeof *ld->bad + 1);
    ld->s = s;
    ld->n_item = n_item;
    ld->buf_bytes = aligned(bytes < DEV_LOAD_BYTES ? (size_t)bytes : DEV_LOAD_BYTES);
    if (ld->buf_bytes < aligned(group_bytes)) ld->buf_bytes = aligned(group_bytes);
    if (ld->buf_bytes < flags) ld->buf_bytes = flags;
    if (v->ops->alloc_host(v->d, DEV_LOAD_BUFFERS * ld->buf_bytes, &ld->pinned, NULL) != MU_OK) {
        st = mu_fail(err, MU_ENOMEM, "no pinned memory to load rank %d (%zu MB)", s->rank,
                     DEV_LOAD_BUFFERS * ld->buf_bytes >> 20);
        goto fail;
    }
    MU_TRY(st, mu_dev_alloc(s, ld->buf_bytes, "rows to be packed", &ld->raw, err), fail);
    MU_TRY(st, mu_dev_alloc(s, flags, "marks of weights", (void **)&ld->bad, err), fail);
    for (int i = 0; i < DEV_LOAD_BUFFERS; i++) ld->buf[i] = (char *)ld->pinned + (size_t)i * ld->buf_bytes;
    v->ops->zero(v->d, ld->bad, flags);
    *ld_out = ld;
    return MU_OK;
fail:
    mu_dev_loader_close(ld);
    return st;
}

void mu_dev_loader_close(struct dev_loader *ld)
{
    if (!ld) return;
    struct dev *v = ld->s ? ld->s->dev : NULL;
    if (ld->raw && !ld->hung) v->ops->free(v->d, ld->raw);
    if (ld->bad && !ld->hung) v->ops->free(v->d, ld->bad);
    if (ld->pinned && !ld->hung) v->ops->free_host(v->d, ld->pinned);
    mu_free(ld->piece);
    mu_free(ld);
}

int mu_dev_loader_take(struct dev_loader *ld, const struct mu_mat *m, int row0, size_t row_bytes, int item,
                       char **room_out)
{
    size_t room = (ld->buf_bytes - ld->used) / row_bytes;
    int n = m->n_row - row0;
    if (ld->n_piece == MAX_PIECES) return 0;
    if ((size_t)n > room) n = (int)(room / MU_ROW_GROUP * MU_ROW_GROUP);
    if (n == 0) return 0;
    ld->piece[ld->n_piece++] = (struct piece){.m = m,
                                              .row0 = row0,
                                              .row1 = row0 + n,
                                              .item = item,
                                              .group0 = ld->n_group,
                                              .at = ld->used,
                                              .row_bytes = row_bytes};
    ld->n_group += (n + MU_ROW_GROUP - 1) / MU_ROW_GROUP;
    *room_out = ld->buf[ld->cur] + ld->used;
    ld->used += aligned((size_t)n * row_bytes);
    if (ld->used > ld->buf_bytes) ld->used = ld->buf_bytes;
    return n;
}

static enum mu_status wait_for(struct dev_loader *ld, int mark, struct mu_err *err)
{
    struct mu_shard *s = ld->s;
    if (mu_dev_wait(s, mark, "weights")) return MU_OK;
    ld->hung = s->failed == MU_ETIMEOUT;
    if (err) *err = s->err;
    return s->failed;
}

/* This buffer's upload is queued: on to the next, which may still be on its way. */
static enum mu_status buffer_next(struct dev_loader *ld, struct mu_err *err)
{
    struct dev *v = ld->s->dev;
    v->ops->mark(v->d, DEV_MARK + 1 + ld->cur);
    ld->cur = (ld->cur + 1) % DEV_LOAD_BUFFERS;
    ld->used = 0;
    ld->n_piece = ld->n_group = 0;
    return wait_for(ld, DEV_MARK + 1 + ld->cur, err);
}

enum mu_status mu_dev_loader_flush(struct dev_loader *ld, struct mu_err *err)
{
    struct dev *v = ld->s->dev;
    if (ld->n_piece == 0) return MU_OK;
    v->ops->upload(v->d, ld->raw, ld->buf[ld->cur], ld->used);
    for (int i = 0; i < ld->n_piece; i++) {
        const struct piece *p = &ld->piece[i];
        v->ops->mat_pack(v->d, p->m, p->row0, p->row1, (const char *)ld->raw + p->at, ld->bad + p->item);
    }
    return buffer_next(ld, err);
}

enum mu_status mu_dev_loader_copy(struct dev_loader *ld, void *to, const void *from, size_t bytes, struct mu_err *err)
{
    struct dev *v = ld->s->dev;
    for (size_t at = 0; at < bytes;) {
        size_t n = bytes - at < ld->buf_bytes ? bytes - at : ld->buf_bytes;
        memcpy(ld->buf[ld->cur], (const char *)from + at, n);
        v->ops->upload(v->d, (char *)to + at, ld->buf[ld->cur], n);
        enum mu_status st = buffer_next(ld, err);
        if (st != MU_OK) return st;
        at += n;
    }
    return MU_OK;
}

enum mu_status mu_dev_loader_end(struct dev_loader *ld, int *bad_out, struct mu_err *err)
{
    struct dev *v = ld->s->dev;
    const int32_t *bad = (const int32_t *)(const void *)ld->buf[ld->cur];
    *bad_out = -1;
    if (ld->n_item > 0) v->ops->download(v->d, ld->buf[ld->cur], ld->bad, (size_t)ld->n_item * sizeof *bad);
    enum mu_status st = wait_for(ld, MU_DEVICE_MARKS, err);
    for (int i = 0; st == MU_OK && i < ld->n_item && *bad_out < 0; i++)
        if (bad[i]) *bad_out = i;
    return st;
}

/* ---- a rank's weights ---- */

struct filling { /* one buffer, by all members */
    struct load *l;
    const struct dev_loader *ld;
    atomic_int next;
};

/* Row groups [group, end) of one piece. */
static void rows_fill(struct load *l, const struct dev_loader *ld, const struct piece *p, int group, int end,
                      const struct staging *staging)
{
    const struct load_item *item = &l->item[p->item];
    char *to = ld->buf[ld->cur] + p->at;
    int row0 = p->row0 + (group - p->group0) * MU_ROW_GROUP, row1 = p->row0 + (end - p->group0) * MU_ROW_GROUP;
    if (row1 > p->row1) row1 = p->row1;
    to += (size_t)(row0 - p->row0) * p->row_bytes;
    atomic_fetch_add(&l->done_bytes, (uint64_t)(row1 - row0) * p->row_bytes);
    if (!item->staged) {
        memcpy(to, mu_gguf_row(item->tensor, (uint64_t)(item->row0 + row0)), (size_t)(row1 - row0) * p->row_bytes);
        return;
    }
    for (int next; row0 < row1; row0 = next) {
        next = row0 + MU_ROW_GROUP < row1 ? row0 + MU_ROW_GROUP : row1;
        size_t bytes = (size_t)(next - row0) * p->row_bytes;
        const uint8_t *rows = mu_load_rows(l, item, row0, next, staging);
        if (!rows) {
            atomic_store(&l->bad, p->item);
            return;
        }
        memcpy(to, rows, bytes);
        to += bytes;
    }
}

static void fill_main(void *arg, int member, int n_member)
{
    struct filling *f = arg;
    int group;
    (void)n_member;
    if (!mu_fp_env_ok()) mu_fp_env_set();
    while ((group = atomic_fetch_add(&f->next, FILL_GROUPS)) < f->ld->n_group) {
        int end = group + FILL_GROUPS < f->ld->n_group ? group + FILL_GROUPS : f->ld->n_group, i = 0;
        while (group < end) {
            const struct piece *p = &f->ld->piece[i];
            int p_end = i + 1 < f->ld->n_piece ? p[1].group0 : f->ld->n_group;
            i++;
            if (p_end <= group) continue;
            rows_fill(f->l, f->ld, p, group, end < p_end ? end : p_end, &f->l->staging[member]);
            group = end < p_end ? end : p_end;
        }
    }
}

static enum mu_status buffer_run(struct load *l, struct dev_loader *ld, struct mu_err *err)
{
    struct filling f = {.l = l, .ld = ld};
    atomic_init(&f.next, 0);
    if (ld->n_group > 0) mu_pool_run(l->s->pool, fill_main, &f);
    mu_load_tell(l);
    return atomic_load(&l->bad) < 0 ? mu_dev_loader_flush(ld, err) : MU_OK;
}

size_t mu_dev_mat_bytes(const struct mu_shard *s, const struct mu_mat *m)
{
    return aligned(s->dev->ops->mat_bytes(m->type, m->n_row, m->n_col));
}

/* Vectors, frequencies, rooms of layers that are streamed, then the matrices that stay: one block. */
static enum mu_status weights_alloc(struct load *l, struct mu_err *err)
{
    struct mu_shard *s = l->s;
    struct dev *v = s->dev;
    size_t vectors = aligned(s->n_vector_value * sizeof(float)), freq = aligned(s->n_freq * sizeof(float)), rooms;
    size_t total = vectors + freq;
    for (int i = 0; i < l->n_item; i++) {
        size_t bytes = mu_dev_mat_bytes(s, l->item[i].mat);
        if (bytes == 0)
            return mu_gguf_tensor_fail(s->model->gguf, l->item[i].tensor, MU_EUNSUPPORTED,
                                       "the GPU does not multiply with its type at this width", err);
        if (mu_dev_streamed(s, l->item[i].layer) < 0 && !mu_add_size(total, bytes, &total))
            return mu_fail(err, MU_ENOMEM, "the weights of rank %d are too large", s->rank);
    }
    enum mu_status st = mu_dev_stream_plan(l, &rooms, err);
    if (st == MU_OK && !mu_add_size(total, rooms, &total))
        st = mu_fail(err, MU_ENOMEM, "the weights of rank %d are too large", s->rank);
    if (st == MU_OK) st = mu_dev_alloc(s, total, "weights", &v->weights, err);
    if (st != MU_OK) return st;
    char *at = v->weights;
    v->vectors = (float *)(void *)at;
    v->freq = (float *)(void *)(at + vectors);
    at += vectors + freq;
    mu_dev_stream_place(l, at);
    at += rooms;
    for (int i = 0; i < l->n_item; i++) {
        if (mu_dev_streamed(s, l->item[i].layer) >= 0) continue;
        l->item[i].mat->data = at;
        at += mu_dev_mat_bytes(s, l->item[i].mat);
    }
    return MU_OK;
}

static size_t largest_group(const struct load *l)
{
    size_t bytes = 0;
    for (int i = 0; i < l->n_item; i++)
        if (l->item[i].tensor->row_bytes > bytes) bytes = l->item[i].tensor->row_bytes;
    return bytes * MU_ROW_GROUP;
}

static enum mu_status items_run(struct load *l, struct dev_loader *ld, struct mu_err *err)
{
    enum mu_status st = MU_OK;
    for (int i = 0; i < l->n_item && st == MU_OK && atomic_load(&l->bad) < 0; i++) {
        const struct load_item *item = &l->item[i];
        for (int row = 0; row < item->mat->n_row && st == MU_OK && atomic_load(&l->bad) < 0;) {
            char *room;
            int n = mu_dev_loader_take(ld, item->mat, row, item->tensor->row_bytes, i, &room);
            if (n == 0) st = buffer_run(l, ld, err);
            row += n;
        }
        if (!mu_dev_stream_keeps(l, i) || st != MU_OK || atomic_load(&l->bad) >= 0) continue;
        st = buffer_run(l, ld, err);
        if (st == MU_OK) mu_dev_stream_keep(l->s, item->layer);
    }
    return st == MU_OK && atomic_load(&l->bad) < 0 ? buffer_run(l, ld, err) : st;
}

enum mu_status mu_dev_load(struct load *l, struct mu_err *err)
{
    struct mu_shard *s = l->s;
    struct dev_loader *ld = NULL;
    int bad = -1;
    enum mu_status st;
    MU_TRY(st, weights_alloc(l, err), done);
    MU_TRY(st,
           mu_dev_loader_open(s, l->total_bytes + (uint64_t)l->n_item * MU_LOAD_ALIGN, largest_group(l), l->n_item, &ld,
                              err),
           done);
    MU_TRY(st, mu_dev_loader_copy(ld, s->dev->vectors, s->vectors, s->n_vector_value * sizeof(float), err), done);
    MU_TRY(st, mu_dev_loader_copy(ld, s->dev->freq, s->rope_freq, s->n_freq * sizeof(float), err), done);
    MU_TRY(st, items_run(l, ld, err), done);
    MU_TRY(st, mu_dev_loader_end(ld, &bad, err), done);
    mu_dev_stream_start(s);
    if (bad >= 0 && atomic_load(&l->bad) < 0) atomic_store(&l->bad, bad);
done:
    mu_dev_loader_close(ld);
    return st;
}
