/* muster tokenize, muster detokenize: the vocabulary of a model file, as JSON. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/io.h"
#include "cli/cli.h"

enum { MAX_TEXT = 1 << 30 };

struct tok_args {
    const char *model, *text, *file;
    bool special, bos;
};

static error_t parse_tok(int key, char *arg, struct argp_state *state)
{
    struct tok_args *a = state->input;
    switch (key) {
    case 's': a->special = true; return 0;
    case 'b': a->bos = true; return 0;
    case 'f': a->file = arg; return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num == 0)
            a->model = arg;
        else if (state->arg_num == 1)
            a->text = arg;
        else
            argp_error(state, "too many arguments; put the text, or the ids, in quotes");
        return 0;
    case ARGP_KEY_END:
        if (!a->model) argp_error(state, "MODEL is missing");
        if (a->file && a->text) argp_error(state, "give TEXT or -f FILE, not both");
        return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

static enum mu_status get_text(const struct tok_args *a, char **text_out, size_t *len_out, struct mu_err *err)
{
    if (a->file) return mu_file_read(a->file, MAX_TEXT, text_out, len_out, err);
    if (!a->text) return mu_read_stdin(MAX_TEXT, text_out, len_out, err);
    *text_out = mu_strdup(a->text);
    *len_out = strlen(a->text);
    return *text_out ? MU_OK : mu_fail(err, MU_ENOMEM, "no memory for the text");
}

/* One line. Takes the document; NULL: no memory for it. */
static enum mu_status print_json(json_t *doc, struct mu_err *err)
{
    char *text = doc ? json_dumps(doc, 0) : NULL;
    enum mu_status st = text ? mu_out_write(text, strlen(text), err) : mu_fail(err, MU_ENOMEM, "no memory to print it");
    if (st == MU_OK) st = mu_out_write("\n", 1, err);
    free(text); /* jansson's own */
    json_decref(doc);
    return st;
}

static enum mu_status print_ids(const int32_t *ids, size_t n, bool bos_first, int bos, struct mu_err *err)
{
    json_t *list = json_array(), *doc = json_object();
    bool ok = list && doc;
    if (ok && bos_first && bos >= 0) ok = !json_array_append_new(list, json_integer(bos));
    for (size_t i = 0; ok && i < n; i++) ok = !json_array_append_new(list, json_integer(ids[i]));
    ok = ok && !json_object_set(doc, "ids", list);
    json_decref(list);
    if (ok) return print_json(doc, err);
    json_decref(doc);
    return mu_fail(err, MU_ENOMEM, "no memory to print %zu ids", n);
}

int mu_cmd_tokenize(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"special", 's', 0, 0, "special tokens in the text become their ids", 0},
        {"bos", 'b', 0, 0, "begin with the model's begin-of-text token", 0},
        {"file", 'f', "FILE", 0, "take the text from FILE", 0},
        {0},
    };
    static const struct argp argp = {options,
                                     parse_tok,
                                     "MODEL [TEXT]",
                                     "Prints {\"ids\": […]} for TEXT, FILE or standard input."
                                     "\vExamples:\n  muster tokenize model.gguf 'Hello world'\n  muster tokenize "
                                     "model.gguf --special '<|eot_id|>'\n",
                                     0,
                                     0,
                                     0};
    struct tok_args a = {0};
    argp_parse(&argp, argc, argv, 0, 0, &a);

    struct mu_err err = MU_ERR_INIT;
    enum mu_status st;
    struct mu_opened o = {0};
    struct mu_gguf *g = NULL;
    char *text = NULL;
    size_t len, n = 0;
    int32_t *ids = NULL;
    /* Only the vocabulary is needed, so vocabulary-only files are fine. */
    MU_TRY(st, mu_store_find(a.model, &o.found, &err), done);
    MU_TRY(st, mu_gguf_open(o.found->path, &g, &err), done);
    MU_TRY(st, mu_tokenizer_open(g, &o.tok, &err), done);
    MU_TRY(st, get_text(&a, &text, &len, &err), done);
    MU_TRY(st, mu_tokenizer_encode(o.tok, text, len, a.special, &ids, &n, &err), done);
    MU_TRY(st, print_ids(ids, n, a.bos, mu_tokenizer_bos(o.tok), &err), done);
done:
    mu_free(ids);
    mu_free(text);
    mu_cli_close(&o);
    mu_gguf_close(g);
    return st ? mu_cli_fail("tokenize", &err) : MU_EXIT_OK;
}

int mu_cmd_detokenize(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"special", 's', 0, 0, "show special tokens as their text", 0},
        {0},
    };
    static const struct argp argp = {
        options,
        parse_tok,
        "MODEL IDS",
        "Prints {\"text\": \"…\"} for IDS: '1,2,3' or @FILE."
        "\vExamples:\n  muster detokenize model.gguf 9906,1917\n  muster detokenize model.gguf @ids.txt\n",
        0,
        0,
        0};
    struct tok_args a = {0};
    argp_parse(&argp, argc, argv, 0, 0, &a);
    struct mu_err err = MU_ERR_INIT;
    if (!a.text) {
        mu_fail(&err, MU_EINVAL, "IDS are missing; see 'muster detokenize --help'");
        mu_cli_fail("detokenize", &err);
        return MU_EXIT_USAGE;
    }
    enum mu_status st;
    struct mu_opened o = {0};
    struct mu_gguf *g = NULL;
    int32_t *ids = NULL;
    size_t n, len = 0;
    char *text = NULL;
    size_t cap = 0;
    MU_TRY(st, mu_store_find(a.model, &o.found, &err), done);
    MU_TRY(st, mu_gguf_open(o.found->path, &g, &err), done);
    MU_TRY(st, mu_tokenizer_open(g, &o.tok, &err), done);
    MU_TRY(st, mu_arg_ids(a.text, &ids, &n, &err), done);
    for (size_t i = 0; i < n; i++)
        if (ids[i] >= mu_tokenizer_n_vocab(o.tok)) {
            st = mu_fail(&err, MU_EINVAL, "id %d is not in the vocabulary of %d tokens", ids[i],
                         mu_tokenizer_n_vocab(o.tok));
            goto done;
        }
    /* JSON holds text only: decode, then let a streamer's rule replace bytes that are no character. */
    struct mu_streamer s;
    mu_streamer_init(&s, o.tok, a.special);
    char *raw = NULL;
    size_t raw_len = 0;
    MU_TRY(st, mu_tokenizer_decode(o.tok, ids, n, a.special, &raw, &raw_len, &err), done);
    json_t *str = json_stringn(raw, raw_len);
    if (!str) { /* not valid UTF-8 as a whole */
        for (size_t i = 0; i < n && !st; i++) st = mu_streamer_push(&s, ids[i], &text, &len, &cap);
        if (!st) st = mu_streamer_finish(&s, &text, &len, &cap);
        str = st ? NULL : json_stringn(text ? text : "", len);
    }
    mu_free(raw);
    json_t *doc = str ? json_pack("{s:o}", "text", str) : NULL;
    st = st ? mu_fail(&err, st, "no memory for the text") : print_json(doc, &err);
done:
    mu_free(text);
    mu_free(ids);
    mu_cli_close(&o);
    mu_gguf_close(g);
    return st ? mu_cli_fail("detokenize", &err) : MU_EXIT_OK;
}
