/* A few vectors (up to 8) times C2's matrices: bound by reading the weights.
 *
 * C2 wants one f32 accumulator for a row and a vector, and its blocks in order; at 4096 rows a GPU has 256 groups of 16
 * rows for 132 multiprocessors, so a group must be the work of many warps, or too few bytes are on their way. What can be
 * done in any order is: reading, the integer sums I, the products fl(d·s). So the warps of a thread block take a group's
 * columns in turn, an item of up to 256 columns each, and every warp works ahead, up to the terms of its fmafs. Then it waits
 * for the baton: the accumulators as the items before left them, in shared memory. It adds its terms, a few fmafs deep,
 * passes the baton to the next warp (a barrier of two warps) and goes on to its next item. The last item of a group does
 * what follows the product (epilogue.h).
 *
 *   warp 0   load … I, d·s of item 0 | add → pass        load … of item 8 …
 *   warp 1   load … of item 1        | wait …  add → pass
 *   warp 2   load … of item 2        | wait …         add → pass
 *
 * A thread block walks over its groups, and a gated pair (up) is a group's two matrices one after the other, as one
 * sequence of items, so that the next group's weights are on their way while one ends. Each warp copies its items itself,
 * STAGES ahead, into its own shared memory (cp.async: no registers are held by what is on its way). The first copies start
 * before the kernel ahead has finished (mu_launch_early): weights do not depend on it. With two blocks a multiprocessor
 * and little shared memory the next kernel's blocks find room beside these.
 *
 * I comes from the tensor cores (mma.m16n8k32, or two m16n8k16 where halves have scales of their own), of which the
 * columns are vectors. Of a result a lane holds columns 2t and 2t + 1 of rows g and g + 8: up to 4 vectors lie in the
 * even columns, so that each lane has one (NC = 1), else it has two. Columns beyond the vectors repeat the last: they
 * cost nothing and are not stored. Integers below 2^22 are converted without the slow instruction: the product starts at
 * 0x4b400000 (and less the offset's share, offset·Σq), whose bits are the float 1.5·2^23 plus I.
 *
 * Vectors are kept in shared memory as lanes read them, 16 bytes for a pair of blocks:
 *
 *   quads   [pair][vector][t]   words of columns 4t and 16+4t of the first block, of the second
 *   factors [pair][vector]      s and the extra of the first block, of the second; extra: what the type needs of the sums
 *
 * form's int8 needs 32 neighbouring rows, of which a group is half: who finishes second does it (meet). */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/epilogue.h"
#include "kernels/cuda/layout.h"

enum {
    BLOCKS_PER_SM = 2,
    WARPS = 8,
    MEETINGS = 1 << 16, /* pairs of groups that can meet in a launch */
    LOADS = 4,          /* words of a vector that a thread has on their way */
    STAGE_BYTES = 4096, /* what a warp has on its way, or two items */
};

struct job_args {
    const uint8_t *m, *up; /* up NULL: none, or done */
    int n_group, meet0;    /* groups of 16 rows; the first of its meetings */
    struct mu_epilogue e;
};

struct matvec_args {
    struct job_args job[MU_DEVICE_MAX_JOBS];
    int n_job, n_unit;  /* units: groups of all jobs */
    int n_vec, n_block; /* vectors, blocks of 32 columns */
    size_t group_bytes;
    const int8_t *q;
    const float *s;
    const int16_t *sum;
    int n_expert, n_used, n_place; /* n_expert 0: no experts */
    size_t m_bytes, up_bytes;
    const int32_t *begin, *place;
    bool by_place;
};

