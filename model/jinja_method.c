/* The methods of dicts, lists, tuples and loops; those of text are in jinja_method_text.c. */
#include <string.h>

#include "model/jinja.h"

#define METHOD(name) static struct mu_jv name(struct mu_ji *j, struct mu_jv self, const struct mu_jargs *a)

/* ---- dicts ---- */

METHOD(m_get)
{
    struct mu_jv fallback = mu_jv_none(), *there = mu_jd_find(j, self.d, mu_ji_want(j, a, 0, "key"));
    mu_ji_arg(a, 1, "default", &fallback);
    return there ? *there : fallback;
}

METHOD(m_items)
{
    struct mu_jl *l = mu_jl_new(j, self.d->n);
    (void)a;
    for (size_t i = 0; i < self.d->n; i++) {
        struct mu_jl *two = mu_jl_new(j, 2);
        mu_jl_push(j, two, self.d->e[i].key);
        mu_jl_push(j, two, self.d->e[i].val);
        mu_jl_push(j, l, (struct mu_jv){.kind = MU_JK_TUPLE, .l = two});
    }
    return mu_jv_list(l);
}

METHOD(m_keys)
{
    struct mu_jl *l = mu_jl_new(j, self.d->n);
    (void)a;
    for (size_t i = 0; i < self.d->n; i++) mu_jl_push(j, l, self.d->e[i].key);
    return mu_jv_list(l);
}

METHOD(m_values)
{
    struct mu_jl *l = mu_jl_new(j, self.d->n);
    (void)a;
    for (size_t i = 0; i < self.d->n; i++) mu_jl_push(j, l, self.d->e[i].val);
    return mu_jv_list(l);
}

METHOD(m_dict_pop)
{
    struct mu_jv v = mu_jv_none();
    if (mu_jd_take(j, self.d, mu_ji_want(j, a, 0, "key"), &v)) return v;
    if (!mu_ji_arg(a, 1, "default", &v)) mu_ji_fail(j, MU_EFORMAT, "pop: the key is not there");
    return v;
}

METHOD(m_update)
{
    struct mu_jv from;
    if (mu_ji_arg(a, 0, NULL, &from)) {
        if (!mu_jv_is_dict(from)) mu_ji_fail(j, MU_EFORMAT, "update takes a dict, not %s", mu_jk_name(from.kind));
        for (size_t i = 0; i < from.d->n; i++) mu_jd_put(j, self.d, from.d->e[i].key, from.d->e[i].val);
    }
    for (size_t i = 0; i < a->n_kw; i++)
        mu_jd_put(j, self.d, (struct mu_jv){.kind = MU_JK_STR, .s = a->kw[i].name}, a->kw[i].val);
    return mu_jv_none();
}

METHOD(m_setdefault)
{
    struct mu_jv key = mu_ji_want(j, a, 0, "key"), fallback = mu_jv_none(), *there = mu_jd_find(j, self.d, key);
    if (there) return *there;
    mu_ji_arg(a, 1, "default", &fallback);
    mu_jd_put(j, self.d, key, fallback);
    return fallback;
}

METHOD(m_dict_copy)
{
    struct mu_jd *d = mu_jd_new(j, self.d->n);
    (void)a;
    for (size_t i = 0; i < self.d->n; i++) mu_jd_put(j, d, self.d->e[i].key, self.d->e[i].val);
    return (struct mu_jv){.kind = MU_JK_DICT, .d = d};
}

METHOD(m_dict_clear)
{
    (void)j;
    (void)a;
    self.d->n = 0;
    return mu_jv_none();
}

/* ---- lists ---- */

METHOD(m_append)
{
    mu_jl_push(j, self.l, mu_ji_want(j, a, 0, "object"));
    return mu_jv_none();
}

METHOD(m_extend)
{
    const struct mu_jv *items;
    size_t n;
    mu_jv_iterate(j, mu_ji_want(j, a, 0, "iterable"), &items, &n);
    for (size_t i = 0; i < n; i++) mu_jl_push(j, self.l, items[i]);
    return mu_jv_none();
}

METHOD(m_insert)
{
    int64_t n = (int64_t)self.l->n, at = mu_ji_int_or(j, a, 0, "index", 0);
    struct mu_jv v = mu_ji_want(j, a, 1, "object");
    if (at < 0) at = at < -n ? 0 : at + n;
    if (at > n) at = n;
    mu_ji_steps(j, self.l->n / 16);
    mu_jl_push(j, self.l, v);
    memmove(self.l->v + at + 1, self.l->v + at, (size_t)(n - at) * sizeof v);
    self.l->v[at] = v;
    return mu_jv_none();
}

