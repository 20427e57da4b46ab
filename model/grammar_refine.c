/* Which nodes of an automaton behave alike, for ever or for a number of letters.
 *
 * Moore's refinement (1956): at first nodes differ where one is final and the other not; in each round those of one
 * class part whose letters lead to different classes. After k rounds a class holds what no text of k letters tells apart.
 * A round looks only at nodes that lead to one whose class has just changed its number; of a class that parts, the
 * largest piece keeps the number (Hopcroft's rule), so that a chain of n nodes costs n log n and not n².
 *
 * A call counts as one letter. It reads at least one byte, so k letters are enough for k bytes. */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "model/grammar_part.h"

struct sign { /* of a node under the classes of the round before; 128 bits that nobody will make collide by chance */
    uint64_t a, b;
    uint32_t node;
};

struct refine {
    const struct mu_dfa *d;
    uint32_t *cls;           /* [n_node] */
    uint32_t *order, *place; /* [n_node] nodes by class, and where each stands there */
    uint32_t *begin, *size;  /* [n_node] of each class */
    uint32_t n_class;
    uint32_t *back, *from; /* edges turned round */
    uint32_t *dirty, *next;
    uint8_t *is_next, *seen;
    struct sign *signs;
};

static void mix(struct sign *s, uint64_t x)
{
    s->a = (s->a ^ x) * 0x9FB21C651E98DF25u;
    s->a ^= s->a >> 31;
    s->b = (s->b + x) * 0xD6E8FEB86659FD93u;
    s->b ^= s->b >> 28;
}

static struct sign sign(const struct refine *r, uint32_t node)
{
    const struct mu_dfa *d = r->d;
    struct sign s = {0x243F6A8885A308D3u, 0x13198A2E03707344u, node};
    for (uint32_t e = d->first[node], f; e < d->first[node + 1]; e = f) {
        const struct mu_edge *x = &d->edges[e];
        uint8_t hi = x->hi;
        for (f = e + 1; f < d->first[node + 1] && x->rule == MU_MANY;
             f++) { /* ranges that touch and lead alike are one */
            const struct mu_edge *y = &d->edges[f];
            if (y->rule != MU_MANY || y->lo != hi + 1 || r->cls[y->to] != r->cls[x->to]) break;
            hi = y->hi;
        }
        mix(&s, (uint64_t)x->rule << 32 | r->cls[x->to]);
        mix(&s, (uint64_t)x->lo << 8 | hi);
    }
    return s;
}

static int by_sign(const void *x, const void *y)
{
    const struct sign *a = x, *b = y;
    if (a->a != b->a) return a->a < b->a ? -1 : 1;
    if (a->b != b->b) return a->b < b->b ? -1 : 1;
    return a->node < b->node ? -1 : a->node > b->node;
}

static int by_class(const void *x, const void *y, void *ctx)
{
    const uint32_t *cls = ctx, a = *(const uint32_t *)x, b = *(const uint32_t *)y;
    if (cls[a] != cls[b]) return cls[a] < cls[b] ? -1 : 1;
    return a < b ? -1 : a > b;
}

static void move(struct refine *r, uint32_t node, uint32_t to)
{
    uint32_t other = r->order[to], at = r->place[node];
    r->order[at] = other;
    r->place[other] = at;
    r->order[to] = node;
    r->place[node] = to;
}

static void touch(struct refine *r, uint32_t node, uint32_t *n_next)
{
    for (uint32_t e = r->back[node]; e < r->back[node + 1]; e++) {
        uint32_t x = r->from[e];
        if (!r->is_next[x]) r->is_next[x] = 1, r->next[(*n_next)++] = x;
    }
}

/* One class: signs[0…n) are those of its nodes that are looked at; the others, at least as many or none, are as alike as
 * they were and keep the number. Pieces go to the end of the class and become classes. sign() must not see them before
 * the round is over: pending (pairs of node and class) has them until then. */
static void part(struct refine *r, struct sign *signs, uint32_t n, uint32_t c, uint32_t *pending, uint32_t *n_pending)
{
    uint32_t rest = r->size[c] - n, keep = MU_MANY, keep_n = 0;
    struct sign still = {0, 0, 0};
    qsort(signs, n, sizeof *signs, by_sign);
    if (rest) {
        uint32_t i = r->begin[c];
        while (r->seen[r->order[i]]) i++;
        still = sign(r, r->order[i]);
    }
    for (uint32_t i = 0, j; i < n; i = j) {
        for (j = i; j < n && signs[j].a == signs[i].a && signs[j].b == signs[i].b; j++) {}
        bool stays = rest ? signs[i].a == still.a && signs[i].b == still.b : j - i > keep_n;
        if (stays) keep = i, keep_n = j - i;
    }
    for (uint32_t i = 0, j; i < n; i = j) {
        for (j = i; j < n && signs[j].a == signs[i].a && signs[j].b == signs[i].b; j++) {}
        if (i == keep) continue;
        uint32_t made = r->n_class++;
        r->size[made] = j - i;
        r->size[c] -= j - i;
        r->begin[made] = r->begin[c] + r->size[c];
        for (uint32_t k = i; k < j; k++) {
            move(r, signs[k].node, r->begin[made] + (k - i));
            pending[2 * *n_pending] = signs[k].node;
            pending[2 * *n_pending + 1] = made;
            ++*n_pending;
        }
    }
}

