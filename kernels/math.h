/* The elementary functions of the arithmetic contract (C7), once, for every instruction set.
 *
 * A file that includes this header with MU_MATH_AVX512, MU_MATH_AVX2 or MU_MATH_NEON defined gets the functions on
 * vectors of 16, 8 or 4 floats; without, on one float, and so it is in device code, which calls vf_exp and the others
 * themselves (mu_expf … of kernels.h are the host's). All of them are the same sequence of the operations below, each of which is exact or
 * rounds once as IEEE 754 says, so lane i of a vector form has the bits of the scalar form: nothing here is
 * approximated by the machine. Only the last step of exp differs in form (AVX-512 scales by a power of two in one
 * instruction), not in value. NaN in, NaN out; payloads are not defined. tests/kernels/test_math.c compares them over
 * all 2^32 inputs (at a stride unless asked).
 *
 * Rounding to an integer is adding 1.5·2^23 in the FMA that scales: the integer then sits in the low mantissa bits.
 * Coefficients: minimax fits (Remez) of the remainder after the leading terms, each rounded to f32. Measured against
 * libm in double: exp 0.84 ulp, log 0.81, tanh 1.31, silu 2.2; sin and cos absolute 7.1e-8 for |x| ≤ 1e6.
 *
 * Reduction after W. J. Cody and W. Waite, Software Manual for the Elementary Functions (1980). */
#ifndef MU_KERNELS_MATH_H
#define MU_KERNELS_MATH_H

#include <math.h>
#include <stdint.h>

#include "kernels/convert.h"

/* vf floats, vi 32-bit integers, vm a truth value per lane. vf_lt is false where either side is NaN; vf_clear gives +0
 * where m holds. */
