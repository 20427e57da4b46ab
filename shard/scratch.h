/* Sizes of a rank's scratch: what the forward pass writes besides the cache, counted in one place for the plan and for
 * creation.
 * Private to shard/. */
#ifndef MU_SHARD_SCRATCH_H
#define MU_SHARD_SCRATCH_H

#include <stdbool.h>
#include <stddef.h>

#include "shard/plan.h"

/* The big buffers, in bytes. Reserved whole at creation, touched only as far as steps use them. */
struct mu_scratch_sizes {
    size_t x;             /* residual [step_tokens][d_model] f32 */
    size_t q, kv, attn;   /* queries, keys (= values), attention's output: my heads, f32 */
    size_t ff;            /* gate: my rows, f32 */
    size_t y;             /* what o and down produce: f32, whole with one rank, else my rows */
    size_t route, chosen; /* router's outputs; experts chosen (= their weights, their places) */
    size_t group;         /* places' groups by expert */
    int group_tokens;     /* whose inputs a member puts together for one expert; 0 without experts */
    unsigned group_forms; /* set of enum form: what experts read */
    size_t group_member;  /* bytes of those inputs, of one member: at most 1 MiB and a token's */
    size_t y_attn;        /* as y, in a parallel block */
    size_t part;          /* segments of one sequence of full length, apart: O, m, l of my heads, f32 */
    size_t act_f32, act_bf16, act_q, act_s, act_sum; /* inputs of matrices, whole width */
    size_t rope;                                     /* [n_rope][step_tokens][n_rot] f32 */
    size_t lora_u;                                   /* [3 matrices][step_tokens][lora_rank] f32; 0 without adapters */
    size_t gather;                                   /* parts of all ranks of the stage; 0 with one */
    size_t send;                                     /* one ticket's residual; 0 in the last stage */
    size_t logits;  /* my rows [step_tokens][my vocabulary] f32; 0 but in the last stage */
    size_t state;   /* [n_slot][d_model] f32; 0 but on the leader */
    size_t whole;   /* gathered rows, twice: as parts and as rows; 0 with one rank */
    size_t sampler; /* what a row that is wanted whole takes (struct sampler); 0 but in the last stage */
};

/* *bytes_out = n_tok · width · size, rounded up to whole cache lines; false on overflow. */
bool mu_scratch_product(size_t n_tok, int width, size_t size, size_t *bytes_out);
/* Takes `bytes` from a block, or only counts where there is none yet. */
static inline void *mu_scratch_carve(char *base, size_t *at, size_t bytes)
{
    void *p = base ? base + *at : NULL;
    *at += (bytes + 63) & ~(size_t)63;
    return p;
}
/* mu_plan_adapter_bytes, as a kernel table or a device packs. */
typedef size_t mu_mat_bytes_fn(uint32_t type, int n_row, int n_col);
uint64_t mu_plan_adapter_bytes_by(mu_mat_bytes_fn *by, const struct mu_model *model, const struct mu_plan *plan,
                                  int rank, const struct mu_adapters *adapters);
/* Hidden vectors of a token: experts used, or one. */
int mu_scratch_hidden(const struct mu_config *cfg);
/* Widest input of a matrix: d_model, n_head·d_head, hidden vectors of d_ff. */
int mu_scratch_max_col(const struct mu_config *cfg);
/* Rotation tables: layers with a window may have their own. */
int mu_scratch_n_rope(const struct mu_config *cfg);
/* false on overflow. */
bool mu_scratch_sizes(const struct mu_model *model, const struct mu_plan *plan, int rank,
                      const struct mu_serving *serving, struct mu_scratch_sizes *sizes_out);
/* Rows that n_member threads sample at once. */
int mu_scratch_samplers(const struct mu_serving *serving, int n_member);
/* What a serving rank touches of it: n_slot rows of logits, not step_tokens of them. */
uint64_t mu_scratch_bytes(const struct mu_model *model, const struct mu_plan *plan, int rank,
                          const struct mu_serving *serving);

#endif
