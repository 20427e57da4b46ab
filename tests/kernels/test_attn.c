/* Attention (C5) over both formats of the cache: ref against softmax in double; every table against ref, bit for bit, at awkward shapes; prompts at
 * once, in chunks and one token at a time, with the same bits. Cache that no query may see holds 0xff (NaN) or has no
 * page at all.
 *
 * MUSTER_TEST_REDUCED: fewer shapes, each in fewer ways (for emulated processors). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"

enum { MAX_PAGES = 64, GUARD = 64 };

struct shape {
    int d_head, n_rep, n_tok, pos0, page_tokens, window;
    float softcap;
    const float *sink;
    enum mu_kv_type kv; /* check() does all */
};

struct attn_case {
    struct shape s;
    struct mu_attn a;
    void *k_page[MAX_PAGES], *v_page[MAX_PAGES];
    float *q;
    size_t n_out;
};

static const struct mu_kernels *ref;
static bool reduced;
static uint64_t rng = 7;
static float uniform(float lo, float hi)
{
    rng = rng * 6364136223846793005ull + 1442695040888963407ull;
    return lo + (hi - lo) * (float)(rng >> 40) * 0x1p-24f;
}

/* Writes the keys and values that position pos0 + n_tok - 1 and its elders may see; pages that are wholly out of every
 * window are absent. */
static void case_open(struct attn_case *c, struct shape s)
{
    *c = (struct attn_case){.s = s};
    int end = s.pos0 + s.n_tok, first = s.window && s.pos0 >= s.window ? s.pos0 - s.window + 1 : 0;
    size_t page_bytes = mu_kv_bytes(s.kv, s.d_head, s.page_tokens);
    float *k = test_malloc((size_t)s.d_head * 4), *v = test_malloc((size_t)s.d_head * 4);
    for (int p = first / s.page_tokens; p * s.page_tokens < end; p++) {
        assert_true(p < MAX_PAGES);
        c->k_page[p] = test_malloc(page_bytes);
        c->v_page[p] = test_malloc(page_bytes);
        memset(c->k_page[p], 0xff, page_bytes);
        memset(c->v_page[p], 0xff, page_bytes);
    }
    for (int pos = first; pos < end; pos++) {
        for (int d = 0; d < s.d_head; d++) {
            k[d] = uniform(-2.0f, 2.0f);
            v[d] = uniform(-1.0f, 1.0f);
        }
        ref->kv_store(s.kv, k, v, s.d_head, pos % s.page_tokens, c->k_page[pos / s.page_tokens],
                      c->v_page[pos / s.page_tokens]);
    }
    test_free(k);
    test_free(v);
    size_t row = (size_t)s.n_rep * (size_t)s.d_head + 3; /* a stride of its own */
    c->n_out = row * (size_t)s.n_tok;
    c->q = test_malloc(c->n_out * 4);
    for (size_t i = 0; i < c->n_out; i++) c->q[i] = uniform(-2.0f, 2.0f);
    c->a = (struct mu_attn){.kv = s.kv,
                            .n_tok = s.n_tok,
                            .n_rep = s.n_rep,
                            .d_head = s.d_head,
                            .pos0 = s.pos0,
                            .page_tokens = s.page_tokens,
                            .window = s.window,
                            .scale = 1.0f / sqrtf((float)s.d_head),
                            .softcap = s.softcap,
                            .sink = s.sink,
                            .q = c->q,
                            .q_stride = row,
                            .out_stride = row,
                            .k_page = (const void *const *)c->k_page,
                            .v_page = (const void *const *)c->v_page};
}

static void case_close(struct attn_case *c)
{
    for (int p = 0; p < MAX_PAGES; p++)
        if (c->k_page[p]) {
            test_free(c->k_page[p]);
            test_free(c->v_page[p]);
        }
    test_free(c->q);
}

/* Runs it in pieces of `chunk` tokens. Everything that is no result stays as it was. */
static float *attn_run(const struct mu_kernels *k, const struct attn_case *c, int chunk)
{
    float *whole = test_malloc((c->n_out + 2 * GUARD) * 4), *out = whole + GUARD;
    memset(whole, 0xa5, (c->n_out + 2 * GUARD) * 4);
    struct mu_attn a = c->a;
    for (int t = 0; t < c->s.n_tok; t += chunk) {
        a.n_tok = c->s.n_tok - t < chunk ? c->s.n_tok - t : chunk;
        a.pos0 = c->s.pos0 + t;
        a.q = c->q + (size_t)t * a.q_stride;
        a.out = out + (size_t)t * a.out_stride;
        k->attn(&a);
    }
    const unsigned char *b = (const unsigned char *)whole;
    for (size_t i = 0; i < (c->n_out + 2 * GUARD) * 4; i++) {
        size_t at = i / 4 - GUARD;
        bool inside = i / 4 >= GUARD && at < c->n_out && at % a.out_stride < a.out_stride - 3;
        if (!inside && b[i] != 0xa5) fail_msg("%s wrote outside its result, at float %td", k->name, (ptrdiff_t)at);
    }
    return whole;
}

