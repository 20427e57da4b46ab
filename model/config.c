/* A model's sizes from its metadata. Every number is range-checked here, so that nothing after it needs to; what the
 * file asks for and the pass cannot do is refused by the name of its key. */
#include <math.h>
#include <stdio.h>

#include "kernels/kernels.h"
#include "model/arch.h"

enum { KEY_BYTES = 128, REQUIRED = -1 };

struct context {
    const struct mu_gguf *gguf;
    const struct mu_arch *family;
    const char *arch; /* its name */
    struct mu_err *err;
};

/* Keys that change the computation in a way that no field of struct mu_config or mu_arch expresses; harmless at their
 * neutral values. */
static const struct neutral {
    const char *suffix;
    float neutral[2];
    const char *what;
    unsigned feature; /* families that have it read the key; 0: none does */
} neutrals[] = {
    {"attention.sliding_window", {0, 0}, "sliding windows", MU_HAS_WINDOW},
    {"expert_count", {0, 0}, "mixtures of experts", MU_HAS_EXPERTS},
    {"expert_shared_count", {0, 0}, "experts that every token uses", 0},
    {"expert_group_count", {0, 1}, "groups of experts", 0},
    {"expert_gating_func", {0, 1}, "routing by another function than softmax", 0},
    {"expert_weights_norm", {1, 1}, "expert weights that do not add up to 1", 0},
    {"expert_weights_scale", {0, 1}, "scaled expert weights", 0},
    {"leading_dense_block_count", {0, 0}, "layers with and without experts", 0},
    {"interleave_moe_layer_step", {0, 1}, "layers with and without experts", 0},
    {"nextn_predict_layers", {0, 0}, "layers that predict several tokens", 0},
    {"attention.causal", {1, 1}, "attention to later tokens", 0},
    {"use_parallel_residual", {0, 0}, "attention and feed-forward in parallel", 0},
    {"attention.clamp_kqv", {0, 0}, "clamped queries, keys and values", 0},
    {"attention.max_alibi_bias", {0, 0}, "ALiBi positions", 0},
    {"attn_logit_softcapping", {0, 0}, "soft caps of attention", MU_HAS_CAPS},
    {"final_logit_softcapping", {0, 0}, "soft caps of logits", MU_HAS_CAPS},
    {"logit_scale", {0, 1}, "scaled logits", MU_HAS_SCALES},
    {"residual_scale", {0, 1}, "a scaled residual", MU_HAS_SCALES},
    {"embedding_scale", {0, 1}, "scaled embeddings", MU_HAS_SCALES},
    {"attention.temperature_length", {0, 0}, "attention temperature by position", 0},
    {"attention.temperature_scale", {0, 0}, "attention temperature by position", MU_HAS_TEMPERATURE},
    {"rope.scaling.yarn_ext_factor", {1, -1}, "YaRN in part", 0},
    {"expert_shared_feed_forward_length", {0, 0}, "experts that every token uses", 0},
};

static const struct mu_gguf_value *find(const struct context *c, const char *suffix, char key[KEY_BYTES])
{
    snprintf(key, KEY_BYTES, "%s.%s", c->arch, suffix);
    return mu_gguf_find(c->gguf, key);
}

/* An integer in [min, max], or an array of n_item equal ones (newer converters write some sizes for each layer). */
static enum mu_status get_int(const struct context *c, const char *suffix, int min, int max, int fallback, int n_item,
                              int *out)
{
    char key[KEY_BYTES];
    const struct mu_gguf_value *v = find(c, suffix, key);
    uint64_t u;
    enum mu_status st;
    if (!v) {
        if (fallback == REQUIRED)
            return mu_gguf_fail(c->gguf, MU_EFORMAT, c->err, "expected key '%s', found none", key);
        *out = fallback;
        return MU_OK;
    }
    if (v->kind != MU_GGUF_ARRAY || n_item < 1) {
        st = mu_gguf_get_u64(c->gguf, key, (uint64_t)min, (uint64_t)max, 0, &u, c->err);
        if (st == MU_OK) *out = (int)u;
        return st;
    }
    if ((v->item_kind > MU_GGUF_I32 && v->item_kind != MU_GGUF_U64 && v->item_kind != MU_GGUF_I64) ||
        v->n != (uint64_t)n_item)
        return mu_gguf_value_fail(c->gguf, v, MU_EFORMAT, c->err, "expected an integer or one for each of %d layers",
                                  n_item);
    int64_t first = mu_gguf_item_i64(v, 0);
    for (uint64_t i = 1; i < v->n; i++)
        if (mu_gguf_item_i64(v, i) != first)
            return mu_gguf_value_fail(
                c->gguf, v, MU_EUNSUPPORTED, c->err,
                "layers of different sizes (%lld in layer 0, %lld in layer %llu) are not supported", (long long)first,
                (long long)mu_gguf_item_i64(v, i), (unsigned long long)i);
    if (first < min || first > max)
        return mu_gguf_value_fail(c->gguf, v, MU_EFORMAT, c->err, "expected numbers from %d to %d, found %lld", min,
                                  max, (long long)first);
    *out = (int)first;
    return MU_OK;
}

