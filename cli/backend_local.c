/* Answers from this process: one sequence of a gang of one rank, and perhaps a draft model beside it (guess.h).
 *
 * What the sequence's cache holds is remembered as ids. The next prompt is compared with them, and only what follows
 * their common beginning is computed: a conversation that grows turn by turn costs what is new in it. The bits are the
 * same as without (the arithmetic contract; rough prompts share prompts alone), so this shows in nothing but the time.
 *
 * Ctrl-C is looked at between steps, in the prompt as in the answer. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/io.h"
#include "cli/backend.h"
#include "cli/cli.h"
#include "cli/guess.h"
#include "model/chat_template.h"
#include "shard/adjust.h"
#include "worker/solo.h"

struct local {
    struct mu_card card;
    struct mu_opened o;
    struct mu_chat_template *template; /* NULL: the model has none */
    char *template_text;
    struct mu_solo *solo;
    struct mu_guess *guess;         /* NULL: there is no draft model */
    struct mu_guess_result guessed; /* ids of a step that are not told yet … */
    int n_told;                     /* … from this one on */
    int n_thread;                   /* 0: all cores */
    const char *split;
    enum mu_device_wish device;
    bool told; /* where it runs */
    enum mu_kv_type kv;
    bool rough;
    bool quiet;
    int32_t *held; /* [n_ctx] ids in the cache */
    size_t n_held;
    size_t n_prompt; /* of them; behind it lies what was generated, which is not what a rough prompt would have there */
    struct mu_constraints *constraints;          /* of this answer, as request 0; NULL: it has none */
    uint8_t *mask;                               /* what may come next, where it has */
    char description[256], *license, *bos, *eos; /* bos, eos: as text, "" where none */
};

static const int DEFAULT_CTX = 8192;

static void local_close(void *self)
{
    struct local *l = self;
    if (!l) return;
    mu_guess_close(l->guess);
    mu_solo_close(l->solo);
    mu_chat_template_free(l->template);
    mu_cli_close(&l->o);
    mu_free(l->held);
    mu_free(l->template_text);
    mu_free(l->license);
    mu_free(l->bos);
    mu_free(l->eos);
    mu_params_free(&l->card.params);
    mu_free(l);
}

/* Once: GPUs that cannot be used, and ranks on those that are. */
static void tell_where(struct local *l, const struct mu_plan_node *node, const struct mu_split *split, const char *why)
{
    char text[MU_GPU_TEXT];
    bool looked = mu_plan_where_looks(l->split, l->device);
    if (l->quiet || l->told) return;
    l->told = true;
    if (looked && node->gpus.n == 0 && node->gpus.broken) fprintf(stderr, "[no GPU is used: %s]\n", node->gpus.why);
    if (!mu_split_has_gpu(split)) return;
    if (why[0]) fprintf(stderr, "[%s]\n", why);
    for (int i = 0; i < split->n_rank; i++) {
        mu_plan_where_rank(&node->gpus, split, i, text);
        fprintf(stderr, "[rank %d: %s]\n", i, text);
    }
}

/* The split, and whether it fits. */
static enum mu_status where(struct local *l, unsigned asked, struct mu_solo_options *opt, char text[MU_FIT_TEXT],
                            struct mu_err *err)
{
    char why[MU_PLAN_WHY];
    enum mu_status st;
    struct mu_plan_node *node = mu_calloc(1, sizeof *node);
    if (!node) return mu_fail(err, MU_ENOMEM, "no memory for a plan");
    MU_TRY(st, mu_plan_where_text(l->split, l->device, err), done);
    MU_TRY(st, mu_cli_node(mu_plan_where_looks(l->split, l->device) ? MU_LOOK : MU_LOOK_NOT, node, NULL, err), done);
    MU_TRY(st,
           mu_plan_where(l->o.model, l->o.adapters, node, l->split, l->device, &opt->serving, &opt->split, why, err),
           done);
    if (node->gpus.n > 0 && strcmp(l->split, "auto") == 0 &&
        mu_split_cpu_ranks(&opt->split) > 0) { /* a choice needs figures */
        MU_TRY(st, mu_cli_node(MU_LOOK_MEASURE, node, NULL, err), done);
        MU_TRY(
            st,
            mu_plan_where(l->o.model, l->o.adapters, node, l->split, l->device, &opt->serving, &opt->split, why, err),
            done);
    }
    tell_where(l, node, &opt->split, why);
    if (l->rough && !mu_split_has_gpu(&opt->split)) {
        if (!l->quiet) fprintf(stderr, "[no rank is on a GPU, so --gpu-prompts rough makes no difference]\n");
        opt->serving.rough = l->rough = false;
    }
    opt->serving.step_tokens = mu_plan_step_tokens(&opt->split);
    if (opt->serving.step_tokens > opt->serving.n_ctx) opt->serving.step_tokens = opt->serving.n_ctx;
    if (l->guess && opt->split.n_rank > 1) {
        st = mu_fail(err, MU_EUNSUPPORTED,
                     "--draft with %d ranks in this process: 'muster serve' has that, or use --split 1",
                     opt->split.n_rank);
        goto done;
    }
    st = mu_cli_fit(l->o.model, l->o.adapters, l->guess ? mu_guess_model(l->guess) : NULL, &opt->split, asked, node,
                    &opt->serving, text, err);
done:
    mu_free(node);
    return st;
}

