/* Rough products (kernels/device.h): bf16 fragments on the tensor cores, of all types that layout.h or float.h packs.
 *
 * The exact tiles (tiles_kernel.h) are bound by what C2 asks of the f32 pipe for every element and block. Here the sum
 * stays in the tensor cores' accumulators from the first column to the last, and what is left to do is to make operands:
 *
 *   weights    by each warp in registers, from what was packed (rough_codes.h, rough_cells.h): two and a half to four
 *              instructions a weight. A warp of 64 rows × 64 vectors has 32 products a step of 16 columns, some 200
 *              cycles of its quarter of a multiprocessor, and 32 weights a lane to make beside them.
 *   vectors    by all threads of the block, a stage ahead, into shared memory (rough_vectors.h).
 *
 * A stage is 64 columns, of a pair of blocks, in four steps; the ring is that of the exact tiles:
 *
 *   iteration i    wait until stage i + 1 is there; barrier; order stage i + ST - 1 (into where stage i - 1 was);
 *                  multiply stage i, and between its steps prepare parts of stage i + 1
 *
 * An element is one chain of products, columns ascending by steps of 16, whatever the tile, the number of vectors and
 * the element's place in the fragment: so it depends on its row and vector alone. That is also why columns are never split
 * among blocks of threads, and why a stage has as many columns in all shapes: beyond the last are zeros, on both sides.
 *
 * Tall tiles where there is work for all multiprocessors: weights are fewer bytes than vectors. */
#ifndef MU_KERNELS_CUDA_ROUGH_KERNEL_H
#define MU_KERNELS_CUDA_ROUGH_KERNEL_H

#include "kernels/cuda/rough_vectors.h"
#include "kernels/cuda/tiles_place.h"