/* A finite number in (above, max]. fallback NAN: required. */
static enum mu_status get_real(const struct context *c, const char *suffix, float above, float max, float fallback,
                               float *out)
{
    char key[KEY_BYTES];
    const struct mu_gguf_value *v = find(c, suffix, key);
    if (!v && isnan(fallback)) return mu_gguf_fail(c->gguf, MU_EFORMAT, c->err, "expected key '%s', found none", key);
    enum mu_status st = mu_gguf_get_f32(c->gguf, key, fallback, out, c->err);
    if (st != MU_OK || !v) return st;
    if (!(*out > above && *out <= max))
        return mu_gguf_value_fail(c->gguf, v, MU_EFORMAT, c->err, "expected a number above %g, at most %g, found %g",
                                  (double)above, (double)max, (double)*out);
    return MU_OK;
}

static enum mu_status refuse_extras(const struct context *c)
{
    char key[KEY_BYTES];
    for (size_t i = 0; i < sizeof neutrals / sizeof *neutrals; i++) {
        const struct neutral *n = &neutrals[i];
        const struct mu_gguf_value *v = n->feature & c->family->features ? NULL : find(c, n->suffix, key);
        if (!v) continue;
        if (v->kind == MU_GGUF_STRING || v->kind == MU_GGUF_ARRAY)
            return mu_gguf_value_fail(c->gguf, v, MU_EFORMAT, c->err, "expected a number");
        float found = mu_gguf_item_f32(v, 0);
        if (found != n->neutral[0] && found != n->neutral[1])
            return mu_gguf_value_fail(c->gguf, v, MU_EUNSUPPORTED, c->err,
                                      "%s (value %g) are not supported by this build for architecture '%s'", n->what,
                                      (double)found, c->arch);
    }
    static const struct {
        const char *suffix;
        unsigned feature;
    } absent[] = {{"attention.sliding_window_pattern", MU_HAS_PATTERN},
                  {"rope.freq_base_swa", MU_HAS_LOCAL_ROPE},
                  {"rope.dimension_sections", 0},
                  {"rope.scaling.yarn_attn_factor", 0}};
    for (size_t i = 0; i < sizeof absent / sizeof *absent; i++) {
        const struct mu_gguf_value *v = absent[i].feature & c->family->features ? NULL : find(c, absent[i].suffix, key);
        if (v)
            return mu_gguf_value_fail(c->gguf, v, MU_EUNSUPPORTED, c->err,
                                      "what it asks for is not supported by this build for architecture '%s'", c->arch);
    }
    return MU_OK;
}

static enum mu_status read_heads(const struct context *c, struct mu_config *cfg)
{
    enum mu_status st;
    int d_value;
    MU_TRY(st, get_int(c, "attention.head_count", 1, MU_MAX_HEAD, REQUIRED, cfg->n_layer, &cfg->n_head), fail);
    MU_TRY(st, get_int(c, "attention.head_count_kv", 1, MU_MAX_HEAD, cfg->n_head, cfg->n_layer, &cfg->n_kv_head), fail);
    if (cfg->n_head % cfg->n_kv_head != 0)
        return mu_gguf_fail(c->gguf, MU_EFORMAT, c->err,
                            "expected a number of query heads that is a multiple of the key heads, found %d and %d",
                            cfg->n_head, cfg->n_kv_head);
    /* 0 stands for "not said", which a head of that size would be refused for anyway */
    int split = cfg->d_model % cfg->n_head == 0 ? cfg->d_model / cfg->n_head : 0;
    MU_TRY(st, get_int(c, "attention.key_length", 1, MU_MAX_D_HEAD, split, 0, &cfg->d_head), fail);
    MU_TRY(st, get_int(c, "attention.value_length", 1, MU_MAX_D_HEAD, cfg->d_head, 0, &d_value), fail);
    if (cfg->d_head < 1 || cfg->d_head > MU_MAX_D_HEAD)
        return mu_gguf_fail(
            c->gguf, MU_EFORMAT, c->err,
            "expected key '%s.attention.key_length' or an embedding of n × %d values with n from 1 to %d, "
            "found %d values",
            c->arch, cfg->n_head, MU_MAX_D_HEAD, cfg->d_model);
    if (d_value != cfg->d_head)
        return mu_gguf_fail(c->gguf, MU_EUNSUPPORTED, c->err,
                            "keys of %d and values of %d dimensions are not supported; expected equal ones",
                            cfg->d_head, d_value);
    if (cfg->n_head * cfg->d_head > MU_MAX_D_MODEL)
        return mu_gguf_fail(c->gguf, MU_ELIMIT, c->err, "%d heads of %d are more than the limit of %d values together",
                            cfg->n_head, cfg->d_head, MU_MAX_D_MODEL);
    cfg->attn_scale = 1.0f / sqrtf((float)cfg->d_head);
    if (c->family->wide_scale_layers == cfg->n_layer)
        cfg->attn_scale = 1.0f / sqrtf((float)cfg->d_model / (float)cfg->n_head);
    float given;
    MU_TRY(st, get_real(c, "attention.scale", -1e-30f, 1e6f, 0.0f, &given), fail);
    if (given > 0) cfg->attn_scale = given; /* 0 says the usual one */
fail:
    return st;
}

