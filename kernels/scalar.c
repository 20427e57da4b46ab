/* Single values of the contract's functions (C7), RoPE frequencies, the floating point environment (C0). Pure functions,
 * any thread. */
#include "kernels/kernels.h"

#include "kernels/math.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

float mu_expf(float x)
{
    return vf_exp(x);
}
float mu_tanhf(float x)
{
    return vf_tanh(x);
}
float mu_siluf(float x)
{
    return vf_silu(x);
}
float mu_gelu_tanhf(float x)
{
    return vf_gelu_tanh(x);
}
float mu_gelu_erff(float x)
{
    return vf_gelu_erf(x);
}
float mu_logf(float x)
{
    return vf_log(x);
}
void mu_sincosf(float x, float *sin_out, float *cos_out)
{
    vf_sincos(x, sin_out, cos_out);
}

/* ln x for finite normal x > 0: x = 2^e·m, m in [√½, √2), ln m = 2·artanh((m-1)/(m+1)) by its series; |(m-1)/(m+1)| ≤
 * 0.172, so 12 terms leave less than 1e-19. */
static double log_f64(double x)
{
    union {
        double f;
        uint64_t u;
    } v = {.f = x};
    int e = (int)(v.u >> 52) - 1023;
    v.u = (v.u & 0xfffffffffffffull) | 0x3ff0000000000000ull;
    double m = v.f;
    if (m > 1.4142135623730951) {
        m = m / 2.0;
        e++;
    }
    double w = (m - 1.0) / (m + 1.0), w2 = w * w, sum = 0.0;
    for (int k = 23; k >= 1; k -= 2) sum = sum * w2 + 1.0 / k;
    return e * 0x1.62e42fefa39efp-1 + 2.0 * w * sum;
}

/* e^x for |x| < 700: x = n·ln2 + r, |r| ≤ 0.35, Taylor to r^17, times 2^n. */
static double exp_f64(double x)
{
    double t = x * 0x1.71547652b82fep+0 + 0x1.8p52;
    double n = t - 0x1.8p52;
    double r = (x - n * 0x1.62e42fee00000p-1) - n * 0x1.a39ef35793c76p-33, sum = 1.0;
    for (int k = 17; k >= 1; k--) sum = sum * r / k + 1.0;
    union {
        uint64_t u;
        double f;
    } scale = {.u = (uint64_t)((int)n + 1023) << 52};
    return sum * scale.f;
}

void mu_rope_freqs(double base, int n_rot, const float *factors, float *freq)
{
    double log_base = log_f64(base);
    for (int i = 0; i < n_rot / 2; i++) {
        double f = exp_f64(-2.0 * i / n_rot * log_base);
        freq[i] = (float)(factors ? f / (double)factors[i] : f);
    }
}

/* Index of the pair that turns n times within n_ctx positions: base^(-2i/n_rot) · n_ctx = 2π·n. */
static double yarn_pair(double base, int n_rot, double n_ctx, double n)
{
    return n_rot * log_f64(n_ctx / (n * 0x1.921fb54442d18p+2)) / (2.0 * log_f64(base));
}

/* Towards negative infinity, and the other way. */
static double floor_f64(double x)
{
    double whole = (double)(int64_t)x;
    return whole > x ? whole - 1.0 : whole;
}

void mu_yarn_freqs(double base, int n_rot, const float *factors, const struct mu_yarn *yarn, float *freq)
{
    double low = yarn_pair(base, n_rot, yarn->n_ctx, yarn->beta_fast);
    double high = yarn_pair(base, n_rot, yarn->n_ctx, yarn->beta_slow), log_base = log_f64(base);
    if (yarn->truncate) {
        low = floor_f64(low);
        high = -floor_f64(-high);
    }
    if (low < 0.0) low = 0.0;
    if (high > n_rot - 1.0) high = n_rot - 1.0;
    double width = high - low > 0.001 ? high - low : 0.001;
    for (int i = 0; i < n_rot / 2; i++) {
        double f = exp_f64(-2.0 * i / n_rot * log_base), slow = (i - low) / width;
        if (factors) f = f / (double)factors[i];
        slow = slow < 0.0 ? 0.0 : slow > 1.0 ? 1.0 : slow;
        freq[i] = (float)(f / yarn->factor * slow + f * (1.0 - slow));
    }
}

double mu_yarn_scale(double factor, double weight)
{
    return factor <= 1.0 ? 1.0 : 0.1 * weight * log_f64(factor) + 1.0;
}

float mu_query_scale(double scale, int n_ctx, int pos)
{
    return (float)(1.0 + scale * log_f64(1.0 + pos / n_ctx)); /* a whole number, rounded down */
}

#if defined(__x86_64__)
enum { MXCSR_WANTED = 0x1f80, MXCSR_STICKY = 0x3f }; /* all exceptions masked, nearest, no FTZ, no DAZ */
void mu_fp_env_set(void)
{
    _mm_setcsr(MXCSR_WANTED);
}
bool mu_fp_env_ok(void)
{
    return (_mm_getcsr() & ~(unsigned)MXCSR_STICKY) == MXCSR_WANTED;
}
#elif defined(__aarch64__)
void mu_fp_env_set(void)
{
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0));
}
bool mu_fp_env_ok(void)
{
    uint64_t fpcr;
    __asm__ volatile("mrs %0, fpcr" : "=r"(fpcr));
    return fpcr == 0;
}
#else
#error "mu_fp_env_set: set round to nearest and keep denormals on this processor"
#endif
void mu_fp_env_init(void *unused)
{
    (void)unused;
    mu_fp_env_set();
}
