/* Text to token ids and back, from a GGUF file's metadata: SentencePiece-style ("llama": scores, byte fallback;
 * "gemma4": the same with merges) and byte-level BPE ("gpt2": merges, pre-tokenizer patterns through PCRE2).
 * Tokenizers of Hugging Face folders become the same metadata: model/hf_tokenizer.h.
 *
 * Threads: a tokenizer is read-only after open; encode and decode may run in any number of threads (scratch is per
 * call). A streamer belongs to one stream. Cost: linear in the input, whatever it holds (n log n within one word of
 * n letters), and at most some fifty bytes of scratch for a byte of text.
 *
 * The ids are those of the models' own tokenizers. Text is normalised to NFC where the file asks for it
 * (tokenizer.ggml.normalizer.nfc), which llama.cpp does not do. */
#ifndef MU_MODEL_TOKENIZER_H
#define MU_MODEL_TOKENIZER_H

#include "model/gguf.h"

struct mu_tokenizer;

/* MU_EUNSUPPORTED names the tokenizer model or pre-tokenizer that is not known; MU_EFORMAT: malformed vocabulary.
 * The gguf must outlive it. */
enum mu_status mu_tokenizer_open(const struct mu_gguf *g, struct mu_tokenizer **tok_out, struct mu_err *err);
void mu_tokenizer_close(struct mu_tokenizer *t);

/* Whether ids mean the same in both: every id that both have stands for the same bytes, control tokens for the same text.
 * One may have more ids than the other, as where a larger model's vocabulary is padded. MU_EINVAL names the first id that
 * differs. */
enum mu_status mu_tokenizer_match(const struct mu_tokenizer *a, const struct mu_tokenizer *b, struct mu_err *err);

int mu_tokenizer_n_vocab(const struct mu_tokenizer *t);
int mu_tokenizer_bos(const struct mu_tokenizer *t);      /* -1: none */
int mu_tokenizer_eos(const struct mu_tokenizer *t);      /* -1: none */
bool mu_tokenizer_add_bos(const struct mu_tokenizer *t); /* whether a prompt starts with BOS */
bool mu_tokenizer_add_eos(const struct mu_tokenizer *t); /* whether a text that is embedded ends with EOS */
/* Whether generation ends at this id (eos, eot, eom, a Hugging Face folder's further ones, and the well-known
 * end-of-turn texts). */
bool mu_tokenizer_is_end(const struct mu_tokenizer *t, int id);

/* Appends nothing by itself (no BOS, no EOS). parse_special: special tokens in the text become their ids; else they
 * are plain text (user-defined added tokens are recognised either way). Any bytes are accepted, also invalid UTF-8;
 * MU_ELIMIT beyond 512 MiB, or where a pre-tokenizer pattern that the file itself carries takes too many steps. ids_out is freed with mu_free (NULL when 0 ids). */
enum mu_status mu_tokenizer_encode(const struct mu_tokenizer *t, const char *text, size_t len_bytes, bool parse_special,
                                   int32_t **ids_out, size_t *n_ids_out, struct mu_err *err);

/* A whole text as the model wants it when it is embedded: BOS where it wants one, the text, EOS where it wants one. At
 * most n_max ids (0: any number): the text is cut at its end and *cut_out (may be NULL) says so. */
enum mu_status mu_tokenizer_encode_whole(const struct mu_tokenizer *t, const char *text, size_t len_bytes,
                                         bool parse_special, size_t n_max, int32_t **ids_out, size_t *n_ids_out,
                                         bool *cut_out, struct mu_err *err);

/* The bytes of one token as a continuation (no leading space removed); control tokens give their text when
 * show_special, else nothing. Borrowed for the tokenizer's lifetime. Out-of-range ids give an empty string. */
struct mu_str mu_tokenizer_piece(const struct mu_tokenizer *t, int id, bool show_special);

/* Whole text of ids, as the reference's decode: for SentencePiece vocabularies that add a space prefix, the first
 * leading space is removed. NUL-terminated beyond len_out; freed with mu_free. */
enum mu_status mu_tokenizer_decode(const struct mu_tokenizer *t, const int32_t *ids, size_t n_ids, bool show_special,
                                   char **text_out, size_t *len_out, struct mu_err *err);

/* Incremental detokenizing: bytes of an unfinished UTF-8 character are held back until it is complete or cannot
 * become one (then U+FFFD, as for NUL). */
struct mu_streamer {
    const struct mu_tokenizer *tok;
    bool show_special;
    bool whole; /* the ids are a text from its beginning, as for mu_tokenizer_decode; off at first: a continuation */
    bool show_marks; /* of control tokens those that part thought and answer (model/thinking.h); off at first */
    unsigned char held[4];
    int n_held;
};
void mu_streamer_init(struct mu_streamer *s, const struct mu_tokenizer *t, bool show_special);
/* What may be shown after this token is appended to buf (a mu_free-able growing buffer: *buf, *len, *cap). MU_ENOMEM
 * only. */
enum mu_status mu_streamer_push(struct mu_streamer *s, int id, char **buf, size_t *len, size_t *cap);
/* At the end of the stream: held bytes become U+FFFD. */
enum mu_status mu_streamer_finish(struct mu_streamer *s, char **buf, size_t *len, size_t *cap);

#endif
