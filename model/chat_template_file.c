/* Where chat templates come from: files of their own, and model files. */
#include <string.h>
#include <time.h>

#include "base/alloc.h"
#include "base/io.h"
#include "model/chat_template.h"

enum mu_status mu_chat_template_read(const char *path, struct mu_chat_template **out, struct mu_err *err)
{
    char *src;
    size_t len;
    enum mu_status st = mu_file_read(path, MU_TEMPLATE_MAX_BYTES, &src, &len, err);
    if (st) return st;
    st = mu_chat_template_parse(src, len, out, err);
    mu_free(src);
    return st ? mu_err_wrap(err, "file '%s'", path) : MU_OK;
}

enum mu_status mu_chat_template_of_model(const struct mu_gguf *g, struct mu_chat_template **out, struct mu_err *err)
{
    struct mu_str src;
    enum mu_status st = mu_gguf_get_str(g, "tokenizer.chat_template", &src, err);
    if (st) return st;
    if (!src.p)
        return mu_fail(err, MU_ENOENT, "file '%s' has no chat template (tokenizer.chat_template)", mu_gguf_path(g));
    st = mu_chat_template_parse(src.p, src.len, out, err);
    return st ? mu_err_wrap(err, "file '%s'", mu_gguf_path(g)) : MU_OK;
}

char *mu_chat_token_text(const struct mu_tokenizer *tok, int id)
{
    struct mu_str s = {"", 0};
    if (id >= 0) s = mu_tokenizer_piece(tok, id, true);
    return mu_strndup(s.p, s.len);
}

int64_t mu_chat_now_s(void)
{
    time_t now = time(NULL);
    struct tm tm;
    return localtime_r(&now, &tm) ? (int64_t)now + tm.tm_gmtoff : (int64_t)now;
}
