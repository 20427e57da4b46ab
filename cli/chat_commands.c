/* The commands of a chat: tables of names, and what each does. All they say goes to standard error, so that answers
 * alone are on standard output. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/alloc.h"
#include "cli/chat.h"
#include "cli/cli.h"
#include "cli/wrap.h"

enum { MAX_WORDS = 4 + MU_PARAMS_MAX_BIASES /* a bias more than a parameter takes */, NAME_COLUMNS = 32 };

struct words { /* of a command's line */
    char *word[MAX_WORDS];
    int n;
    const char *rest[MAX_WORDS + 1]; /* the line from word i on, as typed; "" beyond the last */
    char *memory;
};

struct command {
    const char *name, *args, *meaning;
    enum mu_status (*run)(struct mu_session *s, const struct words *w, struct mu_err *err);
};

/* ---- words: parted by blanks; "two words" and \n \t \" \\ inside of quotes. Of a text, which may have any number of
 * them, `rest` is what counts, so those beyond the most are not looked at ---- */

static char unescape(char c)
{
    return c == 'n' ? '\n' : c == 't' ? '\t' : c;
}

static enum mu_status words_split(const char *line, struct words *w, struct mu_err *err)
{
    char *to = w->memory = mu_malloc(strlen(line) + 1);
    if (!to) return mu_fail(err, MU_ENOMEM, "no memory for a command");
    w->n = 0;
    for (const char *p = line;;) {
        while (isspace((unsigned char)*p)) p++;
        for (int i = w->n; i <= MAX_WORDS; i++) w->rest[i] = p;
        if (!*p || w->n == MAX_WORDS) return MU_OK;
        w->word[w->n++] = to;
        bool quoted = false;
        for (; *p && (quoted || !isspace((unsigned char)*p)); p++) {
            if (*p == '"')
                quoted = !quoted;
            else if (quoted && *p == '\\' && p[1])
                *to++ = unescape(*++p);
            else
                *to++ = *p;
        }
        *to++ = 0;
    }
}

static void list(const struct command *c, const char *before)
{
    for (; c->name; c++) {
        int n = fprintf(stderr, "  %s%s %s", before, c->name, c->args);
        fprintf(stderr, "%*s%s\n", n < NAME_COLUMNS ? NAME_COLUMNS - n : 1, "", c->meaning);
    }
}

static const struct command *find(const struct command *c, const char *name)
{
    while (c->name && strcmp(c->name, name) != 0) c++;
    return c->name ? c : NULL;
}

/* The names, parted by commas. */
static void names(const struct command *c, const char *before)
{
    for (const char *gap = ""; c->name; c++, gap = ", ") fprintf(stderr, "%s%s%s", gap, before, c->name);
    fputc('\n', stderr);
}

static void said(const char *text)
{
    fprintf(stderr, "%s\n", text);
}

/* A failure that the session outlives. */
static enum mu_status told(enum mu_status st, struct mu_err *err)
{
    if (!st || st == MU_EINTERNAL) return st; /* nothing is open any more */
    fprintf(stderr, "%s\n", err->text);
    *err = (struct mu_err)MU_ERR_INIT;
    return MU_OK;
}

/* ---- /set ---- */

static enum mu_status set_parameter(struct mu_session *s, const struct words *w, struct mu_err *err)
{
    struct mu_talk *c = s->chat;
    if (w->n < 3) {
        said("Parameters that there are (/set parameter NAME VALUE):");
        mu_params_help(stderr);
        return MU_OK;
    }
    const char *name = w->word[2];
    struct mu_params fresh = {0};
    enum mu_status st = mu_params_set(&fresh, name, (const char *const *)w->word + 3, w->n - 3, err);
    if (!st && fresh.num_ctx) st = c->backend.ops->set_context(c->backend.self, (int)fresh.num_ctx, err);
    if (!st) st = mu_params_merge(&c->opt.params, &fresh, err);
    mu_params_free(&fresh);
    if (!st) fprintf(stderr, "%s is now %s\n", name, w->n > 3 ? w->rest[3] : "off");
    return told(st, err);
}

static enum mu_status set_system(struct mu_session *s, const struct words *w, struct mu_err *err)
{
    if (!mu_talk_is_chat(s->chat)) {
        said("This model only goes on with a text; it has no place for a system prompt.");
        return MU_OK;
    }
    enum mu_status st = mu_talk_set_system(s->chat, w->rest[2], err);
    if (!st) said(*w->rest[2] ? "The system prompt is set." : "The system prompt is empty now.");
    return told(st, err);
}

