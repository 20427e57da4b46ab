/* Objects: the members that are named, in the order in which they are; behind them others, where those are allowed.
 *
 * What a member's value must be is what each schema that holds says of its name: under properties, under each pattern
 * that it matches, else under additionalProperties. */
#include <string.h>

#include "model/json_schema_part.h"

struct name {
    const char *key;
    const struct mu_ex *text; /* as JSON writes it */
    struct mu_schema_all value;
    bool required, never;
};

/* Of patternProperties, and whose. */
struct pattern {
    const struct mu_ex *ex; /* names as JSON writes them */
    const json_t *value, *schema;
    struct mu_dfa dfa; /* of ex */
};

struct object {
    struct mu_schema *s;
    const struct mu_schema_all *members;
    struct name *names;
    json_t *numbers; /* of names: their places in names */
    struct pattern *patterns;
    uint32_t n_name, n_pattern;
    bool rest; /* members of other names are allowed */
};

/* ---- names ---- */

static const struct mu_ex *pattern_ex(struct mu_schema *s, const char *text)
{
    const struct mu_ex *quote = mu_ex_text(s->b, "\"");
    return MU_SEQ(s->b, quote, mu_regex_parse(s->b, text, strlen(text), false, mu_json_encode), quote);
}

static void find_patterns(struct object *o)
{
    struct mu_gb *b = o->s->b;
    uint32_t n = 0;
    for (uint32_t i = 0; i < o->members->n; i++)
        n += (uint32_t)json_object_size(mu_schema_get(o->s, o->members->p[i].schema, "patternProperties", "object"));
    o->patterns = mu_gb_alloc(b, n, sizeof *o->patterns);
    for (uint32_t i = 0; i < o->members->n && o->patterns; i++) {
        const json_t *schema = o->members->p[i].schema;
        const char *key;
        json_t *value;
        json_object_foreach((json_t *)json_object_get(schema, "patternProperties"), key, value)
        {
            struct pattern *p = &o->patterns[o->n_pattern++];
            *p = (struct pattern){.ex = pattern_ex(o->s, key), .value = value, .schema = schema};
            if (p->ex) mu_ex_dfa(b, NULL, p->ex, &p->dfa);
        }
    }
}

/* name: the automaton of one, a chain of single bytes. */
static bool matches(struct mu_gb *b, const struct mu_dfa *name, const struct mu_dfa *pattern)
{
    uint32_t at = 0;
    if (!name->n_node || !pattern->n_node || !mu_gb_work(b, name->n_node)) return false;
    for (uint32_t x = 0; x < name->n_edge; x++) {
        uint32_t e = pattern->first[at], end = pattern->first[at + 1];
        while (e < end && name->edges[x].lo > pattern->edges[e].hi) e++;
        if (e == end || name->edges[x].lo < pattern->edges[e].lo) return false;
        at = pattern->edges[e].to;
    }
    return pattern->final[at];
}

static struct name *name_of(struct object *o, const char *key)
{
    const json_t *number = json_object_get(o->numbers, key);
    if (number) return &o->names[json_integer_value(number)];
    if (json_object_set_new(o->numbers, key, json_integer(o->n_name)))
        mu_gb_fail(o->s->b, MU_ENOMEM, "no memory to compile a schema");
    o->names[o->n_name] = (struct name){.key = key, .text = mu_json_text(o->s->b, key, strlen(key))};
    return &o->names[o->n_name++];
}

