/* Values of a rendering: strings that grow by appending, lists, ordered dicts, what is true and what can be iterated.
 *
 * A dict of up to eight entries is searched in order; larger ones have an index. Strings are borrowed wherever what
 * they point into lives as long as the rendering (the conversation, the template, other strings). */
#include <string.h>

#include "base/alloc.h"
#include "model/jinja.h"

enum { INDEXED = 8 }; /* entries */

const char *mu_jk_name(enum mu_jk kind)
{
    static const char *const names[] = {"undefined", "None", "bool",      "int",  "float", "str",    "list",
                                        "tuple",     "dict", "namespace", "loop", "macro", "method", "function"};
    return names[kind];
}

void mu_ji_fail_undefined(struct mu_ji *j, struct mu_jv v)
{
    if (!v.s) mu_ji_fail(j, MU_EFORMAT, "a value is undefined");
    if (!v.of) mu_ji_fail(j, MU_EFORMAT, "'%.*s' is undefined", (int)(v.s->len > 80 ? 80 : v.s->len), v.s->p);
    mu_ji_fail(j, MU_EFORMAT, "a value of type %s has no '%.*s'", mu_jk_name(v.of - 1),
               (int)(v.s->len > 80 ? 80 : v.s->len), v.s->p);
}

void *mu_ji_alloc(struct mu_ji *j, size_t n, size_t size)
{
    size_t bytes;
    if (!mu_mul_size(n, size, &bytes) || bytes > MU_JI_MAX_MEMORY - mu_arena_used(j->arena))
        mu_ji_fail(j, MU_ELIMIT, "its values need more than %d MiB", MU_JI_MAX_MEMORY >> 20);
    void *p = mu_arena_alloc(j->arena, bytes);
    if (!p) mu_ji_fail(j, MU_ENOMEM, "no memory for its values");
    mu_ji_steps(j, bytes / 64);
    return p;
}

/* ---- strings ---- */

struct mu_jv mu_jv_borrow(struct mu_ji *j, const char *p, size_t len)
{
    struct mu_js *s = mu_ji_alloc(j, 1, sizeof *s);
    *s = (struct mu_js){.p = p, .len = len};
    return (struct mu_jv){.kind = MU_JK_STR, .s = s};
}

struct mu_jv mu_jv_str(struct mu_ji *j, const char *p, size_t len)
{
    char *copy = mu_ji_alloc(j, len + 1, 1);
    if (len) memcpy(copy, p, len);
    copy[len] = '\0';
    return mu_jv_borrow(j, copy, len);
}

/* Templates collect text by a = a + b in loops. So the second append to a string gets a buffer with room to spare, and
 * later ones to its newest end go there: all strings share the bytes, none of which ever changes. */
struct mu_jv mu_jv_concat(struct mu_ji *j, const struct mu_js *a, const struct mu_js *b)
{
    struct mu_jbuf *buf = a->buf;
    struct mu_js *s = mu_ji_alloc(j, 1, sizeof *s);
    mu_ji_steps(j, b->len / 64);
    if (buf && buf->data + buf->used == a->p + a->len && b->len <= buf->cap - buf->used) {
        memcpy(buf->data + buf->used, b->p, b->len);
        buf->used += b->len;
        *s = (struct mu_js){.p = a->p, .len = a->len + b->len, .buf = buf};
        return (struct mu_jv){.kind = MU_JK_STR, .s = s};
    }
    size_t len = a->len + b->len, cap = buf ? len * 2 : len;
    buf = mu_ji_alloc(j, sizeof *buf + cap, 1);
    *buf = (struct mu_jbuf){.used = len, .cap = cap};
    if (a->len) memcpy(buf->data, a->p, a->len);
    if (b->len) memcpy(buf->data + a->len, b->p, b->len);
    *s = (struct mu_js){.p = buf->data, .len = len, .buf = buf};
    return (struct mu_jv){.kind = MU_JK_STR, .s = s};
}

/* ---- lists ---- */

struct mu_jl *mu_jl_new(struct mu_ji *j, size_t cap)
{
    struct mu_jl *l = mu_ji_alloc(j, 1, sizeof *l);
    *l = (struct mu_jl){.v = cap ? mu_ji_alloc(j, cap, sizeof *l->v) : NULL, .cap = cap};
    return l;
}

