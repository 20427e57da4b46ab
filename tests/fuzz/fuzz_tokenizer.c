/* Tokenizers on any vocabulary and any text: refused with a sentence, or every id is one of the vocabulary's and
 * decodes.
 *
 * An input is a byte of flags, a byte that says how long the text is, the text, and the GGUF file that holds the
 * vocabulary. */
#include "tests/fuzz/fuzz.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "model/gguf_write.h"
#include "model/tokenizer.h"
#include "model/utf8.h"

enum { PARSE_SPECIAL = 1, REPEAT = 2, LITTLE_MEMORY = 4, REPEATS = 24 };

static void expect(bool ok, const char *what)
{
    if (ok) return;
    fprintf(stderr, "broken: %s\n", what);
    abort();
}

static void check_error(enum mu_status st, const struct mu_err *err)
{
    expect(err->code == st && err->text[0], "a failure says what it is");
    expect(!strpbrk(err->text, "\n\r\033"), "a message holds nothing that a terminal obeys");
}

static void check_stream(const struct mu_tokenizer *t, const int32_t *ids, size_t n)
{
    struct mu_streamer s;
    char *buf = NULL;
    size_t len = 0, cap = 0;
    uint32_t cp;
    mu_streamer_init(&s, t, true);
    for (size_t i = 0; i < n; i++) expect(mu_streamer_push(&s, ids[i], &buf, &len, &cap) == MU_OK, "a stream goes on");
    expect(mu_streamer_finish(&s, &buf, &len, &cap) == MU_OK, "a stream ends");
    for (size_t at = 0; at < len;) {
        int step = mu_utf8_next(buf + at, len - at, &cp);
        expect(step > 0, "a stream is UTF-8");
        at += (size_t)step;
    }
    mu_free(buf);
}

static void check_text(const struct mu_tokenizer *t, const char *text, size_t n, bool special, bool complete)
{
    struct mu_err err = MU_ERR_INIT;
    int32_t *ids = NULL;
    size_t n_ids = 0, len = 0;
    char *back = NULL;
    enum mu_status st = mu_tokenizer_encode(t, text, n, special, &ids, &n_ids, &err);
    if (st != MU_OK) {
        check_error(st, &err);
        expect(!complete || st == MU_ELIMIT, "any text is accepted, but by a pattern of the file's own");
        return;
    }
    for (size_t i = 0; i < n_ids; i++) expect(ids[i] >= 0 && ids[i] < mu_tokenizer_n_vocab(t), "an id is in range");
    if (complete) {
        expect(mu_tokenizer_decode(t, ids, n_ids, true, &back, &len, &err) == MU_OK && back[len] == '\0', "ids decode");
        mu_free(back);
        check_stream(t, ids, n_ids);
    }
    mu_free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static int fd = -1;
    static char text[255 * REPEATS + 1];
    char path[64];
    struct mu_gguf *g = NULL;
    struct mu_tokenizer *t = NULL;
    struct mu_err err = MU_ERR_INIT;
    if (len < 2 || len - 2 < data[1]) return 0;
    unsigned flags = data[0];
    size_t n_text = data[1], gguf_at = 2 + n_text;
    int repeats = flags & REPEAT ? REPEATS : 1;
    for (int i = 0; i < repeats; i++) memcpy(text + (size_t)i * n_text, data + 2, n_text);
    n_text *= (size_t)repeats;

    if (fd < 0) fd = memfd_create("fuzz", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, 0) != 0 || pwrite(fd, data + gguf_at, len - gguf_at, 0) != (ssize_t)(len - gguf_at))
        return 0;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    enum mu_status st = mu_gguf_open(path, &g, &err);
    if (st != MU_OK) {
        check_error(st, &err);
        return 0;
    }
    if (flags & LITTLE_MEMORY) mu_alloc_fail_at(1 + flags / 8);
    st = mu_tokenizer_open(g, &t, &err);
    if (st == MU_OK) {
        expect(mu_tokenizer_bos(t) < mu_tokenizer_n_vocab(t) && mu_tokenizer_eos(t) < mu_tokenizer_n_vocab(t),
               "special ids are in range");
        check_text(t, text, n_text, flags & PARSE_SPECIAL, !(flags & LITTLE_MEMORY));
        for (int id = -1; id <= mu_tokenizer_n_vocab(t); id++) mu_tokenizer_piece(t, id, id & 1);
    } else {
        check_error(st, &err);
        expect(!t, "nothing is set on failure");
    }
    mu_alloc_fail_at(0);
    mu_tokenizer_close(t);
    mu_gguf_close(g);
    return 0;
}

