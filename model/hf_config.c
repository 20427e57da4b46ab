/* config.json as GGUF keys.
 *
 * Both forms of the file are read: the one that released models have (rope_theta, rope_scaling) and the newer one
 * (rope_parameters, layer_types). What the model layer can refuse by the name of its GGUF key is passed on to it; what
 * has no key and changes the computation is refused here. Ranges are the model layer's to check, but for what this
 * reader itself counts with. Rotation factors are computed with + - * / on our own frequencies, so that every machine
 * gets the same bits. */
#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "kernels/kernels.h"
#include "model/arch.h"
#include "model/hf_folder.h"

#define REQUIRED NAN

static enum mu_status config_fail(const struct mu_hf_config *c, enum mu_status code, struct mu_err *err,
                                  const char *fmt, ...) __attribute__((format(printf, 4, 5)));

static enum mu_status config_fail(const struct mu_hf_config *c, enum mu_status code, struct mu_err *err,
                                  const char *fmt, ...)
{
    char text[MU_ERR_TEXT];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return mu_fail(err, code, "file '%s': %s", c->shown, text);
}

/* ---- values ---- */

static const json_t *value(const struct mu_hf_config *c, const char *key)
{
    const json_t *v = json_object_get(c->text, key);
    return json_is_null(v) ? NULL : v;
}

static bool is_true(const struct mu_hf_config *c, const char *key)
{
    return json_is_true(value(c, key));
}

static double family_default(const struct mu_hf_config *c, const char *key, double fallback)
{
    for (const struct mu_hf_default *d = c->family->defaults; d->key; d++)
        if (strcmp(d->key, key) == 0) return d->value;
    return fallback;
}

/* A number, finite in f32; where it is missing or null the family's default, else fallback (REQUIRED: an error). */
static enum mu_status get_number(const struct mu_hf_config *c, const json_t *v, const char *key, double fallback,
                                 double *out, struct mu_err *err)
{
    if (!v || json_is_null(v)) {
        *out = family_default(c, key, fallback);
        return isnan(*out) ? config_fail(c, MU_EFORMAT, err, "expected key \"%s\", found none", key) : MU_OK;
    }
    *out = json_number_value(v);
    if (json_is_number(v) && fabs(*out) <= (double)FLT_MAX) return MU_OK;
    return config_fail(c, MU_EFORMAT, err, "key \"%s\": expected a number", key);
}

/* Falcon's first files name some keys otherwise: `other`, or NULL. */
static enum mu_status get_int(const struct mu_hf_config *c, const char *key, const char *other, int max,
                              double fallback, int *out, struct mu_err *err)
{
    const json_t *v = value(c, key);
    double d = 0;
    if (!v && other && value(c, other)) v = value(c, key = other);
    enum mu_status st = get_number(c, v, key, fallback, &d, err);
    if (st != MU_OK) return st;
    if (!(d >= 0 && d <= max) || d != floor(d))
        return config_fail(c, MU_EFORMAT, err, "key \"%s\": expected a whole number from 0 to %d, found %g", key, max,
                           d);
    *out = (int)d;
    return MU_OK;
}

/* ---- reading what the tensors need ---- */

/* Multimodal models: the language model's part. */
static enum mu_status find_text(struct mu_hf_config *c, struct mu_err *err)
{
    const char *type = json_string_value(json_object_get(c->root, "model_type")), *inner;
    char shown[48];
    c->text = c->root;
    if (!type) return config_fail(c, MU_EFORMAT, err, "expected key \"model_type\", found none: it is no model's");
    const json_t *text = json_object_get(c->root, "text_config");
    if ((strcmp(type, "gemma3") == 0 || strcmp(type, "mistral3") == 0) && json_is_object(text)) {
        c->text = text;
        inner = json_string_value(json_object_get(text, "model_type"));
        type = inner ? inner : type;
    }
    if (strcmp(type, "gemma3") == 0) type = "gemma3_text";
    c->family = mu_hf_family_find(type);
    if (c->family) return MU_OK;
    return config_fail(c, MU_EUNSUPPORTED, err, "model type '%s' is not supported; this build reads folders of: %s",
                       mu_str_show((struct mu_str){type, strlen(type)}, shown, sizeof shown), mu_hf_family_names());
}

