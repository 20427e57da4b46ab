/* GGUF files, versions 2 and 3, little-endian, mapped read-only (the format: ggml's docs/gguf.md).
 *
 * A Hugging Face folder (config.json, *.safetensors) is opened as if it were such a file: the same keys, the same
 * tensor names, the same order of rows (model/hf.h). What that order asks for is not copied: a tensor may name the
 * places of its rows, and whoever reads them goes through mu_gguf_row or mu_gguf_rows.
 *
 * The reader trusts nothing: every count, length, offset, alignment and product is checked against the file before it
 * is used, and memory taken is bounded by the file's size. An error names the file, the offset, what was expected and
 * what was found. A model split into NAME-00001-of-000NN.gguf files is opened by any of its parts; all parts are
 * mapped and their tensors listed together.
 *
 * Lifetime: everything returned is borrowed from the mapping and valid until mu_gguf_close. Threads: read-only after
 * open. */
#ifndef MU_MODEL_GGUF_H
#define MU_MODEL_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/status.h"

enum mu_gguf_kind { /* the format's numbers */
                    MU_GGUF_U8,
                    MU_GGUF_I8,
                    MU_GGUF_U16,
                    MU_GGUF_I16,
                    MU_GGUF_U32,
                    MU_GGUF_I32,
                    MU_GGUF_F32,
                    MU_GGUF_BOOL,
                    MU_GGUF_STRING,
                    MU_GGUF_ARRAY,
                    MU_GGUF_U64,
                    MU_GGUF_I64,
                    MU_GGUF_F64
};
/* Bytes of one item of a scalar kind; 0 for strings, arrays and what is no kind. */
size_t mu_gguf_kind_bytes(uint32_t kind);

struct mu_str { /* not NUL-terminated; may hold any bytes */
    const char *p;
    size_t len;
};

struct mu_gguf_value {
    struct mu_str key;
    enum mu_gguf_kind kind;
    enum mu_gguf_kind item_kind;  /* of an array (never MU_GGUF_ARRAY: nested arrays are refused by name) */
    uint64_t n;                   /* items of an array; 1 otherwise */
    const uint8_t *data;          /* raw little-endian, unaligned; a string's bytes follow its u64 length */
    const struct mu_str *strings; /* arrays of strings: n of them */
    uint64_t offset;              /* of data in the file, for messages */
};

enum { MU_GGUF_MAX_DIMS = 4 };

/* MXFP4 rows whose blocks and scales lie apart, as Hugging Face's folders have them: value 2i of a block in the low half of its
 * byte i, value 2i + 1 in the high one. */
struct mu_gguf_apart {
    const uint8_t *blocks, *scales; /* of the first row of all */
    uint64_t n_there, n_here;       /* rows of an expert in the file and in this tensor */
    uint64_t first, step;           /* row r of an expert is row first + r · step there */
};

struct mu_gguf_tensor {
    struct mu_str name;
    uint32_t type; /* enum mu_type */
    int n_dim;
    uint64_t ne[MU_GGUF_MAX_DIMS]; /* ne[0] is the row length; unused ones are 1 */
    uint64_t n_row;                /* ne[1]*ne[2]*ne[3] */
    size_t row_bytes, bytes;
    const uint8_t *data; /* in the mapping; of row 0 */
    uint64_t offset;     /* of data in its file */
    int part;            /* which of the split files */
    /* Where rows do not follow each other from `data`: runs of run_rows rows each, row r in run
     * (run_skip + r) / run_rows. NULL: they do. Vectors always do. */
    const uint8_t *const *runs;
    uint64_t run_rows, run_skip;
    const struct mu_gguf_apart *apart;   /* not NULL: rows are put together, and only mu_gguf_rows has them */
    const struct mu_gguf_tensor *source; /* its rows are quantised from these when they are loaded; NULL: from none */
};

struct mu_gguf;

enum mu_status mu_gguf_open(const char *path, struct mu_gguf **gguf_out, struct mu_err *err);
void mu_gguf_close(struct mu_gguf *g); /* NULL is fine */
const char *mu_gguf_path(const struct mu_gguf *g);
/* A fingerprint of the files that are mapped: where they lie, their sizes, times and inodes; of what a reader made of a
 * folder its bytes. The same model opened again has the same one, unless a file was changed or put in another's place. */
