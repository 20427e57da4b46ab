/* The list of models while the readers of the stores fill it, and how files in a folder become names. */
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/alloc.h"
#include "base/log.h"
#include "model/store_part.h"

void mu_store_entry_clear(struct mu_store_entry *e)
{
    mu_free(e->name);
    for (int i = 0; i < e->n_alias; i++) mu_free(e->alias[i]);
    mu_free(e->alias);
    mu_free(e->path);
    mu_free(e->manifest);
    mu_free(e->digest);
    mu_free(e->id);
    *e = (struct mu_store_entry){0};
}

void mu_entry_alias(struct mu_store_builder *b, struct mu_store_entry *e, char *alias)
{
    char **more = alias ? mu_reallocarray(e->alias, (size_t)e->n_alias + 1, sizeof *more) : NULL;
    if (!more) {
        mu_free(alias);
        b->no_memory = true;
        return;
    }
    e->alias = more;
    more[e->n_alias++] = alias;
}

void mu_store_add(struct mu_store_builder *b, struct mu_store_entry *e)
{
    if (!e->name || !e->path) b->no_memory = true;
    if (b->no_memory) {
        mu_store_entry_clear(e);
        return;
    }
    for (size_t i = 0; i < b->n; i++) {
        if (strcmp(b->entry[i].name, e->name) != 0) continue;
        mu_debug("store", "%s is left out: '%s' is %s already", e->path, e->name, b->entry[i].path);
        mu_store_entry_clear(e);
        return;
    }
    if (b->n == b->cap) {
        size_t want = b->cap ? 2 * b->cap : 32;
        struct mu_store_entry *more = mu_reallocarray(b->entry, want, sizeof *more);
        if (!more) {
            b->no_memory = true;
            mu_store_entry_clear(e);
            return;
        }
        b->entry = more;
        b->cap = want;
    }
    b->entry[b->n++] = *e;
    *e = (struct mu_store_entry){0};
}

/* ---- GGUF files in a folder ---- */

struct candidate {
    const char *file;
    char quant[16];  /* by the file's name */
    char label[256]; /* the name without .gguf and -00001-of-0000N */
    char type[16], family[32];
    uint64_t bytes;
    int64_t modified_s;
};

/* Sizes of a split model's parts; false where one is missing. */
static bool add_parts(const char *root, const char *folder, const char *file, size_t stem, int count,
                      struct candidate *c)
{
    for (int i = 2; i <= count; i++) {
        struct stat sb;
        char *path = mu_asprintf("%s/%.*s-%05d-of-%05d.gguf", folder, (int)stem, file, i, count);
        bool there = path && mu_dir_file(root, path, &sb);
        mu_free(path);
        if (!there) {
            mu_debug("store", "%s/%s is left out: part %d of %d is not there", folder, file, i, count);
            return false;
        }
        c->bytes += (uint64_t)sb.st_size;
    }
    return true;
}

/* Whether the file is a model that one may run; fills c. */
static bool examine(const char *root, const char *folder, const char *file, struct candidate *c)
{
    const char *dot = strrchr(file, '.');
    int no = 1, count = 1;
    size_t stem = 0;
    struct stat sb;
    if (!dot || strcasecmp(dot, ".gguf") != 0 || strcasestr(file, "mmproj")) return false;
    bool split = mu_store_split_of(file, &no, &count, &stem);
    if (split && no != 1) return false;
    *c = (struct candidate){.file = file};
    char *path = mu_asprintf("%s/%s", folder, file);
    bool ok = path && mu_dir_file(root, path, &sb) && mu_store_peek(path, c->type, c->family) == MU_PEEK_MODEL;
    if (path && !ok) mu_debug("store", "%s is left out: no model that generates text", path);
    mu_free(path);
    if (!ok) return false;
    c->bytes = (uint64_t)sb.st_size;
    c->modified_s = (int64_t)sb.st_mtime;
    if (split && !add_parts(root, folder, file, stem, count, c)) return false;
    snprintf(c->label, sizeof c->label, "%.*s", split ? (int)stem : (int)(dot - file), file);
    mu_store_quant_of(c->label, c->quant);
    return true;
}

static void add_alias(struct mu_store_builder *b, struct mu_store_entry *e, const char *prefix, const char *base,
                      const char *colon, const char *tag)
{
    mu_entry_alias(b, e, mu_asprintf("%s%s%s", base, colon, tag));
    if (prefix) mu_entry_alias(b, e, mu_asprintf("%s%s%s%s", prefix, base, colon, tag));
}

