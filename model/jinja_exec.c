/* Runs a tree: statements, variables, loops.
 *
 * Variables: `set` binds in the innermost scope; a loop's turn, a macro's call and `with` have scopes of their own, an
 * `if` has none. A macro sees the scope in which it was defined, as it is when it is called. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "model/chat_template.h"
#include "model/jinja.h"

void mu_ji_fail(struct mu_ji *j, enum mu_status st, const char *fmt, ...)
{
    char text[MU_ERR_TEXT];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    for (char *c = text; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7F) *c = ' ';
    if (st == MU_EINVAL)
        j->st = mu_fail(j->err, st, "the chat template refuses: %s", text);
    else
        j->st = mu_fail(j->err, st, "chat template, line %d: %s", j->line, text);
    longjmp(j->away, 1);
}

void mu_ji_steps(struct mu_ji *j, size_t n)
{
    if (n > (size_t)j->steps)
        mu_ji_fail(j, MU_ELIMIT, "it takes more steps than are allowed (%d, and more for each message)",
                   MU_TEMPLATE_MAX_STEPS);
    j->steps -= (int64_t)n;
}

void mu_ji_deeper(struct mu_ji *j)
{
    if (++j->depth > MU_JI_MAX_DEPTH)
        mu_ji_fail(j, MU_ELIMIT, "it is nested more than %d deep while it runs", MU_JI_MAX_DEPTH);
}

/* ---- variables ---- */

struct mu_jscope *mu_ji_scope(struct mu_ji *j, struct mu_jscope *up)
{
    struct mu_jscope *s = mu_ji_alloc(j, 1, sizeof *s);
    *s = (struct mu_jscope){.up = up};
    return s;
}

void mu_ji_bind(struct mu_ji *j, struct mu_jscope *s, int sym, struct mu_jv v)
{
    if (!s) {
        j->globals[sym] = v;
        return;
    }
    mu_ji_steps(j, s->n / 16);
    for (size_t i = 0; i < s->n; i++)
        if (s->bind[i].sym == sym) {
            s->bind[i].val = v;
            return;
        }
    if (s->n == s->cap) {
        size_t cap = s->cap ? s->cap * 2 : 4;
        struct mu_jbind *more = mu_ji_alloc(j, cap, sizeof *more);
        if (s->n) memcpy(more, s->bind, s->n * sizeof *more);
        s->bind = more;
        s->cap = cap;
    }
    s->bind[s->n++] = (struct mu_jbind){sym, v};
}

struct mu_jv mu_ji_variable(struct mu_ji *j, const struct mu_jn *n)
{
    for (const struct mu_jscope *s = j->scope; s; s = s->up) {
        mu_ji_steps(j, s->n / 16);
        for (size_t i = 0; i < s->n; i++)
            if (s->bind[i].sym == n->sym) return s->bind[i].val;
    }
    struct mu_jv v = j->globals[n->sym];
    return v.kind == MU_JK_UNDEFINED ? mu_jv_undefined(n->name) : v;
}

void mu_ji_assign(struct mu_ji *j, const struct mu_jn *target, struct mu_jv v)
{
    const struct mu_jv *items;
    size_t n, i = 0;
    if (target->kind == MU_JN_NAME) {
        mu_ji_bind(j, j->scope, target->sym, v);
    } else if (target->kind == MU_JN_ATTR) {
        struct mu_jv ns = mu_ji_variable(j, target->a);
        if (ns.kind != MU_JK_NAMESPACE)
            mu_ji_fail(j, MU_EFORMAT, "only a namespace's attributes can be set, and this is of type %s",
                       mu_jk_name(ns.kind));
        mu_jd_put(j, ns.d, (struct mu_jv){.kind = MU_JK_STR, .s = target->name}, v);
    } else {
        mu_jv_iterate(j, v, &items, &n);
        if (n != target->n)
            mu_ji_fail(j, MU_EFORMAT, "%u values were expected to unpack and there are %zu", target->n, n);
        for (const struct mu_jn *t = target->items; t; t = t->next) mu_ji_assign(j, t, items[i++]);
    }
}

/* ---- loops ---- */

/* The items for which the loop's `if` holds. */
static struct mu_jl *filtered(struct mu_ji *j, const struct mu_jn *n, const struct mu_jv *items, size_t n_item)
{
    struct mu_jl *kept = mu_jl_new(j, n_item);
    struct mu_jscope *around = j->scope;
    j->scope = mu_ji_scope(j, around);
    for (size_t i = 0; i < n_item; i++) {
        mu_ji_assign(j, n->a, items[i]);
        if (mu_jv_truth(mu_ji_eval(j, n->c))) mu_jl_push(j, kept, items[i]);
    }
    j->scope = around;
    return kept;
}

void mu_ji_loop(struct mu_ji *j, const struct mu_jn *n, struct mu_jv over, int depth, enum mu_jflow *flow)
{
    const struct mu_jv *items;
    size_t n_item;
    mu_jv_iterate(j, over, &items, &n_item);
    if (mu_jv_is_seq(over)) { /* the body may change the list */
        struct mu_jv *copy = mu_ji_alloc(j, n_item + 1, sizeof *copy);
        if (n_item) memcpy(copy, items, n_item * sizeof *copy);
        items = copy;
    }
    if (n->c) {
        struct mu_jl *kept = filtered(j, n, items, n_item);
        items = kept->v;
        n_item = kept->n;
    }
    struct mu_jloop *loop = mu_ji_alloc(j, 1, sizeof *loop);
    struct mu_jscope *around = j->scope, *inner = mu_ji_scope(j, around);
    *loop = (struct mu_jloop){.items = items, .n = n_item, .depth = depth, .node = n, .scope = around};
    bool finished =
        false; /* a turn; Jinja's `else` is run where none was, also when all were left by continue or break */
    j->scope = inner;
    for (size_t i = 0; i < n_item; i++) {
        loop->i = i;
        inner->n = 0;
        mu_ji_steps(j, 1);
        if (j->sym_loop >= 0) mu_ji_bind(j, inner, j->sym_loop, (struct mu_jv){.kind = MU_JK_LOOP, .loop = loop});
        mu_ji_assign(j, n->a, items[i]);
        enum mu_jflow turn = mu_ji_exec(j, n->items);
        if (turn == MU_JF_BREAK) break;
        finished |= turn == MU_JF_ON;
    }
    j->scope = around;
    if (!finished) *flow = mu_ji_exec(j, n->other);
}

