/* Chat templates against the goldens of thirty models, and what these do not show: the language by hand, errors with
 * their lines, limits, memory that fails. Expected texts of the language were checked against Jinja 3.1 and Python. */
#include <dirent.h>

#include "model/chat_template.h"
#include "tests/model/tok_fixture.h"

enum { NOW_S = 1722002709 }; /* 2024-07-26 14:05:09 UTC, the fixtures' clock */

static struct mu_chat_template *parse(const char *src)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_chat_template *t = NULL;
    if (mu_chat_template_parse(src, strlen(src), &t, &err)) fail_msg("'%s': %s", src, err.text);
    return t;
}

/* ---- goldens ---- */

struct goldens {
    const struct mu_chat_template *t;
    const char *name;
    const json_t *conversations;
    int n;
};

static void one_golden(const json_t *line, void *ctx)
{
    struct goldens *g = ctx;
    struct mu_err err = MU_ERR_INIT;
    const char *conv = json_string_value(json_object_get(line, "conv"));
    const json_t *c = json_object_get(g->conversations, conv), *expected = json_object_get(line, "expected");
    const char *raised = json_string_value(json_object_get(line, "raised"));
    struct mu_chat_input in = {
        .messages = json_object_get(c, "messages"),
        .tools = json_object_get(c, "tools"),
        .documents = json_object_get(c, "documents"),
        .variables = json_object_get(c, "kwargs"),
        .bos_token = json_string_value(json_object_get(line, "bos_token")),
        .eos_token = json_string_value(json_object_get(line, "eos_token")),
        .add_generation_prompt = json_is_true(json_object_get(line, "add_generation_prompt")),
        .continue_final_message = json_is_true(json_object_get(c, "continue_final_message")),
        .now_s = NOW_S,
    };
    char *text = NULL;
    size_t len = 0;
    assert_non_null(c);
    enum mu_status st = mu_chat_template_render(g->t, &in, &text, &len, &err);
    if (expected) {
        if (st) fail_msg("%s, %s: %s", g->name, conv, err.text);
        const char *want = json_string_value(expected);
        size_t same = 0, before;
        while (text[same] && text[same] == want[same]) same++;
        before = same < 80 ? 0 : same - 80;
        if (len != json_string_length(expected) || same != len)
            fail_msg("%s, %s, from byte %zu:\n%.200s\n--- not\n%.200s\n---", g->name, conv, before, text + before,
                     want + before);
    } else if (raised) {
        assert_int_equal(st, MU_EINVAL);
        if (!strstr(err.text, raised)) fail_msg("%s, %s: %s", g->name, conv, err.text);
    }
    if (st) assert_true(err.code == st && err.text[0] && !text);
    mu_free(text);
    g->n++;
}

static void test_goldens(void **state)
{
    (void)state;
    char path[4096];
    const char *dir = fixtures_dir();
    json_error_t je;
    snprintf(path, sizeof path, "%s/templates/conversations.json", dir);
    json_t *conversations = json_load_file(path, 0, &je);
    assert_non_null(conversations);
    snprintf(path, sizeof path, "%s/templates", dir);
    DIR *d = opendir(path);
    assert_non_null(d);
    int n_template = 0, n = 0;
    for (struct dirent *e; (e = readdir(d));) {
        size_t stem = strlen(e->d_name), len = 0;
        if (stem < 7 || strcmp(e->d_name + stem - 6, ".jinja") != 0) continue;
        stem -= 6;
        snprintf(path, sizeof path, "%s/templates/%s", dir, e->d_name);
        char *src = tok_read_file(path, &len);
        struct mu_err err = MU_ERR_INIT;
        struct mu_chat_template *t = NULL;
        if (mu_chat_template_parse(src, len, &t, &err)) fail_msg("%s: %s", e->d_name, err.text);
        free(src); /* it was copied */
        struct goldens g = {.t = t, .name = e->d_name, .conversations = conversations};
        snprintf(path, sizeof path, "%s/templates/%.*s.jsonl", dir, (int)stem, e->d_name);
        tok_each_line(path, one_golden, &g);
        assert_true(g.n > 0);
        n += g.n;
        n_template++;
        mu_chat_template_free(t);
    }
    closedir(d);
    json_decref(conversations);
    print_message("%d renderings of %d templates\n", n, n_template);
    assert_true(n_template >= 30);
}

/* ---- the language ---- */

