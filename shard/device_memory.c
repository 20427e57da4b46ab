/* A rank's device: opening it, and its memory there and here.
 *
 *   weights   vectors, rotation frequencies, packed matrices (device_load.c)
 *   kv        pages, as kv.c numbers them
 *   scratch   what a step writes; one block, carved by the same function that counts it for the plan
 *   pinned    this side of what is uploaded and downloaded, and what comm sends and receives
 *
 * Everything is taken before the first step; a step allocates nothing. */
#include "base/alloc.h"
#include "base/clock.h"
#include "shard/device.h"

/* Attention gets room to cut several queries at segments at once, as long as that is not more than this. */
enum { MAX_PART_BYTES = 64 << 20 };

/* ---- sizes ---- */

static bool act_sizes(size_t n_tok, int n_col, bool f32, struct dev_act_sizes *z)
{
    return (!f32 || mu_scratch_product(n_tok, n_col, sizeof(float), &z->f32)) &&
           mu_scratch_product(n_tok, n_col, sizeof(uint16_t), &z->bf16) &&
           mu_scratch_product(n_tok, n_col, sizeof(int8_t), &z->q) &&
           mu_scratch_product(n_tok, n_col / MU_Q_BLOCK + 1, sizeof(float), &z->s) &&
           mu_scratch_product(n_tok, n_col / MU_Q_BLOCK + 1, 2 * sizeof(int16_t), &z->sum);
}

static int largest(int a, int b)
{
    return a > b ? a : b;
}

static bool lora_sizes(const struct mu_config *cfg, const struct mu_plan_rank *r, int n_layer,
                       const struct mu_serving *v, struct dev_sizes *z)
{
    size_t n_tok = (size_t)v->step_tokens, rows;
    int heads = (mu_range_len(r->heads) + 2 * mu_range_len(r->kv_heads)) * cfg->d_head;
    int widest = largest(largest(heads, 2 * mu_range_len(r->ff)), mu_range_len(r->model));
    if (!mu_scratch_product(n_tok, mu_scratch_max_col(cfg), sizeof(float), &z->lora_x) ||
        !mu_scratch_product(n_tok, v->lora_rank, sizeof(float), &z->lora_u) ||
        !mu_scratch_product(n_tok, widest, sizeof(float), &z->lora_y) ||
        !mu_scratch_product(DEV_LOGIT_ROWS, mu_range_len(r->vocab), sizeof(float), &rows) ||
        !mu_scratch_product(n_tok, n_layer * MU_T_MATRIX_COUNT + 1, sizeof(float), &z->lora_scale))
        return false;
    if (rows > z->lora_y) z->lora_y = rows;
    return true;
}

