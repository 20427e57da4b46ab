/* A few vectors (up to 8) times C2's matrices: bound by reading the weights.
 *
 * C2 wants one f32 accumulator for a row and a vector, and its blocks in order; at 4096 rows a GPU has 256 groups of 16
 * rows for 132 multiprocessors, so a group must be the work of many warps, or too few bytes are on their way. What can be
 * done in any order is: reading, the integer sums I, the scales. So a thread block has producers, warps that take a group's
 * columns in turn, an item of 256 columns each, and leave what the fmafs need of it in a slot of shared memory; and chains,
 * warps of which a lane has one row and vector, and which do nothing but the fmafs, item after item, and at the end of a group
 * what follows the product (epilogue.h). A slot is handed over and back by a barrier of its producer and the chains.
 * (Passing the accumulators from warp to warp instead made each wait for all the others: 15% of the memory's speed.)
 *
 * A thread block walks over its groups, and a gated pair (up) is a group's two matrices one after the other, as one
 * sequence of items, so that the next group's weights are on their way while one ends. Each producer copies its items itself,
 * STAGES ahead, into its own shared memory (cp.async: no registers are held by what is on its way). The first copies start
 * before the kernel ahead has finished (mu_launch_early): weights do not depend on it. The next kernel's blocks find
 * room where these leave some (a small matrix), or as they end.
 *
 * I comes from the tensor cores (mma.m16n8k32, or two m16n8k16 where halves have scales of their own), of which the eight
 * columns are filled with blocks where there are fewer vectors: NT vectors (1, 2, 4, 8) share an operand B by 8/NT
 * blocks (with halves an accumulator too, each multiplied with zeros in the others' columns). Column n is of vector n / (8/NT) and block n % (8/NT); so
 * every lane's results are of use. Vectors beyond those that are there repeat the last. Products start at the offset's
 * share, -offset·Σq.
 *
 * Vectors are kept in shared memory as lanes read them:
 *
 *   words   [block][vector][t]   the words of columns 4t and 16+4t
 *   factors [four][vector]       s of four blocks, then their extras: what the type needs of the sums
 *
 * A slot: planes of 16 rows by 8 blocks of floats, a row's two halves exchanged in every second four rows (no bank
 * conflicts, no padding: two thread blocks with 8 vectors shall fit in a multiprocessor). Planes: for each vector the
 * integers; with m and halves (Q2_K) for each vector the sums of minimums; the scales D; with m the minimums. One vector's
 * producers also multiply D (Q2_K: and the minimums) with s: there are seven of them, and all items pass through one chain.
 *
 * form's int8 needs 32 neighbouring rows, of which a group is half: who finishes second does it (meet). */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/epilogue.h"
#include "kernels/cuda/layout.h"

enum {
    PRODUCERS = 7,                     /* two barriers each, of 15 */
    ITEM_BLOCKS = 8,                   /* of 32 columns */
    PLANE = 16 * ITEM_BLOCKS * 4 + 16, /* bytes */
    STAGE_BYTES = 4096,                /* what a warp has on its way, or two items */
    SHARED_OWN = 128, /* bytes of a block beside MU_SHARED: n_entry, and up to where MU_SHARED is aligned */
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
    int first;          /* without experts: q, s, sum and n_vec are of vectors from this one on */
    size_t group_bytes;
    const int8_t *q;
    const float *s;
    const int16_t *sum;
    unsigned *meetings;            /* the device's */
    int n_expert, n_used, n_place; /* n_expert 0: no experts */
    size_t m_bytes, up_bytes;
    const int32_t *begin, *place;
    bool by_place;
};

/* How an item of a type is kept, for NT vectors. */
template <uint32_t type, int NT> struct item_of {
    typedef mu_layout<type> L;
    enum {
        UNITS = ITEM_BLOCKS / L::BLOCKS,
        BYTES = UNITS * L::UNIT_BYTES,
        STAGES = 2 * BYTES >= STAGE_BYTES ? 2 : 3,
        SHARE = 8 / NT, /* blocks that share an accumulator */
        CHAINS = NT <= 2 ? 1 : NT / 2,
        BLOCKS_PER_SM = NT == 1   ? 4
                        : NT <= 4 ? 3
                                  : 2, /* where there is shared memory for them */
        WARPS = PRODUCERS + CHAINS,
        HAS_SUMS = L::HAS_MIN && L::HAS_HALVES,
        SCALED = NT == 1, /* planes D, and M of sums, are multiplied with s */
        SUMS_AT = NT * PLANE,
        D_AT = SUMS_AT + (HAS_SUMS ? NT * PLANE : 0),
        M_AT = D_AT + PLANE,
        SLOT_BYTES = M_AT + (L::HAS_MIN ? PLANE : 0),
    };
};

/* ---- shared memory ---- */

struct expert_entry {
    int expert, begin, n; /* of places */
};

