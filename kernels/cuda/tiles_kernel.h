/* Many vectors times a matrix of one of C2's types on the int8 tensor cores.
 *
 * What the cores give is C2's exact integer sum I of a block of 32 columns. What C2 then asks for, for every row, vector
 * and block, is a conversion, fl(d·s) and an fmaf: twelve instructions of the f32 pipe for each product of 16 × 8 × 32,
 * which takes that pipe three times as long as it takes the tensor cores. So the f32 pipe is the bound (some 600 of the
 * 1,979 TOP/s that an H100 has on paper), and the file is about giving it nothing else to do:
 *
 *   conversion    The product starts from the bits of 1.5·2^23 instead of 0. As |I| < 2^22 the integer that comes out is
 *                 then the bits of the float 1.5·2^23 + I, and one exact addition, or an fmaf where the sums are 2^LIFT
 *                 times too large (tiles_codes.h), is the whole conversion.
 *   scales        d (for K types D and -M) of each row and block, and fl(S·s) of each vector and block, are computed
 *                 once a block of threads, a stage ahead, into shared memory.
 *   fragments     Operand A is read as it was packed, 16 bytes a lane; operand B with ldmatrix. A warp has RT · 16 rows
 *                 and NT · 8 vectors and uses each fragment and scale NT and RT times.
 *   halves        J = sc0·I0 + sc1·I1 is below 2^24, so f32 computes it exactly: fmaf(sc0, x0, -sc0·1.5·2^23) is
 *                 sc0·I0 where x0 = 1.5·2^23 + I0, and so on: three instructions an element, and no slow conversion.
 *
 * A block of threads has WR warps along rows times WT along vectors. Stages of 2·P blocks of columns come through
 * shared memory with cp.async, ST of them in a ring:
 *
 *   iteration i    wait until stage i + 1 is there; barrier; order stage i + ST - 1 (into where stage i - 1 was);
 *                  prepare the scales of stage i + 1; multiply stage i
 *
 * One barrier a stage does for all: it shows what iteration i - 1 prepared for stage i, and that stage i - 1 is done
 * with. Several blocks share a multiprocessor, so that one multiplies while another waits. Where there are too few
 * of them for that, some warps (movers) only copy and prepare, and the others only multiply: a stage then takes the
 * longer of the two, not both.
 *
 * Vectors are taken in an order that lets a lane have four neighbours in two products (mu_tile_vector_at). In shared
 * memory they lie in the products' order, so that ldmatrix reads eight consecutive rows, their 16-byte pieces turned so
 * that no two of the eight share banks.
 *
 * Rows and vectors beyond the last are computed from the last one's data and not stored; blocks of columns beyond the
 * last are left out (adding +0 would turn a -0 into +0). */
#ifndef MU_KERNELS_CUDA_TILES_KERNEL_H
#define MU_KERNELS_CUDA_TILES_KERNEL_H

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/ptx.h"
#include "kernels/cuda/tiles_codes.h"
#include "kernels/cuda/tiles_place.h"

/* The launch, for a type of that file; n_each: vectors for each matrix, with experts on average. */
void mu_tiles_plain(struct mu_device *d, struct mu_tile_args *x, uint32_t type, int n_each);
void mu_tiles_min(struct mu_device *d, struct mu_tile_args *x, uint32_t type, int n_each);
void mu_tiles_halves(struct mu_device *d, struct mu_tile_args *x, uint32_t type, int n_each);
void mu_tiles_table(struct mu_device *d, struct mu_tile_args *x, uint32_t type, int n_each);

