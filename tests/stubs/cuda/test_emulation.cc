/* The emulated device itself: collectives, barriers, products and fragments by their definitions, and that what would
 * hang or go wrong unseen on a GPU ends the process with a sentence. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

extern "C" {
#include <cmocka.h>
}

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/ptx.h"

static struct mu_device dev; /* as much of one as mu_launch wants */

static int setup(void **)
{
    return cudaStreamCreateWithFlags(&dev.stream, cudaStreamNonBlocking) != cudaSuccess;
}

template <typename T> static T *device_array(size_t n)
{
    void *p = nullptr;
    assert_int_equal(cudaMalloc(&p, n * sizeof(T)), cudaSuccess);
    return (T *)p;
}

template <typename T> static void download(T *to, const T *from, size_t n)
{
    assert_int_equal(dev.failed, cudaSuccess);
    assert_int_equal(cudaMemcpyAsync(to, from, n * sizeof(T), cudaMemcpyDeviceToHost, dev.stream), cudaSuccess);
    assert_int_equal(cudaStreamSynchronize(dev.stream), cudaSuccess);
}

/* ---- collectives ---- */

static __global__ void collectives(int *out)
{
    int lane = (int)threadIdx.x % 32, v = lane * lane, *o = out + (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    o[0] = __shfl_sync(0xffffffffu, v, 5);
    o[1] = __shfl_xor_sync(0xffffffffu, v, 16);
    o[2] = __shfl_up_sync(0xffffffffu, v, 3);
    o[3] = __shfl_down_sync(0xffffffffu, v, 3, 8);
    o[4] = (int)__ballot_sync(0xffffffffu, lane % 3 == 0);
    o[5] = __any_sync(0xffffffffu, lane == 31) + 2 * __all_sync(0xffffffffu, lane < 31);
    o[6] = (int)__reduce_add_sync(0xffffffffu, (unsigned)lane);
    o[7] = __syncthreads_count(threadIdx.x % 2 == 0) + 1000 * __syncthreads_or(threadIdx.x == 7) +
           10000 * __syncthreads_and(threadIdx.x != 7);
}

static void test_collectives(void **)
{
    enum { N = 3 * 96 };
    static int got[N * 8];
    int *out = device_array<int>(N * 8);
    mu_launch(&dev, "collectives", collectives, 3, 96, 0, out);
    download(got, out, N * 8);
    for (int i = 0; i < N; i++) {
        int lane = i % 96 % 32, x = lane ^ 16, up = lane < 3 ? lane : lane - 3, down = lane % 8 > 4 ? lane : lane + 3;
        const int want[8] = {25, x * x, up * up, down * down, 0x49249249, 1, 31 * 16, 48 + 1000};
        for (int k = 0; k < 8; k++)
            if (got[i * 8 + k] != want[k]) fail_msg("thread %d, value %d: %d, not %d", i, k, got[i * 8 + k], want[k]);
    }
    assert_int_equal(cudaFree(out), cudaSuccess);
}

/* A tree of sums in shared memory, static and dynamic: right with its barriers, and hardly ever without them. */
template <bool BARRIER> static __global__ void sums(int *out)
{
    __shared__ int a[256];
    MU_SHARED(int, b);
    int i = (int)threadIdx.x;
    a[i] = i;
    if (BARRIER) __syncthreads();
    b[i] = a[255 - i];
    for (int n = 128; n; n /= 2) {
        if (BARRIER) __syncthreads();
        if (i < n) b[i] += b[i + n];
    }
    if (i == 0) out[blockIdx.x] = b[0];
}

static void test_barriers(void **)
{
    int got[50], wrong = 0, *out = device_array<int>(50);
    mu_launch(&dev, "sums", sums<true>, 50, 256, 1024, out);
    download(got, out, 50);
    for (int i = 0; i < 50; i++) assert_int_equal(got[i], 255 * 128);
    mu_launch(&dev, "sums without barriers", sums<false>, 50, 256, 1024, out);
    download(got, out, 50);
    for (int i = 0; i < 50; i++) wrong += got[i] != 255 * 128;
    assert_true(wrong >= 45);
    assert_int_equal(cudaFree(out), cudaSuccess);
}

/* ---- tensor cores ---- */

struct operands {
    int8_t a[16][32], b[8][32]; /* b by columns */
    int32_t c[16][8], d[16][8], d16[16][8], d_matrix[16][8];
};

/* The same product three times: by the layouts that ptx.h's comment gives, of the first 16 columns likewise, and with
 * fragments from ldmatrix. */
static __global__ void products(operands *o)
{
    __shared__ __align__(16) int8_t a_rows[16][32];
    __shared__ __align__(16) int8_t b_rows[8][32];
    int lane = (int)threadIdx.x, g = lane / 4, t = lane % 4, c[4], d[4];
    uint32_t a[4], b[2];
    for (int i = 0; i < 4; i++) {
        a[i] = *(const uint32_t *)&o->a[g + i % 2 * 8][i / 2 * 16 + 4 * t];
        c[i] = o->c[g + i / 2 * 8][2 * t + i % 2];
    }
    for (int i = 0; i < 2; i++) b[i] = *(const uint32_t *)&o->b[g][16 * i + 4 * t];
    mu_mma_s8_k32(d, a, b, c);
    for (int i = 0; i < 4; i++) o->d[g + i / 2 * 8][2 * t + i % 2] = d[i];
    mu_mma_s8_k16(d, a, b[0], c);
    for (int i = 0; i < 4; i++) o->d16[g + i / 2 * 8][2 * t + i % 2] = d[i];

    mu_cp_async16(&a_rows[lane / 2][lane % 2 * 16], &o->a[lane / 2][lane % 2 * 16]);
    if (lane < 16) mu_cp_async16(&b_rows[lane / 2][lane % 2 * 16], &o->b[lane / 2][lane % 2 * 16]);
    mu_cp_async_commit();
    mu_cp_async_wait<0>();
    __syncwarp();
    mu_ldmatrix_x4(a, &a_rows[lane % 8 + lane / 8 % 2 * 8][lane / 16 * 16]);
    uint32_t both[4]; /* twice */
    mu_ldmatrix_x4(both, &b_rows[lane % 8][lane / 8 % 2 * 16]);
    b[0] = both[0], b[1] = both[1];
    mu_mma_s8_k32(c, a, b, c);
    for (int i = 0; i < 4; i++) o->d_matrix[g + i / 2 * 8][2 * t + i % 2] = c[i];
}

static void test_products(void **)
{
    static operands o;
    operands *p = device_array<operands>(1);
    for (size_t i = 0; i < sizeof o.a + sizeof o.b; i++) (&o.a[0][0])[i] = (int8_t)(i * 2654435761u >> 13);
    for (int i = 0; i < 128; i++) o.c[i / 8][i % 8] = i * 1000003;
    assert_int_equal(cudaMemcpyAsync(p, &o, sizeof o, cudaMemcpyHostToDevice, dev.stream), cudaSuccess);
    mu_launch(&dev, "products", products, 1, 32, 0, p);
    download(&o, p, 1);
    for (int r = 0; r < 16; r++)
        for (int c = 0; c < 8; c++) {
            int first = o.c[r][c], all;
            for (int k = 0; k < 16; k++) first += o.a[r][k] * o.b[c][k];
            all = first;
            for (int k = 16; k < 32; k++) all += o.a[r][k] * o.b[c][k];
            assert_int_equal(o.d[r][c], all);
            assert_int_equal(o.d_matrix[r][c], all);
            assert_int_equal(o.d16[r][c], first);
        }
    assert_int_equal(cudaFree(p), cudaSuccess);
}

/* Of halves, small whole numbers, so that sums are exact in any order: a and b by layout, and with fragments from
 * ldmatrix; then d, rounded and packed, as the a of another product, with the identity as its b. */
struct halves {
    uint16_t a[16][16], b[8][16]; /* b by columns */
    float c[16][8], d[16][8], d_matrix[16][8], again[16][8];
};

static __global__ void half_products(halves *o)
{
    __shared__ __align__(16) uint16_t a_rows[16][16];
    __shared__ __align__(16) uint16_t b_rows[8][16];
    int lane = (int)threadIdx.x, g = lane / 4, t = lane % 4;
    float c[4], d[4], zero[4] = {0, 0, 0, 0};
    uint32_t a[4], b[2], both[4];
    for (int i = 0; i < 4; i++) {
        a[i] = *(const uint32_t *)&o->a[g + i % 2 * 8][i / 2 * 8 + 2 * t];
        c[i] = o->c[g + i / 2 * 8][2 * t + i % 2];
    }
    for (int i = 0; i < 2; i++) b[i] = *(const uint32_t *)&o->b[g][8 * i + 2 * t];
    mu_mma_f16_k16(d, a, b, c);
    for (int i = 0; i < 4; i++) o->d[g + i / 2 * 8][2 * t + i % 2] = d[i];

    for (int i = lane; i < 256; i += 32) a_rows[i / 16][i % 16] = o->a[i / 16][i % 16];
    for (int i = lane; i < 128; i += 32) b_rows[i / 16][i % 16] = o->b[i / 16][i % 16];
    __syncwarp();
    mu_ldmatrix_x4(a, &a_rows[lane % 16][lane / 16 * 8]);
    mu_ldmatrix_x4(both, &b_rows[lane % 8][lane / 8 % 2 * 8]);
    mu_mma_f16_k16(c, a, both, c);
    for (int i = 0; i < 4; i++) o->d_matrix[g + i / 2 * 8][2 * t + i % 2] = c[i];

    a[0] = mu_f32_to_half2(d[0], d[1]), a[1] = mu_f32_to_half2(d[2], d[3]);
    a[2] = a[3] = 0;
    b[0] = mu_f32_to_half2(2 * t == g, 2 * t + 1 == g), b[1] = b[0];
    mu_mma_f16_k16(d, a, b, zero);
    for (int i = 0; i < 4; i++) o->again[g + i / 2 * 8][2 * t + i % 2] = d[i];
}

static void test_half_products(void **)
{
    static halves o;
    halves *p = device_array<halves>(1);
    for (size_t i = 0; i < 24 * 16; i++)
        (&o.a[0][0])[i] = mu_f32_to_half((float)((int)(i * 2654435761u >> 13) % 16 - 8) / 4);
    for (int i = 0; i < 128; i++) o.c[i / 8][i % 8] = (float)(i * 37 % 100);
    assert_int_equal(cudaMemcpyAsync(p, &o, sizeof o, cudaMemcpyHostToDevice, dev.stream), cudaSuccess);
    mu_launch(&dev, "products of halves", half_products, 1, 32, 0, p);
    download(&o, p, 1);
    for (int r = 0; r < 16; r++)
        for (int c = 0; c < 8; c++) {
            float sum = o.c[r][c];
            for (int k = 0; k < 16; k++) sum += mu_half_to_f32(o.a[r][k]) * mu_half_to_f32(o.b[c][k]);
            assert_true(o.d[r][c] == sum);
            assert_true(o.d_matrix[r][c] == sum);
            assert_true(o.again[r][c] == mu_half_to_f32(mu_f32_to_half(sum)));
        }
    assert_int_equal(cudaFree(p), cudaSuccess);
}

/* ---- copies that are on their way ---- */

static __global__ void copies(const unsigned char *from, unsigned char *out)
{
    __shared__ __align__(16) unsigned char s[3][16];
    if (threadIdx.x == 0) {
        mu_cp_async16(s[0], from);
        mu_cp_async_commit();
        mu_cp_async16(s[1], from, 5);
        mu_cp_async_commit();
        mu_cp_async4(s[2], from, 0);
        mu_cp_async4(s[2] + 8, from);
        mu_cp_async4(s[2] + 12, from + 4);
        mu_cp_async_commit();
        mu_cp_async_wait<2>();
        memcpy(out, s, 48);
        mu_cp_async_wait<0>();
        memcpy(out + 48, s, 48);
    }
}

static void test_copies(void **)
{
    unsigned char got[96], want[96];
    unsigned char *p = device_array<unsigned char>(112);
    for (int i = 0; i < 16; i++) got[i] = (unsigned char)(i + 1);
    assert_int_equal(cudaMemcpyAsync(p, got, 16, cudaMemcpyHostToDevice, dev.stream), cudaSuccess);
    memset(want, 0xff, sizeof want);
    memcpy(want, got, 16);
    memcpy(want + 48, got, 16);
    memset(want + 64, 0, 16);
    memcpy(want + 64, got, 5);
    memset(want + 80, 0, 4);
    memcpy(want + 88, got, 8);
    mu_launch(&dev, "copies", copies, 1, 32, 0, p, p + 16);
    download(got, p + 16, 96);
    assert_memory_equal(got, want, 96);
    assert_int_equal(cudaFree(p), cudaSuccess);
}

/* ---- half precision: there and back for every half; what lies between goes to the nearer one ---- */

static void test_halves(void **)
{
    for (uint32_t h = 0; h < 0x7c00; h++) {
        float f = mu_half_to_f32((uint16_t)h), next = h == 0x7bff ? 65536.0f : mu_half_to_f32((uint16_t)(h + 1));
        float middle = (f + next) / 2;
        assert_int_equal(mu_f32_to_half(f), h);
        assert_int_equal(mu_f32_to_half(-f), h | 0x8000);
        assert_int_equal(mu_f32_to_half(middle), h + (h & 1));
        assert_int_equal(mu_f32_to_half(nextafterf(middle, 0)), h);
        assert_int_equal(mu_f32_to_half(nextafterf(middle, 1e9f)), h + 1);
    }
    assert_true(mu_half_to_f32(0x3c00) == 1.0f && mu_half_to_f32(1) == 0x1p-24f && isinf(mu_half_to_f32(0x7c00)));
}

/* ---- deaths ---- */

static __global__ void half_at_barrier(int)
{
    if (threadIdx.x < 16) __syncthreads();
}
static __global__ void lanes_apart(int)
{
    if (threadIdx.x % 2)
        __syncwarp();
    else
        __shfl_sync(0xffffffffu, 1, 0);
}
static __global__ void part_of_mask(int)
{
    __syncwarp(0xffffu);
}
static __global__ void part_of_warp(int)
{
    __syncwarp();
}
static __global__ void past_shared(int)
{
    MU_SHARED(char, s);
    s[100] = 1;
}
static __global__ void traps(int)
{
    if (threadIdx.x == 3) __trap();
}
static __global__ void write_at(char *p, int i)
{
    p[i] = 1;
}

static void past_the_end(int i)
{
    char *p = device_array<char>(100);
    mu_launch(&dev, "write_at", write_at, 1, 1, 0, p, i);
    (void)cudaFree(p);
}
static void freed(void)
{
    char *p = device_array<char>(100);
    (void)cudaFree(p);
    (void)cudaFree(p);
}
static void copied_past_the_end(void)
{
    char *p = device_array<char>(100), host[101] = {};
    (void)cudaMemcpyAsync(p, host, 101, cudaMemcpyHostToDevice, dev.stream);
}

/* Runs `what` in a child, which must die by SIGABRT (of AddressSanitizer: end) after saying `said`. */
static void dies(const char *said, void (*what)(void))
{
    int ends[2], status;
    static char text[1 << 16];
    size_t n = 0;
    ssize_t r;
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    if (child == 0) {
        signal(SIGABRT, SIG_DFL);
        dup2(ends[1], 2);
        close(ends[0]);
        what();
        _exit(0);
    }
    close(ends[1]);
    while ((r = read(ends[0], text + n, sizeof text - 1 - n)) > 0) n += (size_t)r;
    text[n] = '\0';
    close(ends[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) fail_msg("lived, and should have said: %s", said);
    if (!strstr(text, said) && !strstr(text, "AddressSanitizer")) fail_msg("said \"%s\", not \"%s\"", text, said);
}

static void test_deaths(void **)
{
    dies("16 of 32 threads wait for ever", [] { mu_launch(&dev, "half_at_barrier", half_at_barrier, 1, 32, 0, 0); });
    dies("kernel half_at_barrier, block (0, 0, 0)",
         [] { mu_launch(&dev, "half_at_barrier", half_at_barrier, 1, 32, 0, 0); });
    dies("another of its warp in", [] { mu_launch(&dev, "lanes_apart", lanes_apart, 1, 32, 0, 0); });
    dies("all lanes, please", [] { mu_launch(&dev, "part_of_mask", part_of_mask, 1, 32, 0, 0); });
    dies("in a warp of 8 threads", [] { mu_launch(&dev, "part_of_warp", part_of_warp, 1, 40, 0, 0); });
    dies("0 bytes beyond its 100", [] { mu_launch(&dev, "past_shared", past_shared, 1, 1, 100, 0); });
    dies("thread (3, 0, 0) of (32, 1, 1)\nemulated CUDA: __trap()",
         [] { mu_launch(&dev, "traps", traps, 1, 32, 0, 0); });
    dies("was written at byte 100", [] { past_the_end(100); });
    dies("was written at byte -1", [] { past_the_end(-1); });
    dies("which is no allocation", freed);
    dies("not within one allocation", copied_past_the_end);
}

/* Fresh memory, static and dynamic shared memory hold no useful values, in every block. */
static __global__ void fresh(uint32_t *out, const uint32_t *memory)
{
    __shared__ uint32_t a[4];
    MU_SHARED(uint32_t, b);
    uint32_t was = a[3] & b[3] & memory[blockIdx.x];
    __syncthreads();
    if (threadIdx.x == 0) out[blockIdx.x] = was;
    a[threadIdx.x % 4] = b[threadIdx.x % 4] = 0;
}

static void test_fresh(void **)
{
    uint32_t got[8], *out = device_array<uint32_t>(8), *memory = device_array<uint32_t>(8);
    mu_launch(&dev, "fresh", fresh, 8, 64, 16, out, memory);
    download(got, out, 8);
    for (int i = 0; i < 8; i++) assert_int_equal(got[i], 0xffffffffu);
    assert_int_equal(cudaFree(out), cudaSuccess);
    assert_int_equal(cudaFree(memory), cudaSuccess);
}

/* The host reads a device's pointer: a crash, as it would be. */
static void test_host_is_kept_out(void **)
{
    int status;
    char *p = device_array<char>(10);
    pid_t child = fork();
    if (child == 0) {
        signal(SIGSEGV, SIG_DFL);
        close(2);
        _exit(*(volatile char *)p & 0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_false(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_int_equal(cudaFree(p), cudaSuccess);
}

/* ---- kernels that start early: what earlier ones write is not there before mu_grid_wait ---- */

static __global__ void write_all(int *p, int value)
{
    mu_grid_begin();
    p[blockIdx.x * blockDim.x + threadIdx.x] = value;
}
static __global__ void copy_late(const int *p, const int *weight, int *out)
{
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x), w = weight[i];
    if (threadIdx.x % 2) mu_grid_wait(); /* a warp parts ways, and meets */
    __syncthreads();
    mu_grid_wait();
    out[i] = p[i] + w;
}
static __global__ void copy_soon(const int *p, int *out)
{
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x), v = p[i];
    mu_grid_wait();
    out[i] = v;
}
static __global__ void write_soon(int *p)
{
    if (threadIdx.x == 3) p[0] = 1;
    mu_grid_wait();
}

static void written_soon(void)
{
    int *a = device_array<int>(64), *b = device_array<int>(64);
    dev.early = true;
    mu_launch(&dev, "write_all", write_all, 2, 32, 0, a, 5);
    mu_launch_early(&dev, "write_soon", write_soon, 1, 32, 0, b);
}

static void test_early(void **)
{
    int *a = device_array<int>(64), *b = device_array<int>(64), *weight = device_array<int>(64), got[64];
    dev.early = true;
    assert_int_equal(setenv("MUSTER_CUDA_EMULATED_EARLY", "1", 1), 0);
    mu_launch(&dev, "weights", write_all, 2, 32, 0, weight, 100);
    mu_launch(&dev, "write_all", write_all, 2, 32, 0, a, 5);
    mu_launch_early(&dev, "copy_late", copy_late, 2, 32, 0, a, weight, b);
    mu_launch_early(&dev, "copy_late", copy_late, 2, 32, 0, b, weight, b); /* in place */
    mu_launch_early(&dev, "copy_late", copy_late, 2, 32, 0, b, weight, b); /* and again */
    download(got, b, 64);
    for (int i = 0; i < 64; i++) assert_int_equal(got[i], 305);
    mu_launch(&dev, "write_all", write_all, 2, 32, 0, a, 6);
    mu_launch_early(&dev, "write_all", write_all, 2, 32, 0, weight, 7);
    mu_launch_early(&dev, "copy_soon", copy_soon, 2, 32, 0, a, b); /* the kernel before the one before */
    download(got, b, 64);
    for (int i = 0; i < 64; i++) assert_int_equal(got[i], 0xff);   /* the byte that has changed */
    mu_launch_early(&dev, "copy_soon", copy_soon, 2, 32, 0, a, b); /* a copy ends all that was before it */
    download(got, b, 64);
    for (int i = 0; i < 64; i++) assert_int_equal(got[i], 6);
    dies("was written before mu_grid_wait", written_soon);
    assert_int_equal(unsetenv("MUSTER_CUDA_EMULATED_EARLY"), 0);
    assert_int_equal(cudaFree(a), cudaSuccess);
    assert_int_equal(cudaFree(b), cudaSuccess);
    assert_int_equal(cudaFree(weight), cudaSuccess);
}

/* What a launch may not ask for. */
static void test_launch_limits(void **)
{
    int *out = device_array<int>(1);
    cudaLaunchConfig_t c = {};
    c.gridDim = 1;
    c.stream = dev.stream;
    c.blockDim = 1025;
    assert_int_equal(cudaLaunchKernelEx(&c, half_at_barrier, 0), cudaErrorInvalidConfiguration);
    c.blockDim = 256;
    c.dynamicSmemBytes = 49153;
    assert_int_equal(cudaLaunchKernelEx(&c, sums<true>, out), cudaErrorInvalidValue);
    assert_int_equal(cudaFuncSetAttribute(sums<true>, cudaFuncAttributeMaxDynamicSharedMemorySize, 228 << 10),
                     cudaErrorInvalidValue);
    assert_int_equal(cudaFuncSetAttribute(sums<true>, cudaFuncAttributeMaxDynamicSharedMemorySize, 49153), cudaSuccess);
    assert_int_equal(cudaLaunchKernelEx(&c, sums<true>, out), cudaSuccess);
    assert_int_equal(cudaFree(out), cudaSuccess);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_collectives),   cmocka_unit_test(test_barriers), cmocka_unit_test(test_products),
        cmocka_unit_test(test_half_products), cmocka_unit_test(test_copies),   cmocka_unit_test(test_halves),
        cmocka_unit_test(test_deaths),        cmocka_unit_test(test_fresh),    cmocka_unit_test(test_host_is_kept_out),
        cmocka_unit_test(test_launch_limits), cmocka_unit_test(test_early),
    };
    return cmocka_run_group_tests(tests, setup, nullptr);
}
