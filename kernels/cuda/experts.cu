/* A mixture's bookkeeping: each token's experts, the places of its hidden vectors, the sum of what experts give (C8;
 * shard/experts.c).
 *
 *   choose    a warp a token, a lane having every 32nd score; n_used rounds of: the largest that is left
 *   sort      places by expert, then by entry of `chosen` (so by token). Few entries (a decode): each entry counts those
 *             before it. Many: a block an expert goes through all entries and gives its own places in a row; what
 *             comes before is the number of entries of lower experts. No counter is shared, so nothing depends on
 *             who comes first.
 *   combine   a thread some columns of a token, its experts ascending
 *
 * A decode's route is one launch. */
#include "kernels/cuda/form.h"
#include "kernels/cuda/ptx.h"
#include "kernels/math.h"

enum {
    MOST_EXPERTS = 512, /* model/arch.h's MU_MAX_EXPERT */
    LANES = 32,
    FEW = 256, /* entries that one block chooses and sorts */
    CHOOSE_WARPS = 8,
    FEW_WARPS = 32,
    SORT_THREADS = 512,
    COMBINE_THREADS = 256,
    NONE = 0x7fffffff
};

/* The candidate of a lane, or of a warp. */
struct best {
    float value;
    int expert; /* NONE: none */
};

static __device__ inline struct best better(struct best a, struct best b)
{
    if (b.expert == NONE) return a;
    if (a.expert == NONE || b.value > a.value || (b.value == a.value && b.expert < a.expert)) return b;
    return a;
}

static __device__ inline struct best warp_best(struct best mine)
{
    for (int step = 1; step < LANES; step *= 2)
        mine = better(
            mine, {__shfl_xor_sync(0xffffffffu, mine.value, step), __shfl_xor_sync(0xffffffffu, mine.expert, step)});
    return mine;
}

/* Token t's experts and weights, by a warp; term: n_used floats of shared memory. K · 32 is at least n_expert.
 *
 * The definition keeps the first expert that is left unless another's score is larger. So a NaN never wins over another
 * expert, but is chosen where it is the first one left: nothing is larger than it. */
template <int K> static __device__ void choose(const struct mu_device_route &a, int t, float *term)
{
    int lane = threadIdx.x % LANES, n = a.n_expert, base = 0;
    const float *score = a.score + (size_t)t * n;
    int32_t *chosen = a.chosen + (size_t)t * a.n_used;
    float s[K], max = 0.0f, sum = 0.0f;
    unsigned left = 0, is_nan = 0; /* bit k: expert 32k + lane */
    for (int k = 0; k < K; k++) {
        int e = LANES * k + lane;
        s[k] = e < n ? score[e] : 0.0f;
        left |= (e < n ? 1u : 0u) << k;
        is_nan |= (s[k] != s[k] ? 1u : 0u) << k;
    }
    unsigned all = left;
    bool any_nan = __any_sync(0xffffffffu, is_nan != 0);
    for (int i = 0; i < a.n_used; i++) {
        struct best top = {0.0f, NONE};
        for (int k = 0; k < K; k++)
            if ((left & ~is_nan) >> k & 1u) top = better(top, {s[k], LANES * k + lane});
        top = warp_best(top);
        if (any_nan) {
            int first = left ? LANES * (__ffs((int)left) - 1) + lane : (int)NONE;
            for (int step = 1; step < LANES; step *= 2) first = min(first, __shfl_xor_sync(0xffffffffu, first, step));
            if (score[first] != score[first]) top = {score[first], first};
        }
        if (i == 0) max = top.value;
        if (top.expert % LANES == lane) left &= ~(1u << top.expert / LANES);
    }
    unsigned taken = all & ~left;
    for (int k = 0; k < K; k++) {
        unsigned here = __ballot_sync(0xffffffffu, taken >> k & 1u);
        int at = base + __popc(here & ((1u << lane) - 1u));
        if (taken >> k & 1u) {
            chosen[at] = LANES * k + lane;
            term[at] = vf_exp(s[k] - max);
        }
        base += __popc(here);
    }
    __syncwarp();
    for (int i = 0; i < a.n_used; i++) sum += term[i];
    for (int i = lane; i < a.n_used; i += LANES) a.weight[(size_t)t * a.n_used + i] = term[i] / sum;
    __syncwarp();
}

template <int K> static __global__ void choose_kernel(const struct mu_device_route a)
{
    mu_grid_begin();
    MU_SHARED(float, term); /* [warps][n_used] */
    int warp = threadIdx.x / LANES, t = blockIdx.x * CHOOSE_WARPS + warp;
    if (t < a.n_tok) choose<K>(a, t, term + warp * a.n_used);
}

