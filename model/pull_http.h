/* Inside pulling: documents into memory, files into the blobs of a store. */
#ifndef MU_MODEL_PULL_HTTP_H
#define MU_MODEL_PULL_HTTP_H

#include <curl/curl.h>

#include "model/pull.h"
#include "model/store_part.h"

struct mu_http {
    CURL *curl;
    struct mu_pull_options opt; /* defaults filled in */
    const char *base;           /* "https://…" without a '/' at its end; other schemes are refused */
    char *token;                /* sent to base's host only; NULL */
    char *about;                /* "model 'x'": for messages about what was not found */
    uint64_t done, total;       /* bytes of the whole model */
};

/* base is borrowed, token (mu_free) taken, also where it fails. */
enum mu_status mu_http_open(struct mu_http *h, const char *base, char *token, const char *about,
                            const struct mu_pull_options *opt, struct mu_err *err);
void mu_http_close(struct mu_http *h);
/* A document of at most max_bytes; text_out is NUL-terminated, mu_free. next_out: where a "Link: <…>; rel=next" points
 * to, mu_free; NULL: not asked for. */
enum mu_status mu_http_get(struct mu_http *h, const char *url, const char *accept, size_t max_bytes, char **text_out,
                           size_t *len_out, char **next_out, struct mu_err *err);

struct mu_want { /* a file to get */
    char *url;
    char *name; /* for people, and the link's name where the model is several files */
    uint64_t bytes;
    char sha256[MU_DIGEST_TEXT]; /* "": not known before; filled in */
    char git_sha1[41];           /* "": none; else of "blob BYTES\0" and the contents, as git has it */
};
/* Gets it into root/blobs/sha256-HEX, or sees that it is there. */
enum mu_status mu_http_file(struct mu_http *h, const char *root, struct mu_want *want, struct mu_err *err);
/* Bytes that mu_http_file would still have to get. */
uint64_t mu_http_missing(const char *root, const struct mu_want *want);

#endif
