/* matmul for the three tables of arm64: which file computes which type. */
#include "kernels/arm/arm.h"
#include "kernels/parts.h"

typedef void matmul_fn(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out, size_t stride);

static void matmul(matmul_fn *int8, const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out,
                   size_t stride)
{
    if (x->n_tok <= 0 || row0 >= row1) return;
    if (mu_type_info(m->type)->act == MU_ACT_Q8)
        int8(m, x, row0, row1, out, stride);
    else if (mu_packed_widened(m->type))
        mu_neon_matmul_widened(m, x, row0, row1, out, stride);
    else
        mu_neon_matmul_float(m, x, row0, row1, out, stride);
}

void mu_neon_matmul(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out, size_t out_stride)
{
    matmul(mu_neon_matmul_int8, m, x, row0, row1, out, out_stride);
}
void mu_dotprod_matmul(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out,
                       size_t out_stride)
{
    matmul(mu_dotprod_matmul_int8, m, x, row0, row1, out, out_stride);
}
void mu_i8mm_matmul(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out, size_t out_stride)
{
    matmul(mu_i8mm_matmul_int8, m, x, row0, row1, out, out_stride);
}