/* Where things lie in shared memory; bytes. */
template <uint32_t type, typename Shape> struct mu_tile_memory {
    typedef mu_layout<type> L;
    static constexpr bool WHOLE = (int)L::PAIRS == 1; /* a stage has whole units */
    static_assert(WHOLE || (int)L::PAIRS % (int)Shape::P == 0, "or a part of one");
    enum {
        SCALES = (int)L::UNIT_BYTES - (int)L::SCALES_AT,
        LOW_STEP = WHOLE ? (int)L::UNIT_BYTES : (int)L::LOW_PAIR, /* from pair to pair */
        HIGH_STEP = WHOLE ? (int)L::UNIT_BYTES : (int)L::HIGH_PAIR,
        HIGH = WHOLE ? (int)L::HIGH_AT : Shape::P * (int)L::LOW_PAIR,
        SCALES_AT = WHOLE ? (int)L::SCALES_AT : Shape::P * ((int)L::LOW_PAIR + (int)L::HIGH_PAIR),
        GROUP = WHOLE ? Shape::P * (int)L::UNIT_BYTES : SCALES_AT + SCALES,

        /* a stage */
        S_ROW = Shape::VECS + 8, /* floats; copies of neighbouring blocks then hit other banks */
        Q_ROW = Shape::BLOCKS * 32,
        Q = Shape::GROUPS * GROUP,
        S = Q + Shape::VECS * Q_ROW,
        SUM = S + Shape::BLOCKS * S_ROW * 4,
        STAGE = SUM + (L::HAS_MIN ? Shape::BLOCKS * S_ROW * 4 : 0),

        /* prepared: numbers of a row and block, as pairs for rows g and g + 8; twice */
        FACTORS = L::KIND == MU_SCALE_H4 ? 6
                  : L::HAS_HALVES        ? 3
                  : L::HAS_MIN           ? 2
                                         : 1,
        HAS_TOTAL = L::HAS_MIN && !L::HAS_HALVES,
        FACTORS_STAGE = Shape::BLOCKS * Shape::GROUPS * FACTORS * 8 * 8,
        TOTAL = Shape::ST * STAGE + 2 * FACTORS_STAGE,
        TOTAL_STAGE = HAS_TOTAL ? Shape::BLOCKS * S_ROW * 4 : 0,

        VECTOR = TOTAL + 2 * TOTAL_STAGE, /* int32 [VECS]: which rows of x the vectors are */
        WORK = VECTOR + Shape::VECS * 4,

        /* afterwards: y [VECS][Y_ROW] */
        Y_ROW = Shape::ROWS + 4, /* floats */
        Y = Shape::VECS * Y_ROW * 4,
        BYTES = WORK > Y ? WORK : Y
    };
};

static constexpr int MU_TILE_MAGIC = 0x4b400000; /* the bits of … */
static constexpr float MU_TILE_MAGIC_FLOAT = 12582912.0f;

