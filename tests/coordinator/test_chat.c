/* Conversations to prompts: where the template comes from, what of a request is refused, who brings the BOS. */
#include <stdlib.h>
#include <unistd.h>

#include "base/alloc.h"
#include "coordinator/hub.h"
#include "tests/coordinator/coord_fixture.h"

struct chat_fixture {
    struct vocabulary v;
    struct mu_model model;
    struct mu_serve_options opt;
    struct mu_hub hub;
    char path[64];
};

/* template NULL: the model's own, of which it has none. */
static struct chat_fixture *open_with(const char *template, enum mu_status *st, struct mu_err *err)
{
    struct chat_fixture *f = calloc(1, sizeof *f);
    vocabulary_open(&f->v);
    f->model.gguf = f->v.gguf;
    f->hub.model = &f->model;
    f->hub.tok = f->v.tok;
    f->hub.opt = &f->opt;
    if (template) {
        snprintf(f->path, sizeof f->path, "/tmp/test-chat-XXXXXX");
        int fd = mkstemp(f->path);
        assert_int_equal(write(fd, template, strlen(template)), strlen(template));
        close(fd);
        f->opt.template_path = f->path;
    }
    *st = mu_chat_open(&f->hub, err);
    return f;
}

static void close_all(struct chat_fixture *f)
{
    mu_chat_close(&f->hub.chat);
    vocabulary_close(&f->v);
    if (f->path[0]) unlink(f->path);
    free(f);
}

static Muster__V1__Chat chat_of(const char *messages)
{
    Muster__V1__Chat c = MUSTER__V1__CHAT__INIT;
    c.messages_json = (char *)(uintptr_t)messages;
    return c;
}

static void expect(const struct chat_fixture *f, const Muster__V1__Chat *c, const char *want, bool want_bos)
{
    struct mu_err err = MU_ERR_INIT;
    char *text = NULL;
    size_t len;
    bool bos;
    if (mu_chat_prompt(&f->hub, c, &text, &len, &bos, &err)) fail_msg("%s", err.text);
    assert_string_equal(text, want);
    assert_int_equal(len, strlen(want));
    assert_int_equal(bos, want_bos);
    mu_free(text);
}

static void expect_error(const struct chat_fixture *f, const Muster__V1__Chat *c, enum mu_status want,
                         const char *words)
{
    struct mu_err err = MU_ERR_INIT;
    char *text = NULL;
    size_t len;
    bool bos;
    assert_int_equal(mu_chat_prompt(&f->hub, c, &text, &len, &bos, &err), want);
    if (!strstr(err.text, words)) fail_msg("%s", err.text);
}

static void test_prompts(void **state)
{
    (void)state;
    struct mu_err err = MU_ERR_INIT;
    enum mu_status st;
    struct chat_fixture *f =
        open_with("{{ bos_token if with_bos }}{% for m in messages %}{{ m.content }}|{% endfor %}"
                  "{{ tools | tojson if tools }}{{ 'A:' if add_generation_prompt }}{{ eos_token if with_bos }}",
                  &st, &err);
    assert_int_equal(st, MU_OK);
    mu_free(f->hub.chat.bos);
    f->hub.chat.bos = mu_strdup("<s>"); /* the vocabulary of bytes has none */
    Muster__V1__Chat c = chat_of("[{\"role\": \"user\", \"content\": \"Hi\"}, {\"content\": \"Oh \"}]");
    expect(f, &c, "Hi|Oh |A:", false);
    c.no_generation_prompt = true;
    c.tools_json = (char *)(uintptr_t) "[1]";
    c.variables_json = (char *)(uintptr_t) "{\"with_bos\": true}";
    expect(f, &c, "<s>Hi|Oh |[1]</s>", true);
    c.continue_final = true;
    expect(f, &c, "<s>Hi|Oh ", true);
    close_all(f);
}

static void test_refusals(void **state)
{
    (void)state;
    struct mu_err err = MU_ERR_INIT;
    enum mu_status st;
    struct chat_fixture *f =
        open_with("{% if messages[0].role != 'user' %}{{ raise_exception('users first') }}{% endif %}", &st, &err);
    Muster__V1__Chat c = chat_of("[{\"role\": \"tool\"}]");
    expect_error(f, &c, MU_EINVAL, "users first");
    c.messages_json = (char *)(uintptr_t) "[\n{]";
    expect_error(f, &c, MU_EINVAL, "messages_json is no JSON: line 2");
    c.messages_json = (char *)(uintptr_t) "{}";
    expect_error(f, &c, MU_EINVAL, "messages must be an array");
    c = chat_of("[{\"role\": \"user\"}]");
    c.variables_json = (char *)(uintptr_t) "[]";
    expect_error(f, &c, MU_EINVAL, "must be an object");
    c.variables_json = (char *)(uintptr_t) "";
    c.continue_final = true;
    expect_error(f, &c, MU_EINVAL, "no text that could be continued");
    close_all(f);
}

static void test_without_a_template(void **state)
{
    (void)state;
    struct mu_err err = MU_ERR_INIT;
    enum mu_status st;
    struct chat_fixture *f = open_with(NULL, &st, &err);
    assert_int_equal(st, MU_OK); /* text and ids are served all the same */
    Muster__V1__Chat c = chat_of("[]");
    expect_error(f, &c, MU_EUNSUPPORTED, "no chat template (tokenizer.chat_template); serve it with --template");
    close_all(f);
    f = open_with("a\n{% if %}", &st, &err); /* one that was asked for must work */
    assert_int_equal(st, MU_EFORMAT);
    assert_non_null(strstr(err.text, "line 2"));
    close_all(f);
}

static void test_every_allocation_may_fail(void **state)
{
    (void)state;
    struct mu_err err = MU_ERR_INIT;
    enum mu_status st;
    struct chat_fixture *f = open_with("{% for m in messages %}{{ m | tojson }}{% endfor %}", &st, &err);
    Muster__V1__Chat c = chat_of("[{\"role\": \"user\", \"content\": [1, 2]}]");
    char *text = NULL;
    size_t len;
    bool bos;
    st = MU_ENOMEM;
    for (long n = 1; st; n++) {
        mu_alloc_fail_at(n);
        st = mu_chat_prompt(&f->hub, &c, &text, &len, &bos, &err);
        mu_alloc_fail_at(0);
        if (st) assert_int_equal(st, MU_ENOMEM);
        assert_true(n < 1000);
    }
    mu_free(text);
    close_all(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prompts),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_without_a_template),
        cmocka_unit_test(test_every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
