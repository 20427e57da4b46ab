/* Filters on sequences: choosing, mapping, sorting, grouping, summing. What gives a lazy sequence in Jinja gives one
 * here (jinja.h). */
#include <string.h>

#include "model/jinja.h"

#define FILTER(name) static struct mu_jv name(struct mu_ji *j, struct mu_jv v, const struct mu_jargs *a)

struct items {
    const struct mu_jv *v;
    size_t n;
};

static struct items items_of(struct mu_ji *j, struct mu_jv v)
{
    struct items it;
    mu_jv_iterate(j, v, &it.v, &it.n);
    return it;
}

/* map and the choosing filters take anything that is not true for nothing. */
static struct items items_if_true(struct mu_ji *j, struct mu_jv v)
{
    return mu_jv_truth(v) ? items_of(j, v) : (struct items){0};
}

static struct mu_jv lazy(struct mu_jl *l)
{
    l->lazy = true;
    return mu_jv_list(l);
}

/* The rest of the arguments, from number n on; names stay. */
static struct mu_jargs args_from(const struct mu_jargs *a, size_t n)
{
    struct mu_jargs rest = *a;
    rest.v = n < a->n ? a->v + n : NULL;
    rest.n = n < a->n ? a->n - n : 0;
    return rest;
}

/* v's attribute "a.b.0"; undefined where anything is missing on the way. */
static struct mu_jv attribute(struct mu_ji *j, struct mu_jv v, struct mu_jv path)
{
    if (mu_jv_is_int(path)) return mu_jv_index(j, v, path);
    if (path.kind != MU_JK_STR) mu_ji_fail(j, MU_EFORMAT, "an attribute's name must be text");
    const struct mu_js *s = path.s;
    for (size_t at = 0; at <= s->len;) {
        const char *dot = memchr(s->p + at, '.', s->len - at);
        size_t end = dot ? (size_t)(dot - s->p) : s->len;
        struct mu_jv part = mu_jv_borrow(j, s->p + at, end - at);
        bool number = end > at && end - at < 10;
        int64_t i = 0;
        for (size_t k = at; k < end; k++) {
            number &= s->p[k] >= '0' && s->p[k] <= '9';
            if (number) i = i * 10 + (s->p[k] - '0');
        }
        v = mu_jv_index(j, v, number ? mu_jv_int(i) : part);
        at = end + 1;
    }
    return v;
}

static struct mu_jv folded(struct mu_ji *j, struct mu_jv v)
{
    return v.kind == MU_JK_STR ? mu_js_case(j, v.s, false) : v;
}

/* ---- choosing ---- */

static struct mu_jv choose(struct mu_ji *j, struct mu_jv v, const struct mu_jargs *a, bool by_attr, bool keep)
{
    struct items it = items_if_true(j, v);
    struct mu_jl *l = mu_jl_new(j, 0);
    struct mu_jv path = by_attr ? mu_ji_want(j, a, 0, "attribute") : mu_jv_none();
    const struct mu_jtest *test = NULL;
    struct mu_jargs rest = args_from(a, by_attr + 1u);
    if (a->n > by_attr) {
        const struct mu_js *name = mu_ji_want_str(j, a, by_attr, "test");
        test = mu_ji_test(name->p, name->len);
        if (!test) mu_ji_fail(j, MU_EFORMAT, "there is no test '%.*s'", name->len > 80 ? 80 : (int)name->len, name->p);
    }
    for (size_t i = 0; i < it.n; i++) {
        struct mu_jv x = by_attr ? attribute(j, it.v[i], path) : it.v[i];
        if ((test ? test->holds(j, x, &rest) : mu_jv_truth(x)) == keep) mu_jl_push(j, l, it.v[i]);
    }
    return lazy(l);
}

FILTER(f_select)
{
    return choose(j, v, a, false, true);
}

FILTER(f_reject)
{
    return choose(j, v, a, false, false);
}

FILTER(f_selectattr)
{
    return choose(j, v, a, true, true);
}

FILTER(f_rejectattr)
{
    return choose(j, v, a, true, false);
}

FILTER(f_map)
{
    struct items it = items_if_true(j, v);
    struct mu_jl *l = mu_jl_new(j, it.n);
    struct mu_jv path, other;
    if (!a->n && mu_ji_arg(a, SIZE_MAX, "attribute", &path)) {
        bool has_other = mu_ji_arg(a, SIZE_MAX, "default", &other);
        for (size_t i = 0; i < it.n; i++) {
            struct mu_jv x = attribute(j, it.v[i], path);
            mu_jl_push(j, l, x.kind == MU_JK_UNDEFINED && has_other ? other : x);
        }
        return lazy(l);
    }
    const struct mu_js *name = mu_ji_want_str(j, a, 0, "filter");
    const struct mu_jfunc *f = mu_ji_filter(name->p, name->len);
    struct mu_jargs rest = args_from(a, 1);
    if (!f) mu_ji_fail(j, MU_EFORMAT, "there is no filter '%.*s'", name->len > 80 ? 80 : (int)name->len, name->p);
    mu_ji_deeper(j);
    for (size_t i = 0; i < it.n; i++) mu_jl_push(j, l, mu_ji_apply(j, f, it.v[i], &rest));
    j->depth--;
    return lazy(l);
}

