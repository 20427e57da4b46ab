/* Incremental detokenizing against the fixtures' streams, and against what invalid bytes must give. */
#include "tests/model/tok_fixture.h"

#include "model/utf8.h"

struct stream_case {
    const struct mu_tokenizer *t;
    const char *name;
};

static void one_stream(const json_t *j, void *ctx)
{
    const struct stream_case *c = ctx;
    const json_t *ids = json_object_get(j, "ids"), *pieces = json_object_get(j, "pieces_hex"),
                 *emit = json_object_get(j, "emit");
    struct mu_streamer s;
    char *buf = NULL, bytes[4096];
    size_t len = 0, cap = 0;
    mu_streamer_init(&s, c->t, true);
    for (size_t i = 0; i < json_array_size(ids); i++) {
        int id = (int)json_integer_value(json_array_get(ids, i));
        size_t n = tok_unhex(json_string_value(json_array_get(pieces, i)), bytes);
        struct mu_str piece = mu_tokenizer_piece(c->t, id, true);
        if (piece.len != n || memcmp(piece.p, bytes, n))
            fail_msg("%s: piece of id %d is '%.*s'", c->name, id, (int)piece.len, piece.p);
        size_t before = len;
        assert_int_equal(mu_streamer_push(&s, id, &buf, &len, &cap), MU_OK);
        const json_t *want = json_array_get(emit, i);
        if (len - before != json_string_length(want) || memcmp(buf + before, json_string_value(want), len - before)) {
            fail_msg("%s: after id %d (number %zu) '%s' was shown, not '%s'", c->name, id, i, buf + before,
                     json_string_value(want));
        }
    }
    size_t left = tok_unhex(json_string_value(json_object_get(j, "left_hex")), bytes);
    assert_int_equal(s.n_held, (int)left);
    assert_memory_equal(s.held, bytes, left);
    size_t before = len;
    assert_int_equal(mu_streamer_finish(&s, &buf, &len, &cap), MU_OK);
    assert_int_equal(len - before, left ? 3 : 0);
    if (left) assert_memory_equal(buf + before, "\xEF\xBF\xBD", 3);
    mu_free(buf);
}

static void test_fixture_streams(void **state)
{
    (void)state;
    int total = 0;
    for (int i = 0; i < TOK_N; i++) {
        char gguf[4096], stem[4096], path[4200];
        struct mu_gguf *g;
        tok_paths(i, gguf, stem, sizeof gguf);
        struct mu_tokenizer *t = tok_open(gguf, &g);
        snprintf(path, sizeof path, "%s.stream.jsonl", stem);
        struct stream_case c = {t, stem};
        int n = tok_each_line(path, one_stream, &c);
        if (n == 0) fail_msg("%s: no streams", path);
        total += n;
        mu_tokenizer_close(t);
        mu_gguf_close(g);
    }
    print_message("%d streams of %d vocabularies\n", total, TOK_N);
}

/* A vocabulary of the 256 bytes, one control token (256) and one added token with half a character at its end (257). */
static struct mu_tokenizer *byte_vocab(struct mu_gguf **g)
{
    enum { N = 258 };
    char path[] = "/tmp/mu-streamer-XXXXXX", text[N][8];
    struct mu_str texts[N];
    int32_t types[N];
    float scores[N] = {0};
    struct mu_gguf_writer *w;
    struct mu_err err = MU_ERR_INIT;
    for (int i = 0; i < 256; i++) {
        snprintf(text[i], sizeof text[i], "<0x%02X>", (unsigned)i);
        texts[i] = (struct mu_str){text[i], 6};
        types[i] = 6;
    }
    texts[256] = (struct mu_str){"</s>", 4};
    types[256] = 3;
    texts[257] = (struct mu_str){"ab\xC3", 3};
    types[257] = 4;
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(mu_gguf_writer_open(path, &w, &err), MU_OK);
    mu_gguf_put_str(w, "tokenizer.ggml.model", "llama", 5);
    mu_gguf_put_strs(w, "tokenizer.ggml.tokens", texts, N);
    mu_gguf_put_i32s(w, "tokenizer.ggml.token_type", types, N);
    mu_gguf_put_f32s(w, "tokenizer.ggml.scores", scores, N);
    assert_int_equal(mu_gguf_writer_close(w, 1, &err), MU_OK);
    struct mu_tokenizer *t = tok_open(path, g);
    unlink(path);
    close(fd);
    return t;
}

static void check_bytes(const struct mu_tokenizer *t, const char *bytes, size_t n, const char *want)
{
    struct mu_streamer s;
    char *buf = NULL;
    size_t len = 0, cap = 0;
    mu_streamer_init(&s, t, false);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(mu_streamer_push(&s, (unsigned char)bytes[i], &buf, &len, &cap), MU_OK);
    assert_int_equal(mu_streamer_finish(&s, &buf, &len, &cap), MU_OK);
    assert_string_equal(buf, want);
    assert_int_equal(len, strlen(want));
    mu_free(buf);
}

#define R "\xEF\xBF\xBD"

