/* Tokenizers of Hugging Face folders: the fixtures' folders against their goldens and the GGUF files beside them, and
 * small made-up folders for each form that a tokenizer.json can have, what is refused, and what a lack of memory
 * does. */
#include "model/hf_tokenizer.h"
#include "tests/model/tok_fixture.h"

/* ---- a folder, converted and opened ---- */

struct converted {
    char path[64];
    struct mu_gguf *g;
    struct mu_tokenizer *t;
};

static enum mu_status convert(const char *folder, int n_vocab, struct converted *c, struct mu_err *err)
{
    struct mu_gguf_writer *w;
    *c = (struct converted){.path = "/tmp/hf-tokenizer-XXXXXX"};
    int fd = mkstemp(c->path);
    assert_true(fd >= 0);
    close(fd);
    enum mu_status st = mu_gguf_writer_open(c->path, &w, err);
    if (st != MU_OK) return st;
    st = mu_hf_tokenizer_put(folder, w, n_vocab, err);
    if (st != MU_OK) {
        mu_gguf_writer_close(w, 0, NULL);
        return st;
    }
    st = mu_gguf_writer_close(w, 1, err);
    if (st == MU_OK) st = mu_gguf_open(c->path, &c->g, err);
    if (st == MU_OK) st = mu_tokenizer_open(c->g, &c->t, err);
    return st;
}

static void drop(struct converted *c)
{
    mu_tokenizer_close(c->t);
    mu_gguf_close(c->g);
    unlink(c->path);
}

/* ---- the fixtures ---- */

struct pair {
    const struct mu_tokenizer *hf, *gguf;
    const char *name;
    int n_differ;
};

static bool same_ids(const json_t *want, const int32_t *ids, size_t n)
{
    if (!want || json_array_size(want) != n) return false;
    for (size_t i = 0; i < n; i++) {
        if (json_integer_value(json_array_get(want, i)) != ids[i]) return false;
    }
    return true;
}

static void one_golden(const json_t *j, void *ctx)
{
    struct pair *p = ctx;
    struct mu_err err = MU_ERR_INIT;
    const json_t *text = json_object_get(j, "text");
    bool special = json_is_true(json_object_get(j, "special"));
    int32_t *ids, *other;
    size_t n, n_other;
    assert_int_equal(
        mu_tokenizer_encode(p->hf, json_string_value(text), json_string_length(text), special, &ids, &n, &err), MU_OK);
    if (!same_ids(json_object_get(j, "ids"), ids, n) && !same_ids(json_object_get(j, "llama_cpp"), ids, n)) {
        char *want = json_dumps(json_object_get(j, "ids"), 0);
        fail_msg("%s: '%s' (special %d)\n gives %s\n   not %s", p->name, json_string_value(text), special, show(ids, n),
                 want);
    }
    assert_int_equal(mu_tokenizer_encode(p->gguf, json_string_value(text), json_string_length(text), special, &other,
                                         &n_other, &err),
                     MU_OK);
    p->n_differ += n != n_other || (n && memcmp(ids, other, n * sizeof *ids) != 0);
    mu_free(ids);
    mu_free(other);
}

/* Every tokenizer.* key that both files have is the same; keys that only one has are listed in `may`. */
static void same_keys(const struct mu_gguf *a, const struct mu_gguf *b, const char *may)
{
    for (size_t i = 0; i < mu_gguf_n_value(a); i++) {
        const struct mu_gguf_value *v = mu_gguf_value_at(a, i), *other;
        char key[128];
        snprintf(key, sizeof key, "%.*s", (int)v->key.len, v->key.p);
        if (strncmp(key, "tokenizer.", 10) != 0) continue;
        other = mu_gguf_find(b, key);
        if (!other && strstr(may, key)) continue;
        if (!other) fail_msg("%s is in one file only", key);
        assert_int_equal(v->kind, other->kind);
        assert_int_equal(v->n, other->n);
        if (v->kind == MU_GGUF_ARRAY && v->item_kind == MU_GGUF_STRING) {
            for (uint64_t k = 0; k < v->n; k++) {
                if (mu_str_compare(v->strings[k], other->strings[k]))
                    fail_msg("%s[%d]: '%.*s', not '%.*s'", key, (int)k, (int)v->strings[k].len, v->strings[k].p,
                             (int)other->strings[k].len, other->strings[k].p);
            }
        } else if (v->kind == MU_GGUF_ARRAY && v->item_kind == MU_GGUF_I32) {
            for (uint64_t k = 0; k < v->n; k++) {
                if (mu_gguf_item_i64(v, k) != mu_gguf_item_i64(other, k))
                    fail_msg("%s[%d]: %d, not %d", key, (int)k, (int)mu_gguf_item_i64(v, k),
                             (int)mu_gguf_item_i64(other, k));
            }
        } else if (v->kind == MU_GGUF_STRING || v->kind == MU_GGUF_BOOL) {
            uint64_t n = 8;
            if (v->kind == MU_GGUF_STRING) memcpy(&n, v->data, sizeof n);
            assert_memory_equal(v->data, other->data, v->kind == MU_GGUF_BOOL ? 1 : 8);
            if (v->kind == MU_GGUF_STRING) assert_memory_equal(v->data + 8, other->data + 8, n);
        } else if (v->kind != MU_GGUF_ARRAY) {
            assert_int_equal(mu_gguf_item_i64(v, 0), mu_gguf_item_i64(other, 0));
        }
    }
}

