/* One file over HTTP, whatever the server and the network do meanwhile.
 *
 *   open and lock PARTIAL ─► hash what it has ─► GET from there ─► all bytes? ─► hash right? ─► fsync, rename
 *                                 ▲                   │ no             │ no
 *                                 │                   ▼                ▼
 *                                 └──── wait ◄── something new?    from the start, once
 *
 * Answers are not believed: a 206 must begin where it was asked to and tell the right total, a 200 in place of a 206
 * begins anew, a length other than the announced one or a byte too many ends the pull. Inside a process If-Range makes
 * sure that a file that changed on the server is not pasted together; over processes the hash does.
 *
 * The lock is on the partial file itself, so a killed process leaves none. Who waited for it finds the file complete, or
 * goes on with it. */
#include "model/pull_http.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"

enum {
    CONNECT_TIMEOUT_S = 20,
    LOW_SPEED = 256, /* bytes a second: a server that trickles is as good as silent */
    MAX_REDIRECTS = 10,
    MAX_WAIT_MS = 16000,
    MAX_RETRY_AFTER_S = 60,
    NEW_BYTES = 64 << 10, /* progress that makes the tries count from 0 again */
    READ_BYTES = 1 << 20,
    BUFFER_BYTES = 256 << 10,
    ERROR_BODY_BYTES = 200
};

enum mu_status mu_http_open(struct mu_http *h, const char *base, char *token, const char *about,
                            const struct mu_pull_options *opt, struct mu_err *err)
{
    *h = (struct mu_http){.opt = *opt, .base = base, .token = token, .about = mu_strdup(about)};
    if (!h->opt.timeout_s) h->opt.timeout_s = 30;
    if (!h->opt.tries) h->opt.tries = 6;
    if (!h->opt.first_wait_ms) h->opt.first_wait_ms = 500;
    if (strncmp(base, "https://", 8) != 0 && strncmp(base, "http://", 7) != 0)
        return mu_fail(err, MU_EINVAL, "'%.100s' is no address of a server: expected https://HOST", base);
    h->curl = curl_easy_init();
    return h->curl && h->about ? MU_OK : mu_fail(err, MU_ENOMEM, "no memory for a connection");
}

void mu_http_close(struct mu_http *h)
{
    if (h->curl) curl_easy_cleanup(h->curl);
    mu_free(h->token);
    mu_free(h->about);
    *h = (struct mu_http){0};
}

bool mu_http_is_ours(const struct mu_http *h, const char *url)
{
    size_t n = strlen(h->base);
    return !strncmp(url, h->base, n) && url[n] == '/';
}

static bool stopped(const struct mu_http *h)
{
    return h->opt.stop && h->opt.stop(h->opt.ctx);
}

static enum mu_status cancelled(const struct mu_http *h, struct mu_err *err)
{
    return mu_fail(err, MU_ECANCELLED, "stopped; pull %s again to go on where it was", h->about);
}

static enum mu_status wait_ms(const struct mu_http *h, int64_t ms, struct mu_err *err)
{
    int64_t until = mu_now_ns() + ms * MU_MS;
    while (!stopped(h)) {
        int64_t left = until - mu_now_ns();
        if (left <= 0) return MU_OK;
        if (left > 50 * MU_MS) left = 50 * MU_MS;
        nanosleep(&(struct timespec){left / MU_SEC, left % MU_SEC}, NULL);
    }
    return cancelled(h, err);
}

static void report(const struct mu_http *h, uint64_t of_this_file)
{
    if (h->opt.progress) h->opt.progress(h->done + of_this_file, h->total, h->opt.ctx);
}

