/* Filters on one value: text, numbers, defaults. Those on sequences are in jinja_filter_seq.c. */
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/jinja.h"

#define FILTER(name) static struct mu_jv name(struct mu_ji *j, struct mu_jv v, const struct mu_jargs *a)

FILTER(f_upper)
{
    (void)a;
    return mu_js_case(j, mu_jv_text(j, v), true);
}

FILTER(f_lower)
{
    (void)a;
    return mu_js_case(j, mu_jv_text(j, v), false);
}

FILTER(f_capitalize)
{
    (void)a;
    return mu_js_capitalize(j, mu_jv_text(j, v));
}

/* A capital after white space, hyphens and opening brackets. */
FILTER(f_title)
{
    const struct mu_js *s = mu_jv_text(j, v);
    size_t mark = j->out_len;
    bool first = true;
    (void)a;
    mu_ji_steps(j, s->len / 16);
    for (size_t at = 0; at < s->len;) {
        uint32_t cp = mu_js_at(s, &at);
        mu_ji_put_cp(j, first ? mu_jc_upper(j, cp) : mu_jc_lower(j, cp));
        first = mu_jc_space(cp) || cp == '-' || cp == '(' || cp == '{' || cp == '[' || cp == '<';
    }
    return mu_ji_take(j, mark);
}

FILTER(f_trim)
{
    struct mu_jv chars;
    bool given = mu_ji_arg(a, 0, "chars", &chars) && chars.kind != MU_JK_NONE;
    return mu_js_strip(j, mu_jv_text(j, v), given ? mu_ji_want_str(j, a, 0, "chars") : NULL, 3);
}

FILTER(f_string)
{
    (void)a;
    return (struct mu_jv){.kind = MU_JK_STR, .s = mu_jv_text(j, v)};
}

FILTER(f_safe)
{
    struct mu_jv text = f_string(j, v, a);
    text.of = 1;
    return text;
}

FILTER(f_forceescape)
{
    struct mu_jv text = mu_js_escape(j, mu_jv_text(j, v));
    (void)a;
    text.of = 1;
    return text;
}

FILTER(f_escape)
{
    return v.kind == MU_JK_STR && v.of ? v : f_forceescape(j, v, a);
}

FILTER(f_replace)
{
    return mu_js_replace(j, mu_jv_text(j, v), mu_jv_text(j, mu_ji_want(j, a, 0, "old")),
                         mu_jv_text(j, mu_ji_want(j, a, 1, "new")), mu_ji_int_or(j, a, 2, "count", -1));
}

FILTER(f_indent)
{
    struct mu_jv width;
    size_t mark = j->out_len;
    if (mu_ji_arg(a, 0, "width", &width) && width.kind == MU_JK_STR)
        mu_jv_print(j, width);
    else
        mu_ji_fill(j, " ", 1, (size_t)(mu_ji_int_or(j, a, 0, "width", 4) > 0 ? mu_ji_int_or(j, a, 0, "width", 4) : 0));
    const struct mu_js *by = mu_ji_take(j, mark).s;
    bool first = mu_ji_bool_or(j, a, 1, "first", false), blank = mu_ji_bool_or(j, a, 2, "blank", false);
    static const struct mu_js newline = {.p = "\n", .len = 1};
    const struct mu_jl *lines = mu_js_lines(j, mu_jv_concat(j, mu_jv_text(j, v), &newline).s, false);
    for (size_t i = 0; i < lines->n; i++) {
        if (i) mu_ji_puts(j, "\n");
        if (i ? blank || lines->v[i].s->len : first) mu_ji_write(j, by->p, by->len);
        mu_jv_print(j, lines->v[i]);
    }
    return mu_ji_take(j, mark);
}

FILTER(f_center)
{
    return mu_js_pad(j, mu_jv_text(j, v), mu_ji_int_or(j, a, 0, "width", 80), ' ', '^');
}

FILTER(f_truncate)
{
    const struct mu_js *s = mu_jv_text(j, v);
    static const struct mu_js dots = {.p = "...", .len = 3};
    struct mu_jv arg;
    int64_t length = mu_ji_int_or(j, a, 0, "length", 255), leeway = mu_ji_int_or(j, a, 3, "leeway", 5);
    bool kill = mu_ji_bool_or(j, a, 1, "killwords", false);
    const struct mu_js *end = mu_ji_arg(a, 2, "end", &arg) ? mu_jv_text(j, arg) : &dots;
    int64_t n = (int64_t)mu_js_count(j, s), n_end = (int64_t)mu_js_count(j, end);
    if (length < n_end || leeway < 0) mu_ji_fail(j, MU_EFORMAT, "truncate's length is shorter than its end");
    if (n <= length || n - length <= leeway) return (struct mu_jv){.kind = MU_JK_STR, .s = s};
    struct mu_js cut = {.p = s->p, .len = mu_js_offset(s, 0, (size_t)(length - n_end))};
    if (!kill) {
        const char *space = memrchr(cut.p, ' ', cut.len);
        if (space) cut.len = (size_t)(space - cut.p);
    }
    return mu_jv_concat(j, &cut, end);
}