static void test_fixtures(void **state)
{
    (void)state;
    static const char *const names[] = {"llama3", "mistral", "gemma2"};
    for (size_t i = 0; i < 3; i++) {
        char folder[4096], gguf[4096], path[4096];
        struct converted c;
        struct mu_gguf *g;
        struct mu_err err = MU_ERR_INIT;
        snprintf(folder, sizeof folder, "%s/models/%s-hf", fixtures_dir(), names[i]);
        snprintf(gguf, sizeof gguf, "%s/models/%s.f16.gguf", fixtures_dir(), names[i]);
        snprintf(path, sizeof path, "%s/tokenizers/tiny-%s.jsonl", fixtures_dir(), names[i]);
        if (convert(folder, 1024, &c, &err) != MU_OK) fail_msg("%s: %s", folder, err.text);
        struct mu_tokenizer *t = tok_open(gguf, &g);
        struct pair p = {c.t, t, names[i], 0};
        assert_true(tok_each_line(path, one_golden, &p) > 90);
        assert_int_equal(p.n_differ, 0);
        same_keys(c.g, g, i == 0 ? "" : "tokenizer.ggml.add_space_prefix tokenizer.ggml.merges");
        same_keys(g, c.g, "tokenizer.ggml.add_sep_token");
        assert_int_equal(mu_tokenizer_add_bos(c.t), mu_tokenizer_add_bos(t));
        if (i == 0) { /* generation_config.json lists three */
            assert_true(mu_tokenizer_is_end(c.t, 1017));
            assert_true(mu_tokenizer_is_end(c.t, 1022));
            assert_true(mu_tokenizer_is_end(c.t, 1023));
            assert_false(mu_tokenizer_is_end(c.t, 1016));
        }
        mu_tokenizer_close(t);
        mu_gguf_close(g);
        drop(&c);
    }
}

/* The same folders' tokenizer.model, without tokenizer.json. */
static void copy_to(const char *from, const char *to, const char *name)
{
    char path[4200];
    size_t len = 0;
    snprintf(path, sizeof path, "%s/%s", from, name);
    char *text = tok_read_file(path, &len);
    assert_non_null(text);
    snprintf(path, sizeof path, "%s/%s", to, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, len, f), len);
    fclose(f);
    free(text);
}

/* ---- made-up folders ---- */

static const char *const FILES[] = {"tokenizer.json",          "tokenizer_config.json", "generation_config.json",
                                    "special_tokens_map.json", "config.json",           "chat_template.jinja",
                                    "chat_template.json",      "tokenizer.model",       "vocab.json"};

static void make_folder(char *dir)
{
    strcpy(dir, "/tmp/hf-folder-XXXXXX");
    assert_non_null(mkdtemp(dir));
}

