/* Requests of record: commit, text, stop strings. See request.h. */
#include "coordinator/request.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"

const char *mu_request_refuse_share(Muster__V1__Priority priority, const char *key)
{
    if ((int)priority < MUSTER__V1__PRIORITY__PRIORITY_NORMAL || (int)priority > MUSTER__V1__PRIORITY__PRIORITY_BATCH)
        return "the priority is not known: 0 is normal, 1 interactive, 2 batch";
    return strlen(key) > MU_REQ_MAX_KEY_BYTES ? "the key is longer than 256 bytes" : NULL;
}

enum mu_priority mu_request_priority(Muster__V1__Priority p)
{
    return p == MUSTER__V1__PRIORITY__PRIORITY_INTERACTIVE ? MU_PRIORITY_INTERACTIVE
           : p == MUSTER__V1__PRIORITY__PRIORITY_BATCH     ? MU_PRIORITY_BATCH
                                                           : MU_PRIORITY_NORMAL;
}

struct mu_request *mu_request_create(uint64_t id, struct mu_rpc_call *call, Muster__V1__GenerateRequest *params,
                                     int32_t *prompt, size_t n_prompt, size_t max_tokens,
                                     const struct mu_tokenizer *tok)
{
    struct mu_request *r = mu_calloc(1, sizeof *r);
    int32_t *emitted = mu_reallocarray(NULL, max_tokens, sizeof *emitted);
    if (!r || !emitted) {
        mu_rpc_call_finish(call, MU_RPC_RESOURCE_EXHAUSTED, "no memory for a request of %zu tokens", max_tokens);
        mu_rpc_call_release(call);
        mu_rpc_message_free((ProtobufCMessage *)params);
        mu_free(prompt);
        mu_free(emitted);
        mu_free(r);
        return NULL;
    }
    r->id = id;
    r->call = call;
    r->params = params;
    r->prompt = prompt;
    r->n_prompt = n_prompt;
    r->emitted = emitted;
    r->max_tokens = max_tokens;
    r->priority = mu_request_priority(params->priority);
    r->key = mu_fair_key(params->key);
    r->flow = -1;
    r->arrived_ns = mu_now_ns();
    mu_streamer_init(&r->streamer, tok, params->parse_special);
    r->streamer.show_marks = params->show_marks;
    return r;
}

struct mu_request *mu_request_create_embed(uint64_t id, struct mu_embed_call *call, size_t at)
{
    struct mu_request *r = mu_calloc(1, sizeof *r);
    if (!r) return NULL;
    r->id = id;
    r->embed = call;
    r->embed_at = at;
    call->n_holder++;
    r->prompt = call->input[at].ids;
    r->n_prompt = call->input[at].n_ids;
    call->input[at].ids = NULL;
    r->priority = call->priority;
    r->key = call->key;
    r->flow = -1;
    r->arrived_ns = call->arrived_ns;
    return r;
}

void mu_request_free(struct mu_request *r)
{
    if (!r) return;
    if (r->call) mu_rpc_call_release(r->call);
    mu_embed_call_release(r->embed);
    mu_rpc_message_free((ProtobufCMessage *)r->params);
    mu_free(r->prompt);
    mu_free(r->emitted);
    mu_free(r->text);
    mu_free(r);
}

/* Where the first stop string begins at or after `from`, or text_len. */
static size_t find_stop(const struct mu_request *r, size_t from)
{
    size_t first = r->text_len;
    for (size_t i = 0; i < r->params->n_stop; i++) {
        const char *hit = memmem(r->text + from, r->text_len - from, r->params->stop[i], strlen(r->params->stop[i]));
        if (hit && (size_t)(hit - r->text) < first) first = (size_t)(hit - r->text);
    }
    return first;
}

/* How many bytes at the end of the text might be the beginning of a stop string: they wait. */
static size_t held_back(const struct mu_request *r)
{
    size_t hold = 0, unsent = r->text_len - r->text_sent;
    for (size_t i = 0; i < r->params->n_stop; i++) {
        size_t n = strlen(r->params->stop[i]), k = n - 1 < unsent ? n - 1 : unsent;
        for (; k > hold; k--)
            if (!memcmp(r->text + r->text_len - k, r->params->stop[i], k)) hold = k;
    }
    return hold;
}

/* A protobuf string cannot carry NUL, and protobuf-c's end at one: U+FFFD stands for it, as in Detokenize. */
static bool replace_nul(struct mu_request *r, size_t from)
{
    static const char bad[3] = "\xef\xbf\xbd";
    char *nul;
    while (from < r->text_len && (nul = memchr(r->text + from, 0, r->text_len - from))) {
        size_t at = (size_t)(nul - r->text);
        if (r->text_cap < r->text_len + sizeof bad) {
            char *more = mu_reallocarray(r->text, r->text_len + 64, 1);
            if (!more) return false;
            r->text = more;
            r->text_cap = r->text_len + 64;
        }
        memmove(r->text + at + sizeof bad, r->text + at + 1, r->text_len - at); /* the NUL at the end as well */
        memcpy(r->text + at, bad, sizeof bad);
        r->text_len += sizeof bad - 1;
        from = at + sizeof bad;
    }
    return true;
}

