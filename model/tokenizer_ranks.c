/* Merges by rank: which two tokens make a third, and which pair goes first. What byte-level BPE merges by, and
 * SentencePiece's kind where the file carries merges (Gemma 4; tokenizer.json). */
#include <string.h>

#include "base/alloc.h"
#include "model/tokenizer_part.h"

static uint32_t slot_of(const struct mu_tokenizer *t, int32_t left, int32_t right)
{
    uint64_t h = (((uint64_t)(uint32_t)left << 32 | (uint32_t)right) ^ t->merge_seed) * 0x9E3779B97F4A7C15u;
    h = (h ^ h >> 32) * 0xD6E8FEB86659FD93u;
    return (uint32_t)(h >> 32) & t->merge_mask;
}

static int32_t find_text(const struct mu_tokenizer *t, const char *bytes, int n)
{
    return n > 0 ? mu_tok_find(t, bytes, (size_t)n, mu_tok_piece_hash(t, bytes, (size_t)n)) : -1;
}

/* The bytes that a text of a merge stands for; -1: it can be none. */
static int piece_of(const struct mu_tokenizer *t, struct mu_str text, char *out)
{
    return t->spm ? (int)mu_tok_unmark(text, out) : mu_tok_byte_level(text, out);
}

/* "left right", in whose spelling there is no space. */
static enum mu_status add_merge(struct mu_tokenizer *t, const struct mu_gguf_value *v, uint32_t rank, char *bytes,
                                struct mu_err *err)
{
    struct mu_str s = v->strings[rank];
    const char *space = s.len > 2 && s.len <= 2 * MU_TOK_TEXT_MAX ? memchr(s.p + 1, ' ', s.len - 2) : NULL;
    if (!space) {
        return MU_TOK_BAD(
            t, v, err,
            "merge %u of tokenizer.ggml.merges (%zu bytes) is not two texts with a space between; " MU_TOK_REMEDY, rank,
            s.len);
    }
    struct mu_str left = {s.p, (size_t)(space - s.p)}, right = {space + 1, s.len - left.len - 1};
    int n_left = piece_of(t, left, bytes);
    int n_right = n_left > 0 ? piece_of(t, right, bytes + n_left) : -1;
    if (n_right <= 0) return MU_OK; /* can never apply */
    int32_t l = find_text(t, bytes, n_left), r = find_text(t, bytes + n_left, n_right),
            id = find_text(t, bytes, n_left + n_right);
    if (l < 0 || r < 0 || id < 0) return MU_OK;
    uint32_t i = slot_of(t, l, r);
    for (; t->merges[i].left >= 0; i = (i + 1) & t->merge_mask) {
        if (t->merges[i].left == l && t->merges[i].right == r) return MU_OK; /* the first counts */
    }
    t->merges[i] = (struct mu_tok_merge){l, r, rank, id};
    return MU_OK;
}

enum mu_status mu_tok_ranks_open(struct mu_tokenizer *t, struct mu_err *err)
{
    enum mu_status st = MU_OK;
    const struct mu_gguf_value *v = mu_gguf_find(t->gguf, "tokenizer.ggml.merges");
    if (!v || v->kind != MU_GGUF_ARRAY || v->item_kind != MU_GGUF_STRING || v->n >= UINT32_MAX / 4) {
        return MU_TOK_BAD(t, v, err,
                          "this kind of tokenizer needs tokenizer.ggml.merges, an array of strings; " MU_TOK_REMEDY);
    }
    uint32_t slots = 16;
    while (slots < v->n + v->n / 2) slots *= 2;
    t->merge_mask = slots - 1;
    t->merge_seed = mu_tok_seed();
    t->merges = mu_reallocarray(NULL, slots, sizeof *t->merges);
    char *bytes = mu_malloc(2 * MU_TOK_TEXT_MAX);
    if (!t->merges || !bytes) {
        st = mu_fail(err, MU_ENOMEM, "no memory for %llu merges", (unsigned long long)v->n);
        goto fail;
    }
    memset(t->merges, 0xFF, slots * sizeof *t->merges);
    for (uint32_t i = 0; i < v->n; i++) MU_TRY(st, add_merge(t, v, i, bytes, err), fail);
fail:
    mu_free(bytes);
    return st;
}

void mu_tok_rank_pair(const struct mu_tokenizer *t, const char *text, const struct mu_tok_sym *left,
                      const struct mu_tok_sym *right, uint32_t *key_out, int32_t *id_out)
{
    (void)text;
    *key_out = MU_TOK_NO_MERGE;
    *id_out = -1;
    if (left->id < 0 || right->id < 0) return;
    for (uint32_t i = slot_of(t, left->id, right->id); t->merges[i].left >= 0; i = (i + 1) & t->merge_mask) {
        if (t->merges[i].left != left->id || t->merges[i].right != right->id) continue;
        *key_out = t->merges[i].rank;
        *id_out = t->merges[i].id;
        return;
    }
}
