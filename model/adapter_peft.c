/* Adapters as folders of Hugging Face's PEFT library:
 *
 *   adapter_config.json           r, lora_alpha, and exceptions to both by module; what else was trained
 *   adapter_model.safetensors     base_model.model.MODULE.lora_A.weight [r][n_col], …lora_B.weight [n_row][r]
 *
 * MODULE is called as in the model's own folder, so the tables of hf_names.c say which matrix it is. Where a family's GGUF
 * has rotary pairs as neighbours, rows of B for q and k are taken in that order (struct mu_lora, d_halves). What LoRA on
 * matrices cannot express (DoRA, biases, whole modules saved beside it) is refused by name.
 *
 * Source: PEFT's documentation of its checkpoint format and of LoraConfig. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "base/alloc.h"
#include "model/adapter_part.h"
#include "model/hf_folder.h"

static const char PREFIX[] = "base_model.model.";
static const char *const endings[] = {".lora_A.weight", ".lora_B.weight"};
enum { ENDING = 14 };

struct file { /* what ad->file is */
    struct mu_gguf_part part;
    struct mu_st_table table;
    const struct mu_st_tensor **by_name; /* [n_tensor] */
};

struct peft {
    struct mu_adapter *ad;
    const struct mu_model *model;
    const struct mu_hf_family *family;
    struct file *file;
    json_t *config;
};

static void file_close(void *p)
{
    struct file *f = p;
    mu_free(f->by_name);
    mu_st_table_free(&f->table);
    mu_gguf_part_clear(&f->part);
    mu_free(f);
}

/* ---- adapter_config.json ---- */

static bool is_set(const json_t *v)
{
    if (!v) return false;
    switch (json_typeof(v)) {
    case JSON_NULL:
    case JSON_FALSE: return false;
    case JSON_TRUE: return true;
    case JSON_STRING: return *json_string_value(v) && strcmp(json_string_value(v), "none") != 0;
    case JSON_INTEGER:
    case JSON_REAL: return json_number_value(v) != 0;
    case JSON_ARRAY: return json_array_size(v) > 0;
    case JSON_OBJECT: return json_object_size(v) > 0;
    }
    return true;
}

/* Keys of LoraConfig that ask for something else than two matrices beside another. */
static const struct {
    const char *key, *what;
} refused[] = {
    {"use_dora", "DoRA (weights split in magnitude and direction)"},
    {"bias", "trained biases"},
    {"lora_bias", "biases of the adapter"},
    {"modules_to_save", "modules that were trained whole"},
    {"trainable_token_indices", "trained rows of the embedding"},
    {"target_parameters", "adapted parameters that are no modules"},
    {"fan_in_fan_out", "weights that lie transposed"},
    {"layer_replication", "layers that are used several times"},
    {"alora_invocation_tokens", "activated LoRA"},
    {"arrow_config", "routing between adapters"},
    {"use_qalora", "QALoRA"},
};

/* Whether B·A is what is added to the base model's own weights. Others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA …)
 * begin with a part of the base, which PEFT takes out of it again whenever it loads such an adapter. PEFT's conversion of
 * one to plain LoRA writes true. */
static bool is_plain_start(const json_t *v)
{
    static const char *const plain[] = {"gaussian", "eva", "orthogonal"};
    if (!v || json_is_null(v) || json_is_boolean(v)) return true;
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
        if (json_is_string(v) && !strcasecmp(json_string_value(v), plain[i])) return true;
    return false;
}

