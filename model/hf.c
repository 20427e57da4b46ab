/* A Hugging Face folder as a struct mu_gguf.
 *
 *   part 0      a GGUF file written to memory: the keys, and all small tensors (norms, biases, routers, rotation
 *               factors) as F32, as the reference converter makes them
 *   part 1 …    the .safetensors files, mapped; matrices are where they lie there
 *
 * So the metadata is of one kind, and its reader checks it like any file's. Where GGUF wants another order of rows the
 * tensor names the places of its rows (struct mu_gguf_tensor, runs) and nothing is copied:
 *
 *   Llama's q and k       folders have the halves of a head's rotary pairs apart, GGUF has pairs: row 2i + j of a head
 *                         is row j · d_head/2 + i there. Rows, not another kind of rotation: the sum over a head's
 *                         dimensions then runs in the same order, and the logits are the GGUF's bit for bit
 *   Falcon's q, k and v   folders have a group's queries, key and value together, GGUF all queries, keys, values
 *   experts               folders have a tensor an expert, or gate and up of all experts in one; GGUF a stack of each
 *
 * MXFP4 has its blocks in one tensor and their scales in another; rows are put together on their way (gguf.h, apart).
 *
 * Every tensor of the folder finds its place in the family's table or is known to mean nothing; else the model is
 * refused. */
#include "model/hf.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/alloc.h"
#include "base/arena.h"
#include "base/log.h"
#include "model/arch.h"
#include "model/hf_folder.h"
#include "model/hf_tokenizer.h"

enum { NAME_BYTES = 1100 };

struct hf {
    struct mu_gguf *g;
    char *folder;
    struct mu_hf_files files;
    struct mu_hf_config c;
    struct mu_st_table *table;           /* [files.n], of part 1 + i */
    const struct mu_st_tensor **by_name; /* of all files */
    size_t n_tensor;
    int n_end, n_row, n_layer_place; /* rows of the family's tables; places of one layer, an expert's being one each */
    const struct mu_st_tensor **place; /* ends, then layer after layer; NULL: not found */
    size_t n_place;
    int n_ignored; /* tensors of what is not the language model */
    size_t bare;   /* how long the beginning of names is that is left out: saved without a head; 0: nothing is */
    struct mu_err *err;
};

/* A found tensor on its way: `n_copy` experts follow each other from `at`. */
struct item {
    const struct mu_hf_name *name;
    const struct mu_st_tensor *const *at;
    int layer, n_copy; /* layer -1: outside of them */
};

static enum mu_status tensor_fail(const struct hf *h, const struct mu_st_tensor *t, enum mu_status code,
                                  const char *what)
{
    char shown[MU_GGUF_NAME_SHOWN];
    return MU_PART_FAIL(&h->g->parts[t->part], h->err, code, t->offset, "tensor '%s': %s",
                        mu_str_show(t->name, shown, sizeof shown), what);
}

/* ---- files ---- */

static int compare_tensors(const void *a, const void *b)
{
    return mu_str_compare((*(const struct mu_st_tensor *const *)a)->name,
                          (*(const struct mu_st_tensor *const *)b)->name);
}

static const struct mu_st_tensor *find(const struct hf *h, const char *name)
{
    struct mu_st_tensor probe = {.name = {name, strlen(name)}};
    const struct mu_st_tensor *p = &probe, **hit = NULL;
    if (h->n_tensor) hit = bsearch(&p, h->by_name, h->n_tensor, sizeof *h->by_name, compare_tensors);
    return hit ? *hit : NULL;
}

static enum mu_status map_files(struct hf *h)
{
    struct mu_gguf *g = h->g;
    enum mu_status st = MU_OK;
    struct mu_gguf_part *parts = mu_reallocarray(g->parts, (size_t)h->files.n + 1, sizeof *parts);
    if (parts) g->parts = parts;
    h->table = mu_calloc((size_t)h->files.n + 1, sizeof *h->table);
    if (!parts || !h->table) return mu_fail(h->err, MU_ENOMEM, "no memory for %d files", h->files.n);
    for (int i = 0; i < h->files.n; i++) {
        char *path = mu_asprintf("%s/%s", h->folder, h->files.name[i]);
        if (!path) return mu_fail(h->err, MU_ENOMEM, "no memory to open '%.100s'", h->files.name[i]);
        memset(&parts[1 + i], 0, sizeof *parts);
        g->n_part++;
        st = mu_gguf_part_map(path, &parts[1 + i], h->err);
        mu_free(path);
        if (st == MU_ENOENT && h->files.index)
            mu_err_wrap(h->err, "model.safetensors.index.json names a file that is not in the folder");
        MU_TRY(st, st, fail);
        MU_TRY(st, mu_st_table_read(&parts[1 + i], &h->table[i], h->err), fail);
        for (size_t k = 0; k < h->table[i].n_tensor; k++) h->table[i].tensor[k].part = 1 + i;
        h->n_tensor += h->table[i].n_tensor;
    }
fail:
    return st;
}

