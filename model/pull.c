/* Which files make up a model, at Ollama's registry and at the Hugging Face hub. */
#include "model/pull.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/io.h"
#include "model/pull_http.h"
#include "model/store_own.h"

enum { TREE_MAX_BYTES = 16 << 20, MAX_PAGES = 64, MAX_FILES = 20000, TOKEN_MAX_BYTES = 4096, MAX_SHOWN = 240 };
#define MANIFEST_TYPE "application/vnd.docker.distribution.manifest.v2+json"

struct pull {
    struct mu_http http;
    struct mu_store_name name;
    char *root;
    int lock;
    struct mu_want *want;
    size_t n_want;
    const struct mu_pull_options *opt;
    struct mu_err *err;
};

static void want_clear(struct mu_want *w)
{
    mu_free(w->url);
    mu_free(w->name);
}

static void say(const struct pull *p, const char *line)
{
    if (p->opt->say) p->opt->say(line, p->opt->ctx);
}

/* ---- files into the store ---- */

static enum mu_status check_space(struct pull *p)
{
    struct statvfs fs;
    uint64_t need = 0;
    p->http.total = 0;
    for (size_t i = 0; i < p->n_want; i++) {
        need += mu_http_missing(p->root, &p->want[i]);
        p->http.total += p->want[i].bytes;
    }
    if (statvfs(p->root, &fs) != 0) return MU_OK;
    uint64_t room = (uint64_t)fs.f_bavail * fs.f_frsize;
    if (need <= room) return MU_OK;
    return mu_fail(p->err, MU_EIO,
                   "%s needs %.2f GB more and %s has %.2f GB free; free some space, or set MUSTER_MODELS",
                   p->http.about, (double)need / 1e9, p->root, (double)room / 1e9);
}

static enum mu_status get_files(struct pull *p)
{
    enum mu_status st = check_space(p);
    for (size_t i = 0; i < p->n_want && st == MU_OK; i++) {
        char line[300];
        snprintf(line, sizeof line, "pulling %.200s", p->want[i].name);
        say(p, line);
        st = mu_http_file(&p->http, p->root, &p->want[i], p->err);
    }
    return st;
}

static struct mu_want *new_want(struct pull *p)
{
    struct mu_want *more = mu_reallocarray(p->want, p->n_want + 1, sizeof *more);
    if (!more) return NULL;
    p->want = more;
    more[p->n_want] = (struct mu_want){0};
    return &more[p->n_want++];
}

/* ---- Ollama's registry ---- */

static enum mu_status want_layer(struct pull *p, const struct mu_layer *l)
{
    for (size_t i = 0; i < p->n_want; i++)
        if (!strcmp(p->want[i].sha256, l->digest)) return MU_OK; /* the same blob twice */
    struct mu_want *w = new_want(p);
    if (!w) return mu_fail(p->err, MU_ENOMEM, "no memory for a list of files");
    w->url = mu_asprintf("%s/v2/%s/%s/blobs/sha256:%s", p->http.base, p->name.space, p->name.model, l->digest);
    w->name = mu_asprintf("%s %.12s", mu_store_part_ok(l->kind, false) ? l->kind : "blob", l->digest);
    w->bytes = l->bytes;
    memcpy(w->sha256, l->digest, sizeof w->sha256);
    return w->url && w->name ? MU_OK : mu_fail(p->err, MU_ENOMEM, "no memory for a list of files");
}

static enum mu_status check_manifest(struct pull *p, const struct mu_manifest *m)
{
    for (size_t i = 0; i < m->n_layer; i++)
        if (m->layer[i].ours || !m->layer[i].digest[0])
            return mu_fail(p->err, MU_EPROTO,
                           "the manifest of %s has a layer that only Muster itself may write: it was refused",
                           p->http.about);
    if (m->config.kind && (m->config.ours || !m->config.digest[0]))
        return mu_fail(p->err, MU_EPROTO, "the manifest of %s has a configuration without a digest", p->http.about);
    if (!mu_manifest_find(m, "model", false))
        return mu_fail(p->err, MU_EUNSUPPORTED, "%s is not kept as a GGUF file there: look for it at hf.co",
                       p->http.about);
    return MU_OK;
}