static void put_text(const char *dir, const char *name, const char *text)
{
    char path[4200];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void remove_folder(const char *dir)
{
    char path[4200];
    for (size_t i = 0; i < sizeof FILES / sizeof FILES[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, FILES[i]);
        unlink(path);
    }
    assert_int_equal(rmdir(dir), 0);
}

static void test_sentencepiece_files(void **state)
{
    (void)state;
    static const char *const names[] = {"mistral", "gemma2"};
    const char *fixtures = fixtures_dir();
    for (size_t i = 0; i < 2; i++) {
        char folder[4096], gguf[4096], path[4096], dir[64];
        struct converted c;
        struct mu_gguf *g;
        struct mu_err err = MU_ERR_INIT;
        make_folder(dir);
        snprintf(folder, sizeof folder, "%s/models/%s-hf", fixtures, names[i]);
        copy_to(folder, dir, "tokenizer.model");
        copy_to(folder, dir, "tokenizer_config.json");
        copy_to(folder, dir, "config.json");
        snprintf(gguf, sizeof gguf, "%s/models/%s.f16.gguf", fixtures, names[i]);
        snprintf(path, sizeof path, "%s/tokenizers/tiny-%s.jsonl", fixtures, names[i]);
        if (convert(dir, 1024, &c, &err) != MU_OK) fail_msg("%s: %s", folder, err.text);
        struct mu_tokenizer *t = tok_open(gguf, &g);
        struct pair p = {c.t, t, names[i], 0};
        assert_true(tok_each_line(path, one_golden, &p) > 90);
        assert_int_equal(p.n_differ, 0);
        same_keys(c.g, g, "tokenizer.ggml.add_space_prefix");
        same_keys(g, c.g, "tokenizer.ggml.add_sep_token");
        mu_tokenizer_close(t);
        mu_gguf_close(g);
        drop(&c);
        remove_folder(dir);
    }
}

/* tokenizer.json of made-up parts; `more` are further members. */
static const char *made(const char *model, const char *added, const char *more)
{
    static char text[16384];
    snprintf(text, sizeof text, "{\"version\": \"1.0\", \"added_tokens\": [%s], %s, \"model\": %s}", added, more,
             model);
    return text;
}

#define GPT2_PRE "\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": true}"
#define SPLIT(re) \
    "{\"type\": \"Split\", \"pattern\": {\"Regex\": \"" re "\"}, \"behavior\": \"Isolated\", \"invert\": false}"
#define LEVEL      "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": false}"
#define SEQ(parts) "\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [" parts ", " LEVEL "]}"
#define CONTRACT   "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define ABC                                                                                                            \
    "{\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 1, \"c\": 2, \"ab\": 3, \"bc\": 4, \"abc\": 5, \"\\u0120\": 6, " \
    "\"\\u0120a\": 7, \"1\": 8, \"11\": 9, \"!\": 10}, "
#define PAIRS   "\"merges\": [[\"a\", \"b\"], [\"b\", \"c\"], [\"ab\", \"c\"], [\"\\u0120\", \"a\"], [\"1\", \"1\"]]}"
#define STRINGS "\"merges\": [\"a b\", \"b c\", \"ab c\", \"\\u0120 a\", \"1 1\"]}"

static void expect_ids(const struct mu_tokenizer *t, const char *text, bool special, int n, const int32_t *want)
{
    struct mu_err err = MU_ERR_INIT;
    int32_t *ids;
    size_t n_ids;
    assert_int_equal(mu_tokenizer_encode(t, text, strlen(text), special, &ids, &n_ids, &err), MU_OK);
    if (n_ids != (size_t)n || (n && memcmp(ids, want, n_ids * sizeof *ids)))
        fail_msg("'%s' gives %s", text, show(ids, n_ids));
    mu_free(ids);
}
#define EXPECT(t, text, special, ...) \
    expect_ids((t), (text), (special), sizeof((int32_t[]){__VA_ARGS__}) / 4, (const int32_t[]){__VA_ARGS__})

static void convert_text(const char *dir, const char *json, int n_vocab, struct converted *c)
{
    struct mu_err err = MU_ERR_INIT;
    put_text(dir, "tokenizer.json", json);
    if (convert(dir, n_vocab, c, &err) != MU_OK) fail_msg("%s", err.text);
}

static void test_byte_level(void **state)
{
    (void)state;
    char dir[64];
    struct converted c;
    make_folder(dir);
    for (int i = 0; i < 2; i++) {
        convert_text(dir, made(i ? ABC PAIRS : ABC STRINGS, "", GPT2_PRE), 0, &c);
        assert_int_equal(mu_tokenizer_n_vocab(c.t), 11);
        EXPECT(c.t, "abc ab a 11!", false, 5, 6, 3, 7, 6, 9, 10);
        assert_false(mu_tokenizer_add_bos(c.t));
        drop(&c);
    }
    /* Each of a long row of such tokens strips all that follow, which is looked at once and not for each. */
    enum { ROW = 1 << 20 };
    convert_text(dir, made(ABC PAIRS, "{\"id\": 11, \"content\": \"\\n\", \"rstrip\": true}", GPT2_PRE), 0, &c);
    char *row = mu_malloc(ROW);
    assert_non_null(row);
    memset(row, '\n', ROW);
    struct mu_err row_err = MU_ERR_INIT;
    int32_t *ids;
    size_t n_ids;
    assert_int_equal(mu_tokenizer_encode(c.t, row, ROW, false, &ids, &n_ids, &row_err), MU_OK);
    assert_int_equal(n_ids, ROW);
    for (size_t i = 0; i < n_ids; i++) assert_int_equal(ids[i], 11);
    mu_free(ids);
    mu_free(row);
    drop(&c);
    convert_text(dir,
                 made(ABC PAIRS, "{\"id\": 11, \"content\": \"\\n\", \"lstrip\": true, \"rstrip\": true}", GPT2_PRE), 0,
                 &c);
    EXPECT(c.t, "\n\n", false, 11);
    EXPECT(c.t, "a \n \n b\n", false, 0, 11, 1, 11);
    drop(&c);
    /* A pattern that no family has: digits one by one, and no word with a space before it. */
    convert_text(dir, made(ABC PAIRS, "", SEQ(SPLIT("\\\\s+|\\\\d|[^\\\\s\\\\d]+"))), 16, &c);
    assert_int_equal(mu_tokenizer_n_vocab(c.t), 16);
    assert_non_null(mu_gguf_find(c.g, "muster.tokenizer.patterns"));
    EXPECT(c.t, "ab a11", false, 3, 6, 0, 8, 8);
    drop(&c);
    /* Falcon's, which cuts digits behind the byte alphabet. */
    convert_text(
        dir,
        made(ABC PAIRS, "",
             "\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Punctuation\", "
             "\"behavior\": \"Contiguous\"}, {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": "
             "true}, {\"type\": \"Digits\", \"individual_digits\": false}, " SPLIT("[0-9][0-9][0-9]") "]}"),
        0, &c);
    EXPECT(c.t, "a 11!! a1111", false, 0, 6, 9, 10, 10, 7, 9, 8, 8);
    drop(&c);
    convert_text(dir,
                 made("{\"type\": \"BPE\", \"vocab\": {\"\\u0120\": 0, \"\\u00c2\": 1, \"\\u00bd\": 2, "
                      "\"\\u0120\\u00c2\": 3, \"1\": 4}, \"merges\": [[\"\\u0120\", \"\\u00c2\"]]}",
                      "",
                      "\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"ByteLevel\", "
                      "\"add_prefix_space\": false, \"use_regex\": true}, {\"type\": \"Digits\", "
                      "\"individual_digits\": false}]}"),
                 0, &c);
    EXPECT(c.t, " \u00bd 1", false, 3, 2, 0, 4); /* one half is no digit there */
    drop(&c);
    /* One that matches nothing at all in places: cuts without words. */
    convert_text(dir, made(ABC PAIRS, "", SEQ(SPLIT("(?=1)|b"))), 0, &c);
    EXPECT(c.t, "abc11bb", false, 0, 1, 2, 8, 8, 1, 1);
    drop(&c);
    /* A vertical tab, and no other end of a line; digits of an escape are no repeat. */
    convert_text(dir,
                 made("{\"type\": \"BPE\", \"vocab\": {\"1\": 0, \"\\u010a\": 1, \"1\\u010a\": 2, \"\\u010b\": 3}, "
                      "\"merges\": [[\"1\", \"\\u010a\"]]}",
                      "", SEQ(SPLIT("(?i)[^\\\\v]+|\\\\x{31}+"))),
                 0, &c);
    EXPECT(c.t, "1\n\v1\n", false, 2, 3, 2);
    drop(&c);
    /* Whole words; added tokens that take white space, and those past the embedding. */
    put_text(dir, "generation_config.json", "{\"eos_token_id\": [12, 13]}");
    put_text(dir, "tokenizer_config.json",
             "{\"model_max_length\": 1000000000000000019884624838656, \"eos_token\": {\"content\": \"<e>\"}, "
             "\"bos_token\": \"<s>\", \"add_bos_token\": true, \"chat_template\": "
             "[{\"name\": \"default\", \"template\": \"D\"}, {\"name\": \"tool_use\", \"template\": \"T\"}]}");
    convert_text(
        dir,
        made("{\"type\": \"BPE\", \"ignore_merges\": true, \"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2, \"\\u0120\": 3, "
             "\"\\u00e3\": 4}, \"merges\": []}",
             "{\"id\": 11, \"content\": \"<s>\", \"special\": true, \"lstrip\": true}, {\"id\": 12, \"content\": "
             "\"<e>\", \"special\": true, \"rstrip\": true}, {\"id\": 13, \"content\": \"<t>\", \"special\": false}, "
             "{\"id\": 14, \"content\": \"\\n\", \"special\": false}, {\"id\": 15, \"content\": \"\\t\", "
             "\"special\": false, \"normalized\": true}, {\"id\": 20, \"content\": \"<far>\", "
             "\"special\": true}",
             GPT2_PRE),
        16, &c);
    EXPECT(c.t, "ab <s> <e>  ab<t>", true, 2, 11, 3, 12, 2, 13);
    EXPECT(c.t,
           "a\u3000 \u00a0<s><e>\u2003\xc2\x85\u3000"
           "a\u3000",
           true, 0, 11, 12, 0, 4);
    EXPECT(c.t, "\xe3 <s><e>\xe3", true, 4, 11, 12, 4);
    EXPECT(c.t, "<e> \n a<e> \n<e> ", true, 12, 14, 3, 0, 12, 14, 12);
    EXPECT(c.t, "<e>\ta\t<e>\n\t", true, 12, 0, 15, 12, 14,
           15); /* what the first pass strips the second does not see */
    EXPECT(c.t, "<t>a", false, 13, 0);
    assert_int_equal(mu_tokenizer_bos(c.t), 11);
    assert_int_equal(mu_tokenizer_eos(c.t), 12);
    assert_true(mu_tokenizer_add_bos(c.t));
    assert_true(mu_tokenizer_is_end(c.t, 13));
    assert_false(mu_tokenizer_is_end(c.t, 11));
    struct mu_err err = MU_ERR_INIT;
    struct mu_str s;
    assert_int_equal(mu_gguf_get_str(c.g, "tokenizer.chat_template", &s, &err), MU_OK);
    assert_true(mu_str_is(s, "D"));
    assert_int_equal(mu_gguf_get_str(c.g, "tokenizer.chat_template.tool_use", &s, &err), MU_OK);
    assert_true(mu_str_is(s, "T"));
    drop(&c);
    put_text(dir, "chat_template.jinja", "{{ messages }}");
    convert_text(dir, made(ABC PAIRS, "", GPT2_PRE), 0, &c);
    assert_int_equal(mu_gguf_get_str(c.g, "tokenizer.chat_template", &s, &err), MU_OK);
    assert_true(mu_str_is(s, "{{ messages }}"));
    drop(&c);
    remove_folder(dir);
}

/* Pre-tokenizers as the models' files have them are known by their text. */
static void test_known_patterns(void **state)
{
    (void)state;
#define CL(digits)                                                      \
    CONTRACT "|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}" digits \
             "| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"
#define UP  "[\\\\p{Lu}\\\\p{Lt}\\\\p{Lm}\\\\p{Lo}\\\\p{M}]"
#define LOW "[\\\\p{Ll}\\\\p{Lm}\\\\p{Lo}\\\\p{M}]"
#define O200(suffix, digits)                                                                                       \
    "[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?" UP "*" LOW "+" suffix "|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?" UP "+" LOW "*" suffix \
    "|\\\\p{N}" digits "| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n/]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"
    static const struct {
        const char *parts, *name;
        bool whole;
    } want[] = {
        {GPT2_PRE, "gpt-2", false},
        {SEQ(SPLIT(
             "'s|'t|'re|'ve|'m|'ll|'d| ?\\\\p{L}+| ?\\\\p{N}+| ?[^\\\\s\\\\p{L}\\\\p{N}]+|\\\\s+(?!\\\\S)|\\\\s+")),
         "gpt-2", false},
        {SEQ(SPLIT(CL("{1,3}"))), "llama-bpe", true},
        {SEQ(SPLIT(CL("{1,3}"))), "dbrx", false},
        {SEQ(SPLIT(CL(""))), "qwen2", false},
        {SEQ(SPLIT(O200(CONTRACT "?", "{1,3}"))), "gpt-4o", false},
        {SEQ(SPLIT(O200(CONTRACT "?", "{1,3}"))), "gpt-4o", true},
        {SEQ(SPLIT(O200("", ""))), "tekken", true},
        {SEQ(SPLIT("\\\\p{N}{1,3}") ", " SPLIT("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+") ", " SPLIT(
             "[!\\\"#$%&'()*+,\\\\-./"
             ":;<=>?@\\\\[\\\\\\\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\\\p{L}\\\\p{P}\\\\p{S}]?[\\\\p{L}"
             "\\\\p{M}]+| ?[\\\\p{P}\\\\p{S}]+[\\r\\n]*|\\\\s*[\\r\\n]+|\\\\s+(?!\\\\S)|\\\\s+")),
         "deepseek-v3", false},
        {"\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Digits\", "
         "\"individual_digits\": true}, "
         "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": true}]}",
         "starcoder", false},
        {SEQ(SPLIT(" ?[^(\\\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+")), "bloom", false},
    };
    char dir[64];
    make_folder(dir);
    for (size_t i = 0; i < sizeof want / sizeof want[0]; i++) {
        struct converted c;
        struct mu_err err = MU_ERR_INIT;
        struct mu_str name;
        const char *model = want[i].whole
                                ? "{\"type\": \"BPE\", \"ignore_merges\": true, \"vocab\": {\"a\": 0}, \"merges\": []}"
                                : "{\"type\": \"BPE\", \"vocab\": {\"a\": 0}, \"merges\": []}";
        convert_text(dir, made(model, "", want[i].parts), 0, &c);
        assert_int_equal(mu_gguf_get_str(c.g, "tokenizer.ggml.pre", &name, &err), MU_OK);
        if (!mu_str_is(name, want[i].name) || mu_gguf_find(c.g, "muster.tokenizer.patterns"))
            fail_msg("%zu: '%.*s', not '%s'", i, (int)name.len, name.p, want[i].name);
        drop(&c);
    }
    remove_folder(dir);
}

