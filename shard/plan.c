/* The plan: shares of units among weights, and what a rank's share weighs.
 *
 * Integer arithmetic but for mu_share's quotas, which are a few IEEE double operations in a fixed order: every process
 * that builds the plan of the same model and split gets the same ranges. */
#include "shard/plan.h"

#include <math.h>
#include <string.h>

#include "kernels/kernels.h"
#include "shard/device.h"
#include "shard/scratch.h"

enum { MODEL_UNIT = 16, FF_UNIT = 32, VOCAB_UNIT_SMALL = 16, VOCAB_UNIT = 1024, VOCAB_SMALL = 16384 };

void mu_share(int n_units, const double *weight, int n_part, int *begin)
{
    double total = 0, rest[MU_MAX_RANKS];
    int count[MU_MAX_RANKS], given = 0;
    for (int i = 0; i < n_part; i++) total += weight[i];
    for (int i = 0; i < n_part; i++) {
        double quota = (double)n_units * weight[i] / total;
        count[i] = (int)quota;
        rest[i] = quota - count[i];
        given += count[i];
    }
    for (; given < n_units; given++) {
        int best = 0;
        for (int i = 1; i < n_part; i++)
            if (rest[i] > rest[best]) best = i;
        count[best]++;
        rest[best] -= 1.0;
    }
    begin[0] = 0;
    for (int i = 0; i < n_part; i++) begin[i + 1] = begin[i] + count[i];
}

/* Units of `unit` values; the last may be short. */
static void share_values(int n_values, int unit, const double *weight, int n_part, int *begin)
{
    mu_share((n_values + unit - 1) / unit, weight, n_part, begin);
    for (int i = 0; i <= n_part; i++) {
        int value = begin[i] * unit;
        begin[i] = value < n_values ? value : n_values;
    }
}

static struct mu_range range_of(const int *begin, int i)
{
    return (struct mu_range){begin[i], begin[i + 1]};
}

/* Whole layers by the stages' weights, at least one each: a stage without layers would only add a hop. */
static void share_layers(const struct mu_model *model, struct mu_plan *plan)
{
    double weight[MU_MAX_STAGES] = {0};
    int begin[MU_MAX_STAGES + 1], count[MU_MAX_STAGES];
    for (int i = 0; i < plan->n_rank; i++) weight[plan->split.stage_of[i]] += plan->split.weight[i];
    mu_share(model->cfg.n_layer, weight, plan->n_stage, begin);
    for (int s = 0; s < plan->n_stage; s++) count[s] = begin[s + 1] - begin[s];
    for (int s = 0; s < plan->n_stage; s++) {
        while (count[s] < 1) {
            int most = 0;
            for (int o = 1; o < plan->n_stage; o++)
                if (count[o] > count[most]) most = o;
            count[most]--;
            count[s]++;
        }
    }
    int layer = 0;
    for (int s = 0; s < plan->n_stage; s++) {
        plan->stage[s].layers = (struct mu_range){layer, layer + count[s]};
        layer += count[s];
    }
}

static void share_rows(const struct mu_model *model, struct mu_plan *plan, int stage)
{
    const struct mu_config *cfg = &model->cfg;
    const struct mu_plan_stage *st = &plan->stage[stage];
    const double *weight = &plan->split.weight[st->first_rank];
    int n = st->n_rank, group = cfg->n_head / cfg->n_kv_head;
    int heads[MU_MAX_RANKS + 1], rows[MU_MAX_RANKS + 1], ff[MU_MAX_RANKS + 1], vocab[MU_MAX_RANKS + 1];

    share_values(cfg->n_head, n <= cfg->n_kv_head ? group : 1, weight, n, heads);
    share_values(cfg->d_model, MODEL_UNIT, weight, n, rows);
    share_values(cfg->d_ff, FF_UNIT, weight, n, ff);
    share_values(cfg->n_vocab, cfg->n_vocab < VOCAB_SMALL ? VOCAB_UNIT_SMALL : VOCAB_UNIT, weight, n, vocab);
    for (int i = 0; i < n; i++) {
        struct mu_plan_rank *r = &plan->rank[st->first_rank + i];
        r->stage = stage;
        r->local = i;
        r->heads = range_of(heads, i);
        if (mu_range_len(r->heads) > 0)
            r->kv_heads = (struct mu_range){r->heads.begin / group, (r->heads.end + group - 1) / group};
        r->model = range_of(rows, i);
        r->ff = range_of(ff, i);
        if (stage == plan->n_stage - 1) r->vocab = range_of(vocab, i);
    }
}

