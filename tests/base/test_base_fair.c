/* Shares: of priorities by weight, of keys alike, whatever they ask for; nobody saves up, nobody gets rid of what was used. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/fair.h"

enum { MAX_FLOW = 8 };

/* Serves `rounds` units to whoever's turn it is, in pieces of size[i]; what each flow got goes to got. */
static void serve(struct mu_fair *f, const int *flow, const int *size, int n, long rounds, long *got)
{
    for (long used = 0; used < rounds;) {
        int best = 0;
        for (int i = 1; i < n; i++)
            if (mu_fair_compare(f, flow[i], flow[best]) < 0) best = i;
        mu_fair_charge(f, flow[best], (uint64_t)size[best]);
        got[best] += size[best];
        used += size[best];
    }
}

static void assert_near(long got, long want, long tolerance)
{
    if (!(labs(got - want) <= tolerance)) fail_msg("%ld instead of %ld", got, want);
}

static void test_keys_get_the_same(void **state)
{
    (void)state;
    struct mu_fair f = {0};
    const int size[] = {1, 100, 7};
    long got[MAX_FLOW] = {0};
    int flow[3];
    for (int i = 0; i < 3; i++) flow[i] = mu_fair_enter(&f, MU_PRIORITY_NORMAL, (uint64_t)i);
    assert_int_equal(mu_fair_enter(&f, MU_PRIORITY_NORMAL, 1), flow[1]); /* another request of the same key */
    serve(&f, flow, size, 3, 30000, got);
    for (int i = 0; i < 3; i++) assert_near(got[i], 10000, 100);
    mu_fair_free(&f);
}

static void test_priorities_get_their_shares(void **state)
{
    (void)state;
    struct mu_fair f = {0};
    const int size[] = {5, 5, 5, 5};
    long got[MAX_FLOW] = {0};
    int flow[4];
    for (int i = 0; i < 3; i++) flow[i] = mu_fair_enter(&f, (enum mu_priority)i, 0);
    flow[3] = mu_fair_enter(&f, MU_PRIORITY_BATCH, 1);
    assert_true(mu_fair_compare(&f, flow[0], flow[1]) < 0 && mu_fair_compare(&f, flow[1], flow[2]) < 0);
    serve(&f, flow, size, 4, 210000, got);
    assert_near(got[0], 160000, 200);
    assert_near(got[1], 40000, 200);
    assert_near(got[2], 5000, 200);
    assert_near(got[3], 5000, 200);
    mu_fair_free(&f);
}

/* Who comes back begins where the others are: neither ahead for what it did not use, nor free of what it did. */
static void test_coming_and_going(void **state)
{
    (void)state;
    struct mu_fair f = {0};
    const int size[] = {1, 1};
    long got[MAX_FLOW] = {0};
    int flow[2] = {mu_fair_enter(&f, MU_PRIORITY_NORMAL, 1), mu_fair_enter(&f, MU_PRIORITY_NORMAL, 2)};
    mu_fair_leave(&f, flow[1]);
    mu_fair_charge(&f, flow[0], 100000);
    assert_int_equal(mu_fair_enter(&f, MU_PRIORITY_NORMAL, 2), flow[1]);
    serve(&f, flow, size, 2, 1000, got); /* it saved nothing up */
    assert_near(got[0], 500, 1);
    mu_fair_charge(&f, flow[0], 300);
    mu_fair_leave(&f, flow[0]); /* gone and back at once: what it used is remembered */
    assert_int_equal(mu_fair_enter(&f, MU_PRIORITY_NORMAL, 1), flow[0]);
    memset(got, 0, sizeof got);
    serve(&f, flow, size, 2, 300, got);
    assert_near(got[1], 300, 1);
    /* an idle class comes back level with the others, and is first */
    int urgent = mu_fair_enter(&f, MU_PRIORITY_INTERACTIVE, 9);
    assert_true(mu_fair_compare(&f, urgent, flow[0]) < 0);
    mu_fair_charge(&f, urgent, 1);
    assert_true(mu_fair_compare(&f, urgent, flow[0]) > 0);
    for (int i = 0; i < 2; i++) mu_fair_leave(&f, flow[i]);
    mu_fair_leave(&f, urgent);
    /* all gone: a new key begins where the furthest of the old ones is */
    int fresh = mu_fair_enter(&f, MU_PRIORITY_NORMAL, 3), old = mu_fair_enter(&f, MU_PRIORITY_NORMAL, 1);
    assert_int_equal(mu_fair_compare(&f, fresh, old), 0);
    mu_fair_free(&f);
}

