/* What stores hold: manifests, names, digests and the heads of GGUF files, of any bytes. */
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "model/store_part.h"

static void expect(bool ok, const char *what)
{
    if (ok) return;
    fprintf(stderr, "broken: %s\n", what);
    abort();
}

static void try_manifest(const char *text, size_t len)
{
    struct mu_manifest m = {0};
    struct mu_err err = MU_ERR_INIT;
    enum mu_status st = mu_manifest_parse(text, len, "fuzz", &m, &err);
    if (st != MU_OK) {
        expect(err.code == st && err.text[0], "a failure says what it is");
        expect(!strpbrk(err.text, "\n\r\033"), "a message holds nothing that a terminal obeys");
        return;
    }
    for (size_t i = 0; i < m.n_layer; i++) {
        const struct mu_layer *l = &m.layer[i];
        expect(l->digest[0] ? strspn(l->digest, "0123456789abcdef") == 64 && !l->digest[64] : l->ours && l->path,
               "a digest is 64 hex digits");
        if (l->ours && !strcmp(l->kind, MU_KIND_FILE))
            expect(!strchr(l->name, '/') && l->name[0] != '.', "a file's name is one");
    }
    mu_manifest_clear(&m);
}

static void try_name(const char *text)
{
    struct mu_store_name n, again;
    char shown[MU_NAME_TEXT], quant[16];
    int no, count;
    size_t stem;
    mu_store_quant_of(text, quant);
    mu_store_split_of(text, &no, &count, &stem);
    if (!mu_store_name_parse(text, &n)) return;
    expect(mu_store_part_ok(n.host, true) && mu_store_part_ok(n.space, false) && mu_store_part_ok(n.model, false) &&
               mu_store_part_ok(n.tag, false),
           "every part is fit to be a folder's name");
    mu_store_name_format(&n, shown);
    expect(mu_store_name_parse(shown, &again) && !strcmp(n.model, again.model) && !strcmp(n.host, again.host) &&
               !strcmp(n.space, again.space) && !strcmp(n.tag, again.tag),
           "a name that was shown is read as the same");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    char quant[16], family[32], *text = malloc(len + 1);
    unsigned hash = 0;
    if (!text) return 0;
    memcpy(text, data, len);
    text[len] = 0;
    mu_store_peek_bytes(data, len, quant, family);
    expect(strlen(quant) < sizeof quant && strlen(family) < sizeof family, "short words");
    try_name(text);
    for (size_t i = 0; i < len; i++) hash = hash * 31 + data[i];
    if (hash % 8 == 0) mu_alloc_fail_at(1 + hash / 8 % 8);
    try_manifest(text, len);
    mu_alloc_fail_at(0);
    free(text);
    return 0;
}

#define DIGEST "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

bool mu_fuzz_seed(int n, uint8_t **data_out, size_t *len_out)
{
    static const char gguf[] = "GGUF\3\0\0\0\0\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0"
                               "\24\0\0\0\0\0\0\0general.architecture\10\0\0\0\5\0\0\0\0\0\0\0llama"
                               "\21\0\0\0\0\0\0\0general.file_type\4\0\0\0\17\0\0\0";
    static const struct {
        const char *data;
        size_t len;
    } seeds[] = {
#define TEXT(s) {s, sizeof s - 1}
        TEXT("{\"layers\":[{\"mediaType\":\"application/vnd.ollama.image.model\",\"digest\":\"sha256:" DIGEST
             "\",\"size\":5}]}"),
        TEXT("{\"config\":{\"mediaType\":\"x\",\"digest\":\"sha256:" DIGEST "\",\"size\":0},\"layers\":[{\"mediaType\":"
             "\"application/vnd.muster.file\",\"digest\":\"sha256:" DIGEST "\",\"size\":5,\"name\":\"a.gguf\"}]}"),
        TEXT("{\"layers\":[{\"mediaType\":\"application/vnd.muster.reference\",\"path\":\"/a/b\",\"size\":5}]}"),
        TEXT("hf.co/user/repo-GGUF:Q4_K_M"),
        TEXT("model-UD-Q4_K_XL-00001-of-00002.gguf"),
        {gguf, sizeof gguf - 1},
    };
    if (n >= (int)(sizeof seeds / sizeof *seeds)) return false;
    *data_out = malloc(seeds[n].len);
    if (*data_out) memcpy(*data_out, seeds[n].data, seeds[n].len);
    *len_out = seeds[n].len;
    return *data_out != NULL;
}
