/* What a step should take. Work is counted from the model's shape and the plan; what travels as exchange.c has it. */
#include "shard/plan_predict.h"

enum { CHUNK_TOKENS = 512 };

static const struct mu_plan_link INSIDE = {5, 10}, BETWEEN = {100, 0.125};

/* What processors reach of their measured int8 and f32 rates with a chunk of a prompt (AVX-512, Q4_0: 68 to 70%, and
 * attention 75 to 88%); reading weights they reach the measured rate. f32 where it was not measured: AVX-512's. */
static const double CPU_INT8_SHARE = 0.7, CPU_F32_SHARE = 0.8, CPU_F32_OF_INT8 = 0.25;

/* What a GPU rank reaches of its measured figures, the fixed time of a layer's small kernels in a decode, and of a move
 * over PCIe. Of an H200 and 8B: a decode takes 3.24 ms of Q8_0 and 2.56 of Q4_K (3.3 and 2.3 by these), prompts go at 14
 * and 11% of the int8 rate, attention in it. */
static const double GPU_READ_SHARE = 0.8, GPU_INT8_SHARE = 0.13, GPU_F32_SHARE = 0.5, GPU_LAYER_MS = 0.03,
                    GPU_HOP_MS = 0.03, GPU_HOP_GBPS = 10;

/* What NCCL takes for a few bytes among GPUs of a machine; it was never measured here, and is what others report. Longer ones
 * go at the speed of the slowest way between host and GPU, which NVLink exceeds. */
static const double GPU_LINK_MS = 0.015;

/* What a core moves between itself and a link beside its work, sent and received together: copies, the kernel's TCP. Two
 * ranks of a thread over tests/links/links, whose hub is in it. */
static const double MOVE_GBPS = 0.6;

struct predict {
    const struct mu_model *model;
    const struct mu_plan *plan;
    const struct mu_plan_node *node;
    const int *node_of;
    const struct mu_plan_links *links;
    const struct mu_plan_step *step;
    int machine[MU_MAX_RANKS]; /* of each rank */
};

static bool together(const struct predict *p, int a, int b)
{
    return p->machine[a] == p->machine[b];
}

/* ---- a rank ---- */

struct step_cost { /* operations (a multiplication with an addition is two), bytes of matrices */
    double int8_ops, f32_ops, attention_ops, bytes;
    double streamed_bytes; /* of these, and of experts that are not used: what comes to a GPU in every step */
};

static void cost_add(struct step_cost *c, const struct mu_gguf_tensor *t, double n_row, double n_tok, double n_copy)
{
    const struct mu_type_info *type = mu_type_info(t->type);
    double ops = 2 * n_row * (double)t->ne[0] * n_tok;
    if (type && type->act == MU_ACT_Q8)
        c->int8_ops += ops;
    else
        c->f32_ops += ops;
    c->bytes += n_row * (double)t->row_bytes * n_copy;
}

/* Of experts those that are used, none of them by two tokens while there are others. Behind the attention of the
 * model's last layer only tokens whose logits are wanted go on. */
