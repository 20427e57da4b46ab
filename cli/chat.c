/* A conversation and its turns. The messages are kept as the template wants them; each turn sends them all, and the
 * back end finds out how much of that it has computed before. */
#include "cli/chat.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "cli/cli.h"
#include "cli/reply.h"

static const char *const think_names[] = {"default", "off", "on", "low", "medium", "high"};

bool mu_think_parse(const char *text, enum mu_think *think_out)
{
    if (!strcmp(text, "true")) text = "on";
    if (!strcmp(text, "false")) text = "off";
    for (int i = 0; i < (int)(sizeof think_names / sizeof *think_names); i++)
        if (!strcmp(text, think_names[i])) {
            *think_out = (enum mu_think)i;
            return true;
        }
    return false;
}

const char *mu_think_name(enum mu_think think)
{
    return think_names[think];
}

/* ---- the conversation ---- */

const struct mu_card *mu_talk_card(const struct mu_talk *c)
{
    return c->backend.ops->card(c->backend.self);
}

bool mu_talk_is_chat(const struct mu_talk *c)
{
    return mu_talk_card(c)->chat && !c->opt.raw;
}

const char *mu_talk_system(const struct mu_talk *c)
{
    const char *text = c->system ? c->system : mu_talk_card(c)->system;
    return text && *text ? text : NULL;
}

enum mu_status mu_talk_set_system(struct mu_talk *c, const char *text, struct mu_err *err)
{
    char *copy = mu_strdup(text);
    if (!copy) return mu_fail(err, MU_ENOMEM, "no memory for the system prompt");
    mu_free(c->system);
    c->system = copy;
    return MU_OK;
}

enum mu_status mu_talk_clear(struct mu_talk *c, struct mu_err *err)
{
    const json_t *first = mu_talk_card(c)->messages;
    json_t *fresh = first ? json_deep_copy(first) : json_array();
    if (!fresh) return mu_fail(err, MU_ENOMEM, "no memory for a conversation");
    json_decref(c->messages);
    c->messages = fresh;
    c->left_out = 0;
    return MU_OK;
}

static json_t *message(const char *role, const char *content, struct mu_err *err)
{
    json_t *text = json_string(content);
    if (!text) {
        mu_fail(err, MU_EINVAL, "the %s message is not valid UTF-8: convert it first (iconv)", role);
        return NULL;
    }
    json_t *m = json_pack("{s:s, s:o}", "role", role, "content", text);
    if (!m) mu_fail(err, MU_ENOMEM, "no memory for a message");
    return m;
}

/* What the template gets: the system prompt, then the messages that still fit. */
static json_t *conversation(const struct mu_talk *c, struct mu_err *err)
{
    json_t *all = json_array();
    const char *system = mu_talk_system(c);
    if (all && system) {
        json_t *m = message("system", system, err);
        if (json_array_append_new(all, m)) {
            json_decref(all);
            return NULL;
        }
    }
    for (size_t i = c->left_out; all && i < json_array_size(c->messages); i++)
        if (json_array_append(all, json_array_get(c->messages, i))) {
            json_decref(all);
            all = NULL;
        }
    if (!all) mu_fail(err, MU_ENOMEM, "no memory for a conversation of %zu messages", json_array_size(c->messages));
    return all;
}

/* What --think tells a template: Qwen's and its kin's switch, Granite's and DeepSeek's names for it, gpt-oss's degrees. */
static json_t *variables(enum mu_think think)
{
    bool on = think != MU_THINK_OFF;
    json_t *v = think == MU_THINK_DEFAULT ? NULL : json_pack("{s:b, s:b}", "enable_thinking", on, "thinking", on);
    if (v && think >= MU_THINK_LOW) json_object_set_new(v, "reasoning_effort", json_string(think_names[think]));
    return v;
}

/* ---- a turn ---- */

enum mu_status mu_talk_params(const struct mu_talk *c, struct mu_params *params_out, struct mu_err *err)
{
    struct mu_params p = {0};
    enum mu_status st = mu_params_merge(&p, &mu_talk_card(c)->params, err);
    if (!st) st = mu_params_merge(&p, &c->opt.params, err);
    if (st)
        mu_params_free(&p);
    else
        *params_out = p;
    return st;
}

static double seconds(int64_t from, int64_t to)
{
    return (double)(to - from) / 1e9;
}

/* As Ollama's --verbose has it. */
static void print_verbose(const struct mu_answer *w)
{
    int64_t first = w->first_ns ? w->first_ns : w->end_ns;
    double prompt_s = seconds(w->start_ns, first), eval_s = seconds(first, w->end_ns);
    int fresh = w->n_prompt - w->n_kept;
    fprintf(stderr, "total duration:       %.3f s\n", seconds(w->start_ns, w->end_ns));
    fprintf(stderr, "prompt eval count:    %d tokens", w->n_prompt);
    if (w->n_kept) fprintf(stderr, " (%d of them kept from before)", w->n_kept);
    fprintf(stderr, "\nprompt eval duration: %.3f s\n", prompt_s);
    if (prompt_s > 0) fprintf(stderr, "prompt eval rate:     %.1f tokens/s\n", fresh / prompt_s);
    fprintf(stderr, "eval count:           %d tokens\n", w->n_new);
    fprintf(stderr, "eval duration:        %.3f s\n", eval_s);
    if (eval_s > 0 && w->n_new > 1) fprintf(stderr, "eval rate:            %.1f tokens/s\n", (w->n_new - 1) / eval_s);
    if (w->n_guessed) fprintf(stderr, "guessed:              %d tokens, %d of them right\n", w->n_guessed, w->n_right);
}

