/* muster run: the command line of completions and chats, here or from a server. Without a prompt, at a terminal, it is a
 * conversation (repl.c); else one answer on standard output. Ctrl-C stops the answer and not the program. */
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/io.h"
#include "cli/chat.h"
#include "cli/cli.h"

enum { MAX_PROMPT_BYTES = 64 << 20 };

struct run_args {
    struct mu_talk_options chat;
    const char *prompt, *system;
    char *constraint; /* read from a file, or NULL */
};

enum {
    OPT_TOPK = 256,
    OPT_TOPP,
    OPT_MINP,
    OPT_TYPICAL,
    OPT_REPEAT,
    OPT_LASTN,
    OPT_PRESENCE,
    OPT_FREQUENCY,
    OPT_BIAS,
    OPT_MIN,
    OPT_SEED,
    OPT_STOP,
    OPT_IGNORE,
    OPT_SPECIAL,
    OPT_SERVER,
    OPT_QUIET,
    OPT_RAW,
    OPT_SYSTEM,
    OPT_TEMPLATE,
    OPT_THINK,
    OPT_HIDE,
    OPT_VERBOSE,
    OPT_NOWRAP,
    OPT_FORMAT,
    OPT_JSON,
    OPT_SCHEMA,
    OPT_REGEX,
    OPT_GRAMMAR,
    OPT_LORA,
    OPT_ADAPTER,
    OPT_PRIORITY,
    OPT_DRAFT
};

static void set(struct run_args *a, const char *name, const char *value, struct argp_state *state)
{
    struct mu_err err = MU_ERR_INIT;
    if (mu_params_set(&a->chat.params, name, &value, 1, &err)) argp_error(state, "%s", err.text);
}

/* The form of the answer: it is compiled here, so that a mistake is told before a model is loaded. file: arg names one
 * that holds it. */
static void constrain(struct run_args *a, enum mu_constraint_kind kind, const char *arg, bool file,
                      struct argp_state *state)
{
    struct mu_constraint_text *t = &a->chat.constraint;
    struct mu_err err = MU_ERR_INIT;
    struct mu_grammar *g;
    size_t len = strlen(arg);
    if (t->kind != MU_CONSTRAINT_NONE)
        argp_error(state, "an answer has one form: give one of --json, --json-schema, --regex, --grammar");
    if (file) {
        if (mu_file_read(arg, MU_CONSTRAINT_TEXT_MAX, &a->constraint, &len, &err)) argp_error(state, "%s", err.text);
        if (memchr(a->constraint, '\0', len)) argp_error(state, "file '%s' holds a NUL character", arg);
        arg = a->constraint;
    }
    if (mu_grammar_compile(kind, arg, len, &g, &err)) argp_error(state, "%s", err.text);
    mu_grammar_free(g);
    *t = (struct mu_constraint_text){(int)kind, arg, len};
}

/* JSON Schemas begin with a brace, names of files do not. */
static void constrain_schema(struct run_args *a, const char *arg, struct argp_state *state)
{
    constrain(a, MU_CONSTRAINT_JSON_SCHEMA, arg, arg[strspn(arg, " \t\r\n")] != '{', state);
}

static void constrain_format(struct run_args *a, const char *arg, struct argp_state *state)
{
    if (!strcmp(arg, "json"))
        constrain(a, MU_CONSTRAINT_JSON, "", false, state);
    else
        constrain_schema(a, arg, state);
}

