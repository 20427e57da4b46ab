/* Inside constrained output: from expressions to the automaton. Only the grammar*.c, regex.c, json_schema*.c,
 * constraint*.c files include this.
 *
 *   front end (GBNF, regex, JSON Schema)  →  rules: a name and an expression each         (grammar_expr.c)
 *   expression                            →  a nondeterministic automaton over bytes      (grammar_nfa.c)
 *   that                                  →  a deterministic one, where a call of another rule counts as a letter
 *                                                                                         (grammar_dfa.c)
 *   all rules' automata                   →  one table, equal nodes merged: struct mu_grammar
 *                                                                                         (grammar_build.c)
 *
 * What is small is copied to where it is used, so that most of a grammar runs without a stack; what is recursive or
 * large is called. A call never reads nothing: where a rule may be empty, its callers also have a way around it, made
 * when their automata are. */
#ifndef MU_MODEL_GRAMMAR_PART_H
#define MU_MODEL_GRAMMAR_PART_H

#include "base/arena.h"
#include "model/constraint.h"

#define MU_MANY UINT32_MAX

/* Limits; each has its sentence. */
enum {
    MU_GR_RULES_MAX = 1 << 15,
    MU_GR_EXPRS_MAX = 1 << 20,
    MU_GR_DEPTH_MAX = 400,     /* expressions in expressions */
    MU_GR_NODES_MAX = 1 << 18, /* of the automaton */
    MU_GR_REPEAT_MAX = 1 << 16,
    MU_GR_WORK_MAX = 1 << 27, /* steps of compiling a form: a second or so */
};

struct mu_range { /* code points, both ends included */
    uint32_t lo, hi;
};

enum mu_ex_kind {
    MU_EX_BYTES,
    MU_EX_CLASS,  /* one character of a set */
    MU_EX_SEQ,    /* of none: the empty text */
    MU_EX_ALT,    /* of none: nothing at all */
    MU_EX_REPEAT, /* kids[0], min to max times */
    MU_EX_RULE,
    MU_EX_BOTH,     /* texts that are kids[0] and kids[1]; neither may call a rule that is not copied */
    MU_EX_BUT,      /* texts that are kids[0] and not kids[1]; the same */
    MU_EX_FIELDS,   /* kids[0] between any of kids[1…] in their order, those required always; see mu_ex_fields */
    MU_EX_MULTIPLE, /* decimal digits of a number that min divides */
    MU_EX_FRAMED,   /* kids[0] without its bytes MU_FRAME_BEGIN, MU_FRAME_END; see regex.c */
};

struct mu_ex {
    enum mu_ex_kind kind;
    uint32_t n; /* bytes, ranges, kids; of RULE: its number */
    uint32_t min, max;
    uint32_t depth;
    union {
        const char *bytes;
        const struct mu_range *ranges; /* ascending, disjoint */
        const struct mu_ex *const *kids;
    };
    const bool *required; /* FIELDS [n] */
    bool last_repeats;    /* FIELDS */
};

#define MU_FRAME_BEGIN "\xFE"
#define MU_FRAME_END   "\xFF"

struct mu_rule {
    const char *name;       /* for messages; "" where a front end made it */
    const struct mu_ex *ex; /* NULL: not defined */
    bool called;            /* never copied, however small */
};

/* A grammar in the making. Constructors return NULL when something failed (then `st` says what, and err) and take NULL
 * for an answer of another, so that front ends need not look at each. */
struct mu_gb {
    struct mu_arena *arena;
    struct mu_rule *rules;
    uint32_t n_rule, cap_rule, n_ex;
    uint32_t root;
    uint64_t work; /* steps so far */
    enum mu_status st;
    struct mu_err *err;
};

enum mu_status mu_gb_open(struct mu_gb *b, struct mu_err *err);
void mu_gb_close(struct mu_gb *b);
/* The first failure is kept. */
#define mu_gb_fail(b, code, ...) ((b)->st != MU_OK ? (b)->st : ((b)->st = mu_fail((b)->err, (code), __VA_ARGS__)))
/* Steps that were or will be made; false: these are too many, or something failed before. Whatever may take more than
 * its text is long is counted, so that no form keeps its thread. */
bool mu_gb_work(struct mu_gb *b, uint64_t steps);
void *mu_gb_alloc(struct mu_gb *b, size_t n, size_t size);
uint32_t mu_gb_rule(struct mu_gb *b, const char *name); /* its number; MU_MANY on failure */
void mu_gb_define(struct mu_gb *b, uint32_t rule, const struct mu_ex *ex);