/* Every name once; every name of the index in the file that it says. */
static enum mu_status index_tensors(struct hf *h)
{
    size_t n = 0;
    const char *name;
    json_t *file;
    h->by_name = mu_calloc(h->n_tensor + 1, sizeof *h->by_name);
    if (!h->by_name) return mu_fail(h->err, MU_ENOMEM, "no memory for a list of %zu tensors", h->n_tensor);
    for (int i = 0; i < h->files.n; i++)
        for (size_t k = 0; k < h->table[i].n_tensor; k++) h->by_name[n++] = &h->table[i].tensor[k];
    qsort(h->by_name, n, sizeof *h->by_name, compare_tensors);
    for (size_t i = 1; i < n; i++)
        if (compare_tensors(&h->by_name[i - 1], &h->by_name[i]) == 0)
            return tensor_fail(h, h->by_name[i], MU_EFORMAT,
                               "expected every tensor once, found it in another file, too");
    json_object_foreach(json_object_get(h->files.index, "weight_map"), name, file)
    {
        const struct mu_st_tensor *t = find(h, name);
        char shown[80], shown2[60];
        const char *in = json_string_value(file);
        if (!t || strcmp(h->files.name[t->part - 1], in) != 0)
            return mu_fail(h->err, MU_EFORMAT,
                           "folder '%.160s': model.safetensors.index.json says that tensor '%s' is in '%s', "
                           "but it is not there: download the folder again",
                           h->folder, mu_str_show((struct mu_str){name, strlen(name)}, shown, sizeof shown),
                           mu_str_show((struct mu_str){in, strlen(in)}, shown2, sizeof shown2));
    }
    return MU_OK;
}

/* ---- which tensor is which ---- */

/* What the language model's tensors are called in a multimodal folder, as they are in one of its own. false: it belongs
 * to something else. */
static bool plain_name(const struct hf *h, const struct mu_st_tensor *t, char name[NAME_BYTES])
{
    static const char *const others[] = {"vision_tower.", "multi_modal_projector.", "model.vision_tower.",
                                         "model.multi_modal_projector."};
    static const char inner[] = "language_model.", outer[] = "model.language_model.";
    const char *from = t->name.p;
    if (h->bare && strncmp(from, "lm_head.", 8) != 0) {
        memcpy(name, h->c.family->layer_prefix, h->bare);
        memcpy(name + h->bare, from, t->name.len + 1);
        return true;
    }
    memcpy(name, from, t->name.len + 1);
    if (h->c.text == h->c.root) return true;
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (strncmp(from, others[i], strlen(others[i])) == 0) return false;
    if (strncmp(from, inner, sizeof inner - 1) == 0) {
        from += sizeof inner - 1;
        memmove(name, from, strlen(from) + 1);
    } else if (strncmp(from, outer, sizeof outer - 1) == 0) { /* "model." stays */
        from += sizeof outer - 1;
        memcpy(name + 6, from, strlen(from) + 1);
    }
    return true;
}

/* A decimal number below `limit`, and what follows it; NULL: there is none. */
static const char *number(const char *s, int limit, int *out)
{
    int n = 0, digits = 0;
    for (; s[digits] >= '0' && s[digits] <= '9' && digits < 7; digits++) n = n * 10 + (s[digits] - '0');
    if (digits == 0 || (s[0] == '0' && digits > 1) || n >= limit) return NULL;
    *out = n;
    return s + digits;
}

static bool matches(const struct hf *h, const char *pattern, const char *name, int *expert)
{
    *expert = 0;
    for (; *pattern; pattern++) {
        if (*pattern != '*') {
            if (*name++ != *pattern) return false;
        } else if (!(name = number(name, h->c.n_expert, expert))) {
            return false;
        }
    }
    return *name == 0;
}

static int copies(const struct hf *h, const struct mu_hf_name *n)
{
    return n->kind == MU_HF_EXPERT ? h->c.n_expert : 1;
}

