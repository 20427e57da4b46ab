/* How fast the matrix kernels are, against what this machine can do, in one run.
 *
 *   bench_kernels [-t THREADS] [-r ROWS] [-c COLS] [-T TYPE] [-n TOKENS] [-m MEGABYTES]
 *
 * Prefill rows (many tokens) say what fraction of the int8 (or f32) peak is reached on a matrix of ROWS × COLS. Decode
 * rows walk through MEGABYTES of matrices, more than a cache holds, and say what fraction of a plain read's bandwidth,
 * measured alternately with them. Threads take chunks of 64 rows from a counter, as the engine does. */
#include <getopt.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/pool.h"
#include "kernels/kernels.h"
#include "kernels/peak.h"

enum { MAX_TOKENS = 512, MAX_THREADS = 256 };

struct bench {
    int n_threads, n_row, n_col, chunk;
    size_t big_bytes;
    struct mu_pool *pool;
    struct mu_act act;
    float *out;
    uint8_t *weights; /* packed matrices one after another */
    double int8_gops, f32_gflops;
};

/* One pass of all threads over n_mat matrices at weights. */
struct pass {
    const struct bench *b;
    struct mu_mat mat;
    size_t mat_bytes;
    int n_mat;
    struct mu_act act;
    atomic_int next;
};

static void pass_thread(void *arg, int member, int n_members)
{
    struct pass *p = arg;
    int per_mat = (p->mat.n_row + p->b->chunk - 1) / p->b->chunk, i;
    (void)member;
    (void)n_members;
    while ((i = atomic_fetch_add(&p->next, 1)) < per_mat * p->n_mat) {
        struct mu_mat m = p->mat;
        int row0 = i % per_mat * p->b->chunk, row1 = row0 + p->b->chunk < m.n_row ? row0 + p->b->chunk : m.n_row;
        m.data = p->b->weights + (size_t)(i / per_mat) * p->mat_bytes;
        mu_kernels()->matmul(&m, &p->act, row0, row1, p->b->out, (size_t)m.n_row);
    }
}

static double pass_seconds(struct pass *p)
{
    atomic_store(&p->next, 0);
    int64_t start = mu_now_ns();
    mu_pool_run(p->b->pool, pass_thread, p);
    return (double)(mu_now_ns() - start) * 1e-9;
}

struct reading {
    const uint8_t *buf;
    size_t bytes;
    double rate[MAX_THREADS], int8[MAX_THREADS], f32[MAX_THREADS];
};

static void read_thread(void *arg, int member, int n_members)
{
    struct reading *r = arg;
    size_t part = r->bytes / (size_t)n_members / 4096 * 4096;
    r->rate[member] = mu_peak_read_gbps(r->buf + part * (size_t)member, part);
}

static void peak_thread(void *arg, int member, int n_members)
{
    struct reading *r = arg;
    (void)n_members;
    r->int8[member] = mu_peak_int8_gops();
    r->f32[member] = mu_peak_f32_gflops();
}

static uint64_t rng = 88172645463325252u;
static uint32_t rnd(void)
{
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return (uint32_t)(rng >> 16);
}

/* Any packed bytes run at the same speed as long as floats are ordinary; scales are bytes that read as small
 * numbers. */
