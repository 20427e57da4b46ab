/* muster run: a completion, in this process or from a server, streamed to standard output. Ctrl-C stops the generation and not the program. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "cli/cli.h"
#include "muster/v1/muster.pb-c.h"
#include "transport/rpc.h"
#include "worker/solo.h"

enum { MAX_STOPS = 16, MAX_PROMPT_BYTES = 64 << 20 };

static const double MIN_TEMPERATURE = 1e-4; /* below it logits divided by it may overflow; it is greedy long before */

struct run_args {
    const char *model, *prompt, *server, *quantize, *stop[MAX_STOPS];
    int n_stop, max_tokens, threads, ctx;
    struct mu_solo_sampling sampling;
    bool seed_set, ignore_end, special, quiet;
    struct mu_adapter_spec lora;
    const char *adapter; /* of the server */
};

enum {
    OPT_TOPK = 256,
    OPT_TOPP,
    OPT_SEED,
    OPT_STOP,
    OPT_IGNORE,
    OPT_SPECIAL,
    OPT_SERVER,
    OPT_QUIET,
    OPT_LORA,
    OPT_ADAPTER
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct run_args *a = state->input;
    switch (key) {
    case 'n': a->max_tokens = (int)mu_arg_long(arg, 1, 1 << 24, "--max-tokens", state); return 0;
    case 't': a->threads = (int)mu_arg_long(arg, 1, 1024, "--threads", state); return 0;
    case 'c': a->ctx = (int)mu_arg_long(arg, 2, 1 << 24, "--ctx", state); return 0;
    case 'T':
        a->sampling.temperature = (float)mu_arg_double(arg, 0, 100, "--temperature", state);
        if (a->sampling.temperature > 0 && a->sampling.temperature < MIN_TEMPERATURE)
            argp_error(state, "--temperature must be 0 or at least %g", MIN_TEMPERATURE);
        return 0;
    case OPT_TOPK: a->sampling.top_k = (uint32_t)mu_arg_long(arg, 0, 1 << 20, "--top-k", state); return 0;
    case OPT_TOPP: a->sampling.top_p = (float)mu_arg_double(arg, 0, 1, "--top-p", state); return 0;
    case OPT_SEED:
        a->sampling.seed = (uint64_t)mu_arg_long(arg, 0, INT64_MAX, "--seed", state);
        a->seed_set = true;
        return 0;
    case OPT_STOP:
        if (a->n_stop == MAX_STOPS) argp_error(state, "at most %d stop strings", MAX_STOPS);
        if (!*arg) argp_error(state, "a stop string must not be empty");
        a->stop[a->n_stop++] = arg;
        return 0;
    case OPT_IGNORE: a->ignore_end = true; return 0;
    case OPT_SPECIAL: a->special = true; return 0;
    case OPT_QUIET: a->quiet = true; return 0;
    case OPT_SERVER: a->server = arg; return 0;
    case MU_OPT_QUANTIZE: a->quantize = mu_arg_quantize(arg, state); return 0;
    case OPT_LORA: mu_arg_adapter(arg, &a->lora, state); return 0;
    case OPT_ADAPTER: a->adapter = arg; return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num == 0)
            a->model = arg;
        else if (state->arg_num == 1)
            a->prompt = arg;
        else
            argp_error(state, "too many arguments; put the prompt in quotes");
        return 0;
    case ARGP_KEY_END:
        if (!a->model) argp_error(state, "MODEL is missing");
        if (a->lora.path[0] && a->server)
            argp_error(state, "--lora loads into this process; of a server name an --adapter");
        if (a->adapter && !a->server) argp_error(state, "--adapter is one of a --server's; here use --lora PATH");
        return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

static void print_rate(const struct run_args *a, int n_prompt, int n_new, double first_s, double total_s)
{
    if (a->quiet || !isatty(STDERR_FILENO)) return;
    double decode_s = total_s - first_s;
    fprintf(stderr, "[%d prompt tokens in %.2f s; %d new tokens", n_prompt, first_s, n_new);
    if (n_new > 1 && decode_s > 0) fprintf(stderr, ", %.1f a second", (n_new - 1) / decode_s);
    fputs("]\n", stderr);
}

/* ---- in this process ---- */

struct local {
    struct mu_opened o;
    struct mu_solo *solo;
};

static void local_close(struct local *l)
{
    mu_solo_close(l->solo);
    mu_cli_close(&l->o);
}

static enum mu_status local_open(const struct run_args *a, struct local *l, struct mu_err *err)
{
    enum mu_status st;
    struct mu_bar bar = {.label = "loading"};
    MU_TRY(st, mu_cli_open(a->model, true, &l->o, err), fail);
    MU_TRY(st, mu_model_quantize(l->o.model, a->quantize, err), fail);
    int trained = l->o.model->cfg.n_ctx_train, ctx = a->ctx ? a->ctx : trained < 8192 ? trained : 8192;
    if (ctx > trained) {
        st = mu_fail(err, MU_EINVAL, "--ctx %d is more than the %d tokens that the model was made for", ctx, trained);
        goto fail;
    }
    MU_TRY(st, mu_cli_adapt(&l->o, &a->lora, err), fail);
    struct mu_solo_options opt = {.model = l->o.model,
                                  .adapters = l->o.adapters,
                                  .n_thread = a->threads ? a->threads : mu_default_threads(1),
                                  .pin = 1,
                                  .serving = {.n_ctx = ctx, .n_slot = 1, .step_tokens = ctx < 512 ? ctx : 512},
                                  .load_progress = mu_bar_load,
                                  .load_ctx = &bar};
    MU_TRY(st, mu_split_parse("1", &opt.split, err), fail);
    MU_TRY(st, mu_solo_open(&opt, &l->solo, err), fail);
    mu_solo_adapt(l->solo, 0, l->o.adapters ? 1 : 0, 1);
    return MU_OK;
fail:
    local_close(l);
    *l = (struct local){0};
    return st;
}

/* Where the first stop string begins in text, or len. *hold_out: the longest tail that could still become one. */
static size_t find_stop(const struct run_args *a, const char *text, size_t len, size_t *hold_out)
{
    size_t first = len, hold = 0;
    for (int i = 0; i < a->n_stop; i++) {
        size_t n = strlen(a->stop[i]);
        const char *hit = memmem(text, len, a->stop[i], n);
        if (hit && (size_t)(hit - text) < first) first = (size_t)(hit - text);
        for (size_t k = n - 1 < len ? n - 1 : len; k > hold; k--)
            if (!memcmp(text + len - k, a->stop[i], k)) hold = k;
    }
    *hold_out = hold;
    return first;
}

static enum mu_status local_generate(struct local *l, const struct run_args *a, const char *prompt, struct mu_err *err)
{
    enum mu_status st;
    const struct mu_tokenizer *tok = l->o.tok;
    int32_t *ids = NULL;
    size_t n = 0, text_len = 0, text_cap = 0, shown = 0;
    char *text = NULL;
    struct mu_streamer streamer;
    mu_streamer_init(&streamer, tok, a->special);
    MU_TRY(st, mu_tokenizer_encode(tok, prompt, strlen(prompt), a->special, &ids, &n, err), done);
    if (mu_tokenizer_add_bos(tok) && mu_tokenizer_bos(tok) >= 0) {
        int32_t *more = mu_reallocarray(ids, n + 1, sizeof *ids);
        if (!more) {
            st = mu_fail(err, MU_ENOMEM, "no memory for the prompt");
            goto done;
        }
        ids = more;
        memmove(ids + 1, ids, n * sizeof *ids);
        ids[0] = mu_tokenizer_bos(tok);
        n++;
    }
    size_t ctx = (size_t)mu_solo_serving(l->solo)->n_ctx;
    if (!n) {
        st =
            mu_fail(err, MU_EINVAL, "the prompt is empty and this model has no begin-of-text token: give it some text");
        goto done;
    }
    if (n >= ctx) {
        st =
            mu_fail(err, MU_ELIMIT, "the prompt has %zu tokens, the context is %zu: shorten it or raise --ctx", n, ctx);
        goto done;
    }
    size_t limit = a->max_tokens && (size_t)a->max_tokens < ctx - n ? (size_t)a->max_tokens : ctx - n;
    mu_solo_reset(l->solo, 0);
    int64_t start = mu_now_ns(), first = 0;
    int32_t id = -1;
    int n_new = 0;
    size_t stop_at = 0, hold = 0;
    bool stopped = false;
    MU_TRY(st, mu_solo_feed(l->solo, 0, ids, n, MU_OUT_SAMPLE, &a->sampling, NULL, NULL, &id, err), done);
    for (;;) {
        if (!first) first = mu_now_ns();
        if (id < 0) {
            st = mu_fail(err, MU_ENONFINITE,
                         "the logits after token %d are not finite: the file's weights may be damaged", n_new);
            goto done;
        }
        n_new++;
        if (!a->ignore_end && mu_tokenizer_is_end(tok, id)) break;
        MU_TRY(st, mu_streamer_push(&streamer, id, &text, &text_len, &text_cap), done);
        stop_at = find_stop(a, text, text_len, &hold);
        stopped = stop_at < text_len;
        size_t until = stopped ? stop_at : text_len - hold;
        if (until > shown) {
            MU_TRY(st, mu_out_write(text + shown, until - shown, err), done);
            shown = until;
        }
        if (stopped || mu_interrupted || (size_t)n_new >= limit) break;
        MU_TRY(st, mu_solo_feed(l->solo, 0, &id, 1, MU_OUT_SAMPLE, &a->sampling, NULL, NULL, &id, err), done);
    }
    if (!stopped) {
        MU_TRY(st, mu_streamer_finish(&streamer, &text, &text_len, &text_cap), done);
        if (text_len > shown) MU_TRY(st, mu_out_write(text + shown, text_len - shown, err), done);
    }
    MU_TRY(st, mu_out_write("\n", 1, err), done);
    print_rate(a, (int)n, n_new, (double)(first - start) / 1e9, (double)(mu_now_ns() - start) / 1e9);
done:
    mu_free(text);
    mu_free(ids);
    return st;
}

/* ---- from a server ---- */

struct remote {
    pthread_mutex_t lock; /* guards what follows; the poll thread writes it */
    pthread_cond_t cond;
    bool done;
    enum mu_rpc_code code;
    char text[MU_ERR_TEXT];
    int n_prompt, n_new, resumed;
    int64_t start, first;
    bool printed;
    struct mu_err unwritten; /* why standard output takes no more */
};

static void on_reply(struct mu_rpc_stream *s, const ProtobufCMessage *msg, void *ctx)
{
    (void)s;
    struct remote *r = ctx;
    const Muster__V1__GenerateReply *reply = (const Muster__V1__GenerateReply *)msg;
    pthread_mutex_lock(&r->lock);
    if (reply->text && *reply->text && !r->unwritten.code) {
        r->printed = true;
        if (mu_out_write(reply->text, strlen(reply->text), &r->unwritten))
            mu_interrupted = 1; /* nobody reads: stop the server's work too */
    }
    if (!r->first && reply->text && *reply->text) r->first = mu_now_ns();
    if (reply->usage) {
        r->n_prompt = (int)reply->usage->prompt_tokens;
        r->n_new = (int)reply->usage->completion_tokens;
        r->resumed = (int)reply->usage->resumed;
    }
    pthread_mutex_unlock(&r->lock);
}

static void on_done(struct mu_rpc_stream *s, enum mu_rpc_code code, const char *text, void *ctx)
{
    (void)s;
    struct remote *r = ctx;
    pthread_mutex_lock(&r->lock);
    r->done = true;
    r->code = code;
    snprintf(r->text, sizeof r->text, "%s", text ? text : "");
    pthread_cond_signal(&r->cond);
    pthread_mutex_unlock(&r->lock);
}

static enum mu_status remote_generate(struct mu_rpc_channel *c, const struct run_args *a, const char *prompt,
                                      struct mu_err *err)
{
    Muster__V1__Sampling sampling = MUSTER__V1__SAMPLING__INIT;
    sampling.temperature = a->sampling.temperature;
    sampling.top_k = a->sampling.top_k;
    sampling.top_p = a->sampling.top_p;
    if (a->seed_set) {
        sampling._seed_case = MUSTER__V1__SAMPLING___SEED_SEED;
        sampling.seed = a->sampling.seed;
    }
    Muster__V1__GenerateRequest req = MUSTER__V1__GENERATE_REQUEST__INIT;
    req.model = (char *)a->model;
    req.prompt_case = MUSTER__V1__GENERATE_REQUEST__PROMPT_TEXT;
    req.text = (char *)prompt;
    req.max_tokens = (uint32_t)a->max_tokens;
    req.sampling = &sampling;
    req.n_stop = (size_t)a->n_stop;
    req.stop = (char **)a->stop;
    req.ignore_end = a->ignore_end;
    req.parse_special = a->special;
    if (a->adapter) req.adapter = (char *)a->adapter;