/* Weights: mu_rough_codes<type, Shape> or mu_rough_cells<type, Shape>. */
template <uint32_t type, typename Shape, typename Weights> struct mu_rough {
    typedef Weights W;
    typedef mu_rough_vectors<type, Shape> V;
    static constexpr int STEPS = V::PARTS;
    enum {
        VECTORS = Shape::GROUPS * W::GROUP, /* in a stage, behind the weights */
        STAGE = VECTORS + V::STAGE,
        PREPARED_STAGE = W::PREPARED + V::PREPARED, /* the weights' behind the vectors' */
        PREPARED = Shape::ST * STAGE,
        VECTOR = PREPARED + 2 * PREPARED_STAGE, /* uint32 [VECS]: which rows of x the vectors are */
        WORK = VECTOR + Shape::VECS * 4,
        Y_ROW = Shape::ROWS + 4, /* floats; afterwards: y [VECS][Y_ROW] */
        Y = Shape::VECS * Y_ROW * 4,
        BYTES = WORK > Y ? WORK : Y
    };
    static_assert(STAGE % 16 == 0 && VECTORS % 16 == 0 && PREPARED_STAGE % 16 == 0, "pieces of 16 bytes");

    struct lane_place {
        unsigned lane;
        unsigned group;  /* in a stage, the warp's first group */
        unsigned row;    /* in the vectors of a stage, the row that the lane names to ldmatrix */
        unsigned turn;   /* 16 · (what its pieces' numbers are changed by), with the half that it names */
        unsigned factor; /* in what is prepared of the weights, its first row */
    };

    /* Operand B of a step: for products n and n + 1 registers b[n / 2][0 … 1] and [2 … 3]. */
    template <int step>
    __device__ static void vectors_load(const uint8_t *vectors, const struct lane_place &w,
                                        uint32_t b[Shape::NT / 2][4])
    {
        const uint8_t *at = vectors + w.row + (w.turn ^ 32 * step);
#pragma unroll
        for (int n = 0; n < Shape::NT; n += 2) mu_ldmatrix_x4(b[n / 2], at + n * 8 * V::BF16_ROW);
    }

    struct stage_at {
        const uint8_t *now, *next; /* stages */
        const uint8_t *vectors, *factors;
        uint8_t *prepared; /* of the next stage */
        unsigned b;        /* its first block */
    };

    /* Step `step` and those after it. b: its operand; the next step's is fetched before its products begin. */
    template <int step>
    __device__ static void steps(const struct stage_at &s, const struct lane_place &w, typename W::bits bits[Shape::RT],
                                 uint32_t (&b)[2][Shape::NT / 2][4], float acc[Shape::RT][Shape::NT][4])
    {
        const uint8_t *group = s.now + w.group;
        if constexpr (step + 1 < STEPS) vectors_load<step + 1>(s.vectors, w, b[(step + 1) % 2]);
#pragma unroll
        for (int r = 0; r < Shape::RT; r++) {
            uint32_t a[4];
            W::template load<step>(group + r * W::GROUP, w.lane, &bits[r]);
            W::template fragment<step>(bits[r], s.factors + w.factor, r, a);
#pragma unroll
            for (int n = 0; n < Shape::NT; n++)
                mu_mma_bf16_k16(acc[r][n], a, b[step % 2][n / 2] + n % 2 * 2, acc[r][n]);
        }
        V::template prepare<step>(s.next + VECTORS, s.prepared);
        if constexpr (step == 0) W::prepare(s.next, s.prepared + V::PREPARED, s.b);
        if constexpr (step + 1 < STEPS) steps<step + 1>(s, w, bits, b, acc);
    }

    template <int part> __device__ static void prepare_all(const uint8_t *stage, uint8_t *prepared)
    {
        V::template prepare<part>(stage + VECTORS, prepared);
        if constexpr (part + 1 < STEPS) prepare_all<part + 1>(stage, prepared);
    }

    /* group: where the group of rows lies that this thread helps to copy; vector: row of x of each of the tile's vectors
     * (shared memory). */
    __device__ static void product(uint8_t *bytes, const struct mu_tile_args &x, const uint8_t *group,
                                   float acc[Shape::RT][Shape::NT][4])
    {
        const uint32_t *vector = reinterpret_cast<const uint32_t *>(bytes + VECTOR);
        uint8_t *prepared = bytes + PREPARED;
        const int n_stage = (x.n_col + 63) / 64;
        const bool pieces = V::whole(x);
        struct lane_place w;
        w.lane = threadIdx.x % 32;
        unsigned warp = threadIdx.x / 32, first = warp % Shape::WR * Shape::RT, vec = warp / Shape::WR * Shape::NT * 8;
        unsigned row = vec + (w.lane & 7) + (w.lane >> 4) * 8;
        w.group = first * W::GROUP;
        w.row = row * V::BF16_ROW;
        w.turn = 16 * ((w.lane >> 3 & 1) ^ (row & 7));
        w.factor = W::factor_at(0, first, 0, w.lane / 4);
#pragma unroll
        for (int i = 0; i < Shape::ST - 1; i++)
            if (i < n_stage) W::copy(bytes + i * STAGE, group, x.n_col, 2 * (unsigned)i);
        mu_grid_wait(); /* the weights are there; the vectors may still be in the making */
#pragma unroll
        for (int i = 0; i < Shape::ST - 1; i++) {
            if (i < n_stage) V::copy(bytes + i * STAGE + VECTORS, x, vector, 2 * (unsigned)i, pieces);
            mu_cp_async_commit();
        }
        mu_cp_async_wait<Shape::ST - 2>();
        __syncthreads();
        prepare_all<0>(bytes, prepared);
        W::prepare(bytes, prepared + V::PREPARED, 0);
        int now = 0; /* where stage i is */
#pragma unroll 1
        for (int i = 0; i < n_stage; i++) {
            int next = now + 1 < Shape::ST ? now + 1 : 0, last = now > 0 ? now - 1 : Shape::ST - 1;
            mu_cp_async_wait<Shape::ST - 3>();
            __syncthreads();
            if (i + Shape::ST - 1 < n_stage) {
                unsigned b = 2 * (unsigned)(i + Shape::ST - 1);
                W::copy(bytes + last * STAGE, group, x.n_col, b);
                V::copy(bytes + last * STAGE + VECTORS, x, vector, b, pieces);
            }
            mu_cp_async_commit();
            uint8_t *of_this = prepared + i % 2 * PREPARED_STAGE;
            struct stage_at s; /* after the last stage something is prepared that nobody reads */
            s.now = bytes + now * STAGE;
            s.next = bytes + next * STAGE;
            s.vectors = V::PREPARED > 0 ? of_this : s.now + VECTORS;
            s.factors = of_this + V::PREPARED;
            s.prepared = prepared + (1 - i % 2) * PREPARED_STAGE;
            s.b = 2 * (unsigned)(i + 1);
            typename W::bits bits[Shape::RT];
            uint32_t b[2][Shape::NT / 2][4];
            vectors_load<0>(s.vectors, w, b[0]);
            steps<0>(s, w, bits, b, acc);
            now = next;
        }
        mu_cp_async_wait<0>();
        __syncthreads();
    }
};

