/* From rules to one automaton.
 *
 *   1. what each rule calls; which rules call themselves (Tarjan's components)
 *   2. which may be empty, and which can be finished at all; calls of those that cannot are left out
 *   3. an automaton for each, those it calls first: so what is small is copied into its callers
 *   4. all that the root reaches in one table, nodes that behave alike merged
 *   5. the order in which a state looks up what it calls; a rule that begins with itself has none and is refused */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "model/grammar_part.h"

/* What is copied: anything of COPY_TINY nodes, and what ends within COPY_MAX. Large loops (strings, numbers) are
 * called: their nodes' masks are then worked out once and not for each place of use. */
enum { COPY_TINY = 8, COPY_MAX = 256 };
enum { NOT_CACHED = 8 }; /* steps that a look at one of many rules counts for: it waits for memory */
#define NO_NAME "?"

struct build {
    struct mu_gb *b;
    uint32_t n;
    struct mu_rule_info *info;
    uint32_t *refs, *ref_at, cap_ref; /* who calls whom: rule i calls refs[ref_at[i] … ref_at[i+1]) */
    uint32_t n_ref;
    uint32_t *order; /* rules, called ones first */
    bool *recursive;
    uint32_t n_order;
};

static const char *name_of(const struct mu_gb *b, uint32_t rule)
{
    return b->rules[rule].name;
}

/* ---- 1: calls and components ---- */

static void add_refs(struct build *k, const struct mu_ex *ex)
{
    if (!mu_gb_work(k->b, 1)) return;
    if (ex->kind == MU_EX_RULE) {
        if (k->n_ref == k->cap_ref) {
            uint32_t cap = k->cap_ref * 2 + 64, *p = mu_reallocarray(k->refs, cap, sizeof *p);
            if (!p) {
                mu_gb_fail(k->b, MU_ENOMEM, "no memory to compile a grammar");
                return;
            }
            k->refs = p;
            k->cap_ref = cap;
        }
        k->refs[k->n_ref++] = ex->n;
        return;
    }
    if (ex->kind == MU_EX_BYTES || ex->kind == MU_EX_CLASS || ex->kind == MU_EX_MULTIPLE) return;
    for (uint32_t i = 0; i < ex->n; i++) add_refs(k, ex->kids[i]);
}

/* Tarjan (1972), without recursion: order gets the components' rules, called ones first. */
static void find_order(struct build *k)
{
    struct mu_gb *b = k->b;
    uint32_t *seen = mu_calloc(k->n, sizeof *seen), *low = mu_calloc(k->n, sizeof *low);
    uint32_t *stack = mu_calloc(k->n, sizeof *stack), *path = mu_calloc(k->n, sizeof *path);
    uint32_t *at = mu_calloc(k->n, sizeof *at);
    bool *on = mu_calloc(k->n, sizeof *on);
    uint32_t n_stack = 0, n_path = 0, clock = 0;
    if (!seen || !low || !stack || !path || !at || !on) {
        mu_gb_fail(b, MU_ENOMEM, "no memory to compile a grammar");
        goto done;
    }
    path[n_path++] = b->root;
    while (n_path) {
        uint32_t x = path[n_path - 1];
        if (!seen[x]) {
            seen[x] = low[x] = ++clock;
            stack[n_stack++] = x;
            on[x] = true;
            at[x] = k->ref_at[x];
        }
        if (at[x] < k->ref_at[x + 1]) {
            uint32_t y = k->refs[at[x]++];
            if (!seen[y]) {
                path[n_path++] = y;
            } else if (on[y]) {
                low[x] = seen[y] < low[x] ? seen[y] : low[x];
            }
            if (y == x) k->recursive[x] = true;
            continue;
        }
        n_path--;
        if (n_path) {
            uint32_t up = path[n_path - 1];
            low[up] = low[x] < low[up] ? low[x] : low[up];
        }
        if (low[x] != seen[x]) continue;
        bool several = stack[n_stack - 1] != x;
        for (uint32_t y = MU_MANY; y != x;) {
            y = stack[--n_stack];
            on[y] = false;
            if (several) k->recursive[y] = true;
            k->order[k->n_order++] = y;
        }
    }
done:
    mu_free(seen);
    mu_free(low);
    mu_free(stack);
    mu_free(path);
    mu_free(at);
    mu_free(on);
}

