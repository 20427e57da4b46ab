/* Decoding with a draft model and without one, side by side (bench_draft.h).
 *
 * One model and one draft are loaded; each way has a scheduler of its own for a case, which learns what steps and guesses
 * cost as a server's does, over all runs of the case. A first run of each is not counted. Repeats take the ways in turns,
 * so that whatever else the machine does hits all of them, and gains are of one repeat's runs, which are neighbours.
 *
 * What a run leaves behind would flatter the next, which decodes the same text: no pages are shared, and the draft model
 * forgets what it has read, so it reads the prompt in every run, as it must for a text that is new. */
#include "cli/bench_draft.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "cli/bench_serve.h"
#include "cli/guess.h"
#include "kernels/kernels.h"
#include "shard/plan_draft.h"
#include "worker/drafter.h"
#include "worker/scheduler.h"
#include "worker/solo.h"

/* Different kinds of text; a stream has one. */
static const char OUR_PROMPTS[] =
    "Once upon a time, in a village at the edge of a great forest,\n"
    "/* Returns the length of the longest line of a text. */ int longest_line(const char *text) {\n"
    "Question: Why is the sky blue during the day and red in the evening? Answer:\n"
    "A recipe for a simple vegetable soup. Ingredients:\n"
    "The three most important inventions of the nineteenth century were\n"
    "Dear Sir or Madam, I am writing to you about the bicycle that I bought in your shop last week.\n"
    "Translate into French: The weather is fine today, and we are going to the market.\n"
    "Planets of the solar system, from the sun outwards, with one fact about each: 1. Mercury,\n";

struct prompt {
    int32_t *ids;
    size_t n;
};

struct run {
    struct mu_bench_drafted *d;
    struct mu_bench_prompts text;
    struct prompt *prompt; /* [text.n] */
    struct mu_solo *solo;
    struct mu_drafter *drafter;
    struct mu_serving draft_serving;
    struct mu_step *step;
    struct mu_sched_event *events; /* [n_slot] */
    int32_t end_ids[MU_SCHED_MAX_END_IDS];
    size_t n_end;
    /* of the case: */
    struct mu_sched *sched[MU_BENCH_WAYS];
    int32_t *want, *got; /* [n_stream][n_decode] */
    int *n_want, *n_got; /* [n_stream] */
    uint64_t request;    /* the number of stream 0's */
    struct mu_bar bar;
    uint64_t done, total; /* runs */
};

/* ---- prompts ---- */

static enum mu_status prompt_encode(const struct mu_tokenizer *tok, const char *text, struct prompt *p,
                                    struct mu_err *err)
{
    int32_t *ids = NULL;
    size_t n = 0;
    int bos = mu_tokenizer_add_bos(tok) ? mu_tokenizer_bos(tok) : -1;
    enum mu_status st = mu_tokenizer_encode(tok, text, strlen(text), true, &ids, &n, err);
    if (st != MU_OK) return st;
    bool more = bos >= 0 && !(n && ids[0] == bos);
    p->ids = mu_reallocarray(NULL, n + 1, sizeof *p->ids);
    if (p->ids) {
        if (more) p->ids[0] = bos;
        if (n) memcpy(p->ids + more, ids, n * sizeof *ids);
        p->n = n + more;
    }
    mu_free(ids);
    if (!p->ids) return mu_fail(err, MU_ENOMEM, "no memory for the prompts");
    return p->n ? MU_OK : mu_fail(err, MU_EINVAL, "the prompt '%.40s' has no tokens", text);
}

static enum mu_status prompts_make(struct run *r, const struct mu_tokenizer *tok, struct mu_err *err)
{
    const char *path = r->d->opt->prompts;
    enum mu_status st = path ? mu_bench_prompts_read(path, &r->text, err)
                             : mu_bench_prompts_of(OUR_PROMPTS, sizeof OUR_PROMPTS - 1, "our prompts", &r->text, err);
    if (st != MU_OK) return st;
    r->d->n_prompt = r->text.n;
    r->prompt = mu_calloc((size_t)r->text.n, sizeof *r->prompt);
    if (!r->prompt) return mu_fail(err, MU_ENOMEM, "no memory for the prompts");
    for (int i = 0; i < r->text.n && st == MU_OK; i++) st = prompt_encode(tok, r->text.line[i], &r->prompt[i], err);
    for (int id = 0; id < mu_tokenizer_n_vocab(tok) && r->n_end < MU_SCHED_MAX_END_IDS; id++)
        if (mu_tokenizer_is_end(tok, id)) r->end_ids[r->n_end++] = id;
    return st;
}

/* ---- one run ---- */