static enum mu_status pull_ollama(struct pull *p)
{
    char *text = NULL;
    size_t len;
    struct mu_manifest m = {0};
    enum mu_status st;
    char *url = mu_asprintf("%s/v2/%s/%s/manifests/%s", p->http.base, p->name.space, p->name.model, p->name.tag);
    if (!url) return mu_fail(p->err, MU_ENOMEM, "no memory for an address");
    say(p, "pulling manifest");
    MU_TRY(st, mu_http_get(&p->http, url, MANIFEST_TYPE, MU_MANIFEST_MAX_BYTES, &text, &len, NULL, p->err), done);
    st = mu_manifest_parse(text, len, "the server's manifest", &m, p->err);
    if (st != MU_OK) {
        if (st == MU_EFORMAT) p->err->code = st = MU_EPROTO;
        goto done;
    }
    MU_TRY(st, check_manifest(p, &m), done);
    if (m.config.kind) MU_TRY(st, want_layer(p, &m.config), done);
    for (size_t i = 0; i < m.n_layer; i++) MU_TRY(st, want_layer(p, &m.layer[i]), done);
    MU_TRY(st, get_files(p), done);
    say(p, "writing manifest");
    MU_TRY(st, mu_own_commit(p->root, p->lock, &p->name, text, len, p->err), done);
done:
    mu_manifest_clear(&m);
    mu_free(text);
    mu_free(url);
    return st;
}

/* ---- the hub ---- */

struct hub_file {
    const char *path, *base; /* borrowed from the pages; base: behind the last '/' */
    uint64_t bytes;
    char sha256[MU_DIGEST_TEXT], git_sha1[41];
    char quant[16];
    char label[256]; /* of a GGUF: its path without .gguf and -00001-of-0000N */
};

struct hub {
    struct pull *p;
    json_t *pages; /* array of arrays */
    struct hub_file *file;
    size_t n;
};

static bool is_hex(const char *s, size_t n)
{
    return s && strlen(s) == n && strspn(s, "0123456789abcdef") == n;
}

static bool path_ok(const char *path)
{
    size_t len = strlen(path);
    if (len == 0 || len > 200 || !mu_text_ok(path) || strchr(path, '\\')) return false;
    for (const char *part = path; part; part = strchr(part, '/'), part = part ? part + 1 : NULL)
        if (*part == '.' || *part == '/' || !*part) return false;
    return true;
}

static bool ends_with(const char *s, const char *tail)
{
    size_t n = strlen(s), k = strlen(tail);
    return n >= k && !strcasecmp(s + n - k, tail);
}

static enum mu_status add_page(struct hub *h, json_t *page)
{
    json_t *item;
    size_t i;
    if (!json_is_array(page) || json_array_size(page) > MAX_FILES - h->n)
        return mu_fail(h->p->err, MU_EPROTO, "the hub's list of files of %s is none, or too long", h->p->http.about);
    struct hub_file *more = mu_reallocarray(h->file, h->n + json_array_size(page) + 1, sizeof *more);
    if (!more) return mu_fail(h->p->err, MU_ENOMEM, "no memory for a list of files");
    h->file = more;
    json_array_foreach(page, i, item)
    {
        const char *type = json_string_value(json_object_get(item, "type")),
                   *path = json_string_value(json_object_get(item, "path")),
                   *oid = json_string_value(json_object_get(item, "oid")),
                   *sha256 = json_string_value(json_object_get(json_object_get(item, "lfs"), "oid"));
        json_t *size = json_object_get(item, "size");
        if (!type || strcmp(type, "file") != 0 || !path || !path_ok(path) || json_integer_value(size) < 0) continue;
        struct hub_file f = {.path = path, .base = strrchr(path, '/'), .bytes = (uint64_t)json_integer_value(size)};
        f.base = f.base ? f.base + 1 : path;
        if (is_hex(sha256, 64))
            memcpy(f.sha256, sha256, 65);
        else if (is_hex(oid, 40))
            memcpy(f.git_sha1, oid, 41);
        else
            continue;
        if (ends_with(path, ".gguf")) {
            int no, count;
            size_t stem;
            if (!mu_store_split_of(path, &no, &count, &stem)) stem = strlen(path) - 5;
            snprintf(f.label, sizeof f.label, "%.*s", (int)stem, path);
            mu_store_quant_of(f.label, f.quant);
        }
        h->file[h->n++] = f;
    }
    return MU_OK;
}

