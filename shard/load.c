/* Creating a shard: its rows packed for the kernels with all threads, its pages, its scratch.
 *
 * Rows go from the mapped file to the packer group by group of 16. Those that lie apart in the file (a Hugging Face
 * folder's) or that are quantised on the way pass through a member's buffer of one group. A row is quantised whole, so
 * no bit of it depends on who owns it.
 *
 * Weights are one block of pages straight from the system, on the NUMA node where the rank runs: they are bound to it
 * (base/numa.h), and the members that pack them, who touch them first, run there. So are cache and scratch. In a gang the block is the worker's (kept.c): a rank that is launched again finds
 * it packed. Vectors are small and copied whole (small.c). The embedding is read from the
 * mapped file: a step touches a row a token. */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/bytes.h"
#include "base/clock.h"
#include "base/fault.h"
#include "kernels/quantize_rows.h"
#include "shard/device.h"
#include "shard/load.h"

enum { ALIGN = MU_LOAD_ALIGN, PIECE_GROUPS = 16 /* row groups packed between two looks at the counter */ };

unsigned mu_form_of(uint32_t type)
{
    const struct mu_type_info *info = mu_type_info(type);
    switch (info ? info->act : MU_ACT_NONE) {
    case MU_ACT_Q8: return FORM_Q8;
    case MU_ACT_BF16: return FORM_BF16;
    case MU_ACT_F32:
    case MU_ACT_NONE: break;
    }
    return FORM_F32;
}

/* ---- packing ---- */

static const struct load_item *item_at(const struct load *l, int group)
{
    int low = 0, high = l->n_item;
    while (high - low > 1) {
        int mid = (low + high) / 2;
        if (l->item[mid].group0 <= group)
            low = mid;
        else
            high = mid;
    }
    return &l->item[low];
}

static const struct mu_gguf_tensor *file_tensor(const struct load_item *item)
{
    return item->tensor->source ? item->tensor->source : item->tensor;
}

/* Rows [row0, row1) of the item, at most one group, quantised; NULL where a value is not finite. */
static const uint8_t *quantized_rows(const struct load *l, const struct load_item *item, int row0, int row1,
                                     const struct staging *to)
{
    const struct mu_gguf_tensor *from = item->tensor->source;
    for (int r = row0; r < row1; r++) {
        uint8_t *out = to->packed + (size_t)(r - row0) * item->tensor->row_bytes;
        l->s->k->dequant_row(from->type, mu_gguf_row(from, (uint64_t)(item->row0 + r)), item->mat->n_col, to->row);
        if (!mu_quantize_row(item->tensor->type, to->row, item->mat->n_col, out)) return NULL;
    }
    return to->packed;
}

const uint8_t *mu_load_rows(const struct load *l, const struct load_item *item, int row0, int row1,
                            const struct staging *to)
{
    return item->tensor->source
               ? quantized_rows(l, item, row0, row1, to)
               : mu_gguf_rows(item->tensor, (uint64_t)(item->row0 + row0), (uint64_t)(row1 - row0), to->raw);
}

static bool pack_rows(const struct load *l, const struct load_item *item, int row0, int row1, const struct staging *to)
{
    const struct mu_kernels *k = l->s->k;
    if (!item->staged)
        return k->mat_pack(item->mat, row0, row1, mu_gguf_row(item->tensor, (uint64_t)(item->row0 + row0)));
    for (int end; row0 < row1; row0 = end) {
        end = row0 + MU_ROW_GROUP < row1 ? row0 + MU_ROW_GROUP : row1;
        const uint8_t *raw = mu_load_rows(l, item, row0, end, to);
        if (!raw || !k->mat_pack(item->mat, row0, end, raw)) return false;
    }
    return true;
}

