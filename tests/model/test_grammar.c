/* What grammars, expressions and schemas describe: texts that they must take and texts that they must not, and what is
 * refused with which words. Masks over vocabularies: test_constraint.c. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <time.h>

#include "tests/model/grammar_util.h"

enum { TEXTS_MAX = 24 };

struct language {
    enum mu_constraint_kind kind;
    const char *text, *in[TEXTS_MAX], *out[TEXTS_MAX];
};

#define G MU_CONSTRAINT_GBNF
#define R MU_CONSTRAINT_REGEX
#define S MU_CONSTRAINT_JSON_SCHEMA

static const struct language LANGUAGES[] = {
#include "tests/model/grammar_cases.inc"
};

static void test_languages(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof LANGUAGES / sizeof *LANGUAGES; i++) {
        const struct language *l = &LANGUAGES[i];
        struct mu_grammar *g = compile(l->kind, l->text);
        for (int k = 0; k < TEXTS_MAX && l->in[k]; k++) {
            size_t n = strlen(l->in[k]);
            if (read_text(g, l->in[k], n) != WHOLE) fail_msg("%s\ndoes not take: %s", l->text, l->in[k]);
            for (size_t j = 0; j < n; j++) {
                if (read_text(g, l->in[k], j) == DEAD) fail_msg("%s\ndoes not begin: %.*s", l->text, (int)j, l->in[k]);
            }
        }
        for (int k = 0; k < TEXTS_MAX && l->out[k]; k++) {
            if (read_text(g, l->out[k], strlen(l->out[k])) == WHOLE) fail_msg("%s\ntakes: %s", l->text, l->out[k]);
        }
        mu_grammar_free(g);
    }
}

/* A format's own bound of length gives way to minLength. */
static void test_long_uri(void **state)
{
    char text[640];
    (void)state;
    struct mu_grammar *g = compile(S, "{\"format\":\"uri\",\"type\":\"string\",\"minLength\":600}");
    for (int n = 590; n <= 610; n++) {
        snprintf(text, sizeof text, "\"a:%0*d\"", n - 2, 0);
        if ((read_text(g, text, strlen(text)) == WHOLE) != (n >= 600)) fail_msg("%d characters", n);
    }
    mu_grammar_free(g);
}

