/* Manifests: what a model of Ollama's store, or of Muster's own in the same layout, is made of.
 *
 *   ROOT/manifests/HOST/SPACE/MODEL/TAG   JSON: layers of (media type, digest, size)
 *   ROOT/blobs/sha256-HEX                 the layers
 *   ROOT/views/HOST/SPACE/MODEL/TAG/NAME  Muster's own: links into blobs, for models of several files
 *
 * A manifest may come from anywhere, and a digest becomes a path: it must be 64 hex digits. Layers of Muster's own media
 * types name paths, so they are obeyed in Muster's own store only, where Muster alone writes (pulled manifests with
 * such layers are refused). */
#include <ctype.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/io.h"
#include "model/hf_json.h"
#include "model/store_part.h"

enum { MAX_LAYERS = 4096, MAX_TEXTS = 64 };

bool mu_digest_parse(const char *text, char hex_out[MU_DIGEST_TEXT])
{
    if (!text || strncmp(text, "sha256", 6) != 0 || (text[6] != ':' && text[6] != '-') || strlen(text) != 7 + 64)
        return false;
    for (int i = 0; i < 64; i++) {
        if (!isxdigit((unsigned char)text[7 + i])) return false;
        hex_out[i] = (char)tolower((unsigned char)text[7 + i]);
    }
    hex_out[64] = 0;
    return true;
}

bool mu_sha256_hex(const void *data, size_t len, char hex_out[MU_DIGEST_TEXT])
{
    unsigned char sum[EVP_MAX_MD_SIZE];
    unsigned n;
    if (!EVP_Digest(data, len, sum, &n, EVP_sha256(), NULL)) return false;
    for (unsigned i = 0; i < 32; i++) snprintf(hex_out + 2 * i, 3, "%02x", sum[i]);
    return true;
}

char *mu_blob_path(const char *root, const char *hex)
{
    return mu_asprintf("%s/blobs/sha256-%s", root, hex);
}

char *mu_manifest_path(const char *root, const char *folder, const struct mu_store_name *name)
{
    return mu_asprintf("%s/%s/%s/%s/%s/%s", root, folder, name->host, name->space, name->model, name->tag);
}

static enum mu_status parse_layer(json_t *doc, const char *where, int no, struct mu_layer *out, struct mu_err *err)
{
    const char *media = json_string_value(json_object_get(doc, "mediaType"));
    json_t *digest = json_object_get(doc, "digest"), *size = json_object_get(doc, "size");
    struct mu_layer l = {.name = json_string_value(json_object_get(doc, "name")),
                         .path = json_string_value(json_object_get(doc, "path"))};
    if (!media) return mu_fail(err, MU_EFORMAT, "%s: layer %d: expected a 'mediaType'", where, no);
    l.ours = !strncmp(media, MU_MEDIA_MUSTER, strlen(MU_MEDIA_MUSTER));
    l.kind = l.ours                                                      ? media + strlen(MU_MEDIA_MUSTER)
             : !strncmp(media, MU_MEDIA_OLLAMA, strlen(MU_MEDIA_OLLAMA)) ? media + strlen(MU_MEDIA_OLLAMA)
                                                                         : media;
    if (!(l.ours && l.path && !digest) && !mu_digest_parse(json_string_value(digest), l.digest)) {
        const char *found = json_string_value(digest) ? json_string_value(digest) : "none";
        char shown[80];
        return mu_fail(err, MU_EFORMAT, "%s: layer %d: expected a digest 'sha256:' and 64 hex digits, found '%s'",
                       where, no, mu_text_show(found, strlen(found), shown, sizeof shown));
    }
    if (!json_is_integer(size) || json_integer_value(size) < 0)
        return mu_fail(err, MU_EFORMAT, "%s: layer %d: expected a 'size' in bytes", where, no);
    l.bytes = (uint64_t)json_integer_value(size);
    if (l.ours && !strcmp(l.kind, MU_KIND_FILE) &&
        (!l.name || strchr(l.name, '/') || l.name[0] == '.' || !*l.name || strlen(l.name) > 255 || !mu_text_ok(l.name)))
        return mu_fail(err, MU_EFORMAT, "%s: layer %d: expected the name of a file", where, no);
    *out = l;
    return MU_OK;
}