FILTER(f_wordcount)
{
    const struct mu_js *s = mu_jv_text(j, v);
    int64_t n = 0;
    bool within = false;
    (void)a;
    mu_ji_steps(j, s->len / 16);
    for (size_t at = 0; at < s->len;) {
        uint32_t cp = mu_js_at(s, &at);
        bool word = mu_jc_alpha(j, cp) || (cp >= '0' && cp <= '9') || cp == '_';
        n += word && !within;
        within = word;
    }
    return mu_jv_int(n);
}

FILTER(f_urlencode)
{
    static const char hex[] = "0123456789ABCDEF";
    const struct mu_js *s = mu_jv_text(j, v);
    size_t mark = j->out_len;
    (void)a;
    mu_ji_steps(j, s->len / 16);
    for (size_t i = 0; i < s->len; i++) {
        unsigned char c = (unsigned char)s->p[i];
        if (isalnum(c) || strchr("_.-~/", c))
            mu_ji_write(j, s->p + i, 1);
        else
            mu_ji_write(j, (char[]){'%', hex[c >> 4], hex[c & 15]}, 3);
    }
    return mu_ji_take(j, mark);
}

/* 'format' | format(args): the % operator. */
FILTER(f_format)
{
    const struct mu_js *s = mu_jv_text(j, v);
    if (a->n_kw) {
        struct mu_jd *d = mu_jd_new(j, a->n_kw);
        for (size_t i = 0; i < a->n_kw; i++)
            mu_jd_put(j, d, (struct mu_jv){.kind = MU_JK_STR, .s = a->kw[i].name}, a->kw[i].val);
        return mu_jv_percent(j, s, (struct mu_jv){.kind = MU_JK_DICT, .d = d});
    }
    struct mu_jl *l = mu_jl_new(j, a->n);
    for (size_t i = 0; i < a->n; i++) mu_jl_push(j, l, a->v[i]);
    return mu_jv_percent(j, s, (struct mu_jv){.kind = MU_JK_TUPLE, .l = l});
}

FILTER(f_default)
{
    static const struct mu_js empty = {.p = ""};
    struct mu_jv other = {.kind = MU_JK_STR, .s = &empty};
    mu_ji_arg(a, 0, "default_value", &other);
    bool missing = mu_ji_bool_or(j, a, 1, "boolean", false) ? !mu_jv_truth(v) : v.kind == MU_JK_UNDEFINED;
    return missing ? other : v;
}

/* ---- numbers ---- */

/* A whole number as Python's int() reads it from text; false: it is none. */
static bool int_of_text(struct mu_ji *j, const struct mu_js *s, int base, int64_t *out)
{
    char buf[72];
    const struct mu_js *t = mu_js_strip(j, s, NULL, 3).s;
    size_t n = 0, i = t->len && (t->p[0] == '-' || t->p[0] == '+');
    bool minus = i && t->p[0] == '-';
    if (i < t->len && base != 10 && t->len - i > 2 && t->p[i] == '0') {
        int c = tolower((unsigned char)t->p[i + 1]);
        if ((base == 16 && c == 'x') || (base == 8 && c == 'o') || (base == 2 && c == 'b')) i += 2;
    }
    if (minus) buf[n++] = '-';
    for (; i < t->len && n + 1 < sizeof buf; i++)
        if (t->p[i] != '_')
            buf[n++] = t->p[i];
        else if (i + 1 == t->len || t->p[i + 1] == '_')
            return false;
    buf[n] = '\0';
    if (i < t->len || n == minus || !isalnum((unsigned char)buf[minus])) return false;
    char *end;
    int64_t r = strtoll(buf, &end, base);
    *out = r;
    return !*end && strlen(buf) == n && r != INT64_MAX && r != INT64_MIN;
}

static bool float_of_text(struct mu_ji *j, const struct mu_js *s, double *out)
{
    char buf[128], *end;
    const struct mu_js *t = mu_js_strip(j, s, NULL, 3).s;
    if (!t->len || t->len >= sizeof buf || memchr(t->p, 'x', t->len) || memchr(t->p, 'X', t->len) ||
        memchr(t->p, '(', t->len) || memchr(t->p, '\0', t->len))
        return false;
    memcpy(buf, t->p, t->len);
    buf[t->len] = '\0';
    *out = strtod(buf, &end);
    return !*end;
}

static bool int_of_float(double f, int64_t *out)
{
    if (!(f > -9.2e18 && f < 9.2e18)) return false;
    *out = (int64_t)f;
    return true;
}

