/* Tokenizers against the fixtures: golden ids of every vocabulary, texts that are long or broken, several threads;
 * and the words that the pre-tokenizers cut. */
#include <pthread.h>

#include "model/pretokenizer.h"
#include "tests/model/tok_fixture.h"

/* ---- goldens ---- */

struct golden {
    const struct mu_tokenizer *t;
    const char *name;
    int alternatives;
};

static bool same_ids(const json_t *want, const int32_t *ids, size_t n)
{
    if (!want || json_array_size(want) != n) return false;
    for (size_t i = 0; i < n; i++) {
        if (json_integer_value(json_array_get(want, i)) != ids[i]) return false;
    }
    return true;
}

static bool same_text(const json_t *want, const char *text, size_t len)
{
    return json_string_length(want) == len && !memcmp(json_string_value(want), text, len);
}

static void one_golden(const json_t *j, void *ctx)
{
    struct golden *c = ctx;
    struct mu_err err = MU_ERR_INIT;
    const json_t *text = json_object_get(j, "text");
    int32_t *ids;
    size_t n, len;
    char *back;
    assert_int_equal(mu_tokenizer_encode(c->t, json_string_value(text), json_string_length(text),
                                         json_is_true(json_object_get(j, "special")), &ids, &n, &err),
                     MU_OK);
    bool alternative = false;
    if (!same_ids(json_object_get(j, "ids"), ids, n)) {
        alternative = same_ids(json_object_get(j, "llama_cpp"), ids, n);
        if (!alternative) {
            char *want = json_dumps(json_object_get(j, "ids"), 0);
            fail_msg("%s: '%s' (special %d)\n gives %s\n   not %s", c->name, json_string_value(text),
                     json_is_true(json_object_get(j, "special")), show(ids, n), want);
        }
        c->alternatives++;
    }
    /* `decoded` is the reference's text where it differs; the text itself is never wrong, unless normalised away. */
    const json_t *decoded = json_object_get(j, "decoded");
    assert_int_equal(mu_tokenizer_decode(c->t, ids, n, true, &back, &len, &err), MU_OK);
    if (!same_text(text, back, len) && !(decoded && same_text(decoded, back, len)) && !alternative) {
        fail_msg("%s: ids of '%s' decode to '%s'", c->name, json_string_value(text), back);
    }
    mu_free(back);
    mu_free(ids);
}

static void one_invalid(const json_t *j, void *ctx)
{
    struct golden *c = ctx;
    struct mu_err err = MU_ERR_INIT;
    char bytes[1024], *back;
    size_t len = tok_unhex(json_string_value(json_object_get(j, "hex")), bytes), n, back_len;
    int32_t *ids;
    assert_int_equal(mu_tokenizer_encode(c->t, bytes, len, true, &ids, &n, &err), MU_OK);
    for (size_t i = 0; i < n; i++) assert_in_range(ids[i], 0, mu_tokenizer_n_vocab(c->t) - 1);
    assert_int_equal(mu_tokenizer_decode(c->t, ids, n, true, &back, &back_len, &err), MU_OK);
    bool lossless = true; /* but where the vocabulary has no token for such a byte */
    static const char *const without[] = {"falcon", "mpt", "starcoder", "deepseek-llm"};
    for (size_t i = 0; i < 4; i++) lossless &= strstr(c->name, without[i]) == NULL;
    if (lossless) {
        assert_int_equal(back_len, len);
        assert_memory_equal(back, bytes, len);
    }
    mu_free(back);
    mu_free(ids);
}

static void check_inp_out(const struct golden *c, const char *gguf)
{
    char path[4200];
    size_t inp_len = 0, out_len = 0;
    int n = 0;
    static const char sep[] = "\n__ggml_vocab_test__\n";
    snprintf(path, sizeof path, "%s.inp", gguf);
    char *inp = tok_read_file(path, &inp_len);
    snprintf(path, sizeof path, "%s.out", gguf);
    char *out = tok_read_file(path, &out_len);
    for (char *p = inp, *line = out; p && line; n++) {
        char *end = strstr(p, sep), *text_end = end ? end : inp + inp_len;
        char *line_end = strchr(line, '\n');
        if (!end && text_end == p) break;
        assert_non_null(line_end);
        struct mu_err err = MU_ERR_INIT;
        int32_t *ids;
        size_t n_ids, i = 0;
        assert_int_equal(mu_tokenizer_encode(c->t, p, (size_t)(text_end - p), false, &ids, &n_ids, &err), MU_OK);
        for (char *q = line, *stop; q < line_end; q = stop, i++) {
            long want = strtol(q, &stop, 10);
            if (stop == q || stop > line_end) break;
            if (i >= n_ids || ids[i] != want) {
                fail_msg("%s: text %d '%.*s': id %zu is not %ld: %s", path, n, (int)(text_end - p), p, i, want,
                         show(ids, n_ids));
            }
        }
        assert_int_equal(i, n_ids);
        mu_free(ids);
        line = line_end + 1;
        p = end ? end + sizeof sep - 1 : NULL;
    }
    if (inp) assert_in_range(n, 40, 60);
    free(inp);
    free(out);
}

