/* The form of a completion on its way through the hub: refused before it waits, or told to each gang that runs it. */
#include "hub_fixture.h"

#include <stdlib.h>

#include "base/alloc.h"
#include "coordinator/constraint.h"

static struct client *ask_form(struct world *w, int form, const char *text)
{
    Muster__V1__GenerateRequest q = MUSTER__V1__GENERATE_REQUEST__INIT;
    Muster__V1__Ids ids = MUSTER__V1__IDS__INIT;
    int32_t prompt[1] = {B('p')};
    ids.n_id = 1;
    ids.id = prompt;
    q.prompt_case = MUSTER__V1__GENERATE_REQUEST__PROMPT_IDS;
    q.ids = &ids;
    q.max_tokens = 5;
    q.constraint_case = (Muster__V1__GenerateRequest__ConstraintCase)form;
    switch (form) {
    case MUSTER__V1__GENERATE_REQUEST__CONSTRAINT_JSON_SCHEMA: q.json_schema = (char *)text; break;
    case MUSTER__V1__GENERATE_REQUEST__CONSTRAINT_REGEX: q.regex = (char *)text; break;
    case MUSTER__V1__GENERATE_REQUEST__CONSTRAINT_GRAMMAR: q.grammar = (char *)text; break;
    case MUSTER__V1__GENERATE_REQUEST__CONSTRAINT_JSON: q.json = *text; break;
    }
    q.ignore_end = *text == '!';
    return client_start(w->channel, &q, MU_FOREVER, true);
}

static void expect_refused(struct world *w, int form, const char *text, const char *why)
{
    struct client *c = ask_form(w, form, text);
    client_wait(c, 10000);
    if (c->code != MU_RPC_INVALID_ARGUMENT || !strstr(c->status, why))
        fail_msg("'%s': %d '%s', not '%s'", text, (int)c->code, c->status, why);
    client_free(c);
}

/* What cannot be honoured is answered before it waits; the rest goes to the gang, and after a death again. */
static void test_constraints(void **state)
{
    (void)state;
    enum {
        SCHEMA = MUSTER__V1__GENERATE_REQUEST__CONSTRAINT_JSON_SCHEMA,
        REGEX = MUSTER__V1__GENERATE_REQUEST__CONSTRAINT_REGEX,
        GRAMMAR = MUSTER__V1__GENERATE_REQUEST__CONSTRAINT_GRAMMAR,
        JSON = MUSTER__V1__GENERATE_REQUEST__CONSTRAINT_JSON
    };
    static const struct {
        int form;
        const char *text;
    } good[] = {
        {SCHEMA, "{\"type\":\"integer\"}"}, {REGEX, "a+"}, {GRAMMAR, "root ::= \"x\""}, {JSON, "1"}, {JSON, ""}};
    struct world *w = world_start(0, 8);
    struct client *c[5];
    atomic_store(&w->gang.holds, true);
    for (int round = 0; round < 2; round++) { /* the second time they are known */
        expect_refused(w, SCHEMA, "{\"not\":{}}", "schema at '#': the keyword 'not' is not supported");
        expect_refused(w, SCHEMA, "{", "the schema is not JSON");
        expect_refused(w, REGEX, "(a", "')' is missing");
        expect_refused(w, GRAMMAR, "root ::= root | [a]", "begins with itself");
        expect_refused(w, REGEX, "!", "ignore_end");
    }
    char *longest = malloc((1 << 20) + 2);
    memset(longest, 'a', (1 << 20) + 1);
    longest[(1 << 20) + 1] = '\0';
    expect_refused(w, REGEX, longest, "longer than 1 MiB");
    free(longest);
    assert_int_equal(submits(w), 0);
    for (int i = 0; i < 5; i++) {
        c[i] = ask_form(w, good[i].form, good[i].text);
        WAIT_FOR(submits(w) == i + 1, 5000);
    }
    fake_gang_kill(&w->gang, 0, "rank 0 died for the test");
    WAIT_FOR(submits(w) == 10, 5000);
    for (int i = 0; i < 10; i++) {
        const struct submitted *s = &w->gang.submit[i];
        int k = (int)(s->request - w->gang.submit[0].request);
        assert_in_range(k, 0, 4);
        assert_int_equal(s->constraint, k == 4 ? 0 : good[k].form); /* both have the same numbers */
        assert_string_equal(s->constraint_text, good[k].form == JSON ? "" : good[k].text);
    }
    atomic_store(&w->gang.holds, false);
    for (int i = 0; i < 5; i++) {
        client_wait(c[i], 10000);
        assert_int_equal(c[i]->code, MU_RPC_OK);
        client_free(c[i]);
    }
    world_stop(w);
}

/* What came lately is answered from memory, the sentence of a refusal too: nothing is allocated. Not where memory was
 * what it lacked. */
static void test_known_again(void **state)
{
    (void)state;
    static char *const text[] = {"[a-z]+", "(a", "a\\b", "[^\\s\\S]", "(((((a{100}){100}){100}){100}){100}){100}"};
    static const enum mu_status is[] = {MU_OK, MU_EFORMAT, MU_EUNSUPPORTED, MU_EINVAL, MU_ELIMIT};
    Muster__V1__GenerateRequest q = MUSTER__V1__GENERATE_REQUEST__INIT;
    struct mu_constraint_checks *checks = NULL;
    q.constraint_case = MUSTER__V1__GENERATE_REQUEST__CONSTRAINT_REGEX;
    for (size_t i = 0; i < sizeof text / sizeof *text; i++) {
        struct mu_err first = MU_ERR_INIT, again = MU_ERR_INIT;
        q.regex = text[i];
        mu_alloc_fail_at(1);
        assert_int_equal(mu_constraint_check(&checks, &q, NULL), MU_ENOMEM);
        assert_int_equal(mu_constraint_check(&checks, &q, &first), is[i]);
        mu_alloc_fail_at(0);
        for (int round = 0; round < 3; round++) assert_int_equal(mu_constraint_check(&checks, &q, &again), is[i]);
        assert_int_equal(mu_alloc_fail_at(0), 0);
        assert_string_equal(again.text, first.text);
    }
    mu_constraint_checks_free(checks);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_again),
        cmocka_unit_test(test_constraints),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
