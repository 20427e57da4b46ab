/* Products that may be rough (kernels/device.h): within A/128 of their definition, A = Σ|w·x|; the same for a vector
 * wherever it is and whatever is beside it; and what follows a product exact on top of it.
 *
 * For the last the definition is told the rough products themselves: y and u of a vector are the columns of its input,
 * and matrices of ones and zeros in F32 fetch them, exactly. */
#include "tests/kernels/device_job.h"

#include <stdio.h>
#include <stdlib.h>

#include "kernels/kernels.h"

enum { N_TYPES = 16 };
static const uint32_t types[N_TYPES] = {MU_Q4_0, MU_Q4_1, MU_Q5_0,   MU_Q5_1,  MU_Q8_0,   MU_Q2_K, MU_Q3_K, MU_Q4_K,
                                        MU_Q5_K, MU_Q6_K, MU_IQ4_NL, MU_MXFP4, MU_IQ4_XS, MU_F32,  MU_F16,  MU_BF16};

static int columns_of(uint32_t type, int i)
{
    static const int blocks[] = {1, 2, 3, 5, 8, 9, 24}, any[] = {1, 7, 96, 132, 256, 257, 600};
    int block = mu_type_info(type)->block_values;
    return block == 1 ? any[i % 7] : block == 256 ? 256 * (1 + i % 3) : 32 * blocks[i % 7];
}

static void *take(size_t bytes)
{
    void *p = calloc(bytes ? bytes : 1, 1);
    assert_non_null(p);
    return p;
}

/* The plugin's rough products of matrix m with these vectors, dense, to out (host memory). */
static void rough_products(const struct mu_mat *m, const struct mu_act *x, float *out)
{
    size_t n = (size_t)x->n_tok * (size_t)m->n_row;
    struct dt_pair to = dt_blank(n * sizeof(float));
    struct mu_device_job job = {.m = m, .out = to.at[DT_PLUGIN], .stride = (size_t)m->n_row, .rough = true};
    dt.ops[DT_PLUGIN]->matmul(dt.dev[DT_PLUGIN], &job, 1, x, NULL);
    dt_read(to, DT_PLUGIN, out);
}

/* ---- the bound ---- */

/* The inputs as the type gets them, as f32 (host memory). */
static float *widened(uint32_t type, const struct mu_act *x)
{
    size_t n = (size_t)x->n_tok * (size_t)x->n_col;
    float *v = take(n * sizeof *v);
    for (size_t i = 0; i < n; i++) {
        if (mu_type_info(type)->act == MU_ACT_Q8)
            v[i] = (float)x->q[i] * x->s[i / 32];
        else
            v[i] = type == MU_BF16 ? mu_bf16_to_f32(x->bf16[i]) : x->f32[i];
    }
    return v;
}

/* A of row r and vector t. */
static double size_of(const float *w, const float *x, int n_col)
{
    double sum = 0;
    for (int c = 0; c < n_col; c++) sum += fabs((double)w[c] * (double)x[c]);
    return sum;
}

/* Sums that leave f32's range, be it on the definition's way alone, and subnormal ones, are no matter for a bound. A vector
 * that is not finite must not give a finite result. */
static void near(const struct dt_mats *m, const struct dt_acts *x, const float *got, const float *want,
                 const char *what)
{
    const struct mu_mat *mat = &m->of[DT_HOST]; /* the file's rows, in memory of this process */
    const struct mu_kernels *ref = mu_kernels_available()[0];
    int n_row = mat->n_row, n_col = mat->n_col, n_tok = x->of[DT_HOST].n_tok;
    float *v = widened(mat->type, &x->of[DT_HOST]), *w = take((size_t)n_col * sizeof *w);
    size_t row_bytes;
    assert_true(mu_type_row_bytes(mat->type, (uint64_t)n_col, &row_bytes));
    for (int r = 0; r < n_row; r++) {
        assert_true(ref->dequant_row(mat->type, (const uint8_t *)mat->data + (size_t)r * row_bytes, n_col, w));
        for (int t = 0; t < n_tok; t++) {
            size_t at = (size_t)t * (size_t)n_row + (size_t)r;
            double a = size_of(w, v + (size_t)t * (size_t)n_col, n_col), by = fabs((double)got[at] - (double)want[at]);
            if (a > 1e37 || (isfinite(a) && !isfinite(want[at]))) continue;
            if (!isfinite(a) ? isfinite(got[at]) : !(by <= a / 128 + 1e-36))
                fail_msg("%s: row %d of vector %d is %g and should be %g within %g", what, r, t, (double)got[at],
                         (double)want[at], a / 128);
        }
    }
    free(v);
    free(w);
}

