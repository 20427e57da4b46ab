/* Rotation, cache and attention of a plugin against their definition: both forms of attention, several sequences whose
 * pages lie out of order and are partly shared, in a cache that holds NaN wherever nothing was stored. Caches are filled
 * by each side's own rotate, since the layout inside a page is its own. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "tests/kernels/device_test.h"

enum { PAGE = 32, MAX_SEQ = 8, MAX_TOK = 4096 };

/* A model's attention as one rank has it. */
struct model {
    enum mu_kv_type type;
    int d_head, n_head, n_kv, group, head0, kv_head0; /* group 0: n_head / n_kv */
    int window;
    float softcap;
    bool sink;
};

/* Sequences of these lengths; the first `shared` pages of all are those of the first. */
struct seqs {
    int n, len[MAX_SEQ];
    int shared;
};

static struct cache {
    struct model m;
    struct seqs s;
    struct mu_device_kv kv[DT_SIDES];
    struct dt_pair data, table, sink, part;
    int max_pos;
} c;

static int group_of(const struct model *m)
{
    return m->group ? m->group : m->n_head / m->n_kv;
}

static uint32_t pages_of(int len)
{
    return (uint32_t)((len + PAGE - 1) / PAGE);
}

/* n values of one bit pattern each; or of values. */
static struct dt_pair dt_ints(const int32_t *x, int n)
{
    return dt_from(x, (size_t)n * sizeof *x);
}

/* What rotate does to keys, values and queries on the way. */
struct way {
    int n_rot, neox;
    bool turn, norms, scale;
    enum values values;
    int broken; /* so many values are not finite */
};

static struct dt_pair vectors(size_t n, const struct way *w)
{
    float *x = mu_calloc(n, sizeof *x);
    dt_fill(x, n, w->values);
    dt_break(x, n, w->broken);
    struct dt_pair p = dt_from(x, n * sizeof *x);
    mu_free(x);
    return p;
}

/* Rotates tokens at these positions of these slots on both sides; their queries, afterwards. */
static struct dt_pair rotate(const struct way *w, int n_tok, const int32_t *pos, const int32_t *slot)
{
    size_t n = (size_t)c.m.d_head, tok = (size_t)n_tok;
    struct dt_pair q = vectors(tok * (size_t)c.m.n_head * n, w), k = vectors(tok * (size_t)c.m.n_kv * n, w);
    struct dt_pair v = vectors(tok * (size_t)c.m.n_kv * n, w), p = dt_ints(pos, n_tok), s = dt_ints(slot, n_tok);
    struct dt_pair cos_sin = dt_floats(tok * (size_t)w->n_rot, ORDINARY), q_norm = dt_floats(n, ORDINARY),
                   k_norm = dt_floats(n, ORDINARY), q_scale = dt_floats(tok, ORDINARY);
    for (int i = 0; i < DT_SIDES; i++) {
        struct mu_device_rotate a = {.kv = c.kv[i],
                                     .n_tok = n_tok,
                                     .n_head = c.m.n_head,
                                     .n_rot = w->n_rot,
                                     .neox = w->neox,
                                     .eps = 1e-5f,
                                     .cos_sin = w->turn ? cos_sin.at[i] : NULL,
                                     .q_norm = w->norms ? q_norm.at[i] : NULL,
                                     .k_norm = w->norms ? k_norm.at[i] : NULL,
                                     .q_scale = w->scale ? q_scale.at[i] : NULL,
                                     .q = q.at[i],
                                     .k = k.at[i],
                                     .v = v.at[i],
                                     .pos = p.at[i],
                                     .slot = s.at[i]};
        dt.ops[i]->rotate(dt.dev[i], &a);
    }
    dt_same(q, DT_F32, "queries of d_head %d, n_rot %d", c.m.d_head, w->n_rot);
    return q;
}

static const struct way plain;

