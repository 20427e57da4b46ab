/* Which tokens may come next.
 *
 * The question is asked of the trie of all tokens: a walk in which every node has a state, and where the state is dead
 * the whole subtree is left out. Exact, and for a state like "inside a string", where nearly every token is allowed,
 * half a million steps: a millisecond or two. So the answer is taken apart (Dong et al., XGrammar, arXiv:2411.15100):
 *
 *   1. A mask is kept for the last states that were costly: within a string, say, the state stays the same.
 *   2. Most of a walk does not ask what comes behind the rule it is in. So for a node of the automaton two things are
 *      worked out once, with nothing known about its context: the tokens that are read within the rule; and the spans
 *      of the trie that lie behind an end of the rule. A mask is then the first, and a walk over the second alone.
 *   3. Where any text of some sort can be read, of plain characters or of letters, most tokens are known by what they are
 *      made of and how long they are, and only the others are walked (constraint_run.c).
 *   4. Nodes that no token can tell apart share that: in a string of at most 1,000 characters, the first 900 or so, as
 *      tokens are short (grammar_refine.c, with as many rounds as the longest token has bytes).
 *
 * What is kept is only ever a memory of a walk, so a mask does not depend on what was asked before. */
#include <string.h>

#include "base/alloc.h"
#include "model/constraint_part.h"

enum {
    IDS_MAX = 1024, /* longer lists of tokens are kept as masks */
    SPAN_GAP = 8,   /* spans this near are one */
    COSTLY = 256,   /* visits that make a mask worth keeping */
    KEPT_BYTES = 4 << 20,
    KEPT_MAX = 256,
    CALL_BYTES = 64 << 20, /* what one call may take beside what is kept */
    SMALL = 8,             /* subtrees that are walked rather than looked at */
    PLACES_LOCAL = 16,     /* a state of more places is walked whole */
};

static void allow_node(const struct mu_constraint_vocab *v, const struct mu_trie_node *x, uint32_t *words)
{
    for (int32_t id = x->id; id >= 0; id = v->same[id]) mu_mask_allow(words, id);
}

static enum mu_status nomem(struct mu_err *err)
{
    return mu_fail(err, MU_ENOMEM, "no memory for a mask of allowed tokens");
}

/* ---- walks ---- */

static void allow_below(struct mu_masker *m, uint32_t i, uint32_t *words)
{
    const struct mu_constraint_vocab *v = m->v;
    uint32_t end = v->below[v->nodes[i].end].before;
    for (uint32_t k = v->below[i].before; k < end; k++) mu_mask_allow(words, v->order[k]);
    m->n_visit += 1 + (end - v->below[i].before) / 8;
}

/* The state above trie node i, from state at the root. path[d] is the state at the node of depth d whose number is
 * path_node[d], as far as the last walk went. Where it is dead, *skip_out is where the dead subtree ends. */
static uint32_t descend(struct mu_masker *m, uint32_t i, uint32_t *skip_out)
{
    const struct mu_trie_node *nodes = m->v->nodes;
    uint32_t n = 0, at = nodes[i].parent;
    while (m->path_node[nodes[at].depth] != at) m->above[n++] = at, at = nodes[at].parent;
    uint32_t state = m->path[nodes[at].depth];
    if (state == MU_STATE_DEAD) *skip_out = nodes[at].end;
    while (n && state != MU_STATE_DEAD) {
        const struct mu_trie_node *x = &nodes[at = m->above[--n]];
        m->n_visit++;
        state = mu_states_next(&m->states, state, x->byte);
        if (state == MU_STATE_FAIL) return state;
        m->path[x->depth] = state;
        m->path_node[x->depth] = at;
        if (state == MU_STATE_DEAD) *skip_out = x->end;
    }
    return state;
}

