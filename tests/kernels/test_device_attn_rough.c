/* Attention of prompts that may be rough, against the definition's, which is exact: close to it, not finite where it is
 * not, and of each query the same to the bit however its prompt is cut into blocks. What a plugin does not do roughly it
 * does exactly. The cache holds NaN wherever nothing was stored. */
#include <stdio.h>
#include <stdlib.h>

#include "tests/kernels/device_attn.h"

enum { MAX_BLOCK = 512 };
/* Values of the cache are below MOST_VALUE in size (dt_fill); attention may be wrong by a hundredth of it. The root of the
 * mean square is what tells a position too many from rounding. */
static const double MOST_VALUE = 3.0, MOST_ERROR = 0.01, MOST_RMS = 3e-3;

static double worst_error, worst_rms; /* of all checks */

/* The last n_tok tokens of each sequence from `less` before its end on, as blocks of at most `most`. */
static int blocks_of(struct mu_device_block block[MAX_BLOCK], int n_tok, int less, int most, int *n_out)
{
    int n = 0, tok = 0;
    for (int i = 0; i < c.s.n; i++) {
        int end = c.s.len[i] - less, first = end > n_tok ? end - n_tok : 0;
        for (int p = first; p < end; p += most, n++) {
            assert_true(n < MAX_BLOCK);
            int here = end - p < most ? end - p : most;
            block[n] = (struct mu_device_block){tok, here, p, i};
            tok += here;
        }
    }
    *n_out = n;
    return tok;
}

/* Their results on one side, or on both. */
static struct dt_pair attend(struct dt_pair q, int n_tok, int less, int most, bool host)
{
    struct mu_device_block block[MAX_BLOCK];
    int n, tok = blocks_of(block, n_tok, less, most, &n);
    struct dt_pair out = dt_blank((size_t)tok * row_of(&c.m) * sizeof(float));
    struct dt_pair list = dt_from(block, (size_t)n * sizeof *block);
    scratch(1, c.max_pos);
    for (int i = host ? DT_HOST : DT_PLUGIN; i < DT_SIDES; i++) {
        struct mu_device_attn a = attn_of(i, q, out);
        a.n_block = n;
        a.block = list.at[i];
        a.rough = true;
        dt.ops[i]->attn(dt.dev[i], &a);
    }
    dt_wait("rough attention");
    return out;
}

static float *read_of(struct dt_pair p, int side)
{
    float *x = mu_malloc(p.bytes);
    assert_non_null(x);
    dt_read(p, side, x);
    return x;
}

/* keys_broken: a query that sees such a key may be NaN where the definition is finite. */
static void close_check(struct dt_pair out, bool keys_broken)
{
    size_t n = out.bytes / sizeof(float), differ = 0;
    float *want = read_of(out, DT_HOST), *got = read_of(out, DT_PLUGIN);
    double errors = 0, squares = 0;
    for (size_t i = 0; i < n; i++) {
        size_t row = i / row_of(&c.m), head = i / (size_t)c.m.d_head % (size_t)c.m.n_head;
        double error = fabs((double)got[i] - (double)want[i]);
        differ += memcmp(&got[i], &want[i], sizeof *got) != 0;
        if (!isfinite(want[i]) && isfinite(got[i]))
            fail_msg(NAMED ": row %zu, head %zu, dimension %zu is %g and should not be finite", NAMES("rough"), row,
                     head, i % (size_t)c.m.d_head, (double)got[i]);
        if (!isfinite(want[i]) || (keys_broken && !isfinite(got[i]))) continue;
        if (!(error <= MOST_ERROR * MOST_VALUE))
            fail_msg(NAMED ": row %zu, head %zu, dimension %zu is %g and should be about %g", NAMES("rough"), row, head,
                     i % (size_t)c.m.d_head, (double)got[i], (double)want[i]);
        errors += error * error;
        squares += (double)want[i] * (double)want[i];
        if (error > worst_error) worst_error = error;
    }
    double rms = squares > 0 ? sqrt(errors / squares) : 0;
    if (!(rms < MOST_RMS)) fail_msg(NAMED ": off by %g, root mean square", NAMES("rough"), rms);
    if (rms > worst_rms) worst_rms = rms;
    if (dt.emulated && differ == 0 && n > 0) fail_msg(NAMED ": exact, so not what is tested here", NAMES("rough"));
    mu_free(want);
    mu_free(got);
}

