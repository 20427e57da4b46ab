/* Incremental detokenizing: a state machine over bytes that never shows half a character, nor a NUL, which would end
 * the text for whoever reads it as a string.
 *
 * Invariant: held[0..n_held) is a proper prefix of at least one valid character. What cannot become a character is
 * shown as one U+FFFD for the longest such prefix, as the Unicode standard (chapter 3, "maximal subpart") and
 * browsers do. */
#include <string.h>

#include "base/alloc.h"
#include "model/thinking.h"
#include "model/tokenizer_part.h"
#include "model/utf8.h"

static const char FFFD[] = "\xEF\xBF\xBD";

void mu_streamer_init(struct mu_streamer *s, const struct mu_tokenizer *t, bool show_special)
{
    *s = (struct mu_streamer){.tok = t, .show_special = show_special};
}

static enum mu_status room(char **buf, size_t len, size_t *cap, size_t more)
{
    size_t need;
    if (!mu_add_size(len, more, &need) || !mu_add_size(need, 1, &need)) return MU_ENOMEM;
    if (need <= *cap) return MU_OK;
    size_t want = *cap < SIZE_MAX / 2 && *cap * 2 > need ? *cap * 2 : need + 64;
    char *p = mu_reallocarray(*buf, want, 1);
    if (!p) return MU_ENOMEM;
    *buf = p;
    *cap = want;
    return MU_OK;
}

static struct mu_str piece_of(struct mu_streamer *s, int id)
{
    struct mu_str piece = mu_tokenizer_piece(s->tok, id, s->show_special);
    if (piece.len && s->whole) {
        s->whole = false;
        piece = mu_tok_without_prefix(s->tok, id, piece);
    }
    if (piece.len || !s->show_marks) return piece;
    struct mu_str hidden = mu_tokenizer_piece(s->tok, id, true);
    return mu_thinking_is_mark(hidden.p, hidden.len) ? hidden : piece;
}

enum mu_status mu_streamer_push(struct mu_streamer *s, int id, char **buf, size_t *len, size_t *cap)
{
    struct mu_str piece = piece_of(s, id);
    /* Every byte shows at most one U+FFFD, and those held before it at most one more. */
    size_t most;
    if (!mu_mul_size(piece.len, 3, &most) || !mu_add_size(most, 3, &most)) return MU_ENOMEM;
    enum mu_status st = room(buf, *len, cap, most);
    if (st != MU_OK) return st;
    char *out = *buf + *len;
    for (size_t i = 0; i < piece.len; i++) {
        unsigned char b = (unsigned char)piece.p[i];
        if (s->n_held) {
            if (s->n_held == 1 ? mu_utf8_second_ok(s->held[0], b) : (b & 0xC0) == 0x80) {
                s->held[s->n_held++] = b;
                if (s->n_held == mu_utf8_need(s->held[0])) {
                    memcpy(out, s->held, (size_t)s->n_held);
                    out += s->n_held;
                    s->n_held = 0;
                }
                continue;
            }
            memcpy(out, FFFD, 3);
            out += 3;
            s->n_held = 0;
        }
        int need = mu_utf8_need(b);
        if (need == 1 && b) {
            *out++ = (char)b;
        } else if (need > 1) {
            s->held[s->n_held++] = b;
        } else {
            memcpy(out, FFFD, 3);
            out += 3;
        }
    }
    *out = '\0';
    *len = (size_t)(out - *buf);
    return MU_OK;
}

enum mu_status mu_streamer_finish(struct mu_streamer *s, char **buf, size_t *len, size_t *cap)
{
    enum mu_status st = room(buf, *len, cap, 3);
    if (st != MU_OK) return st;
    if (s->n_held) {
        memcpy(*buf + *len, FFFD, 3);
        *len += 3;
        s->n_held = 0;
    }
    (*buf)[*len] = '\0';
    return MU_OK;
}