/* Tokens of the span that can be read from `state`. */
static bool walk_span(struct mu_masker *m, struct mu_span span, uint32_t *words)
{
    const struct mu_trie_node *nodes = m->v->nodes;
    for (uint32_t i = span.from; i < span.to;) {
        uint32_t skip = 0, above = descend(m, i, &skip);
        if (above == MU_STATE_FAIL) return false;
        if (above == MU_STATE_DEAD) {
            i = skip;
            continue;
        }
        /* below the node above i no more descending is needed */
        uint32_t end = nodes[nodes[i].parent].end < span.to ? nodes[nodes[i].parent].end : span.to;
        while (i < end) {
            const struct mu_trie_node *x = &nodes[i];
            int all = x->end <= end && x->end - i >= SMALL ? mu_run_takes_all(m, m->path[x->depth - 1], i) : 0;
            if (all < 0) return false;
            if (all) {
                allow_below(m, i, words);
                i = x->end;
                continue;
            }
            m->n_visit++;
            uint32_t next = mu_states_next(&m->states, m->path[x->depth - 1], x->byte);
            if (next == MU_STATE_FAIL) return false;
            m->path[x->depth] = next;
            m->path_node[x->depth] = i;
            if (next == MU_STATE_DEAD) {
                i = x->end;
                continue;
            }
            if (x->id >= 0) allow_node(m->v, x, words);
            i++;
        }
    }
    return true;
}

static void begin_walk(struct mu_masker *m, uint32_t state)
{
    for (uint32_t d = 1; d <= m->v->depth_max; d++) m->path_node[d] = MU_MANY;
    m->path[0] = state;
    m->path_node[0] = 0;
}

static bool walk_spans(struct mu_masker *m, uint32_t state, const struct mu_span *spans, uint32_t n, uint32_t *words)
{
    begin_walk(m, state);
    for (uint32_t i = 0; i < n; i++) {
        if (!walk_span(m, spans[i], words)) return false;
    }
    return true;
}

/* ---- what a node allows whatever its context ---- */

struct spans {
    struct mu_span *p;
    uint32_t n, cap;
};

static bool span_add(struct spans *s, uint32_t from, uint32_t to)
{
    if (s->n && from < s->p[s->n - 1].to + SPAN_GAP) {
        if (to > s->p[s->n - 1].to) s->p[s->n - 1].to = to;
        return true;
    }
    if (s->n == s->cap) {
        uint32_t cap = s->cap * 2 + 16;
        struct mu_span *p = mu_reallocarray(s->p, cap, sizeof *p);
        if (!p) return false;
        s->p = p;
        s->cap = cap;
    }
    s->p[s->n++] = (struct mu_span){from, to};
    return true;
}

/* Tokens of a trie that are read from `state` within its rule; node_of: what its nodes are in the vocabulary's, NULL: the
 * same. */
static enum mu_status walk_trie(struct mu_masker *m, uint32_t state, const struct mu_trie_node *nodes, uint32_t n_node,
                                const uint32_t *node_of, uint32_t *words, struct spans *spans, struct mu_err *err)
{
    struct mu_states *s = &m->states;
    begin_walk(m, state);
    for (uint32_t i = 1; i < n_node;) {
        const struct mu_trie_node *x = &nodes[i];
        uint32_t above = m->path[x->depth - 1], at = node_of ? node_of[i] : i;
        int all = x->end - i < SMALL ? 0 : mu_run_takes_all(m, above, at);
        if (all < 0) return s->st;
        if (all) {
            allow_below(m, at, words);
            i = x->end;
            continue;
        }
        m->n_visit++;
        uint32_t next = mu_states_next(s, above, x->byte);
        if (next == MU_STATE_FAIL) return s->st;
        m->path[x->depth] = next;
        if (next == MU_STATE_DEAD) {
            i = x->end;
            continue;
        }
        if (x->id >= 0) allow_node(m->v, x, words);
        uint32_t end = m->v->nodes[at].end;
        if (s->states[next].pops && end > at + 1 && !span_add(spans, at + 1, end)) return nomem(err);
        i = s->states[next].goes_on ? i + 1 : x->end;
    }
    return MU_OK;
}

static enum mu_status walk_local(struct mu_masker *m, uint32_t node, uint32_t *words, struct spans *spans,
                                 struct mu_err *err)
{
    const struct mu_sort *sort;
    uint32_t state = mu_states_local(&m->states, node);
    if (state == MU_STATE_FAIL) return m->states.st;
    enum mu_status st = mu_sort_find(m, state, words, &sort, err);
    if (st != MU_OK) return st;
    if (sort) return walk_trie(m, state, sort->nodes, sort->n_node, sort->node_of, words, spans, err);
    return walk_trie(m, state, m->v->nodes, m->v->n_node, NULL, words, spans, err);
}

static void free_local(struct mu_masker *m, uint32_t c)
{
    struct mu_local *x = m->locals[c];
    if (!x) return;
    m->local_bytes -= x->bytes;
    mu_free(x->words);
    mu_free(x->ids);
    mu_free(x->spans);
    mu_free(x);
    m->locals[c] = NULL;
}