/* grammar_expr.c. Bytes, ranges and arrays of kids are copied. */
const struct mu_ex *mu_ex_bytes(struct mu_gb *b, const char *p, size_t n);
const struct mu_ex *mu_ex_text(struct mu_gb *b, const char *text);
/* Ascending, disjoint. No text holds U+0000: a set that has it loses it, and one of nothing else fails. */
const struct mu_ex *mu_ex_class(struct mu_gb *b, const struct mu_range *ranges, uint32_t n);
const struct mu_ex *mu_ex_list(struct mu_gb *b, enum mu_ex_kind kind, const struct mu_ex *const *kids, uint32_t n);
const struct mu_ex *mu_ex_repeat(struct mu_gb *b, const struct mu_ex *kid, uint32_t min, uint32_t max);
const struct mu_ex *mu_ex_rule(struct mu_gb *b, uint32_t rule);
/* kids[0] is what stands between two of the others. last_repeats: the last may come any number of times. */
const struct mu_ex *mu_ex_fields(struct mu_gb *b, const struct mu_ex *const *kids, uint32_t n, const bool *required,
                                 bool last_repeats);
const struct mu_ex *mu_ex_multiple(struct mu_gb *b, uint32_t of);
struct mu_items { /* a list that grows, in the arena */
    const struct mu_ex **p;
    uint32_t n, cap;
};
void mu_items_add(struct mu_gb *b, struct mu_items *s, const struct mu_ex *ex); /* NULL is not added */
#define MU_SEQ(b, ...) mu_ex_list(b, MU_EX_SEQ, MU_KIDS(__VA_ARGS__))
#define MU_ALT(b, ...) mu_ex_list(b, MU_EX_ALT, MU_KIDS(__VA_ARGS__))
#define MU_KIDS(...)                            \
    (const struct mu_ex *const[]){__VA_ARGS__}, \
        sizeof((const struct mu_ex *const[]){__VA_ARGS__}) / sizeof(const struct mu_ex *)
static inline const struct mu_ex *mu_ex_both(struct mu_gb *b, const struct mu_ex *x, const struct mu_ex *y)
{
    return mu_ex_list(b, MU_EX_BOTH, MU_KIDS(x, y));
}
static inline const struct mu_ex *mu_ex_but(struct mu_gb *b, const struct mu_ex *x, const struct mu_ex *y)
{
    return mu_ex_list(b, MU_EX_BUT, MU_KIDS(x, y));
}

/* Sets of characters (grammar_class.c). A set grows by ranges in any order and is then put in order. */
struct mu_set {
    struct mu_range *r;
    uint32_t n, cap;
};
void mu_set_add(struct mu_gb *b, struct mu_set *s, uint32_t lo, uint32_t hi);
void mu_set_sort(struct mu_set *s);                    /* ascending, disjoint, without surrogates */
void mu_set_invert(struct mu_gb *b, struct mu_set *s); /* of a sorted one */
void mu_set_common(struct mu_gb *b, const struct mu_set *x, const struct mu_set *y, struct mu_set *out); /* sorted */
const struct mu_ex *mu_set_ex(struct mu_gb *b, const struct mu_set *s);
/* Sequences of byte ranges that are the UTF-8 of the code points lo…hi: calls seq for each. */
struct mu_byte_range {
    uint8_t lo, hi;
};
bool mu_utf8_ranges(uint32_t lo, uint32_t hi, bool (*seq)(void *ctx, const struct mu_byte_range *r, int n), void *ctx);

/* Automata. An edge reads a byte of lo…hi, or (rule != MU_MANY) what that rule makes. In a deterministic one the edges
 * of a node are ordered: bytes ascending and disjoint, then calls ascending, each rule once. */
struct mu_edge {
    uint32_t to, rule;
    uint8_t lo, hi;
};
struct mu_dfa { /* node 0 is the start; n_node 0: no text at all */
    uint32_t n_node, n_edge;
    uint32_t *first; /* [n_node + 1] */
    struct mu_edge *edges;
    bool *final; /* [n_node] */
};
void mu_dfa_free(struct mu_dfa *d);

/* grammar_nfa.c: what stands behind a rule's number while automata are made. */
struct mu_rule_info {
    struct mu_dfa dfa;
    bool copied;   /* to where it is used, not called */
    bool done;     /* dfa is there */
    bool empty;    /* it may be the empty text */
    bool possible; /* some text is it */
};
/* The deterministic automaton of an expression. */
enum mu_status mu_ex_dfa(struct mu_gb *b, const struct mu_rule_info *rules, const struct mu_ex *ex, struct mu_dfa *out);

