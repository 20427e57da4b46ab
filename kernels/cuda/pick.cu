/* The next ids, of a rank's logits (shard/sample.c's pick_of).
 *
 * The best is an arg-max over (value descending, id ascending), the same however it is joined. So each row is cut among as
 * many blocks as fill the machine, and they join by an atomic maximum over 64 bits: the value, its bits turned so
 * that they order as integers, above the complement of the index. The keys are collected in the result itself, which is
 * as long; a last small kernel turns a key into the pick. That one computes the value once more from the
 * index, because a key does not tell -0 from +0, which are equal here.
 *
 *   0            nothing was offered: no logits     → id -1
 *   all ones     a logit is not finite: no value's  → id -2
 *
 * The processor leaves out noise for what is so far behind that no noise could bring it to the front (draw in
 * kernels/vector_simd.h): its sum would be less than the best already, so it is no part of the result. Here it is cheaper to
 * draw for all. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/ptx.h"
#include "kernels/math.h"
#include "kernels/random.h"

enum {
    LANES = 32,
    THREADS = 256,
    EACH = 4,        /* logits that a thread has on their way at once */
    BLOCKS_EACH = 4, /* blocks that a processor holds at once */
};
static const unsigned long long NOT_FINITE = ~0ull;
static_assert(sizeof(struct mu_device_pick) == sizeof(unsigned long long), "a key fits a pick");

/* What is compared: the logit, or with its temperature and noise. */
static __device__ inline float value_of(const struct mu_device_draw &draw, float logit, uint32_t id)
{
    if (draw.temperature == 0.0f) return logit;
    return logit / draw.temperature + -vf_log(-vf_log(mu_random_unit(draw.seed, draw.position, id)));
}

static __device__ inline unsigned long long key_of(float value, int i)
{
    uint32_t bits = mu_f32_bits(value + 0.0f); /* -0 becomes +0 */
    bits = bits >> 31 ? ~bits : bits | 0x80000000u;
    return (unsigned long long)bits << 32 | (uint32_t)~i;
}

static __device__ inline unsigned long long warp_max(unsigned long long key)
{
    for (int step = 1; step < LANES; step *= 2) {
        unsigned long long other = __shfl_xor_sync(0xffffffffu, key, step);
        key = other > key ? other : key;
    }
    return key;
}

/* Row blockIdx.y; its blocks take turns. */
static __global__ void best_kernel(const float *logits, size_t stride, int n, int first_id,
                                   const struct mu_device_draw *draws, unsigned long long *keys)
{
    __shared__ unsigned long long of_warp[THREADS / LANES];
    const float *row = logits + blockIdx.y * stride;
    const struct mu_device_draw draw = draws[blockIdx.y];
    int step = gridDim.x * THREADS, lane = threadIdx.x % LANES;
    unsigned long long best = 0;
    for (int i = blockIdx.x * THREADS + threadIdx.x; i < n; i += EACH * step) {
        float x[EACH];
        for (int j = 0; j < EACH; j++) x[j] = i + j * step < n ? row[i + j * step] : 0.0f;
        for (int j = 0; j < EACH && i + j * step < n; j++) {
            int at = i + j * step;
            unsigned long long key =
                mu_f32_finite(x[j]) ? key_of(value_of(draw, x[j], (uint32_t)(first_id + at)), at) : NOT_FINITE;
            best = key > best ? key : best;
        }
    }
    best = warp_max(best);
    if (lane == 0) of_warp[threadIdx.x / LANES] = best;
    __syncthreads();
    if (threadIdx.x < LANES) {
        best = warp_max(lane < THREADS / LANES ? of_warp[lane] : 0);
        if (lane == 0) atomicMax(&keys[blockIdx.y], best);
    }
}

static __global__ void finish_kernel(const float *logits, size_t stride, int n_row, int first_id,
                                     const struct mu_device_draw *draws, struct mu_device_pick *out)
{
    mu_grid_begin();
    int row = blockIdx.x * THREADS + threadIdx.x;
    if (row >= n_row) return;
    unsigned long long key = reinterpret_cast<const unsigned long long *>(out)[row];
    struct mu_device_pick pick = {0.0f, key == NOT_FINITE ? -2 : -1};
    if (key != NOT_FINITE && key != 0) {
        int i = (int)~(uint32_t)key;
        pick.id = first_id + i;
        pick.value = value_of(draws[row], logits[row * stride + i], (uint32_t)pick.id);
    }
    out[row] = pick;
}

void mu_cuda_pick(struct mu_device *d, const float *logits, size_t stride, int n_row, int n, int first_id,
                  const struct mu_device_draw *draw, struct mu_device_pick *out)
{
    if (n_row == 0) return;
    int most = (n + THREADS - 1) / THREADS, want = BLOCKS_EACH * d->n_sm / n_row;
    if (want < 1) want = 1;
    mu_note(d, cudaMemsetAsync(out, 0, (size_t)n_row * sizeof *out, d->stream), "pick");
    mu_launch(d, "pick", best_kernel, dim3(want < most ? want : most, n_row), dim3(THREADS), 0, logits, stride, n,
              first_id, draw, reinterpret_cast<unsigned long long *>(out));
    mu_launch_early(d, "pick", finish_kernel, dim3((n_row + THREADS - 1) / THREADS), dim3(THREADS), 0, logits, stride,
                    n_row, first_id, draw, out);
}
