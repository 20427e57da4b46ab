/* As much of cmocka as the kernels' tests use, for a processor that the build machine has no cmocka for. A check that
 * fails says where and leaves its test by longjmp; the program's exit status is the number of tests that failed. */
#ifndef MU_TESTS_CMOCKA_H
#define MU_TESTS_CMOCKA_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct CMUnitTest {
    const char *name;
    void (*run)(void **state);
};
#define cmocka_unit_test(f) \
    {                       \
#f, f               \
    }

enum { SHIM_PASSED, SHIM_FAILED, SHIM_SKIPPED };
static jmp_buf shim_leave;

__attribute__((format(printf, 3, 4), noreturn, unused)) static void shim_fail(const char *file, int line,
                                                                              const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "%s:%d: ", file, line);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    longjmp(shim_leave, SHIM_FAILED);
}

#define fail_msg(...)       shim_fail(__FILE__, __LINE__, __VA_ARGS__)
#define skip()              longjmp(shim_leave, SHIM_SKIPPED)
#define print_message(...)  printf(__VA_ARGS__)
#define shim_check(ok, ...) ((ok) ? (void)0 : fail_msg(__VA_ARGS__))

#define assert_true(c)     shim_check(c, "not true: %s", #c)
#define assert_false(c)    shim_check(!(c), "not false: %s", #c)
#define assert_non_null(p) shim_check((p) != NULL, "NULL: %s", #p)
#define assert_null(p)     shim_check((p) == NULL, "not NULL: %s", #p)
#define assert_int_equal(a, b) \
    shim_check((intmax_t)(a) == (intmax_t)(b), "%s is %jd, not %jd", #a, (intmax_t)(a), (intmax_t)(b))
#define assert_ptr_equal(a, b)                     shim_check((const void *)(a) == (const void *)(b), "%s is not %s", #a, #b)
#define assert_string_equal(a, b)                  shim_check(strcmp(a, b) == 0, "%s is '%s', not '%s'", #a, a, b)
#define assert_memory_equal(a, b, n)               shim_check(memcmp(a, b, n) == 0, "%s and %s differ", #a, #b)
#define assert_in_range(x, least, most)            shim_check((x) >= (least) && (x) <= (most), "%s is out of range", #x)
#define test_malloc                                malloc
#define test_free                                  free
#define cmocka_run_group_tests(t, setup, teardown) shim_run(t, sizeof(t) / sizeof *(t), setup)

static int shim_run(const struct CMUnitTest *tests, size_t n, int (*setup)(void **state))
{
    static const char *const said[] = {"passed", "FAILED", "skipped"};
    volatile int failed = 0;
    void *none = NULL;
    if (setup && setup(&none) != 0) return 1;
    for (volatile size_t i = 0; i < n; i++) {
        void *state = NULL;
        int result = setjmp(shim_leave);
        if (result == SHIM_PASSED) tests[i].run(&state);
        fprintf(stderr, "%s: %s\n", tests[i].name, said[result]);
        failed += result == SHIM_FAILED;
    }
    return failed;
}

#endif