static void say(const struct mu_http *h, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void say(const struct mu_http *h, const char *fmt, ...)
{
    char line[300];
    va_list ap;
    if (!h->opt.say) return;
    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    h->opt.say(line, h->opt.ctx);
}

/* ---- one request ---- */

/* What a request leads to. AGAIN: another try may help; FROM_START: and what is there is of no use. */
enum outcome { DONE, AGAIN, FROM_START, FATAL };

struct reply;                                                         /* a body's destination */
typedef bool (*take_fn)(struct reply *r, const char *data, size_t n); /* false: the transfer ends; r->fault says why */

struct reply {
    struct mu_http *h;
    take_fn take;
    bool begun; /* headers of the last answer are complete, and looked at */
    long code;
    char etag[128], range[96], body[ERROR_BODY_BYTES + 1]; /* body: of an error */
    char *next;
    uint64_t reported;
    int64_t heard_ns; /* when the server last sent something */
    bool silent;      /* … which was too long ago */
    enum outcome fault;
    struct mu_err err;
};

static size_t on_header(char *data, size_t size, size_t n, void *ctx)
{
    struct reply *r = ctx;
    size_t len = size * n;
    r->heard_ns = mu_now_ns();
    struct {
        const char *name;
        char *place;
        size_t bytes;
    } wanted[] = {{"etag:", r->etag, sizeof r->etag}, {"content-range:", r->range, sizeof r->range}};
    if (len >= 5 && !strncasecmp(data, "HTTP/", 5)) { /* the first line of another answer: a redirect's are forgotten */
        r->etag[0] = r->range[0] = 0;
        mu_free(r->next);
        r->next = NULL;
    }
    while (len && isspace((unsigned char)data[len - 1])) len--;
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        size_t k = strlen(wanted[i].name);
        if (len < k || strncasecmp(data, wanted[i].name, k) != 0) continue;
        while (k < len && isspace((unsigned char)data[k])) k++;
        if (len - k < wanted[i].bytes) { mu_text_show(data + k, len - k, wanted[i].place, wanted[i].bytes); }
    }
    if (len > 5 && !strncasecmp(data, "link:", 5)) {
        const char *from = memchr(data, '<', len), *to = from ? memchr(from, '>', len - (size_t)(from - data)) : NULL;
        if (to && memmem(to, len - (size_t)(to - data), "rel=\"next\"", 10)) {
            mu_free(r->next);
            r->next = mu_strndup(from + 1, (size_t)(to - from - 1));
        }
    }
    return size * n;
}

static size_t on_body(char *data, size_t size, size_t n, void *ctx)
{
    struct reply *r = ctx;
    r->heard_ns = mu_now_ns();
    if (!r->begun) curl_easy_getinfo(r->h->curl, CURLINFO_RESPONSE_CODE, &r->code);
    if (r->code >= 300) { /* the words of an error, as far as they are wanted */
        size_t have = strlen(r->body), room = ERROR_BODY_BYTES - have, take = size * n < room ? size * n : room;
        for (size_t i = 0; i < take; i++) r->body[have + i] = data[i] >= ' ' && data[i] <= '~' ? data[i] : ' ';
        r->body[have + take] = 0;
        return size * n;
    }
    bool taken = r->take(r, data, size * n);
    r->heard_ns = mu_now_ns(); /* a slow disk is not the server's silence */
    return taken ? size * n : 0;
}

static int on_progress(void *ctx, curl_off_t total, curl_off_t now, curl_off_t up_total, curl_off_t up)
{
    struct reply *r = ctx;
    (void)total, (void)now, (void)up_total, (void)up;
    report(r->h, r->reported);
    r->silent = mu_now_ns() - r->heard_ns > r->h->opt.timeout_s * MU_SEC;
    return r->silent || stopped(r->h);
}

/* "https://host:port" of an address, for messages. */
static const char *host_of(const char *url, char buf[128])
{
    const char *from = strstr(url, "://");
    from = from ? from + 3 : url;
    snprintf(buf, 128, "%.*s", (int)strcspn(from, "/?"), from);
    return buf;
}

/* A token travels over TLS, or does not leave this machine. */
static bool token_fits(const char *url)
{
    char host[128];
    host_of(url, host);
    if (strchr(host, '@')) return false;
    host[strcspn(host, ":")] = 0;
    return !strncmp(url, "https://", 8) || !strcmp(host, "127.0.0.1") || !strcmp(host, "localhost");
}

