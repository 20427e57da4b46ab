/* Tokenizers on vocabularies made here: what each sort of token does, what is refused, merging against a plain
 * quadratic rendering of the algorithm, every allocation failing in turn. */
#include <utf8proc.h>

#include "tests/model/tok_fixture.h"

struct vocab {
    const char *model, *pre;
    struct mu_str tokens[600], merges[600];
    int32_t types[600];
    float scores[600];
    int n, n_merge;
    int no_types, no_scores, no_merges; /* leave the array out */
    int short_types, short_scores;      /* one item too few */
    int64_t bos, eos;                   /* -1: no key */
    int space_prefix, add_bos, add_eos; /* -1: no key */
    int nfc;                            /* put the key */
    char text[16384];                   /* storage */
    size_t text_len;
};

static struct mu_str keep(struct vocab *v, const char *p, size_t n)
{
    assert_true(v->text_len + n <= sizeof v->text);
    memcpy(v->text + v->text_len, p, n);
    v->text_len += n;
    return (struct mu_str){v->text + v->text_len - n, n};
}

static int token(struct vocab *v, const char *text, size_t len, int type, float score)
{
    v->tokens[v->n] = keep(v, text, len);
    v->types[v->n] = type;
    v->scores[v->n] = score;
    return v->n++;
}

static void vocab_init(struct vocab *v, const char *model, const char *pre)
{
    memset(v, 0, sizeof *v);
    v->model = model;
    v->pre = pre;
    v->bos = v->eos = v->space_prefix = v->add_bos = v->add_eos = -1;
}

static void byte_tokens(struct vocab *v)
{
    for (int i = 0; i < 256; i++) {
        char text[8];
        snprintf(text, sizeof text, "<0x%02X>", (unsigned)i);
        token(v, text, 6, 6, 0);
    }
}

/* The byte alphabet of byte-level vocabularies, written down a second time. */
static void byte_alphabet(struct vocab *v)
{
    int next = 256;
    for (int b = 0; b < 256; b++) {
        int printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xFF && b != 0xAD), cp = printable ? b : next++;
        char text[2] = {(char)(cp < 0x80 ? cp : 0xC0 | cp >> 6), (char)(0x80 | (cp & 0x3F))};
        token(v, text, cp < 0x80 ? 1 : 2, 1, 0);
    }
}

static enum mu_status vocab_open(const struct vocab *v, struct mu_gguf **g, struct mu_tokenizer **t, struct mu_err *err)
{
    char path[] = "/tmp/mu-tokenizer-XXXXXX";
    int fd = mkstemp(path);
    struct mu_gguf_writer *w;
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(mu_gguf_writer_open(path, &w, err), MU_OK);
    if (v->model) mu_gguf_put_str(w, "tokenizer.ggml.model", v->model, strlen(v->model));
    if (v->pre) mu_gguf_put_str(w, "tokenizer.ggml.pre", v->pre, strlen(v->pre));
    if (v->n) mu_gguf_put_strs(w, "tokenizer.ggml.tokens", v->tokens, (uint64_t)v->n);
    if (v->n && !v->no_types)
        mu_gguf_put_i32s(w, "tokenizer.ggml.token_type", v->types, (uint64_t)(v->n - v->short_types));
    if (v->n && !v->no_scores)
        mu_gguf_put_f32s(w, "tokenizer.ggml.scores", v->scores, (uint64_t)(v->n - v->short_scores));
    if (!v->no_merges) mu_gguf_put_strs(w, "tokenizer.ggml.merges", v->merges, (uint64_t)v->n_merge);
    if (v->bos >= 0) mu_gguf_put_u32(w, "tokenizer.ggml.bos_token_id", (uint32_t)v->bos);
    if (v->space_prefix >= 0) mu_gguf_put_bool(w, "tokenizer.ggml.add_space_prefix", v->space_prefix);
    if (v->add_bos >= 0) mu_gguf_put_bool(w, "tokenizer.ggml.add_bos_token", v->add_bos);
    if (v->nfc) mu_gguf_put_bool(w, "tokenizer.ggml.normalizer.nfc", true);
    if (v->eos >= 0) mu_gguf_put_u32(w, "tokenizer.ggml.eos_token_id", (uint32_t)v->eos);
    if (v->add_eos >= 0) mu_gguf_put_bool(w, "tokenizer.ggml.add_eos_token", v->add_eos);
    assert_int_equal(mu_gguf_writer_close(w, 1, err), MU_OK);
    assert_int_equal(mu_gguf_open(path, g, err), MU_OK);
    unlink(path);
    return mu_tokenizer_open(*g, t, err);
}

