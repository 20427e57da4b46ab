/* Regular expressions, in the ECMAScript dialect that JSON Schema names, as far as automata go:
 *
 *   a . [a-z] [^…] \d \w \s \D \W \S \n \r \t \f \v \0 \cX \xHH \uHHHH \u{…} \/ and other escaped punctuation
 *   xy x|y (x) (?:x) (?<name>x) x* x+ x? x{2} x{2,} x{2,5}, each also with ? behind (lazy: the same texts)
 *   ^ $
 *
 * Refused by name: back references, looking ahead or behind, \b \B, \p{…}, flags.
 *
 * Anchors read nothing, but automata only know what is read. So ^ and $ become bytes that no text has, the text is
 * framed by them, and once an automaton is made of the pattern within that frame its edges with those bytes read nothing
 * again (MU_EX_FRAMED). An anchor in a wrong place then makes what it should: nothing. */
#include <string.h>

#include "model/grammar_part.h"
#include "model/utf8.h"

struct regex {
    struct mu_gb *b;
    const char *text, *p, *end;
    uint32_t depth;
    mu_regex_encode encode;
    bool anchors; /* there are some */
};

enum { DEPTH_MAX = 100 };

static const struct mu_ex *bad(struct regex *r, enum mu_status st, const char *what)
{
    char shown[64];
    mu_gb_fail(r->b, st, "regular expression '%s', position %zu: %s",
               mu_text_show(r->text, (size_t)(r->end - r->text), shown, sizeof shown), (size_t)(r->p - r->text) + 1,
               what);
    return NULL;
}

static bool is(const struct regex *r, char c)
{
    return r->p < r->end && *r->p == c;
}

/* ---- sets ---- */

static void add_kind(struct regex *r, struct mu_set *s, char kind)
{
    static const struct mu_range digits[] = {{'0', '9'}}, words[] = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}},
                                 spaces[] = {{9, 13},          {' ', ' '},       {0xA0, 0xA0},     {0x1680, 0x1680},
                                             {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F},
                                             {0x3000, 0x3000}, {0xFEFF, 0xFEFF}};
    char lower = (char)(kind | 0x20);
    const struct mu_range *p = lower == 'd' ? digits : lower == 'w' ? words : spaces;
    size_t n = lower == 'd' ? 1 : lower == 'w' ? 4 : sizeof spaces / sizeof *spaces;
    struct mu_set t = {0};
    for (size_t i = 0; i < n; i++) mu_set_add(r->b, &t, p[i].lo, p[i].hi);
    if (kind != lower) mu_set_invert(r->b, &t);
    for (uint32_t i = 0; i < t.n; i++) mu_set_add(r->b, s, t.r[i].lo, t.r[i].hi);
}

static bool hex(struct regex *r, int digits, uint32_t *cp)
{
    *cp = 0;
    for (int i = 0; i < digits; i++, r->p++) {
        int v = r->p < r->end ? mu_hex_digit(*r->p) : -1;
        if (v < 0) {
            bad(r, MU_EFORMAT, "a hexadecimal digit is missing");
            return false;
        }
        *cp = *cp << 4 | (uint32_t)v;
    }
    return true;
}

/* \u{…}, \uHHHH and two of those that are the halves of one character. */
static bool unicode(struct regex *r, uint32_t *cp)
{
    uint32_t low;
    if (is(r, '{')) {
        const char *close = memchr(r->p, '}', (size_t)(r->end - r->p));
        long n = close ? close - r->p - 1 : 0;
        r->p++;
        if (n < 1 || n > 6) {
            bad(r, MU_EFORMAT, "\\u{…} takes one to six hexadecimal digits");
            return false;
        }
        if (!hex(r, (int)n, cp)) return false;
        r->p++;
    } else {
        if (!hex(r, 4, cp)) return false;
        if (*cp >= 0xD800 && *cp < 0xDC00 && r->end - r->p >= 6 && r->p[0] == '\\' && r->p[1] == 'u') {
            r->p += 2;
            if (!hex(r, 4, &low)) return false;
            if (low >= 0xDC00 && low < 0xE000) *cp = 0x10000 + ((*cp - 0xD800) << 10) + (low - 0xDC00);
        }
    }
    if (*cp <= 0x10FFFF && (*cp < 0xD800 || *cp > 0xDFFF)) return true;
    bad(r, MU_EFORMAT, "the escape before is no character");
    return false;
}

