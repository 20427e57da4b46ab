/* Many vectors times a float matrix (float.h): bound by the fmafs.
 *
 * A thread block has a tile of R rows × T vectors, in its threads' registers:
 *
 *   R × T       a thread's     for
 *   128 × 128   8 × 8          work for all multiprocessors even so
 *   128 × 64    8 × 4
 *   64 × 32     4 × 4          few rows or vectors
 *
 * A step of one column reads 8 + 8 values from shared memory for 64 fmafs (12 for 32, 8 for 16). Columns come 16 at a time,
 * widened to f32 and turned, so that a column's rows (and its vectors) lie side by side; while a chunk is multiplied, the
 * next is on its way in registers, and goes to the other half of shared memory.
 *
 *   weights [2][16 columns][R rows + 4]        inputs [2][16 columns][T vectors + 4]
 *
 * Thread r + 16v has rows 4r … 4r+3, and 64+4r … 64+4r+3 where R is 128; vectors 4v … 4v+3, and 64 further where T is
 * 128. So a warp reads its rows without conflicts, and 8 of its lanes hold 32 neighbouring rows of a vector: a block of
 * form's int8. */
#ifndef MU_KERNELS_CUDA_FLOAT_MANY_H
#define MU_KERNELS_CUDA_FLOAT_MANY_H

#include "kernels/cuda/float.h"

enum { MU_MANY_COLUMNS = 16, MU_MANY_PAD = 4 };

template <uint32_t type, int R, int T> struct mu_many_of {
    static constexpr bool WIDENED = mu_cell_values(type) == 0;
    enum {
        CELL = WIDENED ? 8 : mu_cell_values(type), /* columns that a thread brings of a row at once */
        THREADS = 16 * (T < 64 ? T / 4 : 16),
        ROWS = R / 16, /* of a thread; and vectors */
        EACH = T * 16 / THREADS,
        CELLS = MU_MANY_COLUMNS / CELL * R / THREADS,
        QUADS = T * MU_MANY_COLUMNS / 4 / THREADS, /* of inputs */
        W_STRIDE = R + MU_MANY_PAD,
        X_STRIDE = T + MU_MANY_PAD,
    };
    static_assert(CELLS * CELL * THREADS == MU_MANY_COLUMNS * R && QUADS * 4 * THREADS == MU_MANY_COLUMNS * T,
                  "threads bring the same each");
};

/* What a thread has on its way. */
template <uint32_t type, int R, int T> struct mu_many_chunk {
    uint4 cell[mu_many_of<type, R, T>::CELLS];
    float x[mu_many_of<type, R, T>::QUADS][4];
};

/* Cell i of a thread: its row in the tile, and its first column in the chunk. */
template <uint32_t type, int R, int T> __device__ static inline int mu_many_cell(int i, int *column_out)
{
    int at = i * mu_many_of<type, R, T>::THREADS + (int)threadIdx.x;
    *column_out = at / R * mu_many_of<type, R, T>::CELL;
    return at % R;
}

template <uint32_t type, int R, int T>
__device__ static inline void mu_many_read(const struct mu_float_args &a, const uint8_t *m, int row0, int n_row,
                                           const int *input, int n, int c0, struct mu_many_chunk<type, R, T> *to)
{
    typedef mu_many_of<type, R, T> M;
    const int n_cell = (a.n_col + M::CELL - 1) / M::CELL;
    for (int i = 0; !M::WIDENED && i < M::CELLS; i++) {
        int c, row = row0 + mu_many_cell<type, R, T>(i, &c), cell = (c0 + c) / M::CELL;
        size_t at = ((size_t)(row / MU_FLOAT_GROUP) * (size_t)n_cell + (size_t)cell) * MU_FLOAT_GROUP +
                    (size_t)(row % MU_FLOAT_GROUP);
        const uint32_t none = type == MU_F32 ? 0x80000000u : 0x80008000u; /* -0: adds nothing */
        to->cell[i] =
            row < n_row && cell < n_cell ? reinterpret_cast<const uint4 *>(m)[at] : make_uint4(none, none, none, none);
    }
    for (int i = 0; i < M::QUADS; i++) {
        int at = i * M::THREADS + (int)threadIdx.x, v = at % T;
        for (int k = 0; k < 4; k++) to->x[i][k] = 0.0f;
        if (v < n) mu_float_inputs<type, 4>(a, (size_t)input[v], c0 + at / T * 4, to->x[i]);
    }
}

