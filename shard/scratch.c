/* See scratch.h. Kept apart from plan.c, which is about who owns what. */
#include "shard/scratch.h"

#include "base/alloc.h"
#include "kernels/kernels.h"
#include "shard/parts.h"

/* So much of one expert's inputs stays in a core's L2 cache beside its weights. */
enum { GROUP_BYTES = 1 << 20 };

int mu_scratch_hidden(const struct mu_config *cfg)
{
    return cfg->n_expert > 0 ? cfg->n_expert_used : 1;
}

int mu_scratch_max_col(const struct mu_config *cfg)
{
    int heads = cfg->n_head * cfg->d_head;
    int hidden = mu_scratch_hidden(cfg) * cfg->d_ff;
    int widest = cfg->d_model > hidden ? cfg->d_model : hidden;
    return heads > widest ? heads : widest;
}

int mu_scratch_n_rope(const struct mu_config *cfg)
{
    return cfg->rope_local_base > 0 ? 2 : 1;
}

bool mu_scratch_product(size_t n_tok, int width, size_t size, size_t *bytes_out)
{
    size_t n;
    if (!mu_mul_size(n_tok, (size_t)width, &n) || !mu_mul_size(n, size, &n) || !mu_add_size(n, 63, &n)) return false;
    *bytes_out = n & ~(size_t)63;
    return true;
}

/* What the experts of these layers read, and how many tokens of it a member's buffer holds. */
static void group_sizes(const struct mu_model *model, struct mu_range layers, struct mu_scratch_sizes *z)
{
    size_t d = (size_t)model->cfg.d_model, bytes = 0;
    for (int l = layers.begin; l < layers.end; l++)
        for (int id = MU_T_GATE; id <= MU_T_UP; id++)
            if (model->layer[l][id]) z->group_forms |= mu_form_of(model->layer[l][id]->type);
    if (z->group_forms & FORM_F32) bytes += d * sizeof(float);
    if (z->group_forms & FORM_BF16) bytes += d * sizeof(uint16_t);
    if (z->group_forms & FORM_Q8) bytes += d + d / MU_Q_BLOCK * (sizeof(float) + 2 * sizeof(int16_t));
    size_t most = bytes ? GROUP_BYTES / bytes : 0;
    z->group_tokens = most < 1 ? 1 : most > EXPERT_TOKENS ? EXPERT_TOKENS : (int)most;
    z->group_member = (size_t)z->group_tokens * bytes;
}