/* Tables that old versions of the library wrote and that follow from config.json. */
static bool is_harmless(const struct hf *h, const char *name)
{
    static const char table[] = "rotary_emb.inv_freq";
    size_t len = strlen(name), n = sizeof table - 1;
    return (len >= n && strcmp(name + len - n, table) == 0) || (h->c.tied && strcmp(name, "lm_head.weight") == 0);
}

/* The place of a tensor, or -1. */
static long place_of(const struct hf *h, const char *name)
{
    const struct mu_hf_family *f = h->c.family;
    const char *rest = name;
    size_t prefix = strlen(f->layer_prefix);
    int layer, expert;
    for (int i = 0; i < h->n_end; i++)
        if (strcmp(f->ends[i].hf, name) == 0) return i;
    if (strncmp(name, f->layer_prefix, prefix) != 0) return -1;
    rest = number(name + prefix, h->c.n_layer, &layer);
    if (!rest || *rest++ != '.') return -1;
    long at = h->n_end + (long)layer * h->n_layer_place;
    for (int i = 0; i < h->n_row; at += copies(h, &f->layer[i]), i++)
        if (matches(h, f->layer[i].hf, rest, &expert)) return at + expert;
    return -1;
}

/* A tensor that two rows of the table speak of was found for the first of them. */
static void place_twice(struct hf *h)
{
    const struct mu_hf_name *row = h->c.family->layer;
    for (int layer = 0; layer < h->c.n_layer; layer++) {
        size_t at = (size_t)h->n_end + (size_t)layer * (size_t)h->n_layer_place;
        for (int i = 0; i < h->n_row; at += (size_t)copies(h, &row[i]), i++)
            if (i > 0 && strcmp(row[i].hf, row[i - 1].hf) == 0) h->place[at] = h->place[at - 1];
    }
}

/* Models made for embeddings are often saved without the class that has the output matrix, and without the beginning of
 * names that this class gives ("model."). */
static size_t left_out(const struct hf *h)
{
    const struct mu_hf_family *f = h->c.family;
    size_t n = strcspn(f->layer_prefix, ".") + 1;
    return h->c.text == h->c.root && !find(h, f->ends[0].hf) && find(h, f->ends[0].hf + n) ? n : 0;
}

static enum mu_status place_tensors(struct hf *h)
{
    const struct mu_hf_family *f = h->c.family;
    char name[NAME_BYTES];
    h->bare = left_out(h);
    while (f->ends[h->n_end].hf) h->n_end++;
    for (; f->layer[h->n_row].hf; h->n_row++) h->n_layer_place += copies(h, &f->layer[h->n_row]);
    if ((size_t)h->c.n_layer > h->n_tensor)
        return mu_fail(h->err, MU_EFORMAT,
                       "folder '%.160s': config.json says %d layers, but there are only %zu tensors", h->folder,
                       h->c.n_layer, h->n_tensor);
    h->n_place = (size_t)h->n_end + (size_t)h->c.n_layer * (size_t)h->n_layer_place;
    h->place = mu_calloc(h->n_place, sizeof *h->place);
    if (!h->place) return mu_fail(h->err, MU_ENOMEM, "no memory for a list of %zu tensors", h->n_place);
    for (size_t i = 0; i < h->n_tensor; i++) {
        const struct mu_st_tensor *t = h->by_name[i];
        if (!plain_name(h, t, name)) {
            h->n_ignored++;
            continue;
        }
        if (is_harmless(h, name)) continue;
        long at = place_of(h, name);
        if (at < 0)
            return tensor_fail(h, t, MU_EUNSUPPORTED,
                               "this build does not know what it does in this kind of model, and leaving it out would "
                               "give wrong answers");
        if (h->place[at]) return tensor_fail(h, t, MU_EFORMAT, "it is there under two names");
        h->place[at] = t;
    }
    place_twice(h);
    return MU_OK;
}

/* Place number i of the walk over ends and layers; false after the last. */
static bool item_at(const struct hf *h, int i, struct item *it)
{
    const struct mu_hf_family *f = h->c.family;
    if (i < h->n_end) {
        *it = (struct item){&f->ends[i], h->place + i, -1, 1};
        return true;
    }
    int layer = (i - h->n_end) / h->n_row, row = (i - h->n_end) % h->n_row;
    if (layer >= h->c.n_layer) return false;
    size_t at = (size_t)h->n_end + (size_t)layer * (size_t)h->n_layer_place;
    for (int k = 0; k < row; k++) at += (size_t)copies(h, &f->layer[k]);
    *it = (struct item){&f->layer[row], h->place + at, layer, copies(h, &f->layer[row])};
    return true;
}

