/* muster embed: texts to vectors, in this process or from a server. A vector is written as soon as it and those before it
 * are there. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/io.h"
#include "cli/cli.h"
#include "muster/v1/muster.pb-c.h"
#include "transport/rpc.h"
#include "worker/embedder.h"

enum {
    MAX_FILE = 1 << 30,
    DEFAULT_CTX = 8192,
    DEFAULT_BATCH = 32,
    /* of one call to a server */
    CALL_INPUTS = 16, /* vectors of 60,000 values fit a reply */
    CALL_BYTES = 2 << 20,
    CALL_S = 3600,
};
enum format { JSON, F32, TEXT };

struct embed_args {
    const char *model, *file, *out, *split, *server, *quantize, *adapter;
    struct mu_adapter_spec lora; /* nothing named: none but the model's own */
    enum mu_kv_type kv;
    char **text; /* the arguments after MODEL */
    int n_text, threads, ctx, chunk, batch;
    struct mu_embed want;
    enum format format;
    bool ids, special, truncate;
};

enum {
    OPT_POOLING = 256,
    OPT_RAW,
    OPT_DIMENSIONS,
    OPT_SERVER,
    OPT_OUT,
    OPT_IDS,
    OPT_SPECIAL,
    OPT_TRUNCATE,
    OPT_CHUNK,
    OPT_BATCH,
    OPT_LORA,
    OPT_ADAPTER
};

