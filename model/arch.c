/* The families that this build runs, as data. */
#include "model/arch.h"

/* Llama 2 and 3, Mistral, and everything that was converted under their name. q and k rows come permuted, so that
 * rotary pairs are neighbours. */
static const struct mu_tensor_rule llama_rules[] = {
    {MU_T_ATTN_NORM, "attn_norm.weight", MU_DIM_MODEL, MU_DIM_ONE},
    {MU_T_Q, "attn_q.weight", MU_DIM_MODEL, MU_DIM_Q},
    {MU_T_K, "attn_k.weight", MU_DIM_MODEL, MU_DIM_KV},
    {MU_T_V, "attn_v.weight", MU_DIM_MODEL, MU_DIM_KV},
    {MU_T_O, "attn_output.weight", MU_DIM_Q, MU_DIM_MODEL},
    {MU_T_FFN_NORM, "ffn_norm.weight", MU_DIM_MODEL, MU_DIM_ONE},
    {MU_T_GATE, "ffn_gate.weight", MU_DIM_MODEL, MU_DIM_FF},
    {MU_T_UP, "ffn_up.weight", MU_DIM_MODEL, MU_DIM_FF},
    {MU_T_DOWN, "ffn_down.weight", MU_DIM_FF, MU_DIM_MODEL},
    {MU_T_LAYER_COUNT, NULL, MU_DIM_ONE, MU_DIM_ONE},
};

/* X(name, norm, rotation, feed-forward, rules) */
#define MU_ARCH_LIST(X) X("llama", MU_NORM_RMS, MU_ROPE_PAIRS, MU_FFN_SILU_GATED, llama_rules)

static const struct mu_arch archs[] = {
#define MU_ARCH_ROW(name, norm, rope, ffn, rules) {name, norm, rope, ffn, rules},
    MU_ARCH_LIST(MU_ARCH_ROW)
#undef MU_ARCH_ROW
};

const struct mu_arch *mu_arch_find(struct mu_str name)
{
    for (size_t i = 0; i < sizeof archs / sizeof *archs; i++)
        if (mu_str_is(name, archs[i].name)) return &archs[i];
    return NULL;
}

const char *mu_arch_names(void)
{
#define MU_ARCH_NAME(name, norm, rope, ffn, rules) ", " name
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
    }
    return 0;
}
