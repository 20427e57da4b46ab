/* Which sequences run in the next step: continuous batching over a fixed number of slots and KV pages.
 *
 *              submit            admit: slot and pages            end id, max_tokens, context full
 *   (request) ───────► waiting ───────────────────────► active ─────────────────────────────────► (gone)
 *                         ▲                                │
 *                         └── preempt: pages ran out ──────┘   everything is computed again from ids: same tokens
 *
 * What an active sequence needs next follows from two numbers: ids known and ids fed to the ranks; one missing is a
 * decode, more are a prefill, and the last chunk of either samples. A decode waits for the id before it. Chunks of a
 * prefill do not wait for each other: the ranks run steps in order, so as many as there are stages may be in flight and
 * keep all of them busy.
 *
 * Speculation (sched_draft.c): a decode may be followed by guesses at the ids after it. Each is a sequence of one token of
 * the step, of the same slot; what they sample is taken as long as the guesses were right. Some are found in the ids so
 * far, others come from a draft model: which sequences it is asked for is decided here, its answers are an input.
 *
 * Pages are shared (kv_pool.h): a newcomer begins after the longest run of whole pages, from its first token on, that
 * somebody has computed already or is about to have computed; it waits for one that is being computed. So a sequence that
 * was preempted finds again what nobody else has needed meanwhile. Layers with a window may have pages of their own, of which a
 * sequence holds what it sees (sched_window.c).
 *
 * A request with a pooling (shard/embed.h) ends with its prompt's last chunk; nothing is sampled. Preempted, it begins
 * again at position 0 and so does its sum.
 *
 * Rules   decodes first, dealt out so that every pipeline stage has a step; then chunks of prompts under the token budget,
 *         of those that run and of newcomers, by whose turn it is (base/fair.h: priorities by weight, keys of a priority alike,
 *         counted in tokens that were computed) and of one key in order of arrival. Whoever's turn it is and for whom there is no
 *         room is waited for, so nobody starves; only a higher priority goes ahead of it, until that has had what its
 *         beginning weighs. A slot or pages for it are taken from sequences of a lower priority that has had its share.
 *         When pages run out for a sequence that runs, the lowest priority gives its own back first, of one priority the
 *         youngest, never one in flight. Who had to is spared as if it were urgent until it has got GRACE tokens further:
 *         it moves, however urgent the others are. A request that could never fit is refused at submission.
 * Pure    no clock, no I/O, no threads: the same calls give the same steps.
 * Memory  everything a step touches is sized at creation and submission; next and complete allocate nothing. */
#ifndef MU_WORKER_SCHEDULER_H
#define MU_WORKER_SCHEDULER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/fair.h"
#include "base/status.h"
#include "model/sampling.h"
#include "shard/embed.h"
#include "shard/plan.h"
#include "shard/step.h"
#include "worker/draft.h"

enum { MU_SCHED_MAX_END_IDS = MU_STEP_MAX_END_IDS };

struct mu_sched;

struct mu_sched_options {
    struct mu_serving serving;
    int n_stage;     /* of the gang */
    int n_vocab;     /* bounds every id */
    int max_waiting; /* requests that wait for a slot; more are refused */
    int n_ctx_short; /* a sequence that grows beyond it is computed again, marked `far`; 0: never */
    /* Which ids may come next: a bit an id (struct mu_step) after emitted[n] of a request, whenever it is sampled; a pure
     * function of these, since it is asked again after a replay. false: all of them, at every n. NULL: always all. */
    bool (*allow)(void *ctx, uint64_t request, const int32_t *emitted, size_t n, uint8_t *mask_out);
    void *allow_ctx;
    bool no_prefix_cache, no_speculation;
    int n_draft_seat; /* sequences that a draft model keeps in mind; 0: there is none */
    int n_draft_ctx;  /* ids that it has room for in one */
};

struct mu_sched_request { /* everything is copied */
    uint64_t id;
    const int32_t *prompt; /* [n_prompt], at least one */
    size_t n_prompt;
    const int32_t *emitted; /* [n_emitted] committed earlier: replayed with the prompt */
    size_t n_emitted;
    uint32_t max_tokens; /* emitted ones included */
    struct mu_sampling sampling;
    const struct mu_bias *bias; /* [n_bias] */
    size_t n_bias;
    const int32_t *end_ids; /* [n_end] */
    size_t n_end;
    struct mu_embed embed; /* with a pooling nothing is sampled: the prompt is read, then its vector is there */
    uint32_t adapter;      /* as in struct mu_step_seq */
    float adapter_scale;
    enum mu_priority priority;
    uint64_t key; /* among whose holders its priority's share is shared */
};

