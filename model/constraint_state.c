/* States and steps: see constraint_part.h for what they are.
 *
 * A step reads one byte. First, once for each state, its places are completed by what they call: rules in the order of
 * their ranks, so that a rule's context is whole before the rule is entered. Then each place that reads the byte moves
 * on, and a place at the end of its rule brings the places of its context. */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "model/constraint_part.h"

enum {
    PLACES_MAX = 512,
    CALLS_MAX = 4 * PLACES_MAX,
    SEEN_SLOTS = 4 * PLACES_MAX,
    WORK_MAX = 1 << 24, /* places that one call looks at: a second or so. Ordinary masks look at two million at most */
};

static bool fail_nomem(struct mu_states *s)
{
    if (s->st == MU_OK) s->st = mu_fail(s->err, MU_ENOMEM, "no memory to constrain an output");
    return false;
}

static bool fail_ambiguous(struct mu_states *s)
{
    if (s->st == MU_OK) {
        s->st = mu_fail(s->err, MU_ELIMIT,
                        "the grammar can be read in too many ways at this place of the text; make it less ambiguous");
    }
    return false;
}

/* n places more are looked at. */
static bool work(struct mu_states *s, uint64_t n)
{
    s->n_work += n;
    return s->n_work <= WORK_MAX || fail_ambiguous(s);
}

static bool room(struct mu_states *s, void *at, uint32_t *cap, size_t need, size_t size)
{
    void **p = at;
    if (need <= *cap) return true;
    size_t more = need + need / 2 + 64;
    if (more > UINT32_MAX / 2 || s->bytes > s->bytes_max) return fail_ambiguous(s);
    void *q = mu_reallocarray(*p, more, size);
    if (!q) return fail_nomem(s);
    s->bytes += (more - *cap) * size;
    *p = q;
    *cap = (uint32_t)more;
    return true;
}

/* ---- numbers by content ---- */

static uint32_t hash_places(const struct mu_place *p, uint32_t n)
{
    uint64_t h = n * 0x9E3779B97F4A7C15u;
    for (uint32_t i = 0; i < n; i++) {
        h = (h ^ ((uint64_t)p[i].node << 32 | p[i].ctx)) * 0x9FB21C651E98DF25u;
        h ^= h >> 29;
    }
    return (uint32_t)(h ^ h >> 32);
}

static void put_slot(struct mu_table *t, uint32_t hash, uint32_t number)
{
    uint32_t h = hash & (t->n_slot - 1);
    while (t->slots[h]) h = (h + 1) & (t->n_slot - 1);
    t->slots[h] = number + 1;
}

static bool table_room(struct mu_states *s, struct mu_table *t, bool of_states)
{
    if (t->n * 2 < t->n_slot) return true;
    uint32_t n = t->n_slot ? t->n_slot * 2 : 64, *slots = mu_calloc(n, sizeof *slots);
    if (!slots) return fail_nomem(s);
    s->bytes += (n - t->n_slot) * sizeof *slots;
    mu_free(t->slots);
    t->slots = slots;
    t->n_slot = n;
    for (uint32_t i = 0; i < t->n; i++) {
        uint32_t at = of_states ? s->states[i].at : s->ctxs[i].at, k = of_states ? s->states[i].n : s->ctxs[i].n;
        put_slot(t, hash_places(s->pool + at, k), i);
    }
    return true;
}

static int by_place(const void *x, const void *y)
{
    const struct mu_place *a = x, *b = y;
    if (a->node != b->node) return a->node < b->node ? -1 : 1;
    return a->ctx < b->ctx ? -1 : a->ctx > b->ctx;
}

static uint32_t unique(struct mu_place *p, uint32_t n)
{
    uint32_t k = 0;
    if (n > 1) qsort(p, n, sizeof *p, by_place);
    for (uint32_t i = 0; i < n; i++) {
        if (!k || by_place(&p[k - 1], &p[i])) p[k++] = p[i];
    }
    return k;
}

/* p must not be in the pool. */
static bool pool_add(struct mu_states *s, const struct mu_place *p, uint32_t n, uint32_t *at)
{
    if (!room(s, &s->pool, &s->cap_pool, (size_t)s->n_pool + n, sizeof *s->pool)) return false;
    if (n) memcpy(s->pool + s->n_pool, p, n * sizeof *p);
    *at = s->n_pool;
    s->n_pool += n;
    return true;
}

