/* Jinja expressions to trees, by recursive descent. Weakest first:
 *
 *   a if b else c · or · and · not · == != < <= > >= in, not in · + - · ~ · * / // % · ** · unary - + · postfix · | filter, is test
 *
 * (A filter binds weaker than an unary minus' operand does: -3 | abs is |-3|.) */
#include <string.h>

#include "model/jinja.h"

struct mu_jn *mu_jp_node(struct mu_jp *p, enum mu_jnk kind, int line)
{
    struct mu_jn *n = mu_jp_alloc(p, sizeof *n);
    n->kind = kind;
    n->line = line;
    n->height = 1;
    n->sym = -1;
    return n;
}

void mu_jp_over(struct mu_jp *p, struct mu_jn *parent, const struct mu_jn *child)
{
    if (!child || child->height < parent->height) return;
    parent->height = child->height + 1;
    if (parent->height > MU_JP_MAX_HEIGHT)
        mu_jp_fail(p, MU_ELIMIT, parent->line, "the template is nested more than %d deep", MU_JP_MAX_HEIGHT);
}

void mu_jp_enter(struct mu_jp *p)
{
    if (++p->depth > MU_JP_MAX_HEIGHT)
        mu_jp_fail(p, MU_ELIMIT, p->cur.line, "the template is nested more than %d deep", MU_JP_MAX_HEIGHT);
}

bool mu_jp_is_op(const struct mu_jp *p, int op)
{
    return p->cur.kind == MU_JT_OP && p->cur.op == op;
}

static bool token_is(const struct mu_jtok *t, const char *name)
{
    return t->kind == MU_JT_NAME && t->len == strlen(name) && memcmp(t->p, name, t->len) == 0;
}

bool mu_jp_is_name(const struct mu_jp *p, const char *name)
{
    return token_is(&p->cur, name);
}

bool mu_jp_take_op(struct mu_jp *p, int op)
{
    if (!mu_jp_is_op(p, op)) return false;
    mu_jp_next(p);
    return true;
}

bool mu_jp_take_name(struct mu_jp *p, const char *name)
{
    if (!mu_jp_is_name(p, name)) return false;
    mu_jp_next(p);
    return true;
}

void mu_jp_want_op(struct mu_jp *p, int op)
{
    char wanted[] = {'\'', (char)op, '\'', '\0'};
    if (!mu_jp_take_op(p, op)) mu_jp_unexpected(p, wanted);
}

/* Appends to a chain of items. */
static void append(struct mu_jp *p, struct mu_jn *parent, struct mu_jn ***tail, struct mu_jn *item)
{
    **tail = item;
    *tail = &item->next;
    parent->n++;
    mu_jp_over(p, parent, item);
}

static struct mu_jn *pair(struct mu_jp *p, enum mu_jnk kind, int op, struct mu_jn *a, struct mu_jn *b)
{
    struct mu_jn *n = mu_jp_node(p, kind, a->line);
    n->op = op;
    n->a = a;
    n->b = b;
    mu_jp_over(p, n, a);
    mu_jp_over(p, n, b);
    return n;
}

static struct mu_jn *constant(struct mu_jp *p, struct mu_jv v)
{
    struct mu_jn *n = mu_jp_node(p, MU_JN_CONST, p->cur.line);
    n->val = v;
    return n;
}

static const struct mu_js *text_of(struct mu_jp *p, const char *text, size_t len)
{
    struct mu_js *s = mu_jp_alloc(p, sizeof *s);
    *s = (struct mu_js){.p = text, .len = len};
    return s;
}

static const struct mu_js *take_name(struct mu_jp *p, const char *wanted)
{
    if (p->cur.kind != MU_JT_NAME) mu_jp_unexpected(p, wanted);
    const struct mu_js *s = text_of(p, p->cur.p, p->cur.len);
    mu_jp_next(p);
    return s;
}