static enum mu_status refuse_quantized(const struct mu_hf_config *c, struct mu_err *err)
{
    const json_t *q = json_object_get(c->root, "quantization_config");
    if (!json_is_object(q)) q = value(c, "quantization_config");
    if (!json_is_object(q)) return MU_OK;
    const char *method = json_string_value(json_object_get(q, "quant_method"));
    char shown[32];
    if (method && strcmp(method, "mxfp4") == 0 && strcmp(c->family->model_type, "gpt_oss") == 0) return MU_OK;
    if (!method) method = "a method without a name";
    return config_fail(c, MU_EUNSUPPORTED, err,
                       "its weights are quantised (quant_method: %s), which is not supported; get the model's "
                       "F16 or BF16 folder and use --quantize, or a GGUF file",
                       mu_str_show((struct mu_str){method, strlen(method)}, shown, sizeof shown));
}

static enum mu_status read_heads(struct mu_hf_config *c, struct mu_err *err)
{
    bool falcon = strcmp(c->family->arch, "falcon") == 0,
         grouped = is_true(c, "new_decoder_architecture") || value(c, "n_head_kv"); /* the first 40B's say only that */
    enum mu_status st;
    MU_TRY(st, get_int(c, "num_attention_heads", falcon ? "n_head" : NULL, MU_MAX_HEAD, REQUIRED, &c->n_head, err),
           fail);
    MU_TRY(st,
           get_int(c, falcon ? "num_kv_heads" : "num_key_value_heads", falcon ? "n_head_kv" : NULL, MU_MAX_HEAD,
                   c->n_head, &c->n_kv_head, err),
           fail);
    if (falcon && !grouped) c->n_kv_head = json_is_false(value(c, "multi_query")) ? c->n_head : 1;
    c->qkv_group = falcon && (grouped || c->n_kv_head > 1);
    if (c->n_head < 1 || c->n_kv_head < 1 || c->n_head % c->n_kv_head != 0)
        return config_fail(c, MU_EFORMAT, err,
                           "expected a number of query heads that is a multiple of the key heads, found %d and %d",
                           c->n_head, c->n_kv_head);
    int split = c->d_model / c->n_head;
    MU_TRY(st, get_int(c, "head_dim", NULL, MU_MAX_D_HEAD, split, &c->d_head, err), fail);
    if (c->d_head < 1 || (c->d_head == split && c->d_model % c->n_head != 0 && !value(c, "head_dim")))
        return config_fail(c, MU_EFORMAT, err, "expected key \"head_dim\" or a \"hidden_size\" of n × %d, found %d",
                           c->n_head, c->d_model);
fail:
    return st;
}

enum mu_status mu_hf_config_read(const char *folder, struct mu_hf_config *c, struct mu_err *err)
{
    enum mu_status st;
    *c = (struct mu_hf_config){0};
    char *path = mu_asprintf("%s/config.json", folder);
    if (!path) return mu_fail(err, MU_ENOMEM, "no memory to open '%.100s'", folder);
    size_t len = strlen(path), skip = len < sizeof c->shown ? 0 : len - sizeof c->shown + 4;
    snprintf(c->shown, sizeof c->shown, "%s%s", skip ? "..." : "", path + skip);
    st = mu_json_read(path, &c->root, err);
    if (st == MU_ENOENT || st == MU_EIO) {
        mu_err_wrap(err, "a Hugging Face folder needs its config.json (a LoRA adapter is not a model)");
        goto fail;
    }
    if (st != MU_OK) goto fail;
    MU_TRY(st, find_text(c, err), fail);
    MU_TRY(st, refuse_quantized(c, err), fail);
    MU_TRY(st, get_int(c, "num_hidden_layers", "n_layer", MU_MAX_LAYER, REQUIRED, &c->n_layer, err), fail);
    MU_TRY(st, get_int(c, "hidden_size", NULL, MU_MAX_D_MODEL, REQUIRED, &c->d_model, err), fail);
    MU_TRY(st, read_heads(c, err), fail);
    bool local = strcmp(c->family->model_type, "mixtral") == 0 || strcmp(c->family->arch, "granitemoe") == 0 ||
                 strcmp(c->family->arch, "gpt-oss") == 0;
    if (local || strcmp(c->family->arch, "qwen3moe") == 0)
        MU_TRY(
            st,
            get_int(c, local ? "num_local_experts" : "num_experts", NULL, MU_MAX_EXPERT, REQUIRED, &c->n_expert, err),
            fail);
    const json_t *tied = json_object_get(c->text, "tie_word_embeddings");
    if (!tied) tied = json_object_get(c->root, "tie_word_embeddings");
    c->tied = json_is_boolean(tied) ? json_is_true(tied) : (c->family->flags & MU_HF_TIED) != 0;
fail:
    mu_free(path);
    return st;
}