/* Turned, to shared memory. */
template <uint32_t type, int R, int T>
__device__ static inline void mu_many_write(const struct mu_float_args &a, const uint8_t *m, int row0, int n_row,
                                            int c0, const struct mu_many_chunk<type, R, T> &from, float *weights,
                                            float *inputs)
{
    typedef mu_many_of<type, R, T> M;
    for (int i = 0; i < M::CELLS; i++) {
        int c, row = mu_many_cell<type, R, T>(i, &c);
        float w[M::CELL];
        if constexpr (M::WIDENED) {
            for (int k = 0; k < M::CELL; k++) w[k] = -0.0f;
            if (row0 + row < n_row && c0 + c < a.n_col)
                mu_eight_widen(a.type, m + (size_t)(row0 + row) * a.row_bytes, (c0 + c) / 8, w);
        } else {
            mu_cell_widen<type>(from.cell[i], w);
        }
#pragma unroll
        for (int k = 0; k < M::CELL; k++) weights[(c + k) * M::W_STRIDE + row] = w[k];
    }
    for (int i = 0; i < M::QUADS; i++) {
        int at = i * M::THREADS + (int)threadIdx.x;
        for (int k = 0; k < 4; k++) inputs[(at / T * 4 + k) * M::X_STRIDE + at % T] = from.x[i][k];
    }
}

template <uint32_t type, int R, int T, enum mu_float_step step>
__device__ static inline void mu_many_multiply(const float *weights, const float *inputs,
                                               float (&acc)[mu_many_of<type, R, T>::ROWS][mu_many_of<type, R, T>::EACH])
{
    typedef mu_many_of<type, R, T> M;
    const int r = threadIdx.x % 16, v = threadIdx.x / 16;
#pragma unroll(step == MU_STEP_FLUSH ? 1 : MU_MANY_COLUMNS)
    for (int c = 0; c < MU_MANY_COLUMNS; c++) {
        float w[M::ROWS], x[M::EACH];
        const float4 *of_w = reinterpret_cast<const float4 *>(weights + c * M::W_STRIDE) + r;
        const float4 *of_x = reinterpret_cast<const float4 *>(inputs + c * M::X_STRIDE) + v;
#pragma unroll
        for (int h = 0; h < M::ROWS / 4; h++) {
            float4 four = of_w[16 * h];
            w[4 * h] = four.x, w[4 * h + 1] = four.y, w[4 * h + 2] = four.z, w[4 * h + 3] = four.w;
        }
#pragma unroll
        for (int h = 0; h < M::EACH / 4; h++) {
            float4 four = of_x[16 * h];
            x[4 * h] = four.x, x[4 * h + 1] = four.y, x[4 * h + 2] = four.z, x[4 * h + 3] = four.w;
        }
#pragma unroll
        for (int i = 0; i < M::ROWS; i++)
#pragma unroll
            for (int j = 0; j < M::EACH; j++) acc[i][j] = mu_float_add<step>(w[i], x[j], acc[i][j]);
    }
}

