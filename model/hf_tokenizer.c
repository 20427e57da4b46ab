/* The files of a Hugging Face folder to tokenizer.* keys: what is read, in which order, and what is put. The parts
 * are hf_vocab.c (tokenizer.json), hf_spm.c (tokenizer.model), hf_pre.c (normalizer, pre-tokenizer) and hf_special.c
 * (ids, flags, templates).
 *
 * Alternative rejected: a tokenizer of its own behind mu_tokenizer. It would be a second reader of vocabularies with
 * its own mistakes; this way what the fixtures prove about GGUF vocabularies holds for folders. */
#include "model/hf_tokenizer.h"

#include <string.h>

#include "base/alloc.h"
#include "base/io.h"
#include "model/hf_json.h"
#include "model/hf_part.h"
#include "model/pretokenizer.h"

enum { TOKENIZER_MAX = 1 << 30, SMALL_MAX = 64 << 20 };

/* A file of the folder; absent: *data NULL, MU_OK. */
static enum mu_status read_file(const struct mu_hf *h, const char *name, size_t max, char **data, size_t *len,
                                struct mu_err *err)
{
    char *path = mu_asprintf("%s/%s", h->folder, name);
    if (!path) return mu_hf_nomem(h, err);
    *data = NULL;
    enum mu_status st = mu_file_read(path, max, data, len, err);
    mu_free(path);
    return st == MU_ENOENT ? MU_OK : st;
}

static enum mu_status read_small(const struct mu_hf *h, const char *name, json_t **out, struct mu_err *err)
{
    char *text;
    size_t len;
    json_error_t je;
    bool no_memory;
    enum mu_status st = read_file(h, name, SMALL_MAX, &text, &len, err);
    if (st != MU_OK || !text) return st;
    /* tokenizer_config.json's model_max_length is 10^30 where there is none. */
    *out = mu_json_load(text, len, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, &je, &no_memory);
    mu_free(text);
    if (*out) return MU_OK;
    if (no_memory) return mu_hf_nomem(h, err);
    char shown[160];
    return mu_fail(err, MU_EFORMAT, "file '%s/%s', line %d: %s; the file is damaged or no JSON", h->shown, name,
                   je.line, mu_str_show((struct mu_str){je.text, strlen(je.text)}, shown, sizeof shown));
}

/* Neither of the files that are understood: is there one that is not? */
static enum mu_status refuse_others(const struct mu_hf *h, struct mu_err *err)
{
    static const char *const others[][2] = {
        {"tekken.json", "Mistral's own format"},     {"vocab.json", "the form before tokenizer.json"},
        {"tokenizer.bin", "a format of llama2.c's"}, {"qwen.tiktoken", "tiktoken's format"},
        {"tiktoken.model", "tiktoken's format"},
    };
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        char *path = mu_asprintf("%s/%s", h->folder, others[i][0]);
        if (!path) return mu_hf_nomem(h, err);
        bool there = access(path, F_OK) == 0;
        mu_free(path);
        if (there)
            return mu_fail(err, MU_EUNSUPPORTED,
                           "folder '%s' has its vocabulary in %s (%s), which is not supported; add the model's "
                           "tokenizer.json",
                           h->shown, others[i][0], others[i][1]);
    }
    return mu_fail(err, MU_ENOENT,
                   "folder '%s' has no tokenizer: expected tokenizer.json or tokenizer.model; download the model's "
                   "other files too",
                   h->shown);
}

static enum mu_status read_all(struct mu_hf *h, struct mu_err *err)
{
    enum mu_status st;
    MU_TRY(st, read_small(h, "tokenizer_config.json", &h->config, err), fail);
    MU_TRY(st, read_small(h, "special_tokens_map.json", &h->specials, err), fail);
    MU_TRY(st, read_small(h, "generation_config.json", &h->generation, err), fail);
    MU_TRY(st, read_small(h, "config.json", &h->model_config, err), fail);
    MU_TRY(st, read_small(h, "chat_template.json", &h->template_, err), fail);
    MU_TRY(st, read_file(h, "tokenizer.json", TOKENIZER_MAX, &h->text, &h->text_len, err), fail);
    if (h->text) {
        MU_TRY(st, mu_hf_json_read(h, err), fail);
        MU_TRY(st, mu_hf_pre_read(h, err), fail);
    } else {
        MU_TRY(st, read_file(h, "tokenizer.model", TOKENIZER_MAX, &h->text, &h->text_len, err), fail);
        st = h->text ? mu_hf_spm_read(h, err) : refuse_others(h, err);
        if (st != MU_OK) goto fail;
    }
    st = mu_hf_vocab_finish(h, err);
fail:
    return st;
}