static void expect(const struct mu_tokenizer *t, const char *text, bool special, const int32_t *want, size_t n_want)
{
    struct mu_err err = MU_ERR_INIT;
    int32_t *ids;
    size_t n;
    assert_int_equal(mu_tokenizer_encode(t, text, strlen(text), special, &ids, &n, &err), MU_OK);
    if (n != n_want || (n && memcmp(ids, want, n * sizeof *ids))) fail_msg("'%s' gives %s", text, show(ids, n));
    if (!n) assert_null(ids);
    mu_free(ids);
}
#define EXPECT(t, text, special, ...) \
    expect(t, text, special, (int32_t[]){__VA_ARGS__}, sizeof((int32_t[]){__VA_ARGS__}) / sizeof(int32_t))

static void test_small_spm(void **state)
{
    (void)state;
    static struct vocab v;
    struct mu_gguf *g;
    struct mu_tokenizer *t;
    struct mu_err err = MU_ERR_INIT;
    vocab_init(&v, "llama", NULL);
    byte_tokens(&v);
    int unk = token(&v, "<unk>", 5, 2, 0), bos = token(&v, "<s>", 3, 3, 0), eot = token(&v, "<|eot_id|>", 10, 3, 0);
    int user = token(&v, "<x>", 3, 4, 0), user_long = token(&v, "<x>y", 4, 4, 0);
    int sp = token(&v, "\xE2\x96\x81", 3, 1, -9), a = token(&v, "a", 1, 1, -8), b = token(&v, "b", 1, 1, -7);
    int ab = token(&v, "ab", 2, 1, -1), ba = token(&v, "ba", 2, 1, -1),
        sp_a = token(&v,
                     "\xE2\x96\x81"
                     "a",
                     4, 1, -2);
    int lt = token(&v, "<", 1, 1, -3), s_gt = token(&v, "s>", 2, 1, -3);
    int ctl = token(&v, "<q>", 3, 3, 0), ctl_long = token(&v, "<q>rr", 5, 4, 0);
    v.bos = bos;
    assert_int_equal(vocab_open(&v, &g, &t, &err), MU_OK);
    assert_int_equal(mu_tokenizer_n_vocab(t), v.n);
    assert_true(mu_tokenizer_add_bos(t)); /* the key is missing */
    assert_int_equal(mu_tokenizer_eos(t), -1);
    assert_true(mu_tokenizer_is_end(t, eot));
    assert_false(mu_tokenizer_is_end(t, bos));
    expect(t, "", true, NULL, 0);
    EXPECT(t, "a", false, sp_a);
    EXPECT(t, "aba", false, sp, ab, a); /* equal scores: leftmost */
    EXPECT(t, " a", false, sp, sp_a);
    EXPECT(t,
           "\xE2\x96\x81"
           "a",
           false, sp, sp_a);
    EXPECT(t, "bab", false, sp, ba, b);
    EXPECT(t, "<s>a", true, bos, sp_a);
    EXPECT(t, "<s>a", false, sp, lt, s_gt, a); /* plain text never becomes a control token */
    EXPECT(t, "a<x>b", false, sp_a, user, sp, b);
    EXPECT(t, "a<x>yb", false, sp_a, user_long, sp, b);
    EXPECT(t, "<q>r", true, ctl, sp, 'r');
    EXPECT(t, "<q>r", false, sp, lt, 'q', '>', 'r'); /* control, though a user-defined one begins so */
    EXPECT(t, "<q>rr", false, ctl_long);
    EXPECT(t, "\xC3\xA9", false, sp, 0xC3, 0xA9);
    EXPECT(t, "\xFF\xC3", false, sp, 0xFF, 0xC3);
    EXPECT(t, "<unk>", true, unk);
    int32_t ids[] = {bos, sp_a, sp_a, 0xC3, 0xA9, -1, 1 << 30, user};
    char *text;
    size_t len;
    assert_int_equal(mu_tokenizer_decode(t, ids, 8, false, &text, &len, &err), MU_OK);
    assert_string_equal(text, "a a\xC3\xA9<x>");
    assert_int_equal(len, strlen(text));
    mu_free(text);
    struct mu_streamer stream;
    size_t cap = 0;
    mu_streamer_init(&stream, t, false);
    stream.whole = true;
    text = NULL, len = 0;
    for (int i = 0; i < 8; i++) assert_int_equal(mu_streamer_push(&stream, ids[i], &text, &len, &cap), MU_OK);
    assert_string_equal(text, "a a\xC3\xA9<x>"); /* the same, bit by bit */
    mu_free(text);
    assert_int_equal(mu_tokenizer_decode(t, ids, 2, true, &text, &len, &err), MU_OK);
    assert_string_equal(text, "<s> a");
    mu_free(text);
    int32_t spaces[] = {sp, sp, sp_a};
    assert_int_equal(mu_tokenizer_decode(t, spaces, 3, true, &text, &len, &err), MU_OK);
    assert_string_equal(text, "  a"); /* one space goes, not all */
    mu_free(text);
    mu_tokenizer_close(t);
    mu_gguf_close(g);

    v.space_prefix = 0;
    v.add_bos = 0;
    assert_int_equal(vocab_open(&v, &g, &t, &err), MU_OK);
    assert_false(mu_tokenizer_add_bos(t));
    EXPECT(t, "a", false, a);
    EXPECT(t, " a", false, sp_a);
    assert_int_equal(mu_tokenizer_decode(t, ids, 2, false, &text, &len, &err), MU_OK);
    assert_string_equal(text, " a");
    mu_free(text);
    mu_tokenizer_close(t);
    mu_gguf_close(g);
}

