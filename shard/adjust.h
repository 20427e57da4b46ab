/* Adjustments: what the ids of a sequence so far mean for the logits of its next one.
 *
 * Ranks keep nothing of a sequence but its cache, so the leader, who knows every id, counts: a table of the ids that
 * matter (biased ones, ids in the window of repeat_penalty, generated ids, ids that end), brought up to date with each
 * new id, of which a step carries a copy. A table is a function of (request, ids) alone: made from the prompt and
 * emitted ids of a request that is replayed, it is what it was.
 *
 * Each rank applies the copy to its own rows of logits (mu_adjust_apply), in this order, every operation rounded to f32:
 *
 *   x = x + bias
 *   x = x / repeat_penalty where x > 0, else x · repeat_penalty     of ids among the last repeat_last_n of prompt and
 *                                                                   completion (Keskar et al., CTRL, arXiv:1909.05858)
 *   x = x - (n_generated · frequency_penalty + presence_penalty)    of ids with n_generated > 0: generated, not prompt
 *   x = MU_LOGIT_FORBIDDEN                                          of ids that end while min_tokens are not there,
 *                                                                   and of ids that the mask leaves out
 *
 * llama.cpp and vLLM have the same order (bias, repetition, then counts). llama.cpp counts presence and frequency in the
 * window and the prompt too; OpenAI and vLLM over the generated tokens, as here.
 *
 * Threads: a table belongs to one thread; applying is pure. */
#ifndef MU_SHARD_ADJUST_H
#define MU_SHARD_ADJUST_H

#include <float.h>

#include "shard/step.h"

/* No logit has this value, and whatever it becomes no id with it is ever chosen. Finite, because a logit that is not
 * finite is an error. */
#define MU_LOGIT_FORBIDDEN (-FLT_MAX)

struct mu_adjusts;

struct mu_adjusts_options { /* all copied */
    const struct mu_sampling *sampling;
    const struct mu_bias *bias; /* [n_bias] of a request that was checked */
    size_t n_bias;
    const int32_t *end_ids; /* [n_end], forbidden while min_tokens are not there */
    size_t n_end;
    const int32_t *ids; /* [n_ids] so far, the prompt's n_prompt and those emitted before */
    size_t n_ids, n_prompt;
    size_t max_ids; /* that the sequence may come to */
    int n_vocab;
};

/* NULL in *adjusts_out where the request needs none. MU_ENOMEM. */
enum mu_status mu_adjusts_create(const struct mu_adjusts_options *opt, struct mu_adjusts **adjusts_out,
                                 struct mu_err *err);
void mu_adjusts_destroy(struct mu_adjusts *a); /* NULL is fine, also below */
/* ids[n_ids - 1] is new; all before it were there. Allocates nothing. */
void mu_adjusts_push(struct mu_adjusts *a, const int32_t *ids, size_t n_ids);
/* Into the step, as the adjustments of one of its sequences, the last one to get any. */
void mu_adjusts_put(const struct mu_adjusts *a, struct mu_step *step, struct mu_step_seq *seq);

/* To x[n], the logits of ids first, first + 1, …; adjust[n_adjust] ascends; mask may be NULL. */
void mu_adjust_apply(const struct mu_sampling *p, const struct mu_step_adjust *adjust, uint32_t n_adjust,
                     const uint8_t *mask, float *x, int n, int first);

#endif
