/* A reply on its way to the user: thoughts told apart and dimmed or hidden, lines wrapped, and everything kept for the
 * conversation.
 *
 *   back end ──► mu_reply_listener ──► thinking ──► wrap ──► standard output
 *                                         └──► answer, thought (kept)
 *
 * Where standard output is no terminal the answer's bytes are written as they are, and thoughts only if asked for.
 * Memory: freed by mu_reply_free. Threads: one at a time; the listener may be called by another one than began it. */
#ifndef MU_CLI_REPLY_H
#define MU_CLI_REPLY_H

#include "cli/backend.h"
#include "cli/wrap.h"
#include "model/thinking.h"

enum mu_thoughts { MU_THOUGHTS_SHOWN, MU_THOUGHTS_HIDDEN };

struct mu_reply_options {
    bool chat;     /* thoughts are looked for, white space at the end is left out; else the text as it comes */
    bool wordwrap; /* on a terminal */
    enum mu_thoughts thoughts;
};

struct mu_reply_text {
    char *p; /* NUL-terminated; NULL: empty */
    size_t len, cap, shown;
};

struct mu_reply {
    struct mu_reply_options opt;
    struct mu_thinking thinking;
    struct mu_wrap wrap;
    struct mu_reply_text answer, thought;
    bool terminal, colours, thought_open;
};

void mu_reply_begin(struct mu_reply *r, const struct mu_reply_options *opt);
struct mu_listener mu_reply_listener(struct mu_reply *r);
/* What is held back, and the end of the line. */
enum mu_status mu_reply_end(struct mu_reply *r, struct mu_err *err);
void mu_reply_free(struct mu_reply *r);

#endif
