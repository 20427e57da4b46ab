/* A line typed at the terminal, with editing and history: libedit, which nothing outside line_edit.c knows of.
 *
 * Characters are read here and not by libedit, so that Ctrl-C ends a line (mu_interrupted) and a terminal of another
 * size is noticed while it waits. A paste of several lines arrives as several lines that belong together: `more`.
 *
 * History: a file of at most 1,000 lines, 0600, in a folder that is made 0700; written after each line, of a paste after
 * the last one. Lines of more than 64 KiB are not remembered.
 * Threads: one. One editor at a time. */
#ifndef MU_CLI_LINE_EDIT_H
#define MU_CLI_LINE_EDIT_H

#include <stdbool.h>

#include "base/status.h"

struct mu_line_edit;

/* history_path NULL: lines are remembered for this session only. A history that cannot be read is begun anew. */
enum mu_status mu_line_edit_open(const char *history_path, struct mu_line_edit **edit_out, struct mu_err *err);
void mu_line_edit_close(struct mu_line_edit *e); /* NULL is fine */

/* *line_out without its newline, valid until the next call; *more_out: a paste goes on with the next line.
 * MU_ENOENT: Ctrl-D or the input's end; MU_ECANCELLED: Ctrl-C, *line_out is what had been typed. */
enum mu_status mu_line_edit_read(struct mu_line_edit *e, const char *prompt, const char **line_out, bool *more_out,
                                 struct mu_err *err);
/* For the handler of a signal that ends the program: gives the terminal back in the mode that it had before the line
 * that is edited, if one is. */
void mu_line_edit_abandon(void);
/* MU_EIO: the file could not be written (told once, later failures are not). */
enum mu_status mu_line_edit_remember(struct mu_line_edit *e, const char *line, struct mu_err *err);

#endif
