/* The workload of `muster bench`, run by every rank in step with the others: prompts of n_prompt tokens, then n_decode steps of n_stream sequences.
 *
 * A rank of an MPI job needs no leader to tell it the steps: they are the same on all. What it may not do is run ahead of the sampled ids, as a server could
 * not: with several stages the leader sends each decode step's ids to all, and step k waits for those of step k - groups, where the streams are cut in as many
 * groups as there are stages. That is how a server keeps stages busy, too. */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/topo.h"
#include "cli/cli.h"
#include "kernels/kernels.h"
#include "kernels/peak.h"
#include "transport/comm.h"
#include "worker/shard_comm.h"
#include "worker/solo.h"

enum { STEP_TOKENS = 512, MAX_REPEATS = 100, PROBE_BYTES = 128 << 20 /* a thread */ };

struct load {
    const struct mu_bench_options *opt;
    const struct mu_plan *plan;
    struct mu_serving serving;
    struct mu_step *step;
    uint64_t number;
    uint32_t *pos, *n_page, next_page;
    bool stale;           /* slots of the last repeat still hold pages */
    struct mu_solo *solo; /* one of the two */
    struct mu_shard *shard;
    struct mu_comm *comm;
    int rank, n_vocab;
    struct mu_pool *probe; /* reads memory between the decodes; the shard's own, idle then, where there is one */
    unsigned char *probe_buf;
};

static enum mu_status run_step(struct load *l, struct mu_step_result *result, struct mu_err *err)
{
    l->step->number = ++l->number;
    return l->solo ? mu_solo_step(l->solo, l->step, result, err) : mu_shard_step(l->shard, l->step, result, err);
}

static void begin(struct load *l)
{
    l->step->n_free = l->step->n_page = l->step->n_seq = l->step->n_tok = 0;
    if (!l->stale) return;
    for (int i = 0; i < l->serving.n_slot; i++) l->step->free_slot[l->step->n_free++] = (uint32_t)i;
    l->stale = false;
}

static void add(struct load *l, uint32_t slot, uint32_t n, bool out)
{
    struct mu_step *s = l->step;
    s->seq[s->n_seq++] = (struct mu_step_seq){.slot = slot,
                                              .pos0 = l->pos[slot],
                                              .n_tok = n,
                                              .tok_off = s->n_tok,
                                              .out = (uint8_t)(out ? MU_OUT_SAMPLE : MU_OUT_NONE)};
    for (uint32_t i = 0; i < n; i++)
        s->ids[s->n_tok++] = (int32_t)((l->pos[slot] + i + slot) * 7919u % (uint32_t)l->n_vocab);
    l->pos[slot] += n;
    for (; l->n_page[slot] * MU_PAGE_TOKENS < l->pos[slot]; l->n_page[slot]++)
        s->page[s->n_page++] = (struct mu_step_page){slot, l->next_page++};
}

static void restart(struct load *l)
{
    memset(l->pos, 0, (size_t)l->serving.n_slot * sizeof *l->pos);
    memset(l->n_page, 0, (size_t)l->serving.n_slot * sizeof *l->n_page);
    l->next_page = 0;
    l->stale = l->number > 0;
}

static enum mu_status prefill(struct load *l, uint32_t slot, uint32_t n, struct mu_err *err)
{
    enum mu_status st = MU_OK;
    struct mu_step_result result;
    for (uint32_t done = 0; done < n && !st;) {
        uint32_t c = n - done < STEP_TOKENS ? n - done : STEP_TOKENS;
        begin(l);
        add(l, slot, c, done + c == n);
        st = run_step(l, &result, err);
        done += c;
    }
    return st;
}

/* Tiny messages that carry "step k is sampled" from the leader to the others. */
static enum mu_status tell(struct load *l, struct mu_err *err)
{
    static const int32_t sampled = 1;
    enum mu_status st = MU_OK;
    if (l->comm && l->plan->n_stage > 1 && l->rank == l->plan->leader)
        for (int r = 0; r < l->plan->n_rank && !st; r++)
            if (r != l->rank) st = mu_comm_send(l->comm, r, &sampled, sizeof sampled, err);
    return st;
}
static enum mu_status hear(struct load *l, struct mu_err *err)
{
    int32_t sampled;
    if (!l->comm || l->plan->n_stage == 1 || l->rank == l->plan->leader) return MU_OK;
    return mu_comm_recv(l->comm, l->plan->leader, &sampled, sizeof sampled, err);
}

