/* muster template: a conversation as the prompt that a model's chat template makes of it. */
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/alloc.h"
#include "base/io.h"
#include "cli/cli.h"
#include "model/chat_template.h"
#include "model/hf.h"
#include "model/hf_json.h"

enum { MAX_JSON = 64 << 20, MAX_VARS = 64, OPT_NO_PROMPT = 256, OPT_CONTINUE, OPT_BOS, OPT_EOS };

struct template_args {
    const char *source, *messages, *tools, *bos, *eos;
    const char *vars[MAX_VARS];
    int n_var;
    bool no_prompt, continues;
};

static error_t parse_template(int key, char *arg, struct argp_state *state)
{
    struct template_args *a = state->input;
    switch (key) {
    case 'm': a->messages = arg; return 0;
    case 't': a->tools = arg; return 0;
    case 'v':
        if (!strchr(arg, '=')) argp_error(state, "--var must be NAME=JSON, not '%s'", arg);
        if (a->n_var == MAX_VARS) argp_error(state, "more than %d variables", MAX_VARS);
        a->vars[a->n_var++] = arg;
        return 0;
    case OPT_NO_PROMPT: a->no_prompt = true; return 0;
    case OPT_CONTINUE: a->continues = true; return 0;
    case OPT_BOS: a->bos = arg; return 0;
    case OPT_EOS: a->eos = arg; return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num) argp_error(state, "one MODEL or FILE.jinja only");
        a->source = arg;
        return 0;
    case ARGP_KEY_END:
        if (!a->source) argp_error(state, "MODEL or FILE.jinja is missing");
        return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

/* path NULL or "-": standard input. */
static enum mu_status load_json(const char *path, json_t **out, struct mu_err *err)
{
    bool standard = !path || !strcmp(path, "-");
    const char *name = standard ? "standard input" : path;
    json_error_t at;
    char *text;
    size_t len;
    enum mu_status st =
        standard ? mu_read_stdin(MAX_JSON, &text, &len, err) : mu_file_read(path, MAX_JSON, &text, &len, err);
    if (st) return st;
    bool no_memory;
    *out = mu_json_load(text, len, JSON_ALLOW_NUL, &at, &no_memory);
    mu_free(text);
    if (*out) return MU_OK;
    if (no_memory) return mu_fail(err, MU_ENOMEM, "no memory for %s", name);
    return mu_fail(err, MU_EFORMAT, "%s, line %d, column %d: %s", name, at.line, at.column, at.text);
}

/* NAME=JSON; what is no JSON is text, so that --var date=today needs no quotes. */
static enum mu_status add_var(json_t *vars, const char *arg, struct mu_err *err)
{
    const char *eq = strchr(arg, '=');
    char *name = mu_strndup(arg, (size_t)(eq - arg));
    json_t *value = json_loads(eq + 1, JSON_DECODE_ANY, NULL);
    if (!value) value = json_string(eq + 1);
    bool ok = name && value && !json_object_set(vars, name, value);
    json_decref(value);
    mu_free(name);
    return ok ? MU_OK : mu_fail(err, MU_EINVAL, "--var %s cannot be taken: is it UTF-8?", arg);
}

/* Whether the path is a template by itself: a file or pipe that holds no model, and is none of a Hugging Face folder's. */
static bool is_template(const char *path)
{
    struct stat there;
    char magic[4] = {0};
    if (stat(path, &there) || S_ISDIR(there.st_mode) || mu_hf_is_folder(path)) return false;
    FILE *f = S_ISREG(there.st_mode) ? fopen(path, "rb") : NULL; /* what is read of a pipe is gone */
    bool model = f && fread(magic, 1, sizeof magic, f) == sizeof magic && !memcmp(magic, "GGUF", sizeof magic);
    if (f) fclose(f);
    return !model;
}

/* The template, and the texts of the model's special tokens where it comes from one; freed with mu_free. A store's own
 * template wins over the file's. */
static enum mu_status open_template(const char *source, struct mu_chat_template **out, char **bos, char **eos,
                                    struct mu_err *err)
{
    struct mu_store_model *found = NULL;
    struct mu_gguf *g = NULL;
    struct mu_tokenizer *tok = NULL;
    enum mu_status st;
    if (is_template(source)) return mu_chat_template_read(source, out, err);
    MU_TRY(st, mu_store_find(source, &found, err), done);
    MU_TRY(st, mu_gguf_open(found->path, &g, err), done);
    if (found->template && found->template_is_jinja)
        st = mu_chat_template_parse(found->template, strlen(found->template), out, err);
    else
        st = mu_chat_template_of_model(g, out, err);
    if (st) goto done;
    MU_TRY(st, mu_tokenizer_open(g, &tok, err), done);
    *bos = mu_chat_token_text(tok, mu_tokenizer_bos(tok));
    *eos = mu_chat_token_text(tok, mu_tokenizer_eos(tok));
    if (!*bos || !*eos) st = mu_fail(err, MU_ENOMEM, "no memory for the texts of special tokens");
done:
    mu_tokenizer_close(tok);
    mu_gguf_close(g);
    mu_store_model_free(found);
    return st;
}

/* What the file and the options say. The file holds an array of messages, or an object with messages, tools, documents,
 * kwargs, add_generation_prompt and continue_final_message. */
static enum mu_status make_input(const struct template_args *a, json_t *doc, json_t *tools, json_t *vars,
                                 struct mu_chat_input *in, struct mu_err *err)
{
    const json_t *prompt = json_object_get(doc, "add_generation_prompt");
    in->messages = json_is_array(doc) ? doc : json_object_get(doc, "messages");
    if (!json_is_array(in->messages))
        return mu_fail(err, MU_EFORMAT, "%s holds neither an array of messages nor an object with the key 'messages'",
                       a->messages ? a->messages : "standard input");
    in->tools = tools ? tools : json_object_get(doc, "tools");
    in->documents = json_object_get(doc, "documents");
    in->continue_final_message = a->continues || json_is_true(json_object_get(doc, "continue_final_message"));
    in->add_generation_prompt = !a->no_prompt && !in->continue_final_message && !json_is_false(prompt);
    in->now_s = mu_chat_now_s();
    if (json_is_object(json_object_get(doc, "kwargs")) && json_object_update(vars, json_object_get(doc, "kwargs")))
        return mu_fail(err, MU_ENOMEM, "no memory for the variables");
    for (int i = 0; i < a->n_var; i++) {
        enum mu_status st = add_var(vars, a->vars[i], err);
        if (st) return st;
    }
    in->variables = vars;
    return MU_OK;
}

int mu_cmd_template(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"messages", 'm', "FILE", 0, "the conversation as JSON (standard input): an array of messages, or an object",
         0},
        {"tools", 't', "FILE", 0, "tools as JSON: an array", 0},
        {"var", 'v', "NAME=JSON", 0, "a further variable, such as enable_thinking=false", 0},
        {"no-generation-prompt", OPT_NO_PROMPT, 0, 0, "do not open the assistant's turn", 0},
        {"continue", OPT_CONTINUE, 0, 0, "end within the last message, to go on with it", 0},
        {"bos", OPT_BOS, "TEXT", 0, "the begin-of-text token (the model's; none for FILE.jinja)", 0},
        {"eos", OPT_EOS, "TEXT", 0, "the end-of-text token (the model's; none for FILE.jinja)", 0},
        {0},
    };
    static const struct argp argp = {
        options,
        parse_template,
        "MODEL|FILE.jinja",
        "Prints a conversation as the model's chat template renders it: the very prompt, and nothing else. An object "
        "in FILE has the keys messages, tools, documents, kwargs (further variables), add_generation_prompt and "
        "continue_final_message; options win."
        "\vExamples:\n"
        "  muster template model.gguf -m chat.json\n"
        "  muster template llama3.2 -m chat.json --var enable_thinking=false\n"
        "  muster template chatml.jinja <messages.json\n",
        0,
        0,
        0};
    struct template_args a = {0};
    argp_parse(&argp, argc, argv, 0, 0, &a);

    struct mu_err err = MU_ERR_INIT;
    enum mu_status st;
    struct mu_chat_template *t = NULL;
    struct mu_chat_input in = {0};
    json_t *doc = NULL, *tools = NULL, *vars = json_object();
    char *bos = NULL, *eos = NULL, *text = NULL;
    size_t len;
    MU_TRY(st, open_template(a.source, &t, &bos, &eos, &err), done);
    MU_TRY(st, load_json(a.messages, &doc, &err), done);
    if (a.tools) MU_TRY(st, load_json(a.tools, &tools, &err), done);
    MU_TRY(st, make_input(&a, doc, tools, vars, &in, &err), done);
    in.bos_token = a.bos ? a.bos : bos;
    in.eos_token = a.eos ? a.eos : eos;
    MU_TRY(st, mu_chat_template_render(t, &in, &text, &len, &err), done);
    MU_TRY(st, mu_out_write(text, len, &err), done);
done:
    mu_free(text);
    mu_free(bos);
    mu_free(eos);
    json_decref(vars);
    json_decref(tools);
    json_decref(doc);
    mu_chat_template_free(t);
    return st ? mu_cli_fail("template", &err) : MU_EXIT_OK;
}
