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

enum mu_norm_kind { MU_NORM_RMS, MU_NORM_LAYER /* mean and variance, with a bias */ };
enum mu_rope_kind { MU_ROPE_PAIRS, /* (2i, 2i+1) */ MU_ROPE_HALVES /* (i, i + n_rot/2), NeoX */ };
enum mu_ffn_kind {
    MU_FFN_SILU_GATED,
    MU_FFN_SILU_CLAMPED, /* gated, gpt-oss's form; with experts only */
    MU_FFN_GELU_GATED,   /* tanh form */
    MU_FFN_GELU,         /* tanh form */
    MU_FFN_GELU_ERF
};
/* What a family's files may ask for in metadata; in others the same keys are refused by name. */
enum mu_feature {
    MU_HAS_WINDOW = 1,      /* attention.sliding_window */
    MU_HAS_PATTERN = 2,     /* … of some layers only */
    MU_HAS_CAPS = 4,        /* soft caps of attention and of logits */
    MU_HAS_LONGROPE = 8,    /* two sets of rotation factors, attn_factor */
    MU_HAS_LOCAL_ROPE = 16, /* layers with a window turn at their own base */
    MU_HAS_EXPERTS = 32,
    MU_HAS_SCALES = 64,      /* factors of embeddings, of what is added to the residual, of logits (Granite) */
    MU_HAS_TEMPERATURE = 128 /* queries grow with their position (Ministral 3) */
};

/* How the hidden states of a text become one vector (shard/embed.h). */
enum mu_pooling { MU_POOL_NONE, MU_POOL_MEAN, MU_POOL_LAST };

struct mu_tensor_rule;

/* What differs between families. */
struct mu_arch {
    const char *name;   /* general.architecture */
    const char *models; /* that have it, for people */
    enum mu_norm_kind norm;
    enum mu_rope_kind rope;
    enum mu_ffn_kind ffn;
    const struct mu_tensor_rule
        *rules; /* names and shapes of a layer's tensors (model/arch.h), ended by a NULL suffix */
    const struct mu_tensor_rule *expert_rules; /* the same where expert_count is above 0 */
    unsigned features;                         /* set of enum mu_feature */
    bool parallel;      /* attention and feed-forward read the same residual; their sum is added */
    bool embed_scale;   /* embeddings times sqrt(d_model) */
    bool out_bias;      /* the output matrix has a bias */
    const char *layout; /* the only value of tensor_data_layout that the rules fit; NULL: any */
    int window_period;  /* default: layers n - 1, 2n - 1 … see everything, the others a window; 0: all a window */
    int window;         /* default, used by files older than the key; 0: none */
    float attn_softcap, final_softcap; /* defaults, likewise; 0: none */
    float rope_base;                   /* default; 0: 10,000 */
    bool yarn_exact;                   /* YaRN's bounds are no whole pairs */
    int no_rope_period;                /* layers n - 1, 2n - 1 … do not turn; 0: all do */
    int wide_scale_layers; /* a model of so many layers scales queries by 1/sqrt(d_model/n_head); 0: none does */
};

/* The sizes of one model. */
struct mu_config {
    int n_layer, n_head, n_kv_head, d_head, d_model, d_ff, n_vocab, n_ctx_train;
    int n_expert, n_expert_used; /* 0: one feed-forward; d_ff is an expert's */
    int n_rot;                   /* dimensions of a head that turn */
    int window;                  /* sliding window, 0 = none */
    uint8_t whole[128];          /* bit i: layer i sees everything, without the window */
    int n_ctx_short;             /* sequences beyond it turn by the long rotation factors */
    float norm_eps, attn_scale, rope_freq_base,
        rope_linear_scale;             /* linear scale: positions are divided by it (1 = none) */
    float rope_local_base;             /* of layers with a window, without scaling; 0 = as the others */
    float rope_attn_factor;            /* cosines and sines are multiplied by it (1 = none) */
    float attn_softcap, final_softcap; /* 0 = none */
    float embed_scale;                 /* 1 = none */
    enum mu_pooling pooling;           /* of embeddings, where a request does not say; never MU_POOL_NONE */
    float residual_scale, logit_scale; /* what layers add, and logits, are multiplied by it (1 = none) */
    float yarn_factor, yarn_beta_fast, yarn_beta_slow; /* rotation scaled by YaRN; factor 0 = not */
    int n_ctx_orig;                                    /* YaRN's and the temperature's length */
    float query_scale; /* of the growth of queries with the logarithm of their position; 0 = none */
};

/* Window of a layer, 0 = none. */
static inline int mu_config_window(const struct mu_config *cfg, int layer)
{
    return cfg->whole[layer / 8] >> layer % 8 & 1 ? 0 : cfg->window;
}
/* Whether a layer turns at the local base. */
static inline bool mu_config_local(const struct mu_config *cfg, int layer)
{
    return cfg->rope_local_base > 0 && !(cfg->whole[layer / 8] >> layer % 8 & 1);
}

