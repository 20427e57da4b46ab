/* Jinja statements to a tree; names become numbers (symbols), so that variables are looked up without comparing text.
 * The tree's height is bounded here once, and with it the recursion of everything that walks it. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "model/jinja.h"
#include "model/utf8.h"

void mu_jp_fail(struct mu_jp *p, enum mu_status st, int line, const char *fmt, ...)
{
    char text[MU_ERR_TEXT];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    p->st = mu_fail(p->err, st, "chat template, line %d: %s", line, text);
    longjmp(p->away, 1);
}

void *mu_jp_alloc(struct mu_jp *p, size_t bytes)
{
    if (bytes > p->max_bytes - mu_arena_used(p->arena))
        mu_jp_fail(p, MU_ELIMIT, p->line, "the template's tree would take more than %zu bytes", p->max_bytes);
    void *mem = mu_arena_calloc(p->arena, 1, bytes);
    if (!mem) mu_jp_fail(p, MU_ENOMEM, p->line, "no memory to parse it");
    return mem;
}

void mu_jp_unexpected(struct mu_jp *p, const char *wanted)
{
    char found[48], shown[40];
    const struct mu_jtok *t = &p->cur;
    switch (t->kind) {
    case MU_JT_END: snprintf(found, sizeof found, "the end of the template"); break;
    case MU_JT_DATA: snprintf(found, sizeof found, "text"); break;
    case MU_JT_VAR_BEGIN: snprintf(found, sizeof found, "{{"); break;
    case MU_JT_VAR_END: snprintf(found, sizeof found, "}}"); break;
    case MU_JT_BLOCK_BEGIN: snprintf(found, sizeof found, "{%%"); break;
    case MU_JT_BLOCK_END: snprintf(found, sizeof found, "%%}"); break;
    case MU_JT_NUMBER: snprintf(found, sizeof found, "a number"); break;
    case MU_JT_STRING: snprintf(found, sizeof found, "a string"); break;
    case MU_JT_NAME: snprintf(found, sizeof found, "'%s'", mu_text_show(t->p, t->len, shown, sizeof shown)); break;
    case MU_JT_OP:
        if (t->op > 255)
            snprintf(found, sizeof found, "'%c%c'", t->op >> 8, t->op & 255);
        else
            snprintf(found, sizeof found, "'%c'", t->op);
        break;
    }
    mu_jp_fail(p, MU_EFORMAT, t->line, "%s was expected and %s was found", wanted, found);
}

/* ---- symbols ---- */

static uint32_t hash(const char *text, size_t len)
{
    uint32_t h = 2166136261u; /* FNV-1a */
    for (size_t i = 0; i < len; i++) h = (h ^ (unsigned char)text[i]) * 16777619u;
    return h;
}

static void grow_symbols(struct mu_jp *p)
{
    size_t cap = p->cap_name ? p->cap_name * 2 : 32, n_index = cap * 2;
    const struct mu_js **names = mu_jp_alloc(p, cap * sizeof *names);
    uint32_t *index = mu_jp_alloc(p, n_index * sizeof *index);
    for (size_t i = 0; i < p->n_name; i++) {
        names[i] = p->names[i];
        size_t at = hash(names[i]->p, names[i]->len) & (n_index - 1);
        while (index[at]) at = (at + 1) & (n_index - 1);
        index[at] = (uint32_t)i + 1;
    }
    p->names = names;
    p->cap_name = cap;
    p->name_index = index;
    p->n_name_index = n_index;
}

int mu_jp_symbol(struct mu_jp *p, const char *text, size_t len)
{
    if (p->n_name == p->cap_name) grow_symbols(p);
    size_t at = hash(text, len) & (p->n_name_index - 1);
    for (; p->name_index[at]; at = (at + 1) & (p->n_name_index - 1)) {
        const struct mu_js *s = p->names[p->name_index[at] - 1];
        if (s->len == len && memcmp(s->p, text, len) == 0) return (int)p->name_index[at] - 1;
    }
    struct mu_js *s = mu_jp_alloc(p, sizeof *s);
    *s = (struct mu_js){.p = text, .len = len};
    p->names[p->n_name] = s;
    p->name_index[at] = (uint32_t)++p->n_name;
    return (int)p->n_name - 1;
}