/* A gang with a context of n_ctx tokens; where that was not asked for, of as many of them as fit in memory. */
static enum mu_status gang_open(struct local *l, bool asked, int n_ctx, struct mu_solo **solo_out, int32_t **held_out,
                                struct mu_err *err)
{
    enum mu_status st;
    struct mu_bar bar = {.label = "loading"};
    int trained = l->o.model->cfg.n_ctx_train;
    if (n_ctx > trained)
        return mu_fail(err, MU_EINVAL, "a context of %d is more than the %d tokens that the model was made for", n_ctx,
                       trained);
    struct mu_solo_options opt = {
        .model = l->o.model,
        .adapters = l->o.adapters,
        .pin = 1,
        .serving = {.n_ctx = n_ctx, .n_slot = 1, .window = mu_plan_window(l->o.model), .kv = l->kv, .rough = l->rough},
        .load_progress = mu_bar_load,
        .load_ctx = &bar};
    char text[MU_FIT_TEXT];
    int32_t *held = mu_reallocarray(NULL, (size_t)n_ctx, sizeof *held);
    if (!held) return mu_fail(err, MU_ENOMEM, "no memory for a context of %d tokens", n_ctx);
    MU_TRY(st, where(l, asked ? MU_FIT_CTX : 0, &opt, text, err), fail);
    opt.n_thread = l->n_thread ? l->n_thread : mu_default_threads(&opt.split);
    if (!l->quiet && isatty(STDERR_FILENO)) fprintf(stderr, "[%s]\n", text);
    if (l->guess) opt.serving.n_slot = 1 + MU_MAX_DRAFT; /* places of a step; the pages are those of one sequence */
    MU_TRY(st, mu_solo_open(&opt, solo_out, err), fail);
    if (l->guess) {
        st = mu_guess_attach(l->guess, *solo_out, l->o.model, &opt.serving, err);
        if (st != MU_OK) {
            mu_solo_close(*solo_out);
            *solo_out = NULL;
            goto fail;
        }
    }
    mu_solo_adapt(*solo_out, 0, l->o.adapters ? 1 : 0, 1);
    *held_out = held;
    return MU_OK;
fail:
    mu_free(held);
    return st;
}

/* ---- the prompt ---- */

/* The conversation as the template writes it. */
static enum mu_status render(const struct local *l, const struct mu_ask *ask, char **text_out, size_t *len_out,
                             struct mu_err *err)
{
    struct mu_chat_input in = {.messages = ask->messages,
                               .variables = ask->variables,
                               .bos_token = l->bos,
                               .eos_token = l->eos,
                               .add_generation_prompt = true,
                               .now_s = mu_chat_now_s()};
    return mu_chat_template_render(l->template, &in, text_out, len_out, err);
}

