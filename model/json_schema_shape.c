/* What a list of schemas says together, before it is a grammar: references followed, allOf spread out, the alternatives
 * listed, types and values narrowed. Every keyword is looked up here: one that is not known is refused by name, because
 * leaving it out would be a wrong answer. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/json_schema_part.h"

/* ---- keywords ---- */

static const struct {
    const char *name;
    int told; /* types it tells something of; 0: of none; -1: refused */
} KEYWORDS[] = {
    {"$ref", 0},
    {"$defs", 0},
    {"definitions", 0},
    {"allOf", 0},
    {"anyOf", 0},
    {"oneOf", 0},
    {"type", 0},
    {"enum", 0},
    {"const", 0},
    /* annotations */
    {"$schema", 0},
    {"$id", 0},
    {"$comment", 0},
    {"$anchor", 0},
    {"title", 0},
    {"description", 0},
    {"default", 0},
    {"example", 0},
    {"examples", 0},
    {"deprecated", 0},
    {"readOnly", 0},
    {"writeOnly", 0},
    {"discriminator", 0},
    {"strict", 0},
    /* of types */
    {"properties", MU_SCHEMA_OBJECT},
    {"required", MU_SCHEMA_OBJECT},
    {"additionalProperties", MU_SCHEMA_OBJECT},
    {"patternProperties", MU_SCHEMA_OBJECT},
    {"minProperties", MU_SCHEMA_OBJECT},
    {"maxProperties", MU_SCHEMA_OBJECT},
    {"items", MU_SCHEMA_ARRAY},
    {"prefixItems", MU_SCHEMA_ARRAY},
    {"minItems", MU_SCHEMA_ARRAY},
    {"maxItems", MU_SCHEMA_ARRAY},
    {"uniqueItems", MU_SCHEMA_ARRAY},
    {"minLength", MU_SCHEMA_STRING},
    {"maxLength", MU_SCHEMA_STRING},
    {"pattern", MU_SCHEMA_STRING},
    {"format", MU_SCHEMA_STRING},
    {"minimum", MU_SCHEMA_NUMBER},
    {"maximum", MU_SCHEMA_NUMBER},
    {"exclusiveMinimum", MU_SCHEMA_NUMBER},
    {"exclusiveMaximum", MU_SCHEMA_NUMBER},
    {"multipleOf", MU_SCHEMA_NUMBER},
};

static void check_keywords(struct mu_schema *s, const json_t *schema)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)schema, key, value)
    {
        bool known = !strncmp(key, "x-", 2);
        for (size_t i = 0; !known && i < sizeof KEYWORDS / sizeof *KEYWORDS; i++)
            known = !strcmp(key, KEYWORDS[i].name);
        char shown[48];
        if (!known) {
            mu_schema_fail(s, MU_EUNSUPPORTED, schema, "the keyword '%s' is not supported",
                           mu_text_show(key, strlen(key), shown, sizeof shown));
            return;
        }
        if (!strcmp(key, "$id") && schema != s->root) {
            mu_schema_fail(s, MU_EUNSUPPORTED, schema, "the keyword '$id' is supported at the root only");
            return;
        }
    }
}

static unsigned told_by(const json_t *schema)
{
    unsigned told = 0;
    for (size_t i = 0; i < sizeof KEYWORDS / sizeof *KEYWORDS; i++) {
        if (KEYWORDS[i].told && json_object_get(schema, KEYWORDS[i].name)) told |= (unsigned)KEYWORDS[i].told;
    }
    return told;
}

/* ---- references ---- */

/* One step of a JSON pointer (RFC 6901) in a URI fragment: ~1 is '/', ~0 '~', %XX a byte. */
static const char *pointer_step(const char *p, char *name, size_t size)
{
    size_t n = 0;
    unsigned byte;
    while (*p && *p != '/') {
        char c = *p++;
        if (c == '~' && (*p == '0' || *p == '1')) c = *p++ == '0' ? '~' : '/';
        if (c == '%' && p[0] && p[1] && sscanf(p, "%2x", &byte) == 1) c = (char)byte, p += 2;
        if (n + 1 < size) name[n++] = c;
    }
    name[n] = '\0';
    return p;
}