/* Gemma 4: SentencePiece's spelling, merged by rank; byte tokens that the file calls normal; no space prefix. */
static void test_small_gemma4(void **state)
{
    (void)state;
    static struct vocab v;
    struct mu_gguf *g;
    struct mu_tokenizer *t;
    struct mu_err err = MU_ERR_INIT;
    vocab_init(&v, "gemma4", NULL);
    byte_tokens(&v);
    for (int i = 0; i < v.n; i++) v.types[i] = 1;
    int bos = token(&v, "<bos>", 5, 3, 0), turn = token(&v, "<turn|>", 7, 3, 0), s = token(&v, "</s>", 4, 3, 0);
    int sp = token(&v, "\xE2\x96\x81", 3, 1, 0), a = token(&v, "a", 1, 1, 0), b = token(&v, "b", 1, 1, 0);
    int sp_a = token(&v,
                     "\xE2\x96\x81"
                     "a",
                     4, 1, 0),
        ab = token(&v, "ab", 2, 1, 0);
    int nl = token(&v, "\n", 1, 1, 0), nl2 = token(&v, "\n\n", 2, 1, 0);
    token(&v, "bb", 2, 1, 0); /* that no merge makes */
    v.merges[v.n_merge++] = keep(&v, "a b", 3);
    v.merges[v.n_merge++] = keep(&v, "\xE2\x96\x81 a", 5);
    v.merges[v.n_merge++] = keep(&v, "\n \n", 3);
    v.bos = bos;
    v.add_bos = 0;
    v.no_scores = 1;
    assert_int_equal(vocab_open(&v, &g, &t, &err), MU_OK);
    assert_true(mu_tokenizer_add_bos(t));
    assert_true(mu_tokenizer_is_end(t, turn));
    assert_false(mu_tokenizer_is_end(t, s));
    EXPECT(t, "a a", false, a, sp_a);
    EXPECT(t, " ab", false, sp, ab);
    EXPECT(t, "bbb\n\n\n", false, b, b, b, nl2, nl);
    EXPECT(t, "\u00e9<turn|>a", true, 0xC3, 0xA9, turn, a);
    mu_tokenizer_close(t);
    mu_gguf_close(g);
}

/* A message's end is no end of generation where calls have an end of their own (gpt-oss); plain tokens that look like an
 * end are none. User-defined ones are, and hidden, where no text means anything else by them. */
static void test_ends(void **state)
{
    (void)state;
    for (int with_call = 0; with_call < 2; with_call++) {
        static struct vocab v;
        struct mu_gguf *g;
        struct mu_tokenizer *t;
        struct mu_err err = MU_ERR_INIT;
        vocab_init(&v, "gpt2", "gpt-4o");
        byte_alphabet(&v);
        int end = token(&v, "<|end|>", 7, 3, 0), ret = token(&v, "<|return|>", 10, 3, 0);
        int plain = token(&v, "<|im_end|>", 10, 1, 0), call = with_call ? token(&v, "<|call|>", 8, 3, 0) : -1;
        int user = token(&v, "<|eot_id|>", 10, 4, 0), brackets = token(&v, "[EOS]", 5, 4, 0);
        assert_int_equal(vocab_open(&v, &g, &t, &err), MU_OK);
        assert_true(mu_tokenizer_is_end(t, user));
        assert_int_equal(mu_tokenizer_piece(t, user, false).len, 0);
        EXPECT(t, "<|eot_id|>", true, user);
        EXPECT(t, "[EOS]", false, brackets);
        assert_false(mu_tokenizer_is_end(t, brackets));
        assert_int_equal(mu_tokenizer_piece(t, brackets, false).len, 5);
        assert_int_equal(mu_tokenizer_is_end(t, end), !with_call);
        assert_true(mu_tokenizer_is_end(t, ret));
        assert_false(mu_tokenizer_is_end(t, plain));
        assert_int_equal(mu_tokenizer_is_end(t, call), with_call);
        mu_tokenizer_close(t);
        mu_gguf_close(g);
    }
}

