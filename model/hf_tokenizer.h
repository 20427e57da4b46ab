/* The tokenizer of a Hugging Face folder, said in GGUF's keys: reads tokenizer.json (or a SentencePiece
 * tokenizer.model), tokenizer_config.json, special_tokens_map.json, generation_config.json, config.json,
 * chat_template.jinja and chat_template.json, and puts the tokenizer.* keys that the reference converter writes, so
 * that everything behind (mu_tokenizer_open, templates) knows one form only.
 *
 * What GGUF has no key for goes into keys of our own, each only where it says something:
 *   muster.tokenizer.patterns       [str]  the pre-tokenizer's patterns, in PCRE2's spelling, where no known
 *                                          tokenizer.ggml.pre means exactly them
 *   muster.tokenizer.whole_words    bool   a word that is a token is that token, whatever merging would make of it
 *   muster.tokenizer.by_merges      bool   SentencePiece's kind, merged by tokenizer.ggml.merges instead of by scores
 *   muster.tokenizer.end_ids        [i32]  further tokens at which generation ends
 *   muster.tokenizer.strip_left,
 *   muster.tokenizer.strip_right    [i32]  added tokens that take the white space before, after them (may be empty)
 *   muster.tokenizer.second_pass    [i32]  added tokens that are looked for in what the others have left
 *   muster.tokenizer.first_space    bool   the space prefix goes before the text only, not behind special tokens
 *   muster.tokenizer.one_space      bool   … and not before a text that begins with a space
 *   muster.tokenizer.each_unknown   bool   each character that is unknown is a token, not each row of them
 *
 * Byte-level BPE and BPE with byte fallback (SentencePiece's kind) are understood; everything else is refused by name
 * with MU_EUNSUPPORTED. Memory is bounded by the files' sizes and n_vocab. Threads: any. */
#ifndef MU_MODEL_HF_TOKENIZER_H
#define MU_MODEL_HF_TOKENIZER_H

#include "model/gguf_write.h"

enum { MU_HF_VOCAB_MAX = 1 << 24 };

/* n_vocab: rows of the embedding; the vocabulary is filled up to it with [PADn], and added tokens beyond it are left
 * out. 0: as many as the tokenizer has. The caller has checked it against the file. On failure some keys may be in w
 * already. MU_ENOENT: the folder has no tokenizer. */
enum mu_status mu_hf_tokenizer_put(const char *folder, struct mu_gguf_writer *w, int n_vocab, struct mu_err *err);

#endif