/* "left right"; a space within is written as the kind of vocabulary writes it. */
static enum mu_status put_merges(const struct mu_hf *h, struct mu_gguf_writer *w, struct mu_err *err)
{
    struct mu_str *list = mu_reallocarray(NULL, h->n_merge + 1, sizeof *list);
    enum mu_status st = MU_OK;
    if (!list) return mu_hf_nomem(h, err);
    for (size_t i = 0; i < h->n_merge; i++) {
        const struct mu_str parts[] = {h->merges[i].left, h->merges[i].right};
        char *p = mu_arena_alloc(h->arena, 3 * (parts[0].len + parts[1].len) + 2), *q = p;
        if (!p) {
            st = mu_hf_nomem(h, err);
            goto fail;
        }
        for (int k = 0; k < 2; k++) {
            if (k) *q++ = ' ';
            for (size_t at = 0; at < parts[k].len; at++) {
                if (parts[k].p[at] == ' ')
                    q = stpcpy(q, h->spm ? MU_TOK_MARK : "\xC4\xA0");
                else
                    *q++ = parts[k].p[at];
            }
        }
        list[i] = (struct mu_str){p, (size_t)(q - p)};
    }
    mu_gguf_put_strs(w, "tokenizer.ggml.merges", list, h->n_merge);
fail:
    mu_free(list);
    return st;
}

static enum mu_status put_vocab(const struct mu_hf *h, struct mu_gguf_writer *w, struct mu_err *err)
{
    int32_t *types = mu_reallocarray(NULL, (size_t)h->n_token, sizeof *types);
    if (!types) return mu_hf_nomem(h, err);
    for (int i = 0; i < h->n_token; i++) types[i] = h->types[i];
    mu_gguf_put_strs(w, "tokenizer.ggml.tokens", h->tokens, (uint64_t)h->n_token);
    mu_gguf_put_i32s(w, "tokenizer.ggml.token_type", types, (uint64_t)h->n_token);
    mu_free(types);
    return MU_OK;
}

static enum mu_status put_all(const struct mu_hf *h, struct mu_gguf_writer *w, struct mu_err *err)
{
    enum mu_status st = put_vocab(h, w, err);
    if (st != MU_OK) return st;
    if (h->spm) {
        mu_gguf_put_str(w, "tokenizer.ggml.model", "llama", 5);
        mu_gguf_put_str(w, "tokenizer.ggml.pre", "default", 7);
        mu_gguf_put_f32s(w, "tokenizer.ggml.scores", h->scores, (uint64_t)h->n_token);
        mu_gguf_put_bool(w, "tokenizer.ggml.add_space_prefix", h->space_prefix);
        if (!h->has_scores) mu_gguf_put_bool(w, "muster.tokenizer.by_merges", true);
        if (!h->fuse_unk) mu_gguf_put_bool(w, "muster.tokenizer.each_unknown", true);
        if (h->one_space) mu_gguf_put_bool(w, "muster.tokenizer.one_space", true);
        if (h->first_space) mu_gguf_put_bool(w, "muster.tokenizer.first_space", true);
    } else {
        struct mu_str pre = mu_pre_name_of(h->patterns, h->n_pattern, h->whole_words);
        mu_gguf_put_str(w, "tokenizer.ggml.model", "gpt2", 4);
        mu_gguf_put_str(w, "tokenizer.ggml.pre", pre.p ? pre.p : "default", pre.p ? pre.len : 7);
        if (!pre.p) mu_gguf_put_strs(w, "muster.tokenizer.patterns", h->patterns, (uint64_t)h->n_pattern);
        mu_gguf_put_bool(w, "muster.tokenizer.whole_words", h->whole_words);
    }
    if (!h->has_scores) {
        st = put_merges(h, w, err);
        if (st != MU_OK) return st;
    }
    if (h->nfc) mu_gguf_put_bool(w, "tokenizer.ggml.normalizer.nfc", true);
    return mu_hf_special_put(h, w, err);
}

static void hf_close(struct mu_hf *h)
{
    json_t *const trees[] = {h->added,    h->normalizer, h->pre_tokenizer, h->post_processor, h->config,
                             h->specials, h->generation, h->model_config,  h->template_};
    for (size_t i = 0; i < sizeof trees / sizeof trees[0]; i++) json_decref(trees[i]);
    mu_free(h->text);
    mu_free(h->tokens);
    mu_free(h->types);
    mu_free(h->scores);
    mu_free(h->by_text);
    mu_free(h->merges);
    mu_arena_destroy(h->arena);
}

enum mu_status mu_hf_tokenizer_put(const char *folder, struct mu_gguf_writer *w, int n_vocab, struct mu_err *err)
{
    struct mu_hf h = {.folder = folder, .n_vocab = n_vocab, .arena = mu_arena_create(0)};
    size_t len = strlen(folder), skip = len < sizeof h.shown ? 0 : len - sizeof h.shown + 1;
    mu_str_show((struct mu_str){folder + skip, len - skip}, h.shown, sizeof h.shown);
    enum mu_status st = MU_OK;
    if (n_vocab < 0 || n_vocab > MU_HF_VOCAB_MAX)
        st = mu_fail(err, MU_ELIMIT, "folder '%s': a vocabulary of %d tokens, expected at most %d", h.shown, n_vocab,
                     MU_HF_VOCAB_MAX);
    else if (!h.arena)
        st = mu_hf_nomem(&h, err);
    if (st == MU_OK) st = read_all(&h, err);
    if (st == MU_OK) st = put_all(&h, w, err);
    hf_close(&h);
    return st;
}
