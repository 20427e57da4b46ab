/* The formats of the KV cache: names, sizes, and the storing that is not worth a vector instruction of its own. Layouts
 * are in types.h, the rule is C5. */
#include <math.h>
#include <string.h>
#include <strings.h>

#include "kernels/parts.h"

static const char *const names[MU_KV_TYPE_COUNT] = {[MU_KV_F16] = "f16", [MU_KV_Q8_0] = "q8_0"};

const char *mu_kv_type_name(enum mu_kv_type kv)
{
    return names[kv];
}

int mu_kv_type_by_name(const char *name)
{
    if (!*name) return MU_KV_F16;
    for (int i = 0; i < MU_KV_TYPE_COUNT; i++)
        if (strcasecmp(name, names[i]) == 0) return i;
    return -1;
}

size_t mu_kv_bytes(enum mu_kv_type kv, int d_head, int n_pos)
{
    size_t groups = (size_t)(n_pos / MU_KV_GROUP);
    if (kv == MU_KV_Q8_0) return groups * mu_kv_q8_group_bytes(d_head);
    return groups * MU_KV_GROUP * (size_t)d_head * sizeof(uint16_t);
}

/* One block of 32 values; what lies beyond n counts as zeros, which change neither the largest magnitude nor its
 * scale. */
static void block_quantize(const float *x, int n, int8_t q[MU_Q_BLOCK], float *s,
                           bool (*quantize)(const float *x, int n, int8_t *q, float *s, int16_t *sum))
{
    float whole[MU_Q_BLOCK] = {0};
    int16_t sum[2];
    memcpy(whole, x, (size_t)n * sizeof *x);
    if (quantize(whole, MU_Q_BLOCK, q, s, sum)) return;
    memset(q, 0, MU_Q_BLOCK);
    *s = NAN;
}

void mu_kv_q8_store(const float *k, const float *v, int d_head, int pos_in_page, void *k_page, void *v_page,
                    bool (*quantize)(const float *x, int n, int8_t *q, float *s, int16_t *sum))
{
    size_t group = (size_t)(pos_in_page / MU_KV_GROUP) * mu_kv_q8_group_bytes(d_head);
    size_t row = (size_t)(pos_in_page % MU_KV_GROUP), blocks = (size_t)mu_kv_blocks(d_head);
    char *keys = (char *)k_page + group, *values = (char *)v_page + group;
    int8_t *value = (int8_t *)values + row * (size_t)d_head;
    float *value_scale = (float *)(void *)(values + (size_t)MU_KV_GROUP * (size_t)d_head) + row * blocks;
    for (int b = 0; b < (int)blocks; b++) {
        int d = b * MU_Q_BLOCK, n = d_head - d < MU_Q_BLOCK ? d_head - d : MU_Q_BLOCK;
        int8_t q[MU_Q_BLOCK];
        float *key_scale = (float *)(void *)(keys + mu_kv_q8_key_block(b));
        int8_t *key = (int8_t *)(key_scale + MU_KV_GROUP) + row;
        block_quantize(k + d, n, q, key_scale + row, quantize);
        for (int i = 0; i < n; i++) key[i * MU_KV_GROUP] = q[i];
        block_quantize(v + d, n, q, value_scale + b, quantize);
        memcpy(value + d, q, (size_t)n);
    }
}
