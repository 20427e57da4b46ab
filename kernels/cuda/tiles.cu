/* Which tiles a product of many vectors is cut into (tiles_kernel.h multiplies). */
#include "kernels/cuda/tiles_kernel.h"

/* Where this block's tile is; n 0: nowhere. Whole warps; every warp finds the same. */
template <typename Shape> __device__ static struct mu_tile_place tile_find(const struct mu_tile_args &x)
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

template <uint32_t type, typename Shape>
__global__ static void __launch_bounds__(Shape::THREADS, Shape::CTAS)
    tiles_kernel(const __grid_constant__ struct mu_tile_args x)
{
    typedef mu_tile<type, Shape> T;
    typedef typename T::M M;
    MU_SHARED(uint8_t, bytes);
    struct mu_tile_place place = tile_find<Shape>(x);
    if (place.n > 0) { /* the same for all threads */
        const struct mu_tile_job &job = x.job[place.job];
        bool pairs = job.up && !job.then.up_done; /* half the groups are up's */
        int groups = pairs ? Shape::GROUPS / 2 : Shape::GROUPS, last = place.first + place.n - 1;
        int *vector = reinterpret_cast<int *>(bytes + M::VECTOR);
        for (int i = (int)threadIdx.x; i < Shape::VECS; i += Shape::THREADS) {
            int p = place.vec + i < last ? place.vec + i : last;
            vector[i] = x.experts.n_expert == 0 || x.experts.by_place ? p : x.experts.place[p] / x.experts.n_used;
        }
        int mine = (int)threadIdx.x / (Shape::THREADS / Shape::GROUPS), group = place.tile * groups + mine % groups;
        const uint8_t *m = mine < groups ? job.m : job.up;
        int most = (job.n_row + 15) / 16 - 1;
        m += (size_t)place.expert * (mine < groups ? x.experts.m_bytes : x.experts.up_bytes);
        m += (size_t)(group < most ? group : most) * mu_layout_group_bytes<type>(x.n_col);
        __syncthreads(); /* vector */
        float acc[Shape::RT][Shape::NT][4] = {};
        T::product(bytes, x, m, acc);

        float *y = reinterpret_cast<float *>(bytes);
        int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
        int row0 = warp % Shape::WR * Shape::RT * 16 + lane / 4, vec0 = warp / Shape::WR * Shape::NT * 8 + lane % 4 * 4;
#pragma unroll
        for (int r = 0; r < Shape::RT; r++)
#pragma unroll
            for (int n = 0; n < Shape::NT; n++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    y[(vec0 + n / 2 * 16 + n % 2 * 2 + e % 2) * M::Y_ROW + row0 + r * 16 + e / 2 * 8] = acc[r][n][e];
        __syncthreads();
        const struct mu_epilogue &e = job.then;
        int rows = groups * 16, parts = (rows + 31) / 32, n_vec = last + 1 - place.vec;
        if (n_vec > Shape::VECS) n_vec = Shape::VECS;
        for (int i = warp; i < n_vec * parts; i += Shape::THREADS / 32) {
            int v = i / parts, part = i % parts * 32 + lane, row = place.tile * rows + part, vec = place.vec + v;
            bool in = part < rows && row < job.n_row;
            float value[1] = {0.0f};
            if (in) {
                const float *at = y + v * M::Y_ROW + part;
                value[0] = mu_epilogue_value(e, row, (size_t)vec, place.expert, at[0], pairs ? at[rows] : 0.0f);
                mu_epilogue_store(e, row, (size_t)vec, value[0]);
            }
            if (e.form.q)
                mu_store_q8<1>(e.form.q, e.form.s, e.form.sum, (size_t)vec * (size_t)job.n_row + (size_t)row, in,
                               value);
        }
    }
}

/* ---- the host's side ---- */

template <uint32_t type, typename Shape> static void launch(struct mu_device *d, struct mu_tile_args *x)
{
    int tiles = 0, n_expert = x->experts.n_expert;
    for (int j = 0; j < x->n_job; j++) {
        int rows = x->job[j].up && !x->job[j].then.up_done ? Shape::ROWS / 2 : Shape::ROWS;
        x->job[j].first = tiles;
        tiles += (x->job[j].n_row + rows - 1) / rows;
    }
    int columns = (x->n_vec + Shape::VECS - 1) / Shape::VECS;
    if (n_expert > 0) columns = x->n_vec / Shape::VECS + (n_expert < x->n_vec ? n_expert : x->n_vec);
    constexpr int bytes = mu_tile_memory<type, Shape>::BYTES;
    if (bytes > 48 * 1024) mu_allow_shared(d, "tiles", tiles_kernel<type, Shape>, bytes);
    mu_launch(d, "tiles", tiles_kernel<type, Shape>, dim3((unsigned)columns, (unsigned)tiles), dim3(Shape::THREADS),
              bytes, *x);
}

/* Rows × vectors. */
typedef mu_tile_shape<2, 8, 4, 2, 2, 3, 2> shape_128_128;
typedef mu_tile_shape<1, 4, 4, 2, 2, 4, 2> shape_64_64;
typedef mu_tile_shape<1, 2, 4, 2, 2, 4, 3> shape_64_32;
typedef mu_tile_shape<1, 2, 4, 1, 2, 4, 4> shape_64_16;

template <uint32_t type> struct tiles_of {
    static void run(struct mu_device *d, struct mu_tile_args *x, int n_each)
    {
        if (n_each > 64 && d->shared_max >= mu_tile_memory<type, shape_128_128>::BYTES)
            launch<type, shape_128_128>(d, x);
        else if (n_each > 32)
            launch<type, shape_64_64>(d, x);
        else if (n_each > 16)
            launch<type, shape_64_32>(d, x);
        else
            launch<type, shape_64_16>(d, x);
    }
};

/* The jobs whose type is `type`, out of those listed. */
static void run_type(struct mu_device *d, struct mu_tile_args *x, const struct mu_tile_job *job, const uint32_t *types,
                     int n_job, uint32_t type, int n_each)
{
    x->n_job = 0;
    for (int j = 0; j < n_job; j++)
        if (types[j] == type) x->job[x->n_job++] = job[j];
    mu_layout_call<tiles_of>(type, d, x, n_each);
}

/* All jobs, a launch for each type that occurs. */
static void run_jobs(struct mu_device *d, struct mu_tile_args *x, const struct mu_tile_job *job, const uint32_t *types,
                     int n_job, int n_each)
{
    for (int j = 0; j < n_job; j++) {
        bool done = false;
        for (int i = 0; i < j; i++) done = done || types[i] == types[j];
        if (!done) run_type(d, x, job, types, n_job, types[j], n_each);
    }
}

void mu_cuda_tiles(struct mu_device *d, const struct mu_device_job *job, int n_job, const struct mu_act *x,
                   const struct mu_device_experts *experts)
{
    struct mu_tile_args a = {};
    struct mu_tile_job jobs[MU_DEVICE_MAX_JOBS] = {}, ups[MU_DEVICE_MAX_JOBS] = {};
    uint32_t types[MU_DEVICE_MAX_JOBS], up_types[MU_DEVICE_MAX_JOBS];
    int n_up = 0;
    a.n_vec = x->n_tok;
    a.n_col = x->n_col;
    a.q = x->q;
    a.s = x->s;
    a.sum = x->sum;
    if (experts) {
        a.experts = *experts;
        if (!experts->by_place) a.n_vec = x->n_tok * experts->n_used;
    }
    int n_each = experts ? (a.n_vec + experts->n_expert - 1) / experts->n_expert : a.n_vec;
    for (int j = 0; j < n_job; j++) {
        jobs[j].m = (const uint8_t *)job[j].m->data;
        jobs[j].n_row = job[j].m->n_row;
        bool up_done = job[j].up && job[j].up->type != job[j].m->type;
        jobs[j].then = mu_epilogue_of(&job[j], up_done);
        types[j] = job[j].m->type;
        if (!job[j].up) continue;
        jobs[j].up = (const uint8_t *)job[j].up->data;
        if (!up_done) continue;
        /* The two products are of different kernels: u goes through `out`. */
        struct mu_tile_job *u = &ups[n_up];
        up_types[n_up++] = job[j].up->type;
        u->m = jobs[j].up;
        u->n_row = jobs[j].n_row;
        u->then.out = job[j].out;
        u->then.stride = job[j].stride;
        u->then.bias = job[j].up_bias;
        u->then.lora = job[j].lora_up;
        u->then.lora_scale = job[j].lora_scale;
        u->then.n_row = jobs[j].n_row;
    }
    struct mu_tile_args first = a;
    first.experts.m_bytes = a.experts.up_bytes;
    run_jobs(d, &first, ups, up_types, n_up, n_each);
    run_jobs(d, &a, jobs, types, n_job, n_each);
}
