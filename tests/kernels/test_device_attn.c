/* Rotation, cache and attention of a plugin against their definition: both forms of attention, to the bit. */
#include <stdlib.h>

#include "tests/kernels/device_attn.h"

/* Results in the forms that are wanted, too: which ones goes round, and codes only where the vectors are whole blocks. */
struct forms {
    struct dt_pair bf16, q, s, sum;
};
static struct forms forms_blank(size_t n_tok, size_t n)
{
    static unsigned turn;
    struct forms f = {0};
    unsigned wanted = turn++ % 4; /* neither, bf16, codes, codes with sums and bf16 */
    if (wanted % 2 == 1) f.bf16 = dt_blank(n_tok * n * sizeof(uint16_t));
    if (wanted < 2 || n % 32 != 0) return f;
    f.q = dt_blank(n_tok * n);
    f.s = dt_blank(n_tok * n / 32 * sizeof(float));
    if (wanted == 3) f.sum = dt_blank(n_tok * n / 16 * sizeof(int16_t));
    return f;
}
static struct mu_act_to forms_at(const struct forms *f, int side)
{
    return (struct mu_act_to){.bf16 = f->bf16.at[side], .q = f->q.at[side], .s = f->s.at[side], .sum = f->sum.at[side]};
}

/* The last token of each sequence, `times` over: queries in reverse order. Returns what the plugin has. */
static float *queries_check(int times, int room)
{
    int n = c.s.n * times;
    int32_t pos[64], slot[64], query[64];
    assert_true(n <= 64);
    for (int i = 0; i < n; i++) {
        slot[i] = i % c.s.n;
        pos[i] = c.s.len[slot[i]] - 1 - i / c.s.n;
        if (pos[i] < 0) pos[i] = 0;
        query[i] = n - 1 - i;
    }
    size_t count = (size_t)n * row_of(&c.m);
    struct dt_pair q = dt_floats(count, ORDINARY), out = dt_blank(count * sizeof(float));
    struct dt_pair p = dt_ints(pos, n), s = dt_ints(slot, n), list = dt_ints(query, n);
    struct forms forms = forms_blank((size_t)n, row_of(&c.m));
    scratch(room, (c.max_pos + 255) / 256 * 256);
    for (int i = 0; i < DT_SIDES; i++) {
        struct mu_device_attn a = attn_of(i, q, out);
        a.n_query = n;
        a.query = times > 1 ? list.at[i] : NULL;
        a.form = forms_at(&forms, i);
        a.pos = p.at[i];
        a.slot = s.at[i];
        dt.ops[i]->attn(dt.dev[i], &a);
    }
    dt_same(out, DT_F32, NAMED ", room for %d", NAMES("queries"), room);
    if (forms.bf16.bytes) dt_same(forms.bf16, DT_BF16, NAMED ", bf16", NAMES("queries"));
    if (forms.q.bytes) dt_same(forms.q, DT_BYTES, NAMED ", codes", NAMES("queries"));
    if (forms.s.bytes) dt_same(forms.s, DT_F32, NAMED ", scales", NAMES("queries"));
    if (forms.sum.bytes) dt_same(forms.sum, DT_I16, NAMED ", sums", NAMES("queries"));
    float *got = mu_malloc(count * sizeof *got);
    dt_read(out, DT_PLUGIN, got);
    return got;
}

/* The last n_tok tokens of each sequence as blocks of at most `most`. */
static void blocks_check(int n_tok, int most)
{
    struct mu_device_block block[64];
    int n = 0, tok = 0;
    for (int i = 0; i < c.s.n; i++) {
        int first = c.s.len[i] > n_tok ? c.s.len[i] - n_tok : 0;
        for (int p = first; p < c.s.len[i]; p += most, n++) {
            assert_true(n < 64);
            int here = c.s.len[i] - p < most ? c.s.len[i] - p : most;
            block[n] = (struct mu_device_block){tok, here, p, i};
            tok += here;
        }
    }
    size_t count = (size_t)tok * row_of(&c.m);
    struct dt_pair q = dt_floats(count, ORDINARY), out = dt_blank(count * sizeof(float));
    struct dt_pair list = dt_from(block, (size_t)n * sizeof *block);
    scratch(1, c.max_pos);
    for (int i = 0; i < DT_SIDES; i++) {
        struct mu_device_attn a = attn_of(i, q, out);
        a.n_block = n;
        a.block = list.at[i];
        dt.ops[i]->attn(dt.dev[i], &a);
    }
    dt_same(out, DT_F32, NAMED ", last %d tokens by %d", NAMES("blocks"), n_tok, most);
}

static void check_as(struct model m, struct seqs s, const struct way *w)
{
    cache_open(m, s);
    cache_fill(w);
    mu_free(queries_check(1, 1));
    blocks_check(70, 64);
    dt_free_all();
}

static void check(struct model m, struct seqs s)
{
    for (int t = 0; t < MU_KV_TYPE_COUNT; t++) {
        m.type = (enum mu_kv_type)t;
        check_as(m, s, &plain);
    }
}

/* ---- rotation ---- */

