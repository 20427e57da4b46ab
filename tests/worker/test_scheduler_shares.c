/* Who of those that wait gets slots, pages and tokens: shares of priorities and keys, what is urgent takes from what is
 * not, and nobody starves. */
#include "sched_sim.h"

/* New short requests never stop coming; one that needs every page must still get through. */
static void test_nobody_starves(void **state)
{
    (void)state;
    struct sim m;
    sim_open(&m, 2, 4, 6, 192, 32);
    int last = 0, big = 8;
    long steps = 0;
    for (; last < MAX_REQUESTS && !m.req[big].done; steps++) {
        struct mu_sched_counts c;
        mu_sched_count(m.s, &c);
        while (last < MAX_REQUESTS && c.waiting < 8) {
            request_plain(&m, last, last == big ? 150 : 40, last == big ? 42 : 10);
            last++;
            mu_sched_count(m.s, &c);
        }
        while (sim_next(&m)) {}
        sim_complete(&m);
    }
    assert_true(m.req[big].done);
    assert_true(last < 60); /* it did not have to wait for hundreds that came later */
    forget(&m);
    sim_close(&m);
}

enum { N_FLOW = 6 };

/* Everybody always has more to do: what each priority and key gets computed is its share, though their requests differ in
 * length and in number. */
static void shares(int n_stage, int n_slot, uint32_t n_page)
{
    static const struct {
        enum mu_priority priority;
        uint64_t key;
        uint32_t n_prompt, max_tokens;
        int n_waiting; /* at any time */
    } flow[N_FLOW] = {{MU_PRIORITY_INTERACTIVE, 1, 20, 10, 10}, {MU_PRIORITY_INTERACTIVE, 2, 90, 30, 12},
                      {MU_PRIORITY_NORMAL, 1, 60, 20, 10},      {MU_PRIORITY_NORMAL, 2, 10, 40, 10},
                      {MU_PRIORITY_BATCH, 1, 40, 30, 20},       {MU_PRIORITY_BATCH, 3, 40, 30, 8}};
    struct sim m;
    uint64_t got[N_FLOW] = {0}, all = 0;
    sim_open(&m, n_stage, n_slot, n_page, 200, 32);
    int last = 0, n_there[N_FLOW] = {0}, of[MAX_REQUESTS];
    while (last < MAX_REQUESTS - 80) {
        for (int i = 0; i < N_FLOW; i++)
            for (; n_there[i] < flow[i].n_waiting; n_there[i]++) {
                of[last] = i;
                request_of(&m, last, flow[i].priority, flow[i].key, (uint32_t)last * 7, flow[i].n_prompt,
                           flow[i].max_tokens);
                last++;
            }
        while (sim_next(&m)) {}
        sim_complete(&m);
        memset(n_there, 0, sizeof n_there);
        for (int i = 0; i < last; i++) n_there[of[i]] += !m.req[i].done;
    }
    for (int i = 0; i < last; i++) got[of[i]] += m.req[i].n_computed;
    for (int i = 0; i < N_FLOW; i++) all += got[i];
    for (int i = 0; i < N_FLOW; i++) {
        double want = (double[]){16, 4, 1}[flow[i].priority] / 42, share = (double)got[i] / (double)all;
        print_message("%d stages, %d slots, %u pages: priority %d key %d has %.3f of the tokens, due %.3f\n", n_stage,
                      n_slot, n_page, (int)flow[i].priority, (int)flow[i].key, share, want);
        if (!(share > 0.75 * want && share < 1.25 * want + 0.01)) fail_msg("out of bounds");
    }
    forget(&m);
    sim_close(&m);
}

static void test_shares(void **state)
{
    (void)state;
    shares(1, 8, 60);
    shares(2, 6, 60);
    shares(1, 6, 12);
}

