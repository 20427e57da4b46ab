/* How fast a device multiplies, beside what bounds it. Not a test; run by hand:
 *
 *   bench_device [--types Q4_K,F16] [--shapes qkv,o,gate_up,down,layer] [--tokens 1,8,512] [--repeats 5]
 *                [--megabytes 768] [--device 0] [--rough] [--small]
 *
 * on the plugin that kernels/device.c finds ($MUSTER_DEVICE_PLUGIN). The shapes are those of an 8B model: qkv is three
 * matrices of one input, gate_up a gated pair with its result quantised, layer the four calls one after another. Calls are
 * recorded once, over as many copies of the weights as `megabytes` hold, so that no cache holds them, and replayed; the
 * time is the median of the repeats. GB/s counts the packed weights, once a call, and is compared with the speed at which the
 * device reads; TOP/s counts two operations a weight and vector, and is compared with its tensor cores' bf16. --rough: each
 * also as a product that may be rough, the line after. --small: sizes for a device that is emulated. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "tests/bench/device_bench.h"
#include "tests/kernels/values.h"

enum { MOST_LIST = 32, MOST_CALLS = 4, MOST_COPIES = 64 };

static int n_repeat = 5;
static size_t most_bytes = (size_t)768 << 20;
static bool also_rough;

static void *on_device(size_t bytes)
{
    struct mu_err err = MU_ERR_INIT;
    void *p;
    must(ops->alloc(dev, bytes, &p, &err), &err);
    return p;
}

/* ---- what is multiplied ---- */

/* One call of matmul: matrices of these heights; gated: the second is `up` of the first, and the result is quantised. */
struct call {
    int n_col, n_mat, n_row[3];
    bool gated;
};

struct shape {
    const char *name;
    int n_call;
    struct call call[MOST_CALLS];
};

