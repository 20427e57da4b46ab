/* F32, F16, BF16 and the types without a rule in C2 on a device: products of all sizes with all that may follow them,
 * against the definition. */
#include <stdlib.h>
#include <string.h>

#include "tests/kernels/device_test.h"

static const uint32_t kinds[] = {MU_F32,    MU_F16,   MU_BF16,    MU_TQ1_0, MU_TQ2_0, MU_IQ2_XXS,
                                 MU_IQ2_XS, MU_IQ2_S, MU_IQ3_XXS, MU_IQ3_S, MU_IQ1_S, MU_IQ1_M};
enum { N_KINDS = sizeof kinds / sizeof *kinds, N_FLOATS = 3 };

static const char *name_of(uint32_t type)
{
    return mu_type_info(type)->name;
}

/* One product without anything. */
static void product(uint32_t type, int n_row, int n_col, int n_tok, enum values v)
{
    struct dt_mats m = dt_matrices(1, type, n_row, n_col, v);
    struct dt_acts x = dt_inputs(n_tok, n_col, v);
    struct dt_pair out = dt_blank((size_t)n_tok * (size_t)(n_row + 3) * sizeof(float));
    for (int i = 0; i < DT_SIDES; i++) {
        struct mu_device_job job = {.m = &m.of[i], .out = out.at[i], .stride = (size_t)n_row + 3};
        dt.ops[i]->matmul(dt.dev[i], &job, 1, &x.of[i], NULL);
    }
    dt_same(out, DT_F32, "%s %d x %d, %d vectors", name_of(type), n_row, n_col, n_tok);
    dt_free_all();
}

static void test_sizes(void **state)
{
    static const int rows[] = {1, 31, 32, 33, 100, 130}, cols[] = {1, 3, 7, 8, 31, 33, 132, 257, 600};
    static const int tokens[] = {1, 2, 4, 5, 8, 9, 16, 17, 64, 65};
    (void)state;
    for (int t = 0; t < N_FLOATS; t++)
        for (size_t c = 0; c < sizeof cols / sizeof *cols; c++)
            for (size_t k = 0; k < sizeof tokens / sizeof *tokens; k++)
                product(kinds[t], rows[(c + k) % 6], cols[c], tokens[k], ORDINARY);
}

static void test_widened(void **state)
{
    static const int cols[] = {256, 512, 1280}, tokens[] = {1, 9, 17, 70};
    (void)state;
    for (int t = N_FLOATS; t < N_KINDS; t++)
        for (int k = 0; k < 4; k++) product(kinds[t], 33 + k, cols[(t + k) % 3], tokens[k], k & 1 ? EXTREME : ORDINARY);
}

/* More chunks than stages, tiles of 128 vectors, rows that reach over tiles. */
static void test_large(void **state)
{
    (void)state;
    for (int t = 0; t < N_FLOATS; t++) {
        product(kinds[t], 40, 2056, 3, ORDINARY);
        product(kinds[t], 300, 72, 133, ORDINARY);
        product(kinds[t], 129, 1032, 20, EXTREME);
        product(kinds[t], 400, 72, 40, ORDINARY);
        if (dt.emulated) continue; /* which has 4 multiprocessors: work for those of a real one */
        product(kinds[t], 17000, 40, 70, ORDINARY);
        product(kinds[t], 9000, 40, 250, ORDINARY);
        product(kinds[t], 4096, 4096, 8, ORDINARY);
        product(kinds[t], 4096, 1024, 30, ORDINARY);
    }
}

static void test_values(void **state)
{
    static const int tokens[] = {3, 8, 40};
    (void)state;
    for (int t = 0; t < N_FLOATS; t++)
        for (int v = EXTREME; v <= TINY; v++)
            for (int k = 0; k < 3; k++) product(kinds[t], 64, 300, tokens[k], (enum values)v);
}

