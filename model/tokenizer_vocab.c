/* The vocabulary: token types, the bytes that tokens stand for, and the table from bytes to ids.
 *
 * Everything here is bounded by the file: types and offsets by the number of tokens (each at least eight bytes in
 * the file), pieces by the texts they are made from. */
#include <string.h>
#include <sys/random.h>

#include "base/alloc.h"
#include "model/tokenizer_part.h"
#include "model/utf8.h"

uint64_t mu_tok_seed(void)
{
    uint64_t seed = 0x9E3779B97F4A7C15u;
    /* Failing only means a seed that could be known. */
    if (getentropy(&seed, sizeof seed) != 0) seed ^= (uint64_t)(uintptr_t)&seed;
    return seed;
}

/* Multiply and fold, eight bytes at a time: a few nanoseconds for a word. */
static uint64_t fold(uint64_t a, uint64_t b)
{
    unsigned __int128 m = (unsigned __int128)a * b;
    return (uint64_t)m ^ (uint64_t)(m >> 64);
}

uint64_t mu_tok_hash(const char *p, size_t n, uint64_t seed)
{
    uint64_t h = seed ^ (n * 0x9E3779B97F4A7C15u), v;
    for (; n >= 8; n -= 8, p += 8) {
        memcpy(&v, p, 8);
        h = fold(h ^ v, 0xD6E8FEB86659FD93u);
    }
    if (n >= 4) {
        uint32_t lo, hi;
        memcpy(&lo, p, 4);
        memcpy(&hi, p + n - 4, 4);
        v = (uint64_t)hi << 32 | lo;
    } else {
        v = n ? (uint64_t)(unsigned char)p[0] | (uint64_t)(unsigned char)p[n / 2] << 8 |
                    (uint64_t)(unsigned char)p[n - 1] << 16
              : 0;
    }
    return fold(h ^ v, 0xA0761D6478BD642Fu);
}

int32_t mu_tok_find(const struct mu_tokenizer *t, const char *p, size_t n, uint64_t hash)
{
    const struct mu_tok_map *m = &t->by_piece;
    for (uint32_t i = (uint32_t)(hash >> 32) & m->mask;; i = (i + 1) & m->mask) {
        const struct mu_tok_slot *s = &m->slots[i];
        if (s->id < 0) return -1;
        if (s->hash != (uint32_t)hash) continue;
        struct mu_str piece = mu_tok_piece(t, s->id);
        if (piece.len == n && !memcmp(piece.p, p, n)) return s->id;
    }
}

/* Of tokens with the same piece the last wins where `replace`, as in the readers that files are made for. */
static void add(struct mu_tokenizer *t, int32_t id, bool replace)
{
    struct mu_tok_map *m = &t->by_piece;
    struct mu_str piece = mu_tok_piece(t, id);
    if (!piece.len) return;
    uint64_t hash = mu_tok_piece_hash(t, piece.p, piece.len);
    uint32_t i = (uint32_t)(hash >> 32) & m->mask;
    for (; m->slots[i].id >= 0; i = (i + 1) & m->mask) {
        struct mu_str other = mu_tok_piece(t, m->slots[i].id);
        if (m->slots[i].hash == (uint32_t)hash && other.len == piece.len && !memcmp(other.p, piece.p, piece.len)) {
            if (replace) m->slots[i].id = id;
            return;
        }
    }
    m->slots[i] = (struct mu_tok_slot){(uint32_t)hash, id};
    if (piece.len > t->piece_max) t->piece_max = (uint32_t)piece.len;
}

/* Byte-level vocabularies write byte b as a printable character: itself where it is one (33–126, 161–172, 174–255),
 * else the next free one from U+0100 on. */
static int byte_of_char(uint32_t cp)
{
    if ((cp >= 33 && cp <= 126) || (cp >= 161 && cp <= 172) || (cp >= 174 && cp <= 255)) return (int)cp;
    if (cp < 256 || cp >= 256 + 68) return -1;
    cp -= 256;
    if (cp < 33) return (int)cp;         /* 0–32 */
    return cp < 67 ? (int)cp + 94 : 173; /* 127–160 */
}

int mu_tok_byte_level(struct mu_str text, char *out)
{
    int n = 0;
    for (size_t at = 0; at < text.len;) {
        uint32_t cp;
        int step = mu_utf8_next(text.p + at, text.len - at, &cp);
        int b = step ? byte_of_char(cp) : -1;
        if (b < 0) return -1;
        out[n++] = (char)b;
        at += (size_t)step;
    }
    return n;
}