/* ---- statements ---- */

static struct mu_jn *body_until(struct mu_jp *p, struct mu_jn *owner, const char *const *ends);

static void end_block(struct mu_jp *p)
{
    if (p->cur.kind != MU_JT_BLOCK_END) mu_jp_unexpected(p, "%}");
    mu_jp_next(p);
}

/* The body of n up to {% end %}, which is taken too. */
static struct mu_jn *whole_body(struct mu_jp *p, struct mu_jn *n, const char *end)
{
    const char *const ends[] = {end, NULL};
    end_block(p);
    struct mu_jn *body = body_until(p, n, ends);
    mu_jp_next(p);
    end_block(p);
    return body;
}

static struct mu_jn *if_statement(struct mu_jp *p)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL}, *const last[] = {"endif", NULL};
    struct mu_jn *first = mu_jp_node(p, MU_JN_IF, p->cur.line), *n = first;
    for (;;) { /* a chain of elifs is a chain through b, walked without recursion: only its bodies count for height */
        mu_jp_next(p);
        n->a = mu_jp_tuple(p, false);
        mu_jp_over(p, first, n->a);
        end_block(p);
        n->items = body_until(p, first, ends);
        if (!mu_jp_is_name(p, "elif")) break;
        n->b = mu_jp_node(p, MU_JN_IF, p->cur.line);
        n = n->b;
    }
    if (mu_jp_take_name(p, "else")) {
        n->b = mu_jp_node(p, MU_JN_BODY, p->cur.line);
        end_block(p);
        n->b->items = body_until(p, first, last);
    }
    mu_jp_next(p);
    end_block(p);
    return first;
}

static struct mu_jn *for_statement(struct mu_jp *p)
{
    static const char *const ends[] = {"else", "endfor", NULL}, *const last[] = {"endfor", NULL};
    struct mu_jn *n = mu_jp_node(p, MU_JN_FOR, p->cur.line);
    mu_jp_next(p);
    n->a = mu_jp_target(p, false);
    if (!mu_jp_take_name(p, "in")) mu_jp_unexpected(p, "'in'");
    n->b = mu_jp_tuple(p, true);
    if (mu_jp_take_name(p, "if")) n->c = mu_jp_expr(p, false);
    n->recursive = mu_jp_take_name(p, "recursive");
    mu_jp_over(p, n, n->a);
    mu_jp_over(p, n, n->b);
    mu_jp_over(p, n, n->c);
    end_block(p);
    p->loops++;
    n->items = body_until(p, n, ends);
    p->loops--;
    if (mu_jp_take_name(p, "else")) {
        end_block(p);
        n->other = body_until(p, n, last);
    }
    mu_jp_next(p);
    end_block(p);
    return n;
}

static struct mu_jn *set_statement(struct mu_jp *p)
{
    struct mu_jn *n = mu_jp_node(p, MU_JN_SET, p->cur.line);
    mu_jp_next(p);
    n->a = mu_jp_target(p, true);
    if (mu_jp_take_op(p, '=')) {
        n->b = mu_jp_tuple(p, false);
        mu_jp_over(p, n, n->b);
        end_block(p);
    } else {
        n->kind = MU_JN_SETBLOCK;
        if (mu_jp_is_op(p, '|')) n->b = mu_jp_filters(p, NULL, false);
        mu_jp_over(p, n, n->b);
        n->items = whole_body(p, n, "endset");
    }
    mu_jp_over(p, n, n->a);
    return n;
}

