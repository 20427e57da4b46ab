/* Calls: arguments, macros, the functions that every template has. */
#include <string.h>
#include <time.h>

#include "model/jinja.h"

/* ---- arguments ---- */

static void add_kw(struct mu_ji *j, struct mu_jargs *a, size_t *cap, const struct mu_js *name, struct mu_jv v)
{
    if (a->n_kw == *cap) {
        *cap = *cap ? *cap * 2 : 4;
        struct mu_jkw *more = mu_ji_alloc(j, *cap, sizeof *more);
        if (a->n_kw) memcpy(more, a->kw, a->n_kw * sizeof *more);
        a->kw = more;
    }
    a->kw[a->n_kw++] = (struct mu_jkw){name, v};
}

static void add_starred(struct mu_ji *j, struct mu_jl *pos, struct mu_jv v)
{
    const struct mu_jv *items;
    size_t n;
    mu_jv_iterate(j, v, &items, &n);
    for (size_t i = 0; i < n; i++) mu_jl_push(j, pos, items[i]);
}

static void add_double_starred(struct mu_ji *j, struct mu_jargs *a, size_t *cap, struct mu_jv v)
{
    if (!mu_jv_is_dict(v)) mu_ji_fail(j, MU_EFORMAT, "** needs a dict, not %s", mu_jk_name(v.kind));
    for (size_t i = 0; i < v.d->n; i++) {
        if (v.d->e[i].key.kind != MU_JK_STR) mu_ji_fail(j, MU_EFORMAT, "names of arguments must be text");
        add_kw(j, a, cap, v.d->e[i].key.s, v.d->e[i].val);
    }
}

struct mu_jargs mu_ji_args(struct mu_ji *j, const struct mu_jn *items)
{
    struct mu_jargs a = {0};
    size_t cap_kw = 0;
    if (!items) return a;
    struct mu_jl *pos = mu_jl_new(j, 2);
    for (const struct mu_jn *i = items; i; i = i->next) {
        switch (i->kind) {
        case MU_JN_KWARG: add_kw(j, &a, &cap_kw, i->name, mu_ji_eval(j, i->a)); break;
        case MU_JN_STAR: add_starred(j, pos, mu_ji_eval(j, i->a)); break;
        case MU_JN_STARSTAR: add_double_starred(j, &a, &cap_kw, mu_ji_eval(j, i->a)); break;
        default: mu_jl_push(j, pos, mu_ji_eval(j, i));
        }
    }
    a.v = pos->v;
    a.n = pos->n;
    return a;
}

bool mu_ji_arg(const struct mu_jargs *a, size_t i, const char *name, struct mu_jv *out)
{
    if (i < a->n) {
        *out = a->v[i];
        return true;
    }
    for (size_t k = 0; name && k < a->n_kw; k++)
        if (mu_js_is(a->kw[k].name, name)) {
            *out = a->kw[k].val;
            return true;
        }
    return false;
}

struct mu_jv mu_ji_want(struct mu_ji *j, const struct mu_jargs *a, size_t i, const char *name)
{
    struct mu_jv v;
    if (!mu_ji_arg(a, i, name, &v)) mu_ji_fail(j, MU_EFORMAT, "the argument '%s' is missing", name);
    return v;
}

const struct mu_js *mu_ji_want_str(struct mu_ji *j, const struct mu_jargs *a, size_t i, const char *name)
{
    struct mu_jv v = mu_ji_want(j, a, i, name);
    if (v.kind == MU_JK_UNDEFINED) mu_ji_fail_undefined(j, v);
    if (v.kind != MU_JK_STR)
        mu_ji_fail(j, MU_EFORMAT, "the argument '%s' must be text, not %s", name, mu_jk_name(v.kind));
    return v.s;
}

int64_t mu_ji_int_or(struct mu_ji *j, const struct mu_jargs *a, size_t i, const char *name, int64_t fallback)
{
    struct mu_jv v;
    if (!mu_ji_arg(a, i, name, &v) || v.kind == MU_JK_NONE) return fallback;
    if (!mu_jv_is_int(v)) mu_ji_fail(j, MU_EFORMAT, "the argument '%s' must be an integer", name);
    return mu_jv_as_int(v);
}

bool mu_ji_bool_or(struct mu_ji *j, const struct mu_jargs *a, size_t i, const char *name, bool fallback)
{
    struct mu_jv v;
    (void)j;
    return mu_ji_arg(a, i, name, &v) ? mu_jv_truth(v) : fallback;
}

/* ---- macros ---- */

