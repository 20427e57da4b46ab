/* muster perplexity: how well a model predicts a text, in chunks that each start at position 0. */
#include <math.h>
#include <stdio.h>

#include "base/alloc.h"
#include "base/io.h"
#include "cli/cli.h"
#include "worker/solo.h"

struct ppl_args {
    const char *model, *file, *split, *quantize;
    bool ids;
    enum mu_kv_type kv;
    bool rough;
    int chunk, threads;
    struct mu_adapter_spec lora;
};

enum { OPT_LORA = 256 };

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct ppl_args *a = state->input;
    switch (key) {
    case 'i': a->ids = true; return 0;
    case 'c': a->chunk = (int)mu_arg_long(arg, 2, 1 << 20, "--chunk", state); return 0;
    case 't': a->threads = (int)mu_arg_long(arg, 1, 1024, "--threads", state); return 0;
    case 's': a->split = arg; return 0;
    case MU_OPT_GPU_PROMPTS: a->rough = mu_arg_gpu_prompts(arg, state); return 0;
    case MU_OPT_KV: a->kv = mu_arg_kv(arg, state); return 0;
    case MU_OPT_QUANTIZE: a->quantize = mu_arg_quantize(arg, state); return 0;
    case OPT_LORA: mu_arg_adapter(arg, &a->lora, state); return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num == 0)
            a->model = arg;
        else if (state->arg_num == 1)
            a->file = arg;
        else
            argp_error(state, "too many arguments");
        return 0;
    case ARGP_KEY_END:
        if (!a->file) argp_error(state, "MODEL and FILE are needed");
        return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

struct scorer {
    const int32_t *ids; /* of the chunk */
    size_t n;
    int n_vocab;
    double nll;
    size_t n_scored;
    bool finite;
};

/* Row of position p predicts id p + 1. */
static void score_row(const float *row, uint32_t position, void *ctx)
{
    struct scorer *s = ctx;
    if (position + 1 >= s->n) return;
    double max = -INFINITY, sum = 0;
    for (int i = 0; i < s->n_vocab; i++)
        if (row[i] > max) max = row[i];
    for (int i = 0; i < s->n_vocab; i++) sum += exp((double)row[i] - max);
    double nll = max + log(sum) - (double)row[s->ids[position + 1]];
    if (!isfinite(nll)) s->finite = false;
    s->nll += nll;
    s->n_scored++;
}

static enum mu_status read_ids(const struct ppl_args *a, const struct mu_opened *o, int32_t **ids_out, size_t *n_out,
                               struct mu_err *err)
{
    enum mu_status st;
    if (a->ids) {
        char *at = mu_asprintf("@%s", a->file);
        if (!at) return mu_fail(err, MU_ENOMEM, "no memory");
        st = mu_arg_ids(at, ids_out, n_out, err);
        mu_free(at);
        if (st) return st;
        for (size_t i = 0; i < *n_out; i++)
            if ((*ids_out)[i] >= o->model->cfg.n_vocab) {
                return mu_fail(err, MU_EINVAL, "%s: id %d is not in the vocabulary of %d tokens", a->file,
                               (*ids_out)[i], o->model->cfg.n_vocab);
            }
        return MU_OK;
    }
    char *text;
    size_t len;
    if ((st = mu_file_read(a->file, 1u << 30, &text, &len, err))) return st;
    st = mu_tokenizer_encode(o->tok, text, len, false, ids_out, n_out, err);
    mu_free(text);
    return st;
}

