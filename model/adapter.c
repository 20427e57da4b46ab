/* Adapters: what the command line says of them, the set, and how a pair finds the model's matrix. The two forms of file
 * are adapter_gguf.c and adapter_peft.c.
 *
 * Invariant after mu_adapters_open: every pair has the model's shapes and a rank from 1 to MU_MAX_LORA_RANK; a matrix is
 * adapted once at most. That the weights are finite is checked where they are packed (shard/lora.c), as the model's. */
#include "model/adapter.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/alloc.h"
#include "model/adapter_part.h"
#include "model/arch.h"

/* ---- what a user says ---- */

static bool name_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
           c == '-';
}

static bool is_name(const char *s, size_t len)
{
    if (len == 0 || len >= MU_ADAPTER_NAME) return false;
    for (size_t i = 0; i < len; i++)
        if (!name_char(s[i])) return false;
    return true;
}

/* [+-]digits[.digits], read by hand: strtod would take locales, exponents and "nan". */
static bool scale_parse(const char *s, float *scale_out)
{
    double v = 0, unit = 1;
    int n = 0;
    bool minus = *s == '-';
    if (*s == '-' || *s == '+') s++;
    for (; *s >= '0' && *s <= '9' && n < 6; s++, n++) v = v * 10 + (*s - '0');
    if (*s == '.')
        for (s++; *s >= '0' && *s <= '9' && n < 12; s++, n++) v += (*s - '0') * (unit /= 10);
    if (n == 0 || *s || v > MU_MAX_LORA_SCALE) return false;
    *scale_out = (float)(minus ? -v : v);
    return true;
}

/* The last part of a path without ".gguf"; false where no name can be made of it. */
static bool name_of_path(const char *path, char *name_out)
{
    size_t len = strlen(path);
    while (len > 1 && path[len - 1] == '/') len--;
    size_t begin = len;
    while (begin > 0 && path[begin - 1] != '/') begin--;
    size_t n = len - begin;
    if (n > 5 && memcmp(path + len - 5, ".gguf", 5) == 0) n -= 5;
    if (!is_name(path + begin, n)) return false;
    memcpy(name_out, path + begin, n);
    name_out[n] = 0;
    return true;
}

enum mu_status mu_adapter_spec_parse(const char *text, struct mu_adapter_spec *spec_out, struct mu_err *err)
{
    struct mu_adapter_spec spec = {.scale = 1.0f};
    const char *path = text, *equals = strchr(text, '='), *slash = strchr(text, '/');
    if (equals && !(slash && slash < equals)) {
        if (!is_name(text, (size_t)(equals - text)))
            return mu_fail(err, MU_EINVAL,
                           "adapter '%.100s': expected a name of at most %d letters, digits, '.', '_' and '-' before "
                           "the '='",
                           text, MU_ADAPTER_NAME - 1);
        memcpy(spec.name, text, (size_t)(equals - text));
        path = equals + 1;
    }
    const char *colon = strrchr(path, ':');
    size_t len = strlen(path);
    if (colon && !strchr(colon, '/') && colon[1]) {
        if (!scale_parse(colon + 1, &spec.scale))
            return mu_fail(err, MU_EINVAL,
                           "adapter '%.100s': expected a scale from -%d to %d after the ':', for example 0.5", text,
                           MU_MAX_LORA_SCALE, MU_MAX_LORA_SCALE);
        len = (size_t)(colon - path);
    }
    if (len == 0 || len >= sizeof spec.path)
        return mu_fail(err, MU_EINVAL, "adapter '%.100s': expected [NAME=]PATH[:SCALE], a path of at most %d bytes",
                       text, MU_ADAPTER_PATH - 1);
    memcpy(spec.path, path, len);
    if (!spec.name[0] && !name_of_path(spec.path, spec.name))
        return mu_fail(err, MU_EINVAL,
                       "adapter '%.100s': its file's name is none that a request can say; give it one, as in "
                       "mine=%.100s",
                       text, spec.path);
    if (strcmp(spec.name, "none") == 0)
        return mu_fail(err, MU_EINVAL,
                       "adapter '%.100s': requests say 'none' for no adapter; give it another name, as in mine=%.100s",
                       text, spec.path);
    *spec_out = spec;
    return MU_OK;
}

/* ---- pairs find their matrices ---- */

enum mu_status mu_adapter_fail(const struct mu_adapter *ad, const struct mu_adapter_tensor *t, enum mu_status code,
                               struct mu_err *err, const char *fmt, ...)
{
    char text[MU_ERR_TEXT], shown[96];
    struct mu_str path = {ad->spec.path, strlen(ad->spec.path)};
    char path_shown[160];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    mu_str_show(path, path_shown, sizeof path_shown);
    if (!t) return mu_fail(err, code, "adapter '%s': %s", path_shown, text);
    return mu_fail(err, code, "adapter '%s': tensor '%s': %s", path_shown, mu_str_show(t->name, shown, sizeof shown),
                   text);
}

