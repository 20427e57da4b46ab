/* Opening a tokenizer, and the outer loops of encoding and decoding that both kinds share.
 *
 * Encoding: special tokens are found in the text, and the stretches between them go to the kind's own encoder, which
 * appends ids to the call's state (struct mu_encode). That state has a small table of words met before in the call:
 * real text repeats itself. */
#include "model/tokenizer.h"

#include <string.h>
#include <strings.h>

#include "base/alloc.h"
#include "model/tokenizer_part.h"
#include "model/utf8.h"

static bool equals(struct mu_str s, const char *text)
{
    return s.len == strlen(text) && !memcmp(s.p, text, s.len);
}

static bool contains_nocase(struct mu_str s, const char *part)
{
    size_t n = strlen(part);
    for (size_t i = 0; i + n <= s.len; i++) {
        if (!strncasecmp(s.p + i, part, n)) return true;
    }
    return false;
}

static enum mu_status read_id(const struct mu_tokenizer *t, const char *key, int *id_out, struct mu_err *err)
{
    uint64_t id = 0;
    *id_out = -1;
    if (!mu_gguf_find(t->gguf, key)) return MU_OK;
    enum mu_status st = mu_gguf_get_u64(t->gguf, key, 0, (uint64_t)t->n_vocab - 1, 0, &id, err);
    if (st == MU_OK) *id_out = (int)id;
    return st;
}

/* Ids of an array that only Muster writes; absent: *n 0. */
static enum mu_status read_ids(const struct mu_tokenizer *t, const char *key, const struct mu_gguf_value **v_out,
                               struct mu_err *err)
{
    const struct mu_gguf_value *v = mu_gguf_find(t->gguf, key);
    *v_out = v;
    if (!v) return MU_OK;
    bool ok = v->kind == MU_GGUF_ARRAY && v->item_kind == MU_GGUF_I32;
    for (uint64_t i = 0; ok && i < v->n; i++) {
        int64_t id = mu_gguf_item_i64(v, i);
        ok = id >= 0 && id < t->n_vocab;
    }
    return ok ? MU_OK : MU_TOK_BAD(t, v, err, "%s must be an array of i32 ids; " MU_TOK_REMEDY, key);
}

static void add_end(struct mu_tokenizer *t, int id)
{
    if (id < 0 || mu_tokenizer_is_end(t, id) || t->n_end == MU_TOK_ENDS_MAX) return;
    t->ends[t->n_end++] = id;
}

static int control_id(const struct mu_tokenizer *t, const char *text)
{
    const struct mu_tok_special *s = mu_tok_special_at(t, text, strlen(text), true);
    return s && t->types[s->id] == MU_TOK_CONTROL && equals(s->text, text) ? s->id : -1;
}

/* Tokens that end a turn in every model that has them, but where another token says that here they do not: files
 * name one end or two, chat models have more. `plain`: texts may hold it as what it says, so that a user-defined token
 * is none. */
static const struct {
    const char *text, *unless;
    bool plain;
} END_TEXTS[] = {
    {"<|eot_id|>", NULL, false},
    {"<|im_end|>", NULL, false},
    {"<end_of_turn>", NULL, false},
    {"<|end|>", "<|call|>", false}, /* gpt-oss: the end of a message, after which the next begins */
    {"<|return|>", NULL, false},
    {"<|call|>", NULL, false},
    {"<|endoftext|>", NULL, false},
    {"<|eom_id|>", NULL, false},
    {"</s>", "<turn|>", true},
    {"<turn|>", NULL, false}, /* Gemma 4 */
    {"<|end_of_text|>", NULL, false},
    {"<EOT>", NULL, true},
    {"[EOT]", NULL, true},
    {"[EOS]", NULL, true},
    {"<end_of_utterance>", NULL, false},
    {"<\xEF\xBD\x9C"
     "end\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>",
     NULL, false}, /* DeepSeek */
};

bool mu_tok_ends_turn(struct mu_str text)
{
    for (size_t i = 0; i < sizeof END_TEXTS / sizeof END_TEXTS[0]; i++) {
        if (!END_TEXTS[i].plain && equals(text, END_TEXTS[i].text)) return true;
    }
    return false;
}

