/* matmul for AVX2: which file computes which type. */
#include "kernels/parts.h"
#include "kernels/x86/layout.h"

void mu_avx2_matmul(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out, size_t out_stride)
{
    if (x->n_tok <= 0 || row0 >= row1) return;
    if (mu_type_info(m->type)->act == MU_ACT_Q8)
        mu_avx2_matmul_int8(m, x, row0, row1, out, out_stride);
    else if (mu_packed_widened(m->type))
        mu_avx2_matmul_widened(m, x, row0, row1, out, out_stride);
    else
        mu_avx2_matmul_float(m, x, row0, row1, out, out_stride);
}