/* Ids of two vocabularies mean the same, or the first that does not is named. */
static void test_match(void **state)
{
    (void)state;
    static struct vocab v[4];
    struct mu_gguf *g[4];
    struct mu_tokenizer *t[4];
    struct mu_err err = MU_ERR_INIT;
    for (int i = 0; i < 4; i++) {
        vocab_init(&v[i], "gpt2", "gpt-4o");
        byte_alphabet(&v[i]);
        token(&v[i], "ab", 2, 1, 0);
        token(&v[i], i == 2 ? "<|stop|>" : "<|end|>", i == 2 ? 8 : 7, 3,
              0); /* a control token says nothing, and differs */
        if (i == 1) token(&v[i], "[PAD]", 5, 1, 0);
        if (i == 3) v[i].tokens[256] = keep(&v[i], "a\x01", 2);
        if (i == 3) v[i].types[256] = 3;
        assert_int_equal(vocab_open(&v[i], &g[i], &t[i], &err), MU_OK);
    }
    assert_int_equal(mu_tokenizer_match(t[0], t[0], &err), MU_OK);
    assert_int_equal(mu_tokenizer_match(t[0], t[1], &err), MU_OK); /* padded */
    assert_int_equal(mu_tokenizer_match(t[1], t[0], &err), MU_OK);
    assert_int_equal(mu_tokenizer_match(t[0], t[2], &err), MU_EINVAL);
    assert_string_equal(err.text, "token 257 is '<|end|>' in one and '<|stop|>' in the other");
    assert_int_equal(mu_tokenizer_match(t[1], t[3], &err), MU_EINVAL);
    assert_string_equal(err.text, "token 256 is 'ab' in one and 'a?' in the other");
    for (int i = 0; i < 4; i++) {
        mu_tokenizer_close(t[i]);
        mu_gguf_close(g[i]);
    }
}

static void expect_whole(const struct mu_tokenizer *t, const char *text, size_t most, bool cut, const int32_t *want,
                         size_t n_want)
{
    struct mu_err err = MU_ERR_INIT;
    int32_t *ids = NULL;
    size_t n = 0;
    bool was_cut = !cut;
    assert_int_equal(mu_tokenizer_encode_whole(t, text, strlen(text), false, most, &ids, &n, &was_cut, &err), MU_OK);
    if (n != n_want || memcmp(ids, want, n * sizeof *ids))
        fail_msg("'%s', at most %zu, gives %s", text, most, show(ids, n));
    assert_int_equal(was_cut, cut);
    mu_free(ids);
}
#define EXPECT_WHOLE(t, text, most, cut, ...) \
    expect_whole(t, text, most, cut, (int32_t[]){__VA_ARGS__}, sizeof((int32_t[]){__VA_ARGS__}) / sizeof(int32_t))

/* Texts that are embedded: what goes around them, and that it stays when they are cut. */
static void test_whole(void **state)
{
    (void)state;
    static struct vocab v;
    for (int ends = 0; ends < 4; ends++) {
        struct mu_gguf *g;
        struct mu_tokenizer *t;
        struct mu_err err = MU_ERR_INIT;
        vocab_init(&v, "llama", NULL);
        byte_tokens(&v);
        int unk = token(&v, "<unk>", 5, 2, 0), bos = token(&v, "<s>", 3, 3, 0), eos = token(&v, "</s>", 4, 3, 0);
        int a = token(&v, "a", 1, 1, -8), b = token(&v, "b", 1, 1, -7);
        (void)unk;
        v.bos = bos;
        v.eos = eos;
        v.space_prefix = 0;
        v.add_bos = ends & 1;
        v.add_eos = ends & 2 ? 1 : -1; /* without the key: none */
        assert_int_equal(vocab_open(&v, &g, &t, &err), MU_OK);
        assert_int_equal(mu_tokenizer_add_eos(t), ends >> 1);
        switch (ends) {
        case 0:
            EXPECT_WHOLE(t, "abb", 0, false, a, b, b);
            EXPECT_WHOLE(t, "abb", 2, true, a, b);
            break;
        case 1: EXPECT_WHOLE(t, "abb", 3, true, bos, a, b); break;
        case 2: EXPECT_WHOLE(t, "abb", 0, false, a, b, b, eos); break;
        case 3:
            EXPECT_WHOLE(t, "abb", 5, false, bos, a, b, b, eos);
            EXPECT_WHOLE(t, "abb", 4, true, bos, a, b, eos);
            EXPECT_WHOLE(t, "", 0, false, bos, eos);
            for (long n = 1; n < 50; n++) {
                int32_t *ids = NULL;
                size_t n_ids = 0;
                mu_alloc_fail_at(n);
                enum mu_status st = mu_tokenizer_encode_whole(t, "abb", 3, false, 0, &ids, &n_ids, NULL, &err);
                bool all = mu_alloc_fail_at(0) < n;
                assert_int_equal(st, all ? MU_OK : MU_ENOMEM);
                mu_free(ids);
                if (all) break;
            }
        }
        mu_tokenizer_close(t);
        mu_gguf_close(g);
    }
}

/* NFC against utf8proc's own, which is slower and takes the square of a row of marks, on texts of what matters:
 * marks in and out of order, letters with and without them, Hangul, what is never composed, what comes apart and
 * is then up to three times as long. */