/* ---- statements ---- */

static struct mu_jv capture(struct mu_ji *j, const struct mu_jn *body, enum mu_jflow *flow)
{
    size_t mark = j->out_len;
    *flow = mu_ji_exec(j, body);
    return mu_ji_take(j, mark);
}

/* Text through the filters of a block; their innermost operand is the text. */
static struct mu_jv filter_text(struct mu_ji *j, const struct mu_jn *f, struct mu_jv text)
{
    struct mu_jv v = f->a ? filter_text(j, f->a, text) : text;
    struct mu_jargs args = mu_ji_args(j, f->items);
    if (!f->fn)
        mu_ji_fail(j, MU_EFORMAT, "there is no filter '%.*s'", (int)(f->name->len > 80 ? 80 : f->name->len),
                   f->name->p);
    return mu_ji_apply(j, f->fn, v, &args);
}

static enum mu_jflow exec_if(struct mu_ji *j, const struct mu_jn *n)
{
    for (; n; n = n->b) {
        j->line = n->line;
        if (n->kind == MU_JN_BODY || mu_jv_truth(mu_ji_eval(j, n->a))) return mu_ji_exec(j, n->items);
    }
    return MU_JF_ON;
}

static enum mu_jflow exec_with(struct mu_ji *j, const struct mu_jn *n)
{
    struct mu_jscope *around = j->scope, *inner = mu_ji_scope(j, around);
    for (const struct mu_jn *p = n->params; p; p = p->next) mu_ji_bind(j, inner, p->sym, mu_ji_eval(j, p->a));
    j->scope = inner;
    enum mu_jflow flow = mu_ji_exec(j, n->items);
    j->scope = around;
    return flow;
}

static struct mu_jv macro_value(struct mu_ji *j, const struct mu_jn *n)
{
    struct mu_jmacro *m = mu_ji_alloc(j, 1, sizeof *m);
    *m = (struct mu_jmacro){n, j->scope};
    return (struct mu_jv){.kind = MU_JK_MACRO, .macro = m};
}

/* {% call(x) m(args) %}: m gets the body as a macro named caller. */
static void exec_call(struct mu_ji *j, const struct mu_jn *n)
{
    static const struct mu_js caller = {.p = "caller", .len = 6};
    struct mu_jv callee = mu_ji_eval(j, n->a->a);
    struct mu_jargs args = mu_ji_args(j, n->a->items);
    struct mu_jkw *kw = mu_ji_alloc(j, args.n_kw + 1, sizeof *kw);
    if (args.n_kw) memcpy(kw, args.kw, args.n_kw * sizeof *kw);
    kw[args.n_kw] = (struct mu_jkw){&caller, macro_value(j, n)};
    args.kw = kw;
    args.n_kw++;
    mu_jv_print(j, mu_ji_call(j, callee, &args));
}

static enum mu_jflow exec_one(struct mu_ji *j, const struct mu_jn *n)
{
    enum mu_jflow flow = MU_JF_ON;
    struct mu_jv v;
    switch (n->kind) {
    case MU_JN_TEXT: mu_ji_write(j, n->val.s->p, n->val.s->len); break;
    case MU_JN_OUTPUT: mu_jv_print(j, mu_ji_eval(j, n->a)); break;
    case MU_JN_IF: return exec_if(j, n);
    case MU_JN_BODY: return mu_ji_exec(j, n->items);
    case MU_JN_FOR: mu_ji_loop(j, n, mu_ji_eval(j, n->b), 1, &flow); break;
    case MU_JN_SET: mu_ji_assign(j, n->a, mu_ji_eval(j, n->b)); break;
    case MU_JN_SETBLOCK:
    case MU_JN_FILTERBLOCK: {
        struct mu_jscope *around = j->scope;
        j->scope = mu_ji_scope(j, around);
        v = capture(j, n->items, &flow);
        j->scope = around;
        if (n->b) v = filter_text(j, n->b, v);
        if (n->kind == MU_JN_SETBLOCK)
            mu_ji_assign(j, n->a, v);
        else
            mu_jv_print(j, v);
        break;
    }
    case MU_JN_MACRO: mu_ji_bind(j, j->scope, n->sym, macro_value(j, n)); break;
    case MU_JN_CALLBLOCK: exec_call(j, n); break;
    case MU_JN_WITH: return exec_with(j, n);
    case MU_JN_BREAK: return MU_JF_BREAK;
    case MU_JN_CONTINUE: return MU_JF_CONTINUE;
    default: mu_ji_fail(j, MU_EINTERNAL, "a statement of kind %d", n->kind);
    }
    return flow;
}

enum mu_jflow mu_ji_exec(struct mu_ji *j, const struct mu_jn *body)
{
    enum mu_jflow flow = MU_JF_ON;
    mu_ji_deeper(j);
    for (const struct mu_jn *n = body; n && flow == MU_JF_ON; n = n->next) {
        mu_ji_steps(j, 1);
        j->line = n->line;
        flow = exec_one(j, n);
    }
    j->depth--;
    return flow;
}
