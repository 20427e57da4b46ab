/* Matrices of floats on a GPU (C3), and of the types that C2 has no rule for: how they lie, and one step of a product.
 *
 * C3 is one chain of fmafs for a row and a vector, columns ascending, and no other order will do. So the work can be
 * spread over rows and vectors only, and a chain of n columns lasts n latencies of an fmaf. Lanes are rows: rows go in
 * groups of 32, a row's columns in cells of 16 bytes (8 columns, of F32 4), and
 *
 *   matrix   groups ⌈n_row/32⌉ × cells ⌈n_col/8⌉ × [32 rows] × 16 bytes
 *
 * so that a warp reads a cell of its rows as 512 bytes without a gap, from global as from shared memory. Beyond the last
 * column stands -0, whose product with +0 leaves every sum as it is; beyond the last row, too. BF16's subnormal weights
 * are zeros of their sign, as C3 would take them.
 *
 * The types without a rule keep the file's rows; eight.h widens them, to cells of F32, when they are multiplied with. */
#ifndef MU_KERNELS_CUDA_FLOAT_H
#define MU_KERNELS_CUDA_FLOAT_H

#include "kernels/cuda/cells.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/epilogue.h"
#include "kernels/cuda/form.h"
#include "kernels/cuda/ptx.h"
#include "kernels/eight.h"

/* Stands for all types that are widened, as a template's type: which it is, a kernel looks up. */
enum { MU_WIDENED = MU_TYPE_LIMIT };

/* As kernels and shared memory see them: what is widened becomes F32. */
__host__ __device__ constexpr uint32_t mu_cell_type(uint32_t type)
{
    return mu_cell_values(type) ? type : (uint32_t)MU_F32;
}

template <uint32_t type> __device__ static inline void mu_cell_widen(uint4 cell, float (&w)[mu_cell_values(type)])
{
    const uint32_t word[4] = {cell.x, cell.y, cell.z, cell.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if constexpr (type == MU_F32) {
            w[i] = __uint_as_float(word[i]);
        } else if constexpr (type == MU_F16) {
            w[2 * i] = mu_half_to_f32((uint16_t)word[i]);
            w[2 * i + 1] = mu_half_to_f32((uint16_t)(word[i] >> 16));
        } else {
            w[2 * i] = __uint_as_float(word[i] << 16);
            w[2 * i + 1] = __uint_as_float(word[i] & 0xffff0000u);
        }
    }
}

/* Values 8i … 8i+7 of a row of a type that is widened. */
__device__ static inline void mu_eight_widen(uint32_t type, const uint8_t *row, int i, float (&w)[8])
{
    const int block = i / 32;
    i %= 32;
    switch (type) {
    case MU_TQ1_0: mu_eight_tq1_0(reinterpret_cast<const mu_block_tq1_0 *>(row) + block, i, w); break;
    case MU_TQ2_0: mu_eight_tq2_0(reinterpret_cast<const mu_block_tq2_0 *>(row) + block, i, w); break;
    case MU_IQ2_XXS: mu_eight_iq2_xxs(reinterpret_cast<const mu_block_iq2_xxs *>(row) + block, i, w); break;
    case MU_IQ2_XS: mu_eight_iq2_xs(reinterpret_cast<const mu_block_iq2_xs *>(row) + block, i, w); break;
    case MU_IQ2_S: mu_eight_iq2_s(reinterpret_cast<const mu_block_iq2_s *>(row) + block, i, w); break;
    case MU_IQ3_XXS: mu_eight_iq3_xxs(reinterpret_cast<const mu_block_iq3_xxs *>(row) + block, i, w); break;
    case MU_IQ3_S: mu_eight_iq3_s(reinterpret_cast<const mu_block_iq3_s *>(row) + block, i, w); break;
    case MU_IQ1_S: mu_eight_iq1_s(reinterpret_cast<const mu_block_iq1_s *>(row) + block, i, w); break;
    default: mu_eight_iq1_m(reinterpret_cast<const mu_block_iq1_m *>(row) + block, i, w);
    }
}

