/* jansson with our allocator, so that tests can make its allocations fail, and with our errors. */
#include "model/hf_json.h"

#include <pthread.h>
#include <string.h>

#include "base/alloc.h"
#include "base/io.h"

enum { MAX_FILE_BYTES = 16 << 20 };

static pthread_once_t use_once = PTHREAD_ONCE_INIT;

static void use_our_allocator(void)
{
    json_set_alloc_funcs(mu_malloc, mu_free); /* which free what malloc gave, so trees made before stay valid */
}

enum mu_status mu_json_parse(const char *text, size_t len, const char *shown, bool unique, json_t **root_out,
                             struct mu_err *err)
{
    json_error_t e;
    pthread_once(&use_once, use_our_allocator);
    json_t *root = json_loadb(text, len, unique ? JSON_REJECT_DUPLICATES : 0, &e);
    if (root) {
        *root_out = root;
        return MU_OK;
    }
    if (json_error_code(&e) == json_error_out_of_memory || !*e.text)
        return mu_fail(err, MU_ENOMEM, "no memory to read the JSON of '%.160s'", shown);
    return mu_fail(err, MU_EFORMAT, "file '%.160s', line %d, column %d: expected JSON, but %s", shown, e.line, e.column,
                   e.text);
}

enum mu_status mu_json_read(const char *path, json_t **root_out, struct mu_err *err)
{
    char *text;
    size_t len;
    enum mu_status st = mu_file_read(path, MAX_FILE_BYTES, &text, &len, err);
    if (st != MU_OK) return st;
    st = mu_json_parse(text, len, path, false, root_out, err);
    mu_free(text);
    if (st != MU_OK || json_is_object(*root_out)) return st;
    json_decref(*root_out);
    return mu_fail(err, MU_EFORMAT, "file '%.160s': expected a JSON object", path);
}