void mu_jl_push(struct mu_ji *j, struct mu_jl *l, struct mu_jv v)
{
    if (l->n == l->cap) {
        size_t cap = l->cap ? l->cap * 2 : 4;
        struct mu_jv *more = mu_ji_alloc(j, cap, sizeof *more);
        if (l->n) memcpy(more, l->v, l->n * sizeof *more);
        l->v = more;
        l->cap = cap;
    }
    l->v[l->n++] = v;
}

/* ---- dicts ---- */

static uint32_t hash_bytes(const void *p, size_t len)
{
    const unsigned char *c = p;
    uint32_t h = 2166136261u; /* FNV-1a */
    for (size_t i = 0; i < len; i++) h = (h ^ c[i]) * 16777619u;
    return h ^ h >> 15;
}

static uint32_t hash_key(struct mu_ji *j, struct mu_jv key)
{
    int64_t i = 0;
    switch (key.kind) {
    case MU_JK_STR: mu_ji_steps(j, key.s->len / 64); return hash_bytes(key.s->p, key.s->len);
    case MU_JK_NONE: return 1;
    case MU_JK_BOOL:
    case MU_JK_INT: i = mu_jv_as_int(key); break;
    case MU_JK_FLOAT: /* as the integer that it equals, where it does; all others alike */
        if (key.f > -9e18 && key.f < 9e18) i = (int64_t)key.f;
        break;
    default: mu_ji_fail(j, MU_EFORMAT, "a value of type %s cannot be a key", mu_jk_name(key.kind));
    }
    return hash_bytes(&i, sizeof i);
}

static bool same_key(struct mu_jv a, struct mu_jv b)
{
    if (a.kind == MU_JK_STR || b.kind == MU_JK_STR)
        return a.kind == b.kind && a.s->len == b.s->len && memcmp(a.s->p, b.s->p, a.s->len) == 0;
    if (a.kind == MU_JK_NONE || b.kind == MU_JK_NONE) return a.kind == b.kind;
    if (mu_jv_is_int(a) && mu_jv_is_int(b)) return mu_jv_as_int(a) == mu_jv_as_int(b);
    double x = a.kind == MU_JK_FLOAT ? a.f : (double)mu_jv_as_int(a);
    double y = b.kind == MU_JK_FLOAT ? b.f : (double)mu_jv_as_int(b);
    return x == y;
}

static void build_index(struct mu_ji *j, struct mu_jd *d)
{
    if (d->n_index < d->cap * 2) {
        size_t n = 32;
        while (n < d->cap * 2) n *= 2;
        d->index = mu_ji_alloc(j, n, sizeof *d->index);
        d->n_index = n;
    }
    memset(d->index, 0, d->n_index * sizeof *d->index);
    mu_ji_steps(j, d->n);
    for (size_t i = 0; i < d->n; i++) {
        size_t at = hash_key(j, d->e[i].key) & (d->n_index - 1);
        while (d->index[at]) at = (at + 1) & (d->n_index - 1);
        d->index[at] = (uint32_t)i + 1;
    }
}

struct mu_jd *mu_jd_new(struct mu_ji *j, size_t cap)
{
    struct mu_jd *d = mu_ji_alloc(j, 1, sizeof *d);
    *d = (struct mu_jd){.e = cap ? mu_ji_alloc(j, cap, sizeof *d->e) : NULL, .cap = cap};
    return d;
}

struct mu_jv *mu_jd_find(struct mu_ji *j, struct mu_jd *d, struct mu_jv key)
{
    uint32_t h = hash_key(j, key); /* also says what cannot be one */
    if (d->n <= INDEXED) {
        for (size_t i = 0; i < d->n; i++)
            if (same_key(d->e[i].key, key)) return &d->e[i].val;
        return NULL;
    }
    for (size_t at = h & (d->n_index - 1); d->index[at]; at = (at + 1) & (d->n_index - 1)) {
        mu_ji_steps(j, 1);
        if (same_key(d->e[d->index[at] - 1].key, key)) return &d->e[d->index[at] - 1].val;
    }
    return NULL;
}

struct mu_jv *mu_jd_find_text(struct mu_ji *j, struct mu_jd *d, const char *key)
{
    const struct mu_js s = {.p = key, .len = strlen(key)};
    return mu_jd_find(j, d, (struct mu_jv){.kind = MU_JK_STR, .s = &s});
}

