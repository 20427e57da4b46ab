/* Steps of a model: every case (prompt length; streams × context) under every split, each split loaded once.
 *
 * Cases are made in an order that fills contexts once: prompts, then contexts ascending, in each the streams ascending.
 * What does not fit into memory or the model's context is refused, with the reason, and the rest runs. Ctrl-C or an
 * error ends the measuring and the cases that are done are reported. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/topo.h"
#include "cli/bench.h"
#include "kernels/kernels.h"

/* The buffer that measures memory: as large as what a step reads, within these. */
static const uint64_t PROBE_MAX_BYTES = 2ull << 30;

struct run {
    struct mu_bench_sweep *sweep;
    struct mu_plan *plan;
    int n_machine, machine[MU_MAX_RANKS]; /* of each rank; all are taken to be like this one */
    struct mu_bench_job job;
    int point_of[MU_BENCH_MAX_CASES]; /* the job's case to the sweep's point */
    struct mu_plan_node node;         /* its memory without what measuring takes */
    struct mu_bar bar;
    uint64_t done, total; /* of the bar: about the tokens of all cases */
};

/* ---- cases ---- */

static int ascending(const void *a, const void *b)
{
    return *(const int *)a - *(const int *)b;
}

static struct mu_bench_list sorted(const struct mu_bench_list *l)
{
    struct mu_bench_list s = *l;
    qsort(s.at, (size_t)s.n, sizeof *s.at, ascending);
    return s;
}

static enum mu_status cases_make(struct mu_bench_sweep *s, struct mu_err *err)
{
    const struct mu_bench_sweep_options *o = s->opt;
    struct mu_bench_list context = sorted(&o->context), stream = sorted(&o->stream), prompt = sorted(&o->prompt);
    int n = prompt.n + (o->n_decode ? context.n * stream.n : 0);
    if (n > MU_BENCH_MAX_CASES)
        return mu_fail(err, MU_ELIMIT, "%d cases of one split, expected at most %d: sweep less at once", n,
                       MU_BENCH_MAX_CASES);
    for (int i = 0; i < prompt.n; i++)
        s->cases[s->n_case++] = (struct mu_bench_case){MU_BENCH_PROMPT, prompt.at[i], 1, 0};
    for (int c = 0; c < context.n && o->n_decode; c++)
        for (int b = 0; b < stream.n; b++)
            s->cases[s->n_case++] = (struct mu_bench_case){MU_BENCH_DECODE, o->n_decode, stream.at[b], context.at[c]};
    s->n_point = s->n_case * s->n_split;
    s->point = mu_calloc((size_t)s->n_point, sizeof *s->point);
    if (!s->point) return mu_fail(err, MU_ENOMEM, "no memory for %d cases", s->n_point);
    for (int i = 0; i < s->n_point; i++) {
        s->point[i].c = &s->cases[i % s->n_case];
        s->point[i].i_split = i / s->n_case;
    }
    return MU_OK;
}

/* ---- memory ---- */

static int case_length(const struct mu_bench_case *c)
{
    return c->n_context + c->n_tok;
}

static void serving_add(struct mu_serving *v, const struct mu_split *split, const struct mu_bench_case *c)
{
    int pages = (case_length(c) + MU_PAGE_TOKENS - 1) / MU_PAGE_TOKENS;
    uint32_t all = (uint32_t)pages * (uint32_t)c->n_stream;
    if (pages * MU_PAGE_TOKENS > v->n_ctx) v->n_ctx = pages * MU_PAGE_TOKENS;
    if (c->n_stream > v->n_slot) v->n_slot = c->n_stream;
    if (all > v->n_page) v->n_page = all;
    int most = mu_plan_step_tokens(split), step = case_length(c) < most ? case_length(c) : most;
    if (step > v->step_tokens) v->step_tokens = step;
    if (v->step_tokens < v->n_slot) v->step_tokens = v->n_slot;
}

