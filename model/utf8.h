/* Characters (base/utf8.h), and bytes of a file for messages. */
#ifndef MU_MODEL_UTF8_H
#define MU_MODEL_UTF8_H

#include "base/utf8.h"

/* Text from a file for a message: cut to what buf holds, '?' for what is not printable ASCII. Returns buf. */
static inline const char *mu_text_show(const char *p, size_t n, char *buf, size_t size)
{
    size_t i = 0;
    for (; i < n && i + 1 < size; i++) buf[i] = p[i] >= ' ' && p[i] <= '~' ? p[i] : '?';
    buf[i] = '\0';
    return buf;
}

#endif
