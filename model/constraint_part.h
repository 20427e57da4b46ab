/* Inside constrained output: states, the trie of tokens, masks. Only the constraint*.c files include this. */
#ifndef MU_MODEL_CONSTRAINT_PART_H
#define MU_MODEL_CONSTRAINT_PART_H

#include "model/grammar_part.h"

/* ---- constraint_vocab.c: tokens as a trie of their bytes, its nodes in the order of a walk (children after their
 * parent, by byte). Ids without bytes (control tokens) and ids that end a text are not in it. ---- */
struct mu_trie_node {
    uint32_t end;    /* the first node behind its subtree */
    uint32_t parent; /* node 0 is the root */
    int32_t id;      /* token that ends here, -1: none */
    uint16_t depth;
    uint8_t byte;
};
/* Plain text: whole characters, none of them a control character, '"' or '\\'; at most MU_PLAIN_MAX of them. */
enum { MU_PLAIN_MAX = 64 };
/* Kinds of bytes: 0-9, a-f, g-z, A-F, G-Z, each sign for itself, and all others. */
enum { MU_KIND_OTHER = 63 };
struct mu_trie_below { /* of a node's subtree, its own byte included */
    uint64_t kinds;    /* of all its bytes: bit by kind */
    uint32_t before;   /* tokens in front of it, in the order of the walk: its own are order[before …] to its end's */
    uint32_t height;   /* bytes of its longest way down */
};
/* Tokens of a sort in two parts: those that are known by their length, and a trie of those that are to be walked. What is
 * in neither cannot come. */
struct mu_sort {
    uint64_t kinds, out;        /* of what it was made (mu_masker); 0: not in use */
    uint32_t n_asked;           /* how often it was asked for: it is made when that pays */
    uint32_t *mask;             /* [n_word] the first part */
    int32_t *ids;               /* by length */
    uint32_t upto[257];         /* ids[0 … upto[k]) are at most k long; upto[255]: all */
    struct mu_trie_node *nodes; /* of the second part; its node 0 is the root */
    uint32_t *node_of;          /* [n_node] what they are in the vocabulary's trie */
    uint32_t n_node;
};
struct mu_constraint_vocab {
    const struct mu_tokenizer *tok;
    int n_vocab;
    uint32_t n_node, depth_max;
    struct mu_trie_node *nodes;
    struct mu_trie_below *below; /* [n_node + 1] */
    int32_t *order;              /* [n_order] ids */
    uint32_t n_order;
    uint8_t kind_of[256];
    struct mu_sort plain_text; /* tokens of plain text by characters; and all others */
    uint8_t *length;           /* [n_vocab] bytes, at most 255; 0: not in the trie */
    uint64_t *kinds;           /* [n_vocab] of its bytes; all where it has none */
    int32_t *same;             /* [n_vocab] another id with the same bytes, -1: no more */
    int32_t *ends;             /* ids that end a text */
    uint32_t n_end;
};

/* known[n_vocab]: how long a token of the first part is, at most 254; MU_SORT_WALK: it is of the second; MU_SORT_NOT: of
 * neither. The caller has set kinds and out. */
enum { MU_SORT_WALK = 254, MU_SORT_NOT = 255 };
enum mu_status mu_sort_make(const struct mu_constraint_vocab *v, const uint8_t *known, struct mu_sort *s,
                            struct mu_err *err);
void mu_sort_free(struct mu_sort *s);
size_t mu_sort_bytes(const struct mu_constraint_vocab *v, const struct mu_sort *s);

/* ---- constraint_state.c: where a text may stand in a grammar ----
 *
 * A place is a node of the automaton and a context: where it goes on when the rule is finished, itself a set of places.
 * A state is the set of all places that the bytes so far may have led to. Contexts and states are kept once each, by
 * content, so a state's number stands for all that may follow, and what a byte makes of it is remembered: the states
 * are a deterministic automaton that is made while it is walked.
 *
 * A context holds what all callers of a rule at one place of the text wait for, so the number of places grows with the
 * depth of a text and not with the number of ways to read it (Earley, CACM 1970). A call after which its rule ends
 * leaves no context behind, so lists that recurse at their ends do not grow either. */
