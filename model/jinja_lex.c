/* Jinja source to tokens.
 *
 * Between tags everything is data; white space around tags goes by their signs and by the two settings that chat
 * templates are written for: trim_blocks (the first newline after a block or comment goes) and lstrip_blocks (white
 * space before a block or comment that is first on its line goes). `-` strips all white space on its side, `+`
 * switches the setting off. Within tags the end is recognised only where no bracket is open, so that {{ {'a': {}} }}
 * works. */
#include <stdlib.h>
#include <string.h>

#include "model/jinja.h"
#include "model/utf8.h"

void mu_jp_lex_init(struct mu_jp *p, const char *src, size_t len)
{
    char *copy = mu_jp_alloc(p, len + 1);
    size_t n = 0;
    for (size_t i = 0; i < len; i++) {
        if (src[i] == '\r') {
            copy[n++] = '\n';
            if (i + 1 < len && src[i + 1] == '\n') i++;
        } else {
            copy[n++] = src[i];
        }
    }
    if (n && copy[n - 1] == '\n') n--; /* one newline at the end of the file is not the template's */
    copy[n] = '\0';
    p->src = copy;
    p->len = n;
    p->line = 1;
    p->mode = MU_JT_DATA;
    p->line_starting = true;
}

static bool starts(const struct mu_jp *p, size_t at, const char *text)
{
    size_t n = strlen(text);
    return at <= p->len && n <= p->len - at && memcmp(p->src + at, text, n) == 0;
}

static size_t skip_space(const struct mu_jp *p, size_t at)
{
    uint32_t cp;
    while (at < p->len) {
        int n = mu_utf8_next(p->src + at, p->len - at, &cp);
        if (!n || !mu_jc_space(cp)) break;
        at += (size_t)n;
    }
    return at;
}

static void move_to(struct mu_jp *p, size_t at)
{
    for (; p->counted < at; p->counted++) p->line += p->src[p->counted] == '\n';
    p->pos = at;
}

/* After a tag: eats what its sign and trim_blocks say. at: just after the tag's last bracket. */
static void leave_tag(struct mu_jp *p, size_t at, char sign, bool trims)
{
    if (sign == '-')
        at = skip_space(p, at);
    else if (sign != '+' && trims && at < p->len && p->src[at] == '\n')
        at++;
    move_to(p, at);
    p->line_starting = p->src[at - 1] == '\n';
}

/* End of the data [begin, end) that stands before a tag. */
static size_t strip_before(const struct mu_jp *p, size_t begin, size_t end, char sign, bool lstrips)
{
    if (sign == '-') {
        while (end > begin) {
            size_t at = end - 1;
            while (at > begin && ((unsigned char)p->src[at] & 0xC0) == 0x80) at--;
            if (skip_space(p, at) < end) break;
            end = at;
        }
    } else if (sign != '+' && lstrips) {
        const char *newline = memrchr(p->src + begin, '\n', end - begin);
        size_t at = newline ? (size_t)(newline - p->src) + 1 : begin;
        if ((newline || p->line_starting) && skip_space(p, at) >= end) end = at;
    }
    return end;
}

static char sign_at(const struct mu_jp *p, size_t at)
{
    return at < p->len && (p->src[at] == '-' || p->src[at] == '+') ? p->src[at] : 0;
}

/* The end of "{%- word -%}" whose sign stands at `at`; 0: it is another tag. */
static size_t word_tag(const struct mu_jp *p, size_t at, const char *word, char *end_sign)
{
    at = skip_space(p, at + (sign_at(p, at) != 0));
    if (!starts(p, at, word)) return 0;
    at = skip_space(p, at + strlen(word));
    *end_sign = sign_at(p, at);
    at += *end_sign != 0;
    return starts(p, at, "%}") ? at + 2 : 0;
}

static struct mu_jtok data_token(struct mu_jp *p, size_t begin, size_t end)
{
    return (struct mu_jtok){.kind = MU_JT_DATA, .line = p->line, .p = p->src + begin, .len = end - begin};
}

/* {% raw %} … {% endraw %}, of which pos is the begin of the text. */
static struct mu_jtok raw_block(struct mu_jp *p)
{
    int line = p->line;
    for (size_t at = p->pos; at + 1 < p->len; at++) {
        char end_sign;
        size_t end = starts(p, at, "{%") ? word_tag(p, at + 2, "endraw", &end_sign) : 0;
        if (!end) continue;
        struct mu_jtok t = data_token(p, p->pos, strip_before(p, p->pos, at, sign_at(p, at + 2), true));
        leave_tag(p, end, end_sign, true);
        return t;
    }
    mu_jp_fail(p, MU_EFORMAT, line, "{%% raw %%} has no {%% endraw %%}");
}

