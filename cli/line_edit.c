/* libedit behind four functions. */
#include "cli/line_edit.h"

#include <errno.h>
#include <fcntl.h>
#include <histedit.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>
#include <wchar.h>

#include "base/alloc.h"
#include "cli/chat.h"
#include "cli/cli.h"

enum { MAX_LINES = 1000, MAX_LINE_BYTES = 64 << 10, MAX_FILE_BYTES = 32 << 20 };

struct mu_line_edit {
    EditLine *el;
    History *history;
    FILE *out; /* where the line is shown: a terminal */
    char *path, *line;
    const char *prompt;
    sigset_t
        waiting; /* the signal mask of a wait for a key; between waits signals are held back, so that none is missed */
    bool pasting, file_failed;
    bool unsaved; /* there are lines that the history's file lacks */
};

static volatile sig_atomic_t resized, resumed;

static void on_winch(int sig)
{
    (void)sig;
    resized = 1;
}

static void on_cont(int sig)
{
    (void)sig;
    resumed = 1;
}

static struct { /* what a signal that ends the program has to put right; read by its handler while `edited` is set */
    volatile sig_atomic_t edited;
    int out; /* where pastes are marked, or -1 */
    struct termios mode;
} terminal;

static struct mu_line_edit *self_of(EditLine *el)
{
    void *e = NULL;
    el_get(el, EL_CLIENTDATA, &e);
    return e;
}

static char *prompt_of(EditLine *el)
{
    return (char *)self_of(el)->prompt;
}

static const char paste_on[] = "\033[?2004h", paste_off[] = "\033[?2004l";

static void show(const struct mu_line_edit *e, const char *code)
{
    if (!mu_term_obeys(fileno(e->out))) return;
    fputs(code, e->out);
    fflush(e->out);
}

static void terminal_remember(const struct mu_line_edit *e)
{
    terminal.out = mu_term_obeys(fileno(e->out)) ? fileno(e->out) : -1;
    terminal.edited = tcgetattr(STDIN_FILENO, &terminal.mode) == 0;
}

void mu_line_edit_abandon(void)
{
    if (!terminal.edited || tcgetpgrp(STDIN_FILENO) != getpgrp()) return; /* in the background it is the shell's */
    tcsetattr(STDIN_FILENO, TCSANOW, &terminal.mode);
    /* Not where Ctrl-S has stopped it: that would wait for Ctrl-Q. */
    struct pollfd out = {.fd = terminal.out, .events = POLLOUT};
    if (poll(&out, 1, 0) == 1 && (out.revents & POLLOUT) && write(terminal.out, paste_off, sizeof paste_off - 1) < 0)
        return;
}

/* After Ctrl-Z and `fg`: the shell has given the terminal back in its own mode, with other text on it. */
static void take_back(EditLine *el)
{
    el_set(el, EL_PREP_TERM, 0); /* so that it is not taken to be in ours */
    el_set(el, EL_PREP_TERM, 1);
    show(self_of(el), paste_on);
    el_set(el, EL_REFRESH);
}

/* Until there is something to read: false where Ctrl-C came first. */
static bool wait_key(EditLine *el)
{
    struct pollfd in = {.fd = STDIN_FILENO, .events = POLLIN};
    for (;;) {
        if (mu_interrupted) return false;
        if (resized) el_resize(el);
        resized = 0;
        if (resumed) take_back(el);
        resumed = 0;
        if (ppoll(&in, 1, NULL, &self_of(el)->waiting) >= 0 || errno != EINTR) return true;
    }
}

/* libedit's reader: 1 a character, 0 the end, -1 an error or Ctrl-C. */
static int read_char(EditLine *el, wchar_t *out)
{
    mbstate_t state = {0};
    for (;;) {
        char byte;
        if (!wait_key(el)) {
            errno = EINTR;
            return -1;
        }
        ssize_t n = read(STDIN_FILENO, &byte, 1);
        if (n <= 0) return (int)n;
        size_t got = mbrtowc(out, &byte, 1, &state);
        if (got == (size_t)-2) continue;
        if (got != (size_t)-1) return 1;
        state = (mbstate_t){0}; /* not in this locale's encoding */
    }
}

/* A terminal puts ESC[200~ and ESC[201~ around what is pasted, once it is asked to. */
static unsigned char paste_begins(EditLine *el, int c)
{
    (void)c;
    self_of(el)->pasting = true;
    return CC_NORM;
}

static unsigned char paste_ends(EditLine *el, int c)
{
    (void)c;
    self_of(el)->pasting = false;
    return CC_NORM;
}

/* ---- the history's file ---- */

static void history_load(struct mu_line_edit *e)
{
    struct stat st;
    HistEvent ev;
    if (stat(e->path, &st) || !S_ISREG(st.st_mode) || st.st_size > MAX_FILE_BYTES) return;
    history(e->history, &ev, H_LOAD, e->path);
}

