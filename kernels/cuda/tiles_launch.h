/* Tiles as kernels, and which of them multiplies. Included by the files that have the types: tiles_plain.cu,
 * tiles_min.cu, tiles_halves.cu and tiles_table.cu, several because they take the compiler minutes. */
#ifndef MU_KERNELS_CUDA_TILES_LAUNCH_H
#define MU_KERNELS_CUDA_TILES_LAUNCH_H

#include "kernels/cuda/tiles_kernel.h"

template <uint32_t type, typename Shape>
__global__ static void __launch_bounds__(Shape::THREADS, Shape::CTAS)
    tiles_kernel(const __grid_constant__ struct mu_tile_args x)
{
    typedef mu_tile<type, Shape> T;
    typedef typename T::M M;
    MU_SHARED(uint8_t, bytes);
    if (x.experts.n_expert > 0) mu_grid_wait(); /* for begin and place; else product waits */
    struct mu_tile_place place = mu_tile_find<Shape>(x);
    if (place.n > 0) { /* the same for all threads */
        const struct mu_tile_job &job = x.job[place.job];
        bool pairs = job.up != NULL; /* half the groups are up's */
        int groups = pairs ? Shape::GROUPS / 2 : Shape::GROUPS;
        uint32_t *vector = reinterpret_cast<uint32_t *>(bytes + M::VECTOR);
        mu_tile_vectors<Shape>(x, place, vector);
        int mover = (int)threadIdx.x - (int)Shape::FIRST_MOVER;
        int mine = mover < 0 ? 0 : mover / (Shape::MOVERS / Shape::GROUPS), group = place.tile * groups + mine % groups;
        const uint8_t *m = mine < groups ? job.m : job.up;
        int most = (job.n_row + 15) / 16 - 1;
        m += (size_t)place.expert * (mine < groups ? x.experts.m_bytes : x.experts.up_bytes);
        m += (size_t)(group < most ? group : most) * mu_layout_group_bytes<type>(x.n_col);
        __syncthreads(); /* vector */
        float acc[Shape::RT][Shape::NT][4] = {};
        T::product(bytes, x, m, acc);
        mu_grid_release();

        mu_tile_finish<Shape, M::Y_ROW>(x, place, reinterpret_cast<float *>(bytes), acc);
    }
}

/* ---- the host's side ---- */

template <uint32_t type, typename Shape> static void launch(struct mu_device *d, struct mu_tile_args *x)
{
    constexpr int bytes = mu_tile_memory<type, Shape>::BYTES;
    if (bytes > 48 * 1024) mu_allow_shared(d, "a product with many vectors", tiles_kernel<type, Shape>, bytes);
    dim3 grid = mu_tile_grid<Shape>(x); /* and x with it */
    mu_launch_early(d, "a product with many vectors", tiles_kernel<type, Shape>, grid, dim3(Shape::THREADS), bytes, *x);
}

/* Rows × vectors. */
typedef mu_tile_shape<4, 8, 2, 2, 2, 3, 2> shape_128_128;
typedef mu_tile_shape<2, 4, 2, 2, 2, 4, 3> shape_64_64;
typedef mu_tile_shape<1, 2, 4, 2, 2, 4, 3> shape_64_32;
typedef mu_tile_shape<1, 2, 4, 1, 2, 6, 4> shape_64_16;
typedef mu_tile_shape<1, 4, 4, 2, 2, 4, 2, 4> shape_64_64_moved;
typedef mu_tile_shape<1, 2, 4, 2, 2, 4, 2, 4> shape_64_32_moved;
typedef mu_tile_shape<1, 2, 4, 1, 2, 4, 4, 2> shape_64_16_moved;
typedef mu_tile_shape<1, 2, 2, 4, 4, 4, 1, 4> shape_32_64_moved;
typedef mu_tile_shape<1, 2, 2, 2, 4, 4, 2, 4> shape_32_32_moved;
typedef mu_tile_shape<1, 2, 2, 1, 4, 5, 2, 4> shape_32_16_moved;

template <uint32_t type> struct tiles_of {
    /* What most files are made of has tiles of 32 rows and movers for few vectors: on an H200 these take 64 to 82% of the
     * time of tiles without. The others have one shape of each kind, for the compiler's time. */
    static constexpr bool COMMON = type == MU_Q8_0 || type == MU_Q4_0 || type == MU_Q4_K || type == MU_Q6_K;

    template <typename Shape> static bool in(struct mu_device *d, struct mu_tile_args *x)
    {
        if (mu_tile_memory<type, Shape>::BYTES > (int)d->shared_max) return false;
        launch<type, Shape>(d, x);
        return true;
    }
    static bool few_rows(struct mu_device *d, struct mu_tile_args *x, int n_each)
    {
        if constexpr (COMMON) {
            if (n_each > 32) return in<shape_32_64_moved>(d, x);
            if (n_each > 16) return in<shape_32_32_moved>(d, x);
            return in<shape_32_16_moved>(d, x);
        }
        return false;
    }
    static bool small_moved(struct mu_device *d, struct mu_tile_args *x, int n_each)
    {
        if constexpr (COMMON) {
            if (n_each > 32) return in<shape_64_64_moved>(d, x);
            if (n_each > 16) return in<shape_64_32_moved>(d, x);
            return in<shape_64_16_moved>(d, x);
        }
        return false;
    }
    static void run(struct mu_device *d, struct mu_tile_args *x, int n_each)
    {
        int rows = 0;
        bool low = true;
        for (int j = 0; j < x->n_job; j++) {
            rows += x->job[j].n_row * (x->job[j].up ? 2 : 1);
            low = low && !x->job[j].up;
        }
        /* Large tiles where there are enough of them for every multiprocessor; tiles of 32 rows where those of 64 would
         * be too few, but for a gated pair, which needs 64 for its result's blocks of 32. */
        int tiles = (rows + 127) / 128 * ((x->n_vec + 127) / 128);
        if (n_each > 64 && 2 * tiles >= 3 * d->n_sm && in<shape_128_128>(d, x)) return;
        low = low && (rows + 63) / 64 * ((x->n_vec + 63) / 64) < 2 * d->n_sm;
        if (low && few_rows(d, x, n_each)) return;
        if (small_moved(d, x, n_each)) return;
        if (n_each > 32)
            launch<type, shape_64_64>(d, x);
        else if (n_each > 16)
            launch<type, shape_64_32>(d, x);
        else
            launch<type, shape_64_16>(d, x);
    }
};

#endif
