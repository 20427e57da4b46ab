/* How fast a device is, for the plan: each rate by a loop that does little else. A first, small run tells whether a
 * longer one is needed, so that a slow device is not kept for long either. */
#include "cuda.h"
#include "ptx.h"

#include <stdlib.h>

extern "C" {
#include "base/clock.h"
}

enum { BLOCK = 256, BLOCKS_PER_SM = 4, CHAINS = 8, TIMEOUT_MS = 5000, MANY_CACHES = 4, START_BYTES = 1 << 16 };
static const float LONG_MS = 4.0f; /* long enough for the clock and the launch not to count */

static __global__ void read_kernel(const uint4 *p, size_t n, int n_pass, uint32_t *out)
{
    const size_t stride = (size_t)gridDim.x * blockDim.x;
    uint32_t seen = 0;
    for (int pass = 0; pass < n_pass; pass++)
        for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i + 3 * stride < n; i += 4 * stride) {
            uint4 a = mu_ld_stream16(p + i), b = mu_ld_stream16(p + i + stride);
            uint4 c = mu_ld_stream16(p + i + 2 * stride), e = mu_ld_stream16(p + i + 3 * stride);
            seen |= (a.x ^ b.y) & (c.z ^ e.w);
        }
    if (seen == 0x12345678u) *out = seen; /* the compiler must not see that nobody asks */
}

static __global__ void int8_kernel(int n, uint32_t *out)
{
    uint32_t a[4] = {threadIdx.x, 1, 2, 3}, b[2] = {4, 5};
    int sum[CHAINS][4] = {};
    for (int i = 0; i < n; i++)
#pragma unroll
        for (int k = 0; k < CHAINS; k++) mu_mma_s8_k32(sum[k], a, b, sum[k]);
    for (int k = 1; k < CHAINS; k++) sum[0][0] ^= sum[k][0];
    if (sum[0][0] == 0x12345678) *out = 1;
}

static __global__ void bf16_kernel(int n, uint32_t *out)
{
    uint32_t a[4] = {threadIdx.x, 1, 2, 3}, b[2] = {4, 5};
    float sum[CHAINS][4] = {};
    for (int i = 0; i < n; i++)
#pragma unroll
        for (int k = 0; k < CHAINS; k++) mu_mma_bf16_k16(sum[k], a, b, sum[k]);
    for (int k = 1; k < CHAINS; k++) sum[0][0] += sum[k][0];
    if (sum[0][0] == 12345678.0f) *out = 1;
}

static __global__ void f32_kernel(int n, uint32_t *out)
{
    float sum[CHAINS], x = (float)threadIdx.x;
    for (int k = 0; k < CHAINS; k++) sum[k] = x + (float)k;
    for (int i = 0; i < n; i++)
#pragma unroll
        for (int k = 0; k < CHAINS; k++) sum[k] = fmaf(sum[k], 0.5f, x);
    for (int k = 1; k < CHAINS; k++) sum[0] += sum[k];
    if (sum[0] == 12345678.0f) *out = 1;
}

struct timing {
    struct mu_device *d;
    cudaEvent_t from, to;
    uint32_t *out;
};

static void timing_begin(struct timing *t)
{
    mu_note(t->d, cudaEventRecord(t->from, t->d->stream), "measuring");
}

static enum mu_status timing_end(struct timing *t, float *ms_out, struct mu_err *err)
{
    enum mu_status st;
    mu_note(t->d, cudaEventRecord(t->to, t->d->stream), "measuring");
    st = mu_cuda_wait(t->d, MU_DEVICE_MARKS, TIMEOUT_MS, "measuring its speed", err);
    if (st != MU_OK) return st;
    mu_note(t->d, cudaEventElapsedTime(ms_out, t->from, t->to), "measuring");
    if (*ms_out < 1e-3f) *ms_out = 1e-3f;
    return MU_OK;
}

/* A loop's rate: n times as many rounds until it is long. per_warp: operations of a warp in one round. */
static enum mu_status loop_rate(struct timing *t, const char *what, void (*kernel)(int, uint32_t *), double per_warp,
                                double *gops_out, struct mu_err *err)
{
    unsigned n_block = (unsigned)(t->d->n_sm * BLOCKS_PER_SM);
    float ms = 0;
    enum mu_status st;
    for (int n = 8;; n *= 4) {
        timing_begin(t);
        mu_launch(t->d, what, kernel, n_block, BLOCK, 0, n, t->out);
        st = timing_end(t, &ms, err);
        if (st != MU_OK) return st;
        *gops_out = (double)n * per_warp * n_block * (BLOCK / 32) / (ms * 1e6);
        if (ms >= LONG_MS || n >= 1 << 20) return MU_OK;
    }
}

