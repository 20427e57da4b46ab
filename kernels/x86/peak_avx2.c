/* peak.h's loops with AVX2: 12 independent accumulators hide the latency of every instruction measured. An int8 product
 * costs this instruction set a maddubs and an addition. */
#include <immintrin.h>

#include "kernels/parts.h"
#include "kernels/x86/layout.h"

enum { CHAINS = 12 };

static uint32_t reduce(__m256i v)
{
    uint32_t lane[8], sum = 0;
    _mm256_storeu_si256((__m256i *)(void *)lane, v);
    for (int i = 0; i < 8; i++) sum += lane[i];
    return sum;
}

uint32_t mu_avx2_peak_int8(int n, double *ops_out)
{
    __m256i acc[CHAINS], w = _mm256_set1_epi8(3), q = _mm256_set1_epi8(5);
    for (int j = 0; j < CHAINS; j++) acc[j] = _mm256_setzero_si256();
    for (int i = 0; i < n; i++) {
        MU_UNROLL
        for (int j = 0; j < CHAINS; j++) {
            __asm__ volatile("" : "+x"(q)); /* or the product would be computed once */
            acc[j] = _mm256_add_epi16(acc[j], _mm256_maddubs_epi16(w, q));
        }
    }
    for (int j = 1; j < CHAINS; j++) acc[0] = _mm256_add_epi16(acc[0], acc[j]);
    *ops_out = 2.0 * 32 * CHAINS * n;
    return reduce(acc[0]);
}

uint32_t mu_avx2_peak_f32(int n, double *ops_out)
{
    __m256 acc[CHAINS], w = _mm256_set1_ps(0.5f);
    for (int j = 0; j < CHAINS; j++) acc[j] = _mm256_setzero_ps();
    for (int i = 0; i < n; i++) {
        MU_UNROLL
        for (int j = 0; j < CHAINS; j++) acc[j] = _mm256_fmadd_ps(acc[j], w, w);
    }
    for (int j = 1; j < CHAINS; j++) acc[0] = _mm256_add_ps(acc[0], acc[j]);
    *ops_out = 2.0 * 8 * CHAINS * n;
    return reduce(_mm256_castps_si256(acc[0]));
}

static inline __m256i load(const uint8_t *p)
{
    return _mm256_load_si256((const __m256i *)(const void *)p);
}

/* Two streams with a prefetch each: one plain stream leaves a quarter of some processors' bandwidth unused. */
uint32_t mu_avx2_peak_read(const void *buf, size_t bytes)
{
    enum { STREAMS = 2, STEP = 128, AHEAD = 1024 };
    const uint8_t *p = buf;
    const size_t part = bytes / STREAMS / STEP * STEP;
    __m256i acc[STREAMS][2];
    for (int j = 0; j < STREAMS; j++) acc[j][0] = acc[j][1] = _mm256_setzero_si256();
    for (size_t i = 0; i < part; i += STEP) {
        MU_UNROLL
        for (int j = 0; j < STREAMS; j++) {
            const uint8_t *at = p + (size_t)j * part + i;
            MU_UNROLL
            for (int k = 0; k < 2; k++) {
                _mm_prefetch((const char *)at + 64 * k + AHEAD, _MM_HINT_T0);
                acc[j][k] = _mm256_add_epi32(acc[j][k], load(at + 64 * k));
                acc[j][k] = _mm256_add_epi32(acc[j][k], load(at + 64 * k + 32));
            }
        }
    }
    for (size_t i = STREAMS * part; i + 32 <= bytes; i += 32) acc[0][0] = _mm256_add_epi32(acc[0][0], load(p + i));
    for (int j = 0; j < STREAMS; j++) acc[0][j] = _mm256_add_epi32(acc[j][0], acc[j][1]);
    return reduce(_mm256_add_epi32(acc[0][0], acc[0][1]));
}
