/* Machine instructions that CUDA C++ has no words for, a function each: every `asm` of the plugin is here. The
 * emulation has its own of these in tests/stubs/cuda/ptx_emulated.h; what is added here is added there.
 *
 * Sources: the PTX ISA, sections "Matrix Fragments for mma.m16n8k16 with integer type", "… m16n8k32", "ldmatrix",
 * "cp.async", "griddepcontrol", "cvt". What needs all lanes of a warp says so; all pointers are generic ones. */
#ifndef MU_KERNELS_CUDA_PTX_H
#define MU_KERNELS_CUDA_PTX_H

#include <cuda_runtime.h>
#include <stdint.h>

#ifdef MU_EMULATED_CUDA
#include <ptx_emulated.h> /* beside the emulated cuda_runtime.h */
#else

#define MU_PTX static __device__ __forceinline__

MU_PTX uint32_t mu_ptx_shared(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* ---- products on the tensor cores: d = a·b + c, exact in int32 (wraps) ----
 *
 * Whole warps. a [16][32] and b [32][8] of int8, d and c [16][8] of int32 are spread over the lanes; with g = lane / 4,
 * t = lane % 4, and four values in a register from its lowest byte up:
 *
 *   a[0] row g,     columns 4t … 4t+3          b[0] rows 4t … 4t+3,       column g
 *   a[1] row g + 8, columns 4t … 4t+3          b[1] rows 16+4t … 16+4t+3, column g
 *   a[2] row g,     columns 16+4t … 16+4t+3    c[0], c[1] row g,     columns 2t, 2t+1
 *   a[3] row g + 8, columns 16+4t … 16+4t+3    c[2], c[3] row g + 8, columns 2t, 2t+1
 *
 * So with b's columns in memory as rows of 32 bytes, as a's are, register i of lane (g, t) is 32-bit word t of half i
 * of row g. d and c may be the same. */
MU_PTX void mu_mma_s8_k32(int d[4], const uint32_t a[4], const uint32_t b[2], const int c[4])
{
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%10,%11,%12,%13};"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(c[0]), "r"(c[1]), "r"(c[2]),
                   "r"(c[3]));
}

/* The same of a [16][16], b [16][8]: registers a[0], a[1] and b[0] of the above. */
MU_PTX void mu_mma_s8_k16(int d[4], const uint32_t a[2], uint32_t b, const int c[4])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%8,%9,%10};"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}

/* bf16 to f32: a [16][16], b [16][8], two values in a register, the lower column (of b: row) in its lower half:
 *
 *   a[0] row g,     columns 2t, 2t+1           b[0] rows 2t, 2t+1,     column g
 *   a[1] row g + 8, columns 2t, 2t+1           b[1] rows 2t+8, 2t+9,   column g
 *   a[2] row g,     columns 2t+8, 2t+9         c as above
 *   a[3] row g + 8, columns 2t+8, 2t+9
 *
 * The order of its sums, and how they round, is the machine's own: only `measure` and rough products use it. */
MU_PTX void mu_mma_bf16_k16(float d[4], const uint32_t a[4], const uint32_t b[2], const float c[4])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%10,%11,%12,%13};"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]),
                   "f"(c[3]));
}

/* The same of f16, for what may be rough. The two values of a register are at columns (of b: rows) 2t, 2t + 1, the lower
 * in the low half; with matrices of 8 columns where int8 has 16:
 *
 *   a[0] row g,     columns 2t, 2t+1           b[0] rows 2t, 2t+1,     column g
 *   a[1] row g + 8, columns 2t, 2t+1           b[1] rows 8+2t, 8+2t+1, column g
 *   a[2] row g,     columns 8+2t, 8+2t+1       c and d as above: packed in pairs, those of two products side by side
 *   a[3] row g + 8, columns 8+2t, 8+2t+1       are the a of a third */
MU_PTX void mu_mma_f16_k16(float d[4], const uint32_t a[4], const uint32_t b[2], const float c[4])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%10,%11,%12,%13};"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]),
                   "f"(c[3]));
}

