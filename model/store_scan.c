/* The layouts of LM Studio, Jan, the Hugging Face hub's cache and llama.cpp's cache (Ollama's: store_ollama.c).
 *
 *   LM Studio   ROOT/PUBLISHER/MODEL/FILE.gguf; ROOT is HOME/models, or "downloadsFolder" of HOME/settings.json
 *   Jan         ROOT ("data_folder" of its settings.json)/llamacpp/models/ORG/REPO/model.yml, whose model_path is relative to ROOT
 *   hub cache   ROOT/models--ORG--NAME/{refs/main, snapshots/COMMIT/FILE -> ../../blobs/…}
 *   llama.cpp   ROOT/USER_REPO_FILE.gguf, ROOT/manifest=USER=REPO=TAG.json */
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/io.h"
#include "base/log.h"
#include "model/store_part.h"

enum {
    YML_MAX_BYTES = 256 << 10,
    REF_MAX_BYTES = 256,
    JSON_MAX_BYTES = 1 << 20,
    POINTER_MAX_BYTES = 4096,
    JAN_DEPTH = 3
};

/* ---- LM Studio ---- */

static void lmstudio_models(struct mu_store_builder *b, const char *root)
{
    struct mu_dir publishers, models, files;
    if (!mu_dir_read(root, true, &publishers, &b->no_memory)) return;
    for (size_t p = 0; p < publishers.n; p++) {
        char *folder = mu_asprintf("%s/%s", root, publishers.name[p]);
        if (!folder || !mu_dir_read(folder, false, &models, &b->no_memory)) {
            b->no_memory |= !folder;
            mu_free(folder);
            continue;
        }
        for (size_t m = 0; m < models.n; m++) {
            char *path = mu_asprintf("%s/%s", folder, models.name[m]);
            char *base = mu_asprintf("%s/%s", publishers.name[p], models.name[m]);
            b->no_memory |= !path || !base;
            if (path && base && mu_dir_read(path, false, &files, &b->no_memory)) {
                mu_store_add_files(b, MU_STORE_LMSTUDIO, root, base, MU_NAME_HF "/", path, &files);
                mu_store_add_folder(b, MU_STORE_LMSTUDIO, root, base, MU_NAME_HF "/", path, &files);
                mu_dir_free(&files);
            }
            mu_free(path);
            mu_free(base);
        }
        mu_dir_free(&models);
        mu_free(folder);
    }
    mu_dir_free(&publishers);
}

/* The absolute path that a program's settings have under a key: whoever keeps models on another disk has said so there.
 * NULL: none. */
static char *folder_of_settings(struct mu_store_builder *b, const char *path, const char *key)
{
    char *text = NULL, *folder = NULL;
    size_t len;
    if (mu_file_read(path, JSON_MAX_BYTES, &text, &len, NULL) != MU_OK) return NULL;
    json_t *doc = json_loadb(text, len, 0, NULL);
    const char *found = json_string_value(json_object_get(doc, key));
    if (found && found[0] == '/') {
        folder = mu_strdup(found);
        b->no_memory |= !folder;
    }
    json_decref(doc);
    mu_free(text);
    return folder;
}

static void lmstudio_home(struct mu_store_builder *b, const char *home)
{
    char *settings = mu_asprintf("%s/settings.json", home);
    char *root = settings ? folder_of_settings(b, settings, "downloadsFolder") : NULL;
    if (!root) root = mu_asprintf("%s/models", home);
    b->no_memory |= !settings || !root;
    if (root) lmstudio_models(b, root);
    mu_free(root);
    mu_free(settings);
}

void mu_store_scan_lmstudio(struct mu_store_builder *b, const char *home)
{
    struct stat sb;
    char *text = NULL;
    size_t len;
    if (stat(home, &sb) != 0) return;
    if (!S_ISREG(sb.st_mode)) {
        lmstudio_home(b, home);
        return;
    }
    if (mu_file_read(home, POINTER_MAX_BYTES, &text, &len, NULL) != MU_OK) return;
    text[strcspn(text, "\r\n")] = 0;
    if (text[0] == '/') lmstudio_home(b, text);
    mu_free(text);
}

/* ---- Jan ---- */

/* The value of a top-level "key: value" line of YAML, without quotes; NULL: none, or no memory. Jan writes nothing more
 * complicated for the keys that matter here. */
static char *yml_value(const char *text, const char *key)
{
    size_t n = strlen(key);
    for (const char *line = text; line; line = strchr(line, '\n'), line = line ? line + 1 : NULL) {
        if (strncmp(line, key, n) != 0 || line[n] != ':') continue;
        const char *v = line + n + 1;
        while (*v == ' ' || *v == '\t') v++;
        size_t len = strcspn(v, "\r\n");
        while (len && (v[len - 1] == ' ' || v[len - 1] == '\t')) len--;
        if (len >= 2 && (v[0] == '"' || v[0] == '\'') && v[len - 1] == v[0]) v++, len -= 2;
        return len ? mu_strndup(v, len) : NULL;
    }
    return NULL;
}

