/* Masks over real vocabularies: each is compared with what feeding every token's bytes to the automaton says, and random
 * walks along them must end in texts of the language: JSON that jansson reads and that satisfies its schema. */
#include <limits.h>

#include "tests/model/grammar_util.h"
#include "tests/model/schema_check.h"

enum { TEXTS_MAX = 24, WALK_MAX = 600, TEXT_MAX = 1 << 16 };

struct language {
    enum mu_constraint_kind kind;
    const char *text, *in[TEXTS_MAX], *out[TEXTS_MAX];
};

#define G MU_CONSTRAINT_GBNF
#define R MU_CONSTRAINT_REGEX
#define S MU_CONSTRAINT_JSON_SCHEMA

static const struct language LANGUAGES[] = {
#include "tests/model/grammar_cases.inc"
#include "tests/model/grammar_larger.inc"
};
enum { N_LANGUAGE = sizeof LANGUAGES / sizeof *LANGUAGES };

struct vocab {
    const char *name;
    struct mu_gguf *gguf;
    struct mu_tokenizer *tok;
    struct mu_constraint_vocab *v;
    int n;
    uint32_t *mask, *other;
};

static bool open_vocab(struct vocab *x, const char *name)
{
    char path[4096];
    struct mu_err err = MU_ERR_INIT;
    snprintf(path, sizeof path, "%s/tokenizers/%s.gguf", fixtures_dir(), name);
    x->name = name;
    x->tok = tok_open(path, &x->gguf);
    x->n = mu_tokenizer_n_vocab(x->tok);
    assert_int_equal(mu_constraint_vocab_create(x->tok, &x->v, &err), MU_OK);
    x->mask = malloc(mu_constraint_mask_words(x->v) * 4);
    x->other = malloc(mu_constraint_mask_words(x->v) * 4);
    return true;
}

static void close_vocab(struct vocab *x)
{
    free(x->mask);
    free(x->other);
    mu_constraint_vocab_free(x->v);
    mu_tokenizer_close(x->tok);
    mu_gguf_close(x->gguf);
}

static bool allowed(const uint32_t *mask, int id)
{
    return mask[id / 32] >> (id % 32) & 1;
}

/* What a mask should be behind `text`: nothing of the masker is used. */
static void check_mask(const struct vocab *x, const struct mu_grammar *g, const char *text, size_t len)
{
    struct mu_states s;
    struct mu_err err = MU_ERR_INIT;
    assert_int_equal(mu_states_open(&s, g, &err), MU_OK);
    uint32_t begin = mu_states_start(&s);
    for (size_t i = 0; i < len; i++) begin = mu_states_next(&s, begin, (uint8_t)text[i]);
    assert_int_not_equal(begin, MU_STATE_DEAD);
    for (int id = 0; id < x->n; id++) {
        struct mu_str piece = mu_tokenizer_piece(x->tok, id, false);
        bool want = piece.len > 0;
        uint32_t state = begin;
        for (size_t i = 0; i < piece.len && state != MU_STATE_DEAD; i++)
            state = mu_states_next(&s, state, (uint8_t)piece.p[i]);
        want &= state != MU_STATE_DEAD;
        if (mu_tokenizer_is_end(x->tok, id)) want = s.states[begin].accepts;
        if (allowed(x->mask, id) != want) {
            fail_msg("%s: id %d ('%.*s') %s behind '%.*s'", x->name, id, (int)piece.len, piece.p,
                     want ? "should be allowed" : "should not be allowed", (int)len, text);
        }
    }
    for (int id = x->n; id % 32; id++) assert_false(allowed(x->mask, id));
    mu_states_close(&s);
}

/* One of the allowed ids: any, or, where the text shall end, one of the first that close something. -1: none. */
static int pick(const struct vocab *x, bool end)
{
    int chosen = -1, closing = -1;
    unsigned n = 0, n_closing = 0;
    for (int id = 0; id < x->n; id++) {
        if (!allowed(x->mask, id)) continue;
        struct mu_str piece = mu_tokenizer_piece(x->tok, id, false);
        if (random_below(++n) == 0) chosen = id;
        bool closes = mu_tokenizer_is_end(x->tok, id) || (piece.len == 1 && strchr("\"}]0)1;n", *piece.p));
        if (closes && random_below(++n_closing) == 0) closing = id;
        if (end && mu_tokenizer_is_end(x->tok, id)) return id;
    }
    return end && closing >= 0 ? closing : chosen;
}

