/* matmul for AVX-512, with streams, with panels and with AMX: which file computes which type. */
#include "kernels/parts.h"
#include "kernels/x86/layout.h"

void mu_avx512_matmul(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out, size_t out_stride)
{
    if (x->n_tok <= 0 || row0 >= row1) return;
    if (mu_type_info(m->type)->act == MU_ACT_Q8)
        mu_avx512_matmul_int8(m, x, row0, row1, out, out_stride);
    else if (mu_packed_widened(m->type))
        mu_avx512_matmul_widened(m, x, row0, row1, out, out_stride);
    else if (m->type == MU_BF16 && mu_avx512_bf16_proven())
        mu_avx512_matmul_bf16(m, x, row0, row1, out, out_stride);
    else
        mu_avx512_matmul_float(m, x, row0, row1, out, out_stride);
}

void mu_streams_matmul(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out,
                       size_t out_stride)
{
    if (x->n_tok > 0 && row0 < row1 && mu_type_info(m->type)->act == MU_ACT_Q8)
        mu_streams_matmul_int8(m, x, row0, row1, out, out_stride);
    else
        mu_avx512_matmul(m, x, row0, row1, out, out_stride);
}

void mu_panels_matmul(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out, size_t out_stride)
{
    if (row0 < row1 && mu_panels_cover(m->type, x->n_tok))
        mu_panels_matmul_int8(m, x, row0, row1, out, out_stride);
    else
        mu_avx512_matmul(m, x, row0, row1, out, out_stride);
}

void mu_amx_matmul(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out, size_t out_stride)
{
    if (row0 < row1 && mu_amx_covers(m->type, x->n_tok))
        mu_amx_matmul_int8(m, x, row0, row1, out, out_stride);
    else
        mu_panels_matmul(m, x, row0, row1, out, out_stride);
}