/* ---- 2: empty and possible, as far as can be said without automata (BOTH, BUT: said when theirs are there) ---- */

static bool may(const struct build *k, const struct mu_ex *ex, bool empty)
{
    if (!mu_gb_work(k->b, NOT_CACHED)) return false;
    switch (ex->kind) {
    case MU_EX_BYTES: return !empty || !ex->n;
    case MU_EX_CLASS: return !empty && ex->n;
    case MU_EX_SEQ:
        for (uint32_t i = 0; i < ex->n; i++) {
            if (!may(k, ex->kids[i], empty)) return false;
        }
        return true;
    case MU_EX_ALT:
        for (uint32_t i = 0; i < ex->n; i++) {
            if (may(k, ex->kids[i], empty)) return true;
        }
        return false;
    case MU_EX_REPEAT: return !ex->min || may(k, ex->kids[0], empty);
    case MU_EX_RULE: return empty ? k->info[ex->n].empty : k->info[ex->n].possible;
    case MU_EX_BOTH: return may(k, ex->kids[0], empty) && may(k, ex->kids[1], empty);
    case MU_EX_BUT: return may(k, ex->kids[0], empty) && !(empty && may(k, ex->kids[1], empty));
    case MU_EX_FIELDS:
        for (uint32_t i = 1; i < ex->n; i++) {
            if (ex->required[i] && !may(k, ex->kids[i], empty)) return false;
        }
        return true;
    case MU_EX_MULTIPLE: return !empty;
    case MU_EX_FRAMED: return true; /* of regular expressions, which are in no recursion: the automaton will tell */
    }
    return false;
}

/* To a fixed point over a component: order has its rules side by side, and a whole pass over all rules costs as many
 * passes as components are deep; grammars are small, and steps are counted. */
static void find_may(struct build *k)
{
    for (bool more = true; more && k->b->st == MU_OK;) {
        more = false;
        for (uint32_t i = 0; i < k->n_order; i++) {
            uint32_t r = k->order[i];
            struct mu_rule_info *info = &k->info[r];
            if (!info->empty && may(k, k->b->rules[r].ex, true)) info->empty = more = true;
            if (!info->possible && may(k, k->b->rules[r].ex, false)) info->possible = more = true;
        }
    }
}

/* ---- 3: automata ---- */

static bool loops(const struct mu_dfa *d)
{
    enum { WHITE, GREY, BLACK };
    uint8_t color[COPY_MAX] = {WHITE};
    uint32_t path[COPY_MAX], at[COPY_MAX], n = 0;
    path[n] = 0, at[n++] = d->first[0], color[0] = GREY;
    while (n) {
        uint32_t x = path[n - 1];
        if (at[n - 1] == d->first[x + 1]) {
            color[x] = BLACK, n--;
            continue;
        }
        uint32_t y = d->edges[at[n - 1]++].to;
        if (color[y] == GREY) return true;
        if (color[y] == WHITE) path[n] = y, at[n++] = d->first[y], color[y] = GREY;
    }
    return false;
}

static bool is_small(const struct mu_dfa *d)
{
    return d->n_node <= COPY_TINY || (d->n_node <= COPY_MAX && !loops(d));
}

