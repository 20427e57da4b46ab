/* Special ids, what goes before and after a prompt, where generation ends, and chat templates. */
#include <string.h>

#include "base/alloc.h"
#include "base/io.h"
#include "model/hf_part.h"

enum { IDS_MAX = 64, TEMPLATE_MAX = 16 << 20 };

static const struct {
    const char *token, *id, *key; /* tokenizer_config.json; config.json; GGUF */
} SPECIALS[] = {
    {"bos_token", "bos_token_id", "tokenizer.ggml.bos_token_id"},
    {"eos_token", "eos_token_id", "tokenizer.ggml.eos_token_id"},
    {"unk_token", "unk_token_id", "tokenizer.ggml.unknown_token_id"},
    {"sep_token", "sep_token_id", "tokenizer.ggml.seperator_token_id"}, /* the format's spelling */
    {"pad_token", "pad_token_id", "tokenizer.ggml.padding_token_id"},
    {"cls_token", "cls_token_id", "tokenizer.ggml.cls_token_id"},
    {"mask_token", "mask_token_id", "tokenizer.ggml.mask_token_id"},
};
enum { BOS, EOS, UNK, N_SPECIAL = sizeof SPECIALS / sizeof SPECIALS[0] };

/* "<s>" or {"content": "<s>", …} */
static struct mu_str token_text(const json_t *file, const char *name)
{
    const json_t *j = json_object_get(file, name);
    return mu_hf_str(json_is_object(j) ? json_object_get(j, "content") : j);
}

static int valid_id(const struct mu_hf *h, const json_t *j)
{
    int64_t id = mu_hf_int(j);
    return id >= 0 && id < h->n_token ? (int)id : -1;
}

/* The first id of a number or a list of them. */
static int first_id(const struct mu_hf *h, const json_t *j)
{
    return valid_id(h, json_is_array(j) ? json_array_get(j, 0) : j);
}

static int special_id(const struct mu_hf *h, int i)
{
    const json_t *const files[] = {h->config, h->specials};
    for (int k = 0; k < 2; k++) {
        struct mu_str text = token_text(files[k], SPECIALS[i].token);
        int id = text.p ? mu_hf_id_of(h, text) : -1;
        if (id >= 0) return id;
    }
    const json_t *const numbers[] = {h->model_config, json_object_get(h->model_config, "text_config"), h->generation};
    for (int k = 0; k < 3; k++) {
        int id = first_id(h, json_object_get(numbers[k], SPECIALS[i].id));
        if (id >= 0) return id;
    }
    return i == UNK && h->unk.p ? mu_hf_id_of(h, h->unk) : -1;
}

/* ---- BOS and EOS around a prompt ---- */

enum { UNSAID = -1 };

static const json_t *template_part(const struct mu_hf *h)
{
    const json_t *p = h->post_processor, *inner;
    size_t i;
    if (mu_str_is(mu_hf_str(json_object_get(p, "type")), "TemplateProcessing")) return p;
    json_array_foreach(json_object_get(p, "processors"), i, inner)
    {
        if (mu_str_is(mu_hf_str(json_object_get(inner, "type")), "TemplateProcessing")) return inner;
    }
    return NULL;
}

/* Whether the post-processor puts this token first (or last). */
static bool template_has(const struct mu_hf *h, int id, bool last)
{
    const json_t *single = json_object_get(template_part(h), "single");
    size_t n = json_array_size(single);
    const json_t *item = n > 1 ? json_array_get(single, last ? n - 1 : 0) : NULL;
    struct mu_str text = mu_hf_str(json_object_get(json_object_get(item, "SpecialToken"), "id"));
    return id >= 0 && text.p && mu_hf_id_of(h, text) == id;
}

/* tokenizer_config.json has the last word, then the post-processor. Where neither says anything about BOS, the reader of
 * the key decides by the family: Llama 3's first files forgot to. */
static int adds(const struct mu_hf *h, const char *name, int id, bool last)
{
    const json_t *said = json_object_get(h->config, name);
    if (json_is_boolean(said)) return json_is_true(said);
    if (template_part(h)) return template_has(h, id, last);
    return last ? 0 : UNSAID;
}

/* ---- the end of generation ---- */

/* All ids of generation_config.json's list, or else config.json's: chat models end at one of several. */
static int end_ids(const struct mu_hf *h, int eos, int32_t *ids)
{
    const json_t *list = json_object_get(h->generation, "eos_token_id");
    int n = 0;
    if (!list) list = json_object_get(h->model_config, "eos_token_id");
    if (!list) list = json_object_get(json_object_get(h->model_config, "text_config"), "eos_token_id");
    size_t count = json_is_array(list) ? json_array_size(list) : 1;
    for (size_t i = 0; i < count && n < IDS_MAX; i++) {
        int id = valid_id(h, json_is_array(list) ? json_array_get(list, i) : list);
        if (id >= 0 && id != eos) ids[n++] = id;
    }
    return n;
}

/* ---- what added tokens are like ---- */