struct shared_map { /* offsets; host and device */
    int slot, words, factors, entry, vec_of, bytes;
};

template <uint32_t type, int NT>
__host__ __device__ static inline struct shared_map shared_map_of(int n_vec, int n_block, int n_expert, int n_place)
{
    typedef item_of<type, NT> I;
    struct shared_map m;
    int n_whole = (n_block + ITEM_BLOCKS - 1) / ITEM_BLOCKS * ITEM_BLOCKS; /* whole items */
    m.slot = PRODUCERS * (int)I::STAGES * (int)I::BYTES;
    m.words = m.slot + PRODUCERS * (int)I::SLOT_BYTES;
    m.factors = m.words + n_whole * n_vec * 32;
    m.entry = m.factors + n_whole / 2 * n_vec * 16;
    m.vec_of = m.entry + n_expert * (int)sizeof(struct expert_entry);
    m.bytes = m.vec_of + n_place * (int)sizeof(int);
    return m;
}

/* ---- the sequence of a block's items ---- */

struct walk {
    int unit, item;      /* of the unit's matrix */
    bool up;             /* the unit's second matrix */
    const uint8_t *base; /* of the group in it, this lane's first 16 bytes */
};

struct place {                        /* a unit's */
    int job, group, expert, begin, n; /* begin, n: places of the expert, or vectors */
};

