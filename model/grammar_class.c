/* Sets of characters, and their UTF-8 as sequences of byte ranges.
 *
 * A range of code points is cut where the length of their encodings changes and where a prefix is not followed by all
 * of its continuations: U+0800…U+FFFF without surrogates is E0 [A0-BF] [80-BF], [E1-EC] [80-BF] [80-BF],
 * ED [80-9F] [80-BF], [EE-EF] [80-BF] [80-BF]. */
#include <stdlib.h>
#include <string.h>

#include "model/grammar_part.h"
#include "model/utf8.h"

void mu_set_add(struct mu_gb *b, struct mu_set *s, uint32_t lo, uint32_t hi)
{
    if (b->st != MU_OK || lo > hi) return;
    if (s->n == s->cap) { /* the arena keeps the shorter copies: sets are small */
        uint32_t cap = s->cap * 2 + 8;
        struct mu_range *r = mu_gb_alloc(b, cap, sizeof *r);
        if (!r) return;
        if (s->n) memcpy(r, s->r, s->n * sizeof *r);
        s->r = r;
        s->cap = cap;
    }
    s->r[s->n++] = (struct mu_range){lo, hi};
}

static int by_lo(const void *x, const void *y)
{
    const struct mu_range *a = x, *b = y;
    return a->lo < b->lo ? -1 : a->lo > b->lo;
}

void mu_set_sort(struct mu_set *s)
{
    uint32_t n = 0;
    if (s->n) qsort(s->r, s->n, sizeof *s->r, by_lo);
    for (uint32_t i = 0; i < s->n; i++) {
        struct mu_range r = s->r[i];
        if (n && r.lo <= s->r[n - 1].hi + 1) {
            s->r[n - 1].hi = r.hi > s->r[n - 1].hi ? r.hi : s->r[n - 1].hi;
        } else {
            s->r[n++] = r;
        }
    }
    s->n = n;
}

void mu_set_invert(struct mu_gb *b, struct mu_set *s)
{
    struct mu_set out = {0};
    uint32_t next = 0;
    for (uint32_t i = 0; i < s->n; i++) {
        if (s->r[i].lo > next) mu_set_add(b, &out, next, s->r[i].lo - 1);
        next = s->r[i].hi + 1;
    }
    if (next <= 0x10FFFF) mu_set_add(b, &out, next, 0x10FFFF);
    *s = out;
}

void mu_set_common(struct mu_gb *b, const struct mu_set *x, const struct mu_set *y, struct mu_set *out)
{
    for (uint32_t i = 0, j = 0; i < x->n && j < y->n;) {
        uint32_t lo = x->r[i].lo > y->r[j].lo ? x->r[i].lo : y->r[j].lo;
        uint32_t hi = x->r[i].hi < y->r[j].hi ? x->r[i].hi : y->r[j].hi;
        mu_set_add(b, out, lo, hi);
        if (x->r[i].hi < y->r[j].hi) {
            i++;
        } else {
            j++;
        }
    }
}

const struct mu_ex *mu_set_ex(struct mu_gb *b, const struct mu_set *s)
{
    return mu_ex_class(b, s->r, s->n);
}

bool mu_utf8_ranges(uint32_t lo, uint32_t hi, bool (*seq)(void *ctx, const struct mu_byte_range *r, int n), void *ctx)
{
    static const uint32_t ends[] = {0x7F, 0x7FF, 0xD7FF, 0xDFFF, 0xFFFF, 0x10FFFF};
    if (lo > hi) return true;
    for (int i = 0; i < 6; i++) {
        if (lo <= ends[i] && hi > ends[i])
            return mu_utf8_ranges(lo, ends[i], seq, ctx) && mu_utf8_ranges(ends[i] + 1, hi, seq, ctx);
    }
    if (lo >= 0xD800 && hi <= 0xDFFF) return true; /* surrogates are no characters */
    int n = lo < 0x80 ? 1 : lo < 0x800 ? 2 : lo < 0x10000 ? 3 : 4;
    for (int i = 1; i < n; i++) { /* cut off what begins or ends in the middle of i continuation bytes */
        uint32_t low = (1u << (6 * i)) - 1;
        if ((lo & ~low) == (hi & ~low)) continue;
        if (lo & low) return mu_utf8_ranges(lo, lo | low, seq, ctx) && mu_utf8_ranges((lo | low) + 1, hi, seq, ctx);
        if ((hi & low) != low)
            return mu_utf8_ranges(lo, (hi & ~low) - 1, seq, ctx) && mu_utf8_ranges(hi & ~low, hi, seq, ctx);
    }
    char a[4], z[4];
    struct mu_byte_range r[4];
    mu_utf8_put(a, lo);
    mu_utf8_put(z, hi);
    for (int i = 0; i < n; i++) r[i] = (struct mu_byte_range){(uint8_t)a[i], (uint8_t)z[i]};
    return seq(ctx, r, n);
}
