/* Inside JSON Schema: only the json_schema*.c files include this.
 *
 * A value is described by several schemas at once: by one, by those it refers to, by the members of allOf, by one
 * alternative of each anyOf. So the unit of work is a list of schemas that all hold (struct mu_schema_all), and each list
 * that comes up becomes a rule of the grammar, once. Lists are made of the schemas of one document, so there are only so
 * many of them, and recursion ends. */
#ifndef MU_MODEL_JSON_SCHEMA_PART_H
#define MU_MODEL_JSON_SCHEMA_PART_H

#include <jansson.h>

#include "model/grammar_part.h"
#include "model/utf8.h"

struct mu_schema_part {
    const json_t *schema;
    bool bare; /* without its $ref, allOf, anyOf, oneOf: those are parts of their own */
};
struct mu_schema_all {
    struct mu_schema_part *p;
    uint32_t n, cap;
};

enum mu_schema_type { /* a set */
                      MU_SCHEMA_NULL = 1,
                      MU_SCHEMA_BOOL = 2,
                      MU_SCHEMA_OBJECT = 4,
                      MU_SCHEMA_ARRAY = 8,
                      MU_SCHEMA_STRING = 16,
                      MU_SCHEMA_INTEGER = 32,
                      MU_SCHEMA_FRACTION = 64, /* numbers that are no integers */
                      MU_SCHEMA_NUMBER = MU_SCHEMA_INTEGER | MU_SCHEMA_FRACTION,
                      MU_SCHEMA_ANY = 127,
};

struct mu_schema_rule {
    struct mu_schema_all all;
    uint32_t rule;
};
struct mu_schema {
    struct mu_gb *b;
    struct mu_json_rules j;
    json_t *root;
    struct mu_schema_rule *rules; /* defined in order; [n_done…n_rule) are still to be */
    uint32_t n_rule, n_done, cap_rule;
    uint32_t *slots, n_slot; /* rules by their lists */
};

/* json_schema.c */
/* The sentence ends with where the schema stands ("at '#/properties/x'"). */
enum mu_status mu_schema_fail(struct mu_schema *s, enum mu_status st, const json_t *schema, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
void mu_schema_add(struct mu_schema *s, struct mu_schema_all *all, const json_t *schema, bool bare); /* once */
const struct mu_ex *mu_schema_ex(struct mu_schema *s, const struct mu_schema_all *all); /* the rule of a list */
/* A keyword's value where a member has it and it is of the right kind; else NULL (and a failure where it is not). */
const json_t *mu_schema_get(struct mu_schema *s, const json_t *schema, const char *key, const char *kind);
/* The greatest (least) of a count over all members; absent: otherwise. */
uint32_t mu_schema_count(struct mu_schema *s, const struct mu_schema_all *all, const char *key, bool greatest,
                         uint32_t otherwise);

/* json_schema_shape.c */
struct mu_schema_shape {
    struct mu_schema_all members; /* bare */
    const json_t *choices[8];     /* arrays of schemas: one of each holds */
    uint32_t n_choice;
    bool nothing;            /* a schema is false */
    unsigned types, told;    /* what it may be; of what the keywords tell something */
    const json_t *values;    /* a list of them (enum), NULL: any */
    const json_t *one_value; /* const, where values is NULL */
};
void mu_schema_shape_of(struct mu_schema *s, const struct mu_schema_all *all, struct mu_schema_shape *out);
/* Of a value that is the shape's one or of its list. */
bool mu_schema_value_fits(struct mu_schema *s, const struct mu_schema_shape *shape, const json_t *value);

/* json_schema_object.c, json_schema_emit.c, json_schema_number.c, json_schema_format.c */
const struct mu_ex *mu_schema_object(struct mu_schema *s, const struct mu_schema_all *members);
const struct mu_ex *mu_schema_array(struct mu_schema *s, const struct mu_schema_all *members);
const struct mu_ex *mu_schema_string(struct mu_schema *s, const struct mu_schema_all *members);
const struct mu_ex *mu_schema_number(struct mu_schema *s, const struct mu_schema_all *members, bool integer);
const struct mu_ex *mu_schema_shape_ex(struct mu_schema *s, const struct mu_schema_shape *shape);
const struct mu_ex *mu_schema_literal(struct mu_schema *s, const json_t *value);
/* NULL: no such format. max: of characters; set where there was none (MU_MANY) and the format needs one. */
const char *mu_schema_format(const char *name, uint32_t *max);
bool mu_schema_number_text(const json_t *value, char *out, size_t size); /* false: no such number */

#endif
