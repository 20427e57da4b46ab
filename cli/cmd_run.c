/* muster run: a completion, in this process or from a server, streamed to standard output. Ctrl-C stops the generation and not the program. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "cli/backend.h"
#include "cli/cli.h"

enum { MAX_PROMPT_BYTES = 64 << 20 };

struct run_args {
    struct mu_local_options local;
    const char *prompt, *server;
    struct mu_params params;
    bool ignore_end, special, quiet;
};

enum { OPT_TOPK = 256, OPT_TOPP, OPT_SEED, OPT_STOP, OPT_IGNORE, OPT_SPECIAL, OPT_SERVER, OPT_QUIET };

static void set(struct run_args *a, const char *name, const char *value, struct argp_state *state)
{
    struct mu_err err = MU_ERR_INIT;
    if (mu_params_set(&a->params, name, &value, 1, &err)) argp_error(state, "%s", err.text);
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct run_args *a = state->input;
    struct mu_err err = MU_ERR_INIT;
    switch (key) {
    case 'n': set(a, "num_predict", arg, state); return 0;
    case 't': a->local.n_thread = (int)mu_arg_long(arg, 1, 1024, "--threads", state); return 0;
    case 'c': a->local.n_ctx = (int)mu_arg_long(arg, 2, 1 << 24, "--ctx", state); return 0;
    case 'T': set(a, "temperature", arg, state); return 0;
    case OPT_TOPK: set(a, "top_k", arg, state); return 0;
    case OPT_TOPP: set(a, "top_p", arg, state); return 0;
    case OPT_SEED: set(a, "seed", arg, state); return 0;
    case OPT_STOP:
        if (mu_params_add_stop(&a->params, arg, &err)) argp_error(state, "%s", err.text);
        return 0;
    case OPT_IGNORE: a->ignore_end = true; return 0;
    case OPT_SPECIAL: a->special = true; return 0;
    case OPT_QUIET: a->quiet = true; return 0;
    case OPT_SERVER: a->server = arg; return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num == 0)
            a->local.model = arg;
        else if (state->arg_num == 1)
            a->prompt = arg;
        else
            argp_error(state, "too many arguments; put the prompt in quotes");
        return 0;
    case ARGP_KEY_END:
        if (!a->local.model) argp_error(state, "MODEL is missing");
        return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

static void print_rate(const struct mu_answer *w)
{
    int64_t first = w->first_ns ? w->first_ns : w->end_ns;
    double decode_s = (double)(w->end_ns - first) / 1e9;
    fprintf(stderr, "[%d prompt tokens in %.2f s; %d new tokens", w->n_prompt, (double)(first - w->start_ns) / 1e9,
            w->n_new);
    if (w->n_new > 1 && decode_s > 0) fprintf(stderr, ", %.1f a second", (w->n_new - 1) / decode_s);
    fputs("]\n", stderr);
}

struct printed {
    bool any;
};

static enum mu_status print_text(void *ctx, const char *text, size_t len, struct mu_err *err)
{
    ((struct printed *)ctx)->any = true;
    return mu_out_write(text, len, err);
}

static enum mu_status complete(const struct mu_backend *b, const struct run_args *a, const char *prompt,
                               struct mu_err *err)
{
    struct printed printed = {0};
    struct mu_listener listener = {.text = print_text, .ctx = &printed};
    struct mu_ask ask = {.text = prompt, .params = &a->params, .ignore_end = a->ignore_end, .special = a->special};
    struct mu_answer answer;
    enum mu_status st = b->ops->ask(b->self, &ask, &listener, &answer, err);
    if (printed.any || !st) {
        enum mu_status ended = mu_out_write("\n", 1, st ? NULL : err);
        if (!st) st = ended;
    }
    if (st) return st;
    if (!a->quiet && isatty(STDERR_FILENO)) print_rate(&answer);
    if (answer.resumed)
        fprintf(stderr, "[the gang was lost %d times on the way; nothing is missing]\n", answer.resumed);
    return MU_OK;
}

/* ---- prompts ---- */