static bool is_matrix(const struct mu_hf_name *n, const struct mu_st_tensor *t)
{
    switch (n->kind) {
    case MU_HF_VECTOR:
    case MU_HF_NORM:
    case MU_HF_SCALES:
    case MU_HF_BIAS_EVEN:
    case MU_HF_BIAS_ODD:
    case MU_HF_ROUTER: return false;
    case MU_HF_Q:
    case MU_HF_K: return t->n_dim == 2; /* a bias otherwise */
    default: return true;
    }
}

/* Written into part 0. */
static bool is_small(const struct mu_hf_name *n, const struct mu_st_tensor *t)
{
    return !is_matrix(n, t) && n->kind != MU_HF_SCALES;
}

static bool is_half(enum mu_hf_kind kind)
{
    return kind == MU_HF_STACK_LOW || kind == MU_HF_STACK_HIGH || kind == MU_HF_BLOCKS_EVEN ||
           kind == MU_HF_BLOCKS_ODD || kind == MU_HF_BIAS_EVEN || kind == MU_HF_BIAS_ODD;
}

static enum mu_status missing(const struct hf *h, const struct item *it, int expert)
{
    if (it->layer < 0)
        return mu_fail(h->err, MU_EFORMAT, "folder '%.160s': expected tensor '%s', found none", h->folder,
                       it->name->hf);
    if (it->n_copy > 1)
        return mu_fail(h->err, MU_EFORMAT, "folder '%.160s': expected tensor '%s%d.%s' (* is expert %d), found none",
                       h->folder, h->c.family->layer_prefix, it->layer, it->name->hf, expert);
    return mu_fail(h->err, MU_EFORMAT, "folder '%.160s': expected tensor '%s%d.%s', found none", h->folder,
                   h->c.family->layer_prefix, it->layer, it->name->hf);
}

static enum mu_status unknown_type(const struct hf *h, const struct mu_st_tensor *t)
{
    char what[160];
    snprintf(what, sizeof what,
             "its type %s is not supported in folders; expected F32, F16 or BF16: get the model in one of these, or as "
             "a GGUF file",
             t->dtype);
    return tensor_fail(h, t, MU_EUNSUPPORTED, what);
}

/* The scales of MXFP4 blocks, by their name; NULL: not there. */
static const struct mu_st_tensor *scales_of(const struct hf *h, const struct mu_st_tensor *blocks)
{
    char name[NAME_BYTES];
    size_t n = blocks->name.len - strlen("blocks");
    memcpy(name, blocks->name.p, n);
    memcpy(name + n, "scales", sizeof "scales");
    return find(h, name);
}

/* Tensors of all experts: dimensions that can be counted with. What the model's sizes want of them is its own to check. */
static enum mu_status check_stack(const struct hf *h, const struct item *it, bool *stack_out)
{
    const struct mu_st_tensor *t = it->at[0], *scales;
    enum mu_hf_kind kind = it->name->kind;
    bool blocks = kind >= MU_HF_BLOCKS && kind <= MU_HF_BLOCKS_ODD, bytes = blocks || kind == MU_HF_SCALES;
    *stack_out = kind >= MU_HF_STACK;
    if (!*stack_out) return MU_OK;
    if (bytes && strcmp(t->dtype, "U8") != 0) return tensor_fail(h, t, MU_EFORMAT, "expected dtype U8");
    if (!bytes && t->type == MU_ST_NO_TYPE) return unknown_type(h, t);
    int n_dim = blocks ? 4 : kind == MU_HF_BIAS_EVEN || kind == MU_HF_BIAS_ODD ? 2 : 3;
    if (t->n_dim != n_dim || t->bytes == 0 || t->dim[0] != (uint64_t)h->c.n_expert || (blocks && t->dim[3] != 16) ||
        (is_half(kind) && t->dim[1] % 2 != 0))
        return tensor_fail(h, t, MU_EFORMAT, "expected another shape of a tensor of all experts");
    if (!blocks) return MU_OK;
    scales = scales_of(h, t);
    if (!scales || strcmp(scales->dtype, "U8") != 0 || scales->n_dim != 3 ||
        memcmp(scales->dim, t->dim, 3 * sizeof *t->dim) != 0)
        return tensor_fail(h, t, MU_EFORMAT, "expected a tensor of scales beside it, one for each block");
    return MU_OK;
}

