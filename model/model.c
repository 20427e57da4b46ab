/* Opening a model: which architecture it is, its sizes, and where every tensor that the pass touches lies.
 *
 * Invariant after mu_model_open: every pointer of struct mu_model is set, every shape is what the sizes say, every
 * matrix has a type that this build multiplies with, every vector is F32 and finite. The pass checks none of it
 * again. A tensor that no rule knows is refused: leaving it out would run a different model. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/utf8.h"
#include "kernels/kernels.h"
#include "model/arch.h"
#include "model/utf8.h"

static enum mu_status tensor_fail(const struct mu_model *m, const struct mu_gguf_tensor *t, enum mu_status code,
                                  struct mu_err *err, const char *fmt, ...) __attribute__((format(printf, 5, 6)));

static enum mu_status tensor_fail(const struct mu_model *m, const struct mu_gguf_tensor *t, enum mu_status code,
                                  struct mu_err *err, const char *fmt, ...)
{
    char text[MU_ERR_TEXT];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return mu_gguf_tensor_fail(m->gguf, t, code, text, err);
}

/* "F32, F16, …": what this build multiplies with. */
static const char *matrix_types(char *buf, size_t buf_bytes)
{
    size_t len = 0;
    buf[0] = 0;
    for (uint32_t type = 0; type < MU_TYPE_LIMIT && len < buf_bytes; type++) {
        const struct mu_type_info *info = mu_type_info(type);
        if (!info || info->act == MU_ACT_NONE) continue;
        len += (size_t)snprintf(buf + len, buf_bytes - len, "%s%s", len ? ", " : "", info->name);
    }
    return buf;
}

/* A stack of matrices, one an expert, has n_row rows in all. */
static enum mu_status check_shape(const struct mu_model *m, const struct mu_gguf_tensor *t, int n_col, int n_row,
                                  struct mu_err *err)
{
    int n_expert = m->cfg.n_expert;
    bool flat = t->n_dim <= 2 || (t->n_dim == 3 && n_expert > 0 && t->ne[2] == (uint64_t)n_expert);
    if (t->ne[0] == (uint64_t)n_col && t->n_row == (uint64_t)n_row && flat) return MU_OK;
    return tensor_fail(m, t, MU_EFORMAT, err, "expected %d rows of %d values, found %llu × %llu × %llu × %llu", n_row,
                       n_col, (unsigned long long)t->ne[3], (unsigned long long)t->ne[2], (unsigned long long)t->ne[1],
                       (unsigned long long)t->ne[0]);
}

static enum mu_status check_matrix(const struct mu_model *m, const struct mu_gguf_tensor *t, int n_col, int n_row,
                                   struct mu_err *err)
{
    char types[192];
    const struct mu_type_info *info = mu_type_info(t->type);
    if (info->act == MU_ACT_NONE)
        return tensor_fail(
            m, t, MU_EUNSUPPORTED, err,
            "its type %s is not supported by this build, which computes with %s; get the model in one of these",
            info->name, matrix_types(types, sizeof types));
    return check_shape(m, t, n_col, n_row, err);
}

/* F32, n_row of that length, every value finite. */
static enum mu_status check_vectors(const struct mu_model *m, const struct mu_gguf_tensor *t, int n_col, int n_row,
                                    struct mu_err *err)
{
    enum mu_status st = check_shape(m, t, n_col, n_row, err);
    if (st != MU_OK) return st;
    size_t n = (size_t)n_col * (size_t)n_row;
    if (t->type != MU_F32)
        return tensor_fail(m, t, MU_EUNSUPPORTED, err,
                           "expected type F32, found %s, which is not supported for vectors",
                           mu_type_info(t->type)->name);
    for (size_t i = 0; i < n; i++) {
        float f;
        memcpy(&f, t->data + 4 * i, 4);
        if (!isfinite(f))
            return tensor_fail(m, t, MU_ENONFINITE, err, "expected finite values, found %g at index %zu", (double)f, i);
    }
    return MU_OK;
}

static enum mu_status check_vector(const struct mu_model *m, const struct mu_gguf_tensor *t, int n, struct mu_err *err)
{
    return check_vectors(m, t, n, 1, err);
}

bool mu_layer_name_split(struct mu_str name, int *layer_out, struct mu_str *rest_out)
{
    size_t i = 4;
    int layer = 0;
    if (name.len < 7 || memcmp(name.p, "blk.", 4) != 0) return false;
    while (i < name.len && name.p[i] >= '0' && name.p[i] <= '9' && i < 9) layer = layer * 10 + (name.p[i++] - '0');
    if (i == 4 || i + 1 >= name.len || name.p[i] != '.' || (name.p[4] == '0' && i > 5)) return false;
    *layer_out = layer;
    *rest_out = (struct mu_str){name.p + i + 1, name.len - i - 1};
    return true;
}

