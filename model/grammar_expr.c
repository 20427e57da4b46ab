/* Rules and expressions: trees in an arena, shared freely, never changed. */
#include <string.h>

#include "base/alloc.h"
#include "model/grammar_part.h"

enum { ARENA_MAX = 256 << 20 };

enum mu_status mu_gb_open(struct mu_gb *b, struct mu_err *err)
{
    memset(b, 0, sizeof *b);
    b->err = err;
    b->arena = mu_arena_create(ARENA_MAX);
    return b->arena ? MU_OK : mu_gb_fail(b, MU_ENOMEM, "no memory to compile a grammar");
}

void mu_gb_close(struct mu_gb *b)
{
    mu_arena_destroy(b->arena);
    mu_free(b->rules);
}

bool mu_gb_work(struct mu_gb *b, uint64_t steps)
{
    b->work += steps;
    if (b->work > MU_GR_WORK_MAX) {
        mu_gb_fail(b, MU_ELIMIT,
                   "the grammar takes too long to compile; use smaller bounds of repetition and fewer "
                   "alternatives that begin alike");
    }
    return b->st == MU_OK;
}

void *mu_gb_alloc(struct mu_gb *b, size_t n, size_t size)
{
    if (b->st != MU_OK) return NULL;
    void *p = mu_arena_calloc(b->arena, n ? n : 1, size);
    if (!p) mu_gb_fail(b, MU_ENOMEM, "no memory to compile a grammar");
    return p;
}

uint32_t mu_gb_rule(struct mu_gb *b, const char *name)
{
    if (b->st != MU_OK) return MU_MANY;
    if (b->n_rule == MU_GR_RULES_MAX) {
        mu_gb_fail(b, MU_ELIMIT, "the grammar has more than %d rules; make it smaller", MU_GR_RULES_MAX);
        return MU_MANY;
    }
    if (b->n_rule == b->cap_rule) {
        uint32_t cap = b->cap_rule * 2 + 32;
        struct mu_rule *p = mu_reallocarray(b->rules, cap, sizeof *p);
        if (!p) {
            mu_gb_fail(b, MU_ENOMEM, "no memory to compile a grammar");
            return MU_MANY;
        }
        b->rules = p;
        b->cap_rule = cap;
    }
    char *copy = mu_arena_strndup(b->arena, name, strlen(name));
    if (!copy) {
        mu_gb_fail(b, MU_ENOMEM, "no memory to compile a grammar");
        return MU_MANY;
    }
    b->rules[b->n_rule] = (struct mu_rule){.name = copy};
    return b->n_rule++;
}

void mu_gb_define(struct mu_gb *b, uint32_t rule, const struct mu_ex *ex)
{
    if (b->st == MU_OK) b->rules[rule].ex = ex;
}

static struct mu_ex *make(struct mu_gb *b, enum mu_ex_kind kind, uint32_t depth)
{
    if (b->st != MU_OK) return NULL;
    if (b->n_ex == MU_GR_EXPRS_MAX) {
        mu_gb_fail(b, MU_ELIMIT, "the grammar has more than %d parts; make it smaller", MU_GR_EXPRS_MAX);
        return NULL;
    }
    if (depth > MU_GR_DEPTH_MAX) {
        mu_gb_fail(b, MU_ELIMIT, "the grammar nests more than %d deep; make it flatter", MU_GR_DEPTH_MAX);
        return NULL;
    }
    struct mu_ex *ex = mu_gb_alloc(b, 1, sizeof *ex);
    if (!ex) return NULL;
    b->n_ex++;
    ex->kind = kind;
    ex->depth = depth;
    return ex;
}

const struct mu_ex *mu_ex_bytes(struct mu_gb *b, const char *p, size_t n)
{
    struct mu_ex *ex = make(b, MU_EX_BYTES, 1);
    char *copy = ex ? mu_gb_alloc(b, n, 1) : NULL;
    if (!copy) return NULL;
    if (n) memcpy(copy, p, n);
    ex->bytes = copy;
    ex->n = (uint32_t)n; /* texts are at most MU_CONSTRAINT_TEXT_MAX long */
    return ex;
}

const struct mu_ex *mu_ex_text(struct mu_gb *b, const char *text)
{
    return mu_ex_bytes(b, text, strlen(text));
}

