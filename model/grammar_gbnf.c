/* GBNF, the notation of llama.cpp's grammars:
 *
 *   root   ::= item ("," item)*        # rules by name; the text is what root makes
 *   item   ::= [a-z]+ | "\"" [^"]* "\"" | "x"{2,5} | "caf\u00E9" | .
 *
 * A rule ends with its line, but for lines inside parentheses and after "::=" or "|". Characters are code points: of the
 * text, or \n \r \t \\ \" \[ \] \xHH \uHHHH \UHHHHHHHH. */
#include <string.h>

#include "model/grammar_part.h"
#include "model/utf8.h"

struct gbnf {
    struct mu_gb *b;
    const char *text, *p, *end;
    uint32_t depth;
    uint32_t *slots; /* [SLOTS] rules by name: number + 1; 0: free. At most half of them are taken */
};

enum { DEPTH_MAX = 100, SLOTS = 2 * MU_GR_RULES_MAX };

static const struct mu_ex *bad(struct gbnf *g, const char *what)
{
    int line = 1;
    char shown[24];
    for (const char *p = g->text; p < g->p; p++) line += *p == '\n';
    size_t left = (size_t)(g->end - g->p);
    mu_gb_fail(g->b, MU_EFORMAT, "grammar, line %d: %s%s%s", line, what, left ? " at " : " at its end",
               left ? mu_text_show(g->p, left, shown, sizeof shown) : "");
    return NULL;
}

static void space(struct gbnf *g, bool lines)
{
    for (; g->p < g->end; g->p++) {
        if (*g->p == '#') {
            while (g->p + 1 < g->end && g->p[1] != '\n' && g->p[1] != '\r') g->p++;
        } else if (*g->p != ' ' && *g->p != '\t' && (!lines || (*g->p != '\n' && *g->p != '\r'))) {
            return;
        }
    }
}

static bool is(const struct gbnf *g, char c)
{
    return g->p < g->end && *g->p == c;
}

static bool is_name(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
}

static uint32_t rule_by_name(struct gbnf *g, const char *p, size_t n)
{
    char name[128];
    if (n >= sizeof name) {
        bad(g, "a rule's name is longer than 127 bytes");
        return MU_MANY;
    }
    memcpy(name, p, n);
    name[n] = '\0';
    uint32_t h = 0;
    for (size_t i = 0; i < n; i++) h = (h ^ (uint8_t)name[i]) * 0x9E3779B1u, h ^= h >> 15;
    for (h %= SLOTS; g->slots[h]; h = (h + 1) % SLOTS) {
        if (!strcmp(g->b->rules[g->slots[h] - 1].name, name)) return g->slots[h] - 1;
        if (!mu_gb_work(g->b, 1)) return MU_MANY;
    }
    uint32_t rule = mu_gb_rule(g->b, name);
    if (rule != MU_MANY) g->slots[h] = rule + 1;
    return rule;
}

static size_t name_length(const struct gbnf *g)
{
    size_t n = 0;
    while (g->p + n < g->end && is_name(g->p[n])) n++;
    return n;
}

static bool hex(struct gbnf *g, int digits, uint32_t *cp)
{
    *cp = 0;
    for (int i = 0; i < digits; i++, g->p++) {
        int v = g->p < g->end ? mu_hex_digit(*g->p) : -1;
        if (v < 0) {
            bad(g, "a hexadecimal digit is missing");
            return false;
        }
        *cp = *cp << 4 | (uint32_t)v;
    }
    if (*cp <= 0x10FFFF && (*cp < 0xD800 || *cp > 0xDFFF)) return true;
    bad(g, "the escape before is no character");
    return false;
}

/* One character of a literal or a class. */
static bool character(struct gbnf *g, uint32_t *cp)
{
    if (g->p == g->end) {
        bad(g, "a closing quote or bracket is missing");
        return false;
    }
    if (*g->p != '\\') {
        int n = mu_utf8_next(g->p, (size_t)(g->end - g->p), cp);
        if (!n) bad(g, "the text is not UTF-8");
        g->p += n;
        return n > 0;
    }
    g->p++;
    char c = g->p < g->end ? *g->p++ : '\0';
    switch (c) {
    case 'n': *cp = '\n'; return true;
    case 'r': *cp = '\r'; return true;
    case 't': *cp = '\t'; return true;
    case 'x': return hex(g, 2, cp);
    case 'u': return hex(g, 4, cp);
    case 'U': return hex(g, 8, cp);
    case '\\':
    case '"':
    case '[':
    case ']':
    case '-':
    case '^': *cp = (uint32_t)c; return true;
    }
    g->p--;
    bad(g, "an unknown escape");
    return false;
}

static const struct mu_ex *literal(struct gbnf *g)
{
    struct mu_items s = {0};
    uint32_t cp;
    for (g->p++; !is(g, '"');) {
        if (!character(g, &cp)) return NULL;
        struct mu_range r = {cp, cp};
        mu_items_add(g->b, &s, mu_ex_class(g->b, &r, 1));
    }
    g->p++;
    return mu_ex_list(g->b, MU_EX_SEQ, s.p, s.n);
}

static const struct mu_ex *class(struct gbnf *g)
{
    struct mu_set s = {0};
    g->p++;
    bool inverted = is(g, '^');
    g->p += inverted;
    while (!is(g, ']')) {
        uint32_t lo, hi;
        if (!character(g, &lo)) return NULL;
        hi = lo;
        if (is(g, '-') && g->p + 1 < g->end && g->p[1] != ']') {
            g->p++;
            if (!character(g, &hi)) return NULL;
            if (hi < lo) return bad(g, "a range of characters runs backwards before this");
        }
        mu_set_add(g->b, &s, lo, hi);
    }
    g->p++;
    mu_set_sort(&s);
    if (inverted) mu_set_invert(g->b, &s);
    return mu_set_ex(g->b, &s);
}

