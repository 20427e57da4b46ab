/* Text by code points: counting, finding, case, white space, and what filters and methods share. Bytes that are no
 * UTF-8 count as one character each, U+FFFD. */
#include <string.h>
#include <wctype.h>

#include "model/jinja.h"
#include "model/utf8.h"

uint32_t mu_js_at(const struct mu_js *s, size_t *at)
{
    uint32_t cp;
    int n = mu_utf8_next(s->p + *at, s->len - *at, &cp);
    *at += n ? (size_t)n : 1;
    return n ? cp : 0xFFFD;
}

size_t mu_js_count(struct mu_ji *j, const struct mu_js *s)
{
    size_t n = 0;
    mu_ji_steps(j, s->len / 64);
    for (size_t at = 0; at < s->len; n++) mu_js_at(s, &at);
    return n;
}

size_t mu_js_offset(const struct mu_js *s, size_t from, size_t n_cp)
{
    while (n_cp-- && from < s->len) mu_js_at(s, &from);
    return from;
}

size_t mu_js_find(const struct mu_js *s, size_t from, const struct mu_js *what)
{
    if (from > s->len) return SIZE_MAX;
    if (!what->len) return from;
    const char *at = memmem(s->p + from, s->len - from, what->p, what->len);
    return at ? (size_t)(at - s->p) : SIZE_MAX;
}

