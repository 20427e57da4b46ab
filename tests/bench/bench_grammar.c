/* What a constraint costs: compiling it, meeting a vocabulary, and the mask of each step.
 *
 *   bench_grammar [-n TEXTS] [-s FILE.json] VOCABULARY.gguf…
 *
 * For each grammar: texts are walked along their masks (random ids, closers preferred after a while); the first texts are
 * those that work masks out, so the worst figures are theirs. Times are of mu_constraint_mask alone; one thread,
 * processor time. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/alloc.h"
#include "base/io.h"
#include "model/constraint.h"

static double now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts); /* other work on the machine does not count */
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

static unsigned below(unsigned n)
{
    static uint64_t state = 88172645463325252u;
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (unsigned)(state >> 33) % n;
}

static const struct {
    const char *name;
    enum mu_constraint_kind kind;
    const char *text;
} CASES[] = {
    {"json", MU_CONSTRAINT_JSON, ""},
    {"person", MU_CONSTRAINT_JSON_SCHEMA,
     "{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\"},\"age\":{\"type\":\"integer\",\"minimum\":0,"
     "\"maximum\":130},\"email\":{\"type\":\"string\",\"format\":\"email\"},\"notes\":{\"type\":\"array\",\"items\":"
     "{\"type\":\"string\"}},\"address\":{\"type\":\"object\",\"properties\":{\"street\":{\"type\":\"string\"},"
     "\"city\":"
     "{\"type\":\"string\"}},\"required\":[\"street\",\"city\"]}},\"required\":[\"name\",\"age\",\"email\",\"notes\","
     "\"address\"],\"additionalProperties\":false}"},
    {"recursive", MU_CONSTRAINT_JSON_SCHEMA,
     "{\"type\":\"object\",\"properties\":{\"type\":{\"enum\":[\"div\",\"button\",\"form\"]},\"label\":{\"type\":"
     "\"string\"},\"children\":{\"type\":\"array\",\"items\":{\"$ref\":\"#\"}}},\"required\":[\"type\",\"label\","
     "\"children\"],\"additionalProperties\":false}"},
    {"bounded", MU_CONSTRAINT_JSON_SCHEMA,
     "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"string\",\"maxLength\":1000},\"b\":{\"type\":\"string\","
     "\"minLength\":5,\"maxLength\":40},\"c\":{\"type\":\"string\",\"pattern\":\"^[A-Za-z ]+$\",\"maxLength\":80}},"
     "\"required\":[\"a\",\"b\",\"c\"]}"},
    {"regex", MU_CONSTRAINT_REGEX, "(?:[A-Z][a-z]+ ){3,8}(?:https?://[a-z]+\\.[a-z]{2,3}/\\S*|\\d+(?:\\.\\d+)?%)"},
    {"gbnf", MU_CONSTRAINT_GBNF,
     "root ::= object\nvalue ::= object | array | string | number | (\"true\" | \"false\" | \"null\") ws\n"
     "object ::= \"{\" ws ( string \":\" ws value (\",\" ws string \":\" ws value)* )? \"}\" ws\n"
     "array ::= \"[\" ws ( value (\",\" ws value)* )? \"]\" ws\n"
     "string ::= \"\\\"\" ( [^\"\\\\\\x7F\\x00-\\x1F] | \"\\\\\" ([\"\\\\bfnrt] | \"u\" [0-9a-fA-F]{4}) )* \"\\\"\" "
     "ws\n"
     "number ::= (\"-\"? ([0-9] | [1-9] [0-9]{0,15})) (\".\" [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws\n"
     "ws ::= | \" \" | \"\\n\" [ \\t]{0,20}"},
    {"ambiguous", MU_CONSTRAINT_GBNF,
     "root ::= s+\ns ::= \"if\" ws e s | \"if\" ws e s \"else \" s | e \";\" ws\ne ::= [a-z0-9]+ ws | e2 | \"(\" e "
     "\")\" ws\n"
     "e2 ::= [a-z]+ ws [-+*/] ws e\nws ::= [ \\n]*"},
};

static int by_value(const void *x, const void *y)
{
    double a = *(const double *)x, b = *(const double *)y;
    return a < b ? -1 : a > b;
}

static int pick(const struct mu_tokenizer *t, const uint32_t *mask, int n, bool end)
{
    int chosen = -1, closing = -1;
    unsigned k = 0, n_closing = 0;
    for (int i = 0; i < (n + 31) / 32; i++) {
        for (uint32_t w = mask[i]; w; w &= w - 1) {
            int id = i * 32 + __builtin_ctz(w);
            if (below(++k) == 0) chosen = id;
            if (!end) continue;
            struct mu_str piece = mu_tokenizer_piece(t, id, false);
            if (mu_tokenizer_is_end(t, id)) return id;
            if (piece.len == 1 && strchr("\"}])0;", *piece.p) && below(++n_closing) == 0) closing = id;
        }
    }
    return closing >= 0 ? closing : chosen;
}

