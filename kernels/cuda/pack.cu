/* Weights as layout.h has them, made on the device out of a file's rows.
 *
 * A warp makes one unit of a group: each lane gathers the words that it will hold as operand A (layout.h's drawing) from
 * the rows g and g + 8, in blocks.h's form of four codes at a time, and puts their bits into the planes; then the first
 * eight lanes pack the scales of two rows each. Reading is by bytes, as blocks lie anywhere; that is still far above what
 * the host's link brings. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/layout.h"

/* Four codes 4k … 4k+3 of block j of what begins at p, the file's block. */
template <uint32_t type> __device__ static uint32_t file_codes(const uint8_t *p, int j, int k)
{
    switch (type) {
    case MU_Q4_0:
    case MU_IQ4_NL: return mu_q4_0_codes(p + offsetof(struct mu_block_q4_0, qs), k);
    case MU_Q4_1: return mu_q4_0_codes(p + offsetof(struct mu_block_q4_1, qs), k);
    case MU_MXFP4: return mu_q4_0_codes(p + offsetof(struct mu_block_mxfp4, qs), k);
    case MU_Q5_0:
        return mu_q5_0_codes(p + offsetof(struct mu_block_q5_0, qs), p + offsetof(struct mu_block_q5_0, qh), k);
    case MU_Q5_1:
        return mu_q5_0_codes(p + offsetof(struct mu_block_q5_1, qs), p + offsetof(struct mu_block_q5_1, qh), k);
    case MU_Q8_0: return mu_load_u32(p + offsetof(struct mu_block_q8_0, qs) + 4 * k);
    case MU_Q2_K: return mu_low2_codes(p + offsetof(struct mu_block_q2_k, qs), j, k);
    case MU_Q3_K: return mu_q3_k_codes(reinterpret_cast<const struct mu_block_q3_k *>(p), j, k);
    case MU_Q4_K: return mu_q4_k_codes(p + offsetof(struct mu_block_q4_k, qs), j, k);
    case MU_Q5_K: return mu_q5_k_codes(reinterpret_cast<const struct mu_block_q5_k *>(p), j, k);
    case MU_Q6_K: return mu_q6_k_codes(reinterpret_cast<const struct mu_block_q6_k *>(p), j, k);
    default: return mu_q4_0_codes(p + offsetof(struct mu_block_iq4_xs, qs) + 16 * j, k);
    }
}

/* ---- codes ---- */

/* Four nibbles, one a byte, side by side. */
__device__ static uint32_t nibbles_gather(uint32_t a)
{
    return (a & 15) | (a >> 4 & 0xf0) | (a >> 8 & 0xf00) | (a >> 12 & 0xf000);
}

/* The inverse of mu_codes_pair, of codes a. */
template <uint32_t type> __device__ static void pair_store(uint8_t *unit, int p, int lane, const uint32_t a[2][4])
{
    typedef mu_layout<type> L;
    uint8_t *low = unit + p * L::LOW_PAIR, *high = unit + L::HIGH_AT + p * L::HIGH_PAIR;
    uint32_t two[2] = {0, 0}, up[2] = {0, 0}, one = 0;
    for (int i = 0; i < 8; i++) {
        uint32_t v = a[i >> 2][i & 3];
        two[i >> 2] |= (v & 0x03030303u) << 2 * (i & 3);
        up[i >> 2] |= (v >> L::LOW % 8 & 0x03030303u) << 2 * (i & 3);
        one |= (v >> L::LOW % 8 & 0x01010101u) << i;
    }
    if (L::LOW == 8) {
        for (int k = 0; k < 2; k++)
            reinterpret_cast<uint4 *>(low)[32 * k + lane] = make_uint4(a[k][0], a[k][1], a[k][2], a[k][3]);
    } else if (L::LOW == 4) {
        uint32_t w[4];
        for (int i = 0; i < 4; i++) {
            uint32_t even = a[i >> 1][2 * (i & 1)], odd = a[i >> 1][2 * (i & 1) + 1];
            w[i] = L::TABLE ? nibbles_gather(even) | nibbles_gather(odd) << 16
                            : (even & 0x0f0f0f0fu) | (odd & 0x0f0f0f0fu) << 4;
        }
        reinterpret_cast<uint4 *>(low)[lane] = make_uint4(w[0], w[1], w[2], w[3]);
    } else {
        reinterpret_cast<uint2 *>(low)[lane] = make_uint2(two[0], two[1]);
    }
    if (L::HIGH == 2) reinterpret_cast<uint2 *>(high)[lane] = make_uint2(up[0], up[1]);
    if (L::HIGH == 1) reinterpret_cast<uint32_t *>(high)[lane] = one;
}