/* The key (or value) that was kept, read by the layouts of kernels.h. */
static double kept(const struct attn_case *c, bool is_key, int pos, int d)
{
    const struct shape *s = &c->s;
    const unsigned char *group = is_key ? c->k_page[pos / s->page_tokens] : c->v_page[pos / s->page_tokens];
    int row = pos % 16, blocks = (s->d_head + 31) / 32;
    group += (size_t)(pos % s->page_tokens / 16) * mu_kv_bytes(s->kv, s->d_head, 16);
    if (s->kv == MU_KV_F16) {
        uint16_t h;
        memcpy(&h, group + 2 * (size_t)(is_key ? d * 16 + row : row * s->d_head + d), 2);
        return mu_f16_to_f32(h);
    }
    float scale;
    size_t at = is_key ? (size_t)(d / 32) * 16 * 36 : 16 * (size_t)s->d_head;
    memcpy(&scale, group + at + 4 * (size_t)(is_key ? row : row * blocks + d / 32), 4);
    return (double)(int8_t)group[is_key ? at + 64 + (size_t)(d % 32 * 16 + row) : (size_t)(row * s->d_head + d)] *
           scale;
}

static double exact_one(const struct attn_case *c, int t, int r, int d)
{
    const struct shape *s = &c->s;
    int pos = s->pos0 + t, lo = s->window && pos >= s->window ? pos - s->window + 1 : 0;
    const float *q = c->q + (size_t)t * c->a.q_stride + (size_t)r * (size_t)s->d_head;
    double sum = s->sink ? exp((double)s->sink[r]) : 0, weighted = 0;
    for (int j = lo; j <= pos; j++) {
        double score = 0;
        for (int i = 0; i < s->d_head; i++) score += (double)(q[i] * c->a.scale) * kept(c, true, j, i);
        if (s->softcap != 0) score = s->softcap * tanh(score / s->softcap);
        sum += exp(score);
        weighted += exp(score) * kept(c, false, j, d);
    }
    return weighted / sum;
}

/* The same by segments, computed apart and from the last one on, then merged. */
static float *attn_in_parts(const struct mu_kernels *k, const struct attn_case *c)
{
    int segments = (c->s.pos0 + c->s.n_tok + 255) / 256, rows = c->s.n_tok * c->s.n_rep;
    size_t n_part = (size_t)segments * (size_t)rows * (size_t)(c->s.d_head + 2);
    float *whole = test_malloc((c->n_out + 2 * GUARD) * 4), *part = test_malloc(n_part * 4);
    memset(whole, 0xa5, (c->n_out + 2 * GUARD) * 4);
    memset(part, 0xff, n_part * 4);
    struct mu_attn a = c->a;
    a.q = c->q;
    a.out = whole + GUARD;
    a.part = part;
    for (int end = segments; end > 0; end -= 2) {
        a.seg_begin = end > 2 ? end - 2 : 0;
        a.seg_end = end;
        k->attn(&a);
    }
    k->attn_merge(&a);
    test_free(part);
    return whole;
}

static void check_kv(struct shape s)
{
    if (reduced && s.n_tok * s.n_rep * s.d_head > (s.kv == MU_KV_F16 ? 2000 : 300)) return;
    struct attn_case c;
    case_open(&c, s);
    float *want = attn_run(ref, &c, s.n_tok);
    for (const struct mu_kernels *const *k = mu_kernels_available(); *k; k++) {
        const int chunks[] = {s.n_tok, 1, 5};
        if (*k == ref && reduced) continue;
        for (int i = *k == ref ? 1 : 0; i < (reduced ? 2 : 3); i++) {
            if (*k == ref && s.n_tok * s.n_rep > 100) break;
            float *got = attn_run(*k, &c, chunks[i]);
            if (memcmp(want, got, (c.n_out + 2 * GUARD) * 4) != 0)
                fail_msg("%s, %s, chunks of %d: d_head %d n_rep %d n_tok %d pos0 %d page %d window %d softcap %g",
                         (*k)->name, mu_kv_type_name(s.kv), chunks[i], s.d_head, s.n_rep, s.n_tok, s.pos0,
                         s.page_tokens, s.window, (double)s.softcap);
            test_free(got);
        }
        if (*k == ref && s.n_tok * s.n_rep > 100) continue;
        float *got = attn_in_parts(*k, &c);
        if (memcmp(want, got, (c.n_out + 2 * GUARD) * 4) != 0)
            fail_msg("%s, %s, segments apart: d_head %d n_rep %d n_tok %d pos0 %d window %d softcap %g", (*k)->name,
                     mu_kv_type_name(s.kv), s.d_head, s.n_rep, s.n_tok, s.pos0, s.window, (double)s.softcap);
        test_free(got);
    }
    for (int i = 0; i < 3; i++) {
        int t = i == 0 ? 0 : s.n_tok - 1, r = i == 1 ? 0 : s.n_rep - 1, d = i == 2 ? s.d_head - 1 : s.d_head / 2;
        float got = want[GUARD + (size_t)t * c.a.out_stride + (size_t)(r * s.d_head + d)];
        if (!(fabs(got - exact_one(&c, t, r, d)) <= 3e-6))
            fail_msg("ref is off in %s d_head %d pos0 %d", mu_kv_type_name(s.kv), s.d_head, s.pos0);
    }
    test_free(want);
    case_close(&c);
}

