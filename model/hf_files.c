/* Which files of a Hugging Face folder hold its weights: those of model.safetensors.index.json (but of one left over from
 * an earlier save, whose files are gone), else model.safetensors, else model-00001-of-000NN.safetensors and its fellows,
 * else the only .safetensors file that there is. Files that a program would have to be run for (pickles) are never
 * opened. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/alloc.h"
#include "model/hf.h"
#include "model/hf_folder.h"

enum { MAX_FILES = 10000 };

#define PICKLE_ADVICE                                                                                         \
    "which can run any code when it is read, so Muster never does; get the model's .safetensors files (most " \
    "repositories have them), or convert it where you trust it: transformers' save_pretrained(…, "          \
    "safe_serialization=True), or a GGUF file"

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);
    return n >= m && strcmp(s + n - m, end) == 0;
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static bool is_pickle(const char *name)
{
    return ends_with(name, ".pt") || ends_with(name, ".pth") || ends_with(name, ".ckpt") || ends_with(name, ".pkl") ||
           (strncmp(name, "pytorch_model", 13) == 0 && ends_with(name, ".bin"));
}

static bool is_dir(const char *path)
{
    struct stat sb;
    return stat(path, &sb) == 0 && S_ISDIR(sb.st_mode);
}

bool mu_hf_is_folder(const char *path)
{
    const char *name = base_name(path);
    return is_dir(path) || is_pickle(name) || strcmp(name, "config.json") == 0 || ends_with(name, ".safetensors") ||
           ends_with(name, ".safetensors.index.json");
}

enum mu_status mu_hf_folder(const char *path, char **folder_out, struct mu_err *err)
{
    struct stat sb;
    const char *name = base_name(path);
    if (stat(path, &sb) != 0)
        return mu_fail(err, errno == ENOENT || errno == ENOTDIR ? MU_ENOENT : MU_EIO,
                       "cannot open '%.200s': %s; check the path", path, strerror(errno));
    if (S_ISDIR(sb.st_mode)) {
        size_t len = strlen(path);
        while (len > 1 && path[len - 1] == '/') len--;
        *folder_out = mu_strndup(path, len);
    } else if (is_pickle(name)) {
        return mu_fail(err, MU_EUNSUPPORTED, "'%.160s' is a pickle (PyTorch), " PICKLE_ADVICE, path);
    } else {
        *folder_out = name == path ? mu_strdup(".") : mu_strndup(path, name - path > 1 ? (size_t)(name - path) - 1 : 1);
    }
    return *folder_out ? MU_OK : mu_fail(err, MU_ENOMEM, "no memory to open '%.100s'", path);
}

static enum mu_status add_file(struct mu_hf_files *files, const char *name, struct mu_err *err)
{
    if (files->n == MAX_FILES) return mu_fail(err, MU_ELIMIT, "expected at most %d .safetensors files", MAX_FILES);
    char **names = mu_reallocarray(files->name, (size_t)files->n + 1, sizeof *names);
    if (names) files->name = names;
    char *copy = names ? mu_strdup(name) : NULL;
    if (!copy) return mu_fail(err, MU_ENOMEM, "no memory for the names of files");
    files->name[files->n++] = copy;
    return MU_OK;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Sorted, each once. */
static void sort_files(struct mu_hf_files *files)
{
    int n = 0;
    if (files->n) qsort(files->name, (size_t)files->n, sizeof *files->name, compare_names);
    for (int i = 0; i < files->n; i++) {
        if (n && strcmp(files->name[n - 1], files->name[i]) == 0)
            mu_free(files->name[i]);
        else
            files->name[n++] = files->name[i];
    }
    files->n = n;
}

/* The files of an index's "weight_map". */
static enum mu_status add_indexed(struct mu_hf_files *files, const char *path, struct mu_err *err)
{
    json_t *map, *v;
    const char *tensor, *last = NULL;
    enum mu_status st;
    MU_TRY(st, mu_json_read(path, &files->index, err), fail);
    map = json_object_get(files->index, "weight_map");
    if (json_object_size(map) == 0)
        return mu_fail(err, MU_EFORMAT, "file '%.160s': expected an object \"weight_map\" of tensors and their files",
                       path);
    json_object_foreach(map, tensor, v)
    {
        const char *name = json_string_value(v);
        char shown[80];
        if (!name || strchr(name, '/') || !ends_with(name, ".safetensors"))
            return mu_fail(err, MU_EFORMAT,
                           "file '%.160s': tensor '%s': expected the name of a .safetensors file in this folder", path,
                           mu_str_show((struct mu_str){tensor, strlen(tensor)}, shown, sizeof shown));
        if (last && strcmp(last, name) == 0) continue; /* most neighbours lie in one file */
        bool known = false;
        for (int i = 0; i < files->n && !known; i++) known = strcmp(files->name[i], name) == 0;
        if (!known) MU_TRY(st, add_file(files, name, err), fail);
        last = name;
    }
fail:
    return st;
}

static enum mu_status look_for(const char *folder, const char *name, bool *there_out, struct mu_err *err)
{
    struct stat sb;
    char *path = mu_asprintf("%s/%s", folder, name);
    if (!path) return mu_fail(err, MU_ENOMEM, "no memory to open '%.100s'", name);
    *there_out = stat(path, &sb) == 0;
    mu_free(path);
    return MU_OK;
}

