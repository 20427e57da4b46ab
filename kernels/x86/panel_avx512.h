/* A row group's blocks of one pass, decoded once: what many tokens are multiplied with by VNNI (int8_panels.c) and by AMX
 * (int8_amx.c). Private to kernels/x86/. */
#ifndef MU_KERNELS_X86_PANEL_AVX512_H
#define MU_KERNELS_X86_PANEL_AVX512_H

#include <immintrin.h>

#include "kernels/x86/codes_avx512.h"

enum { PANEL_BLOCKS = 32, LANES = MU_ROW_GROUP };

/* How a block is added up; a constant wherever it is used. */
enum form {
    FORM_SCALED,         /* d */
    FORM_RAISED,         /* d, + m */
    FORM_LOWERED,        /* d, - m */
    FORM_HALVES,         /* d, with a scale sc[h] of each half */
    FORM_HALVES_LOWERED, /* the same, - m with mc[h] */
    N_FORM
};

MU_INLINE enum form form_of(uint32_t type)
{
    switch (type) {
    case MU_Q4_1:
    case MU_Q5_1: return FORM_RAISED;
    case MU_Q4_K:
    case MU_Q5_K: return FORM_LOWERED;
    case MU_Q3_K:
    case MU_Q6_K: return FORM_HALVES;
    case MU_Q2_K: return FORM_HALVES_LOWERED;
    default: return FORM_SCALED;
    }
}

struct panel_block {
    _Alignas(64) int8_t codes[8][64]; /* vector k: columns 4k … 4k+3 of 16 rows */
    float d[LANES], m[LANES];
    float sc[2][LANES], mc[2][LANES]; /* whole numbers */
};
struct panel {
    struct panel_block block[PANEL_BLOCKS];
};

/* A block's codes less `offset`. */
MU_INLINE void codes_fill(int8_t (*to)[64], uint32_t type, int offset, const uint8_t *p)
{
    const __m512i off = _mm512_set1_epi8((char)offset);
    if (type == MU_Q8_0) {
        MU_UNROLL
        for (int k = 0; k < 8; k++) _mm512_store_si512(to[k], _mm512_sub_epi8(_mm512_loadu_si512(p + 64 * k), off));
        return;
    }
    if (form_of(type) >= FORM_HALVES) {
        MU_UNROLL
        for (int k = 0; k < 8; k++) _mm512_store_si512(to[k], codes_of_half(type, p, k / 4, k % 4));
        return;
    }
    const struct nibble_key key = nibble_key(type, p);
    MU_UNROLL
    for (int k = 0; k < 4; k++) {
        __m512i lo, hi;
        nibble_codes(type, &key, p, k, &lo, &hi);
        _mm512_store_si512(to[k], _mm512_sub_epi8(lo, off));
        _mm512_store_si512(to[4 + k], _mm512_sub_epi8(hi, off));
    }
}

/* n blocks from w on, of a type and offset that are constants where this is called. */
MU_INLINE void panel_fill(struct panel *to, uint32_t type, int offset, const uint8_t *w, int n)
{
    const int head = mu_packed_head_bytes(type);
    const __m512i low4 = _mm512_set1_epi32(15);
    __m512 d256 = _mm512_setzero_ps(), dmin256 = d256;
    for (int b = 0; b < n; b++, w += mu_packed_block_bytes(type)) {
        if (head && b % 8 == 0) {
            d256 = load_f16(w);
            if (head == 64) dmin256 = load_f16(w + 32);
            w += head;
        }
        codes_fill(to->block[b].codes, type, offset, w + mu_packed_scale_bytes(type));
        __m512 d = d256, m = dmin256;
        switch (type) {
        case MU_MXFP4: d = load_e8m0(w); break;
        case MU_IQ4_XS: d = _mm512_mul_ps(d256, _mm512_cvtepi32_ps(load_s8(w))); break;
        case MU_Q4_K:
        case MU_Q5_K:
            d = _mm512_mul_ps(d256, _mm512_cvtepi32_ps(load_u8(w)));
            m = _mm512_mul_ps(dmin256, _mm512_cvtepi32_ps(load_u8(w + 16)));
            break;
        case MU_Q2_K:
        case MU_Q3_K:
        case MU_Q6_K:
            MU_UNROLL
            for (int h = 0; h < 2; h++) {
                __m512i scales = load_s8(w + 16 * h);
                if (type == MU_Q2_K) {
                    _mm512_store_ps(to->block[b].mc[h],
                                    _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(scales, 4), low4)));
                    scales = _mm512_and_si512(scales, low4);
                }
                _mm512_store_ps(to->block[b].sc[h], _mm512_cvtepi32_ps(scales));
            }
            break;
        default:
            d = load_f16(w);
            if (form_of(type) == FORM_RAISED) m = load_f16(w + 32);
        }
        _mm512_store_ps(to->block[b].d, d);
        if (form_of(type) != FORM_SCALED && form_of(type) != FORM_HALVES) _mm512_store_ps(to->block[b].m, m);
    }
}

typedef void panel_fn(struct panel *to, const uint8_t *w, int n);

/* The weights that come into the L2 while the tiles of the row groups before them run, every tile a share of them: a core's
 * few outstanding lines are busy all the time, and none of its own loads waits long for one. */
struct next {
    const uint8_t *w; /* NULL: none */
    int n_group;
    size_t bytes; /* of a group */
};
struct share {
    const uint8_t *w; /* NULL: none */
    size_t bytes;     /* a block of the tile fetches: whole lines */
};

/* Of tile `tile` of n_tile, n_block blocks each; groups lie group_bytes apart. */
MU_INLINE struct share next_share(const struct next *next, size_t group_bytes, int tile, int n_tile, int n_block)
{
    const int each = (n_tile + next->n_group - 1) / next->n_group; /* tiles that fetch one group */
    const size_t blocks = (size_t)each * (size_t)n_block, bytes = ((next->bytes + blocks - 1) / blocks + 63) / 64 * 64;
    const size_t skip = (size_t)(tile % each) * (size_t)n_block * bytes;
    if (!next->w || skip >= next->bytes) return (struct share){0};
    return (struct share){next->w + (size_t)(tile / each) * group_bytes + skip, bytes};
}

/* What block i of the tile fetches. */
MU_INLINE void share_fetch(const struct share *s, int i)
{
    for (size_t k = 0; s->w && k < s->bytes; k += 64)
        _mm_prefetch((const char *)(s->w + (size_t)i * s->bytes + k), _MM_HINT_T1);
}

/* A pointer that the compiler cannot take apart again into a base and an index: an index in an address costs many of these
 * instructions a second micro-operation each. */
#define PLAIN(p) __asm__("" : "+r"(p))

#endif