static struct shape shapes[] = {
    {"qkv", 1, {{4096, 3, {4096, 1024, 1024}, false}}},
    {"o", 1, {{4096, 1, {4096}, false}}},
    {"gate_up", 1, {{4096, 2, {14336, 14336}, true}}},
    {"down", 1, {{14336, 1, {4096}, false}}},
    {"layer",
     4,
     {{4096, 3, {4096, 1024, 1024}, false},
      {4096, 1, {4096}, false},
      {4096, 2, {14336, 14336}, true},
      {14336, 1, {4096}, false}}},
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

/* Inputs and results of the largest call and number of vectors. */
static struct {
    struct mu_act x;
    float *out;
    struct mu_act_to form;
} memory;

static void memory_make(int n_tok)
{
    size_t in = 0, out = 0;
    for (int s = 0; s < SHAPES; s++)
        for (int c = 0; c < shapes[s].n_call; c++) {
            const struct call *k = &shapes[s].call[c];
            if ((size_t)k->n_col > in) in = (size_t)k->n_col;
            for (int i = 0; i < k->n_mat; i++)
                if ((size_t)k->n_row[i] > out) out = (size_t)k->n_row[i];
        }
    in *= (size_t)n_tok;
    out *= (size_t)n_tok;
    struct mu_err err = MU_ERR_INIT;
    void *host;
    must(ops->alloc_host(dev, in * 4, &host, &err), &err);
    for (size_t i = 0; i < in; i++) ((float *)host)[i] = uniform(-3, 3);
    float *x = on_device(in * 4);
    struct mu_act_to to = {
        .bf16 = on_device(in * 2), .q = on_device(in), .s = on_device(in / 32 * 4), .sum = on_device(in / 16 * 2)};
    ops->upload(dev, x, host, in * 4);
    ops->form(dev, x, in, 1, (int)in, &to);
    settle();
    ops->free_host(dev, host);
    memory.x = (struct mu_act){.f32 = x, .bf16 = to.bf16, .q = to.q, .s = to.s, .sum = to.sum};
    memory.out = on_device(3 * out * 4);
    memory.form = (struct mu_act_to){.q = on_device(out), .s = on_device(out / 32 * 4), .sum = on_device(out / 16 * 2)};
}

/* Copies of a call's matrices. */
struct weights {
    struct mu_mat m[MOST_CALLS][MOST_COPIES][3];
    int n_copy;
    size_t bytes; /* of one copy of all calls */
    double ops;   /* two for each weight of it */
};

/* Raw rows of the largest matrix: sixteen of them, over and over. */
static void *rows_make(uint32_t type, int n_row, int n_col)
{
    struct mu_err err = MU_ERR_INIT;
    size_t row, bytes;
    void *host;
    if (!mu_type_row_bytes(type, (uint64_t)n_col, &row)) return NULL;
    bytes = row * (size_t)n_row;
    must(ops->alloc_host(dev, bytes, &host, &err), &err);
    raw_fill(type, host, n_row < 16 ? bytes : 16 * row, ORDINARY);
    for (size_t i = 16 * row; i < bytes; i++) ((char *)host)[i] = ((char *)host)[i - 16 * row];
    void *raw = on_device(bytes);
    ops->upload(dev, raw, host, bytes);
    settle();
    ops->free_host(dev, host);
    return raw;
}

static void weights_make(const struct shape *s, uint32_t type, struct weights *w)
{
    int32_t *bad = on_device(sizeof *bad);
    ops->zero(dev, bad, sizeof *bad);
    memset(w, 0, sizeof *w);
    for (int c = 0; c < s->n_call; c++)
        for (int i = 0; i < s->call[c].n_mat; i++) {
            w->bytes += ops->mat_bytes(type, s->call[c].n_row[i], s->call[c].n_col);
            w->ops += 2.0 * s->call[c].n_row[i] * s->call[c].n_col;
        }
    w->n_copy = (int)(most_bytes / w->bytes);
    w->n_copy = w->n_copy < 2 ? 2 : w->n_copy > MOST_COPIES ? MOST_COPIES : w->n_copy;
    for (int c = 0; c < s->n_call; c++)
        for (int i = 0; i < s->call[c].n_mat; i++) {
            int n_row = s->call[c].n_row[i], n_col = s->call[c].n_col;
            void *raw = rows_make(type, n_row, n_col);
            for (int k = 0; k < w->n_copy; k++) {
                struct mu_mat *m = &w->m[c][k][i];
                *m = (struct mu_mat){type, n_row, n_col, on_device(ops->mat_bytes(type, n_row, n_col))};
                ops->mat_pack(dev, m, 0, n_row, raw, bad);
            }
            settle();
            ops->free(dev, raw);
        }
    ops->free(dev, bad);
}

static void weights_free(const struct shape *s, struct weights *w)
{
    for (int c = 0; c < s->n_call; c++)
        for (int k = 0; k < w->n_copy; k++)
            for (int i = 0; i < s->call[c].n_mat; i++) ops->free(dev, w->m[c][k][i].data);
}

/* ---- timing ---- */

static void call_queue(const struct call *c, const struct mu_mat *m, int n_tok, bool rough)
{
    struct mu_device_job job[3];
    struct mu_act x = memory.x;
    int n = c->gated ? 1 : c->n_mat;
    size_t at = 0;
    memset(job, 0, sizeof job);
    x.n_tok = n_tok;
    x.n_col = c->n_col;
    for (int i = 0; i < n; i++) {
        job[i].m = &m[i];
        job[i].out = memory.out + at;
        job[i].stride = (size_t)c->n_row[i];
        job[i].rough = rough;
        at += (size_t)n_tok * (size_t)c->n_row[i];
    }
    if (c->gated) {
        job[0].up = &m[1];
        job[0].act = MU_DEVICE_ACT_SILU;
        job[0].form = memory.form;
    }
    ops->matmul(dev, job, n, &x, NULL);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Seconds for one pass over all calls of one copy. */
static double pass_seconds(const struct shape *s, const struct weights *w, int n_tok, bool rough)
{
    double seconds[MOST_LIST];
    ops->record_begin(dev);
    for (int k = 0; k < w->n_copy; k++)
        for (int c = 0; c < s->n_call; c++) call_queue(&s->call[c], w->m[c][k], n_tok, rough);
    struct mu_device_graph *g = ops->record_end(dev);
    for (int i = -1; i < n_repeat; i++) { /* the first warms up */
        int64_t begin = mu_now_ns();
        int n_pass = 0;
        do {
            for (int k = 0; !g && k < w->n_copy; k++)
                for (int c = 0; c < s->n_call; c++) call_queue(&s->call[c], w->m[c][k], n_tok, rough);
            if (g) ops->replay(dev, g);
            n_pass += w->n_copy;
        } while (g && n_pass < 4 * w->n_copy);
        settle();
        if (i >= 0) seconds[i] = 1e-9 * (double)(mu_now_ns() - begin) / n_pass;
    }
    if (g) ops->graph_free(dev, g);
    qsort(seconds, (size_t)n_repeat, sizeof *seconds, ascending);
    return seconds[n_repeat / 2];
}

static void bench(const struct shape *s, uint32_t type, const int *tokens, int n_tokens)
{
    struct weights w;
    for (int c = 0; c < s->n_call; c++)
        if (ops->mat_bytes(type, s->call[c].n_row[0], s->call[c].n_col) == 0) {
            printf("%-8s %-8s not with this device\n", mu_type_info(type)->name, s->name);
            return;
        }
    weights_make(s, type, &w);
    for (int i = 0; i < n_tokens; i++)
        for (int rough = 0; rough <= also_rough; rough++) {
            double seconds = pass_seconds(s, &w, tokens[i], rough), gbps = 1e-9 * (double)w.bytes / seconds;
            double gops = 1e-9 * w.ops * tokens[i] / seconds;
            printf("%-8s %-8s %6d %-5s %10.1f %8.0f %6.2f %8.1f %6.2f\n", mu_type_info(type)->name, s->name, tokens[i],
                   rough ? "rough" : "exact", 1e6 * seconds, gbps, speed.read_gbps > 0 ? gbps / speed.read_gbps : 0.0,
                   1e-3 * gops, speed.bf16_gops > 0 ? gops / speed.bf16_gops : 0.0);
            fflush(stdout);
        }
    weights_free(s, &w);
}

/* ---- the command line ---- */

static void usage(void)
{
    fprintf(stderr, "usage: bench_device [--types T,…] [--shapes S,…] [--tokens N,…] [--repeats N] [--megabytes N] "
                    "[--device N] [--rough] [--small]\n");
    exit(2);
}

/* The words of a list. */
static int split(char *list, char *words[MOST_LIST])
{
    int n = 0;
    for (char *w = strtok(list, ","); w; w = strtok(NULL, ",")) {
        if (n == MOST_LIST) usage();
        words[n++] = w;
    }
    return n;
}

static int number(const char *s, int least, int most)
{
    char *end;
    long v = strtol(s, &end, 10);
    if (*end || v < least || v > most) usage();
    return (int)v;
}

static void shapes_shrink(void)
{
    for (int s = 0; s < SHAPES; s++)
        for (int c = 0; c < shapes[s].n_call; c++) {
            struct call *k = &shapes[s].call[c];
            k->n_col = k->n_col == 4096 ? 256 : 512;
            for (int i = 0; i < k->n_mat; i++) k->n_row[i] = k->n_row[i] >= 14336 ? 512 : k->n_row[i] / 16;
        }
}

int main(int argc, char **argv)
{
    char types_all[] = "Q8_0,Q4_0,Q4_K,Q6_K,F16,BF16", shapes_all[] = "qkv,o,gate_up,down,layer";
    char tokens_all[] = "1,2,4,8,16,32,64,128,256,512,1024,2048", tokens_small[] = "1,5,40";
    char *types = types_all, *names = shapes_all, *tokens = tokens_all, *word[MOST_LIST];
    int index = 0, n_tokens, most = 0, token[MOST_LIST], n;
    uint32_t type[MOST_LIST];
    struct mu_device_info info;
    struct mu_err err = MU_ERR_INIT;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--small") == 0) {
            shapes_shrink();
            tokens = tokens_small;
            most_bytes = 1;
            n_repeat = 1;
            continue;
        }
        if (strcmp(argv[i], "--rough") == 0) {
            also_rough = true;
            continue;
        }
        if (i + 1 == argc) usage();
        if (strcmp(argv[i], "--types") == 0)
            types = argv[++i];
        else if (strcmp(argv[i], "--shapes") == 0)
            names = argv[++i];
        else if (strcmp(argv[i], "--tokens") == 0)
            tokens = argv[++i];
        else if (strcmp(argv[i], "--repeats") == 0)
            n_repeat = number(argv[++i], 1, MOST_LIST);
        else if (strcmp(argv[i], "--megabytes") == 0)
            most_bytes = (size_t)number(argv[++i], 1, 1 << 20) << 20;
        else if (strcmp(argv[i], "--device") == 0)
            index = number(argv[++i], 0, 1023);
        else
            usage();
    }
    ops = mu_device_load(&err);
    if (!ops) must(err.code == MU_OK ? MU_EINVAL : err.code, &err);
    must(ops->info(index, &info, &err), &err);
    must(ops->open(index, &dev, &err), &err);
    must(ops->measure(dev, &speed, &err), &err);
    printf("%s: reads %.0f GB/s, bf16 %.1f, int8 %.1f TOP/s\n", info.name, speed.read_gbps, 1e-3 * speed.bf16_gops,
           1e-3 * speed.int8_gops);
    n_tokens = split(tokens, word);
    for (int i = 0; i < n_tokens; i++) {
        token[i] = number(word[i], 1, 1 << 16);
        most = token[i] > most ? token[i] : most;
    }
    memory_make(most);
    printf("%-8s %-8s %6s %-5s %10s %8s %6s %8s %6s\n", "type", "shape", "tokens", "how", "us", "GB/s", "of it",
           "TOP/s", "of it");
    n = split(types, word);
    for (int i = 0; i < n; i++) {
        int t = mu_type_by_name(word[i]);
        if (t < 0) usage();
        type[i] = (uint32_t)t;
    }
    char *shape[MOST_LIST];
    int n_shape = split(names, shape);
    for (int i = 0; i < n; i++)
        for (int k = 0; k < n_shape; k++) {
            const struct shape *s = NULL;
            for (int j = 0; j < SHAPES; j++)
                if (strcmp(shapes[j].name, shape[k]) == 0) s = &shapes[j];
            if (!s) usage();
            bench(s, type[i], token, n_tokens);
        }
    ops->close(dev);
    return 0;
}