template <uint32_t type, typename Shape, typename Weights>
__global__ static void __launch_bounds__(Shape::THREADS, Shape::CTAS)
    rough_kernel(const __grid_constant__ struct mu_tile_args x)
{
    typedef mu_rough<type, Shape, Weights> T;
    MU_SHARED(uint8_t, bytes);
    if (x.experts.n_expert > 0) mu_grid_wait(); /* for begin and place; else product waits */
    struct mu_tile_place place = mu_tile_find<Shape>(x);
    if (place.n > 0) { /* the same for all threads */
        const struct mu_tile_job &job = x.job[place.job];
        uint32_t *vector = reinterpret_cast<uint32_t *>(bytes + T::VECTOR);
        mu_tile_vectors<Shape>(x, place, vector);
        /* The group that the thread brings: half of them are up's, where there is one. */
        int groups = job.up ? Shape::GROUPS / 2 : Shape::GROUPS, mine = threadIdx.x / (Shape::THREADS / Shape::GROUPS);
        int group = place.tile * groups + mine % groups, most = (job.n_row + 15) / 16 - 1;
        const uint8_t *m = mine < groups ? job.m : job.up;
        m += (size_t)place.expert * (mine < groups ? x.experts.m_bytes : x.experts.up_bytes);
        m += Weights::group_at(group < most ? group : most, x.n_col);
        __syncthreads(); /* vector */
        float acc[Shape::RT][Shape::NT][4] = {};
        T::product(bytes, x, m, acc);
        mu_grid_release();
        mu_tile_finish<Shape, T::Y_ROW>(x, place, reinterpret_cast<float *>(bytes), acc);
    }
}

/* ---- the host's side ---- */

template <uint32_t type, template <uint32_t, typename> class Weights> struct mu_rough_of {
    /* Rows × vectors. F16 and F32 bring 256 bytes of a vector a stage, and have room for three. */
    enum { ST = mu_rough_form_of(type) == MU_ROUGH_F32 ? 3 : 4 };
    typedef mu_tile_shape<4, 8, 4, 2, 1, ST, 1> shape_256_128;
    typedef mu_tile_shape<2, 8, 4, 2, 1, ST, 1> shape_128_128;
    typedef mu_tile_shape<2, 4, 2, 2, 1, ST, 2> shape_64_64;
    typedef mu_tile_shape<1, 2, 4, 2, 1, ST, 2> shape_64_32;

    template <typename Shape> static bool in(struct mu_device *d, struct mu_tile_args *x)
    {
        typedef Weights<type, Shape> W;
        constexpr int bytes = mu_rough<type, Shape, W>::BYTES;
        if (bytes > (int)d->shared_max) return false;
        dim3 grid = mu_tile_grid<Shape>(x); /* and x with it */
        mu_allow_shared(d, "a rough product", rough_kernel<type, Shape, W>, bytes);
        mu_launch_early(d, "a rough product", rough_kernel<type, Shape, W>, grid, dim3(Shape::THREADS), bytes, *x);
        return true;
    }

    /* Turns that the multiprocessors take over tiles of that height, times what one takes. */
    static int turns(const struct mu_device *d, const struct mu_tile_args *x, int rows, int each)
    {
        int tiles = 0, n = (x->n_vec + 127) / 128;
        for (int j = 0; j < x->n_job; j++) {
            int high = x->job[j].up ? rows / 2 : rows;
            tiles += (x->job[j].n_row + high - 1) / high * n;
        }
        return (tiles + d->n_sm - 1) / d->n_sm * each;
    }

    static void run(struct mu_device *d, struct mu_tile_args *x, int n_each)
    {
        if (n_each > 64) {
            int tall = turns(d, x, 256, 2), low = turns(d, x, 128, 1);
            if (tall <= low && in<shape_256_128>(d, x)) return;
            if (in<shape_128_128>(d, x)) return;
        }
        if (n_each > 32 && in<shape_64_64>(d, x)) return;
        in<shape_64_32>(d, x);
    }
};

#endif
