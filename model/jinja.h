/* The Jinja interpreter behind model/chat_template.h: what its parts share.
 *
 *   source ──jinja_lex──▶ tokens ──jinja_parse, jinja_expr──▶ tree ──jinja_exec, jinja_eval──▶ text
 *                                                             │  jinja_ops (operators), jinja_call (functions, macros)
 *                                                             │  jinja_filter_*, jinja_test, jinja_method_* (tables)
 *                                                             └─ jinja_value, jinja_print, jinja_format (values)
 *
 * Memory: the tree lives in the template's arena. Values of a rendering live in the rendering's arena, which has a
 * bound and is thrown away at the end; nothing is freed before. Text is built at the end of the one output buffer and
 * taken from there (mu_ji_mark … mu_ji_take), so that printing, joining and capturing are the same thing.
 *
 * Errors leave by longjmp: whatever is held is in an arena or in struct mu_ji, and the interpreter has some two hundred
 * places that can fail in the middle of an expression. The two setjmps are in mu_jp_parse and mu_ji_run; functions that do
 * not return say so.
 *
 * Bounds: every node evaluated, item visited and 64 bytes of text touched is a step; depth counts nodes within nodes,
 * macros included. Semantics: those of Jinja 3.1 (jinja.palletsprojects.com/templates) and of Python for values; text is
 * UTF-8 and counted in code points. Lazy sequences (map, select …) are made at once but can be iterated only once, as
 * there.
 *
 * Threads: a tree is read-only; a struct mu_ji belongs to one thread. */
#ifndef MU_MODEL_JINJA_H
#define MU_MODEL_JINJA_H

#include <locale.h>
#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/status.h"

/* ---- values ---- */

enum mu_jk {
    MU_JK_UNDEFINED,
    MU_JK_NONE,
    MU_JK_BOOL,
    MU_JK_INT,
    MU_JK_FLOAT,
    MU_JK_STR,
    MU_JK_LIST,
    MU_JK_TUPLE,
    MU_JK_DICT,
    MU_JK_NAMESPACE, /* a dict whose entries `set` may assign */
    MU_JK_LOOP,
    MU_JK_MACRO,
    MU_JK_METHOD, /* bound to its object */
    MU_JK_FUNC
};

struct mu_jbuf { /* where a string that was made by appending may grow */
    size_t used, cap;
    char data[];
};
struct mu_js { /* immutable; any bytes, NUL-terminated only by chance */
    const char *p;
    size_t len;
    struct mu_jbuf *buf; /* NULL: cannot grow in place */
};

struct mu_jl;
struct mu_jd;
struct mu_jloop;
struct mu_jmacro;
struct mu_jbound;
struct mu_jfunc;

struct mu_jv {
    enum mu_jk kind;
    int of; /* UNDEFINED: 1 + the kind of what lacks the attribute; 0: it is a variable. STR: 1: marked `safe` */
    union {
        bool b;
        int64_t i;
        double f;
        const struct mu_js *s; /* STR; UNDEFINED: the name, or NULL */
        struct mu_jl *l;       /* LIST, TUPLE */
        struct mu_jd *d;       /* DICT, NAMESPACE */
        struct mu_jloop *loop;
        const struct mu_jmacro *macro;
        const struct mu_jbound *bound;
        const struct mu_jfunc *func;
    };
};

struct mu_jl {
    struct mu_jv *v;
    size_t n, cap;
    bool lazy; /* can be iterated once, is always true, has no length */
};
struct mu_jent {
    struct mu_jv key, val;
};
struct mu_jd { /* in order of insertion */
    struct mu_jent *e;
    size_t n, cap;
    uint32_t *index; /* open addressing, entry number + 1; only from MU_JD_INDEXED entries on */
    size_t n_index;  /* power of two */
};

struct mu_jkw {
    const struct mu_js *name;
    struct mu_jv val;
};
struct mu_jargs {
    size_t n, n_kw;
    struct mu_jv *v;
    struct mu_jkw *kw;
};

struct mu_ji;
struct mu_jn;