#define MARK "\\u2581"
#define SPM_MODEL                                                                                                   \
    "{\"type\": \"BPE\", \"unk_token\": \"<unk>\", \"byte_fallback\": true, \"vocab\": {\"<unk>\": 0, \"<s>\": 1, " \
    "\"<0xC3>\": 2, \"<0xA9>\": 3, \"" MARK "\": 4, \"a\": 5, \"b\": 6, \"" MARK                                    \
    "a\": 7, \"ab\": 8, \"bb\": 9, \"abb\": "                                                                       \
    "10, \"zz\": 11, \"z\": 12}, \"merges\": [\"b b\", \"" MARK " a\", \"a b\", \"ab b\"]}"
#define REPLACE "{\"type\": \"Replace\", \"pattern\": {\"String\": \" \"}, \"content\": \"" MARK "\"}"

static void test_sentencepiece_kind(void **state)
{
    (void)state;
    static const char added[] = "{\"id\": 1, \"content\": \"<s>\", \"special\": true}";
    char dir[64];
    struct converted c;
    make_folder(dir);
    /* "abb": b b goes first, and what would make a + bb is no merge, though "abb" is a token; so is "zz". */
    convert_text(
        dir,
        made(SPM_MODEL, added,
             "\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"Prepend\", \"prepend\": \"" MARK
             "\"}, " REPLACE "]}"),
        0, &c);
    EXPECT(c.t, "abb", false, 7, 9);
    EXPECT(c.t, "zz\u00e9", false, 4, 12, 12, 2, 3);
    EXPECT(c.t, " a<s>a", true, 4, 7, 1, 7);
    assert_true(mu_tokenizer_add_bos(c.t) || mu_tokenizer_bos(c.t) < 0);
    drop(&c);
    convert_text(dir, made(SPM_MODEL, added, "\"normalizer\": " REPLACE), 0, &c);
    EXPECT(c.t, "a a", false, 5, 7);
    drop(&c);
    static const char *const schemes[] = {"always", "first", "never"};
    for (int i = 0; i < 3; i++) {
        char more[256];
        snprintf(more, sizeof more,
                 "\"normalizer\": null, \"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": \"" MARK
                 "\", \"prepend_scheme\": \"%s\", \"split\": false}",
                 schemes[i]);
        convert_text(dir, made(SPM_MODEL, added, more), 0, &c);
        if (i == 0) EXPECT(c.t, "a<s>a<s> a", true, 7, 1, 7, 1, 7);
        if (i == 1) EXPECT(c.t, "a<s>a<s> a", true, 7, 1, 5, 1, 7);
        if (i == 2) EXPECT(c.t, "a<s>a<s> a", true, 5, 1, 5, 1, 7);
        drop(&c);
    }
    /* Without tokens for bytes: a row of unknown characters is one token where the file says so. */
    for (int i = 0; i < 2; i++) {
        char model[256], text[] = "\u00e9\u65e5a\u00e9<unk>\u00e9";
        snprintf(model, sizeof model,
                 "{\"type\": \"BPE\", \"unk_token\": \"<unk>\", \"fuse_unk\": %s, \"vocab\": {\"<unk>\": 0, \"a\": 1}, "
                 "\"merges\": []}",
                 i ? "true" : "false");
        convert_text(dir,
                     made(model, "{\"id\": 0, \"content\": \"<unk>\", \"special\": true}", "\"normalizer\": " REPLACE),
                     0, &c);
        if (i) EXPECT(c.t, text, true, 0, 1, 0, 0, 0);
        if (!i) EXPECT(c.t, text, true, 0, 0, 1, 0, 0, 0);
        drop(&c);
    }
    remove_folder(dir);
}

