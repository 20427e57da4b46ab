/* The log: what leaves on stderr, byte by byte; JSON lines read back with a JSON parser. */
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <pthread.h>
#include <regex.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/log.h"

static FILE *capture;
static int old_stderr;

static void capture_begin(void)
{
    capture = tmpfile();
    fcntl(fileno(capture), F_SETFL, O_APPEND); /* threads write at the end, as into a pipe */
    old_stderr = dup(STDERR_FILENO);
    dup2(fileno(capture), STDERR_FILENO);
}

static char *capture_end(void)
{
    static char text[1 << 20];
    dup2(old_stderr, STDERR_FILENO);
    close(old_stderr);
    rewind(capture);
    size_t len = fread(text, 1, sizeof text - 1, capture);
    fclose(capture);
    text[len] = '\0';
    return text;
}

static void init(const char *process, const char *format, const char *level)
{
    setenv("MUSTER_LOG_FORMAT", format, 1);
    setenv("MUSTER_LOG", level, 1);
    mu_log_init(process);
}

static int matches(const char *text, const char *pattern)
{
    regex_t re;
    if (regcomp(&re, pattern, REG_EXTENDED | REG_NOSUB) != 0) return 0;
    int found = regexec(&re, text, 0, NULL, 0) == 0;
    regfree(&re);
    return found;
}

static void unknown_settings(void **state)
{
    (void)state;
    capture_begin();
    init("serve", "", "");
    init("serve", "xml", "DEBUG");
    mu_debug("x", "not shown");
    init("serve", "text", "debug");
    char *text = capture_end();
    if (!matches(text, "^[^\n]* warn  serve/log: MUSTER_LOG may be debug, info, warn or error, not 'DEBUG'\n"
                       "[^\n]* warn  serve/log: MUSTER_LOG_FORMAT may be text or json, not 'xml'\n$"))
        fail_msg("%s", text);
}

static void text_lines(void **state)
{
    (void)state;
    capture_begin();
    init("serve", "text", "");
    mu_info("catalog", "%d models", 3);
    mu_debug("catalog", "not shown");
    init(NULL, "text", "error");
    mu_warn("x", "not shown");
    mu_error("worker", "gang 1 is ready");
    init(NULL, "text", "debug");
    mu_debug("worker", "shown");
    char *text = capture_end();
    const char *stamp = "[0-2][0-9]:[0-5][0-9]:[0-6][0-9]\\.[0-9]{3}";
    char pattern[512];
    snprintf(pattern, sizeof pattern,
             "^%s info  serve/catalog: 3 models\n%s error worker: gang 1 is ready\n%s debug worker: shown\n$", stamp,
             stamp, stamp);
    assert_true(matches(text, pattern));
}

static void peers_cannot_forge_lines(void **state)
{
    (void)state;
    init(NULL, "text", "info");
    capture_begin();
    mu_info("p", "%s",
            "a\nb\rc\td\x1b[31m\x7f|\xC2\x9B|\xE2\x80\xAE|\xE2\x80\xA8|\xD8\x9C\xE2\x80\x8E\xE2\x80\x8F|é€𝄞");
    mu_info("evil\npart", "x");
    char *text = capture_end();
    assert_non_null(
        strstr(text, "p: a\\nb\\rc\\td\\u001b[31m\\u007f|\\u009b|\\u202e|\\u2028|\\u061c\\u200e\\u200f|é€𝄞\n"));
    assert_non_null(strstr(text, "evil\\npart: x\n"));
    int lines = 0;
    for (char *c = text; *c; c++) lines += *c == '\n';
    assert_int_equal(lines, 2);
}

static void bad_utf8_becomes_valid(void **state)
{
    (void)state;
    init(NULL, "text", "info");
    static const struct {
        const char *in, *out;
    } cases[] = {
        {"\xFF", "\uFFFD"},                               /* no lead byte */
        {"\x80x", "\uFFFDx"},                             /* lone continuation */
        {"\xC3", "\uFFFD"},                               /* cut at the end */
        {"\xE2\x82", "\uFFFD\uFFFD"},                     /* cut at the end */
        {"\xE2\x82x", "\uFFFD\uFFFDx"},                   /* cut in the middle */
        {"\xC0\x80", "\uFFFD\uFFFD"},                     /* overlong NUL */
        {"\xE0\x80\xAF", "\uFFFD\uFFFD\uFFFD"},           /* overlong slash */
        {"\xED\xA0\x80", "\uFFFD\uFFFD\uFFFD"},           /* surrogate */
        {"\xF4\x90\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD"}, /* above U+10FFFF */
        {"\xF4\x8F\xBF\xBF", "\xF4\x8F\xBF\xBF"},         /* U+10FFFF itself */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        capture_begin();
        mu_info("p", "<%s>", cases[i].in);
        char want[64];
        snprintf(want, sizeof want, "p: <%s>\n", cases[i].out);
        assert_non_null(strstr(capture_end(), want));
    }
}