static const struct {
    enum mu_constraint_kind kind;
    const char *text;
    enum mu_status st;
    const char *words;
} REFUSED[] = {
    {G, "root ::= root \"a\" | \"b\"", MU_EUNSUPPORTED, "rule 'root' begins with itself"},
    {G, "root ::= a\na ::= b? a \"x\" | \"y\"\nb ::= \"z\"", MU_EUNSUPPORTED, "rule 'a' begins with itself"},
    {G, "root ::= \"x\" p\np ::= q \"1\" | \"2\"\nq ::= p \"3\"", MU_EUNSUPPORTED, "begins with itself"},
    {G, "root ::= item", MU_EFORMAT, "rule 'item' is used but not defined"},
    {G, "rot ::= \"a\"", MU_EFORMAT, "rule 'root' is missing"},
    {G, "", MU_EFORMAT, "rule 'root' is missing"},
    {G, "root ::= \"a\"\nroot ::= \"b\"", MU_EFORMAT, "defined twice"},
    {G, "root ::= \"a", MU_EFORMAT, "line 1: a closing quote or bracket is missing"},
    {G, "root ::= [a", MU_EFORMAT, "a closing quote or bracket is missing"},
    {G, "root ::= (\"a\"", MU_EFORMAT, "')' is missing"},
    {G, "root ::= \"a\" ]", MU_EFORMAT, "the rule does not go on like this at ]"},
    {G, "root ::= \"a\"{3,2}", MU_EFORMAT, "the wrong way round"},
    {G, "root ::= \"a\"{100000}", MU_ELIMIT, "a repetition of"},
    {G, "root ::= [z-a]", MU_EFORMAT, "runs backwards"},
    {G, "root ::= \"\\q\"", MU_EFORMAT, "unknown escape"},
    {G, "root = \"a\"", MU_EFORMAT, "'::=' is missing"},
    {G, "root ::= <|im_end|>", MU_EUNSUPPORTED, "tokens by name"},
    {G, "root ::= \"a\" root", MU_EINVAL, "never ends"},
    {G, "root ::= \"\xff\"", MU_EFORMAT, "not UTF-8"},
    {G, "root ::= \"a\\x00\"", MU_EUNSUPPORTED, "U+0000 in an expression or a grammar"},
    {G, "root ::= [\\u0000]", MU_EUNSUPPORTED, "U+0000 in an expression or a grammar"},
    {R, "a\\x00", MU_EUNSUPPORTED, "U+0000 in an expression or a grammar"},
    {R, "a|[\\0]", MU_EUNSUPPORTED, "U+0000 in an expression or a grammar"},
    {R, "(a", MU_EFORMAT, "')' is missing"},
    {R, "a)", MU_EFORMAT, "')' has no '('"},
    {R, "[a", MU_EFORMAT, "']' is missing"},
    {R, "*a", MU_EFORMAT, "nothing to repeat"},
    {R, "a**", MU_EFORMAT, "nothing to repeat"},
    {R, "(a)\\1", MU_EUNSUPPORTED, "back references"},
    {R, "a(?=b)", MU_EUNSUPPORTED, "looking ahead or behind"},
    {R, "(?<!a)b", MU_EUNSUPPORTED, "looking ahead or behind"},
    {R, "\\bword", MU_EUNSUPPORTED, "word boundaries"},
    {R, "\\p{L}", MU_EUNSUPPORTED, "character properties"},
    {R, "(?i)a", MU_EUNSUPPORTED, "this kind of group"},
    {R, "a++", MU_EUNSUPPORTED, "possessive"},
    {R, "a\\", MU_EFORMAT, "a backslash ends it"},
    {R, "\\ud83d\\u0041", MU_EFORMAT, "the escape before is no character"},
    {R, "[]", MU_EINVAL, "no text can satisfy"},
    {R, "a{2}{3}", MU_EFORMAT, "nothing to repeat"},
    {R, "a$b", MU_EINVAL, "no text can satisfy"},
    {R, "([ab]{9000}){100}", MU_ELIMIT, "smaller bounds"},
    {R, "(a|b)*a(a|b){24}", MU_ELIMIT, "smaller bounds"},
    {S, "{", MU_EFORMAT, "the schema is not JSON: line 1"},
    {S, "{\"maximum\":18446744073709551615}", MU_ELIMIT, "a number of the schema is too large: line 1"},
    {S, "{\"maximum\":1e999}", MU_ELIMIT, "a number of the schema is too large: line 1"},
    {S, "{\"const\":\"a\\u0000\"}", MU_EUNSUPPORTED, "U+0000 in a schema is not supported: line 1"},
    {S, "{\"properties\":{\"a\\u0000\":true}}", MU_EUNSUPPORTED, "U+0000 in a schema is not supported: line 1"},
    {S, "[]", MU_EFORMAT, "must be a JSON object"},
    {S, "false", MU_EINVAL, "no text can satisfy"},
    {S, "{\"type\":\"sting\"}", MU_EFORMAT, "schema at '#': the type 'sting' is not known"},
    {S, "{\"not\":{}}", MU_EUNSUPPORTED, "the keyword 'not' is not supported"},
    {S, "{\"properties\":{\"a\":{\"if\":{}}}}", MU_EUNSUPPORTED, "schema at '#/properties/a': the keyword 'if'"},
    {S, "{\"type\":\"array\",\"uniqueItems\":true}", MU_EUNSUPPORTED, "'uniqueItems'"},
    {S, "{\"type\":\"array\",\"contains\":{}}", MU_EUNSUPPORTED, "'contains'"},
    {S, "{\"type\":\"array\",\"items\":[{}]}", MU_EUNSUPPORTED, "use 'prefixItems'"},
    {S, "{\"type\":\"string\",\"format\":\"iri\"}", MU_EUNSUPPORTED, "the format 'iri' is not supported"},
    {S, "{\"type\":\"string\",\"pattern\":\"(?=a)\"}", MU_EUNSUPPORTED, "looking ahead"},
    {S, "{\"type\":\"string\",\"minLength\":\"3\"}", MU_EFORMAT, "'minLength' must be a number"},
    {S, "{\"type\":\"string\",\"minLength\":-1}", MU_EFORMAT, "a whole number from 0"},
    {S, "{\"type\":\"string\",\"maxLength\":1000000}", MU_ELIMIT, "'maxLength' is more than"},
    {S, "{\"type\":\"string\",\"maxLength\":60000}", MU_ELIMIT, "nodes"},
    {S, "{\"$ref\":\"other.json\"}", MU_EUNSUPPORTED, "'$ref' to 'other.json' is not supported"},
    {S, "{\"$ref\":\"#/$defs/x\"}", MU_EFORMAT, "leads nowhere"},
    {S, "{\"anyOf\":[{\"$ref\":\"#\"},{\"type\":\"null\"}]}", MU_EUNSUPPORTED,
     "refers to itself with nothing in between"},
    {S, "{\"type\":\"object\",\"properties\":{\"a\":{\"$ref\":\"#\"}},\"required\":[\"a\"]}", MU_EINVAL, "never ends"},
    {S, "{\"type\":\"object\",\"properties\":{\"a\":{}},\"minProperties\":1}", MU_EUNSUPPORTED, "'minProperties'"},
    {S, "{\"type\":\"object\",\"propertyNames\":{}}", MU_EUNSUPPORTED, "'propertyNames'"},
    {S, "{\"type\":\"integer\",\"multipleOf\":0.3}", MU_EUNSUPPORTED, "'multipleOf' is supported for"},
    {S, "{\"type\":\"integer\",\"minimum\":3,\"maximum\":2}", MU_EINVAL, "no text can satisfy"},
    {S, "{\"type\":\"string\",\"enum\":[1,2]}", MU_EINVAL, "no text can satisfy"},
    {S, "{\"type\":\"object\",\"required\":[1]}", MU_EFORMAT, "'required' must be a list of strings"},
    {S, "{\"enum\":[{\"a\":1}],\"required\":[\"a\"]}", MU_EUNSUPPORTED, "beside other conditions"},
    {S, "{\"type\":\"object\",\"type\":\"object\"}", MU_EFORMAT, "the schema is not JSON"},
};