/* The plugin's results of two calls are the same bits, a NaN any NaN: all of a, and what lies from `skip` rows on in b. */
static void same_check(struct dt_pair a, struct dt_pair b, size_t skip, const char *what)
{
    float *x = read_of(a, DT_PLUGIN), *y = read_of(b, DT_PLUGIN), *part = y + skip * row_of(&c.m);
    size_t n = a.bytes / sizeof(float);
    assert_true(a.bytes + skip * row_of(&c.m) * sizeof(float) <= b.bytes);
    for (size_t i = 0; i < n; i++)
        if (memcmp(&x[i], &part[i], sizeof *x) != 0 && !(isnan(x[i]) && isnan(part[i])))
            fail_msg(NAMED ", %s: row %zu, head %zu is %.9g and should be %.9g", NAMES("rough"), what, i / row_of(&c.m),
                     i / (size_t)c.m.d_head % (size_t)c.m.n_head, (double)part[i], (double)x[i]);
    mu_free(x);
    mu_free(y);
}

/* The last n_tok tokens of each sequence: whole blocks against the definition, and smaller ones against those. */
static void cuts_check(int n_tok, const int *cut, int n_cut, bool keys_broken, int broken_queries)
{
    int n, tok = 0;
    struct mu_device_block block[MAX_BLOCK];
    tok = blocks_of(block, n_tok, 0, MU_DEVICE_QUERY_BLOCK, &n);
    size_t count = (size_t)tok * row_of(&c.m);
    float *x = mu_malloc(count * sizeof *x);
    dt_fill(x, count, ORDINARY);
    dt_break(x, count, broken_queries);
    struct dt_pair q = dt_from(x, count * sizeof *x), out = attend(q, n_tok, 0, MU_DEVICE_QUERY_BLOCK, true);
    close_check(out, keys_broken);
    for (int i = 0; i < n_cut; i++) {
        char what[32];
        snprintf(what, sizeof what, "by %d", cut[i]);
        same_check(attend(q, n_tok, 0, cut[i], false), out, 0, what);
    }
    mu_free(x);
}

static const struct way broken_values = {.broken_values = 7}, broken_all = {.broken = 2};

static void check_as(struct model m, struct seqs s, const struct way *w, int n_tok)
{
    static const int cut[] = {23};
    for (int t = 0; t < MU_KV_TYPE_COUNT; t++) {
        m.type = (enum mu_kv_type)t;
        cache_open(m, s);
        cache_fill(w);
        cuts_check(n_tok, cut, 1, w->broken > 0, w->broken);
        dt_free_all();
    }
}

static void head_sizes(void **state)
{
    (void)state;
    static const int d_heads[] = {16, 48, 64, 80, 96, 112, 128, 144, 256};
    for (size_t i = 0; i < sizeof d_heads / sizeof *d_heads; i++)
        check_as((struct model){.d_head = d_heads[i], .n_head = 2, .n_kv = 1},
                 (struct seqs){2, {150, d_heads[i] % 40 + 1}, 0}, &plain, 70);
}

/* Whole and uneven shares of groups; odd heads out; heads of part of a group. */
static void groups(void **state)
{
    (void)state;
    for (int n_rep = 1; n_rep <= 5; n_rep += n_rep < 3 ? 1 : 2)
        check_as((struct model){.d_head = 32, .n_head = 2 * n_rep, .n_kv = 2}, (struct seqs){1, {90}, 0}, &plain, 90);
    check_as((struct model){.d_head = 16, .n_head = 7, .n_kv = 2, .group = 4, .head0 = 5, .kv_head0 = 1},
             (struct seqs){2, {100, 33}, 0}, &plain, 40);
    check_as((struct model){.d_head = 16, .n_head = 2, .n_kv = 3, .group = 4, .head0 = 6, .kv_head0 = 0},
             (struct seqs){1, {50}, 0}, &plain, 50);
    check_as((struct model){.d_head = 256, .n_head = 2, .n_kv = 2}, (struct seqs){1, {70}, 0}, &plain, 70);
    check_as((struct model){.d_head = 128, .n_head = 1, .n_kv = 1}, (struct seqs){1, {70}, 0}, &plain, 70);
}

static void lengths(void **state)
{
    (void)state;
    static const int len[] = {1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 192};
    for (size_t i = 0; i < sizeof len / sizeof *len; i++)
        check_as((struct model){.d_head = 32, .n_head = 2, .n_kv = 1}, (struct seqs){2, {len[i], 193 - len[i]}, 0},
                 &plain, 66);
}

static void windows(void **state)
{
    (void)state;
    static const int sizes[] = {1, 2, 31, 32, 63, 64, 65, 100, 128, 200};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        check_as((struct model){.d_head = 32, .n_head = 2, .n_kv = 1, .window = sizes[i], .sink = i % 2 == 0},
                 (struct seqs){2, {330, 20}, 0}, &plain, 140);
}

static void caps_and_sinks(void **state)
{
    (void)state;
    static const float caps[] = {0.5f, 5.0f, 50.0f, 1e6f};
    for (size_t i = 0; i < sizeof caps / sizeof *caps; i++)
        check_as((struct model){.d_head = 64, .n_head = 4, .n_kv = 2, .softcap = caps[i], .sink = i % 2 == 1},
                 (struct seqs){2, {140, 5}, 0}, &plain, 70);
    check_as((struct model){.d_head = 48, .n_head = 4, .n_kv = 4, .sink = true}, (struct seqs){2, {140, 5}, 0}, &plain,
             70);
}

