/* Reading JSON (RFC 8259) from front to back without building it: for files whose bulk is one table with half a
 * million entries. Small values inside are skipped and handed to jansson by their span.
 *
 * A cursor walks one text in memory. Every function leaves it behind what it read; after a failure the cursor must not
 * be used again. Strings without escapes are borrowed from the text, others lie in the cursor's arena, so memory is
 * bounded by the text's length. Depth is bounded (MU_JSON_DEPTH_MAX).
 *
 * Threads: a cursor belongs to one. Errors: MU_EFORMAT "file '…', offset n: expected …", MU_ENOMEM. */
#ifndef MU_MODEL_JSON_SCAN_H
#define MU_MODEL_JSON_SCAN_H

#include "base/arena.h"
#include "model/gguf.h"

enum { MU_JSON_DEPTH_MAX = 256 };

struct mu_json {
    const char *text, *p, *end;
    const char *file; /* for messages, already fit to be shown */
    struct mu_arena *arena;
};

struct mu_json mu_json_over(const char *text, size_t len, const char *file, struct mu_arena *arena);
enum mu_status mu_json_fail(const struct mu_json *j, const char *at, struct mu_err *err, const char *expected);

/* The first byte of the value that follows, '\0' at the end of the text. */
char mu_json_peek(struct mu_json *j);
/* Steps into an object or array: bracket is '{' or '['. */
enum mu_status mu_json_enter(struct mu_json *j, char bracket, struct mu_err *err);
/* Before each member or item. *first must be true before the first call and belongs to the walk. *more false: the
 * closing bracket was read. */
enum mu_status mu_json_next_key(struct mu_json *j, bool *first, bool *more, struct mu_str *key, struct mu_err *err);
enum mu_status mu_json_next_item(struct mu_json *j, bool *first, bool *more, struct mu_err *err);

enum mu_status mu_json_string(struct mu_json *j, struct mu_str *out, struct mu_err *err);
enum mu_status mu_json_int(struct mu_json *j, int64_t *out, struct mu_err *err);
/* Any value; *span is its text (only brackets and strings are checked; give it to a parser). */
enum mu_status mu_json_skip(struct mu_json *j, struct mu_str *span, struct mu_err *err);

#endif
