/* Models by name, from the stores that people already have.
 *
 * A store is a folder that some program keeps models in: Ollama, LM Studio, Jan, the Hugging Face hub's cache,
 * llama.cpp's cache, and Muster's own. Nothing is converted or copied: an entry says where the weights lie, and what
 * the store adds to them (an Ollama model's system prompt, parameters, adapters …).
 *
 *   name typed  ──►  a path that exists?  ──►  exact name  ──►  name without its tag  ──►  the same, upper or
 *                    (the file as it is)       or alias         (one only)                 lower case alike
 *
 * Order    stores in the order of enum mu_store_kind, in a store folder by folder, by the bytes of their names. Of two
 *          entries with one name the first is the model of that name; the other is not listed and can be reached by
 *          its path.
 * Trust    folders are somebody else's: names are checked before they become paths, digests must be 64 hex digits,
 *          links are followed to files inside the store only, every file read has a limit. What cannot be read or
 *          makes no sense is left out, and said at log level debug.
 * Memory   lists and models are the caller's.
 * Threads  any; the environment and the folders are read at each call. */
#ifndef MU_MODEL_STORE_H
#define MU_MODEL_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct json_t; /* jansson's */

enum mu_store_kind { /* in the order in which names are looked up */
                     MU_STORE_OWN,
                     MU_STORE_OLLAMA,
                     MU_STORE_LMSTUDIO,
                     MU_STORE_JAN,
                     MU_STORE_HUB,
                     MU_STORE_LLAMACPP,
                     MU_STORE_COUNT,
                     MU_STORE_NONE = MU_STORE_COUNT /* a path, in no store */
};
/* "muster", "ollama", "lmstudio", "jan", "huggingface", "llama.cpp"; "file" for MU_STORE_NONE. */
const char *mu_store_kind_name(enum mu_store_kind kind);

/* A model in a store. Strings are NULL where there is none. */
struct mu_store_entry {
    char *name;   /* as one types it: "llama3.2:latest", "hf.co/user/repo:Q4_K_M", "publisher/model" */
    char **alias; /* other names for it */
    int n_alias;
    enum mu_store_kind store;
    char *path;         /* of the weights: a GGUF file (the first part of a split one), or a folder with config.json */
    char *manifest;     /* Ollama's and Muster's own: the manifest's path */
    char *digest;       /* of the weights, 64 hex digits, where the store says it */
    char *id;           /* Ollama's and Muster's own: SHA-256 of the manifest, 64 hex digits */
    char quant[16];     /* "Q4_K_M", "BF16"; "" unknown */
    char family[32];    /* general.architecture or config.json's model_type; "" unknown */
    uint64_t bytes;     /* of the weights, all parts */
    int64_t modified_s; /* seconds since 1970 */
};

struct mu_store_list {
    struct mu_store_entry *entry;
    size_t n;
    char *unreadable; /* the first store that is there and must not be read; NULL: none */
};

/* Every model of every store. Only MU_ENOMEM is an error; where memory runs out while one model is looked at, that one may
 * be left out instead. */
enum mu_status mu_store_list(struct mu_store_list **list_out, struct mu_err *err);
void mu_store_list_free(struct mu_store_list *list); /* NULL is fine */

/* A model that was found, with everything that its store says about it. What the store does not say is NULL or 0; of
 * a path only `entry.name` and `entry.path` are set. */
struct mu_store_model {
    struct mu_store_entry entry;
    char *path; /* entry.path: what mu_model_open and mu_gguf_open want */
    char **adapter_path;
    int n_adapter;
    struct json_t *params; /* object: Ollama's option names → numbers, strings, booleans; "stop" → array of strings */
    struct json_t *messages; /* array of {"role": "system" | "user" | "assistant", "content": "…"} */
    char *system;
    char *template;         /* a chat template */
    bool template_is_jinja; /* else Go's, as Ollama has them: shown, never interpreted; the file's own one is used */
    char **license;         /* texts */
    int n_license;
};

/* The model that a person means by `name`. A path that exists wins: a file, or a folder with a config.json.
 * Errors: MU_ENOENT with near misses and how to get it; MU_EINVAL for an ambiguous name, listing what it may mean, and
 * for a name that can be none; MU_EFORMAT where the store's files about it are malformed; MU_ELIMIT, MU_EIO. */
enum mu_status mu_store_find(const char *name, struct mu_store_model **model_out, struct mu_err *err);
void mu_store_model_free(struct mu_store_model *m); /* NULL is fine */

#endif
