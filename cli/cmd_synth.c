/* muster synth: a random model of any shape, for benchmarks. */
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "model/synth.h"

struct synth_args {
    struct mu_synth s;
    const char *out, *draft; /* draft NULL: none */
    bool output_type_set, later_set;
};

enum {
    OPT_LAYERS = 256,
    OPT_HEADS,
    OPT_KV,
    OPT_DHEAD,
    OPT_DMODEL,
    OPT_DFF,
    OPT_VOCAB,
    OPT_CTX,
    OPT_TYPE,
    OPT_OTYPE,
    OPT_OUT,
    OPT_SEED,
    OPT_ARCH,
    OPT_UNTIED,
    OPT_BASE,
    OPT_ROT,
    OPT_WINDOW,
    OPT_SHORT,
    OPT_YARN,
    OPT_EXPERTS,
    OPT_USED,
    OPT_DRAFT,
    OPT_DRAFT_LAYERS,
    OPT_LATER
};

static uint32_t type_of(const char *name, struct argp_state *state)
{
    int t = mu_type_by_name(name);
    const struct mu_type_info *info = t < 0 ? NULL : mu_type_info((uint32_t)t);
    if (!info || info->act == MU_ACT_NONE)
        argp_error(state, "'%s' is no type that this build writes; try F16, Q8_0, Q4_0, Q4_K or Q6_K", name);
    return (uint32_t)t;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct synth_args *a = state->input;
    struct mu_synth *s = &a->s;
    switch (key) {
    case OPT_ARCH: s->arch = arg; return 0;
    case OPT_LAYERS: s->n_layer = (int)mu_arg_long(arg, 1, 1024, "--layers", state); return 0;
    case OPT_HEADS: s->n_head = (int)mu_arg_long(arg, 1, 1024, "--heads", state); return 0;
    case OPT_KV: s->n_kv_head = (int)mu_arg_long(arg, 1, 1024, "--kv-heads", state); return 0;
    case OPT_DHEAD: s->d_head = (int)mu_arg_long(arg, 2, 512, "--d-head", state); return 0;
    case OPT_DMODEL: s->d_model = (int)mu_arg_long(arg, 2, 1 << 17, "--d-model", state); return 0;
    case OPT_DFF: s->d_ff = (int)mu_arg_long(arg, 2, 1 << 20, "--d-ff", state); return 0;
    case OPT_VOCAB: s->n_vocab = (int)mu_arg_long(arg, 300, 1 << 20, "--vocab", state); return 0;
    case OPT_CTX: s->n_ctx = (int)mu_arg_long(arg, 1, 1 << 24, "--ctx", state); return 0;
    case OPT_TYPE: s->type = type_of(arg, state); return 0;
    case OPT_OTYPE:
        s->output_type = type_of(arg, state);
        a->output_type_set = true;
        return 0;
    case OPT_UNTIED: s->tied = 0; return 0;
    case OPT_BASE: s->rope_freq_base = (float)mu_arg_double(arg, 1, 1e9, "--rope-base", state); return 0;
    case OPT_ROT: s->n_rot = (int)mu_arg_long(arg, 2, 512, "--d-rot", state); return 0;
    case OPT_WINDOW: s->window = (int)mu_arg_long(arg, 1, 1 << 24, "--window", state); return 0;
    case OPT_SHORT: s->n_ctx_short = (int)mu_arg_long(arg, 1, 1 << 24, "--short-ctx", state); return 0;
    case OPT_YARN: s->yarn_factor = (float)mu_arg_double(arg, 1, 1e6, "--yarn", state); return 0;
    case OPT_EXPERTS: s->n_expert = (int)mu_arg_long(arg, 1, 512, "--experts", state); return 0;
    case OPT_USED: s->n_expert_used = (int)mu_arg_long(arg, 1, 512, "--experts-used", state); return 0;
    case OPT_SEED: s->seed = (uint64_t)mu_arg_long(arg, 0, INT64_MAX, "--seed", state); return 0;
    case OPT_OUT: a->out = arg; return 0;
    case OPT_DRAFT: a->draft = arg; return 0;
    case OPT_DRAFT_LAYERS: s->n_early = (int)mu_arg_long(arg, 1, 1024, "--draft-layers", state); return 0;
    case OPT_LATER:
        s->later = (float)mu_arg_double(arg, 0, 1, "--later", state);
        a->later_set = true;
        return 0;
    case ARGP_KEY_ARG: argp_error(state, "unexpected argument '%s'", arg); return 0;
    case ARGP_KEY_END:
        if (!a->out) argp_error(state, "--out FILE is missing");
        if (!a->draft && (s->n_early || a->later_set))
            argp_error(state, "--draft-layers and --later are for --draft FILE");
        if (a->draft && s->n_early >= s->n_layer && s->n_early)
            argp_error(state, "--draft-layers %d: fewer than the model's %d", s->n_early, s->n_layer);
        if (a->draft && s->n_layer < 2) argp_error(state, "--draft: a model of one layer has no smaller one");
        return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

static enum mu_status write_one(const struct mu_synth *s, const char *path, struct mu_err *err)
{
    char what[256];
    struct mu_model *m;
    struct mu_bar bar = {.label = "writing"};
    enum mu_status st = mu_synth_write(s, path, mu_bar_load, &bar, err);
    if (st == MU_OK) st = mu_model_open(path, &m, err);
    if (st != MU_OK) return st;
    mu_model_describe(m, what, sizeof what);
    printf("%s: %s\n", path, what);
    mu_model_close(m);
    return MU_OK;
}

int mu_cmd_synth(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"arch", OPT_ARCH, "NAME", 0, "architecture (llama); any that this build runs", 0},
        {"layers", OPT_LAYERS, "N", 0, "layers (16)", 0},
        {"d-model", OPT_DMODEL, "N", 0, "width of the residual stream (2048)", 0},
        {"d-ff", OPT_DFF, "N", 0, "width of the feed-forward block (4 × d-model)", 0},
        {"heads", OPT_HEADS, "N", 0, "query heads (d-model / 64)", 0},
        {"kv-heads", OPT_KV, "N", 0, "key-value heads (heads / 4)", 0},
        {"d-head", OPT_DHEAD, "N", 0, "size of a head (d-model / heads)", 0},
        {"vocab", OPT_VOCAB, "N", 0, "tokens (32768)", 0},
        {"ctx", OPT_CTX, "N", 0, "context (131072)", 0},
        {"type", OPT_TYPE, "TYPE", 0, "type of the matrices (Q4_0)", 0},
        {"output-type", OPT_OTYPE, "TYPE", 0, "type of embedding and output (as --type; Q6_K for Q4_K)", 0},
        {"untied", OPT_UNTIED, 0, 0, "an output matrix of its own", 0},
        {"rope-base", OPT_BASE, "X", 0, "base of the rotary frequencies (500000)", 0},
        {"d-rot", OPT_ROT, "N", 0, "dimensions of a head that turn (d-head)", 0},
        {"window", OPT_WINDOW, "N", 0, "sliding window, where the architecture has one (none)", 0},
        {"short-ctx", OPT_SHORT, "N", 0,
         "phi3: sequences beyond it turn by the long factors; with --yarn, what it extends (none)", 0},
        {"yarn", OPT_YARN, "FACTOR", 0, "rotation scaled by YaRN from the context of --short-ctx (no scaling)", 0},
        {"experts", OPT_EXPERTS, "N", 0, "experts of a layer (none; some architectures need them)", 0},
        {"experts-used", OPT_USED, "N", 0, "experts of a token (2)", 0},
        {"seed", OPT_SEED, "N", 0, "of the weights (1)", 0},
        {"out", OPT_OUT, "FILE", 0, "where to write", 0},
        {"draft", OPT_DRAFT, "FILE", 0,
         "write a draft model too: the first layers of this one, whose later layers then add little", 0},
        {"draft-layers", OPT_DRAFT_LAYERS, "N", 0, "its layers (an eighth)", 0},
        {"later", OPT_LATER, "X", 0,
         "what a later layer adds, in parts of what it would: the less, the more often the draft is right (0.05)", 0},
        {0},
    };
    static const struct argp argp = {
        options,
        parse,
        "--out FILE",
        "Writes a random model with the right sizes and types: it says nothing, at the real speed. The defaults are a "
        "Llama of 1.2B parameters."
        "\vExamples:\n"
        "  muster synth --type Q4_0 --out 1b.gguf\n"
        "  muster synth --layers 32 --d-model 4096 --d-ff 14336 --type Q4_K \\\n"
        "      --vocab 128256 --out 8b.gguf\n"
        "  muster synth --out 1b.gguf --draft small.gguf\n"
        "  muster bench 1b.gguf --draft small.gguf\n",
        0,
        0,
        0};
    struct synth_args a = {.s = {.arch = "llama",
                                 .n_layer = 16,
                                 .d_model = 2048,
                                 .n_vocab = 32768,
                                 .n_ctx = 131072,
                                 .rope_freq_base = 500000.0f,
                                 .type = MU_Q4_0,
                                 .tied = 1,
                                 .seed = 1,
                                 .later = 0.05f}};
    argp_parse(&argp, argc, argv, 0, 0, &a);
    struct mu_synth *s = &a.s;
    if (!s->n_head) s->n_head = s->d_head ? s->d_model / s->d_head : s->d_model / 64;
    if (s->n_head < 1) s->n_head = 1;
    if (!s->d_head) s->d_head = s->d_model / s->n_head;
    if (!s->n_kv_head) s->n_kv_head = s->n_head % 4 ? s->n_head : s->n_head / 4;
    if (s->n_expert && !s->n_expert_used) s->n_expert_used = s->n_expert < 2 ? 1 : 2;
    if (!s->d_ff) s->d_ff = 4 * s->d_model;
    if (!a.output_type_set) s->output_type = s->type == MU_Q4_K ? MU_Q6_K : s->type;

    if (a.draft && !s->n_early) s->n_early = s->n_layer < 16 ? 1 : s->n_layer / 8;

    struct mu_err err = MU_ERR_INIT;
    enum mu_status st = write_one(s, a.out, &err);
    s->n_layer = s->n_early;
    if (st == MU_OK && a.draft) st = write_one(s, a.draft, &err);
    return st ? mu_cli_fail("synth", &err) : MU_EXIT_OK;
}
