/* Where float matrices' values lie; float.h says why. */
#ifndef MU_KERNELS_CUDA_CELLS_H
#define MU_KERNELS_CUDA_CELLS_H

#include <cuda_runtime.h>

#include "kernels/types.h"

enum { MU_FLOAT_GROUP = 32, MU_CELL_BYTES = 16, MU_ROW_OF_CELLS = MU_FLOAT_GROUP * MU_CELL_BYTES };

/* Values of a cell; 0 where rows are the file's. */
__host__ __device__ constexpr int mu_cell_values(uint32_t type)
{
    return type == MU_F32 ? 4 : type == MU_F16 || type == MU_BF16 ? 8 : 0;
}

#endif
