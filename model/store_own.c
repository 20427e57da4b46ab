/* Writing to Muster's own store. */
#include "model/store_own.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/io.h"
#include "model/store_part.h"

/* ---- folders and the lock ---- */

/* mkdir -p of everything before the last '/'. */
static enum mu_status make_parents(const char *path, struct mu_err *err)
{
    char *p = mu_strdup(path);
    if (!p) return mu_fail(err, MU_ENOMEM, "no memory for a path");
    for (char *slash = strchr(p + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        if (mkdir(p, 0777) != 0 && errno != EEXIST) {
            enum mu_status st = mu_fail(
                err, MU_EIO, "cannot make the folder %s: %s; $MUSTER_MODELS names another place", p, strerror(errno));
            mu_free(p);
            return st;
        }
        *slash = '/';
    }
    mu_free(p);
    return MU_OK;
}

enum mu_status mu_own_open(bool exclusive, char **root_out, int *lock_fd_out, struct mu_err *err)
{
    char *root = mu_store_own_path(), *lock = root ? mu_asprintf("%s/lock", root) : NULL,
         *blobs = root ? mu_asprintf("%s/blobs/", root) : NULL;
    int fd = -1;
    enum mu_status st;
    if (!lock || !blobs) {
        st = root ? mu_fail(err, MU_ENOMEM, "no memory for a path")
                  : mu_fail(err, MU_EINVAL, "there is no place for models: set HOME or MUSTER_MODELS");
        goto fail;
    }
    MU_TRY(st, make_parents(blobs, err), fail);
    fd = open(lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd < 0) {
        st = mu_fail(err, MU_EIO, "cannot open %s: %s", lock, strerror(errno));
        goto fail;
    }
    while (flock(fd, exclusive ? LOCK_EX | LOCK_NB : LOCK_SH) != 0) {
        if (errno == EINTR) continue;
        st = errno == EWOULDBLOCK
                 ? mu_fail(err, MU_EBUSY, "another muster is adding models to %s: try again when it is done", root)
                 : mu_fail(err, MU_EIO, "cannot lock %s: %s", lock, strerror(errno));
        goto fail;
    }
    mu_free(lock);
    mu_free(blobs);
    *root_out = root;
    *lock_fd_out = fd;
    return MU_OK;
fail:
    if (fd >= 0) close(fd);
    mu_free(lock);
    mu_free(blobs);
    mu_free(root);
    return st;
}

static enum mu_status write_file(const char *path, const char *text, size_t len, struct mu_err *err)
{
    struct mu_file_writer *w;
    enum mu_status st;
    MU_TRY(st, make_parents(path, err), fail);
    MU_TRY(st, mu_file_writer_open(path, &w, err), fail);
    st = mu_file_writer_write(w, text, len, err);
    enum mu_status closed = mu_file_writer_close(w, st == MU_OK, st == MU_OK ? err : NULL);
    return st ? st : closed;
fail:
    return st;
}

/* ---- blobs ---- */

/* A file's size, a folder's 0. */
static uint64_t size_of(const char *path)
{
    struct stat sb;
    return stat(path, &sb) == 0 && S_ISREG(sb.st_mode) ? (uint64_t)sb.st_size : 0;
}

/* Whether any manifest below folder has the digits; unreadable ones count as yes. level: 0 HOST … 3 TAG. */
static bool is_used(const char *folder, const char *hex, int level)
{
    struct mu_dir d;
    bool used = false, no_memory = false;
    if (!mu_dir_read(folder, level == 0, &d, &no_memory)) return no_memory || errno != ENOENT;
    for (size_t i = 0; i < d.n && !used; i++) {
        char *path = mu_asprintf("%s/%s", folder, d.name[i]), *text = NULL;
        size_t len;
        struct stat sb;
        if (!path || lstat(path, &sb) != 0) {
            used = true;
        } else if (S_ISDIR(sb.st_mode)) {
            used = level < 3 ? is_used(path, hex, level + 1) : false;
        } else {
            used = mu_file_read(path, MU_MANIFEST_MAX_BYTES, &text, &len, NULL) != MU_OK || memmem(text, len, hex, 64);
        }
        mu_free(text);
        mu_free(path);
    }
    mu_dir_free(&d);
    return used;
}

static void remove_blob(const char *root, const char *hex, uint64_t *freed)
{
    char *manifests = mu_asprintf("%s/manifests", root), *blob = mu_blob_path(root, hex);
    if (manifests && blob && !is_used(manifests, hex, 0)) {
        uint64_t bytes = size_of(blob);
        if (unlink(blob) == 0) *freed += bytes;
    }
    mu_free(manifests);
    mu_free(blob);
}

/* Of a manifest that is gone: what no other one has. Whoever adds a model takes blobs that are there for good, so this
 * wants the exclusive lock. */
static void remove_blobs(const char *root, const struct mu_manifest *m, uint64_t *freed)
{
    if (m->config.kind) remove_blob(root, m->config.digest, freed);
    for (size_t i = 0; i < m->n_layer; i++)
        if (m->layer[i].digest[0]) remove_blob(root, m->layer[i].digest, freed);
}

/* ---- manifests ---- */

/* views/…/NAME -> ../../../../../blobs/sha256-HEX */
static enum mu_status link_file(const char *view, const struct mu_layer *l, struct mu_err *err)
{
    char *path = mu_asprintf("%s/%s", view, l->name), *fresh = mu_asprintf("%s/.%d-%s", view, (int)getpid(), l->name),
         *target = mu_asprintf("../../../../../blobs/sha256-%s", l->digest);
    enum mu_status st = MU_OK;
    if (!path || !fresh || !target) {
        st = mu_fail(err, MU_ENOMEM, "no memory for a path");
    } else if ((st = make_parents(path, err)) == MU_OK) {
        unlink(fresh);
        if (symlink(target, fresh) != 0 || rename(fresh, path) != 0)
            st = mu_fail(err, MU_EIO, "cannot make the link %s: %s", path, strerror(errno));
    }
    mu_free(path);
    mu_free(fresh);
    mu_free(target);
    return st;
}

static bool is_file_of(const struct mu_manifest *m, const char *name)
{
    for (size_t i = 0; i < m->n_layer; i++)
        if (m->layer[i].ours && !strcmp(m->layer[i].kind, MU_KIND_FILE) && !strcmp(m->layer[i].name, name)) return true;
    return false;
}

/* Takes the links out of a folder that are no files of m, and the folder where none is left. */
static void trim_view(const char *view, const struct mu_manifest *m)
{
    struct mu_dir d;
    bool no_memory = false;
    if (!mu_dir_read(view, false, &d, &no_memory)) return;
    for (size_t i = 0; i < d.n; i++) {
        char *path = is_file_of(m, d.name[i]) ? NULL : mu_asprintf("%s/%s", view, d.name[i]);
        if (path) unlink(path);
        mu_free(path);
    }
    mu_dir_free(&d);
    rmdir(view);
}

/* A manifest that is to go: one that is not there, or makes no sense, names no blobs. */
static enum mu_status read_old(const char *path, struct mu_manifest *m_out, struct mu_err *err)
{
    struct mu_err ignored = MU_ERR_INIT;
    return mu_manifest_read(path, m_out, &ignored) == MU_ENOMEM ? mu_fail(err, MU_ENOMEM, "%s", ignored.text) : MU_OK;
}

enum mu_status mu_own_commit(const char *root, int lock_fd, const struct mu_store_name *name, const char *text,
                             size_t len, struct mu_err *err)
{
    struct mu_manifest m = {0}, old = {0};
    uint64_t freed = 0;
    enum mu_status st;
    char *path = mu_manifest_path(root, "manifests", name), *view = mu_manifest_path(root, "views", name);
    if (!path || !view) {
        st = mu_fail(err, MU_ENOMEM, "no memory for a path");
        goto done;
    }
    MU_TRY(st, mu_manifest_parse(text, len, path, &m, err), done);
    MU_TRY(st, read_old(path, &old, err), done);
    for (size_t i = 0; i < m.n_layer; i++)
        if (m.layer[i].ours && !strcmp(m.layer[i].kind, MU_KIND_FILE))
            MU_TRY(st, link_file(view, &m.layer[i], err), done);
    MU_TRY(st, write_file(path, text, len, err), done);
    /* A model is read by what its folder holds: an index or a template that it has no more would count. */
    trim_view(view, &m);
    if (old.n_layer && flock(lock_fd, LOCK_EX | LOCK_NB) == 0) remove_blobs(root, &old, &freed);
done:
    mu_manifest_clear(&m);
    mu_manifest_clear(&old);
    mu_free(path);
    mu_free(view);
    return st;
}

/* ---- making models ---- */

struct maker {
    const char *root;
    json_t *layers; /* array */
    struct mu_err *err;
};

/* layer is taken. */
static enum mu_status add_layer(struct maker *k, json_t *layer)
{
    if (layer && !json_array_append_new(k->layers, layer)) return MU_OK;
    return mu_fail(k->err, MU_ENOMEM, "no memory for a manifest");
}

static enum mu_status add_text(struct maker *k, const char *kind, const char *text, size_t len)
{
    char hex[MU_DIGEST_TEXT], media[80], digest[MU_DIGEST_TEXT + 8];
    if (!mu_sha256_hex(text, len, hex)) return mu_fail(k->err, MU_EINTERNAL, "SHA-256 is not available");
    snprintf(media, sizeof media, MU_MEDIA_OLLAMA "%s", kind);
    snprintf(digest, sizeof digest, "sha256:%s", hex);
    char *path = mu_blob_path(k->root, hex);
    enum mu_status st = !path                 ? mu_fail(k->err, MU_ENOMEM, "no memory for a path")
                        : mu_dir_exists(path) ? MU_OK
                                              : write_file(path, text, len, k->err);
    mu_free(path);
    if (st != MU_OK) return st;
    return add_layer(k, json_pack("{s:s,s:s,s:I}", "mediaType", media, "digest", digest, "size", (json_int_t)len));
}

static enum mu_status add_json(struct maker *k, const char *kind, json_t *doc)
{
    char *text = json_dumps(doc, JSON_COMPACT);
    if (!text) return mu_fail(k->err, MU_ENOMEM, "no memory for a model's %s", kind);
    enum mu_status st = add_text(k, kind, text, strlen(text));
    json_free_t release;
    json_get_alloc_funcs(NULL, &release);
    release(text);
    return st;
}

static enum mu_status add_path(struct maker *k, const char *kind, const char *path, uint64_t bytes)
{
    char media[80];
    char *cwd = path[0] == '/' ? NULL : getcwd(NULL, 0),
         *whole = cwd ? mu_asprintf("%s/%s", cwd, path) : mu_strdup(path);
    free(cwd);
    for (char *dot; whole && (dot = strstr(whole, "/./"));) memmove(dot, dot + 2, strlen(dot + 2) + 1);
    snprintf(media, sizeof media, MU_MEDIA_MUSTER "%s", kind);
    enum mu_status st = add_layer(
        k, whole ? json_pack("{s:s,s:s,s:I}", "mediaType", media, "path", whole, "size", (json_int_t)bytes) : NULL);
    mu_free(whole);
    return st;
}

/* Weights and adapters of the base: the layers of one of Muster's own models, paths of any other. */
static enum mu_status add_base(struct maker *k, const struct mu_store_model *base)
{
    enum mu_status st = MU_OK;
    if (base->entry.store != MU_STORE_OWN) {
        MU_TRY(st,
               add_path(k, MU_KIND_REFERENCE, base->path, base->entry.bytes ? base->entry.bytes : size_of(base->path)),
               done);
        for (int i = 0; i < base->n_adapter; i++)
            MU_TRY(st, add_path(k, MU_KIND_ADAPTER, base->adapter_path[i], size_of(base->adapter_path[i])), done);
        return MU_OK;
    }
    struct mu_manifest m = {0};
    MU_TRY(st, mu_manifest_read(base->entry.manifest, &m, k->err), done);
    for (size_t i = 0; i < m.n_layer && st == MU_OK; i++) {
        const struct mu_layer *l = &m.layer[i];
        if (l->ours || !strcmp(l->kind, "model") || !strcmp(l->kind, "projector") || !strcmp(l->kind, "adapter"))
            st = add_layer(k, json_incref(json_array_get(json_object_get(m.doc, "layers"), i)));
    }
    mu_manifest_clear(&m);
done:
    return st;
}

static enum mu_status add_adapters(struct maker *k, const struct mu_modelfile *file, const char *folder)
{
    for (int i = 0; i < file->n_adapter; i++) {
        char *path = mu_modelfile_path(folder, file->adapter[i]);
        enum mu_status st = !path                  ? mu_fail(k->err, MU_ENOMEM, "no memory for a path")
                            : !mu_dir_exists(path) ? mu_fail(k->err, MU_ENOENT, "there is no adapter %s", path)
                                                   : add_path(k, MU_KIND_ADAPTER, path, size_of(path));
        mu_free(path);
        if (st != MU_OK) return st;
    }
    return MU_OK;
}

static enum mu_status add_params(struct maker *k, const json_t *base, json_t *more)
{
    if (!base && !more) return MU_OK;
    json_t *all = base ? json_deep_copy(base) : json_object();
    enum mu_status st = all && !(more && json_object_update(all, more))
                            ? add_json(k, "params", all)
                            : mu_fail(k->err, MU_ENOMEM, "no memory for parameters");
    json_decref(all);
    return st;
}

/* What the Modelfile says wins over what the base says; licences add up. */
static enum mu_status add_texts(struct maker *k, const struct mu_store_model *base, const struct mu_modelfile *file)
{
    enum mu_status st;
    const char *template = file->template ? file->template : base->template,
               *system = file->system ? file->system : base->system;
    json_t *messages = file->messages ? file->messages : base->messages;
    if (template) MU_TRY(st, add_text(k, "template", template, strlen(template)), done);
    if (system) MU_TRY(st, add_text(k, "system", system, strlen(system)), done);
    MU_TRY(st, add_params(k, base->params, file->params), done);
    if (messages) MU_TRY(st, add_json(k, "messages", messages), done);
    for (int i = 0; i < base->n_license; i++)
        MU_TRY(st, add_text(k, "license", base->license[i], strlen(base->license[i])), done);
    for (int i = 0; i < file->n_license; i++)
        MU_TRY(st, add_text(k, "license", file->license[i], strlen(file->license[i])), done);
done:
    return st;
}

static enum mu_status parse_own_name(const char *text, struct mu_store_name *name_out, struct mu_err *err)
{
    if (mu_store_name_parse(text, name_out)) return MU_OK;
    return mu_fail(err, MU_EINVAL,
                   "'%.100s' cannot be a model's name: expected NAME, NAME:TAG or USER/NAME:TAG of letters, digits, "
                   "'.', '_' and '-'",
                   text);
}

enum mu_status mu_own_create(const char *name_text, const struct mu_store_model *base, const struct mu_modelfile *file,
                             const char *folder, struct mu_err *err)
{
    static const struct mu_modelfile nothing;
    struct mu_store_name name;
    struct maker k = {.err = err};
    char *root = NULL, *text = NULL;
    json_t *doc = NULL;
    int lock = -1;
    enum mu_status st;
    if (!file) file = &nothing;
    MU_TRY(st, parse_own_name(name_text, &name, err), done);
    MU_TRY(st, mu_own_open(false, &root, &lock, err), done);
    k.root = root;
    k.layers = json_array();
    MU_TRY(st, add_base(&k, base), done);
    MU_TRY(st, add_adapters(&k, file, folder), done);
    MU_TRY(st, add_texts(&k, base, file), done);
    doc = json_pack("{s:i,s:s,s:O}", "schemaVersion", 2, "mediaType",
                    "application/vnd.docker.distribution.manifest.v2+json", "layers", k.layers);
    text = doc ? json_dumps(doc, JSON_COMPACT) : NULL;
    st = text ? mu_own_commit(root, lock, &name, text, strlen(text), err)
              : mu_fail(err, MU_ENOMEM, "no memory for a manifest");
done:
    if (text) {
        json_free_t release;
        json_get_alloc_funcs(NULL, &release);
        release(text);
    }
    json_decref(doc);
    json_decref(k.layers);
    if (lock >= 0) close(lock);
    mu_free(root);
    return st;
}

enum mu_status mu_own_copy(const char *from, const char *to, struct mu_err *err)
{
    struct mu_store_model *base = NULL;
    struct mu_store_name name;
    char *root = NULL, *text = NULL;
    size_t len;
    int lock = -1;
    enum mu_status st;
    MU_TRY(st, parse_own_name(to, &name, err), done);
    MU_TRY(st, mu_store_find(from, &base, err), done);
    if (base->entry.store != MU_STORE_OWN) {
        st = mu_own_create(to, base, NULL, ".", err);
        goto done;
    }
    MU_TRY(st, mu_own_open(false, &root, &lock, err), done);
    MU_TRY(st, mu_file_read(base->entry.manifest, MU_MANIFEST_MAX_BYTES, &text, &len, err), done);
    MU_TRY(st, mu_own_commit(root, lock, &name, text, len, err), done);
done:
    if (lock >= 0) close(lock);
    mu_store_model_free(base);
    mu_free(root);
    mu_free(text);
    return st;
}

/* ---- removing ---- */

/* Which manifest the name means: of a listed model, or of one whose weights are gone. */
static enum mu_status find_manifest(const char *root, const char *name_text, struct mu_store_name *name_out,
                                    struct mu_err *err)
{
    static const char *const owner[] = {
        [MU_STORE_OLLAMA] = "Ollama: 'ollama rm' removes it",
        [MU_STORE_LMSTUDIO] = "LM Studio: remove it there",
        [MU_STORE_JAN] = "Jan: remove it there",
        [MU_STORE_HUB] = "the Hugging Face cache: 'hf cache delete' removes it",
        [MU_STORE_LLAMACPP] = "llama.cpp's cache: delete the file there",
        [MU_STORE_NONE] = "you: it is a file in no store",
    };
    struct mu_store_model *m = NULL;
    enum mu_status st;
    if (mu_store_name_parse(name_text, name_out)) {
        char *path = mu_manifest_path(root, "manifests", name_out);
        bool there = path && mu_dir_exists(path);
        mu_free(path);
        if (there) return MU_OK;
    }
    st = mu_store_find(name_text, &m, err);
    if (st == MU_ENOENT) /* not with how to get it */
        mu_fail(err, st, "there is no model '%.120s' in Muster's own store; 'muster list' shows what is", name_text);
    if (st != MU_OK) goto done;
    if (m->entry.store != MU_STORE_OWN)
        st = mu_fail(err, MU_EINVAL, "'%.100s' belongs to %s (%.200s); Muster removes from its own store only",
                     name_text, owner[m->entry.store], m->path);
    else if (!mu_store_name_parse(m->entry.name, name_out))
        st = mu_fail(err, MU_EINTERNAL, "'%.100s' is a name that Muster cannot have written", m->entry.name);
done:
    mu_store_model_free(m);
    return st;
}

static void remove_empty_parents(char *path, int levels)
{
    for (int i = 0; i < levels; i++) {
        char *slash = strrchr(path, '/');
        if (!slash) return;
        *slash = 0;
        if (rmdir(path) != 0) return;
    }
}

enum mu_status mu_own_remove(const char *name_text, uint64_t *freed_out, struct mu_err *err)
{
    struct mu_store_name name;
    struct mu_manifest m = {0};
    char *root = NULL, *path = NULL, *view = NULL;
    int lock = -1;
    uint64_t freed = 0;
    enum mu_status st;
    MU_TRY(st, mu_own_open(true, &root, &lock, err), done);
    MU_TRY(st, find_manifest(root, name_text, &name, err), done);
    path = mu_manifest_path(root, "manifests", &name);
    view = mu_manifest_path(root, "views", &name);
    if (!path || !view) {
        st = mu_fail(err, MU_ENOMEM, "no memory for a path");
        goto done;
    }
    MU_TRY(st, read_old(path, &m, err), done);
    if (unlink(path) != 0) {
        st = mu_fail(err, MU_EIO, "cannot remove %s: %s", path, strerror(errno));
        goto done;
    }
    trim_view(view, &(struct mu_manifest){0});
    remove_blobs(root, &m, &freed);
    remove_empty_parents(path, 3);
    remove_empty_parents(view, 3);
    *freed_out = freed;
done:
    mu_manifest_clear(&m);
    if (lock >= 0) close(lock);
    mu_free(root);
    mu_free(path);
    mu_free(view);
    return st;
}
