/* The JSON cursor. See json_scan.h. */
#include "model/json_scan.h"

#include "model/utf8.h"

struct mu_json mu_json_over(const char *text, size_t len, const char *file, struct mu_arena *arena)
{
    return (struct mu_json){text, text, text + len, file, arena};
}

enum mu_status mu_json_fail(const struct mu_json *j, const char *at, struct mu_err *err, const char *expected)
{
    return mu_fail(err, MU_EFORMAT, "file '%s', offset %zu: expected %s; the file is damaged or no JSON", j->file,
                   (size_t)(at - j->text), expected);
}

char mu_json_peek(struct mu_json *j)
{
    while (j->p < j->end && (*j->p == ' ' || *j->p == '\n' || *j->p == '\r' || *j->p == '\t')) j->p++;
    return j->p < j->end ? *j->p : '\0';
}

enum mu_status mu_json_enter(struct mu_json *j, char bracket, struct mu_err *err)
{
    if (mu_json_peek(j) != bracket) return mu_json_fail(j, j->p, err, bracket == '{' ? "an object" : "an array");
    j->p++;
    return MU_OK;
}

/* The comma between two members, or the closing bracket. */
static enum mu_status next(struct mu_json *j, char close, bool *first, bool *more, struct mu_err *err)
{
    char c = mu_json_peek(j);
    *more = c != close;
    if (c == close || (c == ',' && !*first)) {
        j->p++;
    } else if (!*first || c == '\0') {
        return mu_json_fail(j, j->p, err, close == '}' ? "',' or '}'" : "',' or ']'");
    }
    *first = false;
    return MU_OK;
}

enum mu_status mu_json_next_key(struct mu_json *j, bool *first, bool *more, struct mu_str *key, struct mu_err *err)
{
    enum mu_status st = next(j, '}', first, more, err);
    if (st != MU_OK || !*more) return st;
    st = mu_json_string(j, key, err);
    if (st != MU_OK) return st;
    if (mu_json_peek(j) != ':') return mu_json_fail(j, j->p, err, "':' after a key");
    j->p++;
    return MU_OK;
}

enum mu_status mu_json_next_item(struct mu_json *j, bool *first, bool *more, struct mu_err *err)
{
    return next(j, ']', first, more, err);
}

/* Four hexadecimal digits at p; -1: there are none. */
static int32_t hex4(const char *p, const char *end)
{
    int32_t v = 0;
    if (end - p < 4) return -1;
    for (int i = 0; i < 4; i++) {
        int d = mu_hex_digit(p[i]);
        if (d < 0) return -1;
        v = v * 16 + d;
    }
    return v;
}

/* The character of the escape at *p (behind the backslash); -1: none. A pair of surrogates is one character. */
static int64_t unescape(const char **p, const char *end)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char *at = *p < end && **p ? strchr(from, **p) : NULL;
    if (at) {
        ++*p;
        return to[at - from];
    }
    if (*p == end || **p != 'u') return -1;
    int32_t high = hex4(*p + 1, end), low;
    if (high < 0 || (high >= 0xDC00 && high < 0xE000)) return -1;
    *p += 5;
    if (high < 0xD800 || high >= 0xE000) return high;
    if (end - *p < 6 || (*p)[0] != '\\' || (*p)[1] != 'u') return -1;
    low = hex4(*p + 2, end);
    if (low < 0xDC00 || low >= 0xE000) return -1;
    *p += 6;
    return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
}

/* Behind the opening quote: *close is where the closing one is, *plain whether nothing need be decoded. */
static enum mu_status find_end(const struct mu_json *j, const char *p, const char **close, bool *plain,
                               struct mu_err *err)
{
    uint32_t cp;
    *plain = true;
    while (p < j->end && *p != '"') {
        unsigned char c = (unsigned char)*p;
        if (c == '\\') {
            *plain = false;
            p += j->end - p > 1 ? 2 : 1;
        } else if (c >= 0x80) {
            int n = mu_utf8_next(p, (size_t)(j->end - p), &cp);
            if (!n) return mu_json_fail(j, p, err, "UTF-8");
            p += n;
        } else if (c < ' ') {
            return mu_json_fail(j, p, err, "no control character in a string");
        } else {
            p++;
        }
    }
    if (p == j->end) return mu_json_fail(j, p, err, "'\"' at the end of a string");
    *close = p;
    return MU_OK;
}

enum mu_status mu_json_string(struct mu_json *j, struct mu_str *out, struct mu_err *err)
{
    const char *close;
    bool plain;
    if (mu_json_peek(j) != '"') return mu_json_fail(j, j->p, err, "a string");
    const char *p = ++j->p;
    enum mu_status st = find_end(j, p, &close, &plain, err);
    if (st != MU_OK) return st;
    j->p = close + 1;
    *out = (struct mu_str){p, (size_t)(close - p)};
    if (plain) return MU_OK;
    char *copy = mu_arena_alloc(j->arena, out->len); /* an escape is longer than what it stands for */
    if (!copy) return mu_fail(err, MU_ENOMEM, "no memory for the strings of file '%s'", j->file);
    size_t n = 0;
    while (p < close) {
        if (*p != '\\') {
            copy[n++] = *p++;
            continue;
        }
        const char *at = p++;
        int64_t cp = unescape(&p, close);
        if (cp < 0) return mu_json_fail(j, at, err, "an escape such as \\n or \\u00e9");
        n += mu_utf8_put(copy + n, (uint32_t)cp);
    }
    *out = (struct mu_str){copy, n};
    return MU_OK;
}

enum mu_status mu_json_int(struct mu_json *j, int64_t *out, struct mu_err *err)
{
    bool negative = mu_json_peek(j) == '-';
    const char *start = j->p, *p = start + negative;
    int64_t v = 0;
    for (; p < j->end && *p >= '0' && *p <= '9' && p - start < 18; p++) v = v * 10 + (*p - '0');
    bool whole = p > start + negative && (p == j->end || !strchr(".eE0123456789", *p));
    if (!whole) return mu_json_fail(j, start, err, "an integer");
    j->p = p;
    *out = negative ? -v : v;
    return MU_OK;
}

enum mu_status mu_json_skip(struct mu_json *j, struct mu_str *span, struct mu_err *err)
{
    char open[MU_JSON_DEPTH_MAX];
    int depth = 0;
    bool plain;
    mu_json_peek(j);
    const char *start = j->p;
    do {
        char c = mu_json_peek(j);
        if (c == '"') {
            enum mu_status st = find_end(j, j->p + 1, &j->p, &plain, err);
            if (st != MU_OK) return st;
            j->p++;
        } else if (c == '{' || c == '[') {
            if (depth == MU_JSON_DEPTH_MAX) return mu_json_fail(j, j->p, err, "at most 256 brackets inside each other");
            open[depth++] = c == '{' ? '}' : ']';
            j->p++;
        } else if (c == '}' || c == ']') {
            if (!depth || open[--depth] != c) return mu_json_fail(j, j->p, err, "brackets in pairs");
            j->p++;
        } else if ((c == ',' || c == ':') && depth) {
            j->p++;
        } else { /* a number or a word */
            const char *p = j->p;
            while (p < j->end && !strchr(",:]}[{\" \n\r\t", *p)) p++;
            if (p == j->p) return mu_json_fail(j, p, err, "a value");
            j->p = p;
        }
    } while (depth);
    *span = (struct mu_str){start, (size_t)(j->p - start)};
    return MU_OK;
}