/* Where llama.cpp's ids are met and not the reference's: what a GGUF does not say (whether an added token is special
 * in the original; NFC in an old file), and Gemma's runs of more than 31 spaces and U+2581 in a text. */
static int expected_alternatives(const char *name)
{
    static const struct {
        const char *name;
        int n;
    } table[] = {{"gemma", 2}, {"gemma3", 1}, {"mpt", 3}, {"qwen2", 1}, {"tiny-phi3", 2}, {"tiny-gemma2", 2}};
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        if (!strcmp(name, table[i].name)) return table[i].n;
    }
    return 0;
}

static void test_goldens(void **state)
{
    (void)state;
    for (int i = 0; i < TOK_N; i++) {
        char gguf[4096], stem[4096], path[4200];
        struct mu_gguf *g;
        tok_paths(i, gguf, stem, sizeof gguf);
        double start = tok_now();
        struct mu_tokenizer *t = tok_open(gguf, &g);
        double ms = 1e3 * (tok_now() - start);
        struct golden c = {t, strrchr(stem, '/') + 1, 0};
        snprintf(path, sizeof path, "%s.jsonl", stem);
        int n = tok_each_line(path, one_golden, &c);
        assert_true(n > 90);
        snprintf(path, sizeof path, "%s.invalid.jsonl", stem);
        int invalid = tok_each_line(path, one_invalid, &c);
        assert_int_equal(invalid, i < TOK_N_REAL ? 12 : 0);
        check_inp_out(&c, gguf);
        print_message("%-14s %d texts (%d by the listed alternative), %d invalid; opened in %.0f ms\n", c.name, n,
                      c.alternatives, invalid, ms);
        assert_int_equal(c.alternatives, expected_alternatives(c.name));
        mu_tokenizer_close(t);
        mu_gguf_close(g);
    }
}

/* The prompts of the models' goldens: BOS, where the file asks for it, and the text's ids. */
static void test_prompts(void **state)
{
    (void)state;
    static const char *const models[] = {"falcon40b",     "falcon7b", "gemma",    "gemma2",     "gemma3", "llama2",
                                         "llama3",        "mistral",  "mixtral",  "phi2",       "phi3",   "qwen2",
                                         "phi3-longrope", "qwen3",    "qwen3moe", "stories260K"};
    int checked = 0;
    for (size_t i = 0; i < sizeof models / sizeof models[0]; i++) {
        char path[4096];
        json_error_t je;
        struct mu_gguf *g;
        struct mu_err err = MU_ERR_INIT;
        snprintf(path, sizeof path, "%s/goldens/%s.json", fixtures_dir(), models[i]);
        json_t *golden = json_load_file(path, 0, &je), *prompt;
        if (!golden) fail_msg("%s: %s", path, je.text);
        snprintf(path, sizeof path, "%s/%s", fixtures_dir(), json_string_value(json_object_get(golden, "gguf")));
        struct mu_tokenizer *t = tok_open(path, &g);
        bool has_bos = json_is_integer(json_object_get(golden, "bos_id"));
        assert_int_equal(mu_tokenizer_add_bos(t), has_bos);
        if (has_bos) assert_int_equal(mu_tokenizer_bos(t), json_integer_value(json_object_get(golden, "bos_id")));
        size_t k;
        json_array_foreach(json_object_get(golden, "prompts"), k, prompt)
        {
            const json_t *text = json_object_get(prompt, "text"), *want = json_object_get(prompt, "ids");
            int32_t *ids;
            size_t n;
            if (k == 0) continue; /* one token, of which the text need not say which */
            assert_int_equal(
                mu_tokenizer_encode(t, json_string_value(text), json_string_length(text), false, &ids, &n, &err),
                MU_OK);
            json_t *rest = json_deep_copy(want);
            if (has_bos) json_array_remove(rest, 0);
            if (!same_ids(rest, ids, n))
                fail_msg("%s: '%s' gives %s", models[i], json_string_value(text), show(ids, n));
            checked++;
            json_decref(rest);
            mu_free(ids);
        }
        json_decref(golden);
        mu_tokenizer_close(t);
        mu_gguf_close(g);
    }
    print_message("%d prompts\n", checked);
}

