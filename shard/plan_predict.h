/* How long a plan's steps should take: what each rank reads and computes at its node's measured speeds, and what goes
 * over the links between them.
 *
 *   stage 0: ranks compute, 4 exchanges a layer ──hop──► stage 1: … ──► stage S-1: … the ids
 *       ▲                                                                                │
 *       └──────────────────────────────── the next token ◄───────────────────────────────┘ back
 *
 * Shares of what processors and GPUs were measured at are constants of plan_predict.c, with where they are from. Not
 * in it: norms, sampling, and threads that meet. */
#ifndef MU_SHARD_PLAN_PREDICT_H
#define MU_SHARD_PLAN_PREDICT_H

#include "shard/plan.h"

/* One way: what an empty message takes, and each end's speed with long ones, of both directions each. gbps 0: not
 * measured, taken as 5 µs at 10 GB/s inside a node, 100 µs at 1 Gbit/s between two. */
struct mu_plan_link {
    double us, gbps;
};
/* Whether it is so slow beside memory that chunks go in halves (shard/halves.c): shared memory takes 1 to 5 us. */
static inline bool mu_plan_link_slow(struct mu_plan_link l)
{
    return l.us >= 15;
}
enum { MU_HALVES_TOKENS = 32 }; /* that such a chunk has at least: below, each half reads all weights for too little */
struct mu_plan_links {
    int n_node;
    const struct mu_plan_link *at; /* [n_node][n_node], symmetric; [i][i]: between ranks of node i */
    const int *machine; /* [n_node]: which machine, with its network card, it is a part of; NULL: one of its own */
};

struct mu_plan_step {
    int n_tok, n_row; /* tokens, and rows of logits among them */
    double n_seen;    /* positions that a token attends to, on average */
    bool is_chunk;    /* of a prompt: goes in halves where links are slow */
};
struct mu_step_times { /* ms */
    bool known;        /* every node of the plan was measured; else nothing is */
    double stage[MU_MAX_STAGES], read[MU_MAX_STAGES], compute[MU_MAX_STAGES], exchange[MU_MAX_STAGES];
    double hop[MU_MAX_STAGES], busy[MU_MAX_STAGES]; /* from the stage before: all of it; the link's time alone */
    double back;                                    /* from the leader to the first stage */
};
/* One step, rank i on node_of[i]. stage is the slowest rank's, exchanges in it. links may be NULL: not measured. */
void mu_plan_predict_step(const struct mu_model *model, const struct mu_plan *plan, const struct mu_plan_node *node,
                          const int *node_of, const struct mu_plan_links *links, const struct mu_plan_step *step,
                          struct mu_step_times *times_out);

/* n_step steps that are alike, in order; each waits for the id of the one n_flight before it (0: for none, as chunks of a
 * prompt), and a stage works on one at a time. */
double mu_plan_predict_run(const struct mu_plan *plan, const struct mu_step_times *t, int n_step, int n_flight);

struct mu_prediction {
    double decode_ms, prefill_ms_per_token; /* one stream, short context; 0: unknown */
    double decode_read_ms, decode_compute_ms, decode_wire_ms;
};
/* A decode, and a chunk of 512 tokens of a prompt: chunks follow each other, so the slowest stage or hop counts. */
void mu_plan_predict(const struct mu_model *model, const struct mu_plan *plan, const struct mu_plan_node *node,
                     const int *node_of, const struct mu_plan_links *links, struct mu_prediction *prediction_out);

#endif
