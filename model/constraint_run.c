/* Tokens that need no walk.
 *
 * Inside a string nearly every token can come, and at each of its places a walk over all of them would find that out again.
 * But a token of nothing but whole characters without quotes, backslashes and controls (plain text) can come wherever so
 * many characters can; and where an expression takes letters, say, in any order, a token of nothing but letters can come
 * wherever so many letters can. So tokens are sorted once by what they are made of (struct mu_sort): those that are known
 * by their length alone, and the few that can lead elsewhere, by the closing quote for one; only these are walked, in a
 * trie of their own that lies close together in memory. What is in neither part cannot come at all.
 *
 * This holds for places within a rule. Where the rule can end on the way, what follows it decides, and all is walked. */
#include <string.h>

#include "base/alloc.h"
#include "model/constraint_part.h"

enum {
    PLAIN_STATES = 8,
    LETTERS = 0x1E, /* kinds (constraint_vocab.c) of which there are many tokens */
    SORT_PAYS = 4,  /* times that a run of a sort was walked without it */
    RUN_MAX = 16,   /* a run is not followed further, and longer tokens are walked */
    RUN_NODES = 64, /* states above smaller subtrees are not looked at */
};

static enum mu_status nomem(struct mu_err *err)
{
    return mu_fail(err, MU_ENOMEM, "no memory for a mask of allowed tokens");
}

/* ---- plain text ---- */

/* Every state that a plain character can lead to from `from`, into to[*n_to]. false: some character is not taken, or
 * there are too many states (or a failure, which the walk will meet again). A byte of each class stands for all. */
static bool plain_step(struct mu_masker *m, uint32_t from, uint32_t *to, uint32_t *n_to)
{
    static const struct {
        uint8_t lo, hi, second_lo, second_hi, more; /* more: bytes behind the second, each 80…BF */
    } forms[] = {{' ', '!', 0, 0, 0},         {'#', '[', 0, 0, 0},         {']', '~', 0, 0, 0},
                 {0xC2, 0xDF, 0x80, 0xBF, 0}, {0xE0, 0xE0, 0xA0, 0xBF, 1}, {0xE1, 0xEC, 0x80, 0xBF, 1},
                 {0xED, 0xED, 0x80, 0x9F, 1}, {0xEE, 0xEF, 0x80, 0xBF, 1}, {0xF0, 0xF0, 0x90, 0xBF, 2},
                 {0xF1, 0xF3, 0x80, 0xBF, 2}, {0xF4, 0xF4, 0x80, 0x8F, 2}};
    const struct mu_grammar *g = m->g;
    for (size_t f = 0; f < sizeof forms / sizeof *forms; f++) {
        uint32_t now[PLAIN_STATES], n = 1, next[PLAIN_STATES], n_next;
        now[0] = from;
        for (int at = 0, length = forms[f].second_hi ? 2 + forms[f].more : 1; at < length; at++, n = n_next) {
            int lo = at == 0 ? forms[f].lo : at == 1 ? forms[f].second_lo : 0x80;
            int hi = at == 0 ? forms[f].hi : at == 1 ? forms[f].second_hi : 0xBF;
            n_next = 0;
            for (uint32_t i = 0; i < n; i++) {
                for (int b = lo, seen = -1; b <= hi; seen = g->byte_class[b++]) {
                    if (g->byte_class[b] == seen) continue;
                    uint32_t state = mu_states_next(&m->states, now[i], (uint8_t)b), k = 0;
                    if (state == MU_STATE_DEAD || state == MU_STATE_FAIL) return false;
                    while (k < n_next && next[k] != state) k++;
                    if (k < n_next) continue;
                    if (n_next == PLAIN_STATES) return false;
                    next[n_next++] = state;
                }
            }
            memcpy(now, next, n_next * sizeof *now);
        }
        for (uint32_t i = 0; i < n; i++) {
            uint32_t k = 0;
            while (k < *n_to && to[k] != now[i]) k++;
            if (k < *n_to) continue;
            if (*n_to == PLAIN_STATES) return false;
            to[(*n_to)++] = now[i];
        }
    }
    return true;
}

/* Whether a plain text can begin at none of these states. */
static bool plain_closed(struct mu_masker *m, const uint32_t *states, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        for (int b = ' '; b < 256; b++) {
            if (b == '"' || b == '\\' || b == 0x7F) continue;
            if (mu_states_next(&m->states, states[i], (uint8_t)b) != MU_STATE_DEAD) return false;
        }
    }
    return true;
}