/* How an item of a type is cut and kept. */
template <uint32_t type, int NC> struct item_of {
    typedef mu_layout<type> L;
    enum {
        PAIRS = L::LOW == 8 || L::HAS_MIN || L::HAS_HALVES || NC > 1 ? 2 : 4, /* as many terms as fit the registers */
        LOW_BYTES = PAIRS * L::LOW_PAIR,
        HIGH_BYTES = PAIRS * L::HIGH_PAIR,
        BYTES = L::BLOCKS == 2 ? PAIRS * L::UNIT_BYTES : LOW_BYTES + HIGH_BYTES + L::UNIT_BYTES - L::SCALES_AT,
        STAGES = 2 * BYTES >= STAGE_BYTES   ? 2
                 : 3 * BYTES >= STAGE_BYTES ? 3
                                            : 4,
        PER_UNIT = L::BLOCKS == 2 ? 1 : L::PAIRS / PAIRS, /* items in a K type's unit */
        /* Registers: with one vector a lane those of four blocks, two of this kernel and two of the next, must fit a
         * multiprocessor; with two they do not. Instead a block that has it alone may have more warps. */
        WARPS_MOST = NC == 1 ? WARPS : 12, /* barriers 1 … 15 are there */
        RESIDENT = NC == 1 ? 2 * BLOCKS_PER_SM : BLOCKS_PER_SM,
    };
};

/* ---- shared memory ---- */

struct expert_entry {
    int expert, begin, n; /* of places */
};

struct shared_map { /* offsets; host and device */
    int quads, factors, baton, gate, entry, vec_of, bytes;
};

template <uint32_t type, int NC>
__host__ __device__ static inline struct shared_map shared_map_of(int n_warp, int n_vec, int n_block, int n_expert,
                                                                  int n_place)
{
    typedef item_of<type, NC> I;
    struct shared_map m;
    int n_pair = (n_block + 2 * I::PAIRS - 1) / (2 * I::PAIRS) * I::PAIRS; /* whole items */
    m.quads = n_warp * (int)(I::STAGES * I::BYTES);
    m.factors = m.quads + n_pair * n_vec * 64;
    m.baton = m.factors + n_pair * n_vec * 16;
    m.gate = m.baton + n_warp * 32 * 2 * NC * (int)sizeof(float);
    m.entry = m.gate + 32 * 2 * NC * (int)sizeof(float);
    m.vec_of = m.entry + n_expert * (int)sizeof(struct expert_entry);
    m.bytes = m.vec_of + n_place * (int)sizeof(int);
    return m;
}

/* ---- the sequence of a block's items ---- */

struct walk {
    int unit, item;      /* of the unit's matrix */
    bool up;             /* the unit's second matrix */
    const uint8_t *base; /* of the group in it */
};

struct place {                        /* a unit's */
    int job, group, expert, begin, n; /* begin, n: places of the expert, or all vectors */
};

__device__ static inline struct place place_of(const struct matvec_args &a, const struct expert_entry *entry, int unit)
{
    struct place p = {0, unit, 0, 0, a.n_vec};
    if (a.n_expert) {
        p.group = unit % a.job[0].n_group;
        struct expert_entry e = entry[unit / a.job[0].n_group];
        p.expert = e.expert, p.begin = e.begin, p.n = e.n;
        return p;
    }
    while (p.group >= a.job[p.job].n_group) p.group -= a.job[p.job++].n_group;
    return p;
}

__device__ static inline void walk_base(struct walk *w, const struct matvec_args &a, const struct expert_entry *entry,
                                        int n_unit)
{
    if (w->unit >= n_unit) return;
    struct place p = place_of(a, entry, w->unit);
    const uint8_t *m = w->up ? a.job[p.job].up : a.job[p.job].m;
    w->base = m + (size_t)p.expert * (w->up ? a.up_bytes : a.m_bytes) + (size_t)p.group * a.group_bytes;
}

/* n items on. */
__device__ static inline void walk_on(struct walk *w, int n, int n_item, const struct matvec_args &a,
                                      const struct expert_entry *entry, int n_unit)
{
    w->item += n;
    if (w->item < n_item) return;
    while (w->item >= n_item && w->unit < n_unit) {
        w->item -= n_item;
        if (!w->up && a.job[place_of(a, entry, w->unit).job].up) {
            w->up = true;
        } else {
            w->up = false;
            w->unit += gridDim.x;
        }
    }
    walk_base(w, a, entry, n_unit);
}

/* ---- loading ---- */

