/* Constraints by request: masks after replays, grammars shared and forgotten. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "model/gguf_write.h"
#include "worker/constraint.h"

enum { N_ID = 260, END = 256, N_MODEL = 300, MASK = (N_MODEL + 7) / 8 };

static struct mu_gguf *vocab(void)
{
    char path[] = "/tmp/mu-constraints-XXXXXX", text[N_ID][8];
    struct mu_str texts[N_ID];
    int32_t types[N_ID];
    float scores[N_ID] = {0};
    struct mu_gguf_writer *w;
    struct mu_gguf *g;
    struct mu_err err = MU_ERR_INIT;
    for (int i = 0; i < N_ID; i++) {
        if (i < 256)
            snprintf(text[i], sizeof text[i], "<0x%02X>", (unsigned)i);
        else
            strcpy(text[i], i == END ? "</s>" : i == 257 ? "ab" : i == 258 ? "{\"" : "<s>");
        texts[i] = (struct mu_str){text[i], strlen(text[i])};
        types[i] = i < 256 ? 6 : i == 257 || i == 258 ? 4 : 3;
    }
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(mu_gguf_writer_open(path, &w, &err), MU_OK);
    mu_gguf_put_str(w, "tokenizer.ggml.model", "llama", 5);
    mu_gguf_put_strs(w, "tokenizer.ggml.tokens", texts, N_ID);
    mu_gguf_put_i32s(w, "tokenizer.ggml.token_type", types, N_ID);
    mu_gguf_put_f32s(w, "tokenizer.ggml.scores", scores, N_ID);
    assert_int_equal(mu_gguf_writer_close(w, 1, &err), MU_OK);
    assert_int_equal(mu_gguf_open(path, &g, &err), MU_OK);
    unlink(path);
    close(fd);
    return g;
}

static struct mu_constraints *open_all(struct mu_gguf **g)
{
    struct mu_constraints *c;
    struct mu_err err = MU_ERR_INIT;
    *g = vocab();
    assert_int_equal(mu_constraints_create(*g, N_MODEL, &c, &err), MU_OK);
    return c;
}

static enum mu_status add(struct mu_constraints *c, uint64_t request, int kind, const char *text)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_constraint_text t = {kind, text, strlen(text)};
    enum mu_status st = mu_constraints_add(c, request, &t, &err);
    assert_int_equal(st, err.code);
    return st;
}

/* The ids that are allowed, as text; "$" is the end. */
static const char *allowed(struct mu_constraints *c, uint64_t request, const char *ids)
{
    static char shown[2 * N_MODEL];
    uint8_t mask[MASK + 1];
    int32_t emitted[64];
    size_t n = strlen(ids), at = 0;
    for (size_t i = 0; i < n; i++) emitted[i] = ids[i] == '$' ? END : ids[i];
    memset(mask, 0xA5, sizeof mask);
    if (!mu_constraints_allow(c, request, emitted, n, mask)) {
        assert_int_equal(mask[0], 0xA5);
        return "all";
    }
    assert_int_equal(mask[MASK], 0xA5);
    for (int id = 0; id < MASK * 8; id++) {
        if (!(mask[id / 8] >> (id % 8) & 1)) continue;
        assert_true(id < N_ID);
        if (id == END)
            shown[at++] = '$';
        else if (id < 256)
            shown[at++] = (char)id;
        else
            at += (size_t)sprintf(shown + at, "<%d>", id);
    }
    shown[at] = '\0';
    return shown;
}

static void test_masks(void **state)
{
    (void)state;
    struct mu_gguf *g;
    struct mu_constraints *c = open_all(&g);
    assert_string_equal(allowed(c, 1, ""), "all");
    assert_int_equal(add(c, 1, MU_CONSTRAINT_REGEX, "ab?c"), MU_OK);
    assert_int_equal(add(c, 2, MU_CONSTRAINT_GBNF, "root ::= \"x\" [yz]"), MU_OK);
    assert_int_equal(add(c, 3, MU_CONSTRAINT_NONE, ""), MU_OK);
    assert_int_equal(add(c, 4, MU_CONSTRAINT_JSON, ""), MU_OK);
    assert_int_equal(add(c, 1, MU_CONSTRAINT_REGEX, "x"), MU_EINVAL);
    assert_string_equal(allowed(c, 1, ""), "a<257>");
    assert_string_equal(allowed(c, 2, "x"), "yz");
    assert_string_equal(allowed(c, 1, "a"), "bc");
    assert_string_equal(allowed(c, 3, ""), "all");
    assert_string_equal(allowed(c, 4, ""), "{<258>");
    assert_string_equal(allowed(c, 1, "abc"), "$");
    assert_string_equal(allowed(c, 1, "abc$"), "$");
    /* back, as after a preemption; another past, as after none that we know of */
    assert_string_equal(allowed(c, 1, "a"), "bc");
    assert_string_equal(allowed(c, 1, "ac"), "$");
    assert_string_equal(allowed(c, 1, "ab"), "c");
    assert_null(mu_constraints_why(c, 1));
    assert_string_equal(allowed(c, 1, "b"), ""); /* ids that are not of the grammar */
    assert_non_null(strstr(mu_constraints_why(c, 1), "are not what"));
    mu_constraints_drop(c, 1);
    mu_constraints_drop(c, 1);
    assert_string_equal(allowed(c, 1, ""), "all");
    assert_string_equal(allowed(c, 2, "x"), "yz");
    /* submitted again with what it had emitted: as after a relaunch */
    assert_int_equal(add(c, 1, MU_CONSTRAINT_REGEX, "ab?c"), MU_OK);
    assert_string_equal(allowed(c, 1, "ab"), "c");
    mu_constraints_forget_all(c);
    assert_string_equal(allowed(c, 2, "x"), "all");
    mu_constraints_destroy(c);
    mu_gguf_close(g);
}

