/* The scheduler in time: a gang whose stages take so long as a model of costs says, and a leader that plans when it does
 * (between its own shares of steps). What must come out: every stage is busy, and streams keep their pace while long
 * prompts arrive.
 *
 * A step takes each stage fixed + prefill · its prefill tokens + decode · its decodes, in milliseconds. A draft model keeps
 * the leader, which is the last stage, from its next share for as long as it reads and guesses. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "shard/plan_draft.h"
#include "worker/scheduler.h"

enum {
    MAX_STAGE = 4,
    MAX_FLIGHT = MAX_STAGE + 2,
    N_SLOT = 16,
    CROWD = 128, /* streams, where many come at once */
    N_CTX = 8192,
    PROMPT = 4096,
    MAX_GAP = 1 << 18,
    N_ID = 5
};

struct costs {
    const char *name;
    double fixed, prefill, decode; /* of the whole model */
};
/* One processor of a few cores with a model of 1B; one that is a hundred times faster at prompts; slow and noisy. */
static const struct costs cpu = {"CPU", 35, 4, 0.5}, gpu = {"GPU", 20, 0.05, 0.1}, noisy = {"noisy", 60, 9, 3};

struct world {
    struct mu_sched *s;
    struct mu_step *step[MAX_FLIGHT];
    double planned[MAX_FLIGHT], end[MAX_FLIGHT];
    int n_stage, head, n;
    double now, done, free_at[MAX_STAGE], busy[MAX_STAGE];
    double last_token[CROWD]; /* of the streams */
    double *gap;
    size_t n_gap;
    int n_stream, n_prompt, n_begun, n_answered; /* n_begun: prompts that have their first token */
    uint32_t noise;
    bool speculates;
    int n_slow; /* of the first steps, which take ten times as long: others had the machine */
    int wander; /* ids: 0 always the same one, 1 they come again, 2 they do not */
    struct draft_costs {
        double read, guess, right; /* ms for an id and for a guess; how many of the guesses are right; guess 0: none */
    } model;
    double took[MAX_FLIGHT];                /* of the last stage */
    uint32_t slot_of[CROWD], n_read[CROWD]; /* of streams */
};

static void submit_as(struct world *w, enum mu_priority priority, uint64_t id, size_t n_prompt, uint32_t max_tokens)
{
    static int32_t ids[PROMPT];
    struct mu_err err = MU_ERR_INIT;
    bool finished;
    for (size_t i = 0; i < n_prompt; i++) ids[i] = (int32_t)((id * 7 + i) % 1000); /* no two begin alike */
    const struct mu_sched_request r = {
        .id = id, .prompt = ids, .n_prompt = n_prompt, .max_tokens = max_tokens, .priority = priority};
    if (mu_sched_submit(w->s, &r, &finished, &err) != MU_OK) fail_msg("%s", err.text);
}

static void submit(struct world *w, uint64_t id, size_t n_prompt, uint32_t max_tokens)
{
    submit_as(w, MU_PRIORITY_INTERACTIVE, id, n_prompt, max_tokens);
}

/* Plans a step; when each stage will have done its share. */
static bool plan(struct world *w, const struct costs *c)
{
    int at = (w->head + w->n) % MAX_FLIGHT;
    struct mu_step *st = w->step[at];
    if (!mu_sched_next(w->s, st)) return false;
    uint32_t n_decode = 0;
    for (uint32_t i = 0; i < st->n_seq; i++)
        n_decode += st->seq[i].n_tok == 1 && (i == 0 || st->seq[i - 1].slot != st->seq[i].slot);
    double ms = c->fixed + c->prefill * (st->n_tok - n_decode) + c->decode * n_decode, ready = w->now;
    w->noise = w->noise * 1664525u + 1013904223u;
    if (w->n_slow && w->n_slow--) ms *= 10;
    if (c == &noisy) ms *= 0.85 + 0.3 * (double)(w->noise >> 8) / (1 << 24);
    for (int k = 0; k < w->n_stage; k++) {
        double begin = ready > w->free_at[k] ? ready : w->free_at[k], took = ms / w->n_stage;
        ready = w->free_at[k] = begin + took;
        w->busy[k] += took;
    }
    w->planned[at] = w->now;
    w->took[at] = ms / w->n_stage;
    w->end[at] = ready;
    w->n++;
    return true;
}

