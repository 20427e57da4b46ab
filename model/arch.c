/* The families that this build runs, as data. */
#include "model/arch.h"

#include <string.h>

#define MATRIX(id, name, n_col, n_row)          \
    {                                           \
        id, name ".weight", n_col, n_row, false \
    }
#define NORM(id, name)                                      \
    {                                                       \
        id, name ".weight", MU_DIM_MODEL, MU_DIM_ONE, false \
    }
#define HEAD_NORM(id, name)                                \
    {                                                      \
        id, name ".weight", MU_DIM_HEAD, MU_DIM_ONE, false \
    }
#define BIAS(id, name, dim)                      \
    {                                            \
        id, name ".bias", dim, MU_DIM_ONE, false \
    }
#define EXPERT_BIAS(id, name, dim)                  \
    {                                               \
        id, name ".bias", dim, MU_DIM_EXPERT, false \
    }
#define Q(name)    MATRIX(MU_T_Q, name, MU_DIM_MODEL, MU_DIM_Q)
#define K(name)    MATRIX(MU_T_K, name, MU_DIM_MODEL, MU_DIM_KV)
#define V(name)    MATRIX(MU_T_V, name, MU_DIM_MODEL, MU_DIM_KV)
#define O          MATRIX(MU_T_O, "attn_output", MU_DIM_Q, MU_DIM_MODEL)
#define GATE(name) MATRIX(MU_T_GATE, name, MU_DIM_MODEL, MU_DIM_FF)
#define UP         MATRIX(MU_T_UP, "ffn_up", MU_DIM_MODEL, MU_DIM_FF)
#define DOWN       MATRIX(MU_T_DOWN, "ffn_down", MU_DIM_FF, MU_DIM_MODEL)
#define END                                                   \
    {                                                         \
        MU_T_LAYER_COUNT, NULL, MU_DIM_ONE, MU_DIM_ONE, false \
    }
#define Q_K_V      Q("attn_q"), K("attn_k"), V("attn_v")
#define QKV        Q("attn_qkv"), K("attn_qkv"), V("attn_qkv")
#define HEAD_NORMS HEAD_NORM(MU_T_Q_NORM, "attn_q_norm"), HEAD_NORM(MU_T_K_NORM, "attn_k_norm")

#define EXPERTS                                                          \
    MATRIX(MU_T_ROUTER, "ffn_gate_inp", MU_DIM_MODEL, MU_DIM_EXPERT),    \
        MATRIX(MU_T_GATE, "ffn_gate_exps", MU_DIM_MODEL, MU_DIM_ALL_FF), \
        MATRIX(MU_T_UP, "ffn_up_exps", MU_DIM_MODEL, MU_DIM_ALL_FF),     \
        MATRIX(MU_T_DOWN, "ffn_down_exps", MU_DIM_FF, MU_DIM_ALL_MODEL)

