/* jansson with our errors. Where an allocation fails it may say that the text is wrong, or go on; so its memory comes through
 * a function that remembers that one did. It stays the C library's: what jansson returns is freed with free(). */
#include "model/hf_json.h"

#include <stdlib.h>

#include "base/alloc.h"
#include "base/io.h"
#include "model/gguf.h"

enum { MAX_FILE_BYTES = 16 << 20 };

static _Thread_local bool refused;
static _Thread_local long fail_in; /* 0: never */

static void *json_memory(size_t size_bytes)
{
    void *p = fail_in > 0 && --fail_in == 0 ? NULL : malloc(size_bytes);
    if (!p) refused = true;
    return p;
}

/* Before any thread, since jansson's is one pointer for all of them. */
__attribute__((constructor)) static void json_memory_set(void)
{
    json_set_alloc_funcs(json_memory, free);
}

long mu_json_fail_at(long n)
{
    long left = fail_in;
    fail_in = n;
    return left;
}

json_t *mu_json_load(const char *text, size_t len, size_t flags, json_error_t *e, bool *no_memory_out)
{
    refused = false;
    json_t *root = json_loadb(text, len, flags, e);
    *no_memory_out = refused;
    if (!refused) return root;
    json_decref(root); /* it may be there, and something missing in it */
    return NULL;
}

enum mu_status mu_json_parse(const char *text, size_t len, const char *shown, bool unique, json_t **root_out,
                             struct mu_err *err)
{
    json_error_t e;
    bool no_memory;
    json_t *root = mu_json_load(text, len, unique ? JSON_REJECT_DUPLICATES : 0, &e, &no_memory);
    if (root) {
        *root_out = root;
        return MU_OK;
    }
    if (no_memory) return mu_fail(err, MU_ENOMEM, "no memory to read the JSON of '%.160s'", shown);
    char shown_text[120];
    return mu_fail(err, MU_EFORMAT, "file '%.160s', line %d, column %d: expected JSON, but %s", shown, e.line, e.column,
                   mu_str_show((struct mu_str){e.text, strlen(e.text)}, shown_text, sizeof shown_text));
}

enum mu_status mu_json_read(const char *path, json_t **root_out, struct mu_err *err)
{
    char *text;
    size_t len;
    json_t *root;
    enum mu_status st = mu_file_read(path, MAX_FILE_BYTES, &text, &len, err);
    if (st != MU_OK) return st;
    st = mu_json_parse(text, len, path, false, &root, err);
    mu_free(text);
    if (st != MU_OK) return st;
    if (!json_is_object(root)) {
        json_decref(root);
        return mu_fail(err, MU_EFORMAT, "file '%.160s': expected a JSON object", path);
    }
    *root_out = root;
    return MU_OK;
}
