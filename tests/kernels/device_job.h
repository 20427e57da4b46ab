/* Jobs of matmul for tests of a device (device_test.h): their matrices, all that may follow the product, and where the
 * results go. */
#ifndef MU_TESTS_KERNELS_DEVICE_JOB_H
#define MU_TESTS_KERNELS_DEVICE_JOB_H

#include "tests/kernels/device_test.h"

enum { DT_WITH_BIAS = 1, DT_WITH_LORA = 2, DT_WITH_PLUS = 4, DT_WITH_FORM = 8, DT_WITH_SCALE = 16 };

static inline bool dt_coin(void)
{
    return rnd() & 1;
}

/* A job and where its results are. */
struct dt_job {
    struct dt_mats m, up;
    struct dt_pair out, bf16, form_bf16, q, s, sum, bias, up_bias, plus, lora, lora_up, lora_scale, lora_up_scale;
    size_t stride;
    bool has_up;
    struct mu_device_job of; /* what both sides have in common */
};

/* up_type MU_TYPE_LIMIT: no second matrix. n_vec: of the outputs. */
struct dt_job dt_job_make(int n_matrices, uint32_t type, uint32_t up_type, int n_row, int n_col, int n_vec,
                          enum mu_device_act act, unsigned with, enum values v);
struct mu_device_job dt_job_at(const struct dt_job *j, int side);
/* All results are the same on both sides. */
void dt_job_same(const struct dt_job *j, const char *what);

/* Inputs of which so many are not finite. */
struct dt_acts dt_inputs_broken(int n_tok, int n_col, enum values v, int broken);

/* n_used different experts for each token, some experts for none; places by expert, then token. */
void dt_groups_fill(int n_tok, int n_expert, int n_used, int32_t *begin, int32_t *place);

#endif
