/* The families of Hugging Face folders, as data. Names of tensors are those that the transformers library writes; what
 * they become is what the reference GGUF converter makes of them.
 *
 * Falcon 40B's ln_mlp is GGUF's attn_norm: it feeds the feed-forward. */
#include <string.h>

#include "model/hf_folder.h"

#define END                             \
    {                                   \
        NULL, NULL, MU_HF_MATRIX, false \
    }

static const struct mu_hf_name common_ends[] = {
    {"model.embed_tokens.weight", "token_embd.weight", MU_HF_MATRIX, false},
    {"model.norm.weight", "output_norm.weight", MU_HF_NORM, false},
    {"lm_head.weight", "output.weight", MU_HF_MATRIX, true},
    END,
};
static const struct mu_hf_name phi2_ends[] = {
    {"model.embed_tokens.weight", "token_embd.weight", MU_HF_MATRIX, false},
    {"model.final_layernorm.weight", "output_norm.weight", MU_HF_NORM, false},
    {"model.final_layernorm.bias", "output_norm.bias", MU_HF_VECTOR, false},
    {"lm_head.weight", "output.weight", MU_HF_MATRIX, true},
    {"lm_head.bias", "output.bias", MU_HF_VECTOR, true},
    END,
};
static const struct mu_hf_name falcon_ends[] = {
    {"transformer.word_embeddings.weight", "token_embd.weight", MU_HF_MATRIX, false},
    {"transformer.ln_f.weight", "output_norm.weight", MU_HF_NORM, false},
    {"transformer.ln_f.bias", "output_norm.bias", MU_HF_VECTOR, false},
    {"lm_head.weight", "output.weight", MU_HF_MATRIX, true},
    END,
};

#define ATTENTION                                                          \
    {"self_attn.q_proj.weight", "attn_q.weight", MU_HF_Q, false},          \
        {"self_attn.k_proj.weight", "attn_k.weight", MU_HF_K, false},      \
        {"self_attn.v_proj.weight", "attn_v.weight", MU_HF_MATRIX, false}, \
        {"self_attn.q_proj.bias", "attn_q.bias", MU_HF_Q, true},           \
        {"self_attn.k_proj.bias", "attn_k.bias", MU_HF_K, true},           \
    {                                                                      \
        "self_attn.v_proj.bias", "attn_v.bias", MU_HF_VECTOR, true         \
    }

#define OUTPUT                                                              \
    {"self_attn.o_proj.weight", "attn_output.weight", MU_HF_MATRIX, false}, \
    {                                                                       \
        "self_attn.o_proj.bias", "attn_output.bias", MU_HF_VECTOR, true     \
    }

#define HEAD_NORMS                                                        \
    {"self_attn.q_norm.weight", "attn_q_norm.weight", MU_HF_NORM, true},  \
    {                                                                     \
        "self_attn.k_norm.weight", "attn_k_norm.weight", MU_HF_NORM, true \
    }

#define TWO_NORMS                                                               \
    {"input_layernorm.weight", "attn_norm.weight", MU_HF_NORM, false},          \
    {                                                                           \
        "post_attention_layernorm.weight", "ffn_norm.weight", MU_HF_NORM, false \
    }

#define GATED                                                          \
    {"mlp.gate_proj.weight", "ffn_gate.weight", MU_HF_MATRIX, false},  \
        {"mlp.up_proj.weight", "ffn_up.weight", MU_HF_MATRIX, false},  \
    {                                                                  \
        "mlp.down_proj.weight", "ffn_down.weight", MU_HF_MATRIX, false \
    }