static void product(uint32_t type, int n_row, int n_col, int n_tok, enum values v, int broken)
{
    char what[160];
    size_t n = (size_t)n_tok * (size_t)n_row;
    float *got = take(n * sizeof *got), *want = take(n * sizeof *want);
    struct dt_acts x = dt_inputs_broken(n_tok, n_col, v, broken);
    struct dt_mats m = dt_matrices(1, type, n_row, n_col, v);
    struct dt_pair out = dt_blank(n * sizeof(float));
    struct mu_device_job job = {.m = &m.of[DT_HOST], .out = out.at[DT_HOST], .stride = (size_t)n_row, .rough = true};
    dt.ops[DT_HOST]->matmul(dt.dev[DT_HOST], &job, 1, &x.of[DT_HOST], NULL);
    dt_read(out, DT_HOST, want);
    rough_products(&m.of[DT_PLUGIN], &x.of[DT_PLUGIN], got);
    snprintf(what, sizeof what, "%s, %d × %d, %d vectors, values %d, %d not finite", mu_type_info(type)->name, n_row,
             n_col, n_tok, (int)v, broken);
    near(&m, &x, got, want, what);
    free(got);
    free(want);
    dt_free_all();
}

static void test_types(void **state)
{
    static const int rows[] = {1, 31, 64, 65, 130}, tokens[] = {1, 9, 32, 33, 64, 65};
    (void)state;
    for (int i = 0; i < N_TYPES; i++)
        for (int t = 0; t < 7; t++)
            product(types[i], rows[(i + t) % 5], columns_of(types[i], t), tokens[(i + t) % 6],
                    t % 3 == 2 ? EXTREME : ORDINARY, t % 2);
}

/* Enough for the large tiles, of both heights. */
static void test_large(void **state)
{
    (void)state;
    for (int i = 0; i < N_TYPES; i++) {
        product(types[i], 270 - i, columns_of(types[i], 3 + i), 129, ORDINARY, i % 2);
        product(types[i], 140 - i, columns_of(types[i], i), 70 + i, ORDINARY, 0);
    }
}

/* Rows of bf16 and f32 that do not begin at multiples of 16 bytes. */
static void test_aligned(void **state)
{
    (void)state;
    for (int i = 13; i < N_TYPES; i++) {
        enum { N_TOK = 20, N_ROW = 40, N_COL = 64 };
        float got[N_TOK * N_ROW], want[N_TOK * N_ROW];
        struct dt_mats m = dt_matrices(1, types[i], N_ROW, N_COL, ORDINARY);
        struct dt_acts x = dt_inputs(N_TOK + 1, N_COL, ORDINARY);
        struct mu_act *v = &x.of[DT_PLUGIN];
        v->n_tok = N_TOK;
        struct dt_pair f32 = dt_blank((N_TOK * N_COL + 1) * 4), bf16 = dt_blank((N_TOK * N_COL + 1) * 2);
        rough_products(&m.of[DT_PLUGIN], v, want);
        dt.ops[DT_PLUGIN]->copy(dt.dev[DT_PLUGIN], (float *)f32.at[DT_PLUGIN] + 1, v->f32, N_TOK * N_COL * 4);
        dt.ops[DT_PLUGIN]->copy(dt.dev[DT_PLUGIN], (uint16_t *)bf16.at[DT_PLUGIN] + 1, v->bf16, N_TOK * N_COL * 2);
        v->f32 = (float *)f32.at[DT_PLUGIN] + 1;
        v->bf16 = (uint16_t *)bf16.at[DT_PLUGIN] + 1;
        rough_products(&m.of[DT_PLUGIN], v, got);
        assert_memory_equal(got, want, sizeof got);
        dt_free_all();
    }
}

/* ---- a vector's result is its own ---- */

