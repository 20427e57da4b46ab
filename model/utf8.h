/* Characters (base/utf8.h), and bytes of a file for messages. */
#ifndef MU_MODEL_UTF8_H
#define MU_MODEL_UTF8_H

#include <string.h>

#include "base/utf8.h"

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
        if (n) {
            p += n;
        } else if (mu_utf8_need((unsigned char)*p) > end - p) {
            *p = '\0';
            return;
        } else {
            *p++ = '?';
        }
    }
}

#endif
