/* A byte-level BPE vocabulary of any size: the 256 bytes, every string of letters (after a space or not) in order of
 * length, each merged from the string without its last letter and that letter, then BOS and EOS. It tokenizes any
 * text, so that benchmarks and tests can use the whole way from text to text. */
#include <string.h>

#include "base/alloc.h"
#include "base/arena.h"
#include "model/synth_part.h"

enum {
    N_FIRST = 27, /* a space, a … z */
    N_LETTER = 26,
    MAX_TEXT = 16,
    TYPE_NORMAL = 1,
    TYPE_CONTROL = 3,
};

struct vocab {
    struct mu_arena *arena;
    struct mu_str *tokens, *merges;
    int32_t *types;
    int n_token, n_merge;
};

static int put_utf8(char *p, int c)
{
    if (c < 0x80) {
        p[0] = (char)c;
        return 1;
    }
    p[0] = (char)(0xc0 | c >> 6);
    p[1] = (char)(0x80 | (c & 63));
    return 2;
}

static bool add(struct vocab *v, struct mu_str *list, int *n, const char *text, size_t len)
{
    char *copy = mu_arena_strndup(v->arena, text, len);
    if (!copy) return false;
    list[(*n)++] = (struct mu_str){copy, len};
    return true;
}

/* Bytes that print stand for themselves, the others for characters from 256 on (GPT-2's table). */
static bool add_bytes(struct vocab *v)
{
    char text[4];
    int next = 256;
    for (int pass = 0; pass < 2; pass++)
        for (int b = 0; b < 256; b++) {
            bool prints = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
            if (prints != (pass == 0)) continue;
            int len = put_utf8(text, prints ? b : next++);
            if (!add(v, v->tokens, &v->n_token, text, (size_t)len)) return false;
        }
    return true;
}

/* Strings of `length` characters numbered 0 … count−1, as tokens and merges, until n_token is reached. */
static bool add_strings(struct vocab *v, int length, int64_t count, int n_token)
{
    char text[MAX_TEXT], merge[MAX_TEXT + 1];
    for (int64_t i = 0; i < count && v->n_token < n_token; i++) {
        int64_t rest = i;
        char letters[MAX_TEXT];
        for (int k = length - 1; k > 0; k--, rest /= N_LETTER) letters[k] = (char)('a' + rest % N_LETTER);
        size_t len = rest ? (text[0] = (char)('a' + rest - 1), 1) : (size_t)put_utf8(text, 0x120); /* Ġ is a space */
        for (int k = 1; k < length; k++) text[len++] = letters[k];
        memcpy(merge, text, len - 1);
        merge[len - 1] = ' ';
        merge[len] = text[len - 1];
        if (!add(v, v->tokens, &v->n_token, text, len) || !add(v, v->merges, &v->n_merge, merge, len + 1)) return false;
    }
    return true;
}

static bool build(struct vocab *v, int n_vocab)
{
    static const char bos[] = "<|begin_of_text|>", eos[] = "<|end_of_text|>";
    if (!add_bytes(v)) return false;
    int64_t count = N_FIRST;
    for (int length = 2; v->n_token < n_vocab - 2; length++) {
        count *= N_LETTER;
        if (!add_strings(v, length, count, n_vocab - 2)) return false;
    }
    for (int i = 0; i < n_vocab; i++) v->types[i] = i < n_vocab - 2 ? TYPE_NORMAL : TYPE_CONTROL;
    return add(v, v->tokens, &v->n_token, bos, sizeof bos - 1) && add(v, v->tokens, &v->n_token, eos, sizeof eos - 1);
}

enum mu_status mu_synth_put_vocab(struct mu_gguf_writer *w, int n_vocab, struct mu_err *err)
{
    struct vocab v = {.arena = mu_arena_create(0)};
    enum mu_status st = MU_OK;
    v.tokens = mu_calloc((size_t)n_vocab, sizeof *v.tokens);
    v.merges = mu_calloc((size_t)n_vocab, sizeof *v.merges);
    v.types = mu_calloc((size_t)n_vocab, sizeof *v.types);
    if (!v.arena || !v.tokens || !v.merges || !v.types || !build(&v, n_vocab)) {
        st = mu_fail(err, MU_ENOMEM, "no memory for a vocabulary of %d tokens", n_vocab);
        goto fail;
    }
    mu_gguf_put_str(w, "tokenizer.ggml.model", "gpt2", 4);
    mu_gguf_put_str(w, "tokenizer.ggml.pre", "llama-bpe", 9);
    mu_gguf_put_strs(w, "tokenizer.ggml.tokens", v.tokens, (uint64_t)v.n_token);
    mu_gguf_put_i32s(w, "tokenizer.ggml.token_type", v.types, (uint64_t)v.n_token);
    mu_gguf_put_strs(w, "tokenizer.ggml.merges", v.merges, (uint64_t)v.n_merge);
    mu_gguf_put_u32(w, "tokenizer.ggml.bos_token_id", (uint32_t)n_vocab - 2);
    mu_gguf_put_u32(w, "tokenizer.ggml.eos_token_id", (uint32_t)n_vocab - 1);
    mu_gguf_put_bool(w, "tokenizer.ggml.add_bos_token", true);
fail:
    mu_free(v.tokens);
    mu_free(v.merges);
    mu_free(v.types);
    mu_arena_destroy(v.arena);
    return st;
}