static enum mu_status list_files(struct hub *h)
{
    struct pull *p = h->p;
    enum mu_status st = MU_OK;
    char *url = mu_asprintf("%s/api/models/%s/%s/tree/main?recursive=true", p->http.base, p->name.space, p->name.model);
    if (!url) return mu_fail(p->err, MU_ENOMEM, "no memory for an address");
    size_t bytes = 0;
    for (int page = 0; url && st == MU_OK; page++) {
        char *text = NULL, *next = NULL;
        size_t len;
        if (page == MAX_PAGES || bytes > TREE_MAX_BYTES || !mu_http_is_ours(&p->http, url)) {
            st = mu_fail(p->err, MU_EPROTO, "the hub's list of files of %s does not end, or goes on elsewhere",
                         p->http.about);
            break;
        }
        MU_TRY(st, mu_http_get(&p->http, url, "application/json", TREE_MAX_BYTES, &text, &len, &next, p->err), done);
        json_t *doc = json_loadb(text, len, 0, NULL);
        mu_free(text);
        mu_free(url);
        url = next;
        bytes += len;
        if (json_array_append_new(h->pages, doc ? doc : json_null()))
            st = mu_fail(p->err, MU_ENOMEM, "no memory for a list of files");
        else
            st = add_page(h, doc);
    }
done:
    mu_free(url);
    return st;
}

static bool is_weights(const struct hub_file *f)
{
    return f->label[0] && !strcasestr(f->base, "mmproj") && !strcasestr(f->base, "imatrix");
}

static bool first_part(const struct hub_file *f)
{
    int no, count;
    size_t stem;
    return !mu_store_split_of(f->path, &no, &count, &stem) || no == 1;
}

/* "Q4_K_M, Q8_0": what one may ask for. */
static void list_quants(const struct hub *h, char *buf, size_t size)
{
    size_t len = 0;
    buf[0] = 0;
    for (size_t i = 0; i < h->n && len + 20 < size; i++)
        if (is_weights(&h->file[i]) && first_part(&h->file[i]))
            len += (size_t)snprintf(buf + len, size - len, "%s%.40s", len ? ", " : "",
                                    h->file[i].quant[0] ? h->file[i].quant : h->file[i].label);
}

/* What ends a file's label and is the tag, as the label spells it: all of it, or what is behind a '-' or '.'
 * ("UD-Q4_K_XL"). NULL: it ends otherwise. */
static const char *label_tail(const struct hub_file *f, const char *tag)
{
    size_t n = strlen(f->label), k = strlen(tag);
    const char *tail = k <= n ? f->label + n - k : NULL;
    return tail && !strcasecmp(tail, tag) && (k == n || strchr("/-.", tail[-1])) ? tail : NULL;
}

/* The first part of the GGUF that is meant: by its quantisation, or else by how its name ends; without a tag Q4_K_M or
 * what comes nearest to it, or the only one. NULL with MU_OK: there is no GGUF at all. */
