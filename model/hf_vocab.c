/* tokenizer.json: the vocabulary, merges and added tokens.
 *
 * The file's bulk (half a million strings for the largest vocabularies) is read with a cursor and never built as a
 * tree; the small rest goes to jansson. Ids may come in any order, so entries gather in a list first. */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "model/hf_json.h"
#include "model/hf_part.h"
#include "model/utf8.h"

enum { NOT_ADDED, ADDED, ADDED_SPECIAL };

struct entry {
    struct mu_str text;
    int32_t id;
};

struct entries {
    struct entry *items;
    size_t n, cap;
};

enum mu_status mu_hf_nomem(const struct mu_hf *h, struct mu_err *err)
{
    return mu_fail(err, MU_ENOMEM, "no memory for the tokenizer of folder '%s'", h->shown);
}

/* Room for one more item of a list that doubles. */
static bool grow(void **items, size_t n, size_t *cap, size_t item_bytes)
{
    if (n < *cap) return true;
    size_t more = *cap ? *cap * 2 : 1024;
    void *p = mu_reallocarray(*items, more, item_bytes);
    if (!p) return false;
    *items = p;
    *cap = more;
    return true;
}

/* ---- the file ---- */

static enum mu_status read_vocab(struct mu_hf *h, struct mu_json *j, struct entries *list, struct mu_err *err)
{
    bool first = true, more;
    int64_t limit = h->n_vocab ? h->n_vocab : (int64_t)(h->text_len < MU_HF_VOCAB_MAX ? h->text_len : MU_HF_VOCAB_MAX);
    enum mu_status st = mu_json_enter(j, '{', err);
    while (st == MU_OK) {
        struct mu_str text;
        int64_t id;
        st = mu_json_next_key(j, &first, &more, &text, err);
        if (st != MU_OK || !more) break;
        st = mu_json_int(j, &id, err);
        if (st != MU_OK) break;
        if (id < 0 || id >= limit || text.len > MU_TOK_TEXT_MAX)
            return MU_HF_BAD(h, "tokenizer.json", err,
                             "a token of %zu bytes has id %lld, expected 0 to %lld and at most %d bytes; the file does "
                             "not belong to this model",
                             text.len, (long long)id, (long long)limit - 1, MU_TOK_TEXT_MAX);
        if (!grow((void **)&list->items, list->n, &list->cap, sizeof *list->items)) return mu_hf_nomem(h, err);
        list->items[list->n++] = (struct entry){text, (int32_t)id};
    }
    return st;
}

/* "left right" or ["left", "right"] */
static enum mu_status read_merge(const struct mu_hf *h, struct mu_json *j, struct mu_hf_merge *m, struct mu_err *err)
{
    enum mu_status st;
    if (mu_json_peek(j) == '[') {
        bool first = true, more;
        struct mu_str *part[] = {&m->left, &m->right};
        st = mu_json_enter(j, '[', err);
        for (int i = 0; i < 2 && st == MU_OK; i++) {
            st = mu_json_next_item(j, &first, &more, err);
            if (st == MU_OK) st = more ? mu_json_string(j, part[i], err) : mu_json_fail(j, j->p, err, "two strings");
        }
        if (st == MU_OK) st = mu_json_next_item(j, &first, &more, err);
        return st == MU_OK && more ? mu_json_fail(j, j->p, err, "two strings") : st;
    }
    struct mu_str s;
    st = mu_json_string(j, &s, err);
    if (st != MU_OK) return st;
    const char *space = s.len ? memchr(s.p, ' ', s.len) : NULL;
    size_t left = space ? (size_t)(space - s.p) : 0;
    if (!left || left + 1 == s.len || memchr(space + 1, ' ', s.len - left - 1))
        return MU_HF_BAD(h, "tokenizer.json", err, "merge %zu is not two texts with a space between", h->n_merge);
    m->left = (struct mu_str){s.p, left};
    m->right = (struct mu_str){space + 1, s.len - left - 1};
    return MU_OK;
}