/* BYTES of a multiple of 16, by the whole warp. */
template <int BYTES> __device__ static inline void copy_piece(uint8_t *to, const uint8_t *from, int lane)
{
    to += 16 * lane;
    from += 16 * lane;
#pragma unroll
    for (int i = 0; i + 512 <= BYTES; i += 512) mu_cp_async16(to + i, from + i);
    if (BYTES % 512 && 16 * lane < BYTES % 512) mu_cp_async16(to + BYTES / 512 * 512, from + BYTES / 512 * 512);
}

template <uint32_t type, int NC>
__device__ static inline void item_load(uint8_t *slot, const struct walk &w, int n_block, int lane)
{
    typedef mu_layout<type> L;
    typedef item_of<type, NC> I;
    if (L::BLOCKS == 2) {
        int n_unit = (n_block + 1) / 2 - w.item * I::PAIRS; /* the last item may be short */
        const uint8_t *from = w.base + (size_t)w.item * (I::PAIRS * L::UNIT_BYTES);
        if (n_unit >= I::PAIRS)
            copy_piece<I::PAIRS * L::UNIT_BYTES>(slot, from, lane);
        else
#pragma unroll 1
            for (int i = 0; i < n_unit; i++)
                copy_piece<L::UNIT_BYTES>(slot + i * L::UNIT_BYTES, from + i * L::UNIT_BYTES, lane);
    } else {
        int part = w.item % I::PER_UNIT;
        const uint8_t *unit = w.base + (size_t)(w.item / I::PER_UNIT) * L::UNIT_BYTES;
        copy_piece<I::LOW_BYTES>(slot, unit + part * I::LOW_BYTES, lane);
        copy_piece<I::HIGH_BYTES>(slot + I::LOW_BYTES, unit + L::HIGH_AT + part * I::HIGH_BYTES, lane);
        copy_piece<L::UNIT_BYTES - L::SCALES_AT>(slot + I::LOW_BYTES + I::HIGH_BYTES, unit + L::SCALES_AT, lane);
    }
}

/* What the type needs of a block's sums, made once: the start of the integer product, fl(S·s), or the sums. */
template <uint32_t type> __device__ static inline uint32_t extra_of(float s, int s0, int s1)
{
    typedef mu_layout<type> L;
    if (L::HAS_HALVES) return ((uint32_t)s0 & 0xffffu) | (uint32_t)s1 << 16;
    if (L::HAS_MIN) return __float_as_uint((float)(s0 + s1) * s);
    return 0x4b400000u - (uint32_t)(L::OFFSET * (s0 + s1));
}

/* All vectors into quads and factors. Whole blocks only: what an odd last pair or a short last item lacks is read, but
 * not used. */
template <uint32_t type>
__device__ static void vectors_load(const struct matvec_args &a, uint32_t *quads, uint32_t *factors)
{
    const uint32_t *q = reinterpret_cast<const uint32_t *>(a.q);
    int n_word = 8 * a.n_block;
    for (int v = 0; v < a.n_vec; v++) {
        for (int first = threadIdx.x; first < n_word; first += LOADS * blockDim.x) {
            uint32_t four[LOADS]; /* read together: the next kernel's start is the time of a few such reads */
#pragma unroll
            for (int k = 0; k < LOADS; k++) {
                int i = first + k * (int)blockDim.x;
                four[k] = i < n_word ? q[(size_t)v * (size_t)n_word + (size_t)i] : 0;
            }
#pragma unroll
            for (int k = 0; k < LOADS; k++) {
                int i = first + k * (int)blockDim.x, block = i / 8, word = i % 8;
                if (i < n_word)
                    quads[(((block / 2) * a.n_vec + v) * 4 + word % 4) * 4 + block % 2 * 2 + word / 4] = four[k];
            }
        }
        for (int block = threadIdx.x; block < a.n_block; block += blockDim.x) {
            size_t at = (size_t)v * (size_t)a.n_block + (size_t)block;
            float s = a.s[at];
            uint32_t *to = factors + ((block / 2) * a.n_vec + v) * 4 + block % 2 * 2;
            to[0] = __float_as_uint(s);
            to[1] = extra_of<type>(s, a.sum[2 * at], a.sum[2 * at + 1]);
        }
    }
}

