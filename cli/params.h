/* Parameters of an answer by their names: what /set parameter, Modelfiles, saved chats and the flags of `run` all set.
 *
 * A parameter is either set by somebody or not (a bit in `set`); defaults belong to whoever asks (mu_params_sampling),
 * so that a layer of parameters can be laid over another: the model's own, then the command line's, then /set's.
 *
 * Memory: owns its stop strings; zeroed is empty; freed by mu_params_free. Threads: none of its own. */
#ifndef MU_CLI_PARAMS_H
#define MU_CLI_PARAMS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/status.h"
#include "model/sampling.h"

enum { MU_MAX_STOPS = 16, MU_MAX_STOP_BYTES = 256, MU_PARAMS_MAX_BIASES = 256 };

struct mu_params {
    unsigned set;                                               /* bit i: parameter i of the table in params.c */
    double temperature;                                         /* 0: greedy */
    double top_p;                                               /* 1: off */
    double min_p;                                               /* 0: off */
    double typical_p;                                           /* 1: off */
    double repeat_penalty, presence_penalty, frequency_penalty; /* 1, 0, 0: off */
    int64_t repeat_last_n;                                      /* 0: off; -1: the whole context */
    int64_t min_tokens;
    int64_t top_k;       /* 0: off */
    int64_t seed;        /* -1: another one each time */
    int64_t num_predict; /* new tokens; 0 and below: as many as fit */
    int64_t num_ctx;     /* tokens of prompt and answer together */
    char *stop[MU_MAX_STOPS];
    int n_stop;
    struct mu_bias bias[MU_PARAMS_MAX_BIASES];
    int n_bias;
};

/* MU_EINVAL names the parameter with what it may be, or, for an unknown one, lists those that there are. Several values
 * only for `stop` and `logit_bias` (ID=X), which replace the former ones; none at all forgets them. Nothing is changed on
 * failure. */
enum mu_status mu_params_set(struct mu_params *p, const char *name, const char *const *value, int n_value,
                             struct mu_err *err);
/* One more stop string. */
enum mu_status mu_params_add_stop(struct mu_params *p, const char *text, struct mu_err *err);
/* One more token's bias, "ID=X"; another one for the same token replaces it. */
enum mu_status mu_params_add_bias(struct mu_params *p, const char *text, struct mu_err *err);
/* The same as mu_params_set from JSON: a number, a string, or an array of those. */
enum mu_status mu_params_set_json(struct mu_params *p, const char *name, const json_t *value, struct mu_err *err);
/* What is set, as an object; NULL without memory. */
json_t *mu_params_to_json(const struct mu_params *p);
/* Whatever is set in `over` is set in p. MU_ENOMEM only. */
enum mu_status mu_params_merge(struct mu_params *p, const struct mu_params *over, struct mu_err *err);
/* As if num_ctx had not been set. */
void mu_params_forget_context(struct mu_params *p);
void mu_params_free(struct mu_params *p);

/* What is set, a line each, after `indent`. Returns how many lines. */
int mu_params_print(const struct mu_params *p, const char *indent, FILE *f);
/* The names with what they mean, a line each. */
void mu_params_help(FILE *f);

/* The sampling that results, without the biases: with `chat`, Ollama's defaults where nothing is set (temperature 0.8,
 * top_k 40, top_p 0.9), else the likeliest token each time; repeat_last_n is 64 where it is not set, as with Ollama and
 * llama.cpp. A seed that is not set is drawn. */
struct mu_sampling mu_params_sampling(const struct mu_params *p, bool chat);
bool mu_params_has_seed(const struct mu_params *p);

#endif
