/* tokenizer.model: SentencePiece's own file, a protobuf message (sentencepiece_model.proto):
 *
 *   ModelProto      1 pieces (repeated)   2 trainer_spec   3 normalizer_spec
 *   SentencePiece   1 piece (text)        2 score (f32)    3 type (1 … 6, the numbers that GGUF has taken over)
 *   TrainerSpec     3 model_type (1 unigram, 2 BPE)   24 treat_whitespace_as_suffix
 *   NormalizerSpec  2 precompiled_charsmap   3 add_dummy_prefix   4 remove_extra_whitespaces   5 escape_whitespaces
 *
 * BPE models without normalization are read, which is what language models have; the rest is refused by name. */
#include <string.h>

#include "base/alloc.h"
#include "model/hf_part.h"
#include "model/utf8.h"

enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };
enum { MODEL_BPE = 2 };

struct field {
    uint32_t number, wire;
    uint64_t value;    /* of a varint */
    const char *bytes; /* of bytes, and of four-byte values */
    size_t len;
};

struct message {
    const char *p, *end;
};

static bool read_varint(struct message *m, uint64_t *out)
{
    uint64_t v = 0;
    for (int shift = 0; shift < 64 && m->p < m->end; shift += 7) {
        unsigned char b = (unsigned char)*m->p++;
        v |= (uint64_t)(b & 0x7F) << shift;
        if (b < 0x80) {
            *out = v;
            return true;
        }
    }
    return false;
}

/* The next field. false: the end, or what follows is none (then m->p < m->end stays so). */
static bool next_field(struct message *m, struct field *f)
{
    const char *start = m->p;
    uint64_t tag, n = 0;
    if (m->p == m->end) return false;
    if (!read_varint(m, &tag) || tag >> 3 == 0 || tag >> 3 > UINT32_MAX) goto bad;
    *f = (struct field){.number = (uint32_t)(tag >> 3), .wire = (uint32_t)(tag & 7)};
    switch (f->wire) {
    case WIRE_VARINT:
        if (!read_varint(m, &f->value)) goto bad;
        return true;
    case WIRE_64: n = 8; break;
    case WIRE_32: n = 4; break;
    case WIRE_BYTES:
        if (!read_varint(m, &n)) goto bad;
        break;
    default: goto bad;
    }
    if (n > (uint64_t)(m->end - m->p)) goto bad;
    f->bytes = m->p;
    f->len = (size_t)n;
    m->p += n;
    return true;
bad:
    m->p = start;
    return false;
}

static enum mu_status damaged(const struct mu_hf *h, const struct message *m, struct mu_err *err)
{
    return MU_HF_BAD(h, "tokenizer.model", err,
                     "offset %zu: expected a field of a SentencePiece model; the file is damaged or of another kind",
                     (size_t)(m->p - h->text));
}

static bool is_utf8(struct mu_str s)
{
    uint32_t cp;
    for (size_t i = 0; i < s.len;) {
        int n = mu_utf8_next(s.p + i, s.len - i, &cp);
        if (!n) return false;
        i += (size_t)n;
    }
    return true;
}

static enum mu_status read_piece(struct mu_hf *h, struct message m, int id, struct mu_err *err)
{
    struct field f;
    struct mu_str text = {NULL, 0};
    float score = 0;
    uint64_t type = MU_TOK_NORMAL;
    while (next_field(&m, &f)) {
        if (f.number == 1 && f.wire == WIRE_BYTES) text = (struct mu_str){f.bytes, f.len};
        if (f.number == 2 && f.wire == WIRE_32) memcpy(&score, f.bytes, sizeof score);
        if (f.number == 3 && f.wire == WIRE_VARINT) type = f.value;
    }
    if (m.p != m.end) return damaged(h, &m, err);
    if (!text.p || text.len > MU_TOK_TEXT_MAX || !is_utf8(text) || type < MU_TOK_NORMAL || type > MU_TOK_BYTE ||
        score != score)
        return MU_HF_BAD(h, "tokenizer.model", err,
                         "piece %d has a text of %zu bytes and type %llu, expected UTF-8 of at most %d bytes, a score "
                         "and a type from 1 to 6",
                         id, text.len, (unsigned long long)type, MU_TOK_TEXT_MAX);
    h->tokens[id] = text;
    h->scores[id] = score;
    h->types[id] = (uint8_t)type;
    if (type == MU_TOK_UNKNOWN) h->unk = text;
    if (type == MU_TOK_BYTE) h->byte_fallback = true;
    return MU_OK;
}