    struct remote r = {.lock = PTHREAD_MUTEX_INITIALIZER, .start = mu_now_ns()};
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&r.cond, &attr);
    pthread_condattr_destroy(&attr);
    struct mu_rpc_stream_callbacks cb = {on_reply, on_done, &r};
    struct mu_rpc_stream *s;
    enum mu_status st = mu_rpc_stream_open(c, "/muster.v1.Muster/Generate", &muster__v1__generate_reply__descriptor, 0,
                                           MU_FOREVER, mu_now_ns() + 10 * MU_SEC, &cb, &s, err);
    if (st) return st;
    st = mu_rpc_stream_send(s, &req.base);
    mu_rpc_stream_half_close(s);
    if (st) mu_rpc_stream_cancel(s);
    bool cancelled = false;
    pthread_mutex_lock(&r.lock);
    while (!r.done) { /* wakes ten times a second to look at Ctrl-C */
        int64_t until = mu_now_ns() + 100 * MU_MS;
        struct timespec ts = {until / MU_SEC, until % MU_SEC};
        pthread_cond_timedwait(&r.cond, &r.lock, &ts);
        if (mu_interrupted && !cancelled && !r.done) {
            cancelled = true;
            pthread_mutex_unlock(&r.lock);
            mu_rpc_stream_cancel(s);
            pthread_mutex_lock(&r.lock);
        }
    }
    pthread_mutex_unlock(&r.lock);
    mu_rpc_stream_release(s);
    pthread_cond_destroy(&r.cond);
    if (r.unwritten.code) {
        if (err) *err = r.unwritten;
        return r.unwritten.code;
    }
    if (r.printed) MU_TRY(st, mu_out_write("\n", 1, err), done);
    if (r.code == MU_RPC_UNAVAILABLE && !cancelled && !r.printed) {
        mu_fail(err, MU_EPEER, "%s", r.text);
        mu_no_server(a->server, err);
        return MU_EPEER;
    }
    if (r.code != MU_RPC_OK && !cancelled)
        return mu_fail(err, mu_status_of_rpc(r.code), "%s answered %s: %s", a->server, mu_rpc_code_name(r.code),
                       r.text);
    int64_t now = mu_now_ns();
    print_rate(a, r.n_prompt, r.n_new, (double)((r.first ? r.first : now) - r.start) / 1e9,
               (double)(now - r.start) / 1e9);
    if (r.resumed) fprintf(stderr, "[the gang was lost %d times on the way; nothing is missing]\n", r.resumed);
done:
    return st;
}

