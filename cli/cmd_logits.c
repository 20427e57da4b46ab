/* muster logits: the raw output of a model for given ids, as little-endian f32. The reference that splits, chunks and batches are compared with. */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/io.h"
#include "cli/cli.h"
#include "worker/solo.h"

struct logits_args {
    const char *model, *ids, *out, *split, *quantize;
    bool all;
    enum mu_kv_type kv;
    bool rough;
    int threads, chunk, batch;
    struct mu_adapter_spec lora;
};

enum { OPT_IDS = 256, OPT_OUT, OPT_ALL, OPT_CHUNK, OPT_BATCH, OPT_LORA };

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct logits_args *a = state->input;
    switch (key) {
    case OPT_IDS: a->ids = arg; return 0;
    case OPT_OUT: a->out = arg; return 0;
    case OPT_ALL: a->all = true; return 0;
    case OPT_CHUNK: a->chunk = (int)mu_arg_long(arg, 1, 1 << 20, "--chunk", state); return 0;
    case OPT_BATCH: a->batch = (int)mu_arg_long(arg, 1, 256, "--batch", state); return 0;
    case OPT_LORA: mu_arg_adapter(arg, &a->lora, state); return 0;
    case 's': a->split = arg; return 0;
    case 't': a->threads = (int)mu_arg_long(arg, 1, 1024, "--threads", state); return 0;
    case MU_OPT_GPU_PROMPTS: a->rough = mu_arg_gpu_prompts(arg, state); return 0;
    case MU_OPT_KV: a->kv = mu_arg_kv(arg, state); return 0;
    case MU_OPT_QUANTIZE: a->quantize = mu_arg_quantize(arg, state); return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num) argp_error(state, "one MODEL only");
        a->model = arg;
        return 0;
    case ARGP_KEY_END:
        if (!a->model) argp_error(state, "MODEL is missing");
        if (!a->ids) argp_error(state, "--ids is missing");
        if (!a->out) argp_error(state, "--out FILE is missing");
        return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

struct sink {
    struct mu_file_writer *file;
    int n_vocab;
    enum mu_status st;
    struct mu_err *err;
};

static void write_row(struct sink *k, const float *row)
{
    if (!k->st) k->st = mu_file_writer_write(k->file, row, (size_t)k->n_vocab * sizeof *row, k->err);
}

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* The ids in `batch` slots at once, each a few tokens further than the next so that the steps mix prefill positions; rows of slot 0 are written.
 * far: the sequences are longer than the short context of the model. The other slots get the same ids backwards, two in three of them without an
 * adapter: what shares a step must not matter. */
static enum mu_status run_batch(struct mu_solo *solo, const struct logits_args *a, const int32_t *ids, size_t n,
                                bool far, struct sink *sink, struct mu_err *err)
{
    enum mu_status st;
    const struct mu_serving *serving = mu_solo_serving(solo);
    struct mu_step *step = NULL;
    uint32_t *pos = mu_calloc((size_t)a->batch, sizeof *pos), *pages = mu_calloc((size_t)a->batch, sizeof *pages),
             next_page = 0;
    if (!pos || !pages) {
        st = mu_fail(err, MU_ENOMEM, "no memory for %d sequences", a->batch);
        goto done;
    }
    MU_TRY(st, mu_step_create(serving, sink->n_vocab, &step, err), done);
    uint32_t chunk = (uint32_t)(a->chunk ? a->chunk : serving->step_tokens);
    if (chunk > (uint32_t)(serving->step_tokens / a->batch)) chunk = (uint32_t)(serving->step_tokens / a->batch);
    if (!chunk) chunk = 1;
    for (uint64_t number = 1; pos[0] < n; number++) {
        step->number = number;
        step->n_free = step->n_page = step->n_seq = step->n_tok = 0;
        for (uint32_t b = 0; b < (uint32_t)a->batch; b++) {
            uint32_t want = min_u32(chunk + (number == 1 ? b : 0), (uint32_t)n - pos[b]);
            want = min_u32(want, (uint32_t)serving->step_tokens - step->n_tok);
            if (!want) continue;
            bool out = b == 0 && (a->all || pos[b] + want == n);
            step->seq[step->n_seq++] = (struct mu_step_seq){.slot = b,
                                                            .pos0 = pos[b],
                                                            .n_tok = want,
                                                            .tok_off = step->n_tok,
                                                            .far = far,
                                                            .rough = serving->rough,
                                                            .adapter = b % 3 == 0 && serving->n_adapter > 0,
                                                            .adapter_scale = 1,
                                                            .out = (uint8_t)(!out     ? MU_OUT_NONE
                                                                             : a->all ? MU_OUT_ALL
                                                                                      : MU_OUT_LOGITS)};
            for (uint32_t i = 0; i < want; i++)
                step->ids[step->n_tok++] = b ? ids[n - 1 - (pos[b] + i)] : ids[pos[b] + i];
            pos[b] += want;
            for (; pages[b] * MU_PAGE_TOKENS < pos[b]; pages[b]++)
                step->page[step->n_page++] = (struct mu_step_page){b, next_page++};
        }
        struct mu_step_result result;
        MU_TRY(st, mu_solo_step(solo, step, &result, err), done);
        for (int i = 0; i < result.n_logit_row; i++) write_row(sink, result.logits + (size_t)i * (size_t)sink->n_vocab);
        MU_TRY(st, sink->st, done);
    }
done:
    mu_free(step);
    mu_free(pos);
    mu_free(pages);
    return st;
}

