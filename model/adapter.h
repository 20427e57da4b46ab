/* LoRA adapters: for some matrices of a model two thin ones, so that W·x becomes W·x + strength·B·(A·x).
 *
 * Two forms of file are read:
 *   a GGUF file   general.type "adapter", adapter.type "lora", adapter.lora.alpha; a matrix's pair is called as the matrix
 *                 with .lora_a (rank rows) and .lora_b (rank columns) appended (the form that ggml's converter writes)
 *   a folder      of Hugging Face's PEFT: adapter_config.json and adapter_model.safetensors
 * Both become the same table. Everything is checked against the model: what does not fit it, or asks for more than LoRA
 * on its matrices, is refused by name.
 *
 * Lifetime: read-only after opening; weights are borrowed from the mapping. Threads: any.
 * Source: Hu et al., arXiv:2106.09685; rank-stabilised scaling: Kalajdzievski, arXiv:2312.03732. */
#ifndef MU_MODEL_ADAPTER_H
#define MU_MODEL_ADAPTER_H

#include "model/model.h"

enum {
    MU_MAX_ADAPTER = 256, /* beside one model */
    MU_MAX_LORA_RANK = 1024,
    MU_ADAPTER_NAME = 64,    /* bytes of a name, the NUL included */
    MU_ADAPTER_PATH = 1024,  /* of a path, likewise */
    MU_MAX_LORA_SCALE = 1000 /* a strength beyond ± this is refused */
};

/* What a user says of an adapter: [NAME=]PATH[:SCALE]. */
struct mu_adapter_spec {
    char name[MU_ADAPTER_NAME]; /* letters, digits, '.', '_' and '-'; how requests call it; never "none" */
    char path[MU_ADAPTER_PATH];
    float scale; /* every use of it is multiplied by it; 1 where nothing is said */
};
/* Without a name: the file's or folder's own, without ".gguf". MU_EINVAL. */
enum mu_status mu_adapter_spec_parse(const char *text, struct mu_adapter_spec *spec_out, struct mu_err *err);

/* One matrix's pair. */
struct mu_lora {
    int rank; /* 0: this matrix has none */
    int n_col, n_row;
    uint32_t a_type, b_type;         /* with a dequant_row */
    const uint8_t *a, *b;            /* a [rank][n_col], b [n_row][rank] in rows of the file */
    size_t a_row_bytes, b_row_bytes; /* of one row */
    int d_halves; /* > 0: b's rows lie in halves of each head of so many, the model's in pairs; see mu_lora_b_row */
    float scale;  /* alpha / rank (or / sqrt(rank)) */
};

struct mu_adapter {
    struct mu_adapter_spec spec;
    struct mu_lora (*layer)[MU_T_MATRIX_COUNT]; /* [n_layer] */
    struct mu_lora out;                         /* of the output matrix */
    int max_rank;
    void *file; /* what holds the weights, and how to let go of it */
    void (*file_close)(void *file);
};

/* All that were loaded beside a model; a sequence's adapter is an index into it, plus one. */
struct mu_adapters {
    int n, max_rank;
    int by_default; /* the adapter (from 1) of sequences for which none is named; 0: the bare model */
    struct mu_adapter *at[MU_MAX_ADAPTER];
};

/* MU_EINVAL (two of one name), MU_EFORMAT (malformed, or does not fit the model), MU_EUNSUPPORTED (another architecture,
 * or more than LoRA on matrices: named). n 0: an empty set. */
enum mu_status mu_adapters_open(const struct mu_model *model, const struct mu_adapter_spec *spec, int n,
                                struct mu_adapters **adapters_out, struct mu_err *err);
void mu_adapters_close(struct mu_adapters *a); /* NULL is fine */
/* What a request's words stand for, from 1: "" is the default, "none" the bare model, 0. -1: no adapter has that name. a may
 * be NULL. */
int mu_adapters_find(const struct mu_adapters *a, const char *name);
/* "a, b, c" for messages; "none". */
const char *mu_adapters_names(const struct mu_adapters *a, char *buf, size_t buf_bytes);

/* Row i of A; of B: the row that belongs to the model's row i. */
static inline const uint8_t *mu_lora_a_row(const struct mu_lora *l, int i)
{
    return l->a + (size_t)i * l->a_row_bytes;
}
static inline const uint8_t *mu_lora_b_row(const struct mu_lora *l, int i)
{
    int d = l->d_halves;
    if (d) i = i / d * d + i % 2 * (d / 2) + i % d / 2;
    return l->b + (size_t)i * l->b_row_bytes;
}
/* What a rank keeps one of these in: F16 as it is, everything else as F32, which holds it exactly or by the rule for
 * embedding rows. */
static inline uint32_t mu_lora_kept_as(uint32_t type)
{
    return type == MU_F16 ? MU_F16 : MU_F32;
}

#endif