/* Lines from the terminal until Ctrl-D. A failed prompt is told and the next one asked for. */
static enum mu_status converse(const struct mu_backend *b, const struct run_args *a)
{
    char *line = NULL;
    size_t cap = 0;
    fputs("Type a prompt and Enter; Ctrl-C stops an answer, Ctrl-D leaves.\n", stderr);
    for (;;) {
        fputs(">>> ", stderr);
        mu_signals_reset();
        ssize_t n = getline(&line, &cap, stdin);
        if (n < 0 && errno == EINTR && mu_interrupted) {
            clearerr(stdin);
            fputc('\n', stderr);
            continue;
        }
        if (n < 0) break;
        while (n && (line[n - 1] == '\n' || line[n - 1] == '\r')) line[--n] = 0;
        if (!n) continue;
        struct mu_err err = MU_ERR_INIT;
        if (complete(b, a, line, &err)) mu_cli_fail("run", &err);
    }
    free(line); /* getline's own */
    fputc('\n', stderr);
    return MU_OK;
}

int mu_cmd_run(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"max-tokens", 'n', "N", 0, "stop after N new tokens (until the model ends or the context is full)", 0},
        {"temperature", 'T', "X", 0, "0 takes the likeliest token each time (0)", 0},
        {"top-k", OPT_TOPK, "N", 0, "sample among the N likeliest (off)", 0},
        {"top-p", OPT_TOPP, "X", 0, "sample among the likeliest that make up X of the probability (off)", 0},
        {"seed", OPT_SEED, "N", 0, "the same seed gives the same text (random)", 0},
        {"stop", OPT_STOP, "TEXT", 0, "end before TEXT; may be repeated", 0},
        {"ignore-end", OPT_IGNORE, 0, 0, "go on after the end-of-text token", 0},
        {"special", OPT_SPECIAL, 0, 0, "special tokens in the prompt become their ids", 0},
        {"threads", 't', "N", 0, "threads (all cores)", 0},
        {"ctx", 'c', "N", 0, "context in tokens (the model's, at most 8192)", 0},
        {"server", OPT_SERVER, "HOST:PORT", 0, "use a server instead of this process", 0},
        {"quiet", OPT_QUIET, 0, 0, "no speed at the end", 0},
        {0},
    };
    static const struct argp argp = {
        options,
        parse,
        "MODEL [PROMPT]",
        "Completes PROMPT; without one, standard input, or a prompt line by line where that is a terminal."
        "\vExamples:\n"
        "  muster run model.gguf 'Once upon a time' -n 100\n"
        "  muster run model.gguf 'ROMEO:' --temperature 0.8 --seed 7\n"
        "  muster run model.gguf 'Hello' --server 127.0.0.1:7400\n",
        0,
        0,
        0};
    struct run_args a = {0};
    argp_parse(&argp, argc, argv, 0, 0, &a);

    struct mu_err err = MU_ERR_INIT;
    enum mu_status st;
    struct mu_backend b = {0};
    char *text = NULL;
    mu_signals_catch();
    MU_TRY(st, a.server ? mu_backend_server(a.server, a.local.model, &b, &err) : mu_backend_local(&a.local, &b, &err),
           done);
    if (a.prompt) {
        st = complete(&b, &a, a.prompt, &err);
    } else if (isatty(STDIN_FILENO)) {
        st = converse(&b, &a);
    } else {
        size_t len;
        MU_TRY(st, mu_read_stdin(MAX_PROMPT_BYTES, &text, &len, &err), done);
        if (strlen(text) != len)
            st = mu_fail(&err, MU_EINVAL, "the prompt on standard input holds a NUL character at byte %zu",
                         strlen(text) + 1);
        else if (!len)
            st = mu_fail(&err, MU_EINVAL, "standard input holds no prompt; give one, or PROMPT as an argument");
        else
            st = complete(&b, &a, text, &err);
    }
done:
    mu_free(text);
    if (b.ops) b.ops->close(b.self);
    mu_params_free(&a.params);
    return st ? mu_cli_fail("run", &err) : MU_EXIT_OK;
}