static enum mu_status read_trainer(const struct mu_hf *h, struct message m, struct mu_err *err)
{
    struct field f;
    uint64_t model = 1, suffix = 0;
    while (next_field(&m, &f)) {
        if (f.number == 3 && f.wire == WIRE_VARINT) model = f.value;
        if (f.number == 24 && f.wire == WIRE_VARINT) suffix = f.value;
    }
    if (m.p != m.end) return damaged(h, &m, err);
    if (model == MODEL_BPE && suffix)
        return mu_fail(err, MU_EUNSUPPORTED,
                       "file '%s/tokenizer.model': spaces that stand behind words (treat_whitespace_as_suffix) are not "
                       "supported; add the model's tokenizer.json",
                       h->shown);
    if (model == MODEL_BPE) return MU_OK;
    return mu_fail(err, MU_EUNSUPPORTED,
                   "file '%s/tokenizer.model': a SentencePiece model of kind %s is not supported, BPE is; use another "
                   "model",
                   h->shown,
                   model == 1   ? "unigram"
                   : model == 3 ? "word"
                   : model == 4 ? "char"
                                : "unknown");
}

static enum mu_status read_normalizer(struct mu_hf *h, struct message m, struct mu_err *err)
{
    struct field f;
    bool charsmap = false, prefix = true, trims = true, escapes = true;
    while (next_field(&m, &f)) {
        if (f.number == 2 && f.wire == WIRE_BYTES) charsmap = f.len > 0;
        if (f.number == 3 && f.wire == WIRE_VARINT) prefix = f.value != 0;
        if (f.number == 4 && f.wire == WIRE_VARINT) trims = f.value != 0;
        if (f.number == 5 && f.wire == WIRE_VARINT) escapes = f.value != 0;
    }
    if (m.p != m.end) return damaged(h, &m, err);
    h->space_prefix = prefix;
    if (!charsmap && !trims && escapes) return MU_OK;
    return mu_fail(err, MU_EUNSUPPORTED,
                   "file '%s/tokenizer.model': normalization by %s is not supported; add the model's tokenizer.json",
                   h->shown,
                   charsmap ? "a table"
                   : trims  ? "removing white space"
                            : "keeping spaces");
}

enum mu_status mu_hf_spm_read(struct mu_hf *h, struct mu_err *err)
{
    struct message all = {h->text, h->text + h->text_len}, trainer = {0}, normalizer = {0}, m = all;
    struct field f;
    size_t n = 0, limit = h->n_vocab ? (size_t)h->n_vocab : MU_HF_VOCAB_MAX;
    while (next_field(&m, &f)) {
        if (f.wire != WIRE_BYTES) continue;
        n += f.number == 1;
        if (f.number == 2) trainer = (struct message){f.bytes, f.bytes + f.len};
        if (f.number == 3) normalizer = (struct message){f.bytes, f.bytes + f.len};
    }
    if (m.p != m.end) return damaged(h, &m, err);
    if (!n || n > limit)
        return MU_HF_BAD(h, "tokenizer.model", err,
                         "%zu pieces, expected 1 to %zu; the file does not belong to this model", n, limit);
    enum mu_status st = read_trainer(h, trainer, err);
    if (st == MU_OK) st = read_normalizer(h, normalizer, err);
    if (st != MU_OK) return st;
    h->spm = true;
    h->has_scores = h->fuse_unk = true;
    h->n_token = (int)n;
    h->tokens = mu_calloc(n, sizeof *h->tokens);
    h->types = mu_calloc(n, sizeof *h->types);
    h->scores = mu_calloc(n, sizeof *h->scores);
    if (!h->tokens || !h->types || !h->scores) return mu_hf_nomem(h, err);
    m = all;
    for (int id = 0; next_field(&m, &f) && st == MU_OK;) {
        if (f.number == 1 && f.wire == WIRE_BYTES)
            st = read_piece(h, (struct message){f.bytes, f.bytes + f.len}, id++, err);
    }
    return st;
}
