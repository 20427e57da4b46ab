/* The KV pages of a gang as its scheduler sees them: who holds which, and which tokens a page that is full stands for, so
 * that a sequence that begins with the same tokens uses it instead of computing it again.
 *
 *            take                 publish (it is full)            release by the last holder
 *   free ────────► private ──────────────────────► published ◄──────────────────────────────► cached
 *     ▲               │                                           find + retain                  │
 *     └── release ────┘                                                                          │
 *     ▲                                                                                          │
 *     └───────────────── nothing is free: the page that was left alone longest is taken ─────────┘
 *
 * What a page holds is a function of its kind (adapter and strength, which rotation factors), of all tokens before it and
 * of its own. Every published page has an identity, a number that is never used again, so "all tokens before it" is one
 * number: the identity of the page before, 0 at the beginning. The hash of (kind, parent, ids) only finds candidates; all
 * three are compared, so no collision can share wrongly. A page that goes takes its identity with it: pages that followed
 * it are never found again, whatever the page's number is used for next.
 *
 * Order of forgetting: a sequence lets go of its last page first, and who holds a page holds all before it, so what
 * nobody holds is forgotten from the ends of sequences towards their beginnings: a system prompt that many conversations
 * began with outlives them.
 *
 * Memory: all of it at creation. Pure: no clock; the same calls give the same pages. Threads: one.
 * Rejected: a tree of token runs of any length (SGLang's RadixAttention): pages are the unit of the tables anyway, and a
 * hash from (parent, ids) needs no nodes that split. */
#ifndef MU_WORKER_KV_POOL_H
#define MU_WORKER_KV_POOL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "shard/plan.h"

struct mu_kv_pool;

struct mu_kv_kind { /* what decides about a page's contents besides tokens */
    uint16_t adapter;
    bool far; /* struct mu_step_seq */
    float adapter_scale;
};

/* By value: what lies between the fields of a struct is nobody's. */
bool mu_kv_kind_is(const struct mu_kv_kind *a, const struct mu_kv_kind *b);

enum { MU_KV_NOTHING = UINT32_MAX };

enum mu_status mu_kv_pool_create(uint32_t n_page, struct mu_kv_pool **pool_out, struct mu_err *err);
void mu_kv_pool_destroy(struct mu_kv_pool *p); /* NULL is fine */

/* How many pages nobody holds: free and cached. */
uint32_t mu_kv_pool_available(const struct mu_kv_pool *p);
uint32_t mu_kv_pool_cached(const struct mu_kv_pool *p);
uint32_t mu_kv_pool_holders(const struct mu_kv_pool *p, uint32_t page);

/* A private page, held once; one must be available. */
uint32_t mu_kv_pool_take(struct mu_kv_pool *p);
void mu_kv_pool_retain(struct mu_kv_pool *p, uint32_t page);
void mu_kv_pool_release(struct mu_kv_pool *p, uint32_t page);

/* The published page of these tokens after the page with identity parent; MU_KV_NOTHING: there is none. Nobody holds it
 * more than before: retain it before the next take. */
uint32_t mu_kv_pool_find(const struct mu_kv_pool *p, const struct mu_kv_kind *kind, uint64_t parent,
                         const int32_t ids[MU_PAGE_TOKENS]);
uint64_t mu_kv_pool_identity(const struct mu_kv_pool *p, uint32_t page); /* 0: not published */
/* A private page is full with these ids, or will be before anything reads it. Returns the identity of what it holds: its
 * own; or that of a page that holds the same already. If somebody holds that one, this one stays private, else it takes its
 * place, and the other is free: what follows is found only together with it, so it is to be forgotten as late. */
uint64_t mu_kv_pool_publish(struct mu_kv_pool *p, uint32_t page, const struct mu_kv_kind *kind, uint64_t parent,
                            const int32_t ids[MU_PAGE_TOKENS]);

/* What must always hold: lists and counts agree, every page is in exactly one state. For tests. */
bool mu_kv_pool_sound(const struct mu_kv_pool *p);

#endif
