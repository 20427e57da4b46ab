/* Vectors as operand B of the tensor cores' bf16 product, from the form that the type of the matrix has them in.
 *
 * A stage has 64 columns of each of the tile's vectors as they come: codes and scales, f32, or bf16. Of the first two, bf16
 * is made from them a stage ahead, once a block of threads: that is an eighth of what the warps then multiply, takes no
 * memory of the device and no launch of its own, and codes are half of what bf16 would be to bring. The work is cut into
 * as many parts as a stage has steps, to be done between the products of the stage before.
 *
 * As bf16 a vector has a row of 128 bytes: eight pieces, two for each step of 16 columns, so that ldmatrix reads piece 2s
 * as the first, piece 2s + 1 as the second half of step s, in the order in which the weights come:
 *
 *   codes      0 2 4 6 8 10 12 14    1 3 5 7 9 11 13 15
 *   F32        0 4 1 5 2 6 3 7       8 12 9 13 10 14 11 15
 *   F16, BF16  ascending
 *
 * Piece p of row v lies at place p ^ v % 8, so that no two of eight neighbouring rows share banks; what is brought is
 * turned likewise. Beyond the last column are zeros. */
#ifndef MU_KERNELS_CUDA_ROUGH_VECTORS_H
#define MU_KERNELS_CUDA_ROUGH_VECTORS_H

#include "kernels/cuda/ptx.h"
#include "kernels/cuda/tiles_place.h"

enum mu_rough_form { MU_ROUGH_Q8, MU_ROUGH_F32, MU_ROUGH_BF16 };

__host__ __device__ constexpr enum mu_rough_form mu_rough_form_of(uint32_t type)
{
    return type == MU_BF16 ? MU_ROUGH_BF16 : type == MU_F32 || type == MU_F16 ? MU_ROUGH_F32 : MU_ROUGH_Q8;
}

