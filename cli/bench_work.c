/* What a case costs at least, and what limits it.
 *
 * Work is counted from the model's shape and the plan, not from what the code happens to do: every matrix of the step is
 * read once and multiplied with every token, attention reads every key and value that a query sees. Rows that several
 * ranks hold (KV heads of a stage with more ranks than heads) count for each. A bound is that work at the rates which
 * all threads reach side by side; measured time divided into it tells how far there is to go. It is none for what is
 * not counted: norms, quantising, softmax, the sampler.
 *
 * A prompt's last chunk needs one row of logits, and its last layer goes on with one token after attention
 * (shard/forward.c): counted so. Experts: the chosen ones multiply; a step of T tokens reads E(1 - (1 - k/E)^T) of E,
 * which is what evenly spread choices would touch. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cli/bench.h"
#include "kernels/types.h"

int mu_bench_chunk(const struct mu_plan *plan, int n_tok, bool is_mpi)
{
    return (int)mu_plan_chunk((uint64_t)n_tok, is_mpi ? plan->n_stage : 1, (uint32_t)mu_plan_step_tokens(&plan->split),
                              0);
}

int mu_bench_groups(const struct mu_plan *plan, const struct mu_bench_case *c, bool is_mpi)
{
    int chunk = mu_bench_chunk(plan, c->n_tok, is_mpi);
    if (c->phase == MU_BENCH_PROMPT) return (c->n_tok + chunk - 1) / chunk;
    if (!is_mpi) return 1;
    return plan->n_stage < c->n_stream ? plan->n_stage : c->n_stream;
}

/* ---- work ---- */

struct ops {
    double int8, f32;
};

static void ops_add(struct ops *to, const struct mu_gguf_tensor *t, double n_row, double n_tok)
{
    const struct mu_type_info *type = mu_type_info(t->type);
    double ops = 2 * n_row * (double)t->ne[0] * n_tok;
    if (type && type->act == MU_ACT_Q8)
        to->int8 += ops;
    else
        to->f32 += ops;
}

/* Tokens whose keys a query at position p sees. */
static double visible(int window, double p)
{
    return window && p + 1 > window ? window : p + 1;
}

/* The sum of that over positions [from, to). */
static double visible_sum(int window, double from, double to)
{
    double full = window && window < to ? (from > window ? from : window) : to; /* from here on the window is full */
    if (full < from) full = from;
    return (full - from) * (from + 1 + full) / 2 + (to - full) * visible(window, to);
}

static double experts_touched(const struct mu_config *cfg, double n_tok)
{
    if (!cfg->n_expert) return 1;
    return 1 - pow(1 - (double)cfg->n_expert_used / cfg->n_expert, n_tok);
}

/* Bytes of the rank's layers, its experts alone, and its rows of the output matrix, as in the file. */
struct weights {
    double layers, experts, output;
};

static struct weights weights_of(const struct mu_model *m, const struct mu_plan *plan, const struct mu_plan_rank *r)
{
    struct weights w = {0};
    struct mu_range layers = plan->stage[r->stage].layers;
    for (int l = layers.begin; l < layers.end; l++)
        for (int id = 0; id < MU_T_MATRIX_COUNT; id++) {
            const struct mu_gguf_tensor *t = m->layer[l][id];
            int row0, copies = mu_config_copies(&m->cfg, (enum mu_tensor_id)id);
            if (!t) continue;
            double bytes = (double)mu_plan_rows(m, r, (enum mu_tensor_id)id, &row0) * (double)t->row_bytes * copies;
            w.layers += bytes;
            if (copies > 1) w.experts += bytes;
        }
    w.output = (double)mu_range_len(r->vocab) * (double)m->output->row_bytes;
    return w;
}

/* How much larger than in the file the rank's matrices are once they are packed. */
static double packed_ratio(const struct mu_model *m, const struct mu_plan *plan, int rank, const struct weights *w)
{
    static const struct mu_serving least = {
        .n_ctx = MU_PAGE_TOKENS, .n_slot = 1, .n_page = 1, .step_tokens = MU_PAGE_TOKENS};
    struct mu_rank_memory memory;
    struct mu_plan whole = *plan;
    whole.split.streamed[rank] = 0; /* wherever they are */
    mu_plan_memory(m, &whole, rank, &least, &memory);
    bool mapped = plan->rank[rank].stage == 0 && plan->split.device[rank] == MU_ON_CPU;
    double packed = (double)memory.weights - (mapped ? (double)m->embed->bytes : 0);
    return w->layers + w->output > 0 && packed > 0 ? packed / (w->layers + w->output) : 1;
}

