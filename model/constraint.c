/* The calls that others use: compiling by kind, and a constraint's life. */
#include "model/constraint.h"

#include <string.h>

#include "base/alloc.h"
#include "model/constraint_part.h"

enum mu_status mu_grammar_compile(enum mu_constraint_kind kind, const char *text, size_t len_bytes,
                                  struct mu_grammar **g_out, struct mu_err *err)
{
    struct mu_gb b;
    if (len_bytes > MU_CONSTRAINT_TEXT_MAX) {
        return mu_fail(err, MU_ELIMIT, "a schema, expression or grammar of %zu bytes is too long (limit %d)", len_bytes,
                       MU_CONSTRAINT_TEXT_MAX);
    }
    if (mu_gb_open(&b, err) != MU_OK) return b.st;
    switch (kind) {
    case MU_CONSTRAINT_JSON: {
        struct mu_json_rules j;
        mu_json_rules_open(&b, &j);
        b.root = j.object;
        break;
    }
    case MU_CONSTRAINT_JSON_SCHEMA: mu_json_schema_parse(&b, text, len_bytes); break;
    case MU_CONSTRAINT_REGEX:
        b.root = mu_gb_rule(&b, "root");
        mu_gb_define(&b, b.root, mu_regex_parse(&b, text, len_bytes, true, mu_set_ex));
        break;
    case MU_CONSTRAINT_GBNF: mu_gbnf_parse(&b, text, len_bytes); break;
    default: mu_gb_fail(&b, MU_EINVAL, "constraint kind %d is not known", (int)kind);
    }
    if (b.st == MU_OK) mu_gb_build(&b, g_out);
    enum mu_status st = b.st;
    mu_gb_close(&b);
    return st;
}

void mu_grammar_free(struct mu_grammar *g)
{
    if (!g) return;
    mu_dfa_free(&g->dfa);
    mu_free(g->start);
    mu_free(g->rank);
    mu_free(g);
}

size_t mu_grammar_size(const struct mu_grammar *g, size_t *bytes_out)
{
    if (bytes_out) *bytes_out = g->bytes;
    return g->dfa.n_node - 2;
}

/* Before each use: errors of the states go to this caller. */
static void begin(struct mu_masker *m, struct mu_err *err)
{
    m->states.st = MU_OK;
    m->states.err = err;
    m->states.n_work = 0;
}

enum mu_status mu_constraint_create(struct mu_masker *m, struct mu_constraint **c_out, struct mu_err *err)
{
    struct mu_constraint *c = mu_calloc(1, sizeof *c);
    if (!c) return mu_fail(err, MU_ENOMEM, "no memory for a constraint");
    begin(m, err);
    c->m = m;
    c->state = mu_states_start(&m->states);
    if (c->state == MU_STATE_FAIL) {
        mu_free(c);
        return m->states.st;
    }
    c->next = m->constraints;
    if (c->next) c->next->prev = c;
    m->constraints = c;
    *c_out = c;
    return MU_OK;
}

void mu_constraint_free(struct mu_constraint *c)
{
    if (!c) return;
    if (c->next) c->next->prev = c->prev;
    if (c->prev) c->prev->next = c->next;
    if (c->m->constraints == c) c->m->constraints = c->next;
    mu_free(c);
}

enum mu_status mu_constraint_accept(struct mu_constraint *c, int id, struct mu_err *err)
{
    struct mu_masker *m = c->m;
    enum mu_status st = mu_masker_collect(m, err);
    if (st != MU_OK) return st;
    begin(m, err);
    if (mu_tokenizer_is_end(m->v->tok, id)) {
        if (!c->ended && !mu_constraint_may_end(c)) c->state = MU_STATE_DEAD;
        c->ended = c->state != MU_STATE_DEAD;
        return MU_OK;
    }
    struct mu_str piece = mu_tokenizer_piece(m->v->tok, id, false);
    uint32_t state = c->ended || !piece.len ? MU_STATE_DEAD : c->state;
    for (size_t i = 0; i < piece.len && state != MU_STATE_DEAD; i++) {
        state = mu_states_next(&m->states, state, (uint8_t)piece.p[i]);
        if (state == MU_STATE_FAIL) return m->states.st;
    }
    c->state = state;
    c->ended = false;
    return MU_OK;
}

enum mu_status mu_constraint_mask(struct mu_constraint *c, uint32_t *words, struct mu_err *err)
{
    struct mu_masker *m = c->m;
    enum mu_status st = mu_masker_collect(m, err);
    if (st != MU_OK) return st;
    begin(m, err);
    if (!c->ended && c->state != MU_STATE_DEAD) {
        st = mu_masker_mask(m, c->state, words, err);
        mu_masker_collect(m, NULL); /* else each of many forms holds what its largest mask took */
        return st;
    }
    memset(words, 0, m->n_word * sizeof *words);
    for (uint32_t i = 0; c->ended && i < m->v->n_end; i++) { words[m->v->ends[i] / 32] |= 1u << (m->v->ends[i] % 32); }
    return MU_OK;
}

bool mu_constraint_is_dead(const struct mu_constraint *c)
{
    return c->state == MU_STATE_DEAD;
}

bool mu_constraint_may_end(const struct mu_constraint *c)
{
    return c->m->states.states[c->state].accepts;
}
