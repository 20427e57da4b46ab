/* Measuring the roof: windows of a fixed number of rounds of the loops in use. */
#include "kernels/peak.h"

#include <string.h>

#include "base/clock.h"
#include "kernels/parts.h"

struct loops {
    const char *name;
    uint32_t (*int8)(int n, double *ops_out);
    uint32_t (*f32)(int n, double *ops_out);
    uint32_t (*read)(const void *buf, size_t bytes);
};

static const struct loops all_loops[] = {
    {"ref", mu_ref_peak_int8, mu_ref_peak_f32, mu_ref_peak_read},
#ifdef __x86_64__
    {"avx2", mu_avx2_peak_int8, mu_avx2_peak_f32, mu_avx2_peak_read},
    {"avx512", mu_avx512_peak_int8, mu_avx512_peak_f32, mu_avx512_peak_read},
    {"streams", mu_avx512_peak_int8, mu_avx512_peak_f32, mu_streams_peak_read},
    {"panels", mu_avx512_peak_int8, mu_avx512_peak_f32, mu_avx512_peak_read},
    {"amx", mu_avx512_peak_int8, mu_avx512_peak_f32, mu_avx512_peak_read}, /* the vector unit's rates: see peak.h */
#elif defined(__aarch64__)
    {"neon", mu_neon_peak_int8, mu_neon_peak_f32, mu_neon_peak_read},
    {"dotprod", mu_dotprod_peak_int8, mu_neon_peak_f32, mu_neon_peak_read},
    {"i8mm", mu_i8mm_peak_int8, mu_neon_peak_f32, mu_neon_peak_read},
#endif
};

/* What the loops computed, so that they are computed. A thread's own: all threads of a pool measure at the same time. */
static _Thread_local volatile uint32_t sink;

static const struct loops *loops_in_use(void)
{
    const struct mu_kernels *k = mu_kernels();
    for (size_t i = 0; k && i < sizeof all_loops / sizeof *all_loops; i++)
        if (strcmp(all_loops[i].name, k->name) == 0) return &all_loops[i];
    return &all_loops[0];
}

enum { WINDOWS = 12, ROUNDS = 200000 }; /* about a millisecond each */

static double best_rate(uint32_t (*loop)(int n, double *ops_out))
{
    double best = 0;
    for (int i = 0; i < WINDOWS; i++) {
        double ops;
        int64_t start = mu_now_ns();
        sink = loop(ROUNDS, &ops);
        int64_t ns = mu_now_ns() - start;
        if (ns > 0 && ops / (double)ns > best) best = ops / (double)ns;
    }
    return best;
}

double mu_peak_int8_gops(void)
{
    return best_rate(loops_in_use()->int8);
}
double mu_peak_f32_gflops(void)
{
    return best_rate(loops_in_use()->f32);
}

double mu_peak_read_gbps(const void *buf, size_t bytes)
{
    const struct loops *l = loops_in_use();
    int64_t start = mu_now_ns();
    sink = l->read(buf, bytes);
    int64_t ns = mu_now_ns() - start;
    return ns > 0 ? (double)bytes / (double)ns : 0;
}
