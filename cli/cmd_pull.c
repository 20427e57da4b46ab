/* muster pull: a model from Ollama's registry or the Hugging Face hub into Muster's own store. */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "cli/cli.h"
#include "model/pull.h"

enum { EXIT_INTERRUPTED = 130, OPT_TIMEOUT = 256, OPT_TRIES };

struct pull_args {
    const char *name;
    bool quiet;
    struct mu_pull_options opt;
    struct mu_bar bar;
    char label[120];
    int64_t began_ns; /* the first report, with what was there already */
    uint64_t began_at;
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct pull_args *a = state->input;
    switch (key) {
    case 'q': a->quiet = true; return 0;
    case OPT_TIMEOUT: a->opt.timeout_s = (int)mu_arg_long(arg, 1, 3600, "--timeout", state); return 0;
    case OPT_TRIES: a->opt.tries = (int)mu_arg_long(arg, 1, 1000, "--tries", state); return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num) argp_error(state, "one NAME only");
        a->name = arg;
        return 0;
    case ARGP_KEY_END:
        if (!a->name) argp_error(state, "NAME is missing");
        return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

static bool stop(void *ctx)
{
    (void)ctx;
    return mu_interrupted != 0;
}

static void say(const char *line, void *ctx)
{
    const struct pull_args *a = ctx;
    if (a->quiet) return;
    fprintf(stderr, "%s%s\n", a->bar.shown ? "\r\033[K" : "", line);
}

static void progress(uint64_t done, uint64_t total, void *ctx)
{
    struct pull_args *a = ctx;
    int64_t now = mu_now_ns();
    char have[32], all[32], rate[32] = "";
    if (a->quiet) return;
    if (!a->began_ns || done < a->began_at) a->began_ns = now, a->began_at = done;
    double s = (double)(now - a->began_ns) / MU_SEC;
    if (s > 1) mu_human_bytes((uint64_t)((double)(done - a->began_at) / s), rate, sizeof rate);
    mu_human_bytes(done, have, sizeof have);
    mu_human_bytes(total, all, sizeof all);
    snprintf(a->label, sizeof a->label, "%s of %s%s%s%s", have, all, *rate ? ", " : "", rate, *rate ? "/s" : "");
    mu_bar_update(&a->bar, done, total);
}

int mu_cmd_pull(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"quiet", 'q', 0, 0, "no progress", 0},
        {"timeout", OPT_TIMEOUT, "S", 0, "give up on a connection that is silent for so many seconds (30)", 0},
        {"tries", OPT_TRIES, "N", 0, "tries in a row without anything new (6)", 0},
        {0},
    };
    static const struct argp argp = {
        options,
        parse,
        "NAME",
        "Downloads a model into Muster's own store ($MUSTER_MODELS, else ~/.local/share/muster/models). An interrupted "
        "pull "
        "goes on where it was when it is called again; every file is checked by its hash before it counts."
        "\vNAME is of Ollama's registry (llama3.2, llama3.2:1b, user/model:tag) or of Hugging Face "
        "(hf.co/USER/REPO:QUANT; "
        "without QUANT it is Q4_K_M where there is one; a repository of safetensors is pulled as a whole).\n"
        "For private and gated repositories: HF_TOKEN, or the file that 'hf auth login' writes. Other servers: "
        "MUSTER_OLLAMA_REGISTRY, HF_ENDPOINT. Proxies: https_proxy and no_proxy.\n\n"
        "Examples:\n"
        "  muster pull llama3.2:1b\n"
        "  muster pull hf.co/bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M\n"
        "  muster pull hf.co/HuggingFaceTB/SmolLM2-135M-Instruct\n",
        0,
        0,
        0};
    struct pull_args a = {.opt = {.stop = stop, .say = say, .progress = progress}, .bar = {0}};
    a.opt.ctx = &a;
    a.bar.label = a.label;
    argp_parse(&argp, argc, argv, 0, 0, &a);
    struct mu_err err = MU_ERR_INIT;
    char *name = NULL;
    mu_signals_catch();
    signal(SIGXFSZ, SIG_IGN); /* a limit on file sizes is an error of write() */
    enum mu_status st = mu_pull(a.name, &a.opt, &name, &err);
    if (a.bar.shown) fputs("\r\033[K", stderr);
    if (st) return mu_cli_fail("pull", &err), st == MU_ECANCELLED ? EXIT_INTERRUPTED : MU_EXIT_FAILED;
    printf("pulled %s\n", name);
    mu_free(name);
    return MU_EXIT_OK;
}