/* Tables that old converters wrote and that follow from the sizes. */
static bool is_harmless(struct mu_str rest)
{
    return mu_str_is(rest, "attn_rot_embd") || mu_str_is(rest, "attn_rot_embd.weight") ||
           mu_str_is(rest, "rope.freqs") || mu_str_is(rest, "attention.rotary_emb.inv_freq");
}

/* A part of a fused tensor: rows [row0, row0 + n_row), or values of a vector. */
static const struct mu_gguf_tensor *part_of(struct mu_model *m, const struct mu_gguf_tensor *t, bool vector, int at,
                                            int n)
{
    struct mu_gguf_tensor *part = &m->parts[m->n_part++];
    size_t skip = (size_t)at * (vector ? sizeof(float) : t->row_bytes);
    *part = *t;
    if (!vector && t->runs) {
        part->run_skip += (uint64_t)at;
        part->data = mu_gguf_row(part, 0);
    } else {
        part->data += skip;
        part->offset += skip;
    }
    part->ne[vector ? 0 : 1] = (uint64_t)n;
    part->n_row = vector ? 1 : (uint64_t)n;
    if (vector) part->row_bytes = (size_t)n * sizeof(float);
    part->bytes = part->row_bytes * (size_t)part->n_row;
    return part;
}

/* The tensor that begins at rule r, whole or as its parts. */
static enum mu_status place_parts(struct mu_model *m, const struct mu_gguf_tensor *t, int layer,
                                  const struct mu_tensor_rule *r, struct mu_err *err)
{
    int n_col, n_row, n = mu_rule_parts(&m->cfg, r, &n_col, &n_row), at = 0;
    bool vector = r->n_row == MU_DIM_ONE;
    char other[64];
    enum mu_status st =
        r->id < MU_T_MATRIX_COUNT ? check_matrix(m, t, n_col, n_row, err) : check_vectors(m, t, n_col, n_row, err);
    for (int i = 0; i < n && st == MU_OK; i++) {
        const struct mu_gguf_tensor **place = &m->layer[layer][r[i].id];
        int size = mu_dim_size(&m->cfg, vector ? r[i].n_col : r[i].n_row);
        if (*place)
            return tensor_fail(m, t, MU_EFORMAT, err, "expected this or '%s', found both",
                               mu_str_show((*place)->name, other, sizeof other));
        *place = n == 1 ? t : part_of(m, t, vector, at, size);
        at += size;
    }
    return st;
}

static enum mu_status place_layer_tensor(struct mu_model *m, const struct mu_gguf_tensor *t, int layer,
                                         struct mu_str rest, struct mu_err *err)
{
    if (layer >= m->cfg.n_layer)
        return tensor_fail(m, t, MU_EUNSUPPORTED, err,
                           "the model has %d layers by key '%s.block_count'; layers beyond are not supported",
                           m->cfg.n_layer, m->arch->name);
    for (const struct mu_tensor_rule *r = mu_arch_rules(m->arch, &m->cfg); r->suffix; r++)
        if (mu_str_is(rest, r->suffix)) return place_parts(m, t, layer, r, err);
    if (is_harmless(rest)) return MU_OK;
    return tensor_fail(
        m, t, MU_EUNSUPPORTED, err,
        "this build does not know what it does in architecture '%s', and leaving it out would give wrong answers",
        m->arch->name);
}

/* A tensor outside of the layers that check_ends and copy_rope_factors look for. */
static bool is_end(const struct mu_arch *arch, struct mu_str name)
{
    return mu_str_is(name, "token_embd.weight") || mu_str_is(name, "output.weight") ||
           mu_str_is(name, "output_norm.weight") || mu_str_is(name, "rope_freqs.weight") ||
           (arch->norm == MU_NORM_LAYER && mu_str_is(name, "output_norm.bias")) ||
           (arch->out_bias && mu_str_is(name, "output.bias")) ||
           ((arch->features & MU_HAS_LONGROPE) &&
            (mu_str_is(name, "rope_factors_short.weight") || mu_str_is(name, "rope_factors_long.weight")));
}

