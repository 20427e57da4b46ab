/* jansson with our errors. Its memory comes from the C library: after a failed allocation it may say that the text is
 * wrong, so a sweep over failing ones could not tell the two apart. */
#include "model/hf_json.h"

#include "base/alloc.h"
#include "base/io.h"
#include "model/gguf.h"

enum { MAX_FILE_BYTES = 16 << 20 };

enum mu_status mu_json_parse(const char *text, size_t len, const char *shown, bool unique, json_t **root_out,
                             struct mu_err *err)
{
    json_error_t e;
    json_t *root = json_loadb(text, len, unique ? JSON_REJECT_DUPLICATES : 0, &e);
    if (root) {
        *root_out = root;
        return MU_OK;
    }
    if (json_error_code(&e) == json_error_out_of_memory || !*e.text)
        return mu_fail(err, MU_ENOMEM, "no memory to read the JSON of '%.160s'", shown);
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
