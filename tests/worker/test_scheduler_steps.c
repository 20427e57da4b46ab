/* What a step is made of: decodes beside prefill, steps of several stages, texts to be embedded; and what is not
 * computed again, because another sequence or an earlier turn has it. */
#include "sched_sim.h"

#include <time.h>

#include "base/alloc.h"

/* More decodes than a step has tokens: a newcomer's prompt gets its share all the same. */
static void test_decodes_do_not_starve_a_prefill(void **state)
{
    (void)state;
    struct sim m;
    sim_open(&m, 1, 8, 60, 200, 4);
    for (int i = 0; i < 6; i++) request_plain(&m, i, 1, 150);
    for (int i = 0; i < 30; i++) {
        assert_true(sim_next(&m));
        sim_complete(&m);
    }
    request_plain(&m, 6, 10, 5);
    for (int i = 0; i < 40 && !m.req[6].done; i++) {
        assert_true(sim_next(&m));
        sim_complete(&m);
    }
    assert_true(m.req[6].done);
    while (m.n || sim_next(&m)) sim_complete(&m);
    assert_int_equal(m.n_done, 7);
    sim_close(&m);
}

/* Two stages: decodes are dealt out so that both have a step; prefill goes on beside decodes at a share of the
 * budget. */
static void test_steps_overlap(void **state)
{
    (void)state;
    struct sim m;
    sim_open(&m, 2, 8, 40, 128, 64);
    for (int i = 0; i < 8; i++) request_plain(&m, i, 8, 20);
    assert_true(sim_next(&m)); /* all eight prompts fill the budget */
    assert_int_equal(m.step[m.head]->n_seq, 8);
    assert_false(sim_next(&m));
    sim_complete(&m);
    assert_true(sim_next(&m));
    assert_true(sim_next(&m));
    assert_false(sim_next(&m)); /* every sequence is in flight */
    for (int k = 0; k < 2; k++) assert_int_equal(m.step[(m.head + k) % MAX_FLIGHT]->n_seq, 4);
    for (int i = 0; i < 18; i++) { /* the first four run out: their slots are for the newcomer */
        sim_complete(&m);
        sim_next(&m);
    }
    request_plain(&m, 8, 100, 1);
    while (m.n_done < 4) {
        sim_complete(&m);
        while (sim_next(&m))
            if (m.step[(m.head + m.n - 1) % MAX_FLIGHT]->n_seq > 1)
                assert_true(m.step[(m.head + m.n - 1) % MAX_FLIGHT]->n_tok <= 4 + 16);
    }
    while (m.n || sim_next(&m)) sim_complete(&m);
    assert_int_equal(m.n_done, 9);
    sim_close(&m);
}

/* A sequence outgrows the short context with its first token while both stages are at work for others: it has lost its
 * pages, and gets new ones with a step that is sent, since one without anything to do is not. */
static void test_pages_come_with_a_step(void **state)
{
    (void)state;
    struct sim m;
    struct mu_err err = MU_ERR_INIT;
    sim_open(&m, 2, 4, 60, 390, 32);
    mu_sched_destroy(m.s);
    m.opt.n_ctx_short = 8;
    assert_int_equal(mu_sched_create(&m.opt, &m.s, &err), MU_OK);
    request_plain(&m, 0, 2, 60);
    request_plain(&m, 1, 3, 60);
    assert_true(sim_next(&m)); /* both prompts */
    request_plain(&m, 2, 8, 2);
    assert_true(sim_next(&m)); /* this one */
    sim_complete(&m);
    assert_true(sim_next(&m) && sim_next(&m)); /* their decodes, one a stage */
    sim_complete(&m);
    assert_false(sim_next(&m));
    run_dry(&m);
    assert_int_equal(m.n_done, 3);
    sim_close(&m);
}

/* Eight choices of one prompt that come at once, with the same adapter and without: it is computed once for each kind,
 * but for the last page. A prompt of whole cached pages computes its last one, which samples. */
static void test_choices_share_their_prompt(void **state)
{
    (void)state;
    struct sim m;
    for (int n_stage = 1; n_stage <= 2; n_stage++) {
        sim_open(&m, n_stage, 8, 40, 200, 64);
        for (int i = 0; i < 8; i++) request_salted(&m, i, 0, 100, 2);
        run_dry(&m);
        assert_int_equal(m.n_done, 8);
        int n_kind = 0;
        for (int i = 0; i < 8; i++) n_kind += i == 0 || adapter_of(i);
        assert_int_equal(m.n_tok, n_kind * 100 + (8 - n_kind) * (100 - 96) + 8);
        m.n_tok = 0;
        request_salted(&m, 10, 0, 96, 1); /* its adapter is request 1's: none */
        run_dry(&m);
        assert_int_equal(m.n_tok, 32);
        assert_int_equal(m.req[10].n_cached, 64);
        sim_close(&m);
    }
}