/* What stands behind a backslash: one character (true in *one) or one of \d \w \s \D \W \S. */
static bool escape(struct regex *r, bool in_class, struct mu_set *s, uint32_t *cp, bool *one)
{
    char c = r->p < r->end ? *r->p : '\0';
    *one = true;
    if (!c) {
        bad(r, MU_EFORMAT, "a backslash ends it");
        return false;
    }
    if (strchr("dwsDWS", c)) {
        r->p++;
        *one = false;
        add_kind(r, s, c);
        return true;
    }
    if (c >= '1' && c <= '9') {
        bad(r, MU_EUNSUPPORTED, "back references are not supported");
        return false;
    }
    if ((c == 'b' && !in_class) || c == 'B') {
        bad(r, MU_EUNSUPPORTED, "word boundaries (\\b, \\B) are not supported");
        return false;
    }
    if (c == 'p' || c == 'P') {
        bad(r, MU_EUNSUPPORTED, "character properties (\\p{…}) are not supported; write the ranges");
        return false;
    }
    if (c == 'k') {
        bad(r, MU_EUNSUPPORTED, "back references are not supported");
        return false;
    }
    r->p++;
    switch (c) {
    case 'n': *cp = '\n'; return true;
    case 'r': *cp = '\r'; return true;
    case 't': *cp = '\t'; return true;
    case 'f': *cp = '\f'; return true;
    case 'v': *cp = '\v'; return true;
    case 'b': *cp = '\b'; return true;
    case '0': *cp = 0; return true;
    case 'x': return hex(r, 2, cp);
    case 'u': return unicode(r, cp);
    case 'c':
        if (r->p < r->end && (((unsigned char)*r->p | 0x20) >= 'a' && ((unsigned char)*r->p | 0x20) <= 'z')) {
            *cp = (uint32_t)*r->p++ % 32;
            return true;
        }
        break;
    default:
        if ((unsigned char)c < 0x80 && !((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'))) {
            *cp = (uint32_t)c;
            return true;
        }
    }
    r->p--;
    bad(r, MU_EUNSUPPORTED, "this escape is not known");
    return false;
}

static bool character(struct regex *r, uint32_t *cp)
{
    int n = mu_utf8_next(r->p, (size_t)(r->end - r->p), cp);
    if (!n) bad(r, MU_EFORMAT, "the text is not UTF-8");
    r->p += n;
    return n > 0;
}

static bool class_member(struct regex *r, struct mu_set *s, uint32_t *cp, bool *one)
{
    *one = true;
    if (r->p == r->end) {
        bad(r, MU_EFORMAT, "']' is missing");
        return false;
    }
    if (*r->p != '\\') return character(r, cp);
    r->p++;
    return escape(r, true, s, cp, one);
}

static const struct mu_ex *class(struct regex *r)
{
    struct mu_set s = {0};
    r->p++;
    bool inverted = is(r, '^');
    r->p += inverted;
    while (!is(r, ']')) {
        uint32_t lo = 0, hi;
        bool one;
        if (!class_member(r, &s, &lo, &one)) return NULL;
        if (!one) continue;
        hi = lo;
        if (is(r, '-') && r->p + 1 < r->end && r->p[1] != ']') {
            r->p++;
            if (!class_member(r, &s, &hi, &one)) return NULL;
            if (!one) return bad(r, MU_EFORMAT, "a range ends in a set of characters");
            if (hi < lo) return bad(r, MU_EFORMAT, "a range of characters runs backwards");
        }
        mu_set_add(r->b, &s, lo, hi);
    }
    r->p++;
    mu_set_sort(&s);
    if (inverted) mu_set_invert(r->b, &s);
    return r->encode(r->b, &s);
}

static const struct mu_ex *alternatives(struct regex *r);

static const struct mu_ex *group(struct regex *r)
{
    r->p++;
    if (is(r, '?')) {
        const char *q = r->p + 1;
        char c = q < r->end ? *q : '\0', d = q + 1 < r->end ? q[1] : '\0';
        if (c == ':') {
            r->p += 2;
        } else if (c == '=' || c == '!' || (c == '<' && (d == '=' || d == '!'))) {
            return bad(r, MU_EUNSUPPORTED, "looking ahead or behind is not supported");
        } else if (c == '<' || (c == 'P' && d == '<')) {
            const char *close = memchr(q, '>', (size_t)(r->end - q));
            if (!close) return bad(r, MU_EFORMAT, "'>' is missing");
            r->p = close + 1;
        } else {
            return bad(r, MU_EUNSUPPORTED, "this kind of group is not supported");
        }
    }
    if (++r->depth > DEPTH_MAX) return bad(r, MU_ELIMIT, "groups nest too deeply");
    const struct mu_ex *ex = alternatives(r);
    if (!ex) return NULL;
    if (!is(r, ')')) return bad(r, MU_EFORMAT, "')' is missing");
    r->p++;
    r->depth--;
    return ex;
}

static const struct mu_ex *atom(struct regex *r)
{
    struct mu_set s = {0};
    uint32_t cp = 0;
    bool one = true;
    switch (*r->p) {
    case '(': return group(r);
    case '[': return class(r);
    case '^':
    case '$': r->anchors = true; return mu_ex_bytes(r->b, *r->p++ == '^' ? MU_FRAME_BEGIN : MU_FRAME_END, 1);
    case '*':
    case '+':
    case '?': return bad(r, MU_EFORMAT, "there is nothing to repeat");
    case '.':
        r->p++;
        mu_set_add(r->b, &s, '\n', '\n');
        mu_set_add(r->b, &s, '\r', '\r');
        mu_set_add(r->b, &s, 0x2028, 0x2029);
        mu_set_invert(r->b, &s);
        return r->encode(r->b, &s);
    case '\\':
        r->p++;
        if (!escape(r, false, &s, &cp, &one)) return NULL;
        break;
    default:
        if (!character(r, &cp)) return NULL;
    }
    if (one) mu_set_add(r->b, &s, cp, cp);
    mu_set_sort(&s);
    return r->encode(r->b, &s);
}

static bool number(struct regex *r, uint32_t *n)
{
    const char *begin = r->p;
    *n = 0;
    for (; r->p < r->end && *r->p >= '0' && *r->p <= '9'; r->p++)
        *n = *n > MU_GR_REPEAT_MAX ? *n : *n * 10 + (uint32_t)(*r->p - '0');
    return r->p > begin;
}

/* The bounds at p, of * + ? {n} {n,} {n,m}; false: there are none (a '{' may be a character). */
static bool bounds(struct regex *r, uint32_t *min, uint32_t *max)
{
    const char *begin = r->p;
    if (is(r, '*') || is(r, '+') || is(r, '?')) {
        char c = *r->p++;
        *min = c == '+';
        *max = c == '?' ? 1 : MU_MANY;
        return true;
    }
    if (!is(r, '{')) return false;
    r->p++;
    if (number(r, min)) {
        *max = *min;
        if (is(r, ',')) {
            r->p++;
            if (!number(r, max)) *max = MU_MANY;
        }
        if (is(r, '}')) {
            r->p++;
            return true;
        }
    }
    r->p = begin;
    return false;
}

static const struct mu_ex *repeated(struct regex *r, const struct mu_ex *ex)
{
    uint32_t min = 0, max = 0;
    if (!bounds(r, &min, &max)) return ex;
    if (max < min) return bad(r, MU_EFORMAT, "the repetition's bounds are the wrong way round");
    if (is(r, '?')) { /* lazy */
        r->p++;
    } else if (is(r, '+')) {
        return bad(r, MU_EUNSUPPORTED, "possessive repetition is not supported");
    }
    uint32_t again_min, again_max;
    if (bounds(r, &again_min, &again_max)) return bad(r, MU_EFORMAT, "there is nothing to repeat");
    return mu_ex_repeat(r->b, ex, min, max);
}

static const struct mu_ex *sequence(struct regex *r)
{
    struct mu_items s = {0};
    while (r->p < r->end && *r->p != '|' && *r->p != ')') {
        const struct mu_ex *ex = atom(r);
        if (ex) ex = repeated(r, ex);
        if (!ex) return NULL;
        mu_items_add(r->b, &s, ex);
    }
    return mu_ex_list(r->b, MU_EX_SEQ, s.p, s.n);
}

static const struct mu_ex *alternatives(struct regex *r)
{
    struct mu_items s = {0};
    for (;;) {
        const struct mu_ex *ex = sequence(r);
        if (!ex) return NULL;
        mu_items_add(r->b, &s, ex);
        if (!is(r, '|')) break;
        r->p++;
    }
    return mu_ex_list(r->b, MU_EX_ALT, s.p, s.n);
}

const struct mu_ex *mu_regex_parse(struct mu_gb *b, const char *text, size_t len, bool whole, mu_regex_encode encode)
{
    struct regex r = {.b = b, .text = text, .p = text, .end = text + len, .encode = encode};
    const struct mu_ex *ex = alternatives(&r);
    if (!ex) return NULL;
    if (r.p < r.end) return bad(&r, MU_EFORMAT, "')' has no '('");
    struct mu_set set = {0};
    mu_set_add(b, &set, 0, 0x10FFFF);
    const struct mu_ex *any = mu_ex_repeat(b, encode(b, &set), 0, MU_MANY), *none = mu_ex_text(b, "");
    if (!r.anchors) return whole ? ex : MU_SEQ(b, any, ex, any);
    const struct mu_ex *begin = mu_ex_text(b, MU_FRAME_BEGIN), *end = mu_ex_text(b, MU_FRAME_END);
    const struct mu_ex *frame = MU_SEQ(b, mu_ex_repeat(b, begin, 1, MU_MANY), any, mu_ex_repeat(b, end, 1, MU_MANY));
    const struct mu_ex *before = whole ? begin : MU_SEQ(b, begin, any), *after = whole ? end : MU_SEQ(b, any, end);
    ex = MU_SEQ(b, MU_ALT(b, none, before), ex, MU_ALT(b, none, after));
    ex = mu_ex_both(b, ex, frame);
    return mu_ex_list(b, MU_EX_FRAMED, &ex, 1);
}