/* An empty cache, its pages out of order. Pages beyond a sequence's length are no pages at all. */
static void cache_open(struct model m, struct seqs s)
{
    uint32_t max_page = 1, n_page = 3; /* pages that nobody has */
    c = (struct cache){.m = m, .s = s};
    for (int i = 0; i < s.n; i++) {
        uint32_t n = pages_of(s.len[i]);
        max_page = n > max_page ? n : max_page;
        n_page += n;
        c.max_pos = s.len[i] > c.max_pos ? s.len[i] : c.max_pos;
    }
    uint32_t *order = mu_calloc(n_page, sizeof *order), *table = mu_calloc((size_t)s.n * max_page, sizeof *table);
    for (uint32_t i = 0; i < n_page; i++) {
        uint32_t j = rnd() % (i + 1);
        order[i] = order[j];
        order[j] = i;
    }
    uint32_t next = 0;
    for (int i = 0; i < s.n; i++)
        for (uint32_t p = 0; p < max_page; p++) {
            bool shared = i > 0 && p < (uint32_t)s.shared;
            table[(uint32_t)i * max_page + p] = p >= pages_of(s.len[i]) ? 0xffffffffu
                                                : shared                ? table[p]
                                                                        : order[next++];
        }
    size_t page_bytes = 2 * mu_kv_bytes(m.type, m.d_head, PAGE), bytes = (size_t)m.n_kv * n_page * page_bytes;
    char *nothing = mu_malloc(bytes);
    memset(nothing, 0xff, bytes);
    c.data = dt_from(nothing, bytes);
    c.table = dt_from(table, (size_t)s.n * max_page * sizeof *table);
    for (int i = 0; i < DT_SIDES; i++)
        c.kv[i] = (struct mu_device_kv){m.type,   m.n_kv,     m.d_head,     PAGE,         n_page,
                                        max_page, page_bytes, c.data.at[i], c.table.at[i]};
    if (m.sink) c.sink = dt_floats((size_t)m.n_head, ORDINARY);
    mu_free(order);
    mu_free(table);
    mu_free(nothing);
}

/* Everything that a query at the end of a sequence may see is stored, and no more. */
static void cache_fill(const struct way *w)
{
    static int32_t pos[MAX_TOK], slot[MAX_TOK];
    int n = 0;
    for (int i = 0; i < c.s.n; i++)
        for (int p = i > 0 ? c.s.shared * PAGE : 0; p < c.s.len[i]; p++) {
            assert_true(n < MAX_TOK);
            pos[n] = p;
            slot[n++] = i;
        }
    rotate(w, n, pos, slot);
}

/* With room for this many queries' segments; more positions than there are, as a recorded step would have. */
static void scratch(int queries, int max_pos)
{
    size_t segments = (size_t)(max_pos + 255) / 256;
    c.max_pos = max_pos;
    c.part = dt_blank((size_t)queries * segments * (size_t)c.m.n_head * (size_t)(c.m.d_head + 2) * sizeof(float));
}

static struct mu_device_attn attn_of(int side, struct dt_pair q, struct dt_pair out)
{
    return (struct mu_device_attn){.kv = c.kv[side],
                                   .n_head = c.m.n_head,
                                   .head0 = c.m.head0,
                                   .group = group_of(&c.m),
                                   .kv_head0 = c.m.kv_head0,
                                   .window = c.m.window,
                                   .scale = 1.0f / sqrtf((float)c.m.d_head),
                                   .softcap = c.m.softcap,
                                   .sink = c.sink.at[side],
                                   .q = q.at[side],
                                   .out = out.at[side],
                                   .max_pos = c.max_pos,
                                   .part = c.part.at[side],
                                   .part_bytes = c.part.bytes};
}

#define NAMED "%s, %s, d_head %d, %d heads on %d, window %d, cap %g, %d sequences, the first of %d"
#define NAMES(what)                                                                                            \
    what, mu_kv_type_name(c.m.type), c.m.d_head, c.m.n_head, c.m.n_kv, c.m.window, (double)c.m.softcap, c.s.n, \
        c.s.len[0]

static size_t row_of(const struct model *m)
{
    return (size_t)m->n_head * (size_t)m->d_head;
}

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