/* ---- seeds: small vocabularies of both kinds, with every sort of token ---- */

static struct mu_str str(const char *p)
{
    return (struct mu_str){p, strlen(p)};
}

static void put_vocabulary(struct mu_gguf_writer *w, bool spm)
{
    enum { MAX = 320 };
    static const char *const spm_texts[] = {"\xE2\x96\x81",
                                            "a",
                                            "b",
                                            ("\xE2\x96\x81"
                                             "a"),
                                            "ab",
                                            "aba",
                                            "abab",
                                            "\xE4\xB8\xAD",
                                            "\xE2\x96\x81\xE2\x96\x81"};
    static const char *const bpe_texts[] = {"ab",
                                            ("\xC4\xA0"
                                             "a"),
                                            "abab",
                                            "\xC4\xA0\xC4\xA0",
                                            "12",
                                            "\xC3\xA4\xC2\xB8"};
    static const char *const merges[] = {"a b", "\xC4\xA0 a", "ab ab", "\xC4\xA0 \xC4\xA0", "1 2", "\xC3\xA4 \xC2\xB8"};
    static const char *const specials[] = {"<unk>", "<s>", "</s>", "<|eot_id|>", "<tool>", "  "};
    static const int32_t special_types[] = {2, 3, 3, 3, 4, 4};
    static char text[256][8];
    struct mu_str tokens[MAX];
    struct mu_str merge_texts[6];
    int32_t types[MAX];
    float scores[MAX];
    int n = 0, next = 256;
    for (int i = 0; i < 6; i++, n++) tokens[n] = str(specials[i]), types[n] = special_types[i], scores[n] = 0;
    for (int b = 0; b < 256; b++, n++) {
        bool printable = (b >= 33 && b <= 126) || (b >= 161 && b != 173);
        int cp = printable ? b : next++;
        if (spm)
            snprintf(text[b], sizeof text[b], "<0x%02X>", (unsigned)b);
        else if (cp < 0x80)
            snprintf(text[b], sizeof text[b], "%c", cp);
        else
            snprintf(text[b], sizeof text[b], "%c%c", 0xC0 | cp >> 6, 0x80 | (cp & 0x3F));
        tokens[n] = str(text[b]);
        types[n] = spm ? 6 : 1;
        scores[n] = 0;
    }
    for (int i = 0; i < (spm ? 9 : 6); i++, n++) {
        tokens[n] = str(spm ? spm_texts[i] : bpe_texts[i]);
        types[n] = 1;
        scores[n] = (float)-i;
    }
    mu_gguf_put_str(w, "tokenizer.ggml.model", spm ? "llama" : "gpt2", spm ? 5 : 4);
    mu_gguf_put_strs(w, "tokenizer.ggml.tokens", tokens, (uint64_t)n);
    mu_gguf_put_i32s(w, "tokenizer.ggml.token_type", types, (uint64_t)n);
    mu_gguf_put_u32(w, "tokenizer.ggml.bos_token_id", 1);
    mu_gguf_put_u32(w, "tokenizer.ggml.eos_token_id", 2);
    mu_gguf_put_bool(w, "tokenizer.ggml.add_space_prefix", true);
    if (spm) {
        mu_gguf_put_f32s(w, "tokenizer.ggml.scores", scores, (uint64_t)n);
        mu_gguf_put_str(w, "general.name", "Phi-3", 5);
        return;
    }
    for (int i = 0; i < 6; i++) merge_texts[i] = str(merges[i]);
    mu_gguf_put_strs(w, "tokenizer.ggml.merges", merge_texts, 6);
}