static enum mu_status check_shapes(const struct mu_adapter *ad, const struct mu_adapter_tensor *a,
                                   const struct mu_adapter_tensor *b, int n_col, int n_row, struct mu_err *err)
{
    if (a->n_row < 1 || a->n_row > MU_MAX_LORA_RANK)
        return mu_adapter_fail(ad, a, MU_EUNSUPPORTED, err, "expected a rank from 1 to %d, found %llu",
                               MU_MAX_LORA_RANK, (unsigned long long)a->n_row);
    if (a->n_col != (uint64_t)n_col)
        return mu_adapter_fail(ad, a, MU_EFORMAT, err,
                               "expected rows of %d values for this model, found %llu: it was made for another one",
                               n_col, (unsigned long long)a->n_col);
    if (b->n_row != (uint64_t)n_row || b->n_col != a->n_row)
        return mu_adapter_fail(ad, b, MU_EFORMAT, err, "expected %d rows of %llu values, found %llu of %llu", n_row,
                               (unsigned long long)a->n_row, (unsigned long long)b->n_row,
                               (unsigned long long)b->n_col);
    const struct mu_adapter_tensor *both[] = {a, b};
    for (int i = 0; i < 2; i++) {
        const struct mu_type_info *info = mu_type_info(both[i]->type);
        if (!info || info->act == MU_ACT_NONE)
            return mu_adapter_fail(ad, both[i], MU_EUNSUPPORTED, err, "its type %s is not supported for adapters",
                                   info ? info->name : "is none that is known, which");
    }
    return MU_OK;
}

static enum mu_status place_one(struct mu_adapter *ad, struct mu_lora *place, const struct mu_adapter_tensor *a,
                                const struct mu_adapter_tensor *b, int row0, int n_row, float scale, int d_halves,
                                struct mu_err *err)
{
    if (place->rank) return mu_adapter_fail(ad, a, MU_EFORMAT, err, "its matrix is adapted by another tensor as well");
    *place = (struct mu_lora){
        .rank = (int)a->n_row,
        .n_col = (int)a->n_col,
        .n_row = n_row,
        .a_type = a->type,
        .b_type = b->type,
        .a = a->data,
        .b = b->data + (size_t)row0 * b->row_bytes,
        .a_row_bytes = a->row_bytes,
        .b_row_bytes = b->row_bytes,
        .d_halves = d_halves,
        .scale = scale,
    };
    if (place->rank > ad->max_rank) ad->max_rank = place->rank;
    return MU_OK;
}

enum mu_status mu_adapter_place(struct mu_adapter *ad, const struct mu_model *model, int layer, struct mu_str suffix,
                                const struct mu_adapter_tensor *a, const struct mu_adapter_tensor *b, float scale,
                                bool halves, struct mu_err *err)
{
    const struct mu_config *cfg = &model->cfg;
    enum mu_status st;
    if (!isfinite(scale) || fabsf(scale) > MU_MAX_LORA_SCALE)
        return mu_adapter_fail(ad, a, MU_EFORMAT, err, "its strength alpha/rank is %g, expected at most %d",
                               (double)scale, MU_MAX_LORA_SCALE);
    if (layer < 0) {
        st = check_shapes(ad, a, b, cfg->d_model, cfg->n_vocab, err);
        return st == MU_OK ? place_one(ad, &ad->out, a, b, 0, cfg->n_vocab, scale, 0, err) : st;
    }
    if (layer >= cfg->n_layer)
        return mu_adapter_fail(ad, a, MU_EFORMAT, err, "the model has %d layers: it was made for another one",
                               cfg->n_layer);
    const struct mu_tensor_rule *r = mu_arch_rules(model->arch, cfg);
    while (r->suffix && !mu_str_is(suffix, r->suffix)) r++;
    if (!r->suffix)
        return mu_adapter_fail(ad, a, MU_EUNSUPPORTED, err,
                               "architecture '%s' has no matrix of that name that could be adapted", model->arch->name);
    if (r->n_row == MU_DIM_ONE)
        return mu_adapter_fail(ad, a, MU_EUNSUPPORTED, err, "adapting norms and biases is not supported");
    if (r->id == MU_T_ROUTER || mu_config_of_experts(cfg, r->id))
        return mu_adapter_fail(ad, a, MU_EUNSUPPORTED, err, "adapting experts or their router is not supported");
    int n_col, n_row, n = mu_rule_parts(cfg, r, &n_col, &n_row), row0 = 0;
    st = check_shapes(ad, a, b, n_col, n_row, err);
    for (int i = 0; i < n && st == MU_OK; i++) {
        int rows = mu_dim_size(cfg, r[i].n_row);
        bool turns = r[i].id == MU_T_Q || r[i].id == MU_T_K;
        st = place_one(ad, &ad->layer[layer][r[i].id], a, b, row0, rows, scale, halves && turns ? cfg->d_head : 0, err);
        row0 += rows;
    }
    return st;
}

