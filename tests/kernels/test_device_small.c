/* A device's small operations against their definition: norms, forms, moves, the bookkeeping of experts, the next id. */
#include "tests/kernels/device_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"

enum { SIZES = 9, WITH_F32 = 1, WITH_BF16 = 2, WITH_Q = 4, WITH_SUM = 8, FORMS = 16 };
static const int sizes[SIZES] = {1, 7, 16, 32, 48, 96, 1000, 4096, 5120 + 32};

static int one_of(const int *list, int n)
{
    return list[rnd() % (unsigned)n];
}

static bool coin(void)
{
    return rnd() & 1;
}

/* Values of which some may be infinite or NaN, `shift` values from where memory is aligned. */
static struct dt_pair values(size_t n, int shift, int broken)
{
    float *x = malloc((n + (size_t)shift) * sizeof *x);
    assert_non_null(x);
    dt_fill(x, n + (size_t)shift, (enum values)(rnd() % N_VALUES));
    dt_break(x + shift, n, broken);
    struct dt_pair p = dt_from(x, (n + (size_t)shift) * sizeof *x);
    free(x);
    for (int i = 0; i < DT_SIDES; i++) p.at[i] = (float *)p.at[i] + shift;
    p.bytes -= (size_t)shift * sizeof *x;
    return p;
}

/* ---- forms ---- */

struct forms {
    struct dt_pair f32, bf16, q, s, sum;
};

/* Room for the forms in `wanted`; a quantised one where n is a multiple of 32. */
static struct forms forms_blank(size_t n_tok, int n, unsigned wanted)
{
    struct forms f = {0};
    size_t all = n_tok * (size_t)n;
    if (wanted & WITH_F32) f.f32 = dt_blank(all * 4);
    if (wanted & WITH_BF16) f.bf16 = dt_blank(all * 2);
    if (n % 32 != 0 || !(wanted & WITH_Q)) return f;
    f.q = dt_blank(all);
    f.s = dt_blank(all / 32 * 4);
    if (wanted & WITH_SUM) f.sum = dt_blank(all / 16 * 2);
    return f;
}

static struct mu_act_to forms_at(const struct forms *f, int side)
{
    return (struct mu_act_to){f->f32.at[side], f->bf16.at[side], f->q.at[side], f->s.at[side], f->sum.at[side]};
}

static void forms_same(const struct forms *f, const char *what)
{
    if (f->f32.bytes) dt_same(f->f32, DT_F32, "%s, f32", what);
    if (f->bf16.bytes) dt_same(f->bf16, DT_BF16, "%s, bf16", what);
    if (f->q.bytes) dt_same(f->q, DT_BYTES, "%s, codes", what);
    if (f->s.bytes) dt_same(f->s, DT_F32, "%s, scales", what);
    if (f->sum.bytes) dt_same(f->sum, DT_I16, "%s, sums", what);
}

static void test_form(void **state)
{
    static const int tokens[] = {0, 1, 2, 5};
    (void)state;
    for (int trial = 0; trial < 8 * SIZES * FORMS; trial++) {
        char what[160];
        int n = sizes[trial % SIZES], n_tok = one_of(tokens, 4), shift = (int)(rnd() % 2), broken = (int)(rnd() % 3);
        size_t stride = (size_t)n + (coin() ? 0 : rnd() % 2 ? 4 : 3);
        unsigned wanted = (unsigned)trial / SIZES % FORMS;
        struct dt_pair src = values((size_t)n_tok * stride + 1, shift, broken);
        struct forms out = forms_blank((size_t)n_tok, n, wanted);
        for (int i = 0; i < DT_SIDES; i++) {
            struct mu_act_to to = forms_at(&out, i);
            dt.ops[i]->form(dt.dev[i], src.at[i], stride, n_tok, n, &to);
        }
        snprintf(what, sizeof what, "trial %d: form %u of %d vectors of %d, stride %zu, shift %d, %d not finite", trial,
                 wanted, n_tok, n, stride, shift, broken);
        forms_same(&out, what);
        dt_free_all();
    }
}

