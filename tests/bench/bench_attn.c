/* How fast attention is: prefill in GFLOP/s of f32, decode in GB/s of KV cache read. Not a test; run by hand:
 *   bench_attn [threads]          MUSTER_KERNELS=ref|avx2|avx512 to compare
 * Each thread has its own KV heads, as in a rank. FLOPs are 4·d_head per query head and visible position. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/alloc.h"
#include "kernels/kernels.h"

enum { MAX_THREADS = 16, PAGE = 64, REPEATS = 5 };

struct job {
    int n_tok, n_rep, d_head, pos0, n_kv_head, rounds;
    const uint16_t *const *k_page; /* [n_kv_head][pages of a head] */
    const uint16_t *const *v_page;
    float *q, *out;
    pthread_barrier_t *barrier;
    double seconds; /* the best of REPEATS */
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *work(void *arg)
{
    struct job *j = arg;
    mu_fp_env_set();
    int pages = (j->pos0 + j->n_tok + PAGE - 1) / PAGE;
    size_t row = (size_t)j->n_rep * (size_t)j->d_head;
    j->seconds = 1e30;
    for (int repeat = 0; repeat < REPEATS; repeat++) {
        pthread_barrier_wait(j->barrier);
        double begin = now();
        for (int round = 0; round < j->rounds; round++)
            for (int h = 0; h < j->n_kv_head; h++)
                mu_kernels()->attn(&(struct mu_attn){.n_tok = j->n_tok,
                                                     .n_rep = j->n_rep,
                                                     .d_head = j->d_head,
                                                     .pos0 = j->pos0,
                                                     .page_tokens = PAGE,
                                                     .scale = 0.125f,
                                                     .q = j->q,
                                                     .q_stride = row,
                                                     .out = j->out,
                                                     .out_stride = row,
                                                     .k_page = j->k_page + h * pages,
                                                     .v_page = j->v_page + h * pages});
        double s = now() - begin;
        if (s < j->seconds) j->seconds = s;
    }
    return NULL;
}

static void fill_f16(uint16_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++) p[i] = (uint16_t)(0x2c00u + i * 2654435761u % 0x0fffu);
}

/* Runs the shape on every thread; returns the slowest thread's seconds a round, or a negative number without memory. */
static double run(int threads, struct job shape)
{
    int pages = (shape.pos0 + shape.n_tok + PAGE - 1) / PAGE;
    size_t page_values = (size_t)PAGE * (size_t)shape.d_head, all_pages = (size_t)pages * (size_t)shape.n_kv_head;
    size_t cache_bytes = all_pages * page_values * 2 * 2, row_bytes = (size_t)shape.n_rep * (size_t)shape.d_head * 4;
    struct job job[MAX_THREADS];
    pthread_t id[MAX_THREADS];
    pthread_barrier_t barrier;
    pthread_barrier_init(&barrier, NULL, (unsigned)threads);
    for (int t = 0; t < threads; t++) {
        uint16_t *cache = mu_pages_alloc(cache_bytes);
        const uint16_t **table = mu_calloc(all_pages * 2, sizeof *table);
        job[t] = shape;
        job[t].q = mu_calloc((size_t)shape.n_tok, row_bytes);
        job[t].out = mu_calloc((size_t)shape.n_tok, row_bytes);
        if (!cache || !table || !job[t].q || !job[t].out) return -1.0;
        fill_f16(cache, cache_bytes / 2);
        for (size_t i = 0; i < (size_t)shape.n_tok * row_bytes / 4; i++)
            job[t].q[i] = (float)(i * 40503u % 65536u) / 65536.0f - 0.5f;
        for (size_t i = 0; i < all_pages; i++) {
            table[i] = cache + 2 * i * page_values;
            table[all_pages + i] = table[i] + page_values;
        }
        job[t].k_page = table;
        job[t].v_page = table + all_pages;
        job[t].barrier = &barrier;
        pthread_create(&id[t], NULL, work, &job[t]);
    }
    double worst = 0;
    for (int t = 0; t < threads; t++) {
        pthread_join(id[t], NULL);
        if (job[t].seconds > worst) worst = job[t].seconds;
        mu_pages_free((void *)(uintptr_t)job[t].k_page[0], cache_bytes);
        mu_free((void *)(uintptr_t)job[t].k_page);
        mu_free(job[t].q);
        mu_free(job[t].out);
    }
    pthread_barrier_destroy(&barrier);
    return worst / shape.rounds;
}

static void prefill(int threads, int n_tok, int d_head, int n_rep, int n_kv_head)
{
    struct job j = {.n_tok = n_tok, .n_rep = n_rep, .d_head = d_head, .n_kv_head = n_kv_head, .rounds = 2};
    double s = run(threads, j), pairs = 0.5 * n_tok * (n_tok + 1.0) * n_rep * n_kv_head * threads;
    printf("prefill %5d tokens  d_head %3d  n_rep %d: %7.1f GFLOP/s\n", n_tok, d_head, n_rep,
           4.0 * d_head * pairs / s * 1e-9);
}

static void decode(int threads, int context, int d_head, int n_rep, int n_kv_head)
{
    struct job j = {
        .n_tok = 1, .n_rep = n_rep, .d_head = d_head, .pos0 = context - 1, .n_kv_head = n_kv_head, .rounds = 4};
    double s = run(threads, j), bytes = 4.0 * d_head * context * n_kv_head * threads;
    printf("decode %6d context  d_head %3d  n_rep %d: %7.1f GB/s of KV (%.0f MiB), %7.1f GFLOP/s\n", context, d_head,
           n_rep, bytes / s * 1e-9, bytes / 1048576, bytes * n_rep / s * 1e-9);
}

int main(int argc, char **argv)
{
    int threads = argc > 1 ? atoi(argv[1]) : 2;
    if (threads < 1 || threads > MAX_THREADS) {
        fprintf(stderr, "bench_attn: threads must be 1 to %d\n", MAX_THREADS);
        return 2;
    }
    struct mu_err err = MU_ERR_INIT;
    if (mu_kernels_init(NULL, &err) != MU_OK) {
        fprintf(stderr, "bench_attn: %s\n", err.text);
        return 1;
    }
    printf("%s, %d thread%s\n", mu_kernels()->name, threads, threads == 1 ? "" : "s");
    prefill(threads, 512, 64, 4, 8);
    prefill(threads, 512, 128, 8, 4);
    prefill(threads, 512, 64, 1, 16);
    decode(threads, 4096, 64, 4, 32);
    decode(threads, 32768, 64, 4, 8);
    decode(threads, 32768, 128, 8, 4);
    decode(threads, 32768, 64, 1, 8);
    return 0;
}
