/* matmul for AVX-512: which file computes which type. */
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
