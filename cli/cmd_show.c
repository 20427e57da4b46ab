/* muster show: what a model is, what its store says about it, and the memory it needs. The first part works for any file
 * that can be read, also of a family that this build does not run. */
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "base/alloc.h"
#include "cli/cli.h"
#include "kernels/kernels.h"
#include "kernels/types.h"
#include "model/modelfile.h"
#include "model/utf8.h"
#include "shard/plan.h"

enum { OPT_LICENSE = 256, OPT_MODELFILE, OPT_PARAMETERS, OPT_TEMPLATE, OPT_SYSTEM };
enum { MAX_CONTEXTS = 4, LICENSE_LINE = 70 };

struct show_args {
    const char *model;
    int only; /* one of OPT_…; 0: everything */
    bool json;
    enum mu_kv_type kv;
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct show_args *a = state->input;
    switch (key) {
    case 'o':
        if (strcmp(arg, "json") != 0 && strcmp(arg, "text") != 0)
            argp_error(state, "-o takes text or json, not '%s'", arg);
        a->json = !strcmp(arg, "json");
        return 0;
    case MU_OPT_KV: a->kv = mu_arg_kv(arg, state); return 0;
    case OPT_LICENSE:
    case OPT_MODELFILE:
    case OPT_PARAMETERS:
    case OPT_TEMPLATE:
    case OPT_SYSTEM:
        if (a->only) argp_error(state, "only one of --license, --modelfile, --parameters, --system and --template");
        a->only = key;
        return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num) argp_error(state, "one MODEL only");
        a->model = arg;
        return 0;
    case ARGP_KEY_END:
        if (!a->model) argp_error(state, "MODEL is missing");
        if (a->only && a->json)
            argp_error(state, "-o json is of the whole: leave out --license, --modelfile, --parameters, --system and "
                              "--template");
        return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

/* ---- gathering ---- */

struct memory {
    int n_ctx;
    struct mu_rank_memory bytes;
};

struct shown {
    struct mu_store_model *m;
    struct mu_gguf *gguf;   /* NULL: what is listed, but not read */
    struct mu_model *model; /* NULL: this build does not run it */
    struct mu_tokenizer *tok;
    bool runs;
    struct mu_err why; /* it does not */
    char arch[64], license[LICENSE_LINE + 8], quant[16];
    struct mu_str template; /* of the file */
    uint64_t n_param, n_context, n_embed, n_layer;
    struct {
        size_t n;
        uint64_t bytes;
    } type[MU_TYPE_LIMIT];
    struct memory memory[MAX_CONTEXTS];
    int n_memory;
};

static struct mu_str text_of(const struct mu_gguf *g, const char *key)
{
    struct mu_str s = {0};
    if (mu_gguf_get_str(g, key, &s, NULL) != MU_OK) s = (struct mu_str){0};
    return s;
}

static uint64_t number_of(const struct mu_gguf *g, const char *arch, const char *suffix)
{
    char key[128];
    uint64_t n = 0;
    snprintf(key, sizeof key, "%s.%s", arch, suffix);
    return mu_gguf_get_u64(g, key, 0, UINT64_MAX, 0, &n, NULL) == MU_OK ? n : 0;
}

static void read_file(struct shown *s)
{
    const struct mu_gguf_tensor *t;
    for (size_t i = 0; (t = mu_gguf_tensor_at(s->gguf, i)); i++) {
        s->n_param += t->ne[0] * t->n_row;
        if (t->type >= MU_TYPE_LIMIT) continue;
        s->type[t->type].n++;
        s->type[t->type].bytes += t->bytes;
    }
    mu_str_show(text_of(s->gguf, "general.architecture"), s->arch, sizeof s->arch);
    s->n_context = number_of(s->gguf, s->arch, "context_length");
    s->n_embed = number_of(s->gguf, s->arch, "embedding_length");
    s->n_layer = number_of(s->gguf, s->arch, "block_count");
    s->template = text_of(s->gguf, "tokenizer.chat_template");
    mu_str_show(text_of(s->gguf, "general.license"), s->license, sizeof s->license);
    if (!s->license[0] && s->m->n_license) { /* the first line that says something */
        const char *from = s->m->license[0] + strspn(s->m->license[0], " \t\r\n");
        mu_str_show((struct mu_str){from, strcspn(from, "\r\n")}, s->license, LICENSE_LINE);
    }
    snprintf(s->quant, sizeof s->quant, "%s", s->m->entry.quant);
    uint64_t most = 0; /* of a path: the type that most bytes have */
    for (uint32_t i = 0; i < MU_TYPE_LIMIT && !s->m->entry.quant[0]; i++)
        if (s->type[i].bytes > most && mu_type_info(i)) {
            most = s->type[i].bytes;
            snprintf(s->quant, sizeof s->quant, "%s", mu_type_info(i)->name);
        }
}

/* One rank and one sequence, at 2k, 8k, 32k and all that the model was made for. */
static enum mu_status read_memory(struct shown *s, enum mu_kv_type kv, struct mu_err *err)
{
    static const int contexts[] = {2048, 8192, 32768};
    struct mu_plan *plan = mu_calloc(1, sizeof *plan);
    struct mu_split split;
    enum mu_status st;
    int trained = s->model->cfg.n_ctx_train;
    if (!plan) return mu_fail(err, MU_ENOMEM, "no memory for a plan");
    MU_TRY(st, mu_split_parse("1", &split, err), done);
    MU_TRY(st, mu_plan_build(s->model, &split, plan, err), done);
    for (size_t i = 0; i <= sizeof contexts / sizeof *contexts; i++) {
        int ctx = i < sizeof contexts / sizeof *contexts ? contexts[i] : trained;
        if (ctx > trained || (s->n_memory && ctx <= s->memory[s->n_memory - 1].n_ctx)) continue;
        struct mu_serving serving = {.n_ctx = ctx,
                                     .n_slot = 1,
                                     .window = mu_plan_window(s->model),
                                     .kv = kv,
                                     .step_tokens = ctx < MU_STEP_TOKENS ? ctx : MU_STEP_TOKENS,
                                     .n_page = (uint32_t)((ctx + MU_PAGE_TOKENS - 1) / MU_PAGE_TOKENS)};
        struct memory *to = &s->memory[s->n_memory++];
        to->n_ctx = ctx;
        mu_plan_memory(s->model, plan, 0, &serving, &to->bytes);
    }
done:
    mu_free(plan);
    return st;
}

static enum mu_status gather(const struct show_args *a, struct shown *s, struct mu_err *err)
{
    enum mu_status st;
    s->why = (struct mu_err)MU_ERR_INIT;
    MU_TRY(st, mu_store_find(a->model, &s->m, err), done);
    st = mu_gguf_open(s->m->path, &s->gguf, err);
    /* Of what is listed and not read (a folder of an unknown kind) the store knows a little. */
    if (st == MU_EUNSUPPORTED && s->m->entry.family[0]) {
        s->why = *err;
        snprintf(s->arch, sizeof s->arch, "%s", s->m->entry.family);
        snprintf(s->quant, sizeof s->quant, "%s", s->m->entry.quant);
        return MU_OK;
    }
    if (st != MU_OK) goto done;
    read_file(s);
    MU_TRY(st, mu_kernels_init(NULL, err), done);
    if (mu_model_open(s->m->path, &s->model, &s->why) != MU_OK) return MU_OK;
    MU_TRY(st, read_memory(s, a->kv, err), done);
    s->runs = mu_tokenizer_open(s->model->gguf, &s->tok, &s->why) == MU_OK;
done:
    return st;
}

static void clear(struct shown *s)
{
    mu_tokenizer_close(s->tok);
    mu_model_close(s->model);
    mu_gguf_close(s->gguf);
    mu_store_model_free(s->m);
}

/* ---- telling ---- */

/* Text of a file, each line after indent: nothing in it that a terminal obeys, but for ends of lines of either kind. */
static void print_text(const char *text, size_t len, const char *indent)
{
    for (size_t i = 0; i < len;) {
        if ((i == 0 || text[i - 1] == '\n') && text[i] != '\n') fputs(indent, stdout);
        uint32_t cp = 0;
        int n = mu_utf8_next(text + i, len - i, &cp);
        bool line_end = text[i] == '\n' || (text[i] == '\r' && i + 1 < len && text[i + 1] == '\n');
        bool control = n && (cp < 0x20 || (cp >= 0x7f && cp < 0xa0));
        if (n == 0 || (control && !line_end && text[i] != '\t'))
            putchar('?');
        else
            fwrite(text + i, 1, (size_t)n, stdout);
        i += n ? (size_t)n : 1;
    }
    if (len && text[len - 1] != '\n') putchar('\n');
}

static void print_count(const char *label, uint64_t n)
{
    static const char *const unit[] = {"", "K", "M", "B", "T"};
    double v = (double)n;
    int u = 0;
    while (v >= 999.5 && u < 4) v /= 1000, u++;
    printf("  %-14s %.*f%s\n", label, v < 99.95 && u ? 1 : 0, v, unit[u]);
}

static const char *template_words(const struct shown *s)
{
    if (s->m->template && s->m->template_is_jinja) return "Jinja, from the store";
    if (!s->gguf) return "not read";
    if (s->template.len)
        return s->m->template ? "Jinja, in the file (the store's Go template is not used)" : "Jinja, in the file";
    return s->m->template ? "Go's language only, which is not interpreted" : "none";
}

static void print_types(const struct shown *s)
{
    static char text[MU_TYPE_LIMIT + 1][2][24];
    const char *cells[(MU_TYPE_LIMIT + 1) * 3] = {"  TYPE", "TENSORS", "SIZE"};
    char names[MU_TYPE_LIMIT][24];
    int n = 1;
    for (uint32_t i = 0; i < MU_TYPE_LIMIT; i++) {
        if (!s->type[i].n) continue;
        snprintf(names[i], sizeof names[i], "  %s", mu_type_info(i) ? mu_type_info(i)->name : "?");
        snprintf(text[n][0], sizeof text[n][0], "%zu", s->type[i].n);
        mu_human_bytes(s->type[i].bytes, text[n][1], sizeof text[n][1]);
        cells[n * 3] = names[i];
        cells[n * 3 + 1] = text[n][0];
        cells[n * 3 + 2] = text[n][1];
        n++;
    }
    static const bool right[] = {false, true, true};
    puts("\nTensors");
    mu_table_print(cells, n, 3, right);
}

static void print_memory(const struct shown *s)
{
    enum { N_COL = 5 };
    char text[MAX_CONTEXTS][N_COL][32];
    const char *cells[(MAX_CONTEXTS + 1) * N_COL] = {"  CONTEXT", "WEIGHTS", "CACHE", "SCRATCH", "TOGETHER"};
    static const bool right[] = {true, true, true, true, true};
    for (int i = 0; i < s->n_memory; i++) {
        const struct mu_rank_memory *b = &s->memory[i].bytes;
        snprintf(text[i][0], 32, "%d", s->memory[i].n_ctx);
        mu_human_bytes(b->weights, text[i][1], 32);
        mu_human_bytes(b->kv, text[i][2], 32);
        mu_human_bytes(b->scratch, text[i][3], 32);
        mu_human_bytes(b->weights + b->kv + b->scratch, text[i][4], 32);
        for (int c = 0; c < N_COL; c++) cells[(i + 1) * N_COL + c] = text[i][c];
    }
    puts("\nMemory of one sequence, one rank");
    mu_table_print(cells, s->n_memory + 1, N_COL, right);
}

static enum mu_status print_all(const struct shown *s, struct mu_err *err)
{
    const struct mu_store_model *m = s->m;
    puts("Model");
    printf("  %-14s %s\n  %-14s %s\n  %-14s %s\n", "name", m->entry.name, "store", mu_store_kind_name(m->entry.store),
           "at", m->path);
    printf("  %-14s %s\n", "architecture", s->arch[0] ? s->arch : "not said");
    if (s->n_param) print_count("parameters", s->n_param);
    printf("  %-14s %s\n", "type", s->quant[0] ? s->quant : "?");
    if (s->n_layer) printf("  %-14s %llu\n", "layers", (unsigned long long)s->n_layer);
    if (s->n_context) printf("  %-14s %llu\n", "context", (unsigned long long)s->n_context);
    if (s->n_embed) printf("  %-14s %llu\n", "embedding", (unsigned long long)s->n_embed);
    printf("  %-14s %s\n", "template", template_words(s));
    printf("  %-14s %s\n", "licence", s->license[0] ? s->license : "not said");
    for (int i = 0; i < m->n_adapter; i++) printf("  %-14s %s\n", "adapter", m->adapter_path[i]);
    if (s->runs)
        printf("  %-14s yes\n", "runs here");
    else
        printf("  %-14s no: %s\n", "runs here", s->why.text);
    if (s->n_param) print_types(s);
    if (s->n_memory) print_memory(s);
    if (m->params && json_object_size(m->params)) {
        char *text = mu_params_format(m->params, "");
        if (!text) return mu_fail(err, MU_ENOMEM, "no memory for parameters");
        puts("\nParameters");
        print_text(text, strlen(text), "  ");
        mu_free(text);
    }
    if (m->system) {
        puts("\nSystem");
        print_text(m->system, strlen(m->system), "  ");
    }
    return MU_OK;
}

static json_t *types_json(const struct shown *s)
{
    json_t *all = json_object();
    for (uint32_t i = 0; i < MU_TYPE_LIMIT && all; i++)
        if (s->type[i].n && mu_type_info(i))
            json_object_set_new(
                all, mu_type_info(i)->name,
                json_pack("{s:I,s:I}", "tensors", (json_int_t)s->type[i].n, "bytes", (json_int_t)s->type[i].bytes));
    return all;
}

static json_t *memory_json(const struct shown *s)
{
    json_t *all = json_array();
    for (int i = 0; i < s->n_memory; i++) {
        const struct mu_rank_memory *b = &s->memory[i].bytes;
        json_array_append_new(all, json_pack("{s:i,s:I,s:I,s:I}", "context", s->memory[i].n_ctx, "weights",
                                             (json_int_t)b->weights, "cache", (json_int_t)b->kv, "scratch",
                                             (json_int_t)b->scratch));
    }
    return all;
}

static enum mu_status print_json(const struct shown *s, struct mu_err *err)
{
    const struct mu_store_model *m = s->m;
    json_t *licenses = json_array(), *adapters = json_array();
    for (int i = 0; i < m->n_license; i++) json_array_append_new(licenses, mu_text_json(m->license[i]));
    for (int i = 0; i < m->n_adapter; i++) json_array_append_new(adapters, mu_text_json(m->adapter_path[i]));
    json_t *template = m->template && (m->template_is_jinja || !s->template.len)
                           ? mu_text_json(m->template)
                           : (s->template.len ? mu_text_n_json(s->template.p, s->template.len) : NULL);
    json_t *doc =
        json_pack("{s:o,s:s,s:o,s:s,s:I,s:s,s:I,s:I,s:I,s:o,s:o,s:b,s:o,s:o*,s:o*,s:O*,s:O*,s:o,s:o,s:o*,s:s*}", "name",
                  mu_text_json(m->entry.name), "store", mu_store_kind_name(m->entry.store), "path",
                  mu_text_json(m->path), "architecture", s->arch, "parameters_count", (json_int_t)s->n_param, "type",
                  s->quant, "layers", (json_int_t)s->n_layer, "context", (json_int_t)s->n_context, "embedding",
                  (json_int_t)s->n_embed, "tensors", types_json(s), "memory", memory_json(s), "runs", s->runs,
                  "why_not", mu_text_json(s->why.text), "template", template, "system", mu_text_json(m->system),
                  "parameters", m->params, "messages", m->messages, "adapters", adapters, "license_texts", licenses,
                  "license", mu_text_json(s->license[0] ? s->license : NULL), "digest", m->entry.digest);
    enum mu_status st = doc && !json_dumpf(doc, stdout, JSON_INDENT(2))
                            ? MU_OK
                            : mu_fail(err, MU_EIO, "cannot print the model as JSON");
    json_decref(doc);
    if (!st) putchar('\n');
    return st;
}

/* One of --license … alone, as it is. */
static enum mu_status print_only(const struct shown *s, int what, struct mu_err *err)
{
    const struct mu_store_model *m = s->m;
    char *text = NULL;
    if (what == OPT_MODELFILE || what == OPT_PARAMETERS) {
        text = what == OPT_MODELFILE ? mu_modelfile_format(m) : mu_params_format(m->params, "");
        if (!text) return mu_fail(err, MU_ENOMEM, "no memory to print '%.100s'", m->entry.name);
        print_text(text, strlen(text), "");
        mu_free(text);
        return MU_OK;
    }
    if (what == OPT_LICENSE) {
        for (int i = 0; i < m->n_license; i++) print_text(m->license[i], strlen(m->license[i]), "");
        if (m->n_license || s->license[0]) {
            if (!m->n_license) puts(s->license);
            return MU_OK;
        }
        return mu_fail(err, MU_ENOENT, "'%.100s' says nothing of a licence", m->entry.name);
    }
    if (what == OPT_SYSTEM) {
        if (!m->system) return mu_fail(err, MU_ENOENT, "'%.100s' has no system prompt", m->entry.name);
        print_text(m->system, strlen(m->system), "");
        return MU_OK;
    }
    if (m->template && (m->template_is_jinja || !s->template.len))
        print_text(m->template, strlen(m->template), "");
    else if (s->template.len)
        print_text(s->template.p, s->template.len, "");
    else
        return mu_fail(err, MU_ENOENT, "'%.100s' has no chat template", m->entry.name);
    return MU_OK;
}

int mu_cmd_show(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"license", OPT_LICENSE, 0, 0, "the licence's text only", 0},
        {"modelfile", OPT_MODELFILE, 0, 0, "the Modelfile that would make this model", 0},
        {"parameters", OPT_PARAMETERS, 0, 0, "the parameters only", 0},
        {"template", OPT_TEMPLATE, 0, 0, "the chat template that is used", 0},
        {"system", OPT_SYSTEM, 0, 0, "the system prompt only", 0},
        {"output", 'o', "FORMAT", 0, "text or json (text)", 0},
        MU_KV_OPTION(0),
        {0},
    };
    static const struct argp argp = {options,
                                     parse,
                                     "MODEL",
                                     "Shows what MODEL is: architecture, sizes, types of its tensors, template, "
                                     "licence, what its store says about it, the "
                                     "memory it needs at which context, and whether this build runs it."
                                     "\vMODEL is a name that 'muster list' shows, or a path.\n\n"
                                     "Examples:\n  muster show llama3.2\n  muster show model.gguf --template\n  muster "
                                     "show llama3.2 --modelfile >Modelfile\n",
                                     0,
                                     0,
                                     0};
    struct show_args a = {0};
    argp_parse(&argp, argc, argv, 0, 0, &a);
    struct mu_err err = MU_ERR_INIT;
    struct shown *s = mu_calloc(1, sizeof *s);
    enum mu_status st = s ? gather(&a, s, &err) : mu_fail(&err, MU_ENOMEM, "no memory to show a model");
    if (!st) st = a.only ? print_only(s, a.only, &err) : a.json ? print_json(s, &err) : print_all(s, &err);
    if (s) clear(s);
    mu_free(s);
    return st ? mu_cli_fail("show", &err) : MU_EXIT_OK;
}