static void check_nfc(bool spm)
{
    static const char *const parts[] = {"a",
                                        "e",
                                        "\u00e9",
                                        "\u1e0b\u0323",
                                        "\u0301",
                                        "\u0323",
                                        "\u0327",
                                        "\u0345",
                                        "\u1100",
                                        "\u1161",
                                        "\u11a8",
                                        "\uac00",
                                        "\u212b",
                                        "\u2126",
                                        "\u0915\u093c",
                                        "\u0958",
                                        "\u0344",
                                        "\u0fb2\u0f71\u0f80",
                                        "\u4e2d",
                                        "\ufa0e",
                                        "\uf900",
                                        "\u00c5",
                                        "\U0001D15E",
                                        "\U0001D160",
                                        "\U0001F600",
                                        "\U000110a5\U000110ba",
                                        "\U0002F800",
                                        "\ufb01",
                                        "\u200d",
                                        " "};
    enum { N = sizeof parts / sizeof parts[0], TEXT = 64 };
    static struct vocab v;
    struct mu_gguf *g;
    struct mu_tokenizer *t;
    struct mu_err err = MU_ERR_INIT;
    vocab_init(&v, spm ? "llama" : "gpt2", spm ? NULL : "gpt-2");
    if (spm) {
        byte_tokens(&v);
        token(&v, "\u2581", 3, 1, -1);
    } else {
        byte_alphabet(&v);
    }
    v.nfc = 1;
    assert_int_equal(vocab_open(&v, &g, &t, &err), MU_OK);
    int n_changed = 0;
    for (int round = 0; round < 20000; round++) {
        char text[TEXT * 16] = "";
        size_t n_part = 1 + random_below(8), n, len;
        int32_t *ids;
        char *back;
        for (size_t i = 0; i < n_part; i++) strcat(text, parts[random_below(N)]);
        utf8proc_uint8_t *want = utf8proc_NFC((const utf8proc_uint8_t *)text);
        assert_non_null(want);
        assert_int_equal(mu_tokenizer_encode(t, text, strlen(text), false, &ids, &n, &err), MU_OK);
        assert_int_equal(mu_tokenizer_decode(t, ids, n, false, &back, &len, &err), MU_OK);
        if (strcmp(back, (const char *)want)) fail_msg("'%s' gives '%s', not '%s'", text, back, (const char *)want);
        n_changed += strcmp(back, text) != 0;
        free(want);
        mu_free(ids);
        mu_free(back);
    }
    assert_in_range(n_changed, 5000, 19000);
    /* Bytes that are no text stand, and are no neighbours. */
    static const char broken[] = "e\xCC\xCC\x81\x80\xCC\x81\xE1";
    int32_t *ids;
    size_t n, len;
    char *back;
    assert_int_equal(mu_tokenizer_encode(t, broken, sizeof broken - 1, false, &ids, &n, &err), MU_OK);
    assert_int_equal(mu_tokenizer_decode(t, ids, n, false, &back, &len, &err), MU_OK);
    assert_int_equal(len, sizeof broken - 1);
    assert_memory_equal(back, broken, len);
    mu_free(ids);
    mu_free(back);
    mu_tokenizer_close(t);
    mu_gguf_close(g);
}

static void test_nfc(void **state)
{
    (void)state;
    check_nfc(false);
    check_nfc(true);
}

static void test_small_bpe(void **state)
{
    (void)state;
    static struct vocab v;
    struct mu_gguf *g;
    struct mu_tokenizer *t;
    struct mu_err err = MU_ERR_INIT;
    vocab_init(&v, "gpt2", "llama-bpe");
    byte_alphabet(&v);
    int ab = token(&v, "ab", 2, 1, 0), bc = token(&v, "bc", 2, 1, 0), abc = token(&v, "abc", 3, 1, 0),
        whole = token(&v, "cba", 3, 1, 0);
    int sp_a = token(&v,
                     "\xC4\xA0"
                     "a",
                     3, 1, 0),
        bos = token(&v, "<s>", 3, 3, 0), twin = token(&v, "ab", 2, 1, 0);
    static const char *const merges[] = {"b c", "a b", "ab c", "\xC4\xA0 a", "a b", "q nowhere", "\xE2\x82\xAC a"};
    for (size_t i = 0; i < sizeof merges / sizeof merges[0]; i++)
        v.merges[v.n_merge++] = keep(&v, merges[i], strlen(merges[i]));
    v.bos = bos;
    assert_int_equal(vocab_open(&v, &g, &t, &err), MU_OK);
    assert_true(mu_tokenizer_add_bos(t)); /* what llama-bpe does without the key */
    (void)ab;
    EXPECT(t, "abx", false, twin, 'x');     /* of twins the last */
    EXPECT(t, "xabc", false, 'x', 'a', bc); /* "b c" was learnt before "a b" */
    EXPECT(t, "abc", false, abc);           /* a whole word is its token, whatever the merges */
    EXPECT(t, "cba", false, whole);
    EXPECT(t, "x ab", false, 'x', ' ', twin);
    EXPECT(t, "x ax", false, 'x', sp_a, 'x');
    EXPECT(t, "<s>", true, bos);
    EXPECT(t, "<s>", false, '<', 's', '>');
    EXPECT(t, "a\xFF\x80z", false, 'a', 0xFF, 0x80, 'z');
    EXPECT(t, "1234", false, '1', '2', '3', '4');
    int32_t ids[] = {'x', ' ', 0xC3, 0xA9, sp_a};
    char *text;
    size_t len;
    assert_int_equal(mu_tokenizer_decode(t, ids, 5, false, &text, &len, &err), MU_OK);
    assert_string_equal(text, "x \xC3\xA9 a");
    mu_free(text);
    mu_tokenizer_close(t);
    mu_gguf_close(g);
    v.pre = "qwen2";
    assert_int_equal(vocab_open(&v, &g, &t, &err), MU_OK);
    assert_false(mu_tokenizer_add_bos(t));
    EXPECT(t, "abc", false, 'a', bc);
    mu_tokenizer_close(t);
    mu_gguf_close(g);
}

