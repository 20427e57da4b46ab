/* What the tiles of tiles_kernel.h (exact) and rough_kernel.h share: what a launch is told, the shape of a block of threads,
 * which rows and vectors are its tile, and what it does with the products.
 *
 * Vectors are taken in an order that lets a lane have four neighbours in two products of 8 vectors: vector 16p + 4t + 2j
 * + c (c of 0, 1) is column 2t + c of product 2p + j. */
#ifndef MU_KERNELS_CUDA_TILES_PLACE_H
#define MU_KERNELS_CUDA_TILES_PLACE_H

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/tiles_finish.h"

/* ---- what a launch is told ---- */

struct mu_tile_job {
    const uint8_t *m, *up; /* up NULL: none, or done */
    int n_row, first;      /* tiles of rows from this one on are this job's */
    struct mu_epilogue then;
    enum mu_tile_quick quick;
};

struct mu_tile_args {
    struct mu_tile_job job[MU_DEVICE_MAX_JOBS];
    int n_job, n_vec, n_col; /* n_vec: vectors of the product; places, with experts */
    const int8_t *q;
    const float *s;
    const int16_t *sum;
    const float *f32;
    const uint16_t *bf16;
    struct mu_device_experts experts; /* n_expert 0: none */
};

/* Of jobs whose matrices are of one type. n_each: vectors for each matrix, with experts on average. */
static inline struct mu_tile_args mu_tile_args_of(const struct mu_device_job *job, int n_job, const struct mu_act *x,
                                                  const struct mu_device_experts *experts, int *n_each_out)
{
    struct mu_tile_args a = {};
    a.n_job = n_job;
    a.n_vec = x->n_tok;
    a.n_col = x->n_col;
    a.q = x->q;
    a.s = x->s;
    a.sum = x->sum;
    a.f32 = x->f32;
    a.bf16 = x->bf16;
    if (experts) {
        a.experts = *experts;
        if (!experts->by_place) a.n_vec = x->n_tok * experts->n_used;
    }
    for (int j = 0; j < n_job; j++) {
        const struct mu_mat *up = mu_epilogue_second(&job[j]);
        a.job[j].m = (const uint8_t *)job[j].m->data;
        a.job[j].up = up ? (const uint8_t *)up->data : NULL;
        a.job[j].n_row = job[j].m->n_row;
        a.job[j].then = mu_epilogue_of(&job[j]);
        a.job[j].quick = mu_tile_quick_of(&a.job[j].then);
    }
    *n_each_out = experts ? (a.n_vec + experts->n_expert - 1) / experts->n_expert : a.n_vec;
    return a;
}

/* The shape of a block of threads; CTAS of them at once on a multiprocessor. movers: warps beside those that multiply
 * which do nothing but copy and prepare; 0: all do both. */
template <int rt, int nt, int wr, int wt, int p, int st, int ctas, int movers = 0> struct mu_tile_shape {
    enum {
        RT = rt,
        NT = nt,
        WR = wr,
        WT = wt,
        P = p,
        ST = st,
        CTAS = ctas,
        GROUPS = wr * rt, /* of 16 rows */
        ROWS = 16 * GROUPS,
        VECS = wt * nt * 8,
        MULTIPLIERS = 32 * wr * wt, /* threads */
        THREADS = MULTIPLIERS + 32 * movers,
        FIRST_MOVER = movers ? MULTIPLIERS : 0,
        MOVERS = THREADS - FIRST_MOVER,
        BLOCKS = 2 * p /* of 32 columns in a stage */
    };
    static_assert(nt % 2 == 0 && st >= 3 && MOVERS % GROUPS == 0, "a shape that the kernel can do");
};

/* The tile of a block of threads. */
struct mu_tile_place {
    int job, tile; /* tile of rows within the job */
    int expert;    /* 0 where there are none */
    int first, n;  /* vectors (places) [first, first + n) are of this matrix; the tile's begin at `vec` */
    int vec;
};

