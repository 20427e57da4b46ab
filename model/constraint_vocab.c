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

/* Characters of a text that is plain; MU_SORT_WALK: it is not, or has too many. */
static uint8_t plain_chars(const char *p, size_t n)
{
    uint32_t cp, count = 0;
    for (size_t at = 0; at < n; count++) {
        int step = mu_utf8_next(p + at, n - at, &cp);
        if (!step || cp < ' ' || cp == 0x7F || cp == '"' || cp == '\\' || count == MU_PLAIN_MAX) return MU_SORT_WALK;
        at += (size_t)step;
    }
    return (uint8_t)count;
}

static void find_kinds(struct mu_constraint_vocab *v)
{
    static const char ranges[][2] = {{'0', '9'}, {'a', 'f'}, {'g', 'z'}, {'A', 'F'}, {'G', 'Z'}};
    uint8_t n = 0;
    memset(v->kind_of, MU_KIND_OTHER, sizeof v->kind_of);
    for (; n < sizeof ranges / sizeof *ranges; n++) {
        for (int b = ranges[n][0]; b <= ranges[n][1]; b++) v->kind_of[b] = n;
    }
    for (int b = ' '; b < 0x7F; b++) {
        if (v->kind_of[b] == MU_KIND_OTHER) v->kind_of[b] = n++;
    }
}

/* The part of the vocabulary's trie that leads to tokens which are to be walked; count[n_order + 1] is scratch. */
static enum mu_status sort_trie(const struct mu_constraint_vocab *v, const uint8_t *known, uint32_t *count,
                                struct mu_sort *s, struct mu_err *err)
{
    size_t most = 1, depth = 0;
    for (uint32_t k = 0; k < v->n_order; k++) {
        bool walk = known[v->order[k]] == MU_SORT_WALK;
        count[k + 1] = count[k] + walk;
        most += walk ? v->length[v->order[k]] : 0;
    }
    if (most > v->n_node || v->depth_max >= 255) most = v->n_node; /* lengths end at 255 */
    uint32_t *open = mu_calloc((size_t)v->depth_max + 1, sizeof *open),
             n = 1; /* open: nodes of the last token, by depth */
    s->nodes = mu_malloc(most * sizeof *s->nodes);
    s->node_of = mu_malloc(most * sizeof *s->node_of);
    if (!open || !s->nodes || !s->node_of) {
        mu_free(open);
        return mu_fail(err, MU_ENOMEM, "no memory for the tokens of a constraint");
    }
    s->nodes[0] = v->nodes[0];
    for (uint32_t i = 1; i < v->n_node;) {
        const struct mu_trie_node *x = &v->nodes[i];
        if (count[v->below[x->end].before] == count[v->below[i].before]) {
            i = x->end;
            continue;
        }
        for (; depth >= x->depth; depth--) s->nodes[open[depth]].end = n;
        s->nodes[n] = *x;
        s->nodes[n].parent = open[x->depth - 1];
        if (x->id >= 0 && known[x->id] != MU_SORT_WALK) s->nodes[n].id = -1;
        s->node_of[n] = i++;
        open[depth = x->depth] = n++;
    }
    for (; depth > 0; depth--) s->nodes[open[depth]].end = n;
    s->nodes[0].end = n;
    s->n_node = n;
    mu_free(open);
    struct mu_trie_node *nodes = mu_reallocarray(s->nodes, n, sizeof *nodes);
    if (nodes) s->nodes = nodes;
    uint32_t *node_of = mu_reallocarray(s->node_of, n, sizeof *node_of);
    if (node_of) s->node_of = node_of;
    return MU_OK;
}

enum mu_status mu_sort_make(const struct mu_constraint_vocab *v, const uint8_t *known, struct mu_sort *s,
                            struct mu_err *err)
{
    uint32_t at[257] = {0};
    for (int id = 0; id < v->n_vocab; id++) {
        if (known[id] < MU_SORT_WALK) at[known[id] + 1]++;
    }
    for (int k = 1; k < 257; k++) at[k] += at[k - 1];
    memcpy(s->upto, at + 1, 256 * sizeof *at);
    s->mask = mu_calloc(mu_constraint_mask_words(v) + 1, sizeof *s->mask);
    s->ids = mu_reallocarray(NULL, s->upto[255] + 1, sizeof *s->ids);
    uint32_t *count = mu_calloc((size_t)v->n_order + 1, sizeof *count);
    enum mu_status st = s->mask && s->ids && count
                            ? sort_trie(v, known, count, s, err)
                            : mu_fail(err, MU_ENOMEM, "no memory for the tokens of a constraint");
    for (int32_t id = 0; id < v->n_vocab && st == MU_OK; id++) {
        if (known[id] >= MU_SORT_WALK) continue;
        s->ids[at[known[id]]++] = id;
        s->mask[id / 32] |= 1u << (id % 32);
    }
    mu_free(count);
    if (st != MU_OK) mu_sort_free(s);
    return st;
}

