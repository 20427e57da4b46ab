/* The plan: which rank owns which rows of which layers. Pure arithmetic on the model's sizes and a split; every process
 * computes it for itself from the same inputs and gets the same answer.
 *
 * Every rank of a stage holds the whole residual stream; a rank owns contiguous ranges of output rows (the arithmetic
 * contract, section 4 of docs/design.md):
 *
 *   query heads   whole heads; KV-head groups where ranks ≤ n_kv_head, else single query heads with replicated KV
 *   d_model rows  of the attention output and FFN down matrices: groups of 16
 *   FFN hidden    gate and up rows: groups of 32
 *   vocabulary    blocks of 1,024 rows (of 16 below 16,384 rows)
 *
 * Shares are by weight, largest remainder, ties to the lower rank. Zero-width ranges are legal. */
#ifndef MU_SHARD_PLAN_H
#define MU_SHARD_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/types.h"
#include "model/adapter.h"
#include "model/model.h"
#include "shard/plan_gpus.h"
#include "shard/split.h"

struct mu_range {
    int begin, end; /* [begin, end) */
};
static inline int mu_range_len(struct mu_range r)
{
    return r.end - r.begin;
}

struct mu_plan_rank {
    int stage, local;         /* which stage, which place in it */
    struct mu_range heads;    /* query heads */
    struct mu_range kv_heads; /* that those heads read: [heads.begin/g, ceil(heads.end/g)); empty where heads is */
    struct mu_range model;    /* rows of d_model */
    struct mu_range ff;       /* rows of d_ff */
    struct mu_range vocab;    /* rows of the output matrix; empty but in the last stage */
    uint64_t weight_bytes;    /* of the file's rows that it loads, embedding included where it embeds */
};

struct mu_plan_stage {
    int first_rank, n_rank;
    struct mu_range layers;
};

struct mu_plan {
    int n_rank, n_stage;
    int leader; /* the first rank of the last stage */
    struct mu_split split;
    struct mu_plan_rank rank[MU_MAX_RANKS];
    struct mu_plan_stage stage[MU_MAX_STAGES];
};

/* MU_EINVAL where the model cannot be split so (more stages than layers, or more layers to stream than a stage has). */
enum mu_status mu_plan_build(const struct mu_model *model, const struct mu_split *split, struct mu_plan *plan_out,
                             struct mu_err *err);

/* The largest-remainder share of n units among n_part weights: begin[n_part + 1]. */
void mu_share(int n_units, const double *weight, int n_part, int *begin);

/* ---- layers that are streamed ----
 *
 * A rank on a GPU may leave the matrices of some of its layers, packed, in pinned memory of the host. They take turns in
 * MU_STREAM_ROOMS rooms on the GPU: while one layer computes, the next of them is on its way.
 *
 *   layers       0   1   2   3   4   5   6   7       "1@gpu0~4" of 8
 *   streamed         a       b       c       d       evenly, so that each has as long to come
 *   room             0       1       0       1       c goes to room 0 as soon as a has been used, a as soon as c has
 *
 * So fewer than three save nothing; one that is alone in its room stays there. Norms and biases stay on the GPU, and so do
 * the output matrix and the cache. */
enum { MU_STREAM_ROOMS = 2 };
/* Of n layers that are streamed: how many rooms they have; how many of them come in every step. */
static inline int mu_plan_stream_rooms(int n)
{
    return n < MU_STREAM_ROOMS ? n : MU_STREAM_ROOMS;
}
static inline int mu_plan_stream_moves(int n)
{
    return n <= MU_STREAM_ROOMS ? 0 : n < 2 * MU_STREAM_ROOMS ? 2 * (n - MU_STREAM_ROOMS) : n;
}
/* Which of the rank's streamed layers this one is (layer counts from the stage's first); -1: it stays on the GPU. */
static inline int mu_plan_streamed(const struct mu_plan *plan, int rank, int layer)
{
    long long n_layer = mu_range_len(plan->stage[plan->rank[rank].stage].layers), n = plan->split.streamed[rank];
    int before = (int)(layer * n / n_layer);
    return (layer + 1) * n / n_layer > before ? before : -1;
}