/* Every tensor of the file finds its place, or is known to be harmless, or the model is refused. */
static enum mu_status place_tensors(struct mu_model *m, struct mu_err *err)
{
    enum mu_status st = MU_OK;
    for (size_t i = 0; i < mu_gguf_n_tensor(m->gguf) && st == MU_OK; i++) {
        const struct mu_gguf_tensor *t = mu_gguf_tensor_at(m->gguf, i);
        struct mu_str rest;
        int layer;
        if (mu_layer_name_split(t->name, &layer, &rest))
            st = place_layer_tensor(m, t, layer, rest, err);
        else if (!is_end(m->arch, t->name) && !is_harmless(t->name))
            st = tensor_fail(
                m, t, MU_EUNSUPPORTED, err,
                "this build does not know what it does in architecture '%s', and leaving it out would give wrong "
                "answers",
                m->arch->name);
    }
    for (int layer = 0; layer < m->cfg.n_layer && st == MU_OK; layer++) {
        const struct mu_gguf_tensor *const *t = m->layer[layer];
        if (m->arch->norm == MU_NORM_LAYER && !t[MU_T_ATTN_NORM] != !t[MU_T_ATTN_NORM_B])
            st = tensor_fail(m, t[MU_T_ATTN_NORM] ? t[MU_T_ATTN_NORM] : t[MU_T_ATTN_NORM_B], MU_EFORMAT, err,
                             "expected weight and bias of this norm, found one of them");
        for (const struct mu_tensor_rule *r = mu_arch_rules(m->arch, &m->cfg); r->suffix && st == MU_OK; r++)
            if (!m->layer[layer][r->id] && !r->optional)
                st =
                    mu_gguf_fail(m->gguf, MU_EFORMAT, err, "expected tensor 'blk.%d.%s', found none", layer, r->suffix);
    }
    return st;
}

static enum mu_status find_tensor(const struct mu_model *m, const char *name, const struct mu_gguf_tensor **t_out,
                                  struct mu_err *err)
{
    *t_out = mu_gguf_tensor(m->gguf, name);
    return *t_out ? MU_OK : mu_gguf_fail(m->gguf, MU_EFORMAT, err, "expected tensor '%s', found none", name);
}

/* The embedding decides the vocabulary's size where no key does. */
static enum mu_status check_ends(struct mu_model *m, struct mu_err *err)
{
    struct mu_config *cfg = &m->cfg;
    enum mu_status st;
    MU_TRY(st, find_tensor(m, "token_embd.weight", &m->embed, err), fail);
    if (cfg->n_vocab == 0) {
        if (m->embed->n_row > MU_MAX_VOCAB)
            return tensor_fail(m, m->embed, MU_ELIMIT, err, "expected at most %d rows, found %llu", MU_MAX_VOCAB,
                               (unsigned long long)m->embed->n_row);
        cfg->n_vocab = (int)m->embed->n_row;
    }
    MU_TRY(st, check_matrix(m, m->embed, cfg->d_model, cfg->n_vocab, err), fail);
    m->output = mu_gguf_tensor(m->gguf, "output.weight");
    m->tied = !m->output;
    if (m->tied) m->output = m->embed;
    MU_TRY(st, check_matrix(m, m->output, cfg->d_model, cfg->n_vocab, err), fail);
    MU_TRY(st, find_tensor(m, "output_norm.weight", &m->out_norm, err), fail);
    MU_TRY(st, check_vector(m, m->out_norm, cfg->d_model, err), fail);
    if (m->arch->norm == MU_NORM_LAYER) {
        MU_TRY(st, find_tensor(m, "output_norm.bias", &m->out_norm_b, err), fail);
        MU_TRY(st, check_vector(m, m->out_norm_b, cfg->d_model, err), fail);
    }
    if (m->arch->out_bias) {
        MU_TRY(st, find_tensor(m, "output.bias", &m->out_b, err), fail);
        MU_TRY(st, check_vector(m, m->out_b, cfg->n_vocab, err), fail);
    }

    const struct mu_gguf_value *tokens = mu_gguf_find(m->gguf, "tokenizer.ggml.tokens");
    if (tokens && tokens->n > (uint64_t)cfg->n_vocab)
        return mu_gguf_value_fail(m->gguf, tokens, MU_EFORMAT, err,
                                  "expected at most %d tokens, as many as the embedding has rows, found %llu",
                                  cfg->n_vocab, (unsigned long long)tokens->n);
fail:
    return st;
}

