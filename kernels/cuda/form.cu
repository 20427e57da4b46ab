/* Vectors of f32 in the forms that matrices want, and back (C1; kernels/ref/quantize.c).
 *
 * Bound by memory: every value is read once, four at a time, and a block of 32 is eight lanes side by side. A block needs
 * nothing of its neighbours, so pieces of vectors are spread over the machine however many tokens there are. */
#include "kernels/cuda/form.h"
#include "kernels/cuda/ptx.h"

enum { THREADS = 256 };

/* Piece blockIdx.y of vector blockIdx.x. */
template <int V> static __global__ void form_kernel(const float *src, size_t stride, int n, const struct mu_act_to to)
{
    mu_grid_begin();
    int i = (blockIdx.y * THREADS + threadIdx.x) * V;
    bool in = i < n;
    float v[V] = {};
    if (in) mu_load_values<V>(v, src + blockIdx.x * stride + i);
    mu_store_forms<V>(to, blockIdx.x * (size_t)n + i, in, v);
}

void mu_cuda_form(struct mu_device *d, const float *src, size_t stride, int n_tok, int n, const struct mu_act_to *to)
{
    bool four = n % 4 == 0 && stride % 4 == 0 && mu_aligned(src, 16) && mu_forms_by_four(to);
    int each = THREADS * (four ? 4 : 1);
    mu_launch_early(d, "form", four ? form_kernel<4> : form_kernel<1>, dim3(n_tok, (n + each - 1) / each),
                    dim3(THREADS), 0, src, stride, n, *to);
}

static __global__ void widen_kernel(const struct mu_act x, size_t n, float *out)
{
    mu_grid_begin();
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    out[i] = x.q ? (float)x.q[i] * x.s[i / MU_Q_BLOCK] : x.bf16 ? mu_bf16_to_f32(x.bf16[i]) : x.f32[i];
}

void mu_cuda_widen(struct mu_device *d, const struct mu_act *x, float *out)
{
    size_t n = (size_t)x->n_tok * (size_t)x->n_col;
    mu_launch_early(d, "widen", widen_kernel, dim3((unsigned)((n + THREADS - 1) / THREADS)), dim3(THREADS), 0, *x, n,
                    out);
}

/* Four codes a thread, four threads a sum. */
static __global__ void block_sums_kernel(const int8_t *q, size_t n, int16_t *sum)
{
    mu_grid_begin();
    size_t i = ((size_t)blockIdx.x * THREADS + threadIdx.x) * 4;
    char4 four = i < n ? *reinterpret_cast<const char4 *>(q + i) : make_char4(0, 0, 0, 0);
    int total = four.x + four.y + four.z + four.w;
    total += __shfl_xor_sync(0xffffffffu, total, 1);
    total += __shfl_xor_sync(0xffffffffu, total, 2);
    if (i < n && i % 16 == 0) sum[i / 16] = (int16_t)total;
}

/* q begins at a block of an allocation, so at a multiple of 32 bytes. */
void mu_cuda_block_sums(struct mu_device *d, const int8_t *q, size_t n, int16_t *sum)
{
    size_t each = THREADS * 4;
    mu_launch_early(d, "block_sums", block_sums_kernel, dim3((unsigned)((n + each - 1) / each)), dim3(THREADS), 0, q, n,
                    sum);
}