int mu_plan_rows(const struct mu_model *model, const struct mu_plan_rank *r, enum mu_tensor_id id, int *row0_out)
{
    int d_head = model->cfg.d_head;
    struct mu_range rows = {0, 0};
    switch (id) {
    case MU_T_Q: rows = (struct mu_range){r->heads.begin * d_head, r->heads.end * d_head}; break;
    case MU_T_K:
    case MU_T_V: rows = (struct mu_range){r->kv_heads.begin * d_head, r->kv_heads.end * d_head}; break;
    case MU_T_GATE:
    case MU_T_UP: rows = r->ff; break;
    case MU_T_O:
    case MU_T_DOWN: rows = r->model; break;
    case MU_T_GATE_EXPS_B:
    case MU_T_UP_EXPS_B:
    case MU_T_DOWN_EXPS_B: /* a part of each (mu_plan_bias_values) */
    case MU_T_ROUTER: rows = (struct mu_range){0, model->cfg.n_expert}; break;
    default: rows = (struct mu_range){0, 1}; break; /* a vector */
    }
    *row0_out = rows.begin;
    return mu_range_len(rows);
}

bool mu_plan_bias_values(const struct mu_plan_rank *rank, enum mu_tensor_id id, struct mu_range *values_out)
{
    switch (id) {
    case MU_T_GATE_EXPS_B:
    case MU_T_UP_EXPS_B: *values_out = rank->ff; return true;
    case MU_T_DOWN_EXPS_B: *values_out = rank->model; return true;
    default: return false;
    }
}

/* Of a row that the rank holds, or a part of it. */
static size_t row_bytes(const struct mu_plan_rank *r, enum mu_tensor_id id, const struct mu_gguf_tensor *t)
{
    struct mu_range values;
    return mu_plan_bias_values(r, id, &values) ? (size_t)mu_range_len(values) * sizeof(float) : t->row_bytes;
}

static uint64_t rank_weight_bytes(const struct mu_model *model, const struct mu_plan *plan,
                                  const struct mu_plan_rank *r)
{
    uint64_t bytes = 0;
    struct mu_range layers = plan->stage[r->stage].layers;
    for (int l = layers.begin; l < layers.end; l++) {
        for (int id = 0; id < MU_T_LAYER_COUNT; id++) {
            const struct mu_gguf_tensor *t = model->layer[l][id];
            int row0;
            if (!t) continue;
            bytes += (uint64_t)mu_plan_rows(model, r, (enum mu_tensor_id)id, &row0) *
                     row_bytes(r, (enum mu_tensor_id)id, t) *
                     (uint64_t)mu_config_copies(&model->cfg, (enum mu_tensor_id)id);
        }
    }
    if (r->stage == 0) bytes += model->embed->bytes;
    if (r->stage == plan->n_stage - 1)
        bytes += (uint64_t)mu_range_len(r->vocab) * model->output->row_bytes + model->out_norm->bytes;
    return bytes;
}

