/* What JSON is made of (RFC 8259), with what keeps a model from running away:
 *
 *   white space   after a bracket, a comma or before a closing bracket: nothing, a space, or a line's end and at most
 *                 SPACES_MAX spaces or TABS_MAX tabs; after a colon: nothing or a space; nowhere else
 *   numbers       at most MU_JSON_DIGITS_MAX digits before and after the point, EXPONENT_MAX in the exponent: what every
 *                 reader takes
 *   strings       any characters; escapes as JSON has them, also of pairs of surrogates; not U+0000, which readers in C
 *                 refuse
 *
 * Strings with conditions, and names of members, are written in one way only: as they are, escaped where they must be.
 * Else a name could come back in other letters. */
#include <stdio.h>
#include <string.h>

#include "model/grammar_part.h"

enum { SPACES_MAX = 40, TABS_MAX = 20, EXPONENT_MAX = 2 };

static const struct mu_ex *set(struct mu_gb *b, const char *ranges) /* "az09": pairs */
{
    struct mu_set s = {0};
    for (; *ranges; ranges += 2) mu_set_add(b, &s, (uint8_t)ranges[0], (uint8_t)ranges[1]);
    mu_set_sort(&s);
    return mu_set_ex(b, &s);
}

static const struct mu_ex *hex(struct mu_gb *b)
{
    return set(b, "09afAF");
}

/* What needs no escape. */
static void plain_set(struct mu_gb *b, struct mu_set *s)
{
    mu_set_add(b, s, ' ', '!');
    mu_set_add(b, s, '#', '[');
    mu_set_add(b, s, ']', 0x10FFFF);
}

const struct mu_ex *mu_json_encode(struct mu_gb *b, const struct mu_set *s)
{
    struct mu_set plain = {0}, common = {0};
    struct mu_items alt = {0};
    plain_set(b, &plain);
    mu_set_common(b, s, &plain, &common);
    if (common.n) mu_items_add(b, &alt, mu_set_ex(b, &common));
    for (uint32_t i = 0; i < s->n && b->st == MU_OK; i++) {
        for (uint32_t c = s->r[i].lo; c <= s->r[i].hi && c <= '\\'; c++) {
            static const char names[] = "\b\f\n\r\t\"\\", letters[] = "bfnrt\"\\";
            const char *name = c ? strchr(names, (int)c) : NULL;
            char text[8];
            if (name) {
                snprintf(text, sizeof text, "\\%c", letters[name - names]);
            } else if (c && c < ' ') {
                snprintf(text, sizeof text, "\\u%04x", (unsigned)c);
            } else {
                continue;
            }
            mu_items_add(b, &alt, mu_ex_text(b, text));
        }
    }
    return mu_ex_list(b, MU_EX_ALT, alt.p, alt.n);
}

const struct mu_ex *mu_json_any_char(struct mu_gb *b, bool plain)
{
    struct mu_set all = {0};
    if (plain) {
        mu_set_add(b, &all, 0, 0x10FFFF);
        return mu_json_encode(b, &all);
    }
    plain_set(b, &all);
    const struct mu_ex *h = hex(b), *d = set(b, "ddDD");
    const struct mu_ex *four = MU_ALT(b, MU_SEQ(b, set(b, "09acefACEF"), h, h, h), MU_SEQ(b, d, set(b, "07"), h, h));
    const struct mu_ex *pair = MU_SEQ(b, d, set(b, "89abAB"), h, h, mu_ex_text(b, "\\u"), d, set(b, "cfCF"), h, h);
    const struct mu_ex *number = MU_ALT(b, mu_ex_but(b, four, mu_ex_text(b, "0000")), pair);
    const struct mu_ex *after = MU_ALT(b, set(b, "\"\"\\\\//bbffnnrrtt"), MU_SEQ(b, mu_ex_text(b, "u"), number));
    return MU_ALT(b, mu_set_ex(b, &all), MU_SEQ(b, mu_ex_text(b, "\\"), after));
}

const struct mu_ex *mu_json_text(struct mu_gb *b, const char *p, size_t n)
{
    struct mu_items s = {0};
    mu_items_add(b, &s, mu_ex_text(b, "\""));
    for (size_t i = 0, run; i < n; i += run) {
        for (run = 0; i + run < n && (uint8_t)p[i + run] >= ' ' && p[i + run] != '"' && p[i + run] != '\\'; run++) {}
        if (run) {
            mu_items_add(b, &s, mu_ex_bytes(b, p + i, run));
        } else {
            struct mu_set one = {0};
            mu_set_add(b, &one, (uint8_t)p[i], (uint8_t)p[i]);
            mu_items_add(b, &s, mu_json_encode(b, &one));
            run = 1;
        }
    }
    mu_items_add(b, &s, mu_ex_text(b, "\""));
    return mu_ex_list(b, MU_EX_SEQ, s.p, s.n);
}

