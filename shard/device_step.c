/* A step on a device, from top to bottom: forward.c's pass as operations in a queue.
 *
 * There is one forward pass, and this is its second description: what is computed, in which order and in which formats is
 * forward.c's, and so are the jobs, the rows, the parts of an exchange and the code that chooses ids. Instead of members
 * that meet there is a queue that runs in order.
 *
 *   forward.c and its kin                             here
 *   step_begin      embeddings, rotation angles       embed_all, here, uploaded with the rest of dev_in; rope_table
 *   mu_run_norm     residual, norm, forms             norm
 *   mu_run_matmul   products and what follows         matmul (mu_lora_inner, mu_lora_add: device_lora.c)
 *   mu_run_attend   rotate, store, attend             rotate; attn, by blocks of a prompt or query by query
 *   mu_run_gather_input, mu_run_project   ① … ④       device_exchange.c
 *   mu_run_experts  choice, hidden, sum               route; matmul by places, twice; combine
 *   logits_run, mu_run_states, mu_run_sample          device_sample.c
 *
 * Everything that changes from step to step is in dev_in, which is uploaded first. So the operations of two decode
 * steps of one shape are the same to the last argument, and device_graph.c replays them. The host waits where it has
 * something to send or to choose, and at the end of each step. */
#include <string.h>

#include "base/clock.h"
#include "shard/device.h"

/* Sequences with fewer tokens attend query by query, which cuts long contexts; others in blocks, which read keys once for
 * many queries. */
enum { SHORT_TOKENS = 8 };

/* ---- what the step tells the device ---- */

static void embed_main(void *arg, int member, int n_member)
{
    struct mu_shard *s = arg;
    const struct mu_gguf_tensor *embed = s->model->embed;
    size_t d = (size_t)s->cfg.d_model;
    int begin = (int)((long long)s->n_tok * member / n_member);
    int end = (int)((long long)s->n_tok * (member + 1) / n_member);
    if (!mu_fp_env_ok()) mu_fp_env_set();
    for (int t = begin; t < end; t++) {
        float *x = s->dev->pinned.in.x + (size_t)t * d;
        s->k->dequant_row(embed->type, mu_gguf_row(embed, (uint64_t)s->step->ids[t]), s->cfg.d_model, x);
        for (size_t i = 0; s->cfg.embed_scale != 1.0f && i < d; i++) x[i] = x[i] * s->cfg.embed_scale;
    }
}

/* A few tokens cost less than waking the pool. */
static void embed_all(struct mu_shard *s)
{
    if (s->n_tok <= 4)
        embed_main(s, 0, 1);
    else
        mu_pool_run(s->pool, embed_main, s);
}

static bool is_short(const struct mu_step_seq *q)
{
    return q->n_tok < SHORT_TOKENS && !q->rough;
}

/* Blocks of one sequence from its end: the longest first. */
static void blocks_add(struct queue *r, const struct mu_step_seq *q)
{
    struct mu_device_block *block = r->v->pinned.in.block;
    uint32_t n = (q->n_tok + MU_DEVICE_QUERY_BLOCK - 1) / MU_DEVICE_QUERY_BLOCK;
    while (n-- > 0) {
        uint32_t begin = n * MU_DEVICE_QUERY_BLOCK, left = q->n_tok - begin;
        block[r->n_block++] = (struct mu_device_block){
            .tok = (int32_t)(q->tok_off + begin),
            .n_tok = (int32_t)(left < MU_DEVICE_QUERY_BLOCK ? left : (uint32_t)MU_DEVICE_QUERY_BLOCK),
            .pos0 = (int32_t)(q->pos0 + begin),
            .slot = (int32_t)q->slot};
    }
}

/* Those of rough sequences first. */
static void blocks_fill(struct queue *r)
{
    const struct mu_step *step = r->s->step;
    for (uint32_t i = 0; i < step->n_seq; i++)
        if (step->seq[i].rough) blocks_add(r, &step->seq[i]);
    r->n_rough_block = r->n_block;
    for (uint32_t i = 0; i < step->n_seq; i++)
        if (!step->seq[i].rough && !is_short(&step->seq[i])) blocks_add(r, &step->seq[i]);
}