__device__ static inline struct place place_of(const struct matvec_args &a, const struct expert_entry *entry, int unit)
{
    struct place p = {0, unit, 0, a.first, a.n_vec};
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
    w->base = m + (size_t)p.expert * (w->up ? a.up_bytes : a.m_bytes) + (size_t)p.group * a.group_bytes +
              16 * (threadIdx.x % 32);
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

/* BYTES of a multiple of 16, by the whole warp. from: this lane's first. */
template <int BYTES> __device__ static inline void copy_piece(uint8_t *to, const uint8_t *from, int lane)
{
    to += 16 * lane;
#pragma unroll
    for (int i = 0; i + 512 <= BYTES; i += 512) mu_cp_async16(to + i, from + i);
    if (BYTES % 512 && 16 * lane < BYTES % 512) mu_cp_async16(to + BYTES / 512 * 512, from + BYTES / 512 * 512);
}

template <uint32_t type, int NT>
__device__ static inline void item_load(uint8_t *stage, const struct walk &w, int n_block, int lane)
{
    typedef mu_layout<type> L;
    typedef item_of<type, NT> I;
    int n_unit = (n_block + L::BLOCKS - 1) / L::BLOCKS - w.item * I::UNITS; /* the last item may be short */
    const uint8_t *from = w.base + (size_t)w.item * I::BYTES;
    if (I::UNITS == 1 || n_unit >= I::UNITS)
        copy_piece<I::BYTES>(stage, from, lane);
    else
#pragma unroll 1
        for (int i = 0; i < n_unit; i++)
            copy_piece<L::UNIT_BYTES>(stage + i * L::UNIT_BYTES, from + i * L::UNIT_BYTES, lane);
}

/* What the type needs of a block's sums, made once: the sums themselves; fl(S·s); or where the integer product starts, with
 * the offset's share, -offset·S. */
template <uint32_t type> __device__ static inline uint32_t extra_of(float s, int s0, int s1)
{
    typedef mu_layout<type> L;
    if (L::HAS_HALVES) return ((uint32_t)s0 & 0xffffu) | (uint32_t)s1 << 16;
    if (L::HAS_MIN) return __float_as_uint((float)(s0 + s1) * s);
    return (uint32_t)(-L::OFFSET * (s0 + s1));
}

/* Of a vector: s of blocks from `block` on, up to the next fourth one; EXTRAS further the extras. */
enum { EXTRAS = 4 };
template <typename T> __device__ static inline T *factors_at(T *factors, int n_vec, int block, int vec)
{
    return factors + ((block >> 2) * n_vec + vec) * 8 + (block & 3);
}

/* All vectors into words and factors. Whole blocks only: what an odd last pair or a short last item lacks is read, but
 * not used. All that a thread has to read is on its way together, two blocks at once: the next kernel's start is the time of
 * a few such reads. */
template <uint32_t type>
__device__ static void vectors_load(const struct matvec_args &a, uint4 *words, uint32_t *factors)
{
    const uint4 *q = reinterpret_cast<const uint4 *>(a.q);
    const uint32_t *sums = reinterpret_cast<const uint32_t *>(a.sum);
    int n = a.n_vec * a.n_block;
    for (int first = threadIdx.x; first < n; first += 2 * blockDim.x) {
        uint4 low[2] = {}, high[2] = {};
        float s[2] = {};
        uint32_t sum[2] = {};
#pragma unroll
        for (int k = 0; k < 2; k++) {
            int i = first + k * (int)blockDim.x;
            if (i < n) low[k] = q[2 * i], high[k] = q[2 * i + 1], s[k] = a.s[i], sum[k] = sums[i];
        }
#pragma unroll
        for (int k = 0; k < 2; k++) {
            int i = first + k * (int)blockDim.x, v = i / a.n_block, block = i % a.n_block;
            uint4 *to = words + (block * a.n_vec + v) * 2;
            if (i >= n) continue;
            to[0] = make_uint4(low[k].x, high[k].x, low[k].y, high[k].y);
            to[1] = make_uint4(low[k].z, high[k].z, low[k].w, high[k].w);
            uint32_t *f = factors_at(factors, a.n_vec, block, v);
            f[0] = __float_as_uint(s[k]);
            f[EXTRAS] = extra_of<type>(s[k], (int16_t)sum[k], (int16_t)(sum[k] >> 16));
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

/* ---- producers: an item into a slot ---- */

/* Vector `tok` of a unit's, the last one in the place of those beyond it. */
__device__ static inline int vector_of(const struct matvec_args &a, const struct place &p, const int *vec_of, int tok)
{
    int i = tok < p.n ? tok : p.n - 1;
    return a.n_expert ? vec_of[p.begin + i] : i;
}

/* Of a plane, a row's float of a block, beside those of blocks up to the next fourth one. */
__device__ static inline int plane_at(int row, int block)
{
    return row * ITEM_BLOCKS + (block ^ (row & 4));
}
/* Two and four of them. */
__device__ static inline void plane_store(uint8_t *plane, int row, int block, float2 v)
{
    *reinterpret_cast<float2 *>(reinterpret_cast<float *>(plane) + plane_at(row, block)) = v;
}
__device__ static inline void plane_store(uint8_t *plane, int row, int block, float4 v)
{
    *reinterpret_cast<float4 *>(reinterpret_cast<float *>(plane) + plane_at(row, block)) = v;
}
/* at: of the first of four. */
__device__ static inline float4 plane_load(const uint8_t *at)
{
    return *reinterpret_cast<const float4 *>(at);
}

/* D, and M, of rows g and g + 8 and blocks 2t and 2t + 1. halves: scales whose second half was put first where t needs it;
 * by: what SCALED multiplies with, s of the two blocks. */
template <uint32_t type, int NT>
__device__ static inline void scales_store(uint8_t *slot, const uint8_t *stage, const struct mu_scales &halves,
                                           float2 by, int lane)
{
    typedef mu_layout<type> L;
    typedef item_of<type, NT> I;
    int g = lane / 4, t = lane % 4;
    struct mu_scales s = halves;
    if (L::BLOCKS == 2) s = mu_scales_load<type>(stage + t * L::UNIT_BYTES + L::SCALES_AT, g);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        struct mu_row_scale first = mu_scale_of<type>(s, L::BLOCKS == 2 ? 0 : 2 * (t & 1), h);
        struct mu_row_scale second = mu_scale_of<type>(s, L::BLOCKS == 2 ? 1 : 2 * (t & 1) + 1, h);
        if (I::SCALED) first.d *= by.x, second.d *= by.y;
        if (I::SCALED && I::HAS_SUMS) first.m *= by.x, second.m *= by.y;
        plane_store(slot + I::D_AT, g + 8 * h, 2 * t, make_float2(first.d, second.d));
        if (L::HAS_MIN) plane_store(slot + I::M_AT, g + 8 * h, 2 * t, make_float2(first.m, second.m));
    }
}

/* What a lane has of an accumulator: v[2h + c] of row h and column 2t + c. */
struct result {
    float v[4], sum[4];
};

/* Integers of halves: J, and Z with minimums. */
template <uint32_t type, int NT>
__device__ static inline void halves_combine(struct result *r, const int d0[4], const int d1[4], const int16_t s0[2],
                                             const int16_t s1[2], const struct mu_scales &scales, int first_block,
                                             int t)
{
    typedef mu_layout<type> L;
    typedef item_of<type, NT> I;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int h = i / 2, c = i % 2;
        int block = NT == 1 ? 2 * (t & 1) + c : first_block + (2 * t + c) % I::SHARE; /* NT 1: halves are put first */
        struct mu_row_scale k = mu_scale_of<type>(scales, block, h);
        r->v[i] = (float)(k.sc[0] * d0[i] + k.sc[1] * d1[i]);
        if (L::HAS_MIN) r->sum[i] = -(float)(k.mn[0] * s0[c] + k.mn[1] * s1[c]);
    }
}

/* Results of n accumulators, the first of which begins at block `block`, to their planes. */
template <int NT, int N>
__device__ static inline void results_store(uint8_t *planes, const float v[N][4], int block, int lane)
{
    enum { SHARE = 8 / NT };
    int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int h = 0; h < 2; h++)
        if constexpr (NT == 8) { /* four blocks of two vectors */
#pragma unroll
            for (int c = 0; c < 2; c++)
                plane_store(planes + (2 * t + c) * PLANE, g + 8 * h, block,
                            make_float4(v[0][2 * h + c], v[1][2 * h + c], v[2][2 * h + c], v[3][2 * h + c]));
        } else { /* two blocks of one vector */
            plane_store(planes + 2 * t / SHARE * PLANE, g + 8 * h, block + 2 * t % SHARE,
                        make_float2(v[0][2 * h], v[0][2 * h + 1]));
        }
}

/* Integers without halves, of fewer than 8 vectors: no zeros are needed, each product is taken from the columns of its own
 * block (a lane has those of two neighbouring blocks or of neither), and none waits for another. own: the vector of this
 * lane's columns of results. */
template <uint32_t type, int NT>
__device__ static inline void integers_plain(uint8_t *slot, const uint8_t *stage, int item, int n_vec,
                                             const uint2 *words, const uint32_t *factors, int of_b, int own, int lane)
{
    typedef mu_layout<type> L;
    enum { SHARE = 8 / NT };
    const int g = lane / 4, t = lane % 4;
    int first[4] = {}, kept[NT][4] = {}; /* kept: of blocks SHARE·i + 2t % SHARE, and the next */
    uint2 b = {};
#pragma unroll
    for (int j = 0; j < ITEM_BLOCKS; j += 2) {
        uint32_t a[2][4];
        int d[2][4];
        if (L::BLOCKS == 2)
            mu_codes_pair<type>(stage + j / 2 * L::UNIT_BYTES, 0, lane, a);
        else
            mu_codes_pair<type>(stage, j / 2, lane, a);
        if (j % SHARE == 0) {
            b = words[((item * ITEM_BLOCKS + j + g % SHARE) * n_vec + of_b) * 4 + t];
            const uint32_t *extra = factors_at(factors, n_vec, item * ITEM_BLOCKS + j + 2 * t % SHARE, own) + EXTRAS;
            if (L::OFFSET != 0) first[0] = first[2] = (int)extra[0], first[1] = first[3] = (int)extra[1];
        }
        const uint32_t of_blocks[2] = {b.x, b.y};
#pragma unroll
        for (int k = 0; k < 2; k++) mu_mma_s8_k32(d[k], a[k], of_blocks, first);
        if (j % SHARE == 0 || 2 * t % SHARE == j % SHARE)
#pragma unroll
            for (int i = 0; i < 4; i++) kept[j / SHARE][i] = d[i % 2][i];
    }
#pragma unroll
    for (int i = 0; i < NT; i++)
#pragma unroll
        for (int h = 0; h < 2; h++)
            plane_store(slot + 2 * t / SHARE * PLANE, g + 8 * h, SHARE * i + 2 * t % SHARE,
                        make_float2((float)kept[i][2 * h], (float)kept[i][2 * h + 1]));
}

/* Those of halves, or of 8 vectors. own: vectors of this lane's columns of results; of_b: of its column of operand B. */
template <uint32_t type, int NT>
__device__ static inline void integers_shared(uint8_t *slot, const uint8_t *stage, int item, int n_vec,
                                              const uint2 *words, const uint32_t *factors, int of_b, const int own[2],
                                              const struct mu_scales &scales, const struct mu_scales &halves, int lane)
{
    typedef mu_layout<type> L;
    typedef item_of<type, NT> I;
    enum { AT_ONCE = NT == 8 ? 4 : 1 };
    const int g = lane / 4, t = lane % 4;
    float v[AT_ONCE][4], sum[AT_ONCE][4];
    uint32_t a[2][4];
    int d0[4], d1[4];
    int16_t s0[2], s1[2];
    uint2 b = {};
#pragma unroll
    for (int j = 0; j < ITEM_BLOCKS; j++) {
        const int share = j % I::SHARE, first = j - share, at_once = j / I::SHARE % AT_ONCE;
        if (j % 2 == 0 && L::BLOCKS == 2) mu_codes_pair<type>(stage + j / 2 * L::UNIT_BYTES, 0, lane, a);
        if (j % 2 == 0 && L::BLOCKS > 2) mu_codes_pair<type>(stage, j / 2, lane, a);
        if (share == 0) {
            b = words[((item * ITEM_BLOCKS + first + g % I::SHARE) * n_vec + of_b) * 4 + t];
#pragma unroll
            for (int c = 0; c < 2; c++) {
                int block = item * ITEM_BLOCKS + first + (2 * t + c) % I::SHARE;
                uint32_t extra = factors_at(factors, n_vec, block, own[c])[EXTRAS];
                s0[c] = (int16_t)extra;
                s1[c] = (int16_t)(extra >> 16);
#pragma unroll
                for (int i = c; i < 4; i += 2) {
                    d0[i] = L::HAS_HALVES ? -L::OFFSET * s0[c] : L::OFFSET != 0 ? (int)extra : 0;
                    d1[i] = -L::OFFSET * s1[c];
                }
            }
        }
        uint32_t mine[2] = {NT == 8 || g % I::SHARE == share ? b.x : 0, NT == 8 || g % I::SHARE == share ? b.y : 0};
        if (L::HAS_HALVES) {
            mu_mma_s8_k16(d0, a[j % 2], mine[0], d0);
            mu_mma_s8_k16(d1, a[j % 2] + 2, mine[1], d1);
        } else {
            mu_mma_s8_k32(d0, a[j % 2], mine, d0);
        }
        if (share != I::SHARE - 1) continue;
        struct result r = {};
        if (L::HAS_HALVES) halves_combine<type, NT>(&r, d0, d1, s0, s1, NT == 1 ? halves : scales, first, t);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            v[at_once][i] = L::HAS_HALVES ? r.v[i] : (float)d0[i];
            sum[at_once][i] = r.sum[i];
        }
        if (at_once != AT_ONCE - 1) continue;
        int block = NT == 8 ? j - 3 : first;
        results_store<NT, AT_ONCE>(slot, v, block, lane);
        if (I::HAS_SUMS) results_store<NT, AT_ONCE>(slot + I::SUMS_AT, sum, block, lane);
    }
}