/* Whether a relative path climbs out of where it starts. */
static bool climbs(const char *path)
{
    for (const char *p = path; p; p = strchr(p, '/'), p = p ? p + 1 : NULL)
        if (!strncmp(p, "..", 2) && (p[2] == '/' || p[2] == 0)) return true;
    return false;
}

static void jan_model(struct mu_store_builder *b, const char *root, const char *id, const char *yml_path)
{
    char *text = NULL;
    size_t len;
    struct mu_err err = MU_ERR_INIT;
    struct stat sb;
    if (mu_file_read(yml_path, YML_MAX_BYTES, &text, &len, &err) != MU_OK) {
        mu_debug("store", "left out: %s", err.text);
        return;
    }
    char *model = yml_value(text, "model_path"), *embedding = yml_value(text, "embedding");
    bool fit =
        model && mu_text_ok(model) && (model[0] == '/' || !climbs(model)) && !(embedding && !strcmp(embedding, "true"));
    struct mu_store_entry e = {.store = MU_STORE_JAN};
    if (fit) {
        e.path = model[0] == '/' ? mu_strdup(model) : mu_asprintf("%s/%s", root, model);
        b->no_memory |= !e.path;
        /* An absolute path is the user's own import from wherever the file was. */
        bool there = e.path &&
                     (model[0] == '/' ? stat(e.path, &sb) == 0 && S_ISREG(sb.st_mode) : mu_dir_file(root, e.path, &sb));
        fit = there && mu_store_peek(e.path, e.quant, e.family) == MU_PEEK_MODEL;
    }
    if (fit) {
        e.name = mu_strdup(id);
        e.bytes = (uint64_t)sb.st_size;
        e.modified_s = (int64_t)sb.st_mtime;
        char *name = yml_value(text, "name");
        if (name && mu_text_ok(name) && strcmp(name, id) != 0)
            mu_entry_alias(b, &e, name);
        else
            mu_free(name);
        mu_store_add(b, &e);
    } else {
        mu_debug("store", "%s is left out: it names no model that is there and generates text", yml_path);
        mu_store_entry_clear(&e);
    }
    mu_free(model);
    mu_free(embedding);
    mu_free(text);
}

static void jan_folder(struct mu_store_builder *b, const char *root, const char *folder, const char *id, int depth)
{
    struct mu_dir d;
    if (!mu_dir_read(folder, depth == 0, &d, &b->no_memory)) return;
    for (size_t i = 0; i < d.n && !b->no_memory; i++) {
        char *path = mu_asprintf("%s/%s", folder, d.name[i]);
        char *child = mu_asprintf("%s%s%s", id, *id ? "/" : "", d.name[i]);
        struct stat sb;
        b->no_memory |= !path || !child;
        if (path && child && lstat(path, &sb) == 0) {
            if (S_ISREG(sb.st_mode) && *id && !strcmp(d.name[i], "model.yml")) jan_model(b, root, id, path);
            if (S_ISDIR(sb.st_mode) && depth < JAN_DEPTH) jan_folder(b, root, path, child, depth + 1);
        }
        mu_free(path);
        mu_free(child);
    }
    mu_dir_free(&d);
}

void mu_store_scan_jan(struct mu_store_builder *b, const char *root)
{
    struct stat sb;
    if (stat(root, &sb) != 0) return;
    char *elsewhere = S_ISREG(sb.st_mode) ? folder_of_settings(b, root, "data_folder") : NULL;
    if (elsewhere) root = elsewhere;
    char *folder = mu_asprintf("%s/llamacpp/models", root);
    b->no_memory |= !folder;
    if (folder) jan_folder(b, root, folder, "", 0);
    mu_free(folder);
    mu_free(elsewhere);
}

/* ---- the hub's cache ---- */

/* The commit of refs/main, else the last snapshot by name; NULL: none. */
static char *hub_commit(struct mu_store_builder *b, const char *repo)
{
    char *ref = mu_asprintf("%s/refs/main", repo), *snapshots = mu_asprintf("%s/snapshots", repo), *text = NULL,
         *commit = NULL;
    size_t len;
    struct mu_dir d = {0};
    b->no_memory |= !ref || !snapshots;
    if (ref && mu_file_read(ref, REF_MAX_BYTES, &text, &len, NULL) == MU_OK) {
        text[strcspn(text, " \r\n")] = 0;
        if (mu_store_part_ok(text, false)) commit = mu_strdup(text);
    } else if (snapshots && mu_dir_read(snapshots, false, &d, &b->no_memory) && d.n) {
        commit = mu_strdup(d.name[d.n - 1]);
    }
    mu_dir_free(&d);
    mu_free(text);
    mu_free(ref);
    mu_free(snapshots);
    return commit;
}

/* "models--org--name" → "org/name". */
static char *hub_name(const char *folder)
{
    char *name = mu_strdup(folder + strlen("models--"));
    char *gap = name ? strstr(name, "--") : NULL;
    if (gap) {
        *gap = '/';
        memmove(gap + 1, gap + 2, strlen(gap + 2) + 1);
    }
    return name;
}

