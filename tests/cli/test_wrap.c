/* Word wrap: the same lines however the text is cut into pieces; wide characters; what must not reach a terminal. */
#include <locale.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "cli/wrap.h"

struct page {
    char text[4096];
    size_t len;
};

static enum mu_status keep(void *ctx, const char *text, size_t len, struct mu_err *err)
{
    struct page *p = ctx;
    if (p->len + len >= sizeof p->text) return mu_fail(err, MU_ELIMIT, "the page is full");
    memcpy(p->text + p->len, text, len);
    p->len += len;
    p->text[p->len] = 0;
    return MU_OK;
}

/* Cut at every point, and into single bytes. */
static void check(int width, const char *in, const char *want)
{
    size_t n = strlen(in);
    for (size_t cut = 0; cut <= n + 1; cut++) {
        struct page page = {{0}, 0};
        struct mu_wrap w;
        mu_wrap_init(&w, width, keep, &page);
        if (cut <= n) {
            assert_int_equal(mu_wrap_put(&w, in, cut, NULL), MU_OK);
            assert_int_equal(mu_wrap_put(&w, in + cut, n - cut, NULL), MU_OK);
        } else {
            for (size_t i = 0; i < n; i++) assert_int_equal(mu_wrap_put(&w, in + i, 1, NULL), MU_OK);
        }
        assert_int_equal(mu_wrap_flush(&w, NULL), MU_OK);
        assert_string_equal(page.text, want);
    }
}

static void test_words(void **state)
{
    (void)state;
    check(10, "", "");
    check(10, "short", "short");
    check(10, "one two three four", "one two\nthree four");
    check(10, "exactly 10 fits", "exactly 10\nfits");
    check(10, "1234567890 1", "1234567890\n1");
    check(10, "a  b\n\n  indented", "a  b\n\n  indented");
    check(10, "trailing   \nx", "trailing\nx");
    check(10, "abcdefghijklmnopqrstuvwxyz", "abcdefghij\nklmnopqrst\nuvwxyz");
    check(10, "see abcdefghijklm", "see\nabcdefghij\nklm");
    check(0, "one two three four five six seven", "one two three four five six seven");
    check(20, "a\tb", "a       b");
    check(10, "  abcdefghijklm", "abcdefghij\nklm"); /* no room beside the indentation */
}

static void test_characters(void **state)
{
    (void)state;
    check(6, "äöü äöü äöü", "äöü\näöü\näöü");   /* two bytes, one column */
    check(6, "日本語日本語", "日本語\n日本語"); /* two columns, parted anywhere */
    check(7, "日本語日本語", "日本語\n日本語"); /* never in the middle of one */
    check(7, "ab 日本", "ab 日本");
    check(7, "abc 日本", "abc 日\n本");
    check(4,
          "e\xcc\x81"
          "e\xcc\x81"
          "e\xcc\x81"
          "e\xcc\x81"
          "e\xcc\x81",
          "e\xcc\x81"
          "e\xcc\x81"
          "e\xcc\x81"
          "e\xcc\x81\n"
          "e\xcc\x81"); /* a combining accent takes none */
}

static void test_hostile(void **state)
{
    (void)state;
    check(20, "a\033[2Jb\rc\ad\x7f", "a[2Jbcd");
    check(20,
          "a\xc2\x9b"
          "2Jb",
          "a2Jb"); /* a control sequence introducer of one character */
    check(20,
          "a\xe2\x80\xae"
          "b",
          "ab"); /* right to left from here on */
    check(20,
          "a\xff"
          "b\xc3",
          "a\xef\xbf\xbd"
          "b\xef\xbf\xbd");
    char blanks[3000], page[3000];
    memset(blanks, ' ', sizeof blanks - 1);
    blanks[sizeof blanks - 1] = 0;
    snprintf(page, sizeof page, "a%.2000sb", blanks);
    struct page out = {{0}, 0};
    struct mu_wrap w;
    mu_wrap_init(&w, 10, keep, &out);
    assert_int_equal(mu_wrap_put(&w, page, strlen(page), NULL), MU_OK);
    assert_int_equal(mu_wrap_flush(&w, NULL), MU_OK);
    assert_string_equal(out.text, "a\nb");
}

static enum mu_status refuse(void *ctx, const char *text, size_t len, struct mu_err *err)
{
    (void)ctx, (void)text, (void)len;
    return mu_fail(err, MU_EIO, "closed");
}

static void test_codes_and_errors(void **state)
{
    (void)state;
    struct page page = {{0}, 0};
    struct mu_wrap w;
    mu_wrap_init(&w, 10, keep, &page);
    assert_int_equal(mu_wrap_put(&w, "12345 ", 6, NULL), MU_OK);
    assert_int_equal(mu_wrap_code(&w, "\033[2m", NULL), MU_OK);
    assert_int_equal(mu_wrap_put(&w, "6789 x", 6, NULL), MU_OK);
    assert_int_equal(mu_wrap_flush(&w, NULL), MU_OK);
    assert_string_equal(page.text, "12345\033[2m 6789\nx"); /* colours take no column */
    struct mu_err err = MU_ERR_INIT;
    mu_wrap_init(&w, 10, refuse, NULL);
    assert_int_equal(mu_wrap_put(&w, "a b", 3, &err), MU_EIO);
}

int main(void)
{
    if (!setlocale(LC_CTYPE, "C.UTF-8")) {
        puts("SKIPPED: there is no locale C.UTF-8");
        return 77;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_words), cmocka_unit_test(test_characters),
                                       cmocka_unit_test(test_hostile), cmocka_unit_test(test_codes_and_errors)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