/* grammar_dfa.c */
enum { MU_NFA_EPS = -1 };
struct mu_nfa_edge {
    uint32_t next; /* of the same node, MU_MANY: none */
    uint32_t to, rule;
    int16_t lo, hi; /* lo MU_NFA_EPS: reads nothing */
};
struct mu_nfa {
    uint32_t *head; /* [n_node] first edge */
    struct mu_nfa_edge *edges;
    uint32_t n_node, cap_node, n_edge, cap_edge;
};
enum mu_status mu_dfa_of_nfa(struct mu_gb *b, const struct mu_nfa *nfa, uint32_t start, uint32_t end,
                             struct mu_dfa *out);
/* Both, or the first but not the second. Neither calls rules. */
enum mu_status mu_dfa_combine(struct mu_gb *b, const struct mu_dfa *x, const struct mu_dfa *y, bool but,
                              struct mu_dfa *out);
/* Drops nodes that lead to no end or are not reached. */
enum mu_status mu_dfa_trim(struct mu_gb *b, struct mu_dfa *d);

/* grammar_refine.c: classes of nodes that no text of at most `rounds` letters tells apart (MU_MANY: none at all).
 * class_out [n_node], numbered from 0. */
enum mu_status mu_dfa_classes(const struct mu_dfa *d, uint32_t rounds, uint32_t *class_out, uint32_t *n_class_out,
                              struct mu_err *err);

/* The whole grammar. Two nodes more than the automaton has stand for what no rule contains: the end of the text, and,
 * where a state is looked at without the texts around it, that those would have to go on. */
struct mu_grammar {
    struct mu_dfa dfa; /* all rules' nodes; the last two are MU_GR_ACCEPT and MU_GR_POP below */
    uint32_t n_rule;
    uint32_t *start; /* [n_rule] node */
    uint32_t *rank;  /* [n_rule] a rule that another's start calls has a greater one */
    uint8_t byte_class[256];
    uint8_t class_byte[256]; /* one byte of each class */
    uint32_t n_byte_class;
    uint32_t root;
    size_t bytes;
};
static inline uint32_t mu_gr_accept(const struct mu_grammar *g)
{
    return g->dfa.n_node - 2;
}
static inline uint32_t mu_gr_pop(const struct mu_grammar *g)
{
    return g->dfa.n_node - 1;
}
enum mu_status mu_gb_build(struct mu_gb *b, struct mu_grammar **g_out);

/* Front ends: they define b->root. */
void mu_gbnf_parse(struct mu_gb *b, const char *text, size_t len);
/* encode: how one character of a set is written (plain: as it is). Whole: the text matches; else it holds a match. */
typedef const struct mu_ex *(*mu_regex_encode)(struct mu_gb *b, const struct mu_set *s);
const struct mu_ex *mu_regex_parse(struct mu_gb *b, const char *text, size_t len, bool whole, mu_regex_encode encode);
void mu_json_schema_parse(struct mu_gb *b, const char *text, size_t len);

/* grammar_json.c: what JSON is made of. */
enum { MU_JSON_DIGITS_MAX = 18 }; /* of a number, before the point and behind it */
struct mu_json_rules {
    uint32_t space, string, number, integer, value, object, array;
};
void mu_json_rules_open(struct mu_gb *b, struct mu_json_rules *j);
/* A character of a set, written in the one way that has an escape only where there must be one. */
const struct mu_ex *mu_json_encode(struct mu_gb *b, const struct mu_set *s);
const struct mu_ex *mu_json_text(struct mu_gb *b, const char *p, size_t n); /* a string, so written, with its quotes */
const struct mu_ex *mu_json_any_char(struct mu_gb *b, bool plain);          /* plain: so written */
const struct mu_ex *mu_json_comma(struct mu_gb *b, const struct mu_json_rules *j);
const struct mu_ex *mu_json_colon(struct mu_gb *b);
/* "{}" or "[]" and what is inside, with white space. */
const struct mu_ex *mu_json_list(struct mu_gb *b, const struct mu_json_rules *j, const char *brackets,
                                 const struct mu_ex *inside);
/* min to max items with commas between them. */
const struct mu_ex *mu_json_many(struct mu_gb *b, const struct mu_json_rules *j, const struct mu_ex *item, uint32_t min,
                                 uint32_t max);
const struct mu_ex *mu_json_number(struct mu_gb *b, bool integer, uint32_t fraction_max, bool exponent);

#endif
