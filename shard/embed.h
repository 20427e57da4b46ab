/* Embeddings: one vector for a text, from the states of its tokens after the final norm (what the output matrix reads,
 * before anything is quantised).
 *
 *   MU_POOL_LAST   the last token's state                     MU_OUT_STATE with the last chunk
 *   MU_POOL_MEAN   the mean over all tokens                   MU_OUT_STATE_SUM with every chunk
 *
 * The leader, who has the whole residual like every rank of the last stage, keeps the sum of each slot, so that chunks,
 * batches and splits leave no trace: tokens are added one by one in order of position, and a sequence that begins at
 * position 0 begins a new sum. Steps without logits leave out the output matrix and what ranks tell each other about
 * it. What is left to do with the vector is the caller's: mu_embed_finish. docs/arithmetic.md has the rule (C10). */
#ifndef MU_SHARD_EMBED_H
#define MU_SHARD_EMBED_H

#include <stdbool.h>
#include <stdint.h>

#include "model/model.h"
#include "shard/step.h"

/* What a request wants to have of its hidden states. */
struct mu_embed {
    enum mu_pooling pooling; /* MU_POOL_NONE: nothing, it generates */
    int dimensions;          /* the first so many; 0: all */
    bool raw;                /* not normalised */
};

/* What a step is to put out for a chunk of the text. */
static inline enum mu_out_kind mu_embed_out(enum mu_pooling pooling, bool last_chunk)
{
    return pooling == MU_POOL_MEAN ? MU_OUT_STATE_SUM : last_chunk ? MU_OUT_STATE : MU_OUT_NONE;
}

/* How many values the vector has. */
static inline int mu_embed_len(const struct mu_embed *e, int d_model)
{
    return e->dimensions > 0 && e->dimensions < d_model ? e->dimensions : d_model;
}

/* out[mu_embed_len] from a slot's state [d_model] after n_tok tokens: mean, cut, normalised. false: it is not finite.
 * Any thread. */
bool mu_embed_finish(const struct mu_embed *e, const float *state, uint32_t n_tok, int d_model, float *out);

#endif