static void refused(struct vocab *v, enum mu_status want, const char *word)
{
    struct mu_gguf *g;
    struct mu_tokenizer *t = NULL;
    struct mu_err err = MU_ERR_INIT;
    enum mu_status st = vocab_open(v, &g, &t, &err);
    if (st != want || !strstr(err.text, word))
        fail_msg("status %d, '%s', instead of %d and '%s'", st, err.text, want, word);
    assert_null(t);
    mu_gguf_close(g);
}

static void good_spm(struct vocab *v)
{
    vocab_init(v, "llama", NULL);
    byte_tokens(v);
    token(v, "a", 1, 1, -1);
}

static void good_bpe(struct vocab *v)
{
    vocab_init(v, "gpt2", "gpt-2");
    byte_alphabet(v);
    token(v, "ab", 2, 1, 0);
    v->merges[v->n_merge++] = keep(v, "a b", 3);
}

static void test_refusals(void **state)
{
    (void)state;
    static struct vocab v;
    static char big[8193];
    good_spm(&v), v.model = NULL, refused(&v, MU_EFORMAT, "tokenizer.ggml.model");
    good_spm(&v), v.model = "bert", refused(&v, MU_EUNSUPPORTED, "'bert'");
    good_bpe(&v), v.pre = "quantum-bpe", refused(&v, MU_EUNSUPPORTED, "'quantum-bpe'");
    good_bpe(&v), v.pre = "", refused(&v, MU_EUNSUPPORTED, "pre-tokenizer ''");
    good_bpe(&v), v.pre = "llama3 dbrx", refused(&v, MU_EUNSUPPORTED, "'llama3 dbrx'");
    good_spm(&v), v.n = 0, refused(&v, MU_EFORMAT, "tokenizer.ggml.tokens");
    good_spm(&v), v.no_scores = 1, refused(&v, MU_EFORMAT, "tokenizer.ggml.scores");
    good_spm(&v), v.short_scores = 1, refused(&v, MU_EFORMAT, "tokenizer.ggml.scores");
    good_spm(&v), v.short_types = 1, refused(&v, MU_EFORMAT, "tokenizer.ggml.token_type");
    good_spm(&v), v.types[3] = 7, refused(&v, MU_EFORMAT, "token 3 has type 7");
    good_spm(&v), v.types[3] = 0, refused(&v, MU_EFORMAT, "token 3 has type 0");
    good_spm(&v), v.types[256] = 6, refused(&v, MU_EFORMAT, "token 256 has type 6 (byte)");
    good_spm(&v), v.scores[9] = 0.0f / 0.0f, refused(&v, MU_EFORMAT, "score of token 9");
    good_spm(&v), v.bos = 257, refused(&v, MU_EFORMAT, "bos_token_id");
    good_bpe(&v), v.no_merges = 1, refused(&v, MU_EFORMAT, "tokenizer.ggml.merges");
    good_bpe(&v), v.merges[0] = (struct mu_str){"ab", 2}, refused(&v, MU_EFORMAT, "merge 0");
    good_bpe(&v), v.merges[0] = (struct mu_str){"ab ", 3}, refused(&v, MU_EFORMAT, "merge 0");
    good_bpe(&v), v.merges[0] = (struct mu_str){" ab", 3}, refused(&v, MU_EFORMAT, "merge 0");
    good_bpe(&v), v.merges[0] = (struct mu_str){"", 0}, refused(&v, MU_EFORMAT, "merge 0");
    memset(big, 'x', sizeof big);
    good_bpe(&v), v.tokens[256] = (struct mu_str){big, sizeof big}, refused(&v, MU_EFORMAT, "text of token 256");
}