static struct step_cost rank_cost(const struct predict *p, const struct mu_plan_rank *r)
{
    struct step_cost c = {0};
    const struct mu_model *m = p->model;
    double n_tok = p->step->n_tok, n_row = p->step->n_row;
    if (n_row > 0) cost_add(&c, m->output, mu_range_len(r->vocab), n_row, 1);
    for (int l = p->plan->stage[r->stage].layers.begin; l < p->plan->stage[r->stage].layers.end; l++) {
        double behind = l == m->cfg.n_layer - 1 ? n_row : n_tok, window = mu_config_window(&m->cfg, l);
        int place = l - p->plan->stage[r->stage].layers.begin;
        bool streamed = mu_plan_streamed(p->plan, (int)(r - p->plan->rank), place) >= 0;
        double seen = window > 0 && window < p->step->n_seen ? window : p->step->n_seen;
        for (int id = 0; id < MU_T_MATRIX_COUNT; id++) {
            const struct mu_gguf_tensor *t = m->layer[l][id];
            if (!t) continue;
            int row0, n = mu_plan_rows(m, r, (enum mu_tensor_id)id, &row0);
            double tokens = id >= MU_T_O ? behind : n_tok, used = 1, copies = 1;
            if (mu_config_copies(&m->cfg, (enum mu_tensor_id)id) > 1) {
                used = m->cfg.n_expert_used;
                copies = used * tokens < m->cfg.n_expert ? used * tokens : m->cfg.n_expert;
            }
            cost_add(&c, t, n, tokens * used, copies);
            if (streamed)
                c.streamed_bytes += (double)n * (double)t->row_bytes * mu_config_copies(&m->cfg, (enum mu_tensor_id)id);
        }
        c.attention_ops += 4.0 * mu_range_len(r->heads) * m->cfg.d_head * seen * n_tok;
    }
    int n_streamed = p->plan->split.streamed[r - p->plan->rank];
    if (n_streamed > 0) c.streamed_bytes *= (double)mu_plan_stream_moves(n_streamed) / n_streamed;
    return c;
}

struct rank_ms {
    double read, compute, fixed;
};

static bool rank_on_gpu(const struct step_cost *c, int n_layer, const struct mu_gpu *g, struct rank_ms *ms)
{
    if (!(g->read_gbps > 0 && g->int8_gops > 0)) return false;
    double f32_gops = g->f32_gops > 0 ? g->f32_gops : g->int8_gops;
    double come_ms = c->streamed_bytes / (g->up_gbps > 0 ? g->up_gbps : GPU_HOP_GBPS) / 1e6; /* beside all else */
    ms->read = c->bytes / (g->read_gbps * GPU_READ_SHARE) / 1e6;
    ms->compute = (c->int8_ops / (g->int8_gops * GPU_INT8_SHARE) + c->f32_ops / (f32_gops * GPU_F32_SHARE)) / 1e6;
    ms->fixed = GPU_LAYER_MS * n_layer;
    if (come_ms > ms->read) ms->read = come_ms;
    return true;
}

/* How many of the plan's ranks are at this rank's place: in its stage, in all stages, and on GPUs of the same node. */
struct sharers {
    int of_stage, of_all, on_gpus;
};

/* All ranks of a node divide its cores. Its memory serves those that work at once: a stage in a decode, since the other
 * stages wait for it; all of them while chunks follow each other. Each rank on a GPU waits on a core. */
static bool rank_on_cpu(const struct step_cost *c, const struct mu_plan_node *n, const struct sharers *by,
                        bool is_chunk, struct rank_ms *ms)
{
    if (!(n->read_gbps > 0 && n->int8_gops > 0)) return false;
    double f32_gops = n->f32_gflops > 0 ? n->f32_gflops : n->int8_gops * CPU_F32_OF_INT8;
    double cores = n->n_core > by->on_gpus ? (double)(n->n_core - by->on_gpus) / n->n_core : 1;
    ms->read = c->bytes * (is_chunk ? by->of_all : by->of_stage) / n->read_gbps / 1e6;
    ms->compute =
        (c->int8_ops / (n->int8_gops * CPU_INT8_SHARE) + (c->f32_ops + c->attention_ops) / (f32_gops * CPU_F32_SHARE)) *
        by->of_all / cores / 1e6;
    return true;
}