/* Rows of a layer's tensor that the rank holds: how many, and the first in the file (of one expert where there are several; a norm or bias is one row, whole on every
 * rank). */
int mu_plan_rows(const struct mu_model *model, const struct mu_plan_rank *rank, enum mu_tensor_id id, int *row0_out);

/* The biases of experts, a row an expert: which values of each row the rank holds, those of its rows. false: not such a
 * bias. */
bool mu_plan_bias_values(const struct mu_plan_rank *rank, enum mu_tensor_id id, struct mu_range *values_out);

/* What a gang is asked for, and the memory that a rank then takes. */
struct mu_serving {
    int n_ctx;       /* tokens one sequence may hold */
    int n_slot;      /* sequences active at once */
    uint32_t n_page; /* KV pages */
    int step_tokens; /* most tokens of one step; to the planner 0: as the split that it finds wants */
    int n_adapter;   /* LoRA adapters that sequences may name */
    int lora_rank;   /* the largest of theirs */
    int n_thread;    /* of a rank; 0: counted as one */
    int window; /* layers with a window of so many tokens keep their own pages (below); 0: all keep all of a sequence */
    enum mu_kv_type kv;
    /* Ranks on GPUs may compute the tokens of prompts roughly (kernels/device.h). Which these are, steps say, and nothing
     * but a token's place in its prompt decides it, so results do not depend on what else runs. */
    bool rough;
};
struct mu_rank_memory {
    uint64_t weights, kv, scratch; /* where it computes: on its GPU, else in the host's memory */
    uint64_t host, streamed;       /* of a rank on a GPU, the host's beside that: what layers that are streamed take */
    uint64_t mapped; /* of weights (on a GPU: of host): the embedding in the file, once for all ranks of a machine */
};
/* Most tokens of a step where nobody says otherwise. Processors' products are at full speed well below MU_STEP_TOKENS, and
 * each more takes memory on every rank; GPUs gain up to MU_STEP_GPU_TOKENS, where all ranks are on such. */
enum { MU_PAGE_TOKENS = 32, MU_STEP_TOKENS = 512, MU_STEP_GPU_TOKENS = 2048 };
int mu_plan_step_tokens(const struct mu_split *split);
/* Of all layers of the rank; of those with a window. */
uint64_t mu_plan_kv_page_bytes(const struct mu_model *model, const struct mu_plan *plan, int rank, enum mu_kv_type kv);
uint64_t mu_plan_kv_window_bytes(const struct mu_model *model, const struct mu_plan *plan, int rank,
                                 enum mu_kv_type kv);
void mu_plan_memory(const struct mu_model *model, const struct mu_plan *plan, int rank,
                    const struct mu_serving *serving, struct mu_rank_memory *memory_out);

/* Whether each of ranks [first, first + n) is on a GPU that no other of ranks [from, from + n_all) is on, so that they can have a
 * link (worker/device_link.h). */
bool mu_plan_own_gpus(const struct mu_plan *plan, int first, int n, int from, int n_all);

/* Which rank has the residual of the stage before for this one: one of that stage on the same machine, the load spread,
 * else the first of this one's own stage on the machine, which gets it over the network and hands it on, so that it
 * crosses once. node_of: the machine of each rank; NULL: all on one. -1: a rank of the first stage. */
int mu_plan_residual_from(const struct mu_plan *plan, const int *node_of, int rank);

/* How many tokens of prompts that have n_tok altogether a step should take where nothing decodes, at most `most`. With one
 * stage as many as may be. Several stages work at once only on several steps: with pieces of c tokens, in steps that cost
 * as much as fixed_tokens tokens beside (0: not known), n_tok / c + n_stage - 1 times fixed_tokens + c is least for
 * c = sqrt(n_tok * fixed_tokens / (n_stage - 1)). Whole pages, pieces alike. */
uint32_t mu_plan_chunk(uint64_t n_tok, int n_stage, uint32_t most, double fixed_tokens);