void mu_store_add_files(struct mu_store_builder *b, enum mu_store_kind kind, const char *root, const char *base,
                        const char *prefix, const char *folder, const struct mu_dir *files)
{
    struct candidate *c = mu_calloc(files->n ? files->n : 1, sizeof *c);
    size_t n = 0;
    if (!c) {
        b->no_memory = true;
        return;
    }
    for (size_t i = 0; i < files->n; i++) n += examine(root, folder, files->name[i], &c[n]);
    for (size_t i = 0; i < n; i++) {
        bool unique = c[i].quant[0] != 0;
        for (size_t k = 0; k < n && unique; k++) unique = k == i || strcmp(c[k].quant, c[i].quant) != 0;
        const char *tag = unique ? c[i].quant : c[i].label;
        struct mu_store_entry e = {.store = kind,
                                   .name = n == 1 ? mu_strdup(base) : mu_asprintf("%s:%s", base, tag),
                                   .path = mu_asprintf("%s/%s", folder, c[i].file),
                                   .bytes = c[i].bytes,
                                   .modified_s = c[i].modified_s};
        snprintf(e.quant, sizeof e.quant, "%s", c[i].type[0] ? c[i].type : c[i].quant);
        snprintf(e.family, sizeof e.family, "%s", c[i].family);
        if (prefix) mu_entry_alias(b, &e, mu_asprintf("%s%s%s%s", prefix, base, n == 1 ? "" : ":", n == 1 ? "" : tag));
        if (n == 1) add_alias(b, &e, prefix, base, ":", tag);
        if (strcmp(tag, c[i].label) != 0) add_alias(b, &e, prefix, base, ":", c[i].label);
        add_alias(b, &e, prefix, base, "/", c[i].file);
        mu_store_add(b, &e);
    }
    mu_free(c);
}

/* The numbered files of a folder, by what they say is the number of all. */
struct parts {
    struct {
        int count, n;
    } set[8]; /* one; more where another version's files were left */
    int n_set;
};

static void parts_count(struct parts *p, const char *name)
{
    int no, count, end = 0, i = 0;
    if (sscanf(name, "model-%5d-of-%5d.safetensors%n", &no, &count, &end) != 2 || !end || name[end]) return;
    while (i < p->n_set && p->set[i].count != count) i++;
    if (i == (int)(sizeof p->set / sizeof *p->set)) return;
    if (i == p->n_set) p->set[p->n_set++].count = count;
    p->set[i].n++;
}

/* Some repositories count from 0, and then have a file more. */
static bool parts_missing(const struct parts *p)
{
    for (int i = 0; i < p->n_set; i++)
        if (p->set[i].n >= p->set[i].count) return false;
    return p->n_set > 0;
}

void mu_store_add_folder(struct mu_store_builder *b, enum mu_store_kind kind, const char *root, const char *base,
                         const char *prefix, const char *folder, const struct mu_dir *files)
{
    struct mu_store_entry e = {.store = kind};
    struct parts parts = {0};
    bool config = false, weights = false, whole = false;
    for (size_t i = 0; i < files->n; i++) {
        const char *name = files->name[i], *dot = strrchr(name, '.');
        bool is_config = !strcmp(name, "config.json"), is_weights = dot && !strcmp(dot, ".safetensors");
        if ((!is_config && !is_weights) || !strcmp(name, "adapter_model.safetensors")) continue;
        struct stat sb;
        char *path = mu_asprintf("%s/%s", folder, name);
        bool there = path && mu_dir_file(root, path, &sb);
        mu_free(path);
        if (!there) continue;
        config |= is_config;
        weights |= is_weights;
        whole |= !strcmp(name, "model.safetensors");
        parts_count(&parts, name);
        if (is_weights) e.bytes += (uint64_t)sb.st_size;
        if ((int64_t)sb.st_mtime > e.modified_s) e.modified_s = (int64_t)sb.st_mtime;
    }
    if (!whole && parts_missing(&parts)) {
        mu_debug("store", "%s is left out: parts of it are not there", folder);
        return;
    }
    if (!config || !weights || mu_store_peek_folder(folder, e.quant, e.family) != MU_PEEK_MODEL) return;
    e.name = mu_strdup(base);
    e.path = mu_strdup(folder);
    if (prefix) mu_entry_alias(b, &e, mu_asprintf("%s%s", prefix, base));
    mu_store_add(b, &e);
}
