/* Speed of the forward pass in this process against this machine's roof, measured in turns, since a shared machine's
 * roof moves:
 *
 *   bench_forward MODEL.gguf [SPLIT [THREADS [PROMPT [DECODES]]]]      defaults: 1, 2, 512, 64
 *
 * Not a test. `muster bench` is the command for users. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/pool.h"
#include "kernels/kernels.h"
#include "kernels/peak.h"
#include "worker/solo.h"

enum { READ_BYTES = 512 << 20, ROUNDS = 3 };

struct roof {
    char *buf;
    double gbps[64], gops[64];
};

static void read_main(void *arg, int member, int n)
{
    struct roof *r = arg;
    size_t part = READ_BYTES / (size_t)n / 64 * 64;
    r->gbps[member] = mu_peak_read_gbps(r->buf + part * (size_t)member, part);
}

static void int8_main(void *arg, int member, int n)
{
    (void)n;
    ((struct roof *)arg)->gops[member] = mu_peak_int8_gops();
}

static double sum(const double *x, int n)
{
    double s = 0;
    for (int i = 0; i < n; i++) s += x[i];
    return s;
}

static double since_ms(int64_t start)
{
    return (double)(mu_now_ns() - start) / 1e6;
}

static int fail(const struct mu_err *err)
{
    fprintf(stderr, "%s\n", err->text);
    return 1;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: bench_forward MODEL.gguf [SPLIT [THREADS [PROMPT [DECODES]]]]\n");
        return 2;
    }
    struct mu_err err = MU_ERR_INIT;
    struct mu_model *model = NULL;
    struct mu_solo *solo = NULL;
    int threads = argc > 3 ? atoi(argv[3]) : 2, n_prompt = argc > 4 ? atoi(argv[4]) : 512,
        n_decode = argc > 5 ? atoi(argv[5]) : 64;
    if (mu_model_open(argv[1], &model, &err) != MU_OK) return fail(&err);
    struct mu_solo_options opt = {.model = model, .n_thread = threads, .pin = 1};
    opt.serving = (struct mu_serving){.n_ctx = n_prompt + n_decode + 32, .n_slot = 1, .step_tokens = 512};
    if (mu_split_parse(argc > 2 ? argv[2] : "1", &opt.split, &err) != MU_OK) return fail(&err);
    int64_t start = mu_now_ns();
    if (mu_solo_open(&opt, &solo, &err) != MU_OK) return fail(&err);
    printf("loaded in %.1f s\n", since_ms(start) / 1e3);

    int n_all = threads * opt.split.n_rank;
    struct mu_pool_options pool_opt = {.n_threads = n_all, .pin = 1};
    struct roof roof = {.buf = mu_pages_alloc(READ_BYTES)};
    struct mu_pool *pool = NULL;
    if (!roof.buf || n_all > 64 || mu_pool_create(&pool_opt, &pool, &err) != MU_OK) return fail(&err);
    memset(roof.buf, 1, READ_BYTES);

    struct mu_rank_memory memory = {0};
    double weight_bytes = 0, values = 0;
    for (int i = 0; i < opt.split.n_rank; i++) {
        mu_plan_memory(model, mu_solo_plan(solo), i, mu_solo_serving(solo), &memory);
        weight_bytes += (double)memory.weights;
    }
    weight_bytes -= (double)model->embed->bytes * (double)mu_solo_plan(solo)->stage[0].n_rank;
    for (int l = 0; l < model->cfg.n_layer; l++)
        for (int id = 0; id < MU_T_MATRIX_COUNT; id++)
            if (model->layer[l][id]) values += (double)model->layer[l][id]->n_row * (double)model->layer[l][id]->ne[0];

    int32_t *ids = mu_calloc((size_t)n_prompt, sizeof *ids), id = 0;
    int slot = 0;
    for (int i = 0; i < n_prompt; i++) ids[i] = (i * 7919) % model->cfg.n_vocab;
    for (int round = 0; round < ROUNDS; round++) {
        struct mu_sampling greedy = {.temperature = 0};
        double best = 1e9, total = 0;
        mu_solo_reset(solo, 0);
        mu_pool_run(pool, int8_main, &roof);
        double gops = sum(roof.gops, n_all);
        start = mu_now_ns();
        if (mu_solo_feed(solo, 0, ids, (size_t)n_prompt, MU_OUT_SAMPLE, &greedy, NULL, NULL, &id, &err) != MU_OK)
            return fail(&err);
        double prefill_ms = since_ms(start), done = 2 * values * n_prompt / prefill_ms / 1e6;
        mu_pool_run(pool, read_main, &roof);
        double gbps = sum(roof.gbps, n_all);
        for (int i = 0; i < n_decode; i++) {
            start = mu_now_ns();
            if (mu_solo_decode(solo, &slot, &id, 1, &greedy, &id, &err) != MU_OK) return fail(&err);
            double ms = since_ms(start);
            total += ms;
            if (ms < best) best = ms;
        }
        struct mu_shard_times times;
        mu_shard_take_times(mu_solo_shard(solo, mu_solo_plan(solo)->leader), &times);
        printf("prefill %6.1f tok/s, %5.0f of %5.0f GOP/s (%2.0f%%)   decode %5.1f tok/s (best %5.1f), %4.1f of %4.1f "
               "GB/s (%3.0f%%, best %3.0f%%)"
               "   exchange %.3f s\n",
               n_prompt * 1e3 / prefill_ms, done, gops, 100 * done / gops, n_decode * 1e3 / total, 1e3 / best,
               weight_bytes * n_decode / total / 1e6, gbps, 100 * weight_bytes * n_decode / total / 1e6 / gbps,
               100 * weight_bytes / best / 1e6 / gbps, times.exchange_s);
    }
    mu_free(ids);
    mu_pool_destroy(pool);
    mu_pages_free(roof.buf, READ_BYTES);
    mu_solo_close(solo);
    mu_model_close(model);
    return 0;
}
