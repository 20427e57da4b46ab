/* SentencePiece-style merging (Kudo and Richardson, arXiv:1808.06226): characters are joined to the pair with the
 * best score, whatever words they belong to; what is no token in the end is spelled in byte tokens.
 *
 * A text has no words here, and merging a whole document through one heap would be slow. But two characters that
 * stand side by side in no token can never come into one: between them the text may be cut. `joints` is the set of
 * pairs that do stand side by side: exact for ASCII, a hashed bitmap beyond (a false "may join" costs time, never
 * the result). In most vocabularies no token has a space behind another character, so that the pieces are words. */
#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "model/tokenizer_part.h"
#include "model/utf8.h"

enum { ASCII_JOINTS = 128 * 128 };

/* A byte that is part of no character counts as one of its own, beyond Unicode. */
static int next_char(const char *p, size_t n, uint32_t *cp)
{
    int len = mu_utf8_next(p, n, cp);
    if (len) return len;
    *cp = 0x110000u + (unsigned char)*p;
    return 1;
}

static uint32_t joint(const struct mu_tokenizer *t, uint32_t left, uint32_t right)
{
    if (left < 128 && right < 128) return left * 128 + right;
    uint64_t h = ((uint64_t)left << 32 | right) * 0x9E3779B97F4A7C15u;
    return ASCII_JOINTS + ((uint32_t)(h >> 32) & t->joint_mask);
}

static enum mu_status read_scores(struct mu_tokenizer *t, struct mu_err *err)
{
    const struct mu_gguf_value *v = mu_gguf_find(t->gguf, "tokenizer.ggml.scores");
    if (!v || v->kind != MU_GGUF_ARRAY || v->item_kind != MU_GGUF_F32 || v->n != (uint64_t)t->n_vocab) {
        return MU_TOK_BAD(t, v, err, "tokenizer.ggml.scores must be an array of %d f32, one a token; " MU_TOK_REMEDY,
                          t->n_vocab);
    }
    t->order = mu_reallocarray(NULL, (size_t)t->n_vocab, sizeof *t->order);
    if (!t->order) return mu_fail(err, MU_ENOMEM, "no memory for %d scores", t->n_vocab);
    for (int i = 0; i < t->n_vocab; i++) {
        float score = mu_gguf_item_f32(v, (uint64_t)i) + 0.0f; /* one zero */
        if (isnan(score)) { return MU_TOK_BAD(t, v, err, "the score of token %d is no number; " MU_TOK_REMEDY, i); }
        uint32_t bits;
        memcpy(&bits, &score, sizeof bits);
        t->order[i] = bits & 0x80000000u ? bits : 0x7FFFFFFFu - bits; /* descending floats as ascending integers */
    }
    return MU_OK;
}

enum mu_status mu_tok_spm_open(struct mu_tokenizer *t, struct mu_err *err)
{
    enum mu_status st = t->ranked ? mu_tok_ranks_open(t, err) : read_scores(t, err);
    if (st != MU_OK) return st;
    uint32_t bits = 1u << 16;
    while (bits < (1u << 22) && bits < 8u * (uint32_t)t->n_vocab) bits *= 2;
    t->joint_mask = bits - 1;
    t->joints = mu_calloc((ASCII_JOINTS + bits) / 64, sizeof *t->joints);
    if (!t->joints) return mu_fail(err, MU_ENOMEM, "no memory for the vocabulary's character pairs");
    for (int i = 0; i < t->n_vocab; i++) {
        if (t->types[i] != MU_TOK_NORMAL && !(t->ranked && t->types[i] == MU_TOK_USER)) continue;
        struct mu_str piece = mu_tok_piece(t, i);
        uint32_t left = 0, right;
        for (size_t at = 0; at < piece.len; left = right) {
            int step = next_char(piece.p + at, piece.len - at, &right);
            uint32_t bit = joint(t, left, right);
            if (at) t->joints[bit / 64] |= 1ull << (bit % 64);
            at += (size_t)step;
        }
    }
    return MU_OK;
}

static void pair(const struct mu_tokenizer *t, const char *text, const struct mu_tok_sym *left,
                 const struct mu_tok_sym *right, uint32_t *key_out, int32_t *id_out)
{
    const char *p = text + left->at;
    size_t n = (size_t)left->len + right->len;
    int32_t id = n <= t->piece_max ? mu_tok_find(t, p, n, mu_tok_piece_hash(t, p, n)) : -1;
    *key_out = id >= 0 ? t->order[id] : MU_TOK_NO_MERGE;
    *id_out = id;
}