/* The same automaton without doubles. */
static void merge_alike(struct mu_gb *b, struct mu_dfa *d, uint32_t *named, uint32_t n_named)
{
    uint32_t n = d->n_node, n_class, n_edge = 0;
    if (!n || b->st != MU_OK) return;
    uint32_t *cls = mu_calloc(n, sizeof *cls), *first = mu_calloc((size_t)n + 1, sizeof *first);
    uint32_t *member = mu_calloc(n, sizeof *member), *name = mu_calloc(n, sizeof *name);
    struct mu_edge *edges = mu_calloc((size_t)d->n_edge + 1, sizeof *edges);
    bool *final = mu_calloc(n, sizeof *final);
    if (!cls || !first || !member || !name || !edges || !final) {
        mu_gb_fail(b, MU_ENOMEM, "no memory to compile a grammar");
        goto done;
    }
    b->st = mu_dfa_classes(d, MU_MANY, cls, &n_class, b->err);
    if (b->st != MU_OK) goto done;
    /* classes get numbers in the order of their first nodes: node 0 stays node 0 */
    uint32_t n_name = 0;
    memset(name, 0xFF, n * sizeof *name);
    for (uint32_t i = 0; i < n; i++) {
        if (name[cls[i]] == MU_MANY) member[n_name] = i, name[cls[i]] = n_name++;
    }
    for (uint32_t c = 0; c < n_name; c++) {
        uint32_t i = member[c];
        first[c] = n_edge;
        final[c] = d->final[i];
        for (uint32_t e = d->first[i]; e < d->first[i + 1]; e++) {
            struct mu_edge x = d->edges[e];
            x.to = name[cls[x.to]];
            struct mu_edge *last = n_edge > first[c] ? &edges[n_edge - 1] : NULL;
            if (last && x.rule == MU_MANY && last->rule == MU_MANY && last->to == x.to && last->hi + 1 == x.lo) {
                last->hi = x.hi;
            } else {
                edges[n_edge++] = x;
            }
        }
    }
    first[n_name] = n_edge;
    for (uint32_t i = 0; i < n_named; i++) named[i] = named[i] == MU_MANY ? MU_MANY : name[cls[named[i]]];
    mu_dfa_free(d);
    *d = (struct mu_dfa){.n_node = n_name, .n_edge = n_edge, .first = first, .edges = edges, .final = final};
    first = NULL, edges = NULL, final = NULL;
done:
    mu_free(cls);
    mu_free(first);
    mu_free(member);
    mu_free(name);
    mu_free(edges);
    mu_free(final);
}

static void make_automata(struct build *k)
{
    struct mu_gb *b = k->b;
    uint32_t total = 0;
    for (uint32_t i = 0; i < k->n_order && b->st == MU_OK; i++) {
        uint32_t r = k->order[i];
        struct mu_rule_info *info = &k->info[r];
        if (!info->possible) continue;
        if (mu_ex_dfa(b, k->info, b->rules[r].ex, &info->dfa) != MU_OK) break;
        merge_alike(b, &info->dfa, NULL, 0);
        if (b->st != MU_OK) break;
        info->done = true;
        if (!k->recursive[r]) { /* now it is known */
            info->possible = info->dfa.n_node > 0;
            info->empty = info->possible && info->dfa.final[0];
            info->copied = r != b->root && !b->rules[r].called && (!info->possible || is_small(&info->dfa));
        }
        total += info->dfa.n_node;
        if (total > MU_GR_NODES_MAX) {
            mu_gb_fail(b, MU_ELIMIT,
                       "the grammar needs an automaton of more than %d nodes; use smaller bounds of repetition and "
                       "length",
                       MU_GR_NODES_MAX);
        }
    }
}

/* Whether some text leads from d's start to an end over rules that are known to be possible. */
static bool can_finish(const struct build *k, const struct mu_dfa *d, uint8_t *seen, uint32_t *work)
{
    uint32_t n = 0;
    bool found = false;
    if (!d->n_node || !mu_gb_work(k->b, NOT_CACHED + (uint64_t)d->n_edge)) return false;
    memset(seen, 0, d->n_node);
    seen[0] = 1, work[n++] = 0;
    while (n && !found) {
        uint32_t x = work[--n];
        found = d->final[x];
        for (uint32_t e = d->first[x]; e < d->first[x + 1]; e++) {
            uint32_t rule = d->edges[e].rule, to = d->edges[e].to;
            if (seen[to] || (rule != MU_MANY && !k->info[rule].possible)) continue;
            seen[to] = 1, work[n++] = to;
        }
    }
    return found;
}