/* own: vectors of this lane's columns of results; of_b: of its column of operand B. */
template <uint32_t type, int NT>
__device__ static inline void item_make(uint8_t *slot, const uint8_t *stage, int item, int n_vec, const uint2 *words,
                                        const uint32_t *factors, int of_b, const int own[2], int lane)
{
    typedef mu_layout<type> L;
    const int g = lane / 4, t = lane % 4;
    struct mu_scales scales = {}, halves = {};
    float2 by = {};
    if (L::BLOCKS > 2) {
        scales = halves = mu_scales_load<type>(stage + L::SCALES_AT, g);
        mu_scales_half<type>(&halves, t >= 2);
    }
    if constexpr (!L::HAS_HALVES && NT < 8)
        integers_plain<type, NT>(slot, stage, item, n_vec, words, factors, of_b, own[0], lane);
    else
        integers_shared<type, NT>(slot, stage, item, n_vec, words, factors, of_b, own, scales, halves, lane);
    if (item_of<type, NT>::SCALED)
        by = *reinterpret_cast<const float2 *>(factors_at(factors, n_vec, item * ITEM_BLOCKS + 2 * t, own[0]));
    scales_store<type, NT>(slot, stage, halves, by, lane);
}

/* ---- chains ---- */

/* What four blocks' fmafs of a row and vector take: x·y, and with minimums x2·y2. */
struct four {
    float x[4], y[4], x2[4], y2[4];
};

