/* Grammars, expressions and schemas of any bytes: refused with a sentence, or compiled and walked: random ids out of the
 * masks must be accepted, and masks must say what reading each token says.
 *
 * An input is a byte of kind and flags, and the text. The vocabulary is the bytes and a few words. */
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "model/constraint.h"
#include "model/gguf_write.h"

enum { LITTLE_MEMORY = 4, N_WORD = 8, N_ID = 256 + N_WORD + 1, END = N_ID - 1, TEXT_MAX_BYTES = 1 << 12, STEPS = 24 };

static const char *const words[N_WORD] = {"{\"", "\":", "\",\"", "aaa", "true", "]]", "\xC3", "\xA9\""};

struct language {
    int kind;
    const char *text, *in[24], *out[24];
};
#define G MU_CONSTRAINT_GBNF
#define R MU_CONSTRAINT_REGEX
#define S MU_CONSTRAINT_JSON_SCHEMA
static const struct language seeds[] = {
#include "tests/model/grammar_cases.inc"
#include "tests/model/grammar_larger.inc"
};

static void expect(bool ok, const char *what)
{
    if (ok) return;
    fprintf(stderr, "broken: %s\n", what);
    abort();
}

static const struct mu_constraint_vocab *vocabulary(void)
{
    static struct mu_constraint_vocab *v;
    static struct mu_gguf *g;
    static struct mu_tokenizer *t;
    struct mu_err err = MU_ERR_INIT;
    char path[] = "/tmp/mu-fuzz-grammar-XXXXXX", text[256][8];
    struct mu_str texts[N_ID];
    int32_t types[N_ID];
    float scores[N_ID] = {0};
    struct mu_gguf_writer *w = NULL;
    if (v) return v;
    for (int i = 0; i < 256; i++) {
        snprintf(text[i], sizeof text[i], "<0x%02X>", (unsigned)i);
        texts[i] = (struct mu_str){text[i], 6};
        types[i] = 6;
    }
    for (int i = 0; i < N_WORD; i++) texts[256 + i] = (struct mu_str){words[i], strlen(words[i])}, types[256 + i] = 4;
    texts[END] = (struct mu_str){"</s>", 4};
    types[END] = 3;
    int fd = mkstemp(path);
    expect(fd >= 0 && mu_gguf_writer_open(path, &w, &err) == MU_OK, "a file can be written");
    mu_gguf_put_str(w, "tokenizer.ggml.model", "llama", 5);
    mu_gguf_put_strs(w, "tokenizer.ggml.tokens", texts, N_ID);
    mu_gguf_put_i32s(w, "tokenizer.ggml.token_type", types, N_ID);
    mu_gguf_put_f32s(w, "tokenizer.ggml.scores", scores, N_ID);
    expect(mu_gguf_writer_close(w, 1, &err) == MU_OK && mu_gguf_open(path, &g, &err) == MU_OK &&
               mu_tokenizer_open(g, &t, &err) == MU_OK && mu_constraint_vocab_create(t, &v, &err) == MU_OK,
           "the vocabulary opens");
    unlink(path);
    close(fd);
    return v;
}

static bool allowed(const uint32_t *mask, int id)
{
    return mask[id / 32] >> (id % 32) & 1;
}

static void walk(struct mu_masker *m, uint32_t seed)
{
    struct mu_constraint *c, *other;
    struct mu_err err = MU_ERR_INIT;
    uint32_t mask[(N_ID + 31) / 32];
    int ids[STEPS], n = 0;
    enum mu_status st = mu_constraint_create(m, &c, &err);
    while (st == MU_OK && n < STEPS) {
        st = mu_constraint_mask(c, mask, &err);
        if (st != MU_OK) break;
        int chosen = -1, k = 0;
        for (int id = 0; id < N_ID; id++) {
            if (!allowed(mask, id)) continue;
            seed = seed * 1664525 + 1013904223;
            if (seed % (uint32_t)++k == 0) chosen = id;
        }
        expect(chosen >= 0, "a text can always go on or end");
        expect(allowed(mask, END) == mu_constraint_may_end(c), "it may end where it says so");
        seed = seed * 1664525 + 1013904223;
        int tried = (int)(seed >> 8) % N_ID; /* some id: allowed or deadly */
        if (mu_constraint_create(m, &other, &err) == MU_OK) {
            bool whole = true;
            for (int i = 0; i < n && whole; i++) whole = mu_constraint_accept(other, ids[i], &err) == MU_OK;
            if (whole && mu_constraint_accept(other, tried, &err) == MU_OK)
                expect(allowed(mask, tried) == !mu_constraint_is_dead(other), "masks are what reading says");
            mu_constraint_free(other);
        }
        st = mu_constraint_accept(c, chosen, &err);
        if (st == MU_OK) expect(!mu_constraint_is_dead(c), "what is allowed is accepted");
        ids[n++] = chosen;
        if (chosen == END) break;
    }
    expect(st == MU_OK || st == MU_ELIMIT, "a walk ends well, or says that it is too ambiguous");
    if (st != MU_OK) expect(err.code == st && err.text[0], "a failure says what it is");
    mu_constraint_free(c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct mu_grammar *g = NULL;
    struct mu_masker *m = NULL;
    struct mu_err err = MU_ERR_INIT;
    const struct mu_constraint_vocab *v = vocabulary();
    if (!len || len > TEXT_MAX_BYTES) return 0;
    if (data[0] & LITTLE_MEMORY) mu_alloc_fail_at(1 + data[0] / 8);
    enum mu_status st =
        mu_grammar_compile((enum mu_constraint_kind)(1 + data[0] % 4), (const char *)data + 1, len - 1, &g, &err);
    mu_alloc_fail_at(0);
    if (st != MU_OK) {
        expect(!g, "nothing is set on failure");
        expect(err.code == st && err.text[0], "a failure says what it is");
        expect(!strpbrk(err.text, "\n\r\033"), "a message holds nothing that a terminal obeys");
        expect(st != MU_EINTERNAL, "no failure is our own");
        return 0;
    }
    expect(mu_masker_create(g, v, data[0] & 128 ? 1 << 12 : 0, &m, &err) == MU_OK, "a masker can be made");
    for (uint32_t k = 0; k < 3; k++) walk(m, (uint32_t)len * 7919 + k);
    mu_masker_free(m);
    mu_grammar_free(g);
    return 0;
}

bool mu_fuzz_seed(int n, uint8_t **data_out, size_t *len_out)
{
    if (n >= (int)(sizeof seeds / sizeof *seeds)) return false;
    size_t len = strlen(seeds[n].text);
    uint8_t *data = malloc(len + 1);
    if (!data) return false;
    data[0] = (uint8_t)(seeds[n].kind - 1);
    memcpy(data + 1, seeds[n].text, len);
    *data_out = data;
    *len_out = len + 1;
    return true;
}
