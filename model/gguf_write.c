/* Writing GGUF v3: metadata and tensor infos gather in memory, the data streams through after them.
 *
 * Invariant: `done` tensors have all their bytes and padding in the file; the next `given` bytes of tensor number
 * `done` are there. The header goes out with the first data (or at close), when all counts are known, so the file is
 * written front to back once. */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/bytes.h"
#include "base/io.h"
#include "kernels/types.h"
#include "model/gguf_part.h"
#include "model/gguf_write.h"

#define MAX_META_BYTES (1u << 30)

struct mu_gguf_writer {
    struct mu_file_writer *file; /* NULL: `memory` */
    struct mu_writer memory;
    struct mu_writer values, infos;
    uint64_t n_value, n_tensor;
    uint64_t *sizes; /* [n_tensor] bytes of each */
    size_t cap_tensor;
    uint64_t next_offset; /* in the data section, of the next tensor to be announced */
    uint64_t align;
    bool header_written;
    uint64_t done, given;
    struct mu_err failed; /* the first failure; code MU_OK: none */
};

enum mu_status mu_gguf_writer_open_memory(struct mu_gguf_writer **w_out, struct mu_err *err)
{
    struct mu_gguf_writer *w = mu_calloc(1, sizeof *w);
    if (!w) return mu_fail(err, MU_ENOMEM, "no memory to write a model file");
    mu_writer_init(&w->memory, MAX_META_BYTES);
    mu_writer_init(&w->values, MAX_META_BYTES);
    mu_writer_init(&w->infos, MAX_META_BYTES);
    w->align = 32;
    w->failed.rank = -1;
    *w_out = w;
    return MU_OK;
}

enum mu_status mu_gguf_writer_open(const char *path, struct mu_gguf_writer **w_out, struct mu_err *err)
{
    struct mu_gguf_writer *w;
    enum mu_status st = mu_gguf_writer_open_memory(&w, err);
    if (st != MU_OK) return st;
    st = mu_file_writer_open(path, &w->file, err);
    if (st != MU_OK) {
        mu_free(w);
        return st;
    }
    *w_out = w;
    return MU_OK;
}

/* The next bytes of the file. */
static enum mu_status put(struct mu_gguf_writer *w, const void *data, size_t len, struct mu_err *err)
{
    if (w->file) return mu_file_writer_write(w->file, data, len, err);
    mu_write_bytes(&w->memory, data, len);
    return w->memory.ok ? MU_OK
                        : mu_fail(err, MU_ENOMEM,
                                  "no memory for a model's vectors and metadata (more than %u bytes are "
                                  "refused)",
                                  MAX_META_BYTES);
}

static uint64_t position(const struct mu_gguf_writer *w)
{
    return w->file ? mu_file_writer_offset(w->file) : w->memory.len;
}

/* Nothing may be announced once data flows: the header is out. */
static bool may_announce(struct mu_gguf_writer *w, const char *what)
{
    if (w->failed.code == MU_OK && w->header_written)
        mu_fail(&w->failed, MU_EINVAL, "'%s' comes after the first tensor data; expected all keys and tensors before",
                what);
    return w->failed.code == MU_OK;
}

static bool put_key(struct mu_gguf_writer *w, const char *key, enum mu_gguf_kind kind)
{
    if (!may_announce(w, key)) return false;
    size_t len = strlen(key);
    mu_write_u64(&w->values, len);
    mu_write_bytes(&w->values, key, len);
    mu_write_u32(&w->values, kind);
    w->n_value++;
    return true;
}

void mu_gguf_put_scalar(struct mu_gguf_writer *w, const char *key, enum mu_gguf_kind kind, const void *data)
{
    if (put_key(w, key, kind)) mu_write_bytes(&w->values, data, mu_gguf_kind_bytes(kind));
}

void mu_gguf_put_array(struct mu_gguf_writer *w, const char *key, enum mu_gguf_kind item_kind, const void *data,
                       uint64_t n)
{
    size_t bytes;
    if (!mu_mul_size(n, mu_gguf_kind_bytes(item_kind), &bytes)) {
        if (w->failed.code == MU_OK) mu_fail(&w->failed, MU_ELIMIT, "key '%s': an array of %" PRIu64 " items", key, n);
        return;
    }
    if (!put_key(w, key, MU_GGUF_ARRAY)) return;
    mu_write_u32(&w->values, item_kind);
    mu_write_u64(&w->values, n);
    if (bytes) mu_write_bytes(&w->values, data, bytes);
}