bool mu_jc_space(uint32_t cp)
{
    return (cp >= 0x09 && cp <= 0x0D) || (cp >= 0x1C && cp <= 0x20) || cp == 0x85 || cp == 0xA0 || cp == 0x1680 ||
           (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 || cp == 0x2029 || cp == 0x202F || cp == 0x205F ||
           cp == 0x3000;
}

uint32_t mu_jc_upper(struct mu_ji *j, uint32_t cp)
{
    if (cp < 0x80 || !j->locale) return cp >= 'a' && cp <= 'z' ? cp - 32 : cp;
    return (uint32_t)towupper_l((wint_t)cp, j->locale);
}

uint32_t mu_jc_lower(struct mu_ji *j, uint32_t cp)
{
    if (cp < 0x80 || !j->locale) return cp >= 'A' && cp <= 'Z' ? cp + 32 : cp;
    return (uint32_t)towlower_l((wint_t)cp, j->locale);
}

bool mu_jc_alpha(struct mu_ji *j, uint32_t cp)
{
    if (cp < 0x80 || !j->locale) return (cp >= 'a' && cp <= 'z') || (cp >= 'A' && cp <= 'Z');
    return iswalpha_l((wint_t)cp, j->locale) && !iswdigit_l((wint_t)cp, j->locale);
}

static void put_upper(struct mu_ji *j, uint32_t cp)
{
    if (cp == 0xDF) /* the one common letter whose upper case is two */
        mu_ji_puts(j, "SS");
    else
        mu_ji_put_cp(j, mu_jc_upper(j, cp));
}

struct mu_jv mu_js_case(struct mu_ji *j, const struct mu_js *s, bool upper)
{
    size_t mark = j->out_len;
    mu_ji_steps(j, s->len / 16);
    for (size_t at = 0; at < s->len;) {
        uint32_t cp = mu_js_at(s, &at);
        if (upper)
            put_upper(j, cp);
        else
            mu_ji_put_cp(j, mu_jc_lower(j, cp));
    }
    return mu_ji_take(j, mark);
}

struct mu_jv mu_js_capitalize(struct mu_ji *j, const struct mu_js *s)
{
    size_t mark = j->out_len;
    mu_ji_steps(j, s->len / 16);
    for (size_t at = 0; at < s->len;) {
        bool first = at == 0;
        uint32_t cp = mu_js_at(s, &at);
        mu_ji_put_cp(j, first ? mu_jc_upper(j, cp) : mu_jc_lower(j, cp));
    }
    return mu_ji_take(j, mark);
}

struct mu_jv mu_js_escape(struct mu_ji *j, const struct mu_js *s)
{
    size_t mark = j->out_len;
    mu_ji_steps(j, s->len / 16);
    for (size_t i = 0; i < s->len; i++) {
        switch (s->p[i]) {
        case '&': mu_ji_puts(j, "&amp;"); break;
        case '<': mu_ji_puts(j, "&lt;"); break;
        case '>': mu_ji_puts(j, "&gt;"); break;
        case '"': mu_ji_puts(j, "&#34;"); break;
        case '\'': mu_ji_puts(j, "&#39;"); break;
        default: mu_ji_write(j, s->p + i, 1);
        }
    }
    return mu_ji_take(j, mark);
}

static bool stripped(uint32_t cp, const struct mu_js *chars)
{
    if (!chars) return mu_jc_space(cp);
    for (size_t at = 0; at < chars->len;)
        if (mu_js_at(chars, &at) == cp) return true;
    return false;
}

struct mu_jv mu_js_strip(struct mu_ji *j, const struct mu_js *s, const struct mu_js *chars, int which)
{
    size_t begin = 0, end = s->len;
    mu_ji_steps(j, s->len / 64);
    while ((which & 1) && begin < end) {
        size_t at = begin;
        mu_ji_steps(j, chars ? 1 + chars->len / 16 : 0);
        if (!stripped(mu_js_at(s, &at), chars)) break;
        begin = at;
    }
    while ((which & 2) && end > begin) {
        size_t at = end - 1, after;
        while (at > begin && ((unsigned char)s->p[at] & 0xC0) == 0x80 && end - at < 4) at--;
        after = at;
        mu_ji_steps(j, chars ? 1 + chars->len / 16 : 0);
        if (!stripped(mu_js_at(s, &after), chars) || after != end) break;
        end = at;
    }
    return mu_jv_borrow(j, s->p + begin, end - begin);
}

struct mu_jv mu_js_replace(struct mu_ji *j, const struct mu_js *s, const struct mu_js *old, const struct mu_js *with,
                           int64_t count)
{
    size_t mark = j->out_len, at = 0;
    mu_ji_steps(j, s->len / 64);
    while (count != 0) {
        size_t found = mu_js_find(s, at, old);
        if (found == SIZE_MAX) break;
        if (!old->len) { /* between all characters, and at both ends */
            mu_ji_write(j, with->p, with->len);
            count--;
            mu_ji_steps(j, 1);
            if (at >= s->len) break;
            found = at;
            mu_js_at(s, &at);
            mu_ji_write(j, s->p + found, at - found);
            continue;
        }
        mu_ji_write(j, s->p + at, found - at);
        mu_ji_write(j, with->p, with->len);
        mu_ji_steps(j, 1);
        at = found + old->len;
        count--;
    }
    mu_ji_write(j, s->p + at, s->len - at);
    return mu_ji_take(j, mark);
}

static bool ends_line(uint32_t cp)
{
    return (cp >= 0x0A && cp <= 0x0D) || (cp >= 0x1C && cp <= 0x1E) || cp == 0x85 || cp == 0x2028 || cp == 0x2029;
}

struct mu_jl *mu_js_lines(struct mu_ji *j, const struct mu_js *s, bool keep_ends)
{
    struct mu_jl *lines = mu_jl_new(j, 0);
    mu_ji_steps(j, s->len / 64);
    for (size_t at = 0, begin = 0; at < s->len;) {
        size_t before = at;
        uint32_t cp = mu_js_at(s, &at);
        bool ends = ends_line(cp);
        if (cp == '\r' && at < s->len && s->p[at] == '\n') at++;
        if (!ends && at < s->len) continue;
        mu_jl_push(j, lines, mu_jv_borrow(j, s->p + begin, (ends && !keep_ends ? before : at) - begin));
        begin = at;
    }
    return lines;
}

struct mu_jv mu_js_pad(struct mu_ji *j, const struct mu_js *s, int64_t width, uint32_t fill, char align)
{
    size_t mark = j->out_len;
    int64_t n = (int64_t)mu_js_count(j, s), pad = width > n ? width - n : 0;
    int64_t left = align == '>' ? pad : align == '^' ? pad / 2 + (pad & width & 1) : 0;
    char c[8];
    mu_ji_put_cp(j, fill);
    size_t len = j->out_len - mark;
    memcpy(c, j->out + mark, len);
    j->out_len = mark;
    mu_ji_fill(j, c, len, (size_t)left);
    mu_ji_write(j, s->p, s->len);
    mu_ji_fill(j, c, len, (size_t)(pad - left));
    return mu_ji_take(j, mark);
}