/* What is odd but has a meaning: nothing of it may crash or give an id that is none. */
static void test_odd_vocabularies(void **state)
{
    (void)state;
    static struct vocab v;
    struct mu_gguf *g;
    struct mu_tokenizer *t;
    struct mu_err err = MU_ERR_INIT;
    static char big[8192];
    memset(big, '<', sizeof big);

    vocab_init(&v, "llama", NULL); /* no byte tokens, no unknown token: what has no token is left out */
    int a = token(&v, "a", 1, 1, 0);
    token(&v, "", 0, 1, 0), token(&v, "", 0, 3, 0), token(&v, "", 0, 4, 0), token(&v, "\xFF\xFE", 2, 1, 1),
        token(&v, "a", 1, 5, 2);
    v.no_types = 0;
    assert_int_equal(vocab_open(&v, &g, &t, &err), MU_OK);
    EXPECT(t, "ab\xF0\x9F\x99\x82", true, a);
    EXPECT(t, "\xFF\xFE", true, 4);
    assert_int_equal(mu_tokenizer_piece(t, 5, true).len, 0); /* unused */
    mu_tokenizer_close(t);
    mu_gguf_close(g);

    v.no_types = 1; /* types absent: all normal, and byte texts are bytes */
    int byte = token(&v, "<0x7a>", 6, 1, 0);
    assert_int_equal(vocab_open(&v, &g, &t, &err), MU_OK);
    EXPECT(t, "z", false, byte);
    mu_tokenizer_close(t);
    mu_gguf_close(g);

    good_bpe(&v); /* one special token of 8,192 times '<' against a text of 8,191 and of 8,193 */
    v.tokens[v.n] = (struct mu_str){big, sizeof big};
    v.types[v.n++] = 4;
    assert_int_equal(vocab_open(&v, &g, &t, &err), MU_OK);
    char text[8194];
    memset(text, '<', 8193);
    int32_t *ids;
    size_t n;
    assert_int_equal(mu_tokenizer_encode(t, text, 8191, false, &ids, &n, &err), MU_OK);
    assert_int_equal(n, 8191);
    mu_free(ids);
    assert_int_equal(mu_tokenizer_encode(t, text, 8193, false, &ids, &n, &err), MU_OK);
    assert_int_equal(n, 2);
    assert_int_equal(ids[0], v.n - 1);
    assert_int_equal(ids[1], '<');
    mu_free(ids);
    assert_int_equal(mu_tokenizer_encode(t, text, (size_t)1 << 40, false, &ids, &n, &err), MU_ELIMIT);
    mu_tokenizer_close(t);
    mu_gguf_close(g);
}

/* ---- the algorithm, plainly ---- */

struct part {
    const char *p;
    size_t len;
};

/* Joins the best pair (spm: highest score of the joined text, else lowest rank; leftmost of equals) until there is
 * none. */
static size_t plain_merge(const struct vocab *v, struct part *s, size_t n, bool spm)
{
    for (;;) {
        size_t best = SIZE_MAX;
        float best_key = 0;
        for (size_t i = 0; i + 1 < n; i++) {
            for (int k = 0; k < (spm ? v->n : v->n_merge); k++) {
                struct mu_str text = spm ? v->tokens[k] : v->merges[k];
                float key = spm ? v->scores[k] : (float)-k;
                bool match;
                if (spm) {
                    match =
                        v->types[k] == 1 && text.len == s[i].len + s[i + 1].len && !memcmp(text.p, s[i].p, text.len);
                } else {
                    match = text.len == s[i].len + s[i + 1].len + 1 && text.p[s[i].len] == ' ' &&
                            !memcmp(text.p, s[i].p, s[i].len) &&
                            !memcmp(text.p + s[i].len + 1, s[i + 1].p, s[i + 1].len);
                }
                if (match && (best == SIZE_MAX || key > best_key)) {
                    best = i;
                    best_key = key;
                }
            }
        }
        if (best == SIZE_MAX) return n;
        s[best].len += s[best + 1].len;
        memmove(&s[best + 1], &s[best + 2], (n - best - 2) * sizeof *s);
        n--;
    }
}