static void test_invalid_bytes(void **state)
{
    (void)state;
    struct mu_gguf *g;
    struct mu_tokenizer *t = byte_vocab(&g);
    static const struct {
        const char *in, *out;
    } cases[] = {
        {"abc", "abc"},
        {"\xF0\x9F\x99\x82!", "\xF0\x9F\x99\x82!"},
        {"\xFF", R},
        {"\xE2\x82"
         "A",
         R "A"},
        {"a\x80\x62", "a" R "b"},
        {"\xC3", R},
        {"\xC3(", R "("},
        {"\xE2\x82", R},
        {"\xF0\x9F\x99 cut", R " cut"},
        {"\xF0\x9F\xC3\xA9", R "\xC3\xA9"},
        {"\xED\xA0\x80", R R R},       /* a surrogate: ED cannot be followed by A0 */
        {"\xC0\xAF", R R},             /* overlong */
        {"\xE0\x80\xAF", R R R},       /* overlong */
        {"\xF4\x90\x80\x80", R R R R}, /* above U+10FFFF */
        {"\xF5\x80", R R},
        {"\xE1\x80\xE1\x80\x80", R "\xE1\x80\x80"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        check_bytes(t, cases[i].in, strlen(cases[i].in), cases[i].out);
    check_bytes(t, "a\0b\xC3\0", 5, "a" R "b" R R);

    /* half a character at the end of a longer piece; a hidden control token between the halves changes nothing */
    struct mu_streamer s;
    char *buf = NULL;
    size_t len = 0, cap = 0;
    mu_streamer_init(&s, t, false);
    assert_int_equal(mu_streamer_push(&s, 257, &buf, &len, &cap), MU_OK);
    assert_string_equal(buf, "ab");
    assert_int_equal(mu_streamer_push(&s, 256, &buf, &len, &cap), MU_OK);
    assert_int_equal(mu_streamer_push(&s, -5, &buf, &len, &cap), MU_OK);
    assert_int_equal(mu_streamer_push(&s, 100000, &buf, &len, &cap), MU_OK);
    assert_int_equal(len, 2);
    assert_int_equal(mu_streamer_push(&s, 0xA9, &buf, &len, &cap), MU_OK);
    assert_string_equal(buf, "ab\xC3\xA9");
    mu_streamer_init(&s, t, true);
    len = 0;
    assert_int_equal(mu_streamer_push(&s, 256, &buf, &len, &cap), MU_OK);
    assert_string_equal(buf, "</s>");
    mu_free(buf);
    mu_tokenizer_close(t);
    mu_gguf_close(g);
}

/* However the bytes are dealt, the whole is what one call over all of it gives, and every byte of valid text comes
 * out as it is. */
static void test_random_bytes(void **state)
{
    (void)state;
    struct mu_gguf *g;
    struct mu_tokenizer *t = byte_vocab(&g);
    uint64_t x = 88172645463325252u;
    for (int round = 0; round < 200; round++) {
        struct mu_streamer s;
        char *buf = NULL;
        size_t len = 0, cap = 0;
        mu_streamer_init(&s, t, false);
        for (int i = 0; i < 300; i++) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            int b =
                round & 1 ? (int)(x >> 20 & 0xFF) : (int)(0x80 | (x >> 20 & 0x7F)); /* half of the rounds: no ASCII */
            assert_int_equal(mu_streamer_push(&s, b, &buf, &len, &cap), MU_OK);
            assert_in_range(s.n_held, 0, 3);
        }
        assert_int_equal(mu_streamer_finish(&s, &buf, &len, &cap), MU_OK);
        json_t *valid = json_stringn(buf, len); /* refuses what is not UTF-8 */
        assert_non_null(valid);
        json_decref(valid);
        mu_free(buf);
    }
    struct mu_streamer s;
    char *buf = NULL;
    size_t len = 0, cap = 0;
    mu_streamer_init(&s, t, false);
    mu_alloc_fail_at(1);
    assert_int_equal(mu_streamer_push(&s, 'a', &buf, &len, &cap), MU_ENOMEM);
    mu_alloc_fail_at(0);
    assert_null(buf);
    assert_int_equal(mu_streamer_push(&s, 'a', &buf, &len, &cap), MU_OK);
    assert_string_equal(buf, "a");
    mu_free(buf);
    mu_tokenizer_close(t);
    mu_gguf_close(g);
}

static void test_repair(void **state)
{
    static const char *const pairs[][2] = {
        {"", ""},           {"caf\xC3\xA9", "caf\xC3\xA9"}, {"caf\xE9s", "caf?s"}, {"\xE9'", "?'"},     {"a\xC3", "a"},
        {"a\xE2\x82", "a"}, {"a\xE0\x80", "a??"},           {"\xFF\x80z", "??z"},  {"\xF0\x9F\x98", ""}};
    (void)state;
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        char text[16];
        snprintf(text, sizeof text, "%s", pairs[i][0]);
        mu_text_repair(text);
        assert_string_equal(text, pairs[i][1]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fixture_streams),
        cmocka_unit_test(test_invalid_bytes),
        cmocka_unit_test(test_random_bytes),
        cmocka_unit_test(test_repair),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