/* The same vectors alone, some of them, and in the opposite order. */
static void test_own(void **state)
{
    enum { N_TOK = 133, N_ROW = 70 };
    (void)state;
    for (int i = 0; i < N_TYPES; i++) {
        int n_col = columns_of(types[i], 5);
        size_t row = N_ROW * sizeof(float), n = (size_t)N_TOK * (size_t)n_col;
        float *x = take(n * sizeof *x), *turned = take(n * sizeof *x), *all = take(N_TOK * row),
              *other = take(N_TOK * row);
        dt_fill(x, n, ORDINARY);
        x[5 * n_col] = NAN;
        for (int t = 0; t < N_TOK; t++)
            memcpy(turned + t * n_col, x + (N_TOK - 1 - t) * n_col, (size_t)n_col * sizeof *x);
        struct dt_mats m = dt_matrices(1, types[i], N_ROW, n_col, ORDINARY);
        struct dt_acts a = dt_inputs_from(x, N_TOK, n_col), b = dt_inputs_from(turned, N_TOK, n_col);
        rough_products(&m.of[DT_PLUGIN], &a.of[DT_PLUGIN], all);
        rough_products(&m.of[DT_PLUGIN], &b.of[DT_PLUGIN], other);
        for (int t = 0; t < N_TOK; t++) {
            if (memcmp(all + t * N_ROW, other + (N_TOK - 1 - t) * N_ROW, row) != 0)
                fail_msg("%s: vector %d differs where it is number %d", mu_type_info(types[i])->name, t, N_TOK - 1 - t);
            for (int r = 0; r < N_ROW; r++) assert_true(isfinite(all[t * N_ROW + r]) == (t != 5));
        }
        static const int counts[] = {1, 20, 40};
        for (int k = 0; k < 3; k++) {
            int first = 3 + 29 * k;
            struct dt_acts some = dt_inputs_from(x + first * n_col, counts[k], n_col);
            rough_products(&m.of[DT_PLUGIN], &some.of[DT_PLUGIN], other);
            if (memcmp(all + first * N_ROW, other, (size_t)counts[k] * row) != 0)
                fail_msg("%s: vectors from %d on differ among %d", mu_type_info(types[i])->name, first, counts[k]);
        }
        free(x);
        free(turned);
        free(all);
        free(other);
        dt_free_all();
    }
}

/* ---- what follows ---- */

/* n equal matrices on the definition's side that fetch columns [first, first + n_row). */
static struct mu_mat fetching(int n, int n_row, int n_col, int first, size_t *bytes_out)
{
    float *raw = take((size_t)n_row * (size_t)n_col * sizeof *raw);
    int32_t none = 0;
    for (int r = 0; r < n_row; r++) raw[r * n_col + first + r] = 1.0f;
    size_t bytes = (dt.ops[DT_HOST]->mat_bytes(MU_F32, n_row, n_col) + 255) / 256 * 256;
    struct dt_pair rows = dt_from(raw, (size_t)n_row * (size_t)n_col * sizeof *raw), bad = dt_from(&none, sizeof none);
    struct dt_pair data = dt_blank((size_t)n * bytes);
    struct mu_mat m = {MU_F32, n_row, n_col, data.at[DT_HOST]};
    for (int e = 0; e < n; e++) {
        m.data = (uint8_t *)data.at[DT_HOST] + (size_t)e * bytes;
        dt.ops[DT_HOST]->mat_pack(dt.dev[DT_HOST], &m, 0, n_row, rows.at[DT_HOST], bad.at[DT_HOST]);
    }
    m.data = data.at[DT_HOST];
    free(raw);
    *bytes_out = bytes;
    return m;
}

/* Rough products of matrix e of the job (up: of its second) with x, to columns [first, first + n_row) of those outputs of
 * y [n_vec][n_y] that `input` gives a vector of x (-1: not of this matrix). */
static void products_place(const struct dt_mats *m, int e, const struct mu_act *x, const int *input, int n_vec,
                           float *y, int n_y, int first)
{
    struct mu_mat of = m->of[DT_PLUGIN];
    of.data = (uint8_t *)of.data + (size_t)e * m->bytes[DT_PLUGIN];
    float *plain = take((size_t)x->n_tok * (size_t)of.n_row * sizeof *plain);
    rough_products(&of, x, plain);
    for (int v = 0; v < n_vec; v++)
        if (input[v] >= 0) memcpy(y + v * n_y + first, plain + input[v] * of.n_row, (size_t)of.n_row * sizeof *y);
    free(plain);
}

