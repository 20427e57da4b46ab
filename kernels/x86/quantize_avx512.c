/* C1 and the rounding to bf16 with AVX-512. A block of 32 is two vectors; magnitudes are compared as integers, in which
 * order infinities and NaNs come last. */
#include <immintrin.h>

#include "kernels/parts.h"

#define INF_BITS 0x7f800000

bool mu_avx512_quantize(const float *x, int n, int8_t *q, float *s, int16_t *sum)
{
    const __m512i abs_bits = _mm512_set1_epi32(0x7fffffff);
    const __m128i least = _mm_set1_epi8(-127);
    for (int b = 0; b < n / MU_Q_BLOCK; b++, x += MU_Q_BLOCK) {
        __m512 lo = _mm512_loadu_ps(x), hi = _mm512_loadu_ps(x + 16);
        int bits = _mm512_reduce_max_epi32(_mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(lo), abs_bits),
                                                            _mm512_and_si512(_mm512_castps_si512(hi), abs_bits)));
        if (bits >= INF_BITS) return false;
        float amax = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(bits)));
        bool zero = amax < 0x1p-100f;
        s[b] = zero ? 0.0f : amax / 127.0f;
        __m512 inv = _mm512_set1_ps(zero ? 0.0f : 127.0f / amax);
        __m128i qlo = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(lo, inv)));
        __m128i qhi = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(hi, inv)));
        __m128i *to = (__m128i *)(void *)(q + (size_t)b * MU_Q_BLOCK);
        _mm_storeu_si128(to, _mm_max_epi8(qlo, least));
        _mm_storeu_si128(to + 1, _mm_max_epi8(qhi, least));
    }
    mu_avx512_block_sums(q, n, sum);
    return true;
}

void mu_avx512_block_sums(const int8_t *q, int n, int16_t *sum)
{
    const __m256i ones = _mm256_set1_epi8(1);
    for (int b = 0; b < n / MU_Q_BLOCK; b++) {
        __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)(q + (size_t)b * MU_Q_BLOCK));
        __m256i fours = _mm256_dpbusd_epi32(_mm256_setzero_si256(), ones, v); /* sums of 4, 8 of them */
        fours = _mm256_add_epi32(fours, _mm256_shuffle_epi32(fours, 0xb1));
        fours = _mm256_add_epi32(fours, _mm256_shuffle_epi32(fours, 0x4e));
        sum[2 * b] = (int16_t)_mm256_extract_epi32(fours, 0);
        sum[2 * b + 1] = (int16_t)_mm256_extract_epi32(fours, 4);
    }
}

void mu_avx512_to_bf16(const float *x, int n, uint16_t *out)
{
    for (int i = 0; i < n; i++) out[i] = mu_f32_to_bf16(x[i]);
}