void mu_sort_free(struct mu_sort *s)
{
    mu_free(s->mask);
    mu_free(s->ids);
    mu_free(s->nodes);
    mu_free(s->node_of);
    memset(s, 0, sizeof *s);
}

size_t mu_sort_bytes(const struct mu_constraint_vocab *v, const struct mu_sort *s)
{
    if (!s->mask) return 0;
    return (mu_constraint_mask_words(v) + s->upto[255]) * 4 + s->n_node * (sizeof *s->nodes + sizeof *s->node_of);
}

/* What tokens are made of, each and all below a node. */
static enum mu_status find_content(struct mu_constraint_vocab *v, struct mu_err *err)
{
    size_t n = (size_t)v->n_vocab + 1;
    uint8_t *plain = mu_malloc(n * sizeof *plain); /* characters */
    v->length = mu_calloc(n, sizeof *v->length);
    v->kinds = mu_malloc(n * sizeof *v->kinds);
    v->order = mu_calloc(n, sizeof *v->order);
    v->below = mu_calloc((size_t)v->n_node + 1, sizeof *v->below);
    if (!plain || !v->length || !v->kinds || !v->order || !v->below) {
        mu_free(plain);
        return mu_fail(err, MU_ENOMEM, "no memory for the tokens of a constraint");
    }
    memset(plain, MU_SORT_NOT, n * sizeof *plain);
    memset(v->kinds, 0xFF, n * sizeof *v->kinds);
    find_kinds(v);
    for (uint32_t i = 0; i < v->n_node; i++) {
        const struct mu_trie_node *x = &v->nodes[i];
        v->below[i].before = v->n_order;
        for (int32_t id = x->id; id >= 0; id = v->same[id]) {
            struct mu_str piece = mu_tokenizer_piece(v->tok, id, false);
            v->order[v->n_order++] = id;
            plain[id] = plain_chars(piece.p, piece.len);
            v->length[id] = (uint8_t)(piece.len < 255 ? piece.len : 255);
            v->kinds[id] = 0;
            for (size_t k = 0; k < piece.len; k++) v->kinds[id] |= (uint64_t)1 << v->kind_of[(uint8_t)piece.p[k]];
        }
    }
    v->below[v->n_node].before = v->n_order;
    for (uint32_t i = v->n_node; i-- > 1;) { /* children have greater numbers than their parents */
        const struct mu_trie_node *x = &v->nodes[i];
        struct mu_trie_below *b = &v->below[i], *b_up = &v->below[x->parent];
        b->kinds |= (uint64_t)1 << v->kind_of[x->byte];
        b->height++;
        b_up->kinds |= b->kinds;
        if (b->height > b_up->height) b_up->height = b->height;
    }
    enum mu_status st = mu_sort_make(v, plain, &v->plain_text, err);
    mu_free(plain);
    return st;
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
    MU_TRY(st, find_content(v, err), fail);
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
    mu_free(v->nodes);
    mu_sort_free(&v->plain_text);
    mu_free(v->below);
    mu_free(v->order);
    mu_free(v->length);
    mu_free(v->kinds);
    mu_free(v->same);
    mu_free(v->ends);
    mu_free(v);
}

size_t mu_constraint_vocab_bytes(const struct mu_constraint_vocab *v)
{
    return sizeof *v + mu_sort_bytes(v, &v->plain_text) + v->n_node * (sizeof *v->nodes + sizeof *v->below) +
           (size_t)v->n_vocab *
               (sizeof *v->same + sizeof *v->ends + sizeof *v->order + sizeof *v->length + sizeof *v->kinds);
}

size_t mu_constraint_mask_words(const struct mu_constraint_vocab *v)
{
    return ((size_t)v->n_vocab + 31) / 32;
}
