/* Tests: v is name. */
#include <string.h>

#include "model/jinja.h"

#define TEST(name) static bool name(struct mu_ji *j, struct mu_jv v, const struct mu_jargs *a)
#define KIND_TEST(name, expr) \
    TEST(name)                \
    {                         \
        (void)j;              \
        (void)a;              \
        (void)v;              \
        return expr;          \
    }

KIND_TEST(t_defined, v.kind != MU_JK_UNDEFINED)
KIND_TEST(t_undefined, v.kind == MU_JK_UNDEFINED)
KIND_TEST(t_none, v.kind == MU_JK_NONE)
KIND_TEST(t_boolean, v.kind == MU_JK_BOOL)
KIND_TEST(t_true, v.kind == MU_JK_BOOL && v.b)
KIND_TEST(t_false, v.kind == MU_JK_BOOL && !v.b)
KIND_TEST(t_integer, v.kind == MU_JK_INT)
KIND_TEST(t_float, v.kind == MU_JK_FLOAT)
KIND_TEST(t_number, mu_jv_is_int(v) || v.kind == MU_JK_FLOAT)
KIND_TEST(t_string, v.kind == MU_JK_STR)
KIND_TEST(t_mapping, v.kind == MU_JK_DICT)
KIND_TEST(t_iterable, v.kind == MU_JK_UNDEFINED || v.kind == MU_JK_STR || mu_jv_is_seq(v) || v.kind == MU_JK_DICT ||
                          v.kind == MU_JK_LOOP)
KIND_TEST(t_sequence,
          v.kind == MU_JK_UNDEFINED || v.kind == MU_JK_STR || v.kind == MU_JK_DICT || (mu_jv_is_seq(v) && !v.l->lazy))
KIND_TEST(t_callable, v.kind == MU_JK_MACRO || v.kind == MU_JK_METHOD || v.kind == MU_JK_FUNC || v.kind == MU_JK_LOOP ||
                          v.kind == MU_JK_UNDEFINED)
KIND_TEST(t_escaped, v.kind == MU_JK_STR && v.of)

TEST(t_sameas)
{
    struct mu_jv o = mu_ji_want(j, a, 0, "other");
    if (v.kind != o.kind) return false;
    return v.kind >= MU_JK_LIST ? v.l == o.l : mu_jv_equal(j, v, o);
}

static int64_t whole(struct mu_ji *j, struct mu_jv v)
{
    if (!mu_jv_is_int(v)) mu_ji_fail(j, MU_EFORMAT, "an integer was expected, not %s", mu_jk_name(v.kind));
    return mu_jv_as_int(v);
}

TEST(t_odd)
{
    (void)a;
    return whole(j, v) % 2 != 0;
}

TEST(t_even)
{
    (void)a;
    return whole(j, v) % 2 == 0;
}

TEST(t_divisibleby)
{
    int64_t by = whole(j, mu_ji_want(j, a, 0, "num"));
    if (!by) mu_ji_fail(j, MU_EFORMAT, "division by zero");
    return by == -1 || whole(j, v) % by == 0;
}

TEST(t_eq)
{
    return mu_jv_equal(j, v, mu_ji_want(j, a, 0, "other"));
}

TEST(t_ne)
{
    return !mu_jv_equal(j, v, mu_ji_want(j, a, 0, "other"));
}

TEST(t_lt)
{
    return mu_jv_compare(j, '<', v, mu_ji_want(j, a, 0, "other"));
}

TEST(t_le)
{
    return mu_jv_compare(j, MU_JOP('<', '='), v, mu_ji_want(j, a, 0, "other"));
}

TEST(t_gt)
{
    return mu_jv_compare(j, '>', v, mu_ji_want(j, a, 0, "other"));
}

TEST(t_ge)
{
    return mu_jv_compare(j, MU_JOP('>', '='), v, mu_ji_want(j, a, 0, "other"));
}

TEST(t_in)
{
    return mu_jv_contains(j, mu_ji_want(j, a, 0, "seq"), v);
}

static bool cased(struct mu_ji *j, struct mu_jv v, const char *method)
{
    static const struct mu_jargs none;
    struct mu_jv text = {.kind = MU_JK_STR, .s = mu_jv_text(j, v)};
    return mu_js_method(method, strlen(method))->call(j, text, &none).b;
}

TEST(t_lower)
{
    (void)a;
    return cased(j, v, "islower");
}

TEST(t_upper)
{
    (void)a;
    return cased(j, v, "isupper");
}

TEST(t_filter)
{
    (void)a;
    const struct mu_js *name = mu_jv_text(j, v);
    return mu_ji_filter(name->p, name->len) != NULL;
}

TEST(t_test)
{
    (void)a;
    const struct mu_js *name = mu_jv_text(j, v);
    return mu_ji_test(name->p, name->len) != NULL;
}

const struct mu_jtest *mu_ji_test(const char *name, size_t len)
{
    static const struct mu_jtest tests[] = {
        {"defined", t_defined},
        {"undefined", t_undefined},
        {"none", t_none},
        {"boolean", t_boolean},
        {"true", t_true},
        {"false", t_false},
        {"integer", t_integer},
        {"float", t_float},
        {"number", t_number},
        {"string", t_string},
        {"mapping", t_mapping},
        {"iterable", t_iterable},
        {"sequence", t_sequence},
        {"callable", t_callable},
        {"escaped", t_escaped},
        {"sameas", t_sameas},
        {"odd", t_odd},
        {"even", t_even},
        {"divisibleby", t_divisibleby},
        {"eq", t_eq},
        {"equalto", t_eq},
        {"==", t_eq},
        {"ne", t_ne},
        {"!=", t_ne},
        {"lt", t_lt},
        {"lessthan", t_lt},
        {"<", t_lt},
        {"le", t_le},
        {"<=", t_le},
        {"gt", t_gt},
        {"greaterthan", t_gt},
        {">", t_gt},
        {"ge", t_ge},
        {">=", t_ge},
        {"in", t_in},
        {"lower", t_lower},
        {"upper", t_upper},
        {"filter", t_filter},
        {"test", t_test},
    };
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++)
        if (strlen(tests[i].name) == len && memcmp(tests[i].name, name, len) == 0) return &tests[i];
    return NULL;
}
