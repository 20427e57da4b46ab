/* How much memory the measurement of a machine reads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "worker/measure.h"

enum { MB = 1 << 20, KB = 1 << 10 };

static void slices(void **state)
{
    (void)state;
    static const struct {
        uint64_t available;
        int n_thread;
        size_t slice;
    } cases[] = {
        {(uint64_t)65536 * MB, 257, 8 * MB},  {(uint64_t)65536 * MB, 384, 8 * MB},
        {(uint64_t)65536 * MB, 1024, 8 * MB}, {(uint64_t)8192 * MB, 1024, 1 * MB},
        {(uint64_t)100 * MB, 16, 768 * KB},   {(uint64_t)100 * MB, 1024, 64 * KB},
        {(uint64_t)8192 * MB, 1, 256 * MB},   {(uint64_t)8192 * MB, 3, 87360 * KB}, /* 85.3 MB, whole units */
        {(uint64_t)1024 * MB, 2, 64 * MB},    {0, 1, 64 * KB},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(mu_measure_slice(cases[i].available, cases[i].n_thread), cases[i].slice);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(slices)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