static int parse_choice(const char *arg, const char *const *names, const char *what, struct argp_state *state)
{
    int i = 0;
    while (names[i] && strcmp(names[i], arg)) i++;
    if (!names[i]) argp_error(state, "%s must be %s, %s or %s, not '%s'", what, names[0], names[1], names[2], arg);
    return i;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    static const char *const poolings[] = {"model", "mean", "last", NULL}, *const formats[] = {"json", "f32", "text",
                                                                                               NULL};
    struct embed_args *a = state->input;
    switch (key) {
    case OPT_POOLING: a->want.pooling = (enum mu_pooling)parse_choice(arg, poolings, "--pooling", state); return 0;
    case OPT_RAW: a->want.raw = true; return 0;
    case OPT_DIMENSIONS: a->want.dimensions = (int)mu_arg_long(arg, 1, 1 << 20, "--dimensions", state); return 0;
    case OPT_SERVER: a->server = arg; return 0;
    case OPT_OUT: a->out = arg; return 0;
    case OPT_IDS: a->ids = true; return 0;
    case OPT_SPECIAL: a->special = true; return 0;
    case OPT_TRUNCATE: a->truncate = true; return 0;
    case OPT_CHUNK: a->chunk = (int)mu_arg_long(arg, 2, 1 << 16, "--chunk", state); return 0;
    case OPT_BATCH: a->batch = (int)mu_arg_long(arg, 1, 256, "--batch", state); return 0;
    case MU_OPT_KV: a->kv = mu_arg_kv(arg, state); return 0;
    case OPT_LORA: mu_arg_adapter(arg, &a->lora, state); return 0;
    case OPT_ADAPTER: a->adapter = arg; return 0;
    case MU_OPT_QUANTIZE: a->quantize = mu_arg_quantize(arg, state); return 0;
    case 'o': a->format = (enum format)parse_choice(arg, formats, "-o", state); return 0;
    case 'f': a->file = arg; return 0;
    case 's': a->split = arg; return 0;
    case 't': a->threads = (int)mu_arg_long(arg, 1, 1024, "--threads", state); return 0;
    case 'c': a->ctx = (int)mu_arg_long(arg, 2, 1 << 24, "--ctx", state); return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num > 0) return ARGP_ERR_UNKNOWN; /* ARGP_KEY_ARGS has the rest */
        a->model = arg;
        return 0;
    case ARGP_KEY_ARGS:
        a->text = state->argv + state->next;
        a->n_text = state->argc - state->next;
        return 0;
    case ARGP_KEY_END:
        if (!a->model) argp_error(state, "MODEL is missing");
        if (a->server && a->lora.name[0])
            argp_error(state, "--lora loads into this process; of a server name an --adapter");
        if (a->server && (a->threads || a->ctx || a->split || a->batch || a->chunk || a->quantize || a->kv))
            argp_error(state, "--threads, --ctx, --split, --batch, --chunk, --quantize and --kv are for a model in "
                              "this process; a server has its own");
        if (a->adapter && !a->server) argp_error(state, "--adapter is one of a --server's; here use --lora PATH");
        if (a->file && a->n_text) argp_error(state, "give texts or -f FILE, not both");
        if (!a->file && !a->n_text && isatty(STDIN_FILENO)) argp_error(state, "TEXT is missing; -f FILE reads texts");
        if (a->format == F32 && !a->out && isatty(STDOUT_FILENO))
            argp_error(state, "f32 is binary: give --out FILE, or redirect standard output");
        return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

/* ---- texts ---- */

struct inputs {
    char name[256];   /* of what they come from, for errors */
    const char *item; /* … and of one of them, before its number */
    char *file;
    char **text; /* [n], NUL-terminated; in file or the command line */
    size_t n;
    struct mu_embed_text *ids; /* [n], where they are wanted as ids */
};

static void inputs_free(struct inputs *in)
{
    for (size_t i = 0; in->ids && i < in->n; i++) mu_free((int32_t *)in->ids[i].ids);
    mu_free(in->ids);
    mu_free(in->text);
    mu_free(in->file);
}

/* Cuts the file into its lines in place. */
static enum mu_status lines_cut(struct inputs *in, size_t len, struct mu_err *err)
{
    size_t n = 0;
    if (strlen(in->file) != len)
        return mu_fail(err, MU_EINVAL, "%s holds a NUL character at byte %zu", in->name, strlen(in->file) + 1);
    for (const char *p = in->file; *p; n++) {
        p += strcspn(p, "\n");
        if (*p) p++;
    }
    in->text = mu_calloc(n + 1, sizeof *in->text);
    if (!in->text) return mu_fail(err, MU_ENOMEM, "no memory for %zu lines", n);
    for (char *p = in->file; in->n < n; in->n++) {
        size_t line = strcspn(p, "\n"), text = line && p[line - 1] == '\r' ? line - 1 : line;
        bool last = !p[line];
        in->text[in->n] = p;
        p[text] = 0;
        p += last ? line : line + 1;
    }
    return MU_OK;
}

static enum mu_status inputs_read(const struct embed_args *a, struct inputs *in, struct mu_err *err)
{
    enum mu_status st = MU_OK;
    size_t len = 0;
    in->item = ", line";
    if (a->n_text) {
        in->item = "text";
        in->n = (size_t)a->n_text;
        in->text = mu_calloc(in->n, sizeof *in->text);
        if (!in->text) return mu_fail(err, MU_ENOMEM, "no memory for %zu texts", in->n);
        memcpy(in->text, a->text, in->n * sizeof *in->text);
    } else if (!a->file || !strcmp(a->file, "-")) {
        snprintf(in->name, sizeof in->name, "standard input");
        MU_TRY(st, mu_read_stdin(MAX_FILE, &in->file, &len, err), done);
        st = lines_cut(in, len, err);
    } else {
        snprintf(in->name, sizeof in->name, "%s", a->file);
        MU_TRY(st, mu_file_read(a->file, MAX_FILE, &in->file, &len, err), done);
        st = lines_cut(in, len, err);
    }
    if (st == MU_OK && !in->n) st = mu_fail(err, MU_EINVAL, "%s holds no texts", in->name);
    for (size_t i = 0; st == MU_OK && i < in->n; i++)
        if (!*in->text[i])
            st = mu_fail(err, MU_EINVAL, "%s%s %zu is empty: there is nothing to embed", in->name, in->item, i + 1);
done:
    return st;
}

/* tok NULL: texts are lists of ids. n_max 0: of any length. */
static enum mu_status inputs_encode(const struct embed_args *a, struct inputs *in, const struct mu_tokenizer *tok,
                                    size_t n_max, struct mu_err *err)
{
    in->ids = mu_calloc(in->n, sizeof *in->ids);
    if (!in->ids) return mu_fail(err, MU_ENOMEM, "no memory for %zu texts", in->n);
    for (size_t i = 0; i < in->n; i++) {
        int32_t *ids = NULL;
        size_t n = 0;
        if (!tok && *in->text[i] == '@') /* what is data here names no file */
            return mu_fail(err, MU_EINVAL, "%s%s %zu: expected token ids, found '@'", in->name, in->item, i + 1);
        enum mu_status st = tok ? mu_tokenizer_encode_whole(tok, in->text[i], strlen(in->text[i]), a->special, n_max,
                                                            &ids, &n, NULL, err)
                                : mu_arg_ids(in->text[i], &ids, &n, err);
        if (st != MU_OK) return mu_err_wrap(err, "%s%s %zu", in->name, in->item, i + 1);
        if (n_max && n > n_max) n = n_max;
        in->ids[i] = (struct mu_embed_text){ids, n};
    }
    return MU_OK;
}

static enum mu_status ids_check(const struct inputs *in, int n_vocab, struct mu_err *err)
{
    for (size_t i = 0; i < in->n; i++)
        for (size_t k = 0; k < in->ids[i].n; k++)
            if (in->ids[i].ids[k] >= n_vocab)
                return mu_fail(err, MU_EINVAL, "%s%s %zu: id %d is not in the vocabulary of %d tokens", in->name,
                               in->item, i + 1, in->ids[i].ids[k], n_vocab);
    return MU_OK;
}

/* ---- vectors ---- */

struct sink {
    enum format format;
    struct mu_file_writer *file; /* NULL: standard output */
    char *line;                  /* of a vector as text */
    size_t cap;
};

static enum mu_status put_bytes(const struct sink *k, const void *data, size_t len, struct mu_err *err)
{
    return k->file ? mu_file_writer_write(k->file, data, len, err) : mu_out_write(data, len, err);
}

static enum mu_status put_vector(void *ctx, size_t at, const float *value, int n, struct mu_err *err)
{
    enum { NUMBER_BYTES = 20 }; /* -1.23456789e-38, and a comma */
    struct sink *k = ctx;
    (void)at;
    if (k->format == F32) return put_bytes(k, value, (size_t)n * sizeof *value, err);
    size_t need = (size_t)n * NUMBER_BYTES + 8, len = 0;
    if (k->cap < need) {
        char *more = mu_reallocarray(k->line, need, 1);
        if (!more) return mu_fail(err, MU_ENOMEM, "no memory for a line of %d numbers", n);
        k->line = more;
        k->cap = need;
    }
    if (k->format == JSON) k->line[len++] = '[';
    for (int i = 0; i < n; i++)
        len += (size_t)snprintf(k->line + len, need - len, "%s%.9g",
                                !i                  ? ""
                                : k->format == JSON ? ","
                                                    : " ",
                                (double)value[i]);
    if (k->format == JSON) k->line[len++] = ']';
    k->line[len++] = '\n';
    return put_bytes(k, k->line, len, err);
}

/* ---- in this process ---- */

static enum mu_status embed_local(const struct embed_args *a, struct inputs *in, struct sink *sink, struct mu_err *err)
{
    enum mu_status st;
    struct mu_opened o = {0};
    struct mu_solo *solo = NULL;
    struct mu_embedder *embedder = NULL;
    struct mu_bar bar = {.label = "loading"};
    struct mu_solo_options opt = {.pin = 1, .load_progress = mu_bar_load, .load_ctx = &bar};
    struct mu_embed want = a->want;
    MU_TRY(st, mu_split_parse(a->split ? a->split : "1", &opt.split, err), done);
    MU_TRY(st, mu_cli_open(a->model, !a->ids, &o, err), done);
    MU_TRY(st, mu_model_quantize(o.model, a->quantize, err), done);
    MU_TRY(st, mu_cli_adapt(&o, &a->lora, err), done);
    const struct mu_config *cfg = &o.model->cfg;
    int trained = cfg->n_ctx_train, ctx = a->ctx ? a->ctx : trained < DEFAULT_CTX ? trained : DEFAULT_CTX;
    if (ctx > trained) {
        st = mu_fail(err, MU_EINVAL, "--ctx %d is more than the %d tokens that the model was made for", ctx, trained);
        goto done;
    }
    if (want.dimensions > cfg->d_model) {
        st = mu_fail(err, MU_EINVAL, "--dimensions %d is more than the model's %d", want.dimensions, cfg->d_model);
        goto done;
    }
    if (!want.pooling) want.pooling = cfg->pooling;
    MU_TRY(st, inputs_encode(a, in, o.tok, a->truncate ? (size_t)ctx : 0, err), done);
    MU_TRY(st, ids_check(in, cfg->n_vocab, err), done);
    size_t longest = 0, total = 0;
    for (size_t i = 0; i < in->n; i++) {
        if (in->ids[i].n > (size_t)ctx) {
            st = mu_fail(err, MU_ELIMIT,
                         "%s%s %zu has %zu tokens, the context is %d: shorten it, raise --ctx, or give "
                         "--truncate",
                         in->name, in->item, i + 1, in->ids[i].n, ctx);
            goto done;
        }
        total += in->ids[i].n;
        if (in->ids[i].n > longest) longest = in->ids[i].n;
    }
    int step_tokens = a->chunk ? a->chunk : MU_STEP_TOKENS, batch = a->batch ? a->batch : DEFAULT_BATCH,
        n_slot = (size_t)batch < in->n ? batch : (int)in->n;
    /* Pages for what a few steps hold and for the longest text, if that is less than all slots full. */
    size_t page_tokens = (size_t)n_slot * MU_PAGE_TOKENS + longest + 2 * (size_t)step_tokens,
           all = longest * (size_t)n_slot;
    if (all > page_tokens) all = page_tokens;
    opt.model = o.model;
    opt.adapters = o.adapters;
    opt.n_thread = a->threads ? a->threads : mu_default_threads(&opt.split);
    opt.serving = (struct mu_serving){.n_ctx = ctx < 2 ? 2 : ctx,
                                      .n_slot = n_slot,
                                      .n_page = (uint32_t)(all / MU_PAGE_TOKENS) + 2 * (uint32_t)n_slot,
                                      .step_tokens = step_tokens,
                                      .kv = a->kv};
    MU_TRY(st,
           mu_cli_fit(o.model, o.adapters, NULL, &opt.split, MU_FIT_CTX | MU_FIT_SLOTS, NULL, &opt.serving, NULL, err),
           done);
    MU_TRY(st, mu_solo_open(&opt, &solo, err), done);
    MU_TRY(st, mu_embedder_create(solo, o.model, &embedder, err), done);
    mu_embedder_adapt(embedder, o.adapters ? 1 : 0, 1);
    int64_t start = mu_now_ns();
    MU_TRY(st, mu_embedder_run(embedder, &want, in->ids, in->n, put_vector, sink, err), done);
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "[%zu texts, %zu tokens in %.2f s]\n", in->n, total, (double)(mu_now_ns() - start) / 1e9);
done:
    mu_embedder_destroy(embedder);
    mu_solo_close(solo);
    mu_cli_close(&o);
    return st;
}