/* The experts that have places, ascending, the same list in every block; what vector each place reads. Returns how many
 * experts. */
__device__ static int experts_load(const struct matvec_args &a, struct expert_entry *entry, int *vec_of)
{
    __shared__ int n_entry;
    for (int p = threadIdx.x; p < a.n_place; p += blockDim.x) vec_of[p] = a.by_place ? p : a.place[p] / a.n_used;
    if (threadIdx.x < 32) {
        int n = 0;
        for (int first = 0; first < a.n_expert; first += 32) {
            int e = first + (int)threadIdx.x, begin = 0, end = 0;
            if (e < a.n_expert) begin = a.begin[e], end = a.begin[e + 1];
            unsigned has = __ballot_sync(0xffffffffu, end > begin);
            if (end > begin) entry[n + __popc(has & ((1u << threadIdx.x) - 1))] = {e, begin, end - begin};
            n += __popc(has);
        }
        if (threadIdx.x == 0) n_entry = n;
    }
    __syncthreads();
    return n_entry;
}

/* ---- an item's terms ---- */

/* acc = fmaf(x, y, acc); then, with HAS_MIN, acc = fmaf(x2, y2, acc): by block, and by (h, c) as h·NC + c. */
template <int BLOCKS, int NC> struct terms {
    float x[BLOCKS][2 * NC], y[BLOCKS][2 * NC], x2[BLOCKS][2 * NC], y2[BLOCKS][2 * NC];
};

/* A lane's accumulators, by h·NC + c. */
template <int NC> struct __align__(8 * NC) carried
{
    float v[2 * NC];
};

/* Columns of the products: of operand B this lane holds column g, of the result those that are its own. */
template <int NC> struct columns {
    int b, own[NC]; /* vectors */
};

template <int NC>
__device__ static inline struct columns<NC> columns_of(const struct matvec_args &a, const struct place &p,
                                                       const int *vec_of, int lane) {
    struct columns<NC> col;
    int g = NC == 1 ? lane / 8 : lane / 4; /* where NC is 1 the even columns */
    col.b = g < p.n ? g : p.n - 1;
    for (int c = 0; c < NC; c++) col.own[c] = NC * (lane % 4) + c < p.n ? NC * (lane % 4) + c : p.n - 1;
    if (a.n_expert) {
        col.b = vec_of[p.begin + col.b];
        for (int c = 0; c < NC; c++) col.own[c] = vec_of[p.begin + col.own[c]];
    }
    return col;
}

template <uint32_t type, int NC>
__device__ static inline void block_terms(const uint32_t a[4], const uint32_t b[2], const float s[NC],
                                          const uint32_t extra[NC], const struct mu_row_scale r[2], float x[2 * NC],
                                          float y[2 * NC], float x2[2 * NC], float y2[2 * NC])
{
    typedef mu_layout<type> L;
    int d[2][4], s0[NC], s1[NC];
    if (L::HAS_HALVES) {
        for (int c = 0; c < NC; c++) s0[c] = (int16_t)extra[c], s1[c] = (int)extra[c] >> 16;
        int first[4], second[4];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            first[k] = -L::OFFSET * s0[k % 2 % NC];
            second[k] = -L::OFFSET * s1[k % 2 % NC];
        }
        mu_mma_s8_k16(d[0], a, b[0], first);
        mu_mma_s8_k16(d[1], a + 2, b[1], second);
    } else {
        int start[4];
        for (int k = 0; k < 4; k++) start[k] = L::OFFSET > 0 ? (int)extra[k % 2 % NC] : 0x4b400000;
        mu_mma_s8_k32(d[0], a, b, start);
    }
#pragma unroll
    for (int v = 0; v < 2 * NC; v++) {
        int h = v / NC, c = v % NC, k = 2 * h + c;
        y[v] = r[h].d * s[c];
        if (L::HAS_HALVES) {
            x[v] = (float)(r[h].sc[0] * d[0][k] + r[h].sc[1] * d[1][k]);
            x2[v] = -(float)(r[h].mn[0] * s0[c] + r[h].mn[1] * s1[c]);
            y2[v] = r[h].m * s[c];
        } else {
            x[v] = __int_as_float(d[0][k]) - 12582912.0f;
            x2[v] = r[h].m;
            y2[v] = __uint_as_float(extra[c]);
        }
    }
}

