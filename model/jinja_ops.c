/* Operators, as Python has them: numbers (64 bits; beyond them is an error), text, lists, equality and order, `in`,
 * attributes, indices and slices. */
#include <math.h>
#include <string.h>

#include "model/jinja.h"

/* ---- arithmetic ---- */

_Noreturn static void overflow(struct mu_ji *j)
{
    mu_ji_fail(j, MU_EFORMAT, "an integer does not fit 64 bits");
}

static int64_t power(struct mu_ji *j, int64_t base, int64_t exponent)
{
    int64_t r = 1;
    while (exponent) {
        if (exponent & 1 && __builtin_mul_overflow(r, base, &r)) overflow(j);
        exponent >>= 1;
        if (exponent && __builtin_mul_overflow(base, base, &base)) overflow(j);
    }
    return r;
}

static struct mu_jv int_op(struct mu_ji *j, int op, int64_t a, int64_t b)
{
    int64_t r = 0;
    bool over = false;
    switch (op) {
    case '+': over = __builtin_add_overflow(a, b, &r); break;
    case '-': over = __builtin_sub_overflow(a, b, &r); break;
    case '*': over = __builtin_mul_overflow(a, b, &r); break;
    case '/':
    case '%':
    case MU_JOP('/', '/'):
        if (!b) mu_ji_fail(j, MU_EFORMAT, "division by zero");
        if (op == '/') return mu_jv_float((double)a / (double)b);
        if (b == -1) { /* INT64_MIN / -1 does not fit */
            over = op != '%' && __builtin_sub_overflow(0, a, &r);
        } else if (op == '%') {
            r = a % b;
            if (r && (r < 0) != (b < 0)) r += b;
        } else {
            r = a / b - (a % b && (a < 0) != (b < 0));
        }
        break;
    case MU_JOP('*', '*'):
        if (b < 0) {
            if (!a) mu_ji_fail(j, MU_EFORMAT, "division by zero");
            return mu_jv_float(pow((double)a, (double)b));
        }
        r = power(j, a, b);
        break;
    }
    if (over) overflow(j);
    return mu_jv_int(r);
}

static struct mu_jv float_op(struct mu_ji *j, int op, double a, double b)
{
    double r;
    switch (op) {
    case '+': return mu_jv_float(a + b);
    case '-': return mu_jv_float(a - b);
    case '*': return mu_jv_float(a * b);
    case MU_JOP('*', '*'): return mu_jv_float(pow(a, b));
    default: break;
    }
    if (b == 0) mu_ji_fail(j, MU_EFORMAT, "division by zero");
    if (op == '/') return mu_jv_float(a / b);
    r = fmod(a, b);
    if (r != 0 && (r < 0) != (b < 0)) r += b;
    if (op == '%') return mu_jv_float(r);
    return mu_jv_float(floor((a - r) / b + 0.5));
}

static struct mu_jv repeat(struct mu_ji *j, struct mu_jv v, int64_t times)
{
    if (times < 0) times = 0;
    if (v.kind == MU_JK_STR) {
        size_t mark = j->out_len;
        mu_ji_fill(j, v.s->p, v.s->len, (size_t)times);
        return mu_ji_take(j, mark);
    }
    size_t total;
    if (__builtin_mul_overflow(v.l->n, (size_t)times, &total) || total > (size_t)j->steps)
        mu_ji_fail(j, MU_ELIMIT, "a list times %lld is too long", (long long)times);
    mu_ji_steps(j, total);
    struct mu_jl *l = mu_jl_new(j, total);
    for (size_t i = 0; i < total; i++) l->v[i] = v.l->v[i % v.l->n];
    l->n = total;
    return (struct mu_jv){.kind = v.kind, .l = l};
}

