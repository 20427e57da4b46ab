/* Cutting text into the words that byte-level BPE merges within: the patterns of `tokenizer.ggml.pre`, through PCRE2.
 *
 * A pre-tokenizer is one or more patterns applied one after another: the first cuts the text into its matches and
 * the gaps between them, the next cuts each of those pieces as if it were the whole text, and so on. No byte is ever
 * dropped.
 *
 * Threads: the compiled patterns are read-only; a run carries its own match data. */
#ifndef MU_MODEL_PRETOKENIZER_H
#define MU_MODEL_PRETOKENIZER_H

#include "model/gguf.h"

struct mu_pre;     /* compiled patterns */
struct mu_pre_run; /* scratch of one thread */

/* name with p NULL: a file without the key; the patterns of "default". MU_EUNSUPPORTED: an unknown name. */
enum mu_status mu_pre_open(struct mu_str name, struct mu_pre **pre_out, struct mu_err *err);
/* Patterns that a file carries itself. MU_EUNSUPPORTED: one does not compile. A text at which they take too many steps
 * is refused (MU_ELIMIT) instead of taking for ever. */
enum mu_status mu_pre_open_patterns(const struct mu_str *patterns, uint64_t n, struct mu_pre **pre_out,
                                    struct mu_err *err);
void mu_pre_close(struct mu_pre *pre);
bool mu_pre_adds_bos(const struct mu_pre *pre); /* where the file does not say */
bool mu_pre_whole_words(
    const struct mu_pre *pre); /* a word that is a token is that token, whatever merging would make of it */

/* A known name that stands for exactly these patterns, and if there is one also for whole words or not; p NULL: none. */
struct mu_str mu_pre_name_of(const struct mu_str *patterns, int n, bool whole_words);
struct mu_str mu_pre_gpt2(void); /* the pattern that is built into byte-level pre-tokenizers */
/* The same pattern without an end that changes no result, as the patterns here are written. Borrows from p. */
struct mu_str mu_pre_plain(struct mu_str p);
/* All names, separated by spaces, one family after another: NULL behind the last. */
const char *mu_pretokenizer_names(int family);

enum mu_status mu_pre_run_open(const struct mu_pre *pre, struct mu_pre_run **run_out, struct mu_err *err);
void mu_pre_run_close(struct mu_pre_run *run);

/* Gets the words in order; they lie in the text, one after another, without gaps. Not MU_OK ends the cutting. */
typedef enum mu_status (*mu_pre_word)(void *ctx, const char *word, size_t len, struct mu_err *err);
/* text is valid UTF-8. */
enum mu_status mu_pre_cut(struct mu_pre_run *run, const char *text, size_t len, mu_pre_word word, void *ctx,
                          struct mu_err *err);

#endif