/* Slots and pages are full of batch: what is urgent is in the very next step all the same; those that made room go on. */
static void test_an_urgent_one_does_not_wait(void **state)
{
    (void)state;
    struct sim m;
    sim_open(&m, 1, 4, 12, 200, 64);
    for (int i = 0; i < 6; i++) request_of(&m, i, MU_PRIORITY_BATCH, 0, (uint32_t)i, 40, 50);
    for (int i = 0; i < 6; i++) {
        assert_true(sim_next(&m));
        sim_complete(&m);
    }
    request_of(&m, 6, MU_PRIORITY_NORMAL, 0, 6, 40, 3);
    request_of(&m, 7, MU_PRIORITY_INTERACTIVE, 0, 7, 12, 3);
    assert_true(sim_next(&m));
    const struct mu_step *st = m.step[m.head];
    bool seen = false;
    for (uint32_t i = 0; i < st->n_seq; i++) seen |= st->seq[i].sampling.seed == 7;
    assert_true(seen);
    assert_true(m.s->n_preempted > 0);
    run_dry(&m);
    assert_int_equal(m.n_done, 8);
    sim_close(&m);
}

/* A long prompt is being read, which takes all that a step may read: whose turn it is does not wait for its end, be it of a more
 * urgent priority or of another key. */
static void test_a_long_prompt_stops_nobody(void **state)
{
    (void)state;
    enum { LONG, SHORT, STREAM };
    for (int variant = 0; variant < 4; variant++) {
        bool urgent = variant % 2, streams = variant / 2;
        struct sim m;
        int n = 0;
        sim_open(&m, 1, 4, 40, 400, 64);
        if (streams) {
            request_of(&m, STREAM, MU_PRIORITY_INTERACTIVE, 0, 3, 10, 300);
            assert_true(sim_next(&m));
            sim_complete(&m);
        }
        request_of(&m, LONG, MU_PRIORITY_BATCH, 0, 0, 380, 5);
        assert_true(sim_next(&m));
        sim_complete(&m);
        request_of(&m, SHORT, urgent ? MU_PRIORITY_INTERACTIVE : MU_PRIORITY_BATCH, 1, 1, 12, 3);
        for (; !m.req[SHORT].n_got; n++) {
            assert_true(sim_next(&m));
            sim_complete(&m);
        }
        print_message("%s, %s: its first id came with step %d, the long prompt has %llu tokens\n",
                      streams ? "beside a stream" : "alone", urgent ? "urgent" : "another key", n,
                      (unsigned long long)m.req[LONG].n_computed);
        assert_true(n <= 2);
        forget(&m);
        sim_close(&m);
    }
}

/* Urgent requests never stop coming and need all there is; one batch request gets through in bounded time. */
static void test_batch_does_not_starve(void **state)
{
    (void)state;
    struct sim m;
    for (uint32_t n_page = 6; n_page <= 24; n_page += 18) {
        sim_open(&m, 2, 4, n_page, 192, 32);
        int last = 1;
        request_of(&m, 0, MU_PRIORITY_BATCH, 0, 0, 100, 60);
        while (last < MAX_REQUESTS && !m.req[0].done) {
            struct mu_sched_counts c;
            for (mu_sched_count(m.s, &c); last < MAX_REQUESTS && c.waiting < 8; mu_sched_count(m.s, &c), last++)
                request_of(&m, last, MU_PRIORITY_INTERACTIVE, (uint64_t)last % 3, (uint32_t)last, 40, 10);
            while (sim_next(&m)) {}
            sim_complete(&m);
        }
        print_message("%u pages: done after %d urgent ones of 50 tokens, its due is %d\n", n_page, last, 160 * 16 / 50);
        assert_true(m.req[0].done);
        assert_true(last < 3 * 160 * 16 / 50);
        forget(&m);
        sim_close(&m);
    }
}

/* Urgent streams hold most pages and follow each other; it is the turn of a batch request that needs more than are free.
 * What is urgent and short does not wait for it, until they have had as much as its prompt weighs; then it gets through. */