static enum mu_status streams_submit(struct run *r, struct mu_sched *sched, const struct mu_bench_draft_case *c,
                                     struct mu_err *err)
{
    r->request += (uint64_t)c->n_stream;
    for (int i = 0; i < c->n_stream; i++) {
        const struct prompt *p = &r->prompt[i % r->text.n];
        const struct mu_sched_request request = {
            .id = r->request + (uint64_t)i,
            .prompt = p->ids,
            .n_prompt = p->n,
            .max_tokens = (uint32_t)r->d->opt->n_decode,
            .sampling = {.temperature = c->temperature, .seed = mu_sampling_choice_seed(r->d->opt->seed, (uint32_t)i)},
            .end_ids = r->end_ids,
            .n_end = r->n_end,
            .priority = MU_PRIORITY_NORMAL,
        };
        bool finished;
        enum mu_status st = mu_sched_submit(sched, &request, &finished, err);
        if (st != MU_OK) return st;
        r->n_got[i] = 0;
    }
    return MU_OK;
}

static enum mu_status drafts_make(struct run *r, struct mu_sched *sched, struct mu_bench_counts *counts,
                                  struct mu_err *err)
{
    struct mu_draft_ask ask[MU_DRAFT_SEATS];
    struct mu_draft_took took;
    uint32_t read_most;
    int n = mu_sched_ask_drafts(sched, ask, &read_most);
    if (!n) return MU_OK;
    enum mu_status st = mu_drafter_ask(r->drafter, ask, n, read_most, &took, err);
    if (st != MU_OK) return st;
    mu_sched_answer_drafts(sched, ask, n, &took);
    counts->draft_us += took.step_us;
    counts->n_draft_step += took.n_step;
    counts->read_us += took.read_us;
    counts->n_read += took.n_read;
    return MU_OK;
}

/* What the last run of whichever scheduler left in the slots. */
static void slots_free(const struct run *r)
{
    struct mu_step *step = r->step;
    step->n_free = 0;
    for (int i = 0; i < mu_solo_serving(r->solo)->n_slot; i++) step->free_slot[step->n_free++] = (uint32_t)i;
}

/* A step; n_event events are r->events then. */
static enum mu_status step_run(struct run *r, struct mu_sched *sched, bool first, int *n_event_out, struct mu_err *err)
{
    struct mu_step_result result;
    if (!mu_sched_next(sched, r->step)) return mu_fail(err, MU_EINTERNAL, "there are streams, and no step for them");
    if (first) slots_free(r);
    int64_t start = mu_now_ns();
    enum mu_status st = mu_solo_step(r->solo, r->step, &result, err);
    if (st != MU_OK) return st;
    int64_t us = (mu_now_ns() - start) / 1000;
    mu_sched_took(sched, us < UINT32_MAX ? (uint32_t)us : UINT32_MAX);
    *n_event_out = mu_sched_complete(sched, r->step->number, result.id, r->events);
    return *n_event_out >= 0 ? MU_OK : mu_fail(err, MU_EINTERNAL, "a step that is not in flight");
}

static enum mu_status event_take(struct run *r, const struct mu_sched_event *e, int *n_begun, int *n_over,
                                 struct mu_err *err)
{
    int i = (int)(e->request - r->request);
    if (e->error != MU_OK) return mu_fail(err, e->error, "stream %d cannot go on after %d tokens", i, r->n_got[i]);
    if (e->id >= 0) {
        *n_begun += r->n_got[i] == 0;
        r->got[(size_t)i * (size_t)r->d->opt->n_decode + (size_t)r->n_got[i]++] = e->id;
    }
    *n_over += e->finished;
    return MU_OK;
}

/* All streams from their prompts to their ends. Times are taken from when each has its first token. */
static enum mu_status run_once(struct run *r, const struct mu_bench_draft_case *c, enum mu_bench_way way,
                               struct mu_bench_counts *counts_out, struct mu_err *err)
{
    struct mu_sched *sched = r->sched[way];
    struct mu_bench_counts counts = {0};
    struct mu_sched_counts before, after;
    int n_begun = 0, n_over = 0, n_event = 0;
    int64_t start = 0;
    mu_drafter_forget(r->drafter);
    mu_sched_count(sched, &before);
    enum mu_status st = streams_submit(r, sched, c, err);
    for (bool first = true; st == MU_OK && n_over < c->n_stream; first = false) {
        bool decoding = start != 0;
        if (mu_interrupted) return mu_fail(err, MU_ECANCELLED, "interrupted");
        if (way == MU_BENCH_DRAFT) MU_TRY(st, drafts_make(r, sched, &counts, err), fail);
        MU_TRY(st, step_run(r, sched, first, &n_event, err), fail);
        counts.n_step += decoding;
        for (int i = 0; i < n_event; i++) {
            counts.n_token += decoding && r->events[i].id >= 0;
            MU_TRY(st, event_take(r, &r->events[i], &n_begun, &n_over, err), fail);
        }
        if (!start && n_begun == c->n_stream) start = mu_now_ns();
    }
    counts.seconds = (double)(mu_now_ns() - start) / 1e9;
    mu_sched_count(sched, &after);
    counts.drafted = after.model_drafted - before.model_drafted;
    counts.draft_right = after.model_taken - before.model_taken;
    counts.found = after.drafted - before.drafted - counts.drafted;
    counts.found_right = after.drafts_taken - before.drafts_taken - counts.draft_right;
    *counts_out = counts;
fail:
    return st;
}