FILTER(f_first)
{
    (void)a;
    if (v.kind == MU_JK_LIST && v.l->lazy && v.l->n) { /* takes the first one out and leaves the others */
        v.l->n--;
        return *v.l->v++;
    }
    struct items it = items_of(j, v);
    return it.n ? it.v[0] : mu_jv_undefined(NULL);
}

FILTER(f_last)
{
    struct items it = items_of(j, v);
    (void)a;
    return it.n ? it.v[it.n - 1] : mu_jv_undefined(NULL);
}

/* ---- shapes ---- */

FILTER(f_length)
{
    (void)a;
    return mu_jv_int(mu_jv_length(j, v));
}

FILTER(f_list)
{
    struct items it = items_of(j, v);
    struct mu_jl *l = mu_jl_new(j, it.n);
    (void)a;
    for (size_t i = 0; i < it.n; i++) mu_jl_push(j, l, it.v[i]);
    return mu_jv_list(l);
}

FILTER(f_items)
{
    static const struct mu_jargs none;
    if (v.kind == MU_JK_UNDEFINED) return mu_jv_list(mu_jl_new(j, 0));
    if (!mu_jv_is_dict(v)) mu_ji_fail(j, MU_EFORMAT, "items takes a dict, not %s", mu_jk_name(v.kind));
    (void)a;
    v.kind = MU_JK_DICT;
    return mu_ji_method(v, "items", 5)->call(j, v, &none);
}

FILTER(f_reverse)
{
    struct items it = items_of(j, v);
    size_t mark = j->out_len;
    (void)a;
    if (v.kind == MU_JK_STR) {
        for (size_t i = it.n; i-- > 0;) mu_jv_print(j, it.v[i]);
        return mu_ji_take(j, mark);
    }
    struct mu_jl *l = mu_jl_new(j, it.n);
    for (size_t i = it.n; i-- > 0;) mu_jl_push(j, l, it.v[i]);
    return lazy(l);
}

FILTER(f_join)
{
    struct mu_jv path, sep;
    bool by_attr = mu_ji_arg(a, 1, "attribute", &path) && path.kind != MU_JK_NONE;
    const struct mu_js *between = mu_ji_arg(a, 0, "d", &sep) ? mu_jv_text(j, sep) : NULL;
    struct items it = items_of(j, v);
    size_t mark = j->out_len;
    for (size_t i = 0; i < it.n; i++) {
        if (i && between) mu_ji_write(j, between->p, between->len);
        mu_jv_print(j, by_attr ? attribute(j, it.v[i], path) : it.v[i]);
    }
    return mu_ji_take(j, mark);
}

FILTER(f_batch)
{
    struct items it = items_of(j, v);
    struct mu_jl *l = mu_jl_new(j, 0), *row = NULL;
    struct mu_jv fill;
    int64_t width = mu_ji_int_or(j, a, 0, "linecount", 0);
    if (width < 1) mu_ji_fail(j, MU_EFORMAT, "batch needs a size of 1 at least");
    for (size_t i = 0; i < it.n; i++) {
        if (i % (size_t)width == 0) {
            row = mu_jl_new(j, 0);
            mu_jl_push(j, l, mu_jv_list(row));
        }
        mu_jl_push(j, row, it.v[i]);
    }
    if (row && mu_ji_arg(a, 1, "fill_with", &fill) && fill.kind != MU_JK_NONE)
        while (row->n < (uint64_t)width) mu_jl_push(j, row, fill), mu_ji_steps(j, 1);
    return lazy(l);
}

FILTER(f_slice)
{
    struct items it = items_of(j, v);
    struct mu_jl *l = mu_jl_new(j, 0);
    struct mu_jv fill;
    int64_t n = mu_ji_int_or(j, a, 0, "slices", 0);
    bool filled = mu_ji_arg(a, 1, "fill_with", &fill) && fill.kind != MU_JK_NONE;
    if (n < 1) mu_ji_fail(j, MU_EFORMAT, "slice needs 1 slice at least");
    size_t each = it.n / (size_t)n, more = it.n % (size_t)n, at = 0;
    for (size_t s = 0; s < (size_t)n; s++) {
        struct mu_jl *row = mu_jl_new(j, 0);
        size_t end = at + each + (s < more);
        mu_ji_steps(j, 1);
        while (at < end) mu_jl_push(j, row, it.v[at++]);
        if (filled && s >= more) mu_jl_push(j, row, fill);
        mu_jl_push(j, l, mu_jv_list(row));
    }
    return lazy(l);
}

