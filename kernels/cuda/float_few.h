/* A few vectors times a float matrix (float.h): bound by reading it, or by the chain.
 *
 * With 14336 columns a chain is 33 µs long at 4 cycles an fmaf and 1.75 GHz; 4096 such rows of F16 are 39 µs of reading. So nothing
 * may stand in the chain's way, and a thread block has one group of rows, 32, that all multiprocessors have work. Its
 * warps bring chunks of the matrix to shared memory, STAGES - 1 ahead (cp.async), and inputs one ahead through registers,
 * widened; then warp w does vectors w, w + WARPS, …: lanes are rows, a cell is a read of 512 bytes without conflicts, inputs
 * are read by all lanes at once. A gated pair is two matrices in one stage. With one vector one warp computes and the
 * others only fetch: the chain leaves no more to do.
 *
 *   stage   [matrix][CELLS][32 rows] cells       inputs   [2][vectors][COLUMNS] f32
 *
 * Types that are widened are widened on the way to the stage, eight values at a time; their chunk is 64 cells. Weights do
 * not depend on the kernel before (mu_launch_early): their first chunks are asked for before it is waited for. */
#ifndef MU_KERNELS_CUDA_FLOAT_FEW_H
#define MU_KERNELS_CUDA_FLOAT_FEW_H

#include "kernels/cuda/float.h"

enum { MU_FEW = 8 }; /* vectors of a thread block */

template <uint32_t type, int MATS> struct mu_few_of {
    static constexpr bool WIDENED = mu_cell_values(type) == 0;
    enum {
        CELL = mu_cell_values(mu_cell_type(type)),
        CELLS = WIDENED ? 64 : 32,
        COLUMNS = CELLS * CELL,
        WARPS = WIDENED ? 8 : 4,
        EACH = MU_FEW / WARPS, /* vectors of a warp */
        STAGES = WIDENED     ? 2
                 : MATS == 2 ? 3
                             : 4,
        MAT_BYTES = CELLS * MU_ROW_OF_CELLS,
        STAGE_BYTES = MATS * MAT_BYTES,
        UNITS = MU_FEW * COLUMNS / 8 / (32 * WARPS), /* eights of inputs that a thread brings */
    };
    static_assert(UNITS * 8 * 32 * WARPS == MU_FEW * COLUMNS, "inputs divide among the threads");
    static_assert(MATS == 2 || STAGES * STAGE_BYTES + 2 * MU_FEW * COLUMNS * 4 <= 99 << 10,
                  "one matrix fits on every GPU");
};

/* Chunk i of the group, to a stage. */
template <uint32_t type, int MATS>
__device__ static inline void mu_few_fill(const struct mu_float_args &a, const struct mu_float_job &job, int group,
                                          int expert, int i, uint8_t *stage)
{
    typedef mu_few_of<type, MATS> F;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int n_cell = (a.n_col + F::CELL - 1) / F::CELL, left = n_cell - i * F::CELLS;
    for (int k = 0; k < MATS; k++) {
        const uint8_t *m = k ? job.up + (size_t)expert * job.up_bytes : job.m + (size_t)expert * job.m_bytes;
        uint8_t *to = stage + k * F::MAT_BYTES;
        if constexpr (F::WIDENED) {
            const int row = group * MU_FLOAT_GROUP + lane;
            for (int c = 2 * warp; c < F::CELLS && c < left; c += 2 * F::WARPS) {
                float w[8] = {};
                if (row < job.e.n_row) mu_eight_widen(a.type, m + (size_t)row * a.row_bytes, (i * F::CELLS + c) / 2, w);
                float4 *cell = reinterpret_cast<float4 *>(to) + c * MU_FLOAT_GROUP + lane;
                cell[0] = make_float4(w[0], w[1], w[2], w[3]);
                cell[MU_FLOAT_GROUP] = make_float4(w[4], w[5], w[6], w[7]);
            }
        } else {
            const uint8_t *from = m + ((size_t)group * (size_t)n_cell + (size_t)i * F::CELLS) * MU_ROW_OF_CELLS;
            for (int c = warp; c < F::CELLS && c < left; c += F::WARPS) {
                int at = c * MU_ROW_OF_CELLS + lane * MU_CELL_BYTES;
                mu_cp_async16(to + at, from + at);
            }
        }
    }
}