static void rotations(void **state)
{
    (void)state;
    static const int d_heads[] = {1, 2, 16, 48, 64, 72, 80, 128, 256, 512};
    for (size_t i = 0; i < sizeof d_heads / sizeof *d_heads; i++)
        for (int v = 0; v < N_VALUES; v++)
            for (int how = 0; how < 4; how++) {
                int d = d_heads[i], half = d / 4 * 2;
                struct way w = {.n_rot = how == 1 && half ? half : d / 2 * 2,
                                .neox = how % 2,
                                .turn = how > 0,
                                .norms = how > 1,
                                .scale = how == 3,
                                .values = (enum values)v,
                                .broken = how == 2 ? 3 : 0};
                cache_open((struct model){.d_head = d, .n_head = 3, .n_kv = 2, .group = 2}, (struct seqs){1, {40}, 0});
                cache_fill(&w);
                dt_free_all();
            }
}

/* What was stored comes back from the cache as it should, whatever the values. */
static void stored_values(void **state)
{
    (void)state;
    for (int t = 0; t < MU_KV_TYPE_COUNT; t++)
        for (int v = 0; v < N_VALUES; v++)
            for (int broken = 0; broken < 2; broken++) {
                struct way w = {.values = (enum values)v, .broken = broken * 2};
                check_as((struct model){.type = (enum mu_kv_type)t, .d_head = 40, .n_head = 2, .n_kv = 2},
                         (struct seqs){2, {45, 70}, 0}, &w);
            }
}

static void tables(void **state)
{
    (void)state;
    static const int32_t pos[] = {0, 1, 77, 4095, 100000, 1000000};
    static const uint8_t far[] = {0, 1, 0, 1, 1, 0};
    for (int n_pair = 1; n_pair <= 40; n_pair += 13)
        for (int with = 0; with < 2; with++) {
            size_t bytes = 6 * 2 * (size_t)n_pair * sizeof(float);
            struct dt_pair freq = dt_floats((size_t)n_pair, ORDINARY), other = dt_floats((size_t)n_pair, ORDINARY);
            struct dt_pair p = dt_ints(pos, 6), f = dt_from(far, sizeof far), out = dt_blank(bytes);
            for (int i = 0; i < DT_SIDES; i++)
                dt.ops[i]->rope_table(dt.dev[i], freq.at[i], with ? other.at[i] : NULL, with ? f.at[i] : NULL, p.at[i],
                                      6, n_pair, with ? 1.25f : 1.0f, out.at[i]);
            dt_same(out, DT_F32, "a table of %d pairs", n_pair);
            dt_free_all();
        }
}

/* ---- attention ---- */

static void head_sizes(void **state)
{
    (void)state;
    static const int d_heads[] = {1, 7, 8, 16, 31, 33, 48, 64, 72, 80, 96, 100, 128, 136, 256, 512};
    for (size_t i = 0; i < sizeof d_heads / sizeof *d_heads; i++)
        check((struct model){.d_head = d_heads[i], .n_head = 4, .n_kv = 2},
              (struct seqs){2, {260, d_heads[i] % 40 + 1}, 0});
}

static void lengths(void **state)
{
    (void)state;
    static const int len[] = {1, 2, 15, 16, 17, 31, 32, 33, 64, 65, 128, 129, 255, 256, 257, 511, 512, 513, 600};
    for (size_t i = 0; i < sizeof len / sizeof *len; i++)
        check((struct model){.d_head = 24, .n_head = 3, .n_kv = 1}, (struct seqs){2, {len[i], 600 - len[i] + 1}, 0});
}

/* Whole and uneven shares of groups, up to more heads than one pass takes. */
static void groups(void **state)
{
    (void)state;
    for (int n_rep = 1; n_rep <= 17; n_rep += n_rep < 9 ? 1 : 4)
        check((struct model){.d_head = 20, .n_head = n_rep, .n_kv = 1}, (struct seqs){1, {300}, 0});
    check((struct model){.d_head = 64, .n_head = 71, .n_kv = 1}, (struct seqs){1, {40}, 0});
    /* heads 5 … 11 of groups of 4: 3 of KV head 1, 4 of KV head 2, counted from KV head 1 */
    check((struct model){.d_head = 16, .n_head = 7, .n_kv = 2, .group = 4, .head0 = 5, .kv_head0 = 1},
          (struct seqs){2, {270, 33}, 0});
    /* a KV head that is here and has none of my heads */
    check((struct model){.d_head = 16, .n_head = 2, .n_kv = 3, .group = 4, .head0 = 6, .kv_head0 = 0},
          (struct seqs){1, {50}, 0});
}

static void windows(void **state)
{
    (void)state;
    static const int sizes[] = {1, 2, 16, 31, 32, 33, 128, 255, 256, 257, 258, 300};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        check((struct model){.d_head = 16, .n_head = 4, .n_kv = 2, .window = sizes[i], .sink = i % 2 == 0},
              (struct seqs){3, {600, 20, 512 + sizes[i]}, 0});
}