static void print_rate(const struct mu_answer *w)
{
    int64_t first = w->first_ns ? w->first_ns : w->end_ns;
    double decode_s = seconds(first, w->end_ns);
    fprintf(stderr, "[%d prompt tokens in %.2f s; %d new tokens", w->n_prompt, seconds(w->start_ns, first), w->n_new);
    if (w->n_new > 1 && decode_s > 0) fprintf(stderr, ", %.1f a second", (w->n_new - 1) / decode_s);
    fputs("]\n", stderr);
}

static void print_after(const struct mu_talk *c, const struct mu_answer *w)
{
    int n_ctx = mu_talk_card(c)->n_ctx;
    if (c->opt.verbose)
        print_verbose(w);
    else if (!mu_talk_is_chat(c) && !c->opt.quiet && isatty(STDERR_FILENO))
        print_rate(w);
    if (w->resumed) fprintf(stderr, "[the gang was lost %d times on the way; nothing is missing]\n", w->resumed);
    if (w->full && mu_talk_is_chat(c) && n_ctx && w->n_prompt + w->n_new >= n_ctx)
        fprintf(stderr, "[the context of %d tokens is full%s]\n", n_ctx,
                c->at_prompt && c->opt.server ? ": '/clear'"
                : c->at_prompt                ? ": '/clear', or '/set parameter num_ctx N'"
                : c->opt.server               ? ", the answer ends here"
                                              : ", the answer ends here; --ctx N gives it more");
}

/* One try: asks, shows, and appends the answer. *any_out: text has arrived. */
static enum mu_status ask_once(struct mu_talk *c, struct mu_ask *ask, bool *any_out, struct mu_err *err)
{
    bool chat = !ask->text, piped = !isatty(STDOUT_FILENO);
    bool hide = c->opt.hide_thinking || (piped && c->opt.think < MU_THINK_ON);
    struct mu_reply_options how = {chat, c->opt.wordwrap, hide ? MU_THOUGHTS_HIDDEN : MU_THOUGHTS_SHOWN};
    struct mu_reply reply;
    struct mu_answer answer = {0};
    json_t *m = NULL;
    mu_reply_begin(&reply, &how);
    struct mu_listener listener = mu_reply_listener(&reply);
    enum mu_status st = c->backend.ops->ask(c->backend.self, ask, &listener, &answer, err), shown;
    *any_out = reply.answer.len || reply.thought.len;
    if (*any_out || !st) {
        shown = mu_reply_end(&reply, st ? NULL : err);
        if (!st) st = shown;
    }
    if (!st) print_after(c, &answer);
    if (chat && (*any_out || !st)) { /* also of a turn that failed on the way: what was seen was said */
        m = message("assistant", reply.answer.p ? reply.answer.p : "", st ? NULL : err);
        bool bad = !m;
        if (m && reply.thought.len) { /* templates know it by either name */
            bad |= json_object_set_new(m, "thinking", json_string(reply.thought.p)) != 0;
            bad |= json_object_set_new(m, "reasoning_content", json_string(reply.thought.p)) != 0;
        }
        bad |= json_array_append(c->messages, m) != 0;
        if (bad && !st) st = mu_fail(err, MU_ENOMEM, "no memory for the answer");
    }
    json_decref(m);
    mu_reply_free(&reply);
    return st;
}

/* The first message from i on that is the user's; their number: there is none. */
static size_t next_of_user(const struct mu_talk *c, size_t i)
{
    for (; i < json_array_size(c->messages); i++) {
        const char *role = json_string_value(json_object_get(json_array_get(c->messages, i), "role"));
        if (role && !strcmp(role, "user")) break;
    }
    return i;
}

/* Whether it fits without the first ones, as far as can be told without asking. */
static bool may_fit(struct mu_talk *c, const struct mu_ask *ask, size_t left_out)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_ask less = *ask;
    c->left_out = next_of_user(c, left_out);
    json_t *all = conversation(c, &err);
    less.messages = all;
    bool fits = !all || !c->backend.ops->fits || c->backend.ops->fits(c->backend.self, &less, &err) != MU_ELIMIT;
    json_decref(all);
    return fits;
}

/* Leaves out the oldest messages up to one of the user, as few as it takes; false: the last one is all there is. One more
 * is mostly enough; of a long conversation in a small context thousands are not, so what is tried doubles, and where that
 * was too much the middle is. */