static void test_properties(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int bos, eos;
        bool add_bos;
        int end, no_end; /* another id that ends; one that does not */
    } want[] = {
        {"llama-spm", 1, 2, true, 2, 1},
        {"phi-3", 1, 32000, true, 32007, 2},
        {"gemma", 2, 1, true, 107, 106},
        {"gemma3", 2, 1, true, 106, 105},
        {"falcon", 11, 11, false, 11, 0},
        {"gpt-2", 50256, 50256, false, 50256, 0},
        {"deepseek-llm", 100000, 100001, true, 100001, 100000},
        {"mpt", 0, 0, false, 0, 1},
        {"starcoder", 0, 0, false, 0, 1},
        {"llama-bpe", 128000, 128001, true, 128009, 128000},
        {"qwen2", -1, 151645, false, 151643, 151644},
    };
    for (size_t i = 0; i < sizeof want / sizeof want[0]; i++) {
        char path[4096];
        struct mu_gguf *g;
        snprintf(path, sizeof path, "%s/tokenizers/%s.gguf", fixtures_dir(), want[i].name);
        struct mu_tokenizer *t = tok_open(path, &g);
        print_message("%s\n", want[i].name);
        assert_int_equal(mu_tokenizer_bos(t), want[i].bos);
        assert_int_equal(mu_tokenizer_eos(t), want[i].eos);
        assert_int_equal(mu_tokenizer_add_bos(t), want[i].add_bos);
        assert_true(mu_tokenizer_is_end(t, want[i].eos));
        assert_true(mu_tokenizer_is_end(t, want[i].end));
        assert_false(mu_tokenizer_is_end(t, want[i].no_end));
        assert_false(mu_tokenizer_is_end(t, -1));
        mu_tokenizer_close(t);
        mu_gguf_close(g);
    }
}

/* ---- the pre-tokenizers ---- */

struct words {
    char text[256];
    const char *next; /* where the next word must begin */
};

static enum mu_status collect(void *ctx, const char *word, size_t len, struct mu_err *err)
{
    struct words *w = ctx;
    (void)err;
    assert_ptr_equal(word, w->next);
    assert_true(len > 0);
    w->next = word + len;
    snprintf(w->text + strlen(w->text), sizeof w->text - strlen(w->text), "%.*s|", (int)len, word);
    return MU_OK;
}

/* Every name of the list opens, and cuts a text into words without a gap. */
static void test_all_pretokenizers(void **state)
{
    (void)state;
    static const char text[] = "\u0301a A1\u0661 \u3000'll\r\n\u4e2d\u3007\U0001F600  ";
    int n_name = 0;
    for (int i = 0; mu_pretokenizer_names(i); i++) {
        for (const char *name = mu_pretokenizer_names(i); *name; n_name++) {
            size_t n = strcspn(name, " ");
            struct mu_err err = MU_ERR_INIT;
            struct mu_pre *pre;
            struct mu_pre_run *run;
            struct words w = {.next = text};
            if (mu_pre_open((struct mu_str){name, n}, &pre, &err) != MU_OK) fail_msg("%s", err.text);
            assert_int_equal(mu_pre_run_open(pre, &run, &err), MU_OK);
            assert_int_equal(mu_pre_cut(run, text, sizeof text - 1, collect, &w, &err), MU_OK);
            assert_ptr_equal(w.next, text + sizeof text - 1);
            mu_pre_run_close(run);
            mu_pre_close(pre);
            name += n + (name[n] == ' ');
        }
    }
    assert_true(n_name > 50);
    assert_null(mu_pretokenizer_names(-1));
}

static enum mu_status ignore(void *ctx, const char *word, size_t len, struct mu_err *err)
{
    (void)ctx, (void)word, (void)len, (void)err;
    return MU_OK;
}

static double cut_seconds(const struct mu_pre *pre, const char *text, size_t n)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_pre_run *run;
    struct timespec a, b;
    assert_int_equal(mu_pre_run_open(pre, &run, &err), MU_OK);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a);
    assert_int_equal(mu_pre_cut(run, text, n, ignore, NULL, &err), MU_OK);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &b);
    mu_pre_run_close(run);
    return (double)(b.tv_sec - a.tv_sec) + 1e-9 * (double)(b.tv_nsec - a.tv_nsec);
}