/* BF16 where results are flushed: products around 2^-126 onto small sums. */
static void test_tiny(void **state)
{
    enum { ROWS = 64, TOKENS = 40 };
    (void)state;
    for (int round = 0; round < 12; round++) {
        int n_col = 1 + round % 6, n_tok = round & 1 ? TOKENS : 5;
        uint32_t mantissa = round % 4 < 2 ? 0x807f : 0x8060; /* few bits: sums meet 2^-126 itself */
        float x[TOKENS * 6];
        uint16_t w[ROWS * 6];
        int32_t none = 0;
        for (int i = 0; i < ROWS * n_col; i++) w[i] = (uint16_t)((rnd() & mantissa) | (60 + rnd() % 8) << 7);
        for (int i = 0; i < n_tok * n_col; i++)
            x[i] = mu_bf16_to_f32((uint16_t)((rnd() & mantissa) | (60 + rnd() % 8) << 7));
        for (int i = 0; round >= 6 && n_col > 1 && i < ROWS; i++) { /* 2^-126 less j·2^-153 */
            w[i * n_col] = mu_f32_to_bf16(0x1p-63f);
            w[i * n_col + 1] = mu_f32_to_bf16(-(float)(rnd() % 64) * 0x1p-76f);
        }
        for (int t = 0; round >= 6 && n_col > 1 && t < n_tok; t++) {
            x[t * n_col] = 0x1p-63f;
            x[t * n_col + 1] = t & 1 ? 0x1p-77f : -0x1p-77f;
        }
        struct dt_acts in = dt_inputs_from(x, n_tok, n_col);
        struct dt_pair raw = dt_from(w, (size_t)(ROWS * n_col) * sizeof *w), bad = dt_from(&none, sizeof none);
        struct dt_pair out = dt_blank((size_t)(n_tok * ROWS) * sizeof(float));
        struct dt_pair data = dt_blank(dt.ops[DT_PLUGIN]->mat_bytes(MU_BF16, ROWS, n_col));
        for (int i = 0; i < DT_SIDES; i++) {
            struct mu_mat m = {MU_BF16, ROWS, n_col, data.at[i]};
            struct mu_device_job job = {.m = &m, .out = out.at[i], .stride = ROWS};
            dt.ops[i]->mat_pack(dt.dev[i], &m, 0, ROWS, raw.at[i], bad.at[i]);
            dt.ops[i]->matmul(dt.dev[i], &job, 1, &in.of[i], NULL);
        }
        dt_same(out, DT_F32, "BF16 around the smallest normal number, %d columns", n_col);
        dt_free_all();
    }
}

/* What a job may have. */
enum {
    UP = 1,
    BIAS = 2,
    LORA = 4,
    PLUS = 8,
    CAP = 16,
    FORM = 32,
    MIXED = 64, /* up of another type */
};

static void full(uint32_t type, int n_row, int n_col, int n_tok, enum mu_device_act act, int with)
{
    size_t n = (size_t)n_tok * (size_t)n_row;
    uint32_t up_type = with & MIXED ? (type == MU_F32 ? MU_F16 : MU_F32) : type;
    struct dt_mats m = dt_matrices(1, type, n_row, n_col, ORDINARY),
                   up = dt_matrices(1, up_type, n_row, n_col, ORDINARY);
    struct dt_acts x = dt_inputs(n_tok, n_col, ORDINARY);
    struct dt_pair out = dt_blank(n * 4), bf16 = dt_blank(n * 2), form_bf16 = dt_blank(n * 2), q = dt_blank(n);
    struct dt_pair s = dt_blank(n / 32 * 4), sum = dt_blank(n / 32 * 4);
    struct dt_pair bias = dt_floats((size_t)n_row, ORDINARY), up_bias = dt_floats((size_t)n_row, ORDINARY);
    struct dt_pair plus = dt_floats(n, ORDINARY), lora = dt_floats(n, ORDINARY), lora_up = dt_floats(n, ORDINARY);
    float *strength = malloc((size_t)n_tok * sizeof *strength);
    for (int t = 0; t < n_tok; t++) strength[t] = t % 3 == 1 ? 0.0f : uniform(-1, 1);
    struct dt_pair lora_scale = dt_from(strength, (size_t)n_tok * sizeof *strength);
    free(strength);
    for (int i = 0; i < DT_SIDES; i++) {
        struct mu_device_job job = {
            .m = &m.of[i], .out = out.at[i], .stride = (size_t)n_row, .act = act, .scale = 0.75f};
        job.bf16 = bf16.at[i];
        if (with & UP) job.up = &up.of[i];
        if (with & BIAS) job.bias = bias.at[i];
        if ((with & BIAS) && (with & UP)) job.up_bias = up_bias.at[i];
        if (with & LORA) job.lora = lora.at[i], job.lora_scale = lora_scale.at[i];
        if ((with & LORA) && (with & UP)) job.lora_up = lora_up.at[i], job.lora_up_scale = lora_scale.at[i];
        if (with & PLUS) job.plus = plus.at[i];
        if (with & CAP) job.cap = 3.0f;
        if (with & FORM)
            job.form = (struct mu_act_to){.bf16 = form_bf16.at[i], .q = q.at[i], .s = s.at[i], .sum = sum.at[i]};
        dt.ops[i]->matmul(dt.dev[i], &job, 1, &x.of[i], NULL);
    }
    dt_same(out, DT_F32, "%s %d x %d, %d vectors, act %d, with %d", name_of(type), n_row, n_col, n_tok, (int)act, with);
    dt_same(bf16, DT_BF16, "its bf16");
    dt_same(form_bf16, DT_BF16, "its form in bf16");
    dt_same(q, DT_BYTES, "its codes");
    dt_same(s, DT_F32, "its scales");
    dt_same(sum, DT_I16, "its sums");
    dt_free_all();
}

