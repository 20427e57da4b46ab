/* Values moved between layouts: parts of vectors from other ranks to their columns, and entries of page tables. */
#include "kernels/convert.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/ptx.h"

enum { THREADS = 256 };

static __device__ inline void move(float *to, const float *from)
{
    *to = *from;
}
static __device__ inline void move(uint16_t *to, const uint16_t *from)
{
    *to = *from;
}
static __device__ inline void move(int8_t *to, const int8_t *from)
{
    *to = *from;
}
static __device__ inline void move(float *to, const uint16_t *from)
{
    *to = mu_bf16_to_f32(*from);
}

/* Piece blockIdx.y of row blockIdx.x. */
template <typename To, typename From>
static __global__ void spread_kernel(To *to, size_t to_stride, const From *from, int n)
{
    mu_grid_begin();
    int i = blockIdx.y * THREADS + threadIdx.x;
    if (i < n) move(&to[blockIdx.x * to_stride + i], &from[blockIdx.x * (size_t)n + i]);
}

template <typename To, typename From>
static void spread(struct mu_device *d, void *to, size_t to_stride, const void *from, int n, int n_tok)
{
    mu_launch_early(d, "spread", spread_kernel<To, From>, dim3(n_tok, (n + THREADS - 1) / THREADS), dim3(THREADS), 0,
                    static_cast<To *>(to), to_stride, static_cast<const From *>(from), n);
}

void mu_cuda_spread(struct mu_device *d, enum mu_device_spread kind, void *to, size_t to_stride, const void *from,
                    int n, int n_tok)
{
    switch (kind) {
    case MU_SPREAD_F32: spread<float, float>(d, to, to_stride, from, n, n_tok); break;
    case MU_SPREAD_BF16: spread<uint16_t, uint16_t>(d, to, to_stride, from, n, n_tok); break;
    case MU_SPREAD_I8: spread<int8_t, int8_t>(d, to, to_stride, from, n, n_tok); break;
    case MU_SPREAD_BF16_TO_F32: spread<float, uint16_t>(d, to, to_stride, from, n, n_tok); break;
    }
}

static __global__ void set_kernel(uint32_t *table, const struct mu_device_set *set, int n)
{
    mu_grid_begin();
    int i = blockIdx.x * THREADS + threadIdx.x;
    if (i < n) table[set[i].at] = set[i].value;
}

void mu_cuda_set(struct mu_device *d, uint32_t *table, const struct mu_device_set *set, int n)
{
    mu_launch_early(d, "set", set_kernel, dim3((n + THREADS - 1) / THREADS), dim3(THREADS), 0, table, set, n);
}