/* text → ids; with BOS in front where the model wants one and the text has not brought it along. */
static enum mu_status encode(const struct local *l, const char *text, size_t len, bool special, int32_t **ids_out,
                             size_t *n_out, struct mu_err *err)
{
    const struct mu_tokenizer *tok = l->o.tok;
    int32_t *ids = NULL;
    size_t n = 0;
    enum mu_status st = mu_tokenizer_encode(tok, text, len, special, &ids, &n, err);
    if (st) return st;
    int bos = mu_tokenizer_bos(tok);
    if (mu_tokenizer_add_bos(tok) && bos >= 0 && !(special && n && ids[0] == bos)) {
        int32_t *more = mu_reallocarray(ids, n + 1, sizeof *ids);
        if (!more) {
            mu_free(ids);
            return mu_fail(err, MU_ENOMEM, "no memory for the prompt");
        }
        ids = more;
        memmove(ids + 1, ids, n * sizeof *ids);
        ids[0] = bos;
        n++;
    }
    *ids_out = ids;
    *n_out = n;
    return MU_OK;
}

static enum mu_status prompt_ids(const struct local *l, const struct mu_ask *ask, const struct mu_listener *listener,
                                 int32_t **ids_out, size_t *n_out, struct mu_err *err)
{
    char *rendered = NULL;
    size_t len;
    enum mu_status st = MU_OK;
    int32_t *ids = NULL;
    size_t n = 0, ctx = (size_t)l->card.n_ctx;
    if (ask->text) {
        MU_TRY(st, encode(l, ask->text, strlen(ask->text), ask->special, &ids, &n, err), fail);
    } else {
        MU_TRY(st, render(l, ask, &rendered, &len, err), fail);
        if (listener->prompt) listener->prompt(listener->ctx, rendered, len);
        MU_TRY(st, encode(l, rendered, len, true, &ids, &n, err), fail);
    }
    if (!n) {
        st =
            mu_fail(err, MU_EINVAL, "the prompt is empty and this model has no begin-of-text token: give it some text");
        goto fail;
    }
    if (n >= ctx) {
        st =
            mu_fail(err, MU_ELIMIT, "the prompt has %zu tokens, the context is %zu: shorten it or raise --ctx", n, ctx);
        goto fail;
    }
    mu_free(rendered);
    *ids_out = ids;
    *n_out = n;
    return MU_OK;
fail:
    mu_free(rendered);
    mu_free(ids);
    return st;
}

static enum mu_status local_fits(void *self, const struct mu_ask *ask, struct mu_err *err)
{
    int32_t *ids = NULL;
    size_t n;
    enum mu_status st = prompt_ids(self, ask, &(struct mu_listener){0}, &ids, &n, err);
    mu_free(ids);
    return st;
}

/* A step that failed: how much of it went in is not known. */
static void forget(struct local *l)
{
    mu_solo_reset(l->solo, 0);
    l->n_held = l->n_prompt = 0;
}

/* Appends ids of a prompt to the sequence; *id_out: the sample after the last one. */
static enum mu_status feed(struct local *l, const int32_t *ids, size_t n, const struct mu_sampling *sampling,
                           int32_t *id_out, struct mu_err *err)
{
    enum mu_status st =
        mu_solo_feed(l->solo, 0, ids, n, id_out ? MU_OUT_SAMPLE : MU_OUT_NONE, sampling, NULL, NULL, id_out, err);
    if (st) {
        forget(l);
        return st;
    }
    memcpy(l->held + l->n_held, ids, n * sizeof *ids);
    l->n_prompt = l->n_held += n;
    return MU_OK;
}

/* Appends one that was generated; *id_out: what follows it. */
static enum mu_status decode(struct local *l, int32_t id, const struct mu_sampling *sampling, int32_t *id_out,
                             struct mu_err *err)
{
    static const int slot = 0;
    enum mu_status st = mu_solo_decode(l->solo, &slot, &id, 1, sampling, id_out, err);
    if (st)
        forget(l);
    else
        l->held[l->n_held++] = id;
    return st;
}

/* Before an id is sampled: which may be, after emitted[n] of the answer. */
static enum mu_status allow_next(struct local *l, const int32_t *emitted, size_t n, struct mu_err *err)
{
    if (l->constraints) mu_constraints_allow(l->constraints, 0, emitted, n, l->mask);
    const char *why = l->constraints ? mu_constraints_why(l->constraints, 0) : NULL;
    return why ? mu_fail(err, MU_EINVAL, "%s", why) : MU_OK;
}

