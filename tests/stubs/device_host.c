/* The host as a device: its memory, its queue, its graphs, and the table. See device_host.h.
 *
 *   queue   item → item → item        an item is a function and a copy of its arguments
 *             ↑ n_done   ↑ mark[i]    marks are numbers of items; a wait runs items up to one
 *   graph   item → item               what was recorded: replaying it appends copies
 *
 *   block   | struct block … | 256 bytes of zone | what the caller has | 256 bytes of zone | */
#include "tests/stubs/device_host.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#include "base/alloc.h"
#include "kernels/parts.h"
#include "tests/stubs/device_host_parts.h"

enum { MAX_DEVICES = 16, DEFAULT_DEVICES = 2, ZONE = 256, ALIGN = 256, POISON = 0xff, ZONE_BYTE = 0xa7 };
static const size_t default_memory = (size_t)1 << 30;

struct block {
    struct block *next;
    size_t bytes;
    bool pinned;
};
enum { HEADER = ALIGN }; /* bytes before the first zone: struct block, aligned */

struct item {
    struct item *next;
    void (*run)(struct mu_device *d, const void *args);
    size_t bytes;
    bool now; /* others wait for it */
    _Alignas(max_align_t) unsigned char args[];
};

struct items {
    struct item *first, **end;
};

struct mu_device_graph {
    struct items items;
};

struct mu_device {
    int index;
    struct block *blocks;
    struct items queue;
    uint64_t n_queued, n_done, mark[MU_DEVICE_MARKS];
    struct move {
        void *to;
        const void *from;
        size_t bytes;
    } fetching[MU_DEVICE_FETCHES]; /* whose bytes are not there yet; 0 bytes: none */
    struct mu_device_graph *recording;
    bool unrecordable; /* something that cannot be was queued meanwhile */
    struct mu_err err; /* the first failure; code MU_OK: none */
};

static atomic_size_t used[MAX_DEVICES];

/* ---- failures ---- */

void mu_host_fail(struct mu_device *d, enum mu_status code, const char *fmt, ...)
{
    char text[MU_ERR_TEXT];
    va_list args;
    if (d->err.code != MU_OK) return;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    mu_fail(&d->err, code, "%s", text);
}

bool mu_host_failed(const struct mu_device *d)
{
    return d->err.code != MU_OK;
}

void *mu_host_scratch(struct mu_device *d, size_t n, size_t size)
{
    void *p = mu_calloc(n, size);
    if (!p) mu_host_fail(d, MU_ENOMEM, "no host memory for %zu elements of scratch", n);
    return p;
}

/* ---- devices ---- */

/* A number from the environment; false where there is something else. */
static bool number_from(const char *name, uint64_t otherwise, uint64_t *out, struct mu_err *err)
{
    const char *text = getenv(name);
    char *end;
    *out = otherwise;
    if (!text || !*text) return true;
    *out = strtoull(text, &end, 10);
    if (*end == '\0' && *text >= '0' && *text <= '9') return true;
    mu_fail(err, MU_EINVAL, "%s=%s is no number", name, text);
    return false;
}

static int count(struct mu_err *err)
{
    uint64_t n;
    if (!number_from("MUSTER_DEVICE_HOST_COUNT", DEFAULT_DEVICES, &n, err)) return -1;
    return n < MAX_DEVICES ? (int)n : MAX_DEVICES;
}

static enum mu_status memory_of(int index, size_t *bytes_out, struct mu_err *err)
{
    uint64_t bytes;
    int n = count(err);
    if (n < 0) return MU_EINVAL;
    if (index < 0 || index >= n) return mu_fail(err, MU_EINVAL, "device %d: there are %d", index, n);
    if (!number_from("MUSTER_DEVICE_HOST_MEMORY", default_memory, &bytes, err)) return MU_EINVAL;
    *bytes_out = (size_t)bytes;
    return MU_OK;
}

static enum mu_status info(int index, struct mu_device_info *info_out, struct mu_err *err)
{
    size_t bytes, taken;
    enum mu_status st = memory_of(index, &bytes, err);
    if (st != MU_OK) return st;
    taken = atomic_load(&used[index]);
    *info_out = (struct mu_device_info){
        .memory_bytes = bytes, .free_bytes = bytes > taken ? bytes - taken : 0, .has_link = mu_host_has_link()};
    snprintf(info_out->name, sizeof info_out->name, "the host as a device");
    return MU_OK;
}