static void test_jobs(void **state)
{
    static const uint32_t types[] = {MU_F32, MU_F16, MU_BF16, MU_IQ2_S};
    static const int tokens[] = {1, 6, 19};
    (void)state;
    for (int t = 0; t < 4; t++)
        for (int k = 0; k < 3; k++) {
            int n_col = types[t] == MU_IQ2_S ? 256 : 96;
            full(types[t], 64, n_col, tokens[k], MU_DEVICE_ACT_SILU, UP | BIAS | LORA | PLUS | FORM);
            full(types[t], 45, n_col, tokens[k], MU_DEVICE_ACT_SILU_CLAMPED, UP | BIAS | CAP);
            full(types[t], 96, n_col, tokens[k], MU_DEVICE_ACT_GELU, BIAS | LORA | FORM);
            full(types[t], 32, n_col, tokens[k], MU_DEVICE_ACT_GELU_ERF, UP | PLUS);
            full(types[t], 64, n_col, tokens[k], MU_DEVICE_ACT_NONE, LORA | CAP | FORM);
            if (n_col == 96) full(types[t], 64, n_col, tokens[k], MU_DEVICE_ACT_SILU, UP | LORA | BIAS | MIXED | FORM);
        }
}

/* Several matrices of one input, of several types and sizes. */
static void test_several(void **state)
{
    static const uint32_t types[] = {MU_F16, MU_BF16, MU_F16, MU_F32};
    static const int rows[] = {70, 33, 1, 160};
    (void)state;
    for (int n_tok = 1; n_tok < 40; n_tok += 18) {
        struct dt_mats m[4];
        struct dt_pair out[4];
        struct dt_acts x = dt_inputs(n_tok, 128, ORDINARY);
        for (int j = 0; j < 4; j++) {
            m[j] = dt_matrices(1, types[j], rows[j], 128, ORDINARY);
            out[j] = dt_blank((size_t)n_tok * (size_t)rows[j] * sizeof(float));
        }
        for (int i = 0; i < DT_SIDES; i++) {
            struct mu_device_job job[4] = {{.m = NULL}};
            for (int j = 0; j < 4; j++) {
                job[j].m = &m[j].of[i];
                job[j].out = out[j].at[i];
                job[j].stride = (size_t)rows[j];
            }
            dt.ops[i]->matmul(dt.dev[i], job, 4, &x.of[i], NULL);
        }
        for (int j = 0; j < 4; j++) dt_same(out[j], DT_F32, "job %d of 4, %d vectors", j, n_tok);
        dt_free_all();
    }
}

