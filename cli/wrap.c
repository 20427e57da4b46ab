/* Word wrap. A character is gathered from its bytes, measured, and joins the word; the word is written once something
 * parts it from the next one. */
#include "cli/wrap.h"

#include <string.h>

enum { TAB = 8, MAX_BLANKS = 4096 };

void mu_wrap_init(struct mu_wrap *w, int width,
                  enum mu_status (*write)(void *ctx, const char *text, size_t len, struct mu_err *err), void *ctx)
{
    *w = (struct mu_wrap){.width = width, .write = write, .ctx = ctx};
}

static enum mu_status newline(struct mu_wrap *w, struct mu_err *err)
{
    w->column = w->blanks = 0;
    return w->write(w->ctx, "\n", 1, err);
}

static enum mu_status blanks_write(struct mu_wrap *w, struct mu_err *err)
{
    static const char some[] = "                                ";
    enum mu_status st = MU_OK;
    w->column += w->blanks;
    while (!st && w->blanks) {
        int n = w->blanks < (int)sizeof some - 1 ? w->blanks : (int)sizeof some - 1;
        st = w->write(w->ctx, some, (size_t)n, err);
        w->blanks -= n;
    }
    return st;
}

static enum mu_status word_write(struct mu_wrap *w, struct mu_err *err)
{
    enum mu_status st = MU_OK;
    if (!w->word_len) return MU_OK;
    if (w->width && w->column + w->blanks + w->word_columns > w->width) {
        if (w->column) st = newline(w, err);
        w->blanks = 0; /* an indentation that leaves no room for the word */
    }
    if (!st) st = blanks_write(w, err);
    if (!st) st = w->write(w->ctx, w->word, w->word_len, err);
    w->column += w->word_columns;
    w->word_len = 0;
    w->word_columns = 0;
    return st;
}

int mu_wrap_columns(wchar_t c)
{
    if (c < 0x20 || (c >= 0x7f && c < 0xa0)) return -1;
    /* what orders text from right to left could make a line read as something else */
    if ((c >= 0x202a && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069)) return -1;
    int n = wcwidth(c);
    return n < 0 ? 1 : n; /* newer than the C library's tables */
}

static enum mu_status character(struct mu_wrap *w, const char *bytes, size_t len, wchar_t c, struct mu_err *err)
{
    enum mu_status st = MU_OK;
    if (c == '\n') {
        st = word_write(w, err);
        return st ? st : newline(w, err);
    }
    if (c == ' ' || c == '\t') {
        st = word_write(w, err);
        int n = c == ' ' ? 1 : TAB - (w->column + w->blanks) % TAB;
        if (w->blanks < MAX_BLANKS) w->blanks += n;
        return st;
    }
    int n = mu_wrap_columns(c);
    if (n < 0) return MU_OK;
    if (n > 1 || w->word_len + len > sizeof w->word || (w->width && w->word_columns && w->word_columns + n > w->width))
        st = word_write(w, err);
    if (st) return st;
    memcpy(w->word + w->word_len, bytes, len);
    w->word_len += len;
    w->word_columns += n;
    return n > 1 ? word_write(w, err) : MU_OK;
}

/* Bytes of the character that begins with c; 0: none does. */
static int utf8_len(unsigned char c)
{
    return c < 0x80 ? 1 : c >= 0xc2 && c < 0xe0 ? 2 : c >= 0xe0 && c < 0xf0 ? 3 : c >= 0xf0 && c < 0xf5 ? 4 : 0;
}

static enum mu_status replacement(struct mu_wrap *w, struct mu_err *err)
{
    w->part_len = 0;
    return character(w, "\xef\xbf\xbd", 3, 0xfffd, err);
}

static wchar_t part_value(const struct mu_wrap *w)
{
    static const unsigned char lead[] = {0, 0x7f, 0x1f, 0x0f, 0x07};
    unsigned long v = (unsigned char)w->part[0] & lead[w->part_want];
    for (int i = 1; i < w->part_want; i++) v = v << 6 | ((unsigned char)w->part[i] & 0x3f);
    return (wchar_t)v;
}

enum mu_status mu_wrap_put(struct mu_wrap *w, const char *text, size_t len, struct mu_err *err)
{
    enum mu_status st = MU_OK;
    for (size_t i = 0; !st && i < len; i++) {
        unsigned char c = (unsigned char)text[i];
        if (w->part_len && (c & 0xc0) != 0x80) st = replacement(w, err); /* broken off */
        if (st) break;
        if (!w->part_len) w->part_want = utf8_len(c);
        if (!w->part_want) {
            st = replacement(w, err);
            continue;
        }
        w->part[w->part_len++] = (char)c;
        if (w->part_len < w->part_want) continue;
        w->part_len = 0;
        st = character(w, w->part, (size_t)w->part_want, part_value(w), err);
    }
    return st;
}

enum mu_status mu_wrap_flush(struct mu_wrap *w, struct mu_err *err)
{
    enum mu_status st = w->part_len ? replacement(w, err) : MU_OK;
    return st ? st : word_write(w, err);
}

enum mu_status mu_wrap_code(struct mu_wrap *w, const char *code, struct mu_err *err)
{
    enum mu_status st = mu_wrap_flush(w, err);
    return st ? st : w->write(w->ctx, code, strlen(code), err);
}
