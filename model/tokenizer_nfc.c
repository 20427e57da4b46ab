/* Normalisation of text to NFC (Unicode Standard Annex 15) with utf8proc's tables, where a vocabulary asks for it.
 *
 * Nearly all text is in NFC, and is then used where it lies. A set of "unsettled" characters decides: those that do
 * not stand as they are, may join the one before, or take part in the order of marks. Text without any is in NFC; and
 * before a settled character nothing that follows can reach back, so that only stretches from the character before an
 * unsettled one to the next settled one are rewritten.
 *
 * utf8proc sorts marks by exchanging neighbours, which takes the square of a long row of them; here they are sorted
 * by counting. Alternative rejected: normalising every text as a whole, which would cost English more than all the
 * rest of tokenizing. */
#include <string.h>
#include <utf8proc.h>

#include "base/alloc.h"
#include "model/tokenizer_part.h"
#include "model/utf8.h"

enum {
    SET_LIMIT = 0x30000, /* characters from here on count as unsettled: there are next to none in texts */
    FIRST_UNSETTLED = 0x300,
    LEAD_UNSETTLED = 0xCC, /* the byte that U+0300 begins with */
    DECOMPOSED_MAX = 32    /* of one character; Unicode's longest has four */
};

static const utf8proc_option_t OPTIONS = (utf8proc_option_t)(UTF8PROC_STABLE | UTF8PROC_COMPOSE);

static void unsettle(struct mu_tokenizer *t, utf8proc_int32_t cp)
{
    if (cp < SET_LIMIT) t->unsettled[cp / 64] |= 1ull << (cp % 64);
}

static int combining(utf8proc_int32_t cp)
{
    return utf8proc_get_property(cp)->combining_class & 255;
}

/* What a character comes apart into, and whether that is put together to it again. */
static void look_at(struct mu_tokenizer *t, utf8proc_int32_t cp)
{
    utf8proc_int32_t out[DECOMPOSED_MAX];
    int boundary = 0;
    if (combining(cp)) unsettle(t, cp);
    utf8proc_ssize_t n = utf8proc_decompose_char(cp, out, DECOMPOSED_MAX, OPTIONS, &boundary);
    if (n < 1 || n > DECOMPOSED_MAX || (n == 1 && out[0] == cp)) return;
    if (n > 1) unsettle(t, out[n - 1]); /* it joins what is before it */
    if (utf8proc_normalize_utf32(out, n, OPTIONS) != 1 || out[0] != cp) unsettle(t, cp);
}

enum mu_status mu_tok_nfc_open(struct mu_tokenizer *t, struct mu_err *err)
{
    t->unsettled = mu_calloc(SET_LIMIT / 64, sizeof *t->unsettled);
    if (!t->unsettled) return mu_fail(err, MU_ENOMEM, "no memory for the table of normalisation");
    for (utf8proc_int32_t cp = 0x80; cp < SET_LIMIT; cp++) look_at(t, cp);
    return MU_OK;
}

static bool is_unsettled(const struct mu_tokenizer *t, uint32_t cp)
{
    if (cp < FIRST_UNSETTLED) return false;
    return cp >= SET_LIMIT || (t->unsettled[cp / 64] >> (cp % 64) & 1);
}

/* Where the character that ends at `end` begins; `end` itself: what is before it is none. */
static size_t char_before(const char *p, size_t end, size_t from)
{
    uint32_t cp;
    for (size_t i = end; i > from && end - i < 4;) {
        if (((unsigned char)p[--i] & 0xC0) == 0x80) continue;
        return (size_t)mu_utf8_next(p + i, end - i, &cp) == end - i ? i : end;
    }
    return end;
}

/* Where the first unsettled character is; n: nowhere. Bytes that are no UTF-8 are settled. */
static size_t find_unsettled(const struct mu_tokenizer *t, const char *p, size_t n, size_t from)
{
    uint32_t cp;
    for (size_t i = from; i < n;) {
        if ((unsigned char)p[i] < LEAD_UNSETTLED) {
            i++;
            continue;
        }
        int len = mu_utf8_next(p + i, n - i, &cp);
        if (len && is_unsettled(t, cp)) return i;
        i += len ? (size_t)len : 1;
    }
    return n;
}