/* Eight times the text takes about eight times as long, of whatever it is made; the square would be 64 times. */
static void test_linear(void **state)
{
    (void)state;
    static const char *const units[] = {" ", "a", "A", "\u00e9", "\u0301", "\u4e2d", "7", "\n", "'", "/"};
    enum { N = 1 << 18 };
    char *text = malloc(N);
    for (int i = 0; mu_pretokenizer_names(i); i++) {
        struct mu_err err = MU_ERR_INIT;
        struct mu_pre *pre;
        struct mu_str name = {mu_pretokenizer_names(i), strcspn(mu_pretokenizer_names(i), " ")};
        assert_int_equal(mu_pre_open(name, &pre, &err), MU_OK);
        for (size_t u = 0; u < sizeof units / sizeof units[0]; u++) {
            size_t len = strlen(units[u]), n = N / 8 / len * len;
            for (size_t k = 0; k < 8 * n; k++) text[k] = units[u][k % len];
            double small = cut_seconds(pre, text, n), large = cut_seconds(pre, text, 8 * n);
            if (!(large <= 24 * small + 0.1))
                fail_msg("%.*s, '%s': %.3f s, and %.3f s for 8 times the text", (int)name.len, name.p, units[u], small,
                         large);
        }
        mu_pre_close(pre);
    }
    free(text);
}

/* A pattern from a file must not take for ever: (a+)+b on a row of a's takes 2^n steps. */
static void test_foreign_patterns(void **state)
{
    (void)state;
    static const struct mu_str bad = {"(?:a+)+b|(?:a|aa)+c", 19}, broken = {"(a", 2};
    struct mu_err err = MU_ERR_INIT;
    struct mu_pre *pre = NULL;
    struct mu_pre_run *run;
    char text[4097];
    struct words w = {.next = text};
    memset(text, 'a', sizeof text);
    text[4096] = 'x';
    assert_int_equal(mu_pre_open_patterns(&bad, 1, &pre, &err), MU_OK);
    assert_int_equal(mu_pre_run_open(pre, &run, &err), MU_OK);
    double start = tok_now();
    assert_int_equal(mu_pre_cut(run, text, sizeof text, collect, &w, &err), MU_ELIMIT);
    assert_true(tok_now() - start < 30);
    mu_pre_run_close(run);
    mu_pre_close(pre);
    pre = NULL;
    assert_int_equal(mu_pre_open_patterns(&broken, 1, &pre, &err), MU_EUNSUPPORTED);
    assert_null(pre);
}

