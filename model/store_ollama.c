/* Ollama's store and, in the same layout, Muster's own: every tag under manifests/ that has its weights. */
#include <string.h>

#include "base/alloc.h"
#include "base/io.h"
#include "base/log.h"
#include "model/store_part.h"

static void add_aliases(struct mu_store_builder *b, struct mu_store_entry *e, const struct mu_store_name *n)
{
    bool latest = !strcmp(n->tag, MU_NAME_TAG), space = !strcmp(n->space, MU_NAME_SPACE),
         host = !strcmp(n->host, MU_NAME_HOST), hf = !strcmp(n->host, MU_NAME_HF);
    mu_entry_alias(b, e, mu_asprintf("%s/%s/%s:%s", n->host, n->space, n->model, n->tag));
    if (host) mu_entry_alias(b, e, mu_asprintf("%s/%s:%s", n->space, n->model, n->tag));
    if (latest) mu_entry_alias(b, e, mu_strndup(e->name, mu_store_base_len(e->name)));
    if (latest && host && space) mu_entry_alias(b, e, mu_asprintf(MU_NAME_SPACE "/%s", n->model));
    if (hf) mu_entry_alias(b, e, mu_asprintf("%s/%s:%s", n->space, n->model, n->tag));
    if (hf) mu_entry_alias(b, e, mu_asprintf("huggingface.co/%s/%s:%s", n->space, n->model, n->tag));
}

static enum mu_status read_tag(const char *root, const struct mu_store_name *n, bool own, struct mu_store_entry *e,
                               struct mu_err *err)
{
    char *text = NULL, shown[MU_NAME_TEXT], hex[MU_DIGEST_TEXT];
    size_t len;
    struct mu_manifest m = {0};
    struct stat sb;
    enum mu_status st;
    MU_TRY(st, mu_file_read(e->manifest, MU_MANIFEST_MAX_BYTES, &text, &len, err), done);
    MU_TRY(st, mu_manifest_parse(text, len, e->manifest, &m, err), done);
    MU_TRY(st, mu_manifest_weights(root, n, &m, own, &e->path, &e->bytes, err), done);
    enum mu_peek peek = stat(e->path, &sb) == 0 && S_ISDIR(sb.st_mode)
                            ? mu_store_peek_folder(e->path, e->quant, e->family)
                            : mu_store_peek(e->path, e->quant, e->family);
    if (peek != MU_PEEK_MODEL) {
        st = mu_fail(err, MU_EUNSUPPORTED, "%s: no model that generates text", e->manifest);
        goto done;
    }
    if (!e->quant[0]) mu_store_quant_of(n->tag, e->quant);
    const struct mu_layer *weights = mu_manifest_find(&m, "model", false);
    if (weights) e->digest = mu_strdup(weights->digest);
    if (mu_sha256_hex(text, len, hex)) e->id = mu_strdup(hex);
    if (stat(e->manifest, &sb) == 0) e->modified_s = (int64_t)sb.st_mtime;
    mu_store_name_format(n, shown);
    e->name = mu_strdup(shown);
    if (!e->name) st = mu_fail(err, MU_ENOMEM, "no memory for a model's name");
done:
    mu_manifest_clear(&m);
    mu_free(text);
    return st;
}

static void add_tag(struct mu_store_builder *b, enum mu_store_kind kind, const char *root,
                    const struct mu_store_name *n)
{
    struct mu_store_entry e = {.store = kind, .manifest = mu_manifest_path(root, "manifests", n)};
    struct mu_err err = MU_ERR_INIT;
    struct stat sb;
    if (!e.manifest) {
        b->no_memory = true;
        return;
    }
    if (lstat(e.manifest, &sb) != 0 || !S_ISREG(sb.st_mode)) {
        mu_store_entry_clear(&e);
        return;
    }
    if (read_tag(root, n, kind == MU_STORE_OWN, &e, &err) != MU_OK) {
        mu_debug("store", "left out: %s", err.text);
        b->no_memory |= err.code == MU_ENOMEM;
        mu_store_entry_clear(&e);
        return;
    }
    add_aliases(b, &e, n);
    mu_store_add(b, &e);
}

/* One level of HOST/SPACE/MODEL/TAG; what is no name's part is no model. */
static void scan_level(struct mu_store_builder *b, enum mu_store_kind kind, const char *root, const char *folder,
                       struct mu_store_name *n, int level)
{
    char *const part[] = {n->host, n->space, n->model, n->tag};
    struct mu_dir d;
    if (!mu_dir_read(folder, level == 0, &d, &b->no_memory)) return;
    for (size_t i = 0; i < d.n && !b->no_memory; i++) {
        if (!mu_store_part_ok(d.name[i], level == 0)) continue;
        strcpy(part[level], d.name[i]);
        if (level == 3) {
            add_tag(b, kind, root, n);
            continue;
        }
        char *child = mu_asprintf("%s/%s", folder, d.name[i]);
        struct stat sb;
        b->no_memory |= !child;
        if (child && lstat(child, &sb) == 0 && S_ISDIR(sb.st_mode)) scan_level(b, kind, root, child, n, level + 1);
        mu_free(child);
    }
    mu_dir_free(&d);
}

void mu_store_scan_ollama(struct mu_store_builder *b, enum mu_store_kind kind, const char *root)
{
    struct mu_store_name n = {0};
    char *folder = mu_asprintf("%s/manifests", root);
    b->no_memory |= !folder;
    if (folder) scan_level(b, kind, root, folder, &n, 0);
    mu_free(folder);
}