static bool leave_out_more(struct mu_talk *c, const struct mu_ask *ask)
{
    size_t low = c->left_out + 1, last = json_array_size(c->messages) - 1, high = low;
    if (low > last) return false;
    for (size_t step = 1; high < last && !mu_interrupted && !may_fit(c, ask, high); step *= 2) {
        low = high + 1;
        high = step < last - high ? high + step : last;
    }
    while (low < high && !mu_interrupted) {
        size_t middle = low + (high - low) / 2;
        if (may_fit(c, ask, middle))
            high = middle;
        else
            low = middle + 1;
    }
    c->left_out = next_of_user(c, high);
    return !mu_interrupted;
}

static enum mu_status chat_turn(struct mu_talk *c, struct mu_ask *ask, const char *text, struct mu_err *err)
{
    size_t before = json_array_size(c->messages), had = c->left_out;
    json_t *vars = variables(c->opt.think), *all = NULL;
    bool any = false;
    enum mu_status st;
    if (json_array_append_new(c->messages, message("user", text, err))) {
        json_decref(vars);
        return err->code ? err->code : mu_fail(err, MU_ENOMEM, "no memory for a message");
    }
    ask->variables = vars;
    do {
        json_decref(all);
        ask->messages = all = conversation(c, err);
        st = all ? ask_once(c, ask, &any, err) : err->code;
    } while (st == MU_ELIMIT && !any && !mu_interrupted && leave_out_more(c, ask));
    if (st && !any) { /* as if it had not been said */
        c->left_out = had;
        while (json_array_size(c->messages) > before) json_array_remove(c->messages, before);
    } else if (c->left_out > had) {
        fprintf(stderr, "[the conversation is longer than the context: its first %zu messages are left out]\n",
                c->left_out);
    }
    json_decref(all);
    json_decref(vars);
    return st;
}

enum mu_status mu_talk_turn(struct mu_talk *c, const char *text, struct mu_err *err)
{
    struct mu_params params;
    bool any;
    enum mu_status st = mu_talk_params(c, &params, err);
    if (st) return st;
    struct mu_ask ask = {.params = &params, .ignore_end = c->opt.ignore_end, .special = c->opt.special};
    if (c->opt.constraint.kind != MU_CONSTRAINT_NONE) ask.constraint = &c->opt.constraint;
    if (mu_talk_is_chat(c)) {
        st = chat_turn(c, &ask, text, err);
    } else {
        ask.text = text;
        st = ask_once(c, &ask, &any, err);
    }
    mu_params_free(&params);
    return st;
}

/* ---- open, switch, close ---- */

static enum mu_status backend_open(struct mu_talk *c, struct mu_err *err)
{
    return c->opt.server
               ? mu_backend_server(c->opt.server, c->opt.local.model, c->opt.adapter, c->opt.priority, &c->backend, err)
               : mu_backend_local(&c->opt.local, &c->backend, err);
}

static void backend_close(struct mu_talk *c)
{
    if (c->backend.ops) c->backend.ops->close(c->backend.self);
    c->backend = (struct mu_backend){0};
}

enum mu_status mu_talk_open(struct mu_talk *c, struct mu_err *err)
{
    enum mu_status st = backend_open(c, err);
    return st ? st : mu_talk_clear(c, err);
}

enum mu_status mu_talk_switch(struct mu_talk *c, const char *model, struct mu_err *err)
{
    struct mu_local_options former = c->opt.local;
    int n_ctx = mu_talk_card(c)->n_ctx;
    if (c->opt.params.num_ctx == n_ctx) former.n_ctx = n_ctx; /* as /set has made it */
    struct mu_err again = MU_ERR_INIT;
    char *name = mu_strdup(model);
    if (!name) return mu_fail(err, MU_ENOMEM, "no memory for a name");
    if (!c->opt.server) { /* a name that was mistyped costs no loading */
        struct mu_store_model *found;
        enum mu_status st = mu_store_find(name, &found, err);
        if (st != MU_OK) {
            mu_free(name);
            return st;
        }
        mu_store_model_free(found);
    }
    backend_close(c); /* two models may not fit beside each other */
    c->opt.local.model = name;
    c->opt.local.template_file = NULL; /* it was meant for the former one, and so was what follows */
    c->opt.local.draft = NULL;
    c->opt.local.lora = (struct mu_adapter_spec){0};
    c->opt.local.n_ctx = 0;
    enum mu_status st = backend_open(c, err);
    if (!st) st = mu_talk_clear(c, err);
    if (!st) {
        mu_free(c->model);
        c->model = name;
        mu_params_forget_context(&c->opt.params);
        return MU_OK;
    }
    backend_close(c);
    c->opt.local = former;
    mu_free(name);
    if (backend_open(c, &again)) {
        char why[MU_ERR_TEXT];
        snprintf(why, sizeof why, "%.200s", err->text);
        return mu_fail(err, MU_EINTERNAL, "%s; and '%s' cannot be opened again: %.200s", why, former.model, again.text);
    }
    return st;
}

void mu_talk_close(struct mu_talk *c)
{
    backend_close(c);
    json_decref(c->messages);
    mu_params_free(&c->opt.params);
    mu_free(c->system);
    mu_free(c->model);
}