static enum mu_status perplexity(const struct ppl_args *a, struct mu_err *err)
{
    enum mu_status st;
    struct mu_opened o = {0};
    struct mu_solo *solo = NULL;
    int32_t *ids = NULL;
    size_t n = 0;
    struct mu_bar load = {.label = "loading"}, bar = {.label = "scoring"};
    struct mu_solo_options opt = {.load_progress = mu_bar_load, .load_ctx = &load};
    MU_TRY(st, mu_cli_open(a->model, !a->ids, &o, err), done);
    MU_TRY(st, mu_model_quantize(o.model, a->quantize, err), done);
    MU_TRY(st, read_ids(a, &o, &ids, &n, err), done);
    if (n < 2) {
        st = mu_fail(err, MU_EINVAL, "%s holds %zu tokens; at least 2 are needed", a->file, n);
        goto done;
    }
    MU_TRY(st, mu_cli_adapt(&o, &a->lora, err), done);
    opt.model = o.model;
    opt.adapters = o.adapters;
    MU_TRY(st, mu_split_parse(a->split, &opt.split, err), done);
    opt.n_thread = a->threads ? a->threads : mu_default_threads(&opt.split);
    int trained = o.model->cfg.n_ctx_train, chunk = a->chunk ? a->chunk : trained < 512 ? trained : 512;
    if (chunk > trained || chunk < 2) {
        st = mu_fail(err, MU_EINVAL, "chunks of %d tokens: expected 2 to %d, the context that the model was made for",
                     chunk, trained);
        goto done;
    }
    /* Logits of every position are kept per step: small steps bound that memory. */
    opt.serving = (struct mu_serving){
        .n_ctx = chunk, .n_slot = 1, .step_tokens = chunk < 64 ? chunk : 64, .kv = a->kv, .rough = a->rough};
    MU_TRY(st,
           mu_cli_fit(o.model, o.adapters, NULL, &opt.split, MU_FIT_CTX | MU_FIT_SLOTS, NULL, &opt.serving, NULL, err),
           done);
    MU_TRY(st, mu_solo_open(&opt, &solo, err), done);
    mu_solo_adapt(solo, 0, o.adapters ? 1 : 0, 1);

    double nll = 0;
    size_t scored = 0, n_chunk = 0;
    for (size_t at = 0; at + 1 < n; at += (size_t)chunk) {
        size_t len = n - at < (size_t)chunk ? n - at : (size_t)chunk;
        struct scorer s = {.ids = ids + at, .n = len, .n_vocab = o.model->cfg.n_vocab, .finite = true};
        mu_solo_reset(solo, 0);
        MU_TRY(st, mu_solo_feed(solo, 0, ids + at, len, MU_OUT_ALL, NULL, score_row, &s, NULL, err), done);
        if (!s.finite) {
            st = mu_fail(err, MU_ENONFINITE, "chunk %zu gives logits that are not finite", n_chunk + 1);
            goto done;
        }
        nll += s.nll;
        scored += s.n_scored;
        n_chunk++;
        mu_bar_update(&bar, at + len, n);
    }
    mu_bar_update(&bar, n, n); /* a last token by itself is no chunk */
    printf("tokens %zu  chunks %zu of %d  scored %zu  mean nll %.6f  perplexity %.4f\n", n, n_chunk, chunk, scored,
           nll / (double)scored, exp(nll / (double)scored));
done:
    mu_solo_close(solo);
    mu_free(ids);
    mu_cli_close(&o);
    return st;
}

int mu_cmd_perplexity(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"ids", 'i', 0, 0, "FILE holds token ids, not text", 0},
        {"chunk", 'c', "N", 0, "tokens a chunk (512, or the model's context)", 0},
        {"threads", 't', "N", 0, "threads a rank (all cores)", 0},
        {"lora", OPT_LORA, "PATH[:SCALE]", 0,
         "with a LoRA adapter: a GGUF file or a PEFT folder; none: without the model's own", 0},
        {"split", 's', "S", 0, "split over ranks in this process; 1@gpu0: on GPU 0 (1)", 0},
        MU_QUANTIZE_OPTION(0),
        MU_KV_OPTION(0),
        MU_GPU_PROMPTS_OPTION(0),
        {0},
    };
    static const struct argp argp = {options,
                                     parse,
                                     "MODEL FILE",
                                     "Scores FILE in chunks of N tokens, each from position 0; its first token is not "
                                     "scored and no begin-of-text token is added."
                                     "\vExamples:\n  muster perplexity model.gguf book.txt\n  muster perplexity "
                                     "model.gguf ids.txt --ids --chunk 250\n",
                                     0,
                                     0,
                                     0};
    struct ppl_args a = {.split = "1"};
    argp_parse(&argp, argc, argv, 0, 0, &a);
    struct mu_err err = MU_ERR_INIT;
    return perplexity(&a, &err) ? mu_cli_fail("perplexity", &err) : MU_EXIT_OK;
}