bool mu_dev_sizes(const struct mu_model *model, const struct mu_plan *plan, int rank, const struct mu_serving *serving,
                  struct dev_sizes *sizes_out)
{
    const struct mu_config *cfg = &model->cfg;
    const struct mu_plan_rank *r = &plan->rank[rank];
    const struct mu_plan_stage *stage = &plan->stage[r->stage];
    bool alone = stage->n_rank == 1, last = r->stage == plan->n_stage - 1;
    int hidden = mu_scratch_hidden(cfg), n_model = mu_range_len(r->model), heads = mu_range_len(r->heads);
    int rows = serving->step_tokens < DEV_LOGIT_ROWS ? serving->step_tokens : DEV_LOGIT_ROWS;
    size_t n_tok = (size_t)serving->step_tokens, n_slot = (size_t)serving->n_slot, entries;
    size_t n_segment = ((size_t)serving->n_ctx + MU_ATTN_SEGMENT - 1) / MU_ATTN_SEGMENT;
    size_t max_page = ((size_t)serving->n_ctx + MU_PAGE_TOKENS - 1) / MU_PAGE_TOKENS;
    size_t n_window = mu_step_max_window(serving), n_group = n_window ? KV_GROUPS : 1;
    struct mu_scratch_sizes host;
    struct dev_sizes z = {.send = !last};
    bool ok = mu_scratch_sizes(model, plan, rank, serving, &host) &&
              mu_scratch_product(n_tok, cfg->d_model, sizeof(float), &z.x) &&
              mu_scratch_product(n_tok, heads * cfg->d_head, sizeof(float), &z.q) &&
              mu_scratch_product(n_tok, mu_range_len(r->kv_heads) * cfg->d_head, sizeof(float), &z.kv) &&
              mu_scratch_product(n_tok, mu_range_len(r->ff) * hidden, sizeof(float), &z.ff) &&
              mu_scratch_product(n_tok, n_model, sizeof(float), &z.y_mine) &&
              act_sizes(n_tok, cfg->d_model, true, &z.act) &&
              act_sizes(n_tok, largest(cfg->n_head * cfg->d_head, hidden * cfg->d_ff), !alone, &z.input) &&
              mu_scratch_product(n_segment, heads * (cfg->d_head + 2), sizeof(float), &z.part) &&
              mu_scratch_product((size_t)rows, mu_range_len(r->vocab), sizeof(float), &z.logits) &&
              mu_scratch_product(n_tok, 1, sizeof(struct mu_device_pick), &z.pick) &&
              mu_mul_size(n_slot, max_page, &entries) && mu_mul_size(entries, n_group, &entries) &&
              mu_scratch_product(entries, 1, sizeof(uint32_t), &z.table) &&
              mu_scratch_product(serving->n_page + n_window, 1, sizeof(struct mu_device_set), &z.set);
    if (ok && cfg->n_expert > 0)
        ok = mu_scratch_product(n_tok, cfg->n_expert, sizeof(float), &z.route) &&
             mu_scratch_product(n_tok, cfg->n_expert_used, sizeof(int32_t), &z.chosen) &&
             mu_scratch_product((size_t)cfg->n_expert + 1, 1, sizeof(int32_t), &z.begin) &&
             mu_scratch_product(n_tok * (size_t)cfg->n_expert_used, n_model, sizeof(float), &z.expert_part);
    if (ok && serving->n_adapter > 0) ok = lora_sizes(cfg, r, mu_range_len(stage->layers), serving, &z);
    if (!ok) return false;
    z.y = z.x;
    z.rope = host.rope;
    z.gather = host.gather;
    if (model->arch->parallel) z.y_attn = z.y_mine;
    if (last) z.live_x = z.x;
    if (alone) z.y_mine = 0;
    for (size_t n = 1, one = z.part; n < n_slot && z.part + one <= MAX_PART_BYTES; n++) z.part += one;
    *sizes_out = z;
    return true;
}

/* ---- buffers ---- */

static void in_carve(struct dev_in *in, const struct mu_serving *v, const struct dev_sizes *z, char *base, size_t *at)
{
    size_t n_tok = (size_t)v->step_tokens, n_slot = (size_t)v->n_slot;
    in->base = base ? base + *at : NULL;
    in->pos = mu_scratch_carve(base, at, n_tok * sizeof *in->pos);
    in->slot = mu_scratch_carve(base, at, n_tok * sizeof *in->slot);
    in->far = mu_scratch_carve(base, at, n_tok);
    in->q_scale = mu_scratch_carve(base, at, n_tok * sizeof *in->q_scale);
    in->live = mu_scratch_carve(base, at, n_tok * sizeof *in->live);
    in->row = mu_scratch_carve(base, at, n_tok * sizeof *in->row);
    in->block = mu_scratch_carve(base, at, n_tok * sizeof *in->block);
    in->draw = mu_scratch_carve(base, at, n_slot * sizeof *in->draw);
    in->x = mu_scratch_carve(base, at, z->x);
    in->set = mu_scratch_carve(base, at, z->set);
    in->lora_scale = mu_scratch_carve(base, at, z->lora_scale);
}

static void act_carve(struct act *act, const struct dev_act_sizes *z, char *base, size_t *at)
{
    act->f32 = mu_scratch_carve(base, at, z->f32);
    act->bf16 = mu_scratch_carve(base, at, z->bf16);
    act->q = mu_scratch_carve(base, at, z->q);
    act->s = mu_scratch_carve(base, at, z->s);
    act->sum = mu_scratch_carve(base, at, z->sum);
}

static void device_carve(struct dev *v, const struct mu_serving *serving, const struct dev_sizes *z, char *base,
                         size_t *at)
{
    in_carve(&v->in, serving, z, base, at);
    v->table = mu_scratch_carve(base, at, z->table);
    v->live_x = mu_scratch_carve(base, at, z->live_x);
    v->q = mu_scratch_carve(base, at, z->q);
    v->key = mu_scratch_carve(base, at, z->kv);
    v->value = mu_scratch_carve(base, at, z->kv);
    v->attn = mu_scratch_carve(base, at, z->q);
    v->gate = mu_scratch_carve(base, at, z->ff);
    v->y = mu_scratch_carve(base, at, z->y);
    v->y_mine = mu_scratch_carve(base, at, z->y_mine);
    v->y_attn = mu_scratch_carve(base, at, z->y_attn);
    v->rope = mu_scratch_carve(base, at, z->rope);
    v->part = mu_scratch_carve(base, at, z->part);
    act_carve(&v->act, &z->act, base, at);
    act_carve(&v->input, &z->input, base, at);
    v->route = mu_scratch_carve(base, at, z->route);
    v->chosen = mu_scratch_carve(base, at, z->chosen);
    v->chosen_weight = mu_scratch_carve(base, at, z->chosen);
    v->place = mu_scratch_carve(base, at, z->chosen);
    v->at = mu_scratch_carve(base, at, z->chosen);
    v->begin = mu_scratch_carve(base, at, z->begin);
    v->expert_part = mu_scratch_carve(base, at, z->expert_part);
    v->gather = mu_scratch_carve(base, at, z->gather);
    v->logits = mu_scratch_carve(base, at, z->logits);
    v->pick = mu_scratch_carve(base, at, z->pick);
    v->lora_x = mu_scratch_carve(base, at, z->lora_x);
    v->lora_u = mu_scratch_carve(base, at, z->lora_u);
    v->lora_y = mu_scratch_carve(base, at, z->lora_y);
}