#if defined(MU_MATH_AVX512)
#include <immintrin.h>
enum { VF_LANES = 16 };
typedef __m512 vf;
typedef __m512i vi;
typedef __mmask16 vm;
static inline vf vf_set(float x)
{
    return _mm512_set1_ps(x);
}
static inline vf vf_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}
static inline vf vf_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}
static inline vf vf_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}
static inline vf vf_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}
static inline vf vf_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}
static inline vm vf_lt(vf a, vf b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);
}
static inline vf vf_select(vm m, vf yes, vf no)
{
    return _mm512_mask_blend_ps(m, no, yes);
}
static inline vf vf_clear(vm m, vf x)
{
    return _mm512_maskz_mov_ps((__mmask16)~m, x);
}
static inline vi vf_bits(vf a)
{
    return _mm512_castps_si512(a);
}
static inline vf vf_from_bits(vi a)
{
    return _mm512_castsi512_ps(a);
}
static inline vf vf_from_int(vi a)
{
    return _mm512_cvtepi32_ps(a);
}
static inline vi vi_set(int32_t x)
{
    return _mm512_set1_epi32(x);
}
static inline vi vi_add(vi a, vi b)
{
    return _mm512_add_epi32(a, b);
}
static inline vi vi_sub(vi a, vi b)
{
    return _mm512_sub_epi32(a, b);
}
static inline vi vi_and(vi a, vi b)
{
    return _mm512_and_si512(a, b);
}
static inline vi vi_xor(vi a, vi b)
{
    return _mm512_xor_si512(a, b);
}
#define vi_shl(a, n) _mm512_slli_epi32((a), (n))
#define vi_sar(a, n) _mm512_srai_epi32((a), (n))
static inline vm vi_is_zero(vi a)
{
    return _mm512_testn_epi32_mask(a, a);
}
#elif defined(MU_MATH_AVX2)
#include <immintrin.h>
enum { VF_LANES = 8 };
typedef __m256 vf;
typedef __m256i vi;
typedef __m256 vm;
static inline vf vf_set(float x)
{
    return _mm256_set1_ps(x);
}
static inline vf vf_add(vf a, vf b)
{
    return _mm256_add_ps(a, b);
}
static inline vf vf_sub(vf a, vf b)
{
    return _mm256_sub_ps(a, b);
}
static inline vf vf_mul(vf a, vf b)
{
    return _mm256_mul_ps(a, b);
}
static inline vf vf_div(vf a, vf b)
{
    return _mm256_div_ps(a, b);
}
static inline vf vf_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}
static inline vm vf_lt(vf a, vf b)
{
    return _mm256_cmp_ps(a, b, _CMP_LT_OQ);
}
static inline vf vf_select(vm m, vf yes, vf no)
{
    return _mm256_blendv_ps(no, yes, m);
}
static inline vf vf_clear(vm m, vf x)
{
    return _mm256_andnot_ps(m, x);
}
static inline vi vf_bits(vf a)
{
    return _mm256_castps_si256(a);
}
static inline vf vf_from_bits(vi a)
{
    return _mm256_castsi256_ps(a);
}
static inline vf vf_from_int(vi a)
{
    return _mm256_cvtepi32_ps(a);
}
static inline vi vi_set(int32_t x)
{
    return _mm256_set1_epi32(x);
}
static inline vi vi_add(vi a, vi b)
{
    return _mm256_add_epi32(a, b);
}
static inline vi vi_sub(vi a, vi b)
{
    return _mm256_sub_epi32(a, b);
}
static inline vi vi_and(vi a, vi b)
{
    return _mm256_and_si256(a, b);
}
static inline vi vi_xor(vi a, vi b)
{
    return _mm256_xor_si256(a, b);
}
#define vi_shl(a, n) _mm256_slli_epi32((a), (n))
#define vi_sar(a, n) _mm256_srai_epi32((a), (n))
static inline vm vi_is_zero(vi a)
{
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(a, _mm256_setzero_si256()));
}
#elif defined(MU_MATH_NEON)
#include <arm_neon.h>
enum { VF_LANES = 4 };
typedef float32x4_t vf;
typedef int32x4_t vi;
typedef uint32x4_t vm;
static inline vf vf_set(float x)
{
    return vdupq_n_f32(x);
}
static inline vf vf_add(vf a, vf b)
{
    return vaddq_f32(a, b);
}
static inline vf vf_sub(vf a, vf b)
{
    return vsubq_f32(a, b);
}
static inline vf vf_mul(vf a, vf b)
{
    return vmulq_f32(a, b);
}
static inline vf vf_div(vf a, vf b)
{
    return vdivq_f32(a, b);
}
static inline vf vf_fma(vf a, vf b, vf c)
{
    return vfmaq_f32(c, a, b);
}
static inline vm vf_lt(vf a, vf b)
{
    return vcltq_f32(a, b);
}
static inline vf vf_select(vm m, vf yes, vf no)
{
    return vbslq_f32(m, yes, no);
}
static inline vf vf_clear(vm m, vf x)
{
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(x), m));
}
static inline vi vf_bits(vf a)
{
    return vreinterpretq_s32_f32(a);
}
static inline vf vf_from_bits(vi a)
{
    return vreinterpretq_f32_s32(a);
}
static inline vf vf_from_int(vi a)
{
    return vcvtq_f32_s32(a);
}
static inline vi vi_set(int32_t x)
{
    return vdupq_n_s32(x);
}
static inline vi vi_add(vi a, vi b)
{
    return vaddq_s32(a, b);
}
static inline vi vi_sub(vi a, vi b)
{
    return vsubq_s32(a, b);
}
static inline vi vi_and(vi a, vi b)
{
    return vandq_s32(a, b);
}
static inline vi vi_xor(vi a, vi b)
{
    return veorq_s32(a, b);
}
#define vi_shl(a, n) vshlq_n_s32((a), (n))
#define vi_sar(a, n) vshrq_n_s32((a), (n))
static inline vm vi_is_zero(vi a)
{
    return vceqzq_s32(a);
}
#else
enum { VF_LANES = 1 };
typedef float vf;
typedef uint32_t vi; /* unsigned: wraps as the vector forms do */
typedef int vm;
MU_DEVICE_INLINE vf vf_set(float x)
{
    return x;
}
MU_DEVICE_INLINE vf vf_add(vf a, vf b)
{
    return a + b;
}
MU_DEVICE_INLINE vf vf_sub(vf a, vf b)
{
    return a - b;
}
MU_DEVICE_INLINE vf vf_mul(vf a, vf b)
{
    return a * b;
}
MU_DEVICE_INLINE vf vf_div(vf a, vf b)
{
    return a / b;
}
MU_DEVICE_INLINE vf vf_fma(vf a, vf b, vf c)
{
    return fmaf(a, b, c);
}
MU_DEVICE_INLINE vm vf_lt(vf a, vf b)
{
    return a < b;
}
MU_DEVICE_INLINE vf vf_select(vm m, vf yes, vf no)
{
    return m ? yes : no;
}
MU_DEVICE_INLINE vf vf_clear(vm m, vf x)
{
    return m ? 0.0f : x;
}
MU_DEVICE_INLINE vi vf_bits(vf a)
{
    return mu_f32_bits(a);
}
MU_DEVICE_INLINE vf vf_from_bits(vi a)
{
    return mu_f32_from_bits(a);
}
MU_DEVICE_INLINE vf vf_from_int(vi a)
{
    return (float)(int32_t)a;
}
MU_DEVICE_INLINE vi vi_set(int32_t x)
{
    return (uint32_t)x;
}
MU_DEVICE_INLINE vi vi_add(vi a, vi b)
{
    return a + b;
}
MU_DEVICE_INLINE vi vi_sub(vi a, vi b)
{
    return a - b;
}
MU_DEVICE_INLINE vi vi_and(vi a, vi b)
{
    return a & b;
}
MU_DEVICE_INLINE vi vi_xor(vi a, vi b)
{
    return a ^ b;
}
#define vi_shl(a, n) ((vi)(a) << (n))
#define vi_sar(a, n) ((vi)((int32_t)(a) >> (n)))
MU_DEVICE_INLINE vm vi_is_zero(vi a)
{
    return a == 0;
}
#endif

