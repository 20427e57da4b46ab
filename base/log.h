/* The log: one line an event on stderr, for people ("12:03:04.005 info  worker: gang 1 epoch 3 is ready") or as JSON
 * objects ({"time":…,"level":…,"part":…,"text":…}), chosen with MUSTER_LOG_FORMAT=text|json; the least level
 * shown with MUSTER_LOG=debug|info|warn|error (default info).
 *
 * Threads: any; a line is one write(2), so lines never mix. Errors while logging are ignored. Control characters in
 * the text are escaped and bytes that are no UTF-8 replaced, so that what a peer sent cannot forge lines. A line is
 * at most PIPE_BUF bytes; longer text is cut. */
#ifndef MU_BASE_LOG_H
#define MU_BASE_LOG_H

#include "base/status.h"

enum mu_log_level { MU_LOG_DEBUG, MU_LOG_INFO, MU_LOG_WARN, MU_LOG_ERROR };

/* Call once at the start of main(); `process` ("serve", "rank 2") stands before every part: "rank 2/kv: …". Before it,
 * and of values that are not known, which it tells: level info, text. */
void mu_log_init(const char *process);
int mu_log_enabled(enum mu_log_level level);
void mu_log_line(enum mu_log_level level, const char *part, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Logs err->text with its status and place, after "context: ". */
void mu_log_err(enum mu_log_level level, const char *part, const struct mu_err *err, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

#define mu_debug(part, ...)                                                             \
    do {                                                                                \
        if (mu_log_enabled(MU_LOG_DEBUG)) mu_log_line(MU_LOG_DEBUG, part, __VA_ARGS__); \
    } while (0)
#define mu_info(part, ...)  mu_log_line(MU_LOG_INFO, part, __VA_ARGS__)
#define mu_warn(part, ...)  mu_log_line(MU_LOG_WARN, part, __VA_ARGS__)
#define mu_error(part, ...) mu_log_line(MU_LOG_ERROR, part, __VA_ARGS__)

#endif
