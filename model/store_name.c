/* Names of models as Ollama's registry has them. What is parsed here becomes folders' names, so the characters are
 * few. */
#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "model/store_part.h"

bool mu_store_part_ok(const char *part, bool is_host)
{
    size_t len = strlen(part);
    if (len == 0 || len >= MU_NAME_PART || part[0] == '.' || part[0] == '-') return false;
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)part[i];
        if (c >= 0x80 || !(isalnum(c) || c == '.' || c == '_' || c == '-' || (is_host && c == ':'))) return false;
    }
    return true;
}

size_t mu_store_base_len(const char *text)
{
    const char *slash = strrchr(text, '/'), *colon = strrchr(text, ':');
    return colon && colon > (slash ? slash : text) ? (size_t)(colon - text) : strlen(text);
}

static bool take(char out[MU_NAME_PART], const char *from, size_t len, bool is_host)
{
    if (len >= MU_NAME_PART) return false;
    memcpy(out, from, len);
    out[len] = 0;
    return mu_store_part_ok(out, is_host);
}

bool mu_store_name_parse(const char *text, struct mu_store_name *name_out)
{
    struct mu_store_name n = {.host = MU_NAME_HOST, .space = MU_NAME_SPACE, .tag = MU_NAME_TAG};
    if (!strncmp(text, "https://", 8)) text += 8;
    if (!strncmp(text, "http://", 7)) text += 7;
    size_t len = mu_store_base_len(text);
    const char *end = text + len;
    if (*end) {
        n.has_tag = true;
        if (!take(n.tag, end + 1, strlen(end + 1), false)) return false;
    }
    const char *part[3], *p = text;
    size_t part_len[3];
    int n_part = 0;
    for (;;) {
        const char *slash = memchr(p, '/', (size_t)(end - p));
        if (n_part == 3) return false;
        part[n_part] = p;
        part_len[n_part++] = (size_t)((slash ? slash : end) - p);
        if (!slash) break;
        p = slash + 1;
    }
    int i = 0;
    if (n_part == 3 && !take(n.host, part[i], part_len[i], true)) return false;
    i = n_part - 2;
    if (n_part >= 2 && !take(n.space, part[i], part_len[i], false)) return false;
    if (!take(n.model, part[n_part - 1], part_len[n_part - 1], false)) return false;
    if (!strcasecmp(n.host, "huggingface.co") || !strcasecmp(n.host, MU_NAME_HF)) strcpy(n.host, MU_NAME_HF);
    if (n_part == 2 && (!strcasecmp(n.space, MU_NAME_HF) || !strcasecmp(n.space, "huggingface.co"))) return false;
    *name_out = n;
    return true;
}

void mu_store_name_format(const struct mu_store_name *name, char buf[MU_NAME_TEXT])
{
    bool host = strcmp(name->host, MU_NAME_HOST) != 0, space = host || strcmp(name->space, MU_NAME_SPACE) != 0;
    snprintf(buf, MU_NAME_TEXT, "%s%s%s%s%s:%s", host ? name->host : "", host ? "/" : "", space ? name->space : "",
             space ? "/" : "", name->model, name->tag);
}
