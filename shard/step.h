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
#include "model/sampling.h"
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
    uint8_t rough; /* 1: tokens of a prompt that ranks on GPUs may compute roughly (kernels/device.h); see plan.h */
    /* Sampling of the id at position pos0 + n_tok (MU_OUT_SAMPLE). What depends on the ids before it (repeat_last_n,
     * min_tokens) is resolved by the leader into adjustments and does not travel. */
    struct mu_sampling sampling;
    uint32_t n_adjust, adjust_off; /* adjustments, at adjust[adjust_off …] */
    uint32_t mask;                 /* ids that are allowed: 0: all; else the place of its mask, from 1 */
    uint16_t adapter;              /* 0: none; else its place among the gang's, from 1 */
    float adapter_scale;           /* its strength is multiplied by it */
};

enum { MU_ADJUST_SEEN = 1, MU_ADJUST_FORBID = 2 };
struct mu_step_adjust { /* what the ids so far, and the request, mean for one id of a sequence; ids ascend */
    int32_t id;
    float bias;           /* added to its logit */
    uint32_t n_generated; /* how often it was generated, as far as that is penalised */
    uint8_t flags;        /* MU_ADJUST_SEEN: in the window of repeat_penalty; MU_ADJUST_FORBID: it cannot come */
};
/* Ids that a sequence's adjustments may have besides those of its context. */
enum { MU_STEP_MAX_END_IDS = 64, MU_STEP_MORE_ADJUSTS = MU_MAX_BIASES + MU_STEP_MAX_END_IDS };

struct
    mu_step_page { /* page becomes the next page of slot. Slots that begin alike share pages; none writes them again */
    uint32_t slot, page;
};

/* page holds the positions from at · MU_PAGE_TOKENS on of slot, in layers with a window that have pages of their own
 * (plan.h). A table of them has gaps: what no token sees any more is not told, and may be another slot's by now. */
struct mu_step_window {
    uint32_t slot, at, page;
};

struct mu_step {
    uint64_t number;
    uint32_t n_free, n_page, n_window, n_seq, n_tok;
    uint32_t *free_slot;       /* applied first: these slots are empty again */
    struct mu_step_page *page; /* then these */
    struct mu_step_window *window;
    struct mu_step_seq *seq; /* then this runs */
    int32_t *ids;            /* [n_tok] */
    uint32_t n_adjust, n_mask;
    struct mu_step_adjust *adjust; /* [n_adjust], sequence after sequence */
    uint8_t *mask;                 /* [n_mask][mask_bytes]: bit id % 8 of byte id / 8 is 1 where id is allowed */
    size_t mask_bytes;
};

/* Most window pages that a step tells. */
uint32_t mu_step_max_window(const struct mu_serving *serving);
/* Most adjustments of one sequence. */
uint32_t mu_step_max_adjust(const struct mu_serving *serving, int n_vocab);
/* A step with room for the limits; one allocation, freed with mu_free. */
enum mu_status mu_step_create(const struct mu_serving *serving, int n_vocab, struct mu_step **step_out,
                              struct mu_err *err);
/* Nothing of what was in it. */
void mu_step_clear(struct mu_step *step);
/* The mask of a sequence of the step, which gets one if it has none: to be filled by the caller. */
uint8_t *mu_step_mask(struct mu_step *step, struct mu_step_seq *seq);
/* The most bytes of a step on the wire; SIZE_MAX where that does not fit. */
size_t mu_step_max_bytes(const struct mu_serving *serving, int n_vocab);
void mu_step_encode(const struct mu_step *step, struct mu_writer *w);
/* Into a step made by mu_step_create with the same limits. MU_EPROTO says which field is off. n_vocab bounds the
 * ids, and is that of mu_step_create. */
enum mu_status mu_step_decode(struct mu_reader *r, const struct mu_serving *serving, int n_vocab,
                              struct mu_step *step_out, struct mu_err *err);

#endif