/* Everything of n ≤ FEW entries, by one block. */
template <int K>
static __global__ void __launch_bounds__(FEW_WARPS *LANES) route_few_kernel(const struct mu_device_route a)
{
    mu_grid_begin();
    MU_SHARED(float, term); /* [warps][n_used] */
    __shared__ int expert[FEW];
    int n = a.n_tok * a.n_used, i = threadIdx.x, warp = i / LANES;
    for (int t = warp; t < a.n_tok; t += FEW_WARPS) choose<K>(a, t, term + warp * a.n_used);
    __syncthreads();
    if (i < n) expert[i] = a.chosen[i];
    __syncthreads();
    if (i < n) {
        int place = 0;
        for (int j = 0; j < n; j++) place += expert[j] < expert[i] || (expert[j] == expert[i] && j < i);
        a.place[place] = i;
        a.at[i] = place;
    }
    if (i <= a.n_expert) {
        int begin = 0;
        for (int j = 0; j < n; j++) begin += expert[j] < i;
        a.begin[i] = begin;
    }
}

/* The places of expert blockIdx.x. */
static __global__ void sort_kernel(const struct mu_device_route a)
{
    mu_grid_begin();
    __shared__ int of_warp[SORT_THREADS / LANES], below;
    int n = a.n_tok * a.n_used, e = blockIdx.x, lane = threadIdx.x % LANES, warp = threadIdx.x / LANES, count = 0;
    if (threadIdx.x == 0) below = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += SORT_THREADS) count += a.chosen[i] < e;
    for (int step = 1; step < LANES; step *= 2) count += __shfl_xor_sync(0xffffffffu, count, step);
    if (lane == 0) atomicAdd(&below, count);
    __syncthreads();
    int next = below;
    if (threadIdx.x == 0) {
        a.begin[e] = next;
        if (e == a.n_expert - 1) a.begin[e + 1] = n;
    }
    for (int i0 = 0; i0 < n; i0 += SORT_THREADS) {
        int i = i0 + threadIdx.x;
        bool mine = i < n && a.chosen[i] == e;
        unsigned here = __ballot_sync(0xffffffffu, mine);
        if (lane == 0) of_warp[warp] = __popc(here);
        int total = __syncthreads_count(mine), place = next + __popc(here & ((1u << lane) - 1u));
        for (int w = 0; w < warp; w++) place += of_warp[w];
        if (mine) {
            a.place[place] = i;
            a.at[i] = place;
        }
        next += total;
        __syncthreads();
    }
}

void mu_cuda_route(struct mu_device *d, const struct mu_device_route *a)
{
    size_t term = (size_t)a->n_used * sizeof(float);
    bool small = a->n_expert <= 4 * LANES;
    if (a->n_tok == 0) return;
    if ((size_t)a->n_tok * (size_t)a->n_used <= FEW) {
        mu_launch_early(d, "route", small ? route_few_kernel<4> : route_few_kernel<MOST_EXPERTS / LANES>, dim3(1),
                        dim3(FEW_WARPS * LANES), FEW_WARPS * term, *a);
        return;
    }
    mu_launch_early(d, "route", small ? choose_kernel<4> : choose_kernel<MOST_EXPERTS / LANES>,
                    dim3((a->n_tok + CHOOSE_WARPS - 1) / CHOOSE_WARPS), dim3(CHOOSE_WARPS * LANES), CHOOSE_WARPS * term,
                    *a);
    mu_launch_early(d, "route", sort_kernel, dim3(a->n_expert), dim3(SORT_THREADS), 0, *a);
}

/* Columns of token blockIdx.x. */
template <int V> static __global__ void combine_kernel(const struct mu_device_combine a)
{
    mu_grid_begin();
    int i = (blockIdx.y * COMBINE_THREADS + threadIdx.x) * V;
    float sum[V] = {};
    if (i >= a.n) return;
    for (int k = 0; k < a.n_used; k++) {
        size_t at = blockIdx.x * (size_t)a.n_used + k;
        float part[V], bias[V], weight = a.weight[at];
        mu_load_values<V>(part, a.part + (size_t)a.at[at] * a.n + i);
        if (a.bias) mu_load_values<V>(bias, a.bias + (size_t)a.chosen[at] * a.n + i);
        for (int j = 0; j < V; j++) sum[j] = fmaf(weight, a.bias ? part[j] + bias[j] : part[j], sum[j]);
    }
    for (int j = 0; a.scale != 0.0f && j < V; j++) sum[j] = sum[j] * a.scale;
    size_t at = blockIdx.x * (size_t)a.n + i;
    mu_store_values<V>(a.out + at, sum);
}

void mu_cuda_combine(struct mu_device *d, const struct mu_device_combine *a)
{
    bool four = a->n % 4 == 0 && mu_aligned(a->part, 16) && mu_aligned(a->bias, 16) && mu_aligned(a->out, 16);
    int each = COMBINE_THREADS * (four ? 4 : 1);
    mu_launch_early(d, "combine", four ? combine_kernel<4> : combine_kernel<1>,
                    dim3(a->n_tok, (a->n + each - 1) / each), dim3(COMBINE_THREADS), 0, *a);
}