/* Where this block's tile is; n 0: nowhere. Whole warps; every warp finds the same. */
template <typename Shape> __device__ static struct mu_tile_place mu_tile_find(const struct mu_tile_args &x)
{
    struct mu_tile_place place = {};
    int lane = (int)threadIdx.x % 32, tile = (int)blockIdx.x;
    while (place.job + 1 < x.n_job && (int)blockIdx.y >= x.job[place.job + 1].first) place.job++;
    place.tile = (int)blockIdx.y - x.job[place.job].first;
    if (x.experts.n_expert == 0) {
        place.n = x.n_vec;
        place.vec = tile * Shape::VECS;
        return place;
    }
    for (int e0 = 0; e0 < x.experts.n_expert; e0 += 32) {
        int e = e0 + lane, begin = 0, end = 0;
        if (e < x.experts.n_expert) begin = x.experts.begin[e], end = x.experts.begin[e + 1];
        int n = (end - begin + Shape::VECS - 1) / Shape::VECS, upto = n;
        for (int step = 1; step < 32; step *= 2) {
            int v = __shfl_up_sync(0xffffffffu, upto, step);
            if (lane >= step) upto += v;
        }
        unsigned beyond = __ballot_sync(0xffffffffu, upto > tile);
        int from = beyond ? __ffs((int)beyond) - 1 : 31; /* the expert that has it */
        int before = __shfl_sync(0xffffffffu, upto - n, from), all = __shfl_sync(0xffffffffu, upto, 31);
        begin = __shfl_sync(0xffffffffu, begin, from);
        end = __shfl_sync(0xffffffffu, end, from);
        if (beyond) {
            place.expert = e0 + from;
            place.first = begin;
            place.n = end - begin;
            place.vec = begin + (tile - before) * Shape::VECS;
            break;
        }
        tile -= all;
    }
    return place;
}

/* Vector of the tile that lies at a row of a stage's vectors: its place among the products' columns. */
__device__ static inline unsigned mu_tile_vector_at(unsigned row)
{
    return (row & ~15u) + 4 * ((row & 7) >> 1) + 2 * (row >> 3 & 1) + (row & 1);
}

/* Which rows of x the tile's vectors are. All threads; a barrier after it. */
template <typename Shape>
__device__ static inline void mu_tile_vectors(const struct mu_tile_args &x, const struct mu_tile_place &place,
                                              uint32_t *vector)
{
    int last = place.first + place.n - 1;
    for (int i = (int)threadIdx.x; i < Shape::VECS; i += Shape::THREADS) {
        int p = place.vec + i < last ? place.vec + i : last;
        vector[i] =
            (uint32_t)(x.experts.n_expert == 0 || x.experts.by_place ? p : x.experts.place[p] / x.experts.n_used);
    }
}

/* The products of the tile, of which each lane has its part of the warp's, through shared memory (y [VECS][Y_ROW], which
 * nobody needs for anything else any more) to where they belong. All threads; movers have none. */
template <typename Shape, int Y_ROW>
__device__ static inline void mu_tile_finish(const struct mu_tile_args &x, const struct mu_tile_place &place, float *y,
                                             const float acc[Shape::RT][Shape::NT][4])
{
    const struct mu_tile_job &job = x.job[place.job];
    bool pairs = job.up != NULL;
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    int row0 = warp % Shape::WR * Shape::RT * 16 + lane / 4, vec0 = warp / Shape::WR * Shape::NT * 8 + lane % 4 * 4;
#pragma unroll
    for (int r = 0; r < Shape::RT; r++)
#pragma unroll
        for (int n = 0; n < Shape::NT; n++)
#pragma unroll
            for (int e = 0; e < 4 && (int)threadIdx.x < Shape::MULTIPLIERS; e++)
                y[(vec0 + n / 2 * 16 + n % 2 * 2 + e % 2) * Y_ROW + row0 + r * 16 + e / 2 * 8] = acc[r][n][e];
    __syncthreads();
    constexpr int threads = Shape::THREADS, all = Shape::ROWS, half = Shape::ROWS / 2;
    int rows = pairs ? half : all, row = place.tile * rows, n_vec = place.first + place.n - place.vec;
    if (n_vec > Shape::VECS) n_vec = Shape::VECS;
    if (job.quick == MU_TILE_NOTHING)
        mu_tile_finish_quick<all, Y_ROW, threads, false>(job.then, row, place.vec, n_vec, y);
    else if (job.quick == MU_TILE_SILU)
        mu_tile_finish_quick<half, Y_ROW, threads, true>(job.then, row, place.vec, n_vec, y);
    else
        mu_tile_finish_general<Y_ROW, threads>(job.then, rows, row, place.vec, n_vec, place.expert, pairs, y);
}

/* Tiles of all jobs times those of the vectors; sets where each job's begin. */
template <typename Shape> static inline dim3 mu_tile_grid(struct mu_tile_args *x)
{
    int tiles = 0, n_expert = x->experts.n_expert;
    for (int j = 0; j < x->n_job; j++) {
        int rows = x->job[j].up ? Shape::ROWS / 2 : Shape::ROWS;
        x->job[j].first = tiles;
        tiles += (x->job[j].n_row + rows - 1) / rows;
    }
    int columns = (x->n_vec + Shape::VECS - 1) / Shape::VECS;
    if (n_expert > 0) columns = x->n_vec / Shape::VECS + (n_expert < x->n_vec ? n_expert : x->n_vec);
    return dim3((unsigned)columns, (unsigned)tiles);
}

#endif
