/* Nondeterministic automata to deterministic ones: each node of the new is a set of nodes of the old. A rule that is
 * called is a letter like a byte. Sets are kept without the nodes that only have edges that read nothing, so that equal
 * ones meet. */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "model/grammar_part.h"

void mu_dfa_free(struct mu_dfa *d)
{
    mu_free(d->first);
    mu_free(d->edges);
    mu_free(d->final);
    memset(d, 0, sizeof *d);
}

/* ---- a growing automaton ---- */

struct growing {
    struct mu_gb *b;
    struct mu_dfa *d;
    uint32_t cap_node, cap_edge;
};

static bool grow(struct mu_gb *b, void *at, uint32_t *cap, uint32_t n, size_t size)
{
    void **p = at;
    if (n < *cap) return true;
    uint32_t more = *cap * 2 + 64 > n ? *cap * 2 + 64 : n + 64;
    void *q = mu_reallocarray(*p, more, size);
    if (!q) {
        mu_gb_fail(b, MU_ENOMEM, "no memory to compile a grammar");
        return false;
    }
    *p = q;
    *cap = more;
    return true;
}

/* Nodes are finished in order, so edges lie in order. */
static bool add_edge(struct growing *g, struct mu_edge e)
{
    struct mu_dfa *d = g->d;
    if (d->n_edge && d->n_edge > d->first[d->n_node - 1]) { /* one edge where two would touch */
        struct mu_edge *last = &d->edges[d->n_edge - 1];
        if (e.rule == MU_MANY && last->rule == MU_MANY && last->to == e.to && last->hi + 1 == e.lo) {
            last->hi = e.hi;
            return true;
        }
    }
    if (!grow(g->b, &d->edges, &g->cap_edge, d->n_edge, sizeof *d->edges)) return false;
    d->edges[d->n_edge++] = e;
    return true;
}

/* Begins node number n_node; its edges follow. */
static bool add_node(struct growing *g, bool final)
{
    struct mu_dfa *d = g->d;
    if (d->n_node == MU_GR_NODES_MAX) {
        mu_gb_fail(g->b, MU_ELIMIT,
                   "the grammar needs an automaton of more than %d nodes; use smaller bounds of repetition and length",
                   MU_GR_NODES_MAX);
        return false;
    }
    if (d->n_node + 1 >= g->cap_node) {
        uint32_t cap = g->cap_node * 2 + 64;
        uint32_t *first = mu_reallocarray(d->first, cap, sizeof *first);
        if (first) d->first = first;
        bool *f = first ? mu_reallocarray(d->final, cap, sizeof *f) : NULL;
        if (!f) {
            mu_gb_fail(g->b, MU_ENOMEM, "no memory to compile a grammar");
            return false;
        }
        d->final = f;
        g->cap_node = cap;
    }
    d->final[d->n_node] = final;
    d->first[d->n_node++] = d->n_edge;
    d->first[d->n_node] = d->n_edge;
    return true;
}

static void close_node(struct growing *g)
{
    g->d->first[g->d->n_node] = g->d->n_edge;
}

/* ---- sets of nodes ---- */

struct subsets {
    struct mu_gb *b;
    const struct mu_nfa *nfa;
    uint32_t end;
    uint32_t *pool, n_pool, cap_pool; /* all sets, one after another */
    uint32_t *at, n_set, cap_at;      /* [n_set + 1] where each begins */
    bool *final;
    uint32_t cap_final;
    uint32_t *slots, n_slot;        /* set + 1; 0: free */
    uint32_t *mark, stamp;          /* [nfa nodes] */
    uint32_t *stack, *list, n_list; /* [nfa nodes] */
    bool list_final;
};