/* The job on the plugin, roughly, and what should have come of it on the definition's side. e [DT_SIDES], NULL: one matrix;
 * begin and place as the devices have them. */
static void follows(const struct dt_job *j, const struct dt_acts *x, int n_vec, const struct mu_device_experts *e,
                    const int32_t *begin, const int32_t *place, const char *what)
{
    int n_row = j->m.of[0].n_row, n_y = j->has_up ? 2 * n_row : n_row, *input = take((size_t)n_vec * sizeof *input);
    int n_matrix = e ? e->n_expert : 1;
    float *y = take((size_t)n_vec * (size_t)n_y * sizeof *y);
    for (int k = 0; k < n_matrix; k++) {
        for (int v = 0; v < n_vec; v++) {
            bool in = !e || (v >= begin[k] && v < begin[k + 1]);
            input[v] = !in ? -1 : !e || e->by_place ? v : place[v] / e->n_used;
        }
        products_place(&j->m, k, &x->of[DT_PLUGIN], input, n_vec, y, n_y, 0);
        if (j->has_up) products_place(&j->up, k, &x->of[DT_PLUGIN], input, n_vec, y, n_y, n_row);
    }
    struct dt_pair columns = dt_from(y, (size_t)n_vec * (size_t)n_y * sizeof *y);
    struct mu_act known = {.n_tok = n_vec, .n_col = n_y, .f32 = columns.at[DT_HOST]};
    size_t bytes;
    struct mu_mat m = fetching(n_matrix, n_row, n_y, 0, &bytes), up = m;
    if (j->has_up) up = fetching(n_matrix, n_row, n_y, n_row, &bytes);
    struct mu_device_job host = dt_job_at(j, DT_HOST), plugin = dt_job_at(j, DT_PLUGIN);
    host.m = &m;
    if (host.up) host.up = &up;
    plugin.rough = true;
    if (e) {
        struct mu_device_experts all = e[DT_HOST];
        all.by_place = true;
        all.m_bytes = all.up_bytes = bytes;
        dt.ops[DT_HOST]->matmul(dt.dev[DT_HOST], &host, 1, &known, &all);
    } else {
        dt.ops[DT_HOST]->matmul(dt.dev[DT_HOST], &host, 1, &known, NULL);
    }
    dt.ops[DT_PLUGIN]->matmul(dt.dev[DT_PLUGIN], &plugin, 1, &x->of[DT_PLUGIN], e ? &e[DT_PLUGIN] : NULL);
    dt_job_same(j, what);
    free(input);
    free(y);
    dt_free_all();
}

static void test_follows(void **state)
{
    static const int rows[] = {32, 64, 96, 100, 160}, tokens[] = {1, 17, 33, 70};
    (void)state;
    for (int trial = 0; trial < 48; trial++) {
        char what[160];
        uint32_t type = types[trial % N_TYPES], up = MU_TYPE_LIMIT;
        enum mu_device_act act = (enum mu_device_act)(trial % 5);
        int n_row = rows[rnd() % 5], n_tok = tokens[rnd() % 4];
        unsigned with = dt_coin() ? rnd() % 32 : dt_coin() ? DT_WITH_FORM : 0;
        if (act == MU_DEVICE_ACT_SILU || act == MU_DEVICE_ACT_SILU_CLAMPED || (act != MU_DEVICE_ACT_NONE && dt_coin()))
            up = trial % 3 == 0 ? types[rnd() % N_TYPES] : type;
        struct dt_acts x = dt_inputs(n_tok, 256, ORDINARY);
        struct dt_job j = dt_job_make(1, type, up, n_row, 256, n_tok, act, with, ORDINARY);
        snprintf(what, sizeof what, "trial %d: %s with %s, %d rows, %d vectors, act %d, with %u", trial,
                 mu_type_info(type)->name, up == MU_TYPE_LIMIT ? "nothing" : mu_type_info(up)->name, n_row, n_tok,
                 (int)act, with);
        follows(&j, &x, n_tok, NULL, NULL, NULL, what);
    }
}