/* The text is whole and nothing can follow. */
static bool is_complete(const struct mu_constraint *c)
{
    return c->ended || (mu_constraint_may_end(c) && !c->m->states.states[c->state].goes_on);
}

struct walk {
    int n_check; /* masks to compare, at random places */
    int n_done, n_unfinished, n_mask;
};

static void check_text(const struct language *l, const struct mu_grammar *g, const char *text, size_t len)
{
    if (read_text(g, text, len) != WHOLE) fail_msg("%s\ndoes not take its own '%.*s'", l->text, (int)len, text);
    if (l->kind != S && l->kind != MU_CONSTRAINT_JSON) return;
    json_error_t je;
    json_t *v = json_loadb(text, len, JSON_DECODE_ANY, &je);
    if (!v) fail_msg("%s\n%s: '%.*s'", l->text, je.text, (int)len, text);
    if (l->kind == S) {
        json_t *schema = json_loads(l->text, JSON_DECODE_ANY, &je);
        if (!check_schema(schema, schema, v)) fail_msg("%s\nis not satisfied by '%.*s'", l->text, (int)len, text);
        json_decref(schema);
    }
    json_decref(v);
}

static void one_walk(const struct vocab *x, const struct language *l, const struct mu_grammar *g, struct mu_masker *m,
                     struct walk *w)
{
    static char text[TEXT_MAX];
    static int ids[WALK_MAX];
    size_t len = 0, n_word = mu_constraint_mask_words(x->v);
    struct mu_constraint *c, *again;
    struct mu_err err = MU_ERR_INIT;
    assert_int_equal(mu_constraint_create(m, &c, &err), MU_OK);
    int n = 0, stop = 10 + (int)random_below(40);
    bool ended = false;
    for (; n < WALK_MAX && !ended; n++) {
        enum mu_status st = mu_constraint_mask(c, x->mask, &err);
        if (st == MU_ELIMIT && l->kind == G) break; /* a text of an ambiguous language became too long */
        if (st != MU_OK) fail_msg("%s", err.text);
        w->n_mask++;
        if (w->n_check > 0 && random_below(4) == 0) {
            w->n_check--;
            check_mask(x, g, text, len);
        }
        int id = pick(x, n > stop && random_below(8));
        if (id < 0) fail_msg("%s\nnothing is allowed behind '%.*s'", l->text, (int)len, text);
        struct mu_str piece = mu_tokenizer_piece(x->tok, id, false);
        if (len + piece.len > TEXT_MAX) break;
        memcpy(text + len, piece.p, piece.len);
        assert_int_equal(mu_constraint_accept(c, id, &err), MU_OK);
        ended = mu_tokenizer_is_end(x->tok, id);
        if (!ended) len += piece.len;
        ids[n] = id;
        assert_false(mu_constraint_is_dead(c));
    }
    /* replayed, it is the same */
    assert_int_equal(mu_constraint_create(m, &again, &err), MU_OK);
    for (int i = 0; i < n; i++) assert_int_equal(mu_constraint_accept(again, ids[i], &err), MU_OK);
    enum mu_status st = mu_constraint_mask(c, x->mask, &err);
    assert_int_equal(mu_constraint_mask(again, x->other, &err), st);
    if (st == MU_OK) assert_memory_equal(x->mask, x->other, n_word * 4);
    if (ended) {
        check_text(l, g, text, len);
        w->n_done++;
        for (int id = 0; id < x->n; id++) assert_int_equal(allowed(x->mask, id), mu_tokenizer_is_end(x->tok, id));
        assert_true(is_complete(c));
    } else {
        w->n_unfinished++;
    }
    mu_constraint_free(c);
    mu_constraint_free(again);
}

static void walk_vocab(const char *name, int every, int checks, int walks)
{
    struct vocab x = {0};
    struct walk total = {0};
    open_vocab(&x, name);
    for (int i = 0; i < N_LANGUAGE; i += every) {
        const struct language *l = &LANGUAGES[i];
        struct mu_grammar *g = compile(l->kind, l->text);
        struct mu_masker *m;
        struct mu_err err = MU_ERR_INIT;
        /* every third with so little memory that nothing can be kept for long */
        assert_int_equal(mu_masker_create(g, x.v, i % 3 ? 0 : 1 << 16, &m, &err), MU_OK);
        struct walk w = {.n_check = checks};
        for (int k = 0; k < walks; k++) one_walk(&x, l, g, m, &w);
        if (l->kind == S && !w.n_done) fail_msg("%s\nnone of %d walks ended", l->text, walks);
        total.n_done += w.n_done;
        total.n_unfinished += w.n_unfinished;
        total.n_mask += w.n_mask;
        total.n_check += checks - w.n_check;
        mu_masker_free(m);
        mu_grammar_free(g);
    }
    print_message("%s: %d texts whole, %d cut, %d masks, %d of them compared\n", name, total.n_done, total.n_unfinished,
                  total.n_mask, total.n_check);
    close_vocab(&x);
}