static enum mu_status constraint_open(struct local *l, const struct mu_constraint_text *text, struct mu_err *err)
{
    enum mu_status st = MU_OK;
    if (!text) return MU_OK;
    int n_vocab = l->o.model->cfg.n_vocab;
    l->mask = mu_calloc(((size_t)n_vocab + 7) / 8, 1);
    if (!l->mask) return mu_fail(err, MU_ENOMEM, "no memory for a constraint");
    MU_TRY(st, mu_constraints_create(l->o.model->gguf, n_vocab, &l->constraints, err), done);
    MU_TRY(st, mu_constraints_add(l->constraints, 0, text, err), done);
done:
    return st;
}

static void constraint_close(struct local *l)
{
    mu_constraints_destroy(l->constraints);
    l->constraints = NULL;
    mu_free(l->mask);
    l->mask = NULL;
}

/* Why there is no id after so many of the answer. */
static enum mu_status no_id_fail(int32_t id, int n_new, struct mu_err *err)
{
    if (id == MU_SAMPLE_NONE_ALLOWED)
        return mu_fail(err, MU_EINVAL, "no token is allowed to come next: logit_bias or min_tokens leave none");
    if (n_new)
        return mu_fail(err, MU_ENONFINITE,
                       "the logits after token %d are not finite: the file's weights may be damaged", n_new);
    return mu_fail(err, MU_ENONFINITE, "the logits after the prompt are not finite: the file's weights may be damaged");
}

/* The whole prompt, less what the cache holds of it. *id_out: the first new id, -1 where Ctrl-C came before it. */
static enum mu_status feed_prompt(struct local *l, const int32_t *ids, size_t n, const struct mu_sampling *sampling,
                                  int32_t *id_out, int *n_kept_out, struct mu_err *err)
{
    size_t keep = 0, have = l->rough ? l->n_prompt : l->n_held, most = have < n - 1 ? have : n - 1, step;
    while (keep < most && l->held[keep] == ids[keep]) keep++;
    keep = mu_solo_truncate(l->solo, 0, (uint32_t)keep);
    l->n_held = keep;
    if (l->n_prompt > keep) l->n_prompt = keep;
    *n_kept_out = (int)keep;
    *id_out = -1;
    step = (size_t)mu_solo_serving(l->solo)->step_tokens;
    for (size_t at = keep; at < n; at += step) {
        if (mu_interrupted) return MU_OK;
        bool last = n - at <= step;
        enum mu_status st = last ? allow_next(l, NULL, 0, err) : MU_OK;
        if (st) return st;
        st = feed(l, ids + at, last ? n - at : step, sampling, last ? id_out : NULL, err);
        if (st) return st;
        if (last && *id_out < 0) return no_id_fail(*id_out, 0, err);
    }
    return MU_OK;
}

/* ---- the answer ---- */

struct stream { /* the text of an answer as it grows */
    const struct mu_ask *ask;
    const struct mu_listener *listener;
    struct mu_streamer streamer;
    char *text;
    size_t len, cap, told; /* told: bytes that the listener has */
    size_t stop_from;      /* text before it came with the first min_tokens: no stop string begins there */
};

/* Where the first stop string begins, or len. *hold_out: the longest tail that could still become one. */
static size_t find_stop(const struct mu_params *p, const char *text, size_t len, size_t *hold_out)
{
    size_t first = len, hold = 0;
    for (int i = 0; i < p->n_stop; i++) {
        size_t n = strlen(p->stop[i]);
        const char *hit = memmem(text, len, p->stop[i], n);
        if (hit && (size_t)(hit - text) < first) first = (size_t)(hit - text);
        for (size_t k = n - 1 < len ? n - 1 : len; k > hold; k--)
            if (!memcmp(text + len - k, p->stop[i], k)) hold = k;
    }
    *hold_out = hold;
    return first;
}

/* Tells what may be told; *stopped_out: a stop string is there. At the end nothing is held back. */
static enum mu_status stream_tell(struct stream *s, bool end, bool *stopped_out, struct mu_err *err)
{
    size_t hold, from = s->stop_from, stop_at = from + find_stop(s->ask->params, s->text + from, s->len - from, &hold);
    *stopped_out = stop_at < s->len;
    size_t until = *stopped_out ? stop_at : end ? s->len : s->len - hold;
    if (until <= s->told) return MU_OK;
    from = s->told;
    s->told = until;
    return s->listener->text(s->listener->ctx, s->text + from, until - from, err);
}