/* How many steps a round of decoding is cut into. */
static int groups_of(const struct load *l)
{
    if (!l->comm) return 1;
    return l->plan->n_stage < l->opt->n_stream ? l->plan->n_stage : l->opt->n_stream;
}

static enum mu_status decode(struct load *l, struct mu_err *err)
{
    enum mu_status st = MU_OK;
    int n_stream = l->opt->n_stream, groups = groups_of(l);
    int total = l->opt->n_decode * groups;
    struct mu_step_result result;
    for (int k = 0; k < total + groups && !st; k++) {
        if (k >= groups && (st = hear(l, err))) return st;
        if (k >= total) continue;
        int g = k % groups;
        begin(l);
        for (int s = g; s < n_stream; s += groups) add(l, (uint32_t)s, 1, true);
        if (!(st = run_step(l, &result, err))) st = tell(l, err);
    }
    return st;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, by_value);
    return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

static enum mu_status meet(struct load *l, struct mu_err *err)
{
    return l->comm ? mu_comm_barrier(l->comm, err) : MU_OK;
}

static void probe_read(void *arg, int member, int n)
{
    (void)n;
    mu_peak_read_gbps((unsigned char *)arg + (size_t)member * PROBE_BYTES, PROBE_BYTES);
}

static size_t probe_bytes(const struct load *l)
{
    return (size_t)mu_pool_size(l->probe) * PROBE_BYTES;
}

static enum mu_status probe_open(struct load *l, struct mu_err *err)
{
    l->probe_buf = mu_pages_alloc(probe_bytes(l));
    if (!l->probe_buf) return mu_fail(err, MU_ENOMEM, "no memory to measure bandwidth (%zu MB)", probe_bytes(l) >> 20);
    memset(l->probe_buf, 1, probe_bytes(l));
    return MU_OK;
}

/* Common passes of all threads of all ranks: adding up what each reaches while others start or end promises too much. The
 * fastest of three counts: threads that wake up, or share a core with the decode's that still spin, spoil the first. */
static enum mu_status probe_run(struct load *l, double *gbps_out, struct mu_err *err)
{
    enum mu_status st = meet(l, err);
    *gbps_out = 0;
    for (int pass = 0; pass < 3 && !st; pass++) {
        int64_t start = mu_now_ns();
        mu_pool_run(l->probe, probe_read, l->probe_buf);
        st = meet(l, err);
        double gbps = (double)probe_bytes(l) * (l->comm ? l->plan->n_rank : 1) / (double)(mu_now_ns() - start);
        if (gbps > *gbps_out) *gbps_out = gbps;
    }
    return st;
}

/* All ranks leave with their own times; the leader's are the result. */
static enum mu_status measure(struct load *l, struct mu_bench_result *r, struct mu_err *err)
{
    enum mu_status st = MU_OK;
    double prompt[MAX_REPEATS], dec[MAX_REPEATS], read[MAX_REPEATS], fraction[MAX_REPEATS], before, after;
    int n = l->opt->n_repeat;
    struct mu_shard_times times = {0};
    for (int i = -1; i < n; i++) { /* -1 warms up: pages, caches, connections */
        restart(l);
        if ((st = meet(l, err))) return st;
        int64_t t0 = mu_now_ns();
        if ((st = prefill(l, 0, (uint32_t)(i < 0 ? 16 : l->opt->n_prompt), err)) || (st = meet(l, err))) return st;
        int64_t t1 = mu_now_ns();
        restart(l);
        if (l->opt->n_depth)
            for (int s = 0; s < l->opt->n_stream && !st; s++)
                st = prefill(l, (uint32_t)s, (uint32_t)l->opt->n_depth, err);
        if (st || (st = meet(l, err))) return st;
        if (l->shard) mu_shard_take_times(l->shard, &times);
        if ((st = probe_run(l, &before, err))) return st;
        int64_t t2 = mu_now_ns();
        if ((st = decode(l, err)) || (st = meet(l, err))) return st;
        int64_t t3 = mu_now_ns();
        if ((st = probe_run(l, &after, err))) return st;
        if (l->shard) mu_shard_take_times(l->shard, &times);
        if (i < 0) continue;
        prompt[i] = (double)(t1 - t0) / 1e9;
        dec[i] = (double)(t3 - t2) / 1e9;
        read[i] = (before + after) / 2;
        fraction[i] = (double)r->weight_bytes * l->opt->n_decode * groups_of(l) / dec[i] / 1e9 / read[i];
    }
    r->read_gbps = median(read, n);
    r->decode_of_read = median(fraction, n);
    r->prompt_s = median(prompt, n);
    r->prompt_min_s = prompt[0];
    r->prompt_max_s = prompt[n - 1];
    r->decode_s = median(dec, n);
    r->decode_min_s = dec[0];
    r->decode_max_s = dec[n - 1];
    r->decode_compute_s = times.compute_s;
    r->decode_exchange_s = times.exchange_s + times.recv_s + times.send_s;
    return MU_OK;
}

