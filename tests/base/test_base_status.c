/* Status codes, error texts, time. */
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/status.h"

static void names_and_texts(void **state)
{
    (void)state;
    assert_string_equal(mu_status_name(MU_EPEER), "MU_EPEER");
    assert_string_equal(mu_status_text(MU_EPEER), "peer is gone");
    assert_string_equal(mu_status_text((enum mu_status)9999), "unknown status");
    assert_non_null(mu_status_name((enum mu_status)9999));
}

static void fail_fills_everything(void **state)
{
    (void)state;
    struct mu_err err = MU_ERR_INIT;
    err.rank = 7; /* of an older error */
    assert_int_equal(mu_fail(&err, MU_EIO, "reading %s:\nblock %d", "x", 3), MU_EIO);
    assert_int_equal(err.code, MU_EIO);
    assert_int_equal(err.rank, -1);
    assert_int_equal(err.line, __LINE__ - 3);
    assert_string_equal(err.file, __FILE__);
    assert_string_equal(err.text, "reading x: block 3");
    assert_int_equal(mu_fail(NULL, MU_EBUSY, "nobody listens"), MU_EBUSY);
}

static void wrap_prepends(void **state)
{
    (void)state;
    struct mu_err err = MU_ERR_INIT;
    mu_fail(&err, MU_ENOENT, "no such tensor");
    assert_int_equal(mu_err_wrap(&err, "layer %d", 4), MU_ENOENT);
    assert_string_equal(err.text, "layer 4: no such tensor");
    assert_int_equal(mu_err_wrap(&err, "%s", err.text), MU_ENOENT); /* the argument is the text itself */
    assert_string_equal(err.text, "layer 4: no such tensor: layer 4: no such tensor");
}

/* A cut never leaves half a character: for every alignment of 2-, 3- and 4-byte sequences against the limit. */
static void long_texts_are_cut_whole(void **state)
{
    (void)state;
    static const char *const units[] = {"x", "é", "€", "𝄞"};
    for (size_t u = 0; u < 4; u++)
        for (size_t shift = 0; shift < 4; shift++) {
            struct {
                struct mu_err err;
                char guard[8];
            } g;
            memset(&g, 0x5A, sizeof g);
            char text[2 * MU_ERR_TEXT] = "";
            memset(text, 'a', shift);
            size_t len = shift;
            for (; len + 5 < sizeof text; len += strlen(units[u])) memcpy(text + len, units[u], strlen(units[u]) + 1);
            mu_fail(&g.err, MU_EINVAL, "%s", text);
            size_t got = strlen(g.err.text);
            assert_true(got < MU_ERR_TEXT && got >= MU_ERR_TEXT - 4);
            assert_int_equal((got - shift) % strlen(units[u]), 0);
            assert_memory_equal(g.err.text, text, got);
            mu_err_wrap(&g.err, "context");
            got = strlen(g.err.text);
            assert_true(got < MU_ERR_TEXT && got >= MU_ERR_TEXT - 4);
            assert_int_equal((got - shift - strlen("context: ")) % strlen(units[u]), 0);
            for (size_t i = 0; i < sizeof g.guard; i++) assert_int_equal(g.guard[i], 0x5A);
        }
}

static void clock_runs_forward(void **state)
{
    (void)state;
    int64_t a = mu_now_ns();
    mu_sleep_ms(5);
    int64_t b = mu_now_ns();
    assert_true(b - a >= 5 * MU_MS);
    mu_sleep_ms(-1);
}

static void ms_until_rounds_up_and_saturates(void **state)
{
    (void)state;
    assert_int_equal(mu_ms_until(MU_FOREVER), -1);
    assert_int_equal(mu_ms_until(0), 0);
    assert_int_equal(mu_ms_until(INT64_MIN), 0);
    assert_int_equal(mu_ms_until(MU_FOREVER - 1), INT_MAX);
    /* A millisecond and a bit away is 1 or 2, never 0 before the deadline. */
    int64_t deadline = mu_now_ns() + 3 * MU_MS / 2;
    while (mu_now_ns() < deadline - MU_MS / 4) {
        int ms = mu_ms_until(deadline);
        if (mu_now_ns() < deadline) assert_true(ms >= 1 && ms <= 2);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_and_texts),    cmocka_unit_test(fail_fills_everything),
        cmocka_unit_test(wrap_prepends),      cmocka_unit_test(long_texts_are_cut_whole),
        cmocka_unit_test(clock_runs_forward), cmocka_unit_test(ms_until_rounds_up_and_saturates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