/* ---- from a server ---- */

/* Inputs [at, at + n) of one call. */
static enum mu_status call_once(struct mu_rpc_channel *c, const struct embed_args *a, const struct inputs *in,
                                size_t at, size_t n, struct sink *sink, struct mu_err *err)
{
    Muster__V1__EmbedInput input[CALL_INPUTS], *inputs[CALL_INPUTS];
    Muster__V1__Ids ids[CALL_INPUTS];
    Muster__V1__EmbedRequest q = MUSTER__V1__EMBED_REQUEST__INIT;
    ProtobufCMessage *msg = NULL;
    for (size_t i = 0; i < n; i++) {
        inputs[i] = &input[i];
        muster__v1__embed_input__init(&input[i]);
        muster__v1__ids__init(&ids[i]);
        if (in->ids) {
            ids[i].id = (int32_t *)in->ids[at + i].ids;
            ids[i].n_id = in->ids[at + i].n;
            input[i].input_case = MUSTER__V1__EMBED_INPUT__INPUT_IDS;
            input[i].ids = &ids[i];
        } else {
            input[i].input_case = MUSTER__V1__EMBED_INPUT__INPUT_TEXT;
            input[i].text = in->text[at + i];
        }
    }
    q.model = (char *)a->model;
    q.n_input = n;
    q.input = inputs;
    q.pooling = a->want.pooling == MU_POOL_MEAN   ? MUSTER__V1__POOLING__POOLING_MEAN
                : a->want.pooling == MU_POOL_LAST ? MUSTER__V1__POOLING__POOLING_LAST
                                                  : MUSTER__V1__POOLING__POOLING_MODEL;
    q.dimensions = (uint32_t)a->want.dimensions;
    q.raw = a->want.raw;
    q.truncate = a->truncate;
    q.parse_special = a->special;
    if (a->adapter) q.adapter = (char *)a->adapter;
    enum mu_status st = mu_rpc_unary(c, "/muster.v1.Muster/Embed", &q.base, &muster__v1__embed_reply__descriptor,
                                     mu_now_ns() + CALL_S * MU_SEC, &msg, err);
    if (st != MU_OK) return at ? mu_err_wrap(err, "%s%s %zu and on", in->name, in->item, at + 1) : st;
    const Muster__V1__EmbedReply *r = (const Muster__V1__EmbedReply *)msg;
    if (r->n_embedding != n)
        st = mu_fail(err, MU_EPROTO, "%s answered with %zu vectors for %zu texts", a->server, r->n_embedding, n);
    for (size_t i = 0; st == MU_OK && i < n; i++)
        st = put_vector(sink, at + i, r->embedding[i]->value, (int)r->embedding[i]->n_value, err);
    mu_rpc_message_free(msg);
    return st;
}

