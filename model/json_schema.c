/* A JSON Schema as a grammar: the document, its references, and the list of rules still to be made.
 *
 * Rules are made from a queue and not one within another, so that a schema's depth costs no stack. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "model/json_schema_part.h"

/* ---- where a schema stands ---- */

static bool find(const json_t *at, const json_t *what, char *path, size_t size, int depth)
{
    size_t len = strlen(path);
    const char *key;
    json_t *value;
    size_t i;
    if (at == what) return true;
    if (depth == 64) return false;
    json_object_foreach((json_t *)at, key, value)
    {
        snprintf(path + len, size - len, "/%s", key);
        if (find(value, what, path, size, depth + 1)) return true;
        path[len] = '\0';
    }
    json_array_foreach(at, i, value)
    {
        snprintf(path + len, size - len, "/%zu", i);
        if (find(value, what, path, size, depth + 1)) return true;
        path[len] = '\0';
    }
    return false;
}

enum mu_status mu_schema_fail(struct mu_schema *s, enum mu_status st, const json_t *schema, const char *fmt, ...)
{
    char text[256], path[160] = "#", shown[160];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (!find(s->root, schema, path, sizeof path, 0)) strcpy(path, "#");
    size_t n = strlen(text);
    while (n && (text[n - 1] & 0x80)) text[--n] = '\0'; /* no half character where it was cut */
    return mu_gb_fail(s->b, st, "schema at '%s': %s", mu_text_show(path, strlen(path), shown, sizeof shown), text);
}

const json_t *mu_schema_get(struct mu_schema *s, const json_t *schema, const char *key, const char *kind)
{
    const json_t *v = json_object_get(schema, key);
    bool ok = !v;
    if (s->b->st != MU_OK) return NULL;
    if (v) {
        switch (*kind) {
        case 's': ok = json_is_string(v); break; /* string */
        case 'l': ok = json_is_array(v); break;  /* list */
        case 'n': ok = json_is_number(v); break; /* number */
        case 'o': ok = json_is_object(v); break; /* object */
        case 'b': ok = json_is_boolean(v); break;
        }
    }
    if (ok) return v;
    mu_schema_fail(s, MU_EFORMAT, schema, "'%s' must be a %s", key, kind);
    return NULL;
}

uint32_t mu_schema_count(struct mu_schema *s, const struct mu_schema_all *all, const char *key, bool greatest,
                         uint32_t otherwise)
{
    uint32_t count = otherwise;
    bool any = false;
    for (uint32_t i = 0; i < all->n; i++) {
        const json_t *schema = all->p[i].schema, *v = mu_schema_get(s, schema, key, "number");
        if (!v) continue;
        double x = json_number_value(v);
        if (!(x >= 0) || x > 1e15 || x != (double)(uint64_t)x) {
            mu_schema_fail(s, MU_EFORMAT, schema, "'%s' must be a whole number from 0", key);
            return otherwise;
        }
        uint32_t n = x > MU_GR_REPEAT_MAX ? MU_GR_REPEAT_MAX + 1 : (uint32_t)x;
        if (!any || (greatest ? n > count : n < count)) count = n;
        any = true;
    }
    if (count != MU_MANY && count > MU_GR_REPEAT_MAX && s->b->st == MU_OK) {
        mu_gb_fail(s->b, MU_ELIMIT, "schema: '%s' is more than %d; leave it out or make it smaller", key,
                   MU_GR_REPEAT_MAX);
    }
    return count;
}

/* ---- lists of schemas and their rules ---- */

void mu_schema_add(struct mu_schema *s, struct mu_schema_all *all, const json_t *schema, bool bare)
{
    if (!mu_gb_work(s->b, 1 + all->n)) return;
    for (uint32_t i = 0; i < all->n; i++) {
        if (all->p[i].schema == schema && all->p[i].bare == bare) return;
    }
    if (all->n == all->cap) {
        uint32_t cap = all->cap * 2 + 4;
        struct mu_schema_part *p = mu_gb_alloc(s->b, cap, sizeof *p);
        if (!p) return;
        if (all->n) memcpy(p, all->p, all->n * sizeof *p);
        all->p = p;
        all->cap = cap;
    }
    all->p[all->n++] = (struct mu_schema_part){schema, bare};
}

static uint32_t hash(const struct mu_schema_all *all)
{
    uint64_t h = all->n;
    for (uint32_t i = 0; i < all->n; i++)
        h = (h ^ ((uint64_t)(uintptr_t)all->p[i].schema + all->p[i].bare)) * 0x9FB21C651E98DF25u, h ^= h >> 29;
    return (uint32_t)(h ^ h >> 32);
}

