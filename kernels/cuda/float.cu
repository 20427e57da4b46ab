/* F32, F16, BF16, and the types that C2 has no rule for: packing, and which kernel multiplies (float.h, float_few.h,
 * float_many.h). */
#include "kernels/cuda/float.h"
#include "kernels/cuda/float_few.h"
#include "kernels/cuda/float_many.h"

/* ---- whether fma.rn.ftz is C3's step ---- */

/* Sums around ±2^-126: c = (1 + m·2^-23)·2^-126 and a·b = ∓j·2^-153, which reach from well above the smallest normal number
 * to well below it, with every way of rounding there. One block of 256 threads, j. */
__global__ static void ftz_prove_kernel(void)
{
    bool same = true;
    const int j = threadIdx.x;
    for (int i = 0; i < 32; i++) {
        float c = copysignf((1.0f + (float)(i / 4) * 0x1p-23f) * 0x1p-126f, i & 1 ? -1.0f : 1.0f);
        float a = (float)j * (i & 2 ? 0x1p-76f : -0x1p-76f), b = 0x1p-77f;
        float want = mu_flush_sum(a, b, c, fmaf(a, b, c)), got = mu_fma_ftz(a, b, c);
        same &= __float_as_uint(want) == __float_as_uint(got);
    }
    if (__syncthreads_and(same) && j == 0) mu_ftz_proven = 1;
}

/* ---- packing ---- */

/* A row's cell, from its raw values from the cell's first on, of which n are there. *ok false: one is not finite. */
template <uint32_t type> __device__ static uint4 cell_of(const uint8_t *raw, int n, bool *ok)
{
    uint32_t word[4];
    for (int i = 0; i < 4; i++) {
        if (type == MU_F32) {
            word[i] = i < n ? mu_load_u32(raw + 4 * i) : 0x80000000u;
            *ok &= mu_f32_finite(__uint_as_float(word[i]));
        } else {
            word[i] = 0;
            for (int k = 2 * i; k < 2 * i + 2; k++) {
                uint16_t h = k < n ? (uint16_t)(raw[2 * k] | raw[2 * k + 1] << 8) : (uint16_t)0x8000u;
                *ok &= type == MU_F16 ? mu_f16_finite(h) : mu_bf16_finite(h);
                if (type == MU_BF16 && (h & 0x7f80u) == 0) h &= 0x8000u;
                word[i] |= (uint32_t)h << 16 * (k & 1);
            }
        }
    }
    return make_uint4(word[0], word[1], word[2], word[3]);
}

enum { PACK_THREADS = 256 };

/* Rows [row0, row1), of which those from n_row on are none. A thread has a cell. */
template <uint32_t type>
__global__ static void cells_pack_kernel(uint8_t *data, const uint8_t *raw, int row0, int row1, int n_row, int n_col,
                                         int32_t *bad)
{
    const int n_cell = (n_col + mu_cell_values(type) - 1) / mu_cell_values(type), n = row1 - row0;
    const size_t i = (size_t)blockIdx.x * PACK_THREADS + threadIdx.x, value = type == MU_F32 ? 4 : 2;
    if (i >= (size_t)n * (size_t)n_cell) return;
    const int row = row0 + (int)(i % (size_t)n), cell = (int)(i / (size_t)n), c = cell * mu_cell_values(type);
    bool ok = true;
    uint4 v = cell_of<type>(raw + ((size_t)(row - row0) * (size_t)n_col + (size_t)c) * value,
                            row < n_row ? n_col - c : 0, &ok);
    size_t at = ((size_t)(row / MU_FLOAT_GROUP) * (size_t)n_cell + (size_t)cell) * MU_FLOAT_GROUP;
    reinterpret_cast<uint4 *>(data)[at + (size_t)(row % MU_FLOAT_GROUP)] = v;
    if (!ok) *bad = 1;
}

/* The scale of each of n blocks of a type that is widened. */
__global__ static void scales_check_kernel(const uint8_t *raw, size_t n, uint32_t type, int block_bytes, int32_t *bad)
{
    const size_t i = (size_t)blockIdx.x * PACK_THREADS + threadIdx.x;
    if (i >= n) return;
    const uint8_t *b = raw + i * (size_t)block_bytes;
    uint16_t d;
    switch (type) {
    case MU_IQ1_M: d = mu_iq1_m_d(reinterpret_cast<const struct mu_block_iq1_m *>(b)); break;
    case MU_TQ1_0: d = reinterpret_cast<const struct mu_block_tq1_0 *>(b)->d; break;
    case MU_TQ2_0: d = reinterpret_cast<const struct mu_block_tq2_0 *>(b)->d; break;
    default: d = (uint16_t)(b[0] | b[1] << 8); /* where it comes first */
    }
    if (!mu_f16_finite(d)) *bad = 1;
}