static void check(struct shape s)
{
    for (int kv = 0; kv < MU_KV_TYPE_COUNT; kv++) {
        s.kv = (enum mu_kv_type)kv;
        check_kv(s);
    }
}

static void head_sizes(void **state)
{
    (void)state;
    static const int d_heads[] = {1, 7, 8, 16, 31, 33, 48, 64, 80, 96, 100, 128, 256, 512};
    for (size_t i = 0; i < sizeof d_heads / sizeof *d_heads; i++) {
        check((struct shape){.d_head = d_heads[i], .n_rep = 3, .n_tok = 7, .pos0 = 251, .page_tokens = 64});
        check((struct shape){.d_head = d_heads[i], .n_rep = 1, .n_tok = 1, .pos0 = 300, .page_tokens = 256});
    }
}

static void repeats(void **state)
{
    (void)state;
    for (int n_rep = 1; n_rep <= 13; n_rep++) {
        check((struct shape){.d_head = 64, .n_rep = n_rep, .n_tok = 1, .pos0 = 511, .page_tokens = 32});
        check((struct shape){.d_head = 48, .n_rep = n_rep, .n_tok = 9, .pos0 = 250, .page_tokens = 16});
    }
}

static void segment_edges(void **state)
{
    (void)state;
    static const int ends[] = {0, 1, 14, 15, 16, 17, 31, 63, 64, 65, 254, 255, 256, 257, 511, 512, 513};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        for (int n_tok = 1; n_tok <= 3; n_tok++) {
            if (ends[i] + 1 < n_tok) continue;
            check((struct shape){
                .d_head = 16, .n_rep = 4, .n_tok = n_tok, .pos0 = ends[i] + 1 - n_tok, .page_tokens = 64});
        }
}

static void windows(void **state)
{
    (void)state;
    static const int sizes[] = {1, 2, 16, 32, 255, 256, 257, 300};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        check((struct shape){.d_head = 24, .n_rep = 2, .n_tok = 40, .pos0 = 0, .page_tokens = 32, .window = sizes[i]});
        check(
            (struct shape){.d_head = 24, .n_rep = 1, .n_tok = 21, .pos0 = 535, .page_tokens = 32, .window = sizes[i]});
        check((struct shape){
            .d_head = 8, .n_rep = 2, .n_tok = 3, .pos0 = 766, .page_tokens = 16, .window = sizes[i], .softcap = 30});
    }
}

static void soft_caps(void **state)
{
    (void)state;
    check((struct shape){.d_head = 64, .n_rep = 2, .n_tok = 20, .pos0 = 245, .page_tokens = 64, .softcap = 50.0f});
    check((struct shape){.d_head = 64, .n_rep = 8, .n_tok = 2, .pos0 = 700, .page_tokens = 256, .softcap = 0.5f});
}

/* Far below and far above every score, and among them; over the edges of segments and under windows. */
static void sinks(void **state)
{
    (void)state;
    static const float sink[] = {0.5f, -60.0f, 8.0f, 3.0f, 40.0f, -0.0f, 1.25f, -2.0f};
    for (int n_rep = 1; n_rep <= 8; n_rep++) {
        check((struct shape){
            .d_head = 64, .n_rep = n_rep, .n_tok = 1, .pos0 = 300, .page_tokens = 32, .window = 128, .sink = sink});
        check((struct shape){
            .d_head = 20, .n_rep = n_rep, .n_tok = 30, .pos0 = 0, .page_tokens = 32, .softcap = 20, .sink = sink});
    }
    check((struct shape){.d_head = 64, .n_rep = 8, .n_tok = 40, .pos0 = 490, .page_tokens = 32, .sink = sink});
}

static void prompt(void **state)
{
    (void)state;
    check((struct shape){.d_head = 32, .n_rep = 4, .n_tok = 300, .pos0 = 0, .page_tokens = 64});
}