static struct mu_jv join_lists(struct mu_ji *j, struct mu_jv a, struct mu_jv b)
{
    struct mu_jl *l = mu_jl_new(j, a.l->n + b.l->n);
    mu_ji_steps(j, a.l->n + b.l->n);
    if (a.l->n) memcpy(l->v, a.l->v, a.l->n * sizeof *l->v);
    if (b.l->n) memcpy(l->v + a.l->n, b.l->v, b.l->n * sizeof *l->v);
    l->n = a.l->n + b.l->n;
    return (struct mu_jv){.kind = a.kind, .l = l};
}

static bool is_number(struct mu_jv v)
{
    return mu_jv_is_int(v) || v.kind == MU_JK_FLOAT;
}

static double as_double(struct mu_jv v)
{
    return v.kind == MU_JK_FLOAT ? v.f : (double)mu_jv_as_int(v);
}

/* What is added to text that is marked `safe` is escaped, unless it is so, too: the one place where that mark shows. */
static struct mu_jv add_text(struct mu_ji *j, struct mu_jv a, struct mu_jv b)
{
    int safe = a.of | b.of;
    if (safe && !a.of) a = mu_js_escape(j, a.s);
    if (safe && !b.of) b = mu_js_escape(j, b.s);
    struct mu_jv sum = mu_jv_concat(j, a.s, b.s);
    sum.of = safe;
    return sum;
}

struct mu_jv mu_jv_binary(struct mu_ji *j, int op, struct mu_jv a, struct mu_jv b)
{
    if (mu_jv_is_int(a) && mu_jv_is_int(b)) return int_op(j, op, mu_jv_as_int(a), mu_jv_as_int(b));
    if (is_number(a) && is_number(b)) return float_op(j, op, as_double(a), as_double(b));
    if (a.kind == MU_JK_UNDEFINED) mu_ji_fail_undefined(j, a);
    if (op == '%' && a.kind == MU_JK_STR) return mu_jv_percent(j, a.s, b);
    if (b.kind == MU_JK_UNDEFINED) mu_ji_fail_undefined(j, b);
    if (op == '+' && a.kind == MU_JK_STR && b.kind == MU_JK_STR) return add_text(j, a, b);
    if (op == '+' && mu_jv_is_seq(a) && a.kind == b.kind && !a.l->lazy && !b.l->lazy) return join_lists(j, a, b);
    if (op == '*' && (a.kind == MU_JK_STR || mu_jv_is_seq(a)) && mu_jv_is_int(b)) return repeat(j, a, mu_jv_as_int(b));
    if (op == '*' && (b.kind == MU_JK_STR || mu_jv_is_seq(b)) && mu_jv_is_int(a)) return repeat(j, b, mu_jv_as_int(a));
    char name[3] = {(char)(op > 255 ? op >> 8 : op), (char)(op > 255 ? op & 255 : 0), 0};
    mu_ji_fail(j, MU_EFORMAT, "'%s' cannot take %s and %s", name, mu_jk_name(a.kind), mu_jk_name(b.kind));
}

struct mu_jv mu_jv_negate(struct mu_ji *j, struct mu_jv a)
{
    if (a.kind == MU_JK_FLOAT) return mu_jv_float(-a.f);
    return mu_jv_binary(j, '-', mu_jv_int(0), a);
}

/* ---- equality and order ---- */

static bool equal_dicts(struct mu_ji *j, struct mu_jd *a, struct mu_jd *b)
{
    if (a->n != b->n) return false;
    for (size_t i = 0; i < a->n; i++) {
        struct mu_jv *there = mu_jd_find(j, b, a->e[i].key);
        if (!there || !mu_jv_equal(j, a->e[i].val, *there)) return false;
    }
    return true;
}

static bool equal_lists(struct mu_ji *j, const struct mu_jl *a, const struct mu_jl *b)
{
    if (a->n != b->n) return false;
    for (size_t i = 0; i < a->n; i++)
        if (!mu_jv_equal(j, a->v[i], b->v[i])) return false;
    return true;
}

