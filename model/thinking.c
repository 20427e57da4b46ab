/* A machine over bytes. In each state some marks mean something; a byte is held back while what is held could become
 * one of them.
 *
 *   START ──<think>──► THOUGHT ──</think>──► ANSWER          other text ──► ANSWER
 *     └──<|channel|>──► HEADER ──<|message|>──► BODY ──<|end|> …──► GAP ──<|channel|>──► HEADER
 */
#include "model/thinking.h"

#include <ctype.h>
#include <string.h>

struct mu_think_marks {
    const char *open, *close;
};

static const struct mu_think_marks pairs[] = {{"<think>", "</think>"},
                                              {"[THINK]", "[/THINK]"},
                                              {"<|START_THINKING|>", "<|END_THINKING|>"},
                                              {"<|channel>thought", "<channel|>"}};
enum { N_PAIR = (int)(sizeof pairs / sizeof *pairs) };

enum state { START, THOUGHT, ANSWER, HEADER, BODY, GAP, N_STATE };

/* gpt-oss's channels: which marks mean something in a state, and what comes then. */
static const struct channel_mark {
    const char *text;
    unsigned in; /* set of states */
    enum state then;
} channel_marks[] = {{"<|channel|>", 1 << START | 1 << BODY | 1 << GAP, HEADER},
                     {"<|message|>", 1 << HEADER | 1 << GAP, BODY},
                     {"<|end|>", 1 << BODY, GAP},
                     {"<|start|>", 1 << BODY, GAP},
                     {"<|call|>", 1 << BODY, GAP},
                     {"<|return|>", 1 << BODY, GAP}};
enum { N_CHANNEL_MARK = (int)(sizeof channel_marks / sizeof *channel_marks) };

static bool same(const char *mark, const char *text, size_t len)
{
    return strlen(mark) == len && !memcmp(mark, text, len);
}

bool mu_thinking_is_mark(const char *text, size_t len)
{
    for (int i = 0; i < N_PAIR; i++)
        if (same(pairs[i].open, text, len) || same(pairs[i].close, text, len)) return true;
    for (int i = 0; i < N_CHANNEL_MARK; i++)
        if (same(channel_marks[i].text, text, len)) return true;
    /* Gemma's marks are tokens of which the word `thought` is not a part */
    return same("<|channel>", text, len);
}

void mu_thinking_init(struct mu_thinking *t,
                      enum mu_status (*span)(void *ctx, enum mu_span kind, const char *text, size_t len,
                                             struct mu_err *err),
                      void *ctx)
{
    *t = (struct mu_thinking){.span = span, .ctx = ctx, .state = START};
}

void mu_thinking_prompt(struct mu_thinking *t, const char *prompt, size_t len)
{
    t->prompt_known = true;
    while (len && isspace((unsigned char)prompt[len - 1])) len--;
    for (int i = 0; i < N_PAIR; i++) {
        size_t n = strlen(pairs[i].open);
        if (n > len || memcmp(prompt + len - n, pairs[i].open, n)) continue;
        t->state = THOUGHT;
        t->kind = MU_SPAN_THOUGHT;
        t->open = &pairs[i];
        t->trim = true;
    }
}

/* ---- text ---- */

static enum mu_status out_flush(struct mu_thinking *t, struct mu_err *err)
{
    size_t n = t->n_out;
    t->n_out = 0;
    return n ? t->span(t->ctx, t->kind, t->out, n, err) : MU_OK;
}

static enum mu_status out_byte(struct mu_thinking *t, char c, struct mu_err *err)
{
    if (t->trim && isspace((unsigned char)c)) return MU_OK;
    t->trim = false;
    t->out[t->n_out++] = c;
    return t->n_out == sizeof t->out ? out_flush(t, err) : MU_OK;
}

/* The reply begins with an answer. */
static enum mu_status begin_answer(struct mu_thinking *t, struct mu_err *err)
{
    enum mu_status st = MU_OK;
    t->state = ANSWER;
    for (size_t i = 0; !st && i < t->n_blank; i++) st = out_byte(t, t->blank[i], err);
    t->n_blank = 0;
    return st;
}

