/* C3 on types that C2 has no rule for: a matrix keeps the file's rows, and each multiplication widens 16 rows × one
 * block of columns at a time to f32, then runs over all tokens. Written once for every instruction set (simd.h).
 *
 * Right and small rather than fast: widening is scalar and costs a token alone far more than its multiplications; with
 * a hundred tokens it disappears. Packing f32 instead would take eight to twenty times the file's memory. Between blocks
 * the accumulators rest in `out`. */
#include "kernels/packed.h"
#include "kernels/parts.h"
#include "kernels/simd.h"

enum { WIDEN_COLS = 256, WIDEN_TILE = 4 };

/* acc[t][row] over n columns of w[column][row], for T tokens from x, t_ld floats apart. rows: of the 16, that exist. */
MU_INLINE void widen_tile(const float *w, int n, const float *x, size_t x_ld, int T, float *out, size_t stride,
                          int rows, bool first)
{
    vf acc[WIDEN_TILE][SUM_VECS];
    int n_lane[SUM_VECS];
    MU_UNROLL
    for (int i = 0; i < SUM_VECS; i++) {
        int left = rows - i * VF_LANES;
        n_lane[i] = left < 0 ? 0 : left > VF_LANES ? VF_LANES : left;
        MU_UNROLL
        for (int t = 0; t < T; t++)
            acc[t][i] = first ? vf_set(0.0f) : vf_load_n(out + (size_t)t * stride + i * VF_LANES, n_lane[i]);
    }
    for (int c = 0; c < n; c++) {
        MU_UNROLL
        for (int t = 0; t < T; t++) {
            vf v = vf_set(x[(size_t)t * x_ld + (size_t)c]);
            MU_UNROLL
            for (int i = 0; i < SUM_VECS; i++) acc[t][i] = vf_fma(vf_load(w + 16 * c + i * VF_LANES), v, acc[t][i]);
        }
    }
    MU_UNROLL
    for (int t = 0; t < T; t++) {
        MU_UNROLL
        for (int i = 0; i < SUM_VECS; i++) vf_store_n(out + (size_t)t * stride + i * VF_LANES, n_lane[i], acc[t][i]);
    }
}

void ISA(matmul_widened)(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out, size_t stride)
{
    const struct mu_type_info *info = mu_type_info(m->type);
    size_t group_bytes = mu_packed_group_bytes(m->type, m->n_col), row_bytes = group_bytes / MU_ROW_GROUP;
    size_t x_ld = (size_t)x->n_col;
    float w[WIDEN_COLS * MU_ROW_GROUP], row[WIDEN_COLS];
    for (int r = row0; r < row1; r += MU_ROW_GROUP) {
        const uint8_t *group = (const uint8_t *)m->data + (size_t)(r / MU_ROW_GROUP) * group_bytes;
        int rows = row1 - r < MU_ROW_GROUP ? row1 - r : MU_ROW_GROUP;
        for (int c = 0; c < m->n_col; c += info->block_values) {
            size_t at = (size_t)(c / info->block_values) * (size_t)info->block_bytes;
            for (int i = 0; i < MU_ROW_GROUP; i++) {
                mu_ref_dequant_row(m->type, group + (size_t)i * row_bytes + at, info->block_values, row);
                for (int k = 0; k < info->block_values; k++) w[MU_ROW_GROUP * k + i] = row[k];
            }
            int t = 0;
            for (; t + WIDEN_TILE <= x->n_tok; t += WIDEN_TILE)
                widen_tile(w, info->block_values, x->f32 + (size_t)t * x_ld + c, x_ld, WIDEN_TILE,
                           out + (size_t)t * stride + r, stride, rows, c == 0);
            for (; t < x->n_tok; t++)
                widen_tile(w, info->block_values, x->f32 + (size_t)t * x_ld + c, x_ld, 1, out + (size_t)t * stride + r,
                           stride, rows, c == 0);
        }
    }
}