static enum outcome network_outcome(const struct reply *r, CURLcode rc, const char *url, struct mu_err *err)
{
    char host[128];
    host_of(url, host);
    if (r->silent) rc = CURLE_OPERATION_TIMEDOUT;
    switch (rc) {
    case CURLE_ABORTED_BY_CALLBACK: cancelled(r->h, err); return FATAL;
    case CURLE_OUT_OF_MEMORY: mu_fail(err, MU_ENOMEM, "no memory for a download"); return FATAL;
    case CURLE_OPERATION_TIMEDOUT:
        mu_fail(err, MU_ETIMEOUT, "%s has sent nothing, or next to nothing, for %d s", host, r->h->opt.timeout_s);
        return AGAIN;
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_ISSUER_ERROR:
        mu_fail(err, MU_EPEER, "%s could not prove who it is (%s): nothing was taken from it", host,
                curl_easy_strerror(rc));
        return FATAL;
    case CURLE_UNSUPPORTED_PROTOCOL:
        mu_fail(err, MU_EPROTO, "%s led to an address that is not https: nothing was taken from there", host);
        return FATAL;
    case CURLE_URL_MALFORMAT:
    case CURLE_TOO_MANY_REDIRECTS: mu_fail(err, MU_EPROTO, "%s: %s", host, curl_easy_strerror(rc)); return FATAL;
    default: mu_fail(err, MU_EPEER, "the connection to %s: %s", host, curl_easy_strerror(rc)); return AGAIN;
    }
}

static enum outcome http_outcome(const struct reply *r, const char *url, struct mu_err *err)
{
    char host[128];
    host_of(url, host);
    switch (r->code) {
    case 404:
    case 410: mu_fail(err, MU_ENOENT, "there is no %s at %s", r->h->about, host); return FATAL;
    case 401:
    case 403:
        mu_fail(
            err, MU_ENOENT,
            "%s does not give out %s (HTTP %ld): no such repository, or a private or gated one: accept its terms on "
            "its page, and give a token in HF_TOKEN or by 'hf auth login'",
            host, r->h->about, r->code);
        return FATAL;
    case 416: mu_fail(err, MU_EPROTO, "%s has no such part of the file", host); return FROM_START;
    case 429:
        mu_fail(err, MU_EBUSY, "%s asks to come back later (HTTP 429): try again in some minutes", host);
        return AGAIN;
    default:
        mu_fail(err, MU_EPEER, "%s answers HTTP %ld%s%s", host, r->code, r->body[0] ? ": " : "", r->body);
        return r->code >= 500 || r->code == 408 ? AGAIN : FATAL;
    }
}

/* One GET. headers: appended to. *wait_s_out: what the server asks for, 0: nothing. */
static enum outcome request(struct reply *r, const char *url, uint64_t from, const char *if_range, const char *accept,
                            int64_t *wait_s_out, struct mu_err *err)
{
    struct mu_http *h = r->h;
    CURL *c = h->curl;
    struct curl_slist *headers = NULL;
    const char *schemes = strncmp(h->base, "https://", 8) ? "http,https" : "https";
    char line[256], range[32];
    curl_easy_reset(c);
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_BUFFERSIZE, (long)BUFFER_BYTES);
    curl_easy_setopt(c, CURLOPT_USERAGENT, "muster/" MUSTER_VERSION);
    curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, schemes);
    curl_easy_setopt(c, CURLOPT_REDIR_PROTOCOLS_STR, schemes);
    curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 1L);
    curl_easy_setopt(c, CURLOPT_MAXREDIRS, (long)MAX_REDIRECTS);
    curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT,
                     (long)(h->opt.timeout_s < CONNECT_TIMEOUT_S ? h->opt.timeout_s : CONNECT_TIMEOUT_S));
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_LIMIT, (long)LOW_SPEED);
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_TIME, (long)h->opt.timeout_s);
    curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(c, CURLOPT_HEADERDATA, r);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, r);
    curl_easy_setopt(c, CURLOPT_XFERINFOFUNCTION, on_progress);
    curl_easy_setopt(c, CURLOPT_XFERINFODATA, r);
    curl_easy_setopt(c, CURLOPT_NOPROGRESS, 0L);
    if (h->token && mu_http_is_ours(h, url) && token_fits(url)) {
        /* libcurl leaves it out where a redirect leads to another host, port or scheme. */
        curl_easy_setopt(c, CURLOPT_HTTPAUTH, CURLAUTH_BEARER);
        curl_easy_setopt(c, CURLOPT_XOAUTH2_BEARER, h->token);
    }
    bool ok = true;
    if (accept) {
        snprintf(line, sizeof line, "Accept: %s", accept);
        headers = curl_slist_append(headers, line);
        ok = headers != NULL;
    }
    if (from) {
        snprintf(range, sizeof range, "%llu-", (unsigned long long)from);
        curl_easy_setopt(c, CURLOPT_RANGE, range);
    }
    if (from && if_range && *if_range && strncmp(if_range, "W/", 2) != 0) {
        snprintf(line, sizeof line, "If-Range: %s", if_range);
        struct curl_slist *more = curl_slist_append(headers, line);
        ok = ok && more;
        if (more) headers = more;
    }
    curl_easy_setopt(c, CURLOPT_HTTPHEADER, headers);
    r->heard_ns = mu_now_ns();
    CURLcode rc = ok ? curl_easy_perform(c) : CURLE_OUT_OF_MEMORY;
    curl_off_t wait_s = 0;
    curl_easy_getinfo(c, CURLINFO_RETRY_AFTER, &wait_s);
    curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &r->code);
    *wait_s_out = wait_s > MAX_RETRY_AFTER_S ? MAX_RETRY_AFTER_S : wait_s > 0 ? (int64_t)wait_s : 0;
    curl_slist_free_all(headers);
    if (r->fault != DONE) {
        *err = r->err;
        return r->fault;
    }
    if (rc == CURLE_OK) return r->code == 200 || r->code == 206 ? DONE : http_outcome(r, url, err);
    return network_outcome(r, rc, url, err);
}