/* One token through the rank's matrices; after: through those behind the attention of the model's last layer. */
static void rank_ops(const struct mu_model *m, const struct mu_plan *plan, const struct mu_plan_rank *r, double n_tok,
                     double n_after, double n_logits, struct ops *ops)
{
    struct mu_range layers = plan->stage[r->stage].layers;
    for (int l = layers.begin; l < layers.end; l++)
        for (int id = 0; id < MU_T_MATRIX_COUNT; id++) {
            const struct mu_gguf_tensor *t = m->layer[l][id];
            if (!t) continue;
            int row0, n_row = mu_plan_rows(m, r, (enum mu_tensor_id)id, &row0);
            double tokens = l == m->cfg.n_layer - 1 && id >= MU_T_O ? n_after : n_tok;
            if (mu_config_copies(&m->cfg, (enum mu_tensor_id)id) > 1) tokens *= m->cfg.n_expert_used;
            ops_add(ops, t, n_row, tokens);
        }
    ops_add(ops, m->output, mu_range_len(r->vocab), n_logits);
}

enum { ALL = -2 }; /* stages, or devices */

/* Of the ranks of a stage that are on a device. */
static void work_of(const struct mu_model *m, const struct mu_plan *plan, const struct mu_bench_case *c, int n_group,
                    enum mu_kv_type kv, int stage, int device, struct mu_bench_work *work_out)
{
    struct mu_bench_work w = {0};
    struct ops ops = {0};
    bool prompt = c->phase == MU_BENCH_PROMPT;
    double n_tok = prompt ? c->n_tok : (double)c->n_tok * c->n_stream, steps, logits = prompt ? 1 : n_tok;
    double in_step = (prompt ? n_tok : c->n_stream) / n_group;
    steps = prompt ? n_group : (double)c->n_tok * n_group;
    for (int i = 0; i < plan->n_rank; i++) {
        const struct mu_plan_rank *r = &plan->rank[i];
        if (stage != ALL && (r->stage != stage || plan->split.device[i] != device)) continue;
        struct weights bytes = weights_of(m, plan, r);
        struct mu_range layers = plan->stage[r->stage].layers;
        double touched = bytes.layers - bytes.experts * (1 - experts_touched(&m->cfg, in_step));
        double token_bytes = (double)mu_plan_kv_page_bytes(m, plan, i, kv) / MU_PAGE_TOKENS / mu_range_len(layers);
        double packed = packed_ratio(m, plan, i, &bytes);
        w.weight_bytes += (touched * steps + bytes.output * (prompt ? 1 : steps)) * packed;
        w.streamed_bytes +=
            bytes.layers * packed * steps * mu_plan_stream_moves(plan->split.streamed[i]) / mu_range_len(layers);
        rank_ops(m, plan, r, n_tok, prompt ? 1 : n_tok, logits, &ops);
        for (int l = layers.begin; l < layers.end; l++) {
            int window = mu_config_window(&m->cfg, l);
            double seen = visible_sum(window, c->n_context, (double)c->n_context + c->n_tok) * c->n_stream;
            ops.f32 += 4.0 * mu_range_len(r->heads) * m->cfg.d_head * seen;
            if (!prompt) w.kv_bytes += seen * token_bytes;
        }
    }
    w.int8_ops = ops.int8;
    w.f32_ops = ops.f32;
    *work_out = w;
}

void mu_bench_work(const struct mu_model *m, const struct mu_plan *plan, const struct mu_bench_case *c, int n_group,
                   enum mu_kv_type kv, struct mu_bench_work *work_out)
{
    work_of(m, plan, c, n_group, kv, ALL, ALL, work_out);
}

struct mu_bench_bound mu_bench_bound(const struct mu_bench_work *w, const struct mu_bench_limits *l)
{
    struct mu_bench_bound b = {0};
    if (l->read_gbps > 0) b.read_s = (w->weight_bytes + w->kv_bytes) / l->read_gbps / 1e9;
    if (l->up_gbps > 0 && w->streamed_bytes / l->up_gbps / 1e9 > b.read_s) /* beside reading what is there */
        b.read_s = w->streamed_bytes / l->up_gbps / 1e9;
    if (l->int8_gops > 0) b.int8_s = w->int8_ops / l->int8_gops / 1e9;
    if (l->f32_gflops > 0) b.f32_s = w->f32_ops / l->f32_gflops / 1e9;
    b.s = b.read_s > b.int8_s + b.f32_s ? b.read_s : b.int8_s + b.f32_s;
    return b;
}

static const struct mu_bench_limits *limits_at(int device, const struct mu_bench_limits *cpu,
                                               const struct mu_bench_limits *gpu)
{
    return device == MU_ON_CPU ? cpu : &gpu[device];
}