/* ---- one step ----
 *
 * BF16's steps flush: a result that is tiny after rounding to 24 bits (with an unbounded exponent) is a zero of its
 * sign (kernels/ref/matmul.c). The machine's fma.rn.ftz flushes too, but its description does not say whether it judges
 * after rounding, or before. They can differ only where the result is 2^-126 or zero. So the device tries itself, when
 * weights are packed (float.cu), and until it has proven that it is C3's step such results are looked at again, which
 * is slow. */
enum mu_float_step { MU_STEP_PLAIN, MU_STEP_FLUSH, MU_STEP_FTZ };
__device__ static int mu_ftz_proven;

__host__ __device__ static inline float mu_flush(float x)
{
    return fabsf(x) < 0x1p-126f ? copysignf(0.0f, x) : x;
}

/* r = fmaf(a, b, c), of flushed values, flushed. The sum in double is exact enough to tell (ref/matmul.c). Rare, and not
 * inlined: nor is what follows a product below, of which a thread has 64. */
__device__ __attribute__((noinline)) static float mu_flush_sum(float a, float b, float c, float r)
{
    if (fabsf(r) == 0x1p-126f && fabs((double)a * (double)b + (double)c) < 0x1p-126 - 0x1p-151)
        return copysignf(0.0f, r);
    return mu_flush(r);
}

template <enum mu_float_step step> __device__ static inline float mu_float_add(float a, float b, float c)
{
    if constexpr (step == MU_STEP_FTZ) return mu_fma_ftz(a, b, c);
    float r = fmaf(a, b, c);
    if (step == MU_STEP_FLUSH && fabsf(r) <= 0x1p-126f) r = mu_flush_sum(a, b, c, r);
    return r;
}

/* ---- a launch ---- */

struct mu_float_job {
    const uint8_t *m, *up;    /* up NULL: none, or done before (epilogue.h) */
    size_t m_bytes, up_bytes; /* from one expert to the next */
    int first;                /* of the grid's y */
    struct mu_epilogue e;
};

struct mu_float_args {
    struct mu_float_job job[MU_DEVICE_MAX_JOBS];
    int n_job, n_col, n_vec; /* vectors: of the outputs */
    uint32_t type;           /* the matrices', and bytes of their rows, where they are widened */
    size_t row_bytes;
    const float *f32; /* inputs, of BF16 the other */
    const uint16_t *bf16;
    bool quads; /* four inputs at a time: rows begin and end at multiples of four, aligned so */
    int n_expert, n_used;
    bool by_place;
    const int32_t *begin, *place;
};

/* What a thread block of the grid's column x works on: up to `per` vectors of one expert (or none: 0). */
struct mu_float_part {
    int expert, first, n;
};

/* x's part. Experts' places are cut into parts in order; the grid has as many columns as there can be parts, so the last
 * ones may have none. Whole warps, each for itself. */
__device__ static inline struct mu_float_part mu_float_part_of(const struct mu_float_args &a, int x, int per)
{
    struct mu_float_part p = {0, x * per, a.n_vec - x * per};
    if (a.n_expert) {
        p.n = 0;
        for (int e0 = 0, before = 0; e0 < a.n_expert; e0 += 32) {
            int lane = threadIdx.x % 32, e = e0 + lane, in = e < a.n_expert, begin = in ? a.begin[e] : 0;
            int n = in ? a.begin[e + 1] - begin : 0, part = (n + per - 1) / per, sum = part;
            for (int step = 1; step < 32; step *= 2) {
                int other = __shfl_up_sync(0xffffffffu, sum, step);
                if (lane >= step) sum += other;
            }
            unsigned after = __ballot_sync(0xffffffffu, before + sum > x);
            int hit = after ? __ffs((int)after) - 1 : 0, at = x - (before + sum - part);
            int first = __shfl_sync(0xffffffffu, begin + at * per, hit),
                left = __shfl_sync(0xffffffffu, n - at * per, hit);
            if (after && p.n == 0) p.expert = e0 + hit, p.first = first, p.n = left;
            before += __shfl_sync(0xffffffffu, sum, 31);
            if (after) break; /* the whole warp */
        }
    }
    if (p.n > per) p.n = per;
    return p;
}