static void test_urgent_ones_go_ahead_of_what_does_not_fit(void **state)
{
    (void)state;
    enum { STREAMS = 3, BIG = STREAMS, BIG_PROMPT = 380, NEW = 3 }; /* NEW: ids of a short one */
    struct sim m;
    int last = STREAMS + 1, stream[STREAMS], brief = -1, came = 0, longest = 0;
    uint64_t before = 0;
    sim_open(&m, 1, 8, 22, 400, 64);
    for (int i = 0; i < STREAMS; i++) {
        request_of(&m, stream[i] = i, MU_PRIORITY_INTERACTIVE, 0, (uint32_t)i, 100, 90);
        for (int k = 0; k < 20; k++, sim_complete(&m)) assert_true(sim_next(&m));
    }
    for (int i = 0; i < STREAMS; i++) before += m.req[i].n_computed;
    request_of(&m, BIG, MU_PRIORITY_BATCH, 0, BIG, BIG_PROMPT, 5);
    for (int step = 0; last < MAX_REQUESTS - STREAMS && !m.req[BIG].n_computed; step++) {
        for (int i = 0; i < STREAMS; i++) {
            if (!m.req[stream[i]].done) continue;
            stream[i] = last++;
            request_of(&m, stream[i], MU_PRIORITY_INTERACTIVE, 0, (uint32_t)stream[i], 100, 90);
        }
        if (brief < 0 || m.req[brief].done) {
            if (brief >= 0 && step - came > longest) longest = step - came;
            came = step;
            brief = last++;
            request_of(&m, brief, MU_PRIORITY_INTERACTIVE, 1, (uint32_t)brief, 10, NEW);
        }
        assert_true(sim_next(&m));
        sim_complete(&m);
    }
    uint64_t urgent = 0;
    for (int i = 0; i < last; i++) urgent += i == BIG ? 0 : m.req[i].n_computed;
    urgent -= before;
    print_message("let in after %llu urgent tokens, it weighs %d; short ones took %d steps at most\n",
                  (unsigned long long)urgent, 16 * BIG_PROMPT, longest);
    assert_true(longest <= NEW + 100 / (64 / 4)); /* a stream's prompt that is being read goes first */
    assert_true(m.req[BIG].n_computed && urgent > 16 * BIG_PROMPT / 2 && urgent < 16 * BIG_PROMPT + 3 * 190);
    run_dry(&m);
    assert_true(m.req[BIG].done);
    sim_close(&m);
}

/* A batch request has no room; a stream of normal priority makes way for an urgent one. What was freed is for that one, whether
 * it was the batch request's turn, and the urgent one went ahead of it, or the turn was its own before the step, whose decodes
 * make it the batch request's. */
static void make_way(bool ahead)
{
    enum { BATCH = 3, URGENT };
    struct sim m;
    sim_open(&m, 1, 3, 24, 200, 64);
    const uint64_t *clock = m.s->fair.clock;
    for (int i = 0; i < BATCH; i++)
        request_of(&m, i, i ? MU_PRIORITY_NORMAL : MU_PRIORITY_INTERACTIVE, 0, (uint32_t)i, i ? 10 : 100, 90);
    for (int k = 0; k < 10 || clock[MU_PRIORITY_NORMAL] <= clock[MU_PRIORITY_INTERACTIVE]; k++) {
        assert_true(sim_next(&m));
        sim_complete(&m);
    }
    request_of(&m, BATCH, MU_PRIORITY_BATCH, 0, BATCH, 40, 5);
    while (ahead && clock[MU_PRIORITY_INTERACTIVE] <= clock[MU_PRIORITY_BATCH]) {
        assert_true(sim_next(&m));
        sim_complete(&m);
    }
    assert_int_equal(m.s->n_preempted, 0);
    request_of(&m, URGENT, MU_PRIORITY_INTERACTIVE, 1, URGENT, 12, 3);
    assert_int_equal(clock[MU_PRIORITY_INTERACTIVE] > clock[MU_PRIORITY_BATCH], ahead);
    assert_true(sim_next(&m));
    const struct mu_step *st = m.step[m.head];
    bool seen = false;
    for (uint32_t i = 0; i < st->n_seq; i++) {
        assert_int_not_equal(st->seq[i].sampling.seed, BATCH);
        seen |= st->seq[i].sampling.seed == URGENT;
    }
    assert_true(seen && m.s->n_preempted == 1);
    run_dry(&m);
    assert_int_equal(m.n_done, 5);
    sim_close(&m);
}

