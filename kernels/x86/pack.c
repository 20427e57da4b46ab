/* From a file's rows to the layout of layout.h, once at load. Four codes move at a time, as 32-bit words; no
 * instruction set beyond the baseline is needed, memory is what it waits for. Threads: any, on disjoint row ranges. */
#include <string.h>

#include "kernels/blocks.h"
#include "kernels/parts.h"
#include "kernels/x86/layout.h"

size_t mu_x86_group_bytes(uint32_t type, int n_col)
{
    const struct mu_type_info *t = mu_type_info(type);
    if (!t || t->act == MU_ACT_NONE || n_col < 0 || n_col % t->block_values != 0) return 0;
    return mu_x86_group_offset(type, (size_t)n_col + (type == MU_BF16 ? (size_t)n_col % 2 : 0));
}

size_t mu_x86_mat_bytes(uint32_t type, int n_row, int n_col)
{
    size_t bytes;
    if (n_row < 0) return 0;
    size_t groups = ((size_t)n_row + MU_ROW_GROUP - 1) / MU_ROW_GROUP;
    if (__builtin_mul_overflow(mu_x86_group_bytes(type, n_col), groups, &bytes)) return 0;
    return bytes;
}

static void put_u32(uint8_t *dst, uint32_t v)
{
    memcpy(dst, &v, sizeof v);
}
static void put_u16(uint8_t *dst, uint16_t v)
{
    memcpy(dst, &v, sizeof v);
}

/* Each of these puts row r (0 … 15) of a group, n values, into the group at g; false where a scale or weight is not
 * finite. */

static bool row_f32(uint8_t *g, int r, const uint8_t *raw, int n)
{
    bool ok = true;
    for (int c = 0; c < n; c++) {
        float f;
        memcpy(&f, raw + 4 * (size_t)c, sizeof f);
        ok &= mu_f32_finite(f);
        memcpy(g + 64 * (size_t)c + 4 * r, &f, sizeof f);
    }
    return ok;
}

static bool row_f16(uint8_t *g, int r, const uint8_t *raw, int n)
{
    bool ok = true;
    for (int c = 0; c < n; c++) {
        uint16_t h;
        memcpy(&h, raw + 2 * (size_t)c, sizeof h);
        ok &= mu_f16_finite(h);
        put_u16(g + 32 * (size_t)c + 2 * r, h);
    }
    return ok;
}

static bool row_bf16(uint8_t *g, int r, const uint8_t *raw, int n)
{
    bool ok = true;
    for (int c = 0; c < n; c += 2) {
        uint16_t even, odd = 0x8000u;
        memcpy(&even, raw + 2 * (size_t)c, sizeof even);
        if (c + 1 < n) memcpy(&odd, raw + 2 * (size_t)c + 2, sizeof odd);
        ok &= mu_bf16_finite(even) && mu_bf16_finite(odd);
        put_u32(g + 32 * (size_t)c + 4 * r, (uint32_t)even << 16 | odd);
    }
    return ok;
}

static bool row_q4_0(uint8_t *g, int r, const uint8_t *raw, int n)
{
    const struct mu_block_q4_0 *b = (const void *)raw;
    bool ok = true;
    for (int i = 0; i < n / 32; i++, b++, g += MU_Q4_0_BLOCK) {
        ok &= mu_f16_finite(b->d);
        put_u16(g + 2 * r, b->d);
        for (int k = 0; k < 4; k++) memcpy(g + 32 + 64 * k + 4 * r, b->qs + 4 * k, 4); /* its nibbles are ours */
    }
    return ok;
}

static bool row_q8_0(uint8_t *g, int r, const uint8_t *raw, int n)
{
    const struct mu_block_q8_0 *b = (const void *)raw;
    bool ok = true;
    for (int i = 0; i < n / 32; i++, b++, g += MU_Q8_0_BLOCK) {
        ok &= mu_f16_finite(b->d);
        put_u16(g + 2 * r, b->d);
        for (int k = 0; k < 8; k++) put_u32(g + 32 + 64 * k + 4 * r, mu_load_u32(b->qs + 4 * k) ^ 0x80808080u);
    }
    return ok;
}