/* Strings side by side are one. */
static struct mu_jn *strings(struct mu_jp *p)
{
    struct mu_jn *n = constant(p, mu_jv_none());
    const char *text = p->cur.p;
    size_t len = p->cur.len;
    mu_jp_next(p);
    while (p->cur.kind == MU_JT_STRING) {
        char *more = mu_jp_alloc(p, len + p->cur.len + 1);
        memcpy(more, text, len);
        memcpy(more + len, p->cur.p, p->cur.len);
        text = more;
        len += p->cur.len;
        mu_jp_next(p);
    }
    n->val = (struct mu_jv){.kind = MU_JK_STR, .s = text_of(p, text, len)};
    return n;
}

static struct mu_jn *list(struct mu_jp *p)
{
    struct mu_jn *n = mu_jp_node(p, MU_JN_LIST, p->cur.line), **tail = &n->items;
    mu_jp_want_op(p, '[');
    while (!mu_jp_is_op(p, ']')) {
        if (n->n) mu_jp_want_op(p, ',');
        if (mu_jp_is_op(p, ']')) break;
        append(p, n, &tail, mu_jp_expr(p, false));
    }
    mu_jp_want_op(p, ']');
    return n;
}

static struct mu_jn *dict(struct mu_jp *p)
{
    struct mu_jn *n = mu_jp_node(p, MU_JN_DICT, p->cur.line), **tail = &n->items;
    mu_jp_want_op(p, '{');
    while (!mu_jp_is_op(p, '}')) {
        if (n->n) mu_jp_want_op(p, ',');
        if (mu_jp_is_op(p, '}')) break;
        append(p, n, &tail, mu_jp_expr(p, false));
        mu_jp_want_op(p, ':');
        append(p, n, &tail, mu_jp_expr(p, false));
    }
    mu_jp_want_op(p, '}');
    return n;
}

static struct mu_jn *name(struct mu_jp *p)
{
    static const struct {
        const char *name;
        struct mu_jv val;
    } constants[] = {{"true", {.kind = MU_JK_BOOL, .b = true}},
                     {"True", {.kind = MU_JK_BOOL, .b = true}},
                     {"false", {.kind = MU_JK_BOOL, .b = false}},
                     {"False", {.kind = MU_JK_BOOL, .b = false}},
                     {"none", {.kind = MU_JK_NONE}},
                     {"None", {.kind = MU_JK_NONE}}};
    struct mu_jn *n;
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++)
        if (mu_jp_is_name(p, constants[i].name)) {
            n = constant(p, constants[i].val);
            mu_jp_next(p);
            return n;
        }
    n = mu_jp_node(p, MU_JN_NAME, p->cur.line);
    n->sym = mu_jp_symbol(p, p->cur.p, p->cur.len);
    n->name = p->names[n->sym];
    mu_jp_next(p);
    return n;
}

static struct mu_jn *primary(struct mu_jp *p)
{
    struct mu_jn *n;
    switch (p->cur.kind) {
    case MU_JT_NAME: return name(p);
    case MU_JT_STRING: return strings(p);
    case MU_JT_NUMBER:
        n = constant(p, p->cur.val);
        mu_jp_next(p);
        return n;
    default: break;
    }
    if (mu_jp_is_op(p, '[')) return list(p);
    if (mu_jp_is_op(p, '{')) return dict(p);
    if (!mu_jp_take_op(p, '(')) mu_jp_unexpected(p, "an expression");
    if (mu_jp_is_op(p, ')'))
        n = mu_jp_node(p, MU_JN_TUPLE, p->cur.line);
    else
        n = mu_jp_tuple(p, false);
    mu_jp_want_op(p, ')');
    return n;
}