static enum mu_commit append(struct mu_request *r, int32_t id, const struct mu_tokenizer *tok)
{
    r->emitted[r->n_emitted++] = id;
    bool end = !r->params->ignore_end && mu_tokenizer_is_end(tok, id);
    if (!end) {
        size_t before = r->text_len;
        if (mu_streamer_push(&r->streamer, id, &r->text, &r->text_len, &r->text_cap)) return MU_COMMIT_NOMEM;
        if (!replace_nul(r, before)) return MU_COMMIT_NOMEM;
        if (r->params->n_stop && r->text_len > before) {
            size_t from = before > MU_REQ_MAX_STOP_BYTES ? before - MU_REQ_MAX_STOP_BYTES : 0;
            if (from < r->text_sent) from = r->text_sent; /* what went out did not begin a stop string */
            size_t stop = find_stop(r, from);
            if (stop < r->text_len) {
                r->text_len = stop;
                r->finish = MUSTER__V1__FINISH__FINISH_STOP;
                return MU_COMMIT_OK;
            }
        }
    }
    if (end)
        r->finish = MUSTER__V1__FINISH__FINISH_END;
    else if (r->n_emitted == r->max_tokens)
        r->finish = MUSTER__V1__FINISH__FINISH_LENGTH;
    if (r->finish && mu_streamer_finish(&r->streamer, &r->text, &r->text_len, &r->text_cap)) return MU_COMMIT_NOMEM;
    return MU_COMMIT_OK;
}

enum mu_commit mu_request_commit(struct mu_request *r, size_t first, const int32_t *ids, size_t n,
                                 const struct mu_tokenizer *tok)
{
    if (first > r->n_emitted) return MU_COMMIT_GAP;
    size_t skip = r->n_emitted - first;
    if (skip >= n) return MU_COMMIT_OLD;
    for (size_t i = skip; i < n && !r->finish; i++) {
        enum mu_commit c = append(r, ids[i], tok);
        if (c != MU_COMMIT_OK) return c;
        if (!r->first_ns) r->first_ns = mu_now_ns();
    }
    return MU_COMMIT_OK;
}

/* Of one reply: most clients take no message beyond 4 MiB, and what a slow one has not read adds up. */
enum { REPLY_BYTES = 1 << 18, REPLY_IDS = 1 << 14 };
enum { RESUME_BYTES = 1 << 20 }; /* a slow client is not written for until its queue is as short as this */

bool mu_request_flush(struct mu_request *r)
{
    if (r->blocked && mu_rpc_call_queued(r->call) > RESUME_BYTES) return false;
    size_t until = r->finish ? r->text_len : r->text_len - held_back(r);
    size_t n_text = until - r->text_sent, n_ids = r->params->return_ids ? r->n_emitted - r->n_sent : 0;
    if (!n_text && !n_ids && !r->finish && r->told_first) return false;
    bool more = n_text > REPLY_BYTES || n_ids > REPLY_IDS, last = r->finish && !more;
    if (n_text > REPLY_BYTES) {
        for (until = r->text_sent + REPLY_BYTES; (r->text[until] & 0xC0) == 0x80;) until--; /* whole characters */
        n_text = until - r->text_sent;
    }
    if (n_ids > REPLY_IDS) n_ids = REPLY_IDS;

    Muster__V1__GenerateReply reply = MUSTER__V1__GENERATE_REPLY__INIT;
    Muster__V1__Usage usage = MUSTER__V1__USAGE__INIT;
    char id[32];
    if (!r->told_first) {
        snprintf(id, sizeof id, "r%llu", (unsigned long long)r->id);
        reply.request_id = id;
        reply.seed = r->seed;
    }
    char *text = mu_strndup(r->text ? r->text + r->text_sent : "", n_text);
    if (!text) {
        r->blocked = true;
        return false;
    }
    reply.text = text;
    reply.ids = r->emitted + r->n_sent;
    reply.n_ids = n_ids;
    if (last) {
        int64_t now = mu_now_ns();
        usage.prompt_tokens = (uint32_t)r->n_prompt;
        usage.completion_tokens = (uint32_t)r->n_emitted;
        usage.cached_tokens = r->n_cached;
        usage.resumed = (uint32_t)r->resumed;
        usage.queue_ms = (double)(r->started_ns - r->arrived_ns) / 1e6;
        usage.first_token_ms = (double)(r->first_ns - r->arrived_ns) / 1e6;
        usage.total_ms = (double)(now - r->arrived_ns) / 1e6;
        reply.usage = &usage;
        reply.finish = r->finish;
    }
    enum mu_status st = mu_rpc_call_send(r->call, &reply.base);
    mu_free(text);
    if (st == MU_EAGAIN || st == MU_ENOMEM) {
        r->blocked = true;
        return false;
    }
    if (st) { /* the call is over; anything else is a fault of ours, which must not leave a client hanging */
        mu_request_fail(r, MU_RPC_INTERNAL, "its text cannot be sent: %s", mu_status_text(st));
        return true;
    }
    r->blocked = false;
    r->told_first = true;
    r->text_sent = until;
    r->n_sent += n_ids;
    if (more) return mu_request_flush(r);
    if (!last) return false;
    mu_rpc_call_finish(r->call, MU_RPC_OK, "%s", "");
    return true;
}

void mu_request_fail(struct mu_request *r, enum mu_rpc_code code, const char *fmt, ...)
{
    char text[MU_ERR_TEXT];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (r->embed) {
        mu_embed_call_fail(r->embed, r->embed_at, code, text);
        return;
    }
    mu_rpc_call_finish(r->call, code, "request r%llu: %s", (unsigned long long)r->id, text);
}
