/* The residual's addition, the norms and the forms of the result (C4, C6; kernels/ref/vector.c), one block a vector.
 *
 * The sum of C6 is sixteen chains, each of n / 16 operations that wait for one another: 256 at four clocks for 4,096
 * values, which nothing can shorten. So a vector lies in shared memory, one warp walks down the chains with its loads a
 * batch ahead, and whatever else there is to do is done by all threads. In a decode everything that comes later is
 * fetched before the walk (`staged`): what is read again and again by many tokens is in the caches anyway, but the weights of
 * a norm that one token reads come from far, and would be waited for after it. They are on their way before the kernel
 * ahead has finished (mu_launch_early).
 *
 *   all threads   v = x + pending  (or 0 + y, and after its own norm x + that)  → shared memory, x
 *   one warp      the chains of v, the tree, r
 *   all threads   out = v · r · w → forms, a block of 32 being lanes side by side (form.h)
 *
 * Many tokens: blocks are small, so that several are on a processor and one's chains run beside another's loads. */
#include "kernels/cuda/form.h"
#include "kernels/cuda/ptx.h"

enum {
    LANES = 16,
    AHEAD = 16, /* values of a chain that are loaded before they are needed */
    SPARE = LANES * AHEAD,
    THREADS_FEW = 1024,
    THREADS_MANY = 256,
    FEW_PER_SM = 2, /* as for registers, 32 a thread: half of a multiprocessor's, which a product leaves (matvec.cu) */
    SHARED_OWN = 1 << 10 /* bytes beside MU_SHARED, at most */
};

template <bool SQUARES> static __device__ inline float chain(float acc, float x)
{
    return SQUARES ? fmaf(x, x, acc) : acc + x;
}

/* The sum over v[n] in C6's order, by a warp: its halves do the same. SPARE values beyond v are read and not used. */
template <bool SQUARES> static __device__ float sum_of(const float *v, int n)
{
    int lane = threadIdx.x % LANES, whole = n / LANES, k = 0;
    float acc = 0.0f, now[AHEAD];
    const float *at = v + lane;
    for (int j = 0; j < AHEAD; j++) now[j] = at[j * LANES];
    for (; k + AHEAD <= whole; k += AHEAD) {
        float next[AHEAD];
        at += SPARE;
        for (int j = 0; j < AHEAD; j++) next[j] = at[j * LANES];
        for (int j = 0; j < AHEAD; j++) acc = chain<SQUARES>(acc, now[j]);
        for (int j = 0; j < AHEAD; j++) now[j] = next[j];
    }
    for (int j = 0; j < AHEAD; j++) /* k + j < whole: a full round; the last round may end before this lane */
        if ((k + j) * LANES + lane < n) acc = chain<SQUARES>(acc, now[j]);
    for (int half = LANES / 2; half >= 1; half /= 2) acc = acc + __shfl_xor_sync(0xffffffffu, acc, half);
    return acc;
}

/* The same for all threads of the block. What they wrote to v is seen, and v may be written afterwards; what they have
 * fetched is there. */
template <bool SQUARES> static __device__ float block_sum(const float *v, int n)
{
    __shared__ float sum;
    __syncthreads();
    if (threadIdx.x < 32) {
        float s = sum_of<SQUARES>(v, n);
        if (threadIdx.x == 0) sum = s;
    }
    mu_cp_async_wait<0>();
    __syncthreads();
    return sum;
}

/* What values are multiplied with, for a sum that is finite. */
static __device__ inline float factor(float ss, int n, float eps)
{
    return 1.0f / sqrtf(ss / (float)n + eps);
}

/* Where from[n] is read later: itself, or its copy in shared memory at *room, which moves on. The copy is on its way
 * until the next block_sum. */
template <int V> static __device__ const float *fetch(const float *from, int n, float **room)
{
    if (!*room || !from) return from;
    float *to = *room;
    for (int i = threadIdx.x * V; i < n; i += blockDim.x * V) {
        if (V == 4)
            mu_cp_async16(to + i, from + i);
        else
            mu_cp_async4(to + i, from + i);
    }
    *room += n;
    return to;
}

template <int V> static __device__ inline void load_y(float (&y)[V], const struct mu_device_norm &a, size_t at)
{
    mu_load_values<V>(y, a.y + at);
    for (int j = 0; a.y_round && j < V; j++) y[j] = mu_bf16_to_f32(mu_f32_to_bf16(y[j]));
}