static void bind_rest(struct mu_ji *j, struct mu_jscope *s, const struct mu_jargs *a, size_t used, const bool *taken)
{
    struct mu_jl *rest = mu_jl_new(j, a->n > used ? a->n - used : 0);
    struct mu_jd *kw = mu_jd_new(j, 0);
    for (size_t i = used; i < a->n; i++) mu_jl_push(j, rest, a->v[i]);
    for (size_t i = 0; i < a->n_kw; i++)
        if (!taken[i]) mu_jd_put(j, kw, (struct mu_jv){.kind = MU_JK_STR, .s = a->kw[i].name}, a->kw[i].val);
    if (rest->n && j->sym_varargs < 0) mu_ji_fail(j, MU_EFORMAT, "a macro takes %zu arguments and got %zu", used, a->n);
    if (kw->n && j->sym_kwargs < 0)
        mu_ji_fail(j, MU_EFORMAT, "a macro has no parameter '%.*s'", (int)(kw->e[0].key.s->len & 63),
                   kw->e[0].key.s->p);
    if (j->sym_varargs >= 0) mu_ji_bind(j, s, j->sym_varargs, (struct mu_jv){.kind = MU_JK_TUPLE, .l = rest});
    if (j->sym_kwargs >= 0) mu_ji_bind(j, s, j->sym_kwargs, (struct mu_jv){.kind = MU_JK_DICT, .d = kw});
}

static struct mu_jv call_macro(struct mu_ji *j, const struct mu_jmacro *m, const struct mu_jargs *a)
{
    static const struct mu_js caller = {.p = "caller", .len = 6};
    struct mu_jscope *around = j->scope, *inner = mu_ji_scope(j, m->scope);
    bool *taken = mu_ji_alloc(j, a->n_kw + 1, sizeof *taken), has_caller = false;
    size_t i = 0, mark = j->out_len;
    int line = j->line;
    memset(taken, 0, a->n_kw + 1);
    j->scope = inner;
    for (const struct mu_jn *p = m->node->params; p; p = p->next, i++) {
        struct mu_jv v = mu_jv_undefined(p->name);
        bool given = i < a->n;
        mu_ji_steps(j, a->n_kw);
        if (given) v = a->v[i];
        for (size_t k = 0; k < a->n_kw; k++)
            if (a->kw[k].name->len == p->name->len && !memcmp(a->kw[k].name->p, p->name->p, p->name->len)) {
                if (given) mu_ji_fail(j, MU_EFORMAT, "a macro got an argument twice");
                v = a->kw[k].val;
                taken[k] = given = true;
            }
        if (!given && p->a) v = mu_ji_eval(j, p->a);
        mu_ji_bind(j, inner, p->sym, v);
    }
    for (size_t k = 0; k < a->n_kw; k++)
        if (!taken[k] && mu_js_is(a->kw[k].name, "caller")) {
            taken[k] = has_caller = true;
            if (j->sym_caller >= 0) mu_ji_bind(j, inner, j->sym_caller, a->kw[k].val);
        }
    if (!has_caller && j->sym_caller >= 0 && m->node->kind == MU_JN_MACRO)
        mu_ji_bind(j, inner, j->sym_caller, mu_jv_undefined(&caller));
    bind_rest(j, inner, a, i, taken);
    mu_ji_exec(j, m->node->items);
    j->scope = around;
    j->line = line;
    return mu_ji_take(j, mark);
}

struct mu_jv mu_ji_call(struct mu_ji *j, struct mu_jv callee, const struct mu_jargs *a)
{
    enum mu_jflow flow;
    size_t mark = j->out_len;
    switch (callee.kind) {
    case MU_JK_UNDEFINED: mu_ji_fail_undefined(j, callee);
    case MU_JK_MACRO: return call_macro(j, callee.macro, a);
    case MU_JK_METHOD: return mu_ji_apply(j, callee.bound->method, callee.bound->self, a);
    case MU_JK_FUNC: return callee.func->call(j, mu_jv_none(), a);
    case MU_JK_LOOP: { /* loop(children): the loop again, one deeper */
        if (!callee.loop->node->recursive)
            mu_ji_fail(j, MU_EFORMAT, "loop(…) is only for loops that are marked 'recursive'");
        struct mu_jscope *around = j->scope;
        j->scope = callee.loop->scope;
        mu_ji_loop(j, callee.loop->node, mu_ji_want(j, a, 0, "iterable"), callee.loop->depth + 1, &flow);
        j->scope = around;
        return mu_ji_take(j, mark);
    }
    default: mu_ji_fail(j, MU_EFORMAT, "a value of type %s cannot be called", mu_jk_name(callee.kind));
    }
}

/* ---- global functions ---- */

static struct mu_jv fn_range(struct mu_ji *j, struct mu_jv self, const struct mu_jargs *a)
{
    int64_t from = 0, to, step = 1;
    (void)self;
    mu_ji_want(j, a, 0, "stop");
    to = mu_ji_int_or(j, a, 0, NULL, 0);
    if (a->n > 1) {
        from = to;
        to = mu_ji_int_or(j, a, 1, NULL, 0);
        step = mu_ji_int_or(j, a, 2, NULL, 1);
    }
    if (!step) mu_ji_fail(j, MU_EFORMAT, "range's step must not be 0");
    uint64_t span =
        step > 0 ? (to > from ? (uint64_t)to - (uint64_t)from : 0) : (from > to ? (uint64_t)from - (uint64_t)to : 0);
    uint64_t by = step > 0 ? (uint64_t)step : 0 - (uint64_t)step, n = span ? (span - 1) / by + 1 : 0;
    if (n > MU_JI_MAX_RANGE) mu_ji_fail(j, MU_ELIMIT, "a range of more than %d numbers", MU_JI_MAX_RANGE);
    struct mu_jl *l = mu_jl_new(j, (size_t)n);
    mu_ji_steps(j, (size_t)n);
    for (uint64_t i = 0; i < n; i++) l->v[i] = mu_jv_int((int64_t)((uint64_t)from + i * (uint64_t)step));
    l->n = (size_t)n;
    return mu_jv_list(l);
}

