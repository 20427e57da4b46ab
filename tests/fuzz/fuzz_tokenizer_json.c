/* Hugging Face tokenizers, any files at all: refused with a sentence, or what comes out opens as a vocabulary and
 * tokenizes, every id within it.
 *
 * An input is a byte of flags, then the folder's files, each with three bytes of length before it (little-endian):
 * tokenizer.json (or, by a flag, tokenizer.model), tokenizer_config.json, generation_config.json. */
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "model/hf_tokenizer.h"
#include "model/tokenizer.h"

enum { PROTOBUF = 1, LITTLE_MEMORY = 2, BOUNDED = 4, N_FILE = 3, VOCAB = 300 };

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

/* A folder of the process's own, in memory where there is a place for that. */
static const char *folder(void)
{
    static char dir[64];
    if (!dir[0]) {
        strcpy(dir, access("/dev/shm", W_OK) == 0 ? "/dev/shm/fuzz-hf-XXXXXX" : "/tmp/fuzz-hf-XXXXXX");
        if (!mkdtemp(dir)) abort();
    }
    return dir;
}

static const char *path_of(const char *name)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", folder(), name);
    return path;
}

static void clear_folder(void)
{
    static const char *const names[] = {"tokenizer.json", "tokenizer.model", "tokenizer_config.json",
                                        "generation_config.json", "out.gguf"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) unlink(path_of(names[i]));
}

static void remove_folder(void)
{
    clear_folder();
    rmdir(folder());
}

static void check_vocabulary(unsigned flags)
{
    static const char text[] = "a ab  <s> \xC3\xA9"
                               "11!\n\xFF zz e\xCC\x81<t>";
    struct mu_err err = MU_ERR_INIT;
    struct mu_gguf *g = NULL;
    struct mu_tokenizer *t = NULL;
    enum mu_status st = mu_gguf_open(path_of("out.gguf"), &g, &err);
    expect(st == MU_OK, "what was written is a GGUF file");
    st = mu_tokenizer_open(g, &t, &err);
    if (st == MU_OK) {
        expect(!(flags & BOUNDED) || mu_tokenizer_n_vocab(t) == VOCAB, "the vocabulary is filled up");
        for (int special = 0; special < 2; special++) {
            int32_t *ids = NULL;
            size_t n = 0;
            st = mu_tokenizer_encode(t, text, sizeof text - 1, special, &ids, &n, &err);
            if (st != MU_OK) check_error(st, &err); /* the file's own pattern may be unfit */
            for (size_t i = 0; i < n; i++) expect(ids[i] >= 0 && ids[i] < mu_tokenizer_n_vocab(t), "an id is in range");
            mu_free(ids);
        }
    } else {
        check_error(st, &err);
    }
    mu_tokenizer_close(t);
    mu_gguf_close(g);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static bool registered;
    if (!registered) registered = atexit(remove_folder) == 0;
    if (len < 1) return 0;
    unsigned flags = data[0];
    const char *const names[N_FILE] = {flags & PROTOBUF ? "tokenizer.model" : "tokenizer.json", "tokenizer_config.json",
                                       "generation_config.json"};
    clear_folder();
    size_t at = 1;
    for (int i = 0; i < N_FILE && len - at >= 3; i++) {
        size_t n = data[at] | (size_t)data[at + 1] << 8 | (size_t)data[at + 2] << 16;
        at += 3;
        if (n > len - at) n = len - at;
        FILE *f = n ? fopen(path_of(names[i]), "wb") : NULL;
        if (f) {
            fwrite(data + at, 1, n, f);
            fclose(f);
        }
        at += n;
    }
    struct mu_gguf_writer *w;
    struct mu_err err = MU_ERR_INIT;
    if (mu_gguf_writer_open(path_of("out.gguf"), &w, &err) != MU_OK) return 0;
    if (flags & LITTLE_MEMORY) mu_alloc_fail_at(1 + flags / 8);
    enum mu_status st = mu_hf_tokenizer_put(folder(), w, flags & BOUNDED ? VOCAB : 0, &err);
    mu_alloc_fail_at(0);
    if (st != MU_OK) check_error(st, &err);
    if (mu_gguf_writer_close(w, st == MU_OK, &err) == MU_OK && st == MU_OK) check_vocabulary(flags);
    return 0;
}

/* ---- seeds ---- */

static const char BYTE_LEVEL[] =
    "{\"version\": \"1.0\", \"added_tokens\": [{\"id\": 11, \"content\": \"<s>\", \"special\": true, \"lstrip\": "
    "false, "
    "\"rstrip\": true}, {\"id\": 12, \"content\": \"<t>\", \"special\": false}], \"normalizer\": {\"type\": \"NFC\"}, "
    "\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", \"pattern\": {\"Regex\": "
    "\"\\\\s+|\\\\d|[^\\\\s\\\\d]+|\\\\p{Han}\"}, \"behavior\": \"Isolated\", \"invert\": false}, {\"type\": "
    "\"Digits\", "
    "\"individual_digits\": true}, {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": false}]}, "
    "\"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": \"<s>\"}}, "
    "{\"Sequence\": "
    "{\"id\": \"A\"}}]}, \"model\": {\"type\": \"BPE\", \"ignore_merges\": true, \"vocab\": {\"a\": 0, \"b\": 1, "
    "\"c\": 2, "
    "\"ab\": 3, \"bc\": 4, \"abc\": 5, \"\\u0120\": 6, \"\\u0120a\": 7, \"1\": 8, \"11\": 9, \"!\": 10}, \"merges\": "
    "[[\"a\", "
    "\"b\"], \"b c\", [\"ab\", \"c\"], \"\\u0120 a\", \"1 1\"]}}";