/* Waits before try number `n` (from 1); MU_OK: try again; else err is what the last try said, or a cancellation. */
static enum mu_status wait_for_next(struct mu_http *h, int n, int64_t asked_s, struct mu_err *err)
{
    struct mu_err stop = MU_ERR_INIT;
    int64_t ms = h->opt.first_wait_ms;
    if (n >= h->opt.tries) return err->code;
    for (int i = 1; i < n && ms < MAX_WAIT_MS; i++) ms *= 2;
    if (ms > MAX_WAIT_MS) ms = MAX_WAIT_MS;
    if (ms < asked_s * 1000) ms = asked_s * 1000;
    say(h, "%.200s; trying again in %.1f s", err->text, (double)ms / 1000);
    if (wait_ms(h, ms, &stop) == MU_OK) return MU_OK;
    *err = stop;
    return stop.code;
}

/* ---- documents ---- */

struct document {
    struct reply r; /* first */
    char *text;
    size_t len, max_bytes;
};

static bool take_text(struct reply *r, const char *data, size_t n)
{
    struct document *d = (struct document *)r;
    r->begun = true;
    if (n > d->max_bytes - d->len) {
        mu_fail(&r->err, MU_ELIMIT, "the server's answer about %s is longer than %zu bytes", r->h->about, d->max_bytes);
        r->fault = FATAL;
        return false;
    }
    char *more = mu_reallocarray(d->text, d->len + n + 1, 1);
    if (!more) {
        mu_fail(&r->err, MU_ENOMEM, "no memory for the server's answer");
        r->fault = FATAL;
        return false;
    }
    d->text = more;
    memcpy(more + d->len, data, n);
    d->len += n;
    more[d->len] = 0;
    return true;
}

enum mu_status mu_http_get(struct mu_http *h, const char *url, const char *accept, size_t max_bytes, char **text_out,
                           size_t *len_out, char **next_out, struct mu_err *err)
{
    for (int n = 1;; n++) {
        struct document d = {.r = {.h = h, .take = take_text, .err = MU_ERR_INIT}, .max_bytes = max_bytes};
        int64_t wait_s;
        enum outcome o = request(&d.r, url, 0, NULL, accept, &wait_s, err);
        if (o == DONE && !d.text) d.text = mu_strdup("");
        if (o == DONE && d.text) {
            if (next_out)
                *next_out = d.r.next;
            else
                mu_free(d.r.next);
            *text_out = d.text;
            *len_out = d.len;
            return MU_OK;
        }
        mu_free(d.text);
        mu_free(d.r.next);
        if (o == DONE) return mu_fail(err, MU_ENOMEM, "no memory for the server's answer");
        if (o == FATAL) return err->code;
        enum mu_status st = wait_for_next(h, n, wait_s, err);
        if (st != MU_OK) return st;
    }
}

/* ---- files ---- */

struct file {
    struct reply r; /* first */
    const struct mu_want *want;
    int fd;
    char *partial, *final; /* final NULL: not known before the hash is */
    uint64_t have;
    EVP_MD_CTX *sha256, *sha1; /* sha1 NULL where git's is not asked for */
    char etag[128];            /* of the answer that what we have is from; "": another process's */
};

