/* What is done with a tile's products once they are all there (epilogue.h), in shared memory as y [vectors][rows], of a
 * gated pair the rows of `up` behind those of the gate.
 *
 * A tile's epilogue is not small beside its product: a hundred instructions for each element would be a sixth of it. So
 * the two that a dense model spends its time with, nothing at all and SiLU of a gated pair, are apart, with four rows a
 * lane; all the rest goes the general way, a row a lane. */
#ifndef MU_KERNELS_CUDA_TILES_FINISH_H
#define MU_KERNELS_CUDA_TILES_FINISH_H

#include "kernels/cuda/epilogue.h"
#include "kernels/cuda/form.h"

enum mu_tile_quick { MU_TILE_GENERAL, MU_TILE_NOTHING, MU_TILE_SILU };

static inline enum mu_tile_quick mu_tile_quick_of(const struct mu_epilogue *e)
{
    bool more = e->bias || e->up_bias || e->plus || e->lora || e->lora_up || e->scale != 0.0f || e->cap != 0.0f ||
                e->bf16 || e->form.bf16 || e->up_done;
    bool by_four = e->n_row % 4 == 0 && e->stride % 4 == 0 && mu_aligned(e->out, 16) && mu_aligned(e->form.q, 4);
    if (more || !by_four) return MU_TILE_GENERAL;
    if (!e->has_up && e->act == MU_DEVICE_ACT_NONE) return MU_TILE_NOTHING;
    return e->has_up && e->act == MU_DEVICE_ACT_SILU ? MU_TILE_SILU : MU_TILE_GENERAL;
}

/* Rows [row0, row0 + ROWS) of vectors [vec, vec + n_vec). All threads. */
template <int ROWS, int Y_ROW, int THREADS, bool GATED>
__device__ static void mu_tile_finish_quick(const struct mu_epilogue &e, int row0, int vec, int n_vec, const float *y)
{
    constexpr int lanes = ROWS / 4; /* of a vector */
    for (int first = 0; first < n_vec * lanes; first += THREADS) {
        int i = first + (int)threadIdx.x, v = i / lanes, part = i % lanes * 4, row = row0 + part;
        bool in = v < n_vec && row < e.n_row;
        float value[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (in) {
            const float *at = y + v * Y_ROW + part;
            mu_load_values<4>(value, at);
            if (GATED) {
                float u[4];
                mu_load_values<4>(u, at + ROWS);
                for (int j = 0; j < 4; j++) value[j] = mu_epilogue_act(MU_DEVICE_ACT_SILU, true, value[j], u[j]);
            }
            mu_store_values<4>(e.out + (size_t)(vec + v) * e.stride + row, value);
        }
        if (e.form.q)
            mu_store_q8<4>(e.form.q, e.form.s, e.form.sum, (size_t)(vec + v) * (size_t)e.n_row + (size_t)row, in,
                           value);
    }
}

template <int Y_ROW, int THREADS>
__device__ static void mu_tile_finish_general(const struct mu_epilogue &e, int rows, int row0, int vec, int n_vec,
                                              int expert, bool gated, const float *y)
{
    int lane = (int)threadIdx.x % 32, parts = (rows + 31) / 32;
    for (int i = (int)threadIdx.x / 32; i < n_vec * parts; i += THREADS / 32) {
        int v = i / parts, part = i % parts * 32 + lane, row = row0 + part;
        bool in = part < rows && row < e.n_row;
        float value[1] = {0.0f};
        if (in) {
            const float *at = y + v * Y_ROW + part;
            value[0] = mu_epilogue_value(e, row, (size_t)(vec + v), expert, at[0], gated ? at[rows] : 0.0f);
            mu_epilogue_store(e, row, (size_t)(vec + v), value[0]);
        }
        if (e.form.q)
            mu_store_q8<1>(e.form.q, e.form.s, e.form.sum, (size_t)(vec + v) * (size_t)e.n_row + (size_t)row, in,
                           value);
    }
}

#endif
