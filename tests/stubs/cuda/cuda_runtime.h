/* CUDA as kernels/cuda sees it, on the processor: types, built-in functions, the runtime API. In place of NVIDIA's
 * header of this name, so that g++ compiles the .cu files and their kernels run anywhere (emulation.h says how).
 *
 * What it finds that a GPU would not, or not so clearly: memory that was never written (new device memory and the
 * shared memory of every block hold 0xff…: NaN), writes past an allocation (red zones, looked at when it is freed;
 * under AddressSanitizer at once), the host touching device memory (a crash), barriers that not all threads reach.
 * What it cannot find: a kernel that reads the host's memory, too many registers, misaligned vectors (build with UBSan).
 *
 * Settings, read when first needed:
 *   MUSTER_CUDA_EMULATED_DEVICES=n      1; 0: none
 *   MUSTER_CUDA_EMULATED_MEMORY=bytes   of each device; 1 GiB
 *   MUSTER_CUDA_EMULATED_CAPABILITY=90  with the shared memory that blocks may have there
 *   MUSTER_CUDA_EMULATED_DRIVER=12040   version of the driver, 0: none; default 13000
 * and while it runs:
 *   MUSTER_CUDA_EMULATED_LATE=1         the queue runs only when it is waited for or looked at
 *   MUSTER_CUDA_EMULATED_STUCK=1        the queue does not get on
 *   MUSTER_CUDA_EMULATED_EARLY=1        kernels that may start before the end of the one before do; slow
 *   MUSTER_CUDA_EMULATED_FAULT=1        the next kernel fails, as one does that touches a wrong address */
#ifndef MU_TESTS_STUBS_CUDA_RUNTIME_H
#define MU_TESTS_STUBS_CUDA_RUNTIME_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <functional>
#include <tuple>

#include "emulation.h"

#define MU_EMULATED_CUDA 1

/* ---- words of the language ---- */

#define __global__
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n)    __attribute__((aligned(n)))
/* Thread-local: all such variables of the library then lie in one piece, which is overwritten before each block. */
#define __shared__ static __thread

#define MU_SHARED(type, name) type *name = reinterpret_cast<type *>(mu_emulated_shared)

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
static constexpr int warpSize = 32;
#define threadIdx (mu_emulated_self->thread_idx)
#define blockIdx  mu_emulated_block_idx
#define blockDim  mu_emulated_block_dim
#define gridDim   mu_emulated_grid_dim

#define MU_VECTOR1(name, type, align)            \
    struct __align__(align) name##1              \
    {                                            \
        type x;                                  \
    };                                           \
    static inline name##1 make_##name##1(type x) \
    {                                            \
        return {x};                              \
    }
#define MU_VECTOR2(name, type, align)                    \
    struct __align__(align) name##2                      \
    {                                                    \
        type x, y;                                       \
    };                                                   \
    static inline name##2 make_##name##2(type x, type y) \
    {                                                    \
        return {x, y};                                   \
    }
#define MU_VECTOR3(name, type, align)                            \
    struct __align__(align) name##3                              \
    {                                                            \
        type x, y, z;                                            \
    };                                                           \
    static inline name##3 make_##name##3(type x, type y, type z) \
    {                                                            \
        return {x, y, z};                                        \
    }
#define MU_VECTOR4(name, type, align)                                    \
    struct __align__(align) name##4                                      \
    {                                                                    \
        type x, y, z, w;                                                 \
    };                                                                   \
    static inline name##4 make_##name##4(type x, type y, type z, type w) \
    {                                                                    \
        return {x, y, z, w};                                             \
    }
#define MU_VECTORS(name, type, a1, a2, a3, a4) \
    MU_VECTOR1(name, type, a1)                 \
    MU_VECTOR2(name, type, a2)                 \
    MU_VECTOR3(name, type, a3)                 \
    MU_VECTOR4(name, type, a4)
