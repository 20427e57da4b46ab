/* Modelfiles of any bytes: refused with a sentence, or read, written and read again to the same model. */
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "model/modelfile.h"

static void expect(bool ok, const char *what)
{
    if (ok) return;
    fprintf(stderr, "broken: %s\n", what);
    abort();
}

/* Whether a Modelfile can say it: text of several lines must not hold three quotes or end with one; a quote alone opens what
 * follows. */
static bool has_form(const char *value)
{
    if (!value) return true;
    if (!strcmp(value, "\"")) return false;
    if (!strchr(value, '\n') && strncmp(value, "\"\"", 2) != 0) return true;
    return !strstr(value, "\"\"\"") && *value && value[strlen(value) - 1] != '"';
}

static bool all_have_form(const struct mu_modelfile *f)
{
    bool all = has_form(f->from) && has_form(f->template) && has_form(f->system);
    size_t i;
    json_t *item;
    for (int k = 0; k < f->n_adapter; k++) all = all && has_form(f->adapter[k]);
    for (int k = 0; k < f->n_license; k++) all = all && has_form(f->license[k]);
    json_array_foreach(f->messages, i, item) all = all && has_form(json_string_value(json_object_get(item, "content")));
    json_array_foreach(json_object_get(f->params, "stop"), i, item) all = all && has_form(json_string_value(item));
    return all;
}

static bool same(const char *a, const char *b)
{
    return !a || !b ? a == b : strcmp(a, b) == 0;
}

static void check_same(const struct mu_modelfile *f, const struct mu_modelfile *g)
{
    expect(same(f->from, g->from) && same(f->template, g->template) && same(f->system, g->system), "texts come back");
    expect(g->n_license == f->n_license && g->n_adapter == f->n_adapter, "as many licences and adapters come back");
    for (int i = 0; i < f->n_adapter; i++) expect(same(f->adapter[i], g->adapter[i]), "adapters come back");
    for (int i = 0; i < f->n_license; i++) expect(same(f->license[i], g->license[i]), "licences come back");
    expect(!json_array_size(f->messages) || json_equal(f->messages, g->messages), "messages come back");
    expect(!json_object_get(f->params, "stop") ||
               json_equal(json_object_get(f->params, "stop"), json_object_get(g->params, "stop")),
           "stop strings come back");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct mu_modelfile *f = NULL, *g = NULL;
    struct mu_err err = MU_ERR_INIT;
    unsigned hash = 0;
    for (size_t i = 0; i < len; i++) hash = hash * 31 + data[i];
    if (hash % 8 == 0) mu_alloc_fail_at(1 + hash / 8 % 32);
    enum mu_status st = mu_modelfile_parse((const char *)data, len, "fuzz", &f, &err);
    mu_alloc_fail_at(0);
    if (st != MU_OK) {
        expect(err.code == st && err.text[0], "a failure says what it is");
        expect(!strpbrk(err.text, "\n\r\033"), "a message holds nothing that a terminal obeys");
        return 0;
    }
    expect(f->from != NULL, "there is a FROM");
    struct mu_store_model m = {.entry = {.name = "fuzz"},
                               .path = f->from,
                               .adapter_path = f->adapter,
                               .n_adapter = f->n_adapter,
                               .params = f->params,
                               .messages = f->messages,
                               .system = f->system,
                               .template = f->template,
                               .license = f->license,
                               .n_license = f->n_license};
    char *text = mu_modelfile_format(&m);
    expect(text != NULL, "it can be written");
    if (all_have_form(f)) {
        expect(mu_modelfile_parse(text, strlen(text), "again", &g, &err) == MU_OK, "what was written can be read");
        check_same(f, g);
    }
    mu_free(text);
    mu_modelfile_free(f);
    mu_modelfile_free(g);
    return 0;
}

bool mu_fuzz_seed(int n, uint8_t **data_out, size_t *len_out)
{
    static const char *const seeds[] = {
        "FROM llama3.2\nPARAMETER temperature 0.2\nPARAMETER stop \"a b\"\nSYSTEM \"\"\"Two\nlines\"\"\"\n",
        ("# c\nfrom ./x.gguf\nTEMPLATE {{ .Prompt }}\nADAPTER a\nLICENSE \"\"\"\nMIT\"\"\"\nMESSAGE user hi\nMESSAGE "
         "assistant \"x\"\nREQUIRES 1\n"),
        "\xef\xbb\xbf\nFROM a\nSYSTEM \"two\nlines\" \nRENDERER r\nLICENSE \"open\n",
        "FROM a\nPARAMETER num_ctx 4096\nPARAMETER use_mmap true\nPARAMETER top_p 0.9\nPARAMETER seed -1\n",
    };
    if (n >= (int)(sizeof seeds / sizeof *seeds)) return false;
    *data_out = (uint8_t *)strdup(seeds[n]);
    *len_out = strlen(seeds[n]);
    return *data_out != NULL;
}