/* A conversation goes on: its turns find what was computed of the ones before, answers too. */
static void test_turns_find_the_ones_before(void **state)
{
    (void)state;
    struct sim m;
    sim_open(&m, 1, 2, 12, 360, 64);
    request_salted(&m, 1, 3, 70, 100);
    run_dry(&m);
    struct request *r = &m.req[2];
    *r = m.req[1];
    r->n_prompt = 180; /* what was said, and ten ids more */
    for (uint32_t k = 170; k < 180; k++) r->ids[k] = 7;
    r->n_got = 0;
    r->done = false;
    r->max_tokens = 3;
    for (r->n_total = 180; r->n_total < 183; r->n_total++) r->ids[r->n_total] = model_next(r->ids, r->n_total);
    m.n_tok = 0;
    request_submit(&m, 2);
    run_dry(&m);
    assert_int_equal(r->n_cached, 160); /* of 169 that were fed, whole pages */
    assert_int_equal(m.n_tok, 180 - 160 + 2);
    request_plain(&m, 4, 340, 10); /* needs eleven of the twelve pages: what was cached is forgotten */
    run_dry(&m);
    m.n_tok = 0;
    r->n_got = 0;
    r->done = false;
    request_submit(&m, 2);
    run_dry(&m);
    assert_int_equal(r->n_cached, 32); /* but for its first page, which is forgotten last */
    assert_int_equal(m.n_done, 4);
    sim_close(&m);
}

/* Texts to be embedded: the whole context is theirs; chunks ask for states; the last one ends them with their slot. */
static void test_texts(void **state)
{
    (void)state;
    struct mu_sched_options opt = {.serving = {.n_ctx = 70, .n_slot = 2, .n_page = 3, .step_tokens = 16},
                                   .n_stage = 1,
                                   .n_vocab = VOCAB,
                                   .max_waiting = 3};
    struct mu_sched *s;
    struct mu_step *step;
    struct mu_err err = MU_ERR_INIT;
    struct mu_sched_event events[2];
    static int32_t ids[128];
    const struct mu_embed mean = {.pooling = MU_POOL_MEAN, .dimensions = 5},
                          last = {.pooling = MU_POOL_LAST, .raw = true};
    bool finished;
    assert_int_equal(mu_sched_create(&opt, &s, &err), MU_OK);
    assert_int_equal(mu_step_create(&opt.serving, VOCAB, &step, &err), MU_OK);
    struct mu_sched_request q = {.id = 1, .prompt = ids, .n_prompt = 71, .embed = mean};
    assert_int_equal(try_submit(s, q, &finished, &err), MU_ELIMIT);
    assert_non_null(strstr(err.text, "71 tokens"));
    q.n_prompt = 3;
    q.emitted = ids;
    q.n_emitted = 1;
    assert_int_equal(try_submit(s, q, &finished, &err), MU_EINVAL);
    q.n_emitted = 0;
    q.n_prompt = 70;
    assert_int_equal(try_submit(s, q, &finished, &err), MU_OK);
    assert_false(finished);
    q.id = 2;
    q.n_prompt = 3;
    q.embed = last;
    assert_int_equal(try_submit(s, q, &finished, &err), MU_OK);
    int32_t none[2] = {-1, -1};
    int n;
    for (uint32_t at = 0; at < 70; at += 16) {
        assert_true(mu_sched_next(s, step));
        assert_int_equal(step->n_seq, 1); /* the pages are all the first one's */
        assert_int_equal(step->seq[0].pos0, at);
        assert_int_equal(step->seq[0].out, MU_OUT_STATE_SUM);
        n = mu_sched_complete(s, step->number, none, events);
        assert_int_equal(n, at + 16 >= 70);
    }
    assert_true(events[0].finished && events[0].request == 1 && events[0].id == -1 && events[0].n_tok == 70);
    assert_int_equal(events[0].error, MU_OK);
    assert_int_equal(events[0].slot, step->seq[0].slot);
    assert_true(events[0].embed.pooling == MU_POOL_MEAN && events[0].embed.dimensions == 5);
    assert_true(mu_sched_next(s, step));
    assert_int_equal(step->seq[0].out, MU_OUT_STATE);
    none[0] = -2;
    assert_int_equal(mu_sched_complete(s, step->number, none, events), 1);
    assert_true(events[0].finished && events[0].error == MU_ENONFINITE && events[0].embed.raw);
    /* What is cached of a text spares the last token's state some work; a mean is a sum over all tokens. */
    for (int i = 0; i < 2; i++) {
        q.id = 3 + (uint64_t)i;
        q.n_prompt = 70;
        q.embed = i ? mean : last;
        assert_int_equal(try_submit(s, q, &finished, &err), MU_OK);
        for (uint32_t at = i ? 0 : 64; at < 70; at += 16) {
            assert_true(mu_sched_next(s, step));
            assert_int_equal(step->seq[0].pos0, at);
            n = mu_sched_complete(s, step->number, (int32_t[]){-1}, events);
        }
        assert_int_equal(n, 1);
        assert_int_equal(events[0].n_cached, i ? 0 : 64);
    }
    mu_sched_destroy(s);
    opt.serving.n_page = 2;
    assert_int_equal(mu_sched_create(&opt, &s, &err), MU_OK);
    q.n_prompt = 65; /* all of it is fed: three pages, there are two */
    assert_int_equal(try_submit(s, q, &finished, &err), MU_ELIMIT);
    assert_non_null(strstr(err.text, "KV pages"));
    mu_sched_destroy(s);
    mu_free(step);
}