static enum mu_status read_experts(const struct context *c, struct mu_config *cfg)
{
    enum mu_status st = MU_OK;
    if (!(c->family->features & MU_HAS_EXPERTS)) return MU_OK;
    int least = c->family->rules ? 0 : 1; /* a family without other layers */
    MU_TRY(st, get_int(c, "expert_count", least, MU_MAX_EXPERT, least ? REQUIRED : 0, 0, &cfg->n_expert), fail);
    if (cfg->n_expert == 0) return MU_OK;
    MU_TRY(st, get_int(c, "expert_used_count", 1, cfg->n_expert, REQUIRED, 0, &cfg->n_expert_used), fail);
    MU_TRY(st, get_int(c, "expert_feed_forward_length", 1, MU_MAX_D_FF, cfg->d_ff, 0, &cfg->d_ff), fail);
    if (cfg->n_expert_used > MU_MAX_D_FF / cfg->d_ff)
        return mu_gguf_fail(c->gguf, MU_ELIMIT, c->err,
                            "%d experts of %d are more than the limit of %d values together", cfg->n_expert_used,
                            cfg->d_ff, MU_MAX_D_FF);
fail:
    return st;
}

/* Which layers see everything: every so many, or as an array says (true: a window). */
static enum mu_status read_pattern(const struct context *c, const struct mu_gguf_value *v, struct mu_config *cfg)
{
    int period = c->family->window_period;
    enum mu_status st = MU_OK;
    if (v && v->kind != MU_GGUF_ARRAY) {
        MU_TRY(st, get_int(c, "attention.sliding_window_pattern", 0, MU_MAX_LAYER, 0, 0, &period), fail);
    } else if (v && ((v->item_kind > MU_GGUF_I32 && v->item_kind != MU_GGUF_BOOL) || v->n != (uint64_t)cfg->n_layer)) {
        return mu_gguf_value_fail(c->gguf, v, MU_EFORMAT, c->err, "expected a number or one for each of %d layers",
                                  cfg->n_layer);
    }
    for (int i = 0; i < cfg->n_layer; i++) {
        bool whole = period && (i + 1) % period == 0;
        if (v && v->kind == MU_GGUF_ARRAY) whole = mu_gguf_item_i64(v, (uint64_t)i) == 0;
        if (whole) cfg->whole[i / 8] |= (uint8_t)(1 << i % 8);
    }
fail:
    return st;
}

static enum mu_status read_windows(const struct context *c, struct mu_config *cfg)
{
    const struct mu_arch *a = c->family;
    char key[KEY_BYTES];
    enum mu_status st;
    MU_TRY(st, get_int(c, "attention.sliding_window", 0, MU_MAX_CTX, a->window, 0, &cfg->window), fail);
    const struct mu_gguf_value *v = find(c, "attention.sliding_window_pattern", key);
    st = read_pattern(c, a->features & MU_HAS_PATTERN ? v : NULL, cfg);
fail:
    return st;
}

