/* For tests of constrained output: texts against a grammar, byte by byte. */
#ifndef MU_TESTS_MODEL_GRAMMAR_UTIL_H
#define MU_TESTS_MODEL_GRAMMAR_UTIL_H

#include "model/constraint_part.h"
#include "tests/model/tok_fixture.h"

static inline struct mu_grammar *compile(enum mu_constraint_kind kind, const char *text)
{
    struct mu_grammar *g = NULL;
    struct mu_err err = MU_ERR_INIT;
    if (mu_grammar_compile(kind, text, strlen(text), &g, &err) != MU_OK) fail_msg("%s\n%s", text, err.text);
    return g;
}

enum reading { DEAD, GOES_ON, WHOLE };

/* Whether the text is one of the grammar's, or begins one. */
static inline enum reading read_text(const struct mu_grammar *g, const char *text, size_t n)
{
    struct mu_states s;
    struct mu_err err = MU_ERR_INIT;
    assert_int_equal(mu_states_open(&s, g, &err), MU_OK);
    uint32_t state = mu_states_start(&s);
    for (size_t i = 0; i < n && state != MU_STATE_DEAD; i++) {
        state = mu_states_next(&s, state, (uint8_t)text[i]);
        if (state == MU_STATE_FAIL) fail_msg("%s", err.text);
    }
    enum reading r = state == MU_STATE_DEAD ? DEAD : s.states[state].accepts ? WHOLE : GOES_ON;
    mu_states_close(&s);
    return r;
}

#endif
