/* Chat templates of any bytes, for one conversation that holds every kind of value: refused with a sentence, or text
 * that is UTF-8 where the template is.
 *
 * An input is a byte of flags and the template. Steps are few, so that a loop does not cost the time of a thousand other
 * inputs. */
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "model/chat_template.h"
#include "model/utf8.h"

enum { CONTINUE = 1, GENERATION = 2, LITTLE_MEMORY = 4, STEPS = 100000 };

static const char *const seeds[][2] = {
#include "tests/model/chat_template_cases.inc"
};

static const char CONVERSATION[] =
    "{\"messages\": [{\"role\": \"system\", \"content\": \"Be \\u00fc\\u4e2d\\ud83d\\ude42.\"},"
    " {\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \" a b \"}]},"
    " {\"role\": \"assistant\", \"content\": \"Hello \", \"tool_calls\": [{\"function\": {\"name\": \"f\","
    " \"arguments\": {\"x\": [1, 2.5, null, true]}}}]}],"
    " \"tools\": [{\"function\": {\"name\": \"f\", \"parameters\": {\"type\": \"object\"}}}],"
    " \"v\": {\"n\": 3, \"f\": -2.5, \"s\": \"Gr\\u00fc\\u00dfe\", \"l\": [3, 1, 2], \"d\": {\"b\": 1, \"a\": null},"
    " \"people\": [{\"name\": \"Bo\", \"age\": 3}, {\"name\": \"al\", \"age\": 5}]}}";

static void expect(bool ok, const char *what)
{
    if (ok) return;
    fprintf(stderr, "broken: %s\n", what);
    abort();
}

static void check_error(enum mu_status st, const struct mu_err *err)
{
    expect(err->code == st && err->text[0], "a failure says what it is");
    expect(!strpbrk(err->text, "\n\r\033"), "a message holds nothing that a terminal obeys");
    expect(st != MU_EINTERNAL, "the tree holds what it should");
}

static bool is_utf8(const char *p, size_t n)
{
    uint32_t cp;
    for (size_t at = 0; at < n;) {
        int step = mu_utf8_next(p + at, n - at, &cp);
        if (!step) return false;
        at += (size_t)step;
    }
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static json_t *conversation;
    struct mu_chat_template *t = NULL;
    struct mu_err err = MU_ERR_INIT;
    char *text = NULL;
    size_t text_len;
    if (!conversation) conversation = json_loads(CONVERSATION, 0, NULL);
    if (!len || !conversation) return 0;
    const char *src = (const char *)data + 1;
    if (data[0] & LITTLE_MEMORY) mu_alloc_fail_at(1 + data[0] / 8);
    enum mu_status st = mu_chat_template_parse(src, len - 1, &t, &err);
    if (st) {
        check_error(st, &err);
        expect(!t, "nothing is set on failure");
    } else {
        struct mu_chat_input in = {.messages = json_object_get(conversation, "messages"),
                                   .tools = json_object_get(conversation, "tools"),
                                   .variables = json_object_get(conversation, "v"),
                                   .bos_token = "<s>",
                                   .add_generation_prompt = data[0] & GENERATION,
                                   .continue_final_message = data[0] & CONTINUE,
                                   .max_steps = STEPS};
        st = mu_chat_template_render(t, &in, &text, &text_len, &err);
        if (st) {
            check_error(st, &err);
            expect(!text, "nothing is set on failure");
        } else {
            expect(text[text_len] == '\0', "the text ends");
            expect(!is_utf8(src, len - 1) || is_utf8(text, text_len), "UTF-8 gives UTF-8");
        }
    }
    mu_alloc_fail_at(0);
    mu_free(text);
    mu_chat_template_free(t);
    return 0;
}

bool mu_fuzz_seed(int n, uint8_t **data_out, size_t *len_out)
{
    if (n >= (int)(sizeof seeds / sizeof *seeds)) return false;
    size_t len = strlen(seeds[n][0]);
    uint8_t *data = malloc(len + 1);
    if (!data) return false;
    data[0] = n % 4;
    memcpy(data + 1, seeds[n][0], len);
    *data_out = data;
    *len_out = len + 1;
    return true;
}
