/* The pool of KV pages: what is found, what is forgotten first, and that no page is ever in two states. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "worker/kv_pool.h"

static struct mu_kv_pool *pool_open(uint32_t n_page)
{
    struct mu_kv_pool *p = NULL;
    struct mu_err err = MU_ERR_INIT;
    if (mu_kv_pool_create(n_page, &p, &err) != MU_OK) fail_msg("%s", err.text);
    assert_int_equal(mu_kv_pool_available(p), n_page);
    return p;
}

static const int32_t *page_of(int32_t id)
{
    static int32_t ids[MU_PAGE_TOKENS];
    for (int i = 0; i < MU_PAGE_TOKENS; i++) ids[i] = id;
    return ids;
}

static const struct mu_kv_kind bare = {0};

/* The same ids at another place, after another page, of another adapter, strength or rotation are something else. */
static void test_only_the_same_is_found(void **state)
{
    (void)state;
    struct mu_kv_pool *p = pool_open(8);
    const struct mu_kv_kind other[] = {
        {.adapter = 1}, {.far = true}, {.adapter = 1, .adapter_scale = 1.0f}, {.adapter = 1, .adapter_scale = 0.5f}};
    uint32_t a = mu_kv_pool_take(p), b = mu_kv_pool_take(p), c = mu_kv_pool_take(p);
    uint64_t first = mu_kv_pool_publish(p, a, &bare, 0, page_of(5));
    assert_int_equal(mu_kv_pool_find(p, &bare, 0, page_of(5)), a);
    assert_int_equal(mu_kv_pool_find(p, &bare, 0, page_of(6)), MU_KV_NOTHING);
    assert_int_equal(mu_kv_pool_find(p, &bare, first, page_of(5)), MU_KV_NOTHING);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(mu_kv_pool_find(p, &other[i], 0, page_of(5)), MU_KV_NOTHING);
        for (int k = 0; k < 4; k++) assert_int_equal(mu_kv_kind_is(&other[i], &other[k]), i == k);
    }
    uint64_t second = mu_kv_pool_publish(p, b, &bare, first, page_of(5));
    assert_true(first && second && first != second);
    assert_int_equal(mu_kv_pool_find(p, &bare, first, page_of(5)), b);
    assert_int_equal(mu_kv_pool_publish(p, c, &bare, first, page_of(5)), second); /* known: it stays private */
    assert_int_equal(mu_kv_pool_identity(p, c), 0);
    mu_kv_pool_release(p, c);
    assert_int_equal(mu_kv_pool_cached(p), 0);
    assert_int_equal(mu_kv_pool_publish(p, mu_kv_pool_take(p), &other[2], 0, page_of(5)), second + 1);
    assert_true(mu_kv_pool_sound(p));
    mu_kv_pool_destroy(p);
}

/* Ends before beginnings, those left alone longest first, free ones before all; what is held stays. A page that is used
 * again leaves nothing of what followed it. */
static void test_what_is_forgotten(void **state)
{
    (void)state;
    struct mu_kv_pool *p = pool_open(6);
    uint32_t chain[3], other, page;
    uint64_t identity[3], parent = 0;
    for (int i = 0; i < 3; i++) {
        chain[i] = mu_kv_pool_take(p);
        parent = identity[i] = mu_kv_pool_publish(p, chain[i], &bare, parent, page_of(i));
    }
    other = mu_kv_pool_take(p);
    mu_kv_pool_publish(p, other, &bare, 0, page_of(9));
    mu_kv_pool_release(p, other);
    for (int i = 2; i >= 0; i--) mu_kv_pool_release(p, chain[i]);
    assert_int_equal(mu_kv_pool_cached(p), 4);
    assert_int_equal(mu_kv_pool_available(p), 6);
    for (int i = 0; i < 2; i++) { /* the free ones */
        page = mu_kv_pool_take(p);
        assert_true(page != chain[0] && page != chain[1] && page != chain[2] && page != other);
    }
    mu_kv_pool_retain(p, chain[0]); /* somebody begins like the chain */
    assert_int_equal(mu_kv_pool_take(p), other);
    assert_int_equal(mu_kv_pool_take(p), chain[2]);
    assert_int_equal(mu_kv_pool_find(p, &bare, identity[1], page_of(2)), MU_KV_NOTHING);
    assert_int_equal(mu_kv_pool_find(p, &bare, identity[0], page_of(1)), chain[1]);
    assert_int_equal(mu_kv_pool_take(p), chain[1]);
    assert_int_equal(mu_kv_pool_available(p), 0);
    mu_kv_pool_release(p, chain[0]);
    assert_int_equal(mu_kv_pool_take(p), chain[0]);
    assert_int_equal(mu_kv_pool_find(p, &bare, 0, page_of(0)), MU_KV_NOTHING);
    /* the number comes back with other tokens: what followed the former ones is not found after it */
    uint64_t fresh = mu_kv_pool_publish(p, chain[0], &bare, 0, page_of(0));
    assert_true(fresh > identity[2]);
    assert_int_equal(mu_kv_pool_find(p, &bare, fresh, page_of(1)), MU_KV_NOTHING);
    assert_true(mu_kv_pool_sound(p));
    mu_kv_pool_destroy(p);
}

/* What is there already and held by nobody goes for the one that somebody holds: it is forgotten as late as what follows it. */
static void test_one_that_is_held_takes_the_place(void **state)
{
    (void)state;
    struct mu_kv_pool *p = pool_open(3);
    uint32_t old = mu_kv_pool_take(p);
    uint64_t first = mu_kv_pool_publish(p, old, &bare, 0, page_of(1));
    mu_kv_pool_release(p, old);
    uint32_t same = mu_kv_pool_take(p), next = mu_kv_pool_take(p);
    assert_int_equal(mu_kv_pool_publish(p, same, &bare, 0, page_of(1)), first);
    assert_true(mu_kv_pool_identity(p, same) == first && mu_kv_pool_identity(p, old) == 0);
    assert_int_equal(mu_kv_pool_find(p, &bare, 0, page_of(1)), same);
    assert_true(mu_kv_pool_cached(p) == 0 && mu_kv_pool_available(p) == 1 && mu_kv_pool_sound(p));
    mu_kv_pool_publish(p, next, &bare, first, page_of(2));
    mu_kv_pool_release(p, next);
    mu_kv_pool_release(p, same);
    assert_int_equal(mu_kv_pool_take(p), old);
    assert_int_equal(mu_kv_pool_take(p), next);
    assert_int_equal(mu_kv_pool_find(p, &bare, 0, page_of(1)), same);
    assert_true(mu_kv_pool_sound(p));
    mu_kv_pool_destroy(p);
}

static void test_every_allocation_can_fail(void **state)
{
    (void)state;
    for (long n = 1;; n++) {
        struct mu_kv_pool *p = NULL;
        struct mu_err err = MU_ERR_INIT;
        mu_alloc_fail_at(n);
        enum mu_status st = mu_kv_pool_create(4, &p, &err);
        mu_alloc_fail_at(0);
        mu_kv_pool_destroy(p);
        if (st == MU_OK) {
            assert_true(n > 3);
            break;
        }
        assert_int_equal(st, MU_ENOMEM);
        assert_null(p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_only_the_same_is_found), cmocka_unit_test(test_what_is_forgotten),
        cmocka_unit_test(test_one_that_is_held_takes_the_place), cmocka_unit_test(test_every_allocation_can_fail)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
