/* Status codes and errors.
 *
 * A function that can fail returns `enum mu_status` and fills a caller-owned `struct mu_err`. The place that detects
 * a failure describes it (what, where, what was expected, what to do); the place that decides about it logs it, once.
 * Codes are grouped by the largest thing that is lost, so that recovery follows from the code alone:
 *
 *   operation lost   the call failed, everything it touched is as before
 *   request lost     the input itself is at fault: trying again cannot help
 *   peer lost        the other side of a connection is gone or silent
 *   node lost        this process cannot go on usefully
 *
 * Threads: pure functions on caller-owned memory. */
#ifndef MU_BASE_STATUS_H
#define MU_BASE_STATUS_H

#define MU_STATUS_LIST(X)                         \
    X(MU_OK, 0, "ok")                             \
    /* operation lost */                          \
    X(MU_EAGAIN, 1, "try again later")            \
    X(MU_ETIMEOUT, 2, "deadline passed")          \
    X(MU_ECANCELLED, 3, "cancelled")              \
    X(MU_ENOENT, 4, "not found")                  \
    X(MU_EBUSY, 5, "busy")                        \
    X(MU_ENOMEM, 6, "out of memory")              \
    X(MU_EIO, 7, "input/output error")            \
    /* request lost */                            \
    X(MU_EINVAL, 20, "invalid argument")          \
    X(MU_EFORMAT, 21, "malformed data")           \
    X(MU_EUNSUPPORTED, 22, "not supported")       \
    X(MU_ELIMIT, 23, "limit exceeded")            \
    X(MU_ENONFINITE, 24, "a value is not finite") \
    /* peer lost */                               \
    X(MU_EPEER, 40, "peer is gone")               \
    X(MU_EPROTO, 41, "peer broke the protocol")   \
    X(MU_ESTALE, 42, "message of an older epoch") \
    /* node lost */                               \
    X(MU_EINTERNAL, 60, "internal error")

enum mu_status {
#define MU_STATUS_ENUM(name, value, text) name = value,
    MU_STATUS_LIST(MU_STATUS_ENUM)
#undef MU_STATUS_ENUM
};

#ifdef __cplusplus
extern "C" {
#endif

/* The words for a code, never NULL; unknown codes give "unknown status". */
const char *mu_status_text(enum mu_status st);
/* The symbol of a code ("MU_EIO"), never NULL. */
const char *mu_status_name(enum mu_status st);

enum { MU_ERR_TEXT = 480 };

struct mu_err {
    enum mu_status code;
    int rank; /* global rank that failed, -1 where that means nothing */
    int line;
    const char *file;       /* static storage */
    char text[MU_ERR_TEXT]; /* one sentence, no newline, NUL-terminated, valid UTF-8 where the input was */
};

#define MU_ERR_INIT               \
    {                             \
        .code = MU_OK, .rank = -1 \
    }

/* Fills *err (may be NULL) and returns code. An earlier text in *err is overwritten. Text over the limit is cut. */
enum mu_status mu_err_set(struct mu_err *err, enum mu_status code, const char *file, int line, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
/* Puts "context: " before the text that is already in *err; keeps the code, which it returns. */
enum mu_status mu_err_wrap(struct mu_err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#ifdef __cplusplus
}
#endif

#define mu_fail(err, code, ...) mu_err_set((err), (code), __FILE__, __LINE__, __VA_ARGS__)

/* st = expr; on failure goto label. */
#define MU_TRY(st, expr, label)        \
    do {                               \
        (st) = (expr);                 \
        if ((st) != MU_OK) goto label; \
    } while (0)

#endif