static void comment(struct mu_jp *p, size_t at)
{
    at += sign_at(p, at) != 0;
    for (size_t i = at; i + 1 < p->len; i++) {
        if (p->src[i] != '#' || p->src[i + 1] != '}') continue;
        leave_tag(p, i + 2, i > at ? sign_at(p, i - 1) : 0, true);
        return;
    }
    mu_jp_fail(p, MU_EFORMAT, p->line, "a comment has no end; #} was expected");
}

/* Data up to the next tag, or the tag itself where at_tag; comments and raw blocks are dealt with on the way. */
static struct mu_jtok read_data(struct mu_jp *p)
{
    for (;;) {
        size_t at = p->pos;
        while (at < p->len && !(p->src[at] == '{' && at + 1 < p->len && strchr("{%#", p->src[at + 1]))) at++;
        if (at == p->len) {
            struct mu_jtok t = data_token(p, p->pos, at);
            if (!t.len) t.kind = MU_JT_END;
            move_to(p, at);
            return t;
        }
        char kind = p->src[at + 1], sign = sign_at(p, at + 2), end_sign;
        if (!p->at_tag) {
            struct mu_jtok t = data_token(p, p->pos, strip_before(p, p->pos, at, sign, kind != '{'));
            move_to(p, at);
            p->at_tag = true;
            if (t.len) return t;
        }
        p->at_tag = false;
        if (kind == '#') {
            comment(p, at + 2);
            continue;
        }
        size_t raw = kind == '%' ? word_tag(p, at + 2, "raw", &end_sign) : 0;
        if (raw && end_sign != '+') {
            leave_tag(p, raw, end_sign, false);
            struct mu_jtok t = raw_block(p);
            if (t.len) return t;
            continue;
        }
        move_to(p, at + 2 + (sign != 0));
        p->nest = 0;
        p->mode = kind == '{' ? MU_JT_VAR_BEGIN : MU_JT_BLOCK_BEGIN;
        return (struct mu_jtok){.kind = p->mode, .line = p->line};
    }
}

