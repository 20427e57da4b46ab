/* Arenas: alignment, separation of pieces, the bound. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/arena.h"

/* Pieces of many sizes keep their contents while others are written. */
static void pieces_do_not_overlap(void **state)
{
    (void)state;
    struct mu_arena *a = mu_arena_create(0);
    enum { N = 2000 };
    static unsigned char *p[N];
    for (size_t i = 0; i < N; i++) {
        size_t len = i * 37 % 1999;
        p[i] = mu_arena_alloc(a, len);
        assert_non_null(p[i]);
        assert_int_equal((uintptr_t)p[i] % 16, 0);
        memset(p[i], (int)(i & 0xFF), len);
    }
    for (size_t i = 0; i < N; i++)
        for (size_t j = 0; j < i * 37 % 1999; j++) assert_int_equal(p[i][j], i & 0xFF);
    char *s = mu_arena_strndup(a, "abcdef", 4);
    assert_string_equal(s, "abcd");
    assert_string_equal(mu_arena_strndup(a, NULL, 0), "");
    mu_arena_destroy(a);
    mu_arena_destroy(NULL);
}

static void calloc_zeroes(void **state)
{
    (void)state;
    struct mu_arena *a = mu_arena_create(0);
    unsigned char *p = mu_arena_calloc(a, 100, 30);
    for (int i = 0; i < 3000; i++) assert_int_equal(p[i], 0);
    assert_null(mu_arena_calloc(a, SIZE_MAX / 2, 3));
    assert_null(mu_arena_alloc(a, SIZE_MAX));
    assert_null(mu_arena_alloc(a, SIZE_MAX - 15));
    assert_null(mu_arena_strndup(a, "", SIZE_MAX));
    mu_arena_destroy(a);
}

static void the_bound_holds(void **state)
{
    (void)state;
    struct mu_arena *a = mu_arena_create(100000);
    size_t sum = 0;
    while (mu_arena_alloc(a, 160)) sum += 160;
    assert_int_equal(sum, 100000);
    assert_int_equal(mu_arena_used(a), 100000);
    assert_null(mu_arena_alloc(a, 1));
    mu_arena_destroy(a);

    a = mu_arena_create(100000);
    assert_null(mu_arena_alloc(a, 100001));
    assert_non_null(mu_arena_alloc(a, 100000));
    assert_null(mu_arena_alloc(a, 1));
    mu_arena_destroy(a);

    a = mu_arena_create(7); /* no multiple of the alignment */
    assert_null(mu_arena_alloc(a, 8));
    assert_non_null(mu_arena_alloc(a, 7));
    assert_null(mu_arena_alloc(a, 1));
    assert_int_equal(mu_arena_used(a), 7);
    mu_arena_destroy(a);
}

static void failure_leaves_the_arena_usable(void **state)
{
    (void)state;
    struct mu_arena *a = mu_arena_create(0);
    mu_alloc_fail_at(1);
    assert_null(mu_arena_alloc(a, 100));
    assert_int_equal(mu_arena_used(a), 0);
    assert_non_null(mu_arena_alloc(a, 100));
    mu_alloc_fail_at(1);
    assert_null(mu_arena_alloc(a, 1 << 20));
    assert_int_equal(mu_arena_used(a), 112);
    mu_alloc_fail_at(0);
    mu_arena_destroy(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pieces_do_not_overlap),
        cmocka_unit_test(calloc_zeroes),
        cmocka_unit_test(the_bound_holds),
        cmocka_unit_test(failure_leaves_the_arena_usable),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