/* How many plain characters `state` takes whatever they are, at most MU_PLAIN_MAX; closed: and then none. */
static uint32_t plain_taken(struct mu_masker *m, uint32_t state, bool *closed)
{
    uint32_t now[PLAIN_STATES] = {state}, n = 1;
    bool ends = false; /* its rule may end on the way: what follows is not known */
    *closed = false;
    for (uint32_t chars = 0; chars < MU_PLAIN_MAX; chars++) {
        uint32_t next[PLAIN_STATES], n_next = 0, known = n == 1 ? m->states.states[now[0]].plain_to : MU_STATE_DEAD;
        if (known == now[0]) return MU_PLAIN_MAX;
        if (known != MU_STATE_DEAD && known != MU_STATE_UNKNOWN) {
            now[0] = known;
            ends |= m->states.states[known].pops;
            continue;
        }
        for (uint32_t i = 0; i < n; i++) {
            if (plain_step(m, now[i], next, &n_next)) continue;
            *closed = !ends && plain_closed(m, now, n);
            return chars;
        }
        if (n == 1) m->states.states[now[0]].plain_to = n_next == 1 ? next[0] : MU_STATE_DEAD;
        if (n_next == n && !memcmp(next, now, n * sizeof *now)) return MU_PLAIN_MAX; /* it goes round */
        memcpy(now, next, n_next * sizeof *now);
        n = n_next;
        for (uint32_t i = 0; i < n; i++) ends |= m->states.states[now[i]].pops;
    }
    return MU_PLAIN_MAX;
}

/* ---- runs ---- */

/* What a state reads, by kinds of bytes. false: a failure. */
static bool look_at(struct mu_masker *m, uint32_t state)
{
    const struct mu_grammar *g = m->g;
    struct mu_states *s = &m->states;
    uint32_t to[256], best = MU_STATE_DEAD;
    uint16_t size[256] = {0}, most = 0;
    uint64_t yes = 0, no = 0, reads = 0;
    if (s->states[state].looked_at) return true;
    for (uint32_t c = 0; c < g->n_byte_class; c++) {
        to[c] = mu_states_next(s, state, g->class_byte[c]);
        if (to[c] == MU_STATE_FAIL) return false;
    }
    for (int b = ' '; b < 0x7F; b++) size[g->byte_class[b]]++;
    for (uint32_t c = 0; c < g->n_byte_class; c++) { /* where most bytes lead */
        uint16_t n = 0;
        for (uint32_t k = 0; to[c] != MU_STATE_DEAD && k < g->n_byte_class; k++)
            n = (uint16_t)(n + (to[k] == to[c] ? size[k] : 0));
        if (n > most) most = n, best = to[c];
    }
    for (int b = 0; b < 256; b++) {
        uint64_t kind = (uint64_t)1 << m->v->kind_of[b];
        uint32_t next = to[g->byte_class[b]];
        if (next != MU_STATE_DEAD) reads |= kind;
        if (next != MU_STATE_DEAD && next == best) {
            yes |= kind;
        } else {
            no |= kind;
        }
    }
    struct mu_state *x = &s->states[state];
    x->run_to = best;
    if (!s->states[best].pops) x->run_kinds = yes & ~no & ~((uint64_t)1 << MU_KIND_OTHER);
    x->reads = reads;
    x->looked_at = true;
    return true;
}

/* From a state, `length` bytes of these kinds can be read in any order, without an end of the rule; on the way bytes of the
 * kinds of `out` lead elsewhere. closed: no byte of `kinds` can follow the run. */
struct run {
    uint64_t kinds, out;
    uint32_t length;
    bool closed;
};

static bool run_from(struct mu_masker *m, uint32_t state, struct run *run_out)
{
    struct mu_states *s = &m->states;
    struct run r = {0};
    for (uint32_t at = state;; at = s->states[at].run_to) {
        if (!look_at(m, at)) return false;
        const struct mu_state *x = &s->states[at];
        if (!r.length) r.kinds = x->run_kinds;
        r.out |= x->reads & ~r.kinds;
        r.closed = !(x->reads & r.kinds);
        if (!r.kinds || r.length == RUN_MAX || (r.kinds & ~x->run_kinds)) break;
        r.length++;
        if (x->run_to == at) {
            r.length = UINT32_MAX / 2; /* it goes round */
            break;
        }
    }
    *run_out = r;
    return true;
}