void mu_gguf_put_u32(struct mu_gguf_writer *w, const char *key, uint32_t v)
{
    if (strcmp(key, "general.alignment") == 0) {
        if (w->n_tensor || v < 8 || v > 1u << 20 || (v & (v - 1))) {
            if (w->failed.code == MU_OK)
                mu_fail(&w->failed, MU_EINVAL,
                        "alignment %u: expected a power of two from 8 to 1048576, before the first tensor", v);
            return;
        }
        w->align = v;
    }
    mu_gguf_put_scalar(w, key, MU_GGUF_U32, &v);
}

void mu_gguf_put_f32(struct mu_gguf_writer *w, const char *key, float v)
{
    mu_gguf_put_scalar(w, key, MU_GGUF_F32, &v);
}

void mu_gguf_put_bool(struct mu_gguf_writer *w, const char *key, bool v)
{
    uint8_t byte = v;
    mu_gguf_put_scalar(w, key, MU_GGUF_BOOL, &byte);
}

void mu_gguf_put_str(struct mu_gguf_writer *w, const char *key, const char *v, size_t len)
{
    if (!put_key(w, key, MU_GGUF_STRING)) return;
    mu_write_u64(&w->values, len);
    if (len) mu_write_bytes(&w->values, v, len);
}

void mu_gguf_put_strs(struct mu_gguf_writer *w, const char *key, const struct mu_str *v, uint64_t n)
{
    if (!put_key(w, key, MU_GGUF_ARRAY)) return;
    mu_write_u32(&w->values, MU_GGUF_STRING);
    mu_write_u64(&w->values, n);
    for (uint64_t i = 0; i < n; i++) {
        mu_write_u64(&w->values, v[i].len);
        if (v[i].len) mu_write_bytes(&w->values, v[i].p, v[i].len);
    }
}

void mu_gguf_put_i32s(struct mu_gguf_writer *w, const char *key, const int32_t *v, uint64_t n)
{
    mu_gguf_put_array(w, key, MU_GGUF_I32, v, n);
}

void mu_gguf_put_f32s(struct mu_gguf_writer *w, const char *key, const float *v, uint64_t n)
{
    mu_gguf_put_array(w, key, MU_GGUF_F32, v, n);
}

/* Bytes of a tensor of that shape; false where the shape does not fit the type or is too large. */
static bool shape_bytes(uint32_t type, int n_dim, const uint64_t *ne, size_t *bytes_out)
{
    size_t bytes;
    if (n_dim < 1 || n_dim > MU_GGUF_MAX_DIMS || !mu_type_info(type) || !mu_type_row_bytes(type, ne[0], &bytes))
        return false;
    for (int i = 1; i < n_dim; i++)
        if (!mu_mul_size(bytes, ne[i], &bytes)) return false;
    *bytes_out = bytes;
    return bytes > 0 && bytes <= INT64_MAX;
}

void mu_gguf_put_tensor(struct mu_gguf_writer *w, const char *name, uint32_t type, int n_dim, const uint64_t *ne)
{
    size_t bytes, len = strlen(name);
    if (!may_announce(w, name)) return;
    if (!shape_bytes(type, n_dim, ne, &bytes)) {
        const struct mu_type_info *info = mu_type_info(type);
        mu_fail(&w->failed, MU_EINVAL, "tensor '%s': its shape (rows of %" PRIu64 " values) does not fit type %s", name,
                n_dim > 0 ? ne[0] : 0, info ? info->name : "unknown");
        return;
    }
    if (w->n_tensor == w->cap_tensor) {
        size_t cap = w->cap_tensor ? w->cap_tensor * 2 : 64;
        uint64_t *sizes = mu_reallocarray(w->sizes, cap, sizeof *sizes);
        if (!sizes) {
            mu_fail(&w->failed, MU_ENOMEM, "no memory for a table of %zu tensors", cap);
            return;
        }
        w->sizes = sizes;
        w->cap_tensor = cap;
    }
    w->sizes[w->n_tensor++] = bytes;
    mu_write_u64(&w->infos, len);
    mu_write_bytes(&w->infos, name, len);
    mu_write_u32(&w->infos, (uint32_t)n_dim);
    for (int i = 0; i < n_dim; i++) mu_write_u64(&w->infos, ne[i]);
    mu_write_u32(&w->infos, type);
    mu_write_u64(&w->infos, w->next_offset);
    w->next_offset = (w->next_offset + bytes + w->align - 1) & ~(w->align - 1);
}