/* Ids that come again and again, or never in the same order. */
static int32_t id_at(const struct world *w, uint32_t slot, uint32_t pos)
{
    uint32_t x = (w->wander == 1 ? pos % 50 : pos + slot * N_CTX) * 2654435761u;
    return (int32_t)((x ^ x >> 15) * 2246822519u % 1000u);
}

/* Guesses that are right now and then; what the model has not read yet it reads first. */
static void answer(struct world *w, struct mu_draft_ask *a, uint32_t *read_left, struct mu_draft_took *took)
{
    uint64_t i = a->sequence;
    if (w->n_read[i] > a->n_ids) w->n_read[i] = 0; /* another text */
    uint32_t n = a->n_ids - w->n_read[i] < *read_left ? a->n_ids - w->n_read[i] : *read_left;
    if (a->n_ids - w->n_read[i] > 16) {
        w->n_read[i] += n;
        *read_left -= n;
        took->n_read += n;
        a->n_behind = a->n_ids - w->n_read[i];
        if (a->n_behind) return;
    }
    w->n_read[i] = a->n_ids;
    for (a->n_draft = 0; a->n_draft < a->most; a->n_draft++) {
        int32_t id = id_at(w, w->slot_of[i], a->n_ids - 1 + a->n_draft);
        w->noise = w->noise * 1664525u + 1013904223u;
        bool right = (double)(w->noise >> 8) / (1 << 24) < w->model.right;
        a->draft[a->n_draft] = right ? id : (id + 1) % 1000;
    }
    if (took->n_step < a->most) took->n_step = a->most;
}

/* The leader's steps wait for the draft model. */
static void draft(struct world *w)
{
    struct mu_draft_ask ask[MU_DRAFT_SEATS];
    struct mu_draft_took took = {0};
    uint32_t read_left;
    int n = mu_sched_ask_drafts(w->s, ask, &read_left);
    if (!n) return;
    for (int i = 0; i < n; i++) answer(w, &ask[i], &read_left, &took);
    double read_ms = w->model.read * took.n_read, step_ms = w->model.guess * took.n_step;
    took.read_us = (uint32_t)(1000 * read_ms);
    took.step_us = (uint32_t)(1000 * step_ms);
    mu_sched_answer_drafts(w->s, ask, n, &took);
    w->now += read_ms + step_ms;
    w->done = w->now;
    double busy = w->now;
    for (int k = 0; k < w->n; k++) {
        int at = (w->head + k) % MAX_FLIGHT;
        if (w->end[at] - w->took[at] < busy) w->end[at] = busy + w->took[at];
        busy = w->end[at];
    }
    if (w->free_at[w->n_stage - 1] < busy) w->free_at[w->n_stage - 1] = busy;
}

