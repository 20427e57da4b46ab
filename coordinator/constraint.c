/* Constraints of requests: see constraint.h. The texts are a ring: the oldest makes room. */
#include "coordinator/constraint.h"

#include <string.h>

#include "base/alloc.h"

enum { CHECKS = 64 };

struct mu_constraint_checks {
    struct {
        enum mu_constraint_kind kind;
        char *text;
        size_t len;
        enum mu_status st; /* what compiling it came to, */
        char *why;         /* and the sentence; NULL: it compiled */
    } known[CHECKS];
    unsigned next;
};

bool mu_request_constraint(const Muster__V1__GenerateRequest *q, enum mu_constraint_kind *kind_out,
                           const char **text_out)
{
    switch (q->constraint_case) {
    case MUSTER__V1__GENERATE_REQUEST__CONSTRAINT_JSON_SCHEMA:
        *kind_out = MU_CONSTRAINT_JSON_SCHEMA;
        *text_out = q->json_schema;
        return true;
    case MUSTER__V1__GENERATE_REQUEST__CONSTRAINT_REGEX:
        *kind_out = MU_CONSTRAINT_REGEX;
        *text_out = q->regex;
        return true;
    case MUSTER__V1__GENERATE_REQUEST__CONSTRAINT_GRAMMAR:
        *kind_out = MU_CONSTRAINT_GBNF;
        *text_out = q->grammar;
        return true;
    case MUSTER__V1__GENERATE_REQUEST__CONSTRAINT_JSON:
        *kind_out = MU_CONSTRAINT_JSON;
        *text_out = "";
        return q->json;
    default: return false;
    }
}

void mu_submit_constraint(const Muster__V1__GenerateRequest *q, Muster__Internal__V1__EngineSubmit *s)
{
    enum mu_constraint_kind kind;
    const char *text;
    if (!mu_request_constraint(q, &kind, &text)) return;
    switch (kind) {
    case MU_CONSTRAINT_JSON:
        s->constraint_case = MUSTER__INTERNAL__V1__ENGINE_SUBMIT__CONSTRAINT_JSON;
        s->json = true;
        break;
    case MU_CONSTRAINT_JSON_SCHEMA:
        s->constraint_case = MUSTER__INTERNAL__V1__ENGINE_SUBMIT__CONSTRAINT_JSON_SCHEMA;
        s->json_schema = (char *)text;
        break;
    case MU_CONSTRAINT_REGEX:
        s->constraint_case = MUSTER__INTERNAL__V1__ENGINE_SUBMIT__CONSTRAINT_REGEX;
        s->regex = (char *)text;
        break;
    case MU_CONSTRAINT_GBNF:
        s->constraint_case = MUSTER__INTERNAL__V1__ENGINE_SUBMIT__CONSTRAINT_GRAMMAR;
        s->grammar = (char *)text;
        break;
    }
}

/* Where it is known; CHECKS: it is not. */
static int find(const struct mu_constraint_checks *c, enum mu_constraint_kind kind, const char *text, size_t len)
{
    int i = c ? 0 : CHECKS;
    while (i < CHECKS && !(c->known[i].text && c->known[i].kind == kind && c->known[i].len == len &&
                           !memcmp(c->known[i].text, text, len)))
        i++;
    return i;
}

/* Without memory it is compiled again next time. */
static void remember(struct mu_constraint_checks **checks, enum mu_constraint_kind kind, const char *text, size_t len,
                     enum mu_status st, const struct mu_err *err)
{
    if (!*checks) *checks = mu_calloc(1, sizeof **checks);
    struct mu_constraint_checks *c = *checks;
    char *copy = c ? mu_strndup(text, len) : NULL, *why = copy && st ? mu_strdup(err->text) : NULL;
    if (!copy || (st && !why)) {
        mu_free(copy);
        return;
    }
    unsigned i = c->next++ % CHECKS;
    mu_free(c->known[i].text);
    mu_free(c->known[i].why);
    c->known[i].kind = kind;
    c->known[i].text = copy;
    c->known[i].len = len;
    c->known[i].st = st;
    c->known[i].why = why;
}

enum mu_status mu_constraint_check(struct mu_constraint_checks **checks, const Muster__V1__GenerateRequest *q,
                                   struct mu_err *err)
{
    enum mu_constraint_kind kind;
    const char *text;
    struct mu_grammar *g = NULL;
    if (!mu_request_constraint(q, &kind, &text)) return MU_OK;
    size_t len = strlen(text);
    int at = find(*checks, kind, text, len);
    if (at < CHECKS) {
        enum mu_status st = (*checks)->known[at].st;
        return st ? mu_fail(err, st, "%s", (*checks)->known[at].why) : MU_OK;
    }
    enum mu_status st = mu_grammar_compile(kind, text, len, &g, err);
    mu_grammar_free(g);
    if (st != MU_ENOMEM) remember(checks, kind, text, len, st, err);
    return st;
}

void mu_constraint_checks_free(struct mu_constraint_checks *checks)
{
    for (int i = 0; checks && i < CHECKS; i++) {
        mu_free(checks->known[i].text);
        mu_free(checks->known[i].why);
    }
    mu_free(checks);
}
