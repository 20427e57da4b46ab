/* Heads before attention: norm, rotation, the queries' own factor; keys and values into the cache. A warp has one vector of
 * one token, in shared memory while it changes; everything happens in one reading and one writing of it. For one token
 * all of this is waiting for memory, so what is read is asked for at once, and its angles with it. */
#include "kernels/cuda/kv.h"
#include "kernels/math.h"

enum { WARPS = 4, TABLE_THREADS = 128 };

static __global__ void rope_table(const float *freq, const float *freq_far, const uint8_t *far, const int32_t *pos,
                                  int n_tok, int n_pair, float mscale, float *out)
{
    size_t at = (size_t)blockIdx.x * blockDim.x + threadIdx.x, n = (size_t)n_tok * (size_t)n_pair;
    mu_grid_begin();
    if (at >= n) return;
    size_t t = at / (size_t)n_pair, i = at % (size_t)n_pair;
    const float *f = far && far[t] ? freq_far : freq;
    float s, c;
    vf_sincos((float)pos[t] * f[i], &s, &c);
    out[2 * at] = c * mscale;
    out[2 * at + 1] = s * mscale;
}

void mu_cuda_rope_table(struct mu_device *d, const float *freq, const float *freq_far, const uint8_t *far,
                        const int32_t *pos, int n_tok, int n_pair, float mscale, float *out)
{
    size_t n = (size_t)n_tok * (size_t)n_pair;
    mu_launch_early(d, "rope_table", rope_table, dim3((unsigned)((n + TABLE_THREADS - 1) / TABLE_THREADS)),
                    dim3(TABLE_THREADS), 0, freq, freq_far, far, pos, n_tok, n_pair, mscale, out);
}

/* rms_norm of C6 in place: lane i mod 16 of the contract is lanes i and i + 16 of the warp, both with all of its sum. */
static __device__ void head_norm(float *x, const float *w, int n, float eps, int lane)
{
    float ss = 0.0f;
    for (int i = lane % 16; i < n; i += 16) ss = fmaf(x[i], x[i], ss);
    for (int half = 8; half > 0; half /= 2) ss = ss + __shfl_xor_sync(0xffffffffu, ss, half);
    float r = mu_f32_finite(ss) ? 1.0f / sqrtf(ss / (float)n + eps) : mu_f32_from_bits(0x7fc00000u);
    __syncwarp();
    for (int i = lane; i < n; i += 32) x[i] = (x[i] * r) * w[i];
    __syncwarp();
}

/* n values on their way to shared memory, by a warp. */
static __device__ inline void fetch(float *to, const float *from, int n, int lane)
{
    for (int i = lane; i < n; i += 32) mu_cp_async4(to + i, from + i);
}

static __device__ void turn(float *x, const float *cos_sin, int n_rot, int neox, int lane)
{
    int half = n_rot / 2;
    for (int i = lane; i < half; i += 32) {
        int at = neox ? i : 2 * i, other = neox ? i + half : 2 * i + 1;
        float a = x[at], b = x[other], c = cos_sin[2 * i], s = cos_sin[2 * i + 1];
        float bs = b * s, bc = b * c;
        x[at] = fmaf(a, c, -bs);
        x[other] = fmaf(a, s, bc);
    }
    __syncwarp();
}

/* Token blockIdx.x. */
template <typename KV> static __global__ void __launch_bounds__(32 * WARPS) rotate(struct mu_device_rotate a)
{
    __shared__ float vector[WARPS][MU_MAX_D_HEAD], angles[WARPS][MU_MAX_D_HEAD];
    int lane = (int)threadIdx.x % 32, n = a.kv.d_head, n_kv = a.kv.n_head;
    float *x = vector[threadIdx.x / 32], *cos_sin = angles[threadIdx.x / 32];
    size_t t = blockIdx.x;
    int h = (int)(blockIdx.y * WARPS + threadIdx.x / 32), j = h - a.n_head; /* a query head; else a key, then a value */
    bool is_query = j < 0, is_value = j >= n_kv, turns = a.cos_sin && !is_value;
    mu_grid_begin();
    if (h >= a.n_head + 2 * n_kv) return; /* a warp's own affair: there are no barriers of the block */
    if (is_value) j -= n_kv;

    float *from = is_query ? a.q + (t * (size_t)a.n_head + (size_t)h) * (size_t)n
                           : (is_value ? a.v : a.k) + (t * (size_t)n_kv + (size_t)j) * (size_t)n;
    fetch(x, from, n, lane);
    if (turns) fetch(cos_sin, a.cos_sin + t * (size_t)a.n_rot, a.n_rot, lane);
    mu_cp_async_commit();
    int pos = is_query ? 0 : a.pos[t];
    unsigned char *page = is_query ? NULL : mu_kv_page(&a.kv, j, a.slot[t], pos / MU_KV_PAGE);
    mu_cp_async_wait<0>();
    __syncwarp();
    const float *w = is_query ? a.q_norm : is_value ? NULL : a.k_norm;
    if (w) head_norm(x, w, n, a.eps, lane);
    if (turns) turn(x, cos_sin, a.n_rot, a.neox, lane);
    if (is_query) {
        for (int d = lane; d < n; d += 32) from[d] = a.q_scale ? x[d] * a.q_scale[t] : x[d];
        return;
    }
    if (is_value)
        KV::value_store(page + a.kv.page_bytes / 2, n, pos % MU_KV_PAGE, x, lane);
    else
        KV::key_store(page, n, pos % MU_KV_PAGE, x, lane);
}

template <typename KV> static void launch(struct mu_device *d, const struct mu_device_rotate *a)
{
    dim3 grid((unsigned)a->n_tok, (unsigned)((a->n_head + 2 * a->kv.n_head + WARPS - 1) / WARPS));
    mu_allow_shared(d, "rotate", rotate<KV>, 0); /* to run beside the products */
    mu_launch_early(d, "rotate", rotate<KV>, grid, dim3(32 * WARPS), 0, *a);
}

void mu_cuda_rotate(struct mu_device *d, const struct mu_device_rotate *a)
{
    if (a->kv.type == MU_KV_Q8_0)
        launch<mu_kv_q8<true>>(d, a);
    else
        launch<mu_kv_f16<true>>(d, a);
}
