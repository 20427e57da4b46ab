/* The roof's loops: each table's run, give a rate that some machine could have, and keep to their time, also on several threads at once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "kernels/kernels.h"
#include "kernels/peak.h"

static void test_rates(void **state)
{
    const struct mu_kernels *const *all = mu_kernels_available();
    size_t bytes = 4 << 20;
    uint8_t *buf = mu_aligned_alloc(64, bytes);
    (void)state;
    assert_non_null(buf);
    memset(buf, 1, bytes);
    for (int k = 0; all[k]; k++) {
        struct mu_err err = MU_ERR_INIT;
        assert_int_equal(mu_kernels_init(all[k]->name, &err), MU_OK);
        int64_t start = mu_now_ns();
        double int8 = mu_peak_int8_gops(), f32 = mu_peak_f32_gflops(), read = mu_peak_read_gbps(buf, bytes);
        double odd = mu_peak_read_gbps(buf + 64, 64 * 7);
        int64_t took = mu_now_ns() - start;
        print_message("%s: int8 %.1f GOP/s, f32 %.1f GFLOP/s, read %.1f GB/s\n", all[k]->name, int8, f32, read);
        if (!(int8 > 0.01 && int8 < 1e5)) fail_msg("%s int8: %g GOP/s", all[k]->name, int8);
        if (!(f32 > 0.01 && f32 < 1e4)) fail_msg("%s f32: %g GFLOP/s", all[k]->name, f32);
        if (!(read > 0.01 && read < 1e4)) fail_msg("%s read: %g GB/s", all[k]->name, read);
        assert_true(odd >= 0);
        assert_true(took < 30 * MU_SEC); /* milliseconds, but for emulators and sanitizers */
    }
    mu_free(buf);
}

static void *measure(void *rate)
{
    _Alignas(64) uint8_t buf[4096] = {1};
    *(double *)rate = mu_peak_int8_gops() + mu_peak_f32_gflops() + mu_peak_read_gbps(buf, sizeof buf);
    return NULL;
}

/* As a worker does; for ThreadSanitizer. (Threads of their own: a pool needs hwloc, which emulated processors lack here.) */
static void test_all_threads_at_once(void **state)
{
    enum { N_THREAD = 2 };
    struct mu_err err = MU_ERR_INIT;
    pthread_t thread[N_THREAD];
    double rate[N_THREAD] = {0};
    (void)state;
    assert_int_equal(mu_kernels_init(NULL, &err), MU_OK);
    for (int i = 0; i < N_THREAD; i++) assert_int_equal(pthread_create(&thread[i], NULL, measure, &rate[i]), 0);
    for (int i = 0; i < N_THREAD; i++) {
        assert_int_equal(pthread_join(thread[i], NULL), 0);
        if (!(rate[i] > 0)) fail_msg("thread %d: %g", i, rate[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rates), cmocka_unit_test(test_all_threads_at_once)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