static enum mu_status load_init(struct load *l, const struct mu_bench_options *opt, const struct mu_model *model,
                                struct mu_err *err)
{
    *l = (struct load){.opt = opt, .n_vocab = model->cfg.n_vocab};
    int n_ctx = opt->n_prompt > opt->n_depth + opt->n_decode ? opt->n_prompt : opt->n_depth + opt->n_decode;
    int pages = (n_ctx + 1 + MU_PAGE_TOKENS - 1) / MU_PAGE_TOKENS;
    l->serving = (struct mu_serving){.n_ctx = pages * MU_PAGE_TOKENS,
                                     .n_slot = opt->n_stream,
                                     .n_page = (uint32_t)pages * (uint32_t)opt->n_stream,
                                     .step_tokens = opt->n_stream > STEP_TOKENS ? opt->n_stream : STEP_TOKENS};
    l->pos = mu_calloc((size_t)opt->n_stream, sizeof *l->pos);
    l->n_page = mu_calloc((size_t)opt->n_stream, sizeof *l->n_page);
    if (!l->pos || !l->n_page) return mu_fail(err, MU_ENOMEM, "no memory for %d streams", opt->n_stream);
    return mu_step_create(&l->serving, model->cfg.n_vocab, &l->step, err);
}

static void load_free(struct load *l)
{
    mu_free(l->step);
    mu_free(l->pos);
    mu_free(l->n_page);
    if (l->probe_buf) mu_pages_free(l->probe_buf, probe_bytes(l));
}

static uint64_t step_bytes(const struct mu_plan *plan, const struct mu_model *m)
{
    uint64_t bytes =
        0; /* what a decode step reads: every rank's rows, but only one row of an embedding that is not the output too */
    for (int r = 0; r < plan->n_rank; r++) bytes += plan->rank[r].weight_bytes;
    uint64_t embed = m->embed->bytes * (uint64_t)plan->stage[0].n_rank;
    return plan->n_stage == 1 && m->embed == m->output ? bytes : bytes > embed ? bytes - embed : bytes;
}

static void fp_init(void *ctx)
{
    (void)ctx;
    mu_fp_env_set();
}

/* n_thread threads for the place-th of n_place ranks: on cores of their own where there are enough, else not pinned. */
static enum mu_status pool_open(int n_thread, int place, int n_place, struct mu_pool **pool_out, struct mu_err *err)
{
    struct mu_topo *topo = mu_calloc(1, sizeof *topo);
    if (!topo) return mu_fail(err, MU_ENOMEM, "no memory for the topology");
    enum mu_status st = mu_topo_read(topo, err);
    if (!st) {
        struct mu_pool_options po = {.n_threads = n_thread, .thread_init = fp_init};
        po.pin = n_thread * n_place <= topo->n_core;
        if (po.pin) po.cpus = topo->cpus + place * n_thread;
        st = mu_pool_create(&po, pool_out, err);
    }
    mu_free(topo);
    return st;
}

