/* muster bench: the command line. Steps of a model, beside what this machine's memory and arithmetic do in the same
 * minutes (bench_sweep.c); what a draft model gives (bench_draft.c); or requests to a server (bench_serve.c). bench.h has
 * the map. */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "cli/bench.h"
#include "cli/bench_draft.h"
#include "cli/bench_serve.h"
#include "kernels/kernels.h"

enum { MAX_TOKENS = 1 << 24, MAX_STREAMS = 1024, MAX_REQUESTS = 1000000 };

struct bench_args {
    struct mu_bench_sweep_options steps;
    struct mu_bench_serve_options serve;
    bool is_serve;
    const char *draft;
    /* An option that is for one of the two only, or for steps without a draft; NULL: none was given. */
    const char *of_steps, *of_serve, *of_sweep;
    const char *of_texts; /* one that serving and a draft model have, and steps have not */
};

enum {
    OPT_TRANSPORT = 256,
    OPT_CONTEXT,
    OPT_SPLITS,
    OPT_BREAKDOWN,
    OPT_OUT,
    OPT_SVG,
    OPT_SERVE,
    OPT_SERVER,
    OPT_RATE,
    OPT_CONCURRENCY,
    OPT_REQUESTS,
    OPT_SECONDS,
    OPT_INPUT,
    OPT_OUTPUT,
    OPT_PROMPTS,
    OPT_PREFIX,
    OPT_SEED,
    OPT_SLO,
    OPT_CTX,
    OPT_PARALLEL,
    OPT_HOSTS,
    OPT_DRAFT
};

static void list_set(const char *arg, int min, int max, const char *what, struct mu_bench_list *to,
                     struct argp_state *state)
{
    struct mu_err err = MU_ERR_INIT;
    if (mu_bench_list(arg, min, max, what, to, &err)) argp_error(state, "%s", err.text);
}

static void range_set(const char *arg, const char *what, struct mu_bench_range *to, struct argp_state *state)
{
    struct mu_err err = MU_ERR_INIT;
    if (mu_bench_range(arg, 1, MAX_TOKENS, what, to, &err)) argp_error(state, "%s", err.text);
}

static void split_set(const char *text, struct mu_bench_sweep_options *o, struct argp_state *state)
{
    struct mu_err err = MU_ERR_INIT;
    if (o->n_split == MU_BENCH_MAX_SPLITS) argp_error(state, "more than %d splits", MU_BENCH_MAX_SPLITS);
    if (o->n_split < MU_BENCH_MAX_SPLITS && mu_split_parse(text, &o->split[o->n_split++], &err))
        argp_error(state, "%s", err.text);
}

static void splits_set(const char *arg, struct mu_bench_sweep_options *o, struct argp_state *state)
{
    char text[MU_SPLIT_TEXT];
    o->n_split = 0;
    for (const char *p = arg;; p++) {
        size_t len = strcspn(p, ",");
        if (len >= sizeof text) argp_error(state, "--splits: a split is longer than %zu characters", sizeof text - 1);
        if (len >= sizeof text) return;
        memcpy(text, p, len);
        text[len] = 0;
        split_set(text, o, state);
        p += len;
        if (!*p) return;
    }
}