void mu_hf_config_free(struct mu_hf_config *c)
{
    json_decref(c->root);
    c->root = NULL;
    c->text = NULL;
}

/* ---- keys ---- */

/* What keys are put with. */
struct put {
    const struct mu_hf_config *c;
    struct mu_gguf_writer *w;
    struct mu_hf_factors *factors;
    const json_t *rope; /* rope_parameters or rope_scaling of layers that see everything; NULL: none */
    int n_rot;
    struct mu_err *err;
};

static const char *key_of(const struct put *p, const char *suffix, char key[96])
{
    snprintf(key, 96, "%s.%s", p->c->family->arch, suffix);
    return key;
}

static void put_u32(const struct put *p, const char *suffix, int v)
{
    char key[96];
    mu_gguf_put_u32(p->w, key_of(p, suffix, key), (uint32_t)v);
}

static void put_f32(const struct put *p, const char *suffix, double v)
{
    char key[96];
    mu_gguf_put_f32(p->w, key_of(p, suffix, key), (float)v);
}

static void put_str(const struct put *p, const char *suffix, const char *v)
{
    char key[96];
    mu_gguf_put_str(p->w, key_of(p, suffix, key), v, strlen(v));
}

/* A number under its GGUF key, where config.json or the family has it. */
static enum mu_status put_number(const struct put *p, const char *from, const char *to, double fallback)
{
    double d = 0;
    enum mu_status st = get_number(p->c, value(p->c, from), from, fallback, &d, p->err);
    if (st == MU_OK) put_f32(p, to, d);
    return st;
}

static enum mu_status put_int(const struct put *p, const char *from, const char *other, const char *to, double fallback,
                              int *out)
{
    int v;
    enum mu_status st = get_int(p->c, from, other, 1 << 30, fallback, &v, p->err);
    if (st != MU_OK) return st;
    put_u32(p, to, v);
    if (out) *out = v;
    return MU_OK;
}

/* Keys that ask for what this build does not do, and the values at which they ask for nothing. */
static enum mu_status refuse_extras(const struct put *p)
{
    static const struct {
        const char *arch, *key; /* arch NULL: of all */
        bool fine;              /* the value at which it changes nothing; also where it is missing, but for required */
        bool required;
    } flags[] = {
        {NULL, "alibi", false, false},
        {NULL, "qk_layernorm", false, false},
        {NULL, "use_bidirectional_attention", false, false},
        {NULL, "is_causal", true, false},
        {"falcon", "parallel_attn", true, false},
        {"falcon", "bias", false, false},
        {"qwen3moe", "norm_topk_prob", true, true},
    };
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
        const json_t *v = value(p->c, flags[i].key);
        if (flags[i].arch && strcmp(flags[i].arch, p->c->family->arch) != 0) continue;
        if (v ? json_is_true(v) != flags[i].fine : flags[i].required)
            return config_fail(p->c, MU_EUNSUPPORTED, p->err, "key \"%s\": only %s is supported by this build",
                               flags[i].key, flags[i].fine ? "true" : "false");
    }
    double limit;
    enum mu_status st = get_number(p->c, value(p->c, "swiglu_limit"), "swiglu_limit", 7, &limit, p->err);
    if (st != MU_OK) return st;
    if (limit != 7)
        return config_fail(p->c, MU_EUNSUPPORTED, p->err, "key \"swiglu_limit\": only 7 is supported by this build");
    const json_t *step = value(p->c, "decoder_sparse_step"), *dense = value(p->c, "mlp_only_layers");
    if (p->c->n_expert > 0 && ((step && json_number_value(step) != 1) || json_array_size(dense) > 0))
        return config_fail(p->c, MU_EUNSUPPORTED, p->err,
                           "layers with and without experts in one model are not supported by this build");
    return MU_OK;
}

