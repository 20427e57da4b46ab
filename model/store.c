/* Where stores are, the list of all models, and which of them a name means. */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "base/alloc.h"
#include "model/store_part.h"

const char *mu_store_kind_name(enum mu_store_kind kind)
{
    static const char *const names[] = {"muster", "ollama", "lmstudio", "jan", "huggingface", "llama.cpp", "file"};
    return names[kind];
}

/* ---- where stores are ---- */

struct place { /* $variable + rest, where the variable is set */
    const char *variable, *rest;
};

static bool is_set(struct place p)
{
    const char *v = getenv(p.variable);
    return v && *v;
}

/* The first one that is set; NULL: none is, or no memory. */
static char *first_place(const struct place *p, int n)
{
    for (int i = 0; i < n; i++)
        if (is_set(p[i])) return mu_asprintf("%s%s", getenv(p[i].variable), p[i].rest);
    return NULL;
}

enum { MAX_PLACES = 4 };

static const struct {
    enum mu_store_kind kind;
    struct place place[MAX_PLACES]; /* the first one that is set counts */
} roots[] = {
    {MU_STORE_OWN,
     {{"MUSTER_MODELS", ""}, {"XDG_DATA_HOME", "/muster/models"}, {"HOME", "/.local/share/muster/models"}}},
    {MU_STORE_OLLAMA, {{"OLLAMA_MODELS", ""}}},
    {MU_STORE_OLLAMA, {{"HOME", "/.ollama/models"}}},
    {MU_STORE_OLLAMA, {{"", "/usr/share/ollama/.ollama/models"}}}, /* of the service on Linux */
    {MU_STORE_LMSTUDIO, {{"HOME", "/.lmstudio-home-pointer"}}},    /* a file that names its home */
    {MU_STORE_LMSTUDIO, {{"HOME", "/.lmstudio"}}},
    {MU_STORE_LMSTUDIO, {{"HOME", "/.cache/lm-studio"}}}, /* of its older versions */
    {MU_STORE_JAN,
     {{"XDG_DATA_HOME", "/jan.ai.app/settings.json"}, {"HOME", "/.local/share/jan.ai.app/settings.json"}}},
    {MU_STORE_JAN, {{"XDG_CONFIG_HOME", "/Jan/settings.json"}, {"HOME", "/.config/Jan/settings.json"}}}, /* older */
    {MU_STORE_JAN, {{"XDG_DATA_HOME", "/Jan/data"}, {"HOME", "/.local/share/Jan/data"}}},
    {MU_STORE_HUB,
     {{"HF_HUB_CACHE", ""},
      {"HF_HOME", "/hub"},
      {"XDG_CACHE_HOME", "/huggingface/hub"},
      {"HOME", "/.cache/huggingface/hub"}}},
    {MU_STORE_LLAMACPP, {{"LLAMA_CACHE", ""}, {"XDG_CACHE_HOME", "/llama.cpp"}, {"HOME", "/.cache/llama.cpp"}}},
};

static int count_places(const struct place p[MAX_PLACES])
{
    int n = 0;
    while (n < MAX_PLACES && p[n].variable) n++;
    return n;
}

char *mu_store_own_path(void)
{
    return first_place(roots[0].place, MAX_PLACES);
}

static void scan_root(struct mu_store_builder *b, enum mu_store_kind kind, const char *root)
{
    if (access(root, R_OK) != 0 && errno == EACCES && !b->unreadable) b->unreadable = mu_strdup(root);
    switch (kind) {
    case MU_STORE_OWN:
    case MU_STORE_OLLAMA: mu_store_scan_ollama(b, kind, root); break;
    case MU_STORE_LMSTUDIO: mu_store_scan_lmstudio(b, root); break;
    case MU_STORE_JAN: mu_store_scan_jan(b, root); break;
    case MU_STORE_HUB: mu_store_scan_hub(b, root); break;
    case MU_STORE_LLAMACPP: mu_store_scan_llamacpp(b, root); break;
    default: break;
    }
}

static void scan_all(struct mu_store_builder *b)
{
    for (size_t i = 0; i < sizeof roots / sizeof *roots && !b->no_memory; i++) {
        const struct place *p = roots[i].place;
        int n = count_places(p);
        if (!*p->variable) { /* a fixed place */
            scan_root(b, roots[i].kind, p->rest);
            continue;
        }
        char *root = first_place(p, n);
        for (int k = 0; k < n && !root; k++) b->no_memory |= is_set(p[k]);
        if (root) scan_root(b, roots[i].kind, root);
        mu_free(root);
    }
}

enum mu_status mu_store_list(struct mu_store_list **list_out, struct mu_err *err)
{
    struct mu_store_builder b = {0};
    struct mu_store_list *list = mu_calloc(1, sizeof *list);
    b.no_memory = !list;
    if (list) scan_all(&b);
    if (list) *list = (struct mu_store_list){b.entry, b.n, b.unreadable};
    if (b.no_memory) {
        mu_store_list_free(list);
        return mu_fail(err, MU_ENOMEM, "no memory for the list of models");
    }
    *list_out = list;
    return MU_OK;
}