/* Adds node and what is reached from it without reading. */
static void visit(struct subsets *s, uint32_t node)
{
    uint32_t n = 0, steps = 0;
    if (s->mark[node] == s->stamp) return;
    s->mark[node] = s->stamp;
    s->stack[n++] = node;
    while (n) {
        uint32_t x = s->stack[--n];
        bool reads = false;
        steps++;
        if (x == s->end) s->list_final = true;
        for (uint32_t e = s->nfa->head[x]; e != MU_MANY; e = s->nfa->edges[e].next) {
            const struct mu_nfa_edge *y = &s->nfa->edges[e];
            steps++;
            if (y->lo != MU_NFA_EPS) {
                reads = true;
            } else if (s->mark[y->to] != s->stamp) {
                s->mark[y->to] = s->stamp;
                s->stack[n++] = y->to;
            }
        }
        if (reads) s->list[s->n_list++] = x;
    }
    mu_gb_work(s->b, steps);
}

static int by_number(const void *x, const void *y)
{
    uint32_t a = *(const uint32_t *)x, b = *(const uint32_t *)y;
    return a < b ? -1 : a > b;
}

static uint32_t hash_set(const uint32_t *p, uint32_t n, bool final)
{
    uint64_t h = final ? 0x9E3779B97F4A7C15u : 0xC2B2AE3D27D4EB4Fu;
    for (uint32_t i = 0; i < n; i++) h = (h ^ p[i]) * 0x9FB21C651E98DF25u, h ^= h >> 29;
    return (uint32_t)(h ^ h >> 32);
}

static bool rehash(struct subsets *s)
{
    uint32_t n = s->n_slot ? s->n_slot * 2 : 256;
    uint32_t *slots = mu_calloc(n, sizeof *slots);
    if (!slots) {
        mu_gb_fail(s->b, MU_ENOMEM, "no memory to compile a grammar");
        return false;
    }
    for (uint32_t i = 0; i < s->n_set; i++) {
        uint32_t h = hash_set(s->pool + s->at[i], s->at[i + 1] - s->at[i], s->final[i]) & (n - 1);
        while (slots[h]) h = (h + 1) & (n - 1);
        slots[h] = i + 1;
    }
    mu_free(s->slots);
    s->slots = slots;
    s->n_slot = n;
    return true;
}

/* The number of the set in list; MU_MANY on failure. */
static uint32_t intern(struct subsets *s)
{
    uint32_t n = s->n_list;
    if (s->n_set * 2 >= s->n_slot && !rehash(s)) return MU_MANY;
    if (n > 1) qsort(s->list, n, sizeof *s->list, by_number);
    if (!mu_gb_work(s->b, n)) return MU_MANY;
    uint32_t h = hash_set(s->list, n, s->list_final) & (s->n_slot - 1);
    for (; s->slots[h]; h = (h + 1) & (s->n_slot - 1)) {
        uint32_t i = s->slots[h] - 1;
        if (s->at[i + 1] - s->at[i] == n && s->final[i] == s->list_final &&
            (!n || !memcmp(s->pool + s->at[i], s->list, n * sizeof *s->list)))
            return i;
    }
    if (s->n_set == MU_GR_NODES_MAX) {
        mu_gb_fail(s->b, MU_ELIMIT,
                   "the grammar needs an automaton of more than %d nodes; use smaller bounds of repetition and length",
                   MU_GR_NODES_MAX);
        return MU_MANY;
    }
    if (n > (1u << 26) - s->n_pool) {
        mu_gb_work(s->b, MU_GR_WORK_MAX);
        return MU_MANY;
    }
    if (!grow(s->b, &s->pool, &s->cap_pool, s->n_pool + n, sizeof *s->pool) ||
        !grow(s->b, &s->at, &s->cap_at, s->n_set + 1, sizeof *s->at) ||
        !grow(s->b, &s->final, &s->cap_final, s->n_set, sizeof *s->final))
        return MU_MANY;
    if (n) memcpy(s->pool + s->n_pool, s->list, n * sizeof *s->list);
    s->n_pool += n;
    s->final[s->n_set] = s->list_final;
    s->at[s->n_set] = s->n_pool - n;
    s->at[s->n_set + 1] = s->n_pool;
    s->slots[h] = s->n_set + 1;
    return s->n_set++;
}

