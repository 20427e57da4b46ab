#include "tests/kernels/device_job.h"

#include <stdlib.h>

struct dt_acts dt_inputs_broken(int n_tok, int n_col, enum values v, int broken)
{
    size_t n = (size_t)n_tok * (size_t)n_col;
    float *x = malloc(n * sizeof *x);
    assert_non_null(x);
    dt_fill(x, n, v);
    dt_break(x, n, broken);
    struct dt_acts a = dt_inputs_from(x, n_tok, n_col);
    free(x);
    return a;
}

static struct dt_pair strengths(size_t n_vec)
{
    float *scale = calloc(n_vec, sizeof *scale);
    assert_non_null(scale);
    for (size_t t = 0; t < n_vec; t++) scale[t] = dt_coin() ? uniform(-1, 1) : 0.0f;
    struct dt_pair pair = dt_from(scale, n_vec * sizeof *scale);
    free(scale);
    return pair;
}

struct dt_job dt_job_make(int n_matrices, uint32_t type, uint32_t up_type, int n_row, int n_col, int n_vec,
                          enum mu_device_act act, unsigned with, enum values v)
{
    struct dt_job j = {.stride = (size_t)n_row + (dt_coin() ? 0 : 5), .has_up = up_type != MU_TYPE_LIMIT};
    size_t rows = (size_t)n_row, vecs = (size_t)n_vec, all = (size_t)n_vec * rows;
    j.m = dt_matrices(n_matrices, type, n_row, n_col, v);
    if (j.has_up) j.up = dt_matrices(n_matrices, up_type, n_row, n_col, v);
    j.out = dt_blank(vecs * j.stride * 4);
    j.of.act = act;
    if (with & DT_WITH_BIAS) {
        j.bias = dt_floats((size_t)n_matrices * rows, ORDINARY);
        if (j.has_up) j.up_bias = dt_floats((size_t)n_matrices * rows, ORDINARY);
    }
    if (with & DT_WITH_PLUS) j.plus = dt_floats(vecs * j.stride, ORDINARY);
    if (with & DT_WITH_LORA) {
        j.lora_scale = strengths(vecs);
        j.lora_up_scale = strengths(vecs);
        j.lora = dt_floats(all, ORDINARY);
        if (j.has_up && dt_coin()) j.lora_up = dt_floats(all, ORDINARY);
    }
    if (with & DT_WITH_SCALE) {
        j.of.scale = 0.37f;
        j.of.cap = 30.0f;
    }
    if (with & DT_WITH_FORM) {
        if (dt_coin()) j.bf16 = dt_blank(vecs * j.stride * 2);
        if (dt_coin()) j.form_bf16 = dt_blank(all * 2);
        if (n_row % 32 == 0) {
            j.q = dt_blank(all);
            j.s = dt_blank(all / 32 * 4);
            if (dt_coin()) j.sum = dt_blank(all / 16 * 2);
        }
    }
    return j;
}

struct mu_device_job dt_job_at(const struct dt_job *j, int side)
{
    struct mu_device_job d = j->of;
    d.m = &j->m.of[side];
    d.up = j->has_up ? &j->up.of[side] : NULL;
    d.out = j->out.at[side];
    d.stride = j->stride;
    d.bf16 = j->bf16.at[side];
    d.form = (struct mu_act_to){NULL, j->form_bf16.at[side], j->q.at[side], j->s.at[side], j->sum.at[side]};
    d.bias = j->bias.at[side];
    d.up_bias = j->up_bias.at[side];
    d.plus = j->plus.at[side];
    d.lora = j->lora.at[side];
    d.lora_up = j->lora_up.at[side];
    d.lora_scale = j->lora_scale.at[side];
    d.lora_up_scale = j->lora_up_scale.at[side];
    return d;
}

void dt_job_same(const struct dt_job *j, const char *what)
{
    dt_same(j->out, DT_F32, "%s", what);
    if (j->bf16.bytes) dt_same(j->bf16, DT_BF16, "%s, bf16", what);
    if (j->form_bf16.bytes) dt_same(j->form_bf16, DT_BF16, "%s, bf16 form", what);
    if (j->q.bytes) dt_same(j->q, DT_BYTES, "%s, codes", what);
    if (j->s.bytes) dt_same(j->s, DT_F32, "%s, scales", what);
    if (j->sum.bytes) dt_same(j->sum, DT_I16, "%s, sums", what);
}

void dt_groups_fill(int n_tok, int n_expert, int n_used, int32_t *begin, int32_t *place)
{
    int32_t *chosen = calloc((size_t)n_tok * (size_t)n_used, sizeof *chosen), n = 0;
    assert_non_null(chosen);
    for (int t = 0; t < n_tok; t++) {
        int first = dt_coin() ? 1 : (int)(rnd() % (unsigned)n_expert);
        for (int u = 0; u < n_used; u++) chosen[t * n_used + u] = (first + 3 * u) % n_expert;
    }
    for (int e = 0; e < n_expert; e++) {
        begin[e] = n;
        for (int i = 0; i < n_tok * n_used; i++)
            if (chosen[i] == e) place[n++] = i;
    }
    begin[n_expert] = n;
    assert_int_equal(n, n_tok * n_used);
    free(chosen);
}