/* v = x + pending, and x likewise where it is kept. What each thread has written to v only it has read. */
template <int V>
static __device__ void residual(const struct mu_device_norm &a, size_t at, float *v, const float *x, const float *post)
{
    int step = blockDim.x * V, first = threadIdx.x * V;
    bool finite = true;
    float r = 0.0f;
    if (a.y && post) {
        for (int i = first; i < a.n; i += step) {
            float y[V];
            load_y<V>(y, a, at + i);
            for (int j = 0; j < V; j++) y[j] = 0.0f + y[j];
            mu_store_values<V>(v + i, y);
        }
        float ss = block_sum<true>(v, a.n);
        finite = mu_f32_finite(ss);
        r = factor(ss, a.n, a.eps);
    }
    for (int i = first; i < a.n; i += step) {
        float sum[V], y[V], w[V];
        mu_load_values<V>(sum, x + i);
        if (a.y && post) {
            mu_load_values<V>(y, v + i);
            mu_load_values<V>(w, post + i);
            for (int j = 0; j < V; j++) y[j] = finite ? (y[j] * r) * w[j] : NAN;
        } else if (a.y) {
            load_y<V>(y, a, at + i);
        }
        for (int j = 0; a.y && j < V; j++) sum[j] = sum[j] + y[j];
        mu_store_values<V>(v + i, sum);
        if (a.y && a.keep) mu_store_values<V>(a.x + at + i, sum);
    }
}

/* Vector blockIdx.x. */
template <int V>
static __global__ void __launch_bounds__(THREADS_FEW, FEW_PER_SM)
    norm_kernel(const struct mu_device_norm a, bool staged)
{
    MU_SHARED(float, v); /* n values and SPARE, then what is staged */
    float *room = staged ? v + a.n + SPARE : NULL;
    bool has_post = a.y && a.post, finite = true;
    float r = 1.0f, sum;
    mu_grid_release();
    const float *w = fetch<V>(a.w, a.n, &room), *b = fetch<V>(a.b, a.n, &room);
    const float *post = has_post ? fetch<V>(a.post, a.n, &room) : NULL;
    mu_grid_wait(); /* weights are not written by kernels */
    size_t row = a.row ? a.row[blockIdx.x] : blockIdx.x, at = row * a.n;
    const float *x = has_post ? fetch<V>(a.x + at, a.n, &room) : a.x + at;
    mu_cp_async_commit();
    residual<V>(a, at, v, x, post);
    if (a.kind == MU_DEVICE_NORM_LAYER) {
        sum = block_sum<false>(v, a.n);
        finite = mu_f32_finite(sum);
        float mean = sum / (float)a.n;
        for (int i = threadIdx.x; i < a.n; i += blockDim.x) v[i] = v[i] - mean;
    }
    if (a.kind != MU_DEVICE_NORM_NONE) {
        sum = block_sum<true>(v, a.n);
        finite = finite && mu_f32_finite(sum);
        r = factor(sum, a.n, a.eps);
    }
    for (int i0 = 0; i0 < a.n; i0 += blockDim.x * V) { /* warps stay together */
        int i = i0 + threadIdx.x * V;
        bool in = i < a.n;
        float out[V] = {}, weight[V], bias[V];
        if (in) mu_load_values<V>(out, v + i);
        if (in && a.kind != MU_DEVICE_NORM_NONE) {
            mu_load_values<V>(weight, w + i);
            if (a.kind == MU_DEVICE_NORM_LAYER) mu_load_values<V>(bias, b + i);
            for (int j = 0; j < V; j++) {
                float scaled = out[j] * r;
                out[j] = !finite                          ? NAN
                         : a.kind == MU_DEVICE_NORM_LAYER ? fmaf(scaled, weight[j], bias[j])
                                                          : scaled * weight[j];
            }
        }
        mu_store_forms<V>(a.form, blockIdx.x * (size_t)a.n + i, in, out);
    }
}

void mu_cuda_norm(struct mu_device *d, const struct mu_device_norm *a)
{
    if (a->n == 0) return;
    bool four = a->n % 4 == 0 && mu_aligned(a->x, 16) && mu_aligned(a->y, 16) && mu_aligned(a->post, 16) &&
                mu_aligned(a->w, 16) && mu_aligned(a->b, 16) && mu_forms_by_four(&a->form);
    auto kernel = four ? norm_kernel<4> : norm_kernel<1>;
    bool few = a->n_tok <= d->n_sm;
    int most = few ? THREADS_FEW : THREADS_MANY, threads = ((four ? a->n / 4 : a->n) + 31) / 32 * 32;
    size_t n = (size_t)a->n, shared = (n + SPARE) * sizeof(float);
    size_t n_staged = (a->w ? 1 : 0) + (a->b ? 1 : 0) + (a->y && a->post ? 2 : 0);
    size_t all = shared + n_staged * n * sizeof(float);
    bool staged = few && all + SHARED_OWN <= d->shared_max;
    if (shared + SHARED_OWN > d->shared_max) {
        mu_note(d, cudaErrorInvalidValue, "a norm of vectors that are longer than shared memory");
        return;
    }
    if (staged) shared = all;
    mu_allow_shared(d, "norm", kernel, shared); /* little or much: to run beside the products */
    mu_launch_early(d, "norm", kernel, dim3(a->n_tok), dim3(threads < most ? threads : most), shared, *a, staged);
}