/* ---- fragments from shared memory ----
 *
 * Whole warps. Four matrices of 8 rows of 16 bytes: lane 8m + i names row i of matrix m (16-byte aligned). r[m] of lane l
 * is the 32-bit word l % 4 of row l / 4 of matrix m. For mma's a (k32) that is: matrices 0 … 3 = rows 0-7 bytes 0-15, rows 8-15 bytes
 * 0-15, rows 0-7 bytes 16-31, rows 8-15 bytes 16-31; for its b: the columns' bytes 0-15, 16-31. */
MU_PTX void mu_ldmatrix_x4(uint32_t r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(mu_ptx_shared(row))
                 : "memory");
}

/* ---- global to shared memory while the thread goes on ----
 *
 * Both sides aligned to the size; n bytes are read (0 … size), the rest of the destination becomes 0. With n 0 nothing
 * is read, but src must still be some address. A thread's copies since its last commit are a group; wait<N> until all
 * but its newest N groups are there, for this thread: others need a barrier after it. The 16-byte form stays out of
 * L1. */
MU_PTX void mu_cp_async16(void *dst_shared, const void *src)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(mu_ptx_shared(dst_shared)), "l"(src) : "memory");
}
MU_PTX void mu_cp_async16(void *dst_shared, const void *src, int n)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(mu_ptx_shared(dst_shared)), "l"(src), "r"(n)
                 : "memory");
}
MU_PTX void mu_cp_async4(void *dst_shared, const void *src, int n = 4)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(mu_ptx_shared(dst_shared)), "l"(src), "r"(n)
                 : "memory");
}
MU_PTX void mu_cp_async_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int N> MU_PTX void mu_cp_async_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/* ---- reads of memory that is read once and does not change while the kernel runs; aligned to their size ---- */

MU_PTX uint4 mu_ld_stream16(const void *p)
{
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}
/* n bytes are on their way to the L2 cache; both a multiple of 16. Nothing before sm_90. */
MU_PTX void mu_prefetch_l2(const void *p, size_t n)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"((uint32_t)n) : "memory");
#endif
}

/* ---- barriers of some warps of a block ----
 *
 * id 1 … 15, n threads (whole warps) that come to it, by either function; all lanes of a warp call it. wait: until all
 * are there; what they wrote to shared memory before is then seen. arrive: goes on at once. */
MU_PTX void mu_barrier_wait(int id, int n)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n) : "memory");
}
MU_PTX void mu_barrier_arrive(int id, int n)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(n) : "memory");
}

/* ---- the kernel before and the one after (launched with leave to overlap; nothing before sm_90) ----
 *
 * Until mu_grid_wait has returned, nothing that an earlier kernel writes may be touched, nor anything written that it
 * reads. mu_grid_release: the next kernel may start; it still waits, at its own mu_grid_wait, for the end of this. */
MU_PTX void mu_grid_wait(void)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
MU_PTX void mu_grid_release(void)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
/* Both, for kernels that have nothing to fetch ahead: what is saved is the start. */
MU_PTX void mu_grid_begin(void)
{
    mu_grid_release();
    mu_grid_wait();
}

/* ---- a·b + c rounded once; subnormal inputs, and a subnormal result, are zeros of their sign ---- */

MU_PTX float mu_fma_ftz(float a, float b, float c)
{
    float r;
    asm("fma.rn.ftz.f32 %0, %1, %2, %3;" : "=f"(r) : "f"(a), "f"(b), "f"(c));
    return r;
}

/* ---- half precision, as bits; to nearest, ties to even; NaN becomes 0x7fffffff, 0x7fff ---- */

MU_PTX float mu_half_to_f32(uint16_t h)
{
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}
MU_PTX uint16_t mu_f32_to_half(float f)
{
    uint16_t h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}
/* Two at once: low in the low half. */
MU_PTX uint32_t mu_f32_to_half2(float low, float high)
{
    uint32_t h;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(h) : "f"(high), "f"(low));
    return h;
}

/* ---- 2^x within two units in the last place, for what may be rough: of 0 it is 1, of -inf 0, of a NaN a NaN; subnormal
 * arguments and results are zeros ---- */

MU_PTX float mu_exp2_rough(float x)
{
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

/* ---- bf16, two in a word ---- */

/* Both rounded to nearest, ties to even; NaN becomes a NaN. */
MU_PTX uint32_t mu_bf16_pair(float low, float high)
{
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
/* a·b + c of each half, rounded once. */
MU_PTX uint32_t mu_bf16_pair_fma(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t r;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}

#undef MU_PTX
#endif
#endif
