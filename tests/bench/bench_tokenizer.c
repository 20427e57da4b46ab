/* How fast vocabularies open, encode and decode, over texts of many kinds.
 *
 *   bench_tokenizer [-m MEGABYTES] [-f TEXT_FILE]… VOCABULARY.gguf…
 *
 * Each line is a vocabulary, each column a text: MB/s of encoding, then of decoding. Without -f the English is words
 * drawn at random from a page of Shakespeare, some of them misspelt, so that a cache of words is of little more use than
 * with real text. One thread, processor time; the best of three runs. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/alloc.h"
#include "base/io.h"
#include "model/tokenizer.h"

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

static const char PAGE[] =
    "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\nThe slings and arrows of "
    "outrageous fortune,\nOr to take arms against a sea of troubles\nAnd by opposing end them. To die\u2014to "
    "sleep,\nNo "
    "more; and by a sleep to say we end\nThe heart-ache and the thousand natural shocks\nThat flesh is heir to: 'tis a "
    "consummation\nDevoutly to be wish'd. To die, to sleep;\nTo sleep, perchance to dream\u2014ay, there's the "
    "rub:\nFor "
    "in that sleep of death what dreams may come,\nWhen we have shuffled off this mortal coil,\nMust give us "
    "pause\u2014there's the respect\nThat makes calamity of so long life.\nFor who would bear the whips and scorns of "
    "time,\nTh'oppressor's wrong, the proud man's contumely,\nThe pangs of dispriz'd love, the law's delay,\nThe "
    "insolence of office, and the spurns\nThat patient merit of th'unworthy takes,\nWhen he himself might his quietus "
    "make\nWith a bare bodkin? Who would fardels bear,\nTo grunt and sweat under a weary life,\nBut that the dread of "
    "something after death,\nThe undiscovere'd country, from whose bourn\nNo traveller returns, puzzles the will,\n";

static void fill_english(char *text, size_t n)
{
    const char *words[1024];
    size_t lens[1024], n_word = 0;
    for (const char *p = PAGE; *p; p += lens[n_word - 1]) {
        lens[n_word] = 1 + strcspn(p + 1, " \n");
        words[n_word++] = p;
    }
    for (size_t i = 0; i < n;) {
        char made[32];
        size_t w = below((unsigned)n_word), len = lens[w] < sizeof made ? lens[w] : sizeof made, left = n - i;
        memcpy(made, words[w], len);
        if (len > 3 && below(8) == 0) made[2] = (char)('a' + below(26));
        if (left < 2 * sizeof made) made[0] = ' ', len = 1; /* no half character at the end */
        memcpy(text + i, made, len);
        i += len;
    }
}

static void fill_repeat(char *text, size_t n, const char *unit)
{
    size_t len = strlen(unit);
    for (size_t i = 0; i < n; i++) text[i] = i < n - n % len ? unit[i % len] : ' ';
}

static void put(char *text, size_t *at, size_t n, unsigned cp)
{
    char c[3] = {(char)(0xE0 | cp >> 12), (char)(0x80 | (cp >> 6 & 63)), (char)(0x80 | (cp & 63))};
    if (n - *at < 3) {
        text[(*at)++] = ' ';
        return;
    }
    memcpy(text + *at, c, 3);
    *at += 3;
}

static const char *const KINDS[] = {"English", "a",      "spaces", "emoji", "digits", "newlines",
                                    "Chinese", "random", "marks",  "ab",    "<|",     "mixed"};
enum { N_KIND = sizeof KINDS / sizeof KINDS[0] };

