/* One UTF-8 character at a time (RFC 3629: no surrogates, no overlong forms, nothing above U+10FFFF). */
#ifndef MU_BASE_UTF8_H
#define MU_BASE_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* Bytes of the character that a first byte announces; 0: it cannot begin one. */
static inline int mu_utf8_need(unsigned char first)
{
    if (first < 0x80) return 1;
    if (first < 0xC2) return 0;
    if (first < 0xE0) return 2;
    if (first < 0xF0) return 3;
    return first < 0xF5 ? 4 : 0;
}

/* Whether byte number 1 (the second) may follow `first`; later ones need only be continuation bytes. */
static inline int mu_utf8_second_ok(unsigned char first, unsigned char second)
{
    unsigned char lo = 0x80, hi = 0xBF;
    if (first == 0xE0) lo = 0xA0;
    if (first == 0xED) hi = 0x9F;
    if (first == 0xF0) lo = 0x90;
    if (first == 0xF4) hi = 0x8F;
    return second >= lo && second <= hi;
}

/* Length of the valid character at p, its code point in *cp; 0: the bytes there are none. n ≥ 1 bytes may be read. */
static inline int mu_utf8_next(const char *p, size_t n, uint32_t *cp)
{
    const unsigned char *b = (const unsigned char *)p;
    if (b[0] < 0x80) {
        *cp = b[0];
        return 1;
    }
    int need = mu_utf8_need(b[0]);
    if (!need || (size_t)need > n || !mu_utf8_second_ok(b[0], b[1])) return 0;
    uint32_t v = b[0] & (0x7Fu >> need);
    for (int i = 1; i < need; i++) {
        if ((b[i] & 0xC0) != 0x80) return 0;
        v = v << 6 | (b[i] & 0x3Fu);
    }
    *cp = v;
    return need;
}

#endif