/* slot: from a row's four blocks in the first plane on. factors: of the vector's blocks. */
template <uint32_t type, int NT>
__device__ static inline struct four four_load(const uint8_t *slot, const float4 *factors, int tok)
{
    typedef mu_layout<type> L;
    typedef item_of<type, NT> I;
    struct four r;
    float4 xs = plane_load(slot + tok * PLANE), ds = plane_load(slot + I::D_AT);
    float4 ms = {}, zs = {}, s = {}, extras = {};
    if (L::HAS_MIN) ms = plane_load(slot + I::M_AT);
    if (I::HAS_SUMS) zs = plane_load(slot + I::SUMS_AT + tok * PLANE);
    if (!I::SCALED) s = factors[0];
    if (L::HAS_MIN && !I::HAS_SUMS) extras = factors[1];
    const float xk[4] = {xs.x, xs.y, xs.z, xs.w}, dk[4] = {ds.x, ds.y, ds.z, ds.w};
    const float mk[4] = {ms.x, ms.y, ms.z, ms.w}, zk[4] = {zs.x, zs.y, zs.z, zs.w};
    const float sk[4] = {s.x, s.y, s.z, s.w}, ek[4] = {extras.x, extras.y, extras.z, extras.w};
#pragma unroll
    for (int k = 0; k < 4; k++) {
        r.x[k] = xk[k];
        r.y[k] = I::SCALED ? dk[k] : dk[k] * sk[k];
        r.x2[k] = I::HAS_SUMS ? zk[k] : mk[k];
        r.y2[k] = !I::HAS_SUMS ? ek[k] : I::SCALED ? mk[k] : mk[k] * sk[k];
    }
    return r;
}

/* acc on from four blocks, of which n_left are there (the last item may be short). */
template <uint32_t type> __device__ static inline float four_add(float acc, const struct four &f, int n_left)
{
    typedef mu_layout<type> L;
    if (L::BLOCKS > 2 || n_left >= 4) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            acc = fmaf(f.x[k], f.y[k], acc);
            if (L::HAS_MIN) acc = fmaf(f.x2[k], f.y2[k], acc);
        }
    } else {
#pragma unroll
        for (int k = 0; k < 3; k++) {
            float next = fmaf(f.x[k], f.y[k], acc);
            if (L::HAS_MIN) next = fmaf(f.x2[k], f.y2[k], next);
            acc = k < n_left ? next : acc;
        }
    }
    return acc;
}

