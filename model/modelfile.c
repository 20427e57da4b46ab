/* Reading and writing Modelfiles. */
#include "model/modelfile.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/alloc.h"
#include "model/store_part.h"

enum { MAX_LISTED = 64, MAX_MESSAGES = 4096, MAX_STRINGS = 64, MAX_WORD_BYTES = 32 };

/* ---- parameters ---- */

enum param_kind { PARAM_INT, PARAM_REAL, PARAM_BOOL, PARAM_STRINGS };

/* The names that Ollama's Modelfiles know (its documentation and api/types.go), and two of Muster's, with their kinds. */
static const struct {
    const char *name;
    enum param_kind kind;
} known_params[] = {
    {"num_ctx", PARAM_INT},
    {"num_predict", PARAM_INT},
    {"temperature", PARAM_REAL},
    {"top_k", PARAM_INT},
    {"top_p", PARAM_REAL},
    {"min_p", PARAM_REAL},
    {"typical_p", PARAM_REAL},
    {"seed", PARAM_INT},
    {"stop", PARAM_STRINGS},
    {"repeat_last_n", PARAM_INT},
    {"repeat_penalty", PARAM_REAL},
    {"presence_penalty", PARAM_REAL},
    {"frequency_penalty", PARAM_REAL},
    {"num_keep", PARAM_INT},
    {"num_batch", PARAM_INT},
    {"num_gpu", PARAM_INT},
    {"main_gpu", PARAM_INT},
    {"num_thread", PARAM_INT},
    {"use_mmap", PARAM_BOOL},
    {"use_mlock", PARAM_BOOL},
    {"low_vram", PARAM_BOOL},
    {"numa", PARAM_BOOL},
    {"penalize_newline", PARAM_BOOL},
    {"mirostat", PARAM_INT},
    {"mirostat_tau", PARAM_REAL},
    {"mirostat_eta", PARAM_REAL},
    {"tfs_z", PARAM_REAL},
    {"draft_num_predict", PARAM_INT},
    {"min_tokens", PARAM_INT},
    {"logit_bias", PARAM_STRINGS},
    /* Of Ollama's first years, which it has dropped since: Modelfiles that have them are taken. */
    {"f16_kv", PARAM_BOOL},
    {"logits_all", PARAM_BOOL},
    {"vocab_only", PARAM_BOOL},
    {"embedding_only", PARAM_BOOL},
    {"num_gqa", PARAM_INT},
    {"rope_frequency_base", PARAM_REAL},
    {"rope_frequency_scale", PARAM_REAL},
};
enum { N_KNOWN = sizeof known_params / sizeof *known_params, N_DROPPED = 7 /* the last ones */ };

static enum mu_status put_string(json_t *params, const char *name, const char *value, struct mu_err *err)
{
    json_t *list = json_object_get(params, name);
    if (!json_is_array(list)) {
        list = json_array();
        if (!list || json_object_set_new(params, name, list))
            return mu_fail(err, MU_ENOMEM, "no memory for a parameter");
    }
    if (json_array_size(list) >= MAX_STRINGS)
        return mu_fail(err, MU_ELIMIT, "there are more than %d values of '%s'", MAX_STRINGS, name);
    if (!*value) return mu_fail(err, MU_EINVAL, "a value of '%s' is empty", name);
    return json_array_append_new(list, json_string(value)) ? mu_fail(err, MU_ENOMEM, "no memory for a parameter")
                                                           : MU_OK;
}

