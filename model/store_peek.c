/* What a model is, from the first kilobytes of its file: listing a store must not map and check every model in it.
 *
 * The keys wanted (general.architecture, general.type, general.file_type) stand before the vocabulary in the files of
 * all converters. Where one does not, the file's name says the quantisation and the family stays unknown: the list is
 * a help, and opening the model is what decides. */
#include <ctype.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/bytes.h"
#include "base/io.h"
#include "model/gguf.h"
#include "model/store_part.h"

enum { HEAD_BYTES = 64 << 10, CONFIG_MAX_BYTES = 1 << 20 };

/* Names of general.file_type (the numbers are llama.h's enum llama_ftype). */
static const char *const file_types[] = {
    [0] = "F32",     [1] = "F16",     [2] = "Q4_0",       [3] = "Q4_1",    [7] = "Q8_0",     [8] = "Q5_0",
    [9] = "Q5_1",    [10] = "Q2_K",   [11] = "Q3_K_S",    [12] = "Q3_K_M", [13] = "Q3_K_L",  [14] = "Q4_K_S",
    [15] = "Q4_K_M", [16] = "Q5_K_S", [17] = "Q5_K_M",    [18] = "Q6_K",   [19] = "IQ2_XXS", [20] = "IQ2_XS",
    [21] = "Q2_K_S", [22] = "IQ3_XS", [23] = "IQ3_XXS",   [24] = "IQ1_S",  [25] = "IQ4_NL",  [26] = "IQ3_S",
    [27] = "IQ3_M",  [28] = "IQ2_S",  [29] = "IQ2_M",     [30] = "IQ4_XS", [31] = "IQ1_M",   [32] = "BF16",
    [36] = "TQ1_0",  [37] = "TQ2_0",  [38] = "MXFP4_MOE",
};

/* Families that read a text as a whole and generate none, or that only see or hear for another model. */
static bool is_other(const char *family)
{
    static const char *const exact[] = {
        "clip",    "mmproj", "t5encoder", "clip_vision_model", "siglip", "siglip_vision_model",
        "whisper", "vit",    "wav2vec2"};
    for (size_t i = 0; i < sizeof exact / sizeof *exact; i++)
        if (!strcasecmp(family, exact[i])) return true;
    return strcasestr(family, "bert") != NULL;
}

static struct mu_str read_str(struct mu_reader *r)
{
    uint64_t len = mu_read_u64(r);
    if (!r->ok || len > mu_reader_left(r)) {
        r->ok = false;
        return (struct mu_str){0};
    }
    return (struct mu_str){mu_read_bytes(r, (size_t)len), (size_t)len};
}

static void skip_array(struct mu_reader *r)
{
    uint32_t kind = mu_read_u32(r);
    uint64_t n = mu_read_u64(r);
    size_t each = mu_gguf_kind_bytes(kind);
    if (kind == MU_GGUF_STRING) {
        for (uint64_t i = 0; i < n && r->ok; i++) read_str(r);
    } else if (each == 0 || n > mu_reader_left(r) / each) {
        r->ok = false;
    } else {
        mu_read_bytes(r, (size_t)n * each);
    }
}

static void copy_word(struct mu_str s, char *out, size_t out_bytes)
{
    size_t n = 0;
    for (; n < s.len && n + 1 < out_bytes; n++) {
        unsigned char c = (unsigned char)s.p[n];
        if (c >= 0x80 || !(isalnum(c) || c == '-' || c == '_' || c == '.')) break;
        out[n] = (char)c;
    }
    out[n] = 0;
}

enum mu_peek mu_store_peek_bytes(const uint8_t *data, size_t len, char quant_out[16], char family_out[32])
{
    struct mu_reader r = mu_reader_of(data, len);
    const void *magic = mu_read_bytes(&r, 4);
    uint32_t version = mu_read_u32(&r);
    quant_out[0] = family_out[0] = 0;
    if (!magic || memcmp(magic, "GGUF", 4) != 0 || !r.ok || version < 2 || version > 3) return MU_PEEK_NONE;
    mu_read_u64(&r);
    uint64_t n_value = mu_read_u64(&r);
    enum mu_peek peek = MU_PEEK_MODEL;
    for (uint64_t i = 0; i < n_value && r.ok; i++) {
        struct mu_str key = read_str(&r), text = {0};
        uint32_t kind = mu_read_u32(&r), number = 0;
        if (!r.ok) break;
        if (kind == MU_GGUF_STRING)
            text = read_str(&r);
        else if (kind == MU_GGUF_ARRAY)
            skip_array(&r);
        else if (kind == MU_GGUF_U32 || kind == MU_GGUF_I32)
            number = mu_read_u32(&r);
        else if (!mu_gguf_kind_bytes(kind))
            break;
        else
            mu_read_bytes(&r, mu_gguf_kind_bytes(kind));
        if (!r.ok) break;
        if (mu_str_is(key, "general.architecture")) copy_word(text, family_out, 32);
        if (mu_str_is(key, "general.type") && text.len && !mu_str_is(text, "model")) peek = MU_PEEK_OTHER;
        if (mu_str_is(key, "general.file_type") && number < sizeof file_types / sizeof *file_types &&
            file_types[number])
            snprintf(quant_out, 16, "%s", file_types[number]);
    }
    return is_other(family_out) ? MU_PEEK_OTHER : peek;
}