uint64_t mu_gguf_identity(const struct mu_gguf *g);
uint64_t mu_gguf_file_bytes(const struct mu_gguf *g); /* all parts together */

size_t mu_gguf_n_value(const struct mu_gguf *g);
const struct mu_gguf_value *mu_gguf_value_at(const struct mu_gguf *g, size_t i);
const struct mu_gguf_value *mu_gguf_find(const struct mu_gguf *g, const char *key); /* NULL: absent */
size_t mu_gguf_n_tensor(const struct mu_gguf *g);
const struct mu_gguf_tensor *mu_gguf_tensor_at(const struct mu_gguf *g, size_t i);
const struct mu_gguf_tensor *mu_gguf_tensor(const struct mu_gguf *g, const char *name); /* NULL: absent */

/* Typed look-ups. Absent: *out = fallback, MU_OK. Present with another kind or out of range: MU_EFORMAT naming key,
 * file, offset, kinds. Integers of any width and sign are accepted where the value fits. Strings are copied out by
 * *_dup; others are borrowed. */
enum mu_status mu_gguf_get_u64(const struct mu_gguf *g, const char *key, uint64_t min, uint64_t max, uint64_t fallback,
                               uint64_t *out, struct mu_err *err);
enum mu_status mu_gguf_get_f32(const struct mu_gguf *g, const char *key, float fallback, float *out,
                               struct mu_err *err);
enum mu_status mu_gguf_get_bool(const struct mu_gguf *g, const char *key, bool fallback, bool *out, struct mu_err *err);
enum mu_status mu_gguf_get_str(const struct mu_gguf *g, const char *key, struct mu_str *out,
                               struct mu_err *err); /* absent: len 0, p NULL */
/* Item i of a numeric array value (kind already checked by the caller through item_kind). */
int64_t mu_gguf_item_i64(const struct mu_gguf_value *v, uint64_t i);
float mu_gguf_item_f32(const struct mu_gguf_value *v, uint64_t i);

/* "file 'x.gguf', offset 1234: …" for errors found later in a tensor's data. */
enum mu_status mu_gguf_tensor_fail(const struct mu_gguf *g, const struct mu_gguf_tensor *t, enum mu_status code,
                                   const char *what, struct mu_err *err);
/* As above of a metadata value: "file 'x.gguf', offset 99: key 'k': …", and of the file as a whole: "file 'x.gguf':
 * …". */
enum mu_status mu_gguf_value_fail(const struct mu_gguf *g, const struct mu_gguf_value *v, enum mu_status code,
                                  struct mu_err *err, const char *fmt, ...) __attribute__((format(printf, 5, 6)));
enum mu_status mu_gguf_fail(const struct mu_gguf *g, enum mu_status code, struct mu_err *err, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* A string of the file for a message: cut to buf, unprintable bytes as '?'. Returns buf. */
const char *mu_str_show(struct mu_str s, char *buf, size_t buf_bytes);
int mu_str_compare(struct mu_str a, struct mu_str b); /* by bytes, as memcmp; shorter first */
static inline bool mu_str_is(struct mu_str s, const char *text)
{
    return s.len == strlen(text) && (s.len == 0 || memcmp(s.p, text, s.len) == 0);
}
/* Row r of a tensor, as it lies in the file; of one without `apart`. */
static inline const uint8_t *mu_gguf_row(const struct mu_gguf_tensor *t, uint64_t r)
{
    if (!t->runs) return t->data + r * t->row_bytes;
    return t->runs[(t->run_skip + r) / t->run_rows] + (t->run_skip + r) % t->run_rows * t->row_bytes;
}
/* Rows [row0, row0 + n) one after another: where they lie like that, else copied to buf (n · row_bytes). */
const uint8_t *mu_gguf_rows(const struct mu_gguf_tensor *t, uint64_t row0, uint64_t n, uint8_t *buf);
/* Whether rows [row0, row0 + n) would be copied. */
bool mu_gguf_rows_scattered(const struct mu_gguf_tensor *t, uint64_t row0, uint64_t n);
/* Tells the system that these rows will be read soon. */
void mu_gguf_will_read_rows(const struct mu_gguf *g, const struct mu_gguf_tensor *t, uint64_t row0, uint64_t n);
/* Tells the system that a byte range of a tensor will be read soon. */
void mu_gguf_will_read(const struct mu_gguf *g, const void *data, size_t bytes);

#endif