enum mu_status mu_plan_build(const struct mu_model *model, const struct mu_split *split, struct mu_plan *plan_out,
                             struct mu_err *err)
{
    if (split->n_stage > model->cfg.n_layer)
        return mu_fail(err, MU_EINVAL, "the split has %d stages, but the model only %d layers: use at most %d stages",
                       split->n_stage, model->cfg.n_layer, model->cfg.n_layer);
    struct mu_plan plan;
    memset(&plan, 0, sizeof plan);
    plan.n_rank = split->n_rank;
    plan.n_stage = split->n_stage;
    plan.split = *split;
    for (int i = split->n_rank - 1; i >= 0; i--) {
        plan.stage[split->stage_of[i]].first_rank = i;
        plan.stage[split->stage_of[i]].n_rank++;
    }
    plan.leader = plan.stage[plan.n_stage - 1].first_rank;
    share_layers(model, &plan);
    for (int i = 0; i < plan.n_rank; i++) {
        int n_layer = mu_range_len(plan.stage[split->stage_of[i]].layers);
        if (split->streamed[i] > n_layer)
            return mu_fail(err, MU_EINVAL, "the split has rank %d stream %d layers, but its stage has %d", i,
                           split->streamed[i], n_layer);
    }
    for (int s = 0; s < plan.n_stage; s++) share_rows(model, &plan, s);
    for (int i = 0; i < plan.n_rank; i++) plan.rank[i].weight_bytes = rank_weight_bytes(model, &plan, &plan.rank[i]);
    *plan_out = plan;
    return MU_OK;
}

uint64_t mu_plan_kv_page_bytes(const struct mu_model *model, const struct mu_plan *plan, int rank, enum mu_kv_type kv)
{
    const struct mu_plan_rank *r = &plan->rank[rank];
    uint64_t heads = (uint64_t)mu_range_len(r->kv_heads) * (uint64_t)mu_range_len(plan->stage[r->stage].layers);
    return heads * 2 /* K and V */ * mu_kv_bytes(kv, model->cfg.d_head, MU_PAGE_TOKENS);
}

uint64_t mu_plan_kv_window_bytes(const struct mu_model *model, const struct mu_plan *plan, int rank, enum mu_kv_type kv)
{
    const struct mu_plan_rank *r = &plan->rank[rank];
    struct mu_range layers = plan->stage[r->stage].layers;
    uint64_t n = 0;
    for (int l = layers.begin; l < layers.end; l++) n += mu_config_window(&model->cfg, l) > 0;
    return n * (uint64_t)mu_range_len(r->kv_heads) * 2 * mu_kv_bytes(kv, model->cfg.d_head, MU_PAGE_TOKENS);
}

int mu_plan_window(const struct mu_model *model)
{
    int widest = 0;
    for (int l = 0; l < model->cfg.n_layer; l++) {
        int window = mu_config_window(&model->cfg, l);
        if (window > widest) widest = window;
    }
    return widest;
}

/* Pages that n neighbouring tokens are in at most, wherever they begin. */
static uint64_t pages_touched(uint64_t n)
{
    return (n + MU_PAGE_TOKENS - 2) / MU_PAGE_TOKENS + 1;
}

uint32_t mu_plan_window_span(const struct mu_serving *v)
{
    uint64_t n = pages_touched((uint64_t)v->window - 1 + (uint64_t)v->step_tokens);
    uint64_t most = ((uint64_t)v->n_ctx + MU_PAGE_TOKENS - 1) / MU_PAGE_TOKENS;
    return (uint32_t)(n < most ? n : most);
}

uint32_t mu_plan_window_pages(const struct mu_serving *v)
{
    if (v->window <= 0 || v->n_page == 0) return 0;
    uint64_t whole = ((uint64_t)v->n_ctx + MU_PAGE_TOKENS - 1) / MU_PAGE_TOKENS, span = mu_plan_window_span(v);
    uint64_t each = span + pages_touched((uint64_t)v->window);
    if (each >= whole) return 0;
    uint64_t n = (each * v->n_page + whole - 1) / whole;
    return (uint32_t)(n > span ? n : span);
}

/* Packed where it is known how, else as in the file. */
static uint64_t packed_bytes(mu_mat_bytes_fn *by, uint32_t type, int n_row, int n_col, size_t row_bytes)
{
    size_t packed = by && n_row ? by(type, n_row, n_col) : 0;
    return packed ? packed : (uint64_t)n_row * row_bytes;
}

