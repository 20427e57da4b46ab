/* How fast a device attends, beside what bounds it. Not a test; run by hand:
 *
 *   bench_device_attn [--small] [--rough]     MUSTER_DEVICE_PLUGIN=… for another plugin than the build's
 *
 * Decoding reads the cache once: GB/s, and its part of the speed at which the device reads. Prompts are arithmetic, 4·d_head
 * operations for each query head, query and position that it sees: GFLOP/s, and their part of its f32. Calls are recorded, one
 * for each of so many layers that no cache of the device holds them all, and replayed; times are of one layer, the best
 * of REPEATS. The cache holds zeros, since no operation takes longer for other values. --small: sizes for a device that
 * is emulated. --rough: prompts alone, of more sizes, each exactly and then roughly (with the part of the device's bf16), and
 * of random values, since zeros spare tensor cores the power that bounds them. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "tests/bench/device_bench.h"

enum { REPEATS = 5, PAGE = 32, MAX_SEQ = 64, MAX_LAYERS = 16, MAX_MEMORY = 64 };
static const size_t BEYOND_CACHES = (size_t)256 << 20;

static bool small, rough; /* the options */

static void *memory[MAX_MEMORY];
static int n_memory;

/* Zeros on the device, until memory_end. */
static void *room(size_t bytes)
{
    struct mu_err err = MU_ERR_INIT;
    if (n_memory == MAX_MEMORY) abort();
    must(ops->alloc(dev, bytes, &memory[n_memory], &err), &err);
    ops->zero(dev, memory[n_memory], bytes);
    return memory[n_memory++];
}

static void *room_of(const void *data, size_t bytes)
{
    struct mu_err err = MU_ERR_INIT;
    void *host, *p = room(bytes);
    must(ops->alloc_host(dev, bytes, &host, &err), &err);
    memcpy(host, data, bytes);
    ops->upload(dev, p, host, bytes);
    settle();
    ops->free_host(dev, host);
    return p;
}

/* Random words of which `mask` is kept, and `set` is set; or zeros, where their values are not said to matter. */
static void *room_random(size_t bytes, uint32_t mask, uint32_t set)
{
    struct mu_err err = MU_ERR_INIT;
    void *host, *p = room(bytes);
    if (!rough) return p;
    must(ops->alloc_host(dev, bytes, &host, &err), &err);
    for (size_t i = 0; i < bytes / 4; i++) {
        static uint32_t x = 1;
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        ((uint32_t *)host)[i] = (x & mask) | set;
    }
    ops->upload(dev, p, host, bytes);
    settle();
    ops->free_host(dev, host);
    return p;
}

static void memory_end(void)
{
    while (n_memory > 0) ops->free(dev, memory[--n_memory]);
}

/* Attention of a layer: n_seq sequences whose last n_tok tokens are asked. */
struct shape {
    enum mu_kv_type type;
    int n_head, n_kv, d_head, n_seq, len, n_tok, window;
};

struct run {
    struct shape s;
    int n_layer;
    size_t cache_bytes; /* of a layer */
    struct mu_device_attn attn[MAX_LAYERS];
    struct mu_device_rotate rotate;
};

static void pages_make(struct run *r, struct mu_device_kv *kv)
{
    const struct shape *s = &r->s;
    uint32_t each = (uint32_t)(s->len + PAGE - 1) / PAGE, n = each * (uint32_t)s->n_seq;
    uint32_t *table = mu_calloc(n, sizeof *table);
    if (!table) exit(1);
    for (uint32_t i = 0; i < n; i++) table[i] = i * 2654435761u % n; /* scattered, where n has no factor of it */
    *kv = (struct mu_device_kv){.type = s->type,
                                .n_head = s->n_kv,
                                .d_head = s->d_head,
                                .page_tokens = PAGE,
                                .n_page = n,
                                .max_page = each,
                                .page_bytes = 2 * mu_kv_bytes(s->type, s->d_head, PAGE),
                                .table = room_of(table, n * sizeof *table)};
    r->cache_bytes = (size_t)s->n_kv * n * kv->page_bytes;
    mu_free(table);
}

/* Blocks of the last n_tok tokens of each sequence, tok being their number among all. */
static int blocks_make(const struct shape *s, struct mu_device_attn *a)
{
    static struct mu_device_block block[4096];
    int n = 0;
    for (int i = 0; i < s->n_seq; i++)
        for (int t = 0; t < s->n_tok; t += MU_DEVICE_QUERY_BLOCK, n++) {
            int here = s->n_tok - t < MU_DEVICE_QUERY_BLOCK ? s->n_tok - t : MU_DEVICE_QUERY_BLOCK;
            block[n] = (struct mu_device_block){i * s->n_tok + t, here, s->len - s->n_tok + t, i};
        }
    a->block = room_of(block, (size_t)n * sizeof *block);
    return n;
}

