/* Thought and answer told apart, wherever the text is cut into pieces. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "model/thinking.h"

struct heard {
    char thought[512], answer[512];
};

static enum mu_status hear(void *ctx, enum mu_span kind, const char *text, size_t len, struct mu_err *err)
{
    struct heard *h = ctx;
    (void)err;
    if (kind == MU_SPAN_WAS_THOUGHT) {
        assert_int_equal(len, 0);
        strcpy(h->thought, h->answer);
        h->answer[0] = 0;
        return MU_OK;
    }
    char *to = kind == MU_SPAN_THOUGHT ? h->thought : h->answer;
    assert_true(strlen(to) + len < sizeof h->answer);
    strncat(to, text, len);
    return MU_OK;
}

/* In two pieces, cut at every byte, and byte by byte. */
static void check(const char *prompt, const char *in, const char *thought, const char *answer)
{
    size_t n = strlen(in);
    for (size_t cut = 0; cut <= n + 1; cut++) {
        struct heard h = {{0}, {0}};
        struct mu_thinking t;
        mu_thinking_init(&t, hear, &h);
        if (prompt) mu_thinking_prompt(&t, prompt, strlen(prompt));
        if (cut <= n) {
            assert_int_equal(mu_thinking_put(&t, in, cut, NULL), MU_OK);
            assert_int_equal(mu_thinking_put(&t, in + cut, n - cut, NULL), MU_OK);
        } else {
            for (size_t i = 0; i < n; i++) assert_int_equal(mu_thinking_put(&t, in + i, 1, NULL), MU_OK);
        }
        assert_int_equal(mu_thinking_finish(&t, NULL), MU_OK);
        assert_string_equal(h.thought, thought);
        assert_string_equal(h.answer, answer);
    }
}

static void test_tags(void **state)
{
    (void)state;
    check("", "Hello.", "", "Hello.");
    check("", " \n Hello.", "", " \n Hello."); /* an answer is left as it is */
    check("", " \n ", "", " \n ");
    check("", "<think>a < b</think>yes", "a < b", "yes");
    check("", "\n<think>\nwell\n</think>\n\n  yes </think> no", "well\n", "yes </think> no");
    check("", "<think></think>yes", "", "yes");
    check("", "<think>\n\n</think>\n\nyes", "", "yes");
    check("", "<thinner>", "", "<thinner>");
    check("", "say <think>x</think>", "", "say <think>x</think>"); /* not at the beginning: text */
    check("", "<think>cut off </thi", "cut off </thi", "");
    check("", "<thi", "", "<thi");
    check("", "<<think>x", "", "<<think>x");
    check("", "<think>a<</think>b", "a<", "b");
    check("", "<think>a</think</think>b", "a</think", "b");
    check("", "[THINK]hm[/THINK]yes", "hm", "yes");
    check("", "[THINK]hm</think>[/THINK]yes", "hm</think>", "yes"); /* its own mark closes it */
    check("", "<|START_THINKING|>hm<|END_THINKING|>yes", "hm", "yes");
    check("", "<|channel>thought\nhm\n<channel|>yes", "hm\n", "yes");
}

static void test_prompt(void **state)
{
    (void)state;
    check("<|Assistant|><think>\n", "so\n</think>\n\nyes", "so\n", "yes");
    check("<|Assistant|><think>", "never closed", "never closed", "");
    check("<think>\n\n</think>\n\n", "yes", "", "yes");
    check("", "not </think> opened", "", "not </think> opened");
    check(NULL, "so\n</think>\n\nyes </think>", "so\n", "yes </think>"); /* the prompt is not known */
    check(NULL, "plain", "", "plain");
    check(NULL, "</think>yes </think>", "", "yes </think>"); /* nothing was thought */
    check(NULL, "\n\n</think>\n\nyes", "", "yes");
    check(NULL, "[/THINK]yes", "", "yes");
    check(NULL, "</thin>", "", "</thin>");
    check(NULL, "<think>hm</think>yes </think>", "hm", "yes </think>");
    check("", "</think>yes", "", "</think>yes");
}

static void test_channels(void **state)
{
    (void)state;
    check("<|start|>assistant",
          "<|channel|>analysis<|message|>hm <|x|><|end|><|start|>assistant<|channel|>final<|message|>yes<|return|>",
          "hm <|x|>", "yes");
    check("", "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary to=x<|message|>b<|call|>",
          "ab", "");
    check("", "<|channel|>final<|message|>yes", "", "yes");
    check("", "<|channel|>analysis<|message|>a<|channel|>final<|message|>yes", "a", "yes");
    check("", "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|message|>yes", "a", "yes");
    check("", "<|channel|>a very long name that nobody would give to a channel<|message|>a<|end|>", "a", "");
}

static void test_marks(void **state)
{
    (void)state;
    static const char *const yes[] = {"<think>",     "</think>",         "[THINK]",    "<|channel|>",
                                      "<|message|>", "<|END_THINKING|>", "<|channel>", "<channel|>"};
    for (size_t i = 0; i < sizeof yes / sizeof *yes; i++) {
        assert_true(mu_thinking_is_mark(yes[i], strlen(yes[i])));
        assert_true(strlen(yes[i]) <= MU_MARK_BYTES);
    }
    assert_false(mu_thinking_is_mark("<|im_end|>", 10));
    assert_false(mu_thinking_is_mark("", 0));
    assert_false(mu_thinking_is_mark("<think", 6));
}

static enum mu_status refuse(void *ctx, enum mu_span kind, const char *text, size_t len, struct mu_err *err)
{
    (void)ctx, (void)kind, (void)text, (void)len;
    return mu_fail(err, MU_EIO, "closed");
}

static void test_errors(void **state)
{
    (void)state;
    struct mu_err err = MU_ERR_INIT;
    struct mu_thinking t;
    mu_thinking_init(&t, refuse, NULL);
    assert_int_equal(mu_thinking_put(&t, "<thi", 4, &err), MU_OK);
    assert_int_equal(mu_thinking_finish(&t, &err), MU_EIO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_tags), cmocka_unit_test(test_prompt),
                                       cmocka_unit_test(test_channels), cmocka_unit_test(test_marks),
                                       cmocka_unit_test(test_errors)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
