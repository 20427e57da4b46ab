/* Chat templates: the Jinja that model files carry (tokenizer.chat_template), parsed once and rendered for a
 * conversation. The set-up is the Hugging Face library's: trim_blocks, lstrip_blocks, break and continue, a transparent
 * generation block, tojson without escapes, raise_exception, strftime_now, continue_final_message.
 *
 * A template is input from strangers. It can compute, but not reach anything, and what it may use is bounded: source
 * length, nesting, evaluation steps, memory, output (the constants below). A template over a bound ends in an error;
 * no deadline is needed.
 *
 * Lifetime: a parsed template owns a copy of its source and is read-only afterwards. Threads: any number may render
 * the same template at once, as long as the json_t they pass are not changed meanwhile. Both calls take less than half a
 * MiB of stack (a few without optimisation and with sanitizers). */
#ifndef MU_MODEL_CHAT_TEMPLATE_H
#define MU_MODEL_CHAT_TEMPLATE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "model/tokenizer.h"

enum {
    MU_TEMPLATE_MAX_BYTES = 256 << 10, /* of source */
    MU_TEMPLATE_MAX_OUTPUT = 64 << 20, /* bytes of a rendering */
    /* expressions and statements evaluated, items and 64 bytes touched: so many, and more for each message, because some
     * models' templates look at all messages for each; never more than the most, some seconds' work */
    MU_TEMPLATE_MAX_STEPS = 10 * 1000 * 1000,
    MU_TEMPLATE_STEPS_PER_MESSAGE = 10 * 1000,
    MU_TEMPLATE_MOST_STEPS = 100 * 1000 * 1000
};

struct mu_chat_template;

/* Parses; the source is copied. MU_EFORMAT names line and what was expected; MU_ELIMIT: too long or nested too deep. */
enum mu_status mu_chat_template_parse(const char *src, size_t len, struct mu_chat_template **out, struct mu_err *err);
/* A file of Jinja source; errors name it. */
enum mu_status mu_chat_template_read(const char *path, struct mu_chat_template **out, struct mu_err *err);
/* What a model file says under tokenizer.chat_template. MU_ENOENT: nothing. */
enum mu_status mu_chat_template_of_model(const struct mu_gguf *g, struct mu_chat_template **out, struct mu_err *err);
void mu_chat_template_free(struct mu_chat_template *t); /* NULL is fine */
/* The text that was parsed, up to its first NUL. */
const char *mu_chat_template_source(const struct mu_chat_template *t);

struct mu_chat_input {
    const json_t *messages;  /* array of {role, content, …}, keys as in OpenAI's API */
    const json_t *tools;     /* array or NULL (none) */
    const json_t *documents; /* array or NULL */
    const json_t *variables; /* object of further variables (chat_template_kwargs), or NULL; they win over the rest */
    const char *bos_token, *eos_token; /* "" or NULL where none */
    bool add_generation_prompt;
    bool continue_final_message; /* the rendering ends with the last message's content, to be gone on with */
    int64_t now_s;     /* strftime_now's clock: seconds since 1970, shifted by the caller to the zone that it wants */
    int64_t max_steps; /* 0: as above; less for tests that must be quick */
};

/* MU_EINVAL: the template raised an exception (its message is the text of err, after "the chat template refuses: "), or
 * `in` does not fit; MU_ELIMIT: steps, depth, memory, output; MU_EFORMAT: a runtime error, with the line. *text_out is
 * NUL-terminated beyond *len_out, valid UTF-8 where template and input were, and mu_free'd by the caller. */
enum mu_status mu_chat_template_render(const struct mu_chat_template *t, const struct mu_chat_input *in,
                                       char **text_out, size_t *len_out, struct mu_err *err);

/* The text of a special token, as templates want it; "" for id -1. NULL: out of memory. Freed with mu_free. */
char *mu_chat_token_text(const struct mu_tokenizer *tok, int id);
/* Now, as strftime_now shows it: in this machine's time zone. */
int64_t mu_chat_now_s(void);

#endif