/* One symbol: its token; or its bytes; or, where the vocabulary lacks those, the unknown token. */
static enum mu_status emit(struct mu_encode *e, int32_t id, const char *p, size_t n, struct mu_err *err)
{
    const struct mu_tokenizer *t = e->t;
    if (id < 0) id = mu_tok_find(t, p, n, mu_tok_piece_hash(t, p, n));
    if (id >= 0) return mu_encode_push(e, id, err);
    bool bytes = true;
    for (size_t i = 0; i < n; i++) bytes &= t->byte_ids[(unsigned char)p[i]] >= 0;
    if (!bytes) {
        e->unknown = t->unk >= 0;
        return e->unknown ? mu_encode_push(e, MU_TOK_UNKNOWN_CHAR, err) : MU_OK;
    }
    enum mu_status st = MU_OK;
    for (size_t i = 0; i < n && st == MU_OK; i++) st = mu_encode_push(e, t->byte_ids[(unsigned char)p[i]], err);
    return st;
}

/* text: n_chars ≥ 2 characters that may join. */
static enum mu_status encode_word(struct mu_encode *e, const char *text, size_t n, size_t n_chars, struct mu_err *err)
{
    uint64_t hash = mu_tok_piece_hash(e->t, text, n);
    enum mu_status st;
    if (mu_encode_seen(e, text, n, hash, &st, err)) return st;
    size_t first = e->n_ids, n_sym = 0;
    MU_TRY(st, mu_encode_syms(e, n_chars, err), fail);
    for (size_t at = 0; at < n;) {
        uint32_t cp;
        int step = next_char(text + at, n - at, &cp);
        int32_t id = -1; /* scores go by bytes, ranks by ids */
        if (e->t->ranked)
            id = mu_tok_find(e->t, text + at, (size_t)step, mu_tok_piece_hash(e->t, text + at, (size_t)step));
        e->syms[n_sym++] = (struct mu_tok_sym){.at = (uint32_t)at, .len = (uint32_t)step, .id = id};
        at += (size_t)step;
    }
    MU_TRY(st, mu_tok_merge_all(e, text, n_sym, e->t->ranked ? mu_tok_rank_pair : pair, &n_sym, err), fail);
    for (size_t i = 0; i < n_sym; i++) {
        MU_TRY(st, emit(e, e->syms[i].id, text + e->syms[i].at, e->syms[i].len, err), fail);
    }
    mu_encode_remember(e, text, n, hash, first);
    return MU_OK;
fail:
    return st;
}

static bool begins_space(const char *text, size_t n)
{
    return *text == ' ' || (n >= MU_TOK_MARK_LEN && !memcmp(text, MU_TOK_MARK, MU_TOK_MARK_LEN));
}

enum mu_status mu_tok_spm_encode(struct mu_encode *e, const char *text, size_t n, struct mu_err *err)
{
    const struct mu_tokenizer *t = e->t;
    if (e->copies) {
        char *copy = mu_encode_alloc(e, n + 1), *end = copy;
        if (!copy) return mu_tok_nomem(err);
        bool space = t->add_space_prefix && !(t->first_space && e->started) && !(t->one_space && begins_space(text, n));
        if (space) *end++ = ' ';
        end += mu_tok_unmark((struct mu_str){text, n}, end);
        text = copy;
        n = (size_t)(end - copy);
    }
    size_t start = 0, n_chars = 0, at = 0;
    uint32_t left = 0, right;
    while (at < n) {
        int step = next_char(text + at, n - at, &right);
        uint32_t bit = joint(t, left, right);
        if (n_chars && !(t->joints[bit / 64] >> (bit % 64) & 1)) {
            enum mu_status st = n_chars == 1 ? emit(e, -1, text + start, at - start, err)
                                             : encode_word(e, text + start, at - start, n_chars, err);
            if (st != MU_OK) return st;
            start = at;
            n_chars = 0;
        }
        at += (size_t)step;
        n_chars++;
        left = right;
    }
    if (!n_chars) return MU_OK;
    return n_chars == 1 ? emit(e, -1, text + start, at - start, err)
                        : encode_word(e, text + start, at - start, n_chars, err);
}
