/* What ranks leave in their gang's folder, read by another process at the worst moment. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "worker/gang_file.h"

enum { N = 3000, MOST_LOOKS = 100000000 };

/* An error that is there is whole: the worker takes one that cannot be read for a rank that was killed. */
static void test_errors_are_whole(void **state)
{
    (void)state;
    char folder[] = "/tmp/mu-gang-file-XXXXXX", path[64];
    struct mu_err want = MU_ERR_INIT, got = MU_ERR_INIT;
    int status, n_partial = 0, n_left = 0;
    mu_fail(&want, MU_EIO, "%0*d", MU_ERR_TEXT - 1, 7);
    assert_non_null(mkdtemp(folder));
    pid_t ranks = fork();
    assert_true(ranks >= 0);
    if (ranks == 0) {
        for (int i = 0; i < N; i++) mu_worker_gang_error_write(folder, i, &want);
        _exit(0);
    }
    for (int i = 0; i < N; i++) {
        snprintf(path, sizeof path, "%s/error.%d", folder, i);
        for (int k = 0; access(path, F_OK) != 0 && k < MOST_LOOKS; k++) {}
        n_partial += !mu_worker_gang_error_read(folder, i, &got) || strcmp(got.text, want.text) != 0 || got.rank != i;
        unlink(path);
    }
    waitpid(ranks, &status, 0);
    for (int i = 0; i < N; i++) {
        snprintf(path, sizeof path, "%s/new-error.%d", folder, i);
        n_left += unlink(path) == 0;
    }
    assert_int_equal(rmdir(folder), 0); /* nothing else is in it */
    assert_int_equal(status, 0);
    assert_int_equal(n_partial, 0);
    assert_int_equal(n_left, 0);
}

static void test_no_error(void **state)
{
    (void)state;
    struct mu_err got = MU_ERR_INIT;
    assert_false(mu_worker_gang_error_read("/tmp", 1 << 30, &got));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_errors_are_whole), cmocka_unit_test(test_no_error)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