static void pack_piece(struct load *l, int group, int end, const struct staging *to)
{
    while (group < end) {
        const struct load_item *item = item_at(l, group);
        int row0 = (group - item->group0) * MU_ROW_GROUP, row1 = (end - item->group0) * MU_ROW_GROUP;
        if (row1 > item->mat->n_row) row1 = item->mat->n_row;
        if (!pack_rows(l, item, row0, row1, to)) atomic_store(&l->bad, (int)(item - l->item));
        atomic_fetch_add(&l->done_bytes, (uint64_t)(row1 - row0) * item->tensor->row_bytes);
        group = item->group0 + (row1 + MU_ROW_GROUP - 1) / MU_ROW_GROUP;
    }
}

void mu_load_tell(const struct load *l)
{
    uint64_t done = atomic_load(&l->done_bytes);
    if (l->s->record) {
        atomic_store_explicit(&l->s->record->load_done_bytes, done, memory_order_relaxed);
        mu_record_tick(l->s->record);
    }
    if (l->opt->load_progress) l->opt->load_progress(done, l->total_bytes, l->opt->load_ctx);
}

static void pack_main(void *arg, int member, int n_member)
{
    struct load *l = arg;
    int group;
    (void)n_member;
    if (!mu_fp_env_ok()) mu_fp_env_set();
    while (atomic_load(&l->bad) < 0 && (group = atomic_fetch_add(&l->next, PIECE_GROUPS)) < l->n_group) {
        pack_piece(l, group, group + PIECE_GROUPS < l->n_group ? group + PIECE_GROUPS : l->n_group,
                   &l->staging[member]);
        if (member == 0) mu_load_tell(l);
    }
}

static enum mu_status pack_all(struct load *l, struct mu_err *err)
{
    const struct mu_gguf *g = l->s->model->gguf;
    if (l->s->record) {
        mu_record_op(l->s->record, MU_OP_LOADING, MU_RECORD_NOBODY);
        atomic_store_explicit(&l->s->record->load_total_bytes, l->total_bytes, memory_order_relaxed);
    }
    if (mu_fault_hit("rank.load")) return mu_fail(err, MU_EIO, "the fault point rank.load was hit");
    if (l->s->kept_full) {
        atomic_store(&l->done_bytes, l->total_bytes);
        mu_load_tell(l);
        return MU_OK;
    }
    for (int i = 0; i < l->n_item; i++) {
        const struct load_item *it = &l->item[i];
        mu_gguf_will_read_rows(g, file_tensor(it), (uint64_t)it->row0, (uint64_t)it->mat->n_row);
    }
    if (l->s->dev) {
        enum mu_status st = mu_dev_load(l, err);
        if (st != MU_OK) return st;
    } else {
        mu_pool_run(l->s->pool, pack_main, l);
        mu_load_tell(l);
    }
    int bad = atomic_load(&l->bad);
    if (bad >= 0)
        return mu_gguf_tensor_fail(g, file_tensor(&l->item[bad]), MU_EFORMAT, "a scale or weight is not finite", err);
    return MU_OK;
}

/* ---- what to pack, and where ---- */

static void item_add(struct load *l, int layer, struct mu_mat *mat, const struct mu_gguf_tensor *t, int row0, int n_row)
{
    *mat = (struct mu_mat){.type = t->type, .n_row = n_row, .n_col = (int)t->ne[0]};
    if (n_row == 0) return;
    bool staged = t->source || mu_gguf_rows_scattered(t, (uint64_t)row0, (uint64_t)n_row);
    l->item[l->n_item++] = (struct load_item){mat, t, row0, layer, l->n_group, staged};
    l->n_group += (n_row + MU_ROW_GROUP - 1) / MU_ROW_GROUP;
    l->total_bytes += (uint64_t)n_row * t->row_bytes;
}

static void items_of_layers(struct load *l)
{
    struct mu_shard *s = l->s;
    for (int i = 0; i < mu_range_len(s->stage.layers); i++) {
        for (int id = 0; id < MU_T_MATRIX_COUNT; id++) {
            const struct mu_gguf_tensor *t = s->model->layer[s->stage.layers.begin + i][id];
            int row0, n_row = mu_plan_rows(s->model, &s->me, (enum mu_tensor_id)id, &row0);
            int n = mu_config_copies(&s->cfg, (enum mu_tensor_id)id), stride = t ? (int)t->n_row / n : 0;
            struct mu_mat *mat = mu_config_of_experts(&s->cfg, (enum mu_tensor_id)id)
                                     ? mu_expert_mats(s, i, (enum mu_tensor_id)id)
                                     : &s->layer[i].mat[id];
            for (int e = 0; t && e < n; e++) item_add(l, i, &mat[e], t, e * stride + row0, n_row);
        }
    }
    if (s->last_stage) item_add(l, -1, &s->out, s->model->output, s->me.vocab.begin, mu_range_len(s->me.vocab));
}