static bool one_place(const struct mu_plan *plan)
{
    for (int i = 1; i < plan->n_rank; i++)
        if (plan->split.device[i] != plan->split.device[0]) return false;
    return true;
}

static void bound_add(struct mu_bench_bound *to, const struct mu_bench_bound *b)
{
    to->read_s += b->read_s;
    to->int8_s += b->int8_s;
    to->f32_s += b->f32_s;
    to->s += b->s;
}

/* Steps that may be on their way at once. */
static int in_flight(const struct mu_plan *plan, int n_group, bool is_mpi)
{
    if (!is_mpi) return 1;
    return n_group < plan->n_stage ? n_group : plan->n_stage;
}

struct mu_bench_bound mu_bench_bound_places(const struct mu_model *m, const struct mu_plan *plan,
                                            const struct mu_bench_case *c, int n_group, bool is_mpi, enum mu_kv_type kv,
                                            const struct mu_bench_limits *cpu, const struct mu_bench_limits *gpu)
{
    struct mu_bench_work w;
    struct mu_bench_bound place[1 + MU_MAX_GPUS] = {{0}}, all = {0};
    if (one_place(plan)) {
        mu_bench_work(m, plan, c, n_group, kv, &w);
        return mu_bench_bound(&w, limits_at(plan->split.device[0], cpu, gpu));
    }
    for (int s = 0; s < plan->n_stage; s++) {
        struct mu_bench_bound slowest = {0};
        for (int device = MU_ON_CPU; device < MU_MAX_GPUS; device++) {
            work_of(m, plan, c, n_group, kv, s, device, &w);
            struct mu_bench_bound b = mu_bench_bound(&w, limits_at(device, cpu, gpu));
            bound_add(&place[device + 1], &b);
            if (b.s > slowest.s) slowest = b;
        }
        bound_add(&all, &slowest);
    }
    double s = all.s / in_flight(plan, n_group, is_mpi);
    for (int i = 0; i < 1 + MU_MAX_GPUS; i++)
        if (place[i].s > s) s = place[i].s;
    double share = all.s > 0 ? s / all.s : 0;
    return (struct mu_bench_bound){all.read_s * share, all.int8_s * share, all.f32_s * share, s};
}

/* ---- waiting ---- */

/* The i-th span of that kind at or after *at; NULL: no more. */
static const struct mu_shard_span *span_next(const struct mu_shard_trace *t, int32_t op, size_t *at)
{
    while (*at < t->n)
        if (t->span[(*at)++].op == op) return &t->span[*at - 1];
    return NULL;
}

static int64_t overlap(const struct mu_shard_span *s, int64_t until_ns)
{
    if (until_ns <= s->begin_ns) return 0;
    return until_ns < s->end_ns ? until_ns - s->begin_ns : s->end_ns - s->begin_ns;
}

/* An exchange can end only after the last rank of the stage has begun it. */
static void waits_exchange(const struct mu_plan_stage *st, const struct mu_shard_trace *trace, int64_t *wait_ns)
{
    size_t at[MU_MAX_RANKS] = {0};
    for (;;) {
        const struct mu_shard_span *span[MU_MAX_RANKS];
        int64_t last = INT64_MIN;
        for (int i = 0; i < st->n_rank; i++) {
            span[i] = span_next(&trace[st->first_rank + i], MU_OP_EXCHANGE, &at[i]);
            if (!span[i]) return;
            if (span[i]->begin_ns > last) last = span[i]->begin_ns;
        }
        for (int i = 0; i < st->n_rank; i++) wait_ns[st->first_rank + i] += overlap(span[i], last);
    }
}

/* The rank of the stage before whose residual this one gets, also where another one hands it on. */
static int sender_of(const struct mu_plan *plan, const int *node_of, int rank)
{
    int from = mu_plan_residual_from(plan, node_of, rank);
    while (plan->rank[from].stage == plan->rank[rank].stage) from = mu_plan_residual_from(plan, node_of, from);
    return from;
}

void mu_bench_waits(const struct mu_plan *plan, const int *node_of, const struct mu_shard_trace *trace,
                    int64_t *wait_ns)
{
    memset(wait_ns, 0, (size_t)plan->n_rank * sizeof *wait_ns);
    for (int s = 0; s < plan->n_stage; s++) {
        const struct mu_plan_stage *st = &plan->stage[s];
        waits_exchange(st, trace, wait_ns);
        for (int i = st->first_rank; s > 0 && i < st->first_rank + st->n_rank; i++) {
            const struct mu_shard_trace *from = &trace[sender_of(plan, node_of, i)];
            const struct mu_shard_span *recv, *sent;
            size_t at_recv = 0, at_sent = 0;
            while ((recv = span_next(&trace[i], MU_OP_RECV, &at_recv)) &&
                   (sent = span_next(from, MU_OP_SEND, &at_sent)))
                wait_ns[i] += overlap(recv, sent->begin_ns);
        }
    }
}