/* ---- pages of layers with a window ----
 *
 *   position     0                                  p - window + 1      p   p + n_tok
 *   full pages   [####][####][####][####][####][####][####][####][####][####]        layers that see everything
 *   window pages  gone  gone  gone  gone  gone  gone [####][####][####][####]        layers with a window
 *                                                    └──────── span ────────┘
 *
 * A model's layers are of two groups, those that see everything and those with its window, and a page is of one group: 32
 * tokens of all its layers. What no later token can see goes back to the group's pages, so a sequence of any length has at
 * most mu_plan_window_span of the window's. A model has one window; where layers had several, the widest would be right
 * for all. With as many window pages as full ones nothing would be won, so short contexts have one group. */

/* What layers of the model with a window see; 0: there are none. For struct mu_serving. */
int mu_plan_window(const struct mu_model *model);
/* Window pages that a sequence holds at most: those that the tokens of one step see. */
uint32_t mu_plan_window_span(const struct mu_serving *serving);
/* Window pages beside serving's n_page full ones: for each sequence of full length that these hold a span, and what one
 * more sees that begins where a sequence ended that is cached. 0: all layers are in one group. */
uint32_t mu_plan_window_pages(const struct mu_serving *serving);
/* The first page that a token at pos sees of a window. */
static inline uint32_t mu_plan_window_first(int window, uint32_t pos)
{
    return pos < (uint32_t)window ? 0 : (pos - (uint32_t)window + 1) / MU_PAGE_TOKENS;
}

/* Memory that a rank takes for adapters beside that: of its GPU's, where it is on one. adapters may be NULL. */
uint64_t mu_plan_adapter_bytes(const struct mu_model *model, const struct mu_plan *plan, int rank,
                               const struct mu_adapters *adapters);

/* ---- the planner ---- */

enum { MU_PLAN_MAX_NUMA = 32 };
struct mu_plan_node {
    char name[65];
    int n_core, n_numa;              /* that pay; NUMA nodes that get a rank each */
    int numa_core[MU_PLAN_MAX_NUMA]; /* [n_numa]: of n_core; zeros: as many on each */
    double read_gbps, int8_gops;     /* of its processors, measured; 0: unknown */
    double f32_gflops;               /* likewise */
    uint64_t memory_bytes;           /* free for Muster */
    struct mu_gpus gpus;
};
enum mu_device_wish { MU_DEVICE_AUTO, MU_DEVICE_CPU, MU_DEVICE_GPU };
enum { MU_PLAN_WHY = 320 };

/* Chooses a split for the nodes, and says why in a sentence (why, "" where there was nothing to choose between).
 *
 * On processors: one stage a node, in their order; one rank per NUMA node, with weights by their cores where that is the
 * only stage; layers by measured read bandwidth (by cores
 * where a node has no figure); a node whose memory is too small for its share gets fewer layers, and none at all (it
 * has no stage) where not even one fits.
 * On GPUs, one rank and one stage each: as few as hold the model with one sequence of the wanted context (as many pages
 * as serving says, where it does); layers by their bandwidth. Where all of them are too small, what is predicted to be
 * fastest for a request of 512 tokens and 128 new ones: all GPUs, with as many layers streamed from the host's memory as
 * must be; as many layers as fit, behind a stage of the processors with the rest; or processors alone.
 * adapters take memory beside the weights wherever a rank is, and decide serving's n_adapter and lora_rank; may be NULL.
 * MU_DEVICE_CPU leaves the GPUs out; MU_DEVICE_GPU takes GPUs alone.
 * MU_ENOMEM with the numbers where nothing fits; MU_EUNSUPPORTED where GPUs are wished for and there are none;
 * MU_EINVAL for no nodes. */
enum mu_status mu_plan_auto(const struct mu_model *model, const struct mu_adapters *adapters,
                            const struct mu_plan_node *node, int n_node, const struct mu_serving *serving,
                            enum mu_device_wish wish, struct mu_split *split_out, char why[MU_PLAN_WHY],
                            struct mu_err *err);
#endif