/* ---- order ---- */

struct keyed {
    struct mu_jv key, val;
};

static void merge_sort(struct mu_ji *j, struct keyed *k, struct keyed *spare, size_t n, bool down)
{
    if (n < 2) return;
    size_t half = n / 2, a = 0, b = half;
    merge_sort(j, k, spare, half, down);
    merge_sort(j, k + half, spare, n - half, down);
    for (size_t i = 0; i < n; i++) {
        bool left =
            b == n ||
            (a < half && (down ? mu_jv_order(j, k[a].key, k[b].key) >= 0 : mu_jv_order(j, k[a].key, k[b].key) <= 0));
        spare[i] = left ? k[a++] : k[b++];
    }
    memcpy(k, spare, n * sizeof *k);
}

/* The items with what they are sorted by: attribute "a,b" gives pairs. Stable; down keeps equal ones in order, too. */
static struct keyed *sorted(struct mu_ji *j, struct items it, struct mu_jv path, bool fold, bool down)
{
    struct keyed *k = mu_ji_alloc(j, it.n + 1, sizeof *k), *spare = mu_ji_alloc(j, it.n + 1, sizeof *k);
    bool several = path.kind == MU_JK_STR && memchr(path.s->p, ',', path.s->len);
    for (size_t i = 0; i < it.n; i++) {
        k[i] = (struct keyed){it.v[i], it.v[i]};
        if (several) {
            struct mu_jl *keys = mu_jl_new(j, 2);
            for (size_t at = 0, end; at <= path.s->len; at = end + 1) {
                const char *comma = memchr(path.s->p + at, ',', path.s->len - at);
                end = comma ? (size_t)(comma - path.s->p) : path.s->len;
                struct mu_jv x = attribute(j, it.v[i], mu_jv_borrow(j, path.s->p + at, end - at));
                mu_jl_push(j, keys, fold ? folded(j, x) : x);
            }
            k[i].key = (struct mu_jv){.kind = MU_JK_TUPLE, .l = keys};
            continue;
        }
        if (path.kind != MU_JK_NONE) k[i].key = attribute(j, it.v[i], path);
        if (fold) k[i].key = folded(j, k[i].key);
    }
    merge_sort(j, k, spare, it.n, down);
    return k;
}

static struct mu_jv list_of(struct mu_ji *j, const struct keyed *k, size_t n)
{
    struct mu_jl *l = mu_jl_new(j, n);
    for (size_t i = 0; i < n; i++) mu_jl_push(j, l, k[i].val);
    return mu_jv_list(l);
}

FILTER(f_sort)
{
    struct mu_jv path = mu_jv_none();
    bool down = mu_ji_bool_or(j, a, 0, "reverse", false), exact = mu_ji_bool_or(j, a, 1, "case_sensitive", false);
    mu_ji_arg(a, 2, "attribute", &path);
    struct items it = items_of(j, v);
    return list_of(j, sorted(j, it, path, !exact, down), it.n);
}

FILTER(f_dictsort)
{
    struct mu_jv by;
    bool exact = mu_ji_bool_or(j, a, 0, "case_sensitive", false), down = mu_ji_bool_or(j, a, 2, "reverse", false);
    bool by_value = mu_ji_arg(a, 1, "by", &by) && by.kind == MU_JK_STR && mu_js_is(by.s, "value");
    if (v.kind == MU_JK_UNDEFINED) mu_ji_fail_undefined(j, v);
    struct items it = items_of(j, f_items(j, v, a));
    return list_of(j, sorted(j, it, mu_jv_int(by_value), !exact, down), it.n);
}

static bool seen_before(struct mu_ji *j, struct mu_jd *seen, const struct mu_jl *others, struct mu_jv key)
{
    if (key.kind <= MU_JK_STR && key.kind != MU_JK_UNDEFINED) {
        if (mu_jd_find(j, seen, key)) return true;
        mu_jd_put(j, seen, key, mu_jv_none());
        return false;
    }
    for (size_t i = 0; i < others->n; i++)
        if (mu_jv_equal(j, others->v[i], key)) return true;
    return false;
}