/* Made by the thread: each text once, whoever asks; what cannot be made is told to who adds it; ends with some under way. */
static void test_made_aside(void **state)
{
    (void)state;
    struct mu_gguf *g;
    struct mu_constraints *c = open_all(&g);
    struct mu_constraints_counts n;
    const struct mu_constraint_text good = {MU_CONSTRAINT_REGEX, "ab?c", 4}, bad = {MU_CONSTRAINT_REGEX, "(", 1},
                                    none = {MU_CONSTRAINT_NONE, NULL, 0};
    assert_true(mu_constraints_begin(c, &none));
    assert_int_equal(mu_constraints_fd(c), -1);
    assert_false(mu_constraints_made(c));
    bool is_good = false, is_bad = false;
    for (int i = 0; i < 3; i++) { /* asked again, nothing is made twice */
        is_good = mu_constraints_begin(c, &good);
        is_bad = mu_constraints_begin(c, &bad);
    }
    while (!is_good || !is_bad) {
        struct pollfd p = {.fd = mu_constraints_fd(c), .events = POLLIN};
        assert_int_equal(poll(&p, 1, 60000), 1);
        assert_true(mu_constraints_made(c));
        is_good = mu_constraints_begin(c, &good);
        is_bad = mu_constraints_begin(c, &bad);
    }
    mu_constraints_count(c, &n);
    assert_int_equal(n.n_compiled, 1);
    assert_int_equal(add(c, 1, MU_CONSTRAINT_REGEX, "ab?c"), MU_OK);
    assert_string_equal(allowed(c, 1, "a"), "bc");
    assert_int_equal(add(c, 2, MU_CONSTRAINT_REGEX, "("), MU_EFORMAT);
    mu_constraints_count(c, &n);
    assert_int_equal(n.n_compiled, 1);
    assert_int_equal(n.n_grammar, 1);
    for (int i = 0; i < 20; i++) {
        char text[] = {'x', (char)('a' + i)};
        assert_false(mu_constraints_begin(c, &(struct mu_constraint_text){MU_CONSTRAINT_REGEX, text, sizeof text}));
    }
    mu_constraints_destroy(c);
    mu_gguf_close(g);
}

/* More new forms at once than are kept for nobody: those who asked for them come one after another, and find them. */
static void test_many_new_forms_at_once(void **state)
{
    (void)state;
    enum { N = 100 };
    struct mu_gguf *g;
    struct mu_constraints *c = open_all(&g);
    struct mu_constraints_counts n;
    char text[N][16];
    bool added[N] = {false};
    for (int i = 0; i < N; i++) {
        snprintf(text[i], sizeof text[i], "a{%d}", i + 1);
        assert_false(
            mu_constraints_begin(c, &(struct mu_constraint_text){MU_CONSTRAINT_REGEX, text[i], strlen(text[i])}));
    }
    for (int n_added = 0; n_added < N;) {
        struct pollfd p = {.fd = mu_constraints_fd(c), .events = POLLIN};
        assert_int_equal(poll(&p, 1, 60000), 1);
        mu_sleep_ms(100); /* a step meanwhile: mostly all are made */
        assert_true(mu_constraints_made(c));
        for (int i = 0; i < N; i++) {
            const struct mu_constraint_text t = {MU_CONSTRAINT_REGEX, text[i], strlen(text[i])};
            if (added[i] || !mu_constraints_begin(c, &t)) continue;
            assert_int_equal(add(c, (uint64_t)i, MU_CONSTRAINT_REGEX, text[i]), MU_OK);
            added[i] = true;
            n_added++;
        }
    }
    mu_constraints_count(c, &n);
    assert_int_equal(n.n_compiled, N);
    mu_constraints_forget_all(c);
    mu_constraints_count(c, &n);
    assert_int_equal(n.n_grammar, 64);
    mu_constraints_destroy(c);
    mu_gguf_close(g);
}