enum mu_status mu_params_put(json_t *params, const char *name, const char *value, struct mu_err *err)
{
    size_t i = 0;
    while (i < N_KNOWN && strcasecmp(known_params[i].name, name) != 0) i++;
    if (i == N_KNOWN) {
        char names[400] = "";
        for (size_t k = 0, len = 0; k < N_KNOWN - N_DROPPED && len < sizeof names; k++)
            len += (size_t)snprintf(names + len, sizeof names - len, "%s%s", k ? ", " : "", known_params[k].name);
        return mu_fail(err, MU_EINVAL, "there is no parameter '%.40s'; there are %s", name, names);
    }
    char *end;
    json_t *v = NULL;
    errno = 0;
    switch (known_params[i].kind) {
    case PARAM_STRINGS: return put_string(params, known_params[i].name, value, err);
    case PARAM_BOOL:
        if (strcasecmp(value, "true") != 0 && strcasecmp(value, "false") != 0)
            return mu_fail(err, MU_EINVAL, "parameter '%s' takes true or false, not '%.60s'", name, value);
        v = json_boolean(!strcasecmp(value, "true"));
        break;
    case PARAM_INT: {
        long long number = strtoll(value, &end, 10);
        if (end == value || *end || errno)
            return mu_fail(err, MU_EINVAL, "parameter '%s' takes a whole number, not '%.60s'", name, value);
        v = json_integer(number);
        break;
    }
    case PARAM_REAL: {
        double number = strtod(value, &end);
        if (end == value || *end || !isfinite(number))
            return mu_fail(err, MU_EINVAL, "parameter '%s' takes a number, not '%.60s'", name, value);
        v = json_real(number);
        break;
    }
    }
    return json_object_set_new(params, known_params[i].name, v) ? mu_fail(err, MU_ENOMEM, "no memory for a parameter")
                                                                : MU_OK;
}

/* ---- reading ---- */

struct parser {
    const char *p, *end, *where;
    int line;
    bool no_quote_ends; /* no line from here on ends in a quote */
    struct mu_modelfile *file;
    struct mu_err *err;
};

