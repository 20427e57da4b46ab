/* Cells of floats (cells.h) as operand A of the tensor cores' bf16 product.
 *
 * A cell is 16 bytes of a row, and rows of a cell lie side by side, so ldmatrix reads it without conflicts: of BF16 two
 * cells are the fragment of a step, as they are; F16's halves are widened and rounded. Of F32 a lane gets column t of each of
 * four cells, so of 16 columns those of the first two cells come first, paired (0, 4), (1, 5) …, then those of the
 * others (rough_vectors.h). Beyond the last column are zeros. */
#ifndef MU_KERNELS_CUDA_ROUGH_CELLS_H
#define MU_KERNELS_CUDA_ROUGH_CELLS_H

#include "kernels/cuda/cells.h"
#include "kernels/cuda/ptx.h"
#include "kernels/cuda/tiles_place.h"

template <uint32_t type, typename Shape> struct mu_rough_cells {
    enum {
        VALUES = mu_cell_values(type),
        CELLS = 32 * Shape::BLOCKS / VALUES, /* of a row in a stage */
        CELL = 16 * MU_CELL_BYTES,           /* bytes of the group's 16 rows */
        GROUP = CELLS * CELL,
        PREPARED = 0,
    };

    __device__ static unsigned cells(int n_col) { return ((unsigned)n_col + VALUES - 1) / VALUES; }

    __device__ static size_t group_at(int group, int n_col)
    {
        return (size_t)(group / 2) * cells(n_col) * MU_ROW_OF_CELLS + (size_t)(group % 2) * CELL;
    }

    __device__ static void copy(uint8_t *stage, const uint8_t *group, int n_col, unsigned b)
    {
        constexpr unsigned each = Shape::THREADS / Shape::GROUPS; /* threads of a group */
        constexpr unsigned n = CELLS * 16;
        unsigned first = 32 * b / VALUES, left = cells(n_col) - first;
        uint8_t *dst = stage + threadIdx.x / each * GROUP;
#pragma unroll
        for (unsigned i = threadIdx.x % each; i < n; i += each) {
            unsigned cell = i / 16, row = i % 16;
            bool in = cell < left;
            mu_cp_async16(dst + 16 * i, group + (size_t)(in ? first + cell : 0) * MU_ROW_OF_CELLS + row * MU_CELL_BYTES,
                          in ? 16 : 0);
        }
    }

    /* Nothing is prepared. */
    __device__ static unsigned factor_at(int, unsigned, int, unsigned)
    {
        return 0;
    }
    __device__ static void prepare(const uint8_t *, uint8_t *, unsigned) {}

    struct bits {
        uint32_t word[type == MU_F32 ? 8 : 4];
    };
    template <int step> __device__ static void load(const uint8_t *group, unsigned lane, bits *c)
    {
        const uint8_t *at = group + step * (16 / VALUES) * CELL + lane * MU_CELL_BYTES;
        mu_ldmatrix_x4(c->word, at);
        if constexpr (type == MU_F32) mu_ldmatrix_x4(c->word + 4, at + 2 * CELL);
    }

    template <int> __device__ static void fragment(const bits &c, const uint8_t *, int, uint32_t a[4])
    {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if constexpr (type == MU_F32) {
                constexpr int cell[4] = {0, 1, 4, 5};
                a[i] = mu_bf16_pair(__uint_as_float(c.word[cell[i]]), __uint_as_float(c.word[cell[i] + 2]));
            } else if constexpr (type == MU_F16) {
                uint32_t w = c.word[i];
                a[i] = mu_bf16_pair(mu_half_to_f32((uint16_t)w), mu_half_to_f32((uint16_t)(w >> 16)));
            } else {
                a[i] = c.word[i];
            }
        }
    }
};

#endif