/* (a, b=1): names and what they are when not given; closed by end, or by the end of the block where that is 0. */
static void parameters(struct mu_jp *p, struct mu_jn *n, char end)
{
    struct mu_jn **tail = &n->params;
    while (end ? !mu_jp_is_op(p, end) : p->cur.kind != MU_JT_BLOCK_END) {
        if (n->params) mu_jp_want_op(p, ',');
        if (end && mu_jp_is_op(p, end)) break;
        if (p->cur.kind != MU_JT_NAME) mu_jp_unexpected(p, "the name of a variable");
        struct mu_jn *param = mu_jp_node(p, MU_JN_PARAM, p->cur.line);
        param->sym = mu_jp_symbol(p, p->cur.p, p->cur.len);
        param->name = p->names[param->sym];
        mu_jp_next(p);
        if (mu_jp_take_op(p, '='))
            param->a = mu_jp_expr(p, false);
        else if (!end)
            mu_jp_unexpected(p, "'='");
        mu_jp_over(p, n, param->a);
        *tail = param;
        tail = &param->next;
    }
    if (end) mu_jp_want_op(p, end);
}

/* Bodies that run elsewhere: a break in them is not one of the loop around. */
static struct mu_jn *detached_body(struct mu_jp *p, struct mu_jn *n, const char *end)
{
    int loops = p->loops;
    p->loops = 0;
    struct mu_jn *body = whole_body(p, n, end);
    p->loops = loops;
    return body;
}

static struct mu_jn *macro_statement(struct mu_jp *p)
{
    struct mu_jn *n = mu_jp_node(p, MU_JN_MACRO, p->cur.line);
    mu_jp_next(p);
    if (p->cur.kind != MU_JT_NAME) mu_jp_unexpected(p, "the name of the macro");
    n->sym = mu_jp_symbol(p, p->cur.p, p->cur.len);
    n->name = p->names[n->sym];
    mu_jp_next(p);
    mu_jp_want_op(p, '(');
    parameters(p, n, ')');
    n->items = detached_body(p, n, "endmacro");
    return n;
}

static struct mu_jn *call_statement(struct mu_jp *p)
{
    struct mu_jn *n = mu_jp_node(p, MU_JN_CALLBLOCK, p->cur.line);
    mu_jp_next(p);
    if (mu_jp_take_op(p, '(')) parameters(p, n, ')');
    n->a = mu_jp_expr(p, false);
    if (n->a->kind != MU_JN_CALL) mu_jp_fail(p, MU_EFORMAT, n->line, "a call of a macro was expected");
    mu_jp_over(p, n, n->a);
    n->items = detached_body(p, n, "endcall");
    return n;
}

static struct mu_jn *filter_statement(struct mu_jp *p)
{
    struct mu_jn *n = mu_jp_node(p, MU_JN_FILTERBLOCK, p->cur.line);
    mu_jp_next(p);
    n->b = mu_jp_filters(p, NULL, true);
    mu_jp_over(p, n, n->b);
    n->items = whole_body(p, n, "endfilter");
    return n;
}

static struct mu_jn *with_statement(struct mu_jp *p)
{
    struct mu_jn *n = mu_jp_node(p, MU_JN_WITH, p->cur.line);
    mu_jp_next(p);
    parameters(p, n, 0);
    n->items = whole_body(p, n, "endwith");
    return n;
}

static struct mu_jn *generation_statement(struct mu_jp *p)
{
    struct mu_jn *n = mu_jp_node(p, MU_JN_BODY, p->cur.line);
    mu_jp_next(p);
    n->items = whole_body(p, n, "endgeneration");
    return n;
}

static struct mu_jn *loop_control(struct mu_jp *p)
{
    struct mu_jn *n = mu_jp_node(p, mu_jp_is_name(p, "break") ? MU_JN_BREAK : MU_JN_CONTINUE, p->cur.line);
    if (!p->loops)
        mu_jp_fail(p, MU_EFORMAT, n->line, "'%s' stands outside of a loop",
                   n->kind == MU_JN_BREAK ? "break" : "continue");
    mu_jp_next(p);
    end_block(p);
    return n;
}

