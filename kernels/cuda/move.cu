/* Values moved between layouts: parts of vectors from other ranks to their columns, and entries of page tables.
 *
 * A gather among ranks leaves a piece of each form of each rank, and in a decode the start of a kernel costs more than
 * its work: so all of them go in one. What is copied as it is goes in the largest units that the part's addresses allow. */
#include "kernels/convert.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/ptx.h"

enum { THREADS = 256, PARTS = 32 }; /* of a launch: they are its arguments */

struct piece {
    char *to;
    const char *from;
    size_t to_stride, bytes; /* bytes of a row, as it comes */
    int unit;                /* bytes of a copy; 0: bf16 are widened */
};
struct pieces {
    struct piece of[PARTS];
};

template <typename T> static __device__ inline void copy(char *to, const char *from, size_t bytes)
{
    for (size_t i = threadIdx.x; i < bytes / sizeof(T); i += THREADS)
        reinterpret_cast<T *>(to)[i] = reinterpret_cast<const T *>(from)[i];
}

/* Row blockIdx.x of piece blockIdx.y. */
static __global__ void spread_kernel(const struct pieces all)
{
    mu_grid_begin();
    const struct piece p = all.of[blockIdx.y];
    char *to = p.to + blockIdx.x * p.to_stride;
    const char *from = p.from + blockIdx.x * p.bytes;
    switch (p.unit) {
    case 16: copy<uint4>(to, from, p.bytes); break;
    case 4: copy<uint32_t>(to, from, p.bytes); break;
    case 2: copy<uint16_t>(to, from, p.bytes); break;
    case 1: copy<uint8_t>(to, from, p.bytes); break;
    default:
        for (size_t i = threadIdx.x; i < p.bytes / 2; i += THREADS)
            reinterpret_cast<float *>(to)[i] = mu_bf16_to_f32(reinterpret_cast<const uint16_t *>(from)[i]);
    }
}

static struct piece piece_of(const struct mu_device_part *part)
{
    static const size_t size[] = {4, 2, 1, 2};
    bool widened = part->kind == MU_SPREAD_BF16_TO_F32;
    struct piece p = {static_cast<char *>(part->to), static_cast<const char *>(part->from),
                      part->to_stride * (widened ? 4 : size[part->kind]), (size_t)part->n * size[part->kind], 0};
    size_t mixed = (uintptr_t)p.to | (uintptr_t)p.from | p.to_stride | p.bytes;
    if (!widened) p.unit = mixed % 16 == 0 ? 16 : mixed % 4 == 0 ? 4 : mixed % 2 == 0 ? 2 : 1;
    return p;
}

void mu_cuda_spread(struct mu_device *d, const struct mu_device_part *part, int n_part, int n_tok)
{
    for (int i = 0; i < n_part; i += PARTS) {
        struct pieces all = {};
        int n = n_part - i < PARTS ? n_part - i : (int)PARTS;
        for (int k = 0; k < n; k++) all.of[k] = piece_of(&part[i + k]);
        mu_launch_early(d, "spread", spread_kernel, dim3(n_tok, n), dim3(THREADS), 0, all);
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