static void test_refusals(void **state)
{
    (void)state;
    static const struct {
        const char *model, *added, *more;
        enum mu_status code;
        const char *says;
    } want[] = {
        {"{\"type\": \"Unigram\", \"vocab\": [[\"a\", -1.5]]}", "", GPT2_PRE, MU_EUNSUPPORTED, "Unigram"},
        {"{\"type\": \"WordPiece\", \"vocab\": {\"a\": 0}}", "", GPT2_PRE, MU_EUNSUPPORTED, "WordPiece"},
        {ABC PAIRS, "", "\"normalizer\": {\"type\": \"Lowercase\"}, " GPT2_PRE, MU_EUNSUPPORTED, "Lowercase"},
        {ABC PAIRS, "", "\"pre_tokenizer\": {\"type\": \"BertPreTokenizer\"}", MU_EUNSUPPORTED, "BertPreTokenizer"},
        {ABC PAIRS, "", "\"pre_tokenizer\": null", MU_EUNSUPPORTED, "neither byte-level"},
        {ABC PAIRS, "",
         "\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [" LEVEL ", " SPLIT("\\\\s+|[0-9]") "]}",
         MU_EUNSUPPORTED, "behind ByteLevel"},
        {ABC PAIRS, "", SEQ(SPLIT("[a&&[b]]")), MU_EUNSUPPORTED, "intersection"},
        {ABC PAIRS, "", SEQ(SPLIT("[a[b]]")), MU_EUNSUPPORTED, "class within a class"},
        {ABC PAIRS, "", SEQ(SPLIT("\\\\h+")), MU_EUNSUPPORTED, "escape"},
        {ABC PAIRS, "", SEQ(SPLIT("\\\\p{N}{1,3}+|.")), MU_EUNSUPPORTED, "a repeat of a repeat"},
        {ABC PAIRS, "", SEQ(SPLIT("1{12,}+")), MU_EUNSUPPORTED, "a repeat of a repeat"},
        {ABC PAIRS, "", SEQ(SPLIT("1{2}?a")), MU_EUNSUPPORTED, "a repeat of a repeat"},
        {ABC PAIRS, "", SEQ(SPLIT("a(?i)b|c")), MU_EUNSUPPORTED, "an option"},
        {ABC PAIRS, "", SEQ(SPLIT("(?m:a.)b")), MU_EUNSUPPORTED, "an option"},
        {ABC PAIRS, "{\"id\": 11, \"content\": \"x\", \"single_word\": true}", GPT2_PRE, MU_EUNSUPPORTED,
         "single_word"},
        {ABC PAIRS, "{\"id\": -3, \"content\": \"x\"}", GPT2_PRE, MU_EFORMAT, "id -3"},
        {ABC PAIRS, "{\"id\": 9999999, \"content\": \"x\"}", GPT2_PRE, MU_EFORMAT, "far beyond"},
        {ABC PAIRS, "[1, {\"x\": ]", GPT2_PRE, MU_EFORMAT, "brackets in pairs"},
        {"{\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 0}, \"merges\": []}", "", GPT2_PRE, MU_EFORMAT, "id 0"},
        {"{\"type\": \"BPE\", \"vocab\": {\"a\": 70000}, \"merges\": []}", "", GPT2_PRE, MU_EFORMAT, "70000"},
        {"{\"type\": \"BPE\", \"vocab\": {\"a\": 1.5}, \"merges\": []}", "", GPT2_PRE, MU_EFORMAT, "an integer"},
        {"{\"type\": \"BPE\", \"vocab\": {\"a\\ud800\": 1}, \"merges\": []}", "", GPT2_PRE, MU_EFORMAT, "escape"},
        {"{\"type\": \"BPE\", \"vocab\": {\"a\": 0}, \"merges\": [\"a\"]}", "", GPT2_PRE, MU_EFORMAT, "merge 0"},
        {"{\"type\": \"BPE\", \"vocab\": {\"a\": 0}, \"merges\": [[\"a\"]]}", "", GPT2_PRE, MU_EFORMAT, "two strings"},
        {"{\"type\": \"BPE\", \"vocab\": {}, \"merges\": []}", "", GPT2_PRE, MU_EFORMAT, "no token"},
        {"{\"type\": \"BPE\", \"end_of_word_suffix\": \"</w>\", \"vocab\": {\"a\": 0}, \"merges\": []}", "", GPT2_PRE,
         MU_EUNSUPPORTED, "end_of_word_suffix"},
        {"7", "", GPT2_PRE, MU_EFORMAT, "an object"},
    };
    char dir[64];
    struct converted c;
    make_folder(dir);
    for (size_t i = 0; i < sizeof want / sizeof want[0]; i++) {
        struct mu_err err = MU_ERR_INIT;
        put_text(dir, "tokenizer.json", made(want[i].model, want[i].added, want[i].more));
        enum mu_status st = convert(dir, 0, &c, &err);
        if (st != want[i].code || !strstr(err.text, want[i].says))
            fail_msg("%zu: %s (%d) instead of '%s'", i, err.text, st, want[i].says);
        drop(&c);
    }
    struct mu_err err = MU_ERR_INIT;
    put_text(dir, "tokenizer.json", "{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0}");
    assert_int_equal(convert(dir, 0, &c, &err), MU_EFORMAT);
    drop(&c);
    put_text(dir, "tokenizer.json", made(ABC PAIRS, "", GPT2_PRE));
    put_text(dir, "config.json", "{\"a\":\n 1,}");
    assert_int_equal(convert(dir, 0, &c, &err), MU_EFORMAT);
    assert_non_null(strstr(err.text, "line 2"));
    drop(&c);
    remove_folder(dir);
    make_folder(dir);
    assert_int_equal(convert(dir, 0, &c, &err), MU_ENOENT);
    drop(&c);
    put_text(dir, "vocab.json", "{}");
    assert_int_equal(convert(dir, 0, &c, &err), MU_EUNSUPPORTED);
    drop(&c);
    /* A unigram model; a field that is cut short. */
    put_text(dir, "tokenizer.model",
             "\x0a\x03\x0a\x01"
             "a"
             "\x12\x02\x18\x01");
    assert_int_equal(convert(dir, 0, &c, &err), MU_EUNSUPPORTED);
    assert_non_null(strstr(err.text, "unigram"));
    drop(&c);
    put_text(dir, "tokenizer.model",
             "\x0a\x03\x0a\x01"
             "a"
             "\x12\x05\x18\x02\xc0\x01\x01");
    assert_int_equal(convert(dir, 0, &c, &err), MU_EUNSUPPORTED);
    assert_non_null(strstr(err.text, "behind words"));
    drop(&c);
    put_text(dir, "tokenizer.model",
             "\x0a\x03\x0a\x01"
             "a"
             "\x12\x07\x18\x02");
    assert_int_equal(convert(dir, 0, &c, &err), MU_EFORMAT);
    assert_non_null(strstr(err.text, "offset 5"));
    drop(&c);
    remove_folder(dir);
}