/* Each block of the hard ones: scales around 2^-100, codes that fall between two, the largest values. */
static void test_hard_blocks(void **state)
{
    enum { N = 4096 };
    static float x[N];
    (void)state;
    for (int b = 0; b < N / 32; b++)
        for (int i = 0; i < 32; i++) {
            float f = uniform(-1, 1);
            switch (b % 6) {
            case 0: f *= 0x1p-100f; break;
            case 1: f = i == 7 ? 127.0f : (float)(int)(rnd() % 255) - 127.5f; break;
            case 2: f *= 0x1.fffffep127f; break;
            case 3: f = i == 3 ? 0x1p-100f : f * 0x1p-140f; break;
            case 4: f = coin() ? 0.0f : -0.0f; break;
            default: f = i == b % 32 ? 1e30f : f;
            }
            x[32 * b + i] = f;
        }
    struct dt_pair src = dt_from(x, sizeof x);
    struct forms out = forms_blank(1, N, FORMS - 1);
    for (int i = 0; i < DT_SIDES; i++) {
        struct mu_act_to to = forms_at(&out, i);
        dt.ops[i]->form(dt.dev[i], src.at[i], N, 1, N, &to);
    }
    forms_same(&out, "hard blocks");
    dt_free_all();
}

static void test_widen_and_sums(void **state)
{
    (void)state;
    for (int trial = 0; trial < 4 * SIZES; trial++) {
        int n = sizes[trial % SIZES], n_tok = trial % 3, kind = trial / SIZES % 3;
        struct dt_acts x = dt_inputs(n_tok, n, (enum values)(rnd() % N_VALUES));
        struct dt_pair out = dt_blank((size_t)n_tok * (size_t)n * 4);
        for (int i = 0; i < DT_SIDES; i++) {
            struct mu_act *a = &x.of[i];
            if (kind > 0) a->q = NULL;
            if (kind > 1) a->bf16 = NULL;
            dt.ops[i]->widen(dt.dev[i], a, out.at[i]);
        }
        dt_same(out, DT_F32, "trial %d: %d × %d widened", trial, n_tok, n);
        dt_free_all();
    }
    for (int blocks = 0; blocks < 400; blocks += blocks < 4 ? 1 : 99) {
        int8_t q[400 * 32];
        size_t n = (size_t)blocks * 32;
        for (size_t i = 0; i < n; i++) q[i] = (int8_t)((int)(rnd() % 255) - 127);
        struct dt_pair codes = dt_from(q, n), sum = dt_blank(n / 16 * 2);
        for (int i = 0; i < DT_SIDES; i++) dt.ops[i]->block_sums(dt.dev[i], codes.at[i], n, sum.at[i]);
        dt_same(sum, DT_I16, "sums of %d blocks", blocks);
        dt_free_all();
    }
}

/* ---- norms ---- */

/* n_tok vectors out of twice as many, or all in their order. */
static struct dt_pair some_rows(int n_tok, bool *list_out)
{
    int32_t rows[1024];
    *list_out = coin();
    for (int t = 0; t < n_tok; t++) rows[t] = 2 * (n_tok - 1 - t) + (int32_t)(rnd() % 2);
    return dt_from(rows, (size_t)n_tok * sizeof *rows);
}