static const char CONVERSATION[] =
    "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": \"Hello\"}],"
    " \"v\": {\"n\": 3, \"f\": 2.5, \"s\": \"Grüße\", \"l\": [3, 1, 2], \"d\": {\"b\": 1, \"a\": null, \"items\": 7},"
    " \"people\": [{\"name\": \"Bo\", \"age\": 3}, {\"name\": \"al\", \"age\": 5}, {\"name\": \"Cy\", \"age\": 3}]}}";

static enum mu_status render(const struct mu_chat_template *t, char **text, size_t *len, struct mu_err *err)
{
    json_t *c = json_loads(CONVERSATION, 0, NULL);
    struct mu_chat_input in = {.messages = json_object_get(c, "messages"),
                               .variables = json_object_get(c, "v"),
                               .bos_token = "<s>",
                               .add_generation_prompt = true,
                               .now_s = NOW_S};
    assert_non_null(in.messages);
    enum mu_status st = mu_chat_template_render(t, &in, text, len, err);
    json_decref(c);
    return st;
}

static bool gives(const char *src, const char *want)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_chat_template *t = parse(src);
    char *text = NULL;
    size_t len;
    bool ok = !render(t, &text, &len, &err);
    if (!ok)
        print_error("'%s': %s\n", src, err.text);
    else if (!(ok = len == strlen(want) && memcmp(text, want, len + 1) == 0))
        print_error("'%s'\n gives '%s'\n   not '%s'\n", src, text, want);
    mu_free(text);
    mu_chat_template_free(t);
    return ok;
}

static void expect(const char *src, const char *want)
{
    assert_true(gives(src, want));
}

/* The whole of the language that has one line of answer: template, text. */
static const char *const LANGUAGE[][2] = {
#include "tests/model/chat_template_cases.inc"
};

static void test_language(void **state)
{
    (void)state;
    int wrong = 0;
    for (size_t i = 0; i < sizeof LANGUAGE / sizeof *LANGUAGE; i++) wrong += !gives(LANGUAGE[i][0], LANGUAGE[i][1]);
    assert_int_equal(wrong, 0);
}

/* ---- errors ---- */

static void test_errors_of_syntax(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"a\nb {{ x", "line 2: the template ends within a tag; }} was expected"},
        {"{% if x %}\n\n{{ y }}", "line 3: {% elif %} for line 1 was expected and the end of the template was found"},
        {"\n{% endif %}", "line 2: a statement"},
        {"{% include 'x' %}", "line 1: a statement (if, for, set, macro"},
        {"{{ 1 + }}", "line 1: an expression was expected and }} was found"},
        {"{{ a.b.1.5x }}", "line 1:"},
        {"{{ 'abc }}", "line 1: a string has no end; ' was expected"},
        {"{# x", "line 1: a comment has no end; #} was expected"},
        {"{% raw %}\n{{", "line 1: {% raw %} has no {% endraw %}"},
        {"{% for x of y %}{% endfor %}", "'in' was expected and 'of' was found"},
        {"{% break %}", "'break' stands outside of a loop"},
        {"{% for x in y %}{% macro m() %}{% continue %}{% endmacro %}{% endfor %}", "stands outside of a loop"},
        {"{% set true = 1 %}", "a constant cannot be assigned to"},
        {"{{ f(a=1, 2) }}", "an argument without a name follows one with a name"},
        {"{{ 99999999999999999999 }}", "does not fit 64 bits"},
        {"{{ a ? b }}", "unexpected character '?'"},
        {"{{ a[] }}", "an index was expected"},
        {"{% macro 1() %}{% endmacro %}", "the name of the macro was expected and a number was found"},
        {"{% call x %}{% endcall %}", "a call of a macro was expected"},
        {"{% if x %}{% else %}{% elif y %}{% endif %}", "a statement"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct mu_err err = MU_ERR_INIT;
        struct mu_chat_template *t = NULL;
        assert_int_equal(mu_chat_template_parse(cases[i][0], strlen(cases[i][0]), &t, &err), MU_EFORMAT);
        assert_null(t);
        if (!strstr(err.text, cases[i][1])) fail_msg("'%s': %s", cases[i][0], err.text);
    }
}

static void expect_error(const char *src, enum mu_status want, const char *words)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_chat_template *t = parse(src);
    char *text = NULL;
    size_t len;
    enum mu_status st = render(t, &text, &len, &err);
    if (st != want || !strstr(err.text, words)) fail_msg("'%s': status %d, %s", src, (int)st, st ? err.text : text);
    assert_null(text);
    mu_chat_template_free(t);
}

