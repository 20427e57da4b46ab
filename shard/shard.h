/* One rank's share of a model, and the one forward pass of Muster.
 *
 * A shard holds its rows packed for the kernels, its KV pages, and scratch sized at creation: a step allocates nothing.
 * With one rank and nothing to exchange it is the whole model in one process, the oracle for every split.
 *
 * A step of a layer, tensor parallel over the ranks of its stage (sizes in bytes a token; q8 = int8 and a scale per 32,
 * 1.125 bytes a value):
 *
 *   residual x (whole, f32, on every rank)
 *     ├─ norm → quantise → q,k,v of my heads → rotate → cache → attention → quantise ─ gather ① q8 (n_head·d_head)
 *     ├─ output matrix, my rows of d_model → bf16 ─ gather ② → x += whole
 *     ├─ norm → quantise → gate, up: my rows of d_ff → silu·up → quantise ─ gather ③ q8 (d_ff)
 *     └─ down matrix, my rows of d_model → bf16 ─ gather ④ → x += whole
 *
 * Float matrices take f32 (bf16 for BF16 inputs) in ① and ③ and add f32 in ② and ④ (contract C4). Between stages x
 * travels as f32.
 *
 * Non-finite values: a quantiser or norm that meets one poisons its vector with NaN, which reaches the logits of that
 * sequence only; its sample is then -2.
 *
 * A rank that the split puts on a device (kernels/device.h) does the same there, in the same formats: stages and ranks
 * of a stage may be on either.
 *
 * Threads: created and stepped by one thread, member 0 of its pool; only that thread calls the comm ops, or the
 * device's. */
#ifndef MU_SHARD_SHARD_H
#define MU_SHARD_SHARD_H

#include "base/numa.h"
#include "base/pool.h"
#include "base/record.h"
#include "model/model.h"
#include "shard/plan.h"
#include "shard/step.h"

/* What the pass needs from outside; the worker fills it from transport/. All waits have deadlines and their errors name
 * the rank waited for. NULL functions where there is nobody to talk to. */
struct mu_shard_comm {
    void *ctx;
    /* Every rank of my stage holds buf[off[i], off[i] + len[i]) for its own i; afterwards all hold all. off and len
     * have n_rank entries of the stage; lens may be 0. Bytes. */
    enum mu_status (*gather)(void *ctx, void *buf, const size_t *off, const size_t *len, struct mu_err *err);
    /* The same in two, number i of MU_SHARD_GATHERS: begun on every rank in the same order, and ended in that order. After
     * a failure of either none is under way. */
    enum mu_status (*gather_begin)(void *ctx, int i, void *buf, const size_t *off, const size_t *len,
                                   struct mu_err *err);
    enum mu_status (*gather_end)(void *ctx, int i, struct mu_err *err);
    /* The residual from the stage before; matches sends by order. */
    enum mu_status (*recv)(void *ctx, void *buf, size_t len, struct mu_err *err);
    /* Starts sending to the stage after; buf stays untouched until the send `ticket` is waited for. */
    enum mu_status (*send)(void *ctx, const void *buf, size_t len, int ticket, struct mu_err *err);
    enum mu_status (*send_wait)(void *ctx, int ticket, struct mu_err *err);
    /* 1: that send is complete (and need not be waited for), 0: not yet, -1: failed, err filled. */
    int (*send_test)(void *ctx, int ticket, struct mu_err *err);
    /* Cheap; called at least every 50 µs or so while computing with sends pending. */
    void (*progress)(void *ctx);
};
enum { MU_SHARD_TICKETS = 8 }; /* sends in flight at once, tickets 0 … 7 */
enum { MU_SHARD_GATHERS = 2 };

/* Of a rank's device to others': of the stage, for its exchanges; of this stage and the one before, and the one after, for
 * residuals. */
enum mu_shard_device_link { MU_LINK_STAGE, MU_LINK_BEFORE, MU_LINK_AFTER, MU_SHARD_LINKS };