enum mu_peek mu_store_peek(const char *path, char quant_out[16], char family_out[32])
{
    enum mu_peek peek = MU_PEEK_NONE;
    uint8_t *head = mu_malloc(HEAD_BYTES);
    int fd = head ? open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK) : -1;
    quant_out[0] = family_out[0] = 0;
    if (fd >= 0) {
        ssize_t n = pread(fd, head, HEAD_BYTES, 0);
        if (n > 0) peek = mu_store_peek_bytes(head, (size_t)n, quant_out, family_out);
        close(fd);
    }
    mu_free(head);
    return peek;
}

enum mu_peek mu_store_peek_folder(const char *path, char quant_out[16], char family_out[32])
{
    quant_out[0] = family_out[0] = 0;
    char *config = mu_asprintf("%s/config.json", path), *text = NULL;
    size_t len;
    json_t *doc = NULL;
    if (config && mu_file_read(config, CONFIG_MAX_BYTES, &text, &len, NULL) == MU_OK)
        doc = json_loadb(text, len, 0, NULL);
    const char *family = json_string_value(json_object_get(doc, "model_type"));
    json_t *dtype = json_object_get(doc, "torch_dtype");
    if (!dtype) dtype = json_object_get(doc, "dtype");
    const char *type = json_string_value(dtype);
    if (family) copy_word((struct mu_str){family, strlen(family)}, family_out, 32);
    if (type)
        snprintf(quant_out, 16, "%s",
                 !strcmp(type, "bfloat16")  ? "BF16"
                 : !strcmp(type, "float16") ? "F16"
                 : !strcmp(type, "float32") ? "F32"
                                            : "");
    enum mu_peek peek = !doc ? MU_PEEK_NONE : is_other(family_out) ? MU_PEEK_OTHER : MU_PEEK_MODEL;
    json_decref(doc);
    mu_free(text);
    mu_free(config);
    return peek;
}

/* Length of a quantisation's name at s: (I|T)?Q and a digit and what follows with '_', or F16, BF16, F32, FP16,
 * MXFP4; 0: none. */
static size_t quant_len(const char *s)
{
    static const char *const plain[] = {"BF16", "FP16", "FP32", "F16", "F32", "MXFP4"};
    size_t n = 0;
    for (size_t i = 0; i < sizeof plain / sizeof *plain && !n; i++)
        if (!strncasecmp(s, plain[i], strlen(plain[i]))) n = strlen(plain[i]);
    if (!n) {
        size_t q = strchr("iItT", *s) && *s ? 1 : 0;
        if (toupper((unsigned char)s[q]) != 'Q' || !isdigit((unsigned char)s[q + 1])) return 0;
        n = q + 2;
    }
    while (s[n] == '_' && isalnum((unsigned char)s[n + 1])) {
        n++;
        while (isalnum((unsigned char)s[n])) n++;
    }
    return isalnum((unsigned char)s[n]) ? 0 : n;
}

void mu_store_quant_of(const char *file_name, char quant_out[16])
{
    quant_out[0] = 0;
    for (size_t i = 0; file_name[i]; i++) {
        if (i && isalnum((unsigned char)file_name[i - 1])) continue;
        size_t n = quant_len(file_name + i);
        if (n == 0 || n >= 16) continue; /* the last one counts: "qwen-q4-chat-Q8_0.gguf" */
        for (size_t k = 0; k < n; k++) quant_out[k] = (char)toupper((unsigned char)file_name[i + k]);
        quant_out[n] = 0;
    }
}

bool mu_store_split_of(const char *file_name, int *no_out, int *count_out, size_t *len_out)
{
    enum { SUFFIX = sizeof "-00001-of-00002.gguf" - 1 };
    size_t len = strlen(file_name);
    if (len <= SUFFIX) return false;
    const char *s = file_name + len - SUFFIX;
    for (size_t i = 0; i < SUFFIX; i++) {
        char form = "-ddddd-of-ddddd.gguf"[i];
        if (form == 'd' ? !isdigit((unsigned char)s[i]) : tolower((unsigned char)s[i]) != form) return false;
    }
    *no_out = *count_out = 0;
    for (int i = 1; i < 6; i++) *no_out = *no_out * 10 + (s[i] - '0'), *count_out = *count_out * 10 + (s[i + 9] - '0');
    *len_out = len - SUFFIX;
    return true;
}