/* dict(pairs or dict, name=value …), and namespace(…) likewise. */
static struct mu_jd *make_dict(struct mu_ji *j, const struct mu_jargs *a)
{
    struct mu_jd *d = mu_jd_new(j, a->n_kw);
    const struct mu_jv *items, *two;
    size_t n, n_two;
    if (a->n && mu_jv_is_dict(a->v[0])) {
        for (size_t i = 0; i < a->v[0].d->n; i++) mu_jd_put(j, d, a->v[0].d->e[i].key, a->v[0].d->e[i].val);
    } else if (a->n) {
        mu_jv_iterate(j, a->v[0], &items, &n);
        for (size_t i = 0; i < n; i++) {
            mu_jv_iterate(j, items[i], &two, &n_two);
            if (n_two != 2) mu_ji_fail(j, MU_EFORMAT, "a dict is made of pairs");
            mu_jd_put(j, d, two[0], two[1]);
        }
    }
    for (size_t i = 0; i < a->n_kw; i++)
        mu_jd_put(j, d, (struct mu_jv){.kind = MU_JK_STR, .s = a->kw[i].name}, a->kw[i].val);
    return d;
}

static struct mu_jv fn_dict(struct mu_ji *j, struct mu_jv self, const struct mu_jargs *a)
{
    (void)self;
    return (struct mu_jv){.kind = MU_JK_DICT, .d = make_dict(j, a)};
}

static struct mu_jv fn_namespace(struct mu_ji *j, struct mu_jv self, const struct mu_jargs *a)
{
    (void)self;
    return (struct mu_jv){.kind = MU_JK_NAMESPACE, .d = make_dict(j, a)};
}

static struct mu_jv fn_raise_exception(struct mu_ji *j, struct mu_jv self, const struct mu_jargs *a)
{
    (void)self;
    const struct mu_js *text = mu_jv_text(j, mu_ji_want(j, a, 0, "message"));
    mu_ji_fail(j, MU_EINVAL, "%.*s", (int)(text->len > 400 ? mu_js_offset(text, 0, 100) : text->len), text->p);
}

static struct mu_jv fn_strftime_now(struct mu_ji *j, struct mu_jv self, const struct mu_jargs *a)
{
    char format[128], out[512];
    struct tm tm;
    time_t now = (time_t)j->now_s;
    const struct mu_js *f = mu_ji_want_str(j, a, 0, "format");
    (void)self;
    if (f->len >= sizeof format) mu_ji_fail(j, MU_ELIMIT, "strftime_now's format is longer than 127 bytes");
    memcpy(format, f->p, f->len);
    format[f->len] = '\0';
    if (!gmtime_r(&now, &tm)) mu_ji_fail(j, MU_EFORMAT, "the clock stands at no date");
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral" /* the template's own words; out bounds what comes of them */
    size_t n = strftime(out, sizeof out, format, &tm);
#pragma GCC diagnostic pop
    return mu_jv_str(j, out, n);
}

const struct mu_jfunc *mu_jfunc_find(const struct mu_jfunc *table, size_t n, const char *name, size_t len)
{
    for (size_t i = 0; i < n; i++)
        if (strlen(table[i].name) == len && memcmp(table[i].name, name, len) == 0) return &table[i];
    return NULL;
}

const struct mu_jfunc *mu_ji_global(const char *name, size_t len)
{
    static const struct mu_jfunc globals[] = {
        {"range", fn_range, false},
        {"dict", fn_dict, false},
        {"namespace", fn_namespace, false},
        {"raise_exception", fn_raise_exception, false},
        {"strftime_now", fn_strftime_now, false},
    };
    return mu_jfunc_find(globals, sizeof globals / sizeof *globals, name, len);
}

struct mu_jv mu_ji_apply(struct mu_ji *j, const struct mu_jfunc *f, struct mu_jv v, const struct mu_jargs *a)
{
    struct mu_jv r = f->call(j, v, a);
    if (f->keeps_safe && v.kind == MU_JK_STR && r.kind == MU_JK_STR) r.of = v.of;
    return r;
}

const struct mu_jfunc *mu_ji_filter(const char *name, size_t len)
{
    const struct mu_jfunc *f = mu_jfunc_find(mu_jfilters_text, mu_jfilters_text_n, name, len);
    return f ? f : mu_jfunc_find(mu_jfilters_seq, mu_jfilters_seq_n, name, len);
}