static uint32_t ctx_of(struct mu_states *s, struct mu_place *p, uint32_t n)
{
    n = unique(p, n);
    uint32_t hash = hash_places(p, n), at;
    if (!table_room(s, &s->ctx_table, false)) return MU_STATE_FAIL;
    const struct mu_table *t = &s->ctx_table;
    for (uint32_t h = hash & (t->n_slot - 1); t->slots[h]; h = (h + 1) & (t->n_slot - 1)) {
        uint32_t i = t->slots[h] - 1;
        if (s->ctxs[i].n == n && !memcmp(s->pool + s->ctxs[i].at, p, n * sizeof *p)) return i;
    }
    if (!room(s, &s->ctxs, &s->cap_ctx, (size_t)s->n_ctx + 1, sizeof *s->ctxs) || !pool_add(s, p, n, &at))
        return MU_STATE_FAIL;
    s->ctxs[s->n_ctx] = (struct mu_ctx){at, n};
    put_slot(&s->ctx_table, hash, s->n_ctx);
    s->ctx_table.n++;
    return s->n_ctx++;
}

static uint32_t state_of(struct mu_states *s, struct mu_place *p, uint32_t n)
{
    n = unique(p, n);
    uint32_t hash = hash_places(p, n), at;
    if (!table_room(s, &s->state_table, true)) return MU_STATE_FAIL;
    const struct mu_table *t = &s->state_table;
    for (uint32_t h = hash & (t->n_slot - 1); t->slots[h]; h = (h + 1) & (t->n_slot - 1)) {
        uint32_t i = t->slots[h] - 1;
        if (s->states[i].n == n && !memcmp(s->pool + s->states[i].at, p, n * sizeof *p)) return i;
    }
    if (!room(s, &s->states, &s->cap_state, (size_t)s->n_state + 1, sizeof *s->states) || !pool_add(s, p, n, &at))
        return MU_STATE_FAIL;
    struct mu_state *x = &s->states[s->n_state];
    *x = (struct mu_state){.at = at, .n = n, .all_at = MU_MANY, .row = MU_MANY, .plain_to = MU_STATE_UNKNOWN};
    for (uint32_t i = 0; i < n; i++) {
        uint32_t node = s->pool[at + i].node;
        x->accepts |= node == mu_gr_accept(s->g);
        x->pops |= node == mu_gr_pop(s->g);
        x->goes_on |= node < mu_gr_accept(s->g);
    }
    put_slot(&s->state_table, hash, s->n_state);
    s->state_table.n++;
    return s->n_state++;
}

/* ---- a step ---- */

static bool is_end_only(const struct mu_grammar *g, uint32_t node)
{
    return g->dfa.first[node] == g->dfa.first[node + 1];
}

static void list_begin(struct mu_states *s)
{
    s->n_list = 0;
    s->seen_round++;
}

/* Each place once: slots of other rounds count as free. */
static bool list_add(struct mu_states *s, struct mu_place p)
{
    uint32_t h = hash_places(&p, 1) % SEEN_SLOTS;
    for (; s->seen[h] >> 16 == s->seen_round; h = (h + 1) % SEEN_SLOTS) {
        struct mu_place q = s->list[s->seen[h] & 0xFFFF];
        if (q.node == p.node && q.ctx == p.ctx) return true;
    }
    if (s->n_list == PLACES_MAX) return fail_ambiguous(s);
    s->seen[h] = s->seen_round << 16 | s->n_list;
    s->list[s->n_list++] = p;
    return true;
}

/* The state of the places in list, and of those that go on where a rule is finished. */
static uint32_t finish(struct mu_states *s)
{
    const struct mu_grammar *g = s->g;
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_list; i++) {
        struct mu_place p = s->list[i];
        if (!g->dfa.final[p.node]) continue;
        struct mu_ctx c = s->ctxs[p.ctx];
        for (uint32_t k = 0; k < c.n; k++) {
            if (!list_add(s, s->pool[c.at + k])) return MU_STATE_FAIL;
        }
    }
    for (uint32_t i = 0; i < s->n_list; i++) {
        bool stays = s->list[i].node >= mu_gr_accept(g) || !is_end_only(g, s->list[i].node);
        if (stays) s->list[n++] = s->list[i];
    }
    return state_of(s, s->list, n);
}

static int by_call(const void *x, const void *y)
{
    const struct mu_call *a = x, *b = y;
    if (a->rank != b->rank) return a->rank < b->rank ? -1 : 1;
    return by_place(&a->back, &b->back);
}