static enum mu_status text_byte(struct mu_thinking *t, char c, struct mu_err *err)
{
    enum mu_status st = MU_OK;
    switch (t->state) {
    case START:
        if (isspace((unsigned char)c) && t->n_blank < sizeof t->blank) {
            t->blank[t->n_blank++] = c;
            return MU_OK;
        }
        st = begin_answer(t, err);
        return st ? st : out_byte(t, c, err);
    case HEADER:
        if (t->n_name < sizeof t->name) t->name[t->n_name++] = c;
        return MU_OK;
    case GAP: return MU_OK;
    default: return out_byte(t, c, err);
    }
}

/* ---- marks ---- */

static enum mu_status thought_begins(struct mu_thinking *t, const struct mu_think_marks *m)
{
    t->state = THOUGHT;
    t->kind = MU_SPAN_THOUGHT;
    t->open = m;
    t->trim = true;
    t->n_blank = 0;
    return MU_OK;
}

static enum mu_status thought_ends(struct mu_thinking *t, struct mu_err *err)
{
    enum mu_status st = out_flush(t, err);
    if (!st && t->state == ANSWER) st = t->span(t->ctx, MU_SPAN_WAS_THOUGHT, "", 0, err);
    t->state = ANSWER;
    t->kind = MU_SPAN_ANSWER;
    t->trim = t->was_thought = true;
    return st;
}

static enum mu_status channel_goes(struct mu_thinking *t, enum state then, struct mu_err *err)
{
    enum mu_status st = out_flush(t, err);
    if (then == HEADER) t->n_name = t->n_blank = 0;
    if (then == BODY) {
        bool final = t->state == GAP || (t->n_name >= 5 && !memcmp(t->name, "final", 5));
        t->kind = final ? MU_SPAN_ANSWER : MU_SPAN_THOUGHT;
        t->trim = true;
    }
    t->state = then;
    return st;
}

enum match { NONE, PREFIX, WHOLE };

static enum match match(const struct mu_thinking *t, const char *mark)
{
    size_t n = strlen(mark);
    if (t->n_held > n || memcmp(mark, t->held, t->n_held)) return NONE;
    return t->n_held == n ? WHOLE : PREFIX;
}

/* What the held bytes are; a whole mark does its work. */
static enum match held_look(struct mu_thinking *t, enum mu_status *st_out, struct mu_err *err)
{
    bool prefix = false;
    bool orphan = (t->state == START || t->state == ANSWER) && !t->prompt_known && !t->was_thought;
    for (int i = 0; i < N_PAIR; i++) {
        bool opens = t->state == START, closes = orphan || (t->state == THOUGHT && t->open == &pairs[i]);
        enum match open = opens ? match(t, pairs[i].open) : NONE, close = closes ? match(t, pairs[i].close) : NONE;
        if (open == WHOLE) *st_out = thought_begins(t, &pairs[i]);
        if (close == WHOLE) *st_out = thought_ends(t, err);
        if (open == WHOLE || close == WHOLE) return WHOLE;
        prefix |= open == PREFIX || close == PREFIX;
    }
    for (int i = 0; i < N_CHANNEL_MARK; i++) {
        enum match m = channel_marks[i].in >> t->state & 1 ? match(t, channel_marks[i].text) : NONE;
        if (m == WHOLE) *st_out = channel_goes(t, channel_marks[i].then, err);
        if (m == WHOLE) return WHOLE;
        prefix |= m == PREFIX;
    }
    return prefix ? PREFIX : NONE;
}

enum mu_status mu_thinking_put(struct mu_thinking *t, const char *text, size_t len, struct mu_err *err)
{
    enum mu_status st = MU_OK;
    for (size_t i = 0; !st && i < len; i++) {
        t->held[t->n_held++] = text[i];
        while (!st && t->n_held) {
            enum match m = held_look(t, &st, err);
            if (m == PREFIX) break;
            if (m == WHOLE) {
                t->n_held = 0;
                break;
            }
            char first = t->held[0];
            memmove(t->held, t->held + 1, --t->n_held);
            st = text_byte(t, first, err);
        }
    }
    return st ? st : out_flush(t, err);
}

enum mu_status mu_thinking_finish(struct mu_thinking *t, struct mu_err *err)
{
    enum mu_status st = MU_OK;
    for (size_t i = 0; !st && i < t->n_held; i++) st = text_byte(t, t->held[i], err);
    if (!st && t->state == START) st = begin_answer(t, err); /* of white space alone */
    t->n_held = 0;
    return st ? st : out_flush(t, err);
}