static void test_pretokenizers(void **state)
{
    (void)state;
    static const char text[] = "I'LL see 1234 \u00e9t\u00e9s,  fooBar!!\n\n x=\u4e2d\u6587  ";
    static const struct {
        const char *names, *words;
    } want[] = {
        {"llama3 llama-v3 llama-bpe falcon3 pixtral lfm2 dbrx smaug-bpe glm4 chatglm-bpe",
         "I|'LL| see| |123|4| \u00e9t\u00e9s|,| | fooBar|!!\n\n| x|=\u4e2d\u6587|  |"},
        {"qwen2 deepseek-r1-qwen stablelm2 hunyuan qwen35",
         "I|'LL| see| |1|2|3|4| \u00e9t\u00e9s|,| | fooBar|!!\n\n| x|=\u4e2d\u6587|  |"},
        {"gpt-2 phi-2 mpt olmo", "I|'|LL| see| 1234| \u00e9t\u00e9s|,| | fooBar|!!|\n\n| x|=|\u4e2d\u6587|  |"},
        {"starcoder refact command-r smollm",
         "I|'|LL| see| |1|2|3|4| \u00e9t\u00e9s|,| | fooBar|!!|\n\n| x|=|\u4e2d\u6587|  |"},
        {"falcon", "I|'|LL| see| |123|4| \u00e9t\u00e9s|,| | fooBar|!!|\n\n| x|=|\u4e2d\u6587|  |"},
        {"default", "I|'|LL| see| |123|4| \u00e9t\u00e9s|,| | fooBar|!!|\n\n| x|=|\u4e2d\u6587|  |"},
        {"deepseek-llm", "I|'|LL| see| |1234| \u00e9|t|\u00e9|s|,| | fooBar|!!|\n|\n| x|=|\u4e2d\u6587|  |"},
        {"deepseek-coder", "I|'|LL| see| |1|2|3|4| \u00e9t\u00e9s|,| | fooBar|!!|\n|\n| x|=|\u4e2d\u6587|  |"},
        {"deepseek-v3", "I|'LL| see| |123|4| \u00e9t\u00e9s|,| | fooBar|!!\n\n| x|=|\u4e2d\u6587|  |"},
        {"gpt-4o llama4", "I'LL| see| |123|4| \u00e9t\u00e9s|,| | foo|Bar|!!\n\n| x|=\u4e2d\u6587|  |"},
        {"tekken", "I|'LL| see| |1|2|3|4| \u00e9t\u00e9s|,| | foo|Bar|!!\n\n| x|=\u4e2d\u6587|  |"},
        {"kimi-k2", "I'LL| see| |123|4| \u00e9t\u00e9s|,| | foo|Bar|!!\n\n| x|=|\u4e2d\u6587|  |"},
        {"bloom poro-chat gpt3-finnish", "I'LL| see| 1234| \u00e9t\u00e9s|, | fooBar|!!\n\n| x=\u4e2d\u6587|  |"},
        {"viking", "I'LL| see| |1|2|3|4| \u00e9t\u00e9s|, | fooBar|!!\n\n| x=\u4e2d\u6587|  |"},
        {"bailingmoe", "I|'LL| see| |1|2|3|4| \u00e9t\u00e9s|,| | fooBar|!!\n\n| x|=\u4e2d\u6587|  |"},
        {"exaone-moe", "I|'LL| see| |1|2|3|4| \u00e9t\u00e9s|,| | fooBar|!!\n|\n| x|=\u4e2d\u6587|  |"},
        {"superbpe", "I'LL see |1|234| \u00e9t\u00e9s,  fooBar!!\n\n x=\u4e2d\u6587  |"},
        {"jais-2 minicpm5", "I|'LL| see| |123|4| \u00e9t\u00e9s|,| | fooBar|!!\n\n| x|=\u4e2d\u6587|  |"},
        {"seed-coder", "I|'LL| see| |1|2|3|4| \u00e9t\u00e9s|,| | fooBar|!!|\n\n| x|=\u4e2d\u6587|  |"},
    };
    for (size_t i = 0; i < sizeof want / sizeof want[0]; i++) {
        for (const char *name = want[i].names; *name;) {
            size_t n = strcspn(name, " ");
            struct mu_err err = MU_ERR_INIT;
            struct mu_pre *pre;
            struct mu_pre_run *run;
            struct words w = {.next = text};
            if (mu_pre_open((struct mu_str){name, n}, &pre, &err) != MU_OK) fail_msg("%s", err.text);
            assert_int_equal(mu_pre_run_open(pre, &run, &err), MU_OK);
            assert_int_equal(mu_pre_cut(run, text, sizeof text - 1, collect, &w, &err), MU_OK);
            assert_ptr_equal(w.next, text + sizeof text - 1);
            if (strcmp(w.text, want[i].words))
                fail_msg("%.*s: '%s' instead of '%s'", (int)n, name, w.text, want[i].words);
            mu_pre_run_close(run);
            mu_pre_close(pre);
            name += n + (name[n] == ' ');
        }
    }
}

/* ---- threads, long texts ---- */

struct worker {
    const struct mu_tokenizer *t;
    const char *text;
    size_t len, n_ids;
    int32_t *ids;
};

static void *work(void *arg)
{
    struct worker *w = arg;
    struct mu_err err = MU_ERR_INIT;
    if (mu_tokenizer_encode(w->t, w->text, w->len, true, &w->ids, &w->n_ids, &err) != MU_OK) w->n_ids = SIZE_MAX;
    return NULL;
}

static const char ENGLISH[] = "It was the best of times, it was the worst of times, it was the age of wisdom, it was "
                              "the age of foolishness, it was the epoch "
                              "of belief, it was the epoch of incredulity, it was the season of Light, it was the "
                              "season of Darkness, it was the spring of "
                              "hope, it was the winter of despair; we had everything before us, we had nothing before "
                              "us.\nThere were a king with a large jaw "
                              "and a queen with a plain face, on the throne of England; in 1775, the 3rd year, they "
                              "weren't sure of the Woodman's \"business\".\n\n";