template <uint32_t type, typename Shape> struct mu_rough_vectors {
    static constexpr enum mu_rough_form FORM = mu_rough_form_of(type);
    enum {
        ROW = 64 * (FORM == MU_ROUGH_Q8    ? 1
                    : FORM == MU_ROUGH_F32 ? 4
                                           : 2), /* bytes of a vector as it comes */
        PIECES = ROW / 16,
        S = Shape::VECS * ROW, /* behind them: scales [2][VECS] */
        STAGE = S + (FORM == MU_ROUGH_Q8 ? 2 * 4 * Shape::VECS : 0),
        BF16_ROW = 128,
        PREPARED = FORM == MU_ROUGH_BF16 ? 0 : Shape::VECS * BF16_ROW,
        PARTS = 4, /* of the preparation; steps of a stage */
    };
    static_assert(Shape::BLOCKS == 2, "64 columns");

    /* Where piece c of a row lies in it. */
    __device__ static unsigned turned(unsigned row, unsigned c)
    {
        return 16 * (FORM == MU_ROUGH_Q8 ? c ^ (row >> 1 & 3) : c ^ (row & 7));
    }

    /* ---- a stage's copies ---- */

    /* Whether the rows of x can be brought in pieces. */
    __device__ static bool whole(const struct mu_tile_args &x)
    {
        if constexpr (FORM == MU_ROUGH_Q8) return true;
        const void *p = FORM == MU_ROUGH_F32 ? (const void *)x.f32 : (const void *)x.bf16;
        return x.n_col % (FORM == MU_ROUGH_F32 ? 4 : 8) == 0 && (uintptr_t)p % 16 == 0;
    }

    /* A piece at column c of row `from`, value by value. */
    __device__ static void copy_values(uint8_t *dst, const struct mu_tile_args &x, size_t from, unsigned c)
    {
        size_t at = from * (unsigned)x.n_col + c;
        unsigned left = c < (unsigned)x.n_col ? (unsigned)x.n_col - c : 0;
        if constexpr (FORM == MU_ROUGH_F32) {
            for (unsigned i = 0; i < 4; i++)
                mu_cp_async4(dst + 4 * i, i < left ? x.f32 + at + i : x.f32, i < left ? 4 : 0);
        } else {
            uint32_t w[4] = {};
            for (unsigned i = 0; i < 8; i++)
                if (i < left) w[i / 2] |= (uint32_t)x.bf16[at + i] << 16 * (i % 2);
            *reinterpret_cast<uint4 *>(dst) = make_uint4(w[0], w[1], w[2], w[3]);
        }
    }

    /* The 64 columns from block b on, of which some may be beyond the last. vector: rows of x, in the tile's order. */
    __device__ static void copy(uint8_t *stage, const struct mu_tile_args &x, const uint32_t *vector, unsigned b,
                                bool pieces)
    {
        constexpr unsigned n = Shape::VECS * PIECES, values = 64 / PIECES;
#pragma unroll
        for (unsigned first = 0; first < n; first += Shape::THREADS) {
            unsigned i = first + threadIdx.x, row = i / PIECES, c = i % PIECES, col = 32 * b + values * c;
            if (first + Shape::THREADS > n && i >= n) break;
            size_t from = vector[mu_tile_vector_at(row)];
            uint8_t *dst = stage + row * ROW + turned(row, c);
            bool in = col < (unsigned)x.n_col;
            size_t at = in ? from * (unsigned)x.n_col + col : 0;
            if constexpr (FORM == MU_ROUGH_Q8)
                mu_cp_async16(dst, x.q + at, in ? 16 : 0);
            else if (!pieces)
                copy_values(dst, x, from, col);
            else if constexpr (FORM == MU_ROUGH_F32)
                mu_cp_async16(dst, x.f32 + at, in ? 16 : 0);
            else
                mu_cp_async16(dst, x.bf16 + at, in ? 16 : 0);
        }
        if constexpr (FORM == MU_ROUGH_Q8) {
            constexpr unsigned n_scale = 2 * Shape::VECS;
            unsigned n_block = (unsigned)x.n_col / 32;
#pragma unroll
            for (unsigned first = 0; first < n_scale; first += Shape::THREADS) {
                unsigned i = first + threadIdx.x, row = i / 2, k = i % 2;
                if (first + Shape::THREADS > n_scale && i >= n_scale) break;
                bool in = b + k < n_block;
                size_t from = vector[mu_tile_vector_at(row)];
                mu_cp_async4(stage + S + 4 * (k * Shape::VECS + row), x.s + (in ? from * n_block + b + k : 0),
                             in ? 4 : 0);
            }
        }
    }

    /* ---- bf16 of it ---- */

    /* The 16 columns of step j of a row. */
    __device__ static void values_load(const uint8_t *stage, unsigned row, unsigned j, float v[16])
    {
        if constexpr (FORM == MU_ROUGH_Q8) {
            uint4 q = *reinterpret_cast<const uint4 *>(stage + row * ROW + turned(row, j));
            float s = *reinterpret_cast<const float *>(stage + S + 4 * (j / 2 * Shape::VECS + row));
            const uint32_t word[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
            for (int i = 0; i < 16; i++) { /* 2^23 + 128 + the code, by its bits */
                uint32_t bits = __byte_perm(word[i / 4] ^ 0x80808080u, 0x4b000000u, 0x7540u + (uint32_t)(i % 4));
                v[i] = (__uint_as_float(bits) - 8388736.0f) * s;
            }
        } else {
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                float4 f = *reinterpret_cast<const float4 *>(stage + row * ROW + turned(row, 4 * j + i));
                v[4 * i] = f.x, v[4 * i + 1] = f.y, v[4 * i + 2] = f.z, v[4 * i + 3] = f.w;
            }
        }
    }

    /* Where value i of a step's two pieces comes from. */
    __device__ static constexpr int column_of(int i)
    {
        return type == MU_F16 ? i : type == MU_F32 ? i / 8 * 8 + i % 8 / 2 + i % 2 * 4 : i % 8 * 2 + i / 8;
    }

    template <int part> __device__ static void prepare(const uint8_t *stage, uint8_t *prepared)
    {
        if constexpr (FORM != MU_ROUGH_BF16) {
            constexpr unsigned n = Shape::VECS * PARTS;
            constexpr int each = (n + Shape::THREADS - 1) / Shape::THREADS; /* items of a thread */
#pragma unroll
            for (int turn = each * part / PARTS; turn < each * (part + 1) / PARTS; turn++) {
                unsigned i = (unsigned)turn * Shape::THREADS + threadIdx.x, row = i % Shape::VECS, j = i / Shape::VECS;
                if (n % Shape::THREADS != 0 && i >= n) break;
                float v[16];
                values_load(stage, row, j, v);
#pragma unroll
                for (unsigned half = 0; half < 2; half++) {
                    uint32_t w[4];
#pragma unroll
                    for (int k = 0; k < 4; k++)
                        w[k] =
                            mu_bf16_pair(v[column_of(8 * (int)half + 2 * k)], v[column_of(8 * (int)half + 2 * k + 1)]);
                    *reinterpret_cast<uint4 *>(prepared + row * BF16_ROW + 16 * ((2 * j + half) ^ (row & 7))) =
                        make_uint4(w[0], w[1], w[2], w[3]);
                }
            }
        }
    }
};

#endif