/* Query, key and value matrices: of different types and heights. */
static void test_jobs(void **state)
{
    static const int rows[] = {160, 32, 48, 31};
    (void)state;
    for (int trial = 0; trial < 6; trial++) {
        int n_tok = trial % 2 ? 70 : 5, n_job = 2 + trial % 3;
        struct dt_acts x = dt_inputs(n_tok, 256, ORDINARY);
        struct dt_job j[MU_DEVICE_MAX_JOBS];
        struct mu_device_job job[MU_DEVICE_MAX_JOBS];
        for (int k = 0; k < n_job; k++) {
            uint32_t type = types[k == 2 ? 9 : 3 * trial % N_TYPES];
            j[k] = dt_job_make(1, type, MU_TYPE_LIMIT, rows[k], 256, n_tok, MU_DEVICE_ACT_NONE, 0, ORDINARY);
            j[k].stride = (size_t)rows[k];
            job[k] = dt_job_at(&j[k], DT_PLUGIN);
            job[k].rough = true;
        }
        dt.ops[DT_PLUGIN]->matmul(dt.dev[DT_PLUGIN], job, n_job, &x.of[DT_PLUGIN], NULL);
        for (int k = 0; k < n_job; k++) {
            size_t bytes = (size_t)(n_tok * rows[k]) * sizeof(float);
            float *plain = take(bytes), *all = take(j[k].out.bytes);
            rough_products(&j[k].m.of[DT_PLUGIN], &x.of[DT_PLUGIN], plain);
            dt_read(j[k].out, DT_PLUGIN, all);
            if (memcmp(plain, all, bytes) != 0) fail_msg("trial %d, job %d of %d", trial, k, n_job);
            free(plain);
            free(all);
        }
        dt_free_all();
    }
}

/* ---- experts ---- */

static void test_experts(void **state)
{
    static const int counts[] = {4, 9, 3};
    (void)state;
    for (int trial = 0; trial < 18; trial++) {
        char what[160];
        bool by_place = trial % 2;
        int n_expert = counts[trial % 3], n_used = n_expert == 4 ? 1 : 2, n_row = trial % 4 < 2 ? 32 : 96;
        int n_tok = trial < 16 ? 9 + (int)(rnd() % 30) : 130, n_vec = n_tok * n_used;
        uint32_t type = types[trial % N_TYPES], up = by_place ? MU_TYPE_LIMIT : trial % 8 == 0 ? MU_Q8_0 : type;
        int32_t *begin = take(((size_t)n_expert + 1) * 4), *place = take((size_t)n_vec * 4);
        dt_groups_fill(n_tok, n_expert, n_used, begin, place);
        struct dt_pair begins = dt_from(begin, (size_t)(n_expert + 1) * 4), places = dt_from(place, (size_t)n_vec * 4);
        struct dt_acts x = dt_inputs(by_place ? n_vec : n_tok, 256, ORDINARY);
        unsigned with = (rnd() % 2 ? DT_WITH_BIAS : 0) | (rnd() % 2 ? DT_WITH_FORM : 0);
        struct dt_job j = dt_job_make(n_expert, type, up, n_row, 256, n_vec,
                                      up == MU_TYPE_LIMIT ? MU_DEVICE_ACT_NONE : MU_DEVICE_ACT_SILU, with, ORDINARY);
        struct mu_device_experts e[DT_SIDES];
        for (int i = 0; i < DT_SIDES; i++)
            e[i] = (struct mu_device_experts){.n_expert = n_expert,
                                              .n_used = n_used,
                                              .m_bytes = j.m.bytes[i],
                                              .up_bytes = j.up.bytes[i],
                                              .begin = begins.at[i],
                                              .place = places.at[i],
                                              .by_place = by_place};
        snprintf(what, sizeof what, "trial %d: %d of %d experts, %s, %d rows, %d tokens, %s", trial, n_used, n_expert,
                 mu_type_info(type)->name, n_row, n_tok, by_place ? "by place" : "by token");
        follows(&j, &x, n_vec, e, begin, place, what);
        free(begin);
        free(place);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_types),   cmocka_unit_test(test_large),
                                       cmocka_unit_test(test_aligned), cmocka_unit_test(test_own),
                                       cmocka_unit_test(test_follows), cmocka_unit_test(test_jobs),
                                       cmocka_unit_test(test_experts)};
    return cmocka_run_group_tests(tests, dt_open, dt_close);
}
