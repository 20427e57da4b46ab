/* Values to text: str(), repr() and JSON, as Python writes them. All of it is appended to the output buffer. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "model/chat_template.h"
#include "model/jinja.h"
#include "model/utf8.h"

void mu_ji_write(struct mu_ji *j, const char *p, size_t len)
{
    if (len > (size_t)MU_TEMPLATE_MAX_OUTPUT - j->out_len)
        mu_ji_fail(j, MU_ELIMIT, "its text is longer than %d MiB", MU_TEMPLATE_MAX_OUTPUT >> 20);
    if (len > j->out_cap - j->out_len || !j->out) {
        size_t cap = (j->out_len + len) * 2 + 1024;
        char *more = mu_reallocarray(j->out, cap, 1);
        if (!more) mu_ji_fail(j, MU_ENOMEM, "no memory for its text");
        j->out = more;
        j->out_cap = cap;
    }
    mu_ji_steps(j, len / 64);
    if (len) memcpy(j->out + j->out_len, p, len);
    j->out_len += len;
}

void mu_ji_puts(struct mu_ji *j, const char *text)
{
    mu_ji_write(j, text, strlen(text));
}

void mu_ji_fill(struct mu_ji *j, const char *p, size_t len, size_t times)
{
    if (!len) return;
    if (times > (size_t)MU_TEMPLATE_MAX_OUTPUT)
        mu_ji_fail(j, MU_ELIMIT, "its text is longer than %d MiB", MU_TEMPLATE_MAX_OUTPUT >> 20);
    mu_ji_steps(j, times / 16);
    for (size_t i = 0; i < times; i++) mu_ji_write(j, p, len);
}

void mu_ji_put_cp(struct mu_ji *j, uint32_t cp)
{
    char c[4];
    mu_ji_write(j, c, mu_utf8_put(c, cp));
}

struct mu_jv mu_ji_take(struct mu_ji *j, size_t mark)
{
    struct mu_jv v = mu_jv_str(j, j->out ? j->out + mark : "", j->out_len - mark);
    j->out_len = mark;
    return v;
}

static void put_int(struct mu_ji *j, int64_t i)
{
    char buf[32];
    mu_ji_write(j, buf, (size_t)snprintf(buf, sizeof buf, "%lld", (long long)i));
}

/* The fewest digits that read back as f; with an exponent below 1e-4 and from 1e16 on. */
void mu_jv_put_float(struct mu_ji *j, double f)
{
    char digits[40], buf[48];
    if (isnan(f)) {
        mu_ji_puts(j, "nan");
        return;
    }
    if (isinf(f)) {
        mu_ji_puts(j, f < 0 ? "-inf" : "inf");
        return;
    }
    int precision = 1;
    for (; precision < 17; precision++) {
        snprintf(digits, sizeof digits, "%.*e", precision - 1, f);
        if (strtod(digits, NULL) == f) break;
    }
    snprintf(digits, sizeof digits, "%.*e", precision - 1, f);
    int exponent = atoi(strchr(digits, 'e') + 1);
    if (exponent < -4 || exponent >= 16) {
        mu_ji_puts(j, digits); /* both write at least two digits of exponent */
        return;
    }
    int decimals = precision - 1 - exponent;
    snprintf(buf, sizeof buf, "%.*f", decimals > 1 ? decimals : 1, f);
    mu_ji_puts(j, buf);
}

/* Code points that repr() shows as they are; beyond ASCII: all but spaces, controls, formats and private ones. */
static bool printable(uint32_t cp)
{
    if (cp < 0x20 || (cp >= 0x7F && cp <= 0xA0) || cp == 0xAD) return false;
    if (cp < 0x600) return true;
    return !(mu_jc_space(cp) || (cp >= 0x200B && cp <= 0x200F) || (cp >= 0x202A && cp <= 0x202E) ||
             (cp >= 0x2060 && cp <= 0x206F) || (cp >= 0xD800 && cp <= 0xF8FF) || cp == 0xFEFF ||
             (cp >= 0xFFF0 && cp <= 0xFFFB) || (cp & 0xFFFE) == 0xFFFE || cp >= 0xE0000);
}

static void repr_str(struct mu_ji *j, const struct mu_js *s)
{
    char quote = memchr(s->p, '\'', s->len) && !memchr(s->p, '"', s->len) ? '"' : '\'';
    char buf[16];
    mu_ji_write(j, &quote, 1);
    mu_ji_steps(j, s->len / 16);
    for (size_t at = 0; at < s->len;) {
        size_t begin = at;
        uint32_t cp = mu_js_at(s, &at);
        if (cp == '\\' || cp == (uint32_t)quote)
            mu_ji_write(j, (char[]){'\\', (char)cp}, 2);
        else if (cp == '\n' || cp == '\r' || cp == '\t')
            mu_ji_puts(j, cp == '\n' ? "\\n" : cp == '\r' ? "\\r" : "\\t");
        else if (printable(cp))
            mu_ji_write(j, s->p + begin, at - begin);
        else
            mu_ji_write(j, buf,
                        (size_t)snprintf(buf, sizeof buf,
                                         cp < 0x100     ? "\\x%02x"
                                         : cp < 0x10000 ? "\\u%04x"
                                                        : "\\U%08x",
                                         cp));
    }
    mu_ji_write(j, &quote, 1);
}

