/* What the tests of attention share: several sequences whose pages lie out of order and are partly shared, in a cache
 * that holds NaN wherever nothing was stored. Caches are filled by each side's own rotate, since the layout inside a
 * page is its own. Included once by a test; `c` is what it tests. */
#ifndef MU_TESTS_KERNELS_DEVICE_ATTN_H
#define MU_TESTS_KERNELS_DEVICE_ATTN_H

#include <math.h>
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

static inline int group_of(const struct model *m)
{
    return m->group ? m->group : m->n_head / m->n_kv;
}

static inline uint32_t pages_of(int len)
{
    return (uint32_t)((len + PAGE - 1) / PAGE);
}

/* n values of one bit pattern each; or of values. */
static inline struct dt_pair dt_ints(const int32_t *x, int n)
{
    return dt_from(x, (size_t)n * sizeof *x);
}

/* What rotate does to keys, values and queries on the way. */
struct way {
    int n_rot, neox;
    bool turn, norms, scale;
    enum values values;
    int broken;        /* so many values of each are not finite */
    int broken_values; /* and so many more of v */
};

static inline struct dt_pair vectors(size_t n, const struct way *w, int broken)
{
    float *x = mu_calloc(n, sizeof *x);
    dt_fill(x, n, w->values);
    dt_break(x, n, broken);
    struct dt_pair p = dt_from(x, n * sizeof *x);
    mu_free(x);
    return p;
}

/* Rotates tokens at these positions of these slots on both sides; their queries, afterwards. */
static inline struct dt_pair rotate(const struct way *w, int n_tok, const int32_t *pos, const int32_t *slot)
{
    size_t n = (size_t)c.m.d_head, tok = (size_t)n_tok;
    struct dt_pair q = vectors(tok * (size_t)c.m.n_head * n, w, w->broken);
    struct dt_pair k = vectors(tok * (size_t)c.m.n_kv * n, w, w->broken);
    struct dt_pair v = vectors(tok * (size_t)c.m.n_kv * n, w, w->broken + w->broken_values);
    struct dt_pair p = dt_ints(pos, n_tok), s = dt_ints(slot, n_tok);
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
static inline void cache_open(struct model m, struct seqs s)
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
static inline void cache_fill(const struct way *w)
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
static inline void scratch(int queries, int max_pos)
{
    size_t segments = (size_t)(max_pos + 255) / 256;
    c.max_pos = max_pos;
    c.part = dt_blank((size_t)queries * segments * (size_t)c.m.n_head * (size_t)(c.m.d_head + 2) * sizeof(float));
}

static inline struct mu_device_attn attn_of(int side, struct dt_pair q, struct dt_pair out)
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

static inline size_t row_of(const struct model *m)
{
    return (size_t)m->n_head * (size_t)m->d_head;
}

#endif