static void caps_and_sinks(void **state)
{
    (void)state;
    check((struct model){.d_head = 64, .n_head = 8, .n_kv = 1, .softcap = 50.0f}, (struct seqs){1, {300}, 0});
    check((struct model){.d_head = 24, .n_head = 4, .n_kv = 2, .softcap = 0.5f, .sink = true},
          (struct seqs){2, {290, 5}, 0});
    check((struct model){.d_head = 24, .n_head = 4, .n_kv = 4, .sink = true}, (struct seqs){2, {520, 5}, 0});
}

static void shared_pages(void **state)
{
    (void)state;
    check((struct model){.d_head = 32, .n_head = 4, .n_kv = 2}, (struct seqs){4, {600, 257, 300, 280}, 8});
}

/* However the work is cut, the bytes are the same: one query at a time at segments, all of them at segments, and whole
 * queries, which the last call's many are. */
static void cuts(void **state)
{
    (void)state;
    for (int t = 0; t < MU_KV_TYPE_COUNT; t++)
        for (int window = 0; window < 400; window += 350) {
            struct model m = {.type = (enum mu_kv_type)t, .d_head = 36, .n_head = 3, .n_kv = 1, .window = window};
            cache_open(m, (struct seqs){3, {700, 31, 513}, 0});
            cache_fill(&plain);
            mu_free(queries_check(2, 1));
            mu_free(queries_check(2, 4));
            mu_free(queries_check(3, 9));
            mu_free(queries_check(17, 51)); /* more than the emulated device wants to cut */
            blocks_check(600, 64);
            blocks_check(100, 7);
            dt_free_all();
        }
}

/* A merge in several rounds: more than 128 segments. */
static void long_context(void **state)
{
    (void)state;
    static int32_t pos[MAX_TOK], slot[MAX_TOK];
    int len = 256 * 131 + 5;
    cache_open((struct model){.d_head = 1, .n_head = 2, .n_kv = 1}, (struct seqs){1, {len}, 0});
    for (int p = 0; p < len; p += MAX_TOK) {
        int n = len - p < MAX_TOK ? len - p : MAX_TOK;
        for (int i = 0; i < n; i++) {
            pos[i] = p + i;
            slot[i] = 0;
        }
        rotate(&plain, n, pos, slot);
    }
    mu_free(queries_check(1, 1));
    dt_free_all();
}

/* Every combination of forms, with blocks of codes inside heads and across them; one token, some, whole queries; parts. */
static void forms(void **state)
{
    (void)state;
    static const int d_heads[] = {32, 64, 96, 128, 256, 16, 24};
    for (size_t i = 0; i < sizeof d_heads / sizeof *d_heads; i++)
        for (int t = 0; t < MU_KV_TYPE_COUNT; t++) {
            cache_open((struct model){.type = (enum mu_kv_type)t, .d_head = d_heads[i], .n_head = 4, .n_kv = 1},
                       (struct seqs){2, {i % 2 ? 290 : 90, 33}, 0});
            cache_fill(&(struct way){.broken = i % 3 == 2});
            for (int k = 0; k < 4; k++) mu_free(queries_check(1, k % 2 + 1));
            for (int k = 0; k < 4; k++) mu_free(queries_check(32, 64));
            dt_free_all();
        }
}

/* Queries that are not finite, and values that became infinite in f16, show where they are seen and nowhere else. */
static void not_finite(void **state)
{
    (void)state;
    for (int t = 0; t < MU_KV_TYPE_COUNT; t++)
        for (int broken = 1; broken <= 5; broken += 2)
            check_as((struct model){.type = (enum mu_kv_type)t, .d_head = 40, .n_head = 2, .n_kv = 1, .window = 100},
                     (struct seqs){2, {330, 90}, 0}, &(struct way){.broken = broken});
}

static void nothing(void **state)
{
    (void)state;
    cache_open((struct model){.d_head = 16, .n_head = 2, .n_kv = 1}, (struct seqs){1, {5}, 0});
    cache_fill(&plain);
    scratch(1, 256);
    struct dt_pair q = dt_floats(32, ORDINARY), out = dt_blank(32 * sizeof(float));
    for (int i = 0; i < DT_SIDES; i++) {
        struct mu_device_attn a = attn_of(i, q, out);
        struct mu_device_rotate r = {.kv = c.kv[i], .n_head = 2};
        dt.ops[i]->attn(dt.dev[i], &a);
        dt.ops[i]->rotate(dt.dev[i], &r);
        dt.ops[i]->rope_table(dt.dev[i], NULL, NULL, NULL, NULL, 0, 8, 1.0f, NULL);
    }
    dt_same(out, DT_F32, "nothing");
    dt_free_all();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tables),     cmocka_unit_test(rotations),      cmocka_unit_test(stored_values),
        cmocka_unit_test(head_sizes), cmocka_unit_test(lengths),        cmocka_unit_test(groups),
        cmocka_unit_test(windows),    cmocka_unit_test(caps_and_sinks), cmocka_unit_test(shared_pages),
        cmocka_unit_test(cuts),       cmocka_unit_test(long_context),   cmocka_unit_test(not_finite),
        cmocka_unit_test(nothing),    cmocka_unit_test(forms),
    };
    return cmocka_run_group_tests(tests, dt_open, dt_close);
}
