/* How long a device's small operations take, beside what their bytes would at the speed of its memory. Not a test; run
 * by hand:
 *   bench_device_small [calls]          MUSTER_DEVICE_PLUGIN=… for another plugin than the build's
 *
 * So many calls of an operation (default 50) are recorded and replayed, as a decode does it; the best of REPEATS is
 * shown. Its operands are the same each time, so small ones come from the caches. */
#include <stdio.h>
#include <stdlib.h>

#include "tests/bench/device_bench.h"

enum { REPEATS = 7, N = 4096, FF = 14336, VOCAB = 128256, EXPERTS = 64, USED = 8, TOKENS = 2048, FRESH = 1 << 20 };

static int n_call = 50;

/* Memory of zeros; n values of -1 … 1, random up to FRESH. */
static void *room(size_t bytes)
{
    struct mu_err err = MU_ERR_INIT;
    void *p;
    must(ops->alloc(dev, bytes, &p, &err), &err);
    ops->zero(dev, p, bytes);
    return p;
}
static float *values(size_t n)
{
    struct mu_err err = MU_ERR_INIT;
    float *p = room(n * sizeof *p);
    void *host;
    must(ops->alloc_host(dev, n * sizeof *p, &host, &err), &err);
    float *to = host;
    for (size_t i = 0; i < n; i++) to[i] = i < FRESH ? (float)(rand() % 20001 - 10000) * 1e-4f : to[i - FRESH];
    ops->upload(dev, p, host, n * sizeof *p);
    settle();
    ops->free_host(dev, host);
    return p;
}

/* ---- cases ---- */

struct args { /* what a case calls its operation with */
    struct mu_device_norm norm;
    struct mu_act_to form;
    struct mu_device_route route;
    struct mu_device_combine combine;
    const float *src;
    const struct mu_device_draw *draw;
    struct mu_device_pick *pick;
    int n_tok, n;
};

static void norm_call(const struct args *a)
{
    ops->norm(dev, &a->norm);
}
static void form_call(const struct args *a)
{
    ops->form(dev, a->src, (size_t)a->n, a->n_tok, a->n, &a->form);
}
static void route_call(const struct args *a)
{
    ops->route(dev, &a->route);
}
static void combine_call(const struct args *a)
{
    ops->combine(dev, &a->combine);
}
static void pick_call(const struct args *a)
{
    ops->pick(dev, a->src, (size_t)a->n, a->n_tok, a->n, 0, a->draw, a->pick);
}

static void show(const char *name, void (*call)(const struct args *), const struct args *a, double bytes)
{
    double best = 1e30;
    call(a);
    settle();
    ops->record_begin(dev);
    for (int i = 0; i < n_call; i++) call(a);
    struct mu_device_graph *graph = ops->record_end(dev);
    if (!graph) {
        fprintf(stderr, "%s: cannot be recorded\n", name);
        exit(1);
    }
    for (int i = 0; i < REPEATS; i++) {
        int64_t begin = mu_now_ns();
        ops->replay(dev, graph);
        settle();
        double seconds = (double)(mu_now_ns() - begin) * 1e-9 / n_call;
        if (seconds < best) best = seconds;
    }
    ops->graph_free(dev, graph);
    printf("%-44s %9.2f us %8.0f GB/s", name, best * 1e6, bytes / best * 1e-9);
    if (speed.read_gbps > 0) printf("  %3.0f%% of reading", bytes / best * 1e-9 / speed.read_gbps * 100);
    printf("\n");
}

static struct mu_act_to quantised(size_t n)
{
    return (struct mu_act_to){.q = room(n), .s = room(n / 32 * 4), .sum = room(n / 16 * 2)};
}