struct mu_place {
    uint32_t node, ctx;
};
struct mu_ctx {
    uint32_t at, n; /* places, of the pool */
};
enum { MU_STATE_DEAD = 0, MU_CTX_ROOT = 0, MU_CTX_BOTTOM = 1 };
#define MU_STATE_FAIL    UINT32_MAX
#define MU_STATE_UNKNOWN (UINT32_MAX - 1)
struct mu_state {
    uint32_t at, n; /* places, of the pool, ascending */
    uint32_t all_at,
        all_n;          /* with what they call: places from which a byte can be read; all_at MU_MANY: not yet known */
    uint32_t row;       /* of next, MU_MANY: none */
    bool accepts, pops; /* a place is the grammar's end, or the bottom's */
    bool goes_on;       /* there is another place */
    /* What it reads, by kinds of bytes (mu_constraint_vocab.kind_of), where somebody asked (mu_masker): kinds of which all
     * bytes lead to one state, run_to; and all kinds of which it reads some byte. */
    bool looked_at;
    uint32_t run_to;
    uint32_t
        plain_to; /* where any plain character leads; MU_STATE_DEAD: not to one state; MU_STATE_UNKNOWN: nobody asked */
    uint64_t run_kinds, reads;
};
struct mu_table { /* numbers by content: open addressing, number + 1, 0: free */
    uint32_t *slots, n_slot, n;
};
struct mu_call {
    uint32_t rule, rank;
    struct mu_place back; /* where it leads */
};
struct mu_states {
    const struct mu_grammar *g;
    struct mu_place *pool;
    uint32_t n_pool, cap_pool;
    struct mu_ctx *ctxs;
    uint32_t n_ctx, cap_ctx;
    struct mu_state *states;
    uint32_t n_state, cap_state;
    uint32_t *rows, n_row, cap_row; /* [n_byte_class] each */
    struct mu_table ctx_table, state_table;
    struct mu_place *list, *back; /* scratch of a step */
    struct mu_call *calls;
    uint32_t n_list, n_call;
    uint64_t *seen, seen_round; /* places of list by hash */
    size_t bytes, bytes_max;    /* over the second a step fails */
    uint64_t n_work;            /* places looked at for steps that were not remembered, in one call */
    enum mu_status st;
    struct mu_err *err;
};
enum mu_status mu_states_open(struct mu_states *s, const struct mu_grammar *g, struct mu_err *err);
void mu_states_close(struct mu_states *s);
/* Numbers of states; MU_STATE_FAIL: s->st says why, and s->err (set by the caller before) how. */
uint32_t mu_states_start(struct mu_states *s);
uint32_t mu_states_local(struct mu_states *s,
                         uint32_t node); /* there, with nothing known about what follows its rule */
uint32_t mu_states_step(struct mu_states *s, uint32_t state, uint8_t byte);
static inline uint32_t mu_states_next(struct mu_states *s, uint32_t state, uint8_t byte)
{
    uint32_t row = s->states[state].row;
    if (row != MU_MANY) {
        uint32_t next = s->rows[(size_t)row * s->g->n_byte_class + s->g->byte_class[byte]];
        if (next != MU_STATE_UNKNOWN) return next;
    }
    return mu_states_step(s, state, byte);
}
/* Forgets all but these states, whose numbers become new ones. On failure everything is as before. */
enum mu_status mu_states_keep(struct mu_states *s, uint32_t *const *live, uint32_t n, struct mu_err *err);

/* ---- constraint_mask.c ---- */
struct mu_span { /* of trie nodes */
    uint32_t from, to;
};
/* What is allowed at a node of the automaton, whatever its context: tokens that are read within the rule; and the parts
 * of the trie where that depends on what follows the rule. */
struct mu_local {
    uint32_t *words; /* [n_word], or NULL and a list of ids instead */
    int32_t *ids;
    struct mu_span *spans;
    uint32_t n_id, n_span;
    size_t bytes;
};
struct mu_kept_mask {
    uint32_t state; /* MU_STATE_DEAD: free */
    uint32_t *words;
};
enum { MU_SORTS = 4 };
struct mu_masker {
    const struct mu_grammar *g;
    const struct mu_constraint_vocab *v;
    struct mu_states states;
    struct mu_constraint *constraints; /* a list */
    size_t n_word, max_bytes, next_collect;
    uint32_t *class_of, n_class; /* [nodes] of those that no token tells apart */
    struct mu_local **locals;    /* [n_class] */
    size_t local_bytes;
    struct mu_kept_mask *kept; /* by number of state */
    uint32_t n_kept;
    uint32_t *scratch;              /* [n_word] */
    struct mu_sort sorts[MU_SORTS]; /* tokens by what they are to runs of certain kinds */
    uint32_t n_sort;                /* ever */
    uint32_t *path, *path_node;     /* [depth_max + 1] states of trie nodes by depth, and whose they are */
    uint32_t *above;                /* [depth_max + 1] */
    uint64_t n_visit;
};
struct mu_constraint {
    struct mu_masker *m;
    struct mu_constraint *prev, *next;
    uint32_t state;
    bool ended;
};
static inline void mu_mask_allow(uint32_t *words, int32_t id)
{
    words[(uint32_t)id / 32] |= 1u << ((uint32_t)id % 32);
}
enum mu_status mu_masker_mask(struct mu_masker *m, uint32_t state, uint32_t *words, struct mu_err *err);
enum mu_status mu_masker_collect(struct mu_masker *m, struct mu_err *err); /* where memory has grown over its bound */

/* ---- constraint_run.c ---- */
/* The sort of tokens that fits a state, with those that are known put into the empty words: of all others its trie has
 * what is to be walked. NULL: no sort fits, words are as they were. */
enum mu_status mu_sort_find(struct mu_masker *m, uint32_t state, uint32_t *words, const struct mu_sort **sort_out,
                            struct mu_err *err);
/* Whether all of the subtree of the vocabulary's node i can be read from `above`, the state above it, within its rule, as far
 * as that is cheap to tell. -1: a failure. */
int mu_run_takes_all(struct mu_masker *m, uint32_t above, uint32_t i);

#endif
