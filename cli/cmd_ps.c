/* muster ps: what a server is doing. */
#include <stdio.h>

#include "base/clock.h"
#include "cli/cli.h"
#include "coordinator/epoch.h"
#include "coordinator/gpus.h"
#include "muster/v1/muster.pb-c.h"
#include "transport/rpc.h"

struct ps_args {
    const char *server;
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct ps_args *a = state->input;
    switch (key) {
    case 's': a->server = arg; return 0;
    case ARGP_KEY_ARG: argp_error(state, "unexpected argument '%s'", arg); return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

enum { N_COL = 10, MAX_ROWS = MU_MAX_RANKS + 1 };

/* On machines with several NUMA nodes. */
static void print_seat(const Muster__V1__Rank *r)
{
    if (r->_numa_share_case != MUSTER__V1__RANK___NUMA_SHARE_NUMA_SHARE) return;
    printf("  rank %u: NUMA node %u, CPUs %s, %.0f%% of its memory there\n", r->rank, r->numa, r->cpus,
           100 * r->numa_share);
}

static void print_gang(const Muster__V1__Gang *g)
{
    char epoch[MU_EPOCH_TEXT];
    printf("gang   epoch %s, %s, split %s, %llu steps, %u relaunches, mpirun %d\n", mu_epoch_format(g->epoch, epoch),
           g->state, g->split, (unsigned long long)g->steps, g->relaunches, g->mpirun_pid);
    if (g->drafted)
        printf("       %llu tokens guessed, %llu of them right; by the draft model %llu and %llu\n",
               (unsigned long long)g->drafted, (unsigned long long)g->drafts_taken,
               (unsigned long long)g->model_drafted, (unsigned long long)g->model_drafts_taken);
    if (g->last_failure && *g->last_failure) printf("       last failure: %s\n", g->last_failure);
    if (!g->n_rank) return;
    static char text[MAX_ROWS][N_COL][32];
    static const char *cells[MAX_ROWS * N_COL] = {"rank",   "stage", "on",  "pid",     "threads",
                                                  "layers", "heads", "ffn", "weights", "kv"};
    int n = 1;
    for (size_t i = 0; i < g->n_rank && n < MAX_ROWS; i++, n++) {
        const Muster__V1__Rank *r = g->rank[i];
        char(*t)[32] = text[n];
        snprintf(t[0], 32, "%u%s", r->rank, r->leader ? "*" : "");
        snprintf(t[1], 32, "%u", r->stage);
        snprintf(t[2], 32, r->_gpu_case == MUSTER__V1__RANK___GPU_GPU ? "gpu%u" : "cpu", r->gpu);
        snprintf(t[3], 32, "%d", r->pid);
        snprintf(t[4], 32, "%u", r->threads);
        snprintf(t[5], 32, "%u-%u", r->layer_begin, r->layer_end ? r->layer_end - 1 : 0);
        snprintf(t[6], 32, "%u", r->heads);
        snprintf(t[7], 32, "%u", r->ffn_rows);
        mu_human_bytes(r->weight_bytes, t[8], 32);
        mu_human_bytes(r->kv_bytes, t[9], 32);
        for (int c = 0; c < N_COL; c++) cells[n * N_COL + c] = t[c];
    }
    static const bool right[N_COL] = {false, true, false, true, true, true, true, true, true, true};
    mu_table_print(cells, n, N_COL, right);
    puts("* leader: schedules and samples");
    for (size_t i = 0; i < g->n_rank; i++) print_seat(g->rank[i]);
}

static void print_numa(const Muster__V1__Numa *numa)
{
    char memory[32];
    mu_human_bytes(numa->memory_bytes, memory, sizeof memory);
    printf("       NUMA node %u: CPUs %s, %s memory", numa->node, numa->cpus, memory);
    if (numa->read_gbps > 0) printf(", reads %.1f GB/s by itself", numa->read_gbps);
    putchar('\n');
}

static void print_gpus(const Muster__V1__Node *n)
{
    struct mu_gpus gpus;
    mu_gpus_of_node(n, &gpus);
    for (int i = 0; i < gpus.n; i++) mu_gpu_print(&gpus.gpu[i], i, "       ");
    if (gpus.broken) printf("       no GPU: %s\n", gpus.why);
}

int mu_cmd_ps(int argc, char **argv)
{
    static const struct argp_option options[] = {{"server", 's', "HOST:PORT", 0, "which server (127.0.0.1:7400)", 0},
                                                 {0}};
    static const struct argp argp = {options,
                                     parse,
                                     "",
                                     "Shows a server's nodes, their GPUs, the gang, its ranks and the load."
                                     "\vExamples:\n  muster ps\n  muster ps --server 127.0.0.1:7400\n",
                                     0,
                                     0,
                                     0};
    struct ps_args a = {.server = "127.0.0.1:7400"};
    argp_parse(&argp, argc, argv, 0, 0, &a);

    struct mu_err err = MU_ERR_INIT;
    enum mu_status st;
    struct mu_rpc_channel *c = NULL;
    ProtobufCMessage *msg = NULL;
    Muster__V1__ClusterStatusRequest req = MUSTER__V1__CLUSTER_STATUS_REQUEST__INIT;
    mu_rpc_init();
    MU_TRY(st, mu_rpc_channel_open(a.server, &c, &err), done);
    MU_TRY(st,
           mu_rpc_unary(c, "/muster.v1.Muster/ClusterStatus", &req.base, &muster__v1__cluster_status_reply__descriptor,
                        mu_now_ns() + 5 * MU_SEC, &msg, &err),
           done);
    const Muster__V1__ClusterStatusReply *r = (const Muster__V1__ClusterStatusReply *)msg;
    printf("server %s, muster %s, up %.0f s: %u running, %u waiting, %llu tokens generated\n", a.server, r->version,
           r->uptime_s, r->running, r->waiting, (unsigned long long)r->tokens_generated);
    for (size_t i = 0; i < r->n_node; i++) {
        const Muster__V1__Node *n = r->node[i];
        char total[32], avail[32];
        mu_human_bytes(n->memory_bytes, total, sizeof total);
        mu_human_bytes(n->memory_available_bytes, avail, sizeof avail);
        printf("node   %s: %u cores, %s memory (%s free)", n->name, n->cores, total, avail);
        if (n->read_gbps > 0) printf(", reads %.1f GB/s, int8 %.0f GOP/s", n->read_gbps, n->int8_gops);
        printf(", worker %d\n", n->worker_pid);
        for (size_t k = 0; k < n->n_numa; k++) print_numa(n->numa[k]);
        print_gpus(n);
    }
    for (size_t i = 0; i < r->n_gang; i++) print_gang(r->gang[i]);
done:
    if (st == MU_EPEER || st == MU_ETIMEOUT) mu_no_server(a.server, &err);
    mu_rpc_message_free(msg);
    mu_rpc_channel_close(c);
    mu_rpc_shutdown();
    return st ? mu_cli_fail("ps", &err) : MU_EXIT_OK;
}
