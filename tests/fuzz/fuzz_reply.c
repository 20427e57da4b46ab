/* What a model writes on its way to a terminal: thoughts told apart, lines wrapped. Cut into pieces in any way it gives
 * the same; nothing that a terminal obeys comes out; no line is too long.
 *
 * An input is a byte of flags and width, a byte that the cuts follow from, and the text. */
#include "tests/fuzz/fuzz.h"

#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>

#include "base/alloc.h"
#include "cli/wrap.h"
#include "model/thinking.h"

struct text {
    char *p;
    size_t len, cap;
};

struct heard {
    struct text answer, thought, page;
    struct mu_wrap wrap;
};

static void expect(bool ok, const char *what)
{
    if (ok) return;
    fprintf(stderr, "broken: %s\n", what);
    abort();
}

static void append(struct text *t, const char *p, size_t len)
{
    if (t->len + len > t->cap) {
        t->cap = (t->len + len) * 2;
        t->p = realloc(t->p, t->cap);
        expect(t->p != NULL, "memory");
    }
    if (len) memcpy(t->p + t->len, p, len);
    t->len += len;
}

static enum mu_status on_write(void *ctx, const char *text, size_t len, struct mu_err *err)
{
    (void)err;
    append(&((struct heard *)ctx)->page, text, len);
    return MU_OK;
}

static enum mu_status on_span(void *ctx, enum mu_span kind, const char *text, size_t len, struct mu_err *err)
{
    struct heard *h = ctx;
    if (kind == MU_SPAN_WAS_THOUGHT) {
        append(&h->thought, h->answer.p, h->answer.len);
        h->answer.len = 0;
        return mu_wrap_code(&h->wrap, "\n", err);
    }
    append(kind == MU_SPAN_THOUGHT ? &h->thought : &h->answer, text, len);
    return mu_wrap_put(&h->wrap, text, len, err);
}

/* cuts 0: one piece. */
static void hear(struct heard *h, int width, bool known, unsigned cuts, const char *text, size_t len)
{
    struct mu_thinking t;
    *h = (struct heard){0};
    mu_wrap_init(&h->wrap, width, on_write, h);
    mu_thinking_init(&t, on_span, h);
    if (known) mu_thinking_prompt(&t, "", 0);
    for (size_t at = 0; at < len;) {
        size_t n = cuts ? 1 + (cuts = cuts * 1103515245u + 12345u) / 65536 % 7 : len;
        if (n > len - at) n = len - at;
        expect(mu_thinking_put(&t, text + at, n, NULL) == MU_OK, "a reply goes on");
        at += n;
    }
    expect(mu_thinking_finish(&t, NULL) == MU_OK && mu_wrap_flush(&h->wrap, NULL) == MU_OK, "a reply ends");
}

static bool same(const struct text *a, const struct text *b)
{
    return a->len == b->len && (!a->len || !memcmp(a->p, b->p, a->len));
}

static void check_page(const struct text *page, int width)
{
    mbstate_t state = {0};
    int column = 0;
    for (size_t at = 0; at < page->len;) {
        wchar_t c;
        size_t n = mbrtowc(&c, page->p + at, page->len - at, &state);
        if (n == (size_t)-1 || n == (size_t)-2) { /* a surrogate, in UTF-8's form */
            state = (mbstate_t){0};
            at++;
            continue;
        }
        at += n ? n : 1;
        expect(c == '\n' || (c >= 0x20 && !(c >= 0x7f && c < 0xa0)), "nothing that a terminal obeys");
        int wide = wcwidth(c);
        column = c == '\n' ? 0 : column + (wide > 0 ? wide : 0);
        expect(!width || c == ' ' || column <= width, "a line is no wider than the terminal");
    }
}

static void free_all(struct heard *h)
{
    free(h->answer.p);
    free(h->thought.p);
    free(h->page.p);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static bool ready;
    struct heard whole, pieces;
    if (!ready) setlocale(LC_CTYPE, "C.UTF-8");
    ready = true;
    if (len < 2) return 0;
    int width = data[0] & 2 ? 20 + (data[0] >> 2) : 0;
    const char *text = (const char *)data + 2;
    hear(&whole, width, data[0] & 1, 0, text, len - 2);
    hear(&pieces, width, data[0] & 1, data[1] + 1u, text, len - 2);
    expect(same(&whole.answer, &pieces.answer), "the same answer however it is cut");
    expect(same(&whole.thought, &pieces.thought), "the same thought however it is cut");
    expect(whole.answer.len + whole.thought.len <= len - 2, "nothing is made up");
    if (strcmp(setlocale(LC_CTYPE, NULL), "C") != 0) check_page(&whole.page, width);
    free_all(&whole);
    free_all(&pieces);
    return 0;
}

bool mu_fuzz_seed(int n, uint8_t **data_out, size_t *len_out)
{
    static const char *const seeds[] = {
        "\x03\x01<think>well, a < b</think>\n\nyes </think> no",
        "\x02\x05so\n</think>\n\nYes, and a long line of several words that must be broken somewhere",
        "\x03\x07<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>yes<|return|>",
        "\x2a\x09[THINK]\xe6\x97\xa5\xe6\x9c\xac[/THINK] \xf0\x9f\x99\x82 e\xcc\x81\t\x1b[2J\x07",
        "\x03\x0b<|channel>thought x<channel|>  y",
        ("\x3e\x0d"
         "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa bb")};
    if (n >= (int)(sizeof seeds / sizeof *seeds)) return false;
    *len_out = strlen(seeds[n]);
    *data_out = malloc(*len_out);
    if (!*data_out) abort();
    memcpy(*data_out, seeds[n], *len_out);
    return true;
}