static enum mu_status logits(const struct logits_args *a, struct mu_err *err)
{
    enum mu_status st;
    struct mu_opened o = {0};
    struct mu_solo *solo = NULL;
    int32_t *ids = NULL;
    size_t n = 0;
    struct sink sink = {.err = err};
    struct mu_bar bar = {.label = "loading"};
    struct mu_solo_options opt = {.load_progress = mu_bar_load, .load_ctx = &bar};
    bool written = false;
    MU_TRY(st, mu_split_parse(a->split, &opt.split, err), done);
    MU_TRY(st, mu_cli_open(a->model, false, &o, err), done);
    MU_TRY(st, mu_model_quantize(o.model, a->quantize, err), done);
    MU_TRY(st, mu_arg_ids(a->ids, &ids, &n, err), done);
    for (size_t i = 0; i < n; i++)
        if (ids[i] >= o.model->cfg.n_vocab) {
            st = mu_fail(err, MU_EINVAL, "id %d is not in the vocabulary of %d tokens", ids[i], o.model->cfg.n_vocab);
            goto done;
        }
    if (n > (size_t)o.model->cfg.n_ctx_train) {
        st = mu_fail(err, MU_ELIMIT, "%zu ids are more than the model's context of %d tokens", n,
                     o.model->cfg.n_ctx_train);
        goto done;
    }
    MU_TRY(st, mu_cli_adapt(&o, &a->lora, err), done);
    opt.model = o.model;
    opt.adapters = o.adapters;
    opt.n_thread = a->threads ? a->threads : mu_default_threads(&opt.split);
    /* Steps of logits at every position are kept small: rows × vocabulary × 4 bytes. */
    int step_tokens = a->all ? 64 : MU_STEP_TOKENS;
    if (a->batch > step_tokens) step_tokens = a->batch;
    opt.serving = (struct mu_serving){.n_ctx = (int)n < 2 ? 2 : (int)n,
                                      .n_slot = a->batch,
                                      .step_tokens = step_tokens,
                                      .kv = a->kv,
                                      .rough = a->rough};
    MU_TRY(st,
           mu_cli_fit(o.model, o.adapters, NULL, &opt.split, MU_FIT_CTX | MU_FIT_SLOTS, NULL, &opt.serving, NULL, err),
           done);
    MU_TRY(st, mu_solo_open(&opt, &solo, err), done);
    MU_TRY(st, mu_file_writer_open(a->out, &sink.file, err), done);
    sink.n_vocab = o.model->cfg.n_vocab;
    MU_TRY(st, run_batch(solo, a, ids, n, n > (size_t)o.model->cfg.n_ctx_short, &sink, err), done);
    written = true;
done:
    if (sink.file) {
        enum mu_status closed = mu_file_writer_close(sink.file, written, written ? err : NULL);
        if (!st) st = closed;
    }
    mu_solo_close(solo);
    mu_free(ids);
    mu_cli_close(&o);
    return st;
}

int mu_cmd_logits(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"ids", OPT_IDS, "IDS", 0, "token ids: 1,2,3 or @FILE", 0},
        {"out", OPT_OUT, "FILE", 0, "where to write", 0},
        {"all", OPT_ALL, 0, 0, "every position, not only the last", 0},
        {"lora", OPT_LORA, "PATH[:SCALE]", 0,
         "with a LoRA adapter: a GGUF file or a PEFT folder; none: without the model's own", 0},
        {"split", 's', "S", 0, "split over ranks in this process; 1@gpu0: on GPU 0 (1)", 0},
        {"threads", 't', "N", 0, "threads a rank (all cores)", 0},
        {"chunk", OPT_CHUNK, "N", 0, "feed N tokens a step", 0},
        {"batch", OPT_BATCH, "N", 0, "share the steps with N - 1 other sequences", 0},
        MU_QUANTIZE_OPTION(0),
        MU_KV_OPTION(0),
        MU_GPU_PROMPTS_OPTION(0),
        {0},
    };
    static const struct argp argp = {options,
                                     parse,
                                     "MODEL --ids IDS --out FILE",
                                     "Writes the logits after the last id (or after each, with --all) as little-endian "
                                     "f32. The bytes are the same for every split, number of threads, chunk, "
                                     "batch and MUSTER_KERNELS."
                                     "\vExamples:\n"
                                     "  muster logits model.gguf --ids 1,2,3 --out last.f32\n"
                                     "  muster logits model.gguf --ids @ids.txt --all --split 3:1/1 --out all.f32\n",
                                     0,
                                     0,
                                     0};
    struct logits_args a = {.split = "1", .batch = 1};
    argp_parse(&argp, argc, argv, 0, 0, &a);
    struct mu_err err = MU_ERR_INIT;
    return logits(&a, &err) ? mu_cli_fail("logits", &err) : MU_EXIT_OK;
}