int mu_tok_byte(struct mu_str s)
{
    if (s.len != 6 || memcmp(s.p, "<0x", 3) || s.p[5] != '>') return -1;
    int high = mu_hex_digit(s.p[3]), low = mu_hex_digit(s.p[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

size_t mu_tok_unmark(struct mu_str text, char *out)
{
    size_t n = 0;
    for (size_t i = 0; i < text.len;) {
        if (text.len - i >= MU_TOK_MARK_LEN && !memcmp(text.p + i, MU_TOK_MARK, MU_TOK_MARK_LEN)) {
            out[n++] = ' ';
            i += MU_TOK_MARK_LEN;
        } else {
            out[n++] = text.p[i++];
        }
    }
    return n;
}

static size_t make_piece(struct mu_tokenizer *t, int id, char *out)
{
    struct mu_str text = t->texts[id];
    int b = -1, n;
    switch (t->types[id]) {
    case MU_TOK_UNUSED: return 0;
    case MU_TOK_BYTE:
        b = mu_tok_byte(text); /* types and texts were checked */
        out[0] = (char)b;
        return 1;
    case MU_TOK_NORMAL:
        if (t->spm) return mu_tok_unmark(text, out);
        n = mu_tok_byte_level(text, out);
        if (n >= 0) return (size_t)n;
        break;
    case MU_TOK_USER:
        if (t->spm) return mu_tok_unmark(text, out);
        break;
    default: break;
    }
    memcpy(out, text.p, text.len);
    return text.len;
}

static enum mu_status read_types(struct mu_tokenizer *t, struct mu_err *err)
{
    const struct mu_gguf_value *v = mu_gguf_find(t->gguf, "tokenizer.ggml.token_type");
    if (v && (v->kind != MU_GGUF_ARRAY || (v->item_kind != MU_GGUF_I32 && v->item_kind != MU_GGUF_U32) ||
              v->n != (uint64_t)t->n_vocab)) {
        return MU_TOK_BAD(
            t, v, err, "tokenizer.ggml.token_type must be an array of %d i32, one a token; " MU_TOK_REMEDY, t->n_vocab);
    }
    for (int i = 0; i < t->n_vocab; i++) {
        int64_t type = v ? mu_gguf_item_i64(v, (uint64_t)i) : MU_TOK_NORMAL;
        bool is_byte = mu_tok_byte(t->texts[i]) >= 0;
        if (t->spm && is_byte && (!v || (t->ranked && type == MU_TOK_NORMAL))) type = MU_TOK_BYTE;
        if (type < MU_TOK_NORMAL || type > MU_TOK_BYTE || (type == MU_TOK_BYTE && !is_byte)) {
            return MU_TOK_BAD(t, v, err, "token %d has type %lld%s, expected 1 to 6%s; " MU_TOK_REMEDY, i,
                              (long long)type, type == MU_TOK_BYTE ? " (byte)" : "",
                              type == MU_TOK_BYTE ? ", and a byte's text is like <0x0A>" : "");
        }
        if (type == MU_TOK_USER && mu_tok_ends_turn(t->texts[i])) type = MU_TOK_CONTROL;
        t->types[i] = (uint8_t)type;
    }
    return MU_OK;
}

enum mu_status mu_tok_vocab_open(struct mu_tokenizer *t, struct mu_err *err)
{
    const struct mu_gguf_value *v = mu_gguf_find(t->gguf, "tokenizer.ggml.tokens");
    size_t n = (size_t)t->n_vocab, bytes = 0;
    for (size_t i = 0; i < n; i++) {
        if (t->texts[i].len > MU_TOK_TEXT_MAX) {
            return MU_TOK_BAD(t, v, err, "the text of token %zu has %zu bytes, more than %d; " MU_TOK_REMEDY, i,
                              t->texts[i].len, MU_TOK_TEXT_MAX);
        }
        bytes += t->texts[i].len;
    }
    if (bytes > UINT32_MAX) return MU_TOK_BAD(t, v, err, "the tokens have %zu bytes of text; " MU_TOK_REMEDY, bytes);
    uint32_t slots = 16;
    while (slots < 2 * n) slots *= 2;
    t->types = mu_malloc(n);
    t->piece_bytes = mu_malloc(bytes + 1);
    t->piece_at = mu_reallocarray(NULL, n + 1, sizeof *t->piece_at);
    t->by_piece.slots = mu_reallocarray(NULL, slots, sizeof *t->by_piece.slots);
    if (!t->types || !t->piece_bytes || !t->piece_at || !t->by_piece.slots) {
        return mu_fail(err, MU_ENOMEM, "no memory for a vocabulary of %d tokens", t->n_vocab);
    }
    enum mu_status st = read_types(t, err);
    if (st != MU_OK) return st;

    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        t->piece_at[i] = (uint32_t)at;
        at += make_piece(t, (int)i, t->piece_bytes + at);
    }
    t->piece_at[n] = (uint32_t)at;

    t->by_piece.mask = slots - 1;
    t->by_piece.seed = mu_tok_seed();
    memset(t->by_piece.slots, 0xFF, slots * sizeof *t->by_piece.slots);
    for (int i = 0; i < t->n_vocab; i++) {
        if (t->types[i] == MU_TOK_NORMAL) add(t, i, true);
    }
    /* Merges may go through added tokens. One that reads as a single byte is none: it is an added "ø",
     * not the byte 0xF8. */
    for (int i = 0; (!t->spm || t->ranked) && i < t->n_vocab; i++) {
        if (t->types[i] == MU_TOK_USER && mu_tok_piece(t, i).len > 1) add(t, i, false);
    }
    for (int b = 0; b < 256; b++) {
        char c = (char)b;
        t->byte_ids[b] = t->spm ? -1 : mu_tok_find(t, &c, 1, mu_tok_piece_hash(t, &c, 1));
    }
    for (int i = 0; i < t->n_vocab; i++) {
        if (t->types[i] == MU_TOK_BYTE) t->byte_ids[(unsigned char)*mu_tok_piece(t, i).p] = i;
    }
    return MU_OK;
}
