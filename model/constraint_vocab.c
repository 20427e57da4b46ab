/* A vocabulary as a trie of its tokens' bytes, so that what tokens share is read once. */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "model/constraint_part.h"
#include "model/utf8.h"

enum { NODES_MAX = 1 << 26 };

struct entry {
    const char *p;
    uint32_t len;
    int32_t id;
};

static int by_bytes(const void *x, const void *y)
{
    const struct entry *a = x, *b = y;
    uint32_t n = a->len < b->len ? a->len : b->len;
    int c = memcmp(a->p, b->p, n);
    if (c) return c;
    if (a->len != b->len) return a->len < b->len ? -1 : 1;
    return a->id < b->id ? -1 : a->id > b->id;
}

static uint32_t shared(const struct entry *a, const struct entry *b)
{
    uint32_t n = 0;
    while (n < a->len && n < b->len && a->p[n] == b->p[n]) n++;
    return n;
}

static enum mu_status list_tokens(struct mu_constraint_vocab *v, struct entry *list, uint32_t *n_out,
                                  struct mu_err *err)
{
    uint32_t n = 0;
    v->ends = mu_calloc((size_t)v->n_vocab + 1, sizeof *v->ends);
    v->same = mu_calloc((size_t)v->n_vocab + 1, sizeof *v->same);
    if (!v->ends || !v->same) return mu_fail(err, MU_ENOMEM, "no memory for the tokens of a constraint");
    for (int id = 0; id < v->n_vocab; id++) {
        struct mu_str piece = mu_tokenizer_piece(v->tok, id, false);
        v->same[id] = -1;
        if (mu_tokenizer_is_end(v->tok, id)) {
            v->ends[v->n_end++] = id;
        } else if (piece.len && piece.len <= UINT16_MAX) {
            list[n++] = (struct entry){piece.p, (uint32_t)piece.len, id};
        }
    }
    qsort(list, n, sizeof *list, by_bytes);
    *n_out = n;
    return MU_OK;
}

/* Characters of a text that is plain; 255: it is not, or has too many. */
static uint8_t plain_chars(const char *p, size_t n)
{
    uint32_t cp, count = 0;
    for (size_t at = 0; at < n; count++) {
        int step = mu_utf8_next(p + at, n - at, &cp);
        if (!step || cp < ' ' || cp == 0x7F || cp == '"' || cp == '\\' || count == MU_PLAIN_MAX) return 255;
        at += (size_t)step;
    }
    return (uint8_t)count;
}

static enum mu_status find_plain(struct mu_constraint_vocab *v, struct mu_err *err)
{
    for (int k = 0; k < MU_PLAIN_STEPS; k++) {
        v->plain[k] = mu_calloc(mu_constraint_mask_words(v) + 1, sizeof *v->plain[k]);
        if (!v->plain[k]) return mu_fail(err, MU_ENOMEM, "no memory for the tokens of a constraint");
    }
    for (uint32_t i = v->n_node; i-- > 0;) { /* children have greater numbers than their parents */
        struct mu_trie_node *x = &v->nodes[i];
        for (int32_t id = x->id; id >= 0; id = v->same[id]) {
            struct mu_str piece = mu_tokenizer_piece(v->tok, id, false);
            uint8_t n = plain_chars(piece.p, piece.len);
            x->plain = n > x->plain ? n : x->plain;
            for (int k = 0; k < MU_PLAIN_STEPS; k++) {
                if (n <= mu_plain_chars[k]) v->plain[k][id / 32] |= 1u << (id % 32);
            }
        }
        struct mu_trie_node *up = &v->nodes[x->parent];
        up->plain = x->plain > up->plain ? x->plain : up->plain;
    }
    return MU_OK;
}

static enum mu_status build(struct mu_constraint_vocab *v, const struct entry *list, uint32_t n, struct mu_err *err)
{
    size_t total = 1;
    for (uint32_t i = 0; i < n; i++) {
        total += list[i].len - (i ? shared(&list[i - 1], &list[i]) : 0);
        v->depth_max = list[i].len > v->depth_max ? list[i].len : v->depth_max;
    }
    if (total > NODES_MAX) {
        return mu_fail(err, MU_ELIMIT, "the vocabulary's tokens have %zu bytes of their own; a constraint takes %d",
                       total, NODES_MAX);
    }
    v->nodes = mu_calloc(total, sizeof *v->nodes);
    uint32_t *path = mu_calloc((size_t)v->depth_max + 1, sizeof *path); /* nodes of the last token, by depth */
    if (!v->nodes || !path) {
        mu_free(path);
        return mu_fail(err, MU_ENOMEM, "no memory for the tokens of a constraint");
    }
    v->nodes[v->n_node++] = (struct mu_trie_node){.id = -1};
    for (uint32_t i = 0; i < n; i++) {
        const struct entry *e = &list[i];
        uint32_t d = i ? shared(&list[i - 1], e) : 0;
        for (uint32_t k = d + 1; i && k <= list[i - 1].len; k++) v->nodes[path[k]].end = v->n_node;
        for (; d < e->len; d++) {
            v->nodes[v->n_node] = (struct mu_trie_node){
                .parent = path[d], .id = -1, .depth = (uint16_t)(d + 1), .byte = (uint8_t)e->p[d]};
            path[d + 1] = v->n_node++;
        }
        struct mu_trie_node *last = &v->nodes[path[e->len]];
        v->same[e->id] = last->id;
        last->id = e->id;
    }
    for (uint32_t k = 1; n && k <= list[n - 1].len; k++) v->nodes[path[k]].end = v->n_node;
    v->nodes[0].end = v->n_node;
    mu_free(path);
    return MU_OK;
}

enum mu_status mu_constraint_vocab_create(const struct mu_tokenizer *t, struct mu_constraint_vocab **v_out,
                                          struct mu_err *err)
{
    enum mu_status st = MU_ENOMEM;
    struct mu_constraint_vocab *v = mu_calloc(1, sizeof *v);
    struct entry *list = mu_calloc((size_t)mu_tokenizer_n_vocab(t) + 1, sizeof *list);
    uint32_t n = 0;
    if (!v || !list) {
        mu_fail(err, st, "no memory for the tokens of a constraint");
        goto fail;
    }
    v->tok = t;
    v->n_vocab = mu_tokenizer_n_vocab(t);
    MU_TRY(st, list_tokens(v, list, &n, err), fail);
    MU_TRY(st, build(v, list, n, err), fail);
    MU_TRY(st, find_plain(v, err), fail);
    mu_free(list);
    *v_out = v;
    return MU_OK;
fail:
    mu_free(list);
    mu_constraint_vocab_free(v);
    return st;
}

void mu_constraint_vocab_free(struct mu_constraint_vocab *v)
{
    if (!v) return;
    for (int k = 0; k < MU_PLAIN_STEPS; k++) mu_free(v->plain[k]);
    mu_free(v->nodes);
    mu_free(v->same);
    mu_free(v->ends);
    mu_free(v);
}

size_t mu_constraint_vocab_bytes(const struct mu_constraint_vocab *v)
{
    return sizeof *v + MU_PLAIN_STEPS * mu_constraint_mask_words(v) * 4 + v->n_node * sizeof *v->nodes +
           (size_t)v->n_vocab * 8;
}

size_t mu_constraint_mask_words(const struct mu_constraint_vocab *v)
{
    return ((size_t)v->n_vocab + 31) / 32;
}