/* Llama 2 and 3, Mistral, Gemma 1, and everything that was converted under their names, some of it with biases. */
static const struct mu_tensor_rule llama_rules[] = {
    NORM(MU_T_ATTN_NORM, "attn_norm"),
    Q_K_V,
    O,
    {MU_T_Q_B, "attn_q.bias", MU_DIM_Q, MU_DIM_ONE, true},
    {MU_T_K_B, "attn_k.bias", MU_DIM_KV, MU_DIM_ONE, true},
    {MU_T_V_B, "attn_v.bias", MU_DIM_KV, MU_DIM_ONE, true},
    {MU_T_O_B, "attn_output.bias", MU_DIM_MODEL, MU_DIM_ONE, true},
    NORM(MU_T_FFN_NORM, "ffn_norm"),
    GATE("ffn_gate"),
    UP,
    DOWN,
    END,
};
/* Mixtral. */
static const struct mu_tensor_rule llama_expert_rules[] = {
    NORM(MU_T_ATTN_NORM, "attn_norm"), Q_K_V, O, NORM(MU_T_FFN_NORM, "ffn_norm"), EXPERTS, END,
};
static const struct mu_tensor_rule qwen3moe_rules[] = {
    NORM(MU_T_ATTN_NORM, "attn_norm"), Q_K_V, HEAD_NORMS, O, NORM(MU_T_FFN_NORM, "ffn_norm"), EXPERTS, END,
};
/* The norm before the experts has the name of what follows attention. */
static const struct mu_tensor_rule gpt_oss_rules[] = {
    NORM(MU_T_ATTN_NORM, "attn_norm"),
    Q_K_V,
    BIAS(MU_T_Q_B, "attn_q", MU_DIM_Q),
    BIAS(MU_T_K_B, "attn_k", MU_DIM_KV),
    BIAS(MU_T_V_B, "attn_v", MU_DIM_KV),
    {MU_T_SINKS, "attn_sinks.weight", MU_DIM_N_HEAD, MU_DIM_ONE, false},
    O,
    BIAS(MU_T_O_B, "attn_output", MU_DIM_MODEL),
    NORM(MU_T_FFN_NORM, "post_attention_norm"),
    EXPERTS,
    BIAS(MU_T_ROUTER_B, "ffn_gate_inp", MU_DIM_EXPERT),
    EXPERT_BIAS(MU_T_GATE_EXPS_B, "ffn_gate_exps", MU_DIM_FF),
    EXPERT_BIAS(MU_T_UP_EXPS_B, "ffn_up_exps", MU_DIM_FF),
    EXPERT_BIAS(MU_T_DOWN_EXPS_B, "ffn_down_exps", MU_DIM_MODEL),
    END,
};
static const struct mu_tensor_rule qwen2_rules[] = {
    NORM(MU_T_ATTN_NORM, "attn_norm"),
    Q_K_V,
    BIAS(MU_T_Q_B, "attn_q", MU_DIM_Q),
    BIAS(MU_T_K_B, "attn_k", MU_DIM_KV),
    BIAS(MU_T_V_B, "attn_v", MU_DIM_KV),
    O,
    NORM(MU_T_FFN_NORM, "ffn_norm"),
    GATE("ffn_gate"),
    UP,
    DOWN,
    END,
};
static const struct mu_tensor_rule qwen3_rules[] = {
    NORM(MU_T_ATTN_NORM, "attn_norm"),
    Q_K_V,
    HEAD_NORMS,
    O,
    NORM(MU_T_FFN_NORM, "ffn_norm"),
    GATE("ffn_gate"),
    UP,
    DOWN,
    END,
};
static const struct mu_tensor_rule phi3_rules[] = {
    NORM(MU_T_ATTN_NORM, "attn_norm"), QKV, O, NORM(MU_T_FFN_NORM, "ffn_norm"), GATE("ffn_up"), UP, DOWN, END,
};
static const struct mu_tensor_rule gemma2_rules[] = {
    NORM(MU_T_ATTN_NORM, "attn_norm"),
    Q_K_V,
    O,
    NORM(MU_T_POST_ATTN_NORM, "post_attention_norm"),
    NORM(MU_T_FFN_NORM, "ffn_norm"),
    GATE("ffn_gate"),
    UP,
    DOWN,
    NORM(MU_T_POST_FFN_NORM, "post_ffw_norm"),
    END,
};
static const struct mu_tensor_rule gemma3_rules[] = {
    NORM(MU_T_ATTN_NORM, "attn_norm"),
    Q_K_V,
    HEAD_NORMS,
    O,
    NORM(MU_T_POST_ATTN_NORM, "post_attention_norm"),
    NORM(MU_T_FFN_NORM, "ffn_norm"),
    GATE("ffn_gate"),
    UP,
    DOWN,
    NORM(MU_T_POST_FFN_NORM, "post_ffw_norm"),
    END,
};
/* The first converters fused q, k and v. */
static const struct mu_tensor_rule phi2_rules[] = {
    NORM(MU_T_FFN_NORM, "attn_norm"),
    BIAS(MU_T_FFN_NORM_B, "attn_norm", MU_DIM_MODEL),
    Q_K_V,
    BIAS(MU_T_Q_B, "attn_q", MU_DIM_Q),
    BIAS(MU_T_K_B, "attn_k", MU_DIM_KV),
    BIAS(MU_T_V_B, "attn_v", MU_DIM_KV),
    QKV,
    BIAS(MU_T_Q_B, "attn_qkv", MU_DIM_Q),
    BIAS(MU_T_K_B, "attn_qkv", MU_DIM_KV),
    BIAS(MU_T_V_B, "attn_qkv", MU_DIM_KV),
    O,
    BIAS(MU_T_O_B, "attn_output", MU_DIM_MODEL),
    UP,
    BIAS(MU_T_UP_B, "ffn_up", MU_DIM_FF),
    DOWN,
    BIAS(MU_T_DOWN_B, "ffn_down", MU_DIM_MODEL),
    END,
};
/* Where there are two norms, the second is attention's. */
static const struct mu_tensor_rule falcon_rules[] = {
    NORM(MU_T_FFN_NORM, "attn_norm"),
    BIAS(MU_T_FFN_NORM_B, "attn_norm", MU_DIM_MODEL),
    {MU_T_ATTN_NORM, "attn_norm_2.weight", MU_DIM_MODEL, MU_DIM_ONE, true},
    {MU_T_ATTN_NORM_B, "attn_norm_2.bias", MU_DIM_MODEL, MU_DIM_ONE, true},
    QKV,
    O,
    UP,
    DOWN,
    END,
};