static enum mu_status disk_fail(const struct file *f, const char *verb, struct mu_err *err)
{
    int e = errno;
    return mu_fail(
        err, MU_EIO, "cannot %s %s: %s%s", verb, f->partial, strerror(e),
        e == ENOSPC || e == EDQUOT || e == EFBIG ? "; free some space and pull again: it goes on where it was" : "");
}

/* Hashes of nothing, and git's header. */
static bool hash_begin(struct file *f)
{
    char header[48];
    int n = snprintf(header, sizeof header, "blob %llu", (unsigned long long)f->want->bytes) + 1;
    return EVP_DigestInit_ex(f->sha256, EVP_sha256(), NULL) &&
           (!f->sha1 || (EVP_DigestInit_ex(f->sha1, EVP_sha1(), NULL) && EVP_DigestUpdate(f->sha1, header, (size_t)n)));
}

static bool hash_more(struct file *f, const void *data, size_t n)
{
    return EVP_DigestUpdate(f->sha256, data, n) && (!f->sha1 || EVP_DigestUpdate(f->sha1, data, n));
}

static bool hash_end(EVP_MD_CTX *c, char *hex_out)
{
    unsigned char sum[EVP_MAX_MD_SIZE];
    unsigned n;
    if (!EVP_DigestFinal_ex(c, sum, &n)) return false;
    for (unsigned i = 0; i < n; i++) snprintf(hex_out + 2 * i, 3, "%02x", sum[i]);
    return true;
}

static enum mu_status start_over(struct file *f, struct mu_err *err)
{
    f->have = 0;
    f->etag[0] = 0;
    f->r.reported = 0;
    if (ftruncate(f->fd, 0) != 0 || lseek(f->fd, 0, SEEK_SET) != 0) return disk_fail(f, "empty", err);
    return hash_begin(f) ? MU_OK : mu_fail(err, MU_EINTERNAL, "SHA-256 is not available");
}

/* The last answer's headers against what was asked for. */
static bool answer_fits(struct file *f)
{
    struct reply *r = &f->r;
    curl_off_t length = -1;
    unsigned long long first = 0, last = 0, total = 0;
    curl_easy_getinfo(r->h->curl, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &length);
    if (r->code == 200 && f->have > 0 &&
        start_over(f, &r->err) != MU_OK) { /* it does not do ranges, or the file changed */
        r->fault = FATAL;
        return false;
    }
    if (r->code == 206 && (sscanf(r->range, "bytes %llu-%llu/%llu", &first, &last, &total) != 3 || first != f->have ||
                           total != f->want->bytes || last + 1 != total)) {
        mu_fail(&r->err, MU_EPROTO, "the server was asked for bytes %llu- of %s (%llu in all) and answered '%.60s'",
                (unsigned long long)f->have, f->want->name, (unsigned long long)f->want->bytes, r->range);
        r->fault = FROM_START;
        return false;
    }
    if (length >= 0 && (uint64_t)length != f->want->bytes - f->have) {
        mu_fail(&r->err, MU_EPROTO, "%s should have %llu bytes from there on, but the server announces %lld",
                f->want->name, (unsigned long long)(f->want->bytes - f->have), (long long)length);
        r->fault = FATAL;
        return false;
    }
    memcpy(f->etag, r->etag, sizeof f->etag);
    return true;
}

static bool take_bytes(struct reply *r, const char *data, size_t n)
{
    struct file *f = (struct file *)r;
    if (!r->begun && !answer_fits(f)) return false;
    r->begun = true;
    if (n > f->want->bytes - f->have) {
        mu_fail(&r->err, MU_EPROTO, "the server sends more than the %llu bytes that %s should have",
                (unsigned long long)f->want->bytes, f->want->name);
        r->fault = FROM_START;
        return false;
    }
    for (size_t at = 0; at < n;) {
        ssize_t wrote = write(f->fd, data + at, n - at);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote < 0) {
            disk_fail(f, "write", &r->err);
            r->fault = FATAL;
            return false;
        }
        if (!hash_more(f, data + at, (size_t)wrote)) {
            mu_fail(&r->err, MU_EINTERNAL, "SHA-256 failed");
            r->fault = FATAL;
            return false;
        }
        at += (size_t)wrote;
        f->have += (uint64_t)wrote;
        r->reported = f->have;
    }
    return true;
}