/* ---- the set ---- */

static void adapter_close(struct mu_adapter *ad)
{
    if (!ad) return;
    if (ad->file) ad->file_close(ad->file);
    mu_free(ad->layer);
    mu_free(ad);
}

static enum mu_status adapter_open(const struct mu_model *model, const struct mu_adapter_spec *spec,
                                   struct mu_adapter **adapter_out, struct mu_err *err)
{
    struct stat sb;
    enum mu_status st;
    struct mu_adapter *ad = mu_calloc(1, sizeof *ad);
    if (!ad) return mu_fail(err, MU_ENOMEM, "no memory for adapter '%s'", spec->name);
    ad->spec = *spec;
    ad->layer = mu_calloc((size_t)model->cfg.n_layer, sizeof *ad->layer);
    if (!ad->layer) {
        st = mu_adapter_fail(ad, NULL, MU_ENOMEM, err, "no memory for a list of %d layers", model->cfg.n_layer);
        goto fail;
    }
    bool folder = stat(spec->path, &sb) == 0 && S_ISDIR(sb.st_mode);
    MU_TRY(st, folder ? mu_adapter_open_peft(ad, model, err) : mu_adapter_open_gguf(ad, model, err), fail);
    if (ad->max_rank == 0) {
        st = mu_adapter_fail(ad, NULL, MU_EFORMAT, err, "expected pairs of tensors for matrices, found none");
        goto fail;
    }
    *adapter_out = ad;
    return MU_OK;
fail:
    adapter_close(ad);
    return st;
}

enum mu_status mu_adapters_open(const struct mu_model *model, const struct mu_adapter_spec *spec, int n,
                                struct mu_adapters **adapters_out, struct mu_err *err)
{
    enum mu_status st;
    if (n < 0 || n > MU_MAX_ADAPTER)
        return mu_fail(err, MU_ELIMIT, "%d adapters, at most %d can be loaded beside one model", n, MU_MAX_ADAPTER);
    struct mu_adapters *a = mu_calloc(1, sizeof *a);
    if (!a) return mu_fail(err, MU_ENOMEM, "no memory for a list of adapters");
    for (int i = 0; i < n; i++) {
        if (!is_name(spec[i].name, strnlen(spec[i].name, MU_ADAPTER_NAME)) || !isfinite(spec[i].scale) ||
            fabsf(spec[i].scale) > MU_MAX_LORA_SCALE) {
            st = mu_fail(err, MU_EINVAL, "adapter %d: its name or scale is none", i);
            goto fail;
        }
        if (mu_adapters_find(a, spec[i].name) > 0) {
            st = mu_fail(err, MU_EINVAL, "two adapters are called '%s': give one another name, as in other=%.200s",
                         spec[i].name, spec[i].path);
            goto fail;
        }
        MU_TRY(st, adapter_open(model, &spec[i], &a->at[i], err), fail);
        a->n = i + 1;
        if (a->at[i]->max_rank > a->max_rank) a->max_rank = a->at[i]->max_rank;
    }
    *adapters_out = a;
    return MU_OK;
fail:
    mu_adapters_close(a);
    return st;
}

void mu_adapters_close(struct mu_adapters *a)
{
    if (!a) return;
    for (int i = 0; i < a->n; i++) adapter_close(a->at[i]);
    mu_free(a);
}

int mu_adapters_find(const struct mu_adapters *a, const char *name)
{
    if (!*name) return a ? a->by_default : 0;
    if (strcmp(name, "none") == 0) return 0;
    for (int i = 0; a && i < a->n; i++)
        if (strcmp(a->at[i]->spec.name, name) == 0) return i + 1;
    return -1;
}

const char *mu_adapters_names(const struct mu_adapters *a, char *buf, size_t buf_bytes)
{
    size_t len = 0;
    snprintf(buf, buf_bytes, "none");
    for (int i = 0; a && i < a->n && len < buf_bytes; i++)
        len += (size_t)snprintf(buf + len, buf_bytes - len, "%s%s", i ? ", " : "", a->at[i]->spec.name);
    return buf;
}