bool mu_jv_equal(struct mu_ji *j, struct mu_jv a, struct mu_jv b)
{
    bool same;
    mu_ji_steps(j, 1);
    if (mu_jv_is_int(a) && mu_jv_is_int(b)) return mu_jv_as_int(a) == mu_jv_as_int(b);
    if (is_number(a) && is_number(b)) return as_double(a) == as_double(b);
    if (a.kind != b.kind) return false;
    switch (a.kind) {
    case MU_JK_UNDEFINED:
    case MU_JK_NONE: return true;
    case MU_JK_STR: mu_ji_steps(j, a.s->len / 64); return a.s->len == b.s->len && memcmp(a.s->p, b.s->p, a.s->len) == 0;
    case MU_JK_LIST:
    case MU_JK_TUPLE:
    case MU_JK_DICT:
        if (a.l == b.l) return true;
        mu_ji_deeper(j);
        same = a.kind == MU_JK_DICT ? equal_dicts(j, a.d, b.d) : equal_lists(j, a.l, b.l);
        j->depth--;
        return same;
    default: return a.l == b.l;
    }
}

static int order_text(struct mu_ji *j, const struct mu_js *a, const struct mu_js *b)
{
    size_t n = a->len < b->len ? a->len : b->len;
    mu_ji_steps(j, n / 64);
    int c = n ? memcmp(a->p, b->p, n) : 0; /* UTF-8 sorts as its code points do */
    return c ? c : (a->len > b->len) - (a->len < b->len);
}

int mu_jv_order(struct mu_ji *j, struct mu_jv a, struct mu_jv b)
{
    mu_ji_steps(j, 1);
    if (mu_jv_is_int(a) && mu_jv_is_int(b))
        return (mu_jv_as_int(a) > mu_jv_as_int(b)) - (mu_jv_as_int(a) < mu_jv_as_int(b));
    if (is_number(a) && is_number(b)) return (as_double(a) > as_double(b)) - (as_double(a) < as_double(b));
    if (a.kind == MU_JK_UNDEFINED) mu_ji_fail_undefined(j, a);
    if (b.kind == MU_JK_UNDEFINED) mu_ji_fail_undefined(j, b);
    if (a.kind == MU_JK_STR && b.kind == MU_JK_STR) return order_text(j, a.s, b.s);
    if (!mu_jv_is_seq(a) || a.kind != b.kind)
        mu_ji_fail(j, MU_EFORMAT, "values of types %s and %s have no order", mu_jk_name(a.kind), mu_jk_name(b.kind));
    for (size_t i = 0; i < a.l->n && i < b.l->n; i++) {
        mu_ji_deeper(j);
        int c = mu_jv_equal(j, a.l->v[i], b.l->v[i]) ? 0 : mu_jv_order(j, a.l->v[i], b.l->v[i]);
        j->depth--;
        if (c) return c;
    }
    return (a.l->n > b.l->n) - (a.l->n < b.l->n);
}

bool mu_jv_compare(struct mu_ji *j, int op, struct mu_jv a, struct mu_jv b)
{
    switch (op) {
    case MU_JOP('=', '='): return mu_jv_equal(j, a, b);
    case MU_JOP('!', '='): return !mu_jv_equal(j, a, b);
    case MU_JOP_IN: return mu_jv_contains(j, b, a);
    case MU_JOP_NOT_IN: return !mu_jv_contains(j, b, a);
    default: break;
    }
    if (is_number(a) && is_number(b) && (isnan(as_double(a)) || isnan(as_double(b)))) return false;
    int c = mu_jv_order(j, a, b);
    return op == '<' ? c < 0 : op == '>' ? c > 0 : op == MU_JOP('<', '=') ? c <= 0 : c >= 0;
}