static size_t input_bytes(const struct inputs *in, size_t at)
{
    return in->ids ? in->ids[at].n * 5 : strlen(in->text[at]);
}

static enum mu_status embed_remote(const struct embed_args *a, struct inputs *in, struct sink *sink, struct mu_err *err)
{
    enum mu_status st;
    struct mu_rpc_channel *c = NULL;
    ProtobufCMessage *msg = NULL;
    Muster__V1__ModelStatusRequest status = MUSTER__V1__MODEL_STATUS_REQUEST__INIT;
    mu_rpc_init();
    if (a->ids) MU_TRY(st, inputs_encode(a, in, NULL, 0, err), done);
    MU_TRY(st, mu_rpc_channel_open(a->server, &c, err), done);
    /* First something that is answered at once, so that a server that is not there is told at once. */
    status.model = (char *)a->model;
    st = mu_rpc_unary(c, "/muster.v1.Muster/ModelStatus", &status.base, &muster__v1__model_status_reply__descriptor,
                      mu_now_ns() + 10 * MU_SEC, &msg, err);
    if (st == MU_EPEER || st == MU_ETIMEOUT) mu_no_server(a->server, err);
    for (size_t at = 0, n; st == MU_OK && at < in->n; at += n) {
        size_t bytes = input_bytes(in, at);
        for (n = 1; n < CALL_INPUTS && at + n < in->n; n++) {
            bytes += input_bytes(in, at + n);
            if (bytes > CALL_BYTES) break;
        }
        st = call_once(c, a, in, at, n, sink, err);
    }
done:
    mu_rpc_message_free(msg);
    mu_rpc_channel_close(c);
    mu_rpc_shutdown();
    return st;
}