static enum mu_status read_ends(struct mu_tokenizer *t, struct mu_err *err)
{
    static const char *const keys[] = {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"};
    enum mu_status st;
    add_end(t, t->eos);
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        int id;
        st = read_id(t, keys[i], &id, err);
        if (st != MU_OK) return st;
        add_end(t, id);
    }
    const struct mu_gguf_value *more;
    st = read_ids(t, "muster.tokenizer.end_ids", &more, err);
    if (st != MU_OK) return st;
    for (uint64_t i = 0; more && i < more->n; i++) add_end(t, (int)mu_gguf_item_i64(more, i));
    for (size_t i = 0; i < sizeof END_TEXTS / sizeof END_TEXTS[0]; i++) {
        if (END_TEXTS[i].unless && control_id(t, END_TEXTS[i].unless) >= 0) continue;
        add_end(t, control_id(t, END_TEXTS[i].text));
    }
    return MU_OK;
}

static enum mu_status read_texts(struct mu_tokenizer *t, struct mu_err *err)
{
    struct mu_str model;
    enum mu_status st = mu_gguf_get_str(t->gguf, "tokenizer.ggml.model", &model, err);
    if (st != MU_OK) return st;
    if (!model.p) return mu_fail(err, MU_EFORMAT, "file '%s' has no tokenizer (key tokenizer.ggml.model)", t->shown);
    t->gemma4 = equals(model, "gemma4");
    t->spm = t->gemma4 || equals(model, "llama");
    if (!t->spm && !equals(model, "gpt2")) {
        char shown[64];
        return mu_fail(
            err, MU_EUNSUPPORTED,
            "file '%s': tokenizer '%s' is not known; llama (SentencePiece), gpt2 (byte-level BPE) and gemma4 "
            "are",
            t->shown, mu_text_show(model.p, model.len, shown, sizeof shown));
    }
    st = mu_gguf_get_bool(t->gguf, "muster.tokenizer.by_merges", t->gemma4, &t->ranked, err);
    if (st != MU_OK) return st;
    t->ranked &= t->spm;
    const struct mu_gguf_value *v = mu_gguf_find(t->gguf, "tokenizer.ggml.tokens");
    if (!v || v->kind != MU_GGUF_ARRAY || v->item_kind != MU_GGUF_STRING || !v->n || v->n > INT32_MAX / 8) {
        return MU_TOK_BAD(t, v, err,
                          "tokenizer.ggml.tokens must be an array of strings with an item or more; " MU_TOK_REMEDY);
    }
    t->texts = v->strings;
    t->n_vocab = (int)v->n;
    return MU_OK;
}

enum mu_status mu_tokenizer_open(const struct mu_gguf *g, struct mu_tokenizer **tok_out, struct mu_err *err)
{
    enum mu_status st;
    struct mu_str name;
    const struct mu_gguf_value *left, *right, *late;
    struct mu_tokenizer *t = mu_calloc(1, sizeof *t);
    if (!t) return mu_fail(err, MU_ENOMEM, "no memory for a tokenizer");
    t->gguf = g;
    const char *path = mu_gguf_path(g);
    size_t len = strlen(path), skip = len < sizeof t->shown ? 0 : len - sizeof t->shown + 1;
    mu_text_show(path + skip, len - skip, t->shown, sizeof t->shown);
    MU_TRY(st, read_texts(t, err), fail);
    MU_TRY(st, read_id(t, "tokenizer.ggml.bos_token_id", &t->bos, err), fail);
    MU_TRY(st, read_id(t, "tokenizer.ggml.eos_token_id", &t->eos, err), fail);
    MU_TRY(st, read_id(t, "tokenizer.ggml.unknown_token_id", &t->unk, err), fail);
    MU_TRY(st, mu_gguf_get_bool(g, "tokenizer.ggml.add_space_prefix", t->spm && !t->gemma4, &t->add_space_prefix, err),
           fail);
    MU_TRY(st, mu_gguf_get_str(g, "general.name", &name, err), fail);
    MU_TRY(st, mu_gguf_get_bool(g, "muster.tokenizer.first_space", false, &t->first_space, err), fail);
    MU_TRY(st, mu_gguf_get_bool(g, "muster.tokenizer.one_space", false, &t->one_space, err), fail);
    MU_TRY(st, mu_gguf_get_bool(g, "muster.tokenizer.each_unknown", false, &t->each_unknown, err), fail);
    t->add_space_prefix &= t->spm;
    t->strip_after = t->spm && (contains_nocase(name, "phi3") || contains_nocase(name, "phi-3"));
    MU_TRY(st, mu_tok_vocab_open(t, err), fail);
    MU_TRY(st, read_ids(t, "muster.tokenizer.strip_left", &left, err), fail);
    MU_TRY(st, read_ids(t, "muster.tokenizer.strip_right", &right, err), fail);
    MU_TRY(st, read_ids(t, "muster.tokenizer.second_pass", &late, err), fail);
    MU_TRY(st, mu_tok_specials_open(t, left, right, late, err), fail);
    MU_TRY(st, t->spm ? mu_tok_spm_open(t, err) : mu_tok_bpe_open(t, err), fail);
    MU_TRY(st, mu_gguf_get_bool(g, "tokenizer.ggml.add_bos_token", t->spm || mu_pre_adds_bos(t->pre), &t->add_bos, err),
           fail);
    t->add_bos |= t->gemma4; /* its files say false, but the model needs it */
    bool nfc;
    MU_TRY(st, mu_gguf_get_bool(g, "tokenizer.ggml.normalizer.nfc", false, &nfc, err), fail);
    if (nfc) MU_TRY(st, mu_tok_nfc_open(t, err), fail);
    MU_TRY(st, mu_gguf_get_bool(g, "tokenizer.ggml.add_eos_token", false, &t->add_eos, err), fail);
    MU_TRY(st, read_ends(t, err), fail);
    *tok_out = t;
    return MU_OK;
fail:
    mu_tokenizer_close(t);
    return st;
}