static void norm_once(int trial, int n, int n_tok, unsigned wanted)
{
    char what[240];
    bool list, has_y = rnd() % 4 != 0, post = has_y && rnd() % 3 == 0, round = coin(), keep = coin();
    int shift = rnd() % 4 == 0, broken = rnd() % 3 == 0 ? (int)(rnd() % 4) : 0;
    enum mu_device_norm_kind kind = (enum mu_device_norm_kind)(rnd() % 3);
    float eps = coin() ? 1e-5f : 1e-6f;
    size_t all = 2 * (size_t)n_tok * (size_t)n;
    struct dt_pair rows = some_rows(n_tok, &list), x = values(all, shift, broken), y = values(all, 0, broken);
    struct dt_pair w = values((size_t)n, 0, 0), b = values((size_t)n, 0, 0), p = values((size_t)n, 0, 0);
    struct forms out = forms_blank((size_t)n_tok, n, wanted);
    for (int i = 0; i < DT_SIDES; i++) {
        struct mu_device_norm a = {.n_tok = n_tok,
                                   .n = n,
                                   .x = x.at[i],
                                   .row = list ? rows.at[i] : NULL,
                                   .keep = keep,
                                   .y = has_y ? y.at[i] : NULL,
                                   .post = post ? p.at[i] : NULL,
                                   .y_round = round,
                                   .kind = kind,
                                   .eps = eps,
                                   .w = kind != MU_DEVICE_NORM_NONE ? w.at[i] : NULL,
                                   .b = kind == MU_DEVICE_NORM_LAYER ? b.at[i] : NULL,
                                   .form = forms_at(&out, i)};
        dt.ops[i]->norm(dt.dev[i], &a);
    }
    snprintf(what, sizeof what, "trial %d: norm %d of %d × %d%s%s%s%s%s, forms %u, %d not finite", trial, (int)kind,
             n_tok, n, list ? ", listed" : "", has_y ? ", y" : "", round ? ", rounded" : "", post ? ", post" : "",
             keep ? ", kept" : "", wanted, broken);
    dt_same(x, DT_F32, "%s: residual", what);
    forms_same(&out, what);
    dt_free_all();
}

static void test_norm(void **state)
{
    static const int tokens[] = {0, 1, 1, 2, 3};
    (void)state;
    for (int trial = 0; trial < 12 * SIZES * FORMS; trial++)
        norm_once(trial, sizes[trial % SIZES], one_of(tokens, 5), (unsigned)trial / SIZES % FORMS);
}

/* More vectors than processors, which a plugin may do otherwise; long ones. */
static void test_norm_sizes(void **state)
{
    (void)state;
    for (int trial = 0; trial < 24; trial++) norm_once(trial, trial % 2 ? 32 : 160, 3 + trial, FORMS - 1);
    for (int trial = 0; trial < 6; trial++) norm_once(trial, 16384, 1, FORMS - 1);
}

/* ---- moves ---- */

/* Several parts of several kinds, each to its columns of a whole that has gaps. */
static void spread_once(int trial, int n_part, int n_tok)
{
    static const size_t from_size[] = {4, 2, 1, 2}, to_size[] = {4, 2, 1, 4};
    static struct mu_device_part part[DT_SIDES][40];
    struct dt_pair to[40];
    for (int k = 0; k < n_part; k++) {
        enum mu_device_spread kind = (enum mu_device_spread)(rnd() % 4);
        int n = n_part > 8 ? (int)(rnd() % 40) : sizes[rnd() % SIZES];
        size_t stride = (size_t)n + (coin() ? 0 : rnd() % 2 ? 16 : rnd() % 5), all = (size_t)n_tok * (size_t)n;
        struct dt_pair from = values(all + 4, 0, 1);
        size_t shift = coin() ? 0 : rnd() % 2 * 4 / from_size[kind] + rnd() % 2;
        to[k] = dt_blank(((size_t)n_tok * stride + 1) * to_size[kind]);
        for (int i = 0; i < DT_SIDES; i++)
            part[i][k] = (struct mu_device_part){kind, (char *)to[k].at[i] + (trial % 3 == 0) * to_size[kind], stride,
                                                 (char *)from.at[i] + shift * from_size[kind], n};
    }
    for (int i = 0; i < DT_SIDES; i++) dt.ops[i]->spread(dt.dev[i], part[i], n_part, n_tok);
    for (int k = 0; k < n_part; k++)
        dt_same(to[k], DT_BYTES, "trial %d: part %d of %d, kind %d, %d × %d to %zu", trial, k, n_part,
                (int)part[0][k].kind, n_tok, part[0][k].n, part[0][k].to_stride);
    dt_free_all();
}

static void test_spread(void **state)
{
    (void)state;
    for (int trial = 0; trial < 60; trial++) spread_once(trial, (int)(rnd() % 6), (int)(rnd() % 4));
    spread_once(0, 40, 3);
}