/* Every byte and many pairs of bytes as text: each line parses, and what was valid comes back unchanged. */
static void json_lines_parse(void **state)
{
    (void)state;
    init("rank \"2\"", "json", "info");
    for (int first = 1; first < 256; first++) {
        capture_begin();
        for (int second = 1; second < 256; second += 5) mu_info("pa\\rt", "a%c%cb", first, second);
        char *save = NULL, *text = capture_end();
        int n = 0;
        for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save), n++) {
            json_error_t error;
            json_t *object = json_loads(line, JSON_REJECT_DUPLICATES, &error);
            if (!object) fail_msg("%s: %s", error.text, line);
            assert_int_equal(json_object_size(object), 4);
            assert_string_equal(json_string_value(json_object_get(object, "part")), "rank \"2\"/pa\\rt");
            assert_string_equal(json_string_value(json_object_get(object, "level")), "info");
            assert_true(matches(json_string_value(json_object_get(object, "time")),
                                "^20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{3}Z$"));
            const char *got = json_string_value(json_object_get(object, "text"));
            int second = 1 + 5 * n;
            char want[5] = {'a', (char)first, (char)second, 'b', 0};
            if (first < 0x80 && second < 0x80) assert_string_equal(got, want);
            json_decref(object);
        }
        assert_int_equal(n, 51);
    }
}

/* A line is one write of at most PIPE_BUF bytes, whatever the text; the cut leaves valid JSON and UTF-8. */
static void long_lines_are_cut(void **state)
{
    (void)state;
    static char text[3 * PIPE_BUF];
    static const char *const units[] = {"x", "é", "€", "𝄞", "\n", "\"", "\x01"};
    for (int json = 0; json < 2; json++)
        for (size_t u = 0; u < sizeof units / sizeof units[0]; u++) {
            text[0] = '\0';
            for (size_t len = 0; len + 8 < sizeof text; len += strlen(units[u])) strcpy(text + len, units[u]);
            init("p", json ? "json" : "text", "info");
            capture_begin();
            mu_info("long", "%s", text);
            char *line = capture_end();
            size_t len = strlen(line);
            assert_true(len <= PIPE_BUF && len > PIPE_BUF - 40);
            assert_int_equal(line[len - 1], '\n');
            assert_non_null(strstr(line + len - 10, "…"));
            json_t *object = json ? json_loads(line, 0, NULL) : json_null();
            assert_non_null(object);
            json_decref(object);
            static char many[PIPE_BUF]; /* a long part leaves a line as well */
            memset(many, 'q', sizeof many - 1);
            capture_begin();
            mu_info(many, "%s", text);
            line = capture_end();
            assert_true(strlen(line) <= PIPE_BUF && line[strlen(line) - 1] == '\n');
        }
}

static void errors_have_their_place(void **state)
{
    (void)state;
    init(NULL, "text", "info");
    struct mu_err err = MU_ERR_INIT;
    int line = __LINE__ + 1;
    mu_fail(&err, MU_EPEER, "rank 3 went away");
    err.rank = 3;
    capture_begin();
    mu_log_err(MU_LOG_WARN, "gang", &err, "epoch %d", 4);
    char want[300];
    snprintf(want, sizeof want, "warn  gang: epoch 4: rank 3 went away (MU_EPEER, rank 3, %s:%d)\n", __FILE__, line);
    assert_non_null(strstr(capture_end(), want));
}

static void *write_lines(void *arg)
{
    for (int i = 0; i < 200; i++) mu_info("thread", "%s", (const char *)arg);
    return NULL;
}

static void lines_do_not_mix(void **state)
{
    (void)state;
    init(NULL, "text", "info");
    static char texts[4][500];
    pthread_t threads[4];
    capture_begin();
    for (int i = 0; i < 4; i++) {
        memset(texts[i], 'a' + i, sizeof texts[i] - 1);
        pthread_create(&threads[i], NULL, write_lines, texts[i]);
    }
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    char *save = NULL, *text = capture_end();
    int n = 0;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save), n++) {
        const char *body = strstr(line, "thread: ");
        assert_non_null(body);
        body += strlen("thread: ");
        assert_int_equal(strlen(body), sizeof texts[0] - 1);
        assert_int_equal(strspn(body, (char[]){body[0], 0}), sizeof texts[0] - 1);
    }
    assert_int_equal(n, 800);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_lines),
        cmocka_unit_test(unknown_settings),
        cmocka_unit_test(peers_cannot_forge_lines),
        cmocka_unit_test(bad_utf8_becomes_valid),
        cmocka_unit_test(json_lines_parse),
        cmocka_unit_test(long_lines_are_cut),
        cmocka_unit_test(errors_have_their_place),
        cmocka_unit_test(lines_do_not_mix),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