/* Of everything that decides which bytes the packer writes where, but for the file's own. */
static uint64_t layout_of(const struct load *l)
{
    uint64_t h = 0;
    for (int i = 0; i < l->n_item; i++) {
        const struct load_item *it = &l->item[i];
        const uint64_t numbers[] = {it->tensor->type, it->tensor->source ? it->tensor->source->type : UINT64_MAX,
                                    (uint64_t)it->row0, (uint64_t)it->mat->n_row, (uint64_t)it->mat->n_col};
        h = mu_hash64(h, it->tensor->name.p, it->tensor->name.len);
        h = mu_hash64(h, numbers, sizeof numbers);
    }
    return h;
}

static enum mu_status weights_alloc(struct load *l, struct mu_err *err)
{
    struct mu_shard *s = l->s;
    size_t total = 0;
    for (int i = 0; i < l->n_item; i++) {
        const struct mu_mat *m = l->item[i].mat;
        size_t bytes = s->k->mat_bytes(m->type, m->n_row, m->n_col);
        if (bytes == 0)
            return mu_gguf_tensor_fail(s->model->gguf, l->item[i].tensor, MU_EUNSUPPORTED,
                                       "this build does not multiply with its type at this width", err);
        if (!mu_add_size(total, (bytes + ALIGN - 1) & ~(size_t)(ALIGN - 1), &total))
            return mu_fail(err, MU_ENOMEM, "the weights of rank %d are too large", l->opt->rank);
    }
    s->weights.bytes = total;
    l->kept = total && l->opt->kept_fd > 0 && mu_kept_open(s, l->opt->kept_fd, layout_of(l));
    if (total && !l->kept) s->weights.p = mu_pages_alloc(total);
    if (!l->kept) mu_numa_bind(s->numa, s->weights.p, total);
    if (total && !s->weights.p)
        return mu_fail(err, MU_ENOMEM,
                       "no memory for the weights of rank %d (%zu MB): use more ranks or a smaller model", l->opt->rank,
                       total >> 20);
    char *at = s->weights.p;
    for (int i = 0; i < l->n_item; i++) {
        struct mu_mat *m = l->item[i].mat;
        m->data = at;
        at += (s->k->mat_bytes(m->type, m->n_row, m->n_col) + ALIGN - 1) & ~(size_t)(ALIGN - 1);
    }
    return MU_OK;
}

/* Buffers for the widest rows that need them. */
static enum mu_status staging_alloc(struct load *l, struct mu_err *err)
{
    size_t raw = 0, packed = 0, row = 0;
    for (int i = 0; i < l->n_item; i++) {
        const struct mu_gguf_tensor *t = l->item[i].tensor;
        if (!l->item[i].staged) continue;
        if (!t->source && t->row_bytes > raw) raw = t->row_bytes;
        if (t->source && t->row_bytes > packed) packed = t->row_bytes;
        if (t->source && t->ne[0] > row) row = (size_t)t->ne[0];
    }
    int n = mu_pool_size(l->s->pool);
    l->staging = mu_calloc((size_t)n, sizeof *l->staging);
    bool ok = l->staging != NULL;
    for (int i = 0; ok && i < n; i++) {
        struct staging *to = &l->staging[i];
        if (raw) ok = (to->raw = mu_aligned_alloc(ALIGN, raw * MU_ROW_GROUP)) != NULL;
        if (ok && row)
            ok = (to->packed = mu_aligned_alloc(ALIGN, packed * MU_ROW_GROUP)) != NULL &&
                 (to->row = mu_calloc(row, sizeof *to->row)) != NULL;
    }
    return ok ? MU_OK : mu_fail(err, MU_ENOMEM, "no memory to load rank %d with %d threads", l->opt->rank, n);
}