static enum mu_status choose_gguf(const struct hub *h, const struct hub_file **file_out)
{
    static const char *const preferred[] = {"Q4_K_M", "Q4_K_S", "Q4_0", "IQ4_XS", "Q5_K_M", "MXFP4", "Q8_0"};
    const struct mu_store_name *name = &h->p->name;
    const struct hub_file *found = NULL, *ends = NULL, *any = NULL;
    size_t n_any = 0;
    *file_out = NULL;
    for (size_t i = 0; i < h->n; i++) {
        const struct hub_file *f = &h->file[i];
        if (!is_weights(f) || !first_part(f)) continue;
        n_any++, any = f;
        if (!name->has_tag) continue;
        bool exact = !strcasecmp(f->quant, name->tag);
        if (!exact && !label_tail(f, name->tag)) continue;
        const struct hub_file **best = exact ? &found : &ends;
        /* "UD-Q4_K_M" beside "Q4_K_M": the plain one has the shorter name. */
        if (!*best || strlen(f->path) < strlen((*best)->path)) *best = f;
    }
    if (!n_any) return MU_OK;
    if (!found) found = ends;
    if (!name->has_tag && n_any == 1) found = any;
    for (size_t k = 0; k < sizeof preferred / sizeof *preferred && !name->has_tag && !found; k++)
        for (size_t i = 0; i < h->n; i++)
            if (is_weights(&h->file[i]) && first_part(&h->file[i]) && !strcmp(h->file[i].quant, preferred[k]) &&
                (!found || strlen(h->file[i].path) < strlen(found->path)))
                found = &h->file[i];
    *file_out = found;
    if (found) return MU_OK;
    char quants[MAX_SHOWN];
    list_quants(h, quants, sizeof quants);
    return mu_fail(h->p->err, name->has_tag ? MU_ENOENT : MU_EINVAL, "hf.co/%s/%s has %s; %s", name->space, name->model,
                   quants, name->has_tag ? "none of them is what was asked for" : "say which, behind a ':'");
}

/* Files of a safetensors repository that are worth having: all that is read, nothing that runs. */
static bool is_hf_file(const struct hub_file *f)
{
    static const char *const names[] = {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "vocab.json",
        "merges.txt",
        "added_tokens.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "chat_template.json",
        "model.safetensors.index.json",
        "adapter_config.json",
        "LICENSE",
    };
    if (f->base != f->path) return false; /* original/, onnx/ … */
    if (ends_with(f->base, ".safetensors")) return strncmp(f->base, "consolidated", 12) != 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(f->base, names[i])) return true;
    return false;
}

static bool part_of(const struct hub_file *f, const struct hub_file *first)
{
    return !strcmp(f->label, first->label) && (f == first || !first_part(f));
}

static char *file_url(const struct pull *p, const char *path)
{
    char *escaped = curl_easy_escape(p->http.curl, path, 0), *url = NULL;
    /* '/' stays: unescape it again in place */
    for (char *s = escaped; s && (s = strstr(s, "%2F")); s++) {
        *s = '/';
        memmove(s + 1, s + 3, strlen(s + 3) + 1);
    }
    if (escaped) url = mu_asprintf("%s/%s/%s/resolve/main/%s", p->http.base, p->name.space, p->name.model, escaped);
    curl_free(escaped);
    return url;
}

static enum mu_status want_file(struct pull *p, const struct hub_file *f)
{
    for (size_t i = 0; i < p->n_want; i++)
        if (!strcmp(p->want[i].name, f->base))
            return mu_fail(p->err, MU_EPROTO, "%s has two files '%.100s' for one model", p->http.about, f->base);
    struct mu_want *w = new_want(p);
    if (!w) return mu_fail(p->err, MU_ENOMEM, "no memory for a list of files");
    *w = (struct mu_want){.url = file_url(p, f->path), .name = mu_strdup(f->base), .bytes = f->bytes};
    memcpy(w->sha256, f->sha256, sizeof w->sha256);
    memcpy(w->git_sha1, f->git_sha1, sizeof w->git_sha1);
    return w->url && w->name ? MU_OK : mu_fail(p->err, MU_ENOMEM, "no memory for a list of files");
}