/* Gemma 1's "gelu" was always the tanh form, which a later key says. */
static enum mu_status check_activation(const struct put *p)
{
    static const struct {
        const char *arch, *key, *fine[3];
    } rows[] = {
        {"llama", "hidden_act", {"silu", "swish", NULL}},
        {"qwen2", "hidden_act", {"silu", "swish", NULL}},
        {"qwen3", "hidden_act", {"silu", "swish", NULL}},
        {"qwen3moe", "hidden_act", {"silu", "swish", NULL}},
        {"phi3", "hidden_act", {"silu", "swish", NULL}},
        {"phi2", "hidden_act", {"gelu_new", "gelu_pytorch_tanh", NULL}},
        {"mistral3", "hidden_act", {"silu", "swish", NULL}},
        {"smollm3", "hidden_act", {"silu", "swish", NULL}},
        {"granite", "hidden_act", {"silu", "swish", NULL}},
        {"granitemoe", "hidden_act", {"silu", "swish", NULL}},
        {"gpt-oss", "hidden_act", {"silu", "swish", NULL}},
        {"gemma", "hidden_activation", {"gelu_pytorch_tanh", "gelu", NULL}},
        {"gemma2", "hidden_activation", {"gelu_pytorch_tanh", NULL, NULL}},
        {"gemma3", "hidden_activation", {"gelu_pytorch_tanh", NULL, NULL}},
        {"falcon", "activation", {"gelu", NULL, NULL}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *found = json_string_value(value(p->c, rows[i].key));
        char shown[32];
        bool fine = !found || strcmp(rows[i].arch, p->c->family->arch) != 0;
        for (int k = 0; k < 3 && rows[i].fine[k] && !fine; k++) fine = strcmp(found, rows[i].fine[k]) == 0;
        if (!fine)
            return config_fail(p->c, MU_EUNSUPPORTED, p->err,
                               "key \"%s\": expected \"%s\", found \"%s\", which this build does not compute for it",
                               rows[i].key, rows[i].fine[0],
                               mu_str_show((struct mu_str){found, strlen(found)}, shown, sizeof shown));
    }
    return MU_OK;
}

/* ---- windows ---- */

/* Which layers see everything: layers n - 1, 2n - 1 … for the period n; 0: none; 1: all. `period` stays where config.json
 * does not list the layers. */
static enum mu_status read_layer_types(const struct put *p, int *period)
{
    const json_t *types = value(p->c, "layer_types");
    int found = 0;
    if (!types) return MU_OK;
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < p->c->n_layer; i++) {
            const char *t = json_string_value(json_array_get(types, (size_t)i));
            bool full = t && strcmp(t, "full_attention") == 0;
            if (!full && !(t && strcmp(t, "sliding_attention") == 0))
                return config_fail(p->c, MU_EUNSUPPORTED, p->err,
                                   "key \"layer_types\": expected \"full_attention\" or \"sliding_attention\" for each "
                                   "of %d layers, which are what this build computes",
                                   p->c->n_layer);
            if (pass == 0 && full && !found) found = i + 1;
            if (pass == 1 && full != (found && (i + 1) % found == 0))
                return config_fail(p->c, MU_EUNSUPPORTED, p->err,
                                   "key \"layer_types\": this build computes windows that leave out every n-th layer, "
                                   "and layer %d breaks the pattern",
                                   i);
        }
    /* A model shorter than its family's period lists windows only. */
    if (found || *period <= p->c->n_layer) *period = found;
    return MU_OK;
}

static enum mu_status put_window(const struct put *p)
{
    const struct mu_hf_config *c = p->c;
    const char *arch = c->family->arch;
    bool gemma = strcmp(arch, "gemma2") == 0 || strcmp(arch, "gemma3") == 0, qwen = strncmp(arch, "qwen", 4) == 0;
    bool plain = strcmp(arch, "phi3") == 0 || strcmp(arch, "mistral3") == 0 ||
                 strcmp(c->family->model_type, "mistral") == 0 || c->n_expert > 0;
    bool oss = strcmp(arch, "gpt-oss") == 0, in_turn = gemma || oss;
    int usual = oss || strcmp(arch, "gemma2") == 0 ? 2 : 6, period = in_turn ? usual : 0, window, from = 0;
    enum mu_status st;
    if (qwen ? !is_true(c, "use_sliding_window") : !gemma && !plain) period = 1;
    if (strcmp(arch, "gemma3") == 0) {
        const char *key = value(c, "sliding_window_pattern") ? "sliding_window_pattern" : "_sliding_window_pattern";
        MU_TRY(st, get_int(c, key, NULL, MU_MAX_LAYER, usual, &period, p->err), fail);
    }
    if (qwen && period == 0) {
        MU_TRY(st, get_int(c, "max_window_layers", NULL, 1 << 20, 28, &from, p->err), fail);
        if (from >= c->n_layer) period = 1;
        if (from > 0 && from < c->n_layer)
            return config_fail(c, MU_EUNSUPPORTED, p->err,
                               "windows from layer %d on (key \"max_window_layers\") are not supported by this build",
                               from);
    }
    MU_TRY(st, read_layer_types(p, &period), fail);
    MU_TRY(st, get_int(c, "sliding_window", NULL, MU_MAX_CTX, 0, &window, p->err), fail);
    if (period == 1) window = 0;
    if (window > 0 || gemma) put_u32(p, "attention.sliding_window", window);
    if (window > 0 && period != (in_turn ? usual : 0)) put_u32(p, "attention.sliding_window_pattern", period);
fail:
    return st;
}

