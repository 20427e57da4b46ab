/* Showing a reply. White space is shown only once something follows it, so that a reply ends where its text does. */
#include "cli/reply.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/alloc.h"
#include "cli/cli.h"

static const char DIM[] = "\033[2m", PLAIN[] = "\033[0m", CLEAR_LINE[] = "\r\033[K";
enum { NARROWEST = 20 };

static enum mu_status write_out(void *ctx, const char *text, size_t len, struct mu_err *err)
{
    (void)ctx;
    return mu_out_write(text, len, err);
}

static int terminal_width(void)
{
    struct winsize size;
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) || size.ws_col < NARROWEST) return 0;
    return size.ws_col - 1; /* terminals differ in what they do after the last column */
}

static enum mu_status append(struct mu_reply_text *t, const char *text, size_t len, struct mu_err *err)
{
    if (t->cap - t->len <= len) {
        size_t cap = (t->len + len) * 2 + 256;
        char *p = mu_reallocarray(t->p, cap, 1);
        if (!p) return mu_fail(err, MU_ENOMEM, "no memory for a reply of %zu bytes", t->len + len);
        t->p = p;
        t->cap = cap;
    }
    memcpy(t->p + t->len, text, len);
    t->len += len;
    t->p[t->len] = 0;
    return MU_OK;
}

static enum mu_status put(struct mu_reply *r, const char *text, size_t len, struct mu_err *err)
{
    if (r->terminal) return mu_wrap_put(&r->wrap, text, len, err);
    return mu_out_write(text, len, err);
}

static enum mu_status put_text(struct mu_reply *r, const char *text, struct mu_err *err)
{
    return put(r, text, strlen(text), err);
}

/* All of it but white space at the end, while more may come. */
static enum mu_status show(struct mu_reply *r, struct mu_reply_text *t, struct mu_err *err)
{
    size_t until = t->len, from = t->shown;
    while (r->opt.chat && until > from && isspace((unsigned char)t->p[until - 1])) until--;
    t->shown = until;
    return until > from ? put(r, t->p + from, until - from, err) : MU_OK;
}

/* ---- thoughts ---- */

static enum mu_status colour(struct mu_reply *r, const char *code, struct mu_err *err)
{
    return r->colours ? mu_wrap_code(&r->wrap, code, err) : MU_OK;
}

static enum mu_status thought_opens(struct mu_reply *r, struct mu_err *err)
{
    enum mu_status st;
    r->thought_open = true;
    MU_TRY(st, colour(r, DIM, err), done);
    if (r->opt.thoughts == MU_THOUGHTS_SHOWN) {
        if (!r->colours) st = put_text(r, "Thinking:\n", err);
    } else if (r->colours) {
        MU_TRY(st, put_text(r, "thinking…", err), done);
        st = mu_wrap_flush(&r->wrap, err);
    }
done:
    return st;
}

static enum mu_status thought_closes(struct mu_reply *r, struct mu_err *err)
{
    enum mu_status st;
    if (!r->thought_open) return MU_OK;
    r->thought_open = false;
    MU_TRY(st, colour(r, PLAIN, err), done);
    if (r->opt.thoughts == MU_THOUGHTS_SHOWN) {
        st = put_text(r, r->colours ? "\n\n" : "\n\nAnswer:\n", err);
    } else if (r->colours) {
        st = mu_wrap_code(&r->wrap, CLEAR_LINE, err);
        r->wrap.column = 0;
    }
done:
    return st;
}

/* What had been shown as the answer was thought: say so, there is no taking it back. */
static enum mu_status was_thought(struct mu_reply *r, struct mu_err *err)
{
    struct mu_reply_text former = r->thought;
    r->thought = r->answer;
    r->answer = former;
    r->answer.len = r->answer.shown = 0;
    if (r->answer.p) r->answer.p[0] = 0;
    if (!r->thought.shown) return MU_OK;
    enum mu_status st;
    MU_TRY(st, colour(r, DIM, err), done);
    MU_TRY(st, put_text(r, "\n(so far it was thinking)\n\n", err), done);
    st = colour(r, PLAIN, err);
done:
    return st;
}

static enum mu_status on_span(void *ctx, enum mu_span kind, const char *text, size_t len, struct mu_err *err)
{
    struct mu_reply *r = ctx;
    struct mu_reply_text *t = kind == MU_SPAN_THOUGHT ? &r->thought : &r->answer;
    enum mu_status st;
    if (kind == MU_SPAN_WAS_THOUGHT) return was_thought(r, err);
    MU_TRY(st, append(t, text, len, err), done);
    if (kind == MU_SPAN_THOUGHT) {
        if (!r->thought_open) MU_TRY(st, thought_opens(r, err), done);
        if (r->opt.thoughts == MU_THOUGHTS_SHOWN) st = show(r, t, err);
    } else {
        MU_TRY(st, thought_closes(r, err), done);
        st = show(r, t, err);
    }
done:
    return st;
}

/* ---- the whole ---- */

static enum mu_status on_text(void *ctx, const char *text, size_t len, struct mu_err *err)
{
    struct mu_reply *r = ctx;
    if (r->opt.chat) return mu_thinking_put(&r->thinking, text, len, err);
    enum mu_status st = append(&r->answer, text, len, err);
    return st ? st : show(r, &r->answer, err);
}

static void on_prompt(void *ctx, const char *text, size_t len)
{
    mu_thinking_prompt(&((struct mu_reply *)ctx)->thinking, text, len);
}

struct mu_listener mu_reply_listener(struct mu_reply *r)
{
    return (struct mu_listener){on_prompt, on_text, r};
}

void mu_reply_begin(struct mu_reply *r, const struct mu_reply_options *opt)
{
    const char *plain = getenv("NO_COLOR");
    *r = (struct mu_reply){.opt = *opt, .terminal = isatty(STDOUT_FILENO)};
    r->colours = mu_term_obeys(STDOUT_FILENO) && !(plain && *plain);
    mu_thinking_init(&r->thinking, on_span, r);
    mu_wrap_init(&r->wrap, opt->wordwrap ? terminal_width() : 0, write_out, NULL);
}

enum mu_status mu_reply_end(struct mu_reply *r, struct mu_err *err)
{
    enum mu_status st = MU_OK;
    if (r->opt.chat) MU_TRY(st, mu_thinking_finish(&r->thinking, err), done);
    if (r->thought_open) { /* it never came to an answer */
        r->thought_open = false;
        MU_TRY(st, colour(r, PLAIN, err), done);
    }
    if (r->terminal) MU_TRY(st, mu_wrap_flush(&r->wrap, err), done);
    st = mu_out_write("\n", 1, err);
done:
    return st;
}

void mu_reply_free(struct mu_reply *r)
{
    mu_free(r->answer.p);
    mu_free(r->thought.p);
    r->answer = r->thought = (struct mu_reply_text){0};
}
