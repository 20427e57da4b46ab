/* Inside the synthetic model writer: random blocks (synth_blocks.c) and the vocabulary (synth_vocab.c). */
#ifndef MU_MODEL_SYNTH_PART_H
#define MU_MODEL_SYNTH_PART_H

#include "model/gguf_write.h"

enum { MU_SYNTH_TABLE = 4096, MU_SYNTH_MIN_VOCAB = 258 };

/* Random blocks of one type whose values have a mean of about 0 and a standard deviation of about sigma. */
struct mu_synth_source {
    uint64_t state; /* of splitmix64 */
    uint32_t type;
    uint16_t scale[256];               /* f16 block scales, both signs; MXFP4: exponents */
    uint16_t min_scale[256];           /* f16, what makes the mean 0 where there are minimums */
    uint8_t table[MU_SYNTH_TABLE * 4]; /* float types: values to draw from, in the type's bytes */
};

/* False where the type has no generator. */
bool mu_synth_source_init(struct mu_synth_source *s, uint32_t type, float sigma, uint64_t seed);
void mu_synth_source_blocks(struct mu_synth_source *s, void *out, size_t n_block);
uint64_t mu_synth_next(uint64_t *state);

/* Puts the tokenizer's keys for exactly n_vocab ≥ MU_SYNTH_MIN_VOCAB tokens: 256 bytes, merges, then BOS and EOS. */
enum mu_status mu_synth_put_vocab(struct mu_gguf_writer *w, int n_vocab, struct mu_err *err);

#endif