static void fill(char *text, size_t n, int kind)
{
    switch (kind) {
    case 0: fill_english(text, n); break;
    case 1: memset(text, 'a', n); break;
    case 2: memset(text, ' ', n); break;
    case 3: fill_repeat(text, n, "\xF0\x9F\x98\x80"); break;
    case 4:
        for (size_t i = 0; i < n; i++) text[i] = (char)('0' + below(10));
        break;
    case 5: memset(text, '\n', n); break;
    case 6:
        for (size_t i = 0; i < n;) put(text, &i, n, 0x4E00 + below(3000) % (1 + below(3000)));
        break;
    case 7:
        for (size_t i = 0; i < n; i++) text[i] = (char)below(256);
        break;
    case 8: fill_repeat(text, n, "\xCC\x81\xCC\xA3"); break; /* marks in the wrong order */
    case 9:
        for (size_t i = 0; i < n; i++) text[i] = "ab"[below(2)];
        break;
    case 10: fill_repeat(text, n, "<|"); break;
    default: /* a thousand bytes of each in turn */
        for (size_t i = 0, k = 0; i < n; i += 1000, k++) fill(text + i, n - i < 1000 ? n - i : 1000, (int)(k % 11));
    }
}

static int measure(const struct mu_tokenizer *t, const char *text, size_t n)
{
    struct mu_err err = MU_ERR_INIT;
    double encode = 1e9, decode = 1e9;
    for (int run = 0; run < 3; run++) {
        int32_t *ids;
        size_t n_ids, len;
        char *back;
        double a = now();
        if (mu_tokenizer_encode(t, text, n, true, &ids, &n_ids, &err) != MU_OK) goto fail;
        double b = now();
        if (mu_tokenizer_decode(t, ids, n_ids, true, &back, &len, &err) != MU_OK) goto fail;
        double c = now();
        encode = b - a < encode ? b - a : encode;
        decode = c - b < decode ? c - b : decode;
        mu_free(ids);
        mu_free(back);
        if (b - a > 1) break; /* slow enough to be sure */
    }
    printf(" %7.1f/%-4.0f", (double)n / 1e6 / encode, (double)n / 1e6 / decode);
    fflush(stdout);
    return 0;
fail:
    fprintf(stderr, "\n%s\n", err.text);
    return 1;
}

static int bench(const char *path, char *text, size_t n, char *const *files, int n_file)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_gguf *g = NULL;
    struct mu_tokenizer *t = NULL;
    double start = now();
    if (mu_gguf_open(path, &g, &err) != MU_OK || mu_tokenizer_open(g, &t, &err) != MU_OK) {
        fprintf(stderr, "%s\n", err.text);
        mu_gguf_close(g);
        return 1;
    }
    const char *name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    printf("%-18.18s %5.0f ms", name, 1e3 * (now() - start));
    int rc = 0;
    for (int k = 0; k < N_KIND && !rc; k++) {
        fill(text, n, k);
        rc = measure(t, text, n);
    }
    for (int k = 0; k < n_file && !rc; k++) {
        char *data;
        size_t len;
        if (mu_file_read(files[k], 1 << 30, &data, &len, &err) != MU_OK) {
            fprintf(stderr, "\n%s\n", err.text);
            rc = 1;
            break;
        }
        rc = measure(t, data, len);
        mu_free(data);
    }
    printf("\n");
    mu_tokenizer_close(t);
    mu_gguf_close(g);
    return rc;
}

int main(int argc, char **argv)
{
    enum { FILES_MAX = 16 };
    char *files[FILES_MAX];
    int n_file = 0, rc = 0;
    size_t n = 1 << 20;
    for (int c; (c = getopt(argc, argv, "m:f:")) != -1;) {
        if (c == 'm' && atoi(optarg) > 0 && atoi(optarg) <= 512) n = (size_t)atoi(optarg) << 20;
        if (c == 'f' && n_file < FILES_MAX) files[n_file++] = optarg;
        if (c == '?') return 2;
    }
    if (optind == argc) {
        fprintf(stderr, "usage: bench_tokenizer [-m MEGABYTES] [-f TEXT_FILE]... VOCABULARY.gguf...\n");
        return 2;
    }
    char *text = malloc(n);
    if (!text) return 1;
    printf("%-18s %5s   ", "MB/s in/out", "opens");
    for (int k = 0; k < N_KIND; k++) printf(" %12s", KINDS[k]);
    for (int k = 0; k < n_file; k++) printf(" %12s", strrchr(files[k], '/') ? strrchr(files[k], '/') + 1 : files[k]);
    printf("\n");
    for (int i = optind; i < argc && !rc; i++) rc = bench(argv[i], text, n, files, n_file);
    free(text);
    return rc;
}
