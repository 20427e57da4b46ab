/* Characters (base/utf8.h) and how they are written, hexadecimal digits, and bytes of a file for messages. */
#ifndef MU_MODEL_UTF8_H
#define MU_MODEL_UTF8_H

#include <stdbool.h>
#include <string.h>

#include "base/utf8.h"

/* The UTF-8 of a code point to out, which has room for four bytes; its length. */
static inline size_t mu_utf8_put(char *out, uint32_t cp)
{
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    size_t n = cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i; i--, cp >>= 6) out[i] = (char)(0x80 | (cp & 0x3F));
    out[0] = (char)((0xF00u >> n & 0xF0) | cp); /* 110…, 1110…, 11110… */
    return n;
}

/* The value of a hexadecimal digit; -1: it is none. */
static inline int mu_hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    char low = (char)(c | 0x20);
    return low >= 'a' && low <= 'f' ? low - 'a' + 10 : -1;
}

/* Text from a file for a message: cut to what buf holds, '?' for what is not printable ASCII. Returns buf. */
static inline const char *mu_text_show(const char *p, size_t n, char *buf, size_t size)
{
    size_t i = 0;
    for (; i < n && i + 1 < size; i++) buf[i] = p[i] >= ' ' && p[i] <= '~' ? p[i] : '?';
    buf[i] = '\0';
    return buf;
}

/* Text of any origin for a message, in place: a character that was cut off at the end goes, each other byte that belongs
 * to none becomes '?'. */
static inline void mu_text_repair(char *text)
{
    uint32_t cp;
    for (char *p = text, *end = text + strlen(text); p < end;) {
        int n = mu_utf8_next(p, (size_t)(end - p), &cp);
        bool cut = !n && mu_utf8_need((unsigned char)*p) > end - p;
        for (const char *q = p + 1; q < end && cut; q++)
            cut = q == p + 1 ? mu_utf8_second_ok((unsigned char)*p, (unsigned char)*q) : (*q & 0xC0) == 0x80;
        if (n) {
            p += n;
        } else if (cut) {
            *p = '\0';
            return;
        } else {
            *p++ = '?';
        }
    }
}

#endif