/* GGUF files lie in the snapshot itself or, of some repositories, in a folder for each quantisation. */
static void hub_snapshot(struct mu_store_builder *b, const char *root, const char *base, const char *folder)
{
    struct mu_dir d, inner;
    if (!mu_dir_read(folder, false, &d, &b->no_memory)) return;
    mu_store_add_files(b, MU_STORE_HUB, root, base, MU_NAME_HF "/", folder, &d);
    mu_store_add_folder(b, MU_STORE_HUB, root, base, MU_NAME_HF "/", folder, &d);
    for (size_t i = 0; i < d.n; i++) {
        char *path = mu_asprintf("%s/%s", folder, d.name[i]), *name = mu_asprintf("%s:%s", base, d.name[i]);
        struct stat sb;
        b->no_memory |= !path || !name;
        if (path && name && lstat(path, &sb) == 0 && S_ISDIR(sb.st_mode) &&
            mu_dir_read(path, false, &inner, &b->no_memory)) {
            mu_store_add_files(b, MU_STORE_HUB, root, name, MU_NAME_HF "/", path, &inner);
            mu_dir_free(&inner);
        }
        mu_free(path);
        mu_free(name);
    }
    mu_dir_free(&d);
}

void mu_store_scan_hub(struct mu_store_builder *b, const char *root)
{
    struct mu_dir d;
    if (!mu_dir_read(root, true, &d, &b->no_memory)) return;
    for (size_t i = 0; i < d.n; i++) {
        if (strncmp(d.name[i], "models--", 8) != 0 || !d.name[i][8]) continue;
        char *repo = mu_asprintf("%s/%s", root, d.name[i]), *base = hub_name(d.name[i]);
        char *commit = repo ? hub_commit(b, repo) : NULL;
        char *snapshot = commit ? mu_asprintf("%s/snapshots/%s", repo, commit) : NULL;
        b->no_memory |= !repo || !base || (commit && !snapshot);
        if (snapshot && base) hub_snapshot(b, root, base, snapshot);
        mu_free(snapshot);
        mu_free(commit);
        mu_free(base);
        mu_free(repo);
    }
    mu_dir_free(&d);
}

/* ---- llama.cpp's cache ---- */

/* manifest=USER=REPO=TAG.json names a file of that repository: an alias of the entry whose path ends in it. */
static void llamacpp_manifest(struct mu_store_builder *b, const char *root, const char *file, size_t first)
{
    char name[512], *save, *path = mu_asprintf("%s/%s", root, file), *text = NULL;
    size_t len;
    snprintf(name, sizeof name, "%s", file + strlen("manifest="));
    char *dot = strrchr(name, '.');
    if (dot) *dot = 0;
    const char *user = strtok_r(name, "=", &save), *repo = strtok_r(NULL, "=", &save),
               *tag = strtok_r(NULL, "=", &save);
    b->no_memory |= !path;
    if (path && tag && mu_file_read(path, JSON_MAX_BYTES, &text, &len, NULL) == MU_OK) {
        json_t *doc = json_loadb(text, len, 0, NULL);
        const char *inner = json_string_value(json_object_get(json_object_get(doc, "ggufFile"), "rfilename"));
        char *want = inner ? mu_asprintf("%s/%s_%s_%s", root, user, repo, inner) : NULL;
        for (size_t i = first; i < b->n && want; i++)
            if (!strcmp(b->entry[i].path, want)) {
                mu_entry_alias(b, &b->entry[i], mu_asprintf("%s/%s:%s", user, repo, tag));
                mu_entry_alias(b, &b->entry[i], mu_asprintf(MU_NAME_HF "/%s/%s:%s", user, repo, tag));
            }
        mu_free(want);
        json_decref(doc);
    }
    mu_free(text);
    mu_free(path);
}

void mu_store_scan_llamacpp(struct mu_store_builder *b, const char *root)
{
    struct mu_dir d, one = {0};
    size_t first = b->n;
    if (!mu_dir_read(root, true, &d, &b->no_memory)) return;
    for (size_t i = 0; i < d.n; i++) { /* each file a model of its own, named as the file */
        int no, count;
        size_t stem;
        const char *dot = strrchr(d.name[i], '.');
        if (!dot || strcmp(dot, ".gguf") != 0) continue;
        if (!mu_store_split_of(d.name[i], &no, &count, &stem)) stem = (size_t)(dot - d.name[i]);
        char *base = mu_strndup(d.name[i], stem);
        b->no_memory |= !base;
        one = (struct mu_dir){&d.name[i], 1};
        if (base) mu_store_add_files(b, MU_STORE_LLAMACPP, root, base, NULL, root, &one);
        mu_free(base);
    }
    for (size_t i = 0; i < d.n; i++)
        if (!strncmp(d.name[i], "manifest=", 9)) llamacpp_manifest(b, root, d.name[i], first);
    mu_dir_free(&d);
}