static enum mu_status pad(struct mu_gguf_writer *w, struct mu_err *err)
{
    static const char zeros[4096];
    uint64_t n = -position(w) & (w->align - 1);
    enum mu_status st = MU_OK;
    while (n && st == MU_OK) {
        uint64_t now = n < sizeof zeros ? n : sizeof zeros;
        st = put(w, zeros, now, err);
        n -= now;
    }
    return st;
}

static enum mu_status write_header(struct mu_gguf_writer *w, struct mu_err *err)
{
    struct mu_writer head;
    enum mu_status st;
    if (!w->values.ok || !w->infos.ok)
        return mu_fail(err, MU_ENOMEM, "no memory for the file's metadata (more than %u bytes are refused)",
                       MAX_META_BYTES);
    w->header_written = true;
    mu_writer_init(&head, 64);
    mu_write_bytes(&head, "GGUF", 4);
    mu_write_u32(&head, 3);
    mu_write_u64(&head, w->n_tensor);
    mu_write_u64(&head, w->n_value);
    if (!head.ok) {
        st = mu_fail(err, MU_ENOMEM, "no memory for the file's header");
        goto fail;
    }
    MU_TRY(st, put(w, head.data, head.len, err), fail);
    if (w->values.len) MU_TRY(st, put(w, w->values.data, w->values.len, err), fail);
    if (w->infos.len) MU_TRY(st, put(w, w->infos.data, w->infos.len, err), fail);
    st = pad(w, err);
fail:
    mu_writer_free(&head);
    return st;
}

/* Remembers the first failure and tells it again to every later caller. */
static enum mu_status tell(struct mu_gguf_writer *w, enum mu_status st, struct mu_err *err)
{
    if (st != MU_OK && w->failed.code == MU_OK && err) w->failed = *err;
    if (w->failed.code == MU_OK) w->failed.code = st;
    if (w->failed.code != MU_OK && err) *err = w->failed;
    return w->failed.code;
}

enum mu_status mu_gguf_put_data(struct mu_gguf_writer *w, const void *data, size_t len, struct mu_err *err)
{
    const char *p = data;
    enum mu_status st = MU_OK;
    if (w->failed.code != MU_OK) return tell(w, MU_OK, err);
    if (!w->header_written) st = write_header(w, err);
    while (len && st == MU_OK) {
        if (w->done == w->n_tensor) {
            st = mu_fail(err, MU_EINVAL, "%zu bytes more than the announced tensors hold", len);
            break;
        }
        uint64_t room = w->sizes[w->done] - w->given, now = len < room ? len : room;
        MU_TRY(st, put(w, p, now, err), fail);
        p += now;
        len -= now;
        w->given += now;
        if (w->given == w->sizes[w->done]) {
            w->done++;
            w->given = 0;
            st = pad(w, err);
        }
    }
fail:
    return tell(w, st, err);
}

/* Whether everything that was announced is there. */
static enum mu_status finish(struct mu_gguf_writer *w, struct mu_err *err)
{
    enum mu_status st = w->failed.code;
    if (st == MU_OK && !w->header_written) st = tell(w, write_header(w, err), err);
    if (st == MU_OK && w->done != w->n_tensor) {
        st = mu_fail(err, MU_EINVAL, "expected the data of %" PRIu64 " tensors, found %" PRIu64, w->n_tensor, w->done);
        tell(w, st, err);
    }
    return st;
}

enum mu_status mu_gguf_writer_take(struct mu_gguf_writer *w, uint8_t **data_out, size_t *len_out, struct mu_err *err)
{
    enum mu_status st = finish(w, err);
    if (st == MU_OK) {
        *data_out = w->memory.data;
        *len_out = w->memory.len;
        w->memory.data = NULL;
        w->memory.len = w->memory.cap = 0;
    } else if (err) {
        *err = w->failed;
    }
    mu_gguf_writer_close(w, 0, NULL);
    return st;
}

enum mu_status mu_gguf_writer_close(struct mu_gguf_writer *w, int commit, struct mu_err *err)
{
    enum mu_status st = commit ? finish(w, err) : w->failed.code;
    int whole = commit && st == MU_OK;
    struct mu_err close_err = MU_ERR_INIT;
    enum mu_status closed = w->file ? mu_file_writer_close(w->file, whole, &close_err) : MU_OK;
    if (whole && closed != MU_OK) {
        st = closed;
        if (err) *err = close_err;
    } else if (commit && st != MU_OK && err) {
        *err = w->failed;
    }
    if (!commit) st = MU_OK;
    mu_writer_free(&w->memory);
    mu_writer_free(&w->values);
    mu_writer_free(&w->infos);
    mu_free(w->sizes);
    mu_free(w);
    return st;
}