/* Over ranks. */
static struct mu_bench_times times_mean(const struct mu_bench_result *r)
{
    struct mu_bench_times mean = {0};
    for (int i = 0; i < r->n_rank; i++) {
        const struct mu_bench_times *t = &r->rank[i];
        mean.matrix_s += t->matrix_s / r->n_rank;
        mean.attention_s += t->attention_s / r->n_rank;
        mean.sampling_s += t->sampling_s / r->n_rank;
        mean.wire_s += t->wire_s / r->n_rank;
        mean.wait_s += t->wait_s / r->n_rank;
    }
    return mean;
}

/* ---- the rule ---- */

/* Below this share of the time nothing is called a limit. */
static const double LEAST_SHARE = 0.35;

struct shares {
    double of[MU_BENCH_OVERHEAD];
};

static struct shares shares_of(const struct mu_bench_result *r)
{
    struct shares s = {{0}};
    struct mu_bench_times mean = times_mean(r);
    double t = r->s.median;
    if (!(t > 0 && r->s.mean > 0)) return s;
    s.of[MU_BENCH_BANDWIDTH] = r->bound.read_s / t;
    s.of[MU_BENCH_ARITHMETIC] = (r->bound.int8_s + r->bound.f32_s) / t;
    s.of[MU_BENCH_NETWORK] = mean.wire_s / r->s.mean; /* the ranks' times are means */
    s.of[MU_BENCH_WAITING] = mean.wait_s / r->s.mean;
    s.of[MU_BENCH_OTHERS] = r->delayed;
    return s;
}

enum mu_bench_limit mu_bench_limit_of(const struct mu_bench_result *r)
{
    struct shares s = shares_of(r);
    int most = 0;
    for (int i = 1; i < MU_BENCH_OVERHEAD; i++)
        if (s.of[i] > s.of[most]) most = i;
    return s.of[most] >= LEAST_SHARE ? (enum mu_bench_limit)most : MU_BENCH_OVERHEAD;
}

const char *mu_bench_limit_name(enum mu_bench_limit limit)
{
    static const char *const names[] = {"bandwidth", "arithmetic", "network", "waiting", "others", "overhead"};
    return names[limit];
}

void mu_bench_limit_say(const struct mu_bench_result *r, const struct mu_bench_work *w, char *buf, size_t buf_bytes)
{
    struct shares s = shares_of(r);
    enum mu_bench_limit limit = mu_bench_limit_of(r);
    double percent = limit < MU_BENCH_OVERHEAD ? 100 * s.of[limit] : 0;
    char weights[32], cache[32];
    switch (limit) {
    case MU_BENCH_BANDWIDTH:
        mu_human_bytes((uint64_t)w->weight_bytes, weights, sizeof weights);
        mu_human_bytes((uint64_t)w->kv_bytes, cache, sizeof cache);
        snprintf(buf, buf_bytes,
                 "bandwidth: reading %s of weights and %s of cache takes %.0f%% of the time at the measured %.1f GB/s",
                 weights, cache, percent, r->limits.read_gbps);
        return;
    case MU_BENCH_ARITHMETIC:
        snprintf(
            buf, buf_bytes,
            "arithmetic: int8 products take %.0f%% of the time at the measured %.0f GOP/s, f32 ones %.0f%% at %.0f",
            100 * r->bound.int8_s / r->s.median, r->limits.int8_gops, 100 * r->bound.f32_s / r->s.median,
            r->limits.f32_gflops);
        return;
    case MU_BENCH_NETWORK:
        snprintf(buf, buf_bytes, "network: ranks move bytes between each other for %.0f%% of the time", percent);
        return;
    case MU_BENCH_WAITING:
        snprintf(buf, buf_bytes,
                 "waiting: ranks wait for each other for %.0f%% of the time, because of the schedule (fewer streams "
                 "than stages), uneven shares or a disturbed core",
                 percent);
        return;
    case MU_BENCH_OTHERS:
        snprintf(
            buf, buf_bytes,
            "others: threads that could have run had no core for %.0f%% of the time; run it again when the machine is "
            "idle, or with fewer --threads",
            percent);
        return;
    case MU_BENCH_OVERHEAD: break;
    }
    snprintf(
        buf, buf_bytes,
        "overhead: reading takes %.0f%%, arithmetic %.0f%%, the network %.0f%% and waiting %.0f%% of the time; the "
        "rest goes to small steps between (norms, quantising, meetings of threads)",
        100 * s.of[0], 100 * s.of[1], 100 * s.of[2], 100 * s.of[3]);
}
