/* The table of one .safetensors file, inside the reader of model files (the format: Hugging Face's safetensors).
 *
 *   u64 length of the header · header: a JSON object · data
 *   header: { "NAME": {"dtype": "BF16", "shape": [4, 8], "data_offsets": [0, 64]}, …, "__metadata__": {…} }
 *
 * Shapes are written slowest dimension first, offsets count from the data's start. Nothing is trusted: the header must
 * lie in the file and be JSON of that form, and tensors must cover the data one after another without gaps, as the
 * reference reader wants it, so none shares bytes with another. Memory is bounded by the header's length. */
#ifndef MU_MODEL_SAFETENSORS_H
#define MU_MODEL_SAFETENSORS_H

#include "model/gguf_part.h"

enum { MU_ST_MAX_DIMS = 8, MU_ST_NO_TYPE = 0xffff };

struct mu_st_tensor {
    struct mu_str name; /* NUL-terminated */
    char dtype[12];     /* as written */
    uint32_t type;      /* F32, F16, BF16; MU_ST_NO_TYPE: another, which nothing here computes with */
    int n_dim;          /* 0: one value */
    uint64_t dim[MU_ST_MAX_DIMS];
    uint64_t offset, bytes; /* in the file */
    int part;               /* which file, for the caller to set */
};

struct mu_st_table {
    struct mu_st_tensor *tensor; /* in order of their data */
    size_t n_tensor;
    char *names; /* what the names point into */
};

/* Reads the table of a mapped part. MU_EFORMAT names file, tensor, what was expected and found. */
enum mu_status mu_st_table_read(const struct mu_gguf_part *p, struct mu_st_table *table_out, struct mu_err *err);
void mu_st_table_free(struct mu_st_table *t);

#endif