/* ---- the same ids ---- */

static const char *const way_names[MU_BENCH_WAYS] = {"plain", "found", "draft"};

static void ids_remember(struct run *r, struct mu_bench_draft_case *c)
{
    size_t n_stream = (size_t)c->n_stream, n_decode = (size_t)r->d->opt->n_decode;
    memcpy(r->want, r->got, n_stream * n_decode * sizeof *r->want);
    memcpy(r->n_want, r->n_got, n_stream * sizeof *r->n_want);
    for (size_t i = 0; i < n_stream; i++) c->n_id += (uint64_t)r->n_want[i];
}

static enum mu_status ids_compare(const struct run *r, const struct mu_bench_draft_case *c, enum mu_bench_way way,
                                  struct mu_err *err)
{
    for (int i = 0; i < c->n_stream; i++) {
        const int32_t *want = r->want + (size_t)i * (size_t)r->d->opt->n_decode,
                      *got = r->got + (size_t)i * (size_t)r->d->opt->n_decode;
        int k = 0;
        while (k < r->n_want[i] && k < r->n_got[i] && want[k] == got[k]) k++;
        if (k == r->n_want[i] && k == r->n_got[i]) continue;
        char name[40];
        mu_bench_draft_case_name(c, name, sizeof name);
        return mu_fail(
            err, MU_EINTERNAL,
            "guesses changed an answer, which they never may: %s, stream %d: '%s' says another token %d than "
            "'%s' did; please report it",
            name, i, way_names[way], k, way_names[MU_BENCH_PLAIN]);
    }
    return MU_OK;
}

/* ---- a case ---- */

static enum mu_status case_open(struct run *r, const struct mu_bench_draft_case *c, struct mu_err *err)
{
    const struct mu_config *cfg = &r->d->model->cfg;
    for (int way = 0; way < MU_BENCH_WAYS; way++) {
        struct mu_sched_options so = {.serving = *mu_solo_serving(r->solo),
                                      .n_stage = 1,
                                      .n_vocab = cfg->n_vocab,
                                      .max_waiting = c->n_stream,
                                      .n_ctx_short = cfg->n_ctx_short,
                                      .no_prefix_cache = true,
                                      .no_speculation = way == MU_BENCH_PLAIN};
        if (way == MU_BENCH_DRAFT) {
            so.n_draft_seat = r->draft_serving.n_slot;
            so.n_draft_ctx = r->draft_serving.n_ctx;
        }
        enum mu_status st = mu_sched_create(&so, &r->sched[way], err);
        if (st != MU_OK) return st;
    }
    size_t n_stream = (size_t)c->n_stream, n_id = n_stream * (size_t)r->d->opt->n_decode;
    r->want = mu_calloc(n_id, sizeof *r->want);
    r->got = mu_calloc(n_id, sizeof *r->got);
    r->n_want = mu_calloc(n_stream, sizeof *r->n_want);
    r->n_got = mu_calloc(n_stream, sizeof *r->n_got);
    return r->want && r->got && r->n_want && r->n_got
               ? MU_OK
               : mu_fail(err, MU_ENOMEM, "no memory for %d streams", c->n_stream);
}

static void case_close(struct run *r)
{
    for (int way = 0; way < MU_BENCH_WAYS; way++) {
        mu_sched_destroy(r->sched[way]);
        r->sched[way] = NULL;
    }
    mu_free(r->want);
    mu_free(r->got);
    mu_free(r->n_want);
    mu_free(r->n_got);
    r->want = r->got = NULL;
    r->n_want = r->n_got = NULL;
}