const struct mu_ex *mu_ex_class(struct mu_gb *b, const struct mu_range *ranges, uint32_t n)
{
    bool nul = n && ranges[0].lo == 0;
    if (nul && n == 1 && ranges[0].hi == 0) {
        mu_gb_fail(b, MU_EUNSUPPORTED, "U+0000 in an expression or a grammar is not supported: no text can hold it");
        return NULL;
    }
    struct mu_ex *ex = make(b, MU_EX_CLASS, 1);
    struct mu_range *copy = ex ? mu_gb_alloc(b, n, sizeof *copy) : NULL;
    if (!copy) return NULL;
    if (n) memcpy(copy, ranges, n * sizeof *copy);
    if (nul) copy->lo = 1; /* of U+0000 alone nothing is left */
    ex->ranges = copy;
    ex->n = n;
    return ex;
}

const struct mu_ex *mu_ex_list(struct mu_gb *b, enum mu_ex_kind kind, const struct mu_ex *const *kids, uint32_t n)
{
    uint32_t depth = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (!kids[i]) return NULL;
        depth = kids[i]->depth > depth ? kids[i]->depth : depth;
    }
    if (n == 1 && (kind == MU_EX_SEQ || kind == MU_EX_ALT)) return kids[0];
    struct mu_ex *ex = make(b, kind, depth + 1);
    const struct mu_ex **copy = ex ? mu_gb_alloc(b, n, sizeof *copy) : NULL;
    if (!copy) return NULL;
    if (n) memcpy(copy, kids, n * sizeof *copy);
    ex->kids = copy;
    ex->n = n;
    return ex;
}

const struct mu_ex *mu_ex_repeat(struct mu_gb *b, const struct mu_ex *kid, uint32_t min, uint32_t max)
{
    if (!kid) return NULL;
    if (min > MU_GR_REPEAT_MAX || (max > MU_GR_REPEAT_MAX && max != MU_MANY)) {
        mu_gb_fail(b, MU_ELIMIT, "a repetition of %u is more than %d; leave the bound out or make it smaller",
                   min > MU_GR_REPEAT_MAX ? min : max, MU_GR_REPEAT_MAX);
        return NULL;
    }
    if (max < min) return mu_ex_list(b, MU_EX_ALT, NULL, 0);
    struct mu_ex *ex = (struct mu_ex *)mu_ex_list(b, MU_EX_REPEAT, &kid, 1);
    if (!ex) return NULL;
    ex->min = min;
    ex->max = max;
    return ex;
}

const struct mu_ex *mu_ex_rule(struct mu_gb *b, uint32_t rule)
{
    struct mu_ex *ex = make(b, MU_EX_RULE, 1);
    if (ex) ex->n = rule;
    return ex;
}

const struct mu_ex *mu_ex_fields(struct mu_gb *b, const struct mu_ex *const *kids, uint32_t n, const bool *required,
                                 bool last_repeats)
{
    struct mu_ex *ex = (struct mu_ex *)mu_ex_list(b, MU_EX_FIELDS, kids, n);
    bool *copy = ex ? mu_gb_alloc(b, n, sizeof *copy) : NULL;
    if (!copy) return NULL;
    memcpy(copy, required, n * sizeof *copy);
    ex->required = copy;
    ex->last_repeats = last_repeats;
    return ex;
}

const struct mu_ex *mu_ex_multiple(struct mu_gb *b, uint32_t of)
{
    struct mu_ex *ex = make(b, MU_EX_MULTIPLE, 1);
    if (ex) ex->min = of;
    return ex;
}

void mu_items_add(struct mu_gb *b, struct mu_items *s, const struct mu_ex *ex)
{
    if (b->st != MU_OK || !ex) return;
    if (s->n == s->cap) { /* the arena keeps the shorter copies as well: together no more than the last */
        uint32_t cap = s->cap * 2 + 8;
        const struct mu_ex **p = mu_gb_alloc(b, cap, sizeof *p);
        if (!p) return;
        if (s->n) memcpy(p, s->p, s->n * sizeof *p);
        s->p = p;
        s->cap = cap;
    }
    s->p[s->n++] = ex;
}