static void repr_items(struct mu_ji *j, struct mu_jv v)
{
    bool tuple = v.kind == MU_JK_TUPLE;
    mu_ji_puts(j, tuple ? "(" : "[");
    for (size_t i = 0; i < v.l->n; i++) {
        if (i) mu_ji_puts(j, ", ");
        mu_jv_repr(j, v.l->v[i]);
    }
    mu_ji_puts(j, !tuple ? "]" : v.l->n == 1 ? ",)" : ")");
}

static void repr_dict(struct mu_ji *j, const struct mu_jd *d)
{
    mu_ji_puts(j, "{");
    for (size_t i = 0; i < d->n; i++) {
        if (i) mu_ji_puts(j, ", ");
        mu_jv_repr(j, d->e[i].key);
        mu_ji_puts(j, ": ");
        mu_jv_repr(j, d->e[i].val);
    }
    mu_ji_puts(j, "}");
}

void mu_jv_repr(struct mu_ji *j, struct mu_jv v)
{
    mu_ji_steps(j, 1);
    mu_ji_deeper(j);
    switch (v.kind) {
    case MU_JK_UNDEFINED: mu_ji_puts(j, "Undefined"); break;
    case MU_JK_NONE: mu_ji_puts(j, "None"); break;
    case MU_JK_BOOL: mu_ji_puts(j, v.b ? "True" : "False"); break;
    case MU_JK_INT: put_int(j, v.i); break;
    case MU_JK_FLOAT: mu_jv_put_float(j, v.f); break;
    case MU_JK_STR: repr_str(j, v.s); break;
    case MU_JK_LIST:
    case MU_JK_TUPLE:
        if (v.l->lazy)
            mu_ji_puts(j, "<generator>");
        else
            repr_items(j, v);
        break;
    case MU_JK_DICT: repr_dict(j, v.d); break;
    case MU_JK_NAMESPACE:
        mu_ji_puts(j, "<Namespace ");
        repr_dict(j, v.d);
        mu_ji_puts(j, ">");
        break;
    case MU_JK_LOOP:
    case MU_JK_MACRO:
    case MU_JK_METHOD:
    case MU_JK_FUNC:
        mu_ji_puts(j, "<");
        mu_ji_puts(j, mu_jk_name(v.kind));
        mu_ji_puts(j, ">");
        break;
    }
    j->depth--;
}

void mu_jv_print(struct mu_ji *j, struct mu_jv v)
{
    if (v.kind == MU_JK_STR)
        mu_ji_write(j, v.s->p, v.s->len);
    else if (v.kind != MU_JK_UNDEFINED)
        mu_jv_repr(j, v);
}

const struct mu_js *mu_jv_text(struct mu_ji *j, struct mu_jv v)
{
    if (v.kind == MU_JK_STR) return v.s;
    size_t mark = j->out_len;
    mu_jv_print(j, v);
    return mu_ji_take(j, mark).s;
}

/* ---- JSON ---- */

struct json_style {
    const struct mu_js *indent, *item_sep, *key_sep; /* indent NULL: all in one line */
    bool ascii, sorted;
};

static void json_str(struct mu_ji *j, const struct mu_js *s, bool ascii)
{
    static const char escaped[] = "\"\\\b\f\n\r\t", letters[] = "\"\\bfnrt";
    char buf[16];
    mu_ji_puts(j, "\"");
    mu_ji_steps(j, s->len / 16);
    for (size_t at = 0; at < s->len;) {
        size_t begin = at;
        uint32_t cp = mu_js_at(s, &at);
        const char *e = cp && cp < 0x80 ? strchr(escaped, (int)cp) : NULL;
        if (e)
            mu_ji_write(j, (char[]){'\\', letters[e - escaped]}, 2);
        else if (cp < 0x20 || (ascii && cp >= 0x7F && cp < 0x10000))
            mu_ji_write(j, buf, (size_t)snprintf(buf, sizeof buf, "\\u%04x", cp));
        else if (ascii && cp >= 0x10000)
            mu_ji_write(j, buf,
                        (size_t)snprintf(buf, sizeof buf, "\\u%04x\\u%04x", 0xD800 + ((cp - 0x10000) >> 10),
                                         0xDC00 + (cp & 0x3FF)));
        else
            mu_ji_write(j, s->p + begin, at - begin);
    }
    mu_ji_puts(j, "\"");
}

static void json_line(struct mu_ji *j, const struct json_style *style, int level)
{
    if (!style->indent) return;
    mu_ji_puts(j, "\n");
    mu_ji_fill(j, style->indent->p, style->indent->len, (size_t)level);
}

static void json_value(struct mu_ji *j, const struct json_style *style, struct mu_jv v, int level);