/* gpt-oss was trained with YaRN's bounds as they come, without rounding them to pairs.
 *
 * X(name, norm, rotation, feed-forward, rules, further fields). llama's q and k rows come permuted, so that rotary
 * pairs are neighbours; the others' do not. Gemma 2's first files lack the keys of its window and caps; its 27B and
 * Gemma 3's (46 and 62 layers) scale queries by d_model/n_head. */
#define MU_ARCH_LIST(X)                                                                                               \
    X("llama", MU_NORM_RMS, MU_ROPE_PAIRS, MU_FFN_SILU_GATED, llama_rules,                                            \
      .models = "Llama 2 to 3.3, Mistral, Mistral Nemo, Mixtral, Falcon 3, SmolLM, Yi",                               \
      .features = MU_HAS_WINDOW | MU_HAS_EXPERTS, .expert_rules = llama_expert_rules)                                 \
    X("qwen2", MU_NORM_RMS, MU_ROPE_HALVES, MU_FFN_SILU_GATED, qwen2_rules, .models = "Qwen 2, 2.5", .features = 0)   \
    X("qwen3", MU_NORM_RMS, MU_ROPE_HALVES, MU_FFN_SILU_GATED, qwen3_rules, .models = "Qwen 3", .features = 0)        \
    X("qwen3moe", MU_NORM_RMS, MU_ROPE_HALVES, MU_FFN_SILU_GATED, NULL, .models = "Qwen 3 with experts",              \
      .features = MU_HAS_EXPERTS, .expert_rules = qwen3moe_rules)                                                     \
    X("gpt-oss", MU_NORM_RMS, MU_ROPE_HALVES, MU_FFN_SILU_CLAMPED, NULL, .models = "gpt-oss",                         \
      .features = MU_HAS_EXPERTS | MU_HAS_WINDOW | MU_HAS_PATTERN, .expert_rules = gpt_oss_rules, .window_period = 2, \
      .yarn_exact = true)                                                                                             \
    X("mistral3", MU_NORM_RMS, MU_ROPE_PAIRS, MU_FFN_SILU_GATED, llama_rules, .models = "Ministral 3, Mistral Small", \
      .features = MU_HAS_WINDOW | MU_HAS_TEMPERATURE)                                                                 \
    X("smollm3", MU_NORM_RMS, MU_ROPE_PAIRS, MU_FFN_SILU_GATED, llama_rules, .models = "SmolLM 3",                    \
      .no_rope_period = 4)                                                                                            \
    X("granite", MU_NORM_RMS, MU_ROPE_PAIRS, MU_FFN_SILU_GATED, llama_rules, .models = "Granite 3",                   \
      .features = MU_HAS_SCALES)                                                                                      \
    X("granitemoe", MU_NORM_RMS, MU_ROPE_PAIRS, MU_FFN_SILU_GATED, NULL, .models = "Granite 3 with experts",          \
      .features = MU_HAS_SCALES | MU_HAS_EXPERTS, .expert_rules = llama_expert_rules)                                 \
    X("phi2", MU_NORM_LAYER, MU_ROPE_HALVES, MU_FFN_GELU, phi2_rules, .models = "Phi 2", .parallel = true,            \
      .out_bias = true)                                                                                               \
    X("phi3", MU_NORM_RMS, MU_ROPE_HALVES, MU_FFN_SILU_GATED, phi3_rules, .models = "Phi 3, 3.5, 4",                  \
      .features = MU_HAS_WINDOW | MU_HAS_LONGROPE)                                                                    \
    X("gemma", MU_NORM_RMS, MU_ROPE_HALVES, MU_FFN_GELU_GATED, llama_rules, .models = "Gemma", .embed_scale = true)   \
    X("gemma2", MU_NORM_RMS, MU_ROPE_HALVES, MU_FFN_GELU_GATED, gemma2_rules, .models = "Gemma 2",                    \
      .features = MU_HAS_WINDOW | MU_HAS_PATTERN | MU_HAS_CAPS, .embed_scale = true, .window = 4096,                  \
      .window_period = 2, .attn_softcap = 50, .final_softcap = 30, .wide_scale_layers = 46)                           \
    X("gemma3", MU_NORM_RMS, MU_ROPE_HALVES, MU_FFN_GELU_GATED, gemma3_rules, .models = "Gemma 3, text",              \
      .features = MU_HAS_WINDOW | MU_HAS_PATTERN | MU_HAS_CAPS | MU_HAS_LOCAL_ROPE, .embed_scale = true,              \
      .window_period = 6, .rope_base = 1e6f, .wide_scale_layers = 62)                                                 \
    X("falcon", MU_NORM_LAYER, MU_ROPE_HALVES, MU_FFN_GELU_ERF, falcon_rules, .models = "Falcon 7B, 40B, 180B",       \
      .parallel = true, .layout = "jploski")

