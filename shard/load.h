/* What loading is made of: the matrices' rows, and how they come out of the file. Private to shard/. */
#ifndef MU_SHARD_LOAD_H
#define MU_SHARD_LOAD_H

#include "shard/parts.h"

struct load_item {
    struct mu_mat *mat;
    const struct mu_gguf_tensor *tensor;
    int row0;    /* in the tensor */
    int layer;   /* counts from the stage's first; -1: of none */
    int group0;  /* row groups of the items before */
    bool staged; /* rows go through a member's buffers */
};

/* A pool member's buffers of one row group; empty where no item needs them. */
struct staging {
    uint8_t *raw, *packed; /* rows of the file one after another; quantised ones */
    float *row;
};

struct load {
    struct mu_shard *s;
    const struct mu_shard_options *opt;
    struct load_item *item;
    int n_item, n_group;
    bool kept;               /* the weights are in memory that outlives the process */
    struct staging *staging; /* [members] */
    uint64_t total_bytes;
    atomic_int next;
    atomic_int bad; /* index of an item with values or scales that are not finite, -1 */
    _Atomic uint64_t done_bytes;
};

enum { MU_LOAD_ALIGN = 64 };

/* Rows [row0, row1) of an item that is staged, at most one group, as its matrix has them; NULL where a value is not
 * finite. */
const uint8_t *mu_load_rows(const struct load *l, const struct load_item *item, int row0, int row1,
                            const struct staging *to);
/* To whoever watches. */
void mu_load_tell(const struct load *l);

#endif