template <uint32_t type, int NC>
__device__ static inline void item_terms(const uint8_t *slot, int item, int n_vec, const uint4 *quads,
                                         const uint4 *factors, const struct columns<NC> &col, int lane,
                                         struct terms<2 * item_of<type, NC>::PAIRS, NC> *to)
{
    typedef mu_layout<type> L;
    typedef item_of<type, NC> I;
    struct mu_scales scales;
    if (L::BLOCKS > 2) {
        scales = mu_scales_load<type>(slot + I::LOW_BYTES + I::HIGH_BYTES, lane / 4);
        if (I::PER_UNIT == 2) mu_scales_half<type>(&scales, item % 2 != 0);
    }
#pragma unroll
    for (int p = 0; p < I::PAIRS; p++) {
        uint32_t a[2][4];
        if (L::BLOCKS == 2) {
            mu_codes_pair<type>(slot + p * L::UNIT_BYTES, 0, lane, a);
            scales = mu_scales_load<type>(slot + p * L::UNIT_BYTES + L::SCALES_AT, lane / 4);
        } else {
            mu_codes_of<type>(slot + p * L::LOW_PAIR, slot + I::LOW_BYTES + p * L::HIGH_PAIR, lane, a);
        }
        int at = (item * I::PAIRS + p) * n_vec;
        uint4 quad = quads[(at + col.b) * 4 + lane % 4], factor[NC];
        for (int c = 0; c < NC; c++) factor[c] = factors[at + col.own[c]];
        for (int k = 0; k < 2; k++) {
            int j = 2 * p + k;
            uint32_t b[2] = {k ? quad.z : quad.x, k ? quad.w : quad.y}, extra[NC];
            float s[NC];
            struct mu_row_scale r[2] = {mu_scale_of<type>(scales, L::BLOCKS == 2 ? k : j, 0),
                                        mu_scale_of<type>(scales, L::BLOCKS == 2 ? k : j, 1)};
            for (int c = 0; c < NC; c++) {
                s[c] = __uint_as_float(k ? factor[c].z : factor[c].x);
                extra[c] = k ? factor[c].w : factor[c].y;
            }
            block_terms<type, NC>(a[k], b, s, extra, r, to->x[j], to->y[j], to->x2[j], to->y2[j]);
#pragma unroll
            for (int v = 0; v < 2 * NC; v++) { /* now, not when the baton is here */
                mu_pin(to->x[j][v]);
                mu_pin(to->y[j][v]);
                if (!L::HAS_MIN) continue;
                mu_pin(to->x2[j][v]);
                mu_pin(to->y2[j][v]);
            }
        }
    }
}

template <uint32_t type, int BLOCKS, int NC>
__device__ static inline void add_block(float acc[2 * NC], const struct terms<BLOCKS, NC> &term, int j)
{
#pragma unroll
    for (int i = 0; i < 2 * NC; i++) {
        acc[i] = fmaf(term.x[j][i], term.y[j][i], acc[i]);
        if (mu_layout<type>::HAS_MIN) acc[i] = fmaf(term.x2[j][i], term.y2[j][i], acc[i]);
    }
}

/* The terms of an item's blocks, in order, of which n_left are there: the last item of a row may be short. */
template <uint32_t type, int NC>
__device__ static inline void add_terms(float acc[2 * NC], const struct terms<2 * item_of<type, NC>::PAIRS, NC> &term,
                                        int n_left)
{
    enum { BLOCKS = 2 * item_of<type, NC>::PAIRS };
    const bool whole = mu_layout<type>::BLOCKS > 2 || n_left >= BLOCKS;
    if (whole) {
#pragma unroll
        for (int j = 0; j < BLOCKS; j++) add_block<type, BLOCKS, NC>(acc, term, j);
    } else {
#pragma unroll
        for (int j = 0; j < BLOCKS; j++)
            if (j < n_left) add_block<type, BLOCKS, NC>(acc, term, j);
    }
}