enum mu_status mu_manifest_parse(const char *text, size_t len, const char *where, struct mu_manifest *m_out,
                                 struct mu_err *err)
{
    struct mu_manifest m = {0};
    json_error_t e;
    enum mu_status st = MU_OK;
    bool no_memory;
    m.doc = mu_json_load(text, len, JSON_REJECT_DUPLICATES, &e, &no_memory);
    if (!m.doc)
        return no_memory ? mu_fail(err, MU_ENOMEM, "%s: no memory to read it", where)
                         : mu_fail(err, MU_EFORMAT, "%s: line %d, column %d: no JSON", where, e.line, e.column);
    json_t *layers = json_object_get(m.doc, "layers"), *config = json_object_get(m.doc, "config"), *item;
    size_t i, n = json_array_size(layers);
    if (!json_is_array(layers) || n == 0 || n > MAX_LAYERS) {
        st = mu_fail(err, MU_EFORMAT, "%s: expected from 1 to %d 'layers'", where, MAX_LAYERS);
        goto fail;
    }
    m.layer = mu_calloc(n, sizeof *m.layer);
    if (!m.layer) {
        st = mu_fail(err, MU_ENOMEM, "%s: no memory for %zu layers", where, n);
        goto fail;
    }
    m.n_layer = n;
    if (json_is_object(config)) MU_TRY(st, parse_layer(config, where, 0, &m.config, err), fail);
    json_array_foreach(layers, i, item) MU_TRY(st, parse_layer(item, where, (int)i + 1, &m.layer[i], err), fail);
    *m_out = m;
    return MU_OK;
fail:
    mu_manifest_clear(&m);
    return st;
}

enum mu_status mu_manifest_read(const char *path, struct mu_manifest *m_out, struct mu_err *err)
{
    char *text = NULL;
    size_t len;
    enum mu_status st = mu_file_read(path, MU_MANIFEST_MAX_BYTES, &text, &len, err);
    if (st == MU_OK) st = mu_manifest_parse(text, len, path, m_out, err);
    mu_free(text);
    return st;
}

void mu_manifest_clear(struct mu_manifest *m)
{
    mu_free(m->layer);
    json_decref(m->doc);
    *m = (struct mu_manifest){0};
}

const struct mu_layer *mu_manifest_find(const struct mu_manifest *m, const char *kind, bool ours)
{
    for (size_t i = 0; i < m->n_layer; i++)
        if (m->layer[i].ours == ours && !strcmp(m->layer[i].kind, kind)) return &m->layer[i];
    return NULL;
}

/* ---- where the weights are ---- */

/* Whether the file in the folder is the manifest's: links are made one by one before a changed manifest is written, and who
 * dies between them leaves some of the one and some of the other. */
static enum mu_status check_file(const char *view, const struct mu_layer *l, struct mu_err *err)
{
    char target[128];
    struct stat sb;
    char *path = mu_asprintf("%s/%s", view, l->name);
    if (!path) return mu_fail(err, MU_ENOMEM, "no memory for a path");
    enum mu_status st = MU_OK;
    ssize_t n = readlink(path, target, sizeof target); /* below 0: no link, as in a copy of the store */
    if (stat(path, &sb) != 0)
        st = mu_fail(err, MU_ENOENT, "%s is missing: pull the model again", path);
    else if ((uint64_t)sb.st_size != l->bytes || (n >= 0 && (n < 64 || memcmp(target + n - 64, l->digest, 64) != 0)))
        st = mu_fail(err, MU_EFORMAT, "%s is another file than the model's: pull the model again", path);
    mu_free(path);
    return st;
}

/* The folder of links, or in it the first part of a GGUF, or its only one. */
static enum mu_status view_weights(const char *root, const struct mu_store_name *name, const struct mu_manifest *m,
                                   char **path_out, uint64_t *bytes_out, struct mu_err *err)
{
    const char *first = NULL;
    uint64_t bytes = 0;
    enum mu_status st = MU_OK;
    char *view = mu_manifest_path(root, "views", name), *path;
    if (!view) return mu_fail(err, MU_ENOMEM, "no memory for a path");
    for (size_t i = 0; i < m->n_layer; i++) {
        const struct mu_layer *l = &m->layer[i];
        if (!l->ours || strcmp(l->kind, MU_KIND_FILE) != 0) continue;
        const char *dot = strrchr(l->name, '.');
        bool gguf = dot && !strcmp(dot, ".gguf");
        if (gguf || (dot && !strcmp(dot, ".safetensors"))) bytes += l->bytes;
        if (gguf && (!first || strcmp(l->name, first) < 0)) first = l->name;
        MU_TRY(st, check_file(view, l, err), done);
    }
    path = first ? mu_asprintf("%s/%s", view, first) : mu_strdup(view);
    if (!path) {
        st = mu_fail(err, MU_ENOMEM, "no memory for a path");
        goto done;
    }
    *path_out = path;
    *bytes_out = bytes;
done:
    mu_free(view);
    return st;
}