/* Llama and all whose blocks look like its; which biases and norms are there is the model's to check. */
static const struct mu_hf_name dense_layer[] = {TWO_NORMS, ATTENTION, HEAD_NORMS, OUTPUT, GATED, END};
static const struct mu_hf_name mixtral_layer[] = {
    TWO_NORMS,
    ATTENTION,
    OUTPUT,
    {"block_sparse_moe.gate.weight", "ffn_gate_inp.weight", MU_HF_ROUTER, false},
    {"block_sparse_moe.experts.*.w1.weight", "ffn_gate_exps.weight", MU_HF_EXPERT, false},
    {"block_sparse_moe.experts.*.w3.weight", "ffn_up_exps.weight", MU_HF_EXPERT, false},
    {"block_sparse_moe.experts.*.w2.weight", "ffn_down_exps.weight", MU_HF_EXPERT, false},
    END,
};
static const struct mu_hf_name qwen3moe_layer[] = {
    TWO_NORMS,
    ATTENTION,
    HEAD_NORMS,
    OUTPUT,
    {"mlp.gate.weight", "ffn_gate_inp.weight", MU_HF_ROUTER, false},
    {"mlp.experts.*.gate_proj.weight", "ffn_gate_exps.weight", MU_HF_EXPERT, false},
    {"mlp.experts.*.up_proj.weight", "ffn_up_exps.weight", MU_HF_EXPERT, false},
    {"mlp.experts.*.down_proj.weight", "ffn_down_exps.weight", MU_HF_EXPERT, false},
    END,
};
/* Gate and up fused, gate first. */
static const struct mu_hf_name granitemoe_layer[] = {
    TWO_NORMS,
    ATTENTION,
    OUTPUT,
    {"block_sparse_moe.router.layer.weight", "ffn_gate_inp.weight", MU_HF_ROUTER, false},
    {"block_sparse_moe.input_linear.weight", "ffn_gate_exps.weight", MU_HF_STACK_LOW, false},
    {"block_sparse_moe.input_linear.weight", "ffn_up_exps.weight", MU_HF_STACK_HIGH, false},
    {"block_sparse_moe.output_linear.weight", "ffn_down_exps.weight", MU_HF_STACK, false},
    END,
};
/* Gate and up fused, row by row in turn. */
static const struct mu_hf_name gpt_oss_layer[] = {
    {"input_layernorm.weight", "attn_norm.weight", MU_HF_NORM, false},
    {"post_attention_layernorm.weight", "post_attention_norm.weight", MU_HF_NORM, false},
    ATTENTION,
    OUTPUT,
    {"self_attn.sinks", "attn_sinks.weight", MU_HF_VECTOR, false},
    {"mlp.router.weight", "ffn_gate_inp.weight", MU_HF_ROUTER, false},
    {"mlp.router.bias", "ffn_gate_inp.bias", MU_HF_VECTOR, false},
    {"mlp.experts.gate_up_proj_blocks", "ffn_gate_exps.weight", MU_HF_BLOCKS_EVEN, false},
    {"mlp.experts.gate_up_proj_blocks", "ffn_up_exps.weight", MU_HF_BLOCKS_ODD, false},
    {"mlp.experts.gate_up_proj_scales", "", MU_HF_SCALES, false},
    {"mlp.experts.gate_up_proj_bias", "ffn_gate_exps.bias", MU_HF_BIAS_EVEN, false},
    {"mlp.experts.gate_up_proj_bias", "ffn_up_exps.bias", MU_HF_BIAS_ODD, false},
    {"mlp.experts.down_proj_blocks", "ffn_down_exps.weight", MU_HF_BLOCKS, false},
    {"mlp.experts.down_proj_scales", "", MU_HF_SCALES, false},
    {"mlp.experts.down_proj_bias", "ffn_down_exps.bias", MU_HF_ROUTER, false},
    END,
};
static const struct mu_hf_name phi2_layer[] = {
    {"input_layernorm.weight", "attn_norm.weight", MU_HF_NORM, false},
    {"input_layernorm.bias", "attn_norm.bias", MU_HF_VECTOR, false},
    ATTENTION,
    {"self_attn.dense.weight", "attn_output.weight", MU_HF_MATRIX, false},
    {"self_attn.dense.bias", "attn_output.bias", MU_HF_VECTOR, false},
    {"mlp.fc1.weight", "ffn_up.weight", MU_HF_MATRIX, false},
    {"mlp.fc1.bias", "ffn_up.bias", MU_HF_VECTOR, false},
    {"mlp.fc2.weight", "ffn_down.weight", MU_HF_MATRIX, false},
    {"mlp.fc2.bias", "ffn_down.bias", MU_HF_VECTOR, false},
    END,
};
static const struct mu_hf_name phi3_layer[] = {
    TWO_NORMS,
    {"self_attn.qkv_proj.weight", "attn_qkv.weight", MU_HF_MATRIX, false},
    {"self_attn.o_proj.weight", "attn_output.weight", MU_HF_MATRIX, false},
    {"mlp.gate_up_proj.weight", "ffn_up.weight", MU_HF_MATRIX, false},
    {"mlp.down_proj.weight", "ffn_down.weight", MU_HF_MATRIX, false},
    END,
};
static const struct mu_hf_name gemma2_layer[] = {
    {"input_layernorm.weight", "attn_norm.weight", MU_HF_NORM, false},
    {"post_attention_layernorm.weight", "post_attention_norm.weight", MU_HF_NORM, false},
    {"pre_feedforward_layernorm.weight", "ffn_norm.weight", MU_HF_NORM, false},
    {"post_feedforward_layernorm.weight", "post_ffw_norm.weight", MU_HF_NORM, false},
    ATTENTION,
    HEAD_NORMS,
    OUTPUT,
    GATED,
    END,
};
static const struct mu_hf_name falcon_layer[] = {
    {"input_layernorm.weight", "attn_norm.weight", MU_HF_NORM, true},
    {"input_layernorm.bias", "attn_norm.bias", MU_HF_VECTOR, true},
    {"ln_mlp.weight", "attn_norm.weight", MU_HF_NORM, true},
    {"ln_mlp.bias", "attn_norm.bias", MU_HF_VECTOR, true},
    {"ln_attn.weight", "attn_norm_2.weight", MU_HF_NORM, true},
    {"ln_attn.bias", "attn_norm_2.bias", MU_HF_VECTOR, true},
    {"self_attention.query_key_value.weight", "attn_qkv.weight", MU_HF_QKV, false},
    {"self_attention.dense.weight", "attn_output.weight", MU_HF_MATRIX, false},
    {"mlp.dense_h_to_4h.weight", "ffn_up.weight", MU_HF_MATRIX, false},
    {"mlp.dense_4h_to_h.weight", "ffn_down.weight", MU_HF_MATRIX, false},
    END,
};