/* The file is under its final name, with all its bytes: one of another size was cut short there, and is got again. */
static bool is_there(const char *final, const struct mu_want *want)
{
    struct stat sb;
    return final && stat(final, &sb) == 0 && (uint64_t)sb.st_size == want->bytes;
}

/* Opens and locks the partial file; waits for another pull of it. *there_out: that one has finished it. */
static enum mu_status partial_open(struct mu_http *h, struct file *f, bool *there_out, struct mu_err *err)
{
    bool told = false;
    *there_out = false;
    for (;;) {
        f->fd = open(f->partial, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
        if (f->fd < 0) return disk_fail(f, "open", err);
        struct stat ours, named;
        if (flock(f->fd, LOCK_EX | LOCK_NB) == 0) {
            /* Who held it may have renamed or removed it since we opened it. */
            if (fstat(f->fd, &ours) == 0 && lstat(f->partial, &named) == 0 && ours.st_ino == named.st_ino) {
                *there_out = is_there(f->final, f->want);
                if (*there_out) unlink(f->partial);
                return MU_OK;
            }
        } else if (errno != EWOULDBLOCK && errno != EINTR) {
            return disk_fail(f, "lock", err);
        } else {
            if (!told) say(h, "another muster is pulling %s: waiting for it", f->want->name);
            told = true;
            enum mu_status st = wait_ms(h, 200, err);
            if (st != MU_OK) return st;
        }
        close(f->fd);
        f->fd = -1;
    }
}

/* Hashes what an earlier pull left. */
static enum mu_status take_up(struct mu_http *h, struct file *f, struct mu_err *err)
{
    struct stat sb;
    if (!hash_begin(f)) return mu_fail(err, MU_EINTERNAL, "SHA-256 is not available");
    if (fstat(f->fd, &sb) != 0) return disk_fail(f, "examine", err);
    if ((uint64_t)sb.st_size > f->want->bytes) return start_over(f, err);
    char *buf = sb.st_size ? mu_malloc(READ_BYTES) : NULL;
    if (sb.st_size && !buf) return mu_fail(err, MU_ENOMEM, "no memory to check what is there of %s", f->want->name);
    enum mu_status st = MU_OK;
    while (buf && st == MU_OK) {
        ssize_t n = read(f->fd, buf, READ_BYTES);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) st = disk_fail(f, "read", err);
        if (n <= 0) break;
        if (!hash_more(f, buf, (size_t)n)) st = mu_fail(err, MU_EINTERNAL, "SHA-256 failed");
        f->have += (uint64_t)n;
        report(h, f->have);
        if (stopped(h)) st = cancelled(h, err);
    }
    mu_free(buf);
    f->r.reported = f->have;
    return st;
}

/* All bytes are there: are they the right ones? */
static bool hashes_fit(struct file *f, char sha256[MU_DIGEST_TEXT], struct mu_err *err)
{
    char sha1[2 * EVP_MAX_MD_SIZE + 1] = "";
    if (!hash_end(f->sha256, sha256) || (f->sha1 && !hash_end(f->sha1, sha1))) {
        mu_fail(err, MU_EINTERNAL, "SHA-256 failed");
        return false;
    }
    if ((!f->want->sha256[0] || !strcmp(f->want->sha256, sha256)) && (!f->sha1 || !strcmp(f->want->git_sha1, sha1)))
        return true;
    mu_fail(err, MU_EPROTO, "%s is not what it should be: its %s is %s, expected %s; what arrived was thrown away",
            f->want->name, f->want->sha256[0] ? "SHA-256" : "git hash", f->want->sha256[0] ? sha256 : sha1,
            f->want->sha256[0] ? f->want->sha256 : f->want->git_sha1);
    return false;
}