static uint64_t need_of(const struct run *r, const struct mu_serving *v)
{
    uint64_t need = 0;
    bool embeds[MU_MAX_RANKS] = {0}; /* machines with the embedding's pages */
    for (int i = 0; i < r->plan->n_rank; i++) {
        struct mu_rank_memory m;
        mu_plan_memory(r->sweep->model, r->plan, i, v, &m);
        need += m.weights + m.kv + m.scratch + m.host + m.streamed;
        if (m.mapped && embeds[r->machine[i]]) need -= m.mapped;
        embeds[r->machine[i]] |= m.mapped > 0;
    }
    return need;
}

/* The ranks on one machine, as if there were no others: for what they take of its memory and cores. */
static struct mu_plan ranks_on(const struct run *r, int machine)
{
    struct mu_plan here = *r->plan;
    here.n_rank = 0;
    here.leader = -1;
    for (int i = 0; i < r->plan->n_rank; i++) {
        if (r->machine[i] != machine) continue;
        if (i == r->plan->leader) here.leader = here.n_rank;
        here.rank[here.n_rank] = r->plan->rank[i];
        here.split.device[here.n_rank] = r->plan->split.device[i];
        here.split.streamed[here.n_rank++] = r->plan->split.streamed[i];
    }
    here.split.n_rank = here.n_rank;
    return here;
}

/* Whether every place has room for it; *place_out: the one that is full first. */
static bool fits(const struct run *r, const struct mu_serving *v, struct mu_fit_place *place_out)
{
    for (int i = 0; i < r->n_machine; i++) {
        struct mu_plan here = ranks_on(r, i);
        struct mu_fit fit;
        mu_fit_measure(r->sweep->model, &here, NULL, v, &r->node, &fit);
        *place_out = *mu_fit_fullest(&fit);
        if (mu_fit_room(&fit) < v->n_page) return false;
    }
    return true;
}

static void refuse_memory(struct mu_bench_point *p, const struct mu_fit_place *full, uint32_t n_page)
{
    char need[32], room[32];
    mu_human_bytes(full->weights + full->scratch + full->page * n_page, need, sizeof need);
    mu_human_bytes(full->usable, room, sizeof room);
    p->state = MU_BENCH_REFUSED;
    if (full->device == MU_ON_CPU)
        snprintf(p->why, sizeof p->why, "takes %s of memory, %s are free", need, room);
    else
        snprintf(p->why, sizeof p->why, "takes %s of GPU %d's memory, %s are free", need, full->device, room);
}

/* Each case alone: its work, its memory, and whether the model has such a context at all. */
static void point_check(struct run *r, struct mu_bench_point *p)
{
    const struct mu_model *m = r->sweep->model;
    struct mu_serving alone = {.kv = r->sweep->opt->kv};
    struct mu_fit_place full;
    bool is_mpi = r->plan->n_rank > 1 && !r->sweep->opt->local;
    mu_bench_work(m, r->plan, p->c, mu_bench_groups(r->plan, p->c, is_mpi), r->sweep->opt->kv, &p->work);
    serving_add(&alone, &r->plan->split, p->c);
    p->need_bytes = need_of(r, &alone);
    if (case_length(p->c) > m->cfg.n_ctx_train) {
        p->state = MU_BENCH_REFUSED;
        snprintf(p->why, sizeof p->why, "needs %d tokens of context, the model has %d", case_length(p->c),
                 m->cfg.n_ctx_train);
    } else if (!fits(r, &alone, &full)) {
        refuse_memory(p, &full, alone.n_page);
    }
}

/* The job of those that fit together; the largest leave first. */
static void job_fill(struct run *r, struct mu_bench_point *point)
{
    struct mu_bench_sweep *s = r->sweep;
    struct mu_fit_place full;
    for (;;) {
        int largest = -1;
        r->job.n_case = 0;
        r->job.serving = (struct mu_serving){.kv = s->opt->kv, .rough = s->opt->rough};
        for (int i = 0; i < s->n_case; i++) {
            if (point[i].state == MU_BENCH_REFUSED) continue;
            serving_add(&r->job.serving, &r->plan->split, point[i].c);
            r->point_of[r->job.n_case] = (int)(&point[i] - s->point);
            r->job.cases[r->job.n_case++] = *point[i].c;
            if (largest < 0 || point[i].need_bytes > point[largest].need_bytes) largest = i;
        }
        if (largest < 0 || fits(r, &r->job.serving, &full)) return;
        refuse_memory(&point[largest], &full, r->job.serving.n_page);
    }
}

