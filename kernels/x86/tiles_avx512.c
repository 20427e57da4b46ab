/* The tiles of one row group (tile_forms.h), by type and number of tokens. */
#include "kernels/x86/tile_forms.h"

#define TILE(name, form, type, T)                       \
    static void name##_##T(const struct tile *a)        \
    {                                                   \
        tile_##form(a, type, (T) <= THIN_TOKENS, 1, T); \
    }
/* A wide batch has 5 tokens or more; cut in equal tiles of at most 12 none has less than 5, of at most 8, less than
 * 4. */
#define TILES_4(name, form, type) \
    TILE(name, form, type, 1) TILE(name, form, type, 2) TILE(name, form, type, 3) TILE(name, form, type, 4)
#define TILES_5_8(name, form, type) \
    TILE(name, form, type, 5) TILE(name, form, type, 6) TILE(name, form, type, 7) TILE(name, form, type, 8)
#define TILES_9_12(name, form, type) \
    TILE(name, form, type, 9) TILE(name, form, type, 10) TILE(name, form, type, 11) TILE(name, form, type, 12)
#define THIN_LIST(name)                              \
    {                                                \
        NULL, name##_1, name##_2, name##_3, name##_4 \
    }
#define FAMILY_12(name, form, type, terms, offset)                                                                     \
    TILES_4(name, form, type)                                                                                          \
    TILES_5_8(name, form, type)                                                                                        \
    TILES_9_12(name, form, type)                                                                                       \
    static const struct family family_##name = {terms,                                                                 \
                                                offset,                                                                \
                                                12,                                                                    \
                                                THIN_LIST(name),                                                       \
                                                {NULL, NULL, NULL, NULL, NULL, name##_5, name##_6, name##_7, name##_8, \
                                                 name##_9, name##_10, name##_11, name##_12}};
#define FAMILY_8(name, form, type, terms, offset)   \
    TILES_4(name, form, type)                       \
    TILES_5_8(name, form, type)                     \
    static void name##_wide_4(const struct tile *a) \
    {                                               \
        tile_##form(a, type, false, 1, 4);          \
    }                                               \
    static const struct family family_##name = {    \
        terms,                                      \
        offset,                                     \
        8,                                          \
        THIN_LIST(name),                            \
        {NULL, NULL, NULL, NULL, name##_wide_4, name##_5, name##_6, name##_7, name##_8}};

FAMILY_12(q4_0, scaled, MU_Q4_0, TERMS_OFFSET, 8)
FAMILY_12(q5_0, scaled, MU_Q5_0, TERMS_OFFSET, 16)
FAMILY_12(iq4_nl, scaled, MU_IQ4_NL, TERMS_OFFSET, IQ4_OFFSET)
FAMILY_12(iq4_xs, scaled, MU_IQ4_XS, TERMS_OFFSET, IQ4_OFFSET)
FAMILY_12(mxfp4, scaled, MU_MXFP4, TERMS_OFFSET, MXFP4_OFFSET)
FAMILY_12(q8_0, bytes, MU_Q8_0, TERMS_OFFSET, 128)
FAMILY_12(q4_1, lowered, MU_Q4_1, TERMS_TOTAL, 0)
FAMILY_12(q5_1, lowered, MU_Q5_1, TERMS_TOTAL, 0)
FAMILY_12(q4_k, lowered, MU_Q4_K, TERMS_TOTAL, 0)
FAMILY_12(q5_k, lowered, MU_Q5_K, TERMS_TOTAL, 0)
FAMILY_8(q6_k, halves, MU_Q6_K, TERMS_OFFSET_HALVES, 32)
FAMILY_8(q3_k, halves, MU_Q3_K, TERMS_OFFSET_HALVES, 4)
FAMILY_8(q2_k, halves, MU_Q2_K, TERMS_TOTAL_HALVES, 0)

const struct family *mu_avx512_family(uint32_t type)
{
    static const struct family *const families[MU_TYPE_LIMIT] = {
        [MU_Q4_0] = &family_q4_0,   [MU_Q4_1] = &family_q4_1,     [MU_Q5_0] = &family_q5_0,
        [MU_Q5_1] = &family_q5_1,   [MU_Q8_0] = &family_q8_0,     [MU_Q2_K] = &family_q2_k,
        [MU_Q3_K] = &family_q3_k,   [MU_Q4_K] = &family_q4_k,     [MU_Q5_K] = &family_q5_k,
        [MU_Q6_K] = &family_q6_k,   [MU_IQ4_NL] = &family_iq4_nl, [MU_IQ4_XS] = &family_iq4_xs,
        [MU_MXFP4] = &family_mxfp4,
    };
    return families[type];
}
