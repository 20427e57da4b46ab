/* Many texts to vectors in this process: the serving scheduler over a gang of threads (worker/solo.h), so that texts
 * share steps as they do on a server.
 *
 * Threads: one caller thread. */
#ifndef MU_WORKER_EMBEDDER_H
#define MU_WORKER_EMBEDDER_H

#include "shard/embed.h"
#include "worker/solo.h"

struct mu_embedder;

/* The solo must be fresh, and from now on is used through the embedder alone. */
enum mu_status mu_embedder_create(struct mu_solo *solo, const struct mu_model *model, struct mu_embedder **embedder_out,
                                  struct mu_err *err);
void mu_embedder_destroy(struct mu_embedder *e); /* NULL is fine */

/* The runs that follow are computed with this adapter of the solo's (from 1; 0: none) at this strength. */
void mu_embedder_adapt(struct mu_embedder *e, int adapter, float scale);

struct mu_embed_text {
    const int32_t *ids; /* [n], 1 to the context */
    size_t n;
};

/* put gets every text's vector, in order of the texts, as soon as those before it are there; what it returns other than
 * MU_OK ends the run. An error names the text, counted from 1. After an error only destroy is of use. */
enum mu_status mu_embedder_run(struct mu_embedder *e, const struct mu_embed *want, const struct mu_embed_text *texts,
                               size_t n_text,
                               enum mu_status (*put)(void *ctx, size_t at, const float *value, int n,
                                                     struct mu_err *err),
                               void *ctx, struct mu_err *err);

#endif