static void list_begin(struct subsets *s)
{
    if (!++s->stamp) s->stamp = 1; /* 4 billion lists are beyond MU_GR_WORK_MAX */
    s->n_list = 0;
    s->list_final = false;
}

static int by_rule(const void *x, const void *y)
{
    const struct mu_nfa_edge *a = x, *b = y;
    return a->rule < b->rule ? -1 : a->rule > b->rule;
}

/* The edges of set i. `out` holds the edges of its nodes: bytes first. */
static bool step(struct subsets *s, struct growing *g, struct mu_nfa_edge *out, uint32_t n_byte, uint32_t n)
{
    bool cut[257] = {false};
    for (uint32_t i = 0; i < n_byte; i++) cut[out[i].lo] = cut[out[i].hi + 1] = true;
    for (int lo = 0, hi; lo < 256; lo = hi) {
        for (hi = lo + 1; hi < 256 && !cut[hi]; hi++) {}
        list_begin(s);
        bool any = false;
        for (uint32_t i = 0; i < n_byte; i++) {
            if (out[i].lo > lo || out[i].hi < lo) continue;
            any = true;
            visit(s, out[i].to);
        }
        if (!mu_gb_work(s->b, n_byte)) return false;
        if (!any) continue;
        uint32_t to = intern(s);
        if (to == MU_MANY || !add_edge(g, (struct mu_edge){to, MU_MANY, (uint8_t)lo, (uint8_t)(hi - 1)})) return false;
    }
    if (n > n_byte) qsort(out + n_byte, n - n_byte, sizeof *out, by_rule);
    for (uint32_t i = n_byte, j; i < n; i = j) {
        list_begin(s);
        for (j = i; j < n && out[j].rule == out[i].rule; j++) visit(s, out[j].to);
        uint32_t to = intern(s);
        if (to == MU_MANY || !add_edge(g, (struct mu_edge){to, out[i].rule, 0, 0})) return false;
    }
    return true;
}

static bool run(struct subsets *s, struct growing *g)
{
    struct mu_nfa_edge *out = NULL;
    uint32_t cap_out = 0;
    bool ok = false;
    for (uint32_t i = 0; i < s->n_set; i++) {
        uint32_t n = 0, n_byte = 0;
        if (!add_node(g, s->final[i])) goto done;
        for (int calls = 0; calls < 2; calls++) {
            for (uint32_t k = s->at[i]; k < s->at[i + 1]; k++) {
                for (uint32_t e = s->nfa->head[s->pool[k]]; e != MU_MANY; e = s->nfa->edges[e].next) {
                    const struct mu_nfa_edge *y = &s->nfa->edges[e];
                    if (y->lo == MU_NFA_EPS || (y->rule != MU_MANY) != calls) continue;
                    if (!grow(s->b, &out, &cap_out, n, sizeof *out)) goto done;
                    out[n++] = *y;
                }
            }
            if (!calls) n_byte = n;
        }
        if (!mu_gb_work(s->b, n) || !step(s, g, out, n_byte, n)) goto done;
        close_node(g);
    }
    ok = true;
done:
    mu_free(out);
    return ok;
}

enum mu_status mu_dfa_of_nfa(struct mu_gb *b, const struct mu_nfa *nfa, uint32_t start, uint32_t end,
                             struct mu_dfa *out)
{
    struct mu_dfa d = {0};
    struct growing g = {.b = b, .d = &d};
    struct subsets s = {.b = b, .nfa = nfa, .end = end};
    s.mark = mu_calloc(nfa->n_node, sizeof *s.mark);
    s.stack = mu_reallocarray(NULL, nfa->n_node, sizeof *s.stack);
    s.list = mu_reallocarray(NULL, nfa->n_node, sizeof *s.list);
    if (!s.mark || !s.stack || !s.list) mu_gb_fail(b, MU_ENOMEM, "no memory to compile a grammar");
    if (b->st == MU_OK) {
        list_begin(&s);
        visit(&s, start);
        if (intern(&s) != MU_MANY && run(&s, &g)) mu_dfa_trim(b, &d);
    }
    mu_free(s.pool);
    mu_free(s.at);
    mu_free(s.final);
    mu_free(s.slots);
    mu_free(s.mark);
    mu_free(s.stack);
    mu_free(s.list);
    if (b->st == MU_OK) {
        *out = d;
    } else {
        mu_dfa_free(&d);
    }
    return b->st;
}

