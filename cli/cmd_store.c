/* muster create, cp, rm: changing Muster's own store. */
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/io.h"
#include "cli/cli.h"
#include "model/modelfile.h"
#include "model/store_own.h"

enum { MAX_NAMES = 256 };

/* ---- create ---- */

struct create_args {
    const char *name, *file;
};

static error_t parse_create(int key, char *arg, struct argp_state *state)
{
    struct create_args *a = state->input;
    switch (key) {
    case 'f': a->file = arg; return 0;
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

/* What FROM names: a path, or else a model. */
static enum mu_status find_base(const char *from, const char *folder, struct mu_store_model **base_out,
                                struct mu_err *err)
{
    char *path = mu_modelfile_path(folder, from);
    size_t n = strlen(from);
    bool is_path = from[0] == '/' || !strncmp(from, "~/", 2) || !strncmp(from, "./", 2) || !strncmp(from, "../", 3) ||
                   (n > 5 && !strcasecmp(from + n - 5, ".gguf"));
    if (!path) return mu_fail(err, MU_ENOMEM, "no memory for a path");
    enum mu_status st = mu_store_find(is_path || access(path, F_OK) == 0 ? path : from, base_out, err);
    mu_free(path);
    return st;
}

static enum mu_status create(const struct create_args *a, struct mu_err *err)
{
    char *text = NULL, *folder = NULL;
    size_t len;
    struct mu_modelfile *file = NULL;
    struct mu_store_model *base = NULL;
    struct mu_gguf *gguf = NULL;
    const char *slash = strrchr(a->file, '/');
    enum mu_status st;
    if (!strcmp(a->file, "-"))
        MU_TRY(st, mu_read_stdin(MU_MODELFILE_MAX_BYTES, &text, &len, err), done);
    else
        MU_TRY(st, mu_file_read(a->file, MU_MODELFILE_MAX_BYTES, &text, &len, err), done);
    folder = slash ? mu_strndup(a->file, slash == a->file ? 1 : (size_t)(slash - a->file)) : mu_strdup(".");
    if (!folder) {
        st = mu_fail(err, MU_ENOMEM, "no memory for a path");
        goto done;
    }
    MU_TRY(st, mu_modelfile_parse(text, len, a->file, &file, err), done);
    MU_TRY(st, find_base(file->from, folder, &base, err), done);
    if (base->entry.store == MU_STORE_NONE) MU_TRY(st, mu_gguf_open(base->path, &gguf, err), done); /* is it a model? */
    MU_TRY(st, mu_own_create(a->name, base, file, folder, err), done);
    if (file->template && !strstr(file->template, "{%"))
        fputs("muster create: the TEMPLATE is in Go's language: it is kept and shown, but the chat template in the "
              "model's "
              "file is what is used (a Jinja template would be)\n",
              stderr);
    printf("created %s\n", a->name);
done:
    mu_gguf_close(gguf);
    mu_store_model_free(base);
    mu_modelfile_free(file);
    mu_free(folder);
    mu_free(text);
    return st;
}

int mu_cmd_create(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"file", 'f', "FILE", 0, "the Modelfile (./Modelfile); - is standard input", 0},
        {0},
    };
    static const struct argp argp = {
        options,
        parse_create,
        "NAME",
        "Makes a model NAME in Muster's own store of a Modelfile: another model, with a system prompt, parameters, "
        "adapters "
        "and so on of its own. Weights are not copied: what FROM names must stay where it is."
        "\vA Modelfile:\n"
        "  FROM llama3.2\n"
        "  PARAMETER temperature 0.2\n"
        "  SYSTEM \"\"\"You answer in one sentence.\"\"\"\n\n"
        "Also TEMPLATE, ADAPTER, LICENSE and MESSAGE user|assistant TEXT.\n\n"
        "Examples:\n  muster create terse -f Modelfile\n  echo 'FROM ./model.gguf' | muster create mine -f -\n",
        0,
        0,
        0};
    struct create_args a = {.file = "Modelfile"};
    argp_parse(&argp, argc, argv, 0, 0, &a);
    struct mu_err err = MU_ERR_INIT;
    return create(&a, &err) ? mu_cli_fail("create", &err) : MU_EXIT_OK;
}

/* ---- cp, rm ---- */

struct names {
    const char *name[MAX_NAMES];
    int n, least, most;
};

static error_t parse_names(int key, char *arg, struct argp_state *state)
{
    struct names *a = state->input;
    switch (key) {
    case ARGP_KEY_ARG:
        if (a->n == a->most) argp_error(state, "at most %d names", a->most);
        a->name[a->n++] = arg;
        return 0;
    case ARGP_KEY_END:
        if (a->n < a->least) argp_error(state, "%s", a->least == 1 ? "MODEL is missing" : "expected MODEL and NAME");
        return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

int mu_cmd_cp(int argc, char **argv)
{
    static const struct argp argp = {
        NULL,
        parse_names,
        "MODEL NAME",
        "Gives MODEL, of any store, another name in Muster's own store. Weights are not copied."
        "\vExamples:\n  muster cp llama3.2 mine\n  muster cp mine user/mine:v2\n",
        0,
        0,
        0};
    struct names a = {.least = 2, .most = 2};
    argp_parse(&argp, argc, argv, 0, 0, &a);
    struct mu_err err = MU_ERR_INIT;
    if (mu_own_copy(a.name[0], a.name[1], &err)) return mu_cli_fail("cp", &err);
    printf("copied %s to %s\n", a.name[0], a.name[1]);
    return MU_EXIT_OK;
}

int mu_cmd_rm(int argc, char **argv)
{
    static const struct argp argp = {NULL,
                                     parse_names,
                                     "MODEL...",
                                     "Removes models from Muster's own store; files that another of its models uses "
                                     "stay. Models of other programs are "
                                     "theirs to remove."
                                     "\vExamples:\n  muster rm mine\n  muster rm hf.co/user/repo:Q4_K_M llama3.2:1b\n",
                                     0,
                                     0,
                                     0};
    struct names a = {.least = 1, .most = MAX_NAMES};
    argp_parse(&argp, argc, argv, 0, 0, &a);
    int status = MU_EXIT_OK;
    for (int i = 0; i < a.n; i++) {
        struct mu_err err = MU_ERR_INIT;
        uint64_t freed;
        char bytes[32];
        if (mu_own_remove(a.name[i], &freed, &err)) {
            status = mu_cli_fail("rm", &err);
            continue;
        }
        mu_human_bytes(freed, bytes, sizeof bytes);
        printf("removed %s (%s)\n", a.name[i], bytes);
    }
    return status;
}