static bool rank_ms(const struct predict *p, int rank, struct rank_ms *ms_out)
{
    const struct mu_plan_rank *r = &p->plan->rank[rank];
    const struct mu_plan_stage *st = &p->plan->stage[r->stage];
    const struct mu_plan_node *n = &p->node[p->node_of[rank]];
    int device = p->plan->split.device[rank];
    struct sharers by = {0};
    for (int k = 0; k < p->plan->n_rank; k++) {
        bool here = p->node_of[k] == p->node_of[rank], same = here && p->plan->split.device[k] == device;
        by.of_all += same;
        by.of_stage += same && p->plan->rank[k].stage == r->stage;
        by.on_gpus += here && p->plan->split.device[k] != MU_ON_CPU;
    }
    struct step_cost c = rank_cost(p, r);
    if (device == MU_ON_CPU) return rank_on_cpu(&c, n, &by, p->step->is_chunk, ms_out);
    if (device >= n->gpus.n || !rank_on_gpu(&c, mu_range_len(st->layers), &n->gpus.gpu[device], ms_out)) return false;
    int at_once = p->step->is_chunk ? by.of_all : by.of_stage; /* a GPU's ranks take turns */
    ms_out->read *= at_once;
    ms_out->compute *= at_once;
    return true;
}

/* ---- links ---- */

static struct mu_plan_link link_of(const struct predict *p, int from, int to)
{
    int a = p->node_of[from], b = p->node_of[to];
    if (p->links) {
        struct mu_plan_link l = p->links->at[a * p->links->n_node + b];
        if (l.gbps > 0) return l;
    }
    return a == b ? INSIDE : BETWEEN;
}

static double bytes_ms(double bytes, double gbps)
{
    return bytes / gbps / 1e6;
}

/* Up or down. */
static double pcie_ms(double gbps, double bytes)
{
    return GPU_HOP_MS + bytes_ms(bytes, gbps > 0 ? gbps : GPU_HOP_GBPS);
}

/* What a talk costs a rank more where it is on a GPU. */
static double gpu_talk_ms(const struct predict *p, int rank, double up_bytes, double down_bytes)
{
    if (p->plan->split.device[rank] == MU_ON_CPU) return 0;
    const struct mu_gpu *g = &p->node[p->node_of[rank]].gpus.gpu[p->plan->split.device[rank]];
    return (up_bytes > 0 ? pcie_ms(g->up_gbps, up_bytes) : 0) +
           (down_bytes > 0 ? pcie_ms(g->down_gbps, down_bytes) : 0);
}

/* Whether ranks [first, first + n) have a link of their own, as worker/device_link.c would find; its speed. */
static bool linked(const struct predict *p, int first, int n, int from, int n_all, double *gbps_out)
{
    *gbps_out = 0;
    if (!mu_plan_own_gpus(p->plan, first, n, from, n_all)) return false;
    for (int i = first; i < first + n; i++) {
        const struct mu_gpus *gpus = &p->node[p->node_of[i]].gpus;
        int device = p->plan->split.device[i];
        if (!together(p, first, i) || device >= gpus->n || !gpus->gpu[device].has_link) return false;
        const struct mu_gpu *g = &gpus->gpu[device];
        double up = g->up_gbps > 0 ? g->up_gbps : GPU_HOP_GBPS, down = g->down_gbps > 0 ? g->down_gbps : GPU_HOP_GBPS;
        double way = up < down ? up : down;
        if (*gbps_out <= 0 || way < *gbps_out) *gbps_out = way;
    }
    return true;
}

/* The same among GPUs that have a link: each gets what all others have. */
static double link_exchange_ms(const struct mu_plan_stage *st, const double *part, double gbps)
{
    double all = 0, least = part[0];
    for (int i = 0; i < st->n_rank; i++) {
        all += part[i];
        if (part[i] < least) least = part[i];
    }
    return GPU_LINK_MS + bytes_ms(all - least, gbps);
}

/* One exchange: part[i] bytes of the stage's i-th rank go to each of the others, over the network once a machine
 * (transport/comm.c). Ranks of a machine share its port. */