size_t mu_cuda_float_mat_bytes(uint32_t type, int n_row, int n_col)
{
    size_t bytes, n = (size_t)n_row, cell = (size_t)mu_cell_values(type);
    if (cell) {
        n = (n + MU_FLOAT_GROUP - 1) / MU_FLOAT_GROUP * MU_FLOAT_GROUP;
        bytes = ((size_t)n_col + cell - 1) / cell * MU_CELL_BYTES;
    } else if (!mu_type_row_bytes(type, (uint64_t)n_col, &bytes)) {
        return 0;
    }
    return __builtin_mul_overflow(bytes, n, &bytes) ? 0 : bytes;
}

template <uint32_t type>
static void cells_pack(struct mu_device *d, const struct mu_mat *m, int row0, int row1, const void *raw, int32_t *bad)
{
    int end = row1 == m->n_row ? (row1 + MU_FLOAT_GROUP - 1) / MU_FLOAT_GROUP * MU_FLOAT_GROUP : row1;
    size_t n_cell = (size_t)(m->n_col + mu_cell_values(type) - 1) / mu_cell_values(type);
    size_t n = (size_t)(end - row0) * n_cell;
    mu_launch(d, "packing floats", cells_pack_kernel<type>, dim3((unsigned)((n + PACK_THREADS - 1) / PACK_THREADS)),
              dim3(PACK_THREADS), 0, m->data, raw, row0, end, m->n_row, m->n_col, bad);
}

void mu_cuda_float_mat_pack(struct mu_device *d, const struct mu_mat *m, int row0, int row1, const void *raw,
                            int32_t *bad)
{
    const struct mu_type_info *info = mu_type_info(m->type);
    size_t row_bytes;
    switch (m->type) {
    case MU_F32: cells_pack<MU_F32>(d, m, row0, row1, raw, bad); return;
    case MU_F16: cells_pack<MU_F16>(d, m, row0, row1, raw, bad); return;
    case MU_BF16:
        mu_launch(d, "looking at fma.rn.ftz", ftz_prove_kernel, dim3(1), dim3(256), 0);
        cells_pack<MU_BF16>(d, m, row0, row1, raw, bad);
        return;
    default: break;
    }
    if (!mu_type_row_bytes(m->type, (uint64_t)m->n_col, &row_bytes)) return;
    size_t bytes = (size_t)(row1 - row0) * row_bytes, n = bytes / (size_t)info->block_bytes;
    mu_note(
        d,
        cudaMemcpyAsync((uint8_t *)m->data + (size_t)row0 * row_bytes, raw, bytes, cudaMemcpyDeviceToDevice, d->stream),
        "packing weights");
    mu_launch(d, "checking scales", scales_check_kernel, dim3((unsigned)((n + PACK_THREADS - 1) / PACK_THREADS)),
              dim3(PACK_THREADS), 0, raw, n, m->type, info->block_bytes, bad);
}

/* ---- multiplying ---- */

enum {
    FEW_MOST = 16,   /* vectors: beyond, reading a matrix again costs more than multiplying in tiles */
    FEW_RARELY = 32, /* the same, of few rows: tiles would leave multiprocessors without work */
};

/* Tiles of r rows of all jobs, times parts of t vectors. */
static int tiles(const struct mu_float_args *a, int n_each, int r, int t)
{
    int n = 0;
    for (int j = 0; j < a->n_job; j++) n += (a->job[j].e.n_row + r - 1) / r;
    return n * (a->n_expert ? a->n_expert : 1) * ((n_each + t - 1) / t);
}

/* up·x alone, with what belongs to it, to where the job's own epilogue finds it. */
static struct mu_float_args up_alone(const struct mu_float_args *a, int j)
{
    struct mu_float_args one = *a;
    struct mu_epilogue e = {};
    e.out = a->job[j].e.out;
    e.stride = a->job[j].e.stride;
    e.bias = a->job[j].e.up_bias;
    e.lora = a->job[j].e.lora_up;
    e.lora_scale = a->job[j].e.lora_up_scale;
    e.n_row = a->job[j].e.n_row;
    one.n_job = 1;
    one.job[0] = a->job[j];
    one.job[0].m = a->job[j].up;
    one.job[0].m_bytes = a->job[j].up_bytes;
    one.job[0].up = NULL;
    one.job[0].e = e;
    return one;
}