static bool row_q4_k(uint8_t *g, int r, const uint8_t *raw, int n)
{
    const struct mu_block_q4_k *b = (const void *)raw;
    bool ok = true;
    for (int i = 0; i < n / 256; i++, b++) {
        ok &= mu_f16_finite(b->d) && mu_f16_finite(b->dmin);
        put_u16(g + 2 * r, b->d);
        put_u16(g + 32 + 2 * r, b->dmin);
        g += MU_Q4_K_HEAD;
        for (int j = 0; j < 8; j++, g += MU_Q4_K_BLOCK) {
            mu_k4_scale(b->scales, j, g + r, g + 16 + r);
            for (int k = 0; k < 4; k++)
                put_u32(g + 32 + 64 * k + 4 * r, mu_q4_k_codes(b->qs, j, k) | mu_q4_k_codes(b->qs, j, k + 4) << 4);
        }
    }
    return ok;
}

static bool row_q6_k(uint8_t *g, int r, const uint8_t *raw, int n)
{
    const struct mu_block_q6_k *b = (const void *)raw;
    bool ok = true;
    for (int i = 0; i < n / 256; i++, b++) {
        ok &= mu_f16_finite(b->d);
        put_u16(g + 2 * r, b->d);
        g += MU_Q6_K_HEAD;
        for (int j = 0; j < 8; j++, g += MU_Q6_K_BLOCK) {
            uint32_t code[8], high[2] = {0, 0};
            g[r] = (uint8_t)b->scales[2 * j];
            g[16 + r] = (uint8_t)b->scales[2 * j + 1];
            for (int k = 0; k < 8; k++) {
                code[k] = mu_q6_k_codes(b, j, k);
                high[k / 4] |= (code[k] >> 4 & 0x03030303u) << 2 * (k % 4);
            }
            for (int k = 0; k < 4; k++)
                put_u32(g + 32 + 64 * k + 4 * r, (code[k] & 0x0f0f0f0fu) | (code[k + 4] & 0x0f0f0f0fu) << 4);
            for (int h = 0; h < 2; h++) put_u32(g + 288 + 64 * h + 4 * r, high[h]);
        }
    }
    return ok;
}

static bool row_pack(uint32_t type, uint8_t *group, int r, const uint8_t *raw, int n)
{
    switch (type) {
    case MU_F32: return row_f32(group, r, raw, n);
    case MU_F16: return row_f16(group, r, raw, n);
    case MU_BF16: return row_bf16(group, r, raw, n);
    case MU_Q4_0: return row_q4_0(group, r, raw, n);
    case MU_Q8_0: return row_q8_0(group, r, raw, n);
    case MU_Q4_K: return row_q4_k(group, r, raw, n);
    case MU_Q6_K: return row_q6_k(group, r, raw, n);
    default: return false;
    }
}

bool mu_x86_mat_pack(const struct mu_mat *m, int row0, int row1, const void *raw)
{
    size_t row_bytes, group_bytes = mu_x86_group_bytes(m->type, m->n_col);
    if (!mu_type_row_bytes(m->type, (uint64_t)m->n_col, &row_bytes)) return false;
    bool ok = true;
    for (int r0 = row0; r0 < row1; r0 += MU_ROW_GROUP) {
        uint8_t *group = (uint8_t *)m->data + (size_t)(r0 / MU_ROW_GROUP) * group_bytes;
        int rows = row1 - r0 < MU_ROW_GROUP ? row1 - r0 : MU_ROW_GROUP;
        if (rows < MU_ROW_GROUP) memset(group, 0, group_bytes);
        for (int r = 0; r < rows; r++)
            ok &= row_pack(m->type, group, r, (const uint8_t *)raw + (size_t)(r0 - row0 + r) * row_bytes, m->n_col);
    }
    return ok;
}