static void seq_fill(struct queue *r, const struct mu_step_seq *q)
{
    const struct mu_shard *s = r->s;
    const struct dev_in *in = &r->v->pinned.in;
    for (uint32_t i = 0; i < q->n_tok; i++) {
        uint32_t t = q->tok_off + i;
        in->pos[t] = (int32_t)(q->pos0 + i);
        in->slot[t] = (int32_t)q->slot;
        in->far[t] = q->far;
        if (s->cfg.query_scale != 0.0f)
            in->q_scale[t] = mu_query_scale((double)s->cfg.query_scale, s->cfg.n_ctx_orig, in->pos[t]);
    }
    if ((int)(q->pos0 + q->n_tok) > r->max_pos) r->max_pos = (int)(q->pos0 + q->n_tok);
}

static void rows_fill(const struct queue *r)
{
    const struct mu_shard *s = r->s;
    const struct dev_in *in = &r->v->pinned.in;
    for (int i = 0; i < s->n_live; i++) {
        in->live[i] = s->live[i];
        in->row[i] = s->row[i].at;
    }
    for (int i = s->n_host; i < s->n_row; i++) {
        const struct mu_step_seq *q = &s->step->seq[s->row[i].seq];
        in->draw[i - s->n_host] = (struct mu_device_draw){
            .temperature = q->sampling.temperature, .seed = q->sampling.seed, .position = (uint64_t)q->pos0 + q->n_tok};
    }
}

/* All of it, and the residual that the step begins with; uploaded. */
static bool in_fill(struct queue *r)
{
    struct mu_shard *s = r->s;
    struct dev *v = r->v;
    const struct dev_in *from = &v->pinned.in;
    bool linked = v->before.link;
    size_t x_bytes = linked ? 0 : (size_t)s->n_tok * (size_t)s->cfg.d_model * sizeof *from->x;
    for (uint32_t i = 0; i < s->step->n_seq; i++) seq_fill(r, &s->step->seq[i]);
    blocks_fill(r);
    rows_fill(r);
    if (s->n_tok > 0 && !s->first_stage && !linked) mu_recv_now(s, from->x, s->n_tok);
    if (s->failed != MU_OK) return false;
    if (s->first_stage) embed_all(s);
    if (s->n_tok > 0) r->ops->upload(v->d, v->in.base, from->base, (size_t)((char *)from->x - from->base) + x_bytes);
    if (s->kv.n_set > 0) {
        r->ops->upload(v->d, v->in.set, from->set, (size_t)s->kv.n_set * sizeof *from->set);
        r->ops->set(v->d, v->table, v->in.set, s->kv.n_set);
    }
    if (r->lora) mu_dev_lora_scales(r);
    if (s->n_tok > 0 && linked) mu_dev_hop_recv(r);
    return true;
}

/* ---- products and norms ---- */

struct mu_act_to mu_dev_forms(const struct act *act, unsigned forms)
{
    struct mu_act_to to = {0};
    if (forms & FORM_F32) to.f32 = act->f32;
    if (forms & FORM_BF16) to.bf16 = act->bf16;
    if (forms & FORM_Q8) {
        to.q = act->q;
        to.s = act->s;
        to.sum = act->sum;
    }
    return to;
}

struct mu_act mu_dev_act(const struct act *act, int n_tok, int n_col)
{
    return (struct mu_act){
        .n_tok = n_tok, .n_col = n_col, .f32 = act->f32, .bf16 = act->bf16, .q = act->q, .s = act->s, .sum = act->sum};
}

static enum mu_device_act act_of(enum job_act act)
{
    switch (act) {
    case ACT_NONE: break;
    case ACT_SILU: return MU_DEVICE_ACT_SILU;
    case ACT_GELU: return MU_DEVICE_ACT_GELU;
    case ACT_GELU_ERF: return MU_DEVICE_ACT_GELU_ERF;
    }
    return MU_DEVICE_ACT_NONE;
}