static void test_what_made_way_is_for_who_went_ahead(void **state)
{
    (void)state;
    make_way(true);
    make_way(false);
}

/* What an urgent request lacks would not be enough with a batch stream's pages: most of them are the beginning that both have.
 * So nothing is taken, and the batch stream goes on until there is room. */
static void test_nothing_is_taken_in_vain(void **state)
{
    (void)state;
    enum { URGENT, BATCH, NEW };
    struct sim m;
    sim_open(&m, 1, 4, 12, 300, 64);
    request_of(&m, URGENT, MU_PRIORITY_INTERACTIVE, 0, 1, 170, 20);
    for (int k = 0; k < 4; k++, sim_complete(&m)) assert_true(sim_next(&m));
    request_of(&m, BATCH, MU_PRIORITY_BATCH, 0, 2, 97, 25);
    while (!m.req[BATCH].n_got) {
        assert_true(sim_next(&m));
        sim_complete(&m);
    }
    assert_true(!m.req[URGENT].done);
    request_of(&m, NEW, MU_PRIORITY_INTERACTIVE, 0, 2, 250, 3); /* begins like the batch request */
    uint32_t got = m.req[BATCH].n_got;
    assert_true(sim_next(&m));
    sim_complete(&m);
    assert_int_equal(m.s->n_preempted, 0);
    assert_int_equal(m.req[BATCH].n_got, got + 1);
    assert_int_equal(m.req[NEW].n_computed, 0);
    run_dry(&m);
    assert_int_equal(m.n_done, 3);
    sim_close(&m);
}

/* Batch streams that have most of their pages in common: what they give all together is counted, so an urgent one is in the
 * next step. */
static void test_pages_in_common_are_taken(void **state)
{
    (void)state;
    enum { STREAMS = 3, URGENT = STREAMS };
    struct sim m;
    sim_open(&m, 1, 6, 12, 300, 64);
    for (int i = 0; i < STREAMS; i++) request_of(&m, i, MU_PRIORITY_BATCH, 0, 2, 193, 30);
    while (!m.req[STREAMS - 1].n_got) {
        assert_true(sim_next(&m));
        sim_complete(&m);
    }
    assert_true(m.n_shared > 0 && m.n_done == 0);
    request_of(&m, URGENT, MU_PRIORITY_INTERACTIVE, 0, 1, 200, 3);
    assert_true(sim_next(&m));
    assert_true(m.req[URGENT].n_computed > 0);
    run_dry(&m);
    assert_int_equal(m.n_done, STREAMS + 1);
    sim_close(&m);
}

/* With several stages some sequences are always in flight: what an urgent one lacks is taken from those as well, as soon as they
 * are back, be they streams or a prompt that is being read in chunks that overlap. */
static void test_what_is_in_flight_is_taken_later(void **state)
{
    (void)state;
    enum { STREAMS = 4, URGENT };
    for (int reading = 0; reading < 2; reading++) {
        struct sim m;
        int n = 0;
        sim_open(&m, 2, 6, 12, 384, 32);
        if (reading)
            request_of(&m, 0, MU_PRIORITY_BATCH, 0, 2, 340, 5);
        else
            for (int i = 0; i < STREAMS; i++) request_of(&m, i, MU_PRIORITY_BATCH, 0, (uint32_t)i, 65, 31);
        for (int k = 0; k < (reading ? 2 : 30); k++) {
            while (sim_next(&m)) {}
            sim_complete(&m);
        }
        assert_int_equal(m.n_done, 0);
        request_of(&m, URGENT, MU_PRIORITY_INTERACTIVE, 0, 9, 280, 3);
        for (; !m.req[URGENT].n_computed && n < 100; n++) {
            while (sim_next(&m)) {}
            sim_complete(&m);
        }
        print_message("it began after %d steps, %d had ended\n", n, m.n_done);
        assert_true(n <= 4);
        run_dry(&m);
        sim_close(&m);
    }
}