static double exchange_ms(const struct predict *p, const struct mu_plan_stage *st, const double *part)
{
    double in[MU_MAX_RANKS] = {0}, out[MU_MAX_RANKS] = {0}, local[MU_MAX_RANKS] = {0}, us = 0, slowest = 0;
    int beside[MU_MAX_RANKS] = {0}; /* ranks of the machine */
    const int first = st->first_rank;
    double gbps;
    if (linked(p, first, st->n_rank, first, st->n_rank, &gbps)) return link_exchange_ms(st, part, gbps);
    for (int i = 0; i < st->n_rank; i++)
        for (int j = 0; j < st->n_rank; j++) beside[i] += together(p, first + i, first + j);
    for (int i = 0; i < st->n_rank; i++) {
        double up = 0, handed = 0, far_us = 0, near_us = 0, near_gbps = INSIDE.gbps;
        for (int j = 0; j < st->n_rank; j++) {
            struct mu_plan_link l = link_of(p, first + i, first + j);
            if (i == j) continue;
            up += part[j];
            if (together(p, first + i, first + j)) {
                if (l.us > near_us) near_us = l.us;
                near_gbps = l.gbps;
                handed += part[j];
            } else {
                if (l.us > far_us) far_us = l.us;
                in[i] += bytes_ms(part[j] / beside[i], l.gbps);
                out[i] += bytes_ms(part[i] / beside[j], l.gbps);
                handed += part[j] * (beside[i] - 1) / beside[i];
            }
        }
        if (far_us + near_us > us) us = far_us + near_us;
        local[i] = bytes_ms(handed, near_gbps) + gpu_talk_ms(p, first + i, up, part[i]);
    }
    for (int i = 0; i < st->n_rank; i++) {
        double port_in = 0, port_out = 0;
        for (int j = 0; j < st->n_rank; j++) {
            if (!together(p, first + i, first + j)) continue;
            port_in += in[j];
            port_out += out[j];
        }
        double ms = local[i] + (port_in > port_out ? port_in : port_out);
        if (ms > slowest) slowest = ms;
    }
    return us / 1e3 + slowest;
}

enum what { HEADS, HIDDEN, MODEL };
enum { LAYER_EXCHANGES = 4 };
struct exchange {
    double part[MU_MAX_RANKS]; /* bytes of each rank of the stage */
};

static void exchange_add(const struct predict *p, const struct mu_plan_stage *st, enum what what, double bytes,
                         struct exchange *x, int *n)
{
    for (int i = 0; i < st->n_rank; i++) {
        const struct mu_plan_rank *r = &p->plan->rank[st->first_rank + i];
        double rows = what == HEADS    ? (double)mu_range_len(r->heads) * p->model->cfg.d_head
                      : what == HIDDEN ? mu_range_len(r->ff)
                                       : mu_range_len(r->model);
        x[*n].part[i] = rows * bytes;
    }
    ++*n;
}

/* Around o and down: what they read, and what they produce, of n_tok tokens. Returns how many. */
static int layer_exchanges(const struct predict *p, const struct mu_plan_stage *st, int layer, double n_tok,
                           struct exchange *x)
{
    static const enum mu_tensor_id id[] = {MU_T_O, MU_T_DOWN};
    const struct mu_model *m = p->model;
    int n = 0;
    for (int i = 0; i < 2 && n_tok > 0; i++) {
        const struct mu_type_info *type = mu_type_info(m->layer[layer][id[i]]->type);
        bool q8 = type && type->act == MU_ACT_Q8, bf16 = type && type->act == MU_ACT_BF16;
        double used = i == 1 && m->cfg.n_expert > 0 ? m->cfg.n_expert_used : 1;
        exchange_add(p, st, i == 1 ? HIDDEN : HEADS, n_tok * used * (q8 ? 1.125 : bf16 ? 2 : 4), x, &n);
        if (i == 1 || !m->arch->parallel) exchange_add(p, st, MODEL, n_tok * (q8 ? 2 : 4), x, &n);
    }
    return n;
}

static double layer_ms(const struct predict *p, const struct mu_plan_stage *st, int layer)
{
    struct exchange x[LAYER_EXCHANGES];
    bool last = layer == p->model->cfg.n_layer - 1;
    double ms = 0;
    int n = layer_exchanges(p, st, layer, last ? p->step->n_row : p->step->n_tok, x);
    for (int i = 0; i < n; i++) ms += exchange_ms(p, st, x[i].part);
    return ms;
}