static enum mu_status read_merges(struct mu_hf *h, struct mu_json *j, struct mu_err *err)
{
    bool first = true, more;
    size_t cap = 0;
    enum mu_status st = mu_json_enter(j, '[', err);
    mu_free(h->merges);
    h->merges = NULL;
    h->n_merge = 0;
    while (st == MU_OK) {
        st = mu_json_next_item(j, &first, &more, err);
        if (st != MU_OK || !more) break;
        if (!grow((void **)&h->merges, h->n_merge, &cap, sizeof *h->merges)) return mu_hf_nomem(h, err);
        st = read_merge(h, j, &h->merges[h->n_merge], err);
        if (st == MU_OK) h->n_merge++;
    }
    return st;
}

/* A member of "model" that is neither table. */
static enum mu_status read_model_member(struct mu_hf *h, struct mu_json *j, struct mu_str key, struct mu_str *type,
                                        struct mu_err *err)
{
    struct mu_str span, value;
    if (mu_str_is(key, "type")) return mu_json_string(j, type, err);
    if (mu_str_is(key, "unk_token") && mu_json_peek(j) == '"') return mu_json_string(j, &h->unk, err);
    if ((mu_str_is(key, "continuing_subword_prefix") || mu_str_is(key, "end_of_word_suffix")) &&
        mu_json_peek(j) == '"') {
        char shown[40];
        enum mu_status st = mu_json_string(j, &value, err);
        if (st != MU_OK || !value.len) return st;
        return MU_HF_REFUSE(h, err, "model.%s is", mu_str_show(key, shown, sizeof shown));
    }
    enum mu_status st = mu_json_skip(j, &span, err);
    if (st == MU_OK && mu_str_is(key, "byte_fallback")) h->byte_fallback = mu_str_is(span, "true");
    if (st == MU_OK && mu_str_is(key, "fuse_unk")) h->fuse_unk = mu_str_is(span, "true");
    if (st == MU_OK && mu_str_is(key, "ignore_merges")) h->whole_words = mu_str_is(span, "true");
    return st;
}

static enum mu_status read_model(struct mu_hf *h, struct mu_json *j, struct entries *list, struct mu_err *err)
{
    bool first = true, more;
    struct mu_str key, span, type = {NULL, 0};
    enum mu_status st = mu_json_enter(j, '{', err);
    while (st == MU_OK) {
        st = mu_json_next_key(j, &first, &more, &key, err);
        if (st != MU_OK || !more) break;
        bool table = mu_json_peek(j) == '{'; /* Unigram's is an array, and the type says so behind it */
        if (mu_str_is(key, "vocab") && table)
            st = read_vocab(h, j, list, err);
        else if (mu_str_is(key, "merges"))
            st = read_merges(h, j, err);
        else if (mu_str_is(key, "vocab"))
            st = mu_json_skip(j, &span, err);
        else
            st = read_model_member(h, j, key, &type, err);
    }
    if (st != MU_OK || mu_str_is(type, "BPE") || (!type.p && h->merges)) return st; /* old files lack the type */
    char shown[40];
    return mu_fail(err, MU_EUNSUPPORTED,
                   "file '%s/tokenizer.json': a tokenizer of type '%s' is not supported, BPE is; use another model",
                   h->shown, type.p ? mu_str_show(type, shown, sizeof shown) : "unknown");
}

static enum mu_status read_part(struct mu_hf *h, struct mu_json *j, struct mu_str key, struct mu_err *err)
{
    static const char *const names[] = {"added_tokens", "normalizer", "pre_tokenizer", "post_processor"};
    json_t **const parts[] = {&h->added, &h->normalizer, &h->pre_tokenizer, &h->post_processor};
    struct mu_str span;
    enum mu_status st = mu_json_skip(j, &span, err);
    for (size_t i = 0; i < 4 && st == MU_OK; i++) {
        json_error_t je;
        if (!mu_str_is(key, names[i])) continue;
        json_decref(*parts[i]);
        bool no_memory;
        *parts[i] = mu_json_load(span.p, span.len, JSON_DECODE_ANY | JSON_ALLOW_NUL, &je, &no_memory);
        if (*parts[i]) continue;
        if (no_memory) return mu_hf_nomem(h, err);
        char shown[160];
        return MU_HF_BAD(h, "tokenizer.json", err, "offset %zu: %s", (size_t)(span.p - h->text) + (size_t)je.position,
                         mu_str_show((struct mu_str){je.text, strlen(je.text)}, shown, sizeof shown));
    }
    return st;
}