static void staging_free(struct load *l)
{
    for (int i = 0; l->staging && i < mu_pool_size(l->s->pool); i++) {
        mu_free(l->staging[i].raw);
        mu_free(l->staging[i].packed);
        mu_free(l->staging[i].row);
    }
    mu_free(l->staging);
}

enum mu_status mu_shard_load(struct mu_shard *s, const struct mu_shard_options *opt, struct mu_err *err)
{
    int n_layer = mu_range_len(s->stage.layers);
    struct load l = {.s = s, .opt = opt};
    int64_t start = mu_now_ns();
    atomic_init(&l.next, 0);
    atomic_init(&l.bad, -1);
    atomic_init(&l.done_bytes, 0);
    enum mu_status st = MU_OK;
    s->whose = opt->whose ? opt->whose : "";
    s->layer = mu_calloc((size_t)n_layer, sizeof *s->layer);
    size_t n_expert = (size_t)s->cfg.n_expert;
    s->expert = mu_calloc((size_t)n_layer * 3 * n_expert + 1, sizeof *s->expert);
    l.item = mu_calloc((size_t)n_layer * (MU_T_MATRIX_COUNT + 3 * n_expert) + 1, sizeof *l.item);
    if (!s->layer || !s->expert || !l.item) {
        st = mu_fail(err, MU_ENOMEM, "no memory for the tables of %d layers", n_layer);
        goto fail;
    }
    for (int i = 0; i < n_layer; i++) s->layer[i].lora = 1 + i * MU_T_MATRIX_COUNT;
    items_of_layers(&l);
    MU_TRY(st, mu_shard_load_small(s, err), fail);
    if (!s->dev) MU_TRY(st, weights_alloc(&l, err), fail);
    MU_TRY(st, staging_alloc(&l, err), fail);
    MU_TRY(st, pack_all(&l, err), fail);
    if (l.kept && !s->kept_full) MU_TRY(st, mu_kept_seal(s, opt->kept_fd, layout_of(&l), err), fail);
    if (l.kept) mu_kept_tell(s, (double)(mu_now_ns() - start) / 1e9);
    MU_TRY(st, mu_lora_load(s, opt, err), fail);
fail:
    staging_free(&l);
    mu_free(l.item);
    return st;
}

/* ---- scratch ---- */

/* What the next ids and states are made from; all that a rank on a device has here, but for what is pinned. */
static void results_carve(struct mu_shard *s, char *base, size_t *at)
{
    const struct mu_scratch_sizes *z = &s->size;
    s->state = mu_scratch_carve(base, at, z->state);
    s->logits = mu_scratch_carve(base, at, z->logits);
    s->parts = mu_scratch_carve(base, at, z->whole);
    s->whole = z->whole ? mu_scratch_carve(base, at, z->whole) : s->logits;
}

static void scratch_carve(struct mu_shard *s, char *base, size_t *at)
{
    const struct mu_scratch_sizes *z = &s->size;
    results_carve(s, base, at);
    if (s->dev) return;
    s->x = mu_scratch_carve(base, at, z->x);
    s->q = mu_scratch_carve(base, at, z->q);
    s->key = mu_scratch_carve(base, at, z->kv);
    s->value = mu_scratch_carve(base, at, z->kv);
    s->attn = mu_scratch_carve(base, at, z->attn);
    s->part = mu_scratch_carve(base, at, z->part);
    s->gate = mu_scratch_carve(base, at, z->ff);
    s->y = mu_scratch_carve(base, at, z->y);
    s->y_attn = mu_scratch_carve(base, at, z->y_attn);
    s->route = mu_scratch_carve(base, at, z->route);
    s->chosen = mu_scratch_carve(base, at, z->chosen);
    s->chosen_weight = mu_scratch_carve(base, at, z->chosen);
    s->place = mu_scratch_carve(base, at, z->chosen);
    s->group = mu_scratch_carve(base, at, z->group);
    s->rope = mu_scratch_carve(base, at, z->rope);
    s->lora_u = mu_scratch_carve(base, at, z->lora_u);
    s->act.f32 = mu_scratch_carve(base, at, z->act_f32);
    s->act.bf16 = mu_scratch_carve(base, at, z->act_bf16);
    s->act.q = mu_scratch_carve(base, at, z->act_q);
    s->act.s = mu_scratch_carve(base, at, z->act_s);
    s->act.sum = mu_scratch_carve(base, at, z->act_sum);
    s->gather = mu_scratch_carve(base, at, z->gather);
    for (int i = 0; i < MU_SHARD_TICKETS; i++) s->send[i] = mu_scratch_carve(base, at, z->send);
}