void mu_dev_matmul(const struct queue *r, const struct job *job, int n_job, const struct mu_act *x,
                   const struct mu_act_to *form)
{
    struct mu_device_job to[MU_DEVICE_MAX_JOBS];
    struct job mine[MU_DEVICE_MAX_JOBS];
    int n = 0;
    if (x->n_tok == 0) return;
    for (int j = 0; j < n_job; j++) {
        if (job[j].m->n_row == 0) continue;
        mine[n] = job[j];
        to[n] = (struct mu_device_job){.m = job[j].m,
                                       .up = job[j].up,
                                       .out = job[j].out,
                                       .stride = job[j].stride,
                                       .bf16 = job[j].bf16,
                                       .bias = mu_dev_vector(r->s, job[j].bias),
                                       .plus = job[j].plus,
                                       .scale = job[j].scale,
                                       .cap = job[j].cap,
                                       .act = act_of(job[j].act)};
        if (j == 0 && form) to[n].form = *form;
        n++;
    }
    if (n == 0) return;
    if (r->lora) mu_dev_lora(r, mine, to, n, x);
    if (r->n_rough > 0)
        mu_dev_matmul_parts(r, to, n, x);
    else
        r->ops->matmul(r->v->d, to, n, x, NULL);
}

enum mu_device_norm_kind mu_dev_norm_kind(const struct mu_shard *s)
{
    return s->model->arch->norm == MU_NORM_RMS ? MU_DEVICE_NORM_RMS : MU_DEVICE_NORM_LAYER;
}

/* The residual with what is pending, normed, in its forms. */
static void norm_queue(struct queue *r, const float *weight, const float *bias, unsigned forms)
{
    const struct mu_shard *s = r->s;
    const struct mu_device_norm norm = {.n_tok = r->n_tok,
                                        .n = s->cfg.d_model,
                                        .x = r->x,
                                        .keep = true,
                                        .y = r->pending,
                                        .post = mu_dev_vector(s, r->post),
                                        .y_round = r->pending_round,
                                        .kind = mu_dev_norm_kind(s),
                                        .eps = s->cfg.norm_eps,
                                        .w = mu_dev_vector(s, weight),
                                        .b = mu_dev_vector(s, bias),
                                        .form = mu_dev_forms(&r->v->act, forms)};
    r->ops->norm(r->v->d, &norm);
    r->pending = NULL;
}

/* ---- attention ---- */

static void turns_queue(const struct queue *r)
{
    const struct mu_shard *s = r->s;
    int n_pair = s->cfg.n_rot / 2;
    for (int i = 0; i < s->n_rope; i++) { /* only the first table has far angles of its own */
        const float *freq = r->v->freq + i * n_pair, *far = i == 0 ? r->v->freq + s->n_rope * n_pair : freq;
        r->ops->rope_table(r->v->d, freq, far, r->v->in.far, r->v->in.pos, r->n_tok, n_pair, s->cfg.rope_attn_factor,
                           r->v->rope + (size_t)i * (size_t)s->serving.step_tokens * (size_t)s->cfg.n_rot);
    }
}

static struct mu_device_kv kv_of(const struct queue *r, int layer)
{
    const struct kv *kv = &r->s->kv;
    const struct kv_layer *l = &kv->layer[layer];
    return (struct mu_device_kv){.type = kv->type,
                                 .n_head = kv->n_head,
                                 .d_head = kv->d_head,
                                 .page_tokens = MU_PAGE_TOKENS,
                                 .n_page = kv->n_page[l->group],
                                 .max_page = kv->max_page,
                                 .page_bytes = kv->page_bytes,
                                 .data = (char *)r->v->kv + l->offset,
                                 .table = r->v->table + (mu_kv_table(kv, l->group, 0) - kv->table)};
}