static double cpu_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

/* A thousand requests wait for one to compute what they all begin with: they are looked at once, not in every step. */
static void test_who_waits_for_a_prefix_costs_nothing(void **state)
{
    (void)state;
    enum { WAITING = 1000, PROMPT = 2049, LATER = 8 };
    struct mu_sched_options opt = {.serving = {.n_ctx = 4096, .n_slot = 4, .n_page = 300, .step_tokens = 64},
                                   .n_stage = 2,
                                   .n_vocab = VOCAB,
                                   .max_waiting = WAITING + 1};
    static int32_t ids[PROMPT];
    struct mu_err err = MU_ERR_INIT;
    struct mu_sched *s;
    struct mu_step *step[3];
    struct mu_sched_event events[4];
    struct mu_sched_counts c;
    bool finished;
    double first = 0, later = 0;
    assert_int_equal(mu_sched_create(&opt, &s, &err), MU_OK);
    for (int i = 0; i < 3; i++) assert_int_equal(mu_step_create(&opt.serving, VOCAB, &step[i], &err), MU_OK);
    for (int i = 0; i < PROMPT; i++) ids[i] = i * i % VOCAB;
    for (uint64_t id = 0; id <= WAITING; id++) {
        struct mu_sched_request q = {.id = id, .prompt = ids, .n_prompt = PROMPT, .max_tokens = 2};
        ids[PROMPT - 1] = (int32_t)id % VOCAB;
        assert_int_equal(try_submit(s, q, &finished, &err), MU_OK);
    }
    assert_true(mu_sched_next(s, step[0]));
    for (int i = 1; i <= 1 + LATER; i++) {
        double began = cpu_ms();
        assert_true(mu_sched_next(s, step[i % 3]));        /* both stages have a piece of the prompt, */
        assert_false(mu_sched_next(s, step[(i + 1) % 3])); /* and nobody else may begin */
        *(i == 1 ? &first : &later) += cpu_ms() - began;
        assert_int_equal(mu_sched_complete(s, step[(i + 2) % 3]->number, (int32_t[]){-1}, events), 0);
    }
    print_message("the first look took %.3f ms, %d later ones %.3f ms\n", first, LATER, later);
    assert_true(later < first);
    mu_sched_count(s, &c);
    assert_int_equal(c.waiting, WAITING);
    mu_sched_destroy(s);
    for (int i = 0; i < 3; i++) mu_free(step[i]);
}

enum { SAID = 7 }; /* whatever is asked */

static bool step_alone(struct mu_sched *s, struct mu_step *step)
{
    struct mu_sched_event events[8];
    const int32_t id[8] = {SAID, SAID, SAID, SAID, SAID, SAID, SAID, SAID};
    if (!mu_sched_next(s, step)) return false;
    mu_sched_took(s, 1000 + 10 * step->n_tok); /* guesses pay */
    assert_true(mu_sched_complete(s, step->number, id, events) >= 0);
    return true;
}