static const char SPM[] =
    "{\"added_tokens\": [{\"id\": 1, \"content\": \"<s>\", \"special\": true}], \"normalizer\": {\"type\": "
    "\"Sequence\", "
    "\"normalizers\": [{\"type\": \"Prepend\", \"prepend\": \"\\u2581\"}, {\"type\": \"Replace\", \"pattern\": "
    "{\"String\": \" "
    "\"}, \"content\": \"\\u2581\"}]}, \"pre_tokenizer\": null, \"model\": {\"type\": \"BPE\", \"unk_token\": "
    "\"<unk>\", "
    "\"byte_fallback\": true, \"vocab\": {\"<unk>\": 0, \"<s>\": 1, \"<0xC3>\": 2, \"<0xA9>\": 3, \"\\u2581\": 4, "
    "\"a\": 5, "
    "\"b\": 6, \"\\u2581a\": 7, \"ab\": 8, \"zz\": 9, \"z\": 10}, \"merges\": [\"\\u2581 a\", \"a b\"]}}";
static const char METASPACE[] = "{\"added_tokens\": [], \"normalizer\": null, \"pre_tokenizer\": {\"type\": "
                                "\"Metaspace\", \"replacement\": \"\\u2581\", "
                                "\"prepend_scheme\": \"first\", \"split\": false}, \"model\": {\"type\": \"BPE\", "
                                "\"vocab\": {\"\\u2581\": 0, \"a\": 1, "
                                "\"\\u2581a\": 2}, \"merges\": [[\"\\u2581\", \"a\"]]}}";
static const char UNIGRAM[] = "{\"model\": {\"type\": \"Unigram\", \"vocab\": [[\"a\", -1.5]]}}";
/* pieces "<unk>" (unknown), "a", "\u2581a", "<0x0A>" (byte); trainer: BPE; normalizer: no prefix, nothing trimmed */
static const char MODEL[] = "\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02\x0a\x08\x0a\x01"
                            "a\x15\x00\x00\x80\xbf"
                            "\x0a\x0b\x0a\x04\xe2\x96\x81"
                            "a\x15\x00\x00\x00\xc0\x0a\x0f\x0a\x06<0x0A>\x15\x00\x00\x00\x00"
                            "\x18\x06\x12\x02\x18\x02\x1a\x06\x18\x00\x20\x00\x28\x01";
static const char CONFIG[] = "{\"bos_token\": \"<s>\", \"eos_token\": {\"content\": \"<t>\"}, \"add_bos_token\": true, "
                             "\"added_tokens_decoder\": "
                             "{\"13\": {\"content\": \"<u>\", \"special\": true}}, \"chat_template\": [{\"name\": "
                             "\"default\", \"template\": \"D\"}, "
                             "{\"name\": \"tool_use\", \"template\": \"T\"}]}";
static const char GENERATION[] = "{\"bos_token_id\": 1, \"eos_token_id\": [2, 3, 12]}";

static size_t put(uint8_t *p, const char *text, size_t n)
{
    p[0] = (uint8_t)n, p[1] = (uint8_t)(n >> 8), p[2] = (uint8_t)(n >> 16);
    memcpy(p + 3, text, n);
    return n + 3;
}

bool mu_fuzz_seed(int n, uint8_t **data_out, size_t *len_out)
{
    static const struct {
        const char *text;
        size_t len;
        unsigned flags;
    } seeds[] = {
        {BYTE_LEVEL, sizeof BYTE_LEVEL - 1, 0},      {SPM, sizeof SPM - 1, BOUNDED},
        {METASPACE, sizeof METASPACE - 1, 0},        {UNIGRAM, sizeof UNIGRAM - 1, 0},
        {MODEL, sizeof MODEL - 1, PROTOBUF},         {BYTE_LEVEL, sizeof BYTE_LEVEL - 1, LITTLE_MEMORY | 64},
        {SPM, sizeof SPM - 1, LITTLE_MEMORY | 0x48},
    };
    if (n >= (int)(sizeof seeds / sizeof seeds[0])) return false;
    uint8_t *p = malloc(1 + 9 + seeds[n].len + sizeof CONFIG + sizeof GENERATION);
    if (!p) return false;
    size_t at = 1;
    p[0] = (uint8_t)seeds[n].flags;
    at += put(p + at, seeds[n].text, seeds[n].len);
    at += put(p + at, CONFIG, sizeof CONFIG - 1);
    at += put(p + at, GENERATION, sizeof GENERATION - 1);
    *data_out = p;
    *len_out = at;
    return true;
}