static void test_allocations(void **state)
{
    (void)state;
    static const char config[] = "{\"eos_token\": \"<e>\", \"chat_template\": \"x\"}";
    char dir[64];
    make_folder(dir);
    put_text(dir, "tokenizer_config.json", config);
    for (int kind = 0; kind < 2; kind++) {
        const char *added = "{\"id\": 13, \"content\": \"<\\u0065>\", \"special\": true, \"rstrip\": true}";
        put_text(dir, "tokenizer.json",
                 kind ? made(SPM_MODEL, added, "\"normalizer\": " REPLACE)
                      : made(ABC PAIRS, added, SEQ(SPLIT("\\\\s+|\\\\d|[^\\\\s\\\\d]+"))));
        long n = 1, n_harmless = 0;
        for (;; n++) {
            struct mu_gguf_writer *w;
            struct mu_err err = MU_ERR_INIT;
            char path[64] = "/tmp/hf-tokenizer-XXXXXX";
            int fd = mkstemp(path);
            close(fd);
            assert_int_equal(mu_gguf_writer_open(path, &w, &err), MU_OK);
            mu_alloc_fail_at(n);
            enum mu_status st = mu_hf_tokenizer_put(dir, w, 16, &err);
            if (st == MU_OK)
                st = mu_gguf_writer_close(w, 1, &err);
            else
                mu_gguf_writer_close(w, 0, NULL);
            bool failed = mu_alloc_fail_at(0) >= n;
            unlink(path);
            if (!failed) break;
            if (st == MU_OK)
                n_harmless++; /* closing a file goes on without a name for its folder */
            else
                assert_int_equal(st, MU_ENOMEM);
        }
        print_message("%ld allocations failed in turn\n", n - 1);
        assert_true(n > 15);
        assert_true(n_harmless <= 1);
    }
    remove_folder(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fixtures),           cmocka_unit_test(test_sentencepiece_files),
        cmocka_unit_test(test_byte_level),         cmocka_unit_test(test_known_patterns),
        cmocka_unit_test(test_sentencepiece_kind), cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