void mu_store_list_free(struct mu_store_list *list)
{
    if (!list) return;
    for (size_t i = 0; i < list->n; i++) mu_store_entry_clear(&list->entry[i]);
    mu_free(list->entry);
    mu_free(list->unreadable);
    mu_free(list);
}

/* ---- names ---- */

/* How a name may mean an entry, best first. */
enum match { EXACT, WITHOUT_TAG, EXACT_ANY_CASE, WITHOUT_TAG_ANY_CASE, N_MATCH };

static bool equal(const char *a, size_t a_len, const char *b, size_t b_len, bool any_case)
{
    return a_len == b_len && (any_case ? strncasecmp(a, b, a_len) : strncmp(a, b, a_len)) == 0;
}

static bool matches(const struct mu_store_entry *e, const char *name, enum match how)
{
    bool any_case = how >= EXACT_ANY_CASE, cut = how == WITHOUT_TAG || how == WITHOUT_TAG_ANY_CASE;
    size_t len = strlen(name);
    if (cut && mu_store_base_len(name) != len) return false; /* it has a tag */
    for (int i = -1; i < e->n_alias; i++) {
        const char *known = i < 0 ? e->name : e->alias[i];
        if (equal(known, cut ? mu_store_base_len(known) : strlen(known), name, len, any_case)) return true;
    }
    return false;
}

/* Appends ", 'text'" while there is room, else "…" once. */
static void append_name(char *buf, size_t size, const char *text)
{
    size_t len = strlen(buf);
    if (len + strlen(text) + 8 < size)
        snprintf(buf + len, size - len, "%s'%s'", len ? ", " : "", text);
    else if (len + 5 < size && (len < 3 || strcmp(buf + len - 3, "…") != 0))
        snprintf(buf + len, size - len, " …");
}

enum { MAX_WORD = 96 };

/* Levenshtein's distance without regard to case; words beyond MAX_WORD are cut. */
static int distance(const char *a, size_t a_len, const char *b, size_t b_len)
{
    int row[MAX_WORD + 1];
    if (a_len > MAX_WORD) a_len = MAX_WORD;
    if (b_len > MAX_WORD) b_len = MAX_WORD;
    for (size_t k = 0; k <= b_len; k++) row[k] = (int)k;
    for (size_t i = 1; i <= a_len; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t k = 1; k <= b_len; k++) {
            int best = diagonal + (tolower((unsigned char)a[i - 1]) != tolower((unsigned char)b[k - 1]));
            if (row[k] + 1 < best) best = row[k] + 1;
            if (row[k - 1] + 1 < best) best = row[k - 1] + 1;
            diagonal = row[k];
            row[k] = best;
        }
    }
    return row[b_len];
}

static bool is_near(const char *known, const char *name)
{
    size_t known_len = strlen(known), name_len = strlen(name), known_base = mu_store_base_len(known),
           name_base = mu_store_base_len(name);
    const char *slash = memrchr(known, '/', known_base);
    size_t skip = slash ? (size_t)(slash + 1 - known) : 0;
    int near = (int)name_base / 4 + 1;
    return (name_len >= 3 && strcasestr(known, name)) ||
           (known_base >= 3 && known_len < name_len && strcasestr(name, known)) ||
           distance(known, known_base, name, name_base) <= near ||
           distance(known, known_base < name_base ? known_base : name_base, name, name_base) <= near ||
           distance(known + skip, known_base - skip, name, name_base) <= near;
}

/* A model of our own that is not listed because its weights are gone, or its manifest makes no sense, says so. */
static bool is_broken(const struct mu_store_name *name, struct mu_err *err)
{
    struct mu_manifest m = {0};
    char *root = mu_store_own_path(), *manifest = root ? mu_manifest_path(root, "manifests", name) : NULL, *path = NULL;
    uint64_t bytes;
    bool broken = false;
    if (manifest && mu_dir_exists(manifest))
        broken = mu_manifest_read(manifest, &m, err) != MU_OK ||
                 mu_manifest_weights(root, name, &m, true, &path, &bytes, err) != MU_OK;
    mu_manifest_clear(&m);
    mu_free(path);
    mu_free(manifest);
    mu_free(root);
    return broken;
}