/* Tensors of a layer; NULL where the family has none. Fused tensors of the file appear as their parts. */
enum mu_tensor_id {
    /* matrices */
    MU_T_Q,
    MU_T_K,
    MU_T_V,
    MU_T_O,
    MU_T_GATE, /* this and the next two: of all experts one after another, where there are experts */
    MU_T_UP,
    MU_T_DOWN,
    MU_T_ROUTER, /* [n_expert][d_model] */
    MU_T_MATRIX_COUNT,
    /* vectors: norms and their biases, then biases of matrices. In a parallel block without MU_T_ATTN_NORM both read
     * MU_T_FFN_NORM. */
    MU_T_ATTN_NORM = MU_T_MATRIX_COUNT,
    MU_T_ATTN_NORM_B,
    MU_T_FFN_NORM,
    MU_T_FFN_NORM_B,
    MU_T_Q_NORM, /* of each head, before it turns */
    MU_T_K_NORM,
    MU_T_POST_ATTN_NORM, /* of what attention adds */
    MU_T_POST_FFN_NORM,
    MU_T_Q_B,
    MU_T_K_B,
    MU_T_V_B,
    MU_T_O_B,
    MU_T_UP_B,
    MU_T_DOWN_B,
    MU_T_ROUTER_B,
    MU_T_GATE_EXPS_B, /* this and the next two: F32 [n_expert][rows of one expert] */
    MU_T_UP_EXPS_B,
    MU_T_DOWN_EXPS_B,
    MU_T_SINKS, /* [n_head]: what joins each head's softmax */
    MU_T_LAYER_COUNT
};

/* Whether a tensor has a matrix of each expert, of whom there may be one. */
static inline bool mu_config_of_experts(const struct mu_config *cfg, enum mu_tensor_id id)
{
    return cfg->n_expert > 0 && (id == MU_T_GATE || id == MU_T_UP || id == MU_T_DOWN);
}
/* How many matrices of the model's sizes it is: one an expert, else one. */
static inline int mu_config_copies(const struct mu_config *cfg, enum mu_tensor_id id)
{
    return mu_config_of_experts(cfg, id) ? cfg->n_expert : 1;
}

struct mu_model {
    struct mu_gguf *gguf;
    const struct mu_arch *arch;
    struct mu_config cfg;
    char name[128];                      /* general.name, else the file's name; valid UTF-8 */
    const struct mu_gguf_tensor *embed;  /* [n_vocab][d_model] */
    const struct mu_gguf_tensor *output; /* the same tensor where tied, unless it is quantised at load */
    bool tied;
    const struct mu_gguf_tensor *out_norm;           /* F32 [d_model] */
    const struct mu_gguf_tensor *out_norm_b, *out_b; /* F32 [d_model], [n_vocab]; NULL where there is none */
    const float
        *rope_factors;      /* [n_rot/2] from rope_freqs.weight or rope_factors_short.weight, or NULL; aligned copy */
    const float *rope_long; /* from rope_factors_long.weight, or NULL */
    struct mu_gguf_tensor *parts; /* of fused tensors */
    int n_part;
    struct mu_gguf_tensor *quantized;                        /* matrices that are quantised at load, or NULL */
    const struct mu_gguf_tensor *(*layer)[MU_T_LAYER_COUNT]; /* [n_layer] */
    uint64_t n_param, weight_bytes;
};

/* Opens, recognises, checks every shape and type that the pass will touch. Errors: MU_EFORMAT (malformed, missing or
 * misshapen tensors), MU_EUNSUPPORTED (architecture, feature or type, named, with what is supported). */
enum mu_status mu_model_open(const char *path, struct mu_model **model_out, struct mu_err *err);
void mu_model_close(struct mu_model *m);
/* Has the matrices quantised when they are loaded ("q8_0", "q4_k", …; NULL or "": leaves them as they are); once, before
 * any plan is made. MU_EINVAL lists the types, MU_EUNSUPPORTED: no matrix would be smaller. After a failure the
 * model is only good for mu_model_close. */
enum mu_status mu_model_quantize(struct mu_model *m, const char *type_name, struct mu_err *err);
/* The type of that name, of those that matrices can be quantised to. */
enum mu_status mu_quantize_type(const char *name, uint32_t *type_out, struct mu_err *err);
/* Names of the architectures this build runs, comma-separated. */
const char *mu_arch_names(void);
/* "Llama 1.2B, Q4_0, 16 layers, …" in one line. */
void mu_model_describe(const struct mu_model *m, char *buf, size_t buf_bytes);

#endif