static void pinned_carve(struct dev *v, const struct mu_serving *serving, const struct dev_sizes *z, char *base,
                         size_t *at)
{
    in_carve(&v->pinned.in, serving, z, base, at);
    v->pinned.gather = mu_scratch_carve(base, at, z->gather);
    v->pinned.down = mu_scratch_carve(base, at, z->logits);
    v->pinned.pick = mu_scratch_carve(base, at, z->pick);
    for (int i = 0; i < MU_SHARD_TICKETS; i++) v->pinned.send[i] = mu_scratch_carve(base, at, z->send ? z->x : 0);
}

void mu_dev_scratch_bytes(const struct mu_model *model, const struct mu_plan *plan, int rank,
                          const struct mu_serving *serving, uint64_t *device_out, uint64_t *pinned_out)
{
    struct dev_sizes z;
    struct dev v = {0};
    size_t device = 0, pinned = 0;
    bool ok = mu_dev_sizes(model, plan, rank, serving, &z);
    if (ok) device_carve(&v, serving, &z, NULL, &device);
    if (ok) pinned_carve(&v, serving, &z, NULL, &pinned);
    uint64_t loaded = plan->rank[rank].weight_bytes;
    device += loaded < DEV_LOAD_BYTES ? (size_t)loaded : DEV_LOAD_BYTES;
    *device_out = ok ? device : UINT64_MAX;
    *pinned_out = ok ? pinned : UINT64_MAX;
}

enum mu_status mu_dev_alloc(struct mu_shard *s, size_t bytes, const char *what, void **p_out, struct mu_err *err)
{
    struct dev *v = s->dev;
    struct mu_err why = MU_ERR_INIT;
    struct mu_device_info info = {0};
    enum mu_status st = bytes ? v->ops->alloc(v->d, bytes, p_out, &why) : MU_OK;
    if (st == MU_OK) return MU_OK;
    if (st != MU_ENOMEM || v->ops->info(v->index, &info, NULL) != MU_OK)
        return mu_fail(err, st, "the %s of rank %d on GPU %d: %s", what, s->rank, v->index, why.text);
    return mu_fail(err, MU_ENOMEM,
                   "no memory on GPU %d (%s) for the %s of rank %d: %zu MB, but %llu of its %llu MB are free: use more "
                   "GPUs, a shorter context, or smaller types",
                   v->index, info.name, what, s->rank, bytes >> 20, (unsigned long long)(info.free_bytes >> 20),
                   (unsigned long long)(info.memory_bytes >> 20));
}

static enum mu_status buffers_create(struct mu_shard *s, struct mu_err *err)
{
    struct dev *v = s->dev;
    size_t scratch = 0, pinned = 0;
    enum mu_status st;
    if (!mu_dev_sizes(s->model, &s->plan, s->rank, &s->serving, &v->size))
        return mu_fail(err, MU_ENOMEM, "%d tokens a step are too many", s->serving.step_tokens);
    device_carve(v, &s->serving, &v->size, NULL, &scratch);
    pinned_carve(v, &s->serving, &v->size, NULL, &pinned);
    MU_TRY(st, mu_dev_alloc(s, s->kv.bytes, "KV pages", &v->kv, err), done);
    MU_TRY(st, mu_dev_alloc(s, scratch, "scratch", &v->scratch, err), done);
    if (v->ops->alloc_host(v->d, pinned, &v->pinned_block, err) != MU_OK) {
        st = mu_fail(err, MU_ENOMEM, "no pinned memory for steps of %d tokens (%zu MB): use fewer of them",
                     s->serving.step_tokens, pinned >> 20);
        goto done;
    }
    scratch = pinned = 0;
    device_carve(v, &s->serving, &v->size, v->scratch, &scratch);
    pinned_carve(v, &s->serving, &v->size, v->pinned_block, &pinned);
    for (int i = 0; i < MU_SHARD_TICKETS; i++) s->send[i] = v->pinned.send[i];
    s->gather = v->pinned.gather;
    s->kv.set = v->pinned.in.set;
    v->ops->zero(v->d, v->table, v->size.table);
done:
    return st;
}

