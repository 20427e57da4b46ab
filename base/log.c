/* The log. Owns three settings, written at the start of main().
 *
 * A line is built on the stack and leaves in one write(2). It is at most PIPE_BUF bytes: longer writes to a pipe may
 * mix with those of other processes, and the ranks of a node share one. Text that does not fit is cut, with "…" in its
 * place. What a peer sent cannot break the line: control characters, line separators and the characters that
 * reorder a terminal's line are escaped, bytes that are no UTF-8 become U+FFFD. */
#include "base/log.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/utf8.h"

static char process_name[64];
static atomic_int least_level = MU_LOG_INFO;
static atomic_int as_json;

static const char *const level_names[] = {"debug", "info", "warn", "error"};

void mu_log_init(const char *process)
{
    snprintf(process_name, sizeof process_name, "%s", process ? process : "");
    const char *format = getenv("MUSTER_LOG_FORMAT");
    atomic_store(&as_json, format && strcmp(format, "json") == 0);
    const char *least = getenv("MUSTER_LOG");
    int level = MU_LOG_DEBUG;
    while (least && level <= MU_LOG_ERROR && strcmp(least, level_names[level]) != 0) level++;
    bool known = least && level <= MU_LOG_ERROR;
    atomic_store(&least_level, known ? level : MU_LOG_INFO);
    if (!known && least && *least) mu_warn("log", "MUSTER_LOG may be debug, info, warn or error, not '%s'", least);
    if (format && *format && strcmp(format, "text") != 0 && strcmp(format, "json") != 0)
        mu_warn("log", "MUSTER_LOG_FORMAT may be text or json, not '%s'", format);
}

int mu_log_enabled(enum mu_log_level level)
{
    return (int)level >= atomic_load_explicit(&least_level, memory_order_relaxed);
}

struct line {
    char buf[PIPE_BUF];
    size_t len, limit; /* limit: what must come after the text still fits */
};

static void put(struct line *l, const char *s, size_t len)
{
    size_t room = sizeof l->buf - l->len;
    if (len > room) len = room;
    memcpy(l->buf + l->len, s, len);
    l->len += len;
}

static void put_str(struct line *l, const char *s)
{
    put(l, s, strlen(s));
}

static int must_escape(uint32_t cp)
{
    return cp < 0x20 || (cp >= 0x7F && cp < 0xA0)                              /* C0, DEL, C1 */
           || (cp >= 0x2028 && cp <= 0x202E) || (cp >= 0x2066 && cp <= 0x2069) /* separators, reordering */
           || cp == 0x061C || cp == 0x200E || cp == 0x200F;                    /* marks of a direction */
}

/* Appends s, escaped, up to limit; a cut is marked. */
static void put_escaped(struct line *l, const char *s, int json)
{
    for (const char *p = s, *end = s + strlen(s); p < end;) {
        uint32_t cp = 0;
        char escaped[8];
        const char *piece = p;
        size_t n = (size_t)mu_utf8_next(p, (size_t)(end - p), &cp), piece_len = n;
        if (n == 0) {
            n = 1;
            piece = "\xEF\xBF\xBD";
            piece_len = 3;
        } else if (must_escape(cp)) {
            const char *letter = cp == '\n' ? "\\n" : cp == '\r' ? "\\r" : cp == '\t' ? "\\t" : NULL;
            piece_len = (size_t)(letter ? snprintf(escaped, sizeof escaped, "%s", letter)
                                        : snprintf(escaped, sizeof escaped, "\\u%04x", (unsigned)cp));
            piece = escaped;
        } else if (json && (cp == '"' || cp == '\\')) {
            piece_len = (size_t)snprintf(escaped, sizeof escaped, "\\%c", (int)cp);
            piece = escaped;
        }
        if (l->len + piece_len + 3 > l->limit) { /* 3: the bytes of the mark */
            put_str(l, "…");
            return;
        }
        put(l, piece, piece_len);
        p += n;
    }
}

static void line_write(enum mu_log_level level, const char *part, const char *text)
{
    int json = atomic_load(&as_json), saved_errno = errno;
    struct line l = {.len = 0, .limit = PIPE_BUF - 8};
    struct timespec now;
    struct tm tm;
    char stamp[32];
    char where[160];

    clock_gettime(CLOCK_REALTIME, &now);
    snprintf(where, sizeof where, "%s%s%s", process_name, *process_name && *part ? "/" : "", part);
    if (json) {
        gmtime_r(&now.tv_sec, &tm);
        strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", &tm);
        char head[128];
        snprintf(head, sizeof head, "{\"time\":\"%s.%03ldZ\",\"level\":\"%s\",\"part\":\"", stamp,
                 now.tv_nsec / 1000000, level_names[level]);
        put_str(&l, head);
        put_escaped(&l, where, 1);
        put_str(&l, "\",\"text\":\"");
        put_escaped(&l, text, 1);
        put_str(&l, "\"}\n");
    } else {
        localtime_r(&now.tv_sec, &tm);
        strftime(stamp, sizeof stamp, "%H:%M:%S", &tm);
        char head[128];
        snprintf(head, sizeof head, "%s.%03ld %-5s ", stamp, now.tv_nsec / 1000000, level_names[level]);
        put_str(&l, head);
        put_escaped(&l, where, 0);
        put_str(&l, *where ? ": " : "");
        put_escaped(&l, text, 0);
        put_str(&l, "\n");
    }
    while (write(STDERR_FILENO, l.buf, l.len) < 0 && errno == EINTR) {}
    errno = saved_errno;
}

void mu_log_line(enum mu_log_level level, const char *part, const char *fmt, ...)
{
    if (!mu_log_enabled(level)) return;
    char text[PIPE_BUF];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (n >= 0) line_write(level, part, text);
}

void mu_log_err(enum mu_log_level level, const char *part, const struct mu_err *err, const char *fmt, ...)
{
    if (!mu_log_enabled(level)) return;
    char text[PIPE_BUF], rank[32] = "";
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text / 2, fmt, ap);
    va_end(ap);
    if (n < 0) return;
    if (err->rank >= 0) snprintf(rank, sizeof rank, "rank %d, ", err->rank);
    size_t len = strlen(text);
    snprintf(text + len, sizeof text - len, ": %s (%s, %s%s:%d)", err->text, mu_status_name(err->code), rank,
             err->file ? err->file : "?", err->line);
    line_write(level, part, text);
}
