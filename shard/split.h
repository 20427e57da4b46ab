/* The text of a split: stages separated by '/', ranks of a stage by ':', a rank is its weight.
 *
 *   "1"      one rank            "1:1"    one stage of two equal ranks (tensor parallel)
 *   "1/1"    two stages          "3:1/1"  a stage of two ranks with weights 3 and 1, then a stage of one rank
 *   "1@gpu0/1"  a stage on GPU 0, then one on processors       "1@gpu0:1@gpu1"  one stage of two GPUs
 *
 * Weights are relative speeds, for all ranks of all stages: layers are shared out among stages by the sum of their
 * ranks' weights, rows inside a stage by weight.
 *
 * A place may follow the weight: "@cpu" (as if there were none), "@gpuN" for GPU N of the rank's machine, or "@gpu" for
 * the one after the last that the text has named (0 at first). Two ranks on one GPU are possible, and slow.
 *
 * Behind a GPU "~n": the matrices of n of the stage's layers stay in the host's memory and come to the GPU in every step
 * ("1@gpu0~12"; plan.h has which). */
#ifndef MU_SHARD_SPLIT_H
#define MU_SHARD_SPLIT_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

enum {
    MU_MAX_RANKS = 64,
    MU_MAX_STAGES = 64,
    MU_MAX_GPUS = 16, /* of a machine */
    MU_ON_CPU = -1,   /* the device of a rank that has none */
    MU_MAX_STREAMED = 9999,
    /* the longest canonical text and its NUL: 64 weights of at most 14 characters, their joints, places of 11 */
    MU_SPLIT_TEXT = 1728
};

struct mu_split {
    int n_stage, n_rank;
    int stage_of[MU_MAX_RANKS];
    double weight[MU_MAX_RANKS]; /* > 0 */
    int device[MU_MAX_RANKS];    /* the GPU's number; MU_ON_CPU */
    int streamed[MU_MAX_RANKS];  /* layers that are streamed; 0 on processors */
};

/* Weights are decimal numbers in (0, 1e6] with at most 6 decimals, so that the canonical text says them exactly. The
 * error points at the character: "split '3:/1': position 3: expected a weight …". */
enum mu_status mu_split_parse(const char *text, struct mu_split *split_out, struct mu_err *err);
/* Canonical text; the weights are rounded to 6 decimals, "@cpu" is left out, GPUs have numbers. Parsed again it gives
 * the same plan in every process. */
void mu_split_format(const struct mu_split *split, char *buf, size_t buf_bytes);

/* Whether any rank is on a GPU, and how many are on processors. */
bool mu_split_has_gpu(const struct mu_split *split);
int mu_split_cpu_ranks(const struct mu_split *split);

#endif
