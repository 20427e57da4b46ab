/* C1 and the rounding to bf16 with AVX2. A block of 32 is four vectors; magnitudes are compared as integers, in which
 * order infinities and NaNs come last. */
#include <immintrin.h>

#include "kernels/parts.h"

#define INF_BITS 0x7f800000

static bool block_quantize(const float *x, int8_t *q, float *s)
{
    const __m256i abs_bits = _mm256_set1_epi32(0x7fffffff);
    __m256 v[4];
    __m256i amax = _mm256_setzero_si256(), i32[4];
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_loadu_ps(x + 8 * i);
        amax = _mm256_max_epi32(amax, _mm256_and_si256(_mm256_castps_si256(v[i]), abs_bits));
    }
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(amax), _mm256_extracti128_si256(amax, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
    if (_mm_cvtsi128_si32(m) >= INF_BITS) return false;
    float max = _mm_cvtss_f32(_mm_castsi128_ps(m));
    bool zero = max < 0x1p-100f;
    *s = zero ? 0.0f : max / 127.0f;
    __m256 inv = _mm256_set1_ps(zero ? 0.0f : 127.0f / max);
    for (int i = 0; i < 4; i++) i32[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inv));
    /* packs takes from both 128-bit halves in turn; the permutation sets that right */
    __m256i i8 = _mm256_packs_epi16(_mm256_packs_epi32(i32[0], i32[1]), _mm256_packs_epi32(i32[2], i32[3]));
    i8 = _mm256_permutevar8x32_epi32(i8, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    i8 = _mm256_max_epi8(i8, _mm256_set1_epi8(-127));
    _mm256_storeu_si256((__m256i *)(void *)q, i8);
    return true;
}

bool mu_avx2_quantize(const float *x, int n, int8_t *q, float *s, int16_t *sum)
{
    for (int b = 0; b < n / MU_Q_BLOCK; b++)
        if (!block_quantize(x + (size_t)b * MU_Q_BLOCK, q + (size_t)b * MU_Q_BLOCK, s + b)) return false;
    mu_avx2_block_sums(q, n, sum);
    return true;
}

void mu_avx2_block_sums(const int8_t *q, int n, int16_t *sum)
{
    const __m256i flip = _mm256_set1_epi8((char)0x80), zero = _mm256_setzero_si256();
    for (int b = 0; b < n / MU_Q_BLOCK; b++) {
        __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)(q + (size_t)b * MU_Q_BLOCK));
        __m256i sad = _mm256_sad_epu8(_mm256_xor_si256(v, flip), zero); /* four sums of 8, each 8·128 too large */
        sum[2 * b] = (int16_t)(_mm256_extract_epi16(sad, 0) + _mm256_extract_epi16(sad, 4) - 2048);
        sum[2 * b + 1] = (int16_t)(_mm256_extract_epi16(sad, 8) + _mm256_extract_epi16(sad, 12) - 2048);
    }
}

void mu_avx2_to_bf16(const float *x, int n, uint16_t *out)
{
    for (int i = 0; i < n; i++) out[i] = mu_f32_to_bf16(x[i]);
}