/* This thread's inputs of chunk i. */
template <uint32_t type, int MATS>
__device__ static inline void mu_few_read(const struct mu_float_args &a, const struct mu_float_part &p, int i,
                                          float (&x)[mu_few_of<type, MATS>::UNITS][8])
{
    typedef mu_few_of<type, MATS> F;
    for (int u = 0; u < F::UNITS; u++) {
        int unit = u * 32 * F::WARPS + (int)threadIdx.x, v = unit / (F::COLUMNS / 8), c = unit % (F::COLUMNS / 8) * 8;
        if (v < p.n) mu_float_inputs<type, 8>(a, mu_float_input(a, p.first + v), i * F::COLUMNS + c, x[u]);
    }
}
template <uint32_t type, int MATS>
__device__ static inline void mu_few_write(float *inputs, int n, const float (&x)[mu_few_of<type, MATS>::UNITS][8])
{
    typedef mu_few_of<type, MATS> F;
    for (int u = 0; u < F::UNITS; u++) {
        int unit = u * 32 * F::WARPS + (int)threadIdx.x, v = unit / (F::COLUMNS / 8);
        float4 *to = reinterpret_cast<float4 *>(inputs) + 2 * unit;
        if (v >= n) continue;
        to[0] = make_float4(x[u][0], x[u][1], x[u][2], x[u][3]);
        to[1] = make_float4(x[u][4], x[u][5], x[u][6], x[u][7]);
    }
}

/* n_cell cells of a stage times the warp's vectors. */
template <uint32_t type, int MATS, enum mu_float_step step>
__device__ static inline void mu_few_multiply(const uint8_t *stage, const float *inputs, int n_cell, int n,
                                              float (&acc)[mu_few_of<type, MATS>::EACH][MATS])
{
    typedef mu_few_of<type, MATS> F;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (warp >= n) return;
#pragma unroll(step == MU_STEP_FLUSH ? 1 : 4)
    for (int c = 0; c < n_cell; c++) {
        float w[MATS][F::CELL];
#pragma unroll
        for (int k = 0; k < MATS; k++)
            mu_cell_widen<mu_cell_type(type)>(
                reinterpret_cast<const uint4 *>(stage + k * F::MAT_BYTES)[c * MU_FLOAT_GROUP + lane], w[k]);
#pragma unroll
        for (int j = 0; j < F::EACH; j++) {
            int v = warp + j * F::WARPS;
            if (v >= n) continue; /* the whole warp */
            const float4 *x = reinterpret_cast<const float4 *>(inputs + v * F::COLUMNS + c * F::CELL);
#pragma unroll
            for (int i = 0; i < F::CELL; i += 4) {
                float4 four = x[i / 4];
#pragma unroll
                for (int k = 0; k < MATS; k++) {
                    acc[j][k] = mu_float_add<step>(w[k][i], four.x, acc[j][k]);
                    acc[j][k] = mu_float_add<step>(w[k][i + 1], four.y, acc[j][k]);
                    acc[j][k] = mu_float_add<step>(w[k][i + 2], four.z, acc[j][k]);
                    acc[j][k] = mu_float_add<step>(w[k][i + 3], four.w, acc[j][k]);
                }
            }
        }
    }
}

template <uint32_t type, int MATS, enum mu_float_step step>
__device__ static inline void mu_few_chain(const struct mu_float_args &a, const struct mu_float_job &job, int group,
                                           const struct mu_float_part &p, uint8_t *stages, float *inputs,
                                           float (&acc)[mu_few_of<type, MATS>::EACH][MATS])
{
    typedef mu_few_of<type, MATS> F;
    const int n_chunk = (a.n_col + F::COLUMNS - 1) / F::COLUMNS, n_cell = (a.n_col + F::CELL - 1) / F::CELL;
    float x[F::UNITS][8] = {};
    for (int i = 0; i < n_chunk; i++) {
        const int ahead = i + F::STAGES - 1;
        float *mine = inputs + (i & 1) * p.n * F::COLUMNS;
        if (i == 0) mu_few_read<type, MATS>(a, p, 0, x);
        mu_few_write<type, MATS>(mine, p.n, x);
        mu_cp_async_wait<F::STAGES - 2>();
        __syncthreads(); /* chunk i is there, and i - 1 is done with */
        if (ahead < n_chunk)
            mu_few_fill<type, MATS>(a, job, group, p.expert, ahead, stages + ahead % F::STAGES * F::STAGE_BYTES);
        mu_cp_async_commit();
        if (i + 1 < n_chunk) mu_few_read<type, MATS>(a, p, i + 1, x);
        int left = n_cell - i * F::CELLS;
        mu_few_multiply<type, MATS, step>(stages + i % F::STAGES * F::STAGE_BYTES, mine,
                                          left < F::CELLS ? left : (int)F::CELLS, p.n, acc);
    }
}