/* Conditions combined inside a recursion may leave rules that can't be finished after all; what calls those goes. */
static void drop_impossible(struct build *k)
{
    struct mu_gb *b = k->b;
    uint8_t *seen = mu_calloc(MU_GR_NODES_MAX, 1);
    uint32_t *work = mu_calloc(MU_GR_NODES_MAX, sizeof *work);
    if (!seen || !work) mu_gb_fail(b, MU_ENOMEM, "no memory to compile a grammar");
    for (uint32_t r = 0; r < k->n; r++) k->info[r].possible = false;
    for (bool more = true; more && b->st == MU_OK;) {
        more = false;
        for (uint32_t i = 0; i < k->n_order; i++) {
            struct mu_rule_info *info = &k->info[k->order[i]];
            if (!info->possible && can_finish(k, &info->dfa, seen, work)) info->possible = more = true;
        }
    }
    for (uint32_t i = 0; i < k->n_order && b->st == MU_OK; i++) {
        struct mu_dfa *d = &k->info[k->order[i]].dfa;
        uint32_t n_edge = 0;
        if (!d->n_node) continue;
        for (uint32_t x = 0, begin = 0; x < d->n_node; x++) {
            uint32_t end = d->first[x + 1];
            d->first[x] = n_edge;
            for (uint32_t e = begin; e < end; e++) {
                uint32_t rule = d->edges[e].rule;
                if (rule == MU_MANY || k->info[rule].possible) d->edges[n_edge++] = d->edges[e];
            }
            begin = end;
        }
        d->first[d->n_node] = n_edge;
        if (n_edge == d->n_edge) continue;
        d->n_edge = n_edge;
        mu_dfa_trim(b, d);
    }
    mu_free(seen);
    mu_free(work);
}

/* ---- 4: one table ---- */

static int by_rule(const void *x, const void *y)
{
    const struct mu_edge *a = x, *b = y;
    return a->rule < b->rule ? -1 : a->rule > b->rule;
}

static void join(struct build *k, struct mu_grammar *g)
{
    struct mu_gb *b = k->b;
    uint32_t n_node = 0, n_edge = 0, n_work = 0;
    uint32_t *number = mu_calloc(k->n, sizeof *number), *work = mu_calloc(k->n, sizeof *work);
    if (!number || !work) {
        mu_gb_fail(b, MU_ENOMEM, "no memory to compile a grammar");
        goto done;
    }
    memset(number, 0xFF, k->n * sizeof *number);
    work[n_work++] = b->root;
    number[b->root] = 0;
    for (uint32_t i = 0; i < n_work; i++) { /* rules that are still called */
        const struct mu_dfa *d = &k->info[work[i]].dfa;
        n_node += d->n_node;
        n_edge += d->n_edge;
        for (uint32_t e = 0; e < d->n_edge; e++) {
            uint32_t r = d->edges[e].rule;
            if (r != MU_MANY && number[r] == MU_MANY) number[r] = n_work, work[n_work++] = r;
        }
    }
    struct mu_dfa all = {0};
    all.first = mu_calloc((size_t)n_node + 3, sizeof *all.first);
    all.edges = mu_calloc((size_t)n_edge + 1, sizeof *all.edges);
    all.final = mu_calloc((size_t)n_node + 2, sizeof *all.final);
    g->start = mu_calloc(n_work, sizeof *g->start);
    g->rank = mu_calloc(n_work, sizeof *g->rank);
    g->dfa = all;
    if (!all.first || !all.edges || !all.final || !g->start || !g->rank) {
        mu_gb_fail(b, MU_ENOMEM, "no memory to compile a grammar");
        goto done;
    }
    g->n_rule = n_work;
    for (uint32_t i = 0; i < n_work; i++) {
        const struct mu_dfa *d = &k->info[work[i]].dfa;
        uint32_t base = g->dfa.n_node;
        g->start[i] = base;
        for (uint32_t x = 0; x < d->n_node; x++) {
            g->dfa.final[base + x] = d->final[x];
            for (uint32_t e = d->first[x]; e < d->first[x + 1]; e++) {
                struct mu_edge y = d->edges[e];
                y.to += base;
                if (y.rule != MU_MANY) y.rule = number[y.rule];
                g->dfa.edges[g->dfa.n_edge++] = y;
            }
            g->dfa.first[base + x + 1] = g->dfa.n_edge;
        }
        g->dfa.n_node += d->n_node;
    }
    /* what calls were renamed to is no longer in order: let nodes of two rules be compared */
    for (uint32_t x = 0; x < g->dfa.n_node; x++) {
        uint32_t e = g->dfa.first[x], end = g->dfa.first[x + 1];
        while (e < end && g->dfa.edges[e].rule == MU_MANY) e++;
        if (end > e) qsort(g->dfa.edges + e, end - e, sizeof *g->dfa.edges, by_rule);
    }
    merge_alike(b, &g->dfa, g->start, g->n_rule);
    if (b->st != MU_OK) goto done;
    /* the two nodes beside the automaton */
    n_node = g->dfa.n_node;
    uint32_t *first = mu_reallocarray(g->dfa.first, (size_t)n_node + 3, sizeof *first);
    if (first) g->dfa.first = first;
    bool *final = first ? mu_reallocarray(g->dfa.final, (size_t)n_node + 2, sizeof *final) : NULL;
    if (!final) {
        mu_gb_fail(b, MU_ENOMEM, "no memory to compile a grammar");
        goto done;
    }
    g->dfa.final = final;
    first[n_node + 1] = first[n_node + 2] = first[n_node];
    final[n_node] = final[n_node + 1] = false;
    g->dfa.n_node = n_node + 2;
done:
    mu_free(number);
    mu_free(work);
}

