/* A random model of any shape, for benchmarks: right sizes, types and a byte-level vocabulary; weights from a seeded
 * generator scaled so that activations stay tame. Streams tensor by tensor; needs little memory. */
#ifndef MU_MODEL_SYNTH_H
#define MU_MODEL_SYNTH_H

#include "base/status.h"
#include "kernels/types.h"

struct mu_synth {
    const char *arch; /* one of mu_arch_names(); NULL: "llama" */
    int n_layer, n_head, n_kv_head, d_head, d_model, d_ff, n_vocab, n_ctx;
    int n_expert, n_expert_used; /* 0: none */
    int n_rot;                   /* dimensions of a head that turn; 0: all */
    int window;                  /* where the family has one; 0: none */
    int n_ctx_short;   /* where the family has two sets of rotation factors: contexts beyond it use the long one; with
                      * YaRN: its original context; 0: none */
    float yarn_factor; /* 0: none */
    float rope_freq_base;
    uint32_t type;        /* of the matrices; widths must fit its block */
    uint32_t output_type; /* of output/embedding; as type where it fits */
    int tied;
    uint64_t seed;
    /* The layers from n_early on add `later` times as much to the residual as they would; 0: all layers are alike. With
     * n_layer = n_early the same numbers give a model of the first layers alone, with the same embedding and output: one
     * that says mostly what the larger one says, the more so the smaller `later` is. */
    int n_early;
    float later;
};

/* progress(done_bytes, total_bytes, ctx) may be NULL. */
enum mu_status mu_synth_write(const struct mu_synth *s, const char *path, void (*progress)(uint64_t, uint64_t, void *),
                              void *ctx, struct mu_err *err);

#endif