static void counts_add(struct mu_bench_counts *sum, const struct mu_bench_counts *c)
{
    sum->seconds += c->seconds;
    sum->n_token += c->n_token;
    sum->n_step += c->n_step;
    sum->found += c->found;
    sum->found_right += c->found_right;
    sum->drafted += c->drafted;
    sum->draft_right += c->draft_right;
    sum->draft_us += c->draft_us;
    sum->read_us += c->read_us;
    sum->n_draft_step += c->n_draft_step;
    sum->n_read += c->n_read;
}

static enum mu_status case_run(struct run *r, struct mu_bench_draft_case *c, struct mu_err *err)
{
    enum mu_status st;
    double rate[MU_BENCH_WAYS][MU_BENCH_MAX_REPEATS], gain[MU_BENCH_MAX_REPEATS], of_plain[MU_BENCH_MAX_REPEATS];
    int n_repeat = r->d->opt->n_repeat;
    MU_TRY(st, case_open(r, c, err), out);
    for (int i = -1; i < n_repeat; i++) { /* the first time is not counted */
        for (int way = 0; way < MU_BENCH_WAYS; way++) {
            struct mu_bench_counts counts = {0};
            MU_TRY(st, run_once(r, c, way, &counts, err), out);
            mu_bar_update(&r->bar, ++r->done, r->total);
            if (i < 0 && way == MU_BENCH_PLAIN) ids_remember(r, c);
            MU_TRY(st, ids_compare(r, c, way, err), out);
            if (i < 0) continue;
            if (!counts.n_token) {
                st = mu_fail(err, MU_EINVAL, "the answers end with their first token: other prompts are needed");
                goto out;
            }
            counts_add(&c->sum[way], &counts);
            rate[way][i] = (double)counts.n_token / counts.seconds;
        }
        if (i < 0) continue;
        gain[i] = rate[MU_BENCH_DRAFT][i] / rate[MU_BENCH_FOUND][i];
        of_plain[i] = rate[MU_BENCH_DRAFT][i] / rate[MU_BENCH_PLAIN][i];
    }
    for (int way = 0; way < MU_BENCH_WAYS; way++) c->rate[way] = mu_bench_spread_of(rate[way], (size_t)n_repeat);
    c->gain = mu_bench_spread_of(gain, (size_t)n_repeat);
    c->of_plain = mu_bench_spread_of(of_plain, (size_t)n_repeat);
    c->done = true;
out:
    case_close(r);
    return st;
}

/* ---- all of them ---- */

static void cases_make(struct mu_bench_drafted *d)
{
    static const float temperatures[] = {0, 1};
    for (int i = 0; i < d->opt->stream.n; i++)
        for (int t = 0; t < 2; t++)
            d->cases[d->n_case++] =
                (struct mu_bench_draft_case){.n_stream = d->opt->stream.at[i], .temperature = temperatures[t]};
}

/* The model and its draft, with room for the longest prompts and for a step's guesses. */
static enum mu_status gang_open(struct run *r, struct mu_err *err)
{
    enum mu_status st;
    const struct mu_bench_draft_options *o = r->d->opt;
    const struct mu_model *model = r->d->model;
    struct mu_bar bar = {.label = "loading"};
    size_t longest = 0;
    int n_stream = 1;
    for (int i = 0; i < r->text.n; i++)
        if (r->prompt[i].n > longest) longest = r->prompt[i].n;
    for (int i = 0; i < o->stream.n; i++)
        if (o->stream.at[i] > n_stream) n_stream = o->stream.at[i];
    if (longest + (size_t)o->n_decode > (size_t)model->cfg.n_ctx_train)
        return mu_fail(err, MU_ELIMIT, "prompts of up to %zu tokens and %d more do not fit the model's context of %d",
                       longest, o->n_decode, model->cfg.n_ctx_train);
    struct mu_solo_options so = {.model = model,
                                 .pin = 1,
                                 .serving = {.n_ctx = (int)longest + o->n_decode,
                                             .n_slot = n_stream,
                                             .step_tokens = n_stream > MU_STEP_TOKENS ? n_stream : MU_STEP_TOKENS,
                                             .window = mu_plan_window(model),
                                             .kv = o->kv},
                                 .load_progress = mu_bar_load,
                                 .load_ctx = &bar};
    MU_TRY(st, mu_split_parse("1", &so.split, err), out);
    so.n_thread = o->n_thread ? o->n_thread : mu_default_threads(&so.split);
    r->d->n_thread = so.n_thread;
    MU_TRY(st, mu_cli_fit(model, NULL, r->d->draft, &so.split, MU_FIT_CTX | MU_FIT_SLOTS, NULL, &so.serving, NULL, err),
           out);
    r->draft_serving = mu_draft_serving(r->d->draft, &so.serving);
    r->draft_serving.n_thread = so.n_thread;
    so.serving.n_slot += MU_DRAFT_SEATS * MU_MAX_DRAFT; /* places of a step: the pages are those of the streams … */
    so.serving.n_page += (uint32_t)n_stream;            /* … and of guesses at their ends */
    MU_TRY(st, mu_solo_open(&so, &r->solo, err), out);
    MU_TRY(st, mu_step_create(mu_solo_serving(r->solo), model->cfg.n_vocab, &r->step, err), out);
    r->events = mu_calloc((size_t)so.serving.n_slot, sizeof *r->events);
    if (!r->events) return mu_fail(err, MU_ENOMEM, "no memory for %d streams", n_stream);
    struct mu_drafter_options opt = {.model = r->d->draft,
                                     .serving = r->draft_serving,
                                     .n_vocab = model->cfg.n_vocab,
                                     .pool = mu_solo_pool(r->solo)};
    st = mu_drafter_create(&opt, &r->drafter, err);
out:
    return st;
}