static enum mu_status make_local(struct mu_masker *m, uint32_t node, uint32_t c, struct mu_err *err)
{
    struct mu_local *x = mu_calloc(1, sizeof *x);
    struct spans spans = {0};
    if (!x) return nomem(err);
    m->locals[c] = x;
    memset(m->scratch, 0, m->n_word * sizeof *m->scratch);
    enum mu_status st = walk_local(m, node, m->scratch, &spans, err);
    x->spans = spans.p;
    x->n_span = spans.n;
    for (size_t i = 0; i < m->n_word; i++) x->n_id += (uint32_t)__builtin_popcount(m->scratch[i]);
    bool as_ids = x->n_id <= IDS_MAX && x->n_id <= m->n_word;
    if (st == MU_OK && as_ids) {
        x->ids = mu_reallocarray(NULL, x->n_id + 1, sizeof *x->ids);
        if (!x->ids) st = nomem(err);
        uint32_t n = 0;
        for (size_t i = 0; st == MU_OK && i < m->n_word; i++) {
            for (uint32_t w = m->scratch[i]; w; w &= w - 1)
                x->ids[n++] = (int32_t)(i * 32 + (uint32_t)__builtin_ctz(w));
        }
    } else if (st == MU_OK) {
        x->words = mu_reallocarray(NULL, m->n_word, sizeof *x->words);
        if (x->words) {
            memcpy(x->words, m->scratch, m->n_word * sizeof *x->words);
        } else {
            st = nomem(err);
        }
    }
    x->bytes =
        sizeof *x + x->n_span * sizeof *x->spans + (as_ids ? x->n_id * sizeof *x->ids : m->n_word * sizeof *x->words);
    m->local_bytes += x->bytes;
    if (st != MU_OK) free_local(m, c);
    return st;
}

static void add_local(struct mu_masker *m, const struct mu_local *x, uint32_t *words)
{
    if (x->words) {
        for (size_t i = 0; i < m->n_word; i++) words[i] |= x->words[i];
    } else {
        for (uint32_t i = 0; i < x->n_id; i++) mu_mask_allow(words, x->ids[i]);
    }
}

/* ---- masks ---- */

static enum mu_status make_mask(struct mu_masker *m, uint32_t state, uint32_t *words, struct mu_err *err)
{
    struct mu_states *s = &m->states;
    struct mu_span all = {1, m->v->n_node};
    uint32_t n = s->states[state].n;
    if (n > PLACES_LOCAL) return walk_spans(m, state, &all, 1, words) ? MU_OK : s->st;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t node = s->pool[s->states[state].at + i].node, c = m->class_of[node];
        if (node >= mu_gr_accept(m->g)) continue;
        if (m->local_bytes > m->max_bytes / 2) {
            for (uint32_t k = 0; k < m->n_class; k++) free_local(m, k);
        }
        if (!m->locals[c]) {
            enum mu_status st = make_local(m, node, c, err);
            if (st != MU_OK) return st;
        }
        add_local(m, m->locals[c], words);
        if (!walk_spans(m, state, m->locals[c]->spans, m->locals[c]->n_span, words)) return s->st;
    }
    return MU_OK;
}

enum mu_status mu_masker_mask(struct mu_masker *m, uint32_t state, uint32_t *words, struct mu_err *err)
{
    struct mu_kept_mask *k = m->n_kept ? &m->kept[state % m->n_kept] : NULL;
    if (k && k->state == state) {
        memcpy(words, k->words, m->n_word * sizeof *words);
        return MU_OK;
    }
    memset(words, 0, m->n_word * sizeof *words);
    m->n_visit = 0;
    enum mu_status st = make_mask(m, state, words, err);
    if (st != MU_OK) return st;
    if (m->states.states[state].accepts) {
        for (uint32_t i = 0; i < m->v->n_end; i++) mu_mask_allow(words, m->v->ends[i]);
    }
    if (!k || m->n_visit < COSTLY) return MU_OK;
    if (!k->words) k->words = mu_reallocarray(NULL, m->n_word, sizeof *k->words);
    if (!k->words) return MU_OK; /* not kept, then */
    memcpy(k->words, words, m->n_word * sizeof *words);
    k->state = state;
    return MU_OK;
}

