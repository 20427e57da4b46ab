/* Modelfiles, as Ollama's users write them: a model made of another one and what to say to it.
 *
 *   # a comment
 *   FROM llama3.2                    a name, or a path (from the Modelfile's folder, "/" or "~/")
 *   PARAMETER temperature 0.2        any number of them; stop may come several times
 *   SYSTEM """You are terse."""      "…" (no quotes in it) and """…""" may have several lines
 *   TEMPLATE …                       Jinja is used where it has {%; Go's is kept and shown only
 *   ADAPTER ./lora.gguf
 *   LICENSE …
 *   MESSAGE user|assistant|system …
 *   REQUIRES, RENDERER, PARSER …     accepted, mean nothing here
 *
 * Words before values in either case. Errors name file and line. Threads: any. */
#ifndef MU_MODEL_MODELFILE_H
#define MU_MODEL_MODELFILE_H

#include <jansson.h>

#include "model/store.h"

struct mu_modelfile {
    char *from;       /* never NULL after parsing */
    json_t *params;   /* object; NULL: none */
    json_t *messages; /* array of {"role", "content"}; NULL: none */
    char *template, *system;
    char **adapter, **license;
    int n_adapter, n_license;
};

enum { MU_MODELFILE_MAX_BYTES = 4 << 20 };
/* text needs no NUL. where: the file's name for messages. MU_EFORMAT, MU_ELIMIT, MU_ENOMEM. */
enum mu_status mu_modelfile_parse(const char *text, size_t len, const char *where, struct mu_modelfile **file_out,
                                  struct mu_err *err);
void mu_modelfile_free(struct mu_modelfile *f); /* NULL is fine */
/* Where a path of a Modelfile leads: from "/", from one's home where it begins with "~/", else from the Modelfile's folder.
 * mu_free; NULL: no memory. */
char *mu_modelfile_path(const char *folder, const char *given);
/* The Modelfile that would make this model; freed with mu_free; NULL: no memory. */
char *mu_modelfile_format(const struct mu_store_model *m);
/* One "name value" a line, as `show --parameters` prints them; NULL: no memory. */
char *mu_params_format(const json_t *params, const char *before);
/* Puts a parameter given as text into params, by the kind that its name has ("stop" grows an array).
 * MU_EINVAL: no such name, or no such value. */
enum mu_status mu_params_put(json_t *params, const char *name, const char *value, struct mu_err *err);

#endif
