/* muster serve: the coordinator, with a worker of its own on this machine. */
#include <string.h>

#include "base/alloc.h"
#include "cli/cli.h"
#include "coordinator/coordinator.h"

enum { OPT_STALL = 256, OPT_QUIET, OPT_LORA, OPT_TEMPLATE, OPT_NO_PREFIX, OPT_NO_SPECULATION, OPT_DRAFT };

struct serve_args {
    struct mu_serve_options o;
    struct mu_adapter_spec *adapter;
    int n_adapter;
    bool bare; /* without the model's own */
};

/* The model's own adapter becomes the first. */
static enum mu_status own_adapter_add(struct serve_args *a, const struct mu_store_model *m, struct mu_err *err)
{
    struct mu_adapter_spec own, *more;
    enum mu_status st = mu_cli_own_adapter(m, &own, err);
    if (st != MU_OK || !own.path[0] || a->bare) return st;
    more = mu_reallocarray(a->adapter, (size_t)a->n_adapter + 1, sizeof *more);
    if (!more) return mu_fail(err, MU_ENOMEM, "no memory for %d adapters", a->n_adapter + 1);
    memmove(more + 1, more, (size_t)a->n_adapter++ * sizeof *more);
    more[0] = own;
    a->adapter = more;
    a->o.own_adapter = true;
    return MU_OK;
}