/* Whoever ends waits for the form that is being made, not for those behind it. */
static void test_end_leaves_forms(void **state)
{
    (void)state;
    enum { N = 40 };
    struct mu_gguf *g;
    struct mu_constraints *c = open_all(&g);
    char text[80];
    int64_t start = mu_now_ns(), one;
    snprintf(text, sizeof text, "[a-f]{1,200}[c-h]{1,200}x");
    assert_int_equal(add(c, 1, MU_CONSTRAINT_REGEX, text), MU_OK);
    one = mu_now_ns() - start;
    for (int i = 0; i < N; i++) {
        int n = snprintf(text, sizeof text, "[a-f]{1,200}[c-h]{1,200}y%d", i);
        assert_false(mu_constraints_begin(c, &(struct mu_constraint_text){MU_CONSTRAINT_REGEX, text, (size_t)n}));
    }
    start = mu_now_ns();
    mu_constraints_destroy(c);
    int64_t took = mu_now_ns() - start;
    print_message("one form %.1f ms, the end with %d unmade %.1f ms\n", (double)one / 1e6, N, (double)took / 1e6);
    assert_true(took < N / 2 * one);
    mu_gguf_close(g);
}

static void test_cache(void **state)
{
    (void)state;
    struct mu_gguf *g;
    struct mu_constraints *c = open_all(&g);
    struct mu_constraints_counts n;
    enum { REQUESTS = 10000, TEXTS = 50 };
    for (uint64_t i = 0; i < REQUESTS; i++) {
        char text[64];
        snprintf(text, sizeof text, "{\"type\":\"integer\",\"maximum\":%d}", (int)(i % TEXTS));
        assert_int_equal(add(c, i, MU_CONSTRAINT_JSON_SCHEMA, text), MU_OK);
        assert_non_null(strchr(allowed(c, i, ""), '-'));
        if (i >= 100) mu_constraints_drop(c, i - 100);
    }
    mu_constraints_count(c, &n);
    assert_int_equal(n.n_compiled, TEXTS);
    assert_int_equal(n.n_grammar, TEXTS);
    /* no more than so many are kept for nobody */
    mu_constraints_forget_all(c);
    for (uint64_t i = 0; i < 500; i++) {
        char text[64];
        snprintf(text, sizeof text, "a{%d}", (int)i);
        assert_int_equal(add(c, i, MU_CONSTRAINT_REGEX, text), MU_OK);
        mu_constraints_drop(c, i);
    }
    mu_constraints_count(c, &n);
    assert_int_equal(n.n_grammar, 64);
    assert_int_equal(n.n_compiled, TEXTS + 500);
    assert_int_equal(add(c, 1, MU_CONSTRAINT_REGEX, "a{499}"), MU_OK);
    mu_constraints_count(c, &n);
    assert_int_equal(n.n_compiled, TEXTS + 500);
    /* what was used longest ago goes first, and who was there all the time has just used its own */
    for (uint64_t i = 10; i < 10 + 64; i++) {
        char text[64];
        snprintf(text, sizeof text, "b{%d}", (int)i);
        assert_int_equal(add(c, i, MU_CONSTRAINT_REGEX, text), MU_OK);
        mu_constraints_drop(c, i);
    }
    mu_constraints_drop(c, 1);
    assert_int_equal(add(c, 1, MU_CONSTRAINT_REGEX, "a{499}"), MU_OK);
    mu_constraints_count(c, &n);
    assert_int_equal(n.n_compiled, TEXTS + 500 + 64);
    assert_int_equal(add(c, 2, MU_CONSTRAINT_REGEX, "(a"), MU_EFORMAT);
    assert_string_equal(allowed(c, 2, ""), "all");
    mu_constraints_destroy(c);
    mu_gguf_close(g);
}

static void test_allocations(void **state)
{
    (void)state;
    struct mu_gguf *g;
    struct mu_constraints *c = open_all(&g);
    enum mu_status st = MU_ENOMEM;
    for (long n = 1; st != MU_OK; n++) {
        mu_alloc_fail_at(n);
        st = add(c, 1, MU_CONSTRAINT_REGEX, "a(b|c)");
        mu_alloc_fail_at(0);
        assert_true(st == MU_OK || st == MU_ENOMEM);
        if (st != MU_OK) assert_string_equal(allowed(c, 1, ""), "all");
    }
    mu_alloc_fail_at(1);
    assert_string_equal(allowed(c, 1, "a"), ""); /* nothing rather than anything */
    mu_alloc_fail_at(0);
    assert_string_equal(allowed(c, 1, "a"), "bc");
    mu_constraints_destroy(c);
    mu_gguf_close(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_masks),
        cmocka_unit_test(test_made_aside),
        cmocka_unit_test(test_many_new_forms_at_once),
        cmocka_unit_test(test_end_leaves_forms),
        cmocka_unit_test(test_cache),
        cmocka_unit_test(test_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
