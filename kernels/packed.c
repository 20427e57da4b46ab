/* From a file's rows to the layout of packed.h, once at load. Four codes move at a time, as 32-bit words; no
 * instruction set beyond the baseline is needed, memory is what it waits for. Threads: any, on disjoint row ranges. */
#include <string.h>

#include "kernels/blocks.h"
#include "kernels/packed.h"
#include "kernels/parts.h"

size_t mu_packed_group_bytes(uint32_t type, int n_col)
{
    const struct mu_type_info *t = mu_type_info(type);
    if (!t || t->act == MU_ACT_NONE || n_col < 0 || n_col % t->block_values != 0) return 0;
    return mu_packed_group_offset(type, (size_t)n_col + (type == MU_BF16 ? (size_t)n_col % 2 : 0));
}

size_t mu_packed_mat_bytes(uint32_t type, int n_row, int n_col)
{
    size_t bytes;
    if (n_row < 0) return 0;
    size_t groups = ((size_t)n_row + MU_ROW_GROUP - 1) / MU_ROW_GROUP;
    if (__builtin_mul_overflow(mu_packed_group_bytes(type, n_col), groups, &bytes)) return 0;
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

/* Each of these puts row r (0 … 15) of a group, n values, into the group at g. */

static void row_f32(uint8_t *g, int r, const uint8_t *raw, int n)
{
    for (int c = 0; c < n; c++) memcpy(g + 64 * (size_t)c + 4 * r, raw + 4 * (size_t)c, 4);
}

static void row_f16(uint8_t *g, int r, const uint8_t *raw, int n)
{
    for (int c = 0; c < n; c++) memcpy(g + 32 * (size_t)c + 2 * r, raw + 2 * (size_t)c, 2);
}

static void row_bf16(uint8_t *g, int r, const uint8_t *raw, int n)
{
    for (int c = 0; c < n; c += 2) {
        uint16_t even, odd = 0x8000u;
        memcpy(&even, raw + 2 * (size_t)c, sizeof even);
        if (c + 1 < n) memcpy(&odd, raw + 2 * (size_t)c + 2, sizeof odd);
        put_u32(g + 32 * (size_t)c + 4 * r, (uint32_t)even << 16 | odd);
    }
}

/* 16 bytes of nibbles, value i beside value 16 + i, as they are ours. */
static void put_nibbles(uint8_t *dst, int r, const uint8_t *qs)
{
    for (int k = 0; k < 4; k++) memcpy(dst + 64 * k + 4 * r, qs + 4 * k, 4);
}

/* The low four bits of 32 codes, four a word. */
static void put_low4(uint8_t *dst, int r, const uint32_t code[8])
{
    for (int k = 0; k < 4; k++)
        put_u32(dst + 64 * k + 4 * r, (code[k] & 0x0f0f0f0fu) | (code[k + 4] & 0x0f0f0f0fu) << 4);
}

/* Bits `at` and above (bits of them, 1 or 2) of 32 codes. */
static void put_bits(uint8_t *dst, int r, const uint32_t code[8], int at, int bits)
{
    uint32_t word[2] = {0, 0};
    for (int k = 0; k < 8; k++) {
        uint32_t part = code[k] >> at & (bits == 2 ? 0x03030303u : 0x01010101u);
        word[bits == 2 ? k / 4 : 0] |= part << (bits == 2 ? 2 * (k % 4) : k);
    }
    for (int h = 0; h < bits; h++) put_u32(dst + 64 * h + 4 * r, word[h]);
}

/* The types of 32 values a block. */
MU_INLINE void row_32(uint32_t type, uint8_t *g, int r, const uint8_t *raw, int n)
{
    const struct mu_type_info *info = mu_type_info(type);
    int scales = mu_packed_scale_bytes(type);
    for (int i = 0; i < n / 32; i++, raw += info->block_bytes, g += mu_packed_block_bytes(type)) {
        const void *p = raw;
        const struct mu_block_q5_0 *q50 = p;
        const struct mu_block_q5_1 *q51 = p;
        const struct mu_block_q8_0 *q80 = p;
        const struct mu_block_mxfp4 *mx = p;
        uint32_t code[8];
        if (type == MU_MXFP4)
            g[r] = mx->e;
        else
            memcpy(g + 2 * r, raw, 2);
        if (type == MU_Q4_1 || type == MU_Q5_1) memcpy(g + 32 + 2 * r, raw + 2, 2);
        switch (type) {
        case MU_Q8_0:
            for (int k = 0; k < 8; k++)
                put_u32(g + scales + 64 * k + 4 * r, mu_load_u32(q80->qs + 4 * k) ^ 0x80808080u);
            continue;
        case MU_Q5_0:
            for (int k = 0; k < 8; k++) code[k] = mu_q5_0_codes(q50->qs, q50->qh, k);
            break;
        case MU_Q5_1:
            for (int k = 0; k < 8; k++) code[k] = mu_q5_0_codes(q51->qs, q51->qh, k);
            break;
        default: put_nibbles(g + scales, r, raw + info->block_bytes - 16); continue; /* nibbles come last */
        }
        put_low4(g + scales, r, code);
        put_bits(g + scales + 256, r, code, 4, 1);
    }
}

/* Head and scales of the types of 256 values a block: g is at the head. */
MU_INLINE void put_scales(uint32_t type, uint8_t *g, int r, const void *p)
{
    const struct mu_block_q2_k *q2 = p;
    const struct mu_block_q3_k *q3 = p;
    const struct mu_block_q4_k *q4 = p; /* Q5_K begins as Q4_K does */
    const struct mu_block_q6_k *q6 = p;
    const struct mu_block_iq4_xs *xs = p;
    switch (type) {
    case MU_Q2_K:
        put_u16(g + 2 * r, q2->d);
        put_u16(g + 32 + 2 * r, q2->dmin);
        break;
    case MU_Q4_K:
    case MU_Q5_K:
        put_u16(g + 2 * r, q4->d);
        put_u16(g + 32 + 2 * r, q4->dmin);
        break;
    default: put_u16(g + 2 * r, type == MU_Q3_K ? q3->d : type == MU_Q6_K ? q6->d : xs->d);
    }
    g += mu_packed_head_bytes(type);
    for (int j = 0; j < 8; j++, g += mu_packed_block_bytes(type)) switch (type) {
        case MU_Q4_K:
        case MU_Q5_K: mu_k4_scale(q4->scales, j, g + r, g + 16 + r); break;
        case MU_IQ4_XS: g[r] = (uint8_t)mu_iq4_xs_scale(xs, j); break;
        default:
            for (int h = 0; h < 2; h++)
                g[16 * h + r] = type == MU_Q2_K   ? q2->scales[2 * j + h]
                                : type == MU_Q3_K ? (uint8_t)mu_q3_k_scale(q3->scales, 2 * j + h)
                                                  : (uint8_t)q6->scales[2 * j + h];
        }
}

MU_INLINE void row_256(uint32_t type, uint8_t *g, int r, const uint8_t *raw, int n)
{
    const struct mu_type_info *info = mu_type_info(type);
    int scales = mu_packed_scale_bytes(type);
    for (int i = 0; i < n / 256; i++, raw += info->block_bytes) {
        const void *p = raw;
        const struct mu_block_q2_k *q2 = p;
        const struct mu_block_q4_k *q4 = p;
        const struct mu_block_iq4_xs *xs = p;
        put_scales(type, g, r, p);
        g += mu_packed_head_bytes(type);
        for (int j = 0; j < 8; j++, g += mu_packed_block_bytes(type)) {
            uint8_t *to = g + scales;
            uint32_t code[8];
            for (int k = 0; k < 8; k++) switch (type) {
                case MU_Q2_K: code[k] = mu_low2_codes(q2->qs, j, k); break;
                case MU_Q3_K: code[k] = mu_q3_k_codes(p, j, k); break;
                case MU_Q4_K: code[k] = mu_q4_k_codes(q4->qs, j, k); break;
                case MU_Q5_K: code[k] = mu_q5_k_codes(p, j, k); break;
                case MU_Q6_K: code[k] = mu_q6_k_codes(p, j, k); break;
                default: code[k] = mu_q4_0_codes(xs->qs + 16 * j, k);
                }
            if (type == MU_Q2_K || type == MU_Q3_K) {
                put_bits(to, r, code, 0, 2);
                if (type == MU_Q3_K) put_bits(to + 128, r, code, 2, 1);
                continue;
            }
            put_low4(to, r, code);
            if (type == MU_Q5_K) put_bits(to + 256, r, code, 4, 1);
            if (type == MU_Q6_K) put_bits(to + 256, r, code, 4, 2);
        }
    }
}

/* One copy of the loops for each type, so that its choices are made by the compiler. */
static void row_pack(uint32_t type, uint8_t *group, int r, const uint8_t *raw, int n)
{
    switch (type) {
    case MU_F32: row_f32(group, r, raw, n); break;
    case MU_F16: row_f16(group, r, raw, n); break;
    case MU_BF16: row_bf16(group, r, raw, n); break;
    case MU_Q4_0: row_32(MU_Q4_0, group, r, raw, n); break;
    case MU_Q8_0: row_32(MU_Q8_0, group, r, raw, n); break;
    case MU_Q4_K: row_256(MU_Q4_K, group, r, raw, n); break;
    case MU_Q5_K: row_256(MU_Q5_K, group, r, raw, n); break;
    case MU_Q6_K: row_256(MU_Q6_K, group, r, raw, n); break;
    case MU_IQ4_XS: row_256(MU_IQ4_XS, group, r, raw, n); break;
    case MU_Q2_K:
    case MU_Q3_K: row_256(type, group, r, raw, n); break;
    default: row_32(type, group, r, raw, n);
    }
}

bool mu_packed_mat_pack(const struct mu_mat *m, int row0, int row1, const void *raw)
{
    size_t row_bytes, group_bytes = mu_packed_group_bytes(m->type, m->n_col);
    if (!mu_type_row_bytes(m->type, (uint64_t)m->n_col, &row_bytes)) return false;
    bool ok = mu_type_info(m->type)->act != MU_ACT_NONE, widened = mu_packed_widened(m->type);
    for (int r0 = row0; r0 < row1 && ok; r0 += MU_ROW_GROUP) {
        uint8_t *group = (uint8_t *)m->data + (size_t)(r0 / MU_ROW_GROUP) * group_bytes;
        int rows = row1 - r0 < MU_ROW_GROUP ? row1 - r0 : MU_ROW_GROUP;
        if (rows < MU_ROW_GROUP) memset(group, 0, group_bytes);
        for (int r = 0; r < rows; r++) {
            const uint8_t *from = (const uint8_t *)raw + (size_t)(r0 - row0 + r) * row_bytes;
            ok &= mu_values_finite(m->type, from, (size_t)m->n_col);
            if (widened)
                memcpy(group + (size_t)r * row_bytes, from, row_bytes);
            else
                row_pack(m->type, group, r, from, m->n_col);
        }
    }
    return ok;
}