static const struct mu_arch archs[] = {
#define MU_ARCH_ROW(n, no, ro, ff, ru, ...) {.name = n, .norm = no, .rope = ro, .ffn = ff, .rules = ru, __VA_ARGS__},
    MU_ARCH_LIST(MU_ARCH_ROW)
#undef MU_ARCH_ROW
};

const struct mu_arch *mu_arch_at(size_t i)
{
    return i < sizeof archs / sizeof *archs ? &archs[i] : NULL;
}

const struct mu_arch *mu_arch_find(struct mu_str name)
{
    for (size_t i = 0; i < sizeof archs / sizeof *archs; i++)
        if (mu_str_is(name, archs[i].name)) return &archs[i];
    return NULL;
}

const char *mu_arch_names(void)
{
#define MU_ARCH_NAME(name, norm, rope, ffn, rules, ...) ", " name
    static const char names[] = MU_ARCH_LIST(MU_ARCH_NAME);
#undef MU_ARCH_NAME
    return names + 2; /* past the first comma */
}

int mu_dim_size(const struct mu_config *cfg, enum mu_dim dim)
{
    switch (dim) {
    case MU_DIM_ONE: return 1;
    case MU_DIM_MODEL: return cfg->d_model;
    case MU_DIM_Q: return cfg->n_head * cfg->d_head;
    case MU_DIM_KV: return cfg->n_kv_head * cfg->d_head;
    case MU_DIM_FF: return cfg->d_ff;
    case MU_DIM_HEAD: return cfg->d_head;
    case MU_DIM_N_HEAD: return cfg->n_head;
    case MU_DIM_EXPERT: return cfg->n_expert;
    case MU_DIM_ALL_FF: return cfg->n_expert * cfg->d_ff;
    case MU_DIM_ALL_MODEL: return cfg->n_expert * cfg->d_model;
    }
    return 0;
}

const struct mu_tensor_rule *mu_arch_rules(const struct mu_arch *arch, const struct mu_config *cfg)
{
    return cfg->n_expert > 0 ? arch->expert_rules : arch->rules;
}

int mu_rule_parts(const struct mu_config *cfg, const struct mu_tensor_rule *r, int *n_col_out, int *n_row_out)
{
    int n = 0, n_col = 0, n_row = 0;
    for (; r[n].suffix && strcmp(r[n].suffix, r->suffix) == 0; n++) {
        n_col += mu_dim_size(cfg, r[n].n_col);
        n_row += mu_dim_size(cfg, r[n].n_row);
    }
    bool vector = r->n_row == MU_DIM_ONE;
    if (r->id >= MU_T_MATRIX_COUNT && !vector) { /* a vector of each expert */
        *n_col_out = mu_dim_size(cfg, r->n_col);
        *n_row_out = mu_dim_size(cfg, r->n_row);
        return n;
    }
    *n_col_out = vector ? n_col : mu_dim_size(cfg, r->n_col);
    *n_row_out = vector ? 1 : n_row;
    return n;
}
