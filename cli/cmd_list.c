/* muster list: every model of every store, by the name that other verbs take. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "base/alloc.h"
#include "cli/cli.h"

struct list_args {
    const char *pattern;
    bool json;
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct list_args *a = state->input;
    switch (key) {
    case 'o':
        if (strcmp(arg, "json") != 0 && strcmp(arg, "text") != 0)
            argp_error(state, "-o takes text or json, not '%s'", arg);
        a->json = !strcmp(arg, "json");
        return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num) argp_error(state, "one PATTERN only");
        a->pattern = arg;
        return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

void mu_human_age(int64_t then_s, char *buf, size_t buf_bytes)
{
    static const struct {
        int64_t seconds;
        const char *unit;
    } units[] = {{365 * 86400, "year"}, {30 * 86400, "month"}, {7 * 86400, "week"},
                 {86400, "day"},        {3600, "hour"},        {60, "minute"}};
    int64_t age = (int64_t)time(NULL) - then_s;
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        int64_t n = age / units[i].seconds;
        if (n < 1) continue;
        snprintf(buf, buf_bytes, "%lld %s%s ago", (long long)n, units[i].unit, n > 1 ? "s" : "");
        return;
    }
    snprintf(buf, buf_bytes, "just now");
}

static enum mu_status print_json(const struct mu_store_list *list, const char *pattern, struct mu_err *err)
{
    json_t *all = json_array();
    for (size_t i = 0; i < list->n && all; i++) {
        const struct mu_store_entry *e = &list->entry[i];
        if (pattern && !strcasestr(e->name, pattern)) continue;
        json_t *one = json_pack("{s:o,s:s,s:o,s:I,s:s,s:s,s:I,s:s*,s:s*}", "name", mu_text_json(e->name), "store",
                                mu_store_kind_name(e->store), "path", mu_text_json(e->path), "size",
                                (json_int_t)e->bytes, "type", e->quant, "family", e->family, "modified",
                                (json_int_t)e->modified_s, "digest", e->digest, "id", e->id);
        if (!one || json_array_append_new(all, one)) {
            json_decref(all);
            all = NULL;
        }
    }
    enum mu_status st =
        all && !json_dumpf(all, stdout, JSON_INDENT(2)) ? MU_OK : mu_fail(err, MU_EIO, "cannot print the list");
    json_decref(all);
    if (!st) putchar('\n');
    return st;
}

enum { N_COL = 5 };

static enum mu_status print_table(const struct mu_store_list *list, const char *pattern, struct mu_err *err)
{
    static const bool right[N_COL] = {false, false, true, false, false};
    const char **cells = mu_calloc((list->n + 1) * N_COL, sizeof *cells);
    char(*text)[2][32] = mu_calloc(list->n + 1, sizeof *text);
    if (!cells || !text) {
        mu_free(cells);
        mu_free(text);
        return mu_fail(err, MU_ENOMEM, "no memory for a table of %zu models", list->n);
    }
    memcpy(cells, (const char *[N_COL]){"NAME", "STORE", "SIZE", "TYPE", "MODIFIED"}, N_COL * sizeof *cells);
    int n = 1;
    for (size_t i = 0; i < list->n; i++) {
        const struct mu_store_entry *e = &list->entry[i];
        if (pattern && !strcasestr(e->name, pattern)) continue;
        const char **row = cells + n++ * N_COL;
        mu_human_bytes(e->bytes, text[i][0], sizeof text[i][0]);
        mu_human_age(e->modified_s, text[i][1], sizeof text[i][1]);
        row[0] = e->name;
        row[1] = mu_store_kind_name(e->store);
        row[2] = text[i][0];
        row[3] = e->quant[0] ? e->quant : "?";
        row[4] = text[i][1];
    }
    mu_table_print(cells, n, N_COL, right);
    mu_free(cells);
    mu_free(text);
    if (n == 1 && !list->n)
        fputs("no models were found; 'muster pull NAME' gets one, 'muster list --help' says where it looks\n", stderr);
    else if (n == 1)
        fprintf(stderr, "of %zu models none has '%s' in its name\n", list->n, pattern);
    return MU_OK;
}

int mu_cmd_list(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"output", 'o', "FORMAT", 0, "text or json (text)", 0},
        {0},
    };
    static const struct argp argp = {
        options,
        parse,
        "[PATTERN]",
        "Lists the models on this machine that generate text, by the names that other verbs take for MODEL; with "
        "PATTERN those whose names contain it."
        "\vIt looks into Muster's own store ($MUSTER_MODELS, ~/.local/share/muster/models), Ollama's ($OLLAMA_MODELS, "
        "~/.ollama/models, /usr/share/ollama/.ollama/models), LM Studio's, Jan's, the Hugging Face cache "
        "($HF_HUB_CACHE, "
        "$HF_HOME/hub, ~/.cache/huggingface/hub) and llama.cpp's ($LLAMA_CACHE, ~/.cache/llama.cpp), with "
        "$XDG_CACHE_HOME for ~/.cache where it is set; nothing is copied. "
        "MUSTER_LOG=debug says what was left out and why.\n\n"
        "Examples:\n  muster list\n  muster ls qwen\n  muster list -o json\n",
        0,
        0,
        0};
    struct list_args a = {0};
    argp_parse(&argp, argc, argv, 0, 0, &a);
    struct mu_err err = MU_ERR_INIT;
    struct mu_store_list *list = NULL;
    enum mu_status st = mu_store_list(&list, &err);
    if (!st && list->unreadable)
        fprintf(
            stderr,
            "muster list: %s is a store that you must not read (Ollama's service: 'sudo usermod -aG ollama %s', then "
            "log in again)\n",
            list->unreadable, getenv("USER") ? getenv("USER") : "YOU");
    if (!st) st = a.json ? print_json(list, a.pattern, &err) : print_table(list, a.pattern, &err);
    mu_store_list_free(list);
    return st ? mu_cli_fail("list", &err) : MU_EXIT_OK;
}