static void rotate_queue(const struct queue *r, int index)
{
    const struct mu_shard *s = r->s;
    const struct layer *layer = &s->layer[index];
    const struct dev *v = r->v;
    size_t table = (size_t)s->serving.step_tokens * (size_t)s->cfg.n_rot;
    const struct mu_device_rotate rotate = {.kv = kv_of(r, index),
                                            .n_tok = r->n_tok,
                                            .n_head = mu_range_len(s->me.heads),
                                            .n_rot = s->cfg.n_rot,
                                            .neox = s->model->arch->rope == MU_ROPE_HALVES,
                                            .eps = s->cfg.norm_eps,
                                            .cos_sin = layer->rope < 0 ? NULL : v->rope + (size_t)layer->rope * table,
                                            .q_norm = mu_dev_vector(s, layer->vec[MU_T_Q_NORM]),
                                            .k_norm = mu_dev_vector(s, layer->vec[MU_T_K_NORM]),
                                            .q_scale = s->cfg.query_scale != 0.0f ? v->in.q_scale : NULL,
                                            .q = v->q,
                                            .k = v->key,
                                            .v = v->value,
                                            .pos = v->in.pos,
                                            .slot = v->in.slot};
    r->ops->rotate(v->d, &rotate);
}

/* From tokens [begin, …) on; the result is out's first row onwards. */
static struct mu_device_attn attn_of(const struct queue *r, int index, int begin, float *out)
{
    const struct mu_shard *s = r->s;
    const float *sinks = mu_dev_vector(s, s->layer[index].vec[MU_T_SINKS]);
    size_t stride = (size_t)mu_range_len(s->me.heads) * (size_t)s->cfg.d_head;
    return (struct mu_device_attn){.kv = kv_of(r, index),
                                   .n_head = mu_range_len(s->me.heads),
                                   .head0 = s->me.heads.begin,
                                   .group = s->cfg.n_head / s->cfg.n_kv_head,
                                   .kv_head0 = s->me.kv_heads.begin,
                                   .window = s->layer[index].window,
                                   .scale = s->cfg.attn_scale,
                                   .softcap = s->cfg.attn_softcap,
                                   .sink = sinks ? sinks + s->me.heads.begin : NULL,
                                   .q = r->v->q + (size_t)begin * stride,
                                   .out = out,
                                   .pos = r->v->in.pos + begin,
                                   .slot = r->v->in.slot + begin,
                                   .max_pos = r->max_pos,
                                   .part = r->v->part,
                                   .part_bytes = r->v->size.part};
}

/* Neighbours of few tokens together, query by query. form: of all tokens, where no others are. */
static void attend_short(const struct queue *r, int index, float *out, const struct mu_act_to *form)
{
    const struct mu_step *step = r->s->step;
    size_t stride = (size_t)mu_range_len(r->s->me.heads) * (size_t)r->s->cfg.d_head;
    for (uint32_t i = 0; i < step->n_seq;) {
        uint32_t first = i;
        while (i < step->n_seq && is_short(&step->seq[i])) i++;
        if (i == first) {
            i++;
            continue;
        }
        int begin = (int)step->seq[first].tok_off, end = (int)(step->seq[i - 1].tok_off + step->seq[i - 1].n_tok);
        struct mu_device_attn a = attn_of(r, index, begin, out + (size_t)begin * stride);
        a.n_query = end - begin;
        a.form = *form;
        r->ops->attn(r->v->d, &a);
    }
}

/* Into to's f32 and its forms. Where all goes query by query, that writes the forms: of a prompt's blocks they are made
 * afterwards. */
