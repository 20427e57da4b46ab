/* Writing GGUF v3 files: metadata, then tensor infos, then data, streamed in order through base/io's all-or-nothing
 * file writer. */
#ifndef MU_MODEL_GGUF_WRITE_H
#define MU_MODEL_GGUF_WRITE_H

#include "model/gguf.h"

struct mu_gguf_writer;

enum mu_status mu_gguf_writer_open(const char *path, struct mu_gguf_writer **w_out, struct mu_err *err);
/* The file goes to memory instead: mu_gguf_writer_take closes the writer and gives its bytes, freed with mu_free. */
enum mu_status mu_gguf_writer_open_memory(struct mu_gguf_writer **w_out, struct mu_err *err);
enum mu_status mu_gguf_writer_take(struct mu_gguf_writer *w, uint8_t **data_out, size_t *len_out, struct mu_err *err);
/* Metadata, any order, before the first tensor data. Failures are remembered and told by close. general.alignment is
 * obeyed where it is put (as u32). Keys and tensors must be unique: the reader refuses twins, the writer does not
 * look for them. */
void mu_gguf_put_u32(struct mu_gguf_writer *w, const char *key, uint32_t v);
void mu_gguf_put_f32(struct mu_gguf_writer *w, const char *key, float v);
void mu_gguf_put_bool(struct mu_gguf_writer *w, const char *key, bool v);
void mu_gguf_put_str(struct mu_gguf_writer *w, const char *key, const char *v, size_t len);
void mu_gguf_put_strs(struct mu_gguf_writer *w, const char *key, const struct mu_str *v, uint64_t n);
void mu_gguf_put_i32s(struct mu_gguf_writer *w, const char *key, const int32_t *v, uint64_t n);
void mu_gguf_put_f32s(struct mu_gguf_writer *w, const char *key, const float *v, uint64_t n);
/* Any other kind: `data` is the value's little-endian bytes (n items one after another for an array). Neither strings
 * nor arrays of them. */
void mu_gguf_put_scalar(struct mu_gguf_writer *w, const char *key, enum mu_gguf_kind kind, const void *data);
void mu_gguf_put_array(struct mu_gguf_writer *w, const char *key, enum mu_gguf_kind item_kind, const void *data,
                       uint64_t n);
/* Announces a tensor; data follows in the same order through mu_gguf_put_data, exactly as many bytes as its shape
 * needs. */
void mu_gguf_put_tensor(struct mu_gguf_writer *w, const char *name, uint32_t type, int n_dim, const uint64_t *ne);
enum mu_status mu_gguf_put_data(struct mu_gguf_writer *w, const void *data, size_t len, struct mu_err *err);
/* commit 0 removes what was written. Frees w always. */
enum mu_status mu_gguf_writer_close(struct mu_gguf_writer *w, int commit, struct mu_err *err);

#endif