static const json_t *follow(struct mu_schema *s, const json_t *schema, const char *ref)
{
    const json_t *at = s->root;
    char name[256], shown[80];
    mu_text_show(ref, strlen(ref), shown, sizeof shown);
    if (!mu_gb_work(s->b, strlen(ref))) return NULL;
    if (ref[0] != '#' || (ref[1] && ref[1] != '/')) {
        mu_schema_fail(s, MU_EUNSUPPORTED, schema, "'$ref' to '%s' is not supported; only '#' and '#/…' are", shown);
        return NULL;
    }
    for (const char *p = ref + 1; *p == '/' && at;) {
        p = pointer_step(p + 1, name, sizeof name);
        if (json_is_array(at)) {
            char *end;
            unsigned long i = strtoul(name, &end, 10);
            at = *name && !*end ? json_array_get(at, i) : NULL;
        } else {
            at = json_object_get(at, name);
        }
    }
    if (!at) mu_schema_fail(s, MU_EFORMAT, schema, "'$ref' to '%s' leads nowhere", shown);
    return at;
}

/* ---- spreading out ---- */

enum { PARTS_MAX = 4096 };

static void spread(struct mu_schema *s, const struct mu_schema_all *all, struct mu_schema_shape *out)
{
    struct mu_schema_all todo = {0};
    for (uint32_t i = 0; i < all->n; i++) mu_schema_add(s, &todo, all->p[i].schema, all->p[i].bare);
    for (uint32_t i = 0; i < todo.n && s->b->st == MU_OK; i++) {
        const json_t *schema = todo.p[i].schema, *v;
        if (todo.n > PARTS_MAX) {
            mu_schema_fail(s, MU_ELIMIT, schema, "more than %d schemas hold for one value", PARTS_MAX);
            return;
        }
        if (json_is_boolean(schema)) {
            out->nothing |= json_is_false(schema);
            continue;
        }
        if (!json_is_object(schema)) {
            mu_gb_fail(s->b, MU_EFORMAT,
                       "schema: where a schema should be there is neither an object nor true or false");
            return;
        }
        if (!mu_gb_work(s->b, sizeof KEYWORDS / sizeof *KEYWORDS + json_object_size(schema))) return;
        mu_schema_add(s, &out->members, schema, true);
        if (todo.p[i].bare) continue;
        check_keywords(s, schema);
        if ((v = mu_schema_get(s, schema, "$ref", "string")) && (v = follow(s, schema, json_string_value(v))))
            mu_schema_add(s, &todo, v, false);
        v = mu_schema_get(s, schema, "allOf", "list");
        for (size_t k = 0; k < json_array_size(v); k++) mu_schema_add(s, &todo, json_array_get(v, k), false);
        for (int k = 0; k < 2; k++) {
            v = mu_schema_get(s, schema, k ? "oneOf" : "anyOf", "list");
            if (!v) continue;
            if (out->n_choice == sizeof out->choices / sizeof *out->choices) {
                mu_schema_fail(s, MU_ELIMIT, schema, "more than %zu of anyOf and oneOf hold for one value",
                               sizeof out->choices / sizeof *out->choices);
                return;
            }
            out->choices[out->n_choice++] = v;
        }
    }
}

/* ---- types ---- */