/* ---- two at once ---- */

enum { DEAD = UINT32_MAX };

/* Where byte leads to, and *hi becomes the last that leads there. *edge, of the node's, goes along with the bytes. */
static uint32_t next_of(const struct mu_dfa *d, uint32_t *edge, uint32_t end, int byte, int *hi)
{
    while (*edge < end && d->edges[*edge].hi < byte) ++*edge;
    if (*edge == end) return DEAD;
    const struct mu_edge *x = &d->edges[*edge];
    int last = byte < x->lo ? x->lo - 1 : x->hi;
    *hi = *hi < last ? *hi : last;
    return byte < x->lo ? DEAD : x->to;
}

struct pairs {
    struct mu_gb *b;
    uint32_t (*p)[2], n, cap;
    uint32_t *slots, n_slot;
};

static uint32_t pair(struct pairs *s, uint32_t x, uint32_t y)
{
    if (s->n * 2 >= s->n_slot) {
        uint32_t n = s->n_slot ? s->n_slot * 2 : 256, *slots = mu_calloc(n, sizeof *slots);
        if (!slots) {
            mu_gb_fail(s->b, MU_ENOMEM, "no memory to compile a grammar");
            return MU_MANY;
        }
        for (uint32_t i = 0; i < s->n; i++) {
            uint32_t h = hash_set(s->p[i], 2, true) & (n - 1);
            while (slots[h]) h = (h + 1) & (n - 1);
            slots[h] = i + 1;
        }
        mu_free(s->slots);
        s->slots = slots;
        s->n_slot = n;
    }
    uint32_t key[2] = {x, y}, h = hash_set(key, 2, true) & (s->n_slot - 1);
    for (; s->slots[h]; h = (h + 1) & (s->n_slot - 1)) {
        uint32_t i = s->slots[h] - 1;
        if (s->p[i][0] == x && s->p[i][1] == y) return i;
    }
    if (!grow(s->b, &s->p, &s->cap, s->n, sizeof *s->p)) return MU_MANY;
    s->p[s->n][0] = x;
    s->p[s->n][1] = y;
    s->slots[h] = s->n + 1;
    return s->n++;
}

enum mu_status mu_dfa_combine(struct mu_gb *b, const struct mu_dfa *x, const struct mu_dfa *y, bool but,
                              struct mu_dfa *out)
{
    struct mu_dfa d = {0};
    struct growing g = {.b = b, .d = &d};
    struct pairs s = {.b = b};
    if (x->n_node && (y->n_node || but) && b->st == MU_OK) pair(&s, 0, y->n_node ? 0 : DEAD);
    for (uint32_t i = 0; i < s.n && b->st == MU_OK; i++) {
        uint32_t p = s.p[i][0], q = s.p[i][1];
        bool second = q != DEAD && y->final[q];
        if (!add_node(&g, x->final[p] && second != but)) break;
        uint32_t e = x->first[p], end = x->first[p + 1];
        uint32_t e_y = q != DEAD ? y->first[q] : 0, end_y = q != DEAD ? y->first[q + 1] : 0;
        if (!mu_gb_work(b, 1u + end - e + end_y - e_y)) break;
        for (int lo = 0, hi; lo < 256 && b->st == MU_OK; lo = hi + 1) {
            hi = 255;
            uint32_t to = next_of(x, &e, end, lo, &hi), to_y = next_of(y, &e_y, end_y, lo, &hi);
            if (to == DEAD || (to_y == DEAD && !but)) continue;
            uint32_t k = pair(&s, to, to_y);
            if (k != MU_MANY) add_edge(&g, (struct mu_edge){k, MU_MANY, (uint8_t)lo, (uint8_t)hi});
        }
        close_node(&g);
    }
    if (b->st == MU_OK && d.n_node) mu_dfa_trim(b, &d);
    mu_free(s.p);
    mu_free(s.slots);
    if (b->st == MU_OK) {
        *out = d;
    } else {
        mu_dfa_free(&d);
    }
    return b->st;
}