/* What the transformers library takes where config.json is silent; Gemma 3's released ones are, about much. */
static const struct mu_hf_default no_defaults[] = {{NULL, 0}};
static const struct mu_hf_default gemma_defaults[] = {{"head_dim", 256}, {"rms_norm_eps", 1e-6}, {NULL, 0}};
static const struct mu_hf_default gemma2_defaults[] = {
    {"head_dim", 256},
    {"rms_norm_eps", 1e-6},
    {"sliding_window", 4096},
    {"query_pre_attn_scalar", 256},
    {"attn_logit_softcapping", 50},
    {"final_logit_softcapping", 30},
    {NULL, 0},
};
static const struct mu_hf_default gemma3_defaults[] = {
    {"hidden_size", 2304},
    {"intermediate_size", 9216},
    {"num_hidden_layers", 26},
    {"num_attention_heads", 8},
    {"num_key_value_heads", 4},
    {"head_dim", 256},
    {"max_position_embeddings", 131072},
    {"rms_norm_eps", 1e-6},
    {"rope_theta", 1e6},
    {"rope_local_base_freq", 1e4},
    {"sliding_window", 4096},
    {"sliding_window_pattern", 6},
    {"query_pre_attn_scalar", 256},
    {NULL, 0},
};
static const struct mu_hf_default mixtral_defaults[] = {
    {"rms_norm_eps", 1e-5}, {"num_local_experts", 8}, {"num_experts_per_tok", 2}, {"rope_theta", 1e6}, {NULL, 0}};
static const struct mu_hf_default smollm3_defaults[] = {{"rope_theta", 2e6}, {"no_rope_layer_interval", 4}, {NULL, 0}};
static const struct mu_hf_default granite_defaults[] = {{"embedding_multiplier", 1},
                                                        {"residual_multiplier", 1},
                                                        {"attention_multiplier", 1},
                                                        {"logits_scaling", 1},
                                                        {NULL, 0}};
static const struct mu_hf_default granitemoe_defaults[] = {{"embedding_multiplier", 1},
                                                           {"residual_multiplier", 1},
                                                           {"attention_multiplier", 1},
                                                           {"logits_scaling", 1},
                                                           {"num_local_experts", 8},
                                                           {"num_experts_per_tok", 2},
                                                           {NULL, 0}};
