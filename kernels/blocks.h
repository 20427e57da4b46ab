/* GGUF's quantised blocks as they lie in files, declared once, and the integer codes in them. The reference, the
 * dequantiser and the packers read blocks through this header only. Little-endian; blocks may lie at any address. */
#ifndef MU_KERNELS_BLOCKS_H
#define MU_KERNELS_BLOCKS_H

#include <assert.h>
#include <stdint.h>
#include <string.h>

#define MU_BLOCK(name, size, ...) \
    struct name {                 \
        __VA_ARGS__               \
    } __attribute__((packed));    \
    static_assert(sizeof(struct name) == (size), "size of a " #name " in a file")

/* 32 values. d, m: f16 scale and minimum. qs: byte i holds value i in its low and value 16+i in its high nibble; qh:
 * bit i is the fifth bit of value i. */
MU_BLOCK(mu_block_q4_0, 18, uint16_t d; uint8_t qs[16];);
MU_BLOCK(mu_block_q4_1, 20, uint16_t d, m; uint8_t qs[16];);
MU_BLOCK(mu_block_q5_0, 22, uint16_t d; uint8_t qh[4], qs[16];);
MU_BLOCK(mu_block_q5_1, 24, uint16_t d, m; uint8_t qh[4], qs[16];);
MU_BLOCK(mu_block_q8_0, 34, uint16_t d; int8_t qs[32];);

/* 256 values. scales: eight 6-bit scales and minimums (mu_k4_scale). qs: per 64 values 32 bytes, low nibbles are the
 * first 32. */
MU_BLOCK(mu_block_q4_k, 144, uint16_t d, dmin; uint8_t scales[12], qs[128];);
MU_BLOCK(mu_block_q5_k, 176, uint16_t d, dmin; uint8_t scales[12], qh[32], qs[128];);
/* ql, qh: four low and two high bits (mu_q6_k_codes); scales: one per 16 values. */
MU_BLOCK(mu_block_q6_k, 210, uint8_t ql[128], qh[64]; int8_t scales[16]; uint16_t d;);

/* Scale and minimum of 32 values j of 8 (Q4_K, Q5_K). */
static inline void mu_k4_scale(const uint8_t *s, int j, uint8_t *scale_out, uint8_t *min_out)
{
    if (j < 4) {
        *scale_out = s[j] & 63;
        *min_out = s[j + 4] & 63;
    } else {
        *scale_out = (uint8_t)((s[j + 4] & 15) | (s[j - 4] >> 6 << 4));
        *min_out = (uint8_t)(s[j + 4] >> 4 | (s[j] >> 6 << 4));
    }
}

static inline uint32_t mu_load_u32(const void *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* The next three give four consecutive codes at a time, one a byte: values 4k … 4k+3 (k of 0 … 7) of 32 values. */
static inline uint32_t mu_q4_0_codes(const uint8_t *qs, int k) /* 0 … 15, offset 8 not taken off */
{
    return mu_load_u32(qs + 4 * (k & 3)) >> (k < 4 ? 0 : 4) & 0x0f0f0f0fu;
}
/* j: which 32 of the 256 values. */
static inline uint32_t mu_q4_k_codes(const uint8_t *qs, int j, int k)
{
    return mu_load_u32(qs + 32 * (j >> 1) + 4 * k) >> (j & 1 ? 4 : 0) & 0x0f0f0f0fu;
}
static inline uint32_t mu_q6_k_codes(const struct mu_block_q6_k *b, int j, int k) /* 0 … 63, offset 32 not taken off */
{
    int half = j >> 2, m = j & 3;
    uint32_t low = mu_load_u32(b->ql + 64 * half + 32 * (m & 1) + 4 * k) >> (m < 2 ? 0 : 4) & 0x0f0f0f0fu;
    uint32_t high = mu_load_u32(b->qh + 32 * half + 4 * k) >> 2 * m & 0x03030303u;
    return low | high << 4;
}

#endif