/* A call waits. Where too many do, those that wait twice go first. */
static bool call_add(struct mu_states *s, uint32_t rule, struct mu_place back)
{
    if (s->n_call == CALLS_MAX) {
        uint32_t n = 0;
        qsort(s->calls, s->n_call, sizeof *s->calls, by_call);
        for (uint32_t i = 0; i < s->n_call; i++) {
            if (!n || by_call(&s->calls[n - 1], &s->calls[i])) s->calls[n++] = s->calls[i];
        }
        s->n_call = n;
        if (n > CALLS_MAX / 2) return fail_ambiguous(s);
    }
    s->calls[s->n_call++] = (struct mu_call){rule, s->g->rank[rule], back};
    return true;
}

static bool add_calls(struct mu_states *s, struct mu_place p, bool *reads)
{
    const struct mu_dfa *d = &s->g->dfa;
    *reads = false;
    for (uint32_t e = d->first[p.node]; e < d->first[p.node + 1]; e++) {
        const struct mu_edge *x = &d->edges[e];
        if (x->rule == MU_MANY) {
            *reads = true;
        } else if (!is_end_only(s->g, x->to)) {
            if (!call_add(s, x->rule, (struct mu_place){x->to, p.ctx})) return false;
        } else { /* after the call the caller is at its end as well: straight to what its context waits for */
            struct mu_ctx c = s->ctxs[p.ctx];
            for (uint32_t k = 0; k < c.n; k++) {
                if (!call_add(s, x->rule, s->pool[c.at + k])) return false;
            }
        }
    }
    return true;
}

/* All places of a state from which a byte can be read. */
static bool complete(struct mu_states *s, uint32_t state)
{
    bool reads;
    list_begin(s);
    s->n_call = 0;
    for (uint32_t i = 0; i < s->states[state].n; i++) {
        struct mu_place p = s->pool[s->states[state].at + i];
        if (!add_calls(s, p, &reads) || (reads && !list_add(s, p))) return false;
    }
    while (s->n_call) { /* the rule of the least rank: nothing will call it any more */
        uint32_t rule = 0, least = MU_MANY, n = 0, left = 0;
        if (!work(s, s->n_call)) return false;
        for (uint32_t i = 0; i < s->n_call; i++) {
            if (s->calls[i].rank < least) rule = s->calls[i].rule, least = s->calls[i].rank;
        }
        for (uint32_t i = 0; i < s->n_call; i++) {
            if (s->calls[i].rule == rule) {
                s->back[n++] = s->calls[i].back;
            } else {
                s->calls[left++] = s->calls[i];
            }
        }
        s->n_call = left;
        struct mu_place p = {s->g->start[rule], ctx_of(s, s->back, n)};
        if (p.ctx == MU_STATE_FAIL || !add_calls(s, p, &reads) || (reads && !list_add(s, p))) return false;
    }
    uint32_t at, n = s->n_list;
    if (!pool_add(s, s->list, n, &at)) return false;
    s->states[state].all_at = at;
    s->states[state].all_n = n;
    return true;
}

static bool row_add(struct mu_states *s, uint32_t state)
{
    uint32_t width = s->g->n_byte_class;
    if (!room(s, &s->rows, &s->cap_row, (size_t)(s->n_row + 1) * width, sizeof *s->rows)) return false;
    uint32_t *row = s->rows + (size_t)s->n_row * width;
    for (uint32_t i = 0; i < width; i++) row[i] = MU_STATE_UNKNOWN;
    s->states[state].row = s->n_row++;
    return true;
}

uint32_t mu_states_step(struct mu_states *s, uint32_t state, uint8_t byte)
{
    const struct mu_dfa *d = &s->g->dfa;
    if (s->st != MU_OK) return MU_STATE_FAIL;
    if (s->states[state].row == MU_MANY && !row_add(s, state)) return MU_STATE_FAIL;
    if (s->states[state].all_at == MU_MANY && !complete(s, state)) return MU_STATE_FAIL;
    struct mu_state x = s->states[state];
    if (!work(s, 1 + x.all_n)) return MU_STATE_FAIL;
    list_begin(s);
    for (uint32_t i = 0; i < x.all_n; i++) {
        struct mu_place p = s->pool[x.all_at + i];
        for (uint32_t e = d->first[p.node]; e < d->first[p.node + 1] && d->edges[e].rule == MU_MANY; e++) {
            if (byte < d->edges[e].lo || byte > d->edges[e].hi) continue;
            if (!list_add(s, (struct mu_place){d->edges[e].to, p.ctx})) return MU_STATE_FAIL;
            break;
        }
    }
    uint32_t next = finish(s);
    if (next != MU_STATE_FAIL) s->rows[(size_t)x.row * s->g->n_byte_class + s->g->byte_class[byte]] = next;
    return next;
}