/* ---- one split ---- */

static uint64_t case_units(const struct mu_bench_case *c, int n_repeat)
{
    uint64_t fill = (uint64_t)c->n_context * (uint64_t)c->n_stream;
    return fill + (uint64_t)n_repeat * (uint64_t)c->n_tok * (c->phase == MU_BENCH_DECODE ? 8 : 1);
}

static void on_result(const struct mu_bench_result *result, int i, void *ctx)
{
    struct run *r = ctx;
    struct mu_bench_point *p = &r->sweep->point[r->point_of[i]];
    p->state = MU_BENCH_DONE;
    p->r = *result;
    r->done += case_units(p->c, r->job.n_repeat);
    mu_bar_update(&r->bar, r->done, r->total);
}

static enum mu_status on_done(const struct mu_bench_result *result, int i, void *ctx, struct mu_err *err)
{
    (void)err;
    on_result(result, i, ctx);
    return MU_OK;
}

/* Who is where, and the threads of a rank: as many as pay on the machine that has most to share its cores among. */
static enum mu_status threads_settle(struct run *r, struct mu_err *err)
{
    const struct mu_bench_sweep_options *o = r->sweep->opt;
    int least = 0;
    r->n_machine = mu_bench_hosts(o->hosts ? o->hosts : "here", r->plan->n_rank, r->machine);
    for (int i = 0; i < r->n_machine; i++) {
        struct mu_plan here = ranks_on(r, i);
        int n = o->n_thread ? o->n_thread : mu_default_threads(&here.split);
        if (n > MU_BENCH_MAX_THREADS / here.n_rank)
            return mu_fail(err, MU_EINVAL, "%d threads on each of %d ranks are more than %d", n, here.n_rank,
                           MU_BENCH_MAX_THREADS);
        if (!least || n < least) least = n;
    }
    r->job.n_thread = least;
    return MU_OK;
}

static enum mu_status job_begin(struct run *r, int i_split, const char *path, struct mu_err *err)
{
    const struct mu_bench_sweep_options *o = r->sweep->opt;
    const struct mu_split *split = &r->sweep->split[i_split];
    struct mu_bench_job *job = &r->job;
    memset(job, 0, sizeof *job);
    enum mu_status st = mu_plan_build(r->sweep->model, split, r->plan, err);
    if (!st) st = threads_settle(r, err);
    if (st) return st;
    r->sweep->n_thread[i_split] = job->n_thread;
    job->n_repeat = o->n_repeat;
    mu_split_format(split, job->split, sizeof job->split);
    if (snprintf(job->path, sizeof job->path, "%s", path) >= (int)sizeof job->path)
        return mu_fail(err, MU_ELIMIT, "the model's path is longer than %zu bytes", sizeof job->path - 1);
    job->gpus = r->sweep->node.gpus;
    for (int i = 0; i < r->sweep->node.gpus.n; i++) {
        const struct mu_gpu *g = &r->sweep->node.gpus.gpu[i];
        job->gpu[i] = (struct mu_bench_limits){g->read_gbps, g->int8_gops, g->f32_gops, g->bf16_gops, g->up_gbps};
    }
    snprintf(job->quantize, sizeof job->quantize, "%s", o->quantize ? o->quantize : "");
    return MU_OK;
}

