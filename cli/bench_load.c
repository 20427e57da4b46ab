/* The workload of `muster bench`, run by every rank in step with the others: for each case prompts of n_tok tokens, or
 * n_tok rounds of decoding n_stream sequences that have n_context tokens already.
 *
 * A rank of an MPI job needs no leader to tell it the steps: they are the same on all. What it may not do is run ahead of the sampled ids, as a server could
 * not: with several stages the leader sends each decode step's ids to all, and step k waits for those of step k - groups, where the streams are cut in as many
 * groups as there are stages. That is how a server keeps stages busy, too.
 *
 * Contexts are filled once, by prompts: a repeat goes back to where the context ends and writes the same places of the
 * cache again, and a case with a longer context goes on where the last one's ended. Around each repeat all threads read
 * memory: its speed moves within seconds on a shared machine, so a repeat is compared with the readings beside it. The
 * buffer is as large as what a step reads (of the job's choice), so that a model which a cache holds is compared with
 * that cache. int8 and f32 rates hardly move and are measured around each case.
 *
 *   measured by   in one process: threads for ranks over the local transport     as an MPI job: each rank for itself
 *   shares        all ranks'                                                     ours; the leader gets the others' by message */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/topo.h"
#include "cli/bench.h"
#include "kernels/kernels.h"
#include "kernels/peak.h"
#include "transport/comm.h"
#include "worker/device_link.h"
#include "worker/rank.h"
#include "worker/seat.h"
#include "worker/shard_comm.h"
#include "worker/solo.h"

enum {
    PROBE_MIN_BYTES = 1 << 20,   /* a thread's buffer at least */
    PROBE_PASS_BYTES = 64 << 20, /* that a thread reads in a pass at least */
    PROBE_PASSES = 3,
    WARM_TOKENS = 64,
    MAX_SPANS = 1 << 16, /* of a repeat; later ones are not noted */
    LOAD_MS = 600000,    /* by which ranks may differ in loading, as those of a gang */
};

struct share { /* a rank's, whose times are taken here */
    struct mu_shard *shard;
    struct mu_bench_seat seat;
    int n_probe;               /* members of the probe that are this rank's */
    struct mu_shard_times sum; /* of the case's repeats */
    struct mu_shard_trace trace;
};

struct slot {
    uint32_t pos, n_page;
    uint32_t *page; /* [pages of n_ctx] */
};

struct load {
    const struct mu_bench_job *job;
    const struct mu_plan *plan;
    const struct mu_model *model;
    const struct mu_serving *serving;
    const struct mu_bench_case *c; /* the one that runs */
    struct mu_step *step;
    uint64_t number;
    struct slot *slot;
    uint32_t *pages, *free_page;
    uint32_t n_free_page;
    bool *dirty;          /* [n_slot] freed by the next step */
    struct mu_solo *solo; /* one of the two */
    struct mu_shard *shard;
    struct mu_comm *comm;
    struct mu_bench_links *links; /* of comm */
    int rank, n_vocab, n_share;
    struct share *share;   /* [n_share] */
    int n_cpu;             /* ranks on processors, of all */
    int n_cpu_thread;      /* their threads */
    int n_all_thread;      /* and those of ranks on GPUs */
    struct mu_pool *probe; /* reads memory between; the shard's own, idle then, where there is one; NULL: no rank of
                            * this process is on processors */
    unsigned char *probe_buf;
    size_t probe_each; /* bytes of a thread */
    double *probe_rate;
    double load_s;
    struct mu_bar bar;                     /* of a context that is filled */
    uint64_t filled, fill_total;           /* its tokens; total 0: no bar */
    int64_t delayed_ns, delayed_before_ns; /* of the case's repeats; when the one that runs began */
};

/* ---- steps ---- */

static enum mu_status run_step(struct load *l, struct mu_err *err)
{
    struct mu_step_result result;
    l->step->number = ++l->number;
    for (int i = 0; i < l->serving->n_slot; i++) {
        if (l->dirty[i]) l->step->free_slot[l->step->n_free++] = (uint32_t)i;
        l->dirty[i] = false;
    }
    if (!l->comm && mu_interrupted) return mu_fail(err, MU_ECANCELLED, "interrupted");
    return l->solo ? mu_solo_step(l->solo, l->step, &result, err) : mu_shard_step(l->shard, l->step, &result, err);
}

static void begin(struct load *l)
{
    l->step->n_free = l->step->n_page = l->step->n_seq = l->step->n_tok = 0;
}

static void slot_free(struct load *l, int i)
{
    struct slot *s = &l->slot[i];
    if (s->n_page) l->dirty[i] = true;
    while (s->n_page) l->free_page[l->n_free_page++] = s->page[--s->n_page];
    s->pos = 0;
}