int mu_cmd_embed(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"file", 'f', "FILE", 0, "a text a line from FILE; - is standard input", 0},
        {"pooling", OPT_POOLING, "P", 0, "mean of all tokens, or last token (model: what the file says, else last)", 0},
        {"no-normalize", OPT_RAW, 0, 0, "leave vectors as long as they are", 0},
        {"dimensions", OPT_DIMENSIONS, "N", 0, "the first N values only, normalised after that", 0},
        {"truncate", OPT_TRUNCATE, 0, 0, "cut texts that are longer than the context", 0},
        {"special", OPT_SPECIAL, 0, 0, "special tokens in texts become their ids", 0},
        {"ids", OPT_IDS, 0, 0, "texts are token ids: 1,2,3", 0},
        {"output", 'o', "FORMAT", 0, "json: an array a line; text: numbers with blanks; f32: binary (json)", 0},
        {"out", OPT_OUT, "FILE", 0, "write to FILE, which appears when it is complete", 0},
        {"server", OPT_SERVER, "HOST:PORT", 0, "use a server instead of this process", 0},
        {"ctx", 'c', "N", 0, "context in tokens (the model's, at most 8192)", 0},
        {"lora", OPT_LORA, "PATH[:SCALE]", 0,
         "with a LoRA adapter: a GGUF file or a PEFT folder; none: without the model's own", 0},
        {"adapter", OPT_ADAPTER, "NAME", 0, "with an adapter that the server has loaded; none: with none", 0},
        {"threads", 't', "N", 0, "threads a rank (all cores)", 0},
        {"split", 's', "S", 0, "split over ranks in this process; 1@gpu0: on GPU 0 (1)", 0},
        {"batch", OPT_BATCH, "N", 0, "texts worked on at once (32)", 0},
        {"chunk", OPT_CHUNK, "N", 0, "tokens a step (512)", 0},
        MU_QUANTIZE_OPTION(0),
        MU_KV_OPTION(0),
        {0},
    };
    static const struct argp argp = {
        options,
        parse,
        "MODEL [TEXT...]",
        "Writes a vector for each TEXT, line of FILE or line of standard input. The values are the same for every "
        "split, "
        "number of threads, chunk, batch and MUSTER_KERNELS, and from a server."
        "\vExamples:\n"
        "  muster embed model.gguf 'a small boat' 'a little ship'\n"
        "  muster embed model.gguf -f lines.txt --dimensions 256 -o f32 \\\n"
        "      --out vectors.f32\n"
        "  muster embed default -f - --server 127.0.0.1:7400 <lines.txt >vectors.jsonl\n",
        0,
        0,
        0};
    struct embed_args a = {0};
    argp_parse(&argp, argc, argv, 0, 0, &a);
    struct mu_err err = MU_ERR_INIT;
    struct inputs in = {0};
    struct sink sink = {.format = a.format};
    enum mu_status st;
    MU_TRY(st, inputs_read(&a, &in, &err), done);
    if (a.out) MU_TRY(st, mu_file_writer_open(a.out, &sink.file, &err), done);
    st = a.server ? embed_remote(&a, &in, &sink, &err) : embed_local(&a, &in, &sink, &err);
done:
    if (sink.file) {
        enum mu_status closed = mu_file_writer_close(sink.file, st == MU_OK, st == MU_OK ? &err : NULL);
        if (st == MU_OK) st = closed;
    }
    mu_free(sink.line);
    inputs_free(&in);
    return st ? mu_cli_fail("embed", &err) : MU_EXIT_OK;
}