static void adapter_add(struct serve_args *a, const char *text, struct argp_state *state)
{
    struct mu_adapter_spec *more = mu_reallocarray(a->adapter, (size_t)a->n_adapter + 1, sizeof *more);
    if (!more) argp_failure(state, MU_EXIT_FAILED, 0, "no memory for %d adapters", a->n_adapter + 1);
    if (!more) return;
    a->adapter = more;
    mu_arg_adapter(text, &more[a->n_adapter], state);
    if (more[a->n_adapter].path[0])
        a->n_adapter++;
    else
        a->bare = true;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct serve_args *a = state->input;
    struct mu_serve_options *o = &a->o;
    switch (key) {
    case 's': o->split = arg; return 0;
    case 'l': o->listen = arg; return 0;
    case 'w': o->worker = arg; return 0;
    case 't': o->threads = (int)mu_arg_long(arg, 1, 1024, "--threads", state); return 0;
    case 'c': o->context = (int)mu_arg_long(arg, 2, 1 << 24, "--ctx", state); return 0;
    case 'n': o->parallel = (int)mu_arg_long(arg, 1, 1024, "--parallel", state); return 0;
    case 'q': o->max_waiting = (int)mu_arg_long(arg, 1, 1 << 20, "--queue", state); return 0;
    case OPT_STALL: o->stall_timeout_ms = (int)mu_arg_long(arg, 200, 600000, "--stall-ms", state); return 0;
    case OPT_TEMPLATE: o->template_path = arg; return 0;
    case OPT_NO_PREFIX: o->no_prefix_cache = true; return 0;
    case OPT_NO_SPECULATION: o->no_speculation = true; return 0;
    case OPT_DRAFT: o->draft_path = arg; return 0;
    case OPT_QUIET: o->quiet = true; return 0;
    case MU_OPT_DEVICE: o->device = mu_arg_device(arg, state); return 0;
    case MU_OPT_GPU_PROMPTS: o->rough = mu_arg_gpu_prompts(arg, state); return 0;
    case MU_OPT_KV: o->kv = mu_arg_kv(arg, state); return 0;
    case MU_OPT_QUANTIZE: o->quantize = mu_arg_quantize(arg, state); return 0;
    case OPT_LORA: adapter_add(a, arg, state); return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num) argp_error(state, "one MODEL only");
        o->model_path = arg;
        return 0;
    case ARGP_KEY_END:
        if (!o->model_path) argp_error(state, "MODEL is missing");
        if (o->draft_path && o->no_speculation)
            argp_error(state, "--draft guesses next tokens and --no-speculation forbids it: leave out one of them");
        return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

int mu_cmd_serve(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"split", 's', "S", 0,
         "how to split the model: stages with '/', ranks of a stage with ':', weights as numbers, '@gpuN' behind one "
         "for GPU N, '~n' behind that for n layers that come from the host's memory (auto)",
         0},
        MU_DEVICE_OPTION(0),
        MU_GPU_PROMPTS_OPTION(0),
        {"listen", 'l', "HOST:PORT", 0, "gRPC address (127.0.0.1:7400)", 0},
        {"worker", 'w', "ADDRESS", 0, "use a worker daemon that already runs (start one here)", 0},
        {"threads", 't', "N", 0, "threads a rank (the cores, shared out)", 0},
        {"ctx", 'c', "N", 0, "tokens one request may hold (the model's context, at most 8192 and what fits in memory)",
         0},
        {"parallel", 'n', "N", 0, "requests worked on at once (32); with --ctx, memory for all of them at full length",
         0},
        {"queue", 'q', "N", 0, "requests that may wait beyond those (1024)", 0},
        {"stall-ms", OPT_STALL, "MS", 0, "a rank that is silent so long is dead (3000)", 0},
        {"lora", OPT_LORA, "[NAME=]PATH[:SCALE]", 0,
         "load a LoRA adapter, a GGUF file or a PEFT folder, that requests may name; may be repeated; none: leave out "
         "the model's own",
         0},
        {"template", OPT_TEMPLATE, "FILE", 0, "chat template (Jinja) instead of the model's own", 0},
        {"no-prefix-cache", OPT_NO_PREFIX, 0, 0, "compute every prompt whole, also where another one began the same",
         0},
        {"draft", OPT_DRAFT, "MODEL", 0,
         "a small model of the same vocabulary that guesses next tokens: the same answers, sooner where it is mostly "
         "right",
         0},
        {"no-speculation", OPT_NO_SPECULATION, 0, 0, "never guess next tokens from what was said before", 0},
        {"quiet", OPT_QUIET, 0, 0, "no banner", 0},
        MU_QUANTIZE_OPTION(0),
        MU_KV_OPTION(0),
        {0},
    };
    static const struct argp argp = {
        options,
        parse,
        "MODEL",
        "Serves MODEL over gRPC (muster.v1.Muster, health, reflection) until Ctrl-C, split over the ranks of one gang."
        "\vExamples:\n"
        "  muster serve model.gguf\n"
        "  muster serve model.gguf --split 2:1/1 --listen 127.0.0.1:7400\n"
        "  muster serve model.gguf --lora sql=adapters/sql.gguf \\\n"
        "      --lora tone=adapters/tone:0.5\n"
        "  muster serve model.gguf --split 1@gpu0/1\n"
        "  muster serve qwen2.5:7b --draft qwen2.5:0.5b\n" MU_SPLIT_HELP,
        0,
        0,
        0};
    struct serve_args a = {.o = {.split = "auto", .listen = "127.0.0.1:7400"}};
    argp_parse(&argp, argc, argv, 0, 0, &a);
    struct mu_err err = MU_ERR_INIT;
    struct mu_store_model *found = NULL, *draft = NULL;
    int status;
    if (mu_store_find(a.o.model_path, &found, &err) ||
        (a.o.draft_path && mu_store_find(a.o.draft_path, &draft, &err)) || own_adapter_add(&a, found, &err)) {
        status = mu_cli_fail("serve", &err);
    } else {
        a.o.model_path = found->path;
        a.o.model_name = found->entry.store == MU_STORE_NONE ? NULL : found->entry.name;
        if (found->template_is_jinja) a.o.template_text = found->template;
        if (draft) a.o.draft_path = draft->path;
        a.o.adapter = a.adapter;
        a.o.n_adapter = a.n_adapter;
        status = mu_serve_main(&a.o);
    }
    mu_store_model_free(found);
    mu_store_model_free(draft);
    mu_free(a.adapter);
    return status;
}
