/* Status codes and error texts. Owns nothing: every function works on memory of its caller. */
#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *mu_status_text(enum mu_status st)
{
    switch (st) {
#define STATUS_TEXT(name, value, text) \
    case name: return text;
        MU_STATUS_LIST(STATUS_TEXT)
#undef STATUS_TEXT
    }
    return "unknown status";
}

const char *mu_status_name(enum mu_status st)
{
    switch (st) {
#define STATUS_NAME(name, value, text) \
    case name: return #name;
        MU_STATUS_LIST(STATUS_NAME)
#undef STATUS_NAME
    }
    return "MU_?";
}

/* How many of the len bytes remain when a UTF-8 sequence that the cut went through is dropped. */
static size_t utf8_whole(const char *s, size_t len)
{
    size_t lead = len;
    while (lead > 0 && len - lead < 3 && ((unsigned char)s[lead - 1] & 0xC0) == 0x80) lead--;
    if (lead == 0) return len;
    unsigned char c = (unsigned char)s[lead - 1];
    size_t need = c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : c >= 0xC0 ? 2 : 1;
    return len - (lead - 1) < need ? lead - 1 : len;
}

/* Formats into a buffer of its own first: the arguments may point into the text that is replaced. */
__attribute__((format(printf, 4, 0))) static void text_replace(struct mu_err *err, const char *between,
                                                               const char *tail, const char *fmt, va_list ap)
{
    char text[MU_ERR_TEXT];
    int n = vsnprintf(text, sizeof text, fmt, ap);
    if (n < 0) text[0] = '\0';
    size_t len = strlen(text);
    size_t room = sizeof text - 1 - len;
    size_t between_len = strlen(between) < room ? strlen(between) : room;
    memcpy(text + len, between, between_len);
    room -= between_len;
    size_t tail_len = strnlen(tail, MU_ERR_TEXT) < room ? strnlen(tail, MU_ERR_TEXT) : room;
    memcpy(text + len + between_len, tail, tail_len);
    len += between_len + tail_len;
    if (len == sizeof text - 1) len = utf8_whole(text, len);
    text[len] = '\0';
    for (char *c = text; *c; c++)
        if (*c == '\n' || *c == '\r') *c = ' ';
    memcpy(err->text, text, len + 1);
}

enum mu_status mu_err_set(struct mu_err *err, enum mu_status code, const char *file, int line, const char *fmt, ...)
{
    if (!err) return code;
    va_list ap;
    va_start(ap, fmt);
    text_replace(err, "", "", fmt, ap);
    va_end(ap);
    err->code = code;
    err->rank = -1; /* who knows the rank sets it afterwards; one of an older error must not stay */
    err->line = line;
    err->file = file;
    return code;
}

enum mu_status mu_err_wrap(struct mu_err *err, const char *fmt, ...)
{
    if (!err) return MU_EINTERNAL;
    char tail[MU_ERR_TEXT];
    size_t len = strnlen(err->text, sizeof tail - 1);
    memcpy(tail, err->text, len);
    tail[len] = '\0';
    va_list ap;
    va_start(ap, fmt);
    text_replace(err, ": ", tail, fmt, ap);
    va_end(ap);
    return err->code;
}