static double ids_ms(const struct predict *p, const struct mu_plan_stage *st)
{
    static const double nothing[MU_MAX_RANKS];
    return st->layers.end == p->model->cfg.n_layer && p->step->n_row > 0 ? exchange_ms(p, st, nothing) : 0;
}

static double stage_exchanges(const struct predict *p, const struct mu_plan_stage *st)
{
    double ms = 0;
    if (st->n_rank == 1) return 0;
    for (int l = st->layers.begin; l < st->layers.end; l++) ms += layer_ms(p, st, l);
    return ms + ids_ms(p, st);
}

/* ---- chunks in halves (halves.c) ---- */

static bool in_halves(const struct predict *p, const struct mu_plan_stage *st)
{
    bool slow = false;
    for (int i = st->first_rank; i < st->first_rank + st->n_rank; i++) {
        if (p->plan->split.device[i] != MU_ON_CPU) return false;
        for (int j = st->first_rank; j < i; j++) slow = slow || mu_plan_link_slow(link_of(p, i, j));
    }
    return slow && p->step->is_chunk && p->step->n_tok >= MU_HALVES_TOKENS && mu_range_len(st->layers) > 1 &&
           p->model->cfg.n_expert == 0 && !p->model->arch->parallel;
}

/* What the exchanges add to compute_ms. Turns are taken to compute equally long. A turn of both halves lasts as long as they
 * compute, or one of them and the other's way, or as the link needs for both; the stage's last layer goes whole. */
static double halves_ms(const struct predict *p, const struct mu_plan_stage *st, double compute_ms)
{
    double ms = layer_ms(p, st, st->layers.end - 1) + ids_ms(p, st), moved = 0;
    double turn_ms = compute_ms / mu_range_len(st->layers) / LAYER_EXCHANGES;
    int n_core = p->node[p->node_of[st->first_rank]].n_core;
    for (int l = st->layers.begin; l < st->layers.end - 1; l++) {
        struct exchange x[LAYER_EXCHANGES], none = {{0}};
        int n = layer_exchanges(p, st, l, p->step->n_tok / 2.0, x);
        for (int i = 0; i < n; i++) {
            double way = exchange_ms(p, st, x[i].part), link = 2 * (way - exchange_ms(p, st, none.part));
            double longest = turn_ms / 2 + way > link ? turn_ms / 2 + way : link;
            if (longest > turn_ms) ms += longest - turn_ms;
            for (int k = 0; k < st->n_rank; k++) moved += 2 * x[i].part[k]; /* of both halves, sent or received */
        }
    }
    return ms + bytes_ms(moved, MOVE_GBPS * (n_core > 0 ? n_core : 1));
}

/* ---- all of it ---- */

/* The residual to each rank of the stage, from whom mu_plan_residual_from says; ranks of a machine share its port. */
static void hop_predict(const struct predict *p, int stage, struct mu_step_times *t)
{
    const struct mu_plan_stage *st = &p->plan->stage[stage], *before = &p->plan->stage[stage - 1];
    double bytes = 4.0 * p->model->cfg.d_model * p->step->n_tok, us = 0, handed = 0, out[MU_MAX_RANKS] = {0}, gbps;
    if (linked(p, before->first_rank, before->n_rank + st->n_rank, 0, p->plan->n_rank, &gbps)) {
        t->busy[stage] = bytes_ms(bytes, gbps);
        t->hop[stage] = GPU_LINK_MS + t->busy[stage];
        return;
    }
    for (int i = st->first_rank; i < st->first_rank + st->n_rank; i++) {
        int from = mu_plan_residual_from(p->plan, p->machine, i);
        struct mu_plan_link l = link_of(p, from, i);
        double ms = bytes_ms(bytes, l.gbps);
        if (from >= st->first_rank) {
            if (l.us / 1e3 + ms > handed) handed = l.us / 1e3 + ms;
            continue;
        }
        if (l.us > us) us = l.us;
        for (int k = before->first_rank; k < st->first_rank; k++)
            if (k == from || (together(p, k, from) && !together(p, from, i))) out[k] += ms;
    }
    for (int k = before->first_rank; k < st->first_rank; k++)
        if (out[k] > t->busy[stage]) t->busy[stage] = out[k];
    t->hop[stage] = us / 1e3 + t->busy[stage] + handed + gpu_talk_ms(p, before->first_rank, 0, bytes) +
                    gpu_talk_ms(p, st->first_rank, bytes, 0);
}