/* ---- the device ---- */

static enum mu_status device_open(struct mu_shard *s, const struct mu_shard_options *opt, struct mu_err *err)
{
    struct dev *v = s->dev;
    v->ops = opt->device_ops ? opt->device_ops : mu_device_load(err);
    int n = v->ops ? v->ops->count(err) : -1;
    if (n < 0) return mu_err_wrap(err, "rank %d is to compute on GPU %d", s->rank, v->index);
    if (v->index >= n)
        return mu_fail(err, MU_EINVAL, "rank %d is to compute on GPU %d, but this machine has %d%s", s->rank, v->index,
                       n, n ? ", counted from 0" : "");
    if (v->ops->open(v->index, &v->d, err) != MU_OK)
        return mu_err_wrap(err, "rank %d is to compute on GPU %d", s->rank, v->index);
    return MU_OK;
}

enum mu_status mu_dev_create(struct mu_shard *s, const struct mu_shard_options *opt, struct mu_err *err)
{
    enum mu_status st;
    struct mu_err own = MU_ERR_INIT;
    if (!err) err = &own;
    struct dev *v = s->dev = mu_calloc(1, sizeof *v);
    if (v) v->rough = mu_calloc((size_t)s->serving.n_slot, sizeof *v->rough);
    if (!v || !v->rough) return mu_fail(err, MU_ENOMEM, "no memory for the device of rank %d", s->rank);
    v->index = s->plan.split.device[s->rank];
    v->timeout_ms = opt->device_timeout_ms ? opt->device_timeout_ms : DEV_TIMEOUT_MS;
    MU_TRY(st, device_open(s, opt, err), done);
    if (opt->device_link[MU_LINK_STAGE] && s->stage.n_rank > 1) {
        st = v->ops->link_open(v->d, opt->device_link[MU_LINK_STAGE], s->stage.n_rank, s->me.local, v->timeout_ms,
                               &v->link, err);
        if (st != MU_OK) {
            mu_err_wrap(err, "rank %d on GPU %d: the link to the other GPUs of its stage", s->rank, v->index);
            goto done;
        }
    }
    MU_TRY(st, mu_dev_hops_open(s, opt, err), done);
    st = buffers_create(s, err);
done:
    return st;
}

void mu_dev_leave(struct mu_shard *s)
{
    struct dev *v = s->dev;
    for (int i = 0; i < DEV_GRAPHS; i++) { /* they have transfers in them */
        if (v->graph[i].graph) v->ops->graph_free(v->d, v->graph[i].graph);
        v->graph[i] = (struct dev_graph){0};
    }
    mu_dev_hops_close(s);
    if (v->link) v->ops->link_close(v->link);
    v->link = NULL;
}

void mu_dev_destroy(struct mu_shard *s)
{
    struct dev *v = s->dev;
    if (!v) return;
    if (v->d) {
        mu_dev_leave(s);
        v->ops->close(v->d); /* frees all memory, or leaves it to the process where the queue does not end */
    }
    mu_free(v->stream.at);
    mu_free(v->rough);
    mu_free(v);
    s->dev = NULL;
}

/* ---- waiting ---- */

/* While something is being sent it is moved along, so this looks instead of sleeping. */
static void look(struct mu_shard *s, int mark)
{
    struct dev *v = s->dev;
    int64_t end = mu_now_ns() + (int64_t)v->timeout_ms * MU_MS;
    while (s->n_sent > 0 && v->ops->test(v->d, mark) == 0 && mu_now_ns() < end) s->comm.progress(s->comm.ctx);
}

bool mu_dev_wait_mark(struct mu_shard *s, int mark, const char *what)
{
    struct dev *v = s->dev;
    look(s, mark);
    s->failed = v->ops->wait(v->d, mark, v->timeout_ms, what, &s->err);
    if (s->failed == MU_OK) return true;
    mu_err_wrap(&s->err, "rank %d on GPU %d", s->rank, v->index);
    return false;
}

bool mu_dev_wait(struct mu_shard *s, int mark, const char *what)
{
    return mu_dev_hops_wait(s) && mu_dev_wait_mark(s, mark, what);
}