static void test_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof REFUSED / sizeof *REFUSED; i++) {
        struct mu_grammar *g = NULL;
        struct mu_err err = MU_ERR_INIT;
        const char *text = REFUSED[i].text;
        enum mu_status st = mu_grammar_compile(REFUSED[i].kind, text, strlen(text), &g, &err);
        if (st != REFUSED[i].st || !strstr(err.text, REFUSED[i].words)) {
            fail_msg("%s\nst %d, '%s', wanted %d, '%s'", text, st, st ? err.text : "", REFUSED[i].st, REFUSED[i].words);
        }
        assert_null(g);
    }
    static char long_text[MU_CONSTRAINT_TEXT_MAX + 1];
    struct mu_grammar *g = NULL;
    struct mu_err err = MU_ERR_INIT;
    memset(long_text, 'a', sizeof long_text);
    assert_int_equal(mu_grammar_compile(R, long_text, sizeof long_text, &g, &err), MU_ELIMIT);
    memset(long_text, '(', sizeof long_text);
    assert_int_equal(mu_grammar_compile(R, long_text, 10000, &g, &err), MU_ELIMIT);
    memset(long_text, '[', sizeof long_text);
    assert_int_equal(mu_grammar_compile(S, long_text, 10000, &g, &err), MU_EFORMAT);
}