static enum mu_status place(struct mu_hf *h, const struct entries *list, struct mu_err *err)
{
    for (size_t i = 0; i < list->n; i++) {
        if (list->items[i].id >= h->n_token) h->n_token = list->items[i].id + 1;
    }
    if (!h->n_token) return MU_HF_BAD(h, "tokenizer.json", err, "model.vocab has no token");
    h->tokens = mu_calloc((size_t)h->n_token, sizeof *h->tokens);
    h->types = mu_calloc((size_t)h->n_token, sizeof *h->types);
    h->scores = mu_calloc((size_t)h->n_token, sizeof *h->scores);
    if (!h->tokens || !h->types || !h->scores) return mu_hf_nomem(h, err);
    for (size_t i = 0; i < list->n; i++) {
        struct mu_str *text = &h->tokens[list->items[i].id];
        if (text->p)
            return MU_HF_BAD(h, "tokenizer.json", err, "two tokens of model.vocab have id %d", list->items[i].id);
        *text = list->items[i].text;
    }
    return MU_OK;
}

enum mu_status mu_hf_json_read(struct mu_hf *h, struct mu_err *err)
{
    struct entries list = {0};
    char file[sizeof h->shown + 16];
    snprintf(file, sizeof file, "%s/tokenizer.json", h->shown);
    struct mu_json j = mu_json_over(h->text, h->text_len, file, h->arena);
    bool first = true, more;
    struct mu_str key;
    enum mu_status st = mu_json_enter(&j, '{', err);
    while (st == MU_OK) {
        st = mu_json_next_key(&j, &first, &more, &key, err);
        if (st != MU_OK || !more) break;
        st = mu_str_is(key, "model") ? read_model(h, &j, &list, err) : read_part(h, &j, key, err);
    }
    if (st == MU_OK && mu_json_peek(&j)) st = mu_json_fail(&j, j.p, err, "the end of the file");
    if (st == MU_OK) st = place(h, &list, err);
    mu_free(list.items);
    return st;
}

/* ---- what follows from it ---- */

static enum mu_status make_by_text(struct mu_hf *h, struct mu_err *err)
{
    uint32_t slots = 16;
    while (slots < 2 * (uint32_t)h->n_token) slots *= 2;
    h->by_text = mu_reallocarray(NULL, slots, sizeof *h->by_text);
    if (!h->by_text) return mu_hf_nomem(h, err);
    memset(h->by_text, 0xFF, slots * sizeof *h->by_text);
    h->by_text_mask = slots - 1;
    h->seed = mu_tok_seed();
    for (int id = 0; id < h->n_token; id++) {
        struct mu_str text = h->tokens[id];
        if (!text.p) continue;
        uint32_t i = (uint32_t)mu_tok_hash(text.p, text.len, h->seed) & h->by_text_mask;
        while (h->by_text[i] >= 0 && mu_str_compare(h->tokens[h->by_text[i]], text)) i = (i + 1) & h->by_text_mask;
        h->by_text[i] = id; /* of equal texts the last */
    }
    return MU_OK;
}

int32_t mu_hf_id_of(const struct mu_hf *h, struct mu_str text)
{
    uint32_t i = (uint32_t)mu_tok_hash(text.p, text.len, h->seed) & h->by_text_mask;
    while (h->by_text[i] >= 0 && mu_str_compare(h->tokens[h->by_text[i]], text)) i = (i + 1) & h->by_text_mask;
    return h->by_text[i];
}

/* Added tokens that files call ordinary though they are marks of the prompt's form: what the reference converter
 * takes for special, too. */