void mu_jd_put(struct mu_ji *j, struct mu_jd *d, struct mu_jv key, struct mu_jv val)
{
    struct mu_jv *there = mu_jd_find(j, d, key);
    if (there) {
        *there = val;
        return;
    }
    bool grown = d->n == d->cap;
    if (grown) {
        size_t cap = d->cap ? d->cap * 2 : 4;
        struct mu_jent *more = mu_ji_alloc(j, cap, sizeof *more);
        if (d->n) memcpy(more, d->e, d->n * sizeof *more);
        d->e = more;
        d->cap = cap;
    }
    d->e[d->n++] = (struct mu_jent){key, val};
    if (d->n <= INDEXED) return;
    if (d->n == INDEXED + 1 || d->n_index < d->cap * 2) {
        build_index(j, d);
        return;
    }
    size_t at = hash_key(j, key) & (d->n_index - 1);
    while (d->index[at]) at = (at + 1) & (d->n_index - 1);
    d->index[at] = (uint32_t)d->n;
}

bool mu_jd_take(struct mu_ji *j, struct mu_jd *d, struct mu_jv key, struct mu_jv *val_out)
{
    struct mu_jv *there = mu_jd_find(j, d, key);
    if (!there) return false;
    *val_out = *there;
    mu_ji_steps(j, d->n);
    for (size_t i = 0; i < d->n; i++)
        if (&d->e[i].val == there) {
            memmove(d->e + i, d->e + i + 1, (d->n - i - 1) * sizeof *d->e);
            d->n--;
            break;
        }
    if (d->n > INDEXED) build_index(j, d);
    return true;
}

/* ---- what holds of all ---- */

bool mu_jv_truth(struct mu_jv v)
{
    switch (v.kind) {
    case MU_JK_UNDEFINED:
    case MU_JK_NONE: return false;
    case MU_JK_BOOL: return v.b;
    case MU_JK_INT: return v.i != 0;
    case MU_JK_FLOAT: return v.f != 0;
    case MU_JK_STR: return v.s->len > 0;
    case MU_JK_LIST:
    case MU_JK_TUPLE: return v.l->lazy || v.l->n > 0;
    case MU_JK_DICT: return v.d->n > 0;
    default: return true;
    }
}

int64_t mu_jv_length(struct mu_ji *j, struct mu_jv v)
{
    switch (v.kind) {
    case MU_JK_UNDEFINED: return 0;
    case MU_JK_STR: return (int64_t)mu_js_count(j, v.s);
    case MU_JK_LIST:
    case MU_JK_TUPLE:
        if (v.l->lazy)
            mu_ji_fail(j, MU_EFORMAT, "what map, select and their like give has no length; use | list first");
        return (int64_t)v.l->n;
    case MU_JK_DICT: return (int64_t)v.d->n;
    case MU_JK_LOOP: return (int64_t)v.loop->n;
    default: mu_ji_fail(j, MU_EFORMAT, "a value of type %s has no length", mu_jk_name(v.kind));
    }
}

static struct mu_jv *characters(struct mu_ji *j, const struct mu_js *s, size_t n)
{
    struct mu_jv *v = mu_ji_alloc(j, n + 1, sizeof *v);
    mu_ji_steps(j, n);
    for (size_t i = 0, at = 0; i < n; i++) {
        size_t begin = at;
        mu_js_at(s, &at);
        v[i] = mu_jv_borrow(j, s->p + begin, at - begin);
    }
    return v;
}

static struct mu_jv *keys(struct mu_ji *j, const struct mu_jd *d)
{
    struct mu_jv *v = mu_ji_alloc(j, d->n + 1, sizeof *v);
    for (size_t i = 0; i < d->n; i++) v[i] = d->e[i].key;
    return v;
}

void mu_jv_iterate(struct mu_ji *j, struct mu_jv v, const struct mu_jv **items_out, size_t *n_out)
{
    *items_out = NULL;
    *n_out = 0;
    switch (v.kind) {
    case MU_JK_UNDEFINED: return;
    case MU_JK_STR:
        *n_out = mu_js_count(j, v.s);
        *items_out = characters(j, v.s, *n_out);
        return;
    case MU_JK_LIST:
    case MU_JK_TUPLE:
        *items_out = v.l->v;
        *n_out = v.l->n;
        if (v.l->lazy) v.l->n = 0; /* used up; nothing is ever pushed to it again */
        mu_ji_steps(j, *n_out);
        return;
    case MU_JK_DICT:
        *items_out = keys(j, v.d);
        *n_out = v.d->n;
        return;
    default: mu_ji_fail(j, MU_EFORMAT, "a value of type %s cannot be iterated", mu_jk_name(v.kind));
    }
}