/* No text holds U+0000, and no set makes one. */
static void test_no_nul(void **state)
{
    (void)state;
    static const struct {
        enum mu_constraint_kind kind;
        const char *text;
    } sets[] = {{R, "."},
                {R, "[^a]"},
                {R, "\\W"},
                {R, "[\\0-\\x1f]"},
                {R, "[\\0\\x01]"},
                {R, "[\\0\\x01\\x03]"},
                {R, "^.$"},
                {G, "root ::= ."},
                {G, "root ::= [^a]"},
                {G, "root ::= [\\x00-\\x1F]"}};
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++) {
        struct mu_grammar *g = compile(sets[i].kind, sets[i].text);
        assert_int_equal(read_text(g, "\0", 1), DEAD);
        assert_int_equal(read_text(g, "\1", 1), WHOLE);
        mu_grammar_free(g);
    }
}

/* Expressions against PCRE2, over random texts of the characters that they name. */
static void test_regex_against_pcre2(void **state)
{
    (void)state;
    static const char *const patterns[] = {
        "a*b|c+",
        "(ab|a)(bc|c)?",
        "[a-c]{2,4}",
        "[^a]b?",
        ".c.",
        "(?:a|b)*abb",
        "a{0}b",
        "a{2}|b{3,}",
        "(a*)*b",
        "((a|ab)(c|bcd))*",
        "^a|b$",
        "(^|a)b($|c)",
        "a?^b",
        "",
        "\\x61\\x62",
        "[\\w-]+",
        "\\d\\D\\s\\S",
        "(a|)(b|)(c|)",
        "\xC3\xA9|[\xC3\xA0-\xC3\xBC]a",
        "[^\xC3\xA9]",
        "a.b",
        "(?<n>a)b",
        "a+?b*?",
        "a{,2}",
        "\\.\\*\\[",
    };
    static const char *const letters[] = {"a", "b", "c", "d",    "1",  " ",        "-",
                                          ".", "*", "[", "{,2}", "\n", "\xC3\xA9", "\xC3\xA0"};
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        int code;
        PCRE2_SIZE at;
        pcre2_code *re =
            pcre2_compile((PCRE2_SPTR)patterns[i], PCRE2_ZERO_TERMINATED,
                          PCRE2_UTF | PCRE2_DOLLAR_ENDONLY | PCRE2_ANCHORED | PCRE2_ENDANCHORED, &code, &at, NULL);
        if (!re) fail_msg("/%s/: %d at %zu", patterns[i], code, (size_t)at);
        pcre2_match_data *match = pcre2_match_data_create(8, NULL);
        struct mu_grammar *g = compile(R, patterns[i]);
        for (int k = 0; k < 4000; k++) {
            char text[64] = "";
            unsigned n = random_below(7);
            while (n--) strcat(text, letters[random_below(sizeof letters / sizeof *letters / (1 + (unsigned)k % 3))]);
            bool want = pcre2_match(re, (PCRE2_SPTR)text, strlen(text), 0, 0, match, NULL) > 0;
            bool got = read_text(g, text, strlen(text)) == WHOLE;
            if (want != got) fail_msg("/%s/ %s '%s'", patterns[i], got ? "takes" : "does not take", text);
        }
        mu_grammar_free(g);
        pcre2_match_data_free(match);
        pcre2_code_free(re);
    }
}