/* ---- trimming ---- */

enum mu_status mu_dfa_trim(struct mu_gb *b, struct mu_dfa *d)
{
    uint32_t n = d->n_node, kept = 0, n_edge = 0, n_work = 0;
    if (!mu_gb_work(b, (uint64_t)n + d->n_edge)) return b->st;
    uint32_t *back = mu_calloc((size_t)n + 1, sizeof *back), *from = mu_calloc((size_t)d->n_edge + 1, sizeof *from);
    uint32_t *work = mu_calloc((size_t)n + 1, sizeof *work), *name = mu_calloc((size_t)n + 1, sizeof *name);
    if (!back || !from || !work || !name) {
        mu_gb_fail(b, MU_ENOMEM, "no memory to compile a grammar");
        goto done;
    }
    /* who leads to whom, turned round */
    for (uint32_t e = 0; e < d->n_edge; e++) back[d->edges[e].to]++;
    for (uint32_t i = 0, sum = 0; i <= n; i++) {
        sum += back[i];
        back[i] = sum;
    }
    for (uint32_t i = n; i-- > 0;) {
        for (uint32_t e = d->first[i]; e < d->first[i + 1]; e++) from[--back[d->edges[e].to]] = i;
    }
    for (uint32_t i = 0; i < n; i++) {
        if (d->final[i]) name[i] = 1, work[n_work++] = i;
    }
    while (n_work) {
        uint32_t x = work[--n_work];
        uint32_t end = x + 1 < n ? back[x + 1] : d->n_edge;
        for (uint32_t e = back[x]; e < end; e++) {
            if (!name[from[e]]) name[from[e]] = 1, work[n_work++] = from[e];
        }
    }
    if (!n || !name[0]) {
        mu_dfa_free(d);
        goto done;
    }
    /* All nodes are reached: automata are built from their starts. But without the dead ones some are not. */
    memset(work, 0, ((size_t)n + 1) * sizeof *work);
    from[0] = 0;
    uint8_t *reached = mu_calloc((size_t)n + 1, 1);
    if (!reached) {
        mu_gb_fail(b, MU_ENOMEM, "no memory to compile a grammar");
        goto done;
    }
    n_work = 0;
    work[n_work++] = 0;
    reached[0] = 1;
    while (n_work) {
        uint32_t x = work[--n_work];
        for (uint32_t e = d->first[x]; e < d->first[x + 1]; e++) {
            uint32_t to = d->edges[e].to;
            if (name[to] && !reached[to]) reached[to] = 1, work[n_work++] = to;
        }
    }
    for (uint32_t i = 0; i < n; i++) name[i] = reached[i] ? kept++ : MU_MANY;
    mu_free(reached);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t begin = d->first[i], end = d->first[i + 1];
        if (name[i] == MU_MANY) continue;
        d->first[name[i]] = n_edge;
        d->final[name[i]] = d->final[i];
        for (uint32_t e = begin; e < end; e++) {
            if (name[d->edges[e].to] == MU_MANY) continue;
            d->edges[n_edge] = d->edges[e];
            d->edges[n_edge++].to = name[d->edges[e].to];
        }
    }
    d->first[kept] = n_edge;
    d->n_node = kept;
    d->n_edge = n_edge;
done:
    mu_free(back);
    mu_free(from);
    mu_free(work);
    mu_free(name);
    return b->st;
}