void mu_plan_predict_step(const struct mu_model *model, const struct mu_plan *plan, const struct mu_plan_node *node,
                          const int *node_of, const struct mu_plan_links *links, const struct mu_plan_step *step,
                          struct mu_step_times *times_out)
{
    struct predict p = {.model = model, .plan = plan, .node = node, .node_of = node_of, .links = links, .step = step};
    for (int i = 0; i < plan->n_rank; i++)
        p.machine[i] = links && links->machine ? links->machine[node_of[i]] : node_of[i];
    struct mu_step_times t = {.known = true};
    for (int s = 0; s < plan->n_stage; s++) {
        const struct mu_plan_stage *st = &plan->stage[s];
        double slowest = 0;
        for (int i = st->first_rank; i < st->first_rank + st->n_rank; i++) {
            struct rank_ms ms = {0};
            if (!rank_ms(&p, i, &ms)) {
                *times_out = (struct mu_step_times){0};
                return;
            }
            double all = (ms.read > ms.compute ? ms.read : ms.compute) + ms.fixed;
            if (ms.read > t.read[s]) t.read[s] = ms.read;
            if (ms.compute > t.compute[s]) t.compute[s] = ms.compute;
            if (all > slowest) slowest = all;
        }
        t.exchange[s] = in_halves(&p, st) ? halves_ms(&p, st, slowest) : stage_exchanges(&p, st);
        t.stage[s] = slowest + t.exchange[s];
        if (s > 0) hop_predict(&p, s, &t);
    }
    if (plan->n_stage > 1) t.back = link_of(&p, plan->leader, plan->stage[0].first_rank).us / 1e3;
    *times_out = t;
}

double mu_plan_predict_run(const struct mu_plan *plan, const struct mu_step_times *t, int n_step, int n_flight)
{
    double through = 0, slowest = 0;
    for (int s = 0; s < plan->n_stage; s++) {
        through += t->stage[s] + t->hop[s];
        if (t->stage[s] > slowest) slowest = t->stage[s];
        if (t->busy[s] > slowest) slowest = t->busy[s];
    }
    double each = n_flight > 0 ? (through + t->back) / n_flight : 0; /* a round has n_flight steps */
    if (slowest > each) each = slowest;
    return through + (n_step - 1) * each;
}

void mu_plan_predict(const struct mu_model *model, const struct mu_plan *plan, const struct mu_plan_node *node,
                     const int *node_of, const struct mu_plan_links *links, struct mu_prediction *prediction_out)
{
    static const struct mu_plan_step decode = {1, 1, 0, false}, chunk = {CHUNK_TOKENS, 0, CHUNK_TOKENS / 2.0, true};
    struct mu_prediction p = {0};
    struct mu_step_times one, many;
    mu_plan_predict_step(model, plan, node, node_of, links, &decode, &one);
    mu_plan_predict_step(model, plan, node, node_of, links, &chunk, &many);
    for (int s = 0; s < plan->n_stage; s++) {
        double slowest = many.stage[s] > many.busy[s] ? many.stage[s] : many.busy[s];
        p.decode_ms += one.stage[s] + one.hop[s];
        p.decode_read_ms += one.read[s];
        p.decode_compute_ms += one.compute[s];
        p.decode_wire_ms += one.exchange[s] + one.hop[s];
        if (slowest / CHUNK_TOKENS > p.prefill_ms_per_token) p.prefill_ms_per_token = slowest / CHUNK_TOKENS;
    }
    p.decode_ms += one.back;
    p.decode_wire_ms += one.back;
    *prediction_out = p;
}