static enum mu_status read_passes(struct timing *t, const void *p, size_t bytes, int n_pass, float *ms_out,
                                  struct mu_err *err)
{
    timing_begin(t);
    mu_launch(t->d, "reading memory", read_kernel, (unsigned)(t->d->n_sm * 8), 512, 0, (const uint4 *)p, bytes / 16,
              n_pass, t->out);
    return timing_end(t, ms_out, err);
}

/* Memory is read from a piece that the cache holds little of, as often as makes it long, where the device is fast enough that the
 * time for it does not matter. 0, unknown: there was only room for a piece that the cache holds. */
static enum mu_status read_rate(struct timing *t, double *gbps_out, struct mu_err *err)
{
    size_t bytes = (size_t)16 << 20, free_bytes = 0, total = 0;
    int cache = 0;
    enum mu_status st = MU_OK;
    mu_note(t->d, cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, t->d->index), "measuring");
    while (st == MU_OK) {
        void *p = NULL;
        float ms = 0;
        int n_pass = 1;
        st = mu_cuda_alloc(t->d, bytes, &p, err);
        if (st != MU_OK) return st;
        mu_cuda_zero(t->d, p, bytes);
        st = read_passes(t, p, START_BYTES, 1, &ms, err); /* brings the kernel's code, which may be compiled now */
        if (st == MU_OK) st = read_passes(t, p, bytes, 1, &ms, err);
        if (st == MU_OK && ms < LONG_MS) {
            n_pass = (int)(LONG_MS / ms) + 1;
            st = read_passes(t, p, bytes, n_pass, &ms, err);
        }
        mu_cuda_free(t->d, p);
        bool large = bytes >= MANY_CACHES * (size_t)cache;
        *gbps_out = large ? (double)bytes * n_pass / (ms * 1e6) : 0;
        if (cudaMemGetInfo(&free_bytes, &total) != cudaSuccess || (large && n_pass == 1) || bytes >= (size_t)1 << 30 ||
            free_bytes < (size_t)64 * bytes / 16)
            break;
        bytes = free_bytes > (size_t)4 << 30 ? (size_t)1 << 30 : bytes * 4;
    }
    return st;
}

static enum mu_status copy_rates(struct timing *t, struct mu_device_speed *speed, struct mu_err *err)
{
    size_t bytes = (size_t)32 << 20;
    void *p = NULL, *host = NULL;
    float ms = 0;
    enum mu_status st = mu_cuda_alloc(t->d, bytes, &p, err);
    if (st == MU_OK) st = mu_cuda_alloc_host(t->d, bytes, &host, err);
    for (int up = 0; up < 2 && st == MU_OK; up++) {
        for (int again = 0; again < 2 && st == MU_OK; again++) {
            timing_begin(t);
            if (up)
                mu_cuda_upload(t->d, p, host, bytes);
            else
                mu_cuda_download(t->d, host, p, bytes);
            st = timing_end(t, &ms, err);
        }
        *(up ? &speed->up_gbps : &speed->down_gbps) = (double)bytes / (ms * 1e6);
    }
    mu_cuda_free_host(t->d, host);
    mu_cuda_free(t->d, p);
    return st;
}

enum mu_status mu_cuda_measure(struct mu_device *d, struct mu_device_speed *speed_out, struct mu_err *err)
{
    struct timing t = {d, NULL, NULL, NULL};
    struct mu_device_speed speed = {};
    void *out = NULL;
    enum mu_status st = mu_cuda_alloc(d, sizeof(uint32_t), &out, err);
    if (st != MU_OK) return st;
    t.out = (uint32_t *)out;
    mu_note(d, cudaEventCreateWithFlags(&t.from, cudaEventDefault), "measuring");
    mu_note(d, cudaEventCreateWithFlags(&t.to, cudaEventDefault), "measuring");
    if (d->failed != cudaSuccess) st = mu_cuda_wait(d, MU_DEVICE_MARKS, 0, "measuring its speed", err);
    if (st == MU_OK) st = read_rate(&t, &speed.read_gbps, err);
    if (st == MU_OK) st = copy_rates(&t, &speed, err);
    if (st == MU_OK)
        st = loop_rate(&t, "int8 products", int8_kernel, CHAINS * 2.0 * 16 * 8 * 32, &speed.int8_gops, err);
    if (st == MU_OK)
        st = loop_rate(&t, "bf16 products", bf16_kernel, CHAINS * 2.0 * 16 * 8 * 16, &speed.bf16_gops, err);
    if (st == MU_OK) st = loop_rate(&t, "f32 products", f32_kernel, CHAINS * 2.0 * 32, &speed.f32_gops, err);
    if (t.from) (void)cudaEventDestroy(t.from);
    if (t.to) (void)cudaEventDestroy(t.to);
    mu_cuda_free(d, out);
    if (st == MU_OK) *speed_out = speed;
    return st;
}