uint32_t mu_states_start(struct mu_states *s)
{
    list_begin(s);
    list_add(s, (struct mu_place){s->g->start[s->g->root], MU_CTX_ROOT});
    return finish(s);
}

uint32_t mu_states_local(struct mu_states *s, uint32_t node)
{
    struct mu_place p = {node, MU_CTX_BOTTOM};
    return state_of(s, &p, 1);
}

/* ---- life ---- */

enum mu_status mu_states_open(struct mu_states *s, const struct mu_grammar *g, struct mu_err *err)
{
    struct mu_place root = {mu_gr_accept(g), 0}, bottom = {mu_gr_pop(g), 0};
    memset(s, 0, sizeof *s);
    s->g = g;
    s->err = err;
    s->bytes_max = SIZE_MAX;
    s->list = mu_calloc(PLACES_MAX, sizeof *s->list);
    s->calls = mu_calloc(CALLS_MAX, sizeof *s->calls);
    s->back = mu_calloc(CALLS_MAX, sizeof *s->back);
    s->seen = mu_calloc(SEEN_SLOTS, sizeof *s->seen);
    if (!s->list || !s->calls || !s->back || !s->seen) fail_nomem(s);
    if (s->st == MU_OK) state_of(s, &root, 0);
    if (s->st == MU_OK) ctx_of(s, &root, 1);
    if (s->st == MU_OK) ctx_of(s, &bottom, 1);
    enum mu_status st = s->st;
    if (st != MU_OK) mu_states_close(s);
    return st;
}

void mu_states_close(struct mu_states *s)
{
    mu_free(s->pool);
    mu_free(s->ctxs);
    mu_free(s->states);
    mu_free(s->rows);
    mu_free(s->ctx_table.slots);
    mu_free(s->state_table.slots);
    mu_free(s->list);
    mu_free(s->calls);
    mu_free(s->back);
    mu_free(s->seen);
    memset(s, 0, sizeof *s);
}

/* Contexts have greater numbers than those they wait for, so one way down finds what is needed and one way up copies
 * it; new numbers are in the old ones' order, so places stay sorted. */
enum mu_status mu_states_keep(struct mu_states *s, uint32_t *const *live, uint32_t n, struct mu_err *err)
{
    struct mu_states t;
    enum mu_status st = mu_states_open(&t, s->g, err);
    if (st != MU_OK) return st;
    uint32_t *to = mu_calloc(s->n_ctx, sizeof *to), *made = mu_calloc((size_t)n + 1, sizeof *made);
    struct mu_place *p = mu_calloc(CALLS_MAX, sizeof *p);
    if (!to || !made || !p) fail_nomem(&t);
    for (uint32_t i = 0; i < n && t.st == MU_OK; i++) {
        const struct mu_state *x = &s->states[*live[i]];
        for (uint32_t k = 0; k < x->n; k++) to[s->pool[x->at + k].ctx] = 1;
    }
    for (uint32_t c = s->n_ctx; c-- > 2 && t.st == MU_OK;) {
        for (uint32_t k = 0; to[c] && k < s->ctxs[c].n; k++) to[s->pool[s->ctxs[c].at + k].ctx] = 1;
    }
    if (t.st == MU_OK) to[MU_CTX_ROOT] = MU_CTX_ROOT, to[MU_CTX_BOTTOM] = MU_CTX_BOTTOM;
    for (uint32_t c = 2; c < s->n_ctx && t.st == MU_OK; c++) {
        struct mu_ctx x = s->ctxs[c];
        if (!to[c]) continue;
        for (uint32_t k = 0; k < x.n; k++) {
            struct mu_place y = s->pool[x.at + k];
            p[k] = (struct mu_place){y.node, y.node >= mu_gr_accept(s->g) ? 0 : to[y.ctx]};
        }
        to[c] = ctx_of(&t, p, x.n);
    }
    for (uint32_t i = 0; i < n && t.st == MU_OK; i++) {
        struct mu_state x = s->states[*live[i]];
        for (uint32_t k = 0; k < x.n; k++) {
            struct mu_place y = s->pool[x.at + k];
            p[k] = (struct mu_place){y.node, y.node >= mu_gr_accept(s->g) ? 0 : to[y.ctx]};
        }
        made[i] = state_of(&t, p, x.n);
    }
    st = t.st;
    if (st == MU_OK) {
        for (uint32_t i = 0; i < n; i++) *live[i] = made[i];
        mu_states_close(s);
        *s = t;
    } else {
        mu_states_close(&t);
    }
    mu_free(to);
    mu_free(made);
    mu_free(p);
    return st;
}