static void attend_queue(const struct queue *r, int index, bool prune, const struct dev_part *to)
{
    struct mu_device_attn a = attn_of(r, index, 0, to->f32);
    const struct mu_act_to none = {0}, *form = r->n_block > 0 ? &none : &to->form;
    if (mu_range_len(r->s->me.heads) == 0) return;
    rotate_queue(r, index);
    if (prune) {
        a.n_query = r->s->n_live;
        a.query = r->v->in.live;
        a.form = to->form;
        if (a.n_query > 0) r->ops->attn(r->v->d, &a);
        return;
    }
    int n_rough = r->n_rough > 0 ? r->n_rough_block : 0; /* in the last layer none */
    a.block = r->v->in.block;
    a.n_block = n_rough;
    a.rough = true;
    if (a.n_block > 0) r->ops->attn(r->v->d, &a);
    a.block += n_rough;
    a.n_block = r->n_block - n_rough;
    a.rough = false;
    if (a.n_block > 0) r->ops->attn(r->v->d, &a);
    attend_short(r, index, to->f32, form);
    if (r->n_block > 0 && (to->form.q || to->form.bf16))
        r->ops->form(r->v->d, to->f32, (size_t)to->width, to->n_vec, to->width, &to->form);
}

/* The layer goes on with the live tokens alone. */
static void prune_queue(struct queue *r)
{
    struct mu_shard *s = r->s;
    const struct mu_device_norm rows = {.n_tok = s->n_live,
                                        .n = s->cfg.d_model,
                                        .x = r->x,
                                        .row = r->v->in.live,
                                        .kind = MU_DEVICE_NORM_NONE,
                                        .form = {.f32 = r->v->live_x}};
    r->ops->norm(r->v->d, &rows);
    r->n_tok = s->n_live;
    r->x = r->v->live_x;
    if (r->lora) r->lora = &s->lora_live;
}

/* ---- layers ---- */

/* The product of o or down, left pending. */
static bool project_queue(struct queue *r, const struct job *project, const struct mu_act *in, bool round,
                          const float *post)
{
    struct job job = *project;
    struct parts parts;
    mu_dev_project_begin(r, &job.out, &job.bf16, round, post, &parts);
    mu_dev_matmul(r, &job, 1, in, NULL);
    return mu_dev_project_end(r, &parts);
}

static bool attention_queue(struct queue *r, int index, bool last)
{
    struct mu_shard *s = r->s;
    struct dev *v = r->v;
    const struct layer *layer = &s->layer[index];
    bool parallel = s->model->arch->parallel, prune = last && s->prune;
    int q0 = s->me.heads.begin * s->cfg.d_head, kv0 = s->me.kv_heads.begin * s->cfg.d_head;
    struct mu_act in;
    norm_queue(r, layer->vec[MU_T_ATTN_NORM], layer->vec[MU_T_ATTN_NORM_B], layer->attn_in);
    const struct job jobs[] = {mu_job_biased(layer, MU_T_Q, MU_T_Q_B, q0, v->q),
                               mu_job_biased(layer, MU_T_K, MU_T_K_B, kv0, v->key),
                               mu_job_biased(layer, MU_T_V, MU_T_V_B, kv0, v->value)};
    in = mu_dev_act(&v->act, r->n_tok, s->cfg.d_model);
    mu_dev_matmul(r, jobs, 3, &in, NULL);
    if (last) mu_dev_rough_end(r);
    struct dev_part part = mu_dev_input_begin(r, INPUT_O, layer->o_in, prune ? s->n_live : r->n_tok);
    attend_queue(r, index, prune, &part);
    if (prune) prune_queue(r);
    if (!mu_dev_input_end(r, &part, &in)) return false;
    const struct job job = mu_job_added(s, layer, MU_T_O, MU_T_O_B, parallel ? v->y_attn : v->y);
    if (!parallel) return project_queue(r, &job, &in, layer->o_round, layer->vec[MU_T_POST_ATTN_NORM]);
    mu_dev_matmul(r, &job, 1, &in, NULL);
    return true;
}

