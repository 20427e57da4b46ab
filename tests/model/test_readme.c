/* README.md's table of families and types is what the code's tables say. `test_readme --write` writes it anew.
 *
 * The table stands between two marks, each a line of its own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/arch.h"

static const char BEGIN[] = "<!-- families and types: written by test_readme --write -->\n", END[] = "<!-- end -->\n";

struct text {
    char *at;
    size_t len, room;
};

static void put(struct text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void put(struct text *t, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    t->len += (size_t)vsnprintf(t->at + t->len, t->room - t->len, fmt, ap);
    va_end(ap);
    assert_true(t->len < t->room);
}

/* "a, b" of those that hold. */
static void put_list(struct text *t, const char *const *name, const bool *holds, size_t n)
{
    bool first = true;
    for (size_t i = 0; i < n; i++) {
        if (!holds[i]) continue;
        put(t, "%s%s", first ? "" : ", ", name[i]);
        first = false;
    }
}

static bool has_tensor(const struct mu_arch *a, enum mu_tensor_id id)
{
    for (const struct mu_tensor_rule *r = a->rules ? a->rules : a->expert_rules; r->suffix; r++)
        if (r->id == id && !r->optional) return true;
    return false;
}

static void put_family(struct text *t, const struct mu_arch *a)
{
    static const char *const ffn[] = {[MU_FFN_SILU_GATED] = "gated SiLU",
                                      [MU_FFN_SILU_CLAMPED] = "clamped gated SiLU",
                                      [MU_FFN_GELU_GATED] = "gated GELU",
                                      [MU_FFN_GELU] = "GELU",
                                      [MU_FFN_GELU_ERF] = "exact GELU"};
    static const char *const what[] = {"LayerNorm",
                                       "q and k norms",
                                       "post-norms",
                                       "biases",
                                       "parallel block",
                                       "sliding windows",
                                       "soft caps",
                                       "sinks",
                                       "longrope",
                                       "two rotary bases",
                                       "layers without rotation",
                                       "scaled queries",
                                       "scaled residual",
                                       "experts",
                                       "experts or none"};
    const bool holds[] = {a->norm == MU_NORM_LAYER,
                          has_tensor(a, MU_T_Q_NORM),
                          has_tensor(a, MU_T_POST_ATTN_NORM),
                          has_tensor(a, MU_T_Q_B),
                          a->parallel,
                          a->features & MU_HAS_WINDOW,
                          a->features & MU_HAS_CAPS,
                          has_tensor(a, MU_T_SINKS),
                          a->features & MU_HAS_LONGROPE,
                          a->features & MU_HAS_LOCAL_ROPE,
                          a->no_rope_period > 0,
                          a->features & MU_HAS_TEMPERATURE,
                          a->features & MU_HAS_SCALES,
                          a->expert_rules && !a->rules,
                          a->expert_rules && a->rules};
    put(t, "| `%s` | %s | %s", a->name, a->models, ffn[a->ffn]);
    bool any = false;
    for (size_t i = 0; i < sizeof holds / sizeof *holds; i++) any |= holds[i];
    if (any) put(t, ", ");
    put_list(t, what, holds, sizeof holds / sizeof *holds);
    put(t, " |\n");
}

/* Types of one kind: with a kernel of their own, or widened a block at a time, or not at all. */
enum speed { FAST, WIDENED, NEVER };
static void put_types(struct text *t, enum speed speed)
{
    const char *name[MU_TYPE_LIMIT];
    bool holds[MU_TYPE_LIMIT] = {false};
    for (uint32_t i = 0; i < MU_TYPE_LIMIT; i++) {
        const struct mu_type_info *info = mu_type_info(i);
        if (!info) continue;
        name[i] = info->name;
        bool widened = info->act == MU_ACT_F32 && info->block_values > 1;
        holds[i] = speed == (info->act == MU_ACT_NONE ? NEVER : widened ? WIDENED : FAST);
    }
    put_list(t, name, holds, MU_TYPE_LIMIT);
}

static void put_table(struct text *t)
{
    put(t, "%s\n| architecture | models | what it has |\n|---|---|---|\n", BEGIN);
    for (size_t i = 0; mu_arch_at(i); i++) put_family(t, mu_arch_at(i));
    put(t, "\nRotary scaling everywhere: none, linear, YaRN, factors a pair. Any other architecture is refused by "
           "name.\n");
    put(t, "\n| tensor types | |\n|---|---|\n| ");
    put_types(t, FAST);
    put(t, " | fast |\n| ");
    put_types(t, WIDENED);
    put(t, " | right, and slow where one token runs alone |\n| ");
    put_types(t, NEVER);
    put(t, " | refused by name |\n\n%s", END);
}

static char *path;

static struct text readme(size_t more)
{
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("%s cannot be read", path);
    struct text t = {.room = (1 << 20) + more};
    t.at = calloc(1, t.room);
    t.len = fread(t.at, 1, 1 << 20, f);
    fclose(f);
    return t;
}

/* Where the marks are: [*begin, return) is the table with both. */
static char *marks(const struct text *t, char **begin)
{
    *begin = strstr(t->at, BEGIN);
    char *end = *begin ? strstr(*begin, END) : NULL;
    if (!end)
        fail_msg("%s has no lines '%.*s' and '%.*s'", path, (int)sizeof BEGIN - 2, BEGIN, (int)sizeof END - 2, END);
    return end + sizeof END - 1;
}

static void test_table(void **state)
{
    (void)state;
    struct text want = {.at = calloc(1, 1 << 16), .room = 1 << 16}, t = readme(0);
    char *begin, *end = marks(&t, &begin);
    put_table(&want);
    if ((size_t)(end - begin) != want.len || memcmp(begin, want.at, want.len) != 0)
        fail_msg("README.md's table is not what the code says; run test_readme --write. It should be:\n%s", want.at);
    free(t.at);
    free(want.at);
}

static void write_table(void **state)
{
    (void)state;
    struct text t = readme(0), out = {.at = calloc(1, 2 << 20), .room = 2 << 20};
    char *begin, *end = marks(&t, &begin);
    put(&out, "%.*s", (int)(begin - t.at), t.at);
    put_table(&out);
    put(&out, "%s", end);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(out.at, 1, out.len, f), out.len);
    assert_int_equal(fclose(f), 0);
    free(out.at);
    free(t.at);
}

int main(int argc, char **argv)
{
    static char buf[1024];
    const char *source = getenv("MUSTER_SOURCE_DIR");
    snprintf(buf, sizeof buf, "%s/README.md", source ? source : ".");
    path = buf;
    const struct CMUnitTest check[] = {cmocka_unit_test(test_table)}, rewrite[] = {cmocka_unit_test(write_table)};
    bool write = argc > 1 && strcmp(argv[1], "--write") == 0;
    return write ? cmocka_run_group_tests(rewrite, NULL, NULL) : cmocka_run_group_tests(check, NULL, NULL);
}
