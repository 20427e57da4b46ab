/* Numbers between bounds: digits are compared as they are read, from the left.
 *
 * With bounds a number has no exponent, so its size shows in its digits. The digits at least (at most) those of a bound
 * are: more (fewer) of them before the point; or as many, the same up to some place, there a greater (smaller) one, and
 * then any; or all the same. Conditions are met by taking the automata of all of them at once. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/json_schema_part.h"

enum { PLACES_MAX = 60, MULTIPLE_MAX = 1000 };

struct decimal {
    bool negative;
    char whole[PLACES_MAX + 1], fraction[PLACES_MAX + 1]; /* digits without needless zeros; whole has one at least */
    uint32_t n_whole, n_fraction;
};

/* Of what mu_schema_number_text writes: sign, digits, point, digits, exponent. */
static bool read_decimal(const char *text, struct decimal *d)
{
    char digits[64] = "";
    int n = 0, point = -1, power = 0;
    memset(d, 0, sizeof *d);
    if (*text == '-') d->negative = true, text++;
    for (; *text && *text != 'e'; text++) {
        if (*text == '.') {
            point = n;
        } else if (n < 60) {
            digits[n++] = *text;
        }
    }
    if (*text == 'e') power = atoi(text + 1);
    if (point < 0) point = n;
    point += power;
    int zeros = 0;
    while (zeros < n && digits[zeros] == '0') zeros++;
    while (n > zeros && digits[n - 1] == '0') n--;
    if (zeros == n) point = 0, n = zeros = 0, d->negative = false;
    for (int i = zeros; i < (n > point ? n : point); i++) { /* before the point, with zeros up to it */
        if (i >= point) break;
        if (d->n_whole == PLACES_MAX) return false;
        d->whole[d->n_whole++] = i < n ? digits[i] : '0';
    }
    for (int i = point < zeros ? point : (point > zeros ? point : zeros); i < n; i++) {
        if (d->n_fraction == PLACES_MAX) return false;
        d->fraction[d->n_fraction++] = i < zeros ? '0' : digits[i];
    }
    if (!d->n_whole) d->whole[d->n_whole++] = '0';
    return true;
}

static const struct mu_ex *digits(struct mu_gb *b, int lo, int hi)
{
    struct mu_range r = {(uint32_t)('0' + lo), (uint32_t)('0' + hi)};
    return mu_ex_class(b, &r, lo <= hi);
}

static const struct mu_ex *any_digits(struct mu_gb *b, uint32_t min, uint32_t max)
{
    return mu_ex_repeat(b, digits(b, 0, 9), min, max);
}

static const struct mu_ex *any_fraction(struct mu_gb *b)
{
    return mu_ex_repeat(b, MU_SEQ(b, mu_ex_text(b, "."), any_digits(b, 1, MU_MANY)), 0, 1);
}

static const struct mu_ex *any_size(struct mu_gb *b)
{
    return MU_SEQ(b, any_digits(b, 1, MU_MANY), any_fraction(b));
}

/* Texts of numbers ≥ d (greater) or ≤ d, without signs; equal: or d itself. What has needless zeros in front is not
 * looked at: the form of numbers leaves it out. */
static const struct mu_ex *compared(struct mu_gb *b, const struct decimal *d, bool greater, bool equal)
{
    struct mu_items alt = {0};
    const struct mu_ex *point = mu_ex_text(b, "."), *any = any_digits(b, 0, MU_MANY);
    const struct mu_ex *whole = mu_ex_bytes(b, d->whole, d->n_whole);
    if (greater) {
        mu_items_add(b, &alt, MU_SEQ(b, digits(b, 1, 9), any_digits(b, d->n_whole, MU_MANY), any_fraction(b)));
    } else if (d->n_whole > 1) {
        mu_items_add(b, &alt, MU_SEQ(b, any_digits(b, 1, d->n_whole - 1), any_fraction(b)));
    }
    for (uint32_t i = 0; i < d->n_whole; i++) {
        int c = d->whole[i] - '0', least = i == 0 && d->n_whole > 1;
        mu_items_add(b, &alt,
                     MU_SEQ(b, mu_ex_bytes(b, d->whole, i), greater ? digits(b, c + 1, 9) : digits(b, least, c - 1),
                            any_digits(b, d->n_whole - i - 1, d->n_whole - i - 1), any_fraction(b)));
    }
    for (uint32_t i = 0; i < d->n_fraction; i++) {
        int c = d->fraction[i] - '0';
        const struct mu_ex *same = mu_ex_bytes(b, d->fraction, i);
        mu_items_add(b, &alt, MU_SEQ(b, whole, point, same, greater ? digits(b, c + 1, 9) : digits(b, 0, c - 1), any));
        if (greater) continue;
        mu_items_add(b, &alt, i ? MU_SEQ(b, whole, point, same) : whole); /* fewer digits, and others would follow */
    }
    const struct mu_ex *all = MU_SEQ(b, point, mu_ex_bytes(b, d->fraction, d->n_fraction));
    if (greater) {
        mu_items_add(b, &alt, MU_SEQ(b, whole, all, any, digits(b, 1, 9), any));
        if (equal && d->n_fraction) mu_items_add(b, &alt, MU_SEQ(b, whole, all, any));
        if (equal && !d->n_fraction) mu_items_add(b, &alt, MU_SEQ(b, whole, any_fraction(b)));
    } else if (equal) {
        const struct mu_ex *zeros = mu_ex_repeat(b, digits(b, 0, 0), !d->n_fraction, MU_MANY);
        mu_items_add(b, &alt, MU_SEQ(b, whole, all, zeros));
        if (!d->n_fraction) mu_items_add(b, &alt, whole);
    }
    return mu_ex_list(b, MU_EX_ALT, alt.p, alt.n);
}

