/* What the tokenizer tests share: the fixtures' folder, JSON Lines, vocabularies made in memory files. */
#ifndef MU_TESTS_TOK_FIXTURE_H
#define MU_TESTS_TOK_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/alloc.h"
#include "model/gguf.h"
#include "model/gguf_write.h"
#include "model/tokenizer.h"
#include "tests/fixtures.h"

static const char *const TOK_REAL[] = {"llama-spm",    "phi-3", "gemma",     "gemma3",    "falcon", "gpt-2",
                                       "deepseek-llm", "mpt",   "starcoder", "llama-bpe", "qwen2"};
static const char *const TOK_TINY[] = {"llama2", "llama3", "mistral", "falcon7b", "phi2", "phi3", "gemma2", "qwen2"};
enum { TOK_N_REAL = 11, TOK_N_TINY = 8, TOK_N = 19 };

/* Vocabulary number i (0 … TOK_N-1): its GGUF and the stem of its .jsonl files. */
static inline void tok_paths(int i, char *gguf, char *stem, size_t size)
{
    const char *dir = fixtures_dir();
    if (i < TOK_N_REAL) {
        snprintf(gguf, size, "%s/tokenizers/%s.gguf", dir, TOK_REAL[i]);
        snprintf(stem, size, "%s/tokenizers/%s", dir, TOK_REAL[i]);
    } else {
        snprintf(gguf, size, "%s/models/%s.f16.gguf", dir, TOK_TINY[i - TOK_N_REAL]);
        snprintf(stem, size, "%s/tokenizers/tiny-%s", dir, TOK_TINY[i - TOK_N_REAL]);
    }
}

static inline struct mu_tokenizer *tok_open(const char *path, struct mu_gguf **g)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_tokenizer *t = NULL;
    if (mu_gguf_open(path, g, &err) != MU_OK) fail_msg("%s: %s", path, err.text);
    if (mu_tokenizer_open(*g, &t, &err) != MU_OK) fail_msg("%s: %s", path, err.text);
    return t;
}

static inline char *tok_read_file(const char *path, size_t *len)
{
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    fseek(f, 0, SEEK_END);
    long n = ftell(f);
    rewind(f);
    char *p = malloc((size_t)n + 1);
    assert_int_equal(fread(p, 1, (size_t)n, f), (size_t)n);
    p[n] = '\0';
    fclose(f);
    *len = (size_t)n;
    return p;
}

/* Calls line(object, ctx) for every line of a .jsonl file; false: there is no such file. */
static inline int tok_each_line(const char *path, void (*line)(const json_t *, void *), void *ctx)
{
    size_t len;
    char *text = tok_read_file(path, &len);
    int n = 0;
    if (!text) return 0;
    for (char *p = text, *end = text + len; p < end;) {
        char *nl = memchr(p, '\n', (size_t)(end - p));
        size_t line_len = nl ? (size_t)(nl - p) : (size_t)(end - p);
        if (line_len) {
            json_error_t je;
            json_t *j = json_loadb(p, line_len, JSON_ALLOW_NUL, &je);
            if (!j) fail_msg("%s line %d: %s", path, n + 1, je.text);
            line(j, ctx);
            json_decref(j);
            n++;
        }
        p += line_len + 1;
    }
    free(text);
    return n;
}

static inline size_t tok_unhex(const char *hex, char *out)
{
    size_t n = 0;
    unsigned b;
    for (; sscanf(hex, "%2x", &b) == 1; hex += 2) out[n++] = (char)b;
    return n;
}

/* xorshift (Marsaglia, 2003), the same numbers in every run. */
static inline unsigned random_below(unsigned n)
{
    static uint64_t state = 88172645463325252u;
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (unsigned)(state >> 33) % n;
}

/* Ids for a message. */
static inline char *show(const int32_t *ids, size_t n)
{
    static char buf[2048];
    size_t at = 0;
    buf[0] = '\0';
    for (size_t i = 0; i < n && at + 16 < sizeof buf; i++)
        at += (size_t)snprintf(buf + at, sizeof buf - at, "%d ", ids[i]);
    return buf;
}

static inline double tok_now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

#endif