static enum mu_status set_flag(bool *flag, bool value, const char *text)
{
    *flag = value;
    said(text);
    return MU_OK;
}

#define FLAG(name, field, value, text)                                                          \
    static enum mu_status name(struct mu_session *s, const struct words *w, struct mu_err *err) \
    {                                                                                           \
        (void)w, (void)err;                                                                     \
        return set_flag(&s->field, value, text);                                                \
    }
FLAG(set_history, history, true, "Lines are remembered.")
FLAG(set_nohistory, history, false, "Lines are no longer remembered.")
FLAG(set_verbose, chat->opt.verbose, true, "Counts and rates are shown after each answer.")
FLAG(set_quiet, chat->opt.verbose, false, "Counts and rates are not shown.")
FLAG(set_wordwrap, chat->opt.wordwrap, true, "Lines are broken between words.")
FLAG(set_nowordwrap, chat->opt.wordwrap, false, "Lines are not broken.")
#undef FLAG

static enum mu_status set_think(struct mu_session *s, const struct words *w, struct mu_err *err)
{
    (void)err;
    const char *how = w->n > 2 ? w->word[2] : "on";
    if (!mu_think_parse(how, &s->chat->opt.think))
        fprintf(stderr, "'%s' is no way of thinking; there are on, off, low, medium, high and default\n", how);
    else
        fprintf(stderr, "Thinking: %s.\n", mu_think_name(s->chat->opt.think));
    return MU_OK;
}

static enum mu_status set_nothink(struct mu_session *s, const struct words *w, struct mu_err *err)
{
    (void)w, (void)err;
    s->chat->opt.think = MU_THINK_OFF;
    said("Thinking: off. A model whose template has no such switch thinks all the same.");
    return MU_OK;
}

static enum mu_status set_format(struct mu_session *s, const struct words *w, struct mu_err *err)
{
    (void)err;
    if (w->n < 3 || strcmp(w->word[2], "json")) {
        said("The format is 'json': /set format json. For a schema, an expression or a grammar start with "
             "--json-schema, "
             "--regex or --grammar.");
        return MU_OK;
    }
    s->chat->opt.constraint = (struct mu_constraint_text){MU_CONSTRAINT_JSON, "", 0};
    said("Answers are JSON objects; ask for them in words as well.");
    return MU_OK;
}

static enum mu_status set_noformat(struct mu_session *s, const struct words *w, struct mu_err *err)
{
    (void)w, (void)err;
    s->chat->opt.constraint = (struct mu_constraint_text){MU_CONSTRAINT_NONE, NULL, 0};
    said("Answers are of any form.");
    return MU_OK;
}

static const struct command set_commands[] = {
    {"parameter", "NAME VALUE", "a parameter; without NAME: the list", set_parameter},
    {"system", "TEXT", "the system prompt (\"\"\" for several lines)", set_system},
    {"history", "", "remember lines for the next time", set_history},
    {"nohistory", "", "forget lines", set_nohistory},
    {"wordwrap", "", "break lines between words", set_wordwrap},
    {"nowordwrap", "", "leave lines as they come", set_nowordwrap},
    {"think", "[low|medium|high]", "let the model think first", set_think},
    {"nothink", "", "let it answer at once", set_nothink},
    {"verbose", "", "show counts and rates after each answer", set_verbose},
    {"quiet", "", "do not", set_quiet},
    {"format", "json", "answers are JSON objects", set_format},
    {"noformat", "", "answers are of any form", set_noformat},
    {0}};

/* ---- /show ---- */

static enum mu_status to_stderr(void *ctx, const char *text, size_t len, struct mu_err *err)
{
    (void)ctx, (void)err;
    fwrite(text, 1, len, stderr);
    return MU_OK;
}

/* A text of the model's file, without what a terminal would obey. */
static void put_text(const char *text)
{
    struct mu_wrap w;
    mu_wrap_init(&w, 0, to_stderr, NULL);
    mu_wrap_put(&w, text, strlen(text), NULL);
    mu_wrap_flush(&w, NULL);
}

static void show_text(const char *text, const char *none)
{
    if (!text || !*text) text = none;
    put_text(text);
    if (text[strlen(text) - 1] != '\n') fputc('\n', stderr);
}

