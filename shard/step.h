/* A step: what the leader tells every rank to do next, and the only input of the forward pass.
 *
 * Steps are numbered from 1 at the start of an epoch, with no gaps; each carries only what changed: slots freed, pages
 * appended to slots, the tokens to run. Every rank applies them in order, so all hold the same page tables. A slot is a
 * sequence's place in the gang. A sequence is in several steps in flight only with chunks of its prompt. In one step it
 * stands once, or several times in a row, each going on where the one before it ended: a decode, and guesses at what
 * follows it.
 *
 * On the wire (the doorbell connection, little-endian, base/bytes.h), see step.c. Decoding checks everything against
 * the serving limits. */
#ifndef MU_SHARD_STEP_H
#define MU_SHARD_STEP_H

#include <stdint.h>

#include "base/bytes.h"
#include "base/status.h"
#include "shard/plan.h"

enum mu_out_kind {
    MU_OUT_NONE,   /* no logits: a prefill chunk that is not the last */
    MU_OUT_SAMPLE, /* the next id after the last token */
    MU_OUT_LOGITS, /* logits of the last token, gathered whole on the leader */
    MU_OUT_ALL,    /* logits of every token of this chunk, likewise */
    /* States after the final norm, on the leader (shard/embed.h): */
    MU_OUT_STATE,     /* of the last token */
    MU_OUT_STATE_SUM, /* of all tokens so far: of this chunk, added to what is there from those before */
    MU_OUT_COUNT
};

struct mu_step_seq {
    uint32_t slot;
    uint32_t pos0;  /* position of its first token here */
    uint32_t n_tok; /* tokens, at ids[tok_off …] */
    uint32_t tok_off;
    uint8_t out; /* enum mu_out_kind */
    /* The whole sequence, not only what is fed by now, is longer than the model's n_ctx_short: 1, it turns by the long
     * factors. All positions of a slot were written with the same value, or are written again. */
    uint8_t far;
    /* sampling of the id at position pos0 + n_tok (MU_OUT_SAMPLE) */
    float temperature; /* 0: greedy */
    uint32_t top_k;    /* 0: off */
    float top_p;       /* 1: off */
    uint64_t seed;
    uint16_t adapter;    /* 0: none; else its place among the gang's, from 1 */
    float adapter_scale; /* its strength is multiplied by it */
};

struct
    mu_step_page { /* page becomes the next page of slot; slots that begin alike share pages, which none writes again */
    uint32_t slot, page;
};

struct mu_step {
    uint64_t number;
    uint32_t n_free, n_page, n_seq, n_tok;
    uint32_t *free_slot;       /* applied first: these slots are empty again */
    struct mu_step_page *page; /* then these */
    struct mu_step_seq *seq;   /* then this runs */
    int32_t *ids;              /* [n_tok] */
};

/* A step with room for the limits; one allocation, freed with mu_free. */
enum mu_status mu_step_create(const struct mu_serving *serving, struct mu_step **step_out, struct mu_err *err);
void mu_step_encode(const struct mu_step *step, struct mu_writer *w);
/* Into a step made by mu_step_create with the same limits. MU_EPROTO says which field is off. n_vocab bounds the
 * ids. */
enum mu_status mu_step_decode(struct mu_reader *r, const struct mu_serving *serving, int n_vocab,
                              struct mu_step *step_out, struct mu_err *err);

#endif