/* ---- scales ---- */

__device__ static bool half_bad(uint16_t h)
{
    return (h & 0x7c00u) == 0x7c00u;
}

/* f16 number i of those that begin at p. */
__device__ static void half_store(uint8_t *p, int i, uint16_t h)
{
    reinterpret_cast<uint16_t *>(p)[i] = h;
}

/* Bits of eight numbers v from bit `from` on, n of them, at bit `at` of byte b (and `step` higher for numbers b + 4). */
__device__ static uint32_t bits_spread(const int v[8], int from, int n, int at, int step)
{
    uint32_t w = 0;
    for (int j = 0; j < 8; j++) w |= ((uint32_t)v[j] >> from & ((1u << n) - 1)) << (8 * (j & 3) + at + step * (j >> 2));
    return w;
}

__device__ static uint32_t bytes_word(const int v[4])
{
    return (uint32_t)v[0] | (uint32_t)v[1] << 8 | (uint32_t)v[2] << 16 | (uint32_t)v[3] << 24;
}

/* Six-bit numbers x, y of row (g, h) as layout.h's three words. */
__device__ static void six_store(uint8_t *words, int gh, const int x[8], const int y[8])
{
    uint32_t *w = reinterpret_cast<uint32_t *>(words);
    w[gh] = bits_spread(x, 0, 4, 0, 4);
    w[16 + gh] = bits_spread(y, 0, 4, 0, 4);
    w[32 + gh] = bits_spread(x, 4, 2, 0, 2) | bits_spread(y, 4, 2, 4, 2);
}

/* A pair's scales of row (g, h), from the blocks at p (n of them: 0, 1, 2). false: one is not finite. */
template <uint32_t type> __device__ static bool pair_scales_store(uint8_t *to, int g, int h, const uint8_t *p, int n)
{
    typedef mu_layout<type> L;
    bool ok = true;
    for (int k = 0; k < 2; k++) {
        const uint8_t *b = p + k * sizeof(typename L::file_block);
        if (L::KIND == MU_SCALE_E) {
            uint8_t e = k < n ? b[0] : 0;
            to[4 * g + 2 * k + h] = e;
            ok &= e != 255;
        } else {
            uint16_t d = 0, m = 0;
            if (k < n) d = (uint16_t)(b[0] | b[1] << 8);
            if (k < n && L::KIND == MU_SCALE_DM) m = (uint16_t)(b[2] | b[3] << 8);
            ok &= !half_bad(d) && !half_bad(m);
            if (L::KIND == MU_SCALE_DM) {
                half_store(to, 8 * g + 4 * k + h, d);
                half_store(to, 8 * g + 4 * k + 2 + h, m);
            } else {
                half_store(to, 4 * g + 2 * k + h, d);
            }
        }
    }
    return ok;
}