/* Who is there all the time with little, of which nothing waits, saves nothing up either; who waits keeps its place. */
static void test_little_all_the_time(void **state)
{
    (void)state;
    struct mu_fair f = {0};
    int much = mu_fair_enter(&f, MU_PRIORITY_NORMAL, 1), little = mu_fair_enter(&f, MU_PRIORITY_NORMAL, 2);
    int urgent = mu_fair_enter(&f, MU_PRIORITY_INTERACTIVE, 3);
    mu_fair_charge(&f, much, 1000);
    assert_true(mu_fair_compare(&f, little, much) < 0 && mu_fair_compare(&f, urgent, much) < 0);
    assert_int_equal(mu_fair_enter(&f, MU_PRIORITY_NORMAL, 2), little); /* nobody waits: level with the furthest */
    assert_int_equal(mu_fair_compare(&f, little, much), 0);
    mu_fair_wait(&f, little);
    mu_fair_charge(&f, much, 1000);
    assert_int_equal(mu_fair_enter(&f, MU_PRIORITY_NORMAL, 2), little); /* one more beside one that waits */
    mu_fair_wait(&f, little);
    assert_true(mu_fair_compare(&f, little, much) < 0);
    assert_int_equal(mu_fair_enter(&f, MU_PRIORITY_NORMAL, 1), much); /* nor does it lose what it used */
    assert_true(mu_fair_compare(&f, little, much) < 0);
    int fresh = mu_fair_enter(&f, MU_PRIORITY_NORMAL, 4); /* where those are who wait */
    assert_int_equal(mu_fair_compare(&f, fresh, little), 0);
    assert_int_equal(mu_fair_enter(&f, MU_PRIORITY_INTERACTIVE, 3), urgent); /* level with the priority that waits */
    assert_int_equal(f.clock[MU_PRIORITY_INTERACTIVE], f.clock[MU_PRIORITY_NORMAL]);
    mu_fair_unwait(&f, little);
    mu_fair_unwait(&f, little);
    mu_fair_charge(&f, much, 10);
    assert_int_equal(mu_fair_enter(&f, MU_PRIORITY_NORMAL, 2), little);
    assert_int_equal(mu_fair_compare(&f, little, much), 0);
    mu_fair_free(&f);
}

/* Nor where a request of it loses its place: it waits then, with others that come. */
static void test_place_lost(void **state)
{
    (void)state;
    struct mu_fair f = {0};
    int much = mu_fair_enter(&f, MU_PRIORITY_INTERACTIVE, 1), little = mu_fair_enter(&f, MU_PRIORITY_NORMAL, 2);
    int beside = mu_fair_enter(&f, MU_PRIORITY_NORMAL, 3);
    mu_fair_charge(&f, much, 100000);
    mu_fair_charge(&f, beside, 1000);
    mu_fair_wait(&f, little);
    assert_int_equal(mu_fair_compare(&f, little, beside), 0);
    assert_int_equal(f.clock[MU_PRIORITY_NORMAL], f.clock[MU_PRIORITY_INTERACTIVE]);
    mu_fair_free(&f);
}

/* One that waits and has used much, beside keys without number that each come once, one of which always waits. */
static void test_new_keys_without_number(void **state)
{
    (void)state;
    struct mu_fair f = {0};
    int much = mu_fair_enter(&f, MU_PRIORITY_NORMAL, 1), fresh = mu_fair_enter(&f, MU_PRIORITY_NORMAL, 2), n = 0;
    mu_fair_wait(&f, fresh);
    mu_fair_charge(&f, much, 1000); /* what it had running went on */
    mu_fair_wait(&f, much);
    for (uint64_t key = 3; n < 1000 && mu_fair_compare(&f, fresh, much) < 0; key++, n++) {
        int next = mu_fair_enter(&f, MU_PRIORITY_NORMAL, key);
        mu_fair_wait(&f, next);
        mu_fair_unwait(&f, fresh);
        mu_fair_charge(&f, fresh, 10);
        mu_fair_leave(&f, fresh);
        fresh = next;
    }
    assert_near(n, 150, 5); /* 500 behind it, of 10 used by one of three its part is 3.3 */
    mu_fair_free(&f);
}

/* One that has used much is gone: a new key does not wait until the one that waited meanwhile has got as much. */
static void test_much_is_gone(void **state)
{
    (void)state;
    struct mu_fair f = {0};
    int much = mu_fair_enter(&f, MU_PRIORITY_NORMAL, 1), behind = mu_fair_enter(&f, MU_PRIORITY_NORMAL, 2);
    mu_fair_wait(&f, behind);
    mu_fair_charge(&f, much, 1000);
    int beside = mu_fair_enter(&f, MU_PRIORITY_NORMAL, 3); /* as long as it is there: where all would be */
    assert_int_equal(f.flow[beside].clock, 500);
    mu_fair_leave(&f, beside);
    mu_fair_leave(&f, much);
    int fresh = mu_fair_enter(&f, MU_PRIORITY_NORMAL, 4);
    assert_int_equal(mu_fair_compare(&f, fresh, behind), 0);
    mu_fair_free(&f);
}

/* Ten thousand keys that come and go take the room of a few hundred; those that are there keep their places. */
static void test_bounded(void **state)
{
    (void)state;
    struct mu_fair f = {0};
    int stays = mu_fair_enter(&f, MU_PRIORITY_BATCH, 77);
    for (uint64_t i = 0; i < 10000; i++) {
        int flow = mu_fair_enter(&f, MU_PRIORITY_NORMAL, i + 1000);
        assert_true(flow >= 0 && flow != stays);
        mu_fair_charge(&f, flow, 3);
        mu_fair_leave(&f, flow);
    }
    assert_true(f.n_flow <= 256);
    assert_int_equal(mu_fair_enter(&f, MU_PRIORITY_BATCH, 77), stays);
    mu_fair_free(&f);
    mu_alloc_fail_at(1);
    assert_int_equal(mu_fair_enter(&f, MU_PRIORITY_NORMAL, 1), -1);
    mu_alloc_fail_at(0);
    assert_true(mu_fair_key("a") != mu_fair_key("b") && mu_fair_key("ab") != mu_fair_key("ba"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keys_get_the_same), cmocka_unit_test(test_priorities_get_their_shares),
        cmocka_unit_test(test_coming_and_going),  cmocka_unit_test(test_little_all_the_time),
        cmocka_unit_test(test_place_lost),        cmocka_unit_test(test_new_keys_without_number),
        cmocka_unit_test(test_much_is_gone),      cmocka_unit_test(test_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