/* ---- the end of a group ---- */

__device__ unsigned meetings[MEETINGS]; /* 0 between launches */

/* C1 of 32 rows, of which this warp has finished a half (y, stored in out by all) and another block's warp the other: who
 * comes first leaves it to the second, who finds the first's values in out. */
template <int NC>
__device__ static void meet(const struct mu_epilogue &e, unsigned *meeting, int group, size_t first_vec, int n_vec,
                            const float y[2 * NC], int lane)
{
    int g = lane / 4, t = lane % 4, second;
    __threadfence();
    __syncwarp();
    second = lane == 0 ? (int)atomicAdd(meeting, 1u) : 0;
    second = __shfl_sync(0xffffffffu, second, 0);
    if (!second) return;
    if (lane == 0) *meeting = 0;
    __threadfence();
    for (int c = 0; c < NC; c++) {
        int i = NC * t + c, row0 = (group & ~1) * 16, own = group & 1;
        size_t v = first_vec + (size_t)i;
        float value[4], amax = 0.0f; /* rows g, g + 8, g + 16, g + 24 */
        for (int k = 0; k < 4; k++) {
            value[k] = 0.0f;
            if (k / 2 == own)
                value[k] = y[k % 2 * NC + c];
            else if (i < n_vec)
                value[k] = __ldcg(&e.out[v * e.stride + (size_t)(row0 + 8 * k + g)]);
            float magnitude = mu_f32_finite(value[k]) ? fabsf(value[k]) : INFINITY;
            amax = magnitude > amax ? magnitude : amax;
        }
        for (int step = 4; step < 32; step *= 2) {
            float other = __shfl_xor_sync(0xffffffffu, amax, step);
            amax = other > amax ? other : amax;
        }
        bool finite = amax < INFINITY;
        float inverse = mu_q8_inverse(amax);
        int sum[2] = {};
        size_t at = v * (size_t)e.n_row + (size_t)row0;
        for (int k = 0; k < 4; k++) {
            int8_t code = finite ? mu_q8_code(value[k], inverse) : (int8_t)0;
            sum[k / 2] += code;
            if (i < n_vec) e.form.q[at + (size_t)(8 * k + g)] = code;
        }
        for (int step = 4; step < 32; step *= 2)
            for (int k = 0; k < 2; k++) sum[k] += __shfl_xor_sync(0xffffffffu, sum[k], step);
        if (g == 0 && i < n_vec) {
            e.form.s[at / 32] = finite ? mu_q8_scale(amax) : NAN;
            for (int k = 0; k < 2 && e.form.sum; k++) e.form.sum[at / 16 + (size_t)k] = (int16_t)sum[k];
        }
    }
}

template <int NC>
__device__ static void group_end(const struct matvec_args &a, const struct place &p, const float acc[2 * NC],
                                 const float up[2 * NC], int lane)
{
    const struct job_args &job = a.job[p.job];
    float y[2 * NC];
    for (int i = 0; i < 2 * NC; i++) {
        int row = 16 * p.group + lane / 4 + 8 * (i / NC), vec = NC * (lane % 4) + i % NC;
        y[i] = 0.0f;
        if (row < job.e.n_row && vec < p.n) {
            size_t v = (size_t)(p.begin + vec);
            y[i] = mu_epilogue_value(job.e, row, v, p.expert, acc[i], up[i]);
            mu_epilogue_store(job.e, row, v, y[i]);
        }
    }
    if (job.e.form.q) {
        int half = a.n_expert ? p.expert * (job.n_group / 2) : 0;
        meet<NC>(job.e, &meetings[job.meet0 + half + p.group / 2], p.group, (size_t)p.begin, p.n, y, lane);
    }
}

/* ---- the kernel ---- */