static enum mu_status open_device(int index, struct mu_device **dev_out, struct mu_err *err)
{
    size_t bytes;
    enum mu_status st = memory_of(index, &bytes, err);
    if (st != MU_OK) return st;
    struct mu_device *d = mu_calloc(1, sizeof *d);
    if (!d) return mu_fail(err, MU_ENOMEM, "device %d", index);
    d->index = index;
    d->queue.end = &d->queue.first;
    d->err = (struct mu_err)MU_ERR_INIT;
    mu_fp_env_set();
    *dev_out = d;
    return MU_OK;
}

/* Of no machine in particular, so that a plan made with them is the same everywhere. */
static enum mu_status measure(struct mu_device *d, struct mu_device_speed *speed_out, struct mu_err *err)
{
    (void)d;
    (void)err;
    *speed_out = (struct mu_device_speed){
        .read_gbps = 10, .up_gbps = 5, .down_gbps = 5, .int8_gops = 20, .bf16_gops = 10, .f32_gops = 10};
    return MU_OK;
}

/* ---- memory ---- */

static unsigned char *bytes_of(const struct block *b)
{
    return (unsigned char *)b + HEADER + ZONE;
}

/* Reading a zone is a fault, where there is somebody to say so. */
static void zones_guard(const struct block *b, bool guarded)
{
#ifdef __SANITIZE_ADDRESS__
    void (*set)(void const volatile *, size_t) = guarded ? __asan_poison_memory_region : __asan_unpoison_memory_region;
    set(bytes_of(b) - ZONE, ZONE);
    set(bytes_of(b) + b->bytes, ZONE);
#else
    (void)b;
    (void)guarded;
#endif
}

static struct block *take(struct mu_device *d, size_t bytes, bool pinned)
{
    struct block *b;
    if (bytes > SIZE_MAX - HEADER - 2 * ZONE) return NULL;
    b = mu_aligned_alloc(ALIGN, HEADER + ZONE + bytes + ZONE);
    if (!b) return NULL;
    *b = (struct block){.next = d->blocks, .bytes = bytes, .pinned = pinned};
    memset(bytes_of(b) - ZONE, ZONE_BYTE, ZONE);
    memset(bytes_of(b), POISON, bytes);
    memset(bytes_of(b) + bytes, ZONE_BYTE, ZONE);
    zones_guard(b, true);
    d->blocks = b;
    return b;
}

static void zone_check(const unsigned char *zone, const struct block *b, const char *where)
{
    for (int i = 0; i < ZONE; i++) {
        if (zone[i] == ZONE_BYTE) continue;
        fprintf(stderr, "device_host: someone wrote %s %zu bytes of memory\n", where, b->bytes);
        abort();
    }
}

static void release(struct mu_device *d, struct block **at)
{
    struct block *b = *at;
    zones_guard(b, false);
    zone_check(bytes_of(b) - ZONE, b, "before");
    zone_check(bytes_of(b) + b->bytes, b, "beyond");
    if (!b->pinned) atomic_fetch_sub(&used[d->index], b->bytes);
    *at = b->next;
    mu_free(b);
}

static enum mu_status alloc(struct mu_device *d, size_t bytes, void **p_out, struct mu_err *err)
{
    size_t limit, taken = atomic_load(&used[d->index]);
    enum mu_status st = memory_of(d->index, &limit, err);
    if (st != MU_OK) return st;
    do { /* others may be on this device */
        if (taken > limit || bytes > limit - taken)
            return mu_fail(err, MU_ENOMEM, "device %d: %zu bytes asked for, %zu of %zu are free", d->index, bytes,
                           limit > taken ? limit - taken : 0, limit);
    } while (!atomic_compare_exchange_weak(&used[d->index], &taken, taken + bytes));
    struct block *b = take(d, bytes, false);
    if (!b) {
        atomic_fetch_sub(&used[d->index], bytes);
        return mu_fail(err, MU_ENOMEM, "device %d: the host has not %zu bytes for it", d->index, bytes);
    }
    if (d->recording) d->unrecordable = true;
    *p_out = bytes_of(b);
    return MU_OK;
}