/* ---- rotation ---- */

/* A number out of the rotation's object, else beside it. */
static enum mu_status get_rope(const struct put *p, const char *key, double fallback, double *out)
{
    const json_t *v = json_object_get(p->rope, key);
    return get_number(p->c, v && !json_is_null(v) ? v : value(p->c, key), key, fallback, out, p->err);
}

static enum mu_status add_factors(const struct put *p, const char *name, float **values_out)
{
    struct mu_hf_factors *f = p->factors;
    int i = f->set[0] ? 1 : 0;
    const uint64_t ne[1] = {(uint64_t)p->n_rot / 2};
    f->n = p->n_rot / 2;
    f->set[i] = mu_calloc((size_t)f->n, sizeof **f->set);
    if (!f->set[i]) return mu_fail(p->err, MU_ENOMEM, "no memory for %d rotation factors", f->n);
    f->name[i] = name;
    mu_gguf_put_tensor(p->w, name, MU_F32, 1, ne);
    *values_out = f->set[i];
    return MU_OK;
}

/* Llama 3.1's: long waves are stretched by `factor`, short ones left alone, those between blended. */
static enum mu_status put_llama3(const struct put *p, double base)
{
    double factor, low, high, original;
    float *values = NULL;
    enum mu_status st;
    MU_TRY(st, get_rope(p, "factor", REQUIRED, &factor), fail);
    MU_TRY(st, get_rope(p, "low_freq_factor", REQUIRED, &low), fail);
    MU_TRY(st, get_rope(p, "high_freq_factor", REQUIRED, &high), fail);
    MU_TRY(st, get_rope(p, "original_max_position_embeddings", REQUIRED, &original), fail);
    if (!(factor > 0 && low > 0 && high > low && original >= 1))
        return config_fail(p->c, MU_EFORMAT, p->err,
                           "rope type 'llama3': expected factor > 0, 0 < low_freq_factor < high_freq_factor and "
                           "original_max_position_embeddings of at least 1");
    MU_TRY(st, add_factors(p, "rope_freqs.weight", &values), fail);
    mu_rope_freqs(base, p->n_rot, NULL, values);
    for (int i = 0; i < p->n_rot / 2; i++) {
        float wave = (float)(2 * 3.14159265358979323846) / values[i];
        if (wave < (float)(original / high)) {
            values[i] = 1.0f;
        } else if (wave > (float)(original / low)) {
            values[i] = (float)factor;
        } else {
            float smooth = ((float)original / wave - (float)low) / (float)(high - low);
            values[i] = 1.0f / ((1.0f - smooth) / (float)factor + smooth);
        }
    }
fail:
    return st;
}

static enum mu_status put_factor_list(const struct put *p, const char *key, const char *name)
{
    const json_t *list = json_object_get(p->rope, key);
    float *values;
    if (json_array_size(list) != (size_t)p->n_rot / 2)
        return config_fail(p->c, MU_EFORMAT, p->err, "key \"%s\": expected %d factors, found %zu", key, p->n_rot / 2,
                           json_array_size(list));
    enum mu_status st = add_factors(p, name, &values);
    for (int i = 0; st == MU_OK && i < p->n_rot / 2; i++) {
        double d;
        st = get_number(p->c, json_array_get(list, (size_t)i), key, REQUIRED, &d, p->err);
        if (st == MU_OK) values[i] = (float)d;
    }
    return st;
}

/* Su's longrope: a set of factors for contexts up to the original one, and another beyond. */
static enum mu_status put_longrope(const struct put *p)
{
    double most, original, attn;
    enum mu_status st;
    MU_TRY(st,
           get_number(p->c, value(p->c, "max_position_embeddings"), "max_position_embeddings", REQUIRED, &most, p->err),
           fail);
    MU_TRY(st, get_rope(p, "original_max_position_embeddings", REQUIRED, &original), fail);
    if (!(original > 1))
        return config_fail(p->c, MU_EFORMAT, p->err,
                           "key \"original_max_position_embeddings\": expected a number above 1, found %g", original);
    double scale = most / original;
    MU_TRY(st, get_rope(p, "attention_factor", scale > 1 ? sqrt(1 + log(scale) / log(original)) : 1, &attn), fail);
    put_f32(p, "rope.scaling.attn_factor", attn);
    MU_TRY(st, put_factor_list(p, "short_factor", "rope_factors_short.weight"), fail);
    MU_TRY(st, put_factor_list(p, "long_factor", "rope_factors_long.weight"), fail);
fail:
    return st;
}

