/* kernels/simd.h's operations with AVX2 and AVX-512. Included by it. */
#ifndef MU_KERNELS_X86_SIMD_H
#define MU_KERNELS_X86_SIMD_H

#if defined(MU_MATH_AVX512)
static inline vf vf_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
static inline void vf_store(float *p, vf x)
{
    _mm512_storeu_ps(p, x);
}
/* Written out, for gcc would broadcast once into a register and use that: on Zen 4 a broadcast of 512 bits takes the
 * pipes of widening and of half the FMAs, as a part of the operand's load it takes none. Zen 5 broadcasts in its two load
 * ports, of which an operand from memory takes one for each FMA (MU_MATH_BROADCASTS: 1.1 to 1.25 times as fast there). */
static inline vf vf_fma_at(const float *a, vf b, vf c)
{
#if defined(MU_MATH_BROADCASTS)
    return _mm512_fmadd_ps(_mm512_set1_ps(*a), b, c);
#else
    __asm__("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(c) : "v"(b), "m"(*a));
    return c;
#endif
}
static inline vf vf_mul_at(const float *a, vf b)
{
    __asm__("vmulps %1%{1to16%}, %0, %0" : "+v"(b) : "m"(*a));
    return b;
}
static inline vm vm_first(int n)
{
    return (__mmask16)((1u << n) - 1);
}
static inline vf vf_load_n(const float *p, int n)
{
    return _mm512_maskz_loadu_ps(vm_first(n), p);
}
static inline void vf_store_n(float *p, int n, vf x)
{
    _mm512_mask_storeu_ps(p, vm_first(n), x);
}
static inline vf vf_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}
static inline vf vf_load_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
static inline vf vf_load_f16_n(const uint16_t *p, int n)
{
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(vm_first(n), p));
}
static inline vf vf_load_i8(const int8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}
static inline vf vf_load_i8_n(const int8_t *p, int n)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(vm_first(n), p)));
}
static inline vi vi_load_u16(const uint16_t *p)
{
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
}
static inline vi vi_shr16(vi a)
{
    return _mm512_srli_epi32(a, 16);
}
static inline bool vm_any(vm m)
{
    return m != 0;
}
static inline int vm_lowest(vm m)
{
    return __builtin_ctz(m);
}
static inline vm vm_all_if(bool yes)
{
    return (__mmask16) - (int)yes;
}
static inline vm vf_eq(vf a, vf b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ);
}
static inline vm vi_eq(vi a, vi b)
{
    return _mm512_cmpeq_epi32_mask(a, b);
}
static inline void f16_store_n(uint16_t *p, int n, vf x)
{
    _mm256_mask_storeu_epi16(p, vm_first(n), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
typedef __m512i vw;
static inline vw vw_set(uint64_t x)
{
    return _mm512_set1_epi64((long long)x);
}
static inline vw vw_load(const uint64_t *p)
{
    return _mm512_loadu_si512(p);
}
static inline void vw_store(uint64_t *p, vw x)
{
    _mm512_storeu_si512(p, x);
}
static inline vw vw_mul(vw a, vw b)
{
    return _mm512_mul_epu32(a, b);
}
static inline vw vw_high(vw a)
{
    return _mm512_srli_epi64(a, 32);
}
static inline vw vw_xor(vw a, vw b)
{
    return _mm512_xor_si512(a, b);
}
#else
static const int32_t vm_first_table[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
static inline __m256i vm_first(int n)
{
    return _mm256_loadu_si256((const __m256i *)(vm_first_table + 8 - n));
}
static inline vf vf_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
static inline void vf_store(float *p, vf x)
{
    _mm256_storeu_ps(p, x);
}
static inline vf vf_load_n(const float *p, int n)
{
    return _mm256_maskload_ps(p, vm_first(n));
}
static inline void vf_store_n(float *p, int n, vf x)
{
    _mm256_maskstore_ps(p, vm_first(n), x);
}
static inline vf vf_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}
static inline vf vf_load_f16(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
static inline vf vf_load_f16_n(const uint16_t *p, int n)
{
    if (n == VF_LANES) return vf_load_f16(p);
    uint16_t part[VF_LANES] = {0};
    memcpy(part, p, (size_t)n * sizeof *p);
    return vf_load_f16(part);
}
static inline vf vf_load_i8(const int8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}
static inline vf vf_load_i8_n(const int8_t *p, int n)
{
    if (n == VF_LANES) return vf_load_i8(p);
    int8_t part[VF_LANES] = {0};
    memcpy(part, p, (size_t)n);
    return vf_load_i8(part);
}
static inline vi vi_load_u16(const uint16_t *p)
{
    return _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
}
static inline vi vi_shr16(vi a)
{
    return _mm256_srli_epi32(a, 16);
}
static inline bool vm_any(vm m)
{
    return _mm256_movemask_ps(m) != 0;
}
static inline int vm_lowest(vm m)
{
    return __builtin_ctz((unsigned)_mm256_movemask_ps(m));
}
static inline vm vm_all_if(bool yes)
{
    return _mm256_castsi256_ps(_mm256_set1_epi32(-(int)yes));
}
static inline vm vf_eq(vf a, vf b)
{
    return _mm256_cmp_ps(a, b, _CMP_EQ_OQ);
}
static inline vm vi_eq(vi a, vi b)
{
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(a, b));
}
static inline void f16_store_n(uint16_t *p, int n, vf x)
{
    uint16_t part[VF_LANES];
    _mm_storeu_si128((__m128i *)part, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    memcpy(p, part, (size_t)n * sizeof *p);
}
typedef __m256i vw;
static inline vw vw_set(uint64_t x)
{
    return _mm256_set1_epi64x((long long)x);
}
static inline vw vw_load(const uint64_t *p)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)p);
}
static inline void vw_store(uint64_t *p, vw x)
{
    _mm256_storeu_si256((__m256i *)(void *)p, x);
}
static inline vw vw_mul(vw a, vw b)
{
    return _mm256_mul_epu32(a, b);
}
static inline vw vw_high(vw a)
{
    return _mm256_srli_epi64(a, 32);
}
static inline vw vw_xor(vw a, vw b)
{
    return _mm256_xor_si256(a, b);
}
#endif