template <uint32_t type, int R, int T, enum mu_float_step step>
__device__ static inline void mu_many_chain(const struct mu_float_args &a, const uint8_t *m, int row0, int n_row,
                                            const int *input, int n, float *weights, float *inputs,
                                            float (&acc)[mu_many_of<type, R, T>::ROWS][mu_many_of<type, R, T>::EACH])
{
    typedef mu_many_of<type, R, T> M;
    enum { W = MU_MANY_COLUMNS * M::W_STRIDE, X = MU_MANY_COLUMNS * M::X_STRIDE };
    struct mu_many_chunk<type, R, T> chunk;
    mu_many_read<type, R, T>(a, m, row0, n_row, input, n, 0, &chunk);
    mu_many_write<type, R, T>(a, m, row0, n_row, 0, chunk, weights, inputs);
    __syncthreads();
    for (int c0 = 0, half = 0; c0 < a.n_col; c0 += MU_MANY_COLUMNS, half ^= 1) {
        const int next = c0 + MU_MANY_COLUMNS;
        if (next < a.n_col) mu_many_read<type, R, T>(a, m, row0, n_row, input, n, next, &chunk);
        mu_many_multiply<type, R, T, step>(weights + half * W, inputs + half * X, acc);
        if (next < a.n_col)
            mu_many_write<type, R, T>(a, m, row0, n_row, next, chunk, weights + (half ^ 1) * W,
                                      inputs + (half ^ 1) * X);
        __syncthreads(); /* the next chunk is there, and this one done with */
    }
}

/* The grid: parts of T vectors × tiles of all jobs; the parts of a tile together, for its weights are read once then. */
template <uint32_t type, int R, int T>
__global__ static __launch_bounds__(mu_many_of<type, R, T>::THREADS,
                                    2) void mu_many_kernel(const __grid_constant__ struct mu_float_args a)
{
    typedef mu_many_of<type, R, T> M;
    __shared__ __align__(16) float weights[2 * MU_MANY_COLUMNS * M::W_STRIDE];
    __shared__ __align__(16) float inputs[2 * MU_MANY_COLUMNS * M::X_STRIDE];
    __shared__ int input[T];
    const struct mu_float_job &job = a.job[mu_float_job_of(a, (int)blockIdx.y)];
    const struct mu_float_part p = mu_float_part_of(a, (int)blockIdx.x, T);
    const int row0 = ((int)blockIdx.y - job.first) * R;
    const uint8_t *m = job.m + (size_t)p.expert * job.m_bytes;
    float acc[M::ROWS][M::EACH] = {};
    if (p.n <= 0) return; /* the whole block */
    if ((int)threadIdx.x < p.n) input[threadIdx.x] = (int)mu_float_input(a, p.first + (int)threadIdx.x);
    __syncthreads();
    if (type != MU_BF16)
        mu_many_chain<type, R, T, MU_STEP_PLAIN>(a, m, row0, job.e.n_row, input, p.n, weights, inputs, acc);
    else if (mu_ftz_proven)
        mu_many_chain<type, R, T, MU_STEP_FTZ>(a, m, row0, job.e.n_row, input, p.n, weights, inputs, acc);
    else
        mu_many_chain<type, R, T, MU_STEP_FLUSH>(a, m, row0, job.e.n_row, input, p.n, weights, inputs, acc);

    const int r = threadIdx.x % 16, v0 = threadIdx.x / 16 * 4;
#pragma unroll
    for (int j = 0; j < M::EACH; j++) {
        const int k = j / 4 * 64 + v0 + j % 4;
#pragma unroll
        for (int h = 0; h < M::ROWS / 4; h++) {
            struct mu_products<4> y;
#pragma unroll
            for (int i = 0; i < 4; i++) y.y[i] = acc[4 * h + i][j];
            mu_float_finish<4>(job.e, row0 + 64 * h + 4 * r, (size_t)(p.first + k), p.expert, k < p.n, y, 0.0f);
        }
    }
}

template <uint32_t type, int R, int T> static inline void mu_many_launch(struct mu_device *d, struct mu_float_args *a)
{
    int n_tile = 0;
    for (int j = 0; j < a->n_job; j++) {
        a->job[j].first = n_tile;
        n_tile += (a->job[j].e.n_row + R - 1) / R;
    }
    mu_launch(d, "a product of floats with many vectors", mu_many_kernel<type, R, T>,
              dim3(mu_float_parts(a, T), (unsigned)n_tile), dim3(mu_many_of<type, R, T>::THREADS), 0, *a);
}

#endif
