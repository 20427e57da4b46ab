/* The functions of kernels/cuda/ptx.h on the emulated device, by the PTX ISA's descriptions: the lanes of a warp show
 * each other their registers, and each computes its part from them. */
#ifndef MU_TESTS_STUBS_CUDA_PTX_EMULATED_H
#define MU_TESTS_STUBS_CUDA_PTX_EMULATED_H

#include "cuda_runtime.h"

static inline float mu_half_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, e = h >> 10 & 31, m = h & 0x3ffu;
    if (e == 31) return __uint_as_float(m ? 0x7fffffffu : sign | 0x7f800000u);
    if (e == 0) { /* m · 2^-24, exact */
        float f = (float)m * 0x1p-24f;
        return sign ? -f : f;
    }
    return __uint_as_float(sign | (e + 112) << 23 | m << 13);
}
static inline uint16_t mu_f32_to_half(float f)
{
    uint32_t u = __float_as_uint(f), sign = u >> 16 & 0x8000;
    float a = fabsf(f);
    if (f != f) return 0x7fff;
    if (a >= 65520.0f) return (uint16_t)(sign | 0x7c00);
    if (a < 0x1p-14f) return (uint16_t)(sign | (uint32_t)rintf(a * 0x1p24f)); /* 1024: the smallest normal number */
    u &= 0x7fffffffu;
    u += 0xfff + (u >> 13 & 1);
    return (uint16_t)(sign | (u - (112u << 23)) >> 13);
}
static inline uint32_t mu_f32_to_half2(float low, float high)
{
    return mu_f32_to_half(low) | (uint32_t)mu_f32_to_half(high) << 16;
}

static inline float mu_exp2_rough(float x)
{
    float r = exp2f(fabsf(x) < 0x1p-126f ? 0.0f : x);
    return r < 0x1p-126f ? 0.0f : r;
}

struct mu_emulated_ab { /* a lane's registers of a and b */
    uint32_t a[4], b[2];
};

/* Word w (columns 4w … 4w + 3) of row `row` of a [16][k], from the lane and register that hold it; of column `col` of
 * b [k][8] likewise. */
static inline int mu_emulated_a_word(const mu_emulated_slot *s, int row, int w)
{
    return (int)mu_emulated_of<mu_emulated_ab>(s, row % 8 * 4 + w % 4).a[row / 8 + w / 4 * 2];
}
static inline int mu_emulated_b_word(const mu_emulated_slot *s, int col, int w)
{
    return (int)mu_emulated_of<mu_emulated_ab>(s, col * 4 + w % 4).b[w / 4];
}

static inline void mu_emulated_mma_s8(int d[4], const mu_emulated_slot *s, const int c[4], int k)
{
    int lane = mu_emulated_lane(), g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; i++) {
        int row = i < 2 ? g : g + 8, col = 2 * t + i % 2, sum = c[i];
        for (int w = 0; w < k / 4; w++) sum = __dp4a(mu_emulated_a_word(s, row, w), mu_emulated_b_word(s, col, w), sum);
        d[i] = sum;
    }
}

static inline void mu_mma_s8_k32(int d[4], const uint32_t a[4], const uint32_t b[2], const int c[4],
                                 int line = __builtin_LINE())
{
    mu_emulated_ab mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    mu_emulated_mma_s8(d, mu_emulated_collective(0xffffffffu, "mu_mma_s8_k32", line, &mine, sizeof mine), c, 32);
}
static inline void mu_mma_s8_k16(int d[4], const uint32_t a[2], uint32_t b, const int c[4], int line = __builtin_LINE())
{
    mu_emulated_ab mine = {{a[0], a[1], 0, 0}, {b, 0}};
    mu_emulated_mma_s8(d, mu_emulated_collective(0xffffffffu, "mu_mma_s8_k16", line, &mine, sizeof mine), c, 16);
}

/* a[reg]: rows g, g + 8, columns 2t, 2t + 1, and those 8 further; b[reg] likewise. */
static inline float mu_emulated_bf16(uint32_t pair, int high)
{
    return __uint_as_float(high ? pair & 0xffff0000u : pair << 16);
}
static inline void mu_mma_bf16_k16(float d[4], const uint32_t a[4], const uint32_t b[2], const float c[4],
                                   int line = __builtin_LINE())
{
    mu_emulated_ab mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    const mu_emulated_slot *s = mu_emulated_collective(0xffffffffu, "mu_mma_bf16_k16", line, &mine, sizeof mine);
    int lane = mu_emulated_lane(), g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; i++) {
        int row = i < 2 ? g : g + 8, col = 2 * t + i % 2;
        float sum = c[i];
        for (int j = 0; j < 16; j++) {
            uint32_t of_a = mu_emulated_of<mu_emulated_ab>(s, row % 8 * 4 + j % 8 / 2).a[row / 8 + j / 8 * 2];
            uint32_t of_b = mu_emulated_of<mu_emulated_ab>(s, col * 4 + j % 8 / 2).b[j / 8];
            sum = fmaf(mu_emulated_bf16(of_a, j % 2), mu_emulated_bf16(of_b, j % 2), sum);
        }
        d[i] = sum;
    }
}