static enum mu_status show_info(struct mu_session *s, const struct words *w, struct mu_err *err)
{
    (void)w, (void)err;
    const struct mu_card *k = mu_talk_card(s->chat);
    fprintf(stderr, "  %-12s %s\n", "name", k->name);
    if (k->description) fprintf(stderr, "  %-12s %s\n", "model", k->description);
    if (k->path) fprintf(stderr, "  %-12s %s\n", "file", k->path);
    if (s->chat->opt.server) fprintf(stderr, "  %-12s %s\n", "server", s->chat->opt.server);
    if (k->n_ctx) fprintf(stderr, "  %-12s %d tokens", "context", k->n_ctx);
    if (k->n_ctx && k->n_ctx_max) fprintf(stderr, " (made for %d)", k->n_ctx_max);
    if (k->n_ctx) fputc('\n', stderr);
    fprintf(stderr, "  %-12s %s\n", "template", k->chat ? "yes" : "none: it goes on with your text");
    return MU_OK;
}

static enum mu_status show_license(struct mu_session *s, const struct words *w, struct mu_err *err)
{
    (void)w, (void)err;
    show_text(mu_talk_card(s->chat)->license, "The model says nothing of its license.");
    return MU_OK;
}

static enum mu_status show_system(struct mu_session *s, const struct words *w, struct mu_err *err)
{
    (void)w, (void)err;
    show_text(mu_talk_system(s->chat), "There is no system prompt; /set system TEXT sets one.");
    return MU_OK;
}

static enum mu_status show_template(struct mu_session *s, const struct words *w, struct mu_err *err)
{
    (void)w, (void)err;
    const struct mu_card *k = mu_talk_card(s->chat);
    show_text(k->template_text,
              k->chat ? "The server keeps its template to itself." : "The model has no chat template.");
    return MU_OK;
}

static enum mu_status show_parameters(struct mu_session *s, const struct words *w, struct mu_err *err)
{
    (void)w, (void)err;
    said("The model's own:");
    if (!mu_params_print(&mu_talk_card(s->chat)->params, "  ", stderr)) said("  none");
    said("Yours:");
    if (!mu_params_print(&s->chat->opt.params, "  ", stderr)) said("  none");
    if (mu_talk_is_chat(s->chat))
        said("Where neither says anything: temperature 0.8, top_k 40, top_p 0.9, another seed each time.");
    return MU_OK;
}

static void block(const char *what, const char *text)
{
    if (!text || !*text) return;
    fprintf(stderr, "%s \"\"\"", what);
    put_text(text);
    fputs("\"\"\"\n", stderr);
}

static enum mu_status show_modelfile(struct mu_session *s, const struct words *w, struct mu_err *err)
{
    (void)w;
    const struct mu_card *k = mu_talk_card(s->chat);
    struct mu_params p;
    enum mu_status st = mu_talk_params(s->chat, &p, err);
    if (st) return told(st, err);
    fprintf(stderr, "FROM %s\n", k->path ? k->path : k->name);
    block("TEMPLATE", k->template_text);
    block("SYSTEM", mu_talk_system(s->chat));
    mu_params_print(&p, "PARAMETER ", stderr);
    mu_params_free(&p);
    block("LICENSE", k->license);
    size_t i;
    json_t *m;
    json_array_foreach((json_t *)k->messages, i, m)
    {
        const char *role = json_string_value(json_object_get(m, "role"));
        const char *content = json_string_value(json_object_get(m, "content"));
        char what[40];
        snprintf(what, sizeof what, "MESSAGE %.20s", role ? role : "");
        if (role) block(what, content);
    }
    return MU_OK;
}

static const struct command show_commands[] = {{"info", "", "the model: architecture, sizes, context", show_info},
                                               {"license", "", "its license", show_license},
                                               {"modelfile", "", "a Modelfile of model and settings", show_modelfile},
                                               {"parameters", "", "parameters that are set", show_parameters},
                                               {"system", "", "the system prompt", show_system},
                                               {"template", "", "the chat template", show_template},
                                               {0}};

/* ---- the commands themselves ---- */

static enum mu_status sub(struct mu_session *s, const struct words *w, const struct command *table, struct mu_err *err)
{
    char before[16];
    snprintf(before, sizeof before, "%.10s ", w->word[0]);
    const struct command *c = w->n > 1 ? find(table, w->word[1]) : NULL;
    if (c) return c->run(s, w, err);
    if (w->n > 1) {
        fprintf(stderr, "There is no %s %s. There are: ", w->word[0], w->word[1]);
        names(table, "");
    } else {
        list(table, before);
    }
    return MU_OK;
}

static enum mu_status run_set(struct mu_session *s, const struct words *w, struct mu_err *err)
{
    return sub(s, w, set_commands, err);
}