static void norms(void)
{
    static const int tokens[] = {1, 8, 64, TOKENS};
    char name[64];
    float *x = values((size_t)TOKENS * N), *y = values((size_t)TOKENS * N), *w = values(N);
    struct args a = {.norm = {.n = N, .x = x, .keep = true, .y = y, .y_round = true, .eps = 1e-5f, .w = w}};
    a.norm.form = quantised((size_t)TOKENS * N);
    for (int post = 0; post < 2; post++)
        for (int i = 0; i < 4; i++) {
            a.norm.kind = MU_DEVICE_NORM_RMS;
            a.norm.post = post ? w : NULL;
            a.norm.n_tok = tokens[i];
            snprintf(name, sizeof name, "norm of %d × %d%s", tokens[i], N, post ? ", with a post-norm" : "");
            show(name, norm_call, &a, (double)tokens[i] * N * (4 + 4 + 4 + 1.25));
        }
}

static void forms(void)
{
    static const int tokens[] = {1, 64, TOKENS};
    char name[64];
    struct args a = {.src = values((size_t)TOKENS * FF), .n = FF, .form = quantised((size_t)TOKENS * FF)};
    for (int i = 0; i < 3; i++) {
        a.n_tok = tokens[i];
        snprintf(name, sizeof name, "int8 form of %d × %d", tokens[i], FF);
        show(name, form_call, &a, (double)tokens[i] * FF * (4 + 1.25));
    }
}

static void picks(void)
{
    enum { ROWS = 64 };
    static const int rows[] = {1, ROWS};
    static struct mu_device_draw draw[ROWS];
    struct mu_err err = MU_ERR_INIT;
    char name[64];
    void *host;
    struct mu_device_draw *on_device = room(sizeof draw);
    struct args a = {.src = values((size_t)ROWS * VOCAB), .n = VOCAB, .draw = on_device};
    a.pick = room(ROWS * sizeof *a.pick);
    must(ops->alloc_host(dev, sizeof draw, &host, &err), &err);
    for (int warm = 0; warm < 2; warm++)
        for (int i = 0; i < 2; i++) {
            for (int row = 0; row < ROWS; row++)
                ((struct mu_device_draw *)host)[row] = (struct mu_device_draw){(float)warm, 1, (uint64_t)row};
            ops->upload(dev, on_device, host, sizeof draw);
            settle();
            a.n_tok = rows[i];
            snprintf(name, sizeof name, "pick from %d × %d, %s", rows[i], VOCAB, warm ? "drawn" : "greedy");
            show(name, pick_call, &a, (double)rows[i] * VOCAB * 4);
        }
    ops->free_host(dev, host);
}

static void experts(void)
{
    static const int tokens[] = {1, 32, TOKENS};
    char name[64];
    size_t places = (size_t)TOKENS * USED;
    struct args a = {.route = {.n_expert = EXPERTS,
                               .n_used = USED,
                               .score = values((size_t)TOKENS * EXPERTS),
                               .chosen = room(places * 4),
                               .place = room(places * 4),
                               .at = room(places * 4),
                               .begin = room((EXPERTS + 1) * 4),
                               .weight = room(places * 4)}};
    a.combine = (struct mu_device_combine){.n_used = USED,
                                           .n = N,
                                           .part = values(places * N),
                                           .weight = a.route.weight,
                                           .chosen = a.route.chosen,
                                           .at = a.route.at,
                                           .out = room((size_t)TOKENS * N * 4)};
    for (int i = 0; i < 3; i++) {
        a.route.n_tok = a.combine.n_tok = tokens[i];
        snprintf(name, sizeof name, "route of %d tokens, %d of %d experts", tokens[i], USED, EXPERTS);
        show(name, route_call, &a, (double)tokens[i] * (EXPERTS + 4 * USED) * 4);
        snprintf(name, sizeof name, "combine of %d × %d, %d experts", tokens[i], N, USED);
        show(name, combine_call, &a, (double)tokens[i] * N * (USED + 1) * 4);
    }
}

int main(int argc, char **argv)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_device_info info;
    ops = mu_device_load(&err);
    if (!ops) must(err.code, &err);
    if (argc > 1) n_call = atoi(argv[1]);
    must(ops->open(0, &dev, &err), &err);
    must(ops->info(0, &info, &err), &err);
    must(ops->measure(dev, &speed, &err), &err);
    printf("%s, %s: reads %.0f GB/s\n", ops->name, info.name, speed.read_gbps);
    norms();
    forms();
    picks();
    experts();
    ops->close(dev);
    return 0;
}