/* What all members say of a name's value. */
static void find_value(struct object *o, struct name *name)
{
    struct mu_gb *b = o->s->b;
    struct mu_dfa dfa = {0};
    if (name->text && o->n_pattern) mu_ex_dfa(b, NULL, name->text, &dfa);
    mu_gb_work(b, (uint64_t)o->members->n * (1 + o->n_pattern));
    for (uint32_t i = 0; i < o->members->n && b->st == MU_OK; i++) {
        const json_t *schema = o->members->p[i].schema;
        const json_t *v = json_object_get(json_object_get(schema, "properties"), name->key);
        bool said = v != NULL;
        if (v) mu_schema_add(o->s, &name->value, v, false);
        for (uint32_t k = 0; k < o->n_pattern; k++) {
            const struct pattern *p = &o->patterns[k];
            if (p->schema != schema || !matches(b, &dfa, &p->dfa)) continue;
            mu_schema_add(o->s, &name->value, p->value, false);
            said = true;
        }
        v = json_object_get(schema, "additionalProperties");
        if (!said && v) mu_schema_add(o->s, &name->value, v, false);
    }
    for (uint32_t i = 0; i < name->value.n; i++) name->never |= json_is_false(name->value.p[i].schema);
    mu_dfa_free(&dfa);
}

static void find_names(struct object *o)
{
    struct mu_schema *s = o->s;
    size_t n = 0, i;
    for (uint32_t m = 0; m < o->members->n; m++) {
        const json_t *schema = o->members->p[m].schema;
        n += json_object_size(mu_schema_get(s, schema, "properties", "object"));
        n += json_array_size(mu_schema_get(s, schema, "required", "list"));
    }
    o->names = mu_gb_alloc(s->b, n, sizeof *o->names);
    o->numbers = json_object();
    for (uint32_t m = 0; m < o->members->n && o->names; m++) {
        const char *key;
        json_t *value;
        json_object_foreach(json_object_get(o->members->p[m].schema, "properties"), key, value) name_of(o, key);
    }
    for (uint32_t m = 0; m < o->members->n && o->names; m++) {
        const json_t *schema = o->members->p[m].schema;
        json_t *value;
        json_array_foreach(json_object_get(schema, "required"), i, value)
        {
            if (!json_is_string(value)) {
                mu_schema_fail(s, MU_EFORMAT, schema, "'required' must be a list of strings");
                return;
            }
            name_of(o, json_string_value(value))->required = true;
        }
    }
    for (uint32_t k = 0; k < o->n_name && s->b->st == MU_OK; k++) find_value(o, &o->names[k]);
}

/* Whether other names are allowed: where a schema says so, or where none says anything of any. */
static void find_rest(struct object *o)
{
    bool said = false, never = false, told = o->n_name > 0 || o->n_pattern > 0;
    for (uint32_t m = 0; m < o->members->n; m++) {
        const json_t *v = json_object_get(o->members->p[m].schema, "additionalProperties");
        said |= v != NULL;
        never |= json_is_false(v);
    }
    o->rest = !never && (said || !told);
}

/* ---- expressions ---- */

/* Names that are none of those named and match none of the patterns but `but`. */
static const struct mu_ex *other_names(struct object *o, uint32_t but)
{
    struct mu_gb *b = o->s->b;
    struct mu_items not = {0};
    const struct mu_ex *quote = mu_ex_text(b, "\"");
    const struct mu_ex *any = but == MU_MANY
                                  ? MU_SEQ(b, quote, mu_ex_repeat(b, mu_json_any_char(b, true), 0, MU_MANY), quote)
                                  : o->patterns[but].ex;
    for (uint32_t i = 0; i < o->n_name; i++) mu_items_add(b, &not, o->names[i].text);
    for (uint32_t i = 0; i < o->n_pattern; i++) {
        if (i != but) mu_items_add(b, &not, o->patterns[i].ex);
    }
    return not .n ? mu_ex_but(b, any, mu_ex_list(b, MU_EX_ALT, not .p, not .n)) : any;
}