static void member_carve(const struct mu_shard *s, struct member *m, char *base, size_t *at)
{
    size_t col = (size_t)mu_scratch_max_col(&s->cfg), n = NARROW_TOKENS, blocks = col / MU_Q_BLOCK + 1;
    m->x = mu_scratch_carve(base, at, n * (size_t)s->cfg.d_model * sizeof(float));
    m->row = mu_scratch_carve(base, at, col * sizeof(float));
    m->up = mu_scratch_carve(base, at, MU_UP_TILE * sizeof(float));
    m->post = mu_scratch_carve(base, at, (size_t)s->cfg.d_model * sizeof(float));
    m->act.f32 = mu_scratch_carve(base, at, n * col * sizeof(float));
    m->act.bf16 = mu_scratch_carve(base, at, n * col * sizeof(uint16_t));
    m->act.q = mu_scratch_carve(base, at, n * col);
    m->act.s = mu_scratch_carve(base, at, n * blocks * sizeof(float));
    m->act.sum = mu_scratch_carve(base, at, n * blocks * 2 * sizeof(int16_t));
    if (s->cfg.n_expert > 0) {
        size_t n_group = (size_t)s->size.group_tokens, d = (size_t)s->cfg.d_model, d_blocks = d / MU_Q_BLOCK;
        unsigned forms = s->size.group_forms;
        m->group.f32 = mu_scratch_carve(base, at, forms & FORM_F32 ? n_group * d * sizeof(float) : 0);
        m->group.bf16 = mu_scratch_carve(base, at, forms & FORM_BF16 ? n_group * d * sizeof(uint16_t) : 0);
        m->group.q = mu_scratch_carve(base, at, forms & FORM_Q8 ? n_group * d : 0);
        m->group.s = mu_scratch_carve(base, at, forms & FORM_Q8 ? n_group * d_blocks * sizeof(float) : 0);
        m->group.sum = mu_scratch_carve(base, at, forms & FORM_Q8 ? n_group * d_blocks * 2 * sizeof(int16_t) : 0);
    }
    if (s->serving.n_adapter > 0) {
        m->lora_x = mu_scratch_carve(base, at, LORA_TOKENS * col * sizeof(float));
        m->lora_y = mu_scratch_carve(base, at, MU_UP_TILE * sizeof(float));
    }
    m->k_page = mu_scratch_carve(base, at, s->kv.max_page * sizeof *m->k_page);
    m->v_page = mu_scratch_carve(base, at, s->kv.max_page * sizeof *m->v_page);
}

static void sampler_carve(const struct mu_shard *s, struct sampler *w, void *base, size_t *at)
{
    size_t n_vocab = (size_t)s->cfg.n_vocab;
    w->order = mu_scratch_carve(base, at, n_vocab * sizeof *w->order);
    w->terms = mu_scratch_carve(base, at, n_vocab * sizeof *w->terms);
    w->nearness = mu_scratch_carve(base, at, n_vocab * sizeof *w->nearness);
    w->given = mu_scratch_carve(base, at, s->leader ? n_vocab * sizeof *w->given : 0);
}