/* Patterns of a schema match anywhere in the string. */
static void test_pattern_against_pcre2(void **state)
{
    (void)state;
    static const char *const patterns[] = {"ab", "^ab", "ab$", "^ab$", "^a|b$",     "^(a|b$)", "a(^b|c)",
                                           "",   "^",   "$",   "^$",   "(^a|b)c*$", "^^a"};
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        int code;
        PCRE2_SIZE at;
        char schema[128];
        pcre2_code *re = pcre2_compile((PCRE2_SPTR)patterns[i], PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_DOLLAR_ENDONLY,
                                       &code, &at, NULL);
        assert_non_null(re);
        pcre2_match_data *match = pcre2_match_data_create(8, NULL);
        snprintf(schema, sizeof schema, "{\"type\":\"string\",\"pattern\":\"%s\"}", patterns[i]);
        struct mu_grammar *g = compile(S, schema);
        for (int k = 0; k < 2000; k++) {
            char text[64] = "", json[80];
            unsigned n = random_below(6);
            while (n--) strcat(text, &"a\0b\0c"[2 * random_below(3)]);
            snprintf(json, sizeof json, "\"%s\"", text);
            bool want = pcre2_match(re, (PCRE2_SPTR)text, strlen(text), 0, 0, match, NULL) > 0;
            bool got = read_text(g, json, strlen(json)) == WHOLE;
            if (want != got) fail_msg("/%s/ %s '%s'", patterns[i], got ? "takes" : "does not take", text);
        }
        mu_grammar_free(g);
        pcre2_match_data_free(match);
        pcre2_code_free(re);
    }
}

/* Bounds of numbers against arithmetic. */
static void test_numbers(void **state)
{
    (void)state;
    static const char *const keys[] = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"};
    static const char *const bounds[] = {"0",    "1",   "-1",   "9",    "10",    "99",     "100", "105",
                                         "-100", "0.5", "-0.5", "1.25", "12.05", "-7.125", "1e3", "0.001"};
    static const char *const fractions[] = {"", ".0", ".5", ".25", ".05", ".125", ".001", ".0004", ".249", ".51"};
    for (size_t k = 0; k < 4; k++) {
        for (size_t i = 0; i < sizeof bounds / sizeof *bounds; i++) {
            char schema[128], text[64];
            snprintf(schema, sizeof schema, "{\"type\":\"number\",\"%s\":%s}", keys[k], bounds[i]);
            struct mu_grammar *g = compile(S, schema);
            double bound = atof(bounds[i]);
            for (int n = 0; n < 3000; n++) {
                int whole = (int)random_below(n % 2 ? 15 : 1200);
                snprintf(text, sizeof text, "%s%d%s", random_below(2) ? "-" : "", whole, fractions[random_below(10)]);
                double x = atof(text);
                bool want = k == 0 ? x >= bound : k == 1 ? x <= bound : k == 2 ? x > bound : x < bound;
                bool got = read_text(g, text, strlen(text)) == WHOLE;
                if (want != got) fail_msg("%s %s %s", schema, got ? "takes" : "does not take", text);
            }
            mu_grammar_free(g);
        }
    }
    for (int m = 1; m < 40; m++) {
        char schema[128], text[64];
        snprintf(schema, sizeof schema, "{\"type\":\"integer\",\"multipleOf\":%d}", m);
        struct mu_grammar *g = compile(S, schema);
        for (int n = -500; n < 500; n++) {
            snprintf(text, sizeof text, "%d", n);
            assert_int_equal(read_text(g, text, strlen(text)) == WHOLE, n % m == 0);
        }
        mu_grammar_free(g);
    }
}

static double cpu_seconds(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts); /* other work on the machine does not count */
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

/* Processor time until a text is compiled or found too large: begin, n times item, end. In item '#' is the number of
 * the time, from 0, and '@' the one after. */
static double cost(enum mu_constraint_kind kind, const char *begin, const char *item, int n, const char *end)
{
    static char text[MU_CONSTRAINT_TEXT_MAX];
    struct mu_grammar *g = NULL;
    struct mu_err err = MU_ERR_INIT;
    char *p = stpcpy(text, begin);
    for (int i = 0; i < n; i++) {
        assert_in_range(p - text, 0, sizeof text - 200);
        for (const char *q = item; *q; q++) {
            if (*q == '#' || *q == '@') {
                p += sprintf(p, "%d", i + (*q == '@'));
            } else {
                *p++ = *q;
            }
        }
    }
    p = stpcpy(p, end);
    double start = cpu_seconds();
    enum mu_status st = mu_grammar_compile(kind, text, (size_t)(p - text), &g, &err);
    double took = cpu_seconds() - start;
    if (st != MU_OK && st != MU_ELIMIT) fail_msg("%.60s… %s", text, err.text);
    mu_grammar_free(g);
    return took;
}