static enum mu_status split_prepare(struct run *r, int i_split, const char *path, struct mu_err *err)
{
    struct mu_topo *topo = mu_calloc(1, sizeof *topo);
    struct mu_bench_point *point = r->sweep->point + i_split * r->sweep->n_case;
    /* So many streams that all experts are touched: a step reads some of them, but never knows which, and caches hold of what it
     * reads as little as of them all. */
    const struct mu_bench_case all = {MU_BENCH_DECODE, 1, 1 << 20, 0};
    struct mu_bench_work step;
    enum mu_status st = topo ? mu_topo_read(topo, err) : mu_fail(err, MU_ENOMEM, "no memory for the topology");
    if (!st) st = job_begin(r, i_split, path, err);
    if (!st) {
        uint64_t free_bytes =
            topo->mem_available_bytes - topo->mem_available_bytes / 16; /* some is for everybody else */
        mu_bench_work(r->sweep->model, r->plan, &all, 1, r->sweep->opt->kv, &step);
        r->job.probe_bytes = (uint64_t)step.weight_bytes;
        if (r->job.probe_bytes > PROBE_MAX_BYTES) r->job.probe_bytes = PROBE_MAX_BYTES;
        if (r->job.probe_bytes > free_bytes / 8) r->job.probe_bytes = free_bytes / 8;
        r->node = r->sweep->node;
        r->node.memory_bytes = topo->mem_available_bytes - r->job.probe_bytes;
        for (int i = 0; i < r->sweep->n_case; i++) point_check(r, &point[i]);
        job_fill(r, point);
    }
    mu_free(topo);
    return st;
}

static enum mu_status split_run(struct run *r, int i_split, struct mu_err *err)
{
    int n_rank = r->sweep->split[i_split].n_rank;
    if (!r->job.n_case) return MU_OK;
    if (n_rank > 1 && !r->sweep->opt->local)
        return mu_bench_mpi(&r->job, n_rank, r->sweep->opt->hosts, on_result, r, err);
    return mu_bench_local(&r->job, on_done, r, err);
}

/* ---- all of it ---- */

static void warn_noise(struct mu_bench_sweep *s)
{
    const struct mu_bench_point *worst = NULL;
    int n = 0;
    for (int i = 0; i < s->n_point; i++) {
        const struct mu_bench_point *p = &s->point[i];
        if (p->state != MU_BENCH_DONE || mu_bench_noise(&p->r.s) <= MU_BENCH_MOST_NOISE) continue;
        n++;
        if (!worst || mu_bench_noise(&p->r.s) > mu_bench_noise(&worst->r.s)) worst = p;
    }
    if (!worst) return;
    char name[64];
    mu_bench_case_name(worst->c, name, sizeof name);
    mu_bench_warn(
        &s->warnings,
        "noisy: repeats of %d case%s lie more than %.0f%% apart (%s: %.0f%%); the medians may be off by as much", n,
        n == 1 ? "" : "s", 100 * MU_BENCH_MOST_NOISE, name, 100 * mu_bench_noise(&worst->r.s));
}

static enum mu_status nothing_ran(const struct mu_bench_sweep *s, struct mu_err *err)
{
    char name[64];
    if (s->interrupted) return mu_fail(err, MU_ECANCELLED, "interrupted before the first case was done");
    mu_bench_case_name(s->point[0].c, name, sizeof name);
    return mu_fail(err, MU_ELIMIT, "%s %s", name, s->point[0].why);
}

/* MU_OK after Ctrl-C too. On an error there may be cases that are done: *n_done_out of them. */
static enum mu_status splits_run(struct mu_bench_sweep *s, const char *path, int *n_done_out, struct mu_err *err)
{
    struct run r = {.sweep = s, .bar = {.label = "measuring"}};
    enum mu_status st = MU_OK;
    int done = 0;
    r.plan = mu_calloc(1, sizeof *r.plan);
    if (!r.plan) return mu_fail(err, MU_ENOMEM, "no memory for a plan");
    for (int i = 0; i < s->n_point; i++) r.total += case_units(s->point[i].c, s->opt->n_repeat);
    for (int i = 0; i < s->n_split && !st; i++)
        st = job_begin(&r, i, path, err); /* what is wrong with a later one is said before the first is measured */
    for (int i = 0; i < s->n_split && !st; i++) {
        st = split_prepare(&r, i, path, err);
        if (!st) st = split_run(&r, i, err);
    }
    mu_bar_update(&r.bar, r.total, r.total);
    s->interrupted = st != MU_OK;
    if (st == MU_ECANCELLED) st = MU_OK;
    for (int i = 0; i < s->n_point; i++) done += s->point[i].state == MU_BENCH_DONE;
    if (!st && !done) st = nothing_ran(s, err);
    *n_done_out = done;
    mu_free(r.plan);
    return st;
}