struct mu_jfunc { /* a global function, a filter */
    const char *name;
    struct mu_jv (*call)(struct mu_ji *j, struct mu_jv self, const struct mu_jargs *a);
    bool keeps_safe; /* what it makes of text marked `safe` is so, too */
};
struct mu_jtest {
    const char *name;
    bool (*holds)(struct mu_ji *j, struct mu_jv v, const struct mu_jargs *a);
};
struct mu_jbound {
    struct mu_jv self;
    const struct mu_jfunc *method;
};
struct mu_jscope {
    struct mu_jscope *up; /* NULL: the globals */
    size_t n, cap;
    struct mu_jbind {
        int sym;
        struct mu_jv val;
    } * bind;
};
struct mu_jmacro {
    const struct mu_jn *node; /* MU_JN_MACRO, or MU_JN_CALLBLOCK as its caller */
    struct mu_jscope *scope;  /* where it was defined */
};
struct mu_jloop {
    const struct mu_jv *items;
    size_t n, i;
    int depth; /* 1: outermost of a recursive loop */
    const struct mu_jn *node;
    struct mu_jscope *scope; /* around the loop */
    struct mu_jv changed;    /* what loop.changed saw last */
    bool has_changed;
};

/* ---- tree ---- */

enum mu_jnk {
    /* expressions */
    MU_JN_CONST, /* val */
    MU_JN_NAME,  /* sym, name */
    MU_JN_LIST,  /* items */
    MU_JN_TUPLE,
    MU_JN_DICT,   /* items: key, value, key, value … */
    MU_JN_ATTR,   /* a.name */
    MU_JN_INDEX,  /* a[b] */
    MU_JN_SLICE,  /* a[items: start, stop, step], consts of none where left out */
    MU_JN_CALL,   /* a(items) */
    MU_JN_FILTER, /* a | name(items), fn; a is NULL in blocks */
    MU_JN_TEST,   /* a is name(items), test; negated */
    MU_JN_UNARY,  /* op a: '-' '+' */
    MU_JN_BINARY, /* a op b */
    MU_JN_AND,
    MU_JN_OR,
    MU_JN_NOT,
    MU_JN_COMPARE, /* a, then items: OPERANDs */
    MU_JN_OPERAND, /* op a */
    MU_JN_COND,    /* a if b else c (c may be NULL) */
    MU_JN_KWARG,   /* name=a; only among arguments, as the next two */
    MU_JN_STAR,
    MU_JN_STARSTAR,
    /* statements; a body is a chain through next */
    MU_JN_TEXT,        /* val */
    MU_JN_OUTPUT,      /* a */
    MU_JN_IF,          /* a ? items, else b: an IF, or a BODY, or NULL */
    MU_JN_BODY,        /* items */
    MU_JN_FOR,         /* target a in b, if c, body items, other: else body */
    MU_JN_SET,         /* target a = b */
    MU_JN_SETBLOCK,    /* target a, filters b (innermost operand NULL) or NULL, body items */
    MU_JN_MACRO,       /* sym, name, params, body items */
    MU_JN_CALLBLOCK,   /* a: the call, params of its caller, body items */
    MU_JN_FILTERBLOCK, /* b: filters, body items */
    MU_JN_WITH,        /* params: PARAMs assigned, body items */
    MU_JN_PARAM,       /* sym, name, default a or NULL */
    MU_JN_BREAK,
    MU_JN_CONTINUE
};

/* Operators of two characters; those of one are that character. */
#define MU_JOP(a, b) ((a) << 8 | (b))
enum { MU_JOP_IN = 1, MU_JOP_NOT_IN = 2 };

struct mu_jn {
    enum mu_jnk kind;
    int line, op, sym;
    int height; /* of the tree below: what bounds the recursion of whoever walks it */
    bool negated, recursive;
    uint32_t n; /* of items */
    const struct mu_js *name;
    struct mu_jv val;
    struct mu_jn *a, *b, *c, *items, *other, *params, *next;
    const struct mu_jfunc *fn; /* NULL: there is no such filter; an error when it is reached */
    const struct mu_jtest *test;
};

enum { MU_JP_MAX_HEIGHT = 250, MU_JI_MAX_DEPTH = 1200, MU_JI_MAX_MEMORY = 256 << 20, MU_JI_MAX_RANGE = 100000 };

/* ---- parsing ---- */

enum mu_jtk {
    MU_JT_END,
    MU_JT_DATA,
    MU_JT_VAR_BEGIN,
    MU_JT_VAR_END,
    MU_JT_BLOCK_BEGIN,
    MU_JT_BLOCK_END,
    MU_JT_NAME,
    MU_JT_STRING,
    MU_JT_NUMBER, /* val */
    MU_JT_OP
};
struct mu_jtok {
    enum mu_jtk kind;
    int op, line;
    const char *p; /* as in the source; of strings: decoded */
    size_t len;
    struct mu_jv val;
};
struct mu_jp {
    struct mu_arena *arena;
    size_t max_bytes;         /* of arena */
    const char *src;          /* newlines normalised */
    size_t len, pos, counted; /* newlines up to counted are in line */
    int line, nest;           /* nest: open brackets of the expression */
    enum mu_jtk mode;         /* MU_JT_DATA, MU_JT_VAR_BEGIN, MU_JT_BLOCK_BEGIN: what is being read */
    bool at_tag, line_starting;
    struct mu_jtok cur, ahead;
    int depth, loops;           /* loops: around here, within the macro */
    const struct mu_js **names; /* by symbol */
    size_t n_name, cap_name;
    uint32_t *name_index; /* open addressing, symbol + 1 */
    size_t n_name_index;
    jmp_buf away;
    enum mu_status st;
    struct mu_err *err;
};