#define MU_MATH_MAGIC 0x1.8p23f
#define MU_MATH_SIGN  INT32_MIN
#define MU_SILU_ALPHA 1.702f
#define MU_SILU_LIMIT 7.0f

MU_DEVICE_INLINE vf vf_neg(vf x)
{
    return vf_from_bits(vi_xor(vf_bits(x), vi_set(MU_MATH_SIGN)));
}

/* e^x: x = n·ln2 + r, |r| ≤ ln2/2; e^r = 1 + r + r²·q(r), then times 2^n. +0 below -87, so that no result is subnormal;
 * infinity above the largest x whose e^x is finite. */
MU_DEVICE_INLINE vf vf_exp(vf x)
{
#if defined(MU_MATH_AVX512)
    vf z = _mm512_min_ps(_mm512_set1_ps(200.0f), x); /* the second operand where one is NaN */
#else
    vf z = x;
#endif
    vf t = vf_fma(z, vf_set(0x1.715476p+0f), vf_set(MU_MATH_MAGIC));
    vf n = vf_sub(t, vf_set(MU_MATH_MAGIC));
    vf r = vf_fma(n, vf_set(-0x1.62e430p-1f), z);
    r = vf_fma(n, vf_set(0x1.05c610p-29f), r);
    vf p = vf_fma(r, vf_set(0x1.6a21acp-10f), vf_set(0x1.123b6ap-7f));
    p = vf_fma(p, r, vf_set(0x1.5558fap-5f));
    p = vf_fma(p, r, vf_set(0x1.555490p-3f));
    p = vf_fma(p, r, vf_set(0x1.fffffcp-2f));
    p = vf_fma(p, r, vf_set(1.0f));
    p = vf_fma(p, r, vf_set(1.0f));
#if defined(MU_MATH_AVX512)
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_NLT_UQ), p, n);
#else
    /* n into the exponent field: 1.5·2^23 has no bit in the lower nine. Exact while the result is normal. */
    vf y = vf_from_bits(vi_add(vf_bits(p), vi_shl(vf_bits(t), 23)));
    y = vf_select(vf_lt(x, vf_set(0x1.62e430p+6f)), y, vf_mul(x, vf_set(INFINITY)));
    return vf_clear(vf_lt(x, vf_set(-87.0f)), y);
#endif
}