/* A GGUF in one piece is a layer as Ollama has it; several files keep their names. */
static enum mu_status write_hub_manifest(struct pull *p, bool single)
{
    json_t *layers = json_array();
    enum mu_status st = MU_OK;
    char *text = NULL;
    for (size_t i = 0; i < p->n_want && layers; i++) {
        char digest[MU_DIGEST_TEXT + 8];
        snprintf(digest, sizeof digest, "sha256:%s", p->want[i].sha256);
        json_t *layer = single ? json_pack("{s:s,s:s,s:I}", "mediaType", MU_MEDIA_OLLAMA "model", "digest", digest,
                                           "size", (json_int_t)p->want[i].bytes)
                               : json_pack("{s:s,s:s,s:I,s:s}", "mediaType", MU_MEDIA_MUSTER MU_KIND_FILE, "digest",
                                           digest, "size", (json_int_t)p->want[i].bytes, "name", p->want[i].name);
        if (!layer || json_array_append_new(layers, layer)) {
            json_decref(layers);
            layers = NULL;
        }
    }
    json_t *doc =
        layers ? json_pack("{s:i,s:s,s:O}", "schemaVersion", 2, "mediaType", MANIFEST_TYPE, "layers", layers) : NULL;
    if (doc) text = json_dumps(doc, JSON_COMPACT);
    st = text ? mu_own_commit(p->root, p->lock, &p->name, text, strlen(text), p->err)
              : mu_fail(p->err, MU_ENOMEM, "no memory for a manifest");
    json_free_t release;
    json_get_alloc_funcs(NULL, &release);
    release(text);
    json_decref(doc);
    json_decref(layers);
    return st;
}

static enum mu_status want_gguf(struct hub *h, const struct hub_file *first)
{
    struct pull *p = h->p;
    enum mu_status st = MU_OK;
    int no, count = 1;
    size_t stem;
    if (!mu_store_split_of(first->path, &no, &count, &stem)) count = 1;
    for (size_t i = 0; i < h->n && st == MU_OK; i++)
        if (is_weights(&h->file[i]) && part_of(&h->file[i], first)) st = want_file(p, &h->file[i]);
    if (st == MU_OK && p->n_want != (size_t)count)
        st = mu_fail(p->err, MU_EPROTO, "%s has %zu of the %d parts of '%.100s'", p->http.about, p->n_want, count,
                     first->path);
    /* "UD-IQ2_M" and "IQ2_M" are two models: a tag that was more than the quantisation stays. */
    const char *tail = p->name.has_tag ? label_tail(first, p->name.tag) : NULL,
               *tag = tail && strcasecmp(first->quant, tail) ? tail : first->quant;
    if (*tag) snprintf(p->name.tag, sizeof p->name.tag, "%s", tag);
    return st;
}

static enum mu_status want_folder(struct hub *h)
{
    struct pull *p = h->p;
    enum mu_status st = MU_OK;
    bool config = false, weights = false, pickle = false;
    if (p->name.has_tag && strcmp(p->name.tag, "main") != 0)
        return mu_fail(p->err, MU_ENOENT,
                       "hf.co/%s/%s has no GGUF files, so none of '%.60s': pull it without a tag for its "
                       "safetensors",
                       p->name.space, p->name.model, p->name.tag);
    strcpy(p->name.tag, MU_NAME_TAG);
    for (size_t i = 0; i < h->n && st == MU_OK; i++) {
        const struct hub_file *f = &h->file[i];
        pickle |= ends_with(f->base, ".bin") || ends_with(f->base, ".pth") || ends_with(f->base, ".pt");
        if (!is_hf_file(f)) continue;
        config |= !strcmp(f->base, "config.json");
        weights |= ends_with(f->base, ".safetensors");
        st = want_file(p, f);
    }
    if (st != MU_OK || (config && weights)) return st;
    return mu_fail(p->err, MU_EUNSUPPORTED, "hf.co/%s/%s has neither GGUF files nor a config.json with safetensors%s",
                   p->name.space, p->name.model,
                   pickle ? "; PyTorch's pickles could run code and are not read: look for a GGUF of it" : "");
}

/* Ollama's users name a file whole, and what has no tag "latest". */
static void plain_tag(struct mu_store_name *name)
{
    int no, count;
    size_t stem = strlen(name->tag);
    if (!name->has_tag) return;
    if (!mu_store_split_of(name->tag, &no, &count, &stem) && ends_with(name->tag, ".gguf") && stem > 5) stem -= 5;
    name->tag[stem] = 0;
    if (strcasecmp(name->tag, MU_NAME_TAG) != 0) return;
    name->has_tag = false;
    strcpy(name->tag, MU_NAME_TAG);
}

