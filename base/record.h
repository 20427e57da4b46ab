/* What a rank is doing, in memory that its worker reads: one record a rank, in a file mapped shared by both.
 *
 * `breath` counts up ten times a second from a thread of its own: a rank that is stopped (SIGSTOP) or gone stops breathing. `progress` counts up whenever the compute
 * thread gets something done. `waiting_on` names the rank whose data is being waited for: when a gang stalls, the culprit is whoever is busy and not waiting.
 * All fields are relaxed atomics: a reader wants a recent value, not a consistent snapshot. */
#ifndef MU_BASE_RECORD_H
#define MU_BASE_RECORD_H

#include <stdatomic.h>
#include <stdint.h>

enum mu_rank_op {
    MU_OP_STARTING,
    MU_OP_LOADING,
    MU_OP_IDLE,
    MU_OP_COMPUTE,
    MU_OP_EXCHANGE,
    MU_OP_RECV,
    MU_OP_SEND,
    MU_OP_PLAN
};

enum { MU_RECORD_NOBODY = -1 };

struct mu_rank_record { /* 128 bytes, 64-aligned */
    _Alignas(64) _Atomic uint64_t breath;
    _Atomic uint64_t progress;
    _Atomic uint64_t step;
    _Atomic uint64_t load_done_bytes;
    _Atomic uint64_t load_total_bytes;
    _Atomic int32_t pid;
    _Atomic int32_t layer;
    _Atomic int32_t op;         /* enum mu_rank_op */
    _Atomic int32_t waiting_on; /* global rank, MU_RECORD_NOBODY */
    _Atomic int32_t ready;      /* 1: loaded and connected */
    char pad0[4];
    /* What its steps have taken so far (shard/shard.h); attention and sampling are parts of compute. */
    _Atomic uint64_t compute_ns, attention_ns, sampling_ns, exchange_ns, recv_ns, send_ns;
    _Atomic int32_t numa_permille; /* 1 + how much of its memory is on its NUMA node, of 1000; 0: not known */
    char pad[12];
};
_Static_assert(sizeof(struct mu_rank_record) == 128, "the worker and its ranks map the same layout");

static inline void mu_record_op(struct mu_rank_record *r, enum mu_rank_op op, int waiting_on)
{
    atomic_store_explicit(&r->op, (int32_t)op, memory_order_relaxed);
    atomic_store_explicit(&r->waiting_on, (int32_t)waiting_on, memory_order_relaxed);
}
static inline void mu_record_tick(struct mu_rank_record *r)
{
    atomic_fetch_add_explicit(&r->progress, 1, memory_order_relaxed);
}

#endif