/* The same with a half in place of a bf16. On the device a zero factor adds nothing to finite sums, and so here. */
static inline void mu_mma_f16_k16(float d[4], const uint32_t a[4], const uint32_t b[2], const float c[4],
                                  int line = __builtin_LINE())
{
    mu_emulated_ab mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    const mu_emulated_slot *s = mu_emulated_collective(0xffffffffu, "mu_mma_f16_k16", line, &mine, sizeof mine);
    int lane = mu_emulated_lane(), g = lane / 4, t = lane % 4;
    float rows[2][16], cols[2][16]; /* of a: g and g + 8; of b: 2t and 2t + 1 */
    for (int j = 0; j < 16; j++)
        for (int i = 0; i < 2; i++) {
            uint32_t of_a = mu_emulated_of<mu_emulated_ab>(s, g * 4 + j % 8 / 2).a[i + j / 8 * 2];
            uint32_t of_b = mu_emulated_of<mu_emulated_ab>(s, (2 * t + i) * 4 + j % 8 / 2).b[j / 8];
            rows[i][j] = mu_half_to_f32((uint16_t)(of_a >> 16 * (j % 2)));
            cols[i][j] = mu_half_to_f32((uint16_t)(of_b >> 16 * (j % 2)));
        }
    for (int i = 0; i < 4; i++) {
        float sum = c[i];
        for (int j = 0; j < 16; j++) sum = fmaf(rows[i / 2][j], cols[i % 2][j], sum);
        d[i] = sum;
    }
}

static inline void mu_emulated_ldmatrix(uint32_t *r, int n, const void *row, const char *op, int line)
{
    const mu_emulated_slot *s = mu_emulated_collective(0xffffffffu, op, line, &row, sizeof row);
    int lane = mu_emulated_lane();
    for (int m = 0; m < n; m++) {
        const char *p = mu_emulated_of<const char *>(s, 8 * m + lane / 4);
        if ((uintptr_t)p % 16)
            mu_emulated_die("%s (line %d): lane %d's row is not aligned to 16", op, line, 8 * m + lane / 4);
        memcpy(&r[m], p + 4 * (lane % 4), 4);
    }
    /* On the device all rows are read before a lane goes on; here a lane that goes on may write what another reads. */
    mu_emulated_collective(0xffffffffu, op, line, nullptr, 0);
}
static inline void mu_ldmatrix_x4(uint32_t r[4], const void *row, int line = __builtin_LINE())
{
    mu_emulated_ldmatrix(r, 4, row, "mu_ldmatrix_x4", line);
}

static inline void mu_cp_async16(void *dst, const void *src, int n = 16)
{
    mu_emulated_copy(dst, src, 16, n);
}
static inline void mu_cp_async4(void *dst, const void *src, int n = 4)
{
    mu_emulated_copy(dst, src, 4, n);
}
static inline void mu_cp_async_commit(void)
{
    mu_emulated_copy_commit();
}
template <int N> static inline void mu_cp_async_wait(void)
{
    mu_emulated_copy_wait(N);
}

static inline void mu_emulated_aligned(const void *p, unsigned n)
{
    if ((uintptr_t)p % n) mu_emulated_die("a read of %u bytes at %p: not aligned", n, p);
}
static inline uint4 mu_ld_stream16(const void *p)
{
    mu_emulated_aligned(p, 16);
    return *(const uint4 *)p;
}
static inline void mu_prefetch_l2(const void *p, size_t n)
{
    mu_emulated_aligned(p, 16);
    mu_emulated_aligned((const void *)n, 16);
}
static inline void mu_barrier_wait(int id, int n)
{
    mu_emulated_named_barrier(id, n, true);
}
static inline void mu_barrier_arrive(int id, int n)
{
    mu_emulated_named_barrier(id, n, false);
}
static inline void mu_grid_wait(void)
{
    mu_emulated_grid_wait();
}
static inline void mu_grid_release(void) {}
static inline void mu_grid_begin(void)
{
    mu_emulated_grid_wait();
}

/* Tininess is judged after rounding to 24 bits with an unbounded exponent; what PTX leaves open here, the kernels do
 * not rely on. */
static inline float mu_fma_ftz(float a, float b, float c)
{
    float v[3] = {a, b, c};
    for (float &x : v)
        if (fabsf(x) < 0x1p-126f) x = copysignf(0.0f, x);
    float r = fmaf(v[0], v[1], v[2]);
    bool tiny = fabs((double)v[0] * (double)v[1] + (double)v[2]) < 0x1p-126 - 0x1p-151;
    return fabsf(r) < 0x1p-126f || (fabsf(r) == 0x1p-126f && tiny) ? copysignf(0.0f, r) : r;
}

static inline uint32_t mu_bf16_pair(float low, float high)
{
    uint32_t r = 0;
    for (float x : {high, low}) {
        uint32_t u = __float_as_uint(x);
        u = x != x ? 0x7fffu : (u + 0x7fffu + (u >> 16 & 1)) >> 16;
        r = r << 16 | u;
    }
    return r;
}
/* In double first, which shows only where a·b and c are more than 2^29 apart. */
static inline uint32_t mu_bf16_pair_fma(uint32_t a, uint32_t b, uint32_t c)
{
    float r[2];
    for (int i = 0; i < 2; i++)
        r[i] =
            (float)((double)mu_emulated_bf16(a, i) * (double)mu_emulated_bf16(b, i) + (double)mu_emulated_bf16(c, i));
    return mu_bf16_pair(r[0], r[1]);
}

#endif
