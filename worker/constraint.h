/* Constraints of the requests that run: for each what of its grammar its ids have read, and the mask of what may come
 * next. Owned by whoever samples: the leader, or `muster run` in its own process.
 *
 * A request is added when it is submitted and dropped when it is over. Nothing has to be told of ids: mu_constraints_allow
 * gets all that were emitted, reads those that are new, and after a relaunch or a preemption reads them again. So masks
 * are a function of (constraint, ids), like everything else that a replay must bring back.
 *
 * Grammars are compiled once for each text and shared by its requests; those that nobody uses are kept for a while (64,
 * and 256 MiB of what was worked out for them). The vocabulary's trie is made for the first request that needs it.
 *
 * Compiling a form can take a second at worst, and the first one opens the tokenizer: mu_constraints_begin has a thread
 * do that, so that a leader's steps go on meanwhile.
 *
 * Threads: one, and that thread, which sees nothing but what it makes. */
#ifndef MU_WORKER_CONSTRAINT_H
#define MU_WORKER_CONSTRAINT_H

#include "model/constraint.h"

enum { MU_CONSTRAINT_NONE = 0 };
struct mu_constraint_text { /* what a request asks for; text is borrowed */
    int kind;               /* MU_CONSTRAINT_NONE, or of enum mu_constraint_kind */
    const char *text;
    size_t len;
};

struct mu_constraints;

/* The gguf's tokenizer is opened when it is first needed; n_vocab is the model's, which may have more ids. The gguf must
 * outlive it. */
enum mu_status mu_constraints_create(const struct mu_gguf *g, int n_vocab, struct mu_constraints **c_out,
                                     struct mu_err *err);
void mu_constraints_destroy(struct mu_constraints *c); /* NULL is fine */

/* Before mu_constraints_add, by who must not wait: false: the form is being made; ask again when mu_constraints_made has
 * said that something is done. true: add will be quick, or as slow as it must be (no thread, too many at once), or fail. */
bool mu_constraints_begin(struct mu_constraints *c, const struct mu_constraint_text *text);
bool mu_constraints_made(struct mu_constraints *c);    /* whether forms have been made since the last call */
int mu_constraints_fd(const struct mu_constraints *c); /* readable then; -1: nothing was ever begun */

/* A request of kind MU_CONSTRAINT_NONE is not kept. Errors: those of mu_grammar_compile; MU_EINVAL: it is there. */
enum mu_status mu_constraints_add(struct mu_constraints *c, uint64_t request, const struct mu_constraint_text *text,
                                  struct mu_err *err);
void mu_constraints_drop(struct mu_constraints *c, uint64_t request); /* one that is not there is fine */
void mu_constraints_forget_all(struct mu_constraints *c);

/* Which ids may follow emitted[n] of the request: bit id % 8 of byte id / 8 of mask_out [(n_vocab + 7) / 8]. false: it
 * has no constraint, mask_out is as it was. Where the mask cannot be made (memory, a grammar too ambiguous) or the ids
 * are not of the grammar nothing is allowed, and mu_constraints_why says why. */
bool mu_constraints_allow(void *constraints, uint64_t request, const int32_t *emitted, size_t n, uint8_t *mask_out);
const char *mu_constraints_why(const struct mu_constraints *c, uint64_t request); /* NULL: nothing went wrong */

struct mu_constraints_counts {    /* for tests */
    size_t n_grammar, n_compiled; /* kept, ever */
};
void mu_constraints_count(const struct mu_constraints *c, struct mu_constraints_counts *counts_out);

#endif