template <uint32_t type, typename Shape> struct mu_tile {
    typedef mu_layout<type> L;
    typedef mu_tile_memory<type, Shape> M;
    static constexpr int LIFT = mu_tile_codes<type>::LIFT;
    static constexpr float UNLIFT = 1.0f / (1 << LIFT);
    static constexpr int UNROLL = Shape::RT * Shape::NT <= 24 ? Shape::P : 1; /* pairs */

    /* ---- one stage's copies ----
     *
     * Offsets are unsigned and 32 bits wide where they can be: one instruction then makes an address. */

    /* The thread's number among those that copy and prepare. */
    __device__ static unsigned mover() { return threadIdx.x - Shape::FIRST_MOVER; }

    /* `bytes` bytes by as many threads as there are for a group, of which this is number i; both multiples of 16. */
    template <unsigned bytes> __device__ static void copy(uint8_t *dst, const uint8_t *src, unsigned i)
    {
        constexpr unsigned step = 16 * (Shape::MOVERS / Shape::GROUPS);
#pragma unroll
        for (unsigned at = 0; at < bytes; at += step)
            if (at + step <= bytes || at + 16 * i < bytes) mu_cp_async16(dst + 16 * i + at, src + 16 * i + at);
    }

    /* The group's bits and scales of the blocks from b on. */
    __device__ static void copy_codes(uint8_t *stage, const uint8_t *group, unsigned n_block, unsigned b)
    {
        constexpr unsigned each = Shape::MOVERS / Shape::GROUPS;
        unsigned i = mover() % each;
        uint8_t *dst = stage + mover() / each * M::GROUP;
        if constexpr (M::WHOLE) {
            const uint8_t *src = group + (size_t)(b / 2) * L::UNIT_BYTES;
            if (b + Shape::BLOCKS <= n_block + 1)
                copy<M::GROUP>(dst, src, i);
            else /* the last units */
#pragma unroll 1
                for (unsigned at = 0; at < (n_block - b + 1) / 2; at++)
                    copy<L::UNIT_BYTES>(dst + at * L::UNIT_BYTES, src + at * L::UNIT_BYTES, i);
        } else {
            const uint8_t *unit = group + (size_t)(b / L::BLOCKS) * L::UNIT_BYTES;
            unsigned pair = b % L::BLOCKS / 2;
            constexpr unsigned low = Shape::P * (int)L::LOW_PAIR, high = Shape::P * (int)L::HIGH_PAIR;
            copy<low>(dst, unit + pair * L::LOW_PAIR, i);
            if constexpr (high > 0) copy<high>(dst + M::HIGH, unit + L::HIGH_AT + pair * L::HIGH_PAIR, i);
            copy<M::SCALES>(dst + M::SCALES_AT, unit + L::SCALES_AT, i);
        }
    }

    __device__ static void copy_vectors(uint8_t *stage, const struct mu_tile_args &x, const uint32_t *vector,
                                        unsigned n_block, unsigned b)
    {
        constexpr unsigned pieces = M::Q_ROW / 16, rows = Shape::MOVERS / pieces;
        static_assert(Shape::MOVERS % pieces == 0 && (rows == 8 || rows % 16 == 0) && Shape::VECS % rows == 0,
                      "equal shares");
        unsigned c = mover() % pieces, row = mover() / pieces;
        if (2 * (n_block - b) > c) {
            const int8_t *q = x.q + (32 * b + 16 * c);
            const uint32_t *at = vector + mu_tile_vector_at(row);
            uint8_t *dst = stage + M::Q + row * M::Q_ROW + 16 * (c ^ (row & 7));
            uint32_t
                from[Shape::VECS / rows]; /* read before the first copy, which would make each wait for the other */
#pragma unroll
            for (unsigned i = 0; i < Shape::VECS; i += rows) from[i / rows] = at[(i & ~15u) + (i & 8) / 4];
#pragma unroll
            for (unsigned i = 0; i < Shape::VECS; i += rows)
                mu_cp_async16(dst + i * M::Q_ROW, q + (size_t)from[i / rows] * (unsigned)x.n_col);
        }
        constexpr unsigned vecs = Shape::MOVERS / Shape::BLOCKS;
        static_assert(Shape::MOVERS % Shape::BLOCKS == 0, "equal shares");
        unsigned k = mover() % Shape::BLOCKS, v = mover() / Shape::BLOCKS;
        if (n_block - b > k) {
            const uint8_t *s = reinterpret_cast<const uint8_t *>(x.s) + 4 * (b + k);
            const uint8_t *sum = reinterpret_cast<const uint8_t *>(x.sum) + 4 * (b + k);
            uint8_t *dst = stage + M::S + 4 * (k * M::S_ROW + v);
            static_assert(Shape::VECS % vecs == 0 || Shape::VECS < vecs, "equal shares");
            constexpr unsigned n = (Shape::VECS + vecs - 1) / vecs;
            uint32_t from[n];
            if (Shape::VECS < vecs && v >= Shape::VECS) return;
#pragma unroll
            for (unsigned i = 0; i < n; i++) from[i] = vector[v + i * vecs];
#pragma unroll
            for (unsigned i = 0; i < n; i++) {
                size_t offset = (size_t)from[i] * (4 * n_block);
                mu_cp_async4(dst + 4 * i * vecs, s + offset);
                if (L::HAS_MIN) mu_cp_async4(dst + M::SUM - M::S + 4 * i * vecs, sum + offset);
            }
        }
    }

    /* ---- what is prepared ---- */

    /* Of block k of a stage and a group, number i of rows g and g + 8. */
    __device__ static float2 *factor_at(uint8_t *factors, int k, int group, int i, int g)
    {
        return reinterpret_cast<float2 *>(factors) + ((k * Shape::GROUPS + group) * M::FACTORS + i) * 8 + g;
    }

    /* d; or d, m; or d and the halves' factors less LIFT; or these, m and the halves' minimums (integers). */
    template <int j> __device__ static void factors_row(const struct mu_scales &scales, int h, float *to)
    {
        struct mu_row_scale r = h ? mu_scale_of<type>(scales, j, 1) : mu_scale_of<type>(scales, j, 0);
        to[0] = r.d;
        if (L::HAS_HALVES) {
            to[16] = (float)r.sc[0] * UNLIFT;
            to[32] = (float)r.sc[1] * UNLIFT;
            if (L::HAS_MIN) {
                to[48] = r.m;
                to[64] = __int_as_float(r.mn[0]);
                to[80] = __int_as_float(r.mn[1]);
            }
        } else if (L::HAS_MIN) {
            to[16] = r.m;
        }
    }

    /* Both blocks of pair `pair` of a unit or of the half of one, which is pair p of the stage. */
    template <int pair>
    __device__ static void factors_pair(uint8_t *factors, const struct mu_scales &scales, int p, int group, int g,
                                        int h)
    {
        float *first = reinterpret_cast<float *>(factor_at(factors, 2 * p, group, 0, g)) + h;
        float *second = reinterpret_cast<float *>(factor_at(factors, 2 * p + 1, group, 0, g)) + h;
        factors_row<2 * pair>(scales, h, first);
        factors_row<2 * pair + 1>(scales, h, second);
    }

    __device__ static void prepare(const uint8_t *stage, uint8_t *factors, float *total, unsigned b)
    {
        constexpr unsigned rows = Shape::GROUPS * 8, n_row = rows * 2 * Shape::P, n_vec = Shape::BLOCKS * Shape::VECS;
#pragma unroll
        for (unsigned first = 0; first < n_row; first += Shape::MOVERS) {
            unsigned i = first + mover(), group = i % rows / 8, g = i % 8, h = i / rows % 2, p = i / rows / 2;
            if (first + Shape::MOVERS > n_row && i >= n_row) break;
            const uint8_t *at = stage + group * M::GROUP + M::SCALES_AT + (M::WHOLE ? p * (int)L::UNIT_BYTES : 0);
            struct mu_scales scales = mu_scales_load<type>(at, (int)g);
            unsigned pair = M::WHOLE ? 0 : b % L::BLOCKS / 2 + p; /* of the unit */
            if (pair >= 2) mu_scales_half<type>(&scales, true);
            if (pair % 2 == 0)
                factors_pair<0>(factors, scales, (int)p, (int)group, (int)g, (int)h);
            else
                factors_pair<M::WHOLE ? 0 : 1>(factors, scales, (int)p, (int)group, (int)g, (int)h);
        }
        if constexpr (M::HAS_TOTAL) {
            constexpr unsigned n = (n_vec + Shape::MOVERS - 1) / Shape::MOVERS;
            uint32_t two[n];
            float s[n];
#pragma unroll
            for (unsigned k = 0; k < n; k++) { /* all are read before the first is written */
                unsigned i = k * Shape::MOVERS + mover(), at = i / Shape::VECS * M::S_ROW + i % Shape::VECS;
                if (n_vec % Shape::MOVERS != 0 && i >= n_vec) break;
                two[k] = reinterpret_cast<const uint32_t *>(stage + M::SUM)[at];
                s[k] = reinterpret_cast<const float *>(stage + M::S)[at];
            }
#pragma unroll
            for (unsigned k = 0; k < n; k++) {
                unsigned i = k * Shape::MOVERS + mover(), at = i / Shape::VECS * M::S_ROW + i % Shape::VECS;
                if (n_vec % Shape::MOVERS != 0 && i >= n_vec) break;
                total[at] = (float)((int16_t)two[k] + (int16_t)(two[k] >> 16)) * s[k];
            }
        }
    }

    /* ---- the product ---- */

    /* Bytes, made once: the loop's other values leave no registers to make them again. */
    struct lane_place {
        unsigned lane;
        unsigned group;  /* in a stage, the warp's first group */
        unsigned q;      /* in a stage, the row of q that the lane names to ldmatrix, at piece 0 */
        unsigned turn;   /* 16 · (what its pieces' numbers are changed by), with the half that it names */
        unsigned s;      /* in a stage, behind S, or SUM; in `total`: its first vector */
        unsigned factor; /* in `factors`, its first row */
    };

    /* Block k of the stage, whose operand A is a. */
    __device__ static void multiply(const uint8_t *stage, const uint8_t *factors, const uint8_t *total,
                                    const struct lane_place &w, int k, const uint32_t a[Shape::RT][4],
                                    float acc[Shape::RT][Shape::NT][4])
    {
        const int magic[4] = {MU_TILE_MAGIC, MU_TILE_MAGIC, MU_TILE_MAGIC, MU_TILE_MAGIC};
        float f[Shape::RT][M::FACTORS][2];
#pragma unroll
        for (int r = 0; r < Shape::RT; r++)
#pragma unroll
            for (int i = 0; i < M::FACTORS; i++) {
                float2 v = *reinterpret_cast<const float2 *>(factors + w.factor +
                                                             ((k * Shape::GROUPS + r) * M::FACTORS + i) * 64);
                f[r][i][0] = v.x, f[r][i][1] = v.y;
            }
        const uint8_t *q = stage + w.q + (w.turn ^ 32 * k);
#pragma unroll
        for (int n = 0; n < Shape::NT; n += 2) {
            uint32_t b[4];
            mu_ldmatrix_x4(b, q + n * 8 * M::Q_ROW);
            const uint8_t *at = stage + w.s + 4 * (k * M::S_ROW + 8 * n);
            float4 s4 = *reinterpret_cast<const float4 *>(at + M::S);
            float s[4] = {s4.x, s4.y, s4.z, s4.w}, sums[4];
            int s0[4], s1[4];
            if (M::HAS_TOTAL) {
                float4 v = *reinterpret_cast<const float4 *>(total + w.s + 4 * (k * M::S_ROW + 8 * n));
                sums[0] = v.x, sums[1] = v.y, sums[2] = v.z, sums[3] = v.w;
            } else if (L::HAS_MIN) {
                uint4 v = *reinterpret_cast<const uint4 *>(at + M::SUM);
                uint32_t two[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
                for (int i = 0; i < 4; i++) s0[i] = (int16_t)two[i], s1[i] = (int16_t)(two[i] >> 16);
            }
            int c[2][Shape::RT][4], c2[2][Shape::RT][4];
#pragma unroll
            for (int j = 0; j < 2; j++)
#pragma unroll
                for (int r = 0; r < Shape::RT; r++) {
                    if (L::HAS_HALVES) {
                        mu_mma_s8_k16(c[j][r], a[r], b[2 * j], magic);
                        mu_mma_s8_k16(c2[j][r], a[r] + 2, b[2 * j + 1], magic);
                    } else {
                        mu_mma_s8_k32(c[j][r], a[r], b + 2 * j, magic);
                    }
                }
#pragma unroll
            for (int j = 0; j < 2; j++)
#pragma unroll
                for (int r = 0; r < Shape::RT; r++)
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        int h = e / 2, v = 2 * j + e % 2;
                        float x = __int_as_float(c[j][r][e]), whole, *y = &acc[r][n + j][e];
                        if (L::HAS_HALVES) {
                            float sc0 = f[r][L::HAS_HALVES ? 1 : 0][h], sc1 = f[r][L::HAS_HALVES ? 2 : 0][h];
                            float low = fmaf(sc0, x, sc0 * -MU_TILE_MAGIC_FLOAT);
                            whole = fmaf(sc1, __int_as_float(c2[j][r][e]) - MU_TILE_MAGIC_FLOAT, low);
                        } else if (LIFT > 0) {
                            whole = fmaf(x, UNLIFT, -MU_TILE_MAGIC_FLOAT * UNLIFT);
                        } else {
                            whole = x - MU_TILE_MAGIC_FLOAT;
                        }
                        float scale = f[r][0][h] * s[v];
                        *y = fmaf(whole, scale, *y);
                        if (M::HAS_TOTAL) {
                            *y = fmaf(f[r][M::HAS_TOTAL ? 1 : 0][h], sums[v], *y);
                        } else if (L::HAS_MIN) {
                            constexpr int first = L::KIND == MU_SCALE_H4 ? 4 : 0, m = L::KIND == MU_SCALE_H4 ? 3 : 0;
                            int z = __float_as_int(f[r][first][h]) * s0[v] +
                                    __float_as_int(f[r][first + (m ? 1 : 0)][h]) * s1[v];
                            *y = fmaf(-(float)z, f[r][m][h] * s[v], *y);
                        }
                    }
        }
    }

    /* Pair p of the stage; both its blocks, or the first. */
    template <bool both>
    __device__ static void multiply_pair(const uint8_t *stage, const uint8_t *factors, const uint8_t *total,
                                         const struct lane_place &w, int p, float acc[Shape::RT][Shape::NT][4])
    {
        const uint8_t *group = stage + w.group;
        struct mu_tile_codes<type> codes[Shape::RT];
        uint32_t a[Shape::RT][4];
#pragma unroll
        for (int r = 0; r < Shape::RT; r++)
            codes[r] = mu_tile_codes_load<type>(group + r * M::GROUP + p * M::LOW_STEP,
                                                group + r * M::GROUP + M::HIGH + p * M::HIGH_STEP, (int)w.lane);
#pragma unroll
        for (int r = 0; r < Shape::RT; r++) mu_tile_codes_block<type, 0>(codes[r], a[r]);
        multiply(stage, factors, total, w, 2 * p, a, acc);
        if (both) {
#pragma unroll
            for (int r = 0; r < Shape::RT; r++) mu_tile_codes_block<type, 1>(codes[r], a[r]);
            multiply(stage, factors, total, w, 2 * p + 1, a, acc);
        }
    }

    /* The first n blocks of the stage. Stages are unrolled, so that no warp waits for one block's results before it
     * begins the next; but not the largest tiles', which have no registers for that. */
    __device__ static void multiply_stage(const uint8_t *stage, const uint8_t *factors, const uint8_t *total,
                                          const struct lane_place &w, int n, float acc[Shape::RT][Shape::NT][4])
    {
        if (!M::WHOLE || n == Shape::BLOCKS) { /* K types' stages are always full */
#pragma unroll UNROLL
            for (int p = 0; p < Shape::P; p++) multiply_pair<true>(stage, factors, total, w, p, acc);
        } else {
#pragma unroll 1
            for (int p = 0; 2 * p < n; p++) {
                if (2 * p + 1 < n)
                    multiply_pair<true>(stage, factors, total, w, p, acc);
                else
                    multiply_pair<false>(stage, factors, total, w, p, acc);
            }
        }
    }

    /* The whole product of the tile, or the part of it that movers or the others have: each then keeps in registers what
     * it needs itself. */
    template <bool moves, bool multiplies>
    __device__ static void part(uint8_t *bytes, const struct mu_tile_args &x, const uint8_t *group,
                                float acc[Shape::RT][Shape::NT][4])
    {
        const uint32_t *vector = reinterpret_cast<const uint32_t *>(bytes + M::VECTOR);
        uint8_t *factors = bytes + Shape::ST * M::STAGE;
        uint8_t *total = bytes + M::TOTAL;
        int n_block = x.n_col / 32, n_stage = (n_block + Shape::BLOCKS - 1) / Shape::BLOCKS;
        unsigned warp = threadIdx.x / 32;
        struct lane_place w;
        w.lane = threadIdx.x % 32;
        unsigned first = warp % Shape::WR * Shape::RT, vec = warp / Shape::WR * Shape::NT * 8;
        unsigned row = vec + (w.lane & 7) + (w.lane >> 4) * 8;
        w.group = first * M::GROUP;
        w.q = M::Q + row * M::Q_ROW;
        w.turn = 16 * ((w.lane >> 3 & 1) ^ (row & 7));
        w.s = 4 * (vec + 4 * (w.lane % 4));
        w.factor = (first * M::FACTORS * 8 + w.lane / 4) * 8;
#pragma unroll
        for (int i = 0; i < Shape::ST - 1; i++)
            if (moves && i < n_stage)
                copy_codes(bytes + i * M::STAGE, group, (unsigned)n_block, (unsigned)(i * Shape::BLOCKS));
        mu_grid_wait(); /* the weights are there; the vectors may still be in the making */
#pragma unroll
        for (int i = 0; i < Shape::ST - 1; i++) {
            if (moves && i < n_stage)
                copy_vectors(bytes + i * M::STAGE, x, vector, (unsigned)n_block, (unsigned)(i * Shape::BLOCKS));
            mu_cp_async_commit();
        }
        mu_cp_async_wait<Shape::ST - 2>();
        __syncthreads();
        if (moves) prepare(bytes, factors, reinterpret_cast<float *>(total), 0);
        int now = 0; /* where stage i is */
#pragma unroll 1
        for (int i = 0; i < n_stage; i++) {
            int next = now + 1 < Shape::ST ? now + 1 : 0, last = now > 0 ? now - 1 : Shape::ST - 1;
            mu_cp_async_wait<Shape::ST - 3>();
            __syncthreads();
            if (moves && i + Shape::ST - 1 < n_stage) {
                unsigned b = (unsigned)((i + Shape::ST - 1) * Shape::BLOCKS);
                copy_codes(bytes + last * M::STAGE, group, (unsigned)n_block, b);
                copy_vectors(bytes + last * M::STAGE, x, vector, (unsigned)n_block, b);
            }
            mu_cp_async_commit();
            int parity = i % 2, left = n_block - i * Shape::BLOCKS;
            if (moves && i + 1 < n_stage)
                prepare(bytes + next * M::STAGE, factors + (1 - parity) * M::FACTORS_STAGE,
                        reinterpret_cast<float *>(total + (1 - parity) * M::TOTAL_STAGE),
                        (unsigned)((i + 1) * Shape::BLOCKS));
            if (multiplies)
                multiply_stage(bytes + now * M::STAGE, factors + parity * M::FACTORS_STAGE,
                               total + parity * M::TOTAL_STAGE, w, left < Shape::BLOCKS ? left : Shape::BLOCKS, acc);
            now = next;
        }
        mu_cp_async_wait<0>();
        __syncthreads();
    }

    /* group: where the group of rows lies that this thread helps to copy; vector: row of x of each of the tile's vectors
     * (shared memory). acc: not of movers. */
    __device__ static void product(uint8_t *bytes, const struct mu_tile_args &x, const uint8_t *group,
                                   float acc[Shape::RT][Shape::NT][4])
    {
        if (Shape::FIRST_MOVER == 0)
            part<true, true>(bytes, x, group, acc);
        else if ((int)threadIdx.x >= Shape::FIRST_MOVER)
            part<true, false>(bytes, x, group, acc);
        else
            part<false, true>(bytes, x, group, acc);
    }
};

#endif
