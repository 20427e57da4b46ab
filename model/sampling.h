/* How the next token is chosen: the parameters of one request, as they travel from the client to the ranks.
 *
 * A zeroed struct mu_sampling is greedy with everything else off. Every layer copies the struct; only what its fields
 * share by name with the protocol's message (MU_SAMPLING_FIELDS) is ever listed again. What the parameters do, and in
 * which order, is the essay of shard/sample.c.
 *
 * Threads: pure functions and plain data. */
#ifndef MU_MODEL_SAMPLING_H
#define MU_MODEL_SAMPLING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum {
    MU_MAX_BIASES = 1024,       /* ids with a bias in one request */
    MU_MAX_TOP_LOGPROBS = 20,   /* likeliest tokens told beside the chosen one */
    MU_MAX_CHOICES = 64,        /* completions of one prompt */
    MU_SAMPLING_MAX_BIAS = 1000 /* either way; far beyond it a sum with a logit would lose the logit */
};

struct mu_sampling {
    float temperature;                         /* 0: greedy */
    uint32_t top_k;                            /* 0: off */
    float top_p;                               /* 0 or 1: off */
    float min_p;                               /* 0: off */
    float typical_p;                           /* 0 or 1: off */
    float repeat_penalty;                      /* 0 or 1: off */
    uint32_t repeat_last_n;                    /* tokens of prompt and completion that it looks back; 0: all */
    float presence_penalty, frequency_penalty; /* of generated tokens; 0: off */
    uint32_t min_tokens;                       /* nothing ends the completion before it has so many */
    bool logprobs;                             /* of each token that is chosen */
    uint32_t top_logprobs;                     /* and of so many likeliest; needs logprobs */
    uint64_t seed;
};

/* The fields that the protocol's Sampling has under the same names. */
#define MU_SAMPLING_FIELDS(X) \
    X(temperature)            \
    X(top_k)                  \
    X(top_p)                  \
    X(min_p)                  \
    X(typical_p)              \
    X(repeat_penalty)         \
    X(repeat_last_n)          \
    X(presence_penalty)       \
    X(frequency_penalty)      \
    X(min_tokens)             \
    X(logprobs)               \
    X(top_logprobs)

struct mu_bias { /* added to a token's logit */
    int32_t id;
    float bias;
};

/* Natural logarithms of softmax(logits), the logits as the model gives them: before any bias, penalty or temperature. */
struct mu_logprob {
    int32_t id;
    float logprob;
};
struct mu_logprobs {
    float chosen; /* of the sampled id */
    uint32_t n_top;
    struct mu_logprob top[MU_MAX_TOP_LOGPROBS]; /* logit descending, then id ascending */
};

/* MU_EINVAL: which parameter is out of range, what it may be, what it is. */
enum mu_status mu_sampling_check(const struct mu_sampling *p, struct mu_err *err);
/* At most MU_MAX_BIASES, ids of the vocabulary, each once, values within ±MU_SAMPLING_MAX_BIAS. */
enum mu_status mu_biases_check(const struct mu_bias *bias, size_t n, int n_vocab, struct mu_err *err);

/* The seed of choice i of a request: seed + i · 0x9e3779b97f4a7c15 (2^64 over the golden ratio), modulo 2^64. Choice 0 is
 * what the request would give alone, and so is any other one with its own seed. */
static inline uint64_t mu_sampling_choice_seed(uint64_t seed, uint32_t choice)
{
    return seed + (uint64_t)choice * 0x9e3779b97f4a7c15u;
}

/* A share of the probability that leaves something out. */
static inline bool mu_sampling_cuts(float p)
{
    return p > 0.0f && p < 1.0f;
}
/* Whether some ids are left out for their probability. */
static inline bool mu_sampling_truncates(const struct mu_sampling *p)
{
    return p->temperature > 0.0f &&
           (p->top_k > 0 || p->min_p > 0.0f || mu_sampling_cuts(p->top_p) || mu_sampling_cuts(p->typical_p));
}
static inline bool mu_sampling_repeats(const struct mu_sampling *p)
{
    return p->repeat_penalty != 0.0f && p->repeat_penalty != 1.0f;
}
static inline bool mu_sampling_counts(const struct mu_sampling *p)
{
    return p->presence_penalty != 0.0f || p->frequency_penalty != 0.0f;
}

#endif