bool mu_scratch_sizes(const struct mu_model *model, const struct mu_plan *plan, int rank,
                      const struct mu_serving *serving, struct mu_scratch_sizes *sizes_out)
{
    const struct mu_config *cfg = &model->cfg;
    const struct mu_plan_rank *r = &plan->rank[rank];
    size_t n_tok = (size_t)serving->step_tokens;
    bool alone = plan->stage[r->stage].n_rank == 1, last = r->stage == plan->n_stage - 1;
    int max_col = mu_scratch_max_col(cfg), vocab = mu_range_len(r->vocab);
    struct mu_scratch_sizes z = {0};
    bool ok = mu_scratch_product(n_tok, cfg->d_model, 4, &z.x) &&
              mu_scratch_product(n_tok, mu_range_len(r->heads) * cfg->d_head, 4, &z.q) &&
              mu_scratch_product(n_tok, mu_range_len(r->kv_heads) * cfg->d_head, 4, &z.kv) &&
              mu_scratch_product(n_tok, mu_range_len(r->ff) * mu_scratch_hidden(cfg), 4, &z.ff) &&
              mu_scratch_product(n_tok, alone ? cfg->d_model : mu_range_len(r->model), 4, &z.y) &&
              mu_scratch_product(n_tok, alone ? cfg->d_model : max_col, 4, &z.act_f32) &&
              mu_scratch_product(n_tok, max_col, 2, &z.act_bf16) && mu_scratch_product(n_tok, max_col, 1, &z.act_q) &&
              mu_scratch_product(n_tok, max_col / 32 + 1, 4, &z.act_s) &&
              mu_scratch_product(n_tok, max_col / 32 + 1, 4, &z.act_sum) &&
              mu_scratch_product(n_tok, cfg->n_rot * mu_scratch_n_rope(cfg), 4, &z.rope);
    if (ok && cfg->n_expert > 0) {
        ok = mu_scratch_product(n_tok, cfg->n_expert, 4, &z.route) &&
             mu_scratch_product(n_tok, cfg->n_expert_used, 4, &z.chosen) &&
             mu_scratch_product(n_tok, cfg->n_expert_used, sizeof(struct group),
                                &z.group); /* at worst one for each place */
        group_sizes(model, plan->stage[r->stage].layers, &z);
    }
    if (ok) ok = mu_scratch_product(n_tok, 3 * serving->lora_rank, 4, &z.lora_u); /* LORA_SLOTS */
    size_t n_segment = ((size_t)serving->n_ctx + MU_ATTN_SEGMENT - 1) / MU_ATTN_SEGMENT;
    if (ok) ok = mu_scratch_product(n_segment, mu_range_len(r->heads) * (cfg->d_head + 2), 4, &z.part);
    z.attn = z.q;
    if (model->arch->parallel) z.y_attn = z.y;
    if (ok && !alone)
        ok = mu_scratch_product(n_tok, max_col + max_col / 32, 4, &z.gather) &&
             mu_add_size(z.gather, 2 * 64 * MU_MAX_RANKS, &z.gather);
    if (ok && !last) z.send = z.x;
    if (ok && last) ok = mu_scratch_product(n_tok, vocab, 4, &z.logits);
    if (ok && last && !alone) ok = mu_scratch_product(n_tok, cfg->n_vocab, 4, &z.whole);
    if (ok && last) ok = mu_scratch_product(rank == plan->leader ? 4 : 3, cfg->n_vocab, 4, &z.sampler);
    if (ok && rank == plan->leader) ok = mu_scratch_product((size_t)serving->n_slot, cfg->d_model, 4, &z.state);
    if (ok) *sizes_out = z;
    return ok;
}

int mu_scratch_samplers(const struct mu_serving *serving, int n_member)
{
    int n = n_member < serving->n_slot ? n_member : serving->n_slot;
    return n < MAX_SAMPLERS ? n : MAX_SAMPLERS;
}

uint64_t mu_scratch_bytes(const struct mu_model *model, const struct mu_plan *plan, int rank,
                          const struct mu_serving *serving)
{
    struct mu_scratch_sizes z;
    if (!mu_scratch_sizes(model, plan, rank, serving, &z)) return UINT64_MAX;
    uint64_t n_tok = (uint64_t)serving->step_tokens, n_slot = (uint64_t)serving->n_slot;
    uint64_t rows = n_slot < n_tok ? n_slot : n_tok, members = serving->n_thread > 0 ? (uint64_t)serving->n_thread : 1;
    uint64_t sampling = (uint64_t)mu_scratch_samplers(serving, (int)members) * z.sampler;
    if (plan->split.device[rank] != MU_ON_CPU) /* the rest is there, or pinned (device_memory.c) */
        return z.state + sampling + (z.logits + 2 * (uint64_t)z.whole) / n_tok * rows;
    uint64_t fixed = z.x + z.q + 2 * (uint64_t)z.kv + z.attn + z.ff + z.y + z.y_attn + z.route +
                     3 * (uint64_t)z.chosen + z.group + z.act_f32 + z.act_bf16 + z.act_q + z.act_s + z.act_sum +
                     z.rope + z.lora_u + z.gather + z.state + z.part + members * z.group_member + sampling +
                     (uint64_t)MU_SHARD_TICKETS * z.send;
    return fixed + (z.logits + 2 * (uint64_t)z.whole) / n_tok * rows;
}