static enum mu_status alloc_host(struct mu_device *d, size_t bytes, void **p_out, struct mu_err *err)
{
    struct block *b = take(d, bytes, true);
    if (!b) return mu_fail(err, MU_ENOMEM, "%zu bytes of pinned memory", bytes);
    *p_out = bytes_of(b);
    return MU_OK;
}

static void queue_run(struct mu_device *d, uint64_t until);

static void free_block(struct mu_device *d, void *p, bool pinned)
{
    if (!p) return;
    queue_run(d, d->n_queued);
    if (d->recording) d->unrecordable = true;
    for (struct block **at = &d->blocks; *at; at = &(*at)->next) {
        if (bytes_of(*at) != p || (*at)->pinned != pinned) continue;
        release(d, at);
        return;
    }
    fprintf(stderr, "device_host: %p is freed and was never taken\n", p);
    abort();
}

static void free_device(struct mu_device *d, void *p)
{
    free_block(d, p, false);
}

static void free_host(struct mu_device *d, void *p)
{
    free_block(d, p, true);
}

static bool holds(const struct mu_device *d, const void *p, size_t bytes, bool pinned)
{
    const unsigned char *at = p;
    for (const struct block *b = d->blocks; b; b = b->next)
        if (b->pinned == pinned && at >= bytes_of(b) && at <= bytes_of(b) + b->bytes)
            return bytes <= (size_t)(bytes_of(b) + b->bytes - at);
    return false;
}

bool mu_host_holds(struct mu_device *d, const char *op, const char *argument, const void *p, size_t bytes)
{
    if (holds(d, p, bytes, false)) return true;
    mu_host_fail(d, MU_EINVAL, "%s: %s (%p) is not %zu bytes of this device's memory", op, argument, p, bytes);
    return false;
}

/* ---- the queue ---- */

static void items_free(struct items *items)
{
    while (items->first) {
        struct item *i = items->first;
        items->first = i->next;
        mu_free(i);
    }
    items->end = &items->first;
}

static void queue_run(struct mu_device *d, uint64_t until)
{
    while (d->queue.first && d->n_done < until) {
        struct item *i = d->queue.first;
        d->queue.first = i->next;
        if (!d->queue.first) d->queue.end = &d->queue.first;
        if (!mu_host_failed(d)) i->run(d, i->args);
        mu_free(i);
        d->n_done++;
    }
}

static void append(struct mu_device *d, struct items *to, void (*run)(struct mu_device *d, const void *args),
                   const void *args, size_t bytes, bool now)
{
    struct item *i = mu_malloc(sizeof *i + bytes);
    if (!i) {
        mu_host_fail(d, MU_ENOMEM, "the queue: %zu bytes of arguments", bytes);
        return;
    }
    *i = (struct item){.run = run, .bytes = bytes, .now = now};
    memcpy(i->args, args, bytes);
    *to->end = i;
    to->end = &i->next;
    if (to != &d->queue) return;
    d->n_queued++;
    if (now) queue_run(d, d->n_queued);
}

static void submit(struct mu_device *d, void (*run)(struct mu_device *d, const void *args), const void *args,
                   size_t bytes, bool now)
{
    append(d, d->recording ? &d->recording->items : &d->queue, run, args, bytes, now);
}

static uint64_t until(const struct mu_device *d, int mark)
{
    return mark < 0 || mark >= MU_DEVICE_MARKS ? d->n_queued : d->mark[mark];
}

static void mark_put(struct mu_device *d, int mark)
{
    if (d->recording) d->unrecordable = true;
    d->mark[mark] = d->n_queued;
}

static enum mu_status wait_for(struct mu_device *d, int mark, int timeout_ms, const char *what, struct mu_err *err)
{
    (void)timeout_ms; /* only links wait, and they have their own */
    if (d->recording) d->unrecordable = true;
    queue_run(d, until(d, mark));
    if (!mu_host_failed(d)) return MU_OK;
    return mu_fail(err, d->err.code, "%s: %s", what, d->err.text);
}

static bool stands(const struct item *i);