/* ---- life ---- */

enum mu_status mu_masker_collect(struct mu_masker *m, struct mu_err *err)
{
    uint32_t n = 0;
    if (m->states.bytes < m->next_collect) return MU_OK;
    for (struct mu_constraint *c = m->constraints; c; c = c->next) n++;
    uint32_t **live = mu_calloc((size_t)n + 1, sizeof *live);
    if (!live) return nomem(err);
    n = 0;
    for (struct mu_constraint *c = m->constraints; c; c = c->next) live[n++] = &c->state;
    enum mu_status st = mu_states_keep(&m->states, live, n, err);
    mu_free(live);
    if (st != MU_OK) return st;
    for (uint32_t i = 0; i < m->n_kept; i++) m->kept[i].state = MU_STATE_DEAD;
    /* what lives is what texts need: where that is much, wait for as much again */
    m->next_collect = m->states.bytes * 2 > m->max_bytes / 2 ? m->states.bytes * 2 : m->max_bytes / 2;
    m->states.bytes_max = m->next_collect * 4 + CALL_BYTES;
    return MU_OK;
}

enum mu_status mu_masker_create(const struct mu_grammar *g, const struct mu_constraint_vocab *v, size_t max_bytes,
                                struct mu_masker **m_out, struct mu_err *err)
{
    enum mu_status st = MU_ENOMEM;
    struct mu_masker *m = mu_calloc(1, sizeof *m);
    if (!m) return nomem(err);
    m->g = g;
    m->v = v;
    m->n_word = mu_constraint_mask_words(v);
    m->max_bytes = max_bytes ? max_bytes : (size_t)64 << 20;
    m->next_collect = m->max_bytes / 2;
    m->n_kept = KEPT_BYTES / (uint32_t)(m->n_word * sizeof(uint32_t) + 1) + 1;
    if (m->n_kept > KEPT_MAX) m->n_kept = KEPT_MAX;
    m->class_of = mu_calloc(g->dfa.n_node, sizeof *m->class_of);
    m->kept = mu_calloc(m->n_kept, sizeof *m->kept);
    m->scratch = mu_calloc(m->n_word + 1, sizeof *m->scratch);
    m->path = mu_calloc((size_t)v->depth_max + 2, sizeof *m->path);
    m->path_node = mu_calloc((size_t)v->depth_max + 2, sizeof *m->path_node);
    m->above = mu_calloc((size_t)v->depth_max + 2, sizeof *m->above);
    if (!m->class_of || !m->kept || !m->scratch || !m->path || !m->path_node || !m->above) {
        st = nomem(err);
        goto fail;
    }
    MU_TRY(st, mu_dfa_classes(&g->dfa, v->depth_max, m->class_of, &m->n_class, err), fail);
    m->locals = mu_calloc((size_t)m->n_class + 1, sizeof *m->locals);
    if (!m->locals) {
        st = nomem(err);
        goto fail;
    }
    MU_TRY(st, mu_states_open(&m->states, g, err), fail);
    m->states.bytes_max = m->next_collect * 4 + CALL_BYTES;
    *m_out = m;
    return MU_OK;
fail:
    mu_masker_free(m);
    return st;
}

void mu_masker_free(struct mu_masker *m)
{
    if (!m) return;
    for (uint32_t i = 0; m->locals && i < m->n_class; i++) free_local(m, i);
    for (uint32_t i = 0; m->kept && i < m->n_kept; i++) mu_free(m->kept[i].words);
    mu_states_close(&m->states);
    for (int i = 0; i < MU_SORTS; i++) mu_sort_free(&m->sorts[i]);
    mu_free(m->locals);
    mu_free(m->kept);
    mu_free(m->class_of);
    mu_free(m->scratch);
    mu_free(m->path);
    mu_free(m->path_node);
    mu_free(m->above);
    mu_free(m);
}

size_t mu_masker_bytes(const struct mu_masker *m)
{
    size_t n = sizeof *m + m->states.bytes + m->local_bytes + (size_t)m->g->dfa.n_node * 4 + m->n_class * 8u;
    for (int i = 0; i < MU_SORTS; i++) n += mu_sort_bytes(m->v, &m->sorts[i]);
    for (uint32_t i = 0; i < m->n_kept; i++) n += sizeof *m->kept + (m->kept[i].words ? m->n_word * 4 : 0);
    return n;
}