static enum mu_status copy_factors(const struct mu_model *m, const char *name, const float **factors_out,
                                   struct mu_err *err)
{
    const struct mu_gguf_tensor *t = mu_gguf_tensor(m->gguf, name);
    if (!t) return MU_OK;
    int n = m->cfg.n_rot / 2;
    enum mu_status st = check_vector(m, t, n, err);
    if (st != MU_OK) return st;
    float *factors = mu_calloc((size_t)n, sizeof *factors);
    if (!factors) return mu_gguf_fail(m->gguf, MU_ENOMEM, err, "no memory for %d rotation factors", n);
    memcpy(factors, t->data, (size_t)n * sizeof *factors);
    *factors_out = factors;
    for (int i = 0; i < n; i++)
        if (!(factors[i] > 0))
            return tensor_fail(m, t, MU_EFORMAT, err, "expected factors above 0, found %g at index %d",
                               (double)factors[i], i);
    return MU_OK;
}

/* One set, or a short and a long one with the factor that goes with them. */
static enum mu_status copy_rope_factors(struct mu_model *m, struct mu_err *err)
{
    const struct mu_gguf_tensor *one = mu_gguf_tensor(m->gguf, "rope_freqs.weight"), *set[2];
    char key[96];
    if (!(m->arch->features & MU_HAS_LONGROPE)) return copy_factors(m, "rope_freqs.weight", &m->rope_factors, err);
    set[0] = mu_gguf_tensor(m->gguf, "rope_factors_short.weight");
    set[1] = mu_gguf_tensor(m->gguf, "rope_factors_long.weight");
    if (!set[0] && !set[1]) return copy_factors(m, "rope_freqs.weight", &m->rope_factors, err);
    if (!set[0] || !set[1] || one)
        return tensor_fail(m, set[0] ? set[0] : set[1], MU_EFORMAT, err,
                           "expected rope_factors_short.weight and rope_factors_long.weight without rope_freqs.weight");
    snprintf(key, sizeof key, "%s.rope.scaling.attn_factor", m->arch->name);
    if (!mu_gguf_find(m->gguf, key))
        return tensor_fail(m, set[0], MU_EFORMAT, err, "expected key '%s' with it, found none", key);
    enum mu_status st = copy_factors(m, "rope_factors_short.weight", &m->rope_factors, err);
    return st == MU_OK ? copy_factors(m, "rope_factors_long.weight", &m->rope_long, err) : st;
}

static void count_tensor(struct mu_model *m, const struct mu_gguf_tensor *t)
{
    m->n_param += t->ne[0] * t->n_row;
    m->weight_bytes += t->bytes;
}

void mu_model_count(struct mu_model *m)
{
    m->n_param = m->weight_bytes = 0;
    count_tensor(m, m->embed);
    if (!m->tied) count_tensor(m, m->output);
    if (m->tied && m->output != m->embed) m->weight_bytes += m->output->bytes;
    count_tensor(m, m->out_norm);
    if (m->out_norm_b) count_tensor(m, m->out_norm_b);
    if (m->out_b) count_tensor(m, m->out_b);
    for (int layer = 0; layer < m->cfg.n_layer; layer++)
        for (int id = 0; id < MU_T_LAYER_COUNT; id++)
            if (m->layer[layer][id]) count_tensor(m, m->layer[layer][id]);
}

/* Copies whole characters; control characters and what is no UTF-8 become '?'. */
static void set_name(struct mu_model *m, struct mu_str from)
{
    size_t n = 0;
    for (size_t i = 0; i < from.len;) {
        uint32_t cp = 0;
        size_t len = (size_t)mu_utf8_next(from.p + i, from.len - i, &cp);
        bool shown = len > 0 && cp >= 0x20 && !(cp >= 0x7f && cp < 0xa0);
        if (n + (shown ? len : 1) >= sizeof m->name) break;
        if (shown)
            memcpy(m->name + n, from.p + i, len);
        else
            m->name[n] = '?';
        n += shown ? len : 1;
        i += len ? len : 1;
    }
    m->name[n] = 0;
}

static enum mu_status name_model(struct mu_model *m, struct mu_err *err)
{
    struct mu_str name;
    enum mu_status st = mu_gguf_get_str(m->gguf, "general.name", &name, err);
    if (st != MU_OK) return st;
    if (!name.len) {
        const char *path = mu_gguf_path(m->gguf), *slash = strrchr(path, '/');
        name.p = slash ? slash + 1 : path;
        name.len = strlen(name.p);
        if (name.len > 5 && memcmp(name.p + name.len - 5, ".gguf", 5) == 0) name.len -= 5;
    }
    set_name(m, name);
    return MU_OK;
}