static bool number(struct gbnf *g, uint32_t *n)
{
    const char *begin = g->p;
    *n = 0;
    for (; g->p < g->end && *g->p >= '0' && *g->p <= '9'; g->p++)
        *n = *n > MU_GR_REPEAT_MAX ? *n : *n * 10 + (uint32_t)(*g->p - '0');
    return g->p > begin;
}

static const struct mu_ex *repeated(struct gbnf *g, const struct mu_ex *ex)
{
    uint32_t min = 0, max = MU_MANY;
    if (is(g, '*') || is(g, '+') || is(g, '?')) {
        char c = *g->p++;
        return mu_ex_repeat(g->b, ex, c == '+', c == '?' ? 1 : MU_MANY);
    }
    if (!is(g, '{')) return ex;
    g->p++;
    space(g, true);
    if (!number(g, &min) && !is(g, ',')) return bad(g, "a number of repetitions is missing");
    space(g, true);
    max = min;
    if (is(g, ',')) {
        g->p++;
        space(g, true);
        if (!number(g, &max)) max = MU_MANY;
        space(g, true);
    }
    if (!is(g, '}')) return bad(g, "'}' is missing");
    g->p++;
    if (max < min) return bad(g, "the repetition's bounds are the wrong way round before this");
    return mu_ex_repeat(g->b, ex, min, max);
}

static const struct mu_ex *alternatives(struct gbnf *g, bool nested);

static const struct mu_ex *group(struct gbnf *g)
{
    if (++g->depth > DEPTH_MAX) return bad(g, "parentheses nest too deeply");
    g->p++;
    space(g, true);
    const struct mu_ex *ex = alternatives(g, true);
    if (!ex) return NULL;
    if (!is(g, ')')) return bad(g, "')' is missing");
    g->p++;
    g->depth--;
    return ex;
}

static const struct mu_ex *item(struct gbnf *g)
{
    static const struct mu_range any = {0, 0x10FFFF};
    if (is(g, '"')) return literal(g);
    if (is(g, '[')) return class(g);
    if (is(g, '(')) return group(g);
    if (is(g, '.')) {
        g->p++;
        return mu_ex_class(g->b, &any, 1);
    }
    if (is(g, '<') || is(g, '!')) {
        mu_gb_fail(g->b, MU_EUNSUPPORTED,
                   "grammar: tokens by name or number (<…>) are not supported; write their text");
        return NULL;
    }
    size_t n = name_length(g);
    uint32_t rule = rule_by_name(g, g->p, n);
    g->p += n;
    return rule == MU_MANY ? NULL : mu_ex_rule(g->b, rule);
}

static const struct mu_ex *sequence(struct gbnf *g, bool nested)
{
    struct mu_items s = {0};
    while (g->p < g->end && (strchr("\"[(.<!", *g->p) || is_name(*g->p)) && *g->p) {
        const struct mu_ex *ex = item(g);
        if (!ex) return NULL;
        space(g, nested);
        while (is(g, '*') || is(g, '+') || is(g, '?') || is(g, '{')) {
            ex = repeated(g, ex);
            if (!ex) return NULL;
            space(g, nested);
        }
        mu_items_add(g->b, &s, ex);
    }
    return mu_ex_list(g->b, MU_EX_SEQ, s.p, s.n);
}

static const struct mu_ex *alternatives(struct gbnf *g, bool nested)
{
    struct mu_items s = {0};
    for (;;) {
        const struct mu_ex *ex = sequence(g, nested);
        if (!ex) return NULL;
        mu_items_add(g->b, &s, ex);
        if (!is(g, '|')) break;
        g->p++;
        space(g, true);
    }
    return mu_ex_list(g->b, MU_EX_ALT, s.p, s.n);
}

void mu_gbnf_parse(struct mu_gb *b, const char *text, size_t len)
{
    struct gbnf g = {.b = b, .text = text, .p = text, .end = text + len};
    g.slots = mu_gb_alloc(b, SLOTS, sizeof *g.slots);
    if (g.slots) b->root = rule_by_name(&g, "root", 4);
    for (space(&g, true); b->st == MU_OK && g.p < g.end; space(&g, true)) {
        size_t n = name_length(&g);
        if (!n) {
            bad(&g, "the name of a rule is missing");
            return;
        }
        uint32_t rule = rule_by_name(&g, g.p, n);
        g.p += n;
        space(&g, false);
        if (rule == MU_MANY) return;
        if (g.end - g.p < 3 || memcmp(g.p, "::=", 3)) {
            bad(&g, "'::=' is missing");
            return;
        }
        if (b->rules[rule].ex) {
            bad(&g, "a rule is defined twice");
            return;
        }
        g.p += 3;
        space(&g, true);
        const struct mu_ex *ex = alternatives(&g, false);
        if (!ex) return;
        if (g.p < g.end && *g.p != '\n' && *g.p != '\r') {
            bad(&g, "the rule does not go on like this");
            return;
        }
        mu_gb_define(b, rule, ex);
    }
    if (b->st == MU_OK && !b->rules[b->root].ex)
        mu_gb_fail(b, MU_EFORMAT, "grammar: rule 'root' is missing; it is what the whole text is");
}