static struct mu_jn *statement(struct mu_jp *p)
{
    static const struct {
        const char *name;
        struct mu_jn *(*parse)(struct mu_jp *p);
    } statements[] = {
        {"if", if_statement},       {"for", for_statement},
        {"set", set_statement},     {"macro", macro_statement},
        {"call", call_statement},   {"filter", filter_statement},
        {"with", with_statement},   {"break", loop_control},
        {"continue", loop_control}, {"generation", generation_statement},
    };
    for (size_t i = 0; i < sizeof statements / sizeof *statements; i++)
        if (mu_jp_is_name(p, statements[i].name)) return statements[i].parse(p);
    mu_jp_unexpected(p, "a statement (if, for, set, macro, call, filter, with, generation, raw, break, continue)");
}

static struct mu_jn *output(struct mu_jp *p)
{
    struct mu_jn *n = mu_jp_node(p, MU_JN_OUTPUT, p->cur.line);
    mu_jp_next(p);
    n->a = mu_jp_tuple(p, false);
    mu_jp_over(p, n, n->a);
    if (p->cur.kind != MU_JT_VAR_END) mu_jp_unexpected(p, "}}");
    mu_jp_next(p);
    return n;
}

static struct mu_jn *text(struct mu_jp *p)
{
    struct mu_jn *n = mu_jp_node(p, MU_JN_TEXT, p->cur.line);
    struct mu_js *s = mu_jp_alloc(p, sizeof *s);
    *s = (struct mu_js){.p = p->cur.p, .len = p->cur.len};
    n->val = (struct mu_jv){.kind = MU_JK_STR, .s = s};
    mu_jp_next(p);
    return n;
}

/* Statements up to {% one-of-ends, the name of which becomes the current token; NULL: up to the template's end. */
static struct mu_jn *body_until(struct mu_jp *p, struct mu_jn *owner, const char *const *ends)
{
    struct mu_jn *first = NULL, **tail = &first;
    mu_jp_enter(p);
    for (;;) {
        struct mu_jn *n;
        if (p->cur.kind == MU_JT_DATA) {
            n = text(p);
        } else if (p->cur.kind == MU_JT_VAR_BEGIN) {
            n = output(p);
        } else if (p->cur.kind == MU_JT_BLOCK_BEGIN) {
            mu_jp_next(p);
            for (const char *const *end = ends; end && *end; end++)
                if (mu_jp_is_name(p, *end)) {
                    p->depth--;
                    return first;
                }
            n = statement(p);
        } else if (p->cur.kind == MU_JT_END && !ends) {
            p->depth--;
            return first;
        } else {
            char wanted[64] = "text or a tag";
            if (ends) snprintf(wanted, sizeof wanted, "{%% %s %%} for line %d", ends[0], owner->line);
            mu_jp_unexpected(p, wanted);
        }
        *tail = n;
        tail = &n->next;
        if (owner) mu_jp_over(p, owner, n);
    }
}

struct mu_jn *mu_jp_body(struct mu_jp *p)
{
    return body_until(p, NULL, NULL);
}

enum mu_status mu_jp_parse(struct mu_arena *arena, const char *src, size_t len, struct mu_jn **tree_out,
                           const struct mu_js ***names_out, size_t *n_name_out, struct mu_err *err)
{
    struct mu_jp p = {.arena = arena, .max_bytes = mu_jp_max_bytes(len), .err = err};
    if (setjmp(p.away)) return p.st;
    mu_jp_lex_init(&p, src, len);
    mu_jp_next(&p);
    mu_jp_next(&p);
    struct mu_jn *tree = mu_jp_body(&p);
    *tree_out = tree;
    *names_out = p.names;
    *n_name_out = p.n_name;
    return MU_OK;
}