static void warn(struct mu_bench_drafted *d)
{
    int n = 0;
    double worst = 0;
    mu_bench_machine_warn(&d->machine, true, &d->warnings);
    for (int i = 0; i < d->n_case; i++) {
        const struct mu_bench_draft_case *c = &d->cases[i];
        char name[40];
        if (!c->done) continue;
        double noise = mu_bench_noise(&c->gain);
        n += noise > MU_BENCH_MOST_NOISE;
        if (noise > worst) worst = noise;
        mu_bench_draft_case_name(c, name, sizeof name);
        if (c->n_id < (uint64_t)c->n_stream * (uint64_t)d->opt->n_decode / 2)
            mu_bench_warn(&d->warnings, "short: the answers of '%s' end after %.0f tokens on average", name,
                          (double)c->n_id / c->n_stream);
    }
    if (n)
        mu_bench_warn(&d->warnings,
                      "noisy: gains of %d case%s lie more than %.0f%% apart between repeats (up to %.0f%%)", n,
                      n == 1 ? "" : "s", 100 * MU_BENCH_MOST_NOISE, 100 * worst);
}

static enum mu_status cases_run(struct run *r, struct mu_err *err)
{
    struct mu_bench_drafted *d = r->d;
    enum mu_status st = MU_OK;
    r->bar.label = "measuring";
    r->total = (uint64_t)d->n_case * (uint64_t)(d->opt->n_repeat + 1) * MU_BENCH_WAYS;
    for (int i = 0; i < d->n_case && st == MU_OK; i++) st = case_run(r, &d->cases[i], err);
    mu_bar_update(&r->bar, r->total, r->total);
    d->interrupted = st == MU_ECANCELLED;
    return d->interrupted && d->cases[0].done ? MU_OK : st;
}

enum mu_status mu_bench_draft(const struct mu_bench_draft_options *opt, struct mu_err *err)
{
    enum mu_status st;
    struct mu_bench_watch *watch = NULL;
    struct mu_opened o = {0};
    struct mu_guess *small = NULL;
    struct run r = {0};
    struct mu_bench_drafted *d = r.d = mu_calloc(1, sizeof *d);
    if (!d) return mu_fail(err, MU_ENOMEM, "no memory for a benchmark");
    d->opt = opt;
    MU_TRY(st, mu_kernels_init(NULL, err), done);
    MU_TRY(st, mu_cli_open(opt->model, true, &o, err), done);
    MU_TRY(st, mu_model_quantize(o.model, opt->quantize, err), done);
    MU_TRY(st, mu_guess_open(opt->draft, &o, &small, err), done);
    d->model = o.model;
    d->draft = mu_guess_model(small);
    MU_TRY(st, prompts_make(&r, o.tok, err), done);
    cases_make(d);
    mu_signals_catch_ends();
    MU_TRY(st, gang_open(&r, err), done);
    MU_TRY(st, mu_bench_watch_begin(&watch, err), done);
    st = cases_run(&r, err);
    mu_bench_watch_end(watch, &d->machine);
    if (st != MU_OK) goto done;
    warn(d);
    st = mu_bench_drafted_report(d, err);
done:
    mu_drafter_destroy(r.drafter);
    mu_solo_close(r.solo);
    mu_free(r.step);
    mu_free(r.events);
    for (int i = 0; r.prompt && i < r.text.n; i++) mu_free(r.prompt[i].ids);
    mu_free(r.prompt);
    mu_bench_prompts_free(&r.text);
    mu_guess_close(small);
    mu_cli_close(&o);
    mu_free(d);
    return st;
}
