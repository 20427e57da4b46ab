/* Text for a terminal, as it streams: lines broken between words at the terminal's width, characters and wide
 * characters never cut, control characters left out.
 *
 *   put "The quick bro"  ──►  written "The quick"      "bro" waits: the word may go on
 *   put "wn fox "        ──►  written " brown fox"     the last blank waits: the line may end here
 *
 * A word that is wider than a line is broken where the line ends. Wide characters (CJK, most emoji) may part anywhere.
 * What a model writes is input from a stranger: of control characters only newline and tab reach the terminal, so no
 * text can move the cursor or set a title.
 *
 * Needs setlocale(LC_CTYPE) to a UTF-8 locale (wcwidth); in others every character counts as one column.
 * Memory: none but the struct. Threads: one at a time. */
#ifndef MU_CLI_WRAP_H
#define MU_CLI_WRAP_H

#include <stddef.h>
#include <wchar.h>

#include "base/status.h"

enum { MU_WRAP_WORD_BYTES = 1024 };

struct mu_wrap {
    int width; /* columns of a line; 0: lines are not broken */
    enum mu_status (*write)(void *ctx, const char *text, size_t len, struct mu_err *err);
    void *ctx;
    int column, word_columns, blanks;
    size_t word_len;
    int part_len, part_want; /* an unfinished character */
    char word[MU_WRAP_WORD_BYTES], part[4];
};

void mu_wrap_init(struct mu_wrap *w, int width,
                  enum mu_status (*write)(void *ctx, const char *text, size_t len, struct mu_err *err), void *ctx);
/* Any bytes, cut anywhere. Errors are write's. */
enum mu_status mu_wrap_put(struct mu_wrap *w, const char *text, size_t len, struct mu_err *err);
/* What waits, but for blanks at the end of the line. */
enum mu_status mu_wrap_flush(struct mu_wrap *w, struct mu_err *err);
/* Flushes, then writes bytes that take no column (colours). */
enum mu_status mu_wrap_code(struct mu_wrap *w, const char *code, struct mu_err *err);
/* Columns that a character takes; -1: it must not reach a terminal. */
int mu_wrap_columns(wchar_t c);

#endif