enum mu_status mu_manifest_weights(const char *root, const struct mu_store_name *name, const struct mu_manifest *m,
                                   bool own, char **path_out, uint64_t *bytes_out, struct mu_err *err)
{
    const struct mu_layer *reference = own ? mu_manifest_find(m, MU_KIND_REFERENCE, true) : NULL,
                          *file = own ? mu_manifest_find(m, MU_KIND_FILE, true) : NULL,
                          *model = mu_manifest_find(m, "model", false);
    struct stat sb;
    if (file) return view_weights(root, name, m, path_out, bytes_out, err);
    if (!model && !(reference && reference->path))
        return mu_fail(err, MU_EUNSUPPORTED, "model '%s' of %s holds no GGUF file", name->model, root);
    char *path = reference && reference->path ? mu_strdup(reference->path) : mu_blob_path(root, model->digest);
    if (!path) return mu_fail(err, MU_ENOMEM, "no memory for a path");
    enum mu_status st = MU_OK;
    if (stat(path, &sb) != 0)
        st = mu_fail(err, MU_ENOENT, "the weights of '%s', %s, are gone: get them again, or remove the model",
                     name->model, path);
    else if (!reference && (!S_ISREG(sb.st_mode) || (uint64_t)sb.st_size != model->bytes))
        st = mu_fail(err, MU_EFORMAT, "%s: expected a file of %llu bytes, found %llu: pull the model again", path,
                     (unsigned long long)model->bytes, (unsigned long long)sb.st_size);
    if (st != MU_OK) {
        mu_free(path);
        return st;
    }
    *path_out = path;
    *bytes_out = reference ? reference->bytes : model->bytes;
    return MU_OK;
}

/* ---- what the other layers say ---- */

static enum mu_status read_layer(const char *root, const struct mu_layer *l, char **text_out, size_t *len_out,
                                 struct mu_err *err)
{
    char *path = mu_blob_path(root, l->digest);
    enum mu_status st = path ? mu_file_read(path, MU_LAYER_TEXT_MAX_BYTES, text_out, len_out, err)
                             : mu_fail(err, MU_ENOMEM, "no memory for a path");
    mu_free(path);
    return st;
}

static enum mu_status read_json(const char *root, const struct mu_layer *l, bool array, json_t **json_out,
                                struct mu_err *err)
{
    char *text = NULL;
    size_t len;
    json_error_t e;
    enum mu_status st = read_layer(root, l, &text, &len, err);
    if (st != MU_OK) return st;
    bool no_memory;
    json_t *doc = mu_json_load(text, len, 0, &e, &no_memory);
    mu_free(text);
    if (no_memory) return mu_fail(err, MU_ENOMEM, "no memory for the %s of a model", l->kind);
    if (!doc || (array ? !json_is_array(doc) : !json_is_object(doc))) {
        json_decref(doc);
        return mu_fail(err, MU_EFORMAT, "blob sha256-%s in %s: expected the %s of a model as a JSON %s", l->digest,
                       root, l->kind, array ? "array" : "object");
    }
    json_decref(*json_out);
    *json_out = doc;
    return MU_OK;
}

static enum mu_status append(char ***list, int *n, char *text, struct mu_err *err)
{
    char **more = text && *n < MAX_TEXTS ? mu_reallocarray(*list, (size_t)*n + 1, sizeof **list) : NULL;
    if (!more) {
        bool many = text && *n >= MAX_TEXTS;
        mu_free(text);
        return many ? mu_fail(err, MU_ELIMIT, "a model has more than %d licences or adapters", MAX_TEXTS)
                    : mu_fail(err, MU_ENOMEM, "no memory for what a store says about a model");
    }
    *list = more;
    more[(*n)++] = text;
    return MU_OK;
}

static enum mu_status load_layer(const char *root, const struct mu_layer *l, bool own, struct mu_store_model *model,
                                 struct mu_err *err)
{
    char *text = NULL, **place = NULL;
    size_t len;
    enum mu_status st;
    if (l->ours)
        return own && l->path && !strcmp(l->kind, MU_KIND_ADAPTER)
                   ? append(&model->adapter_path, &model->n_adapter, mu_strdup(l->path), err)
                   : MU_OK;
    if (!strcmp(l->kind, "params")) return read_json(root, l, false, &model->params, err);
    if (!strcmp(l->kind, "messages")) return read_json(root, l, true, &model->messages, err);
    if (!strcmp(l->kind, "adapter"))
        return append(&model->adapter_path, &model->n_adapter, mu_blob_path(root, l->digest), err);
    if (!strcmp(l->kind, "system")) place = &model->system;
    if (!strcmp(l->kind, "template")) place = &model->template;
    if (!place && strcmp(l->kind, "license") != 0) return MU_OK;
    st = read_layer(root, l, &text, &len, err);
    if (st != MU_OK) return st;
    if (!place) return append(&model->license, &model->n_license, text, err);
    mu_free(*place);
    *place = text;
    if (place == &model->template) model->template_is_jinja = strstr(text, "{%") != NULL;
    return MU_OK;
}

enum mu_status mu_manifest_load(const char *root, const struct mu_manifest *m, bool own, struct mu_store_model *model,
                                struct mu_err *err)
{
    enum mu_status st = MU_OK;
    for (size_t i = 0; i < m->n_layer && st == MU_OK; i++) st = load_layer(root, &m->layer[i], own, model, err);
    return st;
}
