/* The scheduler against a simulated gang (sched_sim.h) and thousands of random requests, which are cancelled, preempted
 * and resumed, with guesses, masks, windows and tiny pools: each gets exactly its ids. */
#include "sched_sim.h"

static void request_make(struct sim *m, struct request *r)
{
    uint32_t ctx = (uint32_t)m->opt.serving.n_ctx, pages = m->opt.serving.n_page;
    uint32_t cap = ctx < pages * MU_PAGE_TOKENS ? ctx : pages * MU_PAGE_TOKENS;
    memset(r, 0, sizeof *r);
    r->n_prompt = 1 + rng(rng(2) ? cap / 4 + 1 : cap - 1);
    if (r->n_prompt >= cap) r->n_prompt = cap - 1;
    r->max_tokens = 1 + rng(rng(2) ? 20 : cap);
    if (r->n_prompt + r->max_tokens > cap && r->max_tokens > 1 && cap < ctx) r->max_tokens = cap - r->n_prompt;
    if (r->max_tokens < 1) r->max_tokens = 1;
    r->end_id = rng(4) == 0 ? (int32_t)rng(VOCAB) : -1;
    /* Most begin like others, some all the way: chats, system prompts, several choices of one prompt. */
    uint32_t family = rng(6), same = family == 0 ? 0 : rng(3) ? r->n_prompt : rng(r->n_prompt);
    for (uint32_t i = 0; i < r->n_prompt; i++)
        r->ids[i] = i < same ? family == 1 ? 5 : (int32_t)((i * i + 7 * family + i / 5) % VOCAB) : (int32_t)rng(VOCAB);
    r->n_total = r->n_prompt;
    while (r->n_total < ctx && r->n_total - r->n_prompt < r->max_tokens) {
        r->ids[r->n_total] = model_next(r->ids, r->n_total);
        if (r->ids[r->n_total++] == r->end_id) break;
    }
    if (rng(3) == 0) r->n_emitted = rng(r->n_total - r->n_prompt); /* resumed: never all of it */
    r->n_got = r->n_emitted;
}

static void sim_cancel(struct sim *m, int i)
{
    struct request *r = &m->req[i];
    struct mu_sched_event e;
    if (r->cancel_asked) return;
    r->cancel_asked = true;
    enum mu_status st = mu_sched_cancel(m->s, (uint64_t)i + 1000, &e);
    if (r->done)
        assert_int_equal(st, MU_ENOENT);
    else if (st == MU_OK)
        event_take(m, &e);
    else
        assert_int_equal(st, MU_EAGAIN);
}

static uint64_t n_outgrown, n_shared, n_overlap, n_drafted, n_taken, n_model_drafted, n_model_taken, n_cached_tokens,
    n_gone;

static bool rough; /* prompts */

static uint64_t simulate(uint64_t seed, int n_req, int window)
{
    struct sim m;
    struct mu_sched_counts c;
    rng_begin(seed);
    int n_ctx = 40 + (int)rng(300);
    sim_open_window(&m, 1 + (int)rng(4), 1 + (int)rng(MAX_SLOTS), 2 + rng(rng(2) ? 8 : 60), n_ctx, 2 + (int)rng(90),
                    window);
    /* A model with two sets of rotation factors; constrained requests; without sharing; a draft model. */
    if (seed % 2 || seed % 5 == 0 || seed % 3 == 1 || rough) {
        mu_sched_destroy(m.s);
        m.opt.serving.rough = rough;
        if (seed % 2) m.opt.n_ctx_short = 1 + (int)rng((uint32_t)n_ctx);
        if (seed % 4 == 1) m.opt.allow = sim_allow;
        m.opt.no_prefix_cache = seed % 5 == 0;
        m.opt.n_draft_seat = seed % 3 ? (int)(seed % 7) : 0;
        m.opt.n_draft_ctx = 1 + (int)rng((uint32_t)n_ctx);
        struct mu_err err = MU_ERR_INIT;
        assert_int_equal(mu_sched_create(&m.opt, &m.s, &err), MU_OK);
    }
    int submitted = 0;
    m.n_req = n_req;
    for (long turn = 0; m.n_done < n_req; turn++) {
        if (turn > 2000000) fail_msg("seed %llu: %d of %d requests ended", (unsigned long long)seed, m.n_done, n_req);
        if (submitted < n_req && rng(3) == 0) {
            request_make(&m, &m.req[submitted]);
            if (seed % 4) m.req[submitted].priority = (enum mu_priority)rng(MU_PRIORITY_COUNT);
            if (seed % 4) m.req[submitted].key = rng(4);
            request_submit(&m, submitted++);
        }
        if (submitted && rng(40) == 0) sim_cancel(&m, (int)rng((uint32_t)submitted));
        if (rng(2)) sim_next(&m);
        if (m.n && rng(2)) {
            if (seed % 3) mu_sched_took(m.s, 1 + rng(seed % 3 == 1 ? 1000000 : 20)); /* whatever a clock may say */
            sim_complete(&m);
        }
        if (submitted == n_req && !m.n && !sim_next(&m) && m.n_done < n_req)
            fail_msg("seed %llu: stuck with %d of %d requests ended", (unsigned long long)seed, m.n_done, n_req);
    }
    while (m.n) sim_complete(&m);
    mu_sched_count(m.s, &c);
    for (int i = 0; i < n_req; i++)
        if (!m.req[i].cancelled) assert_int_equal(m.req[i].n_prompt + m.req[i].n_got, m.req[i].n_total);
    n_outgrown += m.n_outgrown;
    n_shared += m.n_shared;
    n_gone += m.n_gone;
    n_overlap += m.n_overlap;
    n_drafted += m.n_draft;
    n_taken += c.drafts_taken;
    n_model_drafted += c.model_drafted;
    n_model_taken += c.model_taken;
    assert_true(c.model_drafted <= c.drafted && c.model_taken <= c.drafts_taken);
    assert_true(m.opt.n_draft_seat || !c.model_drafted);
    assert_int_equal(c.drafted <= m.n_draft && (!m.opt.no_speculation || !m.n_draft), true);
    n_cached_tokens += c.cached_tokens;
    if (m.opt.no_prefix_cache) assert_int_equal(m.n_shared + c.cached_tokens + c.cached_pages, 0);
    sim_close(&m);
    return c.preemptions;
}