MU_VECTORS(char, signed char, 1, 2, 1, 4)
MU_VECTORS(uchar, unsigned char, 1, 2, 1, 4)
MU_VECTORS(short, short, 2, 4, 2, 8)
MU_VECTORS(ushort, unsigned short, 2, 4, 2, 8)
MU_VECTORS(int, int, 4, 8, 4, 16)
MU_VECTORS(float, float, 4, 8, 4, 16)
MU_VECTOR1(uint, unsigned, 4)
MU_VECTOR2(uint, unsigned, 8)
MU_VECTOR4(uint, unsigned, 16)
static inline uint3 make_uint3(unsigned x, unsigned y, unsigned z)
{
    return {x, y, z};
}
MU_VECTOR1(longlong, long long, 8)
MU_VECTOR2(longlong, long long, 16)
MU_VECTOR1(ulonglong, unsigned long long, 8)
MU_VECTOR2(ulonglong, unsigned long long, 16)
MU_VECTOR1(double, double, 8)
MU_VECTOR2(double, double, 16)

/* ---- barriers and collectives ---- */

static inline void __syncthreads(void)
{
    mu_emulated_barrier(0);
}
static inline int __syncthreads_or(int p)
{
    return mu_emulated_barrier(p).any;
}
static inline int __syncthreads_and(int p)
{
    return mu_emulated_barrier(p).all;
}
static inline int __syncthreads_count(int p)
{
    return mu_emulated_barrier(p).count;
}
static inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE())
{
    mu_emulated_collective(mask, "__syncwarp", line, nullptr, 0);
}