void mu_tokenizer_close(struct mu_tokenizer *t)
{
    if (!t) return;
    mu_pre_close(t->pre);
    mu_free(t->types);
    mu_free(t->piece_bytes);
    mu_free(t->piece_at);
    mu_free(t->by_piece.slots);
    mu_free(t->specials.items);
    mu_free(t->unsettled);
    mu_free(t->order);
    mu_free(t->joints);
    mu_free(t->merges);
    mu_free(t);
}

int mu_tokenizer_n_vocab(const struct mu_tokenizer *t)
{
    return t->n_vocab;
}
int mu_tokenizer_bos(const struct mu_tokenizer *t)
{
    return t->bos;
}
int mu_tokenizer_eos(const struct mu_tokenizer *t)
{
    return t->eos;
}
bool mu_tokenizer_add_bos(const struct mu_tokenizer *t)
{
    return t->add_bos && t->bos >= 0;
}
bool mu_tokenizer_add_eos(const struct mu_tokenizer *t)
{
    return t->add_eos && t->eos >= 0;
}

bool mu_tokenizer_is_end(const struct mu_tokenizer *t, int id)
{
    for (int i = 0; i < t->n_end; i++) {
        if (t->ends[i] == id) return true;
    }
    return false;
}

/* ---- encoding ---- */

enum mu_status mu_encode_push(struct mu_encode *e, int32_t id, struct mu_err *err)
{
    if (e->n_ids == e->cap_ids) {
        size_t cap = e->cap_ids + e->cap_ids / 2 + 64;
        int32_t *p = mu_reallocarray(e->ids, cap, sizeof *p);
        if (!p) return mu_tok_nomem(err);
        e->ids = p;
        e->cap_ids = cap;
    }
    e->ids[e->n_ids++] = id;
    return MU_OK;
}

void *mu_encode_alloc(struct mu_encode *e, size_t n)
{
    if (!e->arena) e->arena = mu_arena_create(0);
    return e->arena ? mu_arena_alloc(e->arena, n) : NULL;
}

enum { SEEN_WORD_MAX = 64, SEEN_MAX = 4096, SEEN_MIN_TEXT = 256 };

bool mu_encode_seen(struct mu_encode *e, const char *p, size_t n, uint64_t hash, enum mu_status *st, struct mu_err *err)
{
    if (!e->seen || n > SEEN_WORD_MAX) return false;
    const struct mu_tok_seen *s = &e->seen[hash & e->seen_mask];
    if (s->len != n || memcmp(s->p, p, n)) return false;
    *st = MU_OK;
    for (uint32_t i = 0; i < s->n_ids && *st == MU_OK; i++) *st = mu_encode_push(e, e->ids[s->at + i], err);
    return true;
}

void mu_encode_remember(struct mu_encode *e, const char *p, size_t n, uint64_t hash, size_t at)
{
    if (!e->seen || n > SEEN_WORD_MAX) return;
    e->seen[hash & e->seen_mask] = (struct mu_tok_seen){p, (uint32_t)n, (uint32_t)(e->n_ids - at), at};
}