/* A value that overflowed to infinity poisons the queries that see it, and no others in the same call. */
static void infinity_stays_where_it_is_seen(void **state)
{
    (void)state;
    struct attn_case c;
    case_open(&c, (struct shape){.d_head = 40, .n_rep = 2, .n_tok = 11, .pos0 = 250, .page_tokens = 16});
    float *clean = attn_run(ref, &c, 1);
    int bad = 256; /* seen by tokens 6 … 10 */
    for (int d = 0; d < 40; d++) ((uint16_t *)c.v_page[bad / 16])[bad % 16 * 40 + d] = 0x7c00;
    for (const struct mu_kernels *const *k = mu_kernels_available(); *k; k++) {
        float *got = attn_run(*k, &c, 11);
        for (size_t t = 0; t < 11; t++)
            for (size_t i = 0; i < 80; i++) {
                size_t at = GUARD + t * c.a.out_stride + i;
                bool same = memcmp(&got[at], &clean[at], 4) == 0;
                if (t < 6 ? !same : isfinite(got[at])) fail_msg("%s: token %zu, value %zu", (*k)->name, t, i);
            }
        test_free(got);
    }
    test_free(clean);
    case_close(&c);
}

/* So does a value that C1 cannot quantise: in its block of dimensions. */
static void nan_scale_stays_where_it_is_seen(void **state)
{
    (void)state;
    struct attn_case c;
    case_open(&c,
              (struct shape){.d_head = 40, .n_rep = 2, .n_tok = 11, .pos0 = 250, .page_tokens = 16, .kv = MU_KV_Q8_0});
    float *clean = attn_run(ref, &c, 1), k[40] = {0}, v[40] = {0};
    v[35] = INFINITY; /* the second block: dimensions 32 to 39 */
    int bad = 256;    /* seen by tokens 6 … 10 */
    for (const struct mu_kernels *const *t = mu_kernels_available(); *t; t++) {
        (*t)->kv_store(MU_KV_Q8_0, k, v, 40, bad % 16, c.k_page[bad / 16], c.v_page[bad / 16]);
        float *got = attn_run(*t, &c, 11);
        for (size_t i = 0; i < 11 * 80; i++) {
            size_t at = GUARD + i / 80 * c.a.out_stride + i % 80;
            bool same = memcmp(&got[at], &clean[at], 4) == 0;
            if (i / 80 < 6 ? !same : isnan(got[at]) != (i % 40 >= 32))
                fail_msg("%s: token %zu, value %zu", (*t)->name, i / 80, i % 80);
        }
        test_free(got);
    }
    test_free(clean);
    case_close(&c);
}

/* A score that is not finite shows in the result: the request must end by name, not with a plausible number. */
static void nan_query_shows(void **state)
{
    (void)state;
    struct attn_case c;
    case_open(&c, (struct shape){.d_head = 16, .n_rep = 3, .n_tok = 2, .pos0 = 300, .page_tokens = 64});
    float *clean = attn_run(ref, &c, 2);
    c.q[c.a.q_stride + 16] = NAN; /* token 1, head 1 */
    for (const struct mu_kernels *const *k = mu_kernels_available(); *k; k++) {
        float *got = attn_run(*k, &c, 2);
        for (size_t t = 0; t < 2; t++)
            for (size_t i = 0; i < 48; i++) {
                size_t at = GUARD + t * c.a.out_stride + i;
                if (t == 1 && i / 16 == 1)
                    assert_true(isnan(got[at]));
                else
                    assert_memory_equal(&got[at], &clean[at], 4);
            }
        test_free(got);
    }
    test_free(clean);
    case_close(&c);
}

/* MUSTER_TEST_NEEDS=avx2: fail, do not pass, where that table is absent. */
static void needed_table_runs(void **state)
{
    (void)state;
    const char *needs = getenv("MUSTER_TEST_NEEDS");
    bool there = !needs;
    for (const struct mu_kernels *const *k = mu_kernels_available(); *k; k++)
        if (needs && strcmp((*k)->name, needs) == 0) there = true;
    if (!there) fail_msg("the table '%s' does not run on this processor", needs);
}

int main(void)
{
    ref = mu_kernels_available()[0];
    reduced = getenv("MUSTER_TEST_REDUCED") != NULL;
    mu_fp_env_set();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(needed_table_runs),
        cmocka_unit_test(head_sizes),
        cmocka_unit_test(repeats),
        cmocka_unit_test(segment_edges),
        cmocka_unit_test(windows),
        cmocka_unit_test(soft_caps),
        cmocka_unit_test(sinks),
        cmocka_unit_test(prompt),
        cmocka_unit_test(infinity_stays_where_it_is_seen),
        cmocka_unit_test(nan_scale_stays_where_it_is_seen),
        cmocka_unit_test(nan_query_shows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