/* gate and up by token, down by place; experts chosen unevenly. */
static void experts(uint32_t type, int n_tok, int n_expert, int n_used, int n_row, int n_col)
{
    size_t n_place = (size_t)n_tok * (size_t)n_used, hidden = n_place * (size_t)n_row;
    struct dt_pair score = dt_floats((size_t)n_tok * (size_t)n_expert, ORDINARY);
    struct dt_pair chosen = dt_blank(n_place * 4), place = dt_blank(n_place * 4), at = dt_blank(n_place * 4);
    struct dt_pair begin = dt_blank((size_t)(n_expert + 1) * 4), weight = dt_blank(n_place * 4);
    struct dt_mats gate = dt_matrices(n_expert, type, n_row, n_col, ORDINARY);
    struct dt_mats up = dt_matrices(n_expert, type, n_row, n_col, ORDINARY);
    struct dt_mats down = dt_matrices(n_expert, type, 40, n_row, ORDINARY);
    struct dt_acts x = dt_inputs(n_tok, n_col, ORDINARY);
    struct dt_pair bias = dt_floats((size_t)n_expert * (size_t)n_row, ORDINARY);
    struct dt_pair out = dt_blank(hidden * 4), bf16 = dt_blank(hidden * 2), q = dt_blank(hidden);
    struct dt_pair s = dt_blank(hidden / 32 * 4), part = dt_blank(n_place * 40 * 4);
    for (int i = 0; i < DT_SIDES; i++) {
        struct mu_device_route r = {n_tok,       n_expert, n_used,      score.at[i], chosen.at[i],
                                    place.at[i], at.at[i], begin.at[i], weight.at[i]};
        dt.ops[i]->route(dt.dev[i], &r);
        struct mu_device_experts e = {n_expert, n_used, gate.bytes[i], up.bytes[i], begin.at[i], place.at[i], false};
        struct mu_device_job job = {.m = &gate.of[i],
                                    .up = &up.of[i],
                                    .out = out.at[i],
                                    .stride = (size_t)n_row,
                                    .bias = bias.at[i],
                                    .up_bias = bias.at[i],
                                    .act = MU_DEVICE_ACT_SILU,
                                    .form = {.bf16 = bf16.at[i], .q = q.at[i], .s = s.at[i]}};
        dt.ops[i]->matmul(dt.dev[i], &job, 1, &x.of[i], &e);
        e.by_place = true;
        e.m_bytes = down.bytes[i];
        struct mu_act h = {(int)n_place, n_row, out.at[i], bf16.at[i], NULL, NULL, NULL};
        job = (struct mu_device_job){.m = &down.of[i], .out = part.at[i], .stride = 40};
        dt.ops[i]->matmul(dt.dev[i], &job, 1, &h, &e);
    }
    dt_same(out, DT_F32, "%s, %d of %d experts, %d tokens", name_of(type), n_used, n_expert, n_tok);
    dt_same(bf16, DT_BF16, "their bf16");
    dt_same(q, DT_BYTES, "their codes");
    dt_same(s, DT_F32, "their scales");
    dt_same(part, DT_F32, "what they give back");
    dt_free_all();
}

static void test_experts(void **state)
{
    (void)state;
    for (int t = 0; t < N_FLOATS; t++) {
        experts(kinds[t], 1, 4, 2, 64, 32);
        experts(kinds[t], 7, 40, 3, 32, 72);
        experts(kinds[t], 30, 3, 2, 96, 40);
        experts(kinds[t], 150, 2, 1, 32, 24);
    }
    experts(MU_TQ2_0, 5, 6, 2, 256, 256);
    experts(MU_IQ3_S, 60, 3, 2, 256, 256);
}

/* Weights that are not finite are told, wherever they are. */
static void test_bad_weights(void **state)
{
    (void)state;
    for (int t = 0; t < N_KINDS; t++)
        for (int bad_row = -1; bad_row < 50; bad_row += 17) {
            const struct mu_type_info *info = mu_type_info(kinds[t]);
            int n_col = info->block_values == 1 ? 33 : 512;
            size_t row;
            int32_t none = 0;
            assert_true(mu_type_row_bytes(kinds[t], (uint64_t)n_col, &row));
            uint8_t *raw = malloc(50 * row), *last = raw + (size_t)(bad_row + 1) * row - (size_t)info->block_bytes;
            raw_fill(kinds[t], raw, 50 * row, ORDINARY);
            const float infinite = -INFINITY;
            int at[2];
            scales_at(kinds[t], at);
            if (bad_row < 0)
                (void)last;
            else if (kinds[t] == MU_F32)
                memcpy(last, &infinite, 4);
            else if (kinds[t] == MU_IQ1_M)
                put_iq1_m(last, 0x7c01);
            else
                put16(last + at[0], kinds[t] == MU_BF16 ? 0x7f81 : 0xfc00);
            struct dt_pair from = dt_from(raw, 50 * row), bad = dt_from(&none, sizeof none);
            struct dt_pair data = dt_blank(dt.ops[DT_PLUGIN]->mat_bytes(kinds[t], 50, n_col));
            free(raw);
            for (int i = 0; i < DT_SIDES; i++) {
                struct mu_mat m = {kinds[t], 50, n_col, data.at[i]};
                dt.ops[i]->mat_pack(dt.dev[i], &m, 0, 50, from.at[i], bad.at[i]);
            }
            dt_same(bad, DT_I32, "%s with row %d not finite", info->name, bad_row);
            int32_t said;
            dt_read(bad, DT_PLUGIN, &said);
            assert_int_equal(said, bad_row >= 0);
            dt_free_all();
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes),   cmocka_unit_test(test_widened), cmocka_unit_test(test_large),
        cmocka_unit_test(test_values),  cmocka_unit_test(test_tiny),    cmocka_unit_test(test_jobs),
        cmocka_unit_test(test_several), cmocka_unit_test(test_experts), cmocka_unit_test(test_bad_weights),
    };
    return cmocka_run_group_tests(tests, dt_open, dt_close);
}