/* ---- 5: ranks, classes of bytes ---- */

static void find_ranks(struct build *k, struct mu_grammar *g)
{
    struct mu_gb *b = k->b;
    uint32_t n = g->n_rule, n_ready = 0, done = 0;
    uint32_t *n_caller = mu_calloc(n, sizeof *n_caller), *ready = mu_calloc(n, sizeof *ready);
    if (!n_caller || !ready) {
        mu_gb_fail(b, MU_ENOMEM, "no memory to compile a grammar");
        goto out;
    }
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t e = g->dfa.first[g->start[i]]; e < g->dfa.first[g->start[i] + 1]; e++) {
            if (g->dfa.edges[e].rule != MU_MANY) n_caller[g->dfa.edges[e].rule]++;
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        if (!n_caller[i]) ready[n_ready++] = i;
    }
    for (; done < n_ready; done++) {
        uint32_t i = ready[done];
        g->rank[i] = done;
        for (uint32_t e = g->dfa.first[g->start[i]]; e < g->dfa.first[g->start[i] + 1]; e++) {
            uint32_t r = g->dfa.edges[e].rule;
            if (r != MU_MANY && !--n_caller[r]) ready[n_ready++] = r;
        }
    }
    if (done == n) goto out;
    /* The rules that remain call one another at their starts. Their names are those of the rules whose starts they are. */
    const char *name = "";
    for (uint32_t r = 0; r < k->n && !*name; r++) {
        const struct mu_dfa *d = &k->info[r].dfa;
        if (!k->recursive[r] || !d->n_node) continue;
        if (!mu_gb_work(b, k->n)) goto out;
        bool *seen = mu_calloc(k->n, sizeof *seen);
        uint32_t *work = mu_calloc(k->n, sizeof *work), n_work = 0;
        if (!seen || !work) {
            mu_free(seen);
            mu_free(work);
            mu_gb_fail(b, MU_ENOMEM, "no memory to compile a grammar");
            goto out;
        }
        work[n_work++] = r;
        for (uint32_t i = 0; i < n_work && !*name; i++) {
            const struct mu_dfa *x = &k->info[work[i]].dfa;
            for (uint32_t e = x->first[0]; e < x->first[1]; e++) {
                uint32_t y = x->edges[e].rule;
                if (y == r) name = *name_of(b, r) ? name_of(b, r) : NO_NAME;
                if (y != MU_MANY && y != r && !seen[y]) seen[y] = true, work[n_work++] = y;
            }
        }
        mu_free(seen);
        mu_free(work);
    }
    if (!strcmp(name, NO_NAME)) {
        mu_gb_fail(b, MU_EUNSUPPORTED,
                   "a schema refers to itself with nothing in between; give it an alternative less");
        goto out;
    }
    mu_gb_fail(b, MU_EUNSUPPORTED,
               "rule '%.100s' begins with itself (left recursion); turn it round: a ::= b | a c becomes a ::= b c*",
               name);
