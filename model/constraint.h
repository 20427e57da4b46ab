/* Constrained output: only such tokens that the text stays, or becomes, what a JSON Schema, a regular expression or a
 * grammar describes. docs/structured-output.md says what users may ask for.
 *
 * Five objects, from the immutable to the busy:
 *
 *   grammar     what was asked for, compiled: one automaton over bytes. Read-only; any number of threads
 *   vocabulary  the tokens of a tokenizer as a trie of their bytes. Read-only; any number of threads
 *   masker      a grammar met a vocabulary: what is allowed where, worked out when first needed and kept within a
 *               bound of memory. One thread at a time
 *   constraint  one text in the making: where it stands in the grammar. Belongs to its masker's thread
 *   mask        ceil(n_vocab / 32) words, bit id % 32 of word id / 32 set where the id may come next
 *
 * A token is allowed exactly where all its bytes can be read and the text can still be finished; ids that end the text
 * where it may end. A constraint's state is a function of the ids it accepted: replaying them gives the same masks. Only
 * whether one ends in MU_ELIMIT may differ: what is remembered costs nothing, and is not there after a relaunch.
 *
 * Errors: MU_EFORMAT: the text of a grammar or schema is malformed; MU_EUNSUPPORTED names what cannot be honoured;
 * MU_EINVAL: nothing can satisfy it; MU_ELIMIT: too large, or (accept, mask) too ambiguous; MU_ENOMEM. */
#ifndef MU_MODEL_CONSTRAINT_H
#define MU_MODEL_CONSTRAINT_H

#include "model/tokenizer.h"

enum mu_constraint_kind {
    MU_CONSTRAINT_JSON = 1,    /* any JSON object; no text */
    MU_CONSTRAINT_JSON_SCHEMA, /* the text of a JSON Schema */
    MU_CONSTRAINT_REGEX,       /* a regular expression that the whole text matches */
    MU_CONSTRAINT_GBNF,        /* a grammar in llama.cpp's notation, from its rule root */
};

/* The longest text of a schema, an expression or a grammar. */
enum { MU_CONSTRAINT_TEXT_MAX = 1 << 20 };

struct mu_grammar;
struct mu_constraint_vocab;
struct mu_masker;
struct mu_constraint;

/* text is not kept. *g_out is set on success only. */
enum mu_status mu_grammar_compile(enum mu_constraint_kind kind, const char *text, size_t len_bytes,
                                  struct mu_grammar **g_out, struct mu_err *err);
void mu_grammar_free(struct mu_grammar *g); /* NULL is fine, as for the others */
/* Nodes of the automaton and bytes of memory. */
size_t mu_grammar_size(const struct mu_grammar *g, size_t *bytes_out);

/* Borrows the tokenizer until it is freed. */
enum mu_status mu_constraint_vocab_create(const struct mu_tokenizer *t, struct mu_constraint_vocab **v_out,
                                          struct mu_err *err);
void mu_constraint_vocab_free(struct mu_constraint_vocab *v);
size_t mu_constraint_vocab_bytes(const struct mu_constraint_vocab *v);

/* Borrows both until it is freed. max_bytes bounds what it keeps between calls (0: 64 MiB); a state of the texts in the
 * making that needs more gets more. */
enum mu_status mu_masker_create(const struct mu_grammar *g, const struct mu_constraint_vocab *v, size_t max_bytes,
                                struct mu_masker **m_out, struct mu_err *err);
void mu_masker_free(struct mu_masker *m); /* after its constraints */
size_t mu_masker_bytes(const struct mu_masker *m);

enum mu_status mu_constraint_create(struct mu_masker *m, struct mu_constraint **c_out, struct mu_err *err);
void mu_constraint_free(struct mu_constraint *c);

/* The text goes on with this id. One that is not allowed kills the constraint: that is no error. After an error the constraint is as before. */
enum mu_status mu_constraint_accept(struct mu_constraint *c, int id, struct mu_err *err);
/* words: mu_constraint_mask_words(vocabulary). A dead constraint allows nothing; after an end only ends. */
enum mu_status mu_constraint_mask(struct mu_constraint *c, uint32_t *words, struct mu_err *err);
size_t mu_constraint_mask_words(const struct mu_constraint_vocab *v);
bool mu_constraint_is_dead(const struct mu_constraint *c);
bool mu_constraint_may_end(const struct mu_constraint *c); /* the text is whole as it stands */

#endif