static bool looks_special(struct mu_str s)
{
    static const char *const whole[] = {"<pad>", "<mask>", "<2mass>", "[@BOS@]"};
    static const char *const around[][2] = {
        {"<|", "|>"}, {"<\xEF\xBD\x9C", "\xEF\xBD\x9C>"}, {"<unused", ">"}}; /* the second with full-width bars */
    for (size_t i = 0; i < 4; i++) {
        if (mu_str_is(s, whole[i])) return true;
    }
    for (size_t i = 0; i < 3; i++) {
        size_t a = strlen(around[i][0]), b = strlen(around[i][1]);
        if (s.len >= a && s.len >= b && !memcmp(s.p, around[i][0], a) && !memcmp(s.p + s.len - b, around[i][1], b))
            return true;
    }
    return false;
}

static enum mu_status check_added(const struct mu_hf *h, const json_t *token, int64_t id, struct mu_err *err)
{
    struct mu_str text = mu_hf_str(json_object_get(token, "content"));
    if (!text.p || text.len > MU_TOK_TEXT_MAX || id < 0 || id >= MU_HF_VOCAB_MAX)
        return MU_HF_BAD(h, "tokenizer.json", err,
                         "an added token has id %lld and %zu bytes of content, expected an id below %d and a text of "
                         "at most %d bytes",
                         (long long)id, text.len, MU_HF_VOCAB_MAX, MU_TOK_TEXT_MAX);
    char shown[64];
    if (json_is_true(json_object_get(token, "single_word")))
        return MU_HF_REFUSE(h, err, "added token '%s' with single_word is", mu_str_show(text, shown, sizeof shown));
    return MU_OK;
}

struct added {
    uint8_t *kinds; /* [n_token] */
    size_t n_over;  /* beyond n_vocab */
};

/* Puts an added token into the vocabulary, where there is room. */
static enum mu_status add(struct mu_hf *h, struct added *a, const json_t *token, int64_t id, bool only_new,
                          struct mu_err *err)
{
    enum mu_status st = check_added(h, token, id, err);
    if (st != MU_OK) return st;
    if (id >= h->n_token) { /* tokens past the rows of the embedding can never be used */
        a->n_over++;
        return MU_OK;
    }
    if (only_new && a->kinds[id]) return MU_OK;
    a->kinds[id] = json_is_true(json_object_get(token, "special")) ? ADDED_SPECIAL : ADDED;
    h->tokens[id] = mu_hf_str(json_object_get(token, "content"));
    return MU_OK;
}

static bool lengthen_one(void **list, size_t from, size_t to, size_t item_bytes)
{
    char *p = mu_reallocarray(*list, to, item_bytes);
    if (!p) return false;
    memset(p + from * item_bytes, 0, (to - from) * item_bytes);
    *list = p;
    return true;
}

static enum mu_status lengthen(struct mu_hf *h, int n, struct mu_err *err)
{
    size_t from = (size_t)h->n_token, to = (size_t)n;
    if (!lengthen_one((void **)&h->tokens, from, to, sizeof *h->tokens) ||
        !lengthen_one((void **)&h->types, from, to, sizeof *h->types) ||
        !lengthen_one((void **)&h->scores, from, to, sizeof *h->scores))
        return mu_hf_nomem(h, err);
    h->n_token = n;
    return MU_OK;
}

/* The largest id of added tokens within n_vocab makes the vocabulary longer. */
static enum mu_status make_room(struct mu_hf *h, struct mu_err *err)
{
    size_t i;
    const char *key;
    const json_t *token;
    int64_t n = h->n_token, limit = h->n_vocab ? h->n_vocab : MU_HF_VOCAB_MAX;
    json_array_foreach(h->added, i, token)
    {
        int64_t id = json_integer_value(json_object_get(token, "id"));
        if (id >= n && id < limit) n = id + 1;
    }
    json_object_foreach(json_object_get(h->config, "added_tokens_decoder"), key, token)
    {
        int64_t id = strtoll(key, NULL, 10);
        if (id >= n && id < limit) n = id + 1;
    }
    if (!h->n_vocab && n > h->n_token + (int64_t)h->text_len) /* holes that no text has paid for */
        return MU_HF_BAD(h, "tokenizer.json", err, "an added token has id %lld, far beyond the vocabulary's %d",
                         (long long)n - 1, h->n_token);
    if (h->n_vocab) n = h->n_vocab;
    return lengthen(h, (int)n, err);
}