static inline unsigned mu_float_parts(const struct mu_float_args *a, int per)
{
    int n = (a->n_vec + per - 1) / per;
    if (!a->n_expert) return (unsigned)n;
    return (unsigned)(a->n_vec / per + (a->n_vec < a->n_expert ? a->n_vec : a->n_expert));
}

/* The input of output v. */
__device__ static inline size_t mu_float_input(const struct mu_float_args &a, int v)
{
    return (size_t)(a.n_expert && !a.by_place ? a.place[v] / a.n_used : v);
}

/* The job that the grid's row y belongs to. */
__device__ static inline int mu_float_job_of(const struct mu_float_args &a, int y)
{
    int j = 0;
    while (j + 1 < a.n_job && y >= a.job[j + 1].first) j++;
    return j;
}

/* N inputs of vector `input` from column c on, widened; zeros beyond the last column. */
template <uint32_t type, int N>
__device__ static inline void mu_float_inputs(const struct mu_float_args &a, size_t input, int c, float (&x)[N])
{
    size_t at = input * (size_t)a.n_col + (size_t)c;
    static_assert(N % 4 == 0, "whole quads");
#pragma unroll
    for (int i = 0; i < N; i += 4) {
        if (a.quads) {
            bool in = c + i < a.n_col;
            if constexpr (type == MU_BF16) {
                uint2 v = in ? *reinterpret_cast<const uint2 *>(a.bf16 + at + i) : make_uint2(0, 0);
                x[i] = __uint_as_float(v.x << 16), x[i + 1] = __uint_as_float(v.x & 0xffff0000u);
                x[i + 2] = __uint_as_float(v.y << 16), x[i + 3] = __uint_as_float(v.y & 0xffff0000u);
            } else {
                float4 v = in ? *reinterpret_cast<const float4 *>(a.f32 + at + i) : make_float4(0, 0, 0, 0);
                x[i] = v.x, x[i + 1] = v.y, x[i + 2] = v.z, x[i + 3] = v.w;
            }
        } else {
            for (int k = i; k < i + 4; k++) {
                bool in = c + k < a.n_col;
                if constexpr (type == MU_BF16)
                    x[k] = in ? mu_bf16_to_f32(a.bf16[at + k]) : 0.0f;
                else
                    x[k] = in ? a.f32[at + k] : 0.0f;
            }
        }
    }
    for (int i = 0; type == MU_BF16 && i < N; i++) x[i] = mu_flush(x[i]);
}

/* ---- what follows ---- */

/* N products of rows row … of output v, finished and stored, with form's int8: the lanes of a warp have neighbouring rows,
 * 32 of them a block. Whole warps; `in`: v is there. */
template <int N> struct mu_products {
    float y[N];
};
template <int N>
__device__ __attribute__((noinline)) static void mu_float_finish(const struct mu_epilogue &e, int row, size_t v,
                                                                 int expert, bool in, struct mu_products<N> m, float up)
{
    for (int i = 0; i < N; i++) {
        if (!in || row + i >= e.n_row) continue;
        m.y[i] = mu_epilogue_value(e, row + i, v, expert, m.y[i], up);
        mu_epilogue_store(e, row + i, v, m.y[i]);
    }
    if (e.form.q)
        mu_store_q8<N>(e.form.q, e.form.s, e.form.sum, v * (size_t)e.n_row + (size_t)row, in && row < e.n_row, m.y);
}

#endif