/* Soft caps, and what the family does to embeddings. */
static enum mu_status read_scales(const struct context *c, struct mu_config *cfg)
{
    const struct mu_arch *a = c->family;
    enum mu_status st = MU_OK;
    cfg->embed_scale = a->embed_scale ? sqrtf((float)cfg->d_model) : 1.0f;
    cfg->residual_scale = cfg->logit_scale = 1.0f;
    if (a->features & MU_HAS_SCALES) {
        float divide;
        MU_TRY(st, get_real(c, "embedding_scale", 0, 1e6f, 1.0f, &cfg->embed_scale), fail);
        MU_TRY(st, get_real(c, "residual_scale", 0, 1e6f, 1.0f, &cfg->residual_scale), fail);
        MU_TRY(st, get_real(c, "logit_scale", 0, 1e6f, NAN, &divide), fail);
        cfg->logit_scale = 1.0f / divide;
    }
    if (a->features & MU_HAS_CAPS) {
        MU_TRY(st, get_real(c, "attn_logit_softcapping", -1e-30f, 1e6f, a->attn_softcap, &cfg->attn_softcap), fail);
        MU_TRY(st, get_real(c, "final_logit_softcapping", -1e-30f, 1e6f, a->final_softcap, &cfg->final_softcap), fail);
    }
fail:
    return st;
}

static enum mu_status check_layout(const struct context *c)
{
    char key[KEY_BYTES], shown[48];
    const struct mu_gguf_value *v = find(c, "tensor_data_layout", key);
    struct mu_str layout;
    if (!v || !c->family->layout) return MU_OK;
    enum mu_status st = mu_gguf_get_str(c->gguf, key, &layout, c->err);
    if (st != MU_OK || mu_str_is(layout, c->family->layout)) return st;
    return mu_gguf_value_fail(c->gguf, v, MU_EUNSUPPORTED, c->err, "expected '%s', found '%s'", c->family->layout,
                              mu_str_show(layout, shown, sizeof shown));
}

/* Cosines and sines are multiplied by m(1), or by m(1)/m(w) where the file has a weight w, m(w) = 0.1·w·ln(factor) + 1;
 * the defaults are those of the paper (Peng et al., arXiv:2309.00071). */
static enum mu_status read_yarn(const struct context *c, struct mu_config *cfg)
{
    enum mu_status st;
    float weight;
    MU_TRY(st, get_real(c, "rope.scaling.factor", 0, 1e6f, NAN, &cfg->yarn_factor), fail);
    MU_TRY(st, get_real(c, "rope.scaling.yarn_beta_fast", 0, 1e6f, 32.0f, &cfg->yarn_beta_fast), fail);
    MU_TRY(st, get_real(c, "rope.scaling.yarn_beta_slow", 0, 1e6f, 1.0f, &cfg->yarn_beta_slow), fail);
    MU_TRY(st, get_real(c, "rope.scaling.yarn_log_multiplier", -1e-30f, 1e6f, 0.0f, &weight), fail);
    double scale = mu_yarn_scale((double)cfg->yarn_factor, 1.0);
    if (weight > 0) scale = scale / mu_yarn_scale((double)cfg->yarn_factor, (double)weight);
    cfg->rope_attn_factor = (float)((double)cfg->rope_attn_factor * scale);
fail:
    return st;
}

/* The file's numbers are llama.cpp's: 0 none said, 1 mean, 2 first token, 3 last token, 4 a score of a pair. Where the
 * file says nothing it is the last token, the only one that has seen the whole text of a causal model; vLLM does so,
 * too. A first token has seen nothing but itself, and a ranker has a head of its own: refused. */
static enum mu_status read_pooling(const struct context *c, struct mu_config *cfg)
{
    enum { NONE, MEAN, FIRST, LAST, RANK };
    char key[KEY_BYTES];
    int type;
    enum mu_status st = get_int(c, "pooling_type", 0, 1000, NONE, 0, &type);
    if (st != MU_OK) return st;
    cfg->pooling = type == MEAN ? MU_POOL_MEAN : MU_POOL_LAST;
    if (type == NONE || type == MEAN || type == LAST) return MU_OK;
    return mu_gguf_value_fail(c->gguf, find(c, "pooling_type", key), MU_EUNSUPPORTED, c->err,
                              "pooling %d%s is not supported; this build knows 1 (mean) and 3 (last token)", type,
                              type == FIRST  ? " (first token)"
                              : type == RANK ? " (ranking of pairs)"
                                             : "");
}