bool mu_jv_contains(struct mu_ji *j, struct mu_jv in, struct mu_jv what)
{
    const struct mu_jv *items;
    size_t n;
    if (mu_jv_is_dict(in)) return mu_jd_find(j, in.d, what) != NULL;
    if (in.kind == MU_JK_STR) {
        if (what.kind == MU_JK_UNDEFINED) mu_ji_fail_undefined(j, what);
        if (what.kind != MU_JK_STR)
            mu_ji_fail(j, MU_EFORMAT, "only text can be in text, and this is of type %s", mu_jk_name(what.kind));
        mu_ji_steps(j, in.s->len / 64);
        return mu_js_find(in.s, 0, what.s) != SIZE_MAX;
    }
    mu_jv_iterate(j, in, &items, &n);
    for (size_t i = 0; i < n; i++)
        if (mu_jv_equal(j, items[i], what)) return true;
    return false;
}

/* ---- attributes, indices, slices ---- */

static struct mu_jv missing(struct mu_jv of, const struct mu_js *name)
{
    struct mu_jv v = mu_jv_undefined(name);
    v.of = 1 + (int)of.kind;
    return v;
}

static struct mu_jv loop_attr(struct mu_ji *j, struct mu_jv self, const struct mu_js *name)
{
    const struct mu_jloop *l = self.loop;
    int64_t i = (int64_t)l->i, n = (int64_t)l->n;
    if (mu_js_is(name, "index")) return mu_jv_int(i + 1);
    if (mu_js_is(name, "index0")) return mu_jv_int(i);
    if (mu_js_is(name, "first")) return mu_jv_bool(i == 0);
    if (mu_js_is(name, "last")) return mu_jv_bool(i == n - 1);
    if (mu_js_is(name, "length")) return mu_jv_int(n);
    if (mu_js_is(name, "revindex")) return mu_jv_int(n - i);
    if (mu_js_is(name, "revindex0")) return mu_jv_int(n - i - 1);
    if (mu_js_is(name, "depth")) return mu_jv_int(l->depth);
    if (mu_js_is(name, "depth0")) return mu_jv_int(l->depth - 1);
    if (mu_js_is(name, "previtem")) return i > 0 ? l->items[i - 1] : missing(self, name);
    if (mu_js_is(name, "nextitem")) return i + 1 < n ? l->items[i + 1] : missing(self, name);
    (void)j;
    return missing(self, name);
}

static struct mu_jv method_of(struct mu_ji *j, struct mu_jv self, const struct mu_js *name)
{
    const struct mu_jfunc *m = mu_ji_method(self, name->p, name->len);
    if (!m) return missing(self, name);
    struct mu_jbound *b = mu_ji_alloc(j, 1, sizeof *b);
    *b = (struct mu_jbound){self, m};
    return (struct mu_jv){.kind = MU_JK_METHOD, .bound = b};
}

/* v.name: a method before an entry of that name, as in Python's own order. */
struct mu_jv mu_jv_attr(struct mu_ji *j, struct mu_jv v, const struct mu_js *name)
{
    if (v.kind == MU_JK_UNDEFINED) mu_ji_fail_undefined(j, v);
    struct mu_jv m = v.kind == MU_JK_NAMESPACE ? missing(v, name) : method_of(j, v, name);
    if (m.kind != MU_JK_UNDEFINED) return m;
    if (v.kind == MU_JK_LOOP) return loop_attr(j, v, name);
    if (mu_jv_is_dict(v)) {
        struct mu_jv *there = mu_jd_find(j, v.d, (struct mu_jv){.kind = MU_JK_STR, .s = name});
        if (there) return *there;
    }
    if (v.kind == MU_JK_TUPLE && v.l->n == 2) { /* what groupby gives */
        if (mu_js_is(name, "grouper")) return v.l->v[0];
        if (mu_js_is(name, "list")) return v.l->v[1];
    }
    if (v.kind == MU_JK_MACRO && mu_js_is(name, "name") && v.macro->node->name)
        return (struct mu_jv){.kind = MU_JK_STR, .s = v.macro->node->name};
    return m;
}