/* Key 1 has one stream for long, key 2 all others, and nobody waits: what key 2 used so was nobody else's. Then key 1 asks for
 * much: from now on both get the same. */
static void test_a_stream_saves_nothing_up(void **state)
{
    (void)state;
    enum { STREAMS = 7, LONG = 1500, FLOOD = 200, PROMPT = 60 };
    struct sim m;
    int last = 0, one = -1, of[MAX_REQUESTS], n_there[3];
    uint64_t got[3] = {0};
    sim_open(&m, 1, STREAMS + 1, 60, 400, 64);
    for (int step = 0; step < LONG + 400; step++) {
        memset(n_there, 0, sizeof n_there);
        for (int i = 0; i < last; i++) n_there[of[i]] += !m.req[i].done;
        if (one < 0 || (n_there[1] == 1 && m.req[one].n_got > 250)) { /* there is always one of it */
            of[one = last] = 1;
            request_of(&m, last++, MU_PRIORITY_NORMAL, 1, 3, 10, 300);
        }
        for (; n_there[2] < STREAMS; n_there[2]++) {
            of[last] = 2;
            request_of(&m, last, MU_PRIORITY_NORMAL, 2, (uint32_t)last, PROMPT, 60);
            last++;
        }
        for (int i = 0; step == LONG && i < FLOOD; i++) {
            of[last] = 1;
            request_of(&m, last, MU_PRIORITY_NORMAL, 1, (uint32_t)last, PROMPT, 60);
            last++;
        }
        if (step == LONG)
            for (int i = 0; i < last; i++) got[of[i]] -= m.req[i].n_computed;
        assert_true(sim_next(&m));
        sim_complete(&m);
    }
    for (int i = 0; i < last; i++) got[of[i]] += m.req[i].n_computed;
    print_message("of %llu tokens key 1 has %.2f\n", (unsigned long long)(got[1] + got[2]),
                  (double)got[1] / (double)(got[1] + got[2]));
    assert_true(got[1] < 2 * got[2] && got[2] < 2 * got[1]);
    forget(&m);
    sim_close(&m);
}

/* One stream of normal priority beside much that is urgent, for long, then a hundred: what is urgent waits hardly longer. */
static void test_a_priority_saves_nothing_up(void **state)
{
    (void)state;
    enum { STREAMS = 7, LONG = 3000, FLOOD = 100 };
    struct sim m;
    int last = 0, one = -1, came[MAX_REQUESTS], longest[2] = {0};
    sim_open(&m, 1, STREAMS + 1, 60, 400, 64);
    for (int step = 0; step < LONG + 300; step++) {
        int n_urgent = 0, n_normal = 0;
        for (int i = 0; i < last; i++) {
            bool urgent = m.req[i].priority == MU_PRIORITY_INTERACTIVE, waits = urgent && !m.req[i].n_computed;
            n_urgent += urgent && !m.req[i].done;
            n_normal += !urgent && !m.req[i].done;
            if (waits && step - came[i] > longest[step > LONG]) longest[step > LONG] = step - came[i];
        }
        if (one < 0 || (n_normal == 1 && m.req[one].n_got > 250)) { /* there is always one of it */
            one = last;
            request_of(&m, last++, MU_PRIORITY_NORMAL, 1, 3, 10, 300);
        }
        for (; n_urgent < STREAMS; n_urgent++, last++) {
            came[last] = step;
            request_of(&m, last, MU_PRIORITY_INTERACTIVE, 2, (uint32_t)last, 200, 3);
        }
        for (int i = 0; step == LONG && i < FLOOD; i++, last++)
            request_of(&m, last, MU_PRIORITY_NORMAL, 1, (uint32_t)last, 60, 60);
        assert_true(sim_next(&m));
        sim_complete(&m);
    }
    print_message("%d requests; urgent ones waited %d steps at most, then %d\n", last, longest[0], longest[1]);
    assert_true(longest[1] < 2 * longest[0]);
    forget(&m);
    sim_close(&m);
}