static enum mu_status run_show(struct mu_session *s, const struct words *w, struct mu_err *err)
{
    return sub(s, w, show_commands, err);
}

static enum mu_status run_clear(struct mu_session *s, const struct words *w, struct mu_err *err)
{
    (void)w;
    enum mu_status st = mu_talk_clear(s->chat, err);
    if (!st) said("The conversation is empty.");
    return told(st, err);
}

static enum mu_status run_save(struct mu_session *s, const struct words *w, struct mu_err *err)
{
    char *path = w->n == 2 ? mu_talk_path(w->word[1]) : NULL;
    if (!path) {
        said("/save NAME, or /save FILE.json");
        return MU_OK;
    }
    enum mu_status st = mu_talk_save(s->chat, path, err);
    if (!st) fprintf(stderr, "Saved in %s\n", path);
    mu_free(path);
    return told(st, err);
}

static enum mu_status run_load(struct mu_session *s, const struct words *w, struct mu_err *err)
{
    char *path = w->n == 2 ? mu_talk_path(w->word[1]) : NULL;
    if (!path) {
        said("/load NAME of a saved chat or of a model, or a file of either");
        return MU_OK;
    }
    size_t n = strlen(path);
    bool is_chat = n > 5 && !strcmp(path + n - 5, ".json");
    enum mu_status st = is_chat ? mu_talk_load(s->chat, path, err) : MU_ENOENT;
    if (!st) {
        fprintf(stderr, "Loaded %s: %zu messages\n", path, json_array_size(s->chat->messages));
    } else if (st == MU_ENOENT && !(is_chat && strchr(w->word[1], '/'))) {
        fprintf(stderr, "Loading '%s' …\n", w->word[1]);
        st = mu_talk_switch(s->chat, w->word[1], err);
        if (!st) fprintf(stderr, "Now with %s; the conversation is empty.\n", mu_talk_card(s->chat)->name);
    }
    mu_free(path);
    return told(st, err);
}

static enum mu_status run_bye(struct mu_session *s, const struct words *w, struct mu_err *err)
{
    (void)w, (void)err;
    s->leave = true;
    return MU_OK;
}

static enum mu_status run_help(struct mu_session *s, const struct words *w, struct mu_err *err);

static const struct command commands[] = {{"/set", "...", "settings of this session; /? set lists them", run_set},
                                          {"/show", "...", "what is known of the model; /? show lists it", run_show},
                                          {"/load", "NAME", "a saved chat, or another model", run_load},
                                          {"/save", "NAME", "this conversation and its settings", run_save},
                                          {"/clear", "", "forget the conversation", run_clear},
                                          {"/bye", "", "leave", run_bye},
                                          {"/help", "", "this list (also /?)", run_help},
                                          {0}};

static void shortcuts(void)
{
    said("  Ctrl-A, Ctrl-E      to the beginning, to the end of the line\n"
         "  Alt-B, Alt-F        a word back, a word forward\n"
         "  Ctrl-K, Ctrl-U      delete to the end; delete the line\n"
         "  Ctrl-W              delete the word before the cursor\n"
         "  Up, Down, Ctrl-R    earlier lines; search among them\n"
         "  Ctrl-L              clear the screen\n"
         "  Ctrl-C              stop the answer; forget the line\n"
         "  Ctrl-D              leave");
}

static enum mu_status run_help(struct mu_session *s, const struct words *w, struct mu_err *err)
{
    (void)s, (void)err;
    const char *of = w->n > 1 ? w->word[1] : "";
    if (*of == '/') of++;
    if (!strcmp(of, "set")) {
        list(set_commands, "/set ");
    } else if (!strcmp(of, "show")) {
        list(show_commands, "/show ");
    } else if (!strncmp(of, "shortcut", 8)) {
        shortcuts();
    } else {
        list(commands, "");
        said("  /? shortcuts                  keys that edit a line\n"
             "  \"\"\"                           begins and ends a prompt of several lines");
    }
    return MU_OK;
}

enum mu_status mu_talk_command(struct mu_session *s, const char *line, struct mu_err *err)
{
    struct words w = {0};
    enum mu_status st = told(words_split(line, &w, err), err);
    if (!st && w.n) {
        const char *name = w.word[0];
        if (!strcmp(name, "/?")) name = "/help";
        if (!strcmp(name, "/exit")) name = "/bye";
        const struct command *c = find(commands, name);
        if (c) {
            st = c->run(s, &w, err);
        } else {
            fprintf(stderr, "There is no command %s. There are: ", name);
            names(commands, "");
        }
    }
    mu_free(w.memory);
    return st;
}