static enum mu_status config_read(struct peft *p, struct mu_err *err)
{
    char path[MU_ADAPTER_PATH + 32];
    snprintf(path, sizeof path, "%s/adapter_config.json", p->ad->spec.path);
    enum mu_status st = mu_json_read(path, &p->config, err);
    if (st == MU_ENOENT)
        return mu_adapter_fail(p->ad, NULL, MU_EFORMAT, err,
                               "expected adapter_config.json in this folder, found none: it is no PEFT adapter");
    if (st != MU_OK) return st;
    const json_t *value = json_object_get(p->config, "peft_type");
    struct mu_str type = {json_string_value(value), json_string_length(value)};
    char shown[48];
    if (!type.p || !mu_str_is(type, "LORA"))
        return mu_adapter_fail(p->ad, NULL, MU_EUNSUPPORTED, err,
                               "adapter_config.json: 'peft_type' is '%s'; only LORA is supported",
                               mu_str_show(type, shown, sizeof shown));
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (is_set(json_object_get(p->config, refused[i].key)))
            return mu_adapter_fail(p->ad, NULL, MU_EUNSUPPORTED, err,
                                   "adapter_config.json: '%s' asks for %s, which is not supported", refused[i].key,
                                   refused[i].what);
    value = json_object_get(p->config, "init_lora_weights");
    if (!is_plain_start(value))
        return mu_adapter_fail(
            p->ad, NULL, MU_EUNSUPPORTED, err,
            "adapter_config.json: 'init_lora_weights' is '%s', which changes the base model's weights; "
            "convert it in PEFT: save_pretrained(…, path_initial_model_for_weight_conversion=…)",
            mu_str_show((struct mu_str){json_string_value(value), json_string_length(value)}, shown, sizeof shown));
    return MU_OK;
}

