/* Inside the reader of Hugging Face folders. */
#ifndef MU_MODEL_HF_FOLDER_H
#define MU_MODEL_HF_FOLDER_H

#include "model/gguf_write.h"
#include "model/hf_json.h"
#include "model/safetensors.h"

/* ---- files (hf_files.c) ---- */

/* The folder's weights: names of its .safetensors files, in order, and where an index says which tensor lies in which. */
struct mu_hf_files {
    char **name; /* [n] without the folder */
    int n;
    json_t *index; /* the "weight_map" and what is around it, NULL where there is none */
};
/* The folder that the path stands for; mu_free. Weights that only Python reads are refused, with advice. */
enum mu_status mu_hf_folder(const char *path, char **folder_out, struct mu_err *err);
/* Freed by mu_hf_files_free in any case. */
enum mu_status mu_hf_files_find(const char *folder, struct mu_hf_files *files, struct mu_err *err);
void mu_hf_files_free(struct mu_hf_files *files);

/* ---- names (hf_names.c) ---- */

/* What becomes of a tensor on its way. */
enum mu_hf_kind {
    MU_HF_MATRIX, /* nothing */
    MU_HF_VECTOR, /* F32 */
    MU_HF_NORM,   /* F32; plus 1 in families that store weights less 1 */
    MU_HF_Q,      /* of query heads, matrix or bias; in pairs where the family's GGUF has pairs */
    MU_HF_K,      /* likewise, of key heads */
    MU_HF_ROUTER, /* an F32 matrix */
    MU_HF_EXPERT, /* one of a stack: '*' in the name is the expert's number */
    MU_HF_QKV,    /* Falcon's: q, k and v rows; by groups of heads in newer ones */
    /* All experts in one tensor. What is two of GGUF's stands in two rows of the table, one after the other. */
    MU_HF_STACK,       /* [expert][row][column] */
    MU_HF_STACK_LOW,   /* the first half of each expert's rows, */
    MU_HF_STACK_HIGH,  /* the second */
    MU_HF_BLOCKS,      /* MXFP4 [expert][row][block][16]; its scales lie in the tensor called …_scales */
    MU_HF_BLOCKS_EVEN, /* each expert's rows 0, 2, 4 …, */
    MU_HF_BLOCKS_ODD,  /* 1, 3, 5 … */
    MU_HF_SCALES,      /* of those */
    MU_HF_BIAS_EVEN,   /* F32 of [expert][value]: values 0, 2, 4 … of each, */
    MU_HF_BIAS_ODD     /* 1, 3, 5 … */
};

struct mu_hf_name {
    const char *hf;   /* after the family's prefix of layers, or whole */
    const char *gguf; /* after "blk.N.", or whole */
    enum mu_hf_kind kind;
    bool optional; /* the model's own rules decide whether it may be missing */
};

/* A config.json's model_type. */
struct mu_hf_family {
    const char *model_type, *arch;
    const char *layer_prefix;              /* "model.layers." */
    const struct mu_hf_name *ends, *layer; /* ended by a NULL name */
    unsigned flags;                        /* of enum mu_hf_flag */
    const struct mu_hf_default *defaults;  /* of keys that config.json may leave out, ended by a NULL key */
};
enum mu_hf_flag {
    MU_HF_PAIRS = 1,    /* GGUF has q and k rows so that rotary pairs are neighbours; folders have halves */
    MU_HF_PLUS_ONE = 2, /* norms are stored less 1 */
    MU_HF_TIED = 4      /* tie_word_embeddings is true where it is not said */
};
struct mu_hf_default {
    const char *key;
    double value;
};

/* NULL: no such family. */
const struct mu_hf_family *mu_hf_family_find(const char *model_type);
/* A family whose models are this GGUF architecture's, with or without experts; NULL: none. */
const struct mu_hf_family *mu_hf_family_of(const char *arch, bool experts);
/* "llama, mistral, …" */
const char *mu_hf_family_names(void);

/* ---- config.json (hf_config.c) ---- */

/* What the tensors need of it. */
struct mu_hf_config {
    json_t *root;
    const json_t *text; /* the part about the language model: root itself, or its "text_config" */
    const struct mu_hf_family *family;
    char shown[160]; /* its path for messages */
    int n_layer, n_head, n_kv_head, d_head, d_model, n_expert;
    bool tied;      /* the output matrix is the embedding, whatever lies beside it */
    bool qkv_group; /* Falcon's fused rows are by group: its queries, its key, its value */
};

/* Reads FOLDER/config.json and what the tensors need of it. Freed by mu_hf_config_free in any case. */
enum mu_status mu_hf_config_read(const char *folder, struct mu_hf_config *c, struct mu_err *err);
void mu_hf_config_free(struct mu_hf_config *c);
/* Puts the model's keys and its tensors of rotation factors (announced; their values go to *factors, which the caller
 * writes in that order: up to two sets of n_factor). MU_EUNSUPPORTED names what GGUF's keys cannot say. */
struct mu_hf_factors {
    float *set[2]; /* mu_free both */
    const char *name[2];
    int n;
};
enum mu_status mu_hf_config_put(const struct mu_hf_config *c, int n_vocab, struct mu_gguf_writer *w,
                                struct mu_hf_factors *factors, struct mu_err *err);

#endif
