/* A gang inside one process: the ranks are threads with the local transport. For `run`, `logits`, `perplexity`, `bench`
 * and tests: no daemon, no network, the same forward pass.
 *
 * The caller plays the leader: it fills steps and gets results. Threads: one caller thread. */
#ifndef MU_WORKER_SOLO_H
#define MU_WORKER_SOLO_H

#include "shard/shard.h"

struct mu_solo;

struct mu_solo_options {
    const struct mu_model *model;
    struct mu_split split;
    int n_thread;              /* per rank on processors; mu_plan_threads */
    struct mu_serving serving; /* n_page 0: n_slot × pages of n_ctx */
    int pin;                   /* a core a thread, where there are enough */
    void (*load_progress)(uint64_t done_bytes, uint64_t total_bytes, void *ctx);
    void *load_ctx;
    const struct mu_adapters *adapters; /* may be NULL; borrowed */
    bool slow_links;                    /* as if ranks were on different machines (struct mu_shard_options) */
};

enum mu_status mu_solo_open(const struct mu_solo_options *opt, struct mu_solo **solo_out, struct mu_err *err);
void mu_solo_close(struct mu_solo *s);
const struct mu_plan *mu_solo_plan(const struct mu_solo *s);
const struct mu_serving *mu_solo_serving(const struct mu_solo *s);

/* Low level: one step on all ranks; the result is the leader's. */
enum mu_status mu_solo_step(struct mu_solo *s, const struct mu_step *step, struct mu_step_result *result_out,
                            struct mu_err *err);

/* One sequence after another, slots managed here: appends n ids to the sequence in `slot` in chunks of at most
 * step_tokens. Layers with a window have window pages where serving.window is set: each slot the same number of them, used
 * in turn (the first slots, where these are too few for all). With short and long rotation factors the length after this call decides for all of it. out applies to the last chunk (MU_OUT_ALL to all chunks). on_logits (may be NULL) gets each logits row
 * in order of position. *id_out (may be NULL): the sample. */
enum mu_status mu_solo_feed(struct mu_solo *s, int slot, const int32_t *ids, size_t n, enum mu_out_kind out,
                            const struct mu_sampling *sampling,
                            void (*on_logits)(const float *row, uint32_t position, void *ctx), void *ctx,
                            int32_t *id_out, struct mu_err *err);
/* The next decode of many slots in one step: ids[i] is appended to slots[i]; next_out[i] is sampled. */
enum mu_status mu_solo_decode(struct mu_solo *s, const int *slots, const int32_t *ids, int n,
                              const struct mu_sampling *sampling, int32_t *next_out, struct mu_err *err);
/* The next decode of one slot with guesses at what follows, in one step: ids[0] is appended, then each of ids[1 … n) as long
 * as it is what was sampled before it. next_out[0 … *n_out) is what was sampled, the guesses that were right and one more id;
 * *n_out ids were appended. n is at most n_slot; guesses beyond the model's short context are left out. */
enum mu_status mu_solo_guess(struct mu_solo *s, int slot, const int32_t *ids, int n, const struct mu_sampling *sampling,
                             int32_t *next_out, int *n_out, struct mu_err *err);
void mu_solo_reset(struct mu_solo *s, int slot); /* forgets the sequence; its pages are free with the next step */
/* Forgets what follows the first n tokens of the sequence; n of its position or above changes nothing. The pages stay
 * with the slot and are written again. A sequence that turned by the model's long rotation factors and would be a short
 * one again is forgotten whole, as is one of whose window pages too few are left. Returns the position after it. */
uint32_t mu_solo_truncate(struct mu_solo *s, int slot, uint32_t n);
/* What comes next in the slot is computed with this adapter (from 1; 0: none) at this strength: of a sequence from its
 * first id on, since the cache of one adapter is none of another's. */
void mu_solo_adapt(struct mu_solo *s, int slot, int adapter, float scale);
/* What is sampled from the slot's sequence has these adjustments, which must know all of its ids, and this mask (struct
 * mu_step); both are borrowed until others are set, and may be NULL. */
struct mu_adjusts;
void mu_solo_constrain(struct mu_solo *s, int slot, const struct mu_adjusts *adjusts, const uint8_t *mask);
uint32_t mu_solo_position(const struct mu_solo *s, int slot);
/* The threads of the only rank, for somebody who computes between its steps; its member 0 is the caller. */
struct mu_pool *mu_solo_pool(struct mu_solo *s);
/* A rank's share, for its times and traces; only between steps, and never to step it. */
struct mu_shard *mu_solo_shard(struct mu_solo *s, int rank);

#endif
