/* Hugging Face folders seen as GGUF files: config.json becomes keys, the tensors of *.safetensors appear under the
 * names and in the order of rows that the reference converter gives them, so that nothing behind the reader knows of
 * two kinds of models.
 *
 *   hf.c         which tensor is which, and where its rows lie      hf_files.c    which files there are
 *   hf_names.c   names of tensors, a table a family                 hf_config.c   config.json → keys
 *   safetensors.c, hf_json.c   reading files                        hf_tokenizer.h  the tokenizer's keys */
#ifndef MU_MODEL_HF_H
#define MU_MODEL_HF_H

#include "model/gguf.h"

/* Whether the path names a Hugging Face folder, or one of the files in it that stand for it (config.json,
 * *.safetensors, *.safetensors.index.json), or weights that only Python reads (refused by mu_hf_open). */
bool mu_hf_is_folder(const char *path);
/* Fills g, whose path is set and whose one part is empty. On failure g is left to mu_gguf_close. MU_EUNSUPPORTED names
 * what this build does not know of the folder's model. */
enum mu_status mu_hf_open(struct mu_gguf *g, struct mu_err *err);

#endif