/* The tree 8, 4, 2, 1 over 16 lanes (C6). */
static inline float tree_sum(const vf lane[SUM_VECS])
{
#if defined(MU_MATH_AVX512)
    __m256 s8 = _mm256_add_ps(_mm512_castps512_ps256(lane[0]), _mm512_extractf32x8_ps(lane[0], 1));
#else
    __m256 s8 = _mm256_add_ps(lane[0], lane[1]);
#endif
    __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_add_ss(s2, _mm_shuffle_ps(s2, s2, 1)));
}

/* The largest lane; any of them where some are NaN. */
static inline float vf_reduce_max(vf x)
{
#if defined(MU_MATH_AVX512)
    __m256 m8 = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
#else
    __m256 m8 = x;
#endif
    __m128 m4 = _mm_max_ps(_mm256_castps256_ps128(m8), _mm256_extractf128_ps(m8, 1));
    __m128 m2 = _mm_max_ps(m4, _mm_movehl_ps(m4, m4));
    return _mm_cvtss_f32(_mm_max_ss(m2, _mm_shuffle_ps(m2, m2, 1)));
}

/* (a, b) pairs turned by (cos, sin) pairs: fmaddsub gives a·cos - b·sin in even lanes and a·sin + b·cos in odd ones. */
static inline vf vf_rope_pairs(vf v, vf cs)
{
#if defined(MU_MATH_AVX512)
    vf b = _mm512_mul_ps(_mm512_movehdup_ps(v), _mm512_permute_ps(cs, 0xb1));
    return _mm512_fmaddsub_ps(_mm512_moveldup_ps(v), cs, b);
#else
    vf b = _mm256_mul_ps(_mm256_movehdup_ps(v), _mm256_permute_ps(cs, 0xb1));
    return _mm256_fmaddsub_ps(_mm256_moveldup_ps(v), cs, b);
#endif
}

/* A macro: gcc takes a function that only prefetches for one without effect and drops its calls. */
#define simd_fetch(p) _mm_prefetch((const char *)(p), _MM_HINT_T1)

#endif
