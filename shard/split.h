/* The text of a split: stages separated by '/', ranks of a stage by ':', a rank is its weight.
 *
 *   "1"      one rank            "1:1"    one stage of two equal ranks (tensor parallel)
 *   "1/1"    two stages          "3:1/1"  a stage of two ranks with weights 3 and 1, then a stage of one rank
 *
 * Weights are relative speeds, for all ranks of all stages: layers are shared out among stages by the sum of their
 * ranks' weights, rows inside a stage by weight. */
#ifndef MU_SHARD_SPLIT_H
#define MU_SHARD_SPLIT_H

#include <stddef.h>

#include "base/status.h"

enum {
    MU_MAX_RANKS = 64,
    MU_MAX_STAGES = 64,
    MU_SPLIT_TEXT = 1024 /* the longest canonical text and its NUL: 64 weights of at most 14 characters */
};

struct mu_split {
    int n_stage, n_rank;
    int stage_of[MU_MAX_RANKS];
    double weight[MU_MAX_RANKS]; /* > 0 */
};

/* Weights are decimal numbers in (0, 1e6] with at most 6 decimals, so that the canonical text says them exactly. The
 * error points at the character: "split '3:/1': position 3: expected a weight …". */
enum mu_status mu_split_parse(const char *text, struct mu_split *split_out, struct mu_err *err);
/* Canonical text; the weights are rounded to 6 decimals. Parsed again it gives the same plan in every process. */
void mu_split_format(const struct mu_split *split, char *buf, size_t buf_bytes);

#endif