/* Everything that must be there, of types that this build reads, with shapes that this file can count with. */
static enum mu_status check_items(const struct hf *h)
{
    struct item it;
    for (int i = 0; item_at(h, i, &it); i++)
        for (int e = 0; e < it.n_copy; e++) {
            const struct mu_st_tensor *t = it.at[e];
            bool output = strcmp(it.name->gguf, "output.weight") == 0;
            if (!t && it.name->optional && !(output && !h->c.tied && !h->bare)) continue;
            if (!t) return missing(h, &it, e);
            bool stack;
            enum mu_status st = check_stack(h, &it, &stack);
            if (st != MU_OK) return st;
            if (stack) continue;
            if (t->type == MU_ST_NO_TYPE) return unknown_type(h, t);
            bool matrix = is_matrix(it.name, t) || it.name->kind == MU_HF_ROUTER;
            if (t->n_dim != (matrix ? 2 : 1) || t->bytes == 0)
                return tensor_fail(h, t, MU_EFORMAT, matrix ? "expected a matrix" : "expected a vector");
            if (e && (t->type != it.at[0]->type || t->dim[0] != it.at[0]->dim[0] || t->dim[1] != it.at[0]->dim[1]))
                return tensor_fail(h, t, MU_EFORMAT, "expected the type and shape of this layer's first expert's");
        }
    return MU_OK;
}

/* ---- part 0: keys and small tensors ---- */

static const char *gguf_name(const struct item *it, char name[96])
{
    if (it->layer < 0)
        snprintf(name, 96, "%s", it->name->gguf);
    else
        snprintf(name, 96, "blk.%d.%s", it->layer, it->name->gguf);
    return name;
}

/* "user/model" of a folder of links in Muster's own store: …/views/HOST/USER/MODEL/TAG. */
static bool linked_name(const char *folder, struct mu_str *name_out)
{
    enum { TAG, MODEL, USER, HOST, VIEWS, N_PART };
    const char *part[N_PART], *end = folder + strlen(folder);
    for (int i = 0; i < N_PART; i++) {
        const char *slash = memrchr(folder, '/', (size_t)(end - folder));
        if (!slash && i != VIEWS) return false;
        part[i] = slash ? slash + 1 : folder;
        if (slash) end = slash;
    }
    *name_out = (struct mu_str){part[USER], (size_t)(part[TAG] - 1 - part[USER])};
    return strncmp(part[VIEWS], "views/", 6) == 0;
}

/* "user/model" where the folder lies in the hub's cache (models--user--model/snapshots/…) or in Muster's own store, else the
 * folder's name. */
static void put_name(const struct hf *h, struct mu_gguf_writer *w)
{
    static const char models[] = "models--";
    char name[256];
    struct mu_str linked;
    const char *at = strstr(h->folder, models), *end = at ? strchr(at, '/') : NULL, *last = strrchr(h->folder, '/');
    if (!at || !end || strncmp(end, "/snapshots/", 11) != 0) {
        if (linked_name(h->folder, &linked)) {
            mu_gguf_put_str(w, "general.name", linked.p, linked.len);
            return;
        }
        last = last && last[1] ? last + 1 : h->folder;
        if (strcmp(last, ".") != 0 && strcmp(last, "..") != 0) mu_gguf_put_str(w, "general.name", last, strlen(last));
        return;
    }
    size_t n = 0;
    for (at += sizeof models - 1; at < end && n < sizeof name; at++) {
        bool slash = at + 1 < end && at[0] == '-' && at[1] == '-';
        name[n++] = slash ? '/' : *at;
        at += slash;
    }
    mu_gguf_put_str(w, "general.name", name, n);
}

static bool pairs(const struct hf *h, const struct mu_hf_name *n)
{
    return (n->kind == MU_HF_Q || n->kind == MU_HF_K) && (h->c.family->flags & MU_HF_PAIRS);
}

/* Where row r of GGUF's order lies in the folder's. */
static uint64_t halves_row(uint64_t r, uint64_t d_head)
{
    uint64_t i = r % d_head;
    return r - i + i % 2 * (d_head / 2) + i / 2;
}

static float load_value(const struct mu_gguf_part *p, const struct mu_st_tensor *t, uint64_t i)
{
    const uint8_t *at = p->map + t->offset;
    uint16_t half;
    float f;
    if (t->type == MU_F32) {
        memcpy(&f, at + 4 * i, sizeof f);
        return f;
    }
    memcpy(&half, at + 2 * i, sizeof half);
    return t->type == MU_F16 ? mu_f16_to_f32(half) : mu_bf16_to_f32(half);
}