/* ---- where ---- */

static int least_of(const struct mu_bench_list *l)
{
    int least = l->n ? l->at[0] : 0;
    for (int i = 1; i < l->n; i++)
        if (l->at[i] < least) least = l->at[i];
    return least;
}

/* A split that is not named: GPUs as the planner has them for the smallest case, else a rank with all threads on each NUMA node. What
 * larger cases do not fit is refused case by case. */
static enum mu_status auto_split(struct mu_bench_sweep *s, struct mu_err *err)
{
    const struct mu_bench_sweep_options *o = s->opt;
    int decode = o->n_decode ? least_of(&o->context) + o->n_decode : least_of(&o->prompt), n_ctx = decode;
    if (o->prompt.n && least_of(&o->prompt) < n_ctx) n_ctx = least_of(&o->prompt);
    struct mu_serving v = {.n_ctx = n_ctx, .n_slot = 1, .kv = o->kv};
    s->n_split = 1;
    v.n_page = mu_fit_pages_of(n_ctx);
    enum mu_status st = mu_plan_where(s->model, NULL, &s->node, "auto", o->device, &v, &s->split[0], s->why, err);
    return st == MU_ENOMEM && o->device != MU_DEVICE_GPU ? mu_split_parse("1", &s->split[0], err) : st;
}

/* The splits, and the GPUs that they might be on. */
static enum mu_status splits_settle(struct mu_bench_sweep *s, struct mu_err *err)
{
    const struct mu_bench_sweep_options *o = s->opt;
    char text[MU_SPLIT_TEXT];
    bool has_gpu = o->n_split == 0 && o->device != MU_DEVICE_CPU;
    for (int i = 0; i < o->n_split; i++) has_gpu = has_gpu || mu_split_has_gpu(&o->split[i]);
    enum mu_status st = mu_cli_node(has_gpu ? MU_LOOK_MEASURE : MU_LOOK_NOT, &s->node, NULL, err);
    s->looked = has_gpu;
    if (st == MU_OK && o->n_split == 0) return auto_split(s, err);
    for (int i = 0; i < o->n_split && st == MU_OK; i++) {
        mu_split_format(&o->split[i], text, sizeof text);
        st = mu_plan_where(s->model, NULL, &s->node, text, o->device, NULL, &s->split[i], s->why, err);
    }
    s->n_split = o->n_split;
    return st;
}

enum mu_status mu_bench_sweep(const struct mu_bench_sweep_options *opt, struct mu_err *err)
{
    enum mu_status st, told;
    int n_done = 0;
    struct mu_bench_watch *watch = NULL;
    struct mu_opened o = {0};
    struct mu_bench_sweep *s = mu_calloc(1, sizeof *s);
    if (!s) return mu_fail(err, MU_ENOMEM, "no memory for a benchmark");
    s->opt = opt;
    MU_TRY(st, mu_kernels_init(NULL, err), done);
    MU_TRY(st, mu_cli_open(opt->model, false, &o, err), done);
    MU_TRY(st, mu_model_quantize(o.model, opt->quantize, err), done);
    s->model = o.model;
    MU_TRY(st, splits_settle(s, err), done);
    MU_TRY(st, cases_make(s, err), done);
    mu_signals_catch_ends();
    MU_TRY(st, mu_bench_watch_begin(&watch, err), done);
    st = splits_run(s, o.found->path, &n_done, err);
    mu_bench_watch_end(watch, &s->machine);
    if (!n_done) goto done;
    mu_bench_machine_warn(&s->machine, true, &s->warnings);
    warn_noise(s);
    told = mu_bench_sweep_report(s, st ? NULL : err);
    if (!st) st = told;
done:
    mu_free(s->point);
    mu_free(s);
    mu_cli_close(&o);
    return st;
}