static const struct mu_hf_default gpt_oss_defaults[] = {
    {"head_dim", 64},           {"rms_norm_eps", 1e-5},     {"rope_theta", 150000}, {"sliding_window", 128},
    {"num_local_experts", 128}, {"num_experts_per_tok", 4}, {"swiglu_limit", 7},    {NULL, 0}};
static const struct mu_hf_default qwen3_defaults[] = {{"head_dim", 128}, {NULL, 0}};
static const struct mu_hf_default phi2_defaults[] = {
    {"layer_norm_eps", 1e-5}, {"partial_rotary_factor", 0.5}, {NULL, 0}};
static const struct mu_hf_default phi3_defaults[] = {{"rms_norm_eps", 1e-5}, {NULL, 0}};
static const struct mu_hf_default falcon_defaults[] = {
    {"layer_norm_epsilon", 1e-5}, {"max_position_embeddings", 2048}, {NULL, 0}};

static const struct mu_hf_family families[] = {
    {"llama", "llama", "model.layers.", common_ends, dense_layer, MU_HF_PAIRS, no_defaults},
    {"mistral", "llama", "model.layers.", common_ends, dense_layer, MU_HF_PAIRS, no_defaults},
    {"ministral3", "mistral3", "model.layers.", common_ends, dense_layer, MU_HF_PAIRS, no_defaults},
    {"smollm3", "smollm3", "model.layers.", common_ends, dense_layer, MU_HF_PAIRS | MU_HF_TIED, smollm3_defaults},
    {"granite", "granite", "model.layers.", common_ends, dense_layer, MU_HF_PAIRS, granite_defaults},
    {"granitemoe", "granitemoe", "model.layers.", common_ends, granitemoe_layer, MU_HF_PAIRS, granitemoe_defaults},
    {"gpt_oss", "gpt-oss", "model.layers.", common_ends, gpt_oss_layer, 0, gpt_oss_defaults},
    {"mixtral", "llama", "model.layers.", common_ends, mixtral_layer, MU_HF_PAIRS, mixtral_defaults},
    {"qwen2", "qwen2", "model.layers.", common_ends, dense_layer, 0, no_defaults},
    {"qwen3", "qwen3", "model.layers.", common_ends, dense_layer, 0, qwen3_defaults},
    {"qwen3_moe", "qwen3moe", "model.layers.", common_ends, qwen3moe_layer, 0, no_defaults},
    {"phi", "phi2", "model.layers.", phi2_ends, phi2_layer, 0, phi2_defaults},
    {"phi3", "phi3", "model.layers.", common_ends, phi3_layer, 0, phi3_defaults},
    {"gemma", "gemma", "model.layers.", common_ends, dense_layer, MU_HF_PLUS_ONE | MU_HF_TIED, gemma_defaults},
    {"gemma2", "gemma2", "model.layers.", common_ends, gemma2_layer, MU_HF_PLUS_ONE | MU_HF_TIED, gemma2_defaults},
    {"gemma3_text", "gemma3", "model.layers.", common_ends, gemma2_layer, MU_HF_PLUS_ONE | MU_HF_TIED, gemma3_defaults},
    {"falcon", "falcon", "transformer.h.", falcon_ends, falcon_layer, MU_HF_TIED, falcon_defaults},
    {"RefinedWeb", "falcon", "transformer.h.", falcon_ends, falcon_layer, MU_HF_TIED, falcon_defaults},
    {"RefinedWebModel", "falcon", "transformer.h.", falcon_ends, falcon_layer, MU_HF_TIED, falcon_defaults},
};

const struct mu_hf_family *mu_hf_family_find(const char *model_type)
{
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        if (strcmp(families[i].model_type, model_type) == 0) return &families[i];
    return NULL;
}

const struct mu_hf_family *mu_hf_family_of(const char *arch, bool experts)
{
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        bool has = false;
        for (const struct mu_hf_name *n = families[i].layer; n->hf; n++)
            has |= n->kind == MU_HF_ROUTER; /* experts have many forms */
        if (strcmp(families[i].arch, arch) == 0 && has == experts) return &families[i];
    }
    return NULL;
}

const char *mu_hf_family_names(void)
{
    return "llama, mistral, ministral3, mixtral, smollm3, granite, granitemoe, qwen2, qwen3, qwen3_moe, gpt_oss, phi, "
           "phi3, gemma, gemma2, gemma3, falcon";
}