/* (…) into n's items; the bracket is the current token. */
static void arguments(struct mu_jp *p, struct mu_jn *n)
{
    struct mu_jn **tail = &n->items, *arg;
    bool named = false;
    mu_jp_want_op(p, '(');
    while (!mu_jp_is_op(p, ')')) {
        if (n->n) mu_jp_want_op(p, ',');
        if (mu_jp_is_op(p, ')')) break;
        int line = p->cur.line;
        if (mu_jp_take_op(p, '*')) {
            arg = mu_jp_node(p, MU_JN_STAR, line);
        } else if (mu_jp_take_op(p, MU_JOP('*', '*'))) {
            arg = mu_jp_node(p, MU_JN_STARSTAR, line);
        } else if (p->cur.kind == MU_JT_NAME && p->ahead.kind == MU_JT_OP && p->ahead.op == '=') {
            arg = mu_jp_node(p, MU_JN_KWARG, line);
            arg->name = take_name(p, "a name");
            mu_jp_next(p);
            named = true;
        } else {
            if (named) mu_jp_fail(p, MU_EFORMAT, line, "an argument without a name follows one with a name");
            append(p, n, &tail, mu_jp_expr(p, false));
            continue;
        }
        arg->a = mu_jp_expr(p, false);
        mu_jp_over(p, arg, arg->a);
        append(p, n, &tail, arg);
    }
    mu_jp_want_op(p, ')');
}

static struct mu_jn *subscript(struct mu_jp *p, struct mu_jn *of)
{
    struct mu_jn *n = mu_jp_node(p, MU_JN_SLICE, of->line), **tail = &n->items;
    n->a = of;
    mu_jp_over(p, n, of);
    mu_jp_want_op(p, '[');
    for (int part = 0; part < 3; part++) {
        bool end = mu_jp_is_op(p, ']');
        if (end && !part) mu_jp_unexpected(p, "an index");
        append(p, n, &tail, end || mu_jp_is_op(p, ':') ? constant(p, mu_jv_none()) : mu_jp_expr(p, false));
        if (end || part == 2) continue;
        if (mu_jp_take_op(p, ':')) {
            n->negated = true; /* it is a slice */
        } else if (!mu_jp_is_op(p, ']')) {
            mu_jp_unexpected(p, "']'");
        }
    }
    mu_jp_want_op(p, ']');
    if (!n->negated) { /* a[b] */
        n->kind = MU_JN_INDEX;
        n->b = n->items;
    }
    return n;
}

static struct mu_jn *postfix(struct mu_jp *p, struct mu_jn *n)
{
    for (;;) {
        if (mu_jp_is_op(p, '[')) {
            n = subscript(p, n);
        } else if (mu_jp_is_op(p, '(')) {
            n = pair(p, MU_JN_CALL, 0, n, NULL);
            arguments(p, n);
        } else if (mu_jp_take_op(p, '.')) {
            if (p->cur.kind == MU_JT_NUMBER && p->cur.val.kind == MU_JK_INT) {
                struct mu_jn *index = constant(p, p->cur.val);
                mu_jp_next(p);
                n = pair(p, MU_JN_INDEX, 0, n, index);
            } else {
                n = pair(p, MU_JN_ATTR, 0, n, NULL);
                n->name = take_name(p, "the name of an attribute");
            }
        } else {
            return n;
        }
    }
}

/* name or name.name, as of filters and tests. */
static const struct mu_js *dotted_name(struct mu_jp *p, const char *wanted)
{
    const struct mu_js *s = take_name(p, wanted);
    while (mu_jp_take_op(p, '.')) {
        const struct mu_js *more = take_name(p, wanted);
        char *text = mu_jp_alloc(p, s->len + more->len + 2);
        memcpy(text, s->p, s->len);
        text[s->len] = '.';
        memcpy(text + s->len + 1, more->p, more->len);
        s = text_of(p, text, s->len + 1 + more->len);
    }
    return s;
}

static bool starts_test_argument(const struct mu_jp *p)
{
    static const char *const words[] = {"else", "or", "and", "if", "in", "not", "recursive"};
    switch (p->cur.kind) {
    case MU_JT_STRING:
    case MU_JT_NUMBER: return true;
    case MU_JT_OP: return p->cur.op == '[' || p->cur.op == '{';
    case MU_JT_NAME:
        for (size_t i = 0; i < sizeof words / sizeof *words; i++)
            if (mu_jp_is_name(p, words[i])) return false;
        return true;
    default: return false;
    }
}