/* Second matrices first, each alone, by f; then no job has one. */
template <typename F> static void second_first(struct mu_float_args *a, F f)
{
    for (int j = 0; j < a->n_job; j++) {
        if (!a->job[j].up) continue;
        struct mu_float_args up = up_alone(a, j);
        f(&up);
        a->job[j].up = NULL;
        a->job[j].e.up_done = true;
    }
}

template <uint32_t type> static void many(struct mu_device *d, struct mu_float_args *a, int n_each)
{
    second_first(a, [=](struct mu_float_args *up) { many<type>(d, up, n_each); });
    if constexpr (type != MU_WIDENED) {
        if (tiles(a, n_each, 128, 128) >= d->n_sm && n_each > 64) {
            mu_many_launch<type, 128, 128>(d, a);
            return;
        }
        if (tiles(a, n_each, 128, 64) < d->n_sm || n_each <= 32) {
            mu_many_launch<type, 64, 32>(d, a);
            return;
        }
    }
    mu_many_launch<type, 128, 64>(d, a);
}

/* Jobs with a second matrix and those without are launches of their own. */
template <uint32_t type> static void few(struct mu_device *d, struct mu_float_args *a)
{
    if (mu_few_shared<type, 2>(a) > d->shared_max)
        second_first(a, [=](struct mu_float_args *up) { mu_few_launch<type, 1>(d, up); });
    for (int second = 0; second < 2; second++) {
        struct mu_float_args some = *a;
        some.n_job = 0;
        for (int j = 0; j < a->n_job; j++)
            if ((a->job[j].up != NULL) == second) some.job[some.n_job++] = a->job[j];
        if (some.n_job && second)
            mu_few_launch<type, 2>(d, &some);
        else if (some.n_job)
            mu_few_launch<type, 1>(d, &some);
    }
}

template <uint32_t type> static void multiply(struct mu_device *d, struct mu_float_args *a)
{
    int n_each = a->n_expert ? a->n_vec / a->n_expert : a->n_vec; /* vectors that a matrix meets, about */
    if (n_each <= FEW_MOST || (n_each <= FEW_RARELY && tiles(a, n_each, 64, 32) < d->n_sm))
        few<type>(d, a);
    else
        many<type>(d, a, n_each);
}

void mu_cuda_float(struct mu_device *d, const struct mu_device_job *job, int n_job, const struct mu_act *x,
                   const struct mu_device_experts *experts)
{
    struct mu_float_args a = {};
    a.n_job = n_job;
    a.n_col = x->n_col;
    a.n_vec = x->n_tok;
    a.f32 = x->f32;
    a.bf16 = x->bf16;
    bool bf16 = job[0].m->type == MU_BF16;
    a.quads = x->n_col % 4 == 0 && mu_aligned(bf16 ? (const void *)x->bf16 : x->f32, bf16 ? 8 : 16);
    if (experts) {
        a.n_expert = experts->n_expert;
        a.n_used = experts->n_used;
        a.by_place = experts->by_place;
        a.begin = experts->begin;
        a.place = experts->place;
        if (!experts->by_place) a.n_vec *= experts->n_used;
    }
    a.type = job[0].m->type;
    if (!mu_cell_values(a.type) && !mu_type_row_bytes(a.type, (uint64_t)x->n_col, &a.row_bytes)) return;
    for (int j = 0; j < n_job; j++) {
        const struct mu_mat *up = mu_epilogue_second(&job[j]);
        a.job[j].m = (const uint8_t *)job[j].m->data;
        a.job[j].up = up ? (const uint8_t *)up->data : NULL;
        a.job[j].m_bytes = experts ? experts->m_bytes : 0;
        a.job[j].up_bytes = experts ? experts->up_bytes : 0;
        a.job[j].e = mu_epilogue_of(&job[j]);
    }
    switch (a.type) {
    case MU_F32: multiply<MU_F32>(d, &a); break;
    case MU_F16: multiply<MU_F16>(d, &a); break;
    case MU_BF16: multiply<MU_BF16>(d, &a); break;
    default: multiply<MU_WIDENED>(d, &a);
    }
}