/* A K type's: of row (g, h), h = 0 first, from the block at p, NULL: a row that is not there. */
template <uint32_t type> __device__ static bool k_scales_store(uint8_t *to, int g, int h, const uint8_t *p)
{
    typedef typename mu_layout<type>::file_block block;
    const int gh = 2 * g + h;
    uint16_t d = 0, dmin = 0;
    int x[8] = {}, y[8] = {}, mx[8] = {}, my[8] = {};
    for (int j = 0; p && j < 8; j++) {
        uint8_t sc, mn;
        const struct mu_block_q2_k *q2 = reinterpret_cast<const struct mu_block_q2_k *>(p);
        const struct mu_block_q3_k *q3 = reinterpret_cast<const struct mu_block_q3_k *>(p);
        const struct mu_block_q6_k *q6 = reinterpret_cast<const struct mu_block_q6_k *>(p);
        switch (type) {
        case MU_Q4_K:
        case MU_Q5_K:
            mu_k4_scale(p + offsetof(struct mu_block_q4_k, scales), j, &sc, &mn);
            x[j] = sc;
            y[j] = mn;
            break;
        case MU_IQ4_XS: x[j] = mu_iq4_xs_scale(reinterpret_cast<const struct mu_block_iq4_xs *>(p), j) + 32; break;
        case MU_Q3_K:
            x[j] = mu_q3_k_scale(q3->scales, 2 * j) + 32;
            y[j] = mu_q3_k_scale(q3->scales, 2 * j + 1) + 32;
            break;
        case MU_Q6_K:
            x[j] = (uint8_t)q6->scales[2 * j];
            y[j] = (uint8_t)q6->scales[2 * j + 1];
            break;
        default:
            x[j] = q2->scales[2 * j] & 15;
            y[j] = q2->scales[2 * j + 1] & 15;
            mx[j] = q2->scales[2 * j] >> 4;
            my[j] = q2->scales[2 * j + 1] >> 4;
        }
    }
    if (p) {
        const uint8_t *f = p + offsetof(block, d);
        d = (uint16_t)(f[0] | f[1] << 8);
        if (mu_layout<type>::HAS_MIN) dmin = (uint16_t)(f[2] | f[3] << 8); /* follows d in each of these types */
    }
    if (mu_layout<type>::HAS_MIN) {
        half_store(to, 4 * g + h, d);
        half_store(to, 4 * g + 2 + h, dmin);
        to += 64;
    } else {
        half_store(to, gh, d);
        to += 32;
    }
    uint32_t *w = reinterpret_cast<uint32_t *>(to);
    switch (mu_layout<type>::KIND) {
    case MU_SCALE_XS:
        w[gh] = bits_spread(x, 0, 4, 0, 4);
        w[16 + g] = (h ? w[16 + g] : 0) | bits_spread(x, 4, 2, 4 * h, 2); /* one word of both rows */
        break;
    case MU_SCALE_H8:
        for (int i = 0; i < 2; i++) {
            w[16 * i + gh] = bytes_word(x + 4 * i);
            w[16 * (2 + i) + gh] = bytes_word(y + 4 * i);
        }
        break;
    case MU_SCALE_H4:
        w[gh] = bits_spread(x, 0, 4, 0, 4);
        w[16 + gh] = bits_spread(mx, 0, 4, 0, 4);
        w[32 + gh] = bits_spread(y, 0, 4, 0, 4);
        w[48 + gh] = bits_spread(my, 0, 4, 0, 4);
        break;
    default: six_store(to, gh, x, y);
    }
    return !half_bad(d) && !half_bad(dmin);
}

/* ---- the kernel ---- */

enum { WARPS = 4 };

