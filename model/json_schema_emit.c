/* A list of schemas, its references followed, as an expression: alternatives, fixed values, and one part for each type
 * it may be. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/json_schema_part.h"

enum { ALTERNATIVES_MAX = 1024 };

static const struct mu_ex *nothing(struct mu_schema *s)
{
    return mu_ex_list(s->b, MU_EX_ALT, NULL, 0);
}

/* ---- fixed values ---- */

bool mu_schema_number_text(const json_t *value, char *out, size_t size)
{
    if (json_is_integer(value)) {
        snprintf(out, size, "%lld", (long long)json_integer_value(value));
        return true;
    }
    double x = json_real_value(value);
    for (int digits = 1; digits <= 17; digits++) { /* as few as bring it back */
        snprintf(out, size, "%.*e", digits - 1, x);
        if (strtod(out, NULL) != x) continue;
        int power = atoi(strchr(out, 'e') + 1), places = digits - 1 - power;
        /* Without the exponent where a number may be written so: beside bounds it must be. */
        if (power < MU_JSON_DIGITS_MAX && places <= MU_JSON_DIGITS_MAX)
            snprintf(out, size, "%.*f", places > 0 ? places : 0, x);
        return true;
    }
    return false;
}

const struct mu_ex *mu_schema_literal(struct mu_schema *s, const json_t *value)
{
    struct mu_gb *b = s->b;
    struct mu_items items = {0};
    const char *key;
    json_t *kid;
    size_t i;
    char text[40];
    switch (json_typeof(value)) {
    case JSON_NULL: return mu_ex_text(b, "null");
    case JSON_TRUE: return mu_ex_text(b, "true");
    case JSON_FALSE: return mu_ex_text(b, "false");
    case JSON_STRING: return mu_json_text(b, json_string_value(value), json_string_length(value));
    case JSON_INTEGER:
    case JSON_REAL: return mu_schema_number_text(value, text, sizeof text) ? mu_ex_text(b, text) : nothing(s);
    case JSON_ARRAY:
        json_array_foreach(value, i, kid)
        {
            if (i) mu_items_add(b, &items, mu_json_comma(b, &s->j));
            mu_items_add(b, &items, mu_schema_literal(s, kid));
        }
        return mu_json_list(b, &s->j, "[]", mu_ex_list(b, MU_EX_SEQ, items.p, items.n));
    case JSON_OBJECT:
        json_object_foreach((json_t *)value, key, kid)
        {
            if (items.n) mu_items_add(b, &items, mu_json_comma(b, &s->j));
            mu_items_add(b, &items, mu_json_text(b, key, strlen(key)));
            mu_items_add(b, &items, mu_json_colon(b));
            mu_items_add(b, &items, mu_schema_literal(s, kid));
        }
        return mu_json_list(b, &s->j, "{}", mu_ex_list(b, MU_EX_SEQ, items.p, items.n));
    }
    return NULL;
}

/* Conditions are met with all the values of their type at once, so that their automata are made once. */
static const struct mu_ex *values(struct mu_schema *s, const struct mu_schema_shape *shape)
{
    struct mu_gb *b = s->b;
    struct mu_items strings = {0}, numbers = {0}, others = {0};
    size_t n = shape->one_value ? 1 : json_array_size(shape->values);
    for (size_t i = 0; i < n && b->st == MU_OK; i++) {
        const json_t *v = shape->one_value ? shape->one_value : json_array_get(shape->values, i);
        if (!mu_schema_value_fits(s, shape, v)) continue;
        if ((json_is_object(v) && (shape->told & MU_SCHEMA_OBJECT)) ||
            (json_is_array(v) && (shape->told & MU_SCHEMA_ARRAY))) {
            mu_schema_fail(s, MU_EUNSUPPORTED, shape->members.p[0].schema,
                           "an object or array in 'enum' or 'const' is not supported beside other conditions on it");
        }
        struct mu_items *list = json_is_string(v) ? &strings : json_is_number(v) ? &numbers : &others;
        mu_items_add(b, list, mu_schema_literal(s, v));
    }
    const struct mu_ex *some = mu_ex_list(b, MU_EX_ALT, strings.p, strings.n);
    if (strings.n && (shape->told & MU_SCHEMA_STRING)) {
        const struct mu_ex *string = mu_schema_string(s, &shape->members);
        if (string && string->kind != MU_EX_RULE) some = mu_ex_both(b, some, string); /* the rule: of any string */
    }
    mu_items_add(b, &others, some);
    some = mu_ex_list(b, MU_EX_ALT, numbers.p, numbers.n);
    if (numbers.n && (shape->told & MU_SCHEMA_NUMBER))
        some = mu_ex_both(b, some, mu_schema_number(s, &shape->members, false));
    mu_items_add(b, &others, some);
    return mu_ex_list(b, MU_EX_ALT, others.p, others.n);
}