/* One matrix of each expert, by places. */
static void experts_matmul(const struct queue *r, int layer, enum mu_tensor_id id, struct mu_device_job *job,
                           const struct mu_act *x)
{
    const struct mu_shard *s = r->s;
    const struct dev *v = r->v;
    const struct mu_mat *m = mu_expert_mats(s, layer, id), *up = mu_expert_mats(s, layer, MU_T_UP);
    int n = s->cfg.n_expert;
    const struct mu_device_experts experts = {
        .n_expert = n,
        .n_used = s->cfg.n_expert_used,
        .m_bytes = n > 1 ? (size_t)((char *)m[1].data - (char *)m[0].data) : 0,
        .up_bytes = n > 1 && id == MU_T_GATE ? (size_t)((char *)up[1].data - (char *)up[0].data) : 0,
        .begin = v->begin,
        .place = v->place,
        .by_place = id == MU_T_DOWN};
    job->m = m;
    job->stride = (size_t)m->n_row;
    if (id == MU_T_GATE) job->up = up;
    if (m->n_row > 0 && x->n_tok > 0) r->ops->matmul(v->d, job, 1, x, &experts);
}

/* Vectors [begin, end): their experts, those experts' products, the sum of these to `out` from its first row on. */
static bool experts_part(const struct queue *r, int index, int begin, int end, bool rough, const struct mu_act *x,
                         struct mu_device_combine sum)
{
    struct mu_shard *s = r->s;
    struct dev *v = r->v;
    const struct layer *layer = &s->layer[index];
    int n_used = s->cfg.n_expert_used, n_place = (end - begin) * n_used;
    struct queue exact = *r; /* the choice is, whatever follows */
    struct mu_act in = mu_dev_act_from(x, begin, end);
    const struct job router = {.m = &layer->mat[MU_T_ROUTER],
                               .out = v->route,
                               .stride = (size_t)s->cfg.n_expert,
                               .bias = layer->vec[MU_T_ROUTER_B]};
    mu_dev_rough_end(&exact);
    mu_dev_matmul(&exact, &router, 1, &in, NULL);
    const struct mu_device_route route = {.n_tok = end - begin,
                                          .n_expert = s->cfg.n_expert,
                                          .n_used = n_used,
                                          .score = v->route,
                                          .chosen = v->chosen,
                                          .place = v->place,
                                          .at = v->at,
                                          .begin = v->begin,
                                          .weight = v->chosen_weight};
    r->ops->route(v->d, &route);
    struct dev_part part = mu_dev_input_begin(r, INPUT_DOWN, layer->down_in, n_place);
    struct mu_device_job hidden = {.out = part.f32,
                                   .form = part.form,
                                   .bias = mu_dev_vector(s, layer->vec[MU_T_GATE_EXPS_B]),
                                   .up_bias = mu_dev_vector(s, layer->vec[MU_T_UP_EXPS_B]),
                                   .act = s->model->arch->ffn == MU_FFN_SILU_CLAMPED ? MU_DEVICE_ACT_SILU_CLAMPED
                                                                                     : MU_DEVICE_ACT_SILU,
                                   .rough = rough};
    experts_matmul(r, index, MU_T_GATE, &hidden, &in);
    if (!mu_dev_input_end(r, &part, &in)) return false;

    struct mu_device_job down = {.out = v->expert_part, .rough = rough};
    experts_matmul(r, index, MU_T_DOWN, &down, &in);
    sum.n_tok = end - begin;
    sum.out += (size_t)begin * (size_t)sum.n;
    if (sum.n > 0) r->ops->combine(v->d, &sum);
    return true;
}

/* Several ranks: the parts' exchanges need the place that the sum is to go to, so it is moved there when all are done. */
static bool experts_project(struct queue *r, const struct layer *layer, int n)
{
    struct dev *v = r->v;
    struct mu_act_to form = {0};
    struct parts parts;
    float *out = v->y;
    mu_dev_project_begin(r, &out, &form.bf16, layer->down_round, layer->vec[MU_T_POST_FFN_NORM], &parts);
    if (n > 0 && form.bf16)
        r->ops->form(v->d, v->y, (size_t)n, r->n_tok, n, &form);
    else if (n > 0 && out != v->y)
        r->ops->copy(v->d, out, v->y, (size_t)r->n_tok * (size_t)n * sizeof *out);
    return mu_dev_project_end(r, &parts);
}