static bool same(const struct mu_schema_all *x, const struct mu_schema_all *y)
{
    if (x->n != y->n) return false;
    for (uint32_t i = 0; i < x->n; i++) {
        if (x->p[i].schema != y->p[i].schema || x->p[i].bare != y->p[i].bare) return false;
    }
    return true;
}

static bool more_rules(struct mu_schema *s)
{
    if (s->n_rule == s->cap_rule) {
        uint32_t cap = s->cap_rule * 2 + 32;
        struct mu_schema_rule *p = mu_reallocarray(s->rules, cap, sizeof *p);
        if (!p) goto fail;
        s->rules = p;
        s->cap_rule = cap;
    }
    if (s->n_rule * 2 >= s->n_slot) {
        uint32_t n = s->n_slot ? s->n_slot * 2 : 64, *slots = mu_calloc(n, sizeof *slots);
        if (!slots) goto fail;
        for (uint32_t i = 0; i < s->n_rule; i++) {
            uint32_t h = hash(&s->rules[i].all) & (n - 1);
            while (slots[h]) h = (h + 1) & (n - 1);
            slots[h] = i + 1;
        }
        mu_free(s->slots);
        s->slots = slots;
        s->n_slot = n;
    }
    return true;
fail:
    mu_gb_fail(s->b, MU_ENOMEM, "no memory to compile a schema");
    return false;
}

const struct mu_ex *mu_schema_ex(struct mu_schema *s, const struct mu_schema_all *all)
{
    struct mu_gb *b = s->b;
    if (b->st != MU_OK) return NULL;
    if (!all->n) return mu_ex_rule(b, s->j.value);
    if (!more_rules(s)) return NULL;
    uint32_t h = hash(all) & (s->n_slot - 1);
    for (; s->slots[h]; h = (h + 1) & (s->n_slot - 1)) {
        const struct mu_schema_rule *r = &s->rules[s->slots[h] - 1];
        if (same(&r->all, all)) return mu_ex_rule(b, r->rule);
    }
    uint32_t rule = mu_gb_rule(b, "");
    if (rule == MU_MANY) return NULL;
    s->rules[s->n_rule] = (struct mu_schema_rule){.all = *all, .rule = rule};
    s->slots[h] = ++s->n_rule;
    return mu_ex_rule(b, rule);
}

/* ---- the document ---- */

void mu_json_schema_parse(struct mu_gb *b, const char *text, size_t len)
{
    struct mu_schema s = {.b = b};
    json_error_t je;
    s.root = json_loadb(text, len, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, &je);
    if (!s.root) {
        const char *what = "the schema is not JSON";
        enum mu_status st = MU_EFORMAT;
        char shown[120];
        switch (json_error_code(&je)) {
        case json_error_out_of_memory: mu_gb_fail(b, MU_ENOMEM, "no memory to read a schema"); return;
        case json_error_numeric_overflow:
            what = "a number of the schema is too large";
            st = MU_ELIMIT;
            break;
        case json_error_null_character:
        case json_error_null_byte_in_key:
            what = "U+0000 in a schema is not supported";
            st = MU_EUNSUPPORTED;
            break;
        default: break;
        }
        mu_gb_fail(b, st, "%s: line %d, column %d: %s", what, je.line, je.column,
                   mu_text_show(je.text, strlen(je.text), shown, sizeof shown));
        return;
    }
    if (!json_is_object(s.root) && !json_is_boolean(s.root))
        mu_gb_fail(b, MU_EFORMAT, "a schema must be a JSON object (or true)");
    mu_json_rules_open(b, &s.j);
    struct mu_schema_all all = {0};
    mu_schema_add(&s, &all, s.root, false);
    const struct mu_ex *root = mu_schema_ex(&s, &all);
    b->root = mu_gb_rule(b, "root");
    if (b->st == MU_OK) mu_gb_define(b, b->root, root);
    while (b->st == MU_OK && s.n_done < s.n_rule) {
        struct mu_schema_rule r = s.rules[s.n_done++];
        struct mu_schema_shape shape;
        mu_schema_shape_of(&s, &r.all, &shape);
        mu_gb_define(b, r.rule, mu_schema_shape_ex(&s, &shape));
    }
    mu_free(s.rules);
    mu_free(s.slots);
    json_decref(s.root);
}