static void run_make(struct run *r, struct shape s, int most_layers)
{
    static int32_t pos[MAX_SEQ * 4096], slot[MAX_SEQ * 4096];
    struct mu_device_kv kv;
    int n = s.n_seq * s.n_tok;
    size_t row = (size_t)s.n_head * (size_t)s.d_head, segments = (size_t)(s.len + 255) / 256;
    *r = (struct run){.s = s};
    pages_make(r, &kv);
    r->n_layer = (int)(BEYOND_CACHES / r->cache_bytes) + 1;
    if (r->n_layer > most_layers) r->n_layer = most_layers;
    for (int i = 0; i < n; i++) {
        pos[i] = s.len - s.n_tok + i % s.n_tok;
        slot[i] = i / s.n_tok;
    }
    struct mu_device_attn a = {.n_head = s.n_head,
                               .group = s.n_head / s.n_kv,
                               .window = s.window,
                               .scale = 1.0f / sqrtf((float)s.d_head),
                               .q = room_random((size_t)n * row * sizeof(float), 0x80ffffffu, 0x3f000000u),
                               .out = room((size_t)n * row * sizeof(float)),
                               .n_query = n,
                               .pos = room_of(pos, (size_t)n * sizeof *pos),
                               .slot = room_of(slot, (size_t)n * sizeof *slot),
                               .max_pos = s.len,
                               .part_bytes = (s.n_tok == 1 ? (size_t)s.n_seq : 1) * segments * (size_t)s.n_head *
                                             (size_t)(s.d_head + 2) * sizeof(float)};
    a.part = room(a.part_bytes);
    if (s.n_tok > 1) a.n_block = blocks_make(&s, &a);
    for (int i = 0; i < r->n_layer; i++) {
        a.kv = kv;
        a.kv.data = room_random(r->cache_bytes, 0x8bff8bffu, 0x30003000u); /* f16 or f32, finite and below 1 */
        r->attn[i] = a;
    }
    size_t each = (size_t)n * (size_t)s.n_kv * (size_t)s.d_head * sizeof(float);
    r->rotate = (struct mu_device_rotate){.kv = r->attn[0].kv,
                                          .n_tok = n,
                                          .n_head = s.n_head,
                                          .n_rot = s.d_head,
                                          .neox = 1,
                                          .eps = 1e-5f,
                                          .cos_sin = room((size_t)n * (size_t)s.d_head * sizeof(float)),
                                          .q = room((size_t)n * row * sizeof(float)),
                                          .k = room(each),
                                          .v = room(each),
                                          .pos = a.pos,
                                          .slot = a.slot};
}

/* Seconds of a layer. */
static double time_of(struct run *r, bool rotate)
{
    int n = rotate ? MAX_LAYERS : r->n_layer;
    double best = 1e30;
    ops->record_begin(dev);
    for (int i = 0; i < n; i++) {
        if (rotate)
            ops->rotate(dev, &r->rotate);
        else
            ops->attn(dev, &r->attn[i]);
    }
    struct mu_device_graph *g = ops->record_end(dev);
    if (!g) {
        fprintf(stderr, "bench_device_attn: this device cannot record\n");
        exit(1);
    }
    ops->replay(dev, g);
    settle();
    for (int i = 0; i < REPEATS; i++) {
        int64_t begin = mu_now_ns();
        ops->replay(dev, g);
        settle();
        double t = (double)(mu_now_ns() - begin) * 1e-9;
        best = t < best ? t : best;
    }
    ops->graph_free(dev, g);
    return best / n;
}

/* The same prompt, roughly. */
static void run_rough(struct run *r, double flops, double exact)
{
    for (int i = 0; i < r->n_layer; i++) r->attn[i].rough = true;
    double t = time_of(r, false);
    printf("%*srough: %9.1f µs, %6.0f GFLOP/s: %.2f of bf16; %.1f times as fast\n", 40, "", t * 1e6, flops / t * 1e-9,
           speed.bf16_gops > 0 ? flops / t * 1e-9 / speed.bf16_gops : 0, exact / t);
}