/* What follows `id`, of whatever the last step gave, or of one more. */
static enum mu_status next_id(struct local *l, const struct mu_sampling *sampling, bool guessable, size_t limit,
                              struct mu_answer *a, int32_t *id, struct mu_err *err)
{
    struct mu_guess_result *g = &l->guessed;
    if (l->n_told < g->n) {
        *id = g->id[l->n_told++];
        return MU_OK;
    }
    if (!l->guess || !guessable) return decode(l, *id, sampling, id, err);
    const struct mu_guess_place at = {.ids = l->held,
                                      .n_ids = l->n_held + 1,
                                      .n_new = (size_t)a->n_new,
                                      .n_left = limit - (size_t)a->n_new,
                                      .sampling = sampling};
    l->held[l->n_held] = *id;
    enum mu_status st = mu_guess_next(l->guess, l->solo, &at, g, err);
    if (st) {
        forget(l);
        g->n = 0;
        return st;
    }
    l->n_held++;
    for (int i = 0; i + 1 < g->n; i++) l->held[l->n_held++] = g->id[i];
    a->n_guessed += g->n_guessed;
    a->n_right += g->n_right;
    l->n_told = 1;
    *id = g->id[0];
    return MU_OK;
}

static enum mu_status generate(struct local *l, struct stream *s, const struct mu_sampling *sampling,
                               struct mu_adjusts *adjusts, int32_t id, size_t limit, struct mu_answer *a,
                               struct mu_err *err)
{
    enum mu_status st;
    bool stopped = false;
    for (;;) {
        a->n_new++;
        if (!s->ask->ignore_end && mu_tokenizer_is_end(l->o.tok, id)) break;
        MU_TRY(st, mu_streamer_push(&s->streamer, id, &s->text, &s->len, &s->cap), done);
        if ((uint32_t)a->n_new < sampling->min_tokens) s->stop_from = s->len;
        MU_TRY(st, stream_tell(s, false, &stopped, err), done);
        a->interrupted = mu_interrupted;
        a->full = (size_t)a->n_new >= limit;
        if (stopped || a->interrupted || a->full) break;
        l->held[l->n_held] = id; /* there is room: the context is not full */
        mu_adjusts_push(adjusts, l->held, l->n_held + 1);
        MU_TRY(st, allow_next(l, l->held + a->n_prompt, l->n_held + 1 - (size_t)a->n_prompt, err), done);
        MU_TRY(st, next_id(l, sampling, !adjusts && !l->constraints, limit, a, &id, err), done);
        if (id < 0) return no_id_fail(id, a->n_new, err);
    }
    if (stopped) return MU_OK;
    MU_TRY(st, mu_streamer_finish(&s->streamer, &s->text, &s->len, &s->cap), done);
    return stream_tell(s, true, &stopped, err);
done:
    return err->code ? st : mu_fail(err, st, "no memory for the answer");
}

/* What the parameters mean for single tokens, after the prompt. *adjusts_out may be NULL. */
static enum mu_status adjusts_make(const struct local *l, const struct mu_ask *ask, const struct mu_sampling *sampling,
                                   const int32_t *ids, size_t n, struct mu_adjusts **adjusts_out, struct mu_err *err)
{
    const struct mu_params *p = ask->params;
    int32_t end_ids[MU_STEP_MAX_END_IDS];
    size_t n_end = 0;
    int n_vocab = l->o.model->cfg.n_vocab;
    for (int id = 0; id < n_vocab && n_end < MU_STEP_MAX_END_IDS && !ask->ignore_end; id++)
        if (mu_tokenizer_is_end(l->o.tok, id)) end_ids[n_end++] = id;
    enum mu_status st = mu_biases_check(p->bias, (size_t)p->n_bias, n_vocab, err);
    if (st != MU_OK) return st;
    return mu_adjusts_create(&(struct mu_adjusts_options){.sampling = sampling,
                                                          .bias = p->bias,
                                                          .n_bias = (size_t)p->n_bias,
                                                          .end_ids = end_ids,
                                                          .n_end = n_end,
                                                          .ids = ids,
                                                          .n_ids = n,
                                                          .n_prompt = n,
                                                          .max_ids = (size_t)l->card.n_ctx,
                                                          .n_vocab = n_vocab},
                             adjusts_out, err);
}