/* A member whose name is not named; NULL: there are none. */
static const struct mu_ex *other_member(struct object *o)
{
    struct mu_schema *s = o->s;
    struct mu_items items = {0};
    for (uint32_t k = 0; k <= o->n_pattern && s->b->st == MU_OK; k++) {
        bool last = k == o->n_pattern;
        struct mu_schema_all value = {0};
        if (last && !o->rest) break;
        mu_gb_work(s->b, (uint64_t)o->members->n + o->n_name + o->n_pattern);
        if (!last) mu_schema_add(s, &value, o->patterns[k].value, false);
        for (uint32_t m = 0; m < o->members->n; m++) {
            const json_t *schema = o->members->p[m].schema, *v = json_object_get(schema, "additionalProperties");
            if (v && (last || o->patterns[k].schema != schema)) mu_schema_add(s, &value, v, false);
        }
        bool never = false;
        for (uint32_t i = 0; i < value.n; i++) never |= json_is_false(value.p[i].schema);
        if (never) continue;
        mu_items_add(s->b, &items,
                     MU_SEQ(s->b, other_names(o, last ? MU_MANY : k), mu_json_colon(s->b), mu_schema_ex(s, &value)));
    }
    return items.n ? mu_ex_list(s->b, MU_EX_ALT, items.p, items.n) : NULL;
}

static const struct mu_ex *inside(struct object *o)
{
    struct mu_schema *s = o->s;
    struct mu_gb *b = s->b;
    uint32_t min = mu_schema_count(s, o->members, "minProperties", true, 0);
    uint32_t max = mu_schema_count(s, o->members, "maxProperties", false, MU_MANY), n_required = 0, n_possible = 0;
    struct mu_items kids = {0};
    bool *required = mu_gb_alloc(b, o->n_name + 2u, sizeof *required);
    const struct mu_ex *rest = b->st == MU_OK ? other_member(o) : NULL, *comma = mu_json_comma(b, &s->j);
    mu_items_add(b, &kids, comma);
    for (uint32_t i = 0; i < o->n_name && b->st == MU_OK; i++) {
        struct name *x = &o->names[i];
        if (x->never && x->required) return mu_ex_list(b, MU_EX_ALT, NULL, 0);
        if (x->never) continue;
        n_possible++;
        n_required += x->required;
        required[kids.n] = x->required;
        mu_items_add(b, &kids, MU_SEQ(b, x->text, mu_json_colon(b), mu_schema_ex(s, &x->value)));
    }
    if (b->st != MU_OK) return NULL;
    if (max < n_required || max < min) return mu_ex_list(b, MU_EX_ALT, NULL, 0);
    bool counted = min > n_required || max < n_possible || (rest && max != MU_MANY);
    if (counted && n_required < n_possible) {
        mu_schema_fail(s, MU_EUNSUPPORTED, o->members->p[0].schema,
                       "'minProperties' and 'maxProperties' beside properties that are not required are not supported");
        return NULL;
    }
    if (!counted) {
        if (rest) mu_items_add(b, &kids, rest);
        return mu_ex_fields(b, kids.p, kids.n, required, rest != NULL);
    }
    min = min > n_required ? min - n_required : 0;
    max = max == MU_MANY ? max : max - n_required;
    if (!rest) return min ? mu_ex_list(b, MU_EX_ALT, NULL, 0) : mu_ex_fields(b, kids.p, kids.n, required, false);
    if (!n_required) return mu_json_many(b, &s->j, rest, min, max);
    return MU_SEQ(b, mu_ex_fields(b, kids.p, kids.n, required, false),
                  mu_ex_repeat(b, MU_SEQ(b, comma, rest), min, max));
}

const struct mu_ex *mu_schema_object(struct mu_schema *s, const struct mu_schema_all *members)
{
    struct object o = {.s = s, .members = members};
    const struct mu_ex *ex = NULL;
    find_patterns(&o);
    if (s->b->st == MU_OK) find_names(&o);
    if (s->b->st == MU_OK) find_rest(&o);
    if (s->b->st == MU_OK) ex = mu_json_list(s->b, &s->j, "{}", inside(&o));
    json_decref(o.numbers);
    for (uint32_t i = 0; o.patterns && i < o.n_pattern; i++) mu_dfa_free(&o.patterns[i].dfa);
    return ex;
}