/* ---- the end of a group ---- */

/* C1 of 32 rows, of which this warp has finished a half (y, stored in out by all) and another block's warp the other: who
 * comes first leaves it to the second, who finds the first's values in out. Lanes are rows and one or two vectors; in: of
 * one that is there. */
__device__ static void meet(const struct mu_epilogue &e, unsigned *meeting, int group, size_t v, bool in, float y,
                            int lane)
{
    int row = lane % 16, row0 = (group & ~1) * 16, own = group & 1, second;
    __threadfence();
    __syncwarp();
    second = lane == 0 ? (int)atomicAdd(meeting, 1u) : 0;
    second = __shfl_sync(0xffffffffu, second, 0);
    if (!second) return;
    if (lane == 0) *meeting = 0;
    __threadfence();
    float other = in ? __ldcg(&e.out[v * e.stride + (size_t)(row0 + 16 * (1 - own) + row)]) : 0.0f;
    float value[2] = {own ? other : y, own ? y : other}, amax = 0.0f; /* rows `row` and 16 + row */
    for (int k = 0; k < 2; k++) {
        float magnitude = mu_f32_finite(value[k]) ? fabsf(value[k]) : INFINITY;
        amax = magnitude > amax ? magnitude : amax;
    }
    for (int step = 1; step < 16; step *= 2) {
        float from = __shfl_xor_sync(0xffffffffu, amax, step);
        amax = from > amax ? from : amax;
    }
    bool finite = amax < INFINITY;
    float inverse = mu_q8_inverse(amax);
    size_t at = v * (size_t)e.n_row + (size_t)row0;
    for (int k = 0; k < 2; k++) {
        int8_t code = finite ? mu_q8_code(value[k], inverse) : (int8_t)0;
        int sum = code;
        for (int step = 1; step < 16; step *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
        if (!in) continue;
        e.form.q[at + (size_t)(16 * k + row)] = code;
        if (e.form.sum && row == 0) e.form.sum[at / 16 + (size_t)k] = (int16_t)sum;
    }
    if (in && row == 0) e.form.s[at / 32] = finite ? mu_q8_scale(amax) : NAN;
}

__device__ static void group_end(const struct matvec_args &a, const struct place &p, int chain, int n_chain, int tok,
                                 float acc, float up, int lane)
{
    const struct job_args &job = a.job[p.job];
    int row = 16 * p.group + lane % 16;
    size_t v = (size_t)(p.begin + tok);
    bool in = row < job.e.n_row && tok < p.n;
    float y = 0.0f;
    if (in) {
        y = mu_epilogue_value(job.e, row, v, p.expert, acc, up);
        mu_epilogue_store(job.e, row, v, y);
    }
    if (job.e.form.q) {
        int pair = (a.n_expert ? p.expert * (job.n_group / 2) : 0) + p.group / 2;
        meet(job.e, &a.meetings[(job.meet0 + pair) * n_chain + chain], p.group, v, in, y, lane);
    }
}

/* ---- the kernel ---- */

/* Barriers of producer w and the chains: the slot is full, the slot is empty. */
__device__ static inline int full(int w)
{
    return 1 + w;
}
__device__ static inline int empty(int w)
{
    return 1 + PRODUCERS + w;
}

template <uint32_t type, int NT>
__device__ static void produce(const struct matvec_args &a, uint8_t *shared, const struct shared_map &map,
                               struct walk ahead, int n_item, int n_unit, int warp, int lane)
{
    typedef item_of<type, NT> I;
    const struct expert_entry *entry = reinterpret_cast<const struct expert_entry *>(shared + map.entry);
    const int *vec_of = reinterpret_cast<const int *>(shared + map.vec_of);
    uint8_t *stage = shared + warp * (I::STAGES * I::BYTES), *slot = shared + map.slot + warp * I::SLOT_BYTES;
    struct walk now = {(int)blockIdx.x, 0, false, NULL};
    int at = 0, placed = -1, of_b = 0, own[2] = {};
    bool first = true;
    walk_on(&now, warp, n_item, a, entry, n_unit);
    while (now.unit < n_unit) {
        if (placed != now.unit) {
            placed = now.unit;
            struct place p = place_of(a, entry, placed);
            of_b = vector_of(a, p, vec_of, lane / 4 / I::SHARE);
            for (int c = 0; c < 2; c++) own[c] = vector_of(a, p, vec_of, (2 * (lane % 4) + c) / I::SHARE);
        }
        mu_cp_async_wait<I::STAGES - 1>();
        __syncwarp();
        if (!first) mu_barrier_wait(empty(warp), 32 * (1 + I::CHAINS));
        first = false;
        item_make<type, NT>(slot, stage + at * I::BYTES, now.item, a.n_vec,
                            reinterpret_cast<const uint2 *>(shared + map.words),
                            reinterpret_cast<const uint32_t *>(shared + map.factors), of_b, own, lane);
        mu_barrier_arrive(full(warp), 32 * (1 + I::CHAINS));
        __syncwarp();
        if (ahead.unit < n_unit) item_load<type, NT>(stage + at * I::BYTES, ahead, a.n_block, lane);
        mu_cp_async_commit();
        walk_on(&ahead, PRODUCERS, n_item, a, entry, n_unit);
        walk_on(&now, PRODUCERS, n_item, a, entry, n_unit);
        at = at + 1 == I::STAGES ? 0 : at + 1;
    }
}

/* Everything a block computes goes through its chains, an item after the other: what four blocks take is read while the
 * fmafs of the four before run. An item that is not the matrix's last has all its blocks and another one behind it. */
template <uint32_t type, int NT>
__device__ static void chain(const struct matvec_args &a, uint8_t *shared, const struct shared_map &map, int n_item,
                             int n_unit, int number, int lane)
{
    typedef item_of<type, NT> I;
    const struct expert_entry *entry = reinterpret_cast<const struct expert_entry *>(shared + map.entry);
    const int *vec_of = reinterpret_cast<const int *>(shared + map.vec_of);
    const int row = lane % 16, tok = 2 * number + lane / 16, in_slot = NT == 1 ? 0 : tok < NT ? tok : NT - 1;
    const int n_vec = a.n_vec, to_second = 4 * (plane_at(row, 4) - plane_at(row, 0)); /* four blocks, in bytes */
    const uint8_t *const slots = shared + map.slot + 4 * plane_at(row, 0), *slot = slots;
    int w = 0, left = 0; /* whose item is next, items that are to come */
    for (int unit = blockIdx.x; unit < n_unit; unit += gridDim.x)
        left += a.job[place_of(a, entry, unit).job].up ? 2 * n_item : n_item;
    for (int unit = blockIdx.x; unit < n_unit; unit += gridDim.x) {
        struct place p = place_of(a, entry, unit);
        const int n_half = a.job[p.job].up ? 2 : 1, vec = vector_of(a, p, vec_of, tok);
        float gate = 0.0f, acc = 0.0f;
#pragma unroll 1
        for (int half = 0; half < n_half; half++) {
            const float4 *factors = reinterpret_cast<const float4 *>(shared + map.factors) + 2 * vec;
            int n_left = a.n_block;
            gate = acc;
            acc = 0.0f;
            struct four second = {}; /* of the item before: adds nothing to +0 */
            auto item_add = [&](bool last) {
                mu_barrier_wait(full(w), 32 * (1 + I::CHAINS));
                struct four first = four_load<type, NT>(slot, factors, in_slot);
                acc = four_add<type>(acc, second, 4);
                second = four_load<type, NT>(slot + to_second, factors + 2 * n_vec, in_slot);
                acc = four_add<type>(acc, first, last ? n_left : 4);
                if (left > PRODUCERS) mu_barrier_arrive(empty(w), 32 * (1 + I::CHAINS)); /* it has another item */
                left--;
                w = w + 1 == PRODUCERS ? 0 : w + 1;
                slot = w ? slot + I::SLOT_BYTES : slots;
                factors += 4 * n_vec;
                n_left -= ITEM_BLOCKS;
            };
#pragma unroll 1
            while (n_left > ITEM_BLOCKS) item_add(false);
            item_add(true);
            acc = four_add<type>(acc, second, n_left + ITEM_BLOCKS / 2);
        }
        p = place_of(a, entry, unit); /* again: it takes fewer registers than keeping it */
        group_end(a, p, number, I::CHAINS, tok, n_half == 2 ? gate : acc, acc, lane);
    }
}

/* As many blocks as run at once, or fewer. */
template <uint32_t type, int NT>
__global__ static __launch_bounds__(32 * item_of<type, NT>::WARPS, item_of<type, NT>::BLOCKS_PER_SM) void matvec_kernel(
    const __grid_constant__ struct matvec_args a)
{
    typedef item_of<type, NT> I;
    MU_SHARED(uint8_t, shared);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_item = (a.n_block + ITEM_BLOCKS - 1) / ITEM_BLOCKS;
    const struct shared_map map = shared_map_of<type, NT>(a.n_vec, a.n_block, a.n_expert, a.n_place);
    struct expert_entry *entry = reinterpret_cast<struct expert_entry *>(shared + map.entry);
    struct walk ahead = {(int)blockIdx.x, 0, false, NULL};
    int n_unit = a.n_unit;

    mu_grid_release();
    if (a.n_expert) { /* which weights are needed depends on the kernel before */
        mu_grid_wait();
        n_unit = experts_load(a, entry, reinterpret_cast<int *>(shared + map.vec_of)) * a.job[0].n_group;
    }
    if (warp < PRODUCERS) {
        walk_base(&ahead, a, entry, n_unit);
        walk_on(&ahead, warp, n_item, a, entry, n_unit);
        for (int i = 0; i < I::STAGES; i++) {
            uint8_t *stage = shared + (warp * I::STAGES + i) * I::BYTES;
            if (ahead.unit < n_unit) item_load<type, NT>(stage, ahead, a.n_block, lane);
            mu_cp_async_commit();
            walk_on(&ahead, PRODUCERS, n_item, a, entry, n_unit);
        }
    }
    mu_grid_wait();
    vectors_load<type>(a, reinterpret_cast<uint4 *>(shared + map.words),
                       reinterpret_cast<uint32_t *>(shared + map.factors));
    __syncthreads();
    if (warp < PRODUCERS)
        produce<type, NT>(a, shared, map, ahead, n_item, n_unit, warp, lane);
    else
        chain<type, NT>(a, shared, map, n_item, n_unit, warp - PRODUCERS, lane);
}

/* ---- the host's side ---- */

template <uint32_t type> struct launch {
    template <int NT> static bool of(struct mu_device *d, const struct matvec_args &a)
    {
        size_t bytes = (size_t)shared_map_of<type, NT>(a.n_vec, a.n_block, a.n_expert, a.n_place).bytes;
        int n_per_sm = item_of<type, NT>::BLOCKS_PER_SM, n_grid;
        if (bytes + SHARED_OWN > d->shared_max) return false;
        while (n_per_sm > 1 && (size_t)n_per_sm * (bytes + 1024 + SHARED_OWN) > d->shared_max + 1024) n_per_sm--;
        n_grid = d->n_sm * n_per_sm;
        if (!a.n_expert && a.n_unit < n_grid) n_grid = a.n_unit;
        mu_allow_shared(d, "a product with few vectors", matvec_kernel<type, NT>, bytes);
        mu_launch_early(d, "a product with few vectors", matvec_kernel<type, NT>, dim3((unsigned)n_grid),
                        dim3(32 * (unsigned)item_of<type, NT>::WARPS), bytes, a);
        return true;
    }
    /* step vectors at once, all with the same kernel. false: too many for shared memory, nothing was queued. */
    static bool slices(struct mu_device *d, const struct matvec_args &all, int n_column, int step)
    {
        for (int first = 0; first < n_column; first += step) {
            struct matvec_args a = all;
            size_t at = (size_t)first * (size_t)a.n_block;
            if (!a.n_expert) {
                a.first = first;
                a.n_vec = n_column - first < step ? n_column - first : step;
                a.q += 32 * at, a.s += at, a.sum += 2 * at;
            }
            bool fits = step == 1 ? of<1>(d, a) : step == 2 ? of<2>(d, a) : step <= 4 ? of<4>(d, a) : of<8>(d, a);
            if (!fits) return false; /* the first one is the largest */
        }
        return true;
    }
    static void run(struct mu_device *d, struct matvec_args *a, int n_column, bool *fits)
    {
        a->group_bytes = mu_layout_group_bytes<type>(a->n_block * 32);
        *fits = slices(d, *a, n_column, n_column);
        /* Reading the weights twice is still faster than what many vectors are for. */
        for (int step = 4; !*fits && !a->n_expert && step > 0; step /= 2)
            if (step < n_column) *fits = slices(d, *a, n_column, step);
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
    a.q = x->q, a.s = x->s, a.sum = x->sum, a.meetings = d->meetings;
    if (experts) {
        if (experts->by_place) n_column /= experts->n_used; /* a token has an expert once at most */
        a.n_expert = experts->n_expert, a.n_used = experts->n_used, a.n_place = n_column * experts->n_used;
        a.m_bytes = experts->m_bytes, a.up_bytes = experts->up_bytes;
        a.begin = experts->begin, a.place = experts->place, a.by_place = experts->by_place;
    }
    /* Tiles read Q8_0 faster from 5 vectors on: a layer of 8B with 8 of them takes 92 µs on an H200, 136 here. Q4_K is even. */
    if (n_column > (job[0].m->type == MU_Q8_0 ? MU_MATVEC_MOST / 2 : MU_MATVEC_MOST)) return false;
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
        form_after[j] = n > MU_MEETINGS / 4 - n_meeting; /* up to four chains */
        if (form_after[j])
            to->e.form.q = NULL;
        else
            to->meet0 = n_meeting, n_meeting += n;
    }
    mu_layout_call<launch>(job[0].m->type, d, &a, n_column, &fits);
    for (int j = 0; fits && j < n_job; j++) {
        struct mu_act_to to = job[j].form;
        to.f32 = NULL;
        to.bf16 = NULL;
        if (form_after[j])
            mu_cuda_form(d, job[j].out, job[j].stride, experts ? a.n_place : a.n_vec, job[j].m->n_row, &to);
    }
    return fits;
}
