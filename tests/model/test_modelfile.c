/* Modelfiles: what is read, what is refused and where, and that writing one and reading it gives the same model. */
#include "tests/model/files_util.h"

#include "model/modelfile.h"

static struct mu_modelfile *parse(const char *text)
{
    struct mu_modelfile *f = NULL;
    struct mu_err err = MU_ERR_INIT;
    if (mu_modelfile_parse(text, strlen(text), "Modelfile", &f, &err) != MU_OK) fail_msg("%s", err.text);
    return f;
}

static const char whole[] = "# a comment\n"
                            "\n"
                            "FROM ./base.gguf\r\n"
                            "  parameter temperature 0.25\n"
                            "PARAMETER stop \"<|end|>\"\n"
                            "PARAMETER stop \" two words \"\n"
                            "PARAMETER num_ctx 4096\n"
                            "PARAMETER use_mmap false\n"
                            "TEMPLATE \"\"\"{% for m in messages %}\n# no comment\n{% endfor %}\"\"\"\n"
                            "SYSTEM You are \"terse\" here.\n"
                            "ADAPTER ./lora.gguf\n"
                            "LICENSE \"\"\"\nMIT\n\"\"\"\n"
                            "LICENSE two\n"
                            "MESSAGE user Is it?\n"
                            "Message ASSISTANT \"\"\"It\nis.\"\"\"\n"
                            "REQUIRES 0.14\n";

static void test_whole(void **state)
{
    (void)state;
    struct mu_modelfile *f = parse(whole);
    assert_string_equal(f->from, "./base.gguf");
    assert_string_equal(f->template, "{% for m in messages %}\n# no comment\n{% endfor %}");
    assert_string_equal(f->system, "You are \"terse\" here.");
    assert_int_equal(f->n_adapter, 1);
    assert_int_equal(f->n_license, 2);
    assert_string_equal(f->license[0], "\nMIT\n");
    assert_true(json_real_value(json_object_get(f->params, "temperature")) == 0.25);
    assert_int_equal(json_integer_value(json_object_get(f->params, "num_ctx")), 4096);
    assert_true(json_is_false(json_object_get(f->params, "use_mmap")));
    json_t *stop = json_object_get(f->params, "stop");
    assert_int_equal(json_array_size(stop), 2);
    assert_string_equal(json_string_value(json_array_get(stop, 1)), " two words ");
    assert_int_equal(json_array_size(f->messages), 2);
    json_t *last = json_array_get(f->messages, 1);
    assert_string_equal(json_string_value(json_object_get(last, "role")), "assistant");
    assert_string_equal(json_string_value(json_object_get(last, "content")), "It\nis.");
    mu_modelfile_free(f);
}

/* show --modelfile gives a file that makes the same model. */
static void test_back_and_forth(void **state)
{
    (void)state;
    struct mu_modelfile *f = parse(whole);
    struct mu_store_model m = {.entry = {.name = "x"},
                               .path = f->from,
                               .adapter_path = f->adapter,
                               .n_adapter = f->n_adapter,
                               .params = f->params,
                               .messages = f->messages,
                               .system = f->system,
                               .template = f->template,
                               .license = f->license,
                               .n_license = f->n_license};
    char *text = mu_modelfile_format(&m);
    assert_non_null(text);
    struct mu_modelfile *g = parse(text);
    assert_string_equal(f->from, g->from);
    assert_string_equal(f->system, g->system);
    assert_string_equal(f->template, g->template);
    assert_string_equal(f->license[0], g->license[0]);
    assert_true(json_equal(f->params, g->params));
    assert_true(json_equal(f->messages, g->messages));
    mu_free(text);
    mu_modelfile_free(f);
    mu_modelfile_free(g);
}

static void test_bad(void **state)
{
    (void)state;
    static const struct {
        const char *text, *word, *more;
    } cases[] = {
        {"", "expected FROM", ""},
        {"# only\n", "expected FROM", ""},
        {"FROM\n", "line 1", "value after FROM"},
        {"FROM a\nFROM b\n", "line 2", "second"},
        {"FROM a\nFRUM b\n", "line 2", "'frum'"},
        {"FROM a\n\n\nSYSTEM \"\"\"open\n\n", "line 4", "ends the value"},
        {"FROM a\nSYSTEM \"\"\"x\ny\"\"\" z\n", "line 3", "line's end"},
        {"FROM a\nPARAMETER\n", "line 2", "parameter's name"},
        {"FROM a\nPARAMETER heat 3\n", "line 2", "'heat'"},
        {"FROM a\nPARAMETER temperature hot\n", "line 2", "takes a number"},
        {"FROM a\nPARAMETER temperature nan\n", "line 2", "takes a number"},
        {"FROM a\nPARAMETER top_k 1.5\n", "line 2", "whole number"},
        {"FROM a\nPARAMETER top_k 99999999999999999999\n", "line 2", "whole number"},
        {"FROM a\nPARAMETER numa maybe\n", "line 2", "true or false"},
        {"FROM a\nMESSAGE robot hi\n", "line 2", "user, assistant or system"},
        {"FROM a\nSYSTEM \xff\n", "UTF-8", ""},
        {"FROM a\nAVERYLONGWORDTHATISNOCOMMANDATALLREALLY x\n", "line 2", "expected FROM"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct mu_modelfile *f = NULL;
        struct mu_err err = MU_ERR_INIT;
        if (mu_modelfile_parse(cases[i].text, strlen(cases[i].text), "Modelfile", &f, &err) == MU_OK)
            fail_msg("taken: %s", cases[i].text);
        assert_err(&err, MU_EFORMAT, "Modelfile", cases[i].word, cases[i].more, NULL);
    }
    struct mu_modelfile *f = NULL;
    struct mu_err err = MU_ERR_INIT;
    assert_int_equal(mu_modelfile_parse("FROM a\0b", 8, "Modelfile", &f, &err), MU_EFORMAT);
}

static void test_many(void **state)
{
    (void)state;
    char *text = malloc(1 << 16);
    struct mu_modelfile *f = NULL;
    struct mu_err err = MU_ERR_INIT;
    strcpy(text, "FROM a\n");
    for (int i = 0; i < 100; i++) strcat(text, "LICENSE x\n");
    assert_int_equal(mu_modelfile_parse(text, strlen(text), "Modelfile", &f, &err), MU_ELIMIT);
    strcpy(text, "FROM a\n");
    for (int i = 0; i < 100; i++) strcat(text, "PARAMETER stop x\n");
    assert_int_equal(mu_modelfile_parse(text, strlen(text), "Modelfile", &f, &err), MU_ELIMIT);
    free(text);
}

static void test_allocations(void **state)
{
    (void)state;
    json_set_alloc_funcs(mu_malloc, mu_free);
    for (long n = 1;; n++) {
        struct mu_modelfile *f = NULL;
        struct mu_err err = MU_ERR_INIT;
        mu_alloc_fail_at(n);
        enum mu_status st = mu_modelfile_parse(whole, strlen(whole), "Modelfile", &f, &err);
        bool reached = mu_alloc_fail_at(0) >= n;
        mu_modelfile_free(f);
        assert_int_equal(st, reached ? MU_ENOMEM : MU_OK);
        if (!reached) break;
    }
    json_set_alloc_funcs(malloc, free);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole), cmocka_unit_test(test_back_and_forth), cmocka_unit_test(test_bad),
        cmocka_unit_test(test_many),  cmocka_unit_test(test_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