static enum mu_status put_flagged(const struct mu_hf *h, struct mu_gguf_writer *w, const char *flag, const char *key,
                                  struct mu_err *err)
{
    size_t cap = json_array_size(h->added), n = 0, i;
    const json_t *token;
    if (!cap) return MU_OK;
    int32_t *ids = mu_reallocarray(NULL, cap, sizeof *ids);
    if (!ids) return mu_hf_nomem(h, err);
    json_array_foreach(h->added, i, token)
    {
        int id = valid_id(h, json_object_get(token, "id"));
        if (id >= 0 && json_is_true(json_object_get(token, flag))) ids[n++] = id;
    }
    mu_gguf_put_i32s(w, key, ids, n); /* none is said, too: it is not to be guessed from the model's name */
    mu_free(ids);
    return MU_OK;
}

/* ---- chat templates ---- */

static enum mu_status put_named_template(const struct mu_hf *h, struct mu_gguf_writer *w, struct mu_str name,
                                         struct mu_str text, struct mu_err *err)
{
    char key[128] = "tokenizer.chat_template";
    size_t at = strlen(key);
    if (!mu_str_is(name, "default")) {
        char shown[64];
        bool plain = name.len && name.len < 64;
        for (size_t i = 0; i < name.len && plain; i++)
            plain = strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-", name.p[i]) && name.p[i];
        if (!plain)
            return MU_HF_BAD(h, "tokenizer_config.json", err,
                             "a chat template is called '%s', expected a short name of letters, digits, '_' and '-'",
                             mu_str_show(name, shown, sizeof shown));
        key[at++] = '.';
        memcpy(key + at, name.p, name.len);
        key[at + name.len] = '\0';
    }
    mu_gguf_put_str(w, key, text.p, text.len);
    return MU_OK;
}

/* [{"name": …, "template": …}, …] */
static enum mu_status put_templates(const struct mu_hf *h, struct mu_gguf_writer *w, const json_t *list,
                                    struct mu_err *err)
{
    enum { MAX = 32 };
    struct mu_str names[MAX];
    size_t n = 0, i, k;
    const json_t *item;
    json_array_foreach(list, i, item)
    {
        struct mu_str name = mu_hf_str(json_object_get(item, "name")),
                      text = mu_hf_str(json_object_get(item, "template"));
        bool twice = false;
        if (!name.p || !text.p || i == MAX)
            return MU_HF_BAD(h, "tokenizer_config.json", err,
                             "chat_template %zu has no name or no template, or is more than the %d that are read", i,
                             MAX);
        for (k = 0; k < n; k++) twice |= !mu_str_compare(names[k], name);
        if (twice) continue;
        enum mu_status st = put_named_template(h, w, name, text, err);
        if (st != MU_OK) return st;
        names[n++] = name;
    }
    if (n > 1) {
        struct mu_str others[MAX];
        size_t n_other = 0;
        for (k = 0; k < n; k++) {
            if (!mu_str_is(names[k], "default")) others[n_other++] = names[k];
        }
        mu_gguf_put_strs(w, "tokenizer.chat_templates", others, n_other);
    }
    return MU_OK;
}

/* chat_template.jinja, then chat_template.json, then tokenizer_config.json: newer ways first. */
static enum mu_status put_chat_template(const struct mu_hf *h, struct mu_gguf_writer *w, struct mu_err *err)
{
    char *path = mu_asprintf("%s/chat_template.jinja", h->folder), *text = NULL;
    size_t len;
    if (!path) return mu_hf_nomem(h, err);
    enum mu_status st = mu_file_read(path, TEMPLATE_MAX, &text, &len, err);
    mu_free(path);
    if (st == MU_OK) mu_gguf_put_str(w, "tokenizer.chat_template", text, len);
    mu_free(text);
    if (st != MU_ENOENT) return st;
    const json_t *j = json_object_get(h->template_, "chat_template");
    if (!j) j = json_object_get(h->config, "chat_template");
    if (json_is_array(j)) return put_templates(h, w, j, err);
    if (json_is_string(j)) mu_gguf_put_str(w, "tokenizer.chat_template", json_string_value(j), json_string_length(j));
    return MU_OK;
}

enum mu_status mu_hf_special_put(const struct mu_hf *h, struct mu_gguf_writer *w, struct mu_err *err)
{
    int ids[N_SPECIAL];
    int32_t ends[IDS_MAX];
    for (int i = 0; i < N_SPECIAL; i++) {
        ids[i] = special_id(h, i);
        if (ids[i] >= 0) mu_gguf_put_u32(w, SPECIALS[i].key, (uint32_t)ids[i]);
    }
    int add_bos = adds(h, "add_bos_token", ids[BOS], false), add_eos = adds(h, "add_eos_token", ids[EOS], true);
    if (add_bos != UNSAID) mu_gguf_put_bool(w, "tokenizer.ggml.add_bos_token", add_bos);
    mu_gguf_put_bool(w, "tokenizer.ggml.add_eos_token", add_eos);
    int n_end = end_ids(h, ids[EOS], ends);
    if (n_end) mu_gguf_put_i32s(w, "muster.tokenizer.end_ids", ends, (uint64_t)n_end);
    enum mu_status st = put_flagged(h, w, "lstrip", "muster.tokenizer.strip_left", err);
    if (st == MU_OK) st = put_flagged(h, w, "rstrip", "muster.tokenizer.strip_right", err);
    if (st == MU_OK) st = put_flagged(h, w, "normalized", "muster.tokenizer.second_pass", err);
    return st == MU_OK ? put_chat_template(h, w, err) : st;
}
