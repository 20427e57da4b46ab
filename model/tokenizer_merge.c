/* Merging symbols pairwise, the best pair first: what both kinds of tokenizer do, once they have cut the text.
 *
 * Short words (nearly all) are merged in an array, looking for the smallest key each time. Long ones use a heap of
 * (key, position) over a linked list: O(n log n) for a megabyte of one letter. An entry of the heap is not removed
 * when its pair changes; it is stale, and is dropped when it comes up, if the symbol at its position has another key
 * by then. */
#include <string.h>

#include "base/alloc.h"
#include "model/tokenizer_part.h"

enum { SHORT = 40 };

enum mu_status mu_tok_nomem(struct mu_err *err)
{
    return mu_fail(err, MU_ENOMEM, "out of memory while tokenizing");
}

enum mu_status mu_encode_syms(struct mu_encode *e, size_t n, struct mu_err *err)
{
    if (n <= e->cap_syms) return MU_OK;
    size_t cap = n < 64 ? 64 : n;
    struct mu_tok_sym *p = mu_reallocarray(e->syms, cap, sizeof *p);
    if (!p) return mu_tok_nomem(err);
    e->syms = p;
    e->cap_syms = cap;
    return MU_OK;
}

static size_t merge_short(struct mu_encode *e, const char *text, size_t n, mu_tok_pair pair)
{
    const struct mu_tokenizer *t = e->t;
    struct mu_tok_sym *s = e->syms;
    for (size_t i = 0; i + 1 < n; i++) pair(t, text, &s[i], &s[i + 1], &s[i].key, &s[i].merged);
    for (;;) {
        size_t best = 0;
        uint32_t key = MU_TOK_NO_MERGE;
        for (size_t i = 0; i + 1 < n; i++) {
            if (s[i].key < key) {
                key = s[i].key;
                best = i;
            }
        }
        if (key == MU_TOK_NO_MERGE) return n;
        s[best].id = s[best].merged;
        s[best].len += s[best + 1].len;
        memmove(&s[best + 1], &s[best + 2], (n - best - 2) * sizeof *s);
        n--;
        if (best + 1 < n) pair(t, text, &s[best], &s[best + 1], &s[best].key, &s[best].merged);
        if (best) pair(t, text, &s[best - 1], &s[best], &s[best - 1].key, &s[best - 1].merged);
    }
}

static void sink(uint64_t *h, size_t n, size_t i)
{
    uint64_t v = h[i];
    for (;;) {
        size_t c = 4 * i + 1, best = c;
        if (c >= n) break;
        size_t last = c + 4 < n ? c + 4 : n;
        for (size_t k = c + 1; k < last; k++) best = h[k] < h[best] ? k : best;
        if (h[best] >= v) break;
        h[i] = h[best];
        i = best;
    }
    h[i] = v;
}

static void heap_push(struct mu_encode *e, uint32_t key, int32_t at)
{
    uint64_t v = (uint64_t)key << 32 | (uint32_t)at, *h = e->heap;
    size_t i = e->n_heap++;
    for (; i && h[(i - 1) / 4] > v; i = (i - 1) / 4) h[i] = h[(i - 1) / 4];
    h[i] = v;
}

static uint64_t heap_pop(struct mu_encode *e)
{
    uint64_t top = e->heap[0];
    e->heap[0] = e->heap[--e->n_heap];
    if (e->n_heap) sink(e->heap, e->n_heap, 0);
    return top;
}

static enum mu_status merge_long(struct mu_encode *e, const char *text, size_t n, mu_tok_pair pair, size_t *n_out,
                                 struct mu_err *err)
{
    const struct mu_tokenizer *t = e->t;
    struct mu_tok_sym *s = e->syms;
    /* A merge takes one entry and adds at most two, and there are fewer than n merges. */
    size_t need;
    if (!mu_mul_size(n, 2, &need)) return mu_tok_nomem(err);
    if (need > e->cap_heap) {
        uint64_t *p = mu_reallocarray(e->heap, need, sizeof *p);
        if (!p) return mu_tok_nomem(err);
        e->heap = p;
        e->cap_heap = need;
    }
    e->n_heap = 0;
    for (size_t i = 0; i < n; i++) {
        s[i].prev = (int32_t)i - 1;
        s[i].next = i + 1 < n ? (int32_t)i + 1 : -1;
        s[i].key = MU_TOK_NO_MERGE;
        if (i + 1 < n) pair(t, text, &s[i], &s[i + 1], &s[i].key, &s[i].merged);
        if (s[i].key != MU_TOK_NO_MERGE) e->heap[e->n_heap++] = (uint64_t)s[i].key << 32 | i;
    }
    for (size_t i = e->n_heap / 4 + 1; i-- > 0;) {
        if (i < e->n_heap) sink(e->heap, e->n_heap, i);
    }
    while (e->n_heap) {
        uint64_t top = heap_pop(e);
        int32_t at = (int32_t)(uint32_t)top;
        struct mu_tok_sym *l = &s[at];
        if (l->key != (uint32_t)(top >> 32)) continue;
        struct mu_tok_sym *r = &s[l->next];
        l->id = l->merged;
        l->len += r->len;
        l->next = r->next;
        l->key = r->key = MU_TOK_NO_MERGE;
        if (l->next >= 0) {
            s[l->next].prev = at;
            pair(t, text, l, &s[l->next], &l->key, &l->merged);
            if (l->key != MU_TOK_NO_MERGE) heap_push(e, l->key, at);
        }
        if (l->prev >= 0) {
            struct mu_tok_sym *p = &s[l->prev];
            pair(t, text, p, l, &p->key, &p->merged);
            if (p->key != MU_TOK_NO_MERGE) heap_push(e, p->key, l->prev);
        }
    }
    size_t kept = 0;
    for (int32_t i = 0; i >= 0;) {
        int32_t next = s[i].next;
        s[kept++] = s[i]; /* kept ≤ i: the list is in order */
        i = next;
    }
    *n_out = kept;
    return MU_OK;
}

enum mu_status mu_tok_merge_all(struct mu_encode *e, const char *text, size_t n, mu_tok_pair pair, size_t *n_out,
                                struct mu_err *err)
{
    if (n > SHORT) return merge_long(e, text, n, pair, n_out, err);
    *n_out = n > 1 ? merge_short(e, text, n, pair) : n;
    return MU_OK;
}