static bool allow_all(void *ctx, uint64_t request, const int32_t *emitted, size_t n, uint8_t *mask_out)
{
    (void)emitted;
    (void)n;
    memset(mask_out, 0xff, (VOCAB + 7) / 8);
    return request == *(uint64_t *)ctx;
}

/* A prompt whose last chunk is one token looks like a decode before anybody knows that its ids have a mask: a draft model is
 * asked, and what it says is not taken, since places behind guesses have no masks. */
static void test_no_guess_goes_past_a_mask(void **state)
{
    (void)state;
    uint64_t masked = 2;
    struct mu_sched_options opt = {.serving = {.n_ctx = 400, .n_slot = 8, .n_page = 60, .step_tokens = 16},
                                   .n_stage = 1,
                                   .n_vocab = VOCAB,
                                   .max_waiting = 3,
                                   .allow = allow_all,
                                   .allow_ctx = &masked,
                                   .n_draft_seat = 1,
                                   .n_draft_ctx = 400};
    static int32_t ids[17];
    struct mu_err err = MU_ERR_INIT;
    struct mu_sched *s;
    struct mu_step *step;
    struct mu_draft_ask ask;
    uint32_t read_most;
    bool finished;
    for (int32_t i = 0; i < 17; i++) ids[i] = i;
    assert_int_equal(mu_sched_create(&opt, &s, &err), MU_OK);
    assert_int_equal(mu_step_create(&opt.serving, VOCAB, &step, &err), MU_OK);
    for (uint64_t id = 1; id <= 3; id++) { /* the first tells what steps cost; the third has no mask */
        struct mu_sched_request q = {.id = id, .prompt = ids, .n_prompt = 17, .max_tokens = 10};
        assert_int_equal(try_submit(s, q, &finished, &err), MU_OK);
        assert_true(step_alone(s, step) && step->n_tok == 16);
        if (id > 1) {
            assert_int_equal(mu_sched_ask_drafts(s, &ask, &read_most), 1);
            ask.draft[0] = SAID;
            ask.n_draft = 1;
            mu_sched_answer_drafts(s, &ask, 1, &(struct mu_draft_took){.step_us = 10, .n_step = 1});
            assert_true(step_alone(s, step));
            assert_int_equal(step->n_seq, id == masked ? 1 : 2);
        }
        while (step_alone(s, step)) {}
    }
    mu_sched_destroy(s);
    mu_free(step);
}

/* A prompt of whole pages is there already: its last one is computed again, since it samples. What follows it is found as long
 * as any of the sequence is, its end being forgotten before its beginning. */
static void test_a_prompt_of_whole_pages(void **state)
{
    (void)state;
    enum { PAGES = 8, PROMPT = 2 * MU_PAGE_TOKENS, NEW = 100 };
    struct sim m;
    sim_open(&m, 1, 2, PAGES, 300, 64);
    request_salted(&m, 0, 5, PROMPT, 1);
    run_dry(&m);
    request_salted(&m, 1, 5, PROMPT, NEW);
    run_dry(&m);
    assert_int_equal(m.req[1].n_cached, MU_PAGE_TOKENS);
    request_salted(&m, 2, 6, 5 * MU_PAGE_TOKENS - 1, 1); /* takes what is free, and of the others' pages two */
    run_dry(&m);
    struct request *r = &m.req[4]; /* the conversation goes on */
    *r = (struct request){.n_prompt = PROMPT + NEW, .n_total = PROMPT + NEW + 1, .max_tokens = 1, .end_id = -1};
    memcpy(r->ids, m.req[1].ids, (PROMPT + NEW) * sizeof *r->ids);
    r->ids[PROMPT + NEW] = model_next(r->ids, PROMPT + NEW);
    request_submit(&m, 4);
    run_dry(&m);
    assert_int_equal(m.n_done, 4);
    print_message("%u of %u tokens were there\n", r->n_cached, r->n_prompt);
    assert_int_equal(r->n_cached, 3 * MU_PAGE_TOKENS);
    sim_close(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decodes_do_not_starve_a_prefill),
        cmocka_unit_test(test_steps_overlap),
        cmocka_unit_test(test_pages_come_with_a_step),
        cmocka_unit_test(test_choices_share_their_prompt),
        cmocka_unit_test(test_turns_find_the_ones_before),
        cmocka_unit_test(test_texts),
        cmocka_unit_test(test_who_waits_for_a_prefix_costs_nothing),
        cmocka_unit_test(test_no_guess_goes_past_a_mask),
        cmocka_unit_test(test_a_prompt_of_whole_pages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