static void test_set(void **state)
{
    enum { N = 1000 };
    static struct mu_device_set set[N];
    (void)state;
    for (uint32_t i = 0; i < N; i++) set[i] = (struct mu_device_set){i * 7 % N, rnd()};
    for (int n = 0; n <= N; n += n < 2 ? 1 : 499) {
        struct dt_pair table = dt_blank(N * 4), what = dt_from(set, sizeof set);
        for (int i = 0; i < DT_SIDES; i++) dt.ops[i]->set(dt.dev[i], table.at[i], what.at[i], n);
        dt_same(table, DT_I32, "%d entries set", n);
        dt_free_all();
    }
}

/* ---- experts ---- */

/* Scores with many ties; some infinite, some NaN. */
static struct dt_pair scores(size_t n, int kind, int broken)
{
    float *x = malloc((n + 1) * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++) {
        x[i] = kind == 0 ? uniform(-4, 4) : (float)(int)(rnd() % 5) - 2.0f;
        if (kind == 2 && coin()) x[i] = -0.0f;
    }
    dt_break(x, n, broken);
    struct dt_pair p = dt_from(x, n * sizeof *x);
    free(x);
    return p;
}

static void route_once(int trial, int n_tok, int n_expert, int n_used, int broken)
{
    char what[160];
    size_t n = (size_t)n_tok * (size_t)n_used;
    struct dt_pair score = scores((size_t)n_tok * (size_t)n_expert, trial % 3, broken);
    struct dt_pair chosen = dt_blank(n * 4), place = dt_blank(n * 4), at = dt_blank(n * 4), weight = dt_blank(n * 4);
    struct dt_pair begin = dt_blank(((size_t)n_expert + 1) * 4);
    for (int i = 0; i < DT_SIDES; i++) {
        struct mu_device_route a = {n_tok,       n_expert, n_used,      score.at[i], chosen.at[i],
                                    place.at[i], at.at[i], begin.at[i], weight.at[i]};
        dt.ops[i]->route(dt.dev[i], &a);
    }
    snprintf(what, sizeof what, "trial %d: %d tokens choose %d of %d experts, %d scores not finite", trial, n_tok,
             n_used, n_expert, broken);
    dt_same(chosen, DT_I32, "%s: chosen", what);
    dt_same(weight, DT_F32, "%s: weights", what);
    dt_same(begin, DT_I32, "%s: begin", what);
    dt_same(place, DT_I32, "%s: places", what);
    dt_same(at, DT_I32, "%s: at", what);
    dt_free_all();
}

static void test_route(void **state)
{
    static const int experts[] = {1, 2, 8, 31, 60, 64, 128, 129, 160, 512}, tokens[] = {0, 1, 2, 7, 32, 33, 90};
    (void)state;
    for (int trial = 0; trial < 300; trial++) {
        int n_expert = experts[trial % 10], most = n_expert < 8 ? n_expert : 8, n_tok = one_of(tokens, 7);
        int n_used = trial % 7 == 0 && n_tok < 4 ? n_expert : 1 + (int)(rnd() % (unsigned)most);
        route_once(trial, n_tok, n_expert, n_used, trial % 4 == 3 ? 1 + (int)(rnd() % 8) : 0);
    }
    route_once(0, 700, 64, 8, 0);
}

