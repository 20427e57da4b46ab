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
    if (!strstr(text, "\"\"\"\"") && mu_modelfile_parse(text, strlen(text), "again", &g, &err) == MU_OK)
        expect(g->n_license == f->n_license && g->n_adapter == f->n_adapter &&
                   json_array_size(g->messages) == json_array_size(f->messages),
               "what was written says the same");
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
        "FROM a\nPARAMETER num_ctx 4096\nPARAMETER use_mmap true\nPARAMETER top_p 0.9\nPARAMETER seed -1\n",
    };
    if (n >= (int)(sizeof seeds / sizeof *seeds)) return false;
    *data_out = (uint8_t *)strdup(seeds[n]);
    *len_out = strlen(seeds[n]);
    return *data_out != NULL;
}