/* How the rank packs; NULL: that depends on a kernel table that is not chosen, or a plugin that is not here. */
static mu_mat_bytes_fn *packer_of(const struct mu_plan *plan, int rank)
{
    if (plan->split.device[rank] == MU_ON_CPU) return mu_kernels() ? mu_kernels()->mat_bytes : NULL;
    const struct mu_device_ops *ops = mu_device_load(NULL);
    return ops ? ops->mat_bytes : NULL;
}

void mu_plan_memory(const struct mu_model *model, const struct mu_plan *plan, int rank,
                    const struct mu_serving *serving, struct mu_rank_memory *memory_out)
{
    const struct mu_plan_rank *r = &plan->rank[rank];
    struct mu_range layers = plan->stage[r->stage].layers;
    mu_mat_bytes_fn *by = packer_of(plan, rank);
    bool on_gpu = plan->split.device[rank] != MU_ON_CPU;
    uint64_t weights = 0, vectors = 0, streamed = 0, room = 0, pinned;
    for (int l = layers.begin; l < layers.end; l++) {
        uint64_t before = weights;
        for (int id = 0; id < MU_T_LAYER_COUNT; id++) {
            const struct mu_gguf_tensor *t = model->layer[l][id];
            int row0, n_row = mu_plan_rows(model, r, (enum mu_tensor_id)id, &row0);
            if (!t) continue;
            if (id < MU_T_MATRIX_COUNT)
                weights += packed_bytes(by, t->type, n_row, (int)t->ne[0], t->row_bytes) *
                           (uint64_t)mu_config_copies(&model->cfg, (enum mu_tensor_id)id);
            else
                vectors += (uint64_t)n_row * row_bytes(r, (enum mu_tensor_id)id, t);
        }
        if (mu_plan_streamed(plan, rank, l - layers.begin) < 0) continue;
        if (weights - before > room) room = weights - before;
        streamed += weights - before;
        weights = before;
    }
    weights += room * (uint64_t)mu_plan_stream_rooms(plan->split.streamed[rank]);
    if (r->stage == plan->n_stage - 1)
        weights +=
            packed_bytes(by, model->output->type, mu_range_len(r->vocab), model->cfg.d_model, model->output->row_bytes);
    uint64_t mapped = r->stage == 0 ? model->embed->bytes : 0; /* read from the mapped file */
    uint64_t host = mu_scratch_bytes(model, plan, rank, serving);
    memory_out->mapped = mapped;
    memory_out->weights = weights + vectors + (on_gpu ? 0 : mapped);
    uint64_t page = mu_plan_kv_page_bytes(model, plan, rank, serving->kv);
    uint32_t n_window = mu_plan_window_pages(serving);
    memory_out->kv = page * serving->n_page;
    if (n_window) {
        uint64_t window = mu_plan_kv_window_bytes(model, plan, rank, serving->kv);
        memory_out->kv = (page - window) * serving->n_page + window * n_window;
    }
    memory_out->scratch = host;
    memory_out->host = memory_out->streamed = 0;
    if (!on_gpu) return;
    mu_dev_scratch_bytes(model, plan, rank, serving, &memory_out->scratch, &pinned);
    memory_out->streamed = streamed;
    memory_out->host = host < UINT64_MAX && pinned < UINT64_MAX ? host + pinned + vectors + mapped : UINT64_MAX;
}

/* As shard/lora.c packs it: all of A, the rank's rows of B, each from a multiple of 64 on. */
static uint64_t lora_bytes(mu_mat_bytes_fn *by, const struct mu_lora *l, int n_row)
{
    uint32_t a = mu_lora_kept_as(l->a_type), b = mu_lora_kept_as(l->b_type);
    uint64_t bytes = packed_bytes(by, a, l->rank, l->n_col, (size_t)l->n_col * sizeof(float)) + 63;
    return bytes / 64 * 64 + (packed_bytes(by, b, n_row, l->rank, (size_t)l->rank * sizeof(float)) + 63) / 64 * 64;
}