/* Natural logarithm of finite x > 0: x = 2^e·(1 + f), 1 + f in [√½, √2); log(1 + f) = f - f²/2 + f³·q(f). */
MU_DEVICE_INLINE vf vf_log(vf x)
{
    vm small = vf_lt(x, vf_set(0x1p-126f));
    x = vf_select(small, vf_mul(x, vf_set(0x1p23f)), x);
    vi i = vi_sub(vf_bits(x), vi_set(0x3f3504f3));
    vf e = vf_add(vf_from_int(vi_sar(i, 23)), vf_select(small, vf_set(-23.0f), vf_set(0.0f)));
    vf f = vf_sub(vf_from_bits(vi_add(vi_and(i, vi_set(0x7fffff)), vi_set(0x3f3504f3))), vf_set(1.0f));
    vf q = vf_fma(f, vf_set(0x1.144214p-4f), vf_set(-0x1.de334ap-4f));
    q = vf_fma(q, f, vf_set(0x1.e6f4e2p-4f));
    q = vf_fma(q, f, vf_set(-0x1.fc23c2p-4f));
    q = vf_fma(q, f, vf_set(0x1.233742p-3f));
    q = vf_fma(q, f, vf_set(-0x1.555c40p-3f));
    q = vf_fma(q, f, vf_set(0x1.99a4b6p-3f));
    q = vf_fma(q, f, vf_set(-0x1.000006p-2f));
    q = vf_fma(q, f, vf_set(0x1.555548p-2f));
    vf ff = vf_mul(f, f);
    vf y = vf_mul(vf_mul(ff, f), q);
    y = vf_fma(e, vf_set(-0x1.05c610p-29f), y);
    y = vf_fma(vf_set(-0.5f), ff, y);
    return vf_fma(e, vf_set(0x1.62e430p-1f), vf_add(f, y));
}

/* tanh: odd polynomial below 0.625, else 1 - 2/(e^2|x| + 1) with the sign of x. */
MU_DEVICE_INLINE vf vf_tanh(vf x)
{
    vi sign = vi_and(vf_bits(x), vi_set(MU_MATH_SIGN));
    vf ax = vf_from_bits(vi_xor(vf_bits(x), sign));
    vf z = vf_mul(ax, ax);
    vf p = vf_fma(z, vf_set(0x1.197050p-9f), vf_set(-0x1.0c1e56p-7f));
    p = vf_fma(p, z, vf_set(0x1.639448p-6f));
    p = vf_fma(p, z, vf_set(-0x1.b9ef70p-5f));
    p = vf_fma(p, z, vf_set(0x1.11106ap-3f));
    p = vf_fma(p, z, vf_set(-0x1.555554p-2f));
    vf near = vf_fma(vf_mul(ax, z), p, ax);
    vf e = vf_exp(vf_add(ax, ax));
    vf far = vf_sub(vf_set(1.0f), vf_div(vf_set(2.0f), vf_add(e, vf_set(1.0f))));
    return vf_from_bits(vi_xor(vf_bits(vf_select(vf_lt(ax, vf_set(0.625f)), near, far)), sign));
}

/* x / (1 + e^-x) */
MU_DEVICE_INLINE vf vf_silu(vf x)
{
    return vf_div(x, vf_add(vf_set(1.0f), vf_exp(vf_neg(x))));
}

/* gpt-oss's feed-forward (OpenAI's reference implementation): g / (1 + e^(-1.702 g)) · (u + 1) with both held within the
 * limit, g above only. A NaN passes every comparison. */
MU_DEVICE_INLINE vf vf_silu_clamped_mul(vf g, vf u)
{
    vf top = vf_set(MU_SILU_LIMIT), bottom = vf_set(-MU_SILU_LIMIT), one = vf_set(1.0f);
    g = vf_select(vf_lt(top, g), top, g);
    u = vf_select(vf_lt(top, u), top, vf_select(vf_lt(u, bottom), bottom, u));
    vf e = vf_exp(vf_neg(vf_mul(vf_set(MU_SILU_ALPHA), g)));
    return vf_mul(vf_div(g, vf_add(one, e)), vf_add(u, one));
}