/* ---- strings ---- */

const struct mu_ex *mu_schema_string(struct mu_schema *s, const struct mu_schema_all *members)
{
    struct mu_gb *b = s->b;
    const struct mu_ex *body = NULL, *quote = mu_ex_text(b, "\"");
    uint32_t min = mu_schema_count(s, members, "minLength", true, 0);
    uint32_t max = mu_schema_count(s, members, "maxLength", false, MU_MANY), asked = max;
    for (uint32_t i = 0; i < members->n && b->st == MU_OK; i++) {
        const json_t *schema = members->p[i].schema;
        for (int k = 0; k < 2; k++) {
            const json_t *v = mu_schema_get(s, schema, k ? "format" : "pattern", "string");
            const char *text = v ? json_string_value(v) : NULL;
            char shown[48];
            if (!text) continue;
            size_t len = json_string_length(v);
            if (k) {
                const char *format = mu_schema_format(text, &max);
                if (!format) {
                    mu_schema_fail(s, MU_EUNSUPPORTED, schema, "the format '%s' is not supported",
                                   mu_text_show(text, len, shown, sizeof shown));
                    return NULL;
                }
                if (asked == MU_MANY && max < min) max += min; /* a format's own bound is no condition */
                text = format;
                len = strlen(text);
            }
            const struct mu_ex *ex = mu_regex_parse(b, text, len, k, mu_json_encode);
            body = body ? mu_ex_both(b, body, ex) : ex;
        }
    }
    if (b->st != MU_OK) return NULL;
    if (!body && !min && max == MU_MANY) return mu_ex_rule(b, s->j.string);
    const struct mu_ex *length = mu_ex_repeat(b, mu_json_any_char(b, body != NULL), min, max);
    if (!body) {
        body = length;
    } else if (min || max != MU_MANY) {
        body = mu_ex_both(b, body, length);
    }
    return MU_SEQ(b, quote, body, quote);
}

/* ---- arrays ---- */

/* Item number i; rest: one behind all that have a place of their own. */
static const struct mu_ex *item(struct mu_schema *s, const struct mu_schema_all *members, size_t i)
{
    struct mu_schema_all all = {0};
    if (!mu_gb_work(s->b, members->n)) return NULL;
    for (uint32_t k = 0; k < members->n; k++) {
        const json_t *schema = members->p[k].schema, *v = json_array_get(json_object_get(schema, "prefixItems"), i);
        if (!v) v = json_object_get(schema, "items");
        if (v) mu_schema_add(s, &all, v, false);
    }
    return mu_schema_ex(s, &all);
}