static void test_a_thousand_random_requests(void **state)
{
    (void)state;
    uint64_t preemptions = 0;
    for (uint64_t seed = 1; seed <= 200; seed++) preemptions += simulate(seed, 100, 0);
    preemptions += simulate(77, 1000, 0);
    print_message("%llu preemptions\n", (unsigned long long)preemptions);
    assert_true(preemptions > 100); /* else the pools were not tiny */
    print_message("%llu sequences outgrew the short context\n", (unsigned long long)n_outgrown);
    assert_true(n_outgrown > 100);
    print_message("%llu sequences began with %llu tokens of others\n", (unsigned long long)n_shared,
                  (unsigned long long)n_cached_tokens);
    print_message("%llu chunks followed one that was in flight\n", (unsigned long long)n_overlap);
    assert_true(n_overlap > 500);
    print_message("%llu drafts, %llu of them right\n", (unsigned long long)n_drafted, (unsigned long long)n_taken);
    assert_true(n_taken > 300 && n_drafted > n_taken + 100);
    print_message("%llu drafts of a model, %llu of them right\n", (unsigned long long)n_model_drafted,
                  (unsigned long long)n_model_taken);
    assert_true(n_model_taken > 100 && n_model_drafted > n_model_taken + 50);
    assert_true(n_shared > 500 && n_cached_tokens > n_shared * MU_PAGE_TOKENS);
}

/* The same with layers that have a window, from one token on. */
static void test_windows(void **state)
{
    (void)state;
    uint64_t preemptions = 0;
    n_outgrown = n_shared = n_overlap = n_drafted = n_taken = n_cached_tokens = 0;
    for (uint64_t seed = 1; seed <= 160; seed++) {
        int window = seed % 3 ? 1 + (int)(seed * 7 % 90) : 1 + (int)(seed % 4);
        preemptions += simulate(seed + 1000, 50, window);
    }
    for (int window = 1; window < 100; window += 33) preemptions += simulate((uint64_t)window, 300, window);
    print_message("%llu preemptions, %llu drafts, %llu of them right, %llu outgrew the short context\n",
                  (unsigned long long)preemptions, (unsigned long long)n_drafted, (unsigned long long)n_taken,
                  (unsigned long long)n_outgrown);
    print_message("%llu sequences began with %llu tokens of others\n", (unsigned long long)n_shared,
                  (unsigned long long)n_cached_tokens);
    assert_true(preemptions > 100 && n_taken > 50 && n_outgrown > 100 && n_overlap > 500 && n_gone > 10000);
    assert_true(n_shared > 200 && n_cached_tokens > n_shared * MU_PAGE_TOKENS);
}

/* The same where prompts are rough: the ranks of the simulation want to find every token of a prompt so, whoever computed
 * it, and no other. */
static void test_rough_prompts(void **state)
{
    (void)state;
    uint64_t preemptions = 0;
    n_shared = n_taken = n_overlap = 0;
    rough = true;
    for (uint64_t seed = 1; seed <= 120; seed++) preemptions += simulate(seed + 2000, 60, seed % 3 ? 0 : 40);
    rough = false;
    print_message("%llu preemptions, %llu sequences began with others' tokens, %llu drafts were right\n",
                  (unsigned long long)preemptions, (unsigned long long)n_shared, (unsigned long long)n_taken);
    assert_true(preemptions > 100 && n_shared > 200 && n_taken > 50 && n_overlap > 200);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_thousand_random_requests),
        cmocka_unit_test(test_windows),
        cmocka_unit_test(test_rough_prompts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
