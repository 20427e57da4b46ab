/* Who answers a prompt: this process (backend_local.c) or a server (backend_server.c), behind one small table of
 * functions, so that `run` and its chat know nothing of either.
 *
 * A prompt is a text to be completed, or a conversation that the model's chat template renders: here for a local model,
 * on the server else. The answer arrives piece by piece at a listener.
 *
 * Threads: the functions are called by one thread. A server's listener is called by another one while `ask` waits. */
#ifndef MU_CLI_BACKEND_H
#define MU_CLI_BACKEND_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "cli/params.h"
#include "model/adapter.h"
#include "shard/plan.h"
#include "worker/constraint.h"

/* What is known of the model, for /show and for defaults. Strings may be NULL. Owned by the back end, valid until its
 * next set_context or close. */
struct mu_card {
    const char *name;          /* as the user named it */
    const char *description;   /* one line */
    const char *path;          /* of its file; NULL on a server */
    const char *template_text; /* also where it is one that is not interpreted, as Ollama's in Go's language */
    const char *system, *license;
    const json_t *messages;  /* that every conversation begins with; array or NULL */
    struct mu_params params; /* the model's own */
    bool chat;               /* it has a chat template */
    int n_ctx, n_ctx_max;    /* now; the most that set_context takes, 0: cannot be changed */
};

struct mu_ask {
    const char *text;        /* a completion; NULL: a conversation */
    const json_t *messages;  /* array of {role, content, …} */
    const json_t *variables; /* object of further variables of the template, or NULL */
    const struct mu_params *params;
    const struct mu_constraint_text *constraint; /* the form of the answer, or NULL */
    bool ignore_end;                             /* go on after an end token */
    bool special; /* special tokens in `text` become their ids, and are shown in the answer */
};

struct mu_listener { /* MU_ECANCELLED and other failures end the answer */
    /* Once, before any text, where the rendered prompt is known. May be NULL. */
    void (*prompt)(void *ctx, const char *text, size_t len);
    enum mu_status (*text)(void *ctx, const char *text, size_t len, struct mu_err *err);
    void *ctx;
};

struct mu_answer {
    int n_prompt, n_new;                /* tokens */
    int n_guessed, n_right;             /* tokens that a draft model guessed; of these the right ones */
    int n_kept;                         /* tokens of the prompt that were there from before and not computed again */
    int resumed;                        /* times that a server lost its gang on the way */
    int64_t start_ns, first_ns, end_ns; /* first: when the first token was there, 0 never */
    bool interrupted;                   /* by Ctrl-C */
    bool full;                          /* the context, or num_predict */
};

struct mu_backend_ops {
    /* Until the end, a stop, a limit, or mu_interrupted; each of them is MU_OK. MU_ELIMIT: the prompt does not fit the
     * context. */
    enum mu_status (*ask)(void *self, const struct mu_ask *ask, const struct mu_listener *listener,
                          struct mu_answer *answer_out, struct mu_err *err);
    /* MU_ELIMIT: ask would say so; nothing is generated. NULL: only ask knows. */
    enum mu_status (*fits)(void *self, const struct mu_ask *ask, struct mu_err *err);
    const struct mu_card *(*card)(const void *self);
    /* Another size of context. On failure the former one stays. */
    enum mu_status (*set_context)(void *self, int n_ctx, struct mu_err *err);
    void (*close)(void *self); /* NULL is fine */
};

struct mu_backend {
    const struct mu_backend_ops *ops;
    void *self;
};

struct mu_local_options {
    const char *model;           /* a file, or a name that a store knows */
    const char *template_file;   /* instead of the model's own template, or NULL */
    const char *quantize;        /* a type's name, or NULL: as in the file */
    enum mu_kv_type kv;          /* how the cache is kept */
    bool rough;                  /* prompts on GPUs: struct mu_serving */
    bool no_template;            /* the model's own one is not even looked at */
    struct mu_adapter_spec lora; /* nothing named: none but the model's own */
    const char *draft;           /* a model that guesses next tokens, or NULL */
    const char *split;           /* "auto" or a split */
    enum mu_device_wish device;
    int n_thread, n_ctx; /* 0: all cores; the model's, at most 8,192 and what fits */
    bool quiet;          /* nothing on stderr about memory and GPUs */
};
enum mu_status mu_backend_local(const struct mu_local_options *opt, struct mu_backend *backend_out, struct mu_err *err);
/* model: the name of the one that is served, or "default"; adapter: of one that it has loaded, or NULL. The strings are
 * borrowed. */
enum mu_status mu_backend_server(const char *address, const char *model, const char *adapter, int priority,
                                 struct mu_backend *backend_out, struct mu_err *err);

#endif