static unsigned type_by_name(struct mu_schema *s, const json_t *schema, const json_t *v)
{
    static const struct {
        const char *name;
        unsigned type;
    } types[] = {{"null", MU_SCHEMA_NULL},      {"boolean", MU_SCHEMA_BOOL},  {"object", MU_SCHEMA_OBJECT},
                 {"array", MU_SCHEMA_ARRAY},    {"string", MU_SCHEMA_STRING}, {"number", MU_SCHEMA_NUMBER},
                 {"integer", MU_SCHEMA_INTEGER}};
    const char *name = json_string_value(v);
    char shown[32];
    for (size_t i = 0; name && i < sizeof types / sizeof *types; i++) {
        if (!strcmp(name, types[i].name)) return types[i].type;
    }
    mu_schema_fail(s, MU_EFORMAT, schema, "the type '%s' is not known",
                   name ? mu_text_show(name, strlen(name), shown, sizeof shown) : "(no string)");
    return 0;
}

static void find_types(struct mu_schema *s, struct mu_schema_shape *out)
{
    bool explicit = false;
    out->types = MU_SCHEMA_ANY;
    for (uint32_t i = 0; i < out->members.n; i++) {
        const json_t *schema = out->members.p[i].schema, *v = json_object_get(schema, "type");
        out->told |= told_by(schema);
        if (!v) continue;
        unsigned types = 0;
        if (json_is_array(v)) {
            for (size_t k = 0; k < json_array_size(v); k++) types |= type_by_name(s, schema, json_array_get(v, k));
        } else {
            types = type_by_name(s, schema, v);
        }
        out->types &= types;
        explicit = true;
    }
    /* Keywords without a type hold for values of theirs only; a model is not asked for another. */
    if (!explicit && out->told) out->types = out->told;
}

static void find_values(struct mu_schema *s, struct mu_schema_shape *out)
{
    for (uint32_t i = 0; i < out->members.n; i++) {
        const json_t *schema = out->members.p[i].schema, *v = mu_schema_get(s, schema, "enum", "list");
        if (v && !out->values) out->values = v;
        v = json_object_get(schema, "const");
        if (v && !out->one_value) out->one_value = v;
    }
    if (out->one_value) out->values = NULL;
}

static bool same_value(const json_t *x, const json_t *y)
{
    if (json_is_number(x) && json_is_number(y)) return json_number_value(x) == json_number_value(y);
    return json_equal(x, y);
}

static bool in_list(struct mu_schema *s, const json_t *list, const json_t *value)
{
    if (!mu_gb_work(s->b, json_array_size(list))) return false;
    for (size_t i = 0; i < json_array_size(list); i++) {
        if (same_value(json_array_get(list, i), value)) return true;
    }
    return false;
}

static unsigned type_of(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_NULL: return MU_SCHEMA_NULL;
    case JSON_TRUE:
    case JSON_FALSE: return MU_SCHEMA_BOOL;
    case JSON_OBJECT: return MU_SCHEMA_OBJECT;
    case JSON_ARRAY: return MU_SCHEMA_ARRAY;
    case JSON_STRING: return MU_SCHEMA_STRING;
    case JSON_INTEGER: return MU_SCHEMA_INTEGER;
    case JSON_REAL: return trunc(json_real_value(v)) == json_real_value(v) ? MU_SCHEMA_INTEGER : MU_SCHEMA_FRACTION;
    }
    return 0;
}

bool mu_schema_value_fits(struct mu_schema *s, const struct mu_schema_shape *shape, const json_t *value)
{
    bool typed = false;
    for (uint32_t i = 0; i < shape->members.n; i++) {
        const json_t *schema = shape->members.p[i].schema, *v = json_object_get(schema, "enum");
        typed |= json_object_get(schema, "type") != NULL;
        if (v && v != shape->values && !in_list(s, v, value)) return false;
        v = json_object_get(schema, "const");
        if (v && !same_value(v, value)) return false;
    }
    return !typed || (type_of(value) & shape->types);
}

void mu_schema_shape_of(struct mu_schema *s, const struct mu_schema_all *all, struct mu_schema_shape *out)
{
    memset(out, 0, sizeof *out);
    spread(s, all, out);
    if (s->b->st == MU_OK) find_types(s, out);
    if (s->b->st == MU_OK) find_values(s, out);
}