enum { STEPS_MAX = 1 << 17, TEXT_STEPS = 300 };
static double times[STEPS_MAX];

static int walk(struct mu_masker *m, const struct mu_tokenizer *t, uint32_t *mask, int n_text, int *n_time,
                struct mu_err *err)
{
    for (int k = 0; k < n_text; k++) {
        struct mu_constraint *c;
        if (mu_constraint_create(m, &c, err) != MU_OK) return 1;
        for (int i = 0; i < TEXT_STEPS && *n_time < STEPS_MAX; i++) {
            double a = now();
            if (mu_constraint_mask(c, mask, err) != MU_OK) return 1;
            times[(*n_time)++] = now() - a;
            int id = pick(t, mask, mu_tokenizer_n_vocab(t), i > 40 && below(4));
            if (id < 0 || mu_tokenizer_is_end(t, id)) break;
            if (mu_constraint_accept(c, id, err) != MU_OK) return 1;
        }
        mu_constraint_free(c);
    }
    return 0;
}

static int bench(const char *name, enum mu_constraint_kind kind, const char *text, size_t len,
                 const struct mu_tokenizer *t, const struct mu_constraint_vocab *v, int n_text)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_grammar *g;
    struct mu_masker *m;
    uint32_t *mask = calloc(mu_constraint_mask_words(v) + 1, 4);
    double a = now();
    if (mu_grammar_compile(kind, text, len, &g, &err) != MU_OK) goto fail;
    double b = now();
    if (mu_masker_create(g, v, 0, &m, &err) != MU_OK) goto fail;
    double c = now(), sum = 0;
    int n = 0;
    if (walk(m, t, mask, n_text, &n, &err)) goto fail;
    for (int i = 0; i < n; i++) sum += times[i];
    double first = times[0];
    qsort(times, (size_t)n, sizeof *times, by_value);
    printf("  %-10s %7zu %8.2f %8.2f %7d %8.2f %8.2f %8.2f %8.1f %8.1f %8.1f %6.1f\n", name, mu_grammar_size(g, NULL),
           1e3 * (b - a), 1e3 * (c - b), n, 1e6 * first, 1e6 * times[n / 2], 1e6 * sum / n, 1e6 * times[n * 9 / 10],
           1e6 * times[n * 99 / 100], 1e6 * times[n - 1], (double)mu_masker_bytes(m) / (1 << 20));
    mu_masker_free(m);
    mu_grammar_free(g);
    free(mask);
    return 0;
fail:
    fprintf(stderr, "%s: %s\n", name, err.text);
    free(mask);
    return 1;
}

int main(int argc, char **argv)
{
    int n_text = 100, rc = 0;
    char *file = NULL;
    size_t file_len = 0;
    struct mu_err err = MU_ERR_INIT;
    for (int c; (c = getopt(argc, argv, "n:s:")) != -1;) {
        if (c == 'n' && atoi(optarg) > 0) n_text = atoi(optarg);
        if (c == 's' && mu_file_read(optarg, MU_CONSTRAINT_TEXT_MAX, &file, &file_len, &err) != MU_OK) {
            fprintf(stderr, "%s\n", err.text);
            return 1;
        }
        if (c == '?') return 2;
    }
    if (optind == argc) {
        fprintf(stderr, "usage: bench_grammar [-n TEXTS] [-s FILE.json] VOCABULARY.gguf...\n");
        return 2;
    }
    for (int i = optind; i < argc && !rc; i++) {
        struct mu_gguf *g;
        struct mu_tokenizer *t;
        struct mu_constraint_vocab *v;
        if (mu_gguf_open(argv[i], &g, &err) != MU_OK || mu_tokenizer_open(g, &t, &err) != MU_OK) {
            fprintf(stderr, "%s\n", err.text);
            return 1;
        }
        double a = now();
        if (mu_constraint_vocab_create(t, &v, &err) != MU_OK) {
            fprintf(stderr, "%s\n", err.text);
            return 1;
        }
        printf("%s: %d tokens, %.0f ms, %.1f MiB\n", argv[i], mu_tokenizer_n_vocab(t), 1e3 * (now() - a),
               (double)mu_constraint_vocab_bytes(v) / (1 << 20));
        printf("  %-10s %7s %8s %8s %7s %8s %8s %8s %8s %8s %8s %6s\n", "grammar", "nodes", "comp.ms", "meet.ms",
               "masks", "first us", "median", "mean", "p90", "p99", "worst", "MiB");
        for (size_t k = 0; k < sizeof CASES / sizeof *CASES && !rc; k++)
            rc = bench(CASES[k].name, CASES[k].kind, CASES[k].text, strlen(CASES[k].text), t, v, n_text);
        if (file && !rc) rc = bench("file", MU_CONSTRAINT_JSON_SCHEMA, file, file_len, t, v, n_text);
        mu_constraint_vocab_free(v);
        mu_tokenizer_close(t);
        mu_gguf_close(g);
    }
    mu_free(file);
    return rc;
}