/* As many as there can be rows at once; of a stage that has none, none. */
static void samplers_alloc(struct mu_shard *s)
{
    s->n_sampler = s->last_stage ? mu_scratch_samplers(&s->serving, mu_pool_size(s->pool)) : 0;
    size_t bytes = 0;
    sampler_carve(s, &(struct sampler){0}, NULL, &bytes);
    s->sampler_block = mu_aligned_alloc(ALIGN, bytes * (size_t)s->n_sampler + ALIGN);
    bytes = 0;
    for (int i = 0; s->sampler_block && i < s->n_sampler; i++)
        sampler_carve(s, &s->sampler[i], s->sampler_block, &bytes);
}

static enum mu_status scratch_create(struct mu_shard *s, const struct mu_shard_options *opt, struct mu_err *err)
{
    size_t n_tok = (size_t)s->serving.step_tokens, n_slot = (size_t)s->serving.n_slot;
    size_t n_block = (size_t)mu_range_len(s->me.vocab) / 1024 + 1, bytes = 0;
    int n_member = s->dev ? 0 : mu_pool_size(s->pool);
    if (!mu_scratch_sizes(s->model, &s->plan, opt->rank, &s->serving, &s->size))
        return mu_fail(err, MU_ENOMEM, "%d tokens a step are too many", s->serving.step_tokens);
    scratch_carve(s, NULL, &bytes);
    s->scratch = (struct block){mu_pages_alloc(bytes + 1), bytes + 1};
    mu_numa_bind(s->numa, s->scratch.p, s->scratch.bytes);
    s->member = mu_calloc((size_t)n_member + 1, sizeof *s->member);
    bytes = 0;
    member_carve(s, &(struct member){0}, NULL, &bytes);
    s->member_block = mu_aligned_alloc(ALIGN, bytes * (size_t)n_member + ALIGN);
    s->block0 = mu_calloc(n_slot + 1, sizeof *s->block0);
    s->segment0 = mu_calloc(n_slot + 1, sizeof *s->segment0);
    s->seq_of = mu_calloc(n_tok, sizeof *s->seq_of);
    s->row = mu_calloc(n_tok, sizeof *s->row);
    s->live = mu_calloc(n_tok, sizeof *s->live);
    s->id = mu_calloc(n_slot, sizeof *s->id);
    s->pick = mu_calloc(n_slot, n_block * sizeof *s->pick);
    s->pick_all = mu_calloc(n_slot * (size_t)s->stage.n_rank, sizeof *s->pick_all);
    samplers_alloc(s);
    s->logprobs = mu_calloc(n_slot, sizeof *s->logprobs);
    if (!s->scratch.p || !s->member || !s->member_block || !s->block0 || !s->segment0 || !s->seq_of || !s->row ||
        !s->live || !s->id || !s->pick || !s->pick_all || !s->sampler_block || !s->logprobs)
        return mu_fail(err, MU_ENOMEM, "no memory for steps of %d tokens in %d slots (%zu MB): use fewer of them",
                       s->serving.step_tokens, s->serving.n_slot, s->scratch.bytes >> 20);
    bytes = 0;
    scratch_carve(s, s->scratch.p, &bytes);
    bytes = 0;
    for (int i = 0; i < n_member; i++) member_carve(s, &s->member[i], s->member_block, &bytes);
    return MU_OK;
}

/* ---- the shard ---- */

static enum mu_status options_check(const struct mu_shard_options *opt, struct mu_err *err)
{
    const struct mu_serving *v = &opt->serving;
    if (opt->rank < 0 || opt->rank >= opt->plan->n_rank)
        return mu_fail(err, MU_EINVAL, "rank %d of a plan of %d ranks", opt->rank, opt->plan->n_rank);
    if (v->n_ctx < 1 || v->n_slot < 1 || v->n_page < 1 || v->step_tokens < 1)
        return mu_fail(err, MU_EINVAL, "context %d, slots %d, pages %u, tokens a step %d: each must be at least 1",
                       v->n_ctx, v->n_slot, v->n_page, v->step_tokens);
    if (opt->model->cfg.d_head > MU_MAX_D_HEAD)
        return mu_fail(err, MU_EUNSUPPORTED, "heads of %d dimensions, expected at most %d", opt->model->cfg.d_head,
                       MU_MAX_D_HEAD);
    return mu_kernels() ? MU_OK : mu_kernels_init(NULL, err);
}