FILTER(f_int)
{
    int64_t base = mu_ji_int_or(j, a, 1, "base", 10), i;
    struct mu_jv other = mu_jv_int(0);
    double f;
    mu_ji_arg(a, 0, "default", &other);
    if (base != 10 && base != 16 && base != 8 && base != 2)
        mu_ji_fail(j, MU_EFORMAT, "int's base must be 2, 8, 10 or 16");
    if (mu_jv_is_int(v)) return mu_jv_int(mu_jv_as_int(v));
    if (v.kind == MU_JK_FLOAT) return int_of_float(v.f, &i) ? mu_jv_int(i) : other;
    if (v.kind != MU_JK_STR) return other;
    if (int_of_text(j, v.s, (int)base, &i)) return mu_jv_int(i);
    return float_of_text(j, v.s, &f) && int_of_float(f, &i) ? mu_jv_int(i) : other;
}

FILTER(f_float)
{
    struct mu_jv other = mu_jv_float(0);
    double f;
    mu_ji_arg(a, 0, "default", &other);
    if (v.kind == MU_JK_FLOAT) return v;
    if (mu_jv_is_int(v)) return mu_jv_float((double)mu_jv_as_int(v));
    return v.kind == MU_JK_STR && float_of_text(j, v.s, &f) ? mu_jv_float(f) : other;
}

FILTER(f_abs)
{
    (void)a;
    if (v.kind == MU_JK_FLOAT) return mu_jv_float(fabs(v.f));
    if (!mu_jv_is_int(v)) mu_ji_fail(j, MU_EFORMAT, "abs takes a number, not %s", mu_jk_name(v.kind));
    return mu_jv_as_int(v) < 0 ? mu_jv_negate(j, v) : mu_jv_int(mu_jv_as_int(v));
}

/* A float, but for the common rounding of an integer. Halves go to the even neighbour, as Python's round does. */
FILTER(f_round)
{
    struct mu_jv method;
    int64_t precision = mu_ji_int_or(j, a, 0, "precision", 0);
    double f = f_float(j, v, &(struct mu_jargs){0}).f, scale;
    if (v.kind != MU_JK_FLOAT && !mu_jv_is_int(v))
        mu_ji_fail(j, MU_EFORMAT, "round takes a number, not %s", mu_jk_name(v.kind));
    if (precision < -300 || precision > 300) return mu_jv_float(precision < 0 ? 0 : f);
    scale = pow(10, (double)precision);
    if (!mu_ji_arg(a, 1, "method", &method) || (method.kind == MU_JK_STR && mu_js_is(method.s, "common"))) {
        char buf[400];
        if (v.kind != MU_JK_FLOAT && precision >= 0) return v;
        if (precision <= 0) return mu_jv_float(nearbyint(f * scale) / scale);
        /* Python rounds the exact decimal value, which printing does, too. */
        if (!isfinite(f) || fabs(f) > 1e15 || precision > 17) return mu_jv_float(f);
        snprintf(buf, sizeof buf, "%.*f", (int)precision, f);
        return mu_jv_float(strtod(buf, NULL));
    }
    if (method.kind == MU_JK_STR && mu_js_is(method.s, "ceil")) return mu_jv_float(ceil(f * scale) / scale);
    if (method.kind == MU_JK_STR && mu_js_is(method.s, "floor")) return mu_jv_float(floor(f * scale) / scale);
    mu_ji_fail(j, MU_EFORMAT, "round's method must be 'common', 'ceil' or 'floor'");
}

FILTER(f_attr)
{
    return mu_jv_attr(j, v, mu_ji_want_str(j, a, 0, "name"));
}

const struct mu_jfunc mu_jfilters_text[] = {
    {"upper", f_upper, true},
    {"lower", f_lower, true},
    {"capitalize", f_capitalize, true},
    {"title", f_title, true},
    {"trim", f_trim, true},
    {"string", f_string, true},
    {"safe", f_safe, false},
    {"escape", f_escape, false},
    {"e", f_escape, false},
    {"forceescape", f_forceescape, false},
    {"replace", f_replace, false},
    {"indent", f_indent, true},
    {"center", f_center, true},
    {"truncate", f_truncate, true},
    {"wordcount", f_wordcount, false},
    {"urlencode", f_urlencode, false},
    {"format", f_format, false},
    {"default", f_default, false},
    {"d", f_default, false},
    {"int", f_int, false},
    {"float", f_float, false},
    {"abs", f_abs, false},
    {"round", f_round, false},
    {"attr", f_attr, false},
    {"tojson", mu_jv_tojson, false},
};
const size_t mu_jfilters_text_n = sizeof mu_jfilters_text / sizeof *mu_jfilters_text;