/* Cosines and sines are multiplied by m(1), m being mu_yarn_scale, or as config.json says. GGUF's attn_factor multiplies
 * m(1); config.json's attention_factor replaces it, and mscale and mscale_all_dim make it m(mscale) / m(mscale_all_dim),
 * which GGUF has a key for where mscale is 1. */
static enum mu_status put_yarn(const struct put *p)
{
    double factor, original, attn, fast, slow, most, one, all;
    enum mu_status st;
    bool exact = json_is_false(json_object_get(p->rope, "truncate")), oss = strcmp(p->c->family->arch, "gpt-oss") == 0;
    if (exact != oss) /* the bounds that the architecture has by itself */
        return config_fail(p->c, MU_EUNSUPPORTED, p->err, "rope type 'yarn' %s \"truncate\" is not supported for it",
                           exact ? "without" : "with");
    MU_TRY(st,
           get_number(p->c, value(p->c, "max_position_embeddings"), "max_position_embeddings", REQUIRED, &most, p->err),
           fail);
    MU_TRY(st, get_rope(p, "factor", REQUIRED, &factor), fail);
    MU_TRY(st, get_rope(p, "original_max_position_embeddings", most, &original), fail);
    MU_TRY(st, get_rope(p, "mscale", 0, &one), fail);
    MU_TRY(st, get_rope(p, "mscale_all_dim", 0, &all), fail);
    if (!(factor >= 1 && original >= 1 && original <= MU_MAX_CTX && one >= 0 && all >= 0))
        return config_fail(
            p->c, MU_EFORMAT, p->err,
            "rope type 'yarn': expected a factor and original_max_position_embeddings of at least 1, and "
            "no mscale below 0");
    bool weighed = one > 0 && all > 0, said = json_is_number(json_object_get(p->rope, "attention_factor"));
    double usual = mu_yarn_scale(factor, 1);
    MU_TRY(st,
           get_rope(p, "attention_factor", weighed ? mu_yarn_scale(factor, one) / mu_yarn_scale(factor, all) : usual,
                    &attn),
           fail);
    MU_TRY(st, get_rope(p, "beta_fast", 32, &fast), fail);
    MU_TRY(st, get_rope(p, "beta_slow", 1, &slow), fail);
    put_str(p, "rope.scaling.type", "yarn");
    put_f32(p, "rope.scaling.factor", factor);
    if (strcmp(p->c->family->arch, "phi3") != 0) put_u32(p, "rope.scaling.original_context_length", (int)original);
    if (weighed && one == 1 && !said)
        put_f32(p, "rope.scaling.yarn_log_multiplier", all);
    else if (attn != usual)
        put_f32(p, "rope.scaling.attn_factor", attn / usual);
    if (fast != 32) put_f32(p, "rope.scaling.yarn_beta_fast", fast);
    if (slow != 1) put_f32(p, "rope.scaling.yarn_beta_slow", slow);
fail:
    return st;
}

static enum mu_status put_scaling(const struct put *p, double base)
{
    const char *type = json_string_value(json_object_get(p->rope, "rope_type"));
    char shown[32];
    double factor;
    if (!type) type = json_string_value(json_object_get(p->rope, "type"));
    if (!type || strcmp(type, "default") == 0) return MU_OK;
    if (strcmp(type, "llama3") == 0) return put_llama3(p, base);
    if (strcmp(type, "longrope") == 0 || strcmp(type, "su") == 0) return put_longrope(p);
    if (strcmp(type, "yarn") == 0) return put_yarn(p);
    if (strcmp(type, "linear") != 0)
        return config_fail(p->c, MU_EUNSUPPORTED, p->err,
                           "rope type '%s' is not supported; this build knows default, linear, llama3, longrope and "
                           "yarn",
                           mu_str_show((struct mu_str){type, strlen(type)}, shown, sizeof shown));
    enum mu_status st = get_rope(p, "factor", REQUIRED, &factor);
    if (st != MU_OK) return st;
    put_str(p, "rope.scaling.type", "linear");
    put_f32(p, "rope.scaling.factor", factor);
    return MU_OK;
}

