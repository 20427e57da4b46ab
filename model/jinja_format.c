/* Formatting: the % operator of text and str.format, both through one specification of a field. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/jinja.h"

enum { MAX_PRECISION = 100, MAX_WIDTH = 1000000 };

struct spec {
    uint32_t fill;
    char align; /* < > ^ =, the last: between sign and digits; 0: by kind */
    char sign;  /* + or space; 0: only minus */
    char group; /* , or _; 0: none */
    char type;  /* 0: str() */
    bool alt;
    int width, precision; /* precision -1: not given */
};

static void put_grouped(struct mu_ji *j, const char *digits, size_t n, char group)
{
    size_t whole = 0;
    while (whole < n && digits[whole] >= '0' && digits[whole] <= '9') whole++;
    for (size_t i = 0; i < whole; i++) {
        if (group && i && (whole - i) % 3 == 0) mu_ji_write(j, &group, 1);
        mu_ji_write(j, digits + i, 1);
    }
    mu_ji_write(j, digits + whole, n - whole);
}

/* sign and body, padded as the specification says; body is the text written since mark, which it replaces. */
static void put_field(struct mu_ji *j, const struct spec *s, const char *sign, size_t mark, char natural)
{
    const struct mu_js *body = mu_ji_take(j, mark).s;
    char align = s->align ? s->align : natural;
    size_t n = mu_js_count(j, body) + strlen(sign), pad = (size_t)s->width > n ? (size_t)s->width - n : 0;
    size_t left = align == '>' ? pad : align == '^' ? pad / 2 : 0;
    for (size_t i = 0; i < left; i++) mu_ji_put_cp(j, s->fill);
    mu_ji_puts(j, sign);
    for (size_t i = 0; align == '=' && i < pad; i++) mu_ji_put_cp(j, s->fill);
    mu_ji_write(j, body->p, body->len);
    for (size_t i = left; align != '=' && i < pad; i++) mu_ji_put_cp(j, s->fill);
}

static const char *sign_of(const struct spec *s, bool minus)
{
    return minus ? "-" : s->sign == '+' ? "+" : s->sign == ' ' ? " " : "";
}

static void put_int(struct mu_ji *j, const struct spec *s, int64_t v)
{
    char buf[80], prefix[4] = {0};
    uint64_t u = v < 0 ? 0 - (uint64_t)v : (uint64_t)v;
    unsigned base = s->type == 'x' || s->type == 'X' ? 16 : s->type == 'o' ? 8 : s->type == 'b' ? 2 : 10;
    size_t at = sizeof buf, mark = j->out_len;
    do {
        buf[--at] = (s->type == 'X' ? "0123456789ABCDEF" : "0123456789abcdef")[u % base];
        u /= base;
    } while (u);
    snprintf(prefix, sizeof prefix, "%s%s", sign_of(s, v < 0),
             !s->alt || base == 10 ? ""
             : base == 16          ? (s->type == 'X' ? "0X" : "0x")
             : base == 8           ? "0o"
                                   : "0b");
    for (int i = (int)(sizeof buf - at); i < s->precision; i++) mu_ji_puts(j, "0");
    put_grouped(j, buf + at, sizeof buf - at, s->group);
    put_field(j, s, prefix, mark, '>');
}

static void put_float(struct mu_ji *j, const struct spec *s, double f)
{
    char buf[512], format[16];
    size_t mark = j->out_len;
    char type = s->type == '%' ? 'f' : s->type;
    double a = fabs(s->type == '%' ? f * 100 : f);
    bool minus = signbit(f) && !isnan(f);
    if (!type) { /* as str() writes it */
        mu_jv_put_float(j, a);
    } else {
        snprintf(format, sizeof format, "%%%s.*%c", s->alt ? "#" : "", type);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral" /* built just above */
        int n = snprintf(buf, sizeof buf, format, s->precision < 0 ? 6 : s->precision, a);
#pragma GCC diagnostic pop
        put_grouped(j, buf, (size_t)n, s->group);
    }
    if (s->type == '%') mu_ji_puts(j, "%");
    put_field(j, s, sign_of(s, minus), mark, '>');
}

static void put_text(struct mu_ji *j, const struct spec *s, struct mu_jv v, bool repr)
{
    size_t mark = j->out_len;
    if (repr)
        mu_jv_repr(j, v);
    else
        mu_jv_print(j, v);
    if (s->precision >= 0) {
        struct mu_js text = {.p = j->out + mark, .len = j->out_len - mark};
        j->out_len = mark + mu_js_offset(&text, 0, (size_t)s->precision);
    }
    put_field(j, s, "", mark, '<');
}