out:
    mu_free(n_caller);
    mu_free(ready);
}

static void find_byte_classes(struct mu_grammar *g)
{
    bool cut[257] = {false};
    int c = -1;
    cut[0] = true;
    for (uint32_t e = 0; e < g->dfa.n_edge; e++) {
        const struct mu_edge *x = &g->dfa.edges[e];
        if (x->rule == MU_MANY) cut[x->lo] = cut[x->hi + 1] = true;
    }
    for (int i = 0; i < 256; i++) {
        if (cut[i]) g->class_byte[++c] = (uint8_t)i;
        g->byte_class[i] = (uint8_t)c;
    }
    g->n_byte_class = (uint32_t)c + 1;
}

static void check_defined(const struct build *k)
{
    struct mu_gb *b = k->b;
    for (uint32_t r = 0; r < b->n_rule && b->st == MU_OK; r++) {
        if (!b->rules[r].ex) mu_gb_fail(b, MU_EFORMAT, "rule '%.100s' is used but not defined", name_of(b, r));
    }
}

enum mu_status mu_gb_build(struct mu_gb *b, struct mu_grammar **g_out)
{
    struct build k = {.b = b, .n = b->n_rule};
    struct mu_grammar *g = NULL;
    check_defined(&k);
    if (b->st != MU_OK) return b->st;
    k.info = mu_calloc(k.n, sizeof *k.info);
    k.ref_at = mu_calloc((size_t)k.n + 1, sizeof *k.ref_at);
    k.order = mu_calloc(k.n, sizeof *k.order);
    k.recursive = mu_calloc(k.n, sizeof *k.recursive);
    g = mu_calloc(1, sizeof *g);
    if (!k.info || !k.ref_at || !k.order || !k.recursive || !g) {
        mu_gb_fail(b, MU_ENOMEM, "no memory to compile a grammar");
        goto done;
    }
    for (uint32_t r = 0; r < k.n; r++) {
        k.ref_at[r] = k.n_ref;
        add_refs(&k, b->rules[r].ex);
    }
    k.ref_at[k.n] = k.n_ref;
    if (b->st == MU_OK) find_order(&k);
    if (b->st == MU_OK) find_may(&k);
    if (b->st == MU_OK) make_automata(&k);
    if (b->st == MU_OK) drop_impossible(&k);
    if (b->st == MU_OK && !k.info[b->root].dfa.n_node) {
        mu_gb_fail(b, MU_EINVAL, "no text can satisfy this: its conditions contradict each other, or it never ends");
    }
    if (b->st == MU_OK) join(&k, g);
    if (b->st == MU_OK) find_ranks(&k, g);
    if (b->st == MU_OK) find_byte_classes(g);
done:
    for (uint32_t r = 0; k.info && r < k.n; r++) mu_dfa_free(&k.info[r].dfa);
    mu_free(k.info);
    mu_free(k.refs);
    mu_free(k.ref_at);
    mu_free(k.order);
    mu_free(k.recursive);
    if (b->st != MU_OK) {
        mu_grammar_free(g);
        return b->st;
    }
    g->bytes = sizeof *g + (size_t)g->dfa.n_node * 5 + (size_t)g->dfa.n_edge * sizeof *g->dfa.edges + g->n_rule * 8u;
    *g_out = g;
    return MU_OK;
}