static enum mu_status local_ask(void *self, const struct mu_ask *ask, const struct mu_listener *listener,
                                struct mu_answer *answer_out, struct mu_err *err)
{
    struct local *l = self;
    struct mu_sampling sampling = mu_params_sampling(ask->params, !ask->text);
    struct stream s = {.ask = ask, .listener = listener};
    struct mu_answer a = {.start_ns = mu_now_ns()};
    int32_t *ids = NULL, id = -1;
    struct mu_adjusts *adjusts = NULL;
    size_t n = 0;
    enum mu_status st;
    l->guessed.n = l->n_told = 0;
    mu_streamer_init(&s.streamer, l->o.tok, ask->special);
    s.streamer.show_marks = !ask->text;
    MU_TRY(st, prompt_ids(l, ask, listener, &ids, &n, err), done);
    a.n_prompt = (int)n;
    MU_TRY(st, constraint_open(l, ask->constraint, err), done);
    MU_TRY(st, adjusts_make(l, ask, &sampling, ids, n, &adjusts, err), done);
    mu_solo_constrain(l->solo, 0, adjusts, l->mask);
    MU_TRY(st, feed_prompt(l, ids, n, &sampling, &id, &a.n_kept, err), done);
    if (id < 0) {
        a.interrupted = true;
    } else {
        a.first_ns = mu_now_ns();
        size_t room = (size_t)l->card.n_ctx - n;
        int64_t most = ask->params->num_predict;
        size_t limit = most > 0 && (uint64_t)most < room ? (size_t)most : room;
        MU_TRY(st, generate(l, &s, &sampling, adjusts, id, limit, &a, err), done);
    }
done:
    a.end_ns = mu_now_ns();
    *answer_out = a;
    mu_solo_constrain(l->solo, 0, NULL, NULL);
    mu_adjusts_destroy(adjusts);
    constraint_close(l);
    mu_free(s.text);
    mu_free(ids);
    return st;
}

/* ---- opening ---- */

static const struct mu_card *local_card(const void *self)
{
    return &((const struct local *)self)->card;
}

/* The weights are packed for a gang; another context needs another gang. Both are there for a moment only where the
 * new one fails, so the old one is closed first and opened again then. */
static enum mu_status local_set_context(void *self, int n_ctx, struct mu_err *err)
{
    struct local *l = self;
    if (n_ctx == l->card.n_ctx) return MU_OK;
    if (n_ctx > l->card.n_ctx_max)
        return mu_fail(err, MU_EINVAL, "num_ctx %d is more than the %d tokens that the model was made for", n_ctx,
                       l->card.n_ctx_max);
    mu_guess_detach(l->guess);
    mu_solo_close(l->solo);
    mu_free(l->held);
    l->solo = NULL;
    l->held = NULL;
    l->n_held = l->n_prompt = 0;
    enum mu_status st = gang_open(l, true, n_ctx, &l->solo, &l->held, err);
    if (!st) {
        l->card.n_ctx = n_ctx;
        return MU_OK;
    }
    struct mu_err again = MU_ERR_INIT;
    if (gang_open(l, true, l->card.n_ctx, &l->solo, &l->held, &again))
        return mu_fail(err, MU_EINTERNAL, "%.200s; and the former context cannot be had back: %.200s", err->text,
                       again.text);
    return st;
}

static const struct mu_backend_ops local_ops = {local_ask, local_fits, local_card, local_set_context, local_close};

/* ---- what is known of the model ---- */

static enum mu_status template_open(struct local *l, const char *file, struct mu_err *err)
{
    struct mu_str own = {NULL, 0};
    size_t len = 0;
    enum mu_status st;
    if (file) {
        MU_TRY(st, mu_file_read(file, MU_TEMPLATE_MAX_BYTES, &l->template_text, &len, err), done);
    } else if (l->o.found->template && l->o.found->template_is_jinja) {
        len = strlen(l->o.found->template);
        l->template_text = mu_strdup(l->o.found->template);
    } else {
        MU_TRY(st, mu_gguf_get_str(l->o.model->gguf, "tokenizer.chat_template", &own, err), done);
        if (!own.len) return MU_OK;
        len = own.len;
        l->template_text = mu_strndup(own.p, own.len);
    }
    if (!l->template_text) return mu_fail(err, MU_ENOMEM, "no memory for a chat template of %zu bytes", len);
    st = mu_chat_template_parse(l->template_text, len, &l->template, err);
    if (st && !file) mu_err_wrap(err, "the model's chat template ('--raw' does without)");
    if (st && file) mu_err_wrap(err, "%s", file);
done:
    return st;
}