/* Blocks of n·32 threads, as many as shall run at once. */
template <uint32_t type, int NC>
__global__ static __launch_bounds__(32 * item_of<type, NC>::WARPS_MOST, item_of<type, NC>::RESIDENT) void matvec_kernel(
    const __grid_constant__ struct matvec_args a)
{
    typedef item_of<type, NC> I;
    MU_SHARED(uint8_t, shared);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_warp = blockDim.x / 32;
    const struct shared_map map = shared_map_of<type, NC>(n_warp, a.n_vec, a.n_block, a.n_expert, a.n_place);
    const uint4 *quads = reinterpret_cast<const uint4 *>(shared + map.quads);
    const uint4 *factors = reinterpret_cast<const uint4 *>(shared + map.factors);
    struct carried<NC> *baton = reinterpret_cast<struct carried<NC> *>(shared + map.baton) + lane;
    struct carried<NC> *gate = reinterpret_cast<struct carried<NC> *>(shared + map.gate) + lane;
    struct expert_entry *entry = reinterpret_cast<struct expert_entry *>(shared + map.entry);
    int *vec_of = reinterpret_cast<int *>(shared + map.vec_of);
    uint8_t *stage = shared + warp * (I::STAGES * I::BYTES);
    const int n_item = (a.n_block + 2 * I::PAIRS - 1) / (2 * I::PAIRS), last_warp = (warp + n_warp - 1) % n_warp;
    int n_unit = a.n_unit;

    mu_grid_release();
    if (a.n_expert) { /* which weights are needed depends on the kernel before */
        mu_grid_wait();
        n_unit = experts_load(a, entry, vec_of) * a.job[0].n_group;
    }
    struct walk ahead = {(int)blockIdx.x, 0, false, NULL}, now;
    walk_base(&ahead, a, entry, n_unit);
    walk_on(&ahead, warp, n_item, a, entry, n_unit);
    now = ahead;
    for (int i = 0; i < I::STAGES; i++) {
        if (ahead.unit < n_unit) item_load<type, NC>(stage + i * I::BYTES, ahead, a.n_block, lane);
        mu_cp_async_commit();
        walk_on(&ahead, n_warp, n_item, a, entry, n_unit);
    }
    mu_grid_wait();
    vectors_load<type>(a, reinterpret_cast<uint32_t *>(shared + map.quads),
                       reinterpret_cast<uint32_t *>(shared + map.factors));
    __syncthreads();

    struct place p = {};
    struct columns<NC> col = {
    };
    bool first = warp == 0, gated = false;
    int slot = 0, placed = -1;
    while (now.unit < n_unit) {
        if (placed != now.unit) {
            placed = now.unit;
            p = place_of(a, entry, placed);
            gated = a.job[p.job].up != NULL;
            col = columns_of<NC>(a, p, vec_of, lane);
        }
        struct terms<2 * I::PAIRS, NC> term;
        mu_cp_async_wait<I::STAGES - 1>();
        __syncwarp();
        item_terms<type, NC>(stage + slot * I::BYTES, now.item, a.n_vec, quads, factors, col, lane, &term);
        __syncwarp();
        if (ahead.unit < n_unit) item_load<type, NC>(stage + slot * I::BYTES, ahead, a.n_block, lane);
        mu_cp_async_commit();
        walk_on(&ahead, n_warp, n_item, a, entry, n_unit);
        slot = slot + 1 == I::STAGES ? 0 : slot + 1;

        const bool begins = now.item == 0, ends = now.item == n_item - 1, half = gated && !now.up, done = ends && !half;
        const bool passes = !done || now.unit + (int)gridDim.x < n_unit;
        struct carried<NC> *to = ends ? gate : baton + 32 * warp, acc = {}, other = {
        };
        const int n_left = a.n_block - now.item * 2 * I::PAIRS; /* blocks, in the last item fewer */
        if (!first) mu_barrier_wait(1 + warp, 64);
        first = false;
        if (!begins) acc = baton[32 * last_warp];
        add_terms<type, NC>(acc.v, term, n_left);
        if (!done)
            *to = acc;
        else if (gated)
            other = *gate;
        if (passes) mu_barrier_arrive(1 + (warp + 1 == n_warp ? 0 : warp + 1), 64);
        if (done) {
            struct carried<NC> y, up; /* copies: they are indexed, and acc shall stay in registers */
#pragma unroll
            for (int i = 0; i < 2 * NC; i++) {
                y.v[i] = gated ? other.v[i] : acc.v[i];
                up.v[i] = acc.v[i];
            }
            group_end<NC>(a, p, y.v, up.v, lane);
        }
        walk_on(&now, n_warp, n_item, a, entry, n_unit);
    }
}

