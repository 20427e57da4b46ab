/* What the planner's model (shard/plan_predict.h) expects of each case of an MPI job, with the rates that the job itself
 * measures and the links between its ranks: how far measured times are from it says how far a plan can be trusted.
 *
 * Each rank counts as a node of its own with its part of the processors' rates, since all ranks were measured side by
 * side; links are those between ranks, and those of one host have one machine's network card. */
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "cli/bench.h"
#include "transport/comm.h"

enum { HOST_NAME = 64 };

struct mu_bench_links {
    int n;
    char host[MU_MAX_RANKS][HOST_NAME];
    int machine[MU_MAX_RANKS];                           /* the first rank that has its name */
    struct mu_plan_link at[MU_MAX_RANKS * MU_MAX_RANKS]; /* [n][n] */
    struct mu_plan_node node[MU_MAX_RANKS];
};

/* Ranks that exchange, or send one another the residual or the ids. */
static bool talk(const struct mu_plan *plan, int a, int b)
{
    int apart = plan->rank[b].stage - plan->rank[a].stage;
    return (apart >= -1 && apart <= 1) || (plan->leader == a && !plan->rank[b].stage) ||
           (plan->leader == b && !plan->rank[a].stage);
}

enum mu_status mu_bench_all_gather(struct mu_comm *comm, void *buf, size_t each, struct mu_err *err)
{
    size_t off[MU_MAX_RANKS], len[MU_MAX_RANKS];
    for (int i = 0; i < comm->n_rank; i++) {
        off[i] = (size_t)i * each;
        len[i] = each;
    }
    return mu_comm_gather(comm, 0, comm->n_rank, buf, off, len, err);
}

enum mu_status mu_bench_links_measure(struct mu_comm *comm, const struct mu_plan *plan,
                                      struct mu_bench_links **links_out, struct mu_err *err)
{
    enum mu_status st;
    int n = comm->n_rank;
    struct mu_bench_links *l = mu_calloc(1, sizeof *l);
    if (!l) return mu_fail(err, MU_ENOMEM, "no memory for the links between ranks");
    l->n = n;
    gethostname(l->host[comm->rank], HOST_NAME - 1);
    MU_TRY(st, mu_bench_all_gather(comm, l->host, HOST_NAME, err), fail);
    for (int i = 0; i < n; i++)
        while (strcmp(l->host[i], l->host[l->machine[i]]) != 0) l->machine[i]++;
    for (int a = 0; a < n; a++)
        for (int b = a + 1; b < n; b++) { /* everybody in this order, so that each pair meets */
            int other = comm->rank == a ? b : a;
            struct mu_plan_link *own = &l->at[comm->rank * n + other];
            if (!talk(plan, a, b)) continue;
            if (comm->rank == a || comm->rank == b)
                MU_TRY(st, mu_comm_measure(comm, other, &own->us, &own->gbps, err), fail);
            MU_TRY(st, mu_comm_barrier(comm, err), fail); /* the others are quiet meanwhile */
        }
    MU_TRY(st, mu_bench_all_gather(comm, l->at, (size_t)n * sizeof *l->at, err), fail);
    *links_out = l;
    return MU_OK;
fail:
    mu_free(l);
    return st;
}

/* The slowest of each kind, for people. */
static void links_tell(const struct mu_bench_links *l, struct mu_bench_result *r)
{
    r->inside = r->between = (struct mu_plan_link){0};
    for (int i = 0; i < l->n * l->n; i++) {
        const struct mu_plan_link *from = &l->at[i];
        struct mu_plan_link *to = l->machine[i / l->n] != l->machine[i % l->n] ? &r->between : &r->inside;
        if (!(from->gbps > 0)) continue;
        if (from->us > to->us) to->us = from->us;
        if (!(to->gbps > 0) || from->gbps < to->gbps) to->gbps = from->gbps;
    }
}

bool mu_bench_links_slow(const struct mu_bench_links *l, const struct mu_plan *plan, int rank)
{
    const struct mu_plan_stage *st = &plan->stage[plan->rank[rank].stage];
    for (int i = st->first_rank; i < st->first_rank + st->n_rank; i++)
        for (int j = st->first_rank; j < i; j++)
            if (mu_plan_link_slow(l->at[i * l->n + j])) return true;
    return false;
}

static struct mu_plan_node node_of_rank(const struct mu_bench_job *job, const struct mu_bench_limits *host, int n_cpu)
{
    struct mu_plan_node n = {.n_core = job->n_thread, .gpus = job->gpus};
    if (n_cpu > 0) {
        n.read_gbps = host->read_gbps / n_cpu;
        n.int8_gops = host->int8_gops / n_cpu;
        n.f32_gflops = host->f32_gflops / n_cpu;
    }
    return n;
}

void mu_bench_predict(const struct mu_model *model, const struct mu_plan *plan, const struct mu_bench_job *job,
                      const struct mu_bench_case *c, struct mu_bench_links *l, struct mu_bench_result *r)
{
    bool prompt = c->phase == MU_BENCH_PROMPT;
    int group = mu_bench_groups(plan, c, true), node_of[MU_MAX_RANKS];
    int n_step = prompt ? group : c->n_tok * group;
    struct mu_plan_step step = {.n_seen = c->n_context + c->n_tok / 2.0, .is_chunk = prompt};
    struct mu_step_times t;
    step.n_tok = prompt ? c->n_tok / n_step : (c->n_stream + group - 1) / group;
    step.n_row = prompt ? 1 : step.n_tok;
    for (int i = 0; i < l->n; i++) {
        node_of[i] = i;
        l->node[i] = node_of_rank(job, &r->host, mu_split_cpu_ranks(&plan->split));
    }
    const struct mu_plan_links links = {l->n, l->at, l->machine};
    mu_plan_predict_step(model, plan, l->node, node_of, &links, &step, &t);
    r->predicted_s = t.known ? mu_plan_predict_run(plan, &t, n_step, prompt ? 0 : group) / 1e3 : 0;
    links_tell(l, r);
}