static void run(struct shape s, int most_layers)
{
    static struct run r;
    if (rough && s.n_tok == 1) return;
    run_make(&r, s, most_layers);
    double t = time_of(&r, false), turn = time_of(&r, true), pairs = 0;
    for (int i = 0; i < s.n_tok; i++) {
        int seen = s.len - s.n_tok + i + 1;
        pairs += s.window && seen > s.window ? s.window : seen;
    }
    double flops = 4.0 * s.d_head * pairs * s.n_head * s.n_seq;
    double bytes =
        (double)r.cache_bytes * (s.window && s.n_tok == 1 && s.len > s.window ? (double)s.window / s.len : 1);
    printf("%-6s %2d × %6d positions, %4d tokens, %2d on %2d heads of %3d%s: %9.1f µs, ", mu_kv_type_name(s.type),
           s.n_seq, s.len, s.n_tok, s.n_head, s.n_kv, s.d_head, s.window ? ", window" : "", t * 1e6);
    if (s.n_tok == 1)
        printf("%6.0f GB/s: %.2f", bytes / t * 1e-9, speed.read_gbps > 0 ? bytes / t * 1e-9 / speed.read_gbps : 0);
    else
        printf("%6.0f GFLOP/s: %.2f", flops / t * 1e-9, speed.f32_gops > 0 ? flops / t * 1e-9 / speed.f32_gops : 0);
    printf("; rotate %.1f µs\n", turn * 1e6);
    if (rough) run_rough(&r, flops, t);
    fflush(stdout);
    memory_end();
}

static void all(enum mu_kv_type type)
{
    static const int len[] = {256, 1024, 8192, 32768, 131072}, seqs[] = {1, 16};
    for (int s = 0; s < 2; s++)
        for (int i = 0; i < 5; i++) run((struct shape){type, 32, 8, 128, seqs[s], len[i], 1, 0}, MAX_LAYERS);
    run((struct shape){type, 32, 32, 128, 1, 8192, 1, 0}, MAX_LAYERS);
    run((struct shape){type, 64, 8, 64, 1, 32768, 1, 0}, MAX_LAYERS);
    run((struct shape){type, 64, 4, 128, 1, 32768, 1, 0}, MAX_LAYERS);
    run((struct shape){type, 64, 8, 64, 16, 32768, 1, 128}, MAX_LAYERS);
    run((struct shape){type, 32, 8, 128, 64, 4096, 1, 0}, MAX_LAYERS);
    run((struct shape){type, 32, 8, 128, 1, 2048, 2048, 0}, 2);
    run((struct shape){type, 32, 8, 128, 1, 8192, 2048, 0}, 2);
    run((struct shape){type, 32, 8, 128, 1, 32768, 512, 0}, 2);
    run((struct shape){type, 64, 8, 64, 1, 2048, 2048, 0}, 2);
    run((struct shape){type, 16, 8, 256, 1, 2048, 2048, 0}, 2);
    if (!rough) return;
    run((struct shape){type, 32, 8, 128, 1, 512, 512, 0}, 2);
    run((struct shape){type, 32, 8, 128, 1, 32768, 2048, 0}, 2);
    run((struct shape){type, 32, 32, 128, 1, 2048, 2048, 0}, 2);
    run((struct shape){type, 28, 4, 128, 1, 2048, 2048, 0}, 2);
    run((struct shape){type, 32, 8, 96, 1, 2048, 2048, 0}, 2);
    run((struct shape){type, 16, 8, 256, 1, 8192, 2048, 0}, 2);
    run((struct shape){type, 64, 8, 64, 1, 8192, 2048, 128}, 2);
}

int main(int argc, char **argv)
{
    struct mu_err err = MU_ERR_INIT;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--small") == 0) {
            small = true;
        } else if (strcmp(argv[i], "--rough") == 0) {
            rough = true;
        } else {
            fprintf(stderr, "usage: bench_device_attn [--small] [--rough]\n");
            return 2;
        }
    }
    ops = mu_device_load(&err);
    must(ops ? MU_OK : MU_ENOENT, &err);
    must(ops->open(0, &dev, &err), &err);
    if (!small) must(ops->measure(dev, &speed, &err), &err);
    printf("%s: reads %.0f GB/s, %.0f GFLOP/s in f32, %.0f in bf16\n", ops->name, speed.read_gbps, speed.f32_gops,
           speed.bf16_gops);
    for (int t = 0; t < MU_KV_TYPE_COUNT; t++) {
        if (!small) {
            all((enum mu_kv_type)t);
            continue;
        }
        run((struct shape){(enum mu_kv_type)t, 4, 2, 32, 2, 600, 1, 0}, 2);
        run((struct shape){(enum mu_kv_type)t, 4, 2, 32, 1, 300, 100, 64}, 2);
    }
    ops->close(dev);
    return 0;
}