/* What the tree of a source may take: nodes have 128 bytes, and a character may make one. */
static inline size_t mu_jp_max_bytes(size_t len)
{
    return len * 256 + (64 << 10);
}
_Noreturn void mu_jp_fail(struct mu_jp *p, enum mu_status st, int line, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
void *mu_jp_alloc(struct mu_jp *p, size_t bytes); /* zeroed */
void mu_jp_lex_init(struct mu_jp *p, const char *src, size_t len);
void mu_jp_next(struct mu_jp *p); /* cur becomes ahead */
bool mu_jp_is_op(const struct mu_jp *p, int op);
bool mu_jp_is_name(const struct mu_jp *p, const char *name);
bool mu_jp_take_op(struct mu_jp *p, int op);
bool mu_jp_take_name(struct mu_jp *p, const char *name);
void mu_jp_want_op(struct mu_jp *p, int op);
_Noreturn void mu_jp_unexpected(struct mu_jp *p, const char *wanted);
int mu_jp_symbol(struct mu_jp *p, const char *name, size_t len);
struct mu_jn *mu_jp_node(struct mu_jp *p, enum mu_jnk kind, int line);
void mu_jp_over(struct mu_jp *p, struct mu_jn *parent, const struct mu_jn *child); /* raises height */
void mu_jp_enter(struct mu_jp *p);                                                 /* one nesting deeper */
/* Expressions. no_cond: stops at `if` (for … in x if …). */
struct mu_jn *mu_jp_expr(struct mu_jp *p, bool no_cond);
struct mu_jn *mu_jp_tuple(struct mu_jp *p, bool no_cond);
struct mu_jn *mu_jp_target(struct mu_jp *p, bool with_attr);
struct mu_jn *mu_jp_filters(struct mu_jp *p, struct mu_jn *operand, bool inline_first);
struct mu_jn *mu_jp_body(struct mu_jp *p); /* the whole template */
/* The tree of src[len] in arena; the names that it uses in *names_out, by symbol. */
enum mu_status mu_jp_parse(struct mu_arena *arena, const char *src, size_t len, struct mu_jn **tree_out,
                           const struct mu_js ***names_out, size_t *n_name_out, struct mu_err *err);

/* ---- running ---- */

enum mu_jflow { MU_JF_ON, MU_JF_BREAK, MU_JF_CONTINUE };

struct mu_ji {
    struct mu_arena *arena;
    char *out; /* mu_malloc'd, grows */
    size_t out_len, out_cap;
    int64_t steps;
    int depth, line;
    struct mu_jscope *scope;
    struct mu_jv *globals; /* by symbol; undefined where unset */
    const struct mu_js **names;
    size_t n_name;
    int sym_loop, sym_caller, sym_varargs, sym_kwargs; /* -1: the template does not name it */
    locale_t locale;                                   /* for letters beyond ASCII; (locale_t)0: ASCII only */
    int64_t now_s;
    jmp_buf away;
    enum mu_status st;
    struct mu_err *err;
};

_Noreturn void mu_ji_fail(struct mu_ji *j, enum mu_status st, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void mu_ji_steps(struct mu_ji *j, size_t n);
void *mu_ji_alloc(struct mu_ji *j, size_t n, size_t size); /* contents undefined */
enum mu_jflow mu_ji_exec(struct mu_ji *j, const struct mu_jn *body);
struct mu_jv mu_ji_eval(struct mu_ji *j, const struct mu_jn *n);
void mu_ji_deeper(struct mu_ji *j);
struct mu_jscope *mu_ji_scope(struct mu_ji *j, struct mu_jscope *up);
void mu_ji_bind(struct mu_ji *j, struct mu_jscope *s, int sym, struct mu_jv v);
void mu_ji_assign(struct mu_ji *j, const struct mu_jn *target, struct mu_jv v);
struct mu_jv mu_ji_variable(struct mu_ji *j, const struct mu_jn *name);
void mu_ji_loop(struct mu_ji *j, const struct mu_jn *n, struct mu_jv over, int depth, enum mu_jflow *flow);

/* Calls: jinja_call.c. */
struct mu_jargs mu_ji_args(struct mu_ji *j, const struct mu_jn *items);
struct mu_jv mu_ji_call(struct mu_ji *j, struct mu_jv callee, const struct mu_jargs *a);
bool mu_ji_arg(const struct mu_jargs *a, size_t i, const char *name, struct mu_jv *out); /* by place or name */
struct mu_jv mu_ji_want(struct mu_ji *j, const struct mu_jargs *a, size_t i, const char *name);
const struct mu_js *mu_ji_want_str(struct mu_ji *j, const struct mu_jargs *a, size_t i, const char *name);
int64_t mu_ji_int_or(struct mu_ji *j, const struct mu_jargs *a, size_t i, const char *name, int64_t fallback);
bool mu_ji_bool_or(struct mu_ji *j, const struct mu_jargs *a, size_t i, const char *name, bool fallback);
const struct mu_jfunc *mu_ji_global(const char *name, size_t len);
const struct mu_jfunc *mu_ji_filter(const char *name, size_t len);
struct mu_jv mu_ji_apply(struct mu_ji *j, const struct mu_jfunc *f, struct mu_jv v, const struct mu_jargs *a);
const struct mu_jtest *mu_ji_test(const char *name, size_t len);
const struct mu_jfunc *mu_jfunc_find(const struct mu_jfunc *table, size_t n, const char *name, size_t len);
extern const struct mu_jfunc mu_jfilters_text[], mu_jfilters_seq[];
extern const size_t mu_jfilters_text_n, mu_jfilters_seq_n;
const struct mu_jfunc *mu_ji_method(struct mu_jv self, const char *name, size_t len); /* NULL: none */
const struct mu_jfunc *mu_js_method(const char *name, size_t len);

/* Operators: jinja_ops.c. */
struct mu_jv mu_jv_binary(struct mu_ji *j, int op, struct mu_jv a, struct mu_jv b);
struct mu_jv mu_jv_negate(struct mu_ji *j, struct mu_jv a);
bool mu_jv_equal(struct mu_ji *j, struct mu_jv a, struct mu_jv b);
int mu_jv_order(struct mu_ji *j, struct mu_jv a, struct mu_jv b); /* < 0, 0, > 0; error where there is no order */
bool mu_jv_compare(struct mu_ji *j, int op, struct mu_jv a, struct mu_jv b);
bool mu_jv_contains(struct mu_ji *j, struct mu_jv in, struct mu_jv what);
struct mu_jv mu_jv_attr(struct mu_ji *j, struct mu_jv v, const struct mu_js *name);
struct mu_jv mu_jv_index(struct mu_ji *j, struct mu_jv v, struct mu_jv key);
struct mu_jv mu_jv_slice(struct mu_ji *j, struct mu_jv v, struct mu_jv start, struct mu_jv stop, struct mu_jv step);

/* Values: jinja_value.c. */
static inline struct mu_jv mu_jv_none(void)
{
    return (struct mu_jv){.kind = MU_JK_NONE};
}
static inline struct mu_jv mu_jv_bool(bool b)
{
    return (struct mu_jv){.kind = MU_JK_BOOL, .b = b};
}
static inline struct mu_jv mu_jv_int(int64_t i)
{
    return (struct mu_jv){.kind = MU_JK_INT, .i = i};
}
static inline struct mu_jv mu_jv_float(double f)
{
    return (struct mu_jv){.kind = MU_JK_FLOAT, .f = f};
}
static inline struct mu_jv mu_jv_list(struct mu_jl *l)
{
    return (struct mu_jv){.kind = MU_JK_LIST, .l = l};
}
static inline struct mu_jv mu_jv_undefined(const struct mu_js *name)
{
    return (struct mu_jv){.kind = MU_JK_UNDEFINED, .s = name};
}
static inline bool mu_jv_is_int(struct mu_jv v) /* bools are integers in Python */
{
    return v.kind == MU_JK_INT || v.kind == MU_JK_BOOL;
}
static inline int64_t mu_jv_as_int(struct mu_jv v)
{
    return v.kind == MU_JK_BOOL ? v.b : v.i;
}
static inline bool mu_jv_is_dict(struct mu_jv v)
{
    return v.kind == MU_JK_DICT || v.kind == MU_JK_NAMESPACE;
}
static inline bool mu_jv_is_seq(struct mu_jv v)
{
    return v.kind == MU_JK_LIST || v.kind == MU_JK_TUPLE;
}
const char *mu_jk_name(enum mu_jk kind); /* "str", "dict", … as error messages call them */
bool mu_jv_truth(struct mu_jv v);
int64_t mu_jv_length(struct mu_ji *j, struct mu_jv v);
_Noreturn void mu_ji_fail_undefined(struct mu_ji *j, struct mu_jv v);
struct mu_jv mu_jv_str(struct mu_ji *j, const char *p, size_t len);    /* copied */
struct mu_jv mu_jv_borrow(struct mu_ji *j, const char *p, size_t len); /* not copied */
struct mu_jv mu_jv_concat(struct mu_ji *j, const struct mu_js *a, const struct mu_js *b);
struct mu_jl *mu_jl_new(struct mu_ji *j, size_t cap);
void mu_jl_push(struct mu_ji *j, struct mu_jl *l, struct mu_jv v);
struct mu_jd *mu_jd_new(struct mu_ji *j, size_t cap);
struct mu_jv *mu_jd_find(struct mu_ji *j, struct mu_jd *d, struct mu_jv key); /* NULL: absent */
struct mu_jv *mu_jd_find_text(struct mu_ji *j, struct mu_jd *d, const char *key);
void mu_jd_put(struct mu_ji *j, struct mu_jd *d, struct mu_jv key, struct mu_jv val);
bool mu_jd_take(struct mu_ji *j, struct mu_jd *d, struct mu_jv key, struct mu_jv *val_out); /* out of it */
/* Everything that v gives when it is iterated; error where it cannot be. Valid until v changes. */
void mu_jv_iterate(struct mu_ji *j, struct mu_jv v, const struct mu_jv **items_out, size_t *n_out);
static inline bool mu_js_is(const struct mu_js *s, const char *text)
{
    size_t n = __builtin_strlen(text);
    return s->len == n && __builtin_memcmp(s->p, text, n) == 0;
}

/* Text: jinja_print.c, jinja_text.c, jinja_format.c. */
void mu_ji_write(struct mu_ji *j, const char *p, size_t len);
void mu_ji_puts(struct mu_ji *j, const char *text);
void mu_ji_fill(struct mu_ji *j, const char *p, size_t len, size_t times);
void mu_ji_put_cp(struct mu_ji *j, uint32_t cp);
struct mu_jv mu_ji_take(struct mu_ji *j, size_t mark);           /* the text written since out_len was mark */
void mu_jv_print(struct mu_ji *j, struct mu_jv v);               /* str() */
void mu_jv_repr(struct mu_ji *j, struct mu_jv v);                /* repr() */
const struct mu_js *mu_jv_text(struct mu_ji *j, struct mu_jv v); /* str(), without a copy of what is one */
struct mu_jv mu_jv_tojson(struct mu_ji *j, struct mu_jv v, const struct mu_jargs *a);
void mu_jv_put_float(struct mu_ji *j, double f);
struct mu_jv mu_jv_percent(struct mu_ji *j, const struct mu_js *format, struct mu_jv args); /* format % args */
struct mu_jv mu_js_format(struct mu_ji *j, const struct mu_js *format, const struct mu_jargs *a);

size_t mu_js_count(struct mu_ji *j, const struct mu_js *s);           /* code points */
size_t mu_js_offset(const struct mu_js *s, size_t from, size_t n_cp); /* byte offset n_cp code points after from */
uint32_t mu_js_at(const struct mu_js *s, size_t *at);                 /* code point at *at, which moves on */
size_t mu_js_find(const struct mu_js *s, size_t from, const struct mu_js *what); /* SIZE_MAX: not there */
bool mu_jc_space(uint32_t cp);                                                   /* Python's str.isspace */
uint32_t mu_jc_upper(struct mu_ji *j, uint32_t cp);
uint32_t mu_jc_lower(struct mu_ji *j, uint32_t cp);
bool mu_jc_alpha(struct mu_ji *j, uint32_t cp);
struct mu_jv mu_js_case(struct mu_ji *j, const struct mu_js *s, bool upper);
struct mu_jv mu_js_capitalize(struct mu_ji *j, const struct mu_js *s);
struct mu_jv mu_js_escape(struct mu_ji *j, const struct mu_js *s); /* for HTML */
/* which: 1 left, 2 right, 3 both; chars NULL: white space */
struct mu_jv mu_js_strip(struct mu_ji *j, const struct mu_js *s, const struct mu_js *chars, int which);
struct mu_jv mu_js_replace(struct mu_ji *j, const struct mu_js *s, const struct mu_js *old, const struct mu_js *with,
                           int64_t count); /* count < 0: all */
struct mu_jl *mu_js_lines(struct mu_ji *j, const struct mu_js *s, bool keep_ends);
struct mu_jv mu_js_pad(struct mu_ji *j, const struct mu_js *s, int64_t width, uint32_t fill, char align); /* < > ^ */

#endif