static void test_spm(void **state)
{
    (void)state;
    walk_vocab("llama-spm", 1, 4, 5);
}

static void test_bpe(void **state)
{
    (void)state;
    walk_vocab("gpt-2", 1, 3, 3);
}

static void test_large(void **state)
{
    (void)state;
    walk_vocab("llama-bpe", 5, 2, 2);
    walk_vocab("gemma3", 11, 2, 2);
}

/* Where tokens are known without a walk (constraint_run.c): long ways within which much can come in any order, up to their
 * ends, several times, and rules that may end on the way. Every mask of every text is compared. */
static void test_runs(void **state)
{
    static const struct language runs[] = {
        {.kind = S, .text = "{\"type\":\"string\",\"pattern\":\"^[A-Za-z ]+$\",\"minLength\":3,\"maxLength\":40}"},
        {.kind = S, .text = "{\"type\":\"array\",\"items\":{\"type\":\"string\",\"maxLength\":11},\"maxItems\":3}"},
        {.kind = S, .text = "{\"type\":\"string\",\"format\":\"email\",\"maxLength\":30}"},
        {.kind = R, .text = "[0-9a-f]{40}"},
        {.kind = R, .text = "[A-Z][a-z]{2,20}( [a-z]{3,12}){2,4}[.!]"},
        {.kind = G,
         .text = "root ::= \"(\" root \")\" | a [a-z]{1,20} \"!\" root | a [a-z ]{1,20} \"?\"\na ::= [^\"\\\\]{1,12} | "
                 "\"\\\\\" a"},
        {.kind = G, .text = "root ::= \"<\" root \">\" w | w \".\" w \"!\"\nw ::= [a-z]{1,9} | \"\\\\\" w"},
        {.kind = G, .text = "root ::= (w \" \")+ root | w \"-\" w \"!\"\nw ::= [a-z]{3,7} | [a-z]{9,20} [0-9]"},
    };
    (void)state;
    struct vocab x = {0};
    open_vocab(&x, "llama-bpe");
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        struct mu_grammar *g = compile(runs[i].kind, runs[i].text);
        struct mu_masker *m;
        struct mu_err err = MU_ERR_INIT;
        assert_int_equal(mu_masker_create(g, x.v, 0, &m, &err), MU_OK);
        struct walk w = {0}; /* first many texts, so that what pays is made */
        for (int k = 0; k < 30; k++) one_walk(&x, &runs[i], g, m, &w);
        w = (struct walk){.n_check = INT_MAX};
        for (int k = 0; k < 2; k++) one_walk(&x, &runs[i], g, m, &w);
        mu_masker_free(m);
        mu_grammar_free(g);
    }
    close_vocab(&x);
}

/* ---- without fixtures: a vocabulary of bytes and some words ---- */