/* The rotation of layers with a window, where they have their own. */
static enum mu_status put_local(const struct put *p, const json_t *local)
{
    const json_t *theta = json_object_get(local, "rope_theta");
    const char *type = json_string_value(json_object_get(local, "rope_type"));
    double base;
    if (type && strcmp(type, "default") != 0)
        return config_fail(p->c, MU_EUNSUPPORTED, p->err,
                           "a scaled rotation of layers with a window is not supported by this build");
    if (!theta) theta = value(p->c, "rope_local_base_freq");
    enum mu_status st = get_number(p->c, theta, "rope_local_base_freq", 10000, &base, p->err);
    if (st == MU_OK) put_f32(p, "rope.freq_base_swa", base);
    return st;
}

static enum mu_status put_rope(struct put *p)
{
    double base, part;
    int original;
    enum mu_status st = MU_OK;
    const json_t *local = NULL;
    p->rope = value(p->c, "rope_parameters");
    if (!p->rope) p->rope = value(p->c, "rope_scaling");
    if (json_is_object(json_object_get(p->rope, "full_attention"))) {
        local = json_object_get(p->rope, "sliding_attention");
        p->rope = json_object_get(p->rope, "full_attention");
    }
    MU_TRY(st, get_rope(p, "rope_theta", 10000, &base), fail);
    MU_TRY(st, get_rope(p, "partial_rotary_factor", 1, &part), fail);
    if (!(base > 0 && part > 0 && part <= 1))
        return config_fail(p->c, MU_EFORMAT, p->err,
                           "expected \"rope_theta\" above 0 and \"partial_rotary_factor\" from 0 to 1, found %g and %g",
                           base, part);
    p->n_rot = (int)(part * p->c->d_head);
    if (p->n_rot < 2 || p->n_rot % 2 != 0)
        return config_fail(p->c, MU_EFORMAT, p->err,
                           "expected an even number of at least 2 rotated dimensions, found %d", p->n_rot);
    put_u32(p, "rope.dimension_count", p->n_rot);
    put_f32(p, "rope.freq_base", base);
    if (strcmp(p->c->family->arch, "gemma3") == 0) MU_TRY(st, put_local(p, local), fail);
    if (strcmp(p->c->family->arch, "mistral3") == 0 && json_object_get(p->rope, "llama_4_scaling_beta")) {
        double scale;
        MU_TRY(st, get_rope(p, "llama_4_scaling_beta", 0, &scale), fail);
        put_f32(p, "attention.temperature_scale", scale);
    }
    if (strcmp(p->c->family->arch, "phi3") == 0) {
        double d;
        MU_TRY(st, get_int(p->c, "max_position_embeddings", NULL, MU_MAX_CTX, REQUIRED, &original, p->err), fail);
        MU_TRY(st, get_rope(p, "original_max_position_embeddings", original, &d), fail);
        if (d >= 1 && d <= MU_MAX_CTX) put_u32(p, "rope.scaling.original_context_length", (int)d);
    }
    MU_TRY(st, put_scaling(p, base), fail);
fail:
    return st;
}

/* ---- all of them ---- */

static enum mu_status put_sizes(const struct put *p, int n_vocab)
{
    const struct mu_hf_config *c = p->c;
    bool falcon = strcmp(c->family->arch, "falcon") == 0, phi2 = strcmp(c->family->arch, "phi2") == 0;
    enum mu_status st;
    put_u32(p, "block_count", c->n_layer);
    put_u32(p, "embedding_length", c->d_model);
    put_u32(p, "vocab_size", n_vocab);
    put_u32(p, "attention.head_count", c->n_head);
    put_u32(p, "attention.head_count_kv", c->n_kv_head);
    put_u32(p, "attention.key_length", c->d_head);
    put_u32(p, "attention.value_length", c->d_head);
    MU_TRY(st, put_int(p, "max_position_embeddings", NULL, "context_length", REQUIRED, NULL), fail);
    MU_TRY(st,
           put_int(p, falcon ? "ffn_hidden_size" : "intermediate_size", NULL, "feed_forward_length",
                   falcon || phi2    ? 4.0 * c->d_model
                   : c->n_expert > 0 ? c->d_model
                                     : REQUIRED,
                   NULL),
           fail);
    if (falcon || phi2)
        MU_TRY(
            st,
            put_number(p, falcon ? "layer_norm_epsilon" : "layer_norm_eps", "attention.layer_norm_epsilon", REQUIRED),
            fail);
    else
        MU_TRY(st, put_number(p, "rms_norm_eps", "attention.layer_norm_rms_epsilon", 1e-6), fail);
    if (falcon) put_str(p, "tensor_data_layout", "jploski");
    if (c->n_expert > 0) {
        put_u32(p, "expert_count", c->n_expert);
        MU_TRY(st, put_int(p, "num_experts_per_tok", NULL, "expert_used_count", REQUIRED, NULL), fail);
        if (strcmp(c->family->arch, "qwen3moe") == 0)
            MU_TRY(st, put_int(p, "moe_intermediate_size", NULL, "expert_feed_forward_length", REQUIRED, NULL), fail);
    }
fail:
    return st;
}