/* Behind the stretch that begins at `from` with an unsettled character. */
static size_t find_settled(const struct mu_tokenizer *t, const char *p, size_t n, size_t from)
{
    uint32_t cp;
    for (size_t i = from; i < n;) {
        int len = mu_utf8_next(p + i, n - i, &cp);
        if (!len || !is_unsettled(t, cp)) return i;
        i += (size_t)len;
    }
    return n;
}

struct nfc {
    utf8proc_int32_t *chars, *spare; /* the stretch, decomposed */
    size_t n, cap, n_spare;
};

static bool room(struct nfc *b, size_t more)
{
    if (b->n + more <= b->cap) return true;
    size_t cap = b->cap * 2 + more + 64;
    utf8proc_int32_t *p = mu_reallocarray(b->chars, cap, sizeof *p);
    if (!p) return false;
    b->chars = p;
    b->cap = cap;
    return true;
}

static bool decompose(struct nfc *b, const char *p, size_t n)
{
    int boundary = 0;
    b->n = 0;
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        int len = mu_utf8_next(p + i, n - i, &cp);
        if (!len || !room(b, DECOMPOSED_MAX)) return false; /* stretches are valid */
        utf8proc_ssize_t made =
            utf8proc_decompose_char((utf8proc_int32_t)cp, b->chars + b->n, DECOMPOSED_MAX, OPTIONS, &boundary);
        if (made < 0 || made > DECOMPOSED_MAX) { /* no character of Unicode's: it stands */
            b->chars[b->n] = (utf8proc_int32_t)cp;
            made = 1;
        }
        b->n += (size_t)made;
        i += (size_t)len;
    }
    return true;
}

/* A row of marks, by class, those of a class in their order. */
static bool sort_marks(struct nfc *b, utf8proc_int32_t *row, size_t n)
{
    size_t at[257] = {0};
    if (n > b->n_spare) {
        utf8proc_int32_t *p = mu_reallocarray(b->spare, n, sizeof *p);
        if (!p) return false;
        b->spare = p;
        b->n_spare = n;
    }
    for (size_t i = 0; i < n; i++) at[combining(row[i]) + 1]++;
    for (int c = 0; c < 256; c++) at[c + 1] += at[c];
    for (size_t i = 0; i < n; i++) b->spare[at[combining(row[i])]++] = row[i];
    memcpy(row, b->spare, n * sizeof *row);
    return true;
}

static bool reorder(struct nfc *b)
{
    for (size_t i = 0; i < b->n;) {
        size_t end = i;
        bool sorted = true;
        for (int last = 0, c; end < b->n && (c = combining(b->chars[end])) > 0; last = c, end++) sorted &= last <= c;
        if (!sorted && !sort_marks(b, b->chars + i, end - i)) return false;
        i = end + (end == i);
    }
    return true;
}

/* One stretch, appended at *out_n of out, which has room for three times its length. */
static bool rewrite(struct nfc *b, const char *p, size_t n, char *out, size_t *out_n)
{
    if (!decompose(b, p, n) || !reorder(b)) return false;
    utf8proc_ssize_t made = utf8proc_normalize_utf32(b->chars, (utf8proc_ssize_t)b->n, OPTIONS);
    for (utf8proc_ssize_t i = 0; i < made; i++)
        *out_n += (size_t)utf8proc_encode_char(b->chars[i], (utf8proc_uint8_t *)out + *out_n);
    return made >= 0;
}

enum mu_status mu_tok_nfc(struct mu_encode *e, const char **text, size_t *n, struct mu_err *err)
{
    const struct mu_tokenizer *t = e->t;
    const char *p = *text;
    size_t len = *n, at = find_unsettled(t, p, len, 0), out_n = 0, done = 0;
    if (at == len) return MU_OK;
    struct nfc b = {0};
    /* NFC is never more than three times as long in UTF-8 (Unicode's FAQ on normalisation). */
    char *out = mu_encode_alloc(e, 3 * len);
    bool ok = out != NULL;
    while (ok && at < len) {
        size_t begin = char_before(p, at, done), end = find_settled(t, p, len, at);
        memcpy(out + out_n, p + done, begin - done);
        out_n += begin - done;
        ok = rewrite(&b, p + begin, end - begin, out, &out_n);
        done = end;
        at = find_unsettled(t, p, len, end);
    }
    mu_free(b.chars);
    mu_free(b.spare);
    if (!ok) return mu_tok_nomem(err);
    memcpy(out + out_n, p + done, len - done);
    *text = out;
    *n = out_n + len - done;
    return MU_OK;
}
