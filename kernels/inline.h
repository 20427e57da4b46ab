/* One source for the processor and the accelerator: functions and tables that device code shares with the reference.
 *
 *   MU_DEVICE_INLINE   a function in a header: `static inline`, and for both sides where nvcc compiles it
 *   MU_DEVICE_TABLE    a constant table in a header or a file that is included; under nvcc it lies in the device's memory,
 *                      and only kernels may read it
 *
 * Headers that use them are C11 and C++17. */
#ifndef MU_KERNELS_INLINE_H
#define MU_KERNELS_INLINE_H

#ifdef __CUDACC__
#define MU_DEVICE_INLINE static __host__ __device__ inline
#define MU_DEVICE_TABLE  static __device__ const
#else
#define MU_DEVICE_INLINE static inline
#define MU_DEVICE_TABLE  static const
#endif

#endif