/* Units of groups [group0, group0 + n_group), a warp each. raw: the file's rows from row 16·group0 on, n_row of them. */
template <uint32_t type>
__global__ static void pack_kernel(uint8_t *data, const uint8_t *raw, int group0, int n_group, int n_row, int n_col,
                                   int32_t *bad)
{
    typedef mu_layout<type> L;
    const size_t block_bytes = sizeof(typename L::file_block);
    const int block_values = L::BLOCKS == 2 ? 32 : 256, n_block = n_col / 32;
    const size_t row_bytes = (size_t)(n_col / block_values) * block_bytes;
    const int n_unit = (n_col + 32 * L::BLOCKS - 1) / (32 * L::BLOCKS);
    const size_t i = (size_t)blockIdx.x * WARPS + threadIdx.x / 32;
    if (i >= (size_t)n_group * (size_t)n_unit) return;
    const int group = (int)(i / (size_t)n_unit), u = (int)(i % (size_t)n_unit), lane = threadIdx.x % 32;
    uint8_t *unit = data + ((size_t)(group0 + group) * (size_t)n_unit + (size_t)u) * L::UNIT_BYTES;
    for (int p = 0; p < L::PAIRS; p++) {
        uint32_t a[2][4];
        for (int k = 0; k < 8; k++) {
            int row = 16 * group + lane / 4 + 8 * (k & 1), j = 2 * p + (k >> 2), at = u * L::BLOCKS + j;
            const uint8_t *b = raw + (size_t)row * row_bytes + (size_t)(at / (block_values / 32)) * block_bytes;
            a[k >> 2][k & 3] = row < n_row && at < n_block ? file_codes<type>(b, j, lane % 4 + 4 * (k >> 1 & 1)) : 0;
        }
        pair_store<type>(unit, p, lane, a);
    }
    for (int h = 0; h < 2 && lane < 8; h++) {
        int row = 16 * group + lane + 8 * h, left = n_block - u * L::BLOCKS;
        const uint8_t *b = raw + (size_t)row * row_bytes + (size_t)(L::BLOCKS == 2 ? 2 * u : u) * block_bytes;
        bool ok;
        if constexpr (L::BLOCKS == 2)
            ok = pair_scales_store<type>(unit + L::SCALES_AT, lane, h, b, row >= n_row ? 0 : left < 2 ? left : 2);
        else
            ok = k_scales_store<type>(unit + L::SCALES_AT, lane, h, row < n_row ? b : NULL);
        if (!ok) *bad = 1;
    }
}

template <uint32_t type> struct pack {
    static void run(struct mu_device *d, const struct mu_mat *m, int row0, int row1, const void *raw, int32_t *bad)
    {
        typedef mu_layout<type> L;
        int n_group = (row1 - row0 + 15) / 16, n_unit = (m->n_col + 32 * L::BLOCKS - 1) / (32 * L::BLOCKS);
        size_t n = ((size_t)n_group * (size_t)n_unit + WARPS - 1) / WARPS;
        mu_launch(d, "packing weights", pack_kernel<type>, dim3((unsigned)n), dim3(32 * WARPS), 0, m->data, raw,
                  row0 / 16, n_group, row1 - row0, m->n_col, bad);
    }
};

template <uint32_t type> struct group_bytes {
    static void run(int n_col, size_t *bytes) { *bytes = mu_layout_group_bytes<type>(n_col); }
};

size_t mu_cuda_mat_bytes(uint32_t type, int n_row, int n_col)
{
    const struct mu_type_info *info = mu_type_info(type);
    size_t bytes = 0;
    if (!info || info->act == MU_ACT_NONE || n_row < 0 || n_col < 0 || n_col % info->block_values != 0) return 0;
    if (!mu_layout_call<group_bytes>(type, n_col, &bytes)) return mu_cuda_float_mat_bytes(type, n_row, n_col);
    if (__builtin_mul_overflow(bytes, (size_t)((int64_t)n_row + 15) / 16, &bytes)) return 0;
    return bytes;
}

void mu_cuda_mat_pack(struct mu_device *d, const struct mu_mat *m, int row0, int row1, const void *raw, int32_t *bad)
{
    if (row0 >= row1) return;
    d->packed = true;
    if (!mu_layout_call<pack>(m->type, d, m, row0, row1, raw, bad)) mu_cuda_float_mat_pack(d, m, row0, row1, raw, bad);
}