static void check(const struct run_args *a, struct argp_state *state)
{
    if (!a->chat.local.model) argp_error(state, "MODEL is missing");
    if (a->chat.server && a->chat.local.template_file)
        argp_error(state, "--template is for a model in this process; with --server the server's own one is used");
    if (a->chat.server && a->chat.local.lora.name[0])
        argp_error(state, "--lora loads into this process; of a server name an --adapter");
    if (a->chat.server && a->chat.local.draft)
        argp_error(state, "--draft is for a model in this process; a server has its own");
    const struct mu_local_options *l = &a->chat.local;
    if (a->chat.server && (l->n_thread || l->n_ctx || strcmp(l->split, "auto") || l->device != MU_DEVICE_AUTO ||
                           l->rough || l->quantize || l->kv))
        argp_error(state, "--threads, --ctx, --split, --device, --gpu-prompts, --quantize and --kv are for a model in "
                          "this process; a server has its own");
    if (a->chat.adapter && !a->chat.server) argp_error(state, "--adapter is one of a --server's; here use --lora PATH");
    if (a->chat.ignore_end && a->chat.constraint.kind != MU_CONSTRAINT_NONE)
        argp_error(state, "--ignore-end cannot hold with a form of the answer: a text that is whole has to end");
    if (a->chat.priority && !a->chat.server) argp_error(state, "--priority is among the requests of a --server");
    if (a->chat.raw && a->chat.local.template_file) argp_error(state, "--raw means no template: leave out --template");
    if (a->chat.raw && a->system) argp_error(state, "--raw means no template, so no system prompt: leave out --system");
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct run_args *a = state->input;
    struct mu_talk_options *c = &a->chat;
    struct mu_err err = MU_ERR_INIT;
    switch (key) {
    case 'n': set(a, "num_predict", arg, state); return 0;
    case 't': c->local.n_thread = (int)mu_arg_long(arg, 1, 1024, "--threads", state); return 0;
    case 'c': c->local.n_ctx = (int)mu_arg_long(arg, 2, 1 << 24, "--ctx", state); return 0;
    case 'T': set(a, "temperature", arg, state); return 0;
    case OPT_TOPK: set(a, "top_k", arg, state); return 0;
    case OPT_TOPP: set(a, "top_p", arg, state); return 0;
    case OPT_MINP: set(a, "min_p", arg, state); return 0;
    case OPT_TYPICAL: set(a, "typical_p", arg, state); return 0;
    case OPT_REPEAT: set(a, "repeat_penalty", arg, state); return 0;
    case OPT_LASTN: set(a, "repeat_last_n", arg, state); return 0;
    case OPT_PRESENCE: set(a, "presence_penalty", arg, state); return 0;
    case OPT_FREQUENCY: set(a, "frequency_penalty", arg, state); return 0;
    case OPT_MIN: set(a, "min_tokens", arg, state); return 0;
    case OPT_BIAS:
        if (mu_params_add_bias(&c->params, arg, &err)) argp_error(state, "%s", err.text);
        return 0;
    case OPT_SEED: set(a, "seed", arg, state); return 0;
    case OPT_STOP:
        if (mu_params_add_stop(&c->params, arg, &err)) argp_error(state, "%s", err.text);
        return 0;
    case OPT_IGNORE: c->ignore_end = true; return 0;
    case OPT_SPECIAL: c->special = true; return 0;
    case OPT_QUIET: c->quiet = c->local.quiet = true; return 0;
    case OPT_SERVER: c->server = arg; return 0;
    case OPT_LORA: mu_arg_adapter(arg, &c->local.lora, state); return 0;
    case OPT_DRAFT: c->local.draft = arg; return 0;
    case OPT_ADAPTER: c->adapter = arg; return 0;
    case 's': c->local.split = arg; return 0;
    case MU_OPT_DEVICE: c->local.device = mu_arg_device(arg, state); return 0;
    case MU_OPT_GPU_PROMPTS: c->local.rough = mu_arg_gpu_prompts(arg, state); return 0;
    case MU_OPT_KV: c->local.kv = mu_arg_kv(arg, state); return 0;
    case OPT_PRIORITY: c->priority = mu_arg_priority(arg, state); return 0;
    case MU_OPT_QUANTIZE: c->local.quantize = mu_arg_quantize(arg, state); return 0;
    case OPT_RAW: c->raw = c->local.no_template = true; return 0;
    case OPT_SYSTEM: a->system = arg; return 0;
    case OPT_TEMPLATE: c->local.template_file = arg; return 0;
    case OPT_THINK:
        if (!mu_think_parse(arg ? arg : "on", &c->think))
            argp_error(state, "--think may be true, false, low, medium or high, not '%s'", arg);
        return 0;
    case OPT_HIDE: c->hide_thinking = true; return 0;
    case OPT_VERBOSE: c->verbose = true; return 0;
    case OPT_NOWRAP: c->wordwrap = false; return 0;
    case OPT_FORMAT: constrain_format(a, arg, state); return 0;
    case OPT_JSON: constrain(a, MU_CONSTRAINT_JSON, "", false, state); return 0;
    case OPT_SCHEMA: constrain_schema(a, arg, state); return 0;
    case OPT_REGEX: constrain(a, MU_CONSTRAINT_REGEX, arg, false, state); return 0;
    case OPT_GRAMMAR: constrain(a, MU_CONSTRAINT_GBNF, arg, true, state); return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num == 0)
            c->local.model = arg;
        else if (state->arg_num == 1)
            a->prompt = arg;
        else
            argp_error(state, "too many arguments; put the prompt in quotes");
        return 0;
    case ARGP_KEY_END: check(a, state); return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

/* Characters have the widths of the user's locale; where that is no UTF-8 one, those of C.UTF-8. Numbers stay as C has
 * them. */
static void locale_set(void)
{
    if (!setlocale(LC_CTYPE, "") || MB_CUR_MAX == 1) setlocale(LC_CTYPE, "C.UTF-8");
}

/* Whether something was put into standard input on purpose: a file or a pipe. A terminal, /dev/null and sockets are
 * what a program is started with. */
static bool stdin_is_fed(void)
{
    struct stat st;
    return !fstat(STDIN_FILENO, &st) && (S_ISREG(st.st_mode) || S_ISFIFO(st.st_mode));
}

static enum mu_status stdin_read(char **text_out, struct mu_err *err)
{
    size_t len;
    enum mu_status st = mu_read_stdin(MAX_PROMPT_BYTES, text_out, &len, err);
    if (!st && strlen(*text_out) != len)
        st = mu_fail(err, MU_EINVAL, "the prompt on standard input holds a NUL character at byte %zu",
                     strlen(*text_out) + 1);
    return st;
}

/* One answer. As with Ollama what standard input holds stands before the prompt, for models that chat. */
static enum mu_status answer(struct mu_talk *c, const char *prompt, struct mu_err *err)
{
    char *input = NULL, *joined = NULL;
    enum mu_status st = MU_OK;
    if (!prompt || (mu_talk_is_chat(c) && stdin_is_fed())) {
        MU_TRY(st, stdin_read(&input, err), done);
        if (!prompt && !*input) {
            st = mu_fail(err, MU_EINVAL, "standard input holds no prompt; give one, or PROMPT as an argument");
            goto done;
        }
    }
    if (input && prompt && *input && !(joined = mu_asprintf("%s %s", input, prompt))) {
        st = mu_fail(err, MU_ENOMEM, "no memory for the prompt");
        goto done;
    }
    mu_signals_catch(); /* until here Ctrl-C ends the program: there is no answer to stop */
    st = mu_talk_turn(c, joined ? joined : prompt ? prompt : input, err);
done:
    mu_free(input);
    mu_free(joined);
    return st;
}

int mu_cmd_run(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {0, 0, 0, 0, "The answer:", 1},
        {"max-tokens", 'n', "N", 0, "stop after N new tokens (until the model ends or the context is full)", 1},
        {"temperature", 'T', "X", 0, "0 takes the likeliest token each time (chat 0.8, else 0)", 1},
        {"top-k", OPT_TOPK, "N", 0, "sample among the N likeliest (chat 40, else off)", 1},
        {"top-p", OPT_TOPP, "X", 0, "sample among the likeliest that make up X of the probability (chat 0.9, else off)",
         1},
        {"min-p", OPT_MINP, "X", 0, "among those at least X times as likely as the likeliest (off)", 1},
        {"typical", OPT_TYPICAL, "X", 0, "among the least surprising that make up X of the probability (off)", 1},
        {"repeat-penalty", OPT_REPEAT, "X", 0, "hold back tokens that were there lately; 1 is off (1)", 1},
        {"repeat-last-n", OPT_LASTN, "N", 0, "how far back that looks, -1: all (64)", 1},
        {"presence-penalty", OPT_PRESENCE, "X", 0, "taken from logits of tokens generated before (0)", 1},
        {"frequency-penalty", OPT_FREQUENCY, "X", 0, "and for each time that they were (0)", 1},
        {"logit-bias", OPT_BIAS, "ID=X", 0, "add X to token ID's logit; may be repeated", 1},
        {"min-tokens", OPT_MIN, "N", 0, "neither end tokens nor --stop end it before N new tokens (0)", 1},
        {"seed", OPT_SEED, "N", 0, "the same seed gives the same text (random)", 1},
        {"stop", OPT_STOP, "TEXT", 0, "end before TEXT; may be repeated", 1},
        {"ignore-end", OPT_IGNORE, 0, 0, "go on after the end-of-text token", 1},
        {"special", OPT_SPECIAL, 0, 0, "special tokens in the prompt become their ids, and are shown", 1},
        {0, 0, 0, 0, "The form of the answer:", 2},
        {"json", OPT_JSON, 0, 0, "a JSON object", 2},
        {"json-schema", OPT_SCHEMA, "FILE|TEXT", 0, "JSON that satisfies this schema", 2},
        {"regex", OPT_REGEX, "RE", 0, "a text that this expression matches as a whole", 2},
        {"grammar", OPT_GRAMMAR, "FILE", 0, "a text of this GBNF grammar", 2},
        {"format", OPT_FORMAT, "json|FILE|TEXT", 0, "as --json or --json-schema", 2},
        {0, 0, 0, 0, "The conversation:", 3},
        {"system", OPT_SYSTEM, "TEXT", 0, "system prompt (the model's own)", 3},
        {"template", OPT_TEMPLATE, "FILE", 0, "a Jinja chat template instead of the model's own", 3},
        {"raw", OPT_RAW, 0, 0, "no template: just go on with the prompt", 3},
        {"think", OPT_THINK, "true|false|low|medium|high", OPTION_ARG_OPTIONAL,
         "whether the model may think first, where its template has a switch for it", 3},
        {"hidethinking", OPT_HIDE, 0, 0, "show the answer only", 3},
        {0, 0, 0, 0, "What is shown:", 4},
        {"verbose", OPT_VERBOSE, 0, 0, "counts and rates after each answer", 4},
        {"nowordwrap", OPT_NOWRAP, 0, 0, "do not break lines between words", 4},
        {"quiet", OPT_QUIET, 0, 0, "no memory at the start, no speed at the end", 4},
        {0, 0, 0, 0, "Where it runs:", 5},
        {"threads", 't', "N", 0, "threads (all cores)", 5},
        {"ctx", 'c', "N", 0, "context in tokens (the model's, at most 8192 and what fits in memory)", 5},
        {"split", 's', "S", 0, "split over ranks in this process; 1@gpu0: on GPU 0 (auto)", 5},
        MU_DEVICE_OPTION(5),
        MU_GPU_PROMPTS_OPTION(5),
        {"server", OPT_SERVER, "HOST:PORT", 0, "use a server instead of this process", 5},
        {"lora", OPT_LORA, "PATH[:SCALE]", 0,
         "with a LoRA adapter: a GGUF file or a PEFT folder; none: without the model's own", 5},
        {"draft", OPT_DRAFT, "MODEL", 0,
         "a small model of the same vocabulary that guesses next tokens: the same answer, sooner where it is mostly "
         "right",
         5},
        {"adapter", OPT_ADAPTER, "NAME", 0, "with an adapter that the server has loaded; none: with none", 5},
        {"priority", OPT_PRIORITY, "interactive|normal|batch", 0, "at a busy server (normal)", 5},
        MU_QUANTIZE_OPTION(5),
        MU_KV_OPTION(5),
        {0},
    };
    static const struct argp argp = {
        options,
        parse,
        "MODEL [PROMPT]",
        "Answers PROMPT, or standard input; at a terminal without either, a chat. A model without a chat template goes "
        "on "
        "with the text instead."
        "\vStandard input, where it is a file or a pipe, stands before PROMPT (of models that chat).\n\n"
        "Examples:\n"
        "  muster run model.gguf\n"
        "  muster run model.gguf 'Why is the sky blue?'\n"
        "  muster run model.gguf 'Summarise this.' < report.txt\n"
        "  muster run model.gguf 'ROMEO:' --raw --temperature 0.8 --seed 7 -n 100\n"
        "  muster run model.gguf 'A person' \\\n"
        "      --json-schema '{\"properties\": {\"name\": {\"type\": \"string\"}}}'\n"
        "  muster run model.gguf 'Hello' --server 127.0.0.1:7400\n"
        "  muster run default 'Summarise this.' --server 127.0.0.1:7400 \\\n"
        "      --priority batch < report.txt\n",
        0,
        0,
        0};
    struct run_args a = {.chat = {.wordwrap = true, .local = {.split = "auto"}}};
    argp_parse(&argp, argc, argv, 0, 0, &a);

    struct mu_err err = MU_ERR_INIT;
    struct mu_talk chat = {.opt = a.chat};
    enum mu_status st;
    locale_set();
    MU_TRY(st, mu_talk_open(&chat, &err), done);
    if (a.system && !mu_talk_is_chat(&chat)) {
        st = mu_fail(&err, MU_EINVAL,
                     "without a chat template there is no place for a system prompt: leave out --system");
        goto done;
    }
    if (a.system) MU_TRY(st, mu_talk_set_system(&chat, a.system, &err), done);
    st = a.prompt || !isatty(STDIN_FILENO) ? answer(&chat, a.prompt, &err) : mu_talk_repl(&chat, &err);
done:
    mu_talk_close(&chat);
    mu_free(a.constraint);
    return st ? mu_cli_fail("run", &err) : MU_EXIT_OK;
}
