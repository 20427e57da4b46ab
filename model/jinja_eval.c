/* Evaluates expressions. Operators on values are in jinja_ops.c, calls in jinja_call.c. */
#include "model/jinja.h"

static int clip(size_t n)
{
    return n > 80 ? 80 : (int)n;
}

static struct mu_jv eval_items(struct mu_ji *j, const struct mu_jn *n)
{
    struct mu_jl *l = mu_jl_new(j, n->n);
    for (const struct mu_jn *i = n->items; i; i = i->next) mu_jl_push(j, l, mu_ji_eval(j, i));
    return (struct mu_jv){.kind = n->kind == MU_JN_TUPLE ? MU_JK_TUPLE : MU_JK_LIST, .l = l};
}

static struct mu_jv eval_dict(struct mu_ji *j, const struct mu_jn *n)
{
    struct mu_jd *d = mu_jd_new(j, n->n / 2);
    for (const struct mu_jn *k = n->items; k; k = k->next->next) {
        struct mu_jv key = mu_ji_eval(j, k);
        mu_jd_put(j, d, key, mu_ji_eval(j, k->next));
    }
    return (struct mu_jv){.kind = MU_JK_DICT, .d = d};
}

static struct mu_jv eval_slice(struct mu_ji *j, const struct mu_jn *n)
{
    struct mu_jv of = mu_ji_eval(j, n->a), part[3];
    int i = 0;
    for (const struct mu_jn *p = n->items; p; p = p->next) part[i++] = mu_ji_eval(j, p);
    return mu_jv_slice(j, of, part[0], part[1], part[2]);
}

static struct mu_jv eval_call(struct mu_ji *j, const struct mu_jn *n)
{
    struct mu_jv callee = mu_ji_eval(j, n->a);
    struct mu_jargs args = mu_ji_args(j, n->items);
    j->line = n->line;
    return mu_ji_call(j, callee, &args);
}

static struct mu_jv eval_filter(struct mu_ji *j, const struct mu_jn *n)
{
    struct mu_jv v = mu_ji_eval(j, n->a);
    struct mu_jargs args = mu_ji_args(j, n->items);
    j->line = n->line;
    if (!n->fn) mu_ji_fail(j, MU_EFORMAT, "there is no filter '%.*s'", clip(n->name->len), n->name->p);
    return mu_ji_apply(j, n->fn, v, &args);
}

static struct mu_jv eval_test(struct mu_ji *j, const struct mu_jn *n)
{
    struct mu_jv v = mu_ji_eval(j, n->a);
    struct mu_jargs args = mu_ji_args(j, n->items);
    if (!n->test) mu_ji_fail(j, MU_EFORMAT, "there is no test '%.*s'", clip(n->name->len), n->name->p);
    return mu_jv_bool(n->test->holds(j, v, &args) != n->negated);
}

static struct mu_jv eval_compare(struct mu_ji *j, const struct mu_jn *n)
{
    struct mu_jv left = mu_ji_eval(j, n->a);
    for (const struct mu_jn *o = n->items; o; o = o->next) {
        struct mu_jv right = mu_ji_eval(j, o->a);
        if (!mu_jv_compare(j, o->op, left, right)) return mu_jv_bool(false);
        left = right;
    }
    return mu_jv_bool(true);
}

static struct mu_jv eval_binary(struct mu_ji *j, const struct mu_jn *n)
{
    struct mu_jv a = mu_ji_eval(j, n->a), b = mu_ji_eval(j, n->b);
    j->line = n->line;
    if (n->op == '~') {
        const struct mu_js *left = mu_jv_text(j, a);
        return mu_jv_concat(j, left, mu_jv_text(j, b));
    }
    return mu_jv_binary(j, n->op, a, b);
}

static struct mu_jv eval_cond(struct mu_ji *j, const struct mu_jn *n)
{
    if (mu_jv_truth(mu_ji_eval(j, n->b))) return mu_ji_eval(j, n->a);
    return n->c ? mu_ji_eval(j, n->c) : mu_jv_undefined(NULL);
}

static struct mu_jv eval_one(struct mu_ji *j, const struct mu_jn *n)
{
    struct mu_jv v;
    switch (n->kind) {
    case MU_JN_CONST: return n->val;
    case MU_JN_NAME: return mu_ji_variable(j, n);
    case MU_JN_LIST:
    case MU_JN_TUPLE: return eval_items(j, n);
    case MU_JN_DICT: return eval_dict(j, n);
    case MU_JN_ATTR: return mu_jv_attr(j, mu_ji_eval(j, n->a), n->name);
    case MU_JN_INDEX: v = mu_ji_eval(j, n->a); return mu_jv_index(j, v, mu_ji_eval(j, n->b));
    case MU_JN_SLICE: return eval_slice(j, n);
    case MU_JN_CALL: return eval_call(j, n);
    case MU_JN_FILTER: return eval_filter(j, n);
    case MU_JN_TEST: return eval_test(j, n);
    case MU_JN_UNARY:
        v = mu_ji_eval(j, n->a);
        return n->op == '-' ? mu_jv_negate(j, v) : mu_jv_binary(j, '+', mu_jv_int(0), v);
    case MU_JN_BINARY: return eval_binary(j, n);
    case MU_JN_AND: v = mu_ji_eval(j, n->a); return mu_jv_truth(v) ? mu_ji_eval(j, n->b) : v;
    case MU_JN_OR: v = mu_ji_eval(j, n->a); return mu_jv_truth(v) ? v : mu_ji_eval(j, n->b);
    case MU_JN_NOT: return mu_jv_bool(!mu_jv_truth(mu_ji_eval(j, n->a)));
    case MU_JN_COMPARE: return eval_compare(j, n);
    case MU_JN_COND: return eval_cond(j, n);
    default: mu_ji_fail(j, MU_EINTERNAL, "an expression of kind %d", n->kind);
    }
}

struct mu_jv mu_ji_eval(struct mu_ji *j, const struct mu_jn *n)
{
    mu_ji_steps(j, 1);
    mu_ji_deeper(j);
    j->line = n->line;
    struct mu_jv v = eval_one(j, n);
    j->depth--;
    return v;
}