/* Numbers ≥ d or ≤ d, of either sign. */
static const struct mu_ex *bounded(struct mu_gb *b, const struct decimal *d, bool greater, bool equal)
{
    static const struct decimal zero = {.whole = "0", .n_whole = 1};
    const struct mu_ex *minus = mu_ex_text(b, "-");
    bool is_zero = d->n_whole == 1 && d->whole[0] == '0' && !d->n_fraction;
    if (is_zero) { /* -0 is 0 */
        const struct mu_ex *none = compared(b, &zero, false, true), *sign = mu_ex_repeat(b, minus, 0, 1);
        const struct mu_ex *more = compared(b, &zero, true, false);
        if (!greater) more = MU_SEQ(b, minus, more);
        return equal ? MU_ALT(b, MU_SEQ(b, sign, none), more) : more;
    }
    if (greater != d->negative) { /* beyond d, away from zero */
        const struct mu_ex *beyond = compared(b, d, true, equal);
        return d->negative ? MU_SEQ(b, minus, beyond) : beyond;
    }
    const struct mu_ex *within = compared(b, d, false, equal), *other = any_size(b);
    return greater ? MU_ALT(b, other, MU_SEQ(b, minus, within)) : MU_ALT(b, MU_SEQ(b, minus, other), within);
}

static const struct mu_ex *multiple(struct mu_schema *s, const json_t *schema, const json_t *v, bool *integer,
                                    uint32_t *places)
{
    struct decimal d;
    char text[48];
    double x = json_number_value(v);
    if (!(x > 0)) {
        mu_schema_fail(s, MU_EFORMAT, schema, "'multipleOf' must be greater than 0");
        return NULL;
    }
    bool known = mu_schema_number_text(v, text, sizeof text) && read_decimal(text, &d);
    if (known && !d.n_fraction && x <= MULTIPLE_MAX) {
        *integer = true;
        return MU_SEQ(s->b, mu_ex_repeat(s->b, mu_ex_text(s->b, "-"), 0, 1), mu_ex_multiple(s->b, (uint32_t)x));
    }
    if (known && d.whole[0] == '0' && strspn(d.fraction, "0") + 1 == d.n_fraction &&
        d.fraction[d.n_fraction - 1] == '1') {
        *places = d.n_fraction < *places ? d.n_fraction : *places;
        return NULL;
    }
    mu_schema_fail(s, MU_EUNSUPPORTED, schema,
                   "'multipleOf' is supported for whole numbers up to %d and for 0.1, 0.01, 0.001 and so on",
                   MULTIPLE_MAX);
    return NULL;
}

const struct mu_ex *mu_schema_number(struct mu_schema *s, const struct mu_schema_all *members, bool integer)
{
    static const struct {
        const char *key;
        bool greater, equal;
    } bounds[] = {{"minimum", true, true},
                  {"exclusiveMinimum", true, false},
                  {"maximum", false, true},
                  {"exclusiveMaximum", false, false}};
    struct mu_gb *b = s->b;
    struct mu_items all = {0};
    uint32_t places = MU_MANY;
    for (uint32_t i = 0; i < members->n && b->st == MU_OK; i++) {
        const json_t *schema = members->p[i].schema, *v;
        for (size_t k = 0; k < sizeof bounds / sizeof *bounds; k++) {
            struct decimal d;
            char text[48];
            v = mu_schema_get(s, schema, bounds[k].key, "number");
            if (!v) continue;
            if (!mu_schema_number_text(v, text, sizeof text) || !read_decimal(text, &d)) {
                mu_schema_fail(s, MU_ELIMIT, schema, "'%s' has too many digits", bounds[k].key);
                return NULL;
            }
            mu_items_add(b, &all, bounded(b, &d, bounds[k].greater, bounds[k].equal));
        }
        v = mu_schema_get(s, schema, "multipleOf", "number");
        if (v) mu_items_add(b, &all, multiple(s, schema, v, &integer, &places));
    }
    if (b->st != MU_OK) return NULL;
    if (!all.n && places == MU_MANY) return mu_ex_rule(b, integer ? s->j.integer : s->j.number);
    const struct mu_ex *ex = mu_json_number(b, integer, places, false);
    for (uint32_t i = 0; i < all.n; i++) ex = mu_ex_both(b, ex, all.p[i]);
    return ex;
}