/* Written beside it and renamed: complete or not at all, and nobody else's to read. */
static enum mu_status history_save(struct mu_line_edit *e, struct mu_err *err)
{
    HistEvent ev;
    char *temp = mu_asprintf("%s.partial-%d", e->path, (int)getpid());
    if (!temp) return mu_fail(err, MU_ENOMEM, "no memory for the history");
    mu_folders_make(temp);
    int fd = open(temp, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
    FILE *f = fd < 0 ? NULL : fdopen(fd, "w");
    bool bad = !f || fchmod(fd, 0600) || history(e->history, &ev, H_SAVE_FP, f) < 0;
    int why = errno;
    if (f && fclose(f) && !bad) bad = true, why = errno;
    if (!f && fd >= 0) close(fd);
    if (!bad && rename(temp, e->path)) bad = true, why = errno;
    if (bad) unlink(temp);
    mu_free(temp);
    return bad ? mu_fail(err, MU_EIO, "cannot write the history %s: %s", e->path, strerror(why)) : MU_OK;
}

enum mu_status mu_line_edit_remember(struct mu_line_edit *e, const char *line, struct mu_err *err)
{
    HistEvent ev;
    if (*line && strlen(line) <= MAX_LINE_BYTES) {
        history(e->history, &ev, H_ENTER, line);
        e->unsaved = true;
    }
    if (!e->unsaved || e->pasting || !e->path || e->file_failed) return MU_OK;
    enum mu_status st = history_save(e, err);
    e->unsaved = false;
    e->file_failed = st != MU_OK;
    return st;
}

/* ---- a line ---- */

enum mu_status mu_line_edit_read(struct mu_line_edit *e, const char *prompt, const char **line_out, bool *more_out,
                                 struct mu_err *err)
{
    struct sigaction winch = {.sa_handler = on_winch}, cont = {.sa_handler = on_cont}, winch_before, cont_before;
    int n = 0;
    *line_out = "";
    *more_out = false;
    e->prompt = prompt;
    sigset_t held;
    sigemptyset(&winch.sa_mask);
    sigemptyset(&cont.sa_mask);
    sigaction(SIGWINCH, &winch, &winch_before);
    sigaction(SIGCONT, &cont, &cont_before);
    sigemptyset(&held);
    sigaddset(&held, SIGINT);
    sigaddset(&held, SIGWINCH);
    sigaddset(&held, SIGCONT);
    sigprocmask(SIG_BLOCK, &held, &e->waiting);
    el_resize(e->el);
    terminal_remember(e);
    show(e, paste_on);
    const char *typed = el_gets(e->el, &n);
    int why = errno;
    show(e, paste_off);
    terminal.edited = 0;
    sigprocmask(SIG_SETMASK, &e->waiting, NULL);
    sigaction(SIGWINCH, &winch_before, NULL);
    sigaction(SIGCONT, &cont_before, NULL);

    mu_free(e->line);
    if (!typed || n <= 0) { /* what had been typed is still in the editor */
        const LineInfo *li = el_line(e->el);
        e->line = mu_strndup(li->buffer, (size_t)(li->lastchar - li->buffer));
        *line_out = e->line ? e->line : "";
        e->pasting = false;
        if (mu_interrupted) return mu_fail(err, MU_ECANCELLED, "Ctrl-C");
        return n < 0 ? mu_fail(err, MU_EIO, "cannot read the terminal: %s", strerror(why))
                     : mu_fail(err, MU_ENOENT, "the input has ended");
    }
    size_t len = (size_t)n;
    while (len && (typed[len - 1] == '\n' || typed[len - 1] == '\r')) len--;
    e->line = mu_strndup(typed, len);
    if (!e->line) return mu_fail(err, MU_ENOMEM, "no memory for a line of %zu bytes", len);
    *line_out = e->line;
    *more_out = e->pasting;
    return MU_OK;
}

/* ---- open and close ---- */

enum mu_status mu_line_edit_open(const char *history_path, struct mu_line_edit **edit_out, struct mu_err *err)
{
    struct mu_line_edit *e = mu_calloc(1, sizeof *e);
    HistEvent ev;
    if (!e) return mu_fail(err, MU_ENOMEM, "no memory for a line editor");
    e->prompt = "";
    e->out = isatty(STDOUT_FILENO) ? stdout : stderr;
    e->history = history_init();
    e->el = el_init("muster", stdin, e->out, stderr);
    if (history_path) e->path = mu_strdup(history_path);
    if (!e->history || !e->el || (history_path && !e->path)) {
        mu_line_edit_close(e);
        return mu_fail(err, MU_ENOMEM, "no memory for a line editor");
    }
    history(e->history, &ev, H_SETSIZE, MAX_LINES);
    history(e->history, &ev, H_SETUNIQUE, 1);
    if (e->path) history_load(e);
    el_set(e->el, EL_CLIENTDATA, e);
    el_set(e->el, EL_PROMPT, prompt_of);
    el_set(e->el, EL_EDITOR, "emacs");
    el_set(e->el, EL_SIGNAL, 0);
    el_set(e->el, EL_HIST, history, e->history);
    el_set(e->el, EL_GETCFN, read_char);
    el_wset(e->el, EL_ADDFN, L"paste-begins", L"a paste begins", paste_begins); /* el_set would leak the names */
    el_wset(e->el, EL_ADDFN, L"paste-ends", L"a paste ends", paste_ends);
    el_set(e->el, EL_BIND, "\033[200~", "paste-begins", NULL);
    el_set(e->el, EL_BIND, "\033[201~", "paste-ends", NULL);
    el_set(e->el, EL_BIND, "^I", "ed-insert", NULL); /* code that is pasted keeps its tabs; nothing is completed */
    el_set(e->el, EL_BIND, "^R", "em-inc-search-prev", NULL);
    el_set(e->el, EL_BIND, "^W", "ed-delete-prev-word", NULL);
    *edit_out = e;
    return MU_OK;
}

void mu_line_edit_close(struct mu_line_edit *e)
{
    if (!e) return;
    if (e->unsaved && e->path && !e->file_failed) history_save(e, NULL); /* of a paste that Ctrl-C ended */
    if (e->el) el_end(e->el);
    if (e->history) history_end(e->history);
    mu_free(e->path);
    mu_free(e->line);
    mu_free(e);
}