static bool experts_queue(struct queue *r, int index)
{
    struct mu_shard *s = r->s;
    struct dev *v = r->v;
    const struct layer *layer = &s->layer[index];
    const struct mu_act in = mu_dev_act(&v->act, r->n_tok, s->cfg.d_model);
    const struct mu_device_combine sum = {.n_used = s->cfg.n_expert_used,
                                          .n = mu_range_len(s->me.model),
                                          .part = v->expert_part,
                                          .weight = v->chosen_weight,
                                          .bias = mu_dev_vector(s, layer->vec[MU_T_DOWN_EXPS_B]),
                                          .chosen = v->chosen,
                                          .at = v->at,
                                          .scale = s->cfg.residual_scale != 1.0f ? s->cfg.residual_scale : 0.0f,
                                          .out = v->y};
    int n_rough = mu_dev_rough_experts(s) ? r->n_rough : 0, n_exact = n_rough > 0 ? r->n_exact : r->n_tok;
    if (n_exact > 0 && !experts_part(r, index, 0, n_exact, false, &in, sum)) return false;
    for (int i = 0; i < n_rough; i++)
        if (!experts_part(r, index, v->rough[i].begin, v->rough[i].end, true, &in, sum)) return false;
    return experts_project(r, layer, sum.n);
}

static bool ffn_queue(struct queue *r, int index)
{
    struct mu_shard *s = r->s;
    struct dev *v = r->v;
    const struct layer *layer = &s->layer[index];
    norm_queue(r, layer->vec[MU_T_FFN_NORM], layer->vec[MU_T_FFN_NORM_B], layer->ffn_in);
    if (s->cfg.n_expert > 0) return experts_queue(r, index);
    struct mu_act in = mu_dev_act(&v->act, r->n_tok, s->cfg.d_model);
    struct dev_part part = mu_dev_input_begin(r, INPUT_DOWN, layer->down_in, r->n_tok);
    const struct job hidden = mu_job_hidden(s, layer, part.f32);
    mu_dev_matmul(r, &hidden, 1, &in, &part.form);
    if (!mu_dev_input_end(r, &part, &in)) return false;
    struct job down = mu_job_added(s, layer, MU_T_DOWN, MU_T_DOWN_B, v->y);
    if (s->model->arch->parallel) down.plus = v->y_attn;
    return project_queue(r, &down, &in, layer->down_round, layer->vec[MU_T_POST_FFN_NORM]);
}

/* Everything but what is done with the results. */
static bool pass_queue(struct queue *r)
{
    struct mu_shard *s = r->s;
    int n_layer = mu_range_len(s->stage.layers);
    turns_queue(r);
    for (int l = 0; l < n_layer; l++) {
        bool last = s->last_stage && l == n_layer - 1;
        if (s->record) {
            atomic_store_explicit(&s->record->layer, s->stage.layers.begin + l, memory_order_relaxed);
            mu_record_tick(s->record);
        }
        mu_dev_stream_begin(r, l);
        bool more = !last || s->n_live > 0;
        if (!attention_queue(r, l, last) || (more && !ffn_queue(r, l))) return false;
        mu_dev_stream_end(r, l);
        if (!more) return true;
    }
    if (s->last_stage)
        mu_dev_rows(r);
    else /* what is pending goes to the residual; the norm is wanted in no form */
        norm_queue(r, s->out_norm, s->out_norm_b, 0);
    return true;
}

void mu_dev_step(struct mu_shard *s)
{
    struct queue r = {.s = s,
                      .v = s->dev,
                      .ops = s->dev->ops,
                      .n_tok = s->n_tok,
                      .x = s->dev->in.x,
                      .lora = s->lora_tok.n ? &s->lora_tok : NULL};
    s->dev->n_step++;
    if (!mu_fp_env_ok()) mu_fp_env_set();
    mu_dev_rough_find(&r);
    if (!in_fill(&r)) return;
    if (s->n_tok > 0) {
        mu_dev_pass(&r, pass_queue);
        if (s->failed != MU_OK) return;
        if (!s->last_stage) {
            mu_dev_send(&r);
            return;
        }
    }
    mu_dev_results(&r);
}