static void weights_fill(struct bench *b, uint32_t type)
{
    for (size_t i = 0; i < b->big_bytes / 4; i++) {
        uint32_t v = rnd() & 0x3fff3fffu;
        if (type == MU_MXFP4) v = (v & 0x0f0f0f0fu) | 0x70707070u; /* exponents anywhere, none that makes subnormals */
        if (type == MU_F32) v = (v & 0x007fffffu) | 0x3c000000u;
        memcpy(b->weights + 4 * i, &v, 4);
    }
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void bench_type(struct bench *b, uint32_t type, int n_tok)
{
    struct pass p = {.b = b, .mat = {type, b->n_row, b->n_col, NULL}, .act = b->act};
    p.act.n_tok = n_tok;
    p.mat_bytes = (mu_kernels()->mat_bytes(type, b->n_row, b->n_col) + 63) / 64 * 64;
    p.n_mat = n_tok >= 96 ? 1 : (int)(b->big_bytes / p.mat_bytes);
    if (p.n_mat < 1) p.n_mat = 1;
    struct reading r = {.buf = b->weights, .bytes = p.mat_bytes * (size_t)p.n_mat};
    enum { REPEATS = 7 };
    double best = 1e9, ratio[REPEATS], gbps = 0;
    double ops = 2.0 * b->n_row * b->n_col * n_tok * p.n_mat;
    for (int i = 0; i < REPEATS; i++) {
        double s = pass_seconds(&p), read = 0;
        if (s < best) best = s;
        mu_pool_run(b->pool, read_thread, &r);
        for (int t = 0; t < b->n_threads; t++) read += r.rate[t];
        ratio[i] = (double)r.bytes / s * 1e-9 / read;
        if ((double)r.bytes / s * 1e-9 > gbps) gbps = (double)r.bytes / s * 1e-9;
    }
    qsort(ratio, REPEATS, sizeof *ratio, by_value);
    bool f = mu_type_info(type)->act != MU_ACT_Q8;
    printf("%-7s %4d %9.1f %7.1f%% of %s peak", mu_type_info(type)->name, n_tok, ops / best * 1e-9,
           100 * ops / best * 1e-9 / (f ? b->f32_gflops : b->int8_gops), f ? "f32 " : "int8");
    if (p.n_mat > 1) printf(" %7.1f GB/s %5.2f of a plain read", gbps, ratio[REPEATS / 2]);
    printf("\n");
    fflush(stdout);
}

int main(int argc, char **argv)
{
    struct bench b = {.n_threads = 1, .n_row = 2048, .n_col = 2048, .chunk = 64, .big_bytes = 256u << 20};
    int only_type = -1, only_tok = 0, opt;
    while ((opt = getopt(argc, argv, "t:r:c:T:n:m:k:")) != -1) switch (opt) {
        case 't': b.n_threads = atoi(optarg); break;
        case 'r': b.n_row = atoi(optarg); break;
        case 'c': b.n_col = atoi(optarg); break;
        case 'k': b.chunk = atoi(optarg); break;
        case 'm': b.big_bytes = (size_t)atoi(optarg) << 20; break;
        case 'n': only_tok = atoi(optarg); break;
        case 'T': only_type = mu_type_by_name(optarg); break;
        default:
            fprintf(stderr,
                    "usage: %s [-t threads] [-r rows] [-c cols] [-k rows a chunk] [-T type] [-n tokens] [-m MB]\n",
                    argv[0]);
            return 2;
        }
    struct mu_err err = MU_ERR_INIT;
    struct mu_pool_options po = {.n_threads = b.n_threads, .pin = 1, .thread_init = mu_fp_env_init};
    if (b.n_threads < 1 || b.n_threads > MAX_THREADS || b.n_row < 16 || b.n_col < 256 || b.n_col % 256 ||
        b.chunk % 16) {
        fprintf(stderr, "threads 1 to %d, rows at least 16, columns a multiple of 256, chunks of 16\n", MAX_THREADS);
        return 2;
    }
    if (mu_kernels_init(NULL, &err) != MU_OK || mu_pool_create(&po, &b.pool, &err) != MU_OK) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    size_t n = (size_t)MAX_TOKENS * (size_t)b.n_col;
    float *f32 = mu_aligned_alloc(64, n * 4), *s = mu_aligned_alloc(64, n / 8);
    int8_t *q = mu_aligned_alloc(64, n);
    uint16_t *bf16 = mu_aligned_alloc(64, n * 2);
    int16_t *sum = mu_aligned_alloc(64, n / 8);
    b.out = mu_aligned_alloc(64, (size_t)MAX_TOKENS * (size_t)b.n_row * 4);
    b.weights = mu_pages_alloc(b.big_bytes);
    if (!f32 || !s || !q || !bf16 || !sum || !b.out || !b.weights) {
        fprintf(stderr, "no memory\n");
        return 1;
    }
    for (size_t i = 0; i < n; i++) f32[i] = (float)(int)(rnd() % 2001u - 1000u) * 1e-3f;
    mu_kernels()->quantize(f32, (int)n, q, s, sum);
    mu_kernels()->to_bf16(f32, (int)n, bf16);
    b.act = (struct mu_act){.n_col = b.n_col, .f32 = f32, .bf16 = bf16, .q = q, .s = s, .sum = sum};
    struct reading r = {0};
    mu_pool_run(b.pool, peak_thread, &r);
    for (int t = 0; t < b.n_threads; t++) b.int8_gops += r.int8[t], b.f32_gflops += r.f32[t];
    printf("%s, %d threads, %d × %d, chunks of %d: int8 peak %.0f GOP/s, f32 peak %.0f GFLOP/s\n", mu_kernels()->name,
           b.n_threads, b.n_row, b.n_col, b.chunk, b.int8_gops, b.f32_gflops);
    printf("type  tokens     GOP/s\n");
    static const uint32_t types[] = {MU_Q4_0,  MU_Q4_K,  MU_Q8_0, MU_Q6_K, MU_Q5_K, MU_IQ4_NL, MU_IQ4_XS,
                                     MU_MXFP4, MU_Q4_1,  MU_Q5_0, MU_Q5_1, MU_Q3_K, MU_Q2_K,   MU_TQ1_0,
                                     MU_TQ2_0, MU_IQ3_S, MU_F16,  MU_BF16, MU_F32};
    static const int tokens[] = {1, 4, 12, 96, 512};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (only_type >= 0 && types[i] != (uint32_t)only_type) continue;
        weights_fill(&b, types[i]);
        if (only_tok)
            bench_type(&b, types[i], only_tok <= MAX_TOKENS ? only_tok : MAX_TOKENS);
        else
            for (size_t t = 0; t < sizeof tokens / sizeof *tokens; t++) bench_type(&b, types[i], tokens[t]);
    }
    mu_pages_free(b.weights, b.big_bytes);
    void *all[] = {f32, s, q, bf16, sum, b.out};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) mu_free(all[i]);
    mu_pool_destroy(b.pool);
    return 0;
}