/* Looks at dirty[0…n); returns how many nodes are to be looked at in the next round. */
static uint32_t round_of(struct refine *r, uint32_t n, uint32_t *pending)
{
    uint32_t n_sign = 0, n_pending = 0, n_next = 0;
    qsort_r(r->dirty, n, sizeof *r->dirty, by_class, r->cls);
    for (uint32_t i = 0; i < n; i++) r->seen[r->dirty[i]] = 1;
    for (uint32_t i = 0, j; i < n; i = j) {
        uint32_t c = r->cls[r->dirty[i]], at = n_sign;
        for (j = i; j < n && r->cls[r->dirty[j]] == c; j++) r->signs[n_sign++] = sign(r, r->dirty[j]);
        if (r->size[c] - (j - i) < j - i) { /* then look at the others as well */
            for (uint32_t k = 0; k < r->size[c]; k++) {
                uint32_t x = r->order[r->begin[c] + k];
                if (!r->seen[x]) r->signs[n_sign++] = sign(r, x);
            }
        }
        part(r, r->signs + at, n_sign - at, c, pending, &n_pending);
    }
    for (uint32_t i = 0; i < n; i++) r->seen[r->dirty[i]] = 0;
    for (uint32_t i = 0; i < n_pending; i++) r->cls[pending[2 * i]] = pending[2 * i + 1];
    for (uint32_t i = 0; i < n_pending; i++) touch(r, pending[2 * i], &n_next);
    for (uint32_t i = 0; i < n_next; i++) r->is_next[r->next[i]] = 0;
    uint32_t *swap = r->dirty;
    r->dirty = r->next;
    r->next = swap;
    return n_next;
}

static void begin(struct refine *r)
{
    const struct mu_dfa *d = r->d;
    uint32_t n = d->n_node, at = 0;
    for (int final = 0; final < 2; final++) {
        uint32_t first = at;
        for (uint32_t i = 0; i < n; i++) {
            if (d->final[i] != final) continue;
            r->cls[i] = r->n_class;
            r->place[i] = at;
            r->order[at++] = i;
        }
        if (at == first) continue;
        r->begin[r->n_class] = first;
        r->size[r->n_class++] = at - first;
    }
    for (uint32_t e = 0; e < d->n_edge; e++) r->back[d->edges[e].to]++;
    for (uint32_t i = 0, sum = 0; i <= n; i++) {
        sum += r->back[i];
        r->back[i] = sum;
    }
    for (uint32_t i = n; i-- > 0;) {
        for (uint32_t e = d->first[i]; e < d->first[i + 1]; e++) r->from[--r->back[d->edges[e].to]] = i;
    }
    for (uint32_t i = 0; i < n; i++) r->dirty[i] = i;
}

enum mu_status mu_dfa_classes(const struct mu_dfa *d, uint32_t rounds, uint32_t *class_out, uint32_t *n_class_out,
                              struct mu_err *err)
{
    size_t n = d->n_node;
    struct refine r = {.d = d, .cls = class_out};
    uint32_t *u = mu_calloc(n * 9 + 1, sizeof *u);
    uint8_t *flags = mu_calloc(n * 2 + 1, 1);
    r.from = mu_calloc((size_t)d->n_edge + 1, sizeof *r.from);
    r.signs = mu_reallocarray(NULL, n + 1, sizeof *r.signs);
    enum mu_status st = u && flags && r.from && r.signs ? MU_OK : mu_fail(err, MU_ENOMEM, "no memory for a grammar");
    if (st == MU_OK) {
        r.order = u;
        r.place = u + n;
        r.begin = u + 2 * n;
        r.size = u + 3 * n;
        r.dirty = u + 4 * n;
        r.next = u + 5 * n;
        r.back = u + 6 * n; /* n + 1 */
        uint32_t *pending = u + 7 * n + 1;
        r.is_next = flags;
        r.seen = flags + n;
        begin(&r);
        for (uint32_t left = (uint32_t)n, k = 0; left && k < rounds; k++) left = round_of(&r, left, pending);
        *n_class_out = r.n_class;
    }
    mu_free(u);
    mu_free(flags);
    mu_free(r.from);
    mu_free(r.signs);
    return st;
}