/* No form keeps its thread longer than the steps allow: whatever repeats work over a long text counts, or is gone. */
static void test_cost(void **state)
{
    (void)state;
    static const struct {
        enum mu_constraint_kind kind;
        const char *begin, *item;
        int n;
        const char *end;
    } forms[] = {
        {S, "{\"format\":\"uri\",\"enum\":[\"a:0\"", ",\"http://a/#\"", 3000, "]}"},
        {S, "{\"enum\":[\"\"", ",\"x#\"", 30000, "]}"},
        {S,
         "{\"anyOf\":[{},{},{},{},{},{},{},{},{},{}],\"oneOf\":[{},{},{},{},{},{},{},{},{},{}],\"allOf\":[{\"anyOf\":[{"
         "},{},{},{},{},{},{},{},{},{}]}",
         ",{}", 4000, "]}"},
        {S, "{\"additionalProperties\":true,\"required\":[\"\"", ",\"x#\"", 60000, "]}"},
        {S, "{\"properties\":{\"\":true", ",\"x#\":{\"const\":\"aaaaaaaaaaaa\",\"pattern\":\"a[ab]{11}$\"}", 200, "}}"},
        {G, "root ::= r0\n", "r# ::= \"a\" r@\n", 32000, "r32000 ::= \"b\"\n"},
        {G, "root ::= s16000\ndead ::= \"a\" dead\n", "s@ ::= \"q\" s# dead | t@\nt# ::= s@ \"x\"\n", 16000,
         "s0 ::= \"p\" root | t0\nt16000 ::= \"y\"\n"},
    };
    /* What is ended by its steps, in one automaton. */
    double most = 2.5 * cost(S, "{\"properties\":{\"\":true", ",\"x#\":true", 5000, "}}");
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        double took = cost(forms[i].kind, forms[i].begin, forms[i].item, forms[i].n, forms[i].end);
        print_message("form %zu: %.2f s of %.2f\n", i, took, most);
        if (!(took <= most)) fail_msg("%.60s… took %.1f s to compile, most %.1f", forms[i].begin, took, most);
    }
}

/* Every failing allocation ends in MU_ENOMEM and leaves nothing behind. (jansson's own memory is not ours to fail.) */
static void test_allocations(void **state)
{
    (void)state;
    static const struct {
        enum mu_constraint_kind kind;
        const char *text;
    } cases[] = {
        {G, "root ::= \"a\" root? b\nb ::= [x-z]+ | \"(\" root \")\""},
        {R, "(ab|c)*d{2,3}$"},
        {S, "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"string\",\"pattern\":\"^x\",\"maxLength\":3},"
            "\"b\":{\"$ref\":\"#\"}},\"additionalProperties\":{\"type\":\"integer\",\"minimum\":4}}"},
        {MU_CONSTRAINT_JSON, ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct mu_grammar *g = NULL;
        enum mu_status st = MU_ENOMEM;
        long n = 0;
        for (n = 1; st != MU_OK; n += 1 + n / 16) {
            struct mu_err err = MU_ERR_INIT;
            mu_alloc_fail_at(n);
            st = mu_grammar_compile(cases[i].kind, cases[i].text, strlen(cases[i].text), &g, &err);
            mu_alloc_fail_at(0);
            if (st != MU_OK && st != MU_ENOMEM) fail_msg("%s: allocation %ld: %s", cases[i].text, n, err.text);
            assert_int_equal(st == MU_OK, g != NULL);
        }
        assert_true(n > 20);
        mu_grammar_free(g);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_languages),
        cmocka_unit_test(test_long_uri),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_no_nul),
        cmocka_unit_test(test_regex_against_pcre2),
        cmocka_unit_test(test_pattern_against_pcre2),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_cost),
        cmocka_unit_test(test_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
