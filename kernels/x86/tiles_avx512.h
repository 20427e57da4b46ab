/* What passes between the AVX-512 driver of C2 (int8_avx512.c), which walks over tokens, columns and row groups, and
 * the tiles (tiles_avx512.c), which multiply; the terms are int8_panels.c's, too. Private to those. */
#ifndef MU_KERNELS_X86_TILES_AVX512_H
#define MU_KERNELS_X86_TILES_AVX512_H

#include <immintrin.h>

#include "kernels/parts.h"
#include "kernels/x86/layout.h"

enum {
    THIN_TOKENS = 4,                         /* up to here: decode */
    THIN_BLOCKS = 256,                       /* 32-column blocks in a pass of decode */
    WIDE_BLOCKS = 64,                        /* and otherwise */
    WIDE_LD = WIDE_BLOCKS * MU_Q_BLOCK + 64, /* bytes from one copied token to the next; +64: another set of the L1 */
    MAX_TILE = 12,
    MAX_GROUPS = 4, /* row groups of a tile */
};

/* Per (token, block) words that a tile broadcasts; row t starts at t * (thin ? THIN_BLOCKS : WIDE_BLOCKS). What a and b
 * are is the family's to say. */
struct terms {
    const float *s;
    const int32_t *a, *b;
};
enum terms_kind {
    TERMS_OFFSET,        /* a = -offset·S */
    TERMS_OFFSET_HALVES, /* a = -offset·S0, b = -offset·S1 */
    TERMS_TOTAL,         /* a = fl((float)S·s), a float */
    TERMS_TOTAL_HALVES,  /* a = S0, b = S1, floats */
};

struct tile {
    const uint8_t *w; /* the first group's blocks of this pass */
    size_t w_group;   /* bytes from one group of the tile to the next, and */
    size_t out_group; /* rows */
    int n_block;
    const int8_t *q;
    size_t q_ld; /* used where thin; else WIDE_LD */
    struct terms terms;
    float *out; /* of the first row and token */
    size_t out_stride;
    __mmask16 rows; /* that exist, of the last group */
    bool first;     /* accumulators start at +0, else from out */
    const uint8_t
        *ahead; /* weights to prefetch meanwhile, as many bytes as w's, into the L2; NULL = none. Where a tile has
                           * several groups it says only whether they are fetched from near by (tile_forms.h). */
};

typedef void tile_fn(const struct tile *a);

/* The tiles of one type, by their number of tokens. */
struct family {
    enum terms_kind terms;
    int16_t offset;
    int max_tile;
    tile_fn *thin[THIN_TOKENS + 1], *wide[MAX_TILE + 1];
};
const struct family *mu_avx512_family(uint32_t type);

/* The terms of n blocks of one token, 16 at a time; b_out is written for the types with halves only (int8_avx512.c). */
void mu_avx512_terms(const struct family *f, const float *s, const int16_t *sum, int n, float *s_out, int32_t *a_out,
                     int32_t *b_out);

MU_INLINE size_t term_at(bool thin, int t, int b)
{
    return (size_t)t * (thin ? THIN_BLOCKS : WIDE_BLOCKS) + (size_t)b;
}

#endif