uint64_t mu_plan_adapter_bytes_by(mu_mat_bytes_fn *by, const struct mu_model *model, const struct mu_plan *plan,
                                  int rank, const struct mu_adapters *adapters)
{
    const struct mu_plan_rank *r = &plan->rank[rank];
    struct mu_range layers = plan->stage[r->stage].layers;
    uint64_t bytes = 0;
    for (int i = 0; adapters && i < adapters->n; i++) {
        const struct mu_adapter *ad = adapters->at[i];
        for (int l = layers.begin; l < layers.end; l++) {
            for (int id = 0; id < MU_T_MATRIX_COUNT; id++) {
                int row0, n_row = mu_plan_rows(model, r, (enum mu_tensor_id)id, &row0);
                if (ad->layer[l][id].rank) bytes += lora_bytes(by, &ad->layer[l][id], n_row);
            }
        }
        if (ad->out.rank && r->stage == plan->n_stage - 1) bytes += lora_bytes(by, &ad->out, mu_range_len(r->vocab));
    }
    return bytes;
}

uint64_t mu_plan_adapter_bytes(const struct mu_model *model, const struct mu_plan *plan, int rank,
                               const struct mu_adapters *adapters)
{
    return mu_plan_adapter_bytes_by(packer_of(plan, rank), model, plan, rank, adapters);
}

int mu_plan_step_tokens(const struct mu_split *split)
{
    for (int i = 0; i < split->n_rank; i++)
        if (split->device[i] == MU_ON_CPU) return MU_STEP_TOKENS;
    return MU_STEP_GPU_TOKENS;
}

uint32_t mu_plan_chunk(uint64_t n_tok, int n_stage, uint32_t most, double fixed_tokens)
{
    /* What a step costs whatever it holds: on a processor 3 to 9 tokens' worth, on a GPU some 40. The optimum is flat. */
    static const double USUAL = 16, MOST = 1024, LEAST_CHUNK = 64;
    if (n_stage < 2) return most;
    if (!(fixed_tokens > 0)) fixed_tokens = USUAL;
    if (fixed_tokens > MOST) fixed_tokens = MOST;
    double best = fmax(sqrt((double)n_tok * fixed_tokens / (n_stage - 1)), LEAST_CHUNK);
    double n_piece = fmax(1, floor((double)n_tok / best + 0.5));
    double chunk = ceil((double)n_tok / n_piece / MU_PAGE_TOKENS) * MU_PAGE_TOKENS;
    return chunk < most ? (uint32_t)chunk : most;
}

bool mu_plan_own_gpus(const struct mu_plan *plan, int first, int n, int from, int n_all)
{
    const int *device = plan->split.device;
    for (int i = first; i < first + n; i++) {
        if (device[i] == MU_ON_CPU) return false;
        for (int k = from; k < from + n_all; k++)
            if (k != i && device[k] == device[i]) return false;
    }
    return true;
}

/* Ranks that are on rank's machine, in order, of the stage's before `end`; how many. */
static int on_machine(const struct mu_plan_stage *st, int end, const int *node_of, int rank, int *rank_out)
{
    int n = 0;
    for (int i = st->first_rank; i < end; i++)
        if (!node_of || node_of[i] == node_of[rank]) rank_out[n++] = i;
    return n;
}

int mu_plan_residual_from(const struct mu_plan *plan, const int *node_of, int rank)
{
    int stage = plan->rank[rank].stage, near[MU_MAX_RANKS], beside[MU_MAX_RANKS], n_machine = 0;
    if (stage == 0) return -1;
    const struct mu_plan_stage *mine = &plan->stage[stage], *before = &plan->stage[stage - 1];
    int n_near = on_machine(before, before->first_rank + before->n_rank, node_of, rank, near);
    int n_beside = on_machine(mine, rank, node_of, rank, beside);
    if (n_near > 0) return near[n_beside % n_near];
    if (n_beside > 0) return beside[0];
    for (int i = mine->first_rank; i < rank; i++) n_machine += on_machine(mine, i, node_of, i, beside) == 0;
    return before->first_rank + n_machine % before->n_rank;
}