static void add(struct load *l, int i, uint32_t n, bool prompt, bool out)
{
    struct mu_step *s = l->step;
    struct slot *slot = &l->slot[i];
    s->seq[s->n_seq++] = (struct mu_step_seq){.slot = (uint32_t)i,
                                              .pos0 = slot->pos,
                                              .n_tok = n,
                                              .tok_off = s->n_tok,
                                              .rough = prompt && l->serving->rough,
                                              .out = (uint8_t)(out ? MU_OUT_SAMPLE : MU_OUT_NONE)};
    for (uint32_t k = 0; k < n; k++)
        s->ids[s->n_tok++] = (int32_t)((slot->pos + k + (uint32_t)i) * 7919u % (uint32_t)l->n_vocab);
    slot->pos += n;
    while (slot->n_page * MU_PAGE_TOKENS < slot->pos) {
        uint32_t page = l->free_page[--l->n_free_page]; /* the job's serving has room for every case */
        slot->page[slot->n_page++] = page;
        s->page[s->n_page++] = (struct mu_step_page){(uint32_t)i, page};
    }
}

/* The first n slots up to `until` tokens each, `most` of them in one step. */
static enum mu_status fill(struct load *l, int n, uint32_t until, uint32_t most, bool out, struct mu_err *err)
{
    enum mu_status st = MU_OK;
    for (int i = 0; i < n && !st;) {
        begin(l);
        while (i < n && l->step->n_tok < most) {
            uint32_t left = until > l->slot[i].pos ? until - l->slot[i].pos : 0;
            uint32_t room = most - l->step->n_tok, take = left < room ? left : room;
            if (take) add(l, i, take, true, out && take == left);
            if (take == left) i++;
        }
        if (l->step->n_tok) st = run_step(l, err);
        l->filled += l->step->n_tok;
        mu_bar_update(&l->bar, l->filled, l->fill_total);
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

static enum mu_status decode(struct load *l, int n_round, struct mu_err *err)
{
    enum mu_status st = MU_OK;
    int n_stream = l->c->n_stream, groups = mu_bench_groups(l->plan, l->c, l->comm);
    int total = n_round * groups;
    for (int k = 0; k < total + groups && !st; k++) {
        if (k >= groups && (st = hear(l, err))) return st;
        if (k >= total) continue;
        begin(l);
        for (int s = k % groups; s < n_stream; s += groups) add(l, s, 1, false, true);
        if (!(st = run_step(l, err))) st = tell(l, err);
    }
    return st;
}

static enum mu_status meet(struct load *l, struct mu_err *err)
{
    return l->comm ? mu_comm_barrier(l->comm, err) : MU_OK;
}

/* ---- the limits of the machine ---- */

static int probe_times(const struct load *l)
{
    return (int)((PROBE_PASS_BYTES + l->probe_each - 1) / l->probe_each);
}

static void probe_read(void *arg, int member, int n)
{
    const struct load *l = arg;
    int64_t start = mu_now_ns();
    (void)n;
    for (int i = probe_times(l); i > 0; i--)
        mu_peak_read_gbps(l->probe_buf + (size_t)member * l->probe_each, l->probe_each);
    l->probe_rate[member] = (double)l->probe_each * probe_times(l) / (double)(mu_now_ns() - start);
}
/* The first touch decides the NUMA node. */
static void probe_touch(void *arg, int member, int n)
{
    const struct load *l = arg;
    (void)n;
    memset(l->probe_buf + (size_t)member * l->probe_each, 1, l->probe_each);
}
static void probe_int8(void *arg, int member, int n)
{
    (void)n;
    ((struct load *)arg)->probe_rate[member] = mu_peak_int8_gops();
}
static void probe_f32(void *arg, int member, int n)
{
    (void)n;
    ((struct load *)arg)->probe_rate[member] = mu_peak_f32_gflops();
}

static size_t probe_bytes(const struct load *l)
{
    return (size_t)mu_pool_size(l->probe) * l->probe_each;
}

static enum mu_status probe_open(struct load *l, struct mu_err *err)
{
    size_t threads = (size_t)(l->n_cpu_thread ? l->n_cpu_thread : 1), page = 4096;
    l->probe_each = (size_t)(l->job->probe_bytes / threads) / page * page;
    if (l->probe_each < PROBE_MIN_BYTES) l->probe_each = PROBE_MIN_BYTES;
    if (!l->probe) return MU_OK;
    l->probe_rate = mu_calloc((size_t)mu_pool_size(l->probe), sizeof *l->probe_rate);
    l->probe_buf = mu_pages_alloc(probe_bytes(l));
    if (!l->probe_buf || !l->probe_rate)
        return mu_fail(err, MU_ENOMEM, "no memory to measure bandwidth (%zu MB)", probe_bytes(l) >> 20);
    mu_pool_run(l->probe, probe_touch, l);
    return MU_OK;
}

/* Each rank's part of what its threads have just read, where it was the best so far. */
static void probe_seats(struct load *l)
{
    for (int i = 0, k = 0; l->probe && i < l->n_share; i++) {
        double sum = 0;
        for (int n = l->share[i].n_probe; n > 0; n--) sum += l->probe_rate[k++];
        if (sum > l->share[i].seat.read_gbps) l->share[i].seat.read_gbps = sum;
    }
}

/* Common passes of all threads of all ranks on processors: adding up what each reaches while others start or end promises too much. The
 * fastest of three counts: threads that wake up, or share a core with the decode's that still spin, spoil the first. */
static enum mu_status probe_memory(struct load *l, double *gbps_out, struct mu_err *err)
{
    enum mu_status st = meet(l, err);
    double bytes = (double)l->probe_each * l->n_cpu_thread * probe_times(l);
    *gbps_out = 0;
    for (int pass = 0; pass < PROBE_PASSES && !st && l->n_cpu; pass++) {
        int64_t start = mu_now_ns();
        if (l->probe) mu_pool_run(l->probe, probe_read, l);
        st = meet(l, err);
        double gbps = bytes / (double)(mu_now_ns() - start);
        if (gbps > *gbps_out) *gbps_out = gbps;
        probe_seats(l);
    }
    return st;
}

static double probe_rates(struct load *l, void (*probe)(void *, int, int))
{
    double sum = 0;
    if (!l->probe) return 0;
    mu_pool_run(l->probe, probe, l);
    for (int i = 0; i < mu_pool_size(l->probe); i++) sum += l->probe_rate[i];
    return sum;
}

/* This process's threads; the leader adds up. A disturbed core shows as nothing where the other time was better. */
static enum mu_status probe_arithmetic(struct load *l, struct mu_bench_limits *best, struct mu_err *err)
{
    enum mu_status st = meet(l, err);
    double int8 = probe_rates(l, probe_int8), f32 = probe_rates(l, probe_f32);
    if (int8 > best->int8_gops) best->int8_gops = int8;
    if (f32 > best->f32_gflops) best->f32_gflops = f32;
    return st ? st : meet(l, err);
}

/* ---- where the time went ---- */

/* For how long this process's threads have waited for a core so far: the second figure of schedstat (Linux
 * Documentation/scheduler/sched-stats.rst), in ns; 0 where the kernel does not count. */
static int64_t delayed_now_ns(void)
{
    DIR *dir = opendir("/proc/self/task");
    int64_t sum = 0;
    for (struct dirent *e; dir && (e = readdir(dir));) {
        char path[300];
        long long delay;
        snprintf(path, sizeof path, "/proc/self/task/%s/schedstat", e->d_name);
        FILE *f = e->d_name[0] == '.' ? NULL : fopen(path, "re");
        if (f && fscanf(f, "%*d %lld", &delay) == 1) sum += delay;
        if (f) fclose(f);
    }
    if (dir) closedir(dir);
    return sum;
}

static void times_clear(struct load *l)
{
    struct mu_shard_times before;
    l->delayed_before_ns = delayed_now_ns();
    for (int i = 0; i < l->n_share; i++) {
        mu_shard_take_times(l->share[i].shard, &before);
        l->share[i].trace.n = 0;
        mu_shard_set_trace(l->share[i].shard, &l->share[i].trace);
    }
}

static void times_add(struct load *l)
{
    l->delayed_ns += delayed_now_ns() - l->delayed_before_ns;
    for (int i = 0; i < l->n_share; i++) {
        struct mu_shard_times *sum = &l->share[i].sum, t;
        mu_shard_take_times(l->share[i].shard, &t);
        mu_shard_set_trace(l->share[i].shard, NULL);
        sum->compute_s += t.compute_s;
        sum->exchange_s += t.exchange_s;
        sum->recv_s += t.recv_s;
        sum->send_s += t.send_s;
        sum->attention_s += t.attention_s;
        sum->sampling_s += t.sampling_s;
    }
}

struct rank_report { /* of a rank that is not the leader, then its spans */
    struct mu_shard_times sum;
    struct mu_bench_limits limits;
    struct mu_bench_seat seat;
    int64_t delayed_ns;
    uint64_t n_span;
};

/* The leader's view of all ranks: times_out[n_rank], trace[n_rank], seat_out[n_rank]; limits and delays become sums. Others send theirs. */
static enum mu_status reports_gather(struct load *l, struct mu_bench_limits *limits, struct mu_shard_times *times_out,
                                     struct mu_shard_trace *trace, struct mu_bench_seat *seat_out, struct mu_err *err)
{
    enum mu_status st;
    const struct share *own = &l->share[0];
    for (int i = 0; i < l->n_share; i++) l->share[i].seat.numa_share = mu_shard_numa_share(l->share[i].shard);
    if (!l->comm) {
        for (int i = 0; i < l->n_share; i++) {
            times_out[i] = l->share[i].sum;
            trace[i] = l->share[i].trace;
            seat_out[i] = l->share[i].seat;
        }
        return MU_OK;
    }
    struct rank_report report = {own->sum, *limits, own->seat, l->delayed_ns, own->trace.n};
    if (l->rank != l->plan->leader) {
        MU_TRY(st, mu_comm_send(l->comm, l->plan->leader, &report, sizeof report, err), done);
        st = mu_comm_send(l->comm, l->plan->leader, own->trace.span, own->trace.n * sizeof *own->trace.span, err);
        goto done;
    }
    for (int i = 0; i < l->plan->n_rank; i++) {
        times_out[i] = own->sum;
        trace[i] = own->trace;
        seat_out[i] = own->seat;
        if (i == l->rank) continue;
        MU_TRY(st, mu_comm_recv(l->comm, i, &report, sizeof report, err), done);
        trace[i] = (struct mu_shard_trace){.n = (size_t)report.n_span, .max = MAX_SPANS};
        trace[i].span = report.n_span <= MAX_SPANS ? mu_calloc(MAX_SPANS, sizeof *trace[i].span) : NULL;
        if (!trace[i].span) return mu_fail(err, MU_ENOMEM, "no memory for the times of rank %d", i);
        MU_TRY(st, mu_comm_recv(l->comm, i, trace[i].span, trace[i].n * sizeof *trace[i].span, err), done);
        times_out[i] = report.sum;
        seat_out[i] = report.seat;
        seat_out[i].cpus[sizeof seat_out[i].cpus - 1] = '\0';
        limits->int8_gops += report.limits.int8_gops;
        limits->f32_gflops += report.limits.f32_gflops;
        l->delayed_ns += report.delayed_ns;
    }
    st = MU_OK;
done:
    return st;
}

static int64_t trace_ns(const struct mu_shard_trace *t)
{
    int64_t ns = 0;
    for (size_t i = 0; i < t->n; i++) ns += t->span[i].end_ns - t->span[i].begin_ns;
    return ns;
}

/* Means of a repeat. Of the last one the traces tell how much of the talks was waiting; the others are taken to be
 * alike. */
static void result_times(struct load *l, const struct mu_shard_times *times, const struct mu_shard_trace *trace,
                         struct mu_bench_result *r)
{
    int64_t wait_ns[MU_MAX_RANKS];
    double n = (double)r->s.n;
    mu_bench_waits(l->plan, l->comm ? l->comm->node_of : NULL, trace, wait_ns);
    r->n_rank = l->plan->n_rank;
    r->delayed = (double)l->delayed_ns / 1e9 / (r->s.mean * n * l->n_all_thread);
    if (r->delayed > 1) r->delayed = 1; /* the threads of the probe that fall asleep count too */
    for (int i = 0; i < r->n_rank; i++) {
        const struct mu_shard_times *t = &times[i];
        int64_t talked = trace_ns(&trace[i]);
        double talk = (t->exchange_s + t->recv_s + t->send_s) / n;
        double waited = talked > 0 ? talk * (double)wait_ns[i] / (double)talked : 0;
        double rest = r->s.mean - t->compute_s / n - talk;
        r->rank[i] = (struct mu_bench_times){.matrix_s = (t->compute_s - t->attention_s - t->sampling_s) / n,
                                             .attention_s = t->attention_s / n,
                                             .sampling_s = t->sampling_s / n,
                                             .wire_s = talk - waited,
                                             .wait_s = waited + (rest > 0 ? rest : 0)};
    }
}

/* ---- a case ---- */

/* To where a repeat begins. */
static enum mu_status case_ready(struct load *l, struct mu_err *err)
{
    const struct mu_bench_case *c = l->c;
    uint64_t missing = 0;
    for (int i = 0; i < c->n_stream; i++) {
        if (l->slot[i].pos > (uint32_t)c->n_context) l->slot[i].pos = (uint32_t)c->n_context;
        missing += (uint32_t)c->n_context - l->slot[i].pos;
    }
    l->bar = (struct mu_bar){.label = "filling the context"};
    l->filled = 0;
    l->fill_total = missing;
    enum mu_status st = fill(l, c->n_stream, (uint32_t)c->n_context, (uint32_t)l->serving->step_tokens, false, err);
    l->fill_total = 0;
    return st;
}

static enum mu_status case_run(struct load *l, int n_tok, struct mu_err *err)
{
    uint32_t chunk = (uint32_t)mu_bench_chunk(l->plan, l->c->n_tok, l->comm);
    return l->c->phase == MU_BENCH_PROMPT ? fill(l, 1, (uint32_t)n_tok, chunk, true, err) : decode(l, n_tok, err);
}

/* Sequences give back pages that this case needs: first those that it does not have, then those longer than it wants. */
static void case_make_room(struct load *l)
{
    uint32_t need = ((uint32_t)(l->c->n_context + l->c->n_tok) + MU_PAGE_TOKENS - 1) / MU_PAGE_TOKENS;
    for (int i = l->serving->n_slot - 1; i >= 0; i--) {
        uint32_t missing = 0;
        for (int k = 0; k < l->c->n_stream; k++) missing += l->slot[k].n_page < need ? need - l->slot[k].n_page : 0;
        if (missing <= l->n_free_page) return;
        if (i >= l->c->n_stream || l->slot[i].n_page > need) slot_free(l, i);
    }
}

static struct mu_bench_bound bound_of(const struct load *l, const struct mu_bench_limits *cpu)
{
    return mu_bench_bound_places(l->model, l->plan, l->c, mu_bench_groups(l->plan, l->c, l->comm), l->comm,
                                 l->serving->kv, cpu, l->job->gpu);
}

/* From what the processors did, and what the GPUs were measured at. */
static void result_limits(const struct load *l, const struct mu_bench_work *w, struct mu_bench_result *r)
{
    double bf16 = 0;
    bool seen[MU_MAX_GPUS] = {false};
    r->host = l->n_cpu ? r->limits : (struct mu_bench_limits){0};
    r->bound = bound_of(l, &r->limits);
    if (l->n_cpu == l->plan->n_rank) return;
    r->limits = (struct mu_bench_limits){0};
    if (r->bound.read_s > 0) r->limits.read_gbps = (w->weight_bytes + w->kv_bytes) / r->bound.read_s / 1e9;
    if (r->bound.int8_s > 0) r->limits.int8_gops = w->int8_ops / r->bound.int8_s / 1e9;
    if (r->bound.f32_s > 0) r->limits.f32_gflops = w->f32_ops / r->bound.f32_s / 1e9;
    for (int i = 0; i < l->plan->n_rank; i++) {
        int device = l->plan->split.device[i];
        if (device == MU_ON_CPU || seen[device]) continue;
        seen[device] = true;
        bf16 += l->job->gpu[device].bf16_gflops;
    }
    r->limits.bf16_gflops = bf16;
    if (bf16 > 0 && l->n_cpu == 0) r->of_bf16 = (w->int8_ops + w->f32_ops) / r->s.median / 1e9 / bf16;
}

/* All ranks leave with their own times; the leader's are the result. */
static enum mu_status case_measure(struct load *l, struct mu_bench_result *r, struct mu_err *err)
{
    enum mu_status st;
    double took[MU_BENCH_MAX_REPEATS], read[MU_BENCH_MAX_REPEATS], fraction[MU_BENCH_MAX_REPEATS], before, after;
    int n = l->job->n_repeat, warm = l->c->phase == MU_BENCH_DECODE ? 1 : WARM_TOKENS;
    struct mu_shard_times times[MU_MAX_RANKS];
    struct mu_shard_trace trace[MU_MAX_RANKS] = {{0}};
    struct mu_bench_work work;
    int n_group = mu_bench_groups(l->plan, l->c, l->comm);
    mu_bench_work(l->model, l->plan, l->c, n_group, l->serving->kv, &work);
    *r =
        (struct mu_bench_result){.load_s = l->load_s, .n_step = l->c->phase == MU_BENCH_PROMPT ? n_group : l->c->n_tok};
    case_make_room(l);
    l->delayed_ns = 0;
    for (int i = 0; i < l->n_share; i++) l->share[i].sum = (struct mu_shard_times){0};
    MU_TRY(st, case_ready(l, err), done);
    MU_TRY(st, case_run(l, warm < l->c->n_tok ? warm : l->c->n_tok, err), done); /* pages, caches, connections */
    MU_TRY(st, probe_arithmetic(l, &r->limits, err), done);
    for (int i = 0; i < n; i++) {
        MU_TRY(st, case_ready(l, err), done);
        MU_TRY(st, probe_memory(l, &before, err), done);
        times_clear(l);
        int64_t start = mu_now_ns();
        MU_TRY(st, case_run(l, l->c->n_tok, err), done);
        MU_TRY(st, meet(l, err), done);
        took[i] = (double)(mu_now_ns() - start) / 1e9;
        times_add(l);
        MU_TRY(st, probe_memory(l, &after, err), done);
        read[i] = (before + after) / 2;
    }
    MU_TRY(st, probe_arithmetic(l, &r->limits, err), done);
    MU_TRY(st, reports_gather(l, &r->limits, times, trace, r->seat, err), done);
    if (l->comm && l->rank != l->plan->leader) goto done;
    for (int i = 0; i < n; i++) {
        struct mu_bench_limits then = r->limits;
        then.read_gbps = read[i];
        fraction[i] = bound_of(l, &then).s / took[i];
    }
    r->s = mu_bench_spread_of(took, (size_t)n);
    r->limits.read_gbps = mu_bench_spread_of(read, (size_t)n).median;
    r->of_bound = mu_bench_spread_of(fraction, (size_t)n).median;
    result_limits(l, &work, r);
    result_times(l, times, trace, r);
    if (l->comm) mu_bench_predict(l->model, l->plan, l->job, l->c, l->links, r);
done:
    for (int i = 0; l->comm && i < l->plan->n_rank; i++)
        if (trace[i].span != l->share[0].trace.span) mu_free(trace[i].span);
    return st;
}

/* Rank 0 has it then. */
static enum mu_status result_tell(struct load *l, struct mu_bench_result *r, struct mu_err *err)
{
    if (!l->comm || l->plan->leader == 0) return MU_OK;
    if (l->rank == l->plan->leader) return mu_comm_send(l->comm, 0, r, sizeof *r, err);
    return l->rank == 0 ? mu_comm_recv(l->comm, l->plan->leader, r, sizeof *r, err) : MU_OK;
}

static enum mu_status cases_measure(struct load *l, mu_bench_done *done, void *ctx, struct mu_err *err)
{
    enum mu_status st = MU_OK;
    for (int i = 0; i < l->job->n_case && !st; i++) {
        struct mu_bench_result r;
        l->c = &l->job->cases[i];
        st = case_measure(l, &r, err);
        if (!st) st = result_tell(l, &r, err);
        if (!st && l->rank == 0) st = done(&r, i, ctx, err);
    }
    return st;
}

/* ---- life ---- */

static enum mu_status load_init(struct load *l, struct mu_err *err)
{
    size_t n_slot = (size_t)l->serving->n_slot, n_page = l->serving->n_page;
    size_t each = ((size_t)l->serving->n_ctx + MU_PAGE_TOKENS - 1) / MU_PAGE_TOKENS;
    l->slot = mu_calloc(n_slot, sizeof *l->slot);
    l->dirty = mu_calloc(n_slot, sizeof *l->dirty);
    l->pages = mu_reallocarray(NULL, n_slot * each, sizeof *l->pages);
    l->free_page = mu_reallocarray(NULL, n_page, sizeof *l->free_page);
    l->share = mu_calloc((size_t)l->n_share, sizeof *l->share);
    if (!l->slot || !l->dirty || !l->pages || !l->free_page || !l->share)
        return mu_fail(err, MU_ENOMEM, "no memory for %d streams", l->serving->n_slot);
    for (size_t i = 0; i < n_slot; i++) l->slot[i].page = l->pages + i * each;
    while (l->n_free_page < n_page) { /* page 0 is taken first */
        l->free_page[l->n_free_page] = (uint32_t)(n_page - 1 - l->n_free_page);
        l->n_free_page++;
    }
    for (int i = 0; i < l->n_share; i++) {
        l->share[i].trace = (struct mu_shard_trace){.max = MAX_SPANS};
        l->share[i].trace.span = mu_calloc(MAX_SPANS, sizeof(struct mu_shard_span));
        if (!l->share[i].trace.span) return mu_fail(err, MU_ENOMEM, "no memory for times");
    }
    return mu_step_create(l->serving, l->n_vocab, &l->step, err);
}

static void load_free(struct load *l)
{
    for (int i = 0; l->share && i < l->n_share; i++) mu_free(l->share[i].trace.span);
    mu_free(l->share);
    mu_free(l->links);
    mu_free(l->step);
    mu_free(l->slot);
    mu_free(l->dirty);
    mu_free(l->pages);
    mu_free(l->free_page);
    mu_free(l->probe_rate);
    if (l->probe_buf) mu_pages_free(l->probe_buf, probe_bytes(l));
}

/* The machine as this thread may use it, so to be asked for before a pool pins the thread. Freed with mu_free. */
static enum mu_status topo_open(struct mu_topo **topo_out, struct mu_err *err)
{
    *topo_out = mu_calloc(1, sizeof **topo_out);
    if (!*topo_out) return mu_fail(err, MU_ENOMEM, "no memory for the topology");
    return mu_topo_read(*topo_out, err);
}

/* The kernel that each rank runs on, whose cores are shared out among its ranks. Not by host names, as the communicator's
 * machines: one kernel may have several (containers, tests/links). */
struct kernels {
    char boot[MU_MAX_RANKS][40];
};

static enum mu_status kernels_find(struct mu_comm *comm, struct kernels *k, struct mu_err *err)
{
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");
    memset(k, 0, sizeof *k);
    if (f && !fgets(k->boot[comm->rank], sizeof k->boot[0], f)) k->boot[comm->rank][0] = 0; /* then all are one */
    if (f) fclose(f);
    return mu_bench_all_gather(comm, k->boot, sizeof k->boot[0], err);
}

/* The ranks on rank's kernel, and its place among them. kernels NULL: all are. */
static int split_here(const struct kernels *kernels, const struct mu_split *split, int rank, struct mu_split *here)
{
    int place = 0;
    *here = *split;
    here->n_rank = 0;
    for (int i = 0; i < split->n_rank; i++) {
        if (kernels && strcmp(kernels->boot[i], kernels->boot[rank])) continue;
        if (i == rank) place = here->n_rank;
        here->device[here->n_rank++] = split->device[i];
    }
    return place;
}

static void threads_count(struct load *l, const struct mu_topo *topo, const struct mu_split *split,
                          const struct kernels *kernels)
{
    l->n_cpu = mu_split_cpu_ranks(split);
    for (int i = 0; i < split->n_rank; i++) {
        struct mu_split here;
        struct mu_place place;
        int k = split_here(kernels, split, i, &here);
        mu_plan_place(topo, &here, -1, l->job->n_thread, k, &place);
        l->n_all_thread += place.n_thread;
        if (split->device[i] == MU_ON_CPU) l->n_cpu_thread += place.n_thread;
    }
}

static void share_seat(struct share *s, const struct mu_place *place, bool on_cpu)
{
    s->seat = (struct mu_bench_seat){.numa = place->numa, .numa_share = -1};
    s->n_probe = on_cpu ? place->n_thread : 0;
    mu_place_cpus_text(place->cpu, place->n_cpu, s->seat.cpus, sizeof s->seat.cpus);
}

/* One thread where each of all ranks' threads is; not bound where any of those is not. */
static enum mu_status probe_pool_open(struct load *l, const struct mu_topo *topo, const struct mu_split *split,
                                      struct mu_err *err)
{
    int *cpus = mu_calloc((size_t)l->n_cpu_thread + 1, sizeof *cpus), n = 0;
    if (!cpus) return mu_fail(err, MU_ENOMEM, "no memory for the topology");
    struct mu_pool_options po = {.n_threads = l->n_cpu_thread, .thread_init = mu_fp_env_init, .pin = 1, .cpus = cpus};
    for (int i = 0; i < split->n_rank; i++) {
        struct mu_place place;
        bool on_cpu = split->device[i] == MU_ON_CPU;
        mu_plan_place(topo, split, -1, l->job->n_thread, i, &place);
        share_seat(&l->share[i], &place, on_cpu);
        if (!on_cpu) continue;
        if (!place.pinned) po.pin = 0;
        for (int k = 0; k < place.n_thread; k++) cpus[n++] = place.cpu[k];
    }
    if (!po.pin) po.cpus = NULL;
    enum mu_status st = l->n_cpu ? mu_pool_create(&po, &l->probe, err) : MU_OK;
    mu_free(cpus);
    return st;
}

enum mu_status mu_bench_local(const struct mu_bench_job *job, mu_bench_done *done, void *ctx, struct mu_err *err)
{
    enum mu_status st;
    struct mu_model *model = NULL;
    struct load l = {.job = job, .serving = &job->serving};
    struct mu_topo *topo = NULL;
    struct mu_bar bar = {.label = "loading"};
    struct mu_solo_options so = {
        .n_thread = job->n_thread, .serving = job->serving, .pin = 1, .load_progress = mu_bar_load, .load_ctx = &bar};
    MU_TRY(st, topo_open(&topo, err), out);
    MU_TRY(st, mu_model_open(job->path, &model, err), out);
    MU_TRY(st, mu_model_quantize(model, job->quantize, err), out);
    MU_TRY(st, mu_split_parse(job->split, &so.split, err), out);
    so.model = l.model = model;
    l.n_vocab = model->cfg.n_vocab;
    l.n_share = so.split.n_rank;
    MU_TRY(st, load_init(&l, err), out);
    int64_t start = mu_now_ns();
    MU_TRY(st, mu_solo_open(&so, &l.solo, err), out);
    l.load_s = (double)(mu_now_ns() - start) / 1e9;
    l.plan = mu_solo_plan(l.solo);
    for (int i = 0; i < l.n_share; i++) l.share[i].shard = mu_solo_shard(l.solo, i);
    threads_count(&l, topo, &so.split, NULL);
    MU_TRY(st, probe_pool_open(&l, topo, &so.split, err), out);
    MU_TRY(st, probe_open(&l, err), out);
    st = cases_measure(&l, done, ctx, err);
out:
    load_free(&l);
    mu_pool_destroy(l.probe); /* before the solo's pool, which has this thread pinned already */
    mu_solo_close(l.solo);
    mu_model_close(model);
    mu_free(topo);
    return st;
}

enum mu_status mu_bench_rank(const struct mu_bench_job *job, struct mu_comm *comm, mu_bench_done *done, void *ctx,
                             struct mu_err *err)
{
    enum mu_status st;
    struct mu_model *model = NULL;
    struct mu_seat seat = {0};
    struct mu_plan *plan = mu_calloc(1, sizeof *plan);
    struct mu_shard_link *link = NULL;
    struct load l = {.job = job, .serving = &job->serving, .n_share = 1};
    struct mu_topo *topo = NULL;
    struct mu_split split, here;
    struct kernels kernels;
    if (!plan) return mu_fail(err, MU_ENOMEM, "no memory for the plan");
    MU_TRY(st, mu_split_parse(job->split, &split, err), out);
    if (comm->n_rank != split.n_rank) {
        st = mu_fail(err, MU_EINVAL, "mpirun started %d ranks, the split has %d", comm->n_rank, split.n_rank);
        goto out;
    }
    comm->timeout_ms = LOAD_MS;
    MU_TRY(st, topo_open(&topo, err), out);
    MU_TRY(st, kernels_find(comm, &kernels, err), out);
    threads_count(&l, topo, &split, &kernels);
    int place = split_here(&kernels, &split, comm->rank, &here);
    MU_TRY(st, mu_seat_open(topo, &here, place, job->n_thread, true, &seat, err), out);
    MU_TRY(st, mu_model_open(job->path, &model, err), out);
    MU_TRY(st, mu_model_quantize(model, job->quantize, err), out);
    MU_TRY(st, mu_plan_build(model, &split, plan, err), out);
    l.model = model;
    l.n_vocab = model->cfg.n_vocab;
    l.plan = plan;
    MU_TRY(st, load_init(&l, err), out);
    struct mu_shard_options so = {.model = model,
                                  .plan = plan,
                                  .rank = comm->rank,
                                  .serving = job->serving,
                                  .pool = seat.pool,
                                  .numa = seat.numa};
    so.device_timeout_ms = mu_rank_wait_ms(model, &split, &job->serving, job->n_thread);
    struct mu_device_link_ids links;
    MU_TRY(st, mu_shard_link_create(comm, plan, &link, &so.comm, err), out);
    MU_TRY(st, mu_device_link_agree(comm, plan, comm->rank, NULL, &links, err), out);
    mu_device_link_use(&links, &so);
    MU_TRY(st, mu_bench_links_measure(comm, plan, &l.links, err), out);
    so.slow_links = mu_bench_links_slow(l.links, plan, comm->rank);
    int64_t start = mu_now_ns();
    MU_TRY(st, mu_shard_create(&so, &l.shard, err), out);
    l.load_s = (double)(mu_now_ns() - start) / 1e9;
    l.share[0].shard = l.shard;
    l.comm = comm;
    l.rank = comm->rank;
    share_seat(&l.share[0], &seat.place, split.device[comm->rank] == MU_ON_CPU);
    l.probe = split.device[comm->rank] == MU_ON_CPU ? seat.pool : NULL;
    MU_TRY(st, probe_open(&l, err), out);
    MU_TRY(st, meet(&l, err), out);
    comm->timeout_ms = so.device_timeout_ms; /* as long as for a GPU */
    if (!(st = cases_measure(&l, done, ctx, err))) {
        int idle; /* the other stages have everything: the sends complete as soon as MPI may look */
        while ((idle = mu_shard_idle(l.shard, err)) == 0) {}
        if (idle < 0) st = MU_EPEER;
    }
out:
    load_free(&l);
    mu_shard_destroy(l.shard);
    mu_shard_link_destroy(link);
    mu_seat_close(&seat);
    mu_model_close(model);
    mu_free(topo);
    mu_free(plan);
    return st;
}