static void put_value(struct mu_ji *j, const struct spec *s, struct mu_jv v)
{
    bool real = s->type && strchr("eEfFgG%", s->type), whole = s->type && strchr("dxXob", s->type);
    if (v.kind == MU_JK_UNDEFINED && s->type && s->type != 's') mu_ji_fail_undefined(j, v);
    if (real && (mu_jv_is_int(v) || v.kind == MU_JK_FLOAT)) {
        put_float(j, s, v.kind == MU_JK_FLOAT ? v.f : (double)mu_jv_as_int(v));
    } else if (whole && mu_jv_is_int(v)) {
        put_int(j, s, mu_jv_as_int(v));
    } else if (real || whole) {
        mu_ji_fail(j, MU_EFORMAT, "the format '%c' needs a number, not %s", s->type, mu_jk_name(v.kind));
    } else if (!s->type && v.kind == MU_JK_INT) {
        put_int(j, s, v.i);
    } else if (!s->type && v.kind == MU_JK_FLOAT) {
        struct spec g = *s;
        if (s->precision >= 0) g.type = 'g';
        put_float(j, &g, v.f);
    } else {
        put_text(j, s, v, s->type == 'r');
    }
}

/* A number in a format at *at, at most max; -1: there is none. */
static int number(struct mu_ji *j, const struct mu_js *f, size_t *at, int max)
{
    int64_t n = -1; /* one digit more than max may have */
    for (; *at < f->len && f->p[*at] >= '0' && f->p[*at] <= '9'; ++*at) {
        n = (n < 0 ? 0 : n * 10) + (f->p[*at] - '0');
        if (n > max) mu_ji_fail(j, MU_ELIMIT, "a number in a format is larger than %d", max);
    }
    return (int)n;
}

static char byte_at(const struct mu_js *f, size_t at)
{
    return at < f->len ? f->p[at] : 0;
}

/* ---- % ---- */

static struct mu_jv percent_value(struct mu_ji *j, const struct mu_js *f, size_t *at, struct mu_jv args, size_t *used)
{
    if (byte_at(f, *at) == '(') {
        const char *end = memchr(f->p + *at, ')', f->len - *at);
        if (!end || args.kind != MU_JK_DICT) mu_ji_fail(j, MU_EFORMAT, "%%(name) in a format needs a dict");
        struct mu_jv key = mu_jv_borrow(j, f->p + *at + 1, (size_t)(end - f->p) - *at - 1);
        struct mu_jv *there = mu_jd_find(j, args.d, key);
        if (!there) mu_ji_fail(j, MU_EFORMAT, "a name of the format is not in the dict");
        *at = (size_t)(end - f->p) + 1;
        *used = SIZE_MAX;
        return *there;
    }
    size_t n = args.kind == MU_JK_TUPLE ? args.l->n : 1;
    if (*used >= n) mu_ji_fail(j, MU_EFORMAT, "a format has more places than there are values");
    return args.kind == MU_JK_TUPLE ? args.l->v[(*used)++] : (++*used, args);
}

static struct spec percent_spec(struct mu_ji *j, const struct mu_js *f, size_t *at)
{
    struct spec s = {.fill = ' ', .align = '>', .precision = -1};
    bool zero = false, left = false;
    for (char c; (c = byte_at(f, *at)) && strchr("-+ #0", c); ++*at) {
        left |= c == '-';
        zero |= c == '0';
        s.alt |= c == '#';
        if (c == '+' || (c == ' ' && !s.sign)) s.sign = c;
    }
    s.width = number(j, f, at, MAX_WIDTH);
    if (s.width < 0) s.width = 0;
    if (byte_at(f, *at) == '.') {
        ++*at;
        s.precision = number(j, f, at, MAX_PRECISION);
        if (s.precision < 0) s.precision = 0;
    }
    s.type = byte_at(f, (*at)++);
    if (!s.type || !strchr("diueEfFgGxXorsa%", s.type)) mu_ji_fail(j, MU_EFORMAT, "a format has an unknown letter");
    if (s.type == 'i' || s.type == 'u') s.type = 'd';
    if (s.type == 'a') s.type = 'r';
    if (left) {
        s.align = '<';
    } else if (zero && !strchr("rs", s.type)) {
        s.fill = '0';
        s.align = '=';
    }
    return s;
}

struct mu_jv mu_jv_percent(struct mu_ji *j, const struct mu_js *f, struct mu_jv args)
{
    size_t mark = j->out_len, used = 0;
    for (size_t at = 0; at < f->len;) {
        const char *p = memchr(f->p + at, '%', f->len - at);
        size_t next = p ? (size_t)(p - f->p) : f->len;
        mu_ji_write(j, f->p + at, next - at);
        at = next + 1;
        if (!p) break;
        mu_ji_steps(j, 1);
        if (byte_at(f, at) == '%') {
            mu_ji_puts(j, "%");
            at++;
            continue;
        }
        bool named = byte_at(f, at) == '(';
        struct mu_jv v = named ? percent_value(j, f, &at, args, &used) : mu_jv_none();
        struct spec s = percent_spec(j, f, &at);
        if (!named) v = percent_value(j, f, &at, args, &used);
        if (s.type == 'd' && v.kind == MU_JK_FLOAT && v.f > -9e18 && v.f < 9e18) v = mu_jv_int((int64_t)v.f);
        put_value(j, &s, v);
    }
    if (args.kind == MU_JK_TUPLE && used < args.l->n)
        mu_ji_fail(j, MU_EFORMAT, "a format has fewer places than there are values");
    return mu_ji_take(j, mark);
}