static int test(struct mu_device *d, int mark)
{
    while (d->queue.first && d->n_done < until(d, mark)) {
        if (!mu_host_failed(d) && stands(d->queue.first)) return 0;
        queue_run(d, d->n_done + 1);
    }
    return mu_host_failed(d) ? -1 : 1;
}

/* ---- graphs ---- */

static void record_begin(struct mu_device *d)
{
    if (d->recording) {
        mu_host_fail(d, MU_EINVAL, "a recording begins inside another");
        return;
    }
    d->recording = mu_host_scratch(d, 1, sizeof *d->recording);
    if (d->recording) d->recording->items.end = &d->recording->items.first;
    d->unrecordable = false;
}

static void graph_free(struct mu_device *d, struct mu_device_graph *g)
{
    (void)d;
    if (!g) return;
    items_free(&g->items);
    mu_free(g);
}

static struct mu_device_graph *record_end(struct mu_device *d)
{
    struct mu_device_graph *g = d->recording;
    d->recording = NULL;
    if (!d->unrecordable && !mu_host_failed(d)) return g;
    graph_free(d, g);
    return NULL;
}

static void replay(struct mu_device *d, const struct mu_device_graph *g)
{
    for (const struct item *i = g->items.first; i; i = i->next) submit(d, i->run, i->args, i->bytes, i->now);
}

/* ---- moving between host and device ---- */

static void pinned_check(struct mu_device *d, const char *op, const void *p, size_t bytes)
{
    if (!holds(d, p, bytes, true))
        mu_host_fail(d, MU_EINVAL, "%s: %p is not %zu bytes of this device's pinned memory", op, p, bytes);
}

static void upload_run(struct mu_device *d, const void *args)
{
    const struct move *m = args;
    if (m->bytes == 0) return;
    pinned_check(d, "upload", m->from, m->bytes);
    mu_host_holds(d, "upload", "to", m->to, m->bytes);
    if (!mu_host_failed(d)) memcpy(m->to, m->from, m->bytes);
}

struct fetch_args {
    int n;
    struct move move;
};

/* As late as it may be, and until then what is there is spoiled. */
static void fetch_run(struct mu_device *d, const void *args)
{
    const struct fetch_args *a = args;
    if (a->move.bytes == 0) return;
    pinned_check(d, "fetch", a->move.from, a->move.bytes);
    mu_host_holds(d, "fetch", "to", a->move.to, a->move.bytes);
    if (mu_host_failed(d)) return;
    memset(a->move.to, POISON, a->move.bytes);
    d->fetching[a->n] = a->move;
}

static void fetched_run(struct mu_device *d, const void *args)
{
    struct move *m = &d->fetching[*(const int *)args];
    if (m->bytes) upload_run(d, m);
    m->bytes = 0;
}

static void fetch(struct mu_device *d, int n, void *to, const void *from_host, size_t bytes)
{
    struct fetch_args a = {n, {to, from_host, bytes}};
    if (d->recording) d->unrecordable = true;
    submit(d, fetch_run, &a, sizeof a, false);
}

static void fetched(struct mu_device *d, int n)
{
    if (d->recording) d->unrecordable = true;
    submit(d, fetched_run, &n, sizeof n, false);
}

static void download_run(struct mu_device *d, const void *args)
{
    const struct move *m = args;
    if (m->bytes == 0) return;
    pinned_check(d, "download", m->to, m->bytes);
    mu_host_holds(d, "download", "from", m->from, m->bytes);
    if (!mu_host_failed(d)) memcpy(m->to, m->from, m->bytes);
}

static void copy_run(struct mu_device *d, const void *args)
{
    const struct move *m = args;
    if (m->bytes == 0) return;
    mu_host_holds(d, "copy", "to", m->to, m->bytes);
    mu_host_holds(d, "copy", "from", m->from, m->bytes);
    if (!mu_host_failed(d)) memcpy(m->to, m->from, m->bytes);
}

static void zero_run(struct mu_device *d, const void *args)
{
    const struct move *m = args;
    if (m->bytes && mu_host_holds(d, "zero", "to", m->to, m->bytes)) memset(m->to, 0, m->bytes);
}

static void upload(struct mu_device *d, void *to, const void *from_host, size_t bytes)
{
    struct move m = {to, from_host, bytes};
    if (d->recording) d->unrecordable = true;
    submit(d, upload_run, &m, sizeof m, false);
}