/* Whole heads, where rows of heads are reordered. */
static enum mu_status check_heads(const struct hf *h, const struct item *it)
{
    int n = it->name->kind == MU_HF_Q ? h->c.n_head : h->c.n_kv_head;
    if (it->name->kind == MU_HF_QKV) n = h->c.n_head + 2 * h->c.n_kv_head;
    if (it->at[0]->dim[0] == (uint64_t)n * (uint64_t)h->c.d_head && h->c.d_head % 2 == 0) return MU_OK;
    return tensor_fail(h, it->at[0], MU_EFORMAT,
                       "expected as many rows as config.json's heads have dimensions together");
}

static enum mu_status write_small(const struct hf *h, const struct item *it, struct mu_gguf_writer *w)
{
    const struct mu_st_tensor *t = it->at[0];
    const struct mu_gguf_part *part = &h->g->parts[t->part];
    bool half = is_half(it->name->kind);
    uint64_t n = t->dim[0] * (t->n_dim == 2 ? t->dim[1] : 1) / (half ? 2 : 1), odd = it->name->kind == MU_HF_BIAS_ODD;
    float chunk[1024], one = it->name->kind == MU_HF_NORM && (h->c.family->flags & MU_HF_PLUS_ONE) ? 1.0f : 0.0f;
    bool turn = pairs(h, it->name);
    enum mu_status st = turn ? check_heads(h, it) : MU_OK;
    for (uint64_t i = 0; i < n && st == MU_OK;) {
        size_t len = 0;
        for (; len < sizeof chunk / sizeof *chunk && i < n; len++, i++) {
            float v = load_value(part, t, turn ? halves_row(i, (uint64_t)h->c.d_head) : half ? 2 * i + odd : i);
            chunk[len] = one != 0.0f ? v + one : v; /* adding 0 would lose the sign of -0 */
        }
        st = mu_gguf_put_data(w, chunk, len * sizeof *chunk, h->err);
    }
    return st;
}

static enum mu_status write_part(const struct hf *h, int n_vocab, struct mu_gguf_writer *w,
                                 struct mu_hf_factors *factors)
{
    struct item it;
    char name[96];
    enum mu_status st;
    MU_TRY(st, mu_hf_config_put(&h->c, n_vocab, w, factors, h->err), fail);
    put_name(h, w);
    st = mu_hf_tokenizer_put(h->folder, w, n_vocab, h->err);
    if (st != MU_OK && st != MU_ENOENT) goto fail;
    if (st == MU_ENOENT) mu_info("model", "%s", h->err->text); /* ids go without one */
    for (int i = 0; item_at(h, i, &it); i++) {
        if (!it.at[0] || !is_small(it.name, it.at[0])) continue;
        const struct mu_st_tensor *t = it.at[0];
        const uint64_t ne[2] = {t->dim[t->n_dim - 1] / (is_half(it.name->kind) ? 2 : 1), t->dim[0]};
        mu_gguf_put_tensor(w, gguf_name(&it, name), MU_F32, t->n_dim, ne);
    }
    for (int i = 0; i < 2 && factors->set[i]; i++)
        MU_TRY(st, mu_gguf_put_data(w, factors->set[i], (size_t)factors->n * sizeof(float), h->err), fail);
    for (int i = 0; item_at(h, i, &it); i++)
        if (it.at[0] && is_small(it.name, it.at[0])) MU_TRY(st, write_small(h, &it, w), fail);
fail:
    return st;
}

static enum mu_status make_part(struct hf *h)
{
    struct mu_gguf_part *p = &h->g->parts[0];
    struct mu_hf_factors factors = {0};
    struct mu_gguf_writer *w;
    uint8_t *data;
    size_t len;
    const struct mu_st_tensor *embed = h->place[0]; /* the first row of every family's ends */
    enum mu_status st;
    if (embed->dim[0] > MU_MAX_VOCAB) return tensor_fail(h, embed, MU_ELIMIT, "more rows than any vocabulary has");
    MU_TRY(st, mu_gguf_writer_open_memory(&w, h->err), fail);
    st = write_part(h, (int)embed->dim[0], w, &factors);
    mu_free(factors.set[0]);
    mu_free(factors.set[1]);
    if (st != MU_OK) {
        mu_gguf_writer_close(w, 0, NULL);
        return st;
    }
    MU_TRY(st, mu_gguf_writer_take(w, &data, &len, h->err), fail);
    p->map = data;
    p->size = len;
    p->in_memory = true;
    snprintf(p->shown, sizeof p->shown, "%.120s (as GGUF)", h->c.shown);
    st = mu_gguf_part_parse(p, h->err);
fail:
    return st;
}