static bool tag_end(struct mu_jp *p, struct mu_jtok *t)
{
    bool var = p->mode == MU_JT_VAR_BEGIN;
    char sign = sign_at(p, p->pos);
    if (var && sign == '+') sign = 0;
    size_t at = p->pos + (sign != 0);
    if (!starts(p, at, var ? "}}" : "%}")) return false;
    *t = (struct mu_jtok){.kind = var ? MU_JT_VAR_END : MU_JT_BLOCK_END, .line = p->line};
    leave_tag(p, at + 2, sign, !var);
    p->mode = MU_JT_DATA;
    return true;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_word(char c)
{
    return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (unsigned char)c >= 0x80;
}

/* Digits with single underscores between; returns the place after them. */
static size_t digits(const struct mu_jp *p, size_t at)
{
    while (at < p->len && (is_digit(p->src[at]) || (p->src[at] == '_' && is_digit(p->src[at + 1])))) at++;
    return at;
}

static struct mu_jtok number(struct mu_jp *p)
{
    struct mu_jtok t = {.kind = MU_JT_NUMBER, .line = p->line};
    char buf[64];
    size_t begin = p->pos, at, n = 0;
    int base = 10;
    char mark = begin + 1 < p->len && p->src[begin] == '0' ? (char)(p->src[begin + 1] | 0x20) : 0;
    bool real = false;
    if (mark == 'x' || mark == 'o' || mark == 'b') {
        base = mark == 'x' ? 16 : mark == 'o' ? 8 : 2;
        begin += 2;
        for (at = begin; at < p->len && is_word(p->src[at]); at++) {}
    } else {
        bool dotted = begin > 0 && p->src[begin - 1] == '.'; /* a.0.1: indices */
        at = digits(p, begin);
        if (!dotted && at + 1 < p->len && p->src[at] == '.' && is_digit(p->src[at + 1]))
            at = digits(p, at + 1), real = true;
        if (!dotted && at < p->len && (p->src[at] | 0x20) == 'e') {
            size_t exp = at + 1;
            exp += exp < p->len && (p->src[exp] == '+' || p->src[exp] == '-');
            if (exp < p->len && is_digit(p->src[exp])) at = digits(p, exp), real = true;
        }
    }
    for (size_t i = begin; i < at; i++)
        if (p->src[i] != '_') {
            if (n + 1 == sizeof buf) mu_jp_fail(p, MU_EFORMAT, p->line, "a number has more than 62 digits");
            buf[n++] = p->src[i];
        }
    buf[n] = '\0';
    char *end = buf;
    if (real) {
        t.val = mu_jv_float(strtod(buf, &end));
    } else {
        unsigned long long v = strtoull(buf, &end, base);
        if (v > INT64_MAX) mu_jp_fail(p, MU_EFORMAT, p->line, "the number %s does not fit 64 bits", buf);
        t.val = mu_jv_int((int64_t)v);
    }
    if (!n || *end) mu_jp_fail(p, MU_EFORMAT, p->line, "'%s' is no number", buf);
    move_to(p, at);
    return t;
}

/* The escape at s (after the backslash, n bytes left) to *w; returns the bytes read. Unknown ones stay as they are. */
static size_t unescape(const char *s, size_t n, char **w)
{
    static const char names[] = "nrtabfv\\'\"\n", values[] = "\n\r\t\a\b\f\v\\'\"";
    size_t want = s[0] == 'x' ? 2 : s[0] == 'u' ? 4 : s[0] == 'U' ? 8 : 0;
    uint32_t cp = 0;
    size_t i;
    for (i = 1; want && i <= want && i < n && mu_hex_digit(s[i]) >= 0; i++) cp = cp << 4 | (uint32_t)mu_hex_digit(s[i]);
    if (want && i == want + 1 && cp <= 0x10FFFF) {
        *w += mu_utf8_put(*w, cp >= 0xD800 && cp < 0xE000 ? 0xFFFD : cp);
        return want + 1;
    }
    for (i = 0; i < 3 && i < n && s[i] >= '0' && s[i] <= '7'; i++) cp = cp << 3 | (uint32_t)(s[i] - '0');
    if (i) {
        *w += mu_utf8_put(*w, cp);
        return i;
    }
    const char *at = memchr(names, s[0], sizeof names - 1);
    if (at && *at == '\n') return 1; /* a line goes on */
    if (at)
        *(*w)++ = values[at - names];
    else
        *(*w)++ = '\\', *(*w)++ = s[0];
    return 1;
}

static struct mu_jtok string(struct mu_jp *p)
{
    struct mu_jtok t = {.kind = MU_JT_STRING, .line = p->line};
    char quote = p->src[p->pos];
    size_t begin = p->pos + 1, end = begin;
    while (end < p->len && p->src[end] != quote) end += 1 + (p->src[end] == '\\');
    if (end >= p->len) mu_jp_fail(p, MU_EFORMAT, p->line, "a string has no end; %c was expected", quote);
    char *text = mu_jp_alloc(p, end - begin + 1), *w = text;
    for (size_t i = begin; i < end;) {
        if (p->src[i] == '\\')
            i += 1 + unescape(p->src + i + 1, end - i - 1, &w);
        else
            *w++ = p->src[i++];
    }
    t.p = text;
    t.len = (size_t)(w - text);
    move_to(p, end + 1);
    return t;
}

static struct mu_jtok operator_token(struct mu_jp *p)
{
    static const char *const pairs[] = {"**", "//", "==", "!=", ">=", "<="};
    struct mu_jtok t = {.kind = MU_JT_OP, .line = p->line};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        if (starts(p, p->pos, pairs[i])) {
            t.op = MU_JOP(pairs[i][0], pairs[i][1]);
            move_to(p, p->pos + 2);
            return t;
        }
    char c = p->src[p->pos];
    if (!c || !strchr("+-/*%~[](){}<>=.:|,;", c)) {
        char shown[8];
        mu_jp_fail(p, MU_EFORMAT, p->line, "unexpected character '%s'",
                   mu_text_show(p->src + p->pos, 1, shown, sizeof shown));
    }
    t.op = c;
    if (strchr("([{", c)) p->nest++;
    if (strchr(")]}", c) && p->nest) p->nest--;
    move_to(p, p->pos + 1);
    return t;
}

static struct mu_jtok read_token(struct mu_jp *p)
{
    struct mu_jtok t;
    if (p->mode == MU_JT_DATA) return read_data(p);
    move_to(p, skip_space(p, p->pos));
    if (p->pos >= p->len)
        mu_jp_fail(p, MU_EFORMAT, p->line, "the template ends within a tag; %s was expected",
                   p->mode == MU_JT_VAR_BEGIN ? "}}" : "%}");
    if (!p->nest && tag_end(p, &t)) return t;
    char c = p->src[p->pos];
    if (is_digit(c)) return number(p);
    if (c == '"' || c == '\'') return string(p);
    if (!is_word(c)) return operator_token(p);
    size_t end = p->pos;
    while (end < p->len && is_word(p->src[end])) end++;
    t = (struct mu_jtok){.kind = MU_JT_NAME, .line = p->line, .p = p->src + p->pos, .len = end - p->pos};
    move_to(p, end);
    return t;
}

void mu_jp_next(struct mu_jp *p)
{
    p->cur = p->ahead;
    p->ahead = read_token(p);
}