/* The transformers library, saving where another model was, removes that one's parts and leaves their index. */
static enum mu_status drop_left_over(const char *folder, struct mu_hf_files *files, struct mu_err *err)
{
    bool there = true;
    enum mu_status st = MU_OK;
    for (int i = 0; i < files->n && there && st == MU_OK; i++) st = look_for(folder, files->name[i], &there, err);
    if (st != MU_OK || there) return st;
    MU_TRY(st, look_for(folder, "model.safetensors", &there, err), fail);
    if (!there) return MU_OK; /* whoever opens the missing one says so */
    mu_hf_files_free(files);
    st = add_file(files, "model.safetensors", err);
fail:
    return st;
}

/* What a folder without an index holds. */
struct listing {
    struct mu_hf_files files; /* .safetensors */
    char other[256];          /* a .gguf, else a pickle; "" where there is none */
    bool single, numbered;    /* model.safetensors; model-*-of-* */
};

static enum mu_status list_folder(const char *folder, struct listing *l, struct mu_err *err)
{
    enum mu_status st = MU_OK;
    const struct dirent *e;
    DIR *d = opendir(folder);
    if (!d) return mu_fail(err, MU_EIO, "cannot list folder '%.200s': %s", folder, strerror(errno));
    while (st == MU_OK && (e = readdir(d))) {
        const char *name = e->d_name;
        if (ends_with(name, ".safetensors")) {
            l->single |= strcmp(name, "model.safetensors") == 0;
            l->numbered |= strncmp(name, "model-", 6) == 0 && strstr(name, "-of-");
            st = add_file(&l->files, name, err);
        }
        if (ends_with(name, ".gguf") || (is_pickle(name) && !l->other[0]))
            snprintf(l->other, sizeof l->other, "%s", name);
    }
    closedir(d);
    sort_files(&l->files);
    return st;
}

static enum mu_status nothing_found(const char *folder, const struct listing *l, struct mu_err *err)
{
    if (ends_with(l->other, ".gguf"))
        return mu_fail(err, MU_EINVAL, "folder '%.160s' has no .safetensors files; name the GGUF file: %.160s/%.80s",
                       folder, folder, l->other);
    if (l->other[0])
        return mu_fail(err, MU_EUNSUPPORTED,
                       "folder '%.160s' has no weights but '%.60s', a pickle (PyTorch), " PICKLE_ADVICE, folder,
                       l->other);
    return mu_fail(err, MU_EINVAL,
                   "'%.160s' is a folder without .safetensors files; expected a GGUF file or a Hugging Face folder",
                   folder);
}

/* Keeps the numbered files and checks that all are there. */
static enum mu_status keep_numbered(const char *folder, struct mu_hf_files *files, struct mu_err *err)
{
    int n = 0, count = 0;
    for (int i = 0; i < files->n; i++) {
        char *name = files->name[i];
        int no, of, end = 0;
        if (sscanf(name, "model-%5d-of-%5d.safetensors%n", &no, &of, &end) != 2 || !end || name[end]) continue;
        if (!count) count = of;
        if (no != n + 1 || of != count) continue;
        files->name[i] = files->name[n];
        files->name[n++] = name;
    }
    for (int i = n; i < files->n; i++) mu_free(files->name[i]);
    files->n = n;
    if (n > 0 && n == count) return MU_OK;
    return mu_fail(err, MU_ENOENT,
                   "folder '%.160s': expected file %d of %d (model-%05d-of-%05d.safetensors), found none", folder,
                   n + 1, count, n + 1, count);
}

enum mu_status mu_hf_files_find(const char *folder, struct mu_hf_files *files, struct mu_err *err)
{
    struct stat sb;
    struct listing l = {0};
    enum mu_status st = MU_OK;
    *files = (struct mu_hf_files){0};
    char *index = mu_asprintf("%s/model.safetensors.index.json", folder);
    if (!index) return mu_fail(err, MU_ENOMEM, "no memory to open '%.100s'", folder);
    if (stat(index, &sb) == 0) {
        st = add_indexed(files, index, err);
        mu_free(index);
        sort_files(files);
        return st == MU_OK ? drop_left_over(folder, files, err) : st;
    }
    mu_free(index);
    MU_TRY(st, list_folder(folder, &l, err), fail);
    if (l.files.n == 0) {
        st = nothing_found(folder, &l, err);
    } else if (l.single) {
        st = add_file(files, "model.safetensors", err);
    } else if (l.numbered) {
        *files = l.files;
        l.files = (struct mu_hf_files){0};
        st = keep_numbered(folder, files, err);
    } else if (l.files.n == 1) {
        st = add_file(files, l.files.name[0], err);
    } else {
        st = mu_fail(
            err, MU_EINVAL,
            "folder '%.160s' has %d .safetensors files and no model.safetensors.index.json that says which belong "
            "together",
            folder, l.files.n);
    }
fail:
    mu_hf_files_free(&l.files);
    return st;
}

void mu_hf_files_free(struct mu_hf_files *files)
{
    for (int i = 0; i < files->n; i++) mu_free(files->name[i]);
    mu_free(files->name);
    json_decref(files->index);
    *files = (struct mu_hf_files){0};
}