static struct mu_tokenizer *small_vocab(struct mu_gguf **g)
{
    static const char *const words[] = {"{\"", "\":", "\",\"", "\"}",      "true", "null", "ab",  "aa", "aaaa",
                                        "[[",  "]]",  "\xC3",  "\xA9\xC3", "12",   " ab",  "\",", "<x>"};
    enum { N_WORD = sizeof words / sizeof *words, N = 256 + N_WORD + 2 };
    char path[] = "/tmp/mu-constraint-XXXXXX", text[256][8];
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
    for (int i = 0; i < N_WORD; i++) texts[256 + i] = (struct mu_str){words[i], strlen(words[i])}, types[256 + i] = 4;
    texts[N - 2] = (struct mu_str){"</s>", 4};
    texts[N - 1] = (struct mu_str){"<s>", 3};
    types[N - 2] = types[N - 1] = 3;
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

static void open_small(struct vocab *x)
{
    struct mu_err err = MU_ERR_INIT;
    x->name = "small";
    x->tok = small_vocab(&x->gguf);
    x->n = mu_tokenizer_n_vocab(x->tok);
    assert_int_equal(mu_constraint_vocab_create(x->tok, &x->v, &err), MU_OK);
    x->mask = malloc(mu_constraint_mask_words(x->v) * 4);
    x->other = malloc(mu_constraint_mask_words(x->v) * 4);
}

static void test_small(void **state)
{
    (void)state;
    struct vocab x = {0};
    open_small(&x);
    for (int i = 0; i < N_LANGUAGE; i++) {
        const struct language *l = &LANGUAGES[i];
        struct mu_grammar *g = compile(l->kind, l->text);
        struct mu_masker *m;
        struct mu_err err = MU_ERR_INIT;
        assert_int_equal(mu_masker_create(g, x.v, i % 2 ? 1 << 14 : 0, &m, &err), MU_OK);
        struct walk w = {.n_check = 60};
        for (int k = 0; k < 12; k++) one_walk(&x, l, g, m, &w);
        mu_masker_free(m);
        mu_grammar_free(g);
    }
    close_vocab(&x);
}

/* An id that is not allowed kills; after the end only ends are allowed; a control token is never text. */
static void test_life(void **state)
{
    (void)state;
    struct vocab x = {0};
    struct mu_err err = MU_ERR_INIT;
    struct mu_masker *m;
    struct mu_constraint *c;
    open_small(&x);
    int end = x.n - 2, control = x.n - 1;
    struct mu_grammar *g = compile(G, "root ::= \"a\"+ \"b\"?");
    assert_int_equal(mu_masker_create(g, x.v, 0, &m, &err), MU_OK);
    for (int round = 0; round < 5; round++) {
        assert_int_equal(mu_constraint_create(m, &c, &err), MU_OK);
        assert_false(mu_constraint_may_end(c));
        assert_int_equal(mu_constraint_mask(c, x.mask, &err), MU_OK);
        assert_true(allowed(x.mask, 'a') && allowed(x.mask, 256 + 6) && allowed(x.mask, 256 + 7)); /* a, ab, aa */
        assert_false(allowed(x.mask, 'b') || allowed(x.mask, end) || allowed(x.mask, control));
        assert_int_equal(mu_constraint_accept(c, 'a', &err), MU_OK);
        assert_true(mu_constraint_may_end(c));
        assert_false(is_complete(c));
        switch (round) {
        case 0: /* the end, and another */
            for (int i = 0; i < 2; i++) {
                assert_int_equal(mu_constraint_accept(c, end, &err), MU_OK);
                assert_true(mu_constraint_may_end(c) && is_complete(c) && !mu_constraint_is_dead(c));
                assert_int_equal(mu_constraint_mask(c, x.mask, &err), MU_OK);
                for (int id = 0; id < x.n; id++) assert_int_equal(allowed(x.mask, id), id == end);
            }
            assert_int_equal(mu_constraint_accept(c, 'a', &err), MU_OK);
            assert_true(mu_constraint_is_dead(c));
            break;
        case 1:
            assert_int_equal(mu_constraint_accept(c, 'b', &err), MU_OK);
            assert_true(mu_constraint_may_end(c) && is_complete(c));
            assert_int_equal(mu_constraint_accept(c, 'b', &err), MU_OK);
            assert_true(mu_constraint_is_dead(c));
            break;
        case 2: assert_int_equal(mu_constraint_accept(c, control, &err), MU_OK); break;
        case 3: assert_int_equal(mu_constraint_accept(c, -1, &err), MU_OK); break;
        case 4: assert_int_equal(mu_constraint_accept(c, x.n, &err), MU_OK); break;
        }
        assert_true(mu_constraint_is_dead(c));
        assert_false(mu_constraint_may_end(c) || is_complete(c));
        assert_int_equal(mu_constraint_mask(c, x.mask, &err), MU_OK);
        for (size_t i = 0; i < mu_constraint_mask_words(x.v); i++) assert_int_equal(x.mask[i], 0);
        mu_constraint_free(c);
    }
    mu_masker_free(m);
    mu_grammar_free(g);
    close_vocab(&x);
}

/* A deep text keeps what it needs and no more: memory stays near the bound, and closing works out. */
static void test_memory(void **state)
{
    (void)state;
    struct vocab x = {0};
    struct mu_err err = MU_ERR_INIT;
    struct mu_masker *m;
    struct mu_constraint *c, *flat;
    enum { DEPTH = 20000, BOUND = 1 << 18 };
    open_small(&x);
    struct mu_grammar *g = compile(S, "{}");
    assert_int_equal(mu_masker_create(g, x.v, BOUND, &m, &err), MU_OK);
    assert_int_equal(mu_constraint_create(m, &flat, &err), MU_OK);
    assert_int_equal(mu_constraint_accept(flat, '[', &err), MU_OK);
    for (int i = 0; i < 50000; i++) { /* a list as long as it likes is one state */
        assert_int_equal(mu_constraint_accept(flat, '1', &err), MU_OK);
        assert_int_equal(mu_constraint_accept(flat, ',', &err), MU_OK);
        assert_int_equal(mu_constraint_mask(flat, x.mask, &err), MU_OK);
    }
    assert_true(mu_masker_bytes(m) < BOUND);
    assert_int_equal(mu_constraint_create(m, &c, &err), MU_OK);
    for (int i = 0; i < DEPTH; i++) {
        assert_int_equal(mu_constraint_accept(c, '[', &err), MU_OK);
        if (i % 100 == 0) assert_int_equal(mu_constraint_mask(c, x.mask, &err), MU_OK);
    }
    for (int i = 0; i < DEPTH; i++) {
        assert_false(mu_constraint_may_end(c));
        assert_int_equal(mu_constraint_accept(c, ']', &err), MU_OK);
    }
    assert_true(is_complete(c));
    assert_int_equal(mu_constraint_accept(flat, '2', &err), MU_OK);
    assert_int_equal(mu_constraint_accept(flat, ']', &err), MU_OK);
    assert_true(is_complete(flat));
    mu_constraint_free(flat);
    mu_constraint_free(c);
    assert_int_equal(mu_constraint_create(m, &c, &err), MU_OK);
    for (int i = 0; i < 40000; i++) { /* what ended is forgotten */
        assert_int_equal(mu_constraint_accept(c, i % 2 ? ']' : '[', &err), MU_OK);
        if (i % 2) mu_constraint_free(c), assert_int_equal(mu_constraint_create(m, &c, &err), MU_OK);
    }
    mu_constraint_free(c);
    mu_masker_free(m);
    mu_grammar_free(g);
    close_vocab(&x);
}

/* The n-th allocation fails: the call says so, and the constraint is as before. */
static void test_allocations(void **state)
{
    (void)state;
    struct vocab x = {0};
    struct mu_grammar *g;
    open_small(&x);
    g = compile(S, "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"array\",\"items\":{\"$ref\":\"#\"}},\"b\":{"
                   "\"type\":\"string\"}}}");
    static const char text[] = "{\"a\": [{\"b\":\"ab\"},{}],\"b\":\"\"}";
    long longest = 0;
    for (long n = 1; n > 0; n++) {
        struct mu_err err = MU_ERR_INIT;
        struct mu_constraint_vocab *v = NULL;
        struct mu_masker *m = NULL;
        struct mu_constraint *c = NULL;
        enum mu_status st;
        bool failed = false;
        mu_alloc_fail_at(n);
        while ((st = mu_constraint_vocab_create(x.tok, &v, &err)) == MU_ENOMEM && !failed) failed = true;
        assert_int_equal(st, MU_OK);
        while ((st = mu_masker_create(g, v, 0, &m, &err)) == MU_ENOMEM && !failed) failed = true;
        assert_int_equal(st, MU_OK);
        while ((st = mu_constraint_create(m, &c, &err)) == MU_ENOMEM && !failed) failed = true;
        assert_int_equal(st, MU_OK);
        for (const char *p = text; *p; p++) {
            while ((st = mu_constraint_mask(c, x.mask, &err)) == MU_ENOMEM && !failed) failed = true;
            assert_int_equal(st, MU_OK);
            assert_true(allowed(x.mask, *p));
            while ((st = mu_constraint_accept(c, *p, &err)) == MU_ENOMEM && !failed) failed = true;
            assert_int_equal(st, MU_OK);
            assert_false(mu_constraint_is_dead(c));
        }
        assert_true(is_complete(c));
        mu_alloc_fail_at(0);
        mu_constraint_free(c);
        mu_masker_free(m);
        mu_constraint_vocab_free(v);
        longest = n;
        if (!failed && n > 100) break; /* kept masks may fail in silence */
        if (n > 100000) fail_msg("it never ends");
    }
    print_message("%ld allocations\n", longest);
    mu_grammar_free(g);
    close_vocab(&x);
}

/* A grammar with more ways to be read than can be kept ends in an error that says so, not in a hang. */
static void test_too_ambiguous(void **state)
{
    (void)state;
    struct vocab x = {0};
    struct mu_err err = MU_ERR_INIT;
    struct mu_masker *m;
    struct mu_constraint *c;
    open_small(&x);
    struct mu_grammar *g = compile(G, "root ::= \"a\" root root root | \"a\" root root | \"a\"");
    assert_int_equal(mu_masker_create(g, x.v, 0, &m, &err), MU_OK);
    assert_int_equal(mu_constraint_create(m, &c, &err), MU_OK);
    enum mu_status st = MU_OK;
    int n = 0;
    double start = tok_now();
    for (; n < 1000 && st == MU_OK; n++) {
        if (n % 100 == 0) st = mu_constraint_mask(c, x.mask, &err);
        if (st == MU_OK) st = mu_constraint_accept(c, 'a', &err);
    }
    print_message("%d bytes in %.2f s: %s\n", n, tok_now() - start, st ? err.text : "ok");
    assert_true(st == MU_OK || (st == MU_ELIMIT && strstr(err.text, "too many ways")));
    assert_false(mu_constraint_is_dead(c));
    mu_constraint_free(c);
    mu_masker_free(m);
    mu_grammar_free(g);
    close_vocab(&x);
}

/* Each character adds a vector of bits, and each rule keeps one parity of the sum: as many states as there are vectors, of as many
 * places as there are rules, and a vocabulary meets a good part of them. What is too much is said in time; what is not
 * takes much memory, but only while the mask is made. */
static void many_places(const struct vocab *x, unsigned n_rule, int bits, enum mu_status expected)
{
    enum { CAP = 1 << 20, BOUND = 32 << 20 };
    struct mu_err err = MU_ERR_INIT;
    struct mu_masker *m;
    struct mu_constraint *c;
    char *text = malloc(CAP), set[2 * 95 * 6 + 1];
    size_t n = (size_t)sprintf(text, "root ::= e0");
    for (unsigned i = 1; i < n_rule; i++) n += (size_t)sprintf(text + n, " | e%u", i);
    for (unsigned i = 0; i < n_rule; i++) {
        char *to = set;
        const unsigned w = (i + 1) * 2654435761u >> (32 - bits) | 1;
        for (unsigned ch = 33; ch < 127; ch++)
            if (ch != ']' && ch != '[' && ch != '\\' && ch != '^' && ch != '-' && ch != '"' &&
                __builtin_parity(w & (ch * 40503u >> 2 & ((1u << bits) - 1))))
                *to++ = (char)ch;
        *to = 0;
        n += (size_t)sprintf(text + n, "\ne%u ::= [%s] o%u | [^%s] e%u\no%u ::= [%s] e%u | [^%s] o%u | \"\\x01\"", i,
                             set, i, set, i, i, set, i, set, i);
    }
    struct mu_grammar *g = compile(G, text);
    assert_int_equal(mu_masker_create(g, x->v, BOUND, &m, &err), MU_OK);
    assert_int_equal(mu_constraint_create(m, &c, &err), MU_OK);
    double start = tok_now();
    enum mu_status st = mu_constraint_mask(c, x->mask, &err);
    print_message("%zu bytes of grammar, a mask in %.2f s, %zu KB left: %s\n", n, tok_now() - start,
                  mu_masker_bytes(m) >> 10, st ? err.text : "ok");
    assert_int_equal(st, expected);
    assert_true(!st || strstr(err.text, "too many ways"));
    assert_true(mu_masker_bytes(m) < BOUND);
    mu_constraint_free(c);
    mu_masker_free(m);
    mu_grammar_free(g);
    free(text);
}

static void test_many_places(void **state)
{
    (void)state;
    struct vocab x = {0};
    open_vocab(&x, "llama-bpe");
    many_places(&x, 400, 13, MU_ELIMIT);
    many_places(&x, 20, 20, MU_OK);
    close_vocab(&x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small),       cmocka_unit_test(test_life),          cmocka_unit_test(test_memory),
        cmocka_unit_test(test_allocations), cmocka_unit_test(test_too_ambiguous), cmocka_unit_test(test_spm),
        cmocka_unit_test(test_bpe),         cmocka_unit_test(test_large),         cmocka_unit_test(test_runs),
        cmocka_unit_test(test_many_places),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