/* What became of a request in a step. */
struct mu_sched_event {
    uint64_t request;
    uint32_t position; /* of id among the emitted ids; without an id: how many there are */
    int32_t id;        /* -1: none */
    bool finished;     /* the scheduler has let go of it */
    /* MU_OK, MU_ENONFINITE, MU_EINVAL (no id is allowed), MU_ECANCELLED, MU_EINTERNAL (an id outside the vocabulary) */
    enum mu_status error;
    bool logprobs; /* it wants those of id: of the step's sequence number `seq` */
    uint32_t seq;
    struct mu_embed embed; /* pooling set: it is an embedding, finished; the state is that of slot, of n_tok tokens */
    uint32_t slot, n_tok;
    uint32_t n_cached; /* of its prompt's tokens, those that were in the cache when it began */
};

enum mu_status mu_sched_create(const struct mu_sched_options *opt, struct mu_sched **sched_out, struct mu_err *err);
void mu_sched_destroy(struct mu_sched *s); /* NULL is fine */

/* MU_OK; *finished_out: there is nothing left to do for it (what was emitted ends it) and it was not taken.
 * MU_EINVAL (ids, no prompt, known already), MU_ELIMIT (never fits, or too many wait), MU_ENOMEM. */
enum mu_status mu_sched_submit(struct mu_sched *s, const struct mu_sched_request *request, bool *finished_out,
                               struct mu_err *err);
/* MU_OK: it is gone, *event_out says so. MU_EAGAIN: it is in flight and ends with its step's event. MU_ENOENT. */
enum mu_status mu_sched_cancel(struct mu_sched *s, uint64_t request, struct mu_sched_event *event_out);

/* Most steps in flight: one a stage, and one more where there are several stages. */
int mu_sched_max_in_flight(const struct mu_sched *s);
int mu_sched_in_flight(const struct mu_sched *s);

/* Forms the next step into one made by mu_step_create with the same limits. false: nothing to run now, step_out is not
 * meaningful. */
bool mu_sched_next(struct mu_sched *s, struct mu_step *step_out);

/* With a draft model, before mu_sched_next: whose next ids it is to guess, at most n_draft_seat sequences; *read_out: how
 * many ids it may read in bulk meanwhile. Sequences that the next step decodes, where guesses pay and none that may be
 * better are found in what was said. ids are borrowed until the next call. The answers, in the same order, before any
 * other call; they hold until the sequence gets its next id. */
int mu_sched_ask_drafts(struct mu_sched *s, struct mu_draft_ask *ask_out, uint32_t *read_out);
void mu_sched_answer_drafts(struct mu_sched *s, const struct mu_draft_ask *ask, int n,
                            const struct mu_draft_took *took);

/* How long the oldest step in flight took, from when it was planned, or the one before it was done if that was later; just
 * before mu_sched_complete is told of it. An input like any other, never asked for: steps that decode, too, prefill so
 * much that a stream's tokens are at most two and a half times as far apart as without, and further where a crowd waits
 * (sched_step.c). Not told, a quarter of the budget. */
void mu_sched_took(struct mu_sched *s, uint32_t us);
/* The oldest step in flight is done; id is mu_step_result's. events_out has room for n_slot, in order of their positions
 * where a request has several; returns how many.
 * MU_EINTERNAL (an error of the caller) as -1: that step is not the oldest in flight. */
int mu_sched_complete(struct mu_sched *s, uint64_t number, const int32_t *id, struct mu_sched_event *events_out);

struct mu_sched_counts {
    uint32_t active, waiting, free_slots;
    uint32_t free_pages, cached_pages; /* free: those that nobody holds, the cached ones among them */
    uint64_t steps, preemptions;
    uint64_t drafted, drafts_taken;      /* ids guessed, and those of them that were right … */
    uint64_t model_drafted, model_taken; /* … of these a draft model's */
    uint64_t cached_tokens; /* that sequences found instead of computing them, also when they were let in again */
};
void mu_sched_count(const struct mu_sched *s, struct mu_sched_counts *counts_out);

#endif