/* SmolLM 3's layers that do not turn: the model layer knows every fourth. */
static enum mu_status check_still_layers(const struct put *p)
{
    const json_t *turns = value(p->c, "no_rope_layers"); /* 1: it does turn */
    int period;
    enum mu_status st = get_int(p->c, "no_rope_layer_interval", NULL, MU_MAX_LAYER, 4, &period, p->err);
    if (st != MU_OK) return st;
    bool usual = period == 4;
    for (int i = 0; turns && i < p->c->n_layer; i++) {
        const json_t *v = json_array_get(turns, (size_t)i);
        usual = json_is_integer(v) && json_integer_value(v) == ((i + 1) % 4 != 0);
        if (!usual) break;
    }
    if (usual) return MU_OK;
    return config_fail(p->c, MU_EUNSUPPORTED, p->err,
                       "key \"no_rope_layers\": this build computes models in which every fourth layer does not turn");
}

/* Granite's factors. */
static enum mu_status put_multipliers(const struct put *p)
{
    enum mu_status st;
    MU_TRY(st, put_number(p, "embedding_multiplier", "embedding_scale", 1), fail);
    MU_TRY(st, put_number(p, "residual_multiplier", "residual_scale", 1), fail);
    MU_TRY(st, put_number(p, "attention_multiplier", "attention.scale", 1), fail);
    MU_TRY(st, put_number(p, "logits_scaling", "logit_scale", 1), fail);
fail:
    return st;
}

/* Soft caps and the scale of attention. */
static enum mu_status put_scales(const struct put *p)
{
    bool gemma = strncmp(p->c->family->arch, "gemma", 5) == 0;
    double scalar;
    enum mu_status st = MU_OK;
    static const char *const caps[] = {"attn_logit_softcapping", "final_logit_softcapping"};
    for (int i = 0; i < 2; i++)
        if (strcmp(p->c->family->arch, "gemma2") == 0 || value(p->c, caps[i])) {
            bool off = json_is_null(json_object_get(p->c->text, caps[i])); /* null is off, missing is the default */
            MU_TRY(st, off ? (put_f32(p, caps[i], 0), MU_OK) : put_number(p, caps[i], caps[i], 0), fail);
        }
    if (!gemma) return MU_OK;
    MU_TRY(
        st,
        get_number(p->c, value(p->c, "query_pre_attn_scalar"), "query_pre_attn_scalar", p->c->d_head, &scalar, p->err),
        fail);
    if (!(scalar > 0))
        return config_fail(p->c, MU_EFORMAT, p->err, "key \"query_pre_attn_scalar\": expected a number above 0");
    put_f32(p, "attention.scale", (double)(1.0f / sqrtf((float)scalar)));
fail:
    return st;
}

enum mu_status mu_hf_config_put(const struct mu_hf_config *c, int n_vocab, struct mu_gguf_writer *w,
                                struct mu_hf_factors *factors, struct mu_err *err)
{
    struct put p = {.c = c, .w = w, .factors = factors, .err = err};
    enum mu_status st;
    mu_gguf_put_str(w, "general.architecture", c->family->arch, strlen(c->family->arch));
    MU_TRY(st, refuse_extras(&p), fail);
    MU_TRY(st, check_activation(&p), fail);
    MU_TRY(st, put_sizes(&p, n_vocab), fail);
    MU_TRY(st, put_scales(&p), fail);
    MU_TRY(st, put_window(&p), fail);
    if (strcmp(c->family->arch, "smollm3") == 0) MU_TRY(st, check_still_layers(&p), fail);
    if (strncmp(c->family->arch, "granite", 7) == 0) MU_TRY(st, put_multipliers(&p), fail);
    MU_TRY(st, put_rope(&p), fail);
fail:
    return st;
}