FILTER(f_unique)
{
    struct mu_jv path = mu_jv_none();
    bool exact = mu_ji_bool_or(j, a, 0, "case_sensitive", false);
    mu_ji_arg(a, 1, "attribute", &path);
    struct items it = items_of(j, v);
    struct mu_jl *l = mu_jl_new(j, 0), *others = mu_jl_new(j, 0);
    struct mu_jd *seen = mu_jd_new(j, 0);
    for (size_t i = 0; i < it.n; i++) {
        struct mu_jv key = path.kind == MU_JK_NONE ? it.v[i] : attribute(j, it.v[i], path);
        if (!exact) key = folded(j, key);
        if (seen_before(j, seen, others, key)) continue;
        if (key.kind > MU_JK_STR || key.kind == MU_JK_UNDEFINED) mu_jl_push(j, others, key);
        mu_jl_push(j, l, it.v[i]);
    }
    return lazy(l);
}

FILTER(f_groupby)
{
    struct mu_jv path = mu_ji_want(j, a, 0, "attribute"), other;
    bool has_other = mu_ji_arg(a, 1, "default", &other), exact = mu_ji_bool_or(j, a, 2, "case_sensitive", false);
    struct items it = items_of(j, v);
    struct keyed *k = mu_ji_alloc(j, it.n + 1, sizeof *k), *spare = mu_ji_alloc(j, it.n + 1, sizeof *k);
    struct mu_jl *groups = mu_jl_new(j, 0), *group = NULL;
    for (size_t i = 0; i < it.n; i++) {
        struct mu_jv key = attribute(j, it.v[i], path);
        if (key.kind == MU_JK_UNDEFINED && has_other) key = other;
        k[i] = (struct keyed){exact ? key : folded(j, key), it.v[i]};
    }
    merge_sort(j, k, spare, it.n, false);
    for (size_t i = 0; i < it.n; i++) {
        if (!i || !mu_jv_equal(j, k[i - 1].key, k[i].key)) {
            struct mu_jl *two = mu_jl_new(j, 2);
            struct mu_jv name = attribute(j, k[i].val, path); /* as the first one writes it */
            group = mu_jl_new(j, 0);
            mu_jl_push(j, two, name.kind == MU_JK_UNDEFINED ? k[i].key : name);
            mu_jl_push(j, two, mu_jv_list(group));
            mu_jl_push(j, groups, (struct mu_jv){.kind = MU_JK_TUPLE, .l = two});
        }
        mu_jl_push(j, group, k[i].val);
    }
    return mu_jv_list(groups);
}

static struct mu_jv extreme(struct mu_ji *j, struct mu_jv v, const struct mu_jargs *a, int sign)
{
    struct mu_jv path = mu_jv_none(), best = mu_jv_undefined(NULL), best_key = best;
    bool exact = mu_ji_bool_or(j, a, 0, "case_sensitive", false);
    mu_ji_arg(a, 1, "attribute", &path);
    struct items it = items_of(j, v);
    for (size_t i = 0; i < it.n; i++) {
        struct mu_jv key = path.kind == MU_JK_NONE ? it.v[i] : attribute(j, it.v[i], path);
        if (!exact) key = folded(j, key);
        if (i && mu_jv_order(j, key, best_key) * (int64_t)sign <= 0) continue;
        best = it.v[i];
        best_key = key;
    }
    return best;
}

FILTER(f_min)
{
    return extreme(j, v, a, -1);
}

FILTER(f_max)
{
    return extreme(j, v, a, 1);
}

FILTER(f_sum)
{
    struct mu_jv path = mu_jv_none(), total = mu_jv_int(0);
    mu_ji_arg(a, 0, "attribute", &path);
    mu_ji_arg(a, 1, "start", &total);
    struct items it = items_of(j, v);
    for (size_t i = 0; i < it.n; i++)
        total = mu_jv_binary(j, '+', total, path.kind == MU_JK_NONE ? it.v[i] : attribute(j, it.v[i], path));
    return total;
}

const struct mu_jfunc mu_jfilters_seq[] = {
    {"select", f_select, false},
    {"reject", f_reject, false},
    {"selectattr", f_selectattr, false},
    {"rejectattr", f_rejectattr, false},
    {"map", f_map, false},
    {"first", f_first, false},
    {"last", f_last, false},
    {"length", f_length, false},
    {"count", f_length, false},
    {"list", f_list, false},
    {"items", f_items, false},
    {"reverse", f_reverse, false},
    {"join", f_join, false},
    {"batch", f_batch, false},
    {"slice", f_slice, false},
    {"sort", f_sort, false},
    {"dictsort", f_dictsort, false},
    {"unique", f_unique, false},
    {"groupby", f_groupby, false},
    {"min", f_min, false},
    {"max", f_max, false},
    {"sum", f_sum, false},
};
const size_t mu_jfilters_seq_n = sizeof mu_jfilters_seq / sizeof *mu_jfilters_seq;