static void complete(struct world *w)
{
    const struct mu_step *st = w->step[w->head];
    struct mu_sched_event events[CROWD];
    int32_t id[CROWD];
    for (uint32_t i = 0; i < st->n_seq; i++)
        id[i] = st->seq[i].out != MU_OUT_SAMPLE ? -1 : w->wander ? id_at(w, st->seq[i].slot, st->seq[i].pos0) : N_ID;
    double began = w->planned[w->head] > w->done ? w->planned[w->head] : w->done;
    w->now = w->done = w->end[w->head];
    mu_sched_took(w->s, (uint32_t)((w->now - began) * 1000));
    int n = mu_sched_complete(w->s, st->number, id, events);
    assert_true(n >= 0);
    w->head = (w->head + 1) % MAX_FLIGHT;
    w->n--;
    for (int i = 0; i < n; i++) {
        uint64_t r = events[i].request;
        if (r >= (uint64_t)w->n_stream) {
            w->n_begun += events[i].position == 0;
            w->n_answered += events[i].finished;
            continue;
        }
        w->slot_of[r] = st->seq[events[i].seq].slot;
        if (w->last_token[r] > 0 && w->n_gap < MAX_GAP) w->gap[w->n_gap++] = w->now - w->last_token[r];
        w->last_token[r] = w->now;
        if (!events[i].finished) continue;
        submit(w, r, 32, N_CTX); /* its context was full: it begins again */
        w->last_token[r] = 0;
    }
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

struct outcome {
    double median, p99, worst, least_busy;
    int n_prompt, n_answered;
    double per_s; /* tokens of all streams */
    struct mu_sched_counts counts;
};

/* With n_slot sequences, pages for n_each ids of each. */
static void world_open(struct world *w, int n_slot, int n_each)
{
    struct mu_err err = MU_ERR_INIT;
    const struct mu_sched_options opt = {.serving = {.n_ctx = N_CTX,
                                                     .n_slot = n_slot,
                                                     .n_page = (uint32_t)(n_slot * n_each / MU_PAGE_TOKENS),
                                                     .step_tokens = 512},
                                         .n_stage = w->n_stage,
                                         .n_vocab = 1000,
                                         .max_waiting = 4096,
                                         .no_speculation = !w->speculates,
                                         .n_draft_seat = w->model.guess > 0 ? MU_DRAFT_SEATS : 0,
                                         .n_draft_ctx = N_CTX};
    assert_int_equal(mu_sched_create(&opt, &w->s, &err), MU_OK);
    for (int i = 0; i < MAX_FLIGHT; i++)
        assert_int_equal(mu_step_create(&opt.serving, opt.n_vocab, &w->step[i], &err), MU_OK);
    w->gap = calloc(MAX_GAP, sizeof *w->gap);
}

static void world_close(struct world *w)
{
    for (int i = 0; i < MAX_FLIGHT; i++) mu_free(w->step[i]);
    mu_sched_destroy(w->s);
    free(w->gap);
}

/* Streams that never end; prompts that arrive every so many milliseconds (0: none), answered with a few tokens. */
static struct outcome run_as(struct world w, const struct costs *c, double every_ms, double total_ms)
{
    int n_stage = w.n_stage, n_stream = w.n_stream;
    world_open(&w, N_SLOT, N_CTX);
    for (int i = 0; i < n_stream; i++) submit(&w, (uint64_t)i, 32, N_CTX);
    double next = every_ms > 0 ? 20 * every_ms / 19 : total_ms * 2;
    while (w.now < total_ms) {
        for (; next <= w.now; next += every_ms) submit(&w, (uint64_t)(n_stream + w.n_prompt++), PROMPT, 4);
        do draft(&w);
        while (plan(&w, c));
        complete(&w);
    }
    struct outcome o = {.least_busy = 1, .n_prompt = w.n_prompt, .n_answered = w.n_answered};
    for (int k = 0; k < n_stage; k++)
        if (w.busy[k] / w.free_at[n_stage - 1] < o.least_busy) o.least_busy = w.busy[k] / w.free_at[n_stage - 1];
    qsort(w.gap, w.n_gap, sizeof *w.gap, ascending);
    o.per_s = (double)w.n_gap * 1000 / w.now;
    o.median = w.gap[w.n_gap / 2];
    o.p99 = w.gap[w.n_gap * 99 / 100];
    o.worst = w.gap[w.n_gap - 1];
    print_message(
        "%-5s %d stages %d streams, a prompt every %6.0f ms: busy %.3f; gap %5.0f ms, p99 %5.0f (%.2f), worst %5.0f; "
        "%d of %d prompts answered\n",
        c->name, n_stage, n_stream, every_ms, o.least_busy, o.median, o.p99, o.p99 / o.median, o.worst, o.n_answered,
        o.n_prompt);
    mu_sched_count(w.s, &o.counts);
    world_close(&w);
    return o;
}

static struct outcome run(const struct costs *c, int n_stage, int n_stream, double every_ms, double total_ms)
{
    return run_as((struct world){.n_stage = n_stage, .n_stream = n_stream, .noise = 1}, c, every_ms, total_ms);
}

/* As many streams as stages, or more: no stage waits, with prompts or without. */
static void test_stages_are_busy(void **state)
{
    (void)state;
    for (int n_stage = 2; n_stage <= 4; n_stage++)
        for (int n_stream = n_stage; n_stream <= 9; n_stream += n_stream < 4 ? 1 : 5) {
            struct outcome o = run(&cpu, n_stage, n_stream, 0, 60000);
            assert_true(o.least_busy >= 0.9);
            /* and streams, which did not begin in the same step, share as many steps as there are stages */
            assert_true(o.median < 1.1 * (cpu.fixed + cpu.decode * n_stream / n_stage));
            assert_true(run(&cpu, n_stage, n_stream, 15000, 200000).least_busy >= 0.9);
        }
    /* and with nothing but prompts */
    assert_true(run(&gpu, 2, 1, 100, 20000).least_busy >= 0.9);
}

static void test_streams_keep_their_pace(void **state)
{
    (void)state;
    const struct costs *costs[] = {&cpu, &gpu, &noisy};
    for (int c = 0; c < 3; c++)
        for (int n_stage = 1; n_stage <= 3; n_stage++)
            for (int n_stream = 1; n_stream <= 8; n_stream *= 2) {
                double prompt_ms = costs[c]->prefill * PROMPT;
                for (int load = 1; load <= 3; load++) { /* a prompt now and then, often, more than can be done */
                    double every = prompt_ms * (load == 1 ? 10 : load == 2 ? 4 : 1), total = prompt_ms * 40;
                    struct outcome o = run(costs[c], n_stage, n_stream, every, total);
                    if (!(o.p99 < 3 * o.median)) fail_msg("a stream stalls");
                    assert_true(n_stream < n_stage || o.least_busy > 0.89);
                    assert_true(o.n_answered >= (load == 3 ? o.n_prompt / 4 : o.n_prompt * 3 / 4 - 1));
                }
            }
}

/* How long a prompt that is alone takes, in the least that it could: all stages at work all the time. */
static double alone(const struct costs *c, int n_stage, uint32_t n_prompt)
{
    struct world w = {.n_stage = n_stage, .noise = 1};
    double took = 0;
    world_open(&w, N_SLOT, N_CTX);
    for (int round = 0; round < 2; round++) { /* the first one's answer tells what steps cost */
        double began = w.now;
        submit(&w, (uint64_t)round, n_prompt, round ? 1 : 64);
        for (w.n_answered = 0; !w.n_answered; complete(&w))
            while (plan(&w, c)) {}
        took = w.now - began;
    }
    world_close(&w);
    double least = (c->fixed + c->prefill * n_prompt) / n_stage;
    print_message("%-5s %d stages, a prompt of %4u alone: %5.0f ms, %.2f of the least\n", c->name, n_stage, n_prompt,
                  took, took / least);
    return took / least;
}

/* One prompt is cut into steps for all stages; but not where a step costs as much as the prompt. */
static void test_one_prompt_keeps_stages_busy(void **state)
{
    (void)state;
    for (int n_stage = 1; n_stage <= 4; n_stage++) {
        assert_true(alone(&cpu, n_stage, 512) < 1.01 + 0.3 * (n_stage - 1));
        assert_true(alone(&cpu, n_stage, 4096) < 1.02 + 0.1 * (n_stage - 1));
        assert_true(alone(&gpu, n_stage, 512) < 1.35 * n_stage); /* in one step it would be n_stage */
        assert_true(alone(&gpu, n_stage, 4096) < 1.65 + 0.3 * (n_stage - 1));
    }
}

static const struct costs even = {"even", 8, 1, 1}; /* a token costs the same wherever it is from */

/* Returns the longest gap that it ended; 0: none. */
static double step(struct world *w)
{
    const size_t n_gap = w->n_gap;
    double longest = 0;
    while (plan(w, &even)) {}
    complete(w);
    for (size_t i = n_gap; i < w->n_gap; i++) longest = fmax(longest, w->gap[i]);
    return longest;
}

/* A stream that runs alone, until its gap is known. */
static struct world stream_open(int n_stage)
{
    struct world w = {.n_stage = n_stage, .n_stream = 1, .noise = 1};
    world_open(&w, CROWD, 1024);
    submit(&w, 0, 32, N_CTX / 2);
    for (int i = 0; i < 64; i++) step(&w);
    return w;
}

/* The stream's gap, were there nothing but decodes. */
static double usual_ms(const struct world *w)
{
    return even.fixed + even.decode * (w->n_begun + 1);
}

/* A crowd comes while one stream runs, whose gap is all that is known: no step without prompts shows what streams cost until all
 * have begun. What must come out: they begin as soon as may be. Where gaps are 2.5 times those of decodes alone, 0.6 of the time
 * are the prompts'; they may be longer while more than half as many wait as stream: six times that, or a tenth of a second. */
static void test_a_crowd_begins_soon(void **state)
{
    (void)state;
    for (int n_stage = 1; n_stage <= 3; n_stage++)
        for (uint32_t n_prompt = 16; n_prompt <= 256; n_prompt *= 4) {
            struct world w = stream_open(n_stage);
            const double began = w.now;
            for (uint64_t i = 1; i < CROWD; i++) submit(&w, i, n_prompt, 700);
            double longest = 0, longest_late = 0;
            while (w.n_begun < CROWD - 1) {
                const double usual = usual_ms(&w), gap = step(&w);
                longest = fmax(longest, gap / fmax(usual, 100 / 6.0));
                if (w.n_begun > CROWD * 3 / 4) longest_late = fmax(longest_late, gap / usual);
            }
            const double least = even.prefill * n_prompt * (CROWD - 1) / 0.6 / n_stage;
            print_message("%d stages, %d prompts of %3u at once: %.2f of the least time, gaps up to %.2f, then %.2f\n",
                          n_stage, CROWD - 1, n_prompt, (w.now - began) / least, longest, longest_late);
            assert_true(w.now - began < 1.15 * least && longest < 6.6 && longest_late < 3);
            world_close(&w);
        }
}

/* A crowd that is less urgent than the stream: it keeps its pace. */
static void test_a_crowd_that_can_wait(void **state)
{
    (void)state;
    for (int n_stage = 1; n_stage <= 3; n_stage++) {
        struct world w = stream_open(n_stage);
        for (uint64_t i = 1; i < CROWD; i++) submit_as(&w, i % 2 ? MU_PRIORITY_NORMAL : MU_PRIORITY_BATCH, i, 256, 700);
        double longest = 0;
        while (w.n_begun < CROWD - 1) {
            const double usual = usual_ms(&w);
            longest = fmax(longest, step(&w) / usual);
        }
        print_message("%d stages, a crowd that can wait: gaps up to %.2f\n", n_stage, longest);
        assert_true(longest < 3);
        world_close(&w);
    }
}

/* A crowd goes while prompts keep coming, two at a time: what its gap was is too long for who is left. */
static void test_a_crowd_has_gone(void **state)
{
    (void)state;
    for (int n_stage = 1; n_stage <= 3; n_stage++) {
        struct world w = {.n_stage = n_stage, .n_stream = 1, .noise = 1};
        world_open(&w, CROWD, 1024);
        submit(&w, 0, 32, N_CTX / 2);
        for (uint64_t i = 1; i < CROWD / 2; i++) submit(&w, i, 32, 200);
        while (w.n_answered < 1) step(&w);
        size_t n_gap = 0;
        for (int n = 0; w.n_answered < CROWD / 2 + 6; step(&w)) {
            while (n < w.n_answered + 2 - CROWD / 2 + 1 || n < 2) submit(&w, (uint64_t)(CROWD + n++), PROMPT, 1);
            if (w.n_answered < CROWD / 2) n_gap = w.n_gap; /* the crowd, and one prompt */
        }
        qsort(w.gap + n_gap, w.n_gap - n_gap, sizeof *w.gap, ascending);
        const double p99 = w.gap[n_gap + (w.n_gap - n_gap) * 99 / 100] / (even.fixed + even.decode);
        print_message("%d stages, a crowd has gone: p99 of the gap %.2f of one without prompts\n", n_stage, p99);
        assert_true(p99 < 3);
        world_close(&w);
    }
}

/* So many callers, each of whom asks again as soon as it is answered, prompts of four times the tokens of answers: the machine does
 * what it can, in steps that are worth their fixed costs. */
static void test_callers_without_end(void **state)
{
    (void)state;
    for (int n_stage = 1; n_stage <= 3; n_stage++) {
        struct world w = {.n_stage = n_stage, .noise = 1};
        world_open(&w, CROWD, 1024);
        double n_tok = 0;
        submit(&w, 0, 32, 64); /* then it is known what a step takes */
        while (w.n_answered < 1) step(&w);
        const double began = w.now;
        for (int n = 1; w.n_answered < 500; step(&w))
            for (; n < w.n_answered + CROWD / 2; n++) {
                w.noise = w.noise * 1664525u + 1013904223u;
                const uint32_t n_prompt = 64 + (w.noise >> 8) % 192, n_answer = 16 + (w.noise >> 16) % 48;
                if (n < 500) n_tok += n_prompt + n_answer; /* what is under way at the end is about as much */
                submit(&w, (uint64_t)n, n_prompt, n_answer);
            }
        const double share = even.prefill * n_tok / n_stage / (w.now - began);
        print_message("%d stages, %d callers without end: %.2f of the time is not for steps' fixed costs\n", n_stage,
                      CROWD / 2, share);
        assert_true(share > 0.78);
        world_close(&w);
    }
}

/* Texts that repeat themselves go faster with drafts, others no slower; where drafts cost more than they give there are
 * none. */
static void test_speculation_pays_or_stops(void **state)
{
    (void)state;
    const struct costs *costs[] = {&cpu, &gpu, &noisy}, dear = {"dear", 35, 40, 0.5};
    for (int n_stage = 1; n_stage <= 2; n_stage++)
        for (int n_stream = 1; n_stream <= 4; n_stream *= 2)
            for (int c = 0; c < 4; c++)
                for (int repeats = 0; repeats < 2; repeats++) {
                    struct world w = {.n_stage = n_stage, .n_stream = n_stream, .noise = 1, .wander = repeats ? 1 : 2};
                    const struct costs *k = c < 3 ? costs[c] : &dear;
                    double without = run_as(w, k, 0, 60000).per_s, with;
                    w.speculates = true;
                    with = run_as(w, k, 0, 60000).per_s;
                    print_message("%s: %.2f times as fast\n", repeats ? "repeats" : "does not", with / without);
                    assert_true(with > 0.97 * without);
                    if (repeats && c < 2 && n_stream <= 2) assert_true(with > 1.5 * without);
                }
}

/* A draft model that is mostly right makes streams faster, as many as it has seats for; one that is not, or that takes as
 * long as the model itself, costs next to nothing, and neither do texts that repeat themselves get slower for it. */
static void test_a_draft_model_pays_or_stops(void **state)
{
    (void)state;
    const struct costs *costs[] = {&cpu, &gpu, &noisy};
    for (int c = 0; c < 3; c++)
        for (int n_stage = 1; n_stage <= 2; n_stage++)
            for (int n_stream = 1; n_stream <= 8; n_stream *= 2)
                for (int k = 0; k < 5; k++) {
                    /* right, sometimes right, never right, right and dear, never right where lookup is */
                    double right[] = {0.85, 0.5, 0, 0.85, 0}, T = costs[c]->fixed, ms = c == 2 ? 240000 : 60000;
                    struct world w = {.n_stage = n_stage,
                                      .n_stream = n_stream,
                                      .noise = 1,
                                      .speculates = true,
                                      .wander = k == 4 ? 1 : 2};
                    double without = run_as(w, costs[c], 0, ms).per_s, with;
                    w.model = (struct draft_costs){
                        .read = costs[c]->prefill / 10, .guess = k == 3 ? T : T / 12, .right = right[k]};
                    struct outcome o = run_as(w, costs[c], 0, ms);
                    with = o.per_s;
                    print_message("right %.2f%s: %.3f times as fast, %llu of %llu right\n", right[k],
                                  k == 3   ? ", dear"
                                  : k == 4 ? ", repeats"
                                           : "",
                                  with / without, (unsigned long long)o.counts.model_taken,
                                  (unsigned long long)o.counts.model_drafted);
                    /* A model that is tried again reads what was said meanwhile; beside several stages other steps wait too. */
                    assert_true(with > (n_stage > 1 ? 0.95 : 0.97) * without);
                    if (n_stream > MU_DRAFT_SEATS) assert_int_equal(o.counts.model_drafted, 0);
                    if (k == 0 && c < 2 && n_stream == 1) assert_true(with > (n_stage == 1 ? 2 : 1.5) * without);
                    if (k == 0 && c == 1 && n_stream <= MU_DRAFT_SEATS) assert_true(with > 1.5 * without);
                    if (k == 2)
                        assert_true(o.counts.model_drafted < 100 * (unsigned)n_stream + 100 &&
                                    o.counts.model_taken == 0);
                }
}

/* A machine that was busy when the first gap was measured, and is not any more: guesses that take as long as steps would
 * seem to pay for as long as every step has some. */
static void test_a_bad_moment_passes(void **state)
{
    (void)state;
    for (int k = 0; k < 3; k++) {
        struct world w = {.n_stage = 1, .n_stream = 1, .noise = 1, .speculates = true, .wander = 2, .n_slow = 2};
        double without = run_as(w, &cpu, 0, 60000).per_s;
        const double guess[] = {cpu.fixed, cpu.fixed / 2, cpu.fixed / 12};
        w.model = (struct draft_costs){.read = 0.4, .guess = guess[k], .right = 0.85};
        struct outcome o = run_as(w, &cpu, 0, 60000);
        print_message("a guess takes %.1f ms: %.3f times as fast, %llu of %llu right\n", guess[k], o.per_s / without,
                      (unsigned long long)o.counts.model_taken, (unsigned long long)o.counts.model_drafted);
        assert_true(o.per_s > (k == 2 ? 1.9 : 0.9) * without);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_stages_are_busy),
                                       cmocka_unit_test(test_streams_keep_their_pace),
                                       cmocka_unit_test(test_one_prompt_keeps_stages_busy),
                                       cmocka_unit_test(test_a_crowd_begins_soon),
                                       cmocka_unit_test(test_a_crowd_that_can_wait),
                                       cmocka_unit_test(test_a_crowd_has_gone),
                                       cmocka_unit_test(test_callers_without_end),
                                       cmocka_unit_test(test_speculation_pays_or_stops),
                                       cmocka_unit_test(test_a_draft_model_pays_or_stops),
                                       cmocka_unit_test(test_a_bad_moment_passes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
