/* Inside the stores: what the readers of single stores share. */
#ifndef MU_MODEL_STORE_PART_H
#define MU_MODEL_STORE_PART_H

#include <jansson.h>
#include <sys/stat.h>

#include "model/gguf.h"
#include "model/store.h"
#include "model/utf8.h"

/* ---- store_name.c: host/namespace/model:tag, as Ollama's registry names models ---- */

#define MU_NAME_HOST  "registry.ollama.ai" /* what an absent part stands for */
#define MU_NAME_SPACE "library"
#define MU_NAME_TAG   "latest"
#define MU_NAME_HF    "hf.co" /* huggingface.co is the same */

enum { MU_NAME_PART = 128, MU_NAME_TEXT = 4 * MU_NAME_PART };
struct mu_store_name { /* every part is fit to be a folder's name */
    char host[MU_NAME_PART], space[MU_NAME_PART], model[MU_NAME_PART], tag[MU_NAME_PART];
    bool has_tag; /* it was said */
};
/* False where text is no such name: more than three parts, an empty or long one, other characters than letters,
 * digits, '.', '_' and '-', a part that begins with '.' or '-'. A leading "https://" is forgiven. */
bool mu_store_name_parse(const char *text, struct mu_store_name *name_out);
/* As short as it can be said: "llama3.2:latest", "user/model:tag", "hf.co/user/repo:Q4_K_M". */
void mu_store_name_format(const struct mu_store_name *name, char buf[MU_NAME_TEXT]);
bool mu_store_part_ok(const char *part, bool is_host);
/* Where the tag begins (the ':' after the last '/'), or the end. */
size_t mu_store_base_len(const char *text);

/* ---- store_peek.c: what a model is, from the first kilobytes ---- */

enum mu_peek { MU_PEEK_MODEL, MU_PEEK_OTHER /* projector, adapter, encoder … */, MU_PEEK_NONE /* no GGUF */ };
/* Reads the head of a GGUF file only; quant and family are "" where it does not say. */
enum mu_peek mu_store_peek(const char *path, char quant_out[16], char family_out[32]);
/* As mu_store_peek, of bytes; for fuzzing. */
enum mu_peek mu_store_peek_bytes(const uint8_t *data, size_t len, char quant_out[16], char family_out[32]);
/* The same of a folder by its config.json. */
enum mu_peek mu_store_peek_folder(const char *path, char quant_out[16], char family_out[32]);
/* "Q4_K_M" out of a file's name, in upper case; "" where there is none. */
void mu_store_quant_of(const char *file_name, char quant_out[16]);
/* Whether a name ends in "-00002-of-00003.gguf"; len_out: of what stands before that. */
bool mu_store_split_of(const char *file_name, int *no_out, int *count_out, size_t *len_out);

/* ---- store_dir.c: reading somebody's folders ---- */

struct mu_dir { /* names sorted by bytes, without those that begin with '.' */
    char **name;
    size_t n;
};
/* False where it cannot be read (said at level debug) or memory ran out (*no_memory). Links are followed only where
 * `root`. */
bool mu_dir_read(const char *path, bool root, struct mu_dir *dir_out, bool *no_memory);
void mu_dir_free(struct mu_dir *dir);
/* A regular file in the store: itself, or where its link ends, which must be below root. */
bool mu_dir_file(const char *root, const char *path, struct stat *sb_out);
bool mu_dir_exists(const char *path);
/* Printable text: valid UTF-8 without control characters. */
bool mu_text_ok(const char *s);

/* ---- store_list.c: the list while it grows ---- */

struct mu_store_builder {
    struct mu_store_entry *entry;
    size_t n, cap;
    bool no_memory;
    char *unreadable;
};
/* Takes the strings of e (mu_free), also where memory runs out. An entry whose name is there already is dropped. */
void mu_store_add(struct mu_store_builder *b, struct mu_store_entry *e);
/* alias is taken; NULL: memory ran out. */
void mu_entry_alias(struct mu_store_builder *b, struct mu_store_entry *e, char *alias);
void mu_store_entry_clear(struct mu_store_entry *e);
/* One or more files of a model: `base` where there is one, else base:QUANT for each. The files' folder, their names,
 * and the root that links may not leave. prefix: another spelling of base is prefix + base; NULL: none. */