static enum mu_status make_types(struct mu_hf *h, const uint8_t *kinds, struct mu_err *err)
{
    for (int id = 0; id < h->n_token; id++) {
        struct mu_str *text = &h->tokens[id];
        if (!text->p) {
            char pad[24];
            int n = snprintf(pad, sizeof pad, "[PAD%d]", id);
            text->p = mu_arena_strndup(h->arena, pad, (size_t)n);
            text->len = (size_t)n;
            if (!text->p) return mu_hf_nomem(h, err);
            h->types[id] = MU_TOK_UNUSED;
        } else if (kinds[id]) {
            h->types[id] = kinds[id] == ADDED_SPECIAL || looks_special(*text) ? MU_TOK_CONTROL : MU_TOK_USER;
        } else if (h->types[id]) {
            continue; /* tokenizer.model says it */
        } else if (h->spm && h->byte_fallback && mu_tok_byte(*text) >= 0) {
            h->types[id] = MU_TOK_BYTE;
        } else {
            h->types[id] = h->spm && h->unk.p && !mu_str_compare(*text, h->unk) ? MU_TOK_UNKNOWN : MU_TOK_NORMAL;
        }
    }
    return MU_OK;
}

/* The reference's order of scores: what is merged earlier scores higher. Tokens that no merge makes get less than all
 * of those. */
static enum mu_status make_scores(struct mu_hf *h, struct mu_err *err)
{
    char *joined = mu_malloc(2 * MU_TOK_TEXT_MAX);
    if (!joined) return mu_hf_nomem(h, err);
    for (int i = 0; i < h->n_token; i++) h->scores[i] = h->types[i] == MU_TOK_NORMAL ? -1e9f : 0.0f;
    for (size_t i = 0; i < h->n_merge; i++) {
        const struct mu_hf_merge *m = &h->merges[i];
        size_t n = m->left.len + m->right.len;
        if (m->left.len > MU_TOK_TEXT_MAX || m->right.len > MU_TOK_TEXT_MAX) continue;
        memcpy(joined, m->left.p, m->left.len);
        memcpy(joined + m->left.len, m->right.p, m->right.len);
        int32_t id = mu_hf_id_of(h, (struct mu_str){joined, n});
        if (id >= 0 && h->scores[id] == -1e9f) h->scores[id] = -(float)i;
    }
    mu_free(joined);
    return MU_OK;
}

enum mu_status mu_hf_vocab_finish(struct mu_hf *h, struct mu_err *err)
{
    enum mu_status st;
    struct added a = {0};
    size_t i;
    const char *key;
    const json_t *token;
    MU_TRY(st, make_room(h, err), fail);
    a.kinds = mu_calloc((size_t)h->n_token, 1);
    if (!a.kinds) {
        st = mu_hf_nomem(h, err);
        goto fail;
    }
    json_array_foreach(h->added, i, token)
    {
        const json_t *id = json_object_get(token, "id");
        MU_TRY(st, add(h, &a, token, json_is_integer(id) ? json_integer_value(id) : -1, false, err), fail);
    }
    json_object_foreach(json_object_get(h->config, "added_tokens_decoder"), key, token)
    {
        char *end;
        long long id = strtoll(key, &end, 10);
        MU_TRY(st, add(h, &a, token, end > key && !*end ? id : -1, true, err), fail);
    }
    if (a.n_over)
        mu_debug("tokenizer", "'%s': %zu added tokens lie beyond the embedding's %d rows and are left out", h->shown,
                 a.n_over, h->n_vocab);
    MU_TRY(st, make_types(h, a.kinds, err), fail);
    MU_TRY(st, make_by_text(h, err), fail);
    if (h->spm && !h->has_scores) st = make_scores(h, err);
fail:
    mu_free(a.kinds);
    return st;
}