static inline int mu_emulated_lane(void)
{
    return mu_emulated_self->linear & 31;
}
template <typename T> static inline T mu_emulated_of(const mu_emulated_slot *slots, int lane)
{
    T v;
    memcpy(&v, slots[lane].bytes, sizeof v);
    return v;
}
template <typename T>
static inline T __shfl_sync(unsigned mask, T v, int src, int width = 32, int line = __builtin_LINE())
{
    const mu_emulated_slot *s = mu_emulated_collective(mask, "__shfl_sync", line, &v, sizeof v);
    int lane = mu_emulated_lane();
    return mu_emulated_of<T>(s, (lane & ~(width - 1)) | (src & (width - 1)));
}
template <typename T>
static inline T __shfl_xor_sync(unsigned mask, T v, int x, int width = 32, int line = __builtin_LINE())
{
    const mu_emulated_slot *s = mu_emulated_collective(mask, "__shfl_xor_sync", line, &v, sizeof v);
    int lane = mu_emulated_lane(), from = lane ^ x;
    return mu_emulated_of<T>(s, from <= (lane | (width - 1)) ? from : lane);
}
template <typename T>
static inline T __shfl_up_sync(unsigned mask, T v, unsigned n, int width = 32, int line = __builtin_LINE())
{
    const mu_emulated_slot *s = mu_emulated_collective(mask, "__shfl_up_sync", line, &v, sizeof v);
    int lane = mu_emulated_lane(), from = lane - (int)n;
    return mu_emulated_of<T>(s, from >= (lane & ~(width - 1)) ? from : lane);
}
template <typename T>
static inline T __shfl_down_sync(unsigned mask, T v, unsigned n, int width = 32, int line = __builtin_LINE())
{
    const mu_emulated_slot *s = mu_emulated_collective(mask, "__shfl_down_sync", line, &v, sizeof v);
    int lane = mu_emulated_lane(), from = lane + (int)n;
    return mu_emulated_of<T>(s, from <= (lane | (width - 1)) ? from : lane);
}
static inline unsigned mu_emulated_ballot(unsigned mask, const char *op, int p, int line)
{
    const mu_emulated_slot *s = mu_emulated_collective(mask, op, line, &p, sizeof p);
    unsigned bits = 0;
    for (int i = 0; i < 32; i++) bits |= (unsigned)(mu_emulated_of<int>(s, i) != 0) << i;
    return bits;
}
static inline unsigned __ballot_sync(unsigned mask, int p, int line = __builtin_LINE())
{
    return mu_emulated_ballot(mask, "__ballot_sync", p, line);
}
static inline int __any_sync(unsigned mask, int p, int line = __builtin_LINE())
{
    return mu_emulated_ballot(mask, "__any_sync", p, line) != 0;
}
static inline int __all_sync(unsigned mask, int p, int line = __builtin_LINE())
{
    return mu_emulated_ballot(mask, "__all_sync", p, line) == 0xffffffffu;
}
template <typename T, typename F>
static inline T mu_emulated_reduce(unsigned mask, const char *op, T v, int line, F combine)
{
    const mu_emulated_slot *s = mu_emulated_collective(mask, op, line, &v, sizeof v);
    T sum = mu_emulated_of<T>(s, 0);
    for (int i = 1; i < 32; i++) sum = combine(sum, mu_emulated_of<T>(s, i));
    return sum;
}
#define MU_REDUCE(name, type, expr)                                                           \
    static inline type name(unsigned mask, type v, int line = __builtin_LINE())               \
    {                                                                                         \
        return mu_emulated_reduce(mask, #name, v, line, [](type a, type b) { return expr; }); \
    }
MU_REDUCE(__reduce_add_sync, unsigned, a + b)
MU_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
MU_REDUCE(__reduce_max_sync, unsigned, a > b ? a : b)
MU_REDUCE(__reduce_and_sync, unsigned, a &b)
MU_REDUCE(__reduce_or_sync, unsigned, a | b)
MU_REDUCE(__reduce_xor_sync, unsigned, a ^ b)
MU_REDUCE(__reduce_add_sync, int, (int)((unsigned)a + (unsigned)b))
MU_REDUCE(__reduce_min_sync, int, a < b ? a : b)
MU_REDUCE(__reduce_max_sync, int, a > b ? a : b)
#undef MU_REDUCE

/* ---- atomics: one fiber runs at a time ---- */

#define MU_ATOMIC(name, type, expr)          \
    static inline type name(type *p, type v) \
    {                                        \
        type old = *p;                       \
        *p = expr;                           \
        return old;                          \
    }
#define MU_ATOMICS(type)                                   \
    MU_ATOMIC(atomicMax, type, old > v ? old : v)          \
    MU_ATOMIC(atomicMin, type, old < v ? old : v)          \
    MU_ATOMIC(atomicExch, type, v)                         \
    MU_ATOMIC(atomicOr, type, old | v)                     \
    MU_ATOMIC(atomicAnd, type, old &v)                     \
    MU_ATOMIC(atomicXor, type, old ^ v)                    \
    static inline type atomicCAS(type *p, type is, type v) \
    {                                                      \
        type old = *p;                                     \
        if (old == is) *p = v;                             \
        return old;                                        \
    }
MU_ATOMICS(int)
MU_ATOMICS(unsigned)
MU_ATOMICS(unsigned long long)
MU_ATOMIC(atomicAdd, int, (int)((unsigned)old + (unsigned)v))
MU_ATOMIC(atomicSub, int, (int)((unsigned)old - (unsigned)v))
MU_ATOMIC(atomicAdd, unsigned, old + v)
MU_ATOMIC(atomicSub, unsigned, old - v)
MU_ATOMIC(atomicAdd, unsigned long long, old + v)
MU_ATOMIC(atomicAdd, float, old + v)
MU_ATOMIC(atomicExch, float, v)
static inline unsigned atomicInc(unsigned *p, unsigned most)
{
    unsigned old = *p;
    *p = old >= most ? 0 : old + 1;
    return old;
}
#undef MU_ATOMICS
#undef MU_ATOMIC

static inline void __threadfence(void) {}
static inline void __threadfence_block(void) {}
static inline void __threadfence_system(void) {}
static inline void __nanosleep(unsigned ns)
{
    (void)ns;
}
[[noreturn]] static inline void __trap(void)
{
    mu_emulated_die("__trap()");
}
static inline long long clock64(void)
{
    static long long now;
    return now += 100;
}

/* ---- memory ---- */

template <typename T> static inline T __ldg(const T *p)
{
    return *p;
}
template <typename T> static inline T __ldcs(const T *p)
{
    return *p;
}
template <typename T> static inline T __ldca(const T *p)
{
    return *p;
}
template <typename T> static inline T __ldcg(const T *p)
{
    return *p;
}
template <typename T> static inline T __ldcv(const T *p)
{
    return *(const volatile T *)p;
}
template <typename T> static inline void __stcs(T *p, T v)
{
    *p = v;
}
template <typename T> static inline void __stcg(T *p, T v)
{
    *p = v;
}
template <typename T> static inline void __stwb(T *p, T v)
{
    *p = v;
}

/* ---- integers and bits ---- */

static inline int __dp4a(int a, int b, int c)
{
    unsigned sum = (unsigned)c;
    for (int i = 0; i < 4; i++) sum += (unsigned)((int8_t)(a >> (8 * i)) * (int8_t)(b >> (8 * i)));
    return (int)sum;
}
static inline unsigned __dp4a(unsigned a, unsigned b, unsigned c)
{
    for (int i = 0; i < 4; i++) c += (unsigned)((uint8_t)(a >> (8 * i)) * (uint8_t)(b >> (8 * i)));
    return c;
}
static inline int __popc(unsigned x)
{
    return __builtin_popcount(x);
}
static inline int __popcll(unsigned long long x)
{
    return __builtin_popcountll(x);
}
static inline int __clz(int x)
{
    return x ? __builtin_clz((unsigned)x) : 32;
}
static inline int __clzll(long long x)
{
    return x ? __builtin_clzll((unsigned long long)x) : 64;
}
static inline int __ffs(int x)
{
    return __builtin_ffs(x);
}
static inline int __ffsll(long long x)
{
    return __builtin_ffsll(x);
}
static inline unsigned __brev(unsigned x)
{
    unsigned r = 0;
    for (int i = 0; i < 32; i++) r |= (x >> i & 1) << (31 - i);
    return r;
}
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned s)
{
    uint64_t both = (uint64_t)b << 32 | a;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) {
        unsigned sel = s >> (4 * i) & 0xf, byte = (unsigned)(both >> (8 * (sel & 7))) & 0xff;
        if (sel & 8) byte = byte & 0x80 ? 0xff : 0;
        r |= byte << (8 * i);
    }
    return r;
}
static inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned n)
{
    return (unsigned)((((uint64_t)hi << 32 | lo) << (n & 31)) >> 32);
}
static inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned n)
{
    return (unsigned)(((uint64_t)hi << 32 | lo) >> (n & 31));
}
static inline unsigned __umulhi(unsigned a, unsigned b)
{
    return (unsigned)((uint64_t)a * b >> 32);
}
static inline int __mulhi(int a, int b)
{
    return (int)((int64_t)a * b >> 32);
}
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b)
{
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
#define MU_VSUB4(name, lane, expr)                       \
    static inline unsigned name(unsigned a, unsigned b)  \
    {                                                    \
        unsigned r = 0;                                  \
        for (int i = 0; i < 32; i += 8) {                \
            lane x = (lane)(a >> i), y = (lane)(b >> i); \
            r |= ((unsigned)(expr)&0xff) << i;           \
        }                                                \
        return r;                                        \
    }
MU_VSUB4(__vsub4, uint8_t, x - y)
MU_VSUB4(__vadd4, uint8_t, x + y)
MU_VSUB4(__vsubss4, int8_t, x - y < -128 ? -128 : x - y > 127 ? 127 : x - y)
MU_VSUB4(__vmaxs4, int8_t, x > y ? x : y)
MU_VSUB4(__vmins4, int8_t, x < y ? x : y)
MU_VSUB4(__vmaxu4, uint8_t, x > y ? x : y)
MU_VSUB4(__vminu4, uint8_t, x < y ? x : y)
MU_VSUB4(__vcmpeq4, uint8_t, x == y ? 0xff : 0)
MU_VSUB4(__vcmpne4, uint8_t, x != y ? 0xff : 0)
#undef MU_VSUB4

#define MU_MINMAX(type)                    \
    static inline type min(type a, type b) \
    {                                      \
        return b < a ? b : a;              \
    }                                      \
    static inline type max(type a, type b) \
    {                                      \
        return a < b ? b : a;              \
    }
MU_MINMAX(int)
MU_MINMAX(unsigned)
MU_MINMAX(long)
MU_MINMAX(unsigned long)
MU_MINMAX(long long)
MU_MINMAX(unsigned long long)
#undef MU_MINMAX
static inline float min(float a, float b)
{
    return fminf(a, b);
}
static inline float max(float a, float b)
{
    return fmaxf(a, b);
}

/* ---- numbers ---- */

template <typename To, typename From> static inline To mu_emulated_bits(From v)
{
    To r;
    static_assert(sizeof r == sizeof v, "a change of type, not of size");
    memcpy(&r, &v, sizeof r);
    return r;
}
static inline int __float_as_int(float x)
{
    return mu_emulated_bits<int>(x);
}
static inline unsigned __float_as_uint(float x)
{
    return mu_emulated_bits<unsigned>(x);
}
static inline float __int_as_float(int x)
{
    return mu_emulated_bits<float>(x);
}
static inline float __uint_as_float(unsigned x)
{
    return mu_emulated_bits<float>(x);
}
static inline long long __double_as_longlong(double x)
{
    return mu_emulated_bits<long long>(x);
}
static inline double __longlong_as_double(long long x)
{
    return mu_emulated_bits<double>(x);
}
static inline float __int2float_rn(int x)
{
    return (float)x;
}
static inline float __uint2float_rn(unsigned x)
{
    return (float)x;
}
/* The device's conversions saturate, and make NaN 0. */
static inline int mu_emulated_to_int(float whole)
{
    if (whole != whole) return 0;
    return whole >= 2147483648.0f ? INT32_MAX : whole < -2147483648.0f ? INT32_MIN : (int)whole;
}
static inline int __float2int_rn(float x)
{
    return mu_emulated_to_int(rintf(x));
}
static inline int __float2int_rz(float x)
{
    return mu_emulated_to_int(truncf(x));
}
static inline int __float2int_rd(float x)
{
    return mu_emulated_to_int(floorf(x));
}
static inline int __float2int_ru(float x)
{
    return mu_emulated_to_int(ceilf(x));
}
static inline float __fmaf_rn(float a, float b, float c)
{
    return fmaf(a, b, c);
}
static inline float __fadd_rn(float a, float b)
{
    return a + b;
}
static inline float __fsub_rn(float a, float b)
{
    return a - b;
}
static inline float __fmul_rn(float a, float b)
{
    return a * b;
}
static inline float __fdiv_rn(float a, float b)
{
    return a / b;
}
static inline float __fdividef(float a, float b)
{
    return a / b;
}
static inline float __frcp_rn(float a)
{
    return 1.0f / a;
}
static inline float __fsqrt_rn(float a)
{
    return sqrtf(a);
}
static inline double __fma_rn(double a, double b, double c)
{
    return fma(a, b, c);
}
static inline double __dadd_rn(double a, double b)
{
    return a + b;
}
static inline double __dmul_rn(double a, double b)
{
    return a * b;
}
static inline double __ddiv_rn(double a, double b)
{
    return a / b;
}
static inline double __dsqrt_rn(double a)
{
    return sqrt(a);
}

/* ---- the runtime API ---- */

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorNotReady = 600,
    cudaErrorIllegalAddress = 700,
    cudaErrorLaunchFailure = 719,
    cudaErrorNotSupported = 801,
    cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorStreamCaptureInvalidated = 901,
    cudaErrorUnknown = 999
};
const char *cudaGetErrorName(cudaError_t e);
const char *cudaGetErrorString(cudaError_t e);
cudaError_t cudaGetLastError(void);
cudaError_t cudaPeekAtLastError(void);