const struct mu_ex *mu_schema_array(struct mu_schema *s, const struct mu_schema_all *members)
{
    struct mu_gb *b = s->b;
    uint32_t min = mu_schema_count(s, members, "minItems", true, 0),
             max = mu_schema_count(s, members, "maxItems", false, MU_MANY);
    size_t n_place = 0;
    bool items = false;
    for (uint32_t i = 0; i < members->n; i++) {
        const json_t *schema = members->p[i].schema, *v = mu_schema_get(s, schema, "prefixItems", "list");
        size_t n = json_array_size(v);
        n_place = n > n_place ? n : n_place;
        v = json_object_get(schema, "items");
        items |= v != NULL;
        if (json_is_array(v))
            mu_schema_fail(s, MU_EUNSUPPORTED, schema, "'items' as a list is not supported; use 'prefixItems'");
        if (json_is_false(v) && n < max) max = (uint32_t)n;
        v = mu_schema_get(s, schema, "uniqueItems", "boolean");
        if (json_is_true(v)) mu_schema_fail(s, MU_EUNSUPPORTED, schema, "the keyword 'uniqueItems' is not supported");
    }
    if (b->st != MU_OK) return NULL;
    if (max < min) return nothing(s);
    if (n_place && !items && min <= n_place && max > n_place) max = (uint32_t)n_place; /* nothing is said of more */
    if (n_place > max) n_place = max;
    if (!n_place) return mu_json_list(b, &s->j, "[]", mu_json_many(b, &s->j, item(s, members, SIZE_MAX), min, max));
    const struct mu_ex *comma = mu_json_comma(b, &s->j), *rest = mu_ex_text(b, "");
    if (max > n_place) {
        rest =
            mu_ex_repeat(b, MU_SEQ(b, comma, item(s, members, SIZE_MAX)), min > n_place ? min - (uint32_t)n_place : 0,
                         max == MU_MANY ? MU_MANY : max - (uint32_t)n_place);
    }
    for (size_t i = n_place; i-- > 0;) {
        const struct mu_ex *here = item(s, members, i);
        rest = i ? MU_SEQ(b, comma, here, rest) : MU_SEQ(b, here, rest);
        if (i >= min) rest = mu_ex_repeat(b, rest, 0, 1);
    }
    return mu_json_list(b, &s->j, "[]", rest);
}

/* ---- all together ---- */

/* Every choice of one alternative of each anyOf, with what holds anyway. */
static const struct mu_ex *alternatives(struct mu_schema *s, const struct mu_schema_shape *shape)
{
    struct mu_items items = {0};
    size_t at[sizeof shape->choices / sizeof *shape->choices] = {0}, n = 1;
    for (uint32_t i = 0; i < shape->n_choice; i++) {
        n *= json_array_size(shape->choices[i]);
        if (n > ALTERNATIVES_MAX) {
            mu_schema_fail(s, MU_ELIMIT, shape->members.p[0].schema, "anyOf and oneOf make more than %d alternatives",
                           ALTERNATIVES_MAX);
            return NULL;
        }
    }
    for (size_t k = 0; k < n && s->b->st == MU_OK; k++) {
        struct mu_schema_all all = {0};
        size_t left = k;
        for (uint32_t i = 0; i < shape->n_choice; i++) {
            at[i] = left % json_array_size(shape->choices[i]);
            left /= json_array_size(shape->choices[i]);
        }
        for (uint32_t i = 0; i < shape->members.n; i++) mu_schema_add(s, &all, shape->members.p[i].schema, true);
        for (uint32_t i = 0; i < shape->n_choice; i++)
            mu_schema_add(s, &all, json_array_get(shape->choices[i], at[i]), false);
        mu_items_add(s->b, &items, mu_schema_ex(s, &all));
    }
    return mu_ex_list(s->b, MU_EX_ALT, items.p, items.n);
}

const struct mu_ex *mu_schema_shape_ex(struct mu_schema *s, const struct mu_schema_shape *shape)
{
    struct mu_gb *b = s->b;
    struct mu_items items = {0};
    if (b->st != MU_OK) return NULL;
    if (shape->nothing) return nothing(s);
    if (shape->n_choice) return alternatives(s, shape);
    if (shape->values || shape->one_value) return values(s, shape);
    if (shape->types == MU_SCHEMA_ANY && !shape->told) return mu_ex_rule(b, s->j.value);
    if (shape->types & MU_SCHEMA_OBJECT) mu_items_add(b, &items, mu_schema_object(s, &shape->members));
    if (shape->types & MU_SCHEMA_ARRAY) mu_items_add(b, &items, mu_schema_array(s, &shape->members));
    if (shape->types & MU_SCHEMA_STRING) mu_items_add(b, &items, mu_schema_string(s, &shape->members));
    if (shape->types & MU_SCHEMA_NUMBER)
        mu_items_add(b, &items, mu_schema_number(s, &shape->members, !(shape->types & MU_SCHEMA_FRACTION)));
    if (shape->types & MU_SCHEMA_BOOL)
        mu_items_add(b, &items, MU_ALT(b, mu_ex_text(b, "true"), mu_ex_text(b, "false")));
    if (shape->types & MU_SCHEMA_NULL) mu_items_add(b, &items, mu_ex_text(b, "null"));
    return mu_ex_list(b, MU_EX_ALT, items.p, items.n);
}
