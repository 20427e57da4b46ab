/* peak.h's loops with AVX-512: 12 independent accumulators hide the latency of every instruction measured. */
#include <immintrin.h>

#include "kernels/parts.h"
#include "kernels/x86/layout.h"

enum { CHAINS = 12 };

static uint32_t reduce(__m512i v)
{
    uint32_t lane[16], sum = 0;
    _mm512_storeu_si512(lane, v);
    for (int i = 0; i < 16; i++) sum += lane[i];
    return sum;
}

uint32_t mu_avx512_peak_int8(int n, double *ops_out)
{
    __m512i acc[CHAINS], w = _mm512_set1_epi8(3), q = _mm512_set1_epi8(5);
    for (int j = 0; j < CHAINS; j++) acc[j] = _mm512_setzero_si512();
    for (int i = 0; i < n; i++) {
        MU_UNROLL
        for (int j = 0; j < CHAINS; j++) acc[j] = _mm512_dpbusd_epi32(acc[j], w, q);
    }
    for (int j = 1; j < CHAINS; j++) acc[0] = _mm512_add_epi32(acc[0], acc[j]);
    *ops_out = 2.0 * 64 * CHAINS * n;
    return reduce(acc[0]);
}

uint32_t mu_avx512_peak_f32(int n, double *ops_out)
{
    __m512 acc[CHAINS], w = _mm512_set1_ps(0.5f);
    for (int j = 0; j < CHAINS; j++) acc[j] = _mm512_setzero_ps();
    for (int i = 0; i < n; i++) {
        MU_UNROLL
        for (int j = 0; j < CHAINS; j++) acc[j] = _mm512_fmadd_ps(acc[j], w, w);
    }
    for (int j = 1; j < CHAINS; j++) acc[0] = _mm512_add_ps(acc[0], acc[j]);
    *ops_out = 2.0 * 16 * CHAINS * n;
    return reduce(_mm512_castps_si512(acc[0]));
}

/* Streams with a prefetch each, or without: one plain stream leaves a quarter of some processors' bandwidth unused. */
MU_INLINE uint32_t read_streams(const void *buf, size_t bytes, int streams, int ahead)
{
    enum { MOST = 4, STEP = 128 };
    const uint8_t *p = buf;
    const size_t part = bytes / (size_t)streams / STEP * STEP;
    __m512i acc[MOST][2];
    for (int j = 0; j < MOST; j++) acc[j][0] = acc[j][1] = _mm512_setzero_si512();
    for (size_t i = 0; i < part; i += STEP) {
        MU_UNROLL
        for (int j = 0; j < streams; j++) {
            const uint8_t *at = p + (size_t)j * part + i;
            MU_UNROLL
            for (int k = 0; k < 2; k++) {
                if (ahead) _mm_prefetch((const char *)at + 64 * k + ahead, _MM_HINT_T0);
                acc[j][k] = _mm512_add_epi32(acc[j][k], _mm512_load_si512(at + 64 * k));
            }
        }
    }
    for (size_t i = (size_t)streams * part; i + 64 <= bytes; i += 64)
        acc[0][0] = _mm512_add_epi32(acc[0][0], _mm512_load_si512(p + i));
    __m512i sum = _mm512_setzero_si512();
    for (int j = 0; j < MOST; j++) sum = _mm512_add_epi32(sum, _mm512_add_epi32(acc[j][0], acc[j][1]));
    return reduce(sum);
}

uint32_t mu_avx512_peak_read(const void *buf, size_t bytes)
{
    return read_streams(buf, bytes, 2, 1024);
}

/* What Zen 5 reads fastest: a quarter more than with the above, which its prefetcher is better off without. */
uint32_t mu_streams_peak_read(const void *buf, size_t bytes)
{
    return read_streams(buf, bytes, 4, 0);
}