static void test_combine(void **state)
{
    (void)state;
    for (int trial = 0; trial < 12 * SIZES; trial++) {
        enum { EXPERTS = 12 };
        int n = sizes[trial % SIZES], n_tok = (int)(rnd() % 4), n_used = 1 + (int)(rnd() % 8);
        int32_t chosen[32], at[32], n_place = n_tok * n_used;
        for (int i = 0; i < n_place; i++) {
            chosen[i] = i % n_used + (int32_t)(rnd() % (EXPERTS - 8));
            at[i] = n_place - 1 - i;
        }
        bool bias = coin();
        float scale = coin() ? 0.0f : 0.22f;
        struct dt_pair part = values((size_t)(n_place * n), trial % 5 == 0, trial % 3), w = dt_floats(32, ORDINARY);
        struct dt_pair b = values((size_t)(EXPERTS * n), 0, 0), c = dt_from(chosen, sizeof chosen);
        struct dt_pair places = dt_from(at, sizeof at), out = dt_blank((size_t)(n_tok * n) * 4);
        for (int i = 0; i < DT_SIDES; i++) {
            struct mu_device_combine a = {.n_tok = n_tok,
                                          .n_used = n_used,
                                          .n = n,
                                          .part = part.at[i],
                                          .weight = w.at[i],
                                          .bias = bias ? b.at[i] : NULL,
                                          .chosen = c.at[i],
                                          .at = places.at[i],
                                          .scale = scale,
                                          .out = out.at[i]};
            dt.ops[i]->combine(dt.dev[i], &a);
        }
        dt_same(out, DT_F32, "trial %d: %d × %d of %d experts", trial, n_tok, n, n_used);
        dt_free_all();
    }
}

/* ---- the next id ---- */

/* Logits: ordinary; with ties; all equal but for the sign of zero; so large that a temperature makes them infinite. */
static void logits_fill(float *x, size_t n, int kind)
{
    for (size_t i = 0; i < n; i++) switch (kind) {
        case 0: x[i] = uniform(-20, 20); break;
        case 1: x[i] = (float)(int)(rnd() % 4) - 3.0f; break;
        case 2: x[i] = coin() ? 0.0f : -0.0f; break;
        default: x[i] = uniform(-3e38f, 3e38f);
        }
}

static void pick_once(int trial, int n_row, int n, int kind, int broken)
{
    static const float temperatures[] = {0.0f, 1.0f, 0.7f, 1e-3f, 50.0f, 1e-30f};
    struct mu_device_draw draws[64];
    size_t stride = (size_t)n + rnd() % 3, all = (size_t)n_row * stride + 1;
    int first_id = coin() ? 0 : 1 << 17;
    float *x = malloc(all * sizeof *x);
    assert_non_null(x);
    logits_fill(x, all, kind);
    dt_break(x, all, broken);
    for (int i = 0; i < n_row; i++)
        draws[i] = (struct mu_device_draw){temperatures[rnd() % 6], (uint64_t)rnd() << 33 | rnd(), rnd()};
    struct dt_pair logits = dt_from(x, all * sizeof *x), draw = dt_from(draws, (size_t)n_row * sizeof *draws);
    struct dt_pair out = dt_blank((size_t)n_row * sizeof(struct mu_device_pick));
    free(x);
    for (int i = 0; i < DT_SIDES; i++)
        dt.ops[i]->pick(dt.dev[i], logits.at[i], stride, n_row, n, first_id, draw.at[i], out.at[i]);
    /* as integers: an id may look like a NaN */
    dt_same(out, DT_I32, "trial %d: %d rows of %d logits of kind %d from id %d, %d not finite", trial, n_row, n, kind,
            first_id, broken);
    dt_free_all();
}

static void test_pick(void **state)
{
    static const int lengths[] = {1, 2, 31, 255, 256, 257, 1024, 2049, 5000}, rows[] = {0, 1, 1, 3, 17, 64};
    (void)state;
    for (int trial = 0; trial < 240; trial++)
        pick_once(trial, one_of(rows, 6), lengths[trial % 9], trial / 9 % 4, trial % 5 == 4 ? 1 + (int)(rnd() % 3) : 0);
    pick_once(0, 3, 0, 0, 0);
    pick_once(0, 1, 128256, 0, 0);
    pick_once(1, 2, 151936, 1, 0);
    pick_once(2, 1, 32000, 0, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_form), cmocka_unit_test(test_hard_blocks), cmocka_unit_test(test_widen_and_sums),
        cmocka_unit_test(test_norm), cmocka_unit_test(test_norm_sizes),  cmocka_unit_test(test_spread),
        cmocka_unit_test(test_set),  cmocka_unit_test(test_route),       cmocka_unit_test(test_combine),
        cmocka_unit_test(test_pick),
    };
    return cmocka_run_group_tests(tests, dt_open, dt_close);
}
