/* Special tokens in a text: found before anything is merged, leftmost first, the longest of those that begin there.
 *
 * The texts are sorted; a match narrows the range of those that begin with what was read, byte by byte. Alternatives
 * rejected: an Aho-Corasick automaton (its worst case is better only for vocabularies that nobody makes) and trying
 * each token over the whole text (a vocabulary may have six thousand of them). */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "model/tokenizer_part.h"

static int compare(const void *pa, const void *pb)
{
    const struct mu_tok_special *a = pa, *b = pb;
    size_t n = a->text.len < b->text.len ? a->text.len : b->text.len;
    int c = memcmp(a->text.p, b->text.p, n);
    if (c) return c;
    if (a->text.len != b->text.len) return a->text.len < b->text.len ? -1 : 1;
    return (a->id > b->id) - (a->id < b->id);
}

/* What is looked for in the text. In GGUF's convention U+2581 in an added token means a space; where merges go by rank
 * it is meant literally, and a row of spaces gets there by merging. */
static struct mu_str text_of(const struct mu_tokenizer *t, int id)
{
    return t->types[id] == MU_TOK_USER && !t->ranked ? mu_tok_piece(t, id) : t->texts[id];
}

/* Phi-3's tokenizer strips white space after its special tokens, but for these; a GGUF of the usual
 * keys has no way to say so. */
static bool strips(const struct mu_tokenizer *t, struct mu_str text)
{
    static const char *const keep[] = {"<unk>", "<s>", "<|endoftext|>"};
    for (size_t i = 0; i < sizeof keep / sizeof keep[0]; i++) {
        if (text.len == strlen(keep[i]) && !memcmp(text.p, keep[i], text.len)) return false;
    }
    return t->strip_after;
}

enum flag { LEFT, RIGHT, LATE };

/* Marks the items of these ids. Items are sorted by text, so that an id is found by it. */
static void mark(struct mu_tok_specials *s, size_t n, const struct mu_tokenizer *t, const struct mu_gguf_value *ids,
                 enum flag flag)
{
    for (uint64_t i = 0; ids && i < ids->n; i++) {
        int32_t id = (int32_t)mu_gguf_item_i64(ids, i);
        struct mu_tok_special key = {.text = text_of(t, id), .id = id};
        struct mu_tok_special *item = bsearch(&key, s->items, n, sizeof *s->items, compare);
        if (item) *(flag == LEFT ? &item->strip_left : flag == RIGHT ? &item->strip_right : &item->late) = true;
    }
}

enum mu_status mu_tok_specials_open(struct mu_tokenizer *t, const struct mu_gguf_value *left,
                                    const struct mu_gguf_value *right, const struct mu_gguf_value *late,
                                    struct mu_err *err)
{
    struct mu_tok_specials *s = &t->specials;
    size_t n = 0, kept = 0;
    for (int i = 0; i < t->n_vocab; i++)
        n += t->types[i] >= MU_TOK_UNKNOWN && t->types[i] <= MU_TOK_USER && t->texts[i].len;
    s->items = mu_reallocarray(NULL, n + 1, sizeof *s->items);
    if (!s->items) return mu_fail(err, MU_ENOMEM, "no memory for %zu special tokens", n);
    n = 0;
    for (int i = 0; i < t->n_vocab; i++) {
        if (t->types[i] < MU_TOK_UNKNOWN || t->types[i] > MU_TOK_USER || !t->texts[i].len) continue;
        struct mu_str text = text_of(t, i);
        s->items[n++] = (struct mu_tok_special){
            .text = text, .id = i, .always = t->types[i] == MU_TOK_USER, .strip_right = !right && strips(t, text)};
    }
    qsort(s->items, n, sizeof *s->items, compare);
    for (size_t i = 0; i < n; i++) { /* of equal texts the last id stays */
        bool last = i + 1 == n || s->items[i].text.len != s->items[i + 1].text.len ||
                    memcmp(s->items[i].text.p, s->items[i + 1].text.p, s->items[i].text.len);
        if (last) s->items[kept++] = s->items[i];
    }
    mark(s, kept, t, left, LEFT);
    mark(s, kept, t, right, RIGHT);
    mark(s, kept, t, late, LATE);
    for (size_t i = 0; i < kept; i++) {
        unsigned char b = (unsigned char)s->items[i].text.p[0];
        s->first[b + 1]++;
        s->begins_always[b] |= s->items[i].always;
    }
    for (int b = 0; b < 256; b++) s->first[b + 1] += s->first[b];
    return MU_OK;
}

const struct mu_tok_special *mu_tok_special_at(const struct mu_tokenizer *t, const char *text, size_t n,
                                               bool parse_special)
{
    const struct mu_tok_specials *s = &t->specials;
    unsigned char b = (unsigned char)text[0];
    uint32_t lo = s->first[b], hi = s->first[b + 1];
    if (lo == hi || !(parse_special || s->begins_always[b])) return NULL;
    const struct mu_tok_special *best = NULL;
    for (size_t depth = 1; lo < hi; depth++) { /* items[lo..hi) begin with the text's first `depth` bytes */
        const struct mu_tok_special *item = &s->items[lo];
        if (hi - lo == 1) {
            if (item->text.len <= n && !memcmp(item->text.p + depth, text + depth, item->text.len - depth) &&
                (parse_special || item->always)) {
                best = item;
            }
            break;
        }
        if (item->text.len == depth) {
            if (parse_special || item->always) best = item;
            lo++;
        }
        if (depth == n) break;
        unsigned char c = (unsigned char)text[depth];
        for (uint32_t end = hi; lo < end;) { /* the first with a byte ≥ c there */
            uint32_t mid = lo + (end - lo) / 2;
            if ((unsigned char)s->items[mid].text.p[depth] < c)
                lo = mid + 1;
            else
                end = mid;
        }
        for (uint32_t begin = lo; begin < hi;) { /* the first with a byte > c */
            uint32_t mid = begin + (hi - begin) / 2;
            if ((unsigned char)s->items[mid].text.p[depth] > c)
                hi = mid;
            else
                begin = mid + 1;
        }
    }
    return best;
}
