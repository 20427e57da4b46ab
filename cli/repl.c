/* Prompts from a terminal, one after another, until Ctrl-D or /bye.
 *
 * A prompt is a line, or several: between """ and """, or what was pasted in one go. */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "cli/chat.h"
#include "cli/cli.h"
#include "cli/line_edit.h"

struct repl {
    struct mu_session session;
    struct mu_line_edit *edit;
    char *prompt; /* gathered so far; NULL: nothing */
    size_t len;
    bool begun;    /* something had been typed when Ctrl-C came */
    bool verbatim; /* between quotes, or of several lines: no command, whatever it begins with */
};

static const char QUOTES[] = "\"\"\"";
enum { N_QUOTE = 3, MAX_PROMPT_BYTES = 64 << 20 };

static enum mu_status gather(struct repl *r, const char *text, size_t len, struct mu_err *err)
{
    if (r->len + len > MAX_PROMPT_BYTES)
        return mu_fail(err, MU_ELIMIT, "a prompt has at most %d bytes", MAX_PROMPT_BYTES);
    char *p = mu_reallocarray(r->prompt, r->len + len + 1, 1);
    if (!p) return mu_fail(err, MU_ENOMEM, "no memory for a prompt of %zu bytes", r->len + len);
    memcpy(p + r->len, text, len);
    r->prompt = p;
    r->len += len;
    p[r->len] = 0;
    return MU_OK;
}

/* Where a block of lines begins in this one: after its quotes; NULL: nowhere. What stands before it is the prompt's. */
static const char *block_of(const char *line, size_t *before_out)
{
    static const char set_system[] = "/set system ";
    size_t at = strncmp(line, set_system, sizeof set_system - 1) ? 0 : sizeof set_system - 1;
    if (strncmp(line + at, QUOTES, N_QUOTE) != 0) return NULL;
    *before_out = at;
    return line + at + N_QUOTE;
}

static bool ends_block(const char *text, size_t *len_out)
{
    size_t n = strlen(text);
    while (n && (text[n - 1] == ' ' || text[n - 1] == '\t')) n--;
    if (n < N_QUOTE || strncmp(text + n - N_QUOTE, QUOTES, N_QUOTE) != 0) return false;
    *len_out = n - N_QUOTE;
    return true;
}

/* A whole prompt into r->prompt. MU_ENOENT: the end; MU_ECANCELLED: Ctrl-C, begin again. */
static enum mu_status read_prompt(struct repl *r, struct mu_err *err)
{
    bool first = true, block = false, more = false, join = false;
    enum mu_status st;
    mu_free(r->prompt);
    r->prompt = NULL;
    r->len = 0;
    r->verbatim = false;
    do {
        const char *line;
        size_t before = 0, len;
        st = mu_line_edit_read(r->edit, first ? ">>> " : "... ", &line, &more, err);
        r->begun = !first || *line;
        if (st) return st;
        if (r->session.history && mu_line_edit_remember(r->edit, line, err)) fprintf(stderr, "%s\n", err->text);
        const char *inner = first ? block_of(line, &before) : NULL;
        first = false;
        if (more) r->verbatim = true;
        if (inner) {
            block = true;
            r->verbatim = before == 0;
            MU_TRY(st, gather(r, line, before, err), done);
            line = inner;
        }
        bool ends = block && ends_block(line, &len);
        if (!ends) len = strlen(line);
        if (join && !(ends && !len)) MU_TRY(st, gather(r, "\n", 1, err), done);
        MU_TRY(st, gather(r, line, len, err), done);
        join = !inner || len; /* the text may begin on the line after the quotes */
        if (ends) block = false;
    } while (block || more);
done:
    return st;
}

static bool blank(const char *text)
{
    return text[strspn(text, " \t\n")] == 0;
}

/* One prompt, answered or obeyed. */
static enum mu_status serve(struct repl *r, struct mu_err *err)
{
    const char *prompt = r->prompt ? r->prompt : "";
    if (blank(prompt)) return MU_OK;
    if (*prompt == '/' && !r->verbatim) return mu_talk_command(&r->session, prompt, err);
    struct mu_err failed = MU_ERR_INIT; /* a Ctrl-C since Enter counts: it stops the answer before it begins */
    if (mu_talk_turn(r->session.chat, prompt, &failed)) {
        if (mu_out_gone()) return mu_fail(err, failed.code, "%s", failed.text);
        mu_cli_fail("run", &failed); /* told, and the next one */
    }
    fputc('\n', stderr);
    return MU_OK;
}

static void greet(const struct mu_talk *c)
{
    const struct mu_card *k = mu_talk_card(c);
    const char *file = strrchr(k->name, '/');
    const char *name = file && file[1] ? file + 1 : k->name;
    if (mu_talk_is_chat(c))
        fprintf(stderr, "Chat with %s (/? for help, Ctrl-D leaves)\n", name);
    else
        fprintf(stderr, "%s goes on with each line that you type%s.\n(/? for help, Ctrl-D leaves)\n", name,
                k->chat || c->opt.raw ? ""
                : k->template_text
                    ? ":\nits chat template is not in Jinja; --template FILE.jinja gives it one, for a conversation"
                    : ":\nit has no chat template, so there is no conversation");
}

enum mu_status mu_talk_repl(struct mu_talk *c, struct mu_err *err)
{
    struct repl r = {.session = {.chat = c, .history = true}};
    char *history = mu_data_path("history");
    enum mu_status st = mu_line_edit_open(history, &r.edit, err);
    mu_free(history);
    if (st) return st;
    mu_signals_catch();
    mu_signals_stay();
    c->at_prompt = true;
    greet(c);
    while (!st && !r.session.leave) {
        mu_signals_reset();
        st = read_prompt(&r, err);
        if (st == MU_ECANCELLED) {
            fputs(r.begun ? "\n" : "\nCtrl-D or /bye leaves.\n", stderr);
            st = MU_OK;
        } else if (st == MU_ENOENT) {
            fputc('\n', stderr);
            r.session.leave = true;
            st = MU_OK;
        } else if (!st) {
            st = serve(&r, err);
        }
    }
    mu_line_edit_close(r.edit);
    mu_free(r.prompt);
    return st;
}
