/* Tokenizers of Hugging Face folders: the fixtures' folders against their goldens and the GGUF files beside them, and
 * small made-up folders for each form that a tokenizer.json can have, what is refused, and what a lack of memory
 * does. */
#include <dirent.h>

#include "model/hf_tokenizer.h"
#include "tests/model/tok_fixture.h"

/* ---- a folder, converted and opened ---- */

struct converted {
    char path[64];
    struct mu_gguf *g;
    struct mu_tokenizer *t;
};

static enum mu_status convert(const char *folder, int n_vocab, struct converted *c, struct mu_err *err)
{
    struct mu_gguf_writer *w;
    *c = (struct converted){.path = "/tmp/hf-tokenizer-XXXXXX"};
    int fd = mkstemp(c->path);
    assert_true(fd >= 0);
    close(fd);
    enum mu_status st = mu_gguf_writer_open(c->path, &w, err);
    if (st != MU_OK) return st;
    st = mu_hf_tokenizer_put(folder, w, n_vocab, err);
    if (st != MU_OK) {
        mu_gguf_writer_close(w, 0, NULL);
        return st;
    }
    st = mu_gguf_writer_close(w, 1, err);
    if (st == MU_OK) st = mu_gguf_open(c->path, &c->g, err);
    if (st == MU_OK) st = mu_tokenizer_open(c->g, &c->t, err);
    return st;
}

static void drop(struct converted *c)
{
    mu_tokenizer_close(c->t);
    mu_gguf_close(c->g);
    unlink(c->path);
}

/* ---- the fixtures ---- */

struct pair {
    const struct mu_tokenizer *hf, *gguf;
    const char *name;
    int n_differ;
};

static bool same_ids(const json_t *want, const int32_t *ids, size_t n)
{
    if (!want || json_array_size(want) != n) return false;
    for (size_t i = 0; i < n; i++) {
        if (json_integer_value(json_array_get(want, i)) != ids[i]) return false;
    }
    return true;
}

static void one_golden(const json_t *j, void *ctx)
{
    struct pair *p = ctx;
    struct mu_err err = MU_ERR_INIT;
    const json_t *text = json_object_get(j, "text");
    bool special = json_is_true(json_object_get(j, "special"));
    int32_t *ids, *other;
    size_t n, n_other;
    assert_int_equal(
        mu_tokenizer_encode(p->hf, json_string_value(text), json_string_length(text), special, &ids, &n, &err), MU_OK);
    if (!same_ids(json_object_get(j, "ids"), ids, n) && !same_ids(json_object_get(j, "llama_cpp"), ids, n)) {
        char *want = json_dumps(json_object_get(j, "ids"), 0);
        fail_msg("%s: '%s' (special %d)\n gives %s\n   not %s", p->name, json_string_value(text), special, show(ids, n),
                 want);
    }
    assert_int_equal(mu_tokenizer_encode(p->gguf, json_string_value(text), json_string_length(text), special, &other,
                                         &n_other, &err),
                     MU_OK);
    p->n_differ += n != n_other || (n && memcmp(ids, other, n * sizeof *ids) != 0);
    mu_free(ids);
    mu_free(other);
}

/* Every tokenizer.* key that both files have is the same; keys that only one has are listed in `may`. */
static void same_keys(const struct mu_gguf *a, const struct mu_gguf *b, const char *may)
{
    for (size_t i = 0; i < mu_gguf_n_value(a); i++) {
        const struct mu_gguf_value *v = mu_gguf_value_at(a, i), *other;
        char key[128];
        snprintf(key, sizeof key, "%.*s", (int)v->key.len, v->key.p);
        if (strncmp(key, "tokenizer.", 10) != 0) continue;
        other = mu_gguf_find(b, key);
        if (!other && strstr(may, key)) continue;
        if (!other) fail_msg("%s is in one file only", key);
        assert_int_equal(v->kind, other->kind);
        assert_int_equal(v->n, other->n);
        if (v->kind == MU_GGUF_ARRAY && v->item_kind == MU_GGUF_STRING) {
            for (uint64_t k = 0; k < v->n; k++) {
                if (mu_str_compare(v->strings[k], other->strings[k]))
                    fail_msg("%s[%d]: '%.*s', not '%.*s'", key, (int)k, (int)v->strings[k].len, v->strings[k].p,
                             (int)other->strings[k].len, other->strings[k].p);
            }
        } else if (v->kind == MU_GGUF_ARRAY && v->item_kind == MU_GGUF_I32) {
            for (uint64_t k = 0; k < v->n; k++) {
                if (mu_gguf_item_i64(v, k) != mu_gguf_item_i64(other, k))
                    fail_msg("%s[%d]: %d, not %d", key, (int)k, (int)mu_gguf_item_i64(v, k),
                             (int)mu_gguf_item_i64(other, k));
            }
        } else if (v->kind == MU_GGUF_STRING || v->kind == MU_GGUF_BOOL) {
            uint64_t n = 8;
            if (v->kind == MU_GGUF_STRING) memcpy(&n, v->data, sizeof n);
            assert_memory_equal(v->data, other->data, v->kind == MU_GGUF_BOOL ? 1 : 8);
            if (v->kind == MU_GGUF_STRING) assert_memory_equal(v->data + 8, other->data + 8, n);
        } else if (v->kind != MU_GGUF_ARRAY) {
            assert_int_equal(mu_gguf_item_i64(v, 0), mu_gguf_item_i64(other, 0));
        }
    }
}

static void test_fixtures(void **state)
{
    (void)state;
    static const char *const names[] = {"llama3", "mistral", "gemma2"};
    if (!tok_fixtures()) {
        print_message("no fixtures (MUSTER_FIXTURES): skipped\n");
        skip();
    }
    for (size_t i = 0; i < 3; i++) {
        char folder[4096], gguf[4096], path[4096];
        struct converted c;
        struct mu_gguf *g;
        struct mu_err err = MU_ERR_INIT;
        snprintf(folder, sizeof folder, "%s/models/%s-hf", tok_fixtures(), names[i]);
        snprintf(gguf, sizeof gguf, "%s/models/%s.f16.gguf", tok_fixtures(), names[i]);
        snprintf(path, sizeof path, "%s/tokenizers/tiny-%s.jsonl", tok_fixtures(), names[i]);
        if (convert(folder, 1024, &c, &err) != MU_OK) fail_msg("%s: %s", folder, err.text);
        struct mu_tokenizer *t = tok_open(gguf, &g);
        struct pair p = {c.t, t, names[i], 0};
        assert_true(tok_each_line(path, one_golden, &p) > 90);
        assert_int_equal(p.n_differ, 0);
        same_keys(c.g, g, "tokenizer.ggml.add_space_prefix");
        same_keys(g, c.g, "tokenizer.ggml.add_sep_token");
        assert_int_equal(mu_tokenizer_add_bos(c.t), mu_tokenizer_add_bos(t));
        if (i == 0) { /* generation_config.json lists three */
            assert_true(mu_tokenizer_is_end(c.t, 1017));
            assert_true(mu_tokenizer_is_end(c.t, 1022));
            assert_true(mu_tokenizer_is_end(c.t, 1023));
            assert_false(mu_tokenizer_is_end(c.t, 1016));
        }
        mu_tokenizer_close(t);
        mu_gguf_close(g);
        drop(&c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fixtures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