/* ---- str.format ---- */

static struct spec brace_spec(struct mu_ji *j, const struct mu_js *f)
{
    struct spec s = {.fill = ' ', .precision = -1};
    size_t at = 0, after = 0;
    uint32_t first = f->len ? mu_js_at(f, &after) : 0;
    if (f->len && byte_at(f, after) && strchr("<>^=", byte_at(f, after))) {
        s.fill = first;
        s.align = f->p[after];
        at = after + 1;
    } else if (byte_at(f, 0) && strchr("<>^=", byte_at(f, 0))) {
        s.align = f->p[at++];
    }
    if (byte_at(f, at) && strchr("+- ", byte_at(f, at))) s.sign = f->p[at++];
    if (byte_at(f, at) == '#') s.alt = true, at++;
    if (byte_at(f, at) == '0' && !s.align) s.fill = '0', s.align = '=', at++;
    s.width = number(j, f, &at, MAX_WIDTH);
    if (s.width < 0) s.width = 0;
    if (byte_at(f, at) == ',' || byte_at(f, at) == '_') s.group = f->p[at++];
    if (byte_at(f, at) == '.') {
        at++;
        s.precision = number(j, f, &at, MAX_PRECISION);
    }
    s.type = byte_at(f, at);
    at += s.type != 0;
    if (at != f->len || (s.type && !strchr("dxXobeEfFgG%s", s.type)))
        mu_ji_fail(j, MU_EFORMAT, "a format's part after ':' is not understood");
    return s;
}

/* "name", "0", "" with .attributes and [indices] after it. */
static struct mu_jv brace_value(struct mu_ji *j, const struct mu_js *f, const struct mu_jargs *a, size_t *used)
{
    size_t at = 0;
    struct mu_jv v = mu_jv_none();
    while (at < f->len && f->p[at] != '.' && f->p[at] != '[') at++;
    struct mu_js name = {.p = f->p, .len = at};
    size_t digits = 0;
    int n = number(j, &name, &digits, 1000);
    bool there = false;
    if (!name.len || digits == name.len) {
        size_t i = name.len ? (size_t)n : (*used)++;
        there = i < a->n;
        if (there) v = a->v[i];
    } else {
        for (size_t k = 0; k < a->n_kw && !there; k++) {
            there = a->kw[k].name->len == name.len && memcmp(a->kw[k].name->p, name.p, name.len) == 0;
            if (there) v = a->kw[k].val;
        }
    }
    if (!there) mu_ji_fail(j, MU_EFORMAT, "a format names a value that is not given");
    while (at < f->len) {
        bool index = f->p[at] == '[';
        size_t begin = ++at;
        while (at < f->len && (index ? f->p[at] != ']' : f->p[at] != '.' && f->p[at] != '[')) at++;
        struct mu_jv key = mu_jv_borrow(j, f->p + begin, at - begin);
        digits = 0;
        n = index ? number(j, key.s, &digits, 1000000000) : -1;
        v = mu_jv_index(j, v, index && n >= 0 && digits == key.s->len ? mu_jv_int(n) : key);
        at += index;
    }
    return v;
}

static void put_brace(struct mu_ji *j, const struct mu_js *field, const struct mu_jargs *a, size_t *used)
{
    const char *colon = memchr(field->p, ':', field->len);
    struct mu_js name = {.p = field->p, .len = colon ? (size_t)(colon - field->p) : field->len}, rest = {.p = ""};
    if (colon) rest = (struct mu_js){.p = colon + 1, .len = field->len - name.len - 1};
    char conversion = 0;
    if (name.len >= 2 && name.p[name.len - 2] == '!') {
        conversion = name.p[name.len - 1];
        name.len -= 2;
    }
    struct mu_jv v = brace_value(j, &name, a, used);
    if (conversion) {
        size_t mark = j->out_len;
        if (conversion == 'r')
            mu_jv_repr(j, v);
        else
            mu_jv_print(j, v);
        v = mu_ji_take(j, mark);
    }
    struct spec s = brace_spec(j, &rest);
    put_value(j, &s, v);
}

struct mu_jv mu_js_format(struct mu_ji *j, const struct mu_js *f, const struct mu_jargs *a)
{
    size_t mark = j->out_len, used = 0;
    mu_ji_steps(j, f->len / 16);
    for (size_t at = 0; at < f->len; at++) {
        char c = f->p[at];
        if (c != '{' && c != '}') {
            mu_ji_write(j, &c, 1);
            continue;
        }
        if (byte_at(f, at + 1) == c) {
            mu_ji_write(j, &c, 1);
            at++;
            continue;
        }
        const char *end = c == '{' ? memchr(f->p + at, '}', f->len - at) : NULL;
        if (!end) mu_ji_fail(j, MU_EFORMAT, "a format has a single '%c'", c);
        struct mu_js field = {.p = f->p + at + 1, .len = (size_t)(end - f->p) - at - 1};
        mu_ji_steps(j, 1);
        put_brace(j, &field, a, &used);
        at = (size_t)(end - f->p);
    }
    return mu_ji_take(j, mark);
}