/* ---- prompts ---- */

typedef enum mu_status (*generate_fn)(void *engine, const struct run_args *a, const char *prompt, struct mu_err *err);

static enum mu_status generate_local(void *l, const struct run_args *a, const char *p, struct mu_err *err)
{
    return local_generate(l, a, p, err);
}
static enum mu_status generate_remote(void *c, const struct run_args *a, const char *p, struct mu_err *err)
{
    return remote_generate(c, a, p, err);
}

/* Lines from the terminal until Ctrl-D. A failed prompt is told and the next one asked for. */
static enum mu_status converse(generate_fn generate, void *engine, const struct run_args *a)
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
        if (generate(engine, a, line, &err)) mu_cli_fail("run", &err);
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
        {"lora", OPT_LORA, "PATH[:SCALE]", 0, "with a LoRA adapter: a GGUF file or a PEFT folder", 0},
        {"adapter", OPT_ADAPTER, "NAME", 0, "with an adapter that the server has loaded", 0},
        {"quiet", OPT_QUIET, 0, 0, "no speed at the end", 0},
        MU_QUANTIZE_OPTION,
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
        "  muster run Qwen3-0.6B/ 'Hello' --quantize q8_0       a Hugging Face folder\n"
        "  muster run model.gguf 'Hello' --server 127.0.0.1:7400\n",
        0,
        0,
        0};
    struct run_args a = {.sampling = {.top_p = 1}};
    argp_parse(&argp, argc, argv, 0, 0, &a);
    if (!a.seed_set && getrandom(&a.sampling.seed, sizeof a.sampling.seed, 0) < 0)
        a.sampling.seed = (uint64_t)mu_now_ns();
    a.sampling.seed &= INT64_MAX; /* so that it can be typed again */

    struct mu_err err = MU_ERR_INIT;
    enum mu_status st;
    struct local l = {0};
    struct mu_rpc_channel *channel = NULL;
    char *text = NULL;
    generate_fn generate = generate_local;
    void *engine = &l;
    mu_signals_catch();
    if (a.server) {
        mu_rpc_init();
        MU_TRY(st, mu_rpc_channel_open(a.server, &channel, &err), done);
        generate = generate_remote;
        engine = channel;
    } else {
        MU_TRY(st, local_open(&a, &l, &err), done);
    }
    if (a.prompt) {
        st = generate(engine, &a, a.prompt, &err);
    } else if (isatty(STDIN_FILENO)) {
        st = converse(generate, engine, &a);
    } else {
        size_t len;
        MU_TRY(st, mu_read_stdin(MAX_PROMPT_BYTES, &text, &len, &err), done);
        if (strlen(text) != len)
            st = mu_fail(&err, MU_EINVAL, "the prompt on standard input holds a NUL character at byte %zu",
                         strlen(text) + 1);
        else if (!len)
            st = mu_fail(&err, MU_EINVAL, "standard input holds no prompt; give one, or PROMPT as an argument");
        else
            st = generate(engine, &a, text, &err);
    }
done:
    mu_free(text);
    local_close(&l);
    if (a.server) {
        mu_rpc_channel_close(channel);
        mu_rpc_shutdown();
    }
    return st ? mu_cli_fail("run", &err) : MU_EXIT_OK;
}