static void json_key(struct mu_ji *j, const struct json_style *style, struct mu_jv key)
{
    if (key.kind == MU_JK_STR) {
        json_str(j, key.s, style->ascii);
        return;
    }
    mu_ji_puts(j, "\"");
    json_value(j, style, key, 0);
    mu_ji_puts(j, "\"");
}

static void json_dict(struct mu_ji *j, const struct json_style *style, const struct mu_jd *d, int level)
{
    const struct mu_jv *order = NULL; /* keys, sorted */
    size_t n = d->n;
    if (style->sorted) {
        struct mu_jl *l = mu_jl_new(j, n);
        for (size_t i = 0; i < n; i++) mu_jl_push(j, l, d->e[i].key);
        struct mu_jv exact[] = {mu_jv_bool(false), mu_jv_bool(true)}; /* up, by case: Python's order */
        const struct mu_jargs args = {.n = 2, .v = exact};
        order = mu_ji_filter("sort", 4)->call(j, mu_jv_list(l), &args).l->v;
    }
    mu_ji_puts(j, "{");
    for (size_t i = 0; i < n; i++) {
        struct mu_jv key = order ? order[i] : d->e[i].key;
        if (i) mu_ji_write(j, style->item_sep->p, style->item_sep->len);
        json_line(j, style, level + 1);
        json_key(j, style, key);
        mu_ji_write(j, style->key_sep->p, style->key_sep->len);
        json_value(j, style, order ? *mu_jd_find(j, (struct mu_jd *)d, key) : d->e[i].val, level + 1);
    }
    if (n) json_line(j, style, level);
    mu_ji_puts(j, "}");
}

static void json_value(struct mu_ji *j, const struct json_style *style, struct mu_jv v, int level)
{
    mu_ji_steps(j, 1);
    mu_ji_deeper(j);
    switch (v.kind) {
    case MU_JK_NONE: mu_ji_puts(j, "null"); break;
    case MU_JK_BOOL: mu_ji_puts(j, v.b ? "true" : "false"); break;
    case MU_JK_INT: put_int(j, v.i); break;
    case MU_JK_FLOAT:
        if (isfinite(v.f))
            mu_jv_put_float(j, v.f);
        else
            mu_ji_puts(j, isnan(v.f) ? "NaN" : v.f < 0 ? "-Infinity" : "Infinity");
        break;
    case MU_JK_STR: json_str(j, v.s, style->ascii); break;
    case MU_JK_LIST:
    case MU_JK_TUPLE:
        if (v.l->lazy) mu_ji_fail(j, MU_EFORMAT, "what map, select and their like give is no JSON; use | list first");
        mu_ji_puts(j, "[");
        for (size_t i = 0; i < v.l->n; i++) {
            if (i) mu_ji_write(j, style->item_sep->p, style->item_sep->len);
            json_line(j, style, level + 1);
            json_value(j, style, v.l->v[i], level + 1);
        }
        if (v.l->n) json_line(j, style, level);
        mu_ji_puts(j, "]");
        break;
    case MU_JK_DICT: json_dict(j, style, v.d, level); break;
    default: mu_ji_fail(j, MU_EFORMAT, "a value of type %s is no JSON", mu_jk_name(v.kind));
    }
    j->depth--;
}

/* tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false): the Hugging Face library's, not Jinja's
 * own, which would escape for HTML. */
struct mu_jv mu_jv_tojson(struct mu_ji *j, struct mu_jv v, const struct mu_jargs *a)
{
    static const struct mu_js comma = {.p = ", ", .len = 2}, tight = {.p = ",", .len = 1},
                              colon = {.p = ": ", .len = 2};
    struct mu_jv arg;
    struct json_style style = {.item_sep = &comma, .key_sep = &colon};
    style.ascii = mu_ji_bool_or(j, a, 0, "ensure_ascii", false);
    style.sorted = mu_ji_bool_or(j, a, 3, "sort_keys", false);
    if (mu_ji_arg(a, 1, "indent", &arg) && arg.kind != MU_JK_NONE) {
        size_t mark = j->out_len;
        if (arg.kind == MU_JK_STR)
            mu_jv_print(j, arg);
        else if (mu_jv_is_int(arg))
            mu_ji_fill(j, " ", 1, mu_jv_as_int(arg) > 0 ? (size_t)mu_jv_as_int(arg) : 0);
        else
            mu_ji_fail(j, MU_EFORMAT, "tojson's indent must be a number or text");
        style.indent = mu_ji_take(j, mark).s;
        style.item_sep = &tight;
    }
    if (mu_ji_arg(a, 2, "separators", &arg) && arg.kind != MU_JK_NONE) {
        if (!mu_jv_is_seq(arg) || arg.l->n != 2 || arg.l->v[0].kind != MU_JK_STR || arg.l->v[1].kind != MU_JK_STR)
            mu_ji_fail(j, MU_EFORMAT, "tojson's separators must be two texts");
        style.item_sep = arg.l->v[0].s;
        style.key_sep = arg.l->v[1].s;
    }
    size_t mark = j->out_len;
    json_value(j, &style, v, 0);
    return mu_ji_take(j, mark);
}
