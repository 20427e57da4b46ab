/* Conversations to prompts. The template is parsed once, at the start; a server whose model has none, or one that does
 * not parse, serves text and ids, and tells those who send a conversation why not. */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "coordinator/hub.h"
#include "model/hf_json.h"
#include "model/utf8.h"

/* The template's text where a reply can carry it; a NUL ends it, and no template that parses needs one. */
static const char *source_of(const struct mu_chat_template *t)
{
    const char *s = mu_chat_template_source(t);
    uint32_t c;
    for (size_t at = 0, n = strlen(s); at < n;) {
        int step = mu_utf8_next(s + at, n - at, &c);
        if (!step) return NULL;
        at += (size_t)step;
    }
    return s;
}

static enum mu_status template_open(struct mu_hub *h, struct mu_err *err)
{
    struct mu_chat *c = &h->chat;
    struct mu_err why = MU_ERR_INIT;
    enum mu_status st;
    c->bos = mu_chat_token_text(h->tok, mu_tokenizer_bos(h->tok));
    c->eos = mu_chat_token_text(h->tok, mu_tokenizer_eos(h->tok));
    if (!c->bos || !c->eos) return mu_fail(err, MU_ENOMEM, "no memory for the texts of special tokens");
    if (h->opt->template_path) return mu_chat_template_read(h->opt->template_path, &c->template, err);
    const char *stored = h->opt->template_text;
    st = stored ? mu_chat_template_parse(stored, strlen(stored), &c->template, &why)
                : mu_chat_template_of_model(h->model->gguf, &c->template, &why);
    if (st == MU_ENOMEM) return mu_fail(err, st, "%s", why.text);
    if (!st) return MU_OK;
    snprintf(c->why_not, sizeof c->why_not, "%.400s; serve it with --template FILE.jinja", why.text);
    if (st != MU_ENOENT) mu_warn("chat", "conversations are refused: %s", c->why_not);
    return MU_OK;
}

enum mu_status mu_chat_open(struct mu_hub *h, struct mu_err *err)
{
    enum mu_status st = template_open(h, err);
    if (!st && h->chat.template) h->chat.source = source_of(h->chat.template);
    return st;
}

void mu_chat_close(struct mu_chat *c)
{
    mu_chat_template_free(c->template);
    mu_free(c->bos);
    mu_free(c->eos);
}

/* JSON of a request; empty: NULL. */
static enum mu_status load(const char *text, const char *what, json_t **out, struct mu_err *err)
{
    json_error_t at;
    bool no_memory;
    if (!*text) return MU_OK;
    *out = mu_json_load(text, strlen(text), JSON_ALLOW_NUL, &at, &no_memory);
    if (*out) return MU_OK;
    if (no_memory) return mu_fail(err, MU_ENOMEM, "no memory for %s", what);
    return mu_fail(err, MU_EINVAL, "%s is no JSON: line %d, column %d: %s", what, at.line, at.column, at.text);
}

enum mu_status mu_chat_prompt(const struct mu_hub *h, const Muster__V1__Chat *chat, char **text_out, size_t *len_out,
                              bool *bos_out, struct mu_err *err)
{
    const struct mu_chat *c = &h->chat;
    json_t *messages = NULL, *tools = NULL, *variables = NULL;
    enum mu_status st;
    if (!c->template) return mu_fail(err, MU_EUNSUPPORTED, "%s", c->why_not);
    MU_TRY(st, load(chat->messages_json, "messages_json", &messages, err), done);
    MU_TRY(st, load(chat->tools_json, "tools_json", &tools, err), done);
    MU_TRY(st, load(chat->variables_json, "variables_json", &variables, err), done);
    struct mu_chat_input in = {
        .messages = messages,
        .tools = tools,
        .variables = variables,
        .bos_token = c->bos,
        .eos_token = c->eos,
        .add_generation_prompt = !chat->no_generation_prompt && !chat->continue_final,
        .continue_final_message = chat->continue_final,
        .now_s = mu_chat_now_s(),
    };
    MU_TRY(st, mu_chat_template_render(c->template, &in, text_out, len_out, err), done);
    *bos_out = *c->bos && !strncmp(*text_out, c->bos, strlen(c->bos));
done:
    json_decref(messages);
    json_decref(tools);
    json_decref(variables);
    return st;
}