static enum mu_status fail_at(const struct parser *c, enum mu_status code, int line, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

static enum mu_status fail_at(const struct parser *c, enum mu_status code, int line, const char *fmt, ...)
{
    char text[MU_ERR_TEXT];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    for (char *p = text; *p; p++)
        if ((unsigned char)*p < ' ' || *p == 0x7f) *p = '?'; /* words of the file: nothing that a terminal obeys */
    return mu_fail(c->err, code, "%s, line %d: %s", c->where, line, text);
}

static bool blank(char ch)
{
    return ch == ' ' || ch == '\t' || ch == '\r';
}

static void skip_blanks(struct parser *c)
{
    while (c->p < c->end && blank(*c->p)) c->p++;
}

/* The next word of this line, in lower case; false: none, or too long. */
static bool take_word(struct parser *c, char word[MAX_WORD_BYTES])
{
    size_t n = 0;
    skip_blanks(c);
    while (c->p < c->end && !blank(*c->p) && *c->p != '\n') {
        if (n + 1 == MAX_WORD_BYTES) return false;
        word[n++] = (char)tolower((unsigned char)*c->p++);
    }
    word[n] = 0;
    skip_blanks(c);
    return n > 0;
}

/* Where a line ends that begins at p, without the blanks before that. */
static const char *line_end(const struct parser *c, const char *p)
{
    const char *to = memchr(p, '\n', (size_t)(c->end - p));
    if (!to) to = c->end;
    while (to > p && blank(to[-1])) to--;
    return to;
}

/* Where a value ends whose first line is [from, to). Ollama writes several lines without quotes in them as "…", so an only
 * quote at the beginning opens a value that goes on to the next line which ends in one; it is text where none does. */
static const char *quoted_end(struct parser *c, const char *from, const char *to)
{
    if (c->no_quote_ends || from == to || *from != '"' || memchr(from + 1, '"', (size_t)(to - from) - 1)) return to;
    for (const char *p = from, *end; (p = memchr(p, '\n', (size_t)(c->end - p)));) {
        end = line_end(c, ++p);
        if (end > p && end[-1] == '"') return end;
    }
    c->no_quote_ends = true;
    return to;
}

/* A value: the rest of the line, "…", or """…""" over several lines. *value_out is allocated. */
static enum mu_status take_value(struct parser *c, const char *of, char **value_out)
{
    int line = c->line;
    const char *from = c->p, *to;
    if (c->end - c->p >= 3 && !memcmp(c->p, "\"\"\"", 3)) {
        from += 3;
        to = memmem(from, (size_t)(c->end - from), "\"\"\"", 3);
        if (!to) return fail_at(c, MU_EFORMAT, line, "expected \"\"\" that ends the value of %s, found the end", of);
        for (const char *q = from; q < to; q++) c->line += *q == '\n';
        c->p = to + 3;
        skip_blanks(c);
        if (c->p < c->end && *c->p != '\n')
            return fail_at(c, MU_EFORMAT, c->line, "expected a line's end behind \"\"\"");
    } else {
        to = quoted_end(c, from, line_end(c, from));
        for (const char *q = from; q < to; q++) c->line += *q == '\n';
        c->p = to;
        skip_blanks(c);
        if (to - from >= 2 && *from == '"' && to[-1] == '"') from++, to--;
        if (to == from && strcmp(of, "SYSTEM") != 0 && strcmp(of, "TEMPLATE") != 0)
            return fail_at(c, MU_EFORMAT, line, "expected a value after %s", of);
    }
    *value_out = mu_strndup(from, (size_t)(to - from));
    return *value_out ? MU_OK : fail_at(c, MU_ENOMEM, line, "no memory for the value of %s", of);
}

static enum mu_status keep(struct parser *c, char **place, const char *of)
{
    char *value;
    enum mu_status st = take_value(c, of, &value);
    if (st != MU_OK) return st;
    mu_free(*place);
    *place = value;
    return MU_OK;
}

static enum mu_status keep_one_more(struct parser *c, char ***list, int *n, const char *of)
{
    char *value;
    enum mu_status st = take_value(c, of, &value);
    if (st != MU_OK) return st;
    char **more = *n < MAX_LISTED ? mu_reallocarray(*list, (size_t)*n + 1, sizeof *more) : NULL;
    if (!more) {
        mu_free(value);
        return *n < MAX_LISTED ? fail_at(c, MU_ENOMEM, c->line, "no memory for %s", of)
                               : fail_at(c, MU_ELIMIT, c->line, "more than %d times %s", MAX_LISTED, of);
    }
    *list = more;
    more[(*n)++] = value;
    return MU_OK;
}

static enum mu_status take_parameter(struct parser *c)
{
    char name[MAX_WORD_BYTES], *value;
    int line = c->line;
    if (!take_word(c, name)) return fail_at(c, MU_EFORMAT, line, "expected a parameter's name after PARAMETER");
    enum mu_status st = take_value(c, "PARAMETER", &value);
    if (st != MU_OK) return st;
    struct mu_err inner = MU_ERR_INIT;
    if (!c->file->params) c->file->params = json_object();
    st = c->file->params ? mu_params_put(c->file->params, name, value, &inner)
                         : mu_fail(&inner, MU_ENOMEM, "no memory for parameters");
    mu_free(value);
    return st ? fail_at(c, st == MU_EINVAL ? MU_EFORMAT : st, line, "%s", inner.text) : MU_OK;
}

static enum mu_status take_message(struct parser *c)
{
    char role[MAX_WORD_BYTES], *value;
    int line = c->line;
    if (!take_word(c, role) ||
        (strcmp(role, "user") != 0 && strcmp(role, "assistant") != 0 && strcmp(role, "system") != 0))
        return fail_at(c, MU_EFORMAT, line, "expected user, assistant or system after MESSAGE");
    enum mu_status st = take_value(c, "MESSAGE", &value);
    if (st != MU_OK) return st;
    struct mu_modelfile *f = c->file;
    if (!f->messages) f->messages = json_array();
    if (json_array_size(f->messages) >= MAX_MESSAGES)
        st = fail_at(c, MU_ELIMIT, line, "more than %d messages", MAX_MESSAGES);
    else if (!f->messages || json_array_append_new(f->messages, json_pack("{s:s,s:s}", "role", role, "content", value)))
        st = fail_at(c, MU_ENOMEM, line, "no memory for a message");
    mu_free(value);
    return st;
}

static enum mu_status take_command(struct parser *c)
{
    char word[MAX_WORD_BYTES], *ignored = NULL;
    struct mu_modelfile *f = c->file;
    int line = c->line;
    if (!take_word(c, word)) return fail_at(c, MU_EFORMAT, line, "expected FROM, PARAMETER, SYSTEM or the like");
    if (!strcmp(word, "from")) {
        if (f->from) return fail_at(c, MU_EFORMAT, line, "expected one FROM, found a second one");
        return keep(c, &f->from, "FROM");
    }
    if (!strcmp(word, "parameter")) return take_parameter(c);
    if (!strcmp(word, "message")) return take_message(c);
    if (!strcmp(word, "template")) return keep(c, &f->template, "TEMPLATE");
    if (!strcmp(word, "system")) return keep(c, &f->system, "SYSTEM");
    if (!strcmp(word, "adapter")) return keep_one_more(c, &f->adapter, &f->n_adapter, "ADAPTER");
    if (!strcmp(word, "license")) return keep_one_more(c, &f->license, &f->n_license, "LICENSE");
    /* What Ollama's own engine wants. */
    if (!strcmp(word, "requires") || !strcmp(word, "renderer") || !strcmp(word, "parser")) {
        enum mu_status st = take_value(c, word, &ignored);
        mu_free(ignored);
        return st;
    }
    char shown[MAX_WORD_BYTES];
    return fail_at(c, MU_EFORMAT, line,
                   "expected FROM, PARAMETER, TEMPLATE, SYSTEM, ADAPTER, LICENSE, MESSAGE or REQUIRES, found '%s'",
                   mu_str_show((struct mu_str){word, strlen(word)}, shown, sizeof shown));
}

static bool is_text(const char *text, size_t len)
{
    while (len) {
        uint32_t cp;
        int n = mu_utf8_next(text, len, &cp);
        if (n == 0 || cp == 0) return false;
        text += n;
        len -= (size_t)n;
    }
    return true;
}

enum mu_status mu_modelfile_parse(const char *text, size_t len, const char *where, struct mu_modelfile **file_out,
                                  struct mu_err *err)
{
    struct parser c = {.p = text, .end = text + len, .where = where, .line = 1, .err = err};
    enum mu_status st = MU_OK;
    if (len > MU_MODELFILE_MAX_BYTES)
        return mu_fail(err, MU_ELIMIT, "%s has more than %d bytes", where, MU_MODELFILE_MAX_BYTES);
    if (!is_text(text, len)) return mu_fail(err, MU_EFORMAT, "%s is no UTF-8 text: expected a Modelfile", where);
    if (len >= 3 && !memcmp(text, "\xef\xbb\xbf", 3)) c.p += 3; /* some editors begin a text with it */
    c.file = mu_calloc(1, sizeof *c.file);
    if (!c.file) return mu_fail(err, MU_ENOMEM, "%s: no memory to read it", where);
    while (c.p < c.end && st == MU_OK) {
        skip_blanks(&c);
        if (c.p == c.end) break;
        if (*c.p == '\n') {
            c.p++, c.line++;
        } else if (*c.p == '#') {
            while (c.p < c.end && *c.p != '\n') c.p++;
        } else {
            st = take_command(&c);
        }
    }
    if (st == MU_OK && !c.file->from)
        st = mu_fail(err, MU_EFORMAT, "%s: expected FROM with the name or the path of a model, found none", where);
    if (st == MU_OK)
        *file_out = c.file;
    else
        mu_modelfile_free(c.file);
    return st;
}

void mu_modelfile_free(struct mu_modelfile *f)
{
    if (!f) return;
    for (int i = 0; i < f->n_adapter; i++) mu_free(f->adapter[i]);
    for (int i = 0; i < f->n_license; i++) mu_free(f->license[i]);
    mu_free(f->adapter);
    mu_free(f->license);
    mu_free(f->from);
    mu_free(f->template);
    mu_free(f->system);
    json_decref(f->params);
    json_decref(f->messages);
    mu_free(f);
}

char *mu_modelfile_path(const char *folder, const char *given)
{
    const char *home = strncmp(given, "~/", 2) == 0 ? getenv("HOME") : NULL;
    if (home && *home) return mu_asprintf("%s%s", home, given + 1);
    return *given == '/' ? mu_strdup(given) : mu_asprintf("%s/%s", folder, given);
}

/* ---- writing ---- */

struct text { /* grows; NULL after memory ran out */
    char *p;
    bool failed;
};

static void add(struct text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void add(struct text *t, const char *fmt, ...)
{
    char *line = NULL, *whole = NULL;
    va_list ap;
    if (t->failed) return;
    va_start(ap, fmt);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (n >= 0) line = mu_malloc((size_t)n + 1);
    if (line) {
        va_start(ap, fmt);
        vsnprintf(line, (size_t)n + 1, fmt, ap);
        va_end(ap);
        whole = mu_asprintf("%s%s", t->p ? t->p : "", line);
    }
    mu_free(line);
    mu_free(t->p);
    t->p = whole;
    t->failed = !whole;
}

/* As the reader takes it back: the rest of the line; in quotes where its ends would be taken off; in three of them where there
 * are several lines. What begins with quotes, or has several lines and three quotes or one at its end, may have no form. */
static void add_value(struct text *t, const char *before, const char *value)
{
    size_t n = strlen(value);
    bool line = n && !strchr(value, '\n'),
         taken = n > 1 && *value == '"' && (value[n - 1] == '"' || !strchr(value + 1, '"'));
    if (line && !taken && !blank(*value) && !blank(value[n - 1]) && strncmp(value, "\"\"\"", 3) != 0)
        add(t, "%s %s\n", before, value);
    else if (line && strncmp(value, "\"\"", 2) != 0)
        add(t, "%s \"%s\"\n", before, value);
    else
        add(t, "%s \"\"\"%s\"\"\"\n", before, value);
}

static void add_param(struct text *t, const char *before, const char *name, const json_t *v)
{
    char start[96];
    snprintf(start, sizeof start, "%s%s%s", before, *before ? " " : "", name);
    if (json_is_string(v)) {
        if (*before)
            add_value(t, start, json_string_value(v));
        else
            add(t, "%-24s \"%s\"\n", start, json_string_value(v));
        return;
    }
    char *text = json_is_real(v)      ? mu_asprintf("%.9g", json_real_value(v))
                 : json_is_integer(v) ? mu_asprintf("%lld", (long long)json_integer_value(v))
                                      : mu_asprintf("%s", json_is_true(v) ? "true" : "false");
    if (!text) t->failed = true;
    if (text) add(t, *before ? "%s %s\n" : "%-24s %s\n", start, text);
    mu_free(text);
}

static void add_params(struct text *t, const char *before, const json_t *params)
{
    const char *name;
    json_t *v, *item;
    size_t i;
    json_object_foreach((json_t *)params, name, v)
    {
        if (json_is_array(v))
            json_array_foreach(v, i, item) add_param(t, before, name, item);
        else if (!json_is_object(v) && !json_is_null(v))
            add_param(t, before, name, v);
    }
}

static char *text_end(struct text *t)
{
    if (!t->failed && !t->p) t->p = mu_strdup("");
    return t->p;
}

char *mu_params_format(const json_t *params, const char *before)
{
    struct text t = {0};
    add_params(&t, before, params);
    return text_end(&t);
}

char *mu_modelfile_format(const struct mu_store_model *m)
{
    struct text t = {0};
    json_t *item;
    size_t i;
    add(&t,
        "# Modelfile of %s, by \"muster show --modelfile\".\n# To make a model of your own from it, replace FROM "
        "by the model's name.\n",
        m->entry.name);
    add_value(&t, "FROM", m->path);
    for (int k = 0; k < m->n_adapter; k++) add_value(&t, "ADAPTER", m->adapter_path[k]);
    if (m->template) add_value(&t, "TEMPLATE", m->template);
    if (m->system) add_value(&t, "SYSTEM", m->system);
    add_params(&t, "PARAMETER", m->params);
    json_array_foreach((json_t *)m->messages, i, item)
    {
        const char *role = json_string_value(json_object_get(item, "role")),
                   *content = json_string_value(json_object_get(item, "content"));
        char before[32];
        if (!role || !content) continue;
        snprintf(before, sizeof before, "MESSAGE %.20s", role);
        add_value(&t, before, content);
    }
    for (int k = 0; k < m->n_license; k++) add_value(&t, "LICENSE", m->license[k]);
    return text_end(&t);
}
