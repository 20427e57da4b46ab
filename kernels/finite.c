/* C0: whether every scale of a tensor's blocks, or every weight of a float type, is finite. Pure functions. */
#include <string.h>

#include "kernels/blocks.h"
#include "kernels/parts.h"

/* Offsets of a block's two f16 scales, or twice that of one. */
static void f16_scales(uint32_t type, int *a, int *b)
{
    *a = *b = 0;
    switch (type) {
    case MU_Q4_1:
    case MU_Q5_1:
    case MU_Q4_K:
    case MU_Q5_K: *b = 2; break;
    case MU_Q2_K:
        *a = offsetof(struct mu_block_q2_k, d);
        *b = offsetof(struct mu_block_q2_k, dmin);
        break;
    case MU_Q3_K: *a = *b = offsetof(struct mu_block_q3_k, d); break;
    case MU_Q6_K: *a = *b = offsetof(struct mu_block_q6_k, d); break;
    case MU_TQ1_0: *a = *b = offsetof(struct mu_block_tq1_0, d); break;
    case MU_TQ2_0: *a = *b = offsetof(struct mu_block_tq2_0, d); break;
    default: break; /* where it is one, at the front */
    }
}

static bool f16_at_finite(const uint8_t *p)
{
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return mu_f16_finite(h);
}

/* n numbers of 2 or 4 bytes, each finite where the exponent's bits are not all set. Plain loops, for the compiler to
 * vectorise. */
static bool halves_finite(const uint8_t *p, size_t n, unsigned exponent)
{
    unsigned bad = 0;
    for (size_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, p + 2 * i, sizeof h);
        bad |= (h & exponent) == exponent;
    }
    return !bad;
}
static bool floats_finite(const uint8_t *p, size_t n)
{
    const uint32_t exponent = 0x7f800000u;
    unsigned bad = 0;
    for (size_t i = 0; i < n; i++) bad |= (mu_load_u32(p + 4 * i) & exponent) == exponent;
    return !bad;
}

bool mu_values_finite(uint32_t type, const void *raw, size_t n)
{
    const struct mu_type_info *t = mu_type_info(type);
    const uint8_t *p = raw;
    size_t block = (size_t)t->block_bytes, n_block = n / (size_t)t->block_values;
    bool ok = true;
    int a, b;
    switch (type) {
    case MU_F32: return floats_finite(p, n);
    case MU_F16: return halves_finite(p, n, 0x7c00u);
    case MU_BF16: return halves_finite(p, n, 0x7f80u);
    case MU_MXFP4:
        for (size_t i = 0; i < n_block; i++) ok &= p[i * block] != 0xff;
        return ok;
    case MU_IQ1_M:
        for (size_t i = 0; i < n_block; i++) ok &= mu_f16_finite(mu_iq1_m_d((const void *)(p + i * block)));
        return ok;
    default: f16_scales(type, &a, &b);
    }
    for (size_t i = 0; i < n_block; i++, p += block) ok &= f16_at_finite(p + a) && f16_at_finite(p + b);
    return ok;
}