static void test_errors_of_rendering(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"a\n\n{{ nothing.at.all }}", "line 3: 'nothing' is undefined"},
        {"{{ messages[0].gone.x }}", "line 1: a value of type dict has no 'gone'"},
        {"{{ messages[9].role }}", "a value is undefined"},
        {"{{ none.x.y }}", "a value of type None has no 'x'"},
        {"{{ gone() }}", "'gone' is undefined"},
        {"{{ 'a' + 1 }}", "'+' cannot take str and int"},
        {"{{ 'a' + gone }}", "'gone' is undefined"},
        {"{{ n() }}", "a value of type int cannot be called"},
        {"{% for x in 3 %}{% endfor %}", "a value of type int cannot be iterated"},
        {"{% for a, b in [[1, 2, 3]] %}{% endfor %}", "2 values were expected to unpack and there are 3"},
        {"{{ 1 // 0 }}", "division by zero"},
        {"{{ 1.0 % 0 }}", "division by zero"},
        {"{{ 9223372036854775807 + 1 }}", "an integer does not fit 64 bits"},
        {"{{ -9223372036854775807 - 2 }}", "an integer does not fit 64 bits"},
        {"{{ 3 ** 99 }}", "an integer does not fit 64 bits"},
        {"{{ 'a' < 1 }}", "values of types str and int have no order"},
        {"{{ 1 in 'abc' }}", "only text can be in text"},
        {"{{ x | nofilter }}", "there is no filter 'nofilter'"},
        {"{{ x is notest }}", "there is no test 'notest'"},
        {"{% set s.x = 1 %}", "only a namespace's attributes can be set"},
        {"{{ [[]] | map('length') | tojson }}", "is no JSON"},
        {"{{ [1] | map('string') | length }}", "has no length"},
        {"{{ gone | tojson }}", "a value of type undefined is no JSON"},
        {"{{ '%d' % 'x' }}", "the format 'd' needs a number, not str"},
        {"{{ '%s %s' % (1,) }}", "more places than there are values"},
        {"{{ '%s' % (1, 2) }}", "fewer places than there are values"},
        {"{{ '{}'.format() }}", "names a value that is not given"},
        {"{{ {[]: 1} }}", "a value of type list cannot be a key"},
        {"{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", "a macro takes 1 arguments and got 2"},
        {"{% macro m(a) %}{% endmacro %}{{ m(b=2) }}", "a macro has no parameter 'b'"},
        {"{{ 'a'.split('') }}", "split's separator is empty"},
        {"{{ 'abc'[::0] }}", "a slice's step"},
        {"{% macro m() %}\n\n{{ 1 // 0 }}{% endmacro %}\n{{ m() }}", "line 3: division by zero"},
        {"{% for x in [1] %}{{ loop([]) }}{% endfor %}", "marked 'recursive'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) expect_error(cases[i][0], MU_EFORMAT, cases[i][1]);
    expect_error("{{ raise_exception('Only\n\x1b roles: ' ~ messages[0].role) }}", MU_EINVAL,
                 "the chat template refuses: Only   roles: user");
}

static void test_input_is_checked(void **state)
{
    (void)state;
    struct mu_chat_template *t = parse("{{ messages }}");
    struct mu_err err = MU_ERR_INIT;
    char *text = NULL;
    size_t len;
    json_t *no = json_object(), *yes = json_array();
    struct mu_chat_input in = {.messages = no};
    assert_int_equal(mu_chat_template_render(t, &in, &text, &len, &err), MU_EINVAL);
    in = (struct mu_chat_input){.messages = yes, .variables = yes};
    assert_int_equal(mu_chat_template_render(t, &in, &text, &len, &err), MU_EINVAL);
    in = (struct mu_chat_input){.messages = yes, .continue_final_message = true};
    assert_int_equal(mu_chat_template_render(t, &in, &text, &len, &err), MU_EINVAL);
    assert_non_null(strstr(err.text, "the last message has no text"));
    json_decref(no);
    json_decref(yes);
    mu_chat_template_free(t);
}

/* ---- hostile templates end in an error, soon ---- */

static char *repeat(const char *before, const char *part, int n, const char *after)
{
    char *s = malloc(strlen(before) + strlen(part) * (size_t)n + strlen(after) + 1), *w = stpcpy(s, before);
    while (n--) w = stpcpy(w, part);
    stpcpy(w, after);
    return s;
}

