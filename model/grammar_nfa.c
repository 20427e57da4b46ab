/* Expressions to nondeterministic automata (Thompson, CACM 1968): each has one start and one end, and edges that read
 * nothing glue them. What reads nothing is gone when the automaton becomes deterministic. */
#include <string.h>

#include "base/alloc.h"
#include "model/grammar_part.h"

enum { NODES_MAX = 1 << 21, EDGES_MAX = 1 << 23, NO_LETTER = -2 };

struct nfa {
    struct mu_gb *b;
    const struct mu_rule_info *rules;
    struct mu_nfa a;
};

static uint32_t node(struct nfa *f)
{
    struct mu_nfa *a = &f->a;
    if (!mu_gb_work(f->b, 1)) return 0;
    if (a->n_node == NODES_MAX) {
        mu_gb_fail(f->b, MU_ELIMIT, "a part of the grammar needs more than %d nodes; use smaller bounds of repetition",
                   NODES_MAX);
        return 0;
    }
    if (a->n_node == a->cap_node) {
        uint32_t cap = a->cap_node * 2 + 64;
        uint32_t *p = mu_reallocarray(a->head, cap, sizeof *p);
        if (!p) {
            mu_gb_fail(f->b, MU_ENOMEM, "no memory to compile a grammar");
            return 0;
        }
        a->head = p;
        a->cap_node = cap;
    }
    a->head[a->n_node] = MU_MANY;
    return a->n_node++;
}

static void edge(struct nfa *f, uint32_t from, uint32_t to, int lo, int hi, uint32_t rule)
{
    struct mu_nfa *a = &f->a;
    if (!mu_gb_work(f->b, 1)) return;
    if (a->n_edge == EDGES_MAX) {
        mu_gb_fail(f->b, MU_ELIMIT, "a part of the grammar needs more than %d edges; use smaller bounds of repetition",
                   EDGES_MAX);
        return;
    }
    if (a->n_edge == a->cap_edge) {
        uint32_t cap = a->cap_edge * 2 + 128;
        struct mu_nfa_edge *p = mu_reallocarray(a->edges, cap, sizeof *p);
        if (!p) {
            mu_gb_fail(f->b, MU_ENOMEM, "no memory to compile a grammar");
            return;
        }
        a->edges = p;
        a->cap_edge = cap;
    }
    a->edges[a->n_edge] = (struct mu_nfa_edge){a->head[from], to, rule, (int16_t)lo, (int16_t)hi};
    a->head[from] = a->n_edge++;
}

static void skip(struct nfa *f, uint32_t from, uint32_t to)
{
    edge(f, from, to, MU_NFA_EPS, MU_NFA_EPS, MU_MANY);
}

static void put(struct nfa *f, const struct mu_ex *ex, uint32_t from, uint32_t to);

static bool is_frame(const struct mu_edge *x)
{
    return x->rule == MU_MANY && x->lo == x->hi &&
           (x->lo == (uint8_t)*MU_FRAME_BEGIN || x->lo == (uint8_t)*MU_FRAME_END);
}

/* A finished automaton in place of an expression. framed: the bytes of a frame read nothing. */
static void put_dfa(struct nfa *f, const struct mu_dfa *d, bool framed, uint32_t from, uint32_t to)
{
    uint32_t base = f->a.n_node;
    for (uint32_t i = 0; i < d->n_node; i++) node(f);
    if (f->b->st != MU_OK || !d->n_node) return;
    skip(f, from, base);
    for (uint32_t i = 0; i < d->n_node; i++) {
        for (uint32_t e = d->first[i]; e < d->first[i + 1]; e++) {
            const struct mu_edge *x = &d->edges[e];
            if (framed && is_frame(x)) {
                skip(f, base + i, base + x->to);
            } else {
                edge(f, base + i, base + x->to, x->rule == MU_MANY ? x->lo : NO_LETTER, x->hi, x->rule);
            }
        }
        if (d->final[i]) skip(f, base + i, to);
    }
}

static void put_rule(struct nfa *f, uint32_t rule, uint32_t from, uint32_t to)
{
    const struct mu_rule_info *r = &f->rules[rule];
    if (r->copied) {
        put_dfa(f, &r->dfa, false, from, to);
        return;
    }
    if (r->possible) edge(f, from, to, NO_LETTER, NO_LETTER, rule);
    if (r->empty) skip(f, from, to);
}

struct sequence {
    struct nfa *f;
    uint32_t from, to;
};

static bool put_sequence(void *ctx, const struct mu_byte_range *r, int n)
{
    struct sequence *s = ctx;
    uint32_t at = s->from;
    for (int i = 0; i < n; i++) {
        uint32_t next = i + 1 < n ? node(s->f) : s->to;
        edge(s->f, at, next, r[i].lo, r[i].hi, MU_MANY);
        at = next;
    }
    return s->f->b->st == MU_OK;
}

static void put_repeat(struct nfa *f, const struct mu_ex *ex, uint32_t from, uint32_t to)
{
    const struct mu_ex *kid = ex->kids[0];
    uint32_t at = from;
    for (uint32_t i = 0; i < ex->min && f->b->st == MU_OK; i++) {
        uint32_t next = node(f);
        put(f, kid, at, next);
        at = next;
    }
    if (ex->max == MU_MANY) {
        uint32_t loop = node(f);
        skip(f, at, loop);
        put(f, kid, loop, loop);
        skip(f, loop, to);
        return;
    }
    for (uint32_t i = ex->min; i < ex->max && f->b->st == MU_OK; i++) {
        uint32_t next = node(f);
        skip(f, at, to);
        put(f, kid, at, next);
        at = next;
    }
    skip(f, at, to);
}

