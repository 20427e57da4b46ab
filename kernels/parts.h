/* What the files behind dispatch.c provide: for each instruction set, one function per field of struct mu_kernels,
 * named mu_<isa>_<field>; packing is one for ref and one for all others (packed.h), dequant_row one for all. kernels.h has
 * their contracts. Private to kernels/. */
#ifndef MU_KERNELS_PARTS_H
#define MU_KERNELS_PARTS_H

#include "kernels/kernels.h"

#define MU_KERNELS_DECLARE(isa)                                                                               \
    void mu_##isa##_matmul(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out,    \
                           size_t out_stride);                                                                \
    bool mu_##isa##_quantize(const float *x, int n, int8_t *q, float *s, int16_t *sum);                       \
    void mu_##isa##_block_sums(const int8_t *q, int n, int16_t *sum);                                         \
    void mu_##isa##_to_bf16(const float *x, int n, uint16_t *out);                                            \
    bool mu_##isa##_rms_norm(const float *x, const float *w, int n, float eps, float *out);                   \
    bool mu_##isa##_layer_norm(const float *x, const float *w, const float *b, int n, float eps, float *out); \
    void mu_##isa##_gelu_tanh(const float *x, const float *up, int n, float *out);                            \
    void mu_##isa##_gelu_erf(const float *x, const float *up, int n, float *out);                             \
    void mu_##isa##_soft_cap(float *x, int n, float cap);                                                     \
    void mu_##isa##_rope(float *x, int n_head, int d_head, int n_rot, int neox, const float *cos_sin);        \
    void mu_##isa##_rope_table(const float *freq, int n_pair, int pos, float mscale, float *cos_sin);         \
    void mu_##isa##_silu_mul(const float *gate, const float *up, int n, float *out);                          \
    void mu_##isa##_silu_clamped_mul(const float *gate, const float *up, int n, float *out);                  \
    void mu_##isa##_add(float *x, const float *y, int n, int round);                                          \
    void mu_##isa##_add_scaled(float *x, const float *y, float w, int n);                                     \
    void mu_##isa##_add_bf16(float *x, const uint16_t *y, int n);                                             \
    void mu_##isa##_kv_store(enum mu_kv_type kv, const float *k, const float *v, int d_head, int pos_in_page, \
                             void *k_page, void *v_page);                                                     \
    void mu_##isa##_attn(const struct mu_attn *a);                                                            \
    void mu_##isa##_attn_merge(const struct mu_attn *a);                                                      \
    int mu_##isa##_argmax(const float *x, int n, float *max_out);                                             \
    float mu_##isa##_softmax_terms(const float *x, int n, float max, float *out);                             \
    int mu_##isa##_draw(const float *x, int n, const struct mu_draw *d, float *sum_out);                      \
    /* peak.h's loops: n rounds in registers, how many operations that was; and one reading of a buffer */    \
    uint32_t mu_##isa##_peak_int8(int n, double *ops_out);                                                    \
    uint32_t mu_##isa##_peak_f32(int n, double *ops_out);                                                     \
    uint32_t mu_##isa##_peak_read(const void *buf, size_t bytes);

size_t mu_ref_mat_bytes(uint32_t type, int n_row, int n_col);
bool mu_ref_mat_pack(const struct mu_mat *m, int row0, int row1, const void *raw);
bool mu_ref_dequant_row(uint32_t type, const void *raw, int n, float *out);

/* dotprod and i8mm are neon but for these. */
#define MU_KERNELS_DECLARE_INT8(isa)                                                                       \
    void mu_##isa##_matmul(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out, \
                           size_t out_stride);                                                             \
    uint32_t mu_##isa##_peak_int8(int n, double *ops_out);

MU_KERNELS_DECLARE(ref)
MU_KERNELS_DECLARE(avx2)
MU_KERNELS_DECLARE(avx512)
MU_KERNELS_DECLARE(neon)
MU_KERNELS_DECLARE_INT8(dotprod)
MU_KERNELS_DECLARE_INT8(i8mm)
/* streams is avx512 but for these. */
void mu_streams_matmul(const struct mu_mat *m, const struct mu_act *x, int row0, int row1, float *out,
                       size_t out_stride);
void mu_streams_attn(const struct mu_attn *a);
void mu_streams_attn_merge(const struct mu_attn *a);
uint32_t mu_streams_peak_read(const void *buf, size_t bytes);
#undef MU_KERNELS_DECLARE
#undef MU_KERNELS_DECLARE_INT8

/* Every scale (or weight, for float types) of n values from raw, which may lie at any address, is finite (C0). */
bool mu_values_finite(uint32_t type, const void *raw, size_t n);

/* Where the parts of a Q8_0 cache lie (types.h). A group of 16 positions has as many bytes of keys as of values. */
enum { MU_KV_GROUP = 16 };
static inline int mu_kv_blocks(int d_head)
{
    return (d_head + MU_Q_BLOCK - 1) / MU_Q_BLOCK;
}
static inline size_t mu_kv_q8_group_bytes(int d_head)
{
    return (size_t)MU_KV_GROUP * ((size_t)d_head + sizeof(float) * (size_t)mu_kv_blocks(d_head));
}
/* From the start of a group of keys to that of its block b. */
static inline size_t mu_kv_q8_key_block(int b)
{
    return (size_t)MU_KV_GROUP * (MU_Q_BLOCK + sizeof(float)) * (size_t)b;
}

/* kv_store of Q8_0 for any table, with its C1. */
void mu_kv_q8_store(const float *k, const float *v, int d_head, int pos_in_page, void *k_page, void *v_page,
                    bool (*quantize)(const float *x, int n, int8_t *q, float *s, int16_t *sum));

#endif