static void take_out(struct mu_ji *j, struct mu_jl *l, size_t at)
{
    mu_ji_steps(j, l->n / 16);
    memmove(l->v + at, l->v + at + 1, (l->n - at - 1) * sizeof *l->v);
    l->n--;
}

METHOD(m_pop)
{
    int64_t n = (int64_t)self.l->n, at = mu_ji_int_or(j, a, 0, "index", -1);
    if (at < 0) at = at < -n ? -1 : at + n;
    if (at < 0 || at >= n) mu_ji_fail(j, MU_EFORMAT, "pop: there is no such item");
    struct mu_jv v = self.l->v[at];
    take_out(j, self.l, (size_t)at);
    return v;
}

static int64_t index_of(struct mu_ji *j, const struct mu_jl *l, struct mu_jv v)
{
    for (size_t i = 0; i < l->n; i++)
        if (mu_jv_equal(j, l->v[i], v)) return (int64_t)i;
    mu_ji_fail(j, MU_EFORMAT, "the item is not in the list");
}

METHOD(m_remove)
{
    take_out(j, self.l, (size_t)index_of(j, self.l, mu_ji_want(j, a, 0, "value")));
    return mu_jv_none();
}

METHOD(m_index)
{
    return mu_jv_int(index_of(j, self.l, mu_ji_want(j, a, 0, "value")));
}

METHOD(m_count)
{
    struct mu_jv v = mu_ji_want(j, a, 0, "value");
    int64_t n = 0;
    for (size_t i = 0; i < self.l->n; i++) n += mu_jv_equal(j, self.l->v[i], v);
    return mu_jv_int(n);
}

METHOD(m_reverse)
{
    struct mu_jl *l = self.l;
    (void)a;
    mu_ji_steps(j, l->n);
    for (size_t i = 0; i < l->n / 2; i++) {
        struct mu_jv v = l->v[i];
        l->v[i] = l->v[l->n - 1 - i];
        l->v[l->n - 1 - i] = v;
    }
    return mu_jv_none();
}

METHOD(m_list_copy)
{
    struct mu_jl *l = mu_jl_new(j, self.l->n);
    (void)a;
    for (size_t i = 0; i < self.l->n; i++) mu_jl_push(j, l, self.l->v[i]);
    return mu_jv_list(l);
}

METHOD(m_list_clear)
{
    (void)j;
    (void)a;
    self.l->n = 0;
    return mu_jv_none();
}

/* ---- loops ---- */

METHOD(m_cycle)
{
    if (!a->n) mu_ji_fail(j, MU_EFORMAT, "loop.cycle needs an argument");
    return a->v[self.loop->i % a->n];
}

METHOD(m_changed)
{
    struct mu_jl *l = mu_jl_new(j, a->n);
    for (size_t i = 0; i < a->n; i++) mu_jl_push(j, l, a->v[i]);
    struct mu_jv now = {.kind = MU_JK_TUPLE, .l = l};
    bool changed = !self.loop->has_changed || !mu_jv_equal(j, self.loop->changed, now);
    self.loop->changed = now;
    self.loop->has_changed = true;
    return mu_jv_bool(changed);
}

const struct mu_jfunc *mu_ji_method(struct mu_jv self, const char *name, size_t len)
{
    static const struct mu_jfunc dict[] = {
        {"get", m_get, false},
        {"items", m_items, false},
        {"keys", m_keys, false},
        {"values", m_values, false},
        {"pop", m_dict_pop, false},
        {"update", m_update, false},
        {"setdefault", m_setdefault, false},
        {"copy", m_dict_copy, false},
        {"clear", m_dict_clear, false},
    };
    static const struct mu_jfunc list[] = {
        {"index", m_index, false},    {"count", m_count, false}, /* tuples have these two */
        {"append", m_append, false},  {"extend", m_extend, false},    {"insert", m_insert, false},
        {"pop", m_pop, false},        {"remove", m_remove, false},    {"reverse", m_reverse, false},
        {"copy", m_list_copy, false}, {"clear", m_list_clear, false},
    };
    static const struct mu_jfunc loop[] = {{"cycle", m_cycle, false}, {"changed", m_changed, false}};
    switch (self.kind) {
    case MU_JK_STR: return mu_js_method(name, len);
    case MU_JK_DICT: return mu_jfunc_find(dict, sizeof dict / sizeof *dict, name, len);
    case MU_JK_TUPLE: return mu_jfunc_find(list, 2, name, len);
    case MU_JK_LIST: return self.l->lazy ? NULL : mu_jfunc_find(list, sizeof list / sizeof *list, name, len);
    case MU_JK_LOOP: return mu_jfunc_find(loop, sizeof loop / sizeof *loop, name, len);
    default: return NULL;
    }
}