static void shared_pages(void **state)
{
    (void)state;
    check_as((struct model){.d_head = 32, .n_head = 2, .n_kv = 1}, (struct seqs){3, {200, 97, 180}, 3}, &plain, 64);
}

static void long_contexts(void **state)
{
    (void)state;
    check_as((struct model){.d_head = 128, .n_head = 2, .n_kv = 1}, (struct seqs){1, {900}, 0}, &plain, 64);
    check_as((struct model){.d_head = 32, .n_head = 2, .n_kv = 1}, (struct seqs){1, {3000}, 0}, &plain, 20);
}

/* Many cuts, down to single queries. */
static void cuts(void **state)
{
    (void)state;
    static const int cut[] = {1, 2, 7, 16, 33, 63};
    for (int t = 0; t < MU_KV_TYPE_COUNT; t++)
        for (int window = 0; window < 100; window += 75) {
            cache_open(
                (struct model){.type = (enum mu_kv_type)t, .d_head = 32, .n_head = 3, .n_kv = 1, .window = window},
                (struct seqs){2, {250, 31}, 0});
            cache_fill(window ? &broken_values : &plain);
            cuts_check(130, cut, (int)(sizeof cut / sizeof *cut), false, 0);
            dt_free_all();
        }
}

/* Values and queries that are not finite show where they are seen, and nowhere else; so do keys, but that their queries
 * may be NaN everywhere. */
static void not_finite(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        check_as((struct model){.d_head = 48, .n_head = 2, .n_kv = 1, .window = 90}, (struct seqs){2, {230, 80}, 0},
                 &broken_values, 150);
        check_as((struct model){.d_head = 128, .n_head = 2, .n_kv = 1}, (struct seqs){1, {130}, 0}, &broken_values,
                 130);
        check_as((struct model){.d_head = 48, .n_head = 2, .n_kv = 1, .window = 70}, (struct seqs){2, {230, 80}, 0},
                 &broken_all, 150);
        check_as((struct model){.d_head = 64, .n_head = 2, .n_kv = 1, .sink = true}, (struct seqs){1, {130}, 0},
                 &broken_all, 130);
    }
}

/* A prompt's first tokens before its last ones are stored, and after: those are nothing to them, finite or not. */
static void chunks(void **state)
{
    (void)state;
    enum { LEN = 200, LESS = 71 };
    int32_t pos[LEN], slot[LEN] = {0};
    for (int i = 0; i < LEN; i++) pos[i] = i;
    for (int t = 0; t < MU_KV_TYPE_COUNT; t++)
        for (int broken = 0; broken < 2; broken++) {
            cache_open((struct model){.type = (enum mu_kv_type)t, .d_head = 80, .n_head = 2, .n_kv = 1},
                       (struct seqs){1, {LEN}, 0});
            rotate(&plain, LEN - LESS, pos, slot);
            struct dt_pair q = dt_floats(LEN * row_of(&c.m), ORDINARY);
            struct dt_pair before = attend(q, LEN, LESS, 64, true);
            close_check(before, false);
            rotate(broken ? &broken_all : &plain, LESS, pos + LEN - LESS, slot);
            struct dt_pair all = attend(q, LEN, 0, 50, true);
            close_check(all, broken);
            same_check(before, all, 0, "later tokens stored");
            dt_free_all();
        }
}

/* Heads that the tensor cores do not take are exact. */
static void exact(void **state)
{
    (void)state;
    static const int d_heads[] = {8, 40, 272};
    for (size_t i = 0; i < sizeof d_heads / sizeof *d_heads; i++) {
        cache_open((struct model){.d_head = d_heads[i], .n_head = 2, .n_kv = 1}, (struct seqs){1, {70}, 0});
        cache_fill(&plain);
        struct dt_pair q = dt_floats(70 * row_of(&c.m), ORDINARY);
        dt_same(attend(q, 70, 0, 64, true), DT_F32, NAMED, NAMES("exact"));
        dt_free_all();
    }
}

static int end(void **state)
{
    print_message("off by at most %.2g of the largest value, %.2g root mean square\n", worst_error / MOST_VALUE,
                  worst_rms);
    return dt_close(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(head_sizes),    cmocka_unit_test(groups),         cmocka_unit_test(lengths),
        cmocka_unit_test(windows),       cmocka_unit_test(caps_and_sinks), cmocka_unit_test(shared_pages),
        cmocka_unit_test(long_contexts), cmocka_unit_test(cuts),           cmocka_unit_test(not_finite),
        cmocka_unit_test(chunks),        cmocka_unit_test(exact),
    };
    return cmocka_run_group_tests(tests, dt_open, end);
}
