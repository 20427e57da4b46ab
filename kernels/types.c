/* The table of GGUF element types. Pure functions. */
#include "kernels/types.h"

#include <strings.h>

static const struct mu_type_info type_table[MU_TYPE_LIMIT] = {
    [MU_F32] = {"F32", 1, 4, MU_ACT_F32},
    [MU_F16] = {"F16", 1, 2, MU_ACT_F32},
    [MU_Q4_0] = {"Q4_0", 32, 18, MU_ACT_Q8},
    [MU_Q4_1] = {"Q4_1", 32, 20, MU_ACT_Q8},
    [MU_Q5_0] = {"Q5_0", 32, 22, MU_ACT_Q8},
    [MU_Q5_1] = {"Q5_1", 32, 24, MU_ACT_Q8},
    [MU_Q8_0] = {"Q8_0", 32, 34, MU_ACT_Q8},
    [MU_Q8_1] = {"Q8_1", 32, 36, MU_ACT_NONE},
    [MU_Q2_K] = {"Q2_K", 256, 84, MU_ACT_Q8},
    [MU_Q3_K] = {"Q3_K", 256, 110, MU_ACT_Q8},
    [MU_Q4_K] = {"Q4_K", 256, 144, MU_ACT_Q8},
    [MU_Q5_K] = {"Q5_K", 256, 176, MU_ACT_Q8},
    [MU_Q6_K] = {"Q6_K", 256, 210, MU_ACT_Q8},
    [MU_Q8_K] = {"Q8_K", 256, 292, MU_ACT_NONE},
    [MU_IQ2_XXS] = {"IQ2_XXS", 256, 66, MU_ACT_F32},
    [MU_IQ2_XS] = {"IQ2_XS", 256, 74, MU_ACT_F32},
    [MU_IQ3_XXS] = {"IQ3_XXS", 256, 98, MU_ACT_F32},
    [MU_IQ1_S] = {"IQ1_S", 256, 50, MU_ACT_F32},
    [MU_IQ4_NL] = {"IQ4_NL", 32, 18, MU_ACT_Q8},
    [MU_IQ3_S] = {"IQ3_S", 256, 110, MU_ACT_F32},
    [MU_IQ2_S] = {"IQ2_S", 256, 82, MU_ACT_F32},
    [MU_IQ4_XS] = {"IQ4_XS", 256, 136, MU_ACT_Q8},
    [MU_I8] = {"I8", 1, 1, MU_ACT_NONE},
    [MU_I16] = {"I16", 1, 2, MU_ACT_NONE},
    [MU_I32] = {"I32", 1, 4, MU_ACT_NONE},
    [MU_I64] = {"I64", 1, 8, MU_ACT_NONE},
    [MU_F64] = {"F64", 1, 8, MU_ACT_NONE},
    [MU_IQ1_M] = {"IQ1_M", 256, 56, MU_ACT_F32},
    [MU_BF16] = {"BF16", 1, 2, MU_ACT_BF16},
    [MU_TQ1_0] = {"TQ1_0", 256, 54, MU_ACT_F32},
    [MU_TQ2_0] = {"TQ2_0", 256, 66, MU_ACT_F32},
    [MU_MXFP4] = {"MXFP4", 32, 17, MU_ACT_Q8},
};

const struct mu_type_info *mu_type_info(uint32_t type)
{
    return type < MU_TYPE_LIMIT && type_table[type].name ? &type_table[type] : NULL;
}

int mu_type_by_name(const char *name)
{
    for (int i = 0; i < MU_TYPE_LIMIT; i++)
        if (type_table[i].name && strcasecmp(type_table[i].name, name) == 0) return i;
    return -1;
}

bool mu_type_row_bytes(uint32_t type, uint64_t n_values, size_t *bytes_out)
{
    const struct mu_type_info *t = mu_type_info(type);
    if (!t || n_values % (uint64_t)t->block_values != 0) return false;
    size_t bytes;
    if (__builtin_mul_overflow(n_values / (uint64_t)t->block_values, (size_t)t->block_bytes, &bytes)) return false;
    *bytes_out = bytes;
    return true;
}