struct mu_jv mu_jv_index(struct mu_ji *j, struct mu_jv v, struct mu_jv key)
{
    if (v.kind == MU_JK_UNDEFINED) mu_ji_fail_undefined(j, v);
    if (mu_jv_is_dict(v) && (key.kind <= MU_JK_STR && key.kind != MU_JK_UNDEFINED)) {
        struct mu_jv *there = mu_jd_find(j, v.d, key);
        if (there) return *there;
    }
    if (mu_jv_is_int(key) && (v.kind == MU_JK_STR || mu_jv_is_seq(v)) && !(mu_jv_is_seq(v) && v.l->lazy)) {
        int64_t n = mu_jv_length(j, v), i = mu_jv_as_int(key);
        if (i < 0) i += n;
        if (i < 0 || i >= n) return missing(v, NULL);
        if (v.kind != MU_JK_STR) return v.l->v[i];
        size_t at = mu_js_offset(v.s, 0, (size_t)i), end = at;
        mu_js_at(v.s, &end);
        return mu_jv_borrow(j, v.s->p + at, end - at);
    }
    if (key.kind != MU_JK_STR) return missing(v, NULL);
    return mu_jv_is_dict(v) ? method_of(j, v, key.s) : mu_jv_attr(j, v, key.s);
}

/* Python's rule for one bound of a slice. */
static int64_t bound(struct mu_ji *j, struct mu_jv v, int64_t n, bool down, int64_t fallback)
{
    if (v.kind == MU_JK_NONE) return fallback;
    if (!mu_jv_is_int(v)) mu_ji_fail(j, MU_EFORMAT, "a slice's bounds must be integers, not %s", mu_jk_name(v.kind));
    int64_t i = mu_jv_as_int(v);
    if (i < 0) i = i < -n ? -1 : i + n;
    if (i < 0) return down ? -1 : 0;
    return i >= n ? (down ? n - 1 : n) : i;
}

static struct mu_jv slice_text(struct mu_ji *j, const struct mu_js *s, int64_t from, int64_t to, int64_t step)
{
    if (step == 1) {
        size_t begin = mu_js_offset(s, 0, (size_t)from),
               end = mu_js_offset(s, begin, to > from ? (size_t)(to - from) : 0);
        return mu_jv_borrow(j, s->p + begin, end - begin);
    }
    const struct mu_jv *chars;
    size_t n, mark = j->out_len;
    mu_jv_iterate(j, (struct mu_jv){.kind = MU_JK_STR, .s = s}, &chars, &n);
    for (int64_t i = from; step > 0 ? i < to : i > to; i += step) {
        mu_jv_print(j, chars[i]);
        if (step > 0 ? step > to - i : step < to - i) break;
    }
    return mu_ji_take(j, mark);
}

struct mu_jv mu_jv_slice(struct mu_ji *j, struct mu_jv v, struct mu_jv start, struct mu_jv stop, struct mu_jv step)
{
    int64_t by = 1;
    if (v.kind == MU_JK_UNDEFINED) mu_ji_fail_undefined(j, v);
    if (v.kind != MU_JK_STR && !(mu_jv_is_seq(v) && !v.l->lazy)) return missing(v, NULL);
    if (step.kind != MU_JK_NONE) {
        if (!mu_jv_is_int(step) || !mu_jv_as_int(step))
            mu_ji_fail(j, MU_EFORMAT, "a slice's step must be an integer other than 0");
        by = mu_jv_as_int(step);
    }
    int64_t n = mu_jv_length(j, v);
    int64_t from = bound(j, start, n, by < 0, by < 0 ? n - 1 : 0), to = bound(j, stop, n, by < 0, by < 0 ? -1 : n);
    if (v.kind == MU_JK_STR) return slice_text(j, v.s, from, to, by);
    struct mu_jl *l = mu_jl_new(j, 0);
    for (int64_t i = from; by > 0 ? i < to : i > to; i += by) {
        mu_jl_push(j, l, v.l->v[i]);
        mu_ji_steps(j, 1);
        if (by > 0 ? by > to - i : by < to - i) break; /* i + by would leave, or overflow */
    }
    return (struct mu_jv){.kind = v.kind, .l = l};
}