static enum mu_status unknown(const struct mu_store_list *list, const char *name, struct mu_err *err)
{
    char near[220] = "";
    struct mu_store_name parsed;
    int n = 0;
    if (mu_store_name_parse(name, &parsed) && is_broken(&parsed, err)) return err->code;
    for (size_t i = 0; i < list->n && n < 4; i++)
        if (is_near(list->entry[i].name, name)) append_name(near, sizeof near, list->entry[i].name), n++;
    bool looks_like_path = strchr("/.~", *name) || (strlen(name) > 5 && !strcasecmp(name + strlen(name) - 5, ".gguf"));
    if (looks_like_path && !n) {
        struct stat sb; /* a folder on the way may be one that is not ours to search, or a file */
        bool hidden = stat(name, &sb) != 0 && errno != ENOENT;
        return mu_fail(err, hidden ? MU_EIO : MU_ENOENT, "cannot open file '%.200s': %s", name,
                       hidden ? strerror(errno) : "No such file or directory; check the path");
    }
    if (n)
        return mu_fail(err, MU_ENOENT,
                       "there is no model '%.100s' here; near: %s ('muster list' shows all, 'muster pull' gets others)",
                       name, near);
    if (mu_store_name_parse(name, &parsed))
        return mu_fail(err, MU_ENOENT,
                       "there is no model and no file '%.120s' here; 'muster list' shows what is, 'muster pull %.120s' "
                       "may get it",
                       name, name);
    return mu_fail(err, MU_ENOENT, "there is no model and no file '%.120s' here; 'muster list' shows what is", name);
}

static enum mu_status choose(const struct mu_store_list *list, const char *name, struct mu_store_entry **entry_out,
                             struct mu_err *err)
{
    for (enum match how = EXACT; how < N_MATCH; how++) {
        char many[280] = "";
        size_t n = 0;
        struct mu_store_entry *found = NULL;
        for (size_t i = 0; i < list->n; i++) {
            struct mu_store_entry *e = &list->entry[i];
            if (!matches(e, name, how)) continue;
            if (!found) found = e;
            append_name(many, sizeof many, e->name);
            n++;
        }
        /* Exactly the same name in several stores is settled by their order. */
        if (n == 1 || (n && how == EXACT)) {
            *entry_out = found;
            return MU_OK;
        }
        if (n) return mu_fail(err, MU_EINVAL, "'%.80s' may mean %s: say which", name, many);
    }
    return unknown(list, name, err);
}

/* ---- finding ---- */

void mu_store_model_free(struct mu_store_model *m)
{
    if (!m) return;
    mu_store_entry_clear(&m->entry);
    for (int i = 0; i < m->n_adapter; i++) mu_free(m->adapter_path[i]);
    for (int i = 0; i < m->n_license; i++) mu_free(m->license[i]);
    mu_free(m->adapter_path);
    mu_free(m->license);
    mu_free(m->system);
    mu_free(m->template);
    json_decref(m->params);
    json_decref(m->messages);
    mu_free(m);
}

/* A file or pipe of that name, or a folder that holds a model; or something that is meant as a path. */
static bool is_path(const char *name)
{
    struct stat sb;
    if (stat(name, &sb) != 0) return false;
    if (!S_ISDIR(sb.st_mode) || strchr("/.", *name)) return true;
    char *config = mu_asprintf("%s/config.json", name);
    bool model = config && mu_dir_exists(config);
    mu_free(config);
    return model;
}

/* ROOT of ROOT/manifests/HOST/SPACE/MODEL/TAG. */
static char *root_of(const char *manifest)
{
    size_t len = strlen(manifest);
    for (int i = 0; i < 5; i++)
        while (len && manifest[--len] != '/') {}
    return mu_strndup(manifest, len);
}

static enum mu_status load(struct mu_store_model *m, struct mu_err *err)
{
    struct mu_manifest manifest = {0};
    enum mu_status st;
    char *root = root_of(m->entry.manifest);
    if (!root) return mu_fail(err, MU_ENOMEM, "no memory for a path");
    MU_TRY(st, mu_manifest_read(m->entry.manifest, &manifest, err), done);
    MU_TRY(st, mu_manifest_load(root, &manifest, m->entry.store == MU_STORE_OWN, m, err), done);
done:
    mu_manifest_clear(&manifest);
    mu_free(root);
    return st;
}

enum mu_status mu_store_find(const char *name, struct mu_store_model **model_out, struct mu_err *err)
{
    enum mu_status st = MU_OK;
    struct mu_store_list *list = NULL;
    struct mu_store_entry *entry;
    struct mu_store_model *m = mu_calloc(1, sizeof *m);
    if (!m) return mu_fail(err, MU_ENOMEM, "no memory for a model's entry");
    if (!*name) {
        st = mu_fail(err, MU_EINVAL, "a model's name is missing");
    } else if (is_path(name)) {
        m->entry = (struct mu_store_entry){.store = MU_STORE_NONE, .name = mu_strdup(name), .path = mu_strdup(name)};
        if (!m->entry.name || !m->entry.path) st = mu_fail(err, MU_ENOMEM, "no memory for a path");
    } else {
        MU_TRY(st, mu_store_list(&list, err), done);
        MU_TRY(st, choose(list, name, &entry, err), done);
        m->entry = *entry;
        *entry = (struct mu_store_entry){0};
        if (m->entry.manifest) st = load(m, err);
    }
    m->path = m->entry.path;
done:
    mu_store_list_free(list);
    if (st == MU_OK)
        *model_out = m;
    else
        mu_store_model_free(m);
    return st;
}