/* ---- matrices, where they lie ---- */

static enum mu_status runs_alloc(const struct hf *h, const struct item *it, uint64_t n, const uint8_t ***runs_out)
{
    *runs_out = mu_arena_calloc(h->g->arena, n, sizeof **runs_out);
    return *runs_out ? MU_OK
                     : mu_fail(h->err, MU_ENOMEM, "no memory for the places of the rows of tensor '%s'", it->name->hf);
}

/* Rows in another order than one after another. */
static enum mu_status order_rows(const struct hf *h, const struct item *it, struct mu_gguf_tensor *t)
{
    uint64_t n_rep = (uint64_t)(h->c.n_head / h->c.n_kv_head), n_kv = (uint64_t)h->c.n_kv_head,
             n_q = (uint64_t)h->c.n_head;
    const uint8_t **runs, *data = t->data;
    enum mu_status st = MU_OK;
    if (pairs(h, it->name)) {
        MU_TRY(st, check_heads(h, it), fail);
        MU_TRY(st, runs_alloc(h, it, t->n_row, &runs), fail);
        for (uint64_t r = 0; r < t->n_row; r++) runs[r] = data + halves_row(r, (uint64_t)h->c.d_head) * t->row_bytes;
        t->run_rows = 1;
        t->runs = runs;
    } else if (it->name->kind == MU_HF_QKV && h->c.qkv_group) {
        size_t head = (size_t)h->c.d_head * t->row_bytes;
        MU_TRY(st, check_heads(h, it), fail);
        MU_TRY(st, runs_alloc(h, it, n_q + 2 * n_kv, &runs), fail);
        for (uint64_t i = 0; i < n_q; i++) runs[i] = data + (i / n_rep * (n_rep + 2) + i % n_rep) * head;
        for (uint64_t i = 0; i < n_kv; i++) {
            runs[n_q + i] = data + (i * (n_rep + 2) + n_rep) * head;
            runs[n_q + n_kv + i] = runs[n_q + i] + head;
        }
        t->run_rows = (uint64_t)h->c.d_head;
        t->runs = runs;
    } else if (it->n_copy > 1) {
        MU_TRY(st, runs_alloc(h, it, (uint64_t)it->n_copy, &runs), fail);
        for (int e = 0; e < it->n_copy; e++) runs[e] = h->g->parts[it->at[e]->part].map + it->at[e]->offset;
        t->run_rows = t->ne[1];
        t->runs = runs;
        t->n_dim = 3;
        t->ne[2] = (uint64_t)it->n_copy;
        t->n_row *= (uint64_t)it->n_copy;
        t->bytes *= (size_t)it->n_copy;
    }
fail:
    return st;
}

/* All experts of one tensor, or every half of them. */
static enum mu_status stack_rows(const struct hf *h, const struct item *it, struct mu_gguf_tensor *t)
{
    const struct mu_st_tensor *from = it->at[0];
    enum mu_hf_kind kind = it->name->kind;
    uint64_t n_expert = from->dim[0], n_there = from->dim[1], n_here = is_half(kind) ? n_there / 2 : n_there;
    const uint8_t **runs;
    enum mu_status st = MU_OK;
    t->n_dim = n_expert > 1 ? 3 : 2; /* one expert's is an ordinary matrix */
    t->ne[1] = n_here;
    t->ne[2] = n_expert;
    t->n_row = n_expert * n_here;
    if (kind >= MU_HF_BLOCKS) {
        struct mu_gguf_apart *a = mu_arena_calloc(h->g->arena, 1, sizeof *a);
        const struct mu_st_tensor *scales = scales_of(h, from);
        if (!a) return mu_fail(h->err, MU_ENOMEM, "no memory for the places of tensor '%s'", it->name->hf);
        *a = (struct mu_gguf_apart){.blocks = t->data,
                                    .scales = h->g->parts[scales->part].map + scales->offset,
                                    .n_there = n_there,
                                    .n_here = n_here,
                                    .first = kind == MU_HF_BLOCKS_ODD,
                                    .step = is_half(kind) ? 2 : 1};
        t->apart = a;
        t->type = MU_MXFP4;
        t->ne[0] = from->dim[2] * 32;
        t->row_bytes = (size_t)from->dim[2] * 17;
    } else {
        t->ne[0] = from->dim[2];
        t->row_bytes = (size_t)(from->bytes / (n_expert * n_there));
    }
    t->bytes = t->row_bytes * (size_t)t->n_row;
    if (!is_half(kind) || t->apart) return MU_OK;
    MU_TRY(st, runs_alloc(h, it, n_expert, &runs), fail);
    for (uint64_t e = 0; e < n_expert; e++)
        runs[e] = t->data + (e * n_there + (kind == MU_HF_STACK_HIGH ? n_here : 0)) * t->row_bytes;
    t->data = runs[0];
    t->run_rows = n_here;
    t->runs = runs;
fail:
    return st;
}