enum mu_status mu_bench_local(const struct mu_bench_options *opt, struct mu_bench_result *result_out,
                              struct mu_err *err)
{
    enum mu_status st;
    struct mu_model *model = NULL;
    struct load l = {0};
    struct mu_bar bar = {.label = "loading"};
    MU_TRY(st, mu_model_open(opt->path, &model, err), done);
    MU_TRY(st, mu_model_quantize(model, opt->quantize, err), done);
    MU_TRY(st, load_init(&l, opt, model, err), done);
    struct mu_solo_options so = {.model = model,
                                 .split = opt->split,
                                 .n_thread = opt->n_thread,
                                 .serving = l.serving,
                                 .pin = 1,
                                 .load_progress = mu_bar_load,
                                 .load_ctx = &bar};
    int64_t t0 = mu_now_ns();
    MU_TRY(st, mu_solo_open(&so, &l.solo, err), done);
    MU_TRY(st, pool_open(opt->n_thread * opt->split.n_rank, 0, 1, &l.probe, err), done);
    MU_TRY(st, probe_open(&l, err), done);
    l.plan = mu_solo_plan(l.solo);
    *result_out =
        (struct mu_bench_result){.load_s = (double)(mu_now_ns() - t0) / 1e9, .weight_bytes = step_bytes(l.plan, model)};
    st = measure(&l, result_out, err);
done:
    load_free(&l);
    mu_pool_destroy(l.probe); /* before the solo's pool, which has this thread pinned already */
    mu_solo_close(l.solo);
    mu_model_close(model);
    return st;
}

enum mu_status mu_bench_mpi_rank(const struct mu_bench_options *opt, bool *is_leader_out,
                                 struct mu_bench_result *result_out, struct mu_err *err)
{
    enum mu_status st;
    struct mu_model *model = NULL;
    struct mu_pool *pool = NULL;
    struct mu_plan *plan = mu_calloc(1, sizeof *plan);
    struct mu_shard_link *link = NULL;
    struct load l = {0};
    struct mu_comm *comm = NULL;
    if (!plan) return mu_fail(err, MU_ENOMEM, "no memory for the plan");
    MU_TRY(st, mu_comm_mpi_open(&comm, err), done);
    if (comm->n_rank != opt->split.n_rank) {
        st = mu_fail(err, MU_EINVAL, "mpirun started %d ranks, the split has %d", comm->n_rank, opt->split.n_rank);
        goto done;
    }
    MU_TRY(st, pool_open(opt->n_thread, comm->rank, opt->split.n_rank, &pool, err), done);
    MU_TRY(st, mu_model_open(opt->path, &model, err), done);
    MU_TRY(st, mu_model_quantize(model, opt->quantize, err), done);
    MU_TRY(st, mu_plan_build(model, &opt->split, plan, err), done);
    MU_TRY(st, load_init(&l, opt, model, err), done);
    struct mu_shard_options so = {.model = model, .plan = plan, .rank = comm->rank, .serving = l.serving, .pool = pool};
    MU_TRY(st, mu_shard_link_create(comm, plan, &link, &so.comm, err), done);
    int64_t t0 = mu_now_ns();
    MU_TRY(st, mu_shard_create(&so, &l.shard, err), done);
    l.plan = plan;
    l.comm = comm;
    l.rank = comm->rank;
    l.probe = pool;
    MU_TRY(st, probe_open(&l, err), done);
    *is_leader_out = comm->rank == plan->leader;
    *result_out =
        (struct mu_bench_result){.load_s = (double)(mu_now_ns() - t0) / 1e9, .weight_bytes = step_bytes(plan, model)};
    if (!(st = measure(&l, result_out, err))) {
        int idle; /* the other stages have everything: the sends complete as soon as MPI may look */
        while ((idle = mu_shard_idle(l.shard, err)) == 0) {}
        if (idle < 0) st = MU_EPEER;
    }
done:
    mu_shard_destroy(l.shard);
    mu_shard_link_destroy(link);
    load_free(&l);
    mu_pool_destroy(pool);
    mu_model_close(model);
    mu_comm_close(comm);
    mu_free(plan);
    return st;
}