static enum mu_status recognise(struct mu_model *m, struct mu_err *err)
{
    char shown[48];
    struct mu_str arch, type;
    enum mu_status st;
    MU_TRY(st, mu_gguf_get_str(m->gguf, "general.architecture", &arch, err), fail);
    MU_TRY(st, mu_gguf_get_str(m->gguf, "general.type", &type, err), fail);
    if (mu_str_is(type, "adapter"))
        return mu_gguf_fail(m->gguf, MU_EUNSUPPORTED, err,
                            "it is a LoRA adapter, not a model; name the model that it was made for");
    if (!arch.p)
        return mu_gguf_fail(m->gguf, MU_EFORMAT, err,
                            "expected key 'general.architecture', found none: it is not a model");
    m->arch = mu_arch_find(arch);
    if (!m->arch)
        return mu_gguf_fail(m->gguf, MU_EUNSUPPORTED, err, "architecture '%s' is not supported; this build runs: %s",
                            mu_str_show(arch, shown, sizeof shown), mu_arch_names());
fail:
    return st;
}

enum mu_status mu_model_open(const char *path, struct mu_model **model_out, struct mu_err *err)
{
    enum mu_status st;
    struct mu_model *m = mu_calloc(1, sizeof *m);
    if (!m) return mu_fail(err, MU_ENOMEM, "no memory to open model '%.100s'", path);
    MU_TRY(st, mu_gguf_open(path, &m->gguf, err), fail);
    MU_TRY(st, recognise(m, err), fail);
    MU_TRY(st, mu_config_read(m->gguf, m->arch, &m->cfg, err), fail);
    MU_TRY(st, name_model(m, err), fail);
    m->layer = mu_calloc((size_t)m->cfg.n_layer, sizeof *m->layer);
    if (!m->layer) {
        st = mu_gguf_fail(m->gguf, MU_ENOMEM, err, "no memory for a list of %d layers", m->cfg.n_layer);
        goto fail;
    }
    m->parts = mu_calloc((size_t)m->cfg.n_layer * MU_T_LAYER_COUNT, sizeof *m->parts);
    if (!m->parts) {
        st = mu_gguf_fail(m->gguf, MU_ENOMEM, err, "no memory for a list of %d layers", m->cfg.n_layer);
        goto fail;
    }
    MU_TRY(st, check_ends(m, err), fail);
    MU_TRY(st, place_tensors(m, err), fail);
    MU_TRY(st, copy_rope_factors(m, err), fail);
    mu_model_count(m);
    *model_out = m;
    return MU_OK;
fail:
    mu_model_close(m);
    return st;
}

void mu_model_close(struct mu_model *m)
{
    if (!m) return;
    mu_free((void *)m->rope_factors);
    mu_free((void *)m->rope_long);
    mu_free(m->parts);
    mu_free(m->quantized);
    mu_free(m->layer);
    mu_gguf_close(m->gguf);
    mu_free(m);
}

/* The type that most of the layers' bytes have. */
static uint32_t main_type(const struct mu_model *m)
{
    uint64_t bytes[MU_TYPE_LIMIT] = {0};
    uint32_t best = 0;
    for (int layer = 0; layer < m->cfg.n_layer; layer++)
        for (int id = 0; id < MU_T_MATRIX_COUNT; id++)
            if (m->layer[layer][id]) bytes[m->layer[layer][id]->type] += m->layer[layer][id]->bytes;
    for (uint32_t type = 1; type < MU_TYPE_LIMIT; type++)
        if (bytes[type] > bytes[best]) best = type;
    return best;
}

void mu_model_describe(const struct mu_model *m, char *buf, size_t buf_bytes)
{
    static const struct {
        double least;
        const char *unit;
    } units[] = {{1e9, "B"}, {1e6, "M"}, {1e3, "K"}, {0, ""}};
    const struct mu_config *c = &m->cfg;
    char experts[48] = "";
    int u = 0;
    if (c->n_expert > 0) snprintf(experts, sizeof experts, " × %d of %d experts", c->n_expert_used, c->n_expert);
    while ((double)m->n_param < units[u].least) u++;
    double n = (double)m->n_param / (units[u].least > 0 ? units[u].least : 1);
    double gb = (double)m->weight_bytes / 1e9;
    snprintf(buf, buf_bytes,
             "%s (%s, %.*f%s parameters, %s): %d layers of %d, %d query and %d key heads of %d, feed-forward %d%s, "
             "vocabulary %d%s, context %d, %.*f %s",
             m->name, m->arch->name, n < 100 && *units[u].unit ? 1 : 0, n, units[u].unit,
             mu_type_info(main_type(m))->name, c->n_layer, c->d_model, c->n_head, c->n_kv_head, c->d_head, c->d_ff,
             experts, c->n_vocab, m->tied ? " (tied)" : "", c->n_ctx_train, gb >= 1 ? 2 : 1, gb >= 1 ? gb : gb * 1e3,
             gb >= 1 ? "GB" : "MB");
}
