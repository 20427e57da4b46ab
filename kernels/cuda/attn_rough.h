/* How tiles of the cache come to rough attention as f16: the ring of attn_rough.cu. Private to it.
 *
 * A tile is 64 positions, two pages, from a multiple of 64 on. Its keys are an item, its values the next one. In shared
 * memory an item lies as an F16 page has it (kv.h), which is what ldmatrix wants: 16 bytes, a row of a matrix, are 8
 * dimensions of a key, or 8 positions of a dimension, and the 8 rows of a matrix are 128 bytes that lie together, so no
 * two of them meet in a bank. Each page has room for WIDTH dimensions; the rows beyond the model's own stay as the
 * kernel made them.
 *
 *   F16     cp.async, straight into one of three slots, two items ahead
 *   Q8_0    cp.async of codes and scales, two items ahead; all threads widen an item while the one before it is
 *           multiplied. A product that f16 does not hold is the largest that it does; a NaN for a scale stays one
 *
 * With item i's turn (a wait for PENDING groups, a barrier), item i is in its slot, and what item i - 1 was in is free. */
#ifndef MU_KERNELS_CUDA_ATTN_ROUGH_H
#define MU_KERNELS_CUDA_ATTN_ROUGH_H

#include "kernels/cuda/attn.h"

enum { MU_ROUGH_PAGES = 2, MU_ROUGH_TILE = MU_ROUGH_PAGES * MU_KV_PAGE };

/* Half a block of threads, of whom I am number `me`, copies n of at most MOST rows of 16 bytes. */
template <int MOST, int THREADS>
static __device__ inline void mu_rough_copy(uint4 *to, const unsigned char *from, int n, int me)
{
#pragma unroll
    for (int i = 0; i < (MOST + THREADS - 1) / THREADS; i++) {
        int row = i * THREADS + me;
        if (row < n) mu_cp_async16(to + row, from + 16 * (size_t)row);
    }
}

template <int WIDTH> struct mu_rough_f16 {
    enum { SLOTS = 3, PENDING = 1, PAGE_ROWS = 4 * WIDTH, WIDENS = 0 };
    uint4 slot[SLOTS][MU_ROUGH_PAGES][PAGE_ROWS];

    /* The keys or values of page `part` of the tile: half of the block's threads a page. */
    template <int THREADS>
    __device__ inline void fetch(int item, int part, const unsigned char *half, int d_head, int me)
    {
        mu_rough_copy<PAGE_ROWS, THREADS / 2>(slot[item % SLOTS][part], half, 4 * d_head, me);
    }
    template <int THREADS> __device__ inline void widen(int, int, int) {}
};

template <int WIDTH> struct mu_rough_q8 {
    enum { SLOTS = 2, PENDING = 0, PAGE_ROWS = 4 * WIDTH, WIDENS = 1, RAW_ROWS = 2 * WIDTH + 8 * (WIDTH / MU_Q_BLOCK) };
    uint4 slot[SLOTS][MU_ROUGH_PAGES][PAGE_ROWS];
    uint4 raw[SLOTS][MU_ROUGH_PAGES][RAW_ROWS];

    template <int THREADS>
    __device__ inline void fetch(int item, int part, const unsigned char *half, int d_head, int me)
    {
        int rows = 2 * d_head + 8 * ((d_head + MU_Q_BLOCK - 1) / MU_Q_BLOCK);
        mu_rough_copy<RAW_ROWS, THREADS / 2>(raw[item % SLOTS][part], half, rows, me);
    }

    /* 16 codes times 16 scales, as two rows of halves. */
    static __device__ inline void put(uint4 code, const float scale[16], uint4 *low, uint4 *high)
    {
        uint32_t w[8];
#pragma unroll
        for (int four = 0; four < 4; four++) {
            float x[4];
            mu_kv_q8<false>::widen(code, four, x);
#pragma unroll
            for (int i = 0; i < 2; i++)
                w[2 * four + i] =
                    mu_f32_to_half2(x[2 * i] * scale[4 * four + 2 * i], x[2 * i + 1] * scale[4 * four + 2 * i + 1]);
        }
        *low = make_uint4(w[0], w[1], w[2], w[3]);
        *high = make_uint4(w[4], w[5], w[6], w[7]);
    }
    /* With it the largest code is still finite in f16. */
    static __device__ inline float bounded(float scale)
    {
        return scale > 515.0f ? 515.0f : scale;
    }
    static __device__ inline void widen_key(uint4 *to, const uint4 *from, int d_head, int u, int pos)
    {
        float s = bounded(((const float *)(from + 2 * d_head))[MU_KV_PAGE * (u / 2) + pos]), scale[16];
#pragma unroll
        for (int i = 0; i < 16; i++) scale[i] = s;
        put(from[MU_KV_PAGE * u + pos], scale, to + 2 * u * MU_KV_PAGE + pos, to + (2 * u + 1) * MU_KV_PAGE + pos);
    }
    static __device__ inline void widen_value(uint4 *to, const uint4 *from, int d_head, int u, int d)
    {
        const float4 *s = (const float4 *)(from + 2 * d_head) + MU_KV_PAGE / 4 * (d / MU_Q_BLOCK) + 4 * u;
        float scale[16];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float4 four = s[i];
            scale[4 * i] = bounded(four.x), scale[4 * i + 1] = bounded(four.y);
            scale[4 * i + 2] = bounded(four.z), scale[4 * i + 3] = bounded(four.w);
        }
        put(from[u * d_head + d], scale, to + 2 * u * d_head + d, to + (2 * u + 1) * d_head + d);
    }
    /* The item's codes into its slot: of keys, unit u of 16 dimensions at a position; of values, of 16 positions. */
    template <int THREADS> __device__ inline void widen(int item, int d_head, int tid)
    {
#pragma unroll 1
        for (int i = tid; i < MU_ROUGH_PAGES * 2 * WIDTH; i += THREADS) {
            int page = i / (2 * WIDTH), rest = i % (2 * WIDTH);
            uint4 *to = slot[item % SLOTS][page];
            const uint4 *from = raw[item % SLOTS][page];
            if (item % 2 == 0) {
                int u = rest / MU_KV_PAGE;
                if (MU_KV_UNIT * u < d_head) widen_key(to, from, d_head, u, rest % MU_KV_PAGE);
            } else if (rest % WIDTH < d_head) {
                widen_value(to, from, d_head, rest / WIDTH, rest % WIDTH);
            }
        }
    }
};

#endif