struct mu_shard_options {
    const struct mu_model *model;
    const struct mu_plan *plan;
    int rank;
    struct mu_serving serving;
    struct mu_pool *pool;       /* borrowed */
    const struct mu_numa *numa; /* where its memory is to be (base/numa.h), borrowed as long; NULL: wherever it comes */
    struct mu_shard_comm comm;
    /* The stage's exchanges go over links that are slow beside memory: chunks of a prompt go in two halves by turns
     * (halves.c). The same on all ranks of a stage. */
    bool slow_links;
    struct mu_rank_record *record;                                               /* may be NULL */
    void (*load_progress)(uint64_t done_bytes, uint64_t total_bytes, void *ctx); /* may be NULL; calling thread */
    void *load_ctx;
    int kept_fd;       /* memory that outlives the process (kept.c), borrowed until mu_shard_create returns; 0: none */
    const char *whose; /* its weights, in the log: "the draft model's "; NULL: the model's; borrowed as kept_fd */
    const struct mu_adapters *adapters; /* may be NULL; decide serving's n_adapter and lora_rank */
    /* Of a rank that the plan's split puts on a device: */
    const struct mu_device_ops *device_ops; /* NULL: those of mu_device_load */
    int device_timeout_ms;                  /* of a wait for it; 0: 30 s, as a transport's */
    /* MU_DEVICE_LINK_ID bytes that all ranks of a link got, all of them on devices of their own: their talks go between
     * these. NULL: through comm. Borrowed until mu_shard_create returns. */
    const unsigned char *device_link[MU_SHARD_LINKS];
};

struct mu_device_ops; /* kernels/device.h */
struct mu_shard;

/* Loads and packs the rank's rows with all threads of the pool. MU_ENOMEM says what did not fit; MU_EFORMAT names the
 * tensor with a non-finite scale. */
enum mu_status mu_shard_create(const struct mu_shard_options *opt, struct mu_shard **shard_out, struct mu_err *err);
void mu_shard_destroy(struct mu_shard *s);

/* Which part of what it has touched so far of weights, cache and scratch is on the options' NUMA node, 0 … 1, by a sample;
 * -1: there is none, or nobody knows. */
double mu_shard_numa_share(const struct mu_shard *s);

enum { MU_SAMPLE_NONE_ALLOWED = -3 };
/* On every rank of the last stage `id` is filled; on the leader logits and states too. Valid until the next step. */
struct mu_step_result {
    /* [n_seq]: the sampled id; -1: not asked for; -2: the logits (leader: states) are not finite;
     * MU_SAMPLE_NONE_ALLOWED: adjustments and mask leave no id at all */
    const int32_t *id;
    const struct mu_logprobs *logprobs; /* [n_seq]: of the sampled ids, where they are asked for; leader only */
    const float *logits;                /* [n_logit_row][n_vocab] in order of sequences and tokens; leader only */
    int n_logit_row;
    const float *state; /* [n_slot][d_model]: what MU_OUT_STATE and MU_OUT_STATE_SUM left for each slot; leader only */
};

/* Runs one step on this rank: applies its page changes, receives, computes, sends, samples. Steps must come in order.
 * An error means that the gang is lost. */
enum mu_status mu_shard_step(struct mu_shard *s, const struct mu_step *step, struct mu_step_result *result_out,
                             struct mu_err *err);

/* Moves the sends of earlier steps along. 1: none is pending, the rank may sleep until its next step; 0: call again
 * soon; -1: failed, the gang is lost. */
int mu_shard_idle(struct mu_shard *s, struct mu_err *err);

/* After a step that failed, where the process goes on: other ranks need not wait for this one's device any more. */
void mu_shard_leave(struct mu_shard *s);

/* Seconds spent since the last call, by what: for `muster bench`. Attention and sampling are parts of compute_s; in the
 * other three the waiting for a rank that is not there yet is included. */
struct mu_shard_times {
    double compute_s, exchange_s, recv_s, send_s;
    double attention_s, sampling_s;
};
void mu_shard_take_times(struct mu_shard *s, struct mu_shard_times *times_out);

/* Each talk with other ranks: begin and end by this machine's monotonic clock, which all its processes share. The n-th
 * exchange of every rank of a stage is the same one, and so the n-th send and receive along a pair of ranks: beside each
 * other the traces of all ranks tell waiting from moving bytes. */
struct mu_shard_span {
    int64_t begin_ns, end_ns;
    int32_t op; /* MU_OP_EXCHANGE, MU_OP_RECV, MU_OP_SEND */
};
struct mu_shard_trace {
    struct mu_shard_span *span; /* [max]; when it is full no more are noted */
    size_t n, max;
};
/* Between steps. NULL, as at the start: nothing is noted. Borrowed until the next call. */
void mu_shard_set_trace(struct mu_shard *s, struct mu_shard_trace *trace);

#endif
