/* What a model thinks and what it answers, told apart in its text as it streams.
 *
 *   <think>…</think>                                    Qwen 3, DeepSeek R1, SmolLM 3, GLM …
 *   [THINK]…[/THINK]                                    Magistral
 *   <|START_THINKING|>…<|END_THINKING|>                 Command
 *   <|channel>thought …<channel|>                       Gemma 4
 *   <|channel|>analysis<|message|>…<|end|>              gpt-oss: every channel but `final` is thought
 *     <|start|>assistant<|channel|>final<|message|>…
 *
 * A thought begins a reply; the same marks later on are text. Some templates open it in the prompt itself: then the
 * reply begins inside it (mu_thinking_prompt finds that out). Where the prompt is not known, a </think> that nothing
 * opened says that all before it was thought.
 *
 * Marks are text here. Some of them are control tokens of their vocabularies, which are not shown otherwise: whoever
 * turns ids into text lets those through that mu_thinking_is_mark knows.
 *
 * Memory: none but the struct. Threads: one at a time. */
#ifndef MU_MODEL_THINKING_H
#define MU_MODEL_THINKING_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

enum mu_span {
    MU_SPAN_ANSWER,
    MU_SPAN_THOUGHT,
    MU_SPAN_WAS_THOUGHT /* no text: the answer so far was a thought */
};

enum { MU_MARK_BYTES = 24 }; /* no mark is longer */

struct mu_think_marks;

struct mu_thinking {
    enum mu_status (*span)(void *ctx, enum mu_span kind, const char *text, size_t len, struct mu_err *err);
    void *ctx;
    int state;
    enum mu_span kind;                 /* of the text that comes */
    bool trim;                         /* white space that comes first is left out */
    bool prompt_known, was_thought;    /* was_thought: there was one; marks are text from here on */
    const struct mu_think_marks *open; /* of the thought that is open */
    char held[MU_MARK_BYTES];          /* could become a mark */
    char blank[MU_MARK_BYTES];         /* white space that a reply began with */
    char name[MU_MARK_BYTES];          /* of a channel */
    char out[256];                     /* text of `kind` to be told */
    size_t n_held, n_blank, n_name, n_out;
};

void mu_thinking_init(struct mu_thinking *t,
                      enum mu_status (*span)(void *ctx, enum mu_span kind, const char *text, size_t len,
                                             struct mu_err *err),
                      void *ctx);
/* The rendered prompt, where it is known, before any text. */
void mu_thinking_prompt(struct mu_thinking *t, const char *prompt, size_t len);
/* Any bytes, cut anywhere. White space before and after a thought is nobody's. Errors are span's. */
enum mu_status mu_thinking_put(struct mu_thinking *t, const char *text, size_t len, struct mu_err *err);
/* What was held back because it could have become a mark. */
enum mu_status mu_thinking_finish(struct mu_thinking *t, struct mu_err *err);

bool mu_thinking_is_mark(const char *text, size_t len);

#endif