/* ---- the host's side ---- */

template <uint32_t type> struct launch {
    template <int NC> static bool of(struct mu_device *d, const struct matvec_args &a)
    {
        /* Two blocks where the vectors leave room for them, else one. */
        int n_warp = WARPS;
        size_t bytes = (size_t)shared_map_of<type, NC>(n_warp, a.n_vec, a.n_block, a.n_expert, a.n_place).bytes;
        int n_grid = d->n_sm * BLOCKS_PER_SM;
        if (bytes > d->shared_max / BLOCKS_PER_SM - 1024) {
            n_warp = item_of<type, NC>::WARPS_MOST;
            bytes = (size_t)shared_map_of<type, NC>(n_warp, a.n_vec, a.n_block, a.n_expert, a.n_place).bytes;
            n_grid = d->n_sm;
        }
        if (bytes > d->shared_max) return false;
        if (!a.n_expert && a.n_unit < n_grid) n_grid = a.n_unit;
        mu_allow_shared(d, "a product with few vectors", matvec_kernel<type, NC>, bytes);
        mu_launch_early(d, "a product with few vectors", matvec_kernel<type, NC>, dim3((unsigned)n_grid),
                        dim3(32 * (unsigned)n_warp), bytes, a);
        return true;
    }
    static void run(struct mu_device *d, struct matvec_args *a, int n_column, bool *fits)
    {
        a->group_bytes = mu_layout_group_bytes<type>(a->n_block * 32);
        *fits = n_column <= 4 ? of<1>(d, *a) : of<2>(d, *a);
    }
};

bool mu_cuda_matvec_try(struct mu_device *d, const struct mu_device_job *job, int n_job, const struct mu_act *x,
                        const struct mu_device_experts *experts)
{
    struct matvec_args a = {};
    int n_column = x->n_tok, n_meeting = 0;
    bool fits = false, form_after[MU_DEVICE_MAX_JOBS] = {};
    a.n_job = n_job;
    a.n_vec = x->n_tok;
    a.n_block = x->n_col / MU_Q_BLOCK;
    a.q = x->q, a.s = x->s, a.sum = x->sum;
    if (experts) {
        if (experts->by_place) n_column /= experts->n_used; /* a token has an expert once at most */
        a.n_expert = experts->n_expert, a.n_used = experts->n_used, a.n_place = n_column * experts->n_used;
        a.m_bytes = experts->m_bytes, a.up_bytes = experts->up_bytes;
        a.begin = experts->begin, a.place = experts->place, a.by_place = experts->by_place;
    }
    if (n_column > MU_MATVEC_MOST) return false;
    for (int j = 0; j < n_job; j++) {
        const struct mu_mat *up = mu_epilogue_second(&job[j]);
        struct job_args *to = &a.job[j];
        to->m = (const uint8_t *)job[j].m->data;
        to->up = up ? (const uint8_t *)up->data : NULL;
        to->n_group = (job[j].m->n_row + MU_ROW_GROUP - 1) / MU_ROW_GROUP;
        to->e = mu_epilogue_of(&job[j]);
        a.n_unit += to->n_group;
        if (!job[j].form.q) continue;
        int n = to->n_group / 2 * (experts ? experts->n_expert : 1);
        form_after[j] = n > MEETINGS - n_meeting;
        if (form_after[j])
            to->e.form.q = NULL;
        else
            to->meet0 = n_meeting, n_meeting += n;
    }
    mu_layout_call<launch>(job[0].m->type, d, &a, n_column, &fits);
    for (int j = 0; fits && j < n_job; j++) {
        struct mu_act_to to = {.q = job[j].form.q, .s = job[j].form.s, .sum = job[j].form.sum};
        if (form_after[j])
            mu_cuda_form(d, job[j].out, job[j].stride, experts ? a.n_place : a.n_vec, job[j].m->n_row, &to);
    }
    return fits;
}