/* Scratch for a text of n bytes. */
static enum mu_status encode_open(struct mu_encode *e, const char *text, size_t n, struct mu_err *err)
{
    e->copies = e->t->spm && (e->t->add_space_prefix || memmem(text, n, MU_TOK_MARK, MU_TOK_MARK_LEN));
    if (n < SEEN_MIN_TEXT) return MU_OK;
    size_t slots = 64;
    while (slots < SEEN_MAX && slots < n / 8) slots *= 2;
    e->seen = mu_calloc(slots, sizeof *e->seen);
    if (!e->seen) return mu_tok_nomem(err);
    e->seen_mask = (uint32_t)slots - 1;
    return MU_OK;
}

static void encode_close(struct mu_encode *e)
{
    mu_pre_run_close(e->run);
    mu_arena_destroy(e->arena);
    mu_free(e->seen);
    mu_free(e->heap);
    mu_free(e->syms);
}

/* Text between special tokens. */
static enum mu_status encode_stretch(struct mu_encode *e, const char *text, size_t n, struct mu_err *err)
{
    enum mu_status st = e->t->unsettled ? mu_tok_nfc(e, &text, &n, err) : MU_OK;
    if (st != MU_OK) return st;
    return e->t->spm ? mu_tok_spm_encode(e, text, n, err) : mu_tok_bpe_encode(e, text, n, err);
}