static enum mu_status read_rope(const struct context *c, struct mu_config *cfg)
{
    char key[KEY_BYTES], shown[48];
    enum mu_status st;
    struct mu_str type;
    MU_TRY(st, get_int(c, "rope.dimension_count", 2, cfg->d_head, cfg->d_head, 0, &cfg->n_rot), fail);
    if (cfg->n_rot % 2 != 0)
        return mu_gguf_fail(c->gguf, MU_EFORMAT, c->err, "expected an even number of rotated dimensions, found %d",
                            cfg->n_rot);
    float base = c->family->rope_base > 0 ? c->family->rope_base : 10000.0f;
    MU_TRY(st, get_real(c, "rope.freq_base", 0, 1e30f, base, &cfg->rope_freq_base), fail);
    if (c->family->features & MU_HAS_LOCAL_ROPE)
        MU_TRY(st, get_real(c, "rope.freq_base_swa", 0, 1e30f, 10000.0f, &cfg->rope_local_base), fail);
    cfg->n_ctx_short = MU_MAX_CTX;
    MU_TRY(st, get_real(c, "rope.scaling.attn_factor", -1e-30f, 1e6f, 1.0f, &cfg->rope_attn_factor), fail);
    MU_TRY(st, get_int(c, "rope.scaling.original_context_length", 0, MU_MAX_CTX, 0, 0, &cfg->n_ctx_orig), fail);
    if (cfg->rope_attn_factor <= 0) cfg->rope_attn_factor = 1.0f; /* 0 says none, here and below */
    if (cfg->n_ctx_orig == 0) cfg->n_ctx_orig = cfg->n_ctx_train;
    if (c->family->features & MU_HAS_LONGROPE) cfg->n_ctx_short = cfg->n_ctx_orig;
    if (c->family->features & MU_HAS_TEMPERATURE)
        MU_TRY(st, get_real(c, "attention.temperature_scale", -1e-30f, 1e6f, 0.0f, &cfg->query_scale), fail);

    const struct mu_gguf_value *v = find(c, "rope.scaling.type", key);
    MU_TRY(st, mu_gguf_get_str(c->gguf, key, &type, c->err), fail);
    cfg->rope_linear_scale = 1.0f;
    if (v && mu_str_is(type, "none")) return MU_OK;
    if (v && mu_str_is(type, "longrope") && c->family->features & MU_HAS_LONGROPE) return MU_OK;
    if (v && mu_str_is(type, "yarn")) return read_yarn(c, cfg);
    if (v && !mu_str_is(type, "linear"))
        return mu_gguf_value_fail(
            c->gguf, v, MU_EUNSUPPORTED, c->err,
            "rope scaling '%s' is not supported; this build knows none, linear, yarn and the factors of "
            "rope_freqs.weight",
            mu_str_show(type, shown, sizeof shown));
    float factor;
    MU_TRY(st, get_real(c, "rope.scale_linear", -1e-30f, 1e6f, 0.0f, &factor), fail);
    MU_TRY(st, get_real(c, "rope.scaling.factor", -1e-30f, 1e6f, factor, &factor), fail);
    if (factor > 0) cfg->rope_linear_scale = factor; /* 0 says none */
fail:
    return st;
}

enum mu_status mu_config_read(const struct mu_gguf *g, const struct mu_arch *arch, struct mu_config *cfg_out,
                              struct mu_err *err)
{
    const struct context c = {g, arch, arch->name, err};
    struct mu_config cfg = {0};
    enum mu_status st;
    MU_TRY(st, refuse_extras(&c), fail);
    MU_TRY(st, get_int(&c, "block_count", 1, MU_MAX_LAYER, REQUIRED, 0, &cfg.n_layer), fail);
    MU_TRY(st, get_int(&c, "embedding_length", 1, MU_MAX_D_MODEL, REQUIRED, 0, &cfg.d_model), fail);
    MU_TRY(st, get_int(&c, "feed_forward_length", 1, MU_MAX_D_FF, REQUIRED, cfg.n_layer, &cfg.d_ff), fail);
    MU_TRY(st, get_int(&c, "context_length", 1, MU_MAX_CTX, REQUIRED, 0, &cfg.n_ctx_train), fail);
    MU_TRY(st, get_int(&c, "vocab_size", 1, MU_MAX_VOCAB, 0, 0, &cfg.n_vocab), fail);
    MU_TRY(st, read_experts(&c, &cfg), fail);
    MU_TRY(st, check_layout(&c), fail);
    MU_TRY(st, read_windows(&c, &cfg), fail);
    MU_TRY(st, read_scales(&c, &cfg), fail);
    MU_TRY(st,
           get_real(&c, arch->norm == MU_NORM_RMS ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon",
                    0, 1.0f, NAN, &cfg.norm_eps),
           fail);
    MU_TRY(st, read_heads(&c, &cfg), fail);
    MU_TRY(st, read_rope(&c, &cfg), fail);
    MU_TRY(st, read_pooling(&c, &cfg), fail);
    *cfg_out = cfg;
fail:
    return st;
}