static bool is_plain(const char *key)
{
    for (; *key; key++)
        if (!strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.", *key)) return false;
    return true;
}

/* A number of the configuration for a module: the first of `pattern`'s entries that is the module's name or the end of it
 * from a dot on, else the value of `key`, else fallback. */
static enum mu_status number_of(const struct peft *p, const char *pattern, const char *key, double fallback,
                                struct mu_str module, double *out, struct mu_err *err)
{
    json_t *patterns = json_object_get(p->config, pattern), *value = NULL, *one;
    const char *name;
    if (is_set(patterns) && !json_is_object(patterns))
        return mu_adapter_fail(p->ad, NULL, MU_EFORMAT, err, "adapter_config.json: '%s' is no object", pattern);
    json_object_foreach(patterns, name, one)
    {
        size_t n = strlen(name);
        if (!is_plain(name))
            return mu_adapter_fail(p->ad, NULL, MU_EUNSUPPORTED, err,
                                   "adapter_config.json: '%s' has a name with wildcards, which is not supported; write "
                                   "modules out",
                                   pattern);
        bool ends = n > 0 && n <= module.len && memcmp(module.p + module.len - n, name, n) == 0;
        if (ends && (n == module.len || module.p[module.len - n - 1] == '.') && !value) value = one;
    }
    if (!value) value = json_object_get(p->config, key);
    if (value && !json_is_number(value))
        return mu_adapter_fail(p->ad, NULL, MU_EFORMAT, err, "adapter_config.json: '%s' of a module is no number", key);
    *out = value ? json_number_value(value) : fallback;
    return MU_OK;
}

static enum mu_status scale_of(const struct peft *p, struct mu_str module, const struct mu_adapter_tensor *a,
                               float *scale_out, struct mu_err *err)
{
    double r, alpha; /* 8 is LoraConfig's default of both */
    enum mu_status st;
    MU_TRY(st, number_of(p, "rank_pattern", "r", 8, module, &r, err), out);
    MU_TRY(st, number_of(p, "alpha_pattern", "lora_alpha", 8, module, &alpha, err), out);
    if (r != (double)a->n_row)
        return mu_adapter_fail(p->ad, a, MU_EFORMAT, err, "expected a rank of %g by adapter_config.json, found %llu", r,
                               (unsigned long long)a->n_row);
    float rank = (float)a->n_row;
    *scale_out = (float)alpha / (is_set(json_object_get(p->config, "use_rslora")) ? sqrtf(rank) : rank);
out:
    return st;
}

/* ---- adapter_model.safetensors ---- */

static struct mu_adapter_tensor tensor_of(const struct peft *p, const struct mu_st_tensor *t)
{
    return (struct mu_adapter_tensor){.name = t->name,
                                      .type = t->type,
                                      .n_col = t->n_dim == 2 ? t->dim[1] : 0,
                                      .n_row = t->n_dim == 2 ? t->dim[0] : 0,
                                      .row_bytes = t->n_dim == 2 && t->dim[0] ? (size_t)(t->bytes / t->dim[0]) : 0,
                                      .data = p->file->part.map + t->offset};
}

static int compare_names(const void *a, const void *b)
{
    return mu_str_compare((*(const struct mu_st_tensor *const *)a)->name,
                          (*(const struct mu_st_tensor *const *)b)->name);
}

static enum mu_status file_open(struct peft *p, struct mu_err *err)
{
    char path[MU_ADAPTER_PATH + 32], pickled[MU_ADAPTER_PATH + 32];
    enum mu_status st;
    struct file *f = mu_calloc(1, sizeof *f);
    if (!f) return mu_adapter_fail(p->ad, NULL, MU_ENOMEM, err, "no memory to open it");
    p->file = p->ad->file = f;
    p->ad->file_close = file_close;
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", p->ad->spec.path);
    snprintf(pickled, sizeof pickled, "%s/adapter_model.bin", p->ad->spec.path);
    if (access(path, F_OK) != 0)
        return mu_adapter_fail(p->ad, NULL, MU_EUNSUPPORTED, err,
                               "expected adapter_model.safetensors in this folder, found %s",
                               access(pickled, F_OK) == 0
                                   ? "adapter_model.bin, which is a Python program in disguise; save it as safetensors"
                                   : "none");
    MU_TRY(st, mu_gguf_part_map(path, &f->part, err), out);
    MU_TRY(st, mu_st_table_read(&f->part, &f->table, err), out);
    f->by_name = mu_calloc(f->table.n_tensor + 1, sizeof *f->by_name);
    if (!f->by_name) return mu_adapter_fail(p->ad, NULL, MU_ENOMEM, err, "no memory for a list of its tensors");
    for (size_t i = 0; i < f->table.n_tensor; i++) f->by_name[i] = &f->table.tensor[i];
    qsort(f->by_name, f->table.n_tensor, sizeof *f->by_name, compare_names);
out:
    return st;
}

/* N and what is after "model.layers.N." of a module; also where the language model is a part of another, or was adapted without
 * the class that has the output matrix, as for embeddings. */
static bool module_split(const struct peft *p, struct mu_str module, int *layer_out, struct mu_str *rest_out)
{
    const char *whole = p->family->layer_prefix, *bare = whole + strcspn(whole, ".") + 1;
    const char *const prefixes[] = {whole, bare, "language_model.model.layers.", "model.language_model.layers."};
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
        size_t n = strlen(prefixes[i]), at = n;
        int layer = 0;
        if (module.len <= n || memcmp(module.p, prefixes[i], n) != 0) continue;
        for (; at < module.len && at < n + 5 && module.p[at] >= '0' && module.p[at] <= '9'; at++)
            layer = layer * 10 + (module.p[at] - '0');
        if (at == n || at + 1 >= module.len || module.p[at] != '.' || (module.p[n] == '0' && at > n + 1)) return false;
        *layer_out = layer;
        *rest_out = (struct mu_str){module.p + at + 1, module.len - at - 1};
        return true;
    }
    return false;
}

/* The entry of a table whose name is `module` with ".weight" after it. */
static const struct mu_hf_name *entry_of(const struct mu_hf_name *table, struct mu_str module)
{
    for (; table->hf; table++) {
        size_t n = strlen(table->hf);
        if (n == module.len + 7 && memcmp(table->hf, module.p, module.len) == 0 &&
            strcmp(table->hf + module.len, ".weight") == 0)
            return table;
    }
    return NULL;
}