enum { CUDART_VERSION_EMULATED = 13000 };
#define CUDART_VERSION 13000

typedef struct CUstream_st *cudaStream_t;
typedef struct CUevent_st *cudaEvent_t;
typedef struct CUgraph_st *cudaGraph_t;
typedef struct CUgraphExec_st *cudaGraphExec_t;

struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin;
    int major, minor, multiProcessorCount, pciBusID, pciDeviceID, pciDomainID, l2CacheSize, maxThreadsPerBlock;
};
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrL2CacheSize = 38,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9
};
enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault
};
enum cudaStreamCaptureMode {
    cudaStreamCaptureModeGlobal,
    cudaStreamCaptureModeThreadLocal,
    cudaStreamCaptureModeRelaxed
};
enum cudaStreamCaptureStatus {
    cudaStreamCaptureStatusNone,
    cudaStreamCaptureStatusActive,
    cudaStreamCaptureStatusInvalidated
};
enum { cudaStreamDefault = 0, cudaStreamNonBlocking = 1 };
enum { cudaEventDefault = 0, cudaEventBlockingSync = 1, cudaEventDisableTiming = 2 };
enum { cudaHostAllocDefault = 0, cudaHostAllocPortable = 1 };
enum { cudaDeviceScheduleAuto = 0, cudaDeviceScheduleSpin = 1, cudaDeviceScheduleBlockingSync = 4 };

cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaRuntimeGetVersion(int *version);
cudaError_t cudaGetDeviceCount(int *n);
cudaError_t cudaGetDevice(int *index);
cudaError_t cudaSetDevice(int index);
cudaError_t cudaSetDeviceFlags(unsigned flags);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int index);
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attr, int index);
cudaError_t cudaDeviceGetPCIBusId(char *s, int len, int index);
cudaError_t cudaDeviceSynchronize(void);
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total);
cudaError_t cudaMalloc(void **p, size_t bytes);
cudaError_t cudaFree(void *p);
cudaError_t cudaMallocHost(void **p, size_t bytes);
cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void *p);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t s);
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t s);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t s);
cudaError_t cudaStreamSynchronize(cudaStream_t s);
cudaError_t cudaStreamQuery(cudaStream_t s);
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags);
cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g);
cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus *status);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t e);
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s);
cudaError_t cudaEventQuery(cudaEvent_t e);
cudaError_t cudaEventSynchronize(cudaEvent_t e);
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *x, cudaGraph_t g, unsigned long long flags = 0);
cudaError_t cudaGraphUpload(cudaGraphExec_t x, cudaStream_t s);
cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t s);
cudaError_t cudaGraphDestroy(cudaGraph_t g);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t x);
cudaError_t mu_emulated_func_set(const void *func, cudaFuncAttribute attr, int value);
template <typename T> static inline cudaError_t cudaFuncSetAttribute(T *func, cudaFuncAttribute attr, int value)
{
    return mu_emulated_func_set(reinterpret_cast<const void *>(func), attr, value);
}
struct cudaFuncAttributes {
    int ptxVersion, binaryVersion;
};
template <typename T> static inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *a, T *)
{
    *a = {90, 90};
    return cudaSuccess;
}

enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization = 6 };
struct cudaLaunchAttribute {
    cudaLaunchAttributeID id;
    union {
        int programmaticStreamSerializationAllowed;
    } val;
};
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute *attrs;
    unsigned numAttrs;
};
cudaError_t mu_emulated_launch(const cudaLaunchConfig_t *config, const void *kernel, std::function<void()> thread);
template <typename... Params, typename... Args>
static inline cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(Params...), Args... args)
{
    std::tuple<Params...> values(args...);
    return mu_emulated_launch(config, reinterpret_cast<const void *>(kernel),
                              [kernel, values] { std::apply(kernel, values); });
}

#endif