const struct mu_ex *mu_json_comma(struct mu_gb *b, const struct mu_json_rules *j)
{
    return MU_SEQ(b, mu_ex_text(b, ","), mu_ex_rule(b, j->space));
}

const struct mu_ex *mu_json_colon(struct mu_gb *b)
{
    return MU_ALT(b, mu_ex_text(b, ":"), mu_ex_text(b, ": "));
}

const struct mu_ex *mu_json_list(struct mu_gb *b, const struct mu_json_rules *j, const char *brackets,
                                 const struct mu_ex *inside)
{
    const struct mu_ex *space = mu_ex_rule(b, j->space);
    const struct mu_ex *open = mu_ex_bytes(b, brackets, 1), *close = mu_ex_bytes(b, brackets + 1, 1);
    return MU_SEQ(b, open, space, inside, space, close);
}

const struct mu_ex *mu_json_many(struct mu_gb *b, const struct mu_json_rules *j, const struct mu_ex *item, uint32_t min,
                                 uint32_t max)
{
    if (max == 0) return mu_ex_text(b, "");
    const struct mu_ex *more = MU_SEQ(b, mu_json_comma(b, j), item);
    const struct mu_ex *some =
        MU_SEQ(b, item, mu_ex_repeat(b, more, min ? min - 1 : 0, max == MU_MANY ? MU_MANY : max - 1));
    return min ? some : mu_ex_repeat(b, some, 0, 1);
}

const struct mu_ex *mu_json_number(struct mu_gb *b, bool integer, uint32_t fraction_max, bool exponent)
{
    const struct mu_ex *digit = set(b, "09"), *minus = mu_ex_repeat(b, mu_ex_text(b, "-"), 0, 1);
    const struct mu_ex *whole =
        MU_ALT(b, mu_ex_text(b, "0"), MU_SEQ(b, set(b, "19"), mu_ex_repeat(b, digit, 0, MU_JSON_DIGITS_MAX - 1)));
    if (integer) return MU_SEQ(b, minus, whole);
    if (fraction_max > MU_JSON_DIGITS_MAX) fraction_max = MU_JSON_DIGITS_MAX;
    const struct mu_ex *fraction = MU_SEQ(b, mu_ex_text(b, "."), mu_ex_repeat(b, digit, 1, fraction_max));
    const struct mu_ex *power =
        MU_SEQ(b, set(b, "eeEE"), mu_ex_repeat(b, set(b, "++--"), 0, 1), mu_ex_repeat(b, digit, 1, EXPONENT_MAX));
    return MU_SEQ(b, minus, whole, mu_ex_repeat(b, fraction, 0, 1), mu_ex_repeat(b, power, 0, exponent ? 1 : 0));
}

void mu_json_rules_open(struct mu_gb *b, struct mu_json_rules *j)
{
    uint32_t *const all[] = {&j->space, &j->string, &j->number, &j->integer, &j->value, &j->object, &j->array};
    static const char *const names[] = {"space", "string", "number", "integer", "value", "object", "array"};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) *all[i] = mu_gb_rule(b, names[i]);
    if (b->st != MU_OK) return;
    const struct mu_ex *quote = mu_ex_text(b, "\""), *value = mu_ex_rule(b, j->value);
    const struct mu_ex *indent = MU_ALT(b, mu_ex_repeat(b, mu_ex_text(b, " "), 0, SPACES_MAX),
                                        mu_ex_repeat(b, mu_ex_text(b, "\t"), 0, TABS_MAX));
    mu_gb_define(b, j->space, MU_ALT(b, mu_ex_text(b, ""), mu_ex_text(b, " "), MU_SEQ(b, mu_ex_text(b, "\n"), indent)));
    b->rules[j->space].called = true;
    mu_gb_define(b, j->string, MU_SEQ(b, quote, mu_ex_repeat(b, mu_json_any_char(b, false), 0, MU_MANY), quote));
    mu_gb_define(b, j->number, mu_json_number(b, false, MU_JSON_DIGITS_MAX, true));
    mu_gb_define(b, j->integer, mu_json_number(b, true, 0, false));
    const struct mu_ex *member = MU_SEQ(b, mu_ex_rule(b, j->string), mu_json_colon(b), value);
    mu_gb_define(b, j->object, mu_json_list(b, j, "{}", mu_json_many(b, j, member, 0, MU_MANY)));
    mu_gb_define(b, j->array, mu_json_list(b, j, "[]", mu_json_many(b, j, value, 0, MU_MANY)));
    mu_gb_define(b, j->value,
                 MU_ALT(b, mu_ex_rule(b, j->object), mu_ex_rule(b, j->array), mu_ex_rule(b, j->string),
                        mu_ex_rule(b, j->number), mu_ex_text(b, "true"), mu_ex_text(b, "false"),
                        mu_ex_text(b, "null")));
}