static enum mu_status place_pair(struct peft *p, struct mu_str module, const struct mu_adapter_tensor *a,
                                 const struct mu_adapter_tensor *b, struct mu_err *err)
{
    int layer = -1;
    struct mu_str rest = module;
    float scale = 0;
    enum mu_status st = scale_of(p, module, a, &scale, err);
    if (st != MU_OK) return st;
    bool in_layer = module_split(p, module, &layer, &rest);
    const struct mu_hf_name *name = entry_of(in_layer ? p->family->layer : p->family->ends, rest);
    if (memmem(module.p, module.len, ".experts.", 9))
        return mu_adapter_fail(p->ad, a, MU_EUNSUPPORTED, err, "adapting experts or their router is not supported");
    if (!name || (!in_layer && strcmp(name->gguf, "output.weight") != 0))
        return mu_adapter_fail(p->ad, a, MU_EUNSUPPORTED, err,
                               "architecture '%s' has no matrix of that name that could be adapted",
                               p->model->arch->name);
    if (name->kind == MU_HF_QKV)
        return mu_adapter_fail(p->ad, a, MU_EUNSUPPORTED, err,
                               "its rows lie in another order than the model's; make a GGUF file of this adapter");
    return mu_adapter_place(p->ad, p->model, layer, (struct mu_str){name->gguf, strlen(name->gguf)}, a, b, scale,
                            (p->family->flags & MU_HF_PAIRS) != 0, err);
}

/* A tensor, which is half of a pair; the pair is placed at its first half. */
static enum mu_status place_tensor(struct peft *p, const struct mu_st_tensor *t, struct mu_err *err)
{
    char other[256];
    struct mu_adapter_tensor half[2];
    size_t skip = sizeof PREFIX - 1, len = t->name.len;
    int which = -1;
    half[0] = tensor_of(p, t);
    if (len > skip + ENDING && len < sizeof other && memcmp(t->name.p, PREFIX, skip) == 0)
        for (int i = 0; i < 2; i++)
            if (memcmp(t->name.p + len - ENDING, endings[i], ENDING) == 0) which = i;
    if (which < 0)
        return mu_adapter_fail(
            p->ad, &half[0], MU_EUNSUPPORTED, err,
            "expected a name like base_model.model.….lora_A.weight: it holds more than LoRA on matrices");
    struct mu_str module = {t->name.p + skip, len - skip - ENDING};
    struct mu_st_tensor key = {.name = {other, len}}, *wanted = &key;
    memcpy(other, t->name.p, len - ENDING);
    memcpy(other + len - ENDING, endings[1 - which], ENDING);
    const struct mu_st_tensor *const *found =
        bsearch(&wanted, p->file->by_name, p->file->table.n_tensor, sizeof *p->file->by_name, compare_names);
    if (!found)
        return mu_adapter_fail(p->ad, &half[0], MU_EFORMAT, err,
                               "expected its other half, which ends in %s, found none", endings[1 - which]);
    if (which == 1) return MU_OK;
    half[1] = tensor_of(p, *found);
    for (int i = 0; i < 2; i++)
        if (half[i].row_bytes == 0)
            return mu_adapter_fail(p->ad, &half[i], MU_EFORMAT, err, "expected two dimensions, found another shape");
    return place_pair(p, module, &half[0], &half[1], err);
}

enum mu_status mu_adapter_open_peft(struct mu_adapter *ad, const struct mu_model *model, struct mu_err *err)
{
    struct peft p = {.ad = ad, .model = model};
    enum mu_status st;
    p.family = mu_hf_family_of(model->arch->name, model->cfg.n_expert > 0);
    if (!p.family)
        return mu_adapter_fail(ad, NULL, MU_EUNSUPPORTED, err,
                               "PEFT folders are not supported for architecture '%s'; make a GGUF file of this adapter",
                               model->arch->name);
    MU_TRY(st, config_read(&p, err), out);
    MU_TRY(st, file_open(&p, err), out);
    for (size_t i = 0; i < p.file->table.n_tensor && st == MU_OK; i++)
        st = place_tensor(&p, &p.file->table.tensor[i], err);
out:
    json_decref(p.config);
    return st;
}