/* x / (1 + e^-2u) with u = √(2/π)·(x + 0.044715·x³): the tanh form of GELU, 0.5·x·(1 + tanh u), without its
 * cancellation. */
MU_DEVICE_INLINE vf vf_gelu_tanh(vf x)
{
    vf u2 = vf_mul(x, vf_fma(vf_mul(x, x), vf_set(0x1.2444f2p-4f), vf_set(0x1.988454p+0f)));
    return vf_div(x, vf_add(vf_set(1.0f), vf_exp(vf_neg(u2))));
}

/* x·Φ(x), the exact GELU. Φ(-a) = e^(-a²/2)·t·p(t) with t = 1/(1 + 0.3·a), a = |x|; Φ(a) = 1 - Φ(-a). */
MU_DEVICE_INLINE vf vf_gelu_erf(vf x)
{
    vi sign = vi_and(vf_bits(x), vi_set(MU_MATH_SIGN));
    vf ax = vf_from_bits(vi_xor(vf_bits(x), sign));
    vf t = vf_div(vf_set(1.0f), vf_fma(ax, vf_set(0.3f), vf_set(1.0f)));
    vf p = vf_fma(t, vf_set(-0x1.5582bcp-6f), vf_set(0x1.d19398p-4f));
    p = vf_fma(p, t, vf_set(-0x1.d97468p-3f));
    p = vf_fma(p, t, vf_set(0x1.910dd4p-3f));
    p = vf_fma(p, t, vf_set(-0x1.535932p-4f));
    p = vf_fma(p, t, vf_set(0x1.917ee8p-4f));
    p = vf_fma(p, t, vf_set(0x1.3e6becp-4f));
    p = vf_fma(p, t, vf_set(0x1.c4187ep-4f));
    p = vf_fma(p, t, vf_set(0x1.e9b2a6p-4f));
    p = vf_fma(p, t, vf_set(0x1.ea3d7ap-4f));
    vf tail = vf_mul(vf_exp(vf_mul(vf_mul(ax, vf_set(-0.5f)), ax)), vf_mul(t, p));
    return vf_mul(x, vf_select(vf_lt(x, vf_set(0.0f)), tail, vf_sub(vf_set(1.0f), tail)));
}

/* sin and cos: x = n·π/2 + r with π/2 in three parts (the first step is exact), |r| ≤ π/4 and a little; for |x| <
 * 2^22. */
MU_DEVICE_INLINE void vf_sincos(vf x, vf *sin_out, vf *cos_out)
{
    vf t = vf_fma(x, vf_set(0x1.45f306p-1f), vf_set(MU_MATH_MAGIC));
    vf n = vf_sub(t, vf_set(MU_MATH_MAGIC));
    vf r = vf_fma(n, vf_set(-0x1.921fb6p+0f), x);
    r = vf_fma(n, vf_set(0x1.777a5cp-25f), r);
    r = vf_fma(n, vf_set(0x1.ee59dap-50f), r);
    vf z = vf_mul(r, r);
    vf s = vf_fma(z, vf_set(-0x1.994c0ep-13f), vf_set(0x1.110758p-7f));
    s = vf_fma(s, z, vf_set(-0x1.555546p-3f));
    s = vf_fma(vf_mul(r, z), s, r);
    vf c = vf_fma(z, vf_set(0x1.99fffap-16f), vf_set(-0x1.6c0c84p-10f));
    c = vf_fma(c, z, vf_set(0x1.55554ap-5f));
    c = vf_fma(c, z, vf_set(-0.5f));
    c = vf_fma(c, z, vf_set(1.0f));
    vi q = vf_bits(t);
    vm even = vi_is_zero(vi_and(q, vi_set(1)));
    vi sin_sign = vi_shl(vi_and(q, vi_set(2)), 30);
    vi cos_sign = vi_shl(vi_and(vi_add(q, vi_set(1)), vi_set(2)), 30);
    *sin_out = vf_from_bits(vi_xor(vf_bits(vf_select(even, s, c)), sin_sign));
    *cos_out = vf_from_bits(vi_xor(vf_bits(vf_select(even, c, s)), cos_sign));
}

#endif
