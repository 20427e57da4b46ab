/* How fast attention is, beside what bounds it. Not a test; run by hand:
 *   bench_attn [threads] [f16|q8_0]                       MUSTER_KERNELS=ref|avx2|avx512 to compare
 *   bench_attn threads f16|q8_0 n_rep d_head [context]    decoding with heads of that shape alone; context: 32768
 *
 * Each thread has its own KV heads, as in a rank. FLOPs are 4·d_head per query head and visible position. No call can be
 * faster than the larger of its FLOPs at the f32 rate that the threads reach in registers, and of its bytes of cache at
 * the speed at which they read the same cache and do nothing with it, measured right before; the last column is that
 * bound over the time taken, each the best of REPEATS. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/alloc.h"
#include "kernels/kernels.h"
#include "kernels/peak.h"

enum { MAX_THREADS = 16, PAGE = 32, REPEATS = 7 };
static const size_t DECODE_BYTES = (size_t)64 << 20; /* cache of a thread in f16: beyond its private caches */

struct shape {
    enum mu_kv_type kv;
    int n_tok, n_rep, d_head, pos0, n_kv_head;
};

struct job {
    struct shape s;
    void *cache;
    size_t cache_bytes;
    const void **k_page, **v_page; /* [n_kv_head][pages of a head] */
    float *q, *out;
    pthread_barrier_t *barrier;
    double seconds, read_seconds, f32_gflops; /* the best of REPEATS */
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int pages_of(const struct shape *s)
{
    return (s->pos0 + s->n_tok + PAGE - 1) / PAGE;
}

static void *work(void *arg)
{
    struct job *j = arg;
    const struct shape *s = &j->s;
    mu_fp_env_set();
    size_t row = (size_t)s->n_rep * (size_t)s->d_head;
    j->seconds = j->read_seconds = 1e30;
    pthread_barrier_wait(j->barrier);
    j->f32_gflops = mu_peak_f32_gflops();
    for (int repeat = 0; repeat < REPEATS; repeat++) {
        pthread_barrier_wait(j->barrier);
        double begin = now();
        mu_peak_read_gbps(j->cache, j->cache_bytes & ~(size_t)63);
        double s_read = now() - begin;
        if (s_read < j->read_seconds) j->read_seconds = s_read;
        pthread_barrier_wait(j->barrier);
        begin = now();
        for (int h = 0; h < s->n_kv_head; h++)
            mu_kernels()->attn(&(struct mu_attn){.kv = s->kv,
                                                 .n_tok = s->n_tok,
                                                 .n_rep = s->n_rep,
                                                 .d_head = s->d_head,
                                                 .pos0 = s->pos0,
                                                 .page_tokens = PAGE,
                                                 .scale = 0.125f,
                                                 .q = j->q,
                                                 .q_stride = row,
                                                 .out = j->out,
                                                 .out_stride = row,
                                                 .k_page = j->k_page + h * pages_of(s),
                                                 .v_page = j->v_page + h * pages_of(s)});
        double seconds = now() - begin;
        if (seconds < j->seconds) j->seconds = seconds;
    }
    return NULL;
}

static bool job_open(struct job *j, struct shape s, pthread_barrier_t *barrier)
{
    size_t pages = (size_t)pages_of(&s) * (size_t)s.n_kv_head, half = mu_kv_bytes(s.kv, s.d_head, PAGE);
    size_t row = (size_t)s.n_rep * (size_t)s.d_head, n = (size_t)s.n_tok * row;
    *j = (struct job){.s = s, .cache_bytes = pages * 2 * half, .barrier = barrier};
    j->cache = mu_pages_alloc(j->cache_bytes);
    j->k_page = mu_calloc(pages, sizeof *j->k_page);
    j->v_page = mu_calloc(pages, sizeof *j->v_page);
    j->q = mu_calloc(n, sizeof *j->q);
    j->out = mu_calloc(n, sizeof *j->out);
    float *x = mu_calloc((size_t)s.d_head, sizeof *x);
    if (!j->cache || !j->k_page || !j->v_page || !j->q || !j->out || !x) return false;
    for (size_t i = 0; i < n; i++) j->q[i] = (float)(i * 40503u % 65536u) / 65536.0f - 0.5f;
    for (size_t p = 0; p < pages; p++) {
        void *k = (char *)j->cache + 2 * p * half, *v = (char *)k + half;
        for (int i = 0; i < s.d_head; i++) x[i] = (float)((p + (size_t)i) * 2654435761u % 4096u) / 2048.0f - 1.0f;
        for (int pos = 0; p < 2 && pos < PAGE; pos++) mu_kernels()->kv_store(s.kv, x, x, s.d_head, pos, k, v);
        if (p >= 2) memcpy(k, (char *)j->cache + p % 2 * 2 * half, 2 * half);
        j->k_page[p] = k;
        j->v_page[p] = v;
    }
    mu_free(x);
    return true;
}

static void job_close(struct job *j)
{
    if (j->cache) mu_pages_free(j->cache, j->cache_bytes);
    mu_free(j->k_page);
    mu_free(j->v_page);
    mu_free(j->q);
    mu_free(j->out);
}

/* Runs the shape on every thread and prints a line; pairs: of a query head and a position. */
static void run(int threads, struct shape s, const char *what, int tokens, double pairs)
{
    struct job job[MAX_THREADS] = {0};
    pthread_t id[MAX_THREADS];
    pthread_barrier_t barrier;
    pthread_barrier_init(&barrier, NULL, (unsigned)threads);
    double seconds = 0, read_seconds = 0, f32 = 0;
    bool good = true;
    for (int t = 0; t < threads; t++) good = job_open(&job[t], s, &barrier) && good;
    for (int t = 0; good && t < threads; t++) pthread_create(&id[t], NULL, work, &job[t]);
    for (int t = 0; good && t < threads; t++) {
        pthread_join(id[t], NULL);
        if (job[t].seconds > seconds) seconds = job[t].seconds;
        if (job[t].read_seconds > read_seconds) read_seconds = job[t].read_seconds;
        f32 += job[t].f32_gflops;
    }
    double bytes = (double)job[0].cache_bytes * threads, flops = 4.0 * s.d_head * pairs * s.n_kv_head * threads;
    for (int t = 0; t < threads; t++) job_close(&job[t]);
    pthread_barrier_destroy(&barrier);
    if (!good) {
        printf("%s: no memory\n", what);
        return;
    }
    double bound = flops / f32 * 1e-9 > read_seconds ? flops / f32 * 1e-9 : read_seconds;
    printf(
        "%-7s %-5s %6d tokens  d_head %3d  n_rep %d: %6.1f GFLOP/s of %.0f, %5.1f GB/s of %.1f: %3.0f%% of the bound\n",
        what, mu_kv_type_name(s.kv), tokens, s.d_head, s.n_rep, flops / seconds * 1e-9, f32, bytes / seconds * 1e-9,
        bytes / read_seconds * 1e-9, 100 * bound / seconds);
    fflush(stdout);
}

static void prefill(int threads, enum mu_kv_type kv, int n_tok, int d_head, int n_rep, int n_kv_head)
{
    struct shape s = {.kv = kv, .n_tok = n_tok, .d_head = d_head, .n_rep = n_rep, .n_kv_head = n_kv_head};
    run(threads, s, "prefill", n_tok, 0.5 * n_tok * (n_tok + 1.0) * n_rep);
}

static void decode(int threads, enum mu_kv_type kv, int context, int d_head, int n_rep)
{
    size_t head_bytes = (size_t)context * 4 * (size_t)d_head;
    struct shape s = {.kv = kv, .n_tok = 1, .d_head = d_head, .n_rep = n_rep, .pos0 = context - 1};
    s.n_kv_head = head_bytes < DECODE_BYTES ? (int)(DECODE_BYTES / head_bytes) : 1;
    run(threads, s, "decode", context, (double)context * n_rep);
}

int main(int argc, char **argv)
{
    int threads = argc > 1 ? atoi(argv[1]) : 2, only = argc > 2 ? mu_kv_type_by_name(argv[2]) : MU_KV_TYPE_COUNT;
    int n_rep = argc > 4 ? atoi(argv[3]) : 0, d_head = argc > 4 ? atoi(argv[4]) : 0;
    int context = argc > 5 ? atoi(argv[5]) : 32768;
    if (threads < 1 || threads > MAX_THREADS || only < 0) {
        fprintf(stderr, "bench_attn: threads must be 1 to %d, the format f16 or q8_0\n", MAX_THREADS);
        return 2;
    }
    if (argc > 3 &&
        (n_rep < 1 || n_rep > 64 || d_head < 1 || d_head > MU_MAX_D_HEAD || context < 1 || context > 1 << 20)) {
        fprintf(stderr, "bench_attn: n_rep must be 1 to 64, d_head 1 to %d, the context 1 to 1048576\n", MU_MAX_D_HEAD);
        return 2;
    }
    struct mu_err err = MU_ERR_INIT;
    if (mu_kernels_init(NULL, &err) != MU_OK) {
        fprintf(stderr, "bench_attn: %s\n", err.text);
        return 1;
    }
    printf("%s, %d thread%s\n", mu_kernels()->name, threads, threads == 1 ? "" : "s");
    if (n_rep > 0) {
        decode(threads, (enum mu_kv_type)only, context, d_head, n_rep);
        return 0;
    }
    for (int i = 0; i < MU_KV_TYPE_COUNT; i++) {
        enum mu_kv_type kv = (enum mu_kv_type)i;
        if (only != MU_KV_TYPE_COUNT && only != i) continue;
        prefill(threads, kv, 512, 64, 4, 8);
        prefill(threads, kv, 512, 128, 8, 4);
        prefill(threads, kv, 512, 64, 1, 16);
        static const int contexts[] = {1024, 8192, 32768}, reps[] = {1, 4, 8};
        for (int r = 0; r < 3; r++)
            for (int c = 0; c < 3; c++) decode(threads, kv, contexts[c], reps[r] == 8 ? 128 : 64, reps[r]);
    }
    return 0;
}