static void test_limits_of_parsing(void **state)
{
    (void)state;
    char *cases[] = {
        repeat("{{ ", "(", 5000, ""),
        repeat("{{ ", "[", 5000, ""),
        repeat("{{ ", "{1:", 5000, ""),
        repeat("{{ ", "-", 5000, "1 }}"),
        repeat("{{ ", "not ", 5000, "1 }}"),
        repeat("{{ x", "[x", 5000, ""),
        repeat("{{ 1", " + 1", 5000, " }}"),
        repeat("{{ x", ".a", 5000, " }}"),
        repeat("{{ x", "|e", 5000, " }}"),
        repeat("{{ x", "()", 5000, " }}"),
        repeat("{{ x", " if x else x", 5000, " }}"),
        repeat("{{ ", "x if x else ", 5000, "x }}"),
        repeat("{{ 1", " and 1", 5000, " }}"),
        repeat("", "{% if x %}", 5000, ""),
        repeat("", "{% for x in y %}", 5000, ""),
        repeat("{% set ", "(", 5000, "x"),
        repeat("{{ ", "'abcdefgh' ", 20000, " }}"),
        repeat("", " ", MU_TEMPLATE_MAX_BYTES + 1, ""),
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct mu_err err = MU_ERR_INIT;
        struct mu_chat_template *t = NULL;
        enum mu_status st = mu_chat_template_parse(cases[i], strlen(cases[i]), &t, &err);
        if (st != MU_ELIMIT) fail_msg("%.20s…: status %d, %s", cases[i], (int)st, err.text);
        free(cases[i]);
    }
    /* What is long, but not deep, is fine. */
    char *flat = repeat("{% if 0 %}", "{% elif 0 %}", 5000, "{% endif %}{{ [");
    char *all = repeat(flat, "1,", 20000, "] | length }}");
    expect(all, "20000");
    free(flat);
    free(all);
}

static void test_limits_of_rendering(void **state)
{
    (void)state;
    static const char *const cases[] = {
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
        "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
        "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
        "{{ range(100001) }}",
        "{{ range(-9223372036854775807, 9223372036854775807) }}",
        "{{ 'x' * 1000000000000 }}",
        "{{ ('x' * 1000000) * 1000000 }}",
        "{{ [1] * 1000000000000 }}",
        "{% set ns = namespace(s='x') %}{% for i in range(100) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s='x' * 1000) %}{% for i in range(100000) %}{% set ns.s = 'a' + ns.s %}{% endfor %}",
        "{% set ns = namespace(l=[]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
        "{% set ns = namespace(l=[]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l | "
        "tojson }}",
        "{% set ns = namespace(a=[], b=[]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}"
        "{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a == ns.b }}",
        "{% set l = [] %}{{ l.append(l) }}{{ l }}",
        "{% set l = [] %}{{ l.append(l) }}{{ l | tojson }}",
        "{% set l = [] %}{% set k = [] %}{{ l.append(k) }}{{ k.append(l) }}{{ l == k }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%.999999999f' % 1 }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ '{0[99999999999]}'.format([1]) }}",
        "{{ 'x'.center(1000000000) }}",
        "{{ 'x'.zfill(1000000000) }}",
        "{{ 'x' | indent(1000000000, true) }}",
        "{{ [] | tojson(indent=1000000000) }}",
        "{{ [1] | batch(1000000000, 0) | list }}",
        "{{ [1] | slice(1000000000) | list }}",
        "{% set a = 'a' * 1000000 %}{{ (a + 'b').rfind('b' + a) }}{{ (a + a).rfind('ab' + a) }}"
        "{{ (a + a).rsplit('a' * 500000 + 'b') }}",
        "{% set a = 'a' * 1000000 %}{{ a.replace('', a) }}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{% set a = 'a' * 100000 %}{{ (a * 100).strip('b' * 100000 + 'a') }}",
        "{% set s = 'a' * 60000000 %}{% for i in range(90000) %}{{ s.startswith(s) and s.endswith(s) and '' }}{% "
        "endfor %}",
        "{% set d = namespace(k={}) %}{% for i in range(3000) %}{% set _ = d.k.update({'k' ~ i: i}) %}{% endfor %}"
        "{% macro m() %}{{ kwargs | length }}{% endmacro %}{% for i in range(90000) %}{{ m(**d.k) }}{% endfor %}",
        "{% set l = range(90000) | list %}{% for i in range(90000) %}{{ -1 in l }}{% endfor %}",
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double began = tok_now();
        expect_error(cases[i], MU_ELIMIT, "");
        double took = tok_now() - began;
        if (!(took < 20)) fail_msg("'%s' took %.1f s", cases[i], took); /* a tenth of it without sanitizers */
    }
}