/* The parameters of the store's entry; those that there are none of here are named once. */
static enum mu_status params_read(struct local *l, struct mu_err *err)
{
    const char *name;
    json_t *value;
    json_object_foreach(l->o.found->params, name, value)
    {
        enum mu_status st = mu_params_set_json(&l->card.params, name, value, err);
        if (st == MU_ENOMEM) return st;
        if (st) fprintf(stderr, "[the model's own '%s' is left out: %s]\n", name, err->text);
    }
    *err = (struct mu_err)MU_ERR_INIT;
    return MU_OK;
}

static enum mu_status license_read(struct local *l, struct mu_err *err)
{
    struct mu_str own = {NULL, 0};
    if (l->o.found->n_license)
        l->license = mu_strdup(l->o.found->license[0]);
    else if (mu_gguf_get_str(l->o.model->gguf, "general.license", &own, err) || !own.len)
        return MU_OK;
    else
        l->license = mu_strndup(own.p, own.len);
    return l->license ? MU_OK : mu_fail(err, MU_ENOMEM, "no memory for a license");
}

static enum mu_status card_fill(struct local *l, const struct mu_local_options *opt, struct mu_err *err)
{
    struct mu_card *k = &l->card;
    enum mu_status st;
    if (!opt->no_template) MU_TRY(st, template_open(l, opt->template_file, err), done);
    MU_TRY(st, params_read(l, err), done);
    MU_TRY(st, license_read(l, err), done);
    l->bos = mu_chat_token_text(l->o.tok, mu_tokenizer_bos(l->o.tok));
    l->eos = mu_chat_token_text(l->o.tok, mu_tokenizer_eos(l->o.tok));
    if (!l->bos || !l->eos) {
        st = mu_fail(err, MU_ENOMEM, "no memory for a token's text");
        goto done;
    }
    int trained = l->o.model->cfg.n_ctx_train;
    k->n_ctx = opt->n_ctx              ? opt->n_ctx
               : k->params.num_ctx     ? (int)(k->params.num_ctx < trained ? k->params.num_ctx : trained)
               : trained < DEFAULT_CTX ? trained
                                       : DEFAULT_CTX;
    k->n_ctx_max = trained;
    mu_model_describe(l->o.model, l->description, sizeof l->description);
    k->name = l->o.found->entry.name;
    k->description = l->description;
    k->path = mu_gguf_path(l->o.model->gguf);
    k->template_text = l->template ? l->template_text : opt->no_template ? NULL : l->o.found->template;
    k->system = l->o.found->system;
    k->license = l->license;
    k->messages = l->o.found->messages;
    k->chat = l->template != NULL;
done:
    return st;
}

enum mu_status mu_backend_local(const struct mu_local_options *opt, struct mu_backend *backend_out, struct mu_err *err)
{
    struct local *l = mu_calloc(1, sizeof *l);
    enum mu_status st;
    if (!l) return mu_fail(err, MU_ENOMEM, "no memory for '%s'", opt->model);
    l->kv = opt->kv;
    l->rough = opt->rough;
    l->quiet = opt->quiet;
    l->n_thread = opt->n_thread;
    l->split = opt->split;
    l->device = opt->device;
    MU_TRY(st, mu_cli_open(opt->model, true, &l->o, err), fail);
    MU_TRY(st, mu_model_quantize(l->o.model, opt->quantize, err), fail);
    MU_TRY(st, mu_cli_adapt(&l->o, &opt->lora, err), fail);
    if (opt->draft) MU_TRY(st, mu_guess_open(opt->draft, &l->o, &l->guess, err), fail);
    MU_TRY(st, card_fill(l, opt, err), fail);
    MU_TRY(st, gang_open(l, opt->n_ctx || l->card.params.num_ctx, l->card.n_ctx, &l->solo, &l->held, err), fail);
    l->card.n_ctx = mu_solo_serving(l->solo)->n_ctx;
    *backend_out = (struct mu_backend){&local_ops, l};
    return MU_OK;
fail:
    local_close(l);
    return st;
}