/* Texts of n bytes: English that does not repeat exactly, and the ones that ruin a quadratic tokenizer. */
static void fill(char *text, size_t n, int kind)
{
    static const char *const emoji = "\xF0\x9F\x99\x82";
    const char *words[128];
    size_t lens[128], n_word = 0;
    for (const char *p = ENGLISH; *p && n_word < 128;) {
        size_t len = 1 + strcspn(p + 1, " ");
        words[n_word] = p;
        lens[n_word++] = len;
        p += len;
    }
    for (size_t i = 0; i < n;) {
        size_t left = n - i;
        switch (kind) {
        case 0: { /* words of the text in random order, a made-up one now and then */
            char made[16] = " ";
            size_t w = random_below((unsigned)n_word), len = lens[w];
            const char *p = words[w];
            if (random_below(6) == 0) {
                len = 3 + random_below(8);
                for (size_t k = 1; k < len; k++) made[k] = (char)('a' + random_below(26));
                p = made;
            }
            memcpy(text + i, p, len < left ? len : left);
            i += len;
            break;
        }
        case 1: text[i++] = 'a'; break;
        case 2: text[i++] = ' '; break;
        case 3: memcpy(text + i, emoji, left < 4 ? left : 4), i += 4; break;
        case 4: text[i++] = (char)random_below(256); break;
        case 5: text[i++] = '<'; break;
        case 6: text[i++] = '\n'; break;
        case 7: text[i++] = "ab"[random_below(2)]; break;
        case 8:
            text[i] = i + 3 < n ? ' ' : "\xE4\xB8\xAD"[i + 3 - n], i++;
            break; /* spaces, then one Chinese character */
        case 9: memcpy(text + i, "\xE2\x96\x81", left < 3 ? left : 3), i += 3; break;
        default: text[i++] = "A1"[kind - 10]; break;
        }
    }
}

static void test_long_texts(void **state)
{
    (void)state;
    fixtures_dir();
    static const char *const kinds[] = {"English",  "aaa",  "spaces",   "emoji",  "random", "<<<",
                                        "newlines", "abba", "  \u4e2d", "\u2581", "AAA",    "111"};
#ifdef __SANITIZE_ADDRESS__
    enum { N = 1 << 16 };
#else
    enum { N = 1 << 20 };
#endif
    char *text = malloc(N);
    print_message("%-14s", "MB/s");
    for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++) print_message(" %8s", kinds[k]);
    print_message("\n");
    for (int i = 0; i < TOK_N_REAL; i++) {
        char gguf[4096], stem[4096], *back;
        struct mu_gguf *g;
        struct mu_err err = MU_ERR_INIT;
        tok_paths(i, gguf, stem, sizeof gguf);
        struct mu_tokenizer *t = tok_open(gguf, &g);
        print_message("%-14s", TOK_REAL[i]);
        for (int k = 0; k < (int)(sizeof kinds / sizeof kinds[0]); k++) {
            int32_t *ids;
            size_t n, len;
            fill(text, N, k);
            double start = tok_now();
            assert_int_equal(mu_tokenizer_encode(t, text, N, true, &ids, &n, &err), MU_OK);
            print_message(" %8.2f", N / 1e6 / (tok_now() - start));
            assert_int_equal(mu_tokenizer_decode(t, ids, n, true, &back, &len, &err), MU_OK);
            if (k != 4 && k != 9) { /* all valid, none of it rewritten */
                assert_int_equal(len, N);
                assert_memory_equal(back, text, N);
            }
            mu_free(back);
            mu_free(ids);
        }
        print_message("\n");
        if (i == 0 || i == 9) {
            struct worker w[2] = {{.t = t, .text = text, .len = N / 8}, {.t = t, .text = text, .len = N / 8}};
            pthread_t th[2];
            fill(text, N, 0);
            for (int k = 0; k < 2; k++) assert_int_equal(pthread_create(&th[k], NULL, work, &w[k]), 0);
            for (int k = 0; k < 2; k++) pthread_join(th[k], NULL);
            assert_int_equal(w[0].n_ids, w[1].n_ids);
            assert_memory_equal(w[0].ids, w[1].ids, w[0].n_ids * sizeof(int32_t));
            mu_free(w[0].ids);
            mu_free(w[1].ids);
        }
        mu_tokenizer_close(t);
        mu_gguf_close(g);
    }
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_goldens),
        cmocka_unit_test(test_prompts),
        cmocka_unit_test(test_properties),
        cmocka_unit_test(test_pretokenizers),
        cmocka_unit_test(test_all_pretokenizers),
        cmocka_unit_test(test_foreign_patterns),
        cmocka_unit_test(test_linear),
        cmocka_unit_test(test_long_texts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