void mu_store_add_files(struct mu_store_builder *b, enum mu_store_kind kind, const char *root, const char *base,
                        const char *prefix, const char *folder, const struct mu_dir *files);
/* A folder with config.json and *.safetensors, where it is one. */
void mu_store_add_folder(struct mu_store_builder *b, enum mu_store_kind kind, const char *root, const char *base,
                         const char *prefix, const char *folder, const struct mu_dir *files);

/* ---- readers ---- */

void mu_store_scan_ollama(struct mu_store_builder *b, enum mu_store_kind kind, const char *root);
/* home: LM Studio's, or the file that names it. */
void mu_store_scan_lmstudio(struct mu_store_builder *b, const char *home);
/* root: Jan's data folder, or its settings.json that names it. */
void mu_store_scan_jan(struct mu_store_builder *b, const char *root);
void mu_store_scan_hub(struct mu_store_builder *b, const char *root);
void mu_store_scan_llamacpp(struct mu_store_builder *b, const char *root);
/* $MUSTER_MODELS, else below $XDG_DATA_HOME or ~/.local/share; NULL without memory or a home. */
char *mu_store_own_path(void);

/* ---- store_manifest.c ---- */

enum { MU_DIGEST_TEXT = 65, MU_MANIFEST_MAX_BYTES = 4 << 20, MU_LAYER_TEXT_MAX_BYTES = 4 << 20 };
struct mu_layer {                /* strings are the document's */
    const char *kind;            /* media type without its prefix: "model", "template", … */
    bool ours;                   /* its prefix is Muster's */
    char digest[MU_DIGEST_TEXT]; /* 64 hex digits; "" only where ours has a path instead */
    uint64_t bytes;
    const char *name, *path; /* of Muster's own kinds */
};
struct mu_manifest {
    json_t *doc;
    struct mu_layer config; /* kind NULL: none */
    struct mu_layer *layer;
    size_t n_layer;
};
#define MU_MEDIA_OLLAMA "application/vnd.ollama.image."
#define MU_MEDIA_MUSTER "application/vnd.muster."
/* Kinds of ours. file: one of several files of a model, by its name, in blobs. reference, adapter: a file or folder
 * somewhere else, by its path. */
#define MU_KIND_FILE      "file"
#define MU_KIND_REFERENCE "reference"
#define MU_KIND_ADAPTER   "adapter"

/* where: for messages. Checked: shape, digests, sizes, names of files; everything else is kept as it is. */
enum mu_status mu_manifest_parse(const char *text, size_t len, const char *where, struct mu_manifest *m_out,
                                 struct mu_err *err);
enum mu_status mu_manifest_read(const char *path, struct mu_manifest *m_out, struct mu_err *err);
void mu_manifest_clear(struct mu_manifest *m);
/* "sha256:…" or "sha256-…" of 64 hex digits to lower-case digits; false: it is none. */
bool mu_digest_parse(const char *text, char hex_out[MU_DIGEST_TEXT]);
char *mu_blob_path(const char *root, const char *hex);
/* The first layer of a kind, NULL. */
const struct mu_layer *mu_manifest_find(const struct mu_manifest *m, const char *kind, bool ours);
/* manifests/HOST/SPACE/MODEL/TAG, and views/… likewise, below root. */
char *mu_manifest_path(const char *root, const char *folder, const struct mu_store_name *name);
/* Where the weights of a manifest lie. MU_ENOENT where they do not. */
enum mu_status mu_manifest_weights(const char *root, const struct mu_store_name *name, const struct mu_manifest *m,
                                   bool own, char **path_out, uint64_t *bytes_out, struct mu_err *err);
/* Fills a model (params, template …) from its manifest's layers. */
enum mu_status mu_manifest_load(const char *root, const struct mu_manifest *m, bool own, struct mu_store_model *model,
                                struct mu_err *err);
/* SHA-256 of bytes as hex digits. */
bool mu_sha256_hex(const void *data, size_t len, char hex_out[MU_DIGEST_TEXT]);

#endif