/* A text that is collected piece by piece takes time and memory in proportion to it. */
static void test_appending_is_linear(void **state)
{
    (void)state;
    expect("{% set ns = namespace(s='') %}{% for i in range(20000) %}{% set ns.s = ns.s + 'x' * 100 %}{% endfor %}"
           "{{ ns.s | length }}",
           "2000000");
    /* Strings that share bytes do not see each other's ends. */
    expect(
        "{% set a = 'a' + 'b' %}{% set a = a + 'c' %}{% set x = a + 'x' %}{% set y = a + 'y' %}{{ a }} {{ x }} {{ y }}"
        "{% set z = x + 'z' %} {{ x }} {{ z }}",
        "abc abcx abcy abcx abcxz");
}

/* ---- memory ---- */

static const char BUSY[] =
    "{% macro m(a, b=[1, 2]) %}{{ a }}{{ b | map('string') | join(',') }}{{ caller() if caller }}{% endmacro %}"
    "{% for m2 in messages | selectattr('role') %}{{ loop.index ~ m2.content | upper | indent(2) }}{{ m2 | "
    "tojson(indent=1) }}"
    "{% set x %}{{ m(loop.last) }}{% endset %}{{ x }}{% endfor %}{% call m('q') %}in{% endcall %}"
    "{{ {'a': 1, 'b': [1.5, none]} | dictsort }}{{ '%5.2f' % f }}{{ l | sort }}{{ s[::-1] }}{{ 'a b'.split() }}";

static void test_every_allocation_may_fail(void **state)
{
    (void)state;
    struct mu_err err = MU_ERR_INIT;
    struct mu_chat_template *t = NULL;
    char *text = NULL;
    size_t len;
    enum mu_status st = MU_ENOMEM;
    for (long n = 1; st; n++) {
        mu_alloc_fail_at(n);
        st = mu_chat_template_parse(BUSY, sizeof BUSY - 1, &t, &err);
        mu_alloc_fail_at(0);
        if (st) assert_int_equal(st, MU_ENOMEM);
        assert_true(n < 1000);
    }
    st = MU_ENOMEM;
    for (long n = 1; st; n++) {
        mu_alloc_fail_at(n);
        st = render(t, &text, &len, &err);
        mu_alloc_fail_at(0);
        if (st) assert_true(st == MU_ENOMEM && !text);
        assert_true(n < 1000);
    }
    mu_free(text);
    mu_chat_template_free(t);
}

/* What is no text is refused by its name, whatever the template would make of it. */
static void test_media(void **state)
{
    (void)state;
    static const struct {
        const char *message, *found; /* NULL: it is fine */
    } cases[] = {
        {"{\"role\": \"user\", \"content\": \"an image\"}", NULL},
        {"{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"image_url\"}]}", NULL},
        {"{\"role\": \"user\", \"content\": \"a\", \"images\": []}", NULL},
        {"{\"role\": \"user\", \"content\": \"a\", \"images\": [\"iVBO\"]}", "'images'"},
        {"{\"role\": \"user\", \"content\": [{\"type\": \"text\"}, {\"type\": \"image\"}]}", "'image'"},
        {"{\"role\": \"user\", \"content\": [{\"type\": \"image_url\", \"image_url\": {\"url\": \"x\"}}]}",
         "'image_url'"},
        {"{\"role\": \"user\", \"content\": [{\"image_url\": \"x\"}]}", "'image_url'"},
        {"{\"role\": \"tool\", \"content\": [{\"type\": \"input_audio\"}]}", "'input_audio'"},
        {"{\"role\": \"user\", \"content\": [{\"type\": \"video\"}]}", "'video'"},
    };
    struct mu_chat_template *t = parse("x");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct mu_err err = MU_ERR_INIT;
        char *text = NULL;
        size_t len;
        json_t *messages =
            json_pack("[{s:s, s:s}, o]", "role", "user", "content", "hello", json_loads(cases[i].message, 0, NULL));
        assert_non_null(messages);
        const struct mu_chat_input in = {.messages = messages};
        enum mu_status st = mu_chat_template_render(t, &in, &text, &len, &err);
        assert_int_equal(st, cases[i].found ? MU_EINVAL : MU_OK);
        if (cases[i].found && (!strstr(err.text, cases[i].found) || !strstr(err.text, "message 2 ")))
            fail_msg("case %zu: %s", i, err.text);
        mu_free(text);
        json_decref(messages);
    }
    mu_chat_template_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_goldens),
        cmocka_unit_test(test_language),
        cmocka_unit_test(test_errors_of_syntax),
        cmocka_unit_test(test_errors_of_rendering),
        cmocka_unit_test(test_input_is_checked),
        cmocka_unit_test(test_media),
        cmocka_unit_test(test_limits_of_parsing),
        cmocka_unit_test(test_limits_of_rendering),
        cmocka_unit_test(test_appending_is_linear),
        cmocka_unit_test(test_every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