static enum mu_status pull_hub(struct pull *p)
{
    struct hub h = {.p = p, .pages = json_array()};
    const struct hub_file *first;
    enum mu_status st;
    if (!h.pages) return mu_fail(p->err, MU_ENOMEM, "no memory for a list of files");
    say(p, "pulling the list of files");
    plain_tag(&p->name);
    MU_TRY(st, list_files(&h), done);
    MU_TRY(st, choose_gguf(&h, &first), done);
    st = first ? want_gguf(&h, first) : want_folder(&h);
    if (st != MU_OK) goto done;
    MU_TRY(st, get_files(p), done);
    say(p, "writing manifest");
    MU_TRY(st, write_hub_manifest(p, first && p->n_want == 1), done);
done:
    json_decref(h.pages);
    mu_free(h.file);
    return st;
}

/* $HF_TOKEN, or the first line of the file where Hugging Face's own tools keep it. */
static char *hub_token(void)
{
    const char *given = getenv("HF_TOKEN"), *path = getenv("HF_TOKEN_PATH"), *hf = getenv("HF_HOME"),
               *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char *token = NULL, *file = NULL, *text = NULL;
    size_t len;
    if (given && *given)
        token = mu_strdup(given);
    else
        file = path && *path     ? mu_strdup(path)
               : hf && *hf       ? mu_asprintf("%s/token", hf)
               : cache && *cache ? mu_asprintf("%s/huggingface/token", cache)
               : home && *home   ? mu_asprintf("%s/.cache/huggingface/token", home)
                                 : NULL;
    if (file && mu_file_read(file, TOKEN_MAX_BYTES, &text, &len, NULL) == MU_OK) token = text;
    mu_free(file);
    if (token) token[strspn(token, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")] = 0;
    if (token && !*token) {
        mu_free(token);
        token = NULL;
    }
    return token;
}

static char *base_address(const char *variable, const char *fallback)
{
    const char *given = getenv(variable);
    char *base = mu_strdup(given && *given ? given : fallback);
    for (size_t n = base ? strlen(base) : 0; n && base[n - 1] == '/'; n--) base[n - 1] = 0;
    return base;
}

enum mu_status mu_pull(const char *name, const struct mu_pull_options *opt, char **name_out, struct mu_err *err)
{
    struct pull p = {.lock = -1, .opt = opt, .err = err};
    char about[MU_NAME_TEXT + 16], *base = NULL;
    enum mu_status st;
    bool opened = false;
    if (!mu_store_name_parse(name, &p.name))
        return mu_fail(err, MU_EINVAL,
                       "'%.100s' cannot be pulled: expected a name like llama3.2:1b, user/model:tag or "
                       "hf.co/user/repo:Q4_K_M",
                       name);
    bool hub = !strcmp(p.name.host, MU_NAME_HF);
    if (hub)
        base = base_address("HF_ENDPOINT", "https://huggingface.co");
    else if (!strcmp(p.name.host, MU_NAME_HOST))
        base = base_address("MUSTER_OLLAMA_REGISTRY", "https://registry.ollama.ai");
    else
        base = mu_asprintf("https://%s", p.name.host);
    if (!base) return mu_fail(err, MU_ENOMEM, "no memory for an address");
    snprintf(about, sizeof about, "model '%.400s'", name);
    MU_TRY(st, mu_http_open(&p.http, base, hub ? hub_token() : NULL, about, opt, err), done);
    opened = true;
    MU_TRY(st, mu_own_open(false, &p.root, &p.lock, err), done);
    st = hub ? pull_hub(&p) : pull_ollama(&p);
    if (st == MU_OK) {
        char shown[MU_NAME_TEXT];
        mu_store_name_format(&p.name, shown);
        *name_out = mu_strdup(shown);
        if (!*name_out) st = mu_fail(err, MU_ENOMEM, "no memory for a name");
    }
done:
    if (st != MU_OK && st == MU_ENOENT && !hub && strchr(name, '/') && opened && !strstr(err->text, "hf.co"))
        mu_err_wrap(err, "if it is at Hugging Face, say hf.co/%.80s", name);
    for (size_t i = 0; i < p.n_want; i++) want_clear(&p.want[i]);
    mu_free(p.want);
    if (p.lock >= 0) close(p.lock);
    mu_free(p.root);
    mu_http_close(&p.http);
    mu_free(base);
    return st;
}