static struct mu_jn *test(struct mu_jp *p, struct mu_jn *operand)
{
    mu_jp_next(p); /* is */
    struct mu_jn *n = pair(p, MU_JN_TEST, 0, operand, NULL), *arg;
    n->negated = mu_jp_take_name(p, "not");
    n->name = dotted_name(p, "the name of a test");
    n->test = mu_ji_test(n->name->p, n->name->len);
    if (mu_jp_is_op(p, '(')) {
        arguments(p, n);
    } else if (starts_test_argument(p)) {
        if (mu_jp_is_name(p, "is")) mu_jp_fail(p, MU_EFORMAT, p->cur.line, "tests cannot be chained: use brackets");
        arg = postfix(p, primary(p));
        n->items = arg;
        n->n = 1;
        mu_jp_over(p, n, arg);
    }
    return n;
}

struct mu_jn *mu_jp_filters(struct mu_jp *p, struct mu_jn *n, bool inline_first)
{
    while (inline_first || mu_jp_is_op(p, '|')) {
        if (!inline_first) mu_jp_next(p);
        inline_first = false;
        struct mu_jn *f = mu_jp_node(p, MU_JN_FILTER, p->cur.line);
        f->a = n;
        mu_jp_over(p, f, n);
        f->name = dotted_name(p, "the name of a filter");
        f->fn = mu_ji_filter(f->name->p, f->name->len);
        if (mu_jp_is_op(p, '(')) arguments(p, f);
        n = f;
    }
    return n;
}

static struct mu_jn *unary(struct mu_jp *p, bool with_filter)
{
    struct mu_jn *n;
    int op = p->cur.op, line = p->cur.line;
    mu_jp_enter(p);
    if (mu_jp_is_op(p, '-') || mu_jp_is_op(p, '+')) {
        mu_jp_next(p);
        struct mu_jn *operand = unary(p, false);
        n = mu_jp_node(p, MU_JN_UNARY, line);
        n->op = op;
        n->a = operand;
        mu_jp_over(p, n, operand);
    } else {
        n = primary(p);
    }
    n = postfix(p, n);
    while (with_filter) {
        if (mu_jp_is_op(p, '|')) {
            n = mu_jp_filters(p, n, false);
        } else if (mu_jp_is_name(p, "is")) {
            n = test(p, n);
        } else if (mu_jp_is_op(p, '(')) {
            n = pair(p, MU_JN_CALL, 0, n, NULL);
            arguments(p, n);
        } else {
            break;
        }
    }
    p->depth--;
    return n;
}

/* Left-associative operators, tightest level 0. */
static struct mu_jn *arithmetic(struct mu_jp *p, int level)
{
    static const int levels[][4] = {{MU_JOP('*', '*')}, {'*', '/', MU_JOP('/', '/'), '%'}, {'~'}, {'+', '-'}};
    struct mu_jn *n = level ? arithmetic(p, level - 1) : unary(p, true);
    while (p->cur.kind == MU_JT_OP) {
        int op = 0;
        for (int i = 0; i < 4; i++)
            if (levels[level][i] == p->cur.op) op = p->cur.op;
        if (!op) break;
        mu_jp_next(p);
        n = pair(p, MU_JN_BINARY, op, n, level ? arithmetic(p, level - 1) : unary(p, true));
    }
    return n;
}

static int comparison(struct mu_jp *p)
{
    static const int ops[] = {MU_JOP('=', '='), MU_JOP('!', '='), '<', MU_JOP('<', '='), '>', MU_JOP('>', '=')};
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        if (mu_jp_take_op(p, ops[i])) return ops[i];
    if (mu_jp_take_name(p, "in")) return MU_JOP_IN;
    if (mu_jp_is_name(p, "not") && token_is(&p->ahead, "in")) {
        mu_jp_next(p);
        mu_jp_next(p);
        return MU_JOP_NOT_IN;
    }
    return 0;
}

