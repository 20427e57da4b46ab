/* A model: an opened file, the descriptor of its architecture, its sizes, and where each tensor is.
 *
 * An architecture is data (struct mu_arch): the one forward pass in shard/ reads it and does what it says, so that a
 * new family is a row in arch.c, not a copy of the pass. What a file asks for and no field here can express is
 * refused by name; it never runs wrongly.
 *
 * Lifetime: read-only after mu_model_open; tensors are borrowed from the mapping. Threads: any. */
#ifndef MU_MODEL_MODEL_H
#define MU_MODEL_MODEL_H

#include "kernels/types.h"
#include "model/gguf.h"

enum mu_norm_kind { MU_NORM_RMS };
enum mu_rope_kind { MU_ROPE_PAIRS, /* (2i, 2i+1) */ MU_ROPE_HALVES /* (i, i + n_rot/2), NeoX */ };
enum mu_ffn_kind { MU_FFN_SILU_GATED };

struct mu_tensor_rule;

/* What differs between families. */
struct mu_arch {
    const char *name; /* general.architecture */
    enum mu_norm_kind norm;
    enum mu_rope_kind rope;
    enum mu_ffn_kind ffn;
    const struct mu_tensor_rule
        *rules; /* names and shapes of a layer's tensors (model/arch.h), ended by a NULL suffix */
};

/* The sizes of one model. */
struct mu_config {
    int n_layer, n_head, n_kv_head, d_head, d_model, d_ff, n_vocab, n_ctx_train;
    int n_rot;  /* dimensions of a head that turn */
    int window; /* sliding window of every layer, 0 = none */
    float norm_eps, attn_scale, rope_freq_base,
        rope_linear_scale; /* linear scale: positions are divided by it (1 = none) */
};

enum mu_tensor_id { /* of a layer */
                    MU_T_ATTN_NORM,
                    MU_T_Q,
                    MU_T_K,
                    MU_T_V,
                    MU_T_O,
                    MU_T_FFN_NORM,
                    MU_T_GATE,
                    MU_T_UP,
                    MU_T_DOWN,
                    MU_T_LAYER_COUNT
};

struct mu_model {
    struct mu_gguf *gguf;
    const struct mu_arch *arch;
    struct mu_config cfg;
    char name[128];                        /* general.name, else the file's name; valid UTF-8 */
    const struct mu_gguf_tensor *embed;    /* [n_vocab][d_model] */
    const struct mu_gguf_tensor *output;   /* the same tensor where tied */
    const struct mu_gguf_tensor *out_norm; /* F32 [d_model] */
    const float *rope_factors;             /* [n_rot/2] from rope_freqs.weight, or NULL; aligned copy */
    const struct mu_gguf_tensor *(*layer)[MU_T_LAYER_COUNT]; /* [n_layer] */
    uint64_t n_param, weight_bytes;
};

/* Opens, recognises, checks every shape and type that the pass will touch. Errors: MU_EFORMAT (malformed, missing or
 * misshapen tensors), MU_EUNSUPPORTED (architecture, feature or type, named, with what is supported). */
enum mu_status mu_model_open(const char *path, struct mu_model **model_out, struct mu_err *err);
void mu_model_close(struct mu_model *m);
/* Names of the architectures this build runs, comma-separated. */
const char *mu_arch_names(void);
/* "Llama 1.2B, Q4_0, 16 layers, …" in one line. */
void mu_model_describe(const struct mu_model *m, char *buf, size_t buf_bytes);

#endif
