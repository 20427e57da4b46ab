/* Inside the GGUF reader: one mapped file. A model is one part, or several split ones.
 *
 * gguf.c maps parts and joins them, gguf_parse.c reads the header, metadata and tensor table of one, gguf_sniff.c
 * says what a file is that is no GGUF, gguf_get.c looks values up, gguf_ollama.c knows that program's names. safetensors.c and hf.c make parts of a Hugging Face
 * folder: part 0 is a GGUF file written to memory, the others are the mapped .safetensors files. Nothing else includes
 * this header. */
#ifndef MU_MODEL_GGUF_PART_H
#define MU_MODEL_GGUF_PART_H

#include <inttypes.h>

#include "model/gguf.h"

enum { MU_GGUF_SHOWN = 160, MU_GGUF_NAME_SHOWN = 72 };

struct mu_gguf_part {
    char *path;
    char shown[MU_GGUF_SHOWN]; /* the path for messages: its end where it is long, nothing unprintable */
    const uint8_t *map;        /* size bytes, read-only; NULL before it is mapped */
    bool in_memory;            /* map is ours, from mu_malloc */
    uint64_t size;
    uint64_t identity; /* of the file that is mapped: its size, time of change and inode; of memory its bytes */
    uint32_t version;
    uint64_t data_start;                 /* tensor offsets count from here */
    struct mu_gguf_value *values;        /* in file order; strings arrays owned */
    const struct mu_gguf_value **by_key; /* sorted by key, no two equal */
    size_t n_value, cap_value;
    struct mu_gguf_tensor *tensors; /* in file order */
    size_t n_tensor, cap_tensor;
    uint64_t n_string; /* in all arrays so far */
};

struct mu_gguf {
    char *path; /* as it was asked for */
    struct mu_gguf_part *parts;
    int n_part;
    struct mu_gguf_tensor *tensors; /* of all parts; where there is one part, its own array */
    const struct mu_gguf_tensor **by_name;
    size_t n_tensor;
    struct mu_arena *arena; /* names and runs of tensors that no part holds; NULL where there are none */
};

/* Every message about a file's content begins alike. `p` is a part, `off` the offset that the sentence is about. */
#define MU_PART_FAIL(p, err, code, off, fmt, ...) \
    mu_fail((err), (code), "file '%s', offset %" PRIu64 ": " fmt, (p)->shown, (uint64_t)(off), ##__VA_ARGS__)

/* Reads everything but the tensors' data. The part's map and size are set; what it leaves on failure
 * mu_gguf_part_clear frees. */
enum mu_status mu_gguf_part_parse(struct mu_gguf_part *p, struct mu_err *err);
const struct mu_gguf_value *mu_gguf_part_find(const struct mu_gguf_part *p, struct mu_str key);
/* As mu_gguf_get_u64, of a value (NULL: absent). */
enum mu_status mu_gguf_part_u64(const struct mu_gguf_part *p, const struct mu_gguf_value *v, uint64_t min, uint64_t max,
                                uint64_t fallback, uint64_t *out, struct mu_err *err);
/* Puts the values in order of their keys, anew after a change: MU_EFORMAT for twins. */
enum mu_status mu_gguf_part_index(struct mu_gguf_part *p, struct mu_err *err);
/* A file of Ollama's converters becomes one of the common form (gguf_ollama.c); others stay as they are. */
enum mu_status mu_gguf_ollama(struct mu_gguf *g, struct mu_err *err);
/* Maps the whole file at `path`. As above on failure. */
enum mu_status mu_gguf_part_map(const char *path, struct mu_gguf_part *p, struct mu_err *err);
void mu_gguf_part_clear(struct mu_gguf_part *p);
/* Puts g->tensors of all parts in order of their names: MU_EFORMAT for twins. */
enum mu_status mu_gguf_index_names(struct mu_gguf *g, struct mu_err *err);
void mu_gguf_part_free_values(struct mu_gguf_part *p);

/* What the first bytes of a file that does not begin with "GGUF" say it is, as half a sentence with advice; NULL: no
 * idea. */
const char *mu_gguf_sniff(const uint8_t *p, size_t n);

const char *mu_gguf_kind_name(uint32_t kind);

#endif