static void download(struct mu_device *d, void *to_host, const void *from, size_t bytes)
{
    struct move m = {to_host, from, bytes};
    if (d->recording) d->unrecordable = true;
    submit(d, download_run, &m, sizeof m, false);
}

static void copy(struct mu_device *d, void *to, const void *from, size_t bytes)
{
    struct move m = {to, from, bytes};
    submit(d, copy_run, &m, sizeof m, false);
}

static void zero(struct mu_device *d, void *to, size_t bytes)
{
    struct move m = {to, NULL, bytes};
    submit(d, zero_run, &m, sizeof m, false);
}

/* ---- operations: their arguments, until their turn comes ---- */

/* Those with one struct. */
#define QUEUED(op)                                                      \
    static void op##_run(struct mu_device *d, const void *args)         \
    {                                                                   \
        mu_host_##op(d, args);                                          \
    }                                                                   \
    static void op(struct mu_device *d, const struct mu_device_##op *a) \
    {                                                                   \
        submit(d, op##_run, a, sizeof *a, false);                       \
    }
QUEUED(norm)
QUEUED(rotate)
QUEUED(attn)
QUEUED(route)
QUEUED(combine)
#undef QUEUED

struct matmul_args {
    int n_job;
    bool has_experts;
    struct mu_device_job job[MU_DEVICE_MAX_JOBS];
    struct mu_mat m[MU_DEVICE_MAX_JOBS], up[MU_DEVICE_MAX_JOBS];
    struct mu_act x;
    struct mu_device_experts experts;
};

static void matmul_run(struct mu_device *d, const void *args)
{
    struct matmul_args a = *(const struct matmul_args *)args;
    for (int j = 0; j < a.n_job; j++) {
        a.job[j].m = &a.m[j];
        if (a.job[j].up) a.job[j].up = &a.up[j];
    }
    mu_host_matmul(d, a.job, a.n_job, &a.x, a.has_experts ? &a.experts : NULL);
}

static void matmul(struct mu_device *d, const struct mu_device_job *job, int n_job, const struct mu_act *x,
                   const struct mu_device_experts *experts)
{
    struct matmul_args a = {.n_job = n_job, .has_experts = experts != NULL, .x = *x};
    if (n_job < 0 || n_job > MU_DEVICE_MAX_JOBS) {
        mu_host_fail(d, MU_EINVAL, "matmul: %d jobs", n_job);
        return;
    }
    for (int j = 0; j < n_job; j++) {
        a.job[j] = job[j];
        a.m[j] = *job[j].m;
        if (job[j].up) a.up[j] = *job[j].up;
    }
    if (experts) a.experts = *experts;
    submit(d, matmul_run, &a, sizeof a, false);
}

struct mat_pack_args {
    struct mu_mat m;
    int row0, row1;
    const void *raw;
    int32_t *bad;
};

static void mat_pack_run(struct mu_device *d, const void *args)
{
    const struct mat_pack_args *a = args;
    mu_host_mat_pack(d, &a->m, a->row0, a->row1, a->raw, a->bad);
}

static void mat_pack(struct mu_device *d, const struct mu_mat *m, int row0, int row1, const void *raw, int32_t *bad)
{
    struct mat_pack_args a = {*m, row0, row1, raw, bad};
    submit(d, mat_pack_run, &a, sizeof a, false);
}

struct form_args {
    const float *src;
    size_t stride;
    int n_tok, n;
    struct mu_act_to to;
};

static void form_run(struct mu_device *d, const void *args)
{
    const struct form_args *a = args;
    mu_host_form(d, a->src, a->stride, a->n_tok, a->n, &a->to);
}

static void form(struct mu_device *d, const float *src, size_t stride, int n_tok, int n, const struct mu_act_to *to)
{
    struct form_args a = {src, stride, n_tok, n, *to};
    submit(d, form_run, &a, sizeof a, false);
}

struct widen_args {
    struct mu_act x;
    float *out;
};

static void widen_run(struct mu_device *d, const void *args)
{
    const struct widen_args *a = args;
    mu_host_widen(d, &a->x, a->out);
}

static void widen(struct mu_device *d, const struct mu_act *x, float *out)
{
    struct widen_args a = {*x, out};
    submit(d, widen_run, &a, sizeof a, false);
}

struct sums_args {
    const int8_t *q;
    size_t n;
    int16_t *sum;
};

static void sums_run(struct mu_device *d, const void *args)
{
    const struct sums_args *a = args;
    mu_host_block_sums(d, a->q, a->n, a->sum);
}

static void block_sums(struct mu_device *d, const int8_t *q, size_t n, int16_t *sum)
{
    struct sums_args a = {q, n, sum};
    submit(d, sums_run, &a, sizeof a, false);
}

struct spread_args {
    struct mu_device_part part;
    int n_tok;
};

static void spread_run(struct mu_device *d, const void *args)
{
    const struct spread_args *a = args;
    mu_host_spread(d, &a->part, a->n_tok);
}

static void spread(struct mu_device *d, const struct mu_device_part *part, int n_part, int n_tok)
{
    for (int i = 0; i < n_part; i++) {
        struct spread_args a = {part[i], n_tok};
        submit(d, spread_run, &a, sizeof a, false);
    }
}

struct set_args {
    uint32_t *table;
    const struct mu_device_set *set;
    int n;
};

static void set_run(struct mu_device *d, const void *args)
{
    const struct set_args *a = args;
    mu_host_set(d, a->table, a->set, a->n);
}

static void set(struct mu_device *d, uint32_t *table, const struct mu_device_set *set, int n)
{
    struct set_args a = {table, set, n};
    submit(d, set_run, &a, sizeof a, false);
}

struct rope_args {
    const float *freq, *freq_far;
    const uint8_t *far;
    const int32_t *pos;
    int n_tok, n_pair;
    float mscale, *out;
};

static void rope_run(struct mu_device *d, const void *args)
{
    const struct rope_args *a = args;
    mu_host_rope_table(d, a->freq, a->freq_far, a->far, a->pos, a->n_tok, a->n_pair, a->mscale, a->out);
}

static void rope_table(struct mu_device *d, const float *freq, const float *freq_far, const uint8_t *far,
                       const int32_t *pos, int n_tok, int n_pair, float mscale, float *out)
{
    struct rope_args a = {freq, freq_far, far, pos, n_tok, n_pair, mscale, out};
    submit(d, rope_run, &a, sizeof a, false);
}

struct pick_args {
    const float *logits;
    size_t stride;
    int n_row, n, first_id;
    const struct mu_device_draw *draw;
    struct mu_device_pick *out;
};

static void pick_run(struct mu_device *d, const void *args)
{
    const struct pick_args *a = args;
    mu_host_pick(d, a->logits, a->stride, a->n_row, a->n, a->first_id, a->draw, a->out);
}

static void pick(struct mu_device *d, const float *logits, size_t stride, int n_row, int n, int first_id,
                 const struct mu_device_draw *draw, struct mu_device_pick *out)
{
    struct pick_args a = {logits, stride, n_row, n, first_id, draw, out};
    submit(d, pick_run, &a, sizeof a, false);
}

/* ---- links ---- */

struct link_args {
    struct mu_device_link *link;
    void *buf;
    const void *from;
    int peer;
    size_t bytes;
    size_t part[]; /* gather: each rank's offset, then each one's length */
};

static void gather_run(struct mu_device *d, const void *args)
{
    const struct link_args *a = args;
    (void)d;
    mu_host_link_gather(a->link, a->buf, a->part, a->part + mu_host_link_ranks(a->link));
}

static void send_run(struct mu_device *d, const void *args)
{
    const struct link_args *a = args;
    (void)d;
    mu_host_link_send(a->link, a->peer, a->from, a->bytes);
}

static void taken_run(struct mu_device *d, const void *args)
{
    const struct link_args *a = args;
    (void)d;
    if (a->bytes > 0) mu_host_link_taken(a->link, a->peer);
}

/* It would wait for another rank now. */
static bool stands(const struct item *i)
{
    const struct link_args *a = (const struct link_args *)(const void *)i->args;
    return i->run == taken_run && a->bytes > 0 && !mu_host_link_has_taken(a->link, a->peer);
}

static void recv_run(struct mu_device *d, const void *args)
{
    const struct link_args *a = args;
    (void)d;
    mu_host_link_recv(a->link, a->peer, a->buf, a->bytes);
}

static void link_gather(struct mu_device_link *l, void *buf, const size_t *off, const size_t *len)
{
    struct mu_device *d = mu_host_link_device(l);
    size_t n = (size_t)mu_host_link_ranks(l), bytes = sizeof(struct link_args) + 2 * n * sizeof(size_t);
    struct link_args *a = mu_host_scratch(d, 1, bytes);
    if (!a) return;
    a->link = l;
    a->buf = buf;
    memcpy(a->part, off, n * sizeof *off);
    memcpy(a->part + n, len, n * sizeof *len);
    submit(d, gather_run, a, bytes, true);
    mu_free(a);
}

static void link_send(struct mu_device_link *l, int to, const void *buf, size_t bytes)
{
    struct link_args a = {.link = l, .from = buf, .peer = to, .bytes = bytes};
    submit(mu_host_link_device(l), send_run, &a, sizeof a, true);
    submit(mu_host_link_device(l), taken_run, &a, sizeof a, false);
}

static void link_recv(struct mu_device_link *l, int from, void *buf, size_t bytes)
{
    struct link_args a = {.link = l, .buf = buf, .peer = from, .bytes = bytes};
    submit(mu_host_link_device(l), recv_run, &a, sizeof a, true);
}

static void given_up_run(struct mu_device *d, const void *args)
{
    (void)d;
    (void)args;
}

static void link_close(struct mu_device_link *l)
{
    if (!l) return;
    for (struct item *i = mu_host_link_device(l)->queue.first; i; i = i->next)
        if (i->run == taken_run && ((const struct link_args *)(const void *)i->args)->link == l) i->run = given_up_run;
    mu_host_link_close(l);
}

/* ---- the end, the table ---- */

static void close_device(struct mu_device *d)
{
    if (!d) return;
    graph_free(d, d->recording);
    items_free(&d->queue);
    while (d->blocks) release(d, &d->blocks);
    mu_free(d);
}

static size_t mat_bytes(uint32_t type, int n_row, int n_col)
{
    const char *lacks = getenv("MUSTER_DEVICE_HOST_LACKS");
    const struct mu_type_info *t = mu_type_info(type);
    return lacks && t && strcmp(t->name, lacks) == 0 ? 0 : mu_ref_mat_bytes(type, n_row, n_col);
}

__attribute__((destructor)) static void hang(void)
{
    char line[64] = "";
    FILE *f = getenv("MUSTER_DEVICE_HOST_HANGS") ? fopen("/proc/self/cmdline", "r") : NULL;
    size_t n = f ? fread(line, 1, sizeof line - 1, f) : 0;
    if (f) fclose(f);
    while (memmem(line, n, "_gpus", 5)) pause();
}

static const struct mu_device_ops ops = {
    .abi = MU_DEVICE_ABI,
    .name = "host",
    .count = count,
    .info = info,
    .open = open_device,
    .close = close_device,
    .measure = measure,
    .alloc = alloc,
    .free = free_device,
    .alloc_host = alloc_host,
    .free_host = free_host,
    .upload = upload,
    .download = download,
    .copy = copy,
    .zero = zero,
    .fetch = fetch,
    .fetched = fetched,
    .mark = mark_put,
    .wait = wait_for,
    .test = test,
    .record_begin = record_begin,
    .record_end = record_end,
    .replay = replay,
    .graph_free = graph_free,
    .mat_bytes = mat_bytes,
    .mat_pack = mat_pack,
    .matmul = matmul,
    .norm = norm,
    .form = form,
    .widen = widen,
    .block_sums = block_sums,
    .spread = spread,
    .set = set,
    .rope_table = rope_table,
    .rotate = rotate,
    .attn = attn,
    .route = route,
    .combine = combine,
    .pick = pick,
    .link_id = mu_host_link_id,
    .link_open = mu_host_link_open,
    .link_gather = link_gather,
    .link_send = link_send,
    .link_recv = link_recv,
    .link_close = link_close,
};

const struct mu_device_ops *mu_device_host_ops(void)
{
    return &ops;
}

/* What a plugin exports (kernels/device.h). */
mu_device_ops_fn muster_device_ops;
const struct mu_device_ops *muster_device_ops(void)
{
    return &ops;
}