static void test_against_plain(void **state)
{
    (void)state;
    static struct vocab v;
    for (int round = 0; round < 60; round++) {
        bool spm = round & 1;
        struct mu_gguf *g;
        struct mu_tokenizer *t;
        struct mu_err err = MU_ERR_INIT;
        vocab_init(&v, spm ? "llama" : "gpt2", "gpt-2");
        v.space_prefix = 0;
        if (spm)
            byte_tokens(&v);
        else
            byte_alphabet(&v);
        int base = v.n;
        for (int c = 'a'; spm && c < 'e'; c++) token(&v, (char[]){(char)c}, 1, 1, -100);
        for (int i = 0; i < 40; i++) { /* tokens of two to six letters; for BPE each the join of two that exist */
            char text[16];
            size_t len = 0, left = 0;
            if (spm) {
                for (len = 0; len < 2 + random_below(5); len++) text[len] = (char)('a' + random_below(4));
            } else {
                int l = random_below(3) && i ? base + (int)random_below((unsigned)i) : 'a' + (int)random_below(4);
                int r = random_below(3) && i ? base + (int)random_below((unsigned)i) : 'a' + (int)random_below(4);
                if (v.tokens[l].len + v.tokens[r].len > 12) l = r = 'a';
                left = v.tokens[l].len;
                memcpy(text, v.tokens[l].p, left);
                memcpy(text + left, v.tokens[r].p, v.tokens[r].len);
                len = left + v.tokens[r].len;
                char merge[20];
                memcpy(merge, text, left);
                merge[left] = ' ';
                memcpy(merge + left + 1, text + left, len - left);
                v.merges[v.n_merge++] = keep(&v, merge, len + 1);
            }
            bool twin = false; /* of twins the last one's score would count */
            for (int k = 0; spm && k < v.n; k++) twin |= v.tokens[k].len == len && !memcmp(v.tokens[k].p, text, len);
            if (!twin) token(&v, text, len, 1, (float)-(int)random_below(20)); /* many ties */
        }
        assert_int_equal(vocab_open(&v, &g, &t, &err), MU_OK);
        for (int k = 0; k < 12; k++) {
            char text[400];
            struct part parts[400];
            size_t n = 1 + random_below(k < 6 ? 30 : 399), n_ids;
            unsigned letters = 1 + random_below(5); /* with five, 'e' stands in no token of SentencePiece's: a cut */
            int32_t *ids;
            for (size_t i = 0; i < n; i++) {
                text[i] = (char)('a' + random_below(letters));
                parts[i] = (struct part){text + i, 1};
            }
            size_t want = plain_merge(&v, parts, n, spm);
            assert_int_equal(mu_tokenizer_encode(t, text, n, false, &ids, &n_ids, &err), MU_OK);
            assert_int_equal(n_ids, want);
            for (size_t i = 0; i < want; i++) {
                struct mu_str piece = mu_tokenizer_piece(t, ids[i], false);
                if (piece.len != parts[i].len || memcmp(piece.p, parts[i].p, piece.len)) {
                    fail_msg("round %d, text %.*s: part %zu is '%.*s', not '%.*s'", round, (int)n, text, i,
                             (int)piece.len, piece.p, (int)parts[i].len, parts[i].p);
                }
            }
            mu_free(ids);
        }
        mu_tokenizer_close(t);
        mu_gguf_close(g);
    }
}

static void test_allocations(void **state)
{
    (void)state;
    static struct vocab v;
    char text[2000];
    for (size_t i = 0; i < sizeof text; i++) text[i] = i % 7 ? (char)('a' + i % 3) : ' ';
    memcpy(text + 400, "\xE2\x96\x81", 3);
    memset(text + 1000, 'a', 500);
    for (int kind = 0; kind < 2; kind++) {
        if (kind)
            good_bpe(&v);
        else
            good_spm(&v);
        if (!kind) token(&v, "aa", 2, 1, 0);
        struct mu_gguf *g;
        struct mu_tokenizer *t;
        struct mu_err err = MU_ERR_INIT;
        assert_int_equal(vocab_open(&v, &g, &t, &err), MU_OK);
        mu_tokenizer_close(t);
        int failed = 0, harmless = 0; /* without memory for JIT code the patterns are interpreted */
        size_t want = 0;
        for (long n = 0;; n++) {
            int32_t *ids = NULL;
            size_t n_ids = 0, len = 0;
            char *back = NULL;
            t = NULL;
            mu_alloc_fail_at(n); /* 0: none */
            enum mu_status st = mu_tokenizer_open(g, &t, &err);
            if (st == MU_OK) st = mu_tokenizer_encode(t, text, sizeof text, true, &ids, &n_ids, &err);
            if (st == MU_OK) st = mu_tokenizer_decode(t, ids, n_ids, true, &back, &len, &err);
            long made = mu_alloc_fail_at(0);
            if (n == 0) want = n_ids;
            if (st == MU_OK)
                assert_int_equal(n_ids, want);
            else
                assert_int_equal(st, MU_ENOMEM);
            mu_free(back);
            mu_free(ids);
            mu_tokenizer_close(t);
            if (n > made) break;
            failed += st == MU_ENOMEM;
            harmless += n && st == MU_OK;
        }
        print_message("%s: %d allocations failed in turn, %d without harm\n", kind ? "gpt2" : "llama", failed,
                      harmless);
        assert_true(failed > 15);
        assert_in_range(harmless, 0, 16);
        mu_gguf_close(g);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small_spm),
        cmocka_unit_test(test_small_bpe),
        cmocka_unit_test(test_small_gemma4),
        cmocka_unit_test(test_whole),
        cmocka_unit_test(test_nfc),
        cmocka_unit_test(test_ends),
        cmocka_unit_test(test_match),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_odd_vocabularies),
        cmocka_unit_test(test_against_plain),
        cmocka_unit_test(test_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