int mu_run_takes_all(struct mu_masker *m, uint32_t above, uint32_t i)
{
    struct mu_states *s = &m->states;
    if (!s->states[above].looked_at) {
        if (m->v->nodes[i].end - i < RUN_NODES) return 0;
        if (!look_at(m, above)) return -1;
    }
    if (!s->states[above].run_kinds) return 0;
    const struct mu_trie_below *b = &m->v->below[i];
    for (uint32_t n = 0; n < b->height; n++) {
        if (!look_at(m, above)) return -1;
        const struct mu_state *x = &s->states[above];
        if (b->kinds & ~x->run_kinds) return 0;
        if (x->run_to == above) break;
        above = x->run_to;
    }
    return 1;
}

/* The tokens of a sort that are known and at most so long, into empty words: all but the longer ones, or the shorter
 * ones. */
static void allow_upto(struct mu_masker *m, const struct mu_sort *s, uint32_t length, uint32_t *words)
{
    uint32_t n = s->upto[length < MU_SORT_WALK ? length : MU_SORT_WALK], all = s->upto[255];
    if (n < all - n) {
        for (uint32_t i = 0; i < n; i++) mu_mask_allow(words, s->ids[i]);
    } else {
        memcpy(words, s->mask, m->n_word * sizeof *words);
        for (uint32_t i = n; i < all; i++) words[s->ids[i] / 32] &= ~(1u << (s->ids[i] % 32));
    }
    m->n_visit += 1 + (n < all - n ? n : all - n) / 8;
}

/* Tokens by what they are to a run that is closed or at least RUN_MAX long: those of its kinds, those with a byte that
 * leads out of it, or too long to tell; all others cannot be read. */
static enum mu_status sort_of(struct mu_masker *m, const struct run *run, const struct mu_sort **sort_out,
                              struct mu_err *err)
{
    const struct mu_constraint_vocab *v = m->v;
    struct mu_sort *s = NULL;
    *sort_out = NULL;
    for (int i = 0; i < MU_SORTS && !s; i++) {
        if (m->sorts[i].kinds == run->kinds && !(run->out & ~m->sorts[i].out)) s = &m->sorts[i];
    }
    if (!s) {
        s = &m->sorts[m->n_sort++ % MU_SORTS];
        mu_sort_free(s);
        s->kinds = run->kinds; /* a quote always: so the ends of a string are of one sort, whatever its least length */
        s->out = (run->out | (uint64_t)1 << v->kind_of['"']) & ~run->kinds;
    }
    if (s->mask) *sort_out = s;
    if (s->mask || s->n_asked++ < SORT_PAYS) return MU_OK;
    uint8_t *known = mu_malloc((size_t)v->n_vocab + 1);
    if (!known) return nomem(err);
    for (int id = 0; id < v->n_vocab; id++) {
        uint8_t impure = v->kinds[id] & s->out ? MU_SORT_WALK : MU_SORT_NOT, length = v->length[id];
        known[id] = v->kinds[id] & ~s->kinds ? impure : length;
        if (length > RUN_MAX) known[id] = MU_SORT_WALK;
        if (!length) known[id] = MU_SORT_NOT;
    }
    uint64_t kinds = s->kinds, out = s->out;
    enum mu_status st = mu_sort_make(v, known, s, err);
    mu_free(known);
    if (st != MU_OK) return st;
    s->kinds = kinds;
    s->out = out;
    *sort_out = s;
    return MU_OK;
}

enum mu_status mu_sort_find(struct mu_masker *m, uint32_t state, uint32_t *words, const struct mu_sort **sort_out,
                            struct mu_err *err)
{
    enum mu_status st = MU_OK;
    struct run run;
    bool closed;
    uint32_t chars = plain_taken(m, state, &closed);
    *sort_out = NULL;
    if (chars == MU_PLAIN_MAX || (chars && closed)) {
        *sort_out = &m->v->plain_text;
        allow_upto(m, *sort_out, chars, words);
    } else if (!run_from(m, state, &run)) {
        return m->states.st;
    } else if (run.length > 1 && (run.kinds & LETTERS) && (run.closed || run.length >= RUN_MAX)) {
        st = sort_of(m, &run, sort_out, err);
        if (*sort_out) allow_upto(m, *sort_out, run.length, words);
    }
    return st;
}
