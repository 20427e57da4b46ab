/* muster plan: who would hold and compute what, and how fast that should be, before anything is loaded. */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/topo.h"
#include "cli/cli.h"
#include "kernels/kernels.h"
#include "shard/plan_predict.h"
#include "shard/plan_where.h"
#include "worker/measure.h"

struct plan_args {
    const char *model, *split, *quantize;
    enum mu_device_wish device;
    enum mu_kv_type kv;
    int ctx, parallel;
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct plan_args *a = state->input;
    switch (key) {
    case 's': a->split = arg; return 0;
    case 'c': a->ctx = (int)mu_arg_long(arg, 2, 1 << 24, "--ctx", state); return 0;
    case 'n': a->parallel = (int)mu_arg_long(arg, 1, 1024, "--parallel", state); return 0;
    case MU_OPT_DEVICE: a->device = mu_arg_device(arg, state); return 0;
    case MU_OPT_KV: a->kv = mu_arg_kv(arg, state); return 0;
    case MU_OPT_QUANTIZE: a->quantize = mu_arg_quantize(arg, state); return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num) argp_error(state, "one MODEL only");
        a->model = arg;
        return 0;
    case ARGP_KEY_END:
        if (!a->model) argp_error(state, "MODEL is missing");
        return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

/* "gpu0", "gpu0 (12 streamed)" */
static void on_text(const struct mu_split *split, int rank, char text[32])
{
    if (split->device[rank] == MU_ON_CPU)
        snprintf(text, 32, "cpu");
    else
        snprintf(text, 32, split->streamed[rank] ? "gpu%d (%d streamed)" : "gpu%d", split->device[rank],
                 split->streamed[rank]);
}

enum { N_COL = 10, MAX_ROWS = MU_MAX_RANKS + 1 };

static void print_ranks(const struct mu_model *m, const struct mu_plan *plan, const struct mu_serving *serving)
{
    static char text[MAX_ROWS][N_COL][32];
    static const char *cells[MAX_ROWS * N_COL] = {"rank", "stage",    "on",    "layers",  "heads",
                                                  "kv",   "ffn rows", "vocab", "weights", "cache"};
    for (int i = 0; i < plan->n_rank; i++) {
        const struct mu_plan_rank *r = &plan->rank[i];
        struct mu_range layers = plan->stage[r->stage].layers;
        struct mu_rank_memory mem;
        mu_plan_memory(m, plan, i, serving, &mem);
        char(*t)[32] = text[i + 1];
        snprintf(t[0], 32, "%d%s", i, i == plan->leader ? "*" : "");
        snprintf(t[1], 32, "%d", r->stage);
        on_text(&plan->split, i, t[2]);
        snprintf(t[3], 32, "%d-%d", layers.begin, layers.end - 1);
        snprintf(t[4], 32, "%d", mu_range_len(r->heads));
        snprintf(t[5], 32, "%d", mu_range_len(r->kv_heads));
        snprintf(t[6], 32, "%d", mu_range_len(r->ff));
        snprintf(t[7], 32, "%d", mu_range_len(r->vocab));
        mu_human_bytes(mem.weights, t[8], 32);
        mu_human_bytes(mem.kv, t[9], 32);
        for (int c = 0; c < N_COL; c++) cells[(i + 1) * N_COL + c] = t[c];
    }
    static const bool right[N_COL] = {false, true, false, true, true, true, true, true, true, true};
    mu_table_print(cells, plan->n_rank + 1, N_COL, right);
}

/* One bar a rank, as long as its share of the model. */
static void print_picture(const struct mu_plan *plan)
{
    uint64_t most = 1;
    for (int i = 0; i < plan->n_rank; i++)
        if (plan->rank[i].weight_bytes > most) most = plan->rank[i].weight_bytes;
    puts("\ntokens");
    for (int s = 0; s < plan->n_stage; s++) {
        const struct mu_plan_stage *st = &plan->stage[s];
        printf("  |  stage %d, layers %d-%d\n", s, st->layers.begin, st->layers.end - 1);
        for (int i = 0; i < st->n_rank; i++) {
            int rank = st->first_rank + i, len = (int)(plan->rank[rank].weight_bytes * 40 / most);
            printf("  |    rank %-2d ", rank);
            for (int k = 0; k < len; k++) putchar('#');
            putchar('\n');
        }
    }
    puts("  v\nlogits, sampled by the leader\n");
}

/* Of machines with several NUMA nodes: what each has, and which ranks it gets. */
static void print_numa(const struct mu_topo *topo, const double node_gbps[MU_TOPO_MAX_NUMA],
                       const struct mu_plan_node *node, const struct mu_split *split)
{
    char text[80], memory[32];
    for (int k = 0; k < topo->n_numa && topo->n_numa > 1; k++) {
        mu_human_bytes(topo->numa[k].memory_bytes, memory, sizeof memory);
        printf("NUMA node %d: %d core%s, %s memory", topo->numa[k].node, topo->numa[k].n_core,
               topo->numa[k].n_core == 1 ? "" : "s", memory);
        if (node_gbps[k] > 0) printf(", reads %.1f GB/s by itself", node_gbps[k]);
        putchar('\n');
    }
    for (int i = 0; i < split->n_rank && topo->n_numa > 1; i++) {
        struct mu_place place;
        int device = split->device[i];
        bool known = device >= 0 && device < node->gpus.n;
        mu_plan_place(topo, split, known ? node->gpus.gpu[device].numa : -1, mu_plan_threads(topo, split), i, &place);
        mu_place_cpus_text(place.cpu, place.n_cpu, text, sizeof text);
        if (place.numa >= 0)
            printf("rank %d: NUMA node %d, CPUs %s\n", i, place.numa, place.n_cpu ? text : "any");
        else
            printf("rank %d: CPUs %s, on no single NUMA node\n", i, place.n_cpu ? text : "any");
    }
}

static void print_speed(const struct mu_model *m, const struct mu_plan *plan, const struct mu_plan_node *node)
{
    int node_of[MU_MAX_RANKS] = {0};
    struct mu_prediction p;
    mu_plan_predict(m, plan, node, node_of, NULL, &p);
    printf("on %s (%d cores, reads %.1f GB/s, int8 %.0f GOP/s) ", node->name, node->n_core, node->read_gbps,
           node->int8_gops);
    if (p.decode_ms > 0)
        printf("all ranks together should decode a token in %.2f ms and take %.3f ms a prompt token\n", p.decode_ms,
               p.prefill_ms_per_token);
    else
        puts("nothing is predicted: a GPU of this split could not be measured");
    for (int i = 0; i < node->gpus.n; i++) mu_gpu_print(&node->gpus.gpu[i], i, "");
    if (node->gpus.n == 0) printf("no GPU: %s\n", node->gpus.why);
}

static enum mu_status plan_verb(const struct plan_args *a, struct mu_err *err)
{
    enum mu_status st;
    struct mu_opened o = {0};
    struct mu_split split;
    struct mu_plan_node node = {0};
    struct mu_plan *plan = mu_calloc(1, sizeof *plan);
    struct mu_topo *topo = mu_calloc(1, sizeof *topo);
    double node_gbps[MU_TOPO_MAX_NUMA] = {0};
    if (!plan || !topo) {
        st = mu_fail(err, MU_ENOMEM, "no memory for a plan");
        goto done;
    }
    MU_TRY(st, mu_kernels_init(NULL, err), done);
    MU_TRY(st, mu_cli_open(a->model, false, &o, err), done);
    MU_TRY(st, mu_model_quantize(o.model, a->quantize, err), done);
    if (a->ctx > o.model->cfg.n_ctx_train) {
        st = mu_fail(err, MU_EINVAL, "--ctx %d is more than the %d tokens that '%s' was made for", a->ctx,
                     o.model->cfg.n_ctx_train, a->model);
        goto done;
    }
    int usual = o.model->cfg.n_ctx_train < 8192 ? o.model->cfg.n_ctx_train : 8192;
    struct mu_serving serving = {.n_ctx = a->ctx ? a->ctx : usual,
                                 .n_slot = a->parallel ? a->parallel : 32,
                                 .window = mu_plan_window(o.model),
                                 .kv = a->kv};
    MU_TRY(st, mu_topo_read(topo, err), done);
    MU_TRY(st, mu_cli_node(MU_LOOK_MEASURE, &node, node_gbps, err),
           done); /* whatever the split: what could be planned */
    char reason[MU_PLAN_WHY];
    MU_TRY(st, mu_plan_where(o.model, NULL, &node, a->split, a->device, &serving, &split, reason, err), done);
    MU_TRY(st, mu_plan_build(o.model, &split, plan, err), done);
    serving.step_tokens = mu_plan_step_tokens(&split);
    /* Whether serve would run it here, with how many KV pages. */
    char what[256], text[MU_SPLIT_TEXT], memory[MU_FIT_TEXT];
    struct mu_fit fit;
    struct mu_err why = MU_ERR_INIT;
    unsigned asked = (a->ctx ? MU_FIT_CTX : 0u) | (a->parallel ? MU_FIT_SLOTS : 0u);
    mu_fit_measure(o.model, plan, NULL, &serving, &node, &fit);
    if (mu_fit_settle(&fit, o.model, plan, asked, &serving, &why))
        serving.n_page = mu_fit_pages_of(serving.n_ctx) * (uint32_t)serving.n_slot;
    mu_fit_describe(&fit, &serving, memory);
    mu_model_describe(o.model, what, sizeof what);
    mu_split_format(&split, text, sizeof text);
    printf("%s\nsplit %s, %d tokens of context × %d sequences\n", what, text, serving.n_ctx, serving.n_slot);
    if (reason[0]) printf("%s\n", reason);
    putchar('\n');
    print_ranks(o.model, plan, &serving);
    print_picture(plan);
    printf("memory: %s\n", why.code ? why.text : memory);
    print_speed(o.model, plan, &node);
    print_numa(topo, node_gbps, &node, &split);
done:
    mu_cli_close(&o);
    mu_free(plan);
    mu_free(topo);
    return st;
}

int mu_cmd_plan(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"split", 's', "S", 0, "the split to show; '1@gpu0/1' has its first stage on GPU 0 (auto)", 0},
        MU_DEVICE_OPTION(0),
        {"ctx", 'c', "N", 0, "tokens one request may hold (the model's, at most 8192 and what fits in memory)", 0},
        {"parallel", 'n', "N", 0, "sequences at once (32)", 0},
        MU_QUANTIZE_OPTION(0),
        MU_KV_OPTION(0),
        {0},
    };
    static const struct argp argp = {
        options,
        parse,
        "MODEL",
        "Shows which rank would hold and compute what, the memory it takes, and the speed to expect of this machine."
        "\vExamples:\n  muster plan model.gguf --split 3:1/1\n  muster plan model.gguf --ctx 4096 --parallel "
        "8\n" MU_SPLIT_HELP,
        0,
        0,
        0};
    struct plan_args a = {.split = "auto"};
    argp_parse(&argp, argc, argv, 0, 0, &a);
    struct mu_err err = MU_ERR_INIT;
    return plan_verb(&a, &err) ? mu_cli_fail("plan", &err) : MU_EXIT_OK;
}