/* The grid: parts of 8 vectors × groups of all jobs. */
template <uint32_t type, int MATS>
__global__ static __launch_bounds__(32 * mu_few_of<type, MATS>::WARPS) void mu_few_kernel(
    const __grid_constant__ struct mu_float_args a)
{
    typedef mu_few_of<type, MATS> F;
    MU_SHARED(uint8_t, shared);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const struct mu_float_job &job = a.job[mu_float_job_of(a, (int)blockIdx.y)];
    const int group = (int)blockIdx.y - job.first, n_chunk = (a.n_col + F::COLUMNS - 1) / F::COLUMNS;
    float *inputs = reinterpret_cast<float *>(shared + F::STAGES * F::STAGE_BYTES);
    float acc[F::EACH][MATS] = {};

    mu_grid_release();
    if (a.n_expert) mu_grid_wait(); /* it says which weights are needed */
    const struct mu_float_part p = mu_float_part_of(a, (int)blockIdx.x, MU_FEW);
    if (p.n <= 0) return; /* the whole block */
    for (int i = 0; i < F::STAGES - 1; i++) {
        if (i < n_chunk) mu_few_fill<type, MATS>(a, job, group, p.expert, i, shared + i * F::STAGE_BYTES);
        mu_cp_async_commit();
    }
    if (!a.n_expert) mu_grid_wait();
    if (type != MU_BF16)
        mu_few_chain<type, MATS, MU_STEP_PLAIN>(a, job, group, p, shared, inputs, acc);
    else if (mu_ftz_proven)
        mu_few_chain<type, MATS, MU_STEP_FTZ>(a, job, group, p, shared, inputs, acc);
    else
        mu_few_chain<type, MATS, MU_STEP_FLUSH>(a, job, group, p, shared, inputs, acc);

    const int row = group * MU_FLOAT_GROUP + lane;
    for (int j = 0; j < F::EACH; j++) {
        int k = warp + j * F::WARPS;
        if (k >= p.n) continue; /* the whole warp */
        struct mu_products<1> y;
        y.y[0] = acc[j][0];
        mu_float_finish<1>(job.e, row, (size_t)(p.first + k), p.expert, true, y, acc[j][MATS - 1]);
    }
}

/* Bytes of shared memory; those of two matrices may be more than a block gets. */
template <uint32_t type, int MATS> static inline size_t mu_few_shared(const struct mu_float_args *a)
{
    typedef mu_few_of<type, MATS> F;
    int n = a->n_vec < MU_FEW ? a->n_vec : (int)MU_FEW;
    return (size_t)F::STAGES * F::STAGE_BYTES + 2 * (size_t)n * F::COLUMNS * sizeof(float);
}

template <uint32_t type, int MATS> static inline void mu_few_launch(struct mu_device *d, struct mu_float_args *a)
{
    typedef mu_few_of<type, MATS> F;
    int n_group = 0;
    for (int j = 0; j < a->n_job; j++) {
        a->job[j].first = n_group;
        n_group += (a->job[j].e.n_row + MU_FLOAT_GROUP - 1) / MU_FLOAT_GROUP;
    }
    size_t shared = mu_few_shared<type, MATS>(a);
    mu_allow_shared(d, "a product of floats with few vectors", mu_few_kernel<type, MATS>, shared);
    mu_launch_early(d, "a product of floats with few vectors", mu_few_kernel<type, MATS>,
                    dim3(mu_float_parts(a, MU_FEW), (unsigned)n_group), dim3(32 * F::WARPS), shared, *a);
}

#endif