static struct mu_jn *compare(struct mu_jp *p)
{
    struct mu_jn *first = arithmetic(p, 3), *n = NULL, **tail = NULL;
    for (int op; (op = comparison(p));) {
        if (!n) {
            n = pair(p, MU_JN_COMPARE, 0, first, NULL);
            tail = &n->items;
        }
        append(p, n, &tail, pair(p, MU_JN_OPERAND, op, arithmetic(p, 3), NULL));
    }
    return n ? n : first;
}

static struct mu_jn *not_expr(struct mu_jp *p)
{
    struct mu_jn *n;
    if (!mu_jp_is_name(p, "not")) return compare(p);
    mu_jp_enter(p);
    mu_jp_next(p);
    n = pair(p, MU_JN_NOT, 0, not_expr(p), NULL);
    p->depth--;
    return n;
}

static struct mu_jn *and_expr(struct mu_jp *p)
{
    struct mu_jn *n = not_expr(p);
    while (mu_jp_take_name(p, "and")) n = pair(p, MU_JN_AND, 0, n, not_expr(p));
    return n;
}

static struct mu_jn *or_expr(struct mu_jp *p)
{
    struct mu_jn *n = and_expr(p);
    while (mu_jp_take_name(p, "or")) n = pair(p, MU_JN_OR, 0, n, and_expr(p));
    return n;
}

struct mu_jn *mu_jp_expr(struct mu_jp *p, bool no_cond)
{
    mu_jp_enter(p);
    struct mu_jn *n = or_expr(p);
    while (!no_cond && mu_jp_take_name(p, "if")) {
        n = pair(p, MU_JN_COND, 0, n, or_expr(p));
        if (mu_jp_take_name(p, "else")) n->c = mu_jp_expr(p, false);
        mu_jp_over(p, n, n->c);
    }
    p->depth--;
    return n;
}

static bool ends_tuple(const struct mu_jp *p)
{
    return p->cur.kind == MU_JT_VAR_END || p->cur.kind == MU_JT_BLOCK_END || mu_jp_is_op(p, ')') || mu_jp_is_op(p, '=');
}

struct mu_jn *mu_jp_tuple(struct mu_jp *p, bool no_cond)
{
    struct mu_jn *first = mu_jp_expr(p, no_cond);
    if (!mu_jp_is_op(p, ',')) return first;
    struct mu_jn *n = mu_jp_node(p, MU_JN_TUPLE, first->line), **tail = &n->items;
    append(p, n, &tail, first);
    while (mu_jp_take_op(p, ','))
        if (!ends_tuple(p)) append(p, n, &tail, mu_jp_expr(p, no_cond));
    return n;
}

/* What can be assigned: a name, name.attribute of a namespace, or several of these. */
static struct mu_jn *one_target(struct mu_jp *p, bool with_attr)
{
    if (mu_jp_take_op(p, '(')) {
        mu_jp_enter(p);
        struct mu_jn *n = mu_jp_target(p, with_attr);
        p->depth--;
        mu_jp_want_op(p, ')');
        return n;
    }
    if (p->cur.kind != MU_JT_NAME) mu_jp_unexpected(p, "the name of a variable");
    struct mu_jn *n = name(p);
    if (n->kind != MU_JN_NAME) mu_jp_fail(p, MU_EFORMAT, n->line, "a constant cannot be assigned to");
    if (with_attr && mu_jp_take_op(p, '.')) {
        n = pair(p, MU_JN_ATTR, 0, n, NULL);
        n->name = take_name(p, "the name of an attribute");
    }
    return n;
}

struct mu_jn *mu_jp_target(struct mu_jp *p, bool with_attr)
{
    struct mu_jn *first = one_target(p, with_attr);
    if (!mu_jp_is_op(p, ',')) return first;
    struct mu_jn *n = mu_jp_node(p, MU_JN_TUPLE, first->line), **tail = &n->items;
    append(p, n, &tail, first);
    while (mu_jp_take_op(p, ','))
        if (!ends_tuple(p) && !mu_jp_is_name(p, "in")) append(p, n, &tail, one_target(p, with_attr));
    return n;
}