static enum mu_status add_matrix(const struct hf *h, const struct item *it, struct mu_gguf_tensor *t)
{
    const struct mu_st_tensor *from = it->at[0];
    char name[96];
    gguf_name(it, name);
    const char *copy = mu_arena_strndup(h->g->arena, name, strlen(name));
    if (!copy) return mu_fail(h->err, MU_ENOMEM, "no memory for the names of tensors");
    *t = (struct mu_gguf_tensor){.name = {copy, strlen(copy)},
                                 .type = from->type,
                                 .n_dim = 2,
                                 .ne = {from->dim[1], from->dim[0], 1, 1},
                                 .n_row = from->dim[0],
                                 .bytes = (size_t)from->bytes,
                                 .data = h->g->parts[from->part].map + from->offset,
                                 .offset = from->offset,
                                 .part = from->part};
    if (it->name->kind >= MU_HF_STACK) return stack_rows(h, it, t);
    t->row_bytes = t->bytes / (size_t)t->n_row;
    return order_rows(h, it, t);
}

static enum mu_status list_tensors(struct hf *h)
{
    struct mu_gguf *g = h->g;
    struct mu_gguf_part *p = &g->parts[0];
    struct item it;
    enum mu_status st = MU_OK;
    size_t n = p->n_tensor;
    for (int i = 0; item_at(h, i, &it); i++) n += it.at[0] && is_matrix(it.name, it.at[0]);
    g->tensors = mu_calloc(n + 1, sizeof *g->tensors);
    g->by_name = mu_calloc(n + 1, sizeof *g->by_name);
    g->arena = mu_arena_create(0);
    if (!g->tensors || !g->by_name || !g->arena)
        return mu_fail(h->err, MU_ENOMEM, "no memory for a list of %zu tensors", n);
    for (size_t i = 0; i < p->n_tensor; i++) g->tensors[g->n_tensor++] = p->tensors[i];
    for (int i = 0; item_at(h, i, &it); i++)
        if (it.at[0] && is_matrix(it.name, it.at[0])) MU_TRY(st, add_matrix(h, &it, &g->tensors[g->n_tensor++]), fail);
    for (size_t i = 0; i < g->n_tensor; i++) g->by_name[i] = &g->tensors[i];
    st = mu_gguf_index_names(g, h->err);
fail:
    return st;
}

enum mu_status mu_hf_open(struct mu_gguf *g, struct mu_err *err)
{
    struct hf h = {.g = g, .err = err};
    enum mu_status st;
    MU_TRY(st, mu_hf_folder(g->path, &h.folder, err), fail);
    MU_TRY(st, mu_hf_files_find(h.folder, &h.files, err), fail);
    MU_TRY(st, mu_hf_config_read(h.folder, &h.c, err), fail);
    MU_TRY(st, map_files(&h), fail);
    MU_TRY(st, index_tensors(&h), fail);
    MU_TRY(st, place_tensors(&h), fail);
    MU_TRY(st, check_items(&h), fail);
    MU_TRY(st, make_part(&h), fail);
    MU_TRY(st, list_tensors(&h), fail);
    if (h.n_ignored)
        mu_info("model", "%.160s: %d tensors of other than the language model are left out", h.folder, h.n_ignored);
fail:
    for (int i = 0; h.table && i < h.files.n; i++) mu_st_table_free(&h.table[i]);
    mu_free(h.table);
    mu_free(h.by_name);
    mu_free(h.place);
    mu_hf_config_free(&h.c);
    mu_hf_files_free(&h.files);
    mu_free(h.folder);
    return st;
}