/* A prompt that was let in is read, although somebody always waits who has used less: keys without number, each with a little. */
static void test_new_keys_do_not_stop_a_prompt(void **state)
{
    (void)state;
    struct sim m;
    int last = 1;
    sim_open(&m, 1, 8, 60, 400, 64);
    request_of(&m, 0, MU_PRIORITY_NORMAL, 0, 0, 380, 5);
    assert_true(sim_next(&m));
    sim_complete(&m);
    for (int step = 0; step < 400 && !m.req[0].n_got; step++) {
        for (; m.s->n_waiting < 4; last++)
            request_of(&m, last, MU_PRIORITY_NORMAL, (uint64_t)last, (uint32_t)last, 60, 1);
        assert_true(sim_next(&m));
        sim_complete(&m);
    }
    assert_true(m.req[0].n_got > 0);
    forget(&m);
    sim_close(&m);
}

/* Nor does a request of a key that has used much wait for a place for ever, beside such keys. */
static void test_new_keys_do_not_keep_one_out(void **state)
{
    (void)state;
    struct sim m;
    int last = 2, came = 0; /* the second request, once the first, of the same key, has got much */
    sim_open(&m, 1, 4, 60, 400, 64);
    request_of(&m, 0, MU_PRIORITY_NORMAL, 0, 0, 20, 370);
    while (last < MAX_REQUESTS - 4 && !m.req[1].done) {
        if (!came && m.req[0].n_got > 300) request_of(&m, 1, MU_PRIORITY_NORMAL, 0, 1, 60, 5), came = last;
        for (; m.s->n_waiting < 4; last++)
            request_of(&m, last, MU_PRIORITY_NORMAL, (uint64_t)last, (uint32_t)last, 60, 10);
        assert_true(sim_next(&m));
        sim_complete(&m);
    }
    print_message("%d that came later went ahead of it\n", last - came);
    assert_true(m.req[1].done);
    forget(&m);
    sim_close(&m);
}

/* Who outgrows its rotation factors loses all of its pages, and gets them back before anybody is let in. */
static void test_lost_pages_come_back(void **state)
{
    (void)state;
    struct sim m;
    int last = 1;
    sim_open(&m, 1, 4, 12, 400, 64);
    m.opt.n_ctx_short = m.s->opt.n_ctx_short = 192;
    request_of(&m, 0, MU_PRIORITY_NORMAL, 0, 0, 150, 60);
    for (int step = 0; step < 300 && !m.req[0].done; step++) {
        for (; m.s->n_waiting < 3; last++)
            request_of(&m, last, MU_PRIORITY_NORMAL, (uint64_t)last, (uint32_t)last, 40, 20);
        assert_true(sim_next(&m));
        sim_complete(&m);
    }
    assert_true(m.req[0].done);
    forget(&m);
    sim_close(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nobody_starves),
        cmocka_unit_test(test_shares),
        cmocka_unit_test(test_an_urgent_one_does_not_wait),
        cmocka_unit_test(test_a_long_prompt_stops_nobody),
        cmocka_unit_test(test_batch_does_not_starve),
        cmocka_unit_test(test_urgent_ones_go_ahead_of_what_does_not_fit),
        cmocka_unit_test(test_what_made_way_is_for_who_went_ahead),
        cmocka_unit_test(test_nothing_is_taken_in_vain),
        cmocka_unit_test(test_pages_in_common_are_taken),
        cmocka_unit_test(test_what_is_in_flight_is_taken_later),
        cmocka_unit_test(test_a_stream_saves_nothing_up),
        cmocka_unit_test(test_a_priority_saves_nothing_up),
        cmocka_unit_test(test_new_keys_do_not_stop_a_prompt),
        cmocka_unit_test(test_new_keys_do_not_keep_one_out),
        cmocka_unit_test(test_lost_pages_come_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