/* Until all bytes are there and right. fresh: nothing of it is from another process or an earlier answer. */
static enum mu_status get_all(struct mu_http *h, struct file *f, char sha256[MU_DIGEST_TEXT], struct mu_err *err)
{
    bool fresh = f->have == 0, again = false;
    uint64_t mark = f->have; /* only grows, so that no server can keep us busy for ever */
    enum mu_status st;
    for (int n = 1;;) {
        int64_t wait_s = 0;
        enum outcome o = DONE;
        if (f->have < f->want->bytes) {
            f->r = (struct reply){.h = h, .take = take_bytes, .reported = f->have, .err = MU_ERR_INIT};
            fresh = fresh && f->have == 0;
            o = request(&f->r, f->want->url, f->have, f->etag, NULL, &wait_s, err);
            mu_free(f->r.next);
            if (o == DONE && f->have < f->want->bytes) { /* an orderly end, too early */
                mu_fail(err, MU_EPEER, "the server ended %s after %llu of %llu bytes", f->want->name,
                        (unsigned long long)f->have, (unsigned long long)f->want->bytes);
                o = AGAIN;
            }
        }
        if (o == FATAL) return err->code;
        if (o == DONE) {
            if (hashes_fit(f, sha256, err)) return MU_OK;
            struct mu_err ignored = MU_ERR_INIT;
            st = start_over(f, &ignored);
            /* Wrong bytes may be an older process's: once from the start. */
            if (fresh || again || st != MU_OK || err->code != MU_EPROTO) return err->code;
            again = fresh = true;
            continue;
        }
        if (o == FROM_START) {
            struct mu_err bad = MU_ERR_INIT;
            if (start_over(f, &bad) != MU_OK) return mu_fail(err, bad.code, "%s", bad.text);
        } else if (f->have >= mark + NEW_BYTES) {
            n = 1;
            mark = f->have;
        }
        st = wait_for_next(h, n++, wait_s, err);
        if (st != MU_OK) return st;
    }
}

static enum mu_status finish(const char *root, struct file *f, const char *sha256, struct mu_err *err)
{
    char *final = mu_blob_path(root, sha256), *blobs = mu_asprintf("%s/blobs", root);
    enum mu_status st = MU_OK;
    if (!final || !blobs)
        st = mu_fail(err, MU_ENOMEM, "no memory for a path");
    else if (fsync(f->fd) != 0)
        st = disk_fail(f, "sync", err);
    else if (rename(f->partial, final) != 0)
        st = disk_fail(f, "rename", err);
    int dir = st == MU_OK ? open(blobs, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (dir >= 0) {
        fsync(dir);
        close(dir);
    }
    mu_free(final);
    mu_free(blobs);
    return st;
}

static char *partial_path(const char *root, const struct mu_want *want)
{
    return want->sha256[0] ? mu_asprintf("%s/blobs/sha256-%s-partial", root, want->sha256)
                           : mu_asprintf("%s/blobs/git-%s-partial", root, want->git_sha1);
}

uint64_t mu_http_missing(const char *root, const struct mu_want *want)
{
    struct stat sb;
    char *final = want->sha256[0] ? mu_blob_path(root, want->sha256) : NULL, *partial = partial_path(root, want);
    uint64_t missing = want->bytes;
    if (is_there(final, want))
        missing = 0;
    else if (partial && stat(partial, &sb) == 0 && (uint64_t)sb.st_size <= want->bytes)
        missing = want->bytes - (uint64_t)sb.st_size;
    mu_free(final);
    mu_free(partial);
    return missing;
}

enum mu_status mu_http_file(struct mu_http *h, const char *root, struct mu_want *want, struct mu_err *err)
{
    struct file f = {.r = {.h = h}, .want = want, .fd = -1};
    enum mu_status st = MU_OK;
    bool there = false;
    char sha256[MU_DIGEST_TEXT];
    f.partial = partial_path(root, want);
    f.final = want->sha256[0] ? mu_blob_path(root, want->sha256) : NULL;
    f.sha256 = EVP_MD_CTX_new();
    f.sha1 = want->git_sha1[0] ? EVP_MD_CTX_new() : NULL;
    if (!f.partial || (want->sha256[0] && !f.final) || !f.sha256 || (want->git_sha1[0] && !f.sha1)) {
        st = mu_fail(err, MU_ENOMEM, "no memory for a download");
        goto done;
    }
    if (is_there(f.final, want)) goto done;
    MU_TRY(st, partial_open(h, &f, &there, err), done);
    if (there) goto done;
    MU_TRY(st, take_up(h, &f, err), done);
    MU_TRY(st, get_all(h, &f, sha256, err), done);
    MU_TRY(st, finish(root, &f, sha256, err), done);
    memcpy(want->sha256, sha256, sizeof sha256);
done:
    if (st == MU_OK) {
        h->done += want->bytes;
        report(h, 0);
    }
    if (f.fd >= 0) close(f.fd);
    EVP_MD_CTX_free(f.sha256);
    EVP_MD_CTX_free(f.sha1);
    mu_free(f.partial);
    mu_free(f.final);
    return st;
}
