/* Byte-level BPE (Sennrich et al., arXiv:1508.07909; the byte alphabet of GPT-2): the pre-tokenizer cuts the text
 * into words, and within a word the pair that was learnt first is joined first, starting from single bytes.
 *
 * Bytes that are not UTF-8 are kept: the pattern never sees them, every run of them is a word. Only where the
 * vocabulary has no token for a byte (some leave out those that cannot occur) the run becomes one U+FFFD. */
#include <string.h>

#include "base/alloc.h"
#include "model/tokenizer_part.h"
#include "model/utf8.h"

static enum mu_status open_pre(struct mu_tokenizer *t, struct mu_err *err)
{
    struct mu_str name;
    const struct mu_gguf_value *own = mu_gguf_find(t->gguf, "muster.tokenizer.patterns");
    if (own && (own->kind != MU_GGUF_ARRAY || own->item_kind != MU_GGUF_STRING))
        return MU_TOK_BAD(t, own, err, "muster.tokenizer.patterns must be an array of strings; " MU_TOK_REMEDY);
    enum mu_status st = mu_gguf_get_str(t->gguf, "tokenizer.ggml.pre", &name, err);
    if (st == MU_OK)
        st = own ? mu_pre_open_patterns(own->strings, own->n, &t->pre, err) : mu_pre_open(name, &t->pre, err);
    if (st != MU_OK) return st;
    return mu_gguf_get_bool(t->gguf, "muster.tokenizer.whole_words", mu_pre_whole_words(t->pre), &t->whole_words, err);
}

enum mu_status mu_tok_bpe_open(struct mu_tokenizer *t, struct mu_err *err)
{
    enum mu_status st = open_pre(t, err);
    if (st != MU_OK) return st;
    return mu_tok_ranks_open(t, err);
}

static enum mu_status encode_word(void *ctx, const char *word, size_t n, struct mu_err *err)
{
    struct mu_encode *e = ctx;
    const struct mu_tokenizer *t = e->t;
    enum mu_status st;
    if (n == 1) { /* a byte without a token is left out, as the original tokenizers do */
        int32_t id = t->byte_ids[(unsigned char)word[0]];
        return id >= 0 ? mu_encode_push(e, id, err) : MU_OK;
    }
    uint64_t hash = mu_tok_piece_hash(t, word, n);
    if (n <= t->piece_max && t->whole_words) {
        int32_t id = mu_tok_find(t, word, n, hash);
        if (id >= 0) return mu_encode_push(e, id, err);
    }
    if (mu_encode_seen(e, word, n, hash, &st, err)) return st;
    size_t first = e->n_ids, n_sym = n;
    MU_TRY(st, mu_encode_syms(e, n, err), fail);
    for (size_t i = 0; i < n; i++) {
        e->syms[i] = (struct mu_tok_sym){.at = (uint32_t)i, .len = 1, .id = t->byte_ids[(unsigned char)word[i]]};
    }
    MU_TRY(st, mu_tok_merge_all(e, word, n, mu_tok_rank_pair, &n_sym, err), fail);
    for (size_t i = 0; i < n_sym; i++) {
        if (e->syms[i].id >= 0) MU_TRY(st, mu_encode_push(e, e->syms[i].id, err), fail);
    }
    mu_encode_remember(e, word, n, hash, first);
    return MU_OK;
fail:
    return st;
}

static enum mu_status encode_invalid(struct mu_encode *e, const char *p, size_t n, struct mu_err *err)
{
    for (size_t i = 0; i < n; i++) {
        if (e->t->byte_ids[(unsigned char)p[i]] < 0) return encode_word(e, "\xEF\xBF\xBD", 3, err);
    }
    return encode_word(e, p, n, err);
}

enum mu_status mu_tok_bpe_encode(struct mu_encode *e, const char *text, size_t n, struct mu_err *err)
{
    enum mu_status st;
    if (!e->run) {
        st = mu_pre_run_open(e->t->pre, &e->run, err);
        if (st != MU_OK) return st;
    }
    uint32_t cp;
    for (size_t at = 0; at < n;) {
        size_t valid = at, invalid;
        for (int step; valid < n && (step = mu_utf8_next(text + valid, n - valid, &cp)) > 0;) valid += (size_t)step;
        for (invalid = valid; invalid < n && !mu_utf8_next(text + invalid, n - invalid, &cp);) invalid++;
        if (valid > at) {
            st = mu_pre_cut(e->run, text + at, valid - at, encode_word, e, err);
            if (st != MU_OK) return st;
        }
        if (invalid > valid) {
            st = encode_invalid(e, text + valid, invalid - valid, err);
            if (st != MU_OK) return st;
        }
        at = invalid;
    }
    return MU_OK;
}