static error_t parse_serve(int key, char *arg, struct bench_args *a, struct argp_state *state)
{
    struct mu_bench_serve_options *o = &a->serve;
    struct mu_err err = MU_ERR_INIT;
    switch (key) {
    case OPT_RATE:
        if (mu_bench_rates(arg, "--rate", &o->rate, &err)) argp_error(state, "%s", err.text);
        a->of_serve = "--rate";
        return 0;
    case OPT_CONCURRENCY:
        list_set(arg, 1, 4096, "--concurrency", &o->concurrency, state);
        a->of_serve = "--concurrency";
        return 0;
    case OPT_REQUESTS:
        o->n_request = (int)mu_arg_long(arg, 1, MAX_REQUESTS, "--requests", state);
        a->of_serve = "--requests";
        return 0;
    case OPT_SECONDS:
        o->duration_ns = (int64_t)(mu_arg_double(arg, 0.01, 1e6, "--seconds", state) * 1e9);
        a->of_serve = "--seconds";
        return 0;
    case OPT_INPUT:
        range_set(arg, "--input", &o->input, state);
        a->of_serve = "--input";
        return 0;
    case OPT_OUTPUT:
        range_set(arg, "--output", &o->output, state);
        a->of_serve = "--output";
        return 0;
    case OPT_PROMPTS:
        o->prompts = arg;
        a->of_texts = "--prompts";
        return 0;
    case OPT_PREFIX:
        if (mu_bench_length(arg, 0, MAX_TOKENS, "--shared-prefix", &o->n_prefix, &err))
            argp_error(state, "%s", err.text);
        a->of_serve = "--shared-prefix";
        return 0;
    case OPT_SEED:
        o->seed = (uint64_t)mu_arg_long(arg, 0, INT64_MAX, "--seed", state);
        a->of_texts = "--seed";
        return 0;
    case OPT_SLO:
        if (mu_bench_slo(arg, &o->slo, &err)) argp_error(state, "%s", err.text);
        o->has_slo = true;
        a->of_serve = "--slo";
        return 0;
    case OPT_CTX:
        if (mu_bench_length(arg, 2, MAX_TOKENS, "--ctx", &o->n_ctx, &err)) argp_error(state, "%s", err.text);
        a->of_serve = "--ctx";
        return 0;
    case OPT_PARALLEL:
        o->n_parallel = (int)mu_arg_long(arg, 1, 1024, "--parallel", state);
        a->of_serve = "--parallel";
        return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

/* Of the splits that are named; 0: none is. */
static int most_ranks(const struct mu_bench_sweep_options *o)
{
    int most = 0;
    for (int i = 0; i < o->n_split; i++)
        if (o->split[i].n_rank > most) most = o->split[i].n_rank;
    return most;
}

static void check(struct bench_args *a, struct argp_state *state)
{
    struct mu_bench_serve_options *o = &a->serve;
    const struct mu_bench_output *out = &a->steps.output;
    if (!o->server && !a->steps.model) argp_error(state, "MODEL is missing");
    if (!a->is_serve && a->of_serve)
        argp_error(state, "%s is for serving: add --serve or --server HOST:PORT", a->of_serve);
    if (!a->is_serve && !a->draft && a->of_texts)
        argp_error(state, "%s is for serving and for --draft: steps without them take the same random ids always",
                   a->of_texts);
    if (a->draft && !a->is_serve && a->of_sweep)
        argp_error(state, "--draft continues prompts in one process, on processors: leave out %s, or add --serve",
                   a->of_sweep);
    if (a->draft && !a->is_serve && a->steps.n_decode < 2)
        argp_error(state, "--draft needs answers of two tokens or more: --decode 2");
    if (a->is_serve && a->of_steps) argp_error(state, "%s is for steps: leave out --serve", a->of_steps);
    if (o->rate.n && o->concurrency.n)
        argp_error(state, "--rate sends whatever the server does, --concurrency waits for it: one of the two");
    if (o->prompts && (o->input.max || o->n_prefix))
        argp_error(state, "--prompts brings its own lengths: leave out --input and --shared-prefix");
    if (o->server && (o->n_ctx || o->n_parallel || a->steps.n_thread || a->steps.quantize || a->steps.kv ||
                      a->steps.rough || a->serve.split || a->draft || a->steps.device != MU_DEVICE_AUTO))
        argp_error(state, "--server runs already: --ctx, --parallel, --threads, --split, --device, --gpu-prompts, "
                          "--draft, --quantize and --kv are for a server of our own (--serve)");
    if (a->is_serve && a->steps.n_split > 1) argp_error(state, "--serve takes one --split");
    if (a->steps.hosts && a->steps.local) argp_error(state, "--hosts is for --transport mpi");
    if (a->steps.hosts && most_ranks(&a->steps) < 2)
        argp_error(state, "--hosts is for splits of several ranks: add --split 1:1, or another");
    if (out->format == MU_BENCH_TABLE && out->out) argp_error(state, "--out FILE is for -o json and -o svg");
    if (!a->is_serve && !a->steps.prompt.n && !a->steps.n_decode)
        argp_error(state, "neither a prompt nor a decode is left to measure");
}

/* 0 means none of them. */
static void list_drop_0(struct mu_bench_list *l)
{
    if (l->n == 1 && l->at[0] == 0) l->n = 0;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct bench_args *a = state->input;
    struct mu_bench_sweep_options *o = &a->steps;
    switch (key) {
    case 'p':
        list_set(arg, 0, MAX_TOKENS, "--prompt", &o->prompt, state);
        list_drop_0(&o->prompt);
        for (int i = 0; i < o->prompt.n; i++)
            if (!o->prompt.at[i]) argp_error(state, "--prompt 0 stands alone: no prompts");
        a->of_steps = a->of_sweep = "--prompt";
        return 0;
    case 'n':
        o->n_decode = (int)mu_arg_long(arg, 0, 1 << 20, "--decode", state);
        a->of_steps = "--decode";
        return 0;
    case 't': o->n_thread = (int)mu_arg_long(arg, 1, MU_BENCH_MAX_THREADS, "--threads", state); return 0;
    case 'b':
        list_set(arg, 1, MAX_STREAMS, "--streams", &o->stream, state);
        a->of_steps = "--streams";
        return 0;
    case 'r':
        o->n_repeat = (int)mu_arg_long(arg, 1, MU_BENCH_MAX_REPEATS, "--repeat", state);
        a->of_steps = "--repeat";
        return 0;
    case OPT_CONTEXT:
        list_set(arg, 0, MAX_TOKENS, "--context", &o->context, state);
        a->of_steps = a->of_sweep = "--context";
        return 0;
    case 's':
        o->n_split = 0;
        if (strcmp(arg, "auto") != 0) split_set(arg, o, state);
        if (strcmp(arg, "auto") != 0 && strcmp(arg, "1") != 0) a->of_sweep = "--split";
        a->serve.split = arg;
        return 0;
    case OPT_SPLITS:
        splits_set(arg, o, state);
        a->of_steps = a->of_sweep = "--splits";
        return 0;
    case OPT_TRANSPORT:
        if (strcmp(arg, "mpi") && strcmp(arg, "local")) argp_error(state, "--transport is mpi or local, not '%s'", arg);
        o->local = !strcmp(arg, "local");
        a->of_steps = a->of_sweep = "--transport";
        return 0;
    case OPT_HOSTS:
        if (!arg[0] || arg[0] == '-') argp_error(state, "--hosts is a list of machines, not '%s'", arg);
        o->hosts = arg;
        a->of_steps = a->of_sweep = "--hosts";
        return 0;
    case OPT_BREAKDOWN:
        o->breakdown = true;
        a->of_steps = a->of_sweep = "--breakdown";
        return 0;
    case 'o':
        if (strcmp(arg, "json") && strcmp(arg, "table") && strcmp(arg, "svg"))
            argp_error(state, "-o is table, json or svg, not '%s'", arg);
        o->output.format = !strcmp(arg, "json") ? MU_BENCH_JSON : !strcmp(arg, "svg") ? MU_BENCH_SVG : MU_BENCH_TABLE;
        return 0;
    case OPT_OUT: o->output.out = arg; return 0;
    case OPT_SVG: o->output.svg = arg; return 0;
    case MU_OPT_QUANTIZE: o->quantize = mu_arg_quantize(arg, state); return 0;
    case MU_OPT_DEVICE:
        o->device = mu_arg_device(arg, state);
        if (o->device == MU_DEVICE_GPU) a->of_sweep = "--device gpu";
        return 0;
    case OPT_DRAFT: a->draft = arg; return 0;
    case MU_OPT_GPU_PROMPTS:
        o->rough = mu_arg_gpu_prompts(arg, state);
        if (o->rough) a->of_sweep = "--gpu-prompts rough";
        return 0;
    case MU_OPT_KV: o->kv = mu_arg_kv(arg, state); return 0;
    case OPT_SERVE: a->is_serve = true; return 0;
    case OPT_SERVER:
        a->is_serve = true;
        a->serve.server = arg;
        return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num) argp_error(state, "one MODEL only");
        o->model = arg;
        return 0;
    case ARGP_KEY_END: check(a, state); return 0;
    default: return parse_serve(key, arg, a, state);
    }
}

static const struct argp_option options[] = {
    {0, 0, 0, 0, "Steps; LIST is 1,2,4 or 1k,4k or 1,2,...,64:", 1},
    {"prompt", 'p', "LIST", 0, "tokens of a prompt (512; 0: no prompts)", 1},
    {"decode", 'n', "N", 0, "decode steps (128; 0: no decoding)", 1},
    {"streams", 'b', "LIST", 0, "sequences decoded at once (1)", 1},
    {"context", OPT_CONTEXT, "LIST", 0, "tokens that they have before, filled once (0)", 1},
    {"depth", OPT_CONTEXT, "LIST", OPTION_ALIAS, 0, 1},
    {"split", 's', "S", 0, "split over ranks; 1@gpu0: on GPU 0 (auto)", 1},
    MU_DEVICE_OPTION(1),
    MU_GPU_PROMPTS_OPTION(1),
    {"splits", OPT_SPLITS, "S,S", 0, "several splits, one after another", 1},
    {"transport", OPT_TRANSPORT, "T", 0, "mpi: a process a rank; local: threads (mpi)", 1},
    {"hosts", OPT_HOSTS, "LIST", 0, "machines of the ranks, as mpirun --host has them, this one first", 1},
    {"threads", 't', "N", 0, "threads a rank (the cores, shared out)", 1},
    {"repeat", 'r', "N", 0, "repeats; the median is told (5)", 1},
    {"breakdown", OPT_BREAKDOWN, 0, 0, "where the time goes: of every case", 1},
    {"draft", OPT_DRAFT, "SMALL", 0,
     "what a draft model gives: prompts are continued with its guesses and without (-b, -n, -r); serving: of our "
     "server",
     1},
    MU_QUANTIZE_OPTION(1),
    MU_KV_OPTION(1),
    {0, 0, 0, 0, "Serving:", 2},
    {"serve", OPT_SERVE, 0, 0, "start a server of MODEL and send it requests", 2},
    {"server", OPT_SERVER, "HOST:PORT", 0, "send them to a running one; MODEL may name its model", 2},
    {"rate", OPT_RATE, "LIST", 0, "requests a second, at random times (Poisson)", 2},
    {"concurrency", OPT_CONCURRENCY, "LIST", 0, "so many at once, the next when one is done (8)", 2},
    {"requests", OPT_REQUESTS, "N", 0, "of each load (64, where --seconds is not given)", 2},
    {"seconds", OPT_SECONDS, "S", 0, "send for so long", 2},
    {"input", OPT_INPUT, "A..B", 0, "tokens of a prompt, evenly between (64..256)", 2},
    {"output", OPT_OUTPUT, "A..B", 0, "tokens of an answer (16..64)", 2},
    {"prompts", OPT_PROMPTS, "FILE", 0, "a prompt a line, instead of random ones; with --draft of our own", 2},
    {"shared-prefix", OPT_PREFIX, "N", 0, "tokens that all prompts begin with, before the input", 2},
    {"slo", OPT_SLO, "TARGETS", 0, "ttft=500ms,itl=50ms: goodput counts requests that met them (also tpot, e2e)", 2},
    {"seed", OPT_SEED, "N", 0, "of lengths, prompts and times (0)", 2},
    {"ctx", OPT_CTX, "N", 0, "our server's tokens a request may hold", 2},
    {"parallel", OPT_PARALLEL, "N", 0, "our server's requests worked on at once", 2},
    {0, 0, 0, 0, "What comes out:", 3},
    {"format", 'o', "FORMAT", 0, "table, json or svg (table)", 3},
    {"out", OPT_OUT, "FILE", 0, "where json or svg goes (standard output)", 3},
    {"svg", OPT_SVG, "FILE", 0, "a picture as well", 3},
    {0},
};

int mu_cmd_bench(int argc, char **argv)
{
    static const struct argp argp = {
        options,
        parse,
        "[MODEL]",
        "Measures prompt and decode speed, and both as fractions of what this machine's memory and arithmetic reach in "
        "the "
        "same minutes; what a draft model gives; or a server under load. Says where the time goes and what limits. "
        "Ctrl-C ends it and tells what "
        "is "
        "done."
        "\vExamples:\n"
        "  muster synth --type Q4_0 --out 1b.gguf\n"
        "  muster bench 1b.gguf -p 512 -n 128 -t 2\n"
        "  muster bench 1b.gguf --streams 1,2,...,64 --svg streams.svg\n"
        "  muster bench 1b.gguf -p 0 --context 1k,4k,32k\n"
        "  muster bench 1b.gguf -t 1 --splits 1,1:1,1/1 -o json\n"
        "  muster bench 8b.gguf --draft 1b.gguf --streams 1,4 --prompts questions.txt\n"
        "  muster bench 8b.gguf --split 1@gpu0 -p 2k --streams 1,8,64\n"
        "  muster bench 1b.gguf --serve --rate 1,2,4 --seconds 60 \\\n"
        "      --slo ttft=500ms,itl=50ms\n"
        "  muster bench --server 127.0.0.1:7400 --concurrency 16 \\\n"
        "      --requests 200 --input 128..2048 --output 32..256\n"
        "docs/benchmarking.md has the definitions.\n",
        0,
        0,
        0};
    const char *folder = getenv("MUSTER_BENCH_RANK");
    if (folder) return mu_bench_rank_main(folder);
    struct mu_err err = MU_ERR_INIT;
    struct bench_args *a = mu_calloc(1, sizeof *a);
    if (!a) {
        mu_fail(&err, MU_ENOMEM, "no memory for a benchmark");
        return mu_cli_fail("bench", &err);
    }
    a->steps.prompt = (struct mu_bench_list){1, {512}};
    a->steps.stream = (struct mu_bench_list){1, {1}};
    a->steps.context = (struct mu_bench_list){1, {0}};
    a->steps.n_decode = 128;
    a->steps.n_repeat = 5;
    argp_parse(&argp, argc, argv, 0, 0, a);
    a->serve.model = a->steps.model;
    a->serve.n_thread = a->steps.n_thread;
    a->serve.quantize = a->steps.quantize;
    a->serve.kv = a->steps.kv;
    a->serve.rough = a->steps.rough;
    a->serve.device = a->steps.device;
    a->serve.draft = a->draft;
    a->serve.out = a->steps.output;
    if (!a->serve.rate.n && !a->serve.concurrency.n) a->serve.concurrency = (struct mu_bench_list){1, {8}};
    if (!a->serve.n_request && !a->serve.duration_ns) a->serve.n_request = 64;
    const struct mu_bench_draft_options draft = {
        .model = a->steps.model,
        .draft = a->draft,
        .quantize = a->steps.quantize,
        .prompts = a->serve.prompts,
        .kv = a->steps.kv,
        .stream = a->steps.stream,
        .n_decode = a->steps.n_decode,
        .n_thread = a->steps.n_thread,
        .n_repeat = a->steps.n_repeat,
        .seed = a->serve.seed,
        .out = a->steps.output,
    };
    enum mu_status st = a->is_serve ? mu_bench_serve(&a->serve, &err)
                        : a->draft  ? mu_bench_draft(&draft, &err)
                                    : mu_bench_sweep(&a->steps, &err);
    mu_free(a);
    return st ? mu_cli_fail("bench", &err) : MU_EXIT_OK;
}