/* The keys that tokenizers of Hugging Face folders have. */
static void put_own_keys(struct mu_gguf_writer *w, bool spm)
{
    static const int32_t strips[] = {1, 3, 4}, ends[] = {3, 5};
    const struct mu_str patterns[] = {str("\\p{L}+|(?=1)"), str("[^a]?b|\\p{White_Space}+(?!\\P{White_Space})")},
                        merges[] = {str("a b"), str("\xE2\x96\x81 a"), str("ab a"), str("ab ab")};
    mu_gguf_put_bool(w, "tokenizer.ggml.normalizer.nfc", true);
    mu_gguf_put_i32s(w, "muster.tokenizer.strip_left", strips, 3);
    mu_gguf_put_i32s(w, "muster.tokenizer.strip_right", strips + 1, 2);
    mu_gguf_put_i32s(w, "muster.tokenizer.end_ids", ends, 2);
    mu_gguf_put_bool(w, "muster.tokenizer.whole_words", true);
    mu_gguf_put_bool(w, "muster.tokenizer.by_merges", spm);
    mu_gguf_put_bool(w, "muster.tokenizer.first_space", true);
    mu_gguf_put_bool(w, "muster.tokenizer.one_space", true);
    if (spm)
        mu_gguf_put_strs(w, "tokenizer.ggml.merges", merges, 4);
    else
        mu_gguf_put_strs(w, "muster.tokenizer.patterns", patterns, 2);
}

/* Characters that NFC makes three times as long. */
#define NOTES "\xF0\x9D\x85\xA0\xF0\x9D\x85\xA0\xF0\x9D\x85\xA0\xF0\x9D\x85\xA0"

bool mu_fuzz_seed(int n, uint8_t **data_out, size_t *len_out)
{
    static const char *const pres[] = {NULL,     "llama-bpe", "deepseek-llm", "falcon",
                                       "gpt-4o", "default",   NULL,           "superbpe"};
    enum { SPM, RANKED = 6, OWN_PATTERNS = 7 };
    static const char text[] =
        "<s>abab aba  <tool> ab\xE4\xB8\xAD 1234,e\xCC\xA3\xCC\x81\xFF\xC3 \xE2\x96\x81 a\n\n</s> they'll  " NOTES NOTES
            NOTES;
    enum { PREFIX = 2 + sizeof text - 1 };
    char path[] = "/tmp/fuzz-tokenizer-XXXXXX";
    struct mu_gguf_writer *w;
    struct mu_err err = MU_ERR_INIT;
    struct stat sb;
    if (n >= (int)(sizeof pres / sizeof pres[0])) return false;
    int fd = mkstemp(path);
    if (fd < 0) return false;
    close(fd);
    bool ok = mu_gguf_writer_open(path, &w, &err) == MU_OK;
    if (ok) {
        if (pres[n]) mu_gguf_put_str(w, "tokenizer.ggml.pre", pres[n], strlen(pres[n]));
        put_vocabulary(w, n == SPM || n == RANKED);
        if (n == RANKED || n == OWN_PATTERNS) put_own_keys(w, n == RANKED);
        ok = mu_gguf_writer_close(w, 1, &err) == MU_OK;
    }
    fd = ok ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    ok = fd >= 0 && fstat(fd, &sb) == 0;
    uint8_t *data = ok ? malloc(PREFIX + (size_t)sb.st_size) : NULL;
    if (data) {
        data[0] = n & 1 ? PARSE_SPECIAL : PARSE_SPECIAL | REPEAT;
        data[1] = sizeof text - 1;
        memcpy(data + 2, text, sizeof text - 1);
        ok = read(fd, data + PREFIX, (size_t)sb.st_size) == sb.st_size;
        *data_out = data;
        *len_out = PREFIX + (size_t)sb.st_size;
    } else if (!ok) {
        fprintf(stderr, "seed %d: %s\n", n, err.text);
    }
    if (fd >= 0) close(fd);
    unlink(path);
    return ok && data;
}