/* Two rows of nodes: nothing was written yet, and something was. Only from the second a separator leads on, and both
 * lead to the same copy of a field.
 *
 *      none ──────────▶ none ──────────▶ …          (past a field that may be missing)
 *        ╲ field          ╲ field
 *   some ──sep, field─▶ some ──sep, field─▶ …                                                  */
static void put_fields(struct nfa *f, const struct mu_ex *ex, uint32_t from, uint32_t to)
{
    uint32_t none = from, some = MU_MANY;
    for (uint32_t i = 1; i < ex->n && f->b->st == MU_OK; i++) {
        bool repeats = ex->last_repeats && i + 1 == ex->n, required = ex->required[i];
        uint32_t begin = node(f), end = node(f), next = node(f);
        if (none != MU_MANY) skip(f, none, begin);
        if (some != MU_MANY) {
            put(f, ex->kids[0], some, begin);
            if (!required) skip(f, some, next);
        }
        put(f, ex->kids[i], begin, end);
        skip(f, end, next);
        if (repeats) put(f, ex->kids[0], end, begin);
        if (required) none = MU_MANY;
        some = next;
    }
    if (none != MU_MANY) skip(f, none, to);
    if (some != MU_MANY) skip(f, some, to);
}

static void put_multiple(struct nfa *f, uint32_t of, uint32_t from, uint32_t to)
{
    uint32_t base = f->a.n_node;
    for (uint32_t i = 0; i < of; i++) node(f);
    for (uint32_t i = 0; i < of && f->b->st == MU_OK; i++) {
        for (int d = 0; d < 10; d++) {
            uint32_t next = base + (i * 10 + (uint32_t)d) % of;
            edge(f, base + i, next, '0' + d, '0' + d, MU_MANY);
            if (i == 0) edge(f, from, next, '0' + d, '0' + d, MU_MANY);
        }
    }
    if (f->b->st == MU_OK) skip(f, base, to);
}

static bool calls(const struct mu_dfa *d)
{
    for (uint32_t e = 0; e < d->n_edge; e++) {
        if (d->edges[e].rule != MU_MANY) return true;
    }
    return false;
}

static void put_combined(struct nfa *f, const struct mu_ex *ex, uint32_t from, uint32_t to)
{
    struct mu_dfa x = {0}, y = {0}, z = {0};
    struct mu_gb *b = f->b;
    if (mu_ex_dfa(b, f->rules, ex->kids[0], &x) == MU_OK && mu_ex_dfa(b, f->rules, ex->kids[1], &y) == MU_OK) {
        if (calls(&x) || calls(&y)) {
            mu_gb_fail(b, MU_EUNSUPPORTED, "a part that calls itself cannot be combined with another condition");
        } else if (mu_dfa_combine(b, &x, &y, ex->kind == MU_EX_BUT, &z) == MU_OK) {
            put_dfa(f, &z, false, from, to);
        }
    }
    mu_dfa_free(&x);
    mu_dfa_free(&y);
    mu_dfa_free(&z);
}

static void put_framed(struct nfa *f, const struct mu_ex *ex, uint32_t from, uint32_t to)
{
    struct mu_dfa d = {0};
    if (mu_ex_dfa(f->b, f->rules, ex->kids[0], &d) == MU_OK) put_dfa(f, &d, true, from, to);
    mu_dfa_free(&d);
}

/* Everything that ex may be leads from `from` to `to` over new nodes. No edge is made that enters `from` or leaves `to`,
 * so what else begins or ends there is not mixed up with it. */
static void put(struct nfa *f, const struct mu_ex *ex, uint32_t from, uint32_t to)
{
    uint32_t at = from;
    if (f->b->st != MU_OK) return;
    switch (ex->kind) {
    case MU_EX_BYTES:
        for (uint32_t i = 0; i < ex->n; i++) {
            uint32_t next = i + 1 < ex->n ? node(f) : to;
            edge(f, at, next, (uint8_t)ex->bytes[i], (uint8_t)ex->bytes[i], MU_MANY);
            at = next;
        }
        if (!ex->n) skip(f, from, to);
        break;
    case MU_EX_CLASS: {
        struct sequence s = {f, from, to};
        for (uint32_t i = 0; i < ex->n; i++) {
            if (!mu_utf8_ranges(ex->ranges[i].lo, ex->ranges[i].hi, put_sequence, &s)) break;
        }
        break;
    }
    case MU_EX_SEQ:
        for (uint32_t i = 0; i < ex->n && f->b->st == MU_OK; i++) {
            uint32_t next = node(f);
            put(f, ex->kids[i], at, next);
            at = next;
        }
        skip(f, at, to);
        break;
    case MU_EX_ALT:
        for (uint32_t i = 0; i < ex->n && f->b->st == MU_OK; i++) put(f, ex->kids[i], from, to);
        break;
    case MU_EX_REPEAT: put_repeat(f, ex, from, to); break;
    case MU_EX_RULE: put_rule(f, ex->n, from, to); break;
    case MU_EX_BOTH:
    case MU_EX_BUT: put_combined(f, ex, from, to); break;
    case MU_EX_FIELDS: put_fields(f, ex, from, to); break;
    case MU_EX_FRAMED: put_framed(f, ex, from, to); break;
    case MU_EX_MULTIPLE: put_multiple(f, ex->min, from, to); break;
    }
}

enum mu_status mu_ex_dfa(struct mu_gb *b, const struct mu_rule_info *rules, const struct mu_ex *ex, struct mu_dfa *out)
{
    struct nfa f = {.b = b, .rules = rules};
    uint32_t start = node(&f), end = node(&f);
    put(&f, ex, start, end);
    if (b->st == MU_OK) mu_dfa_of_nfa(b, &f.a, start, end, out);
    mu_free(f.a.head);
    mu_free(f.a.edges);
    return b->st;
}