enum mu_status mu_shard_create(const struct mu_shard_options *opt, struct mu_shard **shard_out, struct mu_err *err)
{
    enum mu_status st = options_check(opt, err);
    if (st != MU_OK) return st;
    struct mu_shard *s = mu_aligned_alloc(ALIGN, sizeof *s);
    if (!s) return mu_fail(err, MU_ENOMEM, "no memory for rank %d", opt->rank);
    memset(s, 0, sizeof *s);
    s->rank = opt->rank;
    s->model = opt->model;
    s->cfg = opt->model->cfg;
    s->plan = *opt->plan;
    s->me = s->plan.rank[opt->rank];
    s->stage = s->plan.stage[s->me.stage];
    s->first_stage = s->me.stage == 0;
    s->last_stage = s->me.stage == s->plan.n_stage - 1;
    s->leader = opt->rank == s->plan.leader;
    s->serving = opt->serving;
    s->adapters = opt->adapters;
    s->serving.n_adapter = opt->adapters ? opt->adapters->n : 0;
    s->serving.lora_rank = opt->adapters ? opt->adapters->max_rank : 0;
    s->pool = opt->pool;
    s->numa = opt->numa;
    s->comm = opt->comm;
    s->record = opt->record;
    s->k = mu_kernels();
    MU_TRY(st, mu_kv_create(s, err), fail);
    if (s->plan.split.device[s->rank] != MU_ON_CPU) MU_TRY(st, mu_dev_create(s, opt, err), fail);
    MU_TRY(st, scratch_create(s, opt, err), fail);
    MU_TRY(st, mu_halves_create(s, opt, err), fail);
    MU_TRY(st, mu_shard_load(s, opt, err), fail);
    float *x = s->dev ? s->dev->pinned.in.x : s->x;
    if (s->first_stage &&
        !s->k->dequant_row(s->model->embed->type, mu_gguf_row(s->model->embed, 0), s->cfg.d_model, x)) {
        st = mu_gguf_tensor_fail(s->model->gguf, s->model->embed, MU_EUNSUPPORTED,
                                 "this build does not read embeddings of its type", err);
        goto fail;
    }
    if (s->record) mu_record_op(s->record, MU_OP_IDLE, MU_RECORD_NOBODY);
    *shard_out = s;
    return MU_OK;
fail:
    mu_shard_destroy(s);
    return st;
}

double mu_shard_numa_share(const struct mu_shard *s)
{
    const struct block blocks[] = {s->weights, s->scratch, {s->kv.data, s->kv.bytes}};
    double here = 0, all = 0;
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) {
        double share = mu_numa_share(s->numa, blocks[i].p, blocks[i].bytes);
        if (share < 0) continue;
        here += share * (double)blocks[i].bytes;
        all += (double)blocks[i].bytes;
    }
    return all > 0 ? here / all : -1;
}

void mu_shard_destroy(struct mu_shard *s)
{
    if (!s) return;
    mu_dev_destroy(s);
    mu_halves_destroy(s);
    if (s->weights.p) mu_pages_free(s->weights.p, s->weights.bytes);
    if (s->scratch.p) mu_pages_free(s->scratch.p, s->scratch.bytes);
    if (s->lora_data.p) mu_pages_free(s->lora_data.p, s->lora_data.bytes);
    mu_free(s->lora);
    mu_free(s->lora_group);
    mu_kv_destroy(&s->kv);
    mu_free(s->layer);
    mu_free(s->expert);
    mu_free(s->vectors);
    mu_free(s->rope_freq);
    mu_free(s->member);
    mu_free(s->member_block);
    mu_free(s->block0);
    mu_free(s->segment0);
    mu_free(s->seq_of);
    mu_free(s->row);
    mu_free(s->live);
    mu_free(s->id);
    mu_free(s->pick);
    mu_free(s->pick_all);
    mu_free(s->sampler_block);
    mu_free(s->logprobs);
    mu_free(s);
}