/* Bytes of the white space (Unicode's) that text begins with; 0: it begins with none. */
static size_t space_at(const char *text, size_t n)
{
    uint32_t cp = 0;
    int len = n ? mu_utf8_next(text, n, &cp) : 0;
    bool space = cp == ' ' || (cp >= '\t' && cp <= '\r') || cp == 0x85 || cp == 0xA0 || cp == 0x1680 ||
                 (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 || cp == 0x2029 || cp == 0x202F || cp == 0x205F ||
                 cp == 0x3000;
    return len > 0 && space ? (size_t)len : 0;
}

/* … that ends text[n]. */
static size_t space_before(const char *text, size_t n)
{
    for (size_t len = 1; len <= 3 && len <= n; len++) {
        if (space_at(text + n - len, len) == len) return len;
    }
    return 0;
}

static enum mu_status encode_text(struct mu_encode *e, const char *text, size_t n, bool parse_special,
                                  struct mu_err *err)
{
    const struct mu_tokenizer *t = e->t;
    enum mu_status st;
    size_t start = 0, white = 0; /* white: the end of the white space last stripped; it is looked at once */
    bool late = false;           /* it was stripped by a token of the second pass */
    for (size_t at = 0; at <= n;) {
        const struct mu_tok_special *s = at < n ? mu_tok_special_at(t, text + at, n - at, parse_special) : NULL;
        if (at < n && (!s || (at < start && s->late && !late))) {
            at++;
            continue;
        }
        size_t end = at;
        for (size_t len = 1; s && s->strip_left && len && end > start; end -= len)
            len = space_before(text + start, end - start);
        if (end > start) {
            st = encode_stretch(e, text + start, end - start, err);
            if (st != MU_OK) return st;
        }
        e->started = true;
        if (!s) break;
        at += s->text.len; /* what is stripped is no text, but may hold a token that is looked for */
        size_t stop = at;
        if (s->strip_right) {
            white = white > at ? white : at;
            for (size_t len = 1; len; white += len) len = space_at(text + white, n - white);
            stop = white;
            late = s->late;
        }
        /* One that strips on its left is gone where all of it was stripped before. */
        st = s->strip_left && stop <= start ? MU_OK : mu_encode_push(e, s->id, err);
        if (st != MU_OK) return st;
        start = stop;
    }
    return MU_OK;
}

/* What was pushed for unknown characters becomes the unknown token: one for a row of them, as SentencePiece has it. */
static void name_unknown(struct mu_encode *e)
{
    size_t n = 0;
    bool before = false;
    for (size_t i = 0; i < e->n_ids; i++) {
        bool unknown = e->ids[i] == MU_TOK_UNKNOWN_CHAR;
        if (!unknown || !before || e->t->each_unknown) e->ids[n++] = unknown ? e->t->unk : e->ids[i];
        before = unknown;
    }
    e->n_ids = n;
}

enum mu_status mu_tokenizer_encode(const struct mu_tokenizer *t, const char *text, size_t len_bytes, bool parse_special,
                                   int32_t **ids_out, size_t *n_ids_out, struct mu_err *err)
{
    struct mu_encode e = {.t = t};
    enum mu_status st = MU_OK;
    if (len_bytes > INT32_MAX / 4) {
        return mu_fail(err, MU_ELIMIT, "a text of %zu bytes is too long to tokenize at once (limit %d)", len_bytes,
                       INT32_MAX / 4);
    }
    if (len_bytes) {
        MU_TRY(st, encode_open(&e, text, len_bytes, err), fail);
        MU_TRY(st, encode_text(&e, text, len_bytes, parse_special, err), fail);
        if (e.unknown) name_unknown(&e);
    }
    *ids_out = e.ids;
    *n_ids_out = e.n_ids;
    e.ids = NULL;
fail:
    mu_free(e.ids);
    encode_close(&e);
    return st;
}

/* ---- decoding ---- */

struct mu_str mu_tokenizer_piece(const struct mu_tokenizer *t, int id, bool show_special)
{
    struct mu_str none = {"", 0};
    if (id < 0 || id >= t->n_vocab) return none;
    bool hidden = t->types[id] == MU_TOK_CONTROL || t->types[id] == MU_TOK_UNKNOWN;
    return hidden && !show_special ? none : mu_tok_piece(t, id);
}

/* Texts are quoted as far as they are printable. */
static void text_of(struct mu_str piece, char out[24])
{
    size_t n = 0;
    for (; n < piece.len && n < 23; n++) out[n] = piece.p[n] >= ' ' && piece.p[n] < 127 ? piece.p[n] : '?';
    out[n] = '\0';
}

enum mu_status mu_tokenizer_match(const struct mu_tokenizer *a, const struct mu_tokenizer *b, struct mu_err *err)
{
    int n = a->n_vocab < b->n_vocab ? a->n_vocab : b->n_vocab;
    for (int id = 0; id < n; id++) {
        struct mu_str x = mu_tokenizer_piece(a, id, true), y = mu_tokenizer_piece(b, id, true);
        if (x.len == y.len && !memcmp(x.p, y.p, x.len)) continue;
        char x_text[24], y_text[24];
        text_of(x, x_text);
        text_of(y, y_text);
        return mu_fail(err, MU_EINVAL, "token %d is '%s' in one and '%s' in the other", id, x_text, y_text);
    }
    return MU_OK;
}

enum mu_status mu_tokenizer_decode(const struct mu_tokenizer *t, const int32_t *ids, size_t n_ids, bool show_special,
                                   char **text_out, size_t *len_out, struct mu_err *err)
{
    size_t len = 0, at = 0;
    for (size_t i = 0; i < n_ids; i++) {
        if (!mu_add_size(len, mu_tokenizer_piece(t, ids[i], show_special).len, &len)) len = SIZE_MAX;
    }
    char *text = len < SIZE_MAX ? mu_malloc(len + 1) : NULL;
    if (!text) return mu_fail(err, MU_ENOMEM, "no memory for a text of %zu tokens", n_ids);
    bool first = true;
    for (size_t i = 0; i < n_ids; i++) {
        struct mu_str piece = mu_tokenizer_piece(t, ids[i], show_special);
        if (!piece.len) continue;
        if (first) piece = mu_tok_without_prefix(t, ids[i], piece);
        first = false;
        memcpy(text + at, piece.p, piece.len);
        at += piece.len;
    }
    text[at] = '\0';
    *text_out = text;
    *len_out = at;
    return MU_OK;
}

enum mu_status mu_tokenizer_encode_whole(const struct mu_tokenizer *t, const char *text, size_t len_bytes,
                                         bool parse_special, size_t n_max, int32_t **ids_out, size_t *n_ids_out,
                                         bool *cut_out, struct mu_err *err)
{
    int32_t *ids = NULL, *more;
    size_t n = 0, bos = mu_tokenizer_add_bos(t), eos = mu_tokenizer_add_eos(t);
    enum mu_status st = mu_tokenizer_encode(t, text, len_bytes, parse_special, &ids, &n, err);
    if (st != MU_OK) return st;
    bool cut = n_max > 0 && n + bos + eos > n_max;
    if (cut) n = n_max > bos + eos ? n_max - bos - eos : 0;
    more = mu_reallocarray(ids, n + bos + eos + 1, sizeof *ids);
    if (!more) {
        mu_free(ids);
        return mu_fail(err, MU_ENOMEM, "no memory for %zu ids", n + bos + eos);
    }
    memmove(more + bos, more, n * sizeof *more);
    if (bos) more[0] = t->bos;
    if (eos) more[bos + n] = t->eos;
    *ids_out = more;
    *n_ids_out = n + bos + eos;
    if (cut_out) *cut_out = cut;
    return MU_OK;
}
