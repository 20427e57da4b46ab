/* Tensor element types, numbered as GGUF numbers them (ggml's enum ggml_type; the numbers are the file format's).
 * Every type is known by name and size, so that any file can be listed and checked; `act` says whether and how this
 * build computes with it. */
#ifndef MU_KERNELS_TYPES_H
#define MU_KERNELS_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/convert.h"

#ifdef __cplusplus
extern "C" {
#endif

enum mu_type {
    MU_F32 = 0,
    MU_F16 = 1,
    MU_Q4_0 = 2,
    MU_Q4_1 = 3,
    MU_Q5_0 = 6,
    MU_Q5_1 = 7,
    MU_Q8_0 = 8,
    MU_Q8_1 = 9,
    MU_Q2_K = 10,
    MU_Q3_K = 11,
    MU_Q4_K = 12,
    MU_Q5_K = 13,
    MU_Q6_K = 14,
    MU_Q8_K = 15,
    MU_IQ2_XXS = 16,
    MU_IQ2_XS = 17,
    MU_IQ3_XXS = 18,
    MU_IQ1_S = 19,
    MU_IQ4_NL = 20,
    MU_IQ3_S = 21,
    MU_IQ2_S = 22,
    MU_IQ4_XS = 23,
    MU_I8 = 24,
    MU_I16 = 25,
    MU_I32 = 26,
    MU_I64 = 27,
    MU_F64 = 28,
    MU_IQ1_M = 29,
    MU_BF16 = 30,
    MU_TQ1_0 = 34,
    MU_TQ2_0 = 35,
    MU_MXFP4 = 39,
    MU_TYPE_LIMIT = 40
};

/* What a matrix of this type wants its input vectors to be (the arithmetic contract, C1-C3). */
enum mu_act_kind {
    MU_ACT_NONE, /* this build does not multiply with this type */
    MU_ACT_F32,  /* F32, F16; quantised types that C2 has no rule for, widened */
    MU_ACT_BF16, /* BF16: inputs rounded to bf16 */
    MU_ACT_Q8,   /* the other quantised types: int8 and one scale per 32 values */
};

struct mu_type_info {
    const char *name; /* "Q4_K", NULL for a number that is no type */
    int block_values; /* values in a block */
    int block_bytes;  /* bytes of a block */
    enum mu_act_kind act;
};

/* NULL where the number is no type. */
const struct mu_type_info *mu_type_info(uint32_t type);
/* Type of that name, upper or lower case; -1 where there is none. */
int mu_type_by_name(const char *name);
/* Bytes of a row of n values; false where n is no multiple of the block or it overflows. */
bool mu_type_row_bytes(uint32_t type, uint64_t n_values, size_t *bytes_out);

/* How keys and values are kept (C5). A page of one head is page_tokens/16 groups of 16 positions, keys and values
 * apart; a group is
 *           keys: lanes are positions               values: lanes are dimensions
 *   F16     f16 [d_head][16]                         f16 [16][d_head]
 *   Q8_0    of each block of 32 dimensions (the      int8 [16][d_head], then
 *           last may be short): f32 scale [16],      f32 scale [16][blocks]
 *           int8 [dimensions of the block][16] */
enum mu_kv_type { MU_KV_F16, MU_KV_Q8_0, MU_KV_TYPE_COUNT };
const char *mu_kv_type_name(enum mu_kv_type kv); /* "f16", "q8_0" */
/* Type of that name, upper or lower case; "" is f16. -1 where there is none. */
int mu_kv_type_by_name(const char *name);
/* Bytes of the keys, which are those of the values, of n_pos positions (a multiple of 16) of one head. */
size_t mu_kv_bytes(enum mu_kv_type kv, int d_head, int n_pos);

#ifdef __cplusplus
}
#endif
#endif
